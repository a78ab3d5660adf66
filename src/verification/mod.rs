//! Face verification: are two pictures of the same person?
//!
//! Pure arithmetic on embeddings or distances. The protocol is LFW's, as the scripts of FaceNet, InsightFace and the
//! TensorFlow projects compute it:
//!
//! - Images 2k and 2k+1 are pair k. Its distance is the squared L2 distance of the two *unit* embeddings, in
//!   [0, 4], which is 2 - 2 cos.
//! - The thresholds are i * 0.01 for i in 0..400, and a pair is taken for the same person when distance < threshold.
//! - Ten folds without shuffling, cut as scikit-learn's `KFold` cuts them: the first (pairs mod 10) folds are one
//!   pair longer. On nine folds the *first* threshold with the highest accuracy is chosen and scored on the tenth.
//!
//! Beside it stand the numbers that do not depend on folds: the area under the ROC curve, the equal error rate and
//! the share of genuine pairs accepted (TAR) at a given share of impostor pairs accepted (FAR). [`curves`] gives what a
//! report shows besides: intervals of confidence, the curve itself, the histograms of distances.
//!
//! Normalisation, distances and sums are f64. The scripts sum in f32; the two differ by about 1e-7, so a decision
//! could differ only for a pair that close to a threshold. One histogram of distances per fold serves every
//! threshold, so the cost is O(pairs log pairs), from the sort for the ROC curve.

mod interval;
mod roc;

pub use interval::{CONFIDENCE, wilson};
pub use roc::{Curves, Histogram, OperatingPoint, curves};

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::base::error::{Error, Result};
use roc::Roc;

/// The number of folds.
pub const FOLDS: usize = 10;

/// The number of thresholds: 0, 0.01 .. 3.99.
pub const THRESHOLDS: usize = 400;

/// The false accept rates at which the true accept rate is reported, with their names in results.
const FALSE_ACCEPT_RATES: [(&str, f64); 4] = [
    ("1e-1", 1e-1),
    ("1e-2", 1e-2),
    ("1e-3", 1e-3),
    ("1e-4", 1e-4),
];

/// Unit embeddings whose squared distances to the first are all at most this are one point with rounding noise.
const COLLAPSED: f64 = 1e-10;

/// Test-time augmentation: how the embeddings of an image and of its mirror image become one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tta {
    /// The image alone.
    None,
    /// The sum f(x) + f(flip x), normalised.
    #[default]
    FlipSum,
    /// Both normalised, one after the other, and divided by sqrt(2): a unit vector of twice the length, whose
    /// squared distances are the mean of the two halves'.
    FlipConcat,
}

impl Tta {
    /// Every one.
    pub const ALL: [Tta; 3] = [Tta::None, Tta::FlipSum, Tta::FlipConcat];

    /// Whether the mirror image has to be embedded.
    pub fn needs_flip(self) -> bool {
        self != Tta::None
    }

    /// The length of a row of [`combine`], of embeddings of `dim` numbers.
    pub fn row_length(self, dim: usize) -> usize {
        dim * if self == Tta::FlipConcat { 2 } else { 1 }
    }
}

impl fmt::Display for Tta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Tta::None => "none",
            Tta::FlipSum => "flip-sum",
            Tta::FlipConcat => "flip-concat",
        })
    }
}

impl FromStr for Tta {
    type Err = Error;

    fn from_str(s: &str) -> Result<Self> {
        match s {
            "none" => Ok(Tta::None),
            "flip-sum" => Ok(Tta::FlipSum),
            "flip-concat" => Ok(Tta::FlipConcat),
            _ => Err(Error::Usage(format!(
                "\"{s}\" is no test-time augmentation: expected none, flip-sum or flip-concat"
            ))),
        }
    }
}

/// One fold's result.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fold {
    /// The share of this fold's pairs judged rightly, 0..1.
    pub accuracy: f64,
    /// The threshold that the other nine folds chose, a squared distance.
    pub threshold: f64,
}

/// The result of verifying one set of pairs. Rates are fractions, 0..1.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Verification {
    /// The number of pairs.
    pub pairs: usize,
    /// The number of pairs of different people. A false accept rate below 1 / `impostor_pairs` cannot be told from
    /// zero; the `tar` there is that at no false accept at all.
    pub impostor_pairs: usize,
    /// The mean accuracy over the folds.
    pub accuracy: f64,
    /// The population standard deviation of the accuracy over the folds (numpy's default).
    pub accuracy_std: f64,
    /// The mean of the folds' thresholds, a squared distance.
    pub threshold: f64,
    /// The area under the ROC curve: the probability that a genuine pair is closer than an impostor pair, ties
    /// counting half.
    pub auc: f64,
    /// The equal error rate: where false accepts and false rejects are equally frequent, interpolated linearly
    /// between the two neighbouring distances.
    pub eer: f64,
    /// The highest true accept rate whose false accept rate is at most the key ("1e-1" .. "1e-4"), not interpolated.
    pub tar: BTreeMap<String, f64>,
    /// The threshold of each `tar`: at smaller squared distances the false accept rate is at most the key. Results of
    /// earlier versions have none.
    #[serde(default)]
    pub far_threshold: BTreeMap<String, f64>,
    /// The folds, in order.
    pub folds: Vec<Fold>,
}

/// A [`Verification`] with the name of its set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SetResult {
    /// The set's name, such as "lfw".
    pub name: String,
    /// Its numbers, beside the name in JSON.
    #[serde(flatten)]
    pub verification: Verification,
}

/// What `eval --json` writes: `{"sets": [{"name", "pairs", "accuracy", ...}], "tta": ..., "weights": ..., "ccrop": ...}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// One entry per set, in the order in which they were evaluated.
    pub sets: Vec<SetResult>,
    /// How mirror images were used. The thresholds hold only for that.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub tta: Option<Tta>,
    /// The fingerprint of the weights that were evaluated.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weights: Option<String>,
    /// Whether pictures were enlarged and cropped. The thresholds hold only for that.
    #[serde(default)]
    pub ccrop: bool,
}

/// What a threshold made of a pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Different people taken for one.
    FalseAccept,
    /// One person taken for two.
    FalseReject,
    /// One person, recognised.
    RightAccept,
    /// Different people, told apart.
    RightReject,
}

impl Verdict {
    /// Every verdict, the wrong ones first.
    pub const ALL: [Verdict; 4] = [
        Verdict::FalseAccept,
        Verdict::FalseReject,
        Verdict::RightAccept,
        Verdict::RightReject,
    ];

    /// The verdict on a pair at `distance` under `threshold`, both squared distances.
    pub fn of(distance: f64, threshold: f64, same: bool) -> Self {
        match (distance < threshold, same) {
            (true, false) => Verdict::FalseAccept,
            (false, true) => Verdict::FalseReject,
            (true, true) => Verdict::RightAccept,
            (false, false) => Verdict::RightReject,
        }
    }

    /// Whether it is the truth.
    pub fn is_right(self) -> bool {
        matches!(self, Verdict::RightAccept | Verdict::RightReject)
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verdict::FalseAccept => "false accept",
            Verdict::FalseReject => "false reject",
            Verdict::RightAccept => "right accept",
            Verdict::RightReject => "right reject",
        })
    }
}

/// Up to `count` pairs with this verdict, farthest from the threshold first: the worst errors, the clearest successes.
/// Equally far pairs keep their order.
pub fn examples(
    distances: &[f64],
    same: &[bool],
    threshold: f64,
    verdict: Verdict,
    count: usize,
) -> Vec<usize> {
    let far = |k: &usize| (distances[*k] - threshold).abs();
    let mut found: Vec<usize> = (0..distances.len().min(same.len()))
        .filter(|&k| Verdict::of(distances[k], threshold, same[k]) == verdict)
        .collect();
    found.sort_by(|a, b| far(b).total_cmp(&far(a)));
    found.truncate(count);
    found
}

/// Combines the embeddings `f` of n images with the embeddings `f_flip` of their mirror images.
///
/// Both are n x `dim`, row-major, of any length but zero; `f_flip` is not read (and may be empty) under [`Tta::None`].
/// The result is n x `dim`, or n x 2 `dim` for [`Tta::FlipConcat`], each row a unit vector.
///
/// # Errors
/// Where the lengths do not fit, or a row is not finite or has no direction; the row is named.
pub fn combine(f: &[f32], f_flip: &[f32], dim: usize, tta: Tta) -> Result<Vec<f32>> {
    let n = rows(f, dim)?;
    if tta.needs_flip() && f_flip.len() != f.len() {
        return Err(Error::Invalid(format!(
            "{tta} needs as many numbers for the mirror images as for the images: found {} and {}",
            f_flip.len(),
            f.len()
        )));
    }
    let row = |m: &[f32], k: usize| -> Vec<f64> {
        m[k * dim..(k + 1) * dim]
            .iter()
            .map(|&x| f64::from(x))
            .collect()
    };
    let mut combined = Vec::with_capacity(tta.row_length(f.len()));
    for k in 0..n {
        let mut x = row(f, k);
        if tta == Tta::FlipConcat {
            let mut mirrored = row(f_flip, k);
            normalise(&mut x, k)?;
            normalise(&mut mirrored, k)?;
            x.extend(mirrored);
        } else if tta == Tta::FlipSum {
            x.iter_mut().zip(row(f_flip, k)).for_each(|(a, b)| *a += b);
        }
        normalise(&mut x, k)?;
        combined.extend(x.iter().map(|&v| v as f32));
    }
    Ok(combined)
}

/// Fails where all embeddings (n x `dim`, row-major), normalised, are one point with rounding noise.
///
/// # Errors
/// They are: the network has collapsed. Also where the length does not fit, or an embedding is not finite or zero (it is
/// named).
pub fn not_collapsed(embeddings: &[f32], dim: usize) -> Result<()> {
    let n = rows(embeddings, dim)?;
    let unit = |k: usize| unit(embeddings, dim, k);
    if n == 0 {
        return Ok(());
    }
    let (first, mut spread) = (unit(0)?, 0.0_f64);
    for k in 1..n {
        spread = spread.max(squared_distance(&unit(k)?, &first));
    }
    if spread <= COLLAPSED {
        return Err(Error::Invalid(format!(
            "the network has collapsed: all {n} embeddings are equal, so every pair would look the same"
        )));
    }
    Ok(())
}

/// Row `k`, normalised.
fn unit(embeddings: &[f32], dim: usize, k: usize) -> Result<Vec<f64>> {
    let row = &embeddings[k * dim..(k + 1) * dim];
    let mut x: Vec<f64> = row.iter().map(|&v| f64::from(v)).collect();
    normalise(&mut x, k)?;
    Ok(x)
}

fn squared_distance(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum()
}

/// The squared L2 distances of pairs of embeddings, after normalising each to a unit vector.
///
/// `embeddings` is 2M x `dim`, row-major; rows 2k and 2k+1 are pair k. Returns M distances in [0, 4].
///
/// # Errors
/// Where the length does not fit, an embedding is not finite or zero (it is named), or all embeddings are equal,
/// which means that the network has collapsed.
pub fn pair_distances(embeddings: &[f32], dim: usize) -> Result<Vec<f64>> {
    let n = rows(embeddings, dim)?;
    if n % 2 != 0 {
        return Err(Error::Invalid(format!(
            "pairs need an even number of embeddings: found {n}"
        )));
    }
    not_collapsed(embeddings, dim)?;
    let unit = |k: usize| unit(embeddings, dim, k);
    let pairs = (0..n / 2).map(|k| Ok(squared_distance(&unit(2 * k)?, &unit(2 * k + 1)?)));
    pairs.collect()
}

/// Verifies pairs of embeddings: [`pair_distances`], then [`verify`].
///
/// # Errors
/// As those two.
pub fn verify_embeddings(embeddings: &[f32], dim: usize, same: &[bool]) -> Result<Verification> {
    verify(&pair_distances(embeddings, dim)?, same)
}

/// Verifies pairs whose squared distances (f32 or f64) are known; `same[k]` tells whether pair k is one person.
///
/// # Errors
/// Where the lengths differ, there are fewer pairs than folds, a distance is not finite (the pair is named), all
/// distances are equal (collapsed), or there are no genuine or no impostor pairs.
pub fn verify<T: Copy + Into<f64>>(distances: &[T], same: &[bool]) -> Result<Verification> {
    let distances: Vec<f64> = distances.iter().map(|&d| d.into()).collect();
    let (pairs, impostor_pairs) = (distances.len(), check(&distances, same)?);
    let folds = cross_validate(&distances, same);
    let mean = |value: fn(&Fold) -> f64| folds.iter().map(value).sum::<f64>() / FOLDS as f64;
    let accuracy = mean(|f| f.accuracy);
    let variance = folds
        .iter()
        .map(|f| (f.accuracy - accuracy).powi(2))
        .sum::<f64>()
        / FOLDS as f64;
    let roc = Roc::new(&distances, same);
    let at_rates = |value: &dyn Fn(f64) -> f64| {
        let rates = FALSE_ACCEPT_RATES.iter();
        rates
            .map(|&(name, rate)| (name.to_owned(), value(rate)))
            .collect()
    };
    Ok(Verification {
        pairs,
        impostor_pairs,
        accuracy,
        accuracy_std: variance.sqrt(),
        threshold: mean(|f| f.threshold),
        auc: roc.area(),
        eer: roc.equal_error_rate(),
        tar: at_rates(&|rate| roc.operating_point(rate).tar),
        far_threshold: at_rates(&|rate| roc.operating_point(rate).threshold),
        folds,
    })
}

/// What [`verify`] asks of its pairs; gives the number of impostor pairs.
fn check(distances: &[f64], same: &[bool]) -> Result<usize> {
    let pairs = distances.len();
    if pairs != same.len() {
        return Err(Error::Invalid(format!(
            "every pair needs its truth: found {pairs} distances and {} truths",
            same.len()
        )));
    }
    if pairs < FOLDS {
        return Err(Error::Invalid(format!(
            "verification in {FOLDS} folds needs at least {FOLDS} pairs: found {pairs}"
        )));
    }
    if let Some(k) = distances.iter().position(|d| !d.is_finite()) {
        return Err(Error::Invalid(format!(
            "the distance of pair {k} is not finite: found {}",
            distances[k]
        )));
    }
    let genuine = same.iter().filter(|&&s| s).count();
    let impostor_pairs = pairs - genuine;
    for (count, missing, present) in [
        (genuine, "genuine pairs (one person)", "impostor"),
        (
            impostor_pairs,
            "impostor pairs (two different people)",
            "genuine",
        ),
    ] {
        if count == 0 {
            return Err(Error::Invalid(format!(
                "there are no {missing} among the {pairs} pairs, all are {present} pairs: neither a ROC curve nor an error rate exists"
            )));
        }
    }
    if distances.iter().all(|&d| d == distances[0]) {
        return Err(Error::Invalid(format!(
            "the embeddings have collapsed: all {pairs} distances equal {}",
            distances[0]
        )));
    }
    Ok(impostor_pairs)
}

/// Threshold number `i`, as numpy's `arange(0, 4, 0.01)` computes it.
fn threshold(i: usize) -> f64 {
    i as f64 * 0.01
}

/// For every threshold, how many of a set of pairs it judges rightly.
type Right = [usize; THRESHOLDS];

fn cross_validate(distances: &[f64], same: &[bool]) -> Vec<Fold> {
    let thresholds: Vec<f64> = (0..THRESHOLDS).map(threshold).collect();
    let mut total: Right = [0; THRESHOLDS];
    let mut right_in_fold: Vec<(usize, Right)> = Vec::with_capacity(FOLDS);
    let mut start = 0;
    for fold in 0..FOLDS {
        let size = distances.len() / FOLDS + usize::from(fold < distances.len() % FOLDS);
        let right = count_right(
            &distances[start..start + size],
            &same[start..start + size],
            &thresholds,
        );
        total.iter_mut().zip(right).for_each(|(t, r)| *t += r);
        right_in_fold.push((size, right));
        start += size;
    }
    right_in_fold
        .iter()
        .map(|(size, right)| {
            // All thresholds are scored on the same pairs, so counts compare as accuracies do.
            let mut best = 0;
            for i in 1..THRESHOLDS {
                if total[i] - right[i] > total[best] - right[best] {
                    best = i;
                }
            }
            Fold {
                accuracy: right[best] as f64 / *size as f64,
                threshold: thresholds[best],
            }
        })
        .collect()
}

fn count_right(distances: &[f64], same: &[bool], thresholds: &[f64]) -> Right {
    // accepted_from[i]: pairs (genuine, impostor) that threshold i is the first to accept.
    let mut accepted_from = [[0usize; 2]; THRESHOLDS + 1];
    for (&d, &s) in distances.iter().zip(same) {
        accepted_from[thresholds.partition_point(|&t| t <= d)][usize::from(!s)] += 1;
    }
    let mut right = [0; THRESHOLDS];
    let mut genuine_accepted = 0;
    let mut impostors_rejected = same.iter().filter(|&&s| !s).count();
    for (right, [genuine, impostor]) in right.iter_mut().zip(accepted_from) {
        genuine_accepted += genuine;
        impostors_rejected -= impostor;
        *right = genuine_accepted + impostors_rejected;
    }
    right
}

/// The number of rows of a matrix with `dim` columns.
fn rows(matrix: &[f32], dim: usize) -> Result<usize> {
    if dim == 0 || !matrix.len().is_multiple_of(dim) {
        return Err(Error::Invalid(format!(
            "{} numbers do not make rows of {dim}",
            matrix.len()
        )));
    }
    Ok(matrix.len() / dim)
}

/// Divides `x`, the embedding of image `image`, by its length.
fn normalise(x: &mut [f64], image: usize) -> Result<()> {
    if let Some(value) = x.iter().find(|v| !v.is_finite()) {
        return Err(Error::Invalid(format!(
            "the embedding of image {image} is not finite: it contains {value}"
        )));
    }
    let length = x.iter().map(|v| v * v).sum::<f64>().sqrt();
    if length == 0.0 {
        return Err(Error::Invalid(format!(
            "the embedding of image {image} is zero and has no direction: the network has collapsed"
        )));
    }
    x.iter_mut().for_each(|v| *v /= length);
    Ok(())
}

#[cfg(test)]
mod tests;
