//! The commands `embed` and `pack` on small folders.

mod support;

use arcface_cu::data::picture::align::{TEMPLATE, align};
use arcface_cu::data::picture::{encode_jpeg, encode_png};
use arcface_cu::data::{self, Image};
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
    let said = "in the gallery already: 5 pictures; new: 1";
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

/// `embed` with weights, data and an output folder.
fn embed_people([weights, data, out]: [&str; 3], device: &str, extra: &[&str]) -> Output {
    let words = ["--weights", weights, "--data", data, "--out", out];
    arcface_cu([&["embed", "--device", device], &words[..], extra].concat())
}

/// On a device that no machine has.
#[test]
fn what_is_wrong_with_the_arguments_is_said_before_a_device_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let weights = random_weights_file(dir.path()).display().to_string();
    let data = at("people");
    image_folder(Path::new(&data), &[("ann", 2), ("bob", 3)]);
    let embed = |device: &str, out: &str, extra: &[&str]| {
        embed_people([&weights, &data, &at(out)], device, extra)
    };
    stdout_of_success(&embed("cpu", "gallery", &[]));
    let nowhere = "cuda:7";
    stderr_of_failure(&embed(nowhere, "new", &[]), 1);
    assert!(!dir.path().join("new").exists());
    let text = stdout_of_success(&embed(nowhere, "gallery", &["--resume"]));
    assert!(text.contains("nothing to do"), "{text}");
    let another = "a finished gallery of another kind; --tta";
    for (extra, code, words) in [
        (&["--resume", "--tta", "none"][..], 1, another),
        (&["--append", "--tta", "none"], 1, another),
        (&[], 1, "holds a finished gallery; --append"),
        (&["--ids", "0", "--overwrite"], 2, "at least one identity"),
        (&["--ids", "3", "--overwrite"], 1, "expected 3 identities"),
        (&["--landmarks", "none.txt", "--overwrite"], 1, "none.txt"),
    ] {
        let error = stderr_of_failure(&embed(nowhere, "gallery", extra), code);
        assert!(error.contains(words), "{words}: {error}");
    }
    let lock = fs::File::open(dir.path().join("gallery/.lock")).unwrap();
    lock.lock().unwrap();
    let error = stderr_of_failure(&embed(nowhere, "gallery", &["--overwrite"]), 2);
    assert!(
        error.contains("another process is embedding into"),
        "{error}"
    );
    drop(lock);
    let (picture, gallery) = (at("people/ann/000.jpg"), at("gallery"));
    let run = |command: &str, words: &[&str]| {
        let first = [command, "--weights", &weights, "--device", nowhere];
        stderr_of_failure(&arcface_cu([&first, words].concat()), 2)
    };
    let search = ["--gallery", &gallery, "--query", &picture];
    for (command, words) in [
        ("verify", &[&picture[..], &picture][..]),
        ("search", &search),
    ] {
        let error = run(command, &[words, &["--threshold", "9"]].concat());
        assert!(error.contains("are from 0 to 4"), "{error}");
    }
    let error = run("search", &[&search[..], &["--json", &data]].concat());
    assert!(error.contains("is a folder; name a file"), "{error}");
}

/// What a terminal obeys does not reach it from the command line either.
#[test]
fn a_path_as_typed_is_shown_on_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let weights = random_weights_file(dir.path()).display().to_string();
    let data = at("a\nb");
    image_folder(Path::new(&data), &[("ann", 2), ("bob", 3)]);
    let embed = |out: &str, extra: &[&str]| embed_people([&weights, &data, &at(out)], "cpu", extra);
    let text = stdout_of_success(&embed("x\ny\u{1b}[2J", &[]));
    assert!(text.contains("x\\ny\\u{1b}[2J"), "{text}");
    assert!(!text.contains("x\ny"), "{text}");
    fs::write(at("f\ng"), "").unwrap();
    for error in [
        stderr_of_failure(&embed("x\ny\u{1b}[2J", &[]), 1),
        stderr_of_failure(&embed("f\ng", &[]), 2),
        stderr_of_failure(&embed("z", &["--landmarks", &at("no\nne")]), 1),
    ] {
        assert_eq!(error.trim_end().lines().count(), 1, "{error}");
    }
}

/// Pictures of 150 x 130 pixels with a face somewhere in each, and the faces aligned, as files that lose nothing.
fn faces_and_landmarks(dir: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for k in 0..4_usize {
        let image = picture(k, 150, 130);
        let (angle, scale) = (0.3 * k as f64 - 0.4, 0.7 + 0.1 * k as f64);
        let points = TEMPLATE.map(|[x, y]| {
            let (x, y) = (x - 56.0 + (3 * k) as f64, y - 70.0);
            let place = |a: f64, b: f64| 65.0 + scale * (x * a + y * b);
            [
                place(angle.cos(), -angle.sin()),
                place(angle.sin(), angle.cos()),
            ]
        });
        let name = format!("{}/{k}.png", ["ann", "bob"][k / 2]);
        for (folder, image) in [
            ("raw", image.clone()),
            ("aligned", align(&image, &points, 112).unwrap()),
        ] {
            let path = dir.join(folder).join(&name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, encode_png(&image)).unwrap();
        }
        let numbers = points.as_flattened().iter().map(f64::to_string);
        lines.push(format!("{name} {}", numbers.collect::<Vec<_>>().join(" ")));
    }
    lines
}

#[test]
fn faces_are_aligned_on_the_way_in() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path()).display().to_string();
    let mut lines = faces_and_landmarks(dir.path());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let numbers = "69 109 106 113 77 142 73 152 108 154";
    lines.push(format!("zoe/9.png {numbers}"));
    fs::write(at("points.txt"), lines.join("\n").replace("bob/", "bob\\")).unwrap();
    let embed = |out: &str, extra: &[&str]| {
        let out = at(out);
        let words = [
            "embed",
            "--weights",
            &weights,
            "--device",
            "cpu",
            "--out",
            &out,
        ];
        arcface_cu(words.iter().chain(extra))
    };
    stdout_of_success(&embed("expected", &["--data", &at("aligned")]));
    let text = stdout_of_success(&embed(
        "found",
        &["--data", &at("raw"), "--landmarks", &at("points.txt")],
    ));
    let unused = "not used: 1 line of landmarks without a picture (zoe/9.png)";
    assert!(text.contains(unused), "{text}");
    let expected = embeddings(&dir.path().join("expected"));
    assert_eq!(embeddings(&dir.path().join("found")), expected);
    // Loose pictures, by their path from the folder that holds the landmarks.
    let output = embed(
        "loose",
        &["--images", &at("raw"), "--landmarks", &at("points.txt")],
    );
    stdout_of_success(&output);
    assert!(!String::from_utf8_lossy(&output.stderr).contains("not square"));
    assert_eq!(embeddings(&dir.path().join("loose")), expected);

    // A picture without landmarks is like one that cannot be read.
    fs::write(at("three.txt"), lines[..3].join("\n")).unwrap();
    let three = ["--data", &at("raw"), "--landmarks", &at("three.txt")];
    let error = stderr_of_failure(&embed("three", &three), 1);
    assert!(
        error.contains("three.txt: has no landmarks for 1 of 4 pictures")
            && error.contains("bob/3.png"),
        "{error}"
    );
    let three = [&three[..], &["--skip-bad"]].concat();
    let text = stdout_of_success(&embed("three", &three));
    assert!(
        text.contains("3 embeddings in ") && text.contains("1 picture left out"),
        "{text}"
    );
    assert_eq!(
        embeddings(&dir.path().join("three")).1,
        expected.1[..3 * 16]
    );
    // Landmarks of other pictures, and of no face.
    fs::write(at("other.txt"), format!("zoe/9.png {numbers}\n")).unwrap();
    let other = ["--data", &at("raw"), "--landmarks", &at("other.txt")];
    let error = stderr_of_failure(&embed("other", &other), 1);
    assert!(
        error.contains("no landmarks for 4 pictures: it names")
            && error.contains("zoe/9.png")
            && error.contains("ann/0.png"),
        "{error}"
    );
    fs::write(
        at("bad.txt"),
        format!("{}\nann/1.png 1 1 1 1 1 1 1 1 1 1\n", lines[0]),
    )
    .unwrap();
    let bad = [
        "--data",
        &at("raw"),
        "--landmarks",
        &at("bad.txt"),
        "--skip-bad",
    ];
    let error = stderr_of_failure(&embed("bad", &bad), 1);
    assert!(
        error.contains("in line 2 five times the same point"),
        "{error}"
    );

    // verify, by the paths that are given; a picture and its aligned face are one person.
    let answer = |a: &str, b: &str, extra: &[&str]| {
        let (a, b) = (at(a), at(b));
        let words = [
            "verify",
            &a,
            &b,
            "--weights",
            &weights,
            "--device",
            "cpu",
            "--json",
        ];
        let text = stdout_of_success(&arcface_cu(words.iter().chain(extra)));
        serde_json::from_str::<serde_json::Value>(&text).unwrap()["cosine"]
            .as_f64()
            .unwrap()
    };
    let names = lines.iter().map(|line| format!("{}/{line}", at("raw")));
    fs::write(at("paths.txt"), names.collect::<Vec<_>>().join("\n")).unwrap();
    let plain = answer("aligned/ann/1.png", "aligned/bob/2.png", &[]);
    let points = ["--landmarks", &at("paths.txt")];
    assert_eq!(answer("raw/ann/1.png", "raw/bob/2.png", &points), plain);
    assert_ne!(answer("raw/ann/1.png", "raw/bob/2.png", &[]), plain);

    // search: raw pictures in the gallery of aligned ones.
    let search = |gallery: &str, extra: &[&str]| {
        let (gallery, query, points) = (at(gallery), at("raw"), at("points.txt"));
        let words = [
            "search",
            "--gallery",
            &gallery,
            "--query",
            &query,
            "--device",
            "cpu",
            "--top",
            "1",
        ];
        arcface_cu(words.iter().chain(&["--landmarks", &points]).chain(extra))
    };
    let text = stdout_of_success(&search("expected", &["--weights", &weights]));
    assert_eq!(text.matches("   1   1.0000  ").count(), 4, "{text}");

    // pack, at 112 pixels and at another size.
    for (size, extra) in [(112, &[][..]), (96, &["--resize", "96"])] {
        let out = at(&format!("packed{size}"));
        let (data, points) = (at("raw"), at("points.txt"));
        let words = [
            "pack",
            "--data",
            &data,
            "--out",
            &out,
            "--landmarks",
            &points,
        ];
        let words = words.iter().chain(&["--reserve-last", "0"]).chain(extra);
        stdout_of_success(&arcface_cu(words));
        let packed = data::open(Path::new(&out)).unwrap();
        assert_eq!((packed.len(), packed.classes()), (4, 2));
        for index in 0..4 {
            let mut image = Image::default();
            packed.read(index, &mut image).unwrap();
            assert_eq!((image.width, image.height), (size, size));
        }
    }
    let pairs = ["pack", "--pairs", "x", "--out", "y", "--landmarks", "z"];
    stderr_of_failure(&arcface_cu(pairs), 2);
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
        "reserved: 4 images of 1 identity, kept out of training",
        "left out 1 image:",
        "broken.jpg",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }
    assert!(out.join("reserved/2/0001.jpg").is_file());
    let error = stderr_of_failure(&run(&["--skip-bad"]), 1);
    assert!(error.contains("is there already"), "{error}");
    stdout_of_success(&run(&["--skip-bad", "--overwrite", "--seed", "2"]));
}
