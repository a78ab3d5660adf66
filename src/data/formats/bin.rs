//! InsightFace's evaluation sets, `NAME.bin`: a pickle (`data/pickle.rs`) of two lists.
//!
//! | item | content |
//! |---|---|
//! | 0 | a list of 2M image files (JPEG as a rule) as bytes; 2k and 2k + 1 are pair k |
//! | 1 | a list of M truth values, True (or 1) for the same person |

use crate::base::map::Map;
use crate::data::Image;
use crate::data::picture;
use crate::encoding::pickle::{self, Value, Values};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// An evaluation set in a `.bin` file, mapped into memory.
#[derive(Debug)]
pub struct Bin {
    path: PathBuf,
    map: Map,
    values: Values,
    /// Numbers of the images' values.
    images: Vec<pickle::Id>,
    same: Vec<bool>,
}

/// Whether a file that begins with `start` may be such a set.
pub(crate) fn is_bin(start: &[u8]) -> bool {
    pickle::is_pickle(start)
}

impl Bin {
    /// Opens the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, is no such pickle or damaged, or has not two images a truth value.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Map::open(path)?;
        let values = pickle::load(&map, &[]).map_err(|refusal| refusal.error(path, 0))?;
        let bad = |found: String| {
            Error::data(
                path,
                format!(
                    "expected a pickle of (list of image files as bytes, list of truth values), found {found}"
                ),
            )
        };
        let (Value::Tuple(items) | Value::List(items)) = values.top() else {
            return Err(bad("something else".into()));
        };
        let &[images, same] = &items[..] else {
            return Err(bad(format!("{} items", items.len())));
        };
        let list = |id| match values.get(id) {
            Value::List(ids) | Value::Tuple(ids) => Some(ids),
            _ => None,
        };
        let (Some(images), Some(same)) = (list(images), list(same)) else {
            return Err(bad("items that are no lists".into()));
        };
        let is_bytes = |id| matches!(values.get(id), Value::Bytes(_) | Value::Decoded(_));
        if let Some(i) = images.iter().position(|&id| !is_bytes(id)) {
            return Err(bad(format!("image {i} that is not bytes")));
        }
        let same = (same.iter().enumerate())
            .map(|(i, &id)| match values.get(id) {
                Value::Bool(same) => Ok(*same),
                Value::Int(0) => Ok(false),
                Value::Int(1) => Ok(true),
                _ => Err(bad(format!(
                    "truth value {i} that is neither True nor False"
                ))),
            })
            .collect::<Result<Vec<bool>>>()?;
        if images.len() != 2 * same.len() {
            return Err(bad(format!(
                "{} images and {} truth values: there must be two images a truth value",
                images.len(),
                same.len()
            )));
        }
        let images = images.clone();
        Ok(Bin {
            path: path.into(),
            map,
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
        match self.values.get(self.images[index]) {
            Value::Bytes(range) => &self.map[range.clone()],
            Value::Decoded(bytes) => bytes,
            _ => &[],
        }
    }

    /// Decodes image `index`, below twice the number of pairs, into `image`.
    ///
    /// # Errors
    /// It cannot be decoded.
    pub fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        picture::decode(self.encoded(index), image).map_err(|why| {
            let why = format!("image {index} cannot be decoded: {why}");
            match self.values.get(self.images[index]) {
                Value::Bytes(range) => {
                    Error::malformed(&self.path, range.start as u64, "an image file", why)
                }
                _ => Error::data(&self.path, why),
            }
        })
    }
}
