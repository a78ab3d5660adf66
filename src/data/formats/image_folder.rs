//! Image folders: `<root>/<identity>/<image>.{jpg,jpeg,png,pgm,ppm,pnm}`.
//!
//! Identities are sorted by name, as numbers if every name is one; their rank is their label. Images are sorted by name.
//! Hidden entries (`.name`) and files with other endings are passed over. Millions of files are listed without asking
//! the system about each: what kind of entry it is comes with the listing.

use crate::data::formats::labels;
use crate::data::picture;
use crate::data::{Dataset, Encoded, Image};
use crate::{Error, Result};
use rayon::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// File endings that count as images, in lower case.
pub(crate) const EXTENSIONS: [&str; 6] = ["jpg", "jpeg", "png", "pgm", "ppm", "pnm"];

/// An image folder. Its file names are kept in one string, 5 million of them in some 100 MB.
#[derive(Debug)]
pub struct ImageFolder {
    root: PathBuf,
    identities: Vec<Identity>,
    images: usize,
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

/// The entries of a folder that are not hidden: name and whether it is a folder. Only links are looked up one by one.
fn entries(dir: &Path) -> Result<Vec<(String, bool)>> {
    let io = || Error::io("listing the folder", dir);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io())? {
        let entry = entry.map_err(io())?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else {
            return Err(Error::data(
                entry.path(),
                "has a name that is not UTF-8; rename it",
            ));
        };
        if name.starts_with('.') {
            continue;
        }
        let kind = entry.file_type().map_err(io())?;
        let is_folder = if kind.is_symlink() {
            let path = entry.path();
            let target = fs::metadata(&path).map_err(Error::io("following the link", &path))?;
            target.is_dir()
        } else {
            kind.is_dir()
        };
        found.push((name.to_owned(), is_folder));
    }
    Ok(found)
}

/// The lower-case ending of a name, if it is an image's.
fn image_extension(name: &str) -> Option<&'static str> {
    let (_, ending) = name.rsplit_once('.')?;
    EXTENSIONS
        .into_iter()
        .find(|known| ending.eq_ignore_ascii_case(known))
}

impl ImageFolder {
    /// Lists the images under `root`, folder by folder on all cores.
    ///
    /// # Errors
    /// A folder cannot be listed; there are no identities; an identity has no image.
    pub fn open(root: &Path) -> Result<Self> {
        let set = Self::open_with_gaps(root)?;
        match set.identities.iter().find(|i| i.ends.is_empty()) {
            None => Ok(set),
            Some(empty) => Err(Error::data(
                root.join(&empty.name),
                format!(
                    "holds no image ({}); every identity needs at least one: remove the folder or fill it",
                    EXTENSIONS.join(", ")
                ),
            )),
        }
    }

    /// As [`ImageFolder::open`], but an identity may have no image: for those who skip identities with few.
    ///
    /// # Errors
    /// A folder cannot be listed; there are no identities.
    pub fn open_with_gaps(root: &Path) -> Result<Self> {
        let found = entries(root)?;
        let loose_images = found
            .iter()
            .filter(|(name, folder)| !folder && image_extension(name).is_some())
            .count();
        let mut names: Vec<String> = found
            .into_iter()
            .filter_map(|(name, folder)| folder.then_some(name))
            .collect();
        if names.is_empty() {
            let there = match loose_images {
                0 => "there is no folder in it".into(),
                n => format!("there are {n} images but no folders in it"),
            };
            return Err(Error::data(
                root,
                format!("holds no identities: expected <identity>/<image>.jpg, {there}"),
            ));
        }
        labels::sort(&mut names);
        let mut identities = names
            .into_par_iter()
            .map(|name| list_identity(root, name))
            .collect::<Result<Vec<_>>>()?;
        let mut images = 0;
        for identity in &mut identities {
            identity.first = images;
            images += identity.ends.len();
        }
        if u32::try_from(images).is_err() {
            return Err(Error::data(
                root,
                format!("holds {images} images, more than 2^32"),
            ));
        }
        Ok(ImageFolder {
            root: root.into(),
            identities,
            images,
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

fn list_identity(root: &Path, name: String) -> Result<Identity> {
    let dir = root.join(&name);
    let mut files: Vec<String> = entries(&dir)?
        .into_iter()
        .filter(|(file, folder)| !folder && image_extension(file).is_some())
        .map(|(file, _)| file)
        .collect();
    files.sort_unstable();
    let mut names = String::with_capacity(files.iter().map(String::len).sum());
    let mut ends = Vec::with_capacity(files.len());
    for file in &files {
        names.push_str(file);
        let end = u32::try_from(names.len());
        ends.push(end.map_err(|_| Error::data(&dir, "holds too many images for one identity"))?);
    }
    Ok(Identity {
        name,
        first: 0,
        names,
        ends,
    })
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
        let path = self.path(index);
        let bytes = fs::read(&path).map_err(Error::io("reading", &path))?;
        picture::decode(&bytes, image)
            .map_err(|why| Error::data(&path, format!("cannot be decoded: {why}")))
    }

    fn describe(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    fn files(&self, index: usize) -> Vec<PathBuf> {
        vec![self.path(index)]
    }

    fn encoded(&self, index: usize) -> Result<Option<Encoded>> {
        let path = self.path(index);
        let bytes = fs::read(&path).map_err(Error::io("reading", &path))?;
        let name = path
            .file_name()
            .and_then(|n| n.to_str())
            .unwrap_or_default();
        let extension = image_extension(name).unwrap_or("jpg").to_owned();
        Ok(Some(Encoded { bytes, extension }))
    }

    fn class_name(&self, label: u32) -> String {
        self.identities[label as usize].name.clone()
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
        assert_eq!(set.encoded(1).unwrap().unwrap().extension, "pgm");

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
        assert!(
            say(&["a/1.jpg", "lonely/", "lonely/readme.txt"]).contains("lonely: holds no image")
        );
        let dir = tree(&["0/", "1/a.jpg", "2/", "3/b.jpg", "3/c.jpg", "4/"]);
        let gaps = ImageFolder::open_with_gaps(dir.path()).unwrap();
        assert_eq!((gaps.len(), gaps.classes()), (3, 5));
        assert_eq!([0, 1, 2].map(|i| gaps.label(i)), [1, 3, 3]);
        assert!(gaps.describe(2).ends_with("3/c.jpg") && gaps.images_of(4).is_empty());
        assert!(say(&["1.jpg", "2.jpg"]).contains("2 images but no folders"));
        assert!(say(&[]).contains("holds no identities"));
        let nowhere = ImageFolder::open(Path::new("/nowhere/at/all")).unwrap_err();
        assert!(nowhere.to_string().contains("/nowhere/at/all"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed() {
        let dir = tree(&["a/1.pgm"]);
        std::os::unix::fs::symlink(dir.path().join("a"), dir.path().join("b")).unwrap();
        assert_eq!(ImageFolder::open(dir.path()).unwrap().classes(), 2);
    }
}
