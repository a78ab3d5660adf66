//! What flows through an ONNX graph, with everything seen through that only moves or names numbers.
//!
//! Exporters put such nodes between the layers: Identity, Dropout, Cast, Transpose to and from NHWC, Flatten or a Reshape whose
//! target they compute (Shape, Gather, Concat, ...), Pad before a convolution, Constant, and whole calculations of constants.
//! Here each value is what it comes from: data of a *root* (a graph input or the output of a node that computes) in a
//! certain view, a constant, or numbers that follow from a shape.

use crate::weights::formats::onnx::{Attribute, Axis, Elements, Graph, Node, Tensor};
use std::borrow::Cow;
use std::collections::{HashMap, HashSet};

/// Whole-number constants are calculated up to so many elements; shapes and paddings are no larger.
const MOST_INTS: usize = 64;

/// More axes than any constant of a layer has.
const MOST_AXES: usize = 8;

/// The order of an image's axes behind the batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    Chw,
    Hwc,
}

/// How a root's data are looked at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct View<'a> {
    /// The value's name where it is computed.
    pub(super) root: &'a str,
    /// The order of elements.
    pub(super) layout: Layout,
    /// One axis behind the batch (or axes of length 1 behind that).
    pub(super) flat: bool,
    /// Rows and columns added around the image: top, left, bottom, right.
    pub(super) pads: [usize; 4],
    /// What they are filled with.
    pub(super) filling: f32,
}

impl View<'_> {
    /// Whether nothing is added around the image.
    pub(super) fn is_bare(&self) -> bool {
        self.pads == [0; 4]
    }
}

/// Constant numbers: the first two axes of `shape` are exchanged against `values` where they are `transposed`.
#[derive(Clone, Debug)]
pub(super) struct Floats<'a> {
    pub(super) values: Cow<'a, [f32]>,
    pub(super) shape: Vec<usize>,
    pub(super) transposed: bool,
}

/// Few whole-number constants.
#[derive(Clone, Debug)]
pub(super) struct Ints {
    values: Vec<i64>,
    shape: Vec<usize>,
}

/// What a value is.
#[derive(Clone, Debug)]
pub(super) enum Value<'a> {
    Data(View<'a>),
    Floats(Floats<'a>),
    Ints(Ints),
    /// Numbers that follow from the shape of data; how many, where that is known.
    FromShape(Option<usize>),
    /// A constant of no use here.
    Other,
}

/// A node that reads data.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use<'a> {
    pub(super) node: usize,
    pub(super) view: View<'a>,
}

/// The values of a graph, and who reads the data.
#[derive(Debug)]
pub(super) struct Flow<'a> {
    values: HashMap<&'a str, Value<'a>>,
    uses: HashMap<&'a str, Vec<Use<'a>>>,
    /// By node.
    needed: Vec<bool>,
}

impl<'a> Flow<'a> {
    pub(super) fn new(graph: &'a Graph) -> Self {
        let mut flow = Flow {
            values: HashMap::new(),
            uses: HashMap::new(),
            needed: Vec::new(),
        };
        for tensor in &graph.initializers {
            flow.values.insert(&tensor.name, constant(tensor));
        }
        for input in &graph.inputs {
            // A picture whose last axis alone has 3 elements is N x H x W x 3.
            let three = |axis: Option<&Axis>| axis == Some(&Axis::Length(3));
            let layout = match input.shape.as_deref() {
                Some([_, c, _, last]) if three(Some(last)) && !three(Some(c)) => Layout::Hwc,
                _ => Layout::Chw,
            };
            let view = View {
                root: &input.name,
                layout,
                flat: false,
                pads: [0; 4],
                filling: 0.0,
            };
            flow.values.insert(&input.name, Value::Data(view));
        }
        for (i, node) in graph.nodes.iter().enumerate() {
            flow.node(i, node);
        }
        // Of two nodes that compute the same, the one that the embedding needs is found first.
        flow.needed = needed(graph);
        for uses in flow.uses.values_mut() {
            uses.sort_by_key(|reader| !flow.needed[reader.node]);
        }
        flow
    }

    /// Whether the graph's first output depends on a node.
    pub(super) fn is_needed(&self, node: usize) -> bool {
        self.needed[node]
    }

    /// The value of a node's input `i`.
    pub(super) fn input(&self, node: &'a Node, i: usize) -> Option<&Value<'a>> {
        self.values.get(node.input(i)?)
    }

    /// The constant that is a node's input `i`.
    pub(super) fn floats(&self, node: &'a Node, i: usize) -> Option<&Floats<'a>> {
        match self.input(node, i)? {
            Value::Floats(floats) => Some(floats),
            _ => None,
        }
    }

    /// The one number that is a node's input `i`.
    pub(super) fn scalar(&self, node: &'a Node, i: usize) -> Option<f32> {
        match self.input(node, i)? {
            Value::Floats(floats) if floats.values.len() == 1 => Some(floats.values[0]),
            Value::Ints(ints) if ints.values.len() == 1 => Some(ints.values[0] as f32),
            _ => None,
        }
    }

    /// Whole numbers that are an attribute, or input `i` in later versions of an operator.
    pub(super) fn ints(&self, node: &'a Node, name: &str, i: usize) -> Option<&[i64]> {
        match (node.attribute(name), self.input(node, i)) {
            (Some(Attribute::Ints(ints)), _) => Some(ints),
            (None, Some(Value::Ints(ints))) => Some(&ints.values),
            _ => None,
        }
    }

    /// What a value is, by its name.
    pub(super) fn view(&self, name: &str) -> Option<View<'a>> {
        match self.values.get(name)? {
            Value::Data(view) => Some(*view),
            _ => None,
        }
    }

    /// The nodes that read a root's data.
    pub(super) fn uses(&self, root: &str) -> &[Use<'a>] {
        self.uses.get(root).map_or(&[], Vec::as_slice)
    }

    /// The one reader of `root`, if it adds a constant to it, or subtracts, multiplies or divides by one.
    pub(super) fn arithmetic(
        &self,
        graph: &'a Graph,
        root: &str,
    ) -> Option<(usize, View<'a>, &Floats<'a>)> {
        let [Use { node, view }] = self.uses(root) else {
            return None;
        };
        let inputs = &graph.nodes[*node];
        let constant = match &inputs.op[..] {
            "Add" | "Mul" => self.floats(inputs, 1).or_else(|| self.floats(inputs, 0)),
            "Sub" | "Div" => self.floats(inputs, 1),
            _ => None,
        }?;
        view.is_bare().then_some((*node, *view, constant))
    }

    fn node(&mut self, i: usize, node: &'a Node) {
        let Some(output) = node.outputs.iter().find(|name| !name.is_empty()) else {
            return;
        };
        let reads: Vec<View<'a>> = (node.inputs.iter())
            .filter_map(|name| self.view(name))
            .collect();
        let value = match reads.first() {
            None => self.calculate(node),
            Some(_) if node.op == "Shape" => Value::FromShape(None),
            Some(view) => match self.look_through(node, *view) {
                Some(view) => Value::Data(view),
                None => {
                    for &view in &reads {
                        let uses = self.uses.entry(view.root).or_default();
                        uses.push(Use { node: i, view });
                    }
                    // The one operator that takes the axes of the image away by itself.
                    let reduced = node.op == "ReduceMean"
                        && node.attribute("keepdims") == Some(&Attribute::Int(0));
                    Value::Data(View {
                        root: output,
                        flat: view.flat || reduced,
                        pads: [0; 4],
                        ..*view
                    })
                }
            },
        };
        // Of other outputs (a dropout's mask, the indices of a pool) nothing is known: they are roots that nobody looks for.
        for other in node
            .outputs
            .iter()
            .filter(|name| *name != output && !name.is_empty())
        {
            self.values.insert(other, Value::Other);
        }
        self.values.insert(output, value);
    }

    /// The view that a node gives, if all it does is to look at `view` in another way.
    fn look_through(&self, node: &'a Node, view: View<'a>) -> Option<View<'a>> {
        // The data are what is looked at, not an argument.
        if self.view(node.input(0)?)? != view {
            return None;
        }
        let flat = View { flat: true, ..view };
        match &node.op[..] {
            "Identity" => Some(view),
            // Input 2 says whether it is at work, in training.
            "Dropout" => match (node.input(2), self.scalar(node, 2)) {
                (None, _) => Some(view),
                (_, Some(at_work)) => (at_work == 0.0).then_some(view),
                _ => None,
            },
            // float32, float16, float64, bfloat16.
            "Cast" => match node.attribute("to") {
                Some(Attribute::Int(1 | 10 | 11 | 16)) => Some(view),
                _ => None,
            },
            "Flatten" if view.is_bare() => match node.attribute("axis") {
                None | Some(Attribute::Int(1 | -3)) => Some(flat),
                _ => None,
            },
            "Squeeze" if view.is_bare() => Some(flat),
            "MaxPool" if takes_every_pixel(node) => Some(view),
            "Reshape" if view.is_bare() => {
                let fits = match self.input(node, 1)? {
                    Value::Ints(ints) => {
                        matches!(ints.values[..], [_, _] | [_, _, 1, 1])
                    }
                    Value::FromShape(length) => *length == Some(2),
                    _ => false,
                };
                fits.then_some(flat)
            }
            "Transpose" if view.is_bare() && !view.flat => {
                let Some(Attribute::Ints(perm)) = node.attribute("perm") else {
                    return None;
                };
                let layout = match (view.layout, &perm[..]) {
                    (layout, [0, 1, 2, 3]) => layout,
                    (Layout::Chw, [0, 2, 3, 1]) => Layout::Hwc,
                    (Layout::Hwc, [0, 3, 1, 2]) => Layout::Chw,
                    _ => return None,
                };
                Some(View { layout, ..view })
            }
            "Pad" if !view.flat => self.pad(node, view),
            _ => None,
        }
    }

    fn pad(&self, node: &'a Node, view: View<'a>) -> Option<View<'a>> {
        let constant = match node.attribute("mode") {
            None => true,
            Some(Attribute::Text(mode)) => mode == "constant",
            _ => false,
        };
        // From version 18 on, input 3 may name the axes.
        if !constant || node.input(3).is_some() {
            return None;
        }
        let filling = match node.attribute("value") {
            Some(Attribute::Float(value)) => *value,
            _ if node.input(2).is_some() => self.scalar(node, 2)?,
            _ => 0.0,
        };
        let added = match (view.layout, self.ints(node, "pads", 1)?) {
            (Layout::Chw, &[0, 0, t, l, 0, 0, b, r]) => [t, l, b, r],
            (Layout::Hwc, &[0, t, l, 0, 0, b, r, 0]) => [t, l, b, r],
            _ => return None,
        };
        if !view.is_bare() && view.filling != filling {
            return None;
        }
        let mut pads = view.pads;
        for (pad, added) in pads.iter_mut().zip(added) {
            *pad = pad.checked_add(usize::try_from(added).ok()?)?;
        }
        Some(View {
            pads,
            filling,
            ..view
        })
    }

    /// The value of a node that reads no data.
    fn calculate(&self, node: &'a Node) -> Value<'a> {
        if node.op == "Constant" {
            return node_constant(node);
        }
        let from_shape = (0..node.inputs.len())
            .any(|i| matches!(self.input(node, i), Some(Value::FromShape(_))));
        if from_shape {
            return Value::FromShape(self.length(node));
        }
        match self.input(node, 0) {
            Some(Value::Floats(floats)) => self.floats_of(node, floats),
            Some(Value::Ints(_)) => self.ints_of(node).unwrap_or(Value::Other),
            _ => Value::Other,
        }
    }

    /// How many elements a node gives that calculates with numbers from a shape.
    fn length(&self, node: &'a Node) -> Option<usize> {
        let of = |i: usize| match self.input(node, i)? {
            Value::FromShape(length) => *length,
            Value::Ints(ints) => Some(ints.values.len()),
            _ => None,
        };
        match &node.op[..] {
            "Gather" => of(1),
            "Identity" | "Cast" | "Unsqueeze" | "Squeeze" => of(0),
            "Concat" => (0..node.inputs.len()).try_fold(0_usize, |n, i| n.checked_add(of(i)?)),
            "Slice" => match (self.ints(node, "starts", 1)?, self.ints(node, "ends", 2)?) {
                (&[start], &[end]) if start >= 0 && end >= 0 => usize::try_from(end - start).ok(),
                _ => None,
            },
            _ => None,
        }
    }

    /// A node that looks at a floating-point constant in another way.
    fn floats_of(&self, node: &'a Node, floats: &Floats<'a>) -> Value<'a> {
        let shape = match &node.op[..] {
            "Identity" | "Cast" => Some(floats.shape.clone()),
            "Unsqueeze" | "Squeeze" | "Reshape" if !floats.transposed => {
                self.reshaped(node, &floats.shape)
            }
            "Transpose" if floats.shape.len() == 2 => match node.attribute("perm") {
                None => Some(vec![floats.shape[1], floats.shape[0]]),
                Some(Attribute::Ints(perm)) if perm[..] == [1, 0] => {
                    Some(vec![floats.shape[1], floats.shape[0]])
                }
                _ => None,
            },
            _ => None,
        };
        match shape {
            Some(shape) => Value::Floats(Floats {
                values: floats.values.clone(),
                shape,
                transposed: floats.transposed ^ (node.op == "Transpose"),
            }),
            None => Value::Other,
        }
    }

    /// The shape that Unsqueeze, Squeeze or Reshape gives.
    fn reshaped(&self, node: &'a Node, shape: &[usize]) -> Option<Vec<usize>> {
        let arguments = match &node.op[..] {
            "Reshape" => self.ints(node, "shape", 1)?,
            _ => self.ints(node, "axes", 1).unwrap_or(&[]),
        };
        let axis = |axis: i64, rank: usize| {
            let axis = if axis < 0 { axis + rank as i64 } else { axis };
            usize::try_from(axis).ok().filter(|axis| *axis < rank)
        };
        match &node.op[..] {
            "Unsqueeze" => {
                let rank = shape.len() + arguments.len();
                if rank > MOST_AXES {
                    return None;
                }
                let ones: Vec<usize> = arguments
                    .iter()
                    .map(|&a| axis(a, rank))
                    .collect::<Option<_>>()?;
                let mut rest = shape.iter();
                let new = (0..rank).map(|i| match ones.contains(&i) {
                    true => Some(1),
                    false => rest.next().copied(),
                });
                let new: Vec<usize> = new.collect::<Option<_>>()?;
                rest.next().is_none().then_some(new)
            }
            "Squeeze" => {
                let gone: Vec<usize> = match arguments {
                    [] => (0..shape.len()).filter(|&i| shape[i] == 1).collect(),
                    axes => axes
                        .iter()
                        .map(|&a| axis(a, shape.len()).filter(|&i| shape[i] == 1))
                        .collect::<Option<_>>()?,
                };
                let kept = (0..shape.len()).filter(|i| !gone.contains(i));
                Some(kept.map(|i| shape[i]).collect())
            }
            _ => {
                if arguments.len() > MOST_AXES {
                    return None;
                }
                let all: usize = shape.iter().product();
                let known: i64 = (arguments.iter().filter(|n| **n != -1))
                    .try_fold(1_i64, |n, &axis| n.checked_mul(axis))?;
                let known = usize::try_from(known).ok().filter(|n| *n > 0)?;
                let open = arguments.iter().filter(|n| **n == -1).count();
                let fits = match open {
                    0 => all == known,
                    1 => all.is_multiple_of(known),
                    _ => false,
                };
                let length = |n: i64| usize::try_from(n).unwrap_or(all / known);
                fits.then(|| arguments.iter().map(|&n| length(n)).collect())
            }
        }
    }

    /// A node that calculates with few whole numbers.
    fn ints_of(&self, node: &'a Node) -> Option<Value<'a>> {
        let ints = |i: usize| match self.input(node, i)? {
            Value::Ints(ints) => Some(ints),
            _ => None,
        };
        let x = ints(0)?;
        let new = match &node.op[..] {
            "Identity" => x.clone(),
            "Cast" => match node.attribute("to")? {
                Attribute::Int(6 | 7) => x.clone(),
                Attribute::Int(1 | 10 | 11 | 16) => {
                    return Some(Value::Floats(Floats {
                        values: x.values.iter().map(|&n| n as f32).collect(),
                        shape: x.shape.clone(),
                        transposed: false,
                    }));
                }
                _ => return None,
            },
            "ConstantOfShape" => {
                let n = x
                    .values
                    .iter()
                    .try_fold(1_i64, |n, &axis| n.checked_mul(axis))?;
                let n = usize::try_from(n).ok().filter(|n| *n <= MOST_INTS)?;
                let filling = match node.attribute("value") {
                    Some(Attribute::Tensor(tensor)) => *tensor.as_ints()?.first()?,
                    _ => return None,
                };
                let shape: Result<_, _> = x.values.iter().map(|&n| usize::try_from(n)).collect();
                Ints {
                    values: vec![filling; n],
                    shape: shape.ok()?,
                }
            }
            "Concat" => {
                let mut values = Vec::new();
                for i in 0..node.inputs.len() {
                    let part = ints(i)?;
                    if part.shape.len() != 1 || values.len() + part.values.len() > MOST_INTS {
                        return None;
                    }
                    values.extend(&part.values);
                }
                let shape = vec![values.len()];
                Ints { values, shape }
            }
            "Reshape" | "Unsqueeze" | "Squeeze" => Ints {
                values: x.values.clone(),
                shape: self.reshaped(node, &x.shape)?,
            },
            "Transpose" => {
                let [rows, columns] = x.shape[..] else {
                    return None;
                };
                let at = |i: usize| x.values[i % rows * columns + i / rows];
                Ints {
                    values: (0..rows * columns).map(at).collect(),
                    shape: vec![columns, rows],
                }
            }
            // Rows in the other order; no exporter writes another one for constants.
            "Slice" => {
                let one = |i: usize| ints(i).and_then(|x| x.values.first().copied());
                let backwards = (one(1)?, one(3)?, one(4)?) == (-1, 0, -1);
                let rows = *x.shape.first()?;
                if !backwards || rows == 0 || one(2)? > -(rows as i64) - 1 {
                    return None;
                }
                let rows = x.values.rchunks_exact((x.values.len() / rows).max(1));
                Ints {
                    values: rows.flatten().copied().collect(),
                    shape: x.shape.clone(),
                }
            }
            _ => return None,
        };
        (new.values.len() <= MOST_INTS && new.shape.len() <= MOST_AXES).then_some(Value::Ints(new))
    }
}

/// Whether a pool's windows are single pixels, all of them, as in the shortcuts of IR networks.
fn takes_every_pixel(node: &Node) -> bool {
    let all = |name: &str, number: i64| match node.attribute(name) {
        None => name != "kernel_shape",
        Some(Attribute::Ints(ints)) => ints.iter().all(|n| *n == number),
        Some(_) => false,
    };
    let padded =
        matches!(node.attribute("auto_pad"), Some(Attribute::Text(how)) if how != "NOTSET");
    all("kernel_shape", 1)
        && all("strides", 1)
        && all("pads", 0)
        && !padded
        && node.outputs.len() == 1
}

/// The nodes that the first output depends on; values are given before they are read.
fn needed(graph: &Graph) -> Vec<bool> {
    let mut needed = vec![false; graph.nodes.len()];
    let mut values: HashSet<&str> = graph.outputs.iter().take(1).map(|x| &x.name[..]).collect();
    for (needed, node) in needed.iter_mut().zip(&graph.nodes).rev() {
        *needed = node.outputs.iter().any(|name| values.contains(&name[..]));
        if *needed {
            let inputs = node.inputs.iter().map(String::as_str);
            values.extend(inputs.filter(|name| !name.is_empty()));
        }
    }
    needed
}

fn constant(tensor: &Tensor) -> Value<'_> {
    if tensor.shape.len() > MOST_AXES {
        return Value::Other;
    }
    match &tensor.elements {
        Elements::Floats(values) => Value::Floats(Floats {
            values: Cow::Borrowed(values),
            shape: tensor.shape.clone(),
            transposed: false,
        }),
        Elements::Ints(values) if values.len() <= MOST_INTS => Value::Ints(Ints {
            values: values.clone(),
            shape: tensor.shape.clone(),
        }),
        _ => Value::Other,
    }
}

/// What a Constant node holds.
fn node_constant(node: &Node) -> Value<'_> {
    let ints = |values: &[i64], shape: Vec<usize>| {
        Value::Ints(Ints {
            values: values.to_vec(),
            shape,
        })
    };
    let floats = |values, shape| {
        Value::Floats(Floats {
            values: Cow::Borrowed(values),
            shape,
            transposed: false,
        })
    };
    match node.attributes.first() {
        Some((_, Attribute::Tensor(tensor))) => constant(tensor),
        Some((_, Attribute::Float(value))) => floats(std::slice::from_ref(value), vec![]),
        Some((_, Attribute::Floats(values))) => floats(values, vec![values.len()]),
        Some((_, Attribute::Int(value))) => ints(&[*value], vec![]),
        Some((_, Attribute::Ints(values))) if values.len() <= MOST_INTS => {
            ints(values, vec![values.len()])
        }
        _ => Value::Other,
    }
}
