//! The demonstration, made small: every command runs through the program and leaves its files.

mod support;

use arcface_cu::data::{self};
use arcface_cu::encoding::npy;
use arcface_cu::eval;
use std::fs;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};
use support::*;

#[test]
fn a_quick_demonstration_leaves_everything() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("a folder");
    let run = || {
        arcface_cu([
            "demo",
            "--quick",
            "--seed",
            "5",
            "--out",
            out.to_str().unwrap(),
        ])
    };
    let output = run();
    let text = stdout_of_success(&output);
    // What `auto` chose is told once for all four commands.
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(stderr.matches("--device auto").count(), 1, "{stderr}");
    for command in ["pack", "train", "eval", "embed"] {
        assert!(
            text.contains(&format!("$ arcface-cu {command} --")),
            "{command}: {text}"
        );
    }
    let commands = fs::read_to_string(out.join("commands.txt")).unwrap();
    assert_eq!(commands.matches("\narcface-cu ").count(), 4, "{commands}");
    for name in [
        "packed/train.rec",
        "packed/train.idx",
        "packed/property",
        "weights.safetensors",
        "metrics.csv",
        "labels.npy",
        "files.txt",
    ] {
        assert!(out.join(name).is_file(), "{name}");
    }
    // People 12 to 19 are held out; training knows 12 classes.
    let packed = data::open(&out.join("packed")).unwrap();
    assert_eq!((packed.classes(), packed.len()), (12, 96));
    assert!(out.join("packed/reserved/12/0001.jpg").is_file());
    let sets = eval::find(&out.join("eval"), None).unwrap();
    let set = eval::EvalSet::open(&sets[0], None).unwrap();
    assert_eq!((set.name(), set.images()), ("faces", 120));
    assert_eq!(set.same().iter().filter(|&&s| s).count(), 30);
    let json: serde_json::Value =
        serde_json::from_slice(&fs::read(out.join("eval.json")).unwrap()).unwrap();
    assert_eq!(json["sets"][0]["pairs"], 60);
    assert_eq!(npy::read(&out.join("embeddings.npy")).unwrap().shape[0], 48);
    for picture in ["similarity.png", "pairs.png"] {
        image::open(out.join(picture)).unwrap();
    }

    // Again, into the same folder; a file of the user's stays.
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let before = fs::read(out.join("weights.safetensors")).unwrap();
    stdout_of_success(&run());
    assert_eq!(fs::read_to_string(out.join("notes.txt")).unwrap(), "mine");
    let after = fs::read(out.join("weights.safetensors")).unwrap();
    assert!(before == after, "the same seed gives the same weights");
}

#[test]
fn a_folder_of_the_users_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("thesis.tex"), "years of work").unwrap();
    let output = arcface_cu(["demo", "--quick", "--out", dir.path().to_str().unwrap()]);
    let error = stderr_of_failure(&output, 1);
    assert!(error.contains("was not left by an earlier demo"), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// While it generates faces, and while one of its commands runs.
#[cfg(unix)]
#[test]
fn a_signal_ends_the_demonstration() {
    for (name, until) in [("INT", "faces"), ("TERM", "packed/train.rec")] {
        let dir = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_arcface-cu"))
            .args(["demo", "--device", "cpu", "--out"])
            .arg(dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let began = Instant::now();
        while !dir.path().join(until).exists() {
            assert!(began.elapsed() < Duration::from_secs(300), "{until}");
            assert!(child.try_wait().unwrap().is_none(), "{until}");
            sleep(Duration::from_millis(10));
        }
        let id = child.id().to_string();
        let sent = Command::new("kill").args(["-s", name, &id]).status();
        assert!(sent.unwrap().success());
        let asked = Instant::now();
        let status = child.wait().unwrap();
        assert_eq!(status.code(), Some(130), "{name}");
        assert!(asked.elapsed() < Duration::from_secs(5), "{name}");
        assert!(!dir.path().join("weights.safetensors").exists());
    }
}
