//! What training can make of a data set, said before it begins: `check` and `train` ask the same function.

use crate::base::text::count;
use crate::data::Dataset;
use crate::graph::Op;
use crate::recipe::config::Config;
use crate::{Error, Result};

/// What stands in the way of a recipe on a data set, as far as it can be known before the first step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Prospects {
    /// Why training cannot begin, a sentence each; empty if it can.
    pub refused: Vec<String>,
    /// What is other than expected, a sentence each.
    pub notes: Vec<String>,
}

impl Prospects {
    /// Looks at the labels of `dataset` under the recipe `config`, for a run that has done `steps_done` steps. No image is
    /// read.
    ///
    /// # Errors
    /// A network that makes no sense, or more steps than can be counted.
    pub fn of(config: &Config, dataset: &dyn Dataset, steps_done: u64) -> Result<Self> {
        let mut prospects = Prospects::default();
        let (images, batch) = (dataset.len(), config.train.batch_size);
        let mut refuse = |why: String| prospects.refused.push(why);
        if !has_two_identities(dataset) {
            refuse("there are images of one identity only: nothing can be told apart".into());
        }
        if images < batch {
            refuse(format!(
                "a batch of {batch} needs more than {}: --batch-size makes it smaller",
                count(images, "image")
            ));
        }
        let model = config.model.build()?;
        let normalised = |op: &Op| matches!(op, Op::BatchNorm(_));
        if batch == 1 && model.nodes().iter().any(|node| normalised(&node.op)) {
            refuse(
                "a batch of 1 cannot train a network with batch norm, which sets every image of a batch against the \
                 others: --batch-size 2 or more"
                    .into(),
            );
        }
        if images >= batch && batch > 0 {
            prospects.notes.extend(left_out(images, batch));
        }
        let steps_per_epoch = (images / batch.max(1)) as u64;
        let epochs = config.train.epochs;
        let total = steps_per_epoch.checked_mul(epochs).ok_or_else(|| {
            Error::Usage(format!(
                "{epochs} epochs of {} are too many",
                count(steps_per_epoch, "step")
            ))
        })?;
        let schedule = &config.optimizer.schedule;
        let asked = schedule.warm_up_asked(steps_per_epoch);
        let used = schedule.warm_up(steps_done, steps_per_epoch, total);
        if used < asked && total > 0 {
            prospects.notes.push(format!(
                "a warm-up of {} is more than a third of the run: it is shortened to {used}",
                count(asked, "step")
            ));
        }
        Ok(prospects)
    }

    /// Fails where training cannot begin.
    ///
    /// # Errors
    /// Every reason, in one sentence.
    pub fn accept(&self) -> Result<()> {
        match &self.refused[..] {
            [] => Ok(()),
            refused => Err(Error::Invalid(refused.join("; and "))),
        }
    }
}

fn has_two_identities(dataset: &dyn Dataset) -> bool {
    let mut labels = (0..dataset.len()).map(|index| dataset.label(index));
    let first = labels.next();
    labels.any(|label| Some(label) != first)
}

/// Says so if full batches leave more than a tenth of the images out of each epoch.
fn left_out(images: usize, batch: usize) -> Option<String> {
    let left = images % batch;
    if left * 10 <= images {
        return None;
    }
    let sizes = (batch / 2).max(2)..=batch;
    let better = sizes.rev().min_by_key(|size| images % size)?;
    Some(format!(
        "batches of {batch} leave {} of {} out of each epoch, others each time; --batch-size {better} leaves out {}",
        left,
        count(images, "image"),
        images % better
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Image;

    /// One label an image.
    struct Labels(Vec<u32>);

    impl Dataset for Labels {
        fn len(&self) -> usize {
            self.0.len()
        }

        fn classes(&self) -> usize {
            self.0.iter().max().map_or(0, |label| *label as usize + 1)
        }

        fn label(&self, index: usize) -> u32 {
            self.0[index]
        }

        fn read(&self, _: usize, _: &mut Image) -> Result<()> {
            Err(Error::Invalid("no image is read".into()))
        }

        fn describe(&self, index: usize) -> String {
            index.to_string()
        }
    }

    fn prospects(labels: Vec<u32>, settings: &[&str]) -> Prospects {
        let settings: Vec<String> = settings.iter().map(ToString::to_string).collect();
        let config = Config::load("demo", None, &settings).unwrap();
        Prospects::of(&config, &Labels(labels), 0).unwrap()
    }

    fn people(images: u32) -> Vec<u32> {
        (0..images).map(|index| index % 5).collect()
    }

    #[test]
    fn what_cannot_learn_is_refused() {
        let refused = |labels, settings: &[&str], words: &str| {
            let prospects = prospects(labels, settings);
            assert_eq!(prospects.refused.len(), 1, "{prospects:?}");
            let error = prospects.accept().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        };
        // A second class without an image teaches nothing.
        refused(vec![1; 64], &[], "one identity only");
        refused(people(15), &[], "a batch of 16 needs more than 15 images");
        refused(people(64), &["train.batch_size=1"], "batch norm");
        assert_eq!(prospects(vec![], &[]).refused.len(), 2);
        prospects(people(640), &[]).accept().unwrap();
        prospects(people(640), &["train.batch_size=2"])
            .accept()
            .unwrap();
    }

    #[test]
    fn what_is_other_than_expected_is_said() {
        // Of 3 x 50 steps, 40 are a warm-up.
        assert_eq!(prospects(people(800), &[]).notes, Vec::<String>::new());
        let notes = prospects(people(96), &[]).notes;
        assert_eq!(
            notes,
            ["a warm-up of 40 steps is more than a third of the run: it is shortened to 6"]
        );
        // 96 of 110 are more than nine tenths short of it: 14 are left out.
        let notes = prospects(people(110), &["train.epochs=100"]).notes;
        assert_eq!(
            notes,
            [
                "batches of 16 leave 14 of 110 images out of each epoch, others each time; --batch-size 11 leaves out 0"
            ]
        );
        assert!(
            prospects(people(176), &["train.epochs=100"])
                .notes
                .is_empty()
        );
    }
}
