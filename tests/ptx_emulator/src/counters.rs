//! What a launch did, counted.

use std::fmt;
use std::ops::AddAssign;

/// Kinds of warp instructions. A warp instruction counts once, however many of its lanes take part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Class {
    /// `fma.f32`.
    Fma,
    /// Other f32 arithmetic: add, multiply, compare, minimum, …
    F32,
    /// f16 and bf16 arithmetic, packed or not.
    Half,
    /// f64 arithmetic.
    F64,
    /// Integer and logic operations, comparisons and selections.
    Integer,
    /// Reciprocal, root, exponential, logarithm, sine and division of f32.
    Special,
    /// Conversions between types that a GPU has an instruction for.
    Conversion,
    /// Copies between registers, most of which the assembler removes.
    Move,
    /// Reads of kernel parameters, which the assembler folds into their users.
    Parameter,
    /// Loads from global and constant memory, `ldg` included.
    GlobalLoad,
    /// Stores to global memory.
    GlobalStore,
    /// Loads from shared memory, `ldmatrix` included.
    SharedLoad,
    /// Stores to shared memory, `stmatrix` included.
    SharedStore,
    /// Loads and stores of local memory.
    Local,
    /// Asynchronous copies from global to shared memory.
    AsyncCopy,
    /// Atomic operations.
    Atomic,
    /// Exchanges within a warp: shuffle, vote, match, reduce.
    Warp,
    /// Barriers, fences, and the groups of asynchronous copies with their waits.
    Barrier,
    /// Branches, exits.
    Control,
    /// Tensor-core operations.
    Tensor,
    /// Not an instruction of the kernel: a step that the emulator added.
    Helper,
}

impl Class {
    /// How many kinds there are.
    pub const COUNT: usize = Class::Helper as usize + 1;

    /// Every kind that instructions of a kernel have.
    pub const ALL: [Class; Class::COUNT - 1] = [
        Class::Fma,
        Class::F32,
        Class::Half,
        Class::F64,
        Class::Integer,
        Class::Special,
        Class::Conversion,
        Class::Move,
        Class::Parameter,
        Class::GlobalLoad,
        Class::GlobalStore,
        Class::SharedLoad,
        Class::SharedStore,
        Class::Local,
        Class::AsyncCopy,
        Class::Atomic,
        Class::Warp,
        Class::Barrier,
        Class::Control,
        Class::Tensor,
    ];
}

/// Counts of one launch; they add up over launches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Warp instructions by kind; index with [`Counters::of`].
    pub(crate) instructions: [u64; Class::COUNT],
    /// Warp-wide requests to load from global memory.
    pub global_load_requests: u64,
    /// 32-byte sectors those requests touch, each sector once a request.
    pub global_load_sectors: u64,
    /// Bytes that threads asked for.
    pub global_load_bytes: u64,
    /// Warp-wide requests to store to global memory.
    pub global_store_requests: u64,
    /// 32-byte sectors those requests touch.
    pub global_store_sectors: u64,
    /// Bytes that threads stored.
    pub global_store_bytes: u64,
    /// Bytes of the sectors that the launch has loaded from, each counted once. Atomic operations count.
    pub dram_load_bytes: u64,
    /// Bytes of the sectors that the launch has stored to, each counted once. Atomic operations count.
    pub dram_store_bytes: u64,
    /// Passes over the 32 banks that loads of shared memory need; one a request of 128 bytes without conflicts.
    pub shared_load_wavefronts: u64,
    /// Passes over the 32 banks that stores to shared memory need.
    pub shared_store_wavefronts: u64,
    /// Multiply-adds of tensor-core operations.
    pub tensor_multiply_adds: u64,
    /// Barriers that a whole block passed.
    pub block_barriers: u64,
    /// Blocks.
    pub blocks: u64,
    /// Warps.
    pub warps: u64,
}

impl Counters {
    /// Warp instructions of a kind.
    pub fn of(&self, class: Class) -> u64 {
        self.instructions[class as usize]
    }

    /// All warp instructions of the kernel.
    pub fn total(&self) -> u64 {
        Class::ALL.iter().map(|&class| self.of(class)).sum()
    }
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        for (sum, n) in self.instructions.iter_mut().zip(other.instructions) {
            *sum += n;
        }
        self.global_load_requests += other.global_load_requests;
        self.global_load_sectors += other.global_load_sectors;
        self.global_load_bytes += other.global_load_bytes;
        self.global_store_requests += other.global_store_requests;
        self.global_store_sectors += other.global_store_sectors;
        self.global_store_bytes += other.global_store_bytes;
        self.dram_load_bytes += other.dram_load_bytes;
        self.dram_store_bytes += other.dram_store_bytes;
        self.shared_load_wavefronts += other.shared_load_wavefronts;
        self.shared_store_wavefronts += other.shared_store_wavefronts;
        self.tensor_multiply_adds += other.tensor_multiply_adds;
        self.block_barriers += other.block_barriers;
        self.blocks += other.blocks;
        self.warps += other.warps;
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} blocks, {} warps, {} warp instructions:",
            self.blocks,
            self.warps,
            self.total()
        )?;
        for class in Class::ALL {
            if self.of(class) > 0 {
                writeln!(f, "  {:<14} {:>14}", format!("{class:?}"), self.of(class))?;
            }
        }
        let rows = [
            (
                "load",
                self.global_load_requests,
                self.global_load_sectors,
                self.global_load_bytes,
            ),
            (
                "store",
                self.global_store_requests,
                self.global_store_sectors,
                self.global_store_bytes,
            ),
        ];
        for (name, requests, sectors, bytes) in rows {
            writeln!(
                f,
                "  global {name}: {requests} requests, {sectors} sectors, {bytes} bytes"
            )?;
        }
        writeln!(
            f,
            "  bytes first touched: {} loaded, {} stored",
            self.dram_load_bytes, self.dram_store_bytes
        )?;
        write!(
            f,
            "  shared wavefronts: {} load, {} store; tensor multiply-adds: {}; block barriers: {}",
            self.shared_load_wavefronts,
            self.shared_store_wavefronts,
            self.tensor_multiply_adds,
            self.block_barriers
        )
    }
}
