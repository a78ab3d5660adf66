//! A graph as a network of its own: every node that computes becomes a layer.
//!
//! What only moves or names numbers is seen through (`flow.rs`). Here it is decided which layers there are, in which order
//! and of which shape; [`match_model`](super::match_model) then finds the parameters, as it does for a network that is
//! known, and is strict about everything else that a node says.

use super::flow::{Flow, Layout, View};
use super::layer::{averages_map, clips_to_six, separate_bias};
use super::window::{Moves, int, wrong};
use super::{Affine, Unfit, affine, axes_text};
use crate::backend::Activation;
use crate::graph::layers::MOST;
use crate::graph::params::Init;
use crate::graph::{BatchNorm, Builder, Model, NodeId, Shape};
use crate::recipe::config::IMAGE_SIZE;
use crate::weights::formats::onnx::{Attribute, Axis, Graph, Node};
use std::collections::{HashMap, HashSet};

/// Every parameter comes from the graph.
const INIT: Init = Init::HeFanOut;

/// A graph as a network.
pub(super) struct Own {
    /// Its layers.
    pub(super) model: Model,
    /// Where the graph goes on behind the embedding: the first node that is no layer, and why.
    pub(super) rest: Option<String>,
}

/// The network that a graph is. Its input has the size that the graph says, or that of the networks here.
///
/// # Errors
/// The first node that is no layer here: its place, name and operator, and why.
pub(super) fn network(graph: &Graph) -> Result<Own, String> {
    let [input] = &graph.inputs[..] else {
        return Err(format!(
            "the graph has {} inputs; a network here has one, the picture",
            graph.inputs.len()
        ));
    };
    let Some(output) = graph.outputs.first() else {
        return Err("the graph has no output".into());
    };
    let flow = Flow::new(graph);
    let layout = flow.view(&input.name).map(|view| view.layout);
    let size = side(input.shape.as_deref(), layout).ok_or_else(|| {
        format!(
            "the graph's input {} is {}; a network here takes N x 3 x H x W, with H = W",
            input.name,
            axes_text(input.shape.as_deref().unwrap_or(&[]))
        )
    })?;
    let (builder, x) = Builder::new(size, size);
    let mut growing = Growing {
        graph,
        batch: input.shape.as_deref().and_then(|axes| axes.first()),
        flow,
        builder,
        ours: HashMap::new(),
        flattened: HashMap::new(),
        // Tensors of checkpoints begin with the latter two.
        names: ["input", "momentum", "head"].map(String::from).into(),
        taken: HashSet::new(),
    };
    growing.begin(&input.name, x);
    // The first node that is no layer, and what of the layers the nodes behind it read.
    let (mut problem, mut edge) = (None, HashSet::new());
    for i in 0..graph.nodes.len() {
        match growing.node(i) {
            Ok(()) => {}
            Err(Stop { unfit, read }) => {
                edge.extend(read);
                let sentence = unfit.map(|unfit| growing.sentence(i, &unfit));
                problem = problem.or(sentence);
            }
        }
        if let Some(error) = growing.builder.problem() {
            let why = Unfit::because(format!("makes a layer that cannot be: {error}"));
            return Err(problem.unwrap_or_else(|| growing.sentence(i, &why)));
        }
        if growing.names.len() > MOST {
            return Err(format!("the graph has more than {MOST} layers"));
        }
    }
    let view = growing.flow.view(&output.name);
    let last = view.and_then(|view| growing.ours.get(view.root));
    let last = match (last, &problem) {
        (Some(last), _) => {
            let numbers = growing.builder.shape(*last).len();
            if output
                .shape
                .as_deref()
                .is_some_and(|axes| !may_hold(axes, numbers))
            {
                return Err(format!(
                    "the output {} is said to be {}, and the layers give {numbers} numbers",
                    output.name,
                    axes_text(output.shape.as_deref().unwrap_or(&[]))
                ));
            }
            *last
        }
        (None, None) => return Err(format!("the output {} is a constant", output.name)),
        (None, Some(problem)) => match Vec::from_iter(edge)[..] {
            [only] => only,
            _ => return Err(problem.clone()),
        },
    };
    let shape = growing.builder.shape(last);
    let model = match shape.pixels() {
        1 => growing.builder.finish().map_err(|error| error.to_string()),
        _ => Err(format!(
            "the output {} is a map of {shape}, and no embedding",
            output.name
        )),
    };
    match model {
        Ok(model) => Ok(Own {
            model,
            rest: problem,
        }),
        Err(sentence) => Err(problem.unwrap_or(sentence)),
    }
}

/// Whether axes may be those of so many numbers for each picture; a vector is of one picture, whose batch is gone.
fn may_hold(axes: &[Axis], numbers: usize) -> bool {
    let [_, rest @ ..] = axes else { return true };
    let length = |all: usize, axis: &Axis| match axis {
        Axis::Length(n) => all.checked_mul(*n),
        Axis::Any(_) => None,
    };
    let open = rest.is_empty() || rest.iter().any(|axis| matches!(axis, Axis::Any(_)));
    open || rest.iter().try_fold(1, length) == Some(numbers)
}

/// Width and height of the input.
fn side(axes: Option<&[Axis]>, layout: Option<Layout>) -> Option<usize> {
    let length = |axis: &Axis| match axis {
        Axis::Length(n) => Some(*n),
        Axis::Any(_) => None,
    };
    let (c, h, w) = match (axes, layout?) {
        (None, _) => return Some(IMAGE_SIZE),
        (Some([_, c, h, w]), Layout::Chw) | (Some([_, h, w, c]), Layout::Hwc) => (c, h, w),
        _ => return None,
    };
    let side = match (length(h), length(w)) {
        (Some(h), Some(w)) if h != w => return None,
        (h, w) => h.or(w).unwrap_or(IMAGE_SIZE),
    };
    length(c).is_none_or(|c| c == 3).then_some(side)
}

/// Why a node is no layer, and which layers it reads. One that reads what is no layer has no reason of its own.
struct Stop {
    unfit: Option<Unfit>,
    read: Vec<NodeId>,
}

struct Growing<'a> {
    graph: &'a Graph,
    /// The first axis of the input.
    batch: Option<&'a Axis>,
    flow: Flow<'a>,
    builder: Builder,
    /// Our node by the name of its value.
    ours: HashMap<&'a str, NodeId>,
    /// The flatten behind a node that gives a map.
    flattened: HashMap<NodeId, NodeId>,
    /// The names of layers.
    names: HashSet<String>,
    /// Nodes that are part of the layer before them, or of the input transform.
    taken: HashSet<usize>,
}

impl<'a> Growing<'a> {
    /// Passes over the input transform.
    fn begin(&mut self, input: &'a str, x: NodeId) {
        let mut root = input;
        while let Some(Affine { node, .. }) = affine(&self.flow, self.graph, root) {
            self.taken.insert(node);
            root = output(&self.graph.nodes[node]);
        }
        self.ours.insert(root, x);
    }

    /// Makes a layer of node `i`, if it computes something that the embedding needs.
    fn node(&mut self, i: usize) -> Result<(), Stop> {
        let node = &self.graph.nodes[i];
        if !self.flow.is_needed(i) || self.taken.contains(&i) {
            return Ok(());
        }
        let given = output(node);
        let Some(view) = self.flow.view(given) else {
            // A constant, or numbers that follow from a shape.
            return Ok(());
        };
        if view.root != given {
            let Some(&x) = self.ours.get(view.root) else {
                return Ok(());
            };
            return self.flattens(node, self.builder.shape(x)).map_err(|unfit| {
                // Nothing may read it as what it is not.
                self.ours.remove(view.root);
                Stop {
                    unfit: Some(unfit),
                    read: Vec::new(),
                }
            });
        }
        let views: Vec<View<'a>> = (node.inputs.iter())
            .filter_map(|name| self.flow.view(name))
            .collect();
        let read: Vec<NodeId> = (views.iter())
            .filter_map(|view| self.ours.get(view.root).copied())
            .collect();
        if read.len() < views.len() {
            return Err(Stop { unfit: None, read });
        }
        match self.layer(i, &views, &read) {
            Ok((given, layer)) => {
                self.ours.insert(given, layer);
                Ok(())
            }
            Err(unfit) => Err(Stop {
                unfit: Some(unfit),
                read,
            }),
        }
    }

    /// The layer that a node is, and the name of its value.
    fn layer(
        &mut self,
        i: usize,
        views: &[View<'a>],
        read: &[NodeId],
    ) -> Result<(&'a str, NodeId), Unfit> {
        let node = &self.graph.nodes[i];
        let first = node.input(0).and_then(|name| self.flow.view(name));
        let (Some(view), &[x, ..]) = (first, read) else {
            return Err(Unfit::because("reads a constant in the place of data"));
        };
        let Shape { h, w, .. } = self.builder.shape(x);
        let given = output(node);
        let layer = match &node.op[..] {
            "Conv" => return self.conv(i, view, x),
            "Gemm" | "MatMul" => return self.dense(i, view, x),
            "BatchNormalization" => {
                let momentum = match node.attribute("momentum") {
                    Some(Attribute::Float(kept)) => *kept,
                    _ => BatchNorm::default().momentum,
                };
                let batch_norm = BatchNorm {
                    epsilon: super::epsilon(node),
                    momentum,
                    ..BatchNorm::default()
                };
                let name = self.name(i);
                self.builder.batch_norm(&name, x, batch_norm)
            }
            "Relu" => self.activation(i, x, Activation::Relu),
            "Clip" => {
                clips_to_six(&self.flow, node)?;
                self.activation(i, x, Activation::Relu6)
            }
            "PRelu" | "LeakyRelu" => self.activation(i, x, Activation::PRelu(())),
            "Add" | "Sum" => {
                let &[a, b] = read else {
                    let why = match views.len() {
                        1 => "adds a constant that is no layer's bias",
                        _ => "adds more than two values",
                    };
                    return Err(Unfit::because(why));
                };
                let (x, y) = (self.builder.shape(a), self.builder.shape(b));
                if x != y {
                    return Err(Unfit::because(format!("adds {y} to {x}")));
                }
                let name = self.name(i);
                self.builder.add(&name, a, b)
            }
            "MaxPool" => {
                let square = Moves::of(node, view, (h, w), [0; 2])?.square()?;
                let name = self.name(i);
                self.builder.max_pool(&name, x, square)
            }
            "GlobalAveragePool" | "AveragePool" | "ReduceMean" => {
                averages_map(&self.flow, node, view, (h, w))?;
                let name = self.name(i);
                self.builder.global_avg_pool(&name, x)
            }
            "Reshape" | "Flatten" | "Squeeze" | "Transpose" => {
                let why = "orders numbers in a way that no layer here does; \
                           a picture's numbers can only be made one row";
                return Err(Unfit::because(why));
            }
            _ => return Err(Unfit::other()),
        };
        Ok((given, layer))
    }

    fn activation(&mut self, i: usize, x: NodeId, activation: Activation) -> NodeId {
        let name = self.name(i);
        self.builder.activation(&name, x, activation)
    }

    fn conv(&mut self, i: usize, view: View<'a>, x: NodeId) -> Result<(&'a str, NodeId), Unfit> {
        let node = &self.graph.nodes[i];
        let shape @ Shape { h, w, c } = self.builder.shape(x);
        let [k, a_filter, r, s] = self.weights(node)?;
        let group = int(node, "group", 1);
        let depthwise = match group {
            1 if a_filter == c => false,
            _ if group == c as i64 && (k, a_filter) == (c, 1) => true,
            1 => {
                return Err(Unfit::because(format!(
                    "has filters of {a_filter} channels on {shape}"
                )));
            }
            _ => {
                return Err(Unfit::because(format!(
                    "has {k} filters of {a_filter} channels in group {group} on {shape}; one group of all channels, \
                     or one filter per channel, is a layer here"
                )));
            }
        };
        let kernel = [r as i64, s as i64];
        let moves = Moves::of(node, view, (h, w), kernel)?;
        if moves.kernel != kernel {
            return Err(wrong("the kernel", moves.kernel, kernel));
        }
        let square = moves.square()?;
        let (given, bias) = self.bias(node, k, false);
        let name = self.name(i);
        let layer = match depthwise {
            true => self.builder.depthwise(&name, x, square, bias, INIT),
            false => self.builder.conv2d(&name, x, k, square, bias, INIT),
        };
        Ok((given, layer))
    }

    fn dense(&mut self, i: usize, view: View<'a>, x: NodeId) -> Result<(&'a str, NodeId), Unfit> {
        let node = &self.graph.nodes[i];
        if !view.flat {
            return Err(Unfit::because("reads no N x C"));
        }
        let by_rows = node.op == "Gemm" && int(node, "transB", 0) == 1;
        let (k, c) = match (self.weights(node)?, by_rows) {
            ([k, c], true) | ([c, k], false) => (k, c),
        };
        let numbers = self.builder.shape(x).len();
        if c != numbers {
            return Err(wrong("weights for rows of", c, numbers));
        }
        let flat = self.flat(x, i);
        let (given, bias) = self.bias(node, k, true);
        let name = self.name(i);
        Ok((given, self.builder.linear(&name, flat, k, bias, INIT)))
    }

    /// The shape of a node's weights, which have N axes.
    fn weights<const N: usize>(&self, node: &'a Node) -> Result<[usize; N], Unfit> {
        let Some(weights) = self.flow.floats(node, 1) else {
            return Err(Unfit::because("has weights that are not constant"));
        };
        <[usize; N]>::try_from(&weights.shape[..]).map_err(|_| {
            let shape = &weights.shape;
            Unfit::because(format!(
                "has weights of the shape {shape:?}, not of {N} axes"
            ))
        })
    }

    /// Whether a bias is added to a node's `k` outputs, by itself or by the node behind it; and the name of the sum.
    fn bias(&mut self, node: &'a Node, k: usize, flat: bool) -> (&'a str, bool) {
        let given = output(node);
        if node.input(2).is_some() {
            return (given, true);
        }
        match separate_bias(&self.flow, self.graph, given, k, flat) {
            None => (given, false),
            Some((sum, _)) => {
                self.taken.insert(sum);
                (output(&self.graph.nodes[sum]), true)
            }
        }
    }

    /// The layer's value as one row, for node `i`.
    fn flat(&mut self, x: NodeId, i: usize) -> NodeId {
        if self.builder.shape(x).pixels() == 1 {
            return x;
        }
        if let Some(flat) = self.flattened.get(&x) {
            return *flat;
        }
        let name = self.unique("flatten".into(), i);
        let flat = self.builder.flatten(&name, x);
        self.flattened.insert(x, flat);
        flat
    }

    /// Whether a node that is seen through makes one row of an image of this shape, if it reshapes it at all.
    fn flattens(&self, node: &'a Node, shape: Shape) -> Result<(), Unfit> {
        match (&node.op[..], self.flow.ints(node, "shape", 1)) {
            ("Squeeze", _) if shape.pixels() > 1 => {
                Err(Unfit::because(format!("squeezes a map of {shape}")))
            }
            ("Reshape", Some(&[images, row, ..])) => {
                let all = row == shape.len() as i64 || row == 0 && shape.pixels() == 1;
                let batch = match self.batch {
                    Some(Axis::Length(n)) => *n as i64,
                    _ => 1,
                };
                let rest = row == -1 && [0, 1, batch].contains(&images);
                match all || rest {
                    true => Ok(()),
                    false => Err(Unfit::because(format!(
                        "reshapes N x {shape} to {images} x {row}; only N x {} is a layer here",
                        shape.len()
                    ))),
                }
            }
            _ => Ok(()),
        }
    }

    /// A layer's name: the node's, as far as layers may be called so.
    fn name(&mut self, i: usize) -> String {
        let node = &self.graph.nodes[i];
        let plain = |c: char| match c {
            c if c.is_ascii_alphanumeric() || "._-".contains(c) => c,
            '/' => '.',
            _ => '_',
        };
        let name: String = node.name.trim_matches('/').chars().map(plain).collect();
        let name = match name.is_empty() {
            true => node.op.to_lowercase(),
            false => name,
        };
        self.unique(name, i)
    }

    /// `name`, with the number of node `i` behind it where another layer is called so.
    fn unique(&mut self, name: String, i: usize) -> String {
        let others = (i + 1..).map(|n| format!("{name}_{n}"));
        let mut names = std::iter::once(name.clone()).chain(others);
        let free = names.find(|name| !self.names.contains(name));
        let free = free.expect("there are more numbers than names");
        self.names.insert(free.clone());
        free
    }

    fn sentence(&self, i: usize, Unfit { other, why }: &Unfit) -> String {
        let (node, all) = (&self.graph.nodes[i], self.graph.nodes.len());
        let name = match node.name.is_empty() {
            true => String::new(),
            false => format!("{} ", node.name),
        };
        let why = if *other { "is no layer here" } else { why };
        format!("node {} of {all}, {name}({}), {why}", i + 1, node.op)
    }
}

/// The name of a node's first value.
fn output(node: &Node) -> &str {
    let mut names = node.outputs.iter().filter(|name| !name.is_empty());
    names.next().map_or("", |name| name)
}
