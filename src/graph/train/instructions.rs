//! Runs single instructions of the training program: lends the backend what each operation reads and writes.

use super::TrainGraph;
use crate::Result;
use crate::backend::geometry::PerChannel;
use crate::backend::{
    Activation, AddDgrad, AddFprop, Backend, BatchNormBprop, BatchNormFprop, BatchNormMoments,
    Close, CloseGrad, Conv2dDgrad, Conv2dFprop, Conv2dWgrad, DepthwiseDgrad, DepthwiseFprop,
    DepthwiseWgrad, Dropout, DropoutDgrad, DropoutFprop, Epilogue, GlobalAvgPoolDgrad,
    GlobalAvgPoolFprop, GradTarget, MaxPoolDgrad, MaxPoolFprop, PReluBprop, Pending, PendingGrad,
};
use crate::graph::program::{After, Instruction, LayerGeometry, Target, Value, ValueId};
use crate::graph::storage::{Vectors, activation, pending, pending_grad};

impl<B: Backend> TrainGraph<B> {
    fn value(&self, value: ValueId) -> Value {
        self.program.values[value]
    }

    fn pending(&self, value: ValueId) -> Pending<'_, B::Buffer> {
        pending(
            &self.program.values[value],
            &self.slots,
            &self.vectors.forward,
            &self.params.slab,
        )
    }

    fn pending_grad(&self, value: ValueId) -> PendingGrad<'_, B::Buffer> {
        pending_grad(
            &self.program.values[value],
            &self.slots,
            &self.vectors.backward,
        )
    }

    /// Runs `write` with the tensor taken out of its slot.
    fn writing(
        &mut self,
        tensor: usize,
        write: impl FnOnce(&Self, &mut B::Buffer) -> Result<()>,
    ) -> Result<()> {
        let mut buffer = self.slots.take(tensor);
        let done = write(self, &mut buffer);
        self.slots.put(tensor, buffer);
        done
    }

    pub(super) fn run_forward(&mut self, backend: &mut B, instruction: &Instruction) -> Result<()> {
        let n = self.n;
        match *instruction {
            Instruction::Conv { layer, x, y, after } => {
                let mut out = self.slots.take(y);
                let Self {
                    program,
                    params,
                    slots,
                    vectors:
                        Vectors {
                            forward, moments, ..
                        },
                    ..
                } = self;
                let epilogue = match after {
                    After::Moments => Epilogue::Moments(moments),
                    _ => Epilogue::Raw,
                };
                let layer = &program.layers[layer];
                let x = pending(&program.values[x], slots, forward, &params.slab);
                let done = match layer.geometry(n) {
                    LayerGeometry::Full(geometry) => backend.conv2d_fprop(Conv2dFprop {
                        geometry,
                        x,
                        params: &params.slab,
                        filters: params.filters(),
                        filter: layer.filter,
                        prepared: None,
                        y: &mut out,
                        epilogue,
                    }),
                    LayerGeometry::Depthwise(geometry) => backend.depthwise_fprop(DepthwiseFprop {
                        geometry,
                        x,
                        params: &params.slab,
                        filter: layer.filter,
                        y: &mut out,
                        epilogue,
                    }),
                };
                self.slots.put(y, out);
                done
            }
            Instruction::Moments { x, batch_norm } => {
                let shape = self.program.batch_norms[batch_norm].shape;
                let rows = Value::plain(x, shape).rows(n);
                backend.batch_norm_moments(BatchNormMoments {
                    rows,
                    x: self.slots.get(x),
                    moments: &mut self.vectors.moments,
                })
            }
            Instruction::BatchNorm { batch_norm } => {
                let layer = self.program.batch_norms[batch_norm];
                backend.batch_norm_fprop(BatchNormFprop {
                    rows: Value::plain(0, layer.shape).rows(n),
                    moments: &self.vectors.moments,
                    params: &self.params.slab,
                    at: layer.at,
                    statistics: &mut self.statistics,
                    forward: &mut self.vectors.forward[batch_norm],
                })
            }
            Instruction::Add { a, b, act, y } => self.writing(y, |graph, y| {
                let rows = graph.value(a).rows(n);
                let b = b.map(|b| graph.pending(b));
                let act = activation(act, &graph.params.slab);
                backend.add_fprop(AddFprop {
                    rows,
                    a: graph.pending(a),
                    b,
                    activation: act,
                    y,
                })
            }),
            Instruction::MaxPool { x, window, y } => self.writing(y, |graph, y| {
                let c = graph.value(x).shape.c;
                backend.max_pool_fprop(MaxPoolFprop {
                    geometry: PerChannel { n, c, window },
                    x: graph.pending(x),
                    y,
                })
            }),
            Instruction::GlobalAvgPool { x, y } => self.writing(y, |graph, y| {
                let geometry = graph.program.global_pool(x, n);
                backend.global_avg_pool_fprop(GlobalAvgPoolFprop {
                    geometry,
                    x: graph.pending(x),
                    y,
                })
            }),
            Instruction::Dropout { x, rate, layer, y } => self.writing(y, |graph, y| {
                let dropout = graph.dropout_at(rate, layer);
                backend.dropout_fprop(DropoutFprop {
                    rows: graph.value(x).rows(n),
                    x: graph.pending(x),
                    dropout,
                    y,
                })
            }),
            _ => unreachable!("the forward half holds forward instructions"),
        }
    }

    fn dropout_at(&self, rate: f32, layer: u32) -> Dropout {
        Dropout {
            rate,
            layer,
            ..self.dropout
        }
    }

    /// Runs `write` with the target's gradient and sums taken out.
    fn write_target(
        &mut self,
        dx: Target,
        write: impl FnOnce(&Self, GradTarget<'_, B::Buffer>) -> Result<()>,
    ) -> Result<()> {
        let value = self.value(dx.value);
        let mut sums = self.vectors.sums[dx.value].take();
        let grad = value.grad.expect("a target has its tensor");
        let done = self.writing(grad, |graph, g| {
            let close = (dx.close && (value.needs_mask() || value.needs_sums())).then(|| Close {
                value: graph.closing(&value),
                sums: sums.as_mut(),
            });
            let target = GradTarget {
                g,
                accumulate: dx.accumulate,
                close,
            };
            write(graph, target)
        });
        self.vectors.sums[dx.value] = sums;
        done
    }

    /// A value as its gradient's finish sees it: an activation that was applied before storing is read off the output.
    fn closing(&self, value: &Value) -> Pending<'_, B::Buffer> {
        let act = if value.stored_act == Activation::Identity {
            value.act
        } else {
            value.stored_act
        };
        let value = Value { act, ..*value };
        pending(
            &value,
            &self.slots,
            &self.vectors.forward,
            &self.params.slab,
        )
    }

    pub(super) fn run_backward(
        &mut self,
        backend: &mut B,
        instruction: &Instruction,
    ) -> Result<()> {
        let n = self.n;
        match *instruction {
            Instruction::ValueGrad { value } => {
                let Value {
                    batch_norm, act, ..
                } = self.value(value);
                let rows = self.value(value).rows(n);
                let sums = self.vectors.sums[value].as_ref();
                let sums = sums.expect("a value with batch norm or slopes has its sums");
                if let Activation::PRelu(at) = act {
                    backend.prelu_bprop(PReluBprop {
                        c: rows.c,
                        sums,
                        grads: &mut self.grads,
                        slope_at: at,
                    })?;
                }
                let Some(i) = batch_norm else { return Ok(()) };
                backend.batch_norm_bprop(BatchNormBprop {
                    rows,
                    sums,
                    forward: &self.vectors.forward[i],
                    grads: &mut self.grads,
                    at: self.program.batch_norms[i].at,
                    backward: &mut self.vectors.backward[i],
                })
            }
            Instruction::ConvDgrad { layer, dy, dx } => self.write_target(dx, |graph, dx| {
                let layer = &graph.program.layers[layer];
                let (dy, filter) = (graph.pending_grad(dy), layer.filter);
                match layer.geometry(n) {
                    LayerGeometry::Full(geometry) => backend.conv2d_dgrad(Conv2dDgrad {
                        geometry,
                        dy,
                        filters: graph.params.filters(),
                        filter,
                        dx,
                    }),
                    LayerGeometry::Depthwise(geometry) => backend.depthwise_dgrad(DepthwiseDgrad {
                        geometry,
                        dy,
                        params: &graph.params.slab,
                        filter,
                        dx,
                    }),
                }
            }),
            Instruction::ConvWgrad { layer, dy, x } => {
                let Self {
                    program,
                    params,
                    grads,
                    slots,
                    vectors:
                        Vectors {
                            forward, backward, ..
                        },
                    ..
                } = self;
                let layer = &program.layers[layer];
                let dy = pending_grad(&program.values[dy], slots, backward);
                let x = pending(&program.values[x], slots, forward, &params.slab);
                match layer.geometry(n) {
                    LayerGeometry::Full(geometry) => backend.conv2d_wgrad(Conv2dWgrad {
                        geometry,
                        dy,
                        x,
                        grads,
                        filter: layer.filter,
                    }),
                    LayerGeometry::Depthwise(geometry) => backend.depthwise_wgrad(DepthwiseWgrad {
                        geometry,
                        dy,
                        x,
                        grads,
                        filter: layer.filter,
                    }),
                }
            }
            Instruction::AddDgrad { dy, dx } => {
                let rows = self.value(dx.value).rows(n);
                self.write_target(dx, |graph, dx| {
                    backend.add_dgrad(AddDgrad {
                        rows,
                        dy: graph.pending_grad(dy),
                        dx,
                    })
                })
            }
            Instruction::CloseGrad { value: id } => {
                let value = self.value(id);
                let mut sums = self.vectors.sums[id].take();
                let grad = value.grad.expect("a closed gradient has its tensor");
                let done = self.writing(grad, |graph, g| {
                    let close = Close {
                        value: graph.closing(&value),
                        sums: sums.as_mut(),
                    };
                    backend.close_grad(CloseGrad {
                        rows: value.rows(n),
                        g,
                        close,
                    })
                });
                self.vectors.sums[id] = sums;
                done
            }
            Instruction::MaxPoolDgrad { window, dy, x, dx } => {
                let c = self.value(x).shape.c;
                self.write_target(dx, |graph, dx| {
                    let dy = graph.pending_grad(dy).g;
                    let geometry = PerChannel { n, c, window };
                    backend.max_pool_dgrad(MaxPoolDgrad {
                        geometry,
                        dy,
                        x: graph.pending(x),
                        dx,
                    })
                })
            }
            Instruction::GlobalAvgPoolDgrad { dy, dx } => self.write_target(dx, |graph, target| {
                let geometry = graph.program.global_pool(dx.value, n);
                backend.global_avg_pool_dgrad(GlobalAvgPoolDgrad {
                    geometry,
                    dy: graph.pending_grad(dy).g,
                    dx: target,
                })
            }),
            Instruction::DropoutDgrad {
                rate,
                layer,
                dy,
                dx,
            } => {
                let rows = self.value(dx.value).rows(n);
                self.write_target(dx, |graph, dx| {
                    let dropout = graph.dropout_at(rate, layer);
                    backend.dropout_dgrad(DropoutDgrad {
                        rows,
                        dy: graph.pending_grad(dy).g,
                        dropout,
                        dx,
                    })
                })
            }
            _ => unreachable!("the backward half holds backward instructions"),
        }
    }
}
