//! Pixels 0..255 to the network's numbers, with or without the changes of augmentation.

use super::args::{self, Arg};
use super::driver::{Driver, Memory};
use super::tiles::INPUT_TRANSFORM;
use super::{Buffer, Cuda, blocks};
use crate::backend::{Augmented, InputTransform, InputTransformAugmented, InputTransformFprop};
use crate::base::changes::Changes;
use crate::{Error, Result};

/// `struct Transform`.
fn transform_arg(transform: &InputTransform) -> Arg {
    let InputTransform { scale, shift } = transform;
    [scale, shift]
        .into_iter()
        .flatten()
        .fold(Arg::of("Transform"), |arg, v| arg.f32(*v))
}

pub(super) fn apply<D: Driver>(
    cuda: &mut Cuda<D>,
    op: InputTransformFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let InputTransformFprop {
        pixels,
        transform,
        y,
    } = op;
    let memory = cuda.pixels.reserve(&mut cuda.driver, pixels.len())?;
    cuda.driver.upload(pixels, memory, 0)?;
    let args = [
        args::address(memory.address()),
        transform_arg(transform),
        args::u64(pixels.len() as u64),
        args::buffer(y),
    ];
    let blocks = blocks(pixels.len() as u64, 4 * INPUT_TRANSFORM.threads);
    let grid = [blocks, 1, 1];
    cuda.launch(&INPUT_TRANSFORM, "input_transform", grid, 0, &args)
}

pub(super) fn apply_augmented<D: Driver>(
    cuda: &mut Cuda<D>,
    op: InputTransformAugmented<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let InputTransformAugmented {
        pictures,
        transform,
        y,
    } = op;
    let Augmented {
        pixels,
        side,
        size,
        changes,
    } = pictures;
    let n = changes.len();
    if pixels.len() != n * side * side * 3 || changes.iter().any(|c| outside(c, side, size)) {
        return Err(Error::Invalid(format!(
            "{} bytes are not {n} pictures of {side}x{side} to be cropped to {size}x{size}",
            pixels.len()
        )));
    }
    // The changes lie behind the pixels.
    let at = pixels.len().next_multiple_of(16);
    let bytes: Vec<u8> = changes.iter().flat_map(pack).collect();
    let memory = cuda.pixels.reserve(&mut cuda.driver, at + bytes.len())?;
    cuda.driver.upload(pixels, memory, 0)?;
    cuda.driver.upload(&bytes, memory, at)?;
    let args = [
        args::address(memory.address()),
        args::address(memory.address() + at as u64),
        transform_arg(transform),
        args::u32(side),
        args::u32(size),
        args::buffer(y),
    ];
    let grid = [n as u64, 1, 1];
    cuda.launch(&INPUT_TRANSFORM, "augmented_input", grid, 0, &args)
}

/// Whether the crop is not inside the picture.
fn outside(changes: &Changes, side: usize, size: usize) -> bool {
    changes.crop.iter().any(|at| at + size > side)
}

/// `struct Changes`.
fn pack(changes: &Changes) -> [u8; 60] {
    let [erase_left, erase_top, width, height] = changes.erase.unwrap_or([0; 4]);
    let words = [
        changes.crop[0] as u32,
        changes.crop[1] as u32,
        changes.shift[0] as u32,
        changes.shift[1] as u32,
        u32::from(changes.flip),
        u32::from(changes.colours()),
        u32::from(changes.grey),
        changes.brightness.to_bits(),
        changes.hue.to_bits(),
        changes.contrast.to_bits(),
        changes.saturation.to_bits(),
        erase_left as u32,
        erase_top as u32,
        (erase_left + width) as u32,
        (erase_top + height) as u32,
    ];
    let mut bytes = [0; 60];
    for (to, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(words) {
        *to = word.to_ne_bytes();
    }
    bytes
}
