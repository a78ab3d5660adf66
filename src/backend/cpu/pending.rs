//! Pending values and gradients, resolved to slices, and applied row by row in the cache-sized tile.
//!
//! A row is one pixel's C channels. The loops are plain Rust, compiled for the best instruction set found at run
//! time by [`vectorised`](super::machine::vectorised).

use super::buffer::Buffer;
use super::machine::vectorised;
use super::tensor::{Stored, Tensor};
use crate::backend::{Activation, Close, Pending, PendingGrad, View, bn, sums};
use std::ops::Range;

/// An activation of C channels with its slopes as a slice.
pub(super) fn sliced<'a>(
    activation: Activation<View<'a, Buffer>>,
    c: usize,
) -> Activation<&'a [f32]> {
    activation.map(|slopes| &slopes.buffer[slopes.offset..][..c])
}

impl Activation<&[f32]> {
    /// The activation of some of the channels.
    pub(super) fn channels(self, channels: Range<usize>) -> Self {
        self.map(|slopes| &slopes[channels])
    }

    /// Applies the activation to rows of C channels in place.
    #[inline(always)]
    pub(super) fn apply(&self, rows: &mut [f32], c: usize) {
        match *self {
            Activation::Identity => {}
            // Adding zero keeps the compiler from storing in place under a mask, which takes many cycles on some machines.
            Activation::Relu => rows.iter_mut().for_each(|v| *v = relu(*v) + 0.0),
            Activation::Relu6 => rows.iter_mut().for_each(|v| *v = relu6(*v) + 0.0),
            Activation::PRelu(slopes) => {
                for row in rows.chunks_exact_mut(c) {
                    for (v, slope) in row.iter_mut().zip(slopes) {
                        *v = prelu(*v, *slope) + 0.0;
                    }
                }
            }
        }
    }
}

// Written as comparisons, not `f32::max`, so that NaN passes through and is found.
#[inline(always)]
fn relu(v: f32) -> f32 {
    if v < 0.0 { 0.0 } else { v }
}

#[inline(always)]
fn relu6(v: f32) -> f32 {
    let v = relu(v);
    if v > 6.0 { 6.0 } else { v }
}

#[inline(always)]
fn prelu(v: f32, slope: f32) -> f32 {
    if v > 0.0 { v } else { v * slope }
}

/// A pending value: what to read, and what to apply to it.
#[derive(Clone, Copy)]
pub(super) struct Reader<'a> {
    /// The stored tensor.
    pub(super) raw: Tensor<'a>,
    /// Scale and shift of each channel.
    affine: Option<(&'a [f32], &'a [f32])>,
    /// Mean and reciprocal deviation of each channel, for the gradient's sums.
    normalise: Option<(&'a [f32], &'a [f32])>,
    act: Activation<&'a [f32]>,
    /// Channels.
    pub(super) c: usize,
}

impl<'a> Reader<'a> {
    pub(super) fn new(value: Pending<'a, Buffer>, c: usize) -> Self {
        let vector = |forward: &'a Buffer, which: usize| &forward[which * c..][..c];
        Reader {
            raw: value.raw.tensor(),
            affine: value
                .affine
                .map(|f| (vector(f, bn::SCALE), vector(f, bn::SHIFT))),
            normalise: value
                .affine
                .map(|f| (vector(f, bn::MEAN), vector(f, bn::RSTD))),
            act: sliced(value.activation, c),
            c,
        }
    }

    /// Whether the stored tensor may be read as it is.
    pub(super) fn is_plain(&self) -> bool {
        self.affine.is_none() && self.act.is_identity()
    }

    /// The stored tensor, where it is float32 and may be read as it is.
    pub(super) fn stored(&self) -> Option<&'a [f32]> {
        self.raw.floats().filter(|_| self.is_plain())
    }

    /// Writes the activated values of pixels `rows` to `out` (rows x C).
    pub(super) fn read(&self, rows: Range<usize>, out: &mut [f32]) {
        self.read_channels(rows, 0..self.c, out);
    }

    /// Writes the activated values of pixels `rows`, channels `channels` only, to `out` (rows x channels).
    pub(super) fn read_channels(
        &self,
        rows: Range<usize>,
        channels: Range<usize>,
        out: &mut [f32],
    ) {
        debug_assert_eq!(out.len(), rows.len() * channels.len());
        let span = rows.start * self.c..rows.end * self.c;
        if self.is_plain() && channels.len() == self.c {
            self.raw.read(span, out);
            return;
        }
        match self.raw {
            Tensor::F32(raw) => self.read_stored(&raw[span], channels, out),
            Tensor::Bf16(raw) => self.read_stored(&raw[span], channels, out),
        }
    }

    /// Channels `first..first + L` of a pixel, activated and rounded to the stored elements.
    #[inline(always)]
    pub(super) fn lanes<const L: usize>(&self, pixel: usize, first: usize) -> [f32; L] {
        match self.raw {
            Tensor::F32(raw) => self.lanes_of(raw, pixel, first),
            Tensor::Bf16(raw) => self.lanes_of(raw, pixel, first),
        }
    }

    #[inline(always)]
    fn lanes_of<E: Stored, const L: usize>(
        &self,
        raw: &[E],
        pixel: usize,
        first: usize,
    ) -> [f32; L] {
        let raw: &[E; L] = raw[pixel * self.c + first..].first_chunk().expect("lanes");
        let mut out = raw.map(E::widen);
        if let Some((scale, shift)) = self.affine {
            let (scale, shift) = (&scale[first..][..L], &shift[first..][..L]);
            for i in 0..L {
                out[i] = out[i] * scale[i] + shift[i];
            }
        }
        self.act.channels(first..first + L).apply(&mut out, L);
        out.map(E::round)
    }

    /// As [`Reader::read_channels`], from the stored rows.
    fn read_stored<E: Stored>(&self, source: &[E], channels: Range<usize>, out: &mut [f32]) {
        let (c, width) = (self.c, channels.len());
        let affine = self
            .affine
            .map(|(scale, shift)| (&scale[channels.clone()], &shift[channels.clone()]));
        let act = self.act.channels(channels.clone());
        vectorised(
            #[inline(always)]
            || {
                for (row, out) in source.chunks_exact(c).zip(out.chunks_exact_mut(width)) {
                    let row = &row[channels.clone()];
                    match (affine, act) {
                        (None, act) => {
                            for (out, x) in out.iter_mut().zip(row) {
                                *out = x.widen();
                            }
                            act.apply(out, width);
                        }
                        (Some((scale, shift)), Activation::Relu) => {
                            for (((out, x), a), b) in out.iter_mut().zip(row).zip(scale).zip(shift)
                            {
                                *out = relu(x.widen() * *a + *b);
                            }
                        }
                        (Some((scale, shift)), Activation::Relu6) => {
                            for (((out, x), a), b) in out.iter_mut().zip(row).zip(scale).zip(shift)
                            {
                                *out = relu6(x.widen() * *a + *b);
                            }
                        }
                        (Some((scale, shift)), act) => {
                            for (((out, x), a), b) in out.iter_mut().zip(row).zip(scale).zip(shift)
                            {
                                *out = x.widen() * *a + *b;
                            }
                            act.apply(out, width);
                        }
                    }
                }
            },
        );
    }
}

/// A pending gradient: what to read, and batch norm's step to apply to it.
#[derive(Clone, Copy)]
pub(super) struct GradReader<'a> {
    /// The stored gradient.
    pub(super) g: Tensor<'a>,
    /// The raw tensor and a, b, c.
    batch_norm: Option<(Tensor<'a>, [&'a [f32]; 3])>,
    /// Channels.
    pub(super) c: usize,
}

impl<'a> GradReader<'a> {
    pub(super) fn new(dy: PendingGrad<'a, Buffer>, c: usize) -> Self {
        GradReader {
            g: dy.g.tensor(),
            batch_norm: dy
                .batch_norm
                .map(|(raw, backward)| (raw.tensor(), [0, 1, 2].map(|i| &backward[i * c..][..c]))),
            c,
        }
    }

    /// The stored gradient, where it is float32 and may be read as it is.
    pub(super) fn stored(&self) -> Option<&'a [f32]> {
        self.g.floats().filter(|_| self.batch_norm.is_none())
    }

    /// Writes the gradient with respect to the raw tensor, pixels `rows`, to `out` (rows x C).
    pub(super) fn read(&self, rows: Range<usize>, out: &mut [f32]) {
        self.read_channels(rows, 0..self.c, out);
    }

    /// As [`GradReader::read`], channels `channels` only (rows x channels).
    pub(super) fn read_channels(
        &self,
        rows: Range<usize>,
        channels: Range<usize>,
        out: &mut [f32],
    ) {
        debug_assert_eq!(out.len(), rows.len() * channels.len());
        let span = rows.start * self.c..rows.end * self.c;
        match (self.g, self.batch_norm) {
            (g, None) if channels.len() == self.c => g.read(span, out),
            (Tensor::F32(g), None) => copy_channels(&g[span], self.c, channels, out),
            (Tensor::Bf16(g), None) => copy_channels(&g[span], self.c, channels, out),
            (Tensor::F32(g), Some((Tensor::F32(raw), k))) => {
                step_back(&g[span.clone()], &raw[span], k, channels, out);
            }
            (Tensor::Bf16(g), Some((Tensor::Bf16(raw), k))) => {
                step_back(&g[span.clone()], &raw[span], k, channels, out);
            }
            (g, Some((raw, _))) => {
                panic!(
                    "a gradient in {} of a tensor in {}",
                    g.element(),
                    raw.element()
                )
            }
        }
    }
}

/// Copies some of the channels of rows of `c`.
fn copy_channels<E: Stored>(rows: &[E], c: usize, channels: Range<usize>, out: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (out, row) in out
                .chunks_exact_mut(channels.len())
                .zip(rows.chunks_exact(c))
            {
                for (out, v) in out.iter_mut().zip(&row[channels.clone()]) {
                    *out = v.widen();
                }
            }
        },
    );
}

/// out = a g + b raw + c in some of the channels.
fn step_back<E: Stored>(
    g: &[E],
    raw: &[E],
    coefficients: [&[f32]; 3],
    channels: Range<usize>,
    out: &mut [f32],
) {
    let (c, width) = (coefficients[0].len(), channels.len());
    let [ka, kb, kc] = coefficients.map(|v| &v[channels.clone()]);
    vectorised(
        #[inline(always)]
        || {
            for ((out, g), raw) in out
                .chunks_exact_mut(width)
                .zip(g.chunks_exact(c))
                .zip(raw.chunks_exact(c))
            {
                let (g, raw) = (&g[channels.clone()], &raw[channels.clone()]);
                for (((((out, g), y), a), b), k) in
                    out.iter_mut().zip(g).zip(raw).zip(ka).zip(kb).zip(kc)
                {
                    *out = *a * g.widen() + (*b * y.widen() + *k);
                }
            }
        },
    );
}

/// The finish of a gradient, resolved to slices.
#[derive(Clone, Copy)]
pub(super) struct Closer<'a> {
    value: Reader<'a>,
}

impl<'a> Closer<'a> {
    /// Splits a close into what the tiles read and where the sums go in the end.
    pub(super) fn new(close: Close<'a, Buffer>, c: usize) -> (Self, Option<&'a mut Buffer>) {
        let value = Reader::new(close.value, c);
        (Closer { value }, close.sums)
    }

    /// Multiplies complete gradients of pixels `rows` (rows x C, in place) by the activation's derivative, rounds them to
    /// what is stored, and adds the tile's channel sums of that to `partial`, in the layout of [`sums`]. A gradient is stored
    /// as the value that it belongs to.
    pub(super) fn close(&self, rows: Range<usize>, g: &mut [f32], partial: &mut [f32]) {
        let span = rows.start * self.value.c..rows.end * self.value.c;
        match self.value.raw {
            Tensor::F32(raw) => self.close_stored(&raw[span], g, partial),
            Tensor::Bf16(raw) => self.close_stored(&raw[span], g, partial),
        }
    }

    fn close_stored<E: Stored>(&self, raw: &[E], g: &mut [f32], partial: &mut [f32]) {
        const ROWS: usize = 8;
        const LANES: usize = 16;
        let c = self.value.c;
        // A few rows at a time: coefficients and sums of some channels stay in registers, and memory is walked in order.
        vectorised(
            #[inline(always)]
            || {
                for (g, raw) in g.chunks_mut(ROWS * c).zip(raw.chunks(ROWS * c)) {
                    let mut channel = 0;
                    while channel + LANES <= c {
                        self.close_channels::<E, LANES>(channel, g, raw, partial);
                        channel += LANES;
                    }
                    while channel < c {
                        self.close_channels::<E, 1>(channel, g, raw, partial);
                        channel += 1;
                    }
                }
            },
        );
    }

    /// As [`Closer::close`], channels `first..first + L` only.
    #[inline(always)]
    fn close_channels<E: Stored, const L: usize>(
        &self,
        first: usize,
        g: &mut [f32],
        raw: &[E],
        partial: &mut [f32],
    ) {
        // Closures that are not inlined would be compiled for the least of machines.
        match self.value.act {
            Activation::Identity => self.close_with::<E, L>(
                first,
                g,
                raw,
                partial,
                None,
                #[inline(always)]
                |g, _, _| g,
            ),
            Activation::Relu => self.close_with::<E, L>(
                first,
                g,
                raw,
                partial,
                None,
                #[inline(always)]
                |g, v, _| if v > 0.0 { g } else { 0.0 },
            ),
            Activation::Relu6 => self.close_with::<E, L>(
                first,
                g,
                raw,
                partial,
                None,
                #[inline(always)]
                |g, v, _| if v > 0.0 && v < 6.0 { g } else { 0.0 },
            ),
            Activation::PRelu(slopes) => self.close_with::<E, L>(
                first,
                g,
                raw,
                partial,
                Some(slopes),
                #[inline(always)]
                |g, v, slope| g * if v > 0.0 { 1.0 } else { slope },
            ),
        }
    }

    /// As [`Closer::close_channels`]; `derive(g, v, slope)` is the gradient after the derivative at v.
    #[inline(always)]
    fn close_with<E: Stored, const L: usize>(
        &self,
        first: usize,
        g: &mut [f32],
        raw: &[E],
        partial: &mut [f32],
        slopes: Option<&[f32]>,
        derive: impl Fn(f32, f32, f32) -> f32,
    ) {
        let c = self.value.c;
        let (mut scale, mut shift) = ([1.0; L], [0.0; L]);
        if let Some((a, b)) = self.value.affine {
            scale.copy_from_slice(&a[first..][..L]);
            shift.copy_from_slice(&b[first..][..L]);
        }
        let normalise = self.value.normalise;
        let (mut mean, mut rstd) = ([0.0; L], [0.0; L]);
        if let Some((m, r)) = normalise {
            mean.copy_from_slice(&m[first..][..L]);
            rstd.copy_from_slice(&r[first..][..L]);
        }
        let mut slope = [0.0; L];
        if let Some(slopes) = slopes {
            slope.copy_from_slice(&slopes[first..][..L]);
        }
        let mut sum_g = [0.0; L];
        let mut sum_normalised = [0.0; L];
        let mut sum_slope = [0.0; L];
        // One short loop a step, so that each becomes a few vector instructions and the arrays stay in registers.
        for (g, raw) in g.chunks_exact_mut(c).zip(raw.chunks_exact(c)) {
            let to: &mut [f32; L] = (&mut g[first..][..L]).try_into().expect("lanes");
            let stored: &[E; L] = raw[first..][..L].try_into().expect("lanes");
            let (mut g, mut raw, mut v, mut d) = (*to, [0.0; L], [0.0; L], [0.0; L]);
            for i in 0..L {
                raw[i] = stored[i].widen();
            }
            for i in 0..L {
                v[i] = raw[i] * scale[i] + shift[i];
            }
            if slopes.is_some() {
                for i in 0..L {
                    sum_slope[i] += if v[i] > 0.0 { 0.0 } else { g[i] * v[i] };
                }
            }
            for i in 0..L {
                // Adding zero keeps the compiler from storing under a mask, which takes many cycles on some machines.
                d[i] = E::round(derive(g[i], v[i], slope[i]) + 0.0);
            }
            *to = d;
            for i in 0..L {
                sum_g[i] += d[i];
            }
            if normalise.is_some() {
                for i in 0..L {
                    g[i] = d[i] * ((raw[i] - mean[i]) * rstd[i]);
                }
                for i in 0..L {
                    sum_normalised[i] += g[i];
                }
            }
        }
        for (which, sum) in [
            (sums::G, sum_g),
            (sums::G_NORMALISED, sum_normalised),
            (sums::SLOPE, sum_slope),
        ] {
            let total = &mut partial[which * c + first..][..L];
            for i in 0..L {
                total[i] += sum[i];
            }
        }
    }

    /// Merges the tiles' channel sums, in tile order, into the buffer that [`sums`] lays out. The sum of g y^ is left
    /// alone where the value has no batch norm.
    pub(super) fn merge_sums(&self, partials: &[f32], sums: &mut [f32]) {
        let (c, len) = (self.value.c, partial_len(self.value.c));
        for (which, wanted) in [
            (sums::G, true),
            (sums::G_NORMALISED, self.value.normalise.is_some()),
            (sums::SLOPE, true),
        ] {
            if wanted {
                merge_part(partials, len, which * c, &mut sums[which * c..][..c]);
            }
        }
    }
}

/// Adds elements `first..first + out.len()` of the tiles' partial sums (tiles x len) in tile order, in f64, into `out`.
pub(super) fn merge_part(partials: &[f32], len: usize, first: usize, out: &mut [f32]) {
    // A stretch of elements at a time: walking the tiles for each element alone would miss at every step.
    const STRETCH: usize = 64;
    for (block, out) in out.chunks_mut(STRETCH).enumerate() {
        let mut total = [0.0f64; STRETCH];
        for partial in partials.chunks_exact(len) {
            let partial = &partial[first + STRETCH * block..][..out.len()];
            for (total, v) in total.iter_mut().zip(partial) {
                *total += f64::from(*v);
            }
        }
        for (out, total) in out.iter_mut().zip(total) {
            *out = total as f32;
        }
    }
}

/// Elements of a tile's partial channel sums.
pub(super) fn partial_len(c: usize) -> usize {
    sums::len(c)
}
