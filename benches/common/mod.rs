//! Shared by the benches: the device to run on, and a record of the results that programs can read.
#![allow(dead_code, reason = "each bench uses a part of this")]

use arcface_cu::backend::cuda::gpu::{Gpu, Setup};
use arcface_cu::backend::cuda::{Cache, Cuda};
use serde_json::Value;
use std::fs::File;
use std::io::Write;
use std::path::PathBuf;

/// The device of a bench.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Device {
    /// The CPU.
    Cpu,
    /// NVIDIA GPU number N.
    Cuda(usize),
}

impl Device {
    /// `cpu`, `cuda` or `cuda:N`.
    pub(crate) fn parse(text: &str) -> Self {
        match (text, text.strip_prefix("cuda:").map(str::parse)) {
            ("cpu", _) => Device::Cpu,
            ("cuda", _) => Device::Cuda(0),
            (_, Some(Ok(ordinal))) => Device::Cuda(ordinal),
            _ => quit(&format!("--device {text}: expected cpu, cuda or cuda:N")),
        }
    }
}

/// Opens GPU number `ordinal`, or ends the program with the reason. Compiled kernels are cached where the environment
/// says, else in the folder for temporary files.
pub(crate) fn gpu(ordinal: usize) -> Cuda<Gpu> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let folder = variable(Cache::VARIABLE).map(PathBuf::from);
    let cache =
        Cache::at(folder.unwrap_or_else(|| std::env::temp_dir().join("arcface-cu-kernels")));
    let gpu = Setup::new(variable, cache).and_then(|setup| Gpu::open(ordinal, setup));
    Cuda::new(gpu.unwrap_or_else(|error| quit(&error.to_string())))
}

/// Ends the program with a sentence on standard error.
pub(crate) fn quit(why: &str) -> ! {
    eprintln!("{why}");
    std::process::exit(1);
}

/// A file with one JSON object per line. Each line is written as soon as its result is known, so a run that ends early
/// keeps the lines before.
pub(crate) struct Record(Option<File>);

impl Record {
    /// No file.
    pub(crate) const NONE: Self = Record(None);

    /// A new file, which replaces an old one.
    pub(crate) fn create(path: &str) -> Self {
        match File::create(path) {
            Ok(file) => Record(Some(file)),
            Err(error) => quit(&format!("creating {path}: {error}")),
        }
    }

    /// A line.
    pub(crate) fn add(&mut self, line: Value) {
        let Some(file) = &mut self.0 else { return };
        if let Err(error) = writeln!(file, "{line}") {
            quit(&format!("writing the record: {error}"));
        }
    }
}
