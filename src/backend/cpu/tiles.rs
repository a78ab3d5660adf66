//! How the memory-bound operations cut their work: tiles for the threads, cache-sized blocks within a tile.
//!
//! A tile is a run of pixels; its size depends only on the shape, and partial sums are merged in tile order, so
//! the bits do not depend on the number of threads. A block is small enough that what one step writes is still
//! in the first-level cache when the next step reads it, so that each tensor crosses the memory bus once.

use super::buffer::Buffer;
use super::machine::vectorised;
use super::pending::{Closer, partial_len};
use super::tensor::TensorMut;
use crate::backend::GradTarget;
use crate::backend::geometry::Rows;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// Tiles that an operation aims for: enough to keep many cores busy to the end.
pub(super) const TILES: usize = 64;

/// Elements of a block: 8 KiB, so that four tensors' blocks fit a first-level cache of 32 KiB.
const BLOCK: usize = 2048;

/// Fewest elements worth a tile of their own.
const SMALLEST_TILE: usize = 4096;

/// Pixels of each tile but the last.
pub(super) fn pixels_per_tile(rows: Rows) -> usize {
    let fewest = SMALLEST_TILE.div_ceil(rows.c.max(1));
    rows.pixels.div_ceil(TILES).max(fewest)
}

/// Pixels of a block.
pub(super) fn pixels_per_block(c: usize) -> usize {
    (BLOCK / c.max(1)).max(1)
}

/// The blocks of a run of pixels, in order.
pub(super) fn blocks(pixels: Range<usize>, c: usize) -> impl Iterator<Item = Range<usize>> {
    let step = pixels_per_block(c);
    pixels
        .clone()
        .step_by(step)
        .map(move |start| start..(start + step).min(pixels.end))
}

/// Lends `f` this thread's workspace: `len` elements of unknown content. It grows once and is kept, so that a
/// training step allocates nothing. `f` must not enter the thread pool or ask for a second workspace.
pub(super) fn with_workspace<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static WORKSPACE: RefCell<Buffer> = RefCell::new(Buffer::default());
    }
    WORKSPACE.with_borrow_mut(|workspace| f(workspace.at_least(len)))
}

/// Calls `f` for all blocks of `out` (rows x C), on all threads; see [`TensorMut::edit`] for `load`.
pub(super) fn for_blocks(
    rows: Rows,
    out: TensorMut<'_>,
    load: bool,
    f: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    if rows.is_empty() {
        return;
    }
    let (c, per_tile) = (rows.c, pixels_per_tile(rows));
    out.first(rows.len())
        .par_chunks(per_tile * c)
        .enumerate()
        .for_each(|(tile, mut out)| {
            let first = tile * per_tile;
            for block in blocks(first..first + out.len() / c, c) {
                let span = (block.start - first) * c..(block.end - first) * c;
                out.part(span).edit(load, |out| f(block, out));
            }
        });
}

/// Writes a gradient into its target: `fill` writes the contribution of a block of pixels, which then replaces what
/// is there or is added to it, and is closed while it is in cache.
pub(super) fn write_grad(
    scratch: &mut Buffer,
    rows: Rows,
    dx: GradTarget<'_, Buffer>,
    fill: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let GradTarget {
        g,
        accumulate,
        close,
    } = dx;
    let c = rows.c;
    let write = |block: Range<usize>, g: &mut [f32]| {
        if accumulate {
            with_workspace(g.len(), |contribution| {
                fill(block, contribution);
                add_to(g, contribution);
            });
        } else {
            fill(block, g);
        }
    };
    let Some(close) = close else {
        for_blocks(rows, g.tensor_mut(), accumulate, write);
        return;
    };
    let (closer, sums) = Closer::new(close, c);
    close_tiles(scratch, rows, g, accumulate, &closer, sums, write);
}

/// Calls `write` for all blocks of `g`, closes each, and merges the channel sums of the tiles. See [`TensorMut::edit`] for
/// `load`.
pub(super) fn close_tiles(
    scratch: &mut Buffer,
    rows: Rows,
    g: &mut Buffer,
    load: bool,
    closer: &Closer<'_>,
    sums: Option<&mut Buffer>,
    write: impl Fn(Range<usize>, &mut [f32]) + Sync,
) {
    let (c, per_tile) = (rows.c, pixels_per_tile(rows));
    let len = partial_len(c);
    let partials = scratch.at_least(rows.pixels.div_ceil(per_tile) * len);
    if !rows.is_empty() {
        g.tensor_mut()
            .first(rows.len())
            .par_chunks(per_tile * c)
            .zip(partials.par_chunks_mut(len))
            .enumerate()
            .for_each(|(tile, (mut g, partial))| {
                partial.fill(0.0);
                let first = tile * per_tile;
                for block in blocks(first..first + g.len() / c, c) {
                    let span = (block.start - first) * c..(block.end - first) * c;
                    g.part(span).edit(load, |g| {
                        write(block.clone(), g);
                        closer.close(block, g, partial);
                    });
                }
            });
    }
    if let Some(sums) = sums {
        closer.merge_sums(partials, c, sums);
    }
}

/// to += from, element by element.
pub(super) fn add_to(to: &mut [f32], from: &[f32]) {
    vectorised(
        #[inline(always)]
        || {
            for (to, from) in to.iter_mut().zip(from) {
                *to += *from;
            }
        },
    );
}
