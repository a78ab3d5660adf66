//! Weights of a network: its own checkpoints, and the model files of other programs, read and written.

pub mod checkpoint;
pub mod convention;
pub mod export;
pub mod formats;
pub mod import;
