//! Encodings that both data sets and model files use. None of them knows what is stored.

pub(crate) mod base64;
pub(crate) mod float;
pub(crate) mod framing;
pub mod npy;
pub(crate) mod pickle;
pub(crate) mod zip;
