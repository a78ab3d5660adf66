//! From nodes to the training program: Conv -> BN -> activation become one pending value, and each value's gradient
//! finds its contributors.
//!
//! Forward, each node either becomes an instruction or changes how the value before it is read. What cannot be
//! read pending (a batch norm on an activated value, a flattened or final one) is stored first by an addition with
//! one operand.
//!
//! Backward, instructions run in reverse. A value's gradient is written by the first contributor, added to by the
//! others, and closed by the last. An addition passes its gradient on without a copy where it can: its inputs then
//! share the gradient's tensor, if none of them changes it while another still reads it.

use super::params::{At, ParamTable};
use super::program::{
    After, BatchNormLayer, Instruction, Layer, Program, Target, TensorId, Value, ValueId,
};
use super::{Model, Op};
use crate::backend::Activation;
use crate::backend::geometry::{Padding, Window};

/// The tensor of the network's input.
const INPUT: TensorId = 0;

/// Builds the training program of a model.
pub(crate) fn training(model: &Model, table: &ParamTable) -> Program {
    let mut fuser = Fuser {
        model,
        table,
        program: Program::default(),
        value_of: Vec::new(),
        consumers: consumers(model),
        dropouts: 0,
    };
    fuser.forward();
    let Fuser { mut program, .. } = fuser;
    Backward::new(&mut program).build();
    program
}

/// How many nodes read each node (the embedding counts as read once more).
pub(super) fn consumers(model: &Model) -> Vec<usize> {
    let mut consumers = vec![0; model.nodes().len()];
    for node in model.nodes() {
        for input in &node.inputs {
            consumers[input.0] += 1;
        }
    }
    *consumers.last_mut().expect("a model has an input") += 1;
    consumers
}

/// The filter layer of a node, if it has one.
pub(super) fn layer_of(model: &Model, table: &ParamTable, index: usize) -> Option<Layer> {
    let node = &model.nodes()[index];
    let At::Filter(filter) = table.at(index) else {
        return None;
    };
    let c = model.node(node.inputs[0]).shape.c;
    let (k, window) = match &node.op {
        Op::Conv2d {
            filters, window, ..
        } => (Some(*filters), *window),
        Op::DepthwiseConv2d { window, .. } => (None, *window),
        Op::Linear { units, .. } => {
            let window = Window::new((1, 1), (1, 1), 1, Padding::default());
            (Some(*units), window.expect("a 1x1 window fits a 1x1 image"))
        }
        _ => unreachable!("only filter layers have filters"),
    };
    Some(Layer {
        filter,
        c,
        k,
        window,
        learnt: !matches!(&node.op, Op::Conv2d { init, .. } if !init.is_learnt()),
    })
}

/// Where a PReLU's slopes are.
pub(super) fn slope_at(table: &ParamTable, index: usize) -> usize {
    let At::Slope(at) = table.at(index) else {
        unreachable!("PReLU has slopes")
    };
    at
}

struct Fuser<'a> {
    model: &'a Model,
    table: &'a ParamTable,
    program: Program,
    value_of: Vec<ValueId>,
    consumers: Vec<usize>,
    dropouts: u32,
}

impl Fuser<'_> {
    fn forward(&mut self) {
        for index in 0..self.model.nodes().len() {
            let value = self.node(index);
            self.value_of.push(value);
        }
        let last = self.value_of[self.value_of.len() - 1];
        self.program.output = self.program.stored(last, "embedding");
        self.program.forward_len = self.program.instructions.len();
    }

    fn node(&mut self, index: usize) -> ValueId {
        let model = self.model;
        let node = &model.nodes()[index];
        let input = |i: usize| self.value_of[node.inputs[i].0];
        let sole_reader = node
            .inputs
            .first()
            .is_some_and(|x| self.consumers[x.0] == 1);
        match &node.op {
            Op::Input => {
                let tensor = self.program.new_tensor(node.shape.len(), &node.name);
                self.program.new_value(Value::plain(tensor, node.shape))
            }
            Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::Linear { .. } => {
                let x = input(0);
                let layer = layer_of(model, self.table, index).expect("a filter layer");
                self.program.layers.push(layer);
                let layer = self.program.layers.len() - 1;
                self.program
                    .instruction(node.shape, &node.name, |y| Instruction::Conv {
                        layer,
                        x,
                        y,
                        after: After::Nothing,
                    })
            }
            Op::BatchNorm(_) => {
                let x = input(0);
                self.batch_norm(index, x, sole_reader)
            }
            Op::Activation(activation) => {
                let act = activation.map(|()| slope_at(self.table, index));
                let x = input(0);
                self.activation(x, act, sole_reader, &node.name)
            }
            Op::Add => {
                let (a, b) = (input(0), Some(input(1)));
                self.program
                    .instruction(node.shape, &node.name, |y| Instruction::Add {
                        a,
                        b,
                        act: Activation::Identity,
                        y,
                    })
            }
            Op::MaxPool(window) => {
                let (x, window) = (input(0), *window);
                self.program
                    .instruction(node.shape, &node.name, |y| Instruction::MaxPool {
                        x,
                        window,
                        y,
                    })
            }
            Op::GlobalAvgPool => {
                let x = input(0);
                self.program
                    .instruction(node.shape, &node.name, |y| Instruction::GlobalAvgPool {
                        x,
                        y,
                    })
            }
            Op::Dropout { rate } => {
                let (x, rate, layer) = (input(0), *rate, self.dropouts);
                self.dropouts += 1;
                self.program
                    .instruction(node.shape, &node.name, |y| Instruction::Dropout {
                        x,
                        rate,
                        layer,
                        y,
                    })
            }
            Op::Flatten => {
                let x = input(0);
                if self.program.values[x].shape.pixels() == 1 {
                    // The same value under another name: its readers are not alone where its source has others.
                    if !sole_reader {
                        self.consumers[index] += 1;
                    }
                    return x;
                }
                // Channel vectors no longer fit a flattened image, so it must be stored as it is read.
                let x = if sole_reader && self.program.values[x].is_plain() {
                    x
                } else {
                    self.program.stored_copy(x, &node.name)
                };
                self.program.values[x].shape = node.shape;
                x
            }
        }
    }

    fn batch_norm(&mut self, index: usize, x: ValueId, sole_reader: bool) -> ValueId {
        let node = &self.model.nodes()[index];
        let At::BatchNorm(at) = self.table.at(index) else {
            unreachable!("batch norm has its parameters")
        };
        let batch_norm = self.program.batch_norms.len();
        self.program.batch_norms.push(BatchNormLayer {
            at,
            shape: node.shape,
        });
        // The convolution just before takes the moments as it writes.
        if sole_reader
            && let Some(Instruction::Conv {
                layer, y, after, ..
            }) = self.program.instructions.last_mut()
        {
            let value = &mut self.program.values[x];
            // A flattened map has channels of its own, which the convolution does not know.
            let window = &self.program.layers[*layer].window;
            let whole = window.p * window.q == value.shape.pixels();
            if value.tensor == *y && value.is_plain() && whole {
                *after = After::Moments;
                value.batch_norm = Some(batch_norm);
                self.program
                    .instructions
                    .push(Instruction::BatchNorm { batch_norm });
                return x;
            }
        }
        // Otherwise they take a pass of their own, and the normalised value is another view of the same tensor.
        let x = self.program.stored(x, &node.name);
        let value = self.program.values[x];
        self.program.instructions.push(Instruction::Moments {
            x: value.tensor,
            batch_norm,
        });
        self.program
            .instructions
            .push(Instruction::BatchNorm { batch_norm });
        self.program.new_value(Value {
            batch_norm: Some(batch_norm),
            stored_act: Activation::Identity,
            ..value
        })
    }

    fn activation(
        &mut self,
        x: ValueId,
        act: Activation<usize>,
        sole_reader: bool,
        name: &str,
    ) -> ValueId {
        let value = self.program.values[x];
        // The network's input has no gradient, and so nothing to take that of slopes from.
        let is_input = value.tensor == INPUT && value.batch_norm.is_none();
        let free = value.act == Activation::Identity
            && value.stored_act == Activation::Identity
            && !(is_input && matches!(act, Activation::PRelu(_)));
        let x = if sole_reader && free {
            x
        } else {
            self.program.stored_copy(x, name)
        };
        let value = &mut self.program.values[x];
        // An addition applies it before storing, where the derivative can be read off the output. PReLU's cannot:
        // a negative slope hides the sign.
        if let Some(Instruction::Add { act: stored, y, .. }) = self.program.instructions.last_mut()
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
}

/// Builds the backward half.
struct Backward<'a> {
    program: &'a mut Program,
    /// For each value: the forward instructions that read it, in backward order, not yet differentiated.
    readers: Vec<Vec<usize>>,
    /// The forward instruction that writes each tensor.
    writer: Vec<Option<usize>>,
    /// For each value: whether a contribution has been made.
    begun: Vec<bool>,
}

impl<'a> Backward<'a> {
    fn new(program: &'a mut Program) -> Self {
        let values = program.values.len();
        let mut readers = vec![Vec::new(); values];
        let mut writer = vec![None; program.tensors.len()];
        for (i, instruction) in program.forward().iter().enumerate() {
            for x in inputs(program, instruction) {
                readers[x].push(i);
            }
            if let Some(y) = output(instruction) {
                writer[y] = Some(i);
            }
        }
        for list in &mut readers {
            list.reverse();
        }
        Backward {
            program,
            readers,
            writer,
            begun: vec![false; values],
        }
    }

    fn build(&mut self) {
        let output = self.program.output;
        self.own_gradient(output);
        self.begun[output] = true;
        // The head has written the gradient; where it is the only one to do so, the finish is due.
        if self.readers[output].is_empty() && self.program.values[output].needs_mask() {
            self.push(Instruction::CloseGrad { value: output });
        }
        for i in (0..self.program.forward_len).rev() {
            let instruction = self.program.instructions[i];
            self.differentiate(i, &instruction);
        }
    }

    /// The input image needs no gradient; a batch norm's view of it does, for gamma and beta.
    fn is_input(&self, value: ValueId) -> bool {
        let Value {
            tensor, batch_norm, ..
        } = self.program.values[value];
        self.writer[tensor].is_none() && batch_norm.is_none()
    }

    /// The value that an instruction's output tensor is read as by its consumers.
    fn value_of_tensor(&self, tensor: usize) -> ValueId {
        let same = |value: &Value| value.tensor == tensor;
        let first = self.program.values.iter().position(same);
        first.expect("every tensor belongs to a value")
    }

    fn differentiate(&mut self, i: usize, instruction: &Instruction) {
        match *instruction {
            Instruction::Conv { layer, x, y, .. } => {
                let dy = self.value_of_tensor(y);
                self.push(Instruction::ValueGrad { value: dy });
                if self.program.layers[layer].learnt {
                    self.push(Instruction::ConvWgrad { layer, dy, x });
                }
                if !self.is_input(x) {
                    let dx = self.target(i, x);
                    self.push(Instruction::ConvDgrad { layer, dy, dx });
                }
            }
            Instruction::Moments { x, batch_norm } => {
                let normalised = |value: &Value| value.batch_norm == Some(batch_norm);
                let dy = self.program.values.iter().position(normalised);
                let dy = dy.expect("a batch norm has its value");
                let x = self.value_of_tensor(x);
                self.push(Instruction::ValueGrad { value: dy });
                if !self.is_input(x) {
                    let dx = self.target(i, x);
                    self.push(Instruction::AddGrad { dy, dx });
                }
            }
            Instruction::BatchNorm { .. } => {}
            Instruction::Add { a, b, y, .. } => {
                let dy = self.value_of_tensor(y);
                self.push(Instruction::ValueGrad { value: dy });
                self.add(i, dy, a, b);
            }
            Instruction::MaxPool { x, window, y } => {
                let dy = self.value_of_tensor(y);
                self.push(Instruction::ValueGrad { value: dy });
                if !self.is_input(x) {
                    let dx = self.target(i, x);
                    self.push(Instruction::MaxPoolGrad { window, dy, x, dx });
                }
            }
            Instruction::GlobalAvgPool { x, y } => {
                let dy = self.value_of_tensor(y);
                self.push(Instruction::ValueGrad { value: dy });
                if !self.is_input(x) {
                    let dx = self.target(i, x);
                    self.push(Instruction::GlobalAvgPoolGrad { dy, dx });
                }
            }
            Instruction::Dropout { x, rate, layer, y } => {
                let dy = self.value_of_tensor(y);
                self.push(Instruction::ValueGrad { value: dy });
                if !self.is_input(x) {
                    let dx = self.target(i, x);
                    self.push(Instruction::DropoutGrad {
                        rate,
                        layer,
                        dy,
                        dx,
                    });
                }
            }
            _ => unreachable!("the forward half holds forward instructions"),
        }
    }

    fn push(&mut self, instruction: Instruction) {
        // A value without batch norm or slopes has nothing to finish.
        if let Instruction::ValueGrad { value } = instruction
            && !self.program.values[value].needs_sums()
        {
            return;
        }
        self.program.instructions.push(instruction);
    }

    /// A gradient tensor of the value's own.
    fn own_gradient(&mut self, value: ValueId) {
        let Value { tensor, shape, .. } = self.program.values[value];
        let name = format!("d_{}", self.program.tensor_names[tensor]);
        let grad = self.program.new_tensor(shape.len(), name);
        self.program.values[value].grad = Some(grad);
    }

    /// Registers instruction `i`'s contribution to the gradient of `x`.
    fn target(&mut self, i: usize, x: ValueId) -> Target {
        let accumulate = self.begun[x];
        if !accumulate {
            self.own_gradient(x);
        }
        self.contributed(i, x);
        Target {
            value: x,
            accumulate,
            close: self.readers[x].is_empty(),
        }
    }

    /// Crosses one reading of `x` by instruction `i` off the list (an addition may read the same value twice).
    fn contributed(&mut self, i: usize, x: ValueId) {
        self.begun[x] = true;
        let at = self.readers[x].iter().position(|reader| *reader == i);
        self.readers[x].remove(at.expect("a contributor is a reader"));
    }

    /// An addition's backward: its inputs share its gradient where that is safe, and copy it otherwise.
    fn add(&mut self, i: usize, dy: ValueId, a: ValueId, b: Option<ValueId>) {
        let grad = self.program.values[dy].grad;
        let mut inputs: Vec<ValueId> = [Some(a), b].into_iter().flatten().collect();
        inputs.retain(|x| !self.is_input(*x));
        let twice = b == Some(a);
        // Takers see the gradient's tensor as their own. A reader takes it as it is and never changes it; at most one
        // other may change it, and only after the reader's own step, which comes before anything that changes it.
        let reader = inputs.iter().copied().find(|x| {
            let value = &self.program.values[*x];
            !twice
                && !self.begun[*x]
                && self.readers[*x].len() == 1
                && !value.needs_mask()
                && self.written_by_layer(*x)
        });
        let other = inputs.iter().copied().find(|x| Some(*x) != reader);
        let mut takers: Vec<ValueId> = reader.into_iter().collect();
        if let Some(x) = other
            && !twice
            && !self.begun[x]
            && reader.is_none_or(|reader| self.changes_after(x, reader))
        {
            takers.push(x);
        }
        // Copies first: a taker's finish may change the tensor.
        for x in inputs.into_iter().filter(|x| !takers.contains(x)) {
            let dx = self.target(i, x);
            self.push(Instruction::AddGrad { dy, dx });
        }
        for x in takers {
            self.program.values[x].grad = grad;
            self.contributed(i, x);
            let value = self.program.values[x];
            if self.readers[x].is_empty() && (value.needs_mask() || value.needs_sums()) {
                self.push(Instruction::CloseGrad { value: x });
            }
        }
    }

    /// Whether the value comes straight from a convolution, whose backward only reads the gradient.
    fn written_by_layer(&self, x: ValueId) -> bool {
        let writer = self.writer[self.program.values[x].tensor];
        writer.is_some_and(|i| {
            let conv = matches!(self.program.instructions[i], Instruction::Conv { .. });
            // Another view of the tensor would pass its own gradient to this value later.
            conv && self.value_of_tensor(self.program.values[x].tensor) == x
        })
    }

    /// Whether everything that changes the gradient of `x` from now on runs after the backward of `reader`'s writer.
    fn changes_after(&self, x: ValueId, reader: ValueId) -> bool {
        let written = self.writer[self.program.values[reader].tensor];
        let Some(written) = written else { return false };
        // Backward runs from high to low; the next reader of `x` besides the addition itself is `readers[x][1]`.
        match self.readers[x].get(1) {
            Some(next) => *next < written,
            None => {
                // Nobody else contributes: it closes right here, so it must not be masked; and whoever reads it
                // further down must not hand it on to someone who changes it.
                !self.program.values[x].needs_mask() && self.written_by_layer(x)
            }
        }
    }
}

fn inputs(program: &Program, instruction: &Instruction) -> Vec<ValueId> {
    match *instruction {
        Instruction::Conv { x, .. }
        | Instruction::MaxPool { x, .. }
        | Instruction::GlobalAvgPool { x, .. }
        | Instruction::Dropout { x, .. } => vec![x],
        Instruction::Moments { x, .. } => {
            let plain = |value: &Value| value.tensor == x && value.is_plain();
            let value = program.values.iter().position(plain);
            vec![value.expect("moments are taken of a plain value")]
        }
        Instruction::Add { a, b, .. } => [Some(a), b].into_iter().flatten().collect(),
        _ => Vec::new(),
    }
}

fn output(instruction: &Instruction) -> Option<usize> {
    match *instruction {
        Instruction::Conv { y, .. }
        | Instruction::Add { y, .. }
        | Instruction::MaxPool { y, .. }
        | Instruction::GlobalAvgPool { y, .. }
        | Instruction::Dropout { y, .. } => Some(y),
        _ => None,
    }
}
