//! The whole program on a GPU in software: the real binary, cudarc and the driver's interface, with the PTX emulator in
//! place of the driver. `bash tests/software-card.sh` builds the card; `tests/software_card/src/lib.rs` says how strict
//! it is, and how to request failures.

mod support;

use arcface_cu::data;
use arcface_cu::weights::checkpoint::Checkpoint;
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use support::commands::{train_eval_and_embed, write_faces};
use support::devices::{compiler_or_skip, kernels};
use support::training::{
    Run, assert_like_the_cpu, assert_same_run, metrics, nudged, start, wait_for_steps,
};
use support::{required, skip, stderr_of_failure, stdout_of_success};

/// A machine with the card, and a folder to work in.
struct Machine {
    libraries: OsString,
    dir: tempfile::TempDir,
}

impl Machine {
    /// None, with a line on standard error, if the card or the compiler is missing; a failure if
    /// `ARCFACE_CU_REQUIRE_SOFTWARE_CARD=1`.
    fn new(test: &str) -> Option<Self> {
        compiler_or_skip(test)?;
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
        let folder = target.join("software-card");
        if !folder.join("libcuda.so.1").is_file() {
            let why = "the GPU in software is not built: bash tests/software-card.sh";
            assert!(!required("ARCFACE_CU_REQUIRE_SOFTWARE_CARD"), "{why}");
            skip(test, why);
            return None;
        }
        let others = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
        let folders = std::iter::once(folder).chain(std::env::split_paths(&others));
        Some(Machine {
            libraries: std::env::join_paths(folders).unwrap(),
            dir: tempfile::tempdir().unwrap(),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program, not yet started.
    fn program(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_arcface-cu"));
        command
            .args(words)
            .current_dir(self.dir.path())
            .env("LD_LIBRARY_PATH", &self.libraries)
            .env("ARCFACE_CU_ARCH", "compute_80")
            .env("ARCFACE_CU_CACHE", kernels())
            .env("SOFTWARE_CARD_REPORT", self.path("report"));
        command
    }

    /// Standard output of a run that must succeed and release everything that it took.
    fn succeed(&self, words: &[&str]) -> String {
        let output = self.program(words).output().unwrap();
        let text = stdout_of_success(&output);
        if words.contains(&"cuda") {
            self.report();
        }
        text
    }

    /// How often each function was called, from the card's report. The report must show that everything was released.
    fn report(&self) -> HashMap<String, u64> {
        let path = self.path("report");
        let text = fs::read_to_string(&path).expect("the context was released");
        fs::remove_file(&path).unwrap();
        let (kinds, calls) = text.trim_end().split_once("; ").expect("one line");
        assert!(kinds.contains("streams"), "{kinds}");
        for kind in kinds.split(", ") {
            let words: Vec<&str> = kind.split(' ').collect();
            assert_eq!(words[1], words[2], "made and released: {kinds}");
        }
        let calls = calls.split(", ").map(|call| {
            let (function, count) = call.split_once(' ').expect("a function and a number");
            (function.to_owned(), count.parse().expect("a number"))
        });
        calls.collect()
    }

    /// `train` with augmentation and dropout, in batches of 2, with a checkpoint after every step.
    fn train(&self, out: &str, steps: u64, resume: bool) -> Command {
        let faces = self.path("faces");
        if !faces.exists() {
            write_faces(&faces, 6);
        }
        let steps = steps.to_string();
        let words = ["train", "--device", "cuda", "--data", "faces", "--out", out];
        let mut command = self.program(&words);
        command
            .args(["--preset", "demo", "--batch-size", "2"])
            .args(["--checkpoint-every", "1", "--steps", &steps]);
        if resume {
            command.arg("--resume");
        }
        command
    }

    /// Trains until `steps` steps are done. Returns how often the run called each function.
    fn trained(&self, out: &str, steps: u64, resume: bool) -> HashMap<String, u64> {
        stdout_of_success(&self.train(out, steps, resume).output().unwrap());
        self.report()
    }
}

/// A command that must fail with exit code 1 and say each of the words.
fn fails(mut command: Command, words: &[&str]) {
    let output: Output = command.output().unwrap();
    let text = stderr_of_failure(&output, 1);
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in\n{text}");
    }
}

#[test]
fn info_and_plan_know_the_card() {
    let Some(machine) = Machine::new("info_and_plan_know_the_card") else {
        return;
    };
    let text = machine.succeed(&["info"]);
    for word in [
        "the driver speaks CUDA 13.0",
        "cuda:0: software card (tensor cores with the arithmetic of A100), sm_80, 16 multiprocessors, 17.2 GB",
        "kernels are compiled for: compute_80, PTX",
        "--device auto takes cuda:0",
    ] {
        assert!(text.contains(word), "\"{word}\" is not in\n{text}");
    }
    // `info` opens the card, too.
    machine.report();

    let plan = ["plan", "--preset", "seed-resnet50", "--device", "cuda"];
    let largest = |mebibytes: &str| {
        let mut command = machine.program(&plan);
        let output = command.env("SOFTWARE_CARD_MEMORY", mebibytes).output();
        let text = stdout_of_success(&output.unwrap());
        machine.report();
        let line = text.lines().find(|line| line.contains("largest batch"));
        line.unwrap_or_else(|| panic!("{text}")).to_owned()
    };
    assert_ne!(largest("4096"), largest("16384"));
}

#[test]
fn ten_training_steps_are_the_cpus() {
    let test = "ten_training_steps_are_the_cpus";
    let Some(machine) = Machine::new(test) else {
        return;
    };
    write_faces(&machine.path("faces"), 16);
    let data = Arc::from(data::open(&machine.path("faces")).unwrap());
    // This network learns fast, and batch norm over a batch of 2 jumps when the two embeddings are nearly equal.
    let settings = ["train.batch_size=4", "optimizer.lr=1e-5"];
    let start = start("demo", &settings, data);
    let run = |device: &str, start: &Checkpoint, out: &str| {
        let folder = machine.path(out);
        fs::create_dir_all(folder.join("checkpoints")).unwrap();
        start
            .save(&folder.join("checkpoints/step-00000000.safetensors"))
            .unwrap();
        machine.succeed(&[
            "train", "--device", device, "--data", "faces", "--out", out, "--resume", "--steps",
            "10",
        ]);
        let rows = metrics(&folder);
        let losses = rows[1..].iter().map(|row| {
            let loss = row.split(',').nth(2).expect("a loss");
            loss.parse().expect("a number")
        });
        let end = folder.join("checkpoints/step-00000010.safetensors");
        Run::new(losses.collect(), Checkpoint::load(&end).unwrap())
    };
    let cpu = run("cpu", &start, "cpu");
    let other = run("cpu", &nudged(&start), "other");
    let cuda = run("cuda", &start, "cuda");
    assert_eq!(cpu.losses.len(), 10);
    assert_like_the_cpu(test, &cuda, &cpu, &other);
}

#[test]
fn a_run_is_the_same_again_and_after_kills() {
    let Some(machine) = Machine::new("a_run_is_the_same_again_and_after_kills") else {
        return;
    };
    const STEPS: u64 = 6;
    machine.trained("whole", STEPS, false);
    machine.trained("again", STEPS, false);
    let [whole, again, killed] = ["whole", "again", "killed"].map(|name| machine.path(name));
    assert_same_run(&whole, &again, "the same run again");

    for (steps, then) in [(1, 5), (3, 60)] {
        let mut command = machine.train("killed", STEPS, true);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        wait_for_steps(&mut child, &killed, steps);
        std::thread::sleep(std::time::Duration::from_millis(then));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    machine.trained("killed", STEPS, true);
    assert_same_run(&whole, &killed, "after kills");
}

#[test]
fn commands_train_evaluate_and_embed() {
    if let Some(machine) = Machine::new("commands_train_evaluate_and_embed") {
        train_eval_and_embed(|words| {
            machine.succeed(words);
        });
    }
}

#[test]
fn out_of_memory_is_a_sentence_and_gives_all_back() {
    let Some(machine) = Machine::new("out_of_memory_is_a_sentence_and_gives_all_back") else {
        return;
    };
    let calls = machine.trained("whole", 1, false);
    let [pinned, memory] = ["cuMemHostAlloc", "cuMemAllocAsync"].map(|f| (f, calls[f]));
    let at = [pinned, memory].map(|(f, last)| [(f, 1), (f, last / 2), (f, last)]);
    for (function, n) in at.concat() {
        // The last ones are of the embeddings that are looked at when the run is done and saved.
        let mut command = machine.train(&format!("failed-{function}-{n}"), 1, false);
        command.env("SOFTWARE_CARD_FAIL", format!("{function}:{n}:2"));
        let output = command.output().unwrap();
        let said = [&output.stdout[..], &output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        for word in ["allocating", "out of memory", "smaller batch"] {
            assert!(said.contains(word), "\"{word}\" is not in\n{said}");
        }
        // By then the weights are saved, and only a warning is missing.
        let late = said.contains("warning: whether the network has collapsed cannot be told");
        assert_eq!(output.status.code(), Some(i32::from(!late)), "{said}");
        assert!(n == calls[function] || !late, "{function} {n}\n{said}");
        machine.report();
    }
    // A card that is too small is noticed before anything is allocated.
    let mut command = machine.train("small", 1, false);
    command.env("SOFTWARE_CARD_MEMORY", "8");
    fails(
        command,
        &["a batch of 2 needs", "the largest batch that fits"],
    );
    machine.report();
}

#[test]
fn a_gpu_that_fails_is_a_sentence_and_leaves_the_last_checkpoint_whole() {
    let test = "a_gpu_that_fails_is_a_sentence_and_leaves_the_last_checkpoint_whole";
    let Some(machine) = Machine::new(test) else {
        return;
    };
    const STEPS: u64 = 4;
    let calls = machine.trained("whole", STEPS, false);
    let whole = machine.path("whole");
    for (out, function, status, words) in [
        (
            "faulted",
            "cuLaunchKernel",
            700,
            [
                "CUDA_ERROR_ILLEGAL_ADDRESS",
                "A kernel failed",
                "checkpoint",
            ],
        ),
        (
            "unknown",
            "cuMemcpyDtoHAsync_v2",
            226,
            ["copying from the GPU", "does not describe", "status 226"],
        ),
        (
            "lost",
            "*",
            999,
            ["CUDA_ERROR_UNKNOWN", "lost", "checkpoint"],
        ),
    ] {
        let n = 3 * calls[function] / 4;
        let mut command = machine.train(out, STEPS, false);
        command.env("SOFTWARE_CARD_FAIL", format!("{function}:{n}:{status}"));
        fails(command, &words);
        let _ = fs::remove_file(machine.path("report"));
        let checkpoints = fs::read_dir(machine.path(out).join("checkpoints")).unwrap();
        assert!(checkpoints.count() > 0, "{out}: no step was done");
        machine.trained(out, STEPS, true);
        assert_same_run(&whole, &machine.path(out), out);
    }
}

#[test]
fn machine_code_of_another_card_is_refused_with_a_sentence() {
    let Some(machine) = Machine::new("machine_code_of_another_card_is_refused_with_a_sentence")
    else {
        return;
    };
    // The card takes only PTX. To the program it looks like a card whose driver does not know the machine code.
    let mut command = machine.train("out", 1, false);
    command.env_remove("ARCFACE_CU_ARCH");
    fails(
        command,
        &[
            "on the GPU",
            "CUDA_ERROR_NO_BINARY_FOR_GPU",
            "does not take",
        ],
    );
    let mut command = machine.train("other", 1, false);
    command.env("ARCFACE_CU_ARCH", "compute_90");
    fails(
        command,
        &["ARCFACE_CU_ARCH", "compute_90", "software card", "sm_80"],
    );
}

#[test]
fn a_card_without_stream_ordered_memory_trains() {
    let Some(machine) = Machine::new("a_card_without_stream_ordered_memory_trains") else {
        return;
    };
    machine.trained("pooled", 2, false);
    let mut command = machine.train("plain", 2, false);
    let output = command.env("SOFTWARE_CARD_POOLS", "0").output().unwrap();
    stdout_of_success(&output);
    let calls = machine.report();
    assert!(calls.contains_key("cuMemFree_v2") && !calls.contains_key("cuMemFreeAsync"));
    let [pooled, plain] = ["pooled", "plain"].map(|name| machine.path(name));
    assert_same_run(&pooled, &plain, "without stream-ordered memory");
}
