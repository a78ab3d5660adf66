//! Other programs' model files on the road through the program: `import`, `export`, `train --init`, and `.h5`, `.onnx` and
//! PyTorch's names where `--weights` stands.

mod support;

use arcface_cu::weights::formats::onnx::{Graph, Node, Tensor};
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

/// What is no model file is named for what it is, by every command alike.
#[test]
fn files_of_other_kinds_are_named() {
    let room = Room::new();
    let mxnet = [&0x112_u64.to_le_bytes()[..], &[0; 40]].concat();
    let tar = [&[b'x'; 257][..], b"ustar\x0000", &[0; 250]].concat();
    let files: [(&str, &[u8], &str); 20] = [
        ("empty.pth", b"", "is empty"),
        (
            "lfs.onnx",
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12ab\nsize 1234\n",
            "is a Git LFS pointer, not the file of 1234 bytes",
        ),
        ("page.pth", b"\n<!DOCTYPE html>\n<html>", "is a web page"),
        ("page.onnx", b"\xef\xbb\xbf<HTML><body>", "is a web page"),
        ("error.onnx", b"<?xml version='1.0'?><Error>", "is XML text"),
        ("config.json", b"{\n  \"a\": 1}", "is JSON text"),
        ("m.params", &mxnet, "is MXNet's parameters (.params)"),
        ("w.npy", b"\x93NUMPY\x01\0v\0", "is a NumPy array"),
        (
            "w.tar.gz",
            b"\x1f\x8b\x08\0\0\0\0\0",
            "is packed (gzip): unpack it",
        ),
        ("w.pth", &tar, "is a tar archive"),
        (
            "m.tflite",
            b"\x1c\0\0\0TFL3\0\0",
            "is a TensorFlow Lite model",
        ),
        (
            "saved_model.pb",
            b"\x08\x01\x12\x02ab",
            "is the graph of a TensorFlow SavedModel",
        ),
        ("frozen.pb", b"\x0a\x02ab", "is a TensorFlow graph"),
        ("c.index", b"\0\0\x01", "is part of a TensorFlow checkpoint"),
        (
            "c.data-00000-of-00001",
            b"\0\0\x01",
            "is part of a TensorFlow checkpoint",
        ),
        ("picture.png", b"\x89PNG\r\n\x1a\n", "is a PNG picture"),
        (
            "a.pkl",
            b"\x80\x04K\x01.",
            "is a Python pickle that torch.save did not write",
        ),
        (
            "text.h5",
            b"just words, no model",
            "is no model file that this program knows",
        ),
        ("cut.pth", b"PK\x03\x04", "truncated or damaged"),
        (
            "zeros.onnx",
            &[0; 64],
            "is no model file that this program knows",
        ),
    ];
    for (name, bytes, words) in files {
        fs::write(room.path(name), bytes).unwrap();
        let name = format!("@{name}");
        let error = room.fails(&["import", &name, "--out", "@x.safetensors"], 1);
        assert!(
            error.contains(words) && error.contains(&name[1..]),
            "{error}"
        );
    }
    // A TensorFlow checkpoint is also named by what its files have in common.
    let error = room.fails(&["import", "@c", "--out", "@x.safetensors"], 1);
    assert!(error.contains("is a TensorFlow checkpoint"), "{error}");
    let page = ["--weights", "@page.pth"];
    let commands: [&[&str]; 5] = [
        &["eval", "--data", "@.", "--sets", "none"],
        &["embed", "--images", "@0.png", "--out", "@o"],
        &["verify", "@0.png", "@1.png"],
        &["search", "--gallery", "@0.png", "--query", "@1.png"],
        &["export", "--to", "torch", "--out", "@e.safetensors"],
    ];
    for command in &commands[1..] {
        let words = [command, &page[..]].concat();
        let error = room.fails(&words, 1);
        assert!(error.contains("is a web page"), "{command:?}: {error}");
    }
    let init = "train --data generated:4x6 --preset demo --device cpu --out @run --init @page.pth";
    let error = room.fails(&init.split(' ').collect::<Vec<_>>(), 1);
    assert!(error.contains("is a web page"), "{error}");
}

/// A ZIP archive of empty members.
fn archive(names: &[&str]) -> Vec<u8> {
    let (mut bytes, mut directory) = (Vec::new(), Vec::new());
    for name in names {
        let place = (bytes.len() as u32).to_le_bytes();
        let length = (name.len() as u16).to_le_bytes();
        let member = [
            b"PK\x03\x04".as_slice(),
            &[0; 22],
            &length,
            &[0; 2],
            name.as_bytes(),
        ];
        bytes.extend(member.concat());
        let entry = [
            b"PK\x01\x02".as_slice(),
            &[0; 24],
            &length,
            &[0; 12],
            &place,
            name.as_bytes(),
        ];
        directory.extend(entry.concat());
    }
    let count = (names.len() as u16).to_le_bytes();
    let [size, place] = [directory.len(), bytes.len()].map(|n| (n as u32).to_le_bytes());
    let end = [
        b"PK\x05\x06".as_slice(),
        &[0; 4],
        &count,
        &count,
        &size,
        &place,
        &[0; 2],
    ];
    [bytes, directory, end.concat()].concat()
}

#[test]
fn archives_are_named_by_what_is_in_them() {
    let room = Room::new();
    for (names, words) in [
        (
            &["metadata.json", "config.json", "model.weights.h5"][..],
            "is a Keras 3 archive (.keras)",
        ),
        (&["a.npy", "b.npy"], "is an archive of NumPy arrays"),
        (&["m/data.pkl", "m/constants.pkl"], "is a TorchScript model"),
        (
            &["det_10g.onnx", "w600k_r50.onnx"],
            "it holds det_10g.onnx, w600k_r50.onnx: unpack it",
        ),
    ] {
        fs::write(room.path("m.pth"), archive(names)).unwrap();
        let error = room.fails(&["import", "@m.pth", "--out", "@x.safetensors"], 1);
        assert!(error.contains(words), "{error}");
    }
}

/// A folder stands for the weights in it.
#[test]
fn weights_may_be_a_folder() {
    let room = Room::new();
    let expected = room.embed("weights.safetensors");
    let folder = |name: &str, files: &[&str]| {
        fs::create_dir(room.path(name)).unwrap();
        for file in files {
            fs::copy(room.path("weights.safetensors"), room.path(name).join(file)).unwrap();
        }
    };
    folder("one", &["w.safetensors", "notes.txt"]);
    assert_eq!(room.embed("one"), expected);
    folder(
        "run",
        &[
            "weights.safetensors",
            "weights.best.safetensors",
            "config.toml",
        ],
    );
    let words = "export --weights @run --to torch --out @t.safetensors";
    let text = room.ok(&words.split(' ').collect::<Vec<_>>());
    assert!(text.contains("run/weights.safetensors"), "{text}");
    let init = "train --data generated:4x6 --preset demo --batch-size 8 --steps 1 --device cpu \
                --set model.embedding.size=16 --out @began --init @one";
    let text = room.ok(&init.split_whitespace().collect::<Vec<_>>());
    assert!(text.contains("one/w.safetensors"), "{text}");
    folder("hub", &["pytorch_model.bin", "config.json", "lfw.bin"]);
    assert_eq!(room.embed("hub"), expected);
    folder("both", &["pytorch_model.bin", "model.safetensors"]);
    folder("several", &["a.safetensors", "b.onnx"]);
    folder("none", &["notes.txt"]);
    folder("saved", &["saved_model.pb"]);
    folder("checkpoint", &["model.index", "model.data-00000-of-00001"]);
    for (name, words) in [
        (
            "@several",
            "several model files; name one of them:\n  a.safetensors\n  b.onnx",
        ),
        ("@both", "\n  model.safetensors\n  pytorch_model.bin"),
        ("@none", "is a folder without a model file"),
        ("@saved", "is a TensorFlow SavedModel"),
        ("@checkpoint", "holds part of a TensorFlow checkpoint"),
    ] {
        let error = room.fails(&["import", name, "--out", "@x.safetensors"], 1);
        assert!(error.contains(words), "{error}");
        let error = room.fails(&["verify", "@0.png", "@1.png", "--weights", name], 1);
        assert!(error.contains(words), "{error}");
    }
}

/// Another network's file says what it holds; a weight that is no tensor is named.
#[test]
fn what_is_not_ours_says_what_it_holds() {
    let room = Room::new();
    let write = |tensors: &[(String, Vec<usize>)]| {
        let all: Vec<_> = (tensors.iter())
            .map(|(name, shape)| (name, shape, vec![0; 4 * shape.iter().product::<usize>()]))
            .collect();
        let views = all.iter().map(|(name, shape, bytes)| {
            let view = safetensors::tensor::TensorView::new(
                safetensors::Dtype::F32,
                (*shape).clone(),
                bytes,
            );
            (*name, view.unwrap())
        });
        fs::write(
            room.path("o.safetensors"),
            safetensors::serialize(views, None).unwrap(),
        )
        .unwrap();
    };
    let import = ["import", "@o.safetensors", "--out", "@x.safetensors"];
    write(&[
        ("blocks.0.attn.qkv.weight".into(), vec![6, 2]),
        ("cls_token".into(), vec![1, 1, 2]),
    ]);
    let error = room.fails(&import, 1);
    assert!(
        error.contains("blocks.0.attn.qkv.weight [6, 2], cls_token [1, 1, 2]"),
        "{error}"
    );
    assert!(
        error.contains("it holds 2 tensors") && !error.contains("preset"),
        "{error}"
    );
    // A network is not near if the file has none of its tensors.
    assert!(!error.contains("nearest"), "{error}");
    write(&[("cls_token".into(), vec![1, 1, 2])]);
    let error = room.fails(&import, 1);
    assert!(error.contains("it holds 1 tensor ("), "{error}");
}

/// An input transform that the graph begins with, and that pixels of 0..255 leave far behind, is warned of.
#[test]
fn a_transform_that_pixels_cannot_be_meant_for() {
    let room = Room::new();
    let words = "export --weights @weights.safetensors --to onnx --out @plain.onnx";
    room.ok(&words.split(' ').collect::<Vec<_>>());
    let mut graph = Graph::read(&room.path("plain.onnx")).unwrap();
    // (x - 0.5) / 0.5, of numbers of 0..1.
    graph.metadata.clear();
    let input = graph.inputs[0].name.clone();
    for node in &mut graph.nodes {
        for name in node.inputs.iter_mut().filter(|name| **name == input) {
            *name = "scaled".into();
        }
    }
    graph
        .initializers
        .push(Tensor::floats("half", vec![], vec![0.5]));
    let nodes = [
        Node::new("Sub", "shift", &[&input, "half"], "shifted"),
        Node::new("Div", "scale", &["shifted", "half"], "scaled"),
    ];
    graph.nodes.splice(0..0, nodes);
    fs::write(room.path("inside.onnx"), graph.encode()).unwrap();
    let run = room.run(&["import", "@inside.onnx", "--out", "@a.safetensors"]);
    let warning = String::from_utf8_lossy(&run.stderr).into_owned();
    assert!(
        warning.contains("become -1..509") && warning.contains("--input unit"),
        "{warning}"
    );
    let run = room.run(&[
        "import",
        "@inside.onnx",
        "--input",
        "unit",
        "--out",
        "@b.safetensors",
    ]);
    assert_eq!(String::from_utf8_lossy(&run.stderr), "");
    let text = stdout_of_success(&run);
    assert!(text.contains("x/127.5 - 1"), "{text}");
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
    assert!(export("@weights.safetensors").contains("is the file of --weights, too"));
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
