//! Pixels to the network's numbers, with augmentation or without.

use super::driver::{Driver, Memory};
use super::launch::{self, Address, word};
use super::tiles::{INPUT_TRANSFORM, by_element};
use super::{Buffer, Cuda, blocks, bytes_of};
use crate::backend::{Augmented, InputTransform, InputTransformAugmented, InputTransformFprop};
use crate::base::changes::Changes;
use crate::{Error, Result};

impl From<&InputTransform> for launch::Transform {
    fn from(transform: &InputTransform) -> Self {
        let [red, green, blue] = transform.scale;
        let [red_shift, green_shift, blue_shift] = transform.shift;
        launch::Transform {
            red,
            green,
            blue,
            red_shift,
            green_shift,
            blue_shift,
        }
    }
}

pub(super) fn fprop<D: Driver>(
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
    let kernel = launch::InputTransform {
        pixels: Address(memory.address()),
        t: transform.into(),
        len: pixels.len() as u64,
        y: y.at(0),
    };
    let program = by_element(&INPUT_TRANSFORM, y.element);
    let blocks = blocks(pixels.len() as u64, program.vector * program.threads);
    cuda.launch(program, [blocks, 1, 1], 0, kernel)
}

pub(super) fn augmented<D: Driver>(
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
    // The changes follow the pixels.
    let at = pixels.len().next_multiple_of(16);
    cuda.changes.clear();
    cuda.changes
        .extend(changes.iter().map(launch::Changes::from));
    let bytes = bytes_of(&cuda.changes);
    let memory = cuda.pixels.reserve(&mut cuda.driver, at + bytes.len())?;
    cuda.driver.upload(pixels, memory, 0)?;
    cuda.driver.upload(bytes, memory, at)?;
    let pixels = Address(memory.address());
    let kernel = launch::InputTransformAugmented {
        pixels,
        changes: pixels.plus(at),
        t: transform.into(),
        side: word(side),
        size: word(size),
        y: y.at(0),
    };
    let program = by_element(&INPUT_TRANSFORM, y.element);
    cuda.launch(program, [n as u64, 1, 1], 0, kernel)
}

/// Whether the crop reaches outside the picture.
fn outside(changes: &Changes, side: usize, size: usize) -> bool {
    changes.crop.iter().any(|at| at + size > side)
}

impl From<&Changes> for launch::Changes {
    fn from(changes: &Changes) -> Self {
        let [left, top, width, height] = changes.erase.unwrap_or([0; 4]);
        launch::Changes {
            crop_left: word(changes.crop[0]),
            crop_top: word(changes.crop[1]),
            right: changes.shift[0] as u32,
            down: changes.shift[1] as u32,
            flip: changes.flip.into(),
            colours: changes.colours().into(),
            grey: changes.grey.into(),
            brightness: changes.brightness,
            hue: changes.hue,
            contrast: changes.contrast,
            saturation: changes.saturation,
            erase_left: word(left),
            erase_top: word(top),
            erase_right: word(left + width),
            erase_bottom: word(top + height),
        }
    }
}
