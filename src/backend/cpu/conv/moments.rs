//! Moments of the output's channels, a tile at a time.

use rayon::prelude::*;

use super::super::machine::vectorised;
use super::super::matrix::{Grid, MatMut};

/// Channels whose moments are taken together: their accumulators stay in registers.
const LANES: usize = 32;

/// Mean of each column, and the sum of squared deviations from it, in two passes over the cached tile. The first adds
/// up differences from the first row, so that data far from zero keeps its digits.
pub(super) fn tile_moments(tile: &mut MatMut<'_>, mean: &mut [f32], squares: &mut [f32]) {
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
pub(super) fn merge_moments(grid: Grid, partials: &[f32], mean: &mut [f32], variance: &mut [f32]) {
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
