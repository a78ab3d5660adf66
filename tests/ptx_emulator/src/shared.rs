//! A block's shared memory with its checks: bounds, written or not, races, and copies still under way.
//!
//! **Races.** Every word (or smaller grain, where a kernel accesses less) remembers its last writer and its readers as
//! a *stamp*: the block's epoch, which every barrier advances; the warp; the warp's own epoch, which `bar.warp.sync`
//! advances; the lane. Two accesses to a word conflict if one writes, both are of one block epoch, and they are of
//! different warps, or of one warp in one warp epoch and of different lanes. A store of what is there already conflicts
//! with no other write (compilers let several warps store the same). A barrier that only some warps pass
//! (`barrier.sync id, count`) advances the epoch for all, so a race with a warp outside it may go unseen.

use crate::fault::{Check, Trouble};

/// Stamps: epoch in the upper 14 bits, then six bits each for warp, warp epoch and lane.
const EPOCH: u32 = 18;
const WARP: u32 = 12;
const WARP_EPOCH: u32 = 6;
const LAST_EPOCH: u32 = (1 << 14) - 1;
/// As a warp or lane: several of them.
const MANY: u32 = 32;
/// As a warp: atomic operations, which do not conflict with each other. The warp then stands in the warp epoch's place.
const ATOMIC: u32 = 33;

/// States of a grain: something was written there; an asynchronous copy to it is under way.
const WRITTEN: u8 = 1;
const PENDING: u8 = 2;

/// Who accesses: the lowest six bits are still to be filled with the lane.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Who(u32);

impl Who {
    /// A lane, or several at once.
    #[inline(always)]
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
#[inline(always)]
fn conflicts(other: u32, stamp: u32) -> bool {
    let differ = other ^ stamp;
    differ >> EPOCH == 0
        && if differ >> WARP != 0 {
            !(warp_of(other) == ATOMIC && atomic_stamp(stamp) == other)
        } else {
            differ >> WARP_EPOCH == 0 && differ != 0
        }
}

/// The stamp of an atomic operation by the thread of `stamp`.
fn atomic_stamp(stamp: u32) -> u32 {
    let kept = stamp >> EPOCH << EPOCH | lane_of(stamp);
    kept | ATOMIC << WARP | warp_of(stamp) << WARP_EPOCH
}

/// Four grains with all that is known of them, in one cache line.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Unit {
    /// The bytes of each grain.
    words: [u32; 4],
    writers: [u32; 4],
    readers: [u32; 4],
    /// [`WRITTEN`], [`PENDING`], or nothing.
    states: [u8; 4],
}

const FRESH: Unit = Unit {
    words: [0; 4],
    writers: [0; 4],
    readers: [0; 4],
    states: [0; 4],
};

/// Shared memory of one block.
#[derive(Debug)]
pub(crate) struct Shared {
    units: Vec<Unit>,
    /// log2 of a grain's bytes.
    grain: u32,
    epoch: u32,
    bytes: u32,
}

impl Shared {
    /// As the lane of an access: several lanes of the warp at once.
    pub(crate) const MANY_LANES: u32 = MANY;

    /// `grain` is log2 of the smallest access.
    pub(crate) fn new(bytes: u32, grain: u32) -> Self {
        let units = bytes.div_ceil(4 << grain) as usize;
        Self {
            units: vec![FRESH; units],
            grain,
            epoch: 1,
            bytes,
        }
    }

    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// Whether a grain is a word, as [`Self::read_words`] and [`Self::write_words`] need it.
    pub(crate) fn is_word_grained(&self) -> bool {
        self.grain == 2
    }

    /// Forgets everything, for the next block.
    pub(crate) fn clear(&mut self) {
        for unit in &mut self.units {
            unit.states = [0; 4];
        }
        self.advance();
    }

    /// A barrier.
    pub(crate) fn advance(&mut self) {
        if self.epoch == LAST_EPOCH {
            self.drop_stamps(|_| true);
            self.epoch = 0;
        }
        self.epoch += 1;
    }

    /// Drops the stamps of a warp, whose own epoch wraps.
    pub(crate) fn forget(&mut self, warp: u32) {
        self.drop_stamps(|stamp| warp_of(stamp) == warp);
    }

    fn drop_stamps(&mut self, which: impl Fn(u32) -> bool) {
        for unit in &mut self.units {
            for stamp in unit.writers.iter_mut().chain(&mut unit.readers) {
                if which(*stamp) {
                    *stamp = 0;
                }
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
            // Which warp epochs and lanes does not matter any more.
            (stamp >> EPOCH << EPOCH) | MANY << WARP
        } else if differ >> WARP_EPOCH == 0 && differ != 0 {
            (stamp & !63) | MANY
        } else {
            stamp
        };
    }

    /// Reads `N` words (1, 2, 4 or 8) at an aligned offset for `lane` or [`Self::MANY_LANES`], checking and noting it.
    /// False: something is wrong, and [`Self::read`] says what.
    #[inline(always)]
    pub(crate) fn read_words<const N: usize>(
        &mut self,
        offset: u32,
        who: Who,
        lane: u32,
        words: &mut [u32; N],
    ) -> bool {
        let stamp = who.lane(lane);
        let first = (offset / 16) as usize;
        let slot = (offset / 4 % 4) as usize;
        if N >= 4 {
            let mut fine = true;
            for (n, part) in words.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                fine &= Self::read_unit(&mut self.units[first + n], stamp);
                *part = self.units[first + n].words;
            }
            return fine;
        }
        let unit = &mut self.units[first];
        let mut fine = true;
        for (k, word) in words.iter_mut().enumerate() {
            let s = (slot + k) % 4;
            fine &= unit.states[s] == WRITTEN && !conflicts(unit.writers[s], stamp);
            Self::note_reader(&mut unit.readers[s], stamp);
            *word = unit.words[s];
        }
        fine
    }

    #[inline(always)]
    fn read_unit(unit: &mut Unit, stamp: u32) -> bool {
        let mut fine = unit.states == [WRITTEN; 4];
        // The four words were mostly written together and read together.
        let [writer, ..] = unit.writers;
        if unit.writers == [writer; 4] {
            fine &= !conflicts(writer, stamp);
        } else {
            fine &= unit.writers.iter().all(|&writer| !conflicts(writer, stamp));
        }
        let [mut reader, ..] = unit.readers;
        if unit.readers == [reader; 4] {
            let before = reader;
            Self::note_reader(&mut reader, stamp);
            if reader != before {
                unit.readers = [reader; 4];
            }
        } else {
            for reader in &mut unit.readers {
                Self::note_reader(reader, stamp);
            }
        }
        fine
    }

    /// Writes `N` words at an aligned offset for a lane. False: something is wrong, nothing was written, and
    /// [`Self::claim`] says what.
    #[inline(always)]
    pub(crate) fn write_words<const N: usize>(
        &mut self,
        offset: u32,
        who: Who,
        lane: usize,
        words: &[u32; N],
    ) -> bool {
        let stamp = who.lane(lane as u32);
        let first = (offset / 16) as usize;
        let slot = (offset / 4 % 4) as usize;
        let mut fine = true;
        for k in 0..N {
            let s = (slot + k) % 4;
            let unit = &self.units[first + (slot + k) / 4];
            fine &= unit.states[s] != PENDING
                && !conflicts(unit.writers[s], stamp)
                && !conflicts(unit.readers[s], stamp);
        }
        if !fine {
            return false;
        }
        for (k, &word) in words.iter().enumerate() {
            let s = (slot + k) % 4;
            let unit = &mut self.units[first + (slot + k) / 4];
            unit.words[s] = word;
            unit.writers[s] = stamp;
            unit.states[s] = WRITTEN;
        }
        true
    }

    fn grains(&self, offset: u32, bytes: u32) -> std::ops::Range<usize> {
        let end = (offset + bytes).div_ceil(1 << self.grain);
        (offset >> self.grain) as usize..end as usize
    }

    /// The words at `offset`, whatever the grain. Less than a word stands in the lowest bytes.
    pub(crate) fn fetch(&self, offset: u32, bytes: u32) -> [u32; 8] {
        let mut words = [0; 8];
        let bits = 8 << self.grain;
        for (n, grain) in self.grains(offset, bytes).enumerate() {
            let value = self.units[grain / 4].words[grain % 4];
            let at = n * bits as usize;
            words[at / 32] |= value << (at % 32);
        }
        words
    }

    /// Stores words at `offset`, whatever the grain, and marks them as written.
    pub(crate) fn put(&mut self, offset: u32, bytes: u32, words: &[u32]) {
        let bits = 8 << self.grain;
        for (n, grain) in self.grains(offset, bytes).enumerate() {
            let at = n * bits as usize;
            let value = words[at / 32] >> (at % 32) & (u32::MAX >> (32 - bits));
            let unit = &mut self.units[grain / 4];
            unit.words[grain % 4] = value;
            unit.states[grain % 4] = WRITTEN;
        }
    }

    fn pending(&self, offset: u32, bytes: u32, lane: usize) -> Result<(), Box<Trouble>> {
        for grain in self.grains(offset, bytes) {
            if self.units[grain / 4].states[grain % 4] == PENDING {
                return Err(Trouble::at(
                    Check::AsyncCopy,
                    lane,
                    u64::from(offset),
                    format!(
                        "an access of {bytes} bytes at shared offset {offset} meets a cp.async whose wait has not been passed"
                    ),
                ));
            }
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
        let stamp = who.lane(lane as u32);
        for grain in self.grains(offset, bytes) {
            let unit = &mut self.units[grain / 4];
            if unit.states[grain % 4] != WRITTEN {
                return Err(Trouble::at(
                    Check::Uninitialised,
                    lane,
                    u64::from(offset),
                    format!(
                        "{bytes} bytes at shared offset {offset} are read, and nothing in this block has written all of them"
                    ),
                ));
            }
            let writer = unit.writers[grain % 4];
            if conflicts(writer, stamp) {
                return Err(self.race(grain, lane, "reads", "written", writer));
            }
            Self::note_reader(&mut unit.readers[grain % 4], stamp);
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

    /// Checks and notes a write of `bytes` at `offset` by one lane. The bytes are to be [`Self::put`].
    pub(crate) fn claim(
        &mut self,
        offset: u32,
        bytes: u32,
        who: Who,
        lane: usize,
    ) -> Result<(), Box<Trouble>> {
        self.pending(offset, bytes, lane)?;
        let stamp = who.lane(lane as u32);
        for grain in self.grains(offset, bytes) {
            let unit = &mut self.units[grain / 4];
            let (writer, reader) = (unit.writers[grain % 4], unit.readers[grain % 4]);
            if conflicts(writer, stamp) {
                return Err(self.race(grain, lane, "writes", "written", writer));
            }
            if conflicts(reader, stamp) {
                return Err(self.race(grain, lane, "writes", "read", reader));
            }
            unit.writers[grain % 4] = stamp;
        }
        Ok(())
    }

    /// Whether `words` are there already and nobody else has read them in this epoch, so that a second warp may store
    /// them again. Notes the write if so.
    pub(crate) fn repeats(
        &mut self,
        offset: u32,
        bytes: u32,
        who: Who,
        lane: usize,
        words: &[u32],
    ) -> bool {
        let stamp = who.lane(lane as u32);
        let grains = self.grains(offset, bytes);
        let fine = grains.clone().all(|grain| {
            let unit = &self.units[grain / 4];
            unit.states[grain % 4] == WRITTEN
                && !conflicts(unit.readers[grain % 4], stamp)
                && warp_of(unit.writers[grain % 4]) != ATOMIC
        });
        if !fine || self.fetch(offset, bytes)[..words.len()] != *words {
            return false;
        }
        for grain in grains {
            self.units[grain / 4].writers[grain % 4] = stamp;
        }
        true
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
        let stamp = who.lane(lane as u32);
        for grain in self.grains(offset, bytes) {
            let unit = &mut self.units[grain / 4];
            let (writer, reader) = (unit.writers[grain % 4], unit.readers[grain % 4]);
            if unit.states[grain % 4] != WRITTEN {
                return self.read(offset, bytes, who, lane);
            }
            if warp_of(writer) != ATOMIC && conflicts(writer, stamp) {
                return Err(self.race(grain, lane, "updates atomically", "written", writer));
            }
            if conflicts(reader, stamp) {
                return Err(self.race(grain, lane, "updates atomically", "read", reader));
            }
            // A second thread's operation leaves a word that nobody may read before a barrier.
            let first = (writer ^ stamp) >> EPOCH != 0 || warp_of(writer) != ATOMIC;
            unit.writers[grain % 4] = if first || writer == atomic_stamp(stamp) {
                atomic_stamp(stamp)
            } else {
                atomic_stamp(stamp) | MANY
            };
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
        self.claim(offset, bytes, who, lane)?;
        for grain in self.grains(offset, bytes) {
            self.units[grain / 4].states[grain % 4] = PENDING;
        }
        Ok(())
    }

    /// The copy's data appears, visible to the thread that waited, and to others after a barrier.
    pub(crate) fn finish_copy(&mut self, offset: u32, data: &[u8], who: Who, lane: usize) {
        let bytes = data.len() as u32;
        for grain in self.grains(offset, bytes) {
            self.units[grain / 4].writers[grain % 4] = who.lane(lane as u32);
        }
        let mut words = [0; 8];
        for (word, bytes) in words.iter_mut().zip(data.chunks(4)) {
            let mut whole = [0; 4];
            whole[..bytes.len()].copy_from_slice(bytes);
            *word = u32::from_le_bytes(whole);
        }
        self.put(offset, bytes, &words);
    }
}
