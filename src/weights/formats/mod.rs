//! Model files of other programs: what each format stores, by the names and layouts of its writer.

pub mod keras;
pub mod onnx;
pub(crate) mod others;
pub mod safetensors;
pub mod tensors;
pub mod torch;
