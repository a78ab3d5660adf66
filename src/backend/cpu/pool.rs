#![allow(unused, clippy::too_many_arguments)]
use super::Buffer;
use crate::backend::geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn max_pool_fprop(
    scratch: &mut Buffer,
    geometry: &PerChannel,
    x: Pending<'_, Buffer>,
    y: &mut Buffer,
) {
    todo!()
}

pub(super) fn max_pool_dgrad(
    scratch: &mut Buffer,
    geometry: &PerChannel,
    dy: &Buffer,
    x: Pending<'_, Buffer>,
    dx: GradTarget<'_, Buffer>,
) {
    todo!()
}

pub(super) fn global_avg_pool_fprop(
    scratch: &mut Buffer,
    geometry: GlobalPool,
    x: Pending<'_, Buffer>,
    y: &mut Buffer,
) {
    todo!()
}

pub(super) fn global_avg_pool_dgrad(
    scratch: &mut Buffer,
    geometry: GlobalPool,
    dy: &Buffer,
    dx: GradTarget<'_, Buffer>,
) {
    todo!()
}
