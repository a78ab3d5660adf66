#![allow(unused, clippy::too_many_arguments)]
use super::Buffer;
use crate::backend::geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn fprop(
    scratch: &mut Buffer,
    geometry: &Conv2d,
    x: Pending<'_, Buffer>,
    params: &Buffer,
    filter: FilterAt,
    y: &mut Buffer,
    epilogue: Epilogue<'_, Buffer>,
) {
    todo!()
}

pub(super) fn dgrad(
    scratch: &mut Buffer,
    geometry: &Conv2d,
    dy: PendingGrad<'_, Buffer>,
    params: &Buffer,
    filter: FilterAt,
    dx: GradTarget<'_, Buffer>,
) {
    todo!()
}

pub(super) fn wgrad(
    scratch: &mut Buffer,
    geometry: &Conv2d,
    dy: PendingGrad<'_, Buffer>,
    x: Pending<'_, Buffer>,
    grads: &mut Buffer,
    filter: FilterAt,
) {
    todo!()
}
