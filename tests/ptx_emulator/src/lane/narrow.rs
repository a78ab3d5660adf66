//! f16 and bf16 arithmetic, single and packed, over [`crate::half`]. The constant holds the modifiers of
//! [`super::float`], plus [`BF`] for bf16 and [`PACKED`] for two numbers a register.

use super::float::{FTZ, NAN, RELU, SAT, XORSIGN};
use crate::half::{self, BF16, F16, Finish, Format, Rounding};

/// bf16 instead of f16.
pub(crate) const BF: u32 = 1 << 16;
/// Two numbers a register.
pub(crate) const PACKED: u32 = 1 << 17;

fn format(x: u32) -> Format {
    if x & BF != 0 { BF16 } else { F16 }
}

fn finish(x: u32) -> Finish {
    Finish {
        relu: x & RELU != 0,
        satfinite: false,
        sat: x & SAT != 0,
        ftz: x & FTZ != 0,
    }
}

fn each1(x: u32, v: [u64; 3], op: impl Fn(u16) -> u16) -> u64 {
    u64::from(if x & PACKED != 0 {
        half::packed1(v[0] as u32, op)
    } else {
        u32::from(op(v[0] as u16))
    })
}

fn each2(x: u32, v: [u64; 3], op: impl Fn(u16, u16) -> u16) -> u64 {
    u64::from(if x & PACKED != 0 {
        half::packed2(v[0] as u32, v[1] as u32, op)
    } else {
        u32::from(op(v[0] as u16, v[1] as u16))
    })
}

fn each3(x: u32, v: [u64; 3], op: impl Fn(u16, u16, u16) -> u16) -> u64 {
    u64::from(if x & PACKED != 0 {
        half::packed3(v[0] as u32, v[1] as u32, v[2] as u32, op)
    } else {
        u32::from(op(v[0] as u16, v[1] as u16, v[2] as u16))
    })
}

const RN: Rounding = Rounding::NearestEven;

pub(crate) fn add(x: u32, v: [u64; 3]) -> u64 {
    each2(x, v, |a, b| half::add(format(x), a, b, RN, finish(x)))
}

pub(crate) fn sub(x: u32, v: [u64; 3]) -> u64 {
    each2(x, v, |a, b| half::sub(format(x), a, b, RN, finish(x)))
}

pub(crate) fn mul(x: u32, v: [u64; 3]) -> u64 {
    each2(x, v, |a, b| half::mul(format(x), a, b, RN, finish(x)))
}

pub(crate) fn fma(x: u32, v: [u64; 3]) -> u64 {
    each3(x, v, |a, b, c| half::fma(format(x), a, b, c, RN, finish(x)))
}

fn choose(x: u32, a: u16, b: u16, larger: bool) -> u16 {
    let (nan, ftz) = (x & NAN != 0, x & FTZ != 0);
    let pick = |a, b| {
        if larger {
            half::max(format(x), a, b, nan, ftz)
        } else {
            half::min(format(x), a, b, nan, ftz)
        }
    };
    if x & XORSIGN != 0 {
        pick(half::abs(a), half::abs(b)) | ((a ^ b) & 0x8000)
    } else {
        pick(a, b)
    }
}

pub(crate) fn min(x: u32, v: [u64; 3]) -> u64 {
    each2(x, v, |a, b| choose(x, a, b, false))
}

pub(crate) fn max(x: u32, v: [u64; 3]) -> u64 {
    each2(x, v, |a, b| choose(x, a, b, true))
}

pub(crate) fn neg(x: u32, v: [u64; 3]) -> u64 {
    each1(x, v, half::neg)
}

pub(crate) fn abs(x: u32, v: [u64; 3]) -> u64 {
    each1(x, v, half::abs)
}

pub(crate) fn ex2(x: u32, v: [u64; 3]) -> u64 {
    each1(x, v, |a| half::ex2(format(x), a, x & FTZ != 0))
}

pub(crate) fn tanh(x: u32, v: [u64; 3]) -> u64 {
    each1(x, v, |a| half::tanh(format(x), a))
}

/// Comparison: a [`crate::program::Compare`] in the lowest byte; bit 8: subnormals count as zero; bit 9: the upper
/// halves.
pub(crate) fn compare(x: u32, v: [u64; 3]) -> u64 {
    let shift = if x & 512 != 0 { 16 } else { 0 };
    let read = |bits: u64| {
        let value = format(x).decode((bits >> shift) as u32 & 0xffff);
        let smallest = if x & BF != 0 {
            2f64.powi(-126)
        } else {
            2f64.powi(-14)
        };
        if x & 256 != 0 && value.abs() < smallest {
            0.0
        } else {
            value
        }
    };
    u64::from(super::float::compare(x & 255, read(v[0]), read(v[1])))
}
