//! What every room may use: errors, random numbers, hashes, whole files, and the changes that augmentation makes.

pub mod changes;
pub mod error;
pub(crate) mod files;
pub(crate) mod fnv;
pub(crate) mod map;
pub mod random;
