//! TODO.

use super::driver::Driver;
use super::{Buffer, Cuda};
use crate::Result;
use crate::backend::geometry::*;
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    shard: &HeadShard,
    margin: &Margin,
    x: &Buffer<D::Memory>,
    classes: &Buffer<D::Memory>,
    labels: &[u32],
    inverse_norms: &mut Buffer<D::Memory>,
    rows: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}

pub(super) fn bprop<D: Driver>(
    cuda: &mut Cuda<D>,
    shard: &HeadShard,
    margin: &Margin,
    x: &Buffer<D::Memory>,
    labels: &[u32],
    inverse_norms: &Buffer<D::Memory>,
    rows: &Buffer<D::Memory>,
    classes: &mut Buffer<D::Memory>,
    momentum: &mut Buffer<D::Memory>,
    decay: f32,
    step: &SgdStep,
    dx: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}
