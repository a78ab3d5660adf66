//! Cases measured on the CPU, each with its answer checked.

use crate::oracles::backend::Oracle;
use crate::oracles::check::{assert_near, downloaded, finished};
use crate::oracles::sum_bound;
use crate::rig::{Case, Job, Rig};
use arcface_cu::Result;
use arcface_cu::backend::Element;
use arcface_cu::backend::cpu::Cpu;

/// Runs a case on tensors of `element`, whose sums have `terms` terms, on the CPU, by `run`, and compares what it wrote with naive f64 loops. (Moments
/// are those of the rounded output: the tests check them.)
pub(crate) fn checked(
    case: &impl Case,
    element: Element,
    terms: usize,
    run: impl FnMut(&mut Cpu, Job<'_, Cpu>) -> Result<()>,
) {
    let (mut cpu, mut oracle) = (Cpu::new(), Oracle);
    let found = Rig::bench(&mut cpu, run).of(element).results(case);
    let found = downloaded(&mut cpu, &found);
    let expected = Rig::bench(&mut oracle, |oracle, job| job(oracle)).of(element);
    let expected = finished(expected.results(case));
    for ((name, found), (_, expected)) in found.iter().zip(&expected) {
        if *name != "moments" {
            let found = &found[..expected.len()];
            let what = format!("{name} of {case:?}");
            assert_near(&what, found, expected, |_, e| {
                sum_bound(terms + 64, e.magnitude) + e.slack
            });
        }
    }
}
