//! The ArcFace head at published sizes against the bare matrix products it stands on.
//!
//! `cargo bench --bench head [-- --device cpu|cuda|cuda:N] [--size N,D,V]... [--rounds N] [--json FILE]`. For each size:
//! forward and backward with the update of the class rows, best of several rounds, in milliseconds and GFLOP/s (2 N D V
//! forward, 6 N D V backward); the same products as a plain linear layer that stores its N x V logits, in the same round;
//! their ratio. The answer is checked first. A size that fails (too little memory, say) is reported, and the next one
//! follows.

mod common;
#[path = "../tests/rig/mod.rs"]
mod rig;

use arcface_cu::backend::cpu::{Cpu, start_threads};
use arcface_cu::backend::geometry::Conv2d;
use arcface_cu::backend::{Backend, Element, SgdForm, SgdStep};
use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::head::{ArcFace, ClassInit, Distribution, Margin, expected_initial_loss};
use arcface_cu::{Error, Result};
use common::{Device, Record, gpu, quit};
use rig::conv::{Dgrad, End, Fprop, Wgrad};
use rig::pending::{Behind, To};
use rig::{Case, Rig};
use serde_json::json;
use std::time::Instant;

#[allow(dead_code, reason = "the parcel's one program calls `run`")]
fn main() {
    run(std::env::args().skip(1));
}

/// The bench with these arguments.
pub(crate) fn run(mut args: impl Iterator<Item = String>) {
    start_threads(0).expect("threads");
    let (mut device, mut sizes, mut rounds) = (Device::Cpu, Vec::new(), 12);
    let mut record = Record::NONE;
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .unwrap_or_else(|| quit(&format!("{arg} needs a value")))
        };
        match arg.as_str() {
            "--bench" => {}
            "--device" => device = Device::parse(&value()),
            "--json" => record = Record::create(&value()),
            "--rounds" => match value().parse() {
                Ok(number) => rounds = number,
                Err(why) => quit(&format!("--rounds: {why}")),
            },
            "--size" => {
                let text = value();
                let numbers: Vec<usize> = text.split(',').flat_map(str::parse).collect();
                match numbers[..] {
                    [n, d, classes] => sizes.push((n, d, classes)),
                    _ => quit(&format!("--size {text}: expected N,D,V")),
                }
            }
            _ => quit(&format!("{arg} is not known")),
        }
    }
    if sizes.is_empty() {
        sizes = vec![(64, 256, 85_742), (32, 512, 85_742)];
    }
    let mut whole = true;
    for size in sizes {
        let result = match device {
            Device::Cpu => measure(&mut Cpu::new(), size, rounds, &mut record),
            Device::Cuda(ordinal) => measure(&mut gpu(ordinal), size, rounds, &mut record),
        };
        if let Err(why) = result {
            eprintln!("head at N, D, V = {size:?}: {why}");
            whole = false;
        }
    }
    if !whole {
        std::process::exit(1);
    }
}

fn measure<B: Backend>(
    backend: &mut B,
    (n, d, classes): (usize, usize, usize),
    rounds: usize,
    out: &mut Record,
) -> Result<()> {
    let margin = Margin::arcface(30.0, 0.5);
    let init = ClassInit {
        distribution: Distribution::GlorotUniform,
        seed: 1,
        index: 0,
    };
    let mut head = ArcFace::new(backend, Element::F32, (classes, d), n, margin, init)?;
    let mut random = Random::new(2, Purpose::Init, 1);
    let values: Vec<f32> = (0..n * d).map(|_| random.normal()).collect();
    let labels: Vec<u32> = (0..n).map(|_| random.below(classes as u32)).collect();
    let mut x = backend.alloc(Element::F32, n * d)?;
    backend.upload(&values, &mut x, 0)?;
    let mut dx = backend.alloc(Element::F32, n * d)?;
    let step = SgdStep {
        form: SgdForm::Keras,
        lr: 1e-4,
        momentum: 0.8,
        clip: None,
    };

    head.forward(backend, &x, &labels)?;
    backend.download_all(&mut [head.reading()])?;
    let loss = head.output().loss;
    let expected = expected_initial_loss(&margin, d, classes);
    let near = (loss - expected).abs() < 1.0;
    if !near {
        let wrong = format!("wrong answer: the loss is {loss}, expected {expected}");
        return Err(Error::Invalid(wrong));
    }

    // The textbook's products: logits, d_x and d_w of a linear layer.
    let geometry = Conv2d::linear(n, d, classes);
    let (x_read, batch_norm, bias) = (Behind::NOTHING, false, false);
    let fprop = Fprop {
        geometry,
        x: x_read,
        bias,
        end: End::Raw,
    };
    let dgrad = Dgrad {
        geometry,
        batch_norm,
        to: To::REPLACE,
    };
    let wgrad = Wgrad {
        geometry,
        batch_norm,
        x: x_read,
        bias,
    };
    let mut best = [f64::INFINITY; 4];
    fprop.run(&mut Rig::bench(backend, |backend, fprop| {
        dgrad.run(&mut Rig::bench(backend, |backend, dgrad| {
            wgrad.run(&mut Rig::bench(backend, |backend, wgrad| {
                for _ in 0..rounds {
                    let mut lap = Instant::now();
                    // Read a number back to the host, which waits for all queued work.
                    let mut record = |backend: &mut B, dx: &B::Buffer, which: usize| {
                        backend.download(dx, 0, &mut [0.0])?;
                        best[which] = lap.elapsed().as_secs_f64().min(best[which]);
                        lap = Instant::now();
                        Ok::<_, Error>(())
                    };
                    head.forward(backend, &x, &labels)?;
                    record(backend, &dx, 0)?;
                    head.backward(backend, &x, &labels, &step, 1e-3, &mut dx)?;
                    record(backend, &dx, 1)?;
                    fprop(backend)?;
                    record(backend, &dx, 2)?;
                    fprop(backend)?;
                    dgrad(backend)?;
                    wgrad(backend)?;
                    record(backend, &dx, 3)?;
                }
                Ok(())
            }))
        }))
    }))?;
    let flops = 2.0 * (n * d * classes) as f64;
    let device = backend.describe();
    println!("N {n}, D {d}, V {classes}, {device}");
    for (what, head, bare, flops) in [
        ("forward", best[0], best[2], flops),
        ("backward and update", best[1], best[3], 3.0 * flops),
    ] {
        println!(
            "  {what:20} {:7.2} ms {:6.0} GFLOP/s; bare products {:7.2} ms {:6.0} GFLOP/s; {:.0} %",
            1e3 * head,
            flops / head / 1e9,
            1e3 * bare,
            flops / bare / 1e9,
            100.0 * bare / head
        );
        out.add(json!({
            "bench": "head", "device": device, "what": what, "n": n, "d": d, "classes": classes,
            "milliseconds": 1e3 * head, "bare_milliseconds": 1e3 * bare,
        }));
    }
    Ok(())
}
