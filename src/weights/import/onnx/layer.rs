//! The layers one by one: which node of a graph computes what one of ours does, and its weights in our layout.

use super::flow::{Floats, Flow, Layout, Use, View};
use super::window::{Moves, int, same_window, wrong};
use super::{Found, Matcher, Unfit, epsilon};
use crate::backend::geometry::{Padding, Window};
use crate::backend::{Activation, BatchNormAt, FilterAt};
use crate::graph::params::At;
use crate::graph::{Op, Shape};
use crate::weights::convention::{batch_norm_behind, filter_before, stands_for_pair};
use crate::weights::formats::onnx::{Attribute, Graph, Node};
use std::borrow::Cow;

/// Epsilons that differ by less are the same number, written by another program.
const SAME_EPSILON: f32 = 1e-4;

/// A filter layer as the graph has it.
struct Filter<'a> {
    /// K C R S, K x C, or C x K.
    weights: Floats<'a>,
    bias: Option<Vec<f32>>,
    /// A fully connected operator; otherwise Conv.
    dense: bool,
    /// Rows are filters; otherwise columns are.
    by_rows: bool,
    layout: Layout,
}

impl<'a> Matcher<'a> {
    pub(super) fn filter(&mut self, index: usize, x: &Found<'a>) -> Result<Found<'a>, String> {
        let node = &self.model.nodes()[index];
        let c = self.model.node(node.inputs[0]).shape.c;
        let k = node.shape.c;
        let (window, depthwise, linear) = match &node.op {
            Op::Conv2d { window, .. } => (Some(*window), false, false),
            Op::DepthwiseConv2d { window, .. } => (Some(*window), true, false),
            _ => (None, false, true),
        };
        // Where there is one pixel, a 1x1 convolution is a linear layer.
        let dense = linear || !depthwise && window.is_some_and(|w| w.p * w.q * w.h * w.w == 1);
        let paired = stands_for_pair(self.model, index);
        // Channels that a filter reads, and groups of filters that read the same.
        let groups = match (paired, depthwise) {
            (true, _) => (2, c / 2),
            (_, true) => (1, c),
            _ => (c, 1),
        };
        let wanted = match window {
            Some(w) if paired => format!("a {}x{} Conv of {} pairs of channels", w.r, w.s, c / 2),
            Some(w) if depthwise => format!("a depthwise {}x{} Conv of {c} channels", w.r, w.s),
            Some(w) => format!("a {}x{} Conv from {c} to {k} channels", w.r, w.s),
            None => format!("a Gemm, or MatMul, from {c} to {k} numbers"),
        };
        let At::Filter(at) = self.table.at(index) else {
            unreachable!("a filter layer has weights")
        };
        let bias_fits = at.bias.is_some() || batch_norm_behind(self.model, index).is_some();
        let (taken, mut filter) = self.find(index, &wanted, x.root, |reader| {
            let graph_node = &self.graph.nodes[reader.node];
            let filter = match &graph_node.op[..] {
                "Conv" => match window {
                    Some(window) => self.conv(reader, &window, k, groups)?,
                    None => self.conv_of_all(reader, x.map, [k, c])?,
                },
                "Gemm" | "MatMul" if dense => self.dense(reader, [k, c])?,
                _ => return Err(Unfit::other()),
            };
            match filter.bias.is_some() && !bias_fits {
                true => Err(Unfit::because("has a bias")),
                false => Ok(filter),
            }
        })?;
        let mut root = self.take(index, taken);
        if filter.bias.is_none() && bias_fits {
            (root, filter.bias) = self.added_bias(index, root, k, filter.dense);
        }
        self.store(index, at, &filter);
        let bias = match (at.bias, filter.bias) {
            (Some(at), bias) => {
                let bias = bias.unwrap_or_else(|| vec![0.0; k]);
                self.params[at..][..k].copy_from_slice(&bias);
                None
            }
            (None, bias) => bias,
        };
        Ok(Found {
            root,
            map: None,
            bias,
        })
    }

    fn conv(
        &self,
        reader: &Use<'a>,
        window: &Window,
        k: usize,
        (a_filter, group): (usize, usize),
    ) -> Result<Filter<'a>, Unfit> {
        let node = &self.graph.nodes[reader.node];
        let weights = self.weights(node)?;
        let expected = [k, a_filter, window.r, window.s];
        if weights.shape != expected || weights.transposed {
            return Err(wrong("weights of the shape", &weights.shape, expected));
        }
        if int(node, "group", 1) != group as i64 {
            return Err(wrong("group", int(node, "group", 1), group));
        }
        same_window(node, reader.view, window)?;
        if !reader.view.is_bare() && reader.view.filling != 0.0 {
            let filling = reader.view.filling;
            return Err(Unfit::because(format!(
                "reads an image padded with {filling}"
            )));
        }
        let bias = self.bias(node, k)?;
        Ok(Filter {
            weights,
            bias,
            dense: false,
            by_rows: true,
            layout: Layout::Chw,
        })
    }

    /// A convolution whose filters are as large as the map, in the place of a flatten and a linear layer.
    fn conv_of_all(
        &self,
        reader: &Use<'a>,
        map: Option<Shape>,
        [k, c]: [usize; 2],
    ) -> Result<Filter<'a>, Unfit> {
        let Shape { h, w, c: channels } = map.unwrap_or(Shape { h: 1, w: 1, c });
        let window = Window::new((h, w), (h, w), 1, Padding::default());
        let window = window.map_err(|e| Unfit::because(e.to_string()))?;
        self.conv(reader, &window, k, (channels, 1))
    }

    fn dense(&self, reader: &Use<'a>, [k, c]: [usize; 2]) -> Result<Filter<'a>, Unfit> {
        let node = &self.graph.nodes[reader.node];
        let gemm = node.op == "Gemm";
        if !reader.view.flat {
            return Err(Unfit::because("reads no N x C"));
        }
        let one = |name| match node.attribute(name) {
            None => true,
            Some(Attribute::Float(x)) => *x == 1.0,
            _ => false,
        };
        if gemm && (!one("alpha") || !one("beta") || int(node, "transA", 0) != 0) {
            return Err(Unfit::because("has alpha or beta other than 1, or transA"));
        }
        let by_rows = gemm && int(node, "transB", 0) == 1;
        let weights = self.weights(node)?;
        let expected = if by_rows { [k, c] } else { [c, k] };
        if weights.shape != expected {
            return Err(wrong("weights of the shape", &weights.shape, expected));
        }
        let bias = if gemm { self.bias(node, k)? } else { None };
        Ok(Filter {
            weights,
            bias,
            dense: true,
            by_rows,
            layout: reader.view.layout,
        })
    }

    fn weights(&self, node: &'a Node) -> Result<Floats<'a>, Unfit> {
        let weights = self.flow.floats(node, 1).cloned();
        weights.ok_or_else(|| Unfit::because("has weights that are not constant"))
    }

    /// A node's third input as K numbers.
    fn bias(&self, node: &'a Node, k: usize) -> Result<Option<Vec<f32>>, Unfit> {
        if node.input(2).is_none() {
            return Ok(None);
        }
        match self.flow.floats(node, 2) {
            Some(bias) if bias.values.len() == k && bias.shape.last() == Some(&k) => {
                Ok(Some(bias.values.to_vec()))
            }
            Some(bias) => Err(wrong("a bias of the shape", &bias.shape, [k])),
            None => Err(Unfit::because("has a bias that is not constant")),
        }
    }

    /// A bias that is a node of its own behind the layer: that node's value, and the bias.
    fn added_bias(
        &mut self,
        index: usize,
        root: &'a str,
        k: usize,
        flat: bool,
    ) -> (&'a str, Option<Vec<f32>>) {
        let Some((node, bias)) = separate_bias(&self.flow, self.graph, root, k, flat) else {
            return (root, None);
        };
        let bias = bias.to_vec();
        (self.take(index, node), Some(bias))
    }

    /// Puts weights into the slab.
    fn store(&mut self, index: usize, at: FilterAt, filter: &Filter<'a>) {
        let weight = format!("{}.weight", self.model.nodes()[index].name);
        let theirs = self.foreign.iter().find(|foreign| foreign.name == weight);
        let theirs = theirs.expect("every parameter of every layer has a name there");
        let values = &filter.weights.values[..];
        // Filter by filter, as PyTorch has them.
        let rows = match filter.by_rows != filter.weights.transposed {
            true => Cow::Borrowed(values),
            false => {
                let k = self.model.nodes()[index].shape.c;
                let c = values.len() / k;
                Cow::Owned(
                    (0..values.len())
                        .map(|i| values[i % c * k + i / c])
                        .collect(),
                )
            }
        };
        // A map that was flattened as N x H x W x C has our order.
        let ours = match filter.dense && filter.layout == Layout::Hwc {
            true => rows.into_owned(),
            false => theirs.to_ours(&rows),
        };
        self.params[at.weights..][..ours.len()].copy_from_slice(&ours);
    }

    pub(super) fn batch_norm(&mut self, index: usize, x: Found<'a>) -> Result<Found<'a>, String> {
        let node = &self.model.nodes()[index];
        let c = node.shape.c;
        let At::BatchNorm(at) = self.table.at(index) else {
            unreachable!("batch norm has its parameters")
        };
        let is_there = (self.flow.uses(x.root).iter())
            .any(|reader| self.graph.nodes[reader.node].op == "BatchNormalization");
        if !is_there && filter_before(self.model, index).is_some() {
            // Folded: scale 1, and the bias as beta, or as the mean where there is no beta.
            let bias = x.bias.unwrap_or_else(|| vec![0.0; c]);
            let mut vectors = identity(at.epsilon, c, &bias);
            if at.beta.is_none() {
                vectors[2] = bias.iter().map(|bias| -bias).collect();
            }
            self.set_batch_norm(at, c, &vectors);
            if let Some((into, _)) = self.layers.last() {
                self.layers.push((into.clone(), node.name.clone()));
            }
            return Ok(Found { bias: None, ..x });
        }
        let wanted = format!("a BatchNormalization of {c} channels");
        let (taken, mut vectors) = self.find(index, &wanted, x.root, |reader| {
            let node = &self.graph.nodes[reader.node];
            if node.op != "BatchNormalization" {
                return Err(Unfit::other());
            }
            self.batch_norm_vectors(reader, node, at, c, x.map)
        })?;
        if let Some(bias) = &x.bias {
            // (x + b) - mean = x - (mean - b).
            vectors[2]
                .iter_mut()
                .zip(bias)
                .for_each(|(mean, b)| *mean -= b);
        }
        self.set_batch_norm(at, c, &vectors);
        Ok(Found {
            root: self.take(index, taken),
            bias: None,
            ..x
        })
    }

    /// Gamma, beta, mean and variance.
    fn batch_norm_vectors(
        &self,
        reader: &Use<'a>,
        node: &'a Node,
        at: BatchNormAt,
        c: usize,
        map: Option<Shape>,
    ) -> Result<[Vec<f32>; 4], Unfit> {
        in_channels(reader.view, map)?;
        let vector = |i: usize| match self.flow.floats(node, i) {
            Some(vector) if vector.values.len() == c => Ok(vector.values.to_vec()),
            Some(vector) => Err(wrong("a vector of the length", vector.values.len(), c)),
            None => Err(Unfit::because("has parameters that are not constant")),
        };
        let epsilon = epsilon(node);
        let same = (epsilon - at.epsilon).abs() <= SAME_EPSILON * at.epsilon;
        if !same {
            return Err(wrong("the epsilon", epsilon, at.epsilon));
        }
        if int(node, "training_mode", 0) != 0 {
            return Err(Unfit::because("computes in training mode"));
        }
        let vectors = [vector(1)?, vector(2)?, vector(3)?, vector(4)?];
        if at.gamma.is_none() && vectors[0].iter().any(|gamma| *gamma != 1.0) {
            return Err(Unfit::because(
                "has a scale other than 1, which is fixed here",
            ));
        }
        if at.beta.is_none() && vectors[1].iter().any(|beta| *beta != 0.0) {
            return Err(Unfit::because(
                "has a shift other than 0, which is fixed here",
            ));
        }
        Ok(vectors)
    }

    fn set_batch_norm(&mut self, at: BatchNormAt, c: usize, vectors: &[Vec<f32>; 4]) {
        let [gamma, beta, mean, variance] = vectors;
        for (place, values) in [(at.gamma, gamma), (at.beta, beta)] {
            if let Some(place) = place {
                self.params[place..][..c].copy_from_slice(values);
            }
        }
        self.statistics[at.statistics..][..c].copy_from_slice(mean);
        self.statistics[at.statistics + c..][..c].copy_from_slice(variance);
    }

    pub(super) fn activation(
        &mut self,
        index: usize,
        activation: Activation,
        x: Found<'a>,
    ) -> Result<Found<'a>, String> {
        let c = self.model.nodes()[index].shape.c;
        let wanted = match activation {
            Activation::Identity => unreachable!("the builder refuses it"),
            Activation::Relu => "a Relu".to_owned(),
            Activation::Relu6 => "a Clip from 0 to 6".to_owned(),
            Activation::PRelu(()) => format!("a PRelu of {c} slopes"),
        };
        let (taken, slopes) = self.find(index, &wanted, x.root, |reader| {
            let graph_node = &self.graph.nodes[reader.node];
            if !reader.view.is_bare() {
                return Err(Unfit::because("reads a padded image"));
            }
            match (activation, &graph_node.op[..]) {
                (Activation::Relu, "Relu") => Ok(None),
                (Activation::Relu6, "Clip") => clips_to_six(&self.flow, graph_node).map(|()| None),
                (Activation::PRelu(()), "LeakyRelu") => Ok(Some(vec![leaky_slope(graph_node)?; c])),
                (Activation::PRelu(()), "PRelu") => {
                    self.slopes(reader, graph_node, c, x.map).map(Some)
                }
                _ => Err(Unfit::other()),
            }
        })?;
        if let (Some(slopes), At::Slope(at)) = (slopes, self.table.at(index)) {
            self.params[at..][..c].copy_from_slice(&slopes);
        }
        Ok(Found {
            root: self.take(index, taken),
            ..x
        })
    }

    /// A slope for each channel.
    fn slopes(
        &self,
        reader: &Use<'a>,
        node: &'a Node,
        c: usize,
        map: Option<Shape>,
    ) -> Result<Vec<f32>, Unfit> {
        let Some(slope) = self.flow.floats(node, 1) else {
            return Err(Unfit::because("has slopes that are not constant"));
        };
        if let [slope] = slope.values[..] {
            return Ok(vec![slope; c]);
        }
        in_channels(reader.view, map)?;
        // The axis of channels counted from the last.
        let behind = if reader.view.flat { 0 } else { 2 };
        let place = slope.shape.len().checked_sub(behind + 1);
        let fits = place.is_some_and(|place| slope.shape[place] == c);
        match fits && slope.values.len() == c {
            true => Ok(slope.values.to_vec()),
            false => Err(wrong("slopes of the shape", &slope.shape, [c, 1, 1])),
        }
    }

    pub(super) fn add(
        &mut self,
        index: usize,
        a: Found<'a>,
        b: &Found<'a>,
    ) -> Result<Found<'a>, String> {
        let wanted = format!("an Add of {}", b.root);
        let (taken, ()) = self.find(index, &wanted, a.root, |reader| {
            let node = &self.graph.nodes[reader.node];
            if !matches!(&node.op[..], "Add" | "Sum") {
                return Err(Unfit::other());
            }
            let view = |i: usize| node.input(i).and_then(|name| self.flow.view(name));
            let (Some(x), Some(y), 2) = (view(0), view(1), node.inputs.len()) else {
                return Err(Unfit::because("does not add two values"));
            };
            if x.layout != y.layout || x.flat != y.flat || !x.is_bare() || !y.is_bare() {
                return Err(Unfit::because("adds values of different layouts"));
            }
            match [x.root, y.root] == [a.root, b.root] || [y.root, x.root] == [a.root, b.root] {
                true => Ok(()),
                false => Err(Unfit::because(format!("adds {} and {}", x.root, y.root))),
            }
        })?;
        Ok(Found {
            root: self.take(index, taken),
            ..a
        })
    }

    pub(super) fn pool(&mut self, index: usize, x: Found<'a>) -> Result<Found<'a>, String> {
        let node = &self.model.nodes()[index];
        let before = node.inputs[0];
        let Shape { h, w, .. } = self.model.node(before).shape;
        let wanted = match &node.op {
            Op::MaxPool(window) => format!("a {}x{} MaxPool", window.r, window.s),
            _ => "a GlobalAveragePool".to_owned(),
        };
        let (taken, ()) = self.find(index, &wanted, x.root, |reader| {
            let graph_node = &self.graph.nodes[reader.node];
            let view = reader.view;
            match (&node.op, &graph_node.op[..]) {
                (Op::MaxPool(window), "MaxPool") => {
                    same_window(graph_node, view, window)?;
                    let before = &self.model.node(before).op;
                    let never_negative =
                        matches!(before, Op::Activation(Activation::Relu | Activation::Relu6));
                    let wins = !(view.filling == 0.0 && never_negative || view.filling <= f32::MIN);
                    if !view.is_bare() && wins {
                        let why = format!("pools an image padded with {}", view.filling);
                        return Err(Unfit::because(why));
                    }
                    Ok(())
                }
                (Op::GlobalAvgPool, "GlobalAveragePool" | "AveragePool" | "ReduceMean") => {
                    averages_map(&self.flow, graph_node, view, (h, w))
                }
                _ => Err(Unfit::other()),
            }
        })?;
        Ok(Found {
            root: self.take(index, taken),
            ..x
        })
    }
}

/// The node behind a layer of `k` outputs that adds a bias to them, and the bias; `flat`: the layer gives N x K.
pub(super) fn separate_bias<'a, 'f>(
    flow: &'f Flow<'a>,
    graph: &'a Graph,
    root: &str,
    k: usize,
    flat: bool,
) -> Option<(usize, &'f [f32])> {
    let (node, view, constant) = flow.arithmetic(graph, root)?;
    // K must be the axis of channels.
    let behind = match view.layout {
        Layout::Chw if !flat && !view.flat => 2,
        _ => 0,
    };
    let place = constant.shape.len().checked_sub(behind + 1)?;
    let fits = constant.shape[place] == k && constant.values.len() == k;
    (graph.nodes[node].op == "Add" && fits).then_some((node, &constant.values[..]))
}

/// Gamma, beta, mean and variance of a batch norm whose scale is 1 as nearly as float32 can say it: nearer than half a unit
/// in the last place of any weight, so that folding it changes none.
fn identity(epsilon: f32, c: usize, beta: &[f32]) -> [Vec<f32>; 4] {
    let variance = (1.0 - f64::from(epsilon)) as f32;
    [vec![1.0; c], beta.to_vec(), vec![0.0; c], vec![variance; c]]
}

/// Whether a Clip is from 0 to 6; its limits are attributes before version 11, then inputs.
pub(super) fn clips_to_six<'a>(flow: &Flow<'a>, node: &'a Node) -> Result<(), Unfit> {
    let limit = |name, i| match node.attribute(name) {
        Some(Attribute::Float(limit)) => Some(*limit),
        _ => flow.scalar(node, i),
    };
    match (limit("min", 1), limit("max", 2)) {
        (Some(0.0), Some(6.0)) => Ok(()),
        (min, max) => {
            let text = |x: Option<f32>| x.map_or("no constant".to_owned(), |x| x.to_string());
            Err(Unfit::because(format!(
                "clips from {} to {}",
                text(min),
                text(max)
            )))
        }
    }
}

/// The one slope of a LeakyRelu.
fn leaky_slope(node: &Node) -> Result<f32, Unfit> {
    match node.attribute("alpha") {
        None => Ok(0.01),
        Some(Attribute::Float(slope)) => Ok(*slope),
        Some(_) => Err(Unfit::because("has an alpha that is no number")),
    }
}

/// Whether a node averages the whole of a map of `h` x `w` pixels.
pub(super) fn averages_map<'a>(
    flow: &Flow<'a>,
    node: &'a Node,
    view: View<'a>,
    (h, w): (usize, usize),
) -> Result<(), Unfit> {
    bare(view)?;
    match &node.op[..] {
        "GlobalAveragePool" if view.layout == Layout::Chw => Ok(()),
        "GlobalAveragePool" => Err(Unfit::because("reads no N x C x H x W")),
        "AveragePool" => {
            let moves = Moves::of(node, view, (h, w), [0; 2])?;
            // With one position the stride does not matter.
            let whole = [h as i64, w as i64];
            if moves.kernel != whole {
                return Err(wrong("the kernel", moves.kernel, whole));
            }
            match moves.pads == [0; 4] {
                true => Ok(()),
                false => Err(wrong("the pads", moves.pads, [0; 4])),
            }
        }
        "ReduceMean" => {
            let mut axes = flow.ints(node, "axes", 1).unwrap_or(&[]).to_vec();
            axes.iter_mut()
                .filter(|axis| **axis < 0)
                .for_each(|axis| *axis += 4);
            axes.sort_unstable();
            let image: &[i64] = match view.layout {
                Layout::Chw => &[2, 3],
                Layout::Hwc => &[1, 2],
            };
            match axes == image && !view.flat {
                true => Ok(()),
                false => Err(wrong("the axes", axes, image)),
            }
        }
        _ => Err(Unfit::other()),
    }
}

fn bare(view: View<'_>) -> Result<(), Unfit> {
    match view.is_bare() {
        true => Ok(()),
        false => Err(Unfit::because("reads a padded image")),
    }
}

/// Axis 1 is that of our channels.
fn in_channels(view: View<'_>, map: Option<Shape>) -> Result<(), Unfit> {
    bare(view)?;
    match map {
        Some(_) => Err(Unfit::because(
            "reads a flattened map, whose order is another here",
        )),
        None if view.layout == Layout::Hwc && !view.flat => {
            Err(Unfit::because("reads N x H x W x C"))
        }
        None => Ok(()),
    }
}
