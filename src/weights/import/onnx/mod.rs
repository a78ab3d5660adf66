//! Weights from an ONNX graph by its structure: names in the graph do not matter.
//!
//! A candidate [`Model`] is walked in order. For each of its layers the node is looked for that reads the values which the
//! layer's inputs were found to be, computes the same, and has weights of the same shape; what only moves numbers is seen
//! through (`flow.rs`). A batch norm that the exporter folded into the layer before it becomes one that changes nothing but
//! by its beta. Constants that are subtracted from the input, multiplied and so on, or a batch norm of the input, are the
//! input transform.
//!
//! A graph that is none of the candidates can be a model of its own (`network.rs`), which is then matched like them.

mod flow;
mod layer;
mod network;
mod normalised;
mod window;

use crate::backend::InputTransform;
use crate::graph::params::{Param, ParamTable};
use crate::graph::{Model, Op, Shape};
use crate::optim::Role;
use crate::weights::convention::{Convention, Foreign, foreign, pair_begins};
use crate::weights::formats::onnx::{Attribute, Axis, Elements, Graph, Node, Tensor};
use flow::{Floats, Flow, Layout, Use, View};
use normalised::Normalised;
use std::fmt;

/// What a graph gave for a model.
#[derive(Clone, Debug, PartialEq)]
pub struct Slabs {
    /// The parameter slab.
    pub params: Vec<f32>,
    /// The statistics slab.
    pub statistics: Vec<f32>,
    /// What the graph does to its input before the first layer; none where it does nothing.
    pub input: Option<InputTransform>,
    /// Which of the graph's nodes is which of our layers: its name and operator, the layer's name. A batch norm that was
    /// folded is there with the node that it is folded into.
    pub layers: Vec<(String, String)>,
    /// The graph's nodes that compute something which is no part of the embedding: name and operator, why they are not
    /// taken.
    pub unused: Vec<(String, String)>,
}

/// Where a graph is not the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// The place of the model's node that was not found; as many as there are where the graph goes on behind the last.
    pub node: usize,
    /// What was expected, and what is there.
    pub sentence: String,
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// The parameters of `model` in `graph`.
///
/// # Errors
/// The graph is another network: the first node that differs. Tried with several models, the one with the largest
/// [`Mismatch::node`] is nearest.
pub fn match_model(model: &Model, graph: &Graph) -> Result<Slabs, Mismatch> {
    matched(model, graph, None)
}

/// The network that a graph is by itself, and its parameters.
///
/// # Errors
/// The first node that is no layer here: its place, name and operator, and why.
pub fn own_network(graph: &Graph) -> Result<(Model, Slabs), String> {
    let network::Own { model, rest } = network::network(graph)?;
    let slabs = matched(&model, graph, rest).map_err(|mismatch| mismatch.sentence)?;
    Ok((model, slabs))
}

/// The parameters of `model` in `graph`; `rest` says why it is not the model, where that goes on behind its last layer.
fn matched(model: &Model, graph: &Graph, rest: Option<String>) -> Result<Slabs, Mismatch> {
    let table = ParamTable::new(model);
    enough_floats(&table, graph)?;
    let mut matcher = Matcher {
        model,
        graph,
        flow: Flow::new(graph),
        params: vec![0.0; table.params_len()],
        statistics: vec![0.0; table.statistics_len()],
        foreign: foreign(model, &table, Convention::Torch),
        table,
        found: Vec::new(),
        taken: vec![false; graph.nodes.len()],
        input: None,
        layers: Vec::new(),
    };
    matcher.set_fixed();
    for index in 0..model.nodes().len() {
        let found = matcher.node(index).map_err(|sentence| Mismatch {
            node: index,
            sentence,
        })?;
        matcher.found.push(found);
    }
    matcher
        .end()
        .map_err(|sentence| rest.unwrap_or(sentence))
        .and_then(|()| matcher.finite())
        .map_err(|sentence| Mismatch {
            node: model.nodes().len(),
            sentence,
        })?;
    Ok(Slabs {
        unused: matcher.unused(),
        params: matcher.params,
        statistics: matcher.statistics,
        input: matcher.input,
        layers: matcher.layers,
    })
}

/// That the graph has numbers for a network of this size: nothing is allocated for one that it merely claims to be.
fn enough_floats(table: &ParamTable, graph: &Graph) -> Result<(), Mismatch> {
    // Of a batch norm that was folded the graph has one number for two here; slopes may be one for all channels.
    const SMALL: usize = 1 << 16;
    let learnt = (table.params().iter()).filter(|param| param.role != Role::Fixed);
    let (there, here) = (floats(graph), learnt.map(Param::len).sum::<usize>());
    match here <= there.saturating_mul(2).saturating_add(SMALL) {
        true => Ok(()),
        false => Err(Mismatch {
            node: 0,
            sentence: format!("the graph holds {there} numbers, the network {here}"),
        }),
    }
}

/// How many floating-point numbers a graph's constants have.
fn floats(graph: &Graph) -> usize {
    let tensor = |tensor: &Tensor| match &tensor.elements {
        Elements::Floats(values) => values.len(),
        _ => 0,
    };
    let attribute = |(_, attribute): &(String, Attribute)| match attribute {
        Attribute::Tensor(constant) => tensor(constant),
        Attribute::Floats(values) => values.len(),
        Attribute::Float(_) => 1,
        _ => 0,
    };
    let constants = graph.nodes.iter().filter(|node| node.op == "Constant");
    let constants = constants.flat_map(|node| &node.attributes).map(attribute);
    constants.chain(graph.initializers.iter().map(tensor)).sum()
}

/// The embedding size of a graph: the last axis of its first output of more than one number or, where the file does not say, what the last node with
/// weights gives; none where that is more than all its numbers.
pub fn embedding_size(graph: &Graph) -> Option<usize> {
    claimed_size(graph).filter(|size| *size <= floats(graph))
}

fn claimed_size(graph: &Graph) -> Option<usize> {
    // A second output may be the embedding's length.
    let sizes = graph
        .outputs
        .iter()
        .filter_map(|output| match output.shape.as_deref() {
            Some([_, Axis::Length(n)]) => Some(*n),
            _ => None,
        });
    if let Some(n) = sizes
        .clone()
        .find(|n| *n > 1)
        .or_else(|| sizes.clone().next())
    {
        return Some(n);
    }
    let shape = |name: &str| {
        let tensor = graph.initializers.iter().find(|t| t.name == name)?;
        matches!(tensor.elements, Elements::Floats(_)).then_some(&tensor.shape[..])
    };
    graph.nodes.iter().rev().find_map(|node| {
        let weights = shape(node.input(1)?)?;
        match (&node.op[..], weights) {
            ("BatchNormalization", [k]) | ("Conv", [k, _, _, _]) | ("MatMul", [_, k]) => Some(*k),
            ("Gemm", [rows, columns]) => match node.attribute("transB") {
                Some(Attribute::Int(1)) => Some(*rows),
                _ => Some(*columns),
            },
            _ => None,
        }
    })
}

/// The input transform that a file of this program's own says the caller applies (`export/onnx.rs`); none where the graph
/// applies it, or where a number is none.
pub fn noted_input(graph: &Graph) -> Option<InputTransform> {
    let number = |text: &str| text.parse::<f32>().ok().filter(|x| x.is_finite());
    let three = |key: &str| {
        let numbers: Option<Vec<f32>> = graph.note(key)?.split(' ').map(number).collect();
        <[f32; 3]>::try_from(numbers?).ok()
    };
    if graph.note("input_transform") != Some("outside") {
        return None;
    }
    Some(InputTransform {
        scale: three("input_scale")?,
        shift: three("input_shift")?,
    })
}

/// What one of our nodes was found to be.
#[derive(Clone, Debug)]
struct Found<'a> {
    /// Its value in the graph.
    root: &'a str,
    /// The map that was flattened into it.
    map: Option<Shape>,
    /// A bias that the graph's filter layer has and ours has not: the batch norm behind it takes it.
    bias: Option<Vec<f32>>,
}

/// Why a node is not the one looked for.
struct Unfit {
    /// It computes something else altogether.
    other: bool,
    why: String,
}

impl Unfit {
    fn other() -> Self {
        Unfit {
            other: true,
            why: String::new(),
        }
    }

    fn because(why: impl Into<String>) -> Self {
        Unfit {
            other: false,
            why: why.into(),
        }
    }
}

struct Matcher<'a> {
    model: &'a Model,
    graph: &'a Graph,
    flow: Flow<'a>,
    table: ParamTable,
    /// The parameters in PyTorch's layouts, which are ONNX's.
    foreign: Vec<Foreign>,
    params: Vec<f32>,
    statistics: Vec<f32>,
    /// By our node.
    found: Vec<Found<'a>>,
    /// The graph's nodes that are one of ours already.
    taken: Vec<bool>,
    input: Option<InputTransform>,
    layers: Vec<(String, String)>,
}

impl<'a> Matcher<'a> {
    /// Finds our node `index`, or says what is there instead.
    fn node(&mut self, index: usize) -> Result<Found<'a>, String> {
        let model = self.model;
        let node = &model.nodes()[index];
        let x = node.inputs.first().map(|x| self.found[x.0].clone());
        let Some(x) = x else {
            return self.start();
        };
        let pair = |place: usize| {
            (index.checked_sub(place)).is_some_and(|first| pair_begins(model, first))
        };
        match &node.op {
            Op::Input => unreachable!("the input reads nothing"),
            // One convolution in groups of two, found in the place of the second of its four nodes.
            _ if pair(0) => Ok(x),
            _ if pair(2) || pair(3) => Ok(self.found[index - 1].clone()),
            Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::Linear { .. } => {
                self.filter(index, &x)
            }
            Op::BatchNorm(_) => self.batch_norm(index, x),
            Op::Activation(activation) => self.activation(index, *activation, x),
            Op::Add => {
                let b = self.found[node.inputs[1].0].clone();
                self.add(index, x, &b)
            }
            Op::MaxPool(_) | Op::GlobalAvgPool => self.pool(index, x),
            Op::Dropout { .. } => Ok(x),
            Op::Flatten => {
                let map = model.node(node.inputs[0]).shape;
                let map = (map.pixels() > 1).then_some(map).or(x.map);
                Ok(Found { map, ..x })
            }
        }
    }

    /// The graph's input, of the right size, and the transform behind it.
    fn start(&mut self) -> Result<Found<'a>, String> {
        let Shape { h, w, .. } = self.model.input_shape();
        let [input] = &self.graph.inputs[..] else {
            return Err(format!(
                "the graph has {} inputs; a network here has one, the picture",
                self.graph.inputs.len()
            ));
        };
        if let Some(axes) = &input.shape {
            let is = |axis: &Axis, n: usize| match axis {
                Axis::Length(length) => *length == n,
                Axis::Any(_) => true,
            };
            let fits = match &axes[..] {
                [_, a, b, c] => {
                    is(a, 3) && is(b, h) && is(c, w) || is(a, h) && is(b, w) && is(c, 3)
                }
                _ => false,
            };
            if !fits {
                return Err(format!(
                    "the graph's input {} is {}; the network takes N x 3 x {h} x {w}",
                    input.name,
                    axes_text(axes)
                ));
            }
        }
        let mut root = &input.name[..];
        let (mut scale, mut shift, mut any) = ([1.0_f64; 3], [0.0_f64; 3], false);
        while let Some(Affine { node, factor, add }) = affine(&self.flow, self.graph, root)
            && !(self.graph.nodes[node].op == "BatchNormalization" && self.begins_with_batch_norm())
        {
            for c in 0..3 {
                (scale[c], shift[c]) = (scale[c] * factor[c], shift[c] * factor[c] + add[c]);
            }
            (root, any) = (self.take(0, node), true);
        }
        if any {
            let transform = InputTransform {
                scale: scale.map(|x| x as f32),
                shift: shift.map(|x| x as f32),
            };
            if !(transform.scale.iter().chain(&transform.shift)).all(|x| x.is_finite()) {
                return Err(format!(
                    "the constants that {} is transformed with give no finite numbers",
                    input.name
                ));
            }
            self.input = Some(transform);
        }
        Ok(Found {
            root,
            map: None,
            bias: None,
        })
    }

    /// Whether the model itself normalises its input; then the graph's first batch norm is that layer.
    fn begins_with_batch_norm(&self) -> bool {
        let mut nodes = self.model.nodes().iter();
        nodes.any(|node| {
            matches!(node.op, Op::BatchNorm(_)) && self.model.node(node.inputs[0]).op == Op::Input
        })
    }

    /// Notes that a node of the graph is our layer `index`, or a part of it; the name of its value.
    fn take(&mut self, index: usize, node: usize) -> &'a str {
        self.taken[node] = true;
        let layer = self.model.nodes()[index].name.clone();
        self.layers.push((self.graph.describe(node), layer));
        self.graph.nodes[node]
            .outputs
            .first()
            .map_or("", |name| name)
    }

    /// The first node that reads `root` and that `fits` says is the one; or the sentence which says that our layer `index`,
    /// which is `wanted`, is not there.
    fn find<T>(
        &self,
        index: usize,
        wanted: &str,
        root: &str,
        fits: impl Fn(&Use<'a>) -> Result<T, Unfit>,
    ) -> Result<(usize, T), String> {
        let mut nearest: Option<(usize, Unfit)> = None;
        for reader in self.flow.uses(root) {
            if self.taken[reader.node] {
                continue;
            }
            match fits(reader) {
                Ok(found) => return Ok((reader.node, found)),
                Err(unfit) => {
                    let nearer = match &nearest {
                        None => true,
                        Some((_, nearest)) => nearest.other && !unfit.other,
                    };
                    if nearer {
                        nearest = Some((reader.node, unfit));
                    }
                }
            }
        }
        let layer = &self.model.nodes()[index].name;
        let found = match nearest {
            None => "no other node reads it".into(),
            Some((node, Unfit { other: true, .. })) => {
                format!("found node {}", self.graph.describe(node))
            }
            Some((node, unfit)) => {
                format!(
                    "found node {}, which {}",
                    self.graph.describe(node),
                    unfit.why
                )
            }
        };
        Err(format!(
            "layer {layer}: expected {wanted} on {root}, {found}"
        ))
    }

    /// The graph ends where the model does, or with the embedding divided by its length. It may have other outputs, too.
    fn end(&mut self) -> Result<(), String> {
        let last = &self.found[self.found.len() - 1];
        let Some(output) = self.graph.outputs.first() else {
            return Err("the graph has no output".into());
        };
        if last.map.is_some() {
            return Err("the embedding is a flattened map, in another order than here".into());
        }
        let is_last = |view: View<'_>| view.root == last.root && view.is_bare();
        let normalised = Normalised::new(self.graph, &self.flow, last.root);
        let ends = (self.graph.outputs.iter()).find_map(|output| {
            match self.flow.view(&output.name).is_some_and(is_last) {
                true => Some(Vec::new()),
                false => normalised.nodes(&output.name),
            }
        });
        match ends {
            Some(nodes) => {
                nodes.into_iter().for_each(|node| self.taken[node] = true);
                Ok(())
            }
            None => {
                let next = self
                    .flow
                    .uses(last.root)
                    .iter()
                    .find(|reader| !self.taken[reader.node]);
                Err(match next {
                    Some(reader) => format!(
                        "the network ends with {}, but the graph goes on with node {}",
                        last.root,
                        self.graph.describe(reader.node)
                    ),
                    None => format!(
                        "the network ends with {}, which is not the graph's output {}",
                        last.root, output.name
                    ),
                })
            }
        }
    }

    /// Every parameter is of finite numbers.
    fn finite(&self) -> Result<(), String> {
        let params = self.table.params().iter();
        let params = params.map(|p| (&p.name, &self.params[p.offset..][..p.len()]));
        let statistics = self.table.statistics().iter();
        let statistics = statistics.map(|s| (&s.name, &self.statistics[s.offset..][..s.len]));
        let mut all = params.chain(statistics);
        match all.find(|(_, values)| values.iter().any(|x| !x.is_finite())) {
            Some((name, _)) => Err(format!("{name} has numbers there that are not finite")),
            None => Ok(()),
        }
    }

    /// The nodes that are roots and none of ours; all others only move numbers, or calculate constants.
    fn unused(&self) -> Vec<(String, String)> {
        let computes = |name: &String| (self.flow.view(name)).is_some_and(|view| view.root == name);
        let nodes = self.graph.nodes.iter().enumerate();
        let unused = nodes.filter(|(i, node)| !self.taken[*i] && node.outputs.iter().any(computes));
        unused
            .map(|(i, _)| {
                (
                    self.graph.describe(i),
                    "the embedding does not need it".into(),
                )
            })
            .collect()
    }

    /// Parameters that no file gives, since they are always the same.
    fn set_fixed(&mut self) {
        let is_fixed = |param: &&Param| param.role == Role::Fixed;
        if self.table.params().iter().any(|param| is_fixed(&param)) {
            let (start, _) = self.table.init(0);
            for param in self.table.params().iter().filter(is_fixed) {
                let place = param.offset..param.offset + param.len();
                self.params[place.clone()].copy_from_slice(&start[place]);
            }
        }
    }
}

fn axes_text(axes: &[Axis]) -> String {
    let axis = |axis: &Axis| match axis {
        Axis::Length(n) => n.to_string(),
        Axis::Any(name) if name.is_empty() => "?".into(),
        Axis::Any(name) => name.clone(),
    };
    let axes: Vec<String> = axes.iter().map(axis).collect();
    axes.join(" x ")
}

/// What a node does to each channel of the picture: `x * factor + add`.
struct Affine {
    node: usize,
    factor: [f64; 3],
    add: [f64; 3],
}

/// The one reader of the picture `root`, if all it does is to add, subtract, multiply by or divide by constants, or to
/// normalise.
fn affine<'a>(flow: &Flow<'a>, graph: &'a Graph, root: &str) -> Option<Affine> {
    const ONE: [f64; 3] = [1.0; 3];
    const ZERO: [f64; 3] = [0.0; 3];
    if let Some((node, view, constant)) = flow.arithmetic(graph, root) {
        let by = three(constant, view)?;
        let (factor, add) = match &graph.nodes[node].op[..] {
            "Add" => (ONE, by),
            "Sub" => (ONE, by.map(|x| -x)),
            "Mul" => (by, ZERO),
            _ => (by.map(|x| 1.0 / x), ZERO),
        };
        return Some(Affine { node, factor, add });
    }
    let [Use { node, view }] = *flow.uses(root) else {
        return None;
    };
    let normalises = &graph.nodes[node];
    let channels = view.layout == Layout::Chw && !view.flat && view.is_bare();
    if normalises.op != "BatchNormalization" || !channels {
        return None;
    }
    let vector = |i: usize| <[f32; 3]>::try_from(&flow.floats(normalises, i)?.values[..]).ok();
    let [gamma, beta, mean, variance] = [vector(1)?, vector(2)?, vector(3)?, vector(4)?];
    let epsilon = f64::from(epsilon(normalises));
    let factor: [f64; 3] =
        std::array::from_fn(|c| f64::from(gamma[c]) / (f64::from(variance[c]) + epsilon).sqrt());
    let add = std::array::from_fn(|c| f64::from(beta[c]) - f64::from(mean[c]) * factor[c]);
    Some(Affine { node, factor, add })
}

/// A BatchNormalization's epsilon.
fn epsilon(node: &Node) -> f32 {
    match node.attribute("epsilon") {
        Some(Attribute::Float(epsilon)) => *epsilon,
        _ => 1e-5,
    }
}

/// A constant of one number, or of one for each of the picture's channels in `view`.
fn three(constant: &Floats<'_>, view: View<'_>) -> Option<[f64; 3]> {
    match constant.values[..] {
        [x] => Some([f64::from(x); 3]),
        [a, b, c] => {
            let behind = match view.layout {
                Layout::Chw => 2,
                Layout::Hwc => 0,
            };
            let place = constant.shape.len().checked_sub(behind + 1)?;
            (constant.shape[place] == 3).then(|| [a, b, c].map(f64::from))
        }
        _ => None,
    }
}
