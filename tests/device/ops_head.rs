//! The ArcFace head against a float64 oracle with every margin, and the oracle against finite differences.

use crate::oracles::backend::{Buffer, Oracle, margin_logit};
use crate::oracles::check::{
    assert_bits_depend_on_the_case_alone, assert_near, elements, expected, expected_of, results_of,
};
use crate::oracles::number::{Number, round_bf16};
use crate::oracles::{UNIT, assert_close, contents, download, noise, poisoned, sum_bound, upload};
use crate::rig::Given;
use crate::rig::arcface::{Bprop, Fprop};
use crate::rig::sgd::FORMS;
use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::HeadShard;
use arcface_cu::backend::head_rows::{
    self, BEST_OTHER, INVERSE_NORM, OFFSET, SQUARES, SUM_EXP, TARGET_COS, TARGET_LOGIT,
    TARGET_SLOPE,
};
use arcface_cu::backend::margin::{Margin, MarginGradient, PiGuard};
use arcface_cu::backend::{ArcFaceFprop, Backend, ClassRows, Element, SgdForm, SgdStep};
use arcface_cu::head::{ArcFace, ClassInit, Distribution, HeadOutput, expected_initial_loss};

/// Relative error of an exp: the logit's absolute error. Products of unit vectors err by sqrt(D) roundings of the
/// average term, the scale multiplies it, and the logit itself is rounded (twice, with the offset).
fn exp_error(case: &Fprop, rows: &[Number]) -> f64 {
    let HeadShard { n, d, .. } = case.shard;
    let size = if case.margin.normalise {
        f64::from(case.margin.scale)
    } else {
        let (x, classes, _) = case.data();
        let length = |row: &[f32]| {
            row.iter()
                .map(|v| f64::from(*v).powi(2))
                .sum::<f64>()
                .sqrt()
        };
        let largest = |rows: &[f32]| rows.chunks(d).map(length).fold(0.0, f64::max);
        largest(&x) * largest(&classes)
    };
    let offsets = rows[OFFSET * n..][..n].iter();
    let offset = offsets.fold(0.0f64, |m, v| m.max(v.value.abs()));
    UNIT * ((4.0 + (d as f64).sqrt()) * size + 2.0 * offset + 20.0)
}

/// The forward pass: every number that it keeps. Returns the rows for the backward pass, with the sums of all classes, and
/// the relative error of an exp.
fn check_rows<B: Backend>(backend: &mut B, element: Element, case: &Fprop) -> (Vec<f32>, f64) {
    let HeadShard { n, .. } = case.shard;
    let mut found = results_of(element, backend, case, &[]);
    check_kept(case.shard.d, &found);
    let mut expected = expected_of(element, case, &[]);
    let (found, expected) = (found.remove(0).1, expected.remove(0).1);
    let error = exp_error(case, &expected);
    let row = |which: usize| (&found[which * n..][..n], &expected[which * n..][..n]);
    let check = |name: &str, which: usize, bound: &dyn Fn(Number) -> f64| {
        let (found, expected) = row(which);
        let what = format!("{name} of {case:?}");
        assert_near(&what, found, expected, |_, e| bound(e));
    };
    let relative = |roundings: f64| move |e: Number| roundings * UNIT * e.value.abs();
    if case.margin.normalise {
        check("1/|x|", INVERSE_NORM, &relative(2.0));
    }
    check("cos", TARGET_COS, &relative(2.0));
    // The angle loses half the digits of a cosine near +-1, so logit and slope are those of the rounded cosine.
    let (cos, exact) = row(TARGET_COS);
    let of_rounded = cos.iter().zip(exact).map(|(cos, exact)| {
        let outside = exact.value == 0.0;
        let here = margin_logit(&case.margin, f64::from(*cos));
        if outside { (0.0, 0.0) } else { here }
    });
    let (logits, slopes): (Vec<f64>, Vec<f64>) = of_rounded.unzip();
    let what = format!("logit of {case:?}");
    assert_close(&what, row(TARGET_LOGIT).0, &logits, |i| {
        2.0 * UNIT * logits[i].abs() + 1e-7
    });
    let what = format!("slope of {case:?}");
    assert_close(&what, row(TARGET_SLOPE).0, &slopes, |i| {
        1e-6 * slopes[i].abs()
    });
    // A shard that holds the target alone has no other class: minus infinity.
    check("best", BEST_OTHER, &|e| error + e.slack);
    // Plain softmax's sums are relative to an offset of the device's own, compare them at the oracle's.
    let (offsets, exact) = row(OFFSET);
    let shift = |i: usize| (f64::from(offsets[i]) - exact[i].value).exp();
    let sums = row(SUM_EXP).0.iter().enumerate();
    let sums: Vec<f32> = (sums.map(|(i, sum)| (f64::from(*sum) * shift(i)) as f32)).collect();
    let what = format!("sum of {case:?}");
    assert_near(&what, &sums, row(SUM_EXP).1, |_, e| {
        2.0 * error * e.value + e.slack
    });
    let squares = SQUARES * n..;
    let what = format!("squares of {case:?}");
    assert_near(
        &what,
        &found[squares.clone()],
        &expected[squares],
        |_, e| 1e-6 * e.value,
    );
    let rows = if case.shard.classes() < case.v {
        complete(case, found)
    } else {
        found
    };
    (rows, error)
}

/// What a device keeps of its class rows against these very rows.
fn check_kept(d: usize, results: &[(&'static str, Vec<f32>)]) {
    let named = |name: &str| {
        results
            .iter()
            .find(|(n, _)| *n == name)
            .map(|(_, v)| &v[..])
    };
    let rows = named("classes").expect("class rows");
    let square = |row: &[f32]| row.iter().map(|w| f64::from(*w).powi(2)).sum();
    let squares: Vec<f64> = rows.chunks(d).map(square).collect();
    let bound = |i: usize| sum_bound(d, squares[i]);
    assert_close(
        "squares",
        named("squares").expect("squares"),
        &squares,
        bound,
    );
    if let Some(rounded) = named("rounded") {
        let exact: Vec<f64> = rows.iter().map(|w| round_bf16(f64::from(*w))).collect();
        assert_close("rounded rows", rounded, &exact, |_| 0.0);
    }
}

/// Rows of a shard with the sums of all classes.
fn complete(case: &Fprop, mut rows: Vec<f32>) -> Vec<f32> {
    let HeadShard { n, .. } = case.shard;
    let (_, whole) = expected(&case.on(0, case.v), &[]).remove(0);
    for i in [SUM_EXP, OFFSET]
        .map(|which| which * n..(which + 1) * n)
        .into_iter()
        .flatten()
    {
        rows[i] = whole[i].value as f32;
    }
    rows
}

/// The gradients of a case on the oracle, after these rows: d_x, and d_w, which a step without momentum and decay leaves
/// as momentum.
fn gradients(element: Element, forward: Fprop, rows: &[f32]) -> [Vec<Number>; 2] {
    let step = SgdStep {
        form: SgdForm::Torch,
        lr: 0.0,
        momentum: 0.0,
        clip: None,
    };
    let case = Bprop {
        forward,
        decay: 0.0,
        step,
    };
    let [(_, dx), (_, dw), ..] = &mut expected_of(element, &case, &[("rows", 0, rows)])[..] else {
        unreachable!("d_x, momentum and what is left of the classes")
    };
    [dx, dw].map(std::mem::take)
}

fn head_agrees<B: Backend>(backend: &mut B, forward: Fprop, form: SgdForm) {
    for element in elements(backend) {
        head_agrees_of(element, backend, forward, form);
    }
}

fn head_agrees_of<B: Backend>(element: Element, backend: &mut B, forward: Fprop, form: SgdForm) {
    let (rows, error) = check_rows(backend, element, &forward);
    let case = Bprop {
        forward,
        decay: 0.05,
        step: SgdStep {
            form,
            lr: 0.7,
            momentum: 0.9,
            clip: Some(1e-6),
        },
    };
    let relative = |terms: usize| 3.0 * error + (6.0 + 2.0 * (terms as f64).sqrt()) * UNIT;
    let (shard, [_, dw]) = (forward.shard, gradients(element, forward, &rows));
    let given: Given<'_> = &[("rows", 0, &rows)];
    let found = results_of(element, backend, &case, given);
    check_kept(shard.d, &found);
    let expected = expected_of(element, &case, given);
    for ((name, found), (_, expected)) in found.iter().zip(&expected).take(3) {
        let what = format!("{element} {name} of {case:?}");
        assert!(
            expected.iter().all(|e| e.value.is_finite()),
            "the oracle's {what}"
        );
        assert_near(&what, found, expected, |i, e| {
            let bound = match *name {
                "dx" => relative(shard.classes()) * e.magnitude + 1e-12,
                _ => 2.0 * relative(shard.n) * dw[i].magnitude + 8.0 * UNIT * (e.value.abs() + 1.0),
            };
            bound + e.slack
        });
    }
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
        println!("{name}");
        head_agrees(backend, Fprop::whole(13, 19, 301, margin), SgdForm::Torch);
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
        // Whole chunks on a GPU, several tiles in each direction.
        (130, 136, 300),
        // More tiles than a GPU's forward pass has blocks.
        (3, 2, 140_000),
        // More than one stretch of the GPU's backward pass.
        (70, 3, 60_000),
    ] {
        for margin in [Margin::arcface(30.0, 0.5), Margin::softmax()] {
            head_agrees(backend, Fprop::whole(n, d, v, margin), SgdForm::Keras);
        }
    }
}

fn every_update_rule<B: Backend>(backend: &mut B) {
    let case = Fprop::whole(9, 24, 2050, Margin::arcface(64.0, 0.5));
    for form in FORMS {
        head_agrees(backend, case, form);
    }
}

fn shards<B: Backend>(backend: &mut B) {
    for margin in [
        Margin::arcface(64.0, 0.5),
        Margin::arcface(100.0, 0.3),
        Margin::softmax(),
    ] {
        let case = Fprop::whole(13, 19, 2100, margin);
        for (first, last) in [(0, 700), (700, 2100), (5, 6), (2099, 2100)] {
            head_agrees(backend, case.on(first, last), SgdForm::Torch);
        }
    }
    // The oracle's own shards add up; so with the above the head's do.
    let case = Fprop::whole(13, 19, 300, Margin::arcface(64.0, 0.5));
    let shards = [(0, 300), (0, 111), (111, 300)].map(|(first, last)| case.on(first, last));
    let [whole, a, b] = shards.map(|case| expected(&case, &[]).remove(0).1);
    for i in SUM_EXP * 13..(SUM_EXP + 1) * 13 {
        let [whole, a, b] = [&whole, &a, &b].map(|rows| rows[i].value);
        assert!((a + b - whole).abs() <= 1e-12 * whole);
    }
    let [[whole, _], [a, _], [b, _]] = shards.map(|case| {
        let rows = expected(&case, &[]).remove(0).1;
        let rows = rows.iter().map(|row| row.value as f32).collect();
        gradients(Element::F32, case, &complete(&case, rows))
    });
    for (i, whole) in whole.iter().enumerate() {
        let error = (a[i].value + b[i].value - whole.value).abs();
        assert!(error <= 1e-12 * whole.magnitude);
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
        let (n, d, v) = (6, 5, 11);
        let case = Fprop::whole(n, d, v, margin);
        let (x, classes, labels) = case.data();
        let wide = |values: Vec<f32>| values.into_iter().map(Number::from).collect::<Buffer>();
        let (x, classes) = (wide(x), wide(classes));
        let loss = |i: usize, by: f64| -> f64 {
            let (mut x, mut classes) = (x.clone(), classes.clone());
            let moved = x.iter_mut().chain(classes.iter_mut()).nth(i);
            moved.expect("a number").value += by;
            let zeros = |len| vec![Number::default(); len].into_iter().collect::<Buffer>();
            let (mut rows, squares) = (zeros(head_rows::len(n)), zeros(v));
            let op = ArcFaceFprop {
                shard: case.shard,
                margin: &margin,
                x: &x,
                classes: ClassRows {
                    rows: &classes,
                    squares: &squares,
                    rounded: None,
                },
                labels: &labels,
                rows: &mut rows,
            };
            Oracle.arcface_fprop(op).unwrap();
            let row = |which: usize, i: usize| rows[which * n + i].value;
            let sample = |i| row(SUM_EXP, i).ln() + row(OFFSET, i) - row(TARGET_LOGIT, i);
            (0..n).map(sample).sum::<f64>() / n as f64
        };
        let h = 1e-6;
        for (i, actual) in gradients(Element::F32, case, &[])
            .iter()
            .flatten()
            .enumerate()
        {
            let expected = (loss(i, h) - loss(i, -h)) / (2.0 * h);
            let error = (actual.value - expected).abs();
            assert!(
                error <= 1e-5 * (actual.magnitude + 1.0),
                "{name}: element {i}: {actual:?}, not {expected}"
            );
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    for margin in [Margin::arcface(64.0, 0.5), Margin::softmax()] {
        let forward = Fprop::whole(13, 100, 9000, margin);
        let used = &mut Cpu::new();
        assert_bits_depend_on_the_case_alone(used, &forward);
        let case = Bprop {
            forward,
            decay: 1e-3,
            step: SgdStep {
                form: SgdForm::Torch,
                ..step(0.1)
            },
        };
        assert_bits_depend_on_the_case_alone(used, &case);
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
    for element in elements(backend) {
        first_loss_of(element, backend);
    }
}

fn first_loss_of<B: Backend>(element: Element, backend: &mut B) {
    for (classes, d, margin) in [
        (20_000, 256, Margin::arcface(30.0, 0.5)),
        (5_000, 128, Margin::cosface(64.0, 0.35)),
        (5_000, 64, Margin::softmax()),
    ] {
        let n = 64;
        let mut head = ArcFace::new(backend, element, (classes, d), n, margin, init(3)).unwrap();
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
    for element in elements(backend) {
        a_fixed_batch_of(element, backend);
    }
}

fn a_fixed_batch_of<B: Backend>(element: Element, backend: &mut B) {
    let (n, d, classes) = (8, 32, 50);
    let margin = Margin::arcface(30.0, 0.3);
    let mut head = ArcFace::new(backend, element, (classes, d), 16, margin, init(1)).unwrap();
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

    let mut copy = ArcFace::new(backend, element, (classes, d), n, margin, init(2)).unwrap();
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
    for element in elements(backend) {
        bad_numbers_of(element, backend);
    }
}

fn bad_numbers_of<B: Backend>(element: Element, backend: &mut B) {
    for margin in [Margin::default(), Margin::softmax()] {
        let mut head = ArcFace::new(backend, element, (5, 4), 3, margin, init(1)).unwrap();
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
    let f32 = Element::F32;
    let mut head = ArcFace::new(backend, f32, (5, 4), 3, Margin::default(), init(1)).unwrap();
    let x = upload(backend, &noise(12, 1));
    let refused = |labels: &[u32], head: &mut ArcFace<B>, backend: &mut B| {
        head.forward(backend, &x, labels).unwrap_err().to_string()
    };
    assert!(refused(&[0, 5], &mut head, backend).contains("label 5 (sample 1"));
    assert!(refused(&[], &mut head, backend).contains("0 samples"));
    assert!(refused(&[0; 4], &mut head, backend).contains("4 samples"));
    assert!(ArcFace::<B>::new(backend, f32, (0, 4), 3, Margin::default(), init(1)).is_err());
    assert!(
        ArcFace::<B>::new(
            backend,
            f32,
            (5, usize::MAX / 2),
            3,
            Margin::default(),
            init(1)
        )
        .is_err()
    );
    let mut normal = init(4);
    normal.distribution = Distribution::Normal(0.01);
    let head = ArcFace::<B>::new(backend, f32, (3000, 8), 3, Margin::default(), normal).unwrap();
    let weights = contents(backend, head.weights());
    let variance =
        weights.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>() / weights.len() as f64;
    assert!((variance.sqrt() / 0.01 - 1.0).abs() < 0.02);
    assert_ne!(weights[..8], weights[1024 * 8..1025 * 8]);
}
