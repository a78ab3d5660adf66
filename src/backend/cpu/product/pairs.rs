//! [`Terms::Pair`](super::Terms::Pair): words of two bfloat16, for machines with AVX512_BF16.
//!
//! The instruction adds the two products of a lane to its sum one after the other, each rounded once, and takes numbers
//! below the smallest normal one for zero.

#[cfg(target_arch = "x86_64")]
pub(super) use x86::{interleave, pack_columns, run};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::super::super::machine;
    use super::super::super::tensor::avx512_bf16::{narrowed, widened};
    use super::super::kernel::{Multiplier, Output, Panel};
    use half::bf16;
    use pulp::x86::V4;
    use pulp::{cast, f32x16};
    use std::arch::x86_64::{
        __m512, __m512bh, _mm256_loadu_si256, _mm256_mask_storeu_epi16, _mm256_maskz_loadu_epi16,
        _mm256_storeu_si256, _mm512_dpbf16_ps, _mm512_loadu_si512, _mm512_permutex2var_epi16,
        _mm512_storeu_si512,
    };

    #[derive(Clone, Copy)]
    struct Pairs;

    impl Multiplier<V4> for Pairs {
        #[inline(always)]
        fn add(self, _: V4, x: f32x16, w: f32x16, sum: f32x16) -> f32x16 {
            let (x, w): (__m512, __m512) = (cast(x), cast(w));
            // SAFETY: both types are 64 bytes of any content, and only `run` makes code of this, for machines that have the
            // instruction.
            unsafe {
                let x = std::mem::transmute::<__m512, __m512bh>(x);
                let w = std::mem::transmute::<__m512, __m512bh>(w);
                cast(_mm512_dpbf16_ps(cast(sum), x, w))
            }
        }
    }

    // The machine's rounding takes numbers below the smallest normal one for zero, as its products do.
    impl Output<V4> for bf16 {
        #[inline(always)]
        unsafe fn load(_: V4, at: *const bf16) -> f32x16 {
            // SAFETY: as the caller promised; the instructions as in `add`.
            unsafe { cast(widened(_mm256_loadu_si256(at.cast()))) }
        }

        #[inline(always)]
        unsafe fn load_some(_: V4, at: *const bf16, count: usize) -> f32x16 {
            // SAFETY: as the caller promised; the instructions as in `add`.
            unsafe { cast(widened(_mm256_maskz_loadu_epi16(mask(count), at.cast()))) }
        }

        #[inline(always)]
        unsafe fn store(_: V4, at: *mut bf16, sums: f32x16) {
            // SAFETY: as the caller promised; the instructions as in `add`.
            unsafe { _mm256_storeu_si256(at.cast(), narrowed(cast(sums))) }
        }

        #[inline(always)]
        unsafe fn store_some(_: V4, at: *mut bf16, count: usize, sums: f32x16) {
            // SAFETY: as the caller promised; the instructions as in `add`.
            unsafe { _mm256_mask_storeu_epi16(at.cast(), mask(count), narrowed(cast(sums))) }
        }
    }

    /// The first `count` of 16 lanes.
    #[inline(always)]
    fn mask(count: usize) -> u16 {
        (1 << count) - 1
    }

    /// The product of one panel.
    pub(in super::super) fn run<O: Output<V4>>(panel: Panel<'_, '_, O>) {
        #[target_feature(enable = "avx512bf16,avx512bw,avx512cd,avx512dq,avx512vl,bmi1,bmi2,lzcnt")]
        fn run<O: Output<V4>>(panel: Panel<'_, '_, O>, simd: V4) {
            panel.run(simd, Pairs);
        }
        let simd = machine::pairs().expect("a machine that multiplies pairs");
        // SAFETY: the machine has these instructions, as it says itself.
        unsafe { run(panel, simd) }
    }

    /// See [`pack_columns`](super::super::pack_columns): all of a panel in one call, for its rows are short.
    pub(in super::super) fn pack_columns<'a, R: Iterator<Item = &'a [f32]>>(
        terms: usize,
        panel: &mut [f32],
        row: impl FnMut(usize) -> R,
    ) {
        #[target_feature(enable = "avx512bf16,avx512bw")]
        fn pack<'a, R: Iterator<Item = &'a [f32]>>(
            terms: usize,
            panel: &mut [f32],
            mut row: impl FnMut(usize) -> R,
        ) {
            let rows = panel.chunks_exact_mut(2 * WORDS).take(terms / 2);
            for (t, mut to) in rows.enumerate() {
                for (a, b) in row(2 * t).zip(row(2 * t + 1)) {
                    let part = to.split_off_mut(..2 * a.len());
                    words(a, b, part.expect("a row of a panel"));
                }
                to.fill(0.0);
            }
        }
        assert!(
            machine::pairs().is_some(),
            "a machine that multiplies pairs"
        );
        // SAFETY: the machine has these instructions.
        unsafe { pack(terms, panel, row) };
    }

    /// See [`pair`](super::super::pair).
    pub(in super::super) fn interleave(a: &[f32], b: &[f32], to: &mut [f32]) {
        assert!(
            machine::pairs().is_some(),
            "a machine that multiplies pairs"
        );
        // SAFETY: the machine has these instructions.
        unsafe { words(a, b, to) };
    }

    /// Words of a vector.
    const WORDS: usize = 16;

    /// Which halves of 16 words of `a` (below 32) and of `b` come where.
    const ORDER: [[u16; 2 * WORDS]; 2] = {
        let mut order = [[0; 2 * WORDS]; 2];
        let mut i = 0;
        while i < 2 * WORDS {
            let half = (i / 2 + i % 2 * 2 * WORDS) as u16;
            order[0][i] = half;
            order[1][i] = half + WORDS as u16;
            i += 1;
        }
        order
    };

    /// Words 2i and 2i + 1 of `to` hold the lower halves, and the upper ones, of word i of `a` and of `b`.
    #[inline]
    #[target_feature(enable = "avx512bw")]
    fn words(a: &[f32], b: &[f32], to: &mut [f32]) {
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<WORDS>(), b.as_chunks::<WORDS>());
        let (to, to_rest) = to.split_at_mut(2 * WORDS * a.len());
        let to = to.as_chunks_mut::<{ 2 * WORDS }>().0;
        for ((a, b), to) in a.iter().zip(b).zip(to) {
            // SAFETY: each pointer is that of an array of at least 64 bytes.
            unsafe {
                let [first, second] = [
                    _mm512_loadu_si512(ORDER[0].as_ptr().cast()),
                    _mm512_loadu_si512(ORDER[1].as_ptr().cast()),
                ];
                let a = _mm512_loadu_si512(a.as_ptr().cast());
                let b = _mm512_loadu_si512(b.as_ptr().cast());
                let to = to.as_mut_ptr();
                let first = _mm512_permutex2var_epi16(a, first, b);
                _mm512_storeu_si512(to.cast(), first);
                let second = _mm512_permutex2var_epi16(a, second, b);
                _mm512_storeu_si512(to.add(WORDS).cast(), second);
            }
        }
        for ((a, b), to) in (a_rest.iter())
            .zip(b_rest)
            .zip(to_rest.as_chunks_mut::<2>().0)
        {
            let (a, b) = (a.to_bits(), b.to_bits());
            *to = [a & 0xffff | b << 16, a >> 16 | b & 0xffff_0000].map(f32::from_bits);
        }
    }
}

#[cfg(not(target_arch = "x86_64"))]
const MISSING: &str = "no machine of this architecture multiplies pairs";

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn run<O>(_: super::kernel::Panel<'_, '_, O>) {
    unreachable!("{MISSING}");
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn interleave(_: &[f32], _: &[f32], _: &mut [f32]) {
    unreachable!("{MISSING}");
}

#[cfg(not(target_arch = "x86_64"))]
pub(super) fn pack_columns<R>(_: usize, _: &mut [f32], _: impl FnMut(usize) -> R) {
    unreachable!("{MISSING}");
}
