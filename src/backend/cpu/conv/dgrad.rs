//! dX = the gradient with respect to the activated input, then its finish on the complete tile.
//!
//! Input pixel (h, w) meets the taps with (h + top - r) and (w + left - s) divisible by the stride. So the input falls
//! into stride x stride *phases*, within each of which dX is a convolution of dY with stride 1, with every stride-th tap,
//! reversed. A tile of input pixels is the union of its phases' pixels: no two tasks write the same element.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::gemm::{Grid, Mat, MatMut, par_blocks, product};
use super::super::pending::{Closer, GradReader, partial_len};
use super::im2col::Gather;
use super::{BLOCKS, REGISTER_COLS, TILE, float_filter, split_cols, tile_grid};
use crate::backend::geometry::Conv2d;
use crate::backend::{Conv2dDgrad, Element};

thread_local! {
    /// One phase's part of a tile, before it is spread over the tile.
    static PHASE: RefCell<Buffer> = RefCell::default();
}

/// Input pixels (row + stride i, column + stride j).
#[derive(Clone, Copy)]
struct Phase {
    /// First input row and column.
    first: (usize, usize),
    /// The first tap (in filter order) that meets the phase.
    tap: (usize, usize),
    /// What the phase's pixels see of dY; absent where no tap meets them.
    gather: Option<Gather>,
    /// Rows and columns of the phase in an image.
    size: (usize, usize),
}

impl Phase {
    /// The phase that begins at input pixel (row, column); absent where the image is smaller than the stride.
    fn new(geometry: &Conv2d, first: (usize, usize)) -> Option<Self> {
        let window = &geometry.window;
        let stride = window.stride;
        // In one dimension: pixels, first tap, taps, first dY row of pixel 0.
        let along = |first: usize, pad: usize, taps: usize, size: usize| {
            let tap = (first + pad) % stride;
            let taps = taps.saturating_sub(tap).div_ceil(stride);
            let last = (first + pad - tap) / stride;
            (
                size.saturating_sub(first).div_ceil(stride),
                tap,
                taps,
                last as isize - taps as isize + 1,
            )
        };
        let (i, r, taps_r, top) = along(first.0, window.pad.top, window.r, window.h);
        let (j, s, taps_s, left) = along(first.1, window.pad.left, window.s, window.w);
        (i > 0 && j > 0).then_some(Phase {
            first,
            tap: (r, s),
            size: (i, j),
            gather: (taps_r > 0 && taps_s > 0).then_some(Gather {
                source: (window.p, window.q),
                c: geometry.k,
                out: (i, j),
                taps: (taps_r, taps_s),
                stride: 1,
                origin: (top, left),
            }),
        })
    }

    /// All phases of a convolution.
    fn all(geometry: &Conv2d) -> impl Iterator<Item = Phase> {
        let stride = geometry.window.stride;
        (0..stride * stride).filter_map(move |i| Phase::new(geometry, (i / stride, i % stride)))
    }

    /// The filter's tap (r S + s) behind tap `t` of the gathered window, which runs against the filter's order.
    fn filter_tap(&self, geometry: &Conv2d, gather: &Gather, t: usize) -> usize {
        let stride = geometry.window.stride;
        let (i, j) = (t / gather.taps.1, t % gather.taps.1);
        let r = self.tap.0 + (gather.taps.0 - 1 - i) * stride;
        let s = self.tap.1 + (gather.taps.1 - 1 - j) * stride;
        r * geometry.window.s + s
    }

    /// The phase's pixels among input rows `rows` (counted over the batch), as a range over the batch's phase pixels.
    fn pixels(&self, geometry: &Conv2d, rows: Range<usize>) -> Range<usize> {
        let (h, stride) = (geometry.window.h, geometry.window.stride);
        let before = |row: usize| {
            let (image, row) = (row / h, row % h);
            image * self.size.0 + row.saturating_sub(self.first.0).div_ceil(stride)
        };
        before(rows.start) * self.size.1..before(rows.end) * self.size.1
    }

    /// Calls `f` with the place of each of the phase's pixels among the input's pixels.
    fn places(&self, geometry: &Conv2d, pixels: Range<usize>, mut f: impl FnMut(usize)) {
        let window = &geometry.window;
        for pixel in pixels {
            let (row, j) = (pixel / self.size.1, pixel % self.size.1);
            let (image, i) = (row / self.size.0, row % self.size.0);
            let h = image * window.h + self.first.0 + i * window.stride;
            f(h * window.w + self.first.1 + j * window.stride);
        }
    }
}

/// What every tile reads.
struct Operands<'a> {
    geometry: &'a Conv2d,
    dy: GradReader<'a>,
    weights: &'a [f32],
    /// The filters of all phases, one after the other, each as taps x K rows of C numbers in the order of the gathered
    /// window; absent where a chunk never holds more than one tap, so that the filter can be read in place.
    packed: Option<&'a [f32]>,
}

pub(in super::super) fn dgrad(scratch: &mut Buffer, op: Conv2dDgrad<'_, Buffer>) {
    let Conv2dDgrad {
        ref geometry,
        dy,
        filters,
        filter,
        dx,
    } = op;
    let (c, k, pixels) = (geometry.c, geometry.k, geometry.pixels_in());
    let reader = GradReader::new(dy, k);
    assert!(
        reader.g.len() >= geometry.pixels_out() * k,
        "dy of {geometry:?}"
    );
    let stride = geometry.window.stride;
    let grid = if stride > 1 {
        strided_grid(geometry)
    } else if geometry.window.is_pointwise() {
        tile_grid(pixels, c, REGISTER_COLS)
    } else {
        tile_grid(pixels, c, 2 * REGISTER_COLS)
    };
    let element = dx.g.tensor().element();
    let grid = if element == Element::F32 || dx.close.is_none() {
        grid
    } else {
        // A tile is complete before it is rounded.
        Grid {
            col_block: c,
            ..grid
        }
    };
    let finish_grid = Grid {
        row_block: if grid.col_blocks() > 1 {
            pixels.div_ceil(BLOCKS).min(grid.row_block)
        } else {
            grid.row_block
        },
        col_block: c,
        ..grid
    };
    let (closer, sums) = match dx.close.map(|close| Closer::new(close, c)) {
        Some((closer, sums)) => (Some(closer), sums),
        None => (None, None),
    };
    let sums_len = if closer.is_some() { partial_len(c) } else { 0 };
    let pack = Phase::all(geometry)
        .filter_map(|phase| phase.gather)
        .any(|gather| gather.taps != (1, 1) && gather.chunk_columns() > k);
    let packed_len = if pack { geometry.filter_len() } else { 0 };
    let (weights, rest) = float_filter(
        filters,
        filter,
        geometry.filter_len(),
        scratch,
        packed_len + finish_grid.blocks() * sums_len,
    );
    let (packed, partials) = rest.split_at_mut(packed_len);
    if pack {
        pack_filters(geometry, weights, packed);
    }
    let operands = Operands {
        geometry,
        dy: reader,
        weights,
        packed: pack.then_some(&*packed),
    };
    let finish = |rows: Range<usize>, out: &mut MatMut<'_>, partial: &mut [f32]| {
        if let Some(closer) = &closer {
            partial.fill(0.0);
            closer.close(rows, out.as_slice(), partial);
        }
    };
    let at_once = grid.col_blocks() == 1;
    par_blocks(
        dx.g.tensor_mut(),
        grid,
        dx.accumulate,
        if at_once { partials } else { &mut [] },
        if at_once { sums_len } else { 0 },
        |mut block, partial| {
            if stride == 1 {
                let phase = Phase::new(geometry, (0, 0)).expect("an image has pixels");
                let (pixels, cols) = (block.rows.clone(), block.cols.clone());
                operands.phase_product(&phase, 0, pixels, cols, &mut block.out, dx.accumulate);
            } else {
                operands.strided_tile(
                    block.rows.clone(),
                    block.cols.clone(),
                    &mut block.out,
                    dx.accumulate,
                );
            }
            if at_once {
                finish(block.rows, &mut block.out, partial);
            }
        },
    );
    if closer.is_some() && !at_once {
        par_blocks(
            dx.g.tensor_mut(),
            finish_grid,
            true,
            partials,
            sums_len,
            |mut block, partial| finish(block.rows, &mut block.out, partial),
        );
    }
    if let (Some(closer), Some(sums)) = (closer, sums) {
        closer.merge_sums(&partials[..finish_grid.blocks() * sums_len], sums);
    }
}

/// Tiles of whole input rows, so that each phase's part is a range of its pixels, large enough that the part is worth
/// a product.
fn strided_grid(geometry: &Conv2d) -> Grid {
    let window = &geometry.window;
    let rows = geometry.n * window.h;
    let tiles = geometry
        .pixels_in()
        .div_ceil(2 * TILE)
        .next_multiple_of(4)
        .min(rows.max(1));
    let splits = BLOCKS
        .div_ceil(tiles)
        .min(geometry.c.div_ceil(2 * REGISTER_COLS));
    Grid {
        rows: rows * window.w,
        cols: geometry.c,
        row_block: rows.div_ceil(tiles).max(1) * window.w,
        col_block: split_cols(geometry.c, splits),
    }
}

/// Brings the filter's taps into the phases' order.
fn pack_filters(geometry: &Conv2d, weights: &[f32], packed: &mut [f32]) {
    let (c, k) = (geometry.c, geometry.k);
    let filter = geometry.filter_len() / k;
    let mut taps = packed.chunks_exact_mut(k * c);
    for phase in Phase::all(geometry) {
        let Some(gather) = phase.gather else { continue };
        for (t, rows) in (0..gather.taps.0 * gather.taps.1).zip(&mut taps) {
            let at = phase.filter_tap(geometry, &gather, t) * c;
            rows.par_chunks_mut(c)
                .with_min_len(64)
                .enumerate()
                .for_each(|(k, row)| row.copy_from_slice(&weights[k * filter + at..][..c]));
        }
    }
}

impl Operands<'_> {
    /// out = (or +=) the gradient of some of a phase's pixels, channels `cols` only. `taps_before` counts the taps of the
    /// phases before this one.
    fn phase_product(
        &self,
        phase: &Phase,
        taps_before: usize,
        pixels: Range<usize>,
        cols: Range<usize>,
        out: &mut MatMut<'_>,
        mut accumulate: bool,
    ) {
        let Some(gather) = phase.gather else {
            if !accumulate {
                for i in 0..out.rows() {
                    out.row(i).fill(0.0);
                }
            }
            return;
        };
        let geometry = self.geometry;
        let (c, k) = (geometry.c, geometry.k);
        gather.unroll(self.dy, pixels, 0..gather.columns(), |chunk, tile| {
            let w = match self.packed {
                Some(packed) => {
                    let at = (taps_before * k + chunk.start) * c + cols.start;
                    Mat::new(&packed[at..], chunk.len(), cols.len(), c)
                }
                None => {
                    let tap = phase.filter_tap(geometry, &gather, chunk.start / k);
                    let row = geometry.filter_len() / k;
                    let at = (chunk.start % k) * row + tap * c + cols.start;
                    Mat::new(&self.weights[at..], chunk.len(), cols.len(), row)
                }
            };
            product(out, tile, w, accumulate);
            accumulate = true;
        });
    }

    /// A tile of whole input rows, phase by phase.
    fn strided_tile(
        &self,
        tile: Range<usize>,
        cols: Range<usize>,
        out: &mut MatMut<'_>,
        accumulate: bool,
    ) {
        let geometry = self.geometry;
        let w = geometry.window.w;
        let mut taps_before = 0;
        for phase in Phase::all(geometry) {
            let pixels = phase.pixels(geometry, tile.start / w..tile.end / w);
            if let Some(gather) = phase.gather {
                PHASE.with_borrow_mut(|part| {
                    let part = part.at_least(pixels.len() * cols.len());
                    self.phase_product(
                        &phase,
                        taps_before,
                        pixels.clone(),
                        cols.clone(),
                        &mut MatMut::new(part, pixels.len(), cols.len()),
                        false,
                    );
                    let mut rows = part.chunks_exact(cols.len());
                    phase.places(geometry, pixels, |place| {
                        let (row, from) =
                            (out.row(place - tile.start), rows.next().expect("a row"));
                        if accumulate {
                            row.iter_mut().zip(from).for_each(|(d, g)| *d += *g);
                        } else {
                            row.copy_from_slice(from);
                        }
                    });
                });
                taps_before += gather.taps.0 * gather.taps.1;
            } else if !accumulate {
                phase.places(geometry, pixels, |place| {
                    out.row(place - tile.start).fill(0.0)
                });
            }
        }
    }
}
