//! Streams: queues of work that runs in order.

use crate::faults::{ILLEGAL_ADDRESS, Status};
use crate::memory::{Host, Kind};
use ptx_emulator::Module;
use std::collections::VecDeque;
use std::time::Instant;

/// The handle of an object that the card keeps: a stream, an event, a module, a function.
pub(crate) type Handle = usize;

/// One piece of work.
#[derive(Debug)]
pub(crate) enum Work {
    /// From pinned memory, read when it runs.
    UploadPinned { to: u64, from: Host, bytes: usize },
    /// The contents of pageable memory at the call.
    Upload { to: u64, data: Vec<u8> },
    /// To the host's memory; pinned memory must still be allocated when it runs.
    Download {
        to: Host,
        from: u64,
        bytes: usize,
        kind: Kind,
    },
    /// Fills with a byte.
    Fill { to: u64, value: u8, bytes: usize },
    /// Frees memory.
    Free { address: u64 },
    /// Runs a kernel of a module that must still be loaded.
    Launch {
        module: Handle,
        code: Module,
        kernel: String,
        grid: [u32; 3],
        block: [u32; 3],
        shared: u32,
        arguments: Vec<Vec<u8>>,
    },
    /// Passes the nth recording of an event.
    Record { event: Handle, nth: u64 },
    /// Fails, on request.
    Fail(Status),
}

/// A stream.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) queue: VecDeque<Work>,
}

/// An event: a place in a stream.
#[derive(Debug)]
pub(crate) struct Event {
    /// Whether it records the time.
    pub(crate) timed: bool,
    /// How often it was recorded, and where last.
    pub(crate) recorded: u64,
    pub(crate) stream: Handle,
    /// How often it was passed, and when last.
    pub(crate) passed: u64,
    pub(crate) at: Option<Instant>,
}

impl Event {
    /// An event that was never recorded.
    pub(crate) fn new(timed: bool) -> Self {
        Event {
            timed,
            recorded: 0,
            stream: 0,
            passed: 0,
            at: None,
        }
    }
}

/// Prints to standard error what went wrong, and returns the status for it.
pub(crate) fn broken(why: impl std::fmt::Display) -> Status {
    eprintln!("software card: {why}");
    ILLEGAL_ADDRESS
}
