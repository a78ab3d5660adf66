//! `cvt`: every pair of types through an exact intermediate, an integer or an f64.

use super::float::{
    NAN32, RELU, RM, RN, RNA, ROUNDING, RP, RZ, SAT, SATFINITE, flush, round_to_f32,
};
use super::integer::{low, signed};
use crate::half::{self, BF16, E4M3, E5M2, F16, Finish, Format, Rounding};

/// Types in the constant: four bits each, the source above the destination, above the modifiers.
pub(crate) const INT_U: u32 = 0;
pub(crate) const INT_S: u32 = 1;
pub(crate) const FLOAT: u32 = 2;
pub(crate) const BFLOAT: u32 = 3;
const DST: u32 = 16;
const SRC: u32 = 20;
/// Round a float to an integral float (`cvt.rni.f32.f32`).
pub(crate) const INTEGRAL: u32 = 1 << 24;
/// Bytes of the destination register beyond one, to which a signed integer is extended.
pub(crate) const REGISTER: u32 = 25;
/// In an fp8 conversion: e4m3 instead of e5m2.
pub(crate) const PRECISE: u32 = 1 << 16;

/// A type's code: the kind, plus log2 of the bytes times four.
pub(crate) fn code(kind: u32, bits: u32) -> u32 {
    kind | (bits / 8).trailing_zeros() << 2
}

/// The constant of a conversion.
pub(crate) fn constant(dst: u32, src: u32, modifiers: u32) -> u32 {
    dst << DST | src << SRC | modifiers
}

enum Value {
    Int(i128),
    Float(f64),
}

fn rounding(x: u32) -> Rounding {
    match x & ROUNDING {
        RZ => Rounding::Zero,
        RM => Rounding::Down,
        RP => Rounding::Up,
        RNA => Rounding::NearestAway,
        _ => Rounding::NearestEven,
    }
}

fn narrow_finish(x: u32) -> Finish {
    Finish {
        relu: x & RELU != 0,
        satfinite: x & SATFINITE != 0,
        sat: x & SAT != 0,
        ftz: false,
    }
}

fn integral(v: f64, mode: u32) -> f64 {
    match mode {
        RZ => v.trunc(),
        RM => v.floor(),
        RP => v.ceil(),
        _ => v.round_ties_even(),
    }
}

/// The conversion that the constant describes.
pub(crate) fn cvt(x: u32, v: [u64; 3]) -> u64 {
    let (dst, src) = (x >> DST & 15, x >> SRC & 15);
    let (dst_bits, src_bits) = (8 << (dst >> 2), 8 << (src >> 2));
    let value = match (src & 3, src_bits) {
        (INT_S, bits) => Value::Int(i128::from(signed(v[0], bits))),
        (INT_U, bits) => Value::Int(i128::from(low(v[0], bits))),
        (BFLOAT, _) => Value::Float(BF16.decode(v[0] as u32 & 0xffff)),
        (_, 16) => Value::Float(F16.decode(v[0] as u32 & 0xffff)),
        // `.ftz` is accepted in a conversion to f16 and does nothing: no f16 result is subnormal in f32, and hardware
        // lets a subnormal operand round up or down to the smallest f16.
        (_, 32) if (dst & 3, dst_bits) == (FLOAT, 16) => {
            Value::Float(f64::from(f32::from_bits(v[0] as u32)))
        }
        (_, 32) => Value::Float(f64::from(flush(x, f32::from_bits(v[0] as u32)))),
        _ => Value::Float(f64::from_bits(v[0])),
    };
    let mode = x & ROUNDING;
    let register_bits = dst_bits.max(8 * ((x >> REGISTER & 7) + 1));
    let extend = |value: i128| {
        low(
            value as u64,
            if dst & 3 == INT_S {
                register_bits
            } else {
                dst_bits
            },
        )
    };
    match (dst & 3, value) {
        (INT_S | INT_U, Value::Int(value)) => extend(if x & SAT != 0 {
            clamp(value, dst & 3 == INT_S, dst_bits)
        } else {
            value
        }),
        (INT_S | INT_U, Value::Float(value)) => {
            if value.is_nan() {
                let wide = src_bits == 64 || dst_bits == 64;
                return extend(if wide { -1 << (dst_bits - 1) } else { 0 });
            }
            let whole = integral(value, mode).clamp(-1e30, 1e30) as i128;
            extend(clamp(whole, dst & 3 == INT_S, dst_bits))
        }
        (_, Value::Int(value)) => from_int(value, dst, dst_bits, x),
        (_, Value::Float(value)) => {
            let value = if x & INTEGRAL != 0 {
                integral(value, mode)
            } else {
                value
            };
            from_float(value, dst, dst_bits, x)
        }
    }
}

fn clamp(value: i128, is_signed: bool, bits: u32) -> i128 {
    if is_signed {
        value.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        value.clamp(0, (1 << bits) - 1)
    }
}

fn from_int(value: i128, dst: u32, bits: u32, x: u32) -> u64 {
    let mode = x & ROUNDING;
    // The nearest float, moved one step where the exact integer lies on the other side.
    match bits {
        64 => {
            let near = value as f64;
            let lost = value - near as i128;
            let stepped = match mode {
                RM if lost < 0 => near.next_down(),
                RP if lost > 0 => near.next_up(),
                RZ if lost < 0 && value > 0 => near.next_down(),
                RZ if lost > 0 && value < 0 => near.next_up(),
                _ => near,
            };
            let stepped = if x & SAT != 0 {
                stepped.clamp(0.0, 1.0)
            } else {
                stepped
            };
            stepped.to_bits()
        }
        32 => {
            let near = value as f32;
            let lost = value - near as i128;
            let stepped = match mode {
                RM if lost < 0 => near.next_down(),
                RP if lost > 0 => near.next_up(),
                RZ if lost < 0 && value > 0 => near.next_down(),
                RZ if lost > 0 && value < 0 => near.next_up(),
                _ => near,
            };
            let stepped = if x & SAT != 0 {
                stepped.clamp(0.0, 1.0)
            } else {
                stepped
            };
            u64::from(stepped.to_bits())
        }
        _ => {
            // An f64 rounded to odd keeps what a narrower rounding must know.
            let near = value as f64;
            let lost = value - near as i128;
            let odd = if lost == 0 || near.to_bits() & 1 == 1 {
                near
            } else if (lost > 0) == (near > 0.0) {
                f64::from_bits(near.to_bits() + 1)
            } else {
                f64::from_bits(near.to_bits() - 1)
            };
            from_float(odd, dst, bits, x)
        }
    }
}

fn from_float(value: f64, dst: u32, bits: u32, x: u32) -> u64 {
    match (dst & 3, bits) {
        (BFLOAT, _) => u64::from(BF16.encode(value, rounding(x), narrow_finish(x))),
        (_, 16) => u64::from(F16.encode(value, rounding(x), narrow_finish(x))),
        (_, 32) => {
            let mode = if x & INTEGRAL != 0 { RN } else { x & ROUNDING };
            let mut result = flush(x, round_to_f32(value, 0.0, mode));
            if x & SAT != 0 {
                result = if result.is_nan() {
                    0.0
                } else {
                    result.clamp(0.0, 1.0) + 0.0
                };
            }
            if x & RELU != 0 && result < 0.0 {
                result = 0.0;
            }
            u64::from(if result.is_nan() {
                NAN32
            } else {
                result.to_bits()
            })
        }
        _ if x & SAT != 0 => {
            if value.is_nan() {
                0
            } else {
                (value.clamp(0.0, 1.0) + 0.0).to_bits()
            }
        }
        _ => value.to_bits(),
    }
}

/// `cvt.f16x2.f32 d, a, b` and the bf16 form: a in the upper half.
pub(crate) fn pair(x: u32, v: [u64; 3]) -> u64 {
    let narrow = |bits: u64| {
        let value = f32::from_bits(bits as u32);
        if x >> DST & 3 == BFLOAT {
            half::f32_to_bf16(value, rounding(x), narrow_finish(x))
        } else {
            half::f32_to_f16(value, rounding(x), narrow_finish(x))
        }
    };
    u64::from(half::pack(narrow(v[1]), narrow(v[0])))
}

fn fp8(x: u32) -> Format {
    if x & PRECISE != 0 { E4M3 } else { E5M2 }
}

fn to_fp8(x: u32, high: f64, low: f64) -> u64 {
    let byte = |value| fp8(x).encode(value, Rounding::NearestEven, narrow_finish(x));
    u64::from(byte(high) << 8 | byte(low))
}

/// `cvt.e4m3x2.f32 d, a, b` and the e5m2 form: a in the upper byte.
pub(crate) fn fp8_from_f32(x: u32, v: [u64; 3]) -> u64 {
    let [a, b] = [v[0], v[1]].map(|v| f64::from(f32::from_bits(v as u32)));
    to_fp8(x, a, b)
}

/// `cvt.e4m3x2.f16x2` and the e5m2 form.
pub(crate) fn fp8_from_f16(x: u32, v: [u64; 3]) -> u64 {
    let half = |shift: u32| F16.decode((v[0] >> shift) as u32 & 0xffff);
    to_fp8(x, half(16), half(0))
}

/// `cvt.f16x2.e4m3x2` and the e5m2 form, which are exact.
pub(crate) fn fp8_to_f16(x: u32, v: [u64; 3]) -> u64 {
    let half = |shift: u32| {
        let value = fp8(x).decode((v[0] >> shift) as u32 & 0xff);
        F16.encode(value, Rounding::NearestEven, narrow_finish(x)) as u16
    };
    u64::from(half::pack(half(0), half(8)))
}

/// `cvt.tf32.f32`.
pub(crate) fn tf32(x: u32, v: [u64; 3]) -> u64 {
    u64::from(half::f32_to_tf32(
        f32::from_bits(v[0] as u32),
        rounding(x),
        narrow_finish(x),
    ))
}

/// `cvt.rzi.s32.f32`, the truncation that index arithmetic uses.
pub(crate) fn f32_to_s32_rz(_: u32, v: [u64; 3]) -> u64 {
    u64::from(f32::from_bits(v[0] as u32) as i32 as u32)
}

/// `cvt.pack.sat.T.s32 d, a, b, c`: constant: bits of T, plus 256 if signed.
pub(crate) fn pack(x: u32, v: [u64; 3]) -> u64 {
    let (bits, is_signed) = (x & 255, x & 256 != 0);
    let one = |v: u64| {
        low(
            clamp(i128::from(v as u32 as i32), is_signed, bits) as u64,
            bits,
        )
    };
    let both = one(v[1]) | one(v[0]) << bits;
    low(both | v[2] << (2 * bits), 32)
}
