//! A device that computes in f64: every operation as naive loops over its formula, with nothing fused and no code of
//! the devices under test. A test runs the same operation on it and on a device, and compares what both wrote.

mod arcface;
mod batch_norm;
mod conv;
mod pending;
mod pool;
mod rows;
mod sgd;

pub use arcface::margin_logit;
pub use rows::{kept, uniform};

use super::number::Number;
use arcface_cu::Result;
use arcface_cu::backend::{
    AddDgrad, AddFprop, ArcFaceBprop, ArcFaceFprop, ArcFacePrepare, Backend, BatchNormBprop,
    BatchNormFprop, BatchNormMoments, CloseGrad, Conv2dDgrad, Conv2dFprop, Conv2dWgrad,
    DepthwiseDgrad, DepthwiseFprop, DepthwiseWgrad, DropoutDgrad, DropoutFprop, Element,
    GlobalAvgPoolDgrad, GlobalAvgPoolFprop, InputTransformFprop, MaxPoolDgrad, MaxPoolFprop,
    PReluBprop, SgdNorms, SgdUpdate,
};
use std::ops::{Deref, DerefMut};

/// Each operation by a function of this folder.
macro_rules! operations {
    ($($name:ident: $Op:ident => $function:path),* $(,)?) => {$(
        fn $name(&mut self, op: $Op<'_, Buffer>) -> Result<()> {
            $function(op);
            Ok(())
        }
    )*};
}

/// The device.
pub struct Oracle;

/// Its numbers. What an operation leaves is not rounded: a test knows by the element how far a device may be.
#[derive(Clone, Debug)]
pub struct Buffer {
    pub element: Element,
    pub numbers: Vec<Number>,
}

impl FromIterator<Number> for Buffer {
    /// Numbers of float32.
    fn from_iter<I: IntoIterator<Item = Number>>(numbers: I) -> Self {
        Buffer {
            element: Element::F32,
            numbers: numbers.into_iter().collect(),
        }
    }
}

impl Deref for Buffer {
    type Target = [Number];

    fn deref(&self) -> &[Number] {
        &self.numbers
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [Number] {
        &mut self.numbers
    }
}

impl Backend for Oracle {
    type Buffer = Buffer;

    fn describe(&self) -> String {
        "naive loops in f64".to_owned()
    }

    fn memory_available(&self) -> u64 {
        u64::MAX
    }

    fn supports(&self, _: Element) -> bool {
        true
    }

    fn alloc(&self, element: Element, len: usize) -> Result<Buffer> {
        Ok(Buffer {
            element,
            numbers: vec![Number::default(); len],
        })
    }

    fn len(&self, buffer: &Buffer) -> usize {
        buffer.len()
    }

    fn hold(buffer: &mut Buffer, element: Element) {
        assert_eq!(
            buffer.element, element,
            "the oracle's buffers stay what they are"
        );
    }

    fn upload(&mut self, src: &[f32], dst: &mut Buffer, offset: usize) -> Result<()> {
        let element = dst.element;
        for (to, value) in dst[offset..][..src.len()].iter_mut().zip(src) {
            let exact = Number::from(*value);
            let rounded = exact.round(element, 0).value;
            *to = rounded.into();
        }
        Ok(())
    }

    fn download_all(&mut self, parts: &mut [(&Buffer, usize, &mut [f32])]) -> Result<()> {
        for (src, offset, dst) in parts {
            for (to, number) in dst.iter_mut().zip(&src[*offset..]) {
                *to = number.value as f32;
            }
        }
        Ok(())
    }

    operations! {
        input_transform_fprop: InputTransformFprop => rows::input_transform,
        conv2d_fprop: Conv2dFprop => conv::conv2d_fprop,
        conv2d_dgrad: Conv2dDgrad => conv::conv2d_dgrad,
        conv2d_wgrad: Conv2dWgrad => conv::conv2d_wgrad,
        depthwise_fprop: DepthwiseFprop => conv::depthwise_fprop,
        depthwise_dgrad: DepthwiseDgrad => conv::depthwise_dgrad,
        depthwise_wgrad: DepthwiseWgrad => conv::depthwise_wgrad,
        batch_norm_moments: BatchNormMoments => batch_norm::moments,
        batch_norm_fprop: BatchNormFprop => batch_norm::fprop,
        batch_norm_bprop: BatchNormBprop => batch_norm::bprop,
        prelu_bprop: PReluBprop => batch_norm::prelu_bprop,
        add_fprop: AddFprop => rows::add_fprop,
        add_dgrad: AddDgrad => rows::add_dgrad,
        close_grad: CloseGrad => rows::close_grad,
        max_pool_fprop: MaxPoolFprop => pool::max_pool_fprop,
        max_pool_dgrad: MaxPoolDgrad => pool::max_pool_dgrad,
        global_avg_pool_fprop: GlobalAvgPoolFprop => pool::global_avg_pool_fprop,
        global_avg_pool_dgrad: GlobalAvgPoolDgrad => pool::global_avg_pool_dgrad,
        dropout_fprop: DropoutFprop => rows::dropout_fprop,
        dropout_dgrad: DropoutDgrad => rows::dropout_dgrad,
        arcface_prepare: ArcFacePrepare => arcface::prepare,
        arcface_fprop: ArcFaceFprop => arcface::fprop,
        arcface_bprop: ArcFaceBprop => arcface::bprop,
        sgd_norms: SgdNorms => sgd::norms,
        sgd_update: SgdUpdate => sgd::update,
    }
}
