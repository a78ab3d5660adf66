//! `arcface-cu pack`: an image folder becomes RecordIO.

use super::counter::counter;
use super::output::say;
use super::source;
use crate::Result;
use crate::data::pack;
use std::path::PathBuf;

/// Pictures that could not be read and are named one by one.
const NAMED: usize = 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Image folder (<identity>/<image>.jpg), a RecordIO set to be packed anew, or generated[:IDENTITIESxIMAGES].
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Folder for train.rec, train.idx, property, identities.tsv and the folder `reserved`.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Keep so many identities, the last ones, out of training: they become the image folder OUT/reserved.
    #[arg(long, default_value_t = 100, value_name = "N")]
    reserve_last: usize,
    /// Resize pictures of another size to N x N pixels (as JPEG) [default: every file goes in untouched].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    resize: Option<u16>,
    /// Decides the order of the images.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Replace the files of an earlier run.
    #[arg(long)]
    overwrite: bool,
    /// Leave out pictures that cannot be read, instead of stopping.
    #[arg(long)]
    skip_bad: bool,
}

pub(super) fn run(args: Args) -> Result<()> {
    let dataset = source::open(&args.data)?;
    let options = pack::PackOptions {
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

    let rec = args.out.join("train.rec");
    say(format!(
        "{}: {} images of {} identities",
        rec.display(),
        packed.images,
        packed.identities
    ));
    if packed.reserved_identities > 0 {
        say(format!(
            "{}: {} images of {} identities, kept out of training",
            args.out.join("reserved").display(),
            packed.reserved_images,
            packed.reserved_identities
        ));
    }
    if packed.other_sizes > 0 {
        say(format!(
            "note: {} images are not 112x112; this program resizes them as it reads, InsightFace's own reader does not \
             accept them (--resize 112 makes them fit)",
            packed.other_sizes
        ));
    }
    if !packed.skipped.is_empty() {
        say(format!("left out {} images:", packed.skipped.len()));
        for why in packed.skipped.iter().take(NAMED) {
            say(format!("  {why}"));
        }
        if packed.skipped.len() > NAMED {
            say(format!("  ... and {} more", packed.skipped.len() - NAMED));
        }
    }
    Ok(())
}
