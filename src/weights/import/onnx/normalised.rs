//! An embedding that the graph divides by its length at the end, however the exporter spelt that. It makes no difference here:
//! embeddings are compared by their angles.
//!
//! | a quotient x / |x| | |
//! |---|---|
//! | `LpNormalization` | p = 2, over the last axis |
//! | `Div(x, L)`, `Mul(x, 1/L)` | 1/L is `Reciprocal(L)`, `Div(1, L)` or `Pow(S, -1/2)` |
//! | L | `ReduceL2(x)`, `Sqrt(S)`, `Pow(S, 1/2)` |
//! | S | `ReduceSumSquare(x)`, `ReduceSum` of `Mul(x, x)` or `Pow(x, 2)` |
//!
//! Between these an epsilon may be added or be the least value (`Add`, `Max`, `Clip`), and the shape may change
//! (`Expand`, `Unsqueeze`, what `flow.rs` looks through).

use super::flow::Flow;
use crate::weights::formats::onnx::{Attribute, Graph, Node};
use std::collections::HashMap;

/// The largest epsilon.
const EPSILON: f32 = 1e-3;

/// So many nodes are looked back at.
const DEEPEST: usize = 16;

/// The end of a graph behind the embedding `x`, a root.
pub(super) struct Normalised<'a> {
    graph: &'a Graph,
    flow: &'a Flow<'a>,
    x: &'a str,
    /// Which node gives a root.
    givers: HashMap<&'a str, usize>,
}

impl<'a> Normalised<'a> {
    pub(super) fn new(graph: &'a Graph, flow: &'a Flow<'a>, x: &'a str) -> Self {
        let nodes = graph.nodes.iter().enumerate();
        let givers = nodes.filter_map(|(i, node)| Some((&node.outputs.first()?[..], i)));
        Normalised {
            graph,
            flow,
            x,
            givers: givers.collect(),
        }
    }

    /// The nodes that make the value `name` of x by dividing it by its length; none if it is another value.
    pub(super) fn nodes(&self, name: &str) -> Option<Vec<usize>> {
        let mut taken = Vec::new();
        self.quotient(name, &mut taken).then_some(taken)
    }

    fn quotient(&self, name: &str, taken: &mut Vec<usize>) -> bool {
        let Some(node) = self.giver(name, taken) else {
            return false;
        };
        match &node.op[..] {
            "LpNormalization" => {
                let int = |name: &str, absent: i64| match node.attribute(name) {
                    None => absent,
                    Some(Attribute::Int(value)) => *value,
                    Some(_) => i64::MIN,
                };
                int("p", 2) == 2 && matches!(int("axis", -1), -1 | 1) && self.is_x(node, 0)
            }
            "Div" => self.is_x(node, 0) && self.length(node, 1, taken, DEEPEST),
            "Mul" => [(0, 1), (1, 0)]
                .into_iter()
                .any(|(x, other)| self.is_x(node, x) && self.inverse(node, other, taken, DEEPEST)),
            _ => false,
        }
    }

    /// The node that computes a value.
    fn giver(&self, name: &str, taken: &mut Vec<usize>) -> Option<&'a Node> {
        let root = self.flow.view(name)?.root;
        let index = *self.givers.get(root)?;
        taken.push(index);
        Some(&self.graph.nodes[index])
    }

    /// Whether input `i` of a node is x, as N x D.
    fn is_x(&self, node: &Node, i: usize) -> bool {
        let view = node.input(i).and_then(|name| self.flow.view(name));
        view.is_some_and(|view| view.root == self.x && view.is_bare())
    }

    /// Whether input `i` of a node is 1 / |x|.
    fn inverse(&self, node: &'a Node, i: usize, taken: &mut Vec<usize>, deep: usize) -> bool {
        let (Some(deep), Some(name)) = (deep.checked_sub(1), node.input(i)) else {
            return false;
        };
        let Some(node) = self.giver(name, taken) else {
            return false;
        };
        match &node.op[..] {
            "Reciprocal" => self.length(node, 0, taken, deep),
            "Div" => self.number(node, 0) == Some(1.0) && self.length(node, 1, taken, deep),
            "Pow" => self.number(node, 1) == Some(-0.5) && self.square(node, 0, taken, deep),
            "Expand" | "Unsqueeze" => self.inverse(node, 0, taken, deep),
            _ => false,
        }
    }

    /// Whether input `i` of a node is |x|.
    fn length(&self, node: &'a Node, i: usize, taken: &mut Vec<usize>, deep: usize) -> bool {
        let (Some(deep), Some(name)) = (deep.checked_sub(1), node.input(i)) else {
            return false;
        };
        let Some(node) = self.giver(name, taken) else {
            return false;
        };
        match &node.op[..] {
            "ReduceL2" => self.is_x(node, 0) && self.over_numbers(node),
            "Sqrt" => self.square(node, 0, taken, deep),
            "Pow" => self.number(node, 1) == Some(0.5) && self.square(node, 0, taken, deep),
            _ => match self.kept(node) {
                Some(i) => self.length(node, i, taken, deep),
                None => false,
            },
        }
    }

    /// Whether input `i` of a node is |x|^2.
    fn square(&self, node: &'a Node, i: usize, taken: &mut Vec<usize>, deep: usize) -> bool {
        let (Some(deep), Some(name)) = (deep.checked_sub(1), node.input(i)) else {
            return false;
        };
        let Some(node) = self.giver(name, taken) else {
            return false;
        };
        match &node.op[..] {
            "ReduceSumSquare" => self.is_x(node, 0) && self.over_numbers(node),
            "ReduceSum" if self.over_numbers(node) => {
                let Some(node) = node.input(0).and_then(|name| self.giver(name, taken)) else {
                    return false;
                };
                match &node.op[..] {
                    "Mul" => self.is_x(node, 0) && self.is_x(node, 1),
                    "Pow" => self.is_x(node, 0) && self.number(node, 1) == Some(2.0),
                    _ => false,
                }
            }
            _ => match self.kept(node) {
                Some(i) => self.square(node, i, taken, deep),
                None => false,
            },
        }
    }

    /// Which input of a node is its value but for an epsilon or its shape.
    fn kept(&self, node: &'a Node) -> Option<usize> {
        let small = |x: Option<f32>| x.is_some_and(|x| (0.0..=EPSILON).contains(&x));
        match &node.op[..] {
            "Expand" | "Unsqueeze" => Some(0),
            "Add" | "Max" if node.inputs.len() == 2 => [(0, 1), (1, 0)]
                .into_iter()
                .find_map(|(kept, epsilon)| small(self.number(node, epsilon)).then_some(kept)),
            "Clip" => {
                let limit = |name: &str, i: usize| match node.attribute(name) {
                    Some(Attribute::Float(limit)) => Some(*limit),
                    _ => self.number(node, i),
                };
                let open = limit("max", 2).map_or(node.input(2).is_none(), |max| max >= f32::MAX);
                (small(limit("min", 1)) && open).then_some(0)
            }
            _ => None,
        }
    }

    fn number(&self, node: &'a Node, i: usize) -> Option<f32> {
        self.flow.scalar(node, i)
    }

    /// Whether a reduction goes over the numbers of each embedding.
    fn over_numbers(&self, node: &'a Node) -> bool {
        matches!(self.flow.ints(node, "axes", 1), Some([1 | -1]))
    }
}
