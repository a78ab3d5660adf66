//! Loads from and stores to global memory.

use std::sync::atomic::Ordering::Relaxed;

use super::memory::{Cells, Found};
use super::{Pattern, Result, lanes_of};
use crate::block::{Env, Launch, Warp};
use crate::fault::{Check, Trouble};
use crate::memory::Allocation;
use crate::races::{BlockRaces, Conflict, SECTOR};

/// The allocation that an access of all lanes lies in, and the first lane's offset in it; `None` if they lie in
/// several.
#[inline(always)]
fn allocation<'g>(
    env: &mut Env<'g>,
    side: usize,
    first: u64,
) -> Result<Option<(&'g Allocation, u64)>> {
    let global = env.launch.global;
    let pattern = &mut env.patterns[side];
    if let Some((low, end)) = pattern.range(first) {
        let inside = |a: &Allocation| low >= a.base && end - a.base <= a.bytes;
        if let Some(a) = global
            .allocations
            .get(pattern.allocation)
            .filter(|a| inside(a))
        {
            return Ok(Some((a, first - a.base)));
        }
        if let Some(index) = global.find(low)
            && inside(&global.allocations[index])
        {
            pattern.allocation = index;
            let a = &global.allocations[index];
            return Ok(Some((a, first - a.base)));
        }
    }
    outside(env, side, first)
}

/// Says which lane is out of bounds; if none is, the lanes access several allocations.
#[cold]
#[inline(never)]
fn outside<'g>(env: &Env<'g>, side: usize, first: u64) -> Result<Option<(&'g Allocation, u64)>> {
    let pattern = &env.patterns[side];
    let at = pattern.at(first);
    for lane in lanes_of(pattern.mask) {
        lane_allocation(env, at[lane], pattern.bytes(), lane)?;
    }
    Ok(None)
}

/// The allocation that one lane's access lies in, and its offset.
pub(super) fn lane_allocation<'g>(
    env: &Env<'g>,
    address: u64,
    bytes: u32,
    lane: usize,
) -> Result<(&'g Allocation, u64)> {
    let global = env.launch.global;
    if let Some(index) = global.find(address) {
        let a = &global.allocations[index];
        if a.bytes - (address - a.base) >= u64::from(bytes) {
            return Ok((a, address - a.base));
        }
    }
    Err(Trouble::at(
        Check::OutOfBounds,
        lane,
        address,
        format!(
            "{bytes} bytes of global memory: {}",
            global.explain(address)
        ),
    ))
}

/// An error if one lane's bytes were not all written.
pub(super) fn check_written(a: &Allocation, offset: u64, bytes: u32, lane: usize) -> Result<()> {
    if a.is_range_written(offset, offset + u64::from(bytes)) {
        return Ok(());
    }
    let name = a
        .name
        .as_deref()
        .map_or(String::new(), |n| format!(" ({n})"));
    Err(Trouble::at(
        Check::Uninitialised,
        lane,
        a.base + offset,
        format!(
            "{bytes} bytes at byte {offset} of the allocation{name} of {} bytes, where nothing has written all of them",
            a.bytes
        ),
    ))
}

#[cold]
#[inline(never)]
fn unwritten(a: &Allocation, pattern: &Pattern, offset: u64, bytes: u32) -> Result<()> {
    for lane in lanes_of(pattern.mask) {
        let offset = offset.wrapping_add(pattern.distances[lane]);
        check_written(a, offset, bytes, lane)?;
    }
    Ok(())
}

/// The bytes of an aligned access in its sector.
#[inline(always)]
pub(super) fn byte_mask(offset: u64, bytes: u32) -> u32 {
    (u32::MAX >> (32 - bytes)) << (offset % SECTOR)
}

/// What is said of an access that conflicts with another block's.
pub(super) fn conflict(
    launch: &Launch<'_>,
    found: &Conflict,
    does: &str,
    address: u64,
    bytes: u32,
    lane: usize,
) -> Box<Trouble> {
    let who = match found.block {
        Some(block) => {
            let [x, y, z] = launch.block_at(block);
            format!("block ({x}, {y}, {z}) has")
        }
        None => "several blocks have".to_owned(),
    };
    let did = found.did;
    Trouble::at(
        Check::GlobalRace,
        lane,
        address,
        format!(
            "the thread {does} {bytes} bytes that {who} {did}; no fence and later atomic operation, met by one of this \
             block, order the two"
        ),
    )
}

/// Notes one lane's read for the check of races between blocks.
pub(super) fn note_read(
    (launch, races): (&Launch<'_>, &mut BlockRaces),
    a: &Allocation,
    offset: u64,
    bytes: u32,
    lane: usize,
) -> Result<()> {
    for (sector, mask) in Allocation::masks(offset, offset + u64::from(bytes)) {
        if !races.read(&launch.races, &a.touched, sector, mask) {
            let begin = a.base + SECTOR * sector as u64;
            let checked = races.check_read(&launch.races, &a.touched, sector, begin, mask);
            if let Err(found) = checked {
                let address = a.base + offset;
                return Err(conflict(launch, &found, "reads", address, bytes, lane));
            }
        }
    }
    Ok(())
}

/// Looks at every lane, after the quick check of a read has failed.
#[cold]
#[inline(never)]
fn check_reads(env: &mut Env<'_>, side: usize, a: &Allocation, offset: u64) -> Result<()> {
    let pattern = &env.patterns[side];
    for lane in lanes_of(pattern.mask) {
        let offset = offset.wrapping_add(pattern.distances[lane]);
        note_read(
            (env.launch, &mut env.races),
            a,
            offset,
            pattern.bytes(),
            lane,
        )?;
    }
    Ok(())
}

/// Notes one lane's write for the check of races between blocks. A store of what is there already is no race.
fn note_write<const N: usize>(
    (launch, races): (&Launch<'_>, &mut BlockRaces),
    warp: u32,
    (a, offset): (&Allocation, u64),
    bytes: u32,
    lane: usize,
    words: &[u32; N],
) -> Result<()> {
    let (sector, mask) = ((offset / SECTOR) as usize, byte_mask(offset, bytes));
    if races.write(&launch.races, &a.touched, sector, warp, mask) {
        return Ok(());
    }
    let begin = a.base + SECTOR * sector as u64;
    let checked = races.check_write(&launch.races, &a.touched, sector, begin, warp, mask);
    match checked {
        Err(found) if found.did == "read" || words_at(a, offset, bytes) != *words => {
            let address = a.base + offset;
            Err(conflict(launch, &found, "writes", address, bytes, lane))
        }
        _ => Ok(()),
    }
}

#[inline(always)]
fn words_at<const N: usize>(a: &Allocation, offset: u64, bytes: u32) -> [u32; N] {
    let mut words = [0; N];
    if N == 1 && bytes < 4 {
        words[0] = a.load_small(offset, bytes);
        return words;
    }
    let first = (offset / 4) as usize;
    for (word, source) in words.iter_mut().zip(&a.words[first..first + N]) {
        *word = source.load(Relaxed);
    }
    words
}

#[inline(always)]
pub(super) fn load_global<const N: usize>(
    env: &mut Env<'_>,
    side: usize,
    first: u64,
    bytes: u32,
    cells: &mut Cells<N>,
) -> Result<Found> {
    let found = allocation(env, side, first)?;
    let pattern = &env.patterns[side];
    let counters = &mut env.counters;
    counters.global_load_requests += 1;
    counters.global_load_bytes += u64::from(pattern.mask.count_ones() * bytes);
    counters.global_load_sectors += pattern.sectors(first);
    let Some((a, offset)) = found else {
        return load_scattered(env, side, first, bytes, cells);
    };
    let launch = env.launch;
    if pattern.contiguous {
        let end = offset + u64::from(32 * bytes);
        if !a.is_range_written(offset, end) {
            unwritten(a, pattern, offset, bytes)?;
        }
        let mut alone = true;
        for (sector, mask) in Allocation::masks(offset, end) {
            alone &= env.races.read(&launch.races, &a.touched, sector, mask);
        }
        if !alone {
            check_reads(env, side, a, offset)?;
        }
        if bytes >= 4 {
            let start = (offset / 4) as usize;
            let source = a.words[start..start + 32 * N].as_chunks::<N>().0;
            for (cell, source) in cells.iter_mut().zip(source) {
                *cell = std::array::from_fn(|k| source[k].load(Relaxed));
            }
            return Ok(Found::Each);
        }
    }
    let pattern = &env.patterns[side];
    let (mut fine, mut alone) = (true, true);
    for (n, (_, distance)) in pattern.leaders().enumerate() {
        let offset = offset.wrapping_add(distance);
        fine &= a.is_written(offset, bytes);
        let (sector, mask) = ((offset / SECTOR) as usize, byte_mask(offset, bytes));
        alone &= env.races.read(&launch.races, &a.touched, sector, mask);
        cells[n & 31] = words_at(a, offset, bytes);
    }
    if !fine {
        unwritten(a, pattern, offset, bytes)?;
    }
    if !alone {
        check_reads(env, side, a, offset)?;
    }
    let pattern = &env.patterns[side];
    Ok(if pattern.distinct == 1 {
        Found::Same
    } else {
        Found::Leaders
    })
}

#[cold]
#[inline(never)]
fn load_scattered<const N: usize>(
    env: &mut Env<'_>,
    side: usize,
    first: u64,
    bytes: u32,
    cells: &mut Cells<N>,
) -> Result<Found> {
    let pattern = &env.patterns[side];
    let (mask, at) = (pattern.mask, pattern.at(first));
    for lane in lanes_of(mask) {
        let (a, offset) = lane_allocation(env, at[lane], bytes, lane)?;
        check_written(a, offset, bytes, lane)?;
        note_read((env.launch, &mut env.races), a, offset, bytes, lane)?;
        cells[lane] = words_at(a, offset, bytes);
    }
    Ok(Found::Each)
}

fn writable(a: &Allocation, address: u64, lane: usize) -> Result<()> {
    if !a.read_only {
        return Ok(());
    }
    Err(Trouble::at(
        Check::ReadOnly,
        lane,
        address,
        format!("{} is constant", a.name.as_deref().unwrap_or("this memory")),
    ))
}

#[inline(always)]
fn put<const N: usize>(a: &Allocation, offset: u64, bytes: u32, words: &[u32; N]) {
    if N == 1 && bytes < 4 {
        a.store_small(offset, bytes, words[0]);
        return;
    }
    let first = (offset / 4) as usize;
    for (target, &word) in a.words[first..first + N].iter().zip(words) {
        target.store(word, Relaxed);
    }
}

#[inline(always)]
pub(super) fn store_global<const N: usize>(
    env: &mut Env<'_>,
    warp: &mut Warp,
    side: usize,
    first: u64,
    bytes: u32,
    cells: &Cells<N>,
) -> Result<()> {
    let found = allocation(env, side, first)?;
    let pattern = &env.patterns[side];
    let counters = &mut env.counters;
    counters.global_store_requests += 1;
    counters.global_store_bytes += u64::from(pattern.mask.count_ones() * bytes);
    counters.global_store_sectors += pattern.sectors(first);
    env.races
        .writing(warp.index, &mut warp.fenced, pattern.mask);
    let Some((a, offset)) = found else {
        return store_scattered(env, warp.index, side, first, bytes, cells);
    };
    writable(a, first, pattern.mask.trailing_zeros() as usize)?;
    let launch = env.launch;
    if pattern.contiguous {
        let end = offset + u64::from(32 * bytes);
        let mut alone = true;
        for (sector, mask) in Allocation::masks(offset, end) {
            alone &= env
                .races
                .write(&launch.races, &a.touched, sector, warp.index, mask);
        }
        if alone && bytes >= 4 {
            a.mark_range(offset, end);
            let start = (offset / 4) as usize;
            let targets = a.words[start..start + 32 * N].as_chunks::<N>().0;
            for (target, cell) in targets.iter().zip(cells) {
                for (target, &word) in target.iter().zip(cell) {
                    target.store(word, Relaxed);
                }
            }
            return Ok(());
        }
    }
    for lane in lanes_of(pattern.mask) {
        let offset = offset.wrapping_add(pattern.distances[lane]);
        let races = (launch, &mut env.races);
        note_write(races, warp.index, (a, offset), bytes, lane, &cells[lane])?;
        a.mark(offset, bytes);
        put(a, offset, bytes, &cells[lane]);
    }
    Ok(())
}

#[cold]
#[inline(never)]
fn store_scattered<const N: usize>(
    env: &mut Env<'_>,
    warp: u32,
    side: usize,
    first: u64,
    bytes: u32,
    cells: &Cells<N>,
) -> Result<()> {
    let pattern = &env.patterns[side];
    let (mask, at) = (pattern.mask, pattern.at(first));
    for lane in lanes_of(mask) {
        let (a, offset) = lane_allocation(env, at[lane], bytes, lane)?;
        writable(a, at[lane], lane)?;
        let races = (env.launch, &mut env.races);
        note_write(races, warp, (a, offset), bytes, lane, &cells[lane])?;
        a.mark(offset, bytes);
        put(a, offset, bytes, &cells[lane]);
    }
    Ok(())
}
