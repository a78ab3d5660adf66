//! Face recognition with ArcFace.

pub mod backend;
pub mod checkpoint;
pub mod cli;
pub mod config;
pub mod data;
pub mod demo;
pub mod embed;
pub mod embedder;
pub mod error;
pub mod eval;
pub mod graph;
pub mod head;
pub mod models;
pub mod optim;
pub mod presets;
pub mod random;
pub mod report;
pub mod train;
pub mod verification;

pub use error::{Error, Result};
