//! Convolution against naive f64 loops: all three directions, everything that can be pending, all epilogues.

use super::convolutions::{
    check_dgrad, check_fprop, check_moments, check_places_of_filters, check_wgrad,
};
use crate::oracles::check::{
    assert_bits_depend_on_the_case_alone, elements, expected, expected_of, results, results_of,
};
use crate::oracles::number::Number;
use crate::oracles::{UNIT, noise};
use crate::rig::Given;
use crate::rig::conv::{Dgrad, End, Fprop, Wgrad, window};
use crate::rig::pending::{ACTIVATIONS, Behind, To};
use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::{Conv2d, Rows, Window};
use arcface_cu::backend::{Activation, Backend};

fn conv(n: usize, c: usize, k: usize, window: Window) -> Conv2d {
    Conv2d { n, c, k, window }
}

/// Shapes that meet every path: odd channels, all strides, tiles that begin inside rows and images, several chunks,
/// several blocks in each direction. Where the path allows it, no two extents are equal, so that exchanged arguments
/// are seen.
fn shapes() -> Vec<(&'static str, Conv2d)> {
    let same = [1; 4];
    vec![
        (
            "3x3",
            conv(4, 8, 11, window((9, 6), (3, 3), 1, [2, 1, 0, 1])),
        ),
        ("one image", conv(1, 4, 3, window((4, 5), (3, 3), 1, same))),
        (
            "3x3/2, Keras padding",
            conv(6, 13, 10, window((14, 9), (3, 3), 2, [0, 1, 1, 1])),
        ),
        (
            "3x3/2, odd padding",
            conv(2, 6, 9, window((9, 12), (3, 3), 2, [0, 2, 1, 0])),
        ),
        (
            "5x4/3",
            conv(9, 7, 11, window((20, 18), (5, 4), 3, [2, 4, 1, 0])),
        ),
        (
            "2x4",
            conv(8, 11, 9, window((7, 10), (2, 4), 1, [0, 0, 3, 2])),
        ),
        ("1x1", conv(3, 17, 50, window((7, 5), (1, 1), 1, [0; 4]))),
        (
            "1x1/2, odd",
            conv(3, 11, 10, window((7, 9), (1, 1), 2, [0; 4])),
        ),
        (
            "1x1/2, even",
            conv(5, 9, 10, window((6, 8), (1, 1), 2, [0; 4])),
        ),
        (
            "1x1/3 on 2x2",
            conv(3, 9, 10, window((2, 2), (1, 1), 3, [0; 4])),
        ),
        (
            "2x2/3: gaps",
            conv(2, 5, 6, window((9, 8), (2, 2), 3, [0; 4])),
        ),
        ("7x7/2", conv(2, 3, 8, window((13, 17), (7, 7), 2, [3; 4]))),
        (
            "7x7/2, odd padding",
            conv(4, 5, 8, window((18, 22), (7, 7), 2, [3, 2, 1, 3])),
        ),
        (
            "7x7 over 3x4",
            conv(3, 5, 6, window((3, 4), (7, 7), 1, [6, 5, 4, 6])),
        ),
        ("linear", Conv2d::linear(5, 700, 130)),
        ("linear, one row", Conv2d::linear(1, 70, 33)),
        (
            "3x3, many tiles",
            conv(4, 24, 100, window((19, 23), (3, 3), 1, same)),
        ),
        (
            "3x3/2, many tiles",
            conv(5, 20, 33, window((31, 29), (3, 3), 2, same)),
        ),
        (
            "1x1/2, many tiles",
            conv(3, 20, 33, window((41, 29), (1, 1), 2, [0; 4])),
        ),
        (
            "1x1, many tiles",
            conv(3, 65, 150, window((23, 29), (1, 1), 1, [0; 4])),
        ),
        (
            "1x1, chunks of C",
            conv(1, 1300, 60, window((9, 9), (1, 1), 1, [0; 4])),
        ),
        (
            "1x1, chunks of K",
            conv(1, 60, 1300, window((9, 9), (1, 1), 1, [0; 4])),
        ),
        (
            "1x1/2, chunks",
            conv(1, 800, 790, window((9, 7), (1, 1), 2, [0; 4])),
        ),
        (
            "3x3, a tap a chunk",
            conv(2, 200, 140, window((6, 5), (3, 3), 1, same)),
        ),
        (
            "3x3/2, a tap a chunk",
            conv(2, 200, 390, window((7, 6), (3, 3), 2, same)),
        ),
        (
            "3x3, many whole images: Winograd on the CPU",
            conv(6, 40, 72, window((7, 6), (3, 3), 1, same)),
        ),
        (
            "the same with odd padding",
            conv(5, 48, 104, window((9, 12), (3, 3), 1, [2, 1, 0, 1])),
        ),
        (
            "3x3/2, whole chunks",
            conv(3, 16, 24, window((13, 11), (3, 3), 2, [0, 1, 1, 1])),
        ),
        (
            "1x1/2, whole chunks",
            conv(2, 72, 136, window((10, 9), (1, 1), 2, [0; 4])),
        ),
        (
            "1x1, whole chunks and whole tiles",
            conv(2, 128, 128, window((8, 16), (1, 1), 1, [0; 4])),
        ),
        (
            "3x3, bands of one image: Winograd on the CPU",
            conv(1, 40, 72, window((13, 6), (3, 3), 1, same)),
        ),
        (
            "3x3, one small image",
            conv(1, 40, 72, window((5, 3), (3, 3), 1, same)),
        ),
        (
            "3x3, parts and blocks",
            conv(2, 10, 200, window((25, 23), (3, 3), 1, same)),
        ),
        ("linear, chunks of pairs too", Conv2d::linear(5, 2100, 130)),
    ]
}

/// All three directions.
fn check<B: Backend>(b: &mut B, geometry: Conv2d, x: Behind, (batch_norm, bias): (bool, bool)) {
    let Window { r, s, .. } = geometry.window;
    let terms = geometry.filter_len() / geometry.k;
    check_fprop(b, geometry, (x, bias), terms);
    check_dgrad(b, geometry, (batch_norm, x), r * s * geometry.k);
    check_wgrad(b, geometry, (batch_norm, x), geometry.pixels_out());
}

/// Every shape, with what is pending changing from shape to shape.
fn all_shapes<B: Backend>(b: &mut B) {
    for (i, (what, geometry)) in shapes().into_iter().enumerate() {
        println!("{what}");
        let pending = Behind::norm_and(ACTIVATIONS[i % 4]);
        check(b, geometry, Behind::NOTHING, (false, i % 2 == 0));
        check(b, geometry, pending, (true, i % 2 == 1));
    }
}

/// Everything that can be pending, on shapes with padding and without.
fn all_pending<B: Backend>(b: &mut B) {
    for geometry in [
        conv(6, 37, 10, window((9, 5), (3, 3), 2, [1, 0, 0, 1])),
        conv(2, 37, 9, window((7, 5), (1, 1), 1, [0; 4])),
        // Whole chunks on a GPU: what is pending is applied in shared memory.
        conv(3, 40, 24, window((5, 6), (3, 3), 1, [1, 0, 0, 1])),
        conv(2, 32, 40, window((7, 5), (3, 3), 1, [1, 0, 0, 1])),
    ] {
        for activation in ACTIVATIONS {
            check(b, geometry, Behind::only(activation), (true, true));
            check(b, geometry, Behind::norm_and(activation), (false, true));
        }
    }
}

/// Data far from zero, of which E[y^2] - E[y]^2 would keep no digit; tiles of different means.
fn moments_far_from_zero<B: Backend>(b: &mut B) {
    let geometry = conv(3, 8, 70, window((33, 27), (1, 1), 1, [0; 4]));
    let case = Fprop {
        geometry,
        x: Behind::NOTHING,
        bias: true,
        end: End::Moments,
    };
    let biases: Vec<f32> = (noise(geometry.k, 83).iter())
        .map(|v| 1e3 * (1.5 + v))
        .collect();
    let results = results(b, &case, &[("bias", 0, &biases)]);
    let [(_, y), (_, moments)] = &results[..] else {
        unreachable!("y and moments")
    };
    let rows = Rows {
        pixels: geometry.pixels_out(),
        c: geometry.k,
    };
    check_moments(
        "y far from zero",
        rows,
        (y, moments),
        |_, mean, variance| {
            let size = mean.magnitude;
            32.0 * UNIT * (variance + size * variance.sqrt()) + (4.0 * UNIT * size).powi(2)
        },
    );
}

/// A number that is not a number reaches every output whose window holds it, through ReLU too; where `alone`, no other.
fn nan_is_found<B: Backend>(b: &mut B, geometry: Conv2d, affine: bool, alone: bool) {
    for activation in ACTIVATIONS {
        let x = if affine {
            Behind::norm_and(activation)
        } else {
            Behind::NOTHING
        };
        let case = Fprop {
            geometry,
            x,
            bias: true,
            end: End::Activate(false, activation),
        };
        let given: Given<'_> = &[("x", 17 * geometry.c + 3, &[f32::NAN])];
        let (found, expected) = (results(b, &case, given), expected(&case, given));
        for (i, (v, expected)) in found[0].1.iter().zip(&expected[0].1).enumerate() {
            assert!(
                v.is_nan() == expected.value.is_nan() || (v.is_nan() && !alone),
                "{activation:?}: element {i} is {v}"
            );
        }
    }
}

/// Directly, and by Winograd's algorithm where a backend has it: there it reaches its neighbours too.
fn nan_is_found_everywhere<B: Backend>(b: &mut B) {
    let geometry = conv(2, 11, 10, window((6, 7), (3, 3), 1, [1; 4]));
    nan_is_found(b, geometry, true, true);
    let geometry = conv(6, 40, 72, window((7, 6), (3, 3), 1, [1; 4]));
    nan_is_found(b, geometry, false, false);
}

/// Sums of many numbers of one sign: what is lost is not lost in one direction. Tensor cores truncate, so a sum that stays
/// in them loses up to a unit of float32 with each instruction, and never gains one.
fn long_sums_are_not_biased<B: Backend>(b: &mut B) {
    let geometry = conv(4, 8, 8, window((64, 64), (1, 1), 1, [0; 4]));
    let case = Wgrad {
        geometry,
        batch_norm: false,
        x: Behind::NOTHING,
        bias: false,
    };
    let positive = |seed| -> Vec<f32> {
        let numbers = noise(8 * geometry.pixels_out(), seed);
        numbers.iter().map(|v| 1.5 + v).collect()
    };
    let given: Given<'_> = &[("x", 0, &positive(1)), ("dy", 0, &positive(2))];
    for element in elements(b) {
        let (_, found) = &results_of(element, b, &case, given)[0];
        let (_, expected) = &expected_of(element, &case, given)[0];
        // The slab has other places too, which are zero.
        let written = found.iter().zip(expected).filter(|(_, e)| e.value > 0.0);
        let relative = |(found, e): (&f32, &Number)| (f64::from(*found) - e.value) / e.value;
        let losses: Vec<f64> = written.map(relative).collect();
        assert_eq!(losses.len(), 64, "a sum for each weight");
        let mean = losses.iter().sum::<f64>() / losses.len() as f64;
        // Within a step of 32 terms two instructions truncate; the sum of the steps is rounded to nearest.
        assert!(mean.abs() < 4.0 * UNIT, "{element}: {}", mean / UNIT);
    }
}

/// Whole chunks, which a GPU reads at once where the filters lie at round places.
fn filters_anywhere<B: Backend>(b: &mut B) {
    let geometry = conv(3, 40, 24, window((5, 6), (3, 3), 1, [1, 0, 0, 1]));
    check_places_of_filters(b, geometry);
}

on_each_device! {
    convolution_agrees_with_the_oracle_on_every_shape: all_shapes,
    everything_pending_is_applied: all_pending,
    filters_lie_anywhere: filters_anywhere,
    long_sums_have_no_bias: long_sums_are_not_biased,
    moments_are_exact_far_from_zero: moments_far_from_zero,
    nan_reaches_the_output: nan_is_found_everywhere,
}

/// The same bits on any number of threads, and again on a backend that has been used before.
#[test]
fn bits_do_not_depend_on_threads() {
    let x = Behind::norm_and(Activation::PRelu(()));
    let used = &mut Cpu::new();
    for (_, geometry) in shapes() {
        let fprop = Fprop {
            geometry,
            x,
            bias: true,
            end: End::Moments,
        };
        assert_bits_depend_on_the_case_alone(used, &fprop);
        let infer = Fprop {
            end: End::Activate(true, Activation::PRelu(())),
            ..fprop
        };
        assert_bits_depend_on_the_case_alone(used, &infer);
        let dgrad = Dgrad {
            geometry,
            batch_norm: true,
            to: To::finish(x),
        };
        assert_bits_depend_on_the_case_alone(used, &dgrad);
        let wgrad = Wgrad {
            geometry,
            batch_norm: true,
            x,
            bias: true,
        };
        assert_bits_depend_on_the_case_alone(used, &wgrad);
    }
}
