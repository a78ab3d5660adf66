//! Every picture of a data set, in order: decoded on all cores ahead of the network, memory bounded by a few batches.

use super::batches::each_batch;
use super::folder::Origin;
use super::label_numbers;
use super::partial::{Begun, Partial};
use super::state::{Format, Job};
use super::stored::Stored;
use crate::backend::Backend;
use crate::base::fnv::Fnv;
use crate::base::text::one_line;
use crate::data::Dataset;
use crate::data::fingerprint::Fingerprint;
use crate::embedder::Embedder;
use crate::verification::Tta;
use crate::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How a data set is embedded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamOptions {
    /// The fingerprint of the network's weights.
    pub weights: String,
    /// How mirror images are used.
    pub tta: Tta,
    /// How embeddings are written.
    pub format: Format,
    /// Leave out pictures that cannot be read instead of stopping.
    pub skip_bad: bool,
    /// Continue an unfinished run, if there is one.
    pub resume: bool,
    /// How often finished work is synced to disk.
    pub sync_every: Duration,
}

/// The progress of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// It begins; an earlier run did this many pictures.
    Begun(usize),
    /// This many more pictures are done.
    Done(usize),
    /// A picture is left out, for this reason.
    Skipped(&'a str),
}

/// The totals of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    /// Rows.
    pub rows: usize,
    /// Pictures left out.
    pub skipped: usize,
    /// Pictures of this run that are most likely no aligned faces.
    pub unaligned: usize,
}

/// Embeds every picture of `dataset` to the folder `out`. `observe` is called after each batch; if it returns false,
/// the run ends there and can be resumed. A resumed run ends with the same bytes as one that was never stopped.
///
/// The pictures count as the same if their number, names, places and identities match, and the content of 64 of them.
///
/// # Errors
/// [`Error::Interrupted`] if `observe` ended the run; the folder holds an unfinished run that is not to be resumed or
/// is of another kind; a picture cannot be read, none can be read, an embedding is zero or not finite, a device fails,
/// or a file cannot be written. The work done until then can be resumed.
pub fn embed_all<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    dataset: Arc<dyn Dataset>,
    out: &Path,
    options: &StreamOptions,
    observe: &mut dyn FnMut(Step<'_>) -> bool,
) -> Result<Summary> {
    let job = Job {
        weights: options.weights.clone(),
        source: source(&*dataset, options.skip_bad)?,
        images: dataset.len(),
        tta: options.tta,
        format: options.format,
        batch: embedder.max_batch(),
        dim: options.tta.row_length(embedder.size()),
    };
    let mut partial = match Partial::open(out, job, options.resume)? {
        Begun::Complete(rows, skipped) => {
            return Ok(Summary {
                rows,
                skipped,
                unaligned: 0,
            });
        }
        Begun::Partial(partial) => *partial,
    };
    let numbers = label_numbers(&*dataset);
    observe(Step::Begun(partial.done()));
    let mut synced = Instant::now();
    let first = partial.done();
    let mut unaligned = 0;
    let result = each_batch(
        embedder,
        &dataset,
        first,
        options.tta,
        options.skip_bad,
        &mut |batch, rows| {
            let labels: Vec<i64> = (batch.labels.iter())
                .map(|&label| numbers[label as usize])
                .collect();
            let files: Vec<String> = (batch.indices.iter())
                .map(|&index| one_line(&dataset.describe(index as usize)))
                .collect();
            partial.rows(rows, &labels, &files)?;
            unaligned += batch.unaligned();
            for (_, why) in batch.bad() {
                partial.skip(&one_line(why))?;
                observe(Step::Skipped(why));
            }
            let images = batch.indices.len() + batch.bad().len();
            partial.advance(images);
            if synced.elapsed() >= options.sync_every {
                partial.sync()?;
                synced = Instant::now();
            }
            match observe(Step::Done(images)) {
                true => Ok(()),
                false => Err(Error::Interrupted),
            }
        },
    );
    // Whatever ended the run, the finished batches count.
    partial.sync()?;
    result?;
    let (rows, skipped) = partial.counts();
    if rows == 0 {
        return Err(Error::data(
            out,
            "would hold no row: no picture could be read",
        ));
    }
    let names: Vec<(i64, String)> = (numbers.iter().zip(0..))
        .map(|(&number, label)| (number, dataset.class_name(label)))
        .collect();
    partial.finish(&names)?;
    Ok(Summary {
        rows,
        skipped,
        unaligned,
    })
}

/// Embeds every picture of `dataset` into memory, and tells how many are most likely no aligned faces. `progress` gets the
/// number of pictures done since the last call.
///
/// # Errors
/// A picture cannot be read, an embedding is not finite or zero, a device fails.
pub fn embed_in_memory<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    dataset: Arc<dyn Dataset>,
    weights: &str,
    tta: Tta,
    progress: &mut dyn FnMut(usize),
) -> Result<(Stored, usize)> {
    let numbers = label_numbers(&*dataset);
    let mut labels = Vec::new();
    let mut unaligned = 0;
    let mut stored = Stored {
        dim: tta.row_length(embedder.size()),
        names: (numbers.iter().zip(0..))
            .map(|(&number, label)| (number, dataset.class_name(label)))
            .collect(),
        origin: Some(Origin {
            weights: weights.to_owned(),
            tta,
        }),
        ..Stored::default()
    };
    each_batch(embedder, &dataset, 0, tta, false, &mut |batch, rows| {
        stored.embeddings.extend(rows);
        unaligned += batch.unaligned();
        for (&label, &index) in batch.labels.iter().zip(&batch.indices) {
            labels.push(numbers[label as usize]);
            stored.files.push(dataset.describe(index as usize));
        }
        progress(batch.indices.len());
        Ok(())
    })?;
    stored.labels = Some(labels);
    Ok((stored, unaligned))
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
