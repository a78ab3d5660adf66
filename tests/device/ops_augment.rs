//! Pictures changed by the device against pictures changed by the loader's code.

use crate::oracles::{UNIT, assert_close, download, poisoned};
use crate::support::devices::on_each_device;
use arcface_cu::backend::{Augmented, Backend, InputTransform, InputTransformAugmented};
use arcface_cu::base::changes::Changes;
use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::data::picture::augment::Augment;

const TRANSFORM: InputTransform = InputTransform {
    scale: [1.0 / 128.0, 0.5, -2.0],
    shift: [-0.5, 0.25, 3.0],
};

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

/// The numbers that the loader's pixels would become, and the step of a level.
fn expected(pictures: Augmented<'_>) -> (Vec<f64>, [f64; 3]) {
    let Augmented {
        pixels,
        side,
        size,
        changes,
    } = pictures;
    let mut out = vec![0; changes.len() * size * size * 3];
    for (i, changes) in changes.iter().enumerate() {
        let picture = &pixels[i * side * side * 3..][..side * side * 3];
        let out = &mut out[i * size * size * 3..][..size * size * 3];
        changes.apply(picture, side, size, out);
    }
    let scale = TRANSFORM.scale.map(f64::from);
    let numbers = (out.iter().enumerate())
        .map(|(i, v)| f64::from(*v) * scale[i % 3] + f64::from(TRANSFORM.shift[i % 3]))
        .collect();
    (numbers, scale.map(f64::abs))
}

fn run<B: Backend>(backend: &mut B, pictures: Augmented<'_>) -> Vec<f32> {
    let mut y = poisoned(
        backend,
        pictures.changes.len() * pictures.size * pictures.size * 3,
    );
    backend
        .input_transform_augmented(InputTransformAugmented {
            pictures,
            transform: &TRANSFORM,
            y: &mut y,
        })
        .unwrap();
    download(backend, &y)
}

/// Places are exact; colours may be rounded the other way where they lie on a tie but for the last bits.
fn check<B: Backend>(backend: &mut B, what: &str, pictures: Augmented<'_>) {
    let (expected, level) = expected(pictures);
    let actual = run(backend, pictures);
    let colours = pictures.changes.iter().any(Changes::colours);
    let bound = |i: usize| 4.0 * UNIT * (expected[i].abs() + 4.0);
    let slack = |i: usize| if colours { level[i % 3] } else { 0.0 };
    assert_close(what, &actual, &expected, |i| bound(i) + slack(i));
    let off = (0..expected.len())
        .filter(|i| (f64::from(actual[*i]) - expected[*i]).abs() > bound(*i))
        .count();
    assert!(
        off * 500 <= expected.len(),
        "{what}: {off} of {} differ",
        expected.len()
    );
}

fn augmented_input<B: Backend>(backend: &mut B) {
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
            let pictures = Augmented {
                pixels: &pixels,
                side,
                size,
                changes: &changes,
            };
            check(backend, &format!("{name}, {size}"), pictures);
        }
    }
}

/// A picture of the size that networks take, and no picture at all.
fn augmented_input_of_a_face<B: Backend>(backend: &mut B) {
    let augment = Augment::seed();
    let pixels = pictures(2, 128);
    let changes = [0, 1].map(|i| augment.decide((1, 0, i), 112));
    let both = Augmented {
        pixels: &pixels,
        side: 128,
        size: 112,
        changes: &changes,
    };
    check(backend, "a face", both);
    let none = Augmented {
        pixels: &[],
        changes: &[],
        ..both
    };
    assert!(run(backend, none).is_empty());
}

on_each_device! {
    every_change_is_the_loaders: augmented_input,
    a_face_looks_as_the_loader_makes_it: augmented_input_of_a_face,
}
