//! What is PyTorch's alone: checkpoints that hold their state dict under a key, and networks that are a part of a module.

use crate::convention::{Convention, foreign};
use crate::data::tensors::TensorFile;
use crate::graph::Model;
use crate::graph::params::ParamTable;
use std::collections::HashSet;

/// Takes a prefix (`state_dict.`, `model.backbone.`) off the names that begin with it: the one below which most of the
/// tensors of one of the `models` are, the first in the file of equals.
pub(super) fn strip_prefix(file: &mut TensorFile, models: &[Model]) {
    let names: HashSet<&str> = file.tensors.iter().map(|t| t.name.as_str()).collect();
    let mut best = (0, "");
    for model in models {
        let ours = foreign(model, &ParamTable::new(model), Convention::Torch);
        let Some(first) = ours.first() else {
            continue;
        };
        let prefixes = file.tensors.iter().filter_map(|tensor| {
            let prefix = tensor.name.strip_suffix(&first.name)?;
            (prefix.is_empty() || prefix.ends_with('.')).then_some(prefix)
        });
        for prefix in prefixes {
            let there = |name: &str| names.contains(format!("{prefix}{name}").as_str());
            let count = ours.iter().filter(|foreign| there(&foreign.name)).count();
            if count > best.0 {
                best = (count, prefix);
            }
        }
    }
    let prefix = best.1.to_owned();
    if prefix.is_empty() {
        return;
    }
    let (inside, outside): (Vec<_>, Vec<_>) = std::mem::take(&mut file.tensors)
        .into_iter()
        .partition(|tensor| tensor.name.starts_with(&prefix));
    let why = || format!("it is outside of {prefix}, where the network is");
    let outside = outside.into_iter().map(|tensor| (tensor.name, why()));
    file.ignored.extend(outside);
    file.tensors = inside;
    for tensor in &mut file.tensors {
        tensor.name.drain(..prefix.len());
    }
}
