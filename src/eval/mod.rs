//! Verification accuracy of a network on evaluation sets.
//!
//! A set is one of three, images 2k and 2k+1 being pair k:
//!
//! - a bcolz carray of shape (2M, 3, S, S), CHW, channels blue, green, red, in a folder of the set's name, and beside that
//!   folder `NAME_list.npy`, M truth values; floating-point arrays hold (x/255 - 0.5) / 0.5, uint8 arrays x itself;
//! - InsightFace's `NAME.bin`, a pickle of image files and truth values ([`bin`](crate::data::formats::bin));
//! - a text file of pairs of image files ([`pairs`](crate::data::formats::pairs)).
//!
//! [`find`] looks for sets, [`evaluate`] judges a network on one, [`report`] shows what came of it. Pictures are read in blocks of a batch, so memory does not grow with it; what grows are the embeddings.

pub mod report;
mod sets;

pub use sets::{DEFAULT_SETS, EvalSet, SetFiles, SetKind, find, find_all};

use crate::backend::Backend;
use crate::base::changes::flip;
use crate::base::exchange::Exchange;
use crate::data::formats::bcolz::CarrayWriter;
use crate::data::picture::swap_red_blue;
use crate::data::{Dataset, Image};
use crate::embedder::Embedder;
use crate::encoding::npy::{self, Elements, Npy};
use crate::report::pairs::PairPicture;
use crate::verification::{self, SetResult, Tta, Verdict};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

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

/// The result of evaluating a set, with what tells of each pair.
#[derive(Clone, Debug, PartialEq)]
pub struct Evaluation {
    /// The set's name and numbers.
    pub result: SetResult,
    /// The squared distance of each pair's unit embeddings.
    pub distances: Vec<f64>,
}

/// Embeds the pictures of `set`, resized to what the network takes, and judges its pairs. `progress` gets the number of pictures done since
/// the last call; an error of its own ends the evaluation.
///
/// # Errors
/// The set cannot be read, a device fails, the embeddings are not finite or all equal, the pairs are too few, or
/// `progress` says so.
pub fn evaluate<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    set: &mut EvalSet,
    options: &EvalOptions,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Evaluation> {
    let outputs = embed_set(embedder, set, options, options.tta.needs_flip(), progress)?;
    judge(set, &outputs, options.tta)
}

/// As [`evaluate`], under each of [`Tta::ALL`] in turn instead of the one in `options`: all of them come from the same two
/// passes over the network.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_all<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    set: &mut EvalSet,
    options: &EvalOptions,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<[Evaluation; 3]> {
    let outputs = embed_set(embedder, set, options, true, progress)?;
    let [none, sum, concat] = Tta::ALL.map(|tta| judge(set, &outputs, tta));
    Ok([none?, sum?, concat?])
}

/// What the network answers for the pictures of a set and for their mirror images: rows of `dim` numbers each.
struct Outputs {
    plain: Vec<f32>,
    /// Empty where nobody needs them.
    mirrored: Vec<f32>,
    dim: usize,
}

fn embed_set<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    set: &mut EvalSet,
    options: &EvalOptions,
    mirror: bool,
    progress: &mut dyn FnMut(usize) -> Result<()>,
) -> Result<Outputs> {
    let side = embedder.image_size();
    set.resize_to(side);
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
        if mirror {
            flipped.clone_from(&values);
            flip(&mut flipped, side);
            mirrored.extend(embedder.embed_unit_values(&mut flipped)?);
        }
        plain.extend(embedder.embed_unit_values(&mut values)?);
        progress(count)?;
    }
    Ok(Outputs {
        plain,
        mirrored,
        dim,
    })
}

fn judge(set: &EvalSet, outputs: &Outputs, tta: Tta) -> Result<Evaluation> {
    let judged = || {
        let unit = verification::combine(&outputs.plain, &outputs.mirrored, outputs.dim, tta)?;
        let distances = verification::pair_distances(&unit, unit.len() / set.images().max(1))?;
        Ok((verification::verify(&distances, set.same())?, distances))
    };
    let (verification, distances) =
        judged().map_err(|e: Error| Error::data(&set.files().path, e.to_string()))?;
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
        for pair in verification::examples(distances, set.same(), threshold, verdict, count) {
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
    let mut new = NewSet::begin(dir, name, side)?;
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
            new.array.push(&row)?;
        }
        progress(2);
    }
    new.finish(pairs.iter().map(|p| p.2).collect())
}

/// Writes what any evaluation set holds as a carray of float32: `dir/NAME` and `dir/NAME_list.npy`. A set of that name that
/// is there is replaced. `progress` is told of pictures done since the last call.
///
/// # Errors
/// A picture cannot be read, or a file cannot be written.
pub fn convert_set(
    set: &mut EvalSet,
    dir: &Path,
    progress: &mut dyn FnMut(usize),
) -> Result<SetFiles> {
    let mut new = NewSet::begin(dir, set.name(), set.side())?;
    let mut row = Vec::new();
    for index in 0..set.images() {
        set.stored(index, &mut row)?;
        new.array.push(&row)?;
        progress(1);
    }
    new.finish(set.same().to_vec())
}

/// An evaluation set that is being written: an array and its list, which appear together.
struct NewSet {
    exchange: Exchange,
    files: SetFiles,
    array: CarrayWriter,
}

impl NewSet {
    /// Begins a set of pictures of `side` pixels. A set of that name that is there is replaced at the end.
    fn begin(dir: &Path, name: &str, side: usize) -> Result<Self> {
        let files = SetFiles {
            name: name.to_owned(),
            path: dir.join(name),
            kind: SetKind::Carray,
        };
        // First: it may finish what an earlier run had begun.
        let exchange = Exchange::begin(dir, "packing")?;
        if files.path.exists() && !files.path.join("meta/sizes").is_file() {
            return Err(Error::data(
                files.path,
                "is there already and is not a carray; remove it first",
            ));
        }
        let array = CarrayWriter::create(&exchange.path(name), &[3, side, side])?;
        Ok(NewSet {
            exchange,
            files,
            array,
        })
    }

    fn finish(self, same: Vec<bool>) -> Result<SetFiles> {
        self.array.finish()?;
        let list = self.files.list();
        let name = list.file_name().unwrap_or_default().to_string_lossy();
        npy::write(
            &self.exchange.path(&name),
            &Npy {
                shape: vec![same.len()],
                elements: Elements::Bool(same),
            },
        )?;
        self.exchange.commit(&[])?;
        Ok(self.files)
    }
}
