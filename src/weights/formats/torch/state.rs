//! From the pickle's values to tensors.

use super::Parts;
use crate::encoding::float::Float;
use crate::encoding::pickle::{Function, Id, Value, Values};
use crate::weights::formats::tensors::{NamedTensor, TensorFile};
use crate::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The names of PyTorch's that a pickle may call or hold.
pub(super) const NAMES: [(&str, &str); 21] = [
    ("torch._utils", "_rebuild_tensor"),
    ("torch._utils", "_rebuild_tensor_v2"),
    ("torch._utils", "_rebuild_parameter"),
    ("torch._utils", "_rebuild_parameter_with_state"),
    ("torch", "Size"),
    ("torch", "device"),
    ("torch", "HalfStorage"),
    ("torch", "BFloat16Storage"),
    ("torch", "FloatStorage"),
    ("torch", "DoubleStorage"),
    ("torch", "BoolStorage"),
    ("torch", "ByteStorage"),
    ("torch", "CharStorage"),
    ("torch", "ShortStorage"),
    ("torch", "IntStorage"),
    ("torch", "LongStorage"),
    ("torch", "QInt8Storage"),
    ("torch", "QUInt8Storage"),
    ("torch", "QInt32Storage"),
    ("torch", "ComplexFloatStorage"),
    ("torch", "ComplexDoubleStorage"),
];

/// The longest name of a tensor, in bytes, and the deepest dict.
const LONGEST: usize = 512;
const DEEPEST: usize = 32;

/// What a storage holds.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Elements {
    Float(Float),
    /// No floating-point numbers: a word for them, and the bytes of one.
    Other(&'static str, usize),
    /// Of a type that is not known here: its name's number in the pickle.
    Unknown(Id),
}

/// The elements of the storages of this type.
fn elements(storage_type: &str) -> Option<Elements> {
    Some(match storage_type {
        "HalfStorage" => Elements::Float(Float::F16),
        "BFloat16Storage" => Elements::Float(Float::Bf16),
        "FloatStorage" => Elements::Float(Float::F32),
        "DoubleStorage" => Elements::Float(Float::F64),
        "BoolStorage" => Elements::Other("truth values", 1),
        "ByteStorage" | "CharStorage" => Elements::Other("whole numbers", 1),
        "ShortStorage" => Elements::Other("whole numbers", 2),
        "IntStorage" => Elements::Other("whole numbers", 4),
        "LongStorage" => Elements::Other("whole numbers", 8),
        "QInt8Storage" | "QUInt8Storage" => Elements::Other("quantised numbers", 1),
        "QInt32Storage" => Elements::Other("quantised numbers", 4),
        "ComplexFloatStorage" => Elements::Other("complex numbers", 8),
        "ComplexDoubleStorage" => Elements::Other("complex numbers", 16),
        _ => return None,
    })
}

/// A storage as the pickle tells of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Storage<'a> {
    key: &'a str,
    kind: Elements,
    /// How many.
    pub(super) elements: u64,
}

impl Storage<'_> {
    /// Its size, if memory could hold it.
    pub(super) fn bytes(&self) -> Option<usize> {
        let size = match self.kind {
            Elements::Float(float) => float.size(),
            Elements::Other(_, size) => size,
            Elements::Unknown(_) => return None,
        };
        usize::try_from(self.elements).ok()?.checked_mul(size)
    }
}

/// A text of the pickle `bytes`, or Python 2's, which are bytes.
pub(super) fn text<'a>(values: &'a Values, bytes: &'a [u8], id: Id) -> Option<&'a str> {
    std::str::from_utf8(values.bytes(bytes, id)?).ok()
}

fn tuple(values: &Values, id: Id) -> Option<&[Id]> {
    match values.get(id) {
        Value::Tuple(items) => Some(items),
        _ => None,
    }
}

/// A number that is not negative.
fn number(values: &Values, id: Id) -> Option<u64> {
    match values.get(id) {
        Value::Int(number) => u64::try_from(*number).ok(),
        _ => None,
    }
}

/// The storage with this key in the pickle, `("storage", type, KEY, device, elements, view)`.
fn storage<'a>(values: &'a Values, pickle: &'a [u8], key: Id) -> Option<Storage<'a>> {
    let (&[kind, storage_type, key, _, count], view) = tuple(values, key)?.split_first_chunk()?;
    let elements = match values.get(storage_type) {
        Value::Function(Function::Named(name)) => elements(NAMES[*name].1)?,
        Value::Function(Function::Unknown { .. }) => Elements::Unknown(storage_type),
        _ => return None,
    };
    let no_view = view.iter().all(|&view| *values.get(view) == Value::None);
    (text(values, pickle, kind) == Some("storage") && no_view).then_some(Storage {
        key: text(values, pickle, key)?,
        kind: elements,
        elements: number(values, count)?,
    })
}

/// All storages that the pickle tells of, by their keys.
pub(super) fn storages<'a>(
    path: &Path,
    pickle: &'a [u8],
    values: &'a Values,
) -> Result<HashMap<&'a str, Storage<'a>>> {
    let mut storages = HashMap::new();
    for value in values.iter() {
        let Value::Outside(key) = value else {
            continue;
        };
        // The source of a module's class, in a whole model.
        let kind = tuple(values, *key).and_then(|key| text(values, pickle, *key.first()?));
        if kind == Some("module") {
            continue;
        }
        let storage = storage(values, pickle, *key).ok_or_else(|| bad_storage(path))?;
        if let Some(other) = storages.insert(storage.key, storage)
            && other != storage
        {
            let problem = format!("storage {} has two types or sizes", storage.key);
            return Err(Error::data(path, problem));
        }
    }
    Ok(storages)
}

fn bad_storage(path: &Path) -> Error {
    let problem =
        "has a storage that is no tuple (\"storage\", type, key, device, number of elements)";
    Error::data(path, problem)
}

/// All tensors of a file.
pub(super) fn tensors(path: &Path, bytes: &[u8], parts: &Parts<'_>) -> Result<TensorFile> {
    let mut walk = Walk {
        path,
        bytes,
        parts,
        file: TensorFile::default(),
        names: HashSet::new(),
        seen: HashSet::new(),
        name_bytes: 0,
        value_bytes: 0,
    };
    if !matches!(parts.values.top(), Value::Dict(_)) {
        let what = parts.what(parts.values.top_id());
        return Err(Error::data(
            path,
            format!(
                "holds {what}, where a state dict is expected: names and tensors, as \
                 torch.save(model.state_dict(), \"file.pth\") writes them"
            ),
        ));
    }
    walk.dict("", parts.values.top_id(), 0)?;
    Ok(walk.file)
}

struct Walk<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    parts: &'a Parts<'a>,
    file: TensorFile,
    names: HashSet<String>,
    /// Dicts.
    seen: HashSet<Id>,
    /// Of all names together, and of all tensors' values.
    name_bytes: usize,
    value_bytes: usize,
}

impl Walk<'_> {
    fn ignore(&mut self, name: String, why: impl Into<String>) {
        self.file.ignored.push((name, why.into()));
    }

    fn dict(&mut self, prefix: &str, dict: Id, depth: usize) -> Result<()> {
        let values = &self.parts.values;
        let Value::Dict(pairs) = values.get(dict) else {
            return Ok(());
        };
        if !self.seen.insert(dict) {
            self.ignore(prefix.into(), "a dict that has been met before");
            return Ok(());
        }
        if depth == DEEPEST {
            let problem = format!("has dicts in dicts, more than {DEEPEST} of them");
            return Err(Error::data(self.path, problem));
        }
        let parallel =
            |key: &Option<String>| key.as_ref().is_some_and(|key| key.starts_with("module."));
        let texts: Vec<Option<String>> = pairs.iter().map(|&(key, _)| self.key(key)).collect();
        let parallel = !texts.is_empty() && texts.iter().all(parallel);
        if parallel {
            let why = format!(
                "the prefix that DataParallel gives, taken off {} names",
                texts.len()
            );
            self.ignore(format!("{prefix}module."), why);
        }
        for (&(key, value), text) in pairs.iter().zip(texts) {
            let Some(text) = text else {
                let key = self.parts.what(key);
                self.ignore(prefix.into(), format!("a value whose key is {key}"));
                continue;
            };
            let key = if parallel {
                &text["module.".len()..]
            } else {
                &text
            };
            let name = self.name(prefix, key)?;
            if let Value::Dict(_) = values.get(value) {
                self.dict(&format!("{name}."), value, depth + 1)?;
            } else {
                self.value(name, value)?;
            }
        }
        Ok(())
    }

    fn key(&self, key: Id) -> Option<String> {
        let values = &self.parts.values;
        match values.get(key) {
            Value::Int(number) => Some(number.to_string()),
            _ => text(values, self.parts.pickle, key).map(str::to_owned),
        }
    }

    /// Prefix and key; names are bounded as they could repeat a text of the file over and over again.
    fn name(&mut self, prefix: &str, key: &str) -> Result<String> {
        let name = format!("{prefix}{key}");
        self.name_bytes += name.len();
        if name.len() > LONGEST || self.name_bytes > 2 * self.bytes.len() + (1 << 16) {
            let problem = format!(
                "has names of more than {LONGEST} bytes, or names that together are more than twice as long as the file"
            );
            return Err(Error::data(self.path, problem));
        }
        Ok(name)
    }

    fn value(&mut self, name: String, id: Id) -> Result<()> {
        let values = &self.parts.values;
        let mut id = id;
        loop {
            let &Value::Call(function, arguments) = values.get(id) else {
                let what = self.parts.what(id);
                self.ignore(name, format!("{what}, no tensor"));
                return Ok(());
            };
            match (
                NAMES[function].1,
                tuple(values, arguments).unwrap_or_default(),
            ) {
                ("_rebuild_parameter" | "_rebuild_parameter_with_state", &[data, ..])
                    if data != id =>
                {
                    id = data;
                }
                (
                    "_rebuild_tensor" | "_rebuild_tensor_v2",
                    &[storage, offset, sizes, strides, ..],
                ) => return self.tensor(name, storage, offset, [sizes, strides]),
                (called, _) => {
                    self.ignore(name, format!("a {called}, no tensor"));
                    return Ok(());
                }
            }
        }
    }

    fn tensor(&mut self, name: String, storage: Id, offset: Id, layout: [Id; 2]) -> Result<()> {
        let values = &self.parts.values;
        let bad = |problem: &str| Error::data(self.path, format!("tensor {name}: {problem}"));
        let Value::Outside(key) = values.get(storage) else {
            return Err(bad("has no storage"));
        };
        let storage = self::storage(values, self.parts.pickle, *key);
        let storage = storage.ok_or_else(|| bad_storage(self.path))?;
        let float = match storage.kind {
            Elements::Float(float) => float,
            Elements::Other(what, _) => {
                self.ignore(name, format!("a tensor of {what}"));
                return Ok(());
            }
            Elements::Unknown(kind) => {
                let kind = self.parts.what(kind);
                self.ignore(name, format!("a tensor of {kind}"));
                return Ok(());
            }
        };
        let numbers = |id| -> Option<Vec<usize>> {
            let number = |&id| usize::try_from(number(values, id)?).ok();
            tuple(values, id)?.iter().map(number).collect()
        };
        let [Some(shape), Some(strides)] = layout.map(numbers) else {
            return Err(bad("sizes or strides are no tuples of numbers from 0"));
        };
        let offset = number(values, offset).and_then(|offset| usize::try_from(offset).ok());
        let last = offset.and_then(|offset| last(offset, &shape, &strides));
        let (Some(offset), Some((count, end))) = (offset, last) else {
            return Err(bad("offset, sizes and strides do not fit together"));
        };
        let range = self.parts.storages.get(storage.key);
        let stored = range.map(|range| &self.bytes[range.clone()]);
        let stored = stored.ok_or_else(|| bad(&format!("storage {} is missing", storage.key)))?;
        let elements = stored.len() / float.size();
        if end > elements || storage.bytes() != Some(stored.len()) {
            return Err(bad(&format!(
                "needs {end} of {} elements of storage {}, which has {elements}",
                storage.elements, storage.key
            )));
        }
        // A stride of 0 makes any count fit its storage, so the sum is compared before it is made.
        let most = 4 * self.bytes.len();
        if count > (most - self.value_bytes) / 4 {
            return Err(bad(
                "repeats elements so often that all tensors are more than four times as large as the file",
            ));
        }
        self.value_bytes += 4 * count;
        if !self.names.insert(name.clone()) {
            self.ignore(name, "a second tensor of that name");
            return Ok(());
        }
        let stored = &stored[offset * float.size()..end.max(offset) * float.size()];
        let stored = float.decode(stored);
        let values = if strides == row_major(&shape) {
            stored
        } else {
            gather(&stored, count, &shape, &strides)
        };
        self.file.tensors.push(NamedTensor {
            name,
            shape,
            values,
        });
        Ok(())
    }
}

/// How many elements a tensor has, and the place behind the last of them in its storage.
fn last(offset: usize, shape: &[usize], strides: &[usize]) -> Option<(usize, usize)> {
    if shape.len() != strides.len() {
        return None;
    }
    let count = shape
        .iter()
        .try_fold(1_usize, |n, &size| n.checked_mul(size))?;
    count.checked_mul(4)?;
    if count == 0 {
        return Some((0, offset));
    }
    let mut axes = shape.iter().zip(strides);
    let last = axes.try_fold(offset, |at, (size, stride)| {
        at.checked_add(stride.checked_mul(size - 1)?)
    })?;
    Some((count, last.checked_add(1)?))
}

/// The strides of a tensor whose elements lie in order. (Of an axis of one element PyTorch writes the same.) They are past
/// all numbers only where there is no element.
fn row_major(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for axis in (1..shape.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(shape[axis]);
    }
    strides
}

/// The elements in the order of the axes, the last one fastest.
fn gather(stored: &[f32], count: usize, shape: &[usize], strides: &[usize]) -> Vec<f32> {
    let mut index = vec![0; shape.len()];
    let mut at = 0;
    let mut values = Vec::with_capacity(count);
    for _ in 0..count {
        values.push(stored[at]);
        for axis in (0..shape.len()).rev() {
            index[axis] += 1;
            at += strides[axis];
            if index[axis] < shape[axis] {
                break;
            }
            at -= index[axis] * strides[axis];
            index[axis] = 0;
        }
    }
    values
}
