//! Loads from and stores to global memory.

use std::sync::atomic::Ordering::Relaxed;

use super::memory::{Cells, Found};
use super::{Pattern, Result, lanes_of};
use crate::block::Env;
use crate::fault::{Check, Trouble};
use crate::memory::Allocation;

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
    if pattern.contiguous {
        if !a.is_range_written(offset, offset + u64::from(32 * bytes)) {
            unwritten(a, pattern, offset, bytes)?;
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
    let mut fine = true;
    for (n, (_, distance)) in pattern.leaders().enumerate() {
        let offset = offset.wrapping_add(distance);
        fine &= a.is_written(offset, bytes);
        cells[n & 31] = words_at(a, offset, bytes);
    }
    if !fine {
        unwritten(a, pattern, offset, bytes)?;
    }
    Ok(if pattern.distinct == 1 {
        Found::Same
    } else {
        Found::Leaders
    })
}

#[cold]
#[inline(never)]
fn load_scattered<const N: usize>(
    env: &Env<'_>,
    side: usize,
    first: u64,
    bytes: u32,
    cells: &mut Cells<N>,
) -> Result<Found> {
    let pattern = &env.patterns[side];
    let at = pattern.at(first);
    for lane in lanes_of(pattern.mask) {
        let (a, offset) = lane_allocation(env, at[lane], bytes, lane)?;
        check_written(a, offset, bytes, lane)?;
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
    let Some((a, offset)) = found else {
        return store_scattered(env, side, first, bytes, cells);
    };
    writable(a, first, pattern.mask.trailing_zeros() as usize)?;
    if pattern.contiguous {
        a.mark_range(offset, offset + u64::from(32 * bytes));
        if bytes >= 4 {
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
        a.mark(offset, bytes);
        put(a, offset, bytes, &cells[lane]);
    }
    Ok(())
}

#[cold]
#[inline(never)]
fn store_scattered<const N: usize>(
    env: &Env<'_>,
    side: usize,
    first: u64,
    bytes: u32,
    cells: &Cells<N>,
) -> Result<()> {
    let pattern = &env.patterns[side];
    let at = pattern.at(first);
    for lane in lanes_of(pattern.mask) {
        let (a, offset) = lane_allocation(env, at[lane], bytes, lane)?;
        writable(a, at[lane], lane)?;
        a.mark(offset, bytes);
        put(a, offset, bytes, &cells[lane]);
    }
    Ok(())
}
