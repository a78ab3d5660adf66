//! Imports networks from other programs' files.
//!
//! [`open`] reads a model file of any known format, which it recognises by content. It returns weights in our layout,
//! and a report of what happened to each tensor:
//!
//! | file | read by | its tensors are matched |
//! |---|---|---|
//! | this program's weights and checkpoints | [`checkpoint`] | as they are |
//! | Keras `.h5` | [`formats::keras`] | by layer name |
//! | PyTorch `.pt`, `.pth`, `.ckpt` | [`formats::torch`] | by name, below a prefix such as `state_dict.` |
//! | other safetensors | [`formats::safetensors`] | by PyTorch's or Keras's names |
//! | ONNX | [`formats::onnx`] | by the structure of the graph |
//!
//! Such a file does not name its network. [`open`] tries the networks of the presets and takes one whose parameters are
//! all in the file. If a preset is named, no other is tried. An ONNX graph says which layers there are, so one that is no
//! preset's is a network of its own, if every node of it is a layer here.

mod fit;
mod input;
mod keras;
pub mod onnx;
mod refusal;
mod structure;
mod torch;

use crate::backend::InputTransform;
use crate::base::files::start_of;
use crate::base::text::shown;
use crate::graph::layers::Layers;
use crate::graph::{Model, NodeId, Op};
use crate::models::Network;
use crate::recipe::config::{Config, KnownNetwork, NetworkConfig};
use crate::recipe::presets;
use crate::weights::checkpoint::{self, ClassRows, Weights};
use crate::weights::convention::{Convention, check_pairs};
use crate::weights::formats::tensors::TensorFile;
use crate::weights::formats::{self, onnx::Graph};
use crate::{Error, Result};
use fit::{Fitted, Names, fit};
use input::{composed, implausible, note_on_colours, put_colours_right, turn_channels};
use refusal::{another_network, holdings, more_than_ours, not_ours};
use std::cmp::Reverse;
use std::path::Path;
use structure::{Structured, by_itself, by_structure};

pub use refusal::no_weights;

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
    /// Who says what the network takes for pixels.
    pub input: InputOrigin,
    /// What became of its tensors; of this program's own files nothing.
    pub report: Report,
    /// What a person should know of it, a sentence each.
    pub notes: Vec<String>,
}

/// Who says what a network takes for pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InputOrigin {
    /// The file, in so many words.
    File,
    /// The graph, which begins with it, on pixels of 0..255.
    Graph,
    /// The options.
    Option,
    /// Nobody: it is assumed to be what the preset's networks take.
    Preset,
}

/// What a file does not say of its network.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// The preset whose network it is; none: all are tried.
    pub preset: Option<String>,
    /// Settings over the preset, as `key=value`.
    pub settings: Vec<String>,
    /// What the network takes for pixels; none: what the file says, else the preset's. Where a graph begins with a
    /// transform of its own, what the graph takes.
    pub input: Option<InputTransform>,
    /// Whether the network takes blue, green, red: the input channels of its first filters are swapped then, so that it
    /// takes red, green, blue here.
    pub bgr: bool,
    /// Whether the class rows in a file of this program's are read, too.
    pub class_rows: bool,
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
    /// Takes off the prefix that the tensors of one of these networks have, and returns it.
    fn unprefix(&mut self, models: &[Model]) -> String {
        match self {
            Content::Tensors(file, conventions) if conventions.contains(&Convention::Torch) => {
                torch::strip_prefix(file, models)
            }
            _ => String::new(),
        }
    }
}

/// Reads a network from a file of any kind.
///
/// # Errors
/// The file cannot be read, is of no kind that is known, or no network here has its structure; of all that were tried,
/// the sentence tells of the nearest. A preset or settings for a file of this program, which says itself what it holds.
pub fn open(path: &Path, options: &ImportOptions) -> Result<Imported> {
    let (kind, content) = read(path)?;
    let mut imported = match content {
        Content::Own => own(path, kind, options)?,
        other => foreign_file(path, kind, other, options)?,
    };
    imported.take(options)?;
    Ok(imported)
}

/// Weights of this program.
fn own(path: &Path, kind: &'static str, options: &ImportOptions) -> Result<Imported> {
    if options.preset.is_some() || !options.settings.is_empty() {
        return Err(Error::Usage(format!(
            "{} says itself which network it holds; --preset and --set are for other programs' files",
            shown(path)
        )));
    }
    let (weights, class_rows) = match options.class_rows {
        true => Weights::load_with_classes(path)?,
        false => (Weights::load(path)?, None),
    };
    Ok(Imported {
        weights,
        class_rows,
        kind,
        input: InputOrigin::File,
        report: Report::default(),
        notes: Vec::new(),
    })
}

fn foreign_file(
    path: &Path,
    kind: &'static str,
    content: Content,
    options: &ImportOptions,
) -> Result<Imported> {
    let candidates = candidates(options)?;
    let models = candidates.iter().map(|config| config.model.build());
    let mut content = content;
    let prefix = content.unprefix(&models.collect::<Result<Vec<Model>>>()?);
    let mut notes = Vec::new();
    let (config, fitted, class_rows, input) = match content {
        Content::Tensors(file, conventions) => {
            let (config, mut fitted, rows) = by_name(path, &file, conventions, &candidates)?;
            if !options.bgr {
                notes.extend(put_colours_right(
                    path,
                    &prefix,
                    &file,
                    &config,
                    &mut fitted,
                )?);
            }
            (config, fitted, rows, InputOrigin::Preset)
        }
        Content::Graph(graph) => {
            let own = options.preset.is_none();
            let (config, fitted, input) = structured(path, &graph, &candidates, own)?;
            if input != InputOrigin::File && !options.bgr {
                notes.extend(note_on_colours(&config));
            }
            (config, fitted, None, input)
        }
        Content::Own => unreachable!("read by `own`"),
    };
    let d = config.model.embedding_size()?;
    let rows = class_rows.as_ref().map_or(0, Vec::len);
    Ok(Imported {
        weights: Weights {
            classes: rows / d,
            config,
            trained_on: None,
            imported_from: Some(file_name(path)),
            params: fitted.params,
            statistics: fitted.statistics,
        },
        class_rows,
        kind,
        input,
        report: fitted.report,
        notes,
    })
}

/// The network that a graph is: one of the candidates', or one of its own where that is allowed.
fn structured(path: &Path, graph: &Graph, candidates: &[Config], own: bool) -> Result<Structured> {
    let unlike = match by_structure(graph, candidates) {
        Ok(found) => return Ok(found),
        Err(unlike) => unlike,
    };
    let none = "is none of the networks here";
    Err(Error::data(
        path,
        match candidates.first().filter(|_| own) {
            None => format!("{none}. It is {unlike}"),
            Some(base) => match by_itself(graph, base) {
                Ok(found) => return Ok(found),
                Err(why) => format!("{none}, nor one of its own: {why}. It is {unlike}"),
            },
        },
    ))
}

impl Imported {
    /// Makes the network take what the options say of its input.
    fn take(&mut self, options: &ImportOptions) -> Result<()> {
        let config = &mut self.weights.config;
        if options.bgr {
            let model = config.model.build()?;
            check_turnable(&model)?;
            turn_channels(&model, &mut self.weights.params);
            // What the graph itself does is in its own order of channels; all else is told by colour.
            if self.input == InputOrigin::Graph {
                let InputTransform { scale, shift } = &mut config.model.input;
                scale.reverse();
                shift.reverse();
            }
        }
        if let Some(outer) = options.input {
            config.model.input = match self.input {
                // The caller's comes before what the graph does.
                InputOrigin::Graph => composed(config.model.input, outer),
                _ => outer,
            };
            self.input = InputOrigin::Option;
        }
        if matches!(self.input, InputOrigin::Graph | InputOrigin::Option) {
            self.notes.extend(implausible(&config.model.input));
        }
        Ok(())
    }
}

/// The layers of the network in a file and what they take for pixels, as far as the file says; none where it is a
/// network by name, or the file does not tell the layers.
///
/// # Errors
/// The file cannot be read; an ONNX graph that is no network here.
pub fn own_network(path: &Path) -> Result<Option<(Layers, Option<InputTransform>)>> {
    let (model, input) = match read(path)?.1 {
        Content::Own => (checkpoint::config(path)?.model, InputOrigin::File),
        Content::Tensors(..) => return Ok(None),
        Content::Graph(graph) => {
            let candidates = candidates(&ImportOptions::default())?;
            let (config, _, input) = structured(path, &graph, &candidates, true)?;
            (config.model, input)
        }
    };
    Ok(match model.network {
        NetworkConfig::Known(_) => None,
        NetworkConfig::Custom(layers) => {
            let known = (input != InputOrigin::Preset).then_some(model.input);
            Some((layers, known))
        }
    })
}

/// What a file has for the network of `config`, as a start for training: what it does not give, or has in another shape,
/// starts as in a new network of this seed.
///
/// # Errors
/// The file cannot be read, or gives less than half of the network's tensors: then it is another network's.
pub fn start(path: &Path, config: &Config, seed: u64) -> Result<Start> {
    let model = config.model.build()?;
    let mut content = read(path)?.1;
    let prefix = content.unprefix(std::slice::from_ref(&model));
    let mut notes = Vec::new();
    if !matches!(content, Content::Own) {
        check_pairs(&model)?;
    }
    let mut classes = None;
    let (fitted, input) = match content {
        Content::Own => {
            let theirs = checkpoint::given(path)?;
            classes = theirs.classes;
            let fitted = fit(&model, Convention::Own, &theirs.network, seed);
            (fitted, Some(theirs.config.model.input))
        }
        Content::Tensors(file, conventions) => {
            let each = conventions
                .iter()
                .map(|&convention| fit(&model, convention, &file, seed));
            let best = each.min_by_key(|fitted| fitted.report.missing.len());
            let mut best = best.expect("there is a convention for every kind of file");
            if best.report.mapped.len() < best.report.missing.len() {
                return Err(another_network(
                    path,
                    config,
                    &best.report,
                    &holdings(&file),
                ));
            }
            notes.extend(put_colours_right(path, &prefix, &file, config, &mut best)?);
            (best, None)
        }
        Content::Graph(graph) => {
            let (found, fitted, input) =
                structured(path, &graph, std::slice::from_ref(config), false)?;
            let (theirs, ours) = (found.model.embedding_size()?, model.embedding_size());
            if theirs != ours {
                return Err(Error::data(
                    path,
                    format!(
                        "makes embeddings of {theirs} numbers, and the run's have {ours}; --set model.embedding.size={theirs} would fit"
                    ),
                ));
            }
            if input != InputOrigin::File {
                notes.extend(note_on_colours(&found));
            }
            if input == InputOrigin::Graph {
                notes.extend(implausible(&found.model.input));
            }
            let known = (input != InputOrigin::Preset).then_some(found.model.input);
            (fitted, known)
        }
    };
    if fitted.report.mapped.len() < fitted.report.missing.len() {
        return Err(another_network(
            path,
            config,
            &fitted.report,
            "`arcface-cu import` tells which",
        ));
    }
    Ok(Start {
        file: file_name(path),
        params: fitted.params,
        statistics: fitted.statistics,
        input,
        classes,
        report: fitted.report,
        notes,
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
    /// What they take for pixels, where the file says it.
    pub input: Option<InputTransform>,
    /// The class rows in a file of this program's.
    pub classes: Option<ClassRows>,
    /// What the file gave, and what it did not.
    pub report: Report,
    /// What a person should know of it, a sentence each.
    pub notes: Vec<String>,
}

/// Looks at a file's first bytes, and reads it.
fn read(path: &Path) -> Result<(&'static str, Content)> {
    use Convention::{Keras, Torch};
    if let Some(error) = formats::others::missing(path) {
        return Err(error);
    }
    let start = start_of(path)?;
    formats::others::refuse(path, &start)?;
    let tensors = |kind, file, conventions| Ok((kind, Content::Tensors(file, conventions)));
    if start.starts_with(&formats::keras::SIGNATURE) {
        return tensors("Keras weights", formats::keras::open(path)?, &[Keras]);
    }
    if formats::safetensors::is_safetensors(&start) {
        return match checkpoint::is_own(path)? {
            true => Ok(("weights of this program", Content::Own)),
            false => tensors(
                "safetensors",
                formats::safetensors::open(path)?,
                &[Torch, Keras],
            ),
        };
    }
    if formats::torch::is_torch(&start) {
        return tensors("PyTorch weights", formats::torch::open(path)?, &[Torch]);
    }
    if formats::onnx::may_be_onnx(&start) {
        return Ok(("an ONNX graph", Content::Graph(Graph::read(path)?)));
    }
    Err(formats::others::error(path, &start))
}

/// The configurations to try: the named preset's, or those of all presets, followed by every other network with each
/// kind of embedding.
fn candidates(options: &ImportOptions) -> Result<Vec<Config>> {
    if let Some(preset) = &options.preset {
        return Ok(vec![Config::load(preset, None, &options.settings)?]);
    }
    let own: Vec<Config> = presets::NAMES
        .iter()
        .map(|name| Config::load(name, None, &options.settings))
        .collect::<Result<_>>()?;
    let mut all: Vec<Config> = Vec::new();
    let known = |config: &Config| match config.model.network {
        NetworkConfig::Known(known) => Some(known),
        NetworkConfig::Custom(_) => None,
    };
    let others = own.iter().flat_map(|config| {
        let known = known(config).into_iter();
        known.flat_map(move |known| {
            Network::ALL.map(|backbone| {
                let mut config = config.clone();
                config.model.network = NetworkConfig::Known(KnownNetwork { backbone, ..known });
                config
            })
        })
    });
    for config in own.iter().cloned().chain(others) {
        let model = |config: &Config| {
            known(config).map(|known| (known.backbone, std::mem::discriminant(&known.embedding)))
        };
        let new = all.iter().all(|known| model(known) != model(&config));
        // IR networks and their embeddings go together.
        let together = known(&config).is_none_or(|k| k.backbone.family() == k.embedding.family());
        if new && together && config.model.build().is_ok() {
            all.push(config);
        }
    }
    Ok(all)
}

/// The candidate with the fewest missing tensors, at best none. Among equals, the one with the most tensors wins: every
/// name in IResNet18 is also a name in IResNet50.
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
            let names = Names::new(file, &model, convention);
            if let Some(d) = names.embedding_size(&model, convention)
                && d != model.embedding_size()
            {
                config.model.set_embedding_size(d);
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
    // Shapes are those of the file's tensors where none is missing; until then nothing is allocated by them.
    let names = Names::new(file, &model, convention);
    let missing = names.missing(&model, convention);
    if !missing.is_empty() {
        let (_, given) = names.missing_and_given(&model, convention);
        return Err(not_ours(path, &config, &missing, file, given));
    }
    let mut fitted = fit(&model, convention, file, config.train.seed);
    if convention == Convention::Torch
        && let Some(error) = more_than_ours(path, &config, &fitted.report, file)
    {
        return Err(error);
    }
    let class_rows = match convention {
        Convention::Keras => keras::take_class_rows(file, &model, &mut fitted.report),
        _ => None,
    };
    Ok((config, fitted, class_rows))
}

fn file_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

/// Checks that only convolutions read the picture: what another layer gives would be turned, too.
fn check_turnable(model: &Model) -> Result<()> {
    let reads = model.readers(NodeId(0)).map(|reader| model.node(reader));
    let mut others = reads.filter(|node| !matches!(node.op, Op::Conv2d { .. }));
    match others.next() {
        None => Ok(()),
        Some(node) => Err(Error::Usage(format!(
            "--bgr turns the channels of the first convolutions, and here layer {} reads the picture",
            node.name
        ))),
    }
}
