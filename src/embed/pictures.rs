//! Picture files given by name, as a data set.

use crate::base::files::read_whole;
use crate::data::formats::image_folder::EXTENSIONS;
use crate::data::picture;
use crate::data::{Dataset, Image};
use crate::{Error, Result};
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};

/// Pictures in groups, which are its classes, in the order in which they were named.
#[derive(Clone, Debug)]
pub struct Pictures {
    groups: Vec<PictureGroup>,
    /// The number of pictures in all groups before each.
    starts: Vec<usize>,
    images: usize,
}

impl Pictures {
    /// Sorts files and folders into groups: a picture given by name, or directly in a given folder, is a group of its
    /// own without a name, since a file name does not give an identity. The pictures in a subfolder are one group with
    /// the subfolder's name.
    ///
    /// # Errors
    /// A path does not exist or cannot be listed, or there is no picture in a folder.
    pub fn open(paths: &[PathBuf]) -> Result<Self> {
        let groups = group_pictures(paths)?;
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
        })
    }

    /// Whether a file's ending, in lower case, is a picture's.
    pub fn is_ending(ending: &OsStr) -> bool {
        EXTENSIONS.iter().any(|known| ending == *known)
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
        let path = self.path(index);
        picture::decode(&read_whole(path)?, picture)
            .map_err(|why| Error::data(path, format!("cannot be decoded: {why}")))
    }

    fn describe(&self, index: usize) -> String {
        self.path(index).display().to_string()
    }

    fn files(&self, index: usize) -> Vec<PathBuf> {
        vec![self.path(index).into()]
    }

    fn class_name(&self, label: u32) -> String {
        self.groups[label as usize].label.clone()
    }
}

/// Pictures that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
struct PictureGroup {
    /// Whose pictures they are; empty where nobody said.
    label: String,
    /// The files.
    files: Vec<PathBuf>,
}

/// Sorts files and folders into groups: a picture given by name, or lying directly in a folder that is given, stands for
/// itself; the pictures in a subfolder are one group, of the subfolder's name.
///
/// # Errors
/// A path does not exist or cannot be listed, or there is no picture in a folder.
fn group_pictures(paths: &[PathBuf]) -> Result<Vec<PictureGroup>> {
    let mut groups = Vec::new();
    let alone = |path: PathBuf| PictureGroup {
        label: String::new(),
        files: vec![path],
    };
    for path in paths {
        let metadata = fs::metadata(path).map_err(Error::io("opening", path))?;
        if !metadata.is_dir() {
            groups.push(alone(path.clone()));
            continue;
        }
        let before = groups.len();
        let (files, folders) = list(path)?;
        groups.extend(files.into_iter().map(alone));
        for folder in folders {
            let (files, _) = list(&folder)?;
            if !files.is_empty() {
                let label = folder.file_name().unwrap_or_default().to_string_lossy();
                groups.push(PictureGroup {
                    label: label.into_owned(),
                    files,
                });
            }
        }
        if groups.len() == before {
            return Err(Error::data(
                path,
                format!(
                    "holds no picture ({}), nor do the folders in it",
                    EXTENSIONS.join(", ")
                ),
            ));
        }
    }
    Ok(groups)
}

/// The pictures and the folders in a folder, by name; hidden ones are passed over.
fn list(dir: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let io = || Error::io("listing the folder", dir);
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(dir).map_err(io())? {
        let entry = entry.map_err(io())?;
        let path = entry.path();
        let ending = path.extension().map(|e| e.to_ascii_lowercase());
        if entry.file_name().to_string_lossy().starts_with('.') {
            continue;
        } else if path.is_dir() {
            folders.push(path);
        } else if ending.is_some_and(|e| Pictures::is_ending(&e)) {
            files.push(path);
        }
    }
    files.sort();
    folders.sort();
    Ok((files, folders))
}
