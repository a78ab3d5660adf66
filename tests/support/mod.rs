//! What tests share: the devices; the program, weights of a small network, pictures.
#![allow(
    dead_code,
    unused_imports,
    reason = "each test file uses a part of this"
)]

pub(crate) mod commands;
pub(crate) mod devices;
pub(crate) mod emulator;
pub(crate) mod nvdisasm;
pub(crate) mod training;

use arcface_cu::data::{Dataset, Image};
use arcface_cu::graph::params::ParamTable;
use arcface_cu::recipe::config::Config;
use arcface_cu::weights::checkpoint::Weights;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Runs `arcface-cu` with these words.
pub(crate) fn arcface_cu<S: AsRef<std::ffi::OsStr>>(words: impl IntoIterator<Item = S>) -> Output {
    Command::new(env!("CARGO_BIN_EXE_arcface-cu"))
        .args(words)
        .output()
        .expect("the program starts")
}

/// Standard output of a run that must succeed.
pub(crate) fn stdout_of_success(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(
        output.status.success(),
        "{:?}\n{}\n{}",
        output.status,
        text(&output.stdout),
        text(&output.stderr)
    );
    text(&output.stdout)
}

/// Standard error of a run that must fail with this code.
pub(crate) fn stderr_of_failure(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// A small network with random weights, embedding size 16.
pub(crate) fn random_weights() -> Weights {
    let settings = ["model.embedding.size=16".to_owned()];
    let config = Config::load("demo", None, &settings).unwrap();
    let table = ParamTable::new(&config.model.build().unwrap());
    let (params, statistics) = table.init(11);
    Weights {
        config,
        classes: 3,
        trained_on: None,
        imported_from: None,
        params,
        statistics,
    }
}

/// The same, in a file.
pub(crate) fn random_weights_file(dir: &Path) -> PathBuf {
    let path = dir.join("weights.safetensors");
    random_weights().save(&path).unwrap();
    path
}

/// A picture that is different in every channel and corner, and for every number.
pub(crate) fn picture(number: usize, width: usize, height: usize) -> Image {
    let (fx, fy) = (3 + number % 7, 2 + number % 5);
    let pixels = (0..height)
        .flat_map(|y| (0..width).map(move |x| (x, y)))
        .flat_map(|(x, y)| {
            let wave = ((x * fx + y * fy + 17 * number) % 256) as u8;
            [wave, (x + number * 29) as u8 ^ 0x2a, (y * 2 + x / 3) as u8]
        })
        .collect();
    Image {
        width,
        height,
        pixels,
    }
}

/// Pictures 0.. of 112x112, two a person.
pub(crate) struct Pictures(pub(crate) usize);

impl Dataset for Pictures {
    fn len(&self) -> usize {
        self.0
    }

    fn classes(&self) -> usize {
        self.0.div_ceil(2)
    }

    fn label(&self, index: usize) -> u32 {
        (index / 2) as u32
    }

    fn read(&self, index: usize, image: &mut Image) -> arcface_cu::Result<()> {
        *image = picture(index, 112, 112);
        Ok(())
    }

    fn describe(&self, index: usize) -> String {
        format!("picture {index}")
    }
}

/// The folder of genuine data beside the project, or a line on standard error that says what was skipped.
pub(crate) fn shared_data(test: &str, what: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../shared/data")
        .join(what);
    if path.is_dir() {
        return Some(path);
    }
    skip(test, &format!("{} is not there", path.display()));
    None
}

/// Says on standard error that a test was skipped, and why; `tests/run.sh` counts these lines.
pub(crate) fn skip(test: &str, why: &str) {
    // Straight to the descriptor: the test harness swallows what `println!` prints in a passing test.
    let _ = writeln!(std::io::stderr(), "SKIPPED {test}: {why}");
}

/// Whether an environment variable demands what would otherwise be skipped.
pub(crate) fn required(variable: &str) -> bool {
    std::env::var_os(variable).is_some_and(|value| !value.is_empty() && value != "0")
}
