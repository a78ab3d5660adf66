//! The largest value of each window, and the mean of an image.

use super::columns::lanes;
use super::driver::Driver;
use super::tiles::{POOL, by_channels};
use super::{Buffer, Cuda, args, blocks, close_grad};
use crate::backend::geometry::{GlobalPool, PerChannel, Rows};
use crate::backend::{GlobalAvgPoolDgrad, GlobalAvgPoolFprop, MaxPoolDgrad, MaxPoolFprop};
use crate::{Error, Result};

/// Bytes of shared memory that every card gives a block without being asked.
const SHARED: usize = 48 << 10;

pub(super) fn max_fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: MaxPoolFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let MaxPoolFprop { ref geometry, x, y } = op;
    let PerChannel { n, c, window } = *geometry;
    let program = by_channels(&POOL, c);
    let lanes = lanes(c, program.vector);
    let args = [
        args::per_channel(geometry),
        args::pending(&x),
        args::u32(lanes as usize),
        args::buffer(y),
    ];
    let grid = [
        blocks((window.p * window.q) as u64, program.threads / lanes),
        blocks(c as u64, program.vector * lanes),
        n as u64,
    ];
    cuda.launch(program, "max_pool_fprop", grid, 0, &args)
}

pub(super) fn max_dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    op: MaxPoolDgrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let MaxPoolDgrad {
        ref geometry,
        dy,
        x,
        dx,
    } = op;
    let PerChannel { n, c, window } = *geometry;
    let program = by_channels(&POOL, c);
    let vector = program.vector;
    let tile = program.constant("TILE");
    // Windows along an axis that can touch a tile.
    let across = (window.r.max(window.s) + tile as usize - 2) / window.stride + 1;
    let shared = |lanes: u32| across * across * (lanes * vector) as usize * size_of::<u16>();
    let mut lanes = lanes(c, vector);
    while shared(lanes) > SHARED && lanes > 1 {
        lanes /= 2;
    }
    if shared(lanes) > SHARED || window.r * window.s > usize::from(u16::MAX) {
        return Err(Error::Invalid(format!(
            "max pooling with a window of {}x{} is more than the GPU's kernel can do",
            window.r, window.s
        )));
    }
    let tiles = blocks(window.w as u64, tile);
    let args = [
        args::per_channel(geometry),
        args::pending(&x),
        args::buffer(dy),
        args::u32(lanes as usize),
        args::u32(tiles as usize),
        args::u32(across),
        args::u32(usize::from(dx.accumulate)),
        args::buffer(dx.g),
    ];
    let grid = [
        blocks(window.h as u64, tile) * tiles,
        blocks(c as u64, vector * lanes),
        n as u64,
    ];
    cuda.launch(program, "max_pool_dgrad", grid, shared(lanes) as u32, &args)?;
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
    let args = [
        args::pending(&x),
        args::u64(len),
        args::u32(pixels),
        args::u32(c),
        args::buffer(y),
    ];
    let program = by_channels(&POOL, c);
    let grid = [blocks(len, program.vector * program.threads), 1, 1];
    cuda.launch(program, "global_avg_pool_fprop", grid, 0, &args)
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
    let args = [
        args::buffer(dy),
        args::u64(rows.len() as u64),
        args::u32(pixels),
        args::u32(c),
        args::u32(usize::from(dx.accumulate)),
        args::buffer(dx.g),
    ];
    let program = by_channels(&POOL, c);
    let tile = program.vector * program.threads;
    let grid = [blocks(rows.len() as u64, tile), 1, 1];
    cuda.launch(program, "global_avg_pool_dgrad", grid, 0, &args)?;
    close_grad::finish(cuda, rows, dx)
}
