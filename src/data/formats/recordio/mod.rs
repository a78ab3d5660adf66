//! MXNet's RecordIO, with InsightFace's conventions on top.
//!
//! A `.rec` file is a sequence of records, each at a multiple of 4 bytes, little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 4 | magic 0xced7230a |
//! | 4 | kind of part (top 3 bits), length of the part (low 29 bits) |
//! | length | payload |
//! | 0-3 | zeros up to a multiple of 4 |
//!
//! A payload that contains the magic at a multiple of 4 is cut there: the magic is left out and the parts follow one
//! another, kind 1 first, 2 in the middle, 3 last (0 is a whole record). The payload of an image record is:
//!
//! | bytes | content |
//! |---|---|
//! | 4 | flag: number of labels in the array below |
//! | 4 | label (f32), used where flag is 0 |
//! | 8, 8 | id, id2 |
//! | 4 * flag | labels (f32); the first is the class |
//! | the rest | a JPEG or PNG file |
//!
//! InsightFace: record 0 holds no image but, with flag 2, the keys [first identity header, end); the image records have
//! the keys from 1 to the first identity header; identity header k holds, with flag 2, the keys [start, end) of the images
//! of one identity. `train.idx` has a line `key\toffset` a record; `property` holds `classes,height,width`.

mod records;

pub(crate) use records::{MAGIC, MAX_PART, PART_HEADER};

use self::records::{Entry, RecFile, read_index};
use crate::base::data_file::DataFile;
use crate::base::files::read_whole;
use crate::base::text::shown;
use crate::data::formats::identities;
use crate::data::formats::text::without_mark;
use crate::data::picture;
use crate::data::unused::{Reason, Unused};
use crate::data::{Dataset, Encoded, Image};
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// A RecordIO file with random access.
#[derive(Debug)]
pub struct RecordIo {
    file: DataFile,
    /// The image records.
    entries: Vec<Entry>,
    labels: Vec<u32>,
    classes: usize,
    /// What the classes were called before they were packed.
    names: Option<Vec<String>>,
    /// Whether there may be records between those of the index, where nothing has looked yet.
    skims: bool,
    pub(in crate::data) unused: Unused,
}

impl RecordIo {
    /// Opens a `.rec` file, or a folder that holds `train.rec` or exactly one `.rec` file.
    ///
    /// The index is the file of the same name ending in `.idx`; without one, the file is scanned from start to end.
    /// With an index and InsightFace's identity headers, one record an identity is looked at; otherwise the start of each record.
    /// Records that the index does not name are counted as not used, with identity headers only those at the ends of the file;
    /// [`Dataset::unused_in_full`] counts the others. What `identities.tsv` beside the file calls the classes is kept.
    ///
    /// # Errors
    /// There is no such file; a record, the index or `property` is malformed; a label is not a class.
    pub fn open(path: &Path) -> Result<Self> {
        let path = find_rec(path)?;
        let data = DataFile::open(&path)?;
        if data.len() == 0 {
            return Err(Error::data(&path, "is empty: there is no record in it"));
        }
        let index_path = path.with_extension("idx");
        let mut file = RecFile::walk(&data);
        let property = read_property(&path.with_file_name("property"))?;
        let mut unused = Unused::default();
        let mut skims = false;
        let (entries, labels) = if index_path.is_file() {
            let all = read_index(&index_path, &data)?;
            match file.insightface_header(&all)? {
                Some((first, end)) => {
                    let extent = file.extent(&all);
                    file.unnamed(vec![extent], &mut unused);
                    skims = true;
                    file.by_identity(&all, first, end, &mut unused)?
                }
                None => {
                    let (images, named) = file.by_record(&all)?;
                    file.unnamed(named, &mut unused);
                    images
                }
            }
        } else {
            // Identity headers refer to keys, which only the index has. But every record names its class as well.
            let all = file.scan()?;
            file.by_record(&all)?.0
        };
        let highest = labels
            .iter()
            .copied()
            .max()
            .ok_or_else(|| Error::data(&path, "holds no image record"))?;
        let used = highest as usize + 1;
        let classes = property.unwrap_or(used);
        // Memory for so many classes is asked for by a file of a few bytes.
        if classes.saturating_sub(used) > labels.len() {
            return Err(Error::data(
                path.with_file_name("property"),
                format!(
                    "names {classes} classes, and the {} images of {} have the labels 0 to {highest}; write the true number \
                     of classes, or remove the file",
                    labels.len(),
                    shown(path)
                ),
            ));
        }
        if let Some(i) = labels.iter().position(|&label| label as usize >= classes) {
            return Err(Error::malformed(
                &path,
                entries[i].offset + PART_HEADER as u64 + 4,
                format!("a label below {classes}, the number of classes that `property` names"),
                format!("label {} in record {}", labels[i], entries[i].key),
            ));
        }
        let mut empty = vec![true; classes];
        labels
            .iter()
            .for_each(|&label| empty[label as usize] = false);
        for label in (0..classes).filter(|&label| empty[label]) {
            unused.add(Reason::EmptyClass, label.to_string());
        }
        let numbers: Vec<String> = (0..classes).map(|label| label.to_string()).collect();
        let folder = path.parent().unwrap_or(Path::new(""));
        let names = identities::names(folder, numbers.iter().map(String::as_str), &mut unused)?;
        Ok(RecordIo {
            file: data,
            entries,
            labels,
            classes,
            names,
            skims,
            unused,
        })
    }

    /// The `.rec` file.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The record of image `index`, and where in it the image file begins (JPEG as a rule), which is all that follows.
    ///
    /// # Errors
    /// The record is malformed, or its label is not that of its identity.
    fn record(&self, index: usize) -> Result<(Vec<u8>, usize)> {
        let mut file = RecFile::look(&self.file);
        let entry = self.entries[index];
        let payload = file.payload(entry.offset, usize::MAX)?;
        let header = file.image_header(&payload, entry)?;
        let label = file.class_label(&header, entry)?;
        if label != self.labels[index] {
            return Err(Error::malformed(
                self.path(),
                entry.offset + PART_HEADER as u64 + 4,
                format!(
                    "label {}, as in the first record of the same identity",
                    self.labels[index]
                ),
                format!("label {label} in record {}", entry.key),
            ));
        }
        let start = payload.bytes.len() - header.body.len();
        Ok((payload.bytes, start))
    }
}

impl Dataset for RecordIo {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn classes(&self) -> usize {
        self.classes
    }

    fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        let (record, start) = self.record(index)?;
        picture::decode(&record[start..], image).map_err(|why| {
            let entry = self.entries[index];
            Error::malformed(
                self.path(),
                entry.offset,
                format!("an image in record {}", entry.key),
                format!("one that cannot be decoded: {why}"),
            )
        })
    }

    fn describe(&self, index: usize) -> String {
        let Entry { key, offset } = self.entries[index];
        format!("{}, record {key} at byte {offset}", shown(self.path()))
    }

    fn files(&self, _index: usize) -> Vec<PathBuf> {
        vec![self.path().into()]
    }

    fn encoded(&self, index: usize) -> Result<Option<Encoded>> {
        let (mut record, start) = self.record(index)?;
        record.drain(..start);
        Ok(Some(Encoded::new(record)))
    }

    fn class_name(&self, label: u32) -> String {
        match &self.names {
            Some(names) => names[label as usize].clone(),
            None => label.to_string(),
        }
    }

    fn unused(&self) -> Unused {
        self.unused.clone()
    }

    fn unused_in_full(&self) -> Result<Unused> {
        let mut unused = self.unused.clone();
        if self.skims {
            let all = read_index(&self.path().with_extension("idx"), &self.file)?;
            RecFile::walk(&self.file).unnamed_between(&all, &mut unused);
        }
        Ok(unused)
    }
}

/// The `.rec` file that `path` is or holds.
fn find_rec(path: &Path) -> Result<PathBuf> {
    if !path.is_dir() {
        return Ok(path.into());
    }
    let train = path.join("train.rec");
    if train.is_file() {
        return Ok(train);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(path).map_err(Error::io("listing the folder", path))? {
        let entry = entry.map_err(Error::io("listing the folder", path))?.path();
        if entry
            .extension()
            .is_some_and(|e| e.eq_ignore_ascii_case("rec"))
        {
            found.push(entry);
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err(Error::data(path, "holds no .rec file")),
        n => Err(Error::data(
            path,
            format!("holds {n} .rec files, none of them called train.rec; name the file itself"),
        )),
    }
}

/// The number of classes in `property`, where there is such a file.
fn read_property(path: &Path) -> Result<Option<usize>> {
    if !path.is_file() {
        return Ok(None);
    }
    let text = read_whole(path)?;
    let text = without_mark(&text);
    let text = String::from_utf8_lossy(&text[..text.len().min(1000)]);
    let classes = text.split(',').next().and_then(|n| n.trim().parse().ok());
    match classes {
        Some(n) if n > 0 && u32::try_from(n).is_ok() => Ok(Some(n)),
        _ => Err(Error::malformed(
            path,
            0,
            "classes,height,width, such as 85742,112,112",
            format!("{:?}", text.chars().take(60).collect::<String>()),
        )),
    }
}
