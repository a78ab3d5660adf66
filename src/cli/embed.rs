//! `arcface-cu embed`: embeddings of test identities, of whole data sets or of any pictures.

use super::counter::counter;
use super::device::{DeviceArgs, Gpus, OnDevice, with_device};
use super::interrupt;
use super::output::{check_folder, grouped, say, warn_unaligned};
use super::source::{self, ImageRoot};
use super::threads::ThreadsArgs;
use super::weights::WeightsArgs;
use crate::backend::Backend;
use crate::base::text::one_line;
use crate::data::Dataset;
use crate::data::fingerprint::Fingerprint;
use crate::embed::{
    self, Embedded, Event, Pictures, SIMILARITY_LIMIT, Selection, Step, Stored, StreamOptions,
    Summary,
};
use crate::embedder::Embedder;
use crate::report::similarity::Means;
use crate::verification::Tta;
use crate::weights::checkpoint::Weights;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// So much work is lost at most where a run is killed.
const SYNC_EVERY: Duration = Duration::from_secs(5);

/// The formats, by their names on the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    /// `embeddings.npy` and `labels.npy`.
    Npy,
    /// `embeddings.safetensors` with both as tensors.
    Safetensors,
}

impl From<Format> for embed::Format {
    fn from(format: Format) -> Self {
        match format {
            Format::Npy => embed::Format::Npy,
            Format::Safetensors => embed::Format::Safetensors,
        }
    }
}

#[derive(Debug, clap::Args)]
#[group(id = "source", required = true, multiple = false, args = ["data", "images"])]
pub(super) struct Args {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Data set of any format that `train` reads. Of it the test identities are embedded, or with --all every image. An
    /// identity's number is its name where all names are numbers, else its place.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    #[command(flatten)]
    root: ImageRoot,
    /// Pictures to embed instead, all of them: files, and folders whose subfolders are one identity each.
    #[arg(long, value_name = "FILE_OR_DIR", num_args = 1.., group = "stream")]
    images: Option<Vec<PathBuf>>,
    /// Embed every image of --data, in order. Default: off, its test identities.
    #[arg(long, group = "stream", conflicts_with_all = ["ids", "per_id", "last_id"])]
    all: bool,
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
    /// Folder for embeddings.npy (unit vectors), labels.npy, files.txt and, of up to 2000 pictures, similarity.png.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// With --all or --images: embeddings.npy and labels.npy, or embeddings.safetensors with both.
    #[arg(long, value_enum, default_value_t = Format::Npy, requires = "stream")]
    format: Format,
    /// With --all or --images: go on with an unfinished run in --out, if there is one. It ends with the same bytes.
    /// Default: off.
    #[arg(long, requires = "stream")]
    resume: bool,
    /// With --all or --images: leave out pictures that cannot be read, and list them in skipped.txt. Default: off,
    /// the first one stops the run.
    #[arg(long, requires = "stream")]
    skip_bad: bool,
    /// Pictures in one pass over the network.
    #[arg(long, default_value_t = 32, value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: u16,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub(super) threads: ThreadsArgs,
}

pub(super) fn run(args: Args, gpus: &impl Gpus) -> Result<()> {
    check_folder("--out", Some(&args.out))?;
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
        let fingerprint = weights.fingerprint();
        let dataset: Arc<dyn Dataset> = match (&args.data, &args.images) {
            (Some(data), _) if args.all => open(data, &args, &weights)?.into(),
            (Some(data), _) => {
                let dataset = open(data, &args, &weights)?;
                let embedded = identities(&mut embedder, data, dataset.into(), &args)?;
                warn_unaligned(embedded.unaligned, embedder.image_size());
                let means = embedded.save(&args.out, &fingerprint, args.tta)?;
                say_means(means);
                say(format!(
                    "{} embeddings of {} identities, {} numbers each, in {}",
                    embedded.labels.len(),
                    embedded.blocks.len(),
                    embedded.dim,
                    args.out.display()
                ));
                return Ok(());
            }
            (None, images) => {
                let pictures = Pictures::open(images.as_deref().unwrap_or(&[]))?;
                source::tell_unused(&pictures);
                Arc::new(pictures)
            }
        };
        stream(&mut embedder, dataset, fingerprint, &args)
    }
}

/// Embeds all pictures, and draws their similarity matrix where they are few.
fn stream<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    dataset: Arc<dyn Dataset>,
    weights: String,
    args: &Args,
) -> Result<()> {
    interrupt::listen()?;
    let _orderly = interrupt::orderly("ending after this batch; once more ends at once");
    let options = StreamOptions {
        weights,
        tta: args.tta,
        format: args.format.into(),
        skip_bad: args.skip_bad,
        resume: args.resume,
        sync_every: SYNC_EVERY,
    };
    let total = dataset.len();
    let (mut progress, mut done) = (None, 0);
    let result = embed::embed_all(embedder, dataset, &args.out, &options, &mut |step| {
        match step {
            Step::Begun(before) => {
                if before > 0 {
                    let (before, total) = (grouped(before as u64), grouped(total as u64));
                    say(format!("going on after {before} of {total} pictures"));
                }
                done = before;
                progress = Some(counter("embed", total - before));
            }
            Step::Done(images) => {
                done += images;
                if let Some(progress) = &mut progress {
                    progress.advance(images as u64);
                }
            }
            Step::Skipped(why) => {
                if let Some(progress) = &mut progress {
                    progress.message(&format!("left out: {}", one_line(why)));
                }
            }
        }
        !interrupt::asked()
    });
    if let Some(progress) = progress
        && result.is_ok()
    {
        progress.finish();
    }
    let Summary {
        rows,
        skipped,
        unaligned,
    } = result.inspect_err(|error| {
        if done > 0 || matches!(error, Error::Interrupted) {
            let (done, total) = (grouped(done as u64), grouped(total as u64));
            let skip = match error {
                Error::Interrupted => "",
                _ => " (with --skip-bad: without pictures that cannot be read)",
            };
            say(format!(
                "{done} of {total} pictures are embedded; the same command with --resume goes on{skip}"
            ));
        }
    })?;
    warn_unaligned(unaligned, embedder.image_size());
    let left_out = match skipped {
        0 => String::new(),
        n => format!("; {} could not be read, see skipped.txt", grouped(n as u64)),
    };
    if rows <= SIMILARITY_LIMIT {
        say_means(Stored::open(&args.out)?.draw_similarity(&args.out)?);
    } else {
        say(format!(
            "no similarity.png: it is drawn of up to {} pictures",
            grouped(SIMILARITY_LIMIT as u64)
        ));
    }
    say(format!(
        "{} embeddings in {}{left_out}",
        grouped(rows as u64),
        args.out.display()
    ));
    Ok(())
}

/// Opens a data set, and says where the network knows its people already.
fn open(data: &Path, args: &Args, weights: &Weights) -> Result<Box<dyn Dataset>> {
    let dataset = source::open(data, &args.root)?;
    if weights.trained_on == Some(Fingerprint::of(&*dataset)) {
        say(format!(
            "warning: the network was trained on these very pictures ({}); they say nothing of people that it has never seen",
            data.display()
        ));
    }
    Ok(dataset)
}

fn say_means(means: Means) {
    let number = |mean: Option<f64>| mean.map_or("none".to_owned(), |m| format!("{m:.3}"));
    say(format!(
        "mean cosine within identities {}, between identities {}",
        number(means.within),
        number(means.between)
    ));
}

fn identities<B: Backend>(
    embedder: &mut Embedder<'_, B>,
    data: &Path,
    dataset: Arc<dyn Dataset>,
    args: &Args,
) -> Result<Embedded> {
    let selection = Selection {
        ids: args.ids,
        per_id: args.per_id,
        last_id: args.last_id,
    };
    embed::embed_identities(
        embedder,
        data,
        dataset,
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
