//! Weights and checkpoints: safetensors files that carry their configuration.
//!
//! Tensors have the names of the parameter table (`conv1/kernel`, `bn/moving_mean`, ...; KRSC, RSC, KC). A checkpoint adds
//! `momentum/NAME` for every learnt parameter, `head/classes` and `head/momentum` (V x D). The metadata entry `arcface_cu`
//! is JSON: format version, configuration, number of classes, and for a checkpoint its progress and the number of images. A file is written
//! beside its place, synced, and renamed, so that at any moment the old file or the new one is there, whole.

use crate::config::Config;
use crate::graph::Model;
use crate::graph::params::ParamTable;
use crate::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};

const METADATA_KEY: &str = "arcface_cu";
const FORMAT: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Metadata {
    format: u32,
    config: Config,
    classes: usize,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    progress: Option<Progress>,
}

/// How far a checkpoint's run had come.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct Progress {
    steps_done: u64,
    images: usize,
}

/// What it takes to embed: configuration, parameters, running statistics.
#[derive(Clone, Debug, PartialEq)]
pub struct Weights {
    /// How they were made; holds the network and its input transform.
    pub config: Config,
    /// Number of identities that they were trained on.
    pub classes: usize,
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
        let table = ParamTable::new(&self.model()?);
        save(path, &self.tensors(&table), &self.metadata(None))
    }

    /// Reads a weights file or the weights in a checkpoint.
    ///
    /// # Errors
    /// Not such a file, a tensor that is missing, of another shape or not finite.
    pub fn load(path: &Path) -> Result<Self> {
        let file = Opened::read(path)?;
        Ok(file.weights()?.0)
    }

    /// 16 hexadecimal digits that tell these weights from others, whatever file they were read from: FNV-1a, 64 bits, of
    /// the model's configuration and of every number.
    pub fn fingerprint(&self) -> String {
        const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
        const PRIME: u64 = 0x0000_0100_0000_01b3;
        let model =
            serde_json::to_string(&self.config.model).expect("a configuration is plain data");
        let numbers = self.params.iter().chain(&self.statistics);
        let words = (model.bytes().map(u32::from)).chain(numbers.map(|x| x.to_bits()));
        let hash = words.fold(OFFSET, |hash, word| {
            (hash ^ u64::from(word)).wrapping_mul(PRIME)
        });
        format!("{hash:016x}")
    }

    fn metadata(&self, progress: Option<Progress>) -> Metadata {
        Metadata {
            format: FORMAT,
            config: self.config.clone(),
            classes: self.classes,
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
        let table = ParamTable::new(&self.weights.model()?);
        let mut tensors = self.weights.tensors(&table);
        tensors.extend(slab(MOMENTUM, &table, &self.momentum));
        let d = self.weights.config.model.embedding.size();
        let rows = vec![self.weights.classes, d];
        tensors.push(Tensor::new(CLASSES.into(), rows.clone(), &self.class_rows));
        tensors.push(Tensor::new(
            CLASS_MOMENTUM.into(),
            rows,
            &self.class_momentum,
        ));
        let progress = Progress {
            steps_done: self.steps_done,
            images: self.images,
        };
        save(path, &tensors, &self.weights.metadata(Some(progress)))
    }

    /// Reads the file.
    ///
    /// # Errors
    /// Not a checkpoint, a tensor that is missing, of another shape or not finite.
    pub fn load(path: &Path) -> Result<Self> {
        let file = Opened::read(path)?;
        let (weights, progress) = file.weights()?;
        let progress = progress.ok_or_else(|| {
            Error::data(
                path,
                "holds weights alone; training goes on from a checkpoint only",
            )
        })?;
        let tensors = file.tensors()?;
        let table = ParamTable::new(&weights.model()?);
        let rows = [weights.classes, weights.config.model.embedding.size()];
        Ok(Checkpoint {
            momentum: file.slab(&tensors, MOMENTUM, &table)?,
            class_rows: file.tensor(&tensors, CLASSES, &rows)?,
            class_momentum: file.tensor(&tensors, CLASS_MOMENTUM, &rows)?,
            images: progress.images,
            steps_done: progress.steps_done,
            weights,
        })
    }
}

const MOMENTUM: &str = "momentum/";
const CLASSES: &str = "head/classes";
const CLASS_MOMENTUM: &str = "head/momentum";

/// A named tensor as bytes, little endian.
struct Tensor {
    name: String,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn new(name: String, shape: Vec<usize>, values: &[f32]) -> Self {
        Tensor {
            name,
            shape,
            bytes: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
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
            let view = TensorView::new(Dtype::F32, t.shape.clone(), &t.bytes);
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
    write_atomically(path, &bytes)
}

/// Writes a file so that a reader, or a machine that loses power, finds the old contents or the new, never a part.
///
/// # Errors
/// The file cannot be written, synced or renamed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".tmp");
    let temporary = path.with_file_name(name);
    let mut file = File::create(&temporary).map_err(Error::io("creating", &temporary))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(Error::io("writing", &temporary))?;
    fs::rename(&temporary, path).map_err(Error::io("renaming into place", path))?;
    // The name itself is durable once the folder is.
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(Error::io("syncing the folder", folder))
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

    fn weights(&self) -> Result<(Weights, Option<Progress>)> {
        let (_, header) = SafeTensors::read_metadata(&self.bytes).map_err(|e| self.foreign(e))?;
        let text = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(METADATA_KEY))
            .ok_or_else(|| {
                Error::data(
                    &self.path,
                    "was not written by arcface-cu: its header has no arcface_cu entry",
                )
            })?;
        let metadata: Metadata = serde_json::from_str(text).map_err(|e| {
            Error::data(
                &self.path,
                format!("has a header that this version cannot read: {e}"),
            )
        })?;
        if metadata.format != FORMAT {
            return Err(Error::Unsupported {
                path: self.path.clone(),
                what: format!(
                    "format {} (this version reads format {FORMAT})",
                    metadata.format
                ),
            });
        }
        let table = ParamTable::new(&metadata.config.model.build()?);
        let tensors = self.tensors()?;
        let mut statistics = vec![0.0; table.statistics_len()];
        for s in table.statistics() {
            let values = self.tensor(&tensors, &s.name, &[s.len])?;
            statistics[s.offset..][..s.len].copy_from_slice(&values);
        }
        let weights = Weights {
            params: self.slab(&tensors, "", &table)?,
            statistics,
            config: metadata.config,
            classes: metadata.classes,
        };
        Ok((weights, metadata.progress))
    }

    fn slab(
        &self,
        tensors: &SafeTensors<'_>,
        prefix: &str,
        table: &ParamTable,
    ) -> Result<Vec<f32>> {
        let mut slab = vec![0.0; table.params_len()];
        for p in table.params() {
            let values = self.tensor(tensors, &format!("{prefix}{}", p.name), &p.shape)?;
            slab[p.offset..][..p.len()].copy_from_slice(&values);
        }
        Ok(slab)
    }

    fn tensor(&self, tensors: &SafeTensors<'_>, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
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
        let words = tensor.data().as_chunks::<4>().0;
        let values: Vec<f32> = words.iter().map(|w| f32::from_le_bytes(*w)).collect();
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(Error::data(
                &self.path,
                format!("tensor {name}: element {i} is {}", values[i]),
            )),
            None => Ok(values),
        }
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
        let d = config.model.embedding.size();
        // Gaps between parameters are not stored, so they stay zero.
        let momentum = params.iter().map(|p| -p).collect();
        Checkpoint {
            momentum,
            class_rows: (0..5 * d).map(|i| i as f32).collect(),
            class_momentum: vec![0.5; 5 * d],
            images: 40,
            steps_done: 77,
            weights: Weights {
                config,
                classes: 5,
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
        saved.weights.save(&path).unwrap();
        assert_eq!(Weights::load(&path).unwrap(), saved.weights);
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
        let mut nan = checkpoint();
        nan.class_rows[3] = f32::NAN;
        nan.save(&path).unwrap();
        let error = Checkpoint::load(&path).unwrap_err().to_string();
        assert!(error.contains("head/classes: element 3 is NaN"), "{error}");
    }
}
