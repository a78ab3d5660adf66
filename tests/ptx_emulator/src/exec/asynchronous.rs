//! `cp.async`: the data is read when the copy is issued and appears at the wait that covers it.

use std::sync::atomic::Ordering::Relaxed;

use super::memory::{addresses, check_alignment, shared_offsets};
use super::{Result, lanes_of, value};
use crate::block::{Copy, Env, Warp};
use crate::fault::{Check, Trouble};
use crate::program::{Side, SideKind};

pub(super) fn copy(env: &mut Env<'_>, warp: &mut Warp, side: &Side, mask: u32) -> Result<()> {
    let SideKind::CopyAsync {
        bytes,
        shared_offset,
        global_offset,
        sized,
    } = side.kind
    else {
        return Ok(());
    };
    let to = addresses(warp, Some(side.src[0]), shared_offset, mask);
    let from = addresses(warp, Some(side.src[1]), global_offset, mask);
    check_alignment(&to, mask, bytes)?;
    let to = shared_offsets(env, &to, bytes, mask)?;
    let who = env.shared.who(warp.index, warp.sync_epoch);
    let mut requested = 0;
    for lane in lanes_of(mask) {
        let size = if sized {
            (value(warp, side.src[2], lane) as u32).min(bytes)
        } else {
            bytes
        };
        let mut data = [0; 16];
        if size > 0 {
            check_alignment(&[from[lane]; 32], 1 << lane, bytes)?;
            read(env, from[lane], &mut data[..size as usize], lane)?;
            requested |= 1 << lane;
        }
        env.shared.begin_copy(to[lane], bytes, who, lane)?;
        warp.copies.push(Copy {
            lane,
            group: warp.committed[lane],
            offset: to[lane],
            bytes,
            data,
        });
        env.counters.global_load_bytes += u64::from(size);
    }
    if requested != 0 {
        env.counters.global_load_requests += 1;
        let sectors = super::address::sectors(requested, &from, bytes);
        env.counters.global_load_sectors += u64::from(sectors);
    }
    env.counters.shared_store_wavefronts += u64::from(super::address::wavefronts(mask, &to, bytes));
    Ok(())
}

fn read(env: &Env<'_>, address: u64, data: &mut [u8], lane: usize) -> Result<()> {
    let global = env.launch.global;
    let bytes = data.len() as u64;
    let found = global.find(address).map(|i| &global.allocations[i]);
    let Some(a) = found.filter(|a| a.bytes - (address - a.base) >= bytes) else {
        return Err(Trouble::at(
            Check::OutOfBounds,
            lane,
            address,
            format!(
                "{bytes} bytes of global memory: {}",
                global.explain(address)
            ),
        ));
    };
    let offset = address - a.base;
    if !a.is_range_written(offset, offset + bytes) {
        return Err(Trouble::at(
            Check::Uninitialised,
            lane,
            address,
            format!(
                "{bytes} bytes at byte {offset} of an allocation of {} bytes",
                a.bytes
            ),
        ));
    }
    for (k, byte) in data.iter_mut().enumerate() {
        let at = offset + k as u64;
        *byte = (a.words[(at / 4) as usize].load(Relaxed) >> (8 * (at % 4))) as u8;
    }
    Ok(())
}

pub(super) fn commit(warp: &mut Warp, mask: u32) {
    for lane in lanes_of(mask) {
        warp.committed[lane] += 1;
    }
}

/// Finishes the copies of all but the last `n` groups of each lane; `u32::MAX`: all copies.
pub(super) fn wait(env: &mut Env<'_>, warp: &mut Warp, n: u32, mask: u32) {
    let who = env.shared.who(warp.index, warp.sync_epoch);
    let committed = warp.committed;
    warp.copies.retain(|copy| {
        let covered =
            n == u32::MAX || u64::from(copy.group) + u64::from(n) < u64::from(committed[copy.lane]);
        if mask >> copy.lane & 1 == 0 || !covered {
            return true;
        }
        let data = &copy.data[..copy.bytes as usize];
        env.shared.finish_copy(copy.offset, data, who, copy.lane);
        false
    });
}
