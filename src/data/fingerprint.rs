//! What a data set is known by, wherever its files lie.

use super::{Dataset, Image};
use crate::Result;
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
    /// Takes a data set's. With `skip_bad`, an image that cannot be read counts as an empty one.
    ///
    /// # Errors
    /// Without it, one of the images cannot be read.
    pub fn of(dataset: &dyn Dataset, skip_bad: bool) -> Result<Self> {
        let images = dataset.len();
        let mut hash = Fnv::new();
        for index in 0..images {
            hash.bytes(&dataset.label(index).to_le_bytes());
        }
        let samples = SAMPLES.min(images);
        for sample in 0..samples {
            match content(dataset, sample * images / samples) {
                Ok(bytes) => hash.part(&bytes),
                Err(_) if skip_bad => hash.part(&[]),
                Err(error) => return Err(error),
            }
        }
        Ok(Fingerprint {
            images,
            classes: dataset.classes(),
            hash: format!("{:032x}", hash.0),
        })
    }
}

/// An image as it is stored, or its pixels.
fn content(dataset: &dyn Dataset, index: usize) -> Result<Vec<u8>> {
    if let Some(file) = dataset.encoded(index)? {
        return Ok(file.bytes);
    }
    let mut image = Image::default();
    dataset.read(index, &mut image)?;
    Ok(image.pixels)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    /// One byte an image; 0 is one that cannot be read.
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
            match self.0[index].0 {
                0 => Err(Error::Invalid("broken".into())),
                _ => Ok(()),
            }
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
        let of = |set: &Vec<(u8, u32)>| Fingerprint::of(&Bytes(set.clone()), false).unwrap();
        let found: Vec<Fingerprint> = sets.iter().map(of).collect();
        for (i, one) in found.iter().enumerate() {
            assert_eq!(found.iter().position(|other| other == one), Some(i));
            assert_eq!(one, &of(&sets[i]));
        }
    }

    /// It must not be another one because of a failing disk.
    #[test]
    fn an_image_that_cannot_be_read_is_an_error_unless_it_may_be_skipped() {
        let broken = Bytes(vec![(1, 0), (0, 1)]);
        assert!(Fingerprint::of(&broken, false).is_err());
        let skipping = Fingerprint::of(&broken, true).unwrap();
        assert_eq!(skipping, Fingerprint::of(&broken, true).unwrap());
    }
}
