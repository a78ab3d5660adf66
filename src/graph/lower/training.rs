//! The training program: raw convolution outputs with batch norm and activation pending, then the backward half.

use super::{Operand, Policy, backward, forward};
use crate::backend::{Activation, Element};
use crate::graph::params::ParamTable;
use crate::graph::program::{
    After, BatchNormLayer, Instruction, Layer, Program, TensorId, Value, ValueId,
};
use crate::graph::{Model, Shape};

/// The tensor of the network's input.
const INPUT: TensorId = 0;

/// Builds the training program of a model.
pub(crate) fn training(model: &Model, table: &ParamTable, element: Element) -> Program {
    let mut program = forward(model, table, element, &mut Training { dropouts: 0 });
    backward::append(&mut program);
    program
}

struct Training {
    dropouts: u32,
}

impl Policy for Training {
    fn filter(&mut self, _: &mut Layer) -> After {
        After::Nothing
    }

    fn slopes(&mut self, source: usize, _: usize) -> usize {
        source
    }

    fn batch_norm(
        &mut self,
        program: &mut Program,
        x: Operand,
        layer: BatchNormLayer,
        name: &str,
    ) -> ValueId {
        let batch_norm = program.batch_norms.len();
        program.batch_norms.push(layer);
        // The convolution just before takes the moments as it writes.
        if x.sole
            && let Some(Instruction::Conv {
                layer, y, after, ..
            }) = program.instructions.last_mut()
        {
            let value = &mut program.values[x.value];
            // A flattened map has channels of its own, which the convolution does not know.
            let window = &program.layers[*layer].window;
            let whole = window.p * window.q == value.shape.pixels();
            if value.tensor == *y && value.is_plain() && whole {
                *after = After::Moments;
                value.batch_norm = Some(batch_norm);
                program
                    .instructions
                    .push(Instruction::BatchNorm { batch_norm });
                return x.value;
            }
        }
        // Otherwise the moments take a pass of their own, and the normalised value is another view of the same tensor.
        let x = program.stored(x.value, name);
        let value = program.values[x];
        program.instructions.extend([
            Instruction::Moments {
                x: value.tensor,
                batch_norm,
            },
            Instruction::BatchNorm { batch_norm },
        ]);
        program.new_value(Value {
            batch_norm: Some(batch_norm),
            stored_act: Activation::Identity,
            ..value
        })
    }

    fn activation(
        &mut self,
        program: &mut Program,
        x: Operand,
        act: Activation<usize>,
        name: &str,
    ) -> ValueId {
        let value = program.values[x.value];
        // The network's input has no gradient, so there is nothing to compute the gradient of slopes from.
        let is_input = value.tensor == INPUT && value.batch_norm.is_none();
        let free = value.act.is_identity()
            && value.stored_act.is_identity()
            && !(is_input && matches!(act, Activation::PRelu(_)));
        let x = if x.sole && free {
            x.value
        } else {
            program.stored_copy(x.value, name)
        };
        let value = &mut program.values[x];
        // An addition applies the activation before it stores, if the derivative can be read off the output. PReLU's
        // cannot: a negative slope hides the sign.
        if let Some(Instruction::Add { act: stored, y, .. }) = program.instructions.last_mut()
            && *y == value.tensor
            && value.is_plain()
            && !matches!(act, Activation::PRelu(_))
        {
            *stored = act;
            value.stored_act = act;
        } else {
            value.act = act;
        }
        x
    }

    fn add(&mut self, program: &mut Program, [a, b]: [Operand; 2], name: &str) -> ValueId {
        program.add(a.value, Some(b.value), Activation::Identity, name)
    }

    fn dropout(&mut self, program: &mut Program, x: Operand, rate: f32, name: &str) -> ValueId {
        let (x, layer) = (x.value, self.dropouts);
        self.dropouts += 1;
        let shape = program.values[x].shape;
        program.instruction(shape, name, |y| Instruction::Dropout { x, rate, layer, y })
    }

    /// Channel vectors no longer fit a flattened image, so it must be stored as it is read.
    fn flatten(&mut self, program: &mut Program, x: Operand, shape: Shape, name: &str) -> ValueId {
        let x = if x.sole && program.values[x.value].is_plain() {
            x.value
        } else {
            program.stored_copy(x.value, name)
        };
        program.values[x].shape = shape;
        x
    }
}
