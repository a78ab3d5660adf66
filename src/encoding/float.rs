//! Floating-point numbers as files store them.

use safetensors::Dtype;

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
    /// How a tensor of a safetensors file is stored; None if it holds no floating-point numbers.
    pub(crate) fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F16 => Some(Float::F16),
            Dtype::BF16 => Some(Float::Bf16),
            Dtype::F32 => Some(Float::F32),
            Dtype::F64 => Some(Float::F64),
            _ => None,
        }
    }

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

/// An IEEE 754 half-precision number by its bits, exactly.
pub(crate) fn f32_from_f16(bits: u16) -> f32 {
    let (exponent, mantissa) = (u32::from(bits >> 10 & 31), u32::from(bits & 1023));
    let magnitude = match exponent {
        // Units of 2^-24.
        0 => mantissa as f32 * f32::from_bits((127 - 24) << 23),
        31 => f32::from_bits(255 << 23 | mantissa << 13),
        _ => f32::from_bits((exponent + 127 - 15) << 23 | mantissa << 13),
    };
    f32::from_bits(magnitude.to_bits() | u32::from(bits >> 15) << 31)
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

    #[test]
    fn half_precision_is_exact() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x0001, 5.960_464_5e-8),
            (0x03ff, 6.097_555e-5),
            (0x0400, 6.103_515_6e-5),
            (0x3555, 0.333_251_95),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x7c00, f32::INFINITY),
            (0xfc00, f32::NEG_INFINITY),
        ] {
            assert_eq!(f32_from_f16(bits), value, "{bits:#06x}");
        }
        assert_eq!(f32_from_f16(0x8000).to_bits(), (-0.0_f32).to_bits());
        assert!(f32_from_f16(0x7e00).is_nan());
        // Every finite number's own definition.
        for bits in 0..0x7c00_u16 {
            let (e, m) = (i32::from(bits >> 10), f64::from(bits & 0x3ff));
            let value = match e {
                0 => m * 2_f64.powi(-24),
                _ => (1.0 + m / 1024.0) * 2_f64.powi(e - 15),
            };
            assert_eq!(f64::from(f32_from_f16(bits)), value, "{bits:#06x}");
        }
    }
}
