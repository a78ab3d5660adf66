//! The reader. [`hdf5_reader`] checks lengths against the file before it allocates; what it leaves to its caller is
//! checked here: how much the arrays, names and attributes decode to, all together.

use crate::encoding::float::Float;
use crate::weights::formats::tensors::{NamedTensor, TensorFile};
use crate::{Error, Result};
use hdf5_reader::group::Group;
use hdf5_reader::storage::FileStorage;
use hdf5_reader::{
    ByteOrder, Dataset, Datatype, Hdf5File, OpenOptions, RawAttribute, StringPadding,
};
use hdf5_reader::{StringSize, VarLenKind};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

/// What a file's contents may decode to, in its own sizes: float16 doubles, compressed weights shrink by little.
const EXPANSION: u64 = 8;
/// The longest name, in bytes.
const LONGEST_NAME: usize = 4096;
/// Bytes of an object's header, attributes included; an attribute is at most 64 KiB of it.
const HEADER: usize = 1 << 20;
/// What an object costs besides its contents.
const OBJECT: usize = 64;

/// Reads every weight in a Keras weights file or whole model. Names are `layer/weight:0`: the last two parts of the name in
/// the file, or all of it, with the group's before it, where those of two weights are the same.
///
/// # Errors
/// Not HDF5, not Keras's, Keras 3's other format, damaged, or something decodes to many times the file's size.
pub fn open(path: &Path) -> Result<TensorFile> {
    let storage = FileStorage::open(path).map_err(|e| trouble(path, "", e))?;
    let length = hdf5_reader::Storage::len(&storage);
    let options = OpenOptions::default()
        .with_chunk_cache_bytes(0)
        .with_max_object_header_bytes(HEADER)
        .with_max_chunk_bytes(
            usize::try_from(length.saturating_mul(EXPANSION)).unwrap_or(usize::MAX),
        );
    let file = Hdf5File::from_storage_with_options(Arc::new(storage), options);
    let file = file.map_err(|e| trouble(path, "", e))?;
    let superblock = file.superblock();
    let whole = superblock
        .eof_address
        .saturating_add(superblock.base_address);
    if whole > length {
        return Err(Error::data(
            path,
            format!("is truncated: expected {whole} bytes, found {length}"),
        ));
    }
    let reader = Reader {
        path,
        file,
        left: length.saturating_mul(EXPANSION) + (64 << 10),
    };
    reader.read()
}

/// An error of the HDF5 reader, as a sentence.
fn trouble(path: &Path, object: &str, error: hdf5_reader::error::Error) -> Error {
    use hdf5_reader::error::Error as Hdf5;
    match error {
        Hdf5::Io(source) => Error::io("reading", path)(source),
        Hdf5::InvalidMagic => Error::malformed(
            path,
            0,
            "an HDF5 file (89 48 44 46 0d 0a 1a 0a)",
            "other bytes",
        ),
        other if object.is_empty() => Error::data(path, format!("is no whole HDF5 file: {other}")),
        other => Error::data(path, format!("{object} cannot be read: {other}")),
    }
}

struct Reader<'a> {
    path: &'a Path,
    file: Hdf5File,
    /// Bytes that may still be decoded.
    left: u64,
}

/// A weight: its layer's group, its name there.
struct Weight {
    layer: String,
    name: String,
}

impl Reader<'_> {
    fn read(mut self) -> Result<TensorFile> {
        let (above, layers) = self.layers()?;
        let mut file = TensorFile::default();
        let (mut seen, mut weights) = (HashSet::new(), Vec::new());
        for layer in layers {
            if !seen.insert(layer.clone()) {
                return Err(self.bad(format!("the layer {layer} stands in layer_names twice")));
            }
            let place = format!("{above}/{layer}");
            let group = self.file.group(&place);
            let group = group.map_err(|e| self.trouble(&format!("the group {place}"), e))?;
            let names = self.strings(&group, &place, "weight_names")?;
            let names = names.ok_or_else(|| {
                self.bad(format!("the group {place} has no attribute weight_names"))
            })?;
            for name in names {
                let tensor = self.weight(&place, &name, &mut file.ignored)?;
                if let Some(tensor) = tensor {
                    file.tensors.push(tensor);
                    let layer = layer.clone();
                    weights.push(Weight { layer, name });
                }
            }
        }
        let names = short_names(&weights);
        let mut seen = HashSet::new();
        for (tensor, name) in file.tensors.iter_mut().zip(names) {
            if !seen.insert(name.clone()) {
                return Err(self.bad(format!("the weight {name} is there twice")));
            }
            tensor.name = name;
        }
        self.optimizer(&mut file.ignored)?;
        Ok(file)
    }

    /// Where the layers' groups lie, and the layers' names.
    fn layers(&mut self) -> Result<(String, Vec<String>)> {
        let root = self.file.root_group();
        let root = root.map_err(|e| trouble(self.path, "", e))?;
        if let Some(names) = self.strings(&root, "/", "layer_names")? {
            return Ok((String::new(), names));
        }
        let members = root.member_names();
        let (groups, _) = members.map_err(|e| trouble(self.path, "", e))?;
        let has = |name: &str| groups.iter().any(|group| group == name);
        if has("model_weights") {
            let place = "/model_weights";
            let group = self.file.group(place);
            let group = group.map_err(|e| self.trouble("the group /model_weights", e))?;
            if let Some(names) = self.strings(&group, place, "layer_names")? {
                return Ok((place.into(), names));
            }
        }
        if ["layers", "_layer_checkpoint_dependencies", "vars"]
            .map(has)
            .contains(&true)
        {
            return Err(Error::Unsupported {
                path: self.path.into(),
                what: "Keras 3's .weights.h5 format, which has no names of layers (in Python, load it into its model and \
                       call model.save(\"model.h5\"), which writes them),"
                    .into(),
            });
        }
        Err(self.bad(
            "is HDF5, but not Keras's: neither / nor /model_weights has an attribute layer_names",
        ))
    }

    /// One weight, its name still to be set; nothing where it is not of floating-point numbers.
    fn weight(
        &mut self,
        place: &str,
        name: &str,
        ignored: &mut Vec<(String, String)>,
    ) -> Result<Option<NamedTensor>> {
        let whole = format!("{place}/{name}");
        let object = format!("the weight {whole}");
        self.spend(&object, name.len() + OBJECT)?;
        let dataset = self.file.dataset(&whole);
        let dataset = dataset.map_err(|e| self.trouble(&object, e))?;
        let Some((float, order)) = self.number(&object, &dataset)? else {
            ignored.push((name.into(), "it is not of floating-point numbers".into()));
            return Ok(None);
        };
        let sides = dataset
            .shape()
            .iter()
            .map(|&side| usize::try_from(side).ok());
        let shape: Option<Vec<usize>> = sides.collect();
        let elements = shape.as_ref().and_then(|shape| {
            let mut sides = shape.iter();
            sides.try_fold(1_usize, |n, &side| n.checked_mul(side))
        });
        let bytes = elements.and_then(|n| n.checked_mul(float.size().max(4)));
        let (Some(shape), Some(elements), Some(bytes)) = (shape, elements, bytes) else {
            return Err(self.bad(format!("{object} has sides {:?}", dataset.shape())));
        };
        self.spend(&object, bytes)?;
        let raw = dataset.read_raw_bytes();
        let mut raw = raw.map_err(|e| self.trouble(&object, e))?;
        if order == ByteOrder::BigEndian {
            raw.chunks_mut(float.size()).for_each(<[u8]>::reverse);
        }
        let values = float.decode(&raw);
        if values.len() != elements {
            let found = values.len();
            return Err(self.bad(format!("{object} of shape {shape:?} holds {found} numbers")));
        }
        Ok(Some(NamedTensor {
            name: String::new(),
            shape,
            values,
        }))
    }

    /// How the numbers of a dataset are written; nothing where they are not floating-point.
    fn number(&self, object: &str, dataset: &Dataset) -> Result<Option<(Float, ByteOrder)>> {
        let Datatype::FloatingPoint { byte_order, .. } = dataset.dtype() else {
            return Ok(None);
        };
        let raw = dataset.raw_datatype();
        let raw = raw.map_err(|e| self.trouble(object, e))?;
        match float(&raw) {
            Some(float) => Ok(Some((float, *byte_order))),
            None => Err(Error::Unsupported {
                path: self.path.into(),
                what: format!(
                    "the floating-point format of {object} (float16, bfloat16, float32 and float64 are read)"
                ),
            }),
        }
    }

    /// The optimizer's state, which nobody here has a use for.
    fn optimizer(&mut self, ignored: &mut Vec<(String, String)>) -> Result<()> {
        const PLACE: &str = "/optimizer_weights";
        let Ok(group) = self.file.group(PLACE) else {
            return Ok(());
        };
        let names = self.strings(&group, PLACE, "weight_names")?;
        let names = names.unwrap_or_else(|| vec![PLACE[1..].into()]);
        ignored.extend(
            names
                .into_iter()
                .map(|name| (name, "it is the optimizer's".into())),
        );
        Ok(())
    }

    /// An attribute that is a list of strings, whole or split; nothing where there is none.
    fn strings(&mut self, group: &Group, place: &str, name: &str) -> Result<Option<Vec<String>>> {
        let attributes = group.raw_attributes();
        let object = format!("the attributes of {place}");
        let attributes = attributes.map_err(|e| self.trouble(&object, e))?;
        let bytes = attributes
            .iter()
            .map(|a| a.message().raw_data.len() + OBJECT);
        self.spend(&object, bytes.sum())?;
        let by_name: HashMap<&str, &RawAttribute> =
            attributes.iter().map(|a| (a.name(), a)).collect();
        if let Some(attribute) = by_name.get(name) {
            return self.list(group, place, attribute).map(Some);
        }
        let mut parts = (0..).map_while(|i| by_name.get(format!("{name}{i}").as_str()));
        let Some(first) = parts.next() else {
            return Ok(None);
        };
        let mut all = self.list(group, place, first)?;
        for part in parts {
            all.extend(self.list(group, place, part)?);
        }
        Ok(Some(all))
    }

    fn list(
        &mut self,
        group: &Group,
        place: &str,
        attribute: &RawAttribute,
    ) -> Result<Vec<String>> {
        let object = format!("the attribute {} of {place}", attribute.name());
        let message = attribute.message();
        let count = message.dataspace.num_elements();
        let count = count.map_err(|e| self.trouble(&object, e.into()))?;
        if count == 0 {
            return Ok(Vec::new());
        }
        let reference = 8 + usize::from(group.offset_size());
        let (width, variable, padding) = match &message.datatype {
            Datatype::String {
                size: StringSize::Fixed(width),
                padding,
                ..
            } => (*width as usize, false, *padding),
            Datatype::String {
                size: StringSize::Variable,
                padding,
                ..
            }
            | Datatype::VarLen {
                kind: VarLenKind::String,
                padding,
                ..
            } => (reference, true, *padding),
            other => {
                return Err(self.bad(format!("{object}: expected strings, found {other:?}")));
            }
        };
        let data = &message.raw_data;
        if width == 0 || usize::try_from(count).ok() != Some(data.len() / width) {
            return Err(self.bad(format!(
                "{object}: expected {count} strings of {width} bytes, found {} bytes",
                data.len()
            )));
        }
        let mut all = Vec::new();
        for piece in data.chunks_exact(width) {
            let bytes = if variable {
                let length = u32::from_le_bytes([piece[0], piece[1], piece[2], piece[3]]);
                if length as usize > LONGEST_NAME {
                    return Err(self.bad(format!("{object} has a name of {length} bytes")));
                }
                let bytes = group.resolve_vlen_reference_bytes(piece, 1);
                bytes.map_err(|e| self.trouble(&object, e))?
            } else {
                piece.to_vec()
            };
            self.spend(&object, bytes.len() + OBJECT)?;
            all.push(self.text(&object, &bytes, padding)?);
        }
        Ok(all)
    }

    fn text(&self, object: &str, bytes: &[u8], padding: StringPadding) -> Result<String> {
        let end = match padding {
            StringPadding::SpacePad => bytes.iter().rposition(|&b| b != b' ').map_or(0, |i| i + 1),
            _ => bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()),
        };
        match std::str::from_utf8(&bytes[..end]) {
            Ok(text) if !text.is_empty() => Ok(text.into()),
            Ok(_) => Err(self.bad(format!("{object} has a name that is empty"))),
            Err(_) => Err(self.bad(format!("{object} has a name that is not UTF-8"))),
        }
    }

    /// Accounts for `bytes` in memory.
    fn spend(&mut self, object: &str, bytes: usize) -> Result<()> {
        match self.left.checked_sub(bytes as u64) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.bad(format!(
                "decodes to more than {EXPANSION} times its size (at {object}): it is damaged, or compressed beyond what \
                 weights can be"
            ))),
        }
    }

    fn bad(&self, problem: impl Into<String>) -> Error {
        Error::data(self.path, problem)
    }

    fn trouble(&self, object: &str, error: hdf5_reader::error::Error) -> Error {
        trouble(self.path, object, error)
    }
}

/// The shortest names that tell all weights apart.
fn short_names(weights: &[Weight]) -> Vec<String> {
    let short = |weight: &Weight| {
        let name = weight.name.trim_start_matches('/');
        let mut parts = name.rsplit('/');
        let last = parts.next().unwrap_or(name);
        let layer = parts.next().unwrap_or(&weight.layer);
        // Keras 3 leaves the output's number away.
        let number = if last.contains(':') { "" } else { ":0" };
        format!("{layer}/{last}{number}")
    };
    let names: Vec<String> = weights.iter().map(short).collect();
    let mut times: HashMap<&str, usize> = HashMap::new();
    for name in &names {
        *times.entry(name).or_default() += 1;
    }
    (names.iter().zip(weights))
        .map(|(name, weight)| match times[name.as_str()] {
            1 => name.clone(),
            _ => format!("{}/{}", weight.layer, weight.name),
        })
        .collect()
}

/// The format of an HDF5 datatype message: class and flags (4 bytes), size (4), then bit offset and precision (2 each),
/// exponent's place and size, mantissa's place and size (1 each), exponent's bias (4).
fn float(message: &[u8]) -> Option<Float> {
    let size = u32::from_le_bytes(message.get(4..8)?.try_into().ok()?);
    let properties: [u8; 12] = message.get(8..20)?.try_into().ok()?;
    let [
        0,
        0,
        bits,
        0,
        exponent,
        exponent_bits,
        0,
        mantissa_bits,
        bias @ ..,
    ] = properties
    else {
        return None;
    };
    let bias = u32::from_le_bytes(bias);
    match (size, bits, exponent, exponent_bits, mantissa_bits, bias) {
        (2, 16, 10, 5, 10, 15) => Some(Float::F16),
        (2, 16, 7, 8, 7, 127) => Some(Float::Bf16),
        (4, 32, 23, 8, 23, 127) => Some(Float::F32),
        (8, 64, 52, 11, 52, 1023) => Some(Float::F64),
        _ => None,
    }
}
