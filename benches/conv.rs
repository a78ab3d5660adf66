//! Convolution at the shapes of real networks: GFLOP/s in all three directions with batch norm pending, moments and
//! sums on, and beside each the rate of the bare matrix product of the same size in the same run.
//!
//! `cargo bench --bench conv -- [part of a shape's name]... [n=BATCH] [rounds=R] [fused=0]`; `fused=0` leaves
//! out everything but the convolution itself.

mod checked;
#[path = "../tests/oracles/mod.rs"]
mod oracles;
#[path = "../tests/rig/mod.rs"]
mod rig;

use arcface_cu::backend::cpu::Buffer;
use arcface_cu::backend::geometry::{Conv2d, Padding, Window};
use arcface_cu::backend::{Activation, Element};
use checked::checked;
use rayon::prelude::*;
use rig::Case;
use rig::conv::{Dgrad, End, Fprop, Wgrad};
use rig::pending::{Behind, Sums, To};
use std::time::Instant;

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
            measure(&name, geometry, rounds, fused);
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

/// Random numbers for the bare products.
fn noise(len: usize, seed: u64) -> Buffer {
    Buffer::from(&rig::noise(len, seed)[..])
}

/// Seconds that a job takes.
fn seconds(job: impl FnOnce()) -> f64 {
    let start = Instant::now();
    job();
    start.elapsed().as_secs_f64()
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
            out: (0..threads)
                .map(|_| Buffer::zeros(Element::F32, m * n))
                .collect(),
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

/// The fastest of several runs of a case and of the bare product, which take turns so that both see the same machine.
fn fastest(case: &impl Case, terms: usize, mut bare: Bare, rounds: usize) -> (f64, f64) {
    let (mut best, mut best_bare) = (f64::INFINITY, f64::INFINITY);
    checked(case, terms, |cpu, job| {
        for _ in 0..=rounds {
            best_bare = best_bare.min(seconds(|| bare.run()));
            best = best.min(seconds(|| job(cpu).expect("the operation")));
        }
        Ok(())
    });
    (best, bare.flops() / best_bare)
}

fn measure(name: &str, geometry: Conv2d, rounds: usize, fused: bool) {
    let Conv2d { c, k, .. } = geometry;
    let (pixels_out, columns) = (geometry.pixels_out(), geometry.filter_len() / k);
    // A network's input is stored as it is read.
    let x = if fused && c > 3 {
        Behind::norm_and(Activation::Relu)
    } else {
        Behind::NOTHING
    };
    let fprop = Fprop {
        geometry,
        x,
        bias: true,
        end: if fused { End::Moments } else { End::Raw },
    };
    let dgrad = Dgrad {
        geometry,
        batch_norm: fused,
        to: To {
            accumulate: false,
            close: fused.then_some((x, Sums::Taken)),
        },
    };
    let wgrad = Wgrad {
        geometry,
        batch_norm: fused,
        x,
        bias: true,
    };
    let rows = |columns: usize| pixels_out.min(BARE_LEN / columns);
    let filters = columns / c * k;
    let bare_f = Bare::new(rows(columns), k, columns, [false, true]);
    let bare_d = Bare::new(rows(filters), c, filters, [false, false]);
    let bare_w = Bare::new(k, columns, rows(columns), [true, false]);
    print!("{name:<34}");
    for (seconds, bare) in [
        fastest(&fprop, columns, bare_f, rounds),
        fastest(&dgrad, filters, bare_d, rounds),
        fastest(&wgrad, pixels_out, bare_w, rounds),
    ] {
        let rate = 2.0 * geometry.macs() as f64 / seconds;
        print!(" {:>8.1} ({:>5.2})", rate / 1e9, rate / bare);
    }
    println!();
}
