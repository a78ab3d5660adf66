//! Keras's HDF5 files, in and out: genuine networks give what Keras gave, and what is exported comes back to the bit.

mod support;

use arcface_cu::backend::Element;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::embedder::Embedder;
use arcface_cu::encoding::npy::{self, Elements};
use arcface_cu::graph::params::ParamTable;
use arcface_cu::recipe::config::Config;
use arcface_cu::recipe::presets::SYMMETRIC_INPUT;
use arcface_cu::weights::checkpoint::Weights;
use arcface_cu::weights::export::keras_h5;
use arcface_cu::weights::import::{self, ImportOptions, Imported};
use std::path::{Path, PathBuf};
use support::shared_data;

/// What float32 loses on the way through 53 layers with another order of sums is a third of it.
const TOLERANCE: f32 = 1e-4;

fn numbers(path: PathBuf) -> (Vec<usize>, Vec<f32>) {
    let npy = npy::read(&path).unwrap();
    match npy.elements {
        Elements::F32(values) => (npy.shape, values),
        other => panic!("{}: {other:?}", path.display()),
    }
}

fn embed(weights: &Weights, images: &[f32]) -> Vec<f32> {
    let mut backend = Cpu::new();
    let mut embedder = Embedder::new(&mut backend, weights, 8, Element::F32).unwrap();
    embedder.embed_unit_values(&mut images.to_vec()).unwrap()
}

/// Rows whose largest difference is small beside their largest element.
#[track_caller]
fn assert_rows(what: &str, found: &[f32], (shape, expected): &(Vec<usize>, Vec<f32>)) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let width = shape[1];
    let mut worst = 0.0_f32;
    for (row, (a, b)) in found.chunks(width).zip(expected.chunks(width)).enumerate() {
        let scale = b.iter().fold(0.0_f32, |m, v| m.max(v.abs()));
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            let error = (a - b).abs() / scale;
            assert!(
                error <= TOLERANCE,
                "{what}: row {row}, column {i}: {a}, Keras {b}"
            );
            worst = worst.max(error);
        }
    }
    println!("{what}: worst {worst:e} of the row's largest");
}

fn normalised(rows: &[f32], width: usize) -> Vec<f32> {
    let unit = |row: &[f32]| {
        let norm = row
            .iter()
            .map(|v| f64::from(*v).powi(2))
            .sum::<f64>()
            .sqrt();
        row.iter()
            .map(move |v| (f64::from(*v) / norm) as f32)
            .collect::<Vec<_>>()
    };
    rows.chunks(width).flat_map(unit).collect()
}

fn images(keras: &Path, kind: &str) -> Vec<f32> {
    let (shape, values) = numbers(keras.join(format!("tf219/inputs_{kind}.npy")));
    assert_eq!(shape, [8, 112, 112, 3]);
    values
}

fn open(path: PathBuf, options: &ImportOptions) -> Imported {
    let imported = import::open(&path, options).unwrap();
    assert_eq!(imported.report.missing, []);
    assert_eq!(imported.report.unused, []);
    assert_eq!(imported.weights.config.preset, "seed-mobilenetv2");
    assert_eq!(imported.weights.config.model.embedding_size().unwrap(), 256);
    // The dense layer is `features` there.
    let of = |from: &str| {
        imported
            .report
            .mapped
            .iter()
            .find(|m| m.from == from)
            .unwrap()
    };
    assert_eq!(of("features/kernel:0").to, "dense/kernel");
    imported
}

#[test]
fn genuine_networks_give_what_keras_gave() {
    let Some(keras) = shared_data("genuine_networks_give_what_keras_gave", "keras") else {
        return;
    };
    for (folder, file, classes) in [
        ("tf219", "mobilenetv2_arcface_weights.h5", None),
        (
            "tf241",
            "checkpoint-mobilenetv2_im112_arcface24.h5",
            Some(24),
        ),
    ] {
        let path = keras.join(folder).join(file);
        let imported = open(path, &ImportOptions::default());
        let d = imported.weights.config.model.embedding_size().unwrap();
        let rows = imported.class_rows.as_ref();
        assert_eq!(rows.map(|rows| rows.len() / d), classes);
        for kind in ["real", "random"] {
            let expected = numbers(keras.join(format!("{folder}/mobilenetv2_outputs_{kind}.npy")));
            let found = embed(&imported.weights, &images(&keras, kind));
            assert_rows(&format!("{folder}, {kind}"), &found, &expected);
        }
    }
}

#[test]
fn a_checkpoints_class_rows_and_flips_give_what_keras_gave() {
    let test = "a_checkpoints_class_rows_and_flips_give_what_keras_gave";
    let Some(keras) = shared_data(test, "keras") else {
        return;
    };
    let folder = keras.join("tf241");
    let path = folder.join("checkpoint-mobilenetv2_im112_arcface24.h5");
    let imported = open(path, &ImportOptions::default());
    let images = images(&keras, "real");
    let plain = embed(&imported.weights, &images);

    let rows = normalised(&imported.class_rows.unwrap(), 256);
    let dot = |a: &[f32], b: &[f32]| {
        let products = a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y));
        products.sum::<f64>() as f32
    };
    let cosines: Vec<f32> = normalised(&plain, 256)
        .chunks(256)
        .flat_map(|e| {
            rows.chunks(256)
                .map(move |row| dot(e, row))
                .collect::<Vec<_>>()
        })
        .collect();
    let expected = numbers(folder.join("mobilenetv2_arcface24_cos_real.npy"));
    assert_eq!(expected.0, [8, 24]);
    assert_rows("cosines", &cosines, &expected);

    let mirrored: Vec<f32> = images
        .chunks(112 * 3)
        .flat_map(|row| row.chunks(3).rev().flatten().copied())
        .collect();
    let mirrored = embed(&imported.weights, &mirrored);
    let sums: Vec<f32> = plain.iter().zip(&mirrored).map(|(a, b)| a + b).collect();
    let expected = numbers(folder.join("mobilenetv2_embflip_real.npy"));
    assert_rows("flips", &normalised(&sums, 256), &expected);
}

/// What the ImageNet file has, and what a network with another embedding takes of it.
#[test]
fn an_imagenet_start_is_taken() {
    let name = "an_imagenet_start_is_taken";
    let (Some(keras), Some(folder)) = (shared_data(name, "keras"), shared_data(name, "weights"))
    else {
        return;
    };
    let path = folder.join("mobilenetv2_imagenet_init_weights.h5");
    // The network wants [-1, 1], but what is kept is what Keras answers to [0, 1].
    let imported = open(path.clone(), &ImportOptions::default());
    let expected = numbers(folder.join("mobilenetv2_imagenet_init_outputs_real.npy"));
    let found = embed(&imported.weights, &images(&keras, "real"));
    assert_rows("ImageNet", &found, &expected);

    let options = ImportOptions {
        input: Some(SYMMETRIC_INPUT),
        ..ImportOptions::default()
    };
    let symmetric = open(path.clone(), &options).weights;
    assert_eq!(symmetric.config.model.input, SYMMETRIC_INPUT);
    let asked = &images(&keras, "real")[..112 * 112 * 3];
    let halved: Vec<f32> = asked.iter().map(|x| (x + 1.0) / 2.0).collect();
    let expected = (vec![1, 256], found[..256].to_vec());
    assert_rows("ImageNet, [-1, 1]", &embed(&symmetric, &halved), &expected);

    let config = Config::load("arcface-tf2-mobilenetv2", None, &[]).unwrap();
    let start = import::start(&path, &config, 7).unwrap();
    let mut missing: Vec<&str> = start.report.missing.iter().map(|m| m.to.as_str()).collect();
    missing.sort_unstable();
    let expected = [
        "batch_normalization/beta",
        "batch_normalization/gamma",
        "batch_normalization/moving_mean",
        "batch_normalization/moving_variance",
        "batch_normalization_1/beta",
        "batch_normalization_1/gamma",
        "batch_normalization_1/moving_mean",
        "batch_normalization_1/moving_variance",
        "dense/bias",
        "dense/kernel",
    ];
    assert_eq!(missing, expected);
    // 52 convolutions with 52 batch norms of four vectors.
    assert_eq!(start.report.mapped.len(), 52 * 5);
    let table = ParamTable::new(&imported.weights.model().unwrap());
    let (_, there, shape) = table.find("Conv_1/kernel").unwrap();
    let ours = ParamTable::new(&config.model.build().unwrap());
    let (_, here, _) = ours.find("Conv_1/kernel").unwrap();
    let len = shape.iter().product();
    assert_eq!(
        start.params[here..][..len],
        imported.weights.params[there..][..len]
    );
    // What is missing starts as in a new network.
    let (new, _) = ours.init(7);
    let (_, dense, _) = ours.find("dense/kernel").unwrap();
    assert_eq!(start.params[dense..][..1000], new[dense..][..1000]);
}

/// A network of this configuration whose every number is another.
fn network(preset: &str, settings: &[&str], classes: usize) -> (Weights, Vec<f32>) {
    let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
    let config = Config::load(preset, None, &settings).unwrap();
    let table = ParamTable::new(&config.model.build().unwrap());
    let (mut params, mut statistics) = table.init(5);
    for param in table.params() {
        for (i, value) in params[param.offset..][..param.len()].iter_mut().enumerate() {
            *value += (param.offset + i) as f32 * 1e-7;
        }
    }
    for (i, value) in statistics.iter_mut().enumerate() {
        *value += i as f32 * 1e-5;
    }
    let d = config.model.embedding_size().unwrap();
    let weights = Weights {
        config,
        classes,
        trained_on: None,
        imported_from: None,
        params,
        statistics,
    };
    (weights, (0..classes * d).map(|i| i as f32 * 0.37).collect())
}

#[test]
fn what_is_exported_comes_back_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.h5");
    let e = "model.embedding={kind=\"insight-face-e\", size=24, dropout=0}";
    for (preset, settings) in [
        ("seed-mobilenetv2", &["model.embedding.size=24"][..]),
        ("arcface-tf2-mobilenetv2", &["model.embedding.size=24"]),
        ("seed-resnet50", &["model.embedding.size=24"]),
        ("arcface-tf2-resnet50", &["model.embedding.size=24"]),
        ("small", &[]),
        ("demo", &[e]),
    ] {
        let (weights, rows) = network(preset, settings, 7);
        keras_h5::write(&path, &weights, None).unwrap();
        let options = ImportOptions {
            preset: Some(preset.into()),
            settings: settings.iter().map(ToString::to_string).collect(),
            ..ImportOptions::default()
        };
        let back = import::open(&path, &options).unwrap();
        assert_eq!(back.report.unused, [], "{preset}");
        assert_eq!(back.class_rows, None, "{preset}");
        assert!(back.weights.params == weights.params, "{preset}");
        assert!(back.weights.statistics == weights.statistics, "{preset}");
        assert_eq!(back.weights.config, weights.config);

        keras_h5::write(&path, &weights, Some(&rows)).unwrap();
        let back = import::open(&path, &options).unwrap();
        assert_eq!(back.class_rows.as_ref(), Some(&rows), "{preset}");
        assert_eq!(back.weights.classes, 7);
        assert_eq!(back.report.unused, [], "{preset}");
        assert!(back.weights.params == weights.params, "{preset}");
    }
}

/// Without a preset named, the file alone tells which of those it is.
#[test]
fn the_network_is_told_by_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.h5");
    for preset in ["seed-mobilenetv2", "arcface-tf2-mobilenetv2", "small"] {
        let (weights, rows) = network(preset, &["model.embedding.size=40"], 7);
        keras_h5::write(&path, &weights, Some(&rows)).unwrap();
        let back = import::open(&path, &ImportOptions::default()).unwrap();
        assert_eq!(back.weights.config.preset, preset);
        assert_eq!(back.weights.config.model, weights.config.model);
        assert!(back.weights.params == weights.params, "{preset}");
        assert_eq!(back.class_rows.as_ref(), Some(&rows), "{preset}");
    }
}

#[test]
fn class_rows_of_another_width_are_refused() {
    let (weights, rows) = network("demo", &[], 3);
    let error = keras_h5::layers(&weights, Some(&rows[1..])).unwrap_err();
    assert!(error.to_string().contains("no class rows of 64"), "{error}");
}
