//! TODO.

use super::driver::Driver;
use super::{Buffer, Cuda};
use crate::Result;
use crate::backend::geometry::*;
use crate::backend::margin::Margin;
use crate::backend::*;

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    x: Pending<'_, Buffer<D::Memory>>,
    dropout: Dropout,
    y: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}

pub(super) fn dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    dy: &Buffer<D::Memory>,
    dropout: Dropout,
    dx: GradTarget<'_, Buffer<D::Memory>>,
) -> Result<()> {
    todo!()
}
