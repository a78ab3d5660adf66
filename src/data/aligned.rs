//! A data set whose faces are aligned by landmarks as they are read.

use super::formats::landmarks::Landmarks;
use super::picture::align::align;
use super::unused::Unused;
use super::{Dataset, Image};
use crate::base::text::{count, shown};
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// A data set whose faces are aligned as they are read. Reading a picture without landmarks is an error.
pub struct Aligned {
    dataset: Arc<dyn Dataset>,
    landmarks: Arc<Landmarks>,
    /// The place of each picture's landmarks.
    places: Vec<Option<u32>>,
    size: usize,
}

impl Aligned {
    /// Finds the landmarks of each picture of `dataset`. Its faces become pictures of `size` x `size` pixels.
    ///
    /// # Errors
    /// The pictures are not in files of their own, or there are landmarks for none of them.
    pub fn new(dataset: Arc<dyn Dataset>, landmarks: Arc<Landmarks>, size: usize) -> Result<Self> {
        let mut first = None;
        let mut find = |index: usize| {
            let name = dataset.name(index)?;
            let file = dataset.files(index).into_iter().next().unwrap_or_default();
            let found = landmarks.find_file(&name, &file);
            first.get_or_insert(name);
            found
        };
        let places: Vec<Option<u32>> = (0..dataset.len()).map(&mut find).collect();
        if places.iter().all(Option::is_none) {
            let problem = match first {
                Some(name) => format!(
                    "has no landmarks for {}: it names {:?}, ..., and the data set {name:?}, ...",
                    count(dataset.len(), "picture"),
                    landmarks.first()
                ),
                None => "names pictures, and those of the data set are records without paths; give their image folder or a list".into(),
            };
            return Err(Error::data(landmarks.path(), problem));
        }
        Ok(Aligned {
            dataset,
            landmarks,
            places,
            size,
        })
    }

    /// How many pictures have no landmarks, and which is the first.
    pub fn missing(&self) -> Option<(usize, String)> {
        let first = self.places.iter().position(Option::is_none)?;
        let count = self.places.iter().filter(|place| place.is_none()).count();
        Some((count, self.dataset.describe(first)))
    }

    /// The landmarks that are used, for [`Landmarks::unused`].
    pub fn used(&self) -> impl Iterator<Item = u32> {
        self.places.iter().copied().flatten()
    }
}

impl Dataset for Aligned {
    fn len(&self) -> usize {
        self.dataset.len()
    }

    fn classes(&self) -> usize {
        self.dataset.classes()
    }

    fn label(&self, index: usize) -> u32 {
        self.dataset.label(index)
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        let bad = |why: String| Error::Invalid(format!("{}: {why}", self.dataset.describe(index)));
        let Some(place) = self.places[index] else {
            let file = shown(self.landmarks.path());
            return Err(bad(format!("has no landmarks in {file}")));
        };
        self.dataset.read(index, image)?;
        *image = align(image, self.landmarks.points(place), self.size).map_err(bad)?;
        Ok(())
    }

    fn describe(&self, index: usize) -> String {
        self.dataset.describe(index)
    }

    fn name(&self, index: usize) -> Option<String> {
        self.dataset.name(index)
    }

    fn files(&self, index: usize) -> Vec<PathBuf> {
        self.dataset.files(index)
    }

    fn upright(&self) -> bool {
        self.dataset.upright()
    }

    fn class_name(&self, label: u32) -> String {
        self.dataset.class_name(label)
    }

    fn unused(&self) -> Unused {
        self.dataset.unused()
    }
}
