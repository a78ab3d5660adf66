//! Pictures: decoding, resizing, cropping, flipping and channel order.
//!
//! JPEG (baseline and progressive, grey, YCbCr and CMYK), PNG, WebP, BMP and PNM files become RGB, 8 bits a channel: grey is
//! repeated in all three channels, 16 bits are rounded to 8, alpha is dropped. Of the EXIF block the orientation counts, for
//! picture files ([`decode_upright`]), as OpenCV has it; pictures in records are taken as they are stored ([`decode`]).
//!
//! Resizing is bilinear with OpenCV's conventions (`cv2.resize(..., interpolation=cv2.INTER_LINEAR)`): output pixel x
//! samples the input at (x + 1/2) * source / target - 1/2, coordinates outside repeat the border, and nothing is
//! smoothed before it is made smaller. Arithmetic is in f32; OpenCV's own 8-bit path uses 11-bit weights and may differ by 1.

pub mod align;
pub mod augment;
mod orientation;

pub use orientation::is_turned;

use crate::base::changes::to_u8;
use crate::base::files::read_whole;
use crate::data::Image;
use crate::{Error, Result};
use ::image::ImageDecoder;
use std::io::Cursor;
use std::path::Path;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

/// What the names of picture files end in, in lower case.
pub(crate) const EXTENSIONS: [&str; 11] = [
    "jpg", "jpeg", "jpe", "jfif", "png", "webp", "bmp", "pgm", "ppm", "pnm", "pbm",
];

/// Whether a file's name that ends in this, in any case, is a picture's.
pub(crate) fn is_extension(ending: &str) -> bool {
    (EXTENSIONS.iter()).any(|known| ending.eq_ignore_ascii_case(known))
}

/// Whether a file of this name is a picture.
pub(crate) fn is_name(name: &str) -> bool {
    (name.rsplit_once('.')).is_some_and(|(_, ending)| is_extension(ending))
}

/// The kinds of picture files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Jpeg,
    Png,
    WebP,
    Bmp,
    Pnm,
}

impl Kind {
    /// What the file in `bytes` is, by how it begins.
    pub(crate) fn of(bytes: &[u8]) -> Option<Self> {
        match bytes {
            [0xff, 0xd8, ..] => Some(Kind::Jpeg),
            [0x89, b'P', b'N', b'G', ..] => Some(Kind::Png),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(Kind::WebP),
            [b'B', b'M', ..] => Some(Kind::Bmp),
            [b'P', b'1'..=b'7', ..] => Some(Kind::Pnm),
            _ => None,
        }
    }

    /// What its name ends in.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Kind::Jpeg => "jpg",
            Kind::Png => "png",
            Kind::WebP => "webp",
            Kind::Bmp => "bmp",
            Kind::Pnm => "pnm",
        }
    }
}

/// The largest picture that is decoded, in pixels: those of most cameras.
const MAX_PIXELS: u64 = 50_000_000;

/// A decoded picture may hold this many bytes for each byte of its file (DEFLATE reaches 1032), or [`FREE_BYTES`].
const MAX_EXPANSION: u64 = 1_100;

/// Pictures up to this many decoded bytes need no justification by the size of their file.
const FREE_BYTES: u64 = 16 << 20;

/// Decodes a picture file as [`decode`] does, and turns it as its EXIF orientation says.
///
/// # Errors
/// As [`decode`].
pub fn decode_upright(bytes: &[u8], image: &mut Image) -> Result<(), String> {
    decode(bytes, image)?;
    orientation::turn(bytes, image);
    Ok(())
}

/// Reads and decodes the picture file at `path` as [`decode_upright`] does.
///
/// # Errors
/// It cannot be read or decoded.
pub fn read(path: &Path, image: &mut Image) -> Result<()> {
    decode_upright(&read_whole(path)?, image)
        .map_err(|why| Error::data(path, format!("cannot be decoded: {why}")))
}

/// Whether a picture of this size can be an aligned face for a network that takes `size` x `size` pixels: a square, and not
/// more than four times as large.
pub fn may_be_aligned(width: usize, height: usize, size: usize) -> bool {
    width == height && width <= 4 * size
}

/// Decodes a JPEG, PNG, WebP, BMP or PNM file into `image`, reusing its memory.
///
/// # Errors
/// A clause that says why not ("the JPEG ends before its end-of-image marker"), for the caller to put the place in front of.
pub fn decode(bytes: &[u8], image: &mut Image) -> Result<(), String> {
    let (file, size) = (Cursor::new(bytes), bytes.len());
    match Kind::of(bytes) {
        Some(Kind::Jpeg) => {
            check_jpeg_is_whole(bytes)?;
            decode_jpeg(bytes, image)
        }
        Some(Kind::Png) => finish(png(bytes), size, image),
        Some(Kind::WebP) => finish(image::codecs::webp::WebPDecoder::new(file), size, image),
        Some(Kind::Bmp) => finish(image::codecs::bmp::BmpDecoder::new(file), size, image),
        Some(Kind::Pnm) => finish(image::codecs::pnm::PnmDecoder::new(file), size, image),
        None => Err(unknown_format(bytes)),
    }
}

/// Width and height of a picture file, from its header; a JPEG must have its end, too.
///
/// # Errors
/// As [`decode`], as far as that can be told without decoding.
pub fn dimensions(bytes: &[u8]) -> Result<(usize, usize), String> {
    fn size(decoder: image::ImageResult<impl ImageDecoder>) -> Result<(usize, usize), String> {
        let (width, height) = decoder.map_err(|e| e.to_string())?.dimensions();
        Ok((width as usize, height as usize))
    }
    let file = Cursor::new(bytes);
    match Kind::of(bytes) {
        Some(Kind::Jpeg) => {
            check_jpeg_is_whole(bytes)?;
            size(image::codecs::jpeg::JpegDecoder::new(file))
        }
        Some(Kind::Png) => size(png(bytes)),
        Some(Kind::WebP) => size(image::codecs::webp::WebPDecoder::new(file)),
        Some(Kind::Bmp) => size(image::codecs::bmp::BmpDecoder::new(file)),
        Some(Kind::Pnm) => size(image::codecs::pnm::PnmDecoder::new(file)),
        None => Err(unknown_format(bytes)),
    }
}

/// PNG's decoder, which inflates no more of what is no pixel than a picture that needs no justification may take.
fn png(bytes: &[u8]) -> image::ImageResult<image::codecs::png::PngDecoder<Cursor<&[u8]>>> {
    let mut limits = image::Limits::no_limits();
    limits.max_alloc = Some(FREE_BYTES + bytes.len() as u64);
    let mut decoder = image::codecs::png::PngDecoder::with_limits(Cursor::new(bytes), limits)?;
    // A profile that is damaged is no harm, but one that was meant to inflate beyond the limit is.
    let stored = orientation::png_chunk(bytes, b"iCCP").map_or(0, <[u8]>::len) as u64;
    if stored * MAX_EXPANSION > FREE_BYTES && decoder.icc_profile()?.is_none() {
        let limit = FREE_BYTES >> 20;
        return Err(image::ImageError::Decoding(
            image::error::DecodingError::new(
                image::ImageFormat::Png.into(),
                format!("its colour profile inflates to more than {limit} MiB"),
            ),
        ));
    }
    Ok(decoder)
}

fn unknown_format(bytes: &[u8]) -> String {
    match bytes {
        [] => "there are no bytes".into(),
        _ => format!(
            "this is not a JPEG, PNG, WebP, BMP or PNM file (it begins with the bytes {:02x?})",
            &bytes[..bytes.len().min(4)]
        ),
    }
}

/// A decoder that forgives fills what is missing with grey; training on such a picture would be silent damage.
///
/// In compressed data the byte ff is always followed by 00 or a restart marker, so the last start-of-scan marker
/// (ff da) must have an end-of-image marker (ff d9) behind it. Padding after that is allowed.
fn check_jpeg_is_whole(bytes: &[u8]) -> Result<(), String> {
    for pair in bytes.windows(2).rev() {
        match pair {
            [0xff, 0xd9] => return Ok(()),
            [0xff, 0xda] => break,
            _ => {}
        }
    }
    Err("the JPEG ends before its end-of-image marker: the file is truncated".into())
}

/// Decodes a JPEG in the usual colours straight into `image`; the rare rest takes the general way.
///
/// `image`'s own decoder copies the file and reads its headers twice, a tenth of the time of a 112 x 112 face.
fn decode_jpeg(bytes: &[u8], image: &mut Image) -> Result<(), String> {
    let options = DecoderOptions::default()
        .set_strict_mode(false)
        .set_max_width(usize::MAX)
        .set_max_height(usize::MAX)
        .jpeg_set_out_colorspace(ColorSpace::RGB);
    let mut decoder = zune_jpeg::JpegDecoder::new_with_options(ZCursor::new(bytes), options);
    decoder.decode_headers().map_err(|e| e.to_string())?;
    if decoder.input_colorspace() != Some(ColorSpace::YCbCr) {
        return finish(
            image::codecs::jpeg::JpegDecoder::new(Cursor::new(bytes)),
            bytes.len(),
            image,
        );
    }
    let (width, height) = decoder.dimensions().unwrap_or_default();
    check_size(width as u64, height as u64, 0, bytes.len())?;
    (image.width, image.height) = (width, height);
    image.pixels.resize(width * height * 3, 0);
    decoder
        .decode_into(&mut image.pixels)
        .map_err(|e| e.to_string())
}

/// Refuses a picture of no pixels, and one that asks for more memory than a file of its size can mean: `total_bytes`
/// decoded as it is stored, or three bytes a pixel.
fn check_size(width: u64, height: u64, total_bytes: u64, file_bytes: usize) -> Result<(), String> {
    if width == 0 || height == 0 {
        return Err(format!("the picture is {width}x{height}: it has no pixels"));
    }
    let pixels = width * height;
    let needed = total_bytes.max(pixels * 3);
    if pixels > MAX_PIXELS {
        return Err(format!(
            "the header promises {width}x{height} pixels, more than the {} million that are read",
            MAX_PIXELS / 1_000_000
        ));
    }
    if needed > (file_bytes as u64 * MAX_EXPANSION).max(FREE_BYTES) {
        return Err(format!(
            "the header promises {width}x{height} pixels, which a file of {file_bytes} bytes cannot honestly hold"
        ));
    }
    Ok(())
}

fn finish(
    decoder: image::ImageResult<impl ImageDecoder>,
    file_bytes: usize,
    image: &mut Image,
) -> Result<(), String> {
    let decoder = decoder.map_err(|e| e.to_string())?;
    let (width, height) = decoder.dimensions();
    let total = decoder.total_bytes();
    check_size(u64::from(width), u64::from(height), total, file_bytes)?;
    image.width = width as usize;
    image.height = height as usize;
    match decoder.color_type() {
        image::ColorType::Rgb8 => {
            image.pixels.resize(decoder.total_bytes() as usize, 0);
            decoder
                .read_image(&mut image.pixels)
                .map_err(|e| e.to_string())
        }
        _ => {
            let rgb = image::DynamicImage::from_decoder(decoder)
                .map_err(|e| e.to_string())?
                .into_rgb8();
            image.pixels.clear();
            image.pixels.extend_from_slice(rgb.as_raw());
            Ok(())
        }
    }
}

/// Writes `image` as a JPEG file of the given quality (1 to 100), colour sampled 4:4:4.
///
/// # Panics
/// If `image` is not consistent (`pixels.len() != width * height * 3`) or larger than JPEG allows (65,535).
pub fn encode_jpeg(image: &Image, quality: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality)
        .encode(
            &image.pixels,
            u32::try_from(image.width).expect("a picture's width fits 32 bits"),
            u32::try_from(image.height).expect("a picture's height fits 32 bits"),
            image::ExtendedColorType::Rgb8,
        )
        .expect("an RGB picture is written to memory");
    bytes
}

/// Writes `image` as a PNG file.
///
/// # Panics
/// If `image` is not consistent (`pixels.len() != width * height * 3`).
pub fn encode_png(image: &Image) -> Vec<u8> {
    use ::image::ImageEncoder as _;
    let mut bytes = Vec::new();
    ::image::codecs::png::PngEncoder::new(&mut bytes)
        .write_image(
            &image.pixels,
            u32::try_from(image.width).expect("a picture's width fits 32 bits"),
            u32::try_from(image.height).expect("a picture's height fits 32 bits"),
            ::image::ExtendedColorType::Rgb8,
        )
        .expect("an RGB picture is written to memory");
    bytes
}

/// For one axis: where each output pixel samples the input, as (left neighbour, weight of the right one).
///
/// The right neighbour of the last pixel is itself, with weight 0.
pub(crate) fn sample_positions(source: usize, target: usize) -> impl Fn(usize) -> (usize, f32) {
    assert!(
        source > 0 && target > 0,
        "resizing from {source} to {target}"
    );
    let scale = source as f64 / target as f64;
    move |x| {
        let position = (x as f64 + 0.5) * scale - 0.5;
        let left = position.floor();
        if left < 0.0 {
            (0, 0.0)
        } else if left as usize >= source - 1 {
            (source - 1, 0.0)
        } else {
            (left as usize, (position as f32) - left as f32)
        }
    }
}

/// A window of a picture as it would look after being resized, without computing the rest of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResizedWindow {
    /// Width and height of the whole resized picture.
    pub(crate) full: [usize; 2],
    /// The window's left and top in it.
    pub(crate) offset: [usize; 2],
    /// The window's width and height.
    pub(crate) size: [usize; 2],
}

/// Bilinear samples of an HWC array with `C` channels; `out` gets `size[1] * size[0] * C` values through `convert`.
pub(crate) fn resize_window<const C: usize, T, U>(
    source: &[T],
    (width, height): (usize, usize),
    window: ResizedWindow,
    out: &mut [U],
    convert: impl Fn(f32) -> U,
) where
    T: Copy + Into<f32>,
{
    let [columns, rows] = window.size;
    assert_eq!(
        source.len(),
        width * height * C,
        "the input has its shape's size"
    );
    assert_eq!(
        out.len(),
        columns * rows * C,
        "the output has its shape's size"
    );
    let across = sample_positions(width, window.full[0]);
    let down = sample_positions(height, window.full[1]);
    let across: Vec<(usize, usize, f32)> = (0..columns)
        .map(|x| across(x + window.offset[0]))
        .map(|(left, weight)| (left * C, (left + 1).min(width - 1) * C, weight))
        .collect();
    // Rows first: the vertical blend runs over contiguous memory, and the horizontal one then reads a single row.
    let mut blended = vec![0.0_f32; width * C];
    for (y, out) in out.chunks_exact_mut(columns * C).enumerate() {
        let (top, weight) = down(y + window.offset[1]);
        let bottom = (top + 1).min(height - 1);
        let upper = &source[top * width * C..][..width * C];
        let lower = &source[bottom * width * C..][..width * C];
        for ((b, &u), &l) in blended.iter_mut().zip(upper).zip(lower) {
            let (u, l): (f32, f32) = (u.into(), l.into());
            *b = u + (l - u) * weight;
        }
        for (pixel, &(left, right, weight)) in out.chunks_exact_mut(C).zip(&across) {
            let (left, right) = (&blended[left..left + C], &blended[right..right + C]);
            for c in 0..C {
                pixel[c] = convert(left[c] + (right[c] - left[c]) * weight);
            }
        }
    }
}

/// Bilinear resize of an RGB picture (see the module's text for the convention).
///
/// # Panics
/// If either picture would have no pixels.
pub fn resize(source: &Image, width: usize, height: usize) -> Image {
    let mut pixels = vec![0; width * height * 3];
    resize_window::<3, _, _>(
        &source.pixels,
        (source.width, source.height),
        ResizedWindow {
            full: [width, height],
            offset: [0, 0],
            size: [width, height],
        },
        &mut pixels,
        to_u8,
    );
    Image {
        width,
        height,
        pixels,
    }
}

/// Bilinear resize of one f32 plane of `size` x `size` to `resized` x `resized`.
///
/// # Panics
/// If either plane would have no pixels, or `source` has not `size * size`.
pub(crate) fn resize_plane(source: &[f32], size: usize, resized: usize) -> Vec<f32> {
    let mut out = vec![0.0; resized * resized];
    let window = ResizedWindow {
        full: [resized; 2],
        offset: [0; 2],
        size: [resized; 2],
    };
    resize_window::<1, _, _>(source, (size, size), window, &mut out, |v| v);
    out
}

/// Resizes every f32 plane (CHW: `planes` of `size` x `size`) to `resized` x `resized` and keeps its centre
/// `size` x `size`, in `out`: the "ccrop" of evaluation, 112 -> 128 -> 112. Agrees with `cv2.resize` on floats.
///
/// # Panics
/// If a slice has not `planes * size * size` values, or `resized < size`.
pub fn resize_centre_crop_planes(
    planes: usize,
    size: usize,
    resized: usize,
    source: &[f32],
    out: &mut [f32],
) {
    assert!(resized >= size, "cannot crop {size} out of {resized}");
    assert_eq!(source.len(), planes * size * size, "the input is CHW");
    assert_eq!(out.len(), source.len(), "the output has the input's shape");
    let margin = (resized - size) / 2;
    let window = ResizedWindow {
        full: [resized; 2],
        offset: [margin; 2],
        size: [size; 2],
    };
    for (source, out) in source
        .chunks_exact(size * size)
        .zip(out.chunks_exact_mut(size * size))
    {
        resize_window::<1, _, _>(source, (size, size), window, out, |v| v);
    }
}

/// The rectangle of `source` that begins at (`left`, `top`).
///
/// # Panics
/// If the rectangle is not inside.
pub fn crop(source: &Image, left: usize, top: usize, width: usize, height: usize) -> Image {
    assert!(
        left + width <= source.width && top + height <= source.height,
        "a {width}x{height} crop at ({left}, {top}) of a {}x{} picture",
        source.width,
        source.height
    );
    let mut pixels = Vec::with_capacity(width * height * 3);
    for y in top..top + height {
        let start = (y * source.width + left) * 3;
        pixels.extend_from_slice(&source.pixels[start..start + width * 3]);
    }
    Image {
        width,
        height,
        pixels,
    }
}

/// The middle of `source`; where the margin is odd, the wider part lies right and below.
///
/// # Panics
/// If `source` is smaller.
pub fn centre_crop(source: &Image, width: usize, height: usize) -> Image {
    assert!(width <= source.width && height <= source.height);
    crop(
        source,
        (source.width - width) / 2,
        (source.height - height) / 2,
        width,
        height,
    )
}

/// Exchanges the first and third channel of interleaved pixels: RGB becomes BGR and back.
pub fn swap_red_blue<T>(pixels: &mut [T]) {
    for pixel in pixels.chunks_exact_mut(3) {
        pixel.swap(0, 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::changes::flip;

    fn gradient(width: usize, height: usize) -> Image {
        let pixels = (0..width * height * 3)
            .map(|i| ((i * i * 7 + i * 31 + i / 5) % 251) as u8)
            .collect();
        Image {
            width,
            height,
            pixels,
        }
    }

    /// `cv2.resize(a, (7, 2), interpolation=cv2.INTER_LINEAR)` with `a = [[1, 5, 2.5], [-3, 8, 0.25], [4, 4, 9], [2, 0, 7], [6, 1, -1]]`
    /// as float32, OpenCV 4.
    #[test]
    fn resize_agrees_with_opencv_on_floats() {
        let a = [
            1.0, 5.0, 2.5, -3.0, 8.0, 0.25, 4.0, 4.0, 9.0, 2.0, 0.0, 7.0, 6.0, 1.0, -1.0_f32,
        ];
        let expected = OPENCV_7X2;
        let mut out = [0.0; 14];
        let window = ResizedWindow {
            full: [7, 2],
            offset: [0, 0],
            size: [7, 2],
        };
        resize_window::<1, _, _>(&a, (3, 5), window, &mut out, |v| v);
        for (i, (a, b)) in out.iter().zip(expected).enumerate() {
            assert!((a - b).abs() <= 1e-5, "element {i}: {a}, OpenCV {b}");
        }
    }

    /// `cv2.resize(p, (8, 8))[1:7, 1:7]` for `p[y, x] = ((7 y + 3 x x) % 11) / 4`, 6x6 float32.
    #[test]
    fn ccrop_agrees_with_opencv() {
        let p: Vec<f32> = (0..36)
            .map(|i| ((7 * (i / 6) + 3 * (i % 6) * (i % 6)) % 11) as f32 / 4.0)
            .collect();
        let two: Vec<f32> = p
            .iter()
            .copied()
            .chain(p.iter().map(|v| v * -2.0))
            .collect();
        let mut out = vec![0.0; 72];
        resize_centre_crop_planes(2, 6, 8, &two, &mut out);
        for (i, b) in OPENCV_CCROP.iter().enumerate() {
            assert!((out[i] - b).abs() <= 1e-5, "{i}: {}, OpenCV {b}", out[i]);
            assert!((out[36 + i] + 2.0 * b).abs() <= 2e-5, "second plane, {i}");
        }
    }

    const OPENCV_7X2: [f32; 14] = [
        -2.0, -0.678571, 3.285715, 7.25, 4.491071, 1.732143, 0.8125, 3.0, 2.607143, 1.428571, 0.25,
        2.285714, 4.321428, 5.0,
    ];
    const OPENCV_CCROP: [f32; 36] = [
        1.5625, 1.65625, 1.253906, 0.714844, 0.46875, 0.84375, 1.84375, 1.9375, 1.535156, 0.996094,
        0.75, 0.738281, 1.222656, 1.1875, 1.0, 1.75, 1.71875, 1.191406, 1.246094, 0.4375, 0.25,
        1.0, 0.96875, 1.214844, 1.699219, 1.40625, 1.003906, 0.464844, 1.292969, 1.667969, 1.59375,
        1.6875, 1.285156, 0.746094, 1.574219, 1.5625,
    ];

    #[test]
    fn resize_to_the_same_size_changes_nothing() {
        let image = gradient(13, 9);
        assert_eq!(resize(&image, 13, 9), image);
    }

    #[test]
    fn crops_flips_and_swaps() {
        let image = gradient(7, 5);
        let part = crop(&image, 2, 1, 4, 3);
        assert_eq!(part.pixels[..3], image.pixels[(7 + 2) * 3..][..3]);
        assert_eq!(
            part.pixels[(2 * 4 + 3) * 3..],
            image.pixels[(3 * 7 + 5) * 3..][..3]
        );
        assert_eq!(centre_crop(&image, 4, 3), crop(&image, 1, 1, 4, 3));
        let mut flipped = image.clone();
        flip(&mut flipped.pixels, 7);
        for (y, x) in [(0, 0), (3, 2), (4, 6), (2, 3)] {
            assert_eq!(
                flipped.pixels[(y * 7 + x) * 3..][..3],
                image.pixels[(y * 7 + 6 - x) * 3..][..3]
            );
        }
        swap_red_blue(&mut flipped.pixels);
        assert_eq!(flipped.pixels[0], image.pixels[6 * 3 + 2]);
    }

    #[test]
    fn pnm_and_png_come_back_exactly_and_grey_is_repeated() {
        let mut image = Image::default();
        decode(b"P5 3 2 255\n\x01\x02\x03\x04\x05\xff", &mut image).unwrap();
        assert_eq!((image.width, image.height), (3, 2));
        assert_eq!(image.pixels[..6], [1, 1, 1, 2, 2, 2]);
        assert_eq!(image.pixels[15..], [255; 3]);

        let original = gradient(5, 4);
        let png = encode_png(&original);
        decode(&png, &mut image).unwrap();
        assert_eq!(image, original);

        // 16 bits with alpha: 0x8080 is 128 of 255, the alpha of 0 does not blacken anything.
        let mut png = Vec::new();
        image::write_buffer_with_format(
            &mut Cursor::new(&mut png),
            &[0x80, 0x80, 0xff, 0xff, 0, 0, 0, 0],
            1,
            1,
            image::ExtendedColorType::Rgba16,
            image::ImageFormat::Png,
        )
        .unwrap();
        decode(&png, &mut image).unwrap();
        assert_eq!(image.pixels, [128, 255, 0]);
    }

    #[test]
    fn a_jpeg_is_nearly_itself_and_its_every_prefix_is_refused() {
        let smooth = resize(&gradient(4, 3), 40, 30);
        let jpeg = encode_jpeg(&smooth, 95);
        let mut image = Image::default();
        decode(&jpeg, &mut image).unwrap();
        assert_eq!((image.width, image.height), (40, 30));
        let worst = (image.pixels.iter().zip(&smooth.pixels))
            .map(|(a, b)| a.abs_diff(*b))
            .max();
        assert!(worst <= Some(12), "{worst:?}");
        for length in 0..jpeg.len() {
            assert!(decode(&jpeg[..length], &mut image).is_err(), "{length}");
        }
        let padded: Vec<u8> = jpeg.iter().copied().chain([0; 7]).collect();
        decode(&padded, &mut image).unwrap();
    }

    #[test]
    fn a_grey_jpeg_has_three_equal_channels_and_its_size_is_checked_too() {
        let grey: Vec<u8> = (0..40 * 30).map(|i| (i / 5) as u8).collect();
        let encode = |pixels: &[u8], colour| {
            let mut jpeg = Vec::new();
            image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 95)
                .encode(pixels, 40, 30, colour)
                .unwrap();
            jpeg
        };
        let mut image = Image::default();
        let mut jpeg = encode(&grey, image::ExtendedColorType::L8);
        decode(&jpeg, &mut image).unwrap();
        assert_eq!((image.width, image.height), (40, 30));
        for (rgb, grey) in image.pixels.chunks_exact(3).zip(&grey) {
            assert!(rgb[0] == rgb[1] && rgb[1] == rgb[2]);
            assert!(rgb[0].abs_diff(*grey) <= 12, "{rgb:?}, {grey}");
        }
        // The frame header: ff c0, length, 8 bits, height, width.
        let colour: Vec<u8> = grey.iter().flat_map(|v| [*v, 9, 99]).collect();
        for promise in [
            &mut jpeg,
            &mut encode(&colour, image::ExtendedColorType::Rgb8),
        ] {
            let frame = promise.windows(2).position(|pair| pair == [0xff, 0xc0]);
            promise[frame.unwrap() + 5..][..4].copy_from_slice(&[0xff, 0xfe, 0xff, 0xfd]);
            let mut image = Image::default();
            let why = decode(promise, &mut image).unwrap_err();
            assert!(why.contains("65533x65534"), "{why}");
            assert!(image.pixels.capacity() < 1000);
        }
    }

    #[test]
    fn a_small_file_cannot_ask_for_a_large_buffer() {
        let mut image = Image::default();
        let why = decode(b"P6 10000 10000 255\nabc", &mut image).unwrap_err();
        assert!(
            why.contains("10000x10000") && why.contains("50 million "),
            "{why}"
        );
        let why = decode(b"P6 30000 1500 255\nabc", &mut image).unwrap_err();
        assert!(why.contains("30000x1500"), "{why}");
        assert!(image.pixels.capacity() < 1000);
    }

    /// A chunk `iCCP` with `stored` as its compressed profile.
    fn with_profile(png: &[u8], stored: &[u8]) -> Vec<u8> {
        let content = [b"iCCPp\0\0".as_slice(), stored].concat();
        let mut crc = !0_u32;
        for byte in &content {
            crc ^= u32::from(*byte);
            for _ in 0..8 {
                crc = (crc >> 1) ^ ((crc & 1) * 0xedb8_8320);
            }
        }
        let length = (stored.len() as u32 + 3).to_be_bytes();
        [
            &png[..33],
            &length,
            &content,
            &(!crc).to_be_bytes(),
            &png[33..],
        ]
        .concat()
    }

    #[test]
    fn a_profile_is_not_inflated_without_end() {
        let original = gradient(5, 4);
        let png = encode_png(&original);
        // Zlib: a block of dynamic Huffman codes would be smaller still; this one is of fixed codes, one zero and then
        // matches of 258 zeros at distance 1, 13 bits each (the codes 11000101 and 00000).
        let mut bits: Vec<bool> = vec![true, true, false];
        bits.extend([false, false, true, true, false, false, false, false]);
        for _ in 0..400_000 {
            bits.extend([true, true, false, false, false, true, false, true]);
            bits.extend([false; 5]);
        }
        bits.extend([false; 7]);
        let mut zlib = vec![0x78, 0x9c];
        zlib.extend(bits.chunks(8).map(|bits| {
            (bits.iter().enumerate()).fold(0, |byte, (i, &bit)| byte | u8::from(bit) << i)
        }));
        // Adler-32 of zeros: a is 1, b is their count.
        let count = 1 + 400_000 * 258_u64;
        zlib.extend(((count % 65521) as u16).to_be_bytes());
        zlib.extend([0, 1]);
        let mut image = Image::default();
        let why = decode(&with_profile(&png, &zlib), &mut image).unwrap_err();
        assert!(why.contains("colour profile"), "{why}");
        assert!(dimensions(&with_profile(&png, &zlib)).is_err());
        // A damaged profile that does not inflate beyond the limit does no harm.
        decode(&with_profile(&png, &zlib[..1000]), &mut image).unwrap();
        assert_eq!(image, original);
    }
}
