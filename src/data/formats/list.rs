//! Lists: text files in UTF-8 with a line `path label` for each image.
//!
//! | line | path | label |
//! |---|---|---|
//! | `faces/0001.jpg 17` | what stands before the last space | the last word |
//! | `my faces/0001.jpg 17` | spaces in it need no quotes | the last word |
//! | `"my faces/0001.jpg" Jane Doe` | what stands in quotes, with `\"` for a quote and `\\` for a backslash | the rest |
//! | `my faces/0001.jpg<tab>Jane Doe` | what stands before the last tab, as it is | what stands behind it |
//! | empty, or `# remark` | | |
//!
//! In a `.lst` file a line with two tabs or more is refused: it is MXNet's `number label path` or InsightFace's `1 path label`.
//!
//! A label is a number or a name; labels are ranked (`data/labels.rs`). A path that is not absolute starts from
//! [`Opening::image_root`], or from the list's own folder. Whether an image is there is seen when it is read.

use crate::base::files::read_whole;
use crate::data::formats::labels::{self, Interner};
use crate::data::formats::pairs::unquote;
use crate::data::picture;
use crate::data::{Dataset, Encoded, Image, Opening};
use crate::{Error, Result};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// A list of images as a data set. Its paths are kept in one string.
#[derive(Debug)]
pub struct List {
    root: PathBuf,
    paths: String,
    /// Where each path ends.
    ends: Vec<u32>,
    labels: Vec<u32>,
    names: Vec<String>,
}

/// A line's path and label, or what is wrong with it.
fn parse(line: &str) -> Result<(Cow<'_, str>, &str), &'static str> {
    if let Some((path, label)) = line.rsplit_once('\t') {
        return Ok((path.into(), label));
    }
    let line = line.trim_end();
    let Some(quoted) = line.strip_prefix('"') else {
        let (path, label) = line
            .rsplit_once(char::is_whitespace)
            .ok_or("a path without a label")?;
        return Ok((path.trim_end().into(), label));
    };
    let (path, label) = unquote(quoted)?;
    Ok((path.into(), label))
}

/// Whose format a line of a `.lst` file is that has three fields or more.
fn other_program(line: &str) -> Option<&'static str> {
    let fields: Vec<&str> = line.split('\t').collect();
    let number = |field: &str| field.trim().parse::<f64>().is_ok();
    match fields[..] {
        [] | [_] | [_, _] => None,
        [_, label, ..] if number(label) => {
            Some("what looks like MXNet's number, label and path; write path and label")
        }
        _ => Some("what looks like InsightFace's 1, path and label; write path and label"),
    }
}

impl List {
    /// Reads the list at `path`.
    ///
    /// # Errors
    /// The file cannot be read, a line is malformed, or there is no line.
    pub fn open(path: &Path, opening: &Opening<'_>) -> Result<Self> {
        let bytes = read_whole(path)?;
        let mut list = List {
            root: match opening.image_root {
                Some(root) => root.into(),
                None => path.parent().unwrap_or(Path::new("")).into(),
            },
            paths: String::with_capacity(bytes.len()),
            ends: Vec::new(),
            labels: Vec::new(),
            names: Vec::new(),
        };
        let mut names = Interner::default();
        let lst = path.extension().is_some_and(|ending| ending == "lst");
        let mut at = 0;
        for line in bytes.split(|&b| b == b'\n') {
            let bad = |found: &str| {
                let shown = String::from_utf8_lossy(&line[..line.len().min(80)]);
                Error::malformed(
                    path,
                    at,
                    "a line \"path label\"",
                    format!("{found}: {shown:?}"),
                )
            };
            let text = std::str::from_utf8(line).map_err(|_| bad("bytes that are not UTF-8"))?;
            if text.contains('\0') {
                return Err(bad("a zero byte"));
            }
            // A tab at the end stands before a label that is not there.
            let text = text.trim_end_matches('\r').trim_start_matches(' ');
            if !text.trim().is_empty() && !text.starts_with('#') {
                if lst && let Some(program) = other_program(text) {
                    return Err(bad(program));
                }
                let (file, label) = parse(text).map_err(bad)?;
                let label = labels::check(label).map_err(|found| bad(&found))?;
                if file.is_empty() {
                    return Err(bad("a label without a path"));
                }
                list.paths.push_str(&file);
                let end = u32::try_from(list.paths.len());
                list.ends.push(end.map_err(|_| {
                    Error::data(
                        path,
                        "holds more than 4 GiB of paths; make it several lists",
                    )
                })?);
                list.labels.push(names.number(label));
            }
            at += line.len() as u64 + 1;
        }
        if list.labels.is_empty() {
            return Err(Error::data(path, "holds no line \"path label\""));
        }
        list.paths.shrink_to_fit();
        list.names = labels::rank(names.into_names(), &mut list.labels);
        Ok(list)
    }

    /// The file of image `index`.
    pub fn path(&self, index: usize) -> PathBuf {
        let start = match index {
            0 => 0,
            i => self.ends[i - 1] as usize,
        };
        // An absolute path replaces the folder.
        self.root
            .join(&self.paths[start..self.ends[index] as usize])
    }
}

impl Dataset for List {
    fn len(&self) -> usize {
        self.labels.len()
    }

    fn classes(&self) -> usize {
        self.names.len()
    }

    fn label(&self, index: usize) -> u32 {
        self.labels[index]
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        let path = self.path(index);
        picture::decode(&read_whole(&path)?, image)
            .map_err(|why| Error::data(&path, format!("cannot be decoded: {why}")))
    }

    fn describe(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    fn files(&self, index: usize) -> Vec<PathBuf> {
        vec![self.path(index)]
    }

    fn encoded(&self, index: usize) -> Result<Option<Encoded>> {
        read_whole(&self.path(index)).map(|bytes| Some(Encoded::new(bytes)))
    }

    fn class_name(&self, label: u32) -> String {
        self.names[label as usize].clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_every_kind() {
        for (line, path, label) in [
            ("a.jpg 0", "a.jpg", "0"),
            ("a b/c d.jpg   17", "a b/c d.jpg", "17"),
            ("\"a b.jpg\" Jane Doe", "a b.jpg", "Jane Doe"),
            (r#""a\"b\\c.jpg" 1"#, r#"a"b\c.jpg"#, "1"),
            ("\"a.jpg\tJane Doe", "\"a.jpg", "Jane Doe"),
            ("a\tb.jpg\t3", "a\tb.jpg", "3"),
            ("a.jpg 17 ", "a.jpg", "17"),
        ] {
            let (found, rest) = parse(line).unwrap();
            assert_eq!(
                (&*found, labels::check(rest).unwrap()),
                (path, label),
                "{line}"
            );
        }
        for line in ["a.jpg", "\"a.jpg 1", r#""a\b.jpg" 1"#] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn lines_that_would_be_misread_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let opened = |name: &str, text: &str| {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            List::open(&path, &Opening::default())
        };
        for (name, text, expected) in [
            ("a.txt", "my faces/1.jpg 7\t\r\n", "no label"),
            ("a.txt", "\tJane Doe\n", "without a path"),
            ("a.lst", "0\t17.000000\ta/1.jpg\n", "MXNet's"),
            ("a.lst", "1\ta/1.jpg\t17\n", "InsightFace's"),
        ] {
            let error = opened(name, text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let list = opened("b.lst", "  \t\r\n  a.jpg\tJane Doe\r\nb.jpg 1 \r\n").unwrap();
        assert_eq!(list.path(0), dir.path().join("a.jpg"));
        assert_eq!([list.class_name(0), list.class_name(1)], ["1", "Jane Doe"]);
    }
}
