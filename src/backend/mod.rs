//! The line between the graph and a device: the fused operations a device must offer, and the views they take.
//!
//! The idea that carries it: a value is *pending* where it can be. A convolution writes its raw output, and
//! everything that follows it pixel by pixel (batch norm's scale and shift, the activation) is applied by the
//! consumers as they read ([`Pending`]). Gradients travel the same way: what an operation writes for its input
//! already includes the activation's derivative, with batch norm's two channel sums taken on the way out
//! ([`GradTarget`]), and the step through batch norm itself is applied by the next reader ([`PendingGrad`]).
//! Whether sums are taken in the loop that writes (the CPU) or in a pass of their own (CUDA, so far) is a device's choice.

mod activation;
pub mod cpu;
pub mod cuda;
mod element;
pub mod geometry;
pub mod margin;
pub mod ops;
mod pending;

pub use activation::Activation;
pub use element::Element;
pub use ops::*;
pub use pending::{Close, GradTarget, Pending, PendingGrad, View, sums};

use crate::Result;
use geometry::Conv2d;

/// The fused operations that a device offers. Every method writes into buffers that it is given; scratch space
/// is the device's own, grown once and kept. A buffer may be longer than the tensor in it (tensors share slots, and a
/// batch may be smaller than the largest): only the first elements count, and the rest stays as it is.
pub trait Backend: Send {
    /// Elements of one type on the device.
    type Buffer: Send + Sync + std::fmt::Debug;

    /// Whether pictures are better changed by [`Backend::input_transform_augmented`] than by the loader's threads.
    const AUGMENTS: bool = false;

    /// One line for people: which device, with which features.
    fn describe(&self) -> String;

    /// Bytes that can still be allocated, besides what the device needs for itself.
    fn memory_available(&self) -> u64;

    /// Whether operations take tensors of such elements.
    fn supports(&self, element: Element) -> bool;

    /// What tensors are best made of.
    fn best_element(&self) -> Element {
        Element::F32
    }

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// Not enough memory.
    fn alloc(&self, element: Element, len: usize) -> Result<Self::Buffer>;

    /// Elements of a buffer.
    fn len(&self, buffer: &Self::Buffer) -> usize;

    /// Makes a buffer one of other elements: as many as fit into its bytes. What they are is unknown.
    fn hold(buffer: &mut Self::Buffer, element: Element);

    /// Copies host numbers into `dst[offset..]`, rounded to its elements.
    fn upload(&mut self, src: &[f32], dst: &mut Self::Buffer, offset: usize) -> Result<()>;

    /// Copies to the host: each (buffer, first element, destination). A device that works on while the host does waits
    /// for it here, once for all of them.
    fn download_all(&mut self, parts: &mut [(&Self::Buffer, usize, &mut [f32])]) -> Result<()>;

    /// Copies `src[offset..]` to the host.
    fn download(&mut self, src: &Self::Buffer, offset: usize, dst: &mut [f32]) -> Result<()> {
        self.download_all(&mut [(src, offset, dst)])
    }

    /// See [`InputTransformFprop`].
    fn input_transform_fprop(&mut self, op: InputTransformFprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`InputTransformAugmented`].
    fn input_transform_augmented(
        &mut self,
        op: InputTransformAugmented<'_, Self::Buffer>,
    ) -> Result<()> {
        let InputTransformAugmented {
            pictures,
            transform,
            y,
        } = op;
        let Augmented {
            pixels,
            side,
            size,
            changes,
        } = pictures;
        let mut changed = vec![0; changes.len() * size * size * 3];
        for ((changes, picture), out) in changes
            .iter()
            .zip(pixels.chunks_exact(side * side * 3))
            .zip(changed.chunks_exact_mut(size * size * 3))
        {
            changes.apply(picture, side, size, out);
        }
        self.input_transform_fprop(InputTransformFprop {
            pixels: &changed,
            transform,
            y,
        })
    }

    /// Elements of a prepared filter; none where the device multiplies with filters as they are stored.
    fn prepared_len(_: &Conv2d) -> usize {
        0
    }

    /// See [`Conv2dPrepare`].
    fn conv2d_prepare(&mut self, _: Conv2dPrepare<'_, Self::Buffer>) -> Result<()> {
        Ok(())
    }

    /// See [`Conv2dFprop`].
    fn conv2d_fprop(&mut self, op: Conv2dFprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`Conv2dDgrad`].
    fn conv2d_dgrad(&mut self, op: Conv2dDgrad<'_, Self::Buffer>) -> Result<()>;

    /// See [`Conv2dWgrad`].
    fn conv2d_wgrad(&mut self, op: Conv2dWgrad<'_, Self::Buffer>) -> Result<()>;

    /// See [`DepthwiseFprop`].
    fn depthwise_fprop(&mut self, op: DepthwiseFprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`DepthwiseDgrad`].
    fn depthwise_dgrad(&mut self, op: DepthwiseDgrad<'_, Self::Buffer>) -> Result<()>;

    /// See [`DepthwiseWgrad`].
    fn depthwise_wgrad(&mut self, op: DepthwiseWgrad<'_, Self::Buffer>) -> Result<()>;

    /// See [`BatchNormMoments`].
    fn batch_norm_moments(&mut self, op: BatchNormMoments<'_, Self::Buffer>) -> Result<()>;

    /// See [`BatchNormFprop`].
    fn batch_norm_fprop(&mut self, op: BatchNormFprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`BatchNormBprop`].
    fn batch_norm_bprop(&mut self, op: BatchNormBprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`PReluBprop`].
    fn prelu_bprop(&mut self, op: PReluBprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`AddFprop`].
    fn add_fprop(&mut self, op: AddFprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`AddDgrad`].
    fn add_dgrad(&mut self, op: AddDgrad<'_, Self::Buffer>) -> Result<()>;

    /// See [`CloseGrad`].
    fn close_grad(&mut self, op: CloseGrad<'_, Self::Buffer>) -> Result<()>;

    /// See [`MaxPoolFprop`].
    fn max_pool_fprop(&mut self, op: MaxPoolFprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`MaxPoolDgrad`].
    fn max_pool_dgrad(&mut self, op: MaxPoolDgrad<'_, Self::Buffer>) -> Result<()>;

    /// See [`GlobalAvgPoolFprop`].
    fn global_avg_pool_fprop(&mut self, op: GlobalAvgPoolFprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`GlobalAvgPoolDgrad`].
    fn global_avg_pool_dgrad(&mut self, op: GlobalAvgPoolDgrad<'_, Self::Buffer>) -> Result<()>;

    /// See [`DropoutFprop`].
    fn dropout_fprop(&mut self, op: DropoutFprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`DropoutDgrad`].
    fn dropout_dgrad(&mut self, op: DropoutDgrad<'_, Self::Buffer>) -> Result<()>;

    /// See [`ArcFacePrepare`].
    fn arcface_prepare(&mut self, op: ArcFacePrepare<'_, Self::Buffer>) -> Result<()>;

    /// See [`ArcFaceFprop`].
    fn arcface_fprop(&mut self, op: ArcFaceFprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`ArcFaceBprop`].
    fn arcface_bprop(&mut self, op: ArcFaceBprop<'_, Self::Buffer>) -> Result<()>;

    /// See [`SgdNorms`].
    fn sgd_norms(&mut self, op: SgdNorms<'_, Self::Buffer>) -> Result<()>;

    /// See [`SgdUpdate`].
    fn sgd_update(&mut self, op: SgdUpdate<'_, Self::Buffer>) -> Result<()>;
}
