//! Landmarks: files that name five points of the face in each picture.
//!
//! Text, a line for each picture, the fields between tabs or spaces:
//!
//! | line | meaning |
//! |---|---|
//! | `Jane/1.jpg 69 109 106 113 77 142 73 152 108 154` | the path, and x and y of the left eye, the right eye, the tip of the nose, the left and the right corner of the mouth; a path may hold spaces |
//! | `202599`, a number alone | CelebA's first line |
//! | `lefteye_x lefteye_y ...` | a heading, in the first line or behind that number, which names the columns; it may leave out that of the path |
//! | empty, or `# remark` | |
//!
//! CSV, the same between commas, fields in quotes or not. A heading names the points `lefteye`, `left_eye`, ... or by
//! number (`x1`, `P1X`, `landmark_0_x`, ...), in any order; other columns are not used.
//!
//! JSON, an object `{path: points}`, or a list of objects, or one object a line, with the path under `file`, `path`,
//! `name`, `image`, ... and the points under `landmarks`, `points`, `keypoints`, `kps`, or beside it. Points are five
//! lists `[x, y]`, ten numbers, or an object `{"left_eye": [x, y], ...}`.
//!
//! Ten numbers that nothing names are x and y of each point in turn. MTCNN writes all x and then all y; a file whose faces
//! look like faces only in that order is refused.
//!
//! Left and right are those of the picture. `\` parts folders as `/` does, and a path may leave out its ending, as in
//! VGGFace2's lists.

mod json;
mod table;

use crate::base::text::{count, grouped};
use crate::data::formats::text::Text;
use crate::data::picture;
use crate::data::picture::align::{Points, Similarity, TEMPLATE, likeness, sides_exchanged};
use crate::data::unused::{Reason, Unused};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// What points are called, left and right as in the picture.
const NAMES: [&[&str]; 5] = [
    &["lefteye", "eyeleft"],
    &["righteye", "eyeright"],
    &["nose", "nosetip"],
    &[
        "leftmouth",
        "mouthleft",
        "leftmouthcorner",
        "mouthleftcorner",
    ],
    &[
        "rightmouth",
        "mouthright",
        "rightmouthcorner",
        "mouthrightcorner",
    ],
];

/// What the path of a picture is called.
const PATHS: [&str; 9] = [
    "file",
    "filename",
    "path",
    "filepath",
    "name",
    "nameid",
    "image",
    "imageid",
    "imagename",
];

/// Points that are less like a face than this have another order, or exchanged sides.
const LIKENESS: f64 = 0.5;

/// How the order of a picture's ten numbers is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    /// The file names or pairs them.
    Said,
    /// x and y in turn, since nothing is said.
    Assumed,
}

/// No picture is as wide.
const LARGEST: f64 = 1e6;

/// A name in lower case, letters and digits only.
fn plain(name: &str) -> String {
    let letters = name.chars().filter(|c| c.is_alphanumeric());
    letters.flat_map(char::to_lowercase).collect()
}

/// The point of a plain name.
fn point_of(name: &str) -> Option<usize> {
    NAMES.iter().position(|names| names.contains(&name))
}

/// The landmarks of many pictures.
#[derive(Debug)]
pub struct Landmarks {
    path: PathBuf,
    /// Paths as they are compared, in the order of the file.
    names: Vec<String>,
    points: Vec<Points>,
    places: HashMap<String, u32>,
    unlike: Unlike,
    /// Faces whose numbers are in an assumed order, and those of them that look more like one if all x come first.
    assumed: usize,
    x_first: usize,
}

/// Faces whose points do not look like one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unlike {
    /// How many there are.
    pub count: usize,
    /// The first one's picture.
    pub first: String,
}

/// Whether numbers that were taken for x and y in turn make a better face as all x, then all y. Exchanged sides are another
/// mistake. Of 20,000 random faces, up to 80 degrees in profile, none was taken wrongly for one of the other order, and 3 %
/// of those in the other order were missed.
fn is_x_first(points: &Points) -> bool {
    let mut other = Points::default();
    for (i, &number) in points.iter().flatten().enumerate() {
        other[i % 5][i / 5] = number;
    }
    let like = |points: &Points| likeness(points).max(likeness(&sides_exchanged(points)));
    like(&other) > like(points)
}

/// A path with `/` between folders, and without `./` in front.
fn key(name: &str) -> String {
    let name = name.replace('\\', "/");
    name.trim_start_matches("./").to_owned()
}

impl Landmarks {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, a line or an entry is malformed, its points are not finite or all one, a picture is named
    /// twice, there is none, or most faces have another order of numbers.
    pub fn open(path: &Path) -> Result<Self> {
        let text = Text::read(path)?;
        let mut landmarks = Landmarks {
            path: path.into(),
            names: Vec::new(),
            points: Vec::new(),
            places: HashMap::new(),
            unlike: Unlike::default(),
            assumed: 0,
            x_first: 0,
        };
        let is_json = matches!(
            text.as_str().trim_start().as_bytes().first(),
            Some(b'{' | b'[')
        );
        match is_json {
            true => json::read(&text, &mut landmarks)?,
            false => table::read(&text, &mut landmarks)?,
        }
        if 2 * landmarks.x_first > landmarks.assumed {
            let remedy = match is_json {
                true => "write the points as five lists [x, y]",
                false => "say so in a first line: path x1 x2 x3 x4 x5 y1 y2 y3 y4 y5",
            };
            return Err(Error::data(
                path,
                format!(
                    "gives all x before all y, as MTCNN does, for {} of {}, and without names x and y are expected in turn; \
                     {remedy}",
                    grouped(landmarks.x_first as u64),
                    count(landmarks.assumed, "face")
                ),
            ));
        }
        if landmarks.names.is_empty() {
            return Err(Error::data(path, "holds no landmarks"));
        }
        Ok(landmarks)
    }

    /// The error for a line or an entry that begins at byte `at`.
    fn bad(&self, at: u64, line: usize, found: &str) -> Error {
        Error::malformed(
            &self.path,
            at,
            "a picture's path and five points of its face",
            format!("in line {line} {found}"),
        )
    }

    /// Takes a picture's points, which stand in line `line`, from byte `at`.
    fn add(
        &mut self,
        at: u64,
        line: usize,
        name: &str,
        (points, order): (Points, Order),
    ) -> Result<()> {
        let numbers = || points.iter().flatten();
        if let Some(number) = numbers().find(|x| !x.is_finite() || x.abs() > LARGEST) {
            return Err(self.bad(at, line, &format!("the coordinate {number} for {name:?}")));
        }
        if Similarity::fit(&points, &TEMPLATE).is_none() {
            return Err(self.bad(at, line, &format!("five times the same point for {name:?}")));
        }
        let key = key(name);
        if key.is_empty() {
            return Err(self.bad(at, line, "no path"));
        }
        let place = self.names.len() as u32;
        if self.places.insert(key.clone(), place).is_some() {
            return Err(self.bad(at, line, &format!("{name:?} for the second time")));
        }
        if order == Order::Assumed {
            self.assumed += 1;
            self.x_first += usize::from(is_x_first(&points));
        }
        if likeness(&points) < LIKENESS {
            if self.unlike.count == 0 {
                self.unlike.first.clone_from(&key);
            }
            self.unlike.count += 1;
        }
        self.names.push(key);
        self.points.push(points);
        Ok(())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many pictures it names.
    pub fn len(&self) -> usize {
        self.names.len()
    }

    /// Whether it names none; then it cannot be opened.
    pub fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// The first name in it.
    pub fn first(&self) -> &str {
        &self.names[0]
    }

    /// The faces that do not look like one, most likely since points stand in another order.
    pub fn unlike(&self) -> &Unlike {
        &self.unlike
    }

    /// The place of the picture called `name`, for [`points`](Self::points).
    pub fn find(&self, name: &str) -> Option<u32> {
        let key = key(name);
        let found = self.places.get(&key).copied();
        found.or_else(|| {
            let (stem, ending) = key.rsplit_once('.')?;
            let stem = picture::is_extension(ending).then_some(stem)?;
            self.places.get(stem).copied()
        })
    }

    /// The place of a picture in a file of its own, which a data set calls `name`: it is looked for by that name, by its
    /// path, and by its path from the folder of these landmarks.
    pub fn find_file(&self, name: &str, path: &Path) -> Option<u32> {
        let folder = self.path.parent().unwrap_or(Path::new(""));
        let below = path.strip_prefix(folder).ok();
        let by_path = || self.find(&path.to_string_lossy());
        let by_place = || self.find(&below?.to_string_lossy());
        self.find(name).or_else(by_path).or_else(by_place)
    }

    /// The points at a place.
    pub fn points(&self, place: u32) -> &Points {
        &self.points[place as usize]
    }

    /// The lines that are for none of the pictures at `used`.
    pub fn unused(&self, used: impl IntoIterator<Item = u32>) -> Unused {
        let mut is_used = vec![false; self.names.len()];
        for place in used {
            is_used[place as usize] = true;
        }
        let mut unused = Unused::default();
        for (name, _) in self.names.iter().zip(is_used).filter(|(_, used)| !used) {
            unused.add(Reason::LandmarksOfNoPicture, &name[..]);
        }
        unused
    }
}

#[cfg(test)]
mod tests;
