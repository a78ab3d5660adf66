//! Networks into other programs' files.

pub mod torch;
