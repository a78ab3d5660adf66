//! 3x3 convolution with stride 1 by Winograd's F(2x2, 3x3), in float32: 16 products where the direct sum takes 36.
//!
//! Y = A^T [(G g G^T) * (B^T d B)] A for each 2x2 tile of the output, with d the 4x4 pixels under it and g the filter
//! (Lavin and Gray, 2015, section 4.1). Summed over channels, the inner `*` becomes 16 matrix products (tiles x C) (C x K).
//! All factors of the three transforms are 0, 1, 1/2 or their negatives: the result loses a little more than the direct
//! sum, within the same bound. A tile holds sums and differences of all its pixels, so NaN or infinity in one of them
//! reaches all four outputs. What is pending is applied as a tile's pixels are read.
// The loops run over the indices of the formulas.
#![allow(clippy::needless_range_loop)]

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::machine::vectorised;
use super::super::matrix::{Grid, MatMut, Part};
use super::super::product::{
    Finish, PANEL_ALIGN, ROW_ALIGN, SQUARE, Terms, Windows, multiply, packed_len, panel_width,
    panels, transpose_square,
};
use super::gather::{Operand, Source};
use super::{BLOCKS, split_panels};
use crate::backend::geometry::{Conv2d, Padding, Window};

/// Channels that are transformed together.
const LANES: usize = SQUARE;

/// Numbers of a transformed tile.
const POINTS: usize = 16;

/// Tiles that pay for reading the transformed filters, which are 16/9 as large as the filters.
const FEWEST_TILES: usize = 12;

/// Tiles of one image that are worth a band of their own.
const BAND_TILES: usize = 12;

/// Elements of the transformed tiles of a group, which stay in the second-level cache.
const CACHED: usize = 64 << 10;

thread_local! {
    /// Transformed tiles of a group, and their products with a panel of filters.
    static GROUP: RefCell<(Buffer, Buffer)> = RefCell::default();
}

/// Tiles of an image: rows, columns.
fn tiles(geometry: &Conv2d) -> (usize, usize) {
    (geometry.window.p.div_ceil(2), geometry.window.q.div_ceil(2))
}

/// Whether a convolution can be computed this way.
pub(super) fn fits(geometry: &Conv2d) -> bool {
    let window = &geometry.window;
    (window.r, window.s, window.stride) == (3, 3, 1)
        && [geometry.c, geometry.k]
            .iter()
            .all(|c| *c >= PANEL_ALIGN && c.is_multiple_of(LANES))
        // Without vector instructions a panel is narrower than what is transformed at a time.
        && panel_width().is_multiple_of(LANES)
}

/// Whether it is computed faster this way. That asks for the batch, so the last bits of an image's values may differ
/// between a full batch and one of a few images, where the images are small.
pub(super) fn pays(geometry: &Conv2d) -> bool {
    let (rows, cols) = tiles(geometry);
    fits(geometry) && geometry.n * rows * cols >= FEWEST_TILES
}

/// Whether it is also computed faster with filters that are transformed for one call.
pub(super) fn pays_at_once(geometry: &Conv2d) -> bool {
    let (rows, cols) = tiles(geometry);
    fits(geometry) && geometry.n * rows * cols >= 8 * FEWEST_TILES
}

/// Elements of the first `filters` transformed filters: panel by panel, 16 packed panels each.
pub(super) fn packed_filters(geometry: &Conv2d, filters: usize) -> usize {
    POINTS * packed_len(filters, geometry.c)
}

/// G g G^T for all filters (K x 9 x C), packed.
pub(super) fn transform_filters(geometry: &Conv2d, weights: &[f32], packed: &mut [f32]) {
    let (c, width) = (geometry.c, panel_width());
    packed
        .par_chunks_mut(POINTS * width * c)
        .zip(weights.par_chunks(width * 9 * c))
        .for_each(|(panels, filters)| {
            if filters.len() < width * 9 * c {
                panels.fill(0.0);
            }
            vectorised(
                #[inline(always)]
                || {
                    for first in (0..c).step_by(LANES) {
                        transform_channels(filters, panels, c, width, first);
                    }
                },
            );
        });
}

/// Channels `first..first + LANES` of a panel's filters.
#[inline(always)]
fn transform_channels(filters: &[f32], panels: &mut [f32], c: usize, width: usize, first: usize) {
    for (group, filters) in filters.chunks(LANES * 9 * c).enumerate() {
        // By point, filter, channel.
        let mut points = [[[0.0; LANES]; LANES]; POINTS];
        for (j, filter) in filters.chunks_exact(9 * c).enumerate() {
            let tap = |t: usize| lanes(&filter[t * c + first..]);
            for (point, value) in transform_filter(tap).into_iter().enumerate() {
                points[point][j] = value;
            }
        }
        for (point, block) in points.into_iter().enumerate() {
            let [a, b, c_, d, e, f, g, h] = &block;
            let panel = &mut panels[(point * c + first) * width + group * LANES..];
            transpose_square([a, b, c_, d, e, f, g, h], 0, panel, width);
        }
    }
}

/// The convolution by which dgrad of a convolution with stride 1 is computed: of dY, with K and C exchanged and the taps in
/// reverse. None for other strides.
pub(super) fn reversed(geometry: &Conv2d) -> Option<Conv2d> {
    let window = &geometry.window;
    if window.stride != 1 {
        return None;
    }
    let pad = |pad: usize, taps: usize| (taps - 1).checked_sub(pad);
    let pad = Padding {
        top: pad(window.pad.top, window.r)?,
        bottom: pad(window.pad.bottom, window.r)?,
        left: pad(window.pad.left, window.s)?,
        right: pad(window.pad.right, window.s)?,
    };
    let window = Window::new((window.p, window.q), (window.r, window.s), 1, pad).ok()?;
    Some(Conv2d {
        n: geometry.n,
        c: geometry.k,
        k: geometry.c,
        window,
    })
}

/// As [`transform_filters`], for [`reversed`]: `geometry` is the reversed convolution, `weights` are the filters of the
/// convolution itself.
pub(super) fn transform_reversed(geometry: &Conv2d, weights: &[f32], packed: &mut [f32]) {
    // Columns of the product, and terms of its sums.
    let (columns, terms, width) = (geometry.k, geometry.c, panel_width());
    packed
        .par_chunks_mut(POINTS * width * terms)
        .enumerate()
        .for_each(|(panel, panels)| {
            let first = panel * width;
            let count = width.min(columns - first);
            if count < width {
                panels.fill(0.0);
            }
            vectorised(
                #[inline(always)]
                || {
                    for (k, filter) in weights.chunks_exact(9 * columns).enumerate() {
                        for column in (0..count).step_by(LANES) {
                            let tap =
                                |t: usize| lanes(&filter[(8 - t) * columns + first + column..]);
                            for (point, value) in transform_filter(tap).into_iter().enumerate() {
                                let at = (point * terms + k) * width + column;
                                panels[at..][..LANES].copy_from_slice(&value);
                            }
                        }
                    }
                },
            );
        });
}

/// G g G^T.
#[inline(always)]
fn transform_filter(tap: impl Fn(usize) -> Lanes) -> [Lanes; POINTS] {
    // Rows first, then columns: (g0, (g0 + g1 + g2) / 2, (g0 - g1 + g2) / 2, g2).
    let mut half = [[[0.0; LANES]; 3]; 4];
    for s in 0..3 {
        let column = weights_1d([tap(s), tap(3 + s), tap(6 + s)]);
        for i in 0..4 {
            half[i][s] = column[i];
        }
    }
    let mut points = [[0.0; LANES]; POINTS];
    for i in 0..4 {
        let row = weights_1d(half[i]);
        points[4 * i..][..4].copy_from_slice(&row);
    }
    points
}

type Lanes = [f32; LANES];

#[inline(always)]
fn lanes(from: &[f32]) -> Lanes {
    *from.first_chunk().expect("lanes")
}

#[inline(always)]
fn map(a: Lanes, b: Lanes, f: impl Fn(f32, f32) -> f32) -> Lanes {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        out[i] = f(a[i], b[i]);
    }
    out
}

#[inline(always)]
fn add(a: Lanes, b: Lanes) -> Lanes {
    map(
        a,
        b,
        #[inline(always)]
        |a, b| a + b,
    )
}

#[inline(always)]
fn sub(a: Lanes, b: Lanes) -> Lanes {
    map(
        a,
        b,
        #[inline(always)]
        |a, b| a - b,
    )
}

/// G g.
#[inline(always)]
fn weights_1d([a, b, c]: [Lanes; 3]) -> [Lanes; 4] {
    let outer = add(a, c);
    let half = |v: Lanes| {
        map(
            v,
            v,
            #[inline(always)]
            |v, _| 0.5 * v,
        )
    };
    [a, half(add(outer, b)), half(sub(outer, b)), c]
}

/// B^T d.
#[inline(always)]
fn data_1d([a, b, c, d]: [Lanes; 4]) -> [Lanes; 4] {
    [sub(a, c), add(b, c), sub(c, b), sub(b, d)]
}

/// A^T m.
#[inline(always)]
fn output_1d([a, b, c, d]: [Lanes; 4]) -> [Lanes; 2] {
    [add(add(a, b), c), sub(sub(b, c), d)]
}

/// Cuts the output into whole images, or the only one into bands of its rows; and the filters where there are few of
/// these.
pub(super) fn grid(geometry: &Conv2d) -> Grid {
    let window = &geometry.window;
    let (rows, cols) = tiles(geometry);
    let images = (group_tiles(geometry) / (rows * cols)).clamp(1, geometry.n);
    let band = if geometry.n == 1 {
        (2 * BAND_TILES.div_ceil(cols)).min(window.p)
    } else {
        images * window.p
    };
    let splits = BLOCKS
        .div_ceil((geometry.n * window.p).div_ceil(band))
        .min(geometry.k.div_ceil(PANEL_ALIGN));
    Grid {
        rows: geometry.n * window.p * window.q,
        cols: geometry.k,
        row_block: band * window.q,
        col_block: split_panels(geometry.k, splits),
    }
}

/// Tiles that are transformed together.
fn group_tiles(geometry: &Conv2d) -> usize {
    let fitting = CACHED / (POINTS * geometry.c);
    (fitting / ROW_ALIGN * ROW_ALIGN).clamp(3 * ROW_ALIGN, 5 * ROW_ALIGN)
}

/// Where a tile lies: image, and row and column of tiles.
type Place = (usize, usize, usize);

/// A block of the output from pixel `first` on: whole images, or a band of one; of the filters whose panels begin
/// `packed`. `then` sees the columns of each panel before they are rounded.
pub(super) fn fprop<R: Source>(
    (geometry, x, first): (&Conv2d, Operand<R>, usize),
    packed: &[f32],
    y: &mut Part<'_>,
    finish: Finish<'_>,
    mut then: impl FnMut(Range<usize>, &mut MatMut<'_>),
) {
    y.edit(finish.accumulate, |y| {
        match x.stored() {
            Some(stored) => tiles_of_block(
                (geometry, first),
                packed,
                y,
                finish,
                #[inline(always)]
                |pixel, channel| lanes(&stored[pixel * geometry.c + channel..]),
            ),
            None => tiles_of_block(
                (geometry, first),
                packed,
                y,
                finish,
                #[inline(always)]
                |pixel, channel| x.lanes(pixel, channel),
            ),
        }
        for cols in panels(y.cols()) {
            then(cols.clone(), &mut y.columns(cols));
        }
    });
}

/// See [`fprop`]; `read` gives neighbouring channels of a pixel.
fn tiles_of_block(
    (geometry, first): (&Conv2d, usize),
    packed: &[f32],
    y: &mut MatMut<'_>,
    finish: Finish<'_>,
    read: impl Fn(usize, usize) -> Lanes,
) {
    let window = &geometry.window;
    let (c, width) = (geometry.c, panel_width());
    let (image_rows, tile_cols) = tiles(geometry);
    let (first_row, rows) = (first / window.q, y.rows() / window.q);
    // The rows of tiles in each image of the block, and the first one's number.
    let (images, tile_rows) = if rows < window.p {
        (1, rows.div_ceil(2))
    } else {
        (rows / window.p, image_rows)
    };
    let (first_image, top) = (first_row / window.p, first_row % window.p / 2);
    let total = images * tile_rows * tile_cols;
    let groups = total.div_ceil(group_tiles(geometry));
    let per_group = total.div_ceil(groups);
    let place = |tile: usize| {
        let (row, j) = (tile / tile_cols, tile % tile_cols);
        (first_image + row / tile_rows, top + row % tile_rows, j)
    };
    GROUP.with_borrow_mut(|(transformed, products)| {
        for begin in (0..total).step_by(per_group) {
            let count = per_group.min(total - begin);
            let transformed = transformed.at_least(POINTS * count * c);
            for t in 0..count {
                transform_tile(geometry, place(begin + t), transformed, (t, count), &read);
            }
            let products = products.at_least(POINTS * count * width);
            for cols in panels(y.cols()) {
                let filters = &packed[cols.start * POINTS * c..][..POINTS * width * c];
                for (point, products) in products.chunks_exact_mut(count * width).enumerate() {
                    let rows = &transformed[point * count * c..];
                    let windows = Windows::rows(Terms::Single, rows, [count, c, c]);
                    let panel = &filters[point * width * c..][..width * c];
                    let out = &mut MatMut::new(products, count, width);
                    multiply(out, windows, panel, Finish::default());
                }
                for t in 0..count {
                    let at = (place(begin + t), first);
                    finish_tile(geometry, products, (t, count), at, y, cols.clone(), finish);
                }
            }
        }
    });
}

/// B^T d B of a tile, as number `t` of `count`; `read` gives neighbouring channels of a pixel.
#[inline(always)]
fn transform_tile(
    geometry: &Conv2d,
    (image, i, j): Place,
    transformed: &mut [f32],
    (t, count): (usize, usize),
    read: &impl Fn(usize, usize) -> Lanes,
) {
    let (window, c) = (&geometry.window, geometry.c);
    // Where the tile's pixels lie, row by row; none outside the image.
    let mut places = [None; POINTS];
    for (at, place) in places.iter_mut().enumerate() {
        let row = (2 * i + at / 4).checked_sub(window.pad.top);
        let column = (2 * j + at % 4).checked_sub(window.pad.left);
        if let (Some(row), Some(column)) = (row, column)
            && row < window.h
            && column < window.w
        {
            *place = Some((image * window.h + row) * window.w + column);
        }
    }
    vectorised(
        #[inline(always)]
        || {
            for first in (0..c).step_by(LANES) {
                let mut half = [[[0.0; LANES]; 4]; 4];
                for s in 0..4 {
                    let mut column = [[0.0; LANES]; 4];
                    for r in 0..4 {
                        if let Some(pixel) = places[4 * r + s] {
                            column[r] = read(pixel, first);
                        }
                    }
                    let column = data_1d(column);
                    for r in 0..4 {
                        half[r][s] = column[r];
                    }
                }
                for r in 0..4 {
                    let row = data_1d(half[r]);
                    for s in 0..4 {
                        let at = ((4 * r + s) * count + t) * c + first;
                        transformed[at..][..LANES].copy_from_slice(&row[s]);
                    }
                }
            }
        },
    );
}

/// A^T m A of tile `t` of `count`, finished and written to the columns `cols` of y. y's first pixel is `begin`.
fn finish_tile(
    geometry: &Conv2d,
    products: &[f32],
    (t, count): (usize, usize),
    ((image, i, j), begin): (Place, usize),
    y: &mut MatMut<'_>,
    cols: Range<usize>,
    finish: Finish<'_>,
) {
    let window = &geometry.window;
    let width = products.len() / (POINTS * count);
    vectorised(
        #[inline(always)]
        || {
            for first in (0..cols.len()).step_by(LANES) {
                let mut half = [[[0.0; LANES]; 4]; 2];
                for s in 0..4 {
                    let mut column = [[0.0; LANES]; 4];
                    for r in 0..4 {
                        let at = ((4 * r + s) * count + t) * width + first;
                        column[r] = lanes(&products[at..]);
                    }
                    let column = output_1d(column);
                    for r in 0..2 {
                        half[r][s] = column[r];
                    }
                }
                let cols = cols.start + first..cols.start + first + LANES;
                let activation = finish.activation.channels(cols.clone());
                for r in 0..2 {
                    let row = output_1d(half[r]);
                    for s in 0..2 {
                        let (p, q) = (2 * i + r, 2 * j + s);
                        if p >= window.p || q >= window.q {
                            continue;
                        }
                        let pixel = (image * window.p + p) * window.q + q - begin;
                        let mut value = row[s];
                        if finish.accumulate {
                            value = add(value, lanes(&y.row(pixel)[cols.start..]));
                        }
                        if let Some(bias) = finish.bias {
                            value = add(value, lanes(&bias[cols.clone()]));
                        }
                        if let Some((residual, stride)) = finish.residual {
                            value = add(value, lanes(&residual[pixel * stride + cols.start..]));
                        }
                        activation.apply(&mut value, LANES);
                        y.row(pixel)[cols.clone()].copy_from_slice(&value);
                    }
                }
            }
        },
    );
}
