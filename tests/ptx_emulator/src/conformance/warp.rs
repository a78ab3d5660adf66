//! Exchange and votes within a warp.

use super::{Case, mixed};

pub(super) fn cases() -> Vec<Case> {
    [
        shuffles(),
        votes(),
        matches(),
        reductions(),
        divergent(),
        exited(),
    ]
    .concat()
}

/// One warp's inputs: words with a few repetitions.
fn warp() -> Vec<[u32; 1]> {
    mixed(32)
        .iter()
        .enumerate()
        .map(|(i, &w)| [if i % 3 == 0 { 5 } else { w % 9 }])
        .collect()
}

/// `shfl` by the ISA's pseudocode: the source lane and whether it is in range.
fn source(mode: &str, lane: i32, b: i32, clamp: i32, mask: i32) -> (usize, bool) {
    let (b, clamp, mask) = (b & 31, clamp & 31, mask & 31);
    let max = (lane & mask) | (clamp & !mask);
    let min = lane & mask;
    let (j, in_range) = match mode {
        "up" => (lane - b, lane - b >= max),
        "down" => (lane + b, lane + b <= max),
        "bfly" => (lane ^ b, lane ^ b <= max),
        _ => (min | (b & !mask), min | (b & !mask) <= max),
    };
    (if in_range { j } else { lane } as usize, in_range)
}

fn shuffles() -> Vec<Case> {
    let inputs: Vec<[u32; 2]> = mixed(64).as_chunks().0.to_vec();
    let mut cases = Vec::new();
    // Clamps and segment masks: whole warp, segments of 8 and 16 (mask 0x18 and 0x10), an odd clamp.
    let segments = [
        (0x1f, 0),
        (0x1f, 0x18),
        (0x1f, 0x10),
        (0x13, 0),
        (0, 0),
        (0, 0x18),
    ];
    for mode in ["up", "down", "bfly", "idx"] {
        for (clamp, mask) in segments {
            for b in [0, 1, 3, 9, 31, 33] {
                let c = mask << 8 | clamp;
                let body = format!(
                    "shfl.sync.{mode}.b32 %d0|%p0, %a0, {b}, {c}, -1; selp.b32 %d1, 1, 0, %p0;\n\
                     mov.b32 %r0, {b}; mov.b32 %r1, {c}; shfl.sync.{mode}.b32 %d2, %a1, %r0, %r1, 0xFFFFFFFF;"
                );
                let outputs: Vec<_> = (0..32)
                    .map(|lane| {
                        let (j, in_range) = source(mode, lane, b, clamp, mask);
                        [inputs[j][0], u32::from(in_range), inputs[j][1]]
                    })
                    .collect();
                let name = format!("shfl.sync.{mode} by {b} with c = {c:#x}");
                cases.push(Case::new(&name, &body, &inputs, &outputs).block(32));
            }
        }
    }
    let outputs: Vec<_> = (0..32)
        .map(|lane| {
            let (j, in_range) = source("idx", lane, inputs[lane as usize][1] as i32, 0x1f, 0);
            [inputs[j][0], u32::from(in_range)]
        })
        .collect();
    cases.push(
        Case::new(
            "shfl.sync.idx with a lane of each thread's own",
            "shfl.sync.idx.b32 %d0|%p0, %a0, %a1, 31, -1; selp.b32 %d1, 1, 0, %p0;",
            &inputs,
            &outputs,
        )
        .block(32),
    );
    cases
}

fn votes() -> Vec<Case> {
    let inputs = warp();
    let mut cases = Vec::new();
    type Condition = (&'static str, &'static str, fn(u32) -> bool);
    let conditions: [Condition; 3] = [
        ("some", "setp.eq.u32 %p0, %a0, 5;", |a| a == 5),
        ("all", "setp.ne.u32 %p0, %a0, 1000;", |_| true),
        ("none", "setp.eq.u32 %p0, %a0, 1000;", |_| false),
    ];
    for (name, set, holds) in conditions {
        let ballot = inputs
            .iter()
            .enumerate()
            .fold(0u32, |d, (i, &[a])| d | u32::from(holds(a)) << i);
        let expected = [
            ballot,
            u32::from(ballot == u32::MAX),
            u32::from(ballot != 0),
            u32::from(ballot == 0 || ballot == u32::MAX),
            !ballot,
        ];
        cases.push(
            Case::new(
                &format!("vote.sync where {name} hold"),
                &format!(
                    "{set} vote.sync.ballot.b32 %d0, %p0, -1; vote.sync.all.pred %p1, %p0, -1; vote.sync.any.pred %p2, %p0, -1;\n\
                     vote.sync.uni.pred %p3, %p0, -1; vote.sync.ballot.b32 %d4, !%p0, -1; selp.b32 %d1, 1, 0, %p1;\n\
                     selp.b32 %d2, 1, 0, %p2; selp.b32 %d3, 1, 0, %p3;"
                ),
                &inputs,
                &[expected; 32],
            )
            .block(32),
        );
    }
    cases.push(
        Case::new(
            "activemask of a whole and of a partial warp",
            "activemask.b32 %d0;",
            &[[0]; 40],
            &[[[u32::MAX]; 32].as_slice(), &[[0xff]; 8]].concat(),
        )
        .block(40),
    );
    cases
}

fn matches() -> Vec<Case> {
    let inputs = warp();
    let equal_to = |value: u32| {
        inputs
            .iter()
            .enumerate()
            .fold(0u32, |d, (i, &[a])| d | u32::from(a == value) << i)
    };
    let any: Vec<_> = inputs
        .iter()
        .map(|&[a]| [equal_to(a), equal_to(a)])
        .collect();
    vec![
        Case::new(
            "match.any.sync",
            "match.any.sync.b32 %d0, %a0, -1; mov.b64 %q0, {7, %a0}; match.any.sync.b64 %d1, %q0, -1;",
            &inputs,
            &any,
        )
        .block(32),
        Case::new(
            "match.all.sync",
            "match.all.sync.b32 %d0|%p0, %a0, -1; selp.b32 %d1, 1, 0, %p0; mov.b32 %r0, 9;\n\
             match.all.sync.b32 %d2|%p1, %r0, -1; selp.b32 %d3, 1, 0, %p1; cvt.u64.u32 %q0, %r0; match.all.sync.b64 %d4, %q0, -1;",
            &inputs,
            &[[0, 0, u32::MAX, 1, u32::MAX]; 32],
        )
        .block(32),
    ]
}

fn reductions() -> Vec<Case> {
    let inputs: Vec<[u32; 1]> = mixed(32).iter().map(|&w| [w]).collect();
    let all = inputs.as_flattened();
    let signed =
        |pick: fn(i32, i32) -> i32| all.iter().map(|&w| w as i32).reduce(pick).unwrap_or(0) as u32;
    let fold = |pick: fn(u32, u32) -> u32| all.iter().copied().reduce(pick).unwrap_or(0);
    let sum = fold(u32::wrapping_add);
    vec![
        Case::new(
            "redux.sync of integers",
            "redux.sync.add.u32 %d0, %a0, -1; redux.sync.add.s32 %d1, %a0, -1; redux.sync.min.u32 %d2, %a0, -1;\n\
             redux.sync.max.u32 %d3, %a0, -1; redux.sync.min.s32 %d4, %a0, -1; redux.sync.max.s32 %d5, %a0, -1;",
            &inputs,
            &[[
                sum,
                sum,
                fold(u32::min),
                fold(u32::max),
                signed(i32::min),
                signed(i32::max),
            ]; 32],
        )
        .sm(80)
        .block(32),
        Case::new(
            "redux.sync of bits",
            "or.b32 %r0, %a0, 0xF0; redux.sync.and.b32 %d0, %r0, -1; and.b32 %r1, %a0, 0x0FF0FFFF;\n\
             redux.sync.or.b32 %d1, %r1, -1; redux.sync.xor.b32 %d2, %a0, -1;",
            &inputs,
            &[[
                fold(|a, b| a & b) | 0xf0,
                fold(|a, b| a | b) & 0x0ff0_ffff,
                fold(|a, b| a ^ b),
            ]; 32],
        )
        .sm(80)
        .block(32),
    ]
}

/// "Wait until all non-exited threads corresponding to membermask have executed": a mask may name lanes that have
/// exited, and they do not count.
fn exited() -> Vec<Case> {
    let inputs = warp();
    let stay = 20;
    let all = &inputs[..stay];
    let five = all
        .iter()
        .enumerate()
        .fold(0u32, |d, (i, &[a])| d | u32::from(a == 5) << i);
    let sum = all.iter().fold(0u32, |d, &[a]| d.wrapping_add(a));
    let outputs: Vec<[u32; 5]> = inputs
        .iter()
        .enumerate()
        .map(|(lane, &[a])| {
            if lane >= stay {
                return [0; 5];
            }
            let same = all
                .iter()
                .enumerate()
                .fold(0u32, |d, (i, &[b])| d | u32::from(a == b) << i);
            [five, 1, same, sum, all[lane ^ 1][0]]
        })
        .collect();
    vec![
        Case::new(
            "member masks that name lanes that have exited",
            "setp.ge.u32 %p0, %index, 20; @%p0 exit; setp.eq.u32 %p1, %a0, 5; vote.sync.ballot.b32 %d0, %p1, -1;\n\
             setp.lt.u32 %p2, %a0, 1000; vote.sync.all.pred %p3, %p2, -1; selp.b32 %d1, 1, 0, %p3;\n\
             match.any.sync.b32 %d2, %a0, -1; redux.sync.add.u32 %d3, %a0, -1; bar.warp.sync -1;\n\
             shfl.sync.bfly.b32 %d4, %a0, 1, 31, -1;",
            &inputs,
            &outputs,
        )
        .sm(80)
        .block(32),
    ]
}

/// The same within a part of the warp: lanes whose input is odd go one way, the others another.
fn divergent() -> Vec<Case> {
    let inputs: Vec<[u32; 2]> = mixed(32).iter().map(|&w| [w % 64, w >> 8]).collect();
    let odd = inputs
        .iter()
        .enumerate()
        .fold(0u32, |d, (i, &[a, _])| d | (a & 1) << i);
    let members = |lane: usize| if odd >> lane & 1 == 1 { odd } else { !odd };
    let group = |lane: usize| {
        let mask = members(lane);
        (0..32usize).filter(move |i| mask >> i & 1 == 1)
    };
    // Everybody reads the lowest lane of its own group.
    let outputs: Vec<[u32; 5]> = (0..32)
        .map(|lane| {
            let first = group(lane).next().unwrap_or(lane);
            let value = inputs[lane][1] % 4;
            let same = group(lane).fold(0, |d, i| d | u32::from(inputs[i][1] % 4 == value) << i);
            let big = group(lane).fold(0, |d, i| d | u32::from(inputs[i][0] > 31) << i);
            let sum = group(lane).fold(0u32, |d, i| d.wrapping_add(inputs[i][1]));
            [
                inputs[first][0],
                big,
                same,
                sum,
                if odd >> lane & 1 == 1 { 1 } else { 2 },
            ]
        })
        .collect();
    // The member mask of the lanes that are here; the branch keeps the two groups apart.
    let collective = |tag: u32| {
        format!(
            "vote.sync.ballot.b32 %d1, %p1, %r0; brev.b32 %r2, %r0; bfind.u32 %r2, %r2; sub.u32 %r2, 31, %r2;\n\
             shfl.sync.idx.b32 %d0, %a0, %r2, 31, %r0; match.any.sync.b32 %d2, %r3, %r0; redux.sync.add.u32 %d3, %a1, %r0;\n\
             bar.warp.sync %r0; mov.b32 %d4, {tag};\n"
        )
    };
    vec![
        Case::new(
            "collectives of a part of the warp",
            &format!(
                "and.b32 %r1, %a0, 1; setp.eq.u32 %p0, %r1, 1; setp.gt.u32 %p1, %a0, 31; and.b32 %r3, %a1, 3;\n\
                 vote.sync.ballot.b32 %r0, %p0, -1; @%p0 bra odd; not.b32 %r0, %r0;\n{}bra.uni done;\nodd:\n{}done:\n\
                 bar.warp.sync -1;",
                collective(2),
                collective(1)
            ),
            &inputs,
            &outputs,
        )
        .sm(80)
        .block(32),
        Case::new(
            "elect.sync",
            "elect.sync _|%p0, -1; vote.sync.ballot.b32 %r0, %p0, -1; popc.b32 %d0, %r0;",
            &[[0]; 32],
            &[[1]; 32],
        )
        .sm(90)
        .block(32),
    ]
}
