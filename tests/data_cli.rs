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
    let said = stdout_of_success(&run(
        dir,
        "check --data people --batch-size 4 --json new/folder/report.json",
    ));
    for words in [
        "images: 9 of 4 identities",
        "numbers from 0 to 30, 27 between them missing",
        "112x112 (9)",
        "0 images byte for byte an earlier one of the same identity, 1 one of another identity",
        "broken: 0 images",
        "training can read all of it",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    let json = |file: &str| -> serde_json::Value {
        serde_json::from_slice(&fs::read(dir.join(file)).unwrap()).unwrap()
    };
    let report = json("new/folder/report.json");
    assert_eq!(report["images"], 9);
    assert_eq!(report["names"]["range"], serde_json::json!([0, 30]));
    assert_eq!(report["duplicates"]["other_identity"], 1);

    let whole = fs::read(folder.join("10/2.png")).unwrap();
    fs::write(folder.join("10/2.png"), &whole[..whole.len() / 2]).unwrap();
    let output = run(dir, "check --data people --batch-size 4 --json broken.json");
    let text = stderr_of_failure(&output, 1);
    assert!(
        text.contains("1 of 9 images cannot be read") && text.contains("10/2.png"),
        "{text}"
    );
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("broken: 1 image\n"), "{said}");
    let report = json("broken.json");
    assert_eq!(report["broken"][0]["index"], 2);
    assert_eq!(report["problems"].as_array().unwrap().len(), 1);
    let text = stderr_of_failure(&run(dir, "check --data people --json people/0/0.png/x"), 2);
    assert!(text.contains("is a file, not a folder"), "{text}");
}

/// The same recipe on the same data: what one command refuses, the other does, in the same words.
#[test]
fn check_and_train_agree_about_what_cannot_learn() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    people(dir);
    fs::create_dir_all(dir.join("alone/one")).unwrap();
    for k in 0..4 {
        let from = dir.join(format!("people/{}/{k}.png", k / 2 * 10));
        fs::copy(from, dir.join(format!("alone/one/{k}.png"))).unwrap();
    }
    for (recipe, words) in [
        ("--data alone --batch-size 4", "images of one identity only"),
        ("--data people --batch-size 1", "batch norm"),
        ("--data people", "a batch of 64 needs more than 8 images"),
        (
            "--data alone",
            "one identity only: nothing can be told apart; and a batch of 64 needs more than 4 images",
        ),
    ] {
        let train = format!("train {recipe} --out none");
        for command in [format!("check {recipe}"), train] {
            let text = stderr_of_failure(&run(dir, &command), 1);
            assert!(text.contains(words), "{command}: {text}");
        }
        assert!(!dir.join("none").exists());
    }
    let recipe = "--data people --preset demo --batch-size 3";
    let notes = [
        "a warm-up of 40 steps is more than a third of the run: it is shortened to 2",
        "batches of 3 leave 2 of 8 images out of each epoch, others each time; --batch-size 2 leaves out 0",
    ];
    for command in [
        format!("check {recipe}"),
        format!("train {recipe} --out some --steps 1 --device cpu"),
    ] {
        let said = stdout_of_success(&run(dir, &command));
        for words in notes {
            assert!(said.contains(words), "{words:?} is not in {said}");
        }
    }
}

#[test]
fn nothing_is_reserved_unless_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    people(dir);
    let said = stdout_of_success(&run(dir, "pack --data people --out packed"));
    assert!(
        said.contains("train.rec: 8 images of 4 identities"),
        "{said}"
    );
    assert!(!dir.join("packed/reserved").exists());
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
        "check --data people --batch-size 2 --json report.json".into(),
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

#[test]
fn pictures_of_another_size_are_resized_for_evaluation_and_it_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let weights = random_weights_file(dir).display().to_string();
    let mut text = String::new();
    for k in 0..24 {
        // The last one is not square.
        let height = if k == 23 { 130 } else { 160 };
        let png = picture::encode_png(&picture(k, 160, height));
        fs::write(dir.join(format!("{k}.png")), png).unwrap();
        text += &if k % 2 == 0 {
            format!("{k}.png ")
        } else {
            format!("{k}.png {}\n", k / 2 % 2)
        };
    }
    fs::write(dir.join("own.txt"), text).unwrap();
    let said = stdout_of_success(&run(dir, "pack --pairs own.txt --out arrays"));
    for words in [
        "12 pairs of pictures of 160 pixels",
        "1 of 24 pictures are resized to 160x160",
    ] {
        assert!(said.contains(words), "{said}");
    }
    for data in ["own.txt", "arrays"] {
        let words = format!("eval --weights {weights} --data {data} --device cpu");
        let said = stdout_of_success(&run(dir, &words));
        assert!(
            said.contains("own: 24 of 24 pictures are resized to 112x112"),
            "{said}"
        );
    }
}

/// A JPEG with an EXIF orientation: TIFF, little-endian, one entry of tag 0x112.
fn with_orientation(jpeg: &[u8], value: u8) -> Vec<u8> {
    let entry = [0x12, 1, 3, 0, 1, 0, 0, 0, value, 0, 0, 0];
    let exif = [
        b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0".as_slice(),
        &entry,
        &[0; 4],
    ]
    .concat();
    let length = (exif.len() as u16 + 2).to_be_bytes();
    [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat()
}

#[test]
fn turned_and_unaligned_pictures_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let folder = people(dir);
    let weights = random_weights_file(dir).display().to_string();
    let jpeg = picture::encode_jpeg(&picture(9, 112, 112), 95);
    fs::write(folder.join("0/turned.jpg"), with_orientation(&jpeg, 3)).unwrap();
    fs::write(folder.join("0/upright.jpg"), with_orientation(&jpeg, 1)).unwrap();
    let wide = picture::encode_png(&picture(10, 160, 112));
    fs::write(folder.join("10/wide.png"), wide).unwrap();
    let said = stdout_of_success(&run(dir, "check --data people --batch-size 4"));
    for words in [
        "turned: 1 image not upright",
        "turned as they are read",
        "not aligned: 1 image not square",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    // What is packed is upright, and says nothing of it any more.
    let said = stdout_of_success(&run(
        dir,
        "pack --data people --out packed --reserve-last 0",
    ));
    assert!(
        said.contains("with an EXIF orientation: 1 image,"),
        "{said}"
    );
    let mut images = [arcface_cu::data::Image::default(), Default::default()];
    let (source, packed) = (open(&folder).unwrap(), open(&dir.join("packed")).unwrap());
    for i in 0..11 {
        assert!(!picture::is_turned(
            &packed.encoded(i).unwrap().unwrap().bytes
        ));
        source.read(i, &mut images[0]).unwrap();
        packed.read(i, &mut images[1]).unwrap();
        let pixels = images[0].pixels.iter().zip(&images[1].pixels);
        let difference: u64 = pixels.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
        let mean = difference / images[0].pixels.len() as u64;
        assert!(mean <= 5, "{}: {mean}", source.describe(i));
    }
    // In a record such a picture is taken as it is stored.
    let mut tar = Vec::new();
    let turned = with_orientation(&jpeg, 3);
    for (name, content) in [
        ("0.jpg", &turned[..]),
        ("0.cls", b"0"),
        ("1.jpg", &jpeg),
        ("1.cls", b"1"),
    ] {
        let mut header = vec![0; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
        header[148..156].fill(b' ');
        header[156] = b'0';
        let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(content);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    fs::write(dir.join("faces.tar"), tar).unwrap();
    let said = stdout_of_success(&run(dir, "check --data faces.tar --batch-size 2"));
    assert!(
        said.contains("turned: 1 image not") && said.contains("taken as they are stored"),
        "{said}"
    );
    let set = open(&dir.join("faces.tar")).unwrap();
    set.read(0, &mut images[0]).unwrap();
    set.read(1, &mut images[1]).unwrap();
    assert_eq!(images[0], images[1]);

    let warned = |words: &str, count: &str| {
        let output = run(dir, words);
        stdout_of_success(&output);
        let said = String::from_utf8_lossy(&output.stderr);
        let expected = format!("warning: {count} not square");
        assert_eq!(said.matches(&expected).count(), 1, "{words}: {said}");
    };
    warned(
        &format!("embed --weights {weights} --data people --all --out e --device cpu"),
        "one picture is",
    );
    warned(
        &format!(
            "embed --weights {weights} --data people --ids 1 --last-id 10 --per-id 3 --out i --device cpu"
        ),
        "one picture is",
    );
    warned(
        &format!("search --weights {weights} --gallery people --query people --device cpu"),
        "one picture is",
    );
    warned(
        &format!(
            "verify people/10/wide.png people/10/wide.png --weights {weights} --json --device cpu"
        ),
        "2 pictures are",
    );
    // Of the same stored pixels, one is turned.
    let words = format!(
        "verify people/0/turned.jpg people/0/upright.jpg --weights {weights} --json --threshold 1 --tta none --device cpu"
    );
    let answer: serde_json::Value =
        serde_json::from_str(&stdout_of_success(&run(dir, &words))).unwrap();
    assert!(
        answer["distance"].as_f64().unwrap() > 0.0,
        "turned upside down: {answer}"
    );
}

#[cfg(unix)]
#[test]
fn links_that_lead_nowhere_and_pipes_are_skipped_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let folder = people(dir);
    std::os::unix::fs::symlink("nowhere.png", folder.join("10/link.png")).unwrap();
    let words = "pack --data people --out packed --reserve-last 0";
    let said = stderr_of_failure(&run(dir, words), 1);
    assert!(said.contains("10/link.png"), "{said}");
    let said = stdout_of_success(&run(dir, &format!("{words} --skip-bad")));
    assert!(
        said.contains("left out 1 image:") && said.contains("10/link.png"),
        "{said}"
    );
    fs::remove_file(folder.join("10/link.png")).unwrap();
    let pipe = |name: &str| {
        let made = std::process::Command::new("mkfifo")
            .arg(dir.join(name))
            .status();
        assert!(made.unwrap().success());
    };
    pipe("people/10/pipe.png");
    let said = stderr_of_failure(&run(dir, "check --data people"), 1);
    assert!(
        said.contains("10/pipe.png: is a device or a pipe"),
        "{said}"
    );
    let words = "train --data people --preset demo --out run --steps 1 --set train.batch_size=4 --skip-bad --device cpu";
    stdout_of_success(&run(dir, words));
    // Wherever a file of a data or evaluation set belongs.
    let weights = random_weights_file(dir).display().to_string();
    for name in ["x.rec", "x.tar", "x.tfrecord", "x.txt", "x.bin"] {
        pipe(name);
        let words = match name {
            "x.bin" => format!("eval --weights {weights} --data {name} --device cpu"),
            _ => format!("check --data {name}"),
        };
        stderr_of_failure(&run(dir, &words), 1);
    }
}

/// In a folder of identities it would be one more of them, the next time.
#[test]
fn nothing_is_put_among_the_identities() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let weights = random_weights_file(dir.path()).display().to_string();
    for (place, jpeg) in ["people/a/1.jpg", "people/b/2.jpg"].iter().zip([1, 2]) {
        let path = dir.path().join(place);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, picture::encode_jpeg(&picture(jpeg, 112, 112), 90)).unwrap();
    }
    let data = at("people");
    for out in ["people", "people/out", "people/../people/a/out"] {
        let embed = ["embed", "--weights", &weights, "--device", "cpu"];
        let train = ["train", "--preset", "demo", "--device", "cpu"];
        for (command, flag) in [
            (&["pack"][..], "--data"),
            (&embed, "--data"),
            (&embed, "--images"),
            (&train, "--data"),
        ] {
            let out = at(out);
            let words = [command, &[flag, &data, "--out", &out]].concat();
            let error = stderr_of_failure(&arcface_cu(words), 2);
            assert!(error.contains("whose folders are identities"), "{error}");
        }
    }
    assert_eq!(fs::read_dir(dir.path().join("people")).unwrap().count(), 2);
    stdout_of_success(&arcface_cu([
        "pack",
        "--data",
        &data,
        "--out",
        &at("people2"),
    ]));
    // A folder of records may hold others.
    let (records, inside) = (at("people2"), at("people2/again"));
    let words = ["pack", "--data", &records, "--out", &inside];
    stdout_of_success(&arcface_cu(words));
}

/// A slip of the pen must not cost a file that the command reads, nor a second result the first.
#[test]
fn results_never_replace_what_a_command_reads() {
    let dir = tempfile::tempdir().unwrap();
    people(dir.path());
    random_weights_file(dir.path());
    let at = |name: &str| dir.path().join(name);
    fs::write(
        at("pairs.txt"),
        "people/0/0.png people/0/1.png 1\n".repeat(12),
    )
    .unwrap();
    fs::write(at("list.txt"), "people/0/0.png 0\npeople/10/2.png 1\n").unwrap();
    let embed = "embed --device cpu --weights weights.safetensors --data people --out gallery";
    stdout_of_success(&run(dir.path(), embed));
    let weights = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap());
    let weights: Vec<_> = weights
        .map(|e| e.file_name().into_string().unwrap())
        .collect();
    assert!(
        weights.contains(&"weights.safetensors".to_owned()),
        "{weights:?}"
    );
    for (words, flag) in [
        ("check --data list.txt --json ./list.txt", "--data"),
        (
            "eval --weights weights.safetensors --data pairs.txt --json weights.safetensors",
            "--weights",
        ),
        (
            "eval --weights weights.safetensors --data pairs.txt --json pairs.txt",
            "--data",
        ),
        (
            "eval --weights weights.safetensors --data pairs.txt --json a.png --pairs a.png",
            "--json",
        ),
        (
            "search --gallery gallery --query gallery --json gallery/embeddings.json",
            "--gallery",
        ),
        (
            "search --gallery gallery --query gallery --csv gallery/files.txt",
            "--gallery",
        ),
        (
            "search --gallery gallery --query gallery --json hits --csv people/../hits",
            "--json",
        ),
        (
            "import weights.safetensors --out weights.safetensors",
            "the model",
        ),
        (
            "export --weights weights.safetensors --to onnx --out people/../weights.safetensors",
            "--weights",
        ),
    ] {
        let before = everything(dir.path());
        let error = stderr_of_failure(&run(dir.path(), words), 2);
        assert!(
            error.contains(&format!("is the file of {flag}, too")),
            "{words}: {error}"
        );
        assert!(everything(dir.path()) == before, "{words}");
    }
    // Devices may be written to by all.
    let words = "search --gallery gallery --query gallery --json /dev/null --csv /dev/null";
    stdout_of_success(&run(dir.path(), words));
}

/// All files below a folder.
fn everything(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.extend(everything(&path)),
            false => files.push((path.clone(), fs::read(&path).unwrap())),
        }
    }
    files.sort();
    files
}

/// Where a result cannot be written, that is said before hours of work, not after.
#[test]
#[cfg(target_os = "linux")]
fn a_place_that_cannot_be_written_to_is_refused_before_the_work() {
    let dir = tempfile::tempdir().unwrap();
    people(dir.path());
    random_weights_file(dir.path());
    let line = "people/0/0.png people/0/1.png 1\n";
    fs::write(dir.path().join("pairs.txt"), line.repeat(12)).unwrap();
    let eval = "eval --device cpu --weights weights.safetensors --data pairs.txt";
    // In /sys, root makes no files either.
    for (words, work) in [
        (
            "check --data people --json /sys/x.json".to_owned(),
            "images: ",
        ),
        (format!("{eval} --json /sys/new/x.json"), "accuracy"),
        (format!("{eval} --pairs /sys/x.png"), "accuracy"),
        (format!("{eval} --report /sys/new"), "accuracy"),
        (
            "train --device cpu --preset demo --data people --batch-size 4 --out /sys/run"
                .to_owned(),
            "data: ",
        ),
    ] {
        let output = run(dir.path(), &words);
        let error = stderr_of_failure(&output, 1);
        assert!(
            error.contains("writing") && error.contains("/sys/"),
            "{words}: {error}"
        );
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!said.contains(work), "{words}: {said}");
    }
    for words in [
        "pack --data people --out pairs.txt",
        "pack --data people --out pairs.txt/x",
    ] {
        let error = stderr_of_failure(&run(dir.path(), words), 2);
        assert!(error.contains("--out pairs.txt"), "{error}");
    }
}

/// A device has no end; a pipe cannot be read twice, as the settings are.
#[test]
#[cfg(target_os = "linux")]
fn settings_and_results_are_read_from_regular_files() {
    let dir = tempfile::tempdir().unwrap();
    people(dir.path());
    random_weights_file(dir.path());
    let settings = "\u{feff}[train]\r\nbatch_size = 2\r\n";
    fs::write(dir.path().join("set.toml"), settings).unwrap();
    stdout_of_success(&run(dir.path(), "check --data people --config set.toml"));
    let pictures = "people/0/0.png people/0/1.png";
    for words in [
        "check --data people --config /dev/zero",
        "check --data people --config /dev/stdin",
        &format!("verify {pictures} --weights weights.safetensors --device cpu --eval /dev/zero"),
    ] {
        let error = stderr_of_failure(&run(dir.path(), words), 1);
        assert!(error.contains("is a device or a pipe"), "{error}");
    }
}

/// No statistics of nothing.
#[test]
fn check_says_nothing_of_colours_where_there_are_none() {
    let dir = tempfile::tempdir().unwrap();
    for k in 0..4 {
        let path = dir.path().join(format!("broken/{}/{k}.png", k / 2));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, "no picture").unwrap();
        let mut grey = picture(k, 112, 112);
        grey.pixels.chunks_exact_mut(3).for_each(|p| {
            p[2] = {
                p[1] = p[0];
                p[0]
            }
        });
        let path = dir.path().join(format!("grey/{}/{k}.png", k / 2));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, picture::encode_png(&grey)).unwrap();
    }
    let said = |words: &str| String::from_utf8(run(dir.path(), words).stdout).unwrap();
    let text = said("check --data broken --batch-size 2");
    assert!(text.contains("broken: 4 images"), "{text}");
    assert!(
        !text.contains("colour") && !text.contains("sizes"),
        "{text}"
    );
    let text = said("check --data grey --batch-size 2");
    assert!(
        text.contains("all of the images are grey") && !text.contains("skin"),
        "{text}"
    );
}

/// Numbers that no machine could serve are refused, not tried.
#[test]
fn numbers_without_measure_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    people(dir.path());
    random_weights_file(dir.path());
    let weights = "--weights weights.safetensors";
    for (words, code, why) in [
        (
            "pack --data people --out out --resize 65535",
            2,
            "not in 1..=4096",
        ),
        ("check --data generated:99999999x99999999", 1, "below 2^32"),
        (
            "pack --data people --out out --reserve-last 18446744073709551615",
            1,
            "none would be left",
        ),
        (
            &format!(
                "embed {weights} --device cpu --data people --out out --ids 18446744073709551615"
            ),
            1,
            "found 0",
        ),
        (
            &format!("verify {weights} people/0/0.png people/0/1.png --threshold -1"),
            2,
            "from 0 to 4",
        ),
    ] {
        let error = stderr_of_failure(&run(dir.path(), words), code);
        assert!(error.contains(why), "{words}: {error}");
    }
}
