//! What augmentation does to a picture. The loader decides it, and a device may do it: both know this struct.

/// What is done to one picture in one epoch, in this order; places are in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Changes {
    /// Left and top of the crop in the resized picture.
    pub crop: [usize; 2],
    /// Pixels to the right and down; the border fills what comes in.
    pub shift: [isize; 2],
    /// Mirror left and right.
    pub flip: bool,
    /// Added to all channels, in [0, 1].
    pub brightness: f32,
    /// Whole turns.
    pub hue: f32,
    /// Factor around each channel's mean.
    pub contrast: f32,
    /// Factor.
    pub saturation: f32,
    /// Turn grey.
    pub grey: bool,
    /// Left, top, width and height of a rectangle to be painted mid-grey.
    pub erase: Option<[usize; 4]>,
}

/// The colour of erased pixels.
pub const ERASED: u8 = 127;

impl Changes {
    /// Whether any colour changes.
    pub fn colours(&self) -> bool {
        self.brightness != 0.0
            || self.hue != 0.0
            || self.contrast != 1.0
            || self.saturation != 1.0
            || self.grey
    }
}
