//! The thin line under the CUDA backend: what a device must do. Small enough to read in a minute.
//!
//! Everything is queued in the order of the calls and runs in that order. Only [`Driver::download`],
//! [`Driver::synchronize`] and [`Driver::elapsed`] wait for all of it; [`Driver::upload`] may wait for earlier uploads. A
//! GPU implements it through the CUDA driver, the tests through an interpreter of the same kernels.

use super::tiles::Program;
use crate::Result;

/// What a device is and what it allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Properties {
    /// The card's name.
    pub name: String,
    /// Compute capability: (9, 0) for an H100.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// Bytes of memory in all.
    pub memory: u64,
    /// Bytes of shared memory that a block may have.
    pub shared_per_block: u32,
    /// The driver's CUDA version: (13, 0).
    pub driver: (u32, u32),
}

impl std::fmt::Display for Properties {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (major, minor) = self.capability;
        write!(
            f,
            "{}, sm_{major}{minor}, {} multiprocessors, {:.1} GB",
            self.name,
            self.multiprocessors,
            self.memory as f64 / 1e9
        )
    }
}

/// Blocks, threads per block, and bytes of dynamic shared memory of one launch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in x, y, z.
    pub grid: [u32; 3],
    /// Threads of a block; all our blocks are rows.
    pub block: u32,
    /// Bytes of dynamic shared memory.
    pub shared: u32,
}

/// A stretch of device memory; given back when dropped, in stream order.
pub trait Memory: Send + Sync + std::fmt::Debug {
    /// Where it begins on the device; a multiple of 256.
    fn address(&self) -> u64;
}

/// A device.
pub trait Driver: Send {
    /// Device memory.
    type Memory: Memory;
    /// A kernel of a loaded program, ready to launch.
    type Kernel: Send;
    /// A place in the queue whose time is taken.
    type Event;

    /// What the device is.
    fn properties(&self) -> &Properties;

    /// Bytes that can still be allocated.
    fn memory_free(&self) -> u64;

    /// `bytes` bytes that nobody has written.
    ///
    /// # Errors
    /// Not enough memory.
    fn alloc(&self, bytes: usize) -> Result<Self::Memory>;

    /// Fills the first `bytes` bytes with zeros.
    ///
    /// # Errors
    /// A device that fails.
    fn clear(&self, memory: &mut Self::Memory, bytes: usize) -> Result<()>;

    /// Copies to the device; `src` may be reused when the call returns.
    ///
    /// # Errors
    /// A device that fails.
    fn upload(&mut self, src: &[u8], dst: &mut Self::Memory, offset: usize) -> Result<()>;

    /// Copies to the host: each (memory, first byte, destination). Waits once, for all of them.
    ///
    /// # Errors
    /// A device that fails, here or in an earlier launch.
    fn download<'a>(
        &mut self,
        parts: impl Iterator<Item = (&'a Self::Memory, usize, &'a mut [u8])>,
    ) -> Result<()>
    where
        Self: 'a;

    /// Compiles and loads a program: its file's kernels, in the order of [`KERNELS`](super::launch::KERNELS).
    ///
    /// # Errors
    /// No compiler, or a program that does not compile.
    fn load(&mut self, program: &'static Program) -> Result<Vec<Self::Kernel>>;

    /// Queues a kernel. `args` holds the bytes of each parameter, in order.
    ///
    /// # Errors
    /// A launch that the device refuses.
    fn launch(&mut self, kernel: &Self::Kernel, launch: Launch, args: &[&[u8]]) -> Result<()>;

    /// Waits until everything queued is done.
    ///
    /// # Errors
    /// A kernel that failed.
    fn synchronize(&mut self) -> Result<()>;

    /// Marks this place in the queue.
    ///
    /// # Errors
    /// A device that fails.
    fn record(&mut self) -> Result<Self::Event>;

    /// Seconds between two marks; waits for the second.
    ///
    /// # Errors
    /// A device that fails.
    fn elapsed(&mut self, from: &Self::Event, to: &Self::Event) -> Result<f64>;
}
