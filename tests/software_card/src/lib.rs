//! A GPU in software: `libcuda.so.1`, the CUDA driver's interface, over the PTX emulator.
//!
//! `bash tests/software-card.sh` builds it into `target/software-card/`. With that folder in `LD_LIBRARY_PATH` and with
//! `ARCFACE_CU_ARCH=compute_80` every command of the program runs on it. It offers the functions that the program calls,
//! and no more. It takes PTX; a cubin is refused with 209, as by a card of another architecture.
//!
//! **It is as unkind as a GPU may be.**
//! - Queued work runs as late as the rules allow: when the host waits for its stream or its event, or makes a call that
//!   waits by itself. Only what is waited for runs.
//! - A copy from pinned memory reads its source when it runs. Bytes of pageable memory are taken at the call.
//! - A copy to pinned memory leaves 0xFF (of floats: NaN) in its destination at the call, and the data when it runs. A
//!   copy to pageable memory waits.
//! - Fresh pinned memory holds 0xFF. Fresh device memory holds nothing, and reading it is a fault, as is touching memory
//!   that was freed, in the order of the stream, or launching a kernel whose module was unloaded.
//! - Memory whose free is still queued counts as used.
//! - A call needs the primary context, retained and current on its thread (201); handles must be alive (400).
//! - What the emulator finds wrong in a kernel is printed, and is status 700 in this call and every later one.
//!
//! The default stream and waiting between streams are not offered.
//!
//! **Settings**, by environment variables that are read at the first call:
//!
//! | variable | |
//! |---|---|
//! | `SOFTWARE_CARD_CAPABILITY` | compute capability, default 8.0 |
//! | `SOFTWARE_CARD_MEMORY` | MiB of memory, default 16384 |
//! | `SOFTWARE_CARD_POOLS` | 0: no stream-ordered memory |
//! | `SOFTWARE_CARD_FAIL` | failures on request, see below |
//! | `SOFTWARE_CARD_REPORT` | a file that gets a line when the context is released: of each kind, how many were made and released; then how often each function was called |
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
