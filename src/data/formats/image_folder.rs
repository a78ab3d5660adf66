//! Image folders: `<root>/<identity>/<image>.jpg`, or of another kind of picture.
//!
//! Identities are sorted by name, as numbers if every name is one; their rank is their label. Images are sorted by name.
//! Hidden entries (`.name`), files of other kinds, what lies beside or below the identities and identities without an
//! image are counted as not used. Millions of files are listed without asking
//! the system about each: what kind of entry it is comes with the listing.

use crate::base::files::read_whole;
use crate::base::text::shown;
use crate::data::formats::labels;
use crate::data::picture::{self, EXTENSIONS};
use crate::data::unused::{Reason, Unused};
use crate::data::{Dataset, Encoded, Image};
use crate::{Error, Result};
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// An image folder. Its file names are kept in one string, 5 million of them in some 100 MB.
#[derive(Debug)]
pub struct ImageFolder {
    root: PathBuf,
    identities: Vec<Identity>,
    images: usize,
    unused: Unused,
}

#[derive(Debug)]
struct Identity {
    name: String,
    /// The number of images of all identities before this one.
    first: usize,
    /// The names of the files, sorted, one after the other.
    names: String,
    /// Where each name ends.
    ends: Vec<u32>,
}

impl Identity {
    fn file(&self, i: usize) -> &str {
        let start = if i == 0 { 0 } else { self.ends[i - 1] as usize };
        &self.names[start..self.ends[i] as usize]
    }
}

/// What is in a folder, by name.
#[derive(Debug, Default)]
pub(crate) struct Entries {
    pub(crate) folders: Vec<String>,
    /// Files, and whatever is no folder: links that lead nowhere, too.
    pub(crate) files: Vec<String>,
    /// Names that begin with a dot.
    pub(crate) hidden: Vec<String>,
}

impl Entries {
    /// Lists a folder. Only links are looked up one by one.
    ///
    /// # Errors
    /// It cannot be listed; a name is not UTF-8.
    pub(crate) fn of(dir: &Path) -> Result<Self> {
        let io = || Error::io("listing the folder", dir);
        let mut found = Entries::default();
        for entry in fs::read_dir(dir).map_err(io())? {
            let entry = entry.map_err(io())?;
            let Ok(name) = entry.file_name().into_string() else {
                return Err(Error::data(
                    entry.path(),
                    "has a name that is not UTF-8; rename it",
                ));
            };
            let kind = entry.file_type().map_err(io())?;
            let is_folder = kind.is_dir() || (kind.is_symlink() && entry.path().is_dir());
            if name.starts_with('.') {
                found.hidden.push(name);
            } else if is_folder {
                found.folders.push(name);
            } else {
                found.files.push(name);
            }
        }
        for names in [&mut found.folders, &mut found.files, &mut found.hidden] {
            names.sort_unstable();
        }
        Ok(found)
    }

    /// Takes the names of pictures out, and counts hidden names and other files, with `place` before their names.
    pub(crate) fn take_pictures(
        &mut self,
        place: &str,
        other: Reason,
        unused: &mut Unused,
    ) -> Vec<String> {
        let files = std::mem::take(&mut self.files);
        let (pictures, others): (Vec<_>, Vec<_>) =
            (files.into_iter()).partition(|name| picture::is_name(name));
        for name in &self.hidden {
            unused.add(Reason::Hidden, format!("{place}{name}"));
        }
        for name in others {
            unused.add(other, format!("{place}{name}"));
        }
        pictures
    }
}

impl ImageFolder {
    /// Lists the images under `root`, folder by folder on all cores. An identity may have no image: it stays a class,
    /// and is counted as not used.
    ///
    /// # Errors
    /// A folder cannot be listed; there are no identities, or no image.
    pub fn open(root: &Path) -> Result<Self> {
        let mut found = Entries::of(root)?;
        let mut unused = Unused::default();
        let loose = found.take_pictures("", Reason::FileBesideIdentities, &mut unused);
        let mut names = found.folders;
        if names.is_empty() {
            let there = match loose.len() {
                0 => "there is no folder in it".into(),
                n => format!("there are {n} images but no folders in it"),
            };
            return Err(Error::data(
                root,
                format!("holds no identities: expected <identity>/<image>.jpg, {there}"),
            ));
        }
        for name in loose {
            unused.add(Reason::FileBesideIdentities, name);
        }
        labels::sort(&mut names);
        let listed = names
            .into_par_iter()
            .map(|name| list_identity(root, name))
            .collect::<Result<Vec<_>>>()?;
        let mut identities = Vec::with_capacity(listed.len());
        let mut images = 0;
        for (mut identity, more) in listed {
            identity.first = images;
            images += identity.ends.len();
            unused.merge(more);
            identities.push(identity);
        }
        if u32::try_from(images).is_err() {
            return Err(Error::data(
                root,
                format!("holds {images} images, more than 2^32"),
            ));
        }
        if images == 0 {
            return Err(no_image(root, &unused));
        }
        Ok(ImageFolder {
            root: root.into(),
            identities,
            images,
            unused,
        })
    }

    /// The file of image `index`.
    pub fn path(&self, index: usize) -> PathBuf {
        let identity = &self.identities[self.label(index) as usize];
        self.root
            .join(&identity.name)
            .join(identity.file(index - identity.first))
    }

    /// The indices of the images of class `label`.
    pub fn images_of(&self, label: u32) -> std::ops::Range<usize> {
        let identity = &self.identities[label as usize];
        identity.first..identity.first + identity.ends.len()
    }
}

/// Why there is no image in `root` and the folders in it: names the folders to give instead, where images lie deeper, or
/// what else there is.
pub(crate) fn no_image(root: &Path, unused: &Unused) -> Error {
    let problem = match sets_below(root, DEPTH).as_slice() {
        [] => {
            let other = unused.iter().find(|l| l.reason == Reason::NoPicture);
            let other = other.map_or(String::new(), |l| format!("; there are {l}"));
            format!(
                "holds no image ({}) in the folders in it{other}",
                EXTENSIONS.join(", ")
            )
        }
        [only] => format!(
            "holds no image in the folders in it; they lie deeper: give {}, whose folders are then the identities",
            shown(only)
        ),
        [first, .., last] => format!(
            "holds no image in the folders in it; they lie deeper: give one of the folders {} to {}, whose folders are then \
             the identities (if each of these is one identity, its images must lie directly in it)",
            shown(first),
            shown(last)
        ),
    };
    Error::data(root, problem)
}

/// How deep images are looked for, to name the folder that should have been given.
const DEPTH: usize = 3;

/// The folders in `root`, or else in the folders in it, whose own folders hold images; by name, a few at most.
fn sets_below(root: &Path, depth: usize) -> Vec<PathBuf> {
    const LOOKED_AT: usize = 100;
    let folders = |path: &Path| -> Vec<PathBuf> {
        let found = Entries::of(path).map_or(Vec::new(), |found| found.folders);
        let found = found.into_iter().take(LOOKED_AT);
        found.map(|name| path.join(name)).collect()
    };
    let holds_images = |path: &PathBuf| {
        let files = Entries::of(path).map_or(Vec::new(), |found| found.files);
        files.iter().any(|name| picture::is_name(name))
    };
    let inside = folders(root);
    let sets: Vec<PathBuf> = (inside.iter())
        .filter(|path| folders(path).iter().any(holds_images))
        .cloned()
        .collect();
    if !sets.is_empty() || depth == 0 {
        return sets;
    }
    (inside.iter().map(|path| sets_below(path, depth - 1)))
        .find(|sets| !sets.is_empty())
        .unwrap_or_default()
}

fn list_identity(root: &Path, name: String) -> Result<(Identity, Unused)> {
    let dir = root.join(&name);
    let mut unused = Unused::default();
    let mut found = Entries::of(&dir)?;
    let place = format!("{name}/");
    let files = found.take_pictures(&place, Reason::NoPicture, &mut unused);
    for folder in found.folders {
        unused.add(Reason::FolderInIdentity, format!("{place}{folder}"));
    }
    if files.is_empty() {
        unused.add(Reason::EmptyClass, &name[..]);
    }
    let mut names = String::with_capacity(files.iter().map(String::len).sum());
    let mut ends = Vec::with_capacity(files.len());
    for file in &files {
        names.push_str(file);
        let end = u32::try_from(names.len());
        ends.push(end.map_err(|_| Error::data(&dir, "holds too many images for one identity"))?);
    }
    let identity = Identity {
        name,
        first: 0,
        names,
        ends,
    };
    Ok((identity, unused))
}

impl Dataset for ImageFolder {
    fn len(&self) -> usize {
        self.images
    }

    fn classes(&self) -> usize {
        self.identities.len()
    }

    fn label(&self, index: usize) -> u32 {
        assert!(index < self.images, "image {index} of {}", self.images);
        let after = self.identities.partition_point(|i| i.first <= index);
        (after - 1) as u32
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        picture::read(&self.path(index), image)
    }

    fn describe(&self, index: usize) -> String {
        self.path(index).to_string_lossy().into_owned()
    }

    fn name(&self, index: usize) -> Option<String> {
        let identity = &self.identities[self.label(index) as usize];
        let file = identity.file(index - identity.first);
        Some(format!("{}/{file}", identity.name))
    }

    fn files(&self, index: usize) -> Vec<PathBuf> {
        vec![self.path(index)]
    }

    fn upright(&self) -> bool {
        true
    }

    fn encoded(&self, index: usize) -> Result<Option<Encoded>> {
        read_whole(&self.path(index)).map(|bytes| Some(Encoded::new(bytes)))
    }

    fn class_name(&self, label: u32) -> String {
        self.identities[label as usize].name.clone()
    }

    fn unused(&self) -> Unused {
        self.unused.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            if file.ends_with('/') {
                fs::create_dir_all(path).unwrap();
                continue;
            }
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, b"P5 1 1 255\n\x07").unwrap();
        }
        dir
    }

    #[test]
    fn numbers_sort_as_numbers_and_names_as_names() {
        let dir = tree(&[
            "10/b.pgm",
            "9/z.PGM",
            "9/a.jpg",
            "9/.hidden.jpg",
            "9/notes.txt",
            ".git/x.jpg",
            "010/c.ppm",
        ]);
        let set = ImageFolder::open(dir.path()).unwrap();
        assert_eq!((set.len(), set.classes()), (4, 3));
        let names: Vec<_> = (0..3).map(|c| set.class_name(c)).collect();
        assert_eq!(names, ["9", "010", "10"]);
        assert_eq!(
            (0..4).map(|i| set.label(i)).collect::<Vec<_>>(),
            [0, 0, 1, 2]
        );
        assert!(set.describe(0).ends_with("9/a.jpg"));
        assert!(set.describe(3).ends_with("10/b.pgm"));
        assert_eq!(set.images_of(0), 0..2);
        let mut image = Image::default();
        set.read(1, &mut image).unwrap();
        assert_eq!(image.pixels, [7, 7, 7]);
        assert_eq!(set.encoded(1).unwrap().unwrap().extension, "pnm");

        let dir = tree(&["10/b.pgm", "9/z.pgm", "x/a.jpg"]);
        let set = ImageFolder::open(dir.path()).unwrap();
        assert_eq!(set.class_name(0), "10");
    }

    #[test]
    fn what_is_missing_is_named() {
        let say = |files: &[&str]| {
            let dir = tree(files);
            ImageFolder::open(dir.path()).unwrap_err().to_string()
        };
        assert!(say(&["lonely/", "b/readme.txt"]).contains("holds no image"));
        let other = say(&["a/1.heic", "a/2.heic"]);
        assert!(other.contains("2 files of other kinds"), "{other}");
        // Pictures one level deeper, or two; one folder, or several.
        for (files, give) in [
            (
                &["faces/a/1.jpg", "faces/b/1.jpg"][..],
                "give ROOT/faces, whose",
            ),
            (&["x/faces/a/1.jpg"], "give ROOT/x/faces, whose"),
            (
                &["train/a/1.jpg", "val/b/1.jpg"],
                "give one of the folders ROOT/train to ROOT/val, whose",
            ),
        ] {
            let dir = tree(files);
            let said = ImageFolder::open(dir.path()).unwrap_err().to_string();
            let said = said.replace(dir.path().to_str().unwrap(), "ROOT");
            assert!(said.contains(give) && !said.contains("remove"), "{said}");
        }
        let dir = tree(&["0/", "1/a.jpg", "2/", "3/b.jpg", "3/c.jpg", "4/"]);
        let gaps = ImageFolder::open(dir.path()).unwrap();
        assert_eq!((gaps.len(), gaps.classes()), (3, 5));
        assert_eq!([0, 1, 2].map(|i| gaps.label(i)), [1, 3, 3]);
        assert!(gaps.describe(2).ends_with("3/c.jpg") && gaps.images_of(4).is_empty());
        assert!(say(&["1.jpg", "2.jpg"]).contains("2 images but no folders"));
        assert!(say(&[]).contains("holds no identities"));
        let nowhere = ImageFolder::open(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(nowhere.to_string().contains("/nowhere/at/all"));
    }

    #[test]
    fn what_is_not_used_is_counted_and_named() {
        let dir = tree(&[
            "list.txt",
            "loose.jpg",
            ".git/x",
            "a/1.JFIF",
            "a/2.webp",
            "a/3.BMP",
            "a/4.gif",
            "a/4.heic",
            "a/.DS_Store",
            "a/deep/5.jpg",
            "b/",
        ]);
        let set = ImageFolder::open(dir.path()).unwrap();
        assert_eq!((set.len(), set.classes()), (3, 2));
        let said: Vec<String> = set.unused().iter().map(ToString::to_string).collect();
        let expected = [
            "2 hidden entries (.git, a/.DS_Store)",
            "2 files beside the identities (list.txt, loose.jpg)",
            "2 files of other kinds than the pictures that are read (a/4.gif, a/4.heic)",
            "1 folder inside an identity's folder (a/deep)",
            "1 class without a picture (b)",
        ];
        assert_eq!(said, expected);
    }

    #[cfg(unix)]
    #[test]
    fn a_link_that_leads_nowhere_is_a_picture_that_cannot_be_read() {
        let dir = tree(&["a/1.pgm"]);
        for name in ["a/2.pgm", "beside"] {
            std::os::unix::fs::symlink("nowhere", dir.path().join(name)).unwrap();
        }
        let set = ImageFolder::open(dir.path()).unwrap();
        assert_eq!((set.len(), set.classes()), (2, 1));
        let error = set.read(1, &mut Image::default()).unwrap_err().to_string();
        assert!(error.contains("a/2.pgm"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() {
        let dir = tree(&["a/1.pgm"]);
        std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_eq!(ImageFolder::open(dir.path()).unwrap().classes(), 2);
    }
}
