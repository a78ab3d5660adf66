//! What a data set is known by, wherever its files lie.

use super::{Dataset, Image};
use crate::base::fnv::Fnv;
use serde::{Deserialize, Serialize};

/// Images whose content is looked at.
const SAMPLES: usize = 64;

/// A data set's counts, and a hash of its labels and of some of its images.
///
/// Two sets with the same images in the same order have the same fingerprint, in whatever folder; the same images in
/// another order, as `pack` writes them, have another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fingerprint {
    /// Number of images.
    pub images: usize,
    /// Number of identities.
    pub classes: usize,
    /// FNV-1a (128 bits, hexadecimal) of every label and of 64 images, as they are stored, spread evenly over the set.
    pub hash: String,
}

impl Fingerprint {
    /// Takes a data set's. An image that cannot be read counts as such: whether that matters is the reader's to say.
    pub fn of(dataset: &dyn Dataset) -> Self {
        let images = dataset.len();
        let mut hash = Fnv::new();
        for index in 0..images {
            hash.bytes(&dataset.label(index).to_le_bytes());
        }
        let samples = SAMPLES.min(images);
        for sample in 0..samples {
            hash.part(&content(dataset, sample * images / samples));
        }
        Fingerprint {
            images,
            classes: dataset.classes(),
            hash: format!("{:032x}", hash.0),
        }
    }
}

/// An image as it is stored, or its pixels.
fn content(dataset: &dyn Dataset, index: usize) -> Vec<u8> {
    match dataset.encoded(index) {
        Ok(Some(file)) => file.bytes,
        Ok(None) => {
            let mut image = Image::default();
            let read = dataset.read(index, &mut image);
            read.map_or_else(|_| Vec::new(), |()| image.pixels)
        }
        Err(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Result;

    /// One byte an image.
    struct Bytes(Vec<(u8, u32)>);

    impl Dataset for Bytes {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn classes(&self) -> usize {
            2
        }

        fn label(&self, index: usize) -> u32 {
            self.0[index].1
        }

        fn read(&self, index: usize, image: &mut Image) -> Result<()> {
            image.pixels = vec![self.0[index].0; 3];
            Ok(())
        }

        fn describe(&self, index: usize) -> String {
            index.to_string()
        }
    }

    #[test]
    fn tells_images_labels_and_their_order_apart() {
        let sets = [
            vec![(1, 0), (2, 1), (3, 1)],
            vec![(1, 0), (2, 1), (4, 1)],
            vec![(1, 0), (2, 1), (3, 0)],
            vec![(2, 1), (1, 0), (3, 1)],
            vec![(1, 0), (2, 1)],
            vec![],
        ];
        let of = |set: &Vec<(u8, u32)>| Fingerprint::of(&Bytes(set.clone()));
        let found: Vec<Fingerprint> = sets.iter().map(of).collect();
        for (i, one) in found.iter().enumerate() {
            assert_eq!(found.iter().position(|other| other == one), Some(i));
            assert_eq!(one, &of(&sets[i]));
        }
    }
}
