//! Generated faces: people who do not exist, in as many images as one likes, without a file.
//!
//! A *world* is named by its seed and holds a person for every number; a person has an image for every *variation*
//! number. [`render`] is a pure function of the three, so an image does not depend on how many others are asked for, on
//! their order or on the number of threads.
//!
//! A person is geometry (outline of head and jaw, eyes, brows, nose, mouth, ears), hair, skin tone, and for some marks,
//! beard or glasses; every quantity varies continuously, palettes are modest. An image adds turn and tilt of the
//! head, light, expression, background and clothes, framing, exposure, colour temperature, blur and noise.
//!
//! # What a network has to learn
//!
//! The same person's images must not be told from other people's by looking at colours or at pixels. This was checked
//! with 60 held-out people, 20 images each, 3,000 pairs of one person and 3,000 of two, and the *best* threshold on the
//! squared distance of a simple feature (chance is 50 %; `tests/faces.rs` repeats it with fewer images):
//!
//! | feature | verification accuracy |
//! |---|---|
//! | mean colour | 54.6 % |
//! | mean colour of the middle of the face | 68.9 % |
//! | 4x4 thumbnail, as it is / each with mean 0 and norm 1 | 62.0 % / 63.8 % |
//! | 8x8 thumbnail, as it is / standardised | 64.7 % / 67.5 % |
//! | all pixels, as they are / standardised | 67.1 % / 71.6 % |
//!
//! A network of seven 3x3 convolutions (24 to 128 channels) on the images halved to 56x56, trained in PyTorch with a
//! cosine softmax on 14,400 images of 300 other people, each seen once, reaches 96.5 % on such pairs (89.6 % after
//! 4,800 images, 95.7 % after 9,600).

mod canvas;
mod features;
mod folder;
mod identity;
mod pairs;
mod pose;
mod render;

pub use folder::write_image_folder;
pub use pairs::verification_pairs;

use crate::data::{Dataset, Image};
use crate::{Error, Result};

/// Width and height of a generated image, in pixels.
pub const SIDE: usize = canvas::SIDE;

/// Which generated people and how many images of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FacesOptions {
    /// Number of people.
    pub identities: usize,
    /// Images of each person.
    pub per_identity: usize,
    /// The world they come from.
    pub seed: u64,
    /// The number of the first person; the others follow.
    pub first_identity: usize,
}

impl Default for FacesOptions {
    fn default() -> Self {
        FacesOptions {
            identities: 300,
            per_identity: 40,
            seed: 1,
            first_identity: 0,
        }
    }
}

impl FacesOptions {
    /// Splits off the last `held_out` people: those to train on and those kept for testing.
    ///
    /// # Errors
    /// Nobody would be left on one of the two sides.
    pub fn split(&self, held_out: usize) -> Result<(FacesOptions, FacesOptions)> {
        if held_out == 0 || held_out >= self.identities {
            return Err(Error::Invalid(format!(
                "cannot hold out {held_out} of {} generated identities: both parts need at least one",
                self.identities
            )));
        }
        let train = FacesOptions {
            identities: self.identities - held_out,
            ..*self
        };
        let test = FacesOptions {
            identities: held_out,
            first_identity: self.first_identity + train.identities,
            ..*self
        };
        Ok((train, test))
    }

    fn validate(&self) -> Result<()> {
        let end = self.first_identity.checked_add(self.identities);
        let numbered = end.is_some_and(|end| u32::try_from(end).is_ok())
            && self.per_identity < u32::MAX as usize
            && (self.identities.checked_mul(self.per_identity))
                .is_some_and(|images| u32::try_from(images).is_ok());
        if self.identities == 0 || self.per_identity == 0 || !numbered {
            return Err(Error::Invalid(format!(
                "cannot generate {} images of each of {} identities from number {} on: \
                 both must be at least 1, and all numbers and the images in all below 2^32",
                self.per_identity, self.identities, self.first_identity
            )));
        }
        Ok(())
    }

    /// The name of person `label`: their number in the world.
    fn name(&self, label: usize) -> String {
        (self.first_identity + label).to_string()
    }
}

/// Renders image `variation` (below `u32::MAX`) of person `identity` in the world `seed`: 112x112, RGB.
pub fn render(seed: u64, identity: u32, variation: u32, image: &mut Image) {
    image.width = SIDE;
    image.height = SIDE;
    render::render(seed, identity, variation, &mut image.pixels);
}

/// A data set of generated faces. Image `i` shows the person with label `i / per_identity`, which is their number less
/// `first_identity`.
#[derive(Clone, Debug)]
pub struct GeneratedFaces {
    options: FacesOptions,
}

impl GeneratedFaces {
    /// The set that `options` describe. Nothing is rendered yet.
    ///
    /// # Errors
    /// No people, no images, or more than can be numbered.
    pub fn new(options: FacesOptions) -> Result<Self> {
        options.validate()?;
        Ok(GeneratedFaces { options })
    }

    /// What the set was made from.
    pub fn options(&self) -> &FacesOptions {
        &self.options
    }
}

impl Dataset for GeneratedFaces {
    fn len(&self) -> usize {
        self.options.identities * self.options.per_identity
    }

    fn classes(&self) -> usize {
        self.options.identities
    }

    fn label(&self, index: usize) -> u32 {
        assert!(index < self.len(), "image {index} of {}", self.len());
        (index / self.options.per_identity) as u32
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        let identity = self.options.first_identity as u32 + self.label(index);
        let variation = (index % self.options.per_identity) as u32;
        render(self.options.seed, identity, variation, image);
        Ok(())
    }

    fn describe(&self, index: usize) -> String {
        format!(
            "generated face {} of identity {} (seed {})",
            index % self.options.per_identity,
            self.options.first_identity + index / self.options.per_identity,
            self.options.seed
        )
    }

    fn class_name(&self, label: u32) -> String {
        self.options.name(label as usize)
    }
}
