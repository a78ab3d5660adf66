//! The script that runs on a machine with a card must not itself fail there. Here it runs on a parcel of stubs, with
//! tools that are missing, fail or hang, and must always print its table.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// A parcel whose programs are shell scripts.
struct Parcel(tempfile::TempDir);

/// What a run printed, how it ended and how long it took.
struct Ran {
    text: String,
    code: Option<i32>,
    time: Duration,
}

impl Parcel {
    /// A parcel whose programs all do what is expected.
    fn new() -> Self {
        let parcel = Parcel(tempfile::tempdir().unwrap());
        fs::copy("tests/gpu_kit/run.sh", parcel.path().join("run.sh")).unwrap();
        parcel.put(
            "arcface-cu",
            r#"case $1 in
info) echo "--device auto takes cuda:0" ;;
train)
    while (($#)); do [[ $1 == --out ]] && out=$2; [[ $1 == --resume ]] && resumed=1; shift; done
    mkdir -p "$out/checkpoints"; echo whole >"$out/checkpoints/step-1.safetensors"
    [[ $out == *killed && -z ${resumed:-} ]] && sleep 60
    echo bits >"$out/weights.safetensors" ;;
esac"#,
        );
        parcel.put(
            "device",
            r#"if [[ $1 == --list ]]; then
    printf '%s: test\n' conformance::all_on_gpu ops_a::emulated::x ops_a::on_gpu::x ops_a::on_gpu::y ops_b::on_gpu::z training::on_gpu::demo
else
    echo "test result: ok. 1 passed; 0 failed"
fi"#,
        );
        parcel.put(
            "bench",
            r#"case $1 in
kernels) line='{"batch":128,"measured_us":30.5,"modelled_us":20.25,"operation":"add here","ratio":1.5}' ;;
train_step) line='{"batch":512,"images_per_second":900.0,"network":"resnet50","what":"train"}' ;;
head) line='{"bare_milliseconds":2.0,"classes":9,"d":8,"milliseconds":1.5,"n":7,"what":"forward"}' ;;
esac
while (($#)); do [[ $1 == --json ]] && echo "$line" >"$2"; shift; done"#,
        );
        parcel
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    /// A program of these lines.
    fn put(&self, name: &str, lines: &str) {
        let path = self.path().join(name);
        fs::write(&path, format!("#!/usr/bin/env bash\n{lines}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Runs the script where neither CUDA's tools nor Python can be found.
    fn run(&self, words: &[&str]) -> Ran {
        let began = Instant::now();
        let output = Command::new("bash")
            .arg("run.sh")
            .args(words)
            .current_dir(self.path())
            .env("PATH", "/usr/bin:/bin")
            .env("HOME", self.path())
            .env("ARCFACE_CU_PYTHON", "false")
            .env_remove("VIRTUAL_ENV")
            .env_remove("CONDA_PREFIX")
            .env_remove("CUDA_PATH")
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned()
            + &String::from_utf8_lossy(&output.stderr);
        println!("{text}");
        Ran {
            text,
            code: output.status.code(),
            time: began.elapsed(),
        }
    }

    /// A stage's status, from its JSON.
    fn status(&self, stage: &str) -> String {
        let path = self.path().join(format!("results/{stage}.json"));
        let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        json["status"].as_str().unwrap().to_owned()
    }
}

const STAGES: [&str; 12] = [
    "info",
    "conformance",
    "operations",
    "training",
    "twice",
    "resume",
    "kernels",
    "train_step",
    "head",
    "torch",
    "sanitizer",
    "ncu",
];

/// The lines of the table that every run ends with.
#[track_caller]
fn assert_table(ran: &Ran) {
    for words in [
        "stage        status",
        "modelled",
        "PyTorch",
        "results are in",
    ] {
        assert!(ran.text.contains(words), "no {words} in the table");
    }
}

#[test]
fn a_good_card_passes_and_the_table_sets_the_numbers_side_by_side() {
    let parcel = Parcel::new();
    let ran = parcel.run(&[]);
    assert_table(&ran);
    assert_eq!(ran.code, Some(0));
    for stage in STAGES {
        let skipped = ["torch", "sanitizer", "ncu"].contains(&stage);
        let expected = if skipped { "skipped" } else { "passed" };
        assert_eq!(parcel.status(stage), expected, "{stage}");
    }
    // Names, expected, measured, ratio.
    let row = |name: &str| -> Vec<String> {
        let line = ran.text.lines().rfind(|line| line.starts_with(name));
        let line = line.unwrap_or_else(|| panic!("no row {name}"));
        line[name.len()..]
            .split_whitespace()
            .map(String::from)
            .collect()
    };
    assert_eq!(row("add here, batch 128"), ["20.2", "30.5", "1.50"]);
    assert_eq!(row("forward, 7 x 8 x 9"), ["2000", "1500", "0.75"]);
    assert_eq!(row("resnet50, train, batch 512"), ["-", "900.0", "-"]);
    for why in [
        "compute-sanitizer is not here",
        "no Python with a PyTorch",
        "ncu is not here",
    ] {
        assert!(ran.text.contains(why), "{why}");
    }
    // The contents of the parcel are listed, and each test runs in its own process.
    let operations = fs::read_to_string(parcel.path().join("results/operations.txt")).unwrap();
    assert!(operations.contains("3 tests, 0 failed"), "{operations}");
}

#[test]
fn a_program_that_is_missing_or_fails_stops_no_other_stage() {
    let parcel = Parcel::new();
    fs::remove_file(parcel.path().join("device")).unwrap();
    let path = parcel.path().join("bench");
    let good = fs::read_to_string(&path).unwrap();
    let bad = "kernels) echo 'a kernel failed'; exit 3 ;;\nkernels)";
    fs::write(&path, good.replace("kernels)", bad)).unwrap();
    let ran = parcel.run(&[]);
    assert_table(&ran);
    assert_eq!(ran.code, Some(1));
    for (stage, expected) in [
        ("conformance", "failed"),
        ("operations", "failed"),
        ("twice", "passed"),
        ("kernels", "failed"),
        ("train_step", "passed"),
        ("torch", "skipped"),
    ] {
        assert_eq!(parcel.status(stage), expected, "{stage}");
    }
    assert!(ran.text.contains("exit code 1: a kernel failed"));
}

#[test]
fn one_test_that_faults_fails_alone() {
    let parcel = Parcel::new();
    parcel.put(
        "device",
        r#"if [[ $1 == --list ]]; then
    printf '%s: test\n' ops_a::on_gpu::faults ops_a::on_gpu::hides ops_a::on_gpu::works ops_b::on_gpu::skips
else
    case $2 in
    *faults) kill -SEGV $$ ;;
    *hides) echo "test result: ok. 0 passed; 0 failed" ;;
    *skips) echo "SKIPPED it: no GPU"; echo "test result: ok. 1 passed; 0 failed" ;;
    *) echo "test result: ok. 1 passed; 0 failed" ;;
    esac
fi"#,
    );
    let ran = parcel.run(&["--from", "operations", "--limit", "20"]);
    assert_eq!(ran.code, Some(1));
    let operations = fs::read_to_string(parcel.path().join("results/operations.txt")).unwrap();
    assert!(operations.contains("4 tests, 3 failed"), "{operations}");
    assert!(
        operations.contains("passed  ops_a::on_gpu::works"),
        "{operations}"
    );
    assert!(
        operations.contains("ops_a::on_gpu::hides did not run"),
        "{operations}"
    );
    assert!(
        operations.contains("ops_b::on_gpu::skips did not run"),
        "{operations}"
    );
}

#[test]
fn a_stage_that_hangs_is_ended_and_the_next_one_follows() {
    let parcel = Parcel::new();
    // The program ignores SIGTERM.
    let path = parcel.path().join("bench");
    let good = fs::read_to_string(&path).unwrap();
    let hung = "train_step) trap '' TERM; echo begun; echo $$ >pid; while :; do sleep 1; done ;;\ntrain_step)";
    fs::write(&path, good.replace("train_step)", hung)).unwrap();
    let ran = parcel.run(&["--from", "train_step", "--limit", "2"]);
    assert_table(&ran);
    assert_eq!(parcel.status("train_step"), "timed out");
    assert_eq!(parcel.status("head"), "passed");
    let text = fs::read_to_string(parcel.path().join("results/train_step.txt")).unwrap();
    assert!(text.contains("begun"), "what it had printed is kept");
    let pid = fs::read_to_string(parcel.path().join("pid")).unwrap();
    // The command line is empty after the process has ended, even before its parent waits for it.
    let command = Path::new("/proc").join(pid.trim()).join("cmdline");
    let command = fs::read(command).unwrap_or_default();
    assert!(command.is_empty(), "the program that hung is still there");
    assert!(ran.time < Duration::from_secs(60), "{:?}", ran.time);
}

#[test]
fn different_bits_are_a_failure() {
    let parcel = Parcel::new();
    let path = parcel.path().join("arcface-cu");
    let good = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        good.replace("echo bits", "echo $RANDOM$RANDOM$RANDOM"),
    )
    .unwrap();
    let ran = parcel.run(&["--from", "twice", "--limit", "20"]);
    assert_eq!(ran.code, Some(1));
    assert_eq!(parcel.status("twice"), "failed");
    assert_eq!(parcel.status("resume"), "failed");
}

#[test]
fn without_time_nothing_is_begun_and_a_later_run_goes_on() {
    let parcel = Parcel::new();
    let ran = parcel.run(&["--minutes", "0"]);
    assert_table(&ran);
    assert_eq!(ran.code, Some(1), "what was not run did not pass");
    assert!(STAGES.iter().all(|stage| parcel.status(stage) == "not run"));
    assert!(ran.text.contains("go on with --from info"));

    let ran = parcel.run(&["--from", "head"]);
    assert_table(&ran);
    assert_eq!(parcel.status("kernels"), "not run");
    assert_eq!(parcel.status("head"), "passed");
}

#[test]
fn wrong_usage_is_told() {
    let parcel = Parcel::new();
    for (words, what) in [
        (&["--from", "nowhere"][..], "operations"),
        (&["--minutes", "soon"], "whole number"),
        (&["--minutes"], "needs a value"),
        (&["--quick"], "--quick is not known"),
    ] {
        let ran = parcel.run(words);
        assert_eq!(ran.code, Some(2));
        assert!(ran.text.contains(what), "{}", ran.text);
    }
}
