//! Whole training steps of the CUDA backend beside the CPU backend, from the same start on the same data: on a GPU, and
//! with the kernels interpreted from the PTX that NVRTC emits.
//!
//! Both compute in float32 and round differently, and training amplifies a difference. How much, the CPU itself tells:
//! it trains a second time from weights that differ in the last bit. The CUDA backend may be `FACTOR` times as far
//! away as that run: it rounds differently at every operation of every layer, not once, and most of those errors are
//! independent.

use crate::support::devices::compiler_or_skip;
use crate::support::emulator::Emulator;
use crate::support::{Pictures, picture};
use arcface_cu::backend::Backend;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::cuda::{Compiler, Cuda};
use arcface_cu::cli::{self, Gpus};
use arcface_cu::data::picture::encode_jpeg;
use arcface_cu::encoding::npy::{self, Elements};
use arcface_cu::eval;
use arcface_cu::models::Embedding;
use arcface_cu::recipe::config::Config;
use arcface_cu::train::{DataOptions, Trainer};
use arcface_cu::weights::checkpoint::Checkpoint;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

const FACTOR: f64 = 8.0;

/// What a run leaves: the loss of each step, and all weights.
struct Run {
    losses: Vec<f64>,
    weights: Vec<f32>,
}

/// A run before its first step, with dropout and augmentation off.
fn start(preset: &str, batch: usize) -> Checkpoint {
    // Small steps: with the preset's rate a small batch jumps about, and tells nothing after the second step.
    let settings = [
        format!("train.batch_size={batch}"),
        "optimizer.lr=1e-4".to_owned(),
    ];
    let mut config = Config::load(preset, None, &settings).unwrap();
    config.augment = Default::default();
    match &mut config.model.embedding {
        Embedding::PoolDropoutDense { dropout, .. }
        | Embedding::BatchNormDropoutFlattenDense { dropout, .. }
        | Embedding::InsightFaceE { dropout, .. } => *dropout = 0.0,
        Embedding::GlobalDepthwise { .. } | Embedding::InsightfaceGdc { .. } => {}
    }
    let mut trainer = Trainer::new(Cpu::new(), config, data(), DataOptions::default()).unwrap();
    trainer.checkpoint().unwrap()
}

fn data() -> Arc<Pictures> {
    Arc::new(Pictures(12))
}

fn train<B: Backend>(backend: B, start: &Checkpoint, steps: usize) -> Run {
    let mut trainer = Trainer::resume(backend, start, data(), DataOptions::default()).unwrap();
    let losses = (0..steps).map(|_| trainer.step().unwrap().loss).collect();
    let end = trainer.checkpoint().unwrap();
    let weights = [end.weights.params, end.weights.statistics, end.class_rows].concat();
    Run { losses, weights }
}

/// Every weight moved by its last bit, up and down in turn.
fn nudged(start: &Checkpoint) -> Checkpoint {
    let mut start = start.clone();
    for (i, w) in start.weights.params.iter_mut().enumerate() {
        *w = if i % 2 == 0 {
            w.next_up()
        } else {
            w.next_down()
        };
    }
    start
}

/// Euclidean distance of the weights.
fn distance(a: &Run, b: &Run) -> f64 {
    assert_eq!(a.weights.len(), b.weights.len());
    let squares = a.weights.iter().zip(&b.weights);
    squares
        .map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2))
        .sum::<f64>()
        .sqrt()
}

/// Trains on a device and on the CPU, and compares losses and weights.
fn trains_like_the_cpu<B: Backend>(
    test: &str,
    preset: &str,
    batch: usize,
    steps: usize,
    device: B,
) {
    let start = start(preset, batch);
    let cpu = train(Cpu::new(), &start, steps);
    let other = train(Cpu::new(), &nudged(&start), steps);
    let began = Instant::now();
    let cuda = train(device, &start, steps);
    let seconds = began.elapsed().as_secs_f64();
    println!("{test}: {steps} steps on the device in {seconds:.1} s");

    let (found, allowed) = (distance(&cuda, &cpu), FACTOR * distance(&other, &cpu));
    println!("weights differ by {found:.3e}, allowed {allowed:.3e}");
    assert!(
        found <= allowed,
        "{test}: weights differ by {found}, allowed {allowed}"
    );
    // The nudged run may agree in one step by luck, and not in all; float32 holds a loss to 6e-8 of it, its sums to 2e-6.
    let mut near = 0.0f64;
    for step in 0..steps {
        let [expected, cuda, other] = [&cpu, &cuda, &other].map(|run| run.losses[step]);
        near = near.max((other - expected).abs());
        let (found, allowed) = (
            (cuda - expected).abs(),
            FACTOR * near.max(2e-6 * expected.abs()),
        );
        println!("step {step}: loss {cuda}, off by {found:.1e}, allowed {allowed:.1e}");
        assert!(
            found <= allowed,
            "{test}: step {step}: losses differ by {found}, allowed {allowed}"
        );
    }
}

fn trains_emulated_like_the_cpu(test: &str, preset: &str, steps: usize) {
    if let Some(compiler) = compiler_or_skip(test) {
        // Every launch once: the operations' own tests run each twice, in both orders.
        let emulator = Emulator::with(compiler, "compute_80", false);
        trains_like_the_cpu(test, preset, 2, steps, Cuda::new(emulator));
    }
}

#[test]
fn mobilenet_v2_trains_five_steps_like_the_cpu() {
    trains_emulated_like_the_cpu(
        "mobilenet_v2_trains_five_steps_like_the_cpu",
        "seed-mobilenetv2",
        5,
    );
}

#[test]
fn a_full_resnet50_step_is_the_cpus() {
    trains_emulated_like_the_cpu("a_full_resnet50_step_is_the_cpus", "seed-resnet50", 1);
}

/// Ten steps of each network in batches of 4.
mod on_gpu {
    use crate::support::devices::gpu_or_skip;

    macro_rules! ten_steps {
        ($($name:ident: $preset:literal),* $(,)?) => {$(
            #[test]
            fn $name() {
                let test = concat!(module_path!(), "::", stringify!($name));
                if let Some(gpu) = gpu_or_skip(test) {
                    super::trains_like_the_cpu(test, $preset, 4, 10, gpu);
                }
            }
        )*};
    }

    ten_steps! {
        demo: "demo",
        insightface_mbf: "insightface-mbf",
        iresnet100: "insightface-r100",
        iresnet50: "insightface-r50",
        mobilenet_v2: "seed-mobilenetv2",
        resnet50: "seed-resnet50",
    }
}

/// The emulated GPU, for the program's own commands.
struct Emulated(&'static Compiler);

impl Gpus for Emulated {
    type Driver = Emulator;

    fn open(&self, _ordinal: usize) -> arcface_cu::Result<Cuda<Emulator>> {
        Ok(Cuda::new(Emulator::with(self.0, "compute_80", false)))
    }
}

#[test]
fn the_programs_commands_run_on_an_emulated_gpu() {
    let test = "the_programs_commands_run_on_an_emulated_gpu";
    let Some(compiler) = compiler_or_skip(test) else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let run = |words: &[&str]| {
        let words = ["arcface-cu"].iter().chain(words);
        cli::run_on(words.copied().map(String::from), &Emulated(compiler)).unwrap();
    };
    let [faces, trained, sets] = ["faces", "trained", "sets"].map(path);
    for n in 0..8 {
        let folder = dir.path().join(format!("faces/{:02}", n / 2));
        fs::create_dir_all(&folder).unwrap();
        let jpeg = encode_jpeg(&picture(n, 112, 112), 90);
        fs::write(folder.join(format!("{n}.jpg")), jpeg).unwrap();
    }
    let pairs: Vec<_> = (0..10)
        .map(|k| (2 * k, 2 * k + 1 + k % 2, k % 2 == 0))
        .collect();
    eval::write_set(
        Path::new(&sets),
        "lfw",
        &Pictures(20),
        &pairs,
        112,
        &mut |_| {},
    )
    .unwrap();

    // Trained on the GPU, with dropout and augmentation as the preset has them; then used on either device.
    run(&[
        "train",
        "--device",
        "cuda",
        "--preset",
        "demo",
        "--data",
        &faces,
        "--out",
        &trained,
        "--batch-size",
        "4",
        "--steps",
        "2",
    ]);
    let weights = format!("{trained}/weights.safetensors");
    let [cpu, cuda] = ["cpu", "cuda"].map(|device| {
        let [out, json] =
            [format!("{device}-out"), format!("{device}.json")].map(|name| path(&name));
        let common = ["--device", device, "--weights", &weights];
        run(&[&["embed", "--images", &faces, "--out", &out], &common[..]].concat());
        run(&[&["eval", "--data", &sets, "--json", &json], &common[..]].concat());
        let embeddings = npy::read(&Path::new(&out).join("embeddings.npy")).unwrap();
        let Elements::F32(embeddings) = embeddings.elements else {
            panic!("embeddings are float32")
        };
        (embeddings, fs::read_to_string(json).unwrap())
    });
    assert!(cpu.0.len() == cuda.0.len() && !cpu.0.is_empty());
    for (cpu, cuda) in cpu.0.iter().zip(&cuda.0) {
        // Unit vectors, through a few dozen layers of float32.
        assert!((cpu - cuda).abs() <= 1e-4, "{cpu} and {cuda}");
    }
    // Distances move by about as much, and no pair lies that near a threshold.
    let accuracy = |json: &str| {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        json["sets"][0]["accuracy"].as_f64().unwrap()
    };
    assert_eq!(accuracy(&cpu.1), accuracy(&cuda.1));
}

/// A loss that is not finite stops the run with a sentence, pictures changed on the device or not, and changes nothing.
#[test]
fn a_loss_that_is_not_finite_is_reported_from_the_device() {
    let test = "a_loss_that_is_not_finite_is_reported_from_the_device";
    let Some(compiler) = compiler_or_skip(test) else {
        return;
    };
    let settings = [
        "train.batch_size=2",
        "augment.resize=128",
        "augment.flip=true",
    ];
    let config = Config::load("demo", None, &settings.map(String::from)).unwrap();
    let emulator = || Cuda::new(Emulator::with(compiler, "compute_80", false));
    let options = DataOptions::default();
    let mut trainer = Trainer::new(emulator(), config, data(), options).unwrap();
    let mut start = trainer.checkpoint().unwrap();
    start.weights.params[0] = f32::NAN;
    let mut trainer = Trainer::resume(emulator(), &start, data(), options).unwrap();
    let error = trainer.step().unwrap_err();
    assert!(
        matches!(
            &error,
            arcface_cu::Error::NotFinite {
                step: 1,
                what: "the loss",
                layer: Some(_)
            }
        ),
        "{error}"
    );
    let end = trainer.checkpoint().unwrap();
    assert_eq!(end.steps_done, 0);
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&end.weights.params), bits(&start.weights.params));
    assert_eq!(bits(&end.class_rows), bits(&start.class_rows));
    assert_eq!(bits(&end.class_momentum), bits(&start.class_momentum));
}
