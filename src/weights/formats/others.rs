//! What people give for a model file that is none of those read here: recognised, so that the error says what it is and
//! what helps.

use super::onnx::may_be_onnx;
use crate::base::text::one_line;
use crate::encoding::pickle;
use crate::{Error, Result};
use std::path::Path;

/// How each sentence about a file of another kind ends.
const EXPECTED: &str = "expected safetensors, Keras .h5, PyTorch .pt, .pth or .ckpt, or ONNX";

/// MXNet's number for a list of arrays, and the reserved field.
const MXNET: [u8; 16] = [0x12, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// What begins so, and is packed.
const PACKED: [(&[u8], &str); 6] = [
    (&[0x1f, 0x8b], "gzip"),
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"(\xb5/\xfd", "zstd"),
    (b"7z\xbc\xaf'\x1c", "7-Zip"),
    (b"Rar!", "RAR"),
];

/// What begins so, and is no model.
const OTHERS: [(&[u8], &str); 6] = [
    (b"\x93NUMPY", "a NumPy array"),
    (&[0xff, 0xd8, 0xff], "a JPEG picture"),
    (b"\x89PNG\r\n", "a PNG picture"),
    (
        &MXNET,
        "MXNet's parameters (.params), which are read only as ONNX: mxnet.onnx.export_model converts them with their \
         -symbol.json",
    ),
    (b"%PDF", "a PDF document"),
    (b"7767517", "an ncnn graph"),
];

/// The error about the file at `path`, which begins with `start` and is none of the kinds read here.
pub(crate) fn error(path: &Path, start: &[u8]) -> Error {
    let problem = match known(path, start) {
        Some(what) => format!("is {what}; {EXPECTED}"),
        None if pickle::is_pickle(start) => {
            format!(
                "is a Python pickle that torch.save did not write, which is not read; {EXPECTED}"
            )
        }
        None => format!("is no model file that this program knows; {EXPECTED}"),
    };
    Error::data(path, problem)
}

/// Fails if the file is known to be of another kind, though its first bytes may look like one that is read.
///
/// # Errors
/// It is.
pub(crate) fn refuse(path: &Path, start: &[u8]) -> Result<()> {
    match known(path, start) {
        Some(_) => Err(error(path, start)),
        None => Ok(()),
    }
}

/// What a file is, as a noun phrase with what helps.
fn known(path: &Path, start: &[u8]) -> Option<String> {
    let said = |what: &str| Some(what.to_owned());
    if start.is_empty() {
        return said("empty: copy or download it again");
    }
    if let Some((_, what)) = OTHERS.iter().find(|(magic, _)| start.starts_with(magic)) {
        return said(what);
    }
    if let Some((_, how)) = PACKED.iter().find(|(magic, _)| start.starts_with(magic)) {
        return Some(format!("packed ({how}): unpack it first"));
    }
    if start.get(257..262) == Some(b"ustar") {
        return said("a tar archive: unpack it first");
    }
    if start.get(4..8) == Some(b"TFL3") {
        return said("a TensorFlow Lite model, which is not read");
    }
    tensorflow(path, start).or_else(|| text(start))
}

/// TensorFlow's files, which have their names rather than first bytes.
fn tensorflow(path: &Path, start: &[u8]) -> Option<String> {
    let name = path.file_name()?.to_string_lossy();
    let (stem, end) = name.rsplit_once('.')?;
    let shard = |end: &str| {
        let part = end.strip_prefix("data-")?;
        let (part, of) = part.split_once("-of-")?;
        Some([part, of].iter().all(|n| n.parse::<u32>().is_ok()))
    };
    match end {
        "pb" if stem == "saved_model" => Some(saved_model("the graph of ")),
        // The first ONNX files had this end, too.
        "pb" if !may_be_onnx(start) => Some(
            "a TensorFlow graph, which is not read: its Keras model's model.save(\"model.h5\") is"
                .into(),
        ),
        "index" => Some(checkpoint()),
        _ if shard(end) == Some(true) => Some(checkpoint()),
        _ => None,
    }
}

fn saved_model(part: &str) -> String {
    format!(
        "{part}a TensorFlow SavedModel, which is not read: save its Keras model with model.save(\"model.h5\")"
    )
}

fn checkpoint() -> String {
    "part of a TensorFlow checkpoint, which is not read: load it into its Keras model and use \
     model.save_weights(\"weights.h5\")"
        .into()
}

/// Texts.
fn text(start: &[u8]) -> Option<String> {
    let start = start.strip_prefix(b"\xef\xbb\xbf").unwrap_or(start);
    let text = String::from_utf8_lossy(start);
    let text = text.trim_start().to_ascii_lowercase();
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| one_line(value.trim()))
    };
    if text.starts_with("version https://git-lfs") {
        return Some(format!(
            "a Git LFS pointer, not the file of {} bytes that it stands for: `git lfs pull` fetches that",
            field("size").unwrap_or_else(|| "?".into())
        ));
    }
    if ["<!doctype html", "<html", "<head", "<script"]
        .iter()
        .any(|tag| text.starts_with(tag))
    {
        return Some(
            "a web page, which a server sent in place of the file (a login, a confirmation, an error): download it again"
                .into(),
        );
    }
    if text.starts_with("<?xml") || text.starts_with("<error") {
        return Some(
            "XML text, most likely a server's error in place of the file: download it again".into(),
        );
    }
    let json = text.starts_with('{') || text.starts_with("[{");
    (json && !text.contains('\0')).then(|| "JSON text, such as a configuration or an index".into())
}

/// What a ZIP archive with these members is, if it is none of PyTorch's.
pub(crate) fn archive(members: &[String]) -> Option<String> {
    let is = |wanted: &str| members.iter().any(|name| name == wanted);
    let ends = |end: &str| members.iter().any(|name| name.ends_with(end));
    if is("model.weights.h5") && is("config.json") {
        return Some(
            "is a Keras 3 archive (.keras), which is not read: model.save(\"model.h5\") writes one that is".into(),
        );
    }
    let pickled = ends("data.pkl");
    if pickled && ends("constants.pkl") {
        return Some(
            "is a TorchScript model, which is not read: torch.save(torch.jit.load(file).state_dict(), \"file.pth\") \
             writes its weights"
                .into(),
        );
    }
    if pickled {
        return None;
    }
    if !members.is_empty() && members.iter().all(|name| name.ends_with(".npy")) {
        return Some("is an archive of NumPy arrays (.npz), which is not read".into());
    }
    const LISTED: usize = 4;
    let names: Vec<String> = members
        .iter()
        .take(LISTED)
        .map(|name| one_line(name))
        .collect();
    let more = match members.len() > LISTED {
        true => format!(" and {} more", members.len() - LISTED),
        false => String::new(),
    };
    Some(format!(
        "is a ZIP archive without a data.pkl, so not written by torch.save; it holds {}{more}: unpack it first",
        names.join(", ")
    ))
}

/// What is in a folder that is no run's, if it is known.
pub(crate) fn folder(names: &[String]) -> Option<String> {
    let is = |wanted: &str| names.iter().any(|name| name == wanted);
    if is("saved_model.pb") {
        return Some(format!("is {}", saved_model("")));
    }
    let index = names.iter().any(|name| name.ends_with(".index"));
    index.then(|| format!("holds {}", checkpoint()))
}

/// The error about a path where there is no file, if it is the name of a TensorFlow checkpoint, which is several files.
pub(crate) fn missing(path: &Path) -> Option<Error> {
    let mut index = path.as_os_str().to_owned();
    index.push(".index");
    (!path.exists() && Path::new(&index).is_file()).then(|| {
        Error::data(
            path,
            format!("is {}", checkpoint().replacen("part of ", "", 1)),
        )
    })
}
