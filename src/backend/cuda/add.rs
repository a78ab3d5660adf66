//! Addition of residual branches, storing of pending values, and the passing on of gradients.

use super::driver::Driver;
use super::tiles::{ADD, Program, by_channels};
use super::{Buffer, Cuda, Grid, args, blocks, close_grad};
use crate::Result;
use crate::backend::geometry::Rows;
use crate::backend::{AddDgrad, AddFprop};

/// The program and its blocks for `rows`.
fn plan(rows: Rows) -> (&'static Program, Grid) {
    let program = by_channels(&ADD, rows.c);
    let tile = program.threads * program.vector;
    (program, [blocks(rows.len() as u64, tile), 1, 1])
}

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: AddFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let AddFprop {
        rows,
        a,
        b,
        activation,
        y,
    } = op;
    let (code, slope) = args::activation(&activation);
    let args = [
        args::pending(&a),
        b.map_or_else(args::no_pending, |b| args::pending(&b)),
        args::u32(code),
        args::address(slope),
        args::u64(rows.len() as u64),
        args::u32(rows.c),
        args::buffer(y),
    ];
    let (program, grid) = plan(rows);
    cuda.launch(program, "add_fprop", grid, 0, &args)
}

pub(super) fn dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    op: AddDgrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let AddDgrad { rows, dy, dx } = op;
    let args = [
        args::pending_grad(&dy),
        args::u64(rows.len() as u64),
        args::u32(rows.c),
        args::u32(usize::from(dx.accumulate)),
        args::buffer(dx.g),
    ];
    let (program, grid) = plan(rows);
    cuda.launch(program, "add_dgrad", grid, 0, &args)?;
    close_grad::finish(cuda, rows, dx)
}
