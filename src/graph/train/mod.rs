//! The training executor: owns parameters, gradients, momentum and activations, and walks the program.

mod instructions;

use super::Model;
use super::lower;
use super::params::{Param, ParamTable};
use super::plan::MemoryPlan;
use super::program::{Instruction, Program};
use super::storage::{Parameters, Slots, Vectors, parameter_bytes, vectors_len};
use crate::backend::{
    Augmented, Backend, Dropout, Element, InputTransform, InputTransformAugmented,
    InputTransformFprop, Segment, SgdNorms, SgdStep, SgdUpdate,
};
use crate::{Error, Result};

/// A model in training on a device.
#[derive(Debug)]
pub struct TrainGraph<B: Backend> {
    table: ParamTable,
    program: Program,
    plan: MemoryPlan,
    /// Learnt parameters.
    params: Parameters<B>,
    /// Running means and variances.
    statistics: B::Buffer,
    /// d_params.
    grads: B::Buffer,
    /// The optimizer's velocity.
    momentum: B::Buffer,
    /// Two norms of the last backward pass; see [`Backend::sgd_norms`].
    norms: B::Buffer,
    /// The same on the host, once read.
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

/// How a model is trained.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrainSettings {
    /// Draws the initial parameters, and what dropout zeroes.
    pub seed: u64,
    /// The largest batch there is room for.
    pub max_batch: usize,
    /// What activations and their gradients are stored in. Parameters, their gradients and statistics are float32 in any
    /// case.
    pub element: Element,
    /// Bytes that are left for a head.
    pub head_bytes: u64,
}

impl Default for TrainSettings {
    /// One image at a time in float32, and no head.
    fn default() -> Self {
        TrainSettings {
            seed: 0,
            max_batch: 1,
            element: Element::F32,
            head_bytes: 0,
        }
    }
}

/// The memory that training `model` takes, planned without a device. The head takes `head_bytes` of it.
pub fn memory_plan(model: &Model, element: Element, head_bytes: u64) -> MemoryPlan {
    let table = ParamTable::new(model);
    let program = lower::training(model, &table, element);
    plan_for(&table, &program, head_bytes)
}

fn plan_for(table: &ParamTable, program: &Program, head_bytes: u64) -> MemoryPlan {
    // Gradients and momentum, statistics, channel vectors; parameters.
    let floats = 2 * table.params_len() + table.statistics_len() + vectors_len(program);
    let own = floats * Element::F32.bytes() + parameter_bytes(program.element, table.params_len());
    MemoryPlan::new(program, own as u64 + head_bytes)
}

impl<B: Backend> TrainGraph<B> {
    /// A model with initial parameters. If it and its head do not fit together, nothing is allocated.
    ///
    /// # Errors
    /// Not enough memory: says how much there is and which batch would fit.
    pub fn new(backend: &mut B, model: &Model, settings: TrainSettings) -> Result<Self> {
        let TrainSettings {
            seed,
            max_batch,
            element,
            head_bytes,
        } = settings;
        let table = ParamTable::new(model);
        let program = lower::training(model, &table, element);
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
        let floats = |len| backend.alloc(Element::F32, len);
        let mut graph = TrainGraph {
            params: Parameters::new(backend, element, table.params_len())?,
            statistics: floats(table.statistics_len())?,
            grads: floats(table.params_len())?,
            momentum: floats(table.params_len())?,
            norms: floats(2)?,
            host_norms: [0.0; 2],
            slots: Slots::new(backend, &program, &plan, max_batch)?,
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
        graph.params.upload(backend, &initial)?;
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
        let image = self.program.tensors[0].len;
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
            self.program.tensors[0].len,
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
        let dx = dx.as_mut().expect("no instruction is running");
        B::hold(dx, Element::F32);
        (x.as_ref().expect("no instruction is running"), dx)
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
    /// [`TrainGraph::reading`] has been downloaded.
    pub fn measure(&mut self, backend: &mut B, segments: &[Segment]) -> Result<()> {
        backend.sgd_norms(SgdNorms {
            params: &self.params.slab,
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
            params: &mut self.params.slab,
            momentum: &mut self.momentum,
            shadow: self.params.shadow.as_mut(),
        })
    }

    /// The first layer, in forward order, whose stored output of the last forward pass is not finite. No backward pass
    /// may have run since. Tensors whose memory has been reused are skipped.
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
            let mut values = vec![0.0; self.program.tensors[y].len * self.n];
            backend.download(self.slots.get(y), 0, &mut values)?;
            if values.iter().any(|v| !v.is_finite()) {
                return Ok(Some(self.program.tensors[y].name.clone()));
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
            read(backend, &self.params.slab)?,
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
        self.params.upload(backend, params)?;
        backend.upload(statistics, &mut self.statistics, 0)?;
        backend.upload(momentum, &mut self.momentum, 0)
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
        let with_head = |head_bytes| TrainSettings {
            head_bytes,
            ..TrainSettings::default()
        };
        assert!(TrainGraph::new(backend, &model, with_head(1 << 10)).is_ok());
        let error = TrainGraph::new(backend, &model, with_head(1 << 50)).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("1048576.00 of them for the class rows"),
            "{error}"
        );
    }
}
