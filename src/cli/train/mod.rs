//! `train`: fits a network to faces, with progress, metrics and checkpoints on the way.

mod first_loss;
mod resume;
mod session;

use super::device::{DeviceArgs, Gpus, with_device};
use super::import::tell_rest;
use super::interrupt;
use super::output::{check_late_folder, count, say};
use super::recipe::{RecipeArgs, presets_table, whole_number};
use super::run_folder::RunFolder;
use super::source::{self, ImageRoot};
use super::threads::ThreadsArgs;
use super::validation::{ValidationArgs, Validator};
use super::weights::{self, describe_input};
use crate::base::text::shown;
use crate::data::Dataset;
use crate::recipe::config::{Config, NetworkConfig};
use crate::train::Prospects;
use crate::weights::checkpoint::Checkpoint;
use crate::weights::import::{self, Start};
use crate::{Error, Result};
use resume::{Schedule, Standing};
use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
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
    /// Folder for config.toml, metrics.csv, eval.csv, checkpoints/, weights.safetensors and, with --eval,
    /// weights.best.safetensors. Default: runs/PRESET.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Continue from the newest checkpoint in --out, to the same bits as a run that was never stopped. Without a
    /// checkpoint, start from the beginning. Default: off, and a folder that holds a run is refused.
    #[arg(long)]
    resume: bool,
    /// With --resume and more epochs or steps than the run had: how the learning rate goes on. Default: none, and another
    /// length is refused.
    #[arg(long, value_enum, requires = "resume")]
    schedule: Option<Schedule>,
    /// Start from the weights in FILE, of any kind that `import` reads, or in a run's folder, instead of random ones. If
    /// the file holds a network of its own (layers that are no preset's), that is the run's. A checkpoint of another run also gives the class rows of the identities with the same names; all other class rows start from random numbers.
    /// Tensors that the file lacks, or has in another shape, are listed and start from random numbers too (an ONNX graph
    /// must be the whole network). A resumed run ignores this. Default: none.
    #[arg(long, value_name = "FILE")]
    init: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Passes over the data. Default: the preset's.
    #[arg(long, value_name = "N", value_parser = whole_number)]
    epochs: Option<u64>,
    /// Learning rate before the schedule. Default: the preset's.
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    lr: Option<f32>,
    /// Stop when the whole run has done N steps; the schedule stays that of all epochs, which must have as many. Default: the
    /// end of the last epoch.
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
    #[command(flatten)]
    pub(super) threads: ThreadsArgs,
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
    let device = args.device.device;
    with_device(device, gpus, Prepared::new(args)?)
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
            self.device.precision_setting(),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// A run that can begin, as far as it can be known without a device.
struct Prepared {
    args: Args,
    folder: RunFolder,
    /// Keeps other processes out of the folder; none: it is not there yet.
    lock: Option<File>,
    /// What --resume goes on from.
    checkpoint: Option<(PathBuf, Checkpoint)>,
    config: Config,
    dataset: Arc<dyn Dataset>,
    validator: Validator,
    /// What --init gives a new run.
    start: Option<Start>,
    /// What there is to say of the run before it begins.
    notes: Vec<String>,
    /// Whether it is of another length than its checkpoint.
    lengthened: bool,
    last_step: u64,
}

impl Prepared {
    /// Finds and checks everything that the arguments name.
    fn new(args: Args) -> Result<Self> {
        let folder = match &args.out {
            Some(out) => out.clone(),
            None => PathBuf::from("runs").join(args.recipe.preset()?),
        };
        check_late_folder("--out", Some(&folder))?;
        source::refuse_within(&folder, args.data())?;
        check_late_folder("--tensorboard", args.tensorboard.as_deref())?;
        let folder = RunFolder::new(folder);
        // A folder that is not there yet is made, and taken, when there is something to put into it.
        let lock = folder.path().exists().then(|| folder.lock()).transpose()?;
        if !args.resume && folder.has_run() {
            return Err(Error::Usage(format!(
                "{} already holds a run: --resume goes on with it, another --out begins a new one",
                shown(folder.path())
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
        let (config, changed) = match &checkpoint {
            Some((_, checkpoint)) => {
                let stored = &checkpoint.weights.config;
                let batch = stored.train.batch_size.max(1);
                let standing = Standing {
                    steps_done: checkpoint.steps_done,
                    steps_per_epoch: (checkpoint.images / batch) as u64,
                };
                args.resumed_config(stored, Some(standing))?
            }
            None => match folder.config()? {
                Some(stored) => args.resumed_config(&stored, None)?,
                None => (args.config()?, None),
            },
        };
        let dataset: Arc<dyn Dataset> = Arc::from(source::open(args.data(), &args.root)?);
        let validator = Validator::open(&args.validation, args.root.image_root.as_deref())?;
        let steps_done = checkpoint.as_ref().map_or(0, |(_, c)| c.steps_done);
        let prospects = Prospects::of(&config, &*dataset, steps_done)?;
        prospects.accept()?;
        let last_step = args.last_step(&config, dataset.len())?;
        let start = match &checkpoint {
            Some(_) => None,
            None => args.start(&config)?,
        };
        let lengthened = changed.is_some();
        let mut notes = prospects.notes;
        notes.extend(changed);
        Ok(Prepared {
            args,
            folder,
            lock,
            checkpoint,
            config,
            dataset,
            validator,
            start,
            notes,
            lengthened,
            last_step,
        })
    }
}

impl Args {
    fn patience(&self) -> Option<u64> {
        self.validation.patience
    }

    fn data(&self) -> &Path {
        (self.data.as_deref()).expect("the parser requires --data")
    }

    /// The step to stop after.
    ///
    /// # Errors
    /// The run has fewer than --steps asks for.
    fn last_step(&self, config: &Config, images: usize) -> Result<u64> {
        let (epochs, batch) = (config.train.epochs, config.train.batch_size);
        let steps_per_epoch = (images / batch) as u64;
        // More than fit are refused with the run.
        let total = steps_per_epoch.saturating_mul(epochs);
        match self.steps {
            Some(steps) if steps > total => Err(Error::Usage(format!(
                "--steps {steps} is more than the run's {} in {}; --epochs {} has as many",
                count(total, "step"),
                count(epochs, "epoch"),
                steps.div_ceil(steps_per_epoch)
            ))),
            steps => Ok(steps.unwrap_or(total)),
        }
    }

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
            && let Some((layers, input)) = import::own_network(&weights::find(path)?)?
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
        let path = &weights::find(path)?;
        let start = import::start(path, config, config.train.seed)?;
        say(format!("beginning with {}:", shown(path)));
        weights::warn_of(path, &start.notes);
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
}

/// The key of the input transform in the configuration's `model`.
const INPUT: &str = "input";

/// Whether keys of the configuration's `model` say which network it is.
fn names_network(named: &BTreeSet<String>) -> bool {
    named.iter().any(|key| key != INPUT)
}
