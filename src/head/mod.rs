//! The head: class rows, the ArcFace loss and its training step.

mod arcface;

pub use arcface::{ArcFace, ClassInit, Distribution, HeadOutput, expected_initial_loss};

pub use crate::backend::margin::{Margin, MarginGradient, PiGuard};
