//! The files in a folder of embeddings: their names, and the file that records their origin.

use crate::base::files;
use crate::verification::Tta;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs;
use std::io;
use std::path::Path;

pub(super) const NPY: &str = "embeddings.npy";
pub(super) const SAFETENSORS: &str = "embeddings.safetensors";
pub(super) const LABELS: &str = "labels.npy";
pub(super) const NAMES: &str = "labels.tsv";
pub(super) const FILES: &str = "files.txt";
pub(super) const SKIPPED: &str = "skipped.txt";
pub(super) const ORIGIN: &str = "embeddings.json";

/// The picture of a gallery's similarities.
pub const SIMILARITY: &str = "similarity.png";

/// The files of a gallery, and the picture of its similarities.
pub const GALLERY: [&str; 8] = [
    NPY,
    SAFETENSORS,
    LABELS,
    NAMES,
    FILES,
    SKIPPED,
    ORIGIN,
    SIMILARITY,
];

/// Which network made the embeddings, and how. Embeddings of different origins cannot be compared.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The weights' fingerprint.
    pub weights: String,
    /// How mirror images were used.
    pub tta: Tta,
    /// Which pictures they are of; unknown in older galleries.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) source: Option<String>,
}

impl Origin {
    /// Embeddings by the network with these weights.
    pub fn new(weights: String, tta: Tta) -> Self {
        Origin {
            weights,
            tta,
            source: None,
        }
    }

    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string(self).expect("plain data") + "\n";
        files::write(&folder.join(ORIGIN), text.as_bytes())
    }
}

/// Removes the files of these names that exist.
pub(super) fn remove_stale(folder: &Path, names: &[&str]) -> Result<()> {
    for name in names {
        let path = folder.join(name);
        match fs::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                return Err(Error::io("removing", path)(e));
            }
            _ => {}
        }
    }
    Ok(())
}
