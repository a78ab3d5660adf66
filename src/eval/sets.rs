//! Evaluation sets as they are found on disk, and read picture by picture: carrays, `.bin` files, pairs files.

use super::ChannelOrder;
use crate::base::exchange::settled;
use crate::base::files::start_of;
use crate::base::text::shown;
use crate::data::Image;
use crate::data::formats::bcolz::{Carray, ElementType};
use crate::data::formats::bin::{self, Bin};
use crate::data::formats::pairs::Pairs;
use crate::data::picture::{resize, resize_centre_crop_planes, resize_plane};
use crate::encoding::npy;
use crate::{Error, Result};
use image::RgbImage;
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The sets that are evaluated where none is named, as far as they are there.
pub const DEFAULT_SETS: [&str; 3] = ["lfw", "agedb_30", "cfp_fp"];

/// `ccrop` enlarges a picture of 112 pixels to this size before it takes the middle.
const CCROP: (usize, usize) = (112, 128);

/// The forms of an evaluation set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SetKind {
    /// A bcolz carray of pictures, with truth values beside it.
    Carray,
    /// InsightFace's pickle of image files and truth values.
    Bin,
    /// A text file that names pairs of image files.
    Pairs,
}

/// Where an evaluation set lies.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SetFiles {
    /// The set's name: that of its folder or file, without the ending.
    pub name: String,
    /// The folder of the carray, or the file.
    pub path: PathBuf,
    /// What is there.
    pub kind: SetKind,
}

impl SetFiles {
    /// The set that is at `path`, if one is.
    fn at(path: &Path) -> Option<Self> {
        let (name, kind) = if path.is_dir() {
            let carray = path.join("meta").join("sizes").is_file();
            (path.file_name(), carray.then_some(SetKind::Carray)?)
        } else {
            let ending = path.extension()?;
            // Weights end in .bin, too.
            let bin = ending.eq_ignore_ascii_case("bin") && starts_as_bin(path);
            (path.file_stem(), bin.then_some(SetKind::Bin)?)
        };
        Some(SetFiles {
            name: name?.to_string_lossy().into_owned(),
            path: path.into(),
            kind,
        })
    }

    /// The file of truth values beside a carray's folder.
    pub fn list(&self) -> PathBuf {
        self.path.with_file_name(format!("{}_list.npy", self.name))
    }
}

/// One that cannot be read is not passed over: opening it says why.
fn starts_as_bin(path: &Path) -> bool {
    start_of(path).map_or(true, |start| bin::is_bin(&start))
}

/// Finds evaluation sets: `data` itself, or what lies in it (`data/NAME`, `data/NAME.bin`) and in the folders in it
/// (`data/lfw_align_112/lfw`). A pairs file (`.txt`, `.tsv`, `.lst`) must be named itself. With no names given: of [`DEFAULT_SETS`] those that are there; where there is none of them, all.
/// Of a carray and a `.bin` side by side, which `pack` made the one of the other, the carray counts.
///
/// # Errors
/// A set that is asked for is not there or is there twice; there is no set at all.
pub fn find(data: &Path, names: Option<&[String]>) -> Result<Vec<SetFiles>> {
    let mut all = all_sets(data)?;
    let carrays: Vec<PathBuf> = (all.iter())
        .filter(|set| set.kind == SetKind::Carray)
        .map(|set| set.path.clone())
        .collect();
    all.retain(|set| set.kind != SetKind::Bin || !carrays.contains(&set.path.with_extension("")));
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
            (Some(a), Some(b)) => Err(twice(data, a, b)),
            (first, _) => Ok(first.cloned()),
        }
    };
    let Some(names) = names else {
        let default: Vec<Option<SetFiles>> =
            DEFAULT_SETS.into_iter().map(one).collect::<Result<_>>()?;
        let default: Vec<SetFiles> = default.into_iter().flatten().collect();
        return if default.is_empty() {
            each_once(data, all)
        } else {
            Ok(default)
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

/// Finds every evaluation set that [`find`] looks for, whatever its name.
///
/// # Errors
/// There is none, or two have one name.
pub fn find_all(data: &Path) -> Result<Vec<SetFiles>> {
    each_once(data, all_sets(data)?)
}

fn each_once(data: &Path, all: Vec<SetFiles>) -> Result<Vec<SetFiles>> {
    if all.is_empty() {
        return Err(Error::data(
            data,
            "holds no evaluation set (a bcolz carray in a folder NAME, with NAME_list.npy beside it, \
             for example lfw_align_112/lfw and lfw_align_112/lfw_list.npy; or InsightFace's NAME.bin)",
        ));
    }
    for (i, set) in all.iter().enumerate() {
        if let Some(before) = all[..i].iter().find(|before| before.name == set.name) {
            return Err(twice(data, before, set));
        }
    }
    Ok(all)
}

fn twice(data: &Path, a: &SetFiles, b: &SetFiles) -> Error {
    Error::data(
        data,
        format!(
            "holds the set {} twice, in {} and {}; name one of them itself",
            a.name,
            shown(&a.path),
            shown(&b.path)
        ),
    )
}

/// Every set at most two folders deep, by path.
fn all_sets(data: &Path) -> Result<Vec<SetFiles>> {
    let full = fs::canonicalize(data).map_err(Error::io("opening", data))?;
    // A link's own name counts; but "." has a name, too.
    let named = data.file_name().map_or(full.as_path(), |_| data);
    settled(named)?;
    if let Some(set) = SetFiles::at(named) {
        return Ok(vec![set]);
    }
    if !data.is_dir() {
        return text_file(data).map(|set| vec![set]);
    }
    let mut sets = Vec::new();
    for path in entries(data)? {
        match SetFiles::at(&path) {
            Some(set) => sets.push(set),
            None if path.is_dir() => {
                let inner = entries(&path)?;
                sets.extend(inner.iter().filter_map(|path| SetFiles::at(path)));
            }
            None => {}
        }
    }
    Ok(sets)
}

/// The pairs file at `path`.
fn text_file(path: &Path) -> Result<SetFiles> {
    let text = path.extension().is_some_and(|ending| {
        ["txt", "tsv", "lst", "list"]
            .into_iter()
            .any(|e| ending.eq_ignore_ascii_case(e))
    });
    match path.file_stem() {
        Some(stem) if text => Ok(SetFiles {
            name: stem.to_string_lossy().into_owned(),
            path: path.into(),
            kind: SetKind::Pairs,
        }),
        _ => Err(Error::data(
            path,
            "is no evaluation set: expected a folder, a .bin file that is a pickle, or a pairs file (.txt)",
        )),
    }
}

/// What is in a folder, by name. Hidden names are left out: a set that is being written has one.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    settled(dir)?;
    let io = || Error::io("listing the folder", dir);
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).map_err(io())? {
        let entry = entry.map_err(io())?;
        if !entry.file_name().to_string_lossy().starts_with('.') {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Where a set's pictures come from.
#[derive(Debug)]
enum Pictures {
    Carray(Carray),
    Bin(Bin),
    Pairs(Pairs),
}

impl Pictures {
    /// Reads pictures as a carray stores them: CHW, blue first. Tells whether values go from 0 to 255, or from -1 to 1.
    fn read_rows(
        &mut self,
        start: usize,
        count: usize,
        side: usize,
        rows: &mut Vec<f32>,
        resized: &mut BTreeSet<usize>,
    ) -> Result<bool> {
        if let Pictures::Carray(array) = self {
            array.read_rows(start, count, rows)?;
            let stored = array.shape()[2];
            if stored != side {
                resized.extend(start..start + count);
                *rows = (rows.chunks_exact(stored * stored))
                    .flat_map(|plane| resize_plane(plane, stored, side))
                    .collect();
            }
            return Ok(array.element_type() == ElementType::U8);
        }
        rows.clear();
        let mut image = Image::default();
        for index in start..start + count {
            self.read_file(index, &mut image)?;
            if (image.width, image.height) != (side, side) {
                image = resize(&image, side, side);
                resized.insert(index);
            }
            for channel in [2, 1, 0] {
                let values = image.pixels.iter().skip(channel).step_by(3);
                rows.extend(values.map(|&x| f32::from(x)));
            }
        }
        Ok(true)
    }

    /// Decodes an image file; a carray has none.
    fn read_file(&self, index: usize, image: &mut Image) -> Result<()> {
        match self {
            Pictures::Carray(_) => Ok(()),
            Pictures::Bin(bin) => bin.read(index, image),
            Pictures::Pairs(pairs) => pairs.read(index, image),
        }
    }
}

/// An evaluation set, read from its files piece by piece.
#[derive(Debug)]
pub struct EvalSet {
    files: SetFiles,
    pictures: Pictures,
    same: Vec<bool>,
    side: usize,
    /// Pictures that were read and had another size.
    resized: BTreeSet<usize>,
    /// A block of rows as they are stored, and one picture enlarged and cropped.
    rows: Vec<f32>,
    cropped: Vec<f32>,
}

impl EvalSet {
    /// Opens the set's files. The pictures that a pairs file names lie below `image_root`, or below its own folder.
    ///
    /// # Errors
    /// One of them cannot be read, a carray's pictures are not square, or there are not two a truth value.
    pub fn open(files: &SetFiles, image_root: Option<&Path>) -> Result<Self> {
        let (pictures, same, side) = match files.kind {
            SetKind::Carray => {
                let (array, same, side) = open_carray(files)?;
                (Pictures::Carray(array), same, side)
            }
            SetKind::Bin => {
                let bin = Bin::open(&files.path)?;
                let same = bin.same().to_vec();
                let pictures = Pictures::Bin(bin);
                let side = first_side(files, &pictures, &same)?;
                (pictures, same, side)
            }
            SetKind::Pairs => {
                let pairs = Pairs::open(&files.path, image_root)?;
                let same = pairs.same().to_vec();
                let pictures = Pictures::Pairs(pairs);
                let side = first_side(files, &pictures, &same)?;
                (pictures, same, side)
            }
        };
        Ok(EvalSet {
            files: files.clone(),
            pictures,
            same,
            side,
            resized: BTreeSet::new(),
            rows: Vec::new(),
            cropped: Vec::new(),
        })
    }

    /// Where the set lies.
    pub fn files(&self) -> &SetFiles {
        &self.files
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

    /// Width and height of a picture as it is read: the first one's width, or what was asked for.
    pub fn side(&self) -> usize {
        self.side
    }

    /// Resizes every picture of another size to `side` x `side` pixels from now on, as training and embedding do.
    pub fn resize_to(&mut self, side: usize) {
        self.side = side;
        self.resized.clear();
    }

    /// How many of the pictures that were read had another size.
    pub fn resized(&self) -> usize {
        self.resized.len()
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
                &self.files.path,
                format!(
                    "ccrop is defined for pictures of {} pixels, these have {}",
                    CCROP.0, self.side
                ),
            ));
        }
        self.unit_rows(start, count)?;
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

    /// Fills `self.rows` with numbers in [0, 1], CHW, blue first.
    fn unit_rows(&mut self, start: usize, count: usize) -> Result<()> {
        let bytes =
            self.pictures
                .read_rows(start, count, self.side, &mut self.rows, &mut self.resized)?;
        if bytes {
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
                &self.files.path,
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

    /// Picture `index` as a carray of floating-point numbers stores it, in `row` (replaced): CHW, blue first, in [-1, 1].
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn stored(&mut self, index: usize, row: &mut Vec<f32>) -> Result<()> {
        self.unit_rows(index, 1)?;
        row.clear();
        row.extend(self.rows.iter().map(|x| (x - 0.5) / 0.5));
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

fn open_carray(files: &SetFiles) -> Result<(Carray, Vec<bool>, usize)> {
    let array = Carray::open(&files.path)?;
    let same = npy::read_bools(&files.list())?;
    let side = match *array.shape() {
        [_, 3, h, w] if h == w => h,
        _ => {
            return Err(Error::data(
                &files.path,
                format!(
                    "expected pictures of shape (2M, 3, S, S), found an array of shape {:?}",
                    array.shape()
                ),
            ));
        }
    };
    if array.rows() % 2 != 0 || array.rows() / 2 != same.len() {
        return Err(Error::data(
            &files.path,
            format!(
                "holds {} pictures, and {} has truth values for {} pairs; expected two pictures a pair",
                array.rows(),
                shown(files.list()),
                same.len()
            ),
        ));
    }
    Ok((array, same, side))
}

/// The width of the first picture: what all are resized to, where nothing else is asked for.
fn first_side(files: &SetFiles, pictures: &Pictures, same: &[bool]) -> Result<usize> {
    if same.is_empty() {
        return Err(Error::data(&files.path, "holds no pair"));
    }
    let mut image = Image::default();
    pictures.read_file(0, &mut image)?;
    Ok(image.width)
}
