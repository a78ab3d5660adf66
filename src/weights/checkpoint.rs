//! Weights and checkpoints: safetensors files that carry their configuration.
//!
//! Tensors have the names of the parameter table (`conv1/kernel`, `bn/moving_mean`, ...; KRSC, RSC, KC). A checkpoint adds
//! `momentum/NAME` for every learnt parameter, `head/classes` and `head/momentum` (V x D), and where the classes are more
//! than numbers, `head/names`: a JSON list of what they are called, as bytes. Weights may have `head/classes`, too. The metadata entry `arcface_cu` is JSON:
//!
//! | key | what |
//! |---|---|
//! | `format` | 1 |
//! | `config` | the whole configuration: preset, network and embedding (or the list of [`layers`](crate::graph::layers)), input transform, ... |
//! | `input_size`, `channel_order`, `embedding_size` | 112 (or the size in the list), "rgb" (always: imported weights are converted), D; for other readers of the file |
//! | `classes` | V; 0 where unknown |
//! | `trained_on` | the training data's fingerprint, where known |
//! | `imported_from` | the file that the weights come from, or that their training began with |
//! | `progress` | of a checkpoint: steps done, images of the data, what came of verifying |
//!
//! A file is written beside its place, synced, and renamed, so that at any moment the old file or the new one is there, whole.

use crate::base::files;
use crate::base::fnv::Fnv;
use crate::data::fingerprint::Fingerprint;
use crate::graph::Model;
use crate::graph::params::ParamTable;
use crate::recipe::config::{Config, IMAGE_SIZE};
use crate::weights::formats;
use crate::weights::formats::tensors::TensorFile;
use crate::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::path::{Path, PathBuf};

const METADATA_KEY: &str = "arcface_cu";
const FORMAT: u32 = 1;
const CHANNEL_ORDER: &str = "rgb";

#[derive(Serialize, Deserialize)]
struct Metadata {
    format: u32,
    config: Config,
    #[serde(default = "default_input_size")]
    input_size: usize,
    #[serde(default = "channel_order")]
    channel_order: String,
    // Follows from the configuration.
    #[serde(skip_deserializing)]
    embedding_size: usize,
    classes: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    trained_on: Option<Fingerprint>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    imported_from: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    progress: Option<Progress>,
}

fn default_input_size() -> usize {
    IMAGE_SIZE
}

fn channel_order() -> String {
    CHANNEL_ORDER.into()
}

/// How far a checkpoint's run had come.
#[derive(Clone, Serialize, Deserialize)]
struct Progress {
    steps_done: u64,
    images: usize,
    #[serde(default)]
    verified: Verified,
}

/// What came of verifying a network while it was trained.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Verified {
    /// The best result so far.
    pub best: Option<Best>,
    /// Evaluations since then that were not better, equal ones included.
    pub since: u64,
    /// Whether the evaluation after the last step was interrupted, and is still to be done.
    pub due: bool,
}

/// The best result of a run's evaluations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The steps that were done.
    pub step: u64,
    /// The mean accuracy over the sets, 0 to 1.
    pub accuracy: f32,
    /// The sets.
    pub sets: Vec<String>,
}

/// Class rows with what is known of their classes.
#[derive(Clone, Debug, PartialEq)]
pub struct ClassRows {
    /// V x D.
    pub rows: Vec<f32>,
    /// V.
    pub classes: usize,
    /// What the classes are called, if that is more than their numbers.
    pub names: Option<Vec<String>>,
    /// The data that they were trained on, where that is known.
    pub trained_on: Option<Fingerprint>,
}

/// What it takes to embed: configuration, parameters, running statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// How they were made; holds the network and its input transform.
    pub config: Config,
    /// Number of identities that they were trained on; 0 where that is unknown.
    pub classes: usize,
    /// The data that they were trained on, where that is known.
    pub trained_on: Option<Fingerprint>,
    /// The name of the file of another program's that they were imported from, or of the file that their training began with.
    pub imported_from: Option<String>,
    /// The parameter slab.
    pub params: Vec<f32>,
    /// The statistics slab.
    pub statistics: Vec<f32>,
}

/// What it takes to go on training to the same bits.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    /// The network's part.
    pub weights: Weights,
    /// The optimizer's velocity, a slab.
    pub momentum: Vec<f32>,
    /// Class rows, V x D.
    pub class_rows: Vec<f32>,
    /// Their velocity.
    pub class_momentum: Vec<f32>,
    /// Images in the data, which together with the steps done tell the place in the epoch.
    pub images: usize,
    /// Steps done since the beginning.
    pub steps_done: u64,
    /// What the classes are called, if that is more than their numbers.
    pub class_names: Option<Vec<String>>,
    /// What came of verifying on the way.
    pub verified: Verified,
}

impl Weights {
    /// Builds the network that the weights belong to.
    ///
    /// # Errors
    /// A configuration that makes no sense.
    pub fn model(&self) -> Result<Model> {
        self.config.model.build()
    }

    /// Writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        self.save_with_classes(path, None)
    }

    /// Writes the file, with the class rows (V x D) that belong to the network, if there are any.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save_with_classes(&self, path: &Path, class_rows: Option<&[f32]>) -> Result<()> {
        let model = self.model()?;
        let mut tensors = self.tensors(&ParamTable::new(&model));
        if let Some(rows) = class_rows {
            tensors.push(Tensor::new(CLASSES.into(), self.head_shape(&model), rows));
        }
        save(path, &tensors, &self.metadata(&model, None))
    }

    /// As [`Weights::load`], with the class rows (V x D), if there are any.
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn load_with_classes(path: &Path) -> Result<(Self, Option<Vec<f32>>)> {
        let file = Opened::read(path)?;
        let (weights, model, _) = file.weights()?;
        let tensors = file.tensors()?;
        let rows = match tensors.names().contains(&CLASSES) {
            true => Some(file.tensor(&tensors, CLASSES, &weights.head_shape(&model))?),
            false => None,
        };
        Ok((weights, rows))
    }

    fn head_shape(&self, model: &Model) -> Vec<usize> {
        vec![self.classes, model.embedding_size()]
    }

    /// Reads a weights file or the weights in a checkpoint.
    ///
    /// # Errors
    /// Not such a file, a tensor that is missing, of another shape or not finite.
    pub fn load(path: &Path) -> Result<Self> {
        let file = Opened::read(path)?;
        Ok(file.weights()?.0)
    }

    /// 32 hexadecimal digits that tell these weights from others, whatever file they were read from: a hash of the
    /// network's configuration and of every number.
    pub fn fingerprint(&self) -> String {
        let model =
            serde_json::to_string(&self.config.model).expect("a configuration is plain data");
        let mut hash = Fnv::new();
        hash.part(model.as_bytes());
        hash.words(self.params.iter().map(|x| x.to_bits()));
        hash.words(self.statistics.iter().map(|x| x.to_bits()));
        format!("{:032x}", hash.0)
    }

    fn metadata(&self, model: &Model, progress: Option<Progress>) -> Metadata {
        Metadata {
            format: FORMAT,
            config: self.config.clone(),
            input_size: model.input_shape().h,
            channel_order: channel_order(),
            embedding_size: model.embedding_size(),
            classes: self.classes,
            trained_on: self.trained_on.clone(),
            imported_from: self.imported_from.clone(),
            progress,
        }
    }

    fn tensors(&self, table: &ParamTable) -> Vec<Tensor> {
        let mut tensors = slab("", table, &self.params);
        for s in table.statistics() {
            let values = &self.statistics[s.offset..][..s.len];
            tensors.push(Tensor::new(s.name.clone(), vec![s.len], values));
        }
        tensors
    }
}

impl Checkpoint {
    /// Writes the file.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let model = self.weights.model()?;
        let table = ParamTable::new(&model);
        let mut tensors = self.weights.tensors(&table);
        tensors.extend(slab(MOMENTUM, &table, &self.momentum));
        let rows = self.weights.head_shape(&model);
        tensors.push(Tensor::new(CLASSES.into(), rows.clone(), &self.class_rows));
        tensors.push(Tensor::new(
            CLASS_MOMENTUM.into(),
            rows,
            &self.class_momentum,
        ));
        if let Some(names) = &self.class_names {
            let names = serde_json::to_vec(names).expect("names are plain data");
            tensors.push(Tensor {
                name: CLASS_NAMES.into(),
                shape: vec![names.len()],
                bytes: names,
                dtype: Dtype::U8,
            });
        }
        let progress = Progress {
            steps_done: self.steps_done,
            images: self.images,
            verified: self.verified.clone(),
        };
        save(
            path,
            &tensors,
            &self.weights.metadata(&model, Some(progress)),
        )
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Not a checkpoint, a tensor that is missing, of another shape or not finite.
    pub fn load(path: &Path) -> Result<Self> {
        let file = Opened::read(path)?;
        let (weights, model, progress) = file.weights()?;
        let progress = progress.ok_or_else(|| {
            Error::data(
                path,
                "holds weights alone; training goes on from a checkpoint only",
            )
        })?;
        let tensors = file.tensors()?;
        let table = ParamTable::new(&model);
        let rows = weights.head_shape(&model);
        Ok(Checkpoint {
            momentum: file.params(&tensors, MOMENTUM, &table)?,
            class_rows: file.tensor(&tensors, CLASSES, &rows)?,
            class_momentum: file.tensor(&tensors, CLASS_MOMENTUM, &rows)?,
            class_names: file.class_names(&tensors)?,
            images: progress.images,
            steps_done: progress.steps_done,
            verified: progress.verified,
            weights,
        })
    }
}

/// Whether a safetensors file was written by this program.
///
/// # Errors
/// The file cannot be read, or is cut off in its header.
pub(crate) fn is_own(path: &Path) -> Result<bool> {
    Ok(header(path)?.is_some())
}

/// The entry of this program in a file's header, if there is one. Nothing behind the header is read.
fn header(path: &Path) -> Result<Option<String>> {
    /// A safetensors header, as far as this is concerned.
    #[derive(Deserialize)]
    struct Header {
        #[serde(rename = "__metadata__", default)]
        metadata: HashMap<String, String>,
    }
    let io = || Error::io("reading", path);
    let mut file = File::open(path).map_err(io())?;
    let whole = file.metadata().map_err(io())?.len();
    let mut start = [0; 8];
    file.read_exact(&mut start).map_err(io())?;
    let length = u64::from_le_bytes(start);
    if length > whole - 8 {
        let expected = format!("a header of at most {} bytes", whole - 8);
        return Err(Error::malformed(path, 0, expected, length.to_string()));
    }
    let mut bytes = Vec::new();
    file.take(length).read_to_end(&mut bytes).map_err(io())?;
    let header: Option<Header> = serde_json::from_slice(&bytes).ok();
    Ok(header.and_then(|mut header| header.metadata.remove(METADATA_KEY)))
}

/// The configuration in a weights file or checkpoint. Only the header is read.
///
/// # Errors
/// Not such a file.
pub(crate) fn config(path: &Path) -> Result<Config> {
    Ok(metadata(path, header(path)?.as_deref())?.config)
}

/// What a weights file or checkpoint gives another run.
pub(crate) struct Given {
    /// The network as tensors by name.
    pub(crate) network: TensorFile,
    /// The configuration that it was made by.
    pub(crate) config: Config,
    /// The class rows, if there are any.
    pub(crate) classes: Option<ClassRows>,
}

/// Reads a weights file or checkpoint, once.
///
/// # Errors
/// Not such a file, or not a whole one.
pub(crate) fn given(path: &Path) -> Result<Given> {
    let file = Opened::read(path)?;
    let metadata = file.metadata()?;
    let tensors = file.tensors()?;
    let head = [CLASSES, CLASS_MOMENTUM, CLASS_NAMES];
    let network = |name: &str| !name.starts_with(MOMENTUM) && !head.contains(&name);
    let network = formats::safetensors::floats(&tensors, network);
    let classes = match tensors.names().contains(&CLASSES) {
        false => None,
        true => {
            let shape = [metadata.classes, file.model(&metadata)?.embedding_size()];
            Some(ClassRows {
                rows: file.tensor(&tensors, CLASSES, &shape)?,
                classes: metadata.classes,
                names: file.class_names(&tensors)?,
                trained_on: metadata.trained_on,
            })
        }
    };
    Ok(Given {
        network,
        config: metadata.config,
        classes,
    })
}

const MOMENTUM: &str = "momentum/";
const CLASSES: &str = "head/classes";
const CLASS_MOMENTUM: &str = "head/momentum";
const CLASS_NAMES: &str = "head/names";

/// A named tensor as bytes, little endian.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
    dtype: Dtype,
}

impl Tensor {
    fn new(name: String, shape: Vec<usize>, values: &[f32]) -> Self {
        Tensor {
            name,
            shape,
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            dtype: Dtype::F32,
        }
    }
}

fn slab(prefix: &str, table: &ParamTable, values: &[f32]) -> Vec<Tensor> {
    let tensor = |p: &crate::graph::params::Param| {
        Tensor::new(
            format!("{prefix}{}", p.name),
            p.shape.clone(),
            &values[p.offset..][..p.len()],
        )
    };
    table.params().iter().map(tensor).collect()
}

fn save(path: &Path, tensors: &[Tensor], metadata: &Metadata) -> Result<()> {
    let views: Vec<(&str, TensorView<'_>)> = tensors
        .iter()
        .map(|t| {
            let view = TensorView::new(t.dtype, t.shape.clone(), &t.bytes);
            (
                t.name.as_str(),
                view.expect("shape and bytes belong together"),
            )
        })
        .collect();
    let metadata = serde_json::to_string(metadata).expect("metadata is plain data");
    let metadata = HashMap::from([(METADATA_KEY.to_string(), metadata)]);
    let bytes = safetensors::serialize(views, Some(metadata))
        .map_err(|e| Error::data(path, format!("cannot be made into a safetensors file: {e}")))?;
    files::write(path, &bytes)
}

/// The metadata in this program's entry of a header, checked.
fn metadata(path: &Path, text: Option<&str>) -> Result<Metadata> {
    let text = text.ok_or_else(|| {
        Error::data(
            path,
            "was not written by arcface-cu: its header has no arcface_cu entry",
        )
    })?;
    let metadata: Metadata = serde_json::from_str(text).map_err(|e| {
        Error::data(
            path,
            format!("has a header that this version cannot read: {e}"),
        )
    })?;
    if metadata.format != FORMAT {
        return Err(Error::Unsupported {
            path: path.to_path_buf(),
            what: format!(
                "format {} (this version reads format {FORMAT})",
                metadata.format
            ),
        });
    }
    Ok(metadata)
}

/// A file in memory.
struct Opened {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Opened {
    fn read(path: &Path) -> Result<Self> {
        let bytes = fs::read(path).map_err(Error::io("reading", path))?;
        Ok(Opened {
            path: path.to_path_buf(),
            bytes,
        })
    }

    fn tensors(&self) -> Result<SafeTensors<'_>> {
        SafeTensors::deserialize(&self.bytes).map_err(|e| self.foreign(e))
    }

    fn foreign(&self, why: impl std::fmt::Display) -> Error {
        Error::data(
            &self.path,
            format!("is not a whole safetensors file: {why}"),
        )
    }

    /// The header's entry, checked.
    fn metadata(&self) -> Result<Metadata> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).map_err(|e| self.foreign(e))?;
        let entries = header.metadata().as_ref();
        let text = entries.and_then(|entries| entries.get(METADATA_KEY));
        metadata(&self.path, text.map(String::as_str))
    }

    /// The header's network.
    fn model(&self, metadata: &Metadata) -> Result<Model> {
        let model = metadata.config.model.build();
        let model = model.map_err(|e| Error::data(&self.path, e.to_string()))?;
        let (side, order) = (metadata.input_size, &metadata.channel_order);
        let takes = model.input_shape().h;
        if side != takes || order != CHANNEL_ORDER {
            return Err(Error::Unsupported {
                path: self.path.clone(),
                what: format!(
                    "a network for pictures of {side} pixels with channels in the order {order} (this version takes {takes} and {CHANNEL_ORDER})"
                ),
            });
        }
        Ok(model)
    }

    fn weights(&self) -> Result<(Weights, Model, Option<Progress>)> {
        let metadata = self.metadata()?;
        let model = self.model(&metadata)?;
        let table = ParamTable::new(&model);
        let tensors = self.tensors()?;
        let statistics = table.statistics().iter();
        let statistics = statistics.map(|s| (s.name.clone(), s.offset, vec![s.len]));
        let weights = Weights {
            params: self.params(&tensors, "", &table)?,
            statistics: self.slab(&tensors, table.statistics_len(), statistics)?,
            config: metadata.config,
            classes: metadata.classes,
            trained_on: metadata.trained_on,
            imported_from: metadata.imported_from,
        };
        Ok((weights, model, metadata.progress))
    }

    fn params(
        &self,
        tensors: &SafeTensors<'_>,
        prefix: &str,
        table: &ParamTable,
    ) -> Result<Vec<f32>> {
        let params = table.params().iter();
        let params = params.map(|p| (format!("{prefix}{}", p.name), p.offset, p.shape.clone()));
        self.slab(tensors, table.params_len(), params)
    }

    /// A slab of `len` elements with the tensors of these names, offsets and shapes. It is allocated only once all
    /// of them are found, so it is never larger than the file, whatever the header says of the network.
    fn slab(
        &self,
        tensors: &SafeTensors<'_>,
        len: usize,
        parts: impl Iterator<Item = (String, usize, Vec<usize>)>,
    ) -> Result<Vec<f32>> {
        let find = |(name, offset, shape): (String, usize, Vec<usize>)| {
            let words = self.find(tensors, &name, &shape)?;
            Ok((name, offset, words))
        };
        let parts: Vec<_> = parts.map(find).collect::<Result<_>>()?;
        let mut slab = vec![0.0; len];
        for (name, offset, words) in parts {
            self.read_into(&mut slab[offset..][..words.len()], &name, words)?;
        }
        Ok(slab)
    }

    fn class_names(&self, tensors: &SafeTensors<'_>) -> Result<Option<Vec<String>>> {
        if !tensors.names().contains(&CLASS_NAMES) {
            return Ok(None);
        }
        let (names, classes) = (tensors.tensor(CLASS_NAMES), self.metadata()?.classes);
        let names = names.map_err(|e| self.foreign(e))?;
        let wrong = |why: String| Error::data(&self.path, format!("tensor {CLASS_NAMES}: {why}"));
        let names: Vec<String> = serde_json::from_slice(names.data())
            .map_err(|e| wrong(format!("is no list of names: {e}")))?;
        if names.len() != classes {
            return Err(wrong(format!(
                "expected {classes} names, found {}",
                names.len()
            )));
        }
        Ok(Some(names))
    }

    fn tensor(&self, tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let words = self.find(tensors, name, shape)?;
        let mut values = vec![0.0; words.len()];
        self.read_into(&mut values, name, words)?;
        Ok(values)
    }

    /// A tensor's numbers as they lie in the file, of the expected type and shape.
    fn find<'a>(
        &self,
        tensors: &SafeTensors<'a>,
        name: &str,
        shape: &[usize],
    ) -> Result<&'a [[u8; 4]]> {
        let tensor = tensors
            .tensor(name)
            .map_err(|_| Error::data(&self.path, format!("has no tensor {name}")))?;
        if tensor.dtype() != Dtype::F32 || tensor.shape() != shape {
            return Err(Error::data(
                &self.path,
                format!(
                    "tensor {name}: expected float32 {shape:?}, found {:?} {:?}",
                    tensor.dtype(),
                    tensor.shape()
                ),
            ));
        }
        Ok(tensor.data().as_chunks::<4>().0)
    }

    fn read_into(&self, values: &mut [f32], name: &str, words: &[[u8; 4]]) -> Result<()> {
        for (i, (value, word)) in values.iter_mut().zip(words).enumerate() {
            *value = f32::from_le_bytes(*word);
            if !value.is_finite() {
                let problem = format!("tensor {name}: element {i} is {value}");
                return Err(Error::data(&self.path, problem));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint() -> Checkpoint {
        let settings = ["model.network=mobilefacenet-tiny".to_string()];
        let config = Config::load("demo", None, &settings).unwrap();
        let table = ParamTable::new(&config.model.build().unwrap());
        let (params, statistics) = table.init(3);
        let d = config.model.embedding_size().unwrap();
        // Gaps between parameters are not stored, so they stay zero.
        let momentum = params.iter().map(|p| -p).collect();
        Checkpoint {
            momentum,
            class_rows: (0..5 * d).map(|i| i as f32).collect(),
            class_momentum: vec![0.5; 5 * d],
            images: 40,
            steps_done: 77,
            class_names: Some(["Zoë", "a\nb", "", "0", "\"x\""].map(String::from).to_vec()),
            verified: Verified {
                best: Some(Best {
                    step: 70,
                    accuracy: 0.853_333_3,
                    sets: vec!["lfw".into()],
                }),
                since: 2,
                due: true,
            },
            weights: Weights {
                config,
                classes: 5,
                trained_on: Some(Fingerprint {
                    images: 40,
                    classes: 5,
                    hash: "ab".into(),
                }),
                imported_from: None,
                params,
                statistics,
            },
        }
    }

    #[test]
    fn comes_back_bit_by_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        let saved = checkpoint();
        saved.save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), saved);
        assert_eq!(Weights::load(&path).unwrap(), saved.weights);
        assert!(is_own(&path).unwrap());
        let (weights, rows) = Weights::load_with_classes(&path).unwrap();
        assert_eq!(weights, saved.weights);
        assert_eq!(rows.as_ref(), Some(&saved.class_rows));
        let found = given(&path).unwrap();
        let classes = found.classes.unwrap();
        assert_eq!(classes.rows, saved.class_rows);
        assert_eq!((classes.classes, &classes.names), (5, &saved.class_names));
        let file = found.network;
        assert!(file.ignored.is_empty(), "{:?}", file.ignored);
        assert_eq!(found.config, saved.weights.config);
        assert_eq!(config(&path).unwrap(), saved.weights.config);
        let others = |name: &str| name.starts_with("head/") || name.starts_with(MOMENTUM);
        assert!(file.tensors.iter().all(|t| !others(&t.name)));
        saved.weights.save(&path).unwrap();
        assert_eq!(Weights::load(&path).unwrap(), saved.weights);
        assert_eq!(Weights::load_with_classes(&path).unwrap().1, None);
        assert_eq!(given(&path).unwrap().classes, None);
        let mut other = saved.weights.clone();
        assert_eq!(other.fingerprint(), saved.weights.fingerprint());
        other.params[7] += 1.0;
        assert_ne!(other.fingerprint(), saved.weights.fingerprint());
        let error = Checkpoint::load(&path).unwrap_err().to_string();
        assert!(error.contains("weights alone"), "{error}");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn broken_files_are_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.safetensors");
        checkpoint().save(&path).unwrap();
        let whole = fs::read(&path).unwrap();
        for len in [0, 7, 8, 100, whole.len() / 2, whole.len() - 1] {
            fs::write(&path, &whole[..len]).unwrap();
            let error = Checkpoint::load(&path).unwrap_err().to_string();
            assert!(error.contains("safetensors"), "{len}: {error}");
        }
        let mut few = checkpoint();
        few.class_names = Some(vec!["one".into()]);
        few.save(&path).unwrap();
        let error = Checkpoint::load(&path).unwrap_err().to_string();
        assert!(error.contains("expected 5 names, found 1"), "{error}");
        let mut nan = checkpoint();
        nan.class_rows[3] = f32::NAN;
        nan.save(&path).unwrap();
        let error = Checkpoint::load(&path).unwrap_err().to_string();
        assert!(error.contains("head/classes: element 3 is NaN"), "{error}");
    }
}
