//! Batch norm, addition, pooling, dropout and the input transform against naive f64 loops.

use crate::oracles::backend::uniform;
use crate::oracles::check::{
    assert_bits_depend_on_the_case_alone, check, check_given, results, roundings,
};
use crate::oracles::number::Number;
use crate::oracles::{UNIT, assert_close, download, noise, poisoned, sum_bound, upload};
use crate::rig::batch_norm::{Bprop, Fprop, Moments, Norm};
use crate::rig::conv::window;
use crate::rig::pending::{ACTIVATIONS, Behind, Sums, To};
use crate::rig::pool::{Max, MaxDgrad, Mean, MeanDgrad};
use crate::rig::rows::{Add, Finish, PassOn};
use crate::rig::{Given, dropout, input_transform};
use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::{GlobalPool, PerChannel, Rows};
use arcface_cu::backend::{
    Activation, AddDgrad, Backend, BatchNormAt, BatchNormBprop, BatchNormFprop, BatchNormMoments,
    Close, CloseGrad, Dropout, GradTarget, PReluBprop, Pending, PendingGrad, View,
};

/// (pixels, channels): channel tails, one pixel, one channel, several blocks and tiles.
const SHAPES: [Rows; 8] = [
    rows(1, 5),
    rows(7, 1),
    rows(33, 3),
    rows(130, 17),
    rows(49, 64),
    rows(1000, 40),
    rows(5001, 3),
    rows(300, 600),
];

const fn rows(pixels: usize, c: usize) -> Rows {
    Rows { pixels, c }
}

/// Roundings of a gradient, and what sums over channels lose.
fn gradient(count: usize) -> impl Fn(&str, usize, Number) -> f64 {
    move |name, _, e| match name {
        "sums" => sum_bound(64, e.magnitude),
        _ => count as f64 * UNIT * e.magnitude,
    }
}

/// Targets without a finish, then closed by values with and without batch norm and with every activation.
fn targets() -> impl Iterator<Item = To> {
    let to = |accumulate, value: Option<Behind>| To {
        accumulate,
        close: value.map(|value| (value, Sums::Taken)),
    };
    let closing = move |a| {
        [
            to(false, Some(Behind::norm_and(a))),
            to(true, Some(Behind::only(a))),
        ]
    };
    let open = [to(false, None), to(true, None)];
    open.into_iter()
        .chain(ACTIVATIONS.into_iter().flat_map(closing))
}

fn add<B: Backend>(backend: &mut B) {
    let others = [
        None,
        Some(Behind::NOTHING),
        Some(Behind::norm_and(Activation::PRelu(()))),
        Some(Behind::only(Activation::Relu)),
    ];
    for rows in SHAPES {
        for (kind, activation) in ACTIVATIONS.into_iter().enumerate() {
            for b in others {
                let case = Add {
                    rows,
                    a: Behind {
                        affine: kind != 1,
                        activation,
                    },
                    b,
                    activation: ACTIVATIONS[(kind + 2) % 4],
                };
                // Five roundings: an operand's product, sum and slope; the sum of both operands; the slope of the result.
                check(backend, &case, roundings(5));
            }
        }
    }
}

/// `close_grad` is what remains when the gradient is already in place.
fn add_dgrad<B: Backend>(backend: &mut B) {
    for rows in SHAPES {
        for to in targets() {
            for batch_norm in [false, true] {
                let case = PassOn {
                    rows,
                    batch_norm,
                    to,
                };
                // The step through batch norm; then the sum with what is there, and the slope.
                check(backend, &case, gradient(if batch_norm { 5 } else { 2 }));
            }
        }
        for activation in ACTIVATIONS {
            for affine in [false, true] {
                let value = Behind { affine, activation };
                check(backend, &Finish { rows, value }, gradient(2));
            }
        }
    }
}

fn batch_norm<B: Backend>(backend: &mut B) {
    for (i, rows) in SHAPES.into_iter().enumerate() {
        for centre in [0.0, 1000.0] {
            let mean = |e: Number| 4.0 * UNIT * e.value.abs() + 20.0 * UNIT;
            check(backend, &Moments { rows, centre }, |_, i, e| {
                if i < rows.c {
                    return mean(e);
                }
                let centre = Number::from(centre);
                sum_bound(256, e.value) + mean(centre).powi(2)
            });
            let norm = Norm {
                rows,
                gamma: i % 2 == 0,
                beta: i % 3 != 0,
                epsilon: 1e-3,
                momentum: 0.75,
            };
            check(backend, &Fprop { norm, centre }, roundings(6));
            check(backend, &Bprop { norm }, roundings(8));
        }
    }
}

/// loss = sum of t act(bn(x)) in f64: its derivatives by central differences against moments, coefficients, close,
/// and the pending step through batch norm.
fn batch_norm_gradient<B: Backend>(backend: &mut B) {
    let rows = Rows { pixels: 23, c: 3 };
    let (c, len) = (rows.c, rows.len());
    let x: Vec<f32> = noise(len, 30).iter().map(|v| 2.0 * v + 0.7).collect();
    let t = noise(len, 31);
    // gamma, beta, slopes.
    let mut params = noise(3 * c, 32);
    params[..c].iter_mut().for_each(|v| *v = v.abs() + 0.5);
    let epsilon = 1e-3;
    let loss = |x: &[f64], params: &[f64]| -> f64 {
        let mut loss = 0.0;
        for k in 0..c {
            let channel: Vec<f64> = x[k..].iter().step_by(c).copied().collect();
            let n = channel.len() as f64;
            let mean = channel.iter().sum::<f64>() / n;
            let var = channel.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            for (i, v) in channel.iter().enumerate() {
                let v = params[k] * (v - mean) / (var + epsilon).sqrt() + params[c + k];
                loss += f64::from(t[i * c + k]) * (if v > 0.0 { v } else { params[2 * c + k] * v });
            }
        }
        loss
    };
    let wide = |values: &[f32]| -> Vec<f64> { values.iter().map(|v| f64::from(*v)).collect() };
    let (wide_x, wide_params) = (wide(&x), wide(&params));
    let difference = |values: &[f64], f: &dyn Fn(&[f64]) -> f64| -> Vec<f64> {
        (0..values.len())
            .map(|i| {
                let at = |h: f64| {
                    let mut values = values.to_vec();
                    values[i] += h;
                    f(&values)
                };
                (at(1e-5) - at(-1e-5)) / 2e-5
            })
            .collect()
    };
    let d_x = difference(&wide_x, &|x| loss(x, &wide_params));
    let d_params = difference(&wide_params, &|params| loss(&wide_x, params));

    let at = BatchNormAt {
        gamma: Some(0),
        beta: Some(c),
        statistics: 0,
        epsilon: epsilon as f32,
        momentum: 0.9,
    };
    let (x, mut g, params) = (
        upload(backend, &x),
        upload(backend, &t),
        upload(backend, &params),
    );
    let [
        mut moments,
        mut forward,
        mut sums,
        mut backward,
        mut grads,
        mut dx,
    ] = [2 * c, 4 * c, 3 * c, 3 * c, 3 * c, len].map(|len| poisoned(backend, len));
    let mut statistics = upload(backend, &vec![0.0; 2 * c]);
    backend
        .batch_norm_moments(BatchNormMoments {
            rows,
            x: &x,
            moments: &mut moments,
        })
        .unwrap();
    backend
        .batch_norm_fprop(BatchNormFprop {
            rows,
            moments: &moments,
            params: &params,
            at,
            statistics: &mut statistics,
            forward: &mut forward,
        })
        .unwrap();
    let close = Close {
        value: Pending {
            raw: &x,
            affine: Some(&forward),
            activation: Activation::PRelu(View {
                buffer: &params,
                offset: 2 * c,
            }),
        },
        sums: Some(&mut sums),
    };
    backend
        .close_grad(CloseGrad {
            rows,
            g: &mut g,
            close,
        })
        .unwrap();
    backend
        .batch_norm_bprop(BatchNormBprop {
            rows,
            sums: &sums,
            forward: &forward,
            grads: &mut grads,
            at,
            backward: &mut backward,
        })
        .unwrap();
    backend
        .prelu_bprop(PReluBprop {
            c,
            sums: &sums,
            grads: &mut grads,
            slope_at: 2 * c,
        })
        .unwrap();
    let dy = PendingGrad {
        g: &g,
        batch_norm: Some((&x, &backward)),
    };
    let target = GradTarget {
        g: &mut dx,
        accumulate: false,
        close: None,
    };
    backend
        .add_dgrad(AddDgrad {
            rows,
            dy,
            dx: target,
        })
        .unwrap();
    assert_close("d_x", &download(backend, &dx), &d_x, |_| 2e-6);
    assert_close("d_params", &download(backend, &grads), &d_params, |_| 5e-6);
}

/// Shapes with overlapping windows, with gaps, with padding on every side, and many images.
fn windows() -> Vec<PerChannel> {
    let case = |n, c, window| PerChannel { n, c, window };
    vec![
        case(2, 5, window((9, 12), (3, 3), 2, [1; 4])),
        case(1, 64, window((13, 8), (3, 3), 2, [0, 1, 0, 1])),
        case(3, 17, window((7, 6), (2, 3), 1, [1, 0, 2, 0])),
        case(2, 1, window((11, 10), (2, 2), 3, [0; 4])),
        case(70, 3, window((4, 5), (3, 3), 2, [1; 4])),
        // No two extents are equal.
        case(12, 17, window((9, 14), (4, 3), 2, [0, 3, 1, 0])),
        case(6, 20, window((11, 8), (3, 3), 2, [1, 1, 0, 1])),
    ]
}

fn max_pool<B: Backend>(backend: &mut B) {
    for geometry in windows() {
        for activation in ACTIVATIONS {
            // Activations with flat parts make ties.
            let x = Behind {
                affine: activation == Activation::PRelu(()),
                activation,
            };
            // Product, sum, slope.
            check(backend, &Max { geometry, x }, roundings(3));
            for to in targets() {
                let case = MaxDgrad { geometry, x, to };
                check(backend, &case, gradient(4));
            }
        }
    }
}

/// Equal values: the first pixel in row order gets the gradient. A NaN wins, and is seen.
fn max_pool_ties_and_nan<B: Backend>(backend: &mut B) {
    let geometry = PerChannel {
        n: 1,
        c: 2,
        window: window((2, 2), (2, 2), 1, [0; 4]),
    };
    let (nan, infinity) = (f32::NAN, f32::INFINITY);
    let given: Given<'_> = &[
        ("x", 0, &[1.0, 0.0, 3.0, nan, 3.0, infinity, 3.0, nan]),
        ("dy", 0, &[5.0, 7.0]),
    ];
    let (x, to) = (Behind::NOTHING, To::REPLACE);
    let (_, y) = results(backend, &Max { geometry, x }, &given[..1]).remove(0);
    assert_eq!(y[0], 3.0);
    assert!(y[1].is_nan());
    let (_, dx) = results(backend, &MaxDgrad { geometry, x, to }, given).remove(0);
    assert_eq!(dx, [0.0, 0.0, 5.0, 7.0, 0.0, 0.0, 0.0, 0.0]);
}

fn global_avg_pool<B: Backend>(backend: &mut B) {
    for (n, pixels, c) in [(1, 1, 3), (3, 49, 17), (2, 300, 40), (70, 5, 1)] {
        let geometry = GlobalPool { n, pixels, c };
        for (kind, activation) in ACTIVATIONS.into_iter().enumerate() {
            let x = Behind {
                affine: kind != 2,
                activation,
            };
            check(backend, &Mean { geometry, x }, |_, _, e| {
                sum_bound(pixels, e.magnitude)
            });
        }
        for to in targets() {
            check(backend, &MeanDgrad { geometry, to }, gradient(4));
        }
    }
}

fn dropout<B: Backend>(backend: &mut B) {
    for rows in SHAPES {
        for rate in [0.0f32, 0.4, 0.9] {
            let dropout = Dropout {
                rate,
                seed: 77,
                layer: 3,
                step: 5_000_000_000,
            };
            let x = Behind::norm_and(Activation::Relu6);
            // Product, sum, 1 / (1 - rate), product.
            let case = dropout::Fprop { rows, x, dropout };
            check(backend, &case, roundings(4));
            for to in targets() {
                let case = dropout::Dgrad { rows, dropout, to };
                check(backend, &case, gradient(5));
            }
            let kept = mask(backend, rows, dropout)
                .into_iter()
                .filter(|kept| *kept);
            let (n, keep) = (rows.len() as f64, 1.0 - f64::from(rate));
            let (kept, deviation) = (kept.count() as f64, (n * keep * (1.0 - keep)).sqrt());
            assert!(
                (kept - n * keep).abs() <= 4.0 * deviation + 1e-3,
                "{kept} of {n} kept"
            );
        }
    }
}

/// Which elements a device keeps.
fn mask<B: Backend>(backend: &mut B, rows: Rows, dropout: Dropout) -> Vec<bool> {
    let x = Behind::NOTHING;
    let case = dropout::Fprop { rows, x, dropout };
    let (_, y) = results(backend, &case, &[]).remove(0);
    y.into_iter().map(|y| y != 0.0).collect()
}

/// Masks of other seeds, layers, steps are other masks; the mask of an element does not depend on the shape.
fn dropout_masks_differ<B: Backend>(backend: &mut B) {
    let base = Dropout {
        rate: 0.5,
        seed: 1,
        layer: 1,
        step: 1,
    };
    let mut mask = |dropout: Dropout, c: usize| mask(backend, rows(4096 / c, c), dropout);
    let first = mask(base, 1);
    assert_eq!(first, mask(base, 64));
    for other in [
        Dropout { seed: 2, ..base },
        Dropout {
            seed: 1 + (1 << 32),
            ..base
        },
        Dropout { layer: 2, ..base },
        Dropout { step: 2, ..base },
        Dropout {
            step: 1 + (1 << 32),
            ..base
        },
    ] {
        let same = first
            .iter()
            .zip(mask(other, 1))
            .filter(|(a, b)| **a == *b)
            .count();
        assert!(
            (1800..2300).contains(&same),
            "{other:?}: {same} of 4096 agree"
        );
    }
}

/// The documented counter decides, and an element whose number is exactly the rate is kept.
fn dropout_follows_its_counter<B: Backend>(backend: &mut B) {
    let base = Dropout {
        rate: 0.0,
        seed: 0x0123_4567_89AB_CDEF,
        layer: 11,
        step: 0xFEDC_BA98_7654,
    };
    for c in [1, 5, 12] {
        let rows = rows(101, c);
        for at in [2, 77, 100] {
            let rate = uniform(&base, at);
            let dropout = Dropout { rate, ..base };
            for (i, kept) in mask(backend, rows, dropout).into_iter().enumerate() {
                assert_eq!(kept, uniform(&base, i) >= rate, "element {i} of {rows:?}");
            }
        }
    }
}

/// Derivatives where the activations bend, and where they are 0 and the gradient is not a number.
fn derivatives_at_the_kinks<B: Backend>(backend: &mut B) {
    let (nan, g) = (f32::NAN, 2.0);
    for (activation, before, after) in [
        (Activation::Identity, [g; 6], [g; 6]),
        (
            Activation::Relu,
            [g, g, g, nan, g, g],
            [0.0, 0.0, g, 0.0, g, g],
        ),
        (
            Activation::Relu6,
            [g, g, g, nan, nan, g],
            [0.0, 0.0, 0.0, 0.0, 0.0, g],
        ),
        (Activation::PRelu(()), [g; 6], [1.0, 1.0, g, 1.0, g, g]),
    ] {
        let case = Finish {
            rows: rows(6, 1),
            value: Behind::only(activation),
        };
        let given: Given<'_> = &[
            ("closed", 0, &[0.0, -0.0, 6.0, -1.0, 7.0, 3.0]),
            ("dx", 0, &before),
            ("closed slopes", 0, &[0.5]),
        ];
        let slopes = activation == Activation::PRelu(());
        let given = &given[..if slopes { 3 } else { 2 }];
        let [(_, found), (_, sums)] = &results(backend, &case, given)[..] else {
            unreachable!("a gradient and its sums")
        };
        assert_eq!(*found, after, "{activation:?}");
        assert_eq!(sums[0], after.iter().sum::<f32>(), "{activation:?}");
        assert_eq!(sums[2], if slopes { -2.0 } else { 0.0 });
    }
}

fn input_transform<B: Backend>(backend: &mut B) {
    for len in [0, 3, 48, 51, 3 * 12_345] {
        check(backend, &input_transform::Fprop { len }, |_, _, e| {
            2.0 * UNIT * (e.value.abs() + 1.0)
        });
    }
}

/// A NaN stays where it is seen: in the sums, the moments and the outputs.
fn nan_is_not_lost<B: Backend>(backend: &mut B) {
    let (rows, bad) = (rows(40, 5), 17 * 5 + 2);
    let nan = &[f32::NAN][..];
    let bound = |_: &str, _, e: Number| sum_bound(64, e.magnitude);
    let moments = Moments { rows, centre: 0.0 };
    check_given(backend, &moments, &[("x", bad, nan)], bound);
    for activation in ACTIVATIONS {
        let add = Add {
            rows,
            a: Behind::only(activation),
            b: None,
            activation: Activation::Relu6,
        };
        check_given(backend, &add, &[("a", bad, nan)], bound);
        let geometry = GlobalPool {
            n: 1,
            pixels: rows.pixels,
            c: rows.c,
        };
        let x = Behind::only(activation);
        check_given(backend, &Mean { geometry, x }, &[("x", bad, nan)], bound);
    }
    let value = Behind::NOTHING;
    check_given(backend, &Finish { rows, value }, &[("dx", bad, nan)], bound);
    // What is expected above is what is said: a NaN in one channel.
    let found = results(backend, &moments, &[("x", bad, nan)]).remove(0).1;
    let nans: Vec<bool> = found.iter().map(|v| v.is_nan()).collect();
    let only_2 = [false, false, true, false, false];
    assert_eq!(nans, [only_2, only_2].concat());
}

on_each_device! {
    addition_agrees_with_the_oracle: add,
    gradients_pass_and_close: add_dgrad,
    batch_norm_agrees_with_the_oracle: batch_norm,
    batch_norm_gradient_agrees_with_the_oracle: batch_norm_gradient,
    max_pool_agrees_with_the_oracle: max_pool,
    max_pool_takes_the_first_of_equals_and_nan: max_pool_ties_and_nan,
    global_avg_pool_agrees_with_the_oracle: global_avg_pool,
    dropout_draws_what_the_host_draws: dropout,
    dropout_masks_differ_by_step_and_layer: dropout_masks_differ,
    dropout_follows_its_documented_counter: dropout_follows_its_counter,
    derivatives_at_the_kinks_are_the_documented_ones: derivatives_at_the_kinks,
    pixels_are_transformed: input_transform,
    nan_reaches_the_output: nan_is_not_lost,
}

/// The operations with sums over tiles.
#[test]
fn bits_do_not_depend_on_threads() {
    let geometry = PerChannel {
        n: 9,
        c: 19,
        window: window((33, 31), (3, 3), 2, [1; 4]),
    };
    let (rows, value) = (
        rows(geometry.pixels_in(), 19),
        Behind::norm_and(Activation::PRelu(())),
    );
    let used = &mut Cpu::new();
    assert_bits_depend_on_the_case_alone(used, &Moments { rows, centre: 0.5 });
    assert_bits_depend_on_the_case_alone(used, &Finish { rows, value });
    for to in To::all(value) {
        let x = value;
        assert_bits_depend_on_the_case_alone(used, &MaxDgrad { geometry, x, to });
    }
}
