//! Moments of a batch, and batch norm's coefficients, forward and backward.

use super::columns::Columns;
use super::driver::Driver;
use super::tiles::{BATCH_NORM, BATCH_NORM_MOMENTS, WARP, by_channels};
use super::{Buffer, Cuda, Grid, args, blocks};
use crate::Result;
use crate::backend::{BatchNormBprop, BatchNormFprop, BatchNormMoments, PReluBprop, bn};

/// A thread a channel.
fn per_channel(c: usize) -> Grid {
    [blocks(c as u64, BATCH_NORM.threads), 1, 1]
}

pub(super) fn moments<D: Driver>(
    cuda: &mut Cuda<D>,
    op: BatchNormMoments<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let BatchNormMoments { rows, x, moments } = op;
    if rows.is_empty() {
        return Ok(());
    }
    let program = by_channels(&BATCH_NORM_MOMENTS, rows.c);
    let columns = Columns::new(rows, program, program.constant("CHUNK"));
    let tiles = columns.tiles();
    let partials = args::address(cuda.scratch(tiles * bn::moments_len(rows.c))?);
    let walk = [columns.arg(), args::buffer(x), partials];
    cuda.launch(program, "batch_norm_moments", columns.grid(), 0, &walk)?;
    let merge = [
        columns.arg(),
        args::buffer(x),
        partials,
        args::u32(tiles),
        args::buffer(moments),
    ];
    let grid = [blocks(rows.c as u64, WARP), 1, 1];
    cuda.launch(&BATCH_NORM, "batch_norm_merge", grid, 0, &merge)
}

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: BatchNormFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let BatchNormFprop {
        rows,
        moments,
        params,
        at,
        statistics,
        forward,
    } = op;
    let param = |at: Option<usize>| at.map_or_else(args::null, |at| args::address(params.at(at)));
    let unbias = rows.pixels as f32 / (rows.pixels.max(2) - 1) as f32;
    let args = [
        args::buffer(moments),
        args::u32(rows.c),
        args::f32(unbias),
        args::f32(at.epsilon),
        args::f32(at.momentum),
        param(at.gamma),
        param(at.beta),
        args::address(statistics.at(at.statistics)),
        args::buffer(forward),
    ];
    let grid = per_channel(rows.c);
    cuda.launch(&BATCH_NORM, "batch_norm_fprop", grid, 0, &args)
}

pub(super) fn bprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: BatchNormBprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let BatchNormBprop {
        rows,
        sums,
        forward,
        grads,
        at,
        backward,
    } = op;
    let grad = |at: Option<usize>| at.map_or_else(args::null, |at| args::address(grads.at(at)));
    let args = [
        args::buffer(sums),
        args::buffer(forward),
        args::u32(rows.c),
        args::f32(rows.pixels as f32),
        grad(at.gamma),
        grad(at.beta),
        args::buffer(backward),
    ];
    let grid = per_channel(rows.c);
    cuda.launch(&BATCH_NORM, "batch_norm_bprop", grid, 0, &args)
}

pub(super) fn prelu_bprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: PReluBprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let PReluBprop {
        c,
        sums,
        grads,
        slope_at,
    } = op;
    let args = [
        args::buffer(sums),
        args::u32(c),
        args::address(grads.at(slope_at)),
    ];
    cuda.launch(&BATCH_NORM, "prelu_bprop", per_channel(c), 0, &args)
}
