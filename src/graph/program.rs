//! The fused program: instructions over pending values, with every tensor they read and write in plain sight.
//!
//! Forward and backward are one list. Liveness, memory and execution all follow from it, so there is no second
//! account of what a step does.

use super::Shape;
use crate::backend::geometry::{Conv2d, GlobalPool, PerChannel, Rows, Window};
use crate::backend::{Activation, BatchNormAt, Element, FilterAt};

/// A value's place in [`Program::values`].
pub(crate) type ValueId = usize;
/// A tensor's place in [`Program::tensors`].
pub(crate) type TensorId = usize;
/// A batch norm's place in [`Program::batch_norms`].
pub(crate) type BatchNormId = usize;
/// A layer's place in [`Program::layers`].
pub(crate) type LayerId = usize;

/// Something stored for the length of some instructions.
#[derive(Clone, Debug)]
pub(crate) struct Tensor {
    /// Elements for one image.
    pub(crate) len: usize,
    /// What they are.
    pub(crate) element: Element,
    /// Which node first gave the tensor its name, for the memory table and for diagnosis.
    pub(crate) name: String,
}

impl Tensor {
    /// Bytes for one image.
    pub(crate) fn bytes(&self) -> usize {
        self.len * self.element.bytes()
    }
}

/// A tensor as its consumers see it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Value {
    /// What is stored.
    pub(crate) tensor: TensorId,
    /// One image's shape.
    pub(crate) shape: Shape,
    /// Applied as it is read.
    pub(crate) batch_norm: Option<BatchNormId>,
    /// Applied as it is read, after the batch norm; slopes by their place in the parameter slab.
    pub(crate) act: Activation<usize>,
    /// Was applied before the tensor was stored; its derivative can be read off the output.
    pub(crate) stored_act: Activation<usize>,
    /// The tensor of the gradient, where one is computed.
    pub(crate) grad: Option<TensorId>,
}

impl Value {
    pub(crate) fn plain(tensor: TensorId, shape: Shape) -> Self {
        Value {
            tensor,
            shape,
            batch_norm: None,
            act: Activation::Identity,
            stored_act: Activation::Identity,
            grad: None,
        }
    }

    /// Whether consumers may read the stored tensor as it is.
    pub(crate) fn is_plain(&self) -> bool {
        self.batch_norm.is_none() && self.act == Activation::Identity
    }

    /// Whether the finished gradient needs channel sums.
    pub(crate) fn needs_sums(&self) -> bool {
        self.batch_norm.is_some() || matches!(self.act, Activation::PRelu(_))
    }

    /// Whether the activation changes the gradient.
    pub(crate) fn needs_mask(&self) -> bool {
        self.act != Activation::Identity || self.stored_act != Activation::Identity
    }

    pub(crate) fn rows(&self, n: usize) -> Rows {
        Rows {
            pixels: n * self.shape.pixels(),
            c: self.shape.c,
        }
    }
}

/// A layer with a filter: its place, and its geometry except for the batch.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) filter: FilterAt,
    /// Input channels.
    pub(crate) c: usize,
    /// Output channels; absent for a depthwise layer.
    pub(crate) k: Option<usize>,
    pub(crate) window: Window,
    /// Whether its filter has a gradient.
    pub(crate) learnt: bool,
}

/// A layer's geometry with its batch.
pub(crate) enum LayerGeometry {
    Full(Conv2d),
    Depthwise(PerChannel),
}

impl Layer {
    pub(crate) fn geometry(&self, n: usize) -> LayerGeometry {
        let (c, window) = (self.c, self.window);
        match self.k {
            Some(k) => LayerGeometry::Full(Conv2d { n, c, k, window }),
            None => LayerGeometry::Depthwise(PerChannel { n, c, window }),
        }
    }
}

/// A batch norm: its parameters, and the shape it normalises.
#[derive(Clone, Copy, Debug)]
pub(crate) struct BatchNormLayer {
    pub(crate) at: BatchNormAt,
    pub(crate) shape: Shape,
}

/// Where a gradient goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) value: ValueId,
    pub(crate) accumulate: bool,
    /// Last contribution: mask and sums follow.
    pub(crate) close: bool,
}

/// What a convolution does with its output besides adding the bias.
#[derive(Clone, Copy, Debug)]
pub(crate) enum After {
    Nothing,
    /// Training, before a batch norm.
    Moments,
    /// Inference.
    Activate {
        residual: Option<ValueId>,
        act: Activation<usize>,
    },
}

/// One call on the backend.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Instruction {
    Conv {
        layer: LayerId,
        x: ValueId,
        y: TensorId,
        after: After,
    },
    /// Moments of a stored tensor, for a batch norm that follows no convolution.
    Moments {
        x: TensorId,
        batch_norm: BatchNormId,
    },
    /// Coefficients and running statistics from the moments taken just before.
    BatchNorm {
        batch_norm: BatchNormId,
    },
    Add {
        a: ValueId,
        b: Option<ValueId>,
        act: Activation<usize>,
        y: TensorId,
    },
    MaxPool {
        x: ValueId,
        window: Window,
        y: TensorId,
    },
    GlobalAvgPool {
        x: ValueId,
        y: TensorId,
    },
    Dropout {
        x: ValueId,
        rate: f32,
        layer: u32,
        y: TensorId,
    },
    /// Learnt parameters' gradients and backward coefficients of a value's batch norm and slopes.
    ValueGrad {
        value: ValueId,
    },
    ConvDgrad {
        layer: LayerId,
        dy: ValueId,
        dx: Target,
    },
    ConvWgrad {
        layer: LayerId,
        dy: ValueId,
        x: ValueId,
    },
    AddDgrad {
        dy: ValueId,
        dx: Target,
    },
    /// The gradient is in its place already, and only its finish is due.
    CloseGrad {
        value: ValueId,
    },
    MaxPoolDgrad {
        window: Window,
        dy: ValueId,
        x: ValueId,
        dx: Target,
    },
    GlobalAvgPoolDgrad {
        dy: ValueId,
        dx: Target,
    },
    DropoutDgrad {
        rate: f32,
        layer: u32,
        dy: ValueId,
        dx: Target,
    },
}

impl Instruction {
    /// The tensor that a forward instruction writes, if it writes one.
    pub(crate) fn output(&self) -> Option<TensorId> {
        match *self {
            Instruction::Conv { y, .. }
            | Instruction::Add { y, .. }
            | Instruction::MaxPool { y, .. }
            | Instruction::GlobalAvgPool { y, .. }
            | Instruction::Dropout { y, .. } => Some(y),
            _ => None,
        }
    }
}

/// A model made ready to run.
#[derive(Clone, Debug, Default)]
pub(crate) struct Program {
    /// What tensors are made of, but for the embedding and its gradient, which are float32: the head reads and writes them.
    pub(crate) element: Element,
    pub(crate) tensors: Vec<Tensor>,
    pub(crate) values: Vec<Value>,
    pub(crate) layers: Vec<Layer>,
    pub(crate) batch_norms: Vec<BatchNormLayer>,
    /// Forward, then backward.
    pub(crate) instructions: Vec<Instruction>,
    /// Where backward begins.
    pub(crate) forward_len: usize,
    /// The embedding; always plain.
    pub(crate) output: ValueId,
}

impl Program {
    pub(crate) fn new_tensor(
        &mut self,
        len: usize,
        element: Element,
        name: impl Into<String>,
    ) -> TensorId {
        let name = name.into();
        self.tensors.push(Tensor { len, element, name });
        self.tensors.len() - 1
    }

    pub(crate) fn new_value(&mut self, value: Value) -> ValueId {
        self.values.push(value);
        self.values.len() - 1
    }

    /// Adds an instruction with a new output tensor, read as it is.
    pub(crate) fn instruction(
        &mut self,
        shape: Shape,
        name: &str,
        make: impl FnOnce(TensorId) -> Instruction,
    ) -> ValueId {
        let y = self.new_tensor(shape.len(), self.element, name);
        self.instructions.push(make(y));
        self.new_value(Value::plain(y, shape))
    }

    /// The value itself where it is stored as it is read, a stored copy otherwise.
    pub(crate) fn stored(&mut self, x: ValueId, name: &str) -> ValueId {
        if self.values[x].is_plain() {
            return x;
        }
        self.stored_copy(x, name)
    }

    /// The value itself where it is stored as it is read, in float32; otherwise a copy that is.
    pub(crate) fn stored_floats(&mut self, x: ValueId, name: &str) -> ValueId {
        if self.element == Element::F32 {
            return self.stored(x, name);
        }
        let copy = self.stored_copy(x, name);
        self.tensors[self.values[copy].tensor].element = Element::F32;
        copy
    }

    /// A tensor of its own for what `x` is read as.
    pub(crate) fn stored_copy(&mut self, x: ValueId, name: &str) -> ValueId {
        self.add(x, None, Activation::Identity, name)
    }

    /// The sum of one or two values, activated before it is stored.
    pub(crate) fn add(
        &mut self,
        a: ValueId,
        b: Option<ValueId>,
        act: Activation<usize>,
        name: &str,
    ) -> ValueId {
        let shape = self.values[a].shape;
        self.instruction(shape, name, |y| Instruction::Add { a, b, act, y })
    }

    /// The forward half.
    pub(crate) fn forward(&self) -> &[Instruction] {
        &self.instructions[..self.forward_len]
    }

    /// Every tensor that an instruction touches, in no particular order.
    pub(crate) fn operands(&self, instruction: &Instruction) -> Vec<TensorId> {
        let read = |v: ValueId| self.values[v].tensor;
        let grad = |v: ValueId| {
            self.values[v]
                .grad
                .expect("a gradient in use has its tensor")
        };
        // A pending gradient also reads the raw output where batch norm lies between.
        let pending_grad = |v: ValueId| {
            let raw = self.values[v].batch_norm.map(|_| read(v));
            raw.into_iter().chain([grad(v)])
        };
        let close = |v: ValueId| {
            let value = &self.values[v];
            let reads = value.needs_mask() || value.needs_sums();
            reads.then_some(value.tensor)
        };
        let target = |dx: Target| {
            let closed = dx.close.then(|| close(dx.value)).flatten();
            closed.into_iter().chain([grad(dx.value)])
        };
        match *instruction {
            Instruction::Conv { x, y, after, .. } => {
                let residual = match after {
                    After::Activate { residual, .. } => residual.map(read),
                    _ => None,
                };
                [read(x), y].into_iter().chain(residual).collect()
            }
            Instruction::Moments { x, .. } => vec![x],
            Instruction::BatchNorm { .. } | Instruction::ValueGrad { .. } => Vec::new(),
            Instruction::Add { a, b, y, .. } => {
                [read(a), y].into_iter().chain(b.map(read)).collect()
            }
            Instruction::MaxPool { x, y, .. }
            | Instruction::GlobalAvgPool { x, y }
            | Instruction::Dropout { x, y, .. } => vec![read(x), y],
            Instruction::ConvDgrad { dy, dx, .. } | Instruction::AddDgrad { dy, dx } => {
                pending_grad(dy).chain(target(dx)).collect()
            }
            Instruction::ConvWgrad { dy, x, .. } => pending_grad(dy).chain([read(x)]).collect(),
            Instruction::CloseGrad { value } => {
                close(value).into_iter().chain([grad(value)]).collect()
            }
            Instruction::MaxPoolDgrad { dy, x, dx, .. } => {
                [grad(dy), read(x)].into_iter().chain(target(dx)).collect()
            }
            Instruction::GlobalAvgPoolDgrad { dy, dx }
            | Instruction::DropoutDgrad { dy, dx, .. } => {
                [grad(dy)].into_iter().chain(target(dx)).collect()
            }
        }
    }

    /// Global pooling's geometry for a value.
    pub(crate) fn global_pool(&self, x: ValueId, n: usize) -> GlobalPool {
        let Shape { h, w, c } = self.values[x].shape;
        GlobalPool {
            n,
            pixels: h * w,
            c,
        }
    }
}
