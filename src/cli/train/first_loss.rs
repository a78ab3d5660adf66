//! Whether the loss of the first step is what random class rows give.

use crate::backend::Backend;
use crate::backend::margin::Margin;
use crate::report::StepReport;
use crate::train::Trainer;
use std::f64::consts::PI;

/// A band wider than this share of the expected loss says nothing to a reader.
const WIDE: f64 = 0.25;

/// What there is to say of the first step's loss: a warning where it is not near what is expected, the two numbers where
/// they are near and that means something.
pub(super) fn sentence<B: Backend>(trainer: &Trainer<B>, report: &StepReport) -> Option<String> {
    let head = trainer.head();
    let (expected, margin) = (trainer.expected_initial_loss(), head.margin());
    let counts = (report.images, head.classes());
    let tolerance = tolerance(expected, margin, head.dimension(), counts);
    first_loss(report, expected, tolerance)
}

/// How far the loss of the first step may be from what is expected: a tenth for what the formula leaves out, and four
/// standard deviations. The mean target logit varies: its cosines have variance 1/D and are as many as there are different
/// class rows in the batch. So does the logarithm of the mean of exp over the class rows, since an untrained network's
/// embeddings are nearly one; with few classes the largest logit decides it (Gumbel's deviation for a maximum of V).
fn tolerance(
    expected: f64,
    margin: &Margin,
    dimension: usize,
    (images, classes): (usize, usize),
) -> f64 {
    if !margin.normalise {
        // Logits of no known size.
        return expected;
    }
    let deviation = f64::from(margin.scale) / (dimension as f64).sqrt();
    let target = deviation / (images.min(classes) as f64).sqrt();
    let v = classes.max(2) as f64;
    let of_mean = (deviation.powi(2).exp_m1() / v).sqrt();
    let of_largest = deviation * PI / (6.0 * 2.0 * v.ln()).sqrt();
    0.1 * expected + 4.0 * target.hypot(of_mean.min(of_largest))
}

fn first_loss(report: &StepReport, expected: f64, tolerance: f64) -> Option<String> {
    let loss = report.loss;
    let text = format!("the loss of the first step is {loss:.2}, {expected:.2} is expected");
    if (loss - expected).abs() <= tolerance {
        return (tolerance <= WIDE * expected).then_some(text);
    }
    Some(format!(
        "warning: {text} within {tolerance:.2}; check that the labels belong to the pictures, and that the pixels are what the input transform expects"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loss_from_a_wrong_label_range_is_told() {
        // The seed's settings: a thousand identities, where the data are thought to have 85,742.
        let margin = Margin::arcface(30.0, 0.5);
        let expected = crate::head::expected_initial_loss(&margin, 256, 85_742);
        let found = crate::head::expected_initial_loss(&margin, 256, 1_000);
        let tolerance = tolerance(expected, &margin, 256, (512, 85_742));
        let report = |loss| StepReport {
            epoch: 1,
            step: 1,
            images: 512,
            loss,
            l2: 0.0,
            accuracy: 0.0,
            lr: 0.1,
            seconds: 1.0,
            waited: 0.0,
        };
        let said = |loss| first_loss(&report(loss), expected, tolerance);
        assert!(said(found).unwrap().starts_with("warning"));
        assert!(said(f64::NAN).unwrap().starts_with("warning"));
        assert!(!said(27.9).unwrap().contains("warning"));
        // With six identities in batches of eight almost any loss is plausible, so the expected one is not shown.
        let margin = Margin::arcface(24.0, 0.2);
        let expected = crate::head::expected_initial_loss(&margin, 64, 6);
        let tolerance = super::tolerance(expected, &margin, 64, (8, 6));
        assert_eq!(first_loss(&report(expected), expected, tolerance), None);
        assert!(first_loss(&report(90.0), expected, tolerance).is_some());
        // Nine identities: 12.17 was met where nothing was wrong.
        let expected = crate::head::expected_initial_loss(&margin, 64, 9);
        let tolerance = super::tolerance(expected, &margin, 64, (8, 9));
        assert_eq!(first_loss(&report(12.17), expected, tolerance), None);
    }
}
