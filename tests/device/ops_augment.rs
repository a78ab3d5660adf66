//! Pictures changed by the device against pictures changed by the loader's code.

use crate::oracles::UNIT;
use crate::oracles::check::{assert_near, elements, expected_of, results_of};
use crate::oracles::number::Number;
use crate::rig::input_transform::{Pictures, TRANSFORM};
use crate::support::devices::on_each_device;
use arcface_cu::backend::{Backend, Element};
use arcface_cu::base::changes::Changes;
use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::data::picture::augment::Augment;

/// Colours of every saturation, grey pixels, and whole stretches of black and white.
fn pictures(n: usize, side: usize) -> Vec<u8> {
    let mut random = Random::new(5, Purpose::Init, side as u64);
    (0..n * side * side)
        .flat_map(|i| {
            let [a, b, c] = [0, 1, 2].map(|_| random.below(256) as u8);
            match (i / 7) % 6 {
                0 => [a; 3],
                1 => [0; 3],
                2 => [255; 3],
                3 => [a, a, b],
                4 => [a, a / 2 + b / 4, c / 8],
                _ => [a, b, c],
            }
        })
        .collect()
}

/// Places are exact; colours may be rounded the other way where they lie on a tie but for the last bits.
fn check<B: Backend>(backend: &mut B, what: &str, pictures: &Pictures) {
    for element in elements(backend) {
        check_of(element, backend, &format!("{element} {what}"), pictures);
    }
}

fn check_of<B: Backend>(element: Element, backend: &mut B, what: &str, pictures: &Pictures) {
    // The oracle's pictures are changed by the loader's code.
    let expected = &expected_of(element, pictures, &[])[0].1;
    let actual = &results_of(element, backend, pictures, &[])[0].1;
    let level = TRANSFORM.scale.map(|scale| f64::from(scale).abs());
    let colours = pictures.changes.iter().any(Changes::colours);
    let bound = |e: Number| 4.0 * UNIT * (e.value.abs() + 4.0) + e.slack;
    let slack = |i: usize| if colours { level[i % 3] } else { 0.0 };
    assert_near(what, actual, expected, |i, e| bound(e) + slack(i));
    let pairs = actual.iter().zip(expected);
    let off = pairs.filter(|(a, e)| (f64::from(**a) - e.value).abs() > bound(**e));
    let off = off.count();
    assert!(
        off * 500 <= expected.len(),
        "{what}: {off} of {} differ",
        expected.len()
    );
}

fn input_transform_augmented<B: Backend>(backend: &mut B) {
    let none = Augment::default();
    let each = [
        ("nothing", none.clone()),
        (
            "crop",
            Augment {
                resize: Some(23),
                ..none.clone()
            },
        ),
        (
            "shift",
            Augment {
                shift: 5,
                ..none.clone()
            },
        ),
        (
            "flip",
            Augment {
                flip: true,
                ..none.clone()
            },
        ),
        (
            "brightness",
            Augment {
                brightness: 0.4,
                ..none.clone()
            },
        ),
        (
            "hue",
            Augment {
                hue: 0.5,
                ..none.clone()
            },
        ),
        (
            "contrast",
            Augment {
                contrast: (0.2, 3.0),
                ..none.clone()
            },
        ),
        (
            "saturation",
            Augment {
                saturation: (0.0, 4.0),
                ..none.clone()
            },
        ),
        (
            "grey",
            Augment {
                grey: 0.5,
                ..none.clone()
            },
        ),
        (
            "erase",
            Augment {
                erase: 0.7,
                ..none.clone()
            },
        ),
        (
            "all",
            Augment {
                resize: Some(25),
                shift: 3,
                erase: 0.5,
                hue: 0.4,
                ..Augment::seed()
            },
        ),
    ];
    for (name, augment) in each {
        // A multiple of 4 pixels, and not.
        for size in [20, 19] {
            let (n, side) = (9, augment.side(size));
            let pixels = pictures(n, side);
            let changes: Vec<Changes> = (0..n as u32)
                .map(|i| augment.decide((7, 2, i), size))
                .collect();
            let pictures = Pictures {
                pixels,
                side,
                size,
                changes,
            };
            check(backend, &format!("{name}, {size}"), &pictures);
        }
    }
}

/// A picture of the size that networks take, and no picture at all.
fn input_transform_augmented_of_a_face<B: Backend>(backend: &mut B) {
    let augment = Augment::seed();
    let both = Pictures {
        pixels: pictures(2, 128),
        side: 128,
        size: 112,
        changes: vec![
            augment.decide((1, 0, 0), 112),
            augment.decide((1, 0, 1), 112),
        ],
    };
    check(backend, "a face", &both);
    let none = Pictures {
        pixels: Vec::new(),
        changes: Vec::new(),
        ..both
    };
    check(backend, "no face", &none);
}

on_each_device! {
    every_change_is_the_loaders: input_transform_augmented,
    a_face_looks_as_the_loader_makes_it: input_transform_augmented_of_a_face,
}
