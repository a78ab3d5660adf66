//! Batch normalisation over rows of C channels (NHWC, f32): moments, coefficients, running statistics, gradient.
//!
//! y = gamma (x - mean) rstd + beta = scale x + shift, rstd = 1 / sqrt(var + epsilon), var the biased variance of the
//! batch; the running variance takes the unbiased one. Only the moments walk a tensor; the map itself is applied by
//! the readers ([`pending`](super::pending)), and the backward step too, as a g + b x + c.
//!
//! Moments are taken in one pass and stay accurate where the mean is large against the deviation: within a block of
//! at most [`BLOCK_PIXELS`] pixels the sums are of x - K, K the block's first pixel, and blocks are merged by the
//! formula of Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample variances",
//! 1979), in f32 within a tile and in f64 across the tiles, always in the same order. A block's first pixel lies at
//! most sqrt(pixels) deviations from its mean, which bounds what the shift can lose. A tile's mean is kept as its
//! distance from the tile's first pixel, so that the distances between blocks are not lost against a large mean.

use super::Buffer;
use super::machine;
use super::tensor::{Tensor, with_floats};
use super::tiles;
use crate::backend::{BatchNormBprop, BatchNormFprop, BatchNormMoments, PReluBprop, bn, sums};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;

/// Most pixels of a block; see the top of this file.
pub(super) const BLOCK_PIXELS: usize = 256;

/// Elements a channel of a tile's moments: the tile's first pixel, the mean's distance from it, the sum of squared
/// deviations from the mean; C of each.
pub(super) const PARTIAL: usize = 3;

pub(super) fn moments(scratch: &mut Buffer, op: BatchNormMoments<'_, Buffer>) {
    let BatchNormMoments { rows, x, moments } = op;
    let (c, per_tile) = (rows.c, tiles::pixels_per_tile(rows));
    let partials = scratch.at_least(rows.pixels.div_ceil(per_tile) * PARTIAL * c);
    let (x, step) = (
        x.tensor(),
        tiles::pixels_per_block(c).clamp(16, BLOCK_PIXELS),
    );
    let count = |tile: usize| per_tile.min(rows.pixels - tile * per_tile);
    (partials.par_chunks_mut(PARTIAL * c).enumerate()).for_each(|(tile, partial)| {
        for start in (0..count(tile)).step_by(step) {
            let block = step.min(count(tile) - start) * c;
            let first = (tile * per_tile + start) * c;
            match x {
                Tensor::F32(x) => add_block(partial, start, &x[first..][..block], c),
                Tensor::Bf16(_) => with_floats(block, |floats| {
                    x.read(first..first + block, floats);
                    add_block(partial, start, floats, c);
                }),
            }
        }
    });
    merge_moments(partials, count, moments, c);
}

/// Merges a block of pixels (rows x C, at most [`BLOCK_PIXELS`]) into a tile's moments ([`PARTIAL`]) of the `count`
/// pixels before it. With a count of 0 what `partial` holds is ignored.
pub(super) fn add_block(partial: &mut [f32], count: usize, block: &[f32], c: usize) {
    debug_assert!(block.len() <= BLOCK_PIXELS * c);
    let (origin, rest) = partial.split_at_mut(c);
    let (mean, m2) = rest.split_at_mut(c);
    if count == 0 && !block.is_empty() {
        origin.copy_from_slice(&block[..c]);
    }
    machine::arch().dispatch(AddBlock {
        origin,
        mean,
        m2,
        count,
        block,
    });
}

struct AddBlock<'a> {
    origin: &'a [f32],
    mean: &'a mut [f32],
    m2: &'a mut [f32],
    count: usize,
    block: &'a [f32],
}

impl AddBlock<'_> {
    /// The moments of `WIDTH` vectors of channels from `first` on, summed in registers.
    #[inline(always)]
    fn channels<S: Simd, const WIDTH: usize>(&mut self, simd: S, first: usize) {
        let c = self.mean.len();
        let vectors = |row: &[f32]| -> [S::f32s; WIDTH] {
            let (vectors, _) = S::as_simd_f32s(&row[first..first + WIDTH * S::F32_LANES]);
            std::array::from_fn(|i| vectors[i])
        };
        let (origin, shift) = (vectors(self.origin), vectors(self.block));
        let mut sum = [simd.splat_f32s(0.0); WIDTH];
        let mut square = sum;
        for row in self.block.chunks_exact(c) {
            let row = vectors(row);
            for i in 0..WIDTH {
                let d = simd.sub_f32s(row[i], shift[i]);
                sum[i] = simd.add_f32s(sum[i], d);
                square[i] = simd.mul_add_e_f32s(d, d, square[i]);
            }
        }
        let span = first..first + WIDTH * S::F32_LANES;
        let (mean, _) = S::as_mut_simd_f32s(&mut self.mean[span.clone()]);
        let (m2, _) = S::as_mut_simd_f32s(&mut self.m2[span]);
        let weights = Weights::new(self.count, self.block.len() / c);
        let [reciprocal, share, cross] =
            [weights.reciprocal, weights.share, weights.cross].map(|w| simd.splat_f32s(w));
        for i in 0..WIDTH {
            let offset = simd.mul_f32s(sum[i], reciprocal);
            let block_mean = simd.add_f32s(simd.sub_f32s(shift[i], origin[i]), offset);
            let block_m2 = simd.sub_f32s(square[i], simd.mul_f32s(sum[i], offset));
            if self.count == 0 {
                (mean[i], m2[i]) = (block_mean, block_m2);
            } else {
                let delta = simd.sub_f32s(block_mean, mean[i]);
                mean[i] = simd.mul_add_e_f32s(delta, share, mean[i]);
                let between = simd.mul_f32s(simd.mul_f32s(delta, delta), cross);
                m2[i] = simd.add_f32s(m2[i], simd.add_f32s(block_m2, between));
            }
        }
    }

    /// The same for one channel, where no vector is left.
    #[inline(always)]
    fn channel(&mut self, first: usize) {
        let c = self.mean.len();
        let shift = self.block[first];
        let (mut sum, mut square) = (0.0, 0.0);
        for row in self.block.chunks_exact(c) {
            let d = row[first] - shift;
            sum += d;
            square += d * d;
        }
        let weights = Weights::new(self.count, self.block.len() / c);
        let offset = sum * weights.reciprocal;
        let block_mean = (shift - self.origin[first]) + offset;
        let block_m2 = square - sum * offset;
        let (mean, m2) = (&mut self.mean[first], &mut self.m2[first]);
        if self.count == 0 {
            (*mean, *m2) = (block_mean, block_m2);
        } else {
            let delta = block_mean - *mean;
            *mean += delta * weights.share;
            *m2 += block_m2 + delta * delta * weights.cross;
        }
    }
}

/// The factors of Chan's formula for a block of `added` pixels after `count` others.
struct Weights {
    /// 1 / added.
    reciprocal: f32,
    /// added / (count + added).
    share: f32,
    /// count added / (count + added).
    cross: f32,
}

impl Weights {
    #[inline(always)]
    fn new(count: usize, added: usize) -> Self {
        let share = added as f32 / (count + added) as f32;
        Weights {
            reciprocal: 1.0 / added as f32,
            share,
            cross: count as f32 * share,
        }
    }
}

impl WithSimd for AddBlock<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if self.block.is_empty() {
            return;
        }
        let (c, lanes) = (self.mean.len(), S::F32_LANES);
        let mut first = 0;
        while first + 4 * lanes <= c {
            self.channels::<S, 4>(simd, first);
            first += 4 * lanes;
        }
        while first + lanes <= c {
            self.channels::<S, 1>(simd, first);
            first += lanes;
        }
        for first in first..c {
            self.channel(first);
        }
    }
}

/// Merges the tiles' moments ([`add_block`]; `count` pixels in each) in tile order into the mean and the biased
/// variance.
pub(super) fn merge_moments(
    partials: &[f32],
    count: impl Fn(usize) -> usize,
    moments: &mut [f32],
    c: usize,
) {
    let (means, variances) = moments[..bn::moments_len(c)].split_at_mut(c);
    // A cache line of channels at a time: walking the tiles for each channel alone would miss at every step.
    for (block, (means, variances)) in means
        .chunks_mut(16)
        .zip(variances.chunks_mut(16))
        .enumerate()
    {
        let (mut total, mut mean, mut m2) = (0.0, [0.0f64; 16], [0.0f64; 16]);
        for (tile, partial) in partials.chunks_exact(PARTIAL * c).enumerate() {
            let added = count(tile) as f64;
            total += added;
            let (origin, rest) = partial.split_at(c);
            let (tile_mean, tile_m2) = rest.split_at(c);
            for i in 0..means.len() {
                let at = 16 * block + i;
                let delta = f64::from(origin[at]) + f64::from(tile_mean[at]) - mean[i];
                mean[i] += delta * (added / total);
                m2[i] += f64::from(tile_m2[at]) + delta * delta * (added * (total - added) / total);
            }
        }
        for i in 0..means.len() {
            means[i] = mean[i] as f32;
            // Rounding may leave a constant channel a hair below zero; NaN stays.
            let variance = (m2[i] / total) as f32;
            variances[i] = if variance < 0.0 { 0.0 } else { variance };
        }
    }
}

pub(super) fn fprop(op: BatchNormFprop<'_, Buffer>) {
    let BatchNormFprop {
        rows,
        moments,
        params,
        at,
        statistics,
        forward,
    } = op;
    let c = rows.c;
    let (mean, variance) = moments[..bn::moments_len(c)].split_at(c);
    let (running_mean, running_variance) = statistics[at.statistics..][..2 * c].split_at_mut(c);
    let forward = &mut forward[..bn::forward_len(c)];
    let unbias = rows.pixels as f32 / (rows.pixels.max(2) - 1) as f32;
    let (keep, take) = (at.momentum, 1.0 - at.momentum);
    for i in 0..c {
        let rstd = (1.0 / (f64::from(variance[i]) + f64::from(at.epsilon)).sqrt()) as f32;
        let gamma = at.gamma.map_or(1.0, |gamma| params[gamma + i]);
        let scale = gamma * rstd;
        forward[bn::SCALE * c + i] = scale;
        let beta = at.beta.map_or(0.0, |beta| params[beta + i]);
        forward[bn::SHIFT * c + i] = beta - mean[i] * scale;
        forward[bn::MEAN * c + i] = mean[i];
        forward[bn::RSTD * c + i] = rstd;
        running_mean[i] = keep * running_mean[i] + take * mean[i];
        running_variance[i] = keep * running_variance[i] + take * (variance[i] * unbias);
    }
}

pub(super) fn bprop(op: BatchNormBprop<'_, Buffer>) {
    let BatchNormBprop {
        rows,
        sums: channel_sums,
        forward,
        grads,
        at,
        backward,
    } = op;
    let c = rows.c;
    let sum_g = &channel_sums[sums::G * c..][..c];
    let sum_gn = &channel_sums[sums::G_NORMALISED * c..][..c];
    let vector = |which: usize| &forward[which * c..][..c];
    let (scale, mean, rstd) = (vector(bn::SCALE), vector(bn::MEAN), vector(bn::RSTD));
    let (a, rest) = backward[..bn::backward_len(c)].split_at_mut(c);
    let (b, k) = rest.split_at_mut(c);
    let pixels = rows.pixels as f32;
    for i in 0..c {
        a[i] = scale[i];
        b[i] = -scale[i] * rstd[i] * (sum_gn[i] / pixels);
        k[i] = -scale[i] * (sum_g[i] / pixels) - b[i] * mean[i];
    }
    if let Some(gamma) = at.gamma {
        grads[gamma..][..c].copy_from_slice(sum_gn);
    }
    if let Some(beta) = at.beta {
        grads[beta..][..c].copy_from_slice(sum_g);
    }
}

pub(super) fn prelu_bprop(op: PReluBprop<'_, Buffer>) {
    let PReluBprop {
        c,
        sums: channel_sums,
        grads,
        slope_at,
    } = op;
    grads[slope_at..][..c].copy_from_slice(&channel_sums[sums::SLOPE * c..][..c]);
}
