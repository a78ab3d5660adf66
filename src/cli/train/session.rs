//! A run in progress on a device.

use super::resume::command_to_resume;
use super::{Prepared, first_loss};
use crate::backend::Backend;
use crate::base::text::{one_line, shown};
use crate::cli::device::OnDevice;
use crate::cli::interrupt;
use crate::cli::output::{self, count, grouped, say, size};
use crate::cli::run_folder::{BEST, LAST, RunFolder};
use crate::cli::validation::{self, Validator};
use crate::data::Dataset;
use crate::graph::params::ParamTable;
use crate::recipe::config::Config;
use crate::report::StepReport;
use crate::report::metrics::MetricsLog;
use crate::report::progress::{Progress, RunLength};
use crate::report::tensorboard::EventFile;
use crate::train::{DataOptions, Trainer};
use crate::weights::checkpoint::{Checkpoint, Verified};
use crate::weights::import::Start;
use crate::{Error, Result};
use image::RgbImage;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

impl OnDevice for Prepared {
    fn run<B: Backend>(self, backend: B) -> Result<()> {
        let mut session = Session::open(self, backend)?;
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
    dataset: Arc<dyn Dataset>,
    folder: RunFolder,
    /// Keeps other processes out of the folder.
    _lock: File,
    log: MetricsLog,
    /// TensorBoard's file, if it is asked for.
    events: Option<EventFile>,
    progress: Progress,
    validator: Validator,
    /// What came of verifying.
    verified: Verified,
    /// So many evaluations that are not better end the run.
    patience: Option<u64>,
    /// The steps of the newest checkpoint.
    saved: Option<u64>,
    /// The step to stop after.
    last_step: u64,
    /// Whether all class rows began as random numbers.
    random_classes: bool,
    skip_bad: bool,
    /// What to type to go on after an interrupt.
    resume_command: String,
    /// Unreadable pictures that have been listed.
    told: BTreeSet<u32>,
}

impl<B: Backend> Session<B> {
    fn open(prepared: Prepared, backend: B) -> Result<Self> {
        let Prepared {
            args,
            folder,
            lock,
            mut checkpoint,
            config,
            dataset,
            validator,
            start,
            notes,
            lengthened,
            last_step,
        } = prepared;
        say(backend.describe());
        say(format!(
            "data: {}, {} of {}",
            shown(args.data()),
            count(dataset.len(), "image"),
            count(dataset.classes(), "identity")
        ));
        say(describe_network(&config)?);
        let data = DataOptions {
            threads: args.threads.threads,
            skip_bad: args.skip_bad,
        };
        let saved = checkpoint.as_ref().map(|(_, c)| c.steps_done);
        let mut verified = Verified::default();
        let mut random_classes = true;
        let trainer = match &mut checkpoint {
            Some((path, checkpoint)) => {
                say(format!(
                    "resuming after step {} from {}",
                    checkpoint.steps_done,
                    shown(path)
                ));
                if args.init.is_some() {
                    say("--init has no effect: the run has begun already");
                }
                let before = checkpoint.weights.config.train.precision;
                if config.train.precision != before {
                    say(format!(
                        "the run so far was in {before} and goes on in {}: not the bits of a run in one precision",
                        config.train.precision
                    ));
                }
                checkpoint.weights.config = config;
                verified = std::mem::take(&mut checkpoint.verified);
                Trainer::resume(backend, checkpoint, Arc::clone(&dataset), data)?
            }
            None => {
                if args.resume {
                    say("no checkpoint to resume from: beginning at step 1");
                }
                let mut trainer = Trainer::new(backend, config, Arc::clone(&dataset), data)?;
                if let Some(start) = start {
                    random_classes = begin_with(&mut trainer, start)? == 0;
                }
                trainer
            }
        };
        let length = RunLength {
            epochs: trainer.config().train.epochs,
            steps_per_epoch: trainer.steps_per_epoch(),
            last_step,
        };
        say(describe_run(&trainer, &length));
        notes.iter().for_each(say);
        if let Some(best) = &verified.best
            && !validator.has_sets()
        {
            say(format!(
                "the run was verified so far, and without --eval no more: {BEST} stays that of step {}",
                best.step
            ));
        }
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
        if let Some(step) = saved {
            folder.delete_old(step, trainer.config().train.keep_checkpoints)?;
        }
        let typed: Vec<String> = std::env::args().skip(1).collect();
        let resume_command = if typed.first().is_some_and(|command| command == "train") {
            command_to_resume(&typed)
        } else {
            // Another command runs this one.
            let [data, out] =
                [args.data(), folder.path()].map(|p| p.to_string_lossy().into_owned());
            command_to_resume(&["train".into(), "--data".into(), data, "--out".into(), out])
        };
        let log = match saved {
            Some(steps_done) => MetricsLog::resume(folder.path(), steps_done, verified.due)?,
            None => MetricsLog::create(folder.path())?,
        };
        let mut session = Session {
            trainer,
            dataset,
            folder,
            _lock: lock,
            log,
            events,
            progress: Progress::new(length, output::progress()),
            validator,
            verified,
            patience: args.patience(),
            saved,
            last_step: length.last_step,
            random_classes,
            skip_bad: args.skip_bad,
            resume_command,
            told: BTreeSet::new(),
        };
        if lengthened {
            // From now on, every --resume knows the new length.
            session.save()?;
        }
        Ok(session)
    }

    fn go(&mut self) -> Result<()> {
        let train = self.trainer.config().train.clone();
        if self.verified.due {
            self.validate()?;
            self.save()?;
        }
        while self.trainer.steps_done() < self.last_step && self.has_patience() {
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
            if report.step == 1
                && self.random_classes
                && let Some(text) = first_loss::sentence(&self.trainer, &report)
            {
                self.progress.message(&text);
            }
            let epoch_ends = report.step.is_multiple_of(steps_per_epoch);
            if epoch_ends {
                self.progress.epoch_end();
                if self.validator.has_sets() {
                    // Whatever happens to the evaluation, the epoch is kept.
                    self.verified.due = true;
                    self.save()?;
                    self.validate()?;
                }
            }
            let on_request =
                train.checkpoint_every > 0 && report.step.is_multiple_of(train.checkpoint_every);
            if epoch_ends || on_request || report.step == self.last_step {
                self.save()?;
            }
        }
        if self.verified.due {
            return self.stop();
        }
        let weights = self.trainer.weights()?;
        let path = self.folder.save_weights(LAST, &weights)?;
        if let Some(warning) = validation::collapsed(&mut self.trainer, &*self.dataset) {
            self.progress.message(&warning);
        }
        if !self.has_patience() {
            let best = match &self.verified.best {
                Some(best) => format!("better than that of step {}", best.step),
                None => "of use".to_owned(),
            };
            self.progress.message(&format!(
                "stopped early: {} in a row not {best}",
                count(self.verified.since, "evaluation")
            ));
        }
        let steps = self.trainer.steps_done();
        self.progress.message(&format!(
            "done at step {steps}: {}{}",
            shown(path),
            match self.told.len() {
                0 => String::new(),
                n => format!(" ({} replaced: not readable)", count(n, "picture")),
            }
        ));
        Ok(())
    }

    /// Whether the evaluations still get better, as --patience asks.
    fn has_patience(&self) -> bool {
        (self.patience).is_none_or(|patience| self.verified.since < patience)
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

    /// Verifies the sets of --eval after the last step, logs their results, and keeps the weights if they are the best so
    /// far. Interrupted, it is still due.
    fn validate(&mut self) -> Result<()> {
        let step = self.trainer.steps_done();
        let epoch = step / self.trainer.steps_per_epoch();
        let progress = &mut self.progress;
        let results = match self
            .validator
            .run(&mut self.trainer, |text| progress.status(text))
        {
            Err(Error::Interrupted) => return Ok(()),
            results => results?,
        };
        self.verified.due = false;
        for line in self.validator.resized() {
            self.progress.message(&line);
        }
        for result in &results {
            match result {
                Ok(result) => {
                    self.log.eval(epoch, step, result)?;
                    if let Some(events) = &mut self.events {
                        events.eval(step, result)?;
                    }
                    self.progress.message(&validation::line(result));
                }
                Err(error) => self.progress.message(&format!("not verified: {error}")),
            }
        }
        let outcome = validation::judge(&mut self.verified, step, &results);
        if outcome.keep {
            // Before the checkpoint, which says that it is there.
            let weights = self.trainer.weights()?;
            self.folder.save_weights(BEST, &weights)?;
        }
        outcome
            .said
            .iter()
            .for_each(|text| self.progress.message(text));
        Ok(())
    }

    fn save(&mut self) -> Result<PathBuf> {
        self.log.sync()?;
        if let Some(events) = &mut self.events {
            events.flush()?;
        }
        let mut checkpoint: Checkpoint = self.trainer.checkpoint()?;
        checkpoint.verified.clone_from(&self.verified);
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
            self.progress.message(&format!("saved {}", shown(path)));
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
                shown(self.folder.path().join("checkpoints"))
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

/// Begins with the weights of --init; returns how many class rows are kept.
fn begin_with<B: Backend>(trainer: &mut Trainer<B>, start: Start) -> Result<usize> {
    let theirs = start.classes.as_ref().map(|theirs| theirs.classes);
    let kept = trainer.begin_with(start)?;
    let classes = grouped(trainer.head().classes() as u64);
    say(match theirs {
        None => "class rows: the file has none (a checkpoint of a run has); they start from random numbers".into(),
        Some(theirs) => format!(
            "class rows: {} of {classes} kept, of identities that the file has too (it has {}); the others start from random numbers",
            grouped(kept as u64),
            grouped(theirs as u64)
        ),
    });
    Ok(kept)
}

/// `network: mobilefacenet, 128-d embedding, ...`
fn describe_network(config: &Config) -> Result<String> {
    let model = config.model.build()?;
    let table = ParamTable::new(&model);
    Ok(format!(
        "network: {}, {}-d embedding, {} parameters, {:.3} GMAC per image",
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
        "run: preset {}, {}, batch {batch}, {} per epoch, {}, to step {}; {} planned on the device",
        trainer.config().preset,
        trainer.config().train.precision,
        count(length.steps_per_epoch, "step"),
        count(length.epochs, "epoch"),
        grouped(length.last_step),
        size(bytes)
    )
}
