//! Barriers.

use super::{Result, value};
use crate::block::{Env, Group, Waiting, Warp};
use crate::fault::{Check, Trouble};
use crate::program::{Side, SideKind};

/// Warp epochs are six bits of a stamp.
const WARP_EPOCHS: u32 = 64;

/// `bar.warp.sync`: orders accesses to shared memory within the warp.
pub(super) fn warp_sync(env: &mut Env<'_>, warp: &mut Warp, side: &Side, mask: u32) -> Result<()> {
    members(warp, side.src[0], mask)?;
    env.races.warp_sync(&mut warp.fenced);
    warp.sync_epoch += 1;
    if warp.sync_epoch == WARP_EPOCHS {
        env.shared.forget(warp.index);
        warp.sync_epoch = 0;
    }
    Ok(())
}

/// The member mask of a warp instruction. It is an error if a member is elsewhere in the program, or if an executing
/// lane is not a member. Members that have exited do not count.
pub(super) fn members(warp: &Warp, reg: crate::program::Reg, mask: u32) -> Result<u32> {
    let lane = mask.trailing_zeros() as usize;
    let members = value(warp, reg, lane) as u32;
    for other in super::lanes_of(mask) {
        let theirs = value(warp, reg, other) as u32;
        if theirs >> other & 1 == 0 {
            return Err(Trouble::new(
                Check::WarpMask,
                other,
                format!("lane {other} is not in its own member mask {theirs:#010x}"),
            ));
        }
        // Groups of lanes may each have a mask of their own, but not two that overlap.
        if theirs != members && theirs & members != 0 {
            return Err(Trouble::new(
                Check::WarpMask,
                other,
                format!(
                    "lane {lane} has the member mask {members:#010x}, lane {other} {theirs:#010x}"
                ),
            ));
        }
        let absent = theirs & warp.alive & !mask;
        if absent != 0 {
            let absentee = absent.trailing_zeros();
            return Err(Trouble::new(
                Check::WarpMask,
                other,
                format!(
                    "the member mask is {theirs:#010x}, but lane {absentee} is elsewhere in the program"
                ),
            ));
        }
    }
    Ok(members)
}

/// `bar` and `barrier`. True: the lanes wait.
pub(super) fn barrier(
    env: &mut Env<'_>,
    warp: &mut Warp,
    side: &Side,
    mask: u32,
    lanes: u32,
    next: u32,
) -> Result<bool> {
    let SideKind::Barrier {
        reduce,
        aligned,
        arrive,
        counted,
    } = side.kind
    else {
        return Ok(false);
    };
    let lane = mask.trailing_zeros() as usize;
    if aligned && mask != warp.launched {
        let absent = (warp.launched & !mask).trailing_zeros();
        let state = if warp.alive >> absent & 1 == 0 {
            "has exited"
        } else {
            "is elsewhere in the program"
        };
        return Err(Trouble::new(
            Check::Barrier,
            lane,
            format!(
                "lane {lane} of the warp has reached a barrier that all lanes must reach together, but lane {absent} {state}"
            ),
        ));
    }
    let number = value(warp, side.src[0], lane) as u32;
    let count = counted.then(|| value(warp, side.src[1], lane) as u32);
    let predicate = side
        .src
        .get(1 + usize::from(counted))
        .map_or(0, |reg| warp.pred[reg.index as usize]);
    let group = Group {
        pc: next,
        lanes: mask,
    };
    if !arrive {
        warp.waiting.push(Waiting {
            group,
            barrier: number,
            result: side.dst.first().copied(),
        });
    }
    env.arrive(number, mask, warp.launched, count, reduce, predicate)
        .map_err(|detail| Trouble::new(Check::Barrier, lane, detail))?;
    if arrive {
        return Ok(false);
    }
    // Lanes that the guard kept from the barrier go on.
    if lanes & !mask != 0 {
        warp.ready.push(Group {
            pc: next,
            lanes: lanes & !mask,
        });
    }
    Ok(true)
}
