//! Batch norm, addition, pooling, dropout and the input transform against naive f64 loops.

use crate::oracles::{UNIT, assert_close, download, noise, poisoned, sum_bound, upload};
use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::{GlobalPool, Padding, PerChannel, Rows, Window};
use arcface_cu::backend::{
    Activation, AddDgrad, AddFprop, Backend, BatchNormAt, BatchNormBprop, BatchNormFprop,
    BatchNormMoments, Close, CloseGrad, Dropout, DropoutDgrad, DropoutFprop, GlobalAvgPoolDgrad,
    GlobalAvgPoolFprop, GradTarget, InputTransform, InputTransformFprop, MaxPoolDgrad,
    MaxPoolFprop, PReluBprop, Pending, PendingGrad, View,
};
use arcface_cu::base::random::{Purpose, philox};

/// (pixels, channels): channel tails, one pixel, one channel, several blocks and tiles.
const SHAPES: [(usize, usize); 8] = [
    (1, 5),
    (7, 1),
    (33, 3),
    (130, 17),
    (49, 64),
    (1000, 40),
    (5001, 3),
    (300, 600),
];

fn activation<'a, T>(kind: usize, slopes: &'a T) -> Activation<View<'a, T>> {
    match kind {
        0 => Activation::Identity,
        1 => Activation::Relu,
        2 => Activation::Relu6,
        _ => Activation::PRelu(View {
            buffer: slopes,
            offset: 1,
        }),
    }
}

/// The activation and its derivative.
fn act(kind: usize, slope: f64, v: f64) -> (f64, f64) {
    match kind {
        0 => (v, 1.0),
        1 if v <= 0.0 => (0.0, 0.0),
        2 if v <= 0.0 => (0.0, 0.0),
        2 if v >= 6.0 => (6.0, 0.0),
        3 if v <= 0.0 => (slope * v, slope),
        _ => (v, 1.0),
    }
}

/// Whether the device's readers round scale raw + shift once, as a fused multiply-add does, or after each operation.
fn rounds_once<B: Backend>(backend: &mut B) -> bool {
    // (1 + 2^-12)^2 - (1 + 2^-11) = 2^-24, which rounding the product loses.
    let raw = upload(backend, &[1.0 + 1.0 / 4096.0]);
    let forward = upload(
        backend,
        &[1.0 + 1.0 / 4096.0, -1.0 - 1.0 / 2048.0, 0.0, 1.0],
    );
    let mut y = poisoned(backend, 1);
    let pending = Pending {
        raw: &raw,
        affine: Some(&forward),
        activation: Activation::Identity,
    };
    let rows = Rows { pixels: 1, c: 1 };
    backend
        .add_fprop(AddFprop {
            rows,
            a: pending,
            b: None,
            activation: Activation::Identity,
            y: &mut y,
        })
        .unwrap();
    let y = download(backend, &y)[0];
    assert!(y == 0.0 || y == 1.0 / 16_777_216.0, "{y}");
    y > 0.0
}

/// A pending value on the device, and what its consumers should see.
struct Value<T> {
    raw: T,
    forward: Option<T>,
    slopes: T,
    kind: usize,
    c: usize,
    rounds_once: bool,
    host: Host,
}

struct Host {
    raw: Vec<f32>,
    forward: Option<Vec<f32>>,
    slopes: Vec<f32>,
}

impl<T> Value<T> {
    fn new<B: Backend<Buffer = T>>(
        backend: &mut B,
        rows: Rows,
        kind: usize,
        affine: bool,
        seed: u64,
    ) -> Self {
        let raw: Vec<f32> = noise(rows.len(), seed).iter().map(|v| 3.0 * v).collect();
        let forward = affine.then(|| {
            let mut forward = noise(4 * rows.c, seed + 1);
            forward[..rows.c]
                .iter_mut()
                .for_each(|v| *v = 4.0 * *v + 0.5);
            forward
        });
        let slopes = noise(rows.c + 1, seed + 2);
        Value {
            raw: upload(backend, &raw),
            forward: forward.as_ref().map(|f| upload(backend, f)),
            slopes: upload(backend, &slopes),
            kind,
            c: rows.c,
            rounds_once: rounds_once(backend),
            host: Host {
                raw,
                forward,
                slopes,
            },
        }
    }

    fn pending(&self) -> Pending<'_, T> {
        Pending {
            raw: &self.raw,
            affine: self.forward.as_ref(),
            activation: activation(self.kind, &self.slopes),
        }
    }

    /// Before the activation, rounded as the readers round it: near a kink the sign must be theirs.
    fn before(&self, i: usize) -> f64 {
        let raw = self.host.raw[i];
        let c = i % self.c;
        f64::from(match &self.host.forward {
            Some(f) if self.rounds_once => raw.mul_add(f[c], f[self.c + c]),
            Some(f) => raw * f[c] + f[self.c + c],
            None => raw,
        })
    }

    /// How far the activated value may be from [`Value::at`]: a device may fuse the product and the sum, and PReLU
    /// rounds once more.
    fn rounding(&self, i: usize) -> f64 {
        let (raw, c) = (self.host.raw[i], i % self.c);
        let product = self.host.forward.as_ref().map_or(0.0, |f| raw * f[c]);
        UNIT * (f64::from(product).abs() + 2.0 * self.before(i).abs())
    }

    /// The activated value and the derivative.
    fn at(&self, i: usize) -> (f64, f64) {
        let slope = f64::from(self.host.slopes[1 + i % self.c]);
        act(self.kind, slope, self.before(i))
    }
}

/// Runs an operation that writes the gradient `contribution` with every setting of its target and checks what it
/// leaves: the gradient, closed or not, and the channel sums.
fn check_target<B: Backend>(
    backend: &mut B,
    what: &str,
    rows: Rows,
    (contribution, bound): (&[f64], f64),
    mut run: impl FnMut(&mut B, GradTarget<'_, B::Buffer>),
) {
    let c = rows.c;
    let before = noise(rows.len(), 90);
    for kind in 0..4 {
        for (accumulate, close, affine) in [
            (false, false, false),
            (true, false, false),
            (false, true, true),
            (true, true, false),
        ] {
            let value = Value::new(backend, rows, kind, affine, 91);
            let mut g = if accumulate {
                upload(backend, &before)
            } else {
                poisoned(backend, rows.len())
            };
            let mut sums = poisoned(backend, 3 * c);
            let target = GradTarget {
                g: &mut g,
                accumulate,
                close: close.then(|| Close {
                    value: value.pending(),
                    sums: Some(&mut sums),
                }),
            };
            run(backend, target);
            let mut expected = contribution.to_vec();
            let mut sum = vec![0.0; 3 * c];
            let mut size = vec![0.0; 3 * c];
            for (i, expected) in expected.iter_mut().enumerate() {
                if accumulate {
                    *expected += f64::from(before[i]);
                }
                if close {
                    let channel = i % c;
                    let v = value.before(i);
                    if kind == 3 && v <= 0.0 {
                        sum[2 * c + channel] += *expected * v;
                        size[2 * c + channel] += ((expected.abs() + bound / UNIT) * v).abs();
                    }
                    *expected *= value.at(i).1;
                    sum[channel] += *expected;
                    size[channel] += expected.abs() + bound / UNIT;
                    if let Some(f) = &value.host.forward {
                        let y = f64::from(value.host.raw[i] - f[2 * c + channel])
                            * f64::from(f[3 * c + channel]);
                        sum[c + channel] += *expected * y;
                        size[c + channel] += ((expected.abs() + bound / UNIT) * y).abs();
                    }
                }
            }
            let what = format!("{what}, {rows:?}, activation {kind}, {accumulate} {close}");
            let actual = download(backend, &g);
            assert_close(&what, &actual, &expected, |i| {
                4.0 * UNIT * expected[i].abs() + 2.0 * bound + 2.0 * UNIT
            });
            let actual = download(backend, &sums);
            for which in 0..3 {
                let span = which * c..(which + 1) * c;
                if !close || (which == 1 && value.forward.is_none()) {
                    assert!(
                        actual[span].iter().all(|v| v.is_nan()),
                        "{what}: sums {which}"
                    );
                } else {
                    let (sum, size) = (&sum[span.clone()], &size[span.clone()]);
                    assert_close(&format!("{what}: sums {which}"), &actual[span], sum, |k| {
                        sum_bound(64, size[k])
                    });
                }
            }
        }
    }
}

fn add<B: Backend>(backend: &mut B) {
    for (pixels, c) in SHAPES {
        let rows = Rows { pixels, c };
        for kind in 0..4 {
            let a = Value::new(backend, rows, kind, kind != 1, 1);
            for other in [None, Some((0, false)), Some((3, true)), Some((1, false))] {
                let b = other.map(|(kind, affine)| Value::new(backend, rows, kind, affine, 5));
                let outer = (kind + 2) % 4;
                let slopes = noise(c + 1, 8);
                let (mut expected, mut size) = (vec![0.0; rows.len()], vec![0.0; rows.len()]);
                for i in 0..rows.len() {
                    let rounding = a.rounding(i) + b.as_ref().map_or(0.0, |b| b.rounding(i));
                    let (a, b) = (a.at(i).0, b.as_ref().map_or(0.0, |b| b.at(i).0));
                    expected[i] = act(outer, f64::from(slopes[1 + i % c]), a + b).0;
                    size[i] = 4.0 * UNIT * (a.abs() + b.abs()) + rounding;
                }
                let slopes = upload(backend, &slopes);
                let mut y = poisoned(backend, rows.len());
                backend
                    .add_fprop(AddFprop {
                        rows,
                        a: a.pending(),
                        b: b.as_ref().map(Value::pending),
                        activation: activation(outer, &slopes),
                        y: &mut y,
                    })
                    .unwrap();
                let y = download(backend, &y);
                assert_close(&format!("{rows:?} {kind} {other:?}"), &y, &expected, |i| {
                    size[i]
                });
            }
        }
    }
}

fn add_dgrad<B: Backend>(backend: &mut B) {
    for (pixels, c) in SHAPES {
        let rows = Rows { pixels, c };
        let [g, raw] = [10, 11].map(|seed| noise(rows.len(), seed));
        let k = noise(3 * c, 12);
        let plain: Vec<f64> = g.iter().map(|v| f64::from(*v)).collect();
        let through: Vec<f64> = (0..rows.len())
            .map(|i| {
                let k = |which: usize| f64::from(k[which * c + i % c]);
                k(0) * plain[i] + k(1) * f64::from(raw[i]) + k(2)
            })
            .collect();
        let [g, raw, k] = [g, raw, k].map(|values| upload(backend, &values));
        check_target(backend, "plain", rows, (&plain, 0.0), |backend, dx| {
            backend
                .add_dgrad(AddDgrad {
                    rows,
                    dy: PendingGrad::plain(&g),
                    dx,
                })
                .unwrap();
        });
        let bound = (&through[..], 6.0 * UNIT);
        check_target(backend, "batch norm", rows, bound, |backend, dx| {
            let dy = PendingGrad {
                g: &g,
                batch_norm: Some((&raw, &k)),
            };
            backend.add_dgrad(AddDgrad { rows, dy, dx }).unwrap();
        });
        // `close_grad` is what remains when the gradient is already in place.
        check_target(backend, "close", rows, (&plain, 0.0), |backend, dx| {
            let GradTarget {
                g: target,
                accumulate,
                close,
            } = dx;
            let target_only = GradTarget {
                g: &mut *target,
                accumulate,
                close: None,
            };
            backend
                .add_dgrad(AddDgrad {
                    rows,
                    dy: PendingGrad::plain(&g),
                    dx: target_only,
                })
                .unwrap();
            if let Some(close) = close {
                backend
                    .close_grad(CloseGrad {
                        rows,
                        g: target,
                        close,
                    })
                    .unwrap();
            }
        });
    }
}

/// Mean and biased variance of a channel, in f64.
fn moments_of(x: &[f32], c: usize, channel: usize) -> (f64, f64) {
    let n = (x.len() / c) as f64;
    let values = x[channel..].iter().step_by(c).map(|v| f64::from(*v));
    let mean = values.clone().sum::<f64>() / n;
    (mean, values.map(|v| (v - mean).powi(2)).sum::<f64>() / n)
}

fn batch_norm<B: Backend>(backend: &mut B) {
    for (case, (pixels, c)) in SHAPES.into_iter().enumerate() {
        for offset in [0.0f32, 1000.0] {
            let rows = Rows { pixels, c };
            let mut x = noise(rows.len(), 20);
            x.iter_mut().for_each(|v| *v += offset);
            let what = format!("{rows:?}, offset {offset}");
            let device_x = upload(backend, &x);
            let mut moments = poisoned(backend, 2 * c);
            backend
                .batch_norm_moments(BatchNormMoments {
                    rows,
                    x: &device_x,
                    moments: &mut moments,
                })
                .unwrap();
            let actual = download(backend, &moments);
            let exact: Vec<(f64, f64)> = (0..c).map(|k| moments_of(&x, c, k)).collect();
            let [mean, var]: [Vec<f64>; 2] = [
                exact.iter().map(|e| e.0).collect(),
                exact.iter().map(|e| e.1).collect(),
            ];
            let mean_bound = |k: usize| 4.0 * UNIT * mean[k].abs() + 20.0 * UNIT;
            assert_close(&format!("{what}: mean"), &actual[..c], &mean, mean_bound);
            assert_close(&format!("{what}: variance"), &actual[c..], &var, |k| {
                sum_bound(256, var[k]) + mean_bound(k).powi(2)
            });

            let (mut at, epsilon) = (2, 1e-3f32);
            let mut place = |present: bool| {
                present.then(|| {
                    at += c;
                    at - c
                })
            };
            let at = BatchNormAt {
                gamma: place(case % 2 == 0),
                beta: place(case % 3 != 0),
                statistics: 1,
                epsilon,
                momentum: 0.75,
            };
            let params = noise(2 + 2 * c, 22);
            let statistics = noise(1 + 2 * c, 23);
            let gamma = |k: usize| at.gamma.map_or(1.0, |g| f64::from(params[g + k]));
            let beta = |k: usize| at.beta.map_or(0.0, |b| f64::from(params[b + k]));
            let given: Vec<(f64, f64)> = (0..c)
                .map(|k| (f64::from(actual[k]), f64::from(actual[c + k])))
                .collect();
            let rstd = |k: usize| 1.0 / (given[k].1 + f64::from(epsilon)).sqrt();
            let device_params = upload(backend, &params);
            let mut device_statistics = upload(backend, &statistics);
            let mut forward = poisoned(backend, 4 * c);
            backend
                .batch_norm_fprop(BatchNormFprop {
                    rows,
                    moments: &moments,
                    params: &device_params,
                    at,
                    statistics: &mut device_statistics,
                    forward: &mut forward,
                })
                .unwrap();
            let coefficients = download(backend, &forward);
            let expected: Vec<f64> = (0..4 * c)
                .map(|i| {
                    let k = i % c;
                    match i / c {
                        0 => gamma(k) * rstd(k),
                        1 => beta(k) - given[k].0 * gamma(k) * rstd(k),
                        2 => given[k].0,
                        _ => rstd(k),
                    }
                })
                .collect();
            assert_close(&format!("{what}: forward"), &coefficients, &expected, |i| {
                let k = i % c;
                let shift = if i / c == 1 {
                    beta(k).abs() + expected[i].abs()
                } else {
                    0.0
                };
                6.0 * UNIT * (expected[i].abs() + shift)
            });
            let unbias = if pixels > 1 {
                pixels as f64 / (pixels - 1) as f64
            } else {
                1.0
            };
            let running: Vec<f64> = (0..1 + 2 * c)
                .map(|i| {
                    let old = f64::from(statistics[i]);
                    match i {
                        0 => old,
                        i if i <= c => 0.75 * old + 0.25 * given[i - 1].0,
                        i => 0.75 * old + 0.25 * given[i - 1 - c].1 * unbias,
                    }
                })
                .collect();
            let actual = download(backend, &device_statistics);
            assert_close(&format!("{what}: running"), &actual, &running, |i| {
                4.0 * UNIT * (running[i].abs() + 1.0)
            });

            let channel_sums = noise(3 * c, 24);
            let device_sums = upload(backend, &channel_sums);
            let mut grads = upload(backend, &vec![-7.0; 2 + 3 * c]);
            let mut backward = poisoned(backend, 3 * c);
            backend
                .batch_norm_bprop(BatchNormBprop {
                    rows,
                    sums: &device_sums,
                    forward: &forward,
                    grads: &mut grads,
                    at,
                    backward: &mut backward,
                })
                .unwrap();
            let slope_at = 2 + 2 * c;
            backend
                .prelu_bprop(PReluBprop {
                    c,
                    sums: &device_sums,
                    grads: &mut grads,
                    slope_at,
                })
                .unwrap();
            let grads = download(backend, &grads);
            let mut expected = vec![-7.0; 2 + 3 * c];
            if let Some(gamma) = at.gamma {
                expected[gamma..][..c].copy_from_slice(&channel_sums[c..2 * c]);
            }
            if let Some(beta) = at.beta {
                expected[beta..][..c].copy_from_slice(&channel_sums[..c]);
            }
            expected[slope_at..].copy_from_slice(&channel_sums[2 * c..]);
            assert_eq!(grads, expected, "{what}");
            let f = |which: usize, k: usize| f64::from(coefficients[which * c + k]);
            let sum = |which: usize, k: usize| f64::from(channel_sums[which * c + k]);
            let n = pixels as f64;
            let b = |k: usize| -f(0, k) * f(3, k) * sum(1, k) / n;
            let expected: Vec<f64> = (0..3 * c)
                .map(|i| match (i / c, i % c) {
                    (0, k) => f(0, k),
                    (1, k) => b(k),
                    (_, k) => -f(0, k) * sum(0, k) / n - b(k) * f(2, k),
                })
                .collect();
            let actual = download(backend, &backward);
            assert_close(&format!("{what}: backward"), &actual, &expected, |i| {
                let k = i % c;
                let size = (f(0, k) * sum(0, k) / n).abs() + (b(k) * f(2, k)).abs();
                8.0 * UNIT * if i / c == 2 { size } else { expected[i].abs() }
            });
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
                loss += f64::from(t[i * c + k]) * act(3, params[2 * c + k], v).0;
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

fn windows() -> Vec<PerChannel> {
    let case = |n, c, size, window, stride, [top, bottom, left, right]: [usize; 4]| PerChannel {
        n,
        c,
        window: Window::new(
            size,
            window,
            stride,
            Padding {
                top,
                bottom,
                left,
                right,
            },
        )
        .unwrap(),
    };
    vec![
        case(2, 5, (9, 12), (3, 3), 2, [1; 4]),
        case(1, 64, (13, 8), (3, 3), 2, [0, 1, 0, 1]),
        case(3, 17, (7, 6), (2, 3), 1, [1, 0, 2, 0]),
        case(2, 1, (11, 10), (2, 2), 3, [0; 4]),
        case(70, 3, (4, 5), (3, 3), 2, [1; 4]),
    ]
}

/// For every output element: the largest value of its window and where the first such pixel is (element of x).
fn largest(geometry: &PerChannel, x: &[f64]) -> Vec<(f64, usize)> {
    let PerChannel { n, c, window: v } = *geometry;
    let mut all = Vec::new();
    for n in 0..n {
        for (p, q) in (0..v.p).flat_map(|p| (0..v.q).map(move |q| (p, q))) {
            for channel in 0..c {
                let mut best: Option<(f64, usize)> = None;
                for (r, s) in (0..v.r).flat_map(|r| (0..v.s).map(move |s| (r, s))) {
                    let row = (p * v.stride + r).wrapping_sub(v.pad.top);
                    let column = (q * v.stride + s).wrapping_sub(v.pad.left);
                    if row < v.h && column < v.w {
                        let at = ((n * v.h + row) * v.w + column) * c + channel;
                        if best.is_none_or(|(b, _)| x[at] > b || (x[at].is_nan() && !b.is_nan())) {
                            best = Some((x[at], at));
                        }
                    }
                }
                all.push(best.unwrap());
            }
        }
    }
    all
}

fn max_pool<B: Backend>(backend: &mut B) {
    for geometry in windows() {
        let rows = Rows {
            pixels: geometry.pixels_in(),
            c: geometry.c,
        };
        for kind in 0..4 {
            // Activations with flat parts make ties.
            let x = Value::new(backend, rows, kind, kind == 3, 40);
            let values: Vec<f64> = (0..rows.len()).map(|i| x.at(i).0).collect();
            let best = largest(&geometry, &values);
            let expected: Vec<f64> = best.iter().map(|b| b.0).collect();
            let mut y = poisoned(backend, best.len());
            backend
                .max_pool_fprop(MaxPoolFprop {
                    geometry,
                    x: x.pending(),
                    y: &mut y,
                })
                .unwrap();
            let what = format!("{geometry:?}, activation {kind}");
            assert_close(&what, &download(backend, &y), &expected, |i| {
                UNIT * expected[i].abs() + x.rounding(best[i].1)
            });
            let dy = noise(best.len(), 43);
            let mut dx = vec![0.0; rows.len()];
            for ((_, at), dy) in best.iter().zip(&dy) {
                dx[*at] += f64::from(*dy);
            }
            let dy = upload(backend, &dy);
            check_target(backend, &what, rows, (&dx, 6.0 * UNIT), |backend, dx| {
                backend
                    .max_pool_dgrad(MaxPoolDgrad {
                        geometry,
                        dy: &dy,
                        x: x.pending(),
                        dx,
                    })
                    .unwrap();
            });
        }
    }
}

/// Equal values: the first pixel in row order gets the gradient. A NaN wins, and is seen.
fn max_pool_ties_and_nan<B: Backend>(backend: &mut B) {
    let geometry = PerChannel {
        n: 1,
        c: 2,
        window: Window::new((2, 2), (2, 2), 1, Padding::default()).unwrap(),
    };
    let x = upload(
        backend,
        &[1.0, 0.0, 3.0, f32::NAN, 3.0, f32::INFINITY, 3.0, f32::NAN],
    );
    let dy = upload(backend, &[5.0, 7.0]);
    let (mut y, mut dx) = (poisoned(backend, 2), poisoned(backend, 8));
    backend
        .max_pool_fprop(MaxPoolFprop {
            geometry,
            x: Pending::plain(&x),
            y: &mut y,
        })
        .unwrap();
    let y = download(backend, &y);
    assert_eq!(y[0], 3.0);
    assert!(y[1].is_nan());
    let target = GradTarget {
        g: &mut dx,
        accumulate: false,
        close: None,
    };
    backend
        .max_pool_dgrad(MaxPoolDgrad {
            geometry,
            dy: &dy,
            x: Pending::plain(&x),
            dx: target,
        })
        .unwrap();
    assert_eq!(
        download(backend, &dx),
        [0.0, 0.0, 5.0, 7.0, 0.0, 0.0, 0.0, 0.0]
    );
}

fn global_avg_pool<B: Backend>(backend: &mut B) {
    for (n, pixels, c) in [(1, 1, 3), (3, 49, 17), (2, 300, 40), (70, 5, 1)] {
        let geometry = GlobalPool { n, pixels, c };
        let rows = Rows {
            pixels: n * pixels,
            c,
        };
        for kind in 0..4 {
            let x = Value::new(backend, rows, kind, kind != 2, 50);
            let (mut expected, mut size) = (vec![0.0; n * c], vec![0.0; n * c]);
            for i in 0..rows.len() {
                let at = i / c / pixels * c + i % c;
                expected[at] += x.at(i).0 / pixels as f64;
                size[at] += x.at(i).0.abs() / pixels as f64;
            }
            let mut y = poisoned(backend, n * c);
            backend
                .global_avg_pool_fprop(GlobalAvgPoolFprop {
                    geometry,
                    x: x.pending(),
                    y: &mut y,
                })
                .unwrap();
            let what = format!("{geometry:?}, activation {kind}");
            assert_close(&what, &download(backend, &y), &expected, |i| {
                sum_bound(pixels, size[i])
            });
        }
        let dy = noise(n * c, 53);
        let dx: Vec<f64> = (0..rows.len())
            .map(|i| f64::from(dy[i / c / pixels * c + i % c]) / pixels as f64)
            .collect();
        let dy = upload(backend, &dy);
        check_target(backend, "mean", rows, (&dx, 2.0 * UNIT), |backend, dx| {
            backend
                .global_avg_pool_dgrad(GlobalAvgPoolDgrad {
                    geometry,
                    dy: &dy,
                    dx,
                })
                .unwrap();
        });
    }
}

fn dropout<B: Backend>(backend: &mut B) {
    for (pixels, c) in SHAPES {
        let rows = Rows { pixels, c };
        for rate in [0.0f32, 0.4, 0.9] {
            let dropout = Dropout {
                rate,
                seed: 77,
                layer: 3,
                step: 5_000_000_000,
            };
            let x = Value::new(backend, rows, 2, true, 60);
            let ones = upload(backend, &vec![1.0; rows.len()]);
            let (mut y, mut mask) = (poisoned(backend, rows.len()), poisoned(backend, rows.len()));
            backend
                .dropout_fprop(DropoutFprop {
                    rows,
                    x: x.pending(),
                    dropout,
                    y: &mut y,
                })
                .unwrap();
            backend
                .dropout_fprop(DropoutFprop {
                    rows,
                    x: Pending::plain(&ones),
                    dropout,
                    y: &mut mask,
                })
                .unwrap();
            let mask: Vec<f64> = download(backend, &mask)
                .iter()
                .map(|v| f64::from(*v))
                .collect();
            let scale = 1.0 / (1.0 - f64::from(rate));
            assert!(
                mask.iter()
                    .all(|m| *m == 0.0 || (m - scale).abs() < 4.0 * UNIT * scale),
                "a mask holds 0 and 1 / (1 - rate)"
            );
            let kept = mask.iter().filter(|m| **m > 0.0).count() as f64;
            let (n, keep) = (rows.len() as f64, 1.0 - f64::from(rate));
            let deviation = (n * keep * (1.0 - keep)).sqrt();
            assert!(
                (kept - n * keep).abs() <= 4.0 * deviation + 1e-3,
                "{kept} of {n} kept"
            );
            let expected: Vec<f64> = mask
                .iter()
                .enumerate()
                .map(|(i, m)| m * x.at(i).0)
                .collect();
            let y = download(backend, &y);
            assert_close("dropout", &y, &expected, |i| {
                4.0 * UNIT * expected[i].abs() + mask[i] * x.rounding(i)
            });
            let dy = noise(rows.len(), 63);
            let dx: Vec<f64> = mask
                .iter()
                .zip(&dy)
                .map(|(m, d)| m * f64::from(*d))
                .collect();
            let dy = upload(backend, &dy);
            check_target(
                backend,
                "dropout",
                rows,
                (&dx, 40.0 * UNIT),
                |backend, dx| {
                    backend
                        .dropout_dgrad(DropoutDgrad {
                            rows,
                            dy: &dy,
                            dropout,
                            dx,
                        })
                        .unwrap();
                },
            );
        }
    }
}

/// Masks of other seeds, layers, steps are other masks; the mask of an element does not depend on the shape.
fn dropout_masks_differ<B: Backend>(backend: &mut B) {
    let base = Dropout {
        rate: 0.5,
        seed: 1,
        layer: 1,
        step: 1,
    };
    let mut mask = |dropout: Dropout, c: usize| {
        let rows = Rows {
            pixels: 4096 / c,
            c,
        };
        let ones = upload(backend, &[1.0; 4096]);
        let mut y = poisoned(backend, 4096);
        backend
            .dropout_fprop(DropoutFprop {
                rows,
                x: Pending::plain(&ones),
                dropout,
                y: &mut y,
            })
            .unwrap();
        download(backend, &y)
    };
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
    let uniform = |i: usize| {
        let counter = [
            (i / 4) as u32,
            256 * base.layer + Purpose::Dropout as u32,
            base.step as u32,
            (base.step >> 32) as u32,
        ];
        (philox(counter, [0x89AB_CDEF, 0x0123_4567])[i % 4] >> 8) as f32 / 16_777_216.0
    };
    for c in [1, 5, 12] {
        let rows = Rows { pixels: 101, c };
        let ones = upload(backend, &vec![1.0; rows.len()]);
        for at in [2, 77, 100] {
            let rate = uniform(at);
            let mut y = poisoned(backend, rows.len());
            backend
                .dropout_fprop(DropoutFprop {
                    rows,
                    x: Pending::plain(&ones),
                    dropout: Dropout { rate, ..base },
                    y: &mut y,
                })
                .unwrap();
            for (i, y) in download(backend, &y).into_iter().enumerate() {
                assert_eq!(y > 0.0, uniform(i) >= rate, "element {i} of {rows:?}");
            }
        }
    }
}

/// Derivatives where the activations bend, and where they are 0 and the gradient is not a number.
fn derivatives_at_the_kinks<B: Backend>(backend: &mut B) {
    let values = [0.0, -0.0, 6.0, -1.0, 7.0, 3.0];
    let slopes = [f32::NAN, 0.5];
    let (nan, g) = (f32::NAN, 2.0);
    let cases: [(usize, [f32; 6], [f32; 6]); 4] = [
        (0, [g; 6], [g; 6]),
        (1, [g, g, g, nan, g, g], [0.0, 0.0, g, 0.0, g, g]),
        (2, [g, g, g, nan, nan, g], [0.0, 0.0, 0.0, 0.0, 0.0, g]),
        (3, [g; 6], [1.0, 1.0, g, 1.0, g, g]),
    ];
    let slopes = upload(backend, &slopes);
    for (kind, before, after) in cases {
        let value = upload(backend, &values);
        let mut g = upload(backend, &before);
        let mut sums = poisoned(backend, 3);
        let rows = Rows { pixels: 6, c: 1 };
        let close = Close {
            value: Pending {
                raw: &value,
                affine: None,
                activation: activation(kind, &slopes),
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
        assert_eq!(download(backend, &g), after, "activation {kind}");
        let sums = download(backend, &sums);
        assert_eq!(sums[0], after.iter().sum::<f32>(), "activation {kind}");
        assert_eq!(sums[2], if kind == 3 { -2.0 } else { 0.0 });
    }
}

fn input_transform<B: Backend>(backend: &mut B) {
    let transform = InputTransform {
        scale: [1.0 / 255.0, 0.5, -2.0],
        shift: [-0.5, 0.25, 3.0],
    };
    for len in [0, 3, 48, 51, 3 * 12_345] {
        let pixels: Vec<u8> = (0..len).map(|i| (i * 7 + i / 256) as u8).collect();
        let expected: Vec<f64> = (0..len)
            .map(|i| {
                f64::from(pixels[i]) * f64::from(transform.scale[i % 3])
                    + f64::from(transform.shift[i % 3])
            })
            .collect();
        let mut y = poisoned(backend, len);
        backend
            .input_transform_fprop(InputTransformFprop {
                pixels: &pixels,
                transform: &transform,
                y: &mut y,
            })
            .unwrap();
        assert_close("pixels", &download(backend, &y), &expected, |i| {
            2.0 * UNIT * (expected[i].abs() + 1.0)
        });
    }
}

/// A NaN stays where it is seen: in the sums, the moments and the outputs.
fn nan_is_not_lost<B: Backend>(backend: &mut B) {
    let rows = Rows { pixels: 40, c: 5 };
    let mut x = noise(rows.len(), 70);
    x[17 * 5 + 2] = f32::NAN;
    let x = upload(backend, &x);
    let mut moments = poisoned(backend, 10);
    backend
        .batch_norm_moments(BatchNormMoments {
            rows,
            x: &x,
            moments: &mut moments,
        })
        .unwrap();
    let nans = |values: &[f32]| values.iter().map(|v| v.is_nan()).collect::<Vec<_>>();
    let only_2 = [false, false, true, false, false];
    assert_eq!(
        nans(&download(backend, &moments)),
        [only_2, only_2].concat()
    );
    for kind in 0..3 {
        let mut y = poisoned(backend, rows.len());
        let pending = Pending {
            raw: &x,
            affine: None,
            activation: activation(kind, &x),
        };
        backend
            .add_fprop(AddFprop {
                rows,
                a: pending,
                b: None,
                activation: Activation::Relu6,
                y: &mut y,
            })
            .unwrap();
        assert_eq!(
            download(backend, &y).iter().filter(|v| v.is_nan()).count(),
            1
        );
        let mut mean = poisoned(backend, 5);
        let geometry = GlobalPool {
            n: 1,
            pixels: 40,
            c: 5,
        };
        backend
            .global_avg_pool_fprop(GlobalAvgPoolFprop {
                geometry,
                x: pending,
                y: &mut mean,
            })
            .unwrap();
        assert_eq!(nans(&download(backend, &mean)), only_2);
    }
    let mut sums = upload(backend, &[0.0; 15]);
    let ones = upload(backend, &vec![1.0; rows.len()]);
    let (mut g, close) = (
        upload(backend, &vec![f32::NAN; rows.len()]),
        Close {
            value: Pending::plain(&ones),
            sums: Some(&mut sums),
        },
    );
    backend
        .close_grad(CloseGrad {
            rows,
            g: &mut g,
            close,
        })
        .unwrap();
    assert!(download(backend, &sums)[..5].iter().all(|v| v.is_nan()));
}

/// The operations with sums over tiles, on pools of several sizes.
fn everything<B: Backend>(backend: &mut B) -> Vec<u32> {
    let geometry = PerChannel {
        n: 9,
        c: 19,
        window: Window::new((33, 31), (3, 3), 2, Padding::same(1)).unwrap(),
    };
    let rows = Rows {
        pixels: geometry.pixels_in(),
        c: geometry.c,
    };
    let x = Value::new(backend, rows, 3, true, 80);
    let mut moments = poisoned(backend, 2 * rows.c);
    backend
        .batch_norm_moments(BatchNormMoments {
            rows,
            x: &x.raw,
            moments: &mut moments,
        })
        .unwrap();
    let mut results = download(backend, &moments);
    let dy = upload(backend, &noise(geometry.pixels_out() * rows.c, 83));
    let mut dx = upload(backend, &noise(rows.len(), 84));
    for accumulate in [true, false] {
        let mut sums = upload(backend, &vec![0.0; 3 * rows.c]);
        let target = GradTarget {
            g: &mut dx,
            accumulate,
            close: Some(Close {
                value: x.pending(),
                sums: Some(&mut sums),
            }),
        };
        backend
            .max_pool_dgrad(MaxPoolDgrad {
                geometry,
                dy: &dy,
                x: x.pending(),
                dx: target,
            })
            .unwrap();
        results.extend(download(backend, &sums));
        results.extend(download(backend, &dx));
    }
    let mut sums = upload(backend, &vec![0.0; 3 * rows.c]);
    let close = Close {
        value: x.pending(),
        sums: Some(&mut sums),
    };
    backend
        .close_grad(CloseGrad {
            rows,
            g: &mut dx,
            close,
        })
        .unwrap();
    results.extend(download(backend, &sums));
    results.into_iter().map(f32::to_bits).collect()
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

#[test]
fn bits_do_not_depend_on_threads() {
    let results = [1, 2, 3].map(|threads| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| everything(&mut Cpu::new()))
    });
    assert_eq!(results[0], results[1]);
    assert_eq!(results[0], results[2]);
}
