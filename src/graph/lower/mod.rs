//! From a model's nodes to a program of fused instructions.
//!
//! One walk serves training and inference. A node becomes an instruction, or it changes how the value before it is
//! read: Conv -> BN -> activation is one convolution and one pending value. A policy decides where the two programs
//! differ. What cannot be read pending is stored first, by an addition with one operand.

mod backward;
mod inference;
mod training;

pub(crate) use inference::inference;
pub(crate) use training::training;

use super::params::{At, ParamTable};
use super::program::{After, BatchNormLayer, Instruction, Layer, Program, Value, ValueId};
use super::{Model, NodeId, Op, Shape};
use crate::backend::geometry::Window;
use crate::backend::{Activation, Element};

/// An operand of a node.
#[derive(Clone, Copy)]
struct Operand {
    value: ValueId,
    /// The node that gave it.
    node: NodeId,
    /// Whether nothing else reads it.
    sole: bool,
}

/// What training and inference do differently. Methods append to the program and return the value that stands for the
/// node called `name`.
trait Policy {
    /// Places the parameters of a layer with a filter; says what its convolution does with its output.
    fn filter(&mut self, layer: &mut Layer) -> After;

    /// Places `c` slopes that begin at `source` of the parameter slab.
    fn slopes(&mut self, source: usize, c: usize) -> usize;

    fn batch_norm(
        &mut self,
        program: &mut Program,
        x: Operand,
        batch_norm: BatchNormLayer,
        name: &str,
    ) -> ValueId;

    fn activation(
        &mut self,
        program: &mut Program,
        x: Operand,
        act: Activation<usize>,
        name: &str,
    ) -> ValueId;

    fn add(&mut self, program: &mut Program, operands: [Operand; 2], name: &str) -> ValueId;

    fn dropout(&mut self, program: &mut Program, x: Operand, rate: f32, name: &str) -> ValueId;

    /// Flattens an image of several pixels to `shape`.
    fn flatten(&mut self, program: &mut Program, x: Operand, shape: Shape, name: &str) -> ValueId;
}

/// The forward half of a model's program, whose tensors are of `element`.
fn forward(
    model: &Model,
    table: &ParamTable,
    element: Element,
    policy: &mut impl Policy,
) -> Program {
    let program = Program {
        element,
        ..Program::default()
    };
    let mut walk = Walk {
        model,
        table,
        program,
        value_of: Vec::new(),
        readers: readers(model),
    };
    for index in 0..model.nodes().len() {
        let value = walk.node(index, policy);
        walk.value_of.push(value);
    }
    let Walk {
        mut program,
        value_of,
        ..
    } = walk;
    let last = value_of[value_of.len() - 1];
    program.output = program.stored_floats(last, "embedding");
    program.forward_len = program.instructions.len();
    program
}

/// How many nodes read each node (the embedding counts as read once more).
fn readers(model: &Model) -> Vec<usize> {
    let mut readers = vec![0; model.nodes().len()];
    for input in model.nodes().iter().flat_map(|node| &node.inputs) {
        readers[input.0] += 1;
    }
    *readers.last_mut().expect("a model has an input") += 1;
    readers
}

struct Walk<'a> {
    model: &'a Model,
    table: &'a ParamTable,
    program: Program,
    value_of: Vec<ValueId>,
    readers: Vec<usize>,
}

impl Walk<'_> {
    fn node(&mut self, index: usize, policy: &mut impl Policy) -> ValueId {
        let model = self.model;
        let node = &model.nodes()[index];
        let (name, shape) = (&node.name[..], node.shape);
        let operand = |i: usize| {
            let node = node.inputs[i];
            Operand {
                value: self.value_of[node.0],
                node,
                sole: self.readers[node.0] == 1,
            }
        };
        let program = &mut self.program;
        let value = match &node.op {
            Op::Input => {
                let tensor = program.new_tensor(shape.len(), program.element, name);
                program.new_value(Value::plain(tensor, shape))
            }
            Op::Conv2d {
                filters,
                window,
                init,
                ..
            } => self.conv(policy, index, Some(*filters), *window, init.is_learnt()),
            Op::DepthwiseConv2d { window, .. } => self.conv(policy, index, None, *window, true),
            Op::Linear { units, .. } => self.conv(policy, index, Some(*units), Window::POINT, true),
            Op::BatchNorm(_) => {
                let At::BatchNorm(at) = self.table.at(index) else {
                    unreachable!("a batch norm has its parameters")
                };
                policy.batch_norm(program, operand(0), BatchNormLayer { at, shape }, name)
            }
            Op::Activation(activation) => {
                let act = activation.map(|()| {
                    let At::Slope(source) = self.table.at(index) else {
                        unreachable!("PReLU has slopes")
                    };
                    policy.slopes(source, shape.c)
                });
                policy.activation(program, operand(0), act, name)
            }
            Op::Add => policy.add(program, [operand(0), operand(1)], name),
            Op::MaxPool(window) => {
                let (x, window) = (operand(0).value, *window);
                program.instruction(shape, name, |y| Instruction::MaxPool { x, window, y })
            }
            Op::GlobalAvgPool => {
                let x = operand(0).value;
                program.instruction(shape, name, |y| Instruction::GlobalAvgPool { x, y })
            }
            Op::Dropout { rate } => policy.dropout(program, operand(0), *rate, name),
            Op::Flatten if model.node(node.inputs[0]).shape.pixels() == 1 => operand(0).value,
            Op::Flatten => policy.flatten(program, operand(0), shape, name),
        };
        // A node that only renames its source shares it with the source's other readers.
        if let [x, ..] = node.inputs[..]
            && value == self.value_of[x.0]
            && self.readers[x.0] > 1
        {
            self.readers[index] += 1;
        }
        value
    }

    /// A layer with a filter; `k` is absent for a depthwise one.
    fn conv(
        &mut self,
        policy: &mut impl Policy,
        index: usize,
        k: Option<usize>,
        window: Window,
        learnt: bool,
    ) -> ValueId {
        let node = &self.model.nodes()[index];
        let At::Filter(filter) = self.table.at(index) else {
            unreachable!("a layer with a filter has its place")
        };
        let input = node.inputs[0];
        let mut layer = Layer {
            filter,
            c: self.model.node(input).shape.c,
            k,
            window,
            learnt,
        };
        let after = policy.filter(&mut layer);
        self.program.layers.push(layer);
        let (layer, x) = (self.program.layers.len() - 1, self.value_of[input.0]);
        self.program
            .instruction(node.shape, &node.name, |y| Instruction::Conv {
                layer,
                x,
                y,
                after,
            })
    }
}
