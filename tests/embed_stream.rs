//! Whole data sets as a stream: bounded, resumable to the same bytes, without what cannot be read.

mod support;

use arcface_cu::backend::Element;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::data::picture::encode_jpeg;
use arcface_cu::data::{Dataset, Image};
use arcface_cu::embed::{self, Begun, Format, Step, Stored, StreamOptions};
use arcface_cu::embedder::Embedder;
use arcface_cu::encoding::npy::{self, Elements};
use arcface_cu::verification::Tta;
use arcface_cu::{Error, Result};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use support::*;

/// Small pictures that count how often one is read; some cannot be.
struct Counting {
    images: usize,
    bad: fn(usize) -> bool,
    reads: AtomicUsize,
}

impl Counting {
    fn new(images: usize, bad: fn(usize) -> bool) -> Arc<Self> {
        let reads = AtomicUsize::new(0);
        Arc::new(Counting { images, bad, reads })
    }
}

impl Dataset for Counting {
    fn len(&self) -> usize {
        self.images
    }

    fn classes(&self) -> usize {
        5
    }

    fn label(&self, index: usize) -> u32 {
        (index % 5) as u32
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        if (self.bad)(index) {
            return Err(Error::Invalid(format!("{}: broken", self.describe(index))));
        }
        *image = picture(index, 20, 24);
        Ok(())
    }

    fn describe(&self, index: usize) -> String {
        format!("picture {index}")
    }

    fn class_name(&self, label: u32) -> String {
        ["ann", "bob", "cid", "dot", "eve"][label as usize].to_owned()
    }
}

fn options() -> StreamOptions {
    StreamOptions {
        weights: "0123".to_owned(),
        tta: Tta::FlipSum,
        format: Format::Npy,
        skip_bad: false,
        resume: false,
        append: false,
        overwrite: false,
        sync_every: Duration::ZERO,
    }
}

fn run(
    data: &Arc<Counting>,
    out: &Path,
    options: &StreamOptions,
    observe: &mut dyn FnMut(Step<'_>) -> bool,
) -> Result<embed::Summary> {
    embed_to(data.clone(), out, options, observe)
}

fn embed_to(
    data: Arc<dyn Dataset>,
    out: &Path,
    options: &StreamOptions,
    observe: &mut dyn FnMut(Step<'_>) -> bool,
) -> Result<embed::Summary> {
    let (weights, mut cpu) = (random_weights(), Cpu::new());
    let mut embedder = Embedder::new(&mut cpu, &weights, 4, Element::F32).unwrap();
    let dim = options.tta.row_length(embedder.size());
    match embed::begin(data, out, options, 4, dim)? {
        Begun::Finished(summary) => Ok(summary),
        Begun::Run(run) => embed::embed_all(&mut embedder, *run, observe),
    }
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries
        .map(|e| {
            let name = e.file_name().to_string_lossy().into_owned();
            (name, fs::read(e.path()).unwrap())
        })
        .collect()
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in files(from) {
        fs::write(to.join(name), bytes).unwrap();
    }
}

#[test]
fn a_run_killed_anywhere_and_resumed_ends_with_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let data = Counting::new(31, |i| [0, 5, 12, 13, 14, 15, 30].contains(&i));
    for format in [Format::Npy, Format::Safetensors] {
        let whole = dir.path().join(format!("{format:?}"));
        let options = StreamOptions {
            format,
            skip_bad: true,
            ..options()
        };
        // The folder as a kill would leave it, after each batch: what was synced, and what was written since.
        let mut snapshots = Vec::new();
        let late = StreamOptions {
            sync_every: Duration::from_millis(1),
            ..options.clone()
        };
        let summary = run(&data, &whole, &late, &mut |step| {
            if let Step::Done(_) = step {
                let to = dir.path().join(format!("{format:?}-{}", snapshots.len()));
                copy(&whole, &to);
                snapshots.push(to);
            }
            true
        })
        .unwrap();
        assert_eq!((summary.rows, summary.skipped), (24, 7));
        let expected = files(&whole);
        assert_eq!(snapshots.len(), 8);
        for folder in snapshots {
            // A half-written row besides.
            for (name, mut bytes) in files(&folder) {
                if name.ends_with(".partial") {
                    bytes.extend([7; 5]);
                    fs::write(folder.join(name), bytes).unwrap();
                }
            }
            let resume = StreamOptions {
                resume: true,
                ..options.clone()
            };
            run(&data, &folder, &resume, &mut |_| true).unwrap();
            assert!(files(&folder) == expected, "{}", folder.display());
        }
        let skipped = String::from_utf8(expected["skipped.txt"].clone()).unwrap();
        assert_eq!(skipped.lines().count(), 7);
        assert!(skipped.starts_with("picture 0: broken\npicture 5: broken\n"));
        let stored = Stored::open(&whole).unwrap();
        assert_eq!((stored.rows(), stored.dim), (24, 16));
        assert_eq!(stored.files[4], "picture 6");
        assert_eq!(stored.identity(4).as_deref(), Some("bob"));
        assert_eq!(stored.labels.as_ref().unwrap()[..3], [1, 2, 3]);
    }
    // Both formats hold the same numbers, and those of `embed_images`.
    let [npy, safetensors] =
        ["Npy", "Safetensors"].map(|name| Stored::open(&dir.path().join(name)).unwrap());
    assert_eq!(npy, safetensors);
    let (weights, mut cpu) = (random_weights(), Cpu::new());
    let mut embedder = Embedder::new(&mut cpu, &weights, 4, Element::F32).unwrap();
    let pictures = [picture(6, 20, 24), picture(7, 20, 24)];
    let rows = embed::embed_images(&mut embedder, &pictures, Tta::FlipSum).unwrap();
    for (a, b) in npy.embeddings[4 * 16..6 * 16].iter().zip(&rows) {
        assert!((a - b).abs() <= 1e-5, "{a} instead of {b}");
    }
}

#[test]
fn a_run_that_is_stopped_says_so_and_another_job_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let data = Counting::new(20, |_| false);
    let mut batches = 0;
    let error = run(&data, dir.path(), &options(), &mut |step| {
        batches += usize::from(matches!(step, Step::Done(_)));
        batches < 2
    })
    .unwrap_err();
    assert!(matches!(error, Error::Interrupted), "{error}");
    assert!(!dir.path().join("embeddings.npy").exists());
    let says = |options: StreamOptions, data: &Arc<Counting>, words: &str| {
        let error = run(data, dir.path(), &options, &mut |_| true).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
    };
    says(
        options(),
        &data,
        "an unfinished run, 8 of 20 pictures; --resume",
    );
    let resume = || StreamOptions {
        resume: true,
        ..options()
    };
    let other = StreamOptions {
        weights: "4567".to_owned(),
        ..resume()
    };
    says(other, &data, "the weights: 0123 before, 4567 now");
    let other = StreamOptions {
        tta: Tta::None,
        ..resume()
    };
    says(other, &data, "--tta: flip-sum before, none now");
    says(
        resume(),
        &Counting::new(21, |_| false),
        "the pictures are others",
    );
    // A file that is shorter than it was.
    let labels = dir.path().join("labels.npy.partial");
    let bytes = fs::read(&labels).unwrap();
    fs::write(&labels, &bytes[..bytes.len() - 1]).unwrap();
    says(
        resume(),
        &data,
        "labels.npy.partial, byte 191: expected 192 bytes",
    );
    fs::write(&labels, bytes).unwrap();
    let mut begun = None;
    let summary = run(&data, dir.path(), &resume(), &mut |step| {
        if let Step::Begun { done, total, .. } = step {
            begun = Some((done, total));
        }
        true
    })
    .unwrap();
    assert_eq!(begun, Some((8, 20)));
    // Of the whole run: none of these pictures is a square.
    assert_eq!((summary.rows, summary.unaligned), (20, 20));
    let left: Vec<String> = files(dir.path()).into_keys().collect();
    let expected = [
        ".lock",
        "embeddings.json",
        "embeddings.npy",
        "files.txt",
        "labels.npy",
        "labels.tsv",
    ];
    assert_eq!(left, expected);
}

#[test]
fn one_process_writes_to_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let data = Counting::new(8, |_| false);
    let mut refused = 0;
    run(&data, dir.path(), &options(), &mut |step| {
        if let Step::Done(_) = step {
            for resume in [false, true] {
                let options = StreamOptions {
                    resume,
                    ..options()
                };
                let error = run(&data, dir.path(), &options, &mut |_| true).unwrap_err();
                let error = error.to_string();
                assert!(error.contains("another process is embedding"), "{error}");
                refused += 1;
            }
        }
        true
    })
    .unwrap();
    assert_eq!(refused, 4);
    assert_eq!(Stored::open(dir.path()).unwrap().rows(), 8);
}

#[test]
fn a_finished_gallery_is_replaced_only_if_that_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("gallery");
    let data = Counting::new(10, |_| false);
    run(&data, &out, &options(), &mut |_| true).unwrap();
    let before = files(&out);
    let says = |options: &StreamOptions, data: &Arc<Counting>, words: &str| {
        let error = run(data, &out, options, &mut |_| true).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(files(&out) == before, "{words}");
    };
    let refused = "holds a finished gallery; --append adds to it, --overwrite replaces it";
    says(&options(), &data, refused);
    // To resume it finds nothing to do, if it is the same.
    let resume = StreamOptions {
        resume: true,
        ..options()
    };
    let reads = data.reads.load(Ordering::Relaxed);
    let summary = run(&data, &out, &resume, &mut |_| true).unwrap();
    assert_eq!((summary.rows, summary.was_finished), (10, true));
    // The sample of 64 pictures that tells sets apart.
    assert_eq!(data.reads.load(Ordering::Relaxed) - reads, 10);
    assert!(files(&out) == before);
    let other = StreamOptions {
        weights: "4567".to_owned(),
        ..resume.clone()
    };
    says(
        &other,
        &data,
        "of another kind; the weights: 0123 there, 4567 now",
    );
    let more = Counting::new(11, |_| false);
    says(
        &resume,
        &more,
        "a finished gallery of other pictures; --append",
    );
    // Stopped in the middle, the old one stands.
    let overwrite = StreamOptions {
        overwrite: true,
        ..options()
    };
    let mut batches = 0;
    run(&more, &out, &overwrite, &mut |step| {
        batches += usize::from(matches!(step, Step::Done(_)));
        batches < 2
    })
    .unwrap_err();
    assert_eq!(Stored::open(&out).unwrap().rows(), 10);
    let error = run(&more, &out, &options(), &mut |_| true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("8 of 11 pictures; --resume"), "{error}");
    let summary = run(&more, &out, &resume, &mut |_| true).unwrap();
    assert_eq!((summary.rows, summary.was_finished), (11, false));
    run(&data, &out, &overwrite, &mut |_| true).unwrap();
    assert!(files(&out) == before);
    // An unfinished run may be begun again, too.
    let fresh = dir.path().join("fresh");
    run(&more, &fresh, &options(), &mut |step| {
        !matches!(step, Step::Done(_))
    })
    .unwrap_err();
    run(&data, &fresh, &overwrite, &mut |_| true).unwrap();
    assert!(files(&fresh) == before);
}

/// Of `0..images`, and of people 5 to 9, the same in other numbers.
struct Others(Arc<Counting>);

impl Dataset for Others {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn classes(&self) -> usize {
        6
    }

    fn label(&self, index: usize) -> u32 {
        (index % 6) as u32
    }

    fn read(&self, index: usize, image: &mut Image) -> Result<()> {
        self.0.read(index, image)
    }

    fn describe(&self, index: usize) -> String {
        // The first three are those of the other set.
        match index {
            0..3 => self.0.describe(index),
            _ => format!("other {index}"),
        }
    }

    fn class_name(&self, label: u32) -> String {
        ["bob", "fay", "", "gus", "ann", "7"][label as usize].to_owned()
    }
}

#[test]
fn what_is_added_to_a_gallery_is_added_whole_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let first = Counting::new(10, |i| i == 4);
    let others: Arc<dyn Dataset> = Arc::new(Others(Counting::new(21, |i| i == 20)));
    let add = |out: &Path, options: &StreamOptions, observe: &mut dyn FnMut(Step<'_>) -> bool| {
        embed_to(others.clone(), out, options, observe)
    };
    for format in [Format::Npy, Format::Safetensors] {
        let whole = dir.path().join(format!("{format:?}"));
        let options = StreamOptions {
            format,
            skip_bad: true,
            ..options()
        };
        run(&first, &whole, &options, &mut |_| true).unwrap();
        let old = Stored::open(&whole).unwrap();
        let append = StreamOptions {
            append: true,
            // The gallery keeps its own.
            format: Format::Npy,
            ..options.clone()
        };
        let mut snapshots = Vec::new();
        let mut begun = None;
        let summary = add(&whole, &append, &mut |step| {
            match step {
                Step::Begun {
                    total,
                    done,
                    present,
                } => begun = Some((total, done, present)),
                Step::Done(_) => {
                    // Readers find the old gallery.
                    assert!(Stored::open(&whole).unwrap() == old);
                    let to = dir.path().join(format!("{format:?}-{}", snapshots.len()));
                    copy(&whole, &to);
                    snapshots.push(to);
                }
                Step::Skipped(_) => {}
            }
            true
        })
        .unwrap();
        // Three are there already, one cannot be read, as one of the old ones could not.
        assert_eq!(begun, Some((18, 0, 3)));
        assert_eq!((summary.rows, summary.skipped), (9 + 17, 2));
        let stored = Stored::open(&whole).unwrap();
        assert_eq!(stored.embeddings[..9 * 16], old.embeddings);
        assert_eq!(stored.files[..9], old.files);
        assert_eq!(stored.files[9], "other 3");
        let who = |row: usize| stored.identity(row);
        // Of other 3 and so on: gus, ann, 7, bob, fay, nobody.
        let expected = ["gus", "ann", "7", "bob", "fay"].map(|name| Some(name.to_owned()));
        assert_eq!([9, 10, 11, 12, 13].map(who), expected);
        assert_eq!(who(14), None);
        let labels = stored.labels.as_ref().unwrap();
        assert_eq!(labels[9..15], [9, 0, 7, 1, 8, -1]);
        let expected = files(&whole);
        for folder in snapshots {
            let error = add(&folder, &append, &mut |_| true)
                .unwrap_err()
                .to_string();
            assert!(error.contains("unfinished run"), "{error}");
            let resume = StreamOptions {
                resume: true,
                ..append.clone()
            };
            let summary = add(&folder, &resume, &mut |_| true).unwrap();
            assert_eq!((summary.rows, summary.skipped), (26, 2));
            assert!(files(&folder) == expected, "{}", folder.display());
        }
        // Everything is in it now, except what cannot be read, which is not listed twice.
        let summary = add(&whole, &append, &mut |_| true).unwrap();
        assert_eq!((summary.rows, summary.skipped), (26, 2));
        let again = Stored::open(&whole).unwrap();
        assert_eq!(
            (&again.files, &again.labels),
            (&stored.files, &stored.labels)
        );
        assert!(again.embeddings == stored.embeddings && again.names == stored.names);
        let other = StreamOptions {
            weights: "4567".to_owned(),
            ..append.clone()
        };
        let error = add(&whole, &other, &mut |_| true).unwrap_err().to_string();
        assert!(
            error.contains("the weights: 0123 there, 4567 now"),
            "{error}"
        );
    }
    // Without a gallery there is a new one.
    let append = StreamOptions {
        append: true,
        ..options()
    };
    let new = dir.path().join("new");
    let data = Counting::new(5, |_| false);
    run(&data, &new, &append, &mut |_| true).unwrap();
    let summary = run(&data, &new, &append, &mut |_| true).unwrap();
    assert_eq!((summary.rows, summary.was_finished), (5, true));
    fs::remove_file(new.join("embeddings.json")).unwrap();
    let error = run(&data, &new, &append, &mut |_| true)
        .unwrap_err()
        .to_string();
    assert!(error.contains("cannot be added to"), "{error}");
}

/// What is decoded and not yet embedded is bounded by a few batches, whatever the number of pictures.
#[test]
fn pictures_wait_in_a_bounded_queue() {
    let dir = tempfile::tempdir().unwrap();
    let data = Counting::new(600, |_| false);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let reads = || data.reads.load(Ordering::Relaxed);
    // A few pictures are looked at before, to know the set again.
    let (mut before, mut done, mut most) = (0, 0, 0);
    run(&data, dir.path(), &options(), &mut |step| {
        match step {
            Step::Begun { .. } => before = reads(),
            Step::Done(images) => {
                done += images;
                most = most.max(reads() - before - done);
            }
            Step::Skipped(_) => {}
        }
        true
    })
    .unwrap();
    assert_eq!((done, reads() - before), (600, 600));
    // Batches made ahead, and those being made.
    assert!(most <= 4 * (2 * threads + 2), "{most} pictures ahead");
}

#[test]
fn pictures_that_cannot_be_read_stop_the_run_where_it_can_be_resumed() {
    let dir = tempfile::tempdir().unwrap();
    let data = Counting::new(20, |i| i == 9);
    let error = run(&data, dir.path(), &options(), &mut |_| true).unwrap_err();
    assert!(error.to_string().contains("picture 9: broken"), "{error}");
    let skip = StreamOptions {
        skip_bad: true,
        resume: true,
        ..options()
    };
    let summary = run(&data, dir.path(), &skip, &mut |_| true).unwrap();
    assert_eq!((summary.rows, summary.skipped), (19, 1));
    let none = tempfile::tempdir().unwrap();
    let error = run(&Counting::new(7, |_| true), none.path(), &skip, &mut |_| {
        true
    })
    .unwrap_err();
    assert!(
        error.to_string().contains("no picture could be read"),
        "{error}"
    );
}

/// Through the program, ended by the system at any moment.
#[test]
fn the_program_killed_and_resumed_writes_the_same_files() {
    let dir = tempfile::tempdir().unwrap();
    let weights = random_weights_file(dir.path());
    let data = dir.path().join("people");
    for k in 0..90 {
        let folder = data.join(format!("{}", k / 30));
        fs::create_dir_all(&folder).unwrap();
        let jpeg = encode_jpeg(&picture(k, 40, 30), 90);
        fs::write(folder.join(format!("{k:03}.jpg")), jpeg).unwrap();
    }
    fs::write(data.join("1/zzz.jpg"), b"not a JPEG").unwrap();
    let words = |out: &Path, extra: &[&str]| -> Vec<String> {
        let path = |p: &Path| p.display().to_string();
        let mut words = vec!["embed".to_owned(), "--weights".to_owned(), path(&weights)];
        words.extend(["--data".to_owned(), path(&data), "--all".to_owned()]);
        words.extend([
            "--out".to_owned(),
            path(out),
            "--device".to_owned(),
            "cpu".to_owned(),
        ]);
        words.extend(["--batch-size".to_owned(), "4".to_owned()]);
        words.extend(extra.iter().map(|&word| word.to_owned()));
        words
    };
    let (whole, killed) = (dir.path().join("whole"), dir.path().join("killed"));
    let error = stderr_of_failure(&arcface_cu(words(&whole, &[])), 1);
    assert!(error.contains("zzz.jpg: cannot be decoded"), "{error}");
    let text = stdout_of_success(&arcface_cu(words(&whole, &["--skip-bad", "--resume"])));
    for words in [
        "going on after",
        "left out: ",
        "90 embeddings",
        "see skipped.txt",
    ] {
        assert!(text.contains(words), "{words}: {text}");
    }

    let mut child = Command::new(env!("CARGO_BIN_EXE_arcface-cu"))
        .args(words(&killed, &["--skip-bad"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (state, began) = (killed.join("embeddings.state.json"), Instant::now());
    while !state.exists() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    stdout_of_success(&arcface_cu(words(&killed, &["--skip-bad", "--resume"])));
    let (whole, killed) = (files(&whole), files(&killed));
    assert!(whole.keys().eq(killed.keys()), "{:?}", killed.keys());
    assert!(whole == killed);
    assert!(whole.contains_key("similarity.png"));
    let npy::Npy { shape, elements } = npy::read(&dir.path().join("whole/labels.npy")).unwrap();
    assert_eq!(shape, [90]);
    assert!(matches!(elements, Elements::I64(labels) if labels[29..31] == [0, 1]));
    // What is for whole data sets is refused elsewhere.
    stderr_of_failure(&arcface_cu(words(Path::new("o"), &["--ids", "3"])), 2);
}
