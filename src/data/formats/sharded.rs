//! Records in one file or several, with random access over all of them: what TFRecord and WebDataset sets share.

use crate::base::data_file::DataFile;
use crate::base::text::shown;
use crate::data::Opening;
use crate::data::formats::index::{self, Format, Index, IndexBuilder, Record, Stamp};
use crate::data::formats::{identities, labels};
use crate::data::unused::Unused;
use crate::{Error, Result};
use rayon::prelude::*;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// One file of the set.
#[derive(Debug)]
struct Shard {
    file: DataFile,
    /// Records in all files before this one.
    first: usize,
}

/// A walk over a file: adds its records to the builder, tells of bytes passed since the last call.
pub(crate) type Walk = fn(&DataFile, &mut IndexBuilder, &dyn Fn(u64)) -> Result<()>;

/// The files, their records and their labels. 16 bytes a record are held in memory.
#[derive(Debug)]
pub(crate) struct Sharded {
    shards: Vec<Shard>,
    /// `name` is the class.
    records: Vec<Record>,
    names: Vec<String>,
    /// What the files, and where they were found, hold besides.
    pub(crate) unused: Unused,
}

/// A record's bytes and place.
pub(crate) struct Found<'a> {
    pub(crate) path: &'a Path,
    pub(crate) offset: u64,
    pub(crate) bytes: Vec<u8>,
}

impl Sharded {
    /// Opens the files, each with its index; those that have none yet are walked on all cores.
    ///
    /// # Errors
    /// A file cannot be opened or a walk fails; there is no record.
    pub(crate) fn open(
        paths: Vec<PathBuf>,
        format: Format,
        walk: Walk,
        opening: &Opening<'_>,
    ) -> Result<Self> {
        // Before they are opened: an index is good for what is opened only if the file is then still the same.
        let stamps = (paths.iter().map(|path| Stamp::of(path))).collect::<Result<Vec<_>>>()?;
        let files = (paths.iter().map(|path| DataFile::open(path))).collect::<Result<Vec<_>>>()?;
        let total = files.iter().map(DataFile::len).sum();
        let done = AtomicU64::new(0);
        let passed = |bytes: u64| {
            let done = done.fetch_add(bytes, Ordering::Relaxed) + bytes;
            (opening.progress)(done, total);
        };
        let indices: Vec<Result<Index>> = (files.par_iter().zip(&stamps))
            .map(|(file, &stamp)| {
                let mut walked = false;
                let index = index::load_or_walk(file.path(), format, stamp, opening, || {
                    walked = true;
                    let mut builder = IndexBuilder::default();
                    walk(file, &mut builder, &passed)?;
                    Ok(builder.finish())
                });
                if !walked {
                    passed(file.len());
                }
                index
            })
            .collect();
        let mut set = Sharded {
            shards: Vec::with_capacity(files.len()),
            records: Vec::new(),
            names: Vec::new(),
            unused: Unused::default(),
        };
        let mut numbers: HashMap<String, u32> = HashMap::new();
        for (file, index) in files.into_iter().zip(indices) {
            // The first file's error, whatever order they were walked in.
            let Index {
                names,
                records,
                unused,
            } = index?;
            set.unused.merge(unused);
            set.shards.push(Shard {
                file,
                first: set.records.len(),
            });
            let common: Vec<u32> = names
                .into_iter()
                .map(|name| {
                    let next = numbers.len() as u32;
                    *numbers.entry(name).or_insert(next)
                })
                .collect();
            set.records.extend(records.into_iter().map(|record| Record {
                name: common[record.name as usize],
                ..record
            }));
        }
        let first = set.shards[0].file.path();
        if set.records.is_empty() {
            return Err(Error::data(first, "holds no record"));
        }
        if u32::try_from(set.records.len()).is_err() {
            return Err(Error::data(
                first,
                format!(
                    "holds, with the other files, {} records, more than 2^32",
                    set.records.len()
                ),
            ));
        }
        let mut names = vec![String::new(); numbers.len()];
        for (name, number) in numbers {
            names[number as usize] = name;
        }
        let mut classes: Vec<u32> = set.records.iter().map(|record| record.name).collect();
        set.names = labels::rank(names, &mut classes);
        for (record, class) in set.records.iter_mut().zip(classes) {
            record.name = class;
        }
        let folder = set.shards[0].file.path().parent();
        let labels = set.names.iter().map(String::as_str);
        let folder = folder.unwrap_or(Path::new(""));
        if let Some(names) = identities::names(folder, labels, &mut set.unused)? {
            set.names = names;
        }
        Ok(set)
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn classes(&self) -> usize {
        self.names.len()
    }

    pub(crate) fn label(&self, index: usize) -> u32 {
        self.records[index].name
    }

    pub(crate) fn class_name(&self, label: u32) -> String {
        self.names[label as usize].clone()
    }

    fn shard(&self, index: usize) -> &Shard {
        let after = self.shards.partition_point(|shard| shard.first <= index);
        // Files without records begin where the next one does.
        &self.shards[after - 1]
    }

    /// The content of record `index`.
    ///
    /// # Errors
    /// The file cannot be read, or has become shorter.
    pub(crate) fn record(&self, index: usize) -> Result<Found<'_>> {
        let file = &self.shard(index).file;
        let Record { offset, length, .. } = self.records[index];
        Ok(Found {
            path: file.path(),
            offset,
            bytes: file.read(offset, length as usize)?,
        })
    }

    /// The file of record `index`.
    pub(crate) fn path(&self, index: usize) -> &Path {
        self.shard(index).file.path()
    }

    /// For messages: file, number of the record in it, and its place.
    pub(crate) fn describe(&self, index: usize) -> String {
        let shard = self.shard(index);
        format!(
            "{}, record {} at byte {}",
            shown(shard.file.path()),
            index - shard.first,
            self.records[index].offset
        )
    }
}
