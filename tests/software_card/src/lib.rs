//! A GPU in software: `libcuda.so.1`, the CUDA driver's interface, over the PTX emulator.
//!
//! `bash tests/software-card.sh` builds it into `target/software-card/`. With that folder in `LD_LIBRARY_PATH` and with
//! `ARCFACE_CU_ARCH=compute_80` every command of the program runs on it. It offers the functions that the program calls,
//! and no more. It takes PTX; a cubin is refused with 209, as by a card of another architecture.
//!
//! **It is as strict as a GPU may be.**
//! - Queued work runs as late as the rules allow: when the host waits for its stream or its event, or makes a call that
//!   waits implicitly. Only the work waited for runs.
//! - A copy from pinned memory reads its source when it runs. Bytes of pageable memory are taken at the call.
//! - A copy to pinned memory fills its destination with 0xFF (NaN as a float) at the call, and writes the data when it
//!   runs. A copy to pageable memory waits.
//! - Fresh pinned memory holds 0xFF. Fresh device memory is undefined, and reading it is a fault. So is touching memory
//!   after its free, in stream order, or launching a kernel whose module was unloaded.
//! - Memory whose free is still queued counts as used.
//! - A call needs the primary context, retained and current on its thread (201); handles must be alive (400).
//! - A fault that the emulator finds in a kernel is printed. This call and every later one return status 700.
//!
//! The default stream and waits between streams are not supported.
//!
//! **Settings**, by environment variables that are read at the first call:
//!
//! | variable | |
//! |---|---|
//! | `SOFTWARE_CARD_CAPABILITY` | compute capability, default 8.0 |
//! | `SOFTWARE_CARD_ARITHMETIC` | whose arithmetic the tensor cores follow: `a100`, `l40s`, `h100`, `h200`, `b200`, or `fused`, no card's but fast; by default that of the compute capability. The card's name says it |
//! | `SOFTWARE_CARD_MEMORY` | MiB of memory, default 16384 |
//! | `SOFTWARE_CARD_POOLS` | 0: no stream-ordered memory |
//! | `SOFTWARE_CARD_FAIL` | failures on request, see below |
//! | `SOFTWARE_CARD_REPORT` | a file that gets one line when the context is released: how many objects of each kind were made and released, then how often each function was called |
//!
//! `SOFTWARE_CARD_FAIL=FUNCTION:N:STATUS`, or several with commas between: the Nth call of that function, counted from 1,
//! fails with this status and does nothing; `*` counts the calls of all functions. After a status that a context does not
//! survive (214, 700 to 720, 999) every later call fails with it too. A launch with such a status fails as a kernel does:
//! when it runs.
//! Examples: `cuMemAllocAsync:3:2` is out of memory, `cuLaunchKernel:100:700` a kernel that faults, `*:500:999` a lost
//! device, `cuStreamSynchronize:4:226` a status that only newer drivers know.

mod card;
mod entry;
mod faults;
mod memory;
mod queue;
mod settings;
#[cfg(test)]
mod tests;
