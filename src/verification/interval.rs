//! How sure a share is.

/// The probability with which [`wilson`]'s intervals cover the true share.
pub const CONFIDENCE: f64 = 0.95;

/// The quantile of the normal distribution that leaves 2.5 % on either side.
const Z: f64 = 1.959_963_984_540_054;

/// The 95 % interval of a share observed in `n` trials: Wilson's score interval (Wilson 1927, "Probable inference, the law
/// of succession, and statistical inference"; recommended by Brown, Cai and DasGupta 2001), without continuity correction.
/// Unlike the normal approximation it stays inside [0, 1], and is no point where all trials, or none, succeeded.
///
/// It takes the trials for independent. Pairs that share a person are not quite that, so it is a little narrow for them.
pub fn wilson(share: f64, n: usize) -> [f64; 2] {
    if n == 0 {
        return [0.0, 1.0];
    }
    let n = n as f64;
    let spread = Z * Z / n;
    let middle = (share + spread / 2.0) / (1.0 + spread);
    let half = Z * (share * (1.0 - share) / n + spread / (4.0 * n)).sqrt() / (1.0 + spread);
    // At the ends the bound is the share itself; rounding is not to put it outside.
    [
        (middle - half).clamp(0.0, share),
        (middle + half).clamp(share, 1.0),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SciPy's values, which `tests/reference/intervals.py` printed.
    #[test]
    fn intervals_are_those_of_scipy() {
        let table = include_str!("../../tests/reference/intervals.txt");
        let mut lines = 0;
        for line in table.lines().filter(|line| !line.starts_with('#')) {
            let numbers: Vec<f64> = line.split(' ').map(|n| n.parse().unwrap()).collect();
            let [successes, trials, low, high] = numbers[..] else {
                panic!("{line}");
            };
            let found = wilson(successes / trials, trials as usize);
            for (found, expected) in found.into_iter().zip([low, high]) {
                let error = (found - expected).abs();
                assert!(error <= 1e-12, "{line}: {found} instead of {expected}");
            }
            lines += 1;
        }
        assert!(lines >= 20, "{lines}");
    }

    #[test]
    fn nothing_tried_is_nothing_known() {
        assert_eq!(wilson(0.0, 0), [0.0, 1.0]);
        let [low, high] = wilson(1.0, 300);
        assert!(low > 0.98 && high == 1.0);
    }
}
