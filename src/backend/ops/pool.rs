//! Max pooling and global average pooling.

use crate::backend::geometry::{GlobalPool, PerChannel};
use crate::backend::{GradTarget, Pending};

/// Largest value of each window; padding never wins.
#[derive(Debug)]
pub struct MaxPoolFprop<'a, T> {
    /// Sizes, stride and padding.
    pub geometry: PerChannel,
    /// N x H x W x C.
    pub x: Pending<'a, T>,
    /// N x P x Q x C.
    pub y: &'a mut T,
}

/// Each window's gradient goes to the first pixel, in row order, that holds the largest value. The pixel is found again
/// from x.
#[derive(Debug)]
pub struct MaxPoolDgrad<'a, T> {
    /// Sizes, stride and padding.
    pub geometry: PerChannel,
    /// N x P x Q x C.
    pub dy: &'a T,
    /// N x H x W x C.
    pub x: Pending<'a, T>,
    /// N x H x W x C.
    pub dx: GradTarget<'a, T>,
}

/// Mean of each channel over an image.
#[derive(Debug)]
pub struct GlobalAvgPoolFprop<'a, T> {
    /// Sizes.
    pub geometry: GlobalPool,
    /// N x H x W x C.
    pub x: Pending<'a, T>,
    /// N x C.
    pub y: &'a mut T,
}

/// dy / (H W) to every pixel.
#[derive(Debug)]
pub struct GlobalAvgPoolDgrad<'a, T> {
    /// Sizes.
    pub geometry: GlobalPool,
    /// N x C.
    pub dy: &'a T,
    /// N x H x W x C.
    pub dx: GradTarget<'a, T>,
}
