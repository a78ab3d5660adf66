//! What every room may use: errors, random numbers, hashes, files that are written whole.

pub mod error;
pub(crate) mod files;
pub(crate) mod fnv;
pub(crate) mod map;
pub mod random;
