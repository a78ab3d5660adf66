//! Files of `torch.save` before version 1.6: pickles and storages in a row (layout: `mod.rs`).

use super::{Parts, load, state};
use crate::encoding::pickle::{Value, Values};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;

/// The pickle of the magic number, in the protocol that PyTorch uses.
const MAGIC: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";
const PROTOCOL: i64 = 1001;

/// Whether a file that begins with `start` may be such a file.
pub(super) fn is_legacy(start: &[u8]) -> bool {
    start.starts_with(MAGIC)
}

/// Finds the parts of a file that [`is_legacy`].
pub(super) fn open<'a>(path: &Path, bytes: &'a [u8]) -> Result<Parts<'a>> {
    let mut at = MAGIC.len();
    let mut next = || -> Result<(usize, Values)> {
        let start = at;
        let values = load(path, bytes, start..bytes.len())?;
        at += values.pickle_len();
        Ok((start, values))
    };
    let malformed = |at: usize, expected: &str, found: &str| {
        Err(Error::malformed(path, at as u64, expected, found))
    };
    let (start, protocol) = next()?;
    if *protocol.top() != Value::Int(PROTOCOL) {
        return malformed(start, "PyTorch's protocol 1001", "something else");
    }
    let (start, machine) = next()?;
    let Value::Dict(about) = machine.top() else {
        return malformed(start, "a dict about the machine", "something else");
    };
    let is_big_endian = |&(key, value): &(u32, u32)| {
        let text = state::text(&machine, &bytes[start..], key);
        text == Some("little_endian") && *machine.get(value) == Value::Bool(false)
    };
    if about.iter().any(is_big_endian) {
        return Err(Error::Unsupported {
            path: path.into(),
            what: "a file that a big-endian machine wrote".into(),
        });
    }
    let (start, values) = next()?;
    let (keys_start, keys) = next()?;
    let Value::List(list) = keys.top() else {
        return malformed(keys_start, "a list of storage keys", "something else");
    };
    let pickle = &bytes[start..keys_start];
    let kinds = state::storages(path, pickle, &values)?;
    let mut storages = HashMap::new();
    for &key in list {
        let Some(key) = state::text(&keys, &bytes[keys_start..], key) else {
            return malformed(keys_start, "storage keys that are texts", "something else");
        };
        let Some(storage) = kinds.get(key) else {
            return malformed(keys_start, "keys of the tensors' storages", key);
        };
        let rest = &bytes[at..];
        let count = rest.first_chunk().map(|n| u64::from_le_bytes(*n));
        let size = storage
            .bytes()
            .filter(|&size| size <= rest.len().saturating_sub(8));
        let (Some(count), Some(size)) = (count, size) else {
            let expected = format!("the {} elements of storage {key}", storage.elements);
            let found = format!(
                "{} bytes to the end of the file: it is truncated or damaged",
                rest.len()
            );
            return malformed(at, &expected, &found);
        };
        if count != storage.elements {
            let expected = format!(
                "{}, the number of elements of storage {key}",
                storage.elements
            );
            return malformed(at, &expected, &count.to_string());
        }
        storages.insert(key.to_owned(), at + 8..at + 8 + size);
        at += 8 + size;
    }
    Ok(Parts {
        pickle,
        values,
        storages,
    })
}
