//! A look at a whole data set before it is trained on: what is in it, what is broken, what is suspicious.
//!
//! Every image is read and decoded once, on all cores. 24 bytes an image are held in memory.

use crate::base::text::count;
use crate::data::picture::{is_turned, may_be_aligned};
use crate::data::unused::Unused;
use crate::data::{Dataset, Image};
use crate::{Error, Result};
use rayon::prelude::*;
use serde::Serialize;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Instant;

/// Images that are looked at between two reports of progress.
const BLOCK: usize = 1024;

/// One pixel in so many is taken for colour statistics; no divisor of a usual width.
const PIXEL_STEP: usize = 5;

/// Pairs of duplicates that are named.
const EXAMPLES: usize = 20;

/// Width and height of aligned faces, as nearly all networks take them.
const USUAL_SIZE: usize = 112;

/// Identities with fewer images than this are counted.
const FEW: usize = 5;

/// What [`check`] finds.
#[derive(Clone, Debug, Default, Serialize)]
#[non_exhaustive]
pub struct Report {
    /// Images in the set.
    pub images: usize,
    /// Identities, V: classes that training makes.
    pub identities: usize,
    /// What the identities are called.
    pub names: Names,
    /// How many images identities have.
    pub images_an_identity: Spread,
    /// Identities without any image: class rows that nothing trains.
    pub empty_identities: usize,
    /// Identities with one image, which teach no likeness.
    pub single_image_identities: usize,
    /// Identities with one to four images.
    pub few_images_identities: usize,
    /// Images that cannot be read: training stops there.
    pub broken: Vec<Broken>,
    /// Images with the same content.
    pub duplicates: Duplicates,
    /// Widths and heights, the most frequent first.
    pub sizes: Vec<Size>,
    /// Images that are not square, or larger than 448 pixels: no faces that were aligned for a network of 112, most likely.
    pub unaligned: usize,
    /// Images whose EXIF orientation says that they are to be turned.
    pub turned: usize,
    /// Whether they are read so, as picture files are, or as they are stored, as pictures in records are.
    pub upright: bool,
    /// Statistics of colours.
    pub colour: Colour,
    /// What the data set holds and does not use.
    pub unused: Unused,
    /// Bytes of all image files.
    pub bytes: u64,
    /// Seconds that reading and decoding took.
    pub seconds: f64,
    /// Why training would fail, a sentence each; empty if it would not. What cannot be read is in it; what cannot be learnt
    /// depends on the recipe, and is for the caller to add.
    pub problems: Vec<String>,
}

/// Names of identities.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Names {
    /// The first and the last, in the order of classes.
    pub first_and_last: [String; 2],
    /// Lowest and highest, if all names are numbers.
    pub range: Option<[u64; 2]>,
    /// Numbers between those that no identity has.
    pub missing: u64,
}

/// The spread of a count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The least.
    pub least: usize,
    /// The middle one (the upper of two).
    pub median: usize,
    /// The most.
    pub most: usize,
    /// The mean.
    pub mean: f64,
}

/// An image that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Broken {
    /// Its place in the set.
    pub index: usize,
    /// What it is, where, and why it cannot be read.
    pub why: String,
}

/// Images whose files are byte for byte the same as an earlier one's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Duplicates {
    /// Images with an earlier copy of the same identity.
    pub same_identity: usize,
    /// Images whose earlier copies all have other identities: one of the two labels is wrong.
    pub other_identity: usize,
    /// Examples, those of other identities first: the image and its earlier copy.
    pub examples: Vec<[String; 2]>,
}

/// How many images have a size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Size {
    /// Pixels per row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// Images of that size.
    pub images: usize,
}

/// Statistics of colours, of one pixel in five. They prove nothing about the order of channels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Colour {
    /// Means of red, green and blue as the files say, 0 to 255, over the images that are not grey.
    pub mean: [f64; 3],
    /// Share of images that are grey throughout.
    pub grey_images: f64,
    /// Share of the other images whose mean red is above their mean blue.
    pub red_above_blue: f64,
    /// Share of their pixels in the range of skin (77 <= Cb <= 127, 133 <= Cr <= 173).
    pub skin: f64,
    /// The same if red and blue were exchanged.
    pub skin_exchanged: f64,
}

/// What is seen of an image that can be read.
struct Seen {
    bytes: u64,
    hash: u64,
    turned: bool,
    width: usize,
    height: usize,
    pixels: u64,
    sums: [u64; 3],
    skin: u64,
    skin_exchanged: u64,
    grey: bool,
}

/// Reads all of `dataset`. `progress` is told of images done since the last call.
///
/// # Errors
/// An image that was read once cannot be read again. Broken images are part of the report.
pub fn check(dataset: &dyn Dataset, progress: &mut dyn FnMut(usize)) -> Result<Report> {
    let images = dataset.len();
    let mut report = Report {
        images,
        identities: dataset.classes(),
        unused: dataset.unused_in_full()?,
        upright: dataset.upright(),
        ..Report::default()
    };
    report.identities_of(dataset);
    let began = Instant::now();
    let mut sizes: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    let mut hashes = Vec::with_capacity(images);
    let mut colours = Colours::default();
    for start in (0..images).step_by(BLOCK) {
        let end = (start + BLOCK).min(images);
        let block: Vec<Result<Seen>> = (start..end)
            .into_par_iter()
            .map_init(Image::default, |image, index| look(dataset, index, image))
            .collect();
        for (index, seen) in (start..end).zip(block) {
            match seen {
                Ok(seen) => {
                    *sizes.entry((seen.width, seen.height)).or_default() += 1;
                    report.bytes += seen.bytes;
                    report.turned += usize::from(seen.turned);
                    let aligned = may_be_aligned(seen.width, seen.height, USUAL_SIZE);
                    report.unaligned += usize::from(!aligned);
                    hashes.push((seen.hash, index as u32));
                    colours.add(&seen);
                }
                Err(error) => report.broken.push(Broken {
                    index,
                    why: error.to_string(),
                }),
            }
        }
        progress(end - start);
    }
    report.seconds = began.elapsed().as_secs_f64();
    report.sizes = (sizes.into_iter())
        .map(|((width, height), images)| Size {
            width,
            height,
            images,
        })
        .collect();
    report
        .sizes
        .sort_by_key(|size| std::cmp::Reverse(size.images));
    report.colour = colours.finish();
    report.duplicates = duplicates(dataset, hashes)?;
    report.judge();
    Ok(report)
}

/// Reads an image and looks at it. A decoder that panics counts as an image that cannot be read, as in training.
fn look(dataset: &dyn Dataset, index: usize, image: &mut Image) -> Result<Seen> {
    let read = catch_unwind(AssertUnwindSafe(|| -> Result<_> {
        let stored = dataset.encoded(index)?;
        dataset.read(index, image)?;
        Ok(stored)
    }));
    let stored = read.unwrap_or_else(|_| {
        let place = dataset.describe(index);
        Err(Error::Invalid(format!("{place}: the decoder panicked")))
    })?;
    let content = stored
        .as_ref()
        .map_or(&image.pixels[..], |stored| &stored.bytes);
    let mut seen = Seen {
        bytes: content.len() as u64,
        hash: hash(content),
        turned: stored.is_some_and(|stored| is_turned(&stored.bytes)),
        width: image.width,
        height: image.height,
        pixels: 0,
        sums: [0; 3],
        skin: 0,
        skin_exchanged: 0,
        grey: true,
    };
    for &[r, g, b] in image.pixels.as_chunks::<3>().0.iter().step_by(PIXEL_STEP) {
        seen.pixels += 1;
        for (sum, value) in seen.sums.iter_mut().zip([r, g, b]) {
            *sum += u64::from(value);
        }
        // JPEG gives the pixels of a grey picture that was saved in colour a difference of 1 or 2.
        seen.grey &= r.abs_diff(g) <= 2 && g.abs_diff(b) <= 2 && r.abs_diff(b) <= 2;
        seen.skin += u64::from(is_skin(r, g, b));
        seen.skin_exchanged += u64::from(is_skin(b, g, r));
    }
    Ok(seen)
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

/// Chai and Ngan's range of skin in the chroma plane of BT.601.
fn is_skin(r: u8, g: u8, b: u8) -> bool {
    let [r, g, b] = [r, g, b].map(f32::from);
    let cb = 128.0 - 0.168_736 * r - 0.331_264 * g + 0.5 * b;
    let cr = 128.0 + 0.5 * r - 0.418_688 * g - 0.081_312 * b;
    (77.0..=127.0).contains(&cb) && (133.0..=173.0).contains(&cr)
}

#[derive(Default)]
struct Colours {
    images: u64,
    grey: u64,
    red_above_blue: u64,
    pixels: u64,
    sums: [u64; 3],
    skin: u64,
    skin_exchanged: u64,
}

impl Colours {
    fn add(&mut self, seen: &Seen) {
        self.images += 1;
        if seen.grey {
            self.grey += 1;
            return;
        }
        self.red_above_blue += u64::from(seen.sums[0] > seen.sums[2]);
        self.pixels += seen.pixels;
        for (sum, value) in self.sums.iter_mut().zip(seen.sums) {
            *sum += value;
        }
        self.skin += seen.skin;
        self.skin_exchanged += seen.skin_exchanged;
    }

    fn finish(&self) -> Colour {
        let share = |part: u64, of: u64| part as f64 / of.max(1) as f64;
        Colour {
            mean: self.sums.map(|sum| share(sum, self.pixels)),
            grey_images: share(self.grey, self.images),
            red_above_blue: share(self.red_above_blue, self.images - self.grey),
            skin: share(self.skin, self.pixels),
            skin_exchanged: share(self.skin_exchanged, self.pixels),
        }
    }
}

/// Images of the same hash, if they are the same to the byte.
fn duplicates(dataset: &dyn Dataset, mut hashes: Vec<(u64, u32)>) -> Result<Duplicates> {
    hashes.sort_unstable();
    let content = |index: u32| -> Result<Vec<u8>> {
        if let Some(stored) = dataset.encoded(index as usize)? {
            return Ok(stored.bytes);
        }
        let mut image = Image::default();
        dataset.read(index as usize, &mut image)?;
        Ok(image.pixels)
    };
    let mut found = Duplicates::default();
    let mut examples = [Vec::new(), Vec::new()];
    for group in hashes
        .chunk_by(|a, b| a.0 == b.0)
        .filter(|group| group.len() > 1)
    {
        let first = group[0].1;
        let bytes = content(first)?;
        // The first image of each identity that is in the group.
        let mut firsts = BTreeMap::from([(dataset.label(first as usize), first)]);
        for &(_, index) in &group[1..] {
            if content(index)? != bytes {
                continue;
            }
            let label = dataset.label(index as usize);
            let own = firsts.get(&label).copied();
            firsts.entry(label).or_insert(index);
            let same = own.is_some();
            found.same_identity += usize::from(same);
            found.other_identity += usize::from(!same);
            let examples = &mut examples[usize::from(same)];
            if examples.len() < EXAMPLES {
                examples.push([index, own.unwrap_or(first)].map(|i| dataset.describe(i as usize)));
            }
        }
    }
    found.examples = examples.concat();
    found.examples.truncate(EXAMPLES);
    Ok(found)
}

impl Report {
    fn identities_of(&mut self, dataset: &dyn Dataset) {
        let mut counts = vec![0_usize; dataset.classes()];
        for index in 0..dataset.len() {
            counts[dataset.label(index) as usize] += 1;
        }
        self.empty_identities = counts.iter().filter(|&&n| n == 0).count();
        self.single_image_identities = counts.iter().filter(|&&n| n == 1).count();
        self.few_images_identities = counts.iter().filter(|&&n| (1..FEW).contains(&n)).count();
        counts.sort_unstable();
        if let [least, .., most] | [least @ most] = counts[..] {
            self.images_an_identity = Spread {
                least,
                median: counts[counts.len() / 2],
                most,
                mean: dataset.len() as f64 / counts.len() as f64,
            };
        }
        let name = |label: usize| dataset.class_name(label as u32);
        let last = dataset.classes().saturating_sub(1);
        self.names.first_and_last = [name(0), name(last)];
        let numbers: Option<Vec<u64>> = (0..=last).map(|label| name(label).parse().ok()).collect();
        if let Some(mut numbers) = numbers {
            numbers.sort_unstable();
            numbers.dedup();
            let range = [numbers[0], numbers[numbers.len() - 1]];
            self.names.range = Some(range);
            self.names.missing = range[1] - range[0] - (numbers.len() as u64 - 1);
        }
    }

    fn judge(&mut self) {
        if let Some(first) = self.broken.first() {
            self.problems.push(format!(
                "{} of {} cannot be read, the first: {}; train --skip-bad puts others in their place, pack --skip-bad leaves them out",
                self.broken.len(),
                count(self.images, "image"),
                first.why
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Encoded;

    /// Images by label and content; an empty one cannot be read, one of a single byte makes the decoder panic.
    struct Set(Vec<(u32, Vec<u8>)>, usize);

    impl Dataset for Set {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn classes(&self) -> usize {
            self.1
        }

        fn label(&self, index: usize) -> u32 {
            self.0[index].0
        }

        fn read(&self, index: usize, image: &mut Image) -> Result<()> {
            let bytes = &self.0[index].1;
            if bytes.is_empty() {
                return Err(Error::Invalid(format!("{}: empty", self.describe(index))));
            }
            assert_ne!(bytes.len(), 1, "a decoder's own mistake");
            image.pixels.clone_from(bytes);
            (image.width, image.height) = (bytes.len() / 3, 1);
            Ok(())
        }

        fn describe(&self, index: usize) -> String {
            format!("image {index}")
        }

        fn encoded(&self, index: usize) -> Result<Option<Encoded>> {
            Ok(Some(Encoded::new(self.0[index].1.clone())))
        }

        fn class_name(&self, label: u32) -> String {
            (10 + 2 * label).to_string()
        }
    }

    /// Width, and a colour in the range of skin or that with red and blue exchanged.
    fn picture(width: usize, exchanged: bool) -> Vec<u8> {
        let pixel = if exchanged {
            [150, 160, 220]
        } else {
            [220, 160, 150]
        };
        pixel.repeat(width)
    }

    #[test]
    fn everything_is_counted() {
        let set = Set(
            vec![
                (0, picture(4, false)),
                (0, picture(4, false)),
                (2, picture(4, false)),
                (2, picture(6, true)),
                (2, vec![]),
                (3, vec![9]),
                (3, vec![80; 12]),
            ],
            4,
        );
        let mut done = 0;
        let report = check(&set, &mut |n| done += n).unwrap();
        assert_eq!((done, report.images, report.identities), (7, 7, 4));
        let names = Names {
            first_and_last: ["10".into(), "16".into()],
            range: Some([10, 16]),
            missing: 3,
        };
        assert_eq!(report.names, names);
        let counts = (
            report.empty_identities,
            report.single_image_identities,
            report.few_images_identities,
        );
        assert_eq!(counts, (1, 0, 3));
        let spread = report.images_an_identity;
        assert_eq!((spread.least, spread.median, spread.most), (0, 2, 3));
        let broken: Vec<_> = report
            .broken
            .iter()
            .map(|b| (b.index, &b.why[..]))
            .collect();
        assert_eq!(
            broken,
            [(4, "image 4: empty"), (5, "image 5: the decoder panicked")]
        );
        assert_eq!(
            report.duplicates,
            Duplicates {
                same_identity: 1,
                other_identity: 1,
                examples: vec![
                    ["image 2".into(), "image 0".into()],
                    ["image 1".into(), "image 0".into()]
                ],
            }
        );
        let sizes: Vec<_> = report.sizes.iter().map(|s| (s.width, s.images)).collect();
        assert_eq!(sizes, [(4, 4), (6, 1)]);
        assert_eq!(report.bytes, 4 * 12 + 18);
        // Three images of one pixel each (of four), one of two, and a grey one, which counts for nothing else.
        let colour = report.colour;
        assert_eq!((colour.grey_images, colour.red_above_blue), (0.2, 0.75));
        assert_eq!((colour.skin, colour.skin_exchanged), (0.6, 0.4));
        assert_eq!(colour.mean, [192.0, 160.0, 178.0]);
        assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
        assert!(report.problems[0].starts_with("2 of 7 images"));
    }

    #[test]
    fn a_duplicate_is_one_of_any_earlier_image() {
        let copies = [0, 1, 1, 0].map(|label| (label, picture(4, false)));
        let report = check(&Set(copies.to_vec(), 2), &mut |_| {}).unwrap();
        let pair = |image, earlier| [format!("image {image}"), format!("image {earlier}")];
        assert_eq!(
            report.duplicates,
            Duplicates {
                same_identity: 2,
                other_identity: 1,
                examples: vec![pair(1, 0), pair(2, 1), pair(3, 0)],
            }
        );
    }

    #[test]
    fn names_may_be_names() {
        let set = Set(vec![(0, picture(4, false)), (1, picture(5, false))], 2);
        assert!(check(&set, &mut |_| {}).unwrap().problems.is_empty());
    }
}
