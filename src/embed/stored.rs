//! A folder of embeddings, read.

use super::folder::{FILES, LABELS, NAMES, NPY, ORIGIN, Origin, SAFETENSORS, SIMILARITY, SKIPPED};
use super::state::{Format, STATE, State};
use crate::data::formats::index::Stamp;
use crate::data::formats::text::Text;
use crate::encoding::float::Float;
use crate::encoding::npy::{self, Elements, Npy};
use crate::report::similarity::{Block, Means, Similarity};
use crate::{Error, Result};
use safetensors::tensor::{Dtype, SafeTensors};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

/// How often a gallery is read again that changes while it is read. Its files are replaced once, in milliseconds.
const TRIES: usize = 20;

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
    /// The name of each number, if known. A picture whose identity is unknown has the number -1, or, in older galleries,
    /// one with an empty name.
    pub names: BTreeMap<i64, String>,
    /// Their origin, if known.
    pub origin: Option<Origin>,
}

/// Whether a path is a folder of embeddings.
pub fn is_stored(path: &Path) -> bool {
    let there = |name: &&str| path.join(name).is_file();
    let is_complete = |files: Files<'_>| files.complete.is_some();
    [NPY, SAFETENSORS].iter().any(there) || Files::of(path).is_ok_and(is_complete)
}

/// The files of a gallery.
struct Files<'a> {
    folder: &'a Path,
    /// The complete run whose files have not all got their names: it was killed just then.
    complete: Option<State>,
}

impl<'a> Files<'a> {
    fn of(folder: &'a Path) -> Result<Self> {
        let complete = State::read(folder)?.filter(|state| state.complete);
        Ok(Files { folder, complete })
    }

    /// Where a file is.
    fn at(&self, name: &str) -> PathBuf {
        let partial = self.folder.join(format!("{name}.partial"));
        match self.complete.is_some() && partial.is_file() {
            true => partial,
            false => self.folder.join(name),
        }
    }

    fn format(&self) -> Format {
        match &self.complete {
            Some(state) => state.job.format,
            None if self.folder.join(SAFETENSORS).is_file() => Format::Safetensors,
            None => Format::Npy,
        }
    }

    fn origin(&self) -> Result<Option<Origin>> {
        if let Some(state) = &self.complete {
            return Ok(Some(state.job.origin()));
        }
        let path = self.folder.join(ORIGIN);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read(&path).map_err(Error::io("reading", &path))?;
        let origin = serde_json::from_slice(&text)
            .map_err(|e| Error::data(&path, format!("cannot be read: {e}")))?;
        Ok(Some(origin))
    }
}

/// Why pictures were left out of the gallery in `folder`.
pub(super) fn left_out(folder: &Path) -> Result<Vec<String>> {
    let path = folder.join(SKIPPED);
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let text = Text::read(&path)?;
    Ok(text.as_str().lines().map(str::to_owned).collect())
}

impl Stored {
    /// Reads a folder of embeddings: the vectors and `files.txt`, and the other files if they exist. Scales rows to
    /// unit vectors.
    ///
    /// # Errors
    /// A file cannot be read, there is not one row per picture, or a row is zero or not finite.
    pub fn open(folder: &Path) -> Result<Self> {
        let mut stored = Self::read(folder)?;
        stored.normalise().map_err(|why| Error::data(folder, why))?;
        Ok(stored)
    }

    /// Reads a folder of embeddings, rows as they are: those of one run, also where another process replaces them meanwhile.
    fn read(folder: &Path) -> Result<Self> {
        let stamps = || {
            [STATE, NPY, SAFETENSORS, LABELS, FILES, NAMES]
                .map(|name| Stamp::of(&folder.join(name)).ok())
        };
        for _ in 0..TRIES {
            let before = stamps();
            let stored = Self::read_once(folder);
            if stamps() == before {
                return stored;
            }
        }
        Err(Error::data(
            folder,
            "changes all the time: another process is writing to it",
        ))
    }

    fn read_once(folder: &Path) -> Result<Self> {
        let files = Files::of(folder)?;
        let mut stored = match files.format() {
            Format::Safetensors => read_safetensors(&files.at(SAFETENSORS))?,
            Format::Npy => read_npy(&files)?,
        };
        stored.origin = files.origin()?;
        let path = files.at(FILES);
        let text = Text::read(&path)?;
        stored.files = text.as_str().lines().map(str::to_owned).collect();
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
        let names = files.at(NAMES);
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
            None if label < 0 => None,
            None => Some(label.to_string()),
            Some(name) => (!name.is_empty()).then(|| name.clone()),
        }
    }

    /// Draws the similarity matrix, one block per identity, to `similarity.png` in a folder. Returns the mean cosines.
    ///
    /// # Errors
    /// There is no row, or the file cannot be written.
    pub fn draw_similarity(&self, folder: &Path) -> Result<Means> {
        // Data sets may hold their identities in any order: each has the place of its first row.
        let mut places: HashMap<String, usize> = HashMap::new();
        let identities: Vec<Option<String>> = (0..self.rows()).map(|r| self.identity(r)).collect();
        let mut order: Vec<(usize, usize)> = (identities.iter().enumerate())
            .map(|(row, identity)| match identity {
                Some(name) => (*places.entry(name.clone()).or_insert(row), row),
                None => (row, row),
            })
            .collect();
        order.sort_unstable();
        let (mut blocks, mut rows): (Vec<Block>, Vec<f32>) = (Vec::new(), Vec::new());
        for same in order.chunk_by(|a, b| a.0 == b.0) {
            let first = same[0].1;
            blocks.push(match &identities[first] {
                Some(name) => Block::identity(name, same.len()),
                None => {
                    let stem = Path::new(&self.files[first]).file_stem();
                    Block::loose(&stem.unwrap_or_default().to_string_lossy())
                }
            });
            for &(_, row) in same {
                rows.extend(&self.embeddings[row * self.dim..][..self.dim]);
            }
        }
        let similarity = Similarity::new(&rows, self.dim, &blocks)?;
        similarity.save(&folder.join(SIMILARITY))?;
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

/// A gallery that is added to.
pub(super) struct Gallery {
    /// Its rows, as they are.
    pub(super) stored: Stored,
    /// Which network made it.
    pub(super) origin: Origin,
    /// How it is written.
    pub(super) format: Format,
    /// Why pictures were left out.
    pub(super) skipped: Vec<String>,
}

impl Gallery {
    /// Reads the gallery in `folder`.
    ///
    /// # Errors
    /// As [`Stored::open`], or the gallery does not say which network made it, or has no labels.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        let stored = Stored::read(folder)?;
        let (Some(origin), true) = (stored.origin.clone(), stored.labels.is_some()) else {
            return Err(Error::data(
                folder,
                format!(
                    "cannot be added to: it has no labels, or no {ORIGIN}, which says what network made it"
                ),
            ));
        };
        Ok(Gallery {
            stored,
            origin,
            format: Files::of(folder)?.format(),
            skipped: left_out(folder)?,
        })
    }

    /// The numbers of its identities, with their names.
    pub(super) fn names(&self) -> BTreeMap<i64, String> {
        let mut names = self.stored.names.clone();
        for &label in self
            .stored
            .labels
            .iter()
            .flatten()
            .filter(|label| **label >= 0)
        {
            names.entry(label).or_insert_with(|| label.to_string());
        }
        names
    }
}

fn read_npy(files: &Files<'_>) -> Result<Stored> {
    let path = files.at(NPY);
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
    let path = files.at(LABELS);
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
