//! A block's shared memory with its checks: bounds, written or not, races, and copies still under way.
//!
//! **Races.** Every word (or smaller grain, where a kernel accesses less) remembers its last writer and its readers as
//! a *stamp*: the block's epoch, which every barrier advances; the warp; the warp's own epoch, which `bar.warp.sync`
//! advances; the lane. Two accesses to a word conflict if one writes, both are of one block epoch, and they are of
//! different warps, or of one warp in one warp epoch and of different lanes. A barrier that only some warps pass
//! (`barrier.sync id, count`) advances the epoch for all, so a race with a warp outside it may go unseen.

use crate::fault::{Check, Trouble};

/// Stamps: epoch in the upper 14 bits, then six bits each for warp, warp epoch and lane.
const EPOCH: u32 = 18;
const WARP: u32 = 12;
const WARP_EPOCH: u32 = 6;
const LAST_EPOCH: u32 = (1 << 14) - 1;
/// As a warp or lane: several of them.
const MANY: u32 = 32;
/// As a warp: atomic operations, which do not conflict with each other.
const ATOMIC: u32 = 33;

/// All four bytes of a word are written.
const WRITTEN: u8 = 0x0f;
/// An asynchronous copy to the word is under way.
const PENDING: u8 = 0x80;

/// Who accesses: the lowest six bits are still to be filled with the lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who(u32);

impl Who {
    /// A lane, or several at once.
    fn lane(self, lane: u32) -> u32 {
        self.0 | lane
    }
}

fn warp_of(stamp: u32) -> u32 {
    stamp >> WARP & 63
}

fn lane_of(stamp: u32) -> u32 {
    stamp & 63
}

fn describe(stamp: u32) -> String {
    match (warp_of(stamp), lane_of(stamp)) {
        (ATOMIC, _) => "an atomic operation".to_owned(),
        (MANY, _) => "threads of several warps".to_owned(),
        (warp, MANY) => format!("several threads of warp {warp}"),
        (warp, lane) => format!("thread {} (warp {warp}, lane {lane})", 32 * warp + lane),
    }
}

/// Whether an access with `stamp` conflicts with an earlier one with stamp `other`, given that one of them writes.
fn conflicts(other: u32, stamp: u32) -> bool {
    let differ = other ^ stamp;
    differ >> EPOCH == 0 && (differ >> WARP != 0 || (differ >> WARP_EPOCH == 0 && differ != 0))
}

/// Shared memory of one block.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) words: Vec<u32>,
    /// The lowest four bits: which bytes of the word were written.
    written: Vec<u8>,
    writers: Vec<u32>,
    readers: Vec<u32>,
    grain: u32,
    epoch: u32,
    bytes: u32,
}

impl Shared {
    /// `grain` is log2 of the smallest access.
    pub(crate) fn new(bytes: u32, grain: u32) -> Self {
        let words = bytes.div_ceil(4) as usize;
        let grains = words << (2 - grain);
        Self {
            words: vec![0; words],
            written: vec![0; words],
            writers: vec![0; grains],
            readers: vec![0; grains],
            grain,
            epoch: 1,
            bytes,
        }
    }

    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Forgets everything, for the next block.
    pub(crate) fn clear(&mut self) {
        self.written.fill(0);
        self.advance();
    }

    /// A barrier.
    pub(crate) fn advance(&mut self) {
        if self.epoch == LAST_EPOCH {
            self.writers.fill(0);
            self.readers.fill(0);
            self.epoch = 0;
        }
        self.epoch += 1;
    }

    /// Drops the stamps of a warp, whose own epoch wraps.
    pub(crate) fn forget(&mut self, warp: u32) {
        for stamp in self.writers.iter_mut().chain(&mut self.readers) {
            if warp_of(*stamp) == warp {
                *stamp = 0;
            }
        }
    }

    pub(crate) fn who(&self, warp: u32, warp_epoch: u32) -> Who {
        Who(self.epoch << EPOCH | warp << WARP | warp_epoch << WARP_EPOCH)
    }

    #[inline(always)]
    fn note_reader(reader: &mut u32, stamp: u32) {
        let differ = *reader ^ stamp;
        *reader = if differ >> EPOCH != 0 {
            stamp
        } else if differ >> WARP != 0 {
            (stamp & !(63 << WARP)) | MANY << WARP
        } else if differ >> WARP_EPOCH == 0 && differ != 0 {
            (stamp & !63) | MANY
        } else {
            stamp
        };
    }

    /// Checks and notes that `lane` (or [`Self::MANY_LANES`]) reads `n` whole words. False: something is wrong, and
    /// [`Self::read`] says what.
    #[inline(always)]
    pub(crate) fn read_words(&mut self, first: usize, n: usize, who: Who, lane: u32) -> bool {
        debug_assert!(self.grain == 2);
        let stamp = who.lane(lane);
        if n == 4 {
            return self.read_quad(first, stamp);
        }
        let mut fine = true;
        let end = first + n;
        let states = self.writers[first..end]
            .iter()
            .zip(&mut self.readers[first..end])
            .zip(&self.written[first..end]);
        for ((&writer, reader), &written) in states {
            fine &= written == WRITTEN && !conflicts(writer, stamp);
            Self::note_reader(reader, stamp);
        }
        fine
    }

    #[inline(always)]
    fn read_quad(&mut self, first: usize, stamp: u32) -> bool {
        let (Some(writers), Some(readers), Some(written)) = (
            self.writers[first..].first_chunk::<4>(),
            self.readers[first..].first_chunk_mut::<4>(),
            self.written[first..].first_chunk::<4>(),
        ) else {
            return false;
        };
        let mut fine = u32::from_le_bytes(*written) == u32::from_le_bytes([WRITTEN; 4]);
        // The common case: nothing was written in this epoch, and nobody else has read.
        let mut old_writers = true;
        let mut plain_readers = true;
        for j in 0..4 {
            old_writers &= (writers[j] ^ stamp) >> EPOCH != 0;
            plain_readers &= (readers[j] ^ stamp) >> EPOCH != 0 || readers[j] == stamp;
        }
        if !old_writers {
            fine &= writers.iter().all(|&writer| !conflicts(writer, stamp));
        }
        if plain_readers {
            *readers = [stamp; 4];
        } else {
            for reader in readers {
                Self::note_reader(reader, stamp);
            }
        }
        fine
    }

    /// As the lane of an access: several lanes of the warp at once.
    pub(crate) const MANY_LANES: u32 = MANY;

    fn grains(&self, offset: u32, bytes: u32) -> std::ops::Range<usize> {
        let end = (offset + bytes).div_ceil(1 << self.grain);
        (offset >> self.grain) as usize..end as usize
    }

    /// Which bytes of its word an access of less than a word touches, or all.
    fn byte_mask(offset: u32, bytes: u32) -> u8 {
        if bytes >= 4 {
            WRITTEN
        } else {
            ((1 << bytes) - 1) << (offset % 4)
        }
    }

    fn word_range(offset: u32, bytes: u32) -> std::ops::Range<usize> {
        (offset / 4) as usize..(offset + bytes).div_ceil(4) as usize
    }

    fn pending(&self, offset: u32, bytes: u32, lane: usize) -> Result<(), Box<Trouble>> {
        let range = Self::word_range(offset, bytes);
        if self.written[range].iter().any(|w| w & PENDING != 0) {
            return Err(Trouble::at(
                Check::AsyncCopy,
                lane,
                u64::from(offset),
                format!(
                    "an access of {bytes} bytes at shared offset {offset} meets a cp.async whose wait has not been passed"
                ),
            ));
        }
        Ok(())
    }

    /// Checks and notes a read of `bytes` at `offset` by one lane.
    pub(crate) fn read(
        &mut self,
        offset: u32,
        bytes: u32,
        who: Who,
        lane: usize,
    ) -> Result<(), Box<Trouble>> {
        self.pending(offset, bytes, lane)?;
        let mask = Self::byte_mask(offset, bytes);
        for word in Self::word_range(offset, bytes) {
            if self.written[word] & mask != mask {
                return Err(Trouble::at(
                    Check::Uninitialised,
                    lane,
                    u64::from(offset),
                    format!(
                        "{bytes} bytes at shared offset {offset} are read, and nothing in this block has written all of them"
                    ),
                ));
            }
        }
        let stamp = who.lane(lane as u32);
        for grain in self.grains(offset, bytes) {
            let writer = self.writers[grain];
            if conflicts(writer, stamp) {
                return Err(self.race(grain, lane, "reads", "written", writer));
            }
            Self::note_reader(&mut self.readers[grain], stamp);
        }
        Ok(())
    }

    fn race(&self, grain: usize, lane: usize, does: &str, was: &str, other: u32) -> Box<Trouble> {
        let offset = (grain as u64) << self.grain;
        Trouble::at(
            Check::SharedRace,
            lane,
            offset,
            format!(
                "the thread {does} shared offset {offset}, which {} has {was} with no barrier between",
                describe(other)
            ),
        )
    }

    /// Checks and notes a write of `bytes` at `offset` by one lane.
    #[inline]
    pub(crate) fn write(
        &mut self,
        offset: u32,
        bytes: u32,
        who: Who,
        lane: usize,
    ) -> Result<(), Box<Trouble>> {
        self.pending(offset, bytes, lane)?;
        let stamp = who.lane(lane as u32);
        self.claim(offset, bytes, stamp, lane)?;
        let mask = Self::byte_mask(offset, bytes);
        for word in Self::word_range(offset, bytes) {
            self.written[word] |= mask;
        }
        Ok(())
    }

    fn claim(
        &mut self,
        offset: u32,
        bytes: u32,
        stamp: u32,
        lane: usize,
    ) -> Result<(), Box<Trouble>> {
        for grain in self.grains(offset, bytes) {
            let (writer, reader) = (self.writers[grain], self.readers[grain]);
            if conflicts(writer, stamp) {
                return Err(self.race(grain, lane, "writes", "written", writer));
            }
            if conflicts(reader, stamp) {
                return Err(self.race(grain, lane, "writes", "read", reader));
            }
            self.writers[grain] = stamp;
        }
        Ok(())
    }

    /// Checks and notes an atomic operation.
    pub(crate) fn atomic(
        &mut self,
        offset: u32,
        bytes: u32,
        who: Who,
        lane: usize,
    ) -> Result<(), Box<Trouble>> {
        self.pending(offset, bytes, lane)?;
        let stamp = (who.lane(lane as u32) & !(63 << WARP)) | ATOMIC << WARP;
        for word in Self::word_range(offset, bytes) {
            if self.written[word] & WRITTEN != WRITTEN {
                return self.read(offset, bytes, who, lane);
            }
        }
        for grain in self.grains(offset, bytes) {
            let (writer, reader) = (self.writers[grain], self.readers[grain]);
            if warp_of(writer) != ATOMIC && conflicts(writer, who.lane(lane as u32)) {
                return Err(self.race(grain, lane, "updates atomically", "written", writer));
            }
            if conflicts(reader, who.lane(lane as u32)) {
                return Err(self.race(grain, lane, "updates atomically", "read", reader));
            }
            self.writers[grain] = stamp;
        }
        Ok(())
    }

    /// Checks and notes that an asynchronous copy to `offset` begins. Its bytes count as written by the thread that
    /// copies, but nobody may touch them before [`Self::finish_copy`].
    pub(crate) fn begin_copy(
        &mut self,
        offset: u32,
        bytes: u32,
        who: Who,
        lane: usize,
    ) -> Result<(), Box<Trouble>> {
        self.pending(offset, bytes, lane)?;
        self.claim(offset, bytes, who.lane(lane as u32), lane)?;
        for word in Self::word_range(offset, bytes) {
            self.written[word] = PENDING;
        }
        Ok(())
    }

    /// The copy's data appears, visible to the thread that waited, and to others after a barrier.
    pub(crate) fn finish_copy(&mut self, offset: u32, data: &[u8], who: Who, lane: usize) {
        for grain in self.grains(offset, data.len() as u32) {
            self.writers[grain] = who.lane(lane as u32);
        }
        for (word, bytes) in Self::word_range(offset, data.len() as u32).zip(data.chunks(4)) {
            let mut whole = [0; 4];
            whole[..bytes.len()].copy_from_slice(bytes);
            self.words[word] = u32::from_le_bytes(whole);
            self.written[word] = WRITTEN;
        }
    }

    pub(crate) fn is_word_grained(&self) -> bool {
        self.grain == 2
    }
}
