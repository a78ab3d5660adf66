//! Augmentation: small random changes to a picture that leave the person the same.
//!
//! Everything is decided by (seed, epoch, image): the same picture in the same epoch of a run with the same seed looks the
//! same, whatever was drawn before it and whichever thread does it.
//!
//! The order is fixed: resize, crop, shift, flip, brightness, hue, contrast, saturation, grey, erase. Colours are changed in
//! [0, 1] with the formulas of `tf.image`, and are not clamped in between; at the end values are rounded to 0..=255.
//!
//! (The TensorFlow project whose recipe [`Augment::seed`] is applied its brightness and hue deltas to floats in 0..255,
//! where they do next to nothing. Here they are applied in [0, 1], where they were meant to be.)

use crate::base::changes::{Changes, to_u8};
use crate::base::random::{Purpose, Random};
use crate::data::Image;
use crate::data::picture::{ResizedWindow, resize_window};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// What is done to each training picture. The default is nothing but the resize to the network's input size.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augment {
    /// Resize to this many pixels square, then crop the input size at a random place. Default: none, resize to the input size.
    pub resize: Option<usize>,
    /// Shift by up to this many pixels in each direction, both axes; the border's colour fills what comes in. Default: 0.
    pub shift: usize,
    /// Mirror left and right with probability 1/2. Default: false.
    pub flip: bool,
    /// Add to all channels a number from -b to b (values in [0, 1]). Default: 0.
    pub brightness: f32,
    /// Turn the hue by an angle from -h to h, in whole turns (at most 0.5). Default: 0.
    pub hue: f32,
    /// Stretch each channel around its mean by a factor from this range. Default: (1, 1).
    pub contrast: (f32, f32),
    /// Multiply the saturation (of HSV) by a factor from this range. Default: (1, 1).
    pub saturation: (f32, f32),
    /// Turn grey with this probability. Default: 0.
    pub grey: f32,
    /// With this probability, paint a rectangle of 2 to 20 % of the area mid-grey. Default: 0.
    pub erase: f32,
}

impl Default for Augment {
    fn default() -> Self {
        Augment {
            resize: None,
            shift: 0,
            flip: false,
            brightness: 0.0,
            hue: 0.0,
            contrast: (1.0, 1.0),
            saturation: (1.0, 1.0),
            grey: 0.0,
            erase: 0.0,
        }
    }
}

impl Augment {
    /// The recipe of the TensorFlow project that this one follows: resize to 128, crop, flip, brightness 0.1, hue 0.03,
    /// contrast and saturation 0.9 to 1.1, grey with probability 1/2.
    pub fn seed() -> Self {
        Augment {
            resize: Some(128),
            flip: true,
            brightness: 0.1,
            hue: 0.03,
            contrast: (0.9, 1.1),
            saturation: (0.9, 1.1),
            grey: 0.5,
            ..Augment::default()
        }
    }

    /// Checks the settings for pictures of `size` x `size`.
    ///
    /// # Errors
    /// A number is not finite or outside its range; the sentence names it.
    pub fn check(&self, size: usize) -> Result<()> {
        let fail = |what: String| Err(Error::Invalid(format!("augmentation: {what}")));
        if let Some(resize) = self.resize
            && !(size..=16 * size).contains(&resize)
        {
            return fail(format!(
                "resize = {resize} must be from {size}, the input size, to {}",
                16 * size
            ));
        }
        if self.shift >= size {
            return fail(format!(
                "shift = {} must be below the input size {size}",
                self.shift
            ));
        }
        for (name, value, most) in [
            ("brightness", self.brightness, 1.0),
            ("hue", self.hue, 0.5),
            ("grey", self.grey, 1.0),
            ("erase", self.erase, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return fail(format!("{name} = {value} must be from 0 to {most}"));
            }
        }
        for (name, (low, high)) in [("contrast", self.contrast), ("saturation", self.saturation)] {
            if !(low >= 0.0 && low <= high && high <= 100.0) {
                return fail(format!(
                    "{name} = ({low}, {high}) must be a range of factors from 0 to 100"
                ));
            }
        }
        Ok(())
    }

    /// Width and height of the resized picture, from which `size` x `size` pixels are cropped.
    pub fn side(&self, size: usize) -> usize {
        self.resize.unwrap_or(size)
    }

    /// What happens to image `index` of a data set in `epoch`. Draws every number in a fixed order, used or not: switching
    /// one change on leaves the others as they were.
    pub fn decide(&self, (seed, epoch, index): (u64, u32, u32), size: usize) -> Changes {
        let place = u64::from(epoch) << 32 | u64::from(index);
        let mut random = Random::new(seed, Purpose::Augment, place);
        // The largest fraction is below 1, so the place is at most the room.
        let room = self.side(size) - size + 1;
        let mut crop = || (random.uniform() * room as f32) as usize;
        let crop = [crop(), crop()];
        let span = 2 * self.shift as u32 + 1;
        let mut shift = || random.below(span) as isize - self.shift as isize;
        let shift = [shift(), shift()];
        let flip = random.uniform() < 0.5;
        let brightness = random.range(-self.brightness, self.brightness);
        let hue = random.range(-self.hue, self.hue);
        let contrast = random.range(self.contrast.0, self.contrast.1);
        let saturation = random.range(self.saturation.0, self.saturation.1);
        let grey = random.uniform() < self.grey;
        let erase = random.uniform() < self.erase;
        let rectangle = [
            random.range(0.02, 0.2),
            random.range(-1.0, 1.0),
            random.uniform(),
            random.uniform(),
        ];
        Changes {
            crop,
            shift,
            flip: flip && self.flip,
            brightness,
            hue,
            contrast,
            saturation,
            grey,
            erase: erase.then(|| place_rectangle(size, rectangle)),
        }
    }

    /// Makes `out` (`size` x `size`, HWC, RGB) of `image`, as image `index` of a data set looks in `epoch`.
    ///
    /// # Panics
    /// If `out` has not `size * size * 3` bytes, or `image` no pixels.
    pub fn apply(&self, place: (u64, u32, u32), image: &Image, size: usize, out: &mut [u8]) {
        let changes = self.decide(place, size);
        resize_and_crop(image, self.side(size), changes.crop, size, out);
        changes.apply_to_crop(size, out);
    }
}

/// Only resizes `image` into `out` (`side` x `side`, HWC, RGB), for a device that makes the changes.
///
/// # Panics
/// If `out` has not `side * side * 3` bytes, or `image` no pixels.
pub fn resize_only(image: &Image, side: usize, out: &mut [u8]) {
    resize_and_crop(image, side, [0, 0], side, out);
}

/// The `size` x `size` pixels at `crop` of `image` resized to `side` x `side`.
fn resize_and_crop(image: &Image, side: usize, crop: [usize; 2], size: usize, out: &mut [u8]) {
    assert_eq!(
        out.len(),
        size * size * 3,
        "the output is {size}x{size} RGB"
    );
    if side == size && (image.width, image.height) == (size, size) {
        out.copy_from_slice(&image.pixels);
        return;
    }
    let window = ResizedWindow {
        full: [side; 2],
        offset: crop,
        size: [size; 2],
    };
    let shape = (image.width, image.height);
    resize_window::<3, _, _>(&image.pixels, shape, window, out, to_u8);
}

/// Left, top, width and height of a rectangle of an area, an aspect ratio (its log, -1 to 1) and a place given as fractions.
fn place_rectangle(size: usize, [area, aspect, left, top]: [f32; 4]) -> [usize; 4] {
    let side = size as f32 * area.sqrt();
    let stretch = (0.5 * aspect).exp();
    let clamp = |v: f32| (v as usize).clamp(1, size);
    let (width, height) = (clamp(side * stretch), clamp(side / stretch));
    let left = (left * (size - width + 1) as f32) as usize;
    let top = (top * (size - height + 1) as f32) as usize;
    [left, top, width, height]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::changes::flip;

    fn picture(width: usize, height: usize) -> Image {
        let pixels = (0..width * height * 3)
            .map(|i| ((i * i * 11 + i * 29 + i / 7) % 256) as u8)
            .collect();
        Image {
            width,
            height,
            pixels,
        }
    }

    #[test]
    fn nothing_is_nothing_and_flip_mirrors() {
        let image = picture(9, 9);
        let mut out = vec![0; 243];
        Augment::default().apply((1, 2, 3), &image, 9, &mut out);
        assert_eq!(out, image.pixels);
        let flipping = Augment {
            flip: true,
            ..Augment::default()
        };
        let mut mirrored = image.pixels.clone();
        flip(&mut mirrored, 9);
        let mut seen = [0; 2];
        for epoch in 0..100 {
            flipping.apply((1, epoch, 3), &image, 9, &mut out);
            assert!(out == image.pixels || out == mirrored);
            seen[usize::from(out == mirrored)] += 1;
        }
        assert!(seen[0] > 30 && seen[1] > 30, "{seen:?}");
    }

    #[test]
    fn shifts_repeat_the_border_and_reach_every_place() {
        let image = picture(7, 7);
        let augment = Augment {
            shift: 2,
            ..Augment::default()
        };
        let mut seen = std::collections::BTreeSet::new();
        let mut out = vec![0; 147];
        for index in 0..300 {
            let [right, down] = augment.decide((5, 0, index), 7).shift;
            seen.insert((right, down));
            augment.apply((5, 0, index), &image, 7, &mut out);
            for y in 0..7_isize {
                for x in 0..7_isize {
                    let (u, v) = ((x - right).clamp(0, 6), (y - down).clamp(0, 6));
                    let at = |x: isize, y: isize| (y * 7 + x) as usize * 3;
                    assert_eq!(out[at(x, y)..][..3], image.pixels[at(u, v)..][..3]);
                }
            }
        }
        assert_eq!(seen.len(), 25);
    }

    #[test]
    fn a_crop_of_the_resized_picture_is_that_crop() {
        let image = picture(20, 31);
        let augment = Augment {
            resize: Some(16),
            ..Augment::default()
        };
        let whole = crate::data::picture::resize(&image, 16, 16);
        let mut out = vec![0; 12 * 12 * 3];
        let mut places = std::collections::BTreeSet::new();
        for index in 0..200 {
            augment.apply((5, 1, index), &image, 12, &mut out);
            let place = (0..5)
                .flat_map(|y| (0..5).map(move |x| (x, y)))
                .find(|&(x, y)| crate::data::picture::crop(&whole, x, y, 12, 12).pixels == out);
            places.insert(place.expect("some crop of the resized picture"));
        }
        assert_eq!(places.len(), 25);
    }

    #[test]
    fn the_seed_recipe_keeps_its_ranges_and_every_change_is_a_function_of_its_place() {
        let image = picture(112, 112);
        let recipe = Augment::seed();
        recipe.check(112).unwrap();
        let (mut a, mut b) = (vec![0; 112 * 112 * 3], vec![0; 112 * 112 * 3]);
        let mut greys = 0;
        for index in 0..40 {
            recipe.apply((9, 4, index), &image, 112, &mut a);
            recipe.apply((9, 4, index), &image, 112, &mut b);
            assert_eq!(a, b);
            recipe.apply((9, 5, index), &image, 112, &mut b);
            assert_ne!(a, b);
            let d = recipe.decide((9, 4, index), 112);
            assert!(d.brightness.abs() <= 0.1 && d.hue.abs() <= 0.03);
            assert!((0.9..=1.1).contains(&d.contrast) && (0.9..=1.1).contains(&d.saturation));
            let grey = a.chunks(3).all(|p| p[0] == p[1] && p[1] == p[2]);
            assert_eq!(grey, d.grey);
            greys += u32::from(grey);
        }
        assert!((10..=30).contains(&greys), "{greys}");
    }

    #[test]
    fn erasing_paints_between_2_and_20_percent() {
        let image = picture(50, 50);
        let augment = Augment {
            erase: 1.0,
            ..Augment::default()
        };
        let mut out = vec![0; 7500];
        for index in 0..50 {
            augment.apply((2, 0, index), &image, 50, &mut out);
            let changed = out.chunks(3).filter(|p| **p == [127; 3]).count();
            assert!((30..=510).contains(&changed), "{changed} of 2500 pixels");
        }
    }

    /// The two ways to the same picture: changes made by the loader, and made afterwards of the resized picture.
    #[test]
    fn changes_can_be_made_after_the_resize() {
        let image = picture(40, 31);
        let augment = Augment {
            resize: Some(36),
            shift: 3,
            erase: 0.5,
            ..Augment::seed()
        };
        let mut resized = vec![0; 36 * 36 * 3];
        resize_only(&image, 36, &mut resized);
        let (mut a, mut b) = (vec![0; 30 * 30 * 3], vec![1; 30 * 30 * 3]);
        for index in 0..100 {
            augment.apply((3, 1, index), &image, 30, &mut a);
            let changes = augment.decide((3, 1, index), 30);
            changes.apply(&resized, 36, 30, &mut b);
            assert_eq!(a, b);
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let wrong = |change: fn(&mut Augment)| {
            let mut augment = Augment::default();
            change(&mut augment);
            augment.check(112).unwrap_err().to_string()
        };
        assert!(wrong(|a| a.resize = Some(100)).contains("resize = 100"));
        assert!(wrong(|a| a.hue = f32::NAN).contains("hue"));
        assert!(wrong(|a| a.contrast = (1.1, 0.9)).contains("contrast"));
        assert!(wrong(|a| a.shift = 112).contains("shift"));
        let text = toml::to_string(&Augment::seed()).unwrap();
        assert_eq!(toml::from_str::<Augment>(&text).unwrap(), Augment::seed());
        assert!(toml::from_str::<Augment>("colour = 1").is_err());
    }
}
