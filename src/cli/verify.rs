//! `arcface-cu verify`: do two pictures show one person?

use super::device::{DeviceArgs, Gpus, OnDevice, with_device};
use super::landmarks::LandmarksArgs;
use super::output::{say, warn, warn_unaligned};
use super::threads::ThreadsArgs;
use super::threshold::{Threshold, ThresholdArgs, Use};
use super::weights::WeightsArgs;
use crate::Result;
use crate::backend::Backend;
use crate::data::Image;
use crate::data::picture::{self, may_be_aligned};
use crate::embed;
use crate::embed::search;
use crate::verification::Tta;
use crate::weights::checkpoint::Weights;
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The threshold where nothing better is known: the default of InsightFace's own scripts, for its networks.
const UNCALIBRATED: f64 = 1.24;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The first picture: a face, aligned as the network's training pictures are, or with --landmarks any picture of it.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The second picture.
    #[arg(value_name = "B")]
    b: PathBuf,
    #[command(flatten)]
    weights: WeightsArgs,
    #[command(flatten)]
    threshold: ThresholdArgs,
    #[command(flatten)]
    landmarks: LandmarksArgs,
    /// What is done with mirror images: none, flip-sum or flip-concat [default: as --eval, else flip-sum].
    #[arg(long)]
    tta: Option<Tta>,
    /// Print the result as JSON instead of a sentence.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub(super) threads: ThreadsArgs,
}

pub(super) fn run(args: Args, gpus: &impl Gpus) -> Result<()> {
    // What can be wrong with the arguments is said before the network is built.
    let weights = args.weights.read()?;
    let threshold = choose_threshold(&args, &weights)?;
    let images = [decode(&args.a)?, decode(&args.b)?];
    let size = weights.model()?.input_shape().h;
    let images = (args.landmarks).align_pair(images, [&args.a, &args.b], size)?;
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

/// The threshold that is asked for, or one that may be wrong, with a warning.
fn choose_threshold(args: &Args, weights: &Weights) -> Result<Threshold> {
    let fingerprint = weights.fingerprint();
    let chosen = args.threshold.choose(&Use {
        weights: Some(&fingerprint),
        name: &args.weights.file,
        tta: args.tta,
    })?;
    Ok(chosen.unwrap_or_else(|| {
        warn(format!(
            "warning: the threshold {UNCALIBRATED} is not calibrated to this network; give --eval FILE (from \
             `arcface-cu eval --json FILE`) or --threshold"
        ));
        Threshold {
            value: UNCALIBRATED,
            source: "not calibrated".to_owned(),
            tta: None,
        }
    }))
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
        let tta = self.args.tta.or(tta).unwrap_or_default();
        let mut embedder = (self.args.device).embedder(&mut backend, &self.weights, 2)?;
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
            a: self.args.a.to_string_lossy().into_owned(),
            b: self.args.b.to_string_lossy().into_owned(),
            // The lengths are 1 up to a rounding.
            cosine: search::cosine(a, b).clamp(-1.0, 1.0),
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
