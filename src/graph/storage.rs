//! What the executors keep on the device: tensors in their slots, channel vectors, and the views the backend takes.

use super::plan::MemoryPlan;
use super::program::{Program, Value};
use crate::Result;
use crate::backend::{Activation, Backend, Element, Pending, PendingGrad, View, bn, sums};

/// Tensors' storage. A buffer is taken out while an instruction writes it.
#[derive(Debug)]
pub(super) struct Slots<B: Backend> {
    slot_of: Vec<Option<usize>>,
    /// What each tensor's elements are.
    elements: Vec<Element>,
    pub(super) buffers: Vec<Option<B::Buffer>>,
}

impl<B: Backend> Slots<B> {
    pub(super) fn new(
        backend: &B,
        program: &Program,
        plan: &MemoryPlan,
        max_batch: usize,
    ) -> Result<Self> {
        // What a slot holds is said when it is written.
        let allocate = |bytes: &usize| {
            let floats = (bytes * max_batch).div_ceil(Element::F32.bytes());
            backend.alloc(Element::F32, floats).map(Some)
        };
        Ok(Slots {
            slot_of: plan.slot_of.clone(),
            elements: program.tensors.iter().map(|t| t.element).collect(),
            buffers: plan.slots.iter().map(allocate).collect::<Result<_>>()?,
        })
    }

    pub(super) fn slot(&self, tensor: usize) -> usize {
        self.slot_of[tensor].expect("the plan places every tensor in use")
    }

    pub(super) fn get(&self, tensor: usize) -> &B::Buffer {
        let buffer = self.buffers[self.slot(tensor)].as_ref();
        buffer.expect("no instruction reads what it writes")
    }

    /// Takes a tensor's buffer out, to write it.
    pub(super) fn take(&mut self, tensor: usize) -> B::Buffer {
        let slot = self.slot(tensor);
        let mut buffer = self.buffers[slot]
            .take()
            .expect("a tensor is written by one instruction at a time");
        B::hold(&mut buffer, self.elements[tensor]);
        buffer
    }

    pub(super) fn put(&mut self, tensor: usize, buffer: B::Buffer) {
        let slot = self.slot(tensor);
        self.buffers[slot] = Some(buffer);
    }
}

/// A parameter slab and, where tensors are not float32, its copy rounded to their elements.
#[derive(Debug)]
pub(super) struct Parameters<B: Backend> {
    pub(super) slab: B::Buffer,
    pub(super) shadow: Option<B::Buffer>,
}

impl<B: Backend> Parameters<B> {
    /// `len` zeros, for tensors of `element`.
    pub(super) fn new(backend: &B, element: Element, len: usize) -> Result<Self> {
        let shadow = (element != Element::F32).then(|| backend.alloc(element, len));
        Ok(Parameters {
            slab: backend.alloc(Element::F32, len)?,
            shadow: shadow.transpose()?,
        })
    }

    /// The filters of products.
    pub(super) fn filters(&self) -> &B::Buffer {
        self.shadow.as_ref().unwrap_or(&self.slab)
    }

    /// Replaces all of them.
    pub(super) fn upload(&mut self, backend: &mut B, values: &[f32]) -> Result<()> {
        if let Some(shadow) = &mut self.shadow {
            backend.upload(values, shadow, 0)?;
        }
        backend.upload(values, &mut self.slab, 0)
    }
}

/// Bytes of `len` parameters where tensors are of `element`.
pub(super) fn parameter_bytes(element: Element, len: usize) -> usize {
    let shadow = match element {
        Element::F32 => 0,
        element => element.bytes(),
    };
    len * (Element::F32.bytes() + shadow)
}

/// The channel vectors of batch norms and gradients.
#[derive(Debug)]
pub(super) struct Vectors<B: Backend> {
    /// Forward coefficients of each batch norm.
    pub(super) forward: Vec<B::Buffer>,
    /// Backward coefficients of each batch norm.
    pub(super) backward: Vec<B::Buffer>,
    /// Channel sums of each value that needs them.
    pub(super) sums: Vec<Option<B::Buffer>>,
    /// Moments of the batch norm at work.
    pub(super) moments: B::Buffer,
}

/// Elements that a program's channel vectors take.
pub(super) fn vectors_len(program: &Program) -> usize {
    let norms = program.batch_norms.iter().map(|b| b.shape.c);
    let coefficients: usize = norms
        .clone()
        .map(|c| bn::forward_len(c) + bn::backward_len(c))
        .sum();
    let summed = program.values.iter().filter(|v| v.needs_sums());
    let sums: usize = summed.map(|v| sums::len(v.shape.c)).sum();
    coefficients + sums + bn::moments_len(norms.max().unwrap_or(0))
}

impl<B: Backend> Vectors<B> {
    pub(super) fn new(backend: &B, program: &Program) -> Result<Self> {
        let norms = || program.batch_norms.iter().map(|b| b.shape.c);
        let sums_of = |value: &Value| {
            let len = value.needs_sums().then(|| sums::len(value.shape.c));
            len.map(|len| backend.alloc(Element::F32, len)).transpose()
        };
        Ok(Vectors {
            forward: norms()
                .map(|c| backend.alloc(Element::F32, bn::forward_len(c)))
                .collect::<Result<_>>()?,
            backward: norms()
                .map(|c| backend.alloc(Element::F32, bn::backward_len(c)))
                .collect::<Result<_>>()?,
            sums: program.values.iter().map(sums_of).collect::<Result<_>>()?,
            moments: backend.alloc(Element::F32, bn::moments_len(norms().max().unwrap_or(0)))?,
        })
    }
}

/// An activation as the backend takes it.
pub(super) fn activation<T>(act: Activation<usize>, params: &T) -> Activation<View<'_, T>> {
    act.map(|offset| View {
        buffer: params,
        offset,
    })
}

/// A value as the backend reads it.
pub(super) fn pending<'a, B: Backend>(
    value: &Value,
    slots: &'a Slots<B>,
    forward: &'a [B::Buffer],
    params: &'a B::Buffer,
) -> Pending<'a, B::Buffer> {
    Pending {
        raw: slots.get(value.tensor),
        affine: value.batch_norm.map(|i| &forward[i]),
        activation: activation(value.act, params),
    }
}

/// The gradient with respect to a value's stored tensor, as the backend reads it.
pub(super) fn pending_grad<'a, B: Backend>(
    value: &Value,
    slots: &'a Slots<B>,
    backward: &'a [B::Buffer],
) -> PendingGrad<'a, B::Buffer> {
    PendingGrad {
        g: slots.get(value.grad.expect("a gradient in use has its tensor")),
        batch_norm: value
            .batch_norm
            .map(|i| (slots.get(value.tensor), &backward[i])),
    }
}
