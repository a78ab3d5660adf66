//! Norms of the gradient slab, and one step of the parameter slab.

use super::driver::{Driver, Memory};
use super::tiles::{SGD, code};
use super::{Buffer, Cuda, Staging, args, blocks};
use crate::Result;
use crate::backend::{Segment, SgdForm, SgdNorms, SgdUpdate};

/// The segments on the device, uploaded when others than the last ones are asked for: once a run.
pub(super) struct Table<D: Driver> {
    segments: Vec<Segment>,
    blocks: u64,
    memory: Staging<D>,
}

impl<D: Driver> Table<D> {
    pub(super) const EMPTY: Self = Table {
        segments: Vec::new(),
        blocks: 0,
        memory: Staging::EMPTY,
    };
}

/// The segments' address and number, and the blocks of all of them.
fn table<D: Driver>(cuda: &mut Cuda<D>, segments: &[Segment]) -> Result<(u64, usize, u64)> {
    let table = &mut cuda.segments;
    if table.segments != segments {
        // Forgotten first: an upload that fails must not look like one that was done.
        table.segments.clear();
        let (bytes, blocks) = pack(segments);
        let memory = table.memory.reserve(&mut cuda.driver, bytes.len())?;
        cuda.driver.upload(&bytes, memory, 0)?;
        table.blocks = blocks;
        table.segments.extend_from_slice(segments);
    }
    let address = table.memory.reserve(&mut cuda.driver, 0)?.address();
    Ok((address, segments.len(), table.blocks))
}

/// `struct Segment` of each, and the blocks of all of them.
fn pack(segments: &[Segment]) -> (Vec<u8>, u64) {
    let (mut bytes, mut first) = (Vec::new(), 0);
    for segment in segments {
        let Segment {
            offset,
            len,
            decay,
            lr_multiplier,
        } = *segment;
        bytes.extend((offset as u64).to_ne_bytes());
        bytes.extend((len as u64).to_ne_bytes());
        // A launch with more blocks than 32 bits count is refused.
        bytes.extend((first as u32).to_ne_bytes());
        bytes.extend(decay.to_ne_bytes());
        bytes.extend(lr_multiplier.to_ne_bytes());
        bytes.extend([0; 4]);
        // From a multiple of 4, where the kernel's chunks begin.
        first += match len {
            0 => 0,
            len => blocks((offset % 4 + len) as u64, SGD.constant("CHUNK")),
        };
    }
    (bytes, first)
}

pub(super) fn norms<D: Driver>(
    cuda: &mut Cuda<D>,
    op: SgdNorms<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let SgdNorms {
        params,
        grads,
        segments,
        norms,
    } = op;
    let (segments, count, blocks) = table(cuda, segments)?;
    let partials = args::address(cuda.scratch(2 * blocks as usize)?);
    let sums = [
        args::address(segments),
        args::u32(count),
        args::buffer(params),
        args::buffer(grads),
        partials,
    ];
    cuda.launch(&SGD, "sgd_norms", [blocks, 1, 1], 0, &sums)?;
    let merge = [partials, args::u32(blocks as usize), args::buffer(norms)];
    cuda.launch(&SGD, "sgd_norms_merge", [1, 1, 1], 0, &merge)
}

pub(super) fn update<D: Driver>(
    cuda: &mut Cuda<D>,
    op: SgdUpdate<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let SgdUpdate {
        ref step,
        segments,
        grads,
        norms,
        params,
        momentum,
    } = op;
    let (segments, count, blocks) = table(cuda, segments)?;
    let args = [
        args::address(segments),
        args::u32(count),
        args::u32(form(step.form)),
        args::f32(step.lr),
        args::f32(step.momentum),
        args::f32(step.clip.unwrap_or(f32::INFINITY)),
        args::buffer(grads),
        args::buffer(norms),
        args::buffer(params),
        args::buffer(momentum),
    ];
    cuda.launch(&SGD, "sgd_update", [blocks, 1, 1], 0, &args)
}

/// The code of a rule.
pub(super) fn form(form: SgdForm) -> usize {
    match form {
        SgdForm::Keras => const { code("KERAS") },
        SgdForm::KerasNesterov => const { code("KERAS_NESTEROV") },
        SgdForm::Torch => const { code("TORCH") },
        SgdForm::TorchNesterov => const { code("TORCH_NESTEROV") },
    }
}
