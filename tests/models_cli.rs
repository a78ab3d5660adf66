//! Other programs' model files on the road through the program: `import`, `export`, `train --init`, and `.h5`, `.onnx` and
//! PyTorch's names where `--weights` stands.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use support::{arcface_cu, picture, random_weights_file, stderr_of_failure, stdout_of_success};

struct Room(tempfile::TempDir);

impl Room {
    fn new() -> Self {
        let room = Room(tempfile::tempdir().unwrap());
        random_weights_file(room.0.path());
        for number in 0..3 {
            let image = picture(number, 112, 112);
            let pixels = image::RgbImage::from_raw(112, 112, image.pixels).unwrap();
            pixels.save(room.path(&format!("{number}.png"))).unwrap();
        }
        room
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, words: &[&str]) -> std::process::Output {
        let words = words.iter().map(|word| match word.strip_prefix('@') {
            Some(name) => self.path(name).into_os_string(),
            None => word.into(),
        });
        arcface_cu(words)
    }

    fn ok(&self, words: &[&str]) -> String {
        stdout_of_success(&self.run(words))
    }

    fn fails(&self, words: &[&str], code: i32) -> String {
        stderr_of_failure(&self.run(words), code)
    }

    /// Embeddings by the model file `weights`.
    fn embed(&self, weights: &str) -> Vec<f32> {
        let out = format!("{weights}.out");
        self.ok(&[
            "embed",
            "--weights",
            &format!("@{weights}"),
            "--images",
            "@0.png",
            "@1.png",
            "@2.png",
            "--tta",
            "none",
            "--out",
            &format!("@{out}"),
            "--overwrite",
            "--device",
            "cpu",
        ]);
        read_npy(&self.path(&out).join("embeddings.npy"))
    }
}

fn read_npy(path: &Path) -> Vec<f32> {
    match arcface_cu::encoding::npy::read(path).unwrap().elements {
        arcface_cu::encoding::npy::Elements::F32(values) => values,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_exported_comes_back() {
    let room = Room::new();
    let expected = room.embed("weights.safetensors");
    for (format, name) in [
        ("torch", "torch.safetensors"),
        ("keras-h5", "keras.h5"),
        ("onnx", "network.onnx"),
    ] {
        let (file, back) = (format!("@{name}"), format!("@{name}.safetensors"));
        let text = room.ok(&[
            "export",
            "--weights",
            "@weights.safetensors",
            "--to",
            format,
            "--out",
            &file,
        ]);
        assert!(text.contains("x/127.5 - 1"), "{text}");
        // A sum; with --verbose, every tensor.
        let text = room.ok(&["import", &file, "--out", &back]);
        assert!(text.contains("mobilefacenet-tiny, 16-d"), "{text}");
        assert!(text.contains(" 0 of the network's missing"), "{text}");
        assert!(
            text.lines().count() <= 4 && !text.contains(" -> "),
            "{text}"
        );
        let text = room.ok(&["import", &file, "--verbose", "--out", &back]);
        assert!(text.matches(" -> ").count() > 50, "{text}");
        for weights in [name.to_owned(), format!("{name}.safetensors")] {
            let found = room.embed(&weights);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                // ONNX folds batch norms into filters, and the program folds again.
                let tolerance = if format == "onnx" { 1e-5 } else { 0.0 };
                assert!(
                    (found - expected).abs() <= tolerance,
                    "{weights}: {found} {expected}"
                );
            }
        }
    }
}

#[test]
fn what_a_file_does_not_say_is_said_by_options() {
    let room = Room::new();
    room.ok(&[
        "export",
        "--weights",
        "@weights.safetensors",
        "--to",
        "torch",
        "--out",
        "@t.safetensors",
    ]);
    let text = room.ok(&["import", "@t.safetensors", "--out", "@a.safetensors"]);
    assert!(text.contains("assumed"), "{text}");
    let text = room.ok(&[
        "import",
        "@t.safetensors",
        "--input",
        "mxnet",
        "--bgr",
        "--out",
        "@b.safetensors",
    ]);
    assert!(text.contains("(x - 127.5)/128;"), "{text}");
    assert_ne!(room.embed("a.safetensors"), room.embed("b.safetensors"));
    // Turned twice is as before, and a file of this program's can be put right.
    room.ok(&[
        "import",
        "@b.safetensors",
        "--input",
        "symmetric",
        "--bgr",
        "--out",
        "@c.safetensors",
    ]);
    assert_eq!(room.embed("a.safetensors"), room.embed("c.safetensors"));
}

#[test]
fn training_begins_with_a_file() {
    let room = Room::new();
    let train = |init: &str, size: &str, out: &str, more: &[&str]| {
        let size = format!("model.embedding.size={size}");
        let mut words = vec![
            "train",
            "--data",
            "generated:4x6",
            "--preset",
            "demo",
            "--batch-size",
            "8",
            "--steps",
            "1",
            "--device",
            "cpu",
            "--set",
            &size,
            "--init",
            init,
            "--out",
            out,
        ];
        words.extend_from_slice(more);
        room.run(&words)
    };
    room.ok(&[
        "export",
        "--weights",
        "@weights.safetensors",
        "--to",
        "keras-h5",
        "--out",
        "@k.h5",
    ]);
    let text = stdout_of_success(&train("@k.h5", "16", "@run", &[]));
    assert!(text.contains(" 0 of the network's missing"), "{text}");
    // Another embedding size: listed, and that layer begins anew.
    let text = stdout_of_success(&train("@weights.safetensors", "24", "@other", &[]));
    assert!(text.contains("not mapped: embedding/kernel"), "{text}");
    assert!(
        text.contains("[24, 1, 1, 256], found [16, 1, 1, 256]"),
        "{text}"
    );
    // Another input.
    let text = stdout_of_success(&train(
        "@weights.safetensors",
        "16",
        "@input",
        &["--set", "model.input.scale=[0.1, 0.1, 0.1]"],
    ));
    assert!(
        text.contains("warning: these weights take x/127.5 - 1"),
        "{text}"
    );
    // Another network.
    let error = stderr_of_failure(
        &train(
            "@weights.safetensors",
            "16",
            "@wrong",
            &["--set", "model.network=resnet50"],
        ),
        1,
    );
    assert!(error.contains("this is another network"), "{error}");
}

#[test]
fn wrong_files_and_words_are_told() {
    let room = Room::new();
    fs::write(room.path("empty.onnx"), b"").unwrap();
    fs::write(room.path("text.h5"), b"just words, no model").unwrap();
    fs::create_dir(room.path("folder")).unwrap();
    for file in ["@empty.onnx", "@text.h5", "@folder", "@absent.pt"] {
        let error = room.fails(&["import", file, "--out", "@x.safetensors"], 1);
        assert!(error.contains(&file[1..]), "{error}");
    }
    let export = |out: &str| {
        room.fails(
            &[
                "export",
                "--weights",
                "@weights.safetensors",
                "--to",
                "torch",
                "--out",
                out,
            ],
            2,
        )
    };
    assert!(export("@folder").contains("is a folder"));
    assert!(export("@0.png/x").contains("is a file, not a folder"));
    room.ok(&[
        "export",
        "--weights",
        "@weights.safetensors",
        "--to",
        "torch",
        "--out",
        "@new/folder/x",
    ]);
    assert!(export("@weights.safetensors").contains("--out is the file of --weights"));
    let words = [
        "import",
        "@weights.safetensors",
        "--preset",
        "small",
        "--out",
        "@x.safetensors",
    ];
    let error = room.fails(&words, 2);
    assert!(error.contains("says itself which network"), "{error}");
    let input = [
        "import",
        "@weights.safetensors",
        "--input",
        "nonsense",
        "--out",
        "@x.safetensors",
    ];
    assert!(
        room.fails(&input, 2)
            .contains("unit, symmetric, mxnet, imagenet")
    );
}
