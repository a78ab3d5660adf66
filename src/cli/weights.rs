//! `--weights`, for the commands that use a network.

use super::output::{grouped, say};
use crate::Result;
use crate::backend::InputTransform;
use crate::recipe::config::NetworkConfig;
use crate::recipe::presets::INPUTS;
use crate::weights::checkpoint::Weights;
use crate::weights::import::{self, ImportOptions, Imported, InputOrigin};
use std::path::{Path, PathBuf};

/// The network in use.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct WeightsArgs {
    /// Weights or checkpoint of the network (.safetensors); or Keras .h5, PyTorch .pt or .pth, or ONNX of a network that
    /// is known here or has only layers that are (`import` says more of such files, and lets you say what they do not).
    #[arg(long = "weights", id = "weights", value_name = "FILE")]
    pub(super) file: PathBuf,
}

impl WeightsArgs {
    /// Reads the file, and says what network it is.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn load(&self) -> Result<Weights> {
        Ok(load(&self.file, false)?.weights)
    }
}

/// Reads a model file of any kind, with the class rows where they are wanted, and says what network it is.
///
/// # Errors
/// It cannot be read.
pub(super) fn load(path: &Path, class_rows: bool) -> Result<Imported> {
    let options = ImportOptions {
        class_rows,
        ..ImportOptions::default()
    };
    let imported = import::open(path, &options)?;
    say(describe(&imported)?);
    Ok(imported)
}

/// `network: mobilefacenet, 128-d embedding (preset small), takes RGB as x/127.5 - 1; trained on ...`
///
/// # Errors
/// Weights of no network.
pub(super) fn describe(imported: &Imported) -> Result<String> {
    let Weights {
        config,
        classes,
        trained_on,
        imported_from,
        ..
    } = &imported.weights;
    let mut text = format!(
        "network: {}, {}-d embedding{}, takes RGB as {}{}",
        config.model.network_name(),
        config.model.embedding_size()?,
        match config.model.network {
            NetworkConfig::Known(_) => format!(" (preset {})", config.preset),
            NetworkConfig::Custom(_) => String::new(),
        },
        describe_input(&config.model.input),
        match imported.input {
            InputOrigin::Preset =>
                " (assumed, as the preset: the file does not say; `import --input` does)",
            InputOrigin::Graph => " (as the graph begins, on pixels of 0..255)",
            InputOrigin::File | InputOrigin::Option => "",
        }
    );
    match trained_on {
        Some(data) => {
            text += &format!(
                "; trained on {} images of {} identities",
                grouped(data.images as u64),
                grouped(data.classes as u64)
            );
        }
        None if *classes > 0 => {
            text += &format!("; trained on {} identities", grouped(*classes as u64));
        }
        None => {}
    }
    match (imported.input, imported_from, trained_on) {
        (_, None, _) => {}
        (InputOrigin::File, Some(file), Some(_)) => text += &format!("; begun with {file}"),
        (InputOrigin::File, Some(file), None) => text += &format!("; imported from {file}"),
        (_, Some(file), _) => text += &format!("; {} from {file}", imported.kind),
    }
    Ok(text)
}

/// An input transform by its name, or by its numbers.
pub(super) fn describe_input(input: &InputTransform) -> String {
    let known = INPUTS.iter().find(|known| known.transform == *input);
    known.map_or_else(
        || format!("{:?} x + {:?}", input.scale, input.shift),
        |known| known.formula.to_owned(),
    )
}
