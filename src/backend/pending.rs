//! Pending values and gradients, as operations take them.

use super::Activation;

/// A read-only stretch of a device buffer.
#[derive(Debug)]
pub struct View<'a, T> {
    /// The buffer.
    pub buffer: &'a T,
    /// First element.
    pub offset: usize,
}

/// A value as its consumers see it: `activation(scale[c] raw + shift[c])`.
///
/// Padding is zero *after* scale, shift and activation.
#[derive(Debug)]
pub struct Pending<'a, T> {
    /// The stored tensor, NHWC.
    pub raw: &'a T,
    /// Batch-norm coefficients in the layout of [`bn`](super::bn); absent where there is no batch norm.
    pub affine: Option<&'a T>,
    /// Applied last.
    pub activation: Activation<View<'a, T>>,
}

/// The gradient with respect to a raw tensor: `a[c] g + b[c] raw + c[c]`, or just g.
#[derive(Debug)]
pub struct PendingGrad<'a, T> {
    /// The gradient of the normalised value, after the activation's derivative.
    pub g: &'a T,
    /// The raw tensor and the coefficients of [`bn::backward_len`](super::bn::backward_len), if the value has batch norm.
    pub batch_norm: Option<(&'a T, &'a T)>,
}

/// Where an operation leaves the gradient with respect to its input.
#[derive(Debug)]
pub struct GradTarget<'a, T> {
    /// The gradient, the input's shape.
    pub g: &'a mut T,
    /// Add to what is there instead of replacing it.
    pub accumulate: bool,
    /// Set for the last operation to contribute: the gradient is complete and gets its finish.
    pub close: Option<Close<'a, T>>,
}

/// The finish of a complete gradient: multiply by the activation's derivative, take the channel sums.
#[derive(Debug)]
pub struct Close<'a, T> {
    /// The value that the gradient belongs to.
    pub value: Pending<'a, T>,
    /// Where the channel sums go, in the layout of [`sums`]; needed where the value has batch norm or slopes.
    pub sums: Option<&'a mut T>,
}

macro_rules! copy_views {
    ($($name:ident),*) => {$(
        impl<T> Clone for $name<'_, T> {
            fn clone(&self) -> Self {
                *self
            }
        }
        impl<T> Copy for $name<'_, T> {}
    )*};
}
copy_views!(View, Pending, PendingGrad);

impl<'a, T> Pending<'a, T> {
    /// A value that is stored as it is read.
    pub fn plain(raw: &'a T) -> Self {
        Pending {
            raw,
            affine: None,
            activation: Activation::Identity,
        }
    }

    /// Whether consumers may read the stored tensor as it is.
    pub fn is_plain(&self) -> bool {
        self.affine.is_none() && self.activation.is_identity()
    }
}

impl<'a, T> PendingGrad<'a, T> {
    /// A gradient with nothing left to apply.
    pub fn plain(g: &'a T) -> Self {
        PendingGrad {
            g,
            batch_norm: None,
        }
    }
}

/// Layout of the channel sums that close a gradient, C elements each. With v the value before its activation,
/// y^ = (raw - mean) rstd, and g the gradient after the activation's derivative.
pub mod sums {
    /// Sum of g: batch norm's d_beta.
    pub const G: usize = 0;
    /// Sum of g y^: batch norm's d_gamma (not written where there is no batch norm).
    pub const G_NORMALISED: usize = 1;
    /// Sum over v <= 0 of v times the gradient before the derivative: PReLU's d_slope (zero for others).
    pub const SLOPE: usize = 2;

    /// Elements of all three.
    pub const fn len(c: usize) -> usize {
        3 * c
    }
}
