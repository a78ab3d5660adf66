//! Drawing on an RGB image: rectangles, frames, smooth lines and text. The only file that knows `embedded-graphics`, whose bitmap
//! fonts need no font files; they cover Latin-1, and other characters appear as question marks.

use std::collections::BTreeMap;
use std::convert::Infallible;

use embedded_graphics::Pixel;
use embedded_graphics::draw_target::DrawTarget;
use embedded_graphics::geometry::{OriginDimensions, Point, Size};
use embedded_graphics::mono_font::iso_8859_1::{FONT_6X13, FONT_8X13, FONT_9X15_BOLD, FONT_10X20};
use embedded_graphics::mono_font::{MonoFont, MonoTextStyle};
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::text::renderer::TextRenderer;
use embedded_graphics::text::{Baseline, Text};
use image::{Rgb, RgbImage};

use crate::base::error::Result;

/// Red, green, blue.
pub(crate) type Colour = [u8; 3];

/// The background.
pub(crate) const WHITE: Colour = [255, 255, 255];
/// Text and frames.
pub(crate) const INK: Colour = [38, 38, 38];
/// Text of second rank.
pub(crate) const GREY: Colour = [110, 110, 110];

/// A face and size of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Font {
    /// 6x13 pixels a character: many labels side by side.
    Small,
    /// 8x13: labels and numbers.
    Medium,
    /// 9x15, bold: titles.
    Title,
    /// 10x20: labels of figures, which have more pixels.
    Large,
}

impl Font {
    fn mono(self) -> &'static MonoFont<'static> {
        match self {
            Font::Small => &FONT_6X13,
            Font::Medium => &FONT_8X13,
            Font::Title => &FONT_9X15_BOLD,
            Font::Large => &FONT_10X20,
        }
    }

    /// The height of a line, in pixels.
    pub(crate) fn height(self) -> i32 {
        self.mono().character_size.height as i32
    }

    /// The width of `text`, in pixels.
    pub(crate) fn width(self, text: &str) -> i32 {
        let font = self.mono();
        text.chars().count() as i32 * (font.character_size.width + font.character_spacing) as i32
    }
}

/// Which point of a text's middle line its position names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    /// The beginning.
    Left,
    /// The middle.
    Centre,
    /// The end.
    Right,
}

/// A white picture to draw on. What lies outside of it is not drawn.
pub(crate) struct Canvas {
    image: RgbImage,
}

impl Canvas {
    /// A white canvas of `width` x `height` pixels.
    pub(crate) fn new(width: i32, height: i32) -> Self {
        Canvas {
            image: RgbImage::from_pixel(width.max(1) as u32, height.max(1) as u32, Rgb(WHITE)),
        }
    }

    /// The picture.
    pub(crate) fn into_image(self) -> RgbImage {
        self.image
    }

    /// Fills the rectangle of `width` x `height` pixels whose upper left corner is (`x`, `y`).
    pub(crate) fn fill(&mut self, x: i32, y: i32, width: i32, height: i32, colour: Colour) {
        let right = x.saturating_add(width).min(self.image.width() as i32);
        let bottom = y.saturating_add(height).min(self.image.height() as i32);
        for row in y.max(0)..bottom {
            for column in x.max(0)..right {
                self.image.put_pixel(column as u32, row as u32, Rgb(colour));
            }
        }
    }

    /// Mixes `colour` into the rectangle, with this share of it.
    pub(crate) fn shade(&mut self, [x, y, width, height]: [i32; 4], colour: Colour, share: f32) {
        let right = x.saturating_add(width).min(self.image.width() as i32);
        let bottom = y.saturating_add(height).min(self.image.height() as i32);
        for row in y.max(0)..bottom {
            for column in x.max(0)..right {
                mix(
                    self.image.get_pixel_mut(column as u32, row as u32),
                    colour,
                    share,
                );
            }
        }
    }

    /// Draws lines of `width` pixels through `points`, with smooth edges; pixel (0, 0) has its middle at (0.5, 0.5).
    pub(crate) fn polyline(&mut self, points: &[(f32, f32)], width: f32, colour: Colour) {
        // How far each pixel is covered: joints are painted once.
        let mut covered: BTreeMap<(u32, u32), f32> = BTreeMap::new();
        let reach = width / 2.0 + 1.0;
        for segment in points.windows(2) {
            let ((ax, ay), (bx, by)) = (segment[0], segment[1]);
            let range = |a: f32, b: f32, end: u32| {
                let from = (a.min(b) - reach).floor().max(0.0) as u32;
                from..((a.max(b) + reach).ceil().max(0.0) as u32).min(end)
            };
            for y in range(ay, by, self.image.height()) {
                for x in range(ax, bx, self.image.width()) {
                    let (px, py) = (x as f32 + 0.5 - ax, y as f32 + 0.5 - ay);
                    let (dx, dy) = (bx - ax, by - ay);
                    let along = (px * dx + py * dy) / (dx * dx + dy * dy).max(1e-12);
                    let along = along.clamp(0.0, 1.0);
                    let distance = (px - along * dx).hypot(py - along * dy);
                    let share = (width / 2.0 + 0.5 - distance).clamp(0.0, 1.0);
                    if share > 0.0 {
                        let before = covered.entry((x, y)).or_default();
                        *before = before.max(share);
                    }
                }
            }
        }
        for ((x, y), share) in covered {
            mix(self.image.get_pixel_mut(x, y), colour, share);
        }
    }

    /// Draws a line of `thickness` just around the rectangle.
    pub(crate) fn frame(
        &mut self,
        [x, y, width, height]: [i32; 4],
        thickness: i32,
        colour: Colour,
    ) {
        let (t, outer) = (thickness, width + 2 * thickness);
        self.fill(x - t, y - t, outer, t, colour);
        self.fill(x - t, y + height, outer, t, colour);
        self.fill(x - t, y, t, height, colour);
        self.fill(x + width, y, t, height, colour);
    }

    /// Copies `picture` so that its upper left corner is (`x`, `y`).
    pub(crate) fn paste(&mut self, picture: &RgbImage, x: i32, y: i32) {
        image::imageops::replace(&mut self.image, picture, x.into(), y.into());
    }

    /// Writes one line; (`x`, `y`) is on its middle line, at its beginning, middle or end.
    pub(crate) fn text(
        &mut self,
        text: &str,
        (x, y): (i32, i32),
        align: Align,
        font: Font,
        colour: Colour,
    ) {
        self.write(text, (x, y), align, font, colour, false);
    }

    /// Writes one line from below upwards; (`x`, `y`) is on its middle line, as in [`Canvas::text`].
    pub(crate) fn text_upwards(
        &mut self,
        text: &str,
        (x, y): (i32, i32),
        align: Align,
        font: Font,
        colour: Colour,
    ) {
        self.write(text, (x, y), align, font, colour, true);
    }

    fn write(
        &mut self,
        text: &str,
        origin: (i32, i32),
        align: Align,
        font: Font,
        colour: Colour,
        upwards: bool,
    ) {
        let start = match align {
            Align::Left => 0,
            Align::Centre => -font.width(text) / 2,
            Align::Right => -font.width(text),
        };
        let style = MonoTextStyle::new(font.mono(), BinaryColor::On);
        let top = -(style.line_height() as i32) / 2;
        let mut pen = Pen {
            image: &mut self.image,
            origin,
            upwards,
            colour,
        };
        let text = Text::with_baseline(text, Point::new(start, top), style, Baseline::Top);
        let Ok(_) = embedded_graphics::Drawable::draw(&text, &mut pen);
    }
}

/// Mixes a share of `colour` into a pixel.
fn mix(pixel: &mut Rgb<u8>, colour: Colour, share: f32) {
    for (old, new) in pixel.0.iter_mut().zip(colour) {
        *old = (f32::from(*old) * (1.0 - share) + f32::from(new) * share).round() as u8;
    }
}

/// Where a font's pixels go: shifted to `origin`, and turned a quarter left for text that runs upwards.
struct Pen<'a> {
    image: &'a mut RgbImage,
    origin: (i32, i32),
    upwards: bool,
    colour: Colour,
}

impl OriginDimensions for Pen<'_> {
    fn size(&self) -> Size {
        Size::new(self.image.width(), self.image.height())
    }
}

impl DrawTarget for Pen<'_> {
    type Color = BinaryColor;
    type Error = Infallible;

    fn draw_iter<I>(&mut self, pixels: I) -> Result<(), Infallible>
    where
        I: IntoIterator<Item = Pixel<BinaryColor>>,
    {
        for Pixel(point, colour) in pixels {
            if colour == BinaryColor::Off {
                continue;
            }
            let (dx, dy) = if self.upwards {
                (point.y, -point.x)
            } else {
                (point.x, point.y)
            };
            let (x, y) = (self.origin.0 + dx, self.origin.1 + dy);
            if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
                && let Some(pixel) = self.image.get_pixel_mut_checked(x, y)
            {
                *pixel = Rgb(self.colour);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The box around everything that is not white: left, top, right, bottom, inclusive.
    fn ink(image: &RgbImage) -> [u32; 4] {
        let mut found = [u32::MAX, u32::MAX, 0, 0];
        for (x, y, pixel) in image.enumerate_pixels() {
            if pixel.0 != WHITE {
                found = [
                    found[0].min(x),
                    found[1].min(y),
                    found[2].max(x),
                    found[3].max(y),
                ];
            }
        }
        found
    }

    #[test]
    fn rectangles_and_frames_cover_their_pixels() {
        let mut canvas = Canvas::new(20, 10);
        canvas.fill(3, 2, 5, 4, INK);
        assert_eq!(ink(&canvas.into_image()), [3, 2, 7, 5]);
        let mut canvas = Canvas::new(20, 10);
        canvas.frame([3, 2, 5, 4], 1, INK);
        let image = canvas.into_image();
        assert_eq!(ink(&image), [2, 1, 8, 6]);
        assert_eq!(image.get_pixel(3, 2).0, WHITE);
        // What lies outside is cut off, without panic.
        let mut canvas = Canvas::new(4, 4);
        canvas.fill(-5, -5, 7, 100, GREY);
        canvas.fill(9, 9, i32::MAX, 2, GREY);
        assert_eq!(ink(&canvas.into_image()), [0, 0, 1, 3]);
    }

    #[test]
    fn lines_have_their_width_and_smooth_edges() {
        let mut canvas = Canvas::new(20, 10);
        canvas.polyline(&[(2.0, 5.0), (18.0, 5.0)], 2.0, [0, 0, 0]);
        let image = canvas.into_image();
        assert_eq!(ink(&image), [1, 4, 18, 5]);
        assert_eq!(image.get_pixel(10, 4).0, [0; 3]);
        // A joint, a point and what lies outside are no trouble.
        let mut canvas = Canvas::new(20, 10);
        canvas.polyline(
            &[(-9.0, -9.0), (10.0, 5.0), (10.0, 5.0), (99.0, 5.5)],
            1.5,
            INK,
        );
        canvas.shade([0, 9, 99, 99], [0, 0, 0], 0.5);
        let image = canvas.into_image();
        assert_eq!(image.get_pixel(0, 9).0, [128; 3]);
        let mean: f64 = (0..20).map(|x| f64::from(image.get_pixel(x, 5).0[0])).sum();
        assert!(mean < 20.0 * 200.0, "{mean}");
    }

    #[test]
    fn text_is_aligned_and_turns() {
        let area = |align, upwards| {
            let mut canvas = Canvas::new(200, 200);
            if upwards {
                canvas.text_upwards("HHHH", (100, 100), align, Font::Medium, INK);
            } else {
                canvas.text("HHHH", (100, 100), align, Font::Medium, INK);
            }
            ink(&canvas.into_image())
        };
        assert_eq!(Font::Medium.width("HHHH"), 32);
        let [left, top, right, bottom] = area(Align::Left, false);
        assert!(left >= 100 && right <= 132 && top >= 93 && bottom <= 107);
        let [left, _, right, _] = area(Align::Right, false);
        assert!(left >= 68 && right < 100);
        let [left, _, right, _] = area(Align::Centre, false);
        assert!(left.abs_diff(84) <= 1 && right.abs_diff(115) <= 2);
        // Upwards: the beginning is below, the end above.
        let [left, top, right, bottom] = area(Align::Left, true);
        assert!(left >= 93 && right <= 107 && top >= 68 && bottom <= 100);
        let [_, top, _, bottom] = area(Align::Right, true);
        assert!(top >= 100 && bottom <= 132);
    }
}
