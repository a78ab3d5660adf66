//! `arcface-cu embed`: embeddings of test identities or of any pictures, and their similarity matrix.

use super::counter::counter;
use super::device::{DeviceArgs, Gpus, OnDevice, with_device};
use super::output::say;
use super::source::{self, ImageRoot};
use super::weights::WeightsArgs;
use crate::Result;
use crate::backend::Backend;
use crate::checkpoint::Weights;
use crate::embed::{self, Embedded, Event, Selection};
use crate::embedder::Embedder;
use crate::verification::Tta;
use std::path::{Path, PathBuf};

#[derive(Debug, clap::Args)]
#[group(id = "source", required = true, multiple = false, args = ["data", "images"])]
pub(super) struct Args {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Data set of test identities, of any format that `train` reads. Their numbers are the identities' names where those are numbers, else their places.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    #[command(flatten)]
    root: ImageRoot,
    /// Pictures to embed instead: files, and folders whose subfolders are one identity each.
    #[arg(long, value_name = "FILE_OR_DIR", num_args = 1..)]
    images: Option<Vec<PathBuf>>,
    /// How many identities are embedded, from the last one downwards.
    #[arg(
        long,
        default_value_t = 20,
        value_name = "N",
        conflicts_with = "images"
    )]
    ids: usize,
    /// How many images of each; an identity with fewer is skipped.
    #[arg(
        long,
        default_value_t = 20,
        value_name = "N",
        conflicts_with = "images"
    )]
    per_id: usize,
    /// The number of the identity to begin with [default: the highest].
    #[arg(long, value_name = "N", conflicts_with = "images")]
    last_id: Option<u64>,
    /// What is done with mirror images: none, flip-sum (the sum of both embeddings) or flip-concat (both, one after the
    /// other).
    #[arg(long, default_value_t = Tta::FlipSum)]
    tta: Tta,
    /// Folder for embeddings.npy (unit vectors), labels.npy, files.txt and similarity.png.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Pictures in one pass over the network.
    #[arg(long, default_value_t = 32, value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: u16,
    #[command(flatten)]
    device: DeviceArgs,
}

pub(super) fn run(args: Args, gpus: &impl Gpus) -> Result<()> {
    let weights = args.weights.load()?;
    with_device(args.device.device, gpus, Task { args, weights })
}

struct Task {
    args: Args,
    weights: Weights,
}

impl OnDevice for Task {
    fn run<B: Backend>(self, mut backend: B) -> Result<()> {
        let Task { args, weights } = self;
        let mut embedder = Embedder::new(&mut backend, &weights, usize::from(args.batch_size))?;
        let embedded = match (&args.data, &args.images) {
            (Some(data), _) => identities(&mut embedder, data, &args)?,
            (None, images) => pictures(&mut embedder, images.as_deref().unwrap_or(&[]), args.tta)?,
        };
        let means = embedded.save(&args.out)?;
        let number = |mean: Option<f64>| mean.map_or("none".to_owned(), |m| format!("{m:.3}"));
        say(format!(
            "mean cosine within identities {}, between identities {}",
            number(means.within),
            number(means.between)
        ));
        say(format!(
            "{} embeddings of {} identities, {} numbers each, in {}",
            embedded.labels.len(),
            embedded.blocks.len(),
            embedded.dim,
            args.out.display()
        ));
        Ok(())
    }
}

fn identities<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    data: &Path,
    args: &Args,
) -> Result<Embedded> {
    let dataset = source::open_with_gaps(data, &args.root)?;
    let selection = Selection {
        ids: args.ids,
        per_id: args.per_id,
        last_id: args.last_id,
    };
    embed::embed_identities(
        embedder,
        data,
        &*dataset,
        &selection,
        args.tta,
        &mut |event| match event {
            Event::Done(id) => say(format!("ID:{id} Embedding done.")),
            Event::TooFew(id) => say(format!("Skipping ID:{id}.")),
            Event::Missing(from, to) if from - to < LONG_GAP => {
                (to..=from)
                    .rev()
                    .for_each(|id| say(format!("Skipping ID:{id}.")));
            }
            Event::Missing(from, to) => say(format!("Skipping ID:{from} to ID:{to}.")),
        },
    )
}

/// Gaps in the numbers shorter than this have a line for each number.
const LONG_GAP: u64 = 100;

fn pictures<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    paths: &[PathBuf],
    tta: Tta,
) -> Result<Embedded> {
    let groups = embed::group_pictures(paths)?;
    let total = groups.iter().map(|g| g.files.len()).sum();
    let mut counter = counter("embed", total);
    let embedded = embed::embed_groups(embedder, &groups, tta, &mut |images| {
        counter.advance(images as u64);
    })?;
    counter.finish();
    Ok(embedded)
}
