//! The inference program: batch norm folded into the filters, activations and residual additions into the
//! convolutions' epilogues, dropout gone.
//!
//! A batch norm that follows no convolution (IResNet's blocks begin with one) stays a pending scale and shift, because
//! folding it into the *next* convolution would change what the zero padding means.

use super::{Operand, Policy, forward};
use crate::backend::{Activation, Element};
use crate::graph::folding::Folding;
use crate::graph::params::ParamTable;
use crate::graph::program::{
    After, BatchNormLayer, Instruction, Layer, LayerId, Program, TensorId, Value, ValueId,
};
use crate::graph::{Model, Shape};

/// Builds the inference program and the recipe for its parameter slab.
pub(crate) fn inference(model: &Model, table: &ParamTable, element: Element) -> (Program, Folding) {
    let mut policy = Inference(Folding::default());
    let program = forward(model, table, element, &mut policy);
    (program, policy.0)
}

struct Inference(Folding);

impl Policy for Inference {
    fn filter(&mut self, layer: &mut Layer) -> After {
        layer.filter = self.0.filter(layer);
        After::Activate {
            residual: None,
            act: Activation::Identity,
        }
    }

    fn slopes(&mut self, source: usize, c: usize) -> usize {
        self.0.slopes(source, c)
    }

    fn batch_norm(
        &mut self,
        program: &mut Program,
        x: Operand,
        batch_norm: BatchNormLayer,
        name: &str,
    ) -> ValueId {
        if x.sole
            && let Some((layer, _)) = bare_conv(program, x.value)
            && self.0.batch_norm(layer, batch_norm.at)
        {
            return x.value;
        }
        let x = program.stored(x.value, name);
        program.batch_norms.push(batch_norm);
        let value = Value {
            batch_norm: Some(program.batch_norms.len() - 1),
            ..program.values[x]
        };
        program.new_value(value)
    }

    fn activation(
        &mut self,
        program: &mut Program,
        x: Operand,
        act: Activation<usize>,
        name: &str,
    ) -> ValueId {
        let value = program.values[x.value];
        if x.sole && value.is_plain() && has_written_channels(program, x.value) {
            let written = (program.instructions.iter_mut().rev()).find_map(|i| match i {
                Instruction::Conv {
                    y,
                    after: After::Activate { act, .. },
                    ..
                }
                | Instruction::Add { y, act, .. }
                    if *y == value.tensor && act.is_identity() =>
                {
                    Some(act)
                }
                _ => None,
            });
            if let Some(written) = written {
                *written = act;
                return x.value;
            }
        }
        if x.sole && value.act.is_identity() {
            program.values[x.value].act = act;
            return x.value;
        }
        program.add(x.value, None, act, name)
    }

    /// The addition moves into the convolution that writes its later operand, if the other is stored by then.
    fn add(&mut self, program: &mut Program, operands: [Operand; 2], name: &str) -> ValueId {
        let [a, b] = operands;
        let (early, late) = if a.node.0 < b.node.0 { (a, b) } else { (b, a) };
        let tensor = |x: Operand| program.values[x.value].tensor;
        if late.sole
            && program.values[early.value].is_plain()
            && writer(program, tensor(early)) < writer(program, tensor(late))
            && let Some((_, after)) = bare_conv(program, late.value)
        {
            *after = After::Activate {
                residual: Some(early.value),
                act: Activation::Identity,
            };
            return late.value;
        }
        program.add(a.value, Some(b.value), Activation::Identity, name)
    }

    fn dropout(&mut self, _: &mut Program, x: Operand, _: f32, _: &str) -> ValueId {
        x.value
    }

    fn flatten(&mut self, program: &mut Program, x: Operand, shape: Shape, name: &str) -> ValueId {
        let x = program.stored(x.value, name);
        let value = Value {
            shape,
            ..program.values[x]
        };
        program.new_value(value)
    }
}

/// Whether the value has the channels that its tensor was written with; a flattened map has its own.
fn has_written_channels(program: &Program, x: ValueId) -> bool {
    let value = program.values[x];
    let written = (program.values.iter()).find(|other| other.tensor == value.tensor);
    written.is_some_and(|written| written.shape == value.shape)
}

/// The convolution that writes `x` with nothing applied to its output yet.
fn bare_conv(program: &mut Program, x: ValueId) -> Option<(LayerId, &mut After)> {
    let value = program.values[x];
    if !value.is_plain() || !has_written_channels(program, x) {
        return None;
    }
    (program.instructions.iter_mut().rev()).find_map(|instruction| match instruction {
        Instruction::Conv {
            layer,
            y,
            after:
                after @ After::Activate {
                    residual: None,
                    act: Activation::Identity,
                },
            ..
        } if *y == value.tensor => Some((*layer, after)),
        _ => None,
    })
}

/// The instruction that writes a tensor; none writes the network's input.
fn writer(program: &Program, tensor: TensorId) -> Option<usize> {
    (program.instructions.iter()).position(|instruction| instruction.output() == Some(tensor))
}
