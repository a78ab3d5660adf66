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

mod folder;
mod partial;
mod pictures;
pub mod search;
mod state;
mod stored;
mod stream;

pub use folder::Origin;
pub use pictures::Pictures;
pub use state::Format;
pub use stored::{Stored, is_stored};
pub use stream::{Step, StreamOptions, Summary, embed_all, embed_in_memory};

use crate::backend::Backend;
use crate::base::files;
use crate::data::picture::{flip, resize};
use crate::data::{Dataset, Image};
use crate::embedder::Embedder;
use crate::encoding::npy::{self, Elements, Npy};
use crate::report::similarity::{Block, Means, Similarity};
use crate::verification::{self, Tta};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The most pictures in a similarity matrix: each needs at least one pixel.
pub const SIMILARITY_LIMIT: usize = 2000;

/// Which identities of a data set are embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// How many identities.
    pub ids: usize,
    /// How many images of each.
    pub per_id: usize,
    /// The first number, from which to go downwards; None: the highest.
    pub last_id: Option<u64>,
}

/// What became of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Embedded.
    Done(u64),
    /// Has too few images.
    TooFew(u64),
    /// No identity has the numbers from the first down to the second.
    Missing(u64, u64),
}

/// Embedded pictures: rows in blocks, one block per identity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embedded {
    /// N x `dim`, unit vectors.
    pub embeddings: Vec<f32>,
    /// The length of a row: D, or 2 D under [`Tta::FlipConcat`].
    pub dim: usize,
    /// The number of each row's identity.
    pub labels: Vec<i64>,
    /// Where each row's picture comes from.
    pub files: Vec<String>,
    /// The identities, in the order of the rows.
    pub blocks: Vec<Block>,
}

/// Embeds pictures of any size as unit vectors: N x D, or N x 2 D under [`Tta::FlipConcat`].
///
/// # Errors
/// A picture without pixels, an embedding that is not finite or zero, a device that fails.
pub fn embed_images<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    images: &[Image],
    tta: Tta,
) -> Result<Vec<f32>> {
    let side = embedder.image_size();
    let mut pixels = Vec::with_capacity(images.len() * side * side * 3);
    for image in images {
        if image.pixels.is_empty() {
            return Err(Error::Invalid(
                "a picture without pixels cannot be embedded".into(),
            ));
        }
        if (image.width, image.height) == (side, side) {
            pixels.extend_from_slice(&image.pixels);
        } else {
            pixels.extend(resize(image, side, side).pixels);
        }
    }
    embed_pixels(embedder, &mut pixels, tta)
}

/// Embeds RGB pixels of the network's input size, N x H x W x 3, which are mirrored in place, as unit vectors.
fn embed_pixels<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    pixels: &mut [u8],
    tta: Tta,
) -> Result<Vec<f32>> {
    let plain = embedder.embed_pixels(pixels)?;
    let mirrored = if tta.needs_flip() {
        flip(pixels, embedder.image_size());
        embedder.embed_pixels(pixels)?
    } else {
        Vec::new()
    };
    verification::combine(&plain, &mirrored, embedder.size(), tta)
}

/// Embeds the identities of `dataset` that `selection` names, and calls `observe` for each. `source` is the path of the
/// data set, for messages.
///
/// # Errors
/// There are not enough identities with enough images, a picture cannot be read, or as [`embed_images`].
pub fn embed_identities<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    source: &Path,
    dataset: &dyn Dataset,
    selection: &Selection,
    tta: Tta,
    observe: &mut dyn FnMut(Event),
) -> Result<Embedded> {
    let Selection {
        ids,
        per_id,
        last_id,
    } = *selection;
    if ids == 0 || per_id == 0 {
        return Err(Error::Usage(
            "at least one identity and one image of each have to be embedded".into(),
        ));
    }
    let numbers = numbers(dataset);
    let highest = numbers.last_key_value().map_or(0, |(&number, _)| number);
    let last = last_id.unwrap_or(highest);
    let mut images = vec![Vec::new(); dataset.classes()];
    for index in 0..dataset.len() {
        let images: &mut Vec<u32> = &mut images[dataset.label(index) as usize];
        if images.len() < per_id {
            images.push(index as u32);
        }
    }

    let mut embedded = Embedded::default();
    // The lowest number visited so far, or one above the first.
    let mut above = u128::from(last) + 1;
    for (&number, &label) in numbers.range(..=last).rev() {
        if embedded.blocks.len() == ids {
            break;
        }
        if u128::from(number) + 1 < above {
            observe(Event::Missing((above - 1) as u64, number + 1));
        }
        above = u128::from(number);
        let images = &images[label as usize];
        if images.len() < per_id {
            observe(Event::TooFew(number));
            continue;
        }
        for &index in images {
            embedded.files.push(dataset.describe(index as usize));
            embedded.labels.push(number as i64);
        }
        let read = |&index: &u32, picture: &mut Image| dataset.read(index as usize, picture);
        embedded.extend(embedder, images, number.to_string(), tta, read)?;
        observe(Event::Done(number));
    }
    match embedded.blocks.len() {
        found if found == ids => Ok(embedded),
        found => Err(Error::data(
            source,
            format!(
                "expected {ids} identities with at least {per_id} images each from number {last} downwards, found {found}; \
                 ask for fewer identities or fewer images of each"
            ),
        )),
    }
}

/// The number of each label, as it is written to `labels.npy`.
fn label_numbers(dataset: &dyn Dataset) -> Vec<i64> {
    let mut values = vec![0; dataset.classes()];
    for (number, label) in numbers(dataset) {
        values[label as usize] = number as i64;
    }
    values
}

/// Replaces line breaks, which a file name may hold: the list has one line per row.
fn one_line(text: &str) -> String {
    text.replace(['\n', '\r'], "?")
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

impl Embedded {
    /// Embeds the pictures of a block, with at most one batch in memory.
    fn extend<B: Backend, T>(
        &mut self,
        embedder: &mut Embedder<'_, B>,
        pictures: &[T],
        label: String,
        tta: Tta,
        read: impl Fn(&T, &mut Image) -> Result<()>,
    ) -> Result<()> {
        for batch in pictures.chunks(embedder.max_batch()) {
            let mut images = vec![Image::default(); batch.len()];
            for (picture, image) in batch.iter().zip(&mut images) {
                read(picture, image)?;
            }
            let rows = embed_images(embedder, &images, tta)
                .map_err(|e| Error::Invalid(format!("embedding the pictures of {label}: {e}")))?;
            self.dim = rows.len() / batch.len();
            self.embeddings.extend(rows);
        }
        self.blocks.push(Block {
            label,
            images: pictures.len(),
        });
        Ok(())
    }

    /// Writes the files of the folder `out` and gives the mean cosines. `weights` is the fingerprint of the network's.
    ///
    /// # Errors
    /// There is nothing to write, an unfinished run is there, or a file cannot be written.
    pub fn save(&self, out: &Path, weights: &str, tta: Tta) -> Result<Means> {
        let similarity = Similarity::new(&self.embeddings, self.dim, &self.blocks)?;
        fs::create_dir_all(out).map_err(Error::io("creating the folder", out))?;
        if let Some(state) = state::State::read(out)? {
            return Err(state.unfinished(out));
        }
        // Without the list of files, which comes last, nobody takes a part of this for the whole.
        folder::remove_stale(
            out,
            &[
                folder::FILES,
                folder::ORIGIN,
                folder::SAFETENSORS,
                folder::NAMES,
                folder::SKIPPED,
                "similarity.png",
            ],
        )?;
        let n = self.labels.len();
        let write = |name: &str, shape: Vec<usize>, elements: Elements| {
            npy::write(&out.join(name), &Npy { shape, elements })
        };
        write(
            "embeddings.npy",
            vec![n, self.dim],
            Elements::F32(self.embeddings.clone()),
        )?;
        write("labels.npy", vec![n], Elements::I64(self.labels.clone()))?;
        Origin {
            weights: weights.to_owned(),
            tta,
        }
        .save(out)?;
        let lines: String = self.files.iter().map(|f| one_line(f) + "\n").collect();
        files::write(&out.join(folder::FILES), lines.as_bytes())?;
        similarity.save(&out.join("similarity.png"))?;
        Ok(similarity.means())
    }
}
