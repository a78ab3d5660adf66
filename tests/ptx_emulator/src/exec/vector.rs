//! Exchanges between lanes, and matrix operations of a warp.

use super::address::addresses;
use super::memory::check_shared;
use super::{ALL, Pattern, Result, lanes_of, set_value, sync, value};
use crate::block::{Env, Warp};
use crate::fault::{Check, Trouble};
use crate::matrix;
use crate::program::{ReduceOp, ShuffleMode, Side, SideKind, VoteMode};
use crate::shared::Shared;

pub(super) fn exchange(warp: &mut Warp, side: &Side, mask: u32) -> Result<()> {
    let Some(&members_reg) = side.src.last() else {
        return Ok(());
    };
    sync::members(warp, members_reg, mask)?;
    if let SideKind::Shuffle(mode) = side.kind {
        return shuffle(warp, side, mode, mask);
    }
    // Groups of lanes with member masks of their own exchange among themselves.
    let mut rest = mask;
    while rest != 0 {
        let lane = rest.trailing_zeros() as usize;
        let group = value(warp, members_reg, lane) as u32 & mask;
        rest &= !group & !(1 << lane);
        match side.kind {
            SideKind::Vote(mode) => vote(warp, side, mode, group),
            SideKind::Match { all } => matches(warp, side, all, group),
            SideKind::Reduce(op) => reduce(warp, side, op, group),
            _ => {
                let leader = group.trailing_zeros() as usize;
                for lane in lanes_of(group) {
                    set_value(warp, side.dst[0], lane, leader as u64);
                    set_value(warp, side.dst[1], lane, u64::from(lane == leader));
                }
            }
        }
    }
    Ok(())
}

fn shuffle(warp: &mut Warp, side: &Side, mode: ShuffleMode, mask: u32) -> Result<()> {
    let source = *warp.r32[side.src[0].index as usize].lanes();
    let by = *warp.r32[side.src[1].index as usize].lanes();
    let clamp = *warp.r32[side.src[2].index as usize].lanes();
    for lane in lanes_of(mask) {
        let b = (by[lane] & 31) as i32;
        let c = clamp[lane] & 31;
        let segment = clamp[lane] >> 8 & 31;
        let l = lane as i32;
        let max = ((l as u32 & segment) | (c & !segment)) as i32;
        let min = (l as u32 & segment) as i32;
        let (from, valid) = match mode {
            ShuffleMode::Up => (l - b, l - b >= max),
            ShuffleMode::Down => (l + b, l + b <= max),
            ShuffleMode::Butterfly => (l ^ b, (l ^ b) <= max),
            ShuffleMode::Index => {
                let from = min | (b & !(segment as i32));
                (from, from <= max)
            }
        };
        let from = if valid { from as usize & 31 } else { lane };
        if mask >> from & 1 == 0 {
            return Err(Trouble::new(
                Check::WarpMask,
                lane,
                format!("lane {lane} takes its value from lane {from}, which does not take part"),
            ));
        }
        set_value(warp, side.dst[0], lane, u64::from(source[from]));
        if let Some(&predicate) = side.dst.get(1) {
            set_value(warp, predicate, lane, u64::from(valid));
        }
    }
    Ok(())
}

fn vote(warp: &mut Warp, side: &Side, mode: VoteMode, group: u32) {
    let trues = warp.pred[side.src[0].index as usize] & group;
    let result = match mode {
        VoteMode::All => u32::from(trues == group),
        VoteMode::Any => u32::from(trues != 0),
        VoteMode::Uniform => u32::from(trues == group || trues == 0),
        VoteMode::Ballot => trues,
    };
    for lane in lanes_of(group) {
        set_value(warp, side.dst[0], lane, u64::from(result));
    }
}

fn matches(warp: &mut Warp, side: &Side, all: bool, group: u32) {
    let mut values = [0; 32];
    for lane in lanes_of(group) {
        values[lane] = value(warp, side.src[0], lane);
    }
    let equal_to = |lane: usize| {
        lanes_of(group)
            .filter(|&other| values[other] == values[lane])
            .fold(0u32, |mask, other| mask | 1 << other)
    };
    for lane in lanes_of(group) {
        let same = equal_to(lane);
        let result = if !all {
            same
        } else if same == group {
            group
        } else {
            0
        };
        set_value(warp, side.dst[0], lane, u64::from(result));
        if let Some(&predicate) = side.dst.get(1) {
            set_value(warp, predicate, lane, u64::from(same == group));
        }
    }
}

fn reduce(warp: &mut Warp, side: &Side, op: ReduceOp, group: u32) {
    let row = warp.r32[side.src[0].index as usize].lanes();
    let combine = |a: u32, b: u32| match op {
        ReduceOp::Add => a.wrapping_add(b),
        ReduceOp::MinU => a.min(b),
        ReduceOp::MaxU => a.max(b),
        ReduceOp::MinS => (a as i32).min(b as i32) as u32,
        ReduceOp::MaxS => (a as i32).max(b as i32) as u32,
        ReduceOp::And => a & b,
        ReduceOp::Or => a | b,
        ReduceOp::Xor => a ^ b,
    };
    let result = lanes_of(group).map(|lane| row[lane]).reduce(combine);
    for lane in lanes_of(group) {
        set_value(warp, side.dst[0], lane, u64::from(result.unwrap_or(0)));
    }
}

fn whole_warp(warp: &Warp, mask: u32) -> Result<()> {
    if mask == ALL {
        return Ok(());
    }
    let lane = mask.trailing_zeros() as usize;
    let absent = mask.trailing_ones();
    let state = if warp.launched >> absent & 1 == 0 {
        "does not exist"
    } else {
        "does not take part"
    };
    Err(Trouble::new(
        Check::WarpMask,
        lane,
        format!("a matrix instruction needs all 32 lanes, but lane {absent} {state}"),
    ))
}

/// `mma` and `movmatrix`.
pub(super) fn matrix(env: &mut Env<'_>, warp: &mut Warp, side: &Side, mask: u32) -> Result<()> {
    whole_warp(warp, mask)?;
    let row = |warp: &Warp, n: usize| *warp.r32[side.src[n].index as usize].lanes();
    let mut d = [[0; 32]; 4];
    match side.kind {
        SideKind::Mma(kind) => {
            let (a, b) = (kind.a_registers(), kind.b_registers());
            let mut sources = [[0; 32]; 12];
            for (n, source) in sources[..side.src.len()].iter_mut().enumerate() {
                *source = row(warp, n);
            }
            matrix::mma(
                kind,
                env.launch.arithmetic,
                env.launch.avx2,
                &mut d[..side.dst.len()],
                &sources[..a],
                &sources[a..a + b],
                &sources[a + b..side.src.len()],
            );
            env.counters.tensor_multiply_adds += kind.multiply_adds() as u64;
        }
        _ => {
            let source = row(warp, 0);
            matrix::movmatrix(&mut d[0], &source);
        }
    }
    for (reg, value) in side.dst.iter().zip(&d) {
        *warp.r32[reg.index as usize].lanes_mut() = *value;
    }
    Ok(())
}

/// `ldmatrix` and `stmatrix`: rows of 16 bytes, whose addresses the lanes supply, eight lanes a matrix.
pub(super) fn matrix_memory(
    env: &mut Env<'_>,
    warp: &mut Warp,
    side: &Side,
    mask: u32,
) -> Result<()> {
    const ROW: u32 = 16;
    whole_warp(warp, mask)?;
    let (loads, transposed, offset) = match side.kind {
        SideKind::LoadMatrix { transposed, offset } => (true, transposed, offset),
        SideKind::StoreMatrix { transposed, offset } => (false, transposed, offset),
        _ => return Ok(()),
    };
    let count = if loads {
        side.dst.len()
    } else {
        side.src.len() - 1
    };
    let suppliers = ALL >> (32 - 8 * count as u32);
    let at = addresses(warp, Some(side.src[0]), offset, suppliers);
    let mut pattern = Pattern::default();
    let first = pattern.update(&at, suppliers, ROW);
    pattern.check_alignment(first)?;
    check_shared(env, &pattern, first)?;
    let who = env.shared.who(warp.index, warp.sync_epoch);
    let passes = u64::from(pattern.wavefronts);
    let mut rows = [[0u16; 8]; 32];
    if loads {
        env.counters.shared_load_wavefronts += passes;
        for lane in lanes_of(suppliers) {
            // What a lane receives comes from rows that other lanes address: all of them read.
            let offset = at[lane] as u32;
            let mut words = [0; 4];
            let quick = env.shared.is_word_grained()
                && env
                    .shared
                    .read_words(offset, who, Shared::MANY_LANES, &mut words);
            if !quick {
                env.shared.read(offset, ROW, who, lane)?;
                words.copy_from_slice(&env.shared.fetch(offset, ROW)[..4]);
            }
            for (k, &word) in words.iter().enumerate() {
                rows[lane][2 * k] = word as u16;
                rows[lane][2 * k + 1] = (word >> 16) as u16;
            }
        }
        let mut d = [[0; 32]; 4];
        matrix::ldmatrix(&mut d[..count], &rows[..8 * count], transposed);
        for (reg, value) in side.dst.iter().zip(&d) {
            *warp.r32[reg.index as usize].lanes_mut() = *value;
        }
        return Ok(());
    }
    env.counters.shared_store_wavefronts += passes;
    let mut sources = [[0; 32]; 4];
    for (source, reg) in sources.iter_mut().zip(&side.src[1..]) {
        *source = *warp.r32[reg.index as usize].lanes();
    }
    matrix::stmatrix(&mut rows[..8 * count], &sources[..count], transposed);
    for lane in lanes_of(suppliers) {
        let words: [u32; 4] = std::array::from_fn(|k| {
            u32::from(rows[lane][2 * k]) | u32::from(rows[lane][2 * k + 1]) << 16
        });
        env.shared.claim(at[lane] as u32, ROW, who, lane)?;
        env.shared.put(at[lane] as u32, ROW, &words);
    }
    Ok(())
}
