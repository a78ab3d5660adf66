//! Generated faces: the same images whatever was asked for, files as the set says, fair pairs, and nobody recognised by
//! colours or pixels alone.

use arcface_cu::data::{Dataset, Image};
use arcface_cu::demo::faces::{
    FacesOptions, GeneratedFaces, SIDE, render, verification_pairs, write_image_folder,
};
use std::collections::HashSet;
use std::sync::Mutex;

/// The world and people of the separability numbers in the module's documentation.
const HELD_OUT: FacesOptions = FacesOptions {
    identities: 60,
    per_identity: 8,
    seed: 1,
    first_identity: 1000,
};

fn read(faces: &GeneratedFaces, index: usize) -> Image {
    let mut image = Image::default();
    faces.read(index, &mut image).unwrap();
    image
}

#[test]
fn an_image_depends_on_seed_person_and_variation_alone() {
    let wide = FacesOptions {
        identities: 7,
        per_identity: 5,
        seed: 3,
        first_identity: 2,
    };
    let narrow = FacesOptions {
        identities: 2,
        per_identity: 3,
        seed: 3,
        first_identity: 4,
    };
    let (wide, narrow) = (
        GeneratedFaces::new(wide).unwrap(),
        GeneratedFaces::new(narrow).unwrap(),
    );
    assert_eq!((wide.len(), wide.classes()), (35, 7));
    // Person 5, image 2, in either set, and into a buffer that held something else.
    let mut image = Image {
        width: 3,
        height: 1,
        pixels: vec![9; 9],
    };
    render(3, 5, 2, &mut image);
    assert_eq!((image.width, image.height), (SIDE, SIDE));
    assert_eq!(image.pixels.len(), SIDE * SIDE * 3);
    assert_eq!(image, read(&wide, 3 * 5 + 2));
    assert_eq!(image, read(&narrow, 3 + 2));
    assert_eq!((wide.label(17), narrow.label(5)), (3, 1));
    assert_eq!(narrow.class_name(1), "5");
    assert_eq!(
        narrow.describe(5),
        "generated face 2 of identity 5 (seed 3)"
    );
    let mut images: HashSet<Vec<u8>> = (0..wide.len()).map(|i| read(&wide, i).pixels).collect();
    render(4, 5, 2, &mut image);
    images.insert(image.pixels);
    assert_eq!(images.len(), 36, "two images are equal");
}

#[test]
fn numbers_at_the_edge_render_and_impossible_requests_are_refused() {
    let mut image = Image::default();
    for (seed, identity, variation) in [
        (u64::MAX, u32::MAX, u32::MAX - 1),
        (0, 0, 0),
        (1 << 40, u32::MAX, 7),
    ] {
        render(seed, identity, variation, &mut image);
        let (low, high) = (image.pixels.iter().min(), image.pixels.iter().max());
        assert!(
            high.unwrap() - low.unwrap() > 60,
            "a flat picture: {low:?}..{high:?}"
        );
    }
    let good = FacesOptions::default();
    for bad in [
        FacesOptions {
            identities: 0,
            ..good
        },
        FacesOptions {
            per_identity: 0,
            ..good
        },
        FacesOptions {
            identities: usize::MAX,
            first_identity: 5,
            ..good
        },
        FacesOptions {
            first_identity: u32::MAX as usize,
            ..good
        },
    ] {
        let error = GeneratedFaces::new(bad).unwrap_err().to_string();
        assert!(error.contains("at least 1"), "{error}");
    }
    assert!(good.split(0).is_err());
    assert!(good.split(good.identities).is_err());
}

#[test]
fn a_split_has_no_person_in_both_parts() {
    let all = FacesOptions {
        identities: 11,
        per_identity: 2,
        seed: 5,
        first_identity: 30,
    };
    let (train, test) = all.split(4).unwrap();
    assert_eq!((train.first_identity, train.identities), (30, 7));
    assert_eq!((test.first_identity, test.identities), (37, 4));
    assert_eq!((test.seed, test.per_identity), (all.seed, all.per_identity));
}

#[test]
fn the_folder_holds_the_set_whatever_the_number_of_threads() {
    let options = FacesOptions {
        identities: 3,
        per_identity: 11,
        seed: 8,
        first_identity: 99,
    };
    let faces = GeneratedFaces::new(options).unwrap();
    let folders = [1, 3].map(|threads| {
        let dir = tempfile::tempdir().unwrap();
        let seen = Mutex::new(Vec::new());
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .unwrap()
            .install(|| {
                write_image_folder(dir.path(), &options, |done| seen.lock().unwrap().push(done))
            })
            .unwrap();
        let mut seen = seen.into_inner().unwrap();
        seen.sort_unstable();
        assert_eq!(seen, (1..=33).collect::<Vec<_>>());
        dir
    });
    for index in 0..faces.len() {
        let name = format!(
            "{}/{:02}.jpg",
            faces.class_name(faces.label(index)),
            index % 11
        );
        let bytes = folders
            .each_ref()
            .map(|dir| std::fs::read(dir.path().join(&name)).unwrap());
        assert_eq!(bytes[0], bytes[1], "{name}");
        let decoded = image::load_from_memory(&bytes[0]).unwrap().to_rgb8();
        let original = read(&faces, index);
        assert_eq!(decoded.dimensions(), (SIDE as u32, SIDE as u32));
        let error: f64 = original
            .pixels
            .iter()
            .zip(decoded.as_raw())
            .map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2))
            .sum();
        let rms = (error / original.pixels.len() as f64).sqrt();
        assert!(rms <= 6.0, "{name}: off by {rms} levels");
    }
    assert_eq!(std::fs::read_dir(folders[0].path()).unwrap().count(), 3);

    let file = folders[0].path().join("99/00.jpg");
    let error = write_image_folder(&file, &options, |_| ()).unwrap_err();
    assert!(error.to_string().contains("creating the folder"), "{error}");
}

#[test]
fn pairs_are_balanced_in_every_fold_distinct_and_repeatable() {
    for pairs in [0, 1, 20, 247, 600] {
        let list = verification_pairs(17, 9, pairs, 4).unwrap();
        assert_eq!(list.len(), pairs);
        assert_eq!(list, verification_pairs(17, 9, pairs, 4).unwrap());
        assert_eq!(list.iter().filter(|p| p.2).count(), pairs / 2);
        let different: HashSet<_> = list.iter().map(|&(a, b, _)| (a.min(b), a.max(b))).collect();
        assert_eq!(different.len(), pairs);
        for &(a, b, same) in &list {
            assert!(a != b && a.max(b) < 17 * 9);
            assert_eq!(a / 9 == b / 9, same);
        }
        let mut rest = &list[..];
        for fold in 0..10 {
            let (block, after) = rest.split_at(pairs / 10 + usize::from(fold < pairs % 10));
            rest = after;
            let genuine = block.iter().filter(|p| p.2).count();
            assert!(genuine * 2 + 1 >= block.len() && genuine * 2 <= block.len() + 1);
            assert!(block[..genuine].iter().all(|p| p.2), "fold {fold} is mixed");
        }
    }
    assert_ne!(
        verification_pairs(17, 9, 100, 4).unwrap(),
        verification_pairs(17, 9, 100, 5).unwrap()
    );
    // Three people with two images: 3 pairs of one person, 12 of two.
    assert_eq!(verification_pairs(3, 2, 6, 0).unwrap().len(), 6);
    for (identities, per_identity, pairs) in [(3, 2, 8), (1, 5, 1), (5, 1, 2), (0, 0, 1)] {
        let error = verification_pairs(identities, per_identity, pairs, 0).unwrap_err();
        assert!(error.to_string().contains("cannot draw"), "{error}");
    }
    assert!(verification_pairs(usize::MAX, usize::MAX, 2, 0).is_err());
}

/// The means of the `cells` x `cells` squares of an image's window, three colours each.
fn thumbnail(image: &Image, cells: usize, [left, top, right, bottom]: [usize; 4]) -> Vec<f32> {
    let mut sums = vec![0.0; cells * cells * 3];
    let (width, height) = (right - left, bottom - top);
    for y in top..bottom {
        for x in left..right {
            let cell = (y - top) * cells / height * cells + (x - left) * cells / width;
            for c in 0..3 {
                sums[cell * 3 + c] += f32::from(image.pixels[(y * SIDE + x) * 3 + c]);
            }
        }
    }
    sums.iter_mut()
        .for_each(|s| *s /= (width * height / (cells * cells)) as f32 * 255.0);
    sums
}

/// Mean 0 and norm 1: what is left of a picture when exposure and contrast are taken away.
fn standardised(mut feature: Vec<f32>) -> Vec<f32> {
    let mean = feature.iter().sum::<f32>() / feature.len() as f32;
    feature.iter_mut().for_each(|v| *v -= mean);
    let norm = feature.iter().map(|v| v * v).sum::<f32>().sqrt();
    feature.iter_mut().for_each(|v| *v /= norm);
    feature
}

/// The accuracy of "the same person if the squared distance is below t" for the best t there is.
fn best_accuracy(features: &[Vec<f32>], pairs: &[(usize, usize, bool)]) -> f64 {
    let mut scored: Vec<(f32, bool)> = pairs
        .iter()
        .map(|&(a, b, same)| {
            let distance = features[a]
                .iter()
                .zip(&features[b])
                .map(|(x, y)| (x - y).powi(2))
                .sum();
            (distance, same)
        })
        .collect();
    scored.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut right = scored.iter().filter(|p| !p.1).count();
    let mut best = right;
    for (_, same) in scored {
        right = if same { right + 1 } else { right - 1 };
        best = best.max(right);
    }
    best as f64 / pairs.len() as f64
}

#[test]
fn people_are_not_told_apart_by_colours_or_pixels() {
    let faces = GeneratedFaces::new(HELD_OUT).unwrap();
    let images: Vec<Image> = (0..faces.len()).map(|i| read(&faces, i)).collect();
    let pairs = verification_pairs(
        HELD_OUT.identities,
        HELD_OUT.per_identity,
        3000,
        HELD_OUT.seed,
    )
    .unwrap();
    let whole = [0, 0, SIDE, SIDE];
    let accuracy = |name: &str, limit: f64, feature: &dyn Fn(&Image) -> Vec<f32>| {
        let features: Vec<Vec<f32>> = images.iter().map(feature).collect();
        let found = best_accuracy(&features, &pairs);
        println!("{name}: {:.1} %", 100.0 * found);
        assert!(found <= limit, "{name} reaches {found}");
        found
    };
    accuracy("mean colour", 0.60, &|i| thumbnail(i, 1, whole));
    accuracy("mean colour of the face", 0.73, &|i| {
        thumbnail(i, 1, [40, 40, 72, 80])
    });
    for cells in [4, 8] {
        accuracy(&format!("{cells}x{cells} thumbnail"), 0.70, &|i| {
            thumbnail(i, cells, whole)
        });
        accuracy(&format!("{cells}x{cells} standardised"), 0.75, &|i| {
            standardised(thumbnail(i, cells, whole))
        });
    }
    accuracy("pixels", 0.70, &|i| thumbnail(i, SIDE, whole));
    accuracy("pixels standardised", 0.75, &|i| {
        standardised(thumbnail(i, SIDE, whole))
    });
    // The measure itself: a feature that names the person is always right, one that is the same for all never is.
    let named: Vec<Vec<f32>> = (0..images.len())
        .map(|i| vec![faces.label(i) as f32])
        .collect();
    assert_eq!(best_accuracy(&named, &pairs), 1.0);
}
