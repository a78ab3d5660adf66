//! What each operation takes: one struct per operation, one file per stem. The trait, both devices, the tests' oracles and
//! the benchmarks share them. `T` is the device's buffer.

mod add;
mod arcface;
mod batch_norm;
mod close_grad;
mod conv2d;
mod depthwise;
mod dropout;
mod input_transform;
mod pool;
mod prelu;
mod sgd;

pub use add::{AddDgrad, AddFprop};
pub use arcface::{ArcFaceBprop, ArcFaceFprop, ArcFacePrepare, ClassRows, head_rows};
pub use batch_norm::{BatchNormAt, BatchNormBprop, BatchNormFprop, BatchNormMoments, bn};
pub use close_grad::CloseGrad;
pub use conv2d::{Conv2dDgrad, Conv2dFprop, Conv2dPrepare, Conv2dWgrad, Epilogue, FilterAt};
pub use depthwise::{DepthwiseDgrad, DepthwiseFprop, DepthwiseWgrad};
pub use dropout::{Dropout, DropoutDgrad, DropoutFprop};
pub use input_transform::{
    Augmented, InputTransform, InputTransformAugmented, InputTransformFprop,
};
pub use pool::{GlobalAvgPoolDgrad, GlobalAvgPoolFprop, MaxPoolDgrad, MaxPoolFprop};
pub use prelu::PReluBprop;
pub use sgd::{Segment, SgdForm, SgdNorms, SgdStep, SgdUpdate};
