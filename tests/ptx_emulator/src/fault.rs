//! What can go wrong: a program that cannot be loaded, a request that makes no sense, a check that failed.

use std::fmt;

/// PTX that cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadError {
    line: u32,
    text: String,
    reason: String,
}

impl LoadError {
    pub(crate) fn new(line: u32, text: &str, reason: String) -> Self {
        Self {
            line,
            text: text.to_owned(),
            reason,
        }
    }

    /// The line of the PTX, from 1.
    pub fn line(&self) -> u32 {
        self.line
    }
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "PTX line {}: `{}`: {}",
            self.line, self.text, self.reason
        )
    }
}

impl std::error::Error for LoadError {}

/// A check of the emulator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Check {
    /// An access outside every allocation, or beyond the block's shared or the thread's local memory.
    OutOfBounds,
    /// A read of memory that nothing has written.
    Uninitialised,
    /// A use of a register that nothing has written.
    Unwritten,
    /// An address that is no multiple of the access's size.
    Misaligned,
    /// Two threads touch the same shared memory, one writes, and no barrier stands between them.
    SharedRace,
    /// Two blocks touch the same global memory, one writes, and no fence and atomic operation order the two.
    GlobalRace,
    /// A barrier that not all threads reach.
    Barrier,
    /// A `cp.async` destination touched before the wait that covers it.
    AsyncCopy,
    /// A warp instruction whose member mask names lanes that do not take part.
    WarpMask,
    /// The result depends on the order of warps or blocks.
    Order,
    /// More instructions than the budget: an endless loop.
    Budget,
    /// `trap` was executed.
    Trap,
    /// A launch that the kernel or the machine cannot take.
    Launch,
    /// A write to constant memory.
    ReadOnly,
}

impl Check {
    fn name(self) -> &'static str {
        match self {
            Check::OutOfBounds => "access out of bounds",
            Check::Uninitialised => "read of memory never written",
            Check::Unwritten => "use of a register never written",
            Check::Misaligned => "misaligned access",
            Check::SharedRace => "shared-memory race",
            Check::GlobalRace => "race between blocks",
            Check::Barrier => "barrier not reached by all",
            Check::AsyncCopy => "asynchronous copy used before its wait",
            Check::WarpMask => "warp instruction not reached by all its lanes",
            Check::Order => "result depends on the order of warps",
            Check::Budget => "instruction budget exhausted",
            Check::Trap => "trap",
            Check::Launch => "launch refused",
            Check::ReadOnly => "write to constant memory",
        }
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The place in a program and a launch where a check failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// Source file and line, from `.loc` (compile with `-lineinfo`).
    pub source: Option<(String, u32)>,
    /// Line of the PTX.
    pub ptx_line: u32,
    /// Text of the PTX instruction.
    pub instruction: String,
    /// Block in the grid.
    pub block: [u32; 3],
    /// Thread in the block.
    pub thread: [u32; 3],
}

/// A launch that failed a check. Its `Display` is a sentence with everything known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The check that failed.
    pub check: Check,
    /// The kernel.
    pub kernel: String,
    /// Where, if it happened in a thread.
    pub place: Option<Box<Place>>,
    /// The address, if there is one.
    pub address: Option<u64>,
    /// What was expected and what was found.
    pub detail: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in kernel {}", self.check, self.kernel)?;
        if let Some(place) = &self.place {
            if let Some((file, line)) = &place.source {
                write!(f, " at {file}:{line}")?;
            }
            let [bx, by, bz] = place.block;
            let [tx, ty, tz] = place.thread;
            write!(
                f,
                " (PTX line {}: `{}`), block ({bx}, {by}, {bz}), thread ({tx}, {ty}, {tz})",
                place.ptx_line, place.instruction
            )?;
        }
        if let Some(address) = self.address {
            write!(f, ", address {address:#x}")?;
        }
        write!(f, ": {}", self.detail)
    }
}

impl std::error::Error for Fault {}

/// A check that failed inside a warp, before the place is filled in.
#[derive(Debug)]
pub(crate) struct Trouble {
    pub(crate) check: Check,
    pub(crate) lane: usize,
    pub(crate) address: Option<u64>,
    pub(crate) detail: String,
}

impl Trouble {
    pub(crate) fn new(check: Check, lane: usize, detail: String) -> Box<Self> {
        Box::new(Self {
            check,
            lane,
            address: None,
            detail,
        })
    }

    pub(crate) fn at(check: Check, lane: usize, address: u64, detail: String) -> Box<Self> {
        Box::new(Self {
            check,
            lane,
            address: Some(address),
            detail,
        })
    }
}
