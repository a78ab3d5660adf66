//! How a run begins in a folder: what stands there, and what is done about it.

use super::folder::Origin;
use super::partial::Partial;
use super::state::{Format, Job, State};
use super::stored::{Gallery, Stored, is_stored, left_out};
use crate::base::files::lock_folder;
use crate::base::fnv::Fnv;
use crate::base::text::one_line;
use crate::data::Dataset;
use crate::data::fingerprint::Fingerprint;
use crate::data::subset::Subset;
use crate::verification::Tta;
use crate::{Error, Result};
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a process that holds the lock is doing, for the message to another one.
const LOCKED: &str = "embedding";

/// How a data set is embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// The fingerprint of the network's weights.
    pub weights: String,
    /// How mirror images are used.
    pub tta: Tta,
    /// How embeddings are written; a gallery that is added to keeps its own way.
    pub format: Format,
    /// Leave out pictures that cannot be read instead of stopping.
    pub skip_bad: bool,
    /// Continue an unfinished run, if there is one.
    pub resume: bool,
    /// Add to a finished gallery, if there is one, what is not in it.
    pub append: bool,
    /// Replace a finished gallery or an unfinished run, if there is one.
    pub overwrite: bool,
    /// How often finished work is synced to disk.
    pub sync_every: Duration,
}

/// The totals of a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Rows of the gallery.
    pub rows: usize,
    /// Pictures left out of it.
    pub skipped: usize,
    /// Pictures of the whole run, however often it was stopped, that are most likely no aligned faces.
    pub unaligned: usize,
    /// Whether there was nothing left to do.
    pub was_finished: bool,
}

/// Whether the folder `out` may be written to. Asked before the weights are read, and again by [`begin`].
///
/// # Errors
/// It holds a finished gallery, and `options` ask neither to add to it nor to replace it nor to finish it; or an unfinished
/// run that is to be neither continued nor replaced.
pub fn may_begin(out: &Path, options: &StreamOptions) -> Result<()> {
    let StreamOptions {
        resume,
        append,
        overwrite,
        ..
    } = *options;
    match State::read(out)?.filter(State::counts) {
        Some(state) if !resume && !overwrite => Err(state.unfinished(out)),
        None if is_stored(out) && !resume && !overwrite && !append => Err(Error::data(
            out,
            "holds a finished gallery; --append adds to it, --overwrite replaces it, or choose another --out",
        )),
        _ => Ok(()),
    }
}

/// What there is to do.
pub enum Begun {
    /// A run, new or continued.
    Run(Box<Run>),
    /// Nothing.
    Finished(Summary),
}

/// A run that may begin: everything about it is known, and nothing of it written.
pub struct Run {
    pub(super) out: PathBuf,
    /// None: the folder is not there yet.
    lock: Option<File>,
    job: Job,
    /// The run that it goes on with.
    before: Option<State>,
    /// The gallery that it adds to.
    gallery: Option<Gallery>,
    /// The pictures to embed.
    pub(super) dataset: Arc<dyn Dataset>,
    /// Pictures that the gallery that is added to holds already.
    pub(super) present: usize,
    /// The numbers of that gallery's identities, with their names.
    pub(super) taken: BTreeMap<i64, String>,
    pub(super) options: StreamOptions,
}

/// Prepares to embed `dataset` in the folder `out`, in batches of `batch`, as rows of `dim` numbers. What can be wrong with
/// the folder is found here, before a network is built.
///
/// # Errors
/// As [`may_begin`]; another process is writing to the folder; what is there is of another kind, or cannot be read.
pub fn begin(
    dataset: Arc<dyn Dataset>,
    out: &Path,
    options: &StreamOptions,
    batch: usize,
    dim: usize,
) -> Result<Begun> {
    let lock = out.is_dir().then(|| lock_folder(out, LOCKED));
    let lock = lock.transpose()?;
    may_begin(out, options)?;
    let mut before = State::read(out)?.filter(State::counts);
    let placed = before.take_if(|state| state.complete);
    if let Some(state) = &placed {
        // Only some names are missing.
        state.place(out)?;
    }
    if options.overwrite {
        before = None;
    }
    let gallery = (options.append && is_stored(out)).then(|| Gallery::open(out));
    let gallery = gallery.transpose()?;
    let all = dataset.len();
    let dataset = match &gallery {
        None => dataset,
        Some(gallery) => without(dataset, &gallery.stored.files),
    };
    let mut job = Job {
        weights: options.weights.clone(),
        source: source(&*dataset, options.skip_bad)?,
        images: dataset.len(),
        tta: options.tta,
        format: options.format,
        batch,
        dim,
        added_to: 0,
    };
    if let Some(gallery) = &gallery {
        comparable(out, &gallery.origin, &job.origin(), false)?;
        let earlier = gallery.origin.source.as_deref().unwrap_or_default();
        let mut hash = Fnv::new();
        hash.part(earlier.as_bytes());
        hash.part(job.source.as_bytes());
        job.source = format!("{all} pictures, added in turn, {:032x}", hash.0);
        job.format = gallery.format;
        job.added_to = gallery.stored.rows();
    }
    let is_finished = match &gallery {
        Some(_) => dataset.is_empty(),
        None => options.resume && is_stored(out),
    };
    if is_finished && before.is_none() {
        let stored = Stored::open(out)?;
        if gallery.is_none() {
            let Some(found) = &stored.origin else {
                return Err(Error::data(
                    out,
                    "holds embeddings that do not say which network made them; --overwrite replaces them, or choose another \
                     --out",
                ));
            };
            comparable(out, found, &job.origin(), true)?;
        }
        return Ok(Begun::Finished(Summary {
            rows: stored.rows(),
            skipped: left_out(out)?.len(),
            unaligned: placed.map_or(0, |state| state.unaligned),
            was_finished: true,
        }));
    }
    if let Some(state) = &before
        && let Some(difference) = job.difference(&state.job)
    {
        return Err(Error::data(
            out,
            format!(
                "holds an unfinished run of another kind, and the same folder is to hold one kind of rows; {difference}"
            ),
        ));
    }
    Ok(Begun::Run(Box::new(Run {
        out: out.into(),
        lock,
        job,
        before,
        present: all - dataset.len(),
        dataset,
        taken: gallery.as_ref().map(Gallery::names).unwrap_or_default(),
        gallery,
        options: options.clone(),
    })))
}

impl Run {
    /// Opens the run's files.
    ///
    /// # Errors
    /// Another process made the folder meanwhile; a file is shorter than it was, or cannot be written.
    pub(super) fn open(&mut self) -> Result<Partial> {
        let lock = match self.lock.take() {
            Some(lock) => lock,
            None => {
                let lock = lock_folder(&self.out, LOCKED)?;
                may_begin(&self.out, &self.options)?;
                lock
            }
        };
        let (before, gallery) = (self.before.take(), self.gallery.take());
        Partial::open(&self.out, lock, self.job.clone(), before, gallery.as_ref())
    }
}

/// The pictures of `dataset` that are not among `files`.
fn without(dataset: Arc<dyn Dataset>, files: &[String]) -> Arc<dyn Dataset> {
    let files: HashSet<&str> = files.iter().map(String::as_str).collect();
    let new = |index: &u32| !files.contains(&one_line(&dataset.describe(*index as usize))[..]);
    let images: Vec<u32> = (0..dataset.len() as u32).filter(new).collect();
    Arc::new(Subset::new(dataset, images))
}

/// Whether the gallery in `out`, which says that it is `found`, holds rows like those that are asked for, and of the same
/// pictures where that matters. Older galleries do not say which pictures.
fn comparable(out: &Path, found: &Origin, asked: &Origin, pictures: bool) -> Result<()> {
    let pairs = [
        ("the weights", found.weights.clone(), asked.weights.clone()),
        ("--tta", found.tta.to_string(), asked.tta.to_string()),
    ];
    let problem = match (
        pairs.into_iter().find(|(_, found, asked)| found != asked),
        (&found.source, &asked.source),
    ) {
        (Some((what, found, asked)), _) => {
            format!("of another kind; {what}: {found} there, {asked} now; --overwrite replaces it")
        }
        (None, (Some(found), Some(asked))) if pictures && found != asked => {
            "of other pictures; --append adds these to it, --overwrite replaces it".to_owned()
        }
        _ => return Ok(()),
    };
    Err(Error::data(
        out,
        format!("holds a finished gallery {problem}, or choose another --out"),
    ))
}

/// Tells one list of pictures from another: by labels and content, and by where they lie.
fn source(dataset: &dyn Dataset, skip_bad: bool) -> Result<String> {
    let mut hash = Fnv::new();
    for index in 0..dataset.len() {
        hash.part(dataset.describe(index).as_bytes());
    }
    let Fingerprint {
        images,
        hash: content,
        ..
    } = Fingerprint::of(dataset, skip_bad)?;
    Ok(format!("{images} pictures, {content}, {:032x}", hash.0))
}
