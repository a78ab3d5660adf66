//! Networks into other programs' files.

pub mod onnx;
pub mod torch;
