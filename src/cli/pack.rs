//! `arcface-cu pack`: data sets become RecordIO or TFRecord, evaluation sets become bcolz arrays.

use super::counter::counter;
use super::landmarks::LandmarksArgs;
use super::output::{check_folder, count, say};
use super::source::{self, ImageRoot};
use super::threads::ThreadsArgs;
use super::validation::resized;
use crate::base::text::{one_line, shown};
use crate::data::Dataset;
use crate::data::formats::tfrecord::Schema;
use crate::data::pack::{self, PackFormat, Packed};
use crate::eval::{self, EvalSet};
use crate::recipe::config::IMAGE_SIZE;
use crate::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Pictures that could not be read and are named one by one.
const NAMED: usize = 20;

/// Formats by the names that people give.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Format {
    /// train.rec, train.idx and property, for MXNet and InsightFace.
    Recordio,
    /// TFRecord with label, filepath and image_raw, for face_recognition_tf2.
    SeedTfrecord,
    /// TFRecord with image/source_id, image/filename and image/encoded, for arcface-tf2.
    ArcfaceTf2Tfrecord,
    /// TFRecord with image/source_id and image/img_path, for arcface-tf2, and the pictures as files images/<label>/0001.jpg;
    /// the paths start from --out.
    ArcfaceTf2Paths,
}

impl From<Format> for PackFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Recordio => PackFormat::RecordIo,
            Format::SeedTfrecord => PackFormat::TfRecord(Schema::Seed),
            Format::ArcfaceTf2Tfrecord => PackFormat::TfRecord(Schema::ArcfaceTf2),
            Format::ArcfaceTf2Paths => PackFormat::TfRecord(Schema::ArcfaceTf2Paths),
        }
    }
}

#[derive(Debug, clap::Args)]
#[group(id = "input", required = true, multiple = false, args = ["data", "pairs"])]
pub(super) struct Args {
    /// A data set of any format that `train` reads.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Evaluation sets instead, of any format that `eval` reads (a pairs file, InsightFace's .bin): each becomes a bcolz
    /// array OUT/NAME of float32 with OUT/NAME_list.npy.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["format", "shards", "reserve_last", "resize", "seed", "skip_bad", "landmarks"])]
    pairs: Option<PathBuf>,
    #[command(flatten)]
    root: ImageRoot,
    /// Folder for the data, identities.tsv and the folder `reserved`; or for evaluation arrays.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// What the data set becomes.
    #[arg(long, value_enum, default_value_t = Format::Recordio)]
    format: Format,
    /// TFRecord files to make: train-00000-of-N.tfrecord and so on.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    shards: u16,
    /// Keep the last N identities out of training: they become the image folder OUT/reserved. Default: none.
    #[arg(long, default_value_t = 0, hide_default_value = true, value_name = "N")]
    reserve_last: usize,
    /// Resize pictures of another size to N x N pixels (as JPEG) [default: every file goes in untouched, and with
    /// --landmarks every face is aligned to 112 x 112 pixels].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=4096))]
    resize: Option<u16>,
    /// Decides the order of the images.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replace the files of an earlier run. Default: off, they are refused.
    #[arg(long)]
    overwrite: bool,
    /// Decode every picture, and leave out those that cannot be, instead of stopping at one whose header is broken.
    /// Default: off.
    #[arg(long)]
    skip_bad: bool,
    #[command(flatten)]
    landmarks: LandmarksArgs,
    #[command(flatten)]
    pub(super) threads: ThreadsArgs,
}

pub(super) fn run(args: Args) -> Result<()> {
    check_folder("--out", Some(&args.out))?;
    match (&args.data, &args.pairs) {
        (Some(data), _) => pack_data(data, &args),
        (None, pairs) => pack_pairs(pairs.as_deref().expect("the parser requires one"), &args),
    }
}

fn pack_data(data: &Path, args: &Args) -> Result<()> {
    if args.shards > 1 && matches!(args.format, Format::Recordio) {
        return Err(Error::Usage(
            "--shards is for TFRecord: RecordIO is always one file".into(),
        ));
    }
    source::refuse_within(&args.out, data)?;
    let dataset: Arc<dyn Dataset> = source::open(data, &args.root)?.into();
    let size = args.resize.map_or(IMAGE_SIZE, usize::from);
    let mut aligned = (args.landmarks).align(vec![dataset], size, Some(args.skip_bad))?;
    let dataset = aligned.remove(0);
    let options = pack::PackOptions {
        format: args.format.into(),
        shards: args.shards.into(),
        seed: args.seed,
        reserve_last: args.reserve_last,
        resize: args.resize.map(usize::from),
        skip_bad: args.skip_bad,
        overwrite: args.overwrite,
    };
    let mut counter = counter("pack", dataset.len());
    let mut before = 0;
    let packed = pack::pack(&*dataset, &args.out, &options, &mut |done, _| {
        counter.advance((done - before) as u64);
        before = done;
    })?;
    counter.finish();
    report(&packed, args);
    Ok(())
}

fn pack_pairs(pairs: &Path, args: &Args) -> Result<()> {
    let all = eval::find_all(pairs)?;
    let there = (all.iter())
        .flat_map(|files| [files.name.clone(), format!("{}_list.npy", files.name)])
        .map(|name| args.out.join(name))
        .find(|path| path.exists());
    if let Some(path) = there
        && !args.overwrite
    {
        return Err(Error::data(
            path,
            "is there already; choose another folder, or --overwrite",
        ));
    }
    for files in &all {
        let mut set = EvalSet::open(files, args.root.image_root.as_deref())?;
        let mut counter = counter(set.name(), set.images());
        let written = eval::convert_set(&mut set, &args.out, &mut |images| {
            counter.advance(images as u64);
        })?;
        counter.finish();
        say(format!(
            "{}: {} of pictures of {} pixels",
            shown(&written.path),
            count(set.same().len(), "pair"),
            set.side()
        ));
        resized(&set).into_iter().for_each(say);
    }
    Ok(())
}

fn report(packed: &Packed, args: &Args) {
    let file = match args.format {
        Format::Recordio => args.out.join("train.rec"),
        _ => args.out.clone(),
    };
    say(format!(
        "{}: {} of {}",
        shown(file),
        count(packed.images, "image"),
        count(packed.identities, "identity")
    ));
    if packed.reserved_identities > 0 {
        say(format!(
            "{}: {} of {}, kept out of training",
            shown(args.out.join("reserved")),
            count(packed.reserved_images, "image"),
            count(packed.reserved_identities, "identity")
        ));
    }
    if packed.other_sizes > 0 {
        say(format!(
            "note: not 112x112: {}; this program resizes as it reads, InsightFace's own reader does not accept other sizes \
             (--resize 112 makes them fit)",
            count(packed.other_sizes, "image")
        ));
    }
    if packed.turned > 0 {
        say(format!(
            "note: with an EXIF orientation: {}, written as read, without it",
            count(packed.turned, "image")
        ));
    }
    if !packed.skipped.is_empty() {
        say(format!(
            "left out {}:",
            count(packed.skipped.len(), "image")
        ));
        for why in packed.skipped.iter().take(NAMED) {
            say(format!("  {}", one_line(why)));
        }
        if packed.skipped.len() > NAMED {
            say(format!("  ... and {} more", packed.skipped.len() - NAMED));
        }
    }
}
