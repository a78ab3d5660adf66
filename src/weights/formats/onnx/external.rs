//! Numbers of an ONNX file's tensors that lie in other files ("external data").
//!
//! A tensor says `location`, a path from the model's folder with `/` between its parts, and may say `offset` and `length` in
//! bytes (absent: from the beginning, to the end). The elements are little-endian, as in `raw_data`.
//!
//! A path that leaves the folder is refused, also by a symbolic link. (The links of a download cache lead to one folder where
//! the model file itself is kept; that is allowed.) All tensors together are at most four times as large as the files, so memory
//! is bounded by what is on the disk.

use super::problem::Problem;
use super::proto::StringStringEntryProto;
use crate::base::files::read_whole;
use crate::base::text::{one_line, shown};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::path::{Component, Path, PathBuf};

/// How many times the bytes of all files may be read.
const MOST_TIMES: usize = 4;

/// The other files of a model.
#[derive(Debug)]
pub(super) struct External {
    model: PathBuf,
    files: HashMap<String, Vec<u8>>,
    /// Bytes of all files, and of all tensors.
    there: usize,
    read: usize,
}

impl External {
    /// Those of the model file at `model`.
    pub(super) fn new(model: &Path) -> Self {
        External {
            model: model.into(),
            files: HashMap::new(),
            there: 0,
            read: 0,
        }
    }

    /// The `len` bytes that `entries` describe.
    pub(super) fn bytes(
        &mut self,
        entries: &[StringStringEntryProto],
        len: usize,
    ) -> Result<&[u8], Problem> {
        let value = |key: &str| entries.iter().find(|entry| entry.key == key);
        let number = |key: &str| match value(key) {
            None => Ok(None),
            Some(entry) => match entry.value.trim().parse::<usize>() {
                Ok(number) => Ok(Some(number)),
                Err(_) => Err(elsewhere(format!(
                    "{key} is {:?}, no number of bytes",
                    entry.value
                ))),
            },
        };
        let Some(location) = value("location") else {
            return Err(elsewhere("it does not say in which".into()));
        };
        let location = &location.value;
        let (offset, length) = (number("offset")?.unwrap_or(0), number("length")?);
        let bytes = match self.files.entry(location.clone()) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(new) => {
                let bytes = open(&self.model, location)?;
                self.there = self.there.saturating_add(bytes.len());
                new.insert(bytes)
            }
        };
        let shown = one_line(location);
        let rest = bytes.len().saturating_sub(offset);
        let length = length.unwrap_or(rest);
        if length != len || length > rest {
            return Err(elsewhere(format!(
                "{shown} has {} bytes, of which {length} from byte {offset} on are named; the shape needs {len}",
                bytes.len()
            )));
        }
        self.read = self.read.saturating_add(len);
        if self.read > self.there.saturating_mul(MOST_TIMES) {
            return Err(elsewhere(format!(
                "the tensors name the bytes of {shown} so often that they are more than {MOST_TIMES} times as large as it"
            )));
        }
        Ok(&bytes[offset..][..len])
    }
}

/// Reads the file at `location`, seen from the folder of `model`.
fn open(model: &Path, location: &str) -> Result<Vec<u8>, Problem> {
    let place = one_line(location);
    let relative = Path::new(location);
    let plain = relative
        .components()
        .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    // What is a drive or a part of a path elsewhere is none here.
    if location.is_empty() || !plain || location.contains(['\\', ':', '\0']) {
        return Err(elsewhere(format!(
            "{place} is no path within the model's folder"
        )));
    }
    let folder = |path: &Path| {
        let parent = path.parent().unwrap_or(Path::new(""));
        match parent.as_os_str().is_empty() {
            true => PathBuf::from("."),
            false => parent.to_path_buf(),
        }
    };
    let beside = folder(model);
    let path = beside.join(relative);
    let real = path.canonicalize().map_err(|why| {
        elsewhere(format!(
            "{} cannot be opened: {why}; it belongs beside the model",
            shown(&path)
        ))
    })?;
    // Where the model's name leads, and where the file itself is.
    let homes = [
        Some(beside),
        model.canonicalize().ok().map(|real| folder(&real)),
    ];
    let mut homes = homes
        .into_iter()
        .flatten()
        .filter_map(|home| home.canonicalize().ok());
    if !homes.any(|home| real.starts_with(home)) {
        return Err(elsewhere(format!(
            "{place} is a link that leaves the model's folder"
        )));
    }
    read_whole(&real).map_err(|error| elsewhere(error.to_string()))
}

fn elsewhere(why: String) -> Problem {
    Problem(format!(
        "has its numbers in another file (external data): {why}"
    ))
}
