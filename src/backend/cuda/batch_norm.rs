//! TODO.

use super::driver::Driver;
use super::{Buffer, Cuda};
use crate::Result;
use crate::backend::geometry::*;
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn moments<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    x: &Buffer<D::Memory>,
    moments: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    moments: &Buffer<D::Memory>,
    params: &Buffer<D::Memory>,
    at: BatchNormAt,
    statistics: &mut Buffer<D::Memory>,
    forward: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}

pub(super) fn bprop<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    sums: &Buffer<D::Memory>,
    forward: &Buffer<D::Memory>,
    grads: &mut Buffer<D::Memory>,
    at: BatchNormAt,
    backward: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}

pub(super) fn prelu_bprop<D: Driver>(
    cuda: &mut Cuda<D>,
    c: usize,
    sums: &Buffer<D::Memory>,
    grads: &mut Buffer<D::Memory>,
    slope_at: usize,
) -> Result<()> {
    todo!()
}
