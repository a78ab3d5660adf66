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

/// Mean of each column, and the sum of squared deviations from it, in two passes over the cached tile: one pass would
/// need a guess of the mean, and a wrong guess loses the variance of data far from zero.
fn tile_moments(tile: &mut MatMut<'_>, mean: &mut [f32], squares: &mut [f32]) {
    let (rows, cols) = (tile.rows(), tile.cols());
    let scale = 1.0 / rows as f32;
    vectorised(
        #[inline(always)]
        || {
            let mut start = 0;
            while start + LANES <= cols {
                let mut sum = [0.0f32; LANES];
                for i in 0..rows {
                    let row: &[f32; LANES] = tile.row(i)[start..][..LANES].try_into().unwrap();
                    for j in 0..LANES {
                        sum[j] += row[j];
                    }
                }
                let centre = sum.map(|s| s * scale);
                let (mut rest, mut square) = ([0.0f32; LANES], [0.0f32; LANES]);
                for i in 0..rows {
                    let row: &[f32; LANES] = tile.row(i)[start..][..LANES].try_into().unwrap();
                    for j in 0..LANES {
                        let d = row[j] - centre[j];
                        rest[j] += d;
                        square[j] += d * d;
                    }
                }
                // The rounding of the first mean is found again in the sum of deviations.
                for j in 0..LANES {
                    mean[start + j] = centre[j] + rest[j] * scale;
                    squares[start + j] = square[j] - rest[j] * (rest[j] * scale);
                }
                start += LANES;
            }
            for j in start..cols {
                let mut sum = 0.0;
                for i in 0..rows {
                    sum += tile.row(i)[j];
                }
                let centre = sum * scale;
                let (mut rest, mut square) = (0.0, 0.0);
                for i in 0..rows {
                    let d = tile.row(i)[j] - centre;
                    rest += d;
                    square += d * d;
                }
                mean[j] = centre + rest * scale;
                squares[j] = square - rest * (rest * scale);
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
