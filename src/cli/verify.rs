//! `arcface-cu verify`: do two pictures show one person?

use super::device::{DeviceArgs, Gpus, OnDevice, with_device};
use super::output::{say, warn, warn_unaligned};
use super::weights::WeightsArgs;
use crate::backend::Backend;
use crate::data::Image;
use crate::data::picture::{self, may_be_aligned};
use crate::embed;
use crate::embed::search;
use crate::embedder::Embedder;
use crate::verification::{Results, Tta};
use crate::weights::checkpoint::Weights;
use crate::{Error, Result};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// The threshold where nothing better is known: the default of InsightFace's own scripts, for its networks.
const UNCALIBRATED: f64 = 1.24;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The first picture: a face, aligned as the network's training pictures are.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The second picture.
    #[arg(value_name = "B")]
    b: PathBuf,
    #[command(flatten)]
    weights: WeightsArgs,
    /// Squared distance, 0 to 4, below which two pictures show one person [default: the threshold of --eval; without
    /// --eval 1.24, with a warning, since it is not calibrated to the network].
    #[arg(long, value_name = "T", conflicts_with = "eval")]
    threshold: Option<f64>,
    /// Results that `eval --json` or `eval --report` wrote (eval.json, report.json), whose threshold is taken.
    #[arg(long, value_name = "FILE")]
    eval: Option<PathBuf>,
    /// Which set of --eval the threshold is of, where it has several.
    #[arg(long, value_name = "NAME", requires = "eval")]
    set: Option<String>,
    /// What is done with mirror images: none, flip-sum or flip-concat [default: as --eval, else flip-sum].
    #[arg(long)]
    tta: Option<Tta>,
    /// Print the result as JSON instead of a sentence.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: Args, gpus: &impl Gpus) -> Result<()> {
    // What can be wrong with the arguments is said before the network is built.
    let weights = args.weights.read()?;
    let threshold = Threshold::choose(&args, &weights)?;
    let images = [decode(&args.a)?, decode(&args.b)?];
    let device = args.device.device;
    let task = Task {
        args,
        weights,
        threshold,
        images,
    };
    with_device(device, gpus, task)
}

fn decode(path: &Path) -> Result<Image> {
    let mut picture = Image::default();
    picture::read(path, &mut picture)?;
    Ok(picture)
}

/// The threshold, where it comes from, and the treatment of mirror images that it is for.
struct Threshold {
    value: f64,
    source: String,
    tta: Tta,
}

impl Threshold {
    fn choose(args: &Args, weights: &Weights) -> Result<Self> {
        let tta = args.tta.unwrap_or_default();
        if let Some(path) = &args.eval {
            return Self::of_results(path, args, weights);
        }
        match args.threshold {
            Some(value) if (0.0..=4.0).contains(&value) => Ok(Threshold {
                value,
                source: "--threshold".to_owned(),
                tta,
            }),
            Some(value) => Err(Error::Usage(format!(
                "--threshold {value}: squared distances of unit vectors are from 0 to 4"
            ))),
            None => {
                warn(format!(
                    "warning: the threshold {UNCALIBRATED} is not calibrated to this network; give --eval FILE (from \
                     `arcface-cu eval --json FILE`) or --threshold"
                ));
                Ok(Threshold {
                    value: UNCALIBRATED,
                    source: "not calibrated".to_owned(),
                    tta,
                })
            }
        }
    }

    fn of_results(path: &Path, args: &Args, weights: &Weights) -> Result<Self> {
        let text = fs::read(path).map_err(Error::io("reading", path))?;
        let results: Results = serde_json::from_slice(&text)
            .map_err(|e| Error::data(path, format!("is not what `eval --json` writes: {e}")))?;
        let names: Vec<&str> = results.sets.iter().map(|set| &set.name[..]).collect();
        let set = match (&args.set, &results.sets[..]) {
            (Some(name), sets) => sets.iter().find(|set| &set.name == name),
            (None, [only]) => Some(only),
            (None, _) => None,
        };
        let Some(set) = set else {
            let problem = match &args.set {
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
                "has thresholds for pictures that were enlarged and cropped, and verify takes them as they are; evaluate \
                 without --ccrop",
            ));
        }
        let tta = match (args.tta, results.tta) {
            (Some(asked), Some(found)) if asked != found => {
                return Err(Error::data(
                    path,
                    format!("has thresholds for --tta {found}, not for {asked}"),
                ));
            }
            (asked, found) => asked.or(found).unwrap_or_default(),
        };
        if results.tta.is_none() {
            warn(format!(
                "warning: {} does not say what was done with mirror images; its threshold is taken to be for --tta {tta}",
                path.display()
            ));
        }
        match &results.weights {
            None => warn(format!(
                "warning: {} does not say which weights it is of; its threshold may not be calibrated to {}",
                path.display(),
                args.weights.file.display()
            )),
            Some(found) if *found != weights.fingerprint() => warn(format!(
                "warning: {} is of other weights than {}",
                path.display(),
                args.weights.file.display()
            )),
            Some(_) => {}
        }
        Ok(Threshold {
            value: set.verification.threshold,
            source: format!("{}, {}", path.display(), set.name),
            tta,
        })
    }
}

#[derive(Serialize)]
struct Answer {
    a: String,
    b: String,
    cosine: f64,
    /// Squared, of unit vectors.
    distance: f64,
    threshold: f64,
    threshold_source: String,
    tta: Tta,
    same: bool,
}

struct Task {
    args: Args,
    weights: Weights,
    threshold: Threshold,
    images: [Image; 2],
}

impl OnDevice for Task {
    fn run<B: Backend>(self, mut backend: B) -> Result<()> {
        let Threshold { value, source, tta } = self.threshold;
        let mut embedder = Embedder::new(&mut backend, &self.weights, 2)?;
        let size = embedder.image_size();
        let unaligned = |image: &&Image| !may_be_aligned(image.width, image.height, size);
        warn_unaligned(self.images.iter().filter(unaligned).count(), size);
        let rows = embed::embed_images(&mut embedder, &self.images, tta)?;
        let (a, b) = rows.split_at(rows.len() / 2);
        let squares = a.iter().zip(b);
        let distance: f64 = squares
            .map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2))
            .sum();
        let answer = Answer {
            a: self.args.a.display().to_string(),
            b: self.args.b.display().to_string(),
            cosine: search::cosine(a, b),
            distance,
            threshold: value,
            threshold_source: source,
            tta,
            same: distance < value,
        };
        if self.args.json {
            say(serde_json::to_string(&answer).expect("plain data"));
            return Ok(());
        }
        let (verdict, sign) = match answer.same {
            true => ("the same person", "<"),
            false => ("different people", ">="),
        };
        say(format!(
            "{verdict}: squared distance {distance:.4} {sign} threshold {value:.4} ({}), cosine {:.4}, tta {tta}",
            answer.threshold_source, answer.cosine
        ));
        Ok(())
    }
}
