//! What the tests of operations are held against: a device that computes in f64, comparison that NaN cannot pass, and
//! guard bands.
#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test and bench uses a part of this"
)]

pub mod backend;
pub mod check;
pub mod graphs;
pub mod model;
pub mod number;
mod window;

pub use crate::rig::noise;
use crate::rig::{self, GUARD, POISON, is_poison};
use arcface_cu::backend::{Backend, Element};

/// Half the distance between 1 and the next float32: the largest relative error of one rounding.
pub const UNIT: f64 = 5.960_464_477_539_063e-8;

/// By how many bounds an error is too large; 0 where it is not, infinite for NaN.
pub fn excess(error: f64, bound: f64) -> f64 {
    if error <= bound {
        0.0
    } else if error.is_finite() {
        error / bound.max(1e-300)
    } else {
        f64::INFINITY
    }
}

/// Asserts that no element is in excess and prints the worst one otherwise.
#[track_caller]
pub fn assert_all(what: &str, actual: &[f32], expected: &[f64], excess: impl Fn(usize) -> f64) {
    assert_eq!(actual.len(), expected.len(), "{what}: lengths differ");
    let excesses = (0..actual.len()).map(|i| (excess(i), i));
    let worst = excesses.max_by(|a, b| a.0.total_cmp(&b.0));
    if let Some((excess, i)) = worst
        && excess > 0.0
    {
        panic!(
            "{what}: element {i} of {} is {} but should be {} (off by {excess:.2e} bounds)",
            actual.len(),
            actual[i],
            expected[i],
        );
    }
}

/// Asserts |actual - expected| <= bound(i) for every element and prints the worst one otherwise. NaN fails.
#[track_caller]
pub fn assert_close(what: &str, actual: &[f32], expected: &[f64], bound: impl Fn(usize) -> f64) {
    assert_all(what, actual, expected, |i| {
        excess((f64::from(actual[i]) - expected[i]).abs(), bound(i))
    });
}

/// The bound for a sum of `terms` products in float32 whose absolute values add up to `magnitude`: blocked or
/// pairwise orders lose about sqrt(terms) roundings, twice that and a few more for the operations around the sum.
pub fn sum_bound(terms: usize, magnitude: f64) -> f64 {
    (4.0 + 2.0 * (terms as f64).sqrt()) * UNIT * magnitude + 1e-30
}

/// A device buffer with the given contents and a guard band behind them.
pub fn upload<B: Backend>(backend: &mut B, values: &[f32]) -> B::Buffer {
    rig::buffer(backend, Element::F32, values).expect("a buffer")
}

/// A device buffer full of a value that no operation should leave behind.
pub fn poisoned<B: Backend>(backend: &mut B, len: usize) -> B::Buffer {
    upload(backend, &vec![POISON; len])
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
        assert!(
            is_poison(*value),
            "an operation wrote {value} {i} elements behind a buffer's end"
        );
    }
    values
}
