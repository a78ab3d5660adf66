//! Keras's HDF5 files: weights (`model.save_weights("x.h5")`) and whole models (`model.save("x.h5")`), read by [`open`]; the
//! former written by [`encode`].
//!
//! HDF5 is a tree of groups and arrays (datasets), each with small named arrays beside it (attributes). Keras lays out in it:
//!
//! | where | what |
//! |---|---|
//! | attributes of the root, or of `/model_weights` in a whole model | `layer_names`: the layers in their order; `backend`, `keras_version` |
//! | attribute `weight_names` of the group `/LAYER` | the layer's weights in their order, `LAYER/kernel:0`; an empty array of float64 where it has none |
//! | dataset `/LAYER/LAYER/kernel:0` | a weight by its name, below its layer's group; floating-point, row-major |
//! | group `/optimizer_weights` | the optimizer's state, in a whole model |
//!
//! Strings have a fixed length (NUL-padded; TensorFlow 2.4) or a variable one (in a global heap; TensorFlow 2.19). A list that
//! does not fit the 64 KiB of an attribute is split: `layer_names0`, `layer_names1`, ... A model within a model is one layer,
//! whose group has the weights of all layers in it. Keras 3 writes `LAYER/kernel` without `:0`; its `.weights.h5` files are
//! another format, which has no layer names.

mod read;
mod write;

pub use read::open;
pub use write::{Layer, encode};

/// How every HDF5 file begins, but for those with a user's block before it, which Keras does not write.
pub const SIGNATURE: [u8; 8] = *b"\x89HDF\r\n\x1a\n";
