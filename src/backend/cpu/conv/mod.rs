//! Convolution as products ([`super::product`]) over tiles of pixels.
//!
//! fprop: y = windows of x * filters; for inference the filters are prepared once ([`prepared`]). dgrad: dX = windows of dY *
//! filters, transposed, for each phase of the stride. wgrad: dW = dY^T * windows of x. A window is taken where it lies in a
//! patch of the image, which is made one tile at a time with all that is pending applied ([`gather`]); a 1x1 convolution of
//! a stored value takes it in its place. In float32, fprop and dgrad of 3x3 windows go by Winograd's algorithm ([`winograd`]).
//!
//! Tensors of bfloat16 are multiplied as bfloat16: activations and gradients are rounded once all that is pending is applied,
//! and filters come rounded; sums are float32.
//!
//! The tiles depend only on the shapes, and partial sums are added in tile order.

mod dgrad;
mod fprop;
mod gather;
mod moments;
mod prepared;
mod wgrad;
mod winograd;

pub(super) use dgrad::dgrad;
pub(super) use fprop::fprop;
pub(super) use prepared::{prepare, prepared_len};
pub(super) use wgrad::wgrad;

use super::buffer::Buffer;
use super::matrix::Grid;
use super::product::{PANEL_ALIGN, ROW_ALIGN, Terms};
use super::tensor::Tensor;
use crate::backend::FilterAt;
use crate::backend::geometry::Conv2d;
use half::bf16;

/// Words of a tile's pixels that the second-level cache holds beside a panel of filters.
const CACHED: usize = 64 << 10;

/// Blocks that a matrix is cut into at least, where it is large enough: work for many cores, evenly spread.
const BLOCKS: usize = 16;

/// A layer's filter as words: in its place, or widened to the front of `scratch`; and the rest of `scratch`, which must
/// have room for `rest` words more.
fn filter_words<'a>(
    terms: Terms,
    filters: &'a Buffer,
    filter: FilterAt,
    len: usize,
    scratch: &'a mut Buffer,
    rest: usize,
) -> (&'a [f32], &'a mut [f32]) {
    let span = filter.weights..filter.weights + len;
    match (filters.tensor(), terms) {
        (Tensor::F32(stored), _) => (&stored[span], scratch.at_least(rest)),
        (Tensor::Bf16(stored), Terms::Pair) => {
            (bytemuck::cast_slice(&stored[span]), scratch.at_least(rest))
        }
        (stored, Terms::Single) => {
            let (wide, rest) = scratch.at_least(len + rest).split_at_mut(len);
            stored.read(span, wide);
            (wide, rest)
        }
    }
}

/// The words in which fprop multiplies. Where a pixel has an odd number of channels, pairs have a zero as the last one's
/// neighbour.
fn forward_terms(geometry: &Conv2d, filters: &Buffer, filter: FilterAt) -> Terms {
    let odd = !geometry.c.is_multiple_of(2);
    Terms::of(filters.element(), [if odd { 0 } else { filter.weights }])
}

/// As [`filter_words`], for fprop: K x RS pixels of words.
fn forward_filter_words<'a>(
    geometry: &Conv2d,
    terms: Terms,
    filters: &'a Buffer,
    filter: FilterAt,
    scratch: &'a mut Buffer,
    rest: usize,
) -> (&'a [f32], &'a mut [f32]) {
    let (c, len) = (geometry.c, geometry.filter_len());
    match filters.tensor() {
        Tensor::Bf16(stored) if terms == Terms::Pair && !c.is_multiple_of(2) => {
            let stored = &stored[filter.weights..][..len];
            let (words, rest) = scratch
                .at_least(len / c * c.div_ceil(2) + rest)
                .split_at_mut(len / c * c.div_ceil(2));
            spread(stored, c, words);
            (words, rest)
        }
        _ => filter_words(terms, filters, filter, len, scratch, rest),
    }
}

/// Pixels of an odd number of channels as words of pairs.
fn spread(pixels: &[bf16], c: usize, words: &mut [f32]) {
    let to: &mut [bf16] = bytemuck::cast_slice_mut(words);
    for (pixel, to) in pixels.chunks_exact(c).zip(to.chunks_exact_mut(c + 1)) {
        to[..c].copy_from_slice(pixel);
        to[c] = bf16::ZERO;
    }
}

/// Cuts the output of a product into tiles whose pixels, of `words` words of the operand each, stay in the second-level
/// cache. Splits the columns too where there are few pixels.
fn product_grid(pixels: usize, words: usize, cols: usize) -> Grid {
    let fitting = (CACHED / words).clamp(4 * ROW_ALIGN, 16 * ROW_ALIGN);
    let tiles = pixels.div_ceil(fitting).max(1);
    let row_block = pixels.div_ceil(tiles).next_multiple_of(ROW_ALIGN);
    let splits = BLOCKS.div_ceil(tiles).min(cols.div_ceil(PANEL_ALIGN));
    Grid {
        rows: pixels,
        cols,
        row_block,
        col_block: split_panels(cols, splits),
    }
}

/// Columns of a block, in whole panels, when `cols` are cut into about `splits` blocks.
fn split_panels(cols: usize, splits: usize) -> usize {
    if splits <= 1 {
        cols
    } else {
        cols.div_ceil(splits)
            .next_multiple_of(PANEL_ALIGN)
            .min(cols)
    }
}
