//! Face recognition with ArcFace.

pub mod backend;
pub mod data;
pub mod error;
pub mod head;
pub mod optim;
pub mod random;
pub mod report;
pub mod verification;

pub use error::{Error, Result};
