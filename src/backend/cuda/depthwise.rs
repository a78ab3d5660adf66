//! Depthwise convolution: the choice of programs, and how wgrad's sum over pixels is cut into tiles.

use super::driver::Driver;
use super::launch::{self, Address};
use super::tiles::{CONV_DEPTHWISE, Program, RUN, WARP, by_element};
use super::tiling::is_aligned;
use super::{Buffer, Cuda, blocks, close_grad, conv, epilogue, reduce};
use crate::Result;
use crate::backend::geometry::{PerChannel, Rows};
use crate::backend::{DepthwiseDgrad, DepthwiseFprop, DepthwiseWgrad, Element};

/// Blocks of wgrad to aim at: every multiprocessor of the largest cards gets a few.
const BLOCKS: u64 = 1024;

/// The fewest runs per thread of wgrad, so that adding up the tiles costs little in comparison.
const RUNS: u64 = 4;

/// A program, and how it sees the geometry.
struct Choice {
    program: &'static Program,
    /// Threads across the channels.
    lanes: u64,
    /// Blocks of wgrad in z: one per tap, or 1 where a block takes all taps.
    taps: u64,
}

fn choose(geometry: &PerChannel, element: Element, aligned: bool) -> Choice {
    let PerChannel { c, window, .. } = *geometry;
    let [scalar, vector, unit_stride, stride_2] = by_element(&CONV_DEPTHWISE, element);
    let any_window = (window.r * window.s) as u64;
    let (program, taps) = match (window.r, window.s, window.stride) {
        _ if !c.is_multiple_of(4) || !aligned => (scalar, any_window),
        (3, 3, 1) => (unit_stride, 1),
        (3, 3, 2) => (stride_2, 1),
        _ => (vector, any_window),
    };
    Choice {
        program,
        lanes: c as u64 / u64::from(program.vector),
        taps,
    }
}

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: DepthwiseFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let DepthwiseFprop {
        geometry,
        x,
        params,
        filter,
        y,
        epilogue,
    } = op;
    let PerChannel { n, c, window } = geometry;
    conv::check(n, &window, c, c)?;
    let weights = params.at(filter.weights);
    let choice = choose(&geometry, y.element, is_aligned(weights));
    let kernel = launch::DepthwiseFprop {
        geometry: geometry.into(),
        x: x.into(),
        w: weights,
        epilogue: epilogue::in_kernel(&epilogue, params, filter),
        y: y.at(0),
    };
    let threads = choice.lanes * blocks(window.q as u64, RUN) * window.p as u64;
    let grid = [blocks(threads, choice.program.threads), n as u64, 1];
    cuda.launch(choice.program, grid, 0, kernel)?;
    let rows = Rows {
        pixels: geometry.pixels_out(),
        c,
    };
    epilogue::finish(cuda, rows, y, epilogue)
}

pub(super) fn dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    op: DepthwiseDgrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let DepthwiseDgrad {
        geometry,
        dy,
        params,
        filter,
        dx,
    } = op;
    let PerChannel { n, c, window } = geometry;
    conv::check(n, &window, c, c)?;
    let weights = params.at(filter.weights);
    let choice = choose(&geometry, dx.g.element, is_aligned(weights));
    let kernel = launch::DepthwiseDgrad {
        geometry: geometry.into(),
        dy: dy.into(),
        w: weights,
        accumulate: dx.accumulate.into(),
        dx: dx.g.at(0),
    };
    // Runs begin at multiples of RUN in the padded row.
    let left = window.pad.left as u64;
    let runs = blocks(window.w as u64 + left, RUN) - left / u64::from(RUN);
    let threads = choice.lanes * runs * window.h as u64;
    let grid = [blocks(threads, choice.program.threads), n as u64, 1];
    cuda.launch(choice.program, grid, 0, kernel)?;
    let rows = Rows {
        pixels: geometry.pixels_in(),
        c,
    };
    close_grad::finish(cuda, rows, dx)
}

pub(super) fn wgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    op: DepthwiseWgrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let DepthwiseWgrad {
        geometry,
        dy,
        x,
        grads,
        filter,
    } = op;
    let PerChannel { n, c, window } = geometry;
    conv::check(n, &window, c, c)?;
    // The gradients are written element by element, wherever they are.
    let choice = choose(&geometry, x.raw.element, true);
    let lanes = choice.lanes.next_power_of_two().min(u64::from(WARP));
    let slots = u64::from(choice.program.threads) / lanes;
    let runs = (n * window.p) as u64 * blocks(window.q as u64, RUN);
    let across = choice.lanes.div_ceil(lanes);
    let wanted = (BLOCKS / (across * choice.taps)).clamp(1, (runs / (slots * RUNS)).max(1));
    let runs_per_tile = runs.div_ceil(wanted).max(1);
    let tiles = runs.div_ceil(runs_per_tile).max(1) as usize;

    let len = geometry.filter_len();
    let dw = grads.at(filter.weights);
    let dbias = filter.bias.map(|bias| grads.at(bias));
    // Tiles' weights, then tiles' biases.
    let (partials, bias_partials) = match tiles {
        1 => (dw, dbias),
        _ => {
            let partials = cuda.scratch(tiles * (len + c))?;
            let bias_partials = partials.floats(tiles * len);
            (partials, dbias.map(|_| bias_partials))
        }
    };
    let kernel = launch::DepthwiseWgrad {
        geometry: geometry.into(),
        dy: dy.into(),
        x: x.into(),
        lanes: lanes as u32,
        runs_per_tile: runs_per_tile as u32,
        dw: partials,
        dbias: bias_partials.unwrap_or(Address::NULL),
    };
    let grid = [across, tiles as u64, choice.taps];
    cuda.launch(choice.program, grid, 0, kernel)?;
    if tiles > 1 {
        reduce::sum_tiles(cuda, partials, tiles, len, dw)?;
        if let (Some(partials), Some(dbias)) = (bias_partials, dbias) {
            reduce::sum_tiles(cuda, partials, tiles, c, dbias)?;
        }
    }
    Ok(())
}
