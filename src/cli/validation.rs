//! Validation while a network trains: `train --eval`.

use super::interrupt;
use super::output::count;
use super::run_folder::BEST;
use crate::backend::Backend;
use crate::base::text::one_line;
use crate::data::{Dataset, Image};
use crate::eval::{self, EvalOptions, EvalSet};
use crate::train::Trainer;
use crate::verification::{self, SetResult};
use crate::weights::checkpoint::{Best, Verified};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Pictures in one pass over the network.
const BATCH: usize = 32;

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ValidationArgs {
    /// Evaluation sets to verify after each epoch, named as for `eval` and judged with its defaults. Default: none.
    #[arg(long, value_name = "PATH")]
    eval: Option<PathBuf>,
    /// Sets to verify, separated by commas. Default: those of lfw,agedb_30,cfp_fp that are there; if none is, every
    /// set.
    #[arg(long, value_name = "NAMES", value_delimiter = ',', requires = "eval")]
    eval_sets: Option<Vec<String>>,
    /// Stop after N evaluations in a row that are not better than the best before them, by the mean accuracy over the sets.
    /// Default: never.
    #[arg(long, value_name = "N", requires = "eval", value_parser = clap::value_parser!(u64).range(1..))]
    pub(super) patience: Option<u64>,
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

    /// Whether there is a set to verify.
    pub(super) fn has_sets(&self) -> bool {
        !self.sets.is_empty()
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
    /// The network cannot be set up, or the user asks for an end.
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
                match interrupt::asked() {
                    true => Err(Error::Interrupted),
                    false => Ok(()),
                }
            });
            if let Err(Error::Interrupted) = evaluation {
                return Err(Error::Interrupted);
            }
            results.push(evaluation.map(|evaluation| evaluation.result));
        }
        Ok(results)
    }
}

/// What an evaluation means for the best weights.
#[derive(Debug, PartialEq)]
pub(super) struct Outcome {
    /// Whether the weights are the best so far, or as good.
    pub(super) keep: bool,
    /// What there is to say.
    pub(super) said: Vec<String>,
}

/// Compares the results after `step` with the best so far, by the mean accuracy over the sets. A set that could not be verified
/// makes the evaluation count as not better; results of other sets begin again.
pub(super) fn judge(verified: &mut Verified, step: u64, results: &[Result<SetResult>]) -> Outcome {
    let mut said = Vec::new();
    let mut keep = false;
    let whole: Option<Vec<&SetResult>> = results.iter().map(|r| r.as_ref().ok()).collect();
    match whole {
        _ if results.is_empty() => {}
        None => verified.since += 1,
        Some(results) => {
            let sets: Vec<String> = results.iter().map(|r| r.name.clone()).collect();
            let sum: f64 = results.iter().map(|r| r.verification.accuracy).sum();
            let accuracy = (sum / results.len() as f64) as f32;
            if let Some(best) = verified.best.take_if(|best| best.sets != sets) {
                verified.since = 0;
                said.push(format!(
                    "the best so far, of step {}, was that of other sets ({}): it is looked for again",
                    best.step,
                    best.sets.join(", ")
                ));
            }
            let before = verified.best.as_ref().map(|best| best.accuracy);
            let better = before.is_none_or(|before| accuracy > before);
            verified.since = if better { 0 } else { verified.since + 1 };
            keep = before.is_none_or(|before| accuracy >= before);
            if keep {
                said.push(format!(
                    "the best so far: {:.2} % in the mean, kept in {BEST}",
                    100.0 * accuracy
                ));
                verified.best = Some(Best {
                    step,
                    accuracy,
                    sets,
                });
            }
        }
    }
    Outcome { keep, said }
}

/// Pictures that tell whether a network has collapsed.
const SAMPLES: usize = 64;

/// A warning if the network gives pictures of its own training data one and the same embedding, or if that cannot be found out.
pub(super) fn collapsed<B: Backend>(
    trainer: &mut Trainer<B>,
    dataset: &dyn Dataset,
) -> Option<String> {
    let images = dataset.len();
    let samples = SAMPLES.min(images);
    let mut pictures = Vec::new();
    for sample in 0..samples {
        let mut picture = Image::default();
        // What cannot be read has been told.
        if dataset
            .read(sample * images / samples, &mut picture)
            .is_ok()
        {
            pictures.push(picture);
        }
    }
    if pictures.len() < 2 {
        return None;
    }
    let mut embed = || {
        let mut embedder = trainer.embedder(BATCH)?;
        let mut embeddings = Vec::new();
        for pictures in pictures.chunks(BATCH) {
            embeddings.extend(embedder.embed(pictures)?);
        }
        Ok::<_, Error>((embeddings, embedder.size()))
    };
    let (embeddings, size) = match embed() {
        Ok(found) => found,
        Err(error) => {
            return Some(format!(
                "warning: whether the network has collapsed cannot be told: {error}"
            ));
        }
    };
    let error = verification::not_collapsed(&embeddings, size).err()?;
    Some(format!(
        "warning: {error} (asked with {} of the training data). A lower learning rate or a longer warm-up may help",
        count(pictures.len(), "picture")
    ))
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
        "{}: accuracy {:.2} % +- {:.2}, threshold {:.2}, AUC {:.4}, EER {:.2} % ({})",
        one_line(&result.name),
        100.0 * v.accuracy,
        100.0 * v.accuracy_std,
        v.threshold,
        v.auc,
        100.0 * v.eer,
        count(v.pairs, "pair")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verification::verify;

    /// A result in which `wrong` pairs are misjudged at every threshold, each in another fold.
    fn result(name: &str, wrong: usize) -> Result<SetResult> {
        let same: Vec<bool> = (0..40).map(|k: usize| k.is_multiple_of(2)).collect();
        let distance = |k: usize| {
            if k.is_multiple_of(2) == (k / 2 >= wrong) {
                0.5
            } else {
                1.5
            }
        };
        let distances: Vec<f64> = (0..40).map(distance).collect();
        Ok(SetResult {
            name: name.into(),
            verification: verify(&distances, &same)?,
        })
    }

    #[test]
    fn the_best_is_by_the_mean_and_the_later_of_equals() {
        let mut verified = Verified::default();
        let failed = || Err(Error::Invalid("collapsed".into()));
        let mut at = |step, results: &[Result<SetResult>]| {
            let keep = judge(&mut verified, step, results).keep;
            let best = verified.best.as_ref().map(|best| best.step);
            (keep, best, verified.since)
        };
        assert_eq!(at(1, &[]), (false, None, 0));
        assert_eq!(at(2, &[failed()]), (false, None, 1));
        let two = |a, b| [result("a", a), result("b", b)];
        assert_eq!(at(3, &two(4, 4)), (true, Some(3), 0));
        // Better in one, worse in the other.
        assert_eq!(at(4, &two(2, 5)), (true, Some(4), 0));
        assert_eq!(at(5, &two(2, 6)), (false, Some(4), 1));
        assert_eq!(at(6, &[result("a", 0), failed()]), (false, Some(4), 2));
        // Equal: the later is kept, and it is no progress.
        assert_eq!(at(7, &two(2, 5)), (true, Some(7), 3));
        assert_eq!(at(8, &two(1, 1)), (true, Some(8), 0));
        // Another set begins again.
        assert_eq!(at(9, &[result("c", 5)]), (true, Some(9), 0));
    }
}
