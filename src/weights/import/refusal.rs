//! What is said of a file that is none of the networks here.

use super::{Missing, Report};
use crate::Error;
use crate::base::text::{count, one_line};
use crate::recipe::config::Config;
use crate::weights::formats;
use crate::weights::formats::tensors::TensorFile;
use std::collections::HashSet;
use std::path::Path;

/// The error about a folder that holds no model file; `names` are those of what is in it.
pub fn no_weights(folder: &Path, names: &[String]) -> Error {
    let problem = formats::others::folder(names);
    let problem = problem.unwrap_or_else(|| {
        "is a folder without a model file; expected a run's folder, or one with one model file"
            .into()
    });
    Error::data(folder, problem)
}

/// The error about a file that gives little of the network of `config`.
pub(super) fn another_network(path: &Path, config: &Config, report: &Report, more: &str) -> Error {
    let (given, missing) = (report.mapped.len(), report.missing.len());
    Error::data(
        path,
        format!(
            "gives {given} of the {} tensors of {}: this is another network; {more}",
            given + missing,
            config.model.network_name()
        ),
    )
}

pub(super) fn not_ours(
    path: &Path,
    config: &Config,
    missing: &[Missing],
    file: &TensorFile,
    given: usize,
) -> Error {
    let all = given + missing.len();
    let name = config.model.network_name();
    let holds = holdings(file);
    Error::data(
        path,
        if given == 0 {
            format!("is none of the networks here: {holds}")
        } else if given < missing.len() {
            format!(
                "is none of the networks here (of the nearest, {name}, it gives {given} of {all} tensors): {holds}"
            )
        } else {
            let lines = missing.iter();
            let lines = lines.map(|m| format!("  {} ({}): {}", m.from, m.to, m.why));
            let (first, more) = some(lines, "\n");
            let more = if more > 0 {
                format!("\n  and {more} more")
            } else {
                String::new()
            };
            format!(
                "is none of the networks here. The nearest is {name} as in preset {}, of whose {all} tensors these are \
                 missing:\n{first}{more}\n{holds}",
                config.preset
            )
        },
    )
}

/// The first few, joined, and how many more there are.
fn some(all: impl ExactSizeIterator<Item = String>, between: &str) -> (String, usize) {
    const LISTED: usize = 4;
    let more = all.len().saturating_sub(LISTED);
    let first: Vec<String> = all.take(LISTED).collect();
    (first.join(between), more)
}

/// What a file holds, as a clause.
pub(super) fn holdings(file: &TensorFile) -> String {
    let list = |(first, more): (String, usize)| match more {
        0 => first,
        more => format!("{first} and {more} more"),
    };
    let tensors = file.tensors.iter();
    let tensors = tensors.map(|t| format!("{} {:?}", one_line(&t.name), t.shape));
    let others = file.ignored.iter();
    let others = others.map(|(name, why)| format!("{}: {why}", one_line(name)));
    let rest = match file.ignored.is_empty() {
        true => String::new(),
        false => format!("; and what is not read ({})", list(some(others, ", "))),
    };
    match file.tensors.is_empty() {
        true => format!("it holds no tensor{rest}"),
        false => format!(
            "it holds {} ({}){rest}",
            count(file.tensors.len(), "tensor"),
            list(some(tensors, ", "))
        ),
    }
}

/// The error about a file that has all of a network and more tensors among its layers: it is another network, such as one
/// with squeeze and excitation or more blocks.
pub(super) fn more_than_ours(
    path: &Path,
    config: &Config,
    report: &Report,
    file: &TensorFile,
) -> Option<Error> {
    fn layer(name: &str) -> &str {
        name.split('.').next().unwrap_or(name)
    }
    let mapped = report.mapped.iter().map(|mapped| &mapped.from[..]);
    let ours: HashSet<&str> = mapped.clone().map(layer).collect();
    let taken: HashSet<&str> = mapped.collect();
    let names = file.tensors.iter().map(|tensor| &tensor.name[..]);
    let strays: Vec<&str> = names
        .filter(|name| !taken.contains(name) && ours.contains(layer(name)))
        .collect();
    let (first, more) = some(strays.iter().map(|name| one_line(name)), ", ");
    let rest = if more > 0 { ", ..." } else { "" };
    let problem = format!(
        "is none of the networks here: it has all of {} and, among its layers, {} tensors more ({first}{rest})",
        config.model.network_name(),
        strays.len()
    );
    (!strays.is_empty()).then(|| Error::data(path, problem))
}
