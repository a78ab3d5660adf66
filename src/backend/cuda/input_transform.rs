//! Pixels 0..255 to the network's numbers.

use super::args::{self, Arg};
use super::driver::{Driver, Memory};
use super::tiles::INPUT_TRANSFORM;
use super::{Buffer, Cuda, blocks};
use crate::Result;
use crate::backend::InputTransform;

pub(super) fn apply<D: Driver>(
    cuda: &mut Cuda<D>,
    pixels: &[u8],
    transform: &InputTransform,
    y: &mut Buffer<D::Memory>,
) -> Result<()> {
    let memory = cuda.pixels.reserve(&cuda.driver, pixels.len())?;
    cuda.driver.upload(pixels, memory, 0)?;
    let InputTransform { scale, shift } = transform;
    let args = [
        args::address(memory.address()),
        [scale, shift]
            .into_iter()
            .flatten()
            .fold(Arg::of("Transform"), |arg, v| arg.f32(*v)),
        args::u64(pixels.len() as u64),
        args::buffer(y),
    ];
    let grid = [
        blocks(pixels.len() as u64, 4 * INPUT_TRANSFORM.threads),
        1,
        1,
    ];
    cuda.launch(&INPUT_TRANSFORM, "input_transform", grid, 0, &args)
}
