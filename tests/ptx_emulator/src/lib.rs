//! Runs the PTX that NVRTC emits on the CPU, checked and counted.
#![warn(missing_docs, unreachable_pub)]

mod block;
mod compact;
pub mod conformance;
mod counters;
mod exec;
mod fault;
pub mod half;
mod lane;
mod layout;
mod lower;
mod machine;
pub mod matrix;
mod memory;
pub mod model;
mod parse;
mod program;
mod row;
mod shared;

pub use counters::{Class, Counters};
pub use fault::{Check, Fault, LoadError, Place};
pub use lower::OPCODES;
pub use machine::{KernelInfo, Machine, Module, Options};
pub use program::Parameter;
