//! Loads and stores: addresses to a pattern, the pattern to a memory, words to registers.
//!
//! Between memory and registers an access's data is `N` words of each lane, one after the other: the cells.

use super::global::{load_global, store_global};
use super::private::{load_local, load_parameters, store_local};
use super::{ALL, Pattern, Result, lanes_of, set_value, value};
use crate::block::{Env, Warp};
use crate::fault::{Check, Trouble};
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES, window_of};
use crate::program::{Access, Reg, SideKind, Space};
use crate::row::{Row, transpose};
use crate::shared::Shared;

/// `N` words of each lane.
pub(super) type Cells<const N: usize> = [[u32; N]; 32];

/// What a load found.
pub(super) enum Found {
    /// The same for all lanes: cell 0.
    Same,
    /// Cell n belongs to the pattern's leader n and those who follow it.
    Leaders,
    /// Each lane has its cell.
    Each,
}

/// A load: `side` is its number in the program.
#[inline(always)]
pub(super) fn load(env: &mut Env<'_>, warp: &mut Warp, side: usize, mask: u32) -> Result<()> {
    let SideKind::Access(access) = env.launch.program.sides[side].kind else {
        return Ok(());
    };
    match access.bytes * access.count {
        16 => load_words::<4>(env, warp, side, access, mask),
        8 => load_words::<2>(env, warp, side, access, mask),
        32 => load_words::<8>(env, warp, side, access, mask),
        _ => load_words::<1>(env, warp, side, access, mask),
    }
}

#[inline(always)]
fn load_words<const N: usize>(
    env: &mut Env<'_>,
    warp: &mut Warp,
    side: usize,
    access: Access,
    mask: u32,
) -> Result<()> {
    let program = env.launch.program;
    let bytes = access.bytes * access.count;
    let base = program.sides[side].src.first().copied();
    let first = env.patterns[side].locate(warp, base, access.offset, mask, bytes);
    env.patterns[side].check_alignment(first)?;
    let mut cells = [[0; N]; 32];
    let found = match access.space {
        Space::Shared => load_shared(env, warp, side, first, bytes, &mut cells)?,
        Space::Global => load_global(env, side, first, bytes, &mut cells)?,
        Space::Param => {
            load_parameters(env, &env.patterns[side].at(first), bytes, mask, &mut cells)?
        }
        Space::Local => load_local(warp, &env.patterns[side].at(first), bytes, mask, &mut cells)?,
        Space::Generic => {
            let at = env.patterns[side].at(first);
            load_generic(env, warp, side, &at, bytes, mask, &mut cells)?
        }
    };
    let dst = &program.sides[side].dst;
    deliver(
        warp,
        access,
        dst,
        &env.patterns[side],
        mask,
        &mut cells,
        found,
    );
    Ok(())
}

/// Puts cells into registers.
#[inline(always)]
fn deliver<const N: usize>(
    warp: &mut Warp,
    access: Access,
    dst: &[Reg],
    pattern: &Pattern,
    mask: u32,
    cells: &mut Cells<N>,
    found: Found,
) {
    let words = access.plain && dst.len() == N;
    match found {
        Found::Same if words => {
            for (k, reg) in dst.iter().enumerate() {
                let row = &mut warp.r32[reg.index as usize];
                let same = Row([[cells[0][k]; 8]; 4]);
                if mask == ALL {
                    *row = same;
                } else {
                    merge(row, &same, mask);
                }
            }
        }
        Found::Leaders if words && mask == ALL => {
            deliver_words(warp, dst, cells, |lane| pattern.leader_of(lane));
        }
        Found::Each if words && mask == ALL => deliver_words(warp, dst, cells, |lane| lane),
        _ => {
            match found {
                Found::Same => *cells = [cells[0]; 32],
                Found::Leaders => {
                    let leaders = *cells;
                    for (lane, cell) in cells.iter_mut().enumerate() {
                        *cell = leaders[pattern.leader_of(lane)];
                    }
                }
                Found::Each => {}
            }
            if words {
                for (k, reg) in dst.iter().enumerate() {
                    let mut word = Row::ZERO;
                    for (to, cell) in word.lanes_mut().iter_mut().zip(&*cells) {
                        *to = cell[k];
                    }
                    merge(&mut warp.r32[reg.index as usize], &word, mask);
                }
            } else {
                deliver_other(warp, access, dst, mask, cells);
            }
        }
    }
}

/// Cells of words into 32-bit registers of all lanes.
#[inline(always)]
fn deliver_words<const N: usize>(
    warp: &mut Warp,
    dst: &[Reg],
    cells: &Cells<N>,
    cell_of: impl Fn(usize) -> usize,
) {
    if N == 4
        && let [a, b, c, d] = dst
    {
        let rows = [a, b, c, d].map(|reg| reg.index as usize);
        for quad in 0..8 {
            let block: [[u32; 4]; 4] = std::array::from_fn(|j| {
                let cell = &cells[cell_of(4 * quad + j) & 31];
                std::array::from_fn(|k| cell[k % N])
            });
            for (row, part) in rows.into_iter().zip(transpose(block)) {
                *warp.r32[row].quad_mut(quad) = part;
            }
        }
        return;
    }
    for (k, reg) in dst.iter().enumerate() {
        let row = warp.r32[reg.index as usize].lanes_mut();
        for (lane, to) in row.iter_mut().enumerate() {
            *to = cells[cell_of(lane) & 31][k];
        }
    }
}

#[inline(always)]
fn merge(row: &mut Row, word: &Row, mask: u32) {
    for (lane, (old, &new)) in row.lanes_mut().iter_mut().zip(word.lanes()).enumerate() {
        let chosen = 0u32.wrapping_sub(mask >> lane & 1);
        *old = (*old & !chosen) | (new & chosen);
    }
}

#[inline(never)]
fn deliver_other<const N: usize>(
    warp: &mut Warp,
    access: Access,
    dst: &[Reg],
    mask: u32,
    cells: &Cells<N>,
) {
    let bits = 8 * access.bytes;
    for (n, &reg) in dst.iter().enumerate() {
        for lane in lanes_of(mask) {
            let cell = &cells[lane];
            let element = match access.bytes {
                8 => u64::from(cell[2 * n]) | u64::from(cell[2 * n + 1]) << 32,
                4 => u64::from(cell[n]),
                _ => {
                    let first = bits * n as u32;
                    u64::from(cell[first as usize / 32] >> (first % 32)) & ((1 << bits) - 1)
                }
            };
            let element = if access.extend > 0 {
                let shift = 64 - bits;
                let extended = ((element << shift) as i64 >> shift) as u64;
                extended & (u64::MAX >> (64 - 8 * access.extend))
            } else {
                element
            };
            set_value(warp, reg, lane, element);
        }
    }
}

/// A store.
#[inline(always)]
pub(super) fn store(env: &mut Env<'_>, warp: &mut Warp, side: usize, mask: u32) -> Result<()> {
    let SideKind::Access(access) = env.launch.program.sides[side].kind else {
        return Ok(());
    };
    match access.bytes * access.count {
        16 => store_words::<4>(env, warp, side, access, mask),
        8 => store_words::<2>(env, warp, side, access, mask),
        32 => store_words::<8>(env, warp, side, access, mask),
        _ => store_words::<1>(env, warp, side, access, mask),
    }
}

#[inline(always)]
fn store_words<const N: usize>(
    env: &mut Env<'_>,
    warp: &mut Warp,
    side: usize,
    access: Access,
    mask: u32,
) -> Result<()> {
    let program = env.launch.program;
    let bytes = access.bytes * access.count;
    let src = &program.sides[side].src;
    let base = src.first().copied().filter(|_| access.based);
    let first = env.patterns[side].locate(warp, base, access.offset, mask, bytes);
    env.patterns[side].check_alignment(first)?;
    let cells: Cells<N> = collect(warp, access, &src[usize::from(access.based)..]);
    match access.space {
        Space::Shared => store_shared(env, warp, side, first, bytes, &cells),
        Space::Global => store_global(env, warp, side, first, bytes, &cells),
        Space::Local => {
            let at = env.patterns[side].at(first);
            store_local(warp, &at, bytes, mask, &cells)
        }
        Space::Param | Space::Generic => {
            let at = env.patterns[side].at(first);
            store_generic(env, warp, side, &at, bytes, mask, &cells)
        }
    }
}

/// Takes the words to store from registers.
#[inline(always)]
fn collect<const N: usize>(warp: &Warp, access: Access, src: &[Reg]) -> Cells<N> {
    let mut cells = [[0; N]; 32];
    if access.plain {
        for (k, reg) in src.iter().enumerate().take(N) {
            let row = warp.r32[reg.index as usize].lanes();
            for (cell, &word) in cells.iter_mut().zip(row) {
                cell[k] = word;
            }
        }
        return cells;
    }
    collect_other(warp, access, src, &mut cells);
    cells
}

#[inline(never)]
fn collect_other<const N: usize>(warp: &Warp, access: Access, src: &[Reg], cells: &mut Cells<N>) {
    let bits = 8 * access.bytes;
    for (n, &reg) in src.iter().enumerate() {
        for (lane, cell) in cells.iter_mut().enumerate() {
            let element = value(warp, reg, lane);
            match access.bytes {
                8 => {
                    cell[2 * n] = element as u32;
                    cell[2 * n + 1] = (element >> 32) as u32;
                }
                4 => cell[n] = element as u32,
                _ => {
                    let first = bits * n as u32;
                    let part = (element as u32 & ((1 << bits) - 1)) << (first % 32);
                    cell[first as usize / 32] |= part;
                }
            }
        }
    }
}

/// An error if the lanes' accesses do not all lie in the block's shared memory.
#[inline(always)]
pub(super) fn check_shared(env: &Env<'_>, pattern: &Pattern, first: u64) -> Result<()> {
    let size = u64::from(env.shared.bytes());
    match pattern.range(first) {
        Some((_, end)) if end <= size => Ok(()),
        _ => Err(beyond_shared(pattern, first, size)),
    }
}

#[cold]
#[inline(never)]
fn beyond_shared(pattern: &Pattern, first: u64, size: u64) -> Box<Trouble> {
    let at = pattern.at(first);
    let bytes = pattern.bytes();
    let lane = lanes_of(pattern.mask)
        .find(|&lane| at[lane] >= size || at[lane] + u64::from(bytes) > size)
        .unwrap_or(0);
    Trouble::at(
        Check::OutOfBounds,
        lane,
        at[lane],
        format!(
            "{bytes} bytes at offset {} of shared memory, of which the block has {size} bytes",
            at[lane] as i64
        ),
    )
}

#[inline(always)]
fn load_shared<const N: usize>(
    env: &mut Env<'_>,
    warp: &Warp,
    side: usize,
    first: u64,
    bytes: u32,
    cells: &mut Cells<N>,
) -> Result<Found> {
    check_shared(env, &env.patterns[side], first)?;
    let who = env.shared.who(warp.index, warp.sync_epoch);
    let Env {
        patterns,
        shared,
        counters,
        ..
    } = env;
    let pattern = &patterns[side];
    counters.shared_load_wavefronts += u64::from(pattern.wavefronts);
    let first = first as u32;
    if !shared.is_word_grained() || bytes < 4 {
        for lane in lanes_of(pattern.mask) {
            let offset = first.wrapping_add(pattern.distances[lane] as u32);
            shared.read(offset, bytes, who, lane)?;
            cells[lane].copy_from_slice(&shared.fetch(offset, bytes)[..N]);
        }
        return Ok(Found::Each);
    }
    let mut fine = true;
    for (n, (lane, distance)) in pattern.leaders().enumerate() {
        let offset = first.wrapping_add(distance as u32);
        let reader = if pattern.several >> n & 1 != 0 {
            Shared::MANY_LANES
        } else {
            lane as u32
        };
        fine &= shared.read_words(offset, who, reader, &mut cells[n & 31]);
    }
    if !fine {
        explain_shared(shared, pattern, first, bytes, who)?;
    }
    Ok(if pattern.distinct == 1 {
        Found::Same
    } else {
        Found::Leaders
    })
}

/// The exact check of each lane, after the summary one has failed.
#[cold]
#[inline(never)]
fn explain_shared(
    shared: &mut Shared,
    pattern: &Pattern,
    first: u32,
    bytes: u32,
    who: crate::shared::Who,
) -> Result<()> {
    for lane in lanes_of(pattern.mask) {
        let offset = first.wrapping_add(pattern.distances[lane] as u32);
        shared.read(offset, bytes, who, lane)?;
    }
    Ok(())
}

#[inline(always)]
fn store_shared<const N: usize>(
    env: &mut Env<'_>,
    warp: &Warp,
    side: usize,
    first: u64,
    bytes: u32,
    cells: &Cells<N>,
) -> Result<()> {
    check_shared(env, &env.patterns[side], first)?;
    let who = env.shared.who(warp.index, warp.sync_epoch);
    let Env {
        patterns,
        shared,
        counters,
        ..
    } = env;
    let pattern = &patterns[side];
    counters.shared_store_wavefronts += u64::from(pattern.wavefronts);
    if pattern.several != 0 {
        same_values(pattern, first, cells)?;
    }
    let first = first as u32;
    let quick = shared.is_word_grained() && bytes >= 4;
    for (lane, distance) in pattern.leaders() {
        let offset = first.wrapping_add(distance as u32);
        let words = &cells[lane];
        if quick && shared.write_words(offset, who, lane, words)
            || shared.repeats(offset, bytes, who, lane, words)
        {
            continue;
        }
        shared.claim(offset, bytes, who, lane)?;
        shared.put(offset, bytes, words);
    }
    Ok(())
}

/// Lanes that store to one address in one instruction must store the same.
#[cold]
#[inline(never)]
fn same_values<const N: usize>(pattern: &Pattern, first: u64, cells: &Cells<N>) -> Result<()> {
    let leaders: Vec<usize> = pattern.leaders().map(|(lane, _)| lane).collect();
    for lane in lanes_of(pattern.mask) {
        let other = leaders[pattern.leader_of(lane)];
        if cells[lane] != cells[other] {
            let offset = first.wrapping_add(pattern.distances[lane]);
            return Err(Trouble::at(
                Check::SharedRace,
                lane,
                offset,
                format!(
                    "lanes {other} and {lane} store different values to shared offset {offset} in one instruction"
                ),
            ));
        }
    }
    Ok(())
}

/// The lanes of `mask` whose generic addresses lie in each window: (window, lanes).
pub(super) fn by_window(at: &[u64; 32], mask: u32) -> [(u32, u32); 4] {
    let mut parts = [
        (0, 0),
        (SHARED_WINDOW, 0),
        (LOCAL_WINDOW, 0),
        (PARAM_WINDOW, 0),
    ];
    for lane in lanes_of(mask) {
        parts[window_of(at[lane]) as usize].1 |= 1 << lane;
    }
    parts
}

/// Addresses within a window; lanes outside the mask get the first one's.
pub(super) fn within(at: &[u64; 32], window: u32, mask: u32) -> [u64; 32] {
    let base = u64::from(window) * WINDOW_BYTES;
    let first = at[mask.trailing_zeros() as usize & 31] - base;
    std::array::from_fn(|lane| {
        if mask >> lane & 1 != 0 {
            at[lane] - base
        } else {
            first
        }
    })
}

#[inline(never)]
fn load_generic<const N: usize>(
    env: &mut Env<'_>,
    warp: &Warp,
    side: usize,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    cells: &mut Cells<N>,
) -> Result<Found> {
    for (window, lanes) in by_window(at, mask) {
        if lanes == 0 {
            continue;
        }
        let at = within(at, window, lanes);
        let first = env.patterns[side].update(&at, lanes, bytes);
        let mut part = [[0; N]; 32];
        let found = match window {
            SHARED_WINDOW => load_shared(env, warp, side, first, bytes, &mut part)?,
            LOCAL_WINDOW => load_local(warp, &at, bytes, lanes, &mut part)?,
            PARAM_WINDOW => load_parameters(env, &at, bytes, lanes, &mut part)?,
            _ => load_global(env, side, first, bytes, &mut part)?,
        };
        for lane in lanes_of(lanes) {
            cells[lane] = match found {
                Found::Same => part[0],
                Found::Leaders => part[env.patterns[side].leader_of(lane)],
                Found::Each => part[lane],
            };
        }
    }
    Ok(Found::Each)
}

#[inline(never)]
fn store_generic<const N: usize>(
    env: &mut Env<'_>,
    warp: &mut Warp,
    side: usize,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    cells: &Cells<N>,
) -> Result<()> {
    for (window, lanes) in by_window(at, mask) {
        if lanes == 0 {
            continue;
        }
        let at = within(at, window, lanes);
        let first = env.patterns[side].update(&at, lanes, bytes);
        match window {
            SHARED_WINDOW => store_shared(env, warp, side, first, bytes, cells)?,
            LOCAL_WINDOW => store_local(warp, &at, bytes, lanes, cells)?,
            PARAM_WINDOW => {
                let lane = lanes.trailing_zeros() as usize;
                return Err(Trouble::at(
                    Check::ReadOnly,
                    lane,
                    at[lane],
                    "the parameters of a kernel are constant".to_owned(),
                ));
            }
            _ => store_global(env, warp, side, first, bytes, cells)?,
        }
    }
    Ok(())
}
