//! TODO.

use super::driver::Driver;
use super::{Buffer, Cuda};
use crate::Result;
use crate::backend::geometry::*;
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn max_fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    geometry: &PerChannel,
    x: Pending<'_, Buffer<D::Memory>>,
    y: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}

pub(super) fn max_dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    geometry: &PerChannel,
    dy: &Buffer<D::Memory>,
    x: Pending<'_, Buffer<D::Memory>>,
    dx: GradTarget<'_, Buffer<D::Memory>>,
) -> Result<()> {
    todo!()
}

pub(super) fn global_avg_fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    geometry: GlobalPool,
    x: Pending<'_, Buffer<D::Memory>>,
    y: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}

pub(super) fn global_avg_dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    geometry: GlobalPool,
    dy: &Buffer<D::Memory>,
    dx: GradTarget<'_, Buffer<D::Memory>>,
) -> Result<()> {
    todo!()
}
