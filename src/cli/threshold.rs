//! The distance below which two pictures show one person, for `verify` and `search`.

use super::output::warn;
use crate::base::text::shown;
use crate::data::formats::text::Text;
use crate::verification::{Results, SetResult, Tta};
use crate::{Error, Result};
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, clap::Args)]
pub(super) struct ThresholdArgs {
    /// Squared distance, 0 to 4, below which two pictures show one person [default: that of --eval; without --eval `verify`
    /// takes 1.24, with a warning, since it is not calibrated to the network, and `search` none].
    #[arg(
        long,
        value_name = "T",
        conflicts_with = "eval",
        allow_negative_numbers = true
    )]
    threshold: Option<f64>,
    /// Results that `eval --json` or `eval --report` wrote (eval.json, report.json), whose threshold is taken.
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// Which set of --eval the threshold is of, where it has several.
    #[arg(long, value_name = "NAME", requires = "eval")]
    set: Option<String>,
    /// The threshold of --eval at this false accept rate, the share of pairs of two people that are taken for one: 1e-1,
    /// 1e-2, 1e-3 or 1e-4. In `search` a stranger has a chance with every picture of the gallery. [default: the threshold
    /// with the best accuracy].
    #[arg(long, value_name = "RATE", requires = "eval")]
    far: Option<f64>,
}

/// A threshold, and what it is for.
#[derive(Clone, Debug)]
pub(super) struct Threshold {
    /// A squared distance.
    pub(super) value: f64,
    /// Where it comes from.
    pub(super) source: String,
    /// The treatment of mirror images that it is for, if that is known.
    pub(super) tta: Option<Tta>,
}

/// The embeddings that a threshold is to be used on.
pub(super) struct Use<'a> {
    /// The fingerprint of the weights that made them, if it is known.
    pub(super) weights: Option<&'a str>,
    /// What to call these weights.
    pub(super) name: &'a Path,
    /// How mirror images were used, if that is decided.
    pub(super) tta: Option<Tta>,
}

impl ThresholdArgs {
    /// The file of results that is read.
    pub(super) fn file(&self) -> Option<&Path> {
        self.eval.as_deref()
    }

    /// The threshold that the arguments give, if they give one. Warns where it may not be calibrated to the embeddings.
    ///
    /// # Errors
    /// It is no squared distance; the results cannot be read, are for another treatment of pictures, or lack what is asked
    /// for.
    pub(super) fn choose(&self, of: &Use<'_>) -> Result<Option<Threshold>> {
        match (self.threshold, &self.eval) {
            (Some(value), _) if (0.0..=4.0).contains(&value) => Ok(Some(Threshold {
                value,
                source: "--threshold".to_owned(),
                tta: None,
            })),
            (Some(value), _) => Err(Error::Usage(format!(
                "--threshold {value}: squared distances of unit vectors are from 0 to 4"
            ))),
            (None, Some(path)) => self.of_results(path, of).map(Some),
            (None, None) => Ok(None),
        }
    }

    fn of_results(&self, path: &Path, of: &Use<'_>) -> Result<Threshold> {
        let text = Text::read(path)?;
        let results: Results = serde_json::from_str(text.as_str())
            .map_err(|e| Error::data(path, format!("is not what `eval --json` writes: {e}")))?;
        let names: Vec<&str> = results.sets.iter().map(|set| &set.name[..]).collect();
        let set = match (&self.set, &results.sets[..]) {
            (Some(name), sets) => sets.iter().find(|set| &set.name == name),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let Some(set) = set else {
            let problem = match &self.set {
                Some(name) => format!("has no set {name}; there are: {}", names.join(", ")),
                None => format!(
                    "has several sets; choose one with --set: {}",
                    names.join(", ")
                ),
            };
            return Err(Error::data(path, problem));
        };
        if results.ccrop {
            return Err(Error::data(
                path,
                "has thresholds for pictures that were enlarged and cropped, and here they are taken as they are; evaluate \
                 without --ccrop",
            ));
        }
        if let (Some(asked), Some(found)) = (of.tta, results.tta)
            && asked != found
        {
            return Err(Error::data(
                path,
                format!("has thresholds for --tta {found}, not for {asked}"),
            ));
        }
        let tta = of.tta.or(results.tta);
        if results.tta.is_none() {
            warn(format!(
                "warning: {} does not say what was done with mirror images; its threshold is taken to be for --tta {}",
                shown(path),
                tta.unwrap_or_default()
            ));
        }
        match (&results.weights, of.weights) {
            (None, _) => warn(format!(
                "warning: {} does not say which weights it is of; its threshold may not be calibrated to {}",
                shown(path),
                shown(of.name)
            )),
            (Some(found), Some(used)) if found != used => warn(format!(
                "warning: {} is of other weights than {}",
                shown(path),
                shown(of.name)
            )),
            _ => {}
        }
        let (value, at) = self.of_set(path, set)?;
        Ok(Threshold {
            value,
            source: format!("{}, {}{at}", shown(path), set.name),
            tta,
        })
    }

    /// The threshold of a set, and at which rate it is, in words.
    fn of_set(&self, path: &Path, set: &SetResult) -> Result<(f64, String)> {
        let found = &set.verification;
        let Some(far) = self.far else {
            return Ok((found.threshold, String::new()));
        };
        let rates: Vec<&str> = found.far_threshold.keys().map(String::as_str).collect();
        let is_asked = |(rate, _): &(&String, &f64)| rate.parse() == Ok(far);
        let Some((rate, &value)) = found.far_threshold.iter().find(is_asked) else {
            let problem = match rates[..] {
                [] => format!(
                    "holds no thresholds at false accept rates for {}: this version's `eval --json` writes them",
                    set.name
                ),
                _ => format!(
                    "has no threshold at the false accept rate {far} for {}; there are those at {}",
                    set.name,
                    rates.join(", ")
                ),
            };
            return Err(Error::data(path, problem));
        };
        if far * (found.impostor_pairs as f64) < 1.0 {
            warn(format!(
                "warning: {} has {} pairs of two people, too few to tell a false accept rate of {rate} from none",
                set.name, found.impostor_pairs
            ));
        }
        Ok((value, format!(" at false accept rate {rate}")))
    }
}
