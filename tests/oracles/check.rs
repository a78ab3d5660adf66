//! A case on a device against the same case on the oracle.

use super::backend::{Buffer, Oracle};
use super::number::{Number, spacing_bf16};
use super::{UNIT, assert_all, download, excess};
use crate::rig::{Case, GUARD, Given, Rig, is_poison};
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::{Backend, Element};

/// Whether a number is poison that nothing has touched.
pub fn poison(number: Number) -> bool {
    is_poison(number.value as f32)
}

/// Asserts |actual - expected| <= bound(i, expected) for every element. NaN and infinity stand where the oracle has
/// them and nowhere else, and what the oracle did not touch has the bits that it had.
#[track_caller]
pub fn assert_near(
    what: &str,
    actual: &[f32],
    expected: &[Number],
    bound: impl Fn(usize, Number) -> f64,
) {
    let values: Vec<f64> = expected.iter().map(|e| e.value).collect();
    assert_all(what, actual, &values, |i| {
        let same = if poison(expected[i]) {
            is_poison(actual[i])
        } else if values[i].is_nan() {
            actual[i].is_nan()
        } else if values[i].is_infinite() {
            f64::from(actual[i]) == values[i]
        } else {
            let error = (f64::from(actual[i]) - values[i]).abs();
            return excess(error, bound(i, expected[i]));
        };
        if same { 0.0 } else { f64::INFINITY }
    });
}

/// What a case on float32 leaves on a device, by name.
pub fn results<B: Backend>(
    backend: &mut B,
    case: &impl Case,
    given: Given<'_>,
) -> Vec<(&'static str, Vec<f32>)> {
    results_of(Element::F32, backend, case, given)
}

/// What a case leaves on a device, by name.
pub fn results_of<B: Backend>(
    element: Element,
    backend: &mut B,
    case: &impl Case,
    given: Given<'_>,
) -> Vec<(&'static str, Vec<f32>)> {
    let results = Rig::new(backend).of(element).given(given).results(case);
    downloaded(backend, &results)
}

/// What lies in a device's buffers.
pub fn downloaded<B: Backend>(
    backend: &mut B,
    results: &[(&'static str, B::Buffer)],
) -> Vec<(&'static str, Vec<f32>)> {
    let down = |(name, found): &(_, _)| (*name, download(backend, found));
    results.iter().map(down).collect()
}

/// Asserts that a case leaves the same wherever its filters lie.
#[track_caller]
pub fn assert_filters_lie_anywhere<B: Backend>(backend: &mut B, case: &impl Case) {
    for element in elements(backend) {
        let expected = results_of(element, backend, case, &[]);
        let results = (Rig::new(backend).of(element))
            .filters_anywhere()
            .results(case);
        assert!(
            downloaded(backend, &results) == expected,
            "{element} {case:?}"
        );
    }
}

/// What a case on float32 leaves on the oracle.
pub fn expected(case: &impl Case, given: Given<'_>) -> Vec<(&'static str, Vec<Number>)> {
    expected_of(Element::F32, case, given)
}

/// What a case leaves on the oracle. A number's slack is all that rounding to its element, and to that of the operands,
/// may change.
pub fn expected_of(
    element: Element,
    case: &impl Case,
    given: Given<'_>,
) -> Vec<(&'static str, Vec<Number>)> {
    let mut oracle = Oracle;
    finished(Rig::new(&mut oracle).of(element).given(given).results(case))
}

/// The numbers that the oracle wrote, each with the slack of its own rounding.
pub fn finished(results: Vec<(&'static str, Buffer)>) -> Vec<(&'static str, Vec<Number>)> {
    let finish = |(name, buffer): (_, Buffer)| {
        let Buffer {
            element,
            mut numbers,
        } = buffer;
        numbers.truncate(numbers.len() - GUARD);
        if element == Element::Bf16 {
            for number in numbers.iter_mut().filter(|n| n.value.is_finite()) {
                number.slack += spacing_bf16(number.value) / 2.0;
            }
        }
        (name, numbers)
    };
    results.into_iter().map(finish).collect()
}

/// The types of elements that a device takes.
pub fn elements<B: Backend>(backend: &B) -> impl Iterator<Item = Element> + use<B> {
    let all = [Element::F32, Element::Bf16];
    let supported = all.map(|element| backend.supports(element).then_some(element));
    supported.into_iter().flatten()
}

/// Runs a case on the device and on the oracle, with each type of elements, and compares all that it wrote; `bound(result's name, element, what it
/// should be)`.
#[track_caller]
pub fn check_given<B: Backend>(
    backend: &mut B,
    case: &impl Case,
    given: Given<'_>,
    bound: impl Fn(&str, usize, Number) -> f64,
) {
    for element in elements(backend) {
        check_given_of(element, backend, case, given, &bound);
    }
}

/// As [`check_given`], with one type of elements.
#[track_caller]
fn check_given_of<B: Backend>(
    element: Element,
    backend: &mut B,
    case: &impl Case,
    given: Given<'_>,
    bound: impl Fn(&str, usize, Number) -> f64,
) {
    let results = results_of(element, backend, case, given).into_iter();
    for ((name, found), (_, expected)) in results.zip(expected_of(element, case, given)) {
        let what = format!("{element} {name} of {case:?}");
        let mut values = given.iter().flat_map(|(.., values)| *values);
        if values.all(|v| v.is_finite()) {
            let fit = |e: &Number| e.value.is_finite() || poison(*e);
            assert!(expected.iter().all(fit), "the oracle's {what}");
        }
        assert_near(&what, &found, &expected, |i, e| bound(name, i, e) + e.slack);
    }
}

/// Checks a case on random numbers.
#[track_caller]
pub fn check<B: Backend>(
    backend: &mut B,
    case: &impl Case,
    bound: impl Fn(&str, usize, Number) -> f64,
) {
    check_given(backend, case, &[], bound);
}

/// As [`check`], with one type of elements.
#[track_caller]
pub fn check_of<B: Backend>(
    element: Element,
    backend: &mut B,
    case: &impl Case,
    bound: impl Fn(&str, usize, Number) -> f64,
) {
    check_given_of(element, backend, case, &[], bound);
}

/// The bound of an operation that rounds at most `count` times.
pub fn roundings(count: usize) -> impl Fn(&str, usize, Number) -> f64 {
    move |_, _, e| count as f64 * UNIT * e.magnitude
}

/// The bits of all results of a case.
fn bits(backend: &mut Cpu, case: &impl Case) -> Vec<u32> {
    let mut bits = Vec::new();
    for element in elements(backend) {
        let results = results_of(element, backend, case, &[]).into_iter();
        bits.extend(results.flat_map(|(_, values)| values).map(f32::to_bits));
    }
    bits
}

/// Asserts that the CPU gives the same bits on any number of threads, and on a device that has been used before.
pub fn assert_bits_depend_on_the_case_alone(used: &mut Cpu, case: &impl Case) {
    let expected = bits(&mut Cpu::new(), case);
    assert!(bits(used, case) == expected, "used before: {case:?}");
    for threads in [1, 2, 3, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        let pool = pool.build().expect("a pool");
        let found = pool.install(|| bits(&mut Cpu::new(), case));
        assert!(found == expected, "{threads} threads: {case:?}");
    }
}
