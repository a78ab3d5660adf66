//! Data sets in files of records: TensorFlow's own, and truncated and damaged ones.

#[path = "support/hostile.rs"]
mod hostile;

use arcface_cu::data::check::check;
use arcface_cu::data::formats::list::List;
use arcface_cu::data::formats::tfrecord::TfRecord;
use arcface_cu::data::formats::webdataset::WebDataset;
use arcface_cu::data::{Dataset, Opening, open, open_with};
use hostile::*;
use proptest::prelude::*;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A copy of the files that TensorFlow wrote (`reference/make_tfrecords.py`), so that indices can be kept beside them.
fn golden() -> tempfile::TempDir {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/golden/tfrecord");
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("faces")).unwrap();
    for name in [
        "seed.tfrecord",
        "arcface_tf2.tfrecord",
        "arcface_tf2_paths.tfrecord",
        "faces/0.ppm",
        "faces/1.ppm",
        "faces/2.ppm",
    ] {
        fs::copy(from.join(name), dir.path().join(name)).unwrap();
    }
    dir
}

/// Picture k of the golden files.
fn pixels(k: u8) -> Vec<u8> {
    vec![k, 1, 2, k, 3, 4]
}

/// Names of classes and pixels of all images.
fn named(set: &dyn Dataset) -> Vec<(String, Vec<u8>)> {
    (contents(set).into_iter().map(Result::unwrap))
        .map(|(label, pixels)| (set.class_name(label), pixels))
        .collect()
}

/// What a set does not use, a phrase for each reason.
fn unused(set: &dyn Dataset) -> Vec<String> {
    set.unused().iter().map(ToString::to_string).collect()
}

#[test]
fn tensorflows_examples_are_read_in_every_schema() {
    let dir = golden();
    for name in ["seed.tfrecord", "arcface_tf2.tfrecord"] {
        // First without an index, then with it.
        for _ in 0..2 {
            let set = open(&dir.path().join(name)).unwrap();
            assert_eq!((set.len(), set.classes()), (5, 4));
            let expected: Vec<_> = (["7", "0", "300", "7", "12"].into_iter().zip(0..))
                .map(|(label, k)| (label.to_owned(), pixels(k)))
                .collect();
            assert_eq!(named(&*set), expected, "{name}");
            // Ranks of the numbers: gaps make no classes.
            let labels: Vec<u32> = (0..5).map(|i| set.label(i)).collect();
            assert_eq!(labels, [1, 0, 3, 1, 2]);
            assert!(
                set.describe(4)
                    .contains(&format!("{name}, record 4 at byte"))
            );
            assert_eq!(set.encoded(0).unwrap().unwrap().extension, "pnm");
        }
        assert!(dir.path().join(format!("{name}.arcface-index")).is_file());
    }
    let expected: Vec<_> = (["n000012", "n000003", "n000012"].into_iter().zip(0..))
        .map(|(label, k)| (label.to_owned(), pixels(k)))
        .collect();
    let set = open(&dir.path().join("arcface_tf2_paths.tfrecord")).unwrap();
    assert_eq!(named(&*set), expected);
}

#[test]
fn paths_start_from_the_folder_that_is_said() {
    let dir = golden();
    let file = dir.path().join("arcface_tf2_paths.tfrecord");
    let elsewhere = tempfile::tempdir().unwrap();
    fs::rename(dir.path().join("faces"), elsewhere.path().join("faces")).unwrap();
    let read = |root: Option<&Path>| {
        let opening = Opening {
            image_root: root,
            ..Opening::default()
        };
        contents(&*open_with(&file, &opening).unwrap())
    };
    let error = read(None)[0].clone().unwrap_err();
    assert!(
        error.contains(&dir.path().join("faces/0.ppm").display().to_string()),
        "{error}"
    );
    assert_eq!(read(Some(elsewhere.path()))[2], Ok((1, pixels(2))));
    // What a path names need not be a picture, or end.
    fs::remove_file(elsewhere.path().join("faces/0.ppm")).unwrap();
    fs::create_dir(elsewhere.path().join("faces/0.ppm")).unwrap();
    let error = read(Some(elsewhere.path()))[0].clone().unwrap_err();
    assert!(error.contains("is a folder, and a file"), "{error}");
    #[cfg(unix)]
    {
        fs::remove_dir(elsewhere.path().join("faces/0.ppm")).unwrap();
        std::os::unix::fs::symlink("/dev/zero", elsewhere.path().join("faces/0.ppm")).unwrap();
        let error = read(Some(elsewhere.path()))[0].clone().unwrap_err();
        assert!(error.contains("is a device or a pipe"), "{error}");
    }
}

#[test]
fn several_files_are_one_set() {
    let dir = golden();
    let golden = |name: &str| fs::read(dir.path().join(name)).unwrap();
    let sets = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = sets.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    };
    let (seed, names) = (golden("seed.tfrecord"), golden("arcface_tf2.tfrecord"));
    write("row/train-00000-of-00003", &seed);
    write("row/train-00001-of-00003", b"");
    write("row/train-00002-of-00003", &names);
    write("plain/a-1.tfrecord", &seed);
    write("plain/a-2.tfrecord", &names);
    for path in [
        "row",
        "row/train",
        "row/train-00002-of-00003",
        "row/train-*",
        "plain",
        "plain/*.tfrecord",
        "plain/a-?.tfrecord",
    ] {
        let heard = Mutex::new(Vec::new());
        let opening = Opening {
            progress: &|done, total| heard.lock().unwrap().push((done, total)),
            ..Opening::default()
        };
        let set = open_with(&sets.path().join(path), &opening).unwrap();
        assert_eq!((set.len(), set.classes()), (10, 4), "{path}");
        let all = contents(&*set);
        assert_eq!(all[2], Ok((3, pixels(2))));
        assert_eq!(all[..5], all[5..]);
        assert!(
            set.describe(6).contains("record 1 at byte"),
            "{}",
            set.describe(6)
        );
        let total = (seed.len() + names.len()) as u64;
        assert_eq!(heard.lock().unwrap().last(), Some(&(total, total)));
    }
    fs::remove_file(sets.path().join("row/train-00001-of-00003")).unwrap();
    for path in ["row", "row/train", "row/train-00000-of-00003"] {
        let error = open(&sets.path().join(path)).err().unwrap().to_string();
        assert!(
            error.contains("train-00001-of-00003: is missing"),
            "{error}"
        );
    }
    write("plain/val.tfrecord", &seed);
    let error = open(&sets.path().join("plain")).err().unwrap().to_string();
    assert!(error.contains("several data sets"), "{error}");
    // Without an ending, the content tells.
    write("faces", &seed);
    assert_eq!(open(&sets.path().join("faces")).unwrap().len(), 5);
    write("text", b"hello");
    let error = open(&sets.path().join("text")).err().unwrap().to_string();
    assert!(
        error.contains("no data set that this program knows"),
        "{error}"
    );
}

fn open_tfrecord(path: &Path) -> arcface_cu::Result<TfRecord> {
    TfRecord::open(path, &Opening::default())
}

/// The first thing that goes wrong in opening a file of these bytes and reading everything.
fn tfrecord_error(file: &Path, bytes: &[u8]) -> String {
    fs::write(file, bytes).unwrap();
    let _ = fs::remove_file(index_of(file));
    match open_tfrecord(file) {
        Err(e) => e.to_string(),
        Ok(set) => (contents(&set).into_iter())
            .find_map(Result::err)
            .unwrap_or_default(),
    }
}

fn index_of(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".arcface-index");
    name.into()
}

#[test]
fn tfrecord_says_what_is_wrong_and_where() {
    let dir = golden();
    let bytes = fs::read(dir.path().join("seed.tfrecord")).unwrap();
    let file = dir.path().join("damaged");
    let check = |bytes: &[u8], parts: &[&str]| {
        let found = tfrecord_error(&file, bytes);
        assert_eq!(parts.is_empty(), found.is_empty(), "{found}");
        for part in parts {
            assert!(found.contains(part), "{part:?} is not in {found:?}");
        }
    };
    check(&bytes, &[]);
    let with = |at: usize, byte: u8| {
        let mut bytes = bytes.clone();
        bytes[at] ^= byte;
        bytes
    };
    let second = 12 + bytes[0] as usize + 4;
    check(
        &with(second, 1),
        &[
            &format!("damaged, byte {}", second + 8),
            "CRC",
            "the length",
            "damaged",
        ],
    );
    check(&with(second + 20, 1), &["CRC", "the data before it"]);
    check(
        &with(second - 1, 0x80),
        &[&format!("byte {}", second - 4), "CRC"],
    );
    check(b"", &["holds no record"]);
    check(&bytes[..7], &["12 bytes that begin a record", "truncated"]);
    check(
        &bytes[..second + 40],
        &["to the end of the file: it is truncated"],
    );
    check(
        b"\x1f\x8b\x08\0aaaaaaaaaaaaaaaaa",
        &["compressed TFRecord", "gunzip"],
    );
    // A file that is changed behind an open set's back.
    fs::write(&file, &bytes).unwrap();
    let set = open_tfrecord(&file).unwrap();
    fs::write(&file, with(second + 20, 1)).unwrap();
    let error = contents(&set)[1].clone().unwrap_err();
    assert!(error.contains("CRC"), "{error}");
}

#[test]
fn tfrecord_every_truncation_is_an_error() {
    let dir = golden();
    let whole = fs::read(dir.path().join("arcface_tf2.tfrecord")).unwrap();
    let file = dir.path().join("cut.tfrecord");
    let mut opened = 0;
    for length in 0..whole.len() {
        fs::write(&file, &whole[..length]).unwrap();
        if let Ok(set) = small(|| open_tfrecord(&file)) {
            // The end of a record is the end of a shorter file.
            opened += 1;
            assert_eq!(set.len(), opened);
            for (k, result) in (0..).zip(contents(&set)) {
                assert_eq!(result.unwrap().1, pixels(k));
            }
        }
    }
    assert_eq!(opened, 4);
}

/// Damage that the CRCs would notice, and damage with CRCs that fit.
#[test]
fn damaged_tfrecord_does_no_harm() {
    let dir = golden();
    let names = [
        "seed.tfrecord",
        "arcface_tf2.tfrecord",
        "arcface_tf2_paths.tfrecord",
    ];
    let files = names.map(|name| dir.path().join(name));
    let whole = files.clone().map(|file| fs::read(file).unwrap());
    let case = (flips(), within(), 0..3_usize, any::<bool>());
    proptest!(config(3000), |((flips, within, file, mend) in case)| {
        let mut bytes = damage(&whole[file], &flips, within);
        if mend {
            mend_crcs(&mut bytes);
        }
        fs::write(&files[file], &bytes).unwrap();
        let result = small(|| open_tfrecord(&files[file]).map(|set| contents(&set)));
        match result {
            Ok(results) if !mend => prop_assert!(
                bytes == whole[file] && results.iter().all(Result::is_ok),
                "damage was not noticed"
            ),
            Ok(results) => prop_assert!(results.len() <= 6),
            Err(error) => prop_assert!(error.to_string().contains(names[file])),
        }
    });
}

/// Makes every CRC fit, as far as the lengths lead.
fn mend_crcs(bytes: &mut [u8]) {
    let mut at = 0;
    while at + 12 <= bytes.len() {
        let length = u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
        let crc = masked(&bytes[at..at + 8]);
        bytes[at + 8..at + 12].copy_from_slice(&crc);
        let Some(end) = (at + 12)
            .checked_add(length)
            .filter(|end| end + 4 <= bytes.len())
        else {
            return;
        };
        let crc = masked(&bytes[at + 12..end]);
        bytes[end..end + 4].copy_from_slice(&crc);
        at = end + 4;
    }
}

/// Bit by bit, from the definition.
fn masked(bytes: &[u8]) -> [u8; 4] {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ ((crc & 1) * 0x82f6_3b78);
        }
    }
    (!crc)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
        .to_le_bytes()
}

fn ppm(k: u8) -> Vec<u8> {
    [b"P6 2 1 255\n".as_slice(), &pixels(k)].concat()
}

/// A tar header by hand, in the manner of ustar.
fn member(name: &str, kind: u8, content: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    header[..name.len()].copy_from_slice(name.as_bytes());
    header[100..108].copy_from_slice(b"0000644\0");
    header[124..136].copy_from_slice(format!("{:011o}\0", content.len()).as_bytes());
    header[148..156].fill(b' ');
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = header.iter().map(|&b| u32::from(b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend(content);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}

/// Three samples: one plain, one with a long name in GNU's manner and label and image in the other order, one in pax's.
fn archive() -> Vec<u8> {
    let long = format!("{}/000001", "folder".repeat(30));
    let pax = |name: &str| {
        let record = |n: usize| format!("{n} path={name}\n");
        let length = (0..).find(|&n| record(n).len() == n).unwrap();
        member("pax", b'x', record(length).as_bytes())
    };
    [
        member("set/", b'5', b""),
        member("README.md", b'0', b"nothing of interest"),
        member("set/000000.cls", b'0', b"20\n"),
        // What macOS's tar puts beside a file.
        member("set/._000000.ppm", b'0', b"attributes"),
        member("set/000000.ppm", b'0', &ppm(0)),
        member("set/000000.json", b'0', b"{}"),
        member("set/link.ppm", b'2', b""),
        member("@LongLink", b'L', format!("{long}.PPM\0").as_bytes()),
        member("cut", b'0', &ppm(1)),
        member("@LongLink", b'L', format!("{long}.cls\0").as_bytes()),
        member("cut", 0, b"3"),
        pax("set/\u{f6}.cls"),
        member("x", b'0', b" 20 "),
        pax("set/\u{f6}.ppm"),
        member("x", b'0', &ppm(2)),
        vec![0; 1024],
    ]
    .concat()
}

#[test]
fn webdataset_samples_are_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("faces-000.tar");
    fs::write(&path, archive()).unwrap();
    let expected: Vec<_> = (["20", "3", "20"].into_iter().zip(0..))
        .map(|(label, k)| (label.to_owned(), pixels(k)))
        .collect();
    for _ in 0..2 {
        assert_eq!(named(&*open(&path).unwrap()), expected);
    }
    fs::write(dir.path().join("faces-001.tar"), archive()).unwrap();
    let set = open(dir.path()).unwrap();
    assert_eq!((set.len(), set.classes()), (6, 2));
    assert_eq!([set.label(0), set.label(1), set.label(4)], [1, 0, 0]);
    assert_eq!(set.encoded(5).unwrap().unwrap().bytes, ppm(2));
    // Counted once, kept in the index, and told again; the folder's other files besides.
    let beside = [
        (false, ""),
        (true, "1 file beside the data set's files (a.csv)"),
    ];
    for (there, said) in beside {
        if there {
            fs::write(dir.path().join("a.csv"), "").unwrap();
        }
        let expected = [
            "4 files that are neither picture nor label of a sample (README.md, set/000000.json, README.md, set/000000.json)",
            "2 hidden entries (set/._000000.ppm, set/._000000.ppm)",
            "2 links or devices in an archive (set/link.ppm, set/link.ppm)",
            said,
        ];
        let expected: Vec<_> = expected
            .into_iter()
            .filter(|said| !said.is_empty())
            .collect();
        assert_eq!(unused(&*open(dir.path()).unwrap()), expected);
    }
    // The content tells where the name does not.
    fs::write(dir.path().join("unnamed"), archive()).unwrap();
    assert_eq!(open(&dir.path().join("unnamed")).unwrap().len(), 3);
}

fn webdataset_error(bytes: &[u8]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    fs::write(&path, bytes).unwrap();
    match WebDataset::open(&path, &Opening::default()) {
        Err(e) => e.to_string(),
        Ok(set) => (contents(&set).into_iter())
            .find_map(Result::err)
            .unwrap_or_default(),
    }
}

#[test]
fn webdataset_says_what_is_wrong_and_where() {
    let end = vec![0; 1024];
    let check = |members: &[Vec<u8>], parts: &[&str]| {
        let found = webdataset_error(&members.concat());
        for part in parts {
            assert!(found.contains(part), "{part:?} is not in {found:?}");
        }
    };
    let image = member("a.ppm", b'0', &ppm(0));
    let label = |text: &str| member("a.cls", b'0', text.as_bytes());
    check(
        &[image.clone(), end.clone()],
        &["a.tar, byte 0", "label (.cls)", "sample a"],
    );
    check(
        &[
            image.clone(),
            label("1"),
            member("b.cls", b'0', b"1"),
            end.clone(),
        ],
        &["byte 2048", "image", "sample b"],
    );
    check(
        &[image.clone(), image.clone(), end.clone()],
        &["byte 1024", "a second one, a.ppm"],
    );
    for (text, found) in [
        ("-1", "the label -1"),
        (" ", "no label"),
        (&"1".repeat(2000), "no short text"),
    ] {
        check(
            &[label(text), image.clone(), end.clone()],
            &["byte 0", "a.cls", found],
        );
    }
    check(
        &[image.clone(), label("1")],
        &["byte 2048", "zeros that end an archive", "truncated"],
    );
    check(
        &[image.clone(), label("1"), end.clone(), image.clone()],
        &["byte 3072", "several archives in one file"],
    );
    let mut damaged = image.clone();
    damaged[3] ^= 1;
    check(&[damaged, end.clone()], &["byte 0", "do not have its sum"]);
    check(&[b"\x1f\x8b\x08".to_vec()], &["compressed archive"]);
    check(&[], &["truncated"]);
    check(std::slice::from_ref(&end), &["holds no record"]);
    check(
        &[member("a.jpg", b'0', b"GIF8"), label("1"), end],
        &["byte 512", "not a JPEG"],
    );
}

#[test]
fn webdataset_truncated_and_damaged() {
    let whole = archive();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.tar");
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let _ = fs::remove_file(index_of(&path));
        small(|| WebDataset::open(&path, &Opening::default()).map(|set| contents(&set)))
    };
    // One block of zeros ends an archive.
    for length in (0..whole.len() - 512).step_by(37) {
        assert!(read(&whole[..length]).is_err(), "{length}");
    }
    assert_eq!(read(&whole[..whole.len() - 512]).unwrap().len(), 3);
    proptest!(config(2000), |(flips in flips(), block in 0..26_usize, mend in any::<bool>())| {
        let mut bytes = whole.clone();
        for (at, mask) in flips {
            // The part of a header that is not zero.
            bytes[(512 * block + at % 330).min(whole.len() - 1)] ^= mask;
        }
        if mend {
            mend_sums(&mut bytes);
        }
        if let Ok(results) = read(&bytes) {
            prop_assert!(results.len() <= 3);
        }
    });
}

/// Makes the sum of every block fit that could be a header.
fn mend_sums(bytes: &mut [u8]) {
    for block in bytes
        .chunks_exact_mut(512)
        .filter(|b| b[257..261] == *b"usta")
    {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

#[test]
fn lists_name_images_and_labels() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("my faces")).unwrap();
    for k in 0..3 {
        fs::write(dir.path().join(format!("my faces/{k}.ppm")), ppm(k)).unwrap();
    }
    let list = dir.path().join("faces.txt");
    let absolute = dir.path().join("my faces/1.ppm");
    let text = format!(
        "# path label\r\nmy faces/0.ppm 9\r\n\r\n\"{}\" 10\nmy faces/2.ppm\t9",
        absolute.display()
    );
    fs::write(&list, text).unwrap();
    let set = open(&list).unwrap();
    assert_eq!((set.len(), set.classes()), (3, 2));
    let expected: Vec<_> = (["9", "10", "9"].into_iter().zip(0..))
        .map(|(label, k)| (label.to_owned(), pixels(k)))
        .collect();
    assert_eq!(named(&*set), expected);
    assert_eq!(set.describe(1), absolute.display().to_string());

    let elsewhere = tempfile::tempdir().unwrap();
    let moved = elsewhere.path().join("list.tsv");
    fs::copy(&list, &moved).unwrap();
    assert!(contents(&*open(&moved).unwrap())[0].is_err());
    let opening = Opening {
        image_root: Some(dir.path()),
        ..Opening::default()
    };
    assert_eq!(named(&*open_with(&moved, &opening).unwrap()), expected);
    // One of several numbered lists is that list.
    for name in ["l-0-of-2.txt", "l-1-of-2.txt"] {
        fs::copy(&list, dir.path().join(name)).unwrap();
    }
    assert_eq!(open(&dir.path().join("l-1-of-2.txt")).unwrap().len(), 3);

    let says = |bytes: &[u8], parts: &[&str]| {
        fs::write(&list, bytes).unwrap();
        let error = open(&list).err().unwrap().to_string();
        for part in parts {
            assert!(error.contains(part), "{part:?} is not in {error:?}");
        }
    };
    says(
        b"a.jpg 1\nb.jpg\n",
        &["faces.txt, byte 8", "without a label", "b.jpg"],
    );
    says(b"a.jpg 1\nb.jpg -1", &["byte 8", "the label -1"]);
    says(b"a.jpg\t\n", &["byte 0", "no label"]);
    says(b"\"a.jpg 1", &["not closed"]);
    says(b"\"\" 1", &["without a path"]);
    says(b"a.jpg 1\n\xff\xfe 3", &["byte 8", "not UTF-8"]);
    says(b"a.jpg 1\0", &["zero byte"]);
    says(b"\n# nothing\n", &["holds no line"]);
}

#[test]
fn damaged_lists_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.lst");
    let whole = b"a b.jpg 1\n\"c\\\"d.jpg\" Jane Doe\n\n# x\ne/f.jpg\t3\n";
    proptest!(config(2000), |(flips in flips(), cut in 0..60_usize)| {
        let mut bytes = damage(whole, &flips, usize::MAX);
        bytes.truncate(cut.min(bytes.len()).max(1));
        fs::write(&path, &bytes).unwrap();
        if let Ok(set) = small(|| List::open(&path, &Opening::default())) {
            prop_assert!(contents(&set).into_iter().all(|image| image.is_err()));
        }
    });
}

/// A part of a record by hand: kind 0 whole, 1 first, 2 middle, 3 last.
fn part(kind: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0xced7_230a_u32.to_le_bytes().to_vec();
    bytes.extend((kind << 29 | payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// What MXNet writes for `IRHeader(flag, label, id, 0)` and an image.
fn image_record(labels: &[f32], flag: u32, body: &[u8]) -> Vec<u8> {
    let mut payload = flag.to_le_bytes().to_vec();
    payload.extend(if flag == 0 { labels[0] } else { 0.0 }.to_le_bytes());
    payload.extend([0; 16]);
    if flag > 0 {
        payload.extend(labels.iter().flat_map(|label| label.to_le_bytes()));
    }
    payload.extend(body);
    payload
}

/// A file that another program makes shorter while a set of it is open.
#[test]
fn a_file_that_becomes_shorter_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let golden = golden();
    let records = (0..6).map(|k| part(0, &image_record(&[f32::from(k)], 0, &ppm(k))));
    let tfrecord = fs::read(golden.path().join("seed.tfrecord")).unwrap();
    for (name, bytes) in [
        ("a.rec", records.collect::<Vec<_>>().concat()),
        ("a.tfrecord", tfrecord),
        ("a.tar", archive()),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, &bytes).unwrap();
        let set = open(&path).unwrap();
        assert!(contents(&*set).iter().all(Result::is_ok), "{name}");
        for length in [bytes.len() / 2, 0] {
            shorten(&path, length);
            let errors: Vec<_> = contents(&*set)
                .into_iter()
                .filter_map(Result::err)
                .collect();
            assert!(!errors.is_empty(), "{name}");
            for error in errors {
                let said = error.contains(name) && error.contains("made shorter");
                assert!(said, "{error}");
            }
        }
    }
}

/// Records of im2rec, not InsightFace's: one label, a vector of labels, and one in three parts, since the picture holds the
/// magic twice; with an index in another order than the file, and without.
#[test]
fn recordio_of_every_kind_without_insightfaces_headers() {
    let magic = 0xced7_230a_u32.to_le_bytes();
    let comment = [
        b"P6 #".as_slice(),
        &magic,
        b"1234",
        &magic,
        b"\n2 1 255\n",
        &pixels(2),
    ]
    .concat();
    let third = image_record(&[2.0], 0, &comment);
    let cuts: Vec<usize> = (0..third.len())
        .step_by(4)
        .filter(|&i| third[i..].starts_with(&magic))
        .collect();
    let [first_cut, second_cut] = cuts[..] else {
        panic!("the magic is at multiples of 4: {cuts:?}");
    };
    let records = [
        part(0, &image_record(&[1.0], 0, &ppm(0))),
        part(0, &image_record(&[0.0, 0.25, -7.0], 3, &ppm(1))),
        [
            part(1, &third[..first_cut]),
            part(2, &third[first_cut + 4..second_cut]),
            part(3, &third[second_cut + 4..]),
        ]
        .concat(),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("faces.rec");
    fs::write(&path, records.concat()).unwrap();
    let expected = [(1, pixels(0)), (0, pixels(1)), (2, pixels(2))];
    let read = || -> Vec<_> {
        let set = open(dir.path()).unwrap();
        assert_eq!(set.classes(), 3);
        contents(&*set).into_iter().map(Result::unwrap).collect()
    };
    assert_eq!(read(), expected);
    let (second, last) = (records[0].len(), records[0].len() + records[1].len());
    fs::write(
        dir.path().join("faces.idx"),
        format!("20\t{second}\n3\t{last}\n700\t0\n"),
    )
    .unwrap();
    let [a, b, c] = expected;
    assert_eq!(read(), [c, b, a], "in the order of keys");
    // A one-hot label is no class, with the index and without.
    let hot = |k: usize| {
        let mut labels = [0.0; 4];
        labels[k] = 1.0;
        part(0, &image_record(&labels, 4, &ppm(0)))
    };
    let vectors = dir.path().join("vectors.rec");
    fs::write(&vectors, [hot(0), hot(2)].concat()).unwrap();
    let error = open(&vectors).err().unwrap().to_string();
    assert!(
        error.contains("4 labels in record 1") && error.contains("one-hot"),
        "{error}"
    );
    fs::remove_file(vectors).unwrap();
    // Any part that is missing is noticed.
    for kind in [2, 3] {
        let mut damaged = records.concat();
        let at = last + 8 + first_cut.next_multiple_of(4) + if kind == 3 { 12 } else { 0 };
        assert_eq!(damaged[at..at + 4], magic, "kind {kind}");
        damaged[at + 7] = 0;
        fs::write(&path, damaged).unwrap();
        let error = open(dir.path()).err().unwrap().to_string();
        assert!(
            error.contains("a further part") && error.contains("kind 0"),
            "{error}"
        );
    }
}

/// Records of the first three of four classes, two each, and what InsightFace puts around them.
#[test]
fn records_that_nobody_names_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).unwrap();
    let image = |k: u8| part(0, &image_record(&[f32::from(k / 2)], 0, &ppm(k)));
    let records: Vec<Vec<u8>> = (0..6).map(image).collect();
    let offsets: Vec<usize> = (0..6)
        .map(|k| records[..k].iter().map(Vec::len).sum())
        .collect();
    write("train.rec", &records.concat());
    write("property", b"4,2,1");
    write("lfw.bin", b"");
    let lines = |keys: &[usize]| -> String {
        let line = |&k: &usize| format!("{k}\t{}\n", offsets[k]);
        keys.iter().map(line).collect()
    };
    for (keys, said) in [
        (
            &[0, 1, 2][..],
            format!(
                "3 records that the index does not name (byte {}, byte {}, byte {})",
                offsets[3], offsets[4], offsets[5]
            ),
        ),
        (
            &[1, 3, 5],
            format!(
                "3 records that the index does not name (byte 0, byte {}, byte {})",
                offsets[2], offsets[4]
            ),
        ),
        (&[0, 1, 2, 3, 4, 5], String::new()),
    ] {
        write("train.idx", lines(keys).as_bytes());
        let set = open(dir.path()).unwrap();
        assert_eq!(set.len(), keys.len());
        let mut found = unused(&*set);
        assert_eq!(
            found.pop().unwrap(),
            "1 file beside the data set's files (lfw.bin)"
        );
        assert!(found.pop().unwrap().contains("without a picture"));
        assert_eq!(found.pop().unwrap_or_default(), said);
    }
    write("property", b"4294967295,2,1");
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains("4294967295 classes, and the 6 images"),
        "{error}"
    );
    write("property", b"\xef\xbb\xbf4,2,1\r\n");
    // Without the index all records count.
    fs::remove_file(dir.path().join("train.idx")).unwrap();
    assert_eq!(open(dir.path()).unwrap().len(), 6);

    // InsightFace's: record 0, images 1 to 6, headers 7 to 9, then a record in the index and one beside it.
    let header = |first: u32, end: u32| part(0, &image_record(&[first as f32, end as f32], 2, b""));
    let mut all = vec![header(7, 10)];
    all.extend(records);
    all.extend([header(1, 3), header(3, 4), header(5, 7), image(0), image(1)]);
    let mut index = String::new();
    let mut at = 0;
    for (key, record) in all.iter().enumerate() {
        if key < 11 {
            index += &format!("{key}\t{at}\n");
        }
        at += record.len();
    }
    write("train.rec", &all.concat());
    write("train.idx", index.as_bytes());
    let set = open(dir.path()).unwrap();
    assert_eq!(set.len(), 5);
    let found = unused(&*set);
    let last = at - all[11].len();
    let expected = [
        format!("1 record that the index does not name (byte {last})"),
        "2 records that no identity names (record 4, record 10)".into(),
        "1 class without a picture (3)".into(),
        "1 file beside the data set's files (lfw.bin)".into(),
    ];
    assert_eq!(found, expected);
    let in_full = |set: &dyn Dataset| -> Vec<String> {
        let unused = set.unused_in_full().unwrap();
        unused.iter().map(ToString::to_string).collect()
    };
    assert_eq!(in_full(&*set), expected);

    // Two that stand between the named ones are only seen by a walk, which `check` does.
    let named = |place: usize| ![2, 7].contains(&place);
    let mut index = String::new();
    let (mut at, mut key, mut hidden) = (0, 0, Vec::new());
    let mut all = vec![header(5, 7)];
    all.extend((0..5).map(image));
    all.extend([header(1, 3), part(0, b"anything"), header(3, 5)]);
    for (place, record) in all.iter().enumerate() {
        if named(place) {
            index += &format!("{key}\t{at}\n");
            key += 1;
        } else {
            hidden.push(at);
        }
        at += record.len();
    }
    write("train.rec", &all.concat());
    write("train.idx", index.as_bytes());
    let set = open(dir.path()).unwrap();
    let said = |unused: Vec<String>| -> Vec<String> {
        let about = |line: &String| line.contains("index");
        unused.into_iter().filter(about).collect()
    };
    assert!(said(unused(&*set)).is_empty());
    let places: Vec<String> = hidden.iter().map(|at| format!("byte {at}")).collect();
    let expected = format!(
        "{} records that the index does not name ({})",
        hidden.len(),
        places.join(", ")
    );
    assert_eq!(said(in_full(&*set)), [expected]);
    let report = check(&*set, &mut |_| {}).unwrap();
    let told: Vec<String> = report.unused.iter().map(ToString::to_string).collect();
    assert_eq!(told, in_full(&*set));
}

/// What `pack` wrote beside its records.
#[test]
fn packed_classes_keep_their_names() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
    let image = |k: u8| part(0, &image_record(&[f32::from(k / 2)], 0, &ppm(k)));
    let records: Vec<Vec<u8>> = (0..6).map(image).collect();
    fs::write(dir.path().join("train.rec"), records.concat()).unwrap();
    let names = || -> Vec<String> {
        let set = open(dir.path()).unwrap();
        (0..3).map(|label| set.class_name(label)).collect()
    };
    let numbers = ["0", "1", "2"];
    assert_eq!(names(), numbers);
    let heading = "label\tname\timages\tset\n";
    let ours = format!("{heading}0\tZoë\t2\ttrain\n1\t17\t2\ttrain\n2\ta b\t2\ttrain\n");
    write("identities.tsv", &format!("{ours}3\tlast\t9\treserved\n"));
    assert_eq!(names(), ["Zoë", "17", "a b"]);
    assert!(unused(&*open(dir.path()).unwrap()).is_empty());
    // Of another set: too few, too many, other columns.
    for text in [
        format!("{heading}0\tZoë\t2\ttrain\n"),
        format!("{ours}3\tlast\t9\ttrain\n"),
        "name,number\n".into(),
    ] {
        write("identities.tsv", &text);
        assert_eq!(names(), numbers, "{text}");
        assert_eq!(
            unused(&*open(dir.path()).unwrap()),
            ["1 file beside the data set's files (identities.tsv)"]
        );
    }
    write("identities.tsv", &format!("{heading}0\tZoë\n"));
    let error = open(dir.path()).err().unwrap().to_string();
    assert!(
        error.contains("identities.tsv, byte 22: expected four fields"),
        "{error}"
    );
}
