//! The test identities: chosen by number, embedded, and written with their similarity matrix.

use super::batches::each_batch;
use super::folder::{self, Origin};
use super::{numbers, state};
use crate::backend::Backend;
use crate::base::exchange::Exchange;
use crate::base::files;
use crate::base::text::one_line;
use crate::data::{Dataset, Image};
use crate::embedder::Embedder;
use crate::encoding::npy::{self, Elements, Npy};
use crate::report::similarity::{Block, Means, Similarity};
use crate::verification::Tta;
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Which identities of a data set are embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// How many identities.
    pub ids: usize,
    /// How many images of each.
    pub per_id: usize,
    /// The number to start at, going down; None: the highest.
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
    /// Pictures that are most likely no aligned faces.
    pub unaligned: usize,
}

/// Embeds the identities of `dataset` that `selection` names, and calls `observe` for each. `source` is the path of the
/// data set, for messages.
///
/// # Errors
/// There are not enough identities with enough images, which is found before anything is embedded; a picture cannot be
/// read, an embedding is not finite or zero, a device fails.
pub fn embed_identities<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    source: &Path,
    dataset: Arc<dyn Dataset>,
    selection: &Selection,
    tta: Tta,
    observe: &mut dyn FnMut(Event),
) -> Result<Embedded> {
    let Selection { ids, per_id, .. } = *selection;
    let (events, chosen) = choose(&*dataset, selection)?;
    let mut embedded = Embedded {
        dim: tta.row_length(embedder.size()),
        ..Embedded::default()
    };
    for event in &events {
        let Event::Done(number) = *event else {
            continue;
        };
        let images = chosen[embedded.labels.len()..][..per_id].iter();
        embedded
            .files
            .extend(images.map(|&image| dataset.describe(image as usize)));
        embedded.labels.extend(vec![number as i64; per_id]);
        embedded.blocks.push(Block {
            label: number.to_string(),
            images: per_id,
        });
    }
    if embedded.blocks.len() < ids {
        let skipped = |event: &&Event| !matches!(event, Event::Done(_));
        events
            .iter()
            .filter(skipped)
            .for_each(|event| observe(*event));
        let last = selection
            .last_id
            .unwrap_or_else(|| highest(&numbers(&*dataset)));
        return Err(Error::data(
            source,
            format!(
                "expected {ids} identities with at least {per_id} images each from number {last} downwards, found {}; \
                 ask for fewer identities or fewer images of each",
                embedded.blocks.len()
            ),
        ));
    }
    let mut events = events.into_iter();
    let mut done = 0;
    let chosen: Arc<dyn Dataset> = Arc::new(Chosen {
        dataset,
        images: chosen,
    });
    each_batch(embedder, &chosen, 0, tta, false, &mut |batch, rows| {
        embedded.unaligned += batch.unaligned();
        embedded.embeddings.extend(rows);
        let images = embedded.embeddings.len() / embedded.dim;
        while done < images / per_id {
            let event = events.next().expect("an event for each identity");
            done += usize::from(matches!(event, Event::Done(_)));
            observe(event);
        }
        Ok(())
    })?;
    Ok(embedded)
}

/// What will become of each identity, and the images of the chosen ones, in the order in which they are embedded.
fn choose(dataset: &dyn Dataset, selection: &Selection) -> Result<(Vec<Event>, Vec<u32>)> {
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
    let mut images = vec![Vec::new(); dataset.classes()];
    for index in 0..dataset.len() {
        let images: &mut Vec<u32> = &mut images[dataset.label(index) as usize];
        if images.len() < per_id {
            images.push(index as u32);
        }
    }
    let numbers = numbers(dataset);
    let last = last_id.unwrap_or_else(|| highest(&numbers));
    let (mut events, mut chosen) = (Vec::new(), Vec::new());
    // The lowest number visited so far, or one above the first.
    let mut above = u128::from(last) + 1;
    for (&number, &label) in numbers.range(..=last).rev() {
        if chosen.len() == ids * per_id {
            break;
        }
        if u128::from(number) + 1 < above {
            events.push(Event::Missing((above - 1) as u64, number + 1));
        }
        above = u128::from(number);
        let images = &images[label as usize];
        if images.len() < per_id {
            events.push(Event::TooFew(number));
            continue;
        }
        chosen.extend(images);
        events.push(Event::Done(number));
    }
    Ok((events, chosen))
}

fn highest(numbers: &BTreeMap<u64, u32>) -> u64 {
    numbers.last_key_value().map_or(0, |(&number, _)| number)
}

/// Some images of a data set, in an order of their own.
struct Chosen {
    dataset: Arc<dyn Dataset>,
    images: Vec<u32>,
}

impl Dataset for Chosen {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn classes(&self) -> usize {
        self.dataset.classes()
    }

    fn label(&self, index: usize) -> u32 {
        self.dataset.label(self.images[index] as usize)
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        self.dataset.read(self.images[index] as usize, image)
    }

    fn describe(&self, index: usize) -> String {
        self.dataset.describe(self.images[index] as usize)
    }
}

impl Embedded {
    /// Writes the files of the folder `out` and gives the mean cosines. `weights` is the fingerprint of the
    /// network's weights.
    ///
    /// # Errors
    /// There is nothing to write, an unfinished run is there, or a file cannot be written.
    pub fn save(&self, out: &Path, weights: &str, tta: Tta) -> Result<Means> {
        let similarity = Similarity::new(&self.embeddings, self.dim, &self.blocks)?;
        let exchange = Exchange::begin(out, "embedding")?;
        if let Some(state) = state::State::read(out)? {
            return Err(state.unfinished(out));
        }
        let n = self.labels.len();
        let write = |name: &str, shape: Vec<usize>, elements: Elements| {
            npy::write(&exchange.path(name), &Npy { shape, elements })
        };
        write(
            folder::NPY,
            vec![n, self.dim],
            Elements::F32(self.embeddings.clone()),
        )?;
        write(folder::LABELS, vec![n], Elements::I64(self.labels.clone()))?;
        let origin = Origin {
            weights: weights.to_owned(),
            tta,
        };
        origin.save(&exchange.path(folder::ORIGIN))?;
        let lines: String = self.files.iter().map(|f| one_line(f) + "\n").collect();
        files::write(&exchange.path(folder::FILES), lines.as_bytes())?;
        similarity.save(&exchange.path("similarity.png"))?;
        let stale = [folder::SAFETENSORS, folder::NAMES, folder::SKIPPED];
        exchange.commit(&stale.map(String::from))?;
        Ok(similarity.means())
    }
}
