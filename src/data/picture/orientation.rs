//! Which side of a picture is up: the orientation that EXIF keeps in JPEG, PNG and WebP files.

use super::Kind;
use crate::data::Image;
use ::image::metadata::Orientation;
use ::image::{DynamicImage, RgbImage};

/// How a picture file says that its pixels are to be turned; none where it says nothing, or that they are upright.
fn orientation(bytes: &[u8]) -> Option<Orientation> {
    let exif = match Kind::of(bytes)? {
        Kind::Jpeg => jpeg_exif(bytes),
        Kind::Png => png_chunk(bytes, b"eXIf"),
        Kind::WebP => webp_exif(bytes),
        Kind::Bmp | Kind::Pnm => None,
    };
    let found = Orientation::from_exif_chunk(exif?)?;
    (found != Orientation::NoTransforms).then_some(found)
}

/// Whether a picture file says that its pixels are to be turned.
pub fn is_turned(bytes: &[u8]) -> bool {
    orientation(bytes).is_some()
}

/// Turns the pixels of a picture as its file in `bytes` says.
pub(super) fn turn(bytes: &[u8], image: &mut Image) {
    let Some(orientation) = orientation(bytes) else {
        return;
    };
    let pixels = std::mem::take(&mut image.pixels);
    let picture = RgbImage::from_raw(image.width as u32, image.height as u32, pixels);
    let mut picture = DynamicImage::ImageRgb8(picture.expect("three bytes a pixel"));
    picture.apply_orientation(orientation);
    image.width = picture.width() as usize;
    image.height = picture.height() as usize;
    image.pixels = picture.into_rgb8().into_raw();
}

/// What stands behind `Exif\0\0` in the segment ff e1 before the picture's data: marker, length with itself, content.
fn jpeg_exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(2..)?;
    loop {
        let [0xff, marker, high, low, ..] = *rest else {
            return None;
        };
        // Start of scan: the data follow.
        if marker == 0xda {
            return None;
        }
        let length = usize::from(u16::from_be_bytes([high, low]));
        let content = rest.get(4..2 + length)?;
        if marker == 0xe1
            && let Some(exif) = content.strip_prefix(b"Exif\0\0")
        {
            return Some(exif);
        }
        rest = &rest[2 + length..];
    }
}

/// The content of a PNG's first chunk of this name: length, name, content, CRC.
pub(super) fn png_chunk<'a>(bytes: &'a [u8], wanted: &[u8; 4]) -> Option<&'a [u8]> {
    let mut rest = bytes.get(8..)?;
    loop {
        let (head, after) = rest.split_first_chunk::<8>()?;
        let [a, b, c, d, name @ ..] = *head;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let content = after.get(..length)?;
        if &name == wanted {
            return Some(content);
        }
        rest = after.get(length.checked_add(4)?..)?;
    }
}

/// The chunk `EXIF`: name, length, content, up to an even number of bytes.
fn webp_exif(bytes: &[u8]) -> Option<&[u8]> {
    let mut rest = bytes.get(12..)?;
    loop {
        let (head, after) = rest.split_first_chunk::<8>()?;
        let [name @ .., a, b, c, d] = *head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        let content = after.get(..length)?;
        if &name == b"EXIF" {
            // Some programs write JPEG's beginning, too.
            return Some(content.strip_prefix(b"Exif\0\0").unwrap_or(content));
        }
        rest = after.get(length.checked_next_multiple_of(2)?..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::picture::{decode, decode_upright, encode_jpeg, encode_png};

    /// Two rows of three pixels, all different.
    fn picture() -> Image {
        Image {
            width: 3,
            height: 2,
            pixels: (0..18).map(|i| 10 * i).collect(),
        }
    }

    /// TIFF, little-endian, with one entry: the orientation (tag 0x112, type short, one value).
    fn exif(value: u8) -> Vec<u8> {
        let entry = [0x12, 1, 3, 0, 1, 0, 0, 0, value, 0, 0, 0];
        [b"II\x2a\0\x08\0\0\0\x01\0".as_slice(), &entry, &[0; 4]].concat()
    }

    fn in_jpeg(jpeg: &[u8], value: u8) -> Vec<u8> {
        let content = [b"Exif\0\0".as_slice(), &exif(value)].concat();
        let length = (content.len() as u16 + 2).to_be_bytes();
        [&jpeg[..2], &[0xff, 0xe1], &length, &content, &jpeg[2..]].concat()
    }

    fn in_png(png: &[u8], value: u8) -> Vec<u8> {
        let content = exif(value);
        let length = (content.len() as u32).to_be_bytes();
        // Behind the header. No reader checks the CRC of what it does not need.
        let mut crc = !0_u32;
        for byte in b"eXIf".iter().chain(&content) {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ ((crc & 1) * 0xedb8_8320);
            }
        }
        let chunk = [&length, b"eXIf".as_slice(), &content, &(!crc).to_be_bytes()].concat();
        [&png[..33], &chunk, &png[33..]].concat()
    }

    /// A lossless WebP in the extended form, with the chunk behind the picture.
    fn in_webp(picture: &Image, value: u8) -> Vec<u8> {
        let mut plain = Vec::new();
        ::image::codecs::webp::WebPEncoder::new_lossless(&mut plain)
            .encode(&picture.pixels, 3, 2, ::image::ExtendedColorType::Rgb8)
            .unwrap();
        let content = exif(value);
        let header = [0b1000, 0, 0, 0, 2, 0, 0, 1, 0, 0];
        let chunk = |name: &[u8], content: &[u8]| {
            let length = (content.len() as u32).to_le_bytes();
            [name, &length, content].concat()
        };
        let chunks = [
            chunk(b"VP8X", &header),
            plain[12..].to_vec(),
            chunk(b"EXIF", &content),
        ];
        let chunks = [b"WEBP".as_slice(), &chunks.concat()].concat();
        chunk(b"RIFF", &chunks)
    }

    /// Pixel (x, y) of the upright picture by (width, height) of the stored one, as EXIF's table has it.
    fn upright(value: u8) -> Image {
        let stored = picture();
        let (w, h) = (stored.width, stored.height);
        let (width, height) = if value < 5 { (w, h) } else { (h, w) };
        let mut pixels = Vec::new();
        for y in 0..height {
            for x in 0..width {
                let (sx, sy) = match value {
                    1 => (x, y),
                    2 => (w - 1 - x, y),
                    3 => (w - 1 - x, h - 1 - y),
                    4 => (x, h - 1 - y),
                    5 => (y, x),
                    6 => (y, h - 1 - x),
                    7 => (w - 1 - y, h - 1 - x),
                    _ => (w - 1 - y, x),
                };
                pixels.extend(&stored.pixels[3 * (sy * w + sx)..][..3]);
            }
        }
        Image {
            width,
            height,
            pixels,
        }
    }

    #[test]
    fn every_orientation_of_every_kind_is_turned() {
        let png = encode_png(&picture());
        let mut image = Image::default();
        for value in 1..=8 {
            for bytes in [in_png(&png, value), in_webp(&picture(), value)] {
                assert_eq!(is_turned(&bytes), value != 1, "{value}");
                decode_upright(&bytes, &mut image).unwrap();
                assert_eq!(image, upright(value), "orientation {value}");
                decode(&bytes, &mut image).unwrap();
                assert_eq!(image, picture(), "stored");
            }
        }
        let jpeg = encode_jpeg(&picture(), 90);
        for value in 1..=8 {
            let bytes = in_jpeg(&jpeg, value);
            assert_eq!(is_turned(&bytes), value != 1);
            decode_upright(&bytes, &mut image).unwrap();
            let upright = upright(value);
            assert_eq!((image.width, image.height), (upright.width, upright.height));
        }
    }

    #[test]
    fn damaged_files_say_nothing() {
        for whole in [
            in_jpeg(&encode_jpeg(&picture(), 90), 6),
            in_png(&encode_png(&picture()), 6),
            in_webp(&picture(), 6),
        ] {
            for at in 0..whole.len() {
                is_turned(&whole[..at]);
                let mut damaged = whole.clone();
                damaged[at] ^= 0xff;
                is_turned(&damaged);
            }
        }
    }
}
