//! `train --tensorboard`: the event files of a run, read back by framing and a decoder of this test's own, which shares
//! nothing with the writer.

mod support;

use arcface_cu::backend::cpu::Cpu;
use arcface_cu::data::Image;
use arcface_cu::data::loader::{Loader, LoaderOptions};
use arcface_cu::data::picture::augment::Augment;
use arcface_cu::recipe::config::Config;
use arcface_cu::report::tensorboard::EventFile;
use arcface_cu::train::{DataOptions, Trainer};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{Pictures, arcface_cu, stderr_of_failure, stdout_of_success};

/// CRC-32C bit by bit, masked as TensorFlow does.
fn masked_crc(bytes: &[u8]) -> u32 {
    let mut crc = !0_u32;
    for byte in bytes {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
}

fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    let mut rest = bytes;
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(number(&rest[8..12]), masked_crc(&rest[..8]));
        let data = &rest[12..12 + length];
        assert_eq!(number(&rest[12 + length..16 + length]), masked_crc(data));
        records.push(data);
        rest = &rest[16 + length..];
    }
    records
}

/// A field of a message: its number, and its bytes (of a number, little-endian).
fn fields(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let (byte, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte & 0x80 == 0 {
                return value;
            }
        }
    }
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let length = match key & 7 {
            0 => {
                let value = varint(&mut bytes).to_le_bytes().to_vec();
                fields.push((key >> 3, value));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            kind => panic!("wire type {kind}"),
        };
        let (content, rest) = bytes.split_at(length);
        fields.push((key >> 3, content.to_vec()));
        bytes = rest;
    }
    fields
}

#[derive(Debug, PartialEq)]
enum Event {
    Version(String),
    SessionStart,
    Scalar(String, f32),
    Picture(String, [u64; 3], Vec<u8>),
}

/// The events of a file with their steps.
fn events(path: &Path) -> Vec<(u64, Event)> {
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap());
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let mut events = Vec::new();
    for record in records(&fs::read(path).unwrap()) {
        let fields_of: BTreeMap<u64, Vec<u8>> = fields(record).into_iter().collect();
        let time = f64::from_le_bytes(fields_of[&1][..].try_into().unwrap());
        assert!(time > 1.7e9, "{time} seconds since 1970");
        // A number that is 0 is left out.
        let step = fields_of.get(&2).map_or(0, |bytes| number(bytes));
        if let Some(version) = fields_of.get(&3) {
            events.push((step, Event::Version(text(version))));
        }
        if let Some(session) = fields_of.get(&7) {
            assert_eq!(fields(session), [(1, 1_u64.to_le_bytes().to_vec())]);
            events.push((step, Event::SessionStart));
        }
        for (_, value) in fields_of.get(&5).map_or(vec![], |summary| fields(summary)) {
            let value: BTreeMap<u64, Vec<u8>> = fields(&value).into_iter().collect();
            let tag = text(&value[&1]);
            if let Some(scalar) = value.get(&2) {
                let scalar = f32::from_le_bytes(scalar[..].try_into().unwrap());
                events.push((step, Event::Scalar(tag, scalar)));
            } else {
                let image: BTreeMap<u64, Vec<u8>> = fields(&value[&4]).into_iter().collect();
                let shape = [1, 2, 3].map(|i| number(&image[&i]));
                events.push((step, Event::Picture(tag, shape, image[&4].clone())));
            }
        }
    }
    events
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// Value of a scalar by step.
fn scalars(events: &[(u64, Event)], tag: &str) -> Vec<(u64, f32)> {
    let scalar = |(step, event): &(u64, Event)| match event {
        Event::Scalar(name, x) if name == tag => Some((*step, *x)),
        _ => None,
    };
    events.iter().filter_map(scalar).collect()
}

#[test]
fn a_run_and_its_resumption_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (out, board) = (at("run"), at("board"));
    let train = |more: &[&str]| {
        let words = "train --data generated:4x6 --preset demo --batch-size 8 --epochs 2 --set optimizer.lr=0.01";
        let words = words
            .split(' ')
            .chain(["--out", &out, "--tensorboard", &board]);
        arcface_cu(words.chain(more.iter().copied()))
    };
    stdout_of_success(&train(&["--steps", "4"]));
    let first = files(Path::new(&board));
    assert_eq!(first.len(), 1);
    let name = first[0].file_name().unwrap().to_string_lossy().into_owned();
    assert!(
        name.starts_with("events.out.tfevents.") && name.ends_with(".0.v2"),
        "{name}"
    );
    let begun = events(&first[0]);
    assert_eq!(begun[0], (0, Event::Version("brain.Event:2".into())));

    // Every step's numbers are those of metrics.csv.
    let metrics = fs::read_to_string(Path::new(&out).join("metrics.csv")).unwrap();
    for (column, tag) in [
        (2, "train/loss"),
        (3, "train/l2"),
        (4, "train/accuracy"),
        (5, "train/learning_rate"),
    ] {
        let expected: Vec<(u64, f32)> = (metrics.lines().skip(1))
            .map(|line| line.split(',').collect::<Vec<_>>())
            .map(|line| (line[1].parse().unwrap(), line[column].parse().unwrap()))
            .collect();
        assert_eq!(scalars(&begun, tag), expected, "{tag}");
    }
    assert_eq!(scalars(&begun, "train/images_per_s").len(), 4);
    assert_eq!(scalars(&begun, "train/data_wait").len(), 4);
    // Eight pictures of the first step of each epoch.
    let pictures = |events: &[(u64, Event)]| {
        let picture = |(step, event): &(u64, Event)| match event {
            Event::Picture(tag, shape, png) => {
                assert_eq!(*shape, [112, 112, 3]);
                let decoded = image::load_from_memory(png).unwrap();
                assert_eq!((decoded.width(), decoded.height()), (112, 112));
                Some((*step, tag.clone()))
            }
            _ => None,
        };
        events.iter().filter_map(picture).collect::<Vec<_>>()
    };
    let tags = |step| (0..8).map(move |i| (step, format!("input/{i}")));
    assert_eq!(pictures(&begun), tags(1).chain(tags(4)).collect::<Vec<_>>());

    // Going on: a later file, which says where it begins.
    stdout_of_success(&train(&["--resume"]));
    let all = files(Path::new(&board));
    assert_eq!((all.len(), &all[0]), (2, &first[0]));
    let resumed = events(&all[1]);
    assert_eq!(resumed[0], begun[0]);
    assert_eq!(resumed[1], (5, Event::SessionStart));
    let steps: Vec<u64> = scalars(&resumed, "train/loss")
        .iter()
        .map(|(step, _)| *step)
        .collect();
    assert_eq!(steps, [5, 6]);
    assert_eq!(pictures(&resumed), []);

    // Another run does not mix with it, and leaves nothing behind.
    let other = at("other");
    let text = stderr_of_failure(
        &arcface_cu([
            "train",
            "--data",
            "generated:4x6",
            "--preset",
            "demo",
            "--batch-size",
            "8",
            "--out",
            &other,
            "--tensorboard",
            &board,
        ]),
        2,
    );
    assert!(text.contains("already holds a run's event files"), "{text}");
    assert!(!Path::new(&other).join("config.toml").exists());
}

/// What is shown is what is trained on: the loader's pictures, or what the device makes of them.
#[test]
fn pictures_are_those_after_augmentation() {
    let augment = Augment {
        resize: Some(128),
        ..Augment::seed()
    };
    let options = |changes_on_device| LoaderOptions {
        batch: 6,
        seed: 5,
        augment: augment.clone(),
        changes_on_device,
        threads: 1,
        ..LoaderOptions::default()
    };
    let batch = |changes_on_device| {
        let mut loader = Loader::new(Arc::new(Pictures(12)), options(changes_on_device), 0, 0);
        loader.as_mut().unwrap().next().unwrap().unwrap()
    };
    let (host, device) = (batch(false), batch(true));
    assert_ne!(host.pixels, device.pixels);
    let pictures = |batch: &arcface_cu::data::loader::Batch| -> Vec<Image> {
        (0..6).map(|i| batch.picture(i, 112)).collect()
    };
    assert_eq!(pictures(&host), pictures(&device));
    let pixels: Vec<u8> = pictures(&host).into_iter().flat_map(|p| p.pixels).collect();
    assert_eq!(pixels, host.pixels);

    let settings = ["train.batch_size=6", "train.epochs=1"].map(String::from);
    let config = Config::load("demo", None, &settings).unwrap();
    let data = DataOptions::default();
    let mut trainer = Trainer::new(Cpu::new(), config, Arc::new(Pictures(12)), data).unwrap();
    trainer.keep_pictures(4);
    trainer.step().unwrap();
    trainer.step().unwrap();
    assert_eq!(trainer.take_pictures().len(), 4);
    assert!(trainer.take_pictures().is_empty());
}

#[test]
fn files_of_one_second_are_in_order() {
    let dir = tempfile::tempdir().unwrap();
    for steps in 0..4 {
        EventFile::resume(dir.path(), steps).unwrap();
    }
    let starts: Vec<u64> = files(dir.path())
        .iter()
        .map(|path| events(path)[1].0)
        .collect();
    assert_eq!(starts, [1, 2, 3, 4]);
    let error = EventFile::create(dir.path()).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = EventFile::create(Path::new("/proc/absent"))
        .unwrap_err()
        .to_string();
    assert!(text.contains("/proc/absent"), "{text}");
}
