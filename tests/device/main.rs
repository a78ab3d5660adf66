//! Every test that runs on a device, in one program: operations against oracles, whole networks, training steps. It
//! reads no files of the machine that built it, so it can be copied to a machine with a GPU and run there.

#[path = "../oracles/mod.rs"]
mod oracles;
#[path = "../rig/mod.rs"]
mod rig;
#[path = "../support/mod.rs"]
mod support;

mod allocations;
mod banks;
mod conformance;
mod convolutions;
mod cuda_step;
mod fold;
mod golden;
mod gradients;
mod ops_augment;
mod ops_conv;
mod ops_depthwise;
mod ops_elementwise;
mod ops_head;
mod ops_sgd;
mod swaps;
mod training;
