//! Builds a model node by node, and checks it.

use super::params::Init;
use super::{BatchNorm, Model, Node, NodeId, Op, Shape};
use crate::backend::Activation;
use crate::backend::geometry::{Padding, Window};
use crate::{Error, Result};
use std::collections::HashSet;

/// The most elements of an activation of one image, or of a filter. Anything larger is a mistake, and
/// smaller sizes multiply without overflow.
const LARGEST: usize = i32::MAX as usize;

/// The product, unless it is above [`LARGEST`].
fn product(sides: &[usize]) -> Option<usize> {
    let product = (sides.iter()).try_fold(1_usize, |n, side| n.checked_mul(*side))?;
    (product <= LARGEST).then_some(product)
}

/// How a square window moves over an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Square {
    /// Its height and width.
    pub kernel: usize,
    /// The step from one place to the next, down and to the right.
    pub stride: usize,
    /// The zeros around the image.
    pub pad: Padding,
}

impl Square {
    /// A window of `kernel` x `kernel` pixels.
    pub fn new(kernel: usize, stride: usize, pad: Padding) -> Self {
        Square {
            kernel,
            stride,
            pad,
        }
    }
}

/// Builds a [`Model`] node by node. [`Builder::finish`] reports the first node whose shape does not fit.
#[derive(Debug)]
pub struct Builder {
    nodes: Vec<Node>,
    names: HashSet<String>,
    problem: Option<Error>,
}

impl Builder {
    /// A model whose input is `h` x `w` x 3.
    pub fn new(h: usize, w: usize) -> (Self, NodeId) {
        let mut builder = Builder {
            nodes: Vec::new(),
            names: HashSet::new(),
            problem: None,
        };
        let input = builder.push("input", Op::Input, &[], Shape { h, w, c: 3 });
        (builder, input)
    }

    /// Shape of a node built so far.
    pub fn shape(&self, id: NodeId) -> Shape {
        self.nodes[id.0].shape
    }

    /// The first node that did not fit, if one did not.
    pub fn problem(&self) -> Option<&Error> {
        self.problem.as_ref()
    }

    fn push(&mut self, name: &str, op: Op, inputs: &[NodeId], shape: Shape) -> NodeId {
        // Parameters are named layer/parameter.
        if name.is_empty() || name.contains('/') {
            self.fail(name, "a name must not be empty or contain a slash");
        }
        if !self.names.insert(name.into()) {
            self.fail(name, "the name is taken");
        }
        match product(&[shape.h, shape.w, shape.c]) {
            Some(0) => self.fail(name, "the output is empty"),
            Some(_) => {}
            None => self.fail(name, format!("an output of {shape} is too large")),
        }
        // After a problem, later layers are built on a shape that fits.
        let fits = self.problem.is_none();
        let shape = if fits {
            shape
        } else {
            Shape { h: 1, w: 1, c: 1 }
        };
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

    fn window(&mut self, name: &str, x: NodeId, square: Square) -> Window {
        let Square {
            kernel,
            stride,
            pad,
        } = square;
        let Shape { h, w, .. } = self.shape(x);
        let Padding {
            top,
            bottom,
            left,
            right,
        } = pad;
        if [kernel, top, bottom, left, right]
            .iter()
            .any(|n| *n > LARGEST)
        {
            self.fail(name, "the window is too large");
            return Window::POINT;
        }
        Window::new((h, w), (kernel, kernel), stride, pad).unwrap_or_else(|error| {
            self.fail(name, error);
            Window::POINT
        })
    }

    fn check_filter(&mut self, name: &str, sides: &[usize]) {
        if product(sides).is_none() {
            self.fail(name, format!("a filter of shape {sides:?} is too large"));
        }
    }

    fn check_learnt(&mut self, name: &str, init: Init) {
        if !init.is_learnt() {
            self.fail(name, "only a convolution can exchange pairs of channels");
        }
    }

    /// A convolution.
    pub fn conv2d(
        &mut self,
        name: &str,
        x: NodeId,
        filters: usize,
        square: Square,
        bias: bool,
        init: Init,
    ) -> NodeId {
        let window = self.window(name, x, square);
        let shape = Shape {
            h: window.p,
            w: window.q,
            c: filters,
        };
        let c = self.shape(x).c;
        self.check_filter(name, &[filters, window.r, window.s, c]);
        let swaps = (window.is_pointwise(), filters, c % 2) == (true, c, 0);
        if init == Init::SwapPairs && !swaps {
            let problem =
                "exchanging pairs of channels takes a 1x1 filter that keeps their even number";
            self.fail(name, problem);
        }
        let op = Op::Conv2d {
            filters,
            window,
            bias,
            init,
        };
        self.push(name, op, &[x], shape)
    }

    /// A depthwise convolution.
    pub fn depthwise(
        &mut self,
        name: &str,
        x: NodeId,
        square: Square,
        bias: bool,
        init: Init,
    ) -> NodeId {
        let window = self.window(name, x, square);
        let c = self.shape(x).c;
        let shape = Shape {
            h: window.p,
            w: window.q,
            c,
        };
        self.check_filter(name, &[window.r, window.s, c]);
        self.check_learnt(name, init);
        let op = Op::DepthwiseConv2d { window, bias, init };
        self.push(name, op, &[x], shape)
    }

    /// Batch normalisation.
    pub fn batch_norm(&mut self, name: &str, x: NodeId, batch_norm: BatchNorm) -> NodeId {
        let BatchNorm {
            epsilon, momentum, ..
        } = batch_norm;
        if !(epsilon >= 0.0 && epsilon.is_finite() && (0.0..=1.0).contains(&momentum)) {
            let problem = format!(
                "epsilon must be 0 or more and momentum in [0, 1], not {epsilon} and {momentum}"
            );
            self.fail(name, problem);
        }
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
            let problem = format!("adds {} to {}", self.shape(a), self.shape(b));
            self.fail(name, problem);
        }
        self.push(name, Op::Add, &[a, b], self.shape(a))
    }

    /// Max pooling.
    pub fn max_pool(&mut self, name: &str, x: NodeId, square: Square) -> NodeId {
        let window = self.window(name, x, square);
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
        self.check_filter(name, &[units, self.shape(x).c]);
        self.check_learnt(name, init);
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
    /// The first node whose shape, name or constants did not fit, an embedding that is not flat, or a node that no
    /// other reads.
    pub fn finish(mut self) -> Result<Model> {
        let last = &self.nodes[self.nodes.len() - 1];
        if last.shape.pixels() != 1 {
            let name = last.name.clone();
            self.fail(&name, "the embedding must be flat");
        }
        let mut read = vec![false; self.nodes.len() - 1];
        for input in self.nodes.iter().flat_map(|node| &node.inputs) {
            read[input.0] = true;
        }
        if let Some(unread) = read.iter().position(|read| !read) {
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
    fn sizes_that_cannot_be_are_refused() {
        const HUGE: usize = usize::MAX / 2;
        type Build = fn(&mut Builder, NodeId) -> NodeId;
        let builds: [(Build, &str); 10] = [
            (|g, x| conv(g, x, HUGE, 3, 1), "layer y: a filter of shape"),
            (
                |g, x| conv(g, x, 1 << 30, 1, 0),
                "layer y: a filter of shape",
            ),
            (|g, x| conv(g, x, 1, HUGE, HUGE - 1), "layer y: the window"),
            (
                |g, x| g.max_pool("y", x, Square::new(1, 256, Padding::default())),
                "layer y: a stride of 256: 255 is the longest",
            ),
            (|g, x| conv(g, x, 0, 1, 0), "layer y: the output is empty"),
            (
                |g, x| {
                    g.max_pool(
                        "y",
                        x,
                        Square::new(1 << 30, 1, Padding::same((1 << 30) - 1)),
                    )
                },
                "layer y: an output of",
            ),
            (
                |g, x| g.max_pool("y", x, Square::new(5, 1, Padding::default())),
                "layer y: a 5x5 window does not fit",
            ),
            (
                |g, x| {
                    g.depthwise(
                        "y",
                        x,
                        Square::new(1 << 20, 1, Padding::same((1 << 20) - 1)),
                        false,
                        Init::HeFanOut,
                    )
                },
                "layer y: a filter of shape",
            ),
            (
                |g, x| g.linear("y", x, 1, true, Init::HeFanOut),
                "layer y: a linear layer needs",
            ),
            (
                |g, x| g.dropout("a/b", x, 0.5),
                "layer a/b: a name must not",
            ),
        ];
        fn conv(g: &mut Builder, x: NodeId, filters: usize, kernel: usize, pad: usize) -> NodeId {
            g.conv2d(
                "y",
                x,
                filters,
                Square::new(kernel, 1, Padding::same(pad)),
                false,
                Init::HeFanOut,
            )
        }
        for (build, expected) in builds {
            let (mut g, x) = Builder::new(4, 4);
            let y = build(&mut g, x);
            // What follows is built all the same.
            let y = g.flatten("flat", y);
            g.linear("out", y, 2, false, Init::HeFanOut);
            let error = g.finish().unwrap_err().to_string();
            assert!(error.starts_with(expected), "{expected}: {error}");
        }
        for (h, w) in [(0, 4), (HUGE, HUGE), (1 << 16, 1 << 16)] {
            let (mut g, x) = Builder::new(h, w);
            g.max_pool("pool", x, Square::new(2, 1, Padding::same(1)));
            let error = g.finish().unwrap_err().to_string();
            assert!(error.starts_with("layer input: "), "{error}");
        }
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
