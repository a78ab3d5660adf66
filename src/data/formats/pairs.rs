//! Pairs files: text that names the pairs of an evaluation set, whose images are files in folders.
//!
//! LFW's format, told by a first line of numbers only; the fields are separated by tabs or spaces:
//!
//! | line | meaning |
//! |---|---|
//! | `10 300` or `300` | the first: folds, and pairs of one person (and as many of two) in each |
//! | `Jane_Doe 1 4` | images 1 and 4 of one person: `Jane_Doe/Jane_Doe_0001.jpg` and so on, or another ending |
//! | `Jane_Doe 2 Joe_Bloggs 1` | images of two people |
//!
//! A list of pairs:
//!
//! | line | meaning |
//! |---|---|
//! | `a/1.jpg b/2.jpg 0` | two images and 1 for one person, 0 for two |
//! | `"a b/1.jpg" b/2.jpg 1` | a path with spaces, in quotes, with `\"` and `\\`; another backslash is itself |
//! | fields separated by tabs | paths as they are |
//! | empty, or `# remark` | |
//!
//! The lines are in the order of the pairs, which decides the folds. Paths start from the given folder, or from the
//! folder of the file. First of all, every image is checked to exist.

use crate::base::text::shown;
use crate::data::Image;
use crate::data::formats::text::{self, Text};
use crate::data::picture::{self, EXTENSIONS};
use crate::{Error, Result};
use std::borrow::Cow;
use std::path::{Path, PathBuf};

/// An evaluation set in a pairs file.
#[derive(Debug)]
pub struct Pairs {
    /// Images 2k and 2k + 1 are pair k.
    images: Vec<PathBuf>,
    same: Vec<bool>,
}

/// The fields of a line of a list: what tabs separate, or else words and what stands in quotes.
fn fields(line: &str) -> Result<Vec<Cow<'_, str>>, &'static str> {
    if line.contains('\t') {
        return Ok(line.split('\t').map(|field| field.trim().into()).collect());
    }
    let mut fields: Vec<Cow<'_, str>> = Vec::new();
    let mut rest = line.trim_start();
    while !rest.is_empty() {
        let Some(quoted) = rest.strip_prefix('"') else {
            let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
            fields.push(rest[..end].into());
            rest = rest[end..].trim_start();
            continue;
        };
        let (field, behind) = unquote(quoted)?;
        fields.push(field.into());
        rest = behind.trim_start();
    }
    Ok(fields)
}

/// What stands before the closing quote of `text`, which begins behind the opening one, and what comes after.
pub(crate) fn unquote(text: &str) -> Result<(String, &str), &'static str> {
    let mut inside = String::new();
    let mut chars = text.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((inside, &text[i + 1..])),
            '\\' => match chars.next() {
                Some((_, c @ ('"' | '\\'))) => inside.push(c),
                // A folder, as Windows writes it.
                Some((_, c)) => inside.extend(['\\', c]),
                None => break,
            },
            c => inside.push(c),
        }
    }
    Err("a quote that is not closed")
}

/// The pairs that LFW's first line promises.
fn promised(line: &str) -> Option<u64> {
    let numbers: Vec<u64> = line
        .split_whitespace()
        .map(|word| word.parse().ok())
        .collect::<Option<_>>()?;
    match numbers[..] {
        [pairs] => pairs.checked_mul(2),
        [folds, pairs] => pairs.checked_mul(2)?.checked_mul(folds),
        _ => None,
    }
}

/// Image `number` of `name` below `root`, with the first ending that is there.
fn lfw_image(root: &Path, name: &str, number: &str) -> Result<PathBuf, String> {
    let number: u32 = number
        .parse()
        .map_err(|_| format!("{number:?} where an image's number belongs"))?;
    let file = |ending: &str| root.join(name).join(format!("{name}_{number:04}.{ending}"));
    let endings = EXTENSIONS.map(|ending| [ending.to_owned(), ending.to_ascii_uppercase()]);
    let mut files = endings.iter().flatten().map(|ending| file(ending));
    let found = files.find(|path| path.is_file());
    found.ok_or_else(|| {
        format!(
            "no file {} (nor .png, ...); give the folder of aligned images",
            shown(file(EXTENSIONS[0]))
        )
    })
}

impl Pairs {
    /// Reads the pairs file at `path`, whose images lie below `root`, or below its own folder.
    ///
    /// # Errors
    /// The file cannot be read, a line is malformed, an image is not there, or there are not as many pairs as promised.
    pub fn open(path: &Path, root: Option<&Path>) -> Result<Self> {
        let text = Text::read(path)?;
        let root = root.or(path.parent()).unwrap_or(Path::new(""));
        let mut pairs = Pairs {
            images: Vec::new(),
            same: Vec::new(),
        };
        // None: no line yet; then whether it is LFW's format, and how many pairs there must be.
        let mut lfw: Option<Option<u64>> = None;
        for (at, line) in text.lines() {
            let bad = |expected: &str, found: &str| {
                let shown: String = line.chars().take(80).collect();
                Error::malformed(path, at, expected, format!("{found}: {shown:?}"))
            };
            let text = line.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let Some(format) = lfw else {
                let promised = promised(text);
                lfw = Some(promised);
                if promised.is_none() {
                    pairs.add_listed(root, text, bad)?;
                }
                continue;
            };
            match format {
                Some(_) => pairs.add_lfw(root, text, bad)?,
                None => pairs.add_listed(root, text, bad)?,
            }
        }
        let found = pairs.same.len() as u64;
        match lfw.flatten() {
            Some(promised) if promised != found => Err(Error::data(
                path,
                format!("promises {promised} pairs in its first line and holds {found}"),
            )),
            _ if found == 0 => Err(Error::data(path, "holds no pair")),
            _ => Ok(pairs),
        }
    }

    fn add_lfw(
        &mut self,
        root: &Path,
        line: &str,
        bad: impl Fn(&str, &str) -> Error,
    ) -> Result<()> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (first, second, same) = match words[..] {
            [name, a, b] => ((name, a), (name, b), true),
            [name, a, other, b] => ((name, a), (other, b), false),
            _ => {
                let expected = "a line \"name number number\" or \"name number name number\"";
                return Err(bad(expected, &format!("{} fields", words.len())));
            }
        };
        for (name, number) in [first, second] {
            let image = lfw_image(root, name, number);
            self.images
                .push(image.map_err(|found| bad("an image of the pair", &found))?);
        }
        self.same.push(same);
        Ok(())
    }

    fn add_listed(
        &mut self,
        root: &Path,
        line: &str,
        bad: impl Fn(&str, &str) -> Error,
    ) -> Result<()> {
        let expected =
            "a line \"image image 0|1\", or LFW's format with its numbers in the first line";
        let fields = fields(line).map_err(|found| bad(expected, found))?;
        let [first, second, same] = &fields[..] else {
            return Err(bad(expected, &format!("{} fields", fields.len())));
        };
        let same = match &same[..] {
            "0" => false,
            "1" => true,
            _ => return Err(bad(expected, "neither 0 nor 1 at the end")),
        };
        for image in [first, second] {
            let image = text::file(root, image);
            if !image.is_file() {
                return Err(bad(
                    "an image of the pair",
                    &format!("no file {}", shown(image)),
                ));
            }
            self.images.push(image);
        }
        self.same.push(same);
        Ok(())
    }

    /// For each pair, whether it shows one person.
    pub fn same(&self) -> &[bool] {
        &self.same
    }

    /// The file of image `index`, below twice the number of pairs.
    pub fn path(&self, index: usize) -> &Path {
        &self.images[index]
    }

    /// Decodes image `index`, below twice the number of pairs, into `image`.
    ///
    /// # Errors
    /// It cannot be read or decoded.
    pub fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        picture::read(self.path(index), image)
    }
}
