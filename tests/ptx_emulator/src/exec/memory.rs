//! Loads and stores.

use std::sync::atomic::Ordering::Relaxed;

use super::{ALL, Result, address, lanes_of, value};
use crate::block::{Env, Warp};
use crate::fault::{Check, Trouble};
use crate::memory::{
    Allocation, LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES, window_of,
};
use crate::program::{Access, File, Reg, SideKind, Space};
use crate::row::Row;
use crate::shared::Shared;

/// Words of each lane: the access's words are rows.
type Words = [Row; 8];

/// The addresses of all lanes. Lanes outside the mask get the first one's, so that they disturb no check.
#[inline(always)]
pub(super) fn addresses(warp: &Warp, base: Option<Reg>, offset: i64, mask: u32) -> [u64; 32] {
    let offset = offset as u64;
    let mut out = match base {
        None => [offset; 32],
        Some(Reg {
            file: File::R64,
            index,
        }) => {
            let row = warp.r64[index as usize].lanes();
            let mut out = *row;
            for address in &mut out {
                *address = address.wrapping_add(offset);
            }
            out
        }
        Some(Reg { index, .. }) => {
            let row = warp.r32[index as usize].lanes();
            let mut out = [0; 32];
            for (address, &low) in out.iter_mut().zip(row) {
                *address = u64::from(low).wrapping_add(offset);
            }
            out
        }
    };
    if mask != ALL {
        let first = out[mask.trailing_zeros() as usize & 31];
        for (lane, address) in out.iter_mut().enumerate() {
            if mask >> lane & 1 == 0 {
                *address = first;
            }
        }
    }
    out
}

#[cold]
#[inline(never)]
fn misaligned(addresses: &[u64; 32], mask: u32, bytes: u32) -> Box<Trouble> {
    let lane = lanes_of(mask)
        .find(|&lane| !addresses[lane].is_multiple_of(u64::from(bytes)))
        .unwrap_or(0);
    Trouble::at(
        Check::Misaligned,
        lane,
        addresses[lane],
        format!(
            "an access of {bytes} bytes needs an address that is a multiple of {bytes}, and this one is {} above",
            addresses[lane] % u64::from(bytes)
        ),
    )
}

#[inline(always)]
pub(super) fn check_alignment(addresses: &[u64; 32], mask: u32, bytes: u32) -> Result<()> {
    let all = addresses.iter().fold(0, |all, &address| all | address);
    if all & u64::from(bytes - 1) != 0 {
        return Err(misaligned(addresses, mask, bytes));
    }
    Ok(())
}

/// A load: `side` is its number in the program.
#[inline(always)]
pub(super) fn load(env: &mut Env<'_>, warp: &mut Warp, side: usize, mask: u32) -> Result<()> {
    let program = env.launch.program;
    let SideKind::Access(access) = program.sides[side].kind else {
        return Ok(());
    };
    let side_ref = &program.sides[side];
    let base = side_ref.src.first().copied();
    let at = addresses(warp, base, access.offset, mask);
    let bytes = access.bytes * access.count;
    check_alignment(&at, mask, bytes)?;
    let mut words: Words = [Row::ZERO; 8];
    match access.space {
        Space::Shared => load_shared(env, warp, side, &at, bytes, mask, &mut words)?,
        Space::Global => load_global(env, &at, bytes, mask, &mut words)?,
        Space::Param => load_parameters(env, &at, bytes, mask, &mut words)?,
        Space::Local => load_local(warp, &at, bytes, mask, &mut words)?,
        Space::Generic => load_generic(env, warp, side, &at, bytes, mask, &mut words)?,
    }
    deliver(warp, access, &side_ref.dst, mask, &words);
    Ok(())
}

/// Puts loaded words into registers.
#[inline(always)]
fn deliver(warp: &mut Warp, access: Access, dst: &[Reg], mask: u32, words: &Words) {
    if access.bytes == 4 && access.extend == 0 && dst.iter().all(|reg| reg.file == File::R32) {
        for (reg, word) in dst.iter().zip(words) {
            let row = &mut warp.r32[reg.index as usize];
            if mask == ALL {
                *row = *word;
            } else {
                merge(row, word, mask);
            }
        }
        return;
    }
    deliver_other(warp, access, dst, mask, words);
}

#[inline(always)]
fn merge(row: &mut Row, word: &Row, mask: u32) {
    for (lane, (old, &new)) in row.lanes_mut().iter_mut().zip(word.lanes()).enumerate() {
        let chosen = 0u32.wrapping_sub(mask >> lane & 1);
        *old = (*old & !chosen) | (new & chosen);
    }
}

#[inline(never)]
fn deliver_other(warp: &mut Warp, access: Access, dst: &[Reg], mask: u32, words: &Words) {
    let bits = 8 * access.bytes;
    for (n, &reg) in dst.iter().enumerate() {
        for lane in lanes_of(mask) {
            let element = match access.bytes {
                8 => {
                    let low = words[2 * n].lanes()[lane];
                    let high = words[2 * n + 1].lanes()[lane];
                    u64::from(low) | u64::from(high) << 32
                }
                4 => u64::from(words[n].lanes()[lane]),
                _ => {
                    let first = bits * n as u32;
                    let word = words[first as usize / 32].lanes()[lane];
                    u64::from(word >> (first % 32)) & ((1 << bits) - 1)
                }
            };
            let element = if access.extend > 0 {
                let shift = 64 - bits;
                let extended = ((element << shift) as i64 >> shift) as u64;
                extended & (u64::MAX >> (64 - 8 * access.extend))
            } else {
                element
            };
            super::set_value(warp, reg, lane, element);
        }
    }
}

/// A store.
#[inline(always)]
pub(super) fn store(env: &mut Env<'_>, warp: &mut Warp, side: usize, mask: u32) -> Result<()> {
    let program = env.launch.program;
    let SideKind::Access(access) = program.sides[side].kind else {
        return Ok(());
    };
    let side_ref = &program.sides[side];
    let based = usize::from(access.based);
    let base = side_ref.src.first().copied().filter(|_| access.based);
    let at = addresses(warp, base, access.offset, mask);
    let bytes = access.bytes * access.count;
    check_alignment(&at, mask, bytes)?;
    let mut words: Words = [Row::ZERO; 8];
    collect(warp, access, &side_ref.src[based..], &mut words);
    match access.space {
        Space::Shared => store_shared(env, warp, side, &at, bytes, mask, &words),
        Space::Global => store_global(env, &at, bytes, mask, &words),
        Space::Local => store_local(warp, &at, bytes, mask, &words),
        Space::Param | Space::Generic => store_generic(env, warp, side, &at, bytes, mask, &words),
    }
}

/// Takes the words to store from registers.
#[inline(always)]
fn collect(warp: &Warp, access: Access, src: &[Reg], words: &mut Words) {
    if access.bytes == 4 && src.iter().all(|reg| reg.file == File::R32) {
        for (word, reg) in words.iter_mut().zip(src) {
            *word = warp.r32[reg.index as usize];
        }
        return;
    }
    collect_other(warp, access, src, words);
}

#[inline(never)]
fn collect_other(warp: &Warp, access: Access, src: &[Reg], words: &mut Words) {
    let bits = 8 * access.bytes;
    for (n, &reg) in src.iter().enumerate() {
        for lane in 0..32 {
            let element = value(warp, reg, lane);
            match access.bytes {
                8 => {
                    words[2 * n].lanes_mut()[lane] = element as u32;
                    words[2 * n + 1].lanes_mut()[lane] = (element >> 32) as u32;
                }
                4 => words[n].lanes_mut()[lane] = element as u32,
                _ => {
                    let first = bits * n as u32;
                    let part = (element as u32 & ((1 << bits) - 1)) << (first % 32);
                    words[first as usize / 32].lanes_mut()[lane] |= part;
                }
            }
        }
    }
}

/// The allocation that all lanes access, and their offsets in it.
#[inline(always)]
fn allocation<'g>(
    env: &Env<'g>,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
) -> Result<(&'g Allocation, [u64; 32])> {
    let global = env.launch.global;
    let (mut low, mut high) = (u64::MAX, 0);
    for &address in at {
        low = low.min(address);
        high = high.max(address);
    }
    if let Some(index) = global.find(low) {
        let allocation = &global.allocations[index];
        if high - allocation.base + u64::from(bytes) <= allocation.bytes {
            let mut offsets = *at;
            for offset in &mut offsets {
                *offset -= allocation.base;
            }
            return Ok((allocation, offsets));
        }
    }
    Err(outside(env, at, bytes, mask))
}

/// Says which lane is out of bounds; if none is, the lanes access several allocations, and the caller goes lane by lane.
#[cold]
#[inline(never)]
fn outside(env: &Env<'_>, at: &[u64; 32], bytes: u32, mask: u32) -> Box<Trouble> {
    let global = env.launch.global;
    for lane in lanes_of(mask) {
        let address = at[lane];
        let inside = global.find(address).is_some_and(|i| {
            let a = &global.allocations[i];
            a.bytes - (address - a.base) >= u64::from(bytes)
        });
        if !inside {
            return Trouble::at(
                Check::OutOfBounds,
                lane,
                address,
                format!(
                    "{bytes} bytes of global memory: {}",
                    global.explain(address)
                ),
            );
        }
    }
    Trouble::new(Check::OutOfBounds, 32, String::new())
}

/// Whether [`outside`] found the lanes in several allocations.
fn is_scattered(trouble: &Trouble) -> bool {
    trouble.lane == 32
}

#[cold]
#[inline(never)]
fn unwritten(
    at: &[u64; 32],
    offsets: &[u64; 32],
    a: &Allocation,
    bytes: u32,
    mask: u32,
) -> Option<Box<Trouble>> {
    let lane = lanes_of(mask).find(|&lane| !a.is_written(offsets[lane], bytes))?;
    let name = a
        .name
        .as_deref()
        .map_or(String::new(), |n| format!(" ({n})"));
    Some(Trouble::at(
        Check::Uninitialised,
        lane,
        at[lane],
        format!(
            "{bytes} bytes at byte {} of the allocation{name} of {} bytes, where nothing has written all of them",
            offsets[lane], a.bytes
        ),
    ))
}

/// Whether the lanes' accesses follow each other without gaps.
#[inline(always)]
fn is_contiguous(offsets: &[u64; 32], bytes: u32) -> bool {
    let mut differ = 0;
    for (lane, &offset) in offsets.iter().enumerate() {
        differ |= offset ^ (offsets[0] + lane as u64 * u64::from(bytes));
    }
    differ == 0
}

#[inline(always)]
fn load_global(
    env: &mut Env<'_>,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    words: &mut Words,
) -> Result<()> {
    let (a, offsets) = match allocation(env, at, bytes, mask) {
        Ok(found) => found,
        Err(trouble) if is_scattered(&trouble) => {
            return scattered(at, mask, |lane, at| {
                load_global_cold(env, at, bytes, 1 << lane, words)
            });
        }
        Err(trouble) => return Err(trouble),
    };
    let counters = &mut env.counters;
    counters.global_load_requests += 1;
    counters.global_load_bytes += u64::from(mask.count_ones() * bytes);
    let contiguous = mask == ALL && is_contiguous(&offsets, bytes);
    let fine = if contiguous {
        let (start, end) = (offsets[0], offsets[0] + u64::from(32 * bytes));
        counters.global_load_sectors += end.div_ceil(32) - start / 32;
        a.is_range_written(start, end)
    } else {
        counters.global_load_sectors += u64::from(address::sectors(mask, at, bytes));
        let mut fine = true;
        for &offset in &offsets {
            fine &= a.is_written(offset, bytes);
        }
        fine
    };
    if !fine && let Some(trouble) = unwritten(at, &offsets, a, bytes, mask) {
        return Err(trouble);
    }
    if bytes < 4 {
        for lane in lanes_of(mask) {
            words[0].lanes_mut()[lane] = a.load_small(offsets[lane], bytes);
        }
        return Ok(());
    }
    let count = bytes as usize / 4;
    if count == 4 {
        gather::<4>(a, &offsets, words);
    } else if count == 1 {
        gather::<1>(a, &offsets, words);
    } else if count == 2 {
        gather::<2>(a, &offsets, words);
    } else {
        gather::<8>(a, &offsets, words);
    }
    Ok(())
}

/// Words of all lanes; lanes that do not take part read what the first does.
#[inline(always)]
fn gather<const N: usize>(a: &Allocation, offsets: &[u64; 32], words: &mut Words) {
    for lane in 0..32 {
        let first = (offsets[lane] / 4) as usize;
        let source = &a.words[first..first + N];
        for k in 0..N {
            words[k].lanes_mut()[lane] = source[k].load(Relaxed);
        }
    }
}

#[inline(never)]
fn load_global_cold(
    env: &mut Env<'_>,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    words: &mut Words,
) -> Result<()> {
    let mut one = [Row::ZERO; 8];
    let here = [at[mask.trailing_zeros() as usize & 31]; 32];
    load_global(env, &here, bytes, mask, &mut one)?;
    for (word, one) in words.iter_mut().zip(&one) {
        merge(word, one, mask);
    }
    Ok(())
}

/// Lanes one by one, where they access several allocations.
#[cold]
#[inline(never)]
fn scattered(
    at: &[u64; 32],
    mask: u32,
    mut one: impl FnMut(usize, &[u64; 32]) -> Result<()>,
) -> Result<()> {
    for lane in lanes_of(mask) {
        one(lane, at)?;
    }
    Ok(())
}

#[inline(always)]
fn store_global(
    env: &mut Env<'_>,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    words: &Words,
) -> Result<()> {
    let (a, offsets) = match allocation(env, at, bytes, mask) {
        Ok(found) => found,
        Err(trouble) if is_scattered(&trouble) => {
            return scattered(at, mask, |lane, at| {
                store_global_cold(env, &[at[lane]; 32], bytes, 1 << lane, words)
            });
        }
        Err(trouble) => return Err(trouble),
    };
    if a.read_only {
        return Err(Trouble::at(
            Check::ReadOnly,
            mask.trailing_zeros() as usize,
            at[mask.trailing_zeros() as usize & 31],
            format!("{} is constant", a.name.as_deref().unwrap_or("this memory")),
        ));
    }
    let counters = &mut env.counters;
    counters.global_store_requests += 1;
    counters.global_store_bytes += u64::from(mask.count_ones() * bytes);
    if mask == ALL && is_contiguous(&offsets, bytes) {
        let (start, end) = (offsets[0], offsets[0] + u64::from(32 * bytes));
        counters.global_store_sectors += end.div_ceil(32) - start / 32;
        a.mark_range(start, end);
    } else {
        counters.global_store_sectors += u64::from(address::sectors(mask, at, bytes));
        for lane in lanes_of(mask) {
            a.mark(offsets[lane], bytes);
        }
    }
    let count = bytes as usize / 4;
    for lane in lanes_of(mask) {
        let offset = offsets[lane];
        if bytes < 4 {
            a.store_small(offset, bytes, words[0].lanes()[lane]);
        } else {
            let first = (offset / 4) as usize;
            for (target, word) in a.words[first..first + count].iter().zip(words) {
                target.store(word.lanes()[lane], Relaxed);
            }
        }
    }
    Ok(())
}

#[inline(never)]
fn store_global_cold(
    env: &mut Env<'_>,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    words: &Words,
) -> Result<()> {
    store_global(env, at, bytes, mask, words)
}

/// Offsets in shared memory, all within its bounds.
#[inline(always)]
pub(super) fn shared_offsets(
    env: &Env<'_>,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
) -> Result<[u32; 32]> {
    let size = u64::from(env.shared.bytes());
    let mut beyond = false;
    let mut offsets = [0; 32];
    for (offset, &address) in offsets.iter_mut().zip(at) {
        beyond |= address.wrapping_add(u64::from(bytes)).wrapping_sub(1) >= size || address >= size;
        *offset = address as u32;
    }
    if beyond {
        return Err(beyond_shared(at, bytes, size, mask));
    }
    Ok(offsets)
}

#[cold]
#[inline(never)]
fn beyond_shared(at: &[u64; 32], bytes: u32, size: u64, mask: u32) -> Box<Trouble> {
    let lane = lanes_of(mask)
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
fn load_shared(
    env: &mut Env<'_>,
    warp: &Warp,
    side: usize,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    words: &mut Words,
) -> Result<()> {
    let offsets = shared_offsets(env, at, bytes, mask)?;
    let who = env.shared.who(warp.index, warp.sync_epoch);
    let pattern = &mut env.patterns[side];
    pattern.update(mask, &offsets, bytes);
    env.counters.shared_load_wavefronts += u64::from(pattern.wavefronts);
    let count = bytes as usize / 4;
    let shared = &mut env.shared;
    if !shared.is_word_grained() || count == 0 {
        for lane in lanes_of(mask) {
            shared.read(offsets[lane], bytes, who, lane)?;
        }
    } else {
        let mut fine = true;
        for (lane, several) in pattern.representatives() {
            let first = (offsets[lane] / 4) as usize;
            let reader = if several {
                Shared::MANY_LANES
            } else {
                lane as u32
            };
            fine &= shared.read_words(first, count, who, reader);
        }
        if !fine {
            explain_shared(shared, &offsets, bytes, who, mask)?;
        }
    }
    if count == 0 {
        for lane in lanes_of(mask) {
            let word = shared.words[(offsets[lane] / 4) as usize] >> (8 * (offsets[lane] % 4));
            words[0].lanes_mut()[lane] = word & (u32::MAX >> (32 - 8 * bytes));
        }
        return Ok(());
    }
    if pattern.distinct == 1 {
        let first = (offsets[mask.trailing_zeros() as usize & 31] / 4) as usize;
        for (word, &value) in words.iter_mut().zip(&shared.words[first..first + count]) {
            *word = Row([[value; 8]; 4]);
        }
    } else if count == 4 {
        gather_shared::<4>(&shared.words, &offsets, words);
    } else if count == 1 {
        gather_shared::<1>(&shared.words, &offsets, words);
    } else if count == 2 {
        gather_shared::<2>(&shared.words, &offsets, words);
    } else {
        gather_shared::<8>(&shared.words, &offsets, words);
    }
    Ok(())
}

#[inline(always)]
fn gather_shared<const N: usize>(source: &[u32], offsets: &[u32; 32], words: &mut Words) {
    for lane in 0..32 {
        let first = (offsets[lane] / 4) as usize;
        if let Some(chunk) = source[first..].first_chunk::<N>() {
            for k in 0..N {
                words[k].lanes_mut()[lane] = chunk[k];
            }
        }
    }
}

/// The exact check of each lane, after the summary one has failed.
#[cold]
#[inline(never)]
fn explain_shared(
    shared: &mut Shared,
    offsets: &[u32; 32],
    bytes: u32,
    who: crate::shared::Who,
    mask: u32,
) -> Result<()> {
    for lane in lanes_of(mask) {
        shared.read(offsets[lane], bytes, who, lane)?;
    }
    Ok(())
}

#[inline(always)]
fn store_shared(
    env: &mut Env<'_>,
    warp: &Warp,
    side: usize,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    words: &Words,
) -> Result<()> {
    let offsets = shared_offsets(env, at, bytes, mask)?;
    let who = env.shared.who(warp.index, warp.sync_epoch);
    let pattern = &mut env.patterns[side];
    pattern.update(mask, &offsets, bytes);
    env.counters.shared_store_wavefronts += u64::from(pattern.wavefronts);
    let count = bytes as usize / 4;
    if pattern.shared != 0 {
        same_values(&offsets, mask, words, count.max(1))?;
    }
    for (lane, _) in pattern.representatives() {
        let offset = offsets[lane];
        env.shared.write(offset, bytes, who, lane)?;
        let first = (offset / 4) as usize;
        if count == 0 {
            let shift = 8 * (offset % 4);
            let lanes = (u32::MAX >> (32 - 8 * bytes)) << shift;
            let word = &mut env.shared.words[first];
            *word = *word & !lanes | words[0].lanes()[lane] << shift & lanes;
        } else {
            let target = &mut env.shared.words[first..first + count];
            for (target, word) in target.iter_mut().zip(words) {
                *target = word.lanes()[lane];
            }
        }
    }
    Ok(())
}

/// Lanes that store to one address in one instruction must store the same.
#[cold]
#[inline(never)]
fn same_values(offsets: &[u32; 32], mask: u32, words: &Words, count: usize) -> Result<()> {
    for lane in lanes_of(mask) {
        for other in lanes_of(mask & ((1 << lane) - 1)) {
            let differ = words[..count]
                .iter()
                .any(|word| word.lanes()[lane] != word.lanes()[other]);
            if offsets[lane] == offsets[other] && differ {
                return Err(Trouble::at(
                    Check::SharedRace,
                    lane,
                    u64::from(offsets[lane]),
                    format!(
                        "lanes {other} and {lane} store different values to shared offset {} in one instruction",
                        offsets[lane]
                    ),
                ));
            }
        }
    }
    Ok(())
}

#[inline(never)]
fn load_parameters(
    env: &Env<'_>,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    words: &mut Words,
) -> Result<()> {
    let parameters = env.launch.parameters;
    let n = bytes as usize;
    for lane in lanes_of(mask) {
        let data = usize::try_from(at[lane])
            .ok()
            .and_then(|first| parameters.get(first..)?.get(..n));
        let Some(data) = data else {
            return Err(Trouble::at(
                Check::OutOfBounds,
                lane,
                at[lane],
                format!("the kernel has {} bytes of parameters", parameters.len()),
            ));
        };
        for (word, chunk) in words.iter_mut().zip(data.chunks(4)) {
            let mut whole = [0; 4];
            whole[..chunk.len()].copy_from_slice(chunk);
            word.lanes_mut()[lane] = u32::from_le_bytes(whole);
        }
        // One address for all lanes is the rule.
        if at.iter().all(|&other| other == at[0]) {
            for word in &mut words[..n.div_ceil(4)] {
                *word = Row([[word.lanes()[lane]; 8]; 4]);
            }
            break;
        }
    }
    Ok(())
}

fn check_local(warp: &Warp, at: &[u64; 32], bytes: u32, mask: u32) -> Result<()> {
    let size = 4 * warp.local.len() as u64;
    match lanes_of(mask).find(|&lane| at[lane] >= size || at[lane] + u64::from(bytes) > size) {
        None => Ok(()),
        Some(lane) => Err(Trouble::at(
            Check::OutOfBounds,
            lane,
            at[lane],
            format!(
                "{bytes} bytes at offset {} of local memory, of which a thread has {size} bytes",
                at[lane] as i64
            ),
        )),
    }
}

#[inline(never)]
fn load_local(warp: &Warp, at: &[u64; 32], bytes: u32, mask: u32, words: &mut Words) -> Result<()> {
    check_local(warp, at, bytes, mask)?;
    for lane in lanes_of(mask) {
        let first = (at[lane] / 4) as usize;
        let shift = 8 * (at[lane] % 4) as u32;
        let needed: u8 = if bytes < 4 {
            ((1 << bytes) - 1) << (at[lane] % 4)
        } else {
            15
        };
        for (k, word) in words[..bytes.div_ceil(4) as usize].iter_mut().enumerate() {
            if warp.local_written[first + k][lane] & needed != needed {
                return Err(Trouble::at(
                    Check::Uninitialised,
                    lane,
                    at[lane],
                    format!("{bytes} bytes at offset {} of local memory", at[lane]),
                ));
            }
            let value = warp.local[first + k].lanes()[lane] >> shift;
            word.lanes_mut()[lane] = if bytes < 4 {
                value & (u32::MAX >> (32 - 8 * bytes))
            } else {
                value
            };
        }
    }
    Ok(())
}

#[inline(never)]
fn store_local(
    warp: &mut Warp,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    words: &Words,
) -> Result<()> {
    check_local(warp, at, bytes, mask)?;
    for lane in lanes_of(mask) {
        let first = (at[lane] / 4) as usize;
        if bytes < 4 {
            let shift = 8 * (at[lane] % 4) as u32;
            let bits = (u32::MAX >> (32 - 8 * bytes)) << shift;
            let word = &mut warp.local[first].lanes_mut()[lane];
            *word = *word & !bits | words[0].lanes()[lane] << shift & bits;
            warp.local_written[first][lane] |= ((1 << bytes) - 1) << (at[lane] % 4);
            continue;
        }
        for (k, word) in words[..bytes as usize / 4].iter().enumerate() {
            warp.local[first + k].lanes_mut()[lane] = word.lanes()[lane];
            warp.local_written[first + k][lane] = 15;
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
fn load_generic(
    env: &mut Env<'_>,
    warp: &Warp,
    side: usize,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    words: &mut Words,
) -> Result<()> {
    for (window, lanes) in by_window(at, mask) {
        if lanes == 0 {
            continue;
        }
        let at = within(at, window, lanes);
        let mut part = [Row::ZERO; 8];
        match window {
            SHARED_WINDOW => load_shared(env, warp, side, &at, bytes, lanes, &mut part)?,
            LOCAL_WINDOW => load_local(warp, &at, bytes, lanes, &mut part)?,
            PARAM_WINDOW => load_parameters(env, &at, bytes, lanes, &mut part)?,
            _ => load_global(env, &at, bytes, lanes, &mut part)?,
        }
        for (word, part) in words.iter_mut().zip(&part) {
            merge(word, part, lanes);
        }
    }
    Ok(())
}

#[inline(never)]
fn store_generic(
    env: &mut Env<'_>,
    warp: &mut Warp,
    side: usize,
    at: &[u64; 32],
    bytes: u32,
    mask: u32,
    words: &Words,
) -> Result<()> {
    for (window, lanes) in by_window(at, mask) {
        if lanes == 0 {
            continue;
        }
        let at = within(at, window, lanes);
        match window {
            SHARED_WINDOW => store_shared(env, warp, side, &at, bytes, lanes, words)?,
            LOCAL_WINDOW => store_local(warp, &at, bytes, lanes, words)?,
            PARAM_WINDOW => {
                let lane = lanes.trailing_zeros() as usize;
                return Err(Trouble::at(
                    Check::ReadOnly,
                    lane,
                    at[lane],
                    "the parameters of a kernel are constant".to_owned(),
                ));
            }
            _ => store_global(env, &at, bytes, lanes, words)?,
        }
    }
    Ok(())
}
