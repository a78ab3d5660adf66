//! Addition of residual branches, storing of pending values, and the passing on of gradients.

use super::driver::Driver;
use super::tiles::ADD;
use super::{Buffer, Cuda, args, blocks, close_grad};
use crate::Result;
use crate::backend::geometry::Rows;
use crate::backend::{AddDgrad, AddFprop};

/// The kernel and its blocks for `rows`: four channels a thread where C allows it.
fn plan(rows: Rows, kernels: [&'static str; 2]) -> (&'static str, [u64; 3]) {
    let len = rows.len() as u64;
    match rows.c % 4 {
        0 => (kernels[1], [blocks(len / 4, ADD.threads), 1, 1]),
        _ => (kernels[0], [blocks(len, ADD.threads), 1, 1]),
    }
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
    let (kernel, grid) = plan(rows, ["add_fprop", "add_fprop4"]);
    cuda.launch(&ADD, kernel, grid, 0, &args)
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
    let (kernel, grid) = plan(rows, ["add_dgrad", "add_dgrad4"]);
    cuda.launch(&ADD, kernel, grid, 0, &args)?;
    close_grad::finish(cuda, rows, dx)
}
