//! The inference program: batch norm folded into the filters, activations and residual additions into the
//! convolutions' epilogues, dropout gone.
//!
//! A batch norm that follows no convolution (IResNet's blocks begin with one) stays a pending scale and shift, because
//! folding it into the *next* convolution would change what the zero padding means.

use super::params::{At, ParamTable};
use super::program::{After, BatchNormLayer, Instruction, Program, Value, ValueId};
use super::{Model, Op, fuse};
use crate::backend::{Activation, BatchNormAt, FilterAt, bn};

/// What the folded slab is made of, layer by layer.
#[derive(Clone, Debug)]
pub(crate) struct Folding {
    layers: Vec<FoldedLayer>,
    slopes: Vec<(usize, usize, usize)>,
    len: usize,
}

#[derive(Clone, Debug)]
struct FoldedLayer {
    source: FilterAt,
    target: FilterAt,
    /// Output channels.
    k: usize,
    /// Elements of the filter.
    len: usize,
    depthwise: bool,
    batch_norm: Option<BatchNormAt>,
}

impl Folding {
    /// Elements of the folded slab.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Computes the folded slab from the learnt parameters and the running statistics, in f64.
    pub(crate) fn fold(&self, params: &[f32], statistics: &[f32]) -> Vec<f32> {
        let mut folded = vec![0.0; self.len];
        for layer in &self.layers {
            let (scale, shift) = match layer.batch_norm {
                Some(at) => scale_and_shift(at, layer.k, params, statistics),
                None => (vec![1.0; layer.k], vec![0.0; layer.k]),
            };
            let a_filter = layer.len / layer.k;
            for i in 0..layer.len {
                let k = if layer.depthwise {
                    i % layer.k
                } else {
                    i / a_filter
                };
                let weight = f64::from(params[layer.source.weights + i]);
                folded[layer.target.weights + i] = (weight * scale[k]) as f32;
            }
            let bias_at = layer.target.bias.expect("a folded layer has a bias");
            for k in 0..layer.k {
                let bias = layer
                    .source
                    .bias
                    .map_or(0.0, |at| f64::from(params[at + k]));
                folded[bias_at + k] = (bias * scale[k] + shift[k]) as f32;
            }
        }
        for (source, target, len) in &self.slopes {
            folded[*target..][..*len].copy_from_slice(&params[*source..][..*len]);
        }
        folded
    }
}

/// Forward coefficients ([`bn`]) of a batch norm from its running statistics.
pub(crate) fn frozen(layer: &BatchNormLayer, params: &[f32], statistics: &[f32]) -> Vec<f32> {
    let c = layer.shape.c;
    let (scale, shift) = scale_and_shift(layer.at, c, params, statistics);
    let mut forward = vec![0.0; bn::forward_len(c)];
    for i in 0..c {
        forward[bn::SCALE * c + i] = scale[i] as f32;
        forward[bn::SHIFT * c + i] = shift[i] as f32;
    }
    forward
}

/// What a batch norm does to each channel with its running statistics: `x * scale + shift`.
pub(crate) fn scale_and_shift(
    at: BatchNormAt,
    c: usize,
    params: &[f32],
    statistics: &[f32],
) -> (Vec<f64>, Vec<f64>) {
    let of = |slab: &[f32], at: Option<usize>, i: usize, absent: f64| {
        at.map_or(absent, |at| f64::from(slab[at + i]))
    };
    (0..c)
        .map(|i| {
            let mean = of(statistics, Some(at.statistics), i, 0.0);
            let variance = of(statistics, Some(at.statistics + c), i, 1.0);
            let scale = of(params, at.gamma, i, 1.0) / (variance + f64::from(at.epsilon)).sqrt();
            (scale, of(params, at.beta, i, 0.0) - mean * scale)
        })
        .unzip()
}

/// Builds the inference program and the recipe for its parameter slab.
pub(crate) fn inference(model: &Model, table: &ParamTable) -> (Program, Folding) {
    let mut folder = Folder {
        model,
        table,
        program: Program::default(),
        folding: Folding {
            layers: Vec::new(),
            slopes: Vec::new(),
            len: 0,
        },
        value_of: Vec::new(),
        consumers: fuse::consumers(model),
    };
    for index in 0..model.nodes().len() {
        let value = folder.node(index);
        folder.value_of.push(value);
    }
    let last = folder.value_of[folder.value_of.len() - 1];
    folder.program.output = folder.program.stored(last, "embedding");
    folder.program.forward_len = folder.program.instructions.len();
    (folder.program, folder.folding)
}

struct Folder<'a> {
    model: &'a Model,
    table: &'a ParamTable,
    program: Program,
    folding: Folding,
    value_of: Vec<ValueId>,
    consumers: Vec<usize>,
}

impl Folder<'_> {
    fn node(&mut self, index: usize) -> ValueId {
        let model = self.model;
        let node = &model.nodes()[index];
        let input = |i: usize| self.value_of[node.inputs[i].0];
        let sole_reader = node
            .inputs
            .first()
            .is_some_and(|x| self.consumers[x.0] == 1);
        // These nodes only rename their source. If the source has other readers, a reader of the new name is not the
        // sole one.
        if matches!(node.op, Op::Dropout { .. } | Op::Flatten) && !sole_reader {
            self.consumers[index] += 1;
        }
        match &node.op {
            Op::Input => {
                let tensor = self.program.new_tensor(node.shape.len(), &node.name);
                self.program.new_value(Value::plain(tensor, node.shape))
            }
            Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::Linear { .. } => {
                let x = input(0);
                self.layer(index, x)
            }
            Op::BatchNorm(_) => {
                let x = input(0);
                self.batch_norm(index, x, sole_reader)
            }
            Op::Activation(activation) => {
                let x = input(0);
                let act = activation.map(|()| {
                    let target = self.place(node.shape.c);
                    let source = fuse::slope_at(self.table, index);
                    self.folding.slopes.push((source, target, node.shape.c));
                    target
                });
                self.activation(x, act, sole_reader, &node.name)
            }
            Op::Add => {
                let (a, b) = (input(0), input(1));
                self.add(node.inputs[0].0, a, node.inputs[1].0, b, &node.name)
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
            Op::Dropout { .. } => input(0),
            Op::Flatten => {
                let x = input(0);
                let value = self.program.values[x];
                if value.shape.pixels() == 1 {
                    return x;
                }
                let x = self.program.stored(x, &node.name);
                let value = Value {
                    shape: node.shape,
                    ..self.program.values[x]
                };
                self.program.new_value(value)
            }
        }
    }

    fn place(&mut self, len: usize) -> usize {
        let at = self.folding.len;
        self.folding.len += len.next_multiple_of(16);
        at
    }

    fn layer(&mut self, index: usize, x: ValueId) -> ValueId {
        let node = &self.model.nodes()[index];
        let mut layer = fuse::layer_of(self.model, self.table, index).expect("a filter layer");
        let (k, taps) = (node.shape.c, layer.window.r * layer.window.s);
        let len = if layer.k.is_some() {
            k * taps * layer.c
        } else {
            taps * k
        };
        let target = FilterAt {
            weights: self.place(len),
            bias: Some(self.place(k)),
        };
        self.folding.layers.push(FoldedLayer {
            source: layer.filter,
            target,
            k,
            len,
            depthwise: layer.k.is_none(),
            batch_norm: None,
        });
        layer.filter = target;
        self.program.layers.push(layer);
        let layer = self.program.layers.len() - 1;
        self.program
            .instruction(node.shape, &node.name, |y| Instruction::Conv {
                layer,
                x,
                y,
                after: After::Activate {
                    residual: None,
                    act: Activation::Identity,
                },
            })
    }

    /// Whether the value has the channels that its tensor was written with; a flattened map has its own.
    fn has_written_channels(&self, x: ValueId) -> bool {
        let value = self.program.values[x];
        let written = (self.program.values.iter()).find(|other| other.tensor == value.tensor);
        written.is_some_and(|written| written.shape == value.shape)
    }

    /// The convolution that writes `x` with nothing applied to its output yet.
    fn bare_conv(&mut self, x: ValueId) -> Option<(usize, &mut Instruction)> {
        let value = self.program.values[x];
        if !value.is_plain() || !self.has_written_channels(x) {
            return None;
        }
        self.program
            .instructions
            .iter_mut()
            .rev()
            .find_map(|instruction| match *instruction {
                Instruction::Conv {
                    layer,
                    y,
                    after:
                        After::Activate {
                            residual: None,
                            act: Activation::Identity,
                        },
                    ..
                } if y == value.tensor => Some((layer, instruction)),
                _ => None,
            })
    }

    fn batch_norm(&mut self, index: usize, x: ValueId, sole_reader: bool) -> ValueId {
        let At::BatchNorm(at) = self.table.at(index) else {
            unreachable!("batch norm has its parameters")
        };
        let shape = self.model.nodes()[index].shape;
        if sole_reader
            && let Some((layer, _)) = self.bare_conv(x)
            && self.folding.layers[layer].batch_norm.is_none()
        {
            self.folding.layers[layer].batch_norm = Some(at);
            return x;
        }
        let x = self.program.stored(x, &self.model.nodes()[index].name);
        self.program.batch_norms.push(BatchNormLayer { at, shape });
        let value = Value {
            batch_norm: Some(self.program.batch_norms.len() - 1),
            ..self.program.values[x]
        };
        self.program.new_value(value)
    }

    fn activation(
        &mut self,
        x: ValueId,
        act: Activation<usize>,
        sole_reader: bool,
        name: &str,
    ) -> ValueId {
        let value = self.program.values[x];
        if sole_reader && value.is_plain() && self.has_written_channels(x) {
            let written = self
                .program
                .instructions
                .iter_mut()
                .rev()
                .find_map(|i| match i {
                    Instruction::Conv {
                        y,
                        after: After::Activate { act, .. },
                        ..
                    }
                    | Instruction::Add { y, act, .. }
                        if *y == value.tensor && *act == Activation::Identity =>
                    {
                        Some(act)
                    }
                    _ => None,
                });
            if let Some(written) = written {
                *written = act;
                return x;
            }
        }
        if sole_reader && value.act == Activation::Identity {
            self.program.values[x].act = act;
            return x;
        }
        let shape = value.shape;
        self.program.instruction(shape, name, |y| Instruction::Add {
            a: x,
            b: None,
            act,
            y,
        })
    }

    /// The addition moves into the convolution that writes its later operand, if the other is stored by then.
    fn add(&mut self, a_node: usize, a: ValueId, b_node: usize, b: ValueId, name: &str) -> ValueId {
        let ((early, _), (late, late_node)) = if a_node < b_node {
            ((a, a_node), (b, b_node))
        } else {
            ((b, b_node), (a, a_node))
        };
        let early_value = self.program.values[early];
        let written_before = |program: &Program, tensor: usize| {
            let late_tensor = program.values[late].tensor;
            let writes = |t: usize| {
                program.instructions.iter().position(|i| match i {
                    Instruction::Conv { y, .. }
                    | Instruction::Add { y, .. }
                    | Instruction::MaxPool { y, .. }
                    | Instruction::GlobalAvgPool { y, .. } => *y == t,
                    _ => false,
                })
            };
            writes(tensor) < writes(late_tensor)
        };
        if self.consumers[late_node] == 1
            && early_value.is_plain()
            && written_before(&self.program, early_value.tensor)
            && let Some((_, Instruction::Conv { after, .. })) = self.bare_conv(late)
        {
            *after = After::Activate {
                residual: Some(early),
                act: Activation::Identity,
            };
            return late;
        }
        let shape = early_value.shape;
        self.program.instruction(shape, name, |y| Instruction::Add {
            a,
            b: Some(b),
            act: Activation::Identity,
            y,
        })
    }
}
