//! The tensors of a model file, whatever its format: names and layouts are the file's own.

use crate::encoding::half::f32_from_f16;

/// A tensor as its file names it and lays it out.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// Its name.
    pub name: String,
    /// Its axes; empty for a single number.
    pub shape: Vec<usize>,
    /// Its elements, the last axis fastest; as many as the shape says.
    pub values: Vec<f32>,
}

/// What a model file holds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TensorFile {
    /// The tensors of floating-point numbers, in the file's order; no name is there twice.
    pub tensors: Vec<NamedTensor>,
    /// What else is there: its name, and why it is left out.
    pub ignored: Vec<(String, String)>,
}

impl TensorFile {
    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&NamedTensor> {
        self.tensors.iter().find(|tensor| tensor.name == name)
    }
}

/// How a file stores floating-point numbers, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Float {
    /// IEEE half precision: sign, 5 bits of exponent, 10 of fraction.
    F16,
    /// The upper half of an [`f32`].
    Bf16,
    F32,
    F64,
}

impl Float {
    /// Bytes of a number.
    pub(crate) fn size(self) -> usize {
        match self {
            Float::F16 | Float::Bf16 => 2,
            Float::F32 => 4,
            Float::F64 => 8,
        }
    }

    /// The numbers in `bytes`, as many as are whole; an `F64` is rounded.
    pub(crate) fn decode(self, bytes: &[u8]) -> Vec<f32> {
        fn all<const N: usize>(bytes: &[u8], one: fn([u8; N]) -> f32) -> Vec<f32> {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&chunk| one(chunk))
                .collect()
        }
        match self {
            Float::F16 => all(bytes, |two| f32_from_f16(u16::from_le_bytes(two))),
            Float::Bf16 => all(bytes, |[low, high]| f32::from_le_bytes([0, 0, low, high])),
            Float::F32 => all(bytes, f32::from_le_bytes),
            Float::F64 => all(bytes, |eight| f64::from_le_bytes(eight) as f32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_decoded() {
        let pi = std::f32::consts::PI;
        assert_eq!(Float::F32.decode(&pi.to_le_bytes()), [pi]);
        let pi64 = std::f64::consts::PI.to_le_bytes();
        assert_eq!(Float::F64.decode(&pi64), [pi]);
        assert_eq!(
            Float::Bf16.decode(&[0x49, 0x40, 0x80, 0xbf]),
            [3.140625, -1.0]
        );
        assert_eq!(Float::F16.decode(&[0x48, 0x42, 0]), [3.140625]);
    }
}
