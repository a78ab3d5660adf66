//! Depthwise convolution: every channel has its own R x S filter.
//!
//! y[n,p,q,c] = sum over r,s of x[n, p stride + r - top, q stride + s - left, c] w[r,s,c] (+ bias[c]), NHWC and RSC,
//! f32. It is bound by memory, not by arithmetic (9 multiply-adds for 8 bytes), so each pass reads every tensor once:
//! a source row is read, with what is pending applied, into a ring of as many rows as a window touches, between
//! columns of zeros (a padding pixel is zero after scale, shift and activation), and used from there.
//!
//! dgrad is a correlation too, of the gradient with the flipped filter. With a stride t the pixels of d_x whose
//! columns leave the same remainder mod t see every t-th tap, side by side in a row of d_y, so a row is written as t
//! interleaved correlations with filters of about S / t taps.
//!
//! Tiles are images, or bands of an image's rows; channel sums, moments and filter gradients are taken a tile and
//! merged in tile order.

mod kernel;

use super::Buffer;
use super::batch_norm::{self, BLOCK_PIXELS};
use super::machine::{self, vectorised};
use super::pending::{Closer, GradReader, Reader, merge_part, partial_len, sliced};
use super::tensor::round_all;
use super::tiles::{self, TILES, with_workspace};
use crate::backend::geometry::{PerChannel, Window};
use crate::backend::{DepthwiseDgrad, DepthwiseFprop, DepthwiseWgrad, Epilogue};
use kernel::{Accumulate, Columns, Correlate, LANES, TapRows};
use rayon::prelude::*;
use std::ops::Range;

/// Fewest rows of outputs worth a band of their own, since each band reads a window's rows again.
const SMALLEST_BAND: usize = 7;

/// Tiles of the filter's gradient, each with a partial filter.
const WGRAD_TILES: usize = 32;

/// Elements after which a tile's finished rows get their epilogue, while they are in the first-level cache.
const EPILOGUE: usize = 4096;

/// Which of the two correlations of a window.
#[derive(Clone, Copy, PartialEq)]
enum Direction {
    /// From x to y.
    Forward,
    /// From d_y to d_x.
    Backward,
}

/// A correlation: the sizes of both images, and which source pixels an output pixel sees.
#[derive(Clone, Copy)]
struct Pass {
    direction: Direction,
    window: Window,
    c: usize,
    /// Channels, padded.
    cp: usize,
    source_h: usize,
    source_w: usize,
    out_h: usize,
    out_w: usize,
    /// Zero columns before a source row.
    lead: usize,
    /// Pixels of a slot.
    slot_pixels: usize,
    /// Slots of the ring.
    slots: usize,
}

impl Pass {
    fn forward(geometry: &PerChannel) -> Self {
        let window = geometry.window;
        let reach = (window.q - 1) * window.stride + window.s;
        Pass {
            direction: Direction::Forward,
            window,
            c: geometry.c,
            cp: geometry.c.next_multiple_of(LANES),
            source_h: window.h,
            source_w: window.w,
            out_h: window.p,
            out_w: window.q,
            lead: window.pad.left,
            slot_pixels: reach.max(window.pad.left + window.w),
            slots: window.r,
        }
    }

    fn backward(geometry: &PerChannel) -> Self {
        let window = geometry.window;
        let lead = window.s.div_ceil(window.stride) - 1;
        let last = (window.w - 1 + window.pad.left) / window.stride;
        Pass {
            direction: Direction::Backward,
            window,
            c: geometry.c,
            cp: geometry.c.next_multiple_of(LANES),
            source_h: window.p,
            source_w: window.q,
            out_h: window.h,
            out_w: window.w,
            lead,
            slot_pixels: lead + window.q.max(last + 1),
            slots: window.r.div_ceil(window.stride),
        }
    }

    /// Elements of a packed filter.
    fn filter_len(&self) -> usize {
        self.window.r * self.window.s * self.cp
    }

    /// Packs an RSC filter in the order in which the kernels meet its taps, channels padded with zeros: RSC forward;
    /// backward with the rows in reverse, and in a row the columns grouped by their remainder mod the stride, each
    /// group in reverse.
    fn pack_filter(&self, filter: &[f32], packed: &mut [f32]) {
        let Window { r, s, stride, .. } = self.window;
        for (row, taps) in packed[..self.filter_len()]
            .chunks_exact_mut(s * self.cp)
            .enumerate()
        {
            for tap in 0..s {
                let (to, from_row) = match self.direction {
                    Direction::Forward => (tap, row),
                    Direction::Backward => {
                        let group = self.group(tap % stride);
                        (group.end - 1 - tap / stride, r - 1 - row)
                    }
                };
                let to = &mut taps[to * self.cp..][..self.cp];
                to[..self.c].copy_from_slice(&filter[(from_row * s + tap) * self.c..][..self.c]);
                to[self.c..].fill(0.0);
            }
        }
    }

    /// Places in a packed row of the taps whose column is `remainder` mod the stride.
    fn group(&self, remainder: usize) -> Range<usize> {
        let Window { s, stride, .. } = self.window;
        let taps = |remainder: usize| s.saturating_sub(remainder).div_ceil(stride);
        let start = (0..remainder).map(taps).sum();
        start..start + taps(remainder)
    }

    /// Source rows that output row `row` sees, with the packed row of the first and the step between them.
    fn source_rows(&self, row: usize) -> (Range<usize>, usize, usize) {
        let Window { r, stride, pad, .. } = self.window;
        match self.direction {
            Direction::Forward => {
                let start = row * stride;
                let rows = start.saturating_sub(pad.top)
                    ..(start + r).saturating_sub(pad.top).min(self.source_h);
                (rows, pad.top.saturating_sub(start), 1)
            }
            Direction::Backward => {
                // p stride + r' = row + top for tap row r'.
                let sum = row + pad.top;
                let first = (sum + 1).saturating_sub(r).div_ceil(stride);
                let rows = first..(sum / stride + 1).min(self.source_h).max(first);
                let packed = if rows.is_empty() {
                    0
                } else {
                    r - 1 - (sum - first * stride)
                };
                (rows, packed, stride)
            }
        }
    }

    /// The interleaved correlations that write a row: their first output pixel, their columns, and their place in a
    /// packed row of taps.
    fn phases(&self) -> impl Iterator<Item = (usize, Columns, usize)> {
        let Window { s, stride, pad, .. } = self.window;
        let phases = match self.direction {
            Direction::Forward => 1,
            Direction::Backward => stride.min(self.out_w),
        };
        (0..phases).map(move |phase| match self.direction {
            Direction::Forward => {
                let columns = Columns {
                    taps: s,
                    start: 0,
                    step: stride,
                    count: self.out_w,
                    out_step: 1,
                };
                (0, columns, 0)
            }
            Direction::Backward => {
                let group = self.group((phase + pad.left) % stride);
                let columns = Columns {
                    taps: group.len(),
                    start: self.lead + (phase + pad.left) / stride + 1 - group.len().max(1),
                    step: 1,
                    count: (self.out_w - phase).div_ceil(stride),
                    out_step: stride,
                };
                (phase, columns, group.start)
            }
        })
    }

    /// Elements of the ring.
    fn ring_len(&self) -> usize {
        self.slots * self.slot_len()
    }

    /// Elements of a slot.
    fn slot_len(&self) -> usize {
        self.slot_pixels * self.cp
    }
}

/// The source rows that the current window sees, row h of the image in slot h % slots.
struct Ring<'a> {
    pass: Pass,
    slots: &'a mut [f32],
    /// A source row as it is read, where channels are padded.
    row: &'a mut [f32],
    image: usize,
    /// Rows of the image before this one have been read.
    next: usize,
}

impl<'a> Ring<'a> {
    fn workspace_len(pass: &Pass) -> usize {
        // The row's length is rounded up so that what follows it in the workspace is aligned.
        pass.ring_len() + (pass.source_w * pass.c).next_multiple_of(LANES)
    }

    fn new(pass: Pass, workspace: &'a mut [f32]) -> Self {
        let (slots, row) = workspace.split_at_mut(pass.ring_len());
        for slot in slots.chunks_exact_mut(pass.slot_len()) {
            slot[..pass.lead * pass.cp].fill(0.0);
            slot[(pass.lead + pass.source_w) * pass.cp..].fill(0.0);
        }
        Ring {
            pass,
            slots,
            row,
            image: usize::MAX,
            next: 0,
        }
    }

    /// Makes sure that `rows` of `image` are there; rows of an image come in ascending order.
    fn read(&mut self, image: usize, rows: Range<usize>, read: &impl Fn(Range<usize>, &mut [f32])) {
        let Pass {
            c,
            cp,
            source_h,
            source_w,
            lead,
            slots,
            ..
        } = self.pass;
        if self.image != image {
            (self.image, self.next) = (image, 0);
        }
        for row in rows.start.max(self.next)..rows.end {
            let first = (image * source_h + row) * source_w;
            let slot = &mut self.slots[row % slots * self.pass.slot_len()..];
            let slot = &mut slot[lead * cp..][..source_w * cp];
            read_padded(first..first + source_w, (c, cp), slot, self.row, read);
            self.next = row + 1;
        }
    }

    /// The kernels' description of rows that have been read.
    fn tap_rows(&self, rows: Range<usize>, packed: usize, step: usize, taps_at: usize) -> TapRows {
        let Pass {
            cp, window, slots, ..
        } = self.pass;
        TapRows {
            first: rows.start % slots * self.pass.slot_len(),
            slot_len: self.pass.slot_len(),
            ring_len: self.pass.ring_len(),
            count: rows.len(),
            weights: (packed * window.s + taps_at) * cp,
            weights_step: step * window.s * cp,
        }
    }
}

/// Reads pixels (of C channels) and pads their channels to `cp` with zeros; `row` is workspace.
fn read_padded(
    pixels: Range<usize>,
    (c, cp): (usize, usize),
    out: &mut [f32],
    row: &mut [f32],
    read: &impl Fn(Range<usize>, &mut [f32]),
) {
    if c == cp {
        read(pixels, out);
        return;
    }
    let row = &mut row[..pixels.len() * c];
    read(pixels, row);
    for (out, row) in out.chunks_exact_mut(cp).zip(row.chunks_exact(c)) {
        out[..c].copy_from_slice(row);
        out[c..].fill(0.0);
    }
}

/// What becomes of a run of output pixels: arguments are the pixels, their values, the tile's partial results, and
/// how many of the tile's pixels came before.
trait Finish: Fn(Range<usize>, &mut [f32], &mut [f32], usize) + Sync {}
impl<F: Fn(Range<usize>, &mut [f32], &mut [f32], usize) + Sync> Finish for F {}

/// How the output rows of a batch are cut into tiles.
#[derive(Clone, Copy)]
struct Tiling {
    /// Rows of the batch.
    rows: usize,
    /// Rows of a group: a whole number of images.
    group_rows: usize,
    /// Rows of a tile: the group's, or a band of its one image.
    tile_rows: usize,
}

impl Tiling {
    fn new(n: usize, out_h: usize) -> Self {
        let images = n.div_ceil(TILES).max(1);
        let bands = (TILES / n.max(1)).clamp(1, out_h.div_ceil(SMALLEST_BAND));
        Tiling {
            rows: n * out_h,
            group_rows: images * out_h,
            tile_rows: if images > 1 {
                images * out_h
            } else {
                out_h.div_ceil(bands)
            },
        }
    }

    /// Tiles of a group.
    fn bands(&self) -> usize {
        self.group_rows.div_ceil(self.tile_rows)
    }

    fn tiles(&self) -> usize {
        self.rows.div_ceil(self.group_rows) * self.bands()
    }

    /// Rows of the batch that belong to a tile.
    fn rows(&self, tile: usize) -> Range<usize> {
        let (group, band) = (tile / self.bands(), tile % self.bands());
        let group_end = ((group + 1) * self.group_rows).min(self.rows);
        let first = group * self.group_rows + band * self.tile_rows;
        first..(first + self.tile_rows).min(group_end)
    }
}

/// A correlation's tensors: the packed filter, what every output begins with (nothing: add to what is there).
struct Operands<'a> {
    filter: &'a [f32],
    init: Option<&'a [f32]>,
}

/// Runs a correlation over the batch, with `partials` of `partial_len` elements a tile.
fn correlate(
    pass: Pass,
    tiling: Tiling,
    operands: &Operands<'_>,
    read: impl Fn(Range<usize>, &mut [f32]) + Sync,
    out: &mut Buffer,
    (partials, partial_len): (&mut [f32], usize),
    finish: impl Finish,
) {
    let row_len = pass.out_w * pass.c;
    let (read, finish) = (&read, &finish);
    let load = operands.init.is_none();
    out.tensor_mut()
        .first(tiling.rows * row_len)
        .par_chunks(tiling.group_rows * row_len)
        .zip(partials.par_chunks_mut(tiling.bands() * partial_len))
        .enumerate()
        .flat_map(|(group, (out, partials))| {
            out.par_chunks(tiling.tile_rows * row_len)
                .zip(partials.par_chunks_mut(partial_len))
                .enumerate()
                .map(move |(band, (out, partial))| {
                    let tile = group * tiling.bands() + band;
                    (tiling.rows(tile).start, out, partial)
                })
        })
        .for_each(|(first, out, partial)| {
            out.edit(load, |out| {
                correlate_tile(pass, first, operands, read, out, partial, finish);
            });
        });
}

/// One tile, from row `first` of the batch's output rows on.
fn correlate_tile(
    pass: Pass,
    first: usize,
    operands: &Operands<'_>,
    read: &impl Fn(Range<usize>, &mut [f32]),
    out: &mut [f32],
    partial: &mut [f32],
    finish: &impl Finish,
) {
    let Pass {
        c,
        cp,
        out_h,
        out_w,
        ..
    } = pass;
    let ring_len = Ring::workspace_len(&pass);
    let padded_len = if c == cp { 0 } else { out_w * cp };
    partial.fill(0.0);
    with_workspace(ring_len + padded_len, |workspace| {
        let (workspace, padded) = workspace.split_at_mut(ring_len);
        let mut ring = Ring::new(pass, workspace);
        let rows = out.len() / (out_w * c);
        // Pixels of the tile that have had their epilogue.
        let mut done = 0;
        for i in 0..rows {
            let (image, row) = ((first + i) / out_h, (first + i) % out_h);
            let (source, packed, step) = pass.source_rows(row);
            ring.read(image, source.clone(), read);
            let target = &mut out[i * out_w * c..][..out_w * c];
            if c != cp && operands.init.is_none() {
                for (padded, target) in padded.chunks_exact_mut(cp).zip(target.chunks_exact(c)) {
                    padded[..c].copy_from_slice(target);
                    padded[c..].fill(0.0);
                }
            }
            let to = if c == cp { &mut *target } else { &mut *padded };
            for (pixel, columns, taps_at) in pass.phases() {
                machine::arch().dispatch(Correlate {
                    ring: ring.slots,
                    weights: operands.filter,
                    rows: ring.tap_rows(source.clone(), packed, step, taps_at),
                    columns,
                    cp,
                    init: operands.init,
                    out: &mut to[pixel * cp..],
                });
            }
            if c != cp {
                for (padded, target) in padded.chunks_exact(cp).zip(target.chunks_exact_mut(c)) {
                    target.copy_from_slice(&padded[..c]);
                }
            }
            let ready = (i + 1) * out_w;
            if (ready - done) * c >= EPILOGUE || i + 1 == rows {
                for start in (done..ready).step_by(BLOCK_PIXELS) {
                    let end = (start + BLOCK_PIXELS).min(ready);
                    let pixel = first * out_w;
                    let values = &mut out[start * c..end * c];
                    finish(pixel + start..pixel + end, values, partial, start);
                }
                done = ready;
            }
        }
    });
}

pub(super) fn fprop(scratch: &mut Buffer, op: DepthwiseFprop<'_, Buffer>) {
    let DepthwiseFprop {
        ref geometry,
        x,
        params,
        filter,
        y,
        epilogue,
    } = op;
    let PerChannel { n, c, window } = *geometry;
    if n * c == 0 {
        return;
    }
    let pass = Pass::forward(geometry);
    let tiling = Tiling::new(n, window.p);
    let moments_len = batch_norm::PARTIAL * c;
    let (packed, rest) = scratch
        .at_least(pass.filter_len() + pass.cp + tiling.tiles() * moments_len)
        .split_at_mut(pass.filter_len());
    let (bias, partials) = rest.split_at_mut(pass.cp);
    pass.pack_filter(&params[filter.weights..][..geometry.filter_len()], packed);
    bias.fill(0.0);
    if let Some(at) = filter.bias {
        bias[..c].copy_from_slice(&params[at..][..c]);
    }
    let reader = Reader::new(x, c);
    let read = |pixels: Range<usize>, out: &mut [f32]| reader.read(pixels, out);
    let operands = Operands {
        filter: packed,
        init: Some(bias),
    };
    let partials = (partials, moments_len);
    match epilogue {
        Epilogue::Raw => {
            let finish = |_: Range<usize>, _: &mut [f32], _: &mut [f32], _| {};
            correlate(pass, tiling, &operands, read, y, partials, finish);
        }
        Epilogue::Moments(moments) => {
            let element = y.tensor().element();
            let finish = |_: Range<usize>, y: &mut [f32], partial: &mut [f32], count| {
                round_all(element, y);
                batch_norm::add_block(partial, count, y, c);
            };
            let (partials, len) = partials;
            correlate(
                pass,
                tiling,
                &operands,
                read,
                y,
                (&mut *partials, len),
                finish,
            );
            let count = |tile| tiling.rows(tile).len() * window.q;
            batch_norm::merge_moments(partials, count, moments, c);
        }
        Epilogue::Activate {
            residual,
            activation,
        } => {
            let (act, residual) = (sliced(activation, c), residual.map(Buffer::tensor));
            let finish = |pixels: Range<usize>, y: &mut [f32], _: &mut [f32], _| {
                if let Some(residual) = residual {
                    residual.add_to(pixels.start * c..pixels.end * c, y);
                }
                vectorised(
                    #[inline(always)]
                    || act.apply(y, c),
                );
            };
            correlate(pass, tiling, &operands, read, y, partials, finish);
        }
    }
}

pub(super) fn dgrad(scratch: &mut Buffer, op: DepthwiseDgrad<'_, Buffer>) {
    let DepthwiseDgrad {
        ref geometry,
        dy,
        params,
        filter,
        dx,
    } = op;
    let PerChannel { n, c, window } = *geometry;
    if n * c == 0 {
        return;
    }
    let pass = Pass::backward(geometry);
    let tiling = Tiling::new(n, window.h);
    let sums_len = partial_len(c);
    let (packed, rest) = scratch
        .at_least(pass.filter_len() + pass.cp + tiling.tiles() * sums_len)
        .split_at_mut(pass.filter_len());
    let (zero, partials) = rest.split_at_mut(pass.cp);
    pass.pack_filter(&params[filter.weights..][..geometry.filter_len()], packed);
    zero.fill(0.0);
    let reader = GradReader::new(dy, c);
    let read = |pixels: Range<usize>, out: &mut [f32]| reader.read(pixels, out);
    let operands = Operands {
        filter: packed,
        init: (!dx.accumulate).then_some(&*zero),
    };
    let Some(close) = dx.close else {
        let finish = |_: Range<usize>, _: &mut [f32], _: &mut [f32], _| {};
        correlate(
            pass,
            tiling,
            &operands,
            read,
            dx.g,
            (partials, sums_len),
            finish,
        );
        return;
    };
    let (closer, sums) = Closer::new(close, c);
    let finish = |pixels: Range<usize>, g: &mut [f32], partial: &mut [f32], _| {
        closer.close(pixels, g, partial);
    };
    correlate(
        pass,
        tiling,
        &operands,
        read,
        dx.g,
        (&mut *partials, sums_len),
        finish,
    );
    if let Some(sums) = sums {
        closer.merge_sums(partials, c, sums);
    }
}

pub(super) fn wgrad(scratch: &mut Buffer, op: DepthwiseWgrad<'_, Buffer>) {
    let DepthwiseWgrad {
        ref geometry,
        dy,
        x,
        grads,
        filter,
    } = op;
    let PerChannel { n, c, window } = *geometry;
    let pass = Pass::forward(geometry);
    let (cp, filter_len) = (pass.cp, pass.filter_len());
    let rows = n * window.p;
    // Whole images where a tile would be larger than one.
    let mut tile_rows = rows.div_ceil(WGRAD_TILES).max(SMALLEST_BAND);
    if tile_rows >= window.p {
        tile_rows = tile_rows.next_multiple_of(window.p);
    }
    let len = filter_len + cp;
    let partials = scratch.at_least(rows.div_ceil(tile_rows) * len);
    let x = Reader::new(x, c);
    let dy = GradReader::new(dy, c);
    let read_x = |pixels: Range<usize>, out: &mut [f32]| x.read(pixels, out);
    let read_dy = |pixels: Range<usize>, out: &mut [f32]| dy.read(pixels, out);
    let has_bias = filter.bias.is_some();
    partials
        .par_chunks_mut(len.max(1))
        .enumerate()
        .for_each(|(tile, partial)| {
            partial.fill(0.0);
            let (weights, bias) = partial.split_at_mut(filter_len);
            let ring_len = Ring::workspace_len(&pass);
            with_workspace(ring_len + window.q * (cp + c), |workspace| {
                let (workspace, rest) = workspace.split_at_mut(ring_len);
                let (d_out, d_row) = rest.split_at_mut(window.q * cp);
                let mut ring = Ring::new(pass, workspace);
                for row in tile * tile_rows..((tile + 1) * tile_rows).min(rows) {
                    let (image, p) = (row / window.p, row % window.p);
                    let (source, packed, step) = pass.source_rows(p);
                    ring.read(image, source.clone(), &read_x);
                    let pixels = row * window.q..(row + 1) * window.q;
                    read_padded(pixels, (c, cp), d_out, d_row, &read_dy);
                    for (_, columns, taps_at) in pass.phases() {
                        machine::arch().dispatch(Accumulate {
                            ring: ring.slots,
                            weights,
                            rows: ring.tap_rows(source.clone(), packed, step, taps_at),
                            columns,
                            cp,
                            d_out,
                        });
                    }
                    if has_bias {
                        for pixel in d_out.chunks_exact(cp) {
                            tiles::add_to(bias, pixel);
                        }
                    }
                }
            });
        });
    for (tap, out) in grads[filter.weights..][..geometry.filter_len()]
        .chunks_exact_mut(c.max(1))
        .enumerate()
    {
        merge_part(partials, len, tap * cp, out);
    }
    if let Some(at) = filter.bias {
        merge_part(partials, len, filter_len, &mut grads[at..][..c]);
    }
}
