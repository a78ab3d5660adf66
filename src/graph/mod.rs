//! The layer graph: what a model is, before anything runs.
//!
//! A [`Model`] is a static list of nodes, built by `models::*` through the [`Builder`] with the parameter names of the
//! framework that the network comes from; [`layers`] is the list as a file holds it. [`lower`] turns it into a
//! [`program`] of fused instructions over pending values, [`plan`] gives the instructions' tensors their memory, and
//! [`train`] and [`infer`] run them on a backend.

mod builder;
pub mod folding;
pub mod infer;
pub mod layers;
pub mod lower;
pub mod params;
pub mod plan;
pub mod program;
mod storage;
pub mod train;

use crate::backend::Activation;
use crate::backend::geometry::Window;
pub use builder::{Builder, Square};
use params::Init;
use serde::{Deserialize, Serialize};
use std::fmt;

/// Height, width and channels of one image's activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// Rows.
    pub h: usize,
    /// Columns.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl Shape {
    /// Elements of one image.
    pub fn len(&self) -> usize {
        self.h * self.w * self.c
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// H W.
    pub fn pixels(&self) -> usize {
        self.h * self.w
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shape { h, w, c } = self;
        write!(f, "{h} x {w} x {c}")
    }
}

/// A node's place in its model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct NodeId(pub(crate) usize);

/// What a node computes.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// The network's input, H x W x 3.
    Input,
    /// 2-D convolution.
    Conv2d {
        /// Output channels.
        filters: usize,
        /// Where the filter moves.
        window: Window,
        /// Whether a bias is added.
        bias: bool,
        /// How the filter starts.
        init: Init,
    },
    /// One filter per channel.
    DepthwiseConv2d {
        /// Where the filter moves.
        window: Window,
        /// Whether a bias is added.
        bias: bool,
        /// How the filter starts.
        init: Init,
    },
    /// Batch normalisation over N, H and W.
    BatchNorm(BatchNorm),
    /// An activation other than the identity; PReLU's slopes, one per channel, are learnt and start at 0.25.
    Activation(Activation),
    /// The sum of two nodes of the same shape.
    Add,
    /// Largest value of each window.
    MaxPool(Window),
    /// Mean over H and W.
    GlobalAvgPool,
    /// Fully connected, on 1 x 1 images.
    Linear {
        /// Output size.
        units: usize,
        /// Whether a bias is added.
        bias: bool,
        /// How the weights start.
        init: Init,
    },
    /// Zeroes elements at random during training.
    Dropout {
        /// Probability of zeroing an element.
        rate: f32,
    },
    /// H x W x C to 1 x 1 x HWC, in that order.
    Flatten,
}

/// A batch norm's constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BatchNorm {
    /// Added to the variance.
    pub epsilon: f32,
    /// The fraction of the running statistics that a step keeps (Keras's 0.99 is PyTorch's 0.01).
    pub momentum: f32,
    /// Whether gamma is learnt; otherwise it is 1.
    pub gamma: bool,
    /// Whether beta is learnt; otherwise it is 0. Files that do not say it mean that it is.
    #[serde(default = "learnt", skip_serializing_if = "Clone::clone")]
    pub beta: bool,
}

/// What a batch norm's beta is where a file does not say it.
fn learnt() -> bool {
    true
}

impl Default for BatchNorm {
    /// PyTorch's: epsilon 1e-5, 0.9 of the running statistics kept.
    fn default() -> Self {
        BatchNorm {
            epsilon: 1e-5,
            momentum: 0.9,
            gamma: true,
            beta: true,
        }
    }
}

/// One node.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The layer's name in the framework it comes from.
    pub name: String,
    /// What it computes.
    pub op: Op,
    /// What it reads.
    pub inputs: Vec<NodeId>,
    /// What it gives.
    pub shape: Shape,
}

/// A network as a list of nodes in the order they are computed; the last one is the embedding.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    nodes: Vec<Node>,
}

impl Model {
    /// The nodes, inputs before their consumers.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }

    /// The nodes that read a node, once for each time they do.
    pub fn readers(&self, id: NodeId) -> impl Iterator<Item = NodeId> {
        let reads = move |node: &Node| node.inputs.iter().filter(|input| **input == id).count();
        (self.nodes.iter().enumerate())
            .flat_map(move |(reader, node)| std::iter::repeat_n(NodeId(reader), reads(node)))
    }

    /// The input's shape.
    pub fn input_shape(&self) -> Shape {
        self.nodes[0].shape
    }

    /// Embedding size D.
    pub fn embedding_size(&self) -> usize {
        self.nodes[self.nodes.len() - 1].shape.len()
    }

    /// Multiply-adds of one image's forward pass, in convolutions and linear layers only.
    pub fn macs(&self) -> u64 {
        let macs = |node: &Node| match &node.op {
            Op::Conv2d { window, .. } => {
                node.shape.len() * window.r * window.s * self.node(node.inputs[0]).shape.c
            }
            Op::DepthwiseConv2d { window, .. } => node.shape.len() * window.r * window.s,
            Op::Linear { units, .. } => units * self.node(node.inputs[0]).shape.c,
            _ => 0,
        };
        (self.nodes.iter()).fold(0, |sum: u64, node| sum.saturating_add(macs(node) as u64))
    }

    /// The same network with another batch-norm momentum everywhere.
    pub fn with_batch_norm_momentum(mut self, kept: f32) -> Self {
        for node in &mut self.nodes {
            if let Op::BatchNorm(batch_norm) = &mut node.op {
                batch_norm.momentum = kept;
            }
        }
        self
    }
}
