//! Memory on both sides: what is allocated on the card, and pinned memory of the host.

use crate::faults::{INVALID_VALUE, OUT_OF_MEMORY, Status};
use ptx_emulator::Machine;
use std::alloc::Layout;
use std::collections::{BTreeMap, HashSet};

/// The byte of undefined contents: NaN as a float, and an unlikely number otherwise.
pub(crate) const POISON: u8 = 0xff;

/// An address in the host's memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Host(pub(crate) usize);

impl Host {
    /// The bytes there.
    ///
    /// # Safety
    /// `bytes` bytes can be read there, and they are not written meanwhile.
    pub(crate) unsafe fn read(self, bytes: usize) -> Vec<u8> {
        // SAFETY: the caller's duty.
        unsafe { std::slice::from_raw_parts(self.0 as *const u8, bytes) }.to_vec()
    }

    /// Replaces the bytes there.
    ///
    /// # Safety
    /// They can be written, and are not used otherwise meanwhile.
    pub(crate) unsafe fn write(self, data: &[u8]) {
        // SAFETY: the caller's duty.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), self.0 as *mut u8, data.len()) }
    }
}

/// Allocations of the card. Their contents are the machine's.
#[derive(Debug, Default)]
pub(crate) struct Device {
    /// Allocations that a call may name: neither freed nor queued to be freed.
    live: HashSet<u64>,
}

impl Device {
    /// Allocates; the contents are undefined.
    pub(crate) fn alloc(&mut self, machine: &Machine, bytes: usize) -> Result<u64, Status> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        let address = machine.alloc(bytes as u64).map_err(|_| OUT_OF_MEMORY)?;
        self.live.insert(address);
        Ok(address)
    }

    /// Takes an allocation out of use; its memory goes back to the machine later.
    pub(crate) fn retire(&mut self, address: u64) -> Result<(), Status> {
        match self.live.remove(&address) {
            true => Ok(()),
            false => Err(INVALID_VALUE),
        }
    }
}

/// Pinned allocations by their first address, with their bytes.
#[derive(Debug, Default)]
pub(crate) struct Pinned(BTreeMap<usize, usize>);

/// Where a range of the host's memory lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Pinned,
    Pageable,
}

impl Pinned {
    fn layout(bytes: usize) -> Result<Layout, Status> {
        Layout::from_size_align(bytes, 4096).map_err(|_| OUT_OF_MEMORY)
    }

    /// Allocates; the contents are undefined.
    pub(crate) fn alloc(&mut self, bytes: usize) -> Result<Host, Status> {
        if bytes == 0 {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the size is not zero.
        let begin = unsafe { std::alloc::alloc(Self::layout(bytes)?) };
        if begin.is_null() {
            return Err(OUT_OF_MEMORY);
        }
        // SAFETY: allocated just now with that many bytes.
        unsafe { begin.write_bytes(POISON, bytes) };
        self.0.insert(begin as usize, bytes);
        Ok(Host(begin as usize))
    }

    /// Frees; copies that are still queued over it will fail.
    pub(crate) fn free(&mut self, host: Host) -> Result<(), Status> {
        let bytes = self.0.remove(&host.0).ok_or(INVALID_VALUE)?;
        // SAFETY: allocated by `alloc` with this layout, and freed once, since the table no longer has it.
        unsafe { std::alloc::dealloc(host.0 as *mut u8, Self::layout(bytes)?) };
        Ok(())
    }

    /// The kind of memory of a range; an error if the range crosses an end of a pinned allocation.
    pub(crate) fn kind(&self, host: Host, bytes: usize) -> Result<Kind, Status> {
        let end = host.0 + bytes;
        let before = self.0.range(..end).next_back();
        match before.map(|(begin, len)| (*begin, begin + len)) {
            Some((begin, last)) if begin <= host.0 && end <= last => Ok(Kind::Pinned),
            Some((_, last)) if host.0 < last => Err(INVALID_VALUE),
            _ => Ok(Kind::Pageable),
        }
    }
}
