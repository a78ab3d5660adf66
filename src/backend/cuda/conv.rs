//! TODO.

use super::driver::Driver;
use super::{Buffer, Cuda};
use crate::Result;
use crate::backend::geometry::*;
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    geometry: &Conv2d,
    x: Pending<'_, Buffer<D::Memory>>,
    params: &Buffer<D::Memory>,
    filter: FilterAt,
    y: &mut Buffer<D::Memory>,
    epilogue: Epilogue<'_, Buffer<D::Memory>>,
) -> Result<()> {
    todo!()
}

pub(super) fn dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    geometry: &Conv2d,
    dy: PendingGrad<'_, Buffer<D::Memory>>,
    params: &Buffer<D::Memory>,
    filter: FilterAt,
    dx: GradTarget<'_, Buffer<D::Memory>>,
) -> Result<()> {
    todo!()
}

pub(super) fn wgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    geometry: &Conv2d,
    dy: PendingGrad<'_, Buffer<D::Memory>>,
    x: Pending<'_, Buffer<D::Memory>>,
    grads: &mut Buffer<D::Memory>,
    filter: FilterAt,
) -> Result<()> {
    todo!()
}
