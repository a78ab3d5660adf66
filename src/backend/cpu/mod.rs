//! The native CPU backend: Rust with run-time SIMD dispatch, all cores, no code of other frameworks.
//!
//! Work is cut into tiles whose number depends on the shapes alone, never on the number of threads, and partial
//! sums are added in tile order: the same inputs give the same bits on any number of cores.

mod add;
mod arcface;
mod batch_norm;
mod buffer;
mod conv;
mod depthwise;
mod dropout;
mod gemm;
mod inner_products;
mod input_transform;
mod machine;
mod panel;
mod pending;
mod pool;
mod sgd;
mod tiles;

pub use buffer::Buffer;
pub use inner_products::inner_products;

use super::geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use super::margin::Margin;
use super::{
    Activation, Backend, BatchNormAt, Close, Dropout, Epilogue, FilterAt, GradTarget,
    InputTransform, Pending, PendingGrad, Segment, SgdStep, View,
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

    fn alloc(&self, len: usize) -> Result<Buffer> {
        Ok(Buffer::zeros(len))
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.len()
    }

    fn upload(&mut self, src: &[f32], dst: &mut Buffer, offset: usize) -> Result<()> {
        dst[offset..][..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn download_all(&mut self, parts: &mut [(&Buffer, usize, &mut [f32])]) -> Result<()> {
        for (src, offset, dst) in parts {
            dst.copy_from_slice(&src[*offset..][..dst.len()]);
        }
        Ok(())
    }

    fn input_transform(
        &mut self,
        pixels: &[u8],
        transform: &InputTransform,
        y: &mut Buffer,
    ) -> Result<()> {
        input_transform::apply(pixels, transform, y);
        Ok(())
    }

    fn conv2d_fprop(
        &mut self,
        geometry: &Conv2d,
        x: Pending<'_, Buffer>,
        params: &Buffer,
        filter: FilterAt,
        y: &mut Buffer,
        epilogue: Epilogue<'_, Buffer>,
    ) -> Result<()> {
        conv::fprop(&mut self.scratch, geometry, x, params, filter, y, epilogue);
        Ok(())
    }

    fn conv2d_dgrad(
        &mut self,
        geometry: &Conv2d,
        dy: PendingGrad<'_, Buffer>,
        params: &Buffer,
        filter: FilterAt,
        dx: GradTarget<'_, Buffer>,
    ) -> Result<()> {
        conv::dgrad(&mut self.scratch, geometry, dy, params, filter, dx);
        Ok(())
    }

    fn conv2d_wgrad(
        &mut self,
        geometry: &Conv2d,
        dy: PendingGrad<'_, Buffer>,
        x: Pending<'_, Buffer>,
        grads: &mut Buffer,
        filter: FilterAt,
    ) -> Result<()> {
        conv::wgrad(&mut self.scratch, geometry, dy, x, grads, filter);
        Ok(())
    }

    fn depthwise_fprop(
        &mut self,
        geometry: &PerChannel,
        x: Pending<'_, Buffer>,
        params: &Buffer,
        filter: FilterAt,
        y: &mut Buffer,
        epilogue: Epilogue<'_, Buffer>,
    ) -> Result<()> {
        depthwise::fprop(&mut self.scratch, geometry, x, params, filter, y, epilogue);
        Ok(())
    }

    fn depthwise_dgrad(
        &mut self,
        geometry: &PerChannel,
        dy: PendingGrad<'_, Buffer>,
        params: &Buffer,
        filter: FilterAt,
        dx: GradTarget<'_, Buffer>,
    ) -> Result<()> {
        depthwise::dgrad(&mut self.scratch, geometry, dy, params, filter, dx);
        Ok(())
    }

    fn depthwise_wgrad(
        &mut self,
        geometry: &PerChannel,
        dy: PendingGrad<'_, Buffer>,
        x: Pending<'_, Buffer>,
        grads: &mut Buffer,
        filter: FilterAt,
    ) -> Result<()> {
        depthwise::wgrad(&mut self.scratch, geometry, dy, x, grads, filter);
        Ok(())
    }

    fn batch_norm_moments(&mut self, rows: Rows, x: &Buffer, moments: &mut Buffer) -> Result<()> {
        batch_norm::moments(&mut self.scratch, rows, x, moments);
        Ok(())
    }

    fn batch_norm_fprop(
        &mut self,
        rows: Rows,
        moments: &Buffer,
        params: &Buffer,
        at: BatchNormAt,
        statistics: &mut Buffer,
        forward: &mut Buffer,
    ) -> Result<()> {
        batch_norm::fprop(rows, moments, params, at, statistics, forward);
        Ok(())
    }

    fn batch_norm_bprop(
        &mut self,
        rows: Rows,
        sums: &Buffer,
        forward: &Buffer,
        grads: &mut Buffer,
        at: BatchNormAt,
        backward: &mut Buffer,
    ) -> Result<()> {
        batch_norm::bprop(rows, sums, forward, grads, at, backward);
        Ok(())
    }

    fn prelu_bprop(
        &mut self,
        c: usize,
        sums: &Buffer,
        grads: &mut Buffer,
        slope_at: usize,
    ) -> Result<()> {
        batch_norm::prelu_bprop(c, sums, grads, slope_at);
        Ok(())
    }

    fn add_fprop(
        &mut self,
        rows: Rows,
        a: Pending<'_, Buffer>,
        b: Option<Pending<'_, Buffer>>,
        activation: Activation<View<'_, Buffer>>,
        y: &mut Buffer,
    ) -> Result<()> {
        add::fprop(rows, a, b, activation, y);
        Ok(())
    }

    fn add_dgrad(
        &mut self,
        rows: Rows,
        dy: PendingGrad<'_, Buffer>,
        dx: GradTarget<'_, Buffer>,
    ) -> Result<()> {
        add::dgrad(&mut self.scratch, rows, dy, dx);
        Ok(())
    }

    fn close_grad(&mut self, rows: Rows, g: &mut Buffer, close: Close<'_, Buffer>) -> Result<()> {
        add::close_grad(&mut self.scratch, rows, g, close);
        Ok(())
    }

    fn max_pool_fprop(
        &mut self,
        geometry: &PerChannel,
        x: Pending<'_, Buffer>,
        y: &mut Buffer,
    ) -> Result<()> {
        pool::max_pool_fprop(geometry, x, y);
        Ok(())
    }

    fn max_pool_dgrad(
        &mut self,
        geometry: &PerChannel,
        dy: &Buffer,
        x: Pending<'_, Buffer>,
        dx: GradTarget<'_, Buffer>,
    ) -> Result<()> {
        pool::max_pool_dgrad(&mut self.scratch, geometry, dy, x, dx);
        Ok(())
    }

    fn global_avg_pool_fprop(
        &mut self,
        geometry: GlobalPool,
        x: Pending<'_, Buffer>,
        y: &mut Buffer,
    ) -> Result<()> {
        pool::global_avg_pool_fprop(geometry, x, y);
        Ok(())
    }

    fn global_avg_pool_dgrad(
        &mut self,
        geometry: GlobalPool,
        dy: &Buffer,
        dx: GradTarget<'_, Buffer>,
    ) -> Result<()> {
        pool::global_avg_pool_dgrad(&mut self.scratch, geometry, dy, dx);
        Ok(())
    }

    fn dropout_fprop(
        &mut self,
        rows: Rows,
        x: Pending<'_, Buffer>,
        dropout: Dropout,
        y: &mut Buffer,
    ) -> Result<()> {
        dropout::fprop(rows, x, dropout, y);
        Ok(())
    }

    fn dropout_dgrad(
        &mut self,
        rows: Rows,
        dy: &Buffer,
        dropout: Dropout,
        dx: GradTarget<'_, Buffer>,
    ) -> Result<()> {
        dropout::dgrad(&mut self.scratch, rows, dy, dropout, dx);
        Ok(())
    }

    fn arcface_fprop(
        &mut self,
        shard: &HeadShard,
        margin: &Margin,
        x: &Buffer,
        classes: &Buffer,
        labels: &[u32],
        inverse_norms: &mut Buffer,
        rows: &mut Buffer,
    ) -> Result<()> {
        arcface::fprop(
            &mut self.scratch,
            shard,
            margin,
            x,
            classes,
            labels,
            inverse_norms,
            rows,
        );
        Ok(())
    }

    fn arcface_bprop(
        &mut self,
        shard: &HeadShard,
        margin: &Margin,
        x: &Buffer,
        labels: &[u32],
        inverse_norms: &Buffer,
        rows: &Buffer,
        classes: &mut Buffer,
        momentum: &mut Buffer,
        decay: f32,
        step: &SgdStep,
        dx: &mut Buffer,
    ) -> Result<()> {
        arcface::bprop(
            &mut self.scratch,
            shard,
            margin,
            x,
            labels,
            inverse_norms,
            rows,
            classes,
            momentum,
            decay,
            step,
            dx,
        );
        Ok(())
    }

    fn sgd_norms(
        &mut self,
        params: &Buffer,
        grads: &Buffer,
        segments: &[Segment],
        norms: &mut Buffer,
    ) -> Result<()> {
        sgd::norms(&mut self.scratch, params, grads, segments, norms);
        Ok(())
    }

    fn sgd_update(
        &mut self,
        step: &SgdStep,
        segments: &[Segment],
        grads: &Buffer,
        norms: &Buffer,
        params: &mut Buffer,
        momentum: &mut Buffer,
    ) -> Result<()> {
        sgd::update(
            &mut self.scratch,
            step,
            segments,
            grads,
            norms,
            params,
            momentum,
        );
        Ok(())
    }
}
