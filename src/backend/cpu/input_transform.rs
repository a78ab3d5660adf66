#![allow(unused, clippy::too_many_arguments)]
use super::Buffer;
use crate::backend::geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn apply(
    scratch: &mut Buffer,
    pixels: &[u8],
    transform: &InputTransform,
    y: &mut Buffer,
) {
    todo!()
}
