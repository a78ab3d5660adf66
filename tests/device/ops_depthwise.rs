//! Depthwise convolution against naive f64 loops: odd shapes, asymmetric padding, everything that can be pending.

use crate::oracles::{UNIT, assert_close, download, noise, poisoned, sum_bound, upload};
use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::{Padding, PerChannel, Window};
use arcface_cu::backend::{
    Activation, Backend, Close, DepthwiseDgrad, DepthwiseFprop, DepthwiseWgrad, Epilogue, FilterAt,
    GradTarget, Pending, PendingGrad, View,
};

fn geometry(
    (n, c): (usize, usize),
    (h, w): (usize, usize),
    (r, s): (usize, usize),
    stride: usize,
    [top, bottom, left, right]: [usize; 4],
) -> PerChannel {
    let pad = Padding {
        top,
        bottom,
        left,
        right,
    };
    PerChannel {
        n,
        c,
        window: Window::new((h, w), (r, s), stride, pad).unwrap(),
    }
}

/// Shapes that between them meet every branch: channel tails, blocks of 4, 2 and 1 pixels, windows without a fast
/// path, strides larger than the window, several images a tile and several tiles an image.
fn geometries() -> Vec<PerChannel> {
    let mut all = Vec::new();
    for c in [1, 3, 5, 17, 64] {
        all.push(geometry((2, c), (9, 12), (3, 3), 1, [1; 4]));
        all.push(geometry((3, c), (12, 7), (3, 3), 2, [0, 1, 0, 1]));
    }
    all.push(geometry((2, 48), (11, 13), (3, 3), 2, [1; 4]));
    all.push(geometry((2, 32), (7, 7), (7, 7), 1, [0; 4]));
    all.push(geometry((3, 130), (7, 7), (7, 7), 1, [0; 4]));
    all.push(geometry((1, 16), (40, 6), (3, 3), 1, [2, 0, 0, 2]));
    all.push(geometry((70, 4), (5, 4), (3, 3), 1, [1; 4]));
    all.push(geometry((2, 6), (8, 9), (2, 5), 1, [1, 0, 3, 2]));
    all.push(geometry((2, 20), (10, 11), (5, 4), 3, [2, 1, 0, 3]));
    all.push(geometry((2, 7), (10, 9), (2, 1), 3, [0; 4]));
    all.push(geometry((1, 3), (1, 1), (3, 3), 1, [1; 4]));
    all.push(geometry((2, 16), (6, 300), (3, 3), 1, [1; 4]));
    all
}

fn act(kind: usize, slope: f64, v: f64) -> f64 {
    match kind {
        0 => v,
        1 => v.max(0.0),
        2 => v.clamp(0.0, 6.0),
        _ => {
            if v > 0.0 {
                v
            } else {
                slope * v
            }
        }
    }
}

fn derivative(kind: usize, slope: f64, v: f64) -> f64 {
    match kind {
        0 => 1.0,
        1 => f64::from(v > 0.0),
        2 => f64::from(v > 0.0 && v < 6.0),
        _ => {
            if v > 0.0 {
                1.0
            } else {
                slope
            }
        }
    }
}

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

/// A pending value: raw numbers, forward coefficients (layout of `bn`), slopes from element 1 on, the kind of
/// activation, and what consumers should see, in f64.
struct Value {
    raw: Vec<f32>,
    forward: Option<Vec<f32>>,
    slopes: Vec<f32>,
    kind: usize,
    c: usize,
}

impl Value {
    fn new(pixels: usize, c: usize, kind: usize, affine: bool, seed: u64) -> Self {
        let forward = affine.then(|| {
            let mut forward = noise(4 * c, seed + 1);
            forward[..c].iter_mut().for_each(|v| *v = 4.0 * *v + 0.5);
            forward[3 * c..].iter_mut().for_each(|v| *v = v.abs() + 0.5);
            forward
        });
        let raw = noise(pixels * c, seed).iter().map(|v| 3.0 * v).collect();
        Value {
            raw,
            forward,
            // Some slopes are negative.
            slopes: noise(c + 1, seed + 2),
            kind,
            c,
        }
    }

    /// The value before its activation, and the size of what was added up for it: a backend may round the product or
    /// fuse it with the sum.
    fn before(&self, i: usize) -> (f64, f64) {
        let raw = f64::from(self.raw[i]);
        let channel = i % self.c;
        self.forward.as_ref().map_or((raw, raw.abs()), |f| {
            let (scaled, shift) = (raw * f64::from(f[channel]), f64::from(f[self.c + channel]));
            (scaled + shift, scaled.abs() + shift.abs())
        })
    }

    fn slope(&self, i: usize) -> f64 {
        f64::from(self.slopes[1 + i % self.c])
    }

    /// The activated values, with their sizes.
    fn activated(&self) -> Vec<(f64, f64)> {
        (0..self.raw.len())
            .map(|i| {
                let (v, size) = self.before(i);
                (act(self.kind, self.slope(i), v), size)
            })
            .collect()
    }
}

struct Device<T> {
    raw: T,
    forward: Option<T>,
    slopes: T,
    kind: usize,
}

impl<T> Device<T> {
    fn new<B: Backend<Buffer = T>>(backend: &mut B, value: &Value) -> Self {
        Device {
            raw: upload(backend, &value.raw),
            forward: value.forward.as_ref().map(|f| upload(backend, f)),
            slopes: upload(backend, &value.slopes),
            kind: value.kind,
        }
    }

    fn pending(&self) -> Pending<'_, T> {
        Pending {
            raw: &self.raw,
            affine: self.forward.as_ref(),
            activation: activation(self.kind, &self.slopes),
        }
    }
}

/// Calls `f` with (input pixel, output pixel, tap) of every product, pixels over the whole batch.
fn products(geometry: &PerChannel, mut f: impl FnMut(usize, usize, usize)) {
    let Window {
        h,
        w,
        r,
        s,
        stride,
        pad,
        p,
        q,
    } = geometry.window;
    for n in 0..geometry.n {
        for (p_at, q_at) in (0..p).flat_map(|p| (0..q).map(move |q| (p, q))) {
            for (r_at, s_at) in (0..r).flat_map(|r| (0..s).map(move |s| (r, s))) {
                let row = (p_at * stride + r_at).wrapping_sub(pad.top);
                let column = (q_at * stride + s_at).wrapping_sub(pad.left);
                if row < h && column < w {
                    f(
                        (n * h + row) * w + column,
                        (n * p + p_at) * q + q_at,
                        r_at * s + s_at,
                    );
                }
            }
        }
    }
}

fn fprop<B: Backend>(backend: &mut B) {
    for (case, geometry) in geometries().iter().enumerate() {
        let c = geometry.c;
        let filter = FilterAt {
            weights: 3,
            bias: (case % 2 == 0).then_some(3 + geometry.filter_len()),
        };
        let params = noise(3 + geometry.filter_len() + c, 9);
        let bias = |channel: usize| {
            filter
                .bias
                .map_or(0.0, |at| f64::from(params[at + channel]))
        };
        for kind in 0..4 {
            let x = Value::new(geometry.pixels_in(), c, kind, kind != case % 4, 10);
            let len = geometry.pixels_out() * c;
            let (mut y, mut size) = (vec![0.0; len], vec![0.0; len]);
            let values = x.activated();
            for i in 0..len {
                y[i] = bias(i % c);
                size[i] = y[i].abs();
            }
            products(geometry, |input, output, tap| {
                for channel in 0..c {
                    let weight = f64::from(params[3 + tap * c + channel]);
                    let (x, x_size) = values[input * c + channel];
                    y[output * c + channel] += weight * x;
                    size[output * c + channel] += weight.abs() * x_size;
                }
            });
            let what = format!("{geometry:?}, activation {kind}");
            let terms = geometry.window.r * geometry.window.s + 1;
            let x = Device::new(backend, &x);
            let params = upload(backend, &params);

            let mut out = poisoned(backend, len);
            backend
                .depthwise_fprop(DepthwiseFprop {
                    geometry: *geometry,
                    x: x.pending(),
                    params: &params,
                    filter,
                    y: &mut out,
                    epilogue: Epilogue::Raw,
                })
                .unwrap();
            let plain = download(backend, &out);
            assert_close(&what, &plain, &y, |i| sum_bound(terms, size[i]));

            let (mut out, mut moments) = (poisoned(backend, len), poisoned(backend, 2 * c));
            backend
                .depthwise_fprop(DepthwiseFprop {
                    geometry: *geometry,
                    x: x.pending(),
                    params: &params,
                    filter,
                    y: &mut out,
                    epilogue: Epilogue::Moments(&mut moments),
                })
                .unwrap();
            assert_eq!(download(backend, &out), plain, "{what}: moments change y");
            check_moments(&what, &plain, &download(backend, &moments), c);

            let residual = noise(len, 12);
            let slopes = noise(c + 1, 13);
            let expected: Vec<f64> = (0..len)
                .map(|i| {
                    let v = plain[i] + if kind % 2 == 0 { residual[i] } else { 0.0 };
                    act(kind, f64::from(slopes[1 + i % c]), f64::from(v))
                })
                .collect();
            let (residual, slopes) = (upload(backend, &residual), upload(backend, &slopes));
            backend
                .depthwise_fprop(DepthwiseFprop {
                    geometry: *geometry,
                    x: x.pending(),
                    params: &params,
                    filter,
                    y: &mut out,
                    epilogue: Epilogue::Activate {
                        residual: (kind % 2 == 0).then_some(&residual),
                        activation: activation(kind, &slopes),
                    },
                })
                .unwrap();
            let activated = download(backend, &out);
            assert_close(&what, &activated, &expected, |i| UNIT * expected[i].abs());
        }
    }
}

fn check_moments(what: &str, y: &[f32], moments: &[f32], c: usize) {
    let pixels = (y.len() / c) as f64;
    let mean = |channel: usize, f: &dyn Fn(f64) -> f64| -> f64 {
        y[channel..]
            .iter()
            .step_by(c)
            .map(|v| f(f64::from(*v)))
            .sum::<f64>()
            / pixels
    };
    let means: Vec<f64> = (0..c).map(|k| mean(k, &|v| v)).collect();
    let variances: Vec<f64> = (0..c)
        .map(|k| mean(k, &|v| (v - means[k]).powi(2)))
        .collect();
    let size = |k: usize| means[k].abs() + variances[k].sqrt();
    assert_close(&format!("{what}: mean"), &moments[..c], &means, |k| {
        sum_bound(64, size(k))
    });
    assert_close(
        &format!("{what}: variance"),
        &moments[c..],
        &variances,
        |k| sum_bound(256, variances[k]) + (8.0 * UNIT * means[k]).powi(2),
    );
}

/// A pending gradient and what it stands for.
struct Gradient {
    g: Vec<f32>,
    batch_norm: Option<(Vec<f32>, Vec<f32>)>,
    value: Vec<f64>,
}

impl Gradient {
    fn new(pixels: usize, c: usize, batch_norm: bool, seed: u64) -> Self {
        let g = noise(pixels * c, seed);
        let batch_norm = batch_norm.then(|| (noise(pixels * c, seed + 1), noise(3 * c, seed + 2)));
        let value = (0..g.len())
            .map(|i| {
                let g = f64::from(g[i]);
                batch_norm.as_ref().map_or(g, |(raw, k)| {
                    let k = |which: usize| f64::from(k[which * c + i % c]);
                    k(0) * g + k(1) * f64::from(raw[i]) + k(2)
                })
            })
            .collect();
        Gradient {
            g,
            batch_norm,
            value,
        }
    }
}

/// The gradient on the device, as arguments: g, raw, coefficients.
fn pending_grad<'a, T>(g: &'a T, batch_norm: &'a Option<(T, T)>) -> PendingGrad<'a, T> {
    PendingGrad {
        g,
        batch_norm: batch_norm.as_ref().map(|(raw, k)| (raw, k)),
    }
}

type OnDevice<T> = (T, Option<(T, T)>);

fn upload_grad<B: Backend>(backend: &mut B, dy: &Gradient) -> OnDevice<B::Buffer> {
    let g = upload(backend, &dy.g);
    let batch_norm = dy
        .batch_norm
        .as_ref()
        .map(|(raw, k)| (upload(backend, raw), upload(backend, k)));
    (g, batch_norm)
}

fn dgrad<B: Backend>(backend: &mut B) {
    for (case, geometry) in geometries().iter().enumerate() {
        let c = geometry.c;
        let filter = FilterAt {
            weights: 2,
            bias: None,
        };
        let params = noise(2 + geometry.filter_len(), 20);
        let len = geometry.pixels_in() * c;
        for kind in 0..4 {
            let dy = Gradient::new(geometry.pixels_out(), c, kind % 2 == case % 2, 21);
            let before = noise(len, 24);
            let x = Value::new(geometry.pixels_in(), c, kind, kind != case % 4, 25);
            for (accumulate, close) in [(false, false), (true, false), (false, true), (true, true)]
            {
                let mut dx: Vec<f64> = (0..len)
                    .map(|i| {
                        if accumulate {
                            f64::from(before[i])
                        } else {
                            0.0
                        }
                    })
                    .collect();
                let mut size: Vec<f64> = dx.iter().map(|v| v.abs()).collect();
                products(geometry, |input, output, tap| {
                    for channel in 0..c {
                        let weight = f64::from(params[2 + tap * c + channel]);
                        let product = weight * dy.value[output * c + channel];
                        dx[input * c + channel] += product;
                        size[input * c + channel] += product.abs() + weight.abs();
                    }
                });
                let what = format!(
                    "{geometry:?}, activation {kind}, accumulate {accumulate}, close {close}"
                );
                let (g, batch_norm) = upload_grad(backend, &dy);
                let device_x = Device::new(backend, &x);
                let device_params = upload(backend, &params);
                let mut out = if accumulate {
                    upload(backend, &before)
                } else {
                    poisoned(backend, len)
                };
                let mut sums = poisoned(backend, 3 * c);
                backend
                    .depthwise_dgrad(DepthwiseDgrad {
                        geometry: *geometry,
                        dy: pending_grad(&g, &batch_norm),
                        params: &device_params,
                        filter,
                        dx: GradTarget {
                            g: &mut out,
                            accumulate,
                            close: close.then(|| Close {
                                value: device_x.pending(),
                                sums: Some(&mut sums),
                            }),
                        },
                    })
                    .unwrap();
                let terms = 2 * geometry.window.r * geometry.window.s + 1;
                let mut expected = [vec![0.0; c], vec![0.0; c], vec![0.0; c]];
                let mut magnitude = expected.clone();
                if close {
                    for i in 0..len {
                        let ((v, v_size), channel) = (x.before(i), i % c);
                        if v <= 0.0 && kind == 3 {
                            expected[2][channel] += v * dx[i];
                            magnitude[2][channel] += v_size * size[i];
                        }
                        let factor = derivative(kind, x.slope(i), v);
                        dx[i] *= factor;
                        size[i] *= factor.abs();
                        expected[0][channel] += dx[i];
                        magnitude[0][channel] += size[i];
                        if let Some(f) = &x.forward {
                            let (mean, rstd) = (f[2 * c + channel], f[3 * c + channel]);
                            let y = f64::from(x.raw[i] - mean) * f64::from(rstd);
                            expected[1][channel] += dx[i] * y;
                            magnitude[1][channel] += size[i] * y.abs();
                        }
                    }
                }
                let actual = download(backend, &out);
                assert_close(&what, &actual, &dx, |i| sum_bound(terms, size[i]));
                let sums = download(backend, &sums);
                for which in 0..3 {
                    let sums = &sums[which * c..][..c];
                    if !close || (which == 1 && x.forward.is_none()) {
                        assert!(
                            sums.iter().all(|v| v.is_nan()),
                            "{what}: sums {which} written"
                        );
                    } else {
                        assert_close(
                            &format!("{what}, sums {which}"),
                            sums,
                            &expected[which],
                            |k| sum_bound(terms + 64, magnitude[which][k]),
                        );
                    }
                }
            }
        }
    }
}

fn wgrad<B: Backend>(backend: &mut B) {
    for (case, geometry) in geometries().iter().enumerate() {
        let c = geometry.c;
        let filter = FilterAt {
            weights: 2,
            bias: (case % 2 == 0).then_some(3 + geometry.filter_len()),
        };
        let len = 3 + geometry.filter_len() + c;
        for kind in 0..4 {
            let dy = Gradient::new(geometry.pixels_out(), c, kind % 2 == case % 2, 30);
            let x = Value::new(geometry.pixels_in(), c, kind, kind != case % 4, 33);
            let values = x.activated();
            // What the operation does not own stays.
            let mut dw = vec![-7.0; len];
            dw[2..][..geometry.filter_len()].fill(0.0);
            let mut size = vec![0.0; len];
            products(geometry, |input, output, tap| {
                for channel in 0..c {
                    let (x, x_size) = values[input * c + channel];
                    let dy = dy.value[output * c + channel];
                    dw[2 + tap * c + channel] += x * dy;
                    size[2 + tap * c + channel] += x_size * (dy.abs() + 1.0);
                }
            });
            if let Some(at) = filter.bias {
                for channel in 0..c {
                    let dy = dy.value[channel..].iter().step_by(c);
                    dw[at + channel] = dy.clone().sum();
                    size[at + channel] = dy.map(|v| v.abs() + 1.0).sum();
                }
            }
            let (g, batch_norm) = upload_grad(backend, &dy);
            let x = Device::new(backend, &x);
            let mut grads = upload(backend, &vec![-7.0; len]);
            backend
                .depthwise_wgrad(DepthwiseWgrad {
                    geometry: *geometry,
                    dy: pending_grad(&g, &batch_norm),
                    x: x.pending(),
                    grads: &mut grads,
                    filter,
                })
                .unwrap();
            let actual = download(backend, &grads);
            let what = format!("{geometry:?}, activation {kind}");
            // Sums run over at most 32 tiles in f64 and a tile's pixels in f32.
            let terms = geometry.pixels_out().div_ceil(4) + 8;
            assert_close(&what, &actual, &dw, |i| sum_bound(terms, size[i]));
        }
    }
}

/// A padding pixel is zero after scale, shift and activation: with weights of one, zero input and a shift, the
/// output counts the pixels that are really there.
fn padding_stays_zero<B: Backend>(backend: &mut B) {
    let geometry = geometry((1, 2), (5, 4), (3, 3), 1, [1; 4]);
    let x = upload(backend, &[0.0; 40]);
    let forward = upload(backend, &[1.0, 1.0, 0.5, 0.5, 0.0, 0.0, 1.0, 1.0]);
    let params = upload(backend, &[1.0; 18]);
    let mut y = poisoned(backend, 40);
    let pending = Pending {
        raw: &x,
        affine: Some(&forward),
        activation: Activation::Relu,
    };
    let filter = FilterAt {
        weights: 0,
        bias: None,
    };
    backend
        .depthwise_fprop(DepthwiseFprop {
            geometry,
            x: pending,
            params: &params,
            filter,
            y: &mut y,
            epilogue: Epilogue::Raw,
        })
        .unwrap();
    let y = download(backend, &y);
    for (pixel, y) in y.chunks_exact(2).enumerate() {
        let (row, column) = (pixel / 4, pixel % 4);
        let inside = |at: usize, size: usize| if at == 0 || at + 1 == size { 2.0 } else { 3.0 };
        assert_eq!(y, [0.5 * inside(row, 5) * inside(column, 4); 2]);
    }
}

/// A NaN in the input reaches every output and every gradient that depends on it.
fn nan_is_not_lost<B: Backend>(backend: &mut B) {
    let geometry = geometry((1, 3), (6, 6), (3, 3), 1, [1; 4]);
    let mut x = noise(108, 40);
    x[(2 * 6 + 3) * 3 + 1] = f32::NAN;
    let slopes = upload(backend, &noise(4, 41));
    let x = upload(backend, &x);
    let params = upload(backend, &noise(27, 42));
    let filter = FilterAt {
        weights: 0,
        bias: None,
    };
    for kind in 0..4 {
        let pending = Pending {
            raw: &x,
            affine: None,
            activation: activation(kind, &slopes),
        };
        let mut y = poisoned(backend, 108);
        backend
            .depthwise_fprop(DepthwiseFprop {
                geometry,
                x: pending,
                params: &params,
                filter,
                y: &mut y,
                epilogue: Epilogue::Raw,
            })
            .unwrap();
        let y = download(backend, &y);
        assert_eq!(
            y.iter().filter(|v| v.is_nan()).count(),
            9,
            "activation {kind}"
        );
        let dy = upload(backend, &[1.0; 108]);
        let mut grads = upload(backend, &[0.0; 27]);
        backend
            .depthwise_wgrad(DepthwiseWgrad {
                geometry,
                dy: PendingGrad::plain(&dy),
                x: pending,
                grads: &mut grads,
                filter,
            })
            .unwrap();
        let grads = download(backend, &grads);
        assert_eq!(
            grads.iter().filter(|v| v.is_nan()).count(),
            9,
            "activation {kind}"
        );
    }
}

/// All results of all directions, one after the other.
fn everything<B: Backend>(backend: &mut B, geometry: &PerChannel) -> Vec<u32> {
    let c = geometry.c;
    let x = Value::new(geometry.pixels_in(), c, 3, true, 50);
    let x = Device::new(backend, &x);
    let params = upload(backend, &noise(geometry.filter_len() + c, 51));
    let filter = FilterAt {
        weights: 0,
        bias: Some(geometry.filter_len()),
    };
    let mut y = poisoned(backend, geometry.pixels_out() * c);
    let mut moments = poisoned(backend, 2 * c);
    let epilogue = Epilogue::Moments(&mut moments);
    backend
        .depthwise_fprop(DepthwiseFprop {
            geometry: *geometry,
            x: x.pending(),
            params: &params,
            filter,
            y: &mut y,
            epilogue,
        })
        .unwrap();
    let mut dx = poisoned(backend, geometry.pixels_in() * c);
    let mut sums = poisoned(backend, 3 * c);
    let target = GradTarget {
        g: &mut dx,
        accumulate: false,
        close: Some(Close {
            value: x.pending(),
            sums: Some(&mut sums),
        }),
    };
    backend
        .depthwise_dgrad(DepthwiseDgrad {
            geometry: *geometry,
            dy: PendingGrad::plain(&y),
            params: &params,
            filter,
            dx: target,
        })
        .unwrap();
    let mut grads = upload(backend, &vec![0.0; geometry.filter_len() + c]);
    backend
        .depthwise_wgrad(DepthwiseWgrad {
            geometry: *geometry,
            dy: PendingGrad::plain(&y),
            x: x.pending(),
            grads: &mut grads,
            filter,
        })
        .unwrap();
    [&y, &moments, &dx, &sums, &grads]
        .iter()
        .flat_map(|buffer| download(backend, buffer))
        .map(f32::to_bits)
        .collect()
}

on_each_device! {
    depthwise_fprop: fprop,
    depthwise_dgrad: dgrad,
    depthwise_wgrad: wgrad,
    depthwise_padding_stays_zero: padding_stays_zero,
    depthwise_nan_is_not_lost: nan_is_not_lost,
}

#[test]
fn depthwise_bits_do_not_depend_on_threads() {
    for geometry in [
        geometry((5, 17), (23, 14), (3, 3), 1, [1; 4]),
        geometry((3, 32), (30, 15), (3, 3), 2, [0, 1, 0, 1]),
        geometry((66, 8), (7, 7), (7, 7), 1, [0; 4]),
    ] {
        let results = [1, 2, 3].map(|threads| {
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
                .install(|| everything(&mut Cpu::new(), &geometry))
        });
        assert_eq!(results[0], results[1], "{geometry:?}");
        assert_eq!(results[0], results[2], "{geometry:?}");
    }
}
