//! `arcface-cu train`, `plan` and `info` through the binary, on a few small pictures that the test writes.

mod support;

use arcface_cu::weights::checkpoint::{Checkpoint, Weights};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};
use support::training::{assert_same_run, metrics, names, wait_for_steps};

const IDENTITIES: usize = 6;
const IMAGES: usize = 8;
const BATCH: usize = 8;
const STEPS_PER_EPOCH: u64 = (IDENTITIES * IMAGES / BATCH) as u64;

/// A folder of pictures, and what is trained there.
struct Workshop {
    folder: tempfile::TempDir,
}

impl Workshop {
    /// Identities are stripes of different directions and widths, images are shifted and noisy.
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        for identity in 0..IDENTITIES {
            let dir = folder.path().join(format!("faces/person {identity}"));
            fs::create_dir_all(&dir).unwrap();
            for number in 0..IMAGES {
                // JPEG, but for one in PNG; sizes differ.
                let side = 56 + 3 * number as u32;
                let picture = image::RgbImage::from_fn(side, side, |x, y| {
                    let (x, y) = (
                        f64::from(x) / f64::from(side),
                        f64::from(y) / f64::from(side),
                    );
                    let angle = identity as f64 * 0.5;
                    let across = x * angle.cos() + y * angle.sin() + 0.07 * number as f64;
                    let noise = ((x * 977.0 + y * 613.0) * (number + 1) as f64).sin();
                    let value = |phase: f64| {
                        let wave = (across * (9.0 + 4.0 * identity as f64) + phase).sin();
                        (128.0 + 90.0 * wave + 30.0 * noise) as u8
                    };
                    image::Rgb([value(0.0), value(0.4), value(1.1)])
                });
                let extension = if number == 3 { "png" } else { "jpg" };
                picture
                    .save(dir.join(format!("{number}.{extension}")))
                    .unwrap();
            }
        }
        Workshop { folder }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// `train` on the pictures into `out`: two epochs of six steps of a tiny network.
    fn train(&self, out: &str, more: &[&str]) -> Command {
        let mut command = program(&["train", "--data", "faces", "--out", out]);
        command
            .current_dir(self.folder.path())
            .args(["--preset", "demo", "--set", "train.batch_size=8"])
            .args(["--set", "train.epochs=2", "--set", "optimizer.lr=0.02"])
            .args(["--set", "optimizer.schedule.warm_up.steps=3"])
            .args(more);
        command
    }
}

fn program(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arcface-cu"));
    command.args(arguments);
    command
}

fn output(mut command: Command) -> (Output, String) {
    let output = command.output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    (output, text)
}

/// Runs a command that must succeed; what it printed.
fn succeed(command: Command) -> String {
    let (output, text) = output(command);
    assert!(output.status.success(), "{:?}\n{text}", output.status);
    text
}

/// Runs a command that must fail with `code` and say `words`.
fn fail(command: Command, code: i32, words: &[&str]) -> String {
    let (output, text) = output(command);
    assert_eq!(output.status.code(), Some(code), "{text}");
    for word in words {
        assert!(text.contains(word), "\"{word}\" is not in\n{text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    text
}

fn signal(child: &Child, name: &str) {
    let id = child.id().to_string();
    let status = Command::new("kill").args(["-s", name, &id]).status();
    assert!(status.unwrap().success());
}

#[test]
fn killed_and_interrupted_runs_go_on_to_the_same_bits() {
    let shop = Workshop::new();
    let more = ["--checkpoint-every", "2", "--keep", "3"];
    let text = succeed(shop.train("whole", &more));
    let whole = shop.path("whole");
    for words in [
        "48 images of 6 identities",
        "parameters",
        "Epoch 1/2",
        "Epoch 2/2",
        "done at step 12",
    ] {
        assert!(text.contains(words), "\"{words}\" is not in\n{text}");
    }
    // With six identities, any loss of the first step is as good as another.
    assert!(
        !text.contains("warning") && !text.contains("first step"),
        "{text}"
    );
    let rows = metrics(&whole);
    assert_eq!(rows[0], "epoch,step,loss,l2,accuracy,lr");
    let header = fs::read_to_string(whole.join("metrics.csv")).unwrap();
    assert!(header.starts_with("epoch,step,loss,l2,accuracy,lr,images_per_s,data_wait\n"));
    assert_eq!(rows.len() as u64, 1 + 2 * STEPS_PER_EPOCH);
    assert!(
        rows[1].starts_with("1,1,") && rows[7].starts_with("2,7,"),
        "{rows:?}"
    );
    let kept = ["step-00000008", "step-00000010", "step-00000012"];
    assert_eq!(
        names(&whole.join("checkpoints")),
        kept.map(|name| format!("{name}.safetensors"))
    );

    // Killed five times, wherever it happens to be: at a number of steps, and then a little later.
    let resumed = ["--checkpoint-every", "2", "--keep", "3", "--resume"];
    let killed = shop.path("killed");
    for (steps, then) in [(0, 40), (1, 3), (4, 7), (5, 1), (8, 11)] {
        let mut command = shop.train("killed", &resumed);
        let mut child = command.stdout(Stdio::null()).spawn().unwrap();
        wait_for_steps(&mut child, &killed, steps);
        std::thread::sleep(Duration::from_millis(then));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // What a kill in the middle of writing leaves, and a file that a full disk cut off.
    fs::write(
        killed.join("checkpoints/step-00000011.safetensors.tmp"),
        "half",
    )
    .unwrap();
    fs::write(killed.join("checkpoints/step-00000012.safetensors"), "half").unwrap();
    let text = succeed(shop.train("killed", &resumed));
    assert!(
        text.contains("passed over") && text.contains("resuming after step"),
        "{text}"
    );
    assert_same_run(&whole, &killed, "after kills");

    // Interrupted: the step is finished and saved, and the way to go on is told.
    let stopped = shop.path("stopped");
    let mut command = shop.train("stopped", &more);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for_steps(&mut child, &stopped, 3);
    signal(&child, "INT");
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{text}");
    let done = metrics(&stopped).len() - 1;
    assert!((3..8).contains(&done), "{done} steps");
    assert!(
        text.contains(&format!("stopped after step {done}")),
        "{text}"
    );
    assert!(
        text.contains("arcface-cu train --data faces") && text.contains("--resume"),
        "{text}"
    );
    let checkpoint = format!("checkpoints/step-{done:08}.safetensors");
    assert!(stopped.join(checkpoint).exists());
    assert!(!stopped.join("weights.safetensors").exists());

    // The settings of the run are kept; other ones are refused by name; threads may change.
    let lr = ["--resume", "--lr", "0.5"];
    fail(
        shop.train("stopped", &lr),
        2,
        &["optimizer.lr: 0.5", "0.02"],
    );
    let mut command = program(&["train", "--data", "faces", "--out", "stopped", "--resume"]);
    command.args(["--threads", "1"]).current_dir(shop.path(""));
    succeed(command);
    assert_same_run(&whole, &stopped, "after an interrupt");

    // Without --resume, a folder with a run in it is left alone.
    let words = ["stopped already holds a run", "--resume"];
    fail(shop.train("stopped", &[]), 2, &words);
    assert_same_run(&whole, &stopped, "after a refusal");
}

/// `nohup` ignores SIGHUP, and a shell without job control ignores SIGINT for what it runs in the background.
#[cfg(unix)]
#[test]
fn signals_ignored_at_the_start_stay_ignored() {
    let shop = Workshop::new();
    let train = shop.train("out", &["--set", "train.epochs=1000"]);
    let mut command = Command::new("sh");
    command
        .args(["-c", "trap '' HUP INT; exec \"$0\" \"$@\""])
        .arg(train.get_program())
        .args(train.get_args())
        .current_dir(shop.path(""));
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let out = shop.path("out");
    wait_for_steps(&mut child, &out, 1);
    signal(&child, "HUP");
    signal(&child, "INT");
    let steps = metrics(&out).len() - 1;
    wait_for_steps(&mut child, &out, steps + 3);
    signal(&child, "TERM");
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(text.contains("saved "), "{text}");
}

/// There is nothing to save yet, so the first signal ends the process, whatever it waits for: here, the other end of a
/// pipe.
#[cfg(unix)]
#[test]
fn the_first_signal_ends_a_run_that_has_not_begun() {
    let shop = Workshop::new();
    fs::create_dir(shop.path("out")).unwrap();
    let pipe = shop.path("out/config.toml");
    let made = Command::new("mkfifo").arg(pipe).status();
    assert!(made.unwrap().success());
    for name in ["INT", "TERM", "HUP"] {
        let mut child = shop.train("out", &["--resume"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(500));
        assert!(child.try_wait().unwrap().is_none());
        signal(&child, name);
        let end = Instant::now() + Duration::from_secs(10);
        while child.try_wait().unwrap().is_none() {
            if Instant::now() > end {
                child.kill().unwrap();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(child.wait().unwrap().code(), Some(130), "{name}");
        assert!(!shop.path("out/checkpoints").exists());
    }
}

#[test]
fn a_run_that_is_too_long_to_count_is_refused() {
    let shop = Workshop::new();
    let epochs = ["--epochs", "4611686018427387904", "--steps", "1"];
    let mut command = program(&["train", "--data", "faces", "--out", "out"]);
    command
        .current_dir(shop.path(""))
        .args(["--preset", "demo"]);
    command.args(["--batch-size", "8"]).args(epochs);
    fail(command, 2, &["4611686018427387904 epochs of 6 steps"]);
    assert!(!shop.path("out").exists());
}

#[test]
fn steps_end_a_run_that_can_go_on() {
    let shop = Workshop::new();
    succeed(shop.train("whole", &["--steps", "8"]));
    succeed(shop.train("parts", &["--steps", "4"]));
    let parts = shop.path("parts");
    assert_eq!(
        names(&parts.join("checkpoints")),
        ["step-00000004.safetensors"]
    );
    assert!(parts.join("weights.safetensors").exists());
    let text = succeed(shop.train("parts", &["--steps", "8", "--resume"]));
    assert!(text.contains("done at step 8"), "{text}");
    let weights = |run: &str| fs::read(shop.path(run).join("weights.safetensors")).unwrap();
    assert!(weights("whole") == weights("parts"));
    assert_eq!(metrics(&shop.path("whole")), metrics(&parts));

    // Two processes cannot train into one folder.
    let held = fs::File::create(parts.join(".lock")).unwrap();
    held.try_lock().unwrap();
    let words = ["another process is training into parts"];
    fail(shop.train("parts", &["--resume"]), 2, &words);
    drop(held);

    // Other data is no data to go on with.
    fs::remove_file(shop.path("faces/person 2/5.jpg")).unwrap();
    let words = ["48 images of 6 identities", "47 of 6"];
    fail(shop.train("parts", &["--resume"]), 1, &words);

    // A picture that cannot be read stops the run, or is replaced and listed.
    fs::write(shop.path("faces/person 2/5.jpg"), "no picture").unwrap();
    fail(shop.train("bad", &[]), 1, &["5.jpg", "--skip-bad"]);
    let text = succeed(shop.train("skipping", &["--skip-bad"]));
    assert!(
        text.contains("skipped: ") && text.contains("5.jpg"),
        "{text}"
    );
    assert!(
        text.contains("(1 picture replaced: not readable)"),
        "{text}"
    );
}

#[test]
fn a_run_that_diverges_stops_and_keeps_its_checkpoint() {
    let shop = Workshop::new();
    let steps = ["--steps", "2", "--lr", "1e30"];
    succeed(shop.train("run", &steps));
    let words = [
        "is not finite",
        "step ",
        "learning rate",
        "the last checkpoint is that of step 2",
    ];
    let words_without = [words[0], words[1], words[2], "there is no checkpoint yet"];
    let text = fail(shop.train("wild", &["--lr", "1e30"]), 1, &words_without);
    let rows = metrics(&shop.path("wild"));
    let steps = rows.len() - 1;
    assert!(
        text.contains(&format!("step {}:", steps + 1)),
        "{text}\n{rows:?}"
    );
    assert!(
        !rows
            .iter()
            .any(|row| row.contains("NaN") || row.contains("inf")),
        "{rows:?}"
    );

    let checkpoints = shop.path("run/checkpoints");
    let before = fs::read(checkpoints.join("step-00000002.safetensors")).unwrap();
    let text = fail(shop.train("run", &["--lr", "1e30", "--resume"]), 1, &words);
    let after = fs::read(checkpoints.join("step-00000002.safetensors")).unwrap();
    assert!(before == after, "{text}");
    assert_eq!(names(&checkpoints).len(), 1, "{text}");
}

/// Verified after each epoch; a resumed run verifies what the killed one did not, and no more.
#[test]
fn verification_is_logged_each_epoch() {
    let shop = Workshop::new();
    let dataset = arcface_cu::data::open(&shop.path("faces")).unwrap();
    let pairs: Vec<(usize, usize, bool)> = (0..24)
        .map(|k| {
            let (first, same) = (2 * k, k % 2 == 0);
            let second = if same { first + 1 } else { (first + 17) % 48 };
            (first, second, same)
        })
        .collect();
    let sized = Resized(dataset);
    arcface_cu::eval::write_set(&shop.path("sets"), "own", &sized, &pairs, 112, &mut |_| {})
        .unwrap();
    let eval = ["--eval", "sets", "--eval-sets", "own"];
    let text = succeed(shop.train("whole", &eval));
    assert_eq!(text.matches("own: accuracy").count(), 2, "{text}");
    let table = |run: &str| fs::read_to_string(shop.path(run).join("eval.csv")).unwrap();
    let whole = table("whole");
    assert!(whole.starts_with("epoch,step,set,accuracy,"), "{whole}");
    let places = whole.lines().skip(1).map(|line| &line[..8]);
    assert!(places.eq(["1,6,own,", "2,12,own"]), "{whole}");

    // The weights do not depend on being looked at.
    succeed(shop.train("unseen", &[]));
    let weights = |run: &str| fs::read(shop.path(run).join("weights.safetensors")).unwrap();
    assert!(weights("whole") == weights("unseen"));

    let steps = [&eval[..], &["--steps", "6"]].concat();
    succeed(shop.train("parts", &steps));
    assert_eq!(table("parts").lines().count(), 2);
    let resumed = [&eval[..], &["--resume"]].concat();
    let text = succeed(shop.train("parts", &resumed));
    assert_eq!(text.matches("own: accuracy").count(), 1, "{text}");
    assert_eq!(table("parts"), whole);
    fail(
        shop.train("other", &["--eval", "sets", "--eval-sets", "lfw"]),
        1,
        &["lfw", "own"],
    );
}

/// A data set whose pictures come out at the network's size.
struct Resized(Box<dyn arcface_cu::data::Dataset>);

impl arcface_cu::data::Dataset for Resized {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn classes(&self) -> usize {
        self.0.classes()
    }

    fn label(&self, index: usize) -> u32 {
        self.0.label(index)
    }

    fn read(&self, index: usize, image: &mut arcface_cu::data::Image) -> arcface_cu::Result<()> {
        self.0.read(index, image)?;
        *image = arcface_cu::data::picture::resize(image, 112, 112);
        Ok(())
    }

    fn describe(&self, index: usize) -> String {
        self.0.describe(index)
    }
}

#[test]
fn help_tells_every_default() {
    let text = succeed(program(&["train", "--help"]));
    // A flag with a value says what it is without one.
    let flags = text.split("\n      --").skip(1);
    for flag in flags {
        let flag = flag.split("\n\n").next().unwrap_or(flag);
        let told = flag.to_lowercase().contains("default");
        let required = flag.starts_with("data ");
        let switch = ["print-config"].iter().any(|name| flag.starts_with(name));
        assert!(told || required || switch, "no default: --{flag}");
    }
    assert!(
        text.contains("seed-resnet50") && text.contains("512"),
        "{text}"
    );
    let text = succeed(program(&["plan", "--help"]));
    assert!(text.contains("[default: 85642]"), "{text}");
}

#[test]
fn wrong_usage_has_its_own_exit_code_and_says_what_is_wrong() {
    let shop = Workshop::new();
    let train = |more: &[&str]| shop.train("none", more);
    fail(program(&["train"]), 2, &["--data"]);
    fail(program(&["fit"]), 2, &["fit"]);
    fail(train(&["--device", "gpu"]), 2, &["auto, cpu, cuda"]);
    // Where there is a GPU too, there are not a hundred.
    fail(train(&["--device", "cuda:99"]), 1, &["driver"]);
    fail(program(&["plan", "--device", "cuda:99"]), 1, &["driver"]);
    fail(
        train(&["--set", "optimizer.speed=3"]),
        2,
        &["speed", "--print-config"],
    );
    fail(train(&["--set", "optimizer.lr"]), 2, &["key=value"]);
    let wrong = ["--set", "lr=3"];
    fail(train(&wrong), 2, &["did you mean optimizer.lr?"]);
    let wrong = ["plan", "--preset", "seed-resnet"];
    fail(program(&wrong), 2, &["did you mean seed-resnet50?"]);
    fail(train(&["--batch-size", "0"]), 2, &["train.batch_size"]);
    fail(train(&["--batch-size", "49"]), 1, &["48 images", "49"]);
    let preset = ["plan", "--preset", "nothing"];
    fail(program(&preset), 2, &["no preset nothing", "seed-resnet50"]);
    let sets = ["--eval-sets", "lfw"];
    fail(train(&sets), 2, &["--eval"]);
    let sets = ["--eval", "/nonexistent"];
    fail(train(&sets), 1, &["/nonexistent"]);
    let mut command = program(&["train", "--data", "generated:3", "--out", "none"]);
    command.current_dir(shop.path(""));
    fail(command, 2, &["generated:300x40"]);
    // A hundred thousand threads only get in each other's way.
    fail(train(&["--threads", "100000"]), 2, &["the largest is 1024"]);
    fail(train(&["--lr", "-1"]), 2, &["lr must be 0 or more"]);
    let file = shop.path("bad.toml");
    fs::write(&file, "[optimizer]\nlr = \"fast\"\n").unwrap();
    let config = ["plan", "--config", file.to_str().unwrap()];
    fail(program(&config), 2, &["bad.toml", "lr"]);
    let config = ["plan", "--config", "/nonexistent.toml"];
    fail(program(&config), 1, &["opening /nonexistent.toml"]);
    let nothing = ["train", "--data", "/nonexistent", "--out", "none"];
    let mut command = program(&nothing);
    command.current_dir(shop.path(""));
    fail(command, 1, &["opening /nonexistent"]);
    assert!(
        !shop.path("none").exists(),
        "a run that never began left a folder"
    );
}

/// Wrong usage is the user's to put right, whatever the device; and what `auto` chose is told in one short sentence.
#[test]
fn wrong_usage_is_told_before_the_device() {
    let shop = Workshop::new();
    let auto = ["--device", "auto"];
    let with = |more: &[&str]| shop.train("run", &[&auto, more].concat());
    for (more, word) in [
        (&["--batch-size", "49"][..], "49"),
        (&["--set", "optimizer.speed=3"], "speed"),
        (&["--init", "nothing"], "nothing"),
        (&["--eval", "nothing"], "nothing"),
        (&["--steps", "13"], "--epochs 3 has as many"),
        (&["--tensorboard", "faces/person 1/3.png"], "is a file"),
    ] {
        let output = with(more).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert!(!output.status.success() && text.contains(word), "{text}");
        assert!(!text.contains("--device auto"), "{text}");
    }
    let output = with(&["--steps", "1"]).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(
        text.starts_with("--device auto: ") && text.len() < 160,
        "{text}"
    );
}

/// The column `lr` of metrics.csv for these steps.
fn rates(run: &Path, steps: std::ops::RangeInclusive<usize>) -> Vec<String> {
    let rows = metrics(run);
    let rate = |step: usize| rows[step].rsplit(',').next().unwrap().to_owned();
    steps.map(rate).collect()
}

#[test]
fn a_run_can_go_on_for_more_epochs() {
    let shop = Workshop::new();
    let begin = |out: &str| succeed(shop.train(out, &["--keep", "9"]));
    let resume = |out: &str, more: &[&str]| {
        let mut command = program(&["train", "--data", "faces", "--out", out, "--resume"]);
        command.current_dir(shop.path("")).args(more);
        command
    };
    begin("stretched");
    // Without a word about the schedule, it is a question.
    for longer in [["--epochs", "4"], ["--steps", "24"]] {
        let words = [
            "has 2 epochs",
            "have 4",
            "--schedule stretch",
            "--schedule continue",
        ];
        fail(resume("stretched", &longer), 2, &words);
    }
    let shorter = ["--epochs", "1", "--schedule"];
    let fewer = [&shorter[..], &["stretch"]].concat();
    fail(resume("stretched", &fewer), 2, &["12 steps already"]);
    let fewer = [&shorter[..], &["continue"]].concat();
    fail(resume("stretched", &fewer), 2, &["12 steps already"]);
    let mut command = shop.train("new", &["--schedule", "stretch"]);
    command.stdout(Stdio::null());
    fail(command, 2, &["--resume"]);

    // Stretched: from the next step on, the rates of a run of four epochs.
    let stretch = ["--epochs", "4", "--schedule", "stretch"];
    let text = succeed(resume("stretched", &stretch));
    assert!(
        text.contains("schedule: stretched from 2 to 4 epochs"),
        "{text}"
    );
    succeed(shop.train("long", &["--set", "train.epochs=4"]));
    let [stretched, long] = ["stretched", "long"].map(|run| shop.path(run));
    assert_eq!(rates(&stretched, 13..=24), rates(&long, 13..=24));
    assert_ne!(rates(&stretched, 1..=12), rates(&long, 1..=12));

    // Continued: the course begins again, in epochs of its own.
    begin("continued");
    let text = succeed(resume(
        "continued",
        &["--epochs", "4", "--schedule", "continue"],
    ));
    assert!(
        text.contains("schedule: continued from 2 to 4 epochs"),
        "{text}"
    );
    let continued = shop.path("continued");
    assert_eq!(rates(&continued, 13..=24), rates(&continued, 1..=12));
    assert_eq!(metrics(&continued).len(), 25);

    // Killed before its first new step, and again later: the same bits. A plain --resume knows the new length.
    begin("parts");
    let parts = shop.path("parts");
    let steps = ["--steps", "20", "--schedule", "continue"];
    let mut child = resume("parts", &steps)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    wait_for_steps(&mut child, &parts, 13);
    child.kill().unwrap();
    child.wait().unwrap();
    succeed(resume("parts", &["--steps", "20"]));
    assert_eq!(metrics(&parts).len(), 21);
    succeed(resume("parts", &[]));
    // Checkpoints in the middle of an epoch are the shorter run's own.
    fs::remove_file(parts.join("checkpoints/step-00000020.safetensors")).unwrap();
    assert_same_run(&continued, &parts, "after a kill");

    // The preset, named again, does not ask for its own length.
    let typed = ["--preset", "demo", "--set", "train.batch_size=8"];
    let typed = [&typed[..], &["--set", "optimizer.lr=0.02", "--keep", "9"]].concat();
    let typed = [&typed[..], &["--set", "optimizer.schedule.warm_up.steps=3"]].concat();
    succeed(resume("continued", &typed));
    assert_same_run(&continued, &parts, "after nothing");
}

#[test]
fn class_rows_of_the_same_identities_are_kept() {
    let shop = Workshop::new();
    succeed(shop.train("first", &["--epochs", "1"]));
    let rename = |from: &str, to: &str| {
        fs::rename(shop.path("faces").join(from), shop.path("faces").join(to)).unwrap();
    };
    // One is new, and comes first: all others have another number.
    rename("person 3", "a new one");
    let from = "first/checkpoints/step-00000006.safetensors";
    let still = ["--init", from, "--lr", "0", "--steps", "1"];
    let text = succeed(shop.train("second", &still));
    assert!(text.contains("class rows: 5 of 6 kept"), "{text}");
    assert!(!text.contains("first step"), "{text}");
    let load = |file: &str| Checkpoint::load(&shop.path(file)).unwrap();
    let (first, second) = (
        load(from),
        load("second/checkpoints/step-00000001.safetensors"),
    );
    let names = second.class_names.clone().unwrap();
    assert_eq!(names[0], "a new one");
    let d = second.class_rows.len() / names.len();
    let row = |checkpoint: &Checkpoint, name: &str| {
        let names = checkpoint.class_names.as_ref().unwrap();
        let at = names.iter().position(|known| known == name).unwrap();
        checkpoint.class_rows[at * d..][..d].to_vec()
    };
    for name in &names[1..] {
        assert!(row(&first, name) == row(&second, name), "{name}");
    }
    assert!(row(&second, "a new one") != row(&first, "person 3"));

    // The last weights have no class rows. Classes that are only numbers are the same in the same data alone.
    let last = ["--init", "first/weights.safetensors", "--steps", "1"];
    let text = succeed(shop.train("third", &last));
    assert!(text.contains("class rows: the file has none"), "{text}");
    let numbered = |out: &str, data: &str, more: &[&str]| {
        let mut command = program(&["train", "--data", data, "--out", out, "--steps", "1"]);
        command
            .args(["--preset", "demo", "--batch-size", "8"])
            .args(more);
        command.current_dir(shop.path(""));
        succeed(command)
    };
    numbered("numbers", "generated:4x6", &[]);
    let from = "numbers/checkpoints/step-00000001.safetensors";
    for (out, data, kept) in [
        ("same", "generated:4x6", "4 of 4"),
        ("other", "generated:4x7", "0 of 4"),
    ] {
        let text = numbered(out, data, &["--init", from]);
        assert!(text.contains(&format!("class rows: {kept} kept")), "{text}");
    }
}

/// Pairs for --eval, as a list of files: `pairs.txt`.
fn write_pairs(shop: &Workshop, pairs: usize) {
    let picture = |k: usize| {
        let (identity, number) = (k / IMAGES % IDENTITIES, k % IMAGES);
        let ending = if number == 3 { "png" } else { "jpg" };
        format!("\"faces/person {identity}/{number}.{ending}\"")
    };
    let line = |k: usize| {
        let (first, same) = (2 * k % 48, k.is_multiple_of(2));
        let second = if same { first + 1 } else { first + 17 };
        format!(
            "{} {} {}\n",
            picture(first),
            picture(second),
            u8::from(same)
        )
    };
    let text: String = (0..pairs).map(line).collect();
    fs::write(shop.path("pairs.txt"), text).unwrap();
}

#[test]
fn the_best_weights_are_kept_and_patience_ends() {
    let shop = Workshop::new();
    write_pairs(&shop, 40);
    let all = ["--eval", "pairs.txt", "--epochs", "5", "--keep", "9"];
    succeed(shop.train("whole", &all));
    let whole = shop.path("whole");
    // The best of eval.csv, the later of equal ones.
    let table = fs::read_to_string(whole.join("eval.csv")).unwrap();
    let rows = table.lines().skip(1).map(|line| {
        let mut cells = line.split(',');
        let step: u64 = cells.nth(1).unwrap().parse().unwrap();
        (cells.nth(1).unwrap().parse::<f64>().unwrap(), step)
    });
    let (_, step) = rows.max_by(|a, b| a.partial_cmp(b).unwrap()).unwrap();
    let kept = Weights::load(&whole.join("weights.best.safetensors")).unwrap();
    let file = format!("checkpoints/step-{step:08}.safetensors");
    assert!(
        kept == Weights::load(&whole.join(file)).unwrap(),
        "{step}: {table}"
    );

    // In parts, the best value so far is known.
    let mut steps = all.to_vec();
    steps.extend(["--resume", "--steps"]);
    for at in ["6", "13", "24", "30"] {
        let part = [&steps[..], &[at]].concat();
        succeed(shop.train("parts", &part));
    }
    let parts = shop.path("parts");
    fs::remove_file(parts.join("checkpoints/step-00000013.safetensors")).unwrap();
    assert_same_run(&whole, &parts, "in parts");
    let best = |run: &Path| fs::read(run.join("weights.best.safetensors")).unwrap();
    assert!(best(&whole) == best(&parts));

    // Forty pairs get better forty times at most.
    let patient = ["--eval", "pairs.txt", "--epochs", "41", "--patience", "1"];
    let text = succeed(shop.train("patient", &patient));
    assert!(
        text.contains("stopped early: 1 evaluation in a row"),
        "{text}"
    );
    let patient = shop.path("patient");
    assert!(patient.join("weights.safetensors").exists());
    let ended = metrics(&patient);
    assert!(
        ended.len() < 41 * 6 && ended.len() % 6 == 1,
        "{}",
        ended.len()
    );
    let again = ["--eval", "pairs.txt", "--patience", "1", "--resume"];
    let mut command = program(&["train", "--data", "faces", "--out", "patient"]);
    command.current_dir(shop.path("")).args(again);
    let text = succeed(command);
    assert!(text.contains("stopped early"), "{text}");
    assert_eq!(metrics(&patient), ended);
    fail(shop.train("none", &["--patience", "1"]), 2, &["--eval"]);

    // Without --eval the best weights stay behind.
    let mut command = program(&["train", "--data", "faces", "--out", "parts", "--resume"]);
    command.current_dir(shop.path(""));
    let text = succeed(command);
    let said =
        format!("without --eval no more: weights.best.safetensors stays that of step {step}");
    assert!(text.contains(&said), "{text}");
}

/// The first Ctrl-C ends the evaluation, keeps the epoch before it, and the evaluation is done after the resume.
#[test]
fn an_evaluation_can_be_interrupted() {
    let shop = Workshop::new();
    write_pairs(&shop, 500);
    let eval = ["--eval", "pairs.txt", "--steps", "6"];
    succeed(shop.train("whole", &eval));
    let mut child = shop
        .train("parts", &eval)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let parts = shop.path("parts");
    wait_for_steps(&mut child, &parts, 6);
    std::thread::sleep(Duration::from_millis(300));
    signal(&child, "INT");
    let asked = Instant::now();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(130), "{text}");
    assert!(
        asked.elapsed() < Duration::from_secs(2),
        "{:?}",
        asked.elapsed()
    );
    let table = |run: &str| fs::read_to_string(shop.path(run).join("eval.csv")).unwrap();
    assert_eq!(table("parts").lines().count(), 1, "{text}");
    let kept = names(&parts.join("checkpoints"));
    assert_eq!(kept, ["step-00000006.safetensors"], "{text}");
    assert!(!parts.join("weights.safetensors").exists());

    let resumed = [&eval[..], &["--resume"]].concat();
    succeed(shop.train("parts", &resumed));
    assert_eq!(table("parts"), table("whole"));
    assert_same_run(&shop.path("whole"), &parts, "after an interrupt");
}

/// One picture under every name: all embeddings are alike at the end, and it is said.
#[test]
fn a_collapsed_network_is_told() {
    let shop = Workshop::new();
    let picture = fs::read(shop.path("faces/person 0/0.jpg")).unwrap();
    for identity in ["a", "b"] {
        fs::create_dir_all(shop.path("same").join(identity)).unwrap();
        for k in 0..4 {
            fs::write(shop.path(&format!("same/{identity}/{k}.jpg")), &picture).unwrap();
        }
    }
    let train = |data: &str| {
        let mut command = program(&["train", "--data", data, "--out", "alike", "--steps", "2"]);
        command.args(["--preset", "demo", "--batch-size", "8"]);
        command.current_dir(shop.path(""));
        succeed(command)
    };
    let words = "warning: the network has collapsed: all 8 embeddings are equal";
    let text = train("same");
    assert!(text.contains(words), "{text}");
    assert!(shop.path("alike/weights.safetensors").exists());
    let text = succeed(shop.train("run", &["--steps", "2"]));
    assert!(!text.contains("collapsed"), "{text}");
}

#[test]
fn a_printed_configuration_reads_back() {
    let shop = Workshop::new();
    let arguments = ["train", "--preset", "demo", "--lr", "0.3", "--print-config"];
    let printed = succeed(program(&arguments));
    assert!(
        printed.contains("lr = 0.3\n") && printed.contains("preset = \"demo\""),
        "{printed}"
    );
    let file = shop.path("config.toml");
    fs::write(&file, &printed).unwrap();
    let file = file.to_str().unwrap();
    let again = succeed(program(&["train", "--config", file, "--print-config"]));
    assert_eq!(again, printed);
}

#[test]
fn plan_and_info_tell_what_there_is() {
    let text = succeed(program(&[
        "plan",
        "--preset",
        "seed-resnet50",
        "--memory",
        "80",
    ]));
    for words in [
        "24,112,256 parameters",
        "85,642 identities",
        "512",
        "largest batch in 80.00 GiB",
    ] {
        assert!(text.contains(words), "\"{words}\" is not in\n{text}");
    }
    let plan = ["plan", "--preset", "demo", "--infer", "--memory", "0.0001"];
    fail(program(&plan), 1, &["not even one image fits into 0.1 MiB"]);
    let plan = program(&["plan", "--memory", "-3"]);
    fail(plan, 2, &[]);
    let text = succeed(program(&["info"]));
    for words in [
        "cpu: ",
        "threads",
        "memory: ",
        "cuda: ",
        "compiler: ",
        "compiled kernels: ",
        "--device auto takes",
    ] {
        assert!(text.contains(words), "\"{words}\" is not in\n{text}");
    }

    let with = |arguments: &[&str], architecture: &str| {
        let mut command = program(arguments);
        command.env("ARCFACE_CU_ARCH", architecture);
        command
    };
    let text = succeed(with(&["info"], "compute_80"));
    assert!(text.contains("compute_80, PTX that the driver"), "{text}");
    let wrong = ["ARCFACE_CU_ARCH", "ampere", "compute_80"];
    let text = succeed(with(&["info"], "ampere"));
    assert!(wrong.iter().all(|word| text.contains(word)), "{text}");
    let plan = ["plan", "--preset", "demo", "--device", "cuda"];
    fail(with(&plan, "ampere"), 2, &wrong);
}
