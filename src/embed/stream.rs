//! Every picture of a data set, in order: decoded on all cores ahead of the network, memory bounded by a few batches.

use super::batches::each_batch;
use super::begin::{Run, Summary};
use super::folder::Origin;
use super::numbers::{NO_IDENTITY, label_numbers};
use super::stored::Stored;
use crate::backend::Backend;
use crate::base::text::one_line;
use crate::data::Dataset;
use crate::embedder::Embedder;
use crate::verification::Tta;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

/// The progress of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// It begins.
    Begun {
        /// Pictures to embed in all.
        total: usize,
        /// Those of them that an earlier run did.
        done: usize,
        /// Pictures that are in the gallery that is added to, and are not embedded again.
        present: usize,
    },
    /// This many more pictures are done.
    Done(usize),
    /// A picture is left out, for this reason.
    Skipped(&'a str),
}

/// Embeds the pictures of a run that [`begin`](super::begin()) prepared for batches and rows of this embedder's size.
/// `observe` is called after each batch; if it returns false, the run ends there and can be resumed. A resumed run ends with
/// the same bytes as one that was never stopped.
///
/// The pictures count as the same if their number, names, places and identities match, and the content of 64 of them. A
/// gallery stands until the run that adds to it or replaces it is complete.
///
/// # Errors
/// [`Error::Interrupted`] if `observe` ended the run. A picture cannot be read, none can be read, an embedding is zero or not
/// finite, a device fails, or a file cannot be written. The work done until then can be resumed.
pub fn embed_all<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    mut run: Run,
    observe: &mut dyn FnMut(Step<'_>) -> bool,
) -> Result<Summary> {
    let mut partial = run.open()?;
    let Run {
        out,
        dataset,
        present,
        taken,
        options,
        ..
    } = run;
    let numbers = label_numbers(&*dataset, &taken);
    let first = partial.state().done;
    observe(Step::Begun {
        total: dataset.len(),
        done: first,
        present,
    });
    let mut synced = Instant::now();
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
            for (_, why) in batch.bad() {
                partial.skip(&one_line(why))?;
                observe(Step::Skipped(why));
            }
            let images = batch.indices.len() + batch.bad().len();
            partial.advance(images, batch.unaligned());
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
    let state = partial.state();
    let summary = Summary {
        rows: state.rows,
        skipped: state.skipped,
        unaligned: state.unaligned,
        was_finished: false,
    };
    if summary.rows == 0 {
        return Err(Error::data(
            out,
            "would hold no row: no picture could be read",
        ));
    }
    let mut names = taken;
    for label in (0..dataset.len()).map(|index| dataset.label(index)) {
        let number = numbers[label as usize];
        if number != NO_IDENTITY {
            names
                .entry(number)
                .or_insert_with(|| dataset.class_name(label));
        }
    }
    partial.finish(&names)?;
    Ok(summary)
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
    let numbers = label_numbers(&*dataset, &BTreeMap::new());
    let mut labels = Vec::new();
    let mut unaligned = 0;
    let mut stored = Stored {
        dim: tta.row_length(embedder.size()),
        names: (numbers.iter().zip(0..))
            .filter(|(number, _)| **number != NO_IDENTITY)
            .map(|(&number, label)| (number, dataset.class_name(label)))
            .collect(),
        origin: Some(Origin::new(weights.to_owned(), tta)),
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
