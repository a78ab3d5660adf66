#![allow(unused, clippy::too_many_arguments)]
use super::Buffer;
use crate::backend::geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn fprop(
    scratch: &mut Buffer,
    shard: &HeadShard,
    margin: &Margin,
    x: &Buffer,
    classes: &Buffer,
    labels: &[u32],
    inverse_norms: &mut Buffer,
    rows: &mut Buffer,
) {
    todo!()
}

pub(super) fn bprop(
    scratch: &mut Buffer,
    shard: &HeadShard,
    margin: &Margin,
    x: &Buffer,
    labels: &[u32],
    inverse_norms: &Buffer,
    rows: &Buffer,
    classes: &mut Buffer,
    momentum: &mut Buffer,
    decay: f32,
    step: &SgdStep,
    dx: &mut Buffer,
) {
    todo!()
}
