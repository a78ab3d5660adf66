//! The input transform, of pixels as they are and of pictures that are still to be changed.

use super::{Case, Rig};
use arcface_cu::Result;
use arcface_cu::backend::{
    Augmented, Backend, InputTransform, InputTransformAugmented, InputTransformFprop,
};
use arcface_cu::base::changes::Changes;

/// Different in every channel.
pub const TRANSFORM: InputTransform = InputTransform {
    scale: [1.0 / 128.0, 0.5, -2.0],
    shift: [-0.5, 0.25, 3.0],
};

/// `len` pixels.
#[derive(Clone, Copy, Debug)]
pub struct Fprop {
    pub len: usize,
}

impl Case for Fprop {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let pixels: Vec<u8> = (0..self.len).map(|i| (i * 7 + i / 256) as u8).collect();
        rig.bytes += pixels.len() as u64;
        let mut y = rig.poisoned_tensor(self.len)?;
        rig.run(|backend| {
            backend.input_transform_fprop(InputTransformFprop {
                pixels: &pixels,
                transform: &TRANSFORM,
                y: &mut y,
            })
        })?;
        rig.keep([("y", y)])
    }
}

/// Pictures with their changes.
#[derive(Clone, Debug)]
pub struct Pictures {
    pub pixels: Vec<u8>,
    pub side: usize,
    pub size: usize,
    pub changes: Vec<Changes>,
}

impl Case for Pictures {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        let mut y = rig.poisoned_tensor(self.changes.len() * self.size * self.size * 3)?;
        rig.run(|backend| {
            backend.input_transform_augmented(InputTransformAugmented {
                pictures: Augmented {
                    pixels: &self.pixels,
                    side: self.side,
                    size: self.size,
                    changes: &self.changes,
                },
                transform: &TRANSFORM,
                y: &mut y,
            })
        })?;
        rig.keep([("y", y)])
    }
}
