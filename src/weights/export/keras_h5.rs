//! Weights files that `load_weights` of Keras takes, by order and by name.
//!
//! Keras matches a file to a model by the order of the layers that have weights, or with `by_name=True` by their names, and
//! the weights of a layer by their order. So the layers stand in the order that Keras gives them: by their longest path to
//! the output, and where that is the same, by when a walk from the output backwards meets them.
//!
//! | embedding | the model it is for | its layers |
//! |---|---|---|
//! | pooling, dropout, dense | face_recognition_tf2's | the backbone's one by one, then `features` |
//! | batch norm, dropout, flatten, dense, batch norm | arcface-tf2's | two models within the model: `resnet50` (or `mobilenetv2_1.00_224`, ...), `OutputLayer` |
//! | others | one built in Keras with these names | one by one |
//!
//! In a model within a model, learnt weights come first, then the running statistics.

use crate::base::files;
use crate::graph::params::ParamTable;
use crate::graph::{Model, Op};
use crate::models::{Embedding, Network};
use crate::recipe::config::{KnownNetwork, NetworkConfig};
use crate::weights::checkpoint::Weights;
use crate::weights::convention::{Convention, Foreign, Place, foreign};
use crate::weights::formats::keras::{Layer, encode};
use crate::weights::formats::tensors::NamedTensor;
use crate::{Error, Result};
use std::path::Path;

/// Writes the file; with class rows (V x D) also an ArcFace layer, which the training model has and the embedding model has not.
///
/// # Errors
/// A configuration that makes no sense, class rows of another length than a multiple of D, a file that cannot be written.
pub fn write(path: &Path, weights: &Weights, class_rows: Option<&[f32]>) -> Result<()> {
    files::write(path, &encode(&layers(weights, class_rows)?)?)
}

/// The layers of the file.
///
/// # Errors
/// As [`write()`], except errors of the file.
pub fn layers(weights: &Weights, class_rows: Option<&[f32]>) -> Result<Vec<Layer>> {
    let model = weights.model()?;
    let all = foreign(&model, &ParamTable::new(&model), Convention::Keras);
    let order = keras_order(&model);
    let mut layers = match nested_backbone(weights) {
        Some(backbone) => nested(weights, backbone, &model, &all, &order),
        None => flat(weights, &model, &all, &order),
    };
    if let Some(rows) = class_rows {
        layers.push(arcface_layer(weights, rows)?);
    }
    Ok(layers)
}

/// The backbone that is a layer of its own in arcface-tf2's models.
fn nested_backbone(weights: &Weights) -> Option<Network> {
    match weights.config.model.network {
        NetworkConfig::Known(KnownNetwork {
            backbone,
            embedding: Embedding::BatchNormDropoutFlattenDense { .. },
            ..
        }) => Some(backbone),
        _ => None,
    }
}

/// A layer a node.
fn flat(weights: &Weights, model: &Model, all: &[Foreign], order: &[usize]) -> Vec<Layer> {
    let features = matches!(
        weights.config.model.network,
        NetworkConfig::Known(KnownNetwork {
            embedding: Embedding::PoolDropoutDense { .. },
            ..
        })
    );
    let layer = |&node: &usize| {
        let node = &model.nodes()[node];
        let name = match (&node.op, node.name.as_str()) {
            (Op::Input, _) => "input_image",
            (Op::GlobalAvgPool, _) => "global_average_pooling2d",
            (Op::Linear { .. }, "dense") if features => "features",
            (_, name) => name,
        };
        Layer {
            name: name.into(),
            weights: tensors(weights, of(all, &node.name), name),
        }
    };
    order.iter().map(layer).collect()
}

/// The backbone is a layer, and so is what makes the embedding of its map.
fn nested(
    weights: &Weights,
    backbone: Network,
    model: &Model,
    all: &[Foreign],
    order: &[usize],
) -> Vec<Layer> {
    let backbone = match backbone {
        // So named when it starts from ImageNet, as it does there unless told otherwise.
        Network::MobilenetV2 => "mobilenetv2_1.00_224",
        // Keras's names are ours.
        _ => backbone.name(),
    };
    let output = |node: &usize| model.nodes()[*node].name == "batch_normalization";
    let at = order.iter().position(output).unwrap_or(order.len());
    let layer = |name: &str, nodes: &[usize]| {
        let foreign = |learnt: bool| {
            let nodes = nodes.iter().map(|&node| &model.nodes()[node]);
            nodes.flat_map(move |node| {
                let of = of(all, &node.name).filter(move |f| is_learnt(f) == learnt);
                tensors(weights, of, &node.name)
            })
        };
        Layer {
            name: name.into(),
            weights: foreign(true).chain(foreign(false)).collect(),
        }
    };
    let input = Layer {
        name: "input_image".into(),
        weights: Vec::new(),
    };
    vec![
        input,
        layer(backbone, &order[..at]),
        layer("OutputLayer", &order[at..]),
    ]
}

fn is_learnt(foreign: &Foreign) -> bool {
    matches!(foreign.place, Place::Param(_))
}

/// A node's weights.
fn of<'a>(all: &'a [Foreign], node: &'a str) -> impl Iterator<Item = &'a Foreign> {
    let of = move |foreign: &&Foreign| {
        let layer = foreign.name.rsplit_once('/').map(|(layer, _)| layer);
        layer == Some(node)
    };
    all.iter().filter(of)
}

/// Weights in Keras's layout, of the layer `layer`.
fn tensors<'a>(
    weights: &Weights,
    all: impl Iterator<Item = &'a Foreign>,
    layer: &str,
) -> Vec<NamedTensor> {
    let tensor = |foreign: &Foreign| {
        let weight = foreign.name.rsplit('/').next().unwrap_or(&foreign.name);
        NamedTensor {
            name: format!("{layer}/{weight}"),
            shape: foreign.shape.clone(),
            values: foreign.read(&weights.params, &weights.statistics),
        }
    };
    all.map(tensor).collect()
}

/// The ArcFace layer of the model's project: a D x V matrix.
fn arcface_layer(weights: &Weights, rows: &[f32]) -> Result<Layer> {
    let d = weights.config.model.embedding_size()?;
    let classes = rows.len() / d;
    if classes * d != rows.len() {
        return Err(Error::Invalid(format!(
            "{} numbers are no class rows of {d} each",
            rows.len()
        )));
    }
    let (name, weight) = match nested_backbone(weights) {
        Some(_) => ("ArcHead", "arc_margin_penalty_logists/weights:0"),
        None => ("arc_face_layer", "arc_face_layer/w:0"),
    };
    let column = |i: usize| rows[i..].iter().step_by(d);
    Ok(Layer {
        name: name.into(),
        weights: vec![NamedTensor {
            name: weight.into(),
            shape: vec![d, classes],
            values: (0..d).flat_map(column).copied().collect(),
        }],
    })
}

/// The nodes in the order of `model.layers` in Keras.
fn keras_order(model: &Model) -> Vec<usize> {
    let nodes = model.nodes();
    // Consumers stand behind what they read.
    let mut depth = vec![0; nodes.len()];
    for (i, node) in nodes.iter().enumerate().rev() {
        for input in &node.inputs {
            depth[input.0] = depth[input.0].max(depth[i] + 1);
        }
    }
    let mut met = vec![usize::MAX; nodes.len()];
    let (mut count, mut path) = (0, vec![nodes.len() - 1]);
    while let Some(i) = path.pop() {
        if met[i] == usize::MAX {
            met[i] = count;
            count += 1;
            path.extend(nodes[i].inputs.iter().rev().map(|input| input.0));
        }
    }
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by_key(|&i| (std::cmp::Reverse(depth[i]), met[i]));
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::build;

    /// As in `model.summary()` of Keras's ResNet50, except its padding layers.
    #[test]
    fn layers_stand_in_keras_order() {
        let model = build(Network::Resnet50, 112, Embedding::pool_dropout_dense(8)).unwrap();
        let order = keras_order(&model);
        let names: Vec<&str> = (order.iter())
            .map(|&i| model.nodes()[i].name.as_str())
            .collect();
        assert_eq!(
            names[4..18],
            [
                "pool1_pool",
                "conv2_block1_1_conv",
                "conv2_block1_1_bn",
                "conv2_block1_1_relu",
                "conv2_block1_2_conv",
                "conv2_block1_2_bn",
                "conv2_block1_2_relu",
                "conv2_block1_0_conv",
                "conv2_block1_3_conv",
                "conv2_block1_0_bn",
                "conv2_block1_3_bn",
                "conv2_block1_add",
                "conv2_block1_out",
                "conv2_block2_1_conv"
            ]
        );
    }
}
