//! Batch norm: moments, coefficients, and the gradients of its parameters.

use crate::backend::geometry::Rows;

/// Layout of a batch norm's channel vectors, C elements each, one after the other.
pub mod bn {
    /// Forward coefficients: scale = gamma rstd, shift = beta - mean scale, mean, rstd = 1 / sqrt(var + eps).
    pub const SCALE: usize = 0;
    /// See [`SCALE`].
    pub const SHIFT: usize = 1;
    /// See [`SCALE`].
    pub const MEAN: usize = 2;
    /// See [`SCALE`].
    pub const RSTD: usize = 3;

    /// Elements of the forward coefficients.
    pub const fn forward_len(c: usize) -> usize {
        4 * c
    }

    /// Elements of the backward coefficients a, b, c of [`PendingGrad`](crate::backend::PendingGrad).
    pub const fn backward_len(c: usize) -> usize {
        3 * c
    }

    /// Elements of the batch moments: mean, then biased variance.
    pub const fn moments_len(c: usize) -> usize {
        2 * c
    }
}

/// Where a batch norm's parameters begin, and its constants.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNormAt {
    /// gamma in the parameter slab; absent where the scale is fixed at 1.
    pub gamma: Option<usize>,
    /// beta in the parameter slab.
    pub beta: Option<usize>,
    /// Running mean (C), then running variance (C), in the statistics slab.
    pub statistics: usize,
    /// Added to the variance.
    pub epsilon: f32,
    /// The fraction of the running statistics that a step keeps (Keras's convention).
    pub momentum: f32,
}

/// Batch moments of a stored tensor, for a batch norm that does not follow a convolution.
#[derive(Debug)]
pub struct BatchNormMoments<'a, T> {
    /// Pixels and channels of x.
    pub rows: Rows,
    /// N H W x C.
    pub x: &'a T,
    /// In the layout of [`bn::moments_len`].
    pub moments: &'a mut T,
}

/// From the batch moments: the forward coefficients and the new running statistics
/// (running = momentum running + (1 - momentum) batch, with the unbiased variance).
#[derive(Debug)]
pub struct BatchNormFprop<'a, T> {
    /// Pixels and channels of the tensor that the moments describe.
    pub rows: Rows,
    /// In the layout of [`bn::moments_len`].
    pub moments: &'a T,
    /// The parameter slab, with gamma and beta.
    pub params: &'a T,
    /// Where everything lies, and the constants.
    pub at: BatchNormAt,
    /// The statistics slab, with the running mean and variance.
    pub statistics: &'a mut T,
    /// In the layout of [`bn::forward_len`].
    pub forward: &'a mut T,
}

/// From the channel sums: d_gamma and d_beta, and the backward coefficients
/// a = gamma rstd, b = -gamma rstd^2 mean(g y^), c = -gamma rstd mean(g) - b mean.
#[derive(Debug)]
pub struct BatchNormBprop<'a, T> {
    /// Pixels and channels that the sums were taken over.
    pub rows: Rows,
    /// In the layout of [`sums`](crate::backend::sums).
    pub sums: &'a T,
    /// The forward coefficients, in the layout of [`bn::forward_len`].
    pub forward: &'a T,
    /// The gradient slab, which gets d_gamma and d_beta.
    pub grads: &'a mut T,
    /// Where everything lies, and the constants.
    pub at: BatchNormAt,
    /// In the layout of [`bn::backward_len`].
    pub backward: &'a mut T,
}
