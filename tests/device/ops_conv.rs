//! Convolution against naive f64 loops: all three directions, everything that can be pending, all epilogues.

use crate::oracles::{UNIT, assert_close, download, noise, poisoned, sum_bound, upload};
use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::{Conv2d, Padding, Window};
use arcface_cu::backend::{
    Activation, Backend, Close, Conv2dDgrad, Conv2dFprop, Conv2dWgrad, Epilogue, FilterAt,
    GradTarget, Pending, PendingGrad, View, bn, sums,
};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Identity,
    Relu,
    Relu6,
    PRelu,
}
const ACTS: [Act; 4] = [Act::Identity, Act::Relu, Act::Relu6, Act::PRelu];

/// Where the slopes begin in their buffer.
const SLOPES_AT: usize = 3;

/// A pending value on the host.
struct Value {
    raw: Vec<f32>,
    forward: Option<Vec<f32>>,
    act: Act,
    slopes: Vec<f32>,
    c: usize,
}

impl Value {
    fn new(pixels: usize, c: usize, affine: bool, act: Act, seed: u64) -> Self {
        // Wide enough that ReLU6 cuts on both sides.
        let raw = noise(pixels * c, seed).iter().map(|v| v * 3.0).collect();
        let forward = affine.then(|| {
            let mut forward = noise(bn::forward_len(c), seed + 1);
            for (i, v) in forward.iter_mut().enumerate() {
                *v = match i / c {
                    bn::SCALE => 1.5 + *v,
                    bn::SHIFT => 2.0 * *v + 0.5,
                    bn::RSTD => 1.2 + *v,
                    _ => *v,
                };
            }
            forward
        });
        Value {
            raw,
            forward,
            act,
            slopes: noise(c, seed + 2),
            c,
        }
    }

    /// Value before the activation, and the size of what was added up for it.
    fn before(&self, pixel: usize, c: usize) -> (f64, f64) {
        let raw = f64::from(self.raw[pixel * self.c + c]);
        match &self.forward {
            Some(f) => {
                let scaled = raw * f64::from(f[bn::SCALE * self.c + c]);
                let shift = f64::from(f[bn::SHIFT * self.c + c]);
                (scaled + shift, scaled.abs() + shift.abs())
            }
            None => (raw, raw.abs()),
        }
    }

    fn read(&self, pixel: usize, c: usize) -> (f64, f64) {
        let (v, size) = self.before(pixel, c);
        (activate(self.act, v, self.slopes[c]), size)
    }

    fn derivative(&self, pixel: usize, c: usize) -> f64 {
        let (v, _) = self.before(pixel, c);
        let inside = match self.act {
            Act::Identity => true,
            Act::Relu | Act::PRelu => v > 0.0,
            Act::Relu6 => v > 0.0 && v < 6.0,
        };
        match (inside, self.act) {
            (true, _) => 1.0,
            (false, Act::PRelu) => f64::from(self.slopes[c]),
            (false, _) => 0.0,
        }
    }
}

fn activate(act: Act, v: f64, slope: f32) -> f64 {
    match act {
        Act::Identity => v,
        Act::Relu => v.max(0.0),
        Act::Relu6 => v.clamp(0.0, 6.0),
        Act::PRelu if v > 0.0 => v,
        Act::PRelu => v * f64::from(slope),
    }
}

/// A pending value on the device.
struct DeviceValue<T> {
    raw: T,
    forward: Option<T>,
    act: Act,
    slopes: T,
}

fn upload_slopes<B: Backend>(b: &mut B, slopes: &[f32]) -> B::Buffer {
    let mut padded = vec![f32::NAN; SLOPES_AT];
    padded.extend_from_slice(slopes);
    upload(b, &padded)
}

fn activation<T>(act: Act, slopes: &T) -> Activation<View<'_, T>> {
    match act {
        Act::Identity => Activation::Identity,
        Act::Relu => Activation::Relu,
        Act::Relu6 => Activation::Relu6,
        Act::PRelu => Activation::PRelu(View {
            buffer: slopes,
            offset: SLOPES_AT,
        }),
    }
}

impl<T> DeviceValue<T> {
    fn new<B: Backend<Buffer = T>>(b: &mut B, value: &Value) -> Self {
        DeviceValue {
            raw: upload(b, &value.raw),
            forward: value.forward.as_ref().map(|f| upload(b, f)),
            act: value.act,
            slopes: upload_slopes(b, &value.slopes),
        }
    }

    fn pending(&self) -> Pending<'_, T> {
        Pending {
            raw: &self.raw,
            affine: self.forward.as_ref(),
            activation: activation(self.act, &self.slopes),
        }
    }
}

/// A pending gradient on the host.
struct Grad {
    g: Vec<f32>,
    batch_norm: Option<(Vec<f32>, Vec<f32>)>,
    k: usize,
}

impl Grad {
    fn new(pixels: usize, k: usize, batch_norm: bool, seed: u64) -> Self {
        Grad {
            g: noise(pixels * k, seed),
            batch_norm: batch_norm.then(|| {
                (
                    noise(pixels * k, seed + 1),
                    noise(bn::backward_len(k), seed + 2),
                )
            }),
            k,
        }
    }

    fn read(&self, pixel: usize, k: usize) -> (f64, f64) {
        let at = pixel * self.k + k;
        let g = f64::from(self.g[at]);
        match &self.batch_norm {
            Some((raw, coefficients)) => {
                let [a, b, c] = [0, 1, 2].map(|i| f64::from(coefficients[i * self.k + k]));
                let y = f64::from(raw[at]);
                (a * g + b * y + c, (a * g).abs() + (b * y).abs() + c.abs())
            }
            None => (g, g.abs()),
        }
    }
}

/// The device's copy of a pending gradient.
struct DeviceGrad<T> {
    g: T,
    batch_norm: Option<(T, T)>,
}

impl<T> DeviceGrad<T> {
    fn new<B: Backend<Buffer = T>>(b: &mut B, grad: &Grad) -> Self {
        DeviceGrad {
            g: upload(b, &grad.g),
            batch_norm: grad
                .batch_norm
                .as_ref()
                .map(|(raw, coefficients)| (upload(b, raw), upload(b, coefficients))),
        }
    }

    fn pending(&self) -> PendingGrad<'_, T> {
        PendingGrad {
            g: &self.g,
            batch_norm: self.batch_norm.as_ref().map(|(raw, k)| (raw, k)),
        }
    }
}

/// Calls `f(output pixel, input pixel, tap)` for every pair that the filter connects.
fn connections(geometry: &Conv2d, mut f: impl FnMut(usize, usize, usize)) {
    let w = &geometry.window;
    for n in 0..geometry.n {
        for (p, q) in (0..w.p).flat_map(|p| (0..w.q).map(move |q| (p, q))) {
            for (r, s) in (0..w.r).flat_map(|r| (0..w.s).map(move |s| (r, s))) {
                let (h, x) = (p * w.stride + r, q * w.stride + s);
                if h < w.pad.top || h - w.pad.top >= w.h || x < w.pad.left || x - w.pad.left >= w.w
                {
                    continue;
                }
                let input = (n * w.h + h - w.pad.top) * w.w + x - w.pad.left;
                f((n * w.p + p) * w.q + q, input, r * w.s + s);
            }
        }
    }
}

/// A filter in a slab of parameters: NaN around it, so that a read outside is seen.
fn slab(geometry: &Conv2d, bias: bool, seed: u64) -> (Vec<f32>, FilterAt) {
    let (k, len) = (geometry.k, geometry.filter_len());
    let at = FilterAt {
        weights: 5,
        bias: bias.then_some(5 + len + 2),
    };
    let mut params = vec![f32::NAN; 5 + len + 2 + k + 3];
    params[5..][..len].copy_from_slice(&noise(len, seed));
    if let Some(at) = at.bias {
        params[at..][..k].copy_from_slice(&noise(k, seed + 1));
    }
    (params, at)
}

/// y and the sum of absolute values behind each element.
fn fprop_oracle(
    geometry: &Conv2d,
    x: &Value,
    params: &[f32],
    at: FilterAt,
) -> (Vec<f64>, Vec<f64>) {
    let (c, k, taps) = (
        geometry.c,
        geometry.k,
        geometry.window.r * geometry.window.s,
    );
    let len = geometry.pixels_out() * k;
    let (mut y, mut size) = (vec![0.0; len], vec![0.0; len]);
    for i in 0..len {
        let bias = at.bias.map_or(0.0, |at| f64::from(params[at + i % k]));
        (y[i], size[i]) = (bias, bias.abs());
    }
    let mut window = vec![(0.0, 0.0); c];
    connections(geometry, |output, input, tap| {
        for (i, v) in window.iter_mut().enumerate() {
            *v = x.read(input, i);
        }
        for filter in 0..k {
            let w = &params[at.weights + (filter * taps + tap) * c..][..c];
            let (y, size) = (&mut y[output * k + filter], &mut size[output * k + filter]);
            for ((v, s), w) in window.iter().zip(w) {
                *y += v * f64::from(*w);
                *size += s * f64::from(w.abs());
            }
        }
    });
    (y, size)
}

fn dgrad_oracle(
    geometry: &Conv2d,
    dy: &Grad,
    params: &[f32],
    at: FilterAt,
) -> (Vec<f64>, Vec<f64>) {
    let (c, k, taps) = (
        geometry.c,
        geometry.k,
        geometry.window.r * geometry.window.s,
    );
    let len = geometry.pixels_in() * c;
    let (mut dx, mut size) = (vec![0.0; len], vec![0.0; len]);
    connections(geometry, |output, input, tap| {
        for filter in 0..k {
            let (g, s) = dy.read(output, filter);
            let w = &params[at.weights + (filter * taps + tap) * c..][..c];
            for (i, w) in w.iter().enumerate() {
                dx[input * c + i] += g * f64::from(*w);
                size[input * c + i] += s * f64::from(w.abs());
            }
        }
    });
    (dx, size)
}

/// dW, then dbias.
fn wgrad_oracle(geometry: &Conv2d, dy: &Grad, x: &Value) -> (Vec<f64>, Vec<f64>) {
    let (c, k, taps) = (
        geometry.c,
        geometry.k,
        geometry.window.r * geometry.window.s,
    );
    let len = geometry.filter_len();
    let (mut dw, mut size) = (vec![0.0; len + k], vec![0.0; len + k]);
    let mut window = vec![(0.0, 0.0); c];
    connections(geometry, |output, input, tap| {
        for (i, v) in window.iter_mut().enumerate() {
            *v = x.read(input, i);
        }
        for filter in 0..k {
            let (g, s) = dy.read(output, filter);
            let at = (filter * taps + tap) * c;
            for (i, (v, t)) in window.iter().enumerate() {
                dw[at + i] += g * v;
                size[at + i] += s * t;
            }
        }
    });
    for output in 0..geometry.pixels_out() {
        for filter in 0..k {
            let (g, s) = dy.read(output, filter);
            dw[len + filter] += g;
            size[len + filter] += s;
        }
    }
    (dw, size)
}

fn window(size: (usize, usize), taps: (usize, usize), stride: usize, pad: [usize; 4]) -> Window {
    let [top, bottom, left, right] = pad;
    let pad = Padding {
        top,
        bottom,
        left,
        right,
    };
    Window::new(size, taps, stride, pad).unwrap()
}

fn conv(n: usize, c: usize, k: usize, window: Window) -> Conv2d {
    Conv2d { n, c, k, window }
}

/// Shapes that meet every path: odd channels, all strides, tiles that begin inside rows and images, several chunks,
/// several blocks in each direction.
fn shapes() -> Vec<(&'static str, Conv2d)> {
    let same = [1; 4];
    vec![
        ("3x3", conv(2, 5, 7, window((9, 6), (3, 3), 1, same))),
        ("one image", conv(1, 4, 3, window((4, 5), (3, 3), 1, same))),
        (
            "3x3/2, Keras padding",
            conv(3, 13, 11, window((8, 11), (3, 3), 2, [0, 1, 1, 1])),
        ),
        (
            "3x3/2, odd padding",
            conv(2, 6, 9, window((9, 12), (3, 3), 2, [0, 2, 1, 0])),
        ),
        (
            "5x3/3",
            conv(2, 6, 9, window((10, 7), (5, 3), 3, [2, 1, 0, 2])),
        ),
        (
            "2x4",
            conv(2, 6, 9, window((7, 5), (2, 4), 1, [1, 0, 3, 2])),
        ),
        ("1x1", conv(3, 17, 50, window((7, 5), (1, 1), 1, [0; 4]))),
        (
            "1x1/2, odd",
            conv(2, 9, 10, window((7, 9), (1, 1), 2, [0; 4])),
        ),
        (
            "1x1/2, even",
            conv(2, 9, 10, window((6, 8), (1, 1), 2, [0; 4])),
        ),
        (
            "1x1/3 on 2x2",
            conv(3, 9, 10, window((2, 2), (1, 1), 3, [0; 4])),
        ),
        (
            "2x2/3: gaps",
            conv(2, 5, 6, window((9, 8), (2, 2), 3, [0; 4])),
        ),
        ("7x7/2", conv(2, 3, 8, window((13, 17), (7, 7), 2, [3; 4]))),
        (
            "7x7 over 3x4",
            conv(3, 5, 6, window((3, 4), (7, 7), 1, [6, 5, 4, 6])),
        ),
        ("linear", Conv2d::linear(5, 700, 130)),
        ("linear, one row", Conv2d::linear(1, 70, 33)),
        (
            "3x3, many tiles",
            conv(4, 24, 100, window((19, 23), (3, 3), 1, same)),
        ),
        (
            "3x3/2, many tiles",
            conv(5, 20, 33, window((31, 29), (3, 3), 2, same)),
        ),
        (
            "1x1/2, many tiles",
            conv(3, 20, 33, window((41, 29), (1, 1), 2, [0; 4])),
        ),
        (
            "1x1, many tiles",
            conv(3, 65, 150, window((23, 29), (1, 1), 1, [0; 4])),
        ),
        (
            "1x1, chunks of C",
            conv(1, 1300, 60, window((9, 9), (1, 1), 1, [0; 4])),
        ),
        (
            "1x1, chunks of K",
            conv(1, 60, 1300, window((9, 9), (1, 1), 1, [0; 4])),
        ),
        (
            "1x1/2, chunks",
            conv(1, 800, 790, window((9, 7), (1, 1), 2, [0; 4])),
        ),
        (
            "3x3, a tap a chunk",
            conv(2, 200, 140, window((6, 5), (3, 3), 1, same)),
        ),
        (
            "3x3/2, a tap a chunk",
            conv(2, 200, 390, window((7, 6), (3, 3), 2, same)),
        ),
        (
            "3x3, many whole images: Winograd on the CPU",
            conv(6, 40, 72, window((7, 6), (3, 3), 1, same)),
        ),
        (
            "the same with odd padding",
            conv(5, 48, 104, window((9, 11), (3, 3), 1, [2, 0, 0, 1])),
        ),
        (
            "3x3, parts and blocks",
            conv(2, 10, 200, window((25, 23), (3, 3), 1, same)),
        ),
    ]
}

fn check_fprop<B: Backend>(b: &mut B, what: &str, geometry: &Conv2d, x: &Value, bias: bool) {
    let what = &format!(
        "{what}, affine {}, {:?}, bias {bias}",
        x.forward.is_some(),
        x.act
    );
    let (params, at) = slab(geometry, bias, 11);
    let (expected, size) = fprop_oracle(geometry, x, &params, at);
    let terms = geometry.filter_len() / geometry.k;
    let bound = |i: usize| sum_bound(terms, size[i]);
    let (k, pixels) = (geometry.k, geometry.pixels_out());
    let (device, params) = (DeviceValue::new(b, x), upload(b, &params));

    let mut y = poisoned(b, pixels * k);
    b.conv2d_fprop(Conv2dFprop {
        geometry: *geometry,
        x: device.pending(),
        params: &params,
        filter: at,
        y: &mut y,
        epilogue: Epilogue::Raw,
    })
    .unwrap();
    let raw = download(b, &y);
    assert_close(&format!("y, {what}"), &raw, &expected, bound);

    let (mut y, mut moments) = (poisoned(b, pixels * k), poisoned(b, bn::moments_len(k)));
    let epilogue = Epilogue::Moments(&mut moments);
    b.conv2d_fprop(Conv2dFprop {
        geometry: *geometry,
        x: device.pending(),
        params: &params,
        filter: at,
        y: &mut y,
        epilogue,
    })
    .unwrap();
    assert_eq!(raw, download(b, &y), "y with moments, {what}");
    check_moments(what, &raw, &download(b, &moments));

    for (i, act) in ACTS.into_iter().enumerate() {
        let residual = (i % 2 == 1).then(|| noise(pixels * k, 71));
        let slopes = noise(k, 72);
        let after = |i: usize, v: f64| {
            let residual = residual.as_ref().map_or(0.0, |r| f64::from(r[i]));
            activate(act, v + residual, slopes[i % k])
        };
        let expected: Vec<f64> = expected
            .iter()
            .enumerate()
            .map(|(i, v)| after(i, *v))
            .collect();
        let device_residual = residual.as_ref().map(|r| upload(b, r));
        let slopes = upload_slopes(b, &slopes);
        let mut y = poisoned(b, pixels * k);
        let epilogue = Epilogue::Activate {
            residual: device_residual.as_ref(),
            activation: activation(act, &slopes),
        };
        b.conv2d_fprop(Conv2dFprop {
            geometry: *geometry,
            x: device.pending(),
            params: &params,
            filter: at,
            y: &mut y,
            epilogue,
        })
        .unwrap();
        let bound = |i: usize| sum_bound(terms, size[i] + 1.0);
        assert_close(
            &format!("{act:?} of y, {what}"),
            &download(b, &y),
            &expected,
            bound,
        );
    }
}

/// Moments against those of the very numbers that were written.
fn check_moments(what: &str, y: &[f32], moments: &[f32]) {
    let k = moments.len() / 2;
    let n = (y.len() / k) as f64;
    let column = |j: usize| y[j..].iter().step_by(k).map(|v| f64::from(*v));
    let mean: Vec<f64> = (0..k).map(|j| column(j).sum::<f64>() / n).collect();
    let size: Vec<f64> = (0..k)
        .map(|j| column(j).map(f64::abs).sum::<f64>() / n)
        .collect();
    let variance: Vec<f64> = (0..k)
        .map(|j| column(j).map(|v| (v - mean[j]).powi(2)).sum::<f64>() / n)
        .collect();
    assert_close(&format!("mean, {what}"), &moments[..k], &mean, |j| {
        16.0 * UNIT * size[j]
    });
    assert_close(
        &format!("variance, {what}"),
        &moments[k..],
        &variance,
        |j| {
            32.0 * UNIT * (variance[j] + size[j] * variance[j].sqrt())
                + (4.0 * UNIT * size[j]).powi(2)
        },
    );
}

fn check_dgrad<B: Backend>(b: &mut B, what: &str, geometry: &Conv2d, dy: &Grad, value: &Value) {
    let what = &format!(
        "{what}, batch norm {}, closed by affine {}, {:?}",
        dy.batch_norm.is_some(),
        value.forward.is_some(),
        value.act
    );
    let (params, at) = slab(geometry, false, 21);
    let (expected, size) = dgrad_oracle(geometry, dy, &params, at);
    let terms = geometry.window.r * geometry.window.s * geometry.k;
    let (c, len) = (geometry.c, expected.len());
    let (device, params) = (DeviceGrad::new(b, dy), upload(b, &params));

    let mut dx = poisoned(b, len);
    let target = GradTarget {
        g: &mut dx,
        accumulate: false,
        close: None,
    };
    b.conv2d_dgrad(Conv2dDgrad {
        geometry: *geometry,
        dy: device.pending(),
        params: &params,
        filter: at,
        dx: target,
    })
    .unwrap();
    let bound = |i: usize| sum_bound(terms, size[i]);
    assert_close(&format!("dx, {what}"), &download(b, &dx), &expected, bound);

    let before = noise(len, 33);
    let with = |i: usize| expected[i] + f64::from(before[i]);
    let mut dx = upload(b, &before);
    let target = GradTarget {
        g: &mut dx,
        accumulate: true,
        close: None,
    };
    b.conv2d_dgrad(Conv2dDgrad {
        geometry: *geometry,
        dy: device.pending(),
        params: &params,
        filter: at,
        dx: target,
    })
    .unwrap();
    let sum: Vec<f64> = (0..len).map(with).collect();
    let bound = |i: usize| sum_bound(terms, size[i] + f64::from(before[i].abs()));
    assert_close(
        &format!("accumulated dx, {what}"),
        &download(b, &dx),
        &sum,
        bound,
    );

    // Accumulated, then closed: every sum has its own bound, from what it adds up and from what its terms lost.
    let mut closed = vec![0.0; len];
    let (mut totals, mut sizes) = (vec![0.0; sums::len(c)], vec![0.0; sums::len(c)]);
    for i in 0..len {
        let (pixel, j) = (i / c, i % c);
        let (v, v_size) = value.before(pixel, j);
        closed[i] = sum[i] * value.derivative(pixel, j);
        let error = bound(i) / UNIT;
        let mut add = |which: usize, factor: f64, factor_size: f64, g: f64| {
            totals[which * c + j] += g * factor;
            sizes[which * c + j] += factor_size * (g.abs() + error);
        };
        add(sums::G, 1.0, 1.0, closed[i]);
        if let Some(f) = &value.forward {
            let [mean, rstd] = [bn::MEAN, bn::RSTD].map(|w| f64::from(f[w * c + j]));
            let raw = f64::from(value.raw[i]);
            let size = (raw.abs() + mean.abs()) * rstd;
            add(sums::G_NORMALISED, (raw - mean) * rstd, size, closed[i]);
        }
        if value.act == Act::PRelu && v <= 0.0 {
            add(sums::SLOPE, v, v_size, sum[i]);
        }
    }
    let closing = DeviceValue::new(b, value);
    let (mut dx, mut device_sums) = (upload(b, &before), poisoned(b, sums::len(c)));
    let target = GradTarget {
        g: &mut dx,
        accumulate: true,
        close: Some(Close {
            value: closing.pending(),
            sums: Some(&mut device_sums),
        }),
    };
    b.conv2d_dgrad(Conv2dDgrad {
        geometry: *geometry,
        dy: device.pending(),
        params: &params,
        filter: at,
        dx: target,
    })
    .unwrap();
    assert_close(
        &format!("closed dx, {what}"),
        &download(b, &dx),
        &closed,
        bound,
    );
    let mut found = download(b, &device_sums);
    if value.forward.is_none() {
        let unused = &mut found[sums::G_NORMALISED * c..][..c];
        assert!(unused.iter().all(|v| v.is_nan()), "written, {what}");
        unused.fill(0.0);
    }
    assert_close(&format!("sums, {what}"), &found, &totals, |i| {
        sum_bound(len / c, sizes[i])
    });

    let mut dx = upload(b, &before);
    let target = GradTarget {
        g: &mut dx,
        accumulate: true,
        close: Some(Close {
            value: closing.pending(),
            sums: None,
        }),
    };
    b.conv2d_dgrad(Conv2dDgrad {
        geometry: *geometry,
        dy: device.pending(),
        params: &params,
        filter: at,
        dx: target,
    })
    .unwrap();
    assert_close(
        &format!("closed without sums, {what}"),
        &download(b, &dx),
        &closed,
        bound,
    );
}

fn check_wgrad<B: Backend>(b: &mut B, what: &str, geometry: &Conv2d, dy: &Grad, x: &Value) {
    let what = &format!(
        "{what}, batch norm {}, affine {}, {:?}",
        dy.batch_norm.is_some(),
        x.forward.is_some(),
        x.act
    );
    let (expected, size) = wgrad_oracle(geometry, dy, x);
    let (len, terms) = (geometry.filter_len(), geometry.pixels_out());
    let bound = |i: usize| sum_bound(terms, size[i]);
    let (dy, x) = (DeviceGrad::new(b, dy), DeviceValue::new(b, x));
    for bias in [false, true] {
        let (slab, at) = slab(geometry, bias, 31);
        let sentinel = vec![77.5; slab.len()];
        let mut grads = upload(b, &sentinel);
        b.conv2d_wgrad(Conv2dWgrad {
            geometry: *geometry,
            dy: dy.pending(),
            x: x.pending(),
            grads: &mut grads,
            filter: at,
        })
        .unwrap();
        let mut grads = download(b, &grads);
        let found = &mut grads[at.weights..][..len];
        assert_close(&format!("dw, {what}"), found, &expected[..len], bound);
        found.fill(77.5);
        if let Some(at) = at.bias {
            let found = &mut grads[at..][..geometry.k];
            let bound = |i: usize| bound(len + i);
            assert_close(&format!("dbias, {what}"), found, &expected[len..], bound);
            found.fill(77.5);
        }
        assert_eq!(grads, sentinel, "the slab around the filter, {what}");
    }
}

/// Every shape, with what is pending changing from shape to shape.
fn all_shapes<B: Backend>(b: &mut B) {
    for (i, (what, geometry)) in shapes().iter().enumerate() {
        let act = ACTS[i % 4];
        let (pixels_in, pixels_out) = (geometry.pixels_in(), geometry.pixels_out());
        for affine in [false, true] {
            let act = if affine { act } else { Act::Identity };
            let x = Value::new(pixels_in, geometry.c, affine, act, 41);
            let dy = Grad::new(pixels_out, geometry.k, affine, 51);
            check_fprop(b, what, geometry, &x, i % 2 == usize::from(affine));
            check_dgrad(b, what, geometry, &dy, &x);
            check_wgrad(b, what, geometry, &dy, &x);
        }
    }
}

/// Everything that can be pending, on one shape with padding and one without.
fn all_pending<B: Backend>(b: &mut B) {
    for geometry in [
        conv(2, 37, 9, window((7, 5), (3, 3), 2, [1, 0, 0, 1])),
        conv(2, 37, 9, window((7, 5), (1, 1), 1, [0; 4])),
    ] {
        for (act, affine, batch_norm) in ACTS
            .iter()
            .flat_map(|act| [(*act, false, true), (*act, true, false)])
        {
            let x = Value::new(geometry.pixels_in(), geometry.c, affine, act, 61);
            let dy = Grad::new(geometry.pixels_out(), geometry.k, batch_norm, 62);
            check_fprop(b, "pending", &geometry, &x, true);
            check_dgrad(b, "pending", &geometry, &dy, &x);
            check_wgrad(b, "pending", &geometry, &dy, &x);
        }
    }
}

/// Data far from zero, of which E[y^2] - E[y]^2 would keep no digit; tiles of different means.
fn moments_far_from_zero<B: Backend>(b: &mut B) {
    let geometry = conv(3, 8, 70, window((33, 27), (1, 1), 1, [0; 4]));
    let x = Value::new(geometry.pixels_in(), geometry.c, false, Act::Identity, 81);
    let (mut params, at) = slab(&geometry, true, 82);
    let bias = at.bias.unwrap();
    params[bias..][..geometry.k]
        .iter_mut()
        .for_each(|v| *v = 1e3 * (1.5 + *v));
    let (device, params) = (DeviceValue::new(b, &x), upload(b, &params));
    let mut y = poisoned(b, geometry.pixels_out() * geometry.k);
    let mut moments = poisoned(b, bn::moments_len(geometry.k));
    let epilogue = Epilogue::Moments(&mut moments);
    b.conv2d_fprop(Conv2dFprop {
        geometry,
        x: device.pending(),
        params: &params,
        filter: at,
        y: &mut y,
        epilogue,
    })
    .unwrap();
    let (y, moments) = (download(b, &y), download(b, &moments));
    check_moments("far from zero", &y, &moments);
}

/// A number that is not a number reaches every output whose window holds it, through ReLU too; where `alone`, no other.
fn nan_is_found<B: Backend>(b: &mut B, geometry: &Conv2d, affine: bool, alone: bool) {
    for act in ACTS {
        let before = if affine { act } else { Act::Identity };
        let mut x = Value::new(geometry.pixels_in(), geometry.c, affine, before, 91);
        let bad = 17;
        x.raw[bad * geometry.c + 3] = f32::NAN;
        let (params, at) = slab(geometry, true, 92);
        let (device, params) = (DeviceValue::new(b, &x), upload(b, &params));
        let slopes = upload_slopes(b, &noise(geometry.k, 93));
        let mut y = poisoned(b, geometry.pixels_out() * geometry.k);
        let epilogue = Epilogue::Activate {
            residual: None,
            activation: activation(act, &slopes),
        };
        b.conv2d_fprop(Conv2dFprop {
            geometry: *geometry,
            x: device.pending(),
            params: &params,
            filter: at,
            y: &mut y,
            epilogue,
        })
        .unwrap();
        let mut meets = vec![false; geometry.pixels_out()];
        connections(geometry, |output, input, _| meets[output] |= input == bad);
        for (i, v) in download(b, &y).iter().enumerate() {
            let expected = meets[i / geometry.k];
            assert!(
                v.is_nan() == expected || (v.is_nan() && !alone),
                "{act:?}: element {i} is {v}"
            );
        }
    }
}

/// Directly, and by Winograd's algorithm where a backend has it: there it reaches its neighbours too.
fn nan_is_found_everywhere<B: Backend>(b: &mut B) {
    let geometry = conv(2, 11, 10, window((6, 7), (3, 3), 1, [1; 4]));
    nan_is_found(b, &geometry, true, true);
    let geometry = conv(6, 40, 72, window((7, 6), (3, 3), 1, [1; 4]));
    nan_is_found(b, &geometry, false, false);
}

on_each_device! {
    convolution_agrees_with_the_oracle_on_every_shape: all_shapes,
    everything_pending_is_applied: all_pending,
    moments_are_exact_far_from_zero: moments_far_from_zero,
    nan_reaches_the_output: nan_is_found_everywhere,
}

/// The same bits on any number of threads, and again on a backend that has been used before.
#[test]
fn bits_do_not_depend_on_threads() {
    let run = |b: &mut Cpu, geometry: &Conv2d| {
        let x = Value::new(geometry.pixels_in(), geometry.c, true, Act::PRelu, 101);
        let dy = Grad::new(geometry.pixels_out(), geometry.k, true, 102);
        let (params, at) = slab(geometry, true, 103);
        let (x, dy) = (DeviceValue::new(b, &x), DeviceGrad::new(b, &dy));
        let params = upload(b, &params);
        let (c, k) = (geometry.c, geometry.k);
        let mut y = poisoned(b, geometry.pixels_out() * k);
        let mut moments = poisoned(b, bn::moments_len(k));
        let epilogue = Epilogue::Moments(&mut moments);
        b.conv2d_fprop(Conv2dFprop {
            geometry: *geometry,
            x: x.pending(),
            params: &params,
            filter: at,
            y: &mut y,
            epilogue,
        })
        .unwrap();
        let (mut dx, mut channel_sums) = (
            poisoned(b, geometry.pixels_in() * c),
            poisoned(b, sums::len(c)),
        );
        let target = GradTarget {
            g: &mut dx,
            accumulate: false,
            close: Some(Close {
                value: x.pending(),
                sums: Some(&mut channel_sums),
            }),
        };
        b.conv2d_dgrad(Conv2dDgrad {
            geometry: *geometry,
            dy: dy.pending(),
            params: &params,
            filter: at,
            dx: target,
        })
        .unwrap();
        let mut grads = upload(b, &vec![0.0; params.len()]);
        b.conv2d_wgrad(Conv2dWgrad {
            geometry: *geometry,
            dy: dy.pending(),
            x: x.pending(),
            grads: &mut grads,
            filter: at,
        })
        .unwrap();
        [y, moments, dx, channel_sums, grads]
            .iter()
            .flat_map(|buffer| download(b, buffer))
            .map(f32::to_bits)
            .collect::<Vec<u32>>()
    };
    let mut used = Cpu::new();
    for (what, geometry) in shapes() {
        let expected = run(&mut Cpu::new(), &geometry);
        assert!(
            run(&mut used, &geometry) == expected,
            "{what}, used backend: other bits"
        );
        for threads in [1, 2, 3] {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            let found = pool.install(|| run(&mut Cpu::new(), &geometry));
            assert!(found == expected, "{what}, {threads} threads: other bits");
        }
    }
}
