//! Sums of tiles' partial results.

use super::driver::Driver;
use super::launch::{self, Address, word};
use super::tiles::REDUCE;
use super::{Cuda, blocks};
use crate::Result;

/// `out[i] = sum over tiles of partials[tile][i]` for i < len, both by address.
pub(super) fn sum_tiles<D: Driver>(
    cuda: &mut Cuda<D>,
    partials: Address,
    tiles: usize,
    len: usize,
    out: Address,
) -> Result<()> {
    let kernel = launch::SumTiles {
        partials,
        tiles: word(tiles),
        len: len as u64,
        out,
    };
    let grid = [blocks(len as u64, REDUCE[0].threads), 1, 1];
    cuda.launch(&REDUCE[0], grid, 0, kernel)
}
