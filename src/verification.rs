//! Face verification: are two pictures of the same person?
//!
//! Pure arithmetic on embeddings or distances. The protocol is that of LFW as FaceNet's, InsightFace's and the
//! TensorFlow projects' scripts compute it:
//!
//! - Images 2k and 2k+1 are pair k. Its distance is the squared L2 distance of the two *unit* embeddings, in
//!   [0, 4], which is 2 - 2 cos.
//! - The thresholds are i * 0.01 for i in 0..400, and a pair is taken for the same person when distance < threshold.
//! - Ten folds without shuffling, cut as scikit-learn's `KFold` cuts them: the first (pairs mod 10) folds are one
//!   pair longer. On nine folds the *first* threshold with the highest accuracy is chosen and scored on the tenth.
//!
//! Beside it stand the numbers that do not depend on folds: the area under the ROC curve, the equal error rate and
//! the share of genuine pairs accepted (TAR) at a given share of impostor pairs accepted (FAR).
//!
//! Normalisation, distances and sums are f64. The scripts sum in f32; the two differ by about 1e-7, so a decision
//! could differ only for a pair that close to a threshold. One histogram of distances per fold serves every
//! threshold, so the cost is O(pairs log pairs), from the sort for the ROC curve.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

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
    /// Whether the mirror image has to be embedded.
    pub fn needs_flip(self) -> bool {
        self != Tta::None
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

/// What `eval --json` writes: `{"sets": [{"name", "pairs", "accuracy", ...}]}`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    /// One entry per set, in the order in which they were evaluated.
    pub sets: Vec<SetResult>,
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
    let mut combined = Vec::with_capacity(if tta == Tta::FlipConcat { 2 } else { 1 } * f.len());
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
    let unit = |k: usize| -> Result<Vec<f64>> {
        let mut x: Vec<f64> = embeddings[k * dim..(k + 1) * dim]
            .iter()
            .map(|&v| f64::from(v))
            .collect();
        normalise(&mut x, k)?;
        Ok(x)
    };
    let squared =
        |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum() };
    let mut distances = Vec::with_capacity(n / 2);
    let mut first = Vec::new();
    let mut spread = 0.0_f64;
    for k in 0..n / 2 {
        let (a, b) = (unit(2 * k)?, unit(2 * k + 1)?);
        if k == 0 {
            first.clone_from(&a);
        }
        spread = spread.max(squared(&a, &first)).max(squared(&b, &first));
        distances.push(squared(&a, &b));
    }
    if n > 0 && spread <= COLLAPSED {
        return Err(Error::Invalid(format!(
            "the network has collapsed: all {n} embeddings are equal, so every pair would look the same"
        )));
    }
    Ok(distances)
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

    let folds = cross_validate(&distances, same);
    let mean = |value: fn(&Fold) -> f64| folds.iter().map(value).sum::<f64>() / FOLDS as f64;
    let accuracy = mean(|f| f.accuracy);
    let variance = folds
        .iter()
        .map(|f| (f.accuracy - accuracy).powi(2))
        .sum::<f64>()
        / FOLDS as f64;
    let roc = Roc::new(&distances, same);
    Ok(Verification {
        pairs,
        impostor_pairs,
        accuracy,
        accuracy_std: variance.sqrt(),
        threshold: mean(|f| f.threshold),
        auc: roc.area(),
        eer: roc.equal_error_rate(),
        tar: FALSE_ACCEPT_RATES
            .iter()
            .map(|&(name, rate)| (name.to_owned(), roc.true_accept_rate(rate)))
            .collect(),
        folds,
    })
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

/// The ROC curve: after each distinct distance, in ascending order, how many genuine and impostor pairs are at most
/// that far apart.
struct Roc {
    points: Vec<(usize, usize)>,
    genuine: usize,
    impostor: usize,
}

impl Roc {
    fn new(distances: &[f64], same: &[bool]) -> Self {
        let mut sorted: Vec<(f64, bool)> = distances
            .iter()
            .copied()
            .zip(same.iter().copied())
            .collect();
        sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut points = vec![(0, 0)];
        let (mut genuine, mut impostor) = (0, 0);
        // `==` also joins -0 and +0, which total_cmp puts side by side.
        for ties in sorted.chunk_by(|a, b| a.0 == b.0) {
            let matching = ties.iter().filter(|t| t.1).count();
            genuine += matching;
            impostor += ties.len() - matching;
            points.push((genuine, impostor));
        }
        Roc {
            points,
            genuine,
            impostor,
        }
    }

    fn area(&self) -> f64 {
        // In half pairs of pairs: exact in integers.
        let twice: u128 = self
            .points
            .windows(2)
            .map(|w| {
                let ((g0, i0), (g1, i1)) = (w[0], w[1]);
                (g1 - g0) as u128 * (2 * (self.impostor - i1) + (i1 - i0)) as u128
            })
            .sum();
        twice as f64 / (2.0 * self.genuine as f64 * self.impostor as f64)
    }

    fn equal_error_rate(&self) -> f64 {
        // (false accepts, false rejects): the first grows from 0 to 1, the second falls from 1 to 0.
        let rates = |&(g, i): &(usize, usize)| {
            (
                i as f64 / self.impostor as f64,
                (self.genuine - g) as f64 / self.genuine as f64,
            )
        };
        for w in self.points.windows(2) {
            let ((far0, frr0), (far1, frr1)) = (rates(&w[0]), rates(&w[1]));
            if far1 >= frr1 {
                let part = (frr0 - far0) / ((far1 - far0) + (frr0 - frr1));
                return far0 + part * (far1 - far0);
            }
        }
        unreachable!("the last point accepts everything")
    }

    fn true_accept_rate(&self, false_accept_rate: f64) -> f64 {
        let within = self
            .points
            .partition_point(|&(_, i)| i as f64 / self.impostor as f64 <= false_accept_rate);
        self.points[within - 1].0 as f64 / self.genuine as f64
    }
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
mod tests {
    use super::*;
    use crate::random::{Purpose, Random};

    /// The protocol word for word, in O(pairs * thresholds * folds).
    fn naive_folds(distances: &[f64], same: &[bool]) -> Vec<Fold> {
        let n = distances.len();
        let fold_of = |k: usize| {
            let (short, long) = (n / 10, n % 10);
            if k < long * (short + 1) {
                k / (short + 1)
            } else {
                long + (k - long * (short + 1)) / short
            }
        };
        let accuracy = |t: f64, in_set: &dyn Fn(usize) -> bool| {
            let set: Vec<usize> = (0..n).filter(|&k| in_set(k)).collect();
            let right = set
                .iter()
                .filter(|&&k| (distances[k] < t) == same[k])
                .count();
            right as f64 / set.len() as f64
        };
        (0..10)
            .map(|fold| {
                let mut best = (f64::NEG_INFINITY, 0.0);
                for i in 0..400 {
                    let t = f64::from(i) * 0.01;
                    let a = accuracy(t, &|k| fold_of(k) != fold);
                    if a > best.0 {
                        best = (a, t);
                    }
                }
                Fold {
                    accuracy: accuracy(best.1, &|k| fold_of(k) == fold),
                    threshold: best.1,
                }
            })
            .collect()
    }

    fn naive_auc(distances: &[f64], same: &[bool]) -> f64 {
        let (mut sum, mut count) = (0.0, 0.0);
        for (i, &d) in distances.iter().enumerate().filter(|(i, _)| same[*i]) {
            for (j, &e) in distances.iter().enumerate().filter(|(j, _)| !same[*j]) {
                assert_ne!(i, j);
                count += 1.0;
                sum += if d < e {
                    1.0
                } else if d == e {
                    0.5
                } else {
                    0.0
                };
            }
        }
        sum / count
    }

    fn naive_tar(distances: &[f64], same: &[bool], rate: f64) -> f64 {
        let share = |t: f64, truth: bool| {
            let of: Vec<f64> = (0..distances.len())
                .filter(|&k| same[k] == truth)
                .map(|k| distances[k])
                .collect();
            of.iter().filter(|&&d| d < t).count() as f64 / of.len() as f64
        };
        distances
            .iter()
            .copied()
            .chain([f64::INFINITY])
            .filter(|&t| share(t, false) <= rate)
            .map(|t| share(t, true))
            .fold(0.0, f64::max)
    }

    /// Distances in which genuine pairs tend to be closer; `grid` > 0 rounds them to multiples of 1 / grid, for ties.
    fn pairs(n: usize, grid: f64, index: u64) -> (Vec<f64>, Vec<bool>) {
        let mut random = Random::new(11, Purpose::Faces, index);
        (0..n)
            .map(|k| {
                let same = k < 2 && k == 0 || k >= 2 && random.uniform() < 0.4;
                let d = f64::from(random.range(0.0, if same { 2.5 } else { 4.0 }));
                let d = if grid > 0.0 {
                    (d * grid).round() / grid
                } else {
                    d
                };
                (d, same)
            })
            .unzip()
    }

    #[test]
    fn agrees_with_the_protocol_word_for_word() {
        for (case, n) in [10, 11, 19, 20, 37, 100, 103, 209].into_iter().enumerate() {
            for grid in [0.0, 3.0, 100.0] {
                let (distances, same) = pairs(n, grid, case as u64);
                let v = verify(&distances, &same).unwrap();
                assert_eq!(
                    v.folds,
                    naive_folds(&distances, &same),
                    "{n} pairs, grid {grid}"
                );
                let auc = naive_auc(&distances, &same);
                assert!((v.auc - auc).abs() <= 1e-12, "auc {} is not {auc}", v.auc);
                for (name, rate) in FALSE_ACCEPT_RATES {
                    assert_eq!(v.tar[name], naive_tar(&distances, &same, rate), "{name}");
                }
                let mean = v.folds.iter().map(|f| f.accuracy).sum::<f64>() / 10.0;
                assert!((v.accuracy - mean).abs() <= 1e-12);
                assert_eq!(v.impostor_pairs, same.iter().filter(|s| !**s).count());
            }
        }
    }

    #[test]
    fn the_equal_error_rate_is_interpolated() {
        let distances = [0.5, 1.0, 1.0, 2.0, 2.0, 3.0, 3.5, 3.75, 3.75, 3.8];
        let same = [
            true, true, false, true, false, true, false, false, false, false,
        ];
        let v = verify(&distances, &same).unwrap();
        // Genuine at 0.5, 1, 2, 3; impostors at 1, 2, 3.5, 3.75, 3.75, 3.8.
        // Up to 1: far 1/6, frr 1/2. Up to 2: far 1/3, frr 1/4: they cross at s = (1/3) / (1/6 + 1/4) = 4/5.
        assert!(
            (v.eer - (1.0 / 6.0 + 0.8 / 6.0)).abs() <= 1e-12,
            "{}",
            v.eer
        );
    }

    #[test]
    fn a_false_accept_rate_may_be_met_exactly() {
        // Ten impostors at 1, 2 .. 10; genuine pairs between them.
        let distances: Vec<f64> = (2..=20).map(|k| f64::from(k) / 2.0).collect();
        let same: Vec<bool> = (2..=20).map(|k| k % 2 == 1).collect();
        let v = verify(&distances, &same).unwrap();
        // One impostor in ten may be accepted: the genuine pair at 1.5 then is; none in a hundred.
        assert_eq!((v.tar["1e-1"], v.tar["1e-2"]), (1.0 / 9.0, 0.0));
        assert_eq!((v.pairs, v.impostor_pairs), (19, 10));
    }

    #[test]
    fn perfect_and_hopeless_distances() {
        let same: Vec<bool> = (0..33).map(|k| k % 3 == 0).collect();
        let good: Vec<f32> = same.iter().map(|&s| if s { 0.5 } else { 1.5 }).collect();
        let v = verify(&good, &same).unwrap();
        assert_eq!(
            (v.accuracy, v.accuracy_std, v.auc, v.eer),
            (1.0, 0.0, 1.0, 0.0)
        );
        assert_eq!(v.tar["1e-4"], 1.0);
        // 0.5 itself does not accept d = 0.5: the first threshold above it does.
        assert!(v.folds.iter().all(|f| f.threshold == 51.0 * 0.01));
        let bad: Vec<f64> = same.iter().map(|&s| if s { 1.5 } else { 0.5 }).collect();
        let v = verify(&bad, &same).unwrap();
        assert_eq!((v.auc, v.eer, v.tar["1e-1"]), (0.0, 1.0, 0.0));
    }

    #[test]
    fn distances_are_those_of_unit_vectors() {
        let embeddings = [3.0, 4.0, 0.0, 2.0, 1.0, 0.0, -5.0, 0.0];
        let d = pair_distances(&embeddings, 2).unwrap();
        assert!((d[0] - (0.36 + 0.04)).abs() <= 1e-12, "{}", d[0]);
        assert!((d[1] - 4.0).abs() <= 1e-12, "{}", d[1]);
    }

    #[test]
    fn mirror_images_combine() {
        let (f, flip) = ([3.0f32, 4.0, 0.0, 2.0], [0.0f32, 2.0, 7.0, 0.0]);
        assert_eq!(
            combine(&f, &[], 2, Tta::None).unwrap(),
            [0.6, 0.8, 0.0, 1.0]
        );
        let sum = combine(&f, &flip, 2, Tta::FlipSum).unwrap();
        let length = 45.0f64.sqrt();
        assert_eq!(sum[..2], [(3.0 / length) as f32, (6.0 / length) as f32]);
        let both = combine(&f, &flip, 2, Tta::FlipConcat).unwrap();
        assert_eq!(both.len(), 8);
        // Halved: the mean of the halves' squared distances 0.4 and 2.
        let d = pair_distances(&both, 4).unwrap();
        assert!((d[0] - 1.2).abs() <= 1e-6, "{}", d[0]);
        let error = combine(&f, &flip[..2], 2, Tta::FlipSum).unwrap_err();
        assert!(error.to_string().contains("found 2 and 4"), "{error}");
        for tta in [Tta::None, Tta::FlipSum, Tta::FlipConcat] {
            assert_eq!(tta.to_string().parse::<Tta>().unwrap(), tta);
        }
        assert!("flip".parse::<Tta>().is_err());
    }

    #[test]
    fn examples_are_the_farthest_from_the_threshold() {
        let distances = [0.2, 1.3, 0.1, 1.1, 1.9, 0.9, 1.3];
        let same = [false, true, false, true, false, true, true];
        let of = |verdict| examples(&distances, &same, 1.0, verdict, 2);
        assert_eq!(of(Verdict::FalseAccept), [2, 0]);
        assert_eq!(of(Verdict::FalseReject), [1, 6]);
        assert_eq!(of(Verdict::RightAccept), [5]);
        assert_eq!(of(Verdict::RightReject), [4]);
    }

    #[test]
    fn what_cannot_be_verified_is_an_error() {
        let same: Vec<bool> = (0..12).map(|k| k % 2 == 0).collect();
        let d: Vec<f64> = (0..12).map(|k| f64::from(k) * 0.3).collect();
        let says = |result: Result<Verification>, words: &str| {
            let text = result.unwrap_err().to_string();
            assert!(text.contains(words), "\"{text}\" does not say \"{words}\"");
        };
        says(verify(&d[..11], &same), "11 distances and 12 truths");
        says(verify(&d[..9], &same[..9]), "at least 10 pairs: found 9");
        says(verify(&d, &[true; 12]), "no impostor pairs");
        says(verify(&d, &[false; 12]), "no genuine pairs");
        says(verify(&[0.7; 12], &same), "collapsed");
        let mut bad = d.clone();
        bad[5] = f64::NAN;
        says(verify(&bad, &same), "pair 5 is not finite");

        let mut random = Random::new(5, Purpose::Faces, 0);
        let mut e: Vec<f32> = (0..24 * 3).map(|_| random.normal()).collect();
        assert!(verify_embeddings(&e, 3, &same).is_ok());
        says(
            verify_embeddings(&e[..71], 3, &same),
            "do not make rows of 3",
        );
        says(verify_embeddings(&e, 0, &same), "do not make rows of 0");
        says(verify_embeddings(&e[..69], 3, &same), "even number");
        // Scaled copies of one direction are equal as unit vectors, up to rounding.
        let collapsed: Vec<f32> = (0..24)
            .flat_map(|k| [0.1, 0.7, -0.3].map(|x: f32| x * (k as f32 + 0.3)))
            .collect();
        says(verify_embeddings(&collapsed, 3, &same), "collapsed");
        e[40] = f32::INFINITY;
        says(verify_embeddings(&e, 3, &same), "image 13 is not finite");
        e[39..42].fill(0.0);
        says(verify_embeddings(&e, 3, &same), "image 13 is zero");
    }

    #[test]
    fn json_has_the_form_that_scripts_rely_on() {
        let (distances, same) = pairs(50, 0.0, 77);
        let results = Results {
            sets: vec![SetResult {
                name: "lfw".to_owned(),
                verification: verify(&distances, &same).unwrap(),
            }],
        };
        let text = serde_json::to_string(&results).unwrap();
        assert!(
            text.starts_with("{\"sets\":[{\"name\":\"lfw\",\"pairs\":50,"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let set = &json["sets"][0];
        for key in ["accuracy", "accuracy_std", "threshold", "auc", "eer"] {
            assert!(set[key].is_f64(), "{key}");
        }
        assert!(set["tar"]["1e-3"].is_number());
        assert_eq!(set["folds"].as_array().unwrap().len(), 10);
        assert!(set["folds"][9]["threshold"].is_number());
        assert_eq!(serde_json::from_str::<Results>(&text).unwrap(), results);
    }
}
