//! Embedding: test identities for the similarity matrix, and whole data sets or any pictures as a stream.
//!
//! The result is a folder of files with one row per picture:
//!
//! | file | content |
//! |---|---|
//! | `embeddings.npy` | f4, N x D, unit vectors; or `embeddings.safetensors`: the tensors `embeddings` and `labels` |
//! | `labels.npy` | i8, N: the identity's number |
//! | `labels.tsv` | the name of each number; empty for a single picture whose identity is unknown |
//! | `files.txt` | one line per row: where the picture comes from |
//! | `embeddings.json` | the weights' fingerprint and the treatment of mirror images |
//! | `skipped.txt` | pictures that could not be read, if any |
//! | `similarity.png` | the similarity matrix, of up to [`SIMILARITY_LIMIT`] pictures |
//!
//! Identities are embedded from the last number downwards, as face_recognition_tf2 does with the people that it keeps
//! out of training. An identity's number is the name of its folder if all those names are distinct numbers
//! (`85741/0001.jpg`), else its position in the data set. The first images of each, in name order, are embedded;
//! identities with too few are skipped.

mod batches;
mod folder;
mod identities;
mod partial;
mod pictures;
pub mod search;
mod state;
mod stored;
mod stream;

pub use batches::embed_images;
pub use folder::Origin;
pub use identities::{Embedded, Event, Selection, embed_identities};
pub use pictures::Pictures;
pub use state::Format;
pub use stored::{Stored, is_stored};
pub use stream::{Step, StreamOptions, Summary, embed_all, embed_in_memory};

use crate::data::Dataset;
use std::collections::BTreeMap;

/// The most pictures in a similarity matrix: each needs at least one pixel.
pub const SIMILARITY_LIMIT: usize = 2000;

/// The number of each label, as it is written to `labels.npy`.
fn label_numbers(dataset: &dyn Dataset) -> Vec<i64> {
    let mut values = vec![0; dataset.classes()];
    for (number, label) in numbers(dataset) {
        values[label as usize] = number as i64;
    }
    values
}

/// The label of each identity, by number.
fn numbers(dataset: &dyn Dataset) -> BTreeMap<u64, u32> {
    let labels = 0..dataset.classes() as u32;
    let named: Option<BTreeMap<u64, u32>> = labels
        .clone()
        .map(|label| {
            let number: u64 = dataset.class_name(label).parse().ok()?;
            // Labels in files are signed.
            i64::try_from(number).is_ok().then_some((number, label))
        })
        .collect();
    named
        .filter(|named| named.len() == dataset.classes())
        .unwrap_or_else(|| labels.map(|label| (u64::from(label), label)).collect())
}
