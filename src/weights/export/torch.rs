//! State dicts for PyTorch, as safetensors: `load_state_dict(safetensors.torch.load_file(path))` takes one, strictly.
//!
//! Names and layouts are those of [`convention`](crate::weights::convention). `num_batches_tracked` of batch norms, which has no
//! use at a fixed momentum, is left out, as PyTorch allows. So are class rows: InsightFace keeps them in a file of
//! their own for each GPU.

use crate::base::files;
use crate::graph::params::ParamTable;
use crate::weights::checkpoint::Weights;
use crate::weights::convention::{Convention, Foreign, Place, check_pairs, foreign};
use crate::weights::formats::tensors::NamedTensor;
use crate::{Error, Result};
use safetensors::tensor::{Dtype, TensorView};
use std::collections::HashMap;
use std::path::Path;

/// The state dict of a network.
///
/// # Errors
/// A configuration that makes no sense, a layer that PyTorch has no layer for.
pub fn state_dict(weights: &Weights) -> Result<Vec<NamedTensor>> {
    let model = weights.model()?;
    check_pairs(&model)?;
    let all = foreign(&model, &ParamTable::new(&model), Convention::Torch);
    let tensor = |foreign: &Foreign| NamedTensor {
        name: foreign.name.clone(),
        shape: foreign.shape.clone(),
        values: foreign.read(&weights.params, &weights.statistics),
    };
    let stored = |foreign: &&Foreign| !matches!(foreign.place, Place::Implied(_));
    Ok(all.iter().filter(stored).map(tensor).collect())
}

/// Writes the state dict of a network to `path`.
///
/// # Errors
/// As [`state_dict`]; a file that cannot be written.
pub fn write(path: &Path, weights: &Weights) -> Result<()> {
    let tensors = state_dict(weights)?;
    let bytes: Vec<Vec<u8>> = tensors
        .iter()
        .map(|tensor| tensor.values.iter().flat_map(|v| v.to_le_bytes()).collect())
        .collect();
    let views = tensors.iter().zip(&bytes).map(|(tensor, bytes)| {
        let view = TensorView::new(Dtype::F32, tensor.shape.clone(), bytes);
        let view = view.expect("shape and bytes belong together");
        (tensor.name.as_str(), view)
    });
    // What the library safetensors asks of a file that PyTorch is to read.
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let file = safetensors::serialize(views, Some(metadata))
        .map_err(|e| Error::data(path, format!("cannot be made into a safetensors file: {e}")))?;
    files::write(path, &file)
}
