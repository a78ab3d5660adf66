//! A folder of embeddings, read.

use super::folder::{FILES, LABELS, NAMES, NPY, ORIGIN, Origin, SAFETENSORS};
use super::state::State;
use crate::encoding::npy::{self, Elements, Npy};
use crate::report::similarity::{Block, Means, Similarity};
use crate::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Embeddings in memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stored {
    /// N x `dim`, unit vectors.
    pub embeddings: Vec<f32>,
    /// The length of a row.
    pub dim: usize,
    /// Where each row's picture comes from.
    pub files: Vec<String>,
    /// The number of each row's identity, if they are known.
    pub labels: Option<Vec<i64>>,
    /// The name of each number, if known. An empty name marks a single picture whose identity is unknown.
    pub names: BTreeMap<i64, String>,
    /// Their origin, if known.
    pub origin: Option<Origin>,
}

/// Whether a path is a folder of embeddings.
pub fn is_stored(path: &Path) -> bool {
    [NPY, SAFETENSORS]
        .iter()
        .any(|name| path.join(name).is_file())
}

impl Stored {
    /// Reads a folder of embeddings: the vectors and `files.txt`, and the other files if they exist. Scales rows to
    /// unit vectors.
    ///
    /// # Errors
    /// A file cannot be read, there is not one row per picture, a row is zero or not finite, or a run was interrupted
    /// while it renamed its files.
    pub fn open(folder: &Path) -> Result<Self> {
        if State::read(folder)?.is_some_and(|state| state.complete) {
            return Err(Error::data(
                folder,
                "holds embeddings of an interrupted run; `embed --resume` finishes it",
            ));
        }
        let mut stored = match folder.join(SAFETENSORS).is_file() {
            true => read_safetensors(&folder.join(SAFETENSORS))?,
            false => read_npy(folder)?,
        };
        let path = folder.join(FILES);
        let files = fs::read_to_string(&path).map_err(Error::io("reading", &path))?;
        stored.files = files.lines().map(str::to_owned).collect();
        let rows = stored.embeddings.len() / stored.dim;
        if stored.files.len() != rows {
            let found = stored.files.len();
            return Err(Error::data(
                path,
                format!("expected a line for each of {rows} embeddings, found {found} lines"),
            ));
        }
        if let Some(labels) = &stored.labels
            && labels.len() != rows
        {
            let found = labels.len();
            return Err(Error::data(
                folder,
                format!("holds {rows} embeddings and {found} labels; expected one each"),
            ));
        }
        let names = folder.join(NAMES);
        if names.is_file() {
            let text = fs::read_to_string(&names).map_err(Error::io("reading", &names))?;
            for line in text.lines().skip(1) {
                let mut fields = line.split('\t');
                let number = fields.next().and_then(|number| number.parse().ok());
                let (Some(number), Some(name)) = (number, fields.next()) else {
                    return Err(Error::data(
                        names,
                        format!("expected a number, a tab and a name, found {line:?}"),
                    ));
                };
                stored.names.insert(number, name.to_owned());
            }
        }
        let origin = folder.join(ORIGIN);
        if origin.is_file() {
            let text = fs::read(&origin).map_err(Error::io("reading", &origin))?;
            let origin = serde_json::from_slice(&text)
                .map_err(|e| Error::data(&origin, format!("cannot be read: {e}")))?;
            stored.origin = Some(origin);
        }
        stored.normalise().map_err(|why| Error::data(folder, why))?;
        Ok(stored)
    }

    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.files.len()
    }

    /// The name of a row's identity, if known. A picture without an identity has none.
    pub fn identity(&self, row: usize) -> Option<String> {
        let label = *self.labels.as_ref()?.get(row)?;
        match self.names.get(&label) {
            None => Some(label.to_string()),
            Some(name) => (!name.is_empty()).then(|| name.clone()),
        }
    }

    /// Draws the similarity matrix, one block per identity, to `similarity.png` in a folder. Returns the mean cosines.
    ///
    /// # Errors
    /// There is no row, or the file cannot be written.
    pub fn draw_similarity(&self, folder: &Path) -> Result<Means> {
        // Data sets may hold their identities in any order.
        let label = |row: usize| {
            self.labels
                .as_ref()
                .map_or(row as i64, |labels| labels[row])
        };
        let mut order: Vec<usize> = (0..self.rows()).collect();
        order.sort_by_key(|&row| label(row));
        let (mut blocks, mut rows): (Vec<Block>, Vec<f32>) = (Vec::new(), Vec::new());
        for same in order.chunk_by(|&a, &b| label(a) == label(b)) {
            blocks.push(Block {
                label: self.identity(same[0]).unwrap_or_else(|| {
                    let stem = Path::new(&self.files[same[0]]).file_stem();
                    stem.map_or_else(String::new, |s| s.to_string_lossy().into_owned())
                }),
                images: same.len(),
            });
            for &row in same {
                rows.extend(&self.embeddings[row * self.dim..][..self.dim]);
            }
        }
        let similarity = Similarity::new(&rows, self.dim, &blocks)?;
        similarity.save(&folder.join("similarity.png"))?;
        Ok(similarity.means())
    }

    fn normalise(&mut self) -> Result<(), String> {
        for (k, row) in self.embeddings.chunks_exact_mut(self.dim).enumerate() {
            let squares = row.iter().map(|&x| f64::from(x).powi(2));
            let length = squares.sum::<f64>().sqrt();
            if !(length > 0.0 && length.is_finite()) {
                return Err(format!(
                    "row {k} of the embeddings has no direction: its length is {length}"
                ));
            }
            row.iter_mut()
                .for_each(|x| *x = (f64::from(*x) / length) as f32);
        }
        Ok(())
    }
}

fn read_npy(folder: &Path) -> Result<Stored> {
    let path = folder.join(NPY);
    let (dim, embeddings) = match npy::read(&path)? {
        Npy {
            shape,
            elements: Elements::F32(values),
        } if shape.len() == 2 && shape[1] > 0 && !values.is_empty() => (shape[1], values),
        other => {
            return Err(Error::data(
                path,
                format!(
                    "expected float32 embeddings of shape (N, D), found the shape {:?}",
                    other.shape
                ),
            ));
        }
    };
    let path = folder.join(LABELS);
    let labels = match path.is_file() {
        false => None,
        true => match npy::read(&path)?.elements {
            Elements::I64(labels) => Some(labels),
            _ => return Err(Error::data(path, "expected labels of type int64")),
        },
    };
    Ok(Stored {
        embeddings,
        dim,
        labels,
        ..Stored::default()
    })
}

fn read_safetensors(path: &Path) -> Result<Stored> {
    let bytes = fs::read(path).map_err(Error::io("reading", path))?;
    let whole = |e| Error::data(path, format!("is not a whole safetensors file: {e}"));
    let tensors = SafeTensors::deserialize(&bytes).map_err(whole)?;
    let embeddings = tensors.tensor("embeddings").map_err(whole)?;
    let (dtype, shape) = (embeddings.dtype(), embeddings.shape());
    if dtype != Dtype::F32 || shape.len() != 2 || shape[0] * shape[1] == 0 {
        return Err(Error::data(
            path,
            format!("tensor embeddings: expected float32 (N, D), found {dtype:?} {shape:?}"),
        ));
    }
    let words = embeddings.data().as_chunks::<4>().0;
    let labels = match tensors.tensor("labels") {
        Err(_) => None,
        Ok(labels) if labels.dtype() == Dtype::I64 => {
            let words = labels.data().as_chunks::<8>().0;
            Some(words.iter().map(|w| i64::from_le_bytes(*w)).collect())
        }
        Ok(labels) => {
            let found = labels.dtype();
            return Err(Error::data(
                path,
                format!("tensor labels: expected int64, found {found:?}"),
            ));
        }
    };
    Ok(Stored {
        embeddings: words.iter().map(|w| f32::from_le_bytes(*w)).collect(),
        dim: shape[1],
        labels,
        ..Stored::default()
    })
}
