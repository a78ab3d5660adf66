//! Pixels to the network's numbers.

use crate::base::changes::Changes;

/// Turns pixels 0..255 into the network's numbers: `x = pixel * scale[channel] + shift[channel]`, RGB.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputTransform {
    /// Factor of each channel.
    pub scale: [f32; 3],
    /// Added to each channel.
    pub shift: [f32; 3],
}

/// Pictures, and the changes that augmentation makes to each.
#[derive(Clone, Copy, Debug)]
pub struct Augmented<'a> {
    /// N x side x side x 3, RGB.
    pub pixels: &'a [u8],
    /// Width and height of the pictures.
    pub side: usize,
    /// Width and height after the crop.
    pub size: usize,
    /// What happens to each of the N pictures.
    pub changes: &'a [Changes],
}

/// `y[i] = pixel[i] scale[i % 3] + shift[i % 3]`.
#[derive(Debug)]
pub struct InputTransformFprop<'a, T> {
    /// N x H x W x 3, RGB.
    pub pixels: &'a [u8],
    /// Scale and shift.
    pub transform: &'a InputTransform,
    /// N x H x W x 3.
    pub y: &'a mut T,
}

/// The input transform of pictures that are first cropped and changed. Changed pixels are rounded to 0..255, so it does
/// not matter whether the host or the device changes them.
#[derive(Debug)]
pub struct InputTransformAugmented<'a, T> {
    /// The pictures and their changes.
    pub pictures: Augmented<'a>,
    /// Scale and shift.
    pub transform: &'a InputTransform,
    /// N x size x size x 3.
    pub y: &'a mut T,
}
