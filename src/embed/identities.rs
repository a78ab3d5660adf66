//! The test identities: chosen by number.

use super::numbers::numbers;
use crate::data::Dataset;
use crate::data::subset::Subset;
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

/// The test identities of a data set.
pub struct Chosen {
    /// Their pictures, in the order in which they are embedded.
    pub pictures: Subset,
    /// What becomes of each identity, in the same order.
    pub events: Vec<Event>,
}

/// Chooses the identities of `dataset` that `selection` names. `source` is the path of the data set, for messages;
/// `observe` is called for identities that are passed over if there are not enough others.
///
/// # Errors
/// There are not enough identities with enough images.
pub fn choose(
    source: &Path,
    dataset: Arc<dyn Dataset>,
    selection: &Selection,
    observe: &mut dyn FnMut(Event),
) -> Result<Chosen> {
    let Selection { ids, per_id, .. } = *selection;
    let (events, images) = look_through(&*dataset, selection)?;
    if images.len() < ids.saturating_mul(per_id) {
        let skipped = |event: &&Event| !matches!(event, Event::Done(_));
        (events.iter().filter(skipped)).for_each(|event| observe(*event));
        let last = selection
            .last_id
            .unwrap_or_else(|| highest(&numbers(&*dataset)));
        return Err(Error::data(
            source,
            format!(
                "expected {ids} identities with at least {per_id} images each from number {last} downwards, found {}; \
                 ask for fewer identities or fewer images of each",
                images.len() / per_id
            ),
        ));
    }
    Ok(Chosen {
        pictures: Subset::new(dataset, images),
        events,
    })
}

/// What will become of each identity, and the images of the chosen ones, in the order in which they are embedded.
fn look_through(dataset: &dyn Dataset, selection: &Selection) -> Result<(Vec<Event>, Vec<u32>)> {
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
        if chosen.len() == ids.saturating_mul(per_id) {
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
