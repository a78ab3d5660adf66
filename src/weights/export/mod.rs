//! Networks into other programs' files.

pub mod keras_h5;
pub mod onnx;
pub mod torch;
