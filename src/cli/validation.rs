//! Validation while a network trains: `train --eval`.

use crate::Result;
use crate::backend::Backend;
use crate::base::text::one_line;
use crate::eval::{self, EvalOptions, EvalSet};
use crate::train::Trainer;
use crate::verification::SetResult;
use std::path::{Path, PathBuf};

/// Pictures in one pass over the network.
const BATCH: usize = 32;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ValidationArgs {
    /// Evaluation sets to verify after each epoch, named as for `eval` and judged with its defaults. Default: none.
    #[arg(long, value_name = "PATH")]
    eval: Option<PathBuf>,
    /// Sets to verify, separated by commas. Default: lfw,agedb_30,cfp_fp as far as they are there; where none of them
    /// is, every set.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "eval")]
    eval_sets: Option<Vec<String>>,
}

/// The sets, open.
pub(super) struct Validator {
    sets: Vec<EvalSet>,
    /// Whether it was told which pictures are resized.
    told: bool,
}

impl Validator {
    /// Opens what the arguments name, which may be nothing. Paths in a pairs file start from `image_root`, if it is given.
    ///
    /// # Errors
    /// A set is not there or cannot be read.
    pub(super) fn open(args: &ValidationArgs, image_root: Option<&Path>) -> Result<Self> {
        let files = match &args.eval {
            Some(folder) => eval::find(folder, args.eval_sets.as_deref())?,
            None => Vec::new(),
        };
        Ok(Validator {
            sets: (files.iter())
                .map(|files| EvalSet::open(files, image_root))
                .collect::<Result<_>>()?,
            told: false,
        })
    }

    /// A line for each set with pictures that are resized, on the first call after [`run`](Self::run); nothing on later calls.
    pub(super) fn resized(&mut self) -> Vec<String> {
        match std::mem::replace(&mut self.told, true) {
            true => Vec::new(),
            false => self.sets.iter().filter_map(resized).collect(),
        }
    }

    /// Verifies every set with the network as it is now; tells `status` how far it has come. A set that fails (a
    /// network in its first epochs may give all pictures the same embedding) is the caller's to tell: it is no reason to
    /// end hours of training.
    ///
    /// # Errors
    /// The network cannot be set up.
    pub(super) fn run<B: Backend>(
        &mut self,
        trainer: &mut Trainer<B>,
        mut status: impl FnMut(&str),
    ) -> Result<Vec<Result<SetResult>>> {
        if self.sets.is_empty() {
            return Ok(Vec::new());
        }
        let mut embedder = trainer.embedder(BATCH)?;
        let options = EvalOptions::default();
        let mut results = Vec::new();
        for set in &mut self.sets {
            let (name, total, mut done) = (one_line(set.name()), set.images(), 0);
            let evaluation = eval::evaluate(&mut embedder, set, &options, &mut |images| {
                done += images;
                status(&format!("verifying {name} {done}/{total}"));
            });
            results.push(evaluation.map(|evaluation| evaluation.result));
        }
        Ok(results)
    }
}

/// How many of a set's pictures had another size than they were read in, if any had.
pub(super) fn resized(set: &EvalSet) -> Option<String> {
    let (resized, images, side) = (set.resized(), set.images(), set.side());
    let name = set.name();
    let line =
        format!("{name}: {resized} of {images} pictures are resized to {side}x{side} pixels");
    (resized > 0).then_some(line)
}

/// `lfw: accuracy 84.33 % +- 1.52, ...`
pub(super) fn line(result: &SetResult) -> String {
    let v = &result.verification;
    format!(
        "{}: accuracy {:.2} % +- {:.2}, threshold {:.2}, AUC {:.4}, EER {:.2} % ({} pairs)",
        one_line(&result.name),
        100.0 * v.accuracy,
        100.0 * v.accuracy_std,
        v.threshold,
        v.auc,
        100.0 * v.eer,
        v.pairs
    )
}
