//! Evaluation sets in `.bin` files and pairs files: Python's own pickles, and truncated and damaged ones.

#[path = "support/hostile.rs"]
mod hostile;

use arcface_cu::data::Image;
use arcface_cu::data::formats::bin::Bin;
use arcface_cu::data::formats::pairs::Pairs;
use arcface_cu::data::picture;
use arcface_cu::eval::{self, ChannelOrder, EvalSet, SetFiles, SetKind};
use hostile::*;
use proptest::prelude::*;
use std::fs;
use std::path::Path;

/// Picture k of the golden files: 2 x 2 pixels.
fn picture(k: u8) -> Image {
    Image {
        width: 2,
        height: 2,
        pixels: vec![k, 1, 2, k, 3, 4, k, 5, 6, k, 7, 255],
    }
}

fn ppm(k: u8) -> Vec<u8> {
    [b"P6 2 2 255\n".as_slice(), &picture(k).pixels].concat()
}

/// Pickles that Python 2.7 and 3.11 and NumPy 2.4 wrote (`reference/make_bins.py`).
const GOLDEN: &[&str] = &[
    "python2_protocol0.bin",
    "python2_protocol2.bin",
    "protocol0.bin",
    "protocol1.bin",
    "protocol2.bin",
    "protocol3.bin",
    "protocol4.bin",
    "protocol5.bin",
    "numpy_protocol0.bin",
    "numpy_protocol2.bin",
    "numpy_protocol4.bin",
    "numpy_protocol5.bin",
    "objects_protocol0.bin",
    "objects_protocol2.bin",
    "objects_protocol4.bin",
    "objects_protocol5.bin",
    "fixed_protocol0.bin",
    "fixed_protocol2.bin",
    "fixed_protocol4.bin",
    "fixed_protocol5.bin",
];

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference/golden/bin")
        .join(name)
}

/// Six images, three truth values.
#[test]
fn pythons_pickles_are_read() {
    for name in GOLDEN {
        let bin = Bin::open(&golden(name)).unwrap();
        assert_eq!(bin.same(), [true, false, true], "{name}");
        let mut image = Image::default();
        for k in 0..6 {
            bin.read(k.into(), &mut image).unwrap();
            assert_eq!(image, picture(k), "{name}");
        }
    }
}

#[test]
fn bins_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.bin");
    let says = |bytes: &[u8], words: &[&str]| {
        fs::write(&path, bytes).unwrap();
        let found = match Bin::open(&path) {
            Err(e) => e.to_string(),
            Ok(bin) => bin.read(0, &mut Image::default()).unwrap_err().to_string(),
        };
        for word in words {
            assert!(found.contains(word), "{word:?} is not in {found:?}");
        }
    };
    says(b"", &["a.bin, byte 0", "protocol 0 to 5"]);
    says(b"\x80\x04]].", &["found 0 items"]);
    says(b"\x80\x04K\x01.", &["found a number"]);
    says(b"\x80\x04]]]\x87.", &["found 3 items"]);
    says(b"\x80\x04]N\x86.", &["items that are no lists"]);
    says(
        b"\x80\x04](C\x01aNe](\x88e\x86.",
        &["image 1 that is not bytes"],
    );
    says(b"\x80\x04](C\x01aC\x01be](K\x02e\x86.", &["truth value 0"]);
    says(
        b"\x80\x04](C\x01ae](\x88e\x86.",
        &["1 images and 1 truth values"],
    );
    says(
        b"\x80\x04](C\x01aC\x01be](\x88e\x86.",
        &["byte 6", "image 0 cannot be decoded"],
    );
    says(
        b"\x80\x02cnumpy\nload\n(tR.",
        &["found an object of numpy.load"],
    );
    says(
        b"\x80\x02cposix\nsystem\n(tR.",
        &["found an object of posix.system"],
    );
}

#[test]
fn bins_truncated_and_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.bin");
    let whole: Vec<Vec<u8>> = (GOLDEN.iter())
        .map(|name| fs::read(golden(name)).unwrap())
        .collect();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        small(|| {
            let bin = Bin::open(&path).ok()?;
            let mut image = Image::default();
            for k in 0..2 * bin.same().len() {
                let _ = bin.read(k, &mut image);
            }
            Some(bin.same().len())
        })
    };
    for whole in &whole {
        for length in 0..whole.len() {
            assert_eq!(read(&whole[..length]), None, "{length}");
        }
    }
    proptest!(config(3000), |(flips in flips(), within in within(), file in 0..GOLDEN.len())| {
        let pairs = read(&damage(&whole[file], &flips, within));
        prop_assert!(pairs.is_none_or(|pairs| pairs <= 10));
    });
    // Opcodes in any order.
    let opcodes =
        b"()](ael\x85\x86\x87q\x00h\x00q\x01h\x01NK\x01C\x01x\x88\x89R0.\x94c_codecs\nencode\n";
    let pieces = prop::collection::vec(0..opcodes.len(), 0..60);
    proptest!(config(3000), |(pieces in pieces)| {
        let mut bytes = b"\x80\x03".to_vec();
        bytes.extend(pieces.iter().map(|&i| opcodes[i]));
        read(&bytes);
    });
}

/// People with two pictures each, as LFW lays them out, in different formats.
fn people(dir: &Path) {
    for (p, name) in (0..).zip(["Jane_Doe", "Joe", "Li Wei"]) {
        fs::create_dir_all(dir.join(name)).unwrap();
        for i in 0..2 {
            let k = 2 * p + i;
            let (ending, bytes) = match p {
                1 => ("png", picture::encode_png(&picture(k))),
                _ => ("ppm", ppm(k)),
            };
            fs::write(
                dir.join(name).join(format!("{name}_{:04}.{ending}", i + 1)),
                bytes,
            )
            .unwrap();
        }
    }
}

fn pictures(pairs: &Pairs) -> Vec<u8> {
    let mut image = Image::default();
    (0..2 * pairs.same().len())
        .map(|i| {
            pairs.read(i, &mut image).unwrap();
            assert_eq!(image, picture(image.pixels[0]));
            image.pixels[0]
        })
        .collect()
}

#[test]
fn pairs_files_name_pictures() {
    let dir = tempfile::tempdir().unwrap();
    people(dir.path());
    let file = dir.path().join("pairs.txt");
    let read = |text: &str, root: Option<&Path>| {
        fs::write(&file, text).unwrap();
        Pairs::open(&file, root)
    };
    let lfw = "1\t2\nJane_Doe\t1\t2\nJoe\t2\t1\nJane_Doe\t2\tJoe\t1\nJoe 2 Jane_Doe 1\n";
    for first in ["1\t2", "2"] {
        let text = lfw.replacen("1\t2", first, 1);
        let pairs = read(&text, None).unwrap();
        assert_eq!(pairs.same(), [true, true, false, false]);
        assert_eq!(pictures(&pairs), [0, 1, 3, 2, 1, 2, 3, 0]);
    }
    let list = "# pairs\r\nJane_Doe/Jane_Doe_0001.ppm Joe/Joe_0001.png 0\r\n\
                \"Li Wei/Li Wei_0001.ppm\" \"Li Wei/Li Wei_0002.ppm\" 1\n\n\
                Li Wei/Li Wei_0002.ppm\tJoe/Joe_0001.png\t0";
    let pairs = read(list, None).unwrap();
    assert_eq!(pairs.same(), [false, true, false]);
    assert_eq!(pictures(&pairs), [0, 2, 4, 5, 5, 2]);
    // As Windows writes it.
    let windows = format!("\u{feff}{}", list.replace('/', "\\"));
    let pairs = read(&windows, None).unwrap();
    assert_eq!(pictures(&pairs), [0, 2, 4, 5, 5, 2]);
    let pairs = read(&format!("\u{feff}{}", lfw.replace('\n', "\r\n")), None).unwrap();
    assert_eq!(pictures(&pairs), [0, 1, 3, 2, 1, 2, 3, 0]);
    let elsewhere = tempfile::tempdir().unwrap();
    people(elsewhere.path());
    fs::remove_dir_all(dir.path().join("Joe")).unwrap();
    assert_eq!(
        pictures(&read(list, Some(elsewhere.path())).unwrap()).len(),
        6
    );

    let says = |text: &str, words: &[&str]| {
        let error = read(text, Some(elsewhere.path())).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    };
    says("", &["pairs.txt", "holds no pair"]);
    says("1 1\nJoe 1 2\n", &["promises 2 pairs", "holds 1"]);
    says(
        "1 1\nJoe 1 2\nJoe 1 Joe\n",
        &["byte 12", "\"Joe\" where an image"],
    );
    says(
        "1 1\nJoe 1 2 3 4\n",
        &["byte 4", "5 fields", "name number number"],
    );
    says(
        "1 1\nJoe 1 3\n",
        &["byte 4", "Joe_0003.jpg", "aligned images"],
    );
    says(
        "1 1\nJoe 1 x\n",
        &["byte 4", "\"x\" where an image's number belongs"],
    );
    says("a b\n", &["byte 0", "2 fields", "image image 0|1"]);
    says(
        "Joe/Joe_0001.png Joe/Joe_0002.png yes\n",
        &["neither 0 nor 1"],
    );
    says("Joe/Joe_0001.png gone.jpg 1\n", &["no file", "gone.jpg"]);
    says("\"a b 1\n", &["not closed"]);
    fs::write(&file, b"\xff\xfe").unwrap();
    assert!(
        Pairs::open(&file, None)
            .unwrap_err()
            .to_string()
            .contains("UTF-8")
    );
}

#[test]
fn damaged_pairs_files_do_no_harm() {
    let dir = tempfile::tempdir().unwrap();
    people(dir.path());
    let file = dir.path().join("pairs.txt");
    let texts = [
        b"1\t1\nJane_Doe\t1\t2\nJane_Doe\t2\tJoe\t1\n".as_slice(),
        b"Jane_Doe/Jane_Doe_0001.ppm \"Joe/Joe_0001.png\" 0\n",
    ];
    proptest!(config(2000), |(flips in flips(), text in 0..2_usize, cut in 0..60_usize)| {
        let mut bytes = damage(texts[text], &flips, usize::MAX);
        bytes.truncate(cut.max(1));
        fs::write(&file, &bytes).unwrap();
        let _ = small(|| Pairs::open(&file, None));
    });
}

/// What the network is fed must be the same whichever form a set has.
#[test]
fn a_set_is_the_same_in_every_form() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    people(root);
    fs::write(
        root.join("own.txt"),
        "Jane_Doe/Jane_Doe_0001.ppm Jane_Doe/Jane_Doe_0002.ppm 1\n\
         Joe/Joe_0001.png Joe/Joe_0002.png 0\n\
         Li Wei/Li Wei_0001.ppm\tLi Wei/Li Wei_0002.ppm\t1\n",
    )
    .unwrap();
    fs::create_dir(root.join("bins")).unwrap();
    fs::copy(golden("protocol4.bin"), root.join("bins/own.bin")).unwrap();
    // Weights end in .bin, too.
    fs::write(root.join("bins/pytorch_model.bin"), b"PK\x03\x04").unwrap();
    let find = |path: &str| {
        let mut found = eval::find(&root.join(path), None).unwrap();
        assert_eq!((found.len(), &found[0].name[..]), (1, "own"), "{path}");
        found.remove(0)
    };
    let values = |files: &SetFiles, order| {
        let mut set = EvalSet::open(files, None).unwrap();
        assert_eq!((set.side(), set.images(), set.name()), (2, 6, "own"));
        let mut values = Vec::new();
        set.read(1, 4, false, order, &mut values).unwrap();
        values
    };
    let text = find("own.txt");
    let bin = find("bins");
    assert_eq!((text.kind, bin.kind), (SetKind::Pairs, SetKind::Bin));
    assert_eq!(find("bins/own.bin"), bin);
    let expected: Vec<f32> = (1..5)
        .flat_map(|k| picture(k).pixels)
        .map(|x| f32::from(x) / 255.0)
        .collect();
    assert_eq!(values(&text, ChannelOrder::Rgb), expected);
    assert_eq!(values(&bin, ChannelOrder::Rgb), expected);
    let swapped = values(&bin, ChannelOrder::Bgr);
    assert_eq!([swapped[0], swapped[2]], [expected[2], expected[0]]);

    let mut set = EvalSet::open(&bin, None).unwrap();
    let written = eval::convert_set(&mut set, &root.join("arrays"), &mut |_| {}).unwrap();
    assert_eq!(
        find("arrays"),
        SetFiles {
            path: fs::canonicalize(root).unwrap().join("arrays/own"),
            ..written.clone()
        }
    );
    for (a, b) in values(&written, ChannelOrder::Rgb).iter().zip(&expected) {
        assert!((a - b).abs() <= 1e-7, "{a} {b}");
    }
    let array = EvalSet::open(&written, None).unwrap();
    assert_eq!(array.same(), set.same());

    fs::write(
        root.join("Joe/Joe_0002.png"),
        b"P6 3 2 255\n123456789123456789",
    )
    .unwrap();
    let mut set = EvalSet::open(&text, None).unwrap();
    let mut values = Vec::new();
    set.read(0, 6, false, ChannelOrder::Rgb, &mut values)
        .unwrap();
    assert_eq!((values.len(), set.resized()), (6 * 12, 1));
}
