//! `--precision` through the binary: training, checkpoints that move between precisions, evaluation, the plan.

mod support;

use arcface_cu::weights::checkpoint::Checkpoint;
use std::path::Path;
use std::process::Command;
use support::training::{assert_same_run, metrics};

/// Runs a command in `folder`; whether it succeeded, and what it printed.
fn run(folder: &Path, arguments: &[&str]) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arcface-cu"));
    let output = command
        .args(arguments)
        .current_dir(folder)
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let printed = text(&output.stdout) + &text(&output.stderr);
    (output.status.success(), printed)
}

fn succeed(folder: &Path, arguments: &[&str]) -> String {
    let (done, text) = run(folder, arguments);
    assert!(done, "{arguments:?}\n{text}");
    text
}

/// Trains a tiny network on drawn faces, to `steps`.
fn train(folder: &Path, out: &str, steps: &str, more: &[&str]) -> String {
    let common = [
        "train",
        "--device",
        "cpu",
        "--preset",
        "demo",
        "--data",
        "generated:6x8",
        "--out",
        out,
        "--batch-size",
        "8",
        "--lr",
        "1e-4",
        "--steps",
        steps,
    ];
    succeed(folder, &[&common[..], more].concat())
}

fn losses(run: &Path) -> Vec<f64> {
    let rows = metrics(run).into_iter().skip(1);
    rows.map(|row| row.split(',').nth(2).unwrap().parse().unwrap())
        .collect()
}

#[test]
fn runs_keep_their_precision_and_checkpoints_move_between_precisions() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path();
    let wide = train(folder, "wide", "8", &[]);
    assert!(wide.contains("preset demo, f32,"), "{wide}");
    let text = train(folder, "whole", "8", &["--precision", "bf16"]);
    assert!(text.contains("preset demo, bf16,"), "{text}");
    let [wide, whole, parts] = ["wide", "whole", "parts"].map(|name| folder.join(name));

    // 8 bits of significand in every activation change the first losses a little, and do change them.
    let (f32s, bf16s) = (losses(&wide), losses(&whole));
    assert_eq!(bf16s.len(), 8);
    for (a, b) in f32s.iter().zip(&bf16s).take(3) {
        assert!(a != b && (a - b).abs() < 0.05 * a, "{f32s:?} {bf16s:?}");
    }

    // A resumed run keeps its precision without being told, to the bit.
    train(folder, "parts", "3", &["--precision", "bf16"]);
    let text = train(folder, "parts", "8", &["--resume"]);
    assert!(
        text.contains("preset demo, bf16,") && !text.contains("goes on in"),
        "{text}"
    );
    assert_same_run(&whole, &parts, "resumed in bf16");

    // Another precision is taken, and said.
    train(folder, "moved", "3", &["--precision", "bf16"]);
    let text = train(folder, "moved", "8", &["--resume", "--precision", "f32"]);
    assert!(
        text.contains("the run so far was in bf16 and goes on in f32"),
        "{text}"
    );

    // What is stored is float32: after a step no weight is where rounding would put it.
    let file = folder.join("whole/checkpoints/step-00000008.safetensors");
    let params = Checkpoint::load(&file).unwrap().weights.params;
    let rounded = params
        .iter()
        .filter(|w| **w != 0.0 && w.to_bits() & 0xffff == 0);
    assert!(rounded.count() * 100 < params.len());

    // The same weights in both precisions: other bits, nearly the same place.
    let embedded = ["f32", "bf16"].map(|precision| {
        let out = format!("embedded-{precision}");
        let weights = "whole/weights.safetensors";
        succeed(
            folder,
            &[
                "embed",
                "--device",
                "cpu",
                "--precision",
                precision,
                "--weights",
                weights,
                "--data",
                "generated:6x8",
                "--all",
                "--out",
                &out,
            ],
        );
        let npy =
            arcface_cu::encoding::npy::read(&folder.join(out).join("embeddings.npy")).unwrap();
        let arcface_cu::encoding::npy::Elements::F32(values) = npy.elements else {
            panic!("embeddings are float32")
        };
        (npy.shape[1], values)
    });
    let [(size, wide), (_, narrow)] = embedded;
    assert_ne!(wide, narrow);
    for (a, b) in wide.chunks(size).zip(narrow.chunks(size)) {
        let cosine: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
        assert!(cosine > 0.999, "{cosine}");
    }
}

#[test]
fn the_plan_counts_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let mib = |precision: &str| -> f64 {
        let arguments = [
            "plan",
            "--preset",
            "demo",
            "--batch-size",
            "64",
            "--memory",
            "8",
            "--precision",
            precision,
        ];
        let text = succeed(folder.path(), &arguments);
        assert!(
            text.contains(&format!("activations in {precision}")),
            "{text}"
        );
        let line = text
            .lines()
            .find(|line| line.contains("activations and gradients at batch 64"));
        line.unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    };
    let (wide, narrow) = (mib("f32"), mib("bf16"));
    // The embedding and its gradient stay float32. The plan shows tenths.
    assert!(
        (0.0..0.01 * wide).contains(&(narrow + 0.05 - 0.5 * wide)),
        "{wide} and {narrow}"
    );
}

#[test]
fn other_precisions_are_wrong_usage() {
    let folder = tempfile::tempdir().unwrap();
    let (done, text) = run(folder.path(), &["plan", "--precision", "fp8"]);
    assert!(
        !done && text.contains("expected auto, f32 or bf16"),
        "{text}"
    );
}
