//! The choice of a matrix product's tiles, and how a long sum is split over blocks.

use super::blocks;
use super::launch::Address;
use super::tiles::{CHUNK_BYTES, Product, ProductTile, Program, Tiled, by_element, step_terms};
use crate::backend::Element;

/// Blocks to aim at where a sum can be split: every multiprocessor of the largest cards gets a few.
const BLOCKS: u64 = 512;

/// The fewest steps per split, so that starting the splits and adding them up costs little in comparison.
const SPLIT_STEPS: u64 = 16;

/// The tiles of an M x N result.
#[derive(Clone, Copy)]
pub(super) struct Tiling {
    pub(super) program: &'static Program,
    pub(super) tile: ProductTile,
    /// Bytes of shared memory of a block.
    pub(super) shared: u32,
    /// Tiles in all.
    pub(super) tiles: u64,
}

impl Tiling {
    /// With the tile that does the least work, tails counted. `wide`: rows of the operands are whole chunks.
    pub(super) fn new(
        product: &'static Product,
        element: Element,
        wide: bool,
        m: u64,
        n: u64,
    ) -> Self {
        let cost =
            |of: &&Tiled| of.tile.cover(m, n) * u64::from(of.tile.m * of.tile.n) * of.tile.cost;
        let of =
            (by_element(product, element).iter().min_by_key(cost)).expect("a product has tiles");
        Tiling {
            program: &of.programs[usize::from(wide)],
            tile: of.tile,
            shared: of.shared,
            tiles: of.tile.cover(m, n),
        }
    }

    /// Cuts a sum of `terms` over blocks.
    pub(super) fn split(&self, terms: u64) -> Split {
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
pub(super) struct Split {
    pub(super) steps_per_split: usize,
    pub(super) splits: usize,
}

/// Whether rows of `len` elements are whole chunks.
pub(super) fn is_chunks(element: Element, len: usize) -> bool {
    (len * element.bytes()).is_multiple_of(CHUNK_BYTES as usize)
}

/// Whether chunks begin at `address`.
pub(super) fn is_aligned(address: Address) -> bool {
    address.0.is_multiple_of(u64::from(CHUNK_BYTES))
}
