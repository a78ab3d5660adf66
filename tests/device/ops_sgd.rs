//! SGD on the slab against the float64 rules.

use crate::oracles::UNIT;
use crate::oracles::check::{
    assert_bits_depend_on_the_case_alone, assert_near, elements, expected_of, results_of,
};
use crate::rig::sgd::{FORMS, Steps};
use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::{Backend, Segment, SgdForm, SgdStep};

/// Three stretches with gaps before, between and after; the second crosses several blocks.
fn segments() -> [Segment; 3] {
    let segment = |offset, len, decay, lr_multiplier| Segment {
        offset,
        len,
        decay,
        lr_multiplier,
    };
    [
        segment(3, 7, 0.0, 1.0),
        segment(10, 40_001, 1e-2, 0.5),
        segment(40_020, 33, 5e-4, 10.0),
    ]
}

const LEN: usize = 40_060;

fn case(form: SgdForm, clip: Option<f32>, lrs: &[f32]) -> Steps {
    let step = SgdStep {
        form,
        lr: 0.0,
        momentum: 0.9,
        clip,
    };
    Steps {
        step,
        lrs: lrs.to_vec(),
        segments: segments().to_vec(),
        len: LEN,
    }
}

/// Five steps. Between the segments nothing moves. Where tensors are bfloat16 the shadow follows the parameters.
fn every_form<B: Backend>(backend: &mut B) {
    for form in FORMS {
        // The norm is about 90: no limit, one that bites, one that does not.
        for clip in [None, Some(5.0), Some(1e4)] {
            let case = case(form, clip, &[0.1, 0.05, 0.0, 0.2, 0.01]);
            for element in elements(backend) {
                let found = results_of(element, backend, &case, &[]);
                let expected = expected_of(element, &case, &[]);
                assert_eq!(found.len(), expected.len());
                for ((name, found), (_, expected)) in found.into_iter().zip(expected) {
                    let what = format!("{element} {name} of {:?}", case.step);
                    let largest = (expected.iter()).fold(1.0f64, |m, v| m.max(v.value.abs()));
                    assert_near(&what, &found, &expected, |_, e| match name {
                        "norms" => 1e-5 * e.value,
                        // A few roundings a step, on values that grow to about 10; one more where they are rounded to
                        // the shadow.
                        _ => 40.0 * UNIT * largest + e.slack,
                    });
                }
            }
        }
    }
}

fn not_finite<B: Backend>(backend: &mut B) {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for element in elements(backend) {
        let before = case(SgdForm::Torch, Some(1.0), &[]);
        let before = results_of(element, backend, &before, &[]);
        for bad in [f32::NAN, f32::INFINITY, 1e30] {
            let case = case(SgdForm::Torch, Some(1.0), &[0.1]);
            let after = results_of(element, backend, &case, &[("grads", 40_030, &[bad])]);
            let [(_, norms), slabs @ ..] = &after[..] else {
                unreachable!("norms and slabs")
            };
            assert!(!norms[0].is_finite());
            assert_eq!(before.len(), slabs.len());
            for ((name, before), (_, after)) in before.iter().zip(slabs) {
                assert!(bits(before) == bits(after), "{element} {name}, {bad}");
            }
        }
    }
}

on_each_device! {
    every_form_follows_its_rule_with_and_without_clipping: every_form,
    a_gradient_that_is_not_finite_changes_no_bit: not_finite,
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let case = case(SgdForm::KerasNesterov, Some(1.0), &[0.1, 0.2]);
    assert_bits_depend_on_the_case_alone(&mut Cpu::new(), &case);
}
