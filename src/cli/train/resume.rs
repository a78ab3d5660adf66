//! What `--resume` goes on with: the settings of the run, and a schedule for more epochs.

use super::{Args, INPUT, names_network};
use crate::cli::output::{count, say};
use crate::optim::Course;
use crate::recipe::config::{Config, NetworkConfig, Precision};
use crate::{Error, Result};

/// How the learning rate goes on in a resumed run of another length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Schedule {
    /// The learning rate runs from now on as in a run that had the new length from its start.
    Stretch,
    /// The schedule ends where it was to end; a linear or cosine course then begins again, with its warm-up, and reaches 0
    /// at the new end. Other courses go on.
    Continue,
}

/// Where a run stands that is to go on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Standing {
    pub(super) steps_done: u64,
    pub(super) steps_per_epoch: u64,
}

impl Args {
    /// The configuration to go on with: `stored`, unless the arguments ask for other numbers; and a sentence, if the run is of
    /// another length now. A run without a step yet stands nowhere and takes any length.
    ///
    /// # Errors
    /// They do.
    pub(super) fn resumed_config(
        &self,
        stored: &Config,
        standing: Option<Standing>,
    ) -> Result<(Config, Option<String>)> {
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
        // What changes only how exactly they are computed may, and is said.
        match asked.train.precision {
            Precision::Auto => asked.train.precision = config.train.precision,
            precision => config.train.precision = precision,
        }
        config.preset.clone_from(&asked.preset);
        let mut same_length = asked.clone();
        same_length.train.epochs = stored.train.epochs;
        let restarts = &mut same_length.optimizer.schedule.restarts;
        restarts.clone_from(&stored.optimizer.schedule.restarts);
        let changed = same_length.differences(&config)?;
        config.preset.clone_from(&stored.preset);
        if !changed.is_empty() {
            let list: Vec<String> = changed
                .iter()
                .map(|[key, asked, stored]| {
                    format!("  {key}: {asked} was asked for, the run has {stored}")
                })
                .collect();
            return Err(Error::Usage(format!(
                "a resumed run keeps its settings, since other settings make other numbers:\n{}\nleave these arguments out, or begin a new run with another --out",
                list.join("\n")
            )));
        }
        // A preset that is named again does not ask for its length again.
        let epochs = match self.epochs.is_some() || self.recipe.sets("train.epochs") {
            true => asked.train.epochs,
            false => stored.train.epochs,
        };
        let Some(standing) = standing else {
            config.train.epochs = epochs;
            return Ok((config, None));
        };
        let epochs = self.epochs_for_steps(epochs, standing);
        let said = self.lengthen(&mut config, epochs, standing)?;
        Ok((config, said))
    }

    /// `epochs`, or as many more as --steps takes.
    fn epochs_for_steps(&self, epochs: u64, standing: Standing) -> u64 {
        let steps = self.steps.unwrap_or(0);
        epochs.max(steps.div_ceil(standing.steps_per_epoch.max(1)))
    }

    /// Gives a run another number of epochs, as --schedule says.
    fn lengthen(
        &self,
        config: &mut Config,
        epochs: u64,
        standing: Standing,
    ) -> Result<Option<String>> {
        let Standing {
            steps_done,
            steps_per_epoch,
        } = standing;
        let before = config.train.epochs;
        if epochs == before {
            if self.schedule.is_some() {
                say(format!(
                    "--schedule has no effect: the run has {} already",
                    count(before, "epoch")
                ));
            }
            return Ok(None);
        }
        let Some(schedule) = self.schedule else {
            return Err(Error::Usage(format!(
                "the run has {} and is to have {epochs}; --schedule says what becomes of its learning rate:\n  \
                 --schedule stretch: from now on as in a run that had {epochs} epochs from its start\n  \
                 --schedule continue: as it was to the end of epoch {before}; then a linear or cosine course begins again, other courses go on",
                count(before, "epoch")
            )));
        };
        let total = |epochs: u64| steps_per_epoch.saturating_mul(epochs);
        if total(epochs) < steps_done {
            return Err(Error::Usage(format!(
                "the run has done {} already, more than {} of {steps_per_epoch}",
                count(steps_done, "step"),
                count(epochs, "epoch")
            )));
        }
        let old = config.clone();
        config.train.epochs = epochs;
        let what = match schedule {
            Schedule::Stretch => "stretched",
            Schedule::Continue if epochs < before => {
                return Err(Error::Usage(format!(
                    "--schedule continue adds epochs to the run's {before}; --schedule stretch makes them fewer"
                )));
            }
            Schedule::Continue => {
                let schedule = &mut config.optimizer.schedule;
                if matches!(schedule.course, Course::Linear | Course::Cosine) {
                    schedule.restarts.push(total(before));
                }
                "continued"
            }
        };
        config.validate()?;
        let rate = |config: &Config, step: u64| {
            let total = total(config.train.epochs);
            config.optimizer.lr(step, steps_per_epoch, total)
        };
        let last = rate(&old, steps_done.saturating_sub(1));
        let next = rate(config, steps_done);
        Ok(Some(format!(
            "schedule: {what} from {before} to {}; the learning rate was {last:.3e} and is {next:.3e} in the next step",
            count(epochs, "epoch")
        )))
    }
}

/// The command with these arguments, with --resume, as it can be typed.
pub(super) fn command_to_resume(arguments: &[String]) -> String {
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
        let standing = Some(Standing {
            steps_done: 9,
            steps_per_epoch: 4,
        });
        let resumed = |args: Args| Ok::<_, Error>(args.resumed_config(&stored, standing)?.0);
        assert_eq!(resumed(begun).unwrap(), stored);
        assert_eq!(resumed(args(&[])).unwrap(), stored);
        let other = args(&["--keep", "5", "--checkpoint-every", "3", "--steps", "9"]);
        let config = resumed(other).unwrap();
        assert_eq!(config.train.keep_checkpoints, 5);
        assert_eq!(config.train.checkpoint_every, 3);
        assert_eq!(config.optimizer, stored.optimizer);
        for (words, key) in [
            (
                ["--lr", "0.5"],
                "optimizer.lr: 0.5 was asked for, the run has 0.25",
            ),
            (["--epochs", "99"], "--schedule stretch"),
            (
                ["--preset", "demo"],
                "train.seed: 1 was asked for, the run has 7",
            ),
            (["--batch-size", "8"], "train.batch_size: 8"),
        ] {
            let error = resumed(args(&words)).unwrap_err();
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
}
