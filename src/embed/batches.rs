//! Pictures to unit vectors: some pictures at once, and the one loop over a data set.

use crate::backend::Backend;
use crate::base::changes::flip;
use crate::data::loader::{Batch, Loader, LoaderOptions};
use crate::data::picture::augment::Augment;
use crate::data::{Dataset, Image};
use crate::embedder::Embedder;
use crate::verification::{self, Tta};
use crate::{Error, Result};
use std::sync::Arc;

/// Embeds pictures of any size as unit vectors: N x D, or N x 2 D under [`Tta::FlipConcat`].
///
/// # Errors
/// A picture without pixels, an embedding that is not finite or zero, a device that fails.
pub fn embed_images<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    images: &[Image],
    tta: Tta,
) -> Result<Vec<f32>> {
    let mut pixels = embedder.pixels(images)?;
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

/// Embeds a data set in order, decoding on all cores ahead of the network, and calls `take` with each batch and its rows.
/// It starts at picture `first`, which must be the first of a batch.
pub(super) fn each_batch<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    dataset: &Arc<dyn Dataset>,
    first: usize,
    tta: Tta,
    skip_bad: bool,
    take: &mut dyn FnMut(&Batch, &[f32]) -> Result<()>,
) -> Result<()> {
    if first >= dataset.len() {
        return Ok(());
    }
    let options = LoaderOptions {
        batch: embedder.max_batch(),
        augment: Augment::default(),
        // Nothing but the resize.
        changes_on_device: true,
        size: embedder.image_size(),
        skip_bad,
        shuffle: false,
        ..LoaderOptions::default()
    };
    let step = (first / embedder.max_batch()) as u64;
    let mut loader = Loader::new(Arc::clone(dataset), options, 0, step)?;
    while let Some(batch) = loader.next() {
        let mut batch = batch?;
        let rows = match batch.indices.is_empty() {
            true => Vec::new(),
            false => {
                let mut pixels = std::mem::take(&mut batch.pixels);
                let rows = embed_pixels(embedder, &mut pixels, tta).map_err(|e| {
                    let first = dataset.describe(batch.indices[0] as usize);
                    Error::Invalid(format!("embedding the batch that begins with {first}: {e}"))
                })?;
                batch.pixels = pixels;
                rows
            }
        };
        take(&batch, &rows)?;
        loader.recycle(batch);
    }
    Ok(())
}
