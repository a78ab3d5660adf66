//! Global memory: allocations far apart, so that a stray access meets none, with a bit a byte that says whether
//! anything was ever written there.
//!
//! Blocks run in parallel and share this memory, so its words are relaxed atomics: on the machines we run on a relaxed
//! load or store costs what a plain one does, and a kernel whose blocks race is a fault of the kernel, not undefined
//! behaviour of the emulator.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::fault::Check;
use crate::races::{Races, Touched};

/// Generic addresses of shared, local and parameter memory lie in windows of this size; global memory lies above.
pub(crate) const WINDOW_BYTES: u64 = 1 << 40;
/// The number of the shared window.
pub(crate) const SHARED_WINDOW: u32 = 1;
/// The number of the local window.
pub(crate) const LOCAL_WINDOW: u32 = 2;
/// The number of the parameters' window.
pub(crate) const PARAM_WINDOW: u32 = 3;

const FIRST_ADDRESS: u64 = 0x7000_0000_0000;
const ALIGNMENT: u64 = 256;
const GUARD: u64 = 1 << 16;

/// The window of a generic address; zero is global memory.
pub(crate) fn window_of(address: u64) -> u32 {
    let window = address / WINDOW_BYTES;
    if window <= u64::from(PARAM_WINDOW) {
        window as u32
    } else {
        0
    }
}

/// One allocation.
#[derive(Debug)]
pub(crate) struct Allocation {
    pub(crate) base: u64,
    pub(crate) bytes: u64,
    /// The name of the module's variable it belongs to.
    pub(crate) name: Option<String>,
    pub(crate) read_only: bool,
    pub(crate) words: Box<[AtomicU32]>,
    /// A bit a byte.
    pub(crate) written: Box<[AtomicU32]>,
    /// Who touched each sector in the launch that runs.
    pub(crate) touched: Touched,
}

fn zeros(count: u64) -> Box<[AtomicU32]> {
    (0..count).map(|_| AtomicU32::new(0)).collect()
}

impl Allocation {
    fn new(base: u64, bytes: u64) -> Self {
        Self {
            base,
            bytes,
            name: None,
            read_only: false,
            words: zeros(bytes.div_ceil(4)),
            written: zeros(bytes.div_ceil(32)),
            touched: Touched::new(bytes),
        }
    }

    fn describe(&self) -> String {
        match &self.name {
            Some(name) => format!("the variable {name} of {} bytes", self.bytes),
            None => format!("the allocation of {} bytes at {:#x}", self.bytes, self.base),
        }
    }

    /// Whether `bytes` (a power of two up to 32, aligned) at `offset` were all written.
    #[inline(always)]
    pub(crate) fn is_written(&self, offset: u64, bytes: u32) -> bool {
        let mask = (u32::MAX >> (32 - bytes)) << (offset % 32);
        self.written[(offset / 32) as usize].load(Relaxed) & mask == mask
    }

    /// Marks `bytes` (a power of two up to 32, aligned) at `offset` as written.
    #[inline(always)]
    pub(crate) fn mark(&self, offset: u64, bytes: u32) {
        let mask = (u32::MAX >> (32 - bytes)) << (offset % 32);
        let word = &self.written[(offset / 32) as usize];
        if word.load(Relaxed) & mask != mask {
            word.fetch_or(mask, Relaxed);
        }
    }

    /// The masks of written bits that cover the bytes from `start` to `end`: (word, mask), which is (sector, bytes).
    #[inline(always)]
    pub(crate) fn masks(start: u64, end: u64) -> impl Iterator<Item = (usize, u32)> {
        (start / 32..end.div_ceil(32)).map(move |word| {
            let first = start.max(32 * word) - 32 * word;
            let last = end.min(32 * word + 32) - 32 * word;
            let mask = (u32::MAX >> (32 - (last - first))) << first;
            (word as usize, mask)
        })
    }

    /// Whether all bytes from `start` to `end` were written.
    #[inline(always)]
    pub(crate) fn is_range_written(&self, start: u64, end: u64) -> bool {
        Self::masks(start, end).all(|(w, mask)| self.written[w].load(Relaxed) & mask == mask)
    }

    #[inline(always)]
    pub(crate) fn mark_range(&self, start: u64, end: u64) {
        for (w, mask) in Self::masks(start, end) {
            if self.written[w].load(Relaxed) & mask != mask {
                self.written[w].fetch_or(mask, Relaxed);
            }
        }
    }

    /// One or two bytes.
    pub(crate) fn load_small(&self, offset: u64, bytes: u32) -> u32 {
        let word = self.words[(offset / 4) as usize].load(Relaxed) >> (8 * (offset % 4));
        word & (u32::MAX >> (32 - 8 * bytes))
    }

    /// One or two bytes.
    pub(crate) fn store_small(&self, offset: u64, bytes: u32, value: u32) {
        let shift = 8 * (offset % 4);
        let mask = (u32::MAX >> (32 - 8 * bytes)) << shift;
        let word = &self.words[(offset / 4) as usize];
        let bits = value << shift & mask;
        // Others may write the rest of the word at the same time.
        let _ = word.fetch_update(Relaxed, Relaxed, |old| Some(old & !mask | bits));
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            if at.is_multiple_of(4)
                && let Some((word, tail)) = rest.split_first_chunk::<4>()
            {
                self.words[(at / 4) as usize].store(u32::from_le_bytes(*word), Relaxed);
                (at, rest) = (at + 4, tail);
            } else {
                self.store_small(at, 1, u32::from(rest[0]));
                (at, rest) = (at + 1, &rest[1..]);
            }
        }
        self.mark_range(offset, offset + data.len() as u64);
    }

    fn read(&self, offset: u64, data: &mut [u8]) {
        let mut at = offset;
        let mut rest = data;
        while !rest.is_empty() {
            if at.is_multiple_of(4) && rest.len() >= 4 {
                let word = self.words[(at / 4) as usize].load(Relaxed);
                let (head, tail) = rest.split_at_mut(4);
                head.copy_from_slice(&word.to_le_bytes());
                (at, rest) = (at + 4, tail);
            } else {
                rest[0] = self.load_small(at, 1) as u8;
                (at, rest) = (at + 1, &mut rest[1..]);
            }
        }
    }
}

/// A request of the host that global memory cannot serve.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) check: Check,
    pub(crate) address: u64,
    pub(crate) detail: String,
}

/// Contents of all allocations: (base, words, written bits).
pub(crate) type Snapshot = Vec<(u64, Vec<u32>, Vec<u32>)>;

/// All allocations, by address.
#[derive(Debug)]
pub(crate) struct Global {
    pub(crate) allocations: Vec<Allocation>,
    next: u64,
    used: u64,
    limit: u64,
    /// Launches that were begun.
    launches: AtomicU32,
}

impl Global {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            allocations: Vec::new(),
            next: FIRST_ADDRESS,
            used: 0,
            limit,
            launches: AtomicU32::new(0),
        }
    }

    /// The records of a new launch.
    pub(crate) fn races(&self, blocks: u64) -> Races {
        let last = self.launches.fetch_add(1, Relaxed);
        Races::new(last.wrapping_add(1).max(1), blocks)
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Allocates; addresses are never used twice, so that a use after `free` is found.
    pub(crate) fn alloc(&mut self, bytes: u64) -> Result<u64, String> {
        if bytes > self.limit - self.used.min(self.limit) {
            return Err(format!(
                "{bytes} bytes were asked for, but of the machine's {} bytes {} are in use",
                self.limit, self.used
            ));
        }
        let base = self.next;
        self.next = (base + bytes + GUARD).next_multiple_of(ALIGNMENT);
        self.used += bytes;
        self.allocations.push(Allocation::new(base, bytes));
        Ok(base)
    }

    pub(crate) fn free(&mut self, address: u64) -> bool {
        match self.allocations.binary_search_by_key(&address, |a| a.base) {
            Ok(i) => {
                self.used -= self.allocations.remove(i).bytes;
                true
            }
            Err(_) => false,
        }
    }

    /// Names the allocation of a module's variable.
    pub(crate) fn name(&mut self, address: u64, name: &str, read_only: bool) {
        if let Some(i) = self.find(address) {
            self.allocations[i].name = Some(name.to_owned());
            self.allocations[i].read_only = read_only;
        }
    }

    /// The allocation that holds `address`, or the last one that begins before it.
    #[inline]
    fn below(&self, address: u64) -> Option<usize> {
        self.allocations
            .partition_point(|a| a.base <= address)
            .checked_sub(1)
    }

    /// The allocation that `address` lies in.
    #[inline]
    pub(crate) fn find(&self, address: u64) -> Option<usize> {
        self.below(address)
            .filter(|&i| address - self.allocations[i].base < self.allocations[i].bytes)
    }

    /// What stands nearest to an address that lies in no allocation.
    pub(crate) fn explain(&self, address: u64) -> String {
        match self.below(address) {
            None => "no allocation stands there or below".to_owned(),
            Some(i) => {
                let allocation = &self.allocations[i];
                let end = allocation.base + allocation.bytes;
                let next = self.allocations.get(i + 1);
                if let Some(next) = next.filter(|n| n.base - address < address - end.min(address)) {
                    return format!("{} bytes before {}", next.base - address, next.describe());
                }
                if address >= end {
                    format!(
                        "{} bytes behind the end of {}",
                        address - end,
                        allocation.describe()
                    )
                } else {
                    format!("it crosses the end of {}", allocation.describe())
                }
            }
        }
    }

    fn range(&self, address: u64, bytes: usize) -> Result<(&Allocation, u64), Refusal> {
        let found = self.find(address).map(|i| &self.allocations[i]);
        match found {
            Some(a) if a.bytes - (address - a.base) >= bytes as u64 => Ok((a, address - a.base)),
            _ => Err(Refusal {
                check: Check::OutOfBounds,
                address,
                detail: format!("{bytes} bytes: {}", self.explain(address)),
            }),
        }
    }

    pub(crate) fn write(&self, address: u64, data: &[u8]) -> Result<(), Refusal> {
        if !data.is_empty() {
            let (allocation, offset) = self.range(address, data.len())?;
            allocation.write(offset, data);
        }
        Ok(())
    }

    pub(crate) fn fill(&self, address: u64, value: u8, bytes: usize) -> Result<(), Refusal> {
        if bytes > 0 {
            let (allocation, offset) = self.range(address, bytes)?;
            let chunk = [value; 1 << 12];
            let mut done = 0;
            while done < bytes {
                let n = chunk.len().min(bytes - done);
                allocation.write(offset + done as u64, &chunk[..n]);
                done += n;
            }
        }
        Ok(())
    }

    pub(crate) fn read(&self, address: u64, data: &mut [u8]) -> Result<(), Refusal> {
        if data.is_empty() {
            return Ok(());
        }
        let (allocation, offset) = self.range(address, data.len())?;
        let end = offset + data.len() as u64;
        if !allocation.is_range_written(offset, end) {
            let first = (offset..end)
                .find(|&at| !allocation.is_written(at, 1))
                .unwrap_or(offset);
            return Err(Refusal {
                check: Check::Uninitialised,
                address: allocation.base + first,
                detail: format!(
                    "byte {first} of {} was never written",
                    allocation.describe()
                ),
            });
        }
        allocation.read(offset, data);
        Ok(())
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let copy = |words: &[AtomicU32]| words.iter().map(|w| w.load(Relaxed)).collect();
        self.allocations
            .iter()
            .map(|a| (a.base, copy(&a.words), copy(&a.written)))
            .collect()
    }

    pub(crate) fn restore(&self, snapshot: &Snapshot) {
        for (allocation, (_, words, written)) in self.allocations.iter().zip(snapshot) {
            for (to, &from) in allocation.words.iter().zip(words) {
                to.store(from, Relaxed);
            }
            for (to, &from) in allocation.written.iter().zip(written) {
                to.store(from, Relaxed);
            }
        }
    }

    /// The first address whose contents or written bits differ from the snapshot's, and what each holds.
    pub(crate) fn difference(&self, snapshot: &Snapshot) -> Option<(u64, String)> {
        for (allocation, (base, words, written)) in self.allocations.iter().zip(snapshot) {
            for (i, (now, &then)) in allocation.words.iter().zip(words).enumerate() {
                let now = now.load(Relaxed);
                if now != then {
                    let detail = format!(
                        "byte {} of {}: {then:#010x} in one order, {now:#010x} in the other",
                        4 * i,
                        allocation.describe()
                    );
                    return Some((base + 4 * i as u64, detail));
                }
            }
            for (i, (now, &then)) in allocation.written.iter().zip(written).enumerate() {
                if now.load(Relaxed) != then {
                    let detail = format!(
                        "near byte {} of {}: written in one order only",
                        32 * i,
                        allocation.describe()
                    );
                    return Some((base + 32 * i as u64, detail));
                }
            }
        }
        None
    }
}
