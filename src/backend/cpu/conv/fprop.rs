//! y = conv(x, w) (+ bias), then the epilogue on the tile while it is in the cache.

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::gemm::{Grid, Mat, MatMut, product};
use super::super::pending::{Act, Reader, vectorised};
use super::im2col::Gather;
use super::{REGISTER_COLS, tile_grid};
use crate::backend::geometry::Conv2d;
use crate::backend::{Epilogue, FilterAt, Pending};

/// Channels whose moments are taken together: their accumulators stay in registers.
const LANES: usize = 32;

pub(in super::super) fn fprop(
    scratch: &mut Buffer,
    geometry: &Conv2d,
    x: Pending<'_, Buffer>,
    params: &Buffer,
    filter: FilterAt,
    y: &mut Buffer,
    epilogue: Epilogue<'_, Buffer>,
) {
    let (c, k, pixels) = (geometry.c, geometry.k, geometry.pixels_out());
    let reader = Reader::new(x, c);
    assert!(
        reader.raw.len() >= geometry.pixels_in() * c,
        "x of {geometry:?}"
    );
    let weights = &params[filter.weights..][..geometry.filter_len()];
    let bias = filter.bias.map(|at| &params[at..][..k]);
    let gather = Gather::forward(geometry);
    let columns = gather.columns();
    let min_cols = if geometry.window.is_pointwise() {
        REGISTER_COLS
    } else {
        2 * REGISTER_COLS
    };
    let grid = tile_grid(pixels, k, min_cols);
    let (residual, activation, mut moments) = match epilogue {
        Epilogue::Raw => (None, Act::Identity, None),
        Epilogue::Moments(moments) => (None, Act::Identity, Some(moments)),
        Epilogue::Activate {
            residual,
            activation,
        } => (residual, Act::new(activation, k), None),
    };
    if let Some(residual) = residual {
        assert!(residual.len() >= pixels * k, "residual");
    }
    let partial_len = if moments.is_some() {
        2 * grid.col_block
    } else {
        0
    };
    let partials = scratch.at_least(grid.blocks() * partial_len);
    MatMut::new(y, pixels, k).par_blocks(grid, partials, partial_len, |mut block, partial| {
        let filters = block.cols.clone();
        if let Some(bias) = bias {
            for i in 0..block.out.rows() {
                block.out.row(i).copy_from_slice(&bias[filters.clone()]);
            }
        }
        let mut accumulate = bias.is_some();
        gather.unroll(reader, block.rows.clone(), 0..columns, |chunk, tile| {
            let w = &weights[filters.start * columns + chunk.start..];
            let w = Mat::new(w, filters.len(), chunk.len(), columns);
            product(&mut block.out, tile, w.t(), accumulate);
            accumulate = true;
        });
        if partial_len > 0 {
            let (mean, squares) = partial.split_at_mut(grid.col_block);
            tile_moments(&mut block.out, mean, squares);
        }
        if residual.is_some() || !matches!(activation, Act::Identity) {
            let activation = activation.channels(filters.clone());
            let residual = residual.map(|r| &r[block.rows.start * k..block.rows.end * k]);
            vectorised(
                #[inline(always)]
                || {
                    for i in 0..block.out.rows() {
                        let row = block.out.row(i);
                        if let Some(residual) = residual {
                            for (y, r) in row.iter_mut().zip(&residual[i * k..][filters.clone()]) {
                                *y += *r;
                            }
                        }
                        activation.apply(row, filters.len());
                    }
                },
            );
        }
    });
    if let Some(moments) = &mut moments {
        let (mean, variance) = moments.split_at_mut(k);
        merge_moments(grid, partials, mean, &mut variance[..k]);
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
