//! dW = dY^T * windows of x, and dbias = the channel sums of dY.
//!
//! The sum runs over all pixels. Where the filter is small the pixels are split, and the parts' sums are added in order.
//! Where it is large the filter itself is split, over K and over the window's elements.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::machine::vectorised;
use super::super::matrix::{Grid, MatMut, Part, par_blocks};
use super::super::pending::{GradReader, Reader};
use super::super::product::{
    Finish, PANEL_ALIGN, ROW_ALIGN, Terms, Windows, multiply, pack_columns, pair, panel_width,
    panels,
};
use super::super::tensor::TensorMut;
use super::super::tiles::with_workspace;
use super::gather::{Gather, Operand};
use super::split_panels;
use crate::backend::Conv2dWgrad;
use crate::backend::geometry::Conv2d;

/// Pixels of a tile: with a panel's columns they stay in the first-level cache.
const TILE: usize = 128;

/// Tasks to aim at.
const TASKS: usize = 16;

/// Elements of all parts' sums together.
const PARTIALS: usize = 4 << 20;

thread_local! {
    /// The tile of dY that a thread works on.
    static GRAD: RefCell<Buffer> = RefCell::default();
}

/// How the sum and its result are split.
#[derive(Clone, Copy, Debug)]
struct Split {
    /// Parts of the pixels.
    parts: usize,
    /// Pixels of each part but the last.
    part_pixels: usize,
    /// Filters of a block; divides K where there is more than one part.
    filters: usize,
    /// Window elements of a block.
    columns: usize,
}

impl Split {
    fn new(geometry: &Conv2d) -> Self {
        let (pixels, k) = (geometry.pixels_out(), geometry.k);
        let columns = geometry.filter_len() / k;
        // Adding up a part costs a pass over the filter, so the larger the filter the more pixels a part must have.
        let least = if geometry.filter_len() <= 512 << 10 {
            4 * TILE
        } else {
            16 * TILE
        };
        let parts = (pixels / least)
            .min(PARTIALS / geometry.filter_len())
            .clamp(1, TASKS);
        let part_pixels = pixels.div_ceil(parts).next_multiple_of(8).max(8);
        let parts = pixels.div_ceil(part_pixels).max(1);
        // Of the cuts that give enough blocks, the one by which the least is read: each block reads dY of its filters and
        // packs x of its columns, which costs about a third of that.
        let (tasks, panels) = (TASKS.div_ceil(parts), columns.div_ceil(PANEL_ALIGN));
        let cuts = (1..=tasks.min(k.div_ceil(4 * ROW_ALIGN))).map(|rows| {
            let cols = tasks.div_ceil(rows).min(panels);
            (rows, cols)
        });
        let (rows, cols) = cuts
            .min_by_key(|(rows, cols)| (rows * cols < tasks, 3 * k * cols + columns * rows))
            .expect("a cut");
        let filters = if parts == 1 {
            k.div_ceil(rows).next_multiple_of(ROW_ALIGN).min(k)
        } else {
            // Blocks of several parts' rows must not straddle two parts, and words not two blocks.
            (1..=rows)
                .rev()
                .find(|n| k.is_multiple_of(*n) && (k / n).is_multiple_of(2))
                .map_or(k, |n| k / n)
        };
        Split {
            parts,
            part_pixels,
            filters,
            columns: split_panels(columns, cols),
        }
    }
}

pub(in super::super) fn wgrad(scratch: &mut Buffer, op: Conv2dWgrad<'_, Buffer>) {
    let Conv2dWgrad {
        ref geometry,
        dy,
        x,
        grads,
        filter,
    } = op;
    let (c, k, pixels) = (geometry.c, geometry.k, geometry.pixels_out());
    let (dy, x) = (GradReader::new(dy, k), Reader::new(x, c));
    assert!(dy.g.len() >= pixels * k, "dy of {geometry:?}");
    assert!(x.raw.len() >= geometry.pixels_in() * c, "x of {geometry:?}");
    let terms = Terms::of(x.raw.element(), [c, k]);
    let split = Split::new(geometry);
    let columns = geometry.filter_len() / k;
    let grid = Grid {
        rows: split.parts * k,
        cols: columns,
        row_block: split.filters,
        col_block: split.columns,
    };
    let bias_len = if filter.bias.is_some() {
        split.filters
    } else {
        0
    };
    let parts_len = if split.parts > 1 {
        grid.rows * columns
    } else {
        0
    };
    let (parts, bias_parts) = scratch
        .at_least(parts_len + grid.blocks() * bias_len)
        .split_at_mut(parts_len);
    let d_weights = &mut grads[filter.weights..][..geometry.filter_len()];
    let out = if split.parts > 1 {
        &mut *parts
    } else {
        &mut *d_weights
    };
    let operands = Operands {
        gather: Gather::forward(geometry, terms),
        dy: Operand::new(dy, terms),
        x: Operand::new(x, terms),
    };
    par_blocks(
        TensorMut::F32(out),
        grid,
        bias_parts,
        bias_len,
        |mut block, bias| {
            let part = block.rows.start / k;
            let filters = block.rows.start % k..block.rows.start % k + block.rows.len();
            let begin = part * split.part_pixels;
            let end = (begin + split.part_pixels).min(pixels);
            let with_bias = bias_len > 0 && block.cols.start == 0;
            bias.fill(0.0);
            let Part::F32(out) = &mut block.out else {
                unreachable!("gradients of parameters are float32");
            };
            for start in (begin..end).step_by(TILE) {
                let tile = start..(start + TILE).min(end);
                let place = (filters.clone(), block.cols.clone());
                let bias = with_bias.then_some(&mut *bias);
                operands.add_tile(tile, place, out, start > begin, bias);
            }
            if begin >= end {
                for i in 0..out.rows() {
                    out.row(i).fill(0.0);
                }
            }
        },
    );
    if split.parts > 1 {
        add_parts(parts, d_weights);
    }
    if let Some(at) = filter.bias {
        let d_bias = &mut grads[at..][..k];
        let blocks = k.div_ceil(split.filters);
        for (i, d) in d_bias.iter_mut().enumerate() {
            let (block, i) = (i / split.filters, i % split.filters);
            *d = (0..split.parts)
                .map(|part| (part * blocks + block) * grid.col_blocks())
                .map(|index| f64::from(bias_parts[index * bias_len + i]))
                .sum::<f64>() as f32;
        }
    }
}

/// What every block reads.
struct Operands<'a> {
    gather: Gather,
    dy: Operand<GradReader<'a>>,
    x: Operand<Reader<'a>>,
}

impl Operands<'_> {
    /// out = (or +=) dY^T * windows of x, of some filters and columns, over the pixels of a tile; the channel sums of dY are
    /// added to `bias`.
    fn add_tile(
        &self,
        tile: Range<usize>,
        (filters, columns): (Range<usize>, Range<usize>),
        out: &mut MatMut<'_>,
        accumulate: bool,
        bias: Option<&mut [f32]>,
    ) {
        let terms = self.dy.terms();
        let (per_word, count, width) = (terms.per_word(), filters.len(), panel_width());
        // With pairs and an odd number of pixels, the last one's neighbour has a gradient of zero, and the same window.
        let words = tile.len().div_ceil(per_word);
        GRAD.with_borrow_mut(|grad| {
            let room = grad.at_least(2 * words * count);
            let grad = self.read_grad(tile.clone(), filters, room);
            if let Some(bias) = bias {
                add_terms(terms, grad, &mut bias[..count]);
            }
            let grad = Windows::columns(terms, grad, [count, count, words]);
            // With a single tap only the block's own channels are read.
            let single = self.gather.is_single_tap();
            let (channels, before) = if single {
                (
                    columns.start / per_word..columns.end / per_word,
                    columns.start,
                )
            } else {
                (0..self.gather.c, 0)
            };
            let last = tile.len() - 1;
            self.gather.windows(self.x, tile, channels, |windows| {
                with_workspace(width * words, |panel| {
                    for cols in panels(columns.len()) {
                        let at = columns.start + cols.start - before;
                        let span = at / per_word..(at + cols.len()) / per_word;
                        pack_columns(terms, words * per_word, panel, |pixel| {
                            windows.stretches(pixel.min(last), span.clone())
                        });
                        let finish = Finish {
                            accumulate,
                            ..Finish::default()
                        };
                        multiply(&mut out.columns(cols), grad, panel, finish);
                    }
                });
            });
        });
    }

    /// Some channels of a tile of dY: words of pixels x channels. `room` is for twice as many words.
    fn read_grad<'r>(
        &self,
        tile: Range<usize>,
        filters: Range<usize>,
        room: &'r mut [f32],
    ) -> &'r [f32] {
        let (pixels, count) = (tile.len(), filters.len());
        match self.dy.terms() {
            Terms::Single => {
                let grad = &mut room[..pixels * count];
                self.dy.read(tile, filters, grad);
                grad
            }
            Terms::Pair => {
                let (half, words) = (count / 2, pixels.div_ceil(2));
                let (rows, pairs) = room.split_at_mut(words * count);
                let (read, rest) = rows.split_at_mut(pixels * half);
                rest.fill(0.0);
                self.dy.read(tile, filters.start / 2..filters.end / 2, read);
                let pairs = &mut pairs[..words * count];
                for (rows, pairs) in rows.chunks_exact(count).zip(pairs.chunks_exact_mut(count)) {
                    let (a, b) = rows.split_at(half);
                    pair(a, b, pairs);
                }
                pairs
            }
        }
    }
}

/// Adds the terms of rows of words to `sums`, one for each word of a row.
fn add_terms(terms: Terms, rows: &[f32], sums: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for row in rows.chunks_exact(sums.len()) {
                match terms {
                    Terms::Single => {
                        for (sum, word) in sums.iter_mut().zip(row) {
                            *sum += word;
                        }
                    }
                    Terms::Pair => {
                        for (sum, word) in sums.iter_mut().zip(row) {
                            let bits = word.to_bits();
                            *sum += f32::from_bits(bits << 16) + f32::from_bits(bits & 0xffff_0000);
                        }
                    }
                }
            }
        },
    );
}

/// out = the sum of the parts, each as long as `out`, in order.
fn add_parts(parts: &[f32], out: &mut [f32]) {
    const STRETCH: usize = 4096;
    let len = out.len();
    out.par_chunks_mut(STRETCH)
        .enumerate()
        .for_each(|(i, out)| {
            let parts = &parts[i * STRETCH..];
            vectorised(
                #[inline(always)]
                || {
                    out.copy_from_slice(&parts[..out.len()]);
                    for part in parts.chunks(len).skip(1) {
                        for (out, v) in out.iter_mut().zip(part) {
                            *out += *v;
                        }
                    }
                },
            );
        });
}
