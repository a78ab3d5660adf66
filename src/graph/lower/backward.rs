//! The backward half: each value's gradient finds its contributors.
//!
//! Instructions run in reverse. A value's gradient is written by the first contributor, added to by the others, and
//! closed by the last. An addition passes its gradient on without a copy where it can: its inputs then share the
//! gradient's tensor, if none of them changes it while another still reads it.

use crate::graph::program::{Instruction, Program, Target, Tensor, Value, ValueId};

/// Appends the backward half to a training program.
pub(super) fn append(program: &mut Program) {
    Backward::new(program).build();
}

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
            if let Some(y) = instruction.output() {
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
                    self.push(Instruction::AddDgrad { dy, dx });
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
                    self.push(Instruction::MaxPoolDgrad { window, dy, x, dx });
                }
            }
            Instruction::GlobalAvgPool { x, y } => {
                let dy = self.value_of_tensor(y);
                self.push(Instruction::ValueGrad { value: dy });
                if !self.is_input(x) {
                    let dx = self.target(i, x);
                    self.push(Instruction::GlobalAvgPoolDgrad { dy, dx });
                }
            }
            Instruction::Dropout { x, rate, layer, y } => {
                let dy = self.value_of_tensor(y);
                self.push(Instruction::ValueGrad { value: dy });
                if !self.is_input(x) {
                    let dx = self.target(i, x);
                    self.push(Instruction::DropoutDgrad {
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
        let Tensor { element, name, .. } = &self.program.tensors[tensor];
        let (element, name) = (*element, format!("d_{name}"));
        let grad = self.program.new_tensor(shape.len(), element, name);
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
        let element = |x: ValueId| self.program.tensors[self.program.values[x].tensor].element;
        let alike = |x: ValueId| element(x) == element(dy);
        // Takers share the gradient's tensor. The reader never changes it. At most one other taker may, and only after
        // the reader's own backward step.
        let reader = inputs.iter().copied().find(|x| {
            let value = &self.program.values[*x];
            !twice
                && alike(*x)
                && !self.begun[*x]
                && self.readers[*x].len() == 1
                && !value.needs_mask()
                && self.written_by_layer(*x)
        });
        let other = inputs.iter().copied().find(|x| Some(*x) != reader);
        let mut takers: Vec<ValueId> = reader.into_iter().collect();
        if let Some(x) = other
            && !twice
            && alike(x)
            && !self.begun[x]
            && reader.is_none_or(|reader| self.changes_after(x, reader))
        {
            takers.push(x);
        }
        // Copies first: a taker's finish may change the tensor.
        for x in inputs.into_iter().filter(|x| !takers.contains(x)) {
            let dx = self.target(i, x);
            self.push(Instruction::AddDgrad { dy, dx });
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
                // There is no other contributor, so the gradient closes here and must not be masked. Its later readers
                // must not pass it on to an instruction that changes it.
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
