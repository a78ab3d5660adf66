//! Depthwise convolution at the shapes of MobileNetV2 and MobileFaceNet, batch 32, as a training step runs it: pending
//! input behind batch norm and ReLU6, moments on the way out; pending gradient, closed with its channel sums.
//!
//! `cargo bench --bench depthwise [-- BATCH]` prints, for each shape and direction, the best time, the bytes that have
//! to move (every tensor once) per second, and the time in which this machine's threads copy that many bytes from
//! one buffer to another (half read, half written; a copy is never slower than the memory for want of arithmetic).
//! Every answer is checked against f64 loops.

mod checked;
#[path = "../tests/oracles/mod.rs"]
mod oracles;
#[path = "../tests/rig/mod.rs"]
mod rig;

use arcface_cu::backend::cpu::{Cpu, start_threads};
use arcface_cu::backend::geometry::PerChannel;
use arcface_cu::backend::{Activation, Backend as _, Element};
use checked::checked;
use rayon::prelude::*;
use rig::Case;
use rig::conv::{Dgrad, End, Fprop, Wgrad, window};
use rig::pending::{Behind, Sums, To};
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
    start_threads(0).expect("threads");
    // `cargo bench` and `cargo test --benches` pass flags of their own.
    let batch = std::env::args()
        .skip(1)
        .find_map(|arg| arg.parse().ok())
        .unwrap_or(32);
    println!("{}; batch {batch}, f32", Cpu::new().describe());
    println!("| layer | shape | pass | ms | GB/s | copy ms | of copy |");
    println!("|---|---|---|---|---|---|---|");
    for shape in SHAPES {
        bench(batch, shape);
    }
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

fn bench(n: usize, (name, c, map, kernel, stride, (before, after)): Shape) {
    let pad = [before, after, before, after];
    let geometry = PerChannel {
        n,
        c,
        window: window((map, map), (kernel, kernel), stride, pad),
    };
    let (inputs, outputs) = (geometry.pixels_in() * c, geometry.pixels_out() * c);
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
    let x = Behind::norm_and(Activation::Relu6);
    let fprop = Fprop {
        geometry,
        x,
        bias: false,
        end: End::Moments,
    };
    report("fprop", inputs + outputs, time(&fprop, kernel * kernel));
    let dgrad = Dgrad {
        geometry,
        batch_norm: true,
        to: To {
            accumulate: false,
            close: Some((x, Sums::Taken)),
        },
    };
    let elements = 2 * outputs + 2 * inputs;
    report("dgrad", elements, time(&dgrad, kernel * kernel));
    let wgrad = Wgrad {
        geometry,
        batch_norm: true,
        x,
        bias: false,
    };
    let elements = 2 * outputs + inputs;
    report("wgrad", elements, time(&wgrad, geometry.pixels_out()));
}

/// The shortest run of a case whose sums have `terms` terms.
fn time(case: &impl Case, terms: usize) -> Duration {
    let mut shortest = Duration::MAX;
    checked(case, Element::F32, terms, |cpu, job| {
        shortest = best(|| job(cpu).expect("the operation"));
        Ok(())
    });
    shortest
}
