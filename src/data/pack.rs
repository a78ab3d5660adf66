//! Packing: a data set becomes the RecordIO files that MXNet and InsightFace read (layout: [`recordio`](crate::data::recordio)).
//!
//! `train.rec` holds record 0 (flag 2, the keys of the identity headers), the images in random order, and the identity
//! headers. The *keys* of one identity's images are consecutive, as InsightFace's identity headers demand; the *order in
//! the file* is shuffled, so that a reader that goes straight through sees a mixture. `train.idx` connects the two.
//! `identities.tsv` keeps what the class numbers were called.
//!
//! JPEG and PNG files go in untouched, unless a resize is asked for. PNM files, which MXNet's `imdecode` does not know, become
//! PNG, which loses nothing. InsightFace's own reader expects all pictures to be 112x112.
//!
//! The last N identities can be kept out of training: they become an image folder whose folder names are their numbers
//! (`85642/0001.jpg`), which is what embedding test identities by number wants.
//!
//! Everything is written under temporary names and renamed at the end.

use crate::data::recordio::{MAGIC, MAX_PART};
use crate::data::{Dataset, Encoded, Image, image};
use crate::random::{Purpose, Random};
use crate::{Error, Result};
use rayon::prelude::*;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Quality of the JPEG files that are made here (of generated or resized pictures).
const JPEG_QUALITY: u8 = 95;

/// Images that are read at the same time.
const AT_ONCE: usize = 256;

/// How a data set is packed.
#[derive(Clone, Debug, Default)]
pub struct PackOptions {
    /// Decides the order in the file.
    pub seed: u64,
    /// So many identities, the last ones, are kept out and copied to the folder `reserved`.
    pub reserve_last: usize,
    /// Resize every picture of another size to this many pixels square, as JPEG; none: all pictures stay as they are.
    pub resize: Option<usize>,
    /// Leave out images that cannot be read, instead of stopping.
    pub skip_bad: bool,
    /// Replace files of an earlier run.
    pub overwrite: bool,
}

/// What was packed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// Images in `train.rec`.
    pub images: usize,
    /// Identities in `train.rec`.
    pub identities: usize,
    /// Images in the folder `reserved`.
    pub reserved_images: usize,
    /// Identities in the folder `reserved`.
    pub reserved_identities: usize,
    /// Images in `train.rec` that are not 112x112, which InsightFace's own reader does not accept.
    pub other_sizes: usize,
    /// Images that were left out, and why.
    pub skipped: Vec<String>,
}

/// Packs `source` into the folder `out`. `progress` is called with the images done and to do.
///
/// # Errors
/// An image cannot be read, a file cannot be written, `out` holds earlier files, or no identity would be left.
pub fn pack(
    source: &dyn Dataset,
    out: &Path,
    options: &PackOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Packed> {
    let classes = source.classes();
    if options.reserve_last >= classes {
        return Err(Error::Invalid(format!(
            "cannot reserve the last {} of {classes} identities: none would be left to train on",
            options.reserve_last
        )));
    }
    let kept = classes - options.reserve_last;
    let groups = Groups::new(source);
    // Where the images to train on end and the reserved ones begin.
    let train = groups.starts[kept];
    // Identity headers count in f32.
    if train + kept + 1 > 1 << 24 {
        return Err(Error::Invalid(format!(
            "{train} images of {kept} identities are more than InsightFace's headers can count (2^24)"
        )));
    }
    let files = Files::create(out, options)?;
    let mut packed = Packed {
        identities: kept,
        reserved_identities: options.reserve_last,
        ..Packed::default()
    };
    let mut done = |n: usize| progress(n, source.len());

    let mut record = RecordWriter::create(&files.rec)?;
    // Record 0 is written again at the end, when the number of images is known; its length stays.
    record.write(0, 0.0, &[0.0, 0.0], &[])?;
    let mut order: Vec<u32> = (0..train as u32).collect();
    Random::new(options.seed, Purpose::Pack, 0).shuffle(&mut order);
    // Where the image at each place of the grouped order lies in the file; none: it was left out.
    let mut offsets: Vec<Option<u64>> = vec![None; train];
    for (i, places) in order.chunks(AT_ONCE).enumerate() {
        let read: Vec<_> = places
            .par_iter()
            .map(|&place| encoded(source, groups.images[place as usize], options.resize))
            .collect();
        for (&place, result) in places.iter().zip(read) {
            let Some((encoded, size)) = packed.keep(result, options)? else {
                continue;
            };
            packed.images += 1;
            packed.other_sizes += usize::from(size != (112, 112));
            let label = source.label(groups.images[place as usize] as usize);
            // The id is the key unless an image was left out; no reader looks at it.
            let id = u64::from(place) + 1;
            offsets[place as usize] = Some(record.write(id, label as f32, &[], &encoded.bytes)?);
        }
        done(i * AT_ONCE + places.len());
    }
    finish_records(record, &groups, &offsets, kept, &files)?;
    write_identities(source, &groups, kept, &files)?;
    for label in kept..classes {
        reserve(source, &groups, label, &files, options, &mut packed)?;
        done(groups.starts[label + 1]);
    }
    files.rename(options)?;
    Ok(packed)
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

/// An image file as it is to be stored, with its picture's width and height.
fn encoded(
    source: &dyn Dataset,
    index: u32,
    resize: Option<usize>,
) -> Result<(Encoded, (usize, usize))> {
    let index = index as usize;
    let broken = |why: String| {
        Error::Invalid(format!(
            "{}: cannot be decoded: {why}",
            source.describe(index)
        ))
    };
    let stored = source.encoded(index)?;
    if let Some(stored) = stored {
        let size = image::dimensions(&stored.bytes).map_err(broken)?;
        if resize.is_none_or(|r| size == (r, r)) {
            if !stored.bytes.starts_with(b"P") {
                return Ok((stored, size));
            }
            let mut picture = Image::default();
            image::decode(&stored.bytes, &mut picture).map_err(broken)?;
            let png = Encoded {
                bytes: image::encode_png(&picture),
                extension: "png".into(),
            };
            return Ok((png, size));
        }
    }
    let mut picture = Image::default();
    source.read(index, &mut picture)?;
    if let Some(r) = resize
        && (picture.width, picture.height) != (r, r)
    {
        picture = image::resize(&picture, r, r);
    }
    let jpeg = Encoded {
        bytes: image::encode_jpeg(&picture, JPEG_QUALITY),
        extension: "jpg".into(),
    };
    Ok((jpeg, (picture.width, picture.height)))
}

/// Gives every stored image its key, writes the identity headers, record 0 and the index.
fn finish_records(
    mut record: RecordWriter,
    groups: &Groups,
    offsets: &[Option<u64>],
    kept: usize,
    files: &Files,
) -> Result<()> {
    let mut index = vec![0];
    let mut ranges = Vec::with_capacity(kept);
    for label in 0..kept {
        let start = index.len();
        index.extend(
            offsets[groups.starts[label]..groups.starts[label + 1]]
                .iter()
                .flatten(),
        );
        ranges.push([start as f32, index.len() as f32]);
    }
    let first = index.len();
    for range in ranges {
        let key = index.len() as u64;
        index.push(record.write(key, 0.0, &range, &[])?);
    }
    record.finish([first as f32, index.len() as f32])?;
    let write = || -> io::Result<()> {
        let mut out = BufWriter::new(File::create(&files.idx)?);
        for (key, offset) in index.iter().enumerate() {
            writeln!(out, "{key}\t{offset}")?;
        }
        out.into_inner()?.sync_all()
    };
    write().map_err(Error::io("writing", &files.idx))?;
    fs::write(&files.property, format!("{kept},112,112"))
        .map_err(Error::io("writing", &files.property))
}

/// `identities.tsv`: number, name and number of images of every class, the reserved ones included.
fn write_identities(
    source: &dyn Dataset,
    groups: &Groups,
    kept: usize,
    files: &Files,
) -> Result<()> {
    let mut text = String::from("label\tname\timages\tset\n");
    for label in 0..source.classes() {
        let name = source.class_name(label as u32);
        let images = groups.starts[label + 1] - groups.starts[label];
        let set = if label < kept { "train" } else { "reserved" };
        text.push_str(&format!("{label}\t{name}\t{images}\t{set}\n"));
    }
    fs::write(&files.identities, text).map_err(Error::io("writing", &files.identities))
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
    let dir = files.reserved.join(label.to_string());
    fs::create_dir_all(&dir).map_err(Error::io("creating the folder", &dir))?;
    let mut number = 0;
    for &index in &groups.images[groups.starts[label]..groups.starts[label + 1]] {
        let Some((image, _)) = packed.keep(encoded(source, index, options.resize), options)? else {
            continue;
        };
        number += 1;
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

/// The files of a run, under their temporary names.
struct Files {
    out: PathBuf,
    rec: PathBuf,
    idx: PathBuf,
    property: PathBuf,
    identities: PathBuf,
    reserved: PathBuf,
}

/// Final names, in the order in which they appear.
const NAMES: [&str; 5] = [
    "identities.tsv",
    "reserved",
    "property",
    "train.idx",
    "train.rec",
];

impl Files {
    fn create(out: &Path, options: &PackOptions) -> Result<Self> {
        fs::create_dir_all(out).map_err(Error::io("creating the folder", out))?;
        for name in NAMES {
            let path = out.join(name);
            if path.exists() && !options.overwrite {
                return Err(Error::data(
                    &path,
                    "is there already; choose another folder, or ask for it to be overwritten",
                ));
            }
        }
        let temporary = |name: &str| out.join(format!("{name}.tmp"));
        let files = Files {
            out: out.into(),
            rec: temporary("train.rec"),
            idx: temporary("train.idx"),
            property: temporary("property"),
            identities: temporary("identities.tsv"),
            reserved: temporary("reserved"),
        };
        remove(&files.reserved)?;
        Ok(files)
    }

    /// Old files go first, so that no mixture of old and new is ever taken for a whole.
    fn rename(&self, options: &PackOptions) -> Result<()> {
        for name in NAMES.iter().rev() {
            if options.overwrite {
                remove(&self.out.join(name))?;
            }
        }
        for name in NAMES {
            let (from, to) = (self.out.join(format!("{name}.tmp")), self.out.join(name));
            if name != "reserved" || from.exists() {
                fs::rename(&from, &to).map_err(Error::io("renaming the temporary file to", &to))?;
            }
        }
        Ok(())
    }
}

/// Removes a file or folder that may not be there.
fn remove(path: &Path) -> Result<()> {
    let result = if path.is_dir() {
        fs::remove_dir_all(path)
    } else {
        fs::remove_file(path)
    };
    match result {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", path)(e)),
        _ => Ok(()),
    }
}

/// Appends records to a `.rec` file.
struct RecordWriter {
    path: PathBuf,
    file: BufWriter<File>,
    offset: u64,
}

impl RecordWriter {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io("creating", path))?;
        Ok(RecordWriter {
            path: path.into(),
            file: BufWriter::with_capacity(1 << 20, file),
            offset: 0,
        })
    }

    /// Appends an image record, the flag being the number of `labels`; returns where it begins.
    fn write(&mut self, id: u64, label: f32, labels: &[f32], body: &[u8]) -> Result<u64> {
        let start = self.offset;
        let bytes = record_bytes(&image_payload(id, label, labels, body))?;
        self.file
            .write_all(&bytes)
            .map_err(Error::io("writing", &self.path))?;
        self.offset += bytes.len() as u64;
        Ok(start)
    }

    /// Writes record 0 with its final labels.
    fn finish(mut self, labels: [f32; 2]) -> Result<()> {
        let bytes = record_bytes(&image_payload(0, 0.0, &labels, &[]))?;
        let mut finish = || {
            io::Seek::rewind(&mut self.file)?;
            self.file.write_all(&bytes)?;
            self.file.flush()?;
            self.file.get_ref().sync_all()
        };
        finish().map_err(Error::io("writing", &self.path))
    }
}

fn image_payload(id: u64, label: f32, labels: &[f32], body: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(24 + 4 * labels.len() + body.len());
    payload.extend((labels.len() as u32).to_le_bytes());
    payload.extend(label.to_le_bytes());
    payload.extend(id.to_le_bytes());
    payload.extend(0_u64.to_le_bytes());
    payload.extend(labels.iter().flat_map(|l| l.to_le_bytes()));
    payload.extend(body);
    payload
}

/// A record with its padding, cut where the payload contains the magic at a multiple of 4.
fn record_bytes(payload: &[u8]) -> Result<Vec<u8>> {
    if payload.len() > MAX_PART {
        return Err(Error::Invalid(format!(
            "an image of {} bytes does not fit a record, which holds at most {MAX_PART}",
            payload.len()
        )));
    }
    let mut bytes = Vec::with_capacity(payload.len() + 12);
    let mut part = |kind: u32, payload: &[u8]| {
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend((kind << 29 | payload.len() as u32).to_le_bytes());
        bytes.extend(payload);
    };
    let mut start = 0;
    for (i, word) in payload.as_chunks().0.iter().enumerate() {
        if u32::from_le_bytes(*word) == MAGIC {
            part(if start == 0 { 1 } else { 2 }, &payload[start..4 * i]);
            start = 4 * i + 4;
        }
    }
    part(if start == 0 { 0 } else { 3 }, &payload[start..]);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::image_folder::ImageFolder;
    use crate::data::recordio::RecordIo;

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
                let mut bytes = image::encode_jpeg(
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
}
