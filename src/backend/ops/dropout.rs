//! Dropout.

use crate::backend::geometry::Rows;
use crate::backend::{GradTarget, Pending};

/// The numbers that decide a dropout mask: element i is kept where Philox(seed, layer, step, i) >= rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Dropout {
    /// Probability of zeroing an element, in [0, 1).
    pub rate: f32,
    /// The run's seed.
    pub seed: u64,
    /// The layer's number.
    pub layer: u32,
    /// The step's number.
    pub step: u64,
}

/// Zeroes elements at random; the kept ones are divided by 1 - rate.
#[derive(Debug)]
pub struct DropoutFprop<'a, T> {
    /// Pixels and channels.
    pub rows: Rows,
    /// N H W x C.
    pub x: Pending<'a, T>,
    /// The mask.
    pub dropout: Dropout,
    /// N H W x C.
    pub y: &'a mut T,
}

/// The same mask, applied to the gradient.
#[derive(Debug)]
pub struct DropoutDgrad<'a, T> {
    /// Pixels and channels.
    pub rows: Rows,
    /// N H W x C.
    pub dy: &'a T,
    /// The mask.
    pub dropout: Dropout,
    /// N H W x C.
    pub dx: GradTarget<'a, T>,
}
