//! Weights as other programs' files.

pub mod onnx;
