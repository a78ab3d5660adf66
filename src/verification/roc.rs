//! The ROC curve of a set of pairs, and what a report shows of it.

use serde::Serialize;

use super::{FALSE_ACCEPT_RATES, check, interval::wilson, verify};
use crate::base::error::Result;

/// Two neighbours of a curve in a report are at least this far apart on a decimal logarithm's axis.
const APART: f64 = 0.004;

/// The ROC curve: after each distinct distance, in ascending order, how many genuine and impostor pairs are at most
/// that far apart.
pub(super) struct Roc {
    points: Vec<(usize, usize)>,
    /// The distance of each point but the first, which accepts nothing.
    distances: Vec<f64>,
    genuine: usize,
    impostor: usize,
}

impl Roc {
    pub(super) fn new(distances: &[f64], same: &[bool]) -> Self {
        let mut sorted: Vec<(f64, bool)> = distances
            .iter()
            .copied()
            .zip(same.iter().copied())
            .collect();
        sorted.sort_unstable_by(|a, b| a.0.total_cmp(&b.0));
        let mut points = vec![(0, 0)];
        let mut distances = Vec::new();
        let (mut genuine, mut impostor) = (0, 0);
        // `==` also joins -0 and +0, which total_cmp puts side by side.
        for ties in sorted.chunk_by(|a, b| a.0 == b.0) {
            let matching = ties.iter().filter(|t| t.1).count();
            genuine += matching;
            impostor += ties.len() - matching;
            points.push((genuine, impostor));
            distances.push(ties[0].0);
        }
        Roc {
            points,
            distances,
            genuine,
            impostor,
        }
    }

    pub(super) fn area(&self) -> f64 {
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

    pub(super) fn equal_error_rate(&self) -> f64 {
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

    /// The last point whose false accept rate is at most this.
    fn within(&self, false_accept_rate: f64) -> usize {
        let beyond = self
            .points
            .partition_point(|&(_, i)| i as f64 / self.impostor as f64 <= false_accept_rate);
        beyond - 1
    }

    fn tar(&self, point: usize) -> f64 {
        self.points[point].0 as f64 / self.genuine as f64
    }

    pub(super) fn operating_point(&self, far: f64) -> OperatingPoint {
        let point = self.within(far);
        let tar = self.tar(point);
        OperatingPoint {
            far,
            tar,
            tar_interval: wilson(tar, self.genuine),
            false_accepts: self.points[point].1,
            // The first distance that is not accepted; all distances are below 4, or equal to it.
            threshold: self.distances.get(point).copied().unwrap_or(4.0),
            told: far * self.impostor as f64 >= 1.0,
        }
    }

    /// Corners (FAR, TAR), the highest TAR of each FAR.
    fn corners(&self) -> Vec<[f64; 2]> {
        let mut corners: Vec<[f64; 2]> = Vec::new();
        let last = self.points.len() - 1;
        for (k, &(_, impostor)) in self.points.iter().enumerate() {
            // The next point has the same FAR and a higher TAR.
            if k < last && self.points[k + 1].1 == impostor {
                continue;
            }
            let far = impostor as f64 / self.impostor as f64;
            let near = |&[before, _]: &[f64; 2]| (far / before).log10() < APART;
            let tar = self.tar(k);
            let same = |&[_, before]: &[f64; 2]| before == tar;
            if k == last || !corners.last().is_some_and(|c| near(c) || same(c)) {
                corners.push([far, tar]);
            }
        }
        corners
    }
}

/// The true accept rate at a false accept rate, and the numbers that it is computed from.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct OperatingPoint {
    /// The false accept rate that is allowed.
    pub far: f64,
    /// The share of genuine pairs accepted.
    pub tar: f64,
    /// Its 95 % interval, by [`wilson`] from the number of genuine pairs. It leaves out the uncertainty of the
    /// threshold, which depends on the impostor pairs.
    pub tar_interval: [f64; 2],
    /// Impostor pairs accepted.
    pub false_accepts: usize,
    /// The threshold: pairs at a smaller squared distance are accepted.
    pub threshold: f64,
    /// Whether there are enough impostor pairs to tell this rate from zero: at least 1 / `far`.
    pub told: bool,
}

/// The number of pairs by distance.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Histogram {
    /// Bin i covers distances from i times this, inclusive, to (i + 1) times this, exclusive.
    pub width: f64,
    /// Genuine pairs in each bin.
    pub genuine: Vec<usize>,
    /// Impostor pairs in each bin; the bins are the same.
    pub impostor: Vec<usize>,
}

impl Histogram {
    fn new(distances: &[f64], same: &[bool]) -> Self {
        let largest = distances.iter().copied().fold(0.0, f64::max);
        // Twice as many bins as by Rice's rule, since the eye smooths too. A bin is 1, 2 or 5 times a power of ten
        // wide.
        let bins = (4.0 * (distances.len() as f64).cbrt()).clamp(15.0, 80.0);
        let least = (largest / bins).max(1e-9);
        let decade = 10_f64.powf(least.log10().floor());
        let factor = [1.0, 2.0, 5.0, 10.0]
            .into_iter()
            .find(|f| f * decade >= least);
        let width = factor.unwrap_or(10.0) * decade;
        let bins = (largest / width) as usize + 1;
        let mut histogram = Histogram {
            width,
            genuine: vec![0; bins],
            impostor: vec![0; bins],
        };
        for (&distance, &same) in distances.iter().zip(same) {
            let counts = match same {
                true => &mut histogram.genuine,
                false => &mut histogram.impostor,
            };
            counts[((distance / width) as usize).min(bins - 1)] += 1;
        }
        histogram
    }
}

/// What a report shows of a set besides its [`Verification`](super::Verification).
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Curves {
    /// The 95 % interval of the accuracy, by [`wilson`]: each pair is judged once, under the threshold that the other
    /// folds chose.
    pub accuracy_interval: [f64; 2],
    /// The true accept rates at FAR 1e-1 to 1e-4.
    pub operating_points: Vec<OperatingPoint>,
    /// The ROC curve's corners [FAR, TAR], from no false accept to all pairs accepted; corners that look the same on a
    /// logarithmic axis are left out. Between two corners the TAR is the first one's.
    pub roc: Vec<[f64; 2]>,
    /// The distances.
    pub histogram: Histogram,
}

/// The curves of pairs whose squared distances are known, as for [`verify`].
///
/// # Errors
/// As [`verify`].
pub fn curves(distances: &[f64], same: &[bool]) -> Result<Curves> {
    check(distances, same)?;
    let roc = Roc::new(distances, same);
    let accuracy = verify(distances, same)?.accuracy;
    Ok(Curves {
        accuracy_interval: wilson(accuracy, distances.len()),
        operating_points: (FALSE_ACCEPT_RATES.iter())
            .map(|&(_, far)| roc.operating_point(far))
            .collect(),
        roc: roc.corners(),
        histogram: Histogram::new(distances, same),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::random::{Purpose, Random};

    /// Distances with many ties, genuine pairs closer.
    fn pairs(n: usize) -> (Vec<f64>, Vec<bool>) {
        let mut random = Random::new(3, Purpose::Faces, 0);
        (0..n)
            .map(|k| {
                let same = k % 2 == 0;
                let d = 1.4 + 0.25 * f64::from(random.normal()) - if same { 0.5 } else { 0.0 };
                // Away from the borders of bins.
                ((d.clamp(0.0, 3.9) * 200.0).round() / 200.0 + 0.001, same)
            })
            .unzip()
    }

    #[test]
    fn curves_are_what_counting_says() {
        let (distances, same) = pairs(5000);
        let found = curves(&distances, &same).unwrap();
        let accepted = |t: f64, which: bool| {
            let all = distances.iter().zip(&same);
            all.filter(|&(&d, &s)| s == which && d < t).count()
        };
        for point in &found.operating_points {
            let far = accepted(point.threshold, false);
            assert_eq!(far, point.false_accepts);
            assert!(far as f64 <= point.far * 2500.0);
            assert_eq!(accepted(point.threshold, true) as f64 / 2500.0, point.tar);
            // A step further, one accepts too many.
            let next = distances.iter().copied().filter(|&d| d > point.threshold);
            let next = next.fold(4.0, f64::min);
            assert!(accepted(next, false) as f64 > point.far * 2500.0);
            let [low, high] = point.tar_interval;
            assert!(low < point.tar && point.tar < high);
            assert_eq!(point.told, point.far > 3e-4);
        }
        // Every corner is a place of the curve that counting finds; they rise.
        let counted: Vec<[f64; 2]> = (0..=800)
            .map(|i| {
                let rate = |which| accepted(f64::from(i) / 200.0, which) as f64 / 2500.0;
                [rate(false), rate(true)]
            })
            .collect();
        assert!(found.roc.iter().all(|corner| counted.contains(corner)));
        assert!(
            found
                .roc
                .windows(2)
                .all(|w| w[0][0] < w[1][0] && w[0][1] <= w[1][1])
        );
        assert_eq!(found.roc[0][0], 0.0);
        assert_eq!(found.roc.last().unwrap(), &[1.0, 1.0]);
        // What is left out lies close.
        assert!(found.roc.len() < 900, "{}", found.roc.len());

        let Histogram {
            width,
            genuine,
            impostor,
        } = &found.histogram;
        assert_eq!(
            (genuine.len(), genuine.iter().sum::<usize>()),
            (impostor.len(), 2500)
        );
        assert_eq!(impostor.iter().sum::<usize>(), 2500);
        assert_eq!(*width, 0.05);
        let bin = genuine.iter().position(|&n| n > 200).unwrap();
        let (from, to) = (bin as f64 * width, (bin + 1) as f64 * width);
        assert_eq!(accepted(to, true) - accepted(from, true), genuine[bin]);
    }

    #[test]
    fn a_set_that_is_all_right_has_its_curves_too() {
        let distances: Vec<f64> = (0..20)
            .map(|k| f64::from(k % 2) + f64::from(k) * 1e-4)
            .collect();
        let same: Vec<bool> = (0..20).map(|k| k % 2 == 0).collect();
        let found = curves(&distances, &same).unwrap();
        assert_eq!(found.roc, [[0.0, 1.0], [1.0, 1.0]]);
        assert_eq!(found.accuracy_interval, wilson(1.0, 20));
        let told: Vec<bool> = found.operating_points.iter().map(|p| p.told).collect();
        assert_eq!(told, [true, false, false, false]);
        assert!(found.histogram.genuine.len() <= 81);
        assert!(curves(&distances, &same[1..]).is_err());
    }
}
