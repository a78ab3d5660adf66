//! Shared by the tests of training: a run's folder, and the comparison of a device's run with the CPU's.
//!
//! Two devices round differently in float32, and training amplifies the difference. To measure how much, the CPU trains
//! a second time, from weights that differ in the last bit. The other device may be `FACTOR` times as far away as that
//! run, because it rounds differently at every operation of every layer, not once. Most of those errors are
//! independent.

use arcface_cu::backend::cpu::Cpu;
use arcface_cu::data::Dataset;
use arcface_cu::recipe::config::Config;
use arcface_cu::train::{DataOptions, Trainer};
use arcface_cu::weights::checkpoint::Checkpoint;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};

const FACTOR: f64 = 8.0;

/// What a run leaves: the loss of each step, and all weights.
pub(crate) struct Run {
    pub(crate) losses: Vec<f64>,
    pub(crate) weights: Vec<f32>,
}

impl Run {
    pub(crate) fn new(losses: Vec<f64>, end: Checkpoint) -> Self {
        let weights = [end.weights.params, end.weights.statistics, end.class_rows].concat();
        Run { losses, weights }
    }
}

/// A run before its first step, in batches of 2, with augmentation off and the given settings.
pub(crate) fn start(preset: &str, settings: &[&str], data: Arc<dyn Dataset>) -> Checkpoint {
    // Take small steps: at the preset's rate, the loss of a batch of 2 jumps, and nothing can be compared after the
    // second step.
    let common = ["train.batch_size=2", "optimizer.lr=1e-4"];
    let settings = [&common, settings].concat();
    let settings: Vec<String> = settings.into_iter().map(String::from).collect();
    let mut config = Config::load(preset, None, &settings).unwrap();
    config.augment = Default::default();
    let mut trainer = Trainer::new(Cpu::new(), config, data, DataOptions::default()).unwrap();
    trainer.checkpoint().unwrap()
}

/// Every weight moved by its last bit, up and down in turn.
pub(crate) fn nudged(start: &Checkpoint) -> Checkpoint {
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

/// Asserts that `run` is as close to the CPU's run as float32 allows; `other` is the CPU's run from nudged weights.
pub(crate) fn assert_like_the_cpu(test: &str, run: &Run, cpu: &Run, other: &Run) {
    let (found, allowed) = (distance(run, cpu), FACTOR * distance(other, cpu));
    println!("weights differ by {found:.3e}, allowed {allowed:.3e}");
    assert!(
        found <= allowed,
        "{test}: weights differ by {found}, allowed {allowed}"
    );
    assert_eq!(run.losses.len(), cpu.losses.len());
    // The nudged run may agree by luck in one step, but not in all. In float32 the relative error of a loss is 6e-8, of
    // its sums 2e-6.
    let mut near = 0.0f64;
    for step in 0..cpu.losses.len() {
        let [expected, found, other] = [cpu, run, other].map(|run| run.losses[step]);
        near = near.max((other - expected).abs());
        let (off, allowed) = (
            (found - expected).abs(),
            FACTOR * near.max(2e-6 * expected.abs()),
        );
        println!("step {step}: loss {found}, off by {off:.1e}, allowed {allowed:.1e}");
        assert!(
            off <= allowed,
            "{test}: step {step}: losses differ by {off}, allowed {allowed}"
        );
    }
}

/// metrics.csv without the two columns that measure time.
pub(crate) fn metrics(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join("metrics.csv")).unwrap_or_default();
    let keep = |line: &str| line.split(',').take(6).collect::<Vec<_>>().join(",");
    text.lines().map(keep).collect()
}

/// Names in a folder, sorted.
pub(crate) fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Asserts that two runs left the same files, except for timings.
pub(crate) fn assert_same_run(a: &Path, b: &Path, how: &str) {
    assert_eq!(metrics(a), metrics(b), "metrics, {how}");
    assert_eq!(names(a), names(b), "files, {how}");
    let checkpoints = names(&a.join("checkpoints"));
    assert_eq!(checkpoints, names(&b.join("checkpoints")), "{how}");
    let files = checkpoints.iter().map(|name| format!("checkpoints/{name}"));
    for file in files.chain(["weights.safetensors".into(), "config.toml".into()]) {
        let same = fs::read(a.join(&file)).unwrap() == fs::read(b.join(&file)).unwrap();
        assert!(same, "{file} differs, {how}");
    }
}

/// Waits until the run has done `steps` steps, or has ended.
pub(crate) fn wait_for_steps(child: &mut Child, out: &Path, steps: usize) {
    let began = Instant::now();
    while metrics(out).len() <= steps && child.try_wait().unwrap().is_none() {
        assert!(began.elapsed() < Duration::from_secs(60), "no progress");
        std::thread::sleep(Duration::from_millis(2));
    }
}
