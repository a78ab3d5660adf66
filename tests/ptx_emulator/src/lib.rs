//! Runs the PTX that NVRTC emits on the CPU, checked and counted.
//!
//! It is how kernels are tested on machines without a GPU: the very text that a driver would compile is decoded once
//! and interpreted, a warp of 32 lanes an instruction. An instruction that is not known is an error at load time that
//! names it and its line.
//!
//! ```
//! use ptx_emulator::{Check, Machine, Options};
//!
//! let machine = Machine::new(Options::default());
//! let module = machine.load("
//! .version 9.0
//! .target sm_80
//! .address_size 64
//! .visible .entry double_all(.param .u64 p0)
//! {
//!     .reg .b32 %r<2>; .reg .b64 %rd<3>; .reg .f32 %f<3>;
//!     ld.param.u64 %rd0, [p0];
//!     mov.u32 %r0, %tid.x;
//!     mul.wide.u32 %rd1, %r0, 4;
//!     add.s64 %rd2, %rd0, %rd1;
//!     ld.global.f32 %f0, [%rd2];
//!     add.f32 %f1, %f0, %f0;
//!     st.global.f32 [%rd2], %f1;
//!     ret;
//! }")?;
//! let x = machine.alloc(4 * 32)?;
//! machine.write(x, &1.5f32.to_le_bytes().repeat(32))?;
//! let counters = machine.launch(&module, "double_all", [1, 1, 1], [32, 1, 1], 0, &[&x.to_le_bytes()])?;
//! assert_eq!((counters.global_load_requests, counters.global_load_sectors), (1, 4));
//! let mut bytes = [0; 4];
//! machine.read(x + 4 * 31, &mut bytes)?;
//! assert_eq!(f32::from_le_bytes(bytes), 3.0);
//!
//! // Two warps: the second reads beyond the allocation.
//! let fault = machine
//!     .launch(&module, "double_all", [1, 1, 1], [64, 1, 1], 0, &[&x.to_le_bytes()])
//!     .unwrap_err();
//! assert_eq!(fault.check, Check::OutOfBounds);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! **How it runs.** `parse` makes a tree of the text; `lower` gives every opcode its meaning and inlines device
//! functions; `layout` orders the basic blocks; `contract` fuses sums of products on request; `assigned` watches
//! registers that may have no value; `compact` assigns registers to *rows* of 32 lanes; `exec` interprets the rows,
//! `block` a block's warps and barriers, `machine` the launch, whose blocks run in parallel. Lanes that part at a
//! branch run lowest program counter first and so meet again as early as they can. A warp runs until it waits.
//!
//! **What is checked** ([`Check`]): bounds, initialisation and alignment of every access; registers used before they are
//! written; races in shared memory, and between blocks in global memory; barriers that not all threads reach, or that only some lanes of a warp reach;
//! `cp.async` data touched before its wait; member masks that name absent lanes; writes to constants; endless loops; on
//! request ([`Options::check_order`]) whether the result depends on the order of blocks and warps. A [`Fault`] is a
//! sentence with kernel, source line, block and thread.
//!
//! **What is counted** ([`Counters`]): warp instructions by kind, sectors and bytes of global memory, the sectors that a
//! launch touches at all (what DRAM must move if L2 keeps every reuse), passes over the
//! banks of shared memory, barriers, tensor-core operations.
//!
//! **Tensor cores** ([`Options::arithmetic`]) answer as a named card does, to the bit (H200 by default), or by fused
//! multiply-adds, which is several times as fast: for tests of whole steps. `--example tensor` measures both. A card
//! truncates towards zero, so a long chain of products is biased, and kernels must bound their chains.
//!
//! **What differs from a GPU.** Approximations (`ex2`, `rsqrt`, `sin`, `div.approx`, ...) are rounded from f64: closer than
//! hardware, within the ISA's bounds. f32 and f64 results that are NaN may have other bits than the canonical NaN.
//! `%clock` counts the warp's instructions. A barrier that only some warps
//! pass orders all warps for the race check. Blocks are ordered by fences and atomic operations (tickets), and not by
//! `ld.acquire` and `st.release`. Recursion, indirect calls, clusters, textures, `vmad`, TMA and `wgmma` are not known. Where the ISA leaves a choice, the
//! emulator follows NVIDIA's assembler (the carry of `sub.cc`, `cvt.ftz` to f16, 64-bit `bfe`).
#![warn(missing_docs, unreachable_pub)]

mod assigned;
mod block;
mod compact;
pub mod conformance;
mod contract;
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
mod races;
mod row;
mod shared;
mod tensor;

pub use counters::{Class, Counters};
pub use fault::{Check, Fault, LoadError, Place};
pub use lower::OPCODES;
pub use machine::{KernelInfo, Machine, Module, Options};
pub use matrix::Arithmetic;
pub use program::Parameter;
