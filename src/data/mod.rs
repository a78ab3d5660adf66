//! Readers, writers and the loader: pixels and labels, no device.
//!
//! [`open`] looks at a path and gives a [`Dataset`]: an image folder, a RecordIO file, TFRecord files, WebDataset archives
//! or a list. [`loader::Loader`] makes shuffled, augmented batches of one.

pub mod aligned;
pub mod check;
pub mod fingerprint;
pub mod formats;
pub mod loader;
pub mod pack;
pub mod picture;
pub mod subset;
pub mod unused;

use self::formats::{
    identities, image_folder, index, list, recordio, shards, tar, tfrecord, webdataset,
};
use self::unused::{Reason, Unused};
use crate::base::exchange::settled;
use crate::base::files::start_of;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// An RGB picture, 8 bits a channel, rows from top to bottom, pixels from left to right (HWC).
///
/// It is a buffer to be reused: [`Dataset::read`] changes its size and keeps its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image {
    /// Pixels a row.
    pub width: usize,
    /// Rows.
    pub height: usize,
    /// `height * width * 3` bytes: red, green, blue.
    pub pixels: Vec<u8>,
}

/// An image as its file or record holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// The whole file: JPEG, PNG, WebP, BMP or PNM.
    pub bytes: Vec<u8>,
    /// What kind of file, in lower case without a dot ("jpg", "png", "webp", "bmp", "pnm").
    pub extension: String,
}

impl Encoded {
    /// The image file in `bytes`, its kind told by how it begins (a JPEG where that is unknown).
    pub(crate) fn new(bytes: Vec<u8>) -> Self {
        let kind = picture::Kind::of(&bytes).unwrap_or(picture::Kind::Jpeg);
        Encoded {
            bytes,
            extension: kind.extension().into(),
        }
    }
}

/// What the opening of a data set may use, and whom it tells how far it has come.
#[derive(Clone, Copy)]
pub struct Opening<'a> {
    /// Where paths in records and lists start from, if they are not absolute. None: the folder of the file that names them.
    pub image_root: Option<&'a Path>,
    /// Where an index is kept if the folder of its file cannot be written to. None: then it is not kept.
    pub cache: Option<&'a Path>,
    /// Told of bytes looked at and to look at, where a file must be walked through. Called from several threads.
    pub progress: &'a (dyn Fn(u64, u64) + Sync),
}

impl Default for Opening<'_> {
    /// No folders, and nobody to tell.
    fn default() -> Self {
        Opening {
            image_root: None,
            cache: None,
            progress: &|_, _| {},
        }
    }
}

/// A labelled set of images with random access. Labels are `0..classes()`.
pub trait Dataset: Send + Sync {
    /// Number of images.
    fn len(&self) -> usize;

    /// Whether there is no image at all.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of classes (identities), V.
    fn classes(&self) -> usize;

    /// The class of image `index`, below [`classes`](Self::classes). `index` must be below `len()`.
    fn label(&self, index: usize) -> u32;

    /// Decodes image `index` into `image`, whose memory is reused. `index` must be below `len()`.
    ///
    /// # Errors
    /// The image cannot be read or decoded; the sentence says which, where and why.
    fn read(&self, index: usize, image: &mut Image) -> Result<()>;

    /// Where image `index` comes from, for messages ("train.rec, record 17 at byte 1234").
    fn describe(&self, index: usize) -> String;

    /// The path of image `index` where it is in a file of its own: from an image folder on, as a list has it, or as it was
    /// given. None for records.
    fn name(&self, index: usize) -> Option<String> {
        let _ = index;
        None
    }

    /// The files that image `index` is read from, its own or one of many records; none for generated sets.
    fn files(&self, index: usize) -> Vec<PathBuf> {
        let _ = index;
        Vec::new()
    }

    /// Image `index` as it is stored, or `None` where the set stores no encoded files (generated sets).
    ///
    /// # Errors
    /// The image cannot be read.
    fn encoded(&self, index: usize) -> Result<Option<Encoded>> {
        let _ = index;
        Ok(None)
    }

    /// Whether [`read`](Self::read) turns images as the EXIF orientation in them says: those in files of their own, but not
    /// those in records.
    fn upright(&self) -> bool {
        false
    }

    /// The name of class `label`: a folder's name, or the number itself; empty for a single picture whose identity is
    /// unknown.
    fn class_name(&self, label: u32) -> String {
        label.to_string()
    }

    /// What the set's files and folders hold besides its images.
    fn unused(&self) -> Unused {
        Unused::default()
    }

    /// The same, and what is only seen by passing through whole files.
    ///
    /// # Errors
    /// A file cannot be read any more.
    fn unused_in_full(&self) -> Result<Unused> {
        Ok(self.unused())
    }
}

/// Opens what is at `path`, by looking, with the default [`Opening`]; see [`open_with`].
///
/// # Errors
/// As [`open_with`].
pub fn open(path: &Path) -> Result<Box<dyn Dataset>> {
    open_with(path, &Opening::default())
}

/// Opens what is at `path`, by looking:
///
/// - a `.rec` file, or a folder with one, is RecordIO;
/// - `.tfrecord` and `.tfrecords` files, and files that begin as such, are TFRecord; `.tar` files are WebDataset; of both
///   a row (`name-00000-of-00010`), a pattern (`dir/*.tfrecord`) or a folder with such files is one set;
/// - a `.txt`, `.lst`, `.list` or `.tsv` file is a list, a line `path label` for each image;
/// - any other folder is an image folder.
///
/// # Errors
/// There is nothing at `path`, it is none of these, or it cannot be opened.
pub fn open_with(path: &Path, opening: &Opening<'_>) -> Result<Box<dyn Dataset>> {
    settled(path)?;
    if path.is_dir() {
        return open_folder(path, opening);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let files = match kind_by_name(&name) {
        // One of a numbered row is that file: these are never several.
        Some(Kind::RecordIo | Kind::List) if path.is_file() => vec![path.into()],
        _ => shards::resolve(path)?,
    };
    let first = &files[0];
    let start = start_of(first)?;
    match kind_of(first, &start) {
        Some(Kind::RecordIo) if files.len() == 1 => Ok(Box::new(recordio::RecordIo::open(first)?)),
        Some(Kind::TfRecord) => Ok(Box::new(tfrecord::TfRecord::open_files(files, opening)?)),
        Some(Kind::Tar) => Ok(Box::new(webdataset::WebDataset::open_files(
            files, opening,
        )?)),
        Some(Kind::List) if files.len() == 1 => Ok(Box::new(list::List::open(first, opening)?)),
        Some(_) => Err(Error::data(
            path,
            "stands for several files; name one of them",
        )),
        None => Err(Error::data(
            first,
            "is no data set that this program knows; give an image folder (<identity>/<image>.jpg), a RecordIO folder \
             or .rec file, TFRecord files, WebDataset .tar files, or a list (.txt) with a line \"path label\" for each image",
        )),
    }
}

/// Formats that are files.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    RecordIo,
    TfRecord,
    Tar,
    List,
}

/// The format of a file called `path` that begins with `start`.
fn kind_of(path: &Path, start: &[u8]) -> Option<Kind> {
    kind_by_name(&path.file_name()?.to_string_lossy()).or_else(|| {
        if tfrecord::is_tfrecord(start) {
            Some(Kind::TfRecord)
        } else if tar::is_tar(start) {
            Some(Kind::Tar)
        } else {
            None
        }
    })
}

/// The format that a file's name tells. Numbers (`-00000-of-00010`) may stand behind the ending.
fn kind_by_name(name: &str) -> Option<Kind> {
    let name = &name.to_ascii_lowercase()[..];
    let has = |ending: &str| {
        name.ends_with(ending)
            || (shards::is_numbered(name) && name.contains(&format!("{ending}-")))
    };
    if has(".rec") {
        Some(Kind::RecordIo)
    } else if has(".tfrecord") || has(".tfrecords") {
        Some(Kind::TfRecord)
    } else if has(".tar") {
        Some(Kind::Tar)
    } else if [".txt", ".lst", ".list", ".tsv"].into_iter().any(has) {
        Some(Kind::List)
    } else {
        None
    }
}

/// Whether a folder holds a data set's files, which a folder of pictures, or of folders with pictures, does not.
pub fn holds_data_files(folder: &Path) -> bool {
    // What cannot be looked into may be one.
    data_files(folder).map_or(true, |found| found.is_some())
}

/// The files of a data set in a folder, whole or not, and their format.
fn data_files(path: &Path) -> Result<Option<(Kind, Vec<String>)>> {
    let names = shards::files(path)?;
    let of_kind = |kind: Kind| -> Vec<String> {
        let fits = |name: &&String| kind_by_name(name) == Some(kind);
        names.iter().filter(fits).cloned().collect()
    };
    let records = of_kind(Kind::RecordIo);
    if !records.is_empty() {
        return Ok(Some((Kind::RecordIo, records)));
    }
    for kind in [Kind::TfRecord, Kind::Tar] {
        let mut found = of_kind(kind);
        if found.is_empty() {
            // `train-00000-of-00010` says no format: the first of a row is looked into.
            let row: Vec<String> = (names.iter())
                .filter(|name| shards::is_numbered(name))
                .cloned()
                .collect();
            if let Some(first) = row.first()
                && kind_of(&path.join(first), &start_of(&path.join(first))?) == Some(kind)
            {
                found = row;
            }
        }
        if !found.is_empty() {
            return Ok(Some((kind, found)));
        }
    }
    Ok(None)
}

fn open_folder(path: &Path, opening: &Opening<'_>) -> Result<Box<dyn Dataset>> {
    let files = |names: &[String]| shards::one_set(path, names);
    Ok(match data_files(path)? {
        Some((Kind::RecordIo, _)) => {
            let mut set = recordio::RecordIo::open(path)?;
            let index = set.path().with_extension("idx");
            let used = [set.path().to_path_buf(), index];
            set.unused.merge(beside(path, &used, true)?);
            Box::new(set)
        }
        Some((Kind::Tar, names)) => {
            let used = files(&names)?;
            let mut set = webdataset::WebDataset::open_files(used.clone(), opening)?;
            set.records.unused.merge(beside(path, &used, true)?);
            Box::new(set)
        }
        Some((_, names)) => {
            let used = files(&names)?;
            let mut set = tfrecord::TfRecord::open_files(used.clone(), opening)?;
            // Where records name files, pictures are somewhere in the folder.
            let pictures = set.files(0).len() == 1;
            set.records.unused.merge(beside(path, &used, pictures)?);
            Box::new(set)
        }
        None => Box::new(image_folder::ImageFolder::open(path)?),
    })
}

/// What a folder holds besides the files of a data set, without what `pack` and this program put there. Pictures and
/// folders count only if they can be none of the data set's own.
fn beside(folder: &Path, used: &[PathBuf], pictures: bool) -> Result<Unused> {
    const KNOWN: [&str; 4] = [identities::IDENTITIES, "property", "reserved", "images"];
    let used: Vec<_> = used.iter().filter_map(|path| path.file_name()).collect();
    let mut unused = Unused::default();
    let entries = image_folder::Entries::of(folder)?;
    for name in &entries.files {
        let known = KNOWN.contains(&&name[..]) || name.contains(index::ENDING);
        let own = known || used.iter().any(|file| *file == name.as_str());
        if !own && (pictures || !picture::is_name(name)) {
            unused.add(Reason::FileBesideRecords, &name[..]);
        }
    }
    for name in &entries.folders {
        if pictures && !KNOWN.contains(&&name[..]) {
            unused.add(Reason::FolderBesideRecords, &name[..]);
        }
    }
    Ok(unused)
}
