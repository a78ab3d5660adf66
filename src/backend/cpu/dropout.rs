#![allow(unused, clippy::too_many_arguments)]
use super::Buffer;
use crate::backend::geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn fprop(
    scratch: &mut Buffer,
    rows: Rows,
    x: Pending<'_, Buffer>,
    dropout: Dropout,
    y: &mut Buffer,
) {
    todo!()
}

pub(super) fn dgrad(
    scratch: &mut Buffer,
    rows: Rows,
    dy: &Buffer,
    dropout: Dropout,
    dx: GradTarget<'_, Buffer>,
) {
    todo!()
}
