//! Moments of the output's channels, a tile at a time.

use rayon::prelude::*;

use super::super::machine::vectorised;
use super::super::matrix::{Grid, MatMut};

/// Channels whose moments are taken together: their accumulators stay in registers.
const LANES: usize = 32;

/// Mean of each column, and the sum of squared deviations from it, in two passes over the cached tile. The first adds up
/// differences from the first row, so that data far from zero keeps its digits.
pub(super) fn tile_moments(tile: &mut MatMut<'_>, mean: &mut [f32], squares: &mut [f32]) {
    let (rows, cols) = (tile.rows(), tile.cols());
    let scale = 1.0 / rows as f32;
    vectorised(
        #[inline(always)]
        || {
            let mut start = 0;
            while start + LANES <= cols {
                let (mean, squares) = (&mut mean[start..], &mut squares[start..]);
                column_moments::<LANES>(tile, start, scale, mean, squares);
                start += LANES;
            }
            while start < cols {
                let (mean, squares) = (&mut mean[start..], &mut squares[start..]);
                column_moments::<1>(tile, start, scale, mean, squares);
                start += 1;
            }
        },
    );
}

/// As [`tile_moments`], for columns `start..start + L`, whose sums stay in registers.
#[inline(always)]
fn column_moments<const L: usize>(
    tile: &mut MatMut<'_>,
    start: usize,
    scale: f32,
    mean: &mut [f32],
    squares: &mut [f32],
) {
    let first: [f32; L] = *tile.row(0)[start..].first_chunk().expect("lanes");
    let mut centre: [f32; L] = sum_over_rows(
        tile,
        start,
        #[inline(always)]
        |y, j| y - first[j],
    );
    for j in 0..L {
        centre[j] = first[j] + centre[j] * scale;
    }
    let square: [f32; L] = sum_over_rows(
        tile,
        start,
        #[inline(always)]
        |y, j| (y - centre[j]) * (y - centre[j]),
    );
    mean[..L].copy_from_slice(&centre);
    squares[..L].copy_from_slice(&square);
}

/// The sums of f(y, j) over all rows, y in column start + j. A few rows are added up before they join the rest, so that
/// fewer roundings are of large sums.
#[inline(always)]
fn sum_over_rows<const L: usize>(
    tile: &mut MatMut<'_>,
    start: usize,
    f: impl Fn(f32, usize) -> f32,
) -> [f32; L] {
    const ROWS: usize = 8;
    let rows = tile.rows();
    let mut total = [0.0f32; L];
    for group in (0..rows).step_by(ROWS) {
        let mut sum = [0.0f32; L];
        for i in group..(group + ROWS).min(rows) {
            let row: &[f32; L] = tile.row(i)[start..].first_chunk().expect("lanes");
            for j in 0..L {
                sum[j] += f(row[j], j);
            }
        }
        for j in 0..L {
            total[j] += sum[j];
        }
    }
    total
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
