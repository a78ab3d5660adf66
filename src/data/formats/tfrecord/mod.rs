//! TensorFlow's TFRecord files, with the examples of face_recognition_tf2 and arcface-tf2.
//!
//! A file is a sequence of records (`framing.rs`), whose data are a `tf.train.Example` (`proto.rs`) each.
//!
//! Labels may be int64 or text, and have gaps: the names that occur are ranked (`data/labels.rs`). A path
//! in `image/img_path` that is not absolute starts from [`Opening::image_root`], or from the folder of its TFRecord file.
//!
//! All records are looked at once, their CRCs checked, and the index is kept (`data/index.rs`); a record's
//! CRC is checked again whenever it is read.

pub(crate) mod example;

pub use example::Schema;

use self::example::{Example, Malformed, Picture};
use crate::base::data_file::{DataFile, Window};
use crate::base::files::read_whole;
use crate::data::formats::index::{Format, IndexBuilder};
use crate::data::formats::sharded::{Found, Sharded};
use crate::data::formats::{shards, text};
use crate::data::picture;
use crate::data::unused::Unused;
use crate::data::{Dataset, Encoded, Image, Opening};
use crate::encoding::framing::{HEAD, TAIL, masked};
use crate::{Error, Result};
use rayon::prelude::*;
use std::path::{Path, PathBuf};

/// Records that are checked at the same time, and the bytes of them that are walked over before that.
const BLOCK_RECORDS: usize = 8192;
const BLOCK_BYTES: u64 = 16 << 20;

/// One TFRecord file or several as a data set.
#[derive(Debug)]
pub struct TfRecord {
    pub(in crate::data) records: Sharded,
    /// What relative paths start from, instead of the folder of each file.
    image_root: Option<PathBuf>,
}

impl TfRecord {
    /// Opens a TFRecord file, a row of them (`name-00000-of-00010`), or the files that fit a pattern (`dir/*.tfrecord`).
    ///
    /// # Errors
    /// A file cannot be read, is damaged or holds no examples of a known schema; a file of the row is missing.
    pub fn open(path: &Path, opening: &Opening<'_>) -> Result<Self> {
        Self::open_files(shards::resolve(path)?, opening)
    }

    /// The same for files in the order given.
    pub(crate) fn open_files(paths: Vec<PathBuf>, opening: &Opening<'_>) -> Result<Self> {
        Ok(TfRecord {
            records: Sharded::open(paths, Format::TfRecord, walk, opening)?,
            image_root: opening.image_root.map(Path::to_path_buf),
        })
    }

    /// The bytes of the image file of record `index`.
    fn body(&self, index: usize) -> Result<Vec<u8>> {
        let found = self.records.record(index)?;
        let Example { picture, .. } = read_data(&found)?;
        match picture {
            Picture::Encoded(bytes) => Ok(bytes),
            Picture::Path(path) => read_whole(&text::file(self.folder(found.path), &path)),
        }
    }

    /// Where the paths in the records of `file` start from.
    fn folder<'a>(&'a self, file: &'a Path) -> &'a Path {
        match &self.image_root {
            Some(root) => root,
            None => file.parent().unwrap_or(Path::new("")),
        }
    }
}

/// The example in a record's data and the CRC behind it.
fn read_data(found: &Found<'_>) -> Result<Example> {
    let Some((data, crc)) = found.bytes.split_last_chunk::<TAIL>() else {
        return Err(Error::data(
            found.path,
            "was changed while it was being opened",
        ));
    };
    check_crc(found.path, data, *crc, found.offset, "the data")?;
    example::parse(data).map_err(|malformed| {
        let Malformed {
            at,
            expected,
            found: was,
        } = malformed;
        Error::malformed(found.path, found.offset + at as u64, expected, was)
    })
}

fn check_crc(path: &Path, data: &[u8], crc: [u8; 4], at: u64, what: &str) -> Result<()> {
    let (stored, computed) = (u32::from_le_bytes(crc), masked(data));
    if stored == computed {
        return Ok(());
    }
    Err(Error::malformed(
        path,
        at + data.len() as u64,
        format!("the CRC {computed:#010x} of {what} before it"),
        format!("{stored:#010x}: the file is damaged"),
    ))
}

/// Whether `bytes` begin as a TFRecord file does: a length with its CRC.
pub(crate) fn is_tfrecord(bytes: &[u8]) -> bool {
    bytes.len() >= HEAD && bytes[8..HEAD] == masked(&bytes[..8]).to_le_bytes()
}

/// Finds all records of a file: a walk from head to head, then a look at each block of records on all cores.
fn walk(file: &DataFile, builder: &mut IndexBuilder, passed: &dyn Fn(u64)) -> Result<()> {
    let mut window = Window::walk(file);
    if matches!(window.get(0, 2)?, [0x1f, 0x8b] | [0x78, 0x9c]) {
        return Err(Error::Unsupported {
            path: file.path().into(),
            what: "a compressed TFRecord file (decompress it with gunzip first)".into(),
        });
    }
    let mut at = 0;
    let mut block = Vec::with_capacity(BLOCK_RECORDS);
    while at < file.len() {
        let start = at;
        block.clear();
        while at < file.len() && block.len() < BLOCK_RECORDS && at - start < BLOCK_BYTES {
            let found = record(&mut window, at)?;
            at = found.offset + found.bytes.len() as u64;
            block.push(found);
        }
        let labels: Vec<Result<String>> = block
            .par_iter()
            .map(|found| read_data(found).map(|example| example.label))
            .collect();
        for (found, label) in block.iter().zip(labels) {
            builder.push(found.offset, found.bytes.len() as u32, &label?);
        }
        passed(at - start);
    }
    Ok(())
}

/// The record at `at`: its data and the CRC behind them.
fn record<'a>(window: &mut Window<'a>, at: u64) -> Result<Found<'a>> {
    let path = window.file().path();
    let left = window.file().len() - at;
    let Some(&[ref length @ .., c0, c1, c2, c3]) = window.get(at, HEAD)?.first_chunk::<HEAD>()
    else {
        return Err(Error::malformed(
            path,
            at,
            "the 12 bytes that begin a record",
            format!("{left} bytes: the file is truncated"),
        ));
    };
    check_crc(path, length, [c0, c1, c2, c3], at, "the length")?;
    let length = length.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b));
    let held = u32::try_from(length)
        .ok()
        .and_then(|length| length.checked_add(TAIL as u32))
        .filter(|&held| u64::from(held) <= left - HEAD as u64);
    let Some(held) = held else {
        return Err(Error::malformed(
            path,
            at,
            format!("a record of {length} bytes with its CRC"),
            format!(
                "{} bytes to the end of the file: it is truncated",
                left - HEAD as u64
            ),
        ));
    };
    let offset = at + HEAD as u64;
    Ok(Found {
        path,
        offset,
        bytes: window.copy(offset, held as usize)?,
    })
}

impl Dataset for TfRecord {
    fn len(&self) -> usize {
        self.records.len()
    }

    fn classes(&self) -> usize {
        self.records.classes()
    }

    fn label(&self, index: usize) -> u32 {
        self.records.label(index)
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        picture::decode(&self.body(index)?, image).map_err(|why| {
            Error::Invalid(format!(
                "{}: the image cannot be decoded: {why}",
                self.describe(index)
            ))
        })
    }

    fn describe(&self, index: usize) -> String {
        self.records.describe(index)
    }

    fn files(&self, index: usize) -> Vec<PathBuf> {
        let file = self.records.path(index);
        let mut files = vec![file.into()];
        let example = self
            .records
            .record(index)
            .and_then(|found| read_data(&found));
        if let Ok(Example {
            picture: Picture::Path(path),
            ..
        }) = example
        {
            files.push(text::file(self.folder(file), &path));
        }
        files
    }

    fn encoded(&self, index: usize) -> Result<Option<Encoded>> {
        Ok(Some(Encoded::new(self.body(index)?)))
    }

    fn class_name(&self, label: u32) -> String {
        self.records.class_name(label)
    }

    fn unused(&self) -> Unused {
        self.records.unused.clone()
    }
}
