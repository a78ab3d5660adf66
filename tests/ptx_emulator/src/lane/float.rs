//! f32 and f64 arithmetic with modifiers, and the approximations, which are computed in f64 and rounded: closer than
//! what a GPU gives, within what the PTX ISA allows.

/// Modifiers in an instruction's constant: rounding in the lowest three bits, then flags.
pub(crate) const RN: u32 = 0;
pub(crate) const RZ: u32 = 1;
pub(crate) const RM: u32 = 2;
pub(crate) const RP: u32 = 3;
/// To nearest, ties away from zero.
pub(crate) const RNA: u32 = 4;
pub(crate) const ROUNDING: u32 = 7;
pub(crate) const FTZ: u32 = 8;
pub(crate) const SAT: u32 = 16;
/// `.NaN` of min and max, and `.relu`, `.satfinite` of conversions.
pub(crate) const NAN: u32 = 32;
pub(crate) const RELU: u32 = 64;
pub(crate) const SATFINITE: u32 = 128;
/// `.xorsign.abs`.
pub(crate) const XORSIGN: u32 = 256;

/// The canonical NaN of f32.
pub(crate) const NAN32: u32 = 0x7fff_ffff;

pub(crate) fn flush(x: u32, v: f32) -> f32 {
    if x & FTZ != 0 && v.is_subnormal() {
        0f32.copysign(v)
    } else {
        v
    }
}

fn operand(x: u32, bits: u64) -> f32 {
    flush(x, f32::from_bits(bits as u32))
}

fn finish(x: u32, v: f32) -> u64 {
    let v = flush(x, v);
    let v = if x & SAT != 0 {
        if v.is_nan() {
            0.0
        } else {
            v.clamp(0.0, 1.0) + 0.0
        }
    } else {
        v
    };
    u64::from(if v.is_nan() { NAN32 } else { v.to_bits() })
}

/// hi + lo, where |lo| is at most half an ulp of hi, rounded to f32. To nearest only where lo is zero.
pub(crate) fn round_to_f32(hi: f64, lo: f64, mode: u32) -> f32 {
    let near = hi as f32;
    if mode == RN || !hi.is_finite() {
        return near;
    }
    if near.is_infinite() {
        // Overflow of a finite value.
        let away = match mode {
            RM => hi < 0.0,
            RP => hi > 0.0,
            _ => mode == RNA,
        };
        return if away { near } else { f32::MAX.copysign(near) };
    }
    let rest = hi - f64::from(near);
    let rest = if rest == 0.0 { lo } else { rest };
    match mode {
        RM if rest < 0.0 => near.next_down(),
        RP if rest > 0.0 => near.next_up(),
        RZ if rest < 0.0 && hi > 0.0 => near.next_down(),
        RZ if rest > 0.0 && hi < 0.0 => near.next_up(),
        _ => near,
    }
}

/// The sum of two f64 and what its rounding lost.
fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// An exact zero from operands of opposite sign is negative when rounding down.
fn zero_sign(mode: u32, sum: f32, exact: f64, a: f64, b: f64) -> f32 {
    if mode == RM && exact == 0.0 && a.is_sign_negative() != b.is_sign_negative() {
        -0.0
    } else {
        sum
    }
}

pub(crate) fn add(x: u32, v: [u64; 3]) -> u64 {
    let (a, b) = (operand(x, v[0]), operand(x, v[1]));
    finish(x, sum(x & ROUNDING, a, b))
}

pub(crate) fn sub(x: u32, v: [u64; 3]) -> u64 {
    let (a, b) = (operand(x, v[0]), operand(x, v[1]));
    finish(x, sum(x & ROUNDING, a, -b))
}

fn sum(mode: u32, a: f32, b: f32) -> f32 {
    if mode == RN {
        return a + b;
    }
    let (a, b) = (f64::from(a), f64::from(b));
    let (hi, lo) = two_sum(a, b);
    zero_sign(mode, round_to_f32(hi, lo, mode), hi, a, b)
}

pub(crate) fn mul(x: u32, v: [u64; 3]) -> u64 {
    let (a, b) = (operand(x, v[0]), operand(x, v[1]));
    let product = if x & ROUNDING == RN {
        a * b
    } else {
        round_to_f32(f64::from(a) * f64::from(b), 0.0, x & ROUNDING)
    };
    finish(x, product)
}

pub(crate) fn fma(x: u32, v: [u64; 3]) -> u64 {
    let (a, b, c) = (operand(x, v[0]), operand(x, v[1]), operand(x, v[2]));
    let mode = x & ROUNDING;
    let value = if mode == RN {
        a.mul_add(b, c)
    } else {
        let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
        let (hi, lo) = two_sum(p, c);
        zero_sign(mode, round_to_f32(hi, lo, mode), hi, p, c)
    };
    finish(x, value)
}

pub(crate) fn div(x: u32, v: [u64; 3]) -> u64 {
    let (a, b) = (operand(x, v[0]), operand(x, v[1]));
    let near = a / b;
    let mode = x & ROUNDING;
    if mode == RN || !(a.is_finite() && b.is_finite()) || b == 0.0 || a == 0.0 {
        return finish(x, near);
    }
    // a - q b with the f64 quotient: its sign says on which side the exact quotient lies.
    let q = f64::from(a) / f64::from(b);
    let residual = (-q).mul_add(f64::from(b), f64::from(a)) * f64::from(b).signum();
    finish(x, round_to_f32(q, residual * f64::MIN_POSITIVE, mode))
}

/// `div.approx`: a (1 / b), where the reciprocal of a large b is flushed to zero.
pub(crate) fn div_approx(x: u32, v: [u64; 3]) -> u64 {
    let (a, b) = (operand(x, v[0]), operand(x, v[1]));
    // 2^126, whose reciprocal is the smallest normal number.
    let largest = 1.0 / f32::MIN_POSITIVE;
    if b.is_finite() && b.abs() > largest {
        return finish(x, a * 0f32.copysign(b));
    }
    div(x, v)
}

pub(crate) fn rcp(x: u32, v: [u64; 3]) -> u64 {
    div(x, [u64::from(1f32.to_bits()), v[0], 0])
}

pub(crate) fn sqrt(x: u32, v: [u64; 3]) -> u64 {
    let a = operand(x, v[0]);
    let mode = x & ROUNDING;
    if mode == RN || !(a > 0.0 && a.is_finite()) {
        return finish(x, a.sqrt());
    }
    let root = f64::from(a).sqrt();
    let residual = (-root).mul_add(root, f64::from(a));
    finish(x, round_to_f32(root, residual * f64::MIN_POSITIVE, mode))
}

fn through_f64(x: u32, v: u64, f: impl Fn(f64) -> f64) -> u64 {
    finish(x, f(f64::from(operand(x, v))) as f32)
}

pub(crate) fn rsqrt(x: u32, v: [u64; 3]) -> u64 {
    through_f64(x, v[0], |a| 1.0 / a.sqrt())
}

pub(crate) fn ex2(x: u32, v: [u64; 3]) -> u64 {
    through_f64(x, v[0], f64::exp2)
}

pub(crate) fn lg2(x: u32, v: [u64; 3]) -> u64 {
    through_f64(x, v[0], f64::log2)
}

pub(crate) fn sin(x: u32, v: [u64; 3]) -> u64 {
    through_f64(x, v[0], f64::sin)
}

pub(crate) fn cos(x: u32, v: [u64; 3]) -> u64 {
    through_f64(x, v[0], f64::cos)
}

pub(crate) fn tanh(x: u32, v: [u64; 3]) -> u64 {
    through_f64(x, v[0], f64::tanh)
}

pub(crate) fn neg(x: u32, v: [u64; 3]) -> u64 {
    u64::from((-operand(x, v[0])).to_bits())
}

pub(crate) fn abs(x: u32, v: [u64; 3]) -> u64 {
    u64::from(operand(x, v[0]).abs().to_bits())
}

/// The larger (or smaller) of two numbers by the ISA's rules: a NaN loses unless `.NaN`, +0 is above -0.
fn choose(x: u32, a: f32, b: f32, larger: bool) -> f32 {
    let magnitude = |v: f32| if x & XORSIGN != 0 { v.abs() } else { v };
    let sign = (a.to_bits() ^ b.to_bits()) & 1 << 31;
    let (a, b) = (magnitude(a), magnitude(b));
    let chosen = match (a.is_nan(), b.is_nan()) {
        (true, true) => f32::from_bits(NAN32),
        (true, false) | (false, true) if x & NAN != 0 => f32::from_bits(NAN32),
        (true, false) => b,
        (false, true) => a,
        _ if a == b => {
            // Equal numbers differ at most in the sign of zero.
            let (p, q) = (a.to_bits(), b.to_bits());
            f32::from_bits(if larger { p & q } else { p | q })
        }
        _ => {
            if (a > b) == larger {
                a
            } else {
                b
            }
        }
    };
    if x & XORSIGN != 0 && !chosen.is_nan() {
        f32::from_bits(chosen.to_bits() | sign)
    } else {
        chosen
    }
}

pub(crate) fn min(x: u32, v: [u64; 3]) -> u64 {
    let chosen = choose(x, operand(x, v[0]), operand(x, v[1]), false);
    u64::from(chosen.to_bits())
}

pub(crate) fn max(x: u32, v: [u64; 3]) -> u64 {
    let chosen = choose(x, operand(x, v[0]), operand(x, v[1]), true);
    u64::from(chosen.to_bits())
}

/// Three-operand `min`, `max` of sm_100.
pub(crate) fn min3(x: u32, v: [u64; 3]) -> u64 {
    min(x, [min(x, v), v[2], 0])
}

pub(crate) fn max3(x: u32, v: [u64; 3]) -> u64 {
    max(x, [max(x, v), v[2], 0])
}

/// The magnitude of b with the sign of a.
pub(crate) fn copysign32(_: u32, v: [u64; 3]) -> u64 {
    (v[1] & 0x7fff_ffff) | (v[0] & 0x8000_0000)
}

pub(crate) fn copysign64(_: u32, v: [u64; 3]) -> u64 {
    (v[1] & (u64::MAX >> 1)) | (v[0] & 1 << 63)
}

/// `testp`; the constant is finite, infinite, number, notanumber, normal, subnormal.
pub(crate) fn testp32(kind: u32, v: [u64; 3]) -> u64 {
    let a = f32::from_bits(v[0] as u32);
    test(kind, a.is_finite(), a.is_nan(), a.is_subnormal())
}

pub(crate) fn testp64(kind: u32, v: [u64; 3]) -> u64 {
    let a = f64::from_bits(v[0]);
    test(kind, a.is_finite(), a.is_nan(), a.is_subnormal())
}

fn test(kind: u32, finite: bool, nan: bool, subnormal: bool) -> u64 {
    u64::from(match kind {
        0 => finite,
        1 => !finite && !nan,
        2 => !nan,
        3 => nan,
        // Zero is normal here.
        4 => finite && !subnormal,
        _ => subnormal,
    })
}

/// Comparison of f32; the constant is a [`crate::program::Compare`], plus 256 for `.ftz`.
pub(crate) fn compare32(x: u32, v: [u64; 3]) -> u64 {
    let x_ftz = if x & 256 != 0 { FTZ } else { 0 };
    let (a, b) = (operand(x_ftz, v[0]), operand(x_ftz, v[1]));
    u64::from(compare(x & 255, f64::from(a), f64::from(b)))
}

/// A comparison by its [`crate::program::Compare`].
pub(crate) fn compare(kind: u32, a: f64, b: f64) -> bool {
    let unordered = a.is_nan() || b.is_nan();
    match kind {
        0 => a == b,
        1 => a != b && !unordered,
        2 => a < b,
        3 => a <= b,
        4 => a > b,
        5 => a >= b,
        6 => a == b || unordered,
        7 => a != b,
        8 => a < b || unordered,
        9 => a <= b || unordered,
        10 => a > b || unordered,
        11 => a >= b || unordered,
        12 => !unordered,
        _ => unordered,
    }
}

fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// Steps an f64 that was rounded to nearest to where `mode` rounds, by the sign of what was lost.
fn direct64(near: f64, lost: f64, mode: u32) -> f64 {
    match mode {
        RM if lost < 0.0 => near.next_down(),
        RP if lost > 0.0 => near.next_up(),
        RZ if lost < 0.0 && near > 0.0 => near.next_down(),
        RZ if lost > 0.0 && near < 0.0 => near.next_up(),
        _ => near,
    }
}

fn bits64(v: f64) -> u64 {
    v.to_bits()
}

pub(crate) fn add64(x: u32, v: [u64; 3]) -> u64 {
    let (near, lost) = two_sum(d(v[0]), d(v[1]));
    bits64(direct64(near, lost, x & ROUNDING))
}

pub(crate) fn sub64(x: u32, v: [u64; 3]) -> u64 {
    add64(x, [v[0], v[1] ^ 1 << 63, 0])
}

pub(crate) fn mul64(x: u32, v: [u64; 3]) -> u64 {
    let near = d(v[0]) * d(v[1]);
    bits64(direct64(
        near,
        d(v[0]).mul_add(d(v[1]), -near),
        x & ROUNDING,
    ))
}

pub(crate) fn div64(x: u32, v: [u64; 3]) -> u64 {
    let (a, b) = (d(v[0]), d(v[1]));
    let q = a / b;
    let lost = (-q).mul_add(b, a) * b.signum();
    bits64(direct64(q, lost, x & ROUNDING))
}

pub(crate) fn rcp64(x: u32, v: [u64; 3]) -> u64 {
    div64(x, [1f64.to_bits(), v[0], 0])
}

/// `rcp.approx.ftz.f64`, `rsqrt.approx.ftz.f64`: the lower word of the operand and of the result is zero.
pub(crate) fn rcp64_approx(_: u32, v: [u64; 3]) -> u64 {
    bits64(1.0 / d(v[0] & !0xffff_ffff)) & !0xffff_ffff
}

pub(crate) fn rsqrt64_approx(_: u32, v: [u64; 3]) -> u64 {
    bits64(1.0 / d(v[0] & !0xffff_ffff).sqrt()) & !0xffff_ffff
}

pub(crate) fn rsqrt64(_: u32, v: [u64; 3]) -> u64 {
    bits64(1.0 / d(v[0]).sqrt())
}

pub(crate) fn sqrt64(x: u32, v: [u64; 3]) -> u64 {
    let a = d(v[0]);
    let root = a.sqrt();
    bits64(direct64(root, (-root).mul_add(root, a), x & ROUNDING))
}

pub(crate) fn neg64(_: u32, v: [u64; 3]) -> u64 {
    v[0] ^ 1 << 63
}

pub(crate) fn abs64(_: u32, v: [u64; 3]) -> u64 {
    v[0] & (u64::MAX >> 1)
}

pub(crate) fn min64(_: u32, v: [u64; 3]) -> u64 {
    let (a, b) = (d(v[0]), d(v[1]));
    if a == b {
        v[0] | v[1]
    } else {
        bits64(a.min(b))
    }
}

pub(crate) fn max64(_: u32, v: [u64; 3]) -> u64 {
    let (a, b) = (d(v[0]), d(v[1]));
    if a == b {
        v[0] & v[1]
    } else {
        bits64(a.max(b))
    }
}
