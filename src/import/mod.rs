//! Networks out of other programs' files.
//!
//! [`open`] takes a model file of any kind that this program knows, told by its content, and gives weights in our layout
//! with a report of what became of each tensor:
//!
//! | file | read by | its tensors are matched |
//! |---|---|---|
//! | this program's weights and checkpoints | [`checkpoint`] | as they are |
//! | Keras `.h5` | [`data::keras`] | by layer name |
//! | PyTorch `.pt`, `.pth` | [`data::torch`] | by name, below a prefix such as `state_dict.` |
//! | other safetensors | [`data::safe`] | by PyTorch's or Keras's names |
//! | ONNX | [`data::onnx`] | by the structure of the graph |
//!
//! Which network it is, such a file does not say: it is one of the presets' of which every parameter is there. A preset
//! that is named decides alone.

mod fit;
mod keras;
pub mod onnx;
mod structure;
mod torch;

use crate::backend::InputTransform;
use crate::checkpoint::{self, Weights};
use crate::config::Config;
use crate::convention::Convention;
use crate::data::onnx::Graph;
use crate::data::tensors::TensorFile;
use crate::data::{self, start_of};
use crate::graph::params::ParamTable;
use crate::graph::{Model, NodeId, Op};
use crate::models::Network;
use crate::presets;
use crate::{Error, Result};
use clap::ValueEnum;
use fit::{Fitted, Names, fit};
use std::borrow::Cow;
use std::cmp::Reverse;
use std::path::Path;
use structure::by_structure;

/// A tensor that found its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// Its name in the file.
    pub from: String,
    /// Its name here.
    pub to: String,
    /// Its shape in the file.
    pub shape: Vec<usize>,
}

/// A parameter of the network that the file does not give.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its name here.
    pub to: String,
    /// What it would be called in the file.
    pub from: String,
    /// Why it is not there.
    pub why: String,
}

/// What became of a file's tensors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// What was taken.
    pub mapped: Vec<Mapped>,
    /// What the network has and the file does not give.
    pub missing: Vec<Missing>,
    /// What else the file has: its name, and why it is not taken.
    pub unused: Vec<(String, String)>,
}

/// A network out of a file.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Its parameters, all of them.
    pub weights: Weights,
    /// The class rows (V x D), where the file has an ArcFace layer.
    pub class_rows: Option<Vec<f32>>,
    /// What kind of file it was, as a noun phrase.
    pub kind: &'static str,
    /// What became of its tensors; of this program's own files nothing.
    pub report: Report,
}

/// What a file does not say of its network.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The preset whose network it is; none: all are tried.
    pub preset: Option<String>,
    /// Settings over the preset, as `key=value`.
    pub settings: Vec<String>,
    /// What the network takes for pixels; none: what the file says, else the preset's.
    pub input: Option<InputTransform>,
    /// Whether the network takes blue, green, red: the input channels of its first filters are turned then, so that it
    /// takes red, green, blue here.
    pub bgr: bool,
}

/// What is in a file.
enum Content {
    /// Weights or a checkpoint of this program.
    Own,
    /// Tensors by name, under one of these conventions.
    Tensors(TensorFile, &'static [Convention]),
    /// A graph, whose names do not matter.
    Graph(Graph),
}

impl Content {
    /// The same without the prefix that the tensors of one of these networks have.
    fn unprefixed(mut self, models: &[Model]) -> Self {
        if let Content::Tensors(file, conventions) = &mut self
            && conventions.contains(&Convention::Torch)
        {
            torch::strip_prefix(file, models);
        }
        self
    }
}

/// Reads weights from any file, as the commands that only use a network do.
///
/// # Errors
/// As [`open`].
pub fn weights(path: &Path) -> Result<Weights> {
    Ok(open(path, &ImportOptions::default())?.weights)
}

/// Reads a network from a file of any kind.
///
/// # Errors
/// The file cannot be read, is of no kind that is known, or no network here has its structure; of all that were tried,
/// the sentence tells of the nearest.
pub fn open(path: &Path, options: &ImportOptions) -> Result<Imported> {
    let (kind, content) = read(path)?;
    if let Content::Own = content {
        return Ok(Imported {
            weights: Weights::load(path)?,
            class_rows: Weights::load_classes(path)?,
            kind,
            report: Report::default(),
        });
    }
    let candidates = candidates(options)?;
    let models = candidates.iter().map(|config| config.model.build());
    let content = content.unprefixed(&models.collect::<Result<Vec<Model>>>()?);
    let (mut config, fitted, class_rows) = match content {
        Content::Tensors(file, conventions) => by_name(path, &file, conventions, &candidates)?,
        Content::Graph(graph) => {
            let (config, fitted) = by_structure(path, &graph, &candidates)?;
            (config, fitted, None)
        }
        Content::Own => unreachable!("returned above"),
    };
    if let Some(input) = options.input {
        config.model.input = input;
    }
    let mut params = fitted.params;
    if options.bgr {
        turn_channels(&config.model.build()?, &mut params);
        let InputTransform { scale, shift } = &mut config.model.input;
        scale.reverse();
        shift.reverse();
    }
    let d = config.model.embedding.size();
    Ok(Imported {
        weights: Weights {
            classes: class_rows
                .as_ref()
                .map_or(0, |rows: &Vec<f32>| rows.len() / d),
            config,
            trained_on: None,
            imported_from: Some(file_name(path)),
            params,
            statistics: fitted.statistics,
        },
        class_rows,
        kind,
        report: fitted.report,
    })
}

/// What a file has for the network of `config`, as a start for training: what it does not give, or has in another shape,
/// starts as in a new network of this seed.
///
/// # Errors
/// The file cannot be read, or gives less than half of the network's tensors: then it is another network's.
pub fn start(path: &Path, config: &Config, seed: u64) -> Result<Start> {
    let model = config.model.build()?;
    let fitted = match read(path)?.1.unprefixed(std::slice::from_ref(&model)) {
        Content::Own => fit(&model, Convention::Own, &data::safe::open(path)?, seed),
        Content::Tensors(file, conventions) => {
            let each = conventions
                .iter()
                .map(|&convention| fitted(&file, &model, convention, seed));
            let best = each.min_by_key(|fitted| fitted.report.missing.len());
            best.expect("there is a convention for every kind of file")
        }
        Content::Graph(graph) => {
            let (found, fitted) = by_structure(path, &graph, std::slice::from_ref(config))?;
            let (theirs, ours) = (found.model.embedding.size(), model.embedding_size());
            if theirs != ours {
                return Err(Error::data(
                    path,
                    format!(
                        "makes embeddings of {theirs} numbers, and the run's have {ours}; --set model.embedding.size={theirs} would fit"
                    ),
                ));
            }
            fitted
        }
    };
    let (given, missing) = (fitted.report.mapped.len(), fitted.report.missing.len());
    if given < missing {
        return Err(Error::data(
            path,
            format!(
                "gives {given} of the {} tensors of {}: this is another network; `arcface-cu import` tells which",
                given + missing,
                config.model.network.name()
            ),
        ));
    }
    Ok(Start {
        file: file_name(path),
        params: fitted.params,
        statistics: fitted.statistics,
        report: fitted.report,
    })
}

/// Parameters to begin training with.
#[derive(Clone, Debug)]
pub struct Start {
    /// The name of the file they come from.
    pub file: String,
    /// The parameter slab.
    pub params: Vec<f32>,
    /// The statistics slab.
    pub statistics: Vec<f32>,
    /// What the file gave, and what it did not.
    pub report: Report,
}

/// Looks at a file's first bytes, and reads it.
fn read(path: &Path) -> Result<(&'static str, Content)> {
    use Convention::{Keras, Torch};
    let start = start_of(path)?;
    let tensors = |kind, file, conventions| Ok((kind, Content::Tensors(file, conventions)));
    if start.starts_with(&data::keras::SIGNATURE) {
        return tensors("Keras weights", data::keras::open(path)?, &[Keras]);
    }
    if data::safe::is_safetensors(&start) {
        return match checkpoint::is_own(path)? {
            true => Ok(("weights of this program", Content::Own)),
            false => tensors("safetensors", data::safe::open(path)?, &[Torch, Keras]),
        };
    }
    if data::torch::is_torch(&start) {
        return tensors("PyTorch weights", data::torch::open(path)?, &[Torch]);
    }
    if data::onnx::may_be_onnx(&start) {
        return Ok(("an ONNX graph", Content::Graph(Graph::read(path)?)));
    }
    Err(Error::data(
        path,
        "is no model file that this program knows: expected safetensors, Keras .h5, PyTorch .pt or .pth, or ONNX",
    ))
}

/// The configurations that are tried: the named preset's, or those of all presets, and behind them every other network
/// with each kind of embedding.
fn candidates(options: &ImportOptions) -> Result<Vec<Config>> {
    if let Some(preset) = &options.preset {
        return Ok(vec![Config::load(preset, None, &options.settings)?]);
    }
    let own: Vec<Config> = presets::NAMES
        .iter()
        .map(|name| Config::load(name, None, &options.settings))
        .collect::<Result<_>>()?;
    let mut all: Vec<Config> = Vec::new();
    let others = own.iter().flat_map(|config| {
        Network::value_variants().iter().map(|&network| {
            let mut config = config.clone();
            config.model.network = network;
            config
        })
    });
    for config in own.iter().cloned().chain(others) {
        let model = |config: &Config| {
            let kind = std::mem::discriminant(&config.model.embedding);
            (config.model.network, kind)
        };
        let new = all.iter().all(|known| model(known) != model(&config));
        if new && config.model.build().is_ok() {
            all.push(config);
        }
    }
    Ok(all)
}

/// The first candidate that misses the fewest tensors, none at best; of equals the one that has most: all names of
/// IResNet18 are names of IResNet50 as well.
fn by_name(
    path: &Path,
    file: &TensorFile,
    conventions: &[Convention],
    candidates: &[Config],
) -> Result<(Config, Fitted, Option<Vec<f32>>)> {
    let mut best: Option<((usize, Reverse<usize>), Config, Convention)> = None;
    for config in candidates {
        for &convention in conventions {
            let mut config = config.clone();
            let mut model = config.model.build()?;
            let prepared = prepared(file, &model, convention);
            let names = Names::new(&prepared);
            if let Some(d) = names.embedding_size(&model, convention)
                && d != model.embedding_size()
            {
                config.model.embedding = config.model.embedding.with_size(d);
                let Ok(other) = config.model.build() else {
                    continue;
                };
                model = other;
            }
            let (missing, given) = names.missing_and_given(&model, convention);
            let rank = (missing, Reverse(given));
            if best.as_ref().is_none_or(|(before, ..)| rank < *before) {
                best = Some((rank, config, convention));
            }
        }
    }
    let (_, config, convention) =
        best.ok_or_else(|| Error::data(path, "there is no network to compare it with"))?;
    let model = config.model.build()?;
    let mut fitted = fitted(file, &model, convention, config.train.seed);
    if !fitted.report.missing.is_empty() {
        return Err(not_ours(path, &config, &fitted.report));
    }
    let class_rows = match convention {
        Convention::Keras => keras::take_class_rows(file, &model, &mut fitted.report),
        _ => None,
    };
    Ok((config, fitted, class_rows))
}

/// The tensors under the names that `model` has for them.
fn prepared<'a>(
    file: &'a TensorFile,
    model: &Model,
    convention: Convention,
) -> Cow<'a, TensorFile> {
    match convention {
        Convention::Keras => Cow::Owned(keras::renumbered(file, model)),
        _ => Cow::Borrowed(file),
    }
}

/// The tensors in the network's slabs, reported under their names in the file.
fn fitted(file: &TensorFile, model: &Model, convention: Convention, seed: u64) -> Fitted {
    let mut fitted = fit(model, convention, &prepared(file, model, convention), seed);
    if convention == Convention::Keras {
        keras::restore_names(file, model, &mut fitted.report);
    }
    fitted
}

fn not_ours(path: &Path, config: &Config, report: &Report) -> Error {
    const LISTED: usize = 4;
    let all = report.missing.len() + report.mapped.len();
    let first: Vec<String> = (report.missing.iter().take(LISTED))
        .map(|m| format!("  {} ({}): {}", m.from, m.to, m.why))
        .collect();
    let more = report.missing.len().saturating_sub(LISTED);
    let more = if more > 0 {
        format!("\n  and {more} more")
    } else {
        String::new()
    };
    Error::data(
        path,
        format!(
            "is none of the networks here. The nearest is {} as in preset {}, of whose {all} tensors these are missing:\n{}{more}",
            config.model.network.name(),
            config.preset,
            first.join("\n")
        ),
    )
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Exchanges red and blue in the filters that read the picture.
fn turn_channels(model: &Model, params: &mut [f32]) {
    let table = ParamTable::new(model);
    let reads = |inputs: &[NodeId]| {
        inputs
            .iter()
            .any(|input| model.node(*input).op == Op::Input)
    };
    for node in model.nodes().iter().filter(|node| reads(&node.inputs)) {
        for kernel in ["kernel", "depthwise_kernel"] {
            if let Ok((_, offset, shape)) = table.find(&format!("{}/{kernel}", node.name)) {
                let len: usize = shape.iter().product();
                for pixel in params[offset..][..len].as_chunks_mut::<3>().0 {
                    pixel.reverse();
                }
            }
        }
    }
}
