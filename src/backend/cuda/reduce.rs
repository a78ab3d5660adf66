//! Sums of tiles' partial results, in tile order.

use super::args;
use super::driver::Driver;
use super::tiles::REDUCE;
use super::{Cuda, blocks};
use crate::Result;

/// `out[i] = sum over tiles of partials[tile][i]` for i < len, both by address.
pub(super) fn sum_tiles<D: Driver>(
    cuda: &mut Cuda<D>,
    partials: u64,
    tiles: usize,
    len: usize,
    out: u64,
) -> Result<()> {
    let args = [
        args::address(partials),
        args::u32(tiles),
        args::u64(len as u64),
        args::address(out),
    ];
    let grid = [blocks(len as u64, REDUCE.threads), 1, 1];
    cuda.launch(&REDUCE, "sum_tiles", grid, 0, &args)
}
