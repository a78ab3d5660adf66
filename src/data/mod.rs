//! Readers, writers and the loader: pixels and labels, no device.
//!
//! [`open`] looks at a path and gives a [`Dataset`]: an image folder or a RecordIO file. [`loader::Loader`] makes shuffled,
//! augmented batches of one.

mod blosc;
mod map;

pub mod augment;
pub mod bcolz;
pub mod faces;
pub mod image;
pub mod image_folder;
pub mod loader;
pub mod npy;
pub mod pack;
pub mod recordio;

use crate::{Error, Result};
use std::path::Path;

/// An RGB picture, 8 bits a channel, rows from top to bottom, pixels from left to right (HWC).
///
/// It is a buffer to be reused: [`Dataset::read`] changes its size and keeps its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes: red, green, blue.
    pub pixels: Vec<u8>,
}

/// An image as its file or record holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The whole file: JPEG, PNG, PNM, ...
    pub bytes: Vec<u8>,
    /// What kind of file, in lower case without a dot ("jpg", "png", "pgm", ...).
    pub extension: String,
}

/// A labelled set of images with random access. Labels are `0..classes()`.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there is no image at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of classes (identities), V.
    fn classes(&self) -> usize;

    /// The class of image `index`, below [`classes`](Self::classes). `index` must be below `len()`.
    fn label(&self, index: usize) -> u32;

    /// Decodes image `index` into `image`, whose memory is reused. `index` must be below `len()`.
    ///
    /// # Errors
    /// The image cannot be read or decoded; the sentence says which, where and why.
    fn read(&self, index: usize, image: &mut Image) -> Result<()>;

    /// Where image `index` comes from, for messages ("train.rec, record 17 at byte 1234").
    fn describe(&self, index: usize) -> String;

    /// Image `index` as it is stored, or `None` where the set stores no encoded files (generated sets).
    ///
    /// # Errors
    /// The image cannot be read.
    fn encoded(&self, index: usize) -> Result<Option<Encoded>> {
        let _ = index;
        Ok(None)
    }

    /// What people call class `label`: a folder's name, or the number itself.
    fn class_name(&self, label: u32) -> String {
        label.to_string()
    }
}

/// Opens what is at `path`, by looking: a folder with a `.rec` file or a `.rec` file itself is RecordIO, any other folder
/// is an image folder.
///
/// # Errors
/// There is nothing at `path`, it is neither, or it cannot be opened.
pub fn open(path: &Path) -> Result<Box<dyn Dataset>> {
    open_as(path, image_folder::ImageFolder::open)
}

/// As [`open`], but the identities of an image folder may have no image.
///
/// # Errors
/// As [`open`].
pub fn open_with_gaps(path: &Path) -> Result<Box<dyn Dataset>> {
    open_as(path, image_folder::ImageFolder::open_with_gaps)
}

fn open_as(
    path: &Path,
    folder: fn(&Path) -> Result<image_folder::ImageFolder>,
) -> Result<Box<dyn Dataset>> {
    let metadata = std::fs::metadata(path).map_err(Error::io("opening", path))?;
    let is_rec = |p: &Path| p.extension().is_some_and(|e| e == "rec");
    if !metadata.is_dir() {
        if is_rec(path) {
            return Ok(Box::new(recordio::RecordIo::open(path)?));
        }
        return Err(Error::data(
            path,
            "is neither a folder nor a .rec file; give an image folder (<identity>/<image>.jpg) or a RecordIO folder",
        ));
    }
    let mut entries = std::fs::read_dir(path).map_err(Error::io("listing the folder", path))?;
    if entries.any(|e| e.is_ok_and(|e| is_rec(&e.path()))) {
        return Ok(Box::new(recordio::RecordIo::open(path)?));
    }
    Ok(Box::new(folder(path)?))
}
