//! `arcface-cu export`: weights for other programs.

use super::output::{check_file, make_folder_of, say, size};
use super::weights::{self, WeightsArgs};
use crate::base::text::shown;
use crate::weights::export::onnx::{self, OnnxOptions};
use crate::weights::export::{keras_h5, torch};
use crate::{Error, Result};
use clap::ValueEnum;
use std::fs;
use std::path::PathBuf;

/// Whose file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    /// ONNX, opset 17, any batch size: a network that runs anywhere.
    Onnx,
    /// Keras's HDF5 weights, by layer name.
    KerasH5,
    /// safetensors with PyTorch's state-dict names and layouts.
    Torch,
}

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Whose file is written.
    #[arg(long, value_enum)]
    to: Format,
    /// The file.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// ONNX: keep batch norms as nodes of their own instead of folding them into the filters before them.
    /// Default: off.
    #[arg(long)]
    keep_batch_norm: bool,
    /// ONNX: put the input transform into the graph, which then takes pixels of 0..255. Default: outside, the graph takes
    /// what the network takes.
    #[arg(long)]
    transform_inside: bool,
    /// Keras: write the ArcFace layer, too, for going on with training there; a model without that layer cannot load
    /// the file by order then. Default: the network alone.
    #[arg(long)]
    classes: bool,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let onnx_alone = args.keep_batch_norm || args.transform_inside;
    if onnx_alone && args.to != Format::Onnx {
        return Err(Error::Usage(
            "--keep-batch-norm and --transform-inside are for --to onnx".into(),
        ));
    }
    if args.classes && args.to != Format::KerasH5 {
        return Err(Error::Usage("--classes is for --to keras-h5".into()));
    }
    let file = weights::find(&args.weights.file)?;
    check_file("--out", Some(&args.out), &[("--weights", Some(&file))])?;
    let imported = weights::load(&args.weights.file, args.classes)?;
    let weights = &imported.weights;
    make_folder_of(&args.out)?;
    match args.to {
        Format::Onnx => {
            let options = OnnxOptions {
                keep_batch_norm: args.keep_batch_norm,
                transform_inside: args.transform_inside,
            };
            onnx::write(&args.out, weights, options)?;
        }
        Format::KerasH5 => {
            let rows = imported.class_rows.as_deref().filter(|_| args.classes);
            if args.classes && rows.is_none() {
                return Err(Error::Usage(format!(
                    "{} has no class rows for --classes to write; a run's checkpoints have them",
                    shown(&file)
                )));
            }
            keras_h5::write(&args.out, weights, rows)?;
        }
        Format::Torch => torch::write(&args.out, weights)?,
    }
    let bytes = fs::metadata(&args.out).map_err(Error::io("looking at", &args.out))?;
    say(format!("{}, {}", shown(&args.out), size(bytes.len())));
    if !args.transform_inside {
        say(format!(
            "whoever runs it applies the input transform first: {}, of red, green, blue",
            weights::describe_input(&imported.weights.config.model.input)
        ));
    }
    Ok(())
}
