//! The command line: argument types with their help, and the one place that chooses a device.
//!
//! Each command is a file with an `Args` type and a `run` function; only they read arguments and print.

mod check;
mod counter;
mod demo;
mod device;
mod embed;
mod environment;
mod eval;
mod export;
mod import;
mod info;
mod interrupt;
mod kernels;
mod landmarks;
#[cfg(feature = "manual")]
mod manual;
mod output;
mod pack;
mod plan;
mod recipe;
mod run_folder;
mod search;
mod source;
mod threads;
mod threshold;
mod train;
mod validation;
mod verify;
mod weights;

pub use device::Gpus;

use crate::backend::cpu::{Instructions, start_threads};
use crate::{Error, Result};
use clap::{Parser, Subcommand};
use device::Installed;
use std::ffi::OsString;
use std::process::ExitCode;

/// Face recognition with ArcFace: train, evaluate and embed, on a GPU or on a machine without one.
#[derive(Debug, Parser)]
#[command(name = "arcface-cu", version, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Generate a small face set, then pack, train, evaluate and embed it.
    Demo(demo::Args),
    /// Train a network on faces.
    Train(train::Args),
    /// Verification accuracy on bcolz arrays, .bin files and pairs of pictures (LFW, AgeDB-30, CFP-FP, ...).
    Eval(eval::Args),
    /// Embed test identities, whole data sets or any pictures, and draw their similarity matrix.
    Embed(embed::Args),
    /// Do two pictures show one person? Cosine, distance, threshold and verdict. Exit code 0 for either answer.
    Verify(verify::Args),
    /// The nearest pictures of a gallery for each query, and rates of identification.
    Search(search::Args),
    /// Turn a data set of any format into a shuffled RecordIO or TFRecord set, or evaluation sets into bcolz arrays.
    Pack(pack::Args),
    /// Read all of a data set: counts, labels, broken and double images, sizes, colours, time. Exit code 1 where training
    /// with the same recipe would fail.
    Check(check::Args),
    /// Make weights of another program's model file: Keras .h5, PyTorch .pt and .pth, safetensors, ONNX.
    Import(import::Args),
    /// Write weights for other programs: ONNX, Keras .h5, PyTorch state dict.
    Export(export::Args),
    /// Memory before running: the table of tensors, and the largest batch that fits. Exit code 1 where nothing fits.
    Plan(plan::Args),
    /// Devices, what was found, and what will be used.
    Info(info::Args),
    /// Compile the CUDA kernels in advance, for machines without NVIDIA's compiler.
    Kernels(kernels::Args),
    /// Words for a shell to complete, on standard output.
    #[cfg(feature = "manual")]
    Completions(manual::CompletionsArgs),
    /// Write the manual as pages for `man`.
    #[cfg(feature = "manual")]
    Man(manual::ManArgs),
}

/// Runs the program: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
pub fn main() -> ExitCode {
    let done = match Cli::try_parse() {
        Ok(cli) => run(cli, &Installed),
        Err(wrong) if wrong.use_stderr() => {
            // Standard error may have no reader.
            let _ = wrong.print();
            return ExitCode::from(2);
        }
        Err(help) => {
            output::note(help.print());
            Ok(())
        }
    };
    let written = output::finish();
    match done.and(written) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::warn(format!("error: {error}"));
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs a command line, the program's name first, on GPUs of the caller's: the program's own path on any device.
///
/// # Errors
/// Wrong usage, or what the command says.
pub fn run_on<S: Into<OsString> + Clone>(
    words: impl IntoIterator<Item = S>,
    gpus: &impl Gpus,
) -> Result<()> {
    let cli = Cli::try_parse_from(words).map_err(|e| Error::Usage(e.to_string()))?;
    run(cli, gpus)
}

fn run(cli: Cli, gpus: &impl Gpus) -> Result<()> {
    let threads = match &cli.command {
        Command::Train(args) => args.threads.threads,
        Command::Demo(args) => args.threads.threads,
        Command::Eval(args) => args.threads.threads,
        Command::Embed(args) => args.threads.threads,
        Command::Verify(args) => args.threads.threads,
        Command::Search(args) => args.threads.threads,
        Command::Pack(args) => args.threads.threads,
        Command::Check(args) => args.threads.threads,
        Command::Import(_)
        | Command::Export(_)
        | Command::Plan(_)
        | Command::Info(_)
        | Command::Kernels(_) => 0,
        #[cfg(feature = "manual")]
        Command::Completions(_) | Command::Man(_) => 0,
    };
    if let Some(name) = environment::variable(Instructions::VARIABLE) {
        name.to_string_lossy().parse::<Instructions>()?.keep_to();
    }
    start_threads(threads)?;
    match cli.command {
        Command::Demo(args) => demo::run(args, gpus),
        Command::Train(args) => train::run(args, gpus),
        Command::Eval(args) => eval::run(args, gpus),
        Command::Embed(args) => embed::run(args, gpus),
        Command::Verify(args) => verify::run(args, gpus),
        Command::Search(args) => search::run(args, gpus),
        Command::Pack(args) => pack::run(args),
        Command::Check(args) => check::run(args),
        Command::Import(args) => import::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Plan(args) => plan::run(args, gpus),
        Command::Info(args) => info::run(args, gpus),
        Command::Kernels(args) => kernels::run(&args),
        #[cfg(feature = "manual")]
        Command::Completions(args) => {
            manual::completions(&args);
            Ok(())
        }
        #[cfg(feature = "manual")]
        Command::Man(args) => manual::man(&args),
    }
}
