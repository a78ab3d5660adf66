//! Picture files given by name, as a data set.

use crate::data::formats::image_folder::{Entries, no_image};
use crate::data::picture;
use crate::data::unused::{Reason, Unused};
use crate::data::{Dataset, Image};
use crate::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// Pictures in groups, which are its classes, in the order in which they were named.
#[derive(Clone, Debug)]
pub struct Pictures {
    groups: Vec<PictureGroup>,
    /// The number of pictures in all groups before each.
    starts: Vec<usize>,
    images: usize,
    unused: Unused,
}

impl Pictures {
    /// Sorts files and folders into groups: a picture given by name, or directly in a given folder, is a group of its
    /// own without a name, since a file name does not give an identity. The pictures in a subfolder are one group with
    /// the subfolder's name.
    ///
    /// # Errors
    /// A path does not exist or cannot be listed, or there is no picture in a folder.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let mut unused = Unused::default();
        let groups = group_pictures(paths, &mut unused)?;
        let mut starts = Vec::with_capacity(groups.len());
        let mut images = 0;
        for group in &groups {
            starts.push(images);
            images += group.files.len();
        }
        Ok(Pictures {
            groups,
            starts,
            images,
            unused,
        })
    }

    /// Whether a file's name is a picture's.
    pub fn is_picture(path: &Path) -> bool {
        picture::is_name(&path.to_string_lossy())
    }

    fn path(&self, index: usize) -> &Path {
        let group = self.label(index) as usize;
        &self.groups[group].files[index - self.starts[group]]
    }
}

impl Dataset for Pictures {
    fn len(&self) -> usize {
        self.images
    }

    fn classes(&self) -> usize {
        self.groups.len()
    }

    fn label(&self, index: usize) -> u32 {
        (self.starts.partition_point(|&start| start <= index) - 1) as u32
    }

    fn read(&self, index: usize, picture: &mut Image) -> Result<()> {
        picture::read(self.path(index), picture)
    }

    fn describe(&self, index: usize) -> String {
        self.path(index).to_string_lossy().into_owned()
    }

    fn name(&self, index: usize) -> Option<String> {
        let path = self.path(index);
        let given = &self.groups[self.label(index) as usize].given;
        let name = path.strip_prefix(given).unwrap_or(path);
        Some(name.to_string_lossy().into_owned())
    }

    fn files(&self, index: usize) -> Vec<PathBuf> {
        vec![self.path(index).into()]
    }

    fn upright(&self) -> bool {
        true
    }

    fn class_name(&self, label: u32) -> String {
        self.groups[label as usize].label.clone()
    }

    fn unused(&self) -> Unused {
        self.unused.clone()
    }
}

/// Pictures that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PictureGroup {
    /// Whose pictures they are; empty where nobody said.
    label: String,
    /// The folder that was given; empty for a file.
    given: PathBuf,
    /// The files.
    files: Vec<PathBuf>,
}

/// Sorts files and folders into groups: a picture given by name, or lying directly in a folder that is given, stands for
/// itself; the pictures in a subfolder are one group, of the subfolder's name.
///
/// # Errors
/// A path does not exist or cannot be listed, or there is no picture in a folder.
fn group_pictures(paths: &[PathBuf], unused: &mut Unused) -> Result<Vec<PictureGroup>> {
    let mut groups = Vec::new();
    let alone = |given: &Path, path: PathBuf| PictureGroup {
        label: String::new(),
        given: given.into(),
        files: vec![path],
    };
    for path in paths {
        let metadata = fs::metadata(path).map_err(Error::io("opening", path))?;
        if !metadata.is_dir() {
            groups.push(alone(Path::new(""), path.clone()));
            continue;
        }
        let before = groups.len();
        let mut found = Entries::of(path)?;
        let files = found.take_pictures("", Reason::NoPicture, unused);
        groups.extend(files.iter().map(|file| alone(path, path.join(file))));
        for label in found.folders {
            let folder = path.join(&label);
            let place = format!("{label}/");
            let mut found = Entries::of(&folder)?;
            let files = found.take_pictures(&place, Reason::NoPicture, unused);
            for deeper in found.folders {
                unused.add(Reason::FolderInIdentity, place.clone() + &deeper);
            }
            if files.is_empty() {
                unused.add(Reason::EmptyClass, label);
            } else {
                let files = files.iter().map(|file| folder.join(file)).collect();
                groups.push(PictureGroup {
                    label,
                    given: path.clone(),
                    files,
                });
            }
        }
        if groups.len() == before {
            return Err(no_image(path, unused));
        }
    }
    Ok(groups)
}
