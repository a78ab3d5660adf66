//! Integer and bit operations. The constant is the width in bits where nothing else is said.

/// Keeps the lowest `bits` bits.
pub(crate) fn low(value: u64, bits: u32) -> u64 {
    if bits >= 64 {
        value
    } else {
        value & ((1 << bits) - 1)
    }
}

/// The value of `bits` bits as a signed number.
pub(crate) fn signed(value: u64, bits: u32) -> i64 {
    let shift = 64 - bits.min(64);
    (value << shift) as i64 >> shift
}

fn from_signed(value: i128, bits: u32) -> u64 {
    low(value as u64, bits)
}

fn s(value: u64, bits: u32) -> i128 {
    i128::from(signed(value, bits))
}

pub(crate) fn add(bits: u32, v: [u64; 3]) -> u64 {
    low(v[0].wrapping_add(v[1]), bits)
}

pub(crate) fn sub(bits: u32, v: [u64; 3]) -> u64 {
    low(v[0].wrapping_sub(v[1]), bits)
}

pub(crate) fn mul_lo(bits: u32, v: [u64; 3]) -> u64 {
    low(v[0].wrapping_mul(v[1]), bits)
}

pub(crate) fn mad_lo(bits: u32, v: [u64; 3]) -> u64 {
    low(v[0].wrapping_mul(v[1]).wrapping_add(v[2]), bits)
}

pub(crate) fn mul_hi_u(bits: u32, v: [u64; 3]) -> u64 {
    ((u128::from(v[0]) * u128::from(v[1])) >> bits) as u64
}

pub(crate) fn mul_hi_s(bits: u32, v: [u64; 3]) -> u64 {
    from_signed((s(v[0], bits) * s(v[1], bits)) >> bits, bits)
}

pub(crate) fn mad_hi_u(bits: u32, v: [u64; 3]) -> u64 {
    low(mul_hi_u(bits, v).wrapping_add(v[2]), bits)
}

pub(crate) fn mad_hi_s(bits: u32, v: [u64; 3]) -> u64 {
    low(mul_hi_s(bits, v).wrapping_add(v[2]), bits)
}

/// `bits` is the width of the operands, the product has twice as many.
pub(crate) fn mul_wide_u(bits: u32, v: [u64; 3]) -> u64 {
    low(v[0].wrapping_mul(v[1]), 2 * bits)
}

pub(crate) fn mul_wide_s(bits: u32, v: [u64; 3]) -> u64 {
    from_signed(s(v[0], bits) * s(v[1], bits), 2 * bits)
}

pub(crate) fn mad_wide_u(bits: u32, v: [u64; 3]) -> u64 {
    low(mul_wide_u(bits, v).wrapping_add(v[2]), 2 * bits)
}

pub(crate) fn mad_wide_s(bits: u32, v: [u64; 3]) -> u64 {
    low(mul_wide_s(bits, v).wrapping_add(v[2]), 2 * bits)
}

pub(crate) fn mul24_lo_u(_: u32, v: [u64; 3]) -> u64 {
    low(low(v[0], 24) * low(v[1], 24), 32)
}

pub(crate) fn mul24_lo_s(_: u32, v: [u64; 3]) -> u64 {
    from_signed(s(v[0], 24) * s(v[1], 24), 32)
}

pub(crate) fn mul24_hi_u(_: u32, v: [u64; 3]) -> u64 {
    low((low(v[0], 24) * low(v[1], 24)) >> 16, 32)
}

pub(crate) fn mul24_hi_s(_: u32, v: [u64; 3]) -> u64 {
    from_signed((s(v[0], 24) * s(v[1], 24)) >> 16, 32)
}

/// Division by zero gives all ones, as hardware does.
pub(crate) fn div_u(bits: u32, v: [u64; 3]) -> u64 {
    v[0].checked_div(v[1]).unwrap_or(low(u64::MAX, bits))
}

pub(crate) fn div_s(bits: u32, v: [u64; 3]) -> u64 {
    if v[1] == 0 {
        return low(u64::MAX, bits);
    }
    from_signed(s(v[0], bits) / s(v[1], bits), bits)
}

pub(crate) fn rem_u(_: u32, v: [u64; 3]) -> u64 {
    v[0].checked_rem(v[1]).unwrap_or(v[0])
}

pub(crate) fn rem_s(bits: u32, v: [u64; 3]) -> u64 {
    if v[1] == 0 {
        return v[0];
    }
    from_signed(s(v[0], bits) % s(v[1], bits), bits)
}

pub(crate) fn neg(bits: u32, v: [u64; 3]) -> u64 {
    low(v[0].wrapping_neg(), bits)
}

pub(crate) fn abs(bits: u32, v: [u64; 3]) -> u64 {
    from_signed(s(v[0], bits).abs(), bits)
}

pub(crate) fn min_u(_: u32, v: [u64; 3]) -> u64 {
    v[0].min(v[1])
}

pub(crate) fn max_u(_: u32, v: [u64; 3]) -> u64 {
    v[0].max(v[1])
}

pub(crate) fn min_s(bits: u32, v: [u64; 3]) -> u64 {
    from_signed(s(v[0], bits).min(s(v[1], bits)), bits)
}

pub(crate) fn max_s(bits: u32, v: [u64; 3]) -> u64 {
    from_signed(s(v[0], bits).max(s(v[1], bits)), bits)
}

/// `min.relu`, `max.relu` on s32: the result is at least zero.
pub(crate) fn min_s_relu(bits: u32, v: [u64; 3]) -> u64 {
    from_signed(s(v[0], bits).min(s(v[1], bits)).max(0), bits)
}

pub(crate) fn max_s_relu(bits: u32, v: [u64; 3]) -> u64 {
    from_signed(s(v[0], bits).max(s(v[1], bits)).max(0), bits)
}

/// Saturating `add.sat.s32`, `sub.sat.s32`, `mad.hi.sat.s32`.
pub(crate) fn add_sat(_: u32, v: [u64; 3]) -> u64 {
    u64::from((v[0] as i32).saturating_add(v[1] as i32) as u32)
}

pub(crate) fn sub_sat(_: u32, v: [u64; 3]) -> u64 {
    u64::from((v[0] as i32).saturating_sub(v[1] as i32) as u32)
}

pub(crate) fn mad_hi_sat(_: u32, v: [u64; 3]) -> u64 {
    add_sat(0, [mul_hi_s(32, v), v[2], 0])
}

/// d = a + b + carry, where `v[2]` is the carry.
pub(crate) fn add_with(bits: u32, v: [u64; 3]) -> u64 {
    low(v[0].wrapping_add(v[1]).wrapping_add(v[2]), bits)
}

/// The carry of a + b + carry.
pub(crate) fn carry_of_add(bits: u32, v: [u64; 3]) -> u64 {
    ((u128::from(v[0]) + u128::from(v[1]) + u128::from(v[2])) >> bits) as u64
}

/// d = a + !b + carry. Hardware subtracts by adding the complement, so the flag is a carry here too: set if nothing is
/// borrowed. In a chain of `sub.cc` and `subc` this makes no difference; in a mix with `add.cc` and `addc` it does.
pub(crate) fn sub_with(bits: u32, v: [u64; 3]) -> u64 {
    add_with(bits, [v[0], not(bits, [v[1], 0, 0]), v[2]])
}

/// The carry of a + !b + carry.
pub(crate) fn carry_of_sub(bits: u32, v: [u64; 3]) -> u64 {
    carry_of_add(bits, [v[0], not(bits, [v[1], 0, 0]), v[2]])
}

pub(crate) fn not(bits: u32, v: [u64; 3]) -> u64 {
    low(!v[0], bits)
}

pub(crate) fn cnot(_: u32, v: [u64; 3]) -> u64 {
    u64::from(v[0] == 0)
}

pub(crate) fn shl(bits: u32, v: [u64; 3]) -> u64 {
    if v[1] >= u64::from(bits) {
        0
    } else {
        low(v[0] << v[1], bits)
    }
}

pub(crate) fn shr_u(bits: u32, v: [u64; 3]) -> u64 {
    if v[1] >= u64::from(bits) {
        0
    } else {
        v[0] >> v[1]
    }
}

pub(crate) fn shr_s(bits: u32, v: [u64; 3]) -> u64 {
    from_signed(s(v[0], bits) >> v[1].min(63), bits)
}

pub(crate) fn popc(_: u32, v: [u64; 3]) -> u64 {
    u64::from(v[0].count_ones())
}

pub(crate) fn clz(bits: u32, v: [u64; 3]) -> u64 {
    u64::from(v[0].leading_zeros() - (64 - bits))
}

pub(crate) fn brev(bits: u32, v: [u64; 3]) -> u64 {
    v[0].reverse_bits() >> (64 - bits)
}

/// Constant: bits, plus 256 for signed, plus 512 for `.shiftamt`.
pub(crate) fn bfind(x: u32, v: [u64; 3]) -> u64 {
    let bits = x & 255;
    let mut value = v[0];
    if x & 256 != 0 && signed(value, bits) < 0 {
        value = low(!value, bits);
    }
    if value == 0 {
        return 0xffff_ffff;
    }
    let position = 63 - value.leading_zeros();
    u64::from(if x & 512 != 0 {
        bits - 1 - position
    } else {
        position
    })
}

/// A position or length of a bit field, cut to a byte. The ISA restricts it to 0..255. Beyond that range hardware takes
/// the lowest byte for 32-bit fields and the whole number for 64-bit fields. All values past the end of a 64-bit field
/// give the same result.
fn field_operand(bits: u32, v: u64) -> u32 {
    (if bits == 64 { v.min(64) } else { v & 255 }) as u32
}

/// Bit field extract. Constant: bits, plus 256 for signed.
pub(crate) fn bfe(x: u32, v: [u64; 3]) -> u64 {
    let bits = x & 255;
    let [position, length] = [v[1], v[2]].map(|v| field_operand(bits, v));
    let sign_extends = x & 256 != 0;
    if length == 0 {
        return 0;
    }
    let value = if sign_extends {
        s(v[0], bits)
    } else {
        i128::from(v[0])
    };
    let field = value >> position.min(bits);
    if length >= bits {
        return from_signed(field, bits);
    }
    let field = field as u64 & ((1u64 << length) - 1);
    if sign_extends {
        // The sign is the field's top bit, or the operand's where the field reaches beyond it.
        let top = (position + length - 1).min(bits - 1);
        let negative = v[0] >> top & 1 == 1;
        let extension = if negative { u64::MAX << length } else { 0 };
        return low(field | extension, bits);
    }
    field
}

/// Bit field insert of `v[0]` into `v[1]`; the constant is bits, position and length a byte each.
pub(crate) fn bfi(bits: u32, v: [u64; 3]) -> u64 {
    let (position, length) = ((v[2] & 255) as u32, (v[2] >> 8 & 255) as u32);
    if position >= bits {
        return v[1];
    }
    let mask = low(low(u64::MAX, length) << position, bits);
    (v[1] & !mask) | (v[0] << position & mask)
}

/// Position and length for [`bfi`] in one operand.
pub(crate) fn bfi_field(bits: u32, v: [u64; 3]) -> u64 {
    let [position, length] = [v[0], v[1]].map(|v| field_operand(bits, v));
    u64::from(position | length << 8)
}

/// `bmsk`: a mask of `v[1]` ones from bit `v[0]`. Constant 1: `.wrap`.
pub(crate) fn bmsk(wrap: u32, v: [u64; 3]) -> u64 {
    let (mut a, mut b) = (v[0], v[1]);
    if wrap != 0 {
        (a, b) = (a & 31, b & 31);
    } else {
        (a, b) = (a.min(32), b.min(32));
    }
    low(low(u64::MAX, b as u32) << a, 32)
}

/// `prmt`; the constant is the mode: 0 by index, then f4e, b4e, rc8, ecl, ecr, rc16.
pub(crate) fn prmt(mode: u32, v: [u64; 3]) -> u64 {
    let bytes = (v[0] & 0xffff_ffff) | v[1] << 32;
    let s = (v[2] & 3) as u32;
    let byte = |i: u32| bytes >> (8 * (i & 7)) & 255;
    (0..4u32).fold(0, |out, i| {
        let picked = match mode {
            0 => {
                let selector = (v[2] >> (4 * i)) as u32;
                let value = byte(selector & 7);
                if selector & 8 != 0 {
                    if value & 128 != 0 { 255 } else { 0 }
                } else {
                    value
                }
            }
            1 => byte(s + i),
            2 => byte(s.wrapping_sub(i)),
            3 => byte(s),
            4 => byte(s.max(i)),
            5 => byte(s.min(i)),
            _ => byte((s & 1) * 2 + (i & 1)),
        };
        out | picked << (8 * i)
    })
}

/// `shf`: constant bit 0 right instead of left, bit 1 clamp instead of wrap.
pub(crate) fn shf(x: u32, v: [u64; 3]) -> u64 {
    let both = (v[0] & 0xffff_ffff) | v[1] << 32;
    let n = if x & 2 != 0 { v[2].min(32) } else { v[2] & 31 };
    if x & 1 != 0 {
        low(both >> n, 32)
    } else if n == 32 {
        v[0]
    } else {
        low((both << n) >> 32, 32)
    }
}

/// `sad.u`: c + |a - b|.
pub(crate) fn sad_u(bits: u32, v: [u64; 3]) -> u64 {
    low(v[2].wrapping_add(v[0].abs_diff(v[1])), bits)
}

pub(crate) fn sad_s(bits: u32, v: [u64; 3]) -> u64 {
    let difference = (s(v[0], bits) - s(v[1], bits)).unsigned_abs() as u64;
    low(v[2].wrapping_add(difference), bits)
}

fn byte_of(value: u64, i: u32, sign_extends: bool) -> i64 {
    let byte = (value >> (8 * i)) as u8;
    if sign_extends {
        i64::from(byte as i8)
    } else {
        i64::from(byte)
    }
}

/// `dp4a`: constant bit 0 a signed, bit 1 b signed.
pub(crate) fn dp4a(x: u32, v: [u64; 3]) -> u64 {
    let sum: i64 = (0..4)
        .map(|i| byte_of(v[0], i, x & 1 != 0) * byte_of(v[1], i, x & 2 != 0))
        .sum();
    low(v[2].wrapping_add(sum as u64), 32)
}

/// `dp2a`: constant bit 0 a signed, bit 1 b signed, bit 2 the upper bytes of b.
pub(crate) fn dp2a(x: u32, v: [u64; 3]) -> u64 {
    let half = |i: u32| {
        let h = (v[0] >> (16 * i)) as u16;
        if x & 1 != 0 {
            i64::from(h as i16)
        } else {
            i64::from(h)
        }
    };
    let first = if x & 4 != 0 { 2 } else { 0 };
    let sum: i64 = (0..2)
        .map(|i| half(i) * byte_of(v[1], first + i, x & 2 != 0))
        .sum();
    low(v[2].wrapping_add(sum as u64), 32)
}

/// `slct`: a if c >= 0 else b; constant 0: c is s32, 1: f32 (NaN selects b), 2: f32 with subnormals as zero.
pub(crate) fn slct(kind: u32, v: [u64; 3]) -> u64 {
    let c = v[2] as u32;
    let first = match kind {
        0 => c as i32 >= 0,
        _ => {
            let c = f32::from_bits(c);
            c >= 0.0 || (kind == 2 && c.is_subnormal())
        }
    };
    if first { v[0] } else { v[1] }
}

/// `v[0]` if `v[2]` is not zero, else `v[1]`.
pub(crate) fn select(_: u32, v: [u64; 3]) -> u64 {
    if v[2] != 0 { v[0] } else { v[1] }
}

/// Joins two halves; the constant is the bits of the lower.
pub(crate) fn join(bits: u32, v: [u64; 3]) -> u64 {
    v[0] | v[1] << bits
}

/// Part of a register; the constant is the first bit, plus 256 times the bits.
pub(crate) fn part(x: u32, v: [u64; 3]) -> u64 {
    low(v[0] >> (x & 255), x >> 8)
}

/// Sign-extends; the constant is the bits of the source, plus 256 times the bits of the result.
pub(crate) fn extend(x: u32, v: [u64; 3]) -> u64 {
    low(signed(v[0], x & 255) as u64, x >> 8)
}

/// Comparison of integers; the constant is a [`crate::program::Compare`], plus 256 times the bits, plus 65536 if signed.
pub(crate) fn compare(x: u32, v: [u64; 3]) -> u64 {
    let bits = x >> 8 & 255;
    let (a, b) = if x >> 16 != 0 {
        (s(v[0], bits), s(v[1], bits))
    } else {
        (i128::from(v[0]), i128::from(v[1]))
    };
    u64::from(match x & 255 {
        0 => a == b,
        1 => a != b,
        2 => a < b,
        3 => a <= b,
        4 => a > b,
        _ => a >= b,
    })
}

/// Whether a generic address lies in a window; the constant is the window's number, zero for none of them.
pub(crate) fn is_space(window: u32, v: [u64; 3]) -> u64 {
    u64::from(crate::memory::window_of(v[0]) == window)
}
