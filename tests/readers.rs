//! Readers on genuine, truncated and damaged files: the right answer or a sentence, never a panic or a huge allocation.

#[path = "support/hostile.rs"]
mod hostile;
mod support;

use arcface_cu::data::formats::bcolz::{Carray, CarrayWriter};
use arcface_cu::data::formats::image_folder::ImageFolder;
use arcface_cu::data::formats::recordio::RecordIo;
use arcface_cu::data::pack::{PackOptions, pack};
use arcface_cu::data::picture;
use arcface_cu::data::{Image, open};
use arcface_cu::encoding::npy::{self, Elements, Npy};
use hostile::*;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};

/// 4 identities with 1 to 4 JPEGs of 12x10 pixels, packed: 10 images, their labels and pixels.
fn packed() -> (tempfile::TempDir, Vec<(u32, Vec<u8>)>) {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    for identity in 0..4_usize {
        let sub = source.join(identity.to_string());
        fs::create_dir_all(&sub).unwrap();
        for i in 0..=identity {
            let picture = Image {
                width: 12,
                height: 10,
                pixels: (0..360)
                    .map(|k| (k * (identity + 2) / 3 + i * 40) as u8)
                    .collect(),
            };
            let jpeg = picture::encode_jpeg(&picture, 80);
            fs::write(sub.join(format!("{i}.jpg")), jpeg).unwrap();
        }
    }
    let set = ImageFolder::open(&source).unwrap();
    pack(&set, dir.path(), &PackOptions::default(), &mut |_, _| {}).unwrap();
    let expected = contents(&set).into_iter().map(Result::unwrap).collect();
    (dir, expected)
}

#[test]
fn recordio_every_truncation_is_an_error_or_the_right_pixels() {
    let (dir, expected) = packed();
    let rec = dir.path().join("train.rec");
    let idx = dir.path().join("train.idx");
    let whole = fs::read(&rec).unwrap();
    let index = fs::read(&idx).unwrap();
    let all = contents(&*open(dir.path()).unwrap());
    assert!(all.into_iter().map(Result::unwrap).eq(expected.clone()));
    for length in (0..index.len() - 1).rev() {
        shorten(&idx, length);
        let Ok(set) = RecordIo::open(&rec) else {
            continue;
        };
        for result in contents(&set).into_iter().flatten() {
            assert!(
                expected.contains(&result),
                "wrong pixels with {length} bytes of index"
            );
        }
    }
    fs::write(&idx, &index).unwrap();
    for with_index in [true, false] {
        if !with_index {
            fs::remove_file(&idx).unwrap();
        }
        fs::write(&rec, &whole).unwrap();
        let mut opened = 0;
        for length in (0..whole.len()).rev() {
            shorten(&rec, length);
            let Ok(set) = small(|| RecordIo::open(&rec)) else {
                continue;
            };
            opened += 1;
            for result in contents(&set).into_iter().flatten() {
                assert!(
                    expected.contains(&result),
                    "wrong pixels at length {length}"
                );
            }
        }
        // To a scan, a file that ends between two records is a shorter file; the index knows better.
        if with_index {
            assert_eq!(opened, 0);
        } else {
            assert!((10..=50).contains(&opened), "{opened}");
        }
    }
}

#[test]
fn recordio_says_what_is_wrong_and_where() {
    let (dir, _) = packed();
    let rec = dir.path().join("train.rec");
    let idx = dir.path().join("train.idx");
    let property = dir.path().join("property");
    let whole = fs::read(&rec).unwrap();
    let index = fs::read_to_string(&idx).unwrap();
    let offset = |key: usize| -> usize {
        let line = index.lines().nth(key).unwrap();
        line.split_once('\t').unwrap().1.parse().unwrap()
    };
    // The first thing that goes wrong in opening and reading everything must contain all `parts`.
    let check = |rec_bytes: &[u8], idx_text: &str, property_text: &str, parts: &[&str]| {
        fs::write(&rec, rec_bytes).unwrap();
        fs::write(&idx, idx_text).unwrap();
        fs::write(&property, property_text).unwrap();
        let found = match RecordIo::open(dir.path()) {
            Err(e) => e.to_string(),
            Ok(set) => contents(&set)
                .into_iter()
                .find_map(Result::err)
                .unwrap_or_default(),
        };
        assert_eq!(parts.is_empty(), found.is_empty(), "{found:?}");
        for part in parts {
            assert!(found.contains(part), "{part:?} is not in {found:?}");
        }
    };
    let good = "4,112,112";
    check(&whole, &index, good, &[]);

    // An index that points past the end, to no multiple of 4, into a record; that is no index; that lacks a key.
    let line_3 = |text: &str, parts: &[&str]| {
        let mut lines: Vec<&str> = index.lines().collect();
        lines[3] = text;
        check(&whole, &lines.join("\n"), good, parts);
    };
    let far = ["train.idx, byte", "99999996", "train.rec"];
    line_3("3\t99999996", &far);
    line_3(&format!("3\t{}", offset(3) + 2), &["multiple of 4"]);
    let inside = format!("byte {}", offset(3) + 8);
    let parts = ["0xced7230a", &inside, "index does not fit"];
    line_3(&format!("3\t{}", offset(3) + 8), &parts);
    line_3("three 3", &["key<tab>offset", "three 3"]);
    line_3("2\t40", &["two records by the key 2"]);
    line_3("", &["no record with the key"]);
    check(&whole, "\n\n", good, &["names no record"]);

    // A wrong magic, a length past the end, a continuation without a beginning.
    let at = |at: usize, bytes: &[u8], parts: &[&str]| {
        let mut copy = whole.clone();
        copy[at..at + bytes.len()].copy_from_slice(bytes);
        check(&copy, &index, good, parts);
    };
    let place = format!("byte {}", offset(5));
    at(offset(5), b"oops", &["0xced7230a", &place]);
    let long = [0xff, 0xff, 0xff, 0x1f];
    at(offset(5) + 4, &long, &["536870911 bytes", "truncated"]);
    at(offset(5) + 4, &(3_u32 << 29).to_le_bytes(), &["kind 3"]);

    // Labels: more of them than bytes, no whole number, another than the identity's, not below `property`.
    at(offset(2) + 8, &[0xff; 4], &["4294967295 labels"]);
    let whole_number = |label: f32, found: &str| {
        let parts = ["whole number", found, "record 2"];
        at(offset(2) + 12, &label.to_le_bytes(), &parts);
    };
    whole_number(1.5, "1.5");
    whole_number(f32::NAN, "NaN");
    whole_number(-1.0, "-1");
    let parts = ["label 1, as in", "label 0 in record 3"];
    at(offset(3) + 12, &0_f32.to_le_bytes(), &parts);
    let parts = ["below 3", "label 3 in record 7"];
    check(&whole, &index, "3,112,112", &parts);
    let parts = ["property", "classes,height,width"];
    check(&whole, &index, "many", &parts);
    check(&whole, &index, "0,112,112", &parts);

    // An identity header with wrong images; a JPEG that is none.
    let parts = ["first and end", "record 12"];
    at(offset(12) + 32, &0.5_f32.to_le_bytes(), &parts);
    let parts = ["identity header 12"];
    at(offset(12) + 32, &1_f32.to_le_bytes(), &parts);
    at(offset(4) + 32, b"GIF8", &["record 4", "not a JPEG"]);
    check(b"", &index, good, &["is empty"]);
}

#[test]
fn genuine_recordio_has_the_labels_that_were_listed() {
    let test = "genuine_recordio_has_the_labels_that_were_listed";
    let Some(dir) = support::shared_data(test, "lfw3d") else {
        return;
    };
    let set = open(&dir).unwrap();
    assert_eq!((set.len(), set.classes()), (5669, 1224));
    let listed = fs::read_to_string(dir.join("labels.tsv")).unwrap();
    let mut image = Image::default();
    for (i, line) in listed.lines().enumerate() {
        let expected = format!("{}\t{}\t", i + 1, set.label(i));
        assert!(line.starts_with(&expected), "{line}, read as {expected}");
        if i % 7 == 0 {
            set.read(i, &mut image).unwrap();
            assert_eq!(
                (image.width, image.height, image.pixels.len()),
                (112, 112, 37632)
            );
        }
    }
    // The same file by scanning, under another name, without index and property.
    let copy = tempfile::tempdir().unwrap();
    fs::copy(dir.join("train.rec"), copy.path().join("faces.rec")).unwrap();
    let scanned = open(copy.path()).unwrap();
    assert_eq!((scanned.len(), scanned.classes()), (5669, 1224));
    for i in (0..5669).step_by(501) {
        assert_eq!(scanned.label(i), set.label(i));
        assert_eq!(scanned.encoded(i).unwrap(), set.encoded(i).unwrap());
    }
}

#[test]
fn genuine_image_folder_is_read() {
    let test = "genuine_image_folder_is_read";
    let Some(dir) = support::shared_data(test, "orl") else {
        return;
    };
    let set = open(&dir).unwrap();
    assert_eq!((set.len(), set.classes()), (400, 40));
    let mut image = Image::default();
    set.read(399, &mut image).unwrap();
    assert_eq!((image.width, image.height), (92, 112));
}

#[test]
fn genuine_carrays_of_every_codec_hold_the_expected_array() {
    let test = "genuine_carrays_of_every_codec_hold_the_expected_array";
    let Some(dir) = support::shared_data(test, "bcolz") else {
        return;
    };
    let array = npy::read(&dir.join("expected.npy")).unwrap();
    let Elements::F32(expected) = array.elements else {
        panic!("expected.npy holds float32");
    };
    assert_eq!(array.shape, [5, 3, 112, 112]);
    let mut names = Vec::new();
    let (mut rows, mut part) = (Vec::new(), Vec::new());
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if !path.is_dir() {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let mut carray = Carray::open(&path).unwrap();
        assert_eq!(carray.shape(), array.shape);
        carray.read_rows(0, 5, &mut rows).unwrap();
        if name == "uint8" {
            let worst = (rows.iter().zip(&expected))
                .map(|(u, x)| ((u / 255.0 - 0.5) / 0.5 - x).abs())
                .fold(0.0, f32::max);
            assert!(worst <= 1e-6, "{worst}");
        } else {
            assert!(rows == expected, "{name}");
        }
        carray.read_rows(3, 1, &mut part).unwrap();
        carray.read_rows(1, 3, &mut part).unwrap();
        assert!(part == rows[37632..4 * 37632], "{name}");
        names.push(name);
    }
    assert_eq!(names.len(), 11, "{names:?}");
}

#[test]
fn genuine_evaluation_sets_are_read() {
    let test = "genuine_evaluation_sets_are_read";
    let Some(dir) = support::shared_data(test, "eval") else {
        return;
    };
    for (folder, name, pairs) in [
        ("lfw_align_112", "lfw", 600),
        ("agedb_align_112", "agedb_30", 60),
        ("cfp_align_112", "cfp_fp", 40),
    ] {
        let folder = dir.join(folder);
        let same = npy::read_bools(&folder.join(format!("{name}_list.npy"))).unwrap();
        let mut array = Carray::open(&folder.join(name)).unwrap();
        assert_eq!((same.len(), array.rows()), (pairs, 2 * pairs));
        let mut rows = Vec::new();
        for start in (0..2 * pairs).step_by(137) {
            let count = 20.min(2 * pairs - start);
            array.read_rows(start, count, &mut rows).unwrap();
            assert_eq!(rows.len(), count * 37632);
            assert!(rows.iter().all(|v| (-1.0..=1.0).contains(v)));
        }
    }
    let folds = npy::read(&dir.join("oracle/oracle_mobilenetv2_lfw_plain_folds.npy")).unwrap();
    assert_eq!(folds.shape.iter().product::<usize>(), 20);
}

/// A carray of 3 rows in one chunk, with the paths and bytes of its files.
fn small_carray(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut writer = CarrayWriter::create(&dir.join("a"), &[2, 500]).unwrap();
    for row in 0..3 {
        let row: Vec<f32> = (0..1000).map(|i| ((i * i + row) % 37) as f32).collect();
        writer.push(&row).unwrap();
    }
    writer.finish().unwrap();
    ["meta/sizes", "meta/storage", "data/__0.blp"]
        .map(|name| dir.join("a").join(name))
        .into_iter()
        .map(|path| (path.clone(), fs::read(path).unwrap()))
        .collect()
}

fn read_carray(dir: &Path) -> arcface_cu::Result<Vec<f32>> {
    let mut array = Carray::open(&dir.join("a"))?;
    let mut rows = Vec::new();
    let count = array.rows().min(10);
    array.read_rows(0, count, &mut rows)?;
    Ok(rows)
}

#[test]
fn carrays_every_truncation_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let files = small_carray(dir.path());
    assert_eq!(read_carray(dir.path()).unwrap().len(), 3000);
    for (path, bytes) in files {
        // The last byte of the JSON files is a line feed, which may be missing.
        for length in (0..bytes.len() - 1).rev() {
            shorten(&path, length);
            let result = small(|| read_carray(dir.path()));
            assert!(result.is_err(), "{length} bytes of {}", path.display());
        }
        fs::write(&path, &bytes).unwrap();
    }
    let mut array = Carray::open(&dir.path().join("a")).unwrap();
    fs::remove_file(dir.path().join("a/data/__0.blp")).unwrap();
    let error = array.read_rows(0, 1, &mut Vec::new()).unwrap_err();
    assert!(error.to_string().contains("__0.blp"), "{error}");
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn damaged_pictures_are_errors_or_pictures(
        flips in flips(), within in within(), kind in 0..6_usize, cut in any::<bool>(),
    ) {
        let pixels = (0..33 * 20 * 3).map(|i| (i * i / 11) as u8).collect();
        let picture = Image { width: 33, height: 20, pixels };
        let bytes = match kind {
            0 => picture::encode_jpeg(&picture, 85),
            1 => picture::encode_png(&picture),
            2 | 3 => {
                let format = [image::ImageFormat::WebP, image::ImageFormat::Bmp][kind - 2];
                let mut file = std::io::Cursor::new(Vec::new());
                let colour = image::ExtendedColorType::Rgb8;
                image::write_buffer_with_format(&mut file, &picture.pixels, 33, 20, colour, format).unwrap();
                file.into_inner()
            }
            4 => [b"P6 33 20 255\n".as_slice(), &picture.pixels].concat(),
            _ => [b"P5\n# comment\n60 33\n255\n".as_slice(), &picture.pixels].concat(),
        };
        let mut bytes = damage(&bytes, &flips, within);
        if cut {
            bytes.truncate(flips[0].0 % bytes.len());
        }
        let mut image = Image::default();
        if small(|| picture::decode(&bytes, &mut image)).is_ok() {
            prop_assert_eq!(image.pixels.len(), image.width * image.height * 3);
            prop_assert_eq!(picture::dimensions(&bytes), Ok((image.width, image.height)));
        }
        let _ = small(|| picture::dimensions(&bytes));
    }

    #[test]
    fn damaged_npy_files_do_no_harm(flips in flips(), within in within()) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        let elements = Elements::F32((0..60).map(|i| i as f32).collect());
        npy::write(&path, &Npy { shape: vec![5, 12], elements }).unwrap();
        fs::write(&path, damage(&fs::read(&path).unwrap(), &flips, within)).unwrap();
        if let Ok(array) = small(|| npy::read(&path)) {
            let bytes = fs::metadata(&path).unwrap().len() as usize;
            prop_assert!(array.shape.iter().product::<usize>() <= bytes);
        }
    }
}

#[test]
fn damaged_carrays_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let files = small_carray(dir.path());
    let case = (flips(), within(), 0..4_usize);
    proptest!(config(1000), |((flips, within, file) in case)| {
        // The chunk's file has twice the others' share.
        let (path, bytes) = &files[file.min(2)];
        fs::write(path, damage(bytes, &flips, within)).unwrap();
        let _ = small(|| read_carray(dir.path()));
        fs::write(path, bytes).unwrap();
    });
}

#[test]
fn damaged_recordio_does_no_harm() {
    let (dir, _) = packed();
    let names = ["train.rec", "train.idx", "property"];
    let files = names.map(|name| dir.path().join(name));
    let whole = files.clone().map(|file| fs::read(file).unwrap());
    let case = (flips(), within(), 0..3_usize, any::<bool>());
    proptest!(config(1000), |((flips, within, file, index) in case)| {
        fs::write(&files[file], damage(&whole[file], &flips, within)).unwrap();
        if !index {
            fs::remove_file(&files[1]).unwrap();
        }
        let result = small(|| RecordIo::open(dir.path()).map(|set| contents(&set)));
        if let Ok(results) = result {
            prop_assert!(results.len() <= 15);
        }
        for (file, bytes) in files.iter().zip(&whole) {
            fs::write(file, bytes).unwrap();
        }
    });
}
