//! What augmentation does to a picture. The loader decides the changes; the loader's threads or a device apply them.
//!
//! Colours are changed in [0, 1] with the formulas of `tf.image`, and are not clamped in between; at the end values are
//! rounded to 0..=255.

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

impl Changes {
    /// Makes `out` (`size` x `size`, HWC, RGB) of a resized picture of `side` x `side` pixels.
    ///
    /// # Panics
    /// If the picture or `out` is of another size, or the crop not inside.
    pub fn apply(&self, picture: &[u8], side: usize, size: usize, out: &mut [u8]) {
        assert_eq!(picture.len(), side * side * 3, "a picture of its size");
        let [left, top] = self.crop;
        let rows = picture.chunks_exact(side * 3).skip(top);
        for (out, row) in out.chunks_exact_mut(size * 3).zip(rows) {
            out.copy_from_slice(&row[left * 3..(left + size) * 3]);
        }
        self.apply_to_crop(size, out);
    }

    /// Everything that comes after the crop, in place.
    pub(crate) fn apply_to_crop(&self, size: usize, out: &mut [u8]) {
        if self.shift != [0, 0] {
            shift(out, size, self.shift);
        }
        if self.flip {
            flip(out, size);
        }
        if self.colours() {
            change_colours(self, out);
        }
        if let Some([left, top, width, height]) = self.erase {
            for row in out.chunks_exact_mut(size * 3).skip(top).take(height) {
                row[left * 3..(left + width) * 3].fill(ERASED);
            }
        }
    }
}

/// Moves the picture by (right, down); rows and columns that come in repeat the border.
fn shift(pixels: &mut [u8], size: usize, [right, down]: [isize; 2]) {
    let row = size * 3;
    for k in 0..size {
        // Rows are moved away from where they come from, so that none is overwritten before it is read.
        let y = if down > 0 { size - 1 - k } else { k };
        let from = (y as isize - down).clamp(0, size as isize - 1) as usize;
        if from != y {
            pixels.copy_within(from * row..(from + 1) * row, y * row);
        }
    }
    let step = right.unsigned_abs();
    if step == 0 {
        return;
    }
    for line in pixels.chunks_exact_mut(row) {
        if right > 0 {
            line.copy_within(..row - step * 3, step * 3);
            for x in 0..step {
                line.copy_within(step * 3..step * 3 + 3, x * 3);
            }
        } else {
            line.copy_within(step * 3.., 0);
            let border = row - step * 3 - 3;
            for x in size - step..size {
                line.copy_within(border..border + 3, x * 3);
            }
        }
    }
}

fn change_colours(d: &Changes, pixels: &mut [u8]) {
    // One plane a channel, and no branch that depends on a pixel, so that the loops become vector instructions.
    let plane = |c: usize| -> Vec<f32> {
        let channel = pixels.as_chunks::<3>().0.iter();
        channel
            .map(|pixel| f32::from(pixel[c]) * (1.0 / 255.0) + d.brightness)
            .collect()
    };
    let mut planes = [plane(0), plane(1), plane(2)];
    if d.hue != 0.0 {
        map_pixels(&mut planes, |pixel| turn_hue(pixel, d.hue));
    }
    if d.contrast != 1.0 {
        for plane in &mut planes {
            stretch_contrast(plane, d.contrast);
        }
    }
    if d.saturation != 1.0 {
        map_pixels(&mut planes, |pixel| scale_saturation(pixel, d.saturation));
    }
    if d.grey {
        map_pixels(&mut planes, grey);
    }
    let [r, g, b] = &planes;
    let out = pixels.as_chunks_mut::<3>().0.iter_mut();
    for (((out, r), g), b) in out.zip(r).zip(g).zip(b) {
        *out = [r, g, b].map(|v| to_u8(v * 255.0));
    }
}

#[inline(always)]
fn map_pixels([r, g, b]: &mut [Vec<f32>; 3], f: impl Fn([f32; 3]) -> [f32; 3]) {
    for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
        [*r, *g, *b] = f([*r, *g, *b]);
    }
}

/// The larger and the smaller of two finite numbers (`f32::max` also sorts out NaN, which costs more than the comparison).
#[inline(always)]
fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

#[inline(always)]
fn smaller(a: f32, b: f32) -> f32 {
    if a < b { a } else { b }
}

/// `tf.image.adjust_hue`: turns the hue by `delta` (at most 1/2) turns; the largest and the smallest channel keep their values.
#[inline(always)]
fn turn_hue([r, g, b]: [f32; 3], delta: f32) -> [f32; 3] {
    let high = larger(larger(r, g), b);
    let low = smaller(smaller(r, g), b);
    let range = high - low;
    // A grey pixel has a range of 0 and stays what it is, whatever hue comes out here.
    let scale = 1.0 / larger(range, f32::MIN_POSITIVE);
    // The hue in sixths of a turn: red at 0, green at 2, blue at 4.
    let (from, other, centre) = if high == r {
        (g, b, 0.0)
    } else if high == g {
        (b, r, 2.0)
    } else {
        (r, g, 4.0)
    };
    let hue = (from - other) * scale + centre + 6.0 * delta;
    let hue = if hue < 0.0 { hue + 6.0 } else { hue };
    let hue = if hue >= 6.0 { hue - 6.0 } else { hue };
    // Each channel is a trapezoid of the hue.
    let channel = |height: f32| low + range * smaller(larger(height, 0.0), 1.0);
    [
        channel((hue - 3.0).abs() - 1.0),
        channel(2.0 - (hue - 2.0).abs()),
        channel(2.0 - (hue - 4.0).abs()),
    ]
}

/// `tf.image.adjust_contrast` of one channel: (x - mean) * factor + mean, with the mean over the picture.
fn stretch_contrast(plane: &mut [f32], factor: f32) {
    let sum: f64 = (plane.chunks(64))
        .map(|part| f64::from(part.iter().sum::<f32>()))
        .sum();
    let mean = (sum / plane.len() as f64) as f32;
    for v in plane {
        *v = (*v - mean) * factor + mean;
    }
}

/// `tf.image.adjust_saturation`: S of HSV times `factor`, at most 1. With V = max and S = (max - min) / max, every channel
/// moves along the line to V: v' = V - (V - v) S' / S. Where the largest channel is not positive, S counts as 0.
#[inline(always)]
fn scale_saturation([r, g, b]: [f32; 3], factor: f32) -> [f32; 3] {
    let high = larger(larger(r, g), b);
    let range = high - smaller(smaller(r, g), b);
    // min(S f, 1) / S = min(f, V / (max - min)).
    let ratio = smaller(factor, larger(high, 0.0) / larger(range, f32::MIN_POSITIVE));
    [r, g, b].map(|v| high - (high - v) * ratio)
}

/// `tf.image.rgb_to_grayscale`, repeated in three channels.
#[inline(always)]
fn grey([r, g, b]: [f32; 3]) -> [f32; 3] {
    [0.2989 * r + 0.587 * g + 0.114 * b; 3]
}

/// Mirrors left and right, in place, an HWC array of 3-channel pixels with rows of `width`.
pub fn flip<T>(pixels: &mut [T], width: usize) {
    for row in pixels.chunks_exact_mut(width * 3) {
        row.as_chunks_mut::<3>().0.reverse();
    }
}

/// Rounds to the nearest of 0..=255.
#[inline(always)]
pub(crate) fn to_u8(value: f32) -> u8 {
    // `as` saturates at both ends.
    (value + 0.5) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(found: [f32; 3], expected: [f32; 3]) {
        for (a, b) in found.iter().zip(expected) {
            assert!((a - b).abs() <= 2e-6, "{found:?}, expected {expected:?}");
        }
    }

    /// Python's `colorsys` (the same HSV as `tf.image`):
    /// `h, s, v = rgb_to_hsv(r, g, b); hsv_to_rgb((h + d) % 1, s, v)` and `hsv_to_rgb(h, min(1, s * f), v)`.
    #[test]
    fn hue_and_saturation_agree_with_colorsys() {
        for (rgb, delta, expected) in COLORSYS_HUE {
            close(turn_hue(rgb, delta), expected);
        }
        for (rgb, factor, expected) in COLORSYS_SATURATION {
            close(scale_saturation(rgb, factor), expected);
        }
        close(turn_hue([0.3; 3], 0.2), [0.3; 3]);
        close(scale_saturation([-0.1, -0.2, -0.05], 1.1), [-0.05; 3]);
    }

    const COLORSYS_HUE: [([f32; 3], f32, [f32; 3]); 5] = [
        ([0.2, 0.7, 0.4], 0.1, [0.2, 0.7, 0.7]),
        ([0.9, 0.1, 0.3], -0.3, [0.1, 0.14, 0.9]),
        ([0.1, 0.2, 0.8], 0.5, [0.8, 0.7, 0.1]),
        ([0.6, 0.6, 0.2], 0.03, [0.528, 0.6, 0.2]),
        ([0.5, 0.2, 0.5], -0.03, [0.446, 0.2, 0.5]),
    ];
    const COLORSYS_SATURATION: [([f32; 3], f32, [f32; 3]); 4] = [
        ([0.2, 0.7, 0.4], 1.1, [0.15, 0.7, 0.37]),
        ([0.9, 0.1, 0.3], 0.9, [0.9, 0.18, 0.36]),
        ([0.1, 0.2, 0.8], 1.5, [0.0, 0.1142857, 0.8]),
        ([0.6, 0.6, 0.2], 0.0, [0.6, 0.6, 0.6]),
    ];

    #[test]
    fn contrast_stretches_around_the_mean() {
        let mut values = [0.0, 1.0, 0.2];
        stretch_contrast(&mut values, 0.5);
        close(values, [0.2, 0.7, 0.3]);
        close(grey([1.0, 0.5, 0.25]), [0.2989 + 0.2935 + 0.0285; 3]);
    }
}
