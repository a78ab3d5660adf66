//! `train`: fits a network to faces, with progress, metrics and checkpoints on the way.

use super::device::{DeviceArgs, Gpus, OnDevice, with_device};
use super::import::tell_rest;
use super::interrupt;
use super::output::{self, check_folder, grouped, say, size};
use super::recipe::{RecipeArgs, presets_table, whole_number};
use super::run_folder::RunFolder;
use super::source::{self, ImageRoot};
use super::validation::{self, ValidationArgs, Validator};
use super::weights::describe_input;
use crate::backend::Backend;
use crate::backend::margin::Margin;
use crate::base::text::one_line;
use crate::data::Dataset;
use crate::recipe::config::{Config, NetworkConfig};
use crate::report::StepReport;
use crate::report::metrics::MetricsLog;
use crate::report::progress::{Progress, RunLength};
use crate::report::tensorboard::EventFile;
use crate::train::{DataOptions, Trainer};
use crate::weights::checkpoint::Checkpoint;
use crate::weights::import::{self, Start};
use crate::{Error, Result};
use image::RgbImage;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

#[derive(Clone, Debug, clap::Args)]
#[command(after_help = presets_table())]
pub(super) struct Args {
    /// Image folder (<identity>/<image>.jpg), RecordIO folder or .rec file, TFRecord or WebDataset (.tar) files, list
    /// (.txt, a line "path label" for each image), or generated[:IDENTITIESxIMAGES] for drawn faces. Several files are
    /// named by their folder, by a pattern ('dir/*.tfrecord') or by one of them (of name-00000-of-00010 all ten are read).
    #[arg(long, value_name = "PATH", required_unless_present = "print_config")]
    data: Option<PathBuf>,
    #[command(flatten)]
    root: ImageRoot,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Folder for config.toml, metrics.csv, eval.csv, checkpoints/ and weights.safetensors. Default: runs/PRESET.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue from the newest checkpoint in --out, to the same bits as a run that was never stopped. Without a
    /// checkpoint, start from the beginning. Default: off, and a folder that holds a run is refused.
    #[arg(long)]
    resume: bool,
    /// Start from the weights in FILE, of any kind that `import` reads, instead of random ones. If the file holds a
    /// network of its own (layers that are no preset's), that is the run's. The ArcFace layer starts from random
    /// weights; tensors that the file lacks, or has in another shape, are listed and start from random weights too (an
    /// ONNX graph must be the whole network). A resumed run ignores this. Default: none.
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Passes over the data. Default: the preset's.
    #[arg(long, value_name = "N", value_parser = whole_number)]
    epochs: Option<u64>,
    /// Learning rate before the schedule. Default: the preset's.
    #[arg(long, value_name = "RATE")]
    lr: Option<f32>,
    /// Stop when the whole run has done N steps; the schedule stays that of all epochs. Default: the end of the last
    /// epoch.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Decides initial weights, order, augmentation and dropout. Default: the preset's.
    #[arg(long, value_name = "N", value_parser = whole_number)]
    seed: Option<u64>,
    #[command(flatten)]
    validation: ValidationArgs,
    /// A checkpoint every K steps, in addition to the one after each epoch; 0: none. Default: the preset's (0).
    #[arg(long, value_name = "K", value_parser = whole_number)]
    checkpoint_every: Option<u64>,
    /// How many checkpoints are kept. Default: the preset's (2).
    #[arg(long, value_name = "K", value_parser = whole_number)]
    keep: Option<u64>,
    /// Threads for arithmetic, and as many for reading pictures; 0: one a core. No number of the run depends on them.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) threads: usize,
    /// Put other pictures in the place of those that cannot be read, and list these. Default: off, the first one stops
    /// the run.
    #[arg(long)]
    skip_bad: bool,
    /// Folder for TensorBoard: every step's numbers, the results of --eval, and once an epoch some augmented pictures. A new
    /// run needs one without event files, --resume goes on in the old one. Default: none.
    #[arg(long, value_name = "DIR")]
    tensorboard: Option<PathBuf>,
    /// Print the configuration that the other arguments make, as TOML, and end.
    #[arg(long)]
    print_config: bool,
}

pub(super) fn run(args: Args, gpus: &impl Gpus) -> Result<()> {
    if args.print_config {
        say(args.config()?.to_toml()?.trim_end());
        return Ok(());
    }
    interrupt::listen()?;
    with_device(args.device.device, gpus, Train(args))
}

impl Args {
    /// The command's own flags as settings.
    fn flags(&self) -> Vec<String> {
        let setting = |key: &str, value: Option<String>| value.map(|v| format!("{key}={v}"));
        [
            setting("train.epochs", self.epochs.map(|v| v.to_string())),
            setting("optimizer.lr", self.lr.map(|v| format!("{v:?}"))),
            setting("train.seed", self.seed.map(|v| v.to_string())),
            setting(
                "train.checkpoint_every",
                self.checkpoint_every.map(|v| v.to_string()),
            ),
            setting("train.keep_checkpoints", self.keep.map(|v| v.to_string())),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// Training as a task for a device.
struct Train(Args);

impl OnDevice for Train {
    fn run<B: Backend>(self, backend: B) -> Result<()> {
        let mut session = Session::open(self.0, backend)?;
        let _orderly =
            interrupt::orderly("saving after this step; once more ends at once, without saving");
        let result = session.go();
        session.progress.finish();
        result
    }
}

/// Pictures of an epoch's first batch that TensorBoard is given.
const SHOWN: usize = 8;

/// A run in progress.
struct Session<B: Backend> {
    trainer: Trainer<B>,
    folder: RunFolder,
    /// Keeps other processes out of the folder.
    _lock: File,
    log: MetricsLog,
    /// TensorBoard's file, if it is asked for.
    events: Option<EventFile>,
    progress: Progress,
    validator: Validator,
    /// The steps of the newest checkpoint.
    saved: Option<u64>,
    /// The step to stop after.
    last_step: u64,
    skip_bad: bool,
    /// What to type to go on after an interrupt.
    resume_command: String,
    /// Unreadable pictures that have been listed.
    told: BTreeSet<u32>,
}

impl<B: Backend> Session<B> {
    fn open(args: Args, backend: B) -> Result<Self> {
        let folder = match &args.out {
            Some(out) => out.clone(),
            None => PathBuf::from("runs").join(args.recipe.preset()?),
        };
        check_folder("--out", Some(&folder))?;
        check_folder("--tensorboard", args.tensorboard.as_deref())?;
        let folder = RunFolder::new(folder);
        // A folder that is not there yet is made, and taken, when there is something to put into it.
        let lock = folder.path().exists().then(|| folder.lock()).transpose()?;
        if !args.resume && folder.has_run() {
            return Err(Error::Usage(format!(
                "{} already holds a run: --resume goes on with it, another --out begins a new one",
                folder.path().display()
            )));
        }
        let mut checkpoint = None;
        if args.resume {
            let found = folder.find()?;
            for reason in &found.passed_over {
                say(format!("passed over: {reason}"));
            }
            checkpoint = found.checkpoint;
        }
        let config = match &checkpoint {
            Some((_, checkpoint)) => args.resumed_config(&checkpoint.weights.config)?,
            None => match folder.config()? {
                Some(stored) => args.resumed_config(&stored)?,
                None => args.config()?,
            },
        };
        let path = args.data.as_deref().expect("the parser requires --data");
        let dataset: Arc<dyn Dataset> = Arc::from(source::open(path, &args.root)?);
        let validator = Validator::open(&args.validation, args.root.image_root.as_deref())?;

        say(backend.describe());
        say(format!(
            "data: {}, {} images of {} identities",
            path.display(),
            grouped(dataset.len() as u64),
            grouped(dataset.classes() as u64)
        ));
        say(describe_network(&config)?);
        let data = DataOptions {
            threads: args.threads,
            skip_bad: args.skip_bad,
        };
        let saved = checkpoint.as_ref().map(|(_, c)| c.steps_done);
        let trainer = match &mut checkpoint {
            Some((path, checkpoint)) => {
                say(format!(
                    "resuming after step {} from {}",
                    checkpoint.steps_done,
                    path.display()
                ));
                if args.init.is_some() {
                    say("--init has no effect: the run has begun already");
                }
                checkpoint.weights.config = config;
                Trainer::resume(backend, checkpoint, dataset, data)?
            }
            None => {
                if args.resume {
                    say("no checkpoint to resume from: beginning at step 1");
                }
                let start = args.start(&config)?;
                let mut trainer = Trainer::new(backend, config, dataset, data)?;
                if let Some(start) = start {
                    trainer.begin_with(start)?;
                }
                trainer
            }
        };
        let length = RunLength {
            epochs: trainer.config().train.epochs,
            steps_per_epoch: trainer.steps_per_epoch(),
            last_step: args.steps.unwrap_or(u64::MAX).min(trainer.total_steps()),
        };
        say(describe_run(&trainer, &length));
        let lock = match lock {
            Some(lock) => lock,
            None => folder.lock()?,
        };
        let events = args.tensorboard.as_deref().map(|folder| match args.resume {
            true => EventFile::resume(folder, saved.unwrap_or(0)),
            false => EventFile::create(folder),
        });
        let events = events.transpose()?;
        folder.begin(trainer.config())?;
        let typed: Vec<String> = std::env::args().skip(1).collect();
        let resume_command = if typed.first().is_some_and(|command| command == "train") {
            command_to_resume(&typed)
        } else {
            // Another command runs this one.
            let [data, out] = [path, folder.path()].map(|p| p.display().to_string());
            command_to_resume(&["train".into(), "--data".into(), data, "--out".into(), out])
        };
        let log = match saved {
            Some(steps_done) => MetricsLog::resume(folder.path(), steps_done)?,
            None => MetricsLog::create(folder.path())?,
        };
        Ok(Session {
            trainer,
            folder,
            _lock: lock,
            log,
            events,
            progress: Progress::new(length, output::progress()),
            validator,
            saved,
            last_step: length.last_step,
            skip_bad: args.skip_bad,
            resume_command,
            told: BTreeSet::new(),
        })
    }

    fn go(&mut self) -> Result<()> {
        let train = self.trainer.config().train.clone();
        while self.trainer.steps_done() < self.last_step {
            if interrupt::asked() {
                return self.stop();
            }
            let steps_per_epoch = self.trainer.steps_per_epoch();
            let epoch_begins = self.trainer.steps_done().is_multiple_of(steps_per_epoch);
            if self.events.is_some() && epoch_begins {
                self.trainer.keep_pictures(SHOWN);
            }
            let report = match self.trainer.step() {
                Ok(report) => report,
                Err(error) => return Err(self.explain(error)),
            };
            self.log.step(&report)?;
            self.show(&report)?;
            self.progress.step(&report);
            self.list_skipped();
            if report.step == 1 {
                let expected = self.trainer.expected_initial_loss();
                let margin = self.trainer.head().margin();
                let counts = (report.images, self.trainer.head().classes());
                let tolerance =
                    tolerance(expected, margin, self.trainer.head().dimension(), counts);
                self.progress
                    .message(&first_loss(&report, expected, tolerance));
            }
            let epoch_ends = report.step.is_multiple_of(steps_per_epoch);
            if epoch_ends {
                self.progress.epoch_end();
                // Before the checkpoint, so that a run resumed from it need not do it again.
                self.validate(&report)?;
            }
            let on_request =
                train.checkpoint_every > 0 && report.step.is_multiple_of(train.checkpoint_every);
            if epoch_ends || on_request || report.step == self.last_step {
                self.save()?;
            }
        }
        let path = self.folder.save_weights(&self.trainer.weights()?)?;
        let steps = self.trainer.steps_done();
        self.progress.message(&format!(
            "done at step {steps}: {}{}",
            path.display(),
            match self.told.len() {
                0 => String::new(),
                1 => " (1 picture could not be read and was replaced)".to_owned(),
                n => format!(" ({n} pictures could not be read and were replaced)"),
            }
        ));
        Ok(())
    }

    /// Writes a step, and the pictures kept from it, for TensorBoard.
    fn show(&mut self, report: &StepReport) -> Result<()> {
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        events.step(report)?;
        let pictures: Vec<RgbImage> = (self.trainer.take_pictures().into_iter())
            .map(|picture| {
                let size = [picture.width, picture.height].map(|n| n as u32);
                let picture = RgbImage::from_raw(size[0], size[1], picture.pixels);
                picture.expect("three bytes a pixel")
            })
            .collect();
        match pictures.is_empty() {
            true => Ok(()),
            false => events.pictures(report.step, &pictures),
        }
    }

    /// Verifies the sets of --eval and logs their results.
    fn validate(&mut self, report: &StepReport) -> Result<()> {
        let progress = &mut self.progress;
        let results = self
            .validator
            .run(&mut self.trainer, |text| progress.status(text))?;
        for line in self.validator.resized() {
            self.progress.message(&line);
        }
        for result in results {
            match result {
                Ok(result) => {
                    self.log.eval(report.epoch, report.step, &result)?;
                    if let Some(events) = &mut self.events {
                        events.eval(report.step, &result)?;
                    }
                    self.progress.message(&validation::line(&result));
                }
                Err(error) => self.progress.message(&format!("not verified: {error}")),
            }
        }
        Ok(())
    }

    fn save(&mut self) -> Result<PathBuf> {
        self.log.sync()?;
        if let Some(events) = &mut self.events {
            events.flush()?;
        }
        let checkpoint: Checkpoint = self.trainer.checkpoint()?;
        let keep = self.trainer.config().train.keep_checkpoints;
        self.saved = Some(checkpoint.steps_done);
        self.folder.save(&checkpoint, keep)
    }

    /// Saves where the run stands and says how to go on.
    fn stop(&mut self) -> Result<()> {
        let steps = self.trainer.steps_done();
        if steps == 0 {
            self.progress
                .message("stopped before the first step; there is nothing to save");
            return Err(Error::Interrupted);
        }
        if self.saved != Some(steps) {
            let path = self.save()?;
            self.progress.message(&format!("saved {}", path.display()));
        }
        self.progress.message(&format!(
            "stopped after step {steps}; to go on:\n  {}",
            self.resume_command
        ));
        Err(Error::Interrupted)
    }

    /// Says what an error in a step leaves the user with.
    fn explain(&mut self, error: Error) -> Error {
        let unreadable = matches!(
            error,
            Error::Io { .. }
                | Error::Malformed { .. }
                | Error::Unsupported { .. }
                | Error::Data { .. }
        );
        if unreadable && !self.skip_bad {
            self.progress.message(
                "--skip-bad would put other pictures in the place of those that cannot be read",
            );
        }
        self.progress.message(&match self.saved {
            Some(step) => format!(
                "the last checkpoint is that of step {step}, in {}",
                self.folder.path().join("checkpoints").display()
            ),
            None => "there is no checkpoint yet".to_owned(),
        });
        error
    }

    /// Lists pictures that have been replaced since the last call.
    fn list_skipped(&mut self) {
        if self.trainer.skipped().len() == self.told.len() {
            return;
        }
        for (index, reason) in self.trainer.skipped() {
            if self.told.insert(*index) {
                self.progress
                    .message(&format!("skipped: {}", one_line(reason)));
            }
        }
    }
}

impl Args {
    /// The configuration of a new run. Its network is that of --init's file where that holds one of its own and the
    /// arguments name none.
    ///
    /// # Errors
    /// Wrong usage; a file that cannot be read.
    fn config(&self) -> Result<Config> {
        let mut config = self.recipe.config(None, &self.flags())?;
        let named = self.recipe.named_in_model()?;
        if let Some(path) = &self.init
            && !names_network(&named)
            && let Some((layers, input)) = import::own_network(path)?
        {
            config.model.network = NetworkConfig::Custom(layers);
            if !named.contains(INPUT) {
                config.model.input = input.unwrap_or(config.model.input);
            }
            config.validate()?;
        }
        Ok(config)
    }

    /// What --init gives a new run, said to the user.
    fn start(&self, config: &Config) -> Result<Option<Start>> {
        let Some(path) = &self.init else {
            return Ok(None);
        };
        let start = import::start(path, config, config.train.seed)?;
        say(format!("beginning with {}:", path.display()));
        tell_rest(&start.report);
        if let Some(theirs) = start.input
            && theirs != config.model.input
        {
            say(format!(
                "warning: these weights take {}, and the run gives them {}; --set model.input=... changes that",
                describe_input(&theirs),
                describe_input(&config.model.input)
            ));
        }
        Ok(Some(start))
    }

    /// The configuration to go on with: `stored`, unless the arguments ask for other numbers.
    ///
    /// # Errors
    /// They do.
    fn resumed_config(&self, stored: &Config) -> Result<Config> {
        let mut asked = self.recipe.config(Some(stored), &self.flags())?;
        let named = self.recipe.named_in_model()?;
        // The network was that of --init's file.
        if self.init.is_some()
            && !names_network(&named)
            && matches!(stored.model.network, NetworkConfig::Custom(_))
        {
            asked.model.network.clone_from(&stored.model.network);
            if !named.contains(INPUT) {
                asked.model.input = stored.model.input;
            }
        }
        let mut config = stored.clone();
        // What decides no number may change.
        config.train.checkpoint_every = asked.train.checkpoint_every;
        config.train.keep_checkpoints = asked.train.keep_checkpoints;
        config.preset.clone_from(&asked.preset);
        let changed = asked.differences(&config)?;
        config.preset.clone_from(&stored.preset);
        if changed.is_empty() {
            return Ok(config);
        }
        let list: Vec<String> = changed
            .iter()
            .map(|[key, asked, stored]| {
                format!("  {key}: {asked} was asked for, the run has {stored}")
            })
            .collect();
        Err(Error::Usage(format!(
            "a resumed run keeps its settings, since other settings make other numbers:\n{}\nleave these arguments out, or begin a new run with another --out",
            list.join("\n")
        )))
    }
}

/// The key of the input transform in the configuration's `model`.
const INPUT: &str = "input";

/// Whether keys of the configuration's `model` say which network it is.
fn names_network(named: &BTreeSet<String>) -> bool {
    named.iter().any(|key| key != INPUT)
}

/// `network: mobilefacenet, 128-d embedding, ...`
fn describe_network(config: &Config) -> Result<String> {
    let model = config.model.build()?;
    let table = crate::graph::params::ParamTable::new(&model);
    Ok(format!(
        "network: {}, {}-d embedding, {} parameters, {:.3} GMAC an image",
        config.model.network_name(),
        model.embedding_size(),
        grouped(table.count() as u64),
        model.macs() as f64 / 1e9
    ))
}

fn describe_run<B: Backend>(trainer: &Trainer<B>, length: &RunLength) -> String {
    let batch = trainer.config().train.batch_size;
    let bytes = trainer.graph().plan().bytes(batch);
    format!(
        "run: preset {}, batch {batch}, {} steps an epoch, {} epochs, to step {}; {} planned on the device",
        trainer.config().preset,
        grouped(length.steps_per_epoch),
        length.epochs,
        grouped(length.last_step),
        size(bytes)
    )
}

/// How far the loss of the first step may be from what is expected: a tenth for what the formula leaves out, and four
/// standard deviations of the mean target logit, whose cosines have variance 1/D and are as many as there are different
/// class rows in the batch.
fn tolerance(
    expected: f64,
    margin: &Margin,
    dimension: usize,
    (images, classes): (usize, usize),
) -> f64 {
    if !margin.normalise {
        // Logits of no known size.
        return expected;
    }
    let deviation = f64::from(margin.scale) / (dimension as f64).sqrt();
    0.1 * expected + 4.0 * deviation / (images.min(classes) as f64).sqrt()
}

fn first_loss(report: &StepReport, expected: f64, tolerance: f64) -> String {
    let loss = report.loss;
    let text = format!("the loss of the first step is {loss:.2}, {expected:.2} is expected");
    if (loss - expected).abs() <= tolerance {
        return text;
    }
    format!(
        "warning: {text} within {tolerance:.2}; labels that do not belong to the pictures' identities, or pixels other than the input transform expects, look like this"
    )
}

/// The command with these arguments, with --resume, as it can be typed.
fn command_to_resume(arguments: &[String]) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+@%".contains(c);
    let mut words: Vec<String> = arguments
        .iter()
        .map(|word| {
            if !word.is_empty() && word.chars().all(plain) {
                word.clone()
            } else {
                format!("'{}'", word.replace('\'', r"'\''"))
            }
        })
        .collect();
    words.insert(0, "arcface-cu".to_owned());
    if !words.iter().any(|word| word == "--resume") {
        words.push("--resume".to_owned());
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(words: &[&str]) -> Args {
        let line = ["train", "--data", "x"].iter().chain(words);
        Line::try_parse_from(line).unwrap().args
    }

    #[test]
    fn a_resumed_run_keeps_its_settings() {
        let begun = args(&["--preset", "demo", "--lr", "0.25", "--set", "train.seed=7"]);
        let stored = begun.recipe.config(None, &begun.flags()).unwrap();
        assert_eq!(begun.resumed_config(&stored).unwrap(), stored);
        assert_eq!(args(&[]).resumed_config(&stored).unwrap(), stored);
        let other = args(&["--keep", "5", "--checkpoint-every", "3", "--steps", "9"]);
        let config = other.resumed_config(&stored).unwrap();
        assert_eq!(config.train.keep_checkpoints, 5);
        assert_eq!(config.train.checkpoint_every, 3);
        assert_eq!(config.optimizer, stored.optimizer);
        for (words, key) in [
            (
                ["--lr", "0.5"],
                "optimizer.lr: 0.5 was asked for, the run has 0.25",
            ),
            (["--epochs", "99"], "train.epochs: 99"),
            (
                ["--preset", "demo"],
                "train.seed: 1 was asked for, the run has 7",
            ),
            (["--batch-size", "8"], "train.batch_size: 8"),
        ] {
            let error = args(&words).resumed_config(&stored).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            assert!(error.to_string().contains(key), "{error}");
        }
    }

    #[test]
    fn the_command_to_resume_can_be_typed() {
        let words = |words: &[&str]| words.iter().map(ToString::to_string).collect::<Vec<_>>();
        let typed = words(&["train", "--data", "my faces", "--set", "a='b'"]);
        assert_eq!(
            command_to_resume(&typed),
            r"arcface-cu train --data 'my faces' --set 'a='\''b'\''' --resume"
        );
        let resumed = words(&["train", "--resume", "--data", "y"]);
        assert_eq!(
            command_to_resume(&resumed),
            "arcface-cu train --resume --data y"
        );
    }

    #[test]
    fn a_loss_from_a_wrong_label_range_is_told() {
        // The seed's settings: a thousand identities, where the data are thought to have 85,742.
        let margin = Margin::arcface(30.0, 0.5);
        let expected = crate::head::expected_initial_loss(&margin, 256, 85_742);
        let found = crate::head::expected_initial_loss(&margin, 256, 1_000);
        let tolerance = tolerance(expected, &margin, 256, (512, 85_742));
        let report = |loss| StepReport {
            epoch: 1,
            step: 1,
            images: 512,
            loss,
            l2: 0.0,
            accuracy: 0.0,
            lr: 0.1,
            seconds: 1.0,
            waited: 0.0,
        };
        assert!(first_loss(&report(found), expected, tolerance).starts_with("warning"));
        assert!(first_loss(&report(f64::NAN), expected, tolerance).starts_with("warning"));
        assert!(!first_loss(&report(27.9), expected, tolerance).contains("warning"));
    }
}
