//! Moments of a batch, and batch norm's coefficients, forward and backward.

use super::columns::Columns;
use super::driver::Driver;
use super::launch::{self, Address, word};
use super::tiles::{BATCH_NORM, BATCH_NORM_MOMENTS, MOMENTS_CHUNK, WARP, by_channels, by_element};
use super::{Buffer, Cuda, Grid, blocks};
use crate::Result;
use crate::backend::{BatchNormBprop, BatchNormFprop, BatchNormMoments, PReluBprop, bn};

/// One thread per channel.
fn per_channel(c: usize) -> Grid {
    [blocks(c as u64, BATCH_NORM[0].threads), 1, 1]
}

pub(super) fn moments<D: Driver>(
    cuda: &mut Cuda<D>,
    op: BatchNormMoments<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let BatchNormMoments { rows, x, moments } = op;
    if rows.is_empty() {
        return Ok(());
    }
    let program = by_channels(&BATCH_NORM_MOMENTS, x.element, rows.c);
    let columns = Columns::new(rows, program, MOMENTS_CHUNK);
    let tiles = columns.tiles();
    let partials = cuda.scratch(tiles * bn::moments_len(rows.c))?;
    let kernel = launch::BatchNormMoments {
        columns: columns.into(),
        x: x.at(0),
        partials,
    };
    cuda.launch(program, columns.grid(), 0, kernel)?;
    let kernel = launch::BatchNormMerge {
        columns: columns.into(),
        x: x.at(0),
        partials,
        tiles: word(tiles),
        moments: moments.at(0),
    };
    let grid = [blocks(rows.c as u64, WARP), 1, 1];
    cuda.launch(by_element(&BATCH_NORM, x.element), grid, 0, kernel)
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
    let param = |at: Option<usize>| at.map_or(Address::NULL, |at| params.at(at));
    let kernel = launch::BatchNormFprop {
        moments: moments.at(0),
        channels: word(rows.c),
        unbias: rows.pixels as f32 / (rows.pixels.max(2) - 1) as f32,
        epsilon: at.epsilon,
        momentum: at.momentum,
        gamma: param(at.gamma),
        beta: param(at.beta),
        statistics: statistics.at(at.statistics),
        forward: forward.at(0),
    };
    cuda.launch(&BATCH_NORM[0], per_channel(rows.c), 0, kernel)
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
    let grad = |at: Option<usize>| at.map_or(Address::NULL, |at| grads.at(at));
    let kernel = launch::BatchNormBprop {
        sums: sums.at(0),
        forward: forward.at(0),
        channels: word(rows.c),
        pixels: rows.pixels as f32,
        d_gamma: grad(at.gamma),
        d_beta: grad(at.beta),
        backward: backward.at(0),
    };
    cuda.launch(&BATCH_NORM[0], per_channel(rows.c), 0, kernel)
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
    let kernel = launch::PreluBprop {
        sums: sums.at(0),
        channels: word(c),
        d_slope: grads.at(slope_at),
    };
    cuda.launch(&BATCH_NORM[0], per_channel(c), 0, kernel)
}
