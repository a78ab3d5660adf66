//! PyTorch's files, `.pt` and `.pth`, as `torch.save` writes them: state dicts, and checkpoints that hold some.
//!
//! Since version 1.6 a file is a ZIP archive (`zip.rs`), members stored as they are, in a folder called `archive` or as the
//! file was:
//!
//! | member | content |
//! |---|---|
//! | `data.pkl` | the pickle |
//! | `data/KEY` | a storage: elements without a header |
//! | `byteorder` | `little` or `big`; without it `little` |
//!
//! Before (and with `_use_new_zipfile_serialization=False`) it is one row (`legacy.rs`):
//!
//! | part | content |
//! |---|---|
//! | pickle | the number 0x1950a86a20f9469cfc6c |
//! | pickle | the protocol, 1001 |
//! | pickle | a dict about the machine: `little_endian`, ... |
//! | pickle | as above |
//! | pickle | the list of storage keys |
//! | for each key | u64 number of elements, the elements |
//!
//! In the pickle (`encoding/pickle/`), which nothing executes, a tensor is a call (`state.rs`):
//! `torch._utils._rebuild_tensor_v2(storage, offset, sizes, strides, ...)`, with the storage as a key outside,
//! `("storage", torch.FloatStorage, KEY, device, elements, ...)`.
//!
//! Dicts in dicts (`state_dict`, `model`, `optimizer`, ...) are flattened: their names get a dot between them. Where all
//! names of a dict begin with `module.`, as `DataParallel` makes them, that is taken off and listed in
//! [`TensorFile::ignored`]. So are all other objects, whatever they are: NumPy's, settings, classes. CRCs of the archive are not looked at: PyTorch can be told to write none.
//!
//! Tensors may share storages and repeat elements; all of them together are at most four times as large as the file,
//! so memory is bounded by the file's size.

mod legacy;
mod state;

use crate::base::files::read_whole;
use crate::encoding::pickle::{self, Id, Values};
use crate::encoding::zip;
use crate::weights::formats::others;
use crate::weights::formats::tensors::TensorFile;
use crate::{Error, Result};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// Whether a file that begins with `start` may be one of PyTorch's.
pub fn is_torch(start: &[u8]) -> bool {
    zip::is_zip(start) || legacy::is_legacy(start)
}

/// Reads the file at `path`. Tensors of whole numbers, and anything that is not a tensor, are left out.
///
/// # Errors
/// It cannot be read, is damaged, or is no dict, such as a whole model.
pub fn open(path: &Path) -> Result<TensorFile> {
    let bytes = read_whole(path)?;
    let parts = if legacy::is_legacy(&bytes) {
        legacy::open(path, &bytes)?
    } else {
        archive(path, &bytes)?
    };
    state::tensors(path, &bytes, &parts)
}

/// Where the parts of a file are.
struct Parts<'a> {
    /// The pickle, whose values have places in it.
    pickle: &'a [u8],
    values: Values,
    storages: HashMap<String, Range<usize>>,
}

impl Parts<'_> {
    /// What kind of value `id` is, as a noun phrase.
    fn what(&self, id: Id) -> String {
        self.values.what(self.pickle, id)
    }
}

/// Runs the pickle at `range` of a file.
fn load(path: &Path, bytes: &[u8], range: Range<usize>) -> Result<Values> {
    pickle::load(&bytes[range.clone()], &state::NAMES)
        .map_err(|refusal| refusal.error(path, range.start))
}

fn archive<'a>(path: &Path, bytes: &'a [u8]) -> Result<Parts<'a>> {
    if let Some(problem) = zip::names(bytes).and_then(|names| others::archive(&names)) {
        return Err(Error::data(path, problem));
    }
    let members = zip::members(bytes).map_err(|refusal| refusal.error(path, 0))?;
    let pickles = members.iter().filter(|(name, _)| {
        let in_a_folder = name.split('/').count() <= 2;
        in_a_folder && name.rsplit('/').next() == Some("data.pkl")
    });
    let [(name, range)] = &pickles.collect::<Vec<_>>()[..] else {
        return Err(Error::data(
            path,
            "is a ZIP archive without exactly one data.pkl, so not written by torch.save",
        ));
    };
    let folder = name.trim_end_matches("data.pkl");
    let mut storages = HashMap::new();
    for (name, range) in &members {
        let Some(name) = name.strip_prefix(folder) else {
            continue;
        };
        if name == "byteorder" && bytes[range.clone()] != *b"little" {
            return Err(Error::Unsupported {
                path: path.into(),
                what: "a file that a big-endian machine wrote".into(),
            });
        }
        if let Some(key) = name.strip_prefix("data/") {
            storages.insert(key.to_owned(), range.clone());
        }
    }
    Ok(Parts {
        pickle: &bytes[range.clone()],
        values: load(path, bytes, range.clone())?,
        storages,
    })
}
