//! `--landmarks`: faces are aligned as they are read.

use super::output::{count, grouped, warn};
use super::source;
use crate::base::text::{one_line, shown};
use crate::data::aligned::Aligned;
use crate::data::formats::landmarks::Landmarks;
use crate::data::picture::align::align;
use crate::data::{Dataset, Image};
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct LandmarksArgs {
    /// Align each face by its five points in FILE, as text (a line "path x1 y1 ... x5 y5" for each picture), CSV or JSON:
    /// left eye, right eye, tip of the nose, left and right corner of the mouth, left and right as in the picture.
    /// Default: none, the pictures are taken to be aligned faces.
    #[arg(long, value_name = "FILE")]
    pub(super) landmarks: Option<PathBuf>,
}

impl LandmarksArgs {
    fn open(path: &Path) -> Result<Landmarks> {
        let landmarks = Landmarks::open(path)?;
        let unlike = landmarks.unlike();
        if unlike.count > 0 {
            warn(format!(
                "warning: {}: the points of {} of {} are not like those of a face, first for {}; they must be left eye, \
                 right eye, nose, left and right corner of the mouth, left and right as in the picture, x before y",
                shown(path),
                grouped(unlike.count as u64),
                count(landmarks.len(), "picture"),
                one_line(&unlike.first)
            ));
        }
        Ok(landmarks)
    }

    /// Aligns the faces of data sets to `size` x `size` pixels, if that is asked for, and tells which landmarks are not used.
    /// `skip_bad` says whether pictures without landmarks are left out; none: the command has no such flag.
    ///
    /// # Errors
    /// The file cannot be read, or has no landmarks for a picture that may not be left out.
    pub(super) fn align(
        &self,
        datasets: Vec<Arc<dyn Dataset>>,
        size: usize,
        skip_bad: Option<bool>,
    ) -> Result<Vec<Arc<dyn Dataset>>> {
        let Some(path) = &self.landmarks else {
            return Ok(datasets);
        };
        let landmarks = Arc::new(Self::open(path)?);
        let aligned = (datasets.into_iter())
            .map(|dataset| Aligned::new(dataset, Arc::clone(&landmarks), size))
            .collect::<Result<Vec<_>>>()?;
        let unused = landmarks.unused(aligned.iter().flat_map(Aligned::used));
        source::tell(unused.iter());
        for set in &aligned {
            if let (Some((missing, first)), Some(false) | None) = (set.missing(), skip_bad) {
                let hint = match skip_bad {
                    Some(_) => "; --skip-bad leaves them out",
                    None => "",
                };
                return Err(Error::data(
                    path,
                    format!(
                        "has no landmarks for {} of {}, the first is {}{hint}",
                        grouped(missing as u64),
                        count(set.len(), "picture"),
                        one_line(&first)
                    ),
                ));
            }
        }
        Ok((aligned.into_iter())
            .map(|set| Arc::new(set) as Arc<dyn Dataset>)
            .collect())
    }

    /// Aligns two pictures, if that is asked for.
    ///
    /// # Errors
    /// The file cannot be read, or has no landmarks for one of them.
    pub(super) fn align_pair(
        &self,
        images: [Image; 2],
        paths: [&Path; 2],
        size: usize,
    ) -> Result<[Image; 2]> {
        let Some(path) = &self.landmarks else {
            return Ok(images);
        };
        let landmarks = Self::open(path)?;
        let mut aligned = Vec::new();
        for (image, file) in images.iter().zip(paths) {
            let place = landmarks.find_file(&file.to_string_lossy(), file);
            let place = place.ok_or_else(|| {
                let names = landmarks.first();
                let problem = format!(
                    "has no landmarks for {}: it names {names:?}, ...",
                    shown(file)
                );
                Error::data(path, problem)
            })?;
            let face = align(image, landmarks.points(place), size);
            aligned.push(face.map_err(|why| Error::data(file, why))?);
        }
        Ok(aligned.try_into().expect("two of two"))
    }
}
