//! dX = the gradient with respect to the activated input, then its finish on the cached tile.
//!
//! Input pixel (h, w) meets the taps with (h + top - r) and (w + left - s) divisible by the stride. So the input falls
//! into stride x stride *phases*, within each of which dX is a convolution of dY with stride 1, with every stride-th tap,
//! reversed. A tile of input pixels is the union of its phases' pixels: no two tasks write the same element.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::matrix::{Grid, MatMut, Part, par_blocks};
use super::super::pending::{Closer, GradReader, partial_len};
use super::super::product::{
    Finish, PANEL_ALIGN, Terms, for_panels, multiply, pack_columns, packed_len, panel_width, panels,
};
use super::super::tiles::with_workspace;
use super::gather::{Gather, Operand};
use super::{BLOCKS, filter_words, product_grid, split_panels, winograd};
use crate::backend::Conv2dDgrad;
use crate::backend::geometry::Conv2d;

/// Pixels of a tile with a stride, about.
const STRIDED_PIXELS: usize = 512;

/// Channels of a tile with a stride at most.
const STRIDED_CHANNELS: usize = 256;

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
    fn new(geometry: &Conv2d, terms: Terms, first: (usize, usize)) -> Option<Self> {
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
                c: geometry.k / terms.per_word(),
                out: (i, j),
                taps: (taps_r, taps_s),
                stride: 1,
                origin: (top, left),
            }),
        })
    }

    /// All phases of a convolution.
    fn all(geometry: &Conv2d, terms: Terms) -> impl Iterator<Item = Phase> {
        let stride = geometry.window.stride;
        (0..stride * stride)
            .filter_map(move |i| Phase::new(geometry, terms, (i / stride, i % stride)))
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

/// How the blocks come by their product.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// By Winograd's algorithm, with the filters of the reversed convolution.
    Reversed(&'a Conv2d, &'a [f32]),
    /// With the filters of all phases, packed: phase by phase, each taps x K words of C columns, in the order of the gathered
    /// window.
    Packed(&'a [f32]),
    /// As [`Form::Packed`], but a block packs the filters itself: it is the only one that reads them.
    Stored,
}

/// What every block reads.
struct Operands<'a> {
    geometry: &'a Conv2d,
    dy: Operand<GradReader<'a>>,
    /// The filters, K x RSC.
    weights: &'a [f32],
    form: Form<'a>,
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
    let terms = Terms::of(filters.element(), [c, k, filter.weights]);
    let dy = Operand::new(reader, terms);
    let stride = geometry.window.stride;
    let reversed = winograd::reversed(geometry)
        .filter(|reversed| terms == Terms::Single && winograd::pays_at_once(reversed));
    let grid = if let Some(reversed) = &reversed {
        winograd::grid(reversed)
    } else if stride > 1 {
        strided_grid(geometry)
    } else {
        product_grid(pixels, k / terms.per_word(), c)
    };
    let (closer, sums) = match dx.close.map(|close| Closer::new(close, c)) {
        Some((closer, sums)) => (Some(closer), sums),
        None => (None, None),
    };
    let sums_len = if closer.is_some() {
        partial_len(grid.col_block)
    } else {
        0
    };
    let sums_total = grid.blocks() * sums_len;
    let packed_len = if let Some(reversed) = &reversed {
        winograd::packed_filters(reversed, reversed.k)
    } else if grid.row_blocks() > 1 {
        packed_len(c, geometry.filter_len() / c / terms.per_word())
    } else {
        0
    };
    let len = geometry.filter_len();
    let (weights, rest) = filter_words(
        terms,
        filters,
        filter,
        len,
        scratch,
        packed_len + sums_total,
    );
    let (packed, partials) = rest.split_at_mut(packed_len);
    let mut operands = Operands {
        geometry,
        dy,
        weights,
        form: Form::Stored,
    };
    if let Some(reversed) = &reversed {
        winograd::transform_reversed(reversed, weights, packed);
        operands.form = Form::Reversed(reversed, packed);
    } else if packed_len > 0 {
        operands.pack(packed);
        operands.form = Form::Packed(packed);
    }
    par_blocks(
        dx.g.tensor_mut(),
        grid,
        partials,
        sums_len,
        |mut block, partial| {
            partial.fill(0.0);
            let (rows, channels) = (block.rows.clone(), block.cols.clone());
            let close = |cols: Range<usize>, g: &mut MatMut<'_>| {
                if let Some(closer) = &closer {
                    let at = cols.start;
                    let cols = channels.start + cols.start..channels.start + cols.end;
                    closer.close_columns((rows.clone(), cols), g, (&mut *partial, at));
                }
            };
            let place = (block.rows, block.cols);
            operands.block(place, &mut block.out, dx.accumulate, close);
        },
    );
    if let (Some(closer), Some(sums)) = (closer, sums) {
        closer.merge_sums(&partials[..sums_total], grid.col_block, sums);
    }
}

/// Tiles of whole input rows, so that each phase's part is a range of its pixels, large enough that the part is worth
/// a product.
fn strided_grid(geometry: &Conv2d) -> Grid {
    let window = &geometry.window;
    let rows = geometry.n * window.h;
    let tiles = geometry
        .pixels_in()
        .div_ceil(STRIDED_PIXELS)
        .next_multiple_of(4)
        .min(rows.max(1));
    let splits = BLOCKS
        .div_ceil(tiles)
        .min(geometry.c.div_ceil(2 * PANEL_ALIGN))
        .max(geometry.c.div_ceil(STRIDED_CHANNELS));
    Grid {
        rows: rows * window.w,
        cols: geometry.c,
        row_block: rows.div_ceil(tiles).max(1) * window.w,
        col_block: split_panels(geometry.c, splits),
    }
}

impl Operands<'_> {
    fn terms(&self) -> Terms {
        self.dy.terms()
    }

    /// Packs the filters of all phases, on all threads.
    fn pack(&self, packed: &mut [f32]) {
        let (c, width) = (self.geometry.c, panel_width());
        let mut packed = packed;
        for phase in Phase::all(self.geometry, self.terms()) {
            let Some(gather) = phase.gather else { continue };
            let words = gather.words();
            packed
                .split_off_mut(..packed_len(c, words))
                .expect("room for all phases")
                .par_chunks_mut(width * words)
                .enumerate()
                .for_each(|(i, panel)| {
                    let channels = i * width..((i + 1) * width).min(c);
                    self.pack_panel(&phase, &gather, channels, panel);
                });
        }
    }

    /// Packs one panel of a phase.
    fn pack_panel(
        &self,
        phase: &Phase,
        gather: &Gather,
        channels: Range<usize>,
        panel: &mut [f32],
    ) {
        let (geometry, terms) = (self.geometry, self.terms());
        let (k, per_word) = (geometry.k, terms.per_word());
        let (filter, pixel) = (geometry.filter_len() / k / per_word, geometry.c / per_word);
        let words = channels.start / per_word..channels.end / per_word;
        pack_columns(terms, gather.words() * per_word, panel, |t| {
            let tap = phase.filter_tap(geometry, gather, t / k);
            let at = (t % k) * filter + tap * pixel + words.start;
            std::iter::once(&self.weights[at..][..words.len()])
        });
    }

    /// A block of dX; `close` sees the columns of each panel before they are rounded.
    fn block(
        &self,
        (pixels, channels): (Range<usize>, Range<usize>),
        out: &mut Part<'_>,
        accumulate: bool,
        mut close: impl FnMut(Range<usize>, &mut MatMut<'_>),
    ) {
        let finish = Finish {
            accumulate,
            ..Finish::default()
        };
        if let Form::Reversed(reversed, packed) = self.form {
            let packed = &packed[winograd::packed_filters(reversed, channels.start)..];
            winograd::fprop(
                (reversed, self.dy, pixels.start),
                packed,
                out,
                finish,
                close,
            );
            return;
        }
        let geometry = self.geometry;
        if geometry.window.stride > 1 {
            out.edit(accumulate, |out| {
                self.strided_tile(pixels, channels.clone(), out, accumulate);
                for cols in panels(channels.len()) {
                    close(cols.clone(), &mut out.columns(cols));
                }
            });
            return;
        }
        let phase = Phase::new(geometry, self.terms(), (0, 0)).expect("an image has pixels");
        let Some(gather) = phase.gather else {
            unreachable!("without a stride every tap meets the only phase");
        };
        gather.windows(self.dy, pixels, 0..gather.c, |windows| {
            self.for_filters((&phase, &gather, 0), channels, |cols, panels| {
                let first = cols.start;
                let mut part = out.columns(cols);
                for_panels(&mut part, windows, panels, (finish, None), |cols, out| {
                    close(first + cols.start..first + cols.end, out);
                });
            });
        });
    }

    /// Calls `f` with the packed filters of a phase: all panels of `channels` at once, or one after the other where they are
    /// packed here. `words_before` counts the words of the phases before it.
    fn for_filters(
        &self,
        (phase, gather, words_before): (&Phase, &Gather, usize),
        channels: Range<usize>,
        mut f: impl FnMut(Range<usize>, &[f32]),
    ) {
        let words = gather.words();
        if let Form::Packed(packed) = self.form {
            let at = packed_len(self.geometry.c, words_before) + channels.start * words;
            f(0..channels.len(), &packed[at..]);
            return;
        }
        with_workspace(panel_width() * words, |panel| {
            for cols in panels(channels.len()) {
                let channels = channels.start + cols.start..channels.start + cols.end;
                self.pack_panel(phase, gather, channels, panel);
                f(cols, panel);
            }
        });
    }

    /// A tile of whole input rows, phase by phase.
    fn strided_tile(
        &self,
        tile: Range<usize>,
        channels: Range<usize>,
        out: &mut MatMut<'_>,
        accumulate: bool,
    ) {
        let geometry = self.geometry;
        let (w, width) = (geometry.window.w, channels.len());
        let mut words_before = 0;
        for phase in Phase::all(geometry, self.terms()) {
            let pixels = phase.pixels(geometry, tile.start / w..tile.end / w);
            let Some(gather) = phase.gather else {
                if !accumulate {
                    phase.places(geometry, pixels, |place| {
                        out.row(place - tile.start).fill(0.0);
                    });
                }
                continue;
            };
            PHASE.with_borrow_mut(|part| {
                let part = part.at_least(pixels.len() * width);
                gather.windows(self.dy, pixels.clone(), 0..gather.c, |windows| {
                    let phase = (&phase, &gather, words_before);
                    self.for_filters(phase, channels.clone(), |cols, panels| {
                        let mut part = MatMut::new(part, pixels.len(), width);
                        let out = &mut part.columns(cols);
                        multiply(out, windows, panels, Finish::default());
                    });
                });
                let mut rows = part.chunks_exact(width);
                phase.places(geometry, pixels, |place| {
                    let (row, from) = (out.row(place - tile.start), rows.next().expect("a row"));
                    if accumulate {
                        row.iter_mut().zip(from).for_each(|(d, g)| *d += *g);
                    } else {
                        row.copy_from_slice(from);
                    }
                });
            });
            words_before += gather.words();
        }
    }
}
