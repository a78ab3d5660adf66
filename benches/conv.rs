//! Convolution at the shapes of real networks: GFLOP/s for inference with a prepared filter, and in all three directions of
//! training with batch norm pending, moments and sums on; beside each its share of the multiply-adds that this machine can
//! do, which are measured first. Winograd's algorithm takes fewer than are counted.
//!
//! `cargo bench --bench conv -- [part of a shape's name]... [n=BATCH] [rounds=R] [fused=0] [bf16=1]`; `fused=0` leaves
//! out everything but the convolution itself, `bf16=1` takes tensors of bfloat16.

mod checked;
#[path = "../tests/oracles/mod.rs"]
mod oracles;
mod peak;
#[path = "../tests/rig/mod.rs"]
mod rig;

use arcface_cu::backend::cpu::start_threads;
use arcface_cu::backend::geometry::{Conv2d, Padding, Window};
use arcface_cu::backend::{Activation, Element};
use checked::checked;
use rig::Case;
use rig::conv::{Dgrad, End, Fprop, Wgrad};
use rig::pending::{Behind, Sums, To};
use std::time::Instant;

fn main() {
    start_threads(0).expect("threads");
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
    let threads = rayon::current_num_threads();
    let element = if number("bf16=", 0) != 0 {
        Element::Bf16
    } else {
        Element::F32
    };
    let (one, peak) = (peak::flops(1, element), peak::flops(threads, element));
    println!(
        "{element}, peak: {:.1} GFLOP/s with one thread, {:.1} with {threads}; a copy moves {:.1} GB/s",
        one / 1e9,
        peak / 1e9,
        peak::bytes() / 1e9
    );
    println!("batch {n}, {threads} threads, GFLOP/s (and the share of the peak)");
    println!(
        "{:<34} {:>16} {:>16} {:>16} {:>16}",
        "shape", "inference", "fprop", "dgrad", "wgrad"
    );
    for (name, geometry) in shapes(n) {
        if wanted.is_empty() || wanted.iter().any(|w| name.contains(w.as_str())) {
            measure(&name, geometry, (rounds, element), fused, peak);
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

/// Seconds of the fastest of several runs of a case.
fn fastest(case: &impl Case, terms: usize, (rounds, element): (usize, Element)) -> f64 {
    let mut best = f64::INFINITY;
    checked(case, element, terms, |cpu, job| {
        for _ in 0..=rounds {
            let start = Instant::now();
            job(cpu).expect("the operation");
            best = best.min(start.elapsed().as_secs_f64());
        }
        Ok(())
    });
    best
}

fn measure(name: &str, geometry: Conv2d, rounds: (usize, Element), fused: bool, peak: f64) {
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
    let infer = Fprop {
        x: Behind::NOTHING,
        end: End::Activate(false, Activation::Relu),
        ..fprop
    };
    let filters = columns / c * k;
    print!("{name:<34}");
    for seconds in [
        fastest(&infer, columns, rounds),
        fastest(&fprop, columns, rounds),
        fastest(&dgrad, filters, rounds),
        fastest(&wgrad, pixels_out, rounds),
    ] {
        let rate = 2.0 * geometry.macs() as f64 / seconds;
        print!(" {:>8.1} ({:>3.0} %)", rate / 1e9, 100.0 * rate / peak);
    }
    println!();
}
