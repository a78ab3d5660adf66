//! Addition, and the passing on of gradients.

use crate::backend::geometry::Rows;
use crate::backend::{Activation, GradTarget, Pending, PendingGrad, View};

/// y = activation(a + b), or activation(a): closes a residual block, or stores a pending value.
#[derive(Debug)]
pub struct AddFprop<'a, T> {
    /// Pixels and channels.
    pub rows: Rows,
    /// The first operand.
    pub a: Pending<'a, T>,
    /// The second, if there is one.
    pub b: Option<Pending<'a, T>>,
    /// Applied to the sum.
    pub activation: Activation<View<'a, T>>,
    /// N H W x C.
    pub y: &'a mut T,
}

/// Applies what is pending to a gradient and passes it on: to the inputs of an addition, or through a batch norm that
/// follows no convolution.
#[derive(Debug)]
pub struct AddDgrad<'a, T> {
    /// Pixels and channels.
    pub rows: Rows,
    /// The gradient to pass on.
    pub dy: PendingGrad<'a, T>,
    /// Where it goes.
    pub dx: GradTarget<'a, T>,
}
