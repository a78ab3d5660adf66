//! The largest value of each window, and the mean of an image.

use super::columns::lanes;
use super::driver::Driver;
use super::launch::{self, word};
use super::tiles::{POOL, POOL_TILE, by_channels};
use super::{Buffer, Cuda, blocks, close_grad};
use crate::backend::geometry::{GlobalPool, PerChannel, Rows};
use crate::backend::{GlobalAvgPoolDgrad, GlobalAvgPoolFprop, MaxPoolDgrad, MaxPoolFprop};
use crate::{Error, Result};

/// Bytes of shared memory that a block can have on every card without asking for more.
const SHARED: usize = 48 << 10;

pub(super) fn max_fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: MaxPoolFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let MaxPoolFprop { geometry, x, y } = op;
    let PerChannel { n, c, window } = geometry;
    let program = by_channels(&POOL, y.element, c);
    let lanes = lanes(c, program.vector);
    let kernel = launch::MaxPoolFprop {
        geometry: geometry.into(),
        x: x.into(),
        lanes,
        y: y.at(0),
    };
    let grid = [
        blocks((window.p * window.q) as u64, program.threads / lanes),
        blocks(c as u64, program.vector * lanes),
        n as u64,
    ];
    cuda.launch(program, grid, 0, kernel)
}

pub(super) fn max_dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    op: MaxPoolDgrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let MaxPoolDgrad {
        geometry,
        dy,
        x,
        dx,
    } = op;
    let PerChannel { n, c, window } = geometry;
    let program = by_channels(&POOL, dx.g.element, c);
    let vector = program.vector;
    let too_large = || {
        Error::Invalid(format!(
            "max pooling with a window of {}x{} is more than the GPU's kernel can do",
            window.r, window.s
        ))
    };
    if window.r * window.s > usize::from(u16::MAX) {
        return Err(too_large());
    }
    // Windows along an axis that can touch a tile.
    let across = (window.r.max(window.s) + POOL_TILE as usize - 2) / window.stride + 1;
    let shared = |lanes: u32| across * across * (lanes * vector) as usize * size_of::<u16>();
    let mut lanes = lanes(c, vector);
    while shared(lanes) > SHARED && lanes > 1 {
        lanes /= 2;
    }
    if shared(lanes) > SHARED {
        return Err(too_large());
    }
    let tiles = blocks(window.w as u64, POOL_TILE);
    let kernel = launch::MaxPoolDgrad {
        geometry: geometry.into(),
        x: x.into(),
        dy: dy.at(0),
        lanes,
        tiles: tiles as u32,
        across: word(across),
        accumulate: dx.accumulate.into(),
        dx: dx.g.at(0),
    };
    let grid = [
        blocks(window.h as u64, POOL_TILE) * tiles,
        blocks(c as u64, vector * lanes),
        n as u64,
    ];
    cuda.launch(program, grid, shared(lanes) as u32, kernel)?;
    let rows = Rows {
        pixels: geometry.pixels_in(),
        c,
    };
    close_grad::finish(cuda, rows, dx)
}

pub(super) fn global_avg_fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: GlobalAvgPoolFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let GlobalAvgPoolFprop { geometry, x, y } = op;
    let GlobalPool { n, pixels, c } = geometry;
    let len = (n * c) as u64;
    let program = by_channels(&POOL, y.element, c);
    let kernel = launch::GlobalAvgPoolFprop {
        x: x.into(),
        len,
        pixels: word(pixels),
        channels: word(c),
        y: y.at(0),
    };
    let grid = [blocks(len, program.vector * program.threads), 1, 1];
    cuda.launch(program, grid, 0, kernel)
}

pub(super) fn global_avg_dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    op: GlobalAvgPoolDgrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let GlobalAvgPoolDgrad { geometry, dy, dx } = op;
    let GlobalPool { n, pixels, c } = geometry;
    let rows = Rows {
        pixels: n * pixels,
        c,
    };
    let program = by_channels(&POOL, dx.g.element, c);
    let kernel = launch::GlobalAvgPoolDgrad {
        dy: dy.at(0),
        len: rows.len() as u64,
        pixels: word(pixels),
        channels: word(c),
        accumulate: dx.accumulate.into(),
        dx: dx.g.at(0),
    };
    let tile = program.vector * program.threads;
    let grid = [blocks(rows.len() as u64, tile), 1, 1];
    cuda.launch(program, grid, 0, kernel)?;
    close_grad::finish(cuda, rows, dx)
}
