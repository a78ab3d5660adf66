//! Pending values and gradients, resolved to slices, and applied row by row in the cache-sized tile.
//!
//! A row is one pixel's C channels. The loops are plain Rust, compiled for the best instruction set found at run
//! time by [`vectorised`](super::machine::vectorised).

use super::buffer::Buffer;
use super::machine::vectorised;
use super::matrix::MatMut;
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

    /// Writes the activated values of pixels `rows` to `out` (rows x C).
    pub(super) fn read(&self, rows: Range<usize>, out: &mut [f32]) {
        self.read_channels(rows, 0..self.c, out);
    }

    /// Writes the activated values of pixels `rows`, channels `channels` only, to `out` (rows x channels), rounded once.
    pub(super) fn read_channels<O: Stored>(
        &self,
        rows: Range<usize>,
        channels: Range<usize>,
        out: &mut [O],
    ) {
        debug_assert_eq!(out.len(), rows.len() * channels.len());
        let span = rows.start * self.c..rows.end * self.c;
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
    fn read_stored<E: Stored, O: Stored>(
        &self,
        source: &[E],
        channels: Range<usize>,
        out: &mut [O],
    ) {
        if self.is_plain() {
            copy_channels(source, self.c, channels, out);
            return;
        }
        let rows = Rows {
            source,
            c: self.c,
            affine: self.affine,
            channels: channels.clone(),
        };
        // Closures that are not inlined would be compiled for the least of machines.
        match self.act.channels(channels) {
            Activation::Identity => rows.map(
                out,
                None,
                #[inline(always)]
                |v, _| v,
            ),
            Activation::Relu => rows.map(
                out,
                None,
                #[inline(always)]
                |v, _| relu(v),
            ),
            Activation::Relu6 => rows.map(
                out,
                None,
                #[inline(always)]
                |v, _| relu6(v),
            ),
            Activation::PRelu(slopes) => rows.map(out, Some(slopes), prelu),
        }
    }
}

/// Some channels of stored rows, to be activated.
struct Rows<'a, E> {
    source: &'a [E],
    /// Channels of a row.
    c: usize,
    /// Scale and shift of each channel.
    affine: Option<(&'a [f32], &'a [f32])>,
    channels: Range<usize>,
}

impl<E: Stored> Rows<'_, E> {
    /// out = f(scale x + shift, slope); without slopes f gets 0.
    fn map<O: Stored>(self, out: &mut [O], slopes: Option<&[f32]>, f: impl Fn(f32, f32) -> f32) {
        let Rows {
            source,
            c,
            affine,
            channels,
        } = self;
        let width = channels.len();
        vectorised(
            #[inline(always)]
            || {
                let rows = source.chunks_exact(c).zip(out.chunks_exact_mut(width));
                let rows = rows.map(|(row, out)| (&row[channels.clone()], out));
                let scaled = affine.map(|(a, b)| (&a[channels.clone()], &b[channels.clone()]));
                match (scaled, slopes) {
                    (Some((a, b)), Some(slopes)) => {
                        for (row, out) in rows {
                            for ((((out, x), a), b), slope) in
                                out.iter_mut().zip(row).zip(a).zip(b).zip(slopes)
                            {
                                *out = O::narrow(f(x.widen() * *a + *b, *slope));
                            }
                        }
                    }
                    (Some((a, b)), None) => {
                        for (row, out) in rows {
                            for (((out, x), a), b) in out.iter_mut().zip(row).zip(a).zip(b) {
                                *out = O::narrow(f(x.widen() * *a + *b, 0.0));
                            }
                        }
                    }
                    (None, Some(slopes)) => {
                        for (row, out) in rows {
                            for ((out, x), slope) in out.iter_mut().zip(row).zip(slopes) {
                                *out = O::narrow(f(x.widen(), *slope));
                            }
                        }
                    }
                    (None, None) => {
                        for (row, out) in rows {
                            for (out, x) in out.iter_mut().zip(row) {
                                *out = O::narrow(f(x.widen(), 0.0));
                            }
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

    /// Whether the stored gradient may be read as it is.
    pub(super) fn is_plain(&self) -> bool {
        self.batch_norm.is_none()
    }

    /// Channels `first..first + L` of a pixel, rounded to the stored elements.
    #[inline(always)]
    pub(super) fn lanes<const L: usize>(&self, pixel: usize, first: usize) -> [f32; L] {
        match self.g {
            Tensor::F32(g) => self.lanes_of(g, pixel, first),
            Tensor::Bf16(g) => self.lanes_of(g, pixel, first),
        }
    }

    #[inline(always)]
    fn lanes_of<E: Stored, const L: usize>(&self, g: &[E], pixel: usize, first: usize) -> [f32; L] {
        let at = pixel * self.c + first;
        let g: &[E; L] = g[at..].first_chunk().expect("lanes");
        let mut out = g.map(E::widen);
        if let Some((raw, k)) = self.batch_norm {
            let mut stored = [0.0; L];
            match raw {
                Tensor::F32(raw) => stored.copy_from_slice(&raw[at..][..L]),
                Tensor::Bf16(raw) => {
                    for i in 0..L {
                        stored[i] = raw[at + i].widen();
                    }
                }
            }
            let [a, b, k] = k.map(|v| &v[first..][..L]);
            for i in 0..L {
                out[i] = a[i] * out[i] + (b[i] * stored[i] + k[i]);
            }
        }
        out.map(E::round)
    }

    /// Writes the gradient with respect to the raw tensor, pixels `rows`, to `out` (rows x C).
    pub(super) fn read(&self, rows: Range<usize>, out: &mut [f32]) {
        self.read_channels(rows, 0..self.c, out);
    }

    /// As [`GradReader::read`], channels `channels` only (rows x channels), rounded once.
    pub(super) fn read_channels<O: Stored>(
        &self,
        rows: Range<usize>,
        channels: Range<usize>,
        out: &mut [O],
    ) {
        debug_assert_eq!(out.len(), rows.len() * channels.len());
        let span = rows.start * self.c..rows.end * self.c;
        match (self.g, self.batch_norm) {
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
fn copy_channels<E: Stored, O: Stored>(
    rows: &[E],
    c: usize,
    channels: Range<usize>,
    out: &mut [O],
) {
    let (c, channels) = if channels.len() == c {
        (rows.len().max(1), 0..rows.len())
    } else {
        (c, channels)
    };
    if channels.is_empty() {
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            for (out, row) in out
                .chunks_exact_mut(channels.len())
                .zip(rows.chunks_exact(c))
            {
                for (out, v) in out.iter_mut().zip(&row[channels.clone()]) {
                    *out = O::narrow(v.widen());
                }
            }
        },
    );
}

/// out = a g + b raw + c in some of the channels.
fn step_back<E: Stored, O: Stored>(
    g: &[E],
    raw: &[E],
    coefficients: [&[f32]; 3],
    channels: Range<usize>,
    out: &mut [O],
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
                    *out = O::narrow(*a * g.widen() + (*b * y.widen() + *k));
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
        let c = self.value.c;
        let mut g = MatMut::new(g, rows.len(), c);
        self.close_columns((rows, 0..c), &mut g, (partial, 0));
    }

    /// As [`Closer::close`], some channels only: `g` is rows x channels. `partial` holds the sums of a block of channels, and
    /// the first of these is its channel number `at`.
    pub(super) fn close_columns(
        &self,
        place: (Range<usize>, Range<usize>),
        g: &mut MatMut<'_>,
        (partial, at): (&mut [f32], usize),
    ) {
        match self.value.raw {
            Tensor::F32(raw) => self.close_stored(raw, place, g, (partial, at)),
            Tensor::Bf16(raw) => self.close_stored(raw, place, g, (partial, at)),
        }
    }

    fn close_stored<E: Stored>(
        &self,
        raw: &[E],
        (rows, channels): (Range<usize>, Range<usize>),
        g: &mut MatMut<'_>,
        (partial, at): (&mut [f32], usize),
    ) {
        const ROWS: usize = 8;
        const LANES: usize = 16;
        let c = self.value.c;
        assert_eq!((g.rows(), g.cols()), (rows.len(), channels.len()), "g");
        let width = partial.len() / sums::len(1);
        let end = channels.len();
        // A few rows at a time: coefficients and sums of some channels stay in registers, and memory is walked in order.
        vectorised(
            #[inline(always)]
            || {
                for start in (0..rows.len()).step_by(ROWS) {
                    let group = start..(start + ROWS).min(rows.len());
                    let raw = &raw[(rows.start + start) * c..(rows.start + group.end) * c];
                    let mut column = 0;
                    while column + LANES <= end {
                        let place = (group.clone(), column, channels.start + column);
                        let sums = (&mut *partial, at + column, width);
                        self.close_channels::<E, LANES>(place, g, raw, sums);
                        column += LANES;
                    }
                    while column < end {
                        let place = (group.clone(), column, channels.start + column);
                        let sums = (&mut *partial, at + column, width);
                        self.close_channels::<E, 1>(place, g, raw, sums);
                        column += 1;
                    }
                }
            },
        );
    }

    /// Rows of g, L columns from `column` on, which are channels from `first` on.
    #[inline(always)]
    fn close_channels<E: Stored, const L: usize>(
        &self,
        place: (Range<usize>, usize, usize),
        g: &mut MatMut<'_>,
        raw: &[E],
        sums: (&mut [f32], usize, usize),
    ) {
        // Closures that are not inlined would be compiled for the least of machines.
        match self.value.act {
            Activation::Identity => self.close_with::<E, L>(
                place,
                g,
                raw,
                sums,
                None,
                #[inline(always)]
                |g, _, _| g,
            ),
            Activation::Relu => self.close_with::<E, L>(
                place,
                g,
                raw,
                sums,
                None,
                #[inline(always)]
                |g, v, _| if v > 0.0 { g } else { 0.0 },
            ),
            Activation::Relu6 => self.close_with::<E, L>(
                place,
                g,
                raw,
                sums,
                None,
                #[inline(always)]
                |g, v, _| if v > 0.0 && v < 6.0 { g } else { 0.0 },
            ),
            Activation::PRelu(slopes) => self.close_with::<E, L>(
                place,
                g,
                raw,
                sums,
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
        (rows, column, first): (Range<usize>, usize, usize),
        g: &mut MatMut<'_>,
        raw: &[E],
        (partial, at, width): (&mut [f32], usize, usize),
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
        for (row, raw) in rows.zip(raw.chunks_exact(c)) {
            let to: &mut [f32; L] = (&mut g.row(row)[column..][..L]).try_into().expect("lanes");
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
            let total = &mut partial[which * width + at..][..L];
            for i in 0..L {
                total[i] += sum[i];
            }
        }
    }

    /// Merges the tiles' channel sums, in tile order, into the buffer that [`sums`] lays out. A tile's partials are one
    /// stretch for each block of `width` channels. The sum of g y^ is left alone where the value has no batch norm.
    pub(super) fn merge_sums(&self, partials: &[f32], width: usize, sums: &mut [f32]) {
        let c = self.value.c;
        let tile = c.div_ceil(width) * sums::len(width);
        for (which, wanted) in [
            (sums::G, true),
            (sums::G_NORMALISED, self.value.normalise.is_some()),
            (sums::SLOPE, true),
        ] {
            if !wanted {
                continue;
            }
            let blocks = sums[which * c..][..c].chunks_mut(width).enumerate();
            for (block, out) in blocks {
                let at = block * sums::len(width) + which * width;
                merge_part(partials, tile, at, out);
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
