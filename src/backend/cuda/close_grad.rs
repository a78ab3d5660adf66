//! The finish of a complete gradient, in place.

use super::driver::Driver;
use super::tiles::CLOSE_GRAD;
use super::tiles::WARP;
use super::{Buffer, Cuda, args, blocks, reduce};
use crate::Result;
use crate::backend::geometry::Rows;
use crate::backend::{Close, sums};

pub(super) fn close<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    g: &mut Buffer<D::Memory>,
    close: Close<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let tiles = blocks(rows.pixels as u64, CLOSE_GRAD.constant("ROWS"));
    let len = sums::len(rows.c);
    let partials = match close.sums {
        Some(_) => cuda.scratch(tiles as usize * len)?,
        None => 0,
    };
    let args = [
        args::pending(&close.value),
        args::u64(rows.pixels as u64),
        args::u32(rows.c),
        args::buffer(g),
        args::address(partials),
    ];
    let grid = [blocks(rows.c as u64, WARP), tiles, 1];
    cuda.launch(&CLOSE_GRAD, "close_grad", grid, 0, &args)?;
    match close.sums {
        Some(sums) => reduce::sum_tiles(cuda, partials, tiles as usize, len, sums.at(0)),
        None => Ok(()),
    }
}

/// What every operation does with a gradient it has just written: the finish, if it was the last to contribute.
pub(super) fn finish<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    dx: crate::backend::GradTarget<'_, Buffer<D::Memory>>,
) -> Result<()> {
    match dx.close {
        Some(finish) => close(cuda, rows, dx.g, finish),
        None => Ok(()),
    }
}
