//! The layer graph: what a model is, before anything runs.
//!
//! A [`Model`] is a static list of nodes, built by `models::*` through the [`Builder`] with the parameter names of the
//! framework that the network comes from. [`lower`] turns it into a [`program`] of fused instructions over pending
//! values, [`plan`] gives the instructions' tensors their memory, and [`train`] and [`infer`] run them on a backend.

pub mod folding;
pub mod infer;
pub mod lower;
pub mod params;
pub mod plan;
pub mod program;
mod storage;
pub mod train;

use crate::backend::Activation;
use crate::backend::geometry::{Padding, Window};
use crate::{Error, Result};
use params::Init;

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
    /// One filter a channel.
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BatchNorm {
    /// Added to the variance.
    pub epsilon: f32,
    /// The fraction of the running statistics that a step keeps (Keras's 0.99 is PyTorch's 0.01).
    pub momentum: f32,
    /// Whether gamma is learnt; otherwise it is 1.
    pub gamma: bool,
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

    /// Multiply-adds of one image's forward pass, convolutions and linear layers alone.
    pub fn macs(&self) -> u64 {
        let macs = |node: &Node| match &node.op {
            Op::Conv2d { window, .. } => {
                node.shape.len() * window.r * window.s * self.node(node.inputs[0]).shape.c
            }
            Op::DepthwiseConv2d { window, .. } => node.shape.len() * window.r * window.s,
            Op::Linear { units, .. } => units * self.node(node.inputs[0]).shape.c,
            _ => 0,
        };
        self.nodes.iter().map(|node| macs(node) as u64).sum()
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

/// Builds a [`Model`] node by node. A shape that does not fit is an error of the model's author and comes back from
/// [`Builder::finish`], naming the first node concerned.
#[derive(Debug)]
pub struct Builder {
    nodes: Vec<Node>,
    problem: Option<Error>,
}

impl Builder {
    /// A model whose input is `h` x `w` x 3.
    pub fn new(h: usize, w: usize) -> (Self, NodeId) {
        let input = Node {
            name: "input".into(),
            op: Op::Input,
            inputs: Vec::new(),
            shape: Shape { h, w, c: 3 },
        };
        let builder = Builder {
            nodes: vec![input],
            problem: None,
        };
        (builder, NodeId(0))
    }

    /// Shape of a node built so far.
    pub fn shape(&self, id: NodeId) -> Shape {
        self.nodes[id.0].shape
    }

    fn push(&mut self, name: &str, op: Op, inputs: &[NodeId], shape: Shape) -> NodeId {
        if self.nodes.iter().any(|node| node.name == name) {
            self.fail(name, "the name is taken");
        }
        if shape.is_empty() {
            self.fail(name, "the output is empty");
        }
        self.nodes.push(Node {
            name: name.into(),
            op,
            inputs: inputs.to_vec(),
            shape,
        });
        NodeId(self.nodes.len() - 1)
    }

    fn fail(&mut self, name: &str, problem: impl std::fmt::Display) {
        self.problem
            .get_or_insert_with(|| Error::Invalid(format!("layer {name}: {problem}")));
    }

    fn window(
        &mut self,
        name: &str,
        x: NodeId,
        kernel: usize,
        stride: usize,
        pad: Padding,
    ) -> Window {
        let Shape { h, w, .. } = self.shape(x);
        Window::new((h, w), (kernel, kernel), stride, pad).unwrap_or_else(|error| {
            self.fail(name, error);
            let whole = Window::new((h, w), (1, 1), 1, Padding::default());
            whole.expect("a 1x1 window fits every image that is not empty")
        })
    }

    /// A square convolution.
    #[allow(clippy::too_many_arguments)]
    pub fn conv2d(
        &mut self,
        name: &str,
        x: NodeId,
        filters: usize,
        kernel: usize,
        stride: usize,
        pad: Padding,
        bias: bool,
        init: Init,
    ) -> NodeId {
        let window = self.window(name, x, kernel, stride, pad);
        let shape = Shape {
            h: window.p,
            w: window.q,
            c: filters,
        };
        let op = Op::Conv2d {
            filters,
            window,
            bias,
            init,
        };
        self.push(name, op, &[x], shape)
    }

    /// A square depthwise convolution without bias.
    pub fn depthwise(
        &mut self,
        name: &str,
        x: NodeId,
        kernel: usize,
        stride: usize,
        pad: Padding,
        init: Init,
    ) -> NodeId {
        let window = self.window(name, x, kernel, stride, pad);
        let shape = Shape {
            h: window.p,
            w: window.q,
            c: self.shape(x).c,
        };
        let op = Op::DepthwiseConv2d {
            window,
            bias: false,
            init,
        };
        self.push(name, op, &[x], shape)
    }

    /// Batch normalisation.
    pub fn batch_norm(&mut self, name: &str, x: NodeId, batch_norm: BatchNorm) -> NodeId {
        self.push(name, Op::BatchNorm(batch_norm), &[x], self.shape(x))
    }

    /// ReLU, ReLU6 or PReLU.
    pub fn activation(&mut self, name: &str, x: NodeId, activation: Activation) -> NodeId {
        if activation.is_identity() {
            self.fail(name, "the identity needs no layer: leave it out");
        }
        self.push(name, Op::Activation(activation), &[x], self.shape(x))
    }

    /// The sum of two nodes.
    pub fn add(&mut self, name: &str, a: NodeId, b: NodeId) -> NodeId {
        if self.shape(a) != self.shape(b) {
            let problem = format!("adds {:?} to {:?}", self.shape(a), self.shape(b));
            self.fail(name, problem);
        }
        self.push(name, Op::Add, &[a, b], self.shape(a))
    }

    /// Max pooling with a square window.
    pub fn max_pool(
        &mut self,
        name: &str,
        x: NodeId,
        kernel: usize,
        stride: usize,
        pad: Padding,
    ) -> NodeId {
        let window = self.window(name, x, kernel, stride, pad);
        let shape = Shape {
            h: window.p,
            w: window.q,
            c: self.shape(x).c,
        };
        self.push(name, Op::MaxPool(window), &[x], shape)
    }

    /// Mean over the image.
    pub fn global_avg_pool(&mut self, name: &str, x: NodeId) -> NodeId {
        let c = self.shape(x).c;
        self.push(name, Op::GlobalAvgPool, &[x], Shape { h: 1, w: 1, c })
    }

    /// A fully connected layer; its input must be 1 x 1.
    pub fn linear(
        &mut self,
        name: &str,
        x: NodeId,
        units: usize,
        bias: bool,
        init: Init,
    ) -> NodeId {
        if self.shape(x).pixels() != 1 {
            self.fail(name, "a linear layer needs a flat input");
        }
        let shape = Shape {
            h: 1,
            w: 1,
            c: units,
        };
        self.push(name, Op::Linear { units, bias, init }, &[x], shape)
    }

    /// Dropout.
    pub fn dropout(&mut self, name: &str, x: NodeId, rate: f32) -> NodeId {
        if !(0.0..1.0).contains(&rate) {
            self.fail(
                name,
                format!("a dropout rate must be in [0, 1), not {rate}"),
            );
        }
        self.push(name, Op::Dropout { rate }, &[x], self.shape(x))
    }

    /// H x W x C to one row.
    pub fn flatten(&mut self, name: &str, x: NodeId) -> NodeId {
        let c = self.shape(x).len();
        self.push(name, Op::Flatten, &[x], Shape { h: 1, w: 1, c })
    }

    /// The model, whose embedding is the node built last.
    ///
    /// # Errors
    /// The first node whose shape, name or constants did not fit, an embedding that is not flat, or a node that nobody
    /// reads.
    pub fn finish(mut self) -> Result<Model> {
        let last = &self.nodes[self.nodes.len() - 1];
        if last.shape.pixels() != 1 {
            let name = last.name.clone();
            self.fail(&name, "the embedding must be flat");
        }
        let read = |id: usize| {
            let mut inputs = self.nodes.iter().flat_map(|node| &node.inputs);
            inputs.any(|input| input.0 == id)
        };
        if let Some(unread) = (0..self.nodes.len() - 1).find(|id| !read(*id)) {
            let name = self.nodes[unread].name.clone();
            self.fail(
                &name,
                "no other layer reads what it gives, and it is not the last one",
            );
        }
        match self.problem {
            Some(problem) => Err(problem),
            None => Ok(Model { nodes: self.nodes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_identity_is_refused_as_a_layer() {
        let (mut builder, x) = Builder::new(4, 4);
        let pool = builder.global_avg_pool("pool", x);
        builder.activation("none", pool, Activation::Identity);
        let error = builder.finish().unwrap_err().to_string();
        assert!(error.contains("layer none: the identity"), "{error}");
    }

    #[test]
    fn a_node_that_nobody_reads_is_refused() {
        let build = |used: bool| {
            let (mut builder, x) = Builder::new(4, 4);
            let pool = builder.global_avg_pool("pool", x);
            let side = builder.linear("side", pool, 3, true, Init::HeFanOut);
            let out = builder.linear("out", pool, 3, true, Init::HeFanOut);
            if used {
                builder.add("sum", side, out);
            }
            builder.finish()
        };
        assert!(build(true).is_ok());
        let error = build(false).unwrap_err().to_string();
        assert!(
            error.contains("layer side: no other layer reads"),
            "{error}"
        );
    }
}
