//! The checks of convolutions of both kinds.

use crate::oracles::check::{
    assert_filters_lie_anywhere, assert_near, check, check_of, elements, expected, results,
    results_of,
};
use crate::oracles::number::Number;
use crate::oracles::{UNIT, sum_bound};
use crate::rig::batch_norm::Moments;
use crate::rig::conv::{Dgrad, End, Fprop, Geometry, Wgrad};
use crate::rig::pending::{ACTIVATIONS, Behind, To};
use crate::rig::rows::Add;
use crate::rig::{Given, named};
use arcface_cu::backend::geometry::Rows;
use arcface_cu::backend::{Activation, Backend, Element};

/// What a variance may lose where the mean is not large. Squares may be taken of the distances from the channel's `first`
/// number.
fn variance_bound(first: f32, mean: Number, variance: f64) -> f64 {
    let shift = mean.value - f64::from(first);
    sum_bound(256, variance + shift * shift) + (8.0 * UNIT * mean.magnitude).powi(2)
}

/// Moments against those of the very numbers that were written.
pub(crate) fn check_moments(
    what: &str,
    rows: Rows,
    (y, moments): (&[f32], &[f32]),
    variance_bound: impl Fn(f32, Number, f64) -> f64,
) {
    let case = Moments { rows, centre: 0.0 };
    let expected = &expected(&case, &[("x", 0, y)])[0].1;
    // The moments' magnitudes: the mean absolute value, and the variance itself.
    let (mean, variance) = expected.split_at(rows.c);
    assert_near(
        &format!("mean of {what}"),
        &moments[..rows.c],
        mean,
        |_, e| 16.0 * UNIT * e.magnitude,
    );
    let what = format!("variance of {what}");
    assert_near(&what, &moments[rows.c..], variance, |i, e| {
        variance_bound(y[i], mean[i], e.value)
    });
}

/// An epilogue against what it should make of the very numbers that are written without it.
fn check_epilogue<B: Backend>(backend: &mut B, case: &Fprop<impl Geometry>, raw: &[f32]) {
    let End::Activate(residual, activation) = case.end else {
        unreachable!("an activation")
    };
    let [_, rows] = case.geometry.rows();
    let sum = Add {
        rows,
        a: Behind::NOTHING,
        b: residual.then_some(Behind::NOTHING),
        activation,
    };
    let values = named("residual", rows.len());
    let given: Given<'_> = &[("a", 0, raw), ("b", 0, &values)];
    let expected = expected(&sum, &given[..if residual { 2 } else { 1 }]);
    let found = results(backend, case, &[]);
    // The sum with the residual is rounded, and the product with the slope.
    let what = format!("y of {case:?}");
    assert_near(&what, &found[0].1, &expected[0].1, |_, e| {
        2.0 * UNIT * e.value.abs()
    });
}

/// Every epilogue. The one for inference finishes sums that may be taken in another way.
pub(crate) fn check_fprop<B: Backend>(
    backend: &mut B,
    geometry: impl Geometry,
    (x, bias): (Behind, bool),
    terms: usize,
) {
    let [_, rows] = geometry.rows();
    let case = |end| Fprop {
        geometry,
        x,
        bias,
        end,
    };
    let bound = |_: &str, _, e: Number| sum_bound(terms, e.magnitude);
    check(backend, &case(End::Raw), bound);
    for element in elements(backend) {
        let (_, raw) = &results_of(element, backend, &case(End::Raw), &[])[0];
        let found = results_of(element, backend, &case(End::Moments), &[]);
        let what = format!("{element} {:?}", case(End::Moments));
        assert_eq!(found[0].1, *raw, "moments change y: {what}");
        check_moments(&what, rows, (raw, &found[1].1), variance_bound);
        let bare = case(End::Activate(false, Activation::Identity));
        check_of(element, backend, &bare, bound);
        let (_, bare) = &results_of(element, backend, &bare, &[])[0];
        for (i, activation) in ACTIVATIONS.into_iter().enumerate() {
            let case = case(End::Activate(i % 2 == 1, activation));
            if element == Element::F32 {
                check_epilogue(backend, &case, bare);
            } else {
                check_of(element, backend, &case, bound);
            }
        }
    }
}

/// Every target.
pub(crate) fn check_dgrad<B: Backend>(
    backend: &mut B,
    geometry: impl Geometry,
    (batch_norm, value): (bool, Behind),
    terms: usize,
) {
    for to in To::all(value) {
        let case = Dgrad {
            geometry,
            batch_norm,
            to,
        };
        check(backend, &case, |name, _, e| {
            let sums = if name == "sums" { 64 } else { 0 };
            sum_bound(terms + sums, e.magnitude)
        });
    }
}

/// Filters at any place, where they cannot be read as those at round places.
pub(crate) fn check_places_of_filters<B: Backend>(backend: &mut B, geometry: impl Geometry) {
    let x = Behind::norm_and(ACTIVATIONS[1]);
    let fprop = Fprop {
        geometry,
        x,
        bias: true,
        end: End::Raw,
    };
    assert_filters_lie_anywhere(backend, &fprop);
    let dgrad = Dgrad {
        geometry,
        batch_norm: true,
        to: To::finish(x),
    };
    assert_filters_lie_anywhere(backend, &dgrad);
}

/// With and without a bias.
pub(crate) fn check_wgrad<B: Backend>(
    backend: &mut B,
    geometry: impl Geometry,
    (batch_norm, x): (bool, Behind),
    terms: usize,
) {
    for bias in [false, true] {
        let case = Wgrad {
            geometry,
            batch_norm,
            x,
            bias,
        };
        check(backend, &case, |_, _, e| sum_bound(terms, e.magnitude));
    }
}
