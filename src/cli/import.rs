//! `arcface-cu import`: other programs' model files as weights of this one.

use super::output::{check_file, count, make_folder_of, say};
use super::weights;
use crate::Result;
use crate::base::text::{one_line, shown};
use crate::recipe::presets::{self, INPUTS};
use crate::weights::import::{self, ImportOptions, Report};
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Keras .h5 (weights or whole model), PyTorch .pt, .pth or .ckpt, safetensors, or ONNX; or a folder with one such file.
    file: PathBuf,
    /// Where the weights go (.safetensors).
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[arg(long, value_name = "NAME", help = preset_help())]
    preset: Option<String>,
    /// A setting over the preset, for example --set model.network=resnet101; may be given again. Default: none.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "preset")]
    settings: Vec<String>,
    #[arg(long, value_name = "NAME", help = input_help(), value_parser = presets::input)]
    input: Option<crate::backend::InputTransform>,
    /// The network takes blue, green, red: the input channels of its first filters are swapped. Default: red, green, blue.
    #[arg(long)]
    bgr: bool,
    /// List what became of each tensor. Default: a count, and what is missing.
    #[arg(long)]
    verbose: bool,
}

fn preset_help() -> String {
    format!(
        "The preset whose network it is: {} [default: the one that fits]",
        presets::NAMES.join(", ")
    )
}

fn input_help() -> String {
    let names: Vec<String> = (INPUTS.iter())
        .map(|known| format!("{} ({})", known.name, known.formula))
        .collect();
    format!(
        "What the network takes for a pixel x of 0..255: {} [default: what the file says, else the preset's]",
        names.join(", ")
    )
}

pub(super) fn run(args: &Args) -> Result<()> {
    let file = weights::find(&args.file)?;
    check_file("--out", Some(&args.out), &[("the model", Some(&file))])?;
    let options = ImportOptions {
        preset: args.preset.clone(),
        settings: args.settings.clone(),
        input: args.input,
        bgr: args.bgr,
        class_rows: true,
    };
    let imported = import::open(&file, &options)?;
    say(weights::describe(&imported)?);
    weights::warn_of(&file, &imported.notes);
    tell(&imported.report, args.verbose);
    let rows = imported.class_rows.as_deref();
    make_folder_of(&args.out)?;
    imported.weights.save_with_classes(&args.out, rows)?;
    say(format!(
        "{}{}",
        shown(&args.out),
        match rows {
            Some(_) => format!(", with {}", count(imported.weights.classes, "class row")),
            None => String::new(),
        }
    ));
    Ok(())
}

/// The counts; with `verbose` also a line for each tensor.
fn tell(report: &Report, verbose: bool) {
    if verbose {
        for mapped in &report.mapped {
            let shape = match &mapped.shape[..] {
                [] => String::new(),
                shape => format!(" {shape:?}"),
            };
            say(format!("  {}{shape} -> {}", mapped.from, mapped.to));
        }
        return tell_rest(report);
    }
    tell_missing(report);
    let hint = if report.unused.is_empty() {
        ""
    } else {
        " (--verbose lists them)"
    };
    say(format!("{}{hint}", sum(report)));
}

/// A line for each tensor that did not come through, and the counts.
pub(super) fn tell_rest(report: &Report) {
    tell_missing(report);
    for (name, why) in &report.unused {
        say(format!("  not used: {}: {why}", one_line(name)));
    }
    say(sum(report));
}

fn tell_missing(report: &Report) {
    for missing in &report.missing {
        say(format!(
            "  not mapped: {} ({}): {}",
            missing.to, missing.from, missing.why
        ));
    }
}

/// `112 tensors mapped, 0 of the network's missing, 3 of the file's not used`
fn sum(report: &Report) -> String {
    if report.mapped.is_empty() && report.missing.is_empty() && report.unused.is_empty() {
        return "weights of this program: all tensors are taken as they are".to_owned();
    }
    format!(
        "{} mapped, {} of the network's missing, {} of the file's not used",
        count(report.mapped.len(), "tensor"),
        report.missing.len(),
        report.unused.len()
    )
}
