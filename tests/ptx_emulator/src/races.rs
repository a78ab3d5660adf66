//! Races between blocks in global memory, and which sectors a launch has touched.
//!
//! **Records.** Each sector of 32 bytes remembers, for the launch that runs, who wrote which of its bytes and who read
//! which. Two accesses to a byte conflict if they are of different blocks and one writes, unless both are atomic, or the
//! later one is ordered after the earlier one. A store of what is there already is no conflict.
//!
//! **Order** between blocks comes from fences and tickets. A block *releases* what it has written by an atomic operation
//! that comes after a fence (`__threadfence`, or wider) which covers the writes:
//! - the thread's own writes before its fence, or those of its warp before a `__syncwarp` before the fence;
//! - all writes of the block before a `__syncthreads` before the fence;
//! - or each thread fences its own writes, and a `__syncthreads` follows.
//!
//! A block *acquires* it by a later atomic operation on the same address. So a last block may add up what the others
//! left; one whose others left out the fence, the barrier or the ticket may not. The acquiring block needs no fence here.
//! A block that has taken a number from a ticket may store to the ticket.
//!
//! **Times.** A block's time advances at barriers and fences after writes. A record holds the time and the warp of the
//! last write; a release says up to which time all warps' writes are covered, and up to which the warp's own. Times end
//! at 31, from where on everything counts as one time: a long kernel may hide a race, but never gets a false one.
//! Reads that a later write must respect are not timed: any release of the reader after it orders them.
//!
//! Not seen: order by `ld.acquire` and `st.release` (use atomic operations), clusters.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::exec::lanes_of;

/// Bytes of a sector.
pub(crate) const SECTOR: u64 = 32;
/// Sectors that are cleared together when a launch first touches one of them.
const PAGE: usize = 64;

/// A record, from the highest bit: 20 bits block from 1, 5 bits time, 1 bit atomic, 6 bits warp, 32 bits bytes.
type Record = u64;

const BLOCK: u32 = 44;
const TIME: u32 = 39;
const ATOMIC: Record = 1 << 38;
const WARP: u32 = 32;
/// As a block of reads: several, of each byte. As a block of writes: several, with atomic operations only.
const MANY: u64 = 0xffffe;
/// As a block: see [`Races::mixed`] and [`Races::readers`].
const MIXED: Record = (0xfffff << BLOCK) | BYTES;
const BYTES: Record = 0xffff_ffff;
/// As a warp: several.
const WARPS: u64 = 63;
/// The last time.
const LAST: u8 = 31;

fn block_of(record: Record) -> u64 {
    record >> BLOCK
}

fn time_of(record: Record) -> u8 {
    (record >> TIME) as u8 & LAST
}

fn warp_of(record: Record) -> u64 {
    record >> WARP & WARPS
}

/// The record of a sector's writes by one block after another write by the same block.
fn merge(old: Record, new: Record) -> Record {
    let time = time_of(old).max(time_of(new));
    let warp = if warp_of(old) == warp_of(new) {
        warp_of(old)
    } else {
        WARPS
    };
    (old >> BLOCK << BLOCK)
        | u64::from(time) << TIME
        | (old & new & ATOMIC)
        | warp << WARP
        | ((old | new) & BYTES)
}

/// Who touched a sector.
#[derive(Debug, Default)]
struct Touch {
    writes: AtomicU64,
    reads: AtomicU64,
}

/// The records of an allocation.
#[derive(Debug)]
pub(crate) struct Touched {
    sectors: Box<[Touch]>,
    /// The launch that last touched each page.
    launches: Box<[AtomicU32]>,
}

impl Touched {
    pub(crate) fn new(bytes: u64) -> Self {
        let sectors = bytes.div_ceil(SECTOR) as usize;
        Self {
            sectors: (0..sectors).map(|_| Touch::default()).collect(),
            launches: (0..sectors.div_ceil(PAGE))
                .map(|_| AtomicU32::new(0))
                .collect(),
        }
    }

    /// The record of a sector, cleared if no access of this launch has come to it yet.
    #[inline(always)]
    fn sector(&self, races: &Races, sector: usize) -> &Touch {
        if self.launches[sector / PAGE].load(SeqCst) != races.launch {
            self.clear(races, sector / PAGE);
        }
        &self.sectors[sector]
    }

    #[cold]
    #[inline(never)]
    fn clear(&self, races: &Races, page: usize) {
        let _guard = lock(&races.clearing);
        if self.launches[page].load(SeqCst) != races.launch {
            let end = self.sectors.len().min((page + 1) * PAGE);
            for touch in &self.sectors[page * PAGE..end] {
                touch.writes.store(0, Relaxed);
                touch.reads.store(0, Relaxed);
            }
            self.launches[page].store(races.launch, SeqCst);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A release: what of its block an atomic operation covers.
#[derive(Clone, Debug)]
struct Release {
    block: u64,
    warp: u64,
    /// Writes of all warps before this time, and the warp's own before that.
    all: u8,
    own: u8,
    /// What the block itself has acquired: tickets, and how many of their releases.
    acquired: Vec<(u64, usize)>,
}

/// What all blocks of a launch share.
#[derive(Debug)]
pub(crate) struct Races {
    launch: u32,
    blocks: u64,
    clearing: Mutex<()>,
    /// Whether anything was released.
    released: AtomicBool,
    /// The releases of each ticket, in order.
    tickets: Mutex<HashMap<u64, Vec<Release>>>,
    /// The records of sectors that several blocks have written, by address.
    mixed: [Mutex<HashMap<u64, Vec<Record>>>; 16],
    /// Who read sectors of which several blocks have read different bytes, by the place of the sector's record.
    readers: [Mutex<HashMap<usize, Readers>>; 16],
}

/// Who read which bytes of a sector.
#[derive(Debug, Default)]
struct Readers {
    /// Bytes that several blocks have read.
    many: u32,
    /// Blocks, and the bytes that only they have read.
    single: Vec<(u64, u32)>,
}

impl Readers {
    fn add(&mut self, block: u64, bytes: u32) {
        let mut fresh = bytes & !self.many;
        for (other, theirs) in &mut self.single {
            if *other != block {
                let both = *theirs & fresh;
                *theirs &= !both;
                fresh &= !both;
                self.many |= both;
            }
        }
        self.single.retain(|(_, theirs)| *theirs != 0);
        match self.single.iter_mut().find(|(other, _)| *other == block) {
            Some((_, own)) => *own |= fresh,
            None if fresh != 0 => self.single.push((block, fresh)),
            None => {}
        }
    }
}

impl Races {
    /// `launch` is never zero, and never that of another launch.
    pub(crate) fn new(launch: u32, blocks: u64) -> Self {
        Self {
            launch,
            blocks,
            clearing: Mutex::default(),
            released: AtomicBool::new(false),
            tickets: Mutex::default(),
            mixed: Default::default(),
            readers: Default::default(),
        }
    }

    fn readers(&self, touch: &Touch) -> (MutexGuard<'_, HashMap<usize, Readers>>, usize) {
        let key = std::ptr::from_ref(touch) as usize;
        (lock(&self.readers[key / 16 % self.readers.len()]), key)
    }

    fn mixed(&self, address: u64) -> MutexGuard<'_, HashMap<u64, Vec<Record>>> {
        lock(&self.mixed[(address / SECTOR) as usize % self.mixed.len()])
    }
}

/// How far a warp's writes are fenced.
#[derive(Debug, Default)]
pub(crate) struct Fenced {
    /// Lanes that have written since their fence, after and before the last `__syncwarp`.
    since: u32,
    before: u32,
    all: u8,
    own: u8,
}

/// The first sectors that a block has touched, counted.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct FirstTouches {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
}

/// A conflict with an earlier access.
#[derive(Debug)]
pub(crate) struct Conflict {
    /// The other block, if it is one.
    pub(crate) block: Option<u64>,
    /// What the others did.
    pub(crate) did: &'static str,
}

/// A block's own part.
#[derive(Debug, Default)]
pub(crate) struct BlockRaces {
    /// From 1, as in records.
    block: u64,
    time: u8,
    /// Whether anything was written at this time.
    written: bool,
    /// The time of the last barrier, and of the last one at which all writes were fenced.
    barrier: u8,
    clean: u8,
    /// Warps with writes that no fence has covered.
    dirty: u32,
    /// Tickets from which this block has taken a number.
    taken: HashSet<u64>,
    /// Tickets, and how many of their releases were acquired.
    acquired: Vec<(u64, usize)>,
    /// The releases of each block that `acquired` leads to, once they were asked for.
    clock: Option<HashMap<u64, Vec<Release>>>,
    pub(crate) first: FirstTouches,
}

/// The tickets that a block remembers to have taken from.
const MOST_TAKEN: usize = 1 << 12;

impl BlockRaces {
    /// Begins a block.
    pub(crate) fn begin(&mut self, block: u64) {
        *self = Self {
            // Blocks a million apart pass for one; a race between them goes unseen.
            block: 1 + block % (MANY - 1),
            time: 1,
            first: self.first,
            ..Self::default()
        };
    }

    fn tick(&mut self) {
        if self.written {
            self.time = LAST.min(self.time + 1);
            self.written = false;
        }
    }

    /// A barrier of the block.
    pub(crate) fn barrier(&mut self) {
        self.tick();
        self.barrier = self.time;
        if self.dirty == 0 {
            self.clean = self.time;
        }
    }

    /// `bar.warp.sync`.
    pub(crate) fn warp_sync(&self, fenced: &mut Fenced) {
        fenced.before |= std::mem::take(&mut fenced.since);
    }

    /// A fence that reaches other blocks, by some lanes of a warp.
    pub(crate) fn fence(&mut self, warp: u32, fenced: &mut Fenced, lanes: u32) {
        self.tick();
        fenced.all = self.barrier;
        fenced.before = 0;
        fenced.since &= !lanes;
        if fenced.since == 0 {
            fenced.own = self.time;
            self.dirty &= !(1 << warp);
        }
    }

    /// Notes that lanes of a warp write.
    #[inline(always)]
    pub(crate) fn writing(&mut self, warp: u32, fenced: &mut Fenced, lanes: u32) {
        self.written = true;
        self.dirty |= 1 << warp;
        fenced.since |= lanes;
    }

    fn record(&self, warp: u32, bytes: u32) -> Record {
        self.block << BLOCK
            | u64::from(self.time) << TIME
            | u64::from(warp) << WARP
            | u64::from(bytes)
    }

    /// Notes a read; true if it conflicts with nothing. False: [`Self::check_read`] is to look closer.
    #[inline(always)]
    pub(crate) fn read(
        &mut self,
        races: &Races,
        touched: &Touched,
        sector: usize,
        bytes: u32,
    ) -> bool {
        let touch = touched.sector(races, sector);
        let reads = touch.reads.load(Relaxed);
        let known = block_of(reads) == self.block || block_of(reads) == MANY;
        if !known || reads as u32 & bytes != bytes {
            self.note_read(races, touch, bytes);
        }
        let writes = touch.writes.load(SeqCst);
        writes as u32 & bytes == 0 || block_of(writes) == self.block
    }

    #[inline(never)]
    fn note_read(&mut self, races: &Races, touch: &Touch, bytes: u32) {
        let mine = self.block << BLOCK | u64::from(bytes);
        let alone = touch.reads.fetch_update(SeqCst, SeqCst, |old| match old {
            // Nobody, or atomic operations, which are no reads to respect.
            _ if old & BYTES == 0 => Some(mine),
            _ if block_of(old) == self.block => Some(old | mine),
            _ if block_of(old) == MANY && old & BYTES == u64::from(bytes) => Some(old),
            _ => None,
        });
        if let Ok(old) = alone {
            self.first.reads += u64::from(old == 0);
            return;
        }
        let (mut sectors, key) = races.readers(touch);
        let old = touch.reads.swap(MIXED, SeqCst);
        let readers = sectors.entry(key).or_default();
        match block_of(old) {
            _ if old == MIXED => {}
            MANY => readers.many = old as u32,
            block => readers.add(block, old as u32),
        }
        readers.add(self.block, bytes);
        // Where all bytes are read by several, as weights are, the record alone says so.
        if readers.single.is_empty() {
            let record = MANY << BLOCK | u64::from(readers.many);
            sectors.remove(&key);
            touch.reads.store(record, SeqCst);
        }
    }

    /// Notes a write; true if it conflicts with nothing. False: nothing was noted, and [`Self::check_write`] is to.
    #[inline(always)]
    pub(crate) fn write(
        &mut self,
        races: &Races,
        touched: &Touched,
        sector: usize,
        warp: u32,
        bytes: u32,
    ) -> bool {
        let touch = touched.sector(races, sector);
        let mine = self.record(warp, bytes);
        let old = touch.writes.load(Relaxed);
        if old != 0 && block_of(old) != self.block {
            return false;
        }
        let new = if old == 0 { mine } else { merge(old, mine) };
        if new != old {
            if touch
                .writes
                .compare_exchange(old, new, SeqCst, SeqCst)
                .is_err()
            {
                return false;
            }
            self.first.writes += u64::from(old == 0);
        }
        let reads = touch.reads.load(SeqCst);
        reads as u32 & bytes == 0 || block_of(reads) == self.block
    }

    /// Notes an atomic operation on `bytes` of a sector that begins at `address`.
    pub(crate) fn atomic(
        &mut self,
        races: &Races,
        touched: &Touched,
        sector: usize,
        address: u64,
        warp: u32,
        bytes: u32,
    ) -> Result<(), Conflict> {
        let touch = touched.sector(races, sector);
        if touch.reads.load(Relaxed) == 0 {
            let noted = touch
                .reads
                .compare_exchange(0, self.block << BLOCK, SeqCst, SeqCst);
            self.first.reads += u64::from(noted.is_ok());
        }
        let mine = self.record(warp, bytes) | ATOMIC;
        loop {
            let old = touch.writes.load(SeqCst);
            let new = match old {
                0 => mine,
                MIXED => break,
                _ if block_of(old) == self.block => merge(old, mine),
                _ if old & ATOMIC != 0 => MANY << BLOCK | ATOMIC | ((old | mine) & BYTES),
                _ => break,
            };
            if new == old {
                return self.after_reads(races, touch, bytes);
            }
            if touch
                .writes
                .compare_exchange(old, new, SeqCst, SeqCst)
                .is_ok()
            {
                self.first.writes += u64::from(old == 0);
                return self.after_reads(races, touch, bytes);
            }
        }
        self.mix(races, touch, address, mine)?;
        self.after_reads(races, touch, bytes)
    }

    /// Looks closer at a read.
    #[cold]
    #[inline(never)]
    pub(crate) fn check_read(
        &mut self,
        races: &Races,
        touched: &Touched,
        sector: usize,
        address: u64,
        bytes: u32,
    ) -> Result<(), Conflict> {
        let touch = touched.sector(races, sector);
        let others = match touch.writes.load(SeqCst) {
            MIXED => races
                .mixed(address)
                .get(&address)
                .cloned()
                .unwrap_or_default(),
            one => vec![one],
        };
        for other in others {
            self.after_write(races, other, address, bytes)?;
        }
        Ok(())
    }

    /// Looks closer at a write, and notes it.
    #[cold]
    #[inline(never)]
    pub(crate) fn check_write(
        &mut self,
        races: &Races,
        touched: &Touched,
        sector: usize,
        address: u64,
        warp: u32,
        bytes: u32,
    ) -> Result<(), Conflict> {
        let touch = touched.sector(races, sector);
        let mine = self.record(warp, bytes);
        self.mix(races, touch, address, mine)?;
        self.after_reads(races, touch, bytes)
    }

    /// Adds a record to a sector that other blocks have written.
    fn mix(
        &mut self,
        races: &Races,
        touch: &Touch,
        address: u64,
        mine: Record,
    ) -> Result<(), Conflict> {
        let mut mixed = races.mixed(address);
        let old = touch.writes.swap(MIXED, SeqCst);
        self.first.writes += u64::from(old == 0);
        let records = mixed.entry(address).or_default();
        if old != MIXED && old != 0 {
            records.push(old);
        }
        let others = records.clone();
        let of_mine =
            |other: &&mut Record| block_of(**other) == self.block && (**other ^ mine) & ATOMIC == 0;
        match records.iter_mut().find(of_mine) {
            Some(own) => *own = merge(*own, mine),
            None => records.push(mine),
        }
        drop(mixed);
        for other in others {
            let both_atomic = other & mine & ATOMIC != 0;
            if !both_atomic {
                self.after_write(races, other, address, mine as u32)?;
            }
        }
        Ok(())
    }

    /// An error if this block's access to `bytes` is not ordered after a write.
    fn after_write(
        &mut self,
        races: &Races,
        other: Record,
        address: u64,
        bytes: u32,
    ) -> Result<(), Conflict> {
        let block = block_of(other);
        if other as u32 & bytes == 0 || block == self.block {
            return Ok(());
        }
        let atomic = other & ATOMIC != 0;
        if atomic
            && lanes_of(bytes).all(|byte| self.taken.contains(&(address + byte as u64 / 4 * 4)))
        {
            return Ok(());
        }
        let ordered = if block == MANY {
            self.knows_all(races)
        } else {
            let (time, warp) = (time_of(other), warp_of(other));
            // The last time is many: any release that reaches it may cover them.
            let before = |end: u8| time < end || end == LAST;
            let releases = self.clock(races).get(&block);
            releases.is_some_and(|releases| {
                let covers = |r: &Release| before(r.all) || r.warp == warp && before(r.own);
                releases.iter().any(covers)
            })
        };
        if ordered {
            return Ok(());
        }
        Err(Conflict {
            block: (block != MANY).then(|| block - 1),
            did: if atomic {
                "updated atomically"
            } else {
                "written"
            },
        })
    }

    /// An error if this block's write to `bytes` is not ordered after the reads of others.
    fn after_reads(&mut self, races: &Races, touch: &Touch, bytes: u32) -> Result<(), Conflict> {
        let reads = touch.reads.load(SeqCst);
        let (many, others) = match block_of(reads) {
            _ if reads == MIXED => {
                let (sectors, key) = races.readers(touch);
                let readers = sectors.get(&key);
                readers.map_or((0, Vec::new()), |r| (r.many, r.single.clone()))
            }
            MANY => (reads as u32, Vec::new()),
            block => (0, vec![(block, reads as u32)]),
        };
        if many & bytes != 0 && !self.knows_all(races) {
            return Err(Conflict {
                block: None,
                did: "read",
            });
        }
        for (block, theirs) in others {
            let mine = block == self.block || theirs & bytes == 0;
            if !mine && !self.clock(races).contains_key(&block) {
                return Err(Conflict {
                    block: Some(block - 1),
                    did: "read",
                });
            }
        }
        Ok(())
    }

    /// Whether this block has acquired something from every other block.
    fn knows_all(&mut self, races: &Races) -> bool {
        let me = self.block;
        let known = self.clock(races);
        known.len() as u64 + u64::from(!known.contains_key(&me)) >= races.blocks
    }

    /// All releases that lead to this block.
    fn clock(&mut self, races: &Races) -> &HashMap<u64, Vec<Release>> {
        self.clock.get_or_insert_with(|| {
            let tickets = lock(&races.tickets);
            let mut clock: HashMap<u64, Vec<Release>> = HashMap::new();
            // How many releases of each ticket were gone through.
            let mut done: HashMap<u64, usize> = HashMap::new();
            let mut work = self.acquired.clone();
            while let Some((ticket, count)) = work.pop() {
                let begin = std::mem::replace(done.entry(ticket).or_default(), count);
                let Some(releases) = tickets.get(&ticket).filter(|_| begin < count) else {
                    done.insert(ticket, begin.max(count));
                    continue;
                };
                for release in &releases[begin..count] {
                    work.extend(&release.acquired);
                    clock
                        .entry(release.block)
                        .or_default()
                        .push(release.clone());
                }
            }
            clock
        })
    }

    /// Runs an atomic operation on a ticket, with what it releases and acquires. `takes`: its result is used.
    pub(crate) fn ticket<T>(
        &mut self,
        races: &Races,
        address: u64,
        takes: bool,
        (warp, fenced): (u32, &Fenced),
        operation: impl FnOnce() -> T,
    ) -> T {
        if takes && self.taken.len() < MOST_TAKEN {
            self.taken.insert(address);
        }
        let (all, own) = (fenced.all.max(self.clean), fenced.own);
        let releases = all > 1 || own > 1;
        if releases {
            races.released.store(true, SeqCst);
            let mut tickets = lock(&races.tickets);
            // Under the lock, so that the list has the order of the operations.
            let result = operation();
            let list = tickets.entry(address).or_default();
            self.acquire(address, list.len());
            list.push(Release {
                block: self.block,
                warp: u64::from(warp),
                all,
                own,
                acquired: self.acquired.clone(),
            });
            return result;
        }
        let result = operation();
        if races.released.load(SeqCst) {
            let count = lock(&races.tickets).get(&address).map_or(0, Vec::len);
            self.acquire(address, count);
        }
        result
    }

    fn acquire(&mut self, address: u64, count: usize) {
        if count == 0 {
            return;
        }
        self.clock = None;
        match self
            .acquired
            .iter_mut()
            .find(|(ticket, _)| *ticket == address)
        {
            Some((_, known)) => *known = (*known).max(count),
            None => self.acquired.push((address, count)),
        }
    }
}
