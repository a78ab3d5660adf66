//! Loads, stores, address spaces, atomics and asynchronous copies.

use super::oracle::flush;
use super::{Case, Compare, join, mixed, split};
use crate::half::{self, BF16, F16, Finish, Format, Rounding};

pub(super) fn cases() -> Vec<Case> {
    [
        loads_and_stores(),
        spaces(),
        atomics(),
        asynchronous(),
        policies(),
        vec![global_of_a_function()],
    ]
    .concat()
}

fn rows<const I: usize>(count: usize) -> Vec<[u32; I]> {
    mixed(count * I).as_chunks().0.to_vec()
}

fn loads_and_stores() -> Vec<Case> {
    // 16-byte rows keep every vector aligned.
    let inputs = rows::<4>(70);
    let bytes = |row: [u32; 4]| -> [u8; 16] {
        let mut bytes = [0; 16];
        for (chunk, word) in bytes.as_chunks_mut::<4>().0.iter_mut().zip(row) {
            *chunk = word.to_le_bytes();
        }
        bytes
    };
    let copy = |name: &str, body: &str| Case::lanes(name, body, &inputs, |row| row);
    vec![
        Case::lanes(
            "ld of bytes extends by type",
            "ld.global.s8 %d0, [%src+1]; ld.global.u8 %d1, [%src+1]; ld.global.s8 %h0, [%src+6]; cvt.u32.u16 %d2, %h0;\n\
             ld.global.b8 %h1, [%src+15]; cvt.u32.u16 %d3, %h1; ld.global.s8 %q0, [%src+2]; mov.b64 {%d4, %d5}, %q0;",
            &inputs,
            move |row| {
                let b = bytes(row);
                let signed = |i: usize| i64::from(b[i] as i8);
                let [d4, d5] = split(signed(2) as u64);
                [
                    signed(1) as u32,
                    b[1].into(),
                    signed(6) as u32 & 0xffff,
                    b[15].into(),
                    d4,
                    d5,
                ]
            },
        ),
        Case::lanes(
            "ld of 16 and 32 bits extends by type",
            "ld.global.s16 %d0, [%src+2]; ld.global.u16 %d1, [%src+2]; ld.global.b16 %h0, [%src+14]; cvt.u32.u16 %d2, %h0;\n\
             ld.global.s32 %q0, [%src+4]; mov.b64 {%d3, %d4}, %q0; ld.global.u32 %q1, [%src+4]; mov.b64 {%d5, %d6}, %q1;",
            &inputs,
            |[a, b, _, d]| {
                let high = (a >> 16) as u16;
                let [d3, d4] = split(b as i32 as u64);
                [
                    i32::from(high as i16) as u32,
                    high.into(),
                    d >> 16,
                    d3,
                    d4,
                    b,
                    0,
                ]
            },
        ),
        Case::lanes(
            "st of bytes and halves leaves the rest",
            "add.s64 %q0, %dst, 4; st.global.b32 [%q0], %a1; st.global.u8 [%dst+5], %a0; mov.b32 {%h0, %h1}, %a0;\n\
             st.global.b16 [%dst+6], %h1; st.global.b8 [%dst+4], %h0; ld.global.b32 %d1, [%dst+4]; mov.b32 %d0, %a3;",
            &inputs,
            |[a, _, _, d]| [d, a & 0xff | (a & 0xff) << 8 | a & 0xffff_0000],
        ),
        copy(
            "ld and st of v2 and v4",
            "ld.global.v4.b32 {%r0, %r1, %r2, %r3}, [%src]; st.global.v4.b32 [%dst], {%r0, %r1, %r2, %r3};\n\
             ld.global.v2.b32 {%d0, %d1}, [%src]; ld.global.v2.f32 {%d2, %d3}, [%dst+8];",
        ),
        copy(
            "ld and st of v2.b64",
            "ld.global.v2.b64 {%q0, %q1}, [%src]; st.global.v2.b64 [%dst], {%q0, %q1}; ld.global.b64 %q2, [%dst+8];\n\
             mov.b64 {%d2, %d3}, %q2; ld.global.u64 %q3, [%dst]; mov.b64 {%d0, %d1}, %q3;",
        ),
        copy(
            "ld and st of v4.b16 and v4.u8",
            "ld.global.v4.b16 {%h0, %h1, %h2, %h3}, [%src]; st.global.v4.b16 [%dst+8], {%h0, %h1, %h2, %h3};\n\
             ld.global.v2.b32 {%d0, %d1}, [%dst+8]; ld.global.v4.u8 {%h4, %h5, %h6, %h7}, [%src+8];\n\
             st.global.v4.u8 [%dst], {%h4, %h5, %h6, %h7}; ld.global.b32 %d2, [%dst]; ld.global.v2.u16 {%h8, %h9}, [%src+12];\n\
             mov.b32 %d3, {%h8, %h9};",
        ),
        copy(
            "cache operators and read-only loads",
            "ld.global.nc.v2.b32 {%d0, %d1}, [%src]; ld.global.nc.f32 %d2, [%src+8]; ld.global.cg.b32 %d3, [%src+12];\n\
             ld.global.ca.b32 %r0, [%src]; ld.global.cs.b32 %r1, [%src]; ld.global.lu.b32 %r2, [%src]; ld.global.cv.b32 %r3, [%src];\n\
             st.global.wb.b32 [%dst], %r0; st.global.cg.b32 [%dst], %r1; st.global.cs.b32 [%dst], %r2; st.global.wt.b32 [%dst], %r3;\n\
             ld.global.L1::no_allocate.b32 %d1, [%src+4]; ld.volatile.global.b32 %d0, [%dst]; st.volatile.global.b32 [%dst+4], %d0;",
        ),
        copy(
            "memory ordering",
            "st.relaxed.gpu.global.b32 [%dst], %a0; ld.relaxed.gpu.global.b32 %d0, [%dst]; st.release.gpu.global.b32 [%dst+4], %a1;\n\
             ld.acquire.gpu.global.b32 %d1, [%dst+4]; fence.acq_rel.gpu; fence.sc.cta; membar.cta; membar.gl; membar.sys;\n\
             prefetch.global.L2 [%src]; ld.global.b32 %d2, [%src+8]; ld.global.b32 %d3, [%src+12];",
        ),
        copy(
            "hints",
            "prefetch.global.L1 [%src]; cvta.global.u64 %q0, %src; prefetchu.L1 [%q0]; ldu.global.b32 %d0, [%src];\n\
             applypriority.global.L2::evict_normal [%in], 128; ldu.global.v2.b32 {%d1, %d2}, [%src+8]; mov.b32 %d3, %d2;\n\
             mov.b32 %d2, %d1; ld.global.L2::128B.b32 %d1, [%src+4]; pmevent 1;",
        )
        .sm(80),
        Case::lanes(
            "discard before the line is written",
            "discard.global.L2 [%out], 128; bar.warp.sync -1; mov.b32 %d0, %a0;",
            &rows::<1>(32),
            |row| row,
        )
        .sm(80)
        .block(32),
        copy(
            "dependent launches",
            "griddepcontrol.wait; mov.b32 %d0, %a0; mov.b32 %d1, %a1; mov.b32 %d2, %a2; mov.b32 %d3, %a3;\n\
             griddepcontrol.launch_dependents;",
        )
        .sm(90),
        copy(
            "generic addresses",
            "cvta.global.u64 %q0, %src; ld.b32 %d0, [%q0]; ld.v2.b32 {%d1, %d2}, [%q0+8]; cvta.global.u64 %q1, %dst;\n\
             st.b32 [%q1+12], %d2; mov.b32 %d2, %d1; ld.global.b32 %d3, [%dst+12]; ld.b32 %d1, [%q0+4];",
        ),
    ]
}

/// Shared, local, constant and initialised global memory, and what tells them apart.
fn spaces() -> Vec<Case> {
    let inputs = rows::<2>(64);
    let reversed: Vec<[u32; 2]> = (0..64).map(|i| [inputs[63 - i][0], inputs[i][1]]).collect();
    let neighbours: Vec<[u32; 2]> = (0..64)
        .map(|i| [inputs[i ^ 1][1], inputs[(i + 5) % 64][0]])
        .collect();
    // The table of the constant and global cases: 11, 22, 33, 44.
    let table = |i: u32| 11 * (i % 4 + 1);
    vec![
        Case::new(
            "shared memory across a barrier",
            "mov.u32 %r0, tile; shl.b32 %r1, %index, 2; add.u32 %r2, %r0, %r1; st.shared.b32 [%r2], %a0; bar.sync 0;\n\
             sub.u32 %r3, 252, %r1; add.u32 %r3, %r3, %r0; ld.shared.b32 %d0, [%r3]; st.shared.b32 [%r2+256], %a1;\n\
             ld.shared.b32 %d1, [%r2+256];",
            &inputs,
            &reversed,
        )
        .module(".shared .align 16 .b8 tile[512];\n"),
        Case::new(
            "vectors, bytes and 64-bit addresses in shared memory",
            "mov.u64 %q0, tile; mul.wide.u32 %q1, %index, 8; add.s64 %q2, %q0, %q1; st.shared.v2.b32 [%q2], {%a0, %a1};\n\
             bar.sync 0; xor.b32 %r0, %index, 1; mul.wide.u32 %q3, %r0, 8; add.s64 %q3, %q3, %q0; ld.shared.u16 %r1, [%q3+6];\n\
             ld.shared.u8 %r2, [%q3+5]; ld.shared.b8 %h0, [%q3+4]; cvt.u32.u16 %r3, %h0; shl.b32 %r1, %r1, 16;\n\
             shl.b32 %r2, %r2, 8; or.b32 %d0, %r1, %r2; or.b32 %d0, %d0, %r3; add.u32 %r4, %index, 5; and.b32 %r4, %r4, 63;\n\
             mul.wide.u32 %q4, %r4, 8; add.s64 %q4, %q4, %q0; ld.shared.v2.b32 {%d1, %r5}, [%q4];",
            &inputs,
            &neighbours,
        )
        .module(".shared .align 16 .b8 tile[512];\n"),
        Case::new(
            "shared memory by generic address",
            "mov.u32 %r0, tile; cvt.u64.u32 %q0, %r0; cvta.shared.u64 %q1, %q0; mul.wide.u32 %q2, %index, 4;\n\
             add.s64 %q3, %q1, %q2; st.b32 [%q3], %a0; bar.sync 0; sub.s64 %q4, 252, %q2; add.s64 %q4, %q4, %q1;\n\
             cvta.to.shared.u64 %q5, %q4; ld.shared.b32 %d0, [%q5]; ld.b32 %r1, [%q4]; sub.u32 %r1, %r1, %d0;\n\
             add.u32 %d1, %a1, %r1;",
            &inputs,
            &reversed,
        )
        .module(".shared .align 4 .b8 tile[256];\n"),
        Case::lanes(
            "local memory with a computed index",
            "mov.u64 %q0, depot; cvta.local.u64 %q1, %q0; st.local.b32 [depot], %a0; st.local.v2.b32 [%q0+8], {%a1, %a0};\n\
             st.local.u8 [%q0+4], %a1; and.b32 %r0, %a0, 1; mul.wide.u32 %q2, %r0, 12; add.s64 %q3, %q1, %q2; ld.b32 %d0, [%q3];\n\
             cvta.to.local.u64 %q4, %q3; ld.local.b32 %r1, [%q4]; ld.local.b32 %d1, [%q0+8]; ld.local.u8 %d2, [%q0+4];\n\
             sub.u32 %r1, %r1, %d0; add.u32 %d1, %d1, %r1;",
            &inputs,
            // Index 0 and index 12 both hold the first word.
            |[a, b]| [a, b, b & 0xff],
        )
        .locals(".local .align 16 .b8 depot[32];\n"),
        Case::lanes(
            "constant and initialised global memory",
            "and.b32 %r0, %a0, 3; mul.wide.u32 %q0, %r0, 4; mov.u64 %q1, constants; add.s64 %q2, %q1, %q0; ld.const.b32 %d0, [%q2];\n\
             mov.u64 %q3, variables; add.s64 %q4, %q3, %q0; ld.global.b32 %d1, [%q4]; ld.const.f32 %d2, [constants+16];\n\
             ld.global.b32 %d3, [variables+4]; ld.const.u8 %d4, [letters+1];",
            &inputs,
            move |[a, _]| [table(a), table(a), 1.5f32.to_bits(), 22, 0xfe],
        )
        .module(
            ".const .align 4 .b32 constants[5] = {11, 22, 33, 44, 0x3FC00000};\n\
             .global .align 4 .u32 variables[4] = {11, 22, 33, 44};\n\
             .const .align 1 .b8 letters[3] = {1, 254, 3};\n",
        ),
        Case::lanes(
            "isspacep",
            "mov.u32 %r0, tile; cvt.u64.u32 %q0, %r0; cvta.shared.u64 %q0, %q0; mov.u64 %q1, depot; cvta.local.u64 %q1, %q1;\n\
             cvta.global.u64 %q2, %src; isspacep.shared %p0, %q0; isspacep.global %p1, %q0; isspacep.local %p2, %q1;\n\
             isspacep.shared %p3, %q1; isspacep.global %p4, %q2; isspacep.local %p5, %q2; selp.b32 %d0, 1, 0, %p0;\n\
             selp.b32 %d1, 1, 0, %p1; selp.b32 %d2, 1, 0, %p2; selp.b32 %d3, 1, 0, %p3; selp.b32 %d4, 1, 0, %p4;\n\
             selp.b32 %d5, 1, 0, %p5;",
            &inputs,
            |_| [1, 0, 1, 0, 1, 0],
        )
        .module(".shared .align 4 .b8 tile[4];\n")
        .locals(".local .align 4 .b8 depot[4];\n"),
    ]
}

/// Every thread has a word of its own, where the old and the new value are both seen; then contended words.
fn atomics() -> Vec<Case> {
    let mut inputs = rows::<2>(60);
    inputs.extend([
        [7, 7],
        [7, 8],
        [0, 5],
        [u32::MAX, 1],
        [0x8000_0000, 3],
        [3, 0x8000_0000],
    ]);
    let mut cases = Vec::new();
    type Update = (&'static str, fn(u32, u32) -> u32);
    let words: [Update; 14] = [
        ("add.u32", u32::wrapping_add),
        ("add.s32", u32::wrapping_add),
        ("min.u32", u32::min),
        ("max.u32", u32::max),
        ("min.s32", |a, b| (a as i32).min(b as i32) as u32),
        ("max.s32", |a, b| (a as i32).max(b as i32) as u32),
        ("and.b32", |a, b| a & b),
        ("or.b32", |a, b| a | b),
        ("xor.b32", |a, b| a ^ b),
        ("exch.b32", |_, b| b),
        // inc wraps to 0 at b; dec wraps to b at 0 and from above b.
        ("inc.u32", |a, b| if a >= b { 0 } else { a + 1 }),
        ("dec.u32", |a, b| if a == 0 || a > b { b } else { a - 1 }),
        ("add.f32", |a, b| {
            (f32::from_bits(a) + f32::from_bits(b)).to_bits()
        }),
        ("relaxed.gpu.add.u32", u32::wrapping_add),
    ];
    let real: Vec<[u32; 2]> = inputs
        .iter()
        .map(|row| row.map(|w| w & 0x83ff_ffff | 0x3c00_0000))
        .collect();
    for (op, update) in words {
        let inputs = if op.ends_with("f32") { &real } else { &inputs };
        let (order, op) = match op.strip_prefix("relaxed.gpu.") {
            Some(rest) => ("relaxed.gpu.", rest),
            None => ("", op),
        };
        let red = if op.starts_with("exch") {
            format!("atom.{order}global.{op} %r0, [%dst+8], %a1;")
        } else {
            format!("red.{order}global.{op} [%dst+8], %a1;")
        };
        cases.push(Case::lanes(
            &format!("atom and red {order}{op}"),
            &format!(
                "st.global.b32 [%dst+4], %a0; st.global.b32 [%dst+8], %a0; atom.{order}global.{op} %d0, [%dst+4], %a1;\n\
                 {red} ld.global.b32 %d1, [%dst+4]; ld.global.b32 %d2, [%dst+8];\n\
                 shl.b32 %r1, %index, 2; and.b32 %r1, %r1, 255; mov.u32 %r2, tile; add.u32 %r1, %r1, %r2;\n\
                 st.shared.b32 [%r1], %a0; atom.{order}shared.{op} %d3, [%r1], %a1; ld.shared.b32 %d4, [%r1];"
            ),
            inputs,
            move |[a, b]| {
                let new = update(a, b);
                [a, new, new, a, new]
            },
        )
        .module(".shared .align 4 .b8 tile[256];\n"));
    }
    cases.push(
        Case::lanes(
            "atom.cas.b32",
            "st.global.b32 [%dst+4], %a0; atom.global.cas.b32 %d0, [%dst+4], 7, %a1; ld.global.b32 %d1, [%dst+4];",
            &inputs,
            |[a, b]| [a, if a == 7 { b } else { a }],
        ),
    );
    cases.push(
        Case::lanes(
            "atom.add.f32 on global memory flushes subnormals",
            "st.global.b32 [%dst+4], %a0; atom.global.add.f32 %d0, [%dst+4], %a1; ld.global.b32 %d1, [%dst+4];",
            &[[1, 1], [0x0080_0000, 0x8000_0001], [0x0080_0000, 0x8080_0001]],
            |[a, b]| {
                let sum = flush(f32::from_bits(a)) + flush(f32::from_bits(b));
                [a, flush(sum).to_bits()]
            },
        )
        .compare(Compare::F32),
    );
    type Long = (&'static str, fn(u64, u64) -> u64);
    let longs: [Long; 6] = [
        ("add.u64", u64::wrapping_add),
        ("min.s64", |a, b| (a as i64).min(b as i64) as u64),
        ("max.u64", u64::max),
        ("and.b64", |a, b| a & b),
        ("exch.b64", |_, b| b),
        ("cas.b64", |a, _| !a),
    ];
    let long_inputs = rows::<4>(40);
    for (op, update) in longs {
        let operands = if op.starts_with("cas") {
            "%q0, %q3"
        } else {
            "%q1"
        };
        cases.push(Case::lanes(
            &format!("atom.{op}"),
            &format!(
                "mov.b64 %q0, {{%a0, %a1}}; mov.b64 %q1, {{%a2, %a3}}; not.b64 %q3, %q0; st.global.b64 [%dst+8], %q0;\n\
                 atom.global.{op} %q2, [%dst+8], {operands}; mov.b64 {{%d0, %d1}}, %q2; ld.global.v2.b32 {{%d2, %d3}}, [%dst+8];"
            ),
            &long_inputs,
            move |[a, b, c, d]| {
                let [new_low, new_high] = split(update(join(a, b), join(c, d)));
                [a, b, new_low, new_high]
            },
        ));
    }
    type Packed = (&'static str, u32, Format);
    let packed: [Packed; 2] = [("f16x2", 75, F16), ("bf16x2", 90, BF16)];
    for (name, sm, format) in packed {
        cases.push(
            Case::lanes(
                &format!("atom.add.noftz.{name}"),
                &format!(
                    "st.global.b32 [%dst+4], %a0; atom.global.add.noftz.{name} %d0, [%dst+4], %a1; ld.global.b32 %d1, [%dst+4];"
                ),
                &inputs,
                move |[a, b]| {
                    let add = |x, y| half::add(format, x, y, Rounding::NearestEven, Finish::default());
                    [a, half::packed2(a, b, add)]
                },
            )
            .sm(sm),
        );
    }
    cases.push(
        Case::lanes(
            "atom and red add.f64",
            "cvt.f64.f32 %q0, %a0; cvt.f64.f32 %q1, %a1; st.global.b64 [%dst+8], %q0; atom.global.add.f64 %q2, [%dst+8], %q1;\n\
             red.global.add.f64 [%dst+8], %q2; mov.b64 {%d0, %d1}, %q2; ld.global.v2.b32 {%d2, %d3}, [%dst+8];",
            &real,
            |[a, b]| {
                let [x, y] = [a, b].map(|w| f64::from(f32::from_bits(w)));
                let ([d0, d1], [d2, d3]) = (split(x.to_bits()), split((x + y + x).to_bits()));
                [d0, d1, d2, d3]
            },
        ),
    );
    let contended = rows::<1>(128);
    let (sum, largest) = contended.iter().fold((0u32, 0), |(sum, largest), &[w]| {
        (sum.wrapping_add(w), w.max(largest))
    });
    cases.push(
        Case::new(
            "contended atomics in shared memory",
            "mov.u32 %r0, counters; setp.ne.u32 %p0, %index, 0; @!%p0 st.shared.v2.b32 [%r0], {0, 0};\n\
             @!%p0 st.shared.v2.b32 [%r0+8], {0, 0}; bar.sync 0; red.shared.add.u32 [%r0], %a0;\n\
             atom.shared.max.u32 %r1, [%r0+4], %a0; atom.shared.add.u32 %r2, [%r0+8], 1; mul.lo.u32 %r3, %r2, %r2;\n\
             atom.shared.inc.u32 %r5, [%r0+12], 99; red.shared.xor.b32 [%r0+8], 0; bar.sync 0;\n\
             ld.shared.v4.b32 {%d0, %d1, %d2, %d3}, [%r0];",
            &contended,
            // 128 increments modulo 100.
            &[[sum, largest, 128, 28]; 128],
        )
        .block(128)
        .module(".shared .align 16 .b8 counters[16];\n"),
    );
    cases
}

/// The first `count` bytes of a row, zeros after them.
fn keep_bytes(row: [u32; 4], count: usize) -> [u32; 4] {
    std::array::from_fn(|word| {
        let bytes = count.saturating_sub(4 * word).min(4);
        row[word] & ((1u64 << (8 * bytes)) - 1) as u32
    })
}

/// A global variable that is declared inside a kernel is the module's, with its first value.
fn global_of_a_function() -> Case {
    let inputs: Vec<[u32; 1]> = (0..64).map(|i| [i]).collect();
    Case::lanes(
        "a global variable inside a function",
        "mov.u64 %q0, table; and.b32 %r0, %a0, 3; mad.wide.u32 %q0, %r0, 4, %q0; ld.global.b32 %d0, [%q0];",
        &inputs,
        |[i]| [10 * (i % 4 + 1)],
    )
    .locals(".global .align 4 .b32 table[4] = {10, 20, 30, 40};\n")
}

/// `cp.async` with its groups. Every thread copies a row of its own.
fn asynchronous() -> Vec<Case> {
    let inputs = rows::<4>(64);
    let shared = "mov.u32 %r0, tile; shl.b32 %r1, %index, 4; add.u32 %r0, %r0, %r1;";
    let load = "ld.shared.v4.b32 {%d0, %d1, %d2, %d3}, [%r0];";
    let fill = "st.shared.v4.b32 [%r0], {-1, -1, -1, -1};";
    let case = |name: &str, body: &str, f: &dyn Fn([u32; 4]) -> [u32; 4]| {
        Case::lanes(name, &format!("{shared} {body} {load}"), &inputs, f)
            .sm(80)
            .module(".shared .align 16 .b8 tile[1024];\n")
    };
    vec![
        case(
            "cp.async.cg of 16 bytes",
            "cp.async.cg.shared.global [%r0], [%src], 16; cp.async.commit_group; cp.async.wait_group 0;",
            &|row| row,
        ),
        case(
            "cp.async.ca of 4 and 8 bytes",
            "cp.async.ca.shared.global [%r0], [%src+4], 4; cp.async.ca.shared.global [%r0+4], [%src], 4;\n\
             cp.async.ca.shared.global [%r0+8], [%src+8], 8; cp.async.wait_all;",
            &|[a, b, c, d]| [b, a, c, d],
        ),
        Case::new(
            "cp.async fills with zeros",
            &format!(
                "{shared} {fill} and.b32 %r2, %index, 15; cp.async.cg.shared.global [%r0], [%src], 16, %r2;\n\
                 cp.async.commit_group; cp.async.wait_group 0; {load}"
            ),
            &inputs,
            &(0..64).map(|i| keep_bytes(inputs[i], i % 16)).collect::<Vec<_>>(),
        )
        .sm(80)
        .module(".shared .align 16 .b8 tile[1024];\n"),
        case(
            "cp.async with a source size of 0",
            &format!("{fill} cp.async.ca.shared.global [%r0+8], [%src+8], 8, 0; cp.async.wait_all;"),
            &|_| [u32::MAX, u32::MAX, 0, 0],
        ),
        case(
            "cp.async ignores its source",
            &format!(
                "{fill} setp.lt.s32 %p0, %a0, 0; cp.async.ca.shared.global [%r0], [%src], 8, %p0;\n\
                 cp.async.ca.shared.global [%r0+8], [%src+8], 8; cp.async.wait_all;"
            ),
            &|[a, b, c, d]| {
                if (a as i32) < 0 {
                    [0, 0, c, d]
                } else {
                    [a, b, c, d]
                }
            },
        ),
        case(
            "cp.async groups complete in order",
            "cp.async.ca.shared.global [%r0], [%src], 8; cp.async.commit_group; cp.async.ca.shared.global [%r0+8], [%src+8], 8;\n\
             cp.async.commit_group; cp.async.wait_group 1; ld.shared.v2.b32 {%r4, %r5}, [%r0]; cp.async.wait_group 0;\n\
             ld.shared.v2.b32 {%r6, %r7}, [%r0+8]; st.shared.v4.b32 [%r0], {%r6, %r7, %r4, %r5};",
            &|[a, b, c, d]| [c, d, a, b],
        ),
        Case::new(
            "cp.async is seen by other threads after a barrier",
            &format!(
                "{shared} cp.async.cg.shared.global [%r0], [%src], 16; cp.async.commit_group; cp.async.wait_group 0; bar.sync 0;\n\
                 xor.b32 %r1, %r1, 48; mov.u32 %r0, tile; add.u32 %r0, %r0, %r1; {load}"
            ),
            &inputs,
            &(0..64).map(|i| inputs[i ^ 3]).collect::<Vec<_>>(),
        )
        .sm(80)
        .module(".shared .align 16 .b8 tile[1024];\n"),
    ]
}

/// Cache policies, which do not change values.
fn policies() -> Vec<Case> {
    let inputs = rows::<4>(70);
    let body = "mov.u32 %r0, tile; and.b32 %r1, %index, 63; shl.b32 %r1, %r1, 4; add.u32 %r0, %r0, %r1;\n\
         createpolicy.fractional.L2::evict_last.b64 %q0, 1.0;\n\
         createpolicy.fractional.L2::evict_first.L2::evict_unchanged.b64 %q1; mov.b32 %r9, 64;\n\
         createpolicy.range.global.L2::evict_last.L2::evict_first.b64 %q2, [%src], 16, %r9;\n\
         createpolicy.range.L2::evict_normal.b64 %q3, [%src+4], 4, 4;\n\
         cp.async.ca.shared.global.L2::cache_hint [%r0], [%src], 8, %q0; mov.b32 %r2, 4;\n\
         cp.async.ca.shared.global.L2::cache_hint.L2::128B [%r0+8], [%src], 8, %r2, %q1; cp.async.wait_all;\n\
         ld.shared.v4.b32 {%d0, %d1, %d2, %d3}, [%r0];\n\
         ld.global.L1::no_allocate.L2::cache_hint.v2.b32 {%r3, %d4}, [%src], %q2;\n\
         st.global.L2::cache_hint.b32 [%dst+20], %r3, %q3; red.global.add.L2::cache_hint.u32 [%dst+20], 7, %q0;\n\
         atom.global.add.L2::cache_hint.u32 %d5, [%dst+20], 5, %q0; ld.global.b32 %d6, [%dst+20];";
    let case = Case::lanes("cache policies", body, &inputs, |[a, b, ..]| {
        let seven = a.wrapping_add(7);
        // The second copy has 4 of its 8 bytes.
        [a, b, a, 0, b, seven, seven.wrapping_add(5)]
    });
    vec![case.sm(80).module(".shared .align 16 .b8 tile[1024];\n")]
}
