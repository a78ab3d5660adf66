//! `--weights`, for the commands that use a network.

use super::output::{count, say, warn};
use super::run_folder::RunFolder;
use crate::backend::InputTransform;
use crate::base::text::{one_line, shown};
use crate::recipe::config::NetworkConfig;
use crate::recipe::presets::INPUTS;
use crate::weights::checkpoint::Weights;
use crate::weights::import::{self, ImportOptions, Imported, InputOrigin};
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The network in use.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct WeightsArgs {
    /// The network's weights or a checkpoint (.safetensors). Or a file of another program: Keras .h5, PyTorch .pt, .pth or
    /// .ckpt, ONNX (`import` tells more of it, and takes what the file does not say). Or a folder: a run's, or one with a
    /// single model file.
    #[arg(long = "weights", id = "weights", value_name = "FILE")]
    pub(super) file: PathBuf,
}

/// How Hugging Face's models in PyTorch's format are called, whole or in parts. Other `.bin` files may be anything.
const HUGGING_FACE: &str = "pytorch_model";

/// The ends of names of model files.
const ENDS: [&str; 9] = [
    "safetensors",
    "h5",
    "hdf5",
    "keras",
    "pt",
    "pth",
    "ckpt",
    "onnx",
    "params",
];

/// The model file that `path` means: itself, or the one in that folder.
///
/// # Errors
/// A folder with none, or with several.
pub(super) fn find(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    if let Some(file) = RunFolder::new(path.into()).weights()? {
        return Ok(file);
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("listing the folder", path))? {
        let entry = entry.map_err(Error::io("listing the folder", path))?;
        names.push(entry.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    let is_model = |name: &&String| {
        let end = name
            .rsplit_once('.')
            .map(|(_, end)| end.to_ascii_lowercase());
        let torch = name.starts_with(HUGGING_FACE) && name.ends_with(".bin");
        torch || end.is_some_and(|end| ENDS.contains(&&end[..]))
    };
    let files: Vec<&String> = names.iter().filter(is_model).collect();
    match &files[..] {
        [file] => Ok(path.join(file)),
        [] => Err(import::no_weights(path, &names)),
        several => {
            let list = several.iter().map(|name| format!("\n  {}", one_line(name)));
            Err(Error::data(
                path,
                format!(
                    "is a folder with several model files; name one of them:{}",
                    list.collect::<String>()
                ),
            ))
        }
    }
}

impl WeightsArgs {
    /// Reads the file, and says what network it is.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn load(&self) -> Result<Weights> {
        Ok(load(&self.file, false)?.weights)
    }

    /// Reads the file, and says nothing but warnings.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn read(&self) -> Result<Weights> {
        let file = find(&self.file)?;
        let imported = import::open(&file, &ImportOptions::default())?;
        warn_of(&file, &imported.notes);
        Ok(imported.weights)
    }
}

/// Reads a model file of any kind, or the one in a folder, with the class rows where they are wanted, and says what network it
/// is.
///
/// # Errors
/// It cannot be read.
pub(super) fn load(path: &Path, class_rows: bool) -> Result<Imported> {
    let file = find(path)?;
    if file != path {
        say(format!("weights: {}", shown(&file)));
    }
    let options = ImportOptions {
        class_rows,
        ..ImportOptions::default()
    };
    let imported = import::open(&file, &options)?;
    say(describe(&imported)?);
    warn_of(&file, &imported.notes);
    Ok(imported)
}

/// Warns of what a person should know of a model file.
pub(super) fn warn_of(file: &Path, notes: &[String]) {
    for note in notes {
        warn(format!("warning: {}: {note}", shown(file)));
    }
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
            InputOrigin::Preset => " (assumed: the file does not say; `import --input` does)",
            InputOrigin::Graph => " (as the graph begins, on pixels of 0..255)",
            InputOrigin::File | InputOrigin::Option => "",
        }
    );
    match trained_on {
        Some(data) => {
            text += &format!(
                "; trained on {} of {}",
                count(data.images, "image"),
                count(data.classes, "identity")
            );
        }
        None if *classes > 0 => {
            text += &format!("; trained on {}", count(*classes, "identity"));
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
