//! TODO.

use super::driver::Driver;
use super::{Buffer, Cuda};
use crate::Result;
use crate::backend::InputTransform;

pub(super) fn apply<D: Driver>(
    cuda: &mut Cuda<D>,
    pixels: &[u8],
    transform: &InputTransform,
    y: &mut Buffer<D::Memory>,
) -> Result<()> {
    todo!()
}
