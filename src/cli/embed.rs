//! `arcface-cu embed`: embeddings of whole data sets, of test identities or of any pictures.

use super::counter::counter;
use super::device::{DeviceArgs, Gpus, OnDevice, with_device};
use super::interrupt;
use super::landmarks::LandmarksArgs;
use super::output::{check_folder, count, grouped, say, warn_unaligned};
use super::source::{self, ImageRoot};
use super::threads::ThreadsArgs;
use super::weights::WeightsArgs;
use crate::backend::Backend;
use crate::base::text::{one_line, shown};
use crate::data::Dataset;
use crate::data::fingerprint::Fingerprint;
use crate::embed::{
    self, Begun, Event, Pictures, Run, SIMILARITY_LIMIT, Selection, Step, Stored, StreamOptions,
    Summary,
};
use crate::report::progress::Counter;
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
    /// A data set in any format that `train` reads. All its images are embedded, in order; with --ids, test identities
    /// only. An identity's number is its name where all names are numbers, else its place.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    #[command(flatten)]
    root: ImageRoot,
    /// Pictures to embed instead, all of them: files, and folders whose subfolders are one identity each. Loose pictures
    /// are no identities.
    #[arg(long, value_name = "FILE_OR_DIR", num_args = 1..)]
    images: Option<Vec<PathBuf>>,
    /// Embed every image of --data. It is what happens without --ids.
    #[arg(long, conflicts_with = "ids")]
    all: bool,
    /// Embed so many identities only, from the last one downwards. Default: none, every image is embedded.
    #[arg(long, value_name = "N", conflicts_with_all = ["images", "skip_bad", "append"])]
    ids: Option<usize>,
    /// How many images of each of --ids; an identity with fewer is passed over.
    #[arg(long, default_value_t = 20, value_name = "N", requires = "ids")]
    per_id: usize,
    /// The number of the identity to begin --ids with [default: the highest].
    #[arg(long, value_name = "N", requires = "ids")]
    last_id: Option<u64>,
    #[command(flatten)]
    landmarks: LandmarksArgs,
    /// What is done with mirror images: none, flip-sum (the sum of both embeddings) or flip-concat (both, one after the
    /// other).
    #[arg(long, default_value_t = Tta::FlipSum)]
    tta: Tta,
    /// Folder for embeddings.npy (unit vectors), labels.npy, labels.tsv, files.txt and, of up to 2000 pictures,
    /// similarity.png. A finished gallery in it is refused without --append or --overwrite.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// embeddings.npy and labels.npy, or embeddings.safetensors with both.
    #[arg(long, value_enum, default_value_t = Format::Npy, conflicts_with = "append")]
    format: Format,
    /// Go on with an unfinished run in --out, if there is one. It ends with the same bytes. Default: off.
    #[arg(long)]
    resume: bool,
    /// Add to the gallery in --out, if there is one, the pictures that it does not hold yet. It stands as it is until all
    /// of them are embedded. Default: off.
    #[arg(long)]
    append: bool,
    /// Replace the gallery or the unfinished run in --out, if there is one. A gallery stands until the new one is complete.
    /// Default: off.
    #[arg(long, conflicts_with_all = ["resume", "append"])]
    overwrite: bool,
    /// Leave out pictures that cannot be read, and list them in skipped.txt. Default: off, the first one stops the run.
    #[arg(long)]
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

impl Args {
    fn options(&self, weights: String) -> StreamOptions {
        StreamOptions {
            weights,
            tta: self.tta,
            format: self.format.into(),
            skip_bad: self.skip_bad,
            resume: self.resume,
            append: self.append,
            overwrite: self.overwrite,
            sync_every: SYNC_EVERY,
        }
    }
}

pub(super) fn run(args: Args, gpus: &impl Gpus) -> Result<()> {
    check_folder("--out", Some(&args.out))?;
    for data in args.data.iter().chain(args.images.iter().flatten()) {
        source::refuse_within(&args.out, data)?;
    }
    embed::may_begin(&args.out, &args.options(String::new()))?;
    let weights = args.weights.load()?;
    // What is wrong with the data is said before the network is built.
    let (pictures, identities) = open(&args, &weights)?;
    let options = args.options(weights.fingerprint());
    let dim = (args.tta).row_length(weights.config.model.embedding_size()?);
    let batch = usize::from(args.batch_size);
    match embed::begin(pictures, &args.out, &options, batch, dim)? {
        Begun::Finished(summary) => report(&args, &weights, &summary),
        Begun::Run(run) => {
            let device = args.device.device;
            let task = Task {
                args,
                weights,
                run: *run,
                identities,
            };
            with_device(device, gpus, task)
        }
    }
}

/// The pictures to embed, and what becomes of each identity where some are chosen.
fn open(args: &Args, weights: &Weights) -> Result<(Arc<dyn Dataset>, Identities)> {
    let dataset: Arc<dyn Dataset> = match &args.data {
        Some(data) => {
            let dataset = source::open(data, &args.root)?;
            // For a warning alone, a picture that cannot be read is no trouble.
            if weights.trained_on == Some(Fingerprint::of(&*dataset, true)?) {
                say(format!(
                    "warning: the network was trained on these very pictures ({}); they say nothing of people that it has \
                     never seen",
                    shown(data)
                ));
            }
            dataset.into()
        }
        None => {
            let pictures = Pictures::open(args.images.as_deref().unwrap_or(&[]))?;
            source::tell_unused(&pictures);
            Arc::new(pictures)
        }
    };
    let size = weights.model()?.input_shape().h;
    // Of test identities, only those that are chosen need landmarks.
    let skip_bad = args.skip_bad || args.ids.is_some();
    let mut aligned = (args.landmarks).align(vec![dataset], size, Some(skip_bad))?;
    let dataset = aligned.remove(0);
    let (Some(ids), Some(data)) = (args.ids, &args.data) else {
        return Ok((dataset, Identities::default()));
    };
    let selection = Selection {
        ids,
        per_id: args.per_id,
        last_id: args.last_id,
    };
    let chosen = embed::choose(data, dataset, &selection, &mut |event| {
        lines(event).into_iter().for_each(say);
    })?;
    let identities = Identities {
        events: chosen.events,
        per_id: args.per_id,
        ..Identities::default()
    };
    Ok((Arc::new(chosen.pictures), identities))
}

/// What becomes of each chosen identity, told as their pictures are done.
#[derive(Default)]
struct Identities {
    events: Vec<Event>,
    per_id: usize,
    /// Events that are over.
    told: usize,
}

impl Identities {
    /// The lines for the identities that are complete after `images` pictures, and were not before.
    fn after(&mut self, images: usize) -> Vec<String> {
        let mut left = match self.per_id {
            0 => 0,
            n => images / n,
        };
        let is_done = |event: &Event| matches!(event, Event::Done(_));
        let before = self.events[..self.told].iter();
        left -= before.filter(|event| is_done(event)).count();
        let mut told = Vec::new();
        while left > 0
            && let Some(event) = self.events.get(self.told)
        {
            left -= usize::from(is_done(event));
            told.extend(lines(*event));
            self.told += 1;
        }
        told
    }
}

fn lines(event: Event) -> Vec<String> {
    match event {
        Event::Done(id) => vec![format!("ID:{id} Embedding done.")],
        Event::TooFew(id) => vec![format!("Skipping ID:{id}.")],
        Event::Missing(from, to) if from - to < LONG_GAP => (to..=from)
            .rev()
            .map(|id| format!("Skipping ID:{id}."))
            .collect(),
        Event::Missing(from, to) => vec![format!("Skipping ID:{from} to ID:{to}.")],
    }
}

/// Gaps in the numbers shorter than this have a line for each number.
const LONG_GAP: u64 = 100;

struct Task {
    args: Args,
    weights: Weights,
    run: Run,
    identities: Identities,
}

impl OnDevice for Task {
    fn run<B: Backend>(self, mut backend: B) -> Result<()> {
        let args = &self.args;
        let batch = usize::from(args.batch_size);
        let mut embedder = args.device.embedder(&mut backend, &self.weights, batch)?;
        interrupt::listen()?;
        let _orderly = interrupt::orderly("ending after this batch; once more ends at once");
        let mut watch = Watch {
            identities: self.identities,
            counter: None,
            total: 0,
            done: 0,
        };
        let result = embed::embed_all(&mut embedder, self.run, &mut |step| {
            watch.step(step);
            !interrupt::asked()
        });
        let summary = watch.end(result)?;
        report(args, &self.weights, &summary)
    }
}

/// Shows how far a run has come.
struct Watch {
    identities: Identities,
    counter: Option<Counter>,
    total: usize,
    /// Pictures of this run and of earlier ones that it goes on with.
    done: usize,
}

impl Watch {
    fn step(&mut self, step: Step<'_>) {
        match step {
            Step::Begun {
                total,
                done,
                present,
            } => {
                if present > 0 {
                    say(format!(
                        "in the gallery already: {}; new: {}",
                        count(present, "picture"),
                        grouped(total as u64)
                    ));
                }
                if done > 0 {
                    say(format!(
                        "going on after {} of {}",
                        grouped(done as u64),
                        count(total, "picture")
                    ));
                }
                (self.total, self.done) = (total, done);
                // An earlier run has told of these.
                self.identities.after(done);
                self.counter = Some(counter("embed", total).after(done as u64));
            }
            Step::Done(images) => {
                self.done += images;
                if let Some(counter) = &mut self.counter {
                    let lines = self.identities.after(self.done);
                    lines.iter().for_each(|line| counter.message(line));
                    counter.advance(images as u64);
                }
            }
            Step::Skipped(why) => {
                if let Some(counter) = &mut self.counter {
                    counter.message(&format!("left out: {}", one_line(why)));
                }
            }
        }
    }

    /// Says what is left to do if the run failed.
    fn end(self, result: Result<Summary>) -> Result<Summary> {
        match (&result, self.counter) {
            (Ok(_), Some(counter)) => counter.finish(),
            // The bar goes.
            (_, counter) => drop(counter),
        }
        result.inspect_err(|error| {
            if self.done == 0 && !matches!(error, Error::Interrupted) {
                return;
            }
            let (done, total) = (grouped(self.done as u64), count(self.total, "picture"));
            let skip = match error {
                Error::Interrupted => "",
                _ => " (with --skip-bad: without pictures that cannot be read)",
            };
            say(format!(
                "embedded: {done} of {total}; the same command with --resume goes on{skip}"
            ));
        })
    }
}

/// Says what the gallery holds, and draws its similarity matrix.
fn report(args: &Args, weights: &Weights, summary: &Summary) -> Result<()> {
    warn_unaligned(summary.unaligned, weights.model()?.input_shape().h);
    let out = shown(&args.out);
    if summary.was_finished {
        say(match args.append {
            true => format!("nothing to add: all pictures are in {out} already"),
            false => format!("{out} holds the finished gallery already: nothing to do"),
        });
    }
    let is_small = summary.rows <= SIMILARITY_LIMIT || args.ids.is_some();
    if !is_small {
        say(format!(
            "no similarity.png: it is drawn of up to {}",
            count(SIMILARITY_LIMIT, "picture")
        ));
    } else if !summary.was_finished || !has_similarity(&args.out) {
        let means = Stored::open(&args.out)?.draw_similarity(&args.out)?;
        say(format!("mean cosine {means}"));
    }
    let left_out = match summary.skipped {
        0 => String::new(),
        n => format!("; {} left out, see skipped.txt", count(n, "picture")),
    };
    say(format!(
        "{} in {out}{left_out}",
        count(summary.rows, "embedding")
    ));
    Ok(())
}

/// A run may have been killed before it drew.
fn has_similarity(out: &Path) -> bool {
    out.join(embed::SIMILARITY).is_file()
}
