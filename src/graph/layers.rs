//! A model as a file holds it: the list of its layers, each with its name, what it does, and the names of the layers
//! it reads.
//!
//! Shapes are not part of the list. [`Layers::build`] gives each layer to the [`Builder`], which computes them again,
//! so a network from a file gets the same checks as one built in Rust. In TOML:
//!
//! ```toml
//! [[layers]]
//! name = "input"
//! op = { kind = "input", size = 112 }
//!
//! [[layers]]
//! name = "conv1"
//! reads = ["input"]
//! op = { kind = "conv2d", filters = 32, kernel = 3, stride = 2, pad = [1, 1, 1, 1], bias = false, init = "he-fan-out" }
//! ```

use super::params::Init;
use super::{BatchNorm, Builder, Model, Node, NodeId, Op, Shape, Square};
use crate::backend::Activation;
use crate::backend::geometry::{Padding, Window};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The most layers that a list may have; lowering takes time that grows with their square.
pub const MOST: usize = 1 << 14;

/// The layers of a model with a square input, in the order in which they are computed. The first is the input, the
/// last the embedding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Layers(Vec<Layer>);

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
struct Layer {
    name: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reads: Vec<String>,
    op: LayerOp,
}

/// A layer whose operation is not parsed yet, so that a mistake in it is reported with the layer's name.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Unchecked {
    name: String,
    #[serde(default)]
    reads: Vec<String>,
    op: serde_json::Value,
}

impl TryFrom<Unchecked> for Layer {
    type Error = String;

    fn try_from(Unchecked { name, reads, op }: Unchecked) -> Result<Self, String> {
        match LayerOp::deserialize(op) {
            Ok(op) => Ok(Layer { name, reads, op }),
            Err(e) => Err(format!("layer {name}: {e}")),
        }
    }
}

/// A call of the [`Builder`]: the method and its arguments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
enum LayerOp {
    Input {
        size: usize,
    },
    Conv2d {
        filters: usize,
        kernel: usize,
        stride: usize,
        pad: Sides,
        bias: bool,
        init: Init,
    },
    DepthwiseConv2d {
        kernel: usize,
        stride: usize,
        pad: Sides,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        bias: bool,
        init: Init,
    },
    BatchNorm(BatchNorm),
    Relu,
    Relu6,
    Prelu,
    Add,
    MaxPool {
        kernel: usize,
        stride: usize,
        pad: Sides,
    },
    GlobalAvgPool,
    Linear {
        units: usize,
        bias: bool,
        init: Init,
    },
    Dropout {
        rate: f32,
    },
    Flatten,
}

/// Padding: top, bottom, left, right.
type Sides = [usize; 4];

fn sides(pad: Padding) -> Sides {
    [pad.top, pad.bottom, pad.left, pad.right]
}

fn padding([top, bottom, left, right]: Sides) -> Padding {
    Padding {
        top,
        bottom,
        left,
        right,
    }
}

impl Layers {
    /// The layers of a model.
    ///
    /// # Errors
    /// Its input is not square.
    pub fn of(model: &Model) -> Result<Self> {
        let Shape { h, w, .. } = model.input_shape();
        if h != w {
            return Err(Error::Invalid(format!(
                "the network takes images of {h} x {w} pixels; they must be square"
            )));
        }
        let layer = |node: &Node| Layer {
            name: node.name.clone(),
            reads: (node.inputs.iter())
                .map(|input| model.node(*input).name.clone())
                .collect(),
            op: op(node),
        };
        Ok(Layers(model.nodes().iter().map(layer).collect()))
    }

    /// Builds the model.
    ///
    /// # Errors
    /// The first layer that does not fit: it reads a layer that does not come before it, reads too few or too many, or
    /// is refused by the [`Builder`].
    pub fn build(&self) -> Result<Model> {
        let fail = |layer: &Layer, problem: String| {
            Err(Error::Invalid(format!("layer {}: {problem}", layer.name)))
        };
        if self.0.len() > MOST {
            return Err(Error::Invalid(format!(
                "a network of {} layers is too large: {MOST} are the most",
                self.0.len()
            )));
        }
        let Some((input, layers)) = self.0.split_first() else {
            return Err(Error::Invalid("a network without layers".into()));
        };
        let (mut g, x) = match input.op {
            LayerOp::Input { size } if input.name == "input" && input.reads.is_empty() => {
                Builder::new(size, size)
            }
            _ => {
                let problem = "the first layer must be the input, and be called so";
                return fail(input, problem.into());
            }
        };
        let mut built = HashMap::from([("input", x)]);
        for layer in layers {
            if matches!(layer.op, LayerOp::Input { .. }) {
                return fail(layer, "only the first layer can be the input".into());
            }
            let mut reads = Vec::with_capacity(2);
            for name in &layer.reads {
                match built.get(&name[..]) {
                    Some(id) => reads.push(*id),
                    None => {
                        return fail(
                            layer,
                            format!("reads {name}, which does not stand before it"),
                        );
                    }
                }
            }
            let Some(id) = layer.add_to(&mut g, &reads) else {
                return fail(layer, format!("cannot read {} layers", reads.len()));
            };
            built.insert(&layer.name, id);
        }
        g.finish()
    }
}

impl Layer {
    /// Adds the layer to a model; `None` if it does not read that many layers.
    fn add_to(&self, g: &mut Builder, reads: &[NodeId]) -> Option<NodeId> {
        let name = &self.name[..];
        if let (LayerOp::Add, [a, b]) = (&self.op, reads) {
            return Some(g.add(name, *a, *b));
        }
        let [x] = *reads else { return None };
        Some(match self.op {
            LayerOp::Input { .. } | LayerOp::Add => return None,
            LayerOp::Conv2d {
                filters,
                kernel,
                stride,
                pad,
                bias,
                init,
            } => g.conv2d(
                name,
                x,
                filters,
                Square::new(kernel, stride, padding(pad)),
                bias,
                init,
            ),
            LayerOp::DepthwiseConv2d {
                kernel,
                stride,
                pad,
                bias,
                init,
            } => g.depthwise(
                name,
                x,
                Square::new(kernel, stride, padding(pad)),
                bias,
                init,
            ),
            LayerOp::BatchNorm(batch_norm) => g.batch_norm(name, x, batch_norm),
            LayerOp::Relu => g.activation(name, x, Activation::Relu),
            LayerOp::Relu6 => g.activation(name, x, Activation::Relu6),
            LayerOp::Prelu => g.activation(name, x, Activation::PRelu(())),
            LayerOp::MaxPool {
                kernel,
                stride,
                pad,
            } => g.max_pool(name, x, Square::new(kernel, stride, padding(pad))),
            LayerOp::GlobalAvgPool => g.global_avg_pool(name, x),
            LayerOp::Linear { units, bias, init } => g.linear(name, x, units, bias, init),
            LayerOp::Dropout { rate } => g.dropout(name, x, rate),
            LayerOp::Flatten => g.flatten(name, x),
        })
    }
}

/// The call of the builder that made a node.
fn op(node: &Node) -> LayerOp {
    match &node.op {
        Op::Input => LayerOp::Input { size: node.shape.h },
        Op::Conv2d {
            filters,
            window: Window { r, stride, pad, .. },
            bias,
            init,
        } => LayerOp::Conv2d {
            filters: *filters,
            kernel: *r,
            stride: *stride,
            pad: sides(*pad),
            bias: *bias,
            init: *init,
        },
        Op::DepthwiseConv2d {
            window: Window { r, stride, pad, .. },
            bias,
            init,
        } => LayerOp::DepthwiseConv2d {
            kernel: *r,
            stride: *stride,
            pad: sides(*pad),
            bias: *bias,
            init: *init,
        },
        Op::BatchNorm(batch_norm) => LayerOp::BatchNorm(*batch_norm),
        Op::Activation(Activation::Relu) => LayerOp::Relu,
        Op::Activation(Activation::Relu6) => LayerOp::Relu6,
        Op::Activation(Activation::PRelu(())) => LayerOp::Prelu,
        Op::Activation(Activation::Identity) => unreachable!("the builder refuses it"),
        Op::Add => LayerOp::Add,
        Op::MaxPool(Window { r, stride, pad, .. }) => LayerOp::MaxPool {
            kernel: *r,
            stride: *stride,
            pad: sides(*pad),
        },
        Op::GlobalAvgPool => LayerOp::GlobalAvgPool,
        Op::Linear { units, bias, init } => LayerOp::Linear {
            units: *units,
            bias: *bias,
            init: *init,
        },
        Op::Dropout { rate } => LayerOp::Dropout { rate: *rate },
        Op::Flatten => LayerOp::Flatten,
    }
}
