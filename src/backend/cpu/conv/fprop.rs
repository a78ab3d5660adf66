//! y = conv(x, w) (+ bias), then the epilogue on the tile while it is in the cache.

use std::ops::Range;

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::gemm::{Block, Grid, Mat, MatMut, par_blocks, product};
use super::super::machine::vectorised;
use super::super::panel::{Finish, PANEL_ALIGN, ROW_ALIGN, multiply, pack, packed_len};
use super::super::pending::{Reader, sliced};
use super::super::tensor::{Tensor, round_all};
use super::super::tiles::with_workspace;
use super::im2col::Gather;
use super::prepared::parts;
use super::{BLOCKS, float_filter, split_panels, winograd};
use crate::backend::geometry::Conv2d;
use crate::backend::{Activation, Conv2dFprop, Epilogue};

/// Elements of a tile's input that the second-level cache holds beside a panel of filters.
const CACHED: usize = 64 << 10;

/// Channels whose moments are taken together: their accumulators stay in registers.
const LANES: usize = 32;

/// The filters as a block multiplies with them.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// For Winograd's algorithm.
    Transformed(&'a [f32]),
    /// For the inner kernel.
    Panels(&'a [f32]),
    /// K x RSC.
    Stored(&'a [f32]),
}

pub(in super::super) fn fprop(scratch: &mut Buffer, op: Conv2dFprop<'_, Buffer>) {
    let Conv2dFprop {
        ref geometry,
        x,
        params,
        filters,
        filter,
        prepared,
        y,
        epilogue,
    } = op;
    let (c, k, pixels) = (geometry.c, geometry.k, geometry.pixels_out());
    let reader = Reader::new(x, c);
    assert!(
        reader.raw.len() >= geometry.pixels_in() * c,
        "x of {geometry:?}"
    );
    let bias = filter.bias.map(|at| &params[at..][..k]);
    let gather = Gather::forward(geometry);
    let columns = gather.columns();
    let for_inference = matches!(epilogue, Epilogue::Activate { .. });
    let prepared = prepared.map(|prepared| parts(geometry, prepared));
    let by_winograd = prepared.is_some() && winograd::pays(geometry);
    let (residual, activation, mut moments) = match epilogue {
        Epilogue::Raw => (None, Activation::Identity, None),
        Epilogue::Moments(moments) => (None, Activation::Identity, Some(moments)),
        Epilogue::Activate {
            residual,
            activation,
        } => (residual, sliced(activation, k), None),
    };
    let residual = residual.map(Buffer::tensor);
    if let Some(residual) = residual {
        assert!(residual.len() >= pixels * k, "residual");
    }
    let grid = if by_winograd {
        winograd::grid(geometry)
    } else {
        grid(geometry)
    };
    let partial_len = if moments.is_some() {
        2 * grid.col_block
    } else {
        0
    };
    // Where one tile holds all pixels, packing for this call alone would take as long as it saves.
    let packed_len = match prepared {
        Some(_) => 0,
        None if grid.row_blocks() > 1 || for_inference => packed_len(k, columns),
        None => 0,
    };
    let partials_len = grid.blocks() * partial_len;
    let (weights, rest) = match prepared {
        Some(_) => (&[][..], scratch.at_least(partials_len)),
        None => float_filter(
            filters,
            filter,
            geometry.filter_len(),
            scratch,
            packed_len + partials_len,
        ),
    };
    let (packed, partials) = rest.split_at_mut(packed_len);
    let form = match prepared {
        Some([_, transformed]) if by_winograd => Form::Transformed(transformed),
        Some([panels, _]) => Form::Panels(panels),
        None if packed_len > 0 => {
            pack(weights, columns, packed);
            Form::Panels(packed)
        }
        None => Form::Stored(weights),
    };
    let element = y.tensor().element();
    let tile = |block: &mut Block<'_>, residual: Option<(&[f32], usize)>, partial: &mut [f32]| {
        let (span, out) = (block.cols.clone(), &mut block.out);
        let finish = Finish {
            bias: bias.map(|bias| &bias[span.clone()]),
            residual,
            activation: activation.channels(span.clone()),
        };
        match form {
            Form::Transformed(filters) => {
                let panels = &filters[winograd::packed_filters(geometry, span.start)..];
                winograd::fprop(geometry, reader, block.rows.start, panels, out, finish);
            }
            Form::Panels(panels) => {
                let panels = &panels[span.start * columns..];
                gather.windows(reader, block.rows.clone(), |windows| {
                    multiply(out, windows, panels, finish);
                });
            }
            Form::Stored(weights) => {
                let weights = &weights[span.start * columns..];
                few_pixels(
                    &gather,
                    reader,
                    block.rows.clone(),
                    weights,
                    out,
                    finish.bias,
                );
            }
        }
        if partial_len > 0 {
            let (mean, squares) = partial.split_at_mut(grid.col_block);
            for i in 0..out.rows() {
                round_all(element, out.row(i));
            }
            tile_moments(out, mean, squares);
        }
    };
    par_blocks(
        y.tensor_mut(),
        grid,
        false,
        partials,
        partial_len,
        |mut block, partial| {
            let column = block.cols.start;
            let first = |pixel: usize| pixel * k + column;
            match residual {
                None => tile(&mut block, None, partial),
                Some(Tensor::F32(residual)) => {
                    let residual = &residual[first(block.rows.start)..];
                    tile(&mut block, Some((residual, k)), partial);
                }
                Some(residual) => {
                    let (rows, width) = (block.rows.clone(), block.cols.len());
                    with_workspace(rows.len() * width, |floats| {
                        for (pixel, row) in rows.zip(floats.chunks_exact_mut(width)) {
                            residual.read(first(pixel)..first(pixel) + width, row);
                        }
                        tile(&mut block, Some((floats, width)), partial);
                    });
                }
            }
        },
    );
    if let Some(moments) = &mut moments {
        let (mean, variance) = moments.split_at_mut(k);
        merge_moments(grid, partials, mean, &mut variance[..k]);
    }
}

/// A block whose filters are used once, read as they are stored: y = columns * filter^T + bias.
fn few_pixels(
    gather: &Gather,
    reader: Reader<'_>,
    pixels: Range<usize>,
    weights: &[f32],
    y: &mut MatMut<'_>,
    bias: Option<&[f32]>,
) {
    let (columns, filters) = (gather.columns(), y.cols());
    if let Some(bias) = bias {
        for i in 0..y.rows() {
            y.row(i).copy_from_slice(bias);
        }
    }
    let mut accumulate = bias.is_some();
    gather.unroll(reader, pixels, 0..columns, |chunk, tile| {
        let w = Mat::new(&weights[chunk.start..], filters, chunk.len(), columns);
        product(y, tile, w.t(), accumulate);
        accumulate = true;
    });
}

/// Cuts the output into tiles whose windows stay in the second-level cache. Splits the filters too where there are few
/// pixels.
fn grid(geometry: &Conv2d) -> Grid {
    let (k, pixels) = (geometry.k, geometry.pixels_out());
    let step = geometry.window.stride;
    let fitting = (CACHED / (geometry.c * step * step)).clamp(4 * ROW_ALIGN, 16 * ROW_ALIGN);
    let tiles = pixels.div_ceil(fitting).max(1);
    let row_block = pixels.div_ceil(tiles).next_multiple_of(ROW_ALIGN);
    let splits = BLOCKS.div_ceil(tiles).min(k.div_ceil(PANEL_ALIGN));
    Grid {
        rows: pixels,
        cols: k,
        row_block,
        col_block: split_panels(k, splits),
    }
}

/// Mean of each column, and the sum of squared deviations from it, in two passes over the cached tile. The first adds
/// up differences from the first row, so that data far from zero keeps its digits.
fn tile_moments(tile: &mut MatMut<'_>, mean: &mut [f32], squares: &mut [f32]) {
    let (rows, cols) = (tile.rows(), tile.cols());
    let (mean, squares) = (&mut mean[..cols], &mut squares[..cols]);
    mean.copy_from_slice(tile.row(0));
    squares.fill(0.0);
    add_over_rows(
        tile,
        squares,
        #[inline(always)]
        |y, pivot| y - pivot,
        mean,
    );
    let scale = 1.0 / rows as f32;
    for (mean, sum) in mean.iter_mut().zip(&mut *squares) {
        *mean += *sum * scale;
        *sum = 0.0;
    }
    add_over_rows(
        tile,
        squares,
        #[inline(always)]
        |y, mean| (y - mean) * (y - mean),
        mean,
    );
}

/// sums[j] += the sum over all rows of f(tile[i][j], centre[j]), a few rows at a time with the sums in registers: the
/// tile is walked in memory order, and a sum is loaded and stored once for several rows.
#[inline(always)]
fn add_over_rows(
    tile: &mut MatMut<'_>,
    sums: &mut [f32],
    f: impl Fn(f32, f32) -> f32,
    centre: &[f32],
) {
    const ROWS: usize = 8;
    let (rows, cols) = (tile.rows(), tile.cols());
    vectorised(
        #[inline(always)]
        || {
            for first in (0..rows).step_by(ROWS) {
                let group = first..(first + ROWS).min(rows);
                let mut start = 0;
                while start + LANES <= cols {
                    let lanes = start..start + LANES;
                    let c: [f32; LANES] = centre[lanes.clone()].try_into().expect("lanes");
                    let mut sum = [0.0f32; LANES];
                    for i in group.clone() {
                        let row = &tile.row(i)[lanes.clone()];
                        for j in 0..LANES {
                            sum[j] += f(row[j], c[j]);
                        }
                    }
                    for (total, sum) in sums[lanes].iter_mut().zip(sum) {
                        *total += sum;
                    }
                    start += LANES;
                }
                for j in start..cols {
                    let mut sum = 0.0;
                    for i in group.clone() {
                        sum += f(tile.row(i)[j], centre[j]);
                    }
                    sums[j] += sum;
                }
            }
        },
    );
}

/// Mean and biased variance of all tiles together (Chan, Golub, LeVeque 1983), in tile order and f64:
/// sum of squares = sum over tiles of squares_t + n_t (mean_t - mean)^2.
fn merge_moments(grid: Grid, partials: &[f32], mean: &mut [f32], variance: &mut [f32]) {
    const CHANNELS: usize = 64;
    let (tiles, splits, width) = (grid.row_blocks(), grid.col_blocks(), grid.col_block);
    let pixels = grid.rows as f64;
    let count = |tile: usize| (grid.rows - tile * grid.row_block).min(grid.row_block) as f64;
    mean.par_chunks_mut(CHANNELS)
        .zip(variance.par_chunks_mut(CHANNELS))
        .enumerate()
        .for_each(|(part, (mean, variance))| {
            // The partials of channel j in one tile.
            let at = |tile: usize, j: usize| {
                let channel = part * CHANNELS + j;
                let block = tile * splits + channel / width;
                block * 2 * width + channel % width
            };
            let mut sum = [0.0f64; CHANNELS];
            for tile in 0..tiles {
                for (j, sum) in sum[..mean.len()].iter_mut().enumerate() {
                    *sum += count(tile) * f64::from(partials[at(tile, j)]);
                }
            }
            let centre = sum.map(|s| s / pixels);
            let mut squares = [0.0f64; CHANNELS];
            for tile in 0..tiles {
                for (j, squares) in squares[..mean.len()].iter_mut().enumerate() {
                    let d = f64::from(partials[at(tile, j)]) - centre[j];
                    *squares += f64::from(partials[at(tile, j) + width]) + count(tile) * d * d;
                }
            }
            for (j, (mean, variance)) in mean.iter_mut().zip(variance).enumerate() {
                *mean = centre[j] as f32;
                *variance = (squares[j] / pixels) as f32;
            }
        });
}
