//! What every room may use: errors, random numbers, hashes, whole files, names as text, and the changes that augmentation makes.

pub mod changes;
pub(crate) mod data_file;
pub mod error;
pub(crate) mod exchange;
pub(crate) mod files;
pub(crate) mod fnv;
pub mod random;
pub(crate) mod text;
