//! `arcface-cu search`: the nearest pictures of a gallery.

use super::counter::counter;
use super::device::{DeviceArgs, Gpus, OnDevice, with_device};
use super::landmarks::LandmarksArgs;
use super::output::{check_file, count, grouped, make_folder_of, say, warn, warn_unaligned};
use super::source::{self, ImageRoot};
use super::threads::ThreadsArgs;
use super::threshold::{Threshold, ThresholdArgs, Use};
use super::weights;
use crate::backend::Backend;
use crate::base::files;
use crate::base::text::{one_line, shown};
use crate::data::{self, Dataset};
use crate::embed::search::{self, Hit, Identification, OpenSet};
use crate::embed::{self, GALLERY, Origin, Pictures, Stored};
use crate::verification::Tta;
use crate::weights::checkpoint::Weights;
use crate::{Error, Result};
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rates of identification need so many hits.
const RANKS: usize = 5;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// What is searched: a folder that `embed` wrote, or with --weights pictures (a file, a folder, a data set of any
    /// format that `train` reads).
    #[arg(long, value_name = "PATH")]
    gallery: PathBuf,
    /// What to look for, of the same kinds. If it is the gallery itself, each picture is looked for among the others.
    #[arg(long, value_name = "PATH")]
    query: PathBuf,
    /// Hits per query.
    #[arg(long, default_value_t = 5, value_name = "K", value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// The network that embeds pictures: a model file of any kind that `eval` takes.
    #[arg(long, value_name = "FILE")]
    weights: Option<PathBuf>,
    #[command(flatten)]
    root: ImageRoot,
    #[command(flatten)]
    threshold: ThresholdArgs,
    #[command(flatten)]
    landmarks: LandmarksArgs,
    /// What is done with mirror images of pictures: none, flip-sum or flip-concat.
    #[arg(long, default_value_t = Tta::FlipSum)]
    tta: Tta,
    /// Write the hits as JSON.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the hits as CSV: query, rank, cosine, file, identity; with a threshold also whether the hit is near enough.
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
    /// Pictures in one pass over the network.
    #[arg(long, default_value_t = 32, value_name = "N",
        value_parser = clap::value_parser!(u16).range(1..))]
    batch_size: u16,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    pub(super) threads: ThreadsArgs,
}

/// A side of the search: embeddings, or what has yet to be embedded.
enum Side {
    Stored(Stored),
    Pictures(Arc<dyn Dataset>),
}

impl Side {
    fn open(path: &Path, args: &Args) -> Result<Self> {
        if embed::is_stored(path) {
            return Ok(Side::Stored(Stored::open(path)?));
        }
        if args.weights.is_none() {
            // A path that is not there is the likelier mistake.
            fs::metadata(path).map_err(Error::io("opening", path))?;
            return Err(Error::Usage(format!(
                "{} is no folder of embeddings (it has no embeddings.npy); with --weights FILE the pictures in it are embedded",
                shown(path)
            )));
        }
        let pictures = || Pictures::open(&[path.into()]);
        if path.is_file() && Pictures::is_picture(path) {
            return Ok(Side::Pictures(Arc::new(pictures()?)));
        }
        match source::open(path, &args.root) {
            Ok(dataset) => Ok(Side::Pictures(dataset.into())),
            // A folder of loose pictures is no data set; one that is broken is none of loose pictures.
            Err(error) if path.is_dir() && !data::holds_data_files(path) => {
                let pictures = pictures().map_err(|_| error)?;
                source::tell_unused(&pictures);
                Ok(Side::Pictures(Arc::new(pictures)))
            }
            Err(error) => Err(error),
        }
    }

    /// What embeddings these are, or will be when `network` has made them.
    fn kind<'a>(&'a self, network: Kind<'a>) -> Kind<'a> {
        match self {
            Side::Pictures(_) => network,
            Side::Stored(stored) => Kind::of(stored),
        }
    }
}

/// What tells whether cosines between embeddings mean anything.
#[derive(Clone, Copy)]
struct Kind<'a> {
    /// The length of a row.
    dim: usize,
    /// What made them, where that is known.
    origin: Option<&'a Origin>,
}

impl<'a> Kind<'a> {
    fn of(stored: &'a Stored) -> Self {
        Kind {
            dim: stored.dim,
            origin: stored.origin.as_ref(),
        }
    }
}

pub(super) fn run(args: Args, gpus: &impl Gpus) -> Result<()> {
    let mut others = vec![
        ("--gallery", Some(&*args.gallery)),
        ("--query", Some(&*args.query)),
        ("--weights", args.weights.as_deref()),
        ("--landmarks", args.landmarks.landmarks.as_deref()),
        ("--eval", args.threshold.file()),
    ];
    let sides = [("--gallery", &args.gallery), ("--query", &args.query)];
    let stored: Vec<_> = (sides.iter())
        .flat_map(|(flag, side)| GALLERY.map(|name| (*flag, side.join(name))))
        .collect();
    others.extend((stored.iter()).map(|(flag, path)| (*flag, Some(&**path))));
    check_file("--json", args.json.as_deref(), &others)?;
    others.push(("--json", args.json.as_deref()));
    check_file("--csv", args.csv.as_deref(), &others)?;
    let gallery = Side::open(&args.gallery, &args)?;
    let same = fs::canonicalize(&args.gallery).ok() == fs::canonicalize(&args.query).ok();
    let query = match same {
        true => None,
        false => Some(Side::open(&args.query, &args)?),
    };
    if args.landmarks.landmarks.is_some()
        && ![Some(&gallery), query.as_ref()]
            .into_iter()
            .flatten()
            .any(|side| matches!(side, Side::Pictures(_)))
    {
        return Err(Error::Usage(
            "--landmarks: there is no picture to align, both sides are embeddings".into(),
        ));
    }
    match (gallery, query, &args.weights) {
        (Side::Stored(gallery), None, _) => {
            let threshold = choose_threshold(&args, Kind::of(&gallery))?;
            report(&args, threshold, &gallery, None)
        }
        (Side::Stored(gallery), Some(Side::Stored(query)), _) => {
            comparable(&args, [Kind::of(&gallery), Kind::of(&query)])?;
            let threshold = choose_threshold(&args, Kind::of(&gallery))?;
            report(&args, threshold, &gallery, Some(&query))
        }
        (gallery, query, weights) => {
            let weights = weights.as_ref().expect("pictures ask for weights");
            let weights = weights::load(weights, false)?.weights;
            // Before anything is embedded, which may take long.
            let origin = Origin::new(weights.fingerprint(), args.tta);
            let network = Kind {
                dim: (args.tta).row_length(weights.config.model.embedding_size()?),
                origin: Some(&origin),
            };
            if let Some(query) = &query {
                comparable(&args, [gallery.kind(network), query.kind(network)])?;
            }
            let threshold = choose_threshold(&args, network)?;
            let (gallery, query) = align(&args, &weights, gallery, query)?;
            let device = args.device.device;
            let task = Task {
                args,
                weights,
                threshold,
                gallery,
                query,
            };
            with_device(device, gpus, task)
        }
    }
}

/// The threshold that is asked for, which must be for such embeddings.
fn choose_threshold(args: &Args, kind: Kind<'_>) -> Result<Option<Threshold>> {
    args.threshold.choose(&Use {
        weights: kind.origin.map(|origin| &origin.weights[..]),
        name: args.weights.as_deref().unwrap_or(&args.gallery),
        tta: kind.origin.map(|origin| origin.tta),
    })
}

/// Aligns the faces in the pictures of both sides.
fn align(
    args: &Args,
    weights: &Weights,
    gallery: Side,
    query: Option<Side>,
) -> Result<(Side, Option<Side>)> {
    let size = weights.model()?.input_shape().h;
    let mut sides: Vec<Side> = std::iter::once(gallery).chain(query).collect();
    let sets = sides.iter().filter_map(|side| match side {
        Side::Pictures(dataset) => Some(Arc::clone(dataset)),
        Side::Stored(_) => None,
    });
    let mut aligned = args
        .landmarks
        .align(sets.collect(), size, None)?
        .into_iter();
    for side in &mut sides {
        if let Side::Pictures(dataset) = side {
            *dataset = aligned.next().expect("as many as before");
        }
    }
    let mut sides = sides.into_iter();
    Ok((sides.next().expect("the gallery"), sides.next()))
}

struct Task {
    args: Args,
    weights: Weights,
    threshold: Option<Threshold>,
    gallery: Side,
    query: Option<Side>,
}

impl OnDevice for Task {
    fn run<B: Backend>(self, mut backend: B) -> Result<()> {
        let args = &self.args;
        let batch = usize::from(args.batch_size);
        let mut embedder = args.device.embedder(&mut backend, &self.weights, batch)?;
        let weights = self.weights.fingerprint();
        let mut embedded = |name: &str, side: Side| match side {
            Side::Stored(stored) => Ok(stored),
            Side::Pictures(dataset) => {
                let mut counter = counter(name, dataset.len());
                let mut progress = |images| counter.advance(images as u64);
                let (stored, unaligned) = embed::embed_in_memory(
                    &mut embedder,
                    dataset,
                    &weights,
                    args.tta,
                    &mut progress,
                )?;
                counter.finish();
                warn_unaligned(unaligned, embedder.image_size());
                Ok::<Stored, Error>(stored)
            }
        };
        let gallery = embedded("gallery", self.gallery)?;
        let query = match self.query {
            None => None,
            Some(side) => Some(embedded("query", side)?),
        };
        report(args, self.threshold, &gallery, query.as_ref())
    }
}

/// What was found.
struct Found<'a> {
    gallery: &'a Stored,
    queries: &'a Stored,
    /// The nearest rows of each query, the nearest first.
    hits: Vec<Vec<Hit>>,
    threshold: Option<Threshold>,
    identification: Option<Identification>,
    open_set: Option<OpenSet>,
}

/// Whether a hit is near enough.
fn accepts(threshold: &Threshold, hit: &Hit) -> bool {
    // The squared distance of unit vectors.
    2.0 - 2.0 * hit.cosine < threshold.value
}

impl Found<'_> {
    /// Who a query shows: the identity of the nearest picture, or its file if it has none. `None` if no picture is close
    /// enough.
    fn answer(&self, threshold: &Threshold, query: usize) -> Option<String> {
        let hit = self.hits[query].first();
        let hit = hit.filter(|hit| accepts(threshold, hit))?;
        let identity = self.gallery.identity(hit.row);
        Some(identity.unwrap_or_else(|| self.gallery.files[hit.row].clone()))
    }
}

/// Searches, and tells of it. Without `query` the gallery is searched for its own rows.
fn report(
    args: &Args,
    threshold: Option<Threshold>,
    gallery: &Stored,
    query: Option<&Stored>,
) -> Result<()> {
    let (others_only, queries) = match query {
        None => (true, gallery),
        Some(query) => (false, query),
    };
    let labelled = gallery.labels.is_some() && queries.labels.is_some();
    let top = args.top as usize;
    let wanted = if labelled { top.max(RANKS) } else { top };
    let (rows, looked_for) = (&gallery.embeddings, &queries.embeddings);
    let mut hits = search::search(rows, looked_for, gallery.dim, wanted, others_only);
    let identification = search::identification(gallery, queries, &hits, others_only);
    let open_set = threshold.as_ref().and_then(|threshold| {
        let accepts = |hit: &Hit| accepts(threshold, hit);
        search::open_set(gallery, queries, &hits, others_only, accepts)
    });
    hits.iter_mut().for_each(|hits| hits.truncate(top));
    let found = Found {
        gallery,
        queries,
        hits,
        threshold,
        identification,
        open_set,
    };
    tell(&found);
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&json(&found)).expect("plain data") + "\n";
        make_folder_of(path)?;
        files::write(path, text.as_bytes())?;
    }
    if let Some(path) = &args.csv {
        make_folder_of(path)?;
        files::write(path, csv(&found).as_bytes())?;
    }
    Ok(())
}

fn tell(found: &Found<'_>) {
    let Found {
        gallery, queries, ..
    } = found;
    let number = |n: usize| grouped(n as u64);
    let mut known = 0;
    for (query, hits) in found.hits.iter().enumerate() {
        let mut line = one_line(&queries.files[query]);
        if let Some(identity) = queries.identity(query) {
            line += &format!(" ({})", one_line(&identity));
        }
        if let Some(threshold) = &found.threshold {
            let answer = found.answer(threshold, query);
            known += usize::from(answer.is_some());
            line += &format!(
                ": {}",
                answer.map_or("unknown".into(), |who| one_line(&who))
            );
        }
        say(line);
        for (rank, hit) in hits.iter().enumerate() {
            let identity = gallery.identity(hit.row).unwrap_or_default();
            let file = one_line(&gallery.files[hit.row]);
            let identity = one_line(&identity);
            say(format!("{:>4}  {:>7.4}  {file}  {identity}", rank + 1, hit.cosine).trim_end());
        }
    }
    say(format!(
        "{} in a gallery of {}",
        count(queries.rows(), "query"),
        count(gallery.rows(), "picture")
    ));
    if let Some(threshold) = &found.threshold {
        say(format!(
            "{} known, {} unknown: threshold {:.4} ({}), cosine {:.4}",
            number(known),
            number(queries.rows() - known),
            threshold.value,
            threshold.source,
            1.0 - threshold.value / 2.0
        ));
    }
    if let Some(Identification {
        queries: known,
        rank_1,
        rank_5,
    }) = found.identification
    {
        say(format!(
            "rank-1 identification {:.2} %, rank-5 {:.2} %, of {} whose identity is in the gallery",
            100.0 * rank_1,
            100.0 * rank_5,
            count(known, "query")
        ));
    }
    if let Some(open_set) = &found.open_set {
        if let Some(share) = open_set.identified {
            say(format!(
                "with the threshold {:.2} % of {} whose identity is in the gallery are answered with it",
                100.0 * share,
                count(open_set.members, "query")
            ));
        }
        if let Some(share) = open_set.mistaken {
            say(format!(
                "with the threshold {:.2} % of {} whose identity is not in the gallery are taken for somebody",
                100.0 * share,
                count(open_set.strangers, "query")
            ));
        }
    }
}

/// Whether cosines between gallery and queries mean anything; a warning where nobody can tell.
fn comparable(args: &Args, [gallery, queries]: [Kind<'_>; 2]) -> Result<()> {
    let differ = |has: &str, gallery: String, queries: String| {
        Error::Invalid(format!(
            "the embeddings cannot be compared: {} {has} {gallery}, {} {has} {queries}",
            shown(&args.gallery),
            shown(&args.query)
        ))
    };
    if gallery.dim != queries.dim {
        let numbers = |dim: usize| format!("{dim} numbers per row");
        return Err(differ("has", numbers(gallery.dim), numbers(queries.dim)));
    }
    for (kind, path) in [(gallery, &args.gallery), (queries, &args.query)] {
        if kind.origin.is_none() {
            warn(format!(
                "warning: {} has no embeddings.json, which says what network made it: whether it can be compared with the \
                 other is not known",
                shown(path)
            ));
        }
    }
    if let (Some(a), Some(b)) = (gallery.origin, queries.origin) {
        if a.weights != b.weights {
            let weights = |w: &str| format!("weights {w}");
            return Err(differ("is of", weights(&a.weights), weights(&b.weights)));
        }
        if a.tta != b.tta {
            let tta = |tta| format!("--tta {tta}");
            return Err(differ("is of", tta(a.tta), tta(b.tta)));
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Json<'a> {
    gallery: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threshold_source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    identification: Option<Identification>,
    #[serde(skip_serializing_if = "Option::is_none")]
    open_set: Option<OpenSet>,
    queries: Vec<Query<'a>>,
}

#[derive(Serialize)]
struct Query<'a> {
    file: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
    /// With a threshold: whether somebody is near enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    known: Option<bool>,
    /// Who that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
    hits: Vec<FoundHit<'a>>,
}

#[derive(Serialize)]
struct FoundHit<'a> {
    row: usize,
    cosine: f64,
    file: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    identity: Option<String>,
}

fn json<'a>(found: &'a Found<'_>) -> Json<'a> {
    let (gallery, queries) = (found.gallery, found.queries);
    let threshold = found.threshold.as_ref();
    let hit = |hit: &Hit| FoundHit {
        row: hit.row,
        cosine: hit.cosine,
        file: &gallery.files[hit.row],
        identity: gallery.identity(hit.row),
    };
    let query = |(query, hits): (usize, &Vec<Hit>)| {
        let answer = threshold.map(|threshold| found.answer(threshold, query));
        Query {
            file: &queries.files[query],
            identity: queries.identity(query),
            known: answer.as_ref().map(Option::is_some),
            answer: answer.flatten(),
            hits: hits.iter().map(hit).collect(),
        }
    };
    Json {
        gallery: gallery.rows(),
        threshold: threshold.map(|threshold| threshold.value),
        threshold_source: threshold.map(|threshold| &threshold.source[..]),
        identification: found.identification,
        open_set: found.open_set,
        queries: found.hits.iter().enumerate().map(query).collect(),
    }
}

fn csv(found: &Found<'_>) -> String {
    let mut text = String::from("query,rank,cosine,file,identity");
    text += match found.threshold {
        Some(_) => ",accepted\n",
        None => "\n",
    };
    for (query, hits) in found.hits.iter().enumerate() {
        for (rank, hit) in hits.iter().enumerate() {
            let accepted = found.threshold.as_ref().map(|t| accepts(t, hit));
            text += &format!(
                "{},{},{:.7},{},{}{}\n",
                quoted(&found.queries.files[query]),
                rank + 1,
                hit.cosine,
                quoted(&found.gallery.files[hit.row]),
                quoted(&found.gallery.identity(hit.row).unwrap_or_default()),
                accepted.map_or(String::new(), |accepted| format!(",{accepted}"))
            );
        }
    }
    text
}

/// A field as RFC 4180 has it.
fn quoted(field: &str) -> String {
    let field = one_line(field);
    match field.contains([',', '"']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field,
    }
}
