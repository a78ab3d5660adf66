#![allow(unused, clippy::too_many_arguments)]
use super::Buffer;
use crate::backend::geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn norms(
    scratch: &mut Buffer,
    params: &Buffer,
    grads: &Buffer,
    segments: &[Segment],
    norms: &mut Buffer,
) {
    todo!()
}

pub(super) fn update(
    scratch: &mut Buffer,
    step: &SgdStep,
    segments: &[Segment],
    grads: &Buffer,
    norms: &Buffer,
    params: &mut Buffer,
    momentum: &mut Buffer,
) {
    todo!()
}
