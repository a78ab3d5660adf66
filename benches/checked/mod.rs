//! Cases measured on the CPU, each with its answer checked.

use crate::oracles::backend::Oracle;
use crate::oracles::check::assert_near;
use crate::oracles::number::Number;
use crate::oracles::sum_bound;
use crate::rig::{Case, GUARD, Job, Rig};
use arcface_cu::Result;
use arcface_cu::backend::cpu::Cpu;

/// Runs a case whose sums have `terms` terms on the CPU, by `run`, and compares what it wrote with naive f64 loops. (Moments
/// are those of the rounded output: the tests check them.)
pub(crate) fn checked(
    case: &impl Case,
    terms: usize,
    run: impl FnMut(&mut Cpu, Job<'_, Cpu>) -> Result<()>,
) {
    let (mut cpu, mut oracle) = (Cpu::new(), Oracle);
    let mut found = Rig::bench(&mut cpu, run);
    case.run(&mut found).expect("the operation");
    let mut expected = Rig::bench(&mut oracle, |oracle, job| job(oracle));
    case.run(&mut expected).expect("the oracle");
    for ((name, found), (_, expected)) in found.results.iter().zip(&expected.results) {
        let len = expected.len() - GUARD;
        let expected: &[Number] = &expected[..len];
        if *name != "moments" {
            assert_near(
                &format!("{name} of {case:?}"),
                &found[..len],
                expected,
                |_, e| sum_bound(terms + 64, e.magnitude),
            );
        }
    }
}
