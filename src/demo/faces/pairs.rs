//! Pairs of images for verification, laid out like LFW's.

use crate::base::random::{Purpose, Random};
use crate::{Error, Result};
use std::collections::HashSet;

/// Folds of the verification protocol.
const FOLDS: usize = 10;

/// A place in the stream numbers that no image of the first 2^32 - 1 people uses.
const STREAM: u64 = u64::MAX;

/// Draws `pairs` different pairs of images, half of one person and half of two: (first image, second image, same person).
///
/// Image `i` shows person `i / per_identity`, as in [`GeneratedFaces`](super::GeneratedFaces). The list is in ten blocks
/// of nearly equal size, the folds of the protocol; each holds first its pairs of one person, then those of two. The
/// result depends on the arguments alone.
///
/// # Errors
/// There are not that many different pairs.
pub fn verification_pairs(
    identities: usize,
    per_identity: usize,
    pairs: usize,
    seed: u64,
) -> Result<Vec<(usize, usize, bool)>> {
    let images = identities as u128 * per_identity as u128;
    let choose = |n: u128| n * n.saturating_sub(1) / 2;
    let genuine = identities as u128 * choose(per_identity as u128);
    let impostor = choose(images) - genuine;
    let (same, different) = (pairs / 2, pairs - pairs / 2);
    if u32::try_from(images).is_err() || same as u128 > genuine || different as u128 > impostor {
        return Err(Error::Invalid(format!(
            "cannot draw {pairs} verification pairs from {identities} identities with {per_identity} images each: \
             there are {genuine} pairs of one person and {impostor} of two, and {same} and {different} are needed"
        )));
    }
    let random = &mut Random::new(seed, Purpose::Faces, STREAM);
    let (images, per) = (images as u32, per_identity as u32);
    let mut seen = HashSet::with_capacity(pairs);
    let mut list = Vec::with_capacity(pairs);
    let (mut end, mut same_before) = (0, 0);
    for fold in 0..FOLDS {
        // The first `pairs % FOLDS` folds are one larger; the rounding of the halves is carried from fold to fold.
        let start = end;
        end += pairs / FOLDS + usize::from(fold < pairs % FOLDS);
        let same_here = end / 2 - same_before;
        same_before += same_here;
        for place in start..end {
            let wanted = place - start < same_here;
            loop {
                let a = random.below(images);
                let b = if wanted {
                    a / per * per + random.below(per)
                } else {
                    random.below(images)
                };
                let found = a / per == b / per;
                if a != b && found == wanted && seen.insert((a.min(b), a.max(b))) {
                    list.push((a as usize, b as usize, wanted));
                    break;
                }
            }
        }
    }
    Ok(list)
}
