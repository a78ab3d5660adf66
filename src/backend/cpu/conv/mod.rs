//! Convolution as matrix products over tiles of pixels.
//!
//! fprop: Y (pixels x K) = windows (pixels x RSC) * filter^T, each window taken where it lies in a patch of the image
//! ([`super::panel`]); for inference the filter is prepared once ([`prepared`]), and 3x3 windows go by Winograd's
//! algorithm ([`winograd`]). dgrad: dX (pixels x C) = columns of dY * filter, one product for each phase of the stride.
//! wgrad: dW (K x RSC) = dY^T * columns. "Columns" is the image unrolled so that each output pixel has its window in one
//! row ([`im2col`]); only one cache-sized tile of it ever exists. Pending values are applied while the patch or the tile
//! is filled. A 1x1 convolution of a stored value is a product in place.
//!
//! Tensors of bfloat16 are multiplied as bfloat16: activations and gradients are rounded once all that is pending is applied,
//! and filters come rounded; sums are float32.
//!
//! The tiles depend only on the shapes, and partial sums are added in tile order.

mod dgrad;
mod fprop;
mod im2col;
mod prepared;
mod wgrad;
mod winograd;

pub(super) use dgrad::dgrad;
pub(super) use fprop::fprop;
pub(super) use prepared::{prepare, prepared_len};
pub(super) use wgrad::wgrad;

use super::buffer::Buffer;
use super::gemm::Grid;
use super::panel::PANEL_ALIGN;
use crate::backend::FilterAt;

/// Pixels of a tile: enough to pay for packing the filter once a tile, few enough that columns stay in the cache.
const TILE: usize = 256;

/// Blocks that a matrix is cut into at least, where it is large enough: work for many cores, evenly spread.
const BLOCKS: usize = 16;

/// The registers of the product's inner kernel hold a multiple of 24 (AVX2) or 48 (AVX-512) columns.
const REGISTER_COLS: usize = 48;

/// A layer's filter as float32: in its place, or widened to the front of `scratch`; and the rest of `scratch`, which must
/// have room for `rest` elements more.
fn float_filter<'a>(
    filters: &'a Buffer,
    filter: FilterAt,
    len: usize,
    scratch: &'a mut Buffer,
    rest: usize,
) -> (&'a [f32], &'a mut [f32]) {
    let (tensor, span) = (filters.tensor(), filter.weights..filter.weights + len);
    match tensor.floats() {
        Some(floats) => (&floats[span], scratch.at_least(rest)),
        None => {
            let (wide, rest) = scratch.at_least(len + rest).split_at_mut(len);
            tensor.read(span, wide);
            (wide, rest)
        }
    }
}

/// Cuts an output matrix of pixels x channels. Splits the channels too where there are few pixels; `min_cols` is
/// then the least that is worth reading the input again.
fn tile_grid(pixels: usize, channels: usize, min_cols: usize) -> Grid {
    let tiles = ((pixels + TILE / 2) / TILE).max(1);
    let row_block = pixels.div_ceil(tiles).next_multiple_of(8);
    let splits = BLOCKS
        .div_ceil(tiles)
        .min(channels.div_ceil(min_cols))
        .max(1);
    Grid {
        rows: pixels,
        cols: channels,
        row_block,
        col_block: split_cols(channels, splits),
    }
}

/// Columns of a block when `cols` are cut into about `splits` blocks.
fn split_cols(cols: usize, splits: usize) -> usize {
    if splits <= 1 {
        cols
    } else {
        cols.div_ceil(splits)
            .next_multiple_of(REGISTER_COLS)
            .min(cols)
    }
}

/// As [`split_cols`], in whole panels of filters.
fn split_panels(filters: usize, splits: usize) -> usize {
    if splits <= 1 {
        filters
    } else {
        filters
            .div_ceil(splits)
            .next_multiple_of(PANEL_ALIGN)
            .min(filters)
    }
}
