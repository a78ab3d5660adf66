//! Whole training steps of the CUDA backend, its kernels interpreted from the PTX that NVRTC emits, beside the CPU
//! backend: the same data, the same start.

mod support;

use arcface_cu::backend::Backend;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::cuda::{Compiler, Cuda};
use arcface_cu::checkpoint::Checkpoint;
use arcface_cu::cli::{self, Gpus};
use arcface_cu::config::Config;
use arcface_cu::train::{DataOptions, Trainer};
use std::sync::Arc;
use std::time::Instant;
use support::Pictures;
use support::devices::compiler_or_skip;
use support::emulator::Emulator;
use support::training::{Run, assert_like_the_cpu, nudged, start};

fn data() -> Arc<Pictures> {
    Arc::new(Pictures(12))
}

fn train<B: Backend>(backend: B, start: &Checkpoint, steps: usize) -> Run {
    let mut trainer = Trainer::resume(backend, start, data(), DataOptions::default()).unwrap();
    let losses = (0..steps).map(|_| trainer.step().unwrap().loss).collect();
    Run::new(losses, trainer.checkpoint().unwrap())
}

fn trains_like_the_cpu(test: &str, preset: &str, steps: usize) {
    let Some(compiler) = compiler_or_skip(test) else {
        return;
    };
    let start = start(preset, &["model.embedding.dropout=0.0"], data());
    let cpu = train(Cpu::new(), &start, steps);
    let other = train(Cpu::new(), &nudged(&start), steps);
    let began = Instant::now();
    // Every launch once: the operations' own tests run each twice, in both orders.
    let emulator = Emulator::with(compiler, "compute_80", false);
    let cuda = train(Cuda::new(emulator), &start, steps);
    println!(
        "{test}: {steps} steps emulated in {:.1} s",
        began.elapsed().as_secs_f64()
    );
    assert_like_the_cpu(test, &cuda, &cpu, &other);
}

#[test]
fn mobilenet_v2_trains_five_steps_like_the_cpu() {
    trains_like_the_cpu(
        "mobilenet_v2_trains_five_steps_like_the_cpu",
        "seed-mobilenetv2",
        5,
    );
}

#[test]
fn a_full_resnet50_step_is_the_cpus() {
    trains_like_the_cpu("a_full_resnet50_step_is_the_cpus", "seed-resnet50", 1);
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
    support::commands::train_eval_and_embed(|words| {
        let words = ["arcface-cu"].iter().chain(words);
        cli::run_on(words.copied().map(String::from), &Emulated(compiler)).unwrap();
    });
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
