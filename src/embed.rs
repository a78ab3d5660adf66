//! Embedding test identities or any pictures, for the similarity matrix.
//!
//! Identities are embedded from the last number downwards, as face_recognition_tf2 does with the people that it keeps out
//! of training. Their numbers are their folders' names where all of those are different numbers (`85741/0001.jpg`), else
//! their places in the data set. The first images of each, in name order, are embedded; identities with too few are skipped.

use crate::backend::Backend;
use crate::checkpoint::write_atomically;
use crate::data::image::{flip, resize};
use crate::data::image_folder::EXTENSIONS;
use crate::data::npy::{self, Elements, Npy};
use crate::data::{Dataset, Image, image};
use crate::embedder::Embedder;
use crate::report::similarity::{Block, Means, Similarity};
use crate::verification::{self, Tta};
use crate::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Which identities of a data set are embedded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selection {
    /// How many identities.
    pub ids: usize,
    /// How many images of each.
    pub per_id: usize,
    /// The number to begin with, downwards; none: the highest there is.
    pub last_id: Option<u64>,
}

/// What became of an identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Embedded.
    Done(u64),
    /// Has too few images.
    TooFew(u64),
    /// Numbers from the first down to the second, which nobody has.
    Missing(u64, u64),
}

/// Embedded pictures: rows in blocks, a block an identity.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Embedded {
    /// N x `dim`, unit vectors.
    pub embeddings: Vec<f32>,
    /// The length of a row: D, or 2 D under [`Tta::FlipConcat`].
    pub dim: usize,
    /// The number of each row's identity.
    pub labels: Vec<i64>,
    /// Where each row's picture comes from.
    pub files: Vec<String>,
    /// The identities, in the order of the rows.
    pub blocks: Vec<Block>,
}

/// Embeds pictures of any size as unit vectors: N x D, or N x 2 D under [`Tta::FlipConcat`].
///
/// # Errors
/// A picture without pixels, an embedding that is not finite or zero, a device that fails.
pub fn embed_images<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    images: &[Image],
    tta: Tta,
) -> Result<Vec<f32>> {
    let side = embedder.image_size();
    let mut pixels = Vec::with_capacity(images.len() * side * side * 3);
    for image in images {
        if image.pixels.is_empty() {
            return Err(Error::Invalid(
                "a picture without pixels cannot be embedded".into(),
            ));
        }
        if (image.width, image.height) == (side, side) {
            pixels.extend_from_slice(&image.pixels);
        } else {
            pixels.extend(resize(image, side, side).pixels);
        }
    }
    let plain = embedder.embed_pixels(&pixels)?;
    let mirrored = if tta.needs_flip() {
        flip(&mut pixels, side);
        embedder.embed_pixels(&pixels)?
    } else {
        Vec::new()
    };
    verification::combine(&plain, &mirrored, embedder.size(), tta)
}

/// Embeds the identities of `dataset` that `selection` names, telling `observe` of each. `source` is the data set's place,
/// for messages.
///
/// # Errors
/// There are not enough identities with enough images, a picture cannot be read, or as [`embed_images`].
pub fn embed_identities<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    source: &Path,
    dataset: &dyn Dataset,
    selection: &Selection,
    tta: Tta,
    observe: &mut dyn FnMut(Event),
) -> Result<Embedded> {
    let Selection {
        ids,
        per_id,
        last_id,
    } = *selection;
    if ids == 0 || per_id == 0 {
        return Err(Error::Usage(
            "at least one identity and one image of each have to be embedded".into(),
        ));
    }
    let numbers = numbers(dataset);
    let highest = numbers.last_key_value().map_or(0, |(&number, _)| number);
    let last = last_id.unwrap_or(highest);
    let mut images = vec![Vec::new(); dataset.classes()];
    for index in 0..dataset.len() {
        let images: &mut Vec<u32> = &mut images[dataset.label(index) as usize];
        if images.len() < per_id {
            images.push(index as u32);
        }
    }

    let mut embedded = Embedded::default();
    // The lowest number that has been looked at, or one above the first.
    let mut above = u128::from(last) + 1;
    for (&number, &label) in numbers.range(..=last).rev() {
        if embedded.blocks.len() == ids {
            break;
        }
        if u128::from(number) + 1 < above {
            observe(Event::Missing((above - 1) as u64, number + 1));
        }
        above = u128::from(number);
        let images = &images[label as usize];
        if images.len() < per_id {
            observe(Event::TooFew(number));
            continue;
        }
        for &index in images {
            embedded.files.push(dataset.describe(index as usize));
            embedded.labels.push(number as i64);
        }
        let read = |&index: &u32, picture: &mut Image| dataset.read(index as usize, picture);
        embedded.extend(embedder, images, number.to_string(), tta, read)?;
        observe(Event::Done(number));
    }
    match embedded.blocks.len() {
        found if found == ids => Ok(embedded),
        found => Err(Error::data(
            source,
            format!(
                "expected {ids} identities with at least {per_id} images each from number {last} downwards, found {found}; \
                 ask for fewer identities or fewer images of each"
            ),
        )),
    }
}

/// The label of each identity, by number.
fn numbers(dataset: &dyn Dataset) -> BTreeMap<u64, u32> {
    let labels = 0..dataset.classes() as u32;
    let named: Option<BTreeMap<u64, u32>> = labels
        .clone()
        .map(|label| {
            let number: u64 = dataset.class_name(label).parse().ok()?;
            // Labels in files are signed.
            i64::try_from(number).is_ok().then_some((number, label))
        })
        .collect();
    named
        .filter(|named| named.len() == dataset.classes())
        .unwrap_or_else(|| labels.map(|label| (u64::from(label), label)).collect())
}

/// Pictures that belong together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PictureGroup {
    /// What to write beside the block.
    pub label: String,
    /// The files.
    pub files: Vec<PathBuf>,
}

/// Sorts files and folders into groups: a picture given by name, or lying directly in a folder that is given, stands for
/// itself; the pictures in a subfolder are one group, of the subfolder's name.
///
/// # Errors
/// A path does not exist or cannot be listed, or there is no picture in a folder.
pub fn group_pictures(paths: &[PathBuf]) -> Result<Vec<PictureGroup>> {
    let mut groups = Vec::new();
    let alone = |path: PathBuf| PictureGroup {
        label: path
            .file_stem()
            .map_or_else(String::new, |s| s.to_string_lossy().into_owned()),
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
        } else if ending.is_some_and(|e| EXTENSIONS.iter().any(|known| e == *known)) {
            files.push(path);
        }
    }
    files.sort();
    folders.sort();
    Ok((files, folders))
}

/// Embeds groups of picture files; the label of a row is its group's place. `progress` is told of pictures done since the
/// last call.
///
/// # Errors
/// A picture cannot be read, or as [`embed_images`].
pub fn embed_groups<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    groups: &[PictureGroup],
    tta: Tta,
    progress: &mut dyn FnMut(usize),
) -> Result<Embedded> {
    let mut embedded = Embedded::default();
    for (number, group) in groups.iter().enumerate() {
        for file in &group.files {
            embedded.files.push(file.display().to_string());
            embedded.labels.push(number as i64);
        }
        let read = |path: &PathBuf, picture: &mut Image| {
            let bytes = fs::read(path).map_err(Error::io("reading", path))?;
            image::decode(&bytes, picture)
                .map_err(|why| Error::data(path, format!("cannot be decoded: {why}")))
        };
        embedded.extend(embedder, &group.files, group.label.clone(), tta, read)?;
        progress(group.files.len());
    }
    Ok(embedded)
}

impl Embedded {
    /// Embeds the pictures of a block, no more than a batch in memory at a time.
    fn extend<B: Backend, T>(
        &mut self,
        embedder: &mut Embedder<'_, B>,
        pictures: &[T],
        label: String,
        tta: Tta,
        read: impl Fn(&T, &mut Image) -> Result<()>,
    ) -> Result<()> {
        for batch in pictures.chunks(embedder.max_batch()) {
            let mut images = vec![Image::default(); batch.len()];
            for (picture, image) in batch.iter().zip(&mut images) {
                read(picture, image)?;
            }
            let rows = embed_images(embedder, &images, tta)
                .map_err(|e| Error::Invalid(format!("embedding the pictures of {label}: {e}")))?;
            self.dim = rows.len() / batch.len();
            self.embeddings.extend(rows);
        }
        self.blocks.push(Block {
            label,
            images: pictures.len(),
        });
        Ok(())
    }

    /// Writes `embeddings.npy` (f4, N x D), `labels.npy` (i8, N), `files.txt` (a line a row) and `similarity.png` to the
    /// folder `out`; gives the mean cosines.
    ///
    /// # Errors
    /// There is nothing to write, or a file cannot be written.
    pub fn save(&self, out: &Path) -> Result<Means> {
        let similarity = Similarity::new(&self.embeddings, self.dim, &self.blocks)?;
        fs::create_dir_all(out).map_err(Error::io("creating the folder", out))?;
        let n = self.labels.len();
        let write = |name: &str, shape: Vec<usize>, elements: Elements| {
            npy::write(&out.join(name), &Npy { shape, elements })
        };
        write(
            "embeddings.npy",
            vec![n, self.dim],
            Elements::F32(self.embeddings.clone()),
        )?;
        write("labels.npy", vec![n], Elements::I64(self.labels.clone()))?;
        // A file's name may hold a line break; the list has a line a row.
        let lines: String = self
            .files
            .iter()
            .map(|f| f.replace(['\n', '\r'], "?") + "\n")
            .collect();
        write_atomically(&out.join("files.txt"), lines.as_bytes())?;
        similarity.save(&out.join("similarity.png"))?;
        Ok(similarity.means())
    }
}
