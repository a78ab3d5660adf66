#![allow(unused, clippy::too_many_arguments)]
use super::Buffer;
use crate::backend::geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn moments(scratch: &mut Buffer, rows: Rows, x: &Buffer, moments: &mut Buffer) {
    todo!()
}

pub(super) fn fprop(
    scratch: &mut Buffer,
    rows: Rows,
    moments: &Buffer,
    params: &Buffer,
    at: BatchNormAt,
    statistics: &mut Buffer,
    forward: &mut Buffer,
) {
    todo!()
}

pub(super) fn bprop(
    scratch: &mut Buffer,
    rows: Rows,
    sums: &Buffer,
    forward: &Buffer,
    grads: &mut Buffer,
    at: BatchNormAt,
    backward: &mut Buffer,
) {
    todo!()
}

pub(super) fn prelu_bprop(
    scratch: &mut Buffer,
    c: usize,
    sums: &Buffer,
    grads: &mut Buffer,
    slope_at: usize,
) {
    todo!()
}
