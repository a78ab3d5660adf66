//! Evaluation: what the network is fed, and the command on genuine and on broken arrays.

mod support;

use arcface_cu::backend::Element;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::embedder::Embedder;
use arcface_cu::eval::{self, ChannelOrder, EvalOptions, EvalSet, SetFiles};
use arcface_cu::verification::{self, Tta};
use std::fs;
use std::path::Path;
use support::*;

const SIDE: usize = 112;

fn pairs(n: usize) -> Vec<(usize, usize, bool)> {
    (0..n)
        .map(|k| match k % 2 {
            0 => (2 * k, 2 * k + 1, true),
            _ => (2 * k, (2 * k + 5) % (2 * n), false),
        })
        .collect()
}

fn write_set(dir: &Path, name: &str, pairs: &[(usize, usize, bool)]) -> SetFiles {
    let pictures = Pictures(2 * pairs.len());
    eval::write_set(dir, name, &pictures, pairs, SIDE, &mut |_| {}).unwrap()
}

/// The network's input for a picture, from the definition: f64, pixel by pixel.
fn expected_input(number: usize, ccrop: bool, order: ChannelOrder) -> Vec<f64> {
    let image = picture(number, SIDE, SIDE);
    let pixel = |x: usize, y: usize, c: usize| f64::from(image.pixels[(y * SIDE + x) * 3 + c]);
    // cv2.resize to 128, then rows and columns 8..120.
    let sample = |x: usize, y: usize, c: usize| {
        let place = |i: usize| {
            let p = ((i as f64 + 8.0 + 0.5) * 112.0 / 128.0 - 0.5).clamp(0.0, 111.0);
            (p as usize, (p as usize + 1).min(SIDE - 1), p.fract())
        };
        let ((x0, x1, fx), (y0, y1, fy)) = (place(x), place(y));
        let row = |y| pixel(x0, y, c) * (1.0 - fx) + pixel(x1, y, c) * fx;
        row(y0) * (1.0 - fy) + row(y1) * fy
    };
    let mut values = Vec::new();
    for y in 0..SIDE {
        for x in 0..SIDE {
            for c in 0..3 {
                let c = if order == ChannelOrder::Bgr { 2 - c } else { c };
                let value = if ccrop {
                    sample(x, y, c)
                } else {
                    pixel(x, y, c)
                };
                values.push(value / 255.0);
            }
        }
    }
    values
}

fn assert_inputs(
    set: &mut EvalSet,
    ccrop: bool,
    order: ChannelOrder,
    pairs: &[(usize, usize, bool)],
) {
    // Reads that begin and end inside chunks and pairs.
    let order_of_pictures: Vec<usize> = pairs.iter().flat_map(|p| [p.0, p.1]).collect();
    for (start, count) in [(0, 1), (3, 4), (0, order_of_pictures.len())] {
        let mut values = vec![f32::NAN; 5];
        set.read(start, count, ccrop, order, &mut values).unwrap();
        assert_eq!(values.len(), count * SIDE * SIDE * 3);
        for (i, found) in values.chunks_exact(SIDE * SIDE * 3).enumerate() {
            let expected = expected_input(order_of_pictures[start + i], ccrop, order);
            for (k, (&f, &e)) in found.iter().zip(&expected).enumerate() {
                assert!(
                    (f64::from(f) - e).abs() <= 1e-6,
                    "picture {}, value {k}, ccrop {ccrop}, {order}: {f} instead of {e}",
                    start + i
                );
            }
        }
    }
}

#[test]
fn the_network_is_fed_what_the_definition_says() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = pairs(11);
    let mut set = EvalSet::open(&write_set(dir.path(), "waves", &pairs), None).unwrap();
    for ccrop in [false, true] {
        for order in [ChannelOrder::Rgb, ChannelOrder::Bgr] {
            assert_inputs(&mut set, ccrop, order, &pairs);
        }
    }
    assert_eq!(
        set.picture(1).unwrap().as_raw(),
        &picture(1, SIDE, SIDE).pixels
    );
    assert_eq!(set.same().len(), 11);
    assert!(set.same()[0] && !set.same()[1]);
}

/// A carray of bytes: one chunk a row, stored without compression.
#[test]
fn arrays_of_bytes_are_read_as_pixels() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = pairs(4);
    // The list is that of the float set.
    let files = write_set(dir.path(), "bytes", &pairs);
    fs::remove_dir_all(&files.path).unwrap();
    for sub in ["meta", "data"] {
        fs::create_dir_all(files.path.join(sub)).unwrap();
    }
    let meta =
        |name: &str, text: &str| fs::write(files.path.join("meta").join(name), text).unwrap();
    meta(
        "sizes",
        r#"{"shape": [8, 3, 112, 112], "nbytes": 301056, "cbytes": 301056}"#,
    );
    meta(
        "storage",
        r#"{"dtype": "uint8", "cparams": {}, "chunklen": 1, "dflt": 0, "expectedlen": 8}"#,
    );
    for (k, number) in pairs.iter().flat_map(|p| [p.0, p.1]).enumerate() {
        let pixels = picture(number, SIDE, SIDE).pixels;
        let size = pixels.len() as u32;
        let mut chunk = b"blpk\x01\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        // blosc 1: format 2, codec format 1, flag "stored as it is", type size 1; sizes: all, block, compressed.
        chunk.extend([2, 1, 2, 1]);
        [size, size, size + 16]
            .iter()
            .for_each(|n| chunk.extend(n.to_le_bytes()));
        for c in [2, 1, 0] {
            chunk.extend(pixels.iter().skip(c).step_by(3));
        }
        fs::write(files.path.join("data").join(format!("__{k}.blp")), chunk).unwrap();
    }
    let mut set = EvalSet::open(&files, None).unwrap();
    assert_inputs(&mut set, false, ChannelOrder::Rgb, &pairs);
    assert_inputs(&mut set, true, ChannelOrder::Bgr, &pairs);
}

#[test]
fn distances_are_those_of_pictures_embedded_one_by_one() {
    let dir = tempfile::tempdir().unwrap();
    let pairs = pairs(13);
    let mut set = EvalSet::open(&write_set(dir.path(), "waves", &pairs), None).unwrap();
    let weights = random_weights();
    let mut cpu = Cpu::new();
    let mut embedder = Embedder::new(&mut cpu, &weights, 5, Element::F32).unwrap();
    for (tta, ccrop, channel_order) in [
        (Tta::None, false, ChannelOrder::Rgb),
        (Tta::FlipSum, true, ChannelOrder::Rgb),
        (Tta::FlipConcat, false, ChannelOrder::Bgr),
    ] {
        let options = EvalOptions {
            tta,
            ccrop,
            channel_order,
        };
        let mut calls = Vec::new();
        let found = eval::evaluate(&mut embedder, &mut set, &options, &mut |n| {
            calls.push(n);
            Ok(())
        })
        .unwrap();
        assert_eq!(calls, [5, 5, 5, 5, 5, 1]);
        assert_eq!(found.result.name, "waves");

        let mut rows = [Vec::new(), Vec::new()];
        for number in pairs.iter().flat_map(|p| [p.0, p.1]) {
            let values = expected_input(number, ccrop, channel_order);
            for (mirror, rows) in rows.iter_mut().enumerate() {
                let mut input = Vec::new();
                for y in 0..SIDE {
                    for x in 0..SIDE {
                        let x = if mirror == 1 { SIDE - 1 - x } else { x };
                        let pixel = &values[(y * SIDE + x) * 3..][..3];
                        input.extend(pixel.iter().map(|&v| v as f32));
                    }
                }
                rows.extend(embedder.embed_unit_values(&mut input).unwrap());
            }
        }
        let [plain, mirrored] = rows;
        let unit = verification::combine(&plain, &mirrored, embedder.size(), tta).unwrap();
        let expected = verification::pair_distances(&unit, unit.len() / 26).unwrap();
        for (k, (f, e)) in found.distances.iter().zip(&expected).enumerate() {
            assert!(
                (f - e).abs() <= 1e-4 * e.max(0.01),
                "{tta}, pair {k}: {f} instead of {e}"
            );
        }
        // What tells pairs apart must not be lost in the tolerance.
        assert!(expected.iter().any(|d| *d > 0.01), "{expected:?}");
    }
}

/// Only blocks are read: the error of a chunk that is missing comes when its turn comes.
#[test]
fn arrays_are_read_block_by_block() {
    let dir = tempfile::tempdir().unwrap();
    let files = write_set(dir.path(), "waves", &pairs(20));
    let last = (0..)
        .take_while(|n| files.path.join(format!("data/__{n}.blp")).exists())
        .last();
    let missing = files.path.join(format!("data/__{}.blp", last.unwrap()));
    fs::remove_file(&missing).unwrap();
    let mut set = EvalSet::open(&files, None).unwrap();
    let weights = random_weights();
    let mut cpu = Cpu::new();
    let mut embedder = Embedder::new(&mut cpu, &weights, 4, Element::F32).unwrap();
    let mut done = 0;
    let error = eval::evaluate(&mut embedder, &mut set, &EvalOptions::default(), &mut |n| {
        done += n;
        Ok(())
    })
    .unwrap_err();
    assert!(
        error.to_string().contains(&missing.display().to_string()),
        "{error}"
    );
    assert!(
        (4..40).contains(&done),
        "{done} pictures before the missing chunk"
    );
}

#[test]
fn sets_are_found_in_every_layout() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    write_set(&root.join("lfw_align_112"), "lfw", &pairs(1));
    write_set(root, "cfp_fp", &pairs(1));
    write_set(&root.join("other"), "calfw", &pairs(1));
    fs::create_dir(root.join("empty")).unwrap();
    let names = |dir: &Path, names: Option<&[&str]>| -> Vec<String> {
        let asked: Option<Vec<String>> = names.map(|n| n.iter().map(ToString::to_string).collect());
        let sets = eval::find(dir, asked.as_deref()).unwrap();
        sets.iter()
            .for_each(|s| assert!(s.list().is_file(), "{s:?}"));
        sets.into_iter().map(|s| s.name).collect()
    };
    assert_eq!(names(root, None), ["lfw", "cfp_fp"]);
    assert_eq!(names(root, Some(&["calfw", "lfw"])), ["calfw", "lfw"]);
    assert_eq!(names(&root.join("lfw_align_112"), None), ["lfw"]);
    assert_eq!(names(&root.join("lfw_align_112/lfw"), None), ["lfw"]);
    // None of the default sets: all.
    assert_eq!(names(&root.join("other"), None), ["calfw"]);

    let fails = |dir: &Path, names: Option<&[String]>, words: &str| {
        let error = eval::find(dir, names).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    fails(&root.join("empty"), None, "holds no evaluation set");
    fails(
        root,
        Some(&["lfw".into(), "agedb_30".into()]),
        "no evaluation set called agedb_30; there are cfp_fp, lfw, calfw",
    );
    write_set(root, "lfw", &pairs(1));
    fails(root, None, "holds the set lfw twice");
    let error = eval::find_all(root).unwrap_err().to_string();
    assert!(error.contains("holds the set lfw twice"), "{error}");
    // All, whatever they are called; beside the `.bin` that it was made from a carray counts.
    let folder = root.join("lfw_align_112");
    write_set(&folder, "vgg2_fp", &pairs(1));
    let found = |all: arcface_cu::Result<Vec<eval::SetFiles>>| -> Vec<String> {
        all.unwrap().into_iter().map(|set| set.name).collect()
    };
    assert_eq!(found(eval::find_all(&folder)), ["lfw", "vgg2_fp"]);
    fs::write(folder.join("lfw.bin"), b"\x80\x02.").unwrap();
    let one = eval::find(&folder, None).unwrap();
    assert_eq!((one.len(), one[0].kind), (1, eval::SetKind::Carray));
    assert!(eval::find_all(&folder).is_err());
    // A link is called by its own name.
    #[cfg(unix)]
    {
        let link = root.join("linked.bin");
        fs::rename(folder.join("lfw.bin"), root.join("blob")).unwrap();
        std::os::unix::fs::symlink(root.join("blob"), &link).unwrap();
        assert_eq!(found(eval::find(&link, None)), ["linked"]);
    }
}

#[test]
fn broken_sets_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path());
    let weights = weights.display().to_string();
    let says = |name: &str, words: &[&str]| {
        let data = dir.path().join(name).display().to_string();
        let output = arcface_cu(["eval", "--weights", &weights, "--data", &data]);
        let text = stderr_of_failure(&output, 1);
        for word in words {
            assert!(text.contains(word), "{name}: {text}");
        }
    };
    // One truth value too few.
    write_set(&dir.path().join("a"), "lfw", &pairs(12));
    write_set(&dir.path().join("b"), "lfw", &pairs(11));
    fs::copy(
        dir.path().join("b/lfw_list.npy"),
        dir.path().join("a/lfw_list.npy"),
    )
    .unwrap();
    says("a", &["24 pictures", "11 pairs", "two pictures a pair"]);
    // No list.
    fs::remove_file(dir.path().join("a/lfw_list.npy")).unwrap();
    says("a", &["lfw_list.npy"]);
    // Fewer pairs than folds.
    write_set(&dir.path().join("c"), "lfw", &pairs(6));
    says("c", &["lfw", "at least 10 pairs"]);
    // Pixels that are not scaled.
    let files = write_set(&dir.path().join("d"), "lfw", &pairs(12));
    fs::remove_dir_all(&files.path).unwrap();
    let mut writer =
        arcface_cu::data::formats::bcolz::CarrayWriter::create(&files.path, &[3, SIDE, SIDE])
            .unwrap();
    (0..24).for_each(|k| writer.push(&vec![k as f32; 3 * SIDE * SIDE]).unwrap());
    writer.finish().unwrap();
    says("d", &["[-1, 1]", "found 2 in picture 2"]);
    // All embeddings equal.
    fs::remove_dir_all(&files.path).unwrap();
    let mut writer =
        arcface_cu::data::formats::bcolz::CarrayWriter::create(&files.path, &[3, SIDE, SIDE])
            .unwrap();
    (0..24).for_each(|_| writer.push(&vec![0.5; 3 * SIDE * SIDE]).unwrap());
    writer.finish().unwrap();
    says("d", &["collapsed"]);
}

#[test]
fn pictures_of_pairs_are_what_their_name_says() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path()).display().to_string();
    write_set(&dir.path().join("a"), "lfw", &pairs(12));
    let data = dir.path().join("a").display().to_string();
    let run = |name: &str| {
        let path = dir.path().join(name).display().to_string();
        let words = [
            "eval",
            "--weights",
            &weights,
            "--data",
            &data,
            "--pairs",
            &path,
        ];
        arcface_cu(words.iter().chain(&["--device", "cpu", "--threads", "1"]))
    };
    for (name, start) in [
        ("x.jpg", &[0xff, 0xd8][..]),
        ("x.png", b"\x89PNG"),
        ("x.SVG", b"<svg "),
    ] {
        stdout_of_success(&run(name));
        assert!(
            fs::read(dir.path().join(name)).unwrap().starts_with(start),
            "{name}"
        );
    }
    let error = stderr_of_failure(&run("x.gif"), 2);
    assert!(error.contains(".png, .jpg or .svg"), "{error}");
}

#[test]
fn wrong_usage_ends_with_2() {
    for words in [
        &["eval"][..],
        &["eval", "--weights", "w", "--data", "d", "--tta", "mirror"],
        &[
            "eval",
            "--weights",
            "w",
            "--data",
            "d",
            "--channel-order",
            "gbr",
        ],
        &["eval", "--weights", "w", "--data", "d", "--batch-size", "0"],
        &["embed", "--weights", "w", "--out", "o"],
        &[
            "embed",
            "--weights",
            "w",
            "--out",
            "o",
            "--data",
            "d",
            "--images",
            "i",
        ],
    ] {
        stderr_of_failure(&arcface_cu(words), 2);
    }
    let help = stdout_of_success(&arcface_cu(["eval", "--help"]));
    for word in [
        "flip-sum",
        "[default: rgb]",
        "[default: 32]",
        "lfw,agedb_30,cfp_fp",
    ] {
        assert!(help.contains(word), "{help}");
    }
}

#[test]
fn genuine_arrays_are_evaluated() {
    let Some(data) = shared_data("genuine_arrays_are_evaluated", "eval") else {
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path());
    let (json, pairs) = (dir.path().join("eval.json"), dir.path().join("pairs.png"));
    let path = |p: &Path| p.display().to_string();
    let output = arcface_cu([
        "eval",
        "--weights",
        &path(&weights),
        "--data",
        &path(&data),
        "--tta",
        "none",
        "--json",
        &path(&json),
        "--pairs",
        &path(&pairs),
        "--device",
        "cpu",
    ]);
    let table = stdout_of_success(&output);
    let json: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let sets = json["sets"].as_array().unwrap();
    let names: Vec<&str> = sets.iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["lfw", "agedb_30", "cfp_fp"]);
    for (set, pairs) in sets.iter().zip([600, 60, 40]) {
        assert_eq!(set["pairs"], pairs);
        let fraction = |value: &serde_json::Value| {
            let x = value.as_f64().unwrap();
            assert!((0.0..=1.0).contains(&x), "{set}");
            x
        };
        let accuracy = fraction(&set["accuracy"]);
        fraction(&set["accuracy_std"]);
        fraction(&set["auc"]);
        fraction(&set["eer"]);
        for far in ["1e-1", "1e-2", "1e-3", "1e-4"] {
            fraction(&set["tar"][far]);
        }
        assert!((0.0..4.0).contains(&set["threshold"].as_f64().unwrap()));
        let folds = set["folds"].as_array().unwrap();
        assert_eq!(folds.len(), 10);
        let mean = folds.iter().map(|f| fraction(&f["accuracy"])).sum::<f64>() / 10.0;
        assert!((mean - accuracy).abs() <= 1e-9);
        assert!(folds.iter().all(|f| f["threshold"].is_f64()));
        let line = table
            .lines()
            .find(|l| l.starts_with(set["name"].as_str().unwrap()) && l.contains('±'));
        assert!(
            line.unwrap()
                .contains(&format!("{:.2} ±", 100.0 * accuracy)),
            "{table}"
        );
    }
    for name in names {
        let sheet = image::open(dir.path().join(format!("pairs-{name}.png"))).unwrap();
        assert!(sheet.width() > 900 && sheet.height() > 400);
    }
    if let Ok(folder) = std::env::var("PICTURES") {
        fs::copy(
            dir.path().join("pairs-lfw.png"),
            Path::new(&folder).join("pairs-lfw.png"),
        )
        .unwrap();
    }
}

#[test]
fn a_report_stands_on_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path());
    let data = dir.path().join("eval");
    // A name that is no HTML.
    for (name, n) in [("lfw", 24), ("a&b<i>", 13)] {
        write_set(&data, name, &pairs(n));
    }
    let (out, json) = (dir.path().join("report"), dir.path().join("eval.json"));
    let path = |p: &Path| p.display().to_string();
    let words = ["eval", "--weights", &path(&weights), "--data", &path(&data)].map(str::to_owned);
    let rest = ["--sets", "lfw,a&b<i>", "--device", "cpu", "--report"].map(str::to_owned);
    let last = [path(&out), "--json".to_owned(), path(&json)];
    let output = arcface_cu(words.into_iter().chain(rest).chain(last));
    assert!(stdout_of_success(&output).contains("report.html"));

    let page = fs::read_to_string(out.join("report.html")).unwrap();
    for words in [
        "a&amp;b&lt;i&gt;",
        "flip-concat",
        "95 % interval",
        "TAR, %, at FAR 1e-4",
        "prefers-color-scheme: dark",
        "@media print",
        "demo, trained on 3 identities",
    ] {
        assert!(page.contains(words), "{words}");
    }
    // Nothing is fetched from anywhere: each source is in the page, each link leads into it.
    for attribute in ["src=\"", "href=\"", "url("] {
        for (at, _) in page.match_indices(attribute) {
            let target = &page[at + attribute.len()..][..5];
            assert!(target.starts_with('#') || target == "data:", "{target}");
        }
    }
    assert!(!page.contains("http"));
    assert_eq!(page.matches("<svg").count(), 3);
    let figures = page.matches("<figure>").count();

    let read =
        |p: &Path| -> serde_json::Value { serde_json::from_slice(&fs::read(p).unwrap()).unwrap() };
    let (report, plain) = (read(&out.join("report.json")), read(&json));
    assert_eq!(report["weights_file"], "weights.safetensors");
    assert_eq!(
        (&report["weights"], &report["tta"]),
        (&plain["weights"], &plain["tta"])
    );
    let mut examples = 0;
    for (long, short) in report["sets"]
        .as_array()
        .unwrap()
        .iter()
        .zip(plain["sets"].as_array().unwrap())
    {
        // It has what the short form has.
        for (key, value) in short.as_object().unwrap() {
            assert_eq!(&long[key], value, "{key}");
        }
        let modes = long["modes"].as_array().unwrap();
        assert_eq!(modes.len(), 3);
        assert_eq!(
            (&modes[1]["tta"], &modes[1]["folds"]),
            (&"flip-sum".into(), &short["folds"])
        );
        assert_ne!(modes[0]["auc"], modes[1]["auc"]);
        let impostors = short["impostor_pairs"].as_f64().unwrap();
        for (point, (key, far)) in (long["operating_points"].as_array().unwrap().iter()).zip([
            ("1e-1", 0.1),
            ("1e-2", 0.01),
            ("1e-3", 0.001),
            ("1e-4", 0.0001),
        ]) {
            assert_eq!(point["tar"], short["tar"][key]);
            assert_eq!(point["told"], far * impostors >= 1.0);
            let tar = point["tar"].as_f64().unwrap();
            let bound = |i: usize| point["tar_interval"][i].as_f64().unwrap();
            assert!(bound(0) <= tar && tar <= bound(1) && bound(0) < bound(1));
        }
        let count = |kind: &str| -> u64 {
            let bins = long["histogram"][kind].as_array().unwrap();
            bins.iter().map(|n| n.as_u64().unwrap()).sum()
        };
        assert_eq!(count("impostor") as f64, impostors);
        assert_eq!(
            count("genuine") + count("impostor"),
            short["pairs"].as_u64().unwrap()
        );
        assert_eq!(
            long["roc"].as_array().unwrap().last().unwrap(),
            &serde_json::json!([1.0, 1.0])
        );
        examples += long["examples"].as_array().unwrap().len();
        let name = short["name"].as_str().unwrap();
        for picture in ["distances", "pairs"] {
            image::open(out.join(format!("{picture}-{name}.png"))).unwrap();
        }
        let svg = fs::read_to_string(out.join(format!("distances-{name}.svg"))).unwrap();
        assert!(svg.starts_with("<svg xmlns") && svg.contains("threshold"));
    }
    assert_eq!(figures, examples);
    image::open(out.join("roc.png")).unwrap();
}
