//! Shared by the tests of whole commands: pictures to work on, and a network that is trained on a GPU and used on both
//! devices.

use super::{Pictures, picture};
use arcface_cu::data::picture::encode_jpeg;
use arcface_cu::encoding::npy::{self, Elements};
use arcface_cu::eval;
use std::fs;
use std::path::Path;

/// An image folder of `count` pictures, two of each identity.
pub(crate) fn write_faces(folder: &Path, count: usize) {
    for n in 0..count {
        let identity = folder.join(format!("{:02}", n / 2));
        fs::create_dir_all(&identity).unwrap();
        let jpeg = encode_jpeg(&picture(n, 112, 112), 90);
        fs::write(identity.join(format!("{n:02}.jpg")), jpeg).unwrap();
    }
}

/// `run` runs a command, which must succeed, where `--device cuda` is a GPU.
pub(crate) fn train_eval_and_embed(run: impl Fn(&[&str])) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_string_lossy().into_owned();
    let [faces, trained, sets] = ["faces", "trained", "sets"].map(path);
    write_faces(Path::new(&faces), 8);
    let pairs: Vec<_> = (0..10)
        .map(|k| (2 * k, 2 * k + 1 + k % 2, k % 2 == 0))
        .collect();
    eval::write_set(
        Path::new(&sets),
        "lfw",
        &Pictures(20),
        &pairs,
        112,
        &mut |_| {},
    )
    .unwrap();

    // Trained on the GPU, with dropout and augmentation as the preset has them; then used on either device.
    run(&[
        "train",
        "--device",
        "cuda",
        "--preset",
        "demo",
        "--data",
        &faces,
        "--out",
        &trained,
        "--batch-size",
        "4",
        "--steps",
        "2",
    ]);
    let weights = format!("{trained}/weights.safetensors");
    let [cpu, cuda] = ["cpu", "cuda"].map(|device| {
        let [out, json] =
            [format!("{device}-out"), format!("{device}.json")].map(|name| path(&name));
        let common = ["--device", device, "--weights", &weights];
        run(&[&["embed", "--images", &faces, "--out", &out], &common[..]].concat());
        run(&[&["eval", "--data", &sets, "--json", &json], &common[..]].concat());
        let embeddings = npy::read(&Path::new(&out).join("embeddings.npy")).unwrap();
        let Elements::F32(embeddings) = embeddings.elements else {
            panic!("embeddings are float32")
        };
        (embeddings, fs::read_to_string(json).unwrap())
    });
    assert!(cpu.0.len() == cuda.0.len() && !cpu.0.is_empty());
    for (cpu, cuda) in cpu.0.iter().zip(&cuda.0) {
        // Unit vectors, through a few dozen layers of float32.
        assert!((cpu - cuda).abs() <= 1e-4, "{cpu} and {cuda}");
    }
    // Distances change by about as much, and no pair is that close to a threshold.
    let accuracy = |json: &str| {
        let json: serde_json::Value = serde_json::from_str(json).unwrap();
        json["sets"][0]["accuracy"].as_f64().unwrap()
    };
    assert_eq!(accuracy(&cpu.1), accuracy(&cuda.1));
}
