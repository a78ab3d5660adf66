//! A network's weights: our own checkpoints, and import from and export to other programs' model files.

pub mod checkpoint;
pub mod convention;
pub mod export;
pub mod formats;
pub mod import;
