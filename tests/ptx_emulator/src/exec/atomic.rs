//! Atomic operations. Lanes go one after the other, in ascending order.

use std::sync::atomic::Ordering::Relaxed;

use super::address::addresses;
use super::global::{byte_mask, check_written, conflict, lane_allocation};
use super::memory::{by_window, check_shared, within};
use super::{Pattern, Result, lanes_of, set_value, value};
use crate::block::{Env, Warp};
use crate::fault::{Check, Trouble};
use crate::half::{self, BF16, F16, Finish, Rounding};
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW};
use crate::program::{Access, AtomOp, Side, Space};
use crate::races::SECTOR;

/// The new value from the old, the operand and the value to compare with. Operands have `bits` bits. Only on global
/// memory does the addition of f32 flush subnormals.
fn apply(op: AtomOp, bits: u32, global: bool, old: u64, operand: u64, compare: u64) -> u64 {
    let signed = |v: u64| crate::lane::integer::signed(v, bits);
    let halves = |format| {
        let add = |a, b| half::add(format, a, b, Rounding::NearestEven, Finish::default());
        u64::from(half::packed2(old as u32, operand as u32, add))
    };
    let new = match op {
        AtomOp::Add => old.wrapping_add(operand),
        AtomOp::AddF32 => {
            let flush = |x: f32| {
                if global && x.is_subnormal() {
                    0f32.copysign(x)
                } else {
                    x
                }
            };
            let [old, operand] = [old, operand].map(|v| flush(f32::from_bits(v as u32)));
            u64::from(flush(old + operand).to_bits())
        }
        AtomOp::AddF64 => (f64::from_bits(old) + f64::from_bits(operand)).to_bits(),
        AtomOp::AddF16x2 => halves(F16),
        AtomOp::AddBf16x2 => halves(BF16),
        AtomOp::MinU => old.min(operand),
        AtomOp::MaxU => old.max(operand),
        AtomOp::MinS => signed(old).min(signed(operand)) as u64,
        AtomOp::MaxS => signed(old).max(signed(operand)) as u64,
        AtomOp::Inc => {
            if old >= operand {
                0
            } else {
                old + 1
            }
        }
        AtomOp::Dec => {
            if old == 0 || old > operand {
                operand
            } else {
                old - 1
            }
        }
        AtomOp::Exchange => operand,
        AtomOp::Compare => {
            if old == compare {
                operand
            } else {
                old
            }
        }
        AtomOp::And => old & operand,
        AtomOp::Or => old | operand,
        AtomOp::Xor => old ^ operand,
    };
    crate::lane::integer::low(new, bits)
}

pub(super) fn atomic(
    env: &mut Env<'_>,
    warp: &mut Warp,
    side: &Side,
    op: AtomOp,
    access: Access,
    mask: u32,
) -> Result<()> {
    let based = usize::from(access.based);
    let base = side.src.first().copied().filter(|_| access.based);
    let at = addresses(warp, base, access.offset, mask);
    let mut pattern = Pattern::default();
    let first = pattern.update(&at, mask, access.bytes);
    pattern.check_alignment(first)?;
    let windows = match access.space {
        Space::Generic => by_window(&at, mask),
        Space::Shared => [(SHARED_WINDOW, mask), (0, 0), (0, 0), (0, 0)],
        _ => [(0, mask), (0, 0), (0, 0), (0, 0)],
    };
    for (window, lanes) in windows {
        if lanes == 0 {
            continue;
        }
        let at = if access.space == Space::Generic {
            within(&at, window, lanes)
        } else {
            at
        };
        let first = lanes.trailing_zeros() as usize;
        match window {
            SHARED_WINDOW => {
                let first = pattern.update(&at, lanes, access.bytes);
                check_shared(env, &pattern, first)?;
            }
            LOCAL_WINDOW | PARAM_WINDOW => {
                return Err(Trouble::at(
                    Check::OutOfBounds,
                    first,
                    at[first],
                    "an atomic operation on memory of the thread's own".to_owned(),
                ));
            }
            _ => {}
        }
        for lane in lanes_of(lanes) {
            // The values to compare with come before those to store.
            let (compare, operand) = if op == AtomOp::Compare {
                (
                    value(warp, side.src[based], lane),
                    value(warp, side.src[based + 1], lane),
                )
            } else {
                (0, value(warp, side.src[based], lane))
            };
            let global = window != SHARED_WINDOW;
            let new = |old| apply(op, 8 * access.bytes, global, old, operand, compare);
            let old = if window == SHARED_WINDOW {
                in_shared(env, warp, at[lane] as u32, access.bytes, lane, new)?
            } else {
                let takes = !side.dst.is_empty();
                in_global(env, warp, (at[lane], takes), access.bytes, lane, new)?
            };
            if let Some(&dst) = side.dst.first() {
                set_value(warp, dst, lane, old);
            }
        }
    }
    Ok(())
}

fn in_shared(
    env: &mut Env<'_>,
    warp: &Warp,
    offset: u32,
    bytes: u32,
    lane: usize,
    new: impl Fn(u64) -> u64,
) -> Result<u64> {
    let who = env.shared.who(warp.index, warp.sync_epoch);
    env.shared.atomic(offset, bytes, who, lane)?;
    let [low, high, ..] = env.shared.fetch(offset, bytes);
    let old = u64::from(low) | u64::from(high) << 32;
    let result = new(old);
    let words = [result as u32, (result >> 32) as u32];
    env.shared.put(offset, bytes, &words);
    Ok(old)
}

fn in_global(
    env: &mut Env<'_>,
    warp: &mut Warp,
    (address, takes): (u64, bool),
    bytes: u32,
    lane: usize,
    new: impl Fn(u64) -> u64,
) -> Result<u64> {
    let (a, offset) = lane_allocation(env, address, bytes, lane)?;
    check_written(a, offset, bytes, lane)?;
    let first = (offset / 4) as usize;
    let Env { launch, races, .. } = env;
    let launch = *launch;
    let operation = || {
        if bytes == 4 {
            let update = |old| Some(new(u64::from(old)) as u32);
            let old = a.words[first].fetch_update(Relaxed, Relaxed, update);
            return u64::from(old.unwrap_or_else(|old| old));
        }
        // Eight bytes are two words here; a lock makes the pair one.
        let _guard = launch.pairs.lock();
        let [low, high] = [&a.words[first], &a.words[first + 1]];
        let old = u64::from(low.load(Relaxed)) | u64::from(high.load(Relaxed)) << 32;
        let result = new(old);
        low.store(result as u32, Relaxed);
        high.store((result >> 32) as u32, Relaxed);
        old
    };
    let who = (warp.index, &warp.fenced);
    let old = races.ticket(&launch.races, address, takes, who, operation);
    let (sector, mask) = ((offset / SECTOR) as usize, byte_mask(offset, bytes));
    let begin = address / SECTOR * SECTOR;
    let noted = races.atomic(&launch.races, &a.touched, sector, begin, warp.index, mask);
    noted.map_err(|found| conflict(launch, &found, "updates atomically", address, bytes, lane))?;
    env.races.writing(warp.index, &mut warp.fenced, 1 << lane);
    Ok(old)
}
