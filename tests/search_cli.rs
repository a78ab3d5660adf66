//! The commands `search` and `verify` through the program.

mod support;

use arcface_cu::backend::Element;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::data::picture::encode_jpeg;
use arcface_cu::embed;
use arcface_cu::embedder::Embedder;
use arcface_cu::encoding::npy::{self, Elements, Npy};
use arcface_cu::verification::Tta;
use std::fs;
use std::path::{Path, PathBuf};
use support::*;

fn text(path: &Path) -> String {
    path.display().to_string()
}

/// `<name>/<k>.jpg`; the pictures of a person are nearly the same.
fn people(root: &Path, names: &[&str], each: std::ops::Range<usize>) {
    for name in names {
        let dir = root.join(name);
        fs::create_dir_all(&dir).unwrap();
        for k in each.clone() {
            let number = name.bytes().map(usize::from).sum::<usize>() * 31;
            let mut face = picture(number, 112, 112);
            face.pixels
                .iter_mut()
                .step_by(50)
                .for_each(|p| *p ^= k as u8);
            fs::write(dir.join(format!("{k}.jpg")), encode_jpeg(&face, 95)).unwrap();
        }
    }
}

fn embed(weights: &Path, data: &Path, out: &Path, extra: &[&str]) {
    let words = [
        "embed",
        "--weights",
        &text(weights),
        "--data",
        &text(data),
        "--all",
        "--out",
    ]
    .map(str::to_owned);
    let out = [text(out), "--device".to_owned(), "cpu".to_owned()];
    let extra = extra.iter().map(|&word| word.to_owned());
    stdout_of_success(&arcface_cu(words.into_iter().chain(out).chain(extra)));
}

fn search(gallery: &Path, query: &Path, extra: &[&str]) -> std::process::Output {
    let words = [
        "search",
        "--gallery",
        &text(gallery),
        "--query",
        &text(query),
    ]
    .map(str::to_owned);
    let device = ["--device", "cpu"].iter().chain(extra);
    arcface_cu(words.into_iter().chain(device.map(|&word| word.to_owned())))
}

#[test]
fn people_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path());
    let at = |name: &str| dir.path().join(name);
    people(&at("gallery"), &["ann", "bob", "cid", "dot"], 0..2);
    // Other numbers than in the gallery: names are compared.
    people(&at("query"), &["bob", "dot", "zoe"], 2..4);
    embed(&weights, &at("gallery"), &at("g"), &[]);
    embed(
        &weights,
        &at("query"),
        &at("q"),
        &["--format", "safetensors"],
    );
    let (json, csv) = (text(&at("hits.json")), text(&at("hits.csv")));
    let output = search(
        &at("g"),
        &at("q"),
        &["--top", "2", "--json", &json, "--csv", &csv],
    );
    let table = stdout_of_success(&output);
    assert!(
        table.contains("rank-1 identification 100.00 %, rank-5 100.00 %, of 4 queries"),
        "{table}"
    );
    let found: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(found["gallery"], 8);
    let first = &found["queries"][0];
    assert_eq!(
        (&first["identity"], &first["hits"][0]["identity"]),
        (&"bob".into(), &"bob".into())
    );
    assert!(
        first["hits"][0]["cosine"].as_f64().unwrap()
            > first["hits"][1]["cosine"].as_f64().unwrap() - 1e-12
    );
    assert_eq!(first["hits"].as_array().unwrap().len(), 2);
    let csv = fs::read_to_string(csv).unwrap();
    assert_eq!(csv.lines().count(), 1 + 6 * 2);
    assert!(csv.starts_with("query,rank,cosine,file,identity\n"));

    // On the fly: the same hits, from folders of people, loose pictures, a single one.
    let w = text(&weights);
    for query in [at("query"), at("query/bob"), at("query/bob/2.jpg")] {
        let again = stdout_of_success(&search(&at("g"), &query, &["--weights", &w, "--top", "2"]));
        let line = table.lines().nth(1).unwrap();
        assert!(again.contains(line), "{again} does not hold {line}");
    }
    // Names of files are nobody's: no rates, neither of what is embedded now nor of what was.
    let bob = at("gallery/bob");
    let loose = ["embed", "--weights", &w, "--images", &text(&bob), "--out"].map(str::to_owned);
    let out = [text(&at("b")), "--device".to_owned(), "cpu".to_owned()];
    stdout_of_success(&arcface_cu(loose.into_iter().chain(out)));
    for gallery in [&bob, &at("b")] {
        let table = stdout_of_success(&search(gallery, &at("gallery/cid"), &["--weights", &w]));
        assert!(
            table.contains("2 queries in a gallery of 2 pictures"),
            "{table}"
        );
        assert!(!table.contains("identification"), "{table}");
    }
    // The gallery among itself: nobody finds himself.
    let itself = stdout_of_success(&search(&at("g"), &at("g"), &["--top", "1"]));
    assert!(itself.contains("of 8 queries whose identity"), "{itself}");
    let blocks: Vec<&str> = itself.lines().take(2).collect();
    assert!(
        !blocks[1].contains(blocks[0].split(' ').next().unwrap()),
        "{itself}"
    );
}

#[test]
fn strangers_are_unknown() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path());
    let at = |name: &str| dir.path().join(name);
    people(&at("gallery"), &["ann", "bob", "cid"], 0..2);
    people(&at("query"), &["bob", "zoe"], 2..4);
    embed(&weights, &at("gallery"), &at("g"), &[]);
    embed(&weights, &at("query"), &at("q"), &[]);
    let json = text(&at("hits.json"));
    let run = |extra: &[&str]| {
        search(
            &at("g"),
            &at("q"),
            &[&["--top", "1", "--json", &json], extra].concat(),
        )
    };
    let found =
        || -> serde_json::Value { serde_json::from_slice(&fs::read(&json).unwrap()).unwrap() };
    // Bob's pictures are nearer to one another than zoe's are to anybody.
    stdout_of_success(&run(&[]));
    let hits = found();
    assert_eq!(hits["queries"][0]["known"], serde_json::Value::Null);
    let distance = |query: usize| {
        2.0 - 2.0
            * hits["queries"][query]["hits"][0]["cosine"]
                .as_f64()
                .unwrap()
    };
    let (bob, zoe) = (distance(0).max(distance(1)), distance(2).min(distance(3)));
    assert!(bob < zoe, "{bob} {zoe}");
    let between = format!("{}", (bob + zoe) / 2.0);
    let csv = text(&at("hits.csv"));
    let table = stdout_of_success(&run(&["--threshold", &between, "--csv", &csv]));
    for words in [
        "query/bob/2.jpg (bob): bob\n",
        "query/zoe/3.jpg (zoe): unknown\n",
        "2 known, 2 unknown: threshold ",
        "threshold 100.00 % of 2 queries whose identity is in the gallery are answered with it",
        "threshold 0.00 % of 2 queries whose identity is not in the gallery are taken for somebody",
    ] {
        assert!(table.contains(words), "{words}: {table}");
    }
    let hits = found();
    assert_eq!(hits["queries"][0]["answer"], "bob");
    assert_eq!(hits["queries"][2]["known"], false);
    assert_eq!(hits["queries"][2]["answer"], serde_json::Value::Null);
    assert_eq!(hits["open_set"]["identified"], 1.0);
    let csv = fs::read_to_string(csv).unwrap();
    let ends: Vec<&str> = csv
        .lines()
        .map(|line| line.rsplit(',').next().unwrap())
        .collect();
    assert_eq!(ends, ["accepted", "true", "true", "false", "false"]);
    // Nobody is at a smaller distance than 0.
    let table = stdout_of_success(&run(&["--threshold", "0"]));
    assert!(table.contains("0 known, 4 unknown"), "{table}");

    // From an evaluation, at a rate.
    let loaded = arcface_cu::weights::checkpoint::Weights::load(&weights).unwrap();
    let results = |rest: &str| {
        let set = "\"name\":\"lfw\",\"threshold\":4,\"pairs\":6000,\"impostor_pairs\":3000,\"accuracy\":1,\"accuracy_std\":0,\"auc\":1,\"eer\":0,\"tar\":{},\"folds\":[]";
        let json = format!(
            "{{\"sets\":[{{{set}{rest}}}],\"tta\":\"flip-sum\",\"weights\":\"{}\"}}",
            loaded.fingerprint()
        );
        fs::write(at("eval.json"), json).unwrap();
    };
    let file = text(&at("eval.json"));
    results(&format!(
        ",\"far_threshold\":{{\"1e-3\":{between},\"1e-4\":1e-9}}"
    ));
    let output = run(&["--eval", &file, "--far", "0.001"]);
    let table = stdout_of_success(&output);
    assert!(
        table.contains("2 known, 2 unknown") && table.contains("lfw at false accept rate 1e-3"),
        "{table}"
    );
    assert!(!String::from_utf8_lossy(&output.stderr).contains("warning: lfw"));
    let output = run(&["--eval", &file, "--far", "1e-4"]);
    assert!(stdout_of_success(&output).contains("0 known, 4 unknown"));
    let warning = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        warning.contains("3000 pairs of two people, too few to tell a false accept rate of 1e-4"),
        "{warning}"
    );
    assert!(stdout_of_success(&run(&["--eval", &file])).contains("4 known, 0 unknown"));
    let says = |extra: &[&str], code: i32, words: &str| {
        let error = stderr_of_failure(&run(extra), code);
        assert!(error.contains(words), "{error}");
    };
    says(
        &["--eval", &file, "--far", "0.5"],
        1,
        "no threshold at the false accept rate 0.5 for lfw; there are those at 1e-3, 1e-4",
    );
    says(&["--far", "0.5"], 2, "--eval");
    says(&["--threshold", "4.5"], 2, "from 0 to 4");
    says(&["--threshold", "NaN"], 2, "from 0 to 4");
    results("");
    says(
        &["--eval", &file, "--far", "1e-3"],
        1,
        "holds no thresholds at false accept rates",
    );
    embed(&weights, &at("gallery"), &at("none"), &["--tta", "none"]);
    let output = search(&at("none"), &at("none"), &["--eval", &file]);
    let error = stderr_of_failure(&output, 1);
    assert!(
        error.contains("thresholds for --tta flip-sum, not for none"),
        "{error}"
    );
    // verify takes it at a rate, too.
    results(",\"far_threshold\":{\"1e-3\":0.5}");
    let picture = at("query/bob/2.jpg");
    let output = verify(
        &weights,
        [&picture, &picture],
        &["--eval", &file, "--far", "1e-3"],
    );
    let said = stdout_of_success(&output);
    assert!(
        said.contains("threshold 0.5000") && said.contains("at false accept rate 1e-3"),
        "{said}"
    );
}

#[test]
fn what_cannot_be_compared_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path());
    let at = |name: &str| dir.path().join(name);
    people(&at("people"), &["ann", "bob"], 0..2);
    embed(&weights, &at("people"), &at("sum"), &[]);
    embed(
        &weights,
        &at("people"),
        &at("concat"),
        &["--tta", "flip-concat"],
    );
    embed(&weights, &at("people"), &at("none"), &["--tta", "none"]);
    let mut other = random_weights();
    other.params[3] += 1.0;
    other.save(&at("other.safetensors")).unwrap();
    embed(&at("other.safetensors"), &at("people"), &at("other"), &[]);
    let says = |a: &str, b: &str, code: i32, words: &[&str]| {
        let error = stderr_of_failure(&search(&at(a), &at(b), &[]), code);
        for word in words {
            assert!(error.contains(word), "{word}: {error}");
        }
    };
    says(
        "sum",
        "concat",
        1,
        &["sum has 16 numbers per row", "concat has 32"],
    );
    says(
        "sum",
        "none",
        1,
        &["is of --tta flip-sum", "is of --tta none"],
    );
    says("sum", "other", 1, &["other is of weights"]);
    says(
        "sum",
        "people",
        2,
        &["people is no folder of embeddings", "--weights FILE"],
    );
    says("sum", "nowhere", 1, &["nowhere"]);
    // Before anything is embedded: the picture here cannot be.
    fs::create_dir_all(at("late/ann")).unwrap();
    fs::write(at("late/ann/0.jpg"), "not a JPEG").unwrap();
    let other = text(&at("other.safetensors"));
    for (a, b) in [("sum", "late"), ("late", "sum")] {
        let output = search(&at(a), &at(b), &["--weights", &other]);
        let error = stderr_of_failure(&output, 1);
        assert!(error.contains("is of weights"), "{error}");
    }
    // Who made one side is not known.
    embed(&weights, &at("people"), &at("unknown"), &[]);
    fs::remove_file(at("unknown/embeddings.json")).unwrap();
    let output = search(&at("sum"), &at("unknown"), &[]);
    stdout_of_success(&output);
    let warning = String::from_utf8_lossy(&output.stderr);
    assert!(
        warning.contains("unknown has no embeddings.json"),
        "{warning}"
    );
    // A broken data set is not taken for the pictures beside it.
    fs::create_dir_all(at("shards")).unwrap();
    fs::copy(at("people/ann/0.jpg"), at("shards/0.jpg")).unwrap();
    fs::write(at("shards/people.tar"), [7; 700]).unwrap();
    let w = text(&weights);
    let output = search(&at("sum"), &at("shards"), &["--weights", &w]);
    let error = stderr_of_failure(&output, 1);
    assert!(error.contains("people.tar"), "{error}");
    // Broken folders.
    fs::write(at("none/files.txt"), "one line\n").unwrap();
    says(
        "none",
        "sum",
        1,
        &["files.txt", "4 embeddings, found 1 lines"],
    );
    let write = |shape: Vec<usize>, values: Vec<f32>| {
        let elements = Elements::F32(values);
        npy::write(&at("other/embeddings.npy"), &Npy { shape, elements }).unwrap();
    };
    write(vec![4], vec![1.0; 4]);
    says("other", "sum", 1, &["embeddings.npy", "(N, D)", "[4]"]);
    write(vec![4, 2], vec![1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    says("other", "sum", 1, &["row 1", "no direction"]);
    write(vec![4, 1], vec![1.0, 1.0, f32::NAN, 1.0]);
    says("other", "sum", 1, &["row 2", "no direction"]);
    for bytes in [&b""[..], b"\x93NUMPY\x01\x00", &[0xff; 300]] {
        fs::write(at("other/embeddings.npy"), bytes).unwrap();
        says("other", "sum", 1, &["embeddings.npy"]);
        fs::write(at("other/embeddings.safetensors"), bytes).unwrap();
        says("other", "sum", 1, &["embeddings.safetensors"]);
        fs::remove_file(at("other/embeddings.safetensors")).unwrap();
    }
}

fn verify(weights: &Path, [a, b]: [&Path; 2], extra: &[&str]) -> std::process::Output {
    let words = [
        "verify",
        &text(a),
        &text(b),
        "--weights",
        &text(weights),
        "--device",
        "cpu",
    ]
    .map(str::to_owned);
    arcface_cu(
        words
            .into_iter()
            .chain(extra.iter().map(|&word| word.to_owned())),
    )
}

#[test]
fn two_pictures_are_compared() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path());
    let images = [picture(3, 112, 112), picture(44, 90, 120)];
    let files: Vec<PathBuf> = (0..2)
        .map(|k| dir.path().join(format!("{k}.ppm")))
        .collect();
    for (image, file) in images.iter().zip(&files) {
        let header = format!("P6 {} {} 255\n", image.width, image.height);
        fs::write(file, [header.as_bytes(), &image.pixels].concat()).unwrap();
    }
    let (loaded, mut cpu) = (random_weights(), Cpu::new());
    let mut embedder = Embedder::new(&mut cpu, &loaded, 1, Element::F32).unwrap();
    let pair: [&Path; 2] = [&files[0], &files[1]];
    for (tta, name) in [(Tta::None, "none"), (Tta::FlipConcat, "flip-concat")] {
        let mut row = |k: usize| embed::embed_images(&mut embedder, &images[k..=k], tta).unwrap();
        let (a, b) = (row(0), row(1));
        let dot: f64 = a
            .iter()
            .zip(&b)
            .map(|(x, y)| f64::from(*x) * f64::from(*y))
            .sum();
        for (threshold, same) in [
            (2.0 - 2.0 * dot - 1e-4, false),
            (2.0 - 2.0 * dot + 1e-4, true),
        ] {
            let t = format!("{:.9}", threshold.max(0.0));
            let words = ["--json", "--tta", name, "--threshold", &t];
            let text = stdout_of_success(&verify(&weights, pair, &words));
            let answer: serde_json::Value = serde_json::from_str(&text).unwrap();
            let number = |key: &str| answer[key].as_f64().unwrap();
            assert!((number("cosine") - dot).abs() <= 1e-5, "{text}");
            assert!(
                (number("distance") - (2.0 - 2.0 * dot)).abs() <= 1e-5,
                "{text}"
            );
            assert_eq!(
                (&answer["same"], &answer["tta"]),
                (&same.into(), &name.into()),
                "{text}"
            );
        }
    }
    // Without a threshold there is a warning; a picture is its own person.
    let output = verify(&weights, [pair[0], pair[0]], &[]);
    let text = stdout_of_success(&output);
    assert!(
        text.starts_with("the same person: squared distance 0.0000 < threshold 1.2400"),
        "{text}"
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("not calibrated"));

    // From an evaluation, which also says what is done with mirror images.
    let results = dir.path().join("eval.json");
    let set = |name: &str, threshold: f64| {
        let keys = "\"pairs\":10,\"impostor_pairs\":5,\"accuracy\":1,\"accuracy_std\":0,\"auc\":1,\"eer\":0,\"tar\":{},\"folds\":[]";
        format!("{{\"name\":\"{name}\",\"threshold\":{threshold},{keys}}}")
    };
    let write = |sets: &[String], rest: &str| {
        fs::write(&results, format!("{{\"sets\":[{}]{rest}}}", sets.join(","))).unwrap();
    };
    let file = results.display().to_string();
    write(&[set("lfw", 0.25)], ",\"tta\":\"none\",\"weights\":\"0\"");
    // As an editor on Windows leaves it.
    let marked = format!("\u{feff}{}", fs::read_to_string(&file).unwrap());
    fs::write(&file, marked).unwrap();
    let output = verify(&weights, pair, &["--eval", &file]);
    let text = stdout_of_success(&output);
    assert!(
        text.contains("threshold 0.2500")
            && text.contains("eval.json, lfw")
            && text.contains("tta none"),
        "{text}"
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("is of other weights"));
    let says = |extra: &[&str], code: i32, words: &str| {
        let error = stderr_of_failure(&verify(&weights, pair, extra), code);
        assert!(error.contains(words), "{error}");
    };
    says(
        &["--eval", &file, "--tta", "flip-sum"],
        1,
        "thresholds for --tta none, not for flip-sum",
    );
    write(&[set("lfw", 0.25)], ",\"tta\":\"none\",\"ccrop\":true");
    says(&["--eval", &file], 1, "enlarged and cropped");
    write(&[set("lfw", 0.25), set("cfp_fp", 0.5)], "");
    says(&["--eval", &file], 1, "choose one with --set: lfw, cfp_fp");
    says(&["--eval", &file, "--set", "x"], 1, "has no set x");
    let output = verify(&weights, pair, &["--eval", &file, "--set", "cfp_fp"]);
    let text = stdout_of_success(&output);
    assert!(text.contains("threshold 0.5000"), "{text}");
    let warning = String::from_utf8_lossy(&output.stderr);
    for words in ["which weights it is of", "taken to be for --tta flip-sum"] {
        assert!(warning.contains(words), "{words}: {warning}");
    }
    fs::write(&results, "{\"sets\": 3").unwrap();
    says(&["--eval", &file], 1, "is not what `eval --json` writes");
    says(&["--threshold", "7"], 2, "from 0 to 4");
    fs::write(&files[1], "P6 9").unwrap();
    says(&[], 1, "1.ppm: cannot be decoded");
}
