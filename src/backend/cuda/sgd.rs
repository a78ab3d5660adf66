//! TODO.

use super::driver::Driver;
use super::{Buffer, Cuda};
use crate::Result;
use crate::backend::geometry::*;
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn norms<D: Driver>(
    cuda: &mut Cuda<D>,
    params: &Buffer<D::Memory>,
    grads: &Buffer<D::Memory>,
    segments: &[Segment],
    norms: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}

pub(super) fn update<D: Driver>(
    cuda: &mut Cuda<D>,
    step: &SgdStep,
    segments: &[Segment],
    grads: &Buffer<D::Memory>,
    norms: &Buffer<D::Memory>,
    params: &mut Buffer<D::Memory>,
    momentum: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}
