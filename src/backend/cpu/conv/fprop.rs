//! y = conv(x, w) (+ bias), then the epilogue on the tile while it is in the cache.

use std::ops::Range;

use rayon::prelude::*;

use super::super::buffer::Buffer;
use super::super::matrix::{Block, MatMut, Part, par_blocks};
use super::super::pending::{Reader, sliced};
use super::super::product::{
    Finish, Terms, Windows, for_panels, multiply, multiply_stored, pack_rows, packed_len,
    panel_width, transpose, with_residual,
};
use super::super::tiles::with_workspace;
use super::gather::{Gather, Operand};
use super::moments::{merge_moments, tile_moments};
use super::prepared::parts;
use super::{forward_filter_words, forward_terms, product_grid, winograd};
use crate::backend::{Activation, Conv2dFprop, Epilogue};

/// Words of a sum that are multiplied at a time where the filters are the rows: a panel of that many stays in the
/// second-level cache.
const CHUNK: usize = 1024;

/// The filters as a block multiplies with them.
#[derive(Clone, Copy)]
enum Form<'a> {
    /// For Winograd's algorithm.
    Transformed(&'a [f32]),
    /// Packed.
    Panels(&'a [f32]),
    /// As they are stored, K x words, and all pixels packed.
    Rows(&'a [f32], &'a [f32]),
}

pub(in super::super) fn fprop(scratch: &mut Buffer, op: Conv2dFprop<'_, Buffer>) {
    let Conv2dFprop {
        ref geometry,
        x,
        params,
        filters,
        filter,
        prepared,
        y,
        epilogue,
    } = op;
    let (c, k, pixels) = (geometry.c, geometry.k, geometry.pixels_out());
    let reader = Reader::new(x, c);
    assert!(
        reader.raw.len() >= geometry.pixels_in() * c,
        "x of {geometry:?}"
    );
    let bias = filter.bias.map(|at| &params[at..][..k]);
    let terms = forward_terms(geometry, filters, filter);
    let x = Operand::new(reader, terms);
    let gather = Gather::forward(geometry, terms);
    let words = gather.words();
    let for_inference = matches!(epilogue, Epilogue::Activate { .. });
    let (residual, activation, mut moments) = match epilogue {
        Epilogue::Raw => (None, Activation::Identity, None),
        Epilogue::Moments(moments) => (None, Activation::Identity, Some(moments)),
        Epilogue::Activate {
            residual,
            activation,
        } => (residual, sliced(activation, k), None),
    };
    let residual = residual.map(Buffer::tensor);
    if let Some(residual) = residual {
        assert!(residual.len() >= pixels * k, "residual");
    }
    let by_winograd = terms == Terms::Single
        && if prepared.is_some() {
            winograd::pays(geometry)
        } else {
            winograd::pays_at_once(geometry)
        };
    let grid = if by_winograd {
        winograd::grid(geometry)
    } else {
        let step = geometry.window.stride;
        product_grid(pixels, gather.c * step * step, k)
    };
    // Where one tile holds all pixels, packing the filters for this call would take as long as it saves.
    let filters_are_rows = prepared.is_none()
        && !by_winograd
        && !for_inference
        && grid.row_blocks() == 1
        && gather.is_single_tap();
    let partial_len = if moments.is_some() {
        2 * grid.col_block
    } else {
        0
    };
    let packed_len = if prepared.is_some() {
        0
    } else if by_winograd {
        winograd::packed_filters(geometry, k)
    } else if filters_are_rows {
        packed_len(pixels, words)
    } else {
        packed_len(k, words)
    };
    let partials_len = grid.blocks() * partial_len;
    let (weights, rest) = if prepared.is_some() {
        (&[][..], scratch.at_least(partials_len))
    } else {
        let rest = packed_len + partials_len;
        forward_filter_words(geometry, terms, filters, filter, scratch, rest)
    };
    let (packed, partials) = rest.split_at_mut(packed_len);
    let form = match prepared.map(|prepared| parts(geometry, terms, prepared)) {
        Some([_, transformed]) if by_winograd => Form::Transformed(transformed),
        Some([panels, _]) => Form::Panels(panels),
        None if by_winograd => {
            winograd::transform_filters(geometry, weights, packed);
            Form::Transformed(packed)
        }
        None if filters_are_rows => {
            pack_pixels(&gather, x, pixels, packed);
            Form::Rows(weights, packed)
        }
        None => {
            pack_rows(weights, words, packed);
            Form::Panels(packed)
        }
    };
    let element = y.tensor().element();
    let tile = |block: Block<'_>, partial: &mut [f32]| {
        let Block {
            rows,
            cols: span,
            mut out,
        } = block;
        let finish = Finish {
            bias: bias.map(|bias| &bias[span.clone()]),
            activation: activation.channels(span.clone()),
            ..Finish::default()
        };
        let residual = residual.map(|residual| (residual, rows.start * k + span.start, k));
        let (mean, squares) = partial.split_at_mut(partial.len() / 2);
        let with_moments = !mean.is_empty();
        let take_moments = |cols: Range<usize>, out: &mut MatMut<'_>| {
            if with_moments {
                out.round(element);
                tile_moments(out, &mut mean[cols.clone()], &mut squares[cols]);
            }
        };
        match form {
            Form::Transformed(filters) => {
                let panels = &filters[winograd::packed_filters(geometry, span.start)..];
                let all = 0..span.len();
                with_residual(residual, rows.len(), all.clone(), |residual| {
                    let finish = Finish { residual, ..finish };
                    winograd::fprop(
                        (geometry, x, rows.start),
                        panels,
                        &mut out,
                        finish,
                        take_moments,
                    );
                });
            }
            Form::Panels(panels) => {
                let panels = &panels[span.start * words..];
                gather.windows(x, rows, 0..gather.c, |windows| {
                    let finish = (finish, residual);
                    if with_moments {
                        for_panels(&mut out, windows, panels, finish, take_moments);
                    } else {
                        multiply_stored(&mut out, windows, panels, finish);
                    }
                });
            }
            Form::Rows(weights, pixels) => {
                let rows = &weights[span.start * words..][..span.len() * words];
                multiply_filters(terms, words, rows, pixels, &mut out, finish, take_moments);
            }
        }
    };
    par_blocks(y.tensor_mut(), grid, partials, partial_len, tile);
    if let Some(moments) = &mut moments {
        let (mean, variance) = moments.split_at_mut(k);
        merge_moments(grid, partials, mean, &mut variance[..k]);
    }
}

/// Packs all pixels, as the columns of a product.
fn pack_pixels(gather: &Gather, x: Operand<Reader<'_>>, pixels: usize, packed: &mut [f32]) {
    let (width, words) = (panel_width(), gather.words());
    for (panel, packed) in packed.chunks_exact_mut(width * words).enumerate() {
        let pixels = panel * width..((panel + 1) * width).min(pixels);
        packed
            .par_chunks_mut(width * CHUNK)
            .enumerate()
            .for_each(|(chunk, packed)| {
                let count = packed.len() / width;
                let span = chunk * CHUNK..chunk * CHUNK + count;
                packed.fill(0.0);
                gather.windows(x, pixels.clone(), span, |windows| {
                    transpose(|i| windows.row(i), [windows.len(), count], packed, width);
                });
            });
    }
}

/// A block of y whose filters are used once, read as they are stored: y^T = filters * pixels.
fn multiply_filters(
    terms: Terms,
    words: usize,
    filters: &[f32],
    pixels: &[f32],
    y: &mut Part<'_>,
    finish: Finish<'_>,
    mut then: impl FnMut(Range<usize>, &mut MatMut<'_>),
) {
    let (count, width, k) = (y.rows(), panel_width(), y.cols());
    let padded = count.next_multiple_of(width);
    with_workspace(k * padded, |turned| {
        for first in (0..words).step_by(CHUNK) {
            let chunk = CHUNK.min(words - first);
            let windows = Windows::rows(terms, &filters[first..], [k, words, chunk]);
            for (panel, pixels) in pixels.chunks_exact(width * words).enumerate() {
                let mut part = MatMut::new(turned, k, padded);
                let finish = Finish {
                    accumulate: first > 0,
                    ..Finish::default()
                };
                multiply(
                    &mut part.columns(panel * width..(panel + 1) * width),
                    windows,
                    &pixels[first * width..],
                    finish,
                );
            }
        }
        y.edit(false, |y| {
            for i in 0..count {
                for (j, y) in y.row(i).iter_mut().enumerate() {
                    *y = turned[j * padded + i] + finish.bias.map_or(0.0, |bias| bias[j]);
                }
            }
            then(0..k, y);
        });
    });
}
