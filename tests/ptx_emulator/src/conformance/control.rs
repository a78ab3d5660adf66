//! Branches, predication, calls, barriers and special registers.

use super::{Case, mixed, singles};

pub(super) fn cases() -> Vec<Case> {
    [branches(), calls(), barriers(), registers()].concat()
}

fn branches() -> Vec<Case> {
    let inputs: Vec<[u32; 2]> = mixed(180).as_chunks().0.to_vec();
    vec![
        Case::lanes(
            "predicated execution",
            "setp.gt.s32 %p0, %a0, 0; mov.b32 %d0, 1; @%p0 mov.b32 %d0, 2; mov.b32 %d1, 3; @!%p0 add.u32 %d1, %a0, %a1;\n\
             st.global.b32 [%dst+8], %a0; @%p0 st.global.b32 [%dst+8], %a1; ld.global.b32 %d2, [%dst+8]; mov.b32 %d3, 9;\n\
             @!%p0 ld.global.b32 %d3, [%src+4];",
            &inputs,
            |[a, b]| {
                if a as i32 > 0 {
                    [2, 3, b, 9]
                } else {
                    [1, a.wrapping_add(b), a, b]
                }
            },
        ),
        Case::lanes(
            "nested divergent branches",
            "and.b32 %r0, %a0, 1; and.b32 %r1, %a0, 2; setp.ne.u32 %p0, %r0, 0; setp.ne.u32 %p1, %r1, 0; mov.b32 %d0, 0;\n\
             @%p0 bra odd;\n@%p1 bra even_two;\nmov.b32 %d0, 10; bra.uni join;\neven_two:\nmov.b32 %d0, 20; bra.uni join;\n\
             odd:\n@!%p1 bra odd_one;\nmov.b32 %d0, 30; bra.uni join;\nodd_one:\nmov.b32 %d0, 40;\njoin:\nadd.u32 %d0, %d0, 1;",
            &inputs,
            |[a, _]| [[11, 41, 21, 31][a as usize & 3]],
        ),
        Case::lanes(
            "a loop of each lane's own length",
            "and.b32 %r0, %a0, 63; mov.b32 %r1, 0; mov.b32 %d0, 0;\nhead:\nsetp.ge.u32 %p0, %r1, %r0;\n@%p0 bra exit_loop;\n\
             and.b32 %r2, %r1, 3; setp.eq.u32 %p1, %r2, 2;\n@%p1 bra skip;\nmad.lo.u32 %d0, %r1, 3, %d0;\nskip:\n\
             add.u32 %r1, %r1, 1; bra.uni head;\nexit_loop:\nadd.u32 %d0, %d0, %a1;",
            &inputs,
            |[a, b]| {
                let sum: u32 = (0..a & 63).filter(|i| i & 3 != 2).map(|i| 3 * i).sum();
                [sum.wrapping_add(b)]
            },
        ),
        Case::lanes(
            "nested loops that end early",
            "and.b32 %r0, %a0, 7; and.b32 %r1, %a1, 15; mov.b32 %d0, 0; mov.b32 %r2, 0;\nouter:\nsetp.ge.u32 %p0, %r2, 8;\n\
             @%p0 bra finished;\nmov.b32 %r3, 0;\ninner:\nadd.u32 %d0, %d0, 1; add.u32 %r4, %r2, %r3; setp.eq.u32 %p1, %r4, %r1;\n\
             @%p1 bra finished;\nadd.u32 %r3, %r3, 1; setp.le.u32 %p2, %r3, %r0;\n@%p2 bra inner;\nadd.u32 %r2, %r2, 1;\n\
             bra.uni outer;\nfinished:\nmul.lo.u32 %d0, %d0, 5;",
            &inputs,
            |[a, b]| {
                let (width, stop) = (a & 7, b & 15);
                let mut steps = 0;
                'outer: for i in 0..8 {
                    for j in 0..=width {
                        steps += 1;
                        if i + j == stop {
                            break 'outer;
                        }
                    }
                }
                [5 * steps]
            },
        ),
        Case::lanes(
            "threads that leave early",
            "st.global.b32 [%dst], 77; and.b32 %r0, %a0, 3; setp.eq.u32 %p0, %r0, 0; @%p0 exit; setp.eq.u32 %p1, %r0, 1;\n\
             @%p1 bra leave;\nadd.u32 %d0, %a0, %a1; bra.uni stay;\nleave:\nst.global.b32 [%dst], 88; ret;\nstay:\n\
             add.u32 %d0, %d0, 1;",
            &inputs,
            |[a, b]| match a & 3 {
                0 => [77],
                1 => [88],
                _ => [a.wrapping_add(b).wrapping_add(1)],
            },
        ),
        Case::lanes(
            "brx.idx",
            "and.b32 %r0, %a0, 3; targets: .branchtargets zero, one, two, one;\nbrx.idx %r0, targets;\nzero:\nmov.b32 %d0, 100;\n\
             bra.uni join;\none:\nmov.b32 %d0, 200; bra.uni join;\ntwo:\nmov.b32 %d0, 300;\njoin:\nadd.u32 %d0, %d0, %r0;",
            &inputs,
            |[a, _]| [[100, 201, 302, 203][a as usize & 3]],
        ),
    ]
}

fn calls() -> Vec<Case> {
    let inputs: Vec<[u32; 2]> = mixed(140).as_chunks().0.to_vec();
    // Square of x plus y, and a function that calls it and another way out.
    let functions = ".func (.param .b32 result) square_plus(.param .b32 x, .param .b32 y)\n{\n\
         \t.reg .b32 %t<4>;\n\tld.param.b32 %t0, [x];\n\tld.param.b32 %t1, [y];\n\tmad.lo.u32 %t2, %t0, %t0, %t1;\n\
         \tst.param.b32 [result], %t2;\n\tret;\n}\n\
         .func (.param .b64 result) outer(.param .b32 x)\n{\n\
         \t.reg .b32 %t<8>;\n\t.reg .b64 %w<2>;\n\t.reg .pred %c;\n\tld.param.b32 %t0, [x];\n\tand.b32 %t1, %t0, 1;\n\
         \tsetp.eq.u32 %c, %t1, 0;\n\t@%c bra even;\n\
         \t{\n\t.param .b32 p0;\n\tst.param.b32 [p0], %t0;\n\t.param .b32 p1;\n\tst.param.b32 [p1], 3;\n\t.param .b32 r;\n\
         \tcall.uni (r), square_plus, (p0, p1);\n\tld.param.b32 %t2, [r];\n\t}\n\
         \tcvt.u64.u32 %w0, %t2;\n\tst.param.b64 [result], %w0;\n\tret;\n\
         even:\n\tmov.b64 %w0, {%t0, %t0};\n\tst.param.b64 [result], %w0;\n\tret;\n}\n\
         .func (.param .align 8 .b8 result[8]) swap(.param .align 8 .b8 pair[8])\n{\n\
         \t.reg .b32 %t<2>;\n\tld.param.v2.b32 {%t0, %t1}, [pair];\n\tst.param.v2.b32 [result], {%t1, %t0};\n\tret;\n}\n";
    vec![
        Case::lanes(
            "function calls",
            "{\n.param .b32 p0;\nst.param.b32 [p0], %a0;\n.param .b32 p1;\nst.param.b32 [p1], %a1;\n.param .b32 r;\n\
             call (r), square_plus, (p0, p1);\nld.param.b32 %d0, [r];\n}\n\
             {\n.param .b32 p0;\nst.param.b32 [p0], %a0;\n.param .b64 r;\ncall (r), outer, (p0);\nld.param.b64 %q0, [r];\n}\n\
             mov.b64 {%d1, %d2}, %q0;",
            &inputs,
            |[a, b]| {
                let square = a.wrapping_mul(a);
                let [low, high] = if a & 1 == 1 {
                    [square.wrapping_add(3), 0]
                } else {
                    [a, a]
                };
                [square.wrapping_add(b), low, high]
            },
        )
        .module(functions),
        Case::lanes(
            "structures by value",
            "{\n.param .align 8 .b8 p0[8];\nst.param.b32 [p0], %a0;\nst.param.b32 [p0+4], %a1;\n.param .align 8 .b8 r[8];\n\
             call.uni (r), swap, (p0);\nld.param.b32 %d0, [r];\nld.param.b32 %d1, [r+4];\n}\n",
            &inputs,
            |[a, b]| [b, a],
        )
        .module(functions),
        Case::lanes(
            "a call by some threads",
            "mov.b32 %d0, 5; setp.lt.s32 %p0, %a0, 0;\n@!%p0 bra after;\n\
             {\n.param .b32 p0;\nst.param.b32 [p0], %a1;\n.param .b32 p1;\nst.param.b32 [p1], 1;\n.param .b32 r;\n\
             call.uni (r), square_plus, (p0, p1);\nld.param.b32 %d0, [r];\n}\nafter:\nadd.u32 %d0, %d0, 1;",
            &inputs,
            |[a, b]| {
                [if (a as i32) < 0 {
                    b.wrapping_mul(b).wrapping_add(2)
                } else {
                    6
                }]
            },
        )
        .module(functions),
    ]
}

fn barriers() -> Vec<Case> {
    let inputs: Vec<[u32; 1]> = mixed(128).iter().map(|&w| [w]).collect();
    let negative = inputs.iter().filter(|&&[a]| (a as i32) < 0).count() as u32;
    let handed_over: Vec<[u32; 1]> = (0..128)
        .map(|i| if i < 64 { [inputs[i + 64][0]] } else { [1] })
        .collect();
    let halves: Vec<[u32; 1]> = (0..128).map(|i| inputs[i ^ 63]).collect();
    let address = "mov.u32 %r0, tile; shl.b32 %r1, %index, 2;";
    let tile = ".shared .align 4 .b8 tile[512];\n";
    vec![
        Case::new(
            "bar.red",
            "setp.lt.s32 %p0, %a0, 0; bar.red.popc.u32 %d0, 0, %p0; bar.red.and.pred %p1, 1, %p0; bar.red.or.pred %p2, 2, %p0;\n\
             setp.ne.u32 %p3, %a0, 12345; bar.red.and.pred %p4, 1, %p3; bar.red.or.pred %p5, 2, !%p3;\n\
             barrier.red.popc.aligned.u32 %d5, 3, 128, !%p0; selp.b32 %d1, 1, 0, %p1; selp.b32 %d2, 1, 0, %p2;\n\
             selp.b32 %d3, 1, 0, %p4; selp.b32 %d4, 1, 0, %p5;",
            &inputs,
            &[[negative, 0, 1, 1, 0, 128 - negative]; 128],
        )
        .block(128),
        // Each half of the block mirrors its words behind a barrier of its own.
        Case::new(
            "named barriers of half a block",
            &format!(
                "{address} add.u32 %r2, %r0, %r1; st.shared.b32 [%r2], %a0; setp.lt.u32 %p0, %index, 64;\n@%p0 bra low;\n\
                 mov.b32 %r4, 2; bar.sync %r4, 64; bra.uni join;\nlow:\nbar.sync 1, 64;\njoin:\nxor.b32 %r1, %r1, 252; add.u32 %r3, %r0, %r1;\n\
                 ld.shared.b32 %d0, [%r3];"
            ),
            &inputs,
            &halves,
        )
        .block(128)
        .module(tile),
        // The upper half produces and goes on; the lower half waits for it.
        Case::new(
            "bar.arrive",
            &format!(
                "{address} setp.lt.u32 %p0, %index, 64;\n@%p0 bra consume;\nadd.u32 %r2, %r0, %r1; st.shared.b32 [%r2+-256], %a0;\n\
                 bar.arrive 5, 128; mov.b32 %d0, 1; bra.uni join;\nconsume:\nbar.sync 5, 128; add.u32 %r2, %r0, %r1;\n\
                 ld.shared.b32 %d0, [%r2];\njoin:\nbarrier.sync 0;"
            ),
            &inputs,
            &handed_over,
        )
        .block(128)
        .module(tile),
        Case::new(
            "many barriers in a loop",
            &format!(
                "{address} add.u32 %r2, %r0, %r1; mov.b32 %d0, %a0; mov.b32 %r5, 0;\nhead:\nst.shared.b32 [%r2], %d0; bar.sync 0;\n\
                 add.u32 %r3, %r1, 4; and.b32 %r3, %r3, 511; add.u32 %r3, %r3, %r0; ld.shared.b32 %d0, [%r3]; bar.sync 0;\n\
                 add.u32 %r5, %r5, 1; setp.lt.u32 %p0, %r5, 10;\n@%p0 bra head;"
            ),
            &inputs,
            &(0..128).map(|i| inputs[(i + 10) % 128]).collect::<Vec<_>>(),
        )
        .block(128)
        .module(tile),
    ]
}

fn registers() -> Vec<Case> {
    let outputs: Vec<[u32; 8]> = (0..96 * 3)
        .map(|i| {
            let (thread, block) = (i % 96, i / 96);
            let lane = thread % 32;
            [thread, 96, block, 3, lane, 1 << lane, (1 << lane) - 1, 0]
        })
        .collect();
    let masks: Vec<[u32; 3]> = (0..32u32)
        .map(|lane| {
            let lower_or_equal = u32::MAX >> (31 - lane);
            [lower_or_equal, !lower_or_equal, !lower_or_equal | 1 << lane]
        })
        .collect();
    vec![
        Case::new(
            "special registers",
            "mov.u32 %d0, %tid.x; mov.u32 %d1, %ntid.x; mov.u32 %d2, %ctaid.x; mov.u32 %d3, %nctaid.x; mov.u32 %d4, %laneid;\n\
             mov.u32 %d5, %lanemask_eq; mov.u32 %d6, %lanemask_lt; mov.u32 %r0, %tid.y; mov.u32 %r1, %ctaid.z; or.b32 %d7, %r0, %r1;",
            &vec![[0; 1]; 96 * 3],
            &outputs,
        )
        .block(96),
        Case::new(
            "lane masks",
            "mov.u32 %d0, %lanemask_le; mov.u32 %d1, %lanemask_gt; mov.u32 %d2, %lanemask_ge;",
            &[[0; 1]; 32],
            &masks,
        )
        .block(32),
        Case::lanes(
            "extents of unused dimensions",
            "mov.u32 %r0, %ntid.y; mov.u32 %r1, %ntid.z; mov.u32 %r2, %nctaid.y; mov.u32 %r3, %nctaid.z; mul.lo.u32 %d0, %r0, %r1;\n\
             mul.lo.u32 %d1, %r2, %r3; mov.u32 %d2, WARP_SZ; nanosleep.u32 20;",
            &singles(&[1, 2]),
            |_| [1, 1, 32],
        ),
    ]
}
