//! The progress of a run of `embed`, so that a killed run can be resumed: `embeddings.state.json`.

use super::folder::{
    FILES, LABELS, NAMES, NPY, ORIGIN, Origin, SAFETENSORS, SIMILARITY, SKIPPED, remove_stale,
};
use crate::base::files;
use crate::base::text::{count, grouped};
use crate::verification::Tta;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Bytes kept free for the header of a `.npy` file, and of a safetensors file.
pub(super) const NPY_HEADER: usize = 128;
pub(super) const SAFETENSORS_HEADER: usize = 256;

pub(super) const STATE: &str = "embeddings.state.json";

/// How embeddings are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `embeddings.npy` and `labels.npy`.
    #[default]
    Npy,
    /// `embeddings.safetensors` with both as tensors.
    Safetensors,
}

impl Format {
    pub(super) fn vectors(self) -> (&'static str, usize) {
        match self {
            Format::Npy => (NPY, NPY_HEADER),
            Format::Safetensors => (SAFETENSORS, SAFETENSORS_HEADER),
        }
    }
}

/// Everything that determines the bytes of the result.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Job {
    /// The weights' fingerprint.
    pub(super) weights: String,
    /// A description of the pictures.
    pub(super) source: String,
    pub(super) images: usize,
    pub(super) tta: Tta,
    pub(super) format: Format,
    pub(super) batch: usize,
    /// The length of a row.
    pub(super) dim: usize,
    /// Rows of the gallery that is added to.
    #[serde(default)]
    pub(super) added_to: usize,
}

const PICTURES: &str = "the pictures";

impl Job {
    /// Where the job's embeddings come from, as the gallery records it.
    pub(super) fn origin(&self) -> Origin {
        Origin {
            source: Some(self.source.clone()),
            ..Origin::new(self.weights.clone(), self.tta)
        }
    }

    /// The first difference from an earlier job, in words.
    pub(super) fn difference(&self, before: &Job) -> Option<String> {
        let added_to = |rows: usize| match rows {
            0 => "no gallery".to_owned(),
            rows => format!("a gallery of {rows} rows"),
        };
        let pairs = [
            ("the weights", before.weights.clone(), self.weights.clone()),
            (
                "what is added to",
                added_to(before.added_to),
                added_to(self.added_to),
            ),
            (PICTURES, before.source.clone(), self.source.clone()),
            ("--tta", before.tta.to_string(), self.tta.to_string()),
            (
                "--format",
                format!("{:?}", before.format).to_lowercase(),
                format!("{:?}", self.format).to_lowercase(),
            ),
            (
                "--batch-size",
                before.batch.to_string(),
                self.batch.to_string(),
            ),
        ];
        let mut differing = pairs.into_iter().filter(|(_, a, b)| a != b);
        differing.next().map(|(what, before, now)| match what {
            // Fingerprints would tell a reader nothing.
            PICTURES => "the pictures are others".to_owned(),
            _ => format!("{what}: {before} before, {now} now"),
        })
    }
}

/// The progress of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct State {
    pub(super) job: Job,
    /// Pictures embedded or left out.
    pub(super) done: usize,
    pub(super) rows: usize,
    pub(super) skipped: usize,
    /// Pictures that are most likely no aligned faces.
    #[serde(default)]
    pub(super) unaligned: usize,
    /// Valid bytes of each file.
    pub(super) lengths: BTreeMap<String, u64>,
    /// Whether the files are complete and only have to be renamed.
    pub(super) complete: bool,
}

impl State {
    /// A run that begins.
    pub(super) fn new(job: Job) -> Self {
        State {
            job,
            done: 0,
            rows: 0,
            skipped: 0,
            unaligned: 0,
            lengths: BTreeMap::new(),
            complete: false,
        }
    }

    /// Whether the run has done any work. One that failed before its first picture does not block a new run.
    pub(super) fn counts(&self) -> bool {
        self.done > 0 || self.complete
    }

    /// The state of the unfinished run in a folder, if there is one.
    pub(super) fn read(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(STATE);
        if !path.is_file() {
            return Ok(None);
        }
        let text = fs::read(&path).map_err(Error::io("reading", &path))?;
        serde_json::from_slice(&text)
            .map(Some)
            .map_err(|e| Error::data(&path, format!("cannot be read: {e}")))
    }

    pub(super) fn save(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).expect("plain data") + "\n";
        files::write(&folder.join(STATE), text.as_bytes())
    }

    /// The error for a folder whose run is not finished, so that nothing else can be written to it.
    pub(super) fn unfinished(&self, folder: &Path) -> Error {
        Error::data(
            folder,
            format!(
                "holds an unfinished run, {} of {}; --resume continues it, --overwrite begins again",
                grouped(self.done as u64),
                count(self.job.images, "picture")
            ),
        )
    }

    /// Removes an earlier run's files that do not belong to this one, and renames the complete files into place.
    pub(super) fn place(&self, folder: &Path) -> Result<()> {
        let mut stale = vec![SIMILARITY, ORIGIN];
        let (vectors, _) = self.job.format.vectors();
        let mut names = vec![vectors, FILES, NAMES];
        match self.job.format {
            Format::Npy => {
                names.push(LABELS);
                stale.push(SAFETENSORS);
            }
            Format::Safetensors => stale.extend([NPY, LABELS, "labels.npy.partial"]),
        }
        match self.skipped {
            0 => stale.extend([SKIPPED, "skipped.txt.partial"]),
            _ => names.push(SKIPPED),
        }
        remove_stale(folder, &stale)?;
        for name in names {
            let (from, to) = (folder.join(format!("{name}.partial")), folder.join(name));
            // An earlier attempt may have renamed it already.
            if from.exists() {
                fs::rename(&from, &to).map_err(Error::io("renaming into place", &to))?;
            }
        }
        self.job.origin().save(folder)?;
        remove_stale(folder, &[STATE])
    }
}
