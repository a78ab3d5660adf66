//! Depthwise convolution against naive f64 loops: odd shapes, asymmetric padding, everything that can be pending.

use super::convolutions::{check_dgrad, check_fprop, check_places_of_filters, check_wgrad};
use crate::oracles::check::{
    assert_bits_depend_on_the_case_alone, check_given, expected, poison, results,
};
use crate::oracles::number::Number;
use crate::oracles::sum_bound;
use crate::rig::Given;
use crate::rig::conv::{Dgrad, End, Fprop, Wgrad, window};
use crate::rig::pending::{ACTIVATIONS, Behind, To};
use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::PerChannel;
use arcface_cu::backend::{Activation, Backend};

fn geometry(
    (n, c): (usize, usize),
    (h, w): (usize, usize),
    (r, s): (usize, usize),
    stride: usize,
    pad: [usize; 4],
) -> PerChannel {
    let window = window((h, w), (r, s), stride, pad);
    PerChannel { n, c, window }
}

/// Shapes that between them meet every branch: channel tails, blocks of 4, 2 and 1 pixels, windows without a fast
/// path, strides larger than the window, several images a tile and several tiles an image. Where the
/// path allows it, no two extents are equal, so that exchanged arguments are seen.
fn geometries() -> Vec<PerChannel> {
    let mut all = Vec::new();
    for c in [1, 3, 5, 17, 64] {
        all.push(geometry((4, c), (9, 13), (3, 3), 1, [2, 1, 0, 1]));
        all.push(geometry((5, c), (12, 9), (3, 3), 2, [0, 1, 1, 0]));
    }
    all.push(geometry((2, 64), (9, 12), (3, 3), 1, [1; 4]));
    all.push(geometry((3, 17), (12, 7), (3, 3), 2, [0, 1, 0, 1]));
    all.push(geometry((2, 48), (11, 13), (3, 3), 2, [1; 4]));
    all.push(geometry((2, 32), (7, 7), (7, 7), 1, [0; 4]));
    all.push(geometry((3, 130), (7, 7), (7, 7), 1, [0; 4]));
    all.push(geometry((1, 16), (40, 6), (3, 3), 1, [2, 0, 0, 2]));
    all.push(geometry((70, 4), (5, 4), (3, 3), 1, [1; 4]));
    all.push(geometry((10, 6), (8, 11), (2, 5), 1, [0, 0, 3, 4]));
    all.push(geometry((9, 20), (19, 18), (5, 4), 3, [2, 4, 1, 0]));
    all.push(geometry((2, 7), (10, 9), (2, 1), 3, [0; 4]));
    all.push(geometry((1, 3), (1, 1), (3, 3), 1, [1; 4]));
    all.push(geometry((2, 16), (6, 300), (3, 3), 1, [1; 4]));
    all
}

/// Calls `f` with every shape and activation, whether the value has batch norm, whether the gradient has, and whether
/// there is a bias.
fn each(mut f: impl FnMut(PerChannel, Behind, bool, bool)) {
    for (case, geometry) in geometries().into_iter().enumerate() {
        for (kind, activation) in ACTIVATIONS.into_iter().enumerate() {
            let affine = kind != case % 4;
            let x = Behind { affine, activation };
            f(geometry, x, kind % 2 == case % 2, case % 2 == 0);
        }
    }
}

fn fprop<B: Backend>(backend: &mut B) {
    each(|geometry, x, _, bias| {
        let terms = geometry.window.r * geometry.window.s + 1;
        check_fprop(backend, geometry, (x, bias), terms);
    });
}

fn dgrad<B: Backend>(backend: &mut B) {
    each(|geometry, x, batch_norm, _| {
        let terms = 2 * geometry.window.r * geometry.window.s + 1;
        check_dgrad(backend, geometry, (batch_norm, x), terms);
    });
}

fn wgrad<B: Backend>(backend: &mut B) {
    each(|geometry, x, batch_norm, _| {
        // Sums run over at most 32 tiles in f64 and a tile's pixels in f32.
        let terms = geometry.pixels_out().div_ceil(4) + 8;
        check_wgrad(backend, geometry, (batch_norm, x), terms);
    });
}

/// A padding pixel is zero after scale, shift and activation: with weights of one, zero input and a shift, the
/// output counts the pixels that are really there.
fn padding_stays_zero<B: Backend>(backend: &mut B) {
    let case = Fprop {
        geometry: geometry((1, 2), (5, 4), (3, 3), 1, [1; 4]),
        x: Behind::norm_and(Activation::Relu),
        bias: false,
        end: End::Raw,
    };
    let given: Given<'_> = &[
        ("x", 0, &[0.0; 40]),
        ("x forward", 0, &[1.0, 1.0, 0.5, 0.5]),
        ("weights", 0, &[1.0; 18]),
    ];
    let (_, y) = results(backend, &case, given).remove(0);
    for (pixel, y) in y.chunks_exact(2).enumerate() {
        let (row, column) = (pixel / 4, pixel % 4);
        let inside = |at: usize, size: usize| if at == 0 || at + 1 == size { 2.0 } else { 3.0 };
        assert_eq!(y, [0.5 * inside(row, 5) * inside(column, 4); 2]);
    }
}

/// A NaN in the input reaches every output and every gradient that depends on it, and no other.
fn nan_is_not_lost<B: Backend>(backend: &mut B) {
    let geometry = geometry((1, 3), (6, 6), (3, 3), 1, [1; 4]);
    let given: Given<'_> = &[("x", (2 * 6 + 3) * 3 + 1, &[f32::NAN])];
    let taps = 9;
    let nans = |values: Vec<(&str, Vec<Number>)>| {
        let values = values[0].1.iter();
        values.filter(|v| v.value.is_nan() && !poison(**v)).count()
    };
    for activation in ACTIVATIONS {
        let x = Behind::only(activation);
        let fprop = Fprop {
            geometry,
            x,
            bias: false,
            end: End::Raw,
        };
        assert_eq!(nans(expected(&fprop, given)), taps);
        check_given(backend, &fprop, given, |_, _, e| {
            sum_bound(taps, e.magnitude)
        });
        let wgrad = Wgrad {
            geometry,
            batch_norm: false,
            x,
            bias: false,
        };
        assert_eq!(nans(expected(&wgrad, given)), taps);
        check_given(backend, &wgrad, given, |_, _, e| sum_bound(36, e.magnitude));
    }
}

fn filters_anywhere<B: Backend>(b: &mut B) {
    let geometry = geometry((2, 24), (7, 6), (3, 3), 1, [1; 4]);
    check_places_of_filters(b, geometry);
}

on_each_device! {
    depthwise_fprop: fprop,
    depthwise_dgrad: dgrad,
    depthwise_wgrad: wgrad,
    depthwise_filters_lie_anywhere: filters_anywhere,
    depthwise_padding_stays_zero: padding_stays_zero,
    depthwise_nan_is_not_lost: nan_is_not_lost,
}

#[test]
fn depthwise_bits_do_not_depend_on_threads() {
    let x = Behind::norm_and(Activation::PRelu(()));
    let used = &mut Cpu::new();
    for geometry in [
        geometry((5, 17), (23, 14), (3, 3), 1, [1; 4]),
        geometry((3, 32), (30, 15), (3, 3), 2, [0, 1, 0, 1]),
        geometry((66, 8), (7, 7), (7, 7), 1, [0; 4]),
    ] {
        let fprop = Fprop {
            geometry,
            x,
            bias: true,
            end: End::Moments,
        };
        assert_bits_depend_on_the_case_alone(used, &fprop);
        let dgrad = Dgrad {
            geometry,
            batch_norm: false,
            to: To::finish(x),
        };
        assert_bits_depend_on_the_case_alone(used, &dgrad);
        let wgrad = Wgrad {
            geometry,
            batch_norm: false,
            x,
            bias: true,
        };
        assert_bits_depend_on_the_case_alone(used, &wgrad);
    }
}
