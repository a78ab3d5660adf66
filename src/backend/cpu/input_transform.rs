//! Pixels 0..255 (u8, RGB interleaved) to the network's numbers: y[i] = pixel[i] scale[i % 3] + shift[i % 3].

use super::Buffer;
use super::machine::vectorised;
use crate::backend::InputTransformFprop;
use rayon::prelude::*;

/// Pixels' channels for which the pattern of three channels meets the vector width of any machine again.
const PATTERN: usize = 48;

/// Elements of a tile, a multiple of [`PATTERN`].
const TILE: usize = 256 * PATTERN;

pub(super) fn apply(op: InputTransformFprop<'_, Buffer>) {
    let InputTransformFprop {
        pixels,
        transform,
        y,
    } = op;
    let scale: [f32; PATTERN] = std::array::from_fn(|i| transform.scale[i % 3]);
    let shift: [f32; PATTERN] = std::array::from_fn(|i| transform.shift[i % 3]);
    y.tensor_mut()
        .first(pixels.len())
        .par_chunks(TILE)
        .zip(pixels.par_chunks(TILE))
        .for_each(|(y, pixels)| {
            y.edit(false, |y| {
                vectorised(
                    #[inline(always)]
                    || {
                        let (y, y_tail) = y.as_chunks_mut::<PATTERN>();
                        let (pixels, pixels_tail) = pixels.as_chunks::<PATTERN>();
                        for (y, pixels) in y.iter_mut().zip(pixels) {
                            for i in 0..PATTERN {
                                y[i] = f32::from(pixels[i]) * scale[i] + shift[i];
                            }
                        }
                        for (i, (y, pixel)) in y_tail.iter_mut().zip(pixels_tail).enumerate() {
                            *y = f32::from(*pixel) * scale[i] + shift[i];
                        }
                    },
                )
            });
        });
}
