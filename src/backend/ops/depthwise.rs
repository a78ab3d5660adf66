//! Depthwise convolution.

use super::{Epilogue, FilterAt};
use crate::backend::geometry::PerChannel;
use crate::backend::{GradTarget, Pending, PendingGrad};

/// y = conv(x, w) (+ bias), then the epilogue; one filter per channel.
#[derive(Debug)]
pub struct DepthwiseFprop<'a, T> {
    /// Sizes, stride and padding.
    pub geometry: PerChannel,
    /// N x H x W x C.
    pub x: Pending<'a, T>,
    /// The parameter slab, with the filter and the bias.
    pub params: &'a T,
    /// Where they lie in it.
    pub filter: FilterAt,
    /// N x P x Q x C.
    pub y: &'a mut T,
    /// What happens to y before it is written.
    pub epilogue: Epilogue<'a, T>,
}

/// The gradient with respect to the activated input.
#[derive(Debug)]
pub struct DepthwiseDgrad<'a, T> {
    /// Sizes, stride and padding.
    pub geometry: PerChannel,
    /// N x P x Q x C.
    pub dy: PendingGrad<'a, T>,
    /// The parameter slab, with the filter.
    pub params: &'a T,
    /// Where it lies in it.
    pub filter: FilterAt,
    /// N x H x W x C.
    pub dx: GradTarget<'a, T>,
}

/// The gradient with respect to weights and bias.
#[derive(Debug)]
pub struct DepthwiseWgrad<'a, T> {
    /// Sizes, stride and padding.
    pub geometry: PerChannel,
    /// N x P x Q x C.
    pub dy: PendingGrad<'a, T>,
    /// N x H x W x C.
    pub x: Pending<'a, T>,
    /// The gradient slab; what it holds for this layer is replaced.
    pub grads: &'a mut T,
    /// Where the layer's filter and bias lie in it.
    pub filter: FilterAt,
}
