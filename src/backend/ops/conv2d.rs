//! Convolution, and what convolutions of both kinds share.

use crate::backend::geometry::Conv2d;
use crate::backend::{Activation, GradTarget, Pending, PendingGrad, View};

/// Where a layer's filter and bias begin in the parameter slab, and their gradients in the gradient slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FilterAt {
    /// First element of the weights: K R S C, depthwise R S C.
    pub weights: usize,
    /// First element of the K (depthwise: C) biases.
    pub bias: Option<usize>,
}

/// What a convolution does with its output before writing it.
#[derive(Debug)]
pub enum Epilogue<'a, T> {
    /// Add the bias, if there is one.
    Raw,
    /// As `Raw`; also the batch moments of what was written, in the layout of [`bn::moments_len`](super::bn::moments_len).
    Moments(&'a mut T),
    /// For inference: add the bias, add `residual`, apply the activation.
    Activate {
        /// Added before the activation. It has the output's shape, and nothing of it is pending.
        residual: Option<&'a T>,
        /// Applied last.
        activation: Activation<View<'a, T>>,
    },
}

/// A filter in the form in which a device multiplies with it fastest, for inference with batches of any size.
#[derive(Debug)]
pub struct Conv2dPrepare<'a, T> {
    /// Sizes, stride and padding; the batch does not count.
    pub geometry: Conv2d,
    /// The slab with the filter.
    pub filters: &'a T,
    /// Where it lies in it.
    pub filter: FilterAt,
    /// As many float32 as [`Backend::prepared_len`](crate::backend::Backend::prepared_len) says.
    pub prepared: &'a mut T,
}

/// y = conv(x, w) (+ bias), then the epilogue.
#[derive(Debug)]
pub struct Conv2dFprop<'a, T> {
    /// Sizes, stride and padding.
    pub geometry: Conv2d,
    /// N x H x W x C.
    pub x: Pending<'a, T>,
    /// The parameter slab, with the bias.
    pub params: &'a T,
    /// The slab with the filter, in elements of x and y: the parameter slab or its rounded copy.
    pub filters: &'a T,
    /// Where they lie in them.
    pub filter: FilterAt,
    /// What [`Conv2dPrepare`] made of the filter, which then is not read; for inference alone.
    pub prepared: Option<&'a T>,
    /// N x P x Q x K.
    pub y: &'a mut T,
    /// What happens to y before it is written.
    pub epilogue: Epilogue<'a, T>,
}

/// The gradient with respect to the activated input.
#[derive(Debug)]
pub struct Conv2dDgrad<'a, T> {
    /// Sizes, stride and padding.
    pub geometry: Conv2d,
    /// N x P x Q x K.
    pub dy: PendingGrad<'a, T>,
    /// The slab with the filter, in elements of dy and dx: the parameter slab or its rounded copy.
    pub filters: &'a T,
    /// Where it lies in it.
    pub filter: FilterAt,
    /// N x H x W x C.
    pub dx: GradTarget<'a, T>,
}

/// The gradient with respect to weights and bias.
#[derive(Debug)]
pub struct Conv2dWgrad<'a, T> {
    /// Sizes, stride and padding.
    pub geometry: Conv2d,
    /// N x P x Q x K.
    pub dy: PendingGrad<'a, T>,
    /// N x H x W x C.
    pub x: Pending<'a, T>,
    /// The gradient slab; what it holds for this layer is replaced.
    pub grads: &'a mut T,
    /// Where the layer's filter and bias lie in it.
    pub filter: FilterAt,
}
