//! InsightFace's evaluation sets, `NAME.bin`: a pickle (`data/pickle.rs`) of two lists.
//!
//! | item | content |
//! |---|---|
//! | 0 | a list of 2M image files (JPEG as a rule) as bytes; 2k and 2k + 1 are pair k |
//! | 1 | a list of M truth values, True (or 1) for the same person |
//!
//! Either list may be a NumPy array, and so may what is in it: truth values of any type, an image file as an array of bytes.

use crate::base::files::read_whole;
use crate::data::Image;
use crate::data::picture;
use crate::encoding::pickle::numpy::{self, Array};
use crate::encoding::pickle::{self, Id, Value, Values};
use crate::{Error, Result};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// An evaluation set in a `.bin` file, held in memory as it is.
#[derive(Debug)]
pub struct Bin {
    path: PathBuf,
    file: Vec<u8>,
    values: Values,
    /// The numbers of the values that hold the images, and where in these.
    images: Vec<(Id, Range<usize>)>,
    same: Vec<bool>,
}

/// Whether a file that begins with `start` may be such a set.
pub(crate) fn is_bin(start: &[u8]) -> bool {
    pickle::is_pickle(start) || pickle::is_old_pickle(start)
}

impl Bin {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, is no such pickle or damaged, or has not two images a truth value.
    pub fn open(path: &Path) -> Result<Self> {
        let file = read_whole(path)?;
        let values =
            pickle::load(&file, &numpy::NAMES).map_err(|refusal| refusal.error(path, 0))?;
        let bad = |found: String| {
            Error::data(
                path,
                format!(
                    "expected a pickle of (list of image files as bytes, list of truth values), found {found}"
                ),
            )
        };
        let (Value::Tuple(items) | Value::List(items)) = values.top() else {
            return Err(bad(values.what(&file, values.top_id())));
        };
        let &[images, same] = &items[..] else {
            return Err(bad(format!("{} items", items.len())));
        };
        let list =
            |id| List::of(&values, &file, id).ok_or_else(|| bad("items that are no lists".into()));
        let images = (list(images)?.images(&values, &file))
            .map_err(|i| bad(format!("image {i} that is not bytes")))?;
        let same = (list(same)?.truths(&values, &file))
            .map_err(|i| bad(format!("truth value {i} that is neither True nor False")))?;
        if images.len() != 2 * same.len() {
            return Err(bad(format!(
                "{} images and {} truth values: there must be two images a truth value",
                images.len(),
                same.len()
            )));
        }
        Ok(Bin {
            path: path.into(),
            file,
            values,
            images,
            same,
        })
    }

    /// For each pair, whether it shows one person.
    pub fn same(&self) -> &[bool] {
        &self.same
    }

    /// The file of image `index`, below twice the number of pairs.
    pub fn encoded(&self, index: usize) -> &[u8] {
        let (id, range) = &self.images[index];
        let bytes = self.values.bytes(&self.file, *id);
        &bytes.expect("an image is bytes")[range.clone()]
    }

    /// Decodes image `index`, below twice the number of pairs, into `image`.
    ///
    /// # Errors
    /// It cannot be decoded.
    pub fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        picture::decode(self.encoded(index), image).map_err(|why| {
            let why = format!("image {index} cannot be decoded: {why}");
            let (id, part) = &self.images[index];
            match self.values.get(*id) {
                Value::Bytes(range) => {
                    let at = (range.start + part.start) as u64;
                    Error::malformed(&self.path, at, "an image file", why)
                }
                _ => Error::data(&self.path, why),
            }
        })
    }
}

/// A list of Python's or an array of NumPy's.
enum List<'a> {
    Values(&'a [Id]),
    Array(Array),
}

impl<'a> List<'a> {
    fn of(values: &'a Values, file: &[u8], id: Id) -> Option<Self> {
        match values.get(id) {
            Value::List(ids) | Value::Tuple(ids) => Some(List::Values(ids)),
            _ => Array::of(values, file, id).map(List::Array),
        }
    }

    /// Where the items lie that are bytes; the number of the first that is none.
    fn images(&self, values: &Values, file: &[u8]) -> Result<Vec<(Id, Range<usize>)>, usize> {
        let one = |id: Id| {
            let data = match values.get(id) {
                Value::Bytes(_) | Value::Decoded(_) => id,
                _ => match Array::of(values, file, id)? {
                    Array::Numbers {
                        kind, width, data, ..
                    } if width == 1 || kind == b'S' => data,
                    _ => return None,
                },
            };
            Some((data, 0..values.bytes(file, data)?.len()))
        };
        match self {
            List::Values(ids) => each(ids, one),
            List::Array(Array::Objects(ids)) => each(ids, one),
            List::Array(Array::Numbers {
                kind: b'S' | b'V',
                width,
                data,
                ..
            }) => {
                let length = values.bytes(file, *data).map_or(0, <[u8]>::len);
                let starts = (0..length / width).map(|i| i * width);
                Ok(starts.map(|start| (*data, start..start + width)).collect())
            }
            List::Array(_) => Err(0),
        }
    }

    /// The truth values; the number of the first that is none.
    fn truths(&self, values: &Values, file: &[u8]) -> Result<Vec<bool>, usize> {
        let one = |id: Id| match values.get(id) {
            Value::Bool(same) => Some(*same),
            Value::Int(0) => Some(false),
            Value::Int(1) => Some(true),
            _ => match Array::of(values, file, id)? {
                Array::Numbers {
                    kind,
                    swapped,
                    data,
                    ..
                } => numpy::truth(kind, values.bytes(file, data)?, swapped),
                Array::Objects(_) => None,
            },
        };
        match self {
            List::Values(ids) => each(ids, one),
            List::Array(Array::Objects(ids)) => each(ids, one),
            List::Array(Array::Numbers {
                kind,
                width,
                swapped,
                data,
            }) => {
                let bytes = values.bytes(file, *data).unwrap_or_default();
                (bytes.chunks(*width).enumerate())
                    .map(|(i, element)| numpy::truth(*kind, element, *swapped).ok_or(i))
                    .collect()
            }
        }
    }
}

fn each<T>(ids: &[Id], one: impl Fn(Id) -> Option<T>) -> Result<Vec<T>, usize> {
    let items = ids.iter().enumerate();
    items.map(|(i, &id)| one(id).ok_or(i)).collect()
}
