//! What the tests of operations share: data that is not flat, comparison that NaN cannot pass, and buffers
//! with guard bands. The oracles themselves are naive f64 loops beside the tests that use them.
#![allow(dead_code, unreachable_pub)] // every test file is a crate of its own and uses its part of this one

pub mod graphs;
pub mod model;

use arcface_cu::backend::Backend;
use arcface_cu::base::random::{Purpose, Random};

/// Half the distance between 1 and the next float32: the largest relative error of one rounding.
pub const UNIT: f64 = 5.960_464_477_539_063e-8;

/// `len` numbers in (-1, 1), different for each `seed`, with a slope over the index so that a transposed or shifted
/// read does not cancel out.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed, Purpose::Init, 0);
    (0..len)
        .map(|i| 0.8 * random.range(-1.0, 1.0) + 0.2 * (i as f32 / len.max(1) as f32 - 0.5))
        .collect()
}

/// Asserts |actual - expected| <= bound(i) for every element and prints the worst one otherwise. NaN fails.
#[track_caller]
pub fn assert_close(what: &str, actual: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths differ");
    let mut worst: Option<(f64, usize)> = None;
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        let error = (f64::from(*a) - e).abs();
        let within = error <= bound(i);
        if !within {
            let excess = if error.is_finite() {
                error / bound(i).max(1e-300)
            } else {
                f64::INFINITY
            };
            if worst.is_none_or(|(w, _)| excess > w) {
                worst = Some((excess, i));
            }
        }
    }
    if let Some((excess, i)) = worst {
        panic!(
            "{what}: element {i} is {} but should be {} (bound {:e}, off by {excess:.2} bounds; {} elements)",
            actual[i],
            expected[i],
            bound(i),
            actual.len()
        );
    }
}

/// The bound for a sum of `terms` products in float32 whose absolute values add up to `magnitude`: blocked or
/// pairwise orders lose about sqrt(terms) roundings, twice that and a few more for the operations around the sum.
pub fn sum_bound(terms: usize, magnitude: f64) -> f64 {
    (4.0 + 2.0 * (terms as f64).sqrt()) * UNIT * magnitude + 1e-30
}

/// Elements behind every buffer's contents that no operation may read into a result or write.
const GUARD: usize = 37;

/// What they hold: a NaN that no arithmetic makes.
const GUARD_BITS: u32 = 0x7fc0_dead;

/// A device buffer with the given contents and a guard band behind them.
pub fn upload<B: Backend>(backend: &mut B, values: &[f32]) -> B::Buffer {
    let mut buffer = backend.alloc(values.len() + GUARD).expect("allocate");
    backend.upload(values, &mut buffer, 0).expect("upload");
    let guard = [f32::from_bits(GUARD_BITS); GUARD];
    backend
        .upload(&guard, &mut buffer, values.len())
        .expect("upload");
    buffer
}

/// A device buffer full of a value that no operation should leave behind.
pub fn poisoned<B: Backend>(backend: &mut B, len: usize) -> B::Buffer {
    upload(backend, &vec![f32::NAN; len])
}

/// All of a buffer that [`upload`] did not make.
pub fn contents<B: Backend>(backend: &mut B, buffer: &B::Buffer) -> Vec<f32> {
    let mut values = vec![0.0; backend.len(buffer)];
    backend.download(buffer, 0, &mut values).expect("download");
    values
}

/// A buffer's contents; its guard band must be as it was.
#[track_caller]
pub fn download<B: Backend>(backend: &mut B, buffer: &B::Buffer) -> Vec<f32> {
    let mut values = contents(backend, buffer);
    let guard = values.split_off(values.len() - GUARD);
    for (i, value) in guard.iter().enumerate() {
        assert_eq!(
            value.to_bits(),
            GUARD_BITS,
            "an operation wrote {value} {i} elements behind a buffer's end"
        );
    }
    values
}
