//! Where the records of a large file begin and what they are labelled: found once, then kept in a file.
//!
//! A file has one sequence of records that only a walk from its beginning finds. What the walk finds is kept as
//! `FILE.arcface-index` beside the file, or, where that folder cannot be written to, in the cache folder that
//! [`Opening::cache`] names; where neither can be, the next start walks again. Little-endian:
//!
//! | bytes | content |
//! |---|---|
//! | 8 | `AFINDEX2` |
//! | 4 | format of the file: 1 TFRecord, 2 tar |
//! | 8, 8, 4 | the file's size; time of its last change: seconds since 1970, nanoseconds |
//! | 4, 8 | number of names, of records |
//! | each name | 4 bytes length, UTF-8 |
//! | each record | 8 offset, 4 length, 4 number of the label's name |
//! | the rest | what the file holds besides (`data/unused.rs`) |
//! | 4 | CRC-32C of all before |
//!
//! An index is made again if it does not match the file (another size or time) or its own CRC.

use crate::base::files;
use crate::data::Opening;
use crate::data::formats::labels::Interner;
use crate::data::unused::Unused;
use crate::encoding::framing::crc32c;
use crate::{Error, Result};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

const MAGIC: &[u8; 8] = b"AFINDEX2";

/// Bytes before the names.
const HEADER: usize = 44;

/// Bytes of a record in the index.
const ENTRY: usize = 16;

/// What an index file's name ends in.
pub(crate) const ENDING: &str = ".arcface-index";

/// The formats that are indexed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    TfRecord = 1,
    Tar = 2,
}

/// A record: where its content lies, and the number of its label's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) offset: u64,
    pub(crate) length: u32,
    pub(crate) name: u32,
}

/// What a walk finds.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    names: Interner,
    records: Vec<Record>,
    /// What is no record.
    pub(crate) unused: Unused,
}

impl IndexBuilder {
    /// Adds the record with the `length` bytes at `offset`, labelled `name`.
    pub(crate) fn push(&mut self, offset: u64, length: u32, name: &str) {
        let name = self.names.number(name);
        self.records.push(Record {
            offset,
            length,
            name,
        });
    }

    pub(crate) fn finish(self) -> Index {
        Index {
            names: self.names.into_names(),
            records: self.records,
            unused: self.unused,
        }
    }
}

/// The records of a file and the names of their labels.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) names: Vec<String>,
    pub(crate) records: Vec<Record>,
    pub(crate) unused: Unused,
}

/// What tells one state of a file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Stamp {
    size: u64,
    seconds: u64,
    nanoseconds: u32,
}

impl Stamp {
    /// The state of the file now.
    pub(crate) fn of(path: &Path) -> Result<Self> {
        let metadata = fs::metadata(path).map_err(Error::io("reading", path))?;
        let changed = metadata.modified().map_err(Error::io("reading", path))?;
        let changed = changed.duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(Stamp {
            size: metadata.len(),
            seconds: changed.as_secs(),
            nanoseconds: changed.subsec_nanos(),
        })
    }
}

/// Where the index of `path` may be, the best place first.
fn places(path: &Path, opening: &Opening<'_>) -> Vec<PathBuf> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(ENDING);
    let mut places = vec![PathBuf::from(beside)];
    if let Some(cache) = opening.cache {
        // Files of the same name in different folders are different files.
        let mut hasher = DefaultHasher::new();
        fs::canonicalize(path)
            .unwrap_or_else(|_| path.into())
            .hash(&mut hasher);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        places.push(cache.join(format!("{name}-{:016x}{ENDING}", hasher.finish())));
    }
    places
}

/// The index of `path`: the one that was kept, or what `walk` finds, which is then kept. `stamp` is that of before the file
/// was mapped: one that was changed since then is walked as it was mapped, and its index is not kept.
///
/// # Errors
/// `walk` fails.
pub(crate) fn load_or_walk(
    path: &Path,
    format: Format,
    stamp: Stamp,
    opening: &Opening<'_>,
    walk: impl FnOnce() -> Result<Index>,
) -> Result<Index> {
    let unchanged = || Stamp::of(path).is_ok_and(|now| now == stamp);
    let mut places = places(path, opening);
    if !unchanged() {
        places.clear();
    }
    for place in &places {
        if let Some(index) = fs::read(place)
            .ok()
            .and_then(|bytes| decode(&bytes, format, stamp))
        {
            return Ok(index);
        }
    }
    let index = walk()?;
    if !unchanged() {
        return Ok(index);
    }
    let bytes = encode(&index, format, stamp);
    for place in &places {
        // Only time is lost where it cannot be kept.
        if keep(place, &bytes).is_ok() {
            break;
        }
    }
    Ok(index)
}

fn keep(place: &Path, bytes: &[u8]) -> std::io::Result<()> {
    if let Some(folder) = place.parent() {
        fs::create_dir_all(folder)?;
    }
    files::write_cached(place, bytes)
}

fn encode(index: &Index, format: Format, stamp: Stamp) -> Vec<u8> {
    let names: usize = index.names.iter().map(|name| 4 + name.len()).sum();
    let mut bytes = Vec::with_capacity(HEADER + names + ENTRY * index.records.len() + 4);
    bytes.extend(MAGIC);
    bytes.extend((format as u32).to_le_bytes());
    bytes.extend(stamp.size.to_le_bytes());
    bytes.extend(stamp.seconds.to_le_bytes());
    bytes.extend(stamp.nanoseconds.to_le_bytes());
    bytes.extend((index.names.len() as u32).to_le_bytes());
    bytes.extend((index.records.len() as u64).to_le_bytes());
    for name in &index.names {
        bytes.extend((name.len() as u32).to_le_bytes());
        bytes.extend(name.as_bytes());
    }
    for record in &index.records {
        bytes.extend(record.offset.to_le_bytes());
        bytes.extend(record.length.to_le_bytes());
        bytes.extend(record.name.to_le_bytes());
    }
    index.unused.encode(&mut bytes);
    bytes.extend(crc32c(&bytes).to_le_bytes());
    bytes
}

/// The index in `bytes`, if it is one of this format, of a file in this state, and whole.
fn decode(bytes: &[u8], format: Format, stamp: Stamp) -> Option<Index> {
    let (content, crc) = bytes.split_last_chunk::<4>()?;
    if !content.starts_with(MAGIC) || crc32c(content) != u32::from_le_bytes(*crc) {
        return None;
    }
    let mut rest = &content[MAGIC.len()..];
    let found = take_u32(&mut rest)?;
    let found_stamp = Stamp {
        size: take_u64(&mut rest)?,
        seconds: take_u64(&mut rest)?,
        nanoseconds: take_u32(&mut rest)?,
    };
    if found != format as u32 || found_stamp != stamp {
        return None;
    }
    let names = take_u32(&mut rest)? as usize;
    let records = usize::try_from(take_u64(&mut rest)?).ok()?;
    // Nothing is reserved for more than the file holds.
    let mut index = Index {
        names: Vec::with_capacity(names.min(rest.len() / 4)),
        records: Vec::with_capacity(records.min(rest.len() / ENTRY)),
        unused: Unused::default(),
    };
    for _ in 0..names {
        let length = take_u32(&mut rest)? as usize;
        let (name, after) = rest.split_at_checked(length)?;
        index.names.push(String::from_utf8(name.to_vec()).ok()?);
        rest = after;
    }
    for _ in 0..records {
        let record = Record {
            offset: take_u64(&mut rest)?,
            length: take_u32(&mut rest)?,
            name: take_u32(&mut rest)?,
        };
        let inside = record.offset.checked_add(record.length.into())? <= stamp.size;
        if !inside || record.name as usize >= names {
            return None;
        }
        index.records.push(record);
    }
    index.unused = Unused::decode(&mut rest)?;
    rest.is_empty().then_some(index)
}

fn take_u32(rest: &mut &[u8]) -> Option<u32> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u32::from_le_bytes(*word))
}

fn take_u64(rest: &mut &[u8]) -> Option<u64> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(u64::from_le_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::unused::Reason;
    use std::cell::Cell;

    fn built(salt: u32) -> Index {
        let mut builder = IndexBuilder::default();
        for i in 0..5 {
            builder.push(
                u64::from(10 * i),
                10,
                ["a", "", "ö"][(i + salt) as usize % 3],
            );
        }
        builder.unused.add(Reason::FileOfSample, "0.json");
        builder.finish()
    }

    #[test]
    fn an_index_is_kept_as_long_as_it_fits() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tfrecord");
        fs::write(&file, [7; 50]).unwrap();
        let walks = Cell::new(0);
        let load = |format| {
            let stamp = Stamp::of(&file).unwrap();
            load_or_walk(&file, format, stamp, &Opening::default(), || {
                walks.set(walks.get() + 1);
                Ok(built(walks.get()))
            })
            .unwrap()
        };
        assert_eq!(load(Format::TfRecord), built(1));
        assert_eq!(load(Format::TfRecord), built(1));
        assert_eq!(walks.get(), 1);
        assert_eq!(load(Format::Tar), built(2), "another format");
        // Another size, then another time.
        fs::write(&file, [7; 51]).unwrap();
        assert_eq!(load(Format::Tar), built(3));
        let later =
            fs::metadata(&file).unwrap().modified().unwrap() + std::time::Duration::new(0, 5000);
        fs::File::open(&file).unwrap().set_modified(later).unwrap();
        assert_eq!(load(Format::Tar), built(4));
        // Every damage is noticed.
        let kept = dir.path().join("x.tfrecord.arcface-index");
        let bytes = fs::read(&kept).unwrap();
        for i in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[i] ^= 1 << (i % 8);
            fs::write(&kept, &damaged).unwrap();
            let before = walks.get();
            load(Format::Tar);
            assert_eq!(walks.get(), before + 1, "byte {i}");
        }
        for length in 0..bytes.len() {
            assert_eq!(
                decode(&bytes[..length], Format::Tar, Stamp::of(&file).unwrap()),
                None
            );
        }
    }

    #[test]
    fn the_index_of_a_file_that_changes_meanwhile_is_neither_kept_nor_taken() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.tar");
        let kept = dir.path().join("x.tar.arcface-index");
        fs::write(&file, [7; 50]).unwrap();
        let old = Stamp::of(&file).unwrap();
        let load = |stamp, salt, then: &dyn Fn()| {
            load_or_walk(&file, Format::Tar, stamp, &Opening::default(), || {
                then();
                Ok(built(salt))
            })
            .unwrap()
        };
        load(old, 0, &|| fs::write(&file, [7; 60]).unwrap());
        assert!(!kept.exists(), "changed during the walk");
        load(Stamp::of(&file).unwrap(), 1, &|| {});
        assert!(kept.exists());
        assert_eq!(load(old, 2, &|| {}), built(2), "changed before it");
    }

    #[test]
    fn a_folder_that_cannot_be_written_to_leaves_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        fs::write(&file, [7; 50]).unwrap();
        // A folder of the index's name can be replaced by no file.
        fs::create_dir(dir.path().join("x.arcface-index")).unwrap();
        let cache = dir.path().join("deep/cache");
        let opening = Opening {
            cache: Some(&cache),
            ..Opening::default()
        };
        let walks = Cell::new(0);
        for _ in 0..2 {
            let index = load_or_walk(
                &file,
                Format::Tar,
                Stamp::of(&file).unwrap(),
                &opening,
                || {
                    walks.set(walks.get() + 1);
                    Ok(built(0))
                },
            );
            assert_eq!(index.unwrap(), built(0));
        }
        assert_eq!(walks.get(), 1);
        assert_eq!(fs::read_dir(&cache).unwrap().count(), 1);
    }
}
