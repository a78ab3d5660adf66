//! The finish of a complete gradient.

use crate::backend::Close;
use crate::backend::geometry::Rows;

/// Finishes a gradient in place.
#[derive(Debug)]
pub struct CloseGrad<'a, T> {
    /// Pixels and channels.
    pub rows: Rows,
    /// The gradient, N H W x C.
    pub g: &'a mut T,
    /// The value that it belongs to, and where its channel sums go.
    pub close: Close<'a, T>,
}
