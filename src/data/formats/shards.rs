//! Which files a name stands for: data sets that are one file, or a numbered row of them.
//!
//! | given | read |
//! |---|---|
//! | `dir/faces.tfrecord` | that file |
//! | `dir/*.tfrecord`, `dir/part-?.tar` | the files in `dir` whose names fit (`*` any characters, `?` one), by name; of a row each must be there |
//! | `dir/faces-00003-of-00010`, with or without an ending behind it | all ten of the row; each must be there |
//! | `dir/faces`, where `dir/faces-00000-of-00010` is | all ten of the row |
//! | `dir` | its files of the format, if they are one row: names that differ in their numbers only |

use crate::data::formats::index;
use crate::{Error, Result};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A name taken apart: `faces-00003-of-00010.tar` is `faces`, 3, 10 and `.tar`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Numbered<'a> {
    stem: &'a str,
    number: usize,
    of: usize,
    ending: &'a str,
    /// Digits of the numbers.
    digits: usize,
}

fn numbered(name: &str) -> Option<Numbered<'_>> {
    let (before, after) = name.rsplit_once("-of-")?;
    let end = after
        .bytes()
        .position(|b| !b.is_ascii_digit())
        .unwrap_or(after.len());
    let (of, ending) = after.split_at(end);
    let (stem, number) = before.rsplit_once('-')?;
    let plain = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    let sound = plain(number) && number.len() == of.len() && (1..=9).contains(&of.len());
    let dotted = ending.is_empty() || ending.starts_with('.');
    let parsed = Numbered {
        stem,
        number: number.parse().ok()?,
        of: of.parse().ok()?,
        ending,
        digits: of.len(),
    };
    (sound && dotted && parsed.number < parsed.of).then_some(parsed)
}

/// Whether a name can be that of a numbered file (`-00003-of-00010`).
pub(crate) fn is_numbered(name: &str) -> bool {
    numbered(name).is_some()
}

/// Whether `name` fits `pattern`, in which `*` is any characters and `?` one.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go on if what follows the last star does not fit: one character further.
    let mut again: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                again = Some((p + 1, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
            _ => {
                let Some((after_star, from)) = again else {
                    return false;
                };
                again = Some((after_star, from + 1));
                (p, n) = (after_star, from + 1);
            }
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// The files in a folder by name, without hidden ones and this program's own indices.
pub(crate) fn files(dir: &Path) -> Result<Vec<String>> {
    let io = || Error::io("listing the folder", dir);
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).map_err(io())? {
        let entry = entry.map_err(io())?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let mine = name.contains(index::ENDING);
        if !name.starts_with('.') && !mine && entry.path().is_file() {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Folder and name of a path; the folder of a bare name is `.`.
fn folder_and_name(path: &Path) -> Option<(PathBuf, &str)> {
    let name = path.file_name()?.to_str()?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => PathBuf::from("."),
    };
    Some((folder, name))
}

/// All files of the row that `one` belongs to.
fn row(dir: &Path, one: Numbered<'_>) -> Result<Vec<PathBuf>> {
    let Numbered {
        stem,
        of,
        ending,
        digits,
        ..
    } = one;
    let name = |i: usize| format!("{stem}-{i:0digits$}-of-{of:0digits$}{ending}");
    // A name may promise a billion files: the first that is missing ends the search.
    let mut paths = Vec::new();
    for i in 0..of {
        let path = dir.join(name(i));
        if !path.is_file() {
            return Err(Error::data(
                path,
                format!(
                    "is missing: {stem} is in {of} files, and training on a part of them is not what the name says"
                ),
            ));
        }
        paths.push(path);
    }
    Ok(paths)
}

/// The files that `path` stands for, which is not a folder.
///
/// # Errors
/// A folder cannot be listed, no file fits a pattern, or a file of a row is missing.
pub(crate) fn resolve(path: &Path) -> Result<Vec<PathBuf>> {
    let Some((dir, name)) = folder_and_name(path) else {
        return Ok(vec![path.into()]);
    };
    if let Some(one) = numbered(name) {
        return row(&dir, one);
    }
    if path.exists() || !dir.is_dir() {
        return Ok(vec![path.into()]);
    }
    let there = files(&dir)?;
    if name.contains(['*', '?']) {
        let found: Vec<&String> = there.iter().filter(|file| fits(name, file)).collect();
        if found.is_empty() {
            return Err(Error::data(path, "fits no file"));
        }
        let rows: BTreeSet<Numbered<'_>> = (found.iter())
            .filter_map(|file| numbered(file))
            .map(|one| Numbered { number: 0, ..one })
            .collect();
        for one in rows {
            row(&dir, one)?;
        }
        return Ok(found.into_iter().map(|file| dir.join(file)).collect());
    }
    match there
        .iter()
        .filter_map(|f| numbered(f))
        .find(|f| f.stem == name)
    {
        Some(one) => row(&dir, one),
        None => Ok(vec![path.into()]),
    }
}

/// The files named `names` in folder `dir` as one data set: names that differ in their numbers only.
///
/// # Errors
/// They are several sets, or one of a numbered row is missing.
pub(crate) fn one_set(dir: &Path, names: &[String]) -> Result<Vec<PathBuf>> {
    let mut sets: BTreeMap<String, Vec<&String>> = BTreeMap::new();
    for name in names {
        let mut shape = String::new();
        for c in name.chars() {
            match c {
                '0'..='9' if shape.ends_with('#') => {}
                '0'..='9' => shape.push('#'),
                c => shape.push(c),
            }
        }
        sets.entry(shape).or_default().push(name);
    }
    if sets.len() > 1 {
        let first: Vec<&str> = sets.values().map(|set| &set[0][..]).collect();
        return Err(Error::data(
            dir,
            format!(
                "holds several data sets, which begin with {}; name one of them, or a pattern such as '*.tfrecord' for all",
                first.join(", ")
            ),
        ));
    }
    let rows: Vec<Numbered<'_>> = names.iter().filter_map(|name| numbered(name)).collect();
    match rows[..] {
        [first, ..] if rows.len() == names.len() => {
            if rows.iter().any(|row| row.of != first.of) {
                return Err(Error::data(
                    dir,
                    format!(
                        "holds rows of {} files and of others; name one of them",
                        first.of
                    ),
                ));
            }
            row(dir, first)
        }
        _ => Ok(names.iter().map(|name| dir.join(name)).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_what_a_shell_would_list() {
        for (pattern, name, expected) in [
            ("*.tfrecord", "a.tfrecord", true),
            ("*.tfrecord", "a.tfrecord.tmp", false),
            ("*", "", true),
            ("a*b*c", "a-b-b-c", true),
            ("a*b*c", "a-b-b-d", false),
            ("?", "é", true),
            ("part-??", "part-1", false),
            ("**x", "xx", true),
            ("[a]*", "[a]1", true),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} {name}");
        }
    }

    #[test]
    fn rows_are_whole_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let touch = |name: &str| fs::write(dir.path().join(name), "").unwrap();
        for name in [
            "f-0-of-3",
            "f-1-of-3",
            "f-2-of-3",
            "g.tar",
            "f-1-of-3.index",
        ] {
            touch(name);
        }
        let names = |given: &str| -> Vec<String> {
            let found = resolve(&dir.path().join(given)).unwrap();
            let name = |p: PathBuf| p.file_name().unwrap().to_str().unwrap().to_owned();
            found.into_iter().map(name).collect()
        };
        let row = ["f-0-of-3", "f-1-of-3", "f-2-of-3"];
        assert_eq!(names("f-1-of-3"), row);
        assert_eq!(names("f"), row);
        assert_eq!(names("f-?-of-3"), row);
        assert_eq!(names("g.tar"), ["g.tar"]);
        assert_eq!(names("nothing"), ["nothing"]);
        assert!(resolve(&dir.path().join("*.jpg")).is_err());
        fs::remove_file(dir.path().join("f-1-of-3")).unwrap();
        for given in ["f-0-of-3", "f-*-of-3"] {
            let error = resolve(&dir.path().join(given)).unwrap_err();
            let said = error.to_string();
            assert!(said.contains("f-1-of-3: is missing"), "{said}");
        }
    }

    #[test]
    fn a_folder_is_one_set_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let set = |names: &[&str]| {
            for name in names {
                fs::write(dir.path().join(name), "").unwrap();
            }
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            one_set(dir.path(), &names)
        };
        assert_eq!(set(&["a1.tar", "a02.tar"]).unwrap().len(), 2);
        assert_eq!(set(&["a-0-of-2", "a-1-of-2"]).unwrap().len(), 2);
        let error = set(&["train.tar", "val.tar"]).unwrap_err().to_string();
        assert!(error.contains("train.tar, val.tar"), "{error}");
        assert!(set(&["b-0-of-2", "b-0-of-3"]).is_err());
        assert!(
            set(&["c-0-of-4"])
                .unwrap_err()
                .to_string()
                .contains("c-1-of-4")
        );
    }
}
