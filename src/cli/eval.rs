//! `arcface-cu eval`: verification accuracy on bcolz arrays, `.bin` files and pairs files.

use super::counter::counter;
use super::device::{DeviceArgs, Gpus, OnDevice, with_device};
use super::output::{check_file, check_late_folder, make_folder_of, say};
use super::threads::ThreadsArgs;
use super::validation::resized;
use super::weights::WeightsArgs;
use crate::Result;
use crate::backend::Backend;
use crate::base::files;
use crate::base::text::{one_line, shown};
use crate::eval::report::{Report, Settings};
use crate::eval::{self, ChannelOrder, EvalOptions, EvalSet};
use crate::report::{pairs, picture_file};
use crate::verification::{Results, SetResult, Tta};
use crate::weights::checkpoint::Weights;
use std::path::{Path, PathBuf};

/// Pairs of each verdict in the picture.
const EXAMPLES: usize = 8;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    weights: WeightsArgs,
    /// Folder of evaluation sets: PATH/NAME or PATH/ANY/NAME are bcolz carrays, with NAME_list.npy beside each, or
    /// InsightFace's NAME.bin. Or one of them itself, or a pairs file (.txt): LFW's format, or a line "image image 0|1"
    /// for each pair of aligned pictures.
    #[arg(long, value_name = "PATH")]
    data: PathBuf,
    /// Folder that the paths in a pairs file start from [default: that of the file].
    #[arg(long, value_name = "DIR")]
    image_root: Option<PathBuf>,
    /// Sets to evaluate, separated by commas [default: those of lfw,agedb_30,cfp_fp that are there; if none is, every
    /// set].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    sets: Option<Vec<String>>,
    /// What is done with mirror images: none, flip-sum (the sum of both embeddings) or flip-concat (both, one after the
    /// other).
    #[arg(long, default_value_t = Tta::FlipSum)]
    tta: Tta,
    /// Enlarge the pictures from 112 to 128 pixels and take the middle 112. Default: off.
    #[arg(long)]
    ccrop: bool,
    /// Order of the channels that the network gets: rgb, or bgr as the arrays store them (which the original
    /// face_recognition_tf2 feeds its networks).
    #[arg(long, default_value_t = ChannelOrder::Rgb)]
    channel_order: ChannelOrder,
    /// Write the results as JSON, rates as fractions. Default: none.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw the clearest right and wrong pairs of each set (of several sets, FILE-NAME.png each), as the name ends: .png,
    /// .jpg or .svg. Default: none.
    #[arg(long, value_name = "FILE.png")]
    pairs: Option<PathBuf>,
    /// Write a report: report.html, a page that stands on its own, with its figures as SVG and PNG beside it and all of
    /// it as report.json. Curves, distances and pairs are those of --tta; the table has every --tta, so mirror images are
    /// embedded in any case. Default: none.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
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
    let mut others = vec![
        ("--data", Some(&*args.data)),
        ("--weights", Some(&*args.weights.file)),
    ];
    check_file("--json", args.json.as_deref(), &others)?;
    others.push(("--json", args.json.as_deref()));
    check_file("--pairs", args.pairs.as_deref(), &others)?;
    args.pairs.as_deref().map_or(Ok(()), picture_file::check)?;
    check_late_folder("--report", args.report.as_deref())?;
    // What can be wrong with the data is said before the network is built.
    let sets = eval::find(&args.data, args.sets.as_deref())?;
    let root = args.image_root.as_deref();
    let sets = (sets.iter())
        .map(|files| EvalSet::open(files, root))
        .collect::<Result<_>>()?;
    let weights = args.weights.load()?;
    if args.channel_order == ChannelOrder::Bgr {
        say(
            "warning: every network takes red, green, blue here, and gets blue, green, red, as --channel-order asks",
        );
    }
    with_device(
        args.device.device,
        gpus,
        Task {
            args,
            weights,
            sets,
        },
    )
}

struct Task {
    args: Args,
    weights: Weights,
    sets: Vec<EvalSet>,
}

impl OnDevice for Task {
    fn run<B: Backend>(mut self, mut backend: B) -> Result<()> {
        let args = &self.args;
        let options = EvalOptions {
            tta: args.tta,
            ccrop: args.ccrop,
            channel_order: args.channel_order,
        };
        let report = args.report.as_ref().map(|_| {
            let device = backend.describe();
            let (file, data) = (&args.weights.file, &args.data);
            Settings::new(file, &self.weights, data, device, &options).map(Report::new)
        });
        let mut report = report.transpose()?;
        let batch = usize::from(args.batch_size);
        let mut embedder = args.device.embedder(&mut backend, &self.weights, batch)?;
        let several = self.sets.len() > 1;
        let mut results = Results {
            sets: Vec::new(),
            tta: Some(args.tta),
            weights: Some(self.weights.fingerprint()),
            ccrop: args.ccrop,
        };
        for set in &mut self.sets {
            let mut counter = counter(set.name(), set.images());
            let mut progress = |images| {
                counter.advance(images as u64);
                Ok(())
            };
            let evaluation = match &mut report {
                None => eval::evaluate(&mut embedder, set, &options, &mut progress)?,
                Some(report) => {
                    let all = eval::evaluate_all(&mut embedder, set, &options, &mut progress)?;
                    report.add(set, &all)?;
                    let chosen = Tta::ALL.into_iter().zip(all);
                    let mut chosen = chosen.filter(|(tta, _)| *tta == args.tta);
                    chosen.next().expect("every mode is there").1
                }
            };
            counter.finish();
            resized(set).into_iter().for_each(say);
            if let Some(path) = &args.pairs {
                let path = if several {
                    with_name(path, set.name())
                } else {
                    path.clone()
                };
                let pictures = eval::pair_pictures(set, &evaluation, EXAMPLES)?;
                let threshold = evaluation.result.verification.threshold;
                make_folder_of(&path)?;
                pairs::save(&path, set.name(), threshold, &pictures)?;
            }
            results.sets.push(evaluation.result);
        }
        say(format!(
            "tta {}, {}channels {}",
            args.tta,
            if args.ccrop { "ccrop, " } else { "" },
            args.channel_order
        ));
        say(table(&results.sets).trim_end());
        if let Some(path) = &args.json {
            let mut text = serde_json::to_string_pretty(&results).expect("results are plain data");
            text.push('\n');
            make_folder_of(path)?;
            files::write(path, text.as_bytes())?;
        }
        if let (Some(folder), Some(report)) = (&args.report, &report) {
            say(format!("report: {}", shown(report.save(folder)?)));
        }
        Ok(())
    }
}

/// `pairs.png` and `lfw` make `pairs-lfw.png`.
fn with_name(path: &Path, set: &str) -> PathBuf {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let ending = path.extension().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{stem}-{set}.{ending}"))
}

/// A line a set under a heading, every column as wide as it has to be. Beyond what the impostor pairs of a set can
/// tell, a TAR is put in brackets.
fn table(sets: &[SetResult]) -> String {
    let far = ["1e-1", "1e-2", "1e-3", "1e-4"];
    let mut heading: Vec<String> = ["set", "pairs", "impostors", "accuracy %", "threshold"]
        .map(String::from)
        .into();
    heading.extend(far.map(|far| format!("TAR@FAR {far}")));
    heading.extend(["AUC", "EER %"].map(String::from));
    let percent = |x: f64| format!("{:.2}", 100.0 * x);
    let mut rows = vec![heading];
    for SetResult {
        name,
        verification: v,
    } in sets
    {
        let mut row = vec![
            one_line(name),
            v.pairs.to_string(),
            v.impostor_pairs.to_string(),
            format!("{} ± {}", percent(v.accuracy), percent(v.accuracy_std)),
            format!("{:.3}", v.threshold),
        ];
        row.extend(far.map(|far| {
            let tar = v.tar.get(far).map_or_else(String::new, |&tar| percent(tar));
            match far.parse::<f64>() {
                // One false accept is already more than this rate.
                Ok(rate) if rate * v.impostor_pairs as f64 >= 1.0 => tar,
                _ => format!("({tar})"),
            }
        }));
        row.extend([format!("{:.4}", v.auc), percent(v.eer)]);
        rows.push(row);
    }
    let widths: Vec<usize> = (0..rows[0].len())
        .map(|c| rows.iter().map(|r| r[c].chars().count()).max().unwrap_or(0))
        .collect();
    let mut text = String::new();
    for row in &rows {
        for (c, (cell, &width)) in row.iter().zip(&widths).enumerate() {
            text.push_str(&if c == 0 {
                format!("{cell:<width$}")
            } else {
                format!("  {cell:>width$}")
            });
        }
        text.push('\n');
    }
    if text.contains('(') {
        text.push_str("(TAR): the set has too few impostor pairs for this FAR; no false accept at all was allowed.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verification::verify;

    #[test]
    fn columns_line_up_and_say_what_they_cannot_tell() {
        let sets: Vec<SetResult> = [("lfw", 600), ("a_longer_name", 30)]
            .into_iter()
            .map(|(name, pairs)| {
                let same: Vec<bool> = (0..pairs).map(|k| k % 2 == 0).collect();
                let distances: Vec<f64> = (0..pairs)
                    .map(|k| if k % 2 == 0 { 0.5 } else { 1.5 } + k as f64 / 1e4)
                    .collect();
                SetResult {
                    name: name.into(),
                    verification: verify(&distances, &same).unwrap(),
                }
            })
            .collect();
        let text = table(&sets);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4, "{text}");
        assert!(
            lines[..3]
                .iter()
                .all(|l| l.chars().count() == lines[0].chars().count()),
            "{text}"
        );
        // 300 impostor pairs can tell a rate of 1e-2, 15 cannot.
        assert_eq!(lines[1].matches('(').count(), 2, "{text}");
        assert_eq!(lines[2].matches('(').count(), 3, "{text}");
        assert_eq!(
            with_name(Path::new("a/pairs.png"), "lfw"),
            Path::new("a/pairs-lfw.png")
        );
    }
}
