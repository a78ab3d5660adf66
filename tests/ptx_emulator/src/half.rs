//! The narrow floating-point types: binary16 (`f16`), `bf16`, `tf32`, and the 8-bit types `e4m3` and `e5m2`.
//!
//! One rounding routine serves every conversion and every arithmetic operation. An operation is computed in f64
//! *rounded to odd* (exact up to a sticky last bit, and f64 has more than two bits to spare), so the one rounding
//! to the narrow format is the correctly rounded result in every mode, subnormals included.
//!
//! NaN: the PTX ISA keeps no payloads; every operation that yields NaN yields the canonical one, all bits but the sign
//! set (`0x7fff`; `0x7fffe000` for tf32, which lives in the upper 19 bits of a 32-bit register).

/// A binary floating-point format with an implicit leading bit, gradual underflow, NaN, and infinities unless it is
/// `finite`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    exponent_bits: u32,
    mantissa_bits: u32,
    finite: bool,
}

/// IEEE 754 binary16: 5 exponent bits, 10 mantissa bits.
pub const F16: Format = Format::new(5, 10);
/// bfloat16: the upper half of an f32.
pub const BF16: Format = Format::new(8, 7);
/// tf32: f32's exponent with f16's mantissa, 19 bits, kept in the upper bits of a 32-bit register.
pub const TF32: Format = Format::new(8, 10);
/// fp8 for range: f16 without the lower byte.
pub const E5M2: Format = Format::new(5, 2);
/// fp8 for precision: no infinities; all ones is NaN, and the largest number is 448.
pub const E4M3: Format = Format {
    finite: true,
    ..Format::new(4, 3)
};

/// PTX rounding modifiers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// `.rn`: to nearest, ties to even.
    NearestEven,
    /// `.rna`: to nearest, ties away from zero.
    NearestAway,
    /// `.rz`: towards zero.
    Zero,
    /// `.rm`: towards minus infinity.
    Down,
    /// `.rp`: towards plus infinity.
    Up,
}

/// What happens to a result after rounding.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Finish {
    /// `.relu`: negative results become +0, NaN stays the canonical NaN.
    pub relu: bool,
    /// `.satfinite`: a magnitude above the largest finite number becomes it, sign kept.
    pub satfinite: bool,
    /// `.sat`: clamped to [0, 1], NaN becomes +0.
    pub sat: bool,
    /// `.ftz`: subnormal results become zero of the same sign.
    pub ftz: bool,
}

impl Format {
    const fn new(exponent_bits: u32, mantissa_bits: u32) -> Self {
        Self {
            exponent_bits,
            mantissa_bits,
            finite: false,
        }
    }

    const fn sign_bit(self) -> u32 {
        1 << (self.exponent_bits + self.mantissa_bits)
    }

    const fn exponent_mask(self) -> u32 {
        ((1 << self.exponent_bits) - 1) << self.mantissa_bits
    }

    /// The first magnitude that is not finite: infinity, or NaN in a format without infinities.
    const fn infinity(self) -> u32 {
        if self.finite {
            self.nan()
        } else {
            self.exponent_mask()
        }
    }

    /// The exponent of the smallest normal number.
    const fn min_exponent(self) -> i32 {
        2 - (1 << (self.exponent_bits - 1))
    }

    /// The canonical NaN.
    pub const fn nan(self) -> u32 {
        self.sign_bit() - 1
    }

    /// The largest finite number.
    pub const fn max_finite(self) -> u32 {
        self.infinity() - 1
    }

    /// Rounds `x` to this format. The result is in the lowest bits. A format without infinities requires `satfinite`.
    pub fn encode(self, x: f64, rounding: Rounding, finish: Finish) -> u32 {
        if x.is_nan() {
            return if finish.sat { 0 } else { self.nan() };
        }
        let negative = x.is_sign_negative();
        if finish.relu && negative {
            return 0;
        }
        if finish.sat {
            return self.finite(x.clamp(0.0, 1.0) + 0.0, rounding, finish);
        }
        self.finite(x, rounding, finish)
    }

    /// Rounds a number that is not NaN.
    fn finite(self, x: f64, rounding: Rounding, finish: Finish) -> u32 {
        let negative = x.is_sign_negative();
        let sign = if negative { self.sign_bit() } else { 0 };
        let bits = x.to_bits() & (u64::MAX >> 1);
        let magnitude = if bits == f64::INFINITY.to_bits() {
            self.infinity()
        } else {
            // |x| = significand * 2^(exponent - 52); subnormal f64 keep their unnormalised significand.
            let exponent = ((bits >> 52) as i32).max(1) - 1023;
            let implicit = u64::from(bits >> 52 != 0) << 52;
            let significand = (bits & ((1 << 52) - 1)) | implicit;
            let leading = exponent.max(self.min_exponent());
            let drop = (52 - self.mantissa_bits as i32 + leading - exponent).min(63) as u32;
            let kept = significand >> drop;
            let rest = significand & ((1 << drop) - 1);
            let half = 1u64 << (drop - 1);
            let away = match rounding {
                Rounding::NearestEven => rest > half || (rest == half && kept & 1 == 1),
                Rounding::NearestAway => rest >= half,
                Rounding::Zero => false,
                Rounding::Down => negative && rest != 0,
                Rounding::Up => !negative && rest != 0,
            };
            // The implicit bit of `kept` adds one to the exponent field, a carry out of the mantissa another.
            let field = (leading - self.min_exponent()) as u64;
            let rounded = (field << self.mantissa_bits) + kept + u64::from(away);
            if rounded >= u64::from(self.infinity()) {
                let to_infinity = match rounding {
                    Rounding::NearestEven | Rounding::NearestAway => true,
                    Rounding::Zero => false,
                    Rounding::Down => negative,
                    Rounding::Up => !negative,
                };
                if to_infinity {
                    self.infinity()
                } else {
                    self.max_finite()
                }
            } else {
                rounded as u32
            }
        };
        let magnitude = if finish.satfinite {
            magnitude.min(self.max_finite())
        } else if finish.ftz && magnitude >> self.mantissa_bits == 0 {
            0
        } else {
            magnitude
        };
        sign | magnitude
    }

    /// The number that `bits` (in the lowest bits) stands for.
    pub fn decode(self, bits: u32) -> f64 {
        let mantissa = bits & ((1 << self.mantissa_bits) - 1);
        let field = (bits & self.exponent_mask()) >> self.mantissa_bits;
        let magnitude = if self.is_nan(bits) {
            f64::NAN
        } else if bits & !self.sign_bit() == self.infinity() {
            f64::INFINITY
        } else {
            let significand = mantissa | (u32::from(field != 0) << self.mantissa_bits);
            let exponent = (field as i32).max(1) - 1 + self.min_exponent();
            f64::from(significand) * power_of_two(exponent - self.mantissa_bits as i32)
        };
        if bits & self.sign_bit() != 0 {
            -magnitude
        } else {
            magnitude
        }
    }

    fn is_nan(self, bits: u32) -> bool {
        let magnitude = bits & !self.sign_bit();
        magnitude > self.infinity() || self.finite && magnitude == self.infinity()
    }

    /// `.ftz` on an operand: a subnormal becomes zero of the same sign.
    fn flush(self, bits: u32, ftz: bool) -> u32 {
        if ftz && bits & self.exponent_mask() == 0 {
            bits & self.sign_bit()
        } else {
            bits
        }
    }
}

/// 2^e for exponents in f64's normal range.
fn power_of_two(e: i32) -> f64 {
    f64::from_bits(((e + 1023) as u64) << 52)
}

/// a + b rounded to odd: when the exact sum is no f64, the one of its two neighbours with an odd last bit.
fn add_to_odd(a: f64, b: f64) -> f64 {
    let sum = a + b;
    let b_part = sum - a;
    let error = (a - (sum - b_part)) + (b - b_part);
    let bits = sum.to_bits();
    if !sum.is_finite() || error == 0.0 || bits & 1 == 1 {
        return sum;
    }
    // An error against the sign of the sum means that the exact value is nearer to zero.
    let towards_zero = (error > 0.0) != (sum > 0.0);
    f64::from_bits(if towards_zero { bits - 1 } else { bits + 1 })
}

/// f32 to bf16, the hot conversion; `Format::encode` in integers for `.rn` without modifiers.
pub fn f32_to_bf16_rn(x: f32) -> u16 {
    if x.is_nan() {
        return BF16.nan() as u16;
    }
    let bits = x.to_bits();
    ((bits + 0x7fff + (bits >> 16 & 1)) >> 16) as u16
}

/// f32 to bf16.
pub fn f32_to_bf16(x: f32, rounding: Rounding, finish: Finish) -> u16 {
    if rounding == Rounding::NearestEven && finish == Finish::default() {
        return f32_to_bf16_rn(x);
    }
    BF16.encode(f64::from(x), rounding, finish) as u16
}

/// f32 to f16.
pub fn f32_to_f16(x: f32, rounding: Rounding, finish: Finish) -> u16 {
    F16.encode(f64::from(x), rounding, finish) as u16
}

/// f32 to tf32 in the upper 19 bits, the lower 13 zero.
pub fn f32_to_tf32(x: f32, rounding: Rounding, finish: Finish) -> u32 {
    TF32.encode(f64::from(x), rounding, finish) << 13
}

/// bf16 to f32, exact.
#[inline(always)]
pub const fn bf16_to_f32(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

/// f16 to f32, exact; branch-free, so that a loop over lanes becomes vector code.
#[inline(always)]
pub const fn f16_to_f32(bits: u16) -> f32 {
    // Moved to f32's place the exponent is short by 127 - 15 = 112; the product repairs subnormals as well.
    const REBIAS: f32 = f32::from_bits((127 + 112) << 23);
    let moved = f32::from_bits((bits as u32 & 0x7fff) << 13) * REBIAS;
    let special = if bits & 0x7c00 == 0x7c00 {
        0x7f80_0000
    } else {
        0
    };
    f32::from_bits(moved.to_bits() | special | ((bits as u32 & 0x8000) << 16))
}

/// What the tensor core reads of a tf32 operand: the upper 19 bits of the register.
#[inline(always)]
pub const fn tf32_to_f32(register: u32) -> f32 {
    f32::from_bits(register & 0xffff_e000)
}

/// `add` on two numbers of `format`; operands are flushed too where `finish.ftz`.
pub fn add(format: Format, a: u16, b: u16, rounding: Rounding, finish: Finish) -> u16 {
    let (a, b) = (
        operand(format, a, finish.ftz),
        operand(format, b, finish.ftz),
    );
    format.encode(
        zero_sign(add_to_odd(a, b), a, b, rounding),
        rounding,
        finish,
    ) as u16
}

/// `sub` on two numbers of `format`.
pub fn sub(format: Format, a: u16, b: u16, rounding: Rounding, finish: Finish) -> u16 {
    add(format, a, neg(b), rounding, finish)
}

/// `mul` on two numbers of `format`. The product of two is exact in f64.
pub fn mul(format: Format, a: u16, b: u16, rounding: Rounding, finish: Finish) -> u16 {
    let product = operand(format, a, finish.ftz) * operand(format, b, finish.ftz);
    format.encode(product, rounding, finish) as u16
}

/// `fma` on three numbers of `format`: a b + c with one rounding.
pub fn fma(format: Format, a: u16, b: u16, c: u16, rounding: Rounding, finish: Finish) -> u16 {
    let product = operand(format, a, finish.ftz) * operand(format, b, finish.ftz);
    let c = operand(format, c, finish.ftz);
    let sum = zero_sign(add_to_odd(product, c), product, c, rounding);
    format.encode(sum, rounding, finish) as u16
}

/// `max` on two numbers of `format`: +0 is above -0; a NaN loses to a number unless `propagate` (`.NaN`).
pub fn max(format: Format, a: u16, b: u16, propagate: bool, ftz: bool) -> u16 {
    select(format, a, b, propagate, ftz, |a, b| a > b)
}

/// `min` on two numbers of `format`, the mirror of [`max`].
pub fn min(format: Format, a: u16, b: u16, propagate: bool, ftz: bool) -> u16 {
    select(format, a, b, propagate, ftz, |a, b| a < b)
}

/// `neg`: the sign bit flipped.
pub const fn neg(a: u16) -> u16 {
    a ^ 0x8000
}

/// `abs`: the sign bit cleared.
pub const fn abs(a: u16) -> u16 {
    a & 0x7fff
}

/// `ex2.approx`: 2^a, here rounded to nearest (the ISA allows 2^-9.9 relative for f16, 2^-7 for bf16).
pub fn ex2(format: Format, a: u16, ftz: bool) -> u16 {
    let finish = Finish {
        ftz,
        ..Finish::default()
    };
    let power = operand(format, a, ftz).exp2();
    format.encode(power, Rounding::NearestEven, finish) as u16
}

/// `tanh.approx`, here rounded to nearest (the ISA allows 2^-10.987 absolute for f16, 2^-8 for bf16).
pub fn tanh(format: Format, a: u16) -> u16 {
    let value = operand(format, a, false).tanh();
    format.encode(value, Rounding::NearestEven, Finish::default()) as u16
}

/// An operation of one operand on both halves of a register.
pub fn packed1(a: u32, op: impl Fn(u16) -> u16) -> u32 {
    pack(op(low(a)), op(high(a)))
}

/// An operation of two operands on both halves of a register.
pub fn packed2(a: u32, b: u32, op: impl Fn(u16, u16) -> u16) -> u32 {
    pack(op(low(a), low(b)), op(high(a), high(b)))
}

/// An operation of three operands on both halves of a register.
pub fn packed3(a: u32, b: u32, c: u32, op: impl Fn(u16, u16, u16) -> u16) -> u32 {
    pack(op(low(a), low(b), low(c)), op(high(a), high(b), high(c)))
}

/// A register from its lower and upper half.
pub const fn pack(low: u16, high: u16) -> u32 {
    low as u32 | (high as u32) << 16
}

/// The lower half of a register.
pub const fn low(register: u32) -> u16 {
    register as u16
}

/// The upper half of a register.
pub const fn high(register: u32) -> u16 {
    (register >> 16) as u16
}

fn operand(format: Format, bits: u16, ftz: bool) -> f64 {
    format.decode(format.flush(u32::from(bits), ftz))
}

/// IEEE 754: an exact zero sum of numbers that are not both negative is +0, but -0 when rounding down.
fn zero_sign(sum: f64, a: f64, b: f64, rounding: Rounding) -> f64 {
    let cancelled = sum == 0.0 && a.is_sign_negative() != b.is_sign_negative();
    if cancelled && rounding == Rounding::Down {
        -0.0
    } else {
        sum
    }
}

fn select(
    format: Format,
    a: u16,
    b: u16,
    propagate: bool,
    ftz: bool,
    wins: impl Fn(f64, f64) -> bool,
) -> u16 {
    let (a, b) = (
        format.flush(u32::from(a), ftz),
        format.flush(u32::from(b), ftz),
    );
    let chosen = match (format.is_nan(a), format.is_nan(b)) {
        (true, true) => format.nan(),
        (true, false) | (false, true) if propagate => format.nan(),
        (true, false) => b,
        (false, true) => a,
        (false, false) => {
            let (x, y) = (format.decode(a), format.decode(b));
            if x == y {
                // Equal numbers differ at most in the sign of zero, where the sign decides.
                let signed = |bits: u32| {
                    if bits & format.sign_bit() != 0 {
                        -1.0
                    } else {
                        1.0
                    }
                };
                if wins(signed(a), signed(b)) { a } else { b }
            } else if wins(x, y) {
                a
            } else {
                b
            }
        }
    };
    chosen as u16
}
