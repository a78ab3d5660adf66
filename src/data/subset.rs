//! Some images of a data set.

use super::{Dataset, Encoded, Image};
use crate::Result;
use std::path::PathBuf;
use std::sync::Arc;

/// Some images of a data set, in an order of their own. The classes are those of the set.
pub struct Subset {
    dataset: Arc<dyn Dataset>,
    images: Vec<u32>,
}

impl Subset {
    /// The images with these indices.
    pub fn new(dataset: Arc<dyn Dataset>, images: Vec<u32>) -> Self {
        Subset { dataset, images }
    }

    fn of(&self, index: usize) -> usize {
        self.images[index] as usize
    }
}

impl Dataset for Subset {
    fn len(&self) -> usize {
        self.images.len()
    }

    fn classes(&self) -> usize {
        self.dataset.classes()
    }

    fn label(&self, index: usize) -> u32 {
        self.dataset.label(self.of(index))
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        self.dataset.read(self.of(index), image)
    }

    fn describe(&self, index: usize) -> String {
        self.dataset.describe(self.of(index))
    }

    fn name(&self, index: usize) -> Option<String> {
        self.dataset.name(self.of(index))
    }

    fn files(&self, index: usize) -> Vec<PathBuf> {
        self.dataset.files(self.of(index))
    }

    fn encoded(&self, index: usize) -> Result<Option<Encoded>> {
        self.dataset.encoded(self.of(index))
    }

    fn upright(&self) -> bool {
        self.dataset.upright()
    }

    fn class_name(&self, label: u32) -> String {
        self.dataset.class_name(label)
    }
}
