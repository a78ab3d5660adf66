//! Filters in the form of the inner kernels, made once for a network that infers.
//!
//! First the panels of the direct sum ([`super::super::panel`]), then what Winograd's algorithm multiplies with
//! ([`winograd`]), each where some batch uses it.

use super::super::buffer::Buffer;
use super::super::panel::{pack, packed_len};
use super::{float_filter, winograd};
use crate::backend::geometry::Conv2d;
use crate::backend::{Conv2dPrepare, Element};

/// Elements of each form.
fn lengths(geometry: &Conv2d) -> [usize; 2] {
    let one = Conv2d { n: 1, ..*geometry };
    let panels = packed_len(geometry.k, geometry.filter_len() / geometry.k);
    let transformed = winograd::packed_filters(geometry, geometry.k);
    [
        if winograd::pays(&one) { 0 } else { panels },
        if winograd::fits(&one) { transformed } else { 0 },
    ]
}

/// Elements of a prepared filter.
pub(in super::super) fn prepared_len(geometry: &Conv2d) -> usize {
    lengths(geometry).iter().sum()
}

/// A prepared filter: panels, and what Winograd's algorithm multiplies with.
pub(super) fn parts<'a>(geometry: &Conv2d, prepared: &'a Buffer) -> [&'a [f32]; 2] {
    let [panels, transformed] = lengths(geometry);
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
    let len = geometry.filter_len();
    let (weights, _) = float_filter(filters, filter, len, scratch, 0);
    let [panels, transformed] = lengths(geometry);
    let (packed, rest) = prepared.split_at_mut(panels);
    if panels > 0 {
        pack(weights, len / geometry.k, packed);
    }
    if transformed > 0 {
        winograd::transform_filters(geometry, weights, &mut rest[..transformed]);
    }
}
