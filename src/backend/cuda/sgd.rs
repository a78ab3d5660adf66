//! SGD: the segments' table, and the launches over it.

use super::driver::{Driver, Memory};
use super::launch::{self, Address, word};
use super::tiles::{SGD, SGD_CHUNK, code};
use super::{Buffer, Cuda, Staging, blocks, bytes_of};
use crate::Result;
use crate::backend::{Segment, SgdForm, SgdNorms, SgdUpdate};

/// The segments on the device. They are uploaded only when they change: once per run.
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

/// The segments' address and number, and their blocks in all.
fn table<D: Driver>(cuda: &mut Cuda<D>, segments: &[Segment]) -> Result<(Address, u32, u64)> {
    let table = &mut cuda.segments;
    if table.segments != segments {
        // Forget the old segments first: a failed upload must not look like a finished one.
        table.segments.clear();
        let (packed, blocks) = pack(segments);
        let bytes = bytes_of(&packed);
        let memory = table.memory.reserve(&mut cuda.driver, bytes.len())?;
        cuda.driver.upload(bytes, memory, 0)?;
        table.blocks = blocks;
        table.segments.extend_from_slice(segments);
    }
    let address = table.memory.reserve(&mut cuda.driver, 0)?.address();
    Ok((Address(address), word(segments.len()), table.blocks))
}

/// The segments as the kernels take them, and their blocks in all.
fn pack(segments: &[Segment]) -> (Vec<launch::Segment>, u64) {
    let mut first = 0;
    let packed = segments.iter().map(|segment| {
        let Segment {
            offset,
            len,
            decay,
            lr_multiplier,
        } = *segment;
        let packed = launch::Segment {
            offset: offset as u64,
            len: len as u64,
            // A launch with more blocks than 32 bits count is refused.
            first_block: first as u32,
            decay,
            lr_multiplier,
            padding: 0,
        };
        // From a multiple of VECTOR, where the kernel's chunks begin.
        first += match len {
            0 => 0,
            len => blocks((offset % SGD.vector as usize + len) as u64, SGD_CHUNK),
        };
        packed
    });
    (packed.collect(), first)
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
    let partials = cuda.scratch(2 * blocks as usize)?;
    let kernel = launch::SgdNorms {
        segments,
        count,
        params: params.at(0),
        grads: grads.at(0),
        partials,
    };
    cuda.launch(&SGD, [blocks, 1, 1], 0, kernel)?;
    let kernel = launch::SgdNormsMerge {
        partials,
        blocks: blocks as u32,
        norms: norms.at(0),
    };
    cuda.launch(&SGD, [1, 1, 1], 0, kernel)
}

pub(super) fn update<D: Driver>(
    cuda: &mut Cuda<D>,
    op: SgdUpdate<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let SgdUpdate {
        step,
        segments,
        grads,
        norms,
        params,
        momentum,
        shadow,
    } = op;
    let (segments, count, blocks) = table(cuda, segments)?;
    let kernel = launch::SgdUpdate {
        segments,
        count,
        form: form(step.form),
        lr: step.lr,
        mu: step.momentum,
        clip: step.clip.unwrap_or(f32::INFINITY),
        grads: grads.at(0),
        norms: norms.at(0),
        params: params.at(0),
        momentum: momentum.at(0),
        shadow: shadow.map_or(Address::NULL, |shadow| shadow.at(0)),
    };
    cuda.launch(&SGD, [blocks, 1, 1], 0, kernel)
}

/// The code of a rule.
pub(super) fn form(form: SgdForm) -> u32 {
    match form {
        SgdForm::Keras => const { code("KERAS") },
        SgdForm::KerasNesterov => const { code("KERAS_NESTEROV") },
        SgdForm::Torch => const { code("TORCH") },
        SgdForm::TorchNesterov => const { code("TORCH_NESTEROV") },
    }
}
