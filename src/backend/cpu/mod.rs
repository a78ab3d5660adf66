//! The native CPU backend: Rust with run-time SIMD dispatch, all cores, no code of other frameworks.
//!
//! Work is cut into tiles whose number depends only on the shapes, never on the number of threads, and partial
//! sums are added in tile order: the same inputs give the same bits on any number of cores.

mod add;
mod arcface;
mod batch_norm;
mod buffer;
mod conv;
mod depthwise;
mod dropout;
mod inner_products;
mod input_transform;
mod machine;
mod matrix;
mod pending;
mod pool;
mod product;
mod sgd;
mod tensor;
mod tiles;

pub use buffer::Buffer;
pub use inner_products::inner_products;
pub use machine::{Instructions, start_threads};

use super::geometry::Conv2d;
use super::{
    AddDgrad, AddFprop, ArcFaceBprop, ArcFaceFprop, ArcFacePrepare, Backend, BatchNormBprop,
    BatchNormFprop, BatchNormMoments, CloseGrad, Conv2dDgrad, Conv2dFprop, Conv2dPrepare,
    Conv2dWgrad, DepthwiseDgrad, DepthwiseFprop, DepthwiseWgrad, DropoutDgrad, DropoutFprop,
    Element, GlobalAvgPoolDgrad, GlobalAvgPoolFprop, InputTransformFprop, MaxPoolDgrad,
    MaxPoolFprop, PReluBprop, SgdNorms, SgdUpdate,
};
use crate::Result;

/// The CPU as a device.
#[derive(Debug, Default)]
pub struct Cpu {
    /// Tiles' partial results, grown once and kept.
    scratch: Buffer,
}

impl Cpu {
    /// The CPU with as many threads as rayon's global pool has.
    pub fn new() -> Self {
        Cpu::default()
    }
}

impl Backend for Cpu {
    type Buffer = Buffer;

    fn describe(&self) -> String {
        machine::describe()
    }

    fn memory_available(&self) -> u64 {
        machine::memory_available()
    }

    fn supports(&self, _: Element) -> bool {
        true
    }

    fn alloc(&self, element: Element, len: usize) -> Result<Buffer> {
        Ok(Buffer::zeros(element, len))
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.elements()
    }

    fn hold(buffer: &mut Buffer, element: Element) {
        buffer.hold(element);
    }

    fn upload(&mut self, src: &[f32], dst: &mut Buffer, offset: usize) -> Result<()> {
        dst.tensor_mut().write(offset, src);
        Ok(())
    }

    fn download_all(&mut self, parts: &mut [(&Buffer, usize, &mut [f32])]) -> Result<()> {
        for (src, offset, dst) in parts {
            src.tensor().read(*offset..*offset + dst.len(), dst);
        }
        Ok(())
    }

    fn input_transform_fprop(&mut self, op: InputTransformFprop<'_, Buffer>) -> Result<()> {
        input_transform::apply(op);
        Ok(())
    }

    fn prepared_len(geometry: &Conv2d) -> usize {
        conv::prepared_len(geometry)
    }

    fn conv2d_prepare(&mut self, op: Conv2dPrepare<'_, Buffer>) -> Result<()> {
        conv::prepare(&mut self.scratch, op);
        Ok(())
    }

    fn conv2d_fprop(&mut self, op: Conv2dFprop<'_, Buffer>) -> Result<()> {
        conv::fprop(&mut self.scratch, op);
        Ok(())
    }

    fn conv2d_dgrad(&mut self, op: Conv2dDgrad<'_, Buffer>) -> Result<()> {
        conv::dgrad(&mut self.scratch, op);
        Ok(())
    }

    fn conv2d_wgrad(&mut self, op: Conv2dWgrad<'_, Buffer>) -> Result<()> {
        conv::wgrad(&mut self.scratch, op);
        Ok(())
    }

    fn depthwise_fprop(&mut self, op: DepthwiseFprop<'_, Buffer>) -> Result<()> {
        depthwise::fprop(&mut self.scratch, op);
        Ok(())
    }

    fn depthwise_dgrad(&mut self, op: DepthwiseDgrad<'_, Buffer>) -> Result<()> {
        depthwise::dgrad(&mut self.scratch, op);
        Ok(())
    }

    fn depthwise_wgrad(&mut self, op: DepthwiseWgrad<'_, Buffer>) -> Result<()> {
        depthwise::wgrad(&mut self.scratch, op);
        Ok(())
    }

    fn batch_norm_moments(&mut self, op: BatchNormMoments<'_, Buffer>) -> Result<()> {
        batch_norm::moments(&mut self.scratch, op);
        Ok(())
    }

    fn batch_norm_fprop(&mut self, op: BatchNormFprop<'_, Buffer>) -> Result<()> {
        batch_norm::fprop(op);
        Ok(())
    }

    fn batch_norm_bprop(&mut self, op: BatchNormBprop<'_, Buffer>) -> Result<()> {
        batch_norm::bprop(op);
        Ok(())
    }

    fn prelu_bprop(&mut self, op: PReluBprop<'_, Buffer>) -> Result<()> {
        batch_norm::prelu_bprop(op);
        Ok(())
    }

    fn add_fprop(&mut self, op: AddFprop<'_, Buffer>) -> Result<()> {
        add::fprop(op);
        Ok(())
    }

    fn add_dgrad(&mut self, op: AddDgrad<'_, Buffer>) -> Result<()> {
        add::dgrad(&mut self.scratch, op);
        Ok(())
    }

    fn close_grad(&mut self, op: CloseGrad<'_, Buffer>) -> Result<()> {
        add::close_grad(&mut self.scratch, op);
        Ok(())
    }

    fn max_pool_fprop(&mut self, op: MaxPoolFprop<'_, Buffer>) -> Result<()> {
        pool::max_pool_fprop(op);
        Ok(())
    }

    fn max_pool_dgrad(&mut self, op: MaxPoolDgrad<'_, Buffer>) -> Result<()> {
        pool::max_pool_dgrad(&mut self.scratch, op);
        Ok(())
    }

    fn global_avg_pool_fprop(&mut self, op: GlobalAvgPoolFprop<'_, Buffer>) -> Result<()> {
        pool::global_avg_pool_fprop(op);
        Ok(())
    }

    fn global_avg_pool_dgrad(&mut self, op: GlobalAvgPoolDgrad<'_, Buffer>) -> Result<()> {
        pool::global_avg_pool_dgrad(&mut self.scratch, op);
        Ok(())
    }

    fn dropout_fprop(&mut self, op: DropoutFprop<'_, Buffer>) -> Result<()> {
        dropout::fprop(op);
        Ok(())
    }

    fn dropout_dgrad(&mut self, op: DropoutDgrad<'_, Buffer>) -> Result<()> {
        dropout::dgrad(&mut self.scratch, op);
        Ok(())
    }

    fn arcface_prepare(&mut self, op: ArcFacePrepare<'_, Buffer>) -> Result<()> {
        arcface::prepare(op);
        Ok(())
    }

    fn arcface_fprop(&mut self, op: ArcFaceFprop<'_, Buffer>) -> Result<()> {
        arcface::fprop(&mut self.scratch, op);
        Ok(())
    }

    fn arcface_bprop(&mut self, op: ArcFaceBprop<'_, Buffer>) -> Result<()> {
        arcface::bprop(&mut self.scratch, op);
        Ok(())
    }

    fn sgd_norms(&mut self, op: SgdNorms<'_, Buffer>) -> Result<()> {
        sgd::norms(&mut self.scratch, op);
        Ok(())
    }

    fn sgd_update(&mut self, op: SgdUpdate<'_, Buffer>) -> Result<()> {
        sgd::update(op);
        Ok(())
    }
}
