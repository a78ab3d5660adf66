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
//! A line of three fields or more between tabs, the first a whole number, is one of other programs' lists:
//!
//! | line | program |
//! |---|---|
//! | `0<tab>17.000000<tab>faces/0001.jpg` | MXNet's `im2rec`: number, label, path |
//! | `1<tab>faces/0001.jpg<tab>17` | InsightFace's `face2rec`: 1 for an aligned picture, path, label; what follows is not used |
//!
//! A label is a number or a name; labels are ranked (`data/labels.rs`). A path that is not absolute starts from
//! [`Opening::image_root`], or from the list's own folder. Whether an image is there is seen when it is read.

use crate::base::files::read_whole;
use crate::data::formats::labels::{self, Interner};
use crate::data::formats::pairs::unquote;
use crate::data::formats::text::{self, Text};
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

/// Path and label of a line of MXNet's or InsightFace's lists, or what is wrong with it; none if it is another line.
fn other_program(line: &str) -> Option<Result<(&str, String), String>> {
    let fields: Vec<&str> = line.split('\t').map(str::trim).collect();
    let [first, second, .., last] = fields[..] else {
        return None;
    };
    let aligned: u64 = (fields.len() > 2).then(|| first.parse().ok()).flatten()?;
    Some(match (second.parse::<f64>(), aligned) {
        (Ok(_), _) if fields.len() > 3 => {
            let labels = fields.len() - 2;
            Err(format!(
                "{labels} labels in MXNet's list, where one belongs"
            ))
        }
        (Ok(label), _) if label.fract() == 0.0 && label.abs() < 1e15 => {
            Ok((last, (label as i64).to_string()))
        }
        (Ok(_), _) => Err("a label in MXNet's list that is no whole number".into()),
        (Err(_), 0) => {
            Err("a picture that InsightFace's list says is not aligned (0 in front)".into())
        }
        (Err(_), _) => Ok((second, fields[2].to_owned())),
    })
}

impl List {
    /// Reads the list at `path`.
    ///
    /// # Errors
    /// The file cannot be read, a line is malformed, or there is no line.
    pub fn open(path: &Path, opening: &Opening<'_>) -> Result<Self> {
        let text = Text::read(path)?;
        let mut list = List {
            root: match opening.image_root {
                Some(root) => root.into(),
                None => path.parent().unwrap_or(Path::new("")).into(),
            },
            paths: String::with_capacity(text.as_str().len()),
            ends: Vec::new(),
            labels: Vec::new(),
            names: Vec::new(),
        };
        let mut names = Interner::default();
        for (at, line) in text.lines() {
            let bad = |found: &str| {
                let shown: String = line.chars().take(80).collect();
                Error::malformed(
                    path,
                    at,
                    "a line \"path label\"",
                    format!("{found}: {shown:?}"),
                )
            };
            // A tab at the end stands before a label that is not there.
            let line = line.trim_start_matches(' ');
            if line.trim().is_empty() || line.starts_with('#') {
                continue;
            }
            let (file, label) = match other_program(line) {
                Some(found) => {
                    let (file, label) = found.map_err(|why| bad(&why))?;
                    (file.into(), label.into())
                }
                None => {
                    let (file, label) = parse(line).map_err(bad)?;
                    (file, Cow::from(label))
                }
            };
            let label = labels::check(&label).map_err(|found| bad(&found))?;
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
        if list.labels.is_empty() {
            return Err(Error::data(path, "holds no line \"path label\""));
        }
        list.paths.shrink_to_fit();
        list.names = labels::rank(names.into_names(), &mut list.labels);
        Ok(list)
    }

    /// The file of image `index`.
    pub fn path(&self, index: usize) -> PathBuf {
        text::file(&self.root, self.listed(index))
    }

    /// What the list calls the file of image `index`.
    fn listed(&self, index: usize) -> &str {
        let start = match index {
            0 => 0,
            i => self.ends[i - 1] as usize,
        };
        &self.paths[start..self.ends[index] as usize]
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
        picture::read(&self.path(index), image)
    }

    fn describe(&self, index: usize) -> String {
        self.path(index).to_string_lossy().into_owned()
    }

    fn name(&self, index: usize) -> Option<String> {
        Some(self.listed(index).to_owned())
    }

    fn files(&self, index: usize) -> Vec<PathBuf> {
        vec![self.path(index)]
    }

    fn upright(&self) -> bool {
        true
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
            (r#""a\b.jpg" 1"#, r"a\b.jpg", "1"),
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
        for line in ["a.jpg", "\"a.jpg 1", r#""a.jpg\" 1"#] {
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
            (
                "a.lst",
                "0\t0.0\t1.0\t0.0\ta/1.jpg\n",
                "3 labels in MXNet's",
            ),
            ("a.lst", "0\t17.5\ta/1.jpg\n", "no whole number"),
            ("a.lst", "0\t-1\ta/1.jpg\n", "the label -1"),
            ("a.lst", "0\ta/1.jpg\t17\t1\t2\t3\t4\n", "not aligned"),
            ("a.lst", "0\t17\t\n", "without a path"),
        ] {
            let error = opened(name, text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        let list = opened("b.lst", "  \t\r\n  a.jpg\tJane Doe\r\nb.jpg 1 \r\n").unwrap();
        assert_eq!(list.path(0), dir.path().join("a.jpg"));
        assert_eq!([list.class_name(0), list.class_name(1)], ["1", "Jane Doe"]);
    }
    #[test]
    fn lists_of_other_programs_and_of_windows_are_read() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("a b")).unwrap();
        for k in 0..3 {
            let ppm = [b"P6 1 1 255\n".as_slice(), &[k; 3]].concat();
            std::fs::write(dir.path().join(format!("a b/{k}.ppm")), ppm).unwrap();
        }
        for (name, text) in [
            (
                "mxnet.lst",
                "7\t10.000000\ta b/0.ppm\n3\t9\ta b/1.ppm\n4\t10.0\ta b/2.ppm\n",
            ),
            (
                "mxnet.txt",
                "7\t10.000000\ta b/0.ppm\r\n3\t9\ta b/1.ppm\r\n4\t10.0\ta b/2.ppm\r\n",
            ),
            (
                "face2rec.lst",
                "1\ta b/0.ppm\t10\n1\ta b/1.ppm\t9\t1.5\t2\t3\t4\n1\ta b\\2.ppm\t10\n",
            ),
            (
                "windows.txt",
                "\u{feff}a b\\0.ppm 10\r\na b\\1.ppm 9\r\na b\\2.ppm 10\r\n",
            ),
        ] {
            let path = dir.path().join(name);
            std::fs::write(&path, text).unwrap();
            let list = List::open(&path, &Opening::default()).unwrap();
            let mut image = Image::default();
            for (k, label) in ["10", "9", "10"].into_iter().enumerate() {
                list.read(k, &mut image).unwrap();
                assert_eq!(image.pixels, [k as u8; 3], "{name}");
                assert_eq!(list.class_name(list.label(k)), label, "{name}");
            }
        }
    }
}
