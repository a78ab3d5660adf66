//! Keras's HDF5 files of every layout, as Keras and h5py wrote them (`reference/make_keras_h5.py`), and the same
//! truncated and damaged.

#[path = "support/hostile.rs"]
mod hostile;

use arcface_cu::weights::formats::keras::{self, Layer};
use arcface_cu::weights::formats::tensors::{NamedTensor, TensorFile};
use hostile::*;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference/golden/keras")
        .join(name)
}

/// A weight by its name and shape; element i of weight number n is n + i / 64.
type Expected = (&'static str, &'static [usize]);

const WEIGHTS: [Expected; 8] = [
    ("conv/kernel:0", &[3, 3, 3, 4]),
    ("conv/bias:0", &[4]),
    ("bn/gamma:0", &[4]),
    ("bn/beta:0", &[4]),
    ("bn/moving_mean:0", &[4]),
    ("bn/moving_variance:0", &[4]),
    ("dense/kernel:0", &[4, 2]),
    ("dense_1/bias:0", &[2]),
];

const GENUINE: [Expected; 10] = [
    WEIGHTS[0],
    WEIGHTS[1],
    ("dw/depthwise_kernel:0", &[3, 3, 4, 1]),
    WEIGHTS[2],
    WEIGHTS[3],
    WEIGHTS[4],
    WEIGHTS[5],
    ("prelu/alpha:0", &[1, 1, 4]),
    ("features/kernel:0", &[4, 2]),
    ("features/bias:0", &[2]),
];

fn tensors(expected: &[Expected]) -> Vec<NamedTensor> {
    let tensor = |(n, (name, shape)): (usize, &Expected)| NamedTensor {
        name: (*name).into(),
        shape: shape.to_vec(),
        values: (0..shape.iter().product::<usize>())
            .map(|i| n as f32 + i as f32 / 64.0)
            .collect(),
    };
    expected.iter().enumerate().map(tensor).collect()
}

#[test]
fn every_layout_is_read() {
    for name in ["fixed.h5", "variable.h5", "split.h5", "gzip.h5"] {
        let file = keras::open(&golden(name)).unwrap();
        assert_eq!(file.tensors, tensors(&WEIGHTS), "{name}");
        assert_eq!(file.ignored, [], "{name}");
    }
    let whole = keras::open(&golden("whole.h5")).unwrap();
    assert_eq!(whole.tensors, tensors(&GENUINE));
    let ignored = |name: &str, why: &str| (name.to_owned(), why.to_owned());
    assert_eq!(whole.ignored.len(), 9);
    assert_eq!(
        whole.ignored[1],
        ignored("conv/kernel/momentum:0", "it is the optimizer's")
    );
    let mut keras3 = GENUINE;
    keras3[2].0 = "dw/kernel:0";
    let file = keras::open(&golden("keras3.h5")).unwrap();
    assert_eq!(file.tensors, tensors(&keras3));

    let types = keras::open(&golden("types.h5")).unwrap();
    let floats = |(n, tensor): (usize, NamedTensor)| (n % 4 != 3).then_some(tensor);
    let expected: Vec<_> = (tensors(&WEIGHTS).into_iter().enumerate())
        .filter_map(floats)
        .collect();
    assert_eq!(types.tensors, expected);
    let integers = "it is not of floating-point numbers";
    assert_eq!(
        types.ignored,
        [
            ignored("bn/beta:0", integers),
            ignored("dense_1/bias:0", integers)
        ]
    );

    let clash = keras::open(&golden("clash.h5")).unwrap();
    let names: Vec<&str> = clash.tensors.iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names, ["a/d/kernel:0", "b/d/kernel:0", "d/bias:0"]);
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.h5");
    let layer = |name: &str, weights: &[NamedTensor]| Layer {
        name: name.into(),
        weights: weights.to_vec(),
    };
    let all = tensors(&GENUINE);
    let layers = [
        layer("input_image", &[]),
        layer("outer", &all[..7]),
        layer("prelu", &all[7..8]),
        layer("features", &all[8..]),
    ];
    fs::write(&path, keras::encode(&layers).unwrap()).unwrap();
    assert_eq!(keras::open(&path).unwrap().tensors, all);
    let error = keras::encode(&[layer("a", &[]), layer("a", &[])]).unwrap_err();
    assert!(
        error.to_string().contains("cannot be written as HDF5"),
        "{error}"
    );
}

#[test]
fn files_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.h5");
    let says = |bytes: &[u8], words: &[&str]| {
        fs::write(&path, bytes).unwrap();
        let error = keras::open(&path).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    };
    says(b"", &["a.h5", "HDF5"]);
    says(b"PK\x03\x04 a zip", &["a.h5", "HDF5"]);
    says(&keras::SIGNATURE, &["no whole HDF5 file"]);
    let golden = |name: &str| fs::read(golden(name)).unwrap();
    says(
        &golden("keras3.weights.h5"),
        &["Keras 3's .weights.h5", "model.save(\"model.h5\")"],
    );
    // A name is another: of an attribute, a layer, a weight.
    let replaced = |from: &[u8], to: &[u8]| {
        let mut bytes = golden("fixed.h5");
        let places: Vec<usize> = (bytes.windows(from.len()).enumerate())
            .filter_map(|(at, window)| (window == from).then_some(at))
            .collect();
        assert!(!places.is_empty());
        bytes[places[0]..][..to.len()].copy_from_slice(to);
        bytes
    };
    says(
        &replaced(b"layer_names", b"layer_games"),
        &["attribute layer_names"],
    );
    says(
        &replaced(b"weight_names", b"weight_games"),
        &["the group /", "no attribute weight_names"],
    );
    says(
        &replaced(b"conv/bias:0", b"conv/bias:1"),
        &["the weight /conv/conv/bias:1", "not found"],
    );
    says(
        &replaced(b"conv/bias:0", b"conv/b\xffas:0"),
        &["the attribute weight_names of /conv", "not UTF-8"],
    );
    says(
        &replaced(b"conv\0relu\0", b"conv\0conv\0"),
        &["layer conv", "twice"],
    );
    let error = keras::open(dir.path()).unwrap_err().to_string();
    assert!(error.contains(&dir.path().display().to_string()), "{error}");
}

#[test]
fn truncated_and_damaged_files_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.h5");
    let names = [
        "fixed.h5",
        "variable.h5",
        "gzip.h5",
        "whole.h5",
        "keras3.h5",
    ];
    let whole: Vec<Vec<u8>> = names.map(|name| fs::read(golden(name)).unwrap()).into();
    let read = |bytes: &[u8]| -> Option<TensorFile> {
        // Some file systems sync a file that is overwritten, not a new one.
        let _ = fs::remove_file(&path);
        fs::write(&path, bytes).unwrap();
        small(|| keras::open(&path)).ok()
    };
    for (name, whole) in names.iter().zip(&whole) {
        let steps = (0..whole.len()).step_by(97).chain(0..200);
        for length in steps.chain(whole.len() - 200..whole.len()) {
            assert!(read(&whole[..length]).is_none(), "{name} cut at {length}");
        }
    }
    proptest!(config(4000), |(flips in flips(), within in within(), file in 0..5_usize)| {
        if let Some(found) = read(&damage(&whole[file], &flips, within)) {
            let numbers: usize = found.tensors.iter().map(|t| t.values.len()).sum();
            prop_assert!(4 * numbers <= 8 * whole[file].len() + (64 << 10));
        }
    });
    // Lengths and addresses are words of eight bytes: huge, small, and each other's.
    proptest!(config(4000), |(at in any::<usize>(), word in prop_oneof![
        Just(u64::MAX), Just(u64::MAX / 2), Just(1 << 40), 0..50_000_u64
    ], file in 0..5_usize)| {
        let mut bytes = whole[file].clone();
        let at = at % (bytes.len() / 8) * 8;
        bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        read(&bytes);
    });
}
