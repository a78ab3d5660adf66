//! A network as an ONNX file: version 8 of the format, operators of version 17.
//!
//! The input `input` is N x 3 x H x W, RGB; the output `embedding` is N x D, not normalised; N is free. Activations are
//! NCHW there and NHWC here; weights have PyTorch's layouts and names, in which a linear layer behind a flattened map takes
//! its columns in the order C, H, W (`convention.rs`). Dropout vanishes. A batch norm behind a filter layer is folded into it, in f64 as
//! for the program's own inference, unless it is asked to stay.
//!
//! The file's notes (`metadata_props`) say what the graph expects:
//!
//! | note | content |
//! |---|---|
//! | `preset`, `network` | where the network comes from |
//! | `colour_order` | `RGB` |
//! | `embedding_size` | D |
//! | `input_transform` | `outside`: the caller computes `pixel * scale + shift`; `inside`: the graph does, its input are pixels 0 to 255 |
//! | `input_scale`, `input_shift` | three numbers each, for R, G, B |

use crate::backend::geometry::{Padding, Window};
use crate::backend::{Activation, FilterAt, InputTransform};
use crate::base::files;
use crate::graph::folding::scale_and_shift;
use crate::graph::params::{At, ParamTable};
use crate::graph::{Model, Op, Shape};
use crate::weights::checkpoint::Weights;
use crate::weights::convention::{
    Convention, Foreign, batch_norm_behind, check_pairs, filter_before, foreign, pair_begins,
    stands_for_pair,
};
use crate::weights::formats::onnx::{Attribute, Axis, Graph, Node, Tensor, ValueInfo};
use crate::{Error, Result};
use std::path::Path;

/// The operators' version that the nodes follow.
const OPSET: i64 = 17;

/// How a network is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OnnxOptions {
    /// Every batch norm stays an operator of its own; otherwise those behind a filter layer are folded into it.
    pub keep_batch_norm: bool,
    /// The input transform is part of the graph, whose input are then pixels from 0 to 255; otherwise the caller applies it,
    /// as with InsightFace's files.
    pub transform_inside: bool,
}

/// Writes the file.
///
/// # Errors
/// As [`graph`]; the file cannot be written.
pub fn write(path: &Path, weights: &Weights, options: OnnxOptions) -> Result<()> {
    files::write(path, &graph(weights, options)?.encode())
}

/// The network as a graph of ONNX operators, with its notes.
///
/// # Errors
/// A configuration that makes no sense, a layer that ONNX has no operator for.
pub fn graph(weights: &Weights, options: OnnxOptions) -> Result<Graph> {
    let config = &weights.config;
    let slabs = [&weights.params[..], &weights.statistics];
    let inside = options.transform_inside.then_some(&config.model.input);
    let model = weights.model()?;
    let mut graph = network(&model, slabs, options.keep_batch_norm, inside)?;
    let three = |values: [f32; 3]| values.map(|x| x.to_string()).join(" ");
    let place = if inside.is_some() {
        "inside"
    } else {
        "outside"
    };
    let notes = [
        ("preset", config.preset.clone()),
        ("network", config.model.network_name().to_owned()),
        ("colour_order", "RGB".to_owned()),
        ("embedding_size", model.embedding_size().to_string()),
        ("input_transform", place.to_owned()),
        ("input_scale", three(config.model.input.scale)),
        ("input_shift", three(config.model.input.shift)),
    ];
    graph.metadata = notes.map(|(key, value)| (key.to_owned(), value)).into();
    Ok(graph)
}

/// A model with its parameter and statistics slabs as a graph without notes.
///
/// # Errors
/// A layer that ONNX has no operator for.
pub fn network(
    model: &Model,
    [params, statistics]: [&[f32]; 2],
    keep_batch_norm: bool,
    inside: Option<&InputTransform>,
) -> Result<Graph> {
    check_pairs(model)?;
    let Shape { h, w, .. } = model.input_shape();
    let batch = || Axis::Any("N".into());
    let value = |name: &str, shape| ValueInfo {
        name: name.into(),
        shape: Some(shape),
    };
    let image = vec![batch(), Axis::Length(3), Axis::Length(h), Axis::Length(w)];
    let embedding = vec![batch(), Axis::Length(model.embedding_size())];
    let table = ParamTable::new(model);
    let mut exporter = Exporter {
        model,
        foreign: foreign(model, &table, Convention::Torch),
        table,
        params,
        statistics,
        keep_batch_norm,
        graph: Graph {
            name: "arcface-cu".into(),
            producer: env!("CARGO_PKG_NAME").into(),
            producer_version: env!("CARGO_PKG_VERSION").into(),
            opset: OPSET,
            inputs: vec![value(INPUT, image)],
            outputs: vec![value(OUTPUT, embedding)],
            ..Graph::default()
        },
        given: Vec::new(),
    };
    for index in 0..model.nodes().len() {
        let given = exporter.node(index, inside)?;
        exporter.given.push(given);
    }
    exporter.finish()
}

const INPUT: &str = "input";
const OUTPUT: &str = "embedding";

/// What a node's value is called in the graph, and what it looks like there.
#[derive(Clone, Debug)]
struct Given {
    name: String,
    /// N x C; otherwise N x C x H x W.
    flat: bool,
    /// The map that was flattened into it, whose elements are in the order C, H, W; none where the order is ours.
    map: Option<Shape>,
}

struct Exporter<'a> {
    model: &'a Model,
    table: ParamTable,
    foreign: Vec<Foreign>,
    params: &'a [f32],
    statistics: &'a [f32],
    keep_batch_norm: bool,
    graph: Graph,
    /// By our node.
    given: Vec<Given>,
}

impl Exporter<'_> {
    /// Appends our node `index`.
    fn node(&mut self, index: usize, inside: Option<&InputTransform>) -> Result<Given> {
        let node = &self.model.nodes()[index];
        let x = |i: usize| self.given[node.inputs[i].0].clone();
        let pair = |place: usize| {
            (index.checked_sub(place)).is_some_and(|first| pair_begins(self.model, first))
        };
        match &node.op {
            // One convolution in groups of two, in the place of the second of its four nodes.
            _ if pair(0) => Ok(x(0)),
            _ if pair(2) || pair(3) => Ok(self.given[index - 1].clone()),
            Op::Input => Ok(self.input(inside)),
            Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::Linear { .. } => {
                let x = x(0);
                self.filter(index, x)
            }
            Op::BatchNorm(_) => {
                if !self.keep_batch_norm && filter_before(self.model, index).is_some() {
                    return Ok(x(0));
                }
                let x = x(0);
                self.batch_norm(index, x)
            }
            Op::Activation(activation) => {
                let x = x(0);
                self.activation(index, *activation, x)
            }
            Op::Add => {
                let (mut a, mut b) = (x(0), x(1));
                if a.flat != b.flat {
                    (a, b) = (self.flat(a), self.flat(b));
                }
                if a.map != b.map {
                    self.refuse_map(index, &a)?;
                    self.refuse_map(index, &b)?;
                }
                Ok(self.push(Node::new("Add", &node.name, &[&a.name, &b.name], ""), a))
            }
            Op::MaxPool(window) => {
                let x = x(0);
                self.refuse_flat(index, &x)?;
                let pool = Node::new("MaxPool", &node.name, &[&x.name], "");
                Ok(self.push(windowed(pool, window), x))
            }
            Op::GlobalAvgPool => {
                let x = x(0);
                self.refuse_flat(index, &x)?;
                let pool = Node::new("GlobalAveragePool", &node.name, &[&x.name], "");
                Ok(self.push(pool, x))
            }
            Op::Dropout { .. } => Ok(x(0)),
            Op::Flatten => {
                let (x, map) = (x(0), self.model.node(node.inputs[0]).shape);
                let map = (map.pixels() > 1).then_some(map).or(x.map);
                Ok(Given {
                    map,
                    ..self.flat(x)
                })
            }
        }
    }

    fn activation(&mut self, index: usize, activation: Activation, x: Given) -> Result<Given> {
        let node = &self.model.nodes()[index];
        let node = match activation {
            Activation::Identity => return Ok(x),
            Activation::Relu => Node::new("Relu", &node.name, &[&x.name], ""),
            Activation::Relu6 => {
                for (name, limit) in [("relu6/min", 0.0), ("relu6/max", 6.0)] {
                    if !self.graph.initializers.iter().any(|t| t.name == name) {
                        self.constant(name, vec![], vec![limit]);
                    }
                }
                let inputs = [&x.name, "relu6/min", "relu6/max"];
                Node::new("Clip", &node.name, &inputs, "")
            }
            Activation::PRelu(()) => {
                self.refuse_map(index, &x)?;
                let At::Slope(at) = self.table.at(index) else {
                    unreachable!("PReLU has slopes")
                };
                let c = node.shape.c;
                let shape = if x.flat { vec![c] } else { vec![c, 1, 1] };
                let slope = format!("{}.weight", node.name);
                self.constant(&slope, shape, self.params[at..][..c].to_vec());
                Node::new("PRelu", &node.name, &[&x.name, &slope], "")
            }
        };
        Ok(self.push(node, x))
    }

    fn input(&mut self, inside: Option<&InputTransform>) -> Given {
        let mut name = INPUT.to_owned();
        if let Some(InputTransform { scale, shift }) = inside {
            for (op, what, values) in [("Mul", "scale", scale), ("Add", "shift", shift)] {
                let constant = format!("input.{what}");
                self.constant(&constant, vec![1, 3, 1, 1], values.to_vec());
                let given = format!("input/{what}");
                let node = Node::new(op, &given, &[&name, &constant], &given);
                self.graph.nodes.push(node);
                name = given;
            }
        }
        Given {
            name,
            flat: false,
            map: None,
        }
    }

    /// What PyTorch calls so, which lays tensors out as ONNX does.
    fn theirs(&self, name: &str) -> &Foreign {
        let found = self.foreign.iter().find(|foreign| foreign.name == name);
        found.expect("every parameter of every layer has a name there")
    }

    /// Appends a node, gives its output its name; the value is like `x` otherwise.
    fn push(&mut self, mut node: Node, x: Given) -> Given {
        // Not the layer's name alone: one of ours is called as the output is.
        let name = format!("{}/output", node.name);
        node.outputs = vec![name.clone()];
        self.graph.nodes.push(node);
        Given { name, ..x }
    }

    fn constant(&mut self, name: &str, shape: Vec<usize>, values: Vec<f32>) {
        let tensor = Tensor::floats(name, shape, values);
        self.graph.initializers.push(tensor);
    }

    /// The value as N x C.
    fn flat(&mut self, x: Given) -> Given {
        if x.flat {
            return x;
        }
        let name = format!("{}/flat", x.name.trim_end_matches("/output"));
        let node = Node::new("Flatten", &name, &[&x.name], "").with("axis", Attribute::Int(1));
        let flat = Given { flat: true, ..x };
        // A second reader finds the first one's.
        let given = format!("{name}/output");
        match self.graph.nodes.iter().any(|node| node.outputs[0] == given) {
            true => Given {
                name: given,
                ..flat
            },
            false => self.push(node, flat),
        }
    }

    /// A flattened map's elements are in another order than ours; only a linear layer can make up for that.
    fn refuse_map(&self, index: usize, x: &Given) -> Result<()> {
        match x.map {
            None => Ok(()),
            Some(Shape { h, w, .. }) => Err(Error::Invalid(format!(
                "layer {} reads a flattened {h}x{w} map, which ONNX flattens in another order; only a linear layer can be \
                 exported there",
                self.model.nodes()[index].name
            ))),
        }
    }

    /// A vector has no rows and columns for a window there.
    fn refuse_flat(&self, index: usize, x: &Given) -> Result<()> {
        match x.flat {
            false => Ok(()),
            true => Err(Error::Invalid(format!(
                "layer {} moves a window over a vector, which ONNX does not; a linear layer can be exported there",
                self.model.nodes()[index].name
            ))),
        }
    }

    /// The batch norm that is folded into filter layer `index`.
    fn folds(&self, index: usize) -> Option<usize> {
        batch_norm_behind(self.model, index).filter(|_| !self.keep_batch_norm)
    }

    fn filter(&mut self, index: usize, x: Given) -> Result<Given> {
        let node = &self.model.nodes()[index];
        let At::Filter(FilterAt { weights, bias }) = self.table.at(index) else {
            unreachable!("a filter layer has weights")
        };
        let k = node.shape.c;
        let (scale, shift) = match self.folds(index).map(|bn| self.table.at(bn)) {
            Some(At::BatchNorm(at)) => {
                let (scale, shift) = scale_and_shift(at, k, self.params, self.statistics);
                (Some(scale), Some(shift))
            }
            _ => (None, None),
        };
        let name = &node.name;
        let (weight, offset) = (format!("{name}.weight"), format!("{name}.bias"));
        let theirs = self.theirs(&weight);
        let mut values = self.params[weights..][..theirs.len()].to_vec();
        if let Some(scale) = &scale {
            let filter = match node.op {
                Op::DepthwiseConv2d { .. } => |i: usize, k: usize, _: usize| i % k,
                _ => |i: usize, _: usize, a_filter: usize| i / a_filter,
            };
            let a_filter = values.len() / k;
            for (i, value) in values.iter_mut().enumerate() {
                *value = (f64::from(*value) * scale[filter(i, k, a_filter)]) as f32;
            }
        }
        let (shape, values) = (theirs.shape.clone(), theirs.to_theirs(&values));
        let bias = bias.map(|at| &self.params[at..][..k]);
        let bias: Option<Vec<f32>> = match (bias, &scale, &shift) {
            (bias, Some(scale), Some(shift)) => {
                let b = |k: usize| bias.map_or(0.0, |bias| f64::from(bias[k]));
                Some(
                    (0..k)
                        .map(|k| (b(k) * scale[k] + shift[k]) as f32)
                        .collect(),
                )
            }
            (bias, ..) => bias.map(<[f32]>::to_vec),
        };
        self.constant(&weight, shape, values);
        let window = match &node.op {
            Op::Conv2d { window, .. } | Op::DepthwiseConv2d { window, .. } => Some(*window),
            _ => None,
        };
        let x = match window {
            None => self.flat(x),
            Some(_) => {
                self.refuse_flat(index, &x)?;
                x
            }
        };
        let mut inputs = vec![&x.name[..], &weight];
        if let Some(values) = bias {
            self.constant(&offset, vec![k], values);
            inputs.push(&offset);
        }
        let new = match window {
            Some(window) => {
                let group = match node.op {
                    Op::DepthwiseConv2d { .. } if stands_for_pair(self.model, index) => k / 2,
                    Op::DepthwiseConv2d { .. } => k,
                    _ => 1,
                };
                let conv = Node::new("Conv", name, &inputs, "");
                windowed(conv, &window).with("group", Attribute::Int(group as i64))
            }
            None => Node::new("Gemm", name, &inputs, "").with("transB", Attribute::Int(1)),
        };
        let given = self.push(new, x);
        Ok(Given { map: None, ..given })
    }

    fn batch_norm(&mut self, index: usize, x: Given) -> Result<Given> {
        self.refuse_map(index, &x)?;
        let node = &self.model.nodes()[index];
        let At::BatchNorm(at) = self.table.at(index) else {
            unreachable!("batch norm has its parameters")
        };
        let vectors = ["weight", "bias", "running_mean", "running_var"];
        let names = vectors.map(|vector| format!("{}.{vector}", node.name));
        let mut inputs = vec![&x.name[..]];
        for name in &names {
            let theirs = self.theirs(name);
            let (shape, values) = (
                theirs.shape.clone(),
                theirs.read(self.params, self.statistics),
            );
            self.constant(name, shape, values);
            inputs.push(name);
        }
        let new = Node::new("BatchNormalization", &node.name, &inputs, "")
            .with("epsilon", Attribute::Float(at.epsilon));
        Ok(self.push(new, x))
    }

    /// Gives the last value the output's name.
    fn finish(mut self) -> Result<Graph> {
        let last = self.given.len() - 1;
        let given = self.given[last].clone();
        self.refuse_map(last, &given)?;
        let given = self.flat(given);
        for node in &mut self.graph.nodes {
            for name in node.outputs.iter_mut().chain(&mut node.inputs) {
                if *name == given.name {
                    *name = OUTPUT.into();
                }
            }
        }
        match self
            .graph
            .nodes
            .iter()
            .any(|node| node.outputs[0] == OUTPUT)
        {
            true => Ok(self.graph),
            false => Err(Error::Invalid(
                "a network without layers cannot be exported".into(),
            )),
        }
    }
}

/// A node with the attributes of a sliding window.
fn windowed(node: Node, window: &Window) -> Node {
    let Padding {
        top,
        bottom,
        left,
        right,
    } = window.pad;
    let ints = |values: &[usize]| Attribute::Ints(values.iter().map(|&n| n as i64).collect());
    node.with("kernel_shape", ints(&[window.r, window.s]))
        .with("strides", ints(&[window.stride; 2]))
        .with("pads", ints(&[top, left, bottom, right]))
}
