//! Whole training steps and whole inference passes, images a second, on synthetic pixels.
//!
//! `cargo bench --bench train_step [-- NETWORK...] [--device cpu|cuda|cuda:N] [--batch N]... [--steps N] [--train] [--infer]
//! [--bf16] [--json FILE] [--onnx FOLDER]` prints one line per network and batch: the median step of training (forward, head with 1,000
//! identities, backward, update) and of inference with folded batch norms; --train and --infer choose one of the two.
//! --bf16 stores activations, their gradients and the filters of products as bfloat16.
//! --onnx measures nothing: it writes each network as FOLDER/NETWORK.onnx, for other programs to run (`benches/rivals`).
//! Each run first checks its answer: the first loss is near the expected one, and repeating one batch brings it down.
//! A run that fails (too little memory, say) is reported, and the next one follows.

mod common;

use arcface_cu::backend::cpu::{Cpu, start_threads};
use arcface_cu::backend::{Backend, Element, SgdForm, SgdStep};
use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::graph::Model;
use arcface_cu::graph::infer::InferGraph;
use arcface_cu::graph::params::ParamTable;
use arcface_cu::graph::train::{TrainGraph, TrainSettings};
use arcface_cu::head::{ArcFace, ClassInit, Distribution, Margin, expected_initial_loss};
use arcface_cu::models::{self, Embedding, Family, Network};
use arcface_cu::recipe::config::{Config, KnownNetwork, ModelConfig, NetworkConfig};
use arcface_cu::recipe::presets::SYMMETRIC_INPUT;
use arcface_cu::weights::checkpoint::Weights;
use arcface_cu::weights::export::onnx::{self, OnnxOptions};
use arcface_cu::{Error, Result};
use common::{Device, Record, gpu, quit};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::time::Instant;

const CLASSES: usize = 1000;

/// What to measure.
struct Plan {
    networks: Vec<Network>,
    batches: Vec<usize>,
    steps: usize,
    train: bool,
    infer: bool,
    element: Element,
    record: Record,
}

#[allow(dead_code, reason = "the parcel's one program calls `run`")]
fn main() {
    run(std::env::args().skip(1));
}

/// The bench with these arguments.
pub(crate) fn run(mut args: impl Iterator<Item = String>) {
    start_threads(0).expect("threads");
    let mut plan = Plan {
        networks: Vec::new(),
        batches: Vec::new(),
        steps: 7,
        train: false,
        infer: false,
        element: Element::F32,
        record: Record::NONE,
    };
    let mut device = Device::Cpu;
    let mut onnx = None;
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .unwrap_or_else(|| quit(&format!("{arg} needs a value")))
        };
        let number = |text: String| match text.parse() {
            Ok(number) => number,
            Err(_) => quit(&format!("{text} is not a number")),
        };
        match arg.as_str() {
            "--bench" => {}
            "--batch" => plan.batches.push(number(value())),
            "--steps" => plan.steps = number(value()),
            "--device" => device = Device::parse(&value()),
            "--json" => plan.record = Record::create(&value()),
            "--onnx" => onnx = Some(PathBuf::from(value())),
            "--bf16" => plan.element = Element::Bf16,
            "--train" => plan.train = true,
            "--infer" => plan.infer = true,
            name => match name.parse() {
                Ok(network) => plan.networks.push(network),
                Err(why) => quit(&format!("{name} is no network: {why}")),
            },
        }
    }
    if plan.networks.is_empty() {
        plan.networks = vec![
            Network::Resnet50,
            Network::MobilenetV2,
            Network::Mobilefacenet,
        ];
    }
    if let Some(folder) = onnx {
        for network in plan.networks {
            if let Err(why) = export(network, &folder) {
                quit(&format!("{}: {why}", network.name()));
            }
        }
        return;
    }
    if plan.batches.is_empty() {
        plan.batches = vec![32];
    }
    if !plan.train && !plan.infer {
        (plan.train, plan.infer) = (true, true);
    }
    let whole = match device {
        Device::Cpu => measure(&mut Cpu::new(), plan),
        Device::Cuda(ordinal) => measure(&mut gpu(ordinal), plan),
    };
    if !whole {
        std::process::exit(1);
    }
}

/// Measures the whole plan; false if anything failed.
fn measure<B: Backend>(backend: &mut B, mut plan: Plan) -> bool {
    let device = backend.describe();
    let element = plan.element;
    println!("{device}, {element}, median of {} steps", plan.steps);
    println!("network             batch  train img/s   infer img/s   infer ms/image at batch 1");
    let mut whole = true;
    let runs = plan.networks.iter();
    let runs = runs.flat_map(|network| plan.batches.iter().map(move |batch| (*network, *batch)));
    for (network, batch) in runs {
        let name = network.name();
        let model = models::build(network, 112, embedding(network)).expect("112 x 112 is enough");
        // A rate, as text for the table: img/s, or ms/image for a batch of one.
        let mut tell = |what: &str, batch: usize, seconds: Result<f64>| match seconds {
            Ok(seconds) => {
                let rate = batch as f64 / seconds;
                plan.record.add(json!({
                    "bench": "train_step", "device": device, "element": element.to_string(), "network": name, "what": what,
                    "batch": batch, "images_per_second": rate, "milliseconds": 1e3 * seconds,
                }));
                match batch {
                    1 => format!("{:.2}", 1e3 * seconds),
                    _ => format!("{rate:.1}"),
                }
            }
            Err(why) => {
                eprintln!("{name} at batch {batch}, {what}: {why}");
                whole = false;
                "failed".to_owned()
            }
        };
        let mut cells = ["-", "-", "-"].map(str::to_owned);
        if plan.train {
            cells[0] = tell(
                "train",
                batch,
                train(backend, &model, (batch, element), plan.steps),
            );
        }
        if plan.infer {
            cells[1] = tell(
                "infer",
                batch,
                infer(backend, &model, (batch, element), plan.steps),
            );
            let one = infer(backend, &model, (1, element), 3 * plan.steps);
            cells[2] = tell("infer", 1, one);
        }
        let [train, infer, one] = cells;
        println!("{name:18} {batch:6} {train:>12} {infer:>13} {one:>13}");
    }
    whole
}

/// The usual embedding layer of a network.
fn embedding(network: Network) -> Embedding {
    match network {
        Network::Mobilefacenet | Network::MobilefacenetTiny => {
            Embedding::GlobalDepthwise { size: 128 }
        }
        Network::Iresnet18 | Network::Iresnet34 | Network::Iresnet50 | Network::Iresnet100 => {
            Embedding::insightface_e(512)
        }
        Network::InsightfaceMbf => Embedding::InsightfaceGdc { size: 512 },
        _ => match network.family() {
            Some(Family::AdaFace) => Embedding::ir(512),
            Some(Family::Evolve) => Embedding::evolve_ir(512),
            None => Embedding::pool_dropout_dense(256),
        },
    }
}

/// Writes a network with the weights that it starts with.
fn export(network: Network, folder: &Path) -> Result<()> {
    let mut config = Config::load("small", None, &[])?;
    config.model = ModelConfig {
        network: NetworkConfig::Known(KnownNetwork {
            backbone: network,
            embedding: embedding(network),
            batch_norm_momentum: None,
        }),
        input: SYMMETRIC_INPUT,
    };
    let (params, statistics) = ParamTable::new(&config.model.build()?).init(1);
    let weights = Weights {
        config,
        classes: 0,
        trained_on: None,
        imported_from: None,
        params,
        statistics,
    };
    let path = folder.join(format!("{}.onnx", network.name()));
    onnx::write(&path, &weights, OnnxOptions::default())
}

fn pixels(images: usize) -> Vec<u8> {
    let mut random = Random::new(1, Purpose::Faces, 0);
    (0..images * 112 * 112 * 3)
        .map(|_| random.next_u32() as u8)
        .collect()
}

/// Seconds of the median step.
fn train<B: Backend>(
    backend: &mut B,
    model: &Model,
    (batch, element): (usize, Element),
    steps: usize,
) -> Result<f64> {
    let mut graph = TrainGraph::new(
        backend,
        model,
        TrainSettings {
            seed: 1,
            max_batch: batch,
            element,
            ..TrainSettings::default()
        },
    )?;
    let segments = graph.segments(|_| 5e-4);
    let margin = Margin::arcface(30.0, 0.5);
    let d = model.embedding_size();
    let init = ClassInit {
        distribution: Distribution::GlorotUniform,
        seed: 1,
        index: u32::MAX,
    };
    let mut head = ArcFace::new(backend, Element::F32, (CLASSES, d), batch, margin, init)?;
    let pixels = pixels(batch);
    let labels: Vec<u32> = (0..batch as u32).collect();
    let sgd = SgdStep {
        form: SgdForm::Torch,
        lr: 0.01,
        momentum: 0.9,
        clip: Some(5.0),
    };
    let (mut losses, mut seconds) = (Vec::new(), Vec::new());
    for step in 0..steps + 2 {
        let began = Instant::now();
        graph.forward(backend, &pixels, &SYMMETRIC_INPUT, step as u64)?;
        let (x, dx) = graph.embeddings();
        head.forward(backend, x, &labels)?;
        head.backward(backend, x, &labels, &sgd, 5e-4, dx)?;
        graph.backward(backend)?;
        graph.measure(backend, &segments)?;
        graph.update(backend, &segments, &sgd)?;
        backend.download_all(&mut [head.reading(), graph.reading()])?;
        losses.push(head.output().loss);
        seconds.push(began.elapsed().as_secs_f64());
    }
    let expected = expected_initial_loss(&margin, d, CLASSES);
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    let near = (first - expected).abs() <= 0.25 * expected;
    // On one batch, repeated, the loss must fall. NaN does not.
    if !near || last.partial_cmp(&first) != Some(std::cmp::Ordering::Less) {
        return Err(Error::Invalid(format!(
            "wrong answer: the loss went from {first} (expected {expected:.2}) to {last}"
        )));
    }
    Ok(median(seconds[2..].to_vec()))
}

/// Seconds of the median pass.
fn infer<B: Backend>(
    backend: &mut B,
    model: &Model,
    (batch, element): (usize, Element),
    passes: usize,
) -> Result<f64> {
    let table = ParamTable::new(model);
    let (params, statistics) = table.init(1);
    let mut graph = InferGraph::new(backend, model, &params, &statistics, batch, element)?;
    let pixels = pixels(batch);
    let mut seconds = Vec::new();
    for _ in 0..passes + 2 {
        let began = Instant::now();
        let embeddings = graph.embed(backend, &pixels, &SYMMETRIC_INPUT)?;
        seconds.push(began.elapsed().as_secs_f64());
        if !embeddings.iter().all(|v| v.is_finite()) {
            let wrong = "wrong answer: an embedding is not finite";
            return Err(Error::Invalid(wrong.to_owned()));
        }
    }
    Ok(median(seconds[2..].to_vec()))
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
