//! The commands `embed` and `pack` on small folders.

mod support;

use arcface_cu::data::picture::encode_jpeg;
use arcface_cu::encoding::npy::{self, Elements, Npy};
use std::fs;
use std::path::Path;
use std::process::Output;
use support::*;

/// `<number>/<image>.jpg`, of odd sizes.
fn image_folder(root: &Path, identities: &[(&str, usize)]) {
    for (i, (name, images)) in identities.iter().enumerate() {
        let dir = root.join(name);
        fs::create_dir_all(&dir).unwrap();
        for k in 0..*images {
            let jpeg = encode_jpeg(&picture(10 * i + k, 92 + 20 * (k % 2), 112), 90);
            fs::write(dir.join(format!("{k:03}.jpg")), jpeg).unwrap();
        }
    }
}

fn embeddings(out: &Path) -> (Vec<usize>, Vec<f32>) {
    match npy::read(&out.join("embeddings.npy")).unwrap() {
        Npy {
            shape,
            elements: Elements::F32(values),
        } => (shape, values),
        other => panic!("{other:?}"),
    }
}

fn labels(out: &Path) -> Vec<i64> {
    match npy::read(&out.join("labels.npy")).unwrap().elements {
        Elements::I64(values) => values,
        other => panic!("{other:?}"),
    }
}

#[test]
fn identities_are_embedded_from_the_last_downwards() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path()).display().to_string();
    let (data, out) = (dir.path().join("people"), dir.path().join("out"));
    image_folder(
        &data,
        &[("7", 4), ("9", 2), ("10", 3), ("0012", 5), ("14", 3)],
    );
    // Nobody in it: skipped as if it were not there.
    fs::create_dir(data.join("13")).unwrap();
    let run = |ids: &str, last: &str, tta: &str| {
        arcface_cu([
            "embed",
            "--weights",
            &weights,
            "--data",
            data.to_str().unwrap(),
            "--ids",
            ids,
            "--per-id",
            "3",
            "--last-id",
            last,
            "--tta",
            tta,
            "--batch-size",
            "2",
            "--overwrite",
            "--out",
            out.to_str().unwrap(),
        ])
    };
    // The first line says what network it is.
    let told = |output: &Output| -> String {
        let text = stdout_of_success(output);
        let (network, rest) = text.split_once('\n').unwrap();
        assert!(network.starts_with("network: "), "{text}");
        let unused = "not used: 1 class without a picture (13)\n";
        rest.strip_prefix(unused).expect(&text).to_owned()
    };
    let text = told(&run("3", "13", "flip-sum"));
    let lines: Vec<&str> = text.lines().take(7).collect();
    let expected = [
        "Skipping ID:13.",
        "ID:12 Embedding done.",
        "Skipping ID:11.",
        "ID:10 Embedding done.",
        "Skipping ID:9.",
        "Skipping ID:8.",
        "ID:7 Embedding done.",
    ];
    assert_eq!(lines, expected, "{text}");
    assert!(text.contains("mean cosine within identities"), "{text}");

    let (shape, values) = embeddings(&out);
    assert_eq!(shape, [9, 16]);
    for row in values.chunks_exact(16) {
        let squared: f64 = row.iter().map(|&x| f64::from(x).powi(2)).sum();
        assert!((squared - 1.0).abs() <= 1e-5);
    }
    assert_eq!(labels(&out), [12, 12, 12, 10, 10, 10, 7, 7, 7]);
    let files = fs::read_to_string(out.join("files.txt")).unwrap();
    let files: Vec<&str> = files.lines().collect();
    assert_eq!(files.len(), 9);
    assert!(
        files[0].ends_with("people/0012/000.jpg") && files[8].ends_with("people/7/002.jpg"),
        "{files:?}"
    );
    let names = fs::read_to_string(out.join("labels.tsv")).unwrap();
    assert_eq!(names, "label\tname\n7\t7\n10\t10\n12\t0012\n");
    let drawn = image::open(out.join("similarity.png")).unwrap();
    assert!(drawn.width() > 400);

    // Another augmentation gives other vectors; concatenation doubles their length.
    stdout_of_success(&run("3", "13", "none"));
    let (_, plain) = embeddings(&out);
    assert!(plain.iter().zip(&values).any(|(a, b)| (a - b).abs() > 1e-4));
    stdout_of_success(&run("3", "13", "flip-concat"));
    assert_eq!(embeddings(&out).0, [9, 32]);

    // Four there are, from 14 on.
    assert!(told(&run("4", "14", "none")).starts_with("ID:14 Embedding done.\nSkipping ID:13.\n"));
    let error = stderr_of_failure(&run("5", "14", "none"), 1);
    assert!(
        error.contains(
            "expected 5 identities with at least 3 images each from number 14 downwards, found 4"
        ),
        "{error}"
    );
    // A number that nobody comes near does not fill the screen.
    let far = told(&run("1", "4000000000000", "none"));
    assert!(
        far.starts_with("Skipping ID:4000000000000 to ID:15.\nID:14 Embedding done.\n"),
        "{far}"
    );
}

#[test]
fn any_pictures_are_embedded() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path()).display().to_string();
    let (data, out) = (dir.path().join("people"), dir.path().join("out"));
    image_folder(&data, &[("ann", 2), ("bob", 3)]);
    image_folder(dir.path(), &[("loose", 1)]);
    let single = dir.path().join("single.ppm");
    let pixels = picture(3, 50, 60).pixels;
    fs::write(&single, [b"P6 50 60 255\n", &pixels[..]].concat()).unwrap();
    let path = |p: &Path| p.display().to_string();
    let run = |extra: &str| {
        arcface_cu([
            "embed",
            "--weights",
            &weights,
            "--out",
            &path(&out),
            "--overwrite",
            "--images",
            &path(&single),
            &path(&data),
            &path(&dir.path().join("loose")),
            extra,
        ])
    };
    let text = stdout_of_success(&run(&path(&single)));
    assert!(text.contains(", with loose images "), "{text}");
    // Loose pictures are no identities.
    assert_eq!(labels(&out), [-1, 0, 0, 1, 1, 1, -1, -1]);
    let names = fs::read_to_string(out.join("labels.tsv")).unwrap();
    assert_eq!(names, "label\tname\n0\tann\n1\tbob\n");
    let (_, rows) = embeddings(&out);
    assert_eq!(rows[..16], rows[7 * 16..], "the same picture twice");

    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let error = stderr_of_failure(&run(&path(&empty)), 1);
    assert!(error.contains("holds no image"), "{error}");
    fs::write(empty.join("x.jpg"), b"not a JPEG").unwrap();
    let error = stderr_of_failure(&run(&path(&empty)), 1);
    assert!(error.contains("x.jpg: cannot be decoded"), "{error}");
}

#[test]
fn everything_is_embedded_unless_test_identities_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path()).display().to_string();
    let data = dir.path().join("people");
    image_folder(&data, &[("ann", 2), ("bob", 3)]);
    let out = |name: &str| dir.path().join(name);
    let run = |name: &str, extra: &[&str]| {
        let (data, out) = (data.display().to_string(), out(name).display().to_string());
        let words = [
            "embed",
            "--weights",
            &weights,
            "--data",
            &data,
            "--out",
            &out,
        ];
        let device = ["--device", "cpu", "--threads", "1"];
        arcface_cu(words.iter().chain(&device).chain(extra))
    };
    for (name, extra) in [("all", &["--all"][..]), ("plain", &[])] {
        let text = stdout_of_success(&run(name, extra));
        assert!(text.contains("5 embeddings in "), "{text}");
        assert_eq!(labels(&out(name)), [0, 0, 1, 1, 1]);
    }
    assert_eq!(embeddings(&out("all")), embeddings(&out("plain")));
    // Counted before anything is made or a device is opened.
    let error = stderr_of_failure(&run("few", &["--ids", "2", "--per-id", "3"]), 1);
    assert!(
        error.contains("expected 2 identities with at least 3 images each"),
        "{error}"
    );
    let error = stderr_of_failure(&run("few", &["--ids", "2"]), 1);
    assert!(error.contains("at least 20 images each"), "{error}");
    assert!(!out("few").exists());
    for extra in [
        &["--per-id", "3"][..],
        &["--last-id", "1"],
        &["--ids", "1", "--skip-bad"],
    ] {
        stderr_of_failure(&run("few", extra), 2);
    }
    // A finished gallery.
    let error = stderr_of_failure(&run("all", &[]), 1);
    assert!(
        error.contains("all: holds a finished gallery; --append adds"),
        "{error}"
    );
    fs::remove_file(out("all").join("similarity.png")).unwrap();
    let text = stdout_of_success(&run("all", &["--resume"]));
    assert!(
        text.contains("holds the finished gallery already: nothing to do"),
        "{text}"
    );
    assert!(out("all").join("similarity.png").is_file());
    stderr_of_failure(&run("all", &["--resume", "--overwrite"]), 2);
    stdout_of_success(&run("all", &["--overwrite"]));
    image_folder(&data, &[("cid", 1)]);
    let text = stdout_of_success(&run("all", &["--append"]));
    let said = "5 pictures are in the gallery already and stay as they are, 1 are new";
    assert!(
        text.contains(said) && text.contains("6 embeddings in "),
        "{text}"
    );
    assert_eq!(labels(&out("all")), [0, 0, 1, 1, 1, 2]);
    let text = stdout_of_success(&run("all", &["--append"]));
    assert!(
        text.contains("nothing to add: all pictures are in "),
        "{text}"
    );
    // Identities can be stopped and resumed, and the whole is told of.
    let ids = ["--ids", "2", "--per-id", "2"];
    let text = stdout_of_success(&run("ids", &ids));
    assert!(
        text.contains("ID:1 Embedding done.\nID:0 Embedding done.\n"),
        "{text}"
    );
    assert_eq!(labels(&out("ids")), [1, 1, 0, 0]);
}

#[test]
fn packing_reserves_refuses_and_skips() {
    let dir = tempfile::tempdir().unwrap();
    let (data, out) = (dir.path().join("people"), dir.path().join("out"));
    image_folder(&data, &[("a", 2), ("b", 3), ("c", 4)]);
    fs::write(data.join("a/broken.jpg"), [0xff, 0xd8, 0xff]).unwrap();
    let run = |extra: &[&str]| {
        let words = [
            "pack",
            "--data",
            data.to_str().unwrap(),
            "--out",
            out.to_str().unwrap(),
            "--reserve-last",
            "1",
        ];
        arcface_cu(words.iter().chain(extra))
    };
    let error = stderr_of_failure(&run(&[]), 1);
    assert!(
        error.contains("broken.jpg") && error.contains("truncated"),
        "{error}"
    );
    let text = stdout_of_success(&run(&["--skip-bad"]));
    for words in [
        "train.rec: 5 images of 2 identities",
        "reserved: 4 images of 1 identities, kept out of training",
        "left out 1 images:",
        "broken.jpg",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(out.join("reserved/2/0001.jpg").is_file());
    let error = stderr_of_failure(&run(&["--skip-bad"]), 1);
    assert!(error.contains("is there already"), "{error}");
    stdout_of_success(&run(&["--skip-bad", "--overwrite", "--seed", "2"]));
}
