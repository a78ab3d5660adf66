//! What this machine can do at most: multiply-adds a second and bytes a second.

use arcface_cu::backend::Element;
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

/// Sums that do not wait for each other: enough to fill two units of four cycles' latency.
const SUMS: usize = 12;

/// Bytes of each of the two buffers of a copy, far beyond any cache.
const COPY: usize = 256 << 20;

/// Floating-point operations of multiply-adds on registers.
struct Products(u64);

impl WithSimd for Products {
    type Output = u64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> u64 {
        let (a, b) = black_box((simd.splat_f32s(0.5), simd.splat_f32s(0.25)));
        let mut sums = [simd.splat_f32s(0.0); SUMS];
        for _ in 0..self.0 {
            for sum in &mut sums {
                *sum = simd.mul_add_e_f32s(a, b, *sum);
            }
        }
        black_box(sums);
        self.0 * (2 * SUMS * S::F32_LANES) as u64
    }
}

/// Seconds of the shortest of as many runs as fit half a second, at least five: the first one touches new memory.
fn best(mut run: impl FnMut()) -> f64 {
    let (start, mut best) = (Instant::now(), f64::INFINITY);
    let mut runs = 0;
    while runs < 5 || start.elapsed() < Duration::from_millis(500) {
        let began = Instant::now();
        run();
        best = best.min(began.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

/// As [`Products`], of pairs of bfloat16 where the machine multiplies these.
fn dots(rounds: u64) -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{__m512, __m512bh, _mm512_dpbf16_ps, _mm512_set1_ps};
        #[target_feature(enable = "avx512bf16,avx512f")]
        fn run(rounds: u64) {
            // SAFETY: both types are 64 bytes of any content.
            let a = unsafe { std::mem::transmute::<__m512, __m512bh>(_mm512_set1_ps(0.5)) };
            let (a, b) = black_box((a, a));
            let mut sums = [_mm512_set1_ps(0.0); SUMS];
            for _ in 0..rounds {
                for sum in &mut sums {
                    *sum = _mm512_dpbf16_ps(*sum, a, b);
                }
            }
            black_box(sums);
        }
        if std::arch::is_x86_feature_detected!("avx512bf16") {
            // SAFETY: the machine has these instructions.
            unsafe { run(rounds) };
            return Some(rounds * (4 * SUMS * 16) as u64);
        }
    }
    None
}

/// FLOP/s of multiply-adds by `threads` threads, of the fastest instruction for numbers of `element`.
pub(crate) fn flops(threads: usize, element: Element) -> f64 {
    let job = || {
        let rounds = black_box(200_000);
        let dots = (element == Element::Bf16).then(|| dots(rounds)).flatten();
        dots.unwrap_or_else(|| pulp::Arch::new().dispatch(Products(rounds)))
    };
    let operations = job();
    let seconds = best(|| {
        (0..threads).into_par_iter().for_each(|_| {
            black_box(job());
        });
    });
    (threads as u64 * operations) as f64 / seconds
}

/// Bytes a second that all threads move by copying: half read, half written.
pub(crate) fn bytes() -> f64 {
    let source = vec![1u8; COPY];
    let mut target = vec![0u8; COPY];
    let seconds = best(|| {
        let parts = target
            .par_chunks_mut(1 << 20)
            .zip(source.par_chunks(1 << 20));
        parts.for_each(|(target, source)| target.copy_from_slice(source));
        black_box(&target);
    });
    2.0 * COPY as f64 / seconds
}
