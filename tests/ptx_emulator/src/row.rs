//! Rows of registers and the loops over their 32 lanes, in chunks that become vector instructions.

use crate::program::Inst;

/// A 32-bit register of all lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(32))]
pub(crate) struct Row(pub(crate) [[u32; 8]; 4]);

/// A 64-bit register of all lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(align(32))]
pub(crate) struct Row64(pub(crate) [[u64; 4]; 8]);

impl Row {
    pub(crate) const ZERO: Row = Row([[0; 8]; 4]);

    #[inline(always)]
    pub(crate) fn lanes(&self) -> &[u32; 32] {
        match self.0.as_flattened().try_into() {
            Ok(lanes) => lanes,
            Err(_) => unreachable!("a row has 32 lanes"),
        }
    }

    #[inline(always)]
    pub(crate) fn lanes_mut(&mut self) -> &mut [u32; 32] {
        match self.0.as_flattened_mut().try_into() {
            Ok(lanes) => lanes,
            Err(_) => unreachable!("a row has 32 lanes"),
        }
    }
}

impl Row {
    /// Lanes 4 n to 4 n + 3.
    #[inline(always)]
    pub(crate) fn quad_mut(&mut self, n: usize) -> &mut [u32; 4] {
        &mut self.0.as_flattened_mut().as_chunks_mut().0[n]
    }
}

/// Four words of each of four lanes to four lanes of each of four words.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(crate) fn transpose(m: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    use std::arch::x86_64::{
        __m128i, _mm_unpackhi_epi32, _mm_unpackhi_epi64, _mm_unpacklo_epi32, _mm_unpacklo_epi64,
    };
    // SAFETY: every x86-64 processor has SSE2, and both types are sixteen plain bytes, of which every value is valid.
    unsafe {
        let [a, b, c, d] = m.map(|row| std::mem::transmute::<[u32; 4], __m128i>(row));
        let (ab, cd) = (_mm_unpacklo_epi32(a, b), _mm_unpacklo_epi32(c, d));
        let (ef, gh) = (_mm_unpackhi_epi32(a, b), _mm_unpackhi_epi32(c, d));
        [
            _mm_unpacklo_epi64(ab, cd),
            _mm_unpackhi_epi64(ab, cd),
            _mm_unpacklo_epi64(ef, gh),
            _mm_unpackhi_epi64(ef, gh),
        ]
        .map(|row| std::mem::transmute::<__m128i, [u32; 4]>(row))
    }
}

/// Four words of each of four lanes to four lanes of each of four words.
#[cfg(not(target_arch = "x86_64"))]
#[inline(always)]
pub(crate) fn transpose(m: [[u32; 4]; 4]) -> [[u32; 4]; 4] {
    std::array::from_fn(|k| std::array::from_fn(|lane| m[lane][k]))
}

impl Row64 {
    pub(crate) const ZERO: Row64 = Row64([[0; 4]; 8]);

    #[inline(always)]
    pub(crate) fn lanes(&self) -> &[u64; 32] {
        match self.0.as_flattened().try_into() {
            Ok(lanes) => lanes,
            Err(_) => unreachable!("a row has 32 lanes"),
        }
    }

    #[inline(always)]
    pub(crate) fn lanes_mut(&mut self) -> &mut [u64; 32] {
        match self.0.as_flattened_mut().try_into() {
            Ok(lanes) => lanes,
            Err(_) => unreachable!("a row has 32 lanes"),
        }
    }
}

/// All lanes.
pub(crate) const FULL: u32 = u32::MAX;

const BITS: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Chunk `k` of `new` in the lanes of `mask`, of `old` in the others.
#[inline(always)]
fn blend(mask: u32, k: usize, new: [u32; 8], old: [u32; 8]) -> [u32; 8] {
    let bits = mask >> (8 * k) & 255;
    let mut out = old;
    for j in 0..8 {
        let chosen = if bits & BITS[j] != 0 { u32::MAX } else { 0 };
        out[j] = (new[j] & chosen) | (old[j] & !chosen);
    }
    out
}

#[inline(always)]
fn blend64(mask: u32, k: usize, new: [u64; 4], old: [u64; 4]) -> [u64; 4] {
    let bits = mask >> (4 * k) & 15;
    let mut out = old;
    for j in 0..4 {
        let chosen = if bits & BITS[j] != 0 { u64::MAX } else { 0 };
        out[j] = (new[j] & chosen) | (old[j] & !chosen);
    }
    out
}

#[inline(always)]
fn put(rows: &mut [Row], d: usize, k: usize, mask: u32, new: [u32; 8]) {
    rows[d].0[k] = if mask == FULL {
        new
    } else {
        blend(mask, k, new, rows[d].0[k])
    };
}

#[inline(always)]
fn put64(rows: &mut [Row64], d: usize, k: usize, mask: u32, new: [u64; 4]) {
    rows[d].0[k] = if mask == FULL {
        new
    } else {
        blend64(mask, k, new, rows[d].0[k])
    };
}

/// Two loops, so that the one for all lanes has no blend.
macro_rules! both {
    ($mask:ident, $m:ident, $body:block) => {
        if $mask == FULL {
            let $m = FULL;
            $body
        } else {
            let $m = $mask;
            $body
        }
    };
}

#[inline(always)]
pub(crate) fn map1(rows: &mut [Row], i: &Inst, mask: u32, f: impl Fn(u32) -> u32) {
    both!(mask, m, {
        for k in 0..4 {
            let a = rows[usize::from(i.a)].0[k];
            let mut r = a;
            for j in 0..8 {
                r[j] = f(a[j]);
            }
            put(rows, usize::from(i.d), k, m, r);
        }
    });
}

#[inline(always)]
pub(crate) fn map2(rows: &mut [Row], i: &Inst, mask: u32, f: impl Fn(u32, u32) -> u32) {
    both!(mask, m, {
        for k in 0..4 {
            let a = rows[usize::from(i.a)].0[k];
            let b = rows[usize::from(i.b)].0[k];
            let mut r = a;
            for j in 0..8 {
                r[j] = f(a[j], b[j]);
            }
            put(rows, usize::from(i.d), k, m, r);
        }
    });
}

#[inline(always)]
pub(crate) fn map3(rows: &mut [Row], i: &Inst, mask: u32, f: impl Fn(u32, u32, u32) -> u32) {
    both!(mask, m, {
        for k in 0..4 {
            let a = rows[usize::from(i.a)].0[k];
            let b = rows[usize::from(i.b)].0[k];
            let c = rows[usize::from(i.c)].0[k];
            let mut r = a;
            for j in 0..8 {
                r[j] = f(a[j], b[j], c[j]);
            }
            put(rows, usize::from(i.d), k, m, r);
        }
    });
}

#[inline(always)]
pub(crate) fn map1_64(rows: &mut [Row64], i: &Inst, mask: u32, f: impl Fn(u64) -> u64) {
    both!(mask, m, {
        for k in 0..8 {
            let a = rows[usize::from(i.a)].0[k];
            let mut r = a;
            for j in 0..4 {
                r[j] = f(a[j]);
            }
            put64(rows, usize::from(i.d), k, m, r);
        }
    });
}

#[inline(always)]
pub(crate) fn map2_64(rows: &mut [Row64], i: &Inst, mask: u32, f: impl Fn(u64, u64) -> u64) {
    both!(mask, m, {
        for k in 0..8 {
            let a = rows[usize::from(i.a)].0[k];
            let b = rows[usize::from(i.b)].0[k];
            let mut r = a;
            for j in 0..4 {
                r[j] = f(a[j], b[j]);
            }
            put64(rows, usize::from(i.d), k, m, r);
        }
    });
}

#[inline(always)]
pub(crate) fn map3_64(rows: &mut [Row64], i: &Inst, mask: u32, f: impl Fn(u64, u64, u64) -> u64) {
    both!(mask, m, {
        for k in 0..8 {
            let a = rows[usize::from(i.a)].0[k];
            let b = rows[usize::from(i.b)].0[k];
            let c = rows[usize::from(i.c)].0[k];
            let mut r = a;
            for j in 0..4 {
                r[j] = f(a[j], b[j], c[j]);
            }
            put64(rows, usize::from(i.d), k, m, r);
        }
    });
}

/// A shift: the operand has 64 bits, the distance 32.
#[inline(always)]
pub(crate) fn shift_64(
    rows: &mut [Row64],
    narrow: &[Row],
    i: &Inst,
    mask: u32,
    f: impl Fn(u64, u32) -> u64,
) {
    both!(mask, m, {
        for k in 0..8 {
            let a = rows[usize::from(i.a)].0[k];
            let b = narrow[usize::from(i.b)].0[k / 2];
            let mut r = a;
            for j in 0..4 {
                r[j] = f(a[j], b[4 * (k % 2) + j]);
            }
            put64(rows, usize::from(i.d), k, m, r);
        }
    });
}

/// 32 bits to 64.
#[inline(always)]
pub(crate) fn widen1(
    rows: &mut [Row64],
    narrow: &[Row],
    i: &Inst,
    mask: u32,
    f: impl Fn(u32) -> u64,
) {
    both!(mask, m, {
        for k in 0..8 {
            let a = narrow[usize::from(i.a)].0[k / 2];
            let mut r = [0; 4];
            for j in 0..4 {
                r[j] = f(a[4 * (k % 2) + j]);
            }
            put64(rows, usize::from(i.d), k, m, r);
        }
    });
}

/// Two 32-bit operands to 64 bits.
#[inline(always)]
pub(crate) fn widen2(
    rows: &mut [Row64],
    narrow: &[Row],
    i: &Inst,
    mask: u32,
    f: impl Fn(u32, u32) -> u64,
) {
    both!(mask, m, {
        for k in 0..8 {
            let a = narrow[usize::from(i.a)].0[k / 2];
            let b = narrow[usize::from(i.b)].0[k / 2];
            let mut r = [0; 4];
            for j in 0..4 {
                r[j] = f(a[4 * (k % 2) + j], b[4 * (k % 2) + j]);
            }
            put64(rows, usize::from(i.d), k, m, r);
        }
    });
}

/// Two 32-bit operands and one of 64 bits to 64 bits.
#[inline(always)]
pub(crate) fn widen3(
    rows: &mut [Row64],
    narrow: &[Row],
    i: &Inst,
    mask: u32,
    f: impl Fn(u32, u32, u64) -> u64,
) {
    both!(mask, m, {
        for k in 0..8 {
            let a = narrow[usize::from(i.a)].0[k / 2];
            let b = narrow[usize::from(i.b)].0[k / 2];
            let c = rows[usize::from(i.c)].0[k];
            let mut r = c;
            for j in 0..4 {
                r[j] = f(a[4 * (k % 2) + j], b[4 * (k % 2) + j], c[j]);
            }
            put64(rows, usize::from(i.d), k, m, r);
        }
    });
}

/// 64 bits to 32.
#[inline(always)]
pub(crate) fn narrow1(
    rows: &mut [Row],
    wide: &[Row64],
    i: &Inst,
    mask: u32,
    f: impl Fn(u64) -> u32,
) {
    both!(mask, m, {
        for k in 0..4 {
            let low = wide[usize::from(i.a)].0[2 * k];
            let high = wide[usize::from(i.a)].0[2 * k + 1];
            let mut r = [0; 8];
            for j in 0..4 {
                r[j] = f(low[j]);
                r[j + 4] = f(high[j]);
            }
            put(rows, usize::from(i.d), k, m, r);
        }
    });
}

/// The lanes of a predicate row as a chunk of all ones or zero.
#[inline(always)]
fn spread(predicate: u32, k: usize) -> [u32; 8] {
    let bits = predicate >> (8 * k) & 255;
    BITS.map(|bit| if bits & bit != 0 { u32::MAX } else { 0 })
}

/// a where the predicate is true, b elsewhere.
#[inline(always)]
pub(crate) fn select(rows: &mut [Row], i: &Inst, mask: u32, predicate: u32) {
    both!(mask, m, {
        for k in 0..4 {
            let a = rows[usize::from(i.a)].0[k];
            let b = rows[usize::from(i.b)].0[k];
            let p = spread(predicate, k);
            let mut r = a;
            for j in 0..8 {
                r[j] = (a[j] & p[j]) | (b[j] & !p[j]);
            }
            put(rows, usize::from(i.d), k, m, r);
        }
    });
}

#[inline(always)]
pub(crate) fn select_64(rows: &mut [Row64], i: &Inst, mask: u32, predicate: u32) {
    both!(mask, m, {
        for k in 0..8 {
            let a = rows[usize::from(i.a)].0[k];
            let b = rows[usize::from(i.b)].0[k];
            let r = blend64(predicate, k, a, b);
            put64(rows, usize::from(i.d), k, m, r);
        }
    });
}

/// The lanes for which `f` holds.
#[inline(always)]
pub(crate) fn test(rows: &[Row], i: &Inst, f: impl Fn(u32, u32) -> bool) -> u32 {
    let mut sum = [0u32; 8];
    for k in 0..4 {
        let a = rows[usize::from(i.a)].0[k];
        let b = rows[usize::from(i.b)].0[k];
        for j in 0..8 {
            let bit = if f(a[j], b[j]) { BITS[j] } else { 0 };
            sum[j] |= bit << (8 * k);
        }
    }
    sum.iter().fold(0, |all, &bits| all | bits)
}

#[inline(always)]
pub(crate) fn test_64(rows: &[Row64], i: &Inst, f: impl Fn(u64, u64) -> bool) -> u32 {
    let mut sum = [0u64; 4];
    for k in 0..8 {
        let a = rows[usize::from(i.a)].0[k];
        let b = rows[usize::from(i.b)].0[k];
        for j in 0..4 {
            let bit = if f(a[j], b[j]) { 1u64 << j } else { 0 };
            sum[j] |= bit << (4 * k);
        }
    }
    sum.iter().fold(0, |all, &bits| all | bits) as u32
}
