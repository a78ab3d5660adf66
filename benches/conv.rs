//! Convolution at the shapes of real networks: GFLOP/s in all three directions with batch norm pending, moments and
//! sums on, and beside each the rate of the bare matrix product of the same size in the same run.
//!
//! `cargo bench --bench conv -- [part of a shape's name]... [n=BATCH] [rounds=R] [fused=0]`; `fused=0` leaves
//! out everything but the convolution itself.

use std::sync::LazyLock;
use std::time::Instant;

use arcface_cu::backend::Backend as _;
use arcface_cu::backend::cpu::{Buffer, Cpu};
use arcface_cu::backend::geometry::{Conv2d, Padding, Window};
use arcface_cu::backend::{
    Activation, Close, Conv2dDgrad, Conv2dFprop, Conv2dWgrad, Epilogue, FilterAt, GradTarget,
    Pending, PendingGrad, bn, sums,
};
use arcface_cu::base::random::{Purpose, Random};
use rayon::prelude::*;

/// Elements of the bare product's larger input: the unrolled image as a whole would not fit the memory.
const BARE_LEN: usize = 32 << 20;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: usize| {
        let found = arguments.iter().find_map(|a| a.strip_prefix(name));
        found.map_or(default, |v| v.parse().expect("a number"))
    };
    let (n, rounds) = (number("n=", 32), number("rounds=", 8));
    let fused = number("fused=", 1) != 0;
    let wanted: Vec<&String> = arguments
        .iter()
        .filter(|a| !a.starts_with('-') && !a.contains('='))
        .collect();
    println!(
        "batch {n}, {} threads, GFLOP/s (and the ratio to the bare product)",
        rayon::current_num_threads()
    );
    println!(
        "{:<34} {:>16} {:>16} {:>16}",
        "shape", "fprop", "dgrad", "wgrad"
    );
    for (name, geometry) in shapes(n) {
        if wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())) {
            measure(&name, &geometry, rounds, fused);
        }
    }
}

fn shapes(n: usize) -> Vec<(String, Conv2d)> {
    let mut shapes = Vec::new();
    let mut add = |net: &str, c: usize, k: usize, size: usize, taps: usize, stride: usize| {
        let pad = Padding::same(taps / 2);
        let window = Window::new((size, size), (taps, taps), stride, pad).expect("a valid window");
        let name = format!("{net} {taps}x{taps}/{stride} {c}->{k} on {size}x{size}");
        shapes.push((name, Conv2d { n, c, k, window }));
    };
    add("r50", 3, 64, 112, 7, 2);
    add("r50", 64, 64, 28, 1, 1);
    add("r50", 64, 64, 28, 3, 1);
    add("r50", 64, 256, 28, 1, 1);
    add("r50", 256, 64, 28, 1, 1);
    add("r50", 256, 128, 28, 1, 2);
    add("r50", 128, 128, 14, 3, 1);
    add("r50", 128, 512, 14, 1, 1);
    add("r50", 512, 128, 14, 1, 1);
    add("r50", 256, 256, 7, 3, 1);
    add("r50", 256, 1024, 7, 1, 1);
    add("r50", 1024, 256, 7, 1, 1);
    add("r50", 512, 512, 4, 3, 1);
    add("r50", 512, 2048, 4, 1, 1);
    add("r50", 2048, 512, 4, 1, 1);
    add("r50", 1024, 2048, 7, 1, 2);
    add("mbf", 3, 64, 112, 3, 2);
    add("mbf", 64, 128, 28, 1, 1);
    add("mbf", 128, 64, 28, 1, 1);
    add("mbf", 128, 256, 14, 1, 1);
    add("mbf", 256, 128, 14, 1, 1);
    add("mbf", 128, 512, 7, 1, 1);
    add("ir", 64, 64, 56, 3, 1);
    add("ir", 128, 128, 56, 3, 2);
    add("ir", 256, 256, 14, 3, 1);
    add("ir", 512, 512, 7, 3, 1);
    shapes.push(("linear 25088->512".into(), Conv2d::linear(64, 25088, 512)));
    shapes.push(("linear 1280->256".into(), Conv2d::linear(64, 1280, 256)));
    shapes
}

fn noise(len: usize, seed: u64) -> Buffer {
    let mut random = Random::new(seed, Purpose::Init, 0);
    let mut buffer = Buffer::zeros(len);
    // A few thousand different numbers are enough, and drawing more takes longer than the measurement.
    for i in 0..len {
        buffer[i] = if i < 4099 {
            random.range(-1.0, 1.0)
        } else {
            buffer[i - 4099]
        };
    }
    buffer
}

/// Seconds since the first call.
fn now() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

/// Seconds of the fastest of several runs of each job, the jobs taking turns so that all see the same machine.
fn fastest(rounds: usize, jobs: &mut [&mut dyn FnMut()]) -> Vec<f64> {
    let mut best = vec![f64::INFINITY; jobs.len()];
    for _ in 0..=rounds {
        for (job, best) in jobs.iter_mut().zip(&mut best) {
            let start = now();
            job();
            *best = best.min(now() - start);
        }
    }
    best
}

/// A bare product m x n x k, cut into one piece a thread along the longer side of the output; `transposed`: both
/// inputs are stored with the sum's index outermost.
struct Bare {
    m: usize,
    n: usize,
    k: usize,
    transposed: [bool; 2],
    a: Buffer,
    b: Buffer,
    out: Vec<Buffer>,
}

impl Bare {
    fn new(m: usize, n: usize, k: usize, transposed: [bool; 2]) -> Self {
        let threads = rayon::current_num_threads();
        Bare {
            m,
            n,
            k,
            transposed,
            a: noise(m * k, 1),
            b: noise(k * n, 2),
            out: (0..threads).map(|_| Buffer::zeros(m * n)).collect(),
        }
    }

    fn run(&mut self) {
        let Bare {
            m,
            n,
            k,
            transposed,
            a,
            b,
            out,
        } = self;
        let (m, n, k, threads) = (*m, *n, *k, out.len());
        let (a, b) = (&a[..], &b[..]);
        let (a_row, a_col) = if transposed[0] { (1, m) } else { (k, 1) };
        let (b_row, b_col) = if transposed[1] { (1, k) } else { (n, 1) };
        out.par_iter_mut().enumerate().for_each(|(i, out)| {
            let part = |len: usize| {
                let step = len.div_ceil(threads).next_multiple_of(8);
                (i * step).min(len)..((i + 1) * step).min(len)
            };
            let (rows, cols) = if m >= n {
                (part(m), 0..n)
            } else {
                (0..m, part(n))
            };
            if rows.is_empty() || cols.is_empty() {
                return;
            }
            // SAFETY: the ranges lie within m x n, the strides describe a (m x k), b (k x n) and the thread's own
            // output, each allocated with that many elements.
            unsafe {
                gemm::gemm(
                    rows.len(),
                    cols.len(),
                    k,
                    out.as_mut_ptr(),
                    1,
                    cols.len() as isize,
                    false,
                    a.as_ptr().add(rows.start * a_row),
                    a_col as isize,
                    a_row as isize,
                    b.as_ptr().add(cols.start * b_col),
                    b_col as isize,
                    b_row as isize,
                    0.0f32,
                    1.0,
                    false,
                    false,
                    false,
                    gemm::Parallelism::None,
                );
            }
        });
    }

    fn flops(&self) -> f64 {
        2.0 * (self.m * self.n * self.k) as f64
    }
}

fn measure(name: &str, geometry: &Conv2d, rounds: usize, fused: bool) {
    let (c, k) = (geometry.c, geometry.k);
    let (pixels_in, pixels_out) = (geometry.pixels_in(), geometry.pixels_out());
    let columns = geometry.filter_len() / k;
    let x = noise(pixels_in * c, 3);
    let forward = noise(bn::forward_len(c), 4);
    let (dy, raw_y) = (noise(pixels_out * k, 5), noise(pixels_out * k, 6));
    let backward = noise(bn::backward_len(k), 7);
    let at = FilterAt {
        weights: 0,
        bias: Some(geometry.filter_len()),
    };
    let params = noise(geometry.filter_len() + k, 8);
    let pending = fused && c > 3;
    // A network's input is stored as it is read.
    let value = Pending {
        raw: &x,
        affine: pending.then_some(&forward),
        activation: if pending {
            Activation::Relu
        } else {
            Activation::Identity
        },
    };
    let grad = PendingGrad {
        g: &dy,
        batch_norm: fused.then_some((&raw_y, &backward)),
    };
    let (mut y, mut moments) = (
        Buffer::zeros(pixels_out * k),
        Buffer::zeros(bn::moments_len(k)),
    );
    let (mut dx, mut channel_sums) = (Buffer::zeros(pixels_in * c), Buffer::zeros(sums::len(c)));
    let mut grads = Buffer::zeros(params.len());
    let rows = |columns: usize| pixels_out.min(BARE_LEN / columns);
    let (mut cpu_f, mut cpu_d, mut cpu_w) = (Cpu::new(), Cpu::new(), Cpu::new());
    let mut bare_f = Bare::new(rows(columns), k, columns, [false, true]);
    let mut bare_d = Bare::new(rows(columns / c * k), c, columns / c * k, [false, false]);
    let mut bare_w = Bare::new(k, columns, rows(columns), [true, false]);
    let bare_flops = [bare_f.flops(), bare_d.flops(), bare_w.flops()];
    let times = fastest(
        rounds,
        &mut [
            &mut || bare_f.run(),
            &mut || {
                let epilogue = if fused {
                    Epilogue::Moments(&mut moments)
                } else {
                    Epilogue::Raw
                };
                cpu_f
                    .conv2d_fprop(Conv2dFprop {
                        geometry: *geometry,
                        x: value,
                        params: &params,
                        filter: at,
                        y: &mut y,
                        epilogue,
                    })
                    .expect("fprop");
            },
            &mut || bare_d.run(),
            &mut || {
                let target = GradTarget {
                    g: &mut dx,
                    accumulate: false,
                    close: fused.then_some(Close {
                        value,
                        sums: Some(&mut channel_sums),
                    }),
                };
                cpu_d
                    .conv2d_dgrad(Conv2dDgrad {
                        geometry: *geometry,
                        dy: grad,
                        params: &params,
                        filter: at,
                        dx: target,
                    })
                    .expect("dgrad");
            },
            &mut || bare_w.run(),
            &mut || {
                cpu_w
                    .conv2d_wgrad(Conv2dWgrad {
                        geometry: *geometry,
                        dy: grad,
                        x: value,
                        grads: &mut grads,
                        filter: at,
                    })
                    .expect("wgrad");
            },
        ],
    );
    let flops = 2.0 * geometry.macs() as f64;
    print!("{name:<34}");
    for (direction, bare) in bare_flops.iter().enumerate() {
        let rate = flops / times[2 * direction + 1];
        let bare = bare / times[2 * direction];
        print!(" {:>8.1} ({:>5.2})", rate / 1e9, rate / bare);
    }
    println!();
    check(geometry, value, grad, &params, [&y, &dx, &grads]);
}

/// Compares a few elements of each result with f64 sums.
fn check(
    geometry: &Conv2d,
    value: Pending<'_, Buffer>,
    grad: PendingGrad<'_, Buffer>,
    params: &[f32],
    [y, dx, grads]: [&[f32]; 3],
) {
    let (c, k, window) = (geometry.c, geometry.k, &geometry.window);
    let taps = window.r * window.s;
    let before = |pixel: usize, i: usize| {
        let raw = f64::from(value.raw[pixel * c + i]);
        let affine = |f: &Buffer| [bn::SCALE, bn::SHIFT].map(|w| f64::from(f[w * c + i]));
        let [scale, shift] = value.affine.map_or([1.0, 0.0], affine);
        raw * scale + shift
    };
    let relu = matches!(value.activation, Activation::Relu);
    let x = |pixel: usize, i: usize| {
        let v = before(pixel, i);
        if relu { v.max(0.0) } else { v }
    };
    let dy = |pixel: usize, i: usize| {
        let at = pixel * k + i;
        let g = f64::from(grad.g[at]);
        grad.batch_norm.map_or(g, |(raw, backward)| {
            let [a, b, d] = [0, 1, 2].map(|which| f64::from(backward[which * k + i]));
            a * g + b * f64::from(raw[at]) + d
        })
    };
    let w = |filter: usize, tap: usize, i: usize| f64::from(params[(filter * taps + tap) * c + i]);
    // The input pixel under a tap of an output pixel.
    let under = |pixel: usize, tap: usize| {
        let (row, q) = (pixel / window.q, pixel % window.q);
        let (image, p) = (row / window.p, row % window.p);
        let h = (p * window.stride + tap / window.s).checked_sub(window.pad.top)?;
        let v = (q * window.stride + tap % window.s).checked_sub(window.pad.left)?;
        (h < window.h && v < window.w).then(|| (image * window.h + h) * window.w + v)
    };
    let close = |what: &str, found: f32, expected: f64, terms: usize| {
        let error = (f64::from(found) - expected).abs();
        let bound = 1e-5 * (1.0 + (terms as f64).sqrt()) + 1e-6 * expected.abs();
        assert!(
            error <= bound,
            "{what} of {geometry:?}: {found} should be {expected}"
        );
    };
    for i in 0..7 {
        let pick = |len: usize| (i * 7919 + 13) * 104_729 % len;
        let (pixel, filter) = (pick(geometry.pixels_out()), pick(k));
        let mut sum = f64::from(params[geometry.filter_len() + filter]);
        for tap in 0..taps {
            if let Some(input) = under(pixel, tap) {
                sum += (0..c).map(|i| x(input, i) * w(filter, tap, i)).sum::<f64>();
            }
        }
        close("y", y[pixel * k + filter], sum, taps * c);

        let (input, channel) = (pick(geometry.pixels_in()), pick(c));
        let image = input / (window.h * window.w);
        let mut sum = 0.0;
        for pixel in image * window.p * window.q..(image + 1) * window.p * window.q {
            for tap in 0..taps {
                if under(pixel, tap) == Some(input) {
                    sum += (0..k)
                        .map(|i| dy(pixel, i) * w(i, tap, channel))
                        .sum::<f64>();
                }
            }
        }
        if relu && before(input, channel) <= 0.0 {
            sum = 0.0;
        }
        close("dx", dx[input * c + channel], sum, taps * k);

        let (tap, pixels) = (pick(taps), geometry.pixels_out());
        let sum: f64 = (0..pixels)
            .filter_map(|pixel| under(pixel, tap).map(|input| (pixel, input)))
            .map(|(pixel, input)| dy(pixel, filter) * x(input, channel))
            .sum();
        let found = grads[(filter * taps + tap) * c + channel];
        close("dw", found, sum, pixels);
    }
}
