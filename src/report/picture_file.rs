//! Pictures as files, of the kind that the file's name tells.

use crate::base::files;
use crate::base::text::shown;
use crate::encoding::base64::base64;
use crate::{Error, Result};
use image::RgbImage;
use image::codecs::jpeg::JpegEncoder;
use image::codecs::png::PngEncoder;
use std::path::Path;

/// The quality of JPEG files, as JPEG counts it.
const QUALITY: u8 = 95;

/// A kind of file that pictures are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Png,
    Jpeg,
    Svg,
}

impl Kind {
    fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_ascii_lowercase();
        match &ending[..] {
            "png" => Some(Kind::Png),
            "jpg" | "jpeg" | "jpe" | "jfif" => Some(Kind::Jpeg),
            "svg" => Some(Kind::Svg),
            _ => None,
        }
    }
}

/// Why no picture can be written to a file of this name, if none can; asked before the work that makes the picture.
///
/// # Errors
/// The name tells no kind of picture that is written.
pub fn check(path: &Path) -> Result<()> {
    kind(path).map(|_| ())
}

fn kind(path: &Path) -> Result<Kind> {
    Kind::of(path).ok_or_else(|| {
        Error::Usage(format!(
            "{}: a picture is written as its name ends: .png, .jpg or .svg",
            shown(path)
        ))
    })
}

/// Writes `picture` as the kind of file that the name at `path` tells: PNG, JPEG, or SVG with a PNG in it.
///
/// # Errors
/// The name tells none of these, or the file cannot be written.
pub(crate) fn save(picture: &RgbImage, path: &Path) -> Result<()> {
    let failed = |e| Error::data(path, format!("the picture cannot be encoded: {e}"));
    let mut bytes = Vec::new();
    let kind = kind(path)?;
    match kind {
        Kind::Jpeg => {
            let encoder = JpegEncoder::new_with_quality(&mut bytes, QUALITY);
            picture.write_with_encoder(encoder).map_err(failed)?;
        }
        Kind::Png | Kind::Svg => {
            let encoder = PngEncoder::new(&mut bytes);
            picture.write_with_encoder(encoder).map_err(failed)?;
        }
    }
    if kind == Kind::Svg {
        let (width, height) = picture.dimensions();
        bytes = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
             viewBox=\"0 0 {width} {height}\">\n<image width=\"{width}\" height=\"{height}\" \
             href=\"data:image/png;base64,{}\"/>\n</svg>\n",
            base64(&bytes)
        )
        .into_bytes();
    }
    files::write(path, &bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::ImageFormat;
    use std::fs;

    fn picture() -> RgbImage {
        RgbImage::from_fn(24, 16, |x, y| image::Rgb([9 * x as u8, 12 * y as u8, 40]))
    }

    #[test]
    fn a_file_is_what_its_name_says() {
        let dir = tempfile::tempdir().unwrap();
        let formats = [
            ("a.png", ImageFormat::Png),
            ("a.PNG", ImageFormat::Png),
            ("a.jpg", ImageFormat::Jpeg),
            ("a.JPeg", ImageFormat::Jpeg),
        ];
        for (name, format) in formats {
            let path = dir.path().join(name);
            save(&picture(), &path).unwrap();
            let bytes = fs::read(&path).unwrap();
            assert_eq!(image::guess_format(&bytes).unwrap(), format, "{name}");
            let found = image::load_from_memory(&bytes).unwrap().into_rgb8();
            let pairs = found.as_raw().iter().zip(picture().into_raw());
            let worst = pairs.map(|(a, b)| a.abs_diff(b)).max();
            assert!(worst <= Some(12), "{name}: {worst:?}");
        }
        let path = dir.path().join("a.svg");
        save(&picture(), &path).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("<svg xmlns=") && text.contains("data:image/png;base64,iVBOR"));
    }

    #[test]
    fn another_name_is_refused_and_one_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a.gif", "a", "a.png.bak", ".png"] {
            let path = dir.path().join(name);
            for error in [
                check(&path).unwrap_err(),
                save(&picture(), &path).unwrap_err(),
            ] {
                assert!(error.to_string().contains(".png, .jpg or .svg"), "{error}");
                assert_eq!(error.exit_code(), 2);
            }
        }
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        let text = save(&picture(), &dir.path().join("absent").join("x.png"));
        let text = text.unwrap_err().to_string();
        assert!(
            text.starts_with("writing") && text.contains("x.png"),
            "{text}"
        );
    }
}
