#![allow(unused, clippy::too_many_arguments)]
use super::Buffer;
use crate::backend::geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn fprop(
    scratch: &mut Buffer,
    rows: Rows,
    a: Pending<'_, Buffer>,
    b: Option<Pending<'_, Buffer>>,
    activation: Activation<'_, Buffer>,
    y: &mut Buffer,
) {
    todo!()
}

pub(super) fn dgrad(
    scratch: &mut Buffer,
    rows: Rows,
    dy: PendingGrad<'_, Buffer>,
    dx: GradTarget<'_, Buffer>,
) {
    todo!()
}

pub(super) fn close_grad(
    scratch: &mut Buffer,
    rows: Rows,
    g: &mut Buffer,
    close: Close<'_, Buffer>,
) {
    todo!()
}
