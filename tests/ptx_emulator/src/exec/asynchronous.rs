//! `cp.async`: the data is read when the copy is issued and appears at the wait that covers it.

use std::sync::atomic::Ordering::Relaxed;

use super::address::{addresses, sectors};
use super::global::{check_written, lane_allocation, note_read};
use super::memory::check_shared;
use super::{Pattern, Result, lanes_of, value};
use crate::block::{Copy, Env, Warp};
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
    let mut pattern = Pattern::default();
    let first = pattern.update(&to, mask, bytes);
    pattern.check_alignment(first)?;
    check_shared(env, &pattern, first)?;
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
            let mut one = Pattern::default();
            one.update(&[from[lane]; 32], 1 << lane, bytes);
            one.check_alignment(from[lane])?;
            read(env, from[lane], &mut data[..size as usize], lane)?;
            requested |= 1 << lane;
        }
        env.shared.begin_copy(to[lane] as u32, bytes, who, lane)?;
        warp.copies.push(Copy {
            lane,
            group: warp.committed[lane],
            offset: to[lane] as u32,
            bytes,
            data,
        });
        env.counters.global_load_bytes += u64::from(size);
    }
    if requested != 0 {
        env.counters.global_load_requests += 1;
        env.counters.global_load_sectors += u64::from(sectors(requested, &from));
    }
    env.counters.shared_store_wavefronts += u64::from(pattern.wavefronts);
    Ok(())
}

fn read(env: &mut Env<'_>, address: u64, data: &mut [u8], lane: usize) -> Result<()> {
    let bytes = data.len() as u32;
    let (a, offset) = lane_allocation(env, address, bytes, lane)?;
    check_written(a, offset, bytes, lane)?;
    note_read((env.launch, &mut env.races), a, offset, bytes, lane)?;
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
