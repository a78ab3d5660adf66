//! The interpreter of one warp.

mod address;
mod asynchronous;
mod atomic;
mod global;
mod memory;
mod private;
mod sync;
mod vector;

pub(crate) use address::Pattern;

use crate::block::{Env, Group, Warp};
use crate::fault::{Check, Trouble};
use crate::program::{Compare, File, Inst, Op, Side, SideKind, UNGUARDED};
use crate::row::{
    FULL, map1, map1_64, map2, map2_64, map3, map3_64, narrow1, select, select_64, shift_64, test,
    test_64, widen1, widen2, widen3,
};

pub(crate) type Result<T> = std::result::Result<T, Box<Trouble>>;

/// Runs a warp until none of its lanes can go on.
pub(crate) fn run(env: &mut Env<'_>, warp: &mut Warp) -> Result<()> {
    #[cfg(target_arch = "x86_64")]
    if env.launch.avx2 {
        // SAFETY: `avx2` is set where the processor was found to have these features.
        return unsafe { run_avx2(env, warp) };
    }
    run_here(env, warp)
}

/// Whether [`run_avx2`] may be called.
pub(crate) fn has_avx2() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("popcnt")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,popcnt")]
fn run_avx2(env: &mut Env<'_>, warp: &mut Warp) -> Result<()> {
    run_here(env, warp)
}

fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

fn d(bits: u64) -> f64 {
    f64::from_bits(bits)
}

/// The larger or smaller of two f32 by PTX's rules: NaN loses, +0 is above -0.
#[inline(always)]
fn choose(a: u32, b: u32, larger: bool) -> u32 {
    let (x, y) = (f(a), f(b));
    let equal = if larger { a & b } else { a | b };
    let a_wins = if larger { x > y } else { x < y };
    let ordered = if x == y {
        equal
    } else if a_wins {
        a
    } else {
        b
    };
    let a_nan = a & 0x7fff_ffff > 0x7f80_0000;
    let b_nan = b & 0x7fff_ffff > 0x7f80_0000;
    let chosen = if b_nan { a } else { ordered };
    let chosen = if a_nan { b } else { chosen };
    if a_nan & b_nan { 0x7fff_ffff } else { chosen }
}

/// `test` with the comparison that `x` names, for a type whose values `read` gives.
macro_rules! compare {
    ($test:ident, $rows:expr, $i:expr, $read:expr) => {{
        let (rows, i, read) = ($rows, $i, $read);
        match i.x {
            x if x == Compare::Eq as u32 => $test(rows, i, |a, b| read(a) == read(b)),
            x if x == Compare::Ne as u32 => $test(rows, i, |a, b| read(a) != read(b)),
            x if x == Compare::Lt as u32 => $test(rows, i, |a, b| read(a) < read(b)),
            x if x == Compare::Le as u32 => $test(rows, i, |a, b| read(a) <= read(b)),
            x if x == Compare::Gt as u32 => $test(rows, i, |a, b| read(a) > read(b)),
            _ => $test(rows, i, |a, b| read(a) >= read(b)),
        }
    }};
}

macro_rules! compare_float {
    ($test:ident, $rows:expr, $i:expr, $read:expr, $float:ty) => {{
        let (rows, i, read) = ($rows, $i, $read);
        let unordered = |a: $float, b: $float| a.is_nan() || b.is_nan();
        match i.x {
            x if x == Compare::Eq as u32 => $test(rows, i, |a, b| read(a) == read(b)),
            x if x == Compare::Ne as u32 => {
                $test(rows, i, |a, b| read(a) < read(b) || read(a) > read(b))
            }
            x if x == Compare::Lt as u32 => $test(rows, i, |a, b| read(a) < read(b)),
            x if x == Compare::Le as u32 => $test(rows, i, |a, b| read(a) <= read(b)),
            x if x == Compare::Gt as u32 => $test(rows, i, |a, b| read(a) > read(b)),
            x if x == Compare::Ge as u32 => $test(rows, i, |a, b| read(a) >= read(b)),
            x if x == Compare::Equ as u32 => {
                $test(rows, i, |a, b| !(read(a) < read(b) || read(a) > read(b)))
            }
            x if x == Compare::Neu as u32 => $test(rows, i, |a, b| read(a) != read(b)),
            x if x == Compare::Ltu as u32 => $test(rows, i, |a, b| {
                read(a) < read(b) || unordered(read(a), read(b))
            }),
            x if x == Compare::Leu as u32 => $test(rows, i, |a, b| {
                read(a) <= read(b) || unordered(read(a), read(b))
            }),
            x if x == Compare::Gtu as u32 => $test(rows, i, |a, b| {
                read(a) > read(b) || unordered(read(a), read(b))
            }),
            x if x == Compare::Geu as u32 => $test(rows, i, |a, b| {
                read(a) >= read(b) || unordered(read(a), read(b))
            }),
            x if x == Compare::Num as u32 => $test(rows, i, |a, b| !unordered(read(a), read(b))),
            _ => $test(rows, i, |a, b| unordered(read(a), read(b))),
        }
    }};
}

/// What the end of a basic block does to the lanes that run.
enum Flow {
    Go(Group),
    Stop,
}

#[inline(always)]
fn run_here(env: &mut Env<'_>, warp: &mut Warp) -> Result<()> {
    let launch = env.launch;
    let program = launch.program;
    let code = program.code.as_slice();
    let Some(Group { mut pc, mut lanes }) = next_group(warp, None) else {
        return Ok(());
    };
    loop {
        let i = &code[pc as usize];
        let mask = if i.guard == UNGUARDED {
            lanes
        } else {
            let row = warp.pred[usize::from(i.guard >> 1)];
            lanes & (row ^ 0u32.wrapping_sub(u32::from(i.guard & 1)))
        };
        pc += 1;
        if mask == 0 && !matches!(i.op, Op::Branch | Op::Switch | Op::Exit) {
            continue;
        }
        let Warp { r32, r64, pred, .. } = &mut *warp;
        let d_row = usize::from(i.d);
        let mut set = |lanes_true: u32| {
            let row = &mut pred[d_row];
            *row = (*row & !mask) | (lanes_true & mask);
        };
        match i.op {
            Op::Mov32 => map1(r32, i, mask, |a| a),
            Op::AddF => map2(r32, i, mask, |a, b| (f(a) + f(b)).to_bits()),
            Op::SubF => map2(r32, i, mask, |a, b| (f(a) - f(b)).to_bits()),
            Op::MulF => map2(r32, i, mask, |a, b| (f(a) * f(b)).to_bits()),
            Op::FmaF => map3(r32, i, mask, |a, b, c| f(a).mul_add(f(b), f(c)).to_bits()),
            Op::MinF => map2(r32, i, mask, |a, b| choose(a, b, false)),
            Op::MaxF => map2(r32, i, mask, |a, b| choose(a, b, true)),
            Op::NegF => map1(r32, i, mask, |a| a ^ 1 << 31),
            Op::AbsF => map1(r32, i, mask, |a| a & !(1 << 31)),
            Op::RcpF => map1(r32, i, mask, |a| (1.0 / f(a)).to_bits()),
            Op::SqrtF => map1(r32, i, mask, |a| f(a).sqrt().to_bits()),
            Op::DivF => map2(r32, i, mask, |a, b| (f(a) / f(b)).to_bits()),
            Op::Add32 => map2(r32, i, mask, u32::wrapping_add),
            Op::Sub32 => map2(r32, i, mask, u32::wrapping_sub),
            Op::Mul32 => map2(r32, i, mask, u32::wrapping_mul),
            Op::Mad32 => map3(r32, i, mask, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            Op::MulHiU32 => map2(r32, i, mask, |a, b| {
                ((u64::from(a) * u64::from(b)) >> 32) as u32
            }),
            Op::MulHiS32 => map2(r32, i, mask, |a, b| {
                ((i64::from(a as i32) * i64::from(b as i32)) >> 32) as u32
            }),
            Op::And32 => map2(r32, i, mask, |a, b| a & b),
            Op::Or32 => map2(r32, i, mask, |a, b| a | b),
            Op::Xor32 => map2(r32, i, mask, |a, b| a ^ b),
            Op::Not32 => map1(r32, i, mask, |a| !a),
            Op::Neg32 => map1(r32, i, mask, u32::wrapping_neg),
            Op::Shl32 => map2(r32, i, mask, |a, b| if b > 31 { 0 } else { a << (b & 31) }),
            Op::ShrU32 => map2(r32, i, mask, |a, b| if b > 31 { 0 } else { a >> (b & 31) }),
            Op::ShrS32 => map2(r32, i, mask, |a, b| (a as i32 >> b.min(31)) as u32),
            Op::MinS32 => map2(r32, i, mask, |a, b| (a as i32).min(b as i32) as u32),
            Op::MaxS32 => map2(r32, i, mask, |a, b| (a as i32).max(b as i32) as u32),
            Op::MinU32 => map2(r32, i, mask, u32::min),
            Op::MaxU32 => map2(r32, i, mask, u32::max),
            Op::Lop3 => {
                let table: [u32; 8] =
                    std::array::from_fn(|n| if i.x >> n & 1 != 0 { u32::MAX } else { 0 });
                map3(r32, i, mask, |a, b, c| {
                    (!a & ((!b & ((!c & table[0]) | (c & table[1])))
                        | (b & ((!c & table[2]) | (c & table[3])))))
                        | (a & ((!b & ((!c & table[4]) | (c & table[5])))
                            | (b & ((!c & table[6]) | (c & table[7])))))
                });
            }
            Op::S32ToF => map1(r32, i, mask, |a| (a as i32 as f32).to_bits()),
            Op::U32ToF => map1(r32, i, mask, |a| (a as f32).to_bits()),
            Op::Sel32 => {
                let p = pred[usize::from(i.c)];
                select(r32, i, mask, p);
            }
            Op::Mov64 => map1_64(r64, i, mask, |a| a),
            Op::Add64 => map2_64(r64, i, mask, u64::wrapping_add),
            Op::Sub64 => map2_64(r64, i, mask, u64::wrapping_sub),
            Op::Mul64 => map2_64(r64, i, mask, u64::wrapping_mul),
            Op::Mad64 => map3_64(r64, i, mask, |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
            Op::And64 => map2_64(r64, i, mask, |a, b| a & b),
            Op::Or64 => map2_64(r64, i, mask, |a, b| a | b),
            Op::Xor64 => map2_64(r64, i, mask, |a, b| a ^ b),
            Op::Shl64 => shift_64(
                r64,
                r32,
                i,
                mask,
                |a, b| if b > 63 { 0 } else { a << (b & 63) },
            ),
            Op::ShrU64 => {
                shift_64(
                    r64,
                    r32,
                    i,
                    mask,
                    |a, b| if b > 63 { 0 } else { a >> (b & 63) },
                );
            }
            Op::ShrS64 => shift_64(r64, r32, i, mask, |a, b| (a as i64 >> b.min(63)) as u64),
            Op::Sel64 => {
                let p = pred[usize::from(i.c)];
                select_64(r64, i, mask, p);
            }
            Op::AddD => map2_64(r64, i, mask, |a, b| (d(a) + d(b)).to_bits()),
            Op::SubD => map2_64(r64, i, mask, |a, b| (d(a) - d(b)).to_bits()),
            Op::MulD => map2_64(r64, i, mask, |a, b| (d(a) * d(b)).to_bits()),
            Op::FmaD => map3_64(r64, i, mask, |a, b, c| d(a).mul_add(d(b), d(c)).to_bits()),
            Op::MulWideS => widen2(r64, r32, i, mask, |a, b| {
                (i64::from(a as i32) * i64::from(b as i32)) as u64
            }),
            Op::MulWideU => widen2(r64, r32, i, mask, |a, b| u64::from(a) * u64::from(b)),
            Op::MadWideS => widen3(r64, r32, i, mask, |a, b, c| {
                ((i64::from(a as i32) * i64::from(b as i32)) as u64).wrapping_add(c)
            }),
            Op::MadWideU => widen3(r64, r32, i, mask, |a, b, c| {
                (u64::from(a) * u64::from(b)).wrapping_add(c)
            }),
            Op::Sext => widen1(r64, r32, i, mask, |a| i64::from(a as i32) as u64),
            Op::Zext => widen1(r64, r32, i, mask, u64::from),
            Op::Trunc => narrow1(r32, r64, i, mask, |a| a as u32),
            Op::SetS32 => set(compare!(test, r32, i, |a| a as i32)),
            Op::SetU32 => set(compare!(test, r32, i, |a: u32| a)),
            Op::SetF32 => set(compare_float!(test, r32, i, f, f32)),
            Op::SetS64 => set(compare!(test_64, r64, i, |a| a as i64)),
            Op::SetU64 => set(compare!(test_64, r64, i, |a: u64| a)),
            Op::SetF64 => set(compare_float!(test_64, r64, i, d, f64)),
            Op::MovP | Op::AndP | Op::OrP | Op::XorP | Op::NotP => {
                let a = pred[usize::from(i.a)];
                let b = pred[usize::from(i.b)];
                let value = match i.op {
                    Op::AndP => a & b,
                    Op::OrP => a | b,
                    Op::XorP => a ^ b,
                    Op::NotP => !a,
                    _ => a,
                };
                let row = &mut pred[d_row];
                *row = (*row & !mask) | (value & mask);
            }
            Op::Lane => lane_by_lane(warp, &program.sides[i.x as usize], mask),
            Op::Load => {
                if let Err(trouble) = memory::load(env, warp, i.x as usize, mask) {
                    warp.pc = pc - 1;
                    return Err(trouble);
                }
            }
            Op::Store => {
                if let Err(trouble) = memory::store(env, warp, i.x as usize, mask) {
                    warp.pc = pc - 1;
                    return Err(trouble);
                }
            }
            Op::Side => {
                warp.pc = pc - 1;
                if side(env, warp, &program.sides[i.x as usize], mask, lanes, pc)? {
                    match next_group(warp, None) {
                        Some(group) => Group { pc, lanes } = group,
                        None => return Ok(()),
                    }
                }
            }
            Op::Branch | Op::Switch | Op::Exit => {
                let block = i.x as usize;
                env.entries[block] += 1;
                warp.executed += u64::from(program.block_sizes[block]);
                warp.pc = pc - 1;
                if warp.executed > launch.budget {
                    return Err(over_budget(lanes, launch.budget));
                }
                let terminator = &program.terminators[block];
                // The common end: all lanes of the warp together.
                if i.op == Op::Branch && warp.ready.is_empty() {
                    if mask == lanes {
                        pc = terminator.targets[0];
                        continue;
                    }
                    if mask == 0 {
                        pc = terminator.next;
                        continue;
                    }
                }
                match flow(warp, i, &terminator.targets, terminator.next, mask, lanes) {
                    Flow::Go(group) => Group { pc, lanes } = group,
                    Flow::Stop => return Ok(()),
                }
            }
        }
    }
}

#[cold]
fn over_budget(lanes: u32, budget: u64) -> Box<Trouble> {
    Trouble::new(
        Check::Budget,
        lanes.trailing_zeros() as usize,
        format!("the warp has executed more than {budget} instructions; the loop may have no end"),
    )
}

#[cold]
fn unwritten(env: &Env<'_>, register: u32, root: u32, lanes: u32) -> Box<Trouble> {
    let name = |number: u32| match env.launch.program.registers.get(number as usize) {
        Some(name) => format!("the register {name}"),
        None => "a flag".to_owned(),
    };
    let mut detail = format!("nothing has written {}", name(root));
    if register != root {
        detail += &format!(", and {} is made of it", name(register));
    }
    Trouble::new(Check::Unwritten, lanes.trailing_zeros() as usize, detail)
}

/// The ready group with the lowest program counter, after joining those that stand at the same.
fn next_group(warp: &mut Warp, with: Option<Group>) -> Option<Group> {
    warp.ready.extend(with.filter(|group| group.lanes != 0));
    let pc = warp.ready.iter().map(|group| group.pc).min()?;
    let mut lanes = 0;
    warp.ready.retain(|group| {
        if group.pc == pc {
            lanes |= group.lanes;
        }
        group.pc != pc
    });
    Some(Group { pc, lanes })
}

/// Where the lanes go at the end of a basic block.
fn flow(warp: &mut Warp, i: &Inst, targets: &[u32], next: u32, mask: u32, lanes: u32) -> Flow {
    let rest = Group {
        pc: next,
        lanes: lanes & !mask,
    };
    match i.op {
        Op::Branch => {
            if mask != 0 {
                warp.ready.push(Group {
                    pc: targets[0],
                    lanes: mask,
                });
            }
        }
        Op::Switch => {
            let index = warp.r32[usize::from(i.a)].lanes();
            for lane in lanes_of(mask) {
                // An index beyond the table is undefined in PTX; the last entry is as good as any.
                let n = (index[lane] as usize).min(targets.len() - 1);
                warp.ready.push(Group {
                    pc: targets[n],
                    lanes: 1 << lane,
                });
            }
        }
        _ => warp.alive &= !mask,
    }
    match next_group(warp, Some(rest)) {
        Some(group) => Flow::Go(group),
        None => Flow::Stop,
    }
}

/// The value of a register in one lane.
fn value(warp: &Warp, reg: crate::program::Reg, lane: usize) -> u64 {
    let index = reg.index as usize;
    match reg.file {
        File::R32 => u64::from(warp.r32[index].lanes()[lane]),
        File::R64 => warp.r64[index].lanes()[lane],
        File::Pred => u64::from(warp.pred[index] >> lane & 1),
    }
}

fn set_value(warp: &mut Warp, reg: crate::program::Reg, lane: usize, value: u64) {
    let index = reg.index as usize;
    match reg.file {
        File::R32 => warp.r32[index].lanes_mut()[lane] = value as u32,
        File::R64 => warp.r64[index].lanes_mut()[lane] = value,
        File::Pred => {
            let row = &mut warp.pred[index];
            *row = (*row & !(1 << lane)) | u32::from(value != 0) << lane;
        }
    }
}

/// The lanes of a mask, ascending.
pub(crate) fn lanes_of(mask: u32) -> impl Iterator<Item = usize> {
    let mut rest = mask;
    std::iter::from_fn(move || {
        if rest == 0 {
            return None;
        }
        let lane = rest.trailing_zeros();
        rest &= rest - 1;
        Some(lane as usize)
    })
}

#[inline(never)]
fn lane_by_lane(warp: &mut Warp, side: &Side, mask: u32) {
    let SideKind::Lane(function, x) = side.kind else {
        return;
    };
    for lane in lanes_of(mask) {
        let mut operands = [0; 3];
        for (operand, &reg) in operands.iter_mut().zip(&side.src) {
            *operand = value(warp, reg, lane);
        }
        set_value(warp, side.dst[0], lane, function(x, operands));
    }
}

/// Instructions with their own rules. True: the running lanes now wait, and others are to run.
#[inline(never)]
fn side(
    env: &mut Env<'_>,
    warp: &mut Warp,
    side: &Side,
    mask: u32,
    lanes: u32,
    next: u32,
) -> Result<bool> {
    let first = mask.trailing_zeros() as usize;
    match side.kind {
        SideKind::Nothing | SideKind::Access(_) | SideKind::Lane(..) => {}
        SideKind::Atomic { op, access } => atomic::atomic(env, warp, side, op, access, mask)?,
        SideKind::CopyAsync { .. } => asynchronous::copy(env, warp, side, mask)?,
        SideKind::CommitGroup => asynchronous::commit(warp, mask),
        SideKind::WaitGroup(n) => asynchronous::wait(env, warp, n, mask),
        SideKind::LoadMatrix { .. } | SideKind::StoreMatrix { .. } => {
            vector::matrix_memory(env, warp, side, mask)?;
        }
        SideKind::MoveMatrix | SideKind::Mma(_) => vector::matrix(env, warp, side, mask)?,
        SideKind::Written { register, root } => {
            let missing = mask & !warp.pred[side.src[0].index as usize];
            if missing != 0 {
                return Err(unwritten(env, register, root, missing));
            }
        }
        SideKind::Trap => {
            return Err(Trouble::new(
                Check::Trap,
                first,
                "the kernel has executed trap".to_owned(),
            ));
        }
        SideKind::Clock => {
            let now = warp.executed;
            for lane in lanes_of(mask) {
                set_value(warp, side.dst[0], lane, now);
            }
        }
        SideKind::Fence => env.races.fence(warp.index, &mut warp.fenced, mask),
        SideKind::WarpSync => sync::warp_sync(env, warp, side, mask)?,
        SideKind::Barrier { .. } => return sync::barrier(env, warp, side, mask, lanes, next),
        SideKind::ActiveMask => {
            for lane in lanes_of(mask) {
                set_value(warp, side.dst[0], lane, u64::from(mask));
            }
        }
        SideKind::Shuffle(_)
        | SideKind::Vote(_)
        | SideKind::Match { .. }
        | SideKind::Reduce(_)
        | SideKind::Elect => vector::exchange(warp, side, mask)?,
    }
    Ok(false)
}

/// All lanes.
pub(crate) const ALL: u32 = FULL;
