//! SGD on the slab against hand-written float64 rules.

use crate::oracles::{UNIT, assert_close, download, noise, poisoned, upload};
use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::{Backend, Segment, SgdForm, SgdNorms, SgdStep, SgdUpdate};

const FORMS: [SgdForm; 4] = [
    SgdForm::Keras,
    SgdForm::KerasNesterov,
    SgdForm::Torch,
    SgdForm::TorchNesterov,
];

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

/// The rules as their frameworks write them, one element.
fn oracle(form: SgdForm, lr: f64, mu: f64, g: f64, w: &mut f64, v: &mut f64) {
    match form {
        SgdForm::Keras => {
            *v = mu * *v - lr * g;
            *w += *v;
        }
        SgdForm::KerasNesterov => {
            *v = mu * *v - lr * g;
            *w += mu * *v - lr * g;
        }
        SgdForm::Torch => {
            *v = mu * *v + g;
            *w -= lr * *v;
        }
        SgdForm::TorchNesterov => {
            *v = mu * *v + g;
            *w -= lr * (g + mu * *v);
        }
    }
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

fn steps_follow_the_rule<B: Backend>(backend: &mut B, form: SgdForm, clip: Option<f32>) {
    let start = noise(LEN, 1);
    let mut params = upload(backend, &start);
    let mut momentum = upload(backend, &vec![0.0; LEN]);
    let mut norms = poisoned(backend, 2);
    let (mut w, mut v) = (wide(&start), vec![0.0; LEN]);
    for (i, lr) in [0.1f32, 0.05, 0.0, 0.2, 0.01].into_iter().enumerate() {
        let g = noise(LEN, 10 + i as u64);
        let grads = upload(backend, &g);
        let step = SgdStep {
            form,
            lr,
            momentum: 0.9,
            clip,
        };
        backend
            .sgd_norms(SgdNorms {
                params: &params,
                grads: &grads,
                segments: &segments(),
                norms: &mut norms,
            })
            .unwrap();
        let (mut squares, mut penalty) = (0.0, 0.0);
        for s in segments() {
            for j in s.offset..s.offset + s.len {
                squares += f64::from(g[j]).powi(2);
                penalty += 0.5 * f64::from(s.decay) * w[j] * w[j];
            }
        }
        let expected = [squares, penalty];
        assert_close("norms", &download(backend, &norms), &expected, |j| {
            1e-5 * expected[j]
        });
        backend
            .sgd_update(SgdUpdate {
                step,
                segments: &segments(),
                grads: &grads,
                norms: &norms,
                params: &mut params,
                momentum: &mut momentum,
            })
            .unwrap();
        let factor = clip.map_or(1.0, |c| (f64::from(c) / squares.sqrt()).min(1.0));
        for s in segments() {
            let lr = f64::from(lr) * f64::from(s.lr_multiplier);
            for j in s.offset..s.offset + s.len {
                let g = factor * f64::from(g[j]) + f64::from(s.decay) * w[j];
                oracle(form, lr, f64::from(0.9f32), g, &mut w[j], &mut v[j]);
            }
        }
    }
    // Five steps of a few roundings each, on values that grow to about 10.
    let what = format!("{form:?} clip {clip:?}");
    let bound = |values: &[f64]| {
        let largest = values.iter().fold(1.0f64, |m, v| m.max(v.abs()));
        move |_: usize| 40.0 * UNIT * largest
    };
    assert_close(
        &format!("{what}: params"),
        &download(backend, &params),
        &w,
        bound(&w),
    );
    assert_close(
        &format!("{what}: momentum"),
        &download(backend, &momentum),
        &v,
        bound(&v),
    );
    // Outside the segments nothing moved.
    let end = download(backend, &params);
    for j in (0..3).chain(40_011..40_020).chain(40_053..LEN) {
        assert_eq!(end[j].to_bits(), start[j].to_bits(), "{what}: element {j}");
    }
}

fn every_form<B: Backend>(backend: &mut B) {
    for form in FORMS {
        // The norm is about 90: no limit, one that bites, one that does not.
        for clip in [None, Some(5.0), Some(1e4)] {
            steps_follow_the_rule(backend, form, clip);
        }
    }
}

fn not_finite<B: Backend>(backend: &mut B) {
    for bad in [f32::NAN, f32::INFINITY, 1e30] {
        let mut g = noise(LEN, 2);
        g[40_030] = bad;
        let grads = upload(backend, &g);
        let (start, velocity) = (noise(LEN, 3), noise(LEN, 4));
        let mut params = upload(backend, &start);
        let mut momentum = upload(backend, &velocity);
        let mut norms = poisoned(backend, 2);
        let step = SgdStep {
            form: SgdForm::Torch,
            lr: 0.1,
            momentum: 0.9,
            clip: Some(1.0),
        };
        backend
            .sgd_norms(SgdNorms {
                params: &params,
                grads: &grads,
                segments: &segments(),
                norms: &mut norms,
            })
            .unwrap();
        assert!(!download(backend, &norms)[0].is_finite());
        backend
            .sgd_update(SgdUpdate {
                step,
                segments: &segments(),
                grads: &grads,
                norms: &norms,
                params: &mut params,
                momentum: &mut momentum,
            })
            .unwrap();
        let same = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(same(&download(backend, &params), &start), "{bad}");
        assert!(same(&download(backend, &momentum), &velocity), "{bad}");
    }
}

on_each_device! {
    every_form_follows_its_rule_with_and_without_clipping: every_form,
    a_gradient_that_is_not_finite_changes_no_bit: not_finite,
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap();
        pool.install(|| {
            let backend = &mut Cpu::new();
            let grads = upload(backend, &noise(LEN, 2));
            let mut params = upload(backend, &noise(LEN, 3));
            let mut momentum = upload(backend, &noise(LEN, 4));
            let mut norms = poisoned(backend, 2);
            let step = SgdStep {
                form: SgdForm::KerasNesterov,
                lr: 0.1,
                momentum: 0.9,
                clip: Some(1.0),
            };
            backend
                .sgd_norms(SgdNorms {
                    params: &params,
                    grads: &grads,
                    segments: &segments(),
                    norms: &mut norms,
                })
                .unwrap();
            backend
                .sgd_update(SgdUpdate {
                    step,
                    segments: &segments(),
                    grads: &grads,
                    norms: &norms,
                    params: &mut params,
                    momentum: &mut momentum,
                })
                .unwrap();
            [norms, params, momentum].map(|b| {
                let values = download(backend, &b);
                values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            })
        })
    };
    let one = run(1);
    assert!(one == run(2) && one == run(5));
}
