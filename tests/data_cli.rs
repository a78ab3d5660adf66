//! Data sets through the program: converted, checked, trained on, evaluated.

mod support;

use arcface_cu::data::picture;
use arcface_cu::data::{Dataset, open};
use std::fs;
use std::path::{Path, PathBuf};
use support::*;

/// Runs the program in `dir`, with a cache of its own.
fn run(dir: &Path, words: &str) -> std::process::Output {
    std::process::Command::new(env!("CARGO_BIN_EXE_arcface-cu"))
        .args(words.split(' '))
        .current_dir(dir)
        .env("ARCFACE_CU_CACHE", dir.join("cache"))
        .output()
        .expect("the program starts")
}

/// Four people with two pictures each, as PNG.
fn people(dir: &Path) -> PathBuf {
    let folder = dir.join("people");
    for k in 0..8 {
        let path = folder.join(format!("{}/{k}.png", k / 2 * 10));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, picture::encode_png(&picture(k, 112, 112))).unwrap();
    }
    folder
}

fn contents(set: &dyn Dataset) -> Vec<(u32, Vec<u8>)> {
    let mut all: Vec<_> = (0..set.len())
        .map(|i| (set.label(i), set.encoded(i).unwrap().unwrap().bytes))
        .collect();
    all.sort();
    all
}

#[test]
fn every_format_is_packed_from_and_trained_on() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let expected = contents(&*open(&people(dir)).unwrap());
    let mut list = String::new();
    for k in 0..8 {
        list += &format!("people/{0}/{k}.png {0}\n", k / 2 * 10);
    }
    fs::write(dir.join("list.txt"), list).unwrap();
    let mut from = "list.txt".to_owned();
    for (format, shards) in [
        ("seed-tfrecord", 1),
        ("arcface-tf2-tfrecord", 3),
        ("recordio", 1),
        ("arcface-tf2-paths", 2),
    ] {
        let words = format!(
            "pack --data {from} --out {format} --format {format} --shards {shards} --reserve-last 0"
        );
        let said = stdout_of_success(&run(dir, &words));
        assert!(said.contains("8 images of 4 identities"), "{said}");
        assert_eq!(
            contents(&*open(&dir.join(format)).unwrap()),
            expected,
            "{format}"
        );
        from = format.into();
    }
    // One of a row stands for all of it.
    let words = "train --data arcface-tf2-tfrecord/train-00001-of-00003.tfrecord --preset demo --out run --steps 1 --set train.batch_size=4 --device cpu";
    let said = stdout_of_success(&run(dir, words));
    assert!(said.contains("8 images of 4 identities"), "{said}");

    let text = stderr_of_failure(&run(dir, "pack --data list.txt --out x --shards 2"), 2);
    assert!(text.contains("--shards is for TFRecord"), "{text}");
    let text = stderr_of_failure(
        &run(dir, "pack --data list.txt --pairs list.txt --out x"),
        2,
    );
    assert!(text.contains("--pairs"), "{text}");
    stderr_of_failure(&run(dir, "pack --out x"), 2);
    let text = stderr_of_failure(
        &run(
            dir,
            "pack --data list.txt --out y --reserve-last 0 --image-root people",
        ),
        1,
    );
    assert!(text.contains("people/people/"), "{text}");
}

#[test]
fn check_tells_what_is_there_and_ends_with_1_where_training_would_fail() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let folder = people(dir);
    fs::copy(folder.join("0/0.png"), folder.join("20/copy.png")).unwrap();
    let said = stdout_of_success(&run(dir, "check --data people --json report.json"));
    for words in [
        "images: 9 of 4 identities",
        "numbers from 0 to 30, 27 between them missing",
        "112x112 (9)",
        "0 images are byte for byte an earlier one of the same identity, 1 one of another identity",
        "broken: 0 images",
        "training can read all of it",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    let json = |file: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap()
    };
    let report = json("report.json");
    assert_eq!(report["images"], 9);
    assert_eq!(report["names"]["range"], serde_json::json!([0, 30]));
    assert_eq!(report["duplicates"]["other_identity"], 1);

    let whole = fs::read(folder.join("10/2.png")).unwrap();
    fs::write(folder.join("10/2.png"), &whole[..whole.len() / 2]).unwrap();
    let output = run(dir, "check --data people --json broken.json");
    let text = stderr_of_failure(&output, 1);
    assert!(
        text.contains("1 of 9 images cannot be read") && text.contains("10/2.png"),
        "{text}"
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("broken: 1 images"), "{said}");
    let report = json("broken.json");
    assert_eq!(report["broken"][0]["index"], 2);
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
}

/// Every command that opens a data set tells what of it is not used, and reads every kind of picture.
#[test]
fn what_is_not_used_is_told_by_every_command() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let folder = people(dir);
    let weights = random_weights_file(dir);
    let rgb = picture(3, 112, 112);
    for (name, format) in [
        ("0/a.webp", image::ImageFormat::WebP),
        ("10/b.BMP", image::ImageFormat::Bmp),
    ] {
        let colour = image::ExtendedColorType::Rgb8;
        let mut bytes = std::io::Cursor::new(Vec::new());
        image::write_buffer_with_format(&mut bytes, &rgb.pixels, 112, 112, colour, format).unwrap();
        fs::write(folder.join(name), bytes.into_inner()).unwrap();
    }
    let jpeg = picture::encode_jpeg(&rgb, 90);
    for name in ["20/c.jfif", "30/d.heic", "loose.jpg"] {
        fs::write(folder.join(name), &jpeg).unwrap();
    }
    fs::create_dir_all(folder.join("40/deep")).unwrap();
    let expected = [
        "not used: 1 file beside the identities (loose.jpg)",
        "not used: 1 file of other kinds than the pictures that are read (30/d.heic)",
        "not used: 1 folder inside an identity's folder (40/deep)",
        "not used: 1 class without a picture (40)",
    ];
    let weights = weights.to_str().unwrap();
    for words in [
        "check --data people --json report.json".into(),
        "train --data people --preset demo --out run --steps 1 --set train.batch_size=4 --device cpu".into(),
        "pack --data people --out packed --reserve-last 0".into(),
        format!("embed --weights {weights} --data people --all --out embedded --device cpu"),
        format!("search --weights {weights} --gallery people --query people --device cpu"),
    ] {
        let said = stdout_of_success(&run(dir, &words));
        for line in expected {
            assert!(said.contains(line), "{line:?} is not in {said}");
        }
    }
    let report: serde_json::Value =
        serde_json::from_slice(&fs::read(dir.join("report.json")).unwrap()).unwrap();
    assert_eq!(report["images"], 11);
    assert_eq!(report["unused"][0]["count"], 1);
    assert_eq!(report["unused"][0]["what"], "files beside the identities");
    // Pixels of every kind arrive, and other programs read what is packed.
    let (source, packed) = (open(&folder).unwrap(), open(&dir.join("packed")).unwrap());
    assert_eq!((packed.len(), packed.classes()), (11, 5));
    let mut images = [arcface_cu::data::Image::default(), Default::default()];
    for i in 0..11 {
        source.read(i, &mut images[0]).unwrap();
        packed.read(i, &mut images[1]).unwrap();
        assert_eq!(images[0], images[1], "{}", source.describe(i));
        if ["0/a.webp", "10/b.BMP"]
            .iter()
            .any(|name| source.describe(i).ends_with(name))
        {
            assert_eq!(images[0], rgb);
        }
        let kind = packed.encoded(i).unwrap().unwrap().extension;
        assert!(kind == "jpg" || kind == "png", "{kind}");
    }
    // Loose pictures.
    let words = format!("embed --weights {weights} --images people --out loose --device cpu");
    let said = stdout_of_success(&run(dir, &words));
    assert!(
        said.contains("not used: 1 class without a picture (40)"),
        "{said}"
    );
    assert!(said.contains("12 embeddings"), "{said}");
}

/// A pairs file, the array and the `.bin` of the same pictures are evaluated to the same numbers.
#[test]
fn evaluation_sets_of_every_form_give_the_same_result() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let weights = random_weights_file(dir);
    let mut text = String::new();
    let mut pickle = b"\x80\x04](".to_vec();
    let mut truth = b"](".to_vec();
    fs::create_dir(dir.join("faces")).unwrap();
    for pair in 0..20 {
        for k in [2 * pair, 2 * pair + 1] {
            let png = picture::encode_png(&picture(k, 112, 112));
            fs::write(dir.join(format!("faces/{k}.png")), &png).unwrap();
            pickle.push(b'B');
            pickle.extend((png.len() as u32).to_le_bytes());
            pickle.extend(png);
        }
        text += &format!("{}.png {}.png {}\n", 2 * pair, 2 * pair + 1, pair % 2);
        truth.push(if pair % 2 == 1 { 0x88 } else { 0x89 });
    }
    pickle.extend(b"e");
    pickle.extend(truth);
    pickle.extend(b"e\x86.");
    fs::write(dir.join("own.txt"), text).unwrap();
    fs::create_dir(dir.join("bins")).unwrap();
    fs::write(dir.join("bins/own.bin"), pickle).unwrap();
    let said = stdout_of_success(&run(
        dir,
        "pack --pairs own.txt --image-root faces --out arrays",
    ));
    assert!(
        said.contains("20 pairs of pictures of 112 pixels"),
        "{said}"
    );
    let again = run(dir, "pack --pairs own.txt --image-root faces --out arrays");
    assert!(stderr_of_failure(&again, 1).contains("is there already"));
    fs::rename(dir.join("arrays/own"), dir.join("own")).unwrap();
    let again = run(dir, "pack --pairs own.txt --image-root faces --out arrays");
    assert!(stderr_of_failure(&again, 1).contains("own_list.npy: is there already"));
    fs::rename(dir.join("own"), dir.join("arrays/own")).unwrap();
    let results = [
        "own.txt --image-root faces",
        "bins",
        "bins/own.bin",
        "arrays",
    ]
    .map(|data| {
        let words = format!(
            "eval --weights {} --data {data} --json own.json --device cpu",
            weights.display()
        );
        stdout_of_success(&run(dir, &words));
        let text = fs::read_to_string(dir.join("own.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(json["sets"][0]["name"], "own");
        json
    });
    assert_eq!(results[0], results[1]);
    assert_eq!(results[1], results[2]);
    // The array holds rounded numbers.
    assert_eq!(
        results[2]["sets"][0]["accuracy"],
        results[3]["sets"][0]["accuracy"]
    );
    let text = stderr_of_failure(
        &run(
            dir,
            &format!("eval --weights {} --data own.txt", weights.display()),
        ),
        1,
    );
    assert!(
        text.contains("own.txt, byte 0") && text.contains("no file"),
        "{text}"
    );
}
