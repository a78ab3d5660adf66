//! The ArcFace head against a float64 oracle with every margin, and the oracle against finite differences.

use crate::oracles::{UNIT, assert_close, contents, download, noise, poisoned, upload};
use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::HeadShard;
use arcface_cu::backend::head_rows::{
    self, BEST_OTHER, INVERSE_NORM, OFFSET, SUM_EXP, TARGET_COS, TARGET_LOGIT, TARGET_SLOPE,
};
use arcface_cu::backend::margin::{Margin, MarginGradient, PiGuard};
use arcface_cu::backend::{ArcFaceBprop, ArcFaceFprop, Backend, SgdForm, SgdStep};
use arcface_cu::head::{ArcFace, ClassInit, Distribution, HeadOutput, expected_initial_loss};

/// A head's inputs.
struct Case {
    n: usize,
    d: usize,
    v: usize,
    margin: Margin,
    x: Vec<f32>,
    w: Vec<f32>,
    labels: Vec<u32>,
}

impl Case {
    fn new(n: usize, d: usize, v: usize, margin: Margin) -> Self {
        let mut x = noise(n * d, 1);
        let mut w = noise(v * d, 2);
        // Lengths from 0.5 to several: normalisation must matter.
        for (i, x) in x.chunks_mut(d).enumerate() {
            x.iter_mut().for_each(|x| *x *= 0.5 + i as f32 * 0.1);
        }
        for (i, w) in w.chunks_mut(d).enumerate() {
            w.iter_mut().for_each(|w| *w *= 0.1 + (i % 5) as f32 * 0.2);
        }
        // The first, the last, one class twice.
        let labels: Vec<u32> = (0..n)
            .map(|i| match i {
                0 => v as u32 - 1,
                1 => 0,
                _ => (i / 2 * 37 % v) as u32,
            })
            .collect();
        // Some near their class, one opposite to it (guard and clamp act there).
        for (i, label) in labels.iter().enumerate() {
            let w = &w[*label as usize * d..][..d];
            let pull = [0.0, 2.0, -9.0, 0.5, 30.0][i % 5];
            for (x, w) in x[i * d..][..d].iter_mut().zip(w) {
                *x += pull * w;
            }
        }
        Case {
            n,
            d,
            v,
            margin,
            x,
            w,
            labels,
        }
    }
}

/// Everything the head computes, in float64, for the shard [first, last) of a loss over all classes.
#[derive(Default)]
struct Oracle {
    loss: f64,
    /// Complete: over all classes.
    offset: Vec<f64>,
    /// Over the shard, relative to `offset`; `total` over all.
    sum: Vec<f64>,
    total: Vec<f64>,
    best_other: Vec<f64>,
    target: Vec<[f64; 3]>,
    inverse_x: Vec<f64>,
    dx: Vec<f64>,
    dw: Vec<f64>,
    /// Sums of the absolute values that make up dx and dw.
    dx_size: Vec<f64>,
    dw_size: Vec<f64>,
}

fn unit_rows(rows: &[f64], d: usize, normalise: bool) -> (Vec<f64>, Vec<f64>) {
    let inverse: Vec<f64> = rows
        .chunks(d)
        .map(|r| {
            if normalise {
                1.0 / r.iter().map(|v| v * v).sum::<f64>().sqrt()
            } else {
                1.0
            }
        })
        .collect();
    let unit = rows.iter().enumerate().map(|(i, v)| v * inverse[i / d]);
    (unit.collect(), inverse)
}

/// The margin once more, from the formulas.
fn margin_logit(margin: &Margin, cos: f64) -> (f64, f64) {
    if !margin.normalise {
        return (cos, 1.0);
    }
    let [s, m1, m2, m3] = [margin.scale, margin.m1, margin.m2, margin.m3].map(f64::from);
    let cos = cos.clamp(
        -1.0 + f64::from(margin.clamp),
        1.0 - f64::from(margin.clamp),
    );
    let theta = cos.acos();
    let (logit, slope) = if margin.pi_guard == PiGuard::Linear && theta + m2 >= std::f64::consts::PI
    {
        (cos - m2 * m2.sin(), 1.0)
    } else if m1 == 1.0 && m2 == 0.0 {
        (cos, 1.0)
    } else {
        (
            (m1 * theta + m2).cos(),
            m1 * (m1 * theta + m2).sin() / theta.sin(),
        )
    };
    let straight = margin.gradient == MarginGradient::StraightThrough;
    (s * (logit - m3), s * if straight { 1.0 } else { slope })
}

fn oracle(case: &Case, x: &[f64], w: &[f64], first: usize, last: usize) -> Oracle {
    let Case {
        n, d, v, margin, ..
    } = case;
    let (n, d, v) = (*n, *d, *v);
    let normalise = margin.normalise;
    let scale = if normalise {
        f64::from(margin.scale)
    } else {
        1.0
    };
    let (xn, inverse_x) = unit_rows(x, d, normalise);
    let (wn, inverse_w) = unit_rows(w, d, normalise);
    let mut o = Oracle {
        dx: vec![0.0; n * d],
        dx_size: vec![0.0; n * d],
        dw: vec![0.0; (last - first) * d],
        dw_size: vec![0.0; (last - first) * d],
        ..Oracle::default()
    };
    for i in 0..n {
        let xn = &xn[i * d..][..d];
        let label = case.labels[i] as usize;
        let cos: Vec<f64> = wn
            .chunks(d)
            .map(|w| w.iter().zip(xn).map(|(w, x)| w * x).sum())
            .collect();
        let (target_logit, target_slope) = margin_logit(margin, cos[label]);
        let logits: Vec<f64> = (0..v)
            .map(|j| {
                if j == label {
                    target_logit
                } else {
                    scale * cos[j]
                }
            })
            .collect();
        let offset = if normalise {
            (scale * (1.0 + (-f64::from(margin.m3)).max(0.0)) - 64.0).max(0.0)
        } else {
            logits.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        };
        let exps: Vec<f64> = logits.iter().map(|l| (l - offset).exp()).collect();
        let total: f64 = exps.iter().sum();
        o.loss += (total.ln() + offset - target_logit) / n as f64;
        o.offset.push(offset);
        o.total.push(total);
        o.sum.push(exps[first..last].iter().sum());
        let others = (first..last)
            .filter(|j| *j != label)
            .map(|j| scale * cos[j]);
        o.best_other.push(others.fold(f64::NEG_INFINITY, f64::max));
        o.target.push(if (first..last).contains(&label) {
            [cos[label], target_logit, target_slope]
        } else {
            [0.0; 3]
        });
        for j in first..last {
            let p = exps[j] / total;
            let (g, size) = if j == label {
                ((p - 1.0) * target_slope, (p + 1.0) * target_slope.abs())
            } else {
                (p * scale, p * scale)
            };
            let (g, size) = (g / n as f64, size / n as f64);
            let along = if normalise { cos[j] } else { 0.0 };
            for k in 0..d {
                let (x, w) = (xn[k], wn[j * d + k]);
                let (at_x, at_w) = (i * d + k, (j - first) * d + k);
                o.dx[at_x] += g * inverse_x[i] * (w - along * x);
                o.dx_size[at_x] += size * inverse_x[i] * (w.abs() + (along * x).abs());
                o.dw[at_w] += g * inverse_w[j] * (x - along * w);
                o.dw_size[at_w] += size * inverse_w[j] * (x.abs() + (along * w).abs());
            }
        }
    }
    o.inverse_x = inverse_x;
    o
}

fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// Relative error of an exp: the logit's absolute error. Products of unit vectors err by sqrt(D) roundings of the
/// average term, the scale multiplies it, and the logit itself is rounded (twice, with the offset).
fn exp_error(case: &Case, o: &Oracle) -> f64 {
    let size = if case.margin.normalise {
        f64::from(case.margin.scale)
    } else {
        let largest = |rows: &[f32]| {
            rows.chunks(case.d)
                .map(|r| r.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt())
                .fold(0.0, f64::max)
        };
        largest(&case.x) * largest(&case.w)
    };
    let offset = o.offset.iter().fold(0.0f64, |m, v| m.max(v.abs()));
    UNIT * ((4.0 + (case.d as f64).sqrt()) * size + 2.0 * offset + 20.0)
}

fn head_agrees<B: Backend>(
    backend: &mut B,
    what: &str,
    case: &Case,
    first: usize,
    last: usize,
    form: SgdForm,
) {
    let Case { n, d, .. } = *case;
    let o = oracle(case, &wide(&case.x), &wide(&case.w), first, last);
    let error = exp_error(case, &o);
    let shard = HeadShard { n, d, first, last };
    let v = shard.classes();
    let x = upload(backend, &case.x);
    let start = &case.w[first * d..last * d];
    let mut classes = upload(backend, start);
    let velocity = noise(v * d, 5);
    let mut momentum = upload(backend, &velocity);
    let mut inverse_norms = poisoned(backend, v);
    let mut rows = poisoned(backend, head_rows::len(n));
    backend
        .arcface_fprop(ArcFaceFprop {
            shard,
            margin: &case.margin,
            x: &x,
            classes: &classes,
            labels: &case.labels,
            inverse_norms: &mut inverse_norms,
            rows: &mut rows,
        })
        .unwrap();

    let mut got = download(backend, &rows);
    let row = |which: usize| got[which * n..][..n].to_vec();
    let complete = (first, last) == (0, case.v);
    let target = |which: usize| o.target.iter().map(|t| t[which]).collect::<Vec<f64>>();
    if case.margin.normalise {
        assert_close(
            &format!("{what}: 1/|x|"),
            &row(INVERSE_NORM),
            &o.inverse_x,
            |i| 2.0 * UNIT * o.inverse_x[i],
        );
    }
    assert_close(&format!("{what}: cos"), &row(TARGET_COS), &target(0), |i| {
        2.0 * UNIT * o.target[i][0].abs()
    });
    // The angle loses half the digits of a cosine near +-1, so logit and slope are those of the rounded cosine.
    let of_rounded: Vec<_> = row(TARGET_COS)
        .iter()
        .zip(&o.target)
        .map(|(cos, t)| {
            if *t == [0.0; 3] {
                (0.0, 0.0)
            } else {
                margin_logit(&case.margin, f64::from(*cos))
            }
        })
        .collect();
    let (logits, slopes): (Vec<f64>, Vec<f64>) = of_rounded.into_iter().unzip();
    assert_close(
        &format!("{what}: logit"),
        &row(TARGET_LOGIT),
        &logits,
        |i| 2.0 * UNIT * logits[i].abs() + 1e-7,
    );
    assert_close(
        &format!("{what}: slope"),
        &row(TARGET_SLOPE),
        &slopes,
        |i| 1e-6 * slopes[i].abs(),
    );
    let best: Vec<f64> = o.best_other.clone();
    // A shard that holds the target alone has no other class.
    if v > 1 {
        assert_close(&format!("{what}: best"), &row(BEST_OTHER), &best, |_| error);
    } else {
        assert!(
            row(BEST_OTHER)
                .iter()
                .zip(&best)
                .all(|(a, b)| f64::from(*a) == *b || (f64::from(*a) - b).abs() <= error)
        );
    }
    // Plain softmax's sums are relative to an offset of the shard's own, compare them at the oracle's.
    let sums: Vec<f32> = (0..n)
        .map(|i| {
            (f64::from(row(SUM_EXP)[i]) * (f64::from(row(OFFSET)[i]) - o.offset[i]).exp()) as f32
        })
        .collect();
    assert_close(&format!("{what}: sum"), &sums, &o.sum, |i| {
        2.0 * error * o.sum[i]
    });
    let squares: f64 = start.iter().map(|w| f64::from(*w).powi(2)).sum();
    assert_close(
        &format!("{what}: squares"),
        &got[7 * n..],
        &[squares],
        |_| 1e-6 * squares,
    );

    // Backward, from sums that are complete over all shards.
    for i in 0..n {
        got[SUM_EXP * n + i] = if complete {
            got[SUM_EXP * n + i]
        } else {
            o.total[i] as f32
        };
        got[OFFSET * n + i] = if complete {
            got[OFFSET * n + i]
        } else {
            o.offset[i] as f32
        };
    }
    let rows = upload(backend, &got);
    let mut dx = poisoned(backend, n * d);
    let step = SgdStep {
        form,
        lr: 0.7,
        momentum: 0.9,
        clip: Some(1e-6),
    };
    let decay = 0.05f32;
    backend
        .arcface_bprop(ArcFaceBprop {
            shard,
            margin: &case.margin,
            x: &x,
            labels: &case.labels,
            inverse_norms: &inverse_norms,
            rows: &rows,
            classes: &mut classes,
            momentum: &mut momentum,
            decay,
            step,
            dx: &mut dx,
        })
        .unwrap();
    let relative = |terms: usize| 3.0 * error + (6.0 + 2.0 * (terms as f64).sqrt()) * UNIT;
    assert_close(
        &format!("{what}: d_x"),
        &download(backend, &dx),
        &o.dx,
        |i| relative(v) * o.dx_size[i] + 1e-12,
    );
    let (lr, mu, decay) = (
        f64::from(step.lr),
        f64::from(step.momentum),
        f64::from(decay),
    );
    let (mut w, mut m) = (wide(start), wide(&velocity));
    for i in 0..v * d {
        let g = o.dw[i] + decay * w[i];
        match form {
            SgdForm::Keras => {
                m[i] = mu * m[i] - lr * g;
                w[i] += m[i];
            }
            SgdForm::KerasNesterov => {
                m[i] = mu * m[i] - lr * g;
                w[i] += mu * m[i] - lr * g;
            }
            SgdForm::Torch => {
                m[i] = mu * m[i] + g;
                w[i] -= lr * m[i];
            }
            SgdForm::TorchNesterov => {
                m[i] = mu * m[i] + g;
                w[i] -= lr * (g + mu * m[i]);
            }
        }
    }
    let bound =
        |i: usize| 2.0 * relative(n) * o.dw_size[i] + 8.0 * UNIT * (w[i].abs() + m[i].abs() + 1.0);
    assert_close(
        &format!("{what}: momentum"),
        &download(backend, &momentum),
        &m,
        bound,
    );
    assert_close(
        &format!("{what}: classes"),
        &download(backend, &classes),
        &w,
        bound,
    );
}

fn margins() -> Vec<(&'static str, Margin)> {
    let arcface = Margin::arcface(64.0, 0.5);
    vec![
        ("arcface 30", Margin::arcface(30.0, 0.5)),
        ("arcface 64", arcface),
        ("arcface 100", Margin::arcface(100.0, 0.5)),
        (
            "straight-through",
            Margin {
                gradient: MarginGradient::StraightThrough,
                ..arcface
            },
        ),
        (
            "guard",
            Margin {
                pi_guard: PiGuard::Linear,
                ..arcface
            },
        ),
        (
            "clamp",
            Margin {
                clamp: 0.02,
                ..arcface
            },
        ),
        ("cosface", Margin::cosface(64.0, 0.35)),
        ("negative m3", Margin::cosface(64.0, -0.2)),
        (
            "sphereface",
            Margin {
                m1: 1.35,
                ..Margin::arcface(30.0, 0.0)
            },
        ),
        ("softmax", Margin::softmax()),
    ]
}

fn every_margin<B: Backend>(backend: &mut B) {
    for (name, margin) in margins() {
        let case = Case::new(13, 19, 301, margin);
        head_agrees(backend, name, &case, 0, 301, SgdForm::Torch);
    }
}

/// One sample, one class, odd sizes, more samples than a vector; first of all many dimensions, which make the CPU's
/// tiles so small that its groups hold more than one. One backend for all, so that later shapes meet used scratch.
fn every_shape<B: Backend>(backend: &mut B) {
    for (n, d, v) in [
        (5, 3001, 2100),
        (33, 130, 9001),
        (1, 1, 2),
        (1, 5, 1),
        (2, 33, 16),
        (17, 3, 1025),
        (64, 256, 700),
        // More than one stretch of the GPU's backward pass.
        (70, 3, 60_000),
    ] {
        for margin in [Margin::arcface(30.0, 0.5), Margin::softmax()] {
            let case = Case::new(n, d, v, margin);
            let what = format!("{n} x {d}, {v} classes, normalise {}", margin.normalise);
            head_agrees(backend, &what, &case, 0, v, SgdForm::Keras);
        }
    }
}

fn every_update_rule<B: Backend>(backend: &mut B) {
    let case = Case::new(9, 24, 2050, Margin::arcface(64.0, 0.5));
    for form in [
        SgdForm::Keras,
        SgdForm::KerasNesterov,
        SgdForm::Torch,
        SgdForm::TorchNesterov,
    ] {
        head_agrees(backend, &format!("{form:?}"), &case, 0, 2050, form);
    }
}

fn shards<B: Backend>(backend: &mut B) {
    for margin in [
        Margin::arcface(64.0, 0.5),
        Margin::arcface(100.0, 0.3),
        Margin::softmax(),
    ] {
        let case = Case::new(13, 19, 2100, margin);
        for (first, last) in [(0, 700), (700, 2100), (5, 6), (2099, 2100)] {
            let what = format!("shard {first}..{last}");
            head_agrees(backend, &what, &case, first, last, SgdForm::Torch);
        }
    }
    // The oracle's own shards add up; so with the above the head's do.
    let case = Case::new(13, 19, 300, Margin::arcface(64.0, 0.5));
    let run = |first, last| oracle(&case, &wide(&case.x), &wide(&case.w), first, last);
    let (whole, a, b) = (run(0, 300), run(0, 111), run(111, 300));
    for i in 0..13 {
        assert!((a.sum[i] + b.sum[i] - whole.sum[i]).abs() <= 1e-12 * whole.sum[i]);
        assert!((whole.total[i] - whole.sum[i]).abs() <= 1e-12 * whole.sum[i]);
    }
    for i in 0..13 * 19 {
        assert!((a.dx[i] + b.dx[i] - whole.dx[i]).abs() <= 1e-12 * whole.dx_size[i]);
    }
}

on_each_device! {
    every_margin_agrees_with_the_oracle: every_margin,
    every_shape_agrees_with_the_oracle: every_shape,
    every_update_rule_agrees_with_the_oracle: every_update_rule,
    shards_agree_with_the_oracle_and_sum_to_the_whole: shards,
    the_first_loss_is_the_expected_one: first_loss,
    class_rows_learn_a_fixed_batch_and_come_back_from_a_copy: a_fixed_batch,
    a_loss_that_is_not_finite_changes_no_class_row: bad_numbers_change_nothing,
    bad_requests_are_sentences_and_normal_rows_have_their_deviation: bad_requests,
}

/// The oracle's gradient is the derivative of the oracle's loss (where it is not straight-through by intent, and not
/// at a clamp, where it is by intent not the derivative).
#[test]
fn the_oracle_agrees_with_finite_differences() {
    for (name, margin) in margins() {
        if margin.gradient == MarginGradient::StraightThrough || name == "clamp" {
            continue;
        }
        let case = Case::new(6, 5, 11, margin);
        let (x, w) = (wide(&case.x), wide(&case.w));
        let o = oracle(&case, &x, &w, 0, 11);
        let h = 1e-6;
        let loss = |x: &[f64], w: &[f64]| oracle(&case, x, w, 0, 11).loss;
        for i in 0..x.len() + w.len() {
            let moved = |by: f64| {
                let (mut x, mut w) = (x.clone(), w.clone());
                if i < x.len() {
                    x[i] += by;
                } else {
                    w[i - x.len()] += by;
                }
                loss(&x, &w)
            };
            let expected = (moved(h) - moved(-h)) / (2.0 * h);
            let (actual, size) = if i < x.len() {
                (o.dx[i], o.dx_size[i])
            } else {
                (o.dw[i - x.len()], o.dw_size[i - x.len()])
            };
            let error = (actual - expected).abs();
            assert!(
                error <= 1e-5 * (size + 1.0),
                "{name}: element {i}: {actual}, not {expected}"
            );
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for margin in [Margin::arcface(64.0, 0.5), Margin::softmax()] {
        let case = Case::new(13, 100, 9000, margin);
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| {
                let backend = &mut Cpu::new();
                let shard = HeadShard {
                    n: 13,
                    d: 100,
                    first: 0,
                    last: 9000,
                };
                let x = upload(backend, &case.x);
                let mut classes = upload(backend, &case.w);
                let mut momentum = upload(backend, &noise(9000 * 100, 3));
                let mut inverse_norms = poisoned(backend, 9000);
                let mut rows = poisoned(backend, head_rows::len(13));
                let mut dx = poisoned(backend, 1300);
                let step = SgdStep {
                    form: SgdForm::Torch,
                    lr: 0.1,
                    momentum: 0.9,
                    clip: None,
                };
                backend
                    .arcface_fprop(ArcFaceFprop {
                        shard,
                        margin: &margin,
                        x: &x,
                        classes: &classes,
                        labels: &case.labels,
                        inverse_norms: &mut inverse_norms,
                        rows: &mut rows,
                    })
                    .unwrap();
                backend
                    .arcface_bprop(ArcFaceBprop {
                        shard,
                        margin: &margin,
                        x: &x,
                        labels: &case.labels,
                        inverse_norms: &inverse_norms,
                        rows: &rows,
                        classes: &mut classes,
                        momentum: &mut momentum,
                        decay: 1e-3,
                        step,
                        dx: &mut dx,
                    })
                    .unwrap();
                [rows, classes, momentum, dx].map(|b| {
                    let values = download(backend, &b);
                    values.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                })
            })
        };
        let one = run(1);
        assert!(one == run(2) && one == run(5));
    }
}

fn step(lr: f32) -> SgdStep {
    SgdStep {
        form: SgdForm::Keras,
        lr,
        momentum: 0.8,
        clip: None,
    }
}

fn init(seed: u64) -> ClassInit {
    ClassInit {
        distribution: Distribution::GlorotUniform,
        seed,
        index: 7,
    }
}

/// The loss of a batch, read back.
fn loss<B: Backend>(
    head: &mut ArcFace<B>,
    backend: &mut B,
    x: &B::Buffer,
    labels: &[u32],
) -> HeadOutput {
    head.forward(backend, x, labels).unwrap();
    backend.download_all(&mut [head.reading()]).unwrap();
    head.output()
}

/// Random embeddings against freshly drawn classes: the loss that a run should begin with.
fn first_loss<B: Backend>(backend: &mut B) {
    for (classes, d, margin) in [
        (20_000, 256, Margin::arcface(30.0, 0.5)),
        (5_000, 128, Margin::cosface(64.0, 0.35)),
        (5_000, 64, Margin::softmax()),
    ] {
        let n = 64;
        let mut head = ArcFace::new(backend, classes, d, n, margin, init(3)).unwrap();
        let mut random =
            arcface_cu::base::random::Random::new(1, arcface_cu::base::random::Purpose::Init, 1);
        let values: Vec<f32> = (0..n * d).map(|_| random.normal()).collect();
        let x = upload(backend, &values);
        let labels: Vec<u32> = (0..n as u32).map(|i| i * 211 % classes as u32).collect();
        let output = loss(&mut head, backend, &x, &labels);
        let expected = expected_initial_loss(&margin, d, classes);
        let spread = f64::from(margin.scale) / (d as f64).sqrt() * 4.0 / (n as f64).sqrt();
        assert!(
            (output.loss - expected).abs() <= spread.max(0.5),
            "{margin:?}: {} not {expected}",
            output.loss
        );
        assert!(output.correct <= 2);
        let squares = 2.0 * (classes * d) as f64 / (classes + d) as f64;
        assert!(
            (output.sum_squares / squares - 1.0).abs() < 0.01,
            "{}",
            output.sum_squares
        );
    }
}

/// The layer learns: a fixed batch is fitted, by moving class rows alone.
fn a_fixed_batch<B: Backend>(backend: &mut B) {
    let (n, d, classes) = (8, 32, 50);
    let margin = Margin::arcface(30.0, 0.3);
    let mut head = ArcFace::new(backend, classes, d, 16, margin, init(1)).unwrap();
    let x = upload(backend, &noise(16 * d, 9));
    let labels: Vec<u32> = (0..n as u32).map(|i| i * 6 + 1).collect();
    let mut dx = poisoned(backend, 16 * d);
    let first = loss(&mut head, backend, &x, &labels);
    for _ in 0..200 {
        head.forward(backend, &x, &labels).unwrap();
        head.backward(backend, &x, &labels, &step(0.05), 1e-3, &mut dx)
            .unwrap();
    }
    let last = loss(&mut head, backend, &x, &labels);
    assert!(
        first.loss > 5.0 && last.loss < 0.5,
        "{} to {}",
        first.loss,
        last.loss
    );
    assert_eq!(last.correct, n);
    // Beyond the batch, d_x is left alone.
    assert!(download(backend, &dx)[n * d..].iter().all(|v| v.is_nan()));

    let mut copy = ArcFace::new(backend, classes, d, n, margin, init(2)).unwrap();
    let weights = contents(backend, head.weights());
    backend.upload(&weights, copy.weights_mut(), 0).unwrap();
    let velocity = contents(backend, head.momentum());
    backend.upload(&velocity, copy.momentum_mut(), 0).unwrap();
    for head in [&mut head, &mut copy] {
        head.forward(backend, &x, &labels).unwrap();
        head.backward(backend, &x, &labels, &step(0.05), 1e-3, &mut dx)
            .unwrap();
    }
    assert_eq!(
        contents(backend, head.weights()),
        contents(backend, copy.weights())
    );
}

/// A row whose loss is not finite: class rows and momentum stay as they are, and all of d_x says so, to whoever
/// updates by it.
fn bad_numbers_change_nothing<B: Backend>(backend: &mut B) {
    for margin in [Margin::default(), Margin::softmax()] {
        let mut head = ArcFace::new(backend, 5, 4, 3, margin, init(1)).unwrap();
        let velocity = noise(20, 2);
        backend.upload(&velocity, head.momentum_mut(), 0).unwrap();
        let state = |head: &ArcFace<B>, backend: &mut B| {
            [head.weights(), head.momentum()].map(|buffer| contents(backend, buffer))
        };
        let before = state(&head, backend);
        for bad in [Some(f32::NAN), Some(f32::INFINITY), None] {
            let mut values = noise(12, 1);
            values[5] = bad.unwrap_or(values[5]);
            let x = upload(backend, &values);
            let mut dx = upload(backend, &[7.0; 16]);
            let output = loss(&mut head, backend, &x, &[0, 1, 2]);
            head.backward(backend, &x, &[0, 1, 2], &step(0.1), 1e-3, &mut dx)
                .unwrap();
            let dx = download(backend, &dx);
            assert_eq!(dx[12..], [7.0; 4], "behind the batch");
            if bad.is_some() {
                assert!(!output.loss.is_finite(), "{bad:?}: {}", output.loss);
                assert!(dx[..12].iter().all(|v| v.is_nan()), "{bad:?}: {dx:?}");
                assert_eq!(state(&head, backend), before, "{bad:?}");
            } else {
                assert!(output.loss.is_finite());
                assert!(dx[..12].iter().all(|v| v.is_finite()), "{dx:?}");
                let after = state(&head, backend);
                assert!(after[0] != before[0] && after[1] != before[1]);
            }
        }
    }
}

fn bad_requests<B: Backend>(backend: &mut B) {
    let mut head = ArcFace::new(backend, 5, 4, 3, Margin::default(), init(1)).unwrap();
    let x = upload(backend, &noise(12, 1));
    let refused = |labels: &[u32], head: &mut ArcFace<B>, backend: &mut B| {
        head.forward(backend, &x, labels).unwrap_err().to_string()
    };
    assert!(refused(&[0, 5], &mut head, backend).contains("label 5 (sample 1"));
    assert!(refused(&[], &mut head, backend).contains("0 samples"));
    assert!(refused(&[0; 4], &mut head, backend).contains("4 samples"));
    assert!(ArcFace::<B>::new(backend, 0, 4, 3, Margin::default(), init(1)).is_err());
    assert!(ArcFace::<B>::new(backend, 5, usize::MAX / 2, 3, Margin::default(), init(1)).is_err());
    let mut normal = init(4);
    normal.distribution = Distribution::Normal(0.01);
    let head = ArcFace::<B>::new(backend, 3000, 8, 3, Margin::default(), normal).unwrap();
    let weights = contents(backend, head.weights());
    let variance =
        weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / weights.len() as f64;
    assert!((variance.sqrt() / 0.01 - 1.0).abs() < 0.02);
    assert_ne!(weights[..8], weights[1024 * 8..1025 * 8]);
}
