//! Whole training steps of the CUDA backend against the CPU backend, from the same weights and on the same data: on a
//! GPU, and with the emulator running the PTX that NVRTC emits.

use crate::support::Pictures;
use crate::support::devices::compiler_or_skip;
use crate::support::emulator::Emulator;
use crate::support::training::{Run, assert_like_the_cpu, nudged, start};
use arcface_cu::backend::Backend;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::cuda::{Compiler, Cuda};
use arcface_cu::cli::{self, Gpus};
use arcface_cu::recipe::config::Config;
use arcface_cu::train::{DataOptions, Trainer};
use arcface_cu::weights::checkpoint::Checkpoint;
use std::sync::Arc;
use std::time::Instant;

fn data() -> Arc<Pictures> {
    Arc::new(Pictures(12))
}

fn train<B: Backend>(backend: B, start: &Checkpoint, steps: usize) -> Run {
    let mut trainer = Trainer::resume(backend, start, data(), DataOptions::default()).unwrap();
    let losses = (0..steps).map(|_| trainer.step().unwrap().loss).collect();
    Run::new(losses, trainer.checkpoint().unwrap())
}

/// Trains on a device and on the CPU, with these settings in addition to those of [`start`], and compares.
fn trains_like_the_cpu<B: Backend>(
    test: &str,
    preset: &str,
    settings: &[&str],
    steps: usize,
    device: B,
) {
    let start = start(preset, settings, data());
    let cpu = train(Cpu::new(), &start, steps);
    let other = train(Cpu::new(), &nudged(&start), steps);
    let began = Instant::now();
    let cuda = train(device, &start, steps);
    let seconds = began.elapsed().as_secs_f64();
    println!("{test}: {steps} steps on the device in {seconds:.1} s");
    assert_like_the_cpu(test, &cuda, &cpu, &other);
}

const NO_DROPOUT: &str = "model.embedding.dropout=0.0";

fn trains_emulated_like_the_cpu(test: &str, preset: &str, steps: usize) {
    if let Some(compiler) = compiler_or_skip(test) {
        // Run every launch once: the tests of single operations run each twice, in both orders.
        let emulator = Cuda::new(Emulator::with(compiler, "compute_80", false));
        trains_like_the_cpu(test, preset, &[NO_DROPOUT], steps, emulator);
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
    use super::NO_DROPOUT;
    use crate::support::devices::{fast_gpu_or_skip, gpu_or_skip};

    macro_rules! ten_steps {
        ($($name:ident: $gpu:ident, $preset:literal, [$($setting:expr)?]);* $(;)?) => {$(
            #[test]
            fn $name() {
                let test = concat!(module_path!(), "::", stringify!($name));
                if let Some(gpu) = $gpu(test) {
                    let settings = ["train.batch_size=4", $($setting)?];
                    super::trains_like_the_cpu(test, $preset, &settings, 10, gpu);
                }
            }
        )*};
    }

    ten_steps! {
        demo: gpu_or_skip, "demo", [];
        insightface_mbf: fast_gpu_or_skip, "insightface-mbf", [];
        iresnet100: fast_gpu_or_skip, "insightface-r100", [NO_DROPOUT];
        iresnet50: fast_gpu_or_skip, "insightface-r50", [NO_DROPOUT];
        mobilenet_v2: fast_gpu_or_skip, "seed-mobilenetv2", [NO_DROPOUT];
        resnet50: fast_gpu_or_skip, "seed-resnet50", [NO_DROPOUT];
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
    crate::support::commands::train_eval_and_embed(|words| {
        let words = ["arcface-cu"].iter().chain(words);
        cli::run_on(words.copied().map(String::from), &Emulated(compiler)).unwrap();
    });
}

/// A loss that is not finite stops the run with an error and changes nothing, whether or not the device augments
/// pictures.
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
