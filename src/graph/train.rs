//! The training executor: owns parameters, gradients, momentum and activations, and walks the program.

use super::Model;
use super::lower;
use super::params::{Param, ParamTable};
use super::plan::MemoryPlan;
use super::program::{After, Instruction, LayerGeometry, Program, Target, Value, ValueId};
use super::storage::{Slots, Vectors, activation, pending, pending_grad, vectors_len};
use crate::backend::geometry::PerChannel;
use crate::backend::{
    Activation, AddDgrad, AddFprop, Augmented, Backend, BatchNormBprop, BatchNormFprop,
    BatchNormMoments, Close, CloseGrad, Conv2dDgrad, Conv2dFprop, Conv2dWgrad, DepthwiseDgrad,
    DepthwiseFprop, DepthwiseWgrad, Dropout, DropoutDgrad, DropoutFprop, Epilogue,
    GlobalAvgPoolDgrad, GlobalAvgPoolFprop, GradTarget, InputTransform, InputTransformAugmented,
    InputTransformFprop, MaxPoolDgrad, MaxPoolFprop, PReluBprop, Pending, PendingGrad, Segment,
    SgdNorms, SgdStep, SgdUpdate,
};
use crate::{Error, Result};

/// A model in training on a device.
#[derive(Debug)]
pub struct TrainGraph<B: Backend> {
    table: ParamTable,
    program: Program,
    plan: MemoryPlan,
    /// Learnt parameters.
    params: B::Buffer,
    /// Running means and variances.
    statistics: B::Buffer,
    /// d_params.
    grads: B::Buffer,
    /// The optimizer's velocity.
    momentum: B::Buffer,
    /// Two norms of the last backward pass; see [`Backend::sgd_norms`].
    norms: B::Buffer,
    /// The same on the host, once they were read.
    host_norms: [f32; 2],
    slots: Slots<B>,
    vectors: Vectors<B>,
    max_batch: usize,
    /// Batch of the forward pass in flight.
    n: usize,
    dropout: Dropout,
}

/// What [`TrainGraph::measure`] finds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norms {
    /// Euclidean norm of the gradient slab.
    pub gradient: f64,
    /// Sum of (decay / 2) w^2 over the slab.
    pub l2: f64,
}

/// The memory that training `model` takes, planned without a device; the head beside it takes `head_bytes`.
pub fn memory_plan(model: &Model, head_bytes: u64) -> MemoryPlan {
    let table = ParamTable::new(model);
    let program = lower::training(model, &table);
    plan_for(&table, &program, head_bytes)
}

fn plan_for(table: &ParamTable, program: &Program, head_bytes: u64) -> MemoryPlan {
    // Parameters, gradients, momentum.
    let own = 3 * table.params_len() + table.statistics_len() + vectors_len(program);
    MemoryPlan::new(program, own + (head_bytes / 4) as usize)
}

impl<B: Backend> TrainGraph<B> {
    /// A model with initial parameters drawn from `seed`, and room for batches of up to `max_batch`.
    ///
    /// # Errors
    /// Not enough memory: says how much there is and which batch would fit.
    pub fn new(backend: &mut B, model: &Model, seed: u64, max_batch: usize) -> Result<Self> {
        Self::with_head(backend, model, seed, max_batch, 0)
    }

    /// As [`TrainGraph::new`], beside a head that will take `head_bytes`: what does not fit with it is refused before
    /// anything is allocated.
    ///
    /// # Errors
    /// Not enough memory for both.
    pub fn with_head(
        backend: &mut B,
        model: &Model,
        seed: u64,
        max_batch: usize,
        head_bytes: u64,
    ) -> Result<Self> {
        let table = ParamTable::new(model);
        let program = lower::training(model, &table);
        let plan = plan_for(&table, &program, head_bytes);
        let available = backend.memory_available();
        if plan.bytes(max_batch) > available {
            let gib = |bytes: u64| bytes as f64 / f64::from(1 << 30);
            return Err(Error::Invalid(format!(
                "a batch of {max_batch} needs {:.2} GiB ({:.2} of them for the class rows) and {:.2} GiB are free; the \
                 largest batch that fits is {}",
                gib(plan.bytes(max_batch)),
                gib(head_bytes),
                gib(available),
                plan.largest_batch(available)
            )));
        }
        let (initial, statistics_initial) = table.init(seed);
        let mut graph = TrainGraph {
            params: backend.alloc(table.params_len())?,
            statistics: backend.alloc(table.statistics_len())?,
            grads: backend.alloc(table.params_len())?,
            momentum: backend.alloc(table.params_len())?,
            norms: backend.alloc(2)?,
            host_norms: [0.0; 2],
            slots: Slots::new(backend, &plan, max_batch)?,
            vectors: Vectors::new(backend, &program)?,
            table,
            program,
            plan,
            max_batch,
            n: 0,
            dropout: Dropout {
                rate: 0.0,
                seed,
                layer: 0,
                step: 0,
            },
        };
        backend.upload(&initial, &mut graph.params, 0)?;
        backend.upload(&statistics_initial, &mut graph.statistics, 0)?;
        Ok(graph)
    }

    /// Names and places of the parameters.
    pub fn table(&self) -> &ParamTable {
        &self.table
    }

    /// The memory plan.
    pub fn plan(&self) -> &MemoryPlan {
        &self.plan
    }

    /// The optimizer's segments under a rule that gives each parameter its decay.
    pub fn segments(&self, decay: impl Fn(&Param) -> f32) -> Vec<Segment> {
        self.table.segments(decay)
    }

    /// Runs the forward pass on `n` images of H x W x 3 pixels. Dropout draws from (seed of the graph, `step`).
    pub fn forward(
        &mut self,
        backend: &mut B,
        pixels: &[u8],
        transform: &InputTransform,
        step: u64,
    ) -> Result<()> {
        let image = self.program.tensors[0];
        assert!(pixels.len().is_multiple_of(image), "whole images only");
        self.forward_from(backend, pixels.len() / image, step, |backend, input| {
            backend.input_transform_fprop(InputTransformFprop {
                pixels,
                transform,
                y: input,
            })
        })
    }

    /// As [`TrainGraph::forward`], on pictures that the device changes first.
    pub fn forward_augmented(
        &mut self,
        backend: &mut B,
        pictures: Augmented<'_>,
        transform: &InputTransform,
        step: u64,
    ) -> Result<()> {
        let Augmented { size, changes, .. } = pictures;
        assert_eq!(
            self.program.tensors[0],
            size * size * 3,
            "pictures of the network's size"
        );
        self.forward_from(backend, changes.len(), step, |backend, input| {
            backend.input_transform_augmented(InputTransformAugmented {
                pictures,
                transform,
                y: input,
            })
        })
    }

    /// The forward pass on `n` images that `fill` writes to the input.
    fn forward_from(
        &mut self,
        backend: &mut B,
        n: usize,
        step: u64,
        fill: impl FnOnce(&mut B, &mut B::Buffer) -> Result<()>,
    ) -> Result<()> {
        self.n = n;
        assert!(
            self.n > 0 && self.n <= self.max_batch,
            "a batch of {} in a graph made for {}",
            self.n,
            self.max_batch
        );
        self.dropout.step = step;
        let mut input = self.slots.take(0);
        let done = fill(backend, &mut input);
        self.slots.put(0, input);
        done?;
        for i in 0..self.program.forward_len {
            let instruction = self.program.instructions[i];
            self.run_forward(backend, &instruction)?;
        }
        Ok(())
    }

    /// The embeddings of the last forward pass (N x D), and where the head leaves their gradient.
    pub fn embeddings(&mut self) -> (&B::Buffer, &mut B::Buffer) {
        let output = self.program.values[self.program.output];
        let x = self.slots.slot(output.tensor);
        let dx = self
            .slots
            .slot(output.grad.expect("the embedding has a gradient"));
        let [x, dx] = self
            .slots
            .buffers
            .get_disjoint_mut([x, dx])
            .expect("the plan keeps the embedding and its gradient apart");
        (
            x.as_ref().expect("no instruction is running"),
            dx.as_mut().expect("no instruction is running"),
        )
    }

    /// Runs the backward pass from the gradient that the head left.
    pub fn backward(&mut self, backend: &mut B) -> Result<()> {
        for i in self.program.forward_len..self.program.instructions.len() {
            let instruction = self.program.instructions[i];
            self.run_backward(backend, &instruction)?;
        }
        Ok(())
    }

    /// Queues the norms of the gradient and of the decayed weights. [`TrainGraph::norms`] has them once
    /// [`TrainGraph::reading`] was downloaded.
    pub fn measure(&mut self, backend: &mut B, segments: &[Segment]) -> Result<()> {
        backend.sgd_norms(SgdNorms {
            params: &self.params,
            grads: &self.grads,
            segments,
            norms: &mut self.norms,
        })
    }

    /// What [`TrainGraph::measure`] left on the device, for [`Backend::download_all`].
    pub fn reading(&mut self) -> (&B::Buffer, usize, &mut [f32]) {
        (&self.norms, 0, &mut self.host_norms)
    }

    /// The norms whose [`TrainGraph::reading`] was downloaded last.
    pub fn norms(&self) -> Norms {
        Norms {
            gradient: f64::from(self.host_norms[0]).sqrt(),
            l2: f64::from(self.host_norms[1]),
        }
    }

    /// One step of the optimizer; [`TrainGraph::measure`] must have run since the backward pass. Nothing changes where
    /// the gradient is not finite.
    pub fn update(&mut self, backend: &mut B, segments: &[Segment], step: &SgdStep) -> Result<()> {
        backend.sgd_update(SgdUpdate {
            step: *step,
            segments,
            grads: &self.grads,
            norms: &self.norms,
            params: &mut self.params,
            momentum: &mut self.momentum,
        })
    }

    /// The first layer, in forward order, whose stored output of the last forward pass is not finite; a backward pass
    /// must not have run since. Tensors whose memory has been reused are passed over.
    pub fn first_layer_not_finite(&mut self, backend: &mut B) -> Result<Option<String>> {
        let mut last_writer = vec![None; self.slots.buffers.len()];
        let outputs: Vec<usize> = self
            .program
            .forward()
            .iter()
            .filter_map(Instruction::output)
            .collect();
        for y in &outputs {
            last_writer[self.slots.slot(*y)] = Some(*y);
        }
        for y in outputs {
            if last_writer[self.slots.slot(y)] != Some(y) {
                continue;
            }
            let mut values = vec![0.0; self.program.tensors[y] * self.n];
            backend.download(self.slots.get(y), 0, &mut values)?;
            if values.iter().any(|v| !v.is_finite()) {
                return Ok(Some(self.program.tensor_names[y].clone()));
            }
        }
        Ok(None)
    }

    /// The first parameter, in forward order, whose gradient is not finite.
    pub fn first_gradient_not_finite(&mut self, backend: &mut B) -> Result<Option<String>> {
        let grads = self.gradients(backend)?;
        let bad = |p: &&Param| grads[p.offset..][..p.len()].iter().any(|g| !g.is_finite());
        Ok(self.table.params().iter().find(bad).map(|p| p.name.clone()))
    }

    /// The gradient slab.
    pub fn gradients(&self, backend: &mut B) -> Result<Vec<f32>> {
        read(backend, &self.grads)
    }

    /// The parameter, statistics and momentum slabs.
    pub fn state(&self, backend: &mut B) -> Result<[Vec<f32>; 3]> {
        Ok([
            read(backend, &self.params)?,
            read(backend, &self.statistics)?,
            read(backend, &self.momentum)?,
        ])
    }

    /// Replaces the parameter, statistics and momentum slabs.
    pub fn set_state(
        &mut self,
        backend: &mut B,
        [params, statistics, momentum]: [&[f32]; 3],
    ) -> Result<()> {
        backend.upload(params, &mut self.params, 0)?;
        backend.upload(statistics, &mut self.statistics, 0)?;
        backend.upload(momentum, &mut self.momentum, 0)
    }

    fn value(&self, value: ValueId) -> Value {
        self.program.values[value]
    }

    fn pending(&self, value: ValueId) -> Pending<'_, B::Buffer> {
        pending(
            &self.program.values[value],
            &self.slots,
            &self.vectors.forward,
            &self.params,
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

    fn run_forward(&mut self, backend: &mut B, instruction: &Instruction) -> Result<()> {
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
                let x = pending(&program.values[x], slots, forward, params);
                let done = match layer.geometry(n) {
                    LayerGeometry::Full(geometry) => backend.conv2d_fprop(Conv2dFprop {
                        geometry,
                        x,
                        params,
                        filter: layer.filter,
                        y: &mut out,
                        epilogue,
                    }),
                    LayerGeometry::Depthwise(geometry) => backend.depthwise_fprop(DepthwiseFprop {
                        geometry,
                        x,
                        params,
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
                    params: &self.params,
                    at: layer.at,
                    statistics: &mut self.statistics,
                    forward: &mut self.vectors.forward[batch_norm],
                })
            }
            Instruction::Add { a, b, act, y } => self.writing(y, |graph, y| {
                let rows = graph.value(a).rows(n);
                let b = b.map(|b| graph.pending(b));
                let act = activation(act, &graph.params);
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
        pending(&value, &self.slots, &self.vectors.forward, &self.params)
    }

    fn run_backward(&mut self, backend: &mut B, instruction: &Instruction) -> Result<()> {
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
                let (dy, params, filter) = (graph.pending_grad(dy), &graph.params, layer.filter);
                match layer.geometry(n) {
                    LayerGeometry::Full(geometry) => backend.conv2d_dgrad(Conv2dDgrad {
                        geometry,
                        dy,
                        params,
                        filter,
                        dx,
                    }),
                    LayerGeometry::Depthwise(geometry) => backend.depthwise_dgrad(DepthwiseDgrad {
                        geometry,
                        dy,
                        params,
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
                let x = pending(&program.values[x], slots, forward, params);
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
            Instruction::AddGrad { dy, dx } => {
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
            Instruction::MaxPoolGrad { window, dy, x, dx } => {
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
            Instruction::GlobalAvgPoolGrad { dy, dx } => self.write_target(dx, |graph, target| {
                let geometry = graph.program.global_pool(dx.value, n);
                backend.global_avg_pool_dgrad(GlobalAvgPoolDgrad {
                    geometry,
                    dy: graph.pending_grad(dy).g,
                    dx: target,
                })
            }),
            Instruction::DropoutGrad {
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

pub(super) fn read<B: Backend>(backend: &mut B, buffer: &B::Buffer) -> Result<Vec<f32>> {
    let mut values = vec![0.0; backend.len(buffer)];
    backend.download(buffer, 0, &mut values)?;
    Ok(values)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cpu::Cpu;
    use crate::models::{self, Embedding};

    #[test]
    fn a_head_that_does_not_fit_is_refused_before_anything_is_allocated() {
        let model = models::mobilefacenet(112, Embedding::GlobalDepthwise { size: 128 }).unwrap();
        let backend = &mut Cpu::new();
        assert!(TrainGraph::with_head(backend, &model, 1, 1, 1 << 10).is_ok());
        let error = TrainGraph::with_head(backend, &model, 1, 1, 1 << 50).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("1048576.00 of them for the class rows"),
            "{error}"
        );
    }
}
