//! Generated faces as files: `<identity>/<image>.jpg`.

use super::{FacesOptions, GeneratedFaces, SIDE};
use crate::base::files;
use crate::data::{Dataset, Image};
use crate::{Error, Result};
use image::{ExtendedColorType, codecs::jpeg::JpegEncoder};
use rayon::prelude::*;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

/// JPEG quality: high enough that the compression is not what a network learns.
const QUALITY: u8 = 95;

/// Writes the generated faces of `options` below `dir` as `<identity>/<image>.jpg`, on all cores.
///
/// Folders are named by the person's number, files by the image's with zeros in front, so that names sort as numbers do. Files of the same name are replaced, others left alone. `progress` is called from several threads, once
/// an image, with the number of images written so far.
///
/// # Errors
/// The options make no sense, or a folder or file cannot be written.
pub fn write_image_folder(
    dir: &Path,
    options: &FacesOptions,
    progress: impl Fn(usize) + Sync,
) -> Result<()> {
    let faces = GeneratedFaces::new(*options)?;
    let written = AtomicUsize::new(0);
    let digits = (options.per_identity - 1).to_string().len();
    (0..options.identities)
        .into_par_iter()
        .try_for_each(|label| {
            let folder = dir.join(options.name(label));
            fs::create_dir_all(&folder).map_err(Error::io("creating the folder", &folder))?;
            let (mut image, mut jpeg) = (Image::default(), Vec::new());
            for variation in 0..options.per_identity {
                faces.read(label * options.per_identity + variation, &mut image)?;
                let path = folder.join(format!("{variation:0digits$}.jpg"));
                jpeg.clear();
                JpegEncoder::new_with_quality(&mut jpeg, QUALITY)
                    .encode(
                        &image.pixels,
                        SIDE as u32,
                        SIDE as u32,
                        ExtendedColorType::Rgb8,
                    )
                    .map_err(|e| Error::data(&path, format!("cannot be encoded as JPEG: {e}")))?;
                files::write_cached(&path, &jpeg).map_err(Error::io("writing", &path))?;
                progress(written.fetch_add(1, Ordering::Relaxed) + 1);
            }
            Ok(())
        })
}
