//! The inference executor: folded parameters, no gradients, tensors that die as soon as they are read.

use super::folding::{self, Folding};
use super::lower;
use super::params::ParamTable;
use super::plan::MemoryPlan;
use super::program::{After, Instruction, Layer, LayerGeometry, Program};
use super::storage::{Parameters, Slots, activation, parameter_bytes, pending};
use super::train::read;
use super::{Model, Shape};
use crate::backend::geometry::PerChannel;
use crate::backend::{
    AddFprop, Backend, Conv2dFprop, Conv2dPrepare, DepthwiseFprop, Element, Epilogue,
    GlobalAvgPoolFprop, InputTransform, InputTransformFprop, MaxPoolFprop,
};
use crate::{Error, Result};

/// A model that embeds images on a device.
#[derive(Debug)]
pub struct InferGraph<B: Backend> {
    program: Program,
    folding: Folding,
    params: Parameters<B>,
    /// Each layer's filter in the device's own form, where it has one.
    prepared: Vec<Option<B::Buffer>>,
    /// Coefficients of the batch norms that could not be folded.
    forward: Vec<B::Buffer>,
    slots: Slots<B>,
    input: Shape,
    max_batch: usize,
}

/// The memory that embedding with `model` takes on such a device, planned without one.
pub fn memory_plan<B: Backend>(model: &Model, element: Element) -> MemoryPlan {
    let (program, folding) = lower::inference(model, &ParamTable::new(model), element);
    plan_for::<B>(&program, &folding)
}

fn plan_for<B: Backend>(program: &Program, folding: &Folding) -> MemoryPlan {
    let own = parameter_bytes(program.element, folding.len());
    let prepared: usize = program.layers.iter().map(prepared_len::<B>).sum();
    MemoryPlan::new(program, (own + prepared * Element::F32.bytes()) as u64)
}

/// Elements of a layer's prepared filter.
fn prepared_len<B: Backend>(layer: &Layer) -> usize {
    match layer.geometry(1) {
        LayerGeometry::Full(geometry) => B::prepared_len(&geometry),
        LayerGeometry::Depthwise(_) => 0,
    }
}

impl<B: Backend> InferGraph<B> {
    /// A model with the given parameters and running statistics, for batches of up to `max_batch`, whose activations are
    /// stored in `element`.
    ///
    /// # Errors
    /// Not enough memory.
    pub fn new(
        backend: &mut B,
        model: &Model,
        params: &[f32],
        statistics: &[f32],
        max_batch: usize,
        element: Element,
    ) -> Result<Self> {
        let (program, folding) = lower::inference(model, &ParamTable::new(model), element);
        let plan = plan_for::<B>(&program, &folding);
        let available = backend.memory_available();
        if plan.bytes(max_batch) > available {
            return Err(Error::Invalid(format!(
                "embedding {max_batch} images at a time needs {} MiB and {} MiB are free; the largest batch that fits is {}",
                plan.bytes(max_batch) >> 20,
                available >> 20,
                plan.largest_batch(available)
            )));
        }
        let coefficients = |layer| folding::frozen(layer, params, statistics);
        let forward: Vec<Vec<f32>> = program.batch_norms.iter().map(coefficients).collect();
        let mut graph = InferGraph {
            params: Parameters::new(backend, element, folding.len())?,
            prepared: (program.layers.iter())
                .map(|layer| {
                    let len = prepared_len::<B>(layer);
                    (len > 0)
                        .then(|| backend.alloc(Element::F32, len))
                        .transpose()
                })
                .collect::<Result<_>>()?,
            forward: forward
                .iter()
                .map(|vectors| backend.alloc(Element::F32, vectors.len()))
                .collect::<Result<_>>()?,
            slots: Slots::new(backend, &program, &plan, max_batch)?,
            program,
            folding,
            input: model.input_shape(),
            max_batch,
        };
        for (vectors, buffer) in forward.iter().zip(&mut graph.forward) {
            backend.upload(vectors, buffer, 0)?;
        }
        graph.set_params(backend, params, statistics)?;
        Ok(graph)
    }

    fn set_params(&mut self, backend: &mut B, params: &[f32], statistics: &[f32]) -> Result<()> {
        let folded = self.folding.fold(params, statistics);
        self.params.upload(backend, &folded)?;
        for (layer, prepared) in self.program.layers.iter().zip(&mut self.prepared) {
            if let (LayerGeometry::Full(geometry), Some(prepared)) = (layer.geometry(1), prepared) {
                backend.conv2d_prepare(Conv2dPrepare {
                    geometry,
                    filters: self.params.filters(),
                    filter: layer.filter,
                    prepared,
                })?;
            }
        }
        Ok(())
    }

    /// Shape of an input image.
    pub fn input_shape(&self) -> Shape {
        self.input
    }

    /// Embedding size D.
    pub fn embedding_size(&self) -> usize {
        self.program.values[self.program.output].shape.len()
    }

    /// Largest batch of one call to the device.
    pub fn max_batch(&self) -> usize {
        self.max_batch
    }

    /// Embeds any number of images of H x W x 3 pixels; N x D, not normalised.
    pub fn embed(
        &mut self,
        backend: &mut B,
        pixels: &[u8],
        transform: &InputTransform,
    ) -> Result<Vec<f32>> {
        let image = self.input.len();
        assert!(pixels.len().is_multiple_of(image), "whole images only");
        let mut embeddings = Vec::with_capacity(pixels.len() / image * self.embedding_size());
        for batch in pixels.chunks(self.max_batch * image) {
            let mut input = self.slots.take(0);
            let done = backend.input_transform_fprop(InputTransformFprop {
                pixels: batch,
                transform,
                y: &mut input,
            });
            self.slots.put(0, input);
            done?;
            self.run(backend, batch.len() / image, &mut embeddings)?;
        }
        Ok(embeddings)
    }

    /// Embeds images that are numbers already (N x H x W x 3, as the network takes them); N x D, not normalised.
    pub fn embed_values(&mut self, backend: &mut B, values: &[f32]) -> Result<Vec<f32>> {
        let image = self.input.len();
        assert!(values.len().is_multiple_of(image), "whole images only");
        let mut embeddings = Vec::with_capacity(values.len() / image * self.embedding_size());
        for batch in values.chunks(self.max_batch * image) {
            let mut input = self.slots.take(0);
            let done = backend.upload(batch, &mut input, 0);
            self.slots.put(0, input);
            done?;
            self.run(backend, batch.len() / image, &mut embeddings)?;
        }
        Ok(embeddings)
    }

    fn run(&mut self, backend: &mut B, n: usize, embeddings: &mut Vec<f32>) -> Result<()> {
        for i in 0..self.program.forward_len {
            let instruction = self.program.instructions[i];
            self.instruction(backend, n, &instruction)?;
        }
        let output = self.program.values[self.program.output];
        let begin = embeddings.len();
        embeddings.resize(begin + n * output.shape.len(), 0.0);
        backend.download(self.slots.get(output.tensor), 0, &mut embeddings[begin..])
    }

    fn instruction(&mut self, backend: &mut B, n: usize, instruction: &Instruction) -> Result<()> {
        let y = instruction
            .output()
            .expect("every inference instruction writes a tensor");
        let mut out = self.slots.take(y);
        let done = self.write(backend, n, instruction, &mut out);
        self.slots.put(y, out);
        done
    }

    fn write(
        &self,
        backend: &mut B,
        n: usize,
        instruction: &Instruction,
        out: &mut B::Buffer,
    ) -> Result<()> {
        let values = &self.program.values;
        let value = |v: usize| pending(&values[v], &self.slots, &self.forward, &self.params.slab);
        match *instruction {
            Instruction::Conv {
                layer, x, after, ..
            } => {
                let After::Activate { residual, act } = after else {
                    unreachable!("inference convolutions activate")
                };
                let epilogue = Epilogue::Activate {
                    residual: residual.map(|r| self.slots.get(values[r].tensor)),
                    activation: activation(act, &self.params.slab),
                };
                let prepared = self.prepared[layer].as_ref();
                let layer = &self.program.layers[layer];
                let (x, filter) = (value(x), layer.filter);
                match layer.geometry(n) {
                    LayerGeometry::Full(geometry) => backend.conv2d_fprop(Conv2dFprop {
                        geometry,
                        x,
                        params: &self.params.slab,
                        filters: self.params.filters(),
                        filter,
                        prepared,
                        y: out,
                        epilogue,
                    }),
                    LayerGeometry::Depthwise(geometry) => backend.depthwise_fprop(DepthwiseFprop {
                        geometry,
                        x,
                        params: &self.params.slab,
                        filter,
                        y: out,
                        epilogue,
                    }),
                }
            }
            Instruction::Add { a, b, act, .. } => {
                let rows = values[a].rows(n);
                let act = activation(act, &self.params.slab);
                backend.add_fprop(AddFprop {
                    rows,
                    a: value(a),
                    b: b.map(value),
                    activation: act,
                    y: out,
                })
            }
            Instruction::MaxPool { x, window, .. } => {
                let c = values[x].shape.c;
                backend.max_pool_fprop(MaxPoolFprop {
                    geometry: PerChannel { n, c, window },
                    x: value(x),
                    y: out,
                })
            }
            Instruction::GlobalAvgPool { x, .. } => {
                backend.global_avg_pool_fprop(GlobalAvgPoolFprop {
                    geometry: self.program.global_pool(x, n),
                    x: value(x),
                    y: out,
                })
            }
            _ => unreachable!("the inference program holds no training instructions"),
        }
    }

    /// The folded parameter slab, for tests and exports.
    pub fn folded(&self, backend: &mut B) -> Result<Vec<f32>> {
        read(backend, &self.params.slab)
    }
}
