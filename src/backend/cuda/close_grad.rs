//! The finish of a complete gradient, in place.

use super::columns::Columns;
use super::driver::Driver;
use super::tiles::{CLOSE_GRAD, REDUCE, WARP, by_channels};
use super::{Buffer, Cuda, args, blocks};
use crate::Result;
use crate::backend::geometry::Rows;
use crate::backend::{CloseGrad, GradTarget, sums};

pub(super) fn close<D: Driver>(
    cuda: &mut Cuda<D>,
    op: CloseGrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let CloseGrad { rows, g, close } = op;
    let program = by_channels(&CLOSE_GRAD, rows.c);
    let columns = Columns::new(rows, program, program.constant("UNROLL"));
    let tiles = columns.tiles();
    let partials = match close.sums {
        Some(_) => args::address(cuda.scratch(tiles * sums::len(rows.c))?),
        None => args::null(),
    };
    let walk = [
        columns.arg(),
        args::pending(&close.value),
        args::buffer(g),
        partials,
    ];
    cuda.launch(program, "close_grad", columns.grid(), 0, &walk)?;
    let Some(sums) = close.sums else {
        return Ok(());
    };
    let merge = [
        partials,
        args::u32(tiles),
        args::u32(rows.c),
        args::u32(usize::from(close.value.affine.is_some())),
        args::buffer(sums),
    ];
    let grid = [blocks(rows.c as u64, WARP), 3, 1];
    cuda.launch(&REDUCE, "close_grad_sums", grid, 0, &merge)
}

/// What every operation does with a gradient it has just written: the finish, if it was the last to contribute.
pub(super) fn finish<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    dx: GradTarget<'_, Buffer<D::Memory>>,
) -> Result<()> {
    match dx.close {
        Some(finish) => close(
            cuda,
            CloseGrad {
                rows,
                g: dx.g,
                close: finish,
            },
        ),
        None => Ok(()),
    }
}
