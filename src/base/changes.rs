//! What augmentation does to a picture. The loader chooses the changes, and a device may apply them; both use this
//! struct.

/// The changes to one picture in one epoch, in the order in which they are applied. Positions are in pixels.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Changes {
    /// Left and top of the crop in the resized picture.
    pub crop: [usize; 2],
    /// Pixels to the right and down; the gap is filled from the border.
    pub shift: [isize; 2],
    /// Swap left and right.
    pub flip: bool,
    /// Added to all channels, in [0, 1].
    pub brightness: f32,
    /// The shift of the hue; 1 is a full turn.
    pub hue: f32,
    /// Factor around each channel's mean.
    pub contrast: f32,
    /// Factor.
    pub saturation: f32,
    /// Turn grey.
    pub grey: bool,
    /// Left, top, width and height of a rectangle to paint mid-grey.
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
