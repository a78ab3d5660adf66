//! Convolution as implicit matrix products: the choice of tiles, and how a long sum is split over blocks.
//!
//! fprop: M = N P Q pixels, N = K filters, terms R S C. dgrad: M = input pixels (a phase of the stride), N = C, terms
//! taps and K. wgrad: M = K, N = R S C, terms pixels.

mod dgrad;
mod fprop;
mod wgrad;

pub(super) use dgrad::dgrad;
pub(super) use fprop::fprop;
pub(super) use wgrad::wgrad;

use super::blocks;
use super::launch::Address;
use super::tiles::{CHUNK_BYTES, Product, ProductTile, Program, Tiled, by_element, step_terms};
use crate::backend::Element;
use crate::backend::geometry::Window;
use crate::{Error, Result};

/// Blocks to aim at where a sum can be split: every multiprocessor of the largest cards gets a few.
const BLOCKS: u64 = 512;

/// The fewest steps per split, so that starting the splits and adding them up costs little in comparison.
const SPLIT_STEPS: u64 = 16;

/// The tiles of an M x N result.
#[derive(Clone, Copy)]
struct Tiling {
    program: &'static Program,
    /// Bytes of shared memory of a block.
    shared: u32,
    /// Tiles in all.
    tiles: u64,
}

impl Tiling {
    /// With the tile that does the least work, tails counted. `wide`: rows of the operands are whole chunks.
    fn new(product: &'static Product, element: Element, wide: bool, m: u64, n: u64) -> Self {
        let tiles = |tile: &ProductTile| blocks(m, tile.m) * blocks(n, tile.n);
        let cost = |of: &&Tiled| tiles(&of.tile) * u64::from(of.tile.m * of.tile.n) * of.tile.cost;
        let of =
            (by_element(product, element).iter().min_by_key(cost)).expect("a product has tiles");
        Tiling {
            program: &of.programs[usize::from(wide)],
            shared: of.shared,
            tiles: tiles(&of.tile),
        }
    }

    /// Cuts a sum of `terms` over blocks.
    fn split(&self, terms: u64) -> Split {
        let steps = blocks(terms, step_terms(self.program.element));
        let wanted = (BLOCKS / self.tiles.max(1)).clamp(1, (steps / SPLIT_STEPS).max(1));
        let steps_per_split = steps.div_ceil(wanted).max(1);
        Split {
            steps_per_split: steps_per_split as usize,
            splits: steps.div_ceil(steps_per_split).max(1) as usize,
        }
    }
}

/// A sum over several blocks.
#[derive(Clone, Copy)]
struct Split {
    steps_per_split: usize,
    splits: usize,
}

/// Refuses what the kernels' 32-bit counters cannot hold: `n` images of `c` channels in and `k` out.
pub(super) fn check(n: usize, window: &Window, c: usize, k: usize) -> Result<()> {
    // Counters run up to a step past their end.
    const LIMIT: u128 = (1 << 31) - 1024;
    let w = window;
    let too_large = [
        [n, w.h, w.w],
        [n, w.p, w.q],
        [w.h.max(w.r), w.w.max(w.s), c],
        [w.p.max(w.r), w.q.max(w.s), k],
    ]
    .iter()
    .any(|sizes| sizes.iter().map(|size| *size as u128).product::<u128>() > LIMIT);
    if too_large {
        return Err(Error::Invalid(format!(
            "a {}x{} convolution of {n} images of {}x{} from {c} to {k} channels has more numbers than the CUDA \
             kernels can count: use a smaller batch or smaller images",
            w.r, w.s, w.h, w.w
        )));
    }
    Ok(())
}

/// Whether rows of `len` elements are whole chunks.
fn is_chunks(element: Element, len: usize) -> bool {
    (len * element.bytes()).is_multiple_of(CHUNK_BYTES as usize)
}

/// Whether chunks begin at `address`.
pub(super) fn is_aligned(address: Address) -> bool {
    address.0.is_multiple_of(u64::from(CHUNK_BYTES))
}
