//! Packing: a data set becomes the files that other programs read, RecordIO for MXNet and InsightFace (layout:
//! [`recordio`](crate::data::formats::recordio)) or TFRecord for TensorFlow ([`tfrecord`](crate::data::formats::tfrecord)).
//!
//! `train.rec` holds record 0 (flag 2, the keys of the identity headers), the images in random order, and the identity
//! headers. The *keys* of one identity's images are consecutive, as InsightFace's identity headers demand; the *order in
//! the file* is shuffled, so that a reader that goes straight through sees a mixture. `train.idx` connects the two.
//! `train.tfrecord`, or a row `train-00000-of-00010.tfrecord`, holds the images in random order. In the schema with paths the
//! pictures are files, `images/<label>/0001.jpg`, and the paths start from the folder of the TFRecord files.
//! `identities.tsv` keeps what the class numbers were called.
//!
//! JPEG and PNG files go in untouched, unless a resize is asked for. Other kinds, which not every reader of the packed files
//! knows, become PNG, which loses nothing. A picture with an EXIF orientation is written as it is read, without it. InsightFace's own reader expects all pictures to be 112x112.
//!
//! The last N identities can be kept out of training: they become an image folder whose folder names are their numbers
//! (`85642/0001.jpg`), which is what embedding test identities by number wants.
//!
//! Everything appears together at the end, in the place of an earlier run's files; the folder is locked until then.

mod files;
mod recordio;
mod tfrecord;

use self::files::{Files, RESERVED};
use self::recordio::RecordIoSink;
use self::tfrecord::TfRecordSink;
use crate::base::random::{Purpose, Random};
use crate::base::text;
use crate::data::formats::identities::{HEADING, IDENTITIES, PACKED};
use crate::data::formats::tfrecord::Schema;
use crate::data::picture;
use crate::data::{Dataset, Encoded, Image};
use crate::{Error, Result};
use rayon::prelude::*;
use std::fs;
use std::path::Path;

/// Quality of the JPEG files that are made here (of generated or resized pictures).
const JPEG_QUALITY: u8 = 95;

/// Images that are read at the same time.
const AT_ONCE: usize = 256;

/// What a data set becomes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PackFormat {
    /// `train.rec`, `train.idx` and `property`.
    #[default]
    RecordIo,
    /// `train.tfrecord`, or several files.
    TfRecord(Schema),
}

/// How a data set is packed.
#[derive(Clone, Debug, Default)]
pub struct PackOptions {
    /// What it becomes.
    pub format: PackFormat,
    /// TFRecord files that are made; 0 and 1: one.
    pub shards: usize,
    /// Decides the order in the file.
    pub seed: u64,
    /// So many identities, the last ones, are kept out and copied to the folder `reserved`.
    pub reserve_last: usize,
    /// Resize every picture of another size to this many pixels square, as JPEG; none: all pictures stay as they are.
    pub resize: Option<usize>,
    /// Decode every image, and leave out those that cannot be, instead of stopping at one without a sound header.
    pub skip_bad: bool,
    /// Replace files of an earlier run, whatever its format; all else in the folder stays.
    pub overwrite: bool,
}

/// What was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Images to train on.
    pub images: usize,
    /// Identities to train on.
    pub identities: usize,
    /// Images in the folder `reserved`.
    pub reserved_images: usize,
    /// Identities in the folder `reserved`.
    pub reserved_identities: usize,
    /// Images to train on that are not 112x112, which InsightFace's own reader does not accept.
    pub other_sizes: usize,
    /// Images that EXIF said were to be turned, written as they are read.
    pub turned: usize,
    /// Images that were left out, and why.
    pub skipped: Vec<String>,
}

/// Packs `source` into the folder `out`. `progress` is called with the images done and to do.
///
/// # Errors
/// An image cannot be read, a file cannot be written, `out` holds earlier files (or, where they may be replaced, such as
/// `source` is read from), or no identity would be left.
pub fn pack(
    source: &dyn Dataset,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Packed> {
    let classes = source.classes();
    if options.reserve_last >= classes {
        return Err(Error::Invalid(format!(
            "cannot reserve the last {} of {}: none would be left to train on",
            options.reserve_last,
            text::count(classes, "identity")
        )));
    }
    let kept = classes - options.reserve_last;
    let groups = Groups::new(source);
    // Where the images to train on end and the reserved ones begin.
    let train = groups.starts[kept];
    let files = Files::create(out, options, source)?;
    let mut packed = Packed {
        identities: kept,
        reserved_identities: options.reserve_last,
        ..Packed::default()
    };
    let mut done = |n: usize| progress(n, source.len());

    let mut sink: Box<dyn Sink> = match options.format {
        PackFormat::RecordIo => Box::new(RecordIoSink::create(&files, train, kept)?),
        PackFormat::TfRecord(schema) => {
            Box::new(TfRecordSink::create(&files, schema, train, options.shards)?)
        }
    };
    let mut order: Vec<u32> = (0..train as u32).collect();
    Random::new(options.seed, Purpose::Pack, 0).shuffle(&mut order);
    for (i, places) in order.chunks(AT_ONCE).enumerate() {
        let read: Vec<_> = places
            .par_iter()
            .map(|&place| encoded(source, groups.images[place as usize], options))
            .collect();
        for (&place, result) in places.iter().zip(read) {
            let Some(Stored {
                encoded,
                size,
                turned,
            }) = packed.keep(result, options)?
            else {
                continue;
            };
            packed.images += 1;
            packed.other_sizes += usize::from(size != (112, 112));
            packed.turned += usize::from(turned);
            let place = place as usize;
            let label = source.label(groups.images[place] as usize);
            let number = place - groups.starts[label as usize] + 1;
            sink.push(place, label, number, &encoded)?;
        }
        done(i * AT_ONCE + places.len());
    }
    sink.finish(&groups, kept)?;
    write_identities(source, &groups, kept, &files)?;
    for label in kept..classes {
        reserve(source, &groups, label, &files, options, &mut packed)?;
        done(groups.starts[label + 1]);
    }
    files.finish()?;
    // They were met in the order of the shuffle.
    packed.skipped.sort();
    Ok(packed)
}

/// Where packed images go.
trait Sink {
    /// Takes the image at `place` of the grouped order, the `number`th of its class from 1 on.
    fn push(&mut self, place: usize, label: u32, number: usize, image: &Encoded) -> Result<()>;

    /// Writes what is left.
    fn finish(self: Box<Self>, groups: &Groups, kept: usize) -> Result<()>;
}

impl Packed {
    /// Passes a readable image on; counts one that may be left out.
    fn keep<T>(&mut self, image: Result<T>, options: &PackOptions) -> Result<Option<T>> {
        match image {
            Ok(image) => Ok(Some(image)),
            Err(error) if options.skip_bad => {
                self.skipped.push(error.to_string());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }
}

/// The images of a data set, class by class.
struct Groups {
    /// Indices in the data set.
    images: Vec<u32>,
    /// Where each class begins in `images`; one more than there are classes.
    starts: Vec<usize>,
}

impl Groups {
    fn new(source: &dyn Dataset) -> Self {
        let mut starts = vec![0; source.classes() + 1];
        for index in 0..source.len() {
            starts[source.label(index) as usize + 1] += 1;
        }
        for label in 0..source.classes() {
            starts[label + 1] += starts[label];
        }
        let mut images = vec![0; source.len()];
        let mut next = starts.clone();
        for index in 0..source.len() {
            let place = &mut next[source.label(index) as usize];
            images[*place] = index as u32;
            *place += 1;
        }
        Groups { images, starts }
    }
}

/// An image file as it is to be stored.
struct Stored {
    encoded: Encoded,
    /// The picture's width and height.
    size: (usize, usize),
    /// Whether the original has an EXIF orientation, which is not written: readers do not agree on whether it counts.
    turned: bool,
}

fn encoded(source: &dyn Dataset, index: u32, options: &PackOptions) -> Result<Stored> {
    let index = index as usize;
    let broken = |why: String| {
        Error::Invalid(format!(
            "{}: cannot be decoded: {why}",
            source.describe(index)
        ))
    };
    let stored = source.encoded(index)?;
    let turned = (stored.as_ref()).is_some_and(|stored| picture::is_turned(&stored.bytes));
    let lossless = (stored.as_ref()).is_some_and(|stored| stored.extension == "png");
    if let Some(stored) = stored.filter(|_| !turned) {
        let size = picture::dimensions(&stored.bytes).map_err(broken)?;
        if options.resize.is_none_or(|r| size == (r, r)) {
            let kept = matches!(&stored.extension[..], "jpg" | "png");
            let mut picture = Image::default();
            // One that is to be left out may be broken anywhere.
            if !kept || options.skip_bad {
                picture::decode(&stored.bytes, &mut picture).map_err(broken)?;
            }
            let encoded = match kept {
                true => stored,
                false => Encoded::new(picture::encode_png(&picture)),
            };
            return Ok(Stored {
                encoded,
                size,
                turned,
            });
        }
    }
    let mut picture = Image::default();
    source.read(index, &mut picture)?;
    if let Some(r) = options.resize
        && (picture.width, picture.height) != (r, r)
    {
        picture = picture::resize(&picture, r, r);
    }
    let bytes = match lossless && options.resize.is_none() {
        true => picture::encode_png(&picture),
        false => picture::encode_jpeg(&picture, JPEG_QUALITY),
    };
    Ok(Stored {
        encoded: Encoded::new(bytes),
        size: (picture.width, picture.height),
        turned,
    })
}

/// `identities.tsv`: number, name and number of images of every class, the reserved ones included.
fn write_identities(
    source: &dyn Dataset,
    groups: &Groups,
    kept: usize,
    files: &Files,
) -> Result<()> {
    let mut text = format!("{HEADING}\n");
    for label in 0..source.classes() {
        let name = text::one_line(&source.class_name(label as u32));
        let images = groups.starts[label + 1] - groups.starts[label];
        let set = if label < kept { PACKED } else { "reserved" };
        text.push_str(&format!("{label}\t{name}\t{images}\t{set}\n"));
    }
    let path = files.path(IDENTITIES);
    fs::write(&path, text).map_err(Error::io("writing", &path))
}

/// Copies the images of one identity to `reserved/<label>/0001.jpg` and so on.
fn reserve(
    source: &dyn Dataset,
    groups: &Groups,
    label: usize,
    files: &Files,
    options: &PackOptions,
    packed: &mut Packed,
) -> Result<()> {
    let dir = files.path(RESERVED).join(label.to_string());
    fs::create_dir_all(&dir).map_err(Error::io("creating the folder", &dir))?;
    let mut number = 0;
    for &index in &groups.images[groups.starts[label]..groups.starts[label + 1]] {
        let Some(stored) = packed.keep(encoded(source, index, options), options)? else {
            continue;
        };
        let image = stored.encoded;
        number += 1;
        packed.turned += usize::from(stored.turned);
        packed.reserved_images += 1;
        let path = dir.join(format!("{number:04}.{}", image.extension));
        fs::write(&path, image.bytes).map_err(Error::io("writing", &path))?;
    }
    if number == 0 {
        // An identity without images is no identity of an image folder.
        fs::remove_dir(&dir).map_err(Error::io("removing", &dir))?;
        packed.reserved_identities -= 1;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::formats::image_folder::ImageFolder;
    use crate::data::formats::recordio::{MAGIC, RecordIo};
    use crate::data::open;
    use std::path::PathBuf;

    /// 5 identities with 1 to 5 images; some are PNM, one JPEG holds RecordIO's magic in a comment at every alignment.
    fn folder() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for identity in 0..5_usize {
            let sub = dir.path().join(format!("person {identity}"));
            fs::create_dir(&sub).unwrap();
            for i in 0..=identity {
                let (width, height) = if identity == 3 {
                    (112, 112)
                } else {
                    (8 + i, 9)
                };
                let pixels = (0..width * height * 3)
                    .map(|k| (k * (identity + 2) + i * 40) as u8)
                    .collect();
                let mut bytes = picture::encode_jpeg(
                    &Image {
                        width,
                        height,
                        pixels,
                    },
                    90,
                );
                let mut name = format!("{i}.jpg");
                if (identity, i) == (2, 1) {
                    let mut comment = vec![0xff, 0xfe, 0, 22];
                    for _ in 0..4 {
                        comment.extend(MAGIC.to_le_bytes());
                        comment.push(1);
                    }
                    bytes.splice(2..2, comment);
                } else if (identity, i) == (4, 3) {
                    bytes = b"P5 2 2 255\nabcd".to_vec();
                    name = "3.pgm".into();
                }
                fs::write(sub.join(name), bytes).unwrap();
            }
        }
        dir
    }

    #[test]
    fn what_is_packed_comes_back_byte_for_byte() {
        let source = folder();
        let source = ImageFolder::open(source.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let mut last = (0, 0);
        let options = PackOptions {
            reserve_last: 2,
            ..PackOptions::default()
        };
        let packed = pack(&source, out.path(), &options, &mut |a, b| last = (a, b)).unwrap();
        assert_eq!(last, (15, 15));
        assert_eq!((packed.images, packed.identities), (6, 3));
        assert_eq!((packed.reserved_images, packed.reserved_identities), (9, 2));
        assert_eq!(packed.other_sizes, 6);
        let set = RecordIo::open(out.path()).unwrap();
        assert_eq!((set.len(), set.classes()), (6, 3));
        for i in 0..6 {
            assert_eq!(set.label(i), source.label(i));
            let (a, b) = (set.encoded(i).unwrap(), source.encoded(i).unwrap());
            assert_eq!(a, b, "{}", set.describe(i));
        }
        let reserved = ImageFolder::open(&out.path().join("reserved")).unwrap();
        assert_eq!(
            (reserved.class_name(0), reserved.class_name(1)),
            ("3".into(), "4".into())
        );
        for i in 0..9 {
            let (a, b) = (reserved.encoded(i).unwrap(), source.encoded(6 + i).unwrap());
            if i == 7 {
                assert_eq!(a.unwrap().extension, "png");
                let (mut a, mut b) = (Image::default(), Image::default());
                reserved.read(i, &mut a).unwrap();
                source.read(6 + i, &mut b).unwrap();
                assert_eq!(a, b);
            } else {
                assert_eq!(a, b);
            }
        }
        let names = fs::read_to_string(out.path().join("identities.tsv")).unwrap();
        assert!(
            names.contains("2\tperson 2\t3\ttrain\n3\tperson 3\t4\treserved\n"),
            "{names}"
        );
        assert!(
            fs::read_dir(out.path())
                .unwrap()
                .all(|e| { !e.unwrap().file_name().to_str().unwrap().ends_with(".tmp") })
        );

        // Without the index the order is that of the file, which is shuffled, and the labels are the records' own.
        fs::remove_file(out.path().join("train.idx")).unwrap();
        let scanned = RecordIo::open(out.path()).unwrap();
        let mut found: Vec<_> = (0..6)
            .map(|i| (scanned.label(i), scanned.encoded(i).unwrap().unwrap().bytes))
            .collect();
        let mut expected: Vec<_> = (0..6)
            .map(|i| (source.label(i), source.encoded(i).unwrap().unwrap().bytes))
            .collect();
        assert_ne!(found, expected);
        found.sort();
        expected.sort();
        assert_eq!(found, expected);
    }

    #[test]
    fn bad_images_stop_or_are_left_out_and_resizing_makes_jpegs() {
        let dir = folder();
        let bad = dir.path().join("person 2").join("0.jpg");
        fs::write(&bad, b"\xff\xd8\xff\xe0 no end").unwrap();
        // One whose header is sound.
        let cut = dir.path().join("person 3").join("0.jpg");
        let whole = fs::read(&cut).unwrap();
        let source = ImageFolder::open(dir.path()).unwrap();
        let out = tempfile::tempdir().unwrap();
        let mut options = PackOptions {
            resize: Some(112),
            overwrite: true,
            ..PackOptions::default()
        };
        let error = pack(&source, out.path(), &options, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("0.jpg"), "{error}");
        assert!(!out.path().join("train.rec").exists());
        options.skip_bad = true;
        for _ in 0..2 {
            let packed = pack(&source, out.path(), &options, &mut |_, _| {}).unwrap();
            assert_eq!(
                (packed.images, packed.skipped.len(), packed.other_sizes),
                (14, 1, 0)
            );
        }
        fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
        let packed = pack(&source, out.path(), &options, &mut |_, _| {}).unwrap();
        assert_eq!((packed.images, packed.skipped.len()), (13, 2));
        fs::write(&cut, &whole).unwrap();
        pack(&source, out.path(), &options, &mut |_, _| {}).unwrap();
        let set = RecordIo::open(out.path()).unwrap();
        let labels: Vec<_> = (0..14).map(|i| set.label(i)).collect();
        assert_eq!(labels, [0, 1, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4]);
        let mut image = Image::default();
        for i in 0..14 {
            set.read(i, &mut image).unwrap();
            assert_eq!((image.width, image.height), (112, 112));
        }
        // Those of the right size go in untouched.
        assert_eq!(set.encoded(6).unwrap(), source.encoded(7).unwrap());

        options.overwrite = false;
        let error = pack(&source, out.path(), &options, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("is there already"), "{error}");
        options.reserve_last = 5;
        assert!(pack(&source, out.path(), &options, &mut |_, _| {}).is_err());
    }

    /// Every format holds the same images with the same labels, and one made of another is the same again.
    #[test]
    fn any_format_becomes_any_other() {
        let source = folder();
        let source = ImageFolder::open(source.path()).unwrap();
        let images = |set: &dyn Dataset| {
            let mut images: Vec<_> = (0..set.len())
                .map(|i| (set.label(i), set.encoded(i).unwrap().unwrap().bytes))
                .collect();
            images.sort();
            images
        };
        let dir = tempfile::tempdir().unwrap();
        let formats = [
            PackFormat::TfRecord(Schema::Seed),
            PackFormat::TfRecord(Schema::ArcfaceTf2Paths),
            PackFormat::RecordIo,
            PackFormat::TfRecord(Schema::ArcfaceTf2),
        ];
        let mut before: Option<PathBuf> = None;
        let mut expected = None;
        for (i, format) in formats.into_iter().enumerate() {
            let out = dir.path().join(i.to_string());
            let options = PackOptions {
                format,
                shards: 4 * (i % 2),
                reserve_last: usize::from(before.is_none()),
                ..PackOptions::default()
            };
            let packed = match &before {
                None => pack(&source, &out, &options, &mut |_, _| {}),
                Some(path) => pack(&*open(path).unwrap(), &out, &options, &mut |_, _| {}),
            };
            assert_eq!(packed.unwrap().images, 10, "{format:?}");
            let set = open(&out).unwrap();
            assert_eq!(set.classes(), 4, "{format:?}");
            let found = images(&*set);
            assert_eq!(*expected.get_or_insert(found.clone()), found, "{format:?}");
            before = Some(out);
        }
        let names = |out: &str| crate::data::formats::shards::files(&dir.path().join(out)).unwrap();
        assert_eq!(names("0"), [IDENTITIES, "train.tfrecord"]);
        assert_eq!(names("3").len(), 5);
        assert!(dir.path().join("1/images/3/0004.jpg").is_file());

        // A run in another format leaves nothing of the one before.
        let out = dir.path().join("3");
        let mut options = PackOptions::default();
        let error = pack(&source, &out, &options, &mut |_, _| {}).unwrap_err();
        assert!(error.to_string().contains("is there already"), "{error}");
        options.overwrite = true;
        pack(&source, &out, &options, &mut |_, _| {}).unwrap();
        assert_eq!(
            names("3"),
            [IDENTITIES, "property", "train.idx", "train.rec"]
        );
    }
}
