//! Filters in the form of the inner kernels, made once for a network that infers.
//!
//! First the panels of the direct sum ([`super::super::panel`]), then what Winograd's algorithm multiplies with
//! ([`winograd`]), each where some batch uses it.

use super::super::buffer::Buffer;
use super::super::product::{Terms, pack_rows, packed_len};
use super::{forward_filter_words, forward_terms, winograd};
use crate::backend::geometry::Conv2d;
use crate::backend::{Conv2dPrepare, Element};

/// Words of each form.
fn lengths(geometry: &Conv2d, terms: Terms) -> [usize; 2] {
    let one = Conv2d { n: 1, ..*geometry };
    let words =
        geometry.filter_len() / geometry.k / geometry.c * geometry.c.div_ceil(terms.per_word());
    let panels = packed_len(geometry.k, words);
    if terms == Terms::Pair {
        return [panels, 0];
    }
    let transformed = winograd::packed_filters(geometry, geometry.k);
    [
        if winograd::pays(&one) { 0 } else { panels },
        if winograd::fits(&one) { transformed } else { 0 },
    ]
}

/// Words of a prepared filter, whatever it is stored in.
pub(in super::super) fn prepared_len(geometry: &Conv2d) -> usize {
    lengths(geometry, Terms::Single).iter().sum()
}

/// A prepared filter: panels, and what Winograd's algorithm multiplies with.
pub(super) fn parts<'a>(geometry: &Conv2d, terms: Terms, prepared: &'a Buffer) -> [&'a [f32]; 2] {
    let [panels, transformed] = lengths(geometry, terms);
    let (panels, rest) = prepared.split_at(panels);
    [panels, &rest[..transformed]]
}

pub(in super::super) fn prepare(scratch: &mut Buffer, op: Conv2dPrepare<'_, Buffer>) {
    let Conv2dPrepare {
        ref geometry,
        filters,
        filter,
        prepared,
    } = op;
    assert_eq!(prepared.element(), Element::F32, "a prepared filter");
    let terms = forward_terms(geometry, filters, filter);
    let (weights, _) = forward_filter_words(geometry, terms, filters, filter, scratch, 0);
    let [panels, transformed] = lengths(geometry, terms);
    let (packed, rest) = prepared.split_at_mut(panels);
    if panels > 0 {
        pack_rows(weights, weights.len() / geometry.k, packed);
    }
    if transformed > 0 {
        winograd::transform_filters(geometry, weights, &mut rest[..transformed]);
    }
}
