//! WebDataset: tar archives (`data/tar.rs`) whose files are grouped into samples by their names.
//!
//! A sample is a run of files whose names are the same up to the first dot of the last part: `set/000123.jpg` with
//! `set/000123.cls`. The image is the file whose name ends as a picture's does, the label the text in the file ending
//! in `.cls`, a number or a name. Other files of a sample, samples with neither, hidden files (`.name`) and links are
//! counted as not used. Labels are ranked (`data/labels.rs`). Archives must not be compressed. Where the samples are is found once and kept
//! (`data/index.rs`).

use crate::base::data_file::DataFile;
use crate::data::formats::index::{Format, IndexBuilder};
use crate::data::formats::sharded::Sharded;
use crate::data::formats::tar::{Member, Members};
use crate::data::formats::text::without_mark;
use crate::data::formats::{labels, shards};
use crate::data::picture;
use crate::data::unused::{Reason, Unused};
use crate::data::{Dataset, Encoded, Image, Opening};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The longest label.
const MAX_LABEL: u64 = 1024;

/// Bytes between two reports of progress.
const REPORT: u64 = 16 << 20;

/// One WebDataset archive or several as a data set.
#[derive(Debug)]
pub struct WebDataset {
    pub(in crate::data) records: Sharded,
}

impl WebDataset {
    /// Opens an archive, a row of them (`name-00000-of-00010.tar`), or those that fit a pattern (`dir/*.tar`).
    ///
    /// # Errors
    /// A file cannot be read or is damaged; a sample lacks its label or its image; a file of the row is missing.
    pub fn open(path: &Path, opening: &Opening<'_>) -> Result<Self> {
        Self::open_files(shards::resolve(path)?, opening)
    }

    /// The same for files in the order given.
    pub(crate) fn open_files(paths: Vec<PathBuf>, opening: &Opening<'_>) -> Result<Self> {
        Ok(WebDataset {
            records: Sharded::open(paths, Format::Tar, walk, opening)?,
        })
    }
}

/// The files of one sample so far.
#[derive(Default)]
struct Sample {
    key: String,
    /// Where its first file begins.
    at: u64,
    label: Option<String>,
    /// Place and length of the image.
    image: Option<(u64, u32)>,
}

/// Key and ending of a member: what stands before and behind the first dot of its last part.
fn split_name(name: &str) -> (&str, &str) {
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[last..].find('.') {
        Some(dot) => (&name[..last + dot], &name[last + dot + 1..]),
        None => (name, ""),
    }
}

/// Whether the last part begins with a dot, as `._0001.jpg`, which macOS's tar puts beside `0001.jpg`.
fn is_hidden(name: &str) -> bool {
    name.rsplit('/')
        .next()
        .is_some_and(|last| last.starts_with('.'))
}

impl Sample {
    fn add(
        &mut self,
        members: &mut Members<'_>,
        member: &Member,
        ending: &str,
        unused: &mut Unused,
    ) -> Result<()> {
        let path = members.path();
        let bad = |expected: String, found: String| {
            Err(Error::malformed(path, member.header, expected, found))
        };
        if ending.eq_ignore_ascii_case("cls") {
            let text = match member.length {
                ..=MAX_LABEL => std::str::from_utf8(without_mark(members.content(member)?)).ok(),
                _ => None,
            };
            let label = text.map_or(Err("no short text in UTF-8".into()), labels::check);
            match label {
                Ok(_) if self.label.is_some() => {
                    return bad(
                        format!("one label in sample {}", self.key),
                        format!("a second one, {}", member.name),
                    );
                }
                Ok(label) => self.label = Some(label.to_owned()),
                Err(found) => {
                    return bad(
                        format!("a label, a number or a name, in {}", member.name),
                        found,
                    );
                }
            }
        } else if picture::is_extension(ending) {
            let Ok(length) = u32::try_from(member.length) else {
                return bad(
                    "an image of less than 4 GiB".into(),
                    format!("{} of {} bytes", member.name, member.length),
                );
            };
            if self.image.is_some() {
                return bad(
                    format!("one image in sample {}", self.key),
                    format!("a second one, {}", member.name),
                );
            }
            self.image = Some((member.offset, length));
        } else {
            unused.add(Reason::FileOfSample, &member.name[..]);
        }
        Ok(())
    }

    fn finish(self, path: &Path, builder: &mut IndexBuilder) -> Result<()> {
        let lacks = |what: &str| {
            let found = format!("sample {} without one", self.key);
            Err(Error::malformed(path, self.at, what, found))
        };
        match (&self.label, self.image) {
            (Some(label), Some((offset, length))) => builder.push(offset, length, label),
            (None, None) => {}
            (None, _) => return lacks("a label (.cls) beside each image"),
            (_, None) => return lacks("an image (.jpg, .png) beside each label"),
        }
        Ok(())
    }
}

fn walk(file: &DataFile, builder: &mut IndexBuilder, passed: &dyn Fn(u64)) -> Result<()> {
    let path = file.path();
    if file.read(0, 2)? == b"\x1f\x8b" {
        return Err(Error::Unsupported {
            path: path.into(),
            what: "a compressed archive (decompress it with gunzip first)".into(),
        });
    }
    let mut members = Members::new(file);
    let mut sample = Sample::default();
    let mut reported = 0;
    while let Some(member) = members.next()? {
        if is_hidden(&member.name) {
            builder.unused.add(Reason::Hidden, member.name);
            continue;
        }
        let (key, ending) = split_name(&member.name);
        if key != sample.key {
            let next = Sample {
                key: key.to_owned(),
                at: member.header,
                ..Sample::default()
            };
            std::mem::replace(&mut sample, next).finish(path, builder)?;
        }
        sample.add(&mut members, &member, ending, &mut builder.unused)?;
        if members.position() - reported >= REPORT {
            passed(members.position() - reported);
            reported = members.position();
        }
    }
    passed(file.len() - reported);
    builder.unused.merge(members.unused);
    sample.finish(path, builder)
}

impl Dataset for WebDataset {
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
        let found = self.records.record(index)?;
        picture::decode(&found.bytes, image).map_err(|why| {
            Error::malformed(
                found.path,
                found.offset,
                "an image",
                format!("one that cannot be decoded: {why}"),
            )
        })
    }

    fn describe(&self, index: usize) -> String {
        self.records.describe(index)
    }

    fn files(&self, index: usize) -> Vec<PathBuf> {
        vec![self.records.path(index).into()]
    }

    fn encoded(&self, index: usize) -> Result<Option<Encoded>> {
        Ok(Some(Encoded::new(self.records.record(index)?.bytes)))
    }

    fn class_name(&self, label: u32) -> String {
        self.records.class_name(label)
    }

    fn unused(&self) -> Unused {
        self.records.unused.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_at_the_first_dot_of_the_last_part() {
        for (name, key, ending) in [
            ("a.b/0001.seg.png", "a.b/0001", "seg.png"),
            ("x.jpg", "x", "jpg"),
            ("dir/x", "dir/x", ""),
        ] {
            assert_eq!(split_name(name), (key, ending));
            assert!(!is_hidden(name));
        }
        assert!(is_hidden(".x") && is_hidden("a.b/._0001.jpg") && !is_hidden("./x"));
    }
}
