//! What this machine can do at most: multiply-adds a second and bytes a second.

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

/// FLOP/s of multiply-adds of float32 by `threads` threads.
pub(crate) fn flops(threads: usize) -> f64 {
    let job = || pulp::Arch::new().dispatch(Products(black_box(200_000)));
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
