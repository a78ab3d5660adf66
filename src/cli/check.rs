//! `arcface-cu check`: what is in a data set, and whether it can be trained on.

use super::counter::counter;
use super::output::{check_file, count, grouped, make_folder_of, say};
use super::recipe::RecipeArgs;
use super::source::{self, ImageRoot};
use super::threads::ThreadsArgs;
use crate::base::files;
use crate::base::text::one_line;
use crate::data::check::{Report, check};
use crate::data::unused::Leftover;
use crate::train::Prospects;
use crate::{Error, Result};
use std::path::PathBuf;

/// Broken images and sizes that are named one by one.
const NAMED: usize = 10;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A data set of any format that `train` reads.
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    #[command(flatten)]
    root: ImageRoot,
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Write everything that is found as JSON. Default: none.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    #[command(flatten)]
    pub(super) threads: ThreadsArgs,
}

pub(super) fn run(args: Args) -> Result<()> {
    let others = [
        ("--data", Some(&*args.data)),
        ("--config", args.recipe.file()),
    ];
    check_file("--json", args.json.as_deref(), &others)?;
    let config = args.recipe.config(None, &[])?;
    let dataset = source::open(&args.data, &args.root)?;
    let mut counter = counter("check", dataset.len());
    let mut report = check(&*dataset, &mut |images| counter.advance(images as u64))?;
    counter.finish();
    let told = dataset.unused();
    let is_new = |leftover: &&Leftover| !told.iter().any(|before| before == *leftover);
    source::tell(report.unused.iter().filter(is_new));
    let prospects = Prospects::of(&config, &*dataset, 0)?;
    report.problems.extend(prospects.refused);
    print(&report);
    for note in prospects.notes {
        say(format!("with preset {}: {note}", config.preset));
    }
    if let Some(path) = &args.json {
        let mut text = serde_json::to_string_pretty(&report).expect("a report is plain data");
        text.push('\n');
        make_folder_of(path)?;
        files::write(path, text.as_bytes())?;
    }
    match &report.problems[..] {
        [] => {
            say(match report.unused.is_empty() {
                true => "training can read all of it",
                false => "training can read all of the images; what it does not use is named above",
            });
            Ok(())
        }
        problems => Err(Error::data(&args.data, problems.join("; and "))),
    }
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn print(report: &Report) {
    say(format!(
        "images: {} of {}, {:.1} MB",
        grouped(report.images as u64),
        count(report.identities, "identity"),
        report.bytes as f64 / 1e6
    ));
    let names = &report.names;
    let [first, last] = &names.first_and_last.each_ref().map(|name| one_line(name));
    say(match names.range {
        Some(_) if names.missing == 0 => {
            format!("names: the numbers {first} to {last}, none missing")
        }
        Some(_) => format!(
            "names: numbers from {first} to {last}, {} between them missing",
            grouped(names.missing)
        ),
        None => format!("names: {first} to {last}"),
    });
    say(format!(
        "classes: 0 to {}, {} of them without images",
        report.identities - 1,
        grouped(report.empty_identities as u64)
    ));
    let spread = report.images_an_identity;
    say(format!(
        "images per identity: {} to {}, median {}, mean {:.1}; {} with one image, {} with fewer than 5",
        spread.least,
        spread.most,
        spread.median,
        spread.mean,
        count(report.single_image_identities, "identity"),
        grouped(report.few_images_identities as u64)
    ));
    let mut sizes: Vec<String> = (report.sizes.iter().take(NAMED))
        .map(|size| {
            format!(
                "{}x{} ({})",
                size.width,
                size.height,
                grouped(size.images as u64)
            )
        })
        .collect();
    if report.sizes.len() > NAMED {
        sizes.push(format!("and {} more", report.sizes.len() - NAMED));
    }
    if !sizes.is_empty() {
        say(format!("sizes: {}", sizes.join(", ")));
    }
    if report.unaligned > 0 {
        say(format!(
            "not aligned: {} not square, or larger than 448 pixels; faces must be found and aligned first (pack --landmarks aligns them)",
            count(report.unaligned, "image")
        ));
    }
    if report.turned > 0 {
        say(format!(
            "turned: {} not upright by EXIF; {}",
            count(report.turned, "image"),
            match report.upright {
                true => "they are turned as they are read",
                false => "in records they are taken as they are stored",
            }
        ));
    }
    let duplicates = &report.duplicates;
    say(format!(
        "duplicates: {} byte for byte an earlier one of the same identity, {} one of another identity",
        count(duplicates.same_identity, "image"),
        grouped(duplicates.other_identity as u64)
    ));
    for [image, earlier] in duplicates.examples.iter().take(NAMED) {
        say(format!("  {} = {}", one_line(image), one_line(earlier)));
    }
    print_colour(report);
    say(format!("broken: {}", count(report.broken.len(), "image")));
    for broken in report.broken.iter().take(NAMED) {
        say(format!("  {}", one_line(&broken.why)));
    }
    if report.broken.len() > NAMED {
        say(format!(
            "  ... and {} more (--json names all)",
            report.broken.len() - NAMED
        ));
    }
    say(format!(
        "time: {:.1} s to read and decode everything, {} img/s",
        report.seconds,
        grouped((report.images as f64 / report.seconds.max(1e-9)) as u64)
    ));
}

fn print_colour(report: &Report) {
    let colour = &report.colour;
    let [r, g, b] = colour.mean;
    if report.broken.len() == report.images {
        return;
    }
    if colour.grey_images == 1.0 {
        say("colour: all of the images are grey");
        return;
    }
    say(format!(
        "colour: {} of the images are grey; in the others mean red {r:.0}, green {g:.0}, blue {b:.0}, red above blue in {}",
        percent(colour.grey_images),
        percent(colour.red_above_blue)
    ));
    say(format!(
        "  {} of the pixels are in the range of skin, {} if red and blue were exchanged{}",
        percent(colour.skin),
        percent(colour.skin_exchanged),
        if colour.skin_exchanged > colour.skin {
            ": look at some pictures, the channels may be in the wrong order (numbers cannot prove it)"
        } else {
            ""
        }
    ));
}
