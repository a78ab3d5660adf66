//! Numbers of 16 bits.

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
