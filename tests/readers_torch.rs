//! PyTorch's files and safetensors: genuine ones (`reference/make_torch_files.py`), and truncated, damaged and hostile ones.

#[path = "support/hostile.rs"]
mod hostile;

use arcface_cu::weights::formats::tensors::TensorFile;
use arcface_cu::weights::formats::{self, torch};
use hostile::*;
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};
use std::fs;
use std::path::{Path, PathBuf};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference/golden/torch")
        .join(name)
}

/// Element i of the golden tensors before they are cut or transposed.
fn number(i: usize) -> f32 {
    (i as f32 % 32.0 - 16.0) / 8.0
}

#[track_caller]
fn is(file: &TensorFile, name: &str, shape: &[usize], elements: impl IntoIterator<Item = usize>) {
    let tensor = file.get(name).unwrap_or_else(|| panic!("no {name}"));
    let values: Vec<f32> = elements.into_iter().map(number).collect();
    assert_eq!(
        (&tensor.shape[..], &tensor.values),
        (shape, &values),
        "{name}"
    );
}

fn is_ignored(file: &TensorFile, name: &str, word: &str) {
    let found = file.ignored.iter().find(|(ignored, _)| ignored == name);
    let found = &found.unwrap_or_else(|| panic!("{name} is not ignored")).1;
    assert!(found.contains(word), "{name}: {found}");
}

#[test]
fn state_dicts() {
    for name in ["state_dict_zip.pth", "state_dict_legacy.pth"] {
        assert!(torch::is_torch(&fs::read(golden(name)).unwrap()[..16]));
        let file = torch::open(&golden(name)).unwrap();
        is(&file, "conv.weight", &[2, 3, 2, 2], 0..24);
        is(&file, "tied", &[2, 3, 2, 2], 0..24);
        is(&file, "half", &[5], 0..5);
        is(&file, "bfloat", &[5], 0..5);
        is(&file, "double", &[5], 0..5);
        let transposed = (0..4).flat_map(|i| (0..3).map(move |j| j * 4 + i));
        is(&file, "transposed", &[4, 3], transposed);
        let cut = (1..4).flat_map(|i| (0..3).map(move |j| i * 6 + 2 * j));
        is(&file, "cut", &[3, 3], cut);
        let permuted = (0..4).flat_map(|k| (0..6).map(move |ij| ij * 4 + k));
        is(&file, "permuted", &[4, 2, 3], permuted);
        is(&file, "parameter", &[3], 0..3);
        is(&file, "scalar", &[], [3]);
        is(&file, "empty", &[0, 3], []);
        assert_eq!(file.tensors.len(), 11);
        is_ignored(&file, "bn.num_batches_tracked", "a tensor of whole numbers");
        is_ignored(&file, "mask", "a tensor of truth values");
        assert_eq!(file.ignored.len(), 2);
    }
}

#[test]
fn checkpoints_are_flattened() {
    for name in ["checkpoint_zip.pth", "checkpoint_legacy.pth"] {
        let file = torch::open(&golden(name)).unwrap();
        is(&file, "state_dict.weight", &[2, 3], 0..6);
        is(&file, "state_dict.bias", &[2], 0..2);
        is(&file, "optimizer.state.0.momentum_buffer", &[2, 3], 0..6);
        is(&file, "optimizer.state.1.momentum_buffer", &[2], 0..2);
        assert_eq!(file.tensors.len(), 4);
        is_ignored(&file, "state_dict.module.", "taken off 2 names");
        is_ignored(&file, "epoch", "a number, no tensor");
        is_ignored(&file, "best", "a number");
        is_ignored(&file, "arch", "a text");
        is_ignored(&file, "sizes", "a Size");
        is_ignored(&file, "history", "a list");
        is_ignored(&file, "optimizer.param_groups", "a list");
    }
}

#[test]
fn whole_models_are_refused_by_name() {
    for name in ["model_zip.pth", "model_legacy.pth"] {
        let error = torch::open(&golden(name)).unwrap_err().to_string();
        let holds = "holds an object of torch.nn.modules.linear.Linear";
        for word in [name, holds, "state_dict()"] {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    }
}

/// Whatever people keep beside their weights is named and left out; so is a weight that is no tensor.
#[test]
fn other_objects_are_inert() {
    for name in ["objects_zip.pth", "objects_legacy.pth"] {
        let file = torch::open(&golden(name)).unwrap();
        is(&file, "state_dict.weight", &[2, 3], 0..6);
        is(&file, "more.scale", &[2], 0..2);
        assert_eq!(file.tensors.len(), 2, "{name}");
        for (name, words) in [
            ("state_dict.bias", "core.multiarray._reconstruct, no tensor"),
            ("best", "core.multiarray.scalar"),
            ("history", "core.multiarray._reconstruct"),
            ("args", "an object of argparse.Namespace"),
            ("counts", "an object of collections.Counter"),
            ("queue", "an object of collections.deque"),
            ("path", "an object of pathlib.PurePosixPath"),
            ("mode", "an object of __main__.Mode"),
            ("callback", "an object of functools.partial"),
            ("callbacks.", "whose key is a class or function"),
            ("callbacks.", "whose key is a tuple"),
            ("seed", "a number"),
            ("size", "a number"),
            ("numpy_state", "a tuple"),
            ("date", "an object of datetime.date"),
            ("quantised", "_rebuild_qtensor"),
            ("complex", "a tensor of complex numbers"),
        ] {
            let mut found = file.ignored.iter().filter(|(ignored, _)| ignored == name);
            assert!(
                found.any(|(_, why)| why.contains(words)),
                "{name}: {words}: {:?}",
                file.ignored
            );
        }
    }
}

/// A file of the old form with one storage, `FloatStorage` of four elements.
fn legacy(pickle: &[u8], elements: u64) -> Vec<u8> {
    let numbers: Vec<u8> = (0..4).flat_map(|i| number(i).to_le_bytes()).collect();
    [
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}."
            .as_slice(),
        b"\x80\x02",
        pickle,
        b".\x80\x02](X\x01\0\0\0ke.",
        &elements.to_le_bytes(),
        &numbers,
    ]
    .concat()
}

/// The pickle of `{"w": tensor}`, whose offset, sizes and strides are these opcodes.
fn tensor(layout: &[u8]) -> Vec<u8> {
    [
        b"}X\x01\0\0\0wctorch._utils\n_rebuild_tensor_v2\n((X\x07\0\0\0storagectorch\nFloatStorage\n".as_slice(),
        b"X\x01\0\0\0kX\x03\0\0\0cpuK\x04tQ",
        layout,
        b"NNtRs",
    ]
    .concat()
}

#[test]
fn files_say_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pth");
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        small(|| torch::open(&path))
    };
    let says = |bytes: &[u8], words: &[&str]| {
        let found = read(bytes).unwrap_err().to_string();
        for word in words {
            assert!(found.contains(word), "{word:?} is not in {found:?}");
        }
    };
    let of = |pickle: &[u8]| legacy(pickle, 4);

    is(
        &read(&of(&tensor(b"K\x01K\x03\x85K\x01\x85"))).unwrap(),
        "w",
        &[3],
        1..4,
    );
    // Elements that are repeated, by a stride of 0.
    is(
        &read(&of(&tensor(b"K\x02K\x05\x85K\x00\x85"))).unwrap(),
        "w",
        &[5],
        [2; 5],
    );

    says(b"", &["a.pth, byte 0", "a file of torch.save"]);
    says(b"PK\x05\x06", &["a file of torch.save"]);
    says(b"PK\x03\x04", &["end record", "truncated or damaged"]);
    says(
        &of_without_storage(b"cos\nsystem\nX\x02\0\0\0ls\x85R"),
        &["holds an object of os.system", "state dict is expected"],
    );
    says(&of_without_storage(b"cposix\nsystem\n"), &["posix.system"]);
    says(
        &of_without_storage(b"c__builtin__\neval\n"),
        &["__builtin__.eval"],
    );
    says(&of_without_storage(b"ctorch\nload\n"), &["torch.load"]);
    says(
        &of_without_storage(b"]"),
        &["holds a list", "a state dict is expected"],
    );
    says(&of_without_storage(b"K\x01"), &["holds a number"]);
    let layouts = [
        (
            b"K\x01K\x04\x85K\x01\x85".as_slice(),
            "needs 5 of 4 elements",
        ),
        (b"K\x00K\x02K\x02\x86K\x01\x85", "do not fit together"),
        (
            b"J\x01\x01\x01\x01K\x02\x85K\x01\x85",
            "needs 16843011 of 4",
        ),
        (b"K\x00K\x02\x85NN", "no tuples"),
        (b"K\x00]K\x01\x85", "no tuples"),
        (b"K\x00\x01", "is not supported"),
    ];
    for (layout, words) in layouts {
        says(&of(&tensor(layout)), &[words]);
    }
    let huge = tensor(b"K\x00K\x02\x85K\x01\x85");
    let at = huge.windows(2).position(|two| two == b"K\x02").unwrap();
    // Sizes of 2^62, -1 and 2^24, the last with a stride of 0.
    for (size, stride, words) in [
        (
            b"\x8a\x08\0\0\0\0\0\0\0\x40".as_slice(),
            1,
            "do not fit together",
        ),
        (b"J\xff\xff\xff\xff", 1, "numbers from 0"),
        (b"J\0\0\0\x01", 0, "repeats elements so often"),
    ] {
        let mut bytes = huge.clone();
        bytes[at + 4] = stride;
        bytes.splice(at..at + 2, size.iter().copied());
        says(&of(&bytes), &["tensor w", words]);
    }
    // The same with 2^62 - 1 elements behind a tensor of one: their bytes together are 2^64.
    let second = tensor(b"K\x00\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x3f\x85K\x00\x85");
    let mut two = tensor(b"K\x00K\x01\x85K\x01\x85");
    two.extend(b"X\x01\0\0\0v");
    two.extend(&second[b"}X\x01\0\0\0w".len()..]);
    says(&of(&two), &["tensor v", "repeats elements so often"]);
    // No element, whose strides would be 2^80.
    let empty = b"K\x00K\x00\x8a\x06\0\0\0\0\0\x01\x8a\x06\0\0\0\0\0\x01\x87K\x01K\x01K\x01\x87";
    is(
        &read(&of(&tensor(empty))).unwrap(),
        "w",
        &[0, 1 << 40, 1 << 40],
        [],
    );
    let fine = tensor(b"K\x00K\x02\x85K\x01\x85");
    says(
        &legacy(&fine, 3),
        &["expected 4, the number of elements of storage k", "found 3"],
    );
    says(
        &legacy(&fine, u64::MAX),
        &["expected 4", "found 18446744073709551615"],
    );
    let with = |from: &str, to: &str| {
        let found = fine.windows(from.len()).position(|w| w == from.as_bytes());
        let at = found.unwrap();
        let mut changed = fine.clone();
        changed.splice(at..at + from.len(), to.bytes());
        of(&changed)
    };
    says(
        &with("FloatStorage", "DoubleStorage"),
        &["the 4 elements of storage k", "24 bytes"],
    );
    says(
        &with("X\x01\0\0\0k", "X\x01\0\0\0l"),
        &["keys of the tensors' storages", "found k"],
    );
    says(
        &with("ctorch\nFloatStorage\n", "N"),
        &["no tuple (\"storage\", type"],
    );
    says(&with("K\x04tQ", "K\x04tQ0N"), &["tensor w: has no storage"]);
    says(
        &with("FloatStorage", "device"),
        &["no tuple (\"storage\", type"],
    );
    // A tensor of a tensor, and a dict in itself.
    let call = b"}X\x01\0\0\0wctorch._utils\n_rebuild_parameter\nK\x01\x85Rs";
    is_ignored(&read(&of_without_storage(call)).unwrap(), "w", "a number");
    let knot = b"}q\0X\x01\0\0\0dh\0s";
    is_ignored(
        &read(&of_without_storage(knot)).unwrap(),
        "d.",
        "met before",
    );
    let mut deep = b"}".to_vec();
    (0..40).for_each(|_| deep.extend(b"X\x01\0\0\0d}"));
    deep.extend([b's'; 40]);
    says(&of_without_storage(&deep), &["dicts in dicts"]);
}

fn of_without_storage(pickle: &[u8]) -> Vec<u8> {
    [
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.\x80\x02M\xe9\x03.\x80\x02}.\x80\x02".as_slice(),
        pickle,
        b".\x80\x02].",
    ]
    .concat()
}

/// Names repeat texts of the file: a kilobyte must not become a gigabyte of names.
#[test]
fn names_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pth");
    let mut pickle = b"}X\xff\x01\0\0".to_vec();
    pickle.extend([b'x'; 511]);
    pickle.extend(b"q\0Ns(");
    (0..5000).for_each(|_| pickle.extend(b"h\0N"));
    pickle.extend(b"u");
    fs::write(&path, of_without_storage(&pickle)).unwrap();
    let error = small(|| torch::open(&path)).unwrap_err().to_string();
    assert!(error.contains("twice as long as the file"), "{error}");
}

#[test]
fn truncated_and_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pth");
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        small(|| torch::open(&path)).ok()
    };
    let names = [
        "state_dict_zip.pth",
        "state_dict_legacy.pth",
        "checkpoint_zip.pth",
        "checkpoint_legacy.pth",
        "objects_zip.pth",
        "objects_legacy.pth",
    ];
    let whole = names.map(|name| fs::read(golden(name)).unwrap());
    for whole in &whole {
        for length in 0..whole.len() {
            assert!(read(&whole[..length]).is_none(), "{length}");
        }
        assert!(read(whole).is_some());
    }
    proptest!(config(4000), |(flips in flips(), within in within(), file in 0..6_usize)| {
        let bytes = damage(&whole[file], &flips, within);
        if let Some(read) = read(&bytes) {
            let elements: usize = read.tensors.iter().map(|t| t.values.len()).sum();
            prop_assert!(elements <= bytes.len());
            for tensor in &read.tensors {
                prop_assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>());
            }
        }
    });
    // Damage in the directory of an archive, which is at its end.
    proptest!(config(2000), |(flips in flips())| {
        let mut bytes = whole[0].clone();
        let directory = bytes.len() - 1000;
        for (at, mask) in flips {
            bytes[directory + at % 1000] ^= mask;
        }
        read(&bytes);
    });
}

#[test]
fn safetensors_of_any_program() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    let [half, brain, single, double, whole] = [
        (Dtype::F16, vec![0x00, 0x3c, 0x00, 0xc0]),
        (Dtype::BF16, vec![0x80, 0x3f, 0x00, 0xc0]),
        (Dtype::F32, [1.0_f32, -2.0].map(f32::to_le_bytes).concat()),
        (Dtype::F64, [1.0_f64, -2.0].map(f64::to_le_bytes).concat()),
        (Dtype::I64, [1_i64, -2].map(i64::to_le_bytes).concat()),
    ];
    let all = [
        ("h", half),
        ("b", brain),
        ("s", single),
        ("d", double),
        ("i", whole),
    ];
    let views = all.iter().map(|(name, (dtype, bytes))| {
        let view = TensorView::new(*dtype, vec![2, 1], bytes).unwrap();
        (*name, view)
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(&path, &bytes).unwrap();
    let file = formats::safetensors::open(&path).unwrap();
    for name in ["h", "b", "s", "d"] {
        let tensor = file.get(name).unwrap();
        assert_eq!(
            (&tensor.shape[..], &tensor.values[..]),
            (&[2, 1][..], &[1.0, -2.0][..])
        );
    }
    assert_eq!(file.tensors.len(), 4);
    is_ignored(&file, "i", "I64");
    for length in 0..bytes.len() {
        fs::write(&path, &bytes[..length]).unwrap();
        let error = small(|| formats::safetensors::open(&path))
            .unwrap_err()
            .to_string();
        assert!(error.contains("a.safetensors"), "{error}");
    }
    proptest!(config(2000), |(flips in flips(), within in within())| {
        fs::write(&path, damage(&bytes, &flips, within)).unwrap();
        if let Ok(file) = small(|| formats::safetensors::open(&path)) {
            for tensor in &file.tensors {
                prop_assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>());
            }
        }
    });
}
