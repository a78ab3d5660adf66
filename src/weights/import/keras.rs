//! Special cases of Keras: layers with other names than in our networks, and the ArcFace layer.
//!
//! Most layers have the same name on both sides. Not so:
//! - layers that Keras numbers itself, by how many of their kind the session has seen (`dense_3`, `batch_normalization_8`):
//!   these are matched by order among the layers of their kind. face_recognition_tf2 calls its only dense layer `features`;
//! - depthwise filters, which are `LAYER/kernel` in Keras 3 and `LAYER/depthwise_kernel` before;
//! - the ArcFace layer, which no network here has: its D x V matrix is `arc_face_layer/w:0` in face_recognition_tf2,
//!   `arc_margin_penalty_logists/weights:0` in arcface-tf2, and in general the one matrix that is left over with D rows and
//!   without a bias.

use super::Report;
use crate::graph::Model;
use crate::graph::params::ParamTable;
use crate::weights::convention::{Convention, foreign};
use crate::weights::formats::tensors::{NamedTensor, TensorFile};
use std::collections::HashMap;

/// The class rows (V x D) of the file's ArcFace layer, if it has one; then it is no longer unused.
pub(super) fn take_class_rows(
    file: &TensorFile,
    model: &Model,
    report: &mut Report,
) -> Option<Vec<f32>> {
    let d = model.embedding_size();
    let has_bias = |tensor: &NamedTensor| {
        let layer = tensor.name.rsplit_once('/').map_or("", |(layer, _)| layer);
        file.get(&format!("{layer}/bias:0")).is_some()
    };
    let unused = |name: &str| report.unused.iter().any(|(unused, _)| unused == name);
    let mut left = file.tensors.iter().filter(|tensor| {
        matches!(tensor.shape[..], [rows, _] if rows == d)
            && unused(&tensor.name)
            && !has_bias(tensor)
    });
    let (Some(matrix), None) = (left.next(), left.next()) else {
        return None;
    };
    if let Some(i) = matrix.values.iter().position(|v| !v.is_finite()) {
        let why = format!(
            "it has an ArcFace layer's shape, but element {i} is {}",
            matrix.values[i]
        );
        let unused = report
            .unused
            .iter_mut()
            .find(|(name, _)| *name == matrix.name);
        unused.expect("it was found there").1 = why;
        return None;
    }
    report.unused.retain(|(name, _)| *name != matrix.name);
    let classes = matrix.shape[1];
    let column = |class: usize| matrix.values[class..].iter().step_by(classes);
    Some((0..classes).flat_map(column).copied().collect())
}

/// Names that Keras gives and numbers, as far as layers here have them.
const NUMBERED: [&str; 2] = ["batch_normalization", "dense"];

fn is_numbered(layer: &str) -> bool {
    let base = match layer.rsplit_once('_') {
        Some((base, number)) if number.parse::<u32>().is_ok() => base,
        _ => layer,
    };
    NUMBERED.contains(&base)
}

/// A layer's tensors: what tells its kind, and its name.
#[derive(Debug, Default)]
struct Layer<'a> {
    name: &'a str,
    /// Weights by name and number of axes, in order.
    kind: Vec<(&'a str, usize)>,
}

fn layers<'a>(tensors: impl Iterator<Item = (&'a str, usize)>) -> Vec<Layer<'a>> {
    let mut layers: Vec<Layer<'a>> = Vec::new();
    for (name, axes) in tensors {
        let (layer, weight) = name.rsplit_once('/').unwrap_or(("", name));
        // A model within a model has the running statistics of all its layers at the end.
        let at = layers.iter().position(|known| known.name == layer);
        let at = at.unwrap_or_else(|| {
            let kind = Vec::new();
            layers.push(Layer { name: layer, kind });
            layers.len() - 1
        });
        layers[at].kind.push((weight, axes));
    }
    for layer in &mut layers {
        layer.kind.sort_unstable();
    }
    layers
}

/// The names that `model` has for the tensors of the file, in their order; those that are nothing to the network keep theirs,
/// unless another has taken it.
pub(super) fn names(file: &TensorFile, model: &Model) -> Vec<String> {
    let all = foreign(model, &ParamTable::new(model), Convention::Keras);
    let ours = layers(all.iter().map(|f| (f.name.as_str(), f.shape.len())));
    let names: HashMap<&str, &NamedTensor> =
        file.tensors.iter().map(|t| (t.name.as_str(), t)).collect();
    let theirs = layers((file.tensors.iter()).map(|t| (t.name.as_str(), t.shape.len())));
    let named = |name: &str| !is_numbered(name) && ours.iter().any(|layer| layer.name == name);
    let mut free: Vec<&Layer<'_>> = theirs.iter().filter(|t| !named(t.name)).collect();
    let mut renamed = Vec::new();
    for layer in ours.iter().filter(|layer| is_numbered(layer.name)) {
        if let Some(at) = free.iter().position(|theirs| theirs.kind == layer.kind) {
            renamed.push((free.remove(at).name, layer.name));
        }
    }
    // A name that one layer gives up may be another's new one, so all change at once. A layer that is nothing to the
    // network must not keep a name that the network has for another.
    let new_name = |name: &str| {
        let (layer, weight) = name.rsplit_once('/').unwrap_or(("", name));
        if let Some((_, to)) = renamed.iter().find(|(from, _)| *from == layer) {
            return format!("{to}/{weight}");
        } else if renamed.iter().any(|(_, to)| *to == layer) {
            return format!("{name} (another)");
        }
        let depthwise = format!("{layer}/{DEPTHWISE}");
        let is_depthwise = weight == "kernel:0" && all.iter().any(|f| f.name == depthwise);
        if is_depthwise && !names.contains_key(depthwise.as_str()) {
            depthwise
        } else {
            name.into()
        }
    };
    file.tensors.iter().map(|t| new_name(&t.name)).collect()
}

const DEPTHWISE: &str = "depthwise_kernel:0";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::{Embedding, Network, build};

    fn tensor(name: &str, shape: &[usize]) -> NamedTensor {
        NamedTensor {
            name: name.into(),
            shape: shape.to_vec(),
            values: (0..shape.iter().product()).map(|i| i as f32).collect(),
        }
    }

    fn batch_norm(layer: &str, c: usize) -> Vec<NamedTensor> {
        let weights = ["gamma:0", "beta:0", "moving_mean:0", "moving_variance:0"];
        weights
            .map(|w| tensor(&format!("{layer}/{w}"), &[c]))
            .into()
    }

    fn file(tensors: impl IntoIterator<Item = NamedTensor>) -> TensorFile {
        TensorFile {
            tensors: tensors.into_iter().collect(),
            ignored: Vec::new(),
        }
    }

    /// A report of a network that took nothing.
    fn unused(file: &TensorFile) -> Report {
        let names = file.tensors.iter().map(|t| (t.name.clone(), "why".into()));
        Report {
            unused: names.collect(),
            ..Report::default()
        }
    }

    #[test]
    fn numbered_layers_are_matched_by_order() {
        let embedding = Embedding::batch_norm_dropout_flatten_dense(8);
        let model = build(Network::MobilenetV2, 112, embedding).unwrap();
        let mut tensors = batch_norm("bn_Conv1", 32);
        tensors.push(tensor("expanded_conv_depthwise/kernel:0", &[3, 3, 32, 1]));
        // The first of the file has the name of the network's second.
        tensors.extend(batch_norm("batch_normalization_1", 1280));
        tensors.push(tensor("dense_4/kernel:0", &[20480, 8]));
        tensors.push(tensor("dense_4/bias:0", &[8]));
        tensors.extend(batch_norm("batch_normalization_2", 8));
        tensors.push(tensor("dense/kernel:0", &[8, 5]));
        let original = file(tensors);
        let ours = names(&original, &model);
        let from = |name: &str| {
            let at = ours.iter().position(|ours| ours == name);
            at.map(|at| &original.tensors[at])
        };
        for (ours, theirs) in [
            ("batch_normalization/beta:0", "batch_normalization_1/beta:0"),
            (
                "batch_normalization_1/beta:0",
                "batch_normalization_2/beta:0",
            ),
            ("dense/bias:0", "dense_4/bias:0"),
            ("bn_Conv1/beta:0", "bn_Conv1/beta:0"),
        ] {
            assert_eq!(from(ours).map(|t| t.name.as_str()), Some(theirs));
        }
        let shape = |name: &str| from(name).map(|t| t.shape.clone());
        assert_eq!(shape("batch_normalization/beta:0"), Some(vec![1280]));
        assert_eq!(shape("batch_normalization_1/beta:0"), Some(vec![8]));
        assert_eq!(shape("dense/kernel:0"), Some(vec![20480, 8]));
        assert_eq!(shape("bn_Conv1/gamma:0"), Some(vec![32]));
        let depthwise = "expanded_conv_depthwise/depthwise_kernel:0";
        assert_eq!(shape(depthwise), Some(vec![3, 3, 32, 1]));
        let mut report = unused(&original);
        report.unused.retain(|(name, _)| name != "dense_4/kernel:0");
        let rows = take_class_rows(&original, &model, &mut report).unwrap();
        assert_eq!(rows.len(), 5 * 8);
        assert_eq!(rows[..3], [0.0, 5.0, 10.0]);
        assert_eq!(rows[8..11], [1.0, 6.0, 11.0]);
        assert!(
            report
                .unused
                .iter()
                .all(|(name, _)| name != "dense/kernel:0")
        );
    }

    #[test]
    fn a_layer_of_softmax_is_no_arcface_layer() {
        let model = build(Network::MobilenetV2, 112, Embedding::pool_dropout_dense(8)).unwrap();
        let features = [
            tensor("features/kernel:0", &[1280, 8]),
            tensor("features/bias:0", &[8]),
        ];
        let head = [
            tensor("dense/kernel:0", &[8, 5]),
            tensor("dense/bias:0", &[5]),
        ];
        let original = file(features.into_iter().chain(head));
        let ours = names(&original, &model);
        assert_eq!(ours[..2], ["dense/kernel:0", "dense/bias:0"]);
        assert!(!ours[2..].contains(&ours[0]));
        let mut report = unused(&original);
        assert_eq!(take_class_rows(&original, &model, &mut report), None);
    }
}
