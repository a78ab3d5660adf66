//! Depthwise convolution at the shapes of MobileNetV2 and MobileFaceNet, batch 32, as a training step runs it: pending
//! input behind batch norm and ReLU6, moments on the way out; pending gradient, closed with its channel sums.
//!
//! `cargo bench --bench depthwise [-- BATCH]` prints, for each shape and direction, the best time, the bytes that have
//! to move (every tensor once) per second, and the time in which this machine's threads copy that many bytes from
//! one buffer to another (half read, half written; a copy is never slower than the memory for want of arithmetic).
//! Every answer is checked at some elements against f64 loops before it is timed.

use arcface_cu::backend::Backend as _;
use arcface_cu::backend::cpu::{Buffer, Cpu};
use arcface_cu::backend::geometry::{Padding, PerChannel, Window};
use arcface_cu::backend::{
    Activation, Close, DepthwiseDgrad, DepthwiseFprop, DepthwiseWgrad, Epilogue, FilterAt,
    GradTarget, Pending, PendingGrad,
};
use arcface_cu::base::random::{Purpose, Random};
use rayon::prelude::*;
use std::time::{Duration, Instant};

/// Name, channels, map, window, stride, padding: before, after.
type Shape = (&'static str, usize, usize, usize, usize, (usize, usize));

const SHAPES: [Shape; 11] = [
    ("MobileNetV2 block 0", 32, 56, 3, 1, (1, 1)),
    ("MobileNetV2 block 1", 96, 56, 3, 2, (0, 1)),
    ("MobileNetV2 block 2", 144, 28, 3, 1, (1, 1)),
    ("MobileNetV2 block 6", 192, 14, 3, 2, (0, 1)),
    ("MobileNetV2 block 7", 384, 7, 3, 1, (1, 1)),
    ("MobileNetV2 block 11", 576, 7, 3, 1, (1, 1)),
    ("MobileFaceNet stem", 64, 56, 3, 1, (1, 1)),
    ("MobileFaceNet stage 1", 128, 56, 3, 2, (1, 1)),
    ("MobileFaceNet stage 2", 128, 28, 3, 1, (1, 1)),
    ("MobileFaceNet stage 3", 256, 14, 3, 1, (1, 1)),
    ("MobileFaceNet global", 512, 7, 7, 1, (0, 0)),
];

fn main() {
    // `cargo bench` and `cargo test --benches` pass flags of their own.
    let batch = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(32);
    let mut cpu = Cpu::new();
    println!("{}; batch {batch}, f32", cpu.describe());
    println!("| layer | shape | pass | ms | GB/s | copy ms | of copy |");
    println!("|---|---|---|---|---|---|---|");
    for shape in SHAPES {
        bench(&mut cpu, batch, shape);
    }
}

fn noise(len: usize, seed: u64) -> Buffer {
    let mut random = Random::new(seed, Purpose::Init, 0);
    let values: Vec<f32> = (0..len).map(|_| random.range(-1.0, 1.0)).collect();
    Buffer::from(&values[..])
}

/// The shortest of as many runs as fit half a second, at least three.
fn best(mut run: impl FnMut()) -> Duration {
    let start = Instant::now();
    let mut best = Duration::MAX;
    let mut runs = 0;
    while runs < 3 || start.elapsed() < Duration::from_millis(500) {
        let run_start = Instant::now();
        run();
        best = best.min(run_start.elapsed());
        runs += 1;
    }
    best
}

/// Time to move `bytes` by copying half of them, with all threads.
fn copy(bytes: usize) -> Duration {
    let source = vec![1.0f32; bytes / 8];
    let mut target = vec![0.0f32; bytes / 8];
    best(|| {
        target
            .par_chunks_mut(1 << 15)
            .zip(source.par_chunks(1 << 15))
            .for_each(|(target, source)| target.copy_from_slice(source));
        std::hint::black_box(&target);
    })
}

struct Case {
    geometry: PerChannel,
    x: Buffer,
    forward: Buffer,
    params: Buffer,
    g: Buffer,
    y: Buffer,
    backward: Buffer,
}

impl Case {
    fn x(&self) -> Pending<'_, Buffer> {
        Pending {
            raw: &self.x,
            affine: Some(&self.forward),
            activation: Activation::Relu6,
        }
    }

    fn dy(&self) -> PendingGrad<'_, Buffer> {
        PendingGrad {
            g: &self.g,
            batch_norm: Some((&self.y, &self.backward)),
        }
    }

    fn x_at(&self, i: usize) -> (f64, f64) {
        let c = self.geometry.c;
        let v = self.x[i] * self.forward[i % c] + self.forward[c + i % c];
        let inside = v > 0.0 && v < 6.0;
        (f64::from(v.clamp(0.0, 6.0)), f64::from(u8::from(inside)))
    }

    fn dy_at(&self, i: usize) -> f64 {
        let c = self.geometry.c;
        let k = |which: usize| f64::from(self.backward[which * c + i % c]);
        k(0) * f64::from(self.g[i]) + k(1) * f64::from(self.y[i]) + k(2)
    }

    /// The products that meet in one element, as (input element, output element, filter element).
    fn products(&self, keep: impl Fn(usize, usize, usize) -> bool) -> Vec<(usize, usize, usize)> {
        let PerChannel { n, c, window: v } = self.geometry;
        let mut all = Vec::new();
        for n in 0..n {
            for (p, q) in (0..v.p).flat_map(|p| (0..v.q).map(move |q| (p, q))) {
                for (r, s) in (0..v.r).flat_map(|r| (0..v.s).map(move |s| (r, s))) {
                    let row = (p * v.stride + r).wrapping_sub(v.pad.top);
                    let column = (q * v.stride + s).wrapping_sub(v.pad.left);
                    let input = (n * v.h + row) * v.w + column;
                    let output = (n * v.p + p) * v.q + q;
                    if row < v.h && column < v.w && keep(input, output, r * v.s + s) {
                        all.push((input * c, output * c, (r * v.s + s) * c));
                    }
                }
            }
        }
        all
    }
}

/// Asserts that an element is right; NaN is not.
fn check(what: &str, actual: f32, expected: f64, size: f64) {
    let error = (f64::from(actual) - expected).abs();
    assert!(
        error <= 1e-5 * (size + 1e-3),
        "{what} is {actual}, should be {expected}"
    );
}

fn bench(cpu: &mut Cpu, n: usize, (name, c, map, kernel, stride, (before, after)): Shape) {
    let pad = Padding {
        top: before,
        bottom: after,
        left: before,
        right: after,
    };
    let window = Window::new((map, map), (kernel, kernel), stride, pad).unwrap();
    let geometry = PerChannel { n, c, window };
    let (inputs, outputs) = (geometry.pixels_in() * c, geometry.pixels_out() * c);
    let case = Case {
        geometry,
        x: noise(inputs, 1),
        forward: noise(4 * c, 2),
        params: noise(geometry.filter_len(), 3),
        g: noise(outputs, 4),
        y: noise(outputs, 5),
        backward: noise(3 * c, 6),
    };
    let filter = FilterAt {
        weights: 0,
        bias: None,
    };
    let report = |pass: &str, elements: usize, time: Duration| {
        let bytes = 4 * elements;
        let copied = copy(bytes).as_secs_f64();
        let time = time.as_secs_f64();
        println!(
            "| {name} | {map}x{map}x{c}, {kernel}x{kernel}/{stride} | {pass} | {:.3} | {:.1} | {:.3} | {:.0} % |",
            1e3 * time,
            1e-9 * bytes as f64 / time,
            1e3 * copied,
            100.0 * copied / time,
        );
    };
    let probes = |pixels: usize| [0, pixels / 2 + 3, pixels - 1].map(|p| p.min(pixels - 1));

    let mut y = Buffer::zeros(outputs);
    let mut moments = Buffer::zeros(2 * c);
    let time = best(|| {
        cpu.depthwise_fprop(DepthwiseFprop {
            geometry,
            x: case.x(),
            params: &case.params,
            filter,
            y: &mut y,
            epilogue: Epilogue::Moments(&mut moments),
        })
        .unwrap();
    });
    for pixel in probes(geometry.pixels_out()) {
        let products = case.products(|_, output, _| output == pixel);
        for channel in [0, c - 1] {
            let terms = products.iter().map(|(input, _, tap)| {
                case.x_at(input + channel).0 * f64::from(case.params[tap + channel])
            });
            let size = terms.clone().map(f64::abs).sum();
            check("y", y[pixel * c + channel], terms.sum(), size);
        }
    }
    report("fprop", inputs + outputs, time);

    let mut dx = Buffer::zeros(inputs);
    let mut sums = Buffer::zeros(3 * c);
    let time = best(|| {
        let close = Close {
            value: case.x(),
            sums: Some(&mut sums),
        };
        let target = GradTarget {
            g: &mut dx,
            accumulate: false,
            close: Some(close),
        };
        cpu.depthwise_dgrad(DepthwiseDgrad {
            geometry,
            dy: case.dy(),
            params: &case.params,
            filter,
            dx: target,
        })
        .unwrap();
    });
    for pixel in probes(geometry.pixels_in()) {
        let products = case.products(|input, _, _| input == pixel);
        for channel in [0, c - 1] {
            let terms = products.iter().map(|(_, output, tap)| {
                case.dy_at(output + channel) * f64::from(case.params[tap + channel])
            });
            let size = terms.clone().map(f64::abs).sum();
            let expected = terms.sum::<f64>() * case.x_at(pixel * c + channel).1;
            check("d_x", dx[pixel * c + channel], expected, size);
        }
    }
    report("dgrad", 2 * outputs + 2 * inputs, time);

    let mut grads = Buffer::zeros(geometry.filter_len());
    let time = best(|| {
        cpu.depthwise_wgrad(DepthwiseWgrad {
            geometry,
            dy: case.dy(),
            x: case.x(),
            grads: &mut grads,
            filter,
        })
        .unwrap();
    });
    for wanted in probes(kernel * kernel) {
        let products = case.products(|_, _, tap| tap == wanted);
        for channel in [0, c - 1] {
            let terms = products.iter().map(|(input, output, _)| {
                case.x_at(input + channel).0 * case.dy_at(output + channel)
            });
            let size = terms.clone().map(f64::abs).sum();
            check("d_w", grads[wanted * c + channel], terms.sum(), size);
        }
    }
    report("wgrad", 2 * outputs + inputs, time);
}
