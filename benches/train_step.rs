//! Whole training steps and whole inference passes, images a second, on synthetic pixels.
//!
//! `cargo bench --bench train_step [-- NETWORK...] [--batch N] [--steps N]` prints a line a network: the median step of
//! training (forward, head with 1,000 identities, backward, update) and of inference with folded batch norms. Each run
//! first checks its answer: the first loss is near the expected one, and repeating one batch brings it down.

use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::{Backend, SgdForm, SgdStep};
use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::graph::Model;
use arcface_cu::graph::infer::InferGraph;
use arcface_cu::graph::train::TrainGraph;
use arcface_cu::head::{ArcFace, ClassInit, Distribution, Margin, expected_initial_loss};
use arcface_cu::models::{self, Embedding, Network};
use arcface_cu::recipe::presets::SYMMETRIC_INPUT;
use clap::ValueEnum;
use std::time::Instant;

const CLASSES: usize = 1000;

fn main() {
    let mut names = Vec::new();
    let (mut batch, mut steps) = (32, 7);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut number = || {
            let text = args.next().unwrap_or_default();
            text.parse().expect("a number follows the option")
        };
        match arg.as_str() {
            "--bench" => {}
            "--batch" => batch = number(),
            "--steps" => steps = number(),
            name => names.push(Network::from_str(name, true).expect("a network's name")),
        }
    }
    if names.is_empty() {
        names = vec![
            Network::Resnet50,
            Network::MobilenetV2,
            Network::Mobilefacenet,
        ];
    }
    println!(
        "{}, batch {batch}, median of {steps} steps",
        Cpu::new().describe()
    );
    println!("network             train img/s   infer img/s   infer ms/image at batch 1");
    for network in names {
        let embedding = match network {
            Network::Mobilefacenet | Network::MobilefacenetTiny => {
                Embedding::GlobalDepthwise { size: 128 }
            }
            _ => Embedding::pool_dropout_dense(256),
        };
        let model = models::build(network, 112, embedding).expect("the network is known");
        let name = network
            .to_possible_value()
            .expect("every network has a name");
        println!(
            "{:18} {:12.1} {:13.1} {:13.2}",
            name.get_name(),
            batch as f64 / train(&model, batch, steps),
            batch as f64 / infer(&model, batch, steps),
            1e3 * infer(&model, 1, 3 * steps),
        );
    }
}

fn pixels(images: usize) -> Vec<u8> {
    let mut random = Random::new(1, Purpose::Faces, 0);
    (0..images * 112 * 112 * 3)
        .map(|_| random.next_u32() as u8)
        .collect()
}

/// Seconds of the median step.
fn train(model: &Model, batch: usize, steps: usize) -> f64 {
    let backend = &mut Cpu::new();
    let mut graph = TrainGraph::new(backend, model, 1, batch).expect("enough memory");
    let segments = graph.segments(|_| 5e-4);
    let margin = Margin::arcface(30.0, 0.5);
    let d = model.embedding_size();
    let init = ClassInit {
        distribution: Distribution::GlorotUniform,
        seed: 1,
        index: u32::MAX,
    };
    let mut head = ArcFace::new(backend, CLASSES, d, batch, margin, init).expect("enough memory");
    let pixels = pixels(batch);
    let labels: Vec<u32> = (0..batch as u32).collect();
    let sgd = SgdStep {
        form: SgdForm::Torch,
        lr: 0.01,
        momentum: 0.9,
        clip: Some(5.0),
    };
    let mut losses = Vec::new();
    let seconds = (0..steps + 2).map(|step| {
        let began = Instant::now();
        graph
            .forward(backend, &pixels, &SYMMETRIC_INPUT, step as u64)
            .expect("forward");
        let (x, dx) = graph.embeddings();
        head.forward(backend, x, &labels).expect("head");
        head.backward(backend, x, &labels, &sgd, 5e-4, dx)
            .expect("head");
        graph.backward(backend).expect("backward");
        graph.measure(backend, &segments).expect("norms");
        graph.update(backend, &segments, &sgd).expect("update");
        (backend.download_all(&mut [head.reading(), graph.reading()])).expect("numbers");
        losses.push(head.output().loss);
        began.elapsed().as_secs_f64()
    });
    let seconds: Vec<f64> = seconds.collect();
    let expected = expected_initial_loss(&margin, d, CLASSES);
    assert!(
        (losses[0] - expected).abs() < 0.25 * expected,
        "first loss {}, expected {expected}",
        losses[0]
    );
    let last = losses[losses.len() - 1];
    assert!(
        last < losses[0],
        "the loss went from {} to {last}",
        losses[0]
    );
    median(seconds[2..].to_vec())
}

/// Seconds of the median pass.
fn infer(model: &Model, batch: usize, passes: usize) -> f64 {
    let backend = &mut Cpu::new();
    let table = arcface_cu::graph::params::ParamTable::new(model);
    let (params, statistics) = table.init(1);
    let mut graph =
        InferGraph::new(backend, model, &params, &statistics, batch).expect("enough memory");
    let pixels = pixels(batch);
    let mut seconds = Vec::new();
    for _ in 0..passes + 2 {
        let began = Instant::now();
        let embeddings = graph
            .embed(backend, &pixels, &SYMMETRIC_INPUT)
            .expect("inference");
        seconds.push(began.elapsed().as_secs_f64());
        assert!(embeddings.iter().all(|v| v.is_finite()));
    }
    median(seconds[2..].to_vec())
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
