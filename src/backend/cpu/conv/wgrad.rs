//! dW = dY^T * columns, and dbias = the channel sums of dY.
//!
//! The sum runs over all pixels. Where the filter is small the pixels are split and the parts' sums are added in order;
//! where it is large the filter itself is split, over taps or channels first and then over K.

use std::cell::RefCell;

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::gemm::{Grid, Mat, par_blocks, product};
use super::super::machine::vectorised;
use super::super::pending::{GradReader, Reader};
use super::super::tensor::TensorMut;
use super::im2col::{Gather, Source};
use super::{REGISTER_COLS, TILE, split_cols};
use crate::backend::Conv2dWgrad;
use crate::backend::geometry::Conv2d;

/// Tasks to aim at.
const TASKS: usize = 24;

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
    /// Pixels of a part, but for the last.
    part_pixels: usize,
    /// Filters K of a block; divides K where there is more than one part.
    filters: usize,
    /// Columns of a block, whole chunks of the unrolled image.
    columns: usize,
}

impl Split {
    fn new(geometry: &Conv2d, gather: &Gather) -> Self {
        let (pixels, k, columns) = (geometry.pixels_out(), geometry.k, gather.columns());
        // Adding up a part costs a pass over the filter, so the larger the filter the more pixels a part must have.
        let least = if geometry.filter_len() <= 128 << 10 {
            2 * TILE
        } else {
            8 * TILE
        };
        let parts = (pixels / least)
            .min(PARTIALS / geometry.filter_len())
            .clamp(1, TASKS);
        let part_pixels = pixels.div_ceil(parts).next_multiple_of(8).max(8);
        let parts = pixels.div_ceil(part_pixels).max(1);
        let chunk = gather.chunk_columns();
        let chunks = columns.div_ceil(chunk);
        let per_task = (chunks * parts / TASKS).max(1);
        let wanted = TASKS.div_ceil(parts * chunks.div_ceil(per_task));
        let wanted = wanted.min(k.div_ceil(2 * REGISTER_COLS));
        let filters = match wanted {
            0 | 1 => k,
            _ if parts == 1 => split_cols(k, wanted),
            // Blocks of several parts' rows must not straddle two parts.
            _ => (1..=wanted)
                .rev()
                .find(|n| k.is_multiple_of(*n))
                .map_or(k, |n| k / n),
        };
        Split {
            parts,
            part_pixels,
            filters,
            columns: per_task * chunk,
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
    let gather = Gather::forward(geometry);
    let columns = gather.columns();
    let split = Split::new(geometry, &gather);
    let grid = Grid {
        rows: split.parts * k,
        cols: columns,
        row_block: split.filters,
        col_block: split.columns.min(columns),
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
    par_blocks(
        TensorMut::F32(out),
        grid,
        false,
        bias_parts,
        bias_len,
        |mut block, bias| {
            let part = block.rows.start / k;
            let filters = block.rows.start % k..block.rows.start % k + block.rows.len();
            let end = ((part + 1) * split.part_pixels).min(pixels);
            let with_bias = bias_len > 0 && block.cols.start == 0;
            bias.fill(0.0);
            let mut accumulate = false;
            let mut start = part * split.part_pixels;
            while start < end {
                let tile = start..(start + TILE).min(end);
                let mut step = |grad: &[f32], stride: usize| {
                    if with_bias {
                        add_rows(grad, stride, tile.len(), &mut bias[..filters.len()]);
                    }
                    let grad = Mat::new(grad, tile.len(), filters.len(), stride);
                    gather.unroll(x, tile.clone(), block.cols.clone(), |chunk, unrolled| {
                        let at = chunk.start - block.cols.start;
                        let mut out = block.out.columns(at..at + chunk.len());
                        product(&mut out, grad.t(), unrolled, accumulate);
                    });
                };
                if let Some(stored) = dy.stored() {
                    step(&stored[tile.start * k + filters.start..], k);
                } else {
                    GRAD.with_borrow_mut(|grad| {
                        let grad = grad.at_least(tile.len() * filters.len());
                        Source::read(&dy, tile.clone(), filters.clone(), grad);
                        step(grad, filters.len());
                    });
                }
                accumulate = true;
                start = tile.end;
            }
            if !accumulate {
                for i in 0..block.out.rows() {
                    block.out.row(i).fill(0.0);
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

/// Adds rows, `stride` apart, to `sum`.
fn add_rows(rows: &[f32], stride: usize, count: usize, sum: &mut [f32]) {
    vectorised(
        #[inline(always)]
        || {
            for i in 0..count {
                for (sum, v) in sum.iter_mut().zip(&rows[i * stride..]) {
                    *sum += *v;
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
