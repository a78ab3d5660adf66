//! Special cases of PyTorch: checkpoints that hold their state dict under a key, networks that are part of a module, and
//! the order of colours, which no state dict says.

use crate::graph::Model;
use crate::graph::params::ParamTable;
use crate::models::{Family, Network};
use crate::weights::convention::{Convention, Foreign, foreign};
use crate::weights::formats::tensors::TensorFile;
use serde_json::Value;
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// So many prefixes of a file are tried; the largest network has 50 layers with the name of its first.
const MOST_PREFIXES: usize = 64;

/// Takes a prefix (`state_dict.`, `model.backbone.`) off the names that begin with it: the one below which most of the
/// tensors of one of the `models` are, the first in the file of equals. Tried are the first [`MOST_PREFIXES`] in the file
/// that stand before the name of a network's first tensor. Returns the prefix.
pub(super) fn strip_prefix(file: &mut TensorFile, models: &[Model]) -> String {
    let names: HashSet<&str> = file.tensors.iter().map(|t| t.name.as_str()).collect();
    let tables: Vec<Vec<Foreign>> = (models.iter())
        .map(|model| foreign(model, &ParamTable::new(model), Convention::Torch))
        .collect();
    let firsts: BTreeSet<&str> = (tables.iter().filter_map(|table| table.first()))
        .map(|first| first.name.as_str())
        .collect();
    let mut seen: HashSet<&str> = HashSet::new();
    let prefixes = (file.tensors.iter())
        .flat_map(|tensor| {
            firsts
                .iter()
                .filter_map(|first| tensor.name.strip_suffix(first))
        })
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .filter(|prefix| seen.insert(prefix))
        .take(MOST_PREFIXES);
    let mut best = (0, "");
    for prefix in prefixes {
        for table in &tables {
            let there = |name: &str| names.contains(format!("{prefix}{name}").as_str());
            let count = table.iter().filter(|ours| there(&ours.name)).count();
            if count > best.0 {
                best = (count, prefix);
            }
        }
    }
    let prefix = best.1.to_owned();
    if prefix.is_empty() {
        return prefix;
    }
    let (inside, outside): (Vec<_>, Vec<_>) = std::mem::take(&mut file.tensors)
        .into_iter()
        .partition(|tensor| tensor.name.starts_with(&prefix));
    let why = || format!("it is outside of {prefix}, where the network is");
    let outside = outside.into_iter().map(|tensor| (tensor.name, why()));
    let others = file.ignored.iter_mut().map(|(name, _)| name);
    for name in others.filter(|name| name.len() > prefix.len() && name.starts_with(&prefix)) {
        name.drain(..prefix.len());
    }
    file.ignored.extend(outside);
    file.tensors = inside;
    for tensor in &mut file.tensors {
        tensor.name.drain(..prefix.len());
    }
    prefix
}

/// In which order a network takes colours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colours {
    /// Nothing speaks against red, green, blue.
    Rgb,
    /// Blue, green, red: why.
    Bgr(&'static str),
    /// Weights of the same names and shapes are published in either order.
    Unsaid,
}

/// The order of colours of the network under `prefix` of the file at `path`. The IR networks of AdaFace take blue, green,
/// red, those of CVLFace what the `.yaml` or `config.json` beside the file says; AdaFace's checkpoints have its head beside
/// the network.
pub(super) fn colours(path: &Path, prefix: &str, file: &TensorFile, network: Network) -> Colours {
    if network.family() != Some(Family::AdaFace) {
        return Colours::Rgb;
    }
    let part_of = |module: &str| prefix == module || prefix.ends_with(&format!(".{module}"));
    if part_of("net.") {
        let beside = path.with_file_name("config.json");
        return match [by_yaml(&path.with_extension("yaml")), by_json(&beside)] {
            [Some(true), _] => Colours::Bgr("the .yaml beside the file says color_space BGR"),
            [None, Some(true)] => Colours::Bgr("config.json says color_space BGR"),
            _ => Colours::Rgb,
        };
    }
    let head = match prefix.strip_suffix("model.") {
        Some(above) => format!("{above}head."),
        None => return Colours::Unsaid,
    };
    let mut outside = file.ignored.iter();
    match outside.any(|(name, _)| name.starts_with(&head)) {
        true => Colours::Bgr("these are AdaFace's weights"),
        false => Colours::Unsaid,
    }
}

/// The start of a configuration of CVLFace's, if it is there.
fn configuration(path: &Path) -> Option<String> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(1 << 16).read_to_string(&mut text));
    read.is_ok()
        .then(|| text.trim_start_matches('\u{feff}').to_owned())
}

/// Whether CVLFace's `.yaml` says that the network takes blue, green, red; none: it says nothing.
fn by_yaml(path: &Path) -> Option<bool> {
    let text = configuration(path)?;
    let order = text
        .lines()
        .find_map(|line| line.strip_prefix("color_space:"))?;
    Some(order.trim().trim_matches(['\'', '"']) == "BGR")
}

/// The same of `config.json`, which CVLFace's models on Hugging Face have: what the `.yaml` says, under `conf`.
fn by_json(path: &Path) -> Option<bool> {
    let config: Value = serde_json::from_str(&configuration(path)?).ok()?;
    let order = config.get("conf").unwrap_or(&config).get("color_space")?;
    Some(order.as_str()? == "BGR")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Embedding, Network, build};
    use crate::weights::formats::tensors::NamedTensor;

    /// A network below `net.` behind so many others' first tensors.
    fn behind(decoys: usize, models: &[Model]) -> TensorFile {
        let ours = foreign(&models[0], &ParamTable::new(&models[0]), Convention::Torch);
        let others = (0..decoys).map(|i| format!("x{i}.{}", ours[0].name));
        let names = others.chain(ours.iter().map(|ours| format!("net.{}", ours.name)));
        let tensor = |name| NamedTensor {
            name,
            shape: vec![0],
            values: vec![],
        };
        let mut file = TensorFile {
            tensors: names.map(tensor).collect(),
            ignored: vec![],
        };
        strip_prefix(&mut file, models);
        file
    }

    #[test]
    fn the_prefixes_that_are_tried_are_bounded() {
        let embedding = Embedding::GlobalDepthwise { size: 8 };
        let models = [build(Network::Mobilefacenet, 112, embedding).unwrap()];
        let ours = foreign(&models[0], &ParamTable::new(&models[0]), Convention::Torch);
        let file = behind(MOST_PREFIXES - 1, &models);
        assert_eq!(file.tensors.len(), ours.len());
        assert_eq!(file.tensors[0].name, ours[0].name);
        assert_eq!(file.ignored.len(), MOST_PREFIXES - 1);
        // All are equals that are tried, and the first has one tensor.
        let file = behind(100_000, &models);
        assert_eq!(file.tensors.len(), 1);
    }
}
