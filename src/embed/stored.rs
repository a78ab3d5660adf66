//! A folder of embeddings, read.

use super::folder::{FILES, LABELS, NAMES, NPY, ORIGIN, Origin, SAFETENSORS};
use super::state::State;
use crate::base::exchange::settled;
use crate::data::formats::text::Text;
use crate::encoding::float::Float;
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
        settled(folder)?;
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
        let files = Text::read(&path)?;
        stored.files = files.as_str().lines().map(str::to_owned).collect();
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
            let text = Text::read(&names)?;
            for line in text.as_str().lines().skip(1) {
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
    let Npy { shape, elements } = npy::read(&path)?;
    let embeddings = match elements {
        Elements::F32(values) => values,
        Elements::F64(values) => values.into_iter().map(|x| x as f32).collect(),
        _ => Vec::new(),
    };
    if shape.len() != 2 || embeddings.is_empty() {
        return Err(Error::data(
            path,
            format!(
                "expected floating-point embeddings of shape (N, D), found the shape {shape:?}"
            ),
        ));
    }
    let dim = shape[1];
    let path = folder.join(LABELS);
    let labels = match path.is_file() {
        false => None,
        true => match npy::read(&path)?.elements.integers() {
            Some(labels) => Some(labels),
            None => return Err(Error::data(path, "expected labels that are whole numbers")),
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
    let values = Float::of(dtype).map_or_else(Vec::new, |float| float.decode(embeddings.data()));
    if shape.len() != 2 || values.is_empty() {
        return Err(Error::data(
            path,
            format!(
                "tensor embeddings: expected floating-point numbers (N, D), found {dtype:?} {shape:?}"
            ),
        ));
    }
    let labels = match tensors.tensor("labels") {
        Err(_) => None,
        Ok(labels) => Some(match labels.dtype() {
            Dtype::I64 => words(labels.data(), i64::from_le_bytes),
            Dtype::I32 => words(labels.data(), |w| i32::from_le_bytes(w).into()),
            Dtype::U32 => words(labels.data(), |w| u32::from_le_bytes(w).into()),
            found => {
                return Err(Error::data(
                    path,
                    format!("tensor labels: expected integers of 4 or 8 bytes, found {found:?}"),
                ));
            }
        }),
    };
    Ok(Stored {
        embeddings: values,
        dim: shape[1],
        labels,
        ..Stored::default()
    })
}

fn words<T, const W: usize>(bytes: &[u8], convert: impl Fn([u8; W]) -> T) -> Vec<T> {
    bytes
        .as_chunks::<W>()
        .0
        .iter()
        .map(|&w| convert(w))
        .collect()
}
