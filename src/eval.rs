//! Verification accuracy of a network on evaluation sets.
//!
//! A set is a bcolz carray of shape (2M, 3, S, S), CHW, channels blue, green, red, in a folder of the set's name, and
//! beside that folder `NAME_list.npy`, M truth values; images 2k and 2k+1 are pair k. Floating-point arrays hold
//! (x/255 - 0.5) / 0.5, uint8 arrays x itself. [`find`] looks for sets, [`evaluate`] judges a network on one.
//!
//! The array is read in blocks of a batch, so memory does not grow with it; what grows are the embeddings.

use crate::backend::Backend;
use crate::data::bcolz::{Carray, CarrayWriter, ElementType};
use crate::data::image::{flip, resize_centre_crop_planes, swap_red_blue};
use crate::data::npy::{self, Elements, Npy};
use crate::data::{Dataset, Image};
use crate::embedder::Embedder;
use crate::report::pairs::PairPicture;
use crate::verification::{self, SetResult, Tta, Verdict};
use crate::{Error, Result};
use image::RgbImage;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The sets that are evaluated where none is named, as far as they are there.
pub const DEFAULT_SETS: [&str; 3] = ["lfw", "agedb_30", "cfp_fp"];

/// `ccrop` enlarges a picture of 112 pixels to this size before it takes the middle.
const CCROP: (usize, usize) = (112, 128);

/// The order in which a network gets the channels of pictures that are stored blue first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ChannelOrder {
    /// Red, green, blue: swapped to the order in which networks are trained.
    #[default]
    Rgb,
    /// Blue, green, red: as stored, which is what face_recognition_tf2's evaluation feeds its networks.
    Bgr,
}

impl fmt::Display for ChannelOrder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ChannelOrder::Rgb => "rgb",
            ChannelOrder::Bgr => "bgr",
        })
    }
}

impl FromStr for ChannelOrder {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "rgb" => Ok(ChannelOrder::Rgb),
            "bgr" => Ok(ChannelOrder::Bgr),
            _ => Err(Error::Usage(format!(
                "\"{s}\" is no channel order: expected rgb or bgr"
            ))),
        }
    }
}

/// How pictures reach the network, and how its answers become embeddings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct EvalOptions {
    /// What is done with mirror images.
    pub tta: Tta,
    /// Enlarge by 128/112 (bilinear, as OpenCV) and take the middle.
    pub ccrop: bool,
    /// The order of the channels.
    pub channel_order: ChannelOrder,
}

/// Where an evaluation set lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetFiles {
    /// The set's name, which is that of its folder.
    pub name: String,
    /// The folder of the carray.
    pub array: PathBuf,
}

impl SetFiles {
    /// The file of truth values, beside the folder.
    pub fn list(&self) -> PathBuf {
        self.array.with_file_name(format!("{}_list.npy", self.name))
    }
}

/// Finds evaluation sets: `data` itself, the folders in it (`data/NAME`) and the folders in those
/// (`data/lfw_align_112/lfw`). With no names given: of [`DEFAULT_SETS`] those that are there; where there is none of them, all.
///
/// # Errors
/// A set that is asked for is not there or is there twice; there is no set at all.
pub fn find(data: &Path, names: Option<&[String]>) -> Result<Vec<SetFiles>> {
    let all = all_sets(data)?;
    let there = || {
        let names: Vec<&str> = all.iter().map(|s| &s.name[..]).collect();
        if names.is_empty() {
            "there is none".to_owned()
        } else {
            format!("there are {}", names.join(", "))
        }
    };
    let one = |name: &str| -> Result<Option<SetFiles>> {
        let mut found = all.iter().filter(|s| s.name == name);
        match (found.next(), found.next()) {
            (Some(a), Some(b)) => Err(Error::data(
                data,
                format!(
                    "holds the set {name} twice, in {} and {}; name the folder of one of them",
                    a.array.display(),
                    b.array.display()
                ),
            )),
            (first, _) => Ok(first.cloned()),
        }
    };
    let Some(names) = names else {
        let default: Vec<Option<SetFiles>> =
            DEFAULT_SETS.into_iter().map(one).collect::<Result<_>>()?;
        let default: Vec<SetFiles> = default.into_iter().flatten().collect();
        return match (default.is_empty(), all.is_empty()) {
            (false, _) => Ok(default),
            (true, false) => Ok(all),
            (true, true) => Err(Error::data(
                data,
                "holds no evaluation set (a bcolz carray in a folder NAME, with NAME_list.npy beside it, \
                 for example lfw_align_112/lfw and lfw_align_112/lfw_list.npy)",
            )),
        };
    };
    names
        .iter()
        .map(|name| {
            one(name)?.ok_or_else(|| {
                Error::data(
                    data,
                    format!("holds no evaluation set called {name}; {}", there()),
                )
            })
        })
        .collect()
}

/// Every carray at most two folders deep, by path.
fn all_sets(data: &Path) -> Result<Vec<SetFiles>> {
    let is_carray = |dir: &Path| dir.join("meta").join("sizes").is_file();
    let set = |dir: &Path| {
        Some(SetFiles {
            name: dir.file_name()?.to_string_lossy().into_owned(),
            array: dir.into(),
        })
    };
    if is_carray(data) {
        // "." has a name, too.
        let full = fs::canonicalize(data).map_err(Error::io("opening", data))?;
        return Ok(set(&full).into_iter().collect());
    }
    let mut sets = Vec::new();
    for dir in folders(data)? {
        if is_carray(&dir) {
            sets.extend(set(&dir));
        } else {
            let inner = folders(&dir)?;
            sets.extend(inner.iter().filter(|d| is_carray(d)).filter_map(|d| set(d)));
        }
    }
    Ok(sets)
}

/// The folders in a folder, by name.
fn folders(dir: &Path) -> Result<Vec<PathBuf>> {
    let io = || Error::io("listing the folder", dir);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io())? {
        let path = entry.map_err(io())?.path();
        if path.is_dir() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// An evaluation set, read from its files piece by piece.
#[derive(Debug)]
pub struct EvalSet {
    files: SetFiles,
    array: Carray,
    same: Vec<bool>,
    side: usize,
    /// A block of rows as they are stored, and one picture enlarged and cropped.
    rows: Vec<f32>,
    cropped: Vec<f32>,
}

impl EvalSet {
    /// Opens the set's files.
    ///
    /// # Errors
    /// One of them cannot be read, the array has not the shape of pictures, or there are not two pictures a truth value.
    pub fn open(files: &SetFiles) -> Result<Self> {
        let array = Carray::open(&files.array)?;
        let same = npy::read_bools(&files.list())?;
        let side = match *array.shape() {
            [_, 3, h, w] if h == w => h,
            _ => {
                return Err(Error::data(
                    &files.array,
                    format!(
                        "expected pictures of shape (2M, 3, S, S), found an array of shape {:?}",
                        array.shape()
                    ),
                ));
            }
        };
        if array.rows() % 2 != 0 || array.rows() / 2 != same.len() {
            return Err(Error::data(
                &files.array,
                format!(
                    "holds {} pictures, and {} has truth values for {} pairs; expected two pictures a pair",
                    array.rows(),
                    files.list().display(),
                    same.len()
                ),
            ));
        }
        Ok(EvalSet {
            files: files.clone(),
            array,
            same,
            side,
            rows: Vec::new(),
            cropped: Vec::new(),
        })
    }

    /// The set's name.
    pub fn name(&self) -> &str {
        &self.files.name
    }

    /// Number of pictures, twice that of pairs.
    pub fn images(&self) -> usize {
        2 * self.same.len()
    }

    /// For each pair, whether it shows one person.
    pub fn same(&self) -> &[bool] {
        &self.same
    }

    /// Width and height of a picture.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Reads pictures `start..start + count` as the network gets them, into `values` (replaced, its memory reused):
    /// count x S x S x 3, in [0, 1], the channels in the order asked for.
    ///
    /// # Errors
    /// A chunk cannot be read, the values are out of range, or a picture cannot be cropped.
    pub fn read(
        &mut self,
        start: usize,
        count: usize,
        ccrop: bool,
        order: ChannelOrder,
        values: &mut Vec<f32>,
    ) -> Result<()> {
        if ccrop && self.side != CCROP.0 {
            return Err(Error::data(
                &self.files.array,
                format!(
                    "ccrop is defined for pictures of {} pixels, these have {}",
                    CCROP.0, self.side
                ),
            ));
        }
        self.array.read_rows(start, count, &mut self.rows)?;
        self.unit_values(start)?;
        let plane = self.side * self.side;
        self.cropped.resize(3 * plane, 0.0);
        values.clear();
        values.reserve(count * 3 * plane);
        for picture in self.rows.chunks_exact(3 * plane) {
            let picture = if ccrop {
                resize_centre_crop_planes(3, self.side, CCROP.1, picture, &mut self.cropped);
                &self.cropped[..]
            } else {
                picture
            };
            let (first, rest) = picture.split_at(plane);
            let (second, third) = rest.split_at(plane);
            for ((&blue, &green), &red) in first.iter().zip(second).zip(third) {
                values.extend(match order {
                    ChannelOrder::Rgb => [red, green, blue],
                    ChannelOrder::Bgr => [blue, green, red],
                });
            }
        }
        Ok(())
    }

    /// Makes `self.rows` numbers in [0, 1].
    fn unit_values(&mut self, start: usize) -> Result<()> {
        if self.array.element_type() == ElementType::U8 {
            self.rows.iter_mut().for_each(|x| *x /= 255.0);
            return Ok(());
        }
        // An array of another convention would be evaluated to a number that means nothing.
        if let Some(i) = self
            .rows
            .iter()
            .position(|x| !x.is_finite() || x.abs() > 1.001)
        {
            return Err(Error::data(
                &self.files.array,
                format!(
                    "expected floating-point pixels (x/255 - 0.5) / 0.5, which lie in [-1, 1], found {} in picture {}",
                    self.rows[i],
                    start + i / (3 * self.side * self.side)
                ),
            ));
        }
        self.rows.iter_mut().for_each(|x| *x = *x * 0.5 + 0.5);
        Ok(())
    }

    /// Picture `index` in its true colours, for people.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn picture(&mut self, index: usize) -> Result<RgbImage> {
        let mut values = Vec::new();
        self.read(index, 1, false, ChannelOrder::Rgb, &mut values)?;
        let pixels = values.iter().map(|x| (x * 255.0).round() as u8).collect();
        let side = self.side as u32;
        Ok(RgbImage::from_raw(side, side, pixels).expect("three bytes a pixel"))
    }
}

/// The result of evaluating a set, with what tells of each pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The set's name and numbers.
    pub result: SetResult,
    /// The squared distance of each pair's unit embeddings.
    pub distances: Vec<f64>,
}

/// Embeds the pictures of `set` and judges its pairs. `progress` is told of pictures done since the last call.
///
/// # Errors
/// The set cannot be read or has pictures of another size than the network's, a device fails, the embeddings are not
/// finite or all equal, or the pairs are too few.
pub fn evaluate<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    set: &mut EvalSet,
    options: &EvalOptions,
    progress: &mut dyn FnMut(usize),
) -> Result<Evaluation> {
    let side = embedder.image_size();
    if set.side() != side {
        return Err(Error::data(
            &set.files.array,
            format!(
                "expected pictures of {side} pixels, which the network takes, found {}",
                set.side()
            ),
        ));
    }
    let (images, dim) = (set.images(), embedder.size());
    let mut plain = Vec::with_capacity(images * dim);
    let mut mirrored = Vec::new();
    let mut values = Vec::new();
    let mut flipped: Vec<f32> = Vec::new();
    for start in (0..images).step_by(embedder.max_batch()) {
        let count = embedder.max_batch().min(images - start);
        set.read(
            start,
            count,
            options.ccrop,
            options.channel_order,
            &mut values,
        )?;
        if options.tta.needs_flip() {
            flipped.clone_from(&values);
            flip(&mut flipped, side);
            mirrored.extend(embedder.embed_unit_values(&mut flipped)?);
        }
        plain.extend(embedder.embed_unit_values(&mut values)?);
        progress(count);
    }
    let judged = || {
        let unit = verification::combine(&plain, &mirrored, dim, options.tta)?;
        let distances = verification::pair_distances(&unit, unit.len() / images.max(1))?;
        Ok((verification::verify(&distances, set.same())?, distances))
    };
    let (verification, distances) =
        judged().map_err(|e: Error| Error::data(&set.files.array, e.to_string()))?;
    Ok(Evaluation {
        result: SetResult {
            name: set.name().to_owned(),
            verification,
        },
        distances,
    })
}

/// Up to `count` pairs of each verdict under the mean threshold, the farthest from it first, with their pictures.
///
/// # Errors
/// A picture cannot be read.
pub fn pair_pictures(
    set: &mut EvalSet,
    evaluation: &Evaluation,
    count: usize,
) -> Result<Vec<PairPicture>> {
    let threshold = evaluation.result.verification.threshold;
    let distances = &evaluation.distances;
    let mut pictures = Vec::new();
    for verdict in Verdict::ALL {
        for pair in verification::examples(distances, &set.same, threshold, verdict, count) {
            pictures.push(PairPicture {
                images: [set.picture(2 * pair)?, set.picture(2 * pair + 1)?],
                pair,
                distance: distances[pair],
                verdict,
            });
        }
    }
    Ok(pictures)
}

/// Writes an evaluation set of pairs from a data set, as float32: `dir/name` and `dir/name_list.npy`. A set of that name
/// that is there is replaced. `progress` is told of pictures done since the last call.
///
/// # Errors
/// A picture cannot be read or is not `side` x `side`, or a file cannot be written.
///
/// # Panics
/// If `side` is 0 or a pair names an image that `dataset` does not have.
pub fn write_set(
    dir: &Path,
    name: &str,
    dataset: &dyn Dataset,
    pairs: &[(usize, usize, bool)],
    side: usize,
    progress: &mut dyn FnMut(usize),
) -> Result<SetFiles> {
    fs::create_dir_all(dir).map_err(Error::io("creating the folder", dir))?;
    let files = SetFiles {
        name: name.to_owned(),
        array: dir.join(name),
    };
    let mut writer = CarrayWriter::create(&files.array, &[3, side, side])?;
    let mut image = Image::default();
    let mut row = vec![0.0; 3 * side * side];
    for &(first, second, _) in pairs {
        for index in [first, second] {
            dataset.read(index, &mut image)?;
            if (image.width, image.height) != (side, side) {
                return Err(Error::Invalid(format!(
                    "{}: expected a picture of {side}x{side} pixels for an evaluation set, found {}x{}",
                    dataset.describe(index),
                    image.width,
                    image.height
                )));
            }
            swap_red_blue(&mut image.pixels);
            for (i, pixel) in image.pixels.as_chunks::<3>().0.iter().enumerate() {
                for (c, &x) in pixel.iter().enumerate() {
                    row[c * side * side + i] = (f32::from(x) / 255.0 - 0.5) / 0.5;
                }
            }
            writer.push(&row)?;
        }
        progress(2);
    }
    writer.finish()?;
    let same: Vec<bool> = pairs.iter().map(|p| p.2).collect();
    npy::write(
        &files.list(),
        &Npy {
            shape: vec![same.len()],
            elements: Elements::Bool(same),
        },
    )?;
    Ok(files)
}
