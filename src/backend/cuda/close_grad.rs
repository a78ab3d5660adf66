//! The finish of a complete gradient, in place.

use super::columns::Columns;
use super::driver::Driver;
use super::launch::{self, Address, word};
use super::tiles::{CLOSE_GRAD, CLOSE_GRAD_UNROLL, REDUCE, WARP, by_channels};
use super::{Buffer, Cuda, blocks};
use crate::Result;
use crate::backend::geometry::Rows;
use crate::backend::{CloseGrad, GradTarget, sums};

pub(super) fn close<D: Driver>(
    cuda: &mut Cuda<D>,
    op: CloseGrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let CloseGrad { rows, g, close } = op;
    let program = by_channels(&CLOSE_GRAD, g.element, rows.c);
    let columns = Columns::new(rows, program, CLOSE_GRAD_UNROLL);
    let tiles = columns.tiles();
    let partials = match close.sums {
        Some(_) => cuda.scratch(tiles * sums::len(rows.c))?,
        None => Address::NULL,
    };
    let normalised = close.value.affine.is_some();
    let kernel = launch::CloseGrad {
        columns: columns.into(),
        value: close.value.into(),
        g: g.at(0),
        partials,
    };
    cuda.launch(program, columns.grid(), 0, kernel)?;
    let Some(sums) = close.sums else {
        return Ok(());
    };
    let kernel = launch::CloseGradSums {
        partials,
        tiles: word(tiles),
        channels: word(rows.c),
        normalised: normalised.into(),
        sums: sums.at(0),
    };
    let grid = [blocks(rows.c as u64, WARP), 3, 1];
    cuda.launch(&REDUCE[0], grid, 0, kernel)
}

/// What every operation does with a gradient it has just written: the finish, if it was the last to contribute.
pub(super) fn finish<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    dx: GradTarget<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let Some(finish) = dx.close else {
        return Ok(());
    };
    let op = CloseGrad {
        rows,
        g: dx.g,
        close: finish,
    };
    close(cuda, op)
}
