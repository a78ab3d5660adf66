//! Pooling over NHWC tensors: the largest value of a window, the mean of an image.
//!
//! Max pooling reads each input row once, activated, into a ring of R rows that stays in cache. The mask is not
//! stored: the backward pass finds the largest value again and adds the gradient there, one image per tile, since windows
//! of one image share pixels; a row is closed as soon as no window can reach it any more. A NaN counts as the
//! largest value, so that it is seen at the output; among several the first counts.

use super::Buffer;
use super::machine::{self, vectorised};
use super::pending::{Closer, Reader, partial_len};
use super::tiles::{self, with_workspace};
use crate::backend::geometry::{GlobalPool, PerChannel, Rows, Window};
use crate::backend::{
    GlobalAvgPoolDgrad, GlobalAvgPoolFprop, GradTarget, MaxPoolDgrad, MaxPoolFprop,
};
use pulp::{Simd, WithSimd};
use rayon::prelude::*;
use std::ops::Range;

/// Input rows, or columns, that window `i` covers, clipped to `size`.
fn covered(i: usize, stride: usize, pad: usize, window: usize, size: usize) -> Range<usize> {
    let start = i * stride;
    start.saturating_sub(pad)..(start + window - pad).min(size)
}

/// The last R activated rows of an image, row h in slot h % R.
struct Ring<'a> {
    reader: &'a Reader<'a>,
    window: Window,
    image: usize,
    slots: &'a mut [f32],
    /// Rows before this one have been read.
    next: usize,
}

impl Ring<'_> {
    fn len(window: &Window, c: usize) -> usize {
        window.r * window.w * c
    }

    /// Makes sure that `rows` are there.
    fn read(&mut self, rows: Range<usize>) {
        let Window { h, w, r, .. } = self.window;
        for row in rows.start.max(self.next)..rows.end {
            let first = (self.image * h + row) * w;
            let len = w * self.reader.c;
            let slot = &mut self.slots[row % r * len..][..len];
            self.reader.read(first..first + w, slot);
            self.next = row + 1;
        }
    }

    /// The channels of a pixel.
    #[inline(always)]
    fn pixel(&self, row: usize, column: usize) -> &[f32] {
        let (w, c) = (self.window.w, self.reader.c);
        &self.slots[(row % self.window.r * w + column) * c..][..c]
    }
}

pub(super) fn max_pool_fprop(op: MaxPoolFprop<'_, Buffer>) {
    let MaxPoolFprop { ref geometry, x, y } = op;
    let PerChannel { n, c, window } = *geometry;
    if n * c == 0 {
        return;
    }
    let reader = Reader::new(x, c);
    // Bands of an image where there are few images.
    let bands = (tiles::TILES / n).clamp(1, window.p.div_ceil(4));
    let per_band = window.p.div_ceil(bands);
    y.tensor_mut()
        .first(geometry.pixels_out() * c)
        .par_chunks(window.p * window.q * c)
        .enumerate()
        .flat_map(|(image, y)| {
            y.par_chunks(per_band * window.q * c)
                .enumerate()
                .map(move |(band, y)| (image, band, y))
        })
        .for_each(|(image, band, y)| {
            with_workspace(Ring::len(&window, c), |slots| {
                let mut ring = Ring {
                    reader: &reader,
                    window,
                    image,
                    slots,
                    next: 0,
                };
                y.edit(false, |y| {
                    for (i, y) in y.chunks_exact_mut(window.q * c).enumerate() {
                        let p = band * per_band + i;
                        let rows = covered(p, window.stride, window.pad.top, window.r, window.h);
                        ring.read(rows.clone());
                        max_row(&ring, rows, y);
                    }
                });
            });
        });
}

/// One row of outputs.
fn max_row(ring: &Ring<'_>, rows: Range<usize>, y: &mut [f32]) {
    machine::arch().dispatch(MaxRow { ring, rows, y });
}

struct MaxRow<'a> {
    ring: &'a Ring<'a>,
    rows: Range<usize>,
    y: &'a mut [f32],
}

impl WithSimd for MaxRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let c = self.ring.reader.c;
        for (q, y) in self.y.chunks_exact_mut(c).enumerate() {
            let pixels = Pixels::new(self.ring, self.rows.clone(), q);
            let (vectors, tail) = S::as_mut_simd_f32s(y);
            for (i, y) in vectors.iter_mut().enumerate() {
                (*y, _) = pixels.largest(simd, i * S::F32_LANES);
            }
            let first = vectors.len() * S::F32_LANES;
            for (i, y) in tail.iter_mut().enumerate() {
                (*y, _) = pixels.largest(pulp::Scalar::new(), first + i);
            }
        }
    }
}

/// A window's pixels.
struct Pixels<'a> {
    ring: &'a Ring<'a>,
    rows: Range<usize>,
    columns: Range<usize>,
}

impl<'a> Pixels<'a> {
    #[inline(always)]
    fn new(ring: &'a Ring<'a>, rows: Range<usize>, q: usize) -> Self {
        let Window {
            s, stride, pad, w, ..
        } = ring.window;
        Pixels {
            ring,
            rows,
            columns: covered(q, stride, pad.left, s, w),
        }
    }

    /// The largest values in a vector of channels from `first` on, and the places in the window, in row order, of the
    /// first pixels that hold them. Places are f32, whose vectors are as wide as the values'.
    #[inline(always)]
    fn largest<S: Simd>(&self, simd: S, first: usize) -> (S::f32s, S::f32s) {
        let mut best = simd.splat_f32s(f32::NEG_INFINITY);
        let mut winner = simd.splat_f32s(0.0);
        let mut place = 0.0;
        for row in self.rows.clone() {
            for column in self.columns.clone() {
                let pixel = &self.ring.pixel(row, column)[first..][..S::F32_LANES];
                let value = S::as_simd_f32s(pixel).0[0];
                // Larger, or a NaN, against anything but a NaN.
                let wins = simd.and_m32s(
                    simd.equal_f32s(best, best),
                    simd.not_m32s(simd.less_than_or_equal_f32s(value, best)),
                );
                best = simd.select_f32s(wins, value, best);
                winner = simd.select_f32s(wins, simd.splat_f32s(place), winner);
                place += 1.0;
            }
        }
        (best, winner)
    }

    /// Adds a vector of gradients, channels from `first` on, to the pixels of `g` that hold the largest values.
    #[inline(always)]
    fn scatter<S: Simd>(&self, simd: S, first: usize, dy: S::f32s, g: &mut [f32]) {
        let (_, winner) = self.largest(simd, first);
        let mut place = 0.0;
        for row in self.rows.clone() {
            for column in self.columns.clone() {
                let pixel = (row * self.ring.window.w + column) * self.ring.reader.c;
                let g = &mut g[pixel + first..][..S::F32_LANES];
                let g = &mut S::as_mut_simd_f32s(g).0[0];
                let here = simd.equal_f32s(winner, simd.splat_f32s(place));
                *g = simd.add_f32s(*g, simd.select_f32s(here, dy, simd.splat_f32s(0.0)));
                place += 1.0;
            }
        }
    }
}

pub(super) fn max_pool_dgrad(scratch: &mut Buffer, op: MaxPoolDgrad<'_, Buffer>) {
    let MaxPoolDgrad {
        ref geometry,
        dy,
        x,
        dx,
    } = op;
    let PerChannel { n, c, window } = *geometry;
    let GradTarget {
        g,
        accumulate,
        close,
    } = dx;
    let reader = Reader::new(x, c);
    let (closer, sums) = close
        .map(|close| Closer::new(close, c))
        .map_or((None, None), |(closer, sums)| (Some(closer), sums));
    let len = partial_len(c);
    let partials = scratch.at_least(n * len);
    let (row_in, row_out) = (window.w * c, window.q * c);
    let dy = dy.tensor();
    if n * c > 0 {
        g.tensor_mut()
            .first(geometry.pixels_in() * c)
            .par_chunks(window.h * row_in)
            .zip(partials.par_chunks_mut(len))
            .enumerate()
            .for_each(|(image, (g, partial))| {
                partial.fill(0.0);
                let finish = |rows: Range<usize>, g: &mut [f32], partial: &mut [f32]| {
                    let Some(closer) = &closer else { return };
                    for row in rows {
                        let first = (image * window.h + row) * window.w;
                        closer.close(
                            first..first + window.w,
                            &mut g[row * row_in..][..row_in],
                            partial,
                        );
                    }
                };
                let mut scatter = |slots: &mut [f32], d_row: &mut [f32], g: &mut [f32]| {
                    let mut ring = Ring {
                        reader: &reader,
                        window,
                        image,
                        slots,
                        next: 0,
                    };
                    let (mut touched, mut finished) = (0, 0);
                    for p in 0..window.p {
                        let rows = covered(p, window.stride, window.pad.top, window.r, window.h);
                        ring.read(rows.clone());
                        // First zero, also the rows that no window touches, then finish.
                        if !accumulate && touched < rows.end {
                            g[touched * row_in..rows.end * row_in].fill(0.0);
                        }
                        touched = rows.end.max(touched);
                        finish(finished..rows.start.max(finished), g, partial);
                        finished = rows.start.max(finished);
                        let first = (image * window.p + p) * row_out;
                        dy.read(first..first + row_out, d_row);
                        scatter_row(&ring, rows, d_row, g);
                    }
                    if !accumulate {
                        g[touched * row_in..].fill(0.0);
                    }
                    finish(finished..window.h, g, partial);
                };
                let ring_len = Ring::len(&window, c);
                with_workspace(ring_len + row_out, |workspace| {
                    let (slots, d_row) = workspace.split_at_mut(ring_len);
                    g.edit(accumulate, |g| scatter(slots, d_row, g));
                });
            });
    }
    if let (Some(closer), Some(sums)) = (&closer, sums) {
        closer.merge_sums(partials, c, sums);
    }
}

/// Adds one output row's gradients to the pixels of `g`, an image, that hold the largest values.
fn scatter_row(ring: &Ring<'_>, rows: Range<usize>, dy: &[f32], g: &mut [f32]) {
    machine::arch().dispatch(ScatterRow { ring, rows, dy, g });
}

struct ScatterRow<'a> {
    ring: &'a Ring<'a>,
    rows: Range<usize>,
    dy: &'a [f32],
    g: &'a mut [f32],
}

impl WithSimd for ScatterRow<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let c = self.ring.reader.c;
        for (q, dy) in self.dy.chunks_exact(c).enumerate() {
            let pixels = Pixels::new(self.ring, self.rows.clone(), q);
            let (vectors, tail) = S::as_simd_f32s(dy);
            for (i, dy) in vectors.iter().enumerate() {
                pixels.scatter(simd, i * S::F32_LANES, *dy, self.g);
            }
            let first = vectors.len() * S::F32_LANES;
            for (i, dy) in tail.iter().enumerate() {
                pixels.scatter(pulp::Scalar::new(), first + i, *dy, self.g);
            }
        }
    }
}

pub(super) fn global_avg_pool_fprop(op: GlobalAvgPoolFprop<'_, Buffer>) {
    let GlobalAvgPoolFprop { geometry, x, y } = op;
    let GlobalPool { n, pixels, c } = geometry;
    if n * c == 0 {
        return;
    }
    let reader = Reader::new(x, c);
    let mean = |image: usize, y: &mut [f32]| {
        y.fill(0.0);
        with_workspace(tiles::pixels_per_block(c) * c, |workspace| {
            for block in tiles::blocks(image * pixels..(image + 1) * pixels, c) {
                let values = &mut workspace[..block.len() * c];
                reader.read(block, values);
                vectorised(
                    #[inline(always)]
                    || {
                        for row in values.chunks_exact(c) {
                            for (sum, v) in y.iter_mut().zip(row) {
                                *sum += *v;
                            }
                        }
                    },
                );
            }
        });
        y.iter_mut().for_each(|v| *v /= pixels as f32);
    };
    y.tensor_mut()
        .first(n * c)
        .par_chunks(c)
        .enumerate()
        .for_each(|(image, y)| y.edit(false, |y| mean(image, y)));
}

pub(super) fn global_avg_pool_dgrad(scratch: &mut Buffer, op: GlobalAvgPoolDgrad<'_, Buffer>) {
    let GlobalAvgPoolDgrad { geometry, dy, dx } = op;
    let GlobalPool { n, pixels, c } = geometry;
    let share = 1.0 / pixels as f32;
    let rows = Rows {
        pixels: n * pixels,
        c,
    };
    let dy = dy.tensor();
    tiles::write_grad(scratch, rows, dx, |block, dx| {
        for (pixel, dx) in block.zip(dx.chunks_exact_mut(c)) {
            let image = pixel / pixels;
            dy.read(image * c..(image + 1) * c, dx);
            dx.iter_mut().for_each(|dx| *dx *= share);
        }
    });
}
