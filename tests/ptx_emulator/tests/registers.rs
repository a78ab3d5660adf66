//! Registers that are used before they are written, and sums of products that the assembler may fuse.

use ptx_emulator::{Check, Class, Counters, Fault, LoadError, Machine, Options};

/// A kernel with this body: `%y` points to the thread's own word, `%t` is the thread and `%b` the block.
fn kernel(body: &str) -> String {
    format!(
        ".version 9.0\n.target sm_80\n.address_size 64\n.file 1 \"kernel.cu\"\n\
         .entry k(.param .u64 y, .param .u32 n)\n{{\n\
         .reg .b32 %t, %b, %n, %r<9>;\n.reg .b64 %y, %q<9>;\n.reg .f32 %f<9>;\n.reg .pred %p<9>;\n\
         ld.param.u64 %y, [y];\nld.param.u32 %n, [n];\nmov.u32 %t, %tid.x;\nmov.u32 %b, %ctaid.x;\n\
         mad.lo.u32 %r8, %b, 32, %t;\nmad.wide.u32 %y, %r8, 4, %y;\nsetp.lt.u32 %p0, %t, %n;\n\
         .loc 1 7 0\n{body}\nret;\n}}\n"
    )
}

struct Run {
    words: Vec<u32>,
    counters: Counters,
}

fn run_with(options: Options, body: &str, blocks: u32, n: u32) -> Result<Run, Fault> {
    let machine = Machine::new(options);
    let module = machine
        .load(&kernel(body))
        .unwrap_or_else(|e: LoadError| panic!("{e}"));
    let bytes = 128 * blocks as usize;
    let y = machine.alloc(bytes as u64)?;
    machine.memset(y, 0, bytes)?;
    let arguments: [&[u8]; 2] = [&y.to_le_bytes(), &n.to_le_bytes()];
    let counters = machine.launch(&module, "k", [blocks, 1, 1], [32, 1, 1], 0, &arguments)?;
    let mut data = vec![0; bytes];
    machine.read(y, &mut data)?;
    let words = data.as_chunks().0.iter().map(|&b| u32::from_le_bytes(b));
    Ok(Run {
        words: words.collect(),
        counters,
    })
}

fn run(body: &str, blocks: u32, n: u32) -> Result<Run, Fault> {
    let options = Options {
        threads: 1,
        ..Options::default()
    };
    run_with(options, body, blocks, n)
}

/// The fault names the register, its place in the source, and the thread.
#[track_caller]
fn assert_unwritten(body: &str, blocks: u32, n: u32, register: &str, at: (u32, u32)) {
    let fault = run(body, blocks, n).map(|run| run.words).unwrap_err();
    assert_eq!(fault.check, Check::Unwritten, "{fault}");
    assert_eq!(fault.kernel, "k");
    let text = fault.to_string();
    let expected = format!("nothing has written the register {register}");
    assert!(
        text.contains(&expected) && text.contains("kernel.cu:7"),
        "{text}"
    );
    let place = fault.place.unwrap();
    assert_eq!((place.block[0], place.thread[0]), at, "{text}");
}

const SOME: &str = "@!%p0 bra JOIN;\nmov.b32 %r1, 5;\nJOIN:\n";

#[test]
fn a_register_that_nothing_writes() {
    assert_unwritten("st.global.b32 [%y], %r1;", 1, 32, "%r1", (0, 0));
    assert_unwritten("ld.global.b32 %r1, [%q3];", 1, 32, "%q3", (0, 0));
    assert_unwritten("@%p1 st.global.b32 [%y], %t;", 1, 32, "%p1", (0, 0));
    assert_unwritten(
        "@%p1 bra OUT;\nst.global.b32 [%y], %t;\nOUT:",
        1,
        32,
        "%p1",
        (0, 0),
    );
    assert_unwritten(
        "shfl.sync.bfly.b32 %r1, %r2, 1, 31, -1;",
        1,
        32,
        "%r2",
        (0, 0),
    );
    assert_unwritten("bar.sync %r4;", 1, 32, "%r4", (0, 0));
}

#[test]
fn a_register_that_some_threads_write() {
    let body = format!("{SOME}st.global.b32 [%y], %r1;");
    assert_eq!(run(&body, 1, 32).unwrap().words, [5; 32]);
    assert_unwritten(&body, 1, 20, "%r1", (0, 20));
    // Through a sum: the fault names the missing register, and the one made of it.
    let sum =
        format!("{SOME}add.s32 %r2, %r1, 1;\nmul.lo.s32 %r3, %t, %r2;\nst.global.b32 [%y], %r3;");
    assert_unwritten(
        &sum,
        1,
        20,
        "%r1, and the register %r3 is made of it",
        (0, 20),
    );
    // A guarded write counts only for the lanes of its guard.
    let guarded = "@%p0 mov.b32 %r1, 5;\nst.global.b32 [%y], %r1;";
    assert_eq!(run(guarded, 1, 32).unwrap().words, [5; 32]);
    assert_unwritten(guarded, 1, 7, "%r1", (0, 7));
    // In the first turn of a loop there is no value.
    let turn = "mov.b32 %r2, 0;\nHEAD:\nsetp.eq.u32 %p1, %r2, 0;\n@%p1 bra SKIP;\nst.global.b32 [%y], %r1;\nSKIP:\n\
                mov.b32 %r1, %r2;\nadd.u32 %r2, %r2, 1;\nsetp.lt.u32 %p2, %r2, 3;\n@%p2 bra HEAD;";
    assert_eq!(run(turn, 1, 32).unwrap().words, [1; 32]);
    assert_unwritten(
        &turn.replace("eq.u32 %p1, %r2, 0", "eq.u32 %p1, %r2, 1"),
        1,
        32,
        "%r1",
        (0, 0),
    );
}

/// Rows left by an earlier block do not count as values.
#[test]
fn a_block_starts_without_values() {
    let body =
        "setp.ne.u32 %p1, %b, 0;\n@%p1 bra JOIN;\nmov.b32 %r1, 5;\nJOIN:\nst.global.b32 [%y], %r1;";
    assert_eq!(run(body, 1, 0).unwrap().words, [5; 32]);
    assert_unwritten(body, 3, 0, "%r1", (1, 0));
}

/// Optimised code may compute with missing values that no thread uses.
#[test]
fn what_no_thread_uses_is_no_fault() {
    // Written and used under one condition, by branches and by guards.
    let twice = format!("{SOME}@!%p0 bra OUT;\nst.global.b32 [%y], %r1;\nOUT:");
    let guards = "@%p0 mov.b32 %r1, 5;\n@%p0 st.global.b32 [%y], %r1;";
    // Computed for all, and then not selected.
    let selected = format!(
        "{SOME}add.s32 %r2, %r1, 1;\nmov.b32 %r3, %r2;\nselp.b32 %r4, %r3, 1, %p0;\nsub.s32 %r4, %r4, 1;\nst.global.b32 [%y], %r4;"
    );
    // One operand decides an `and`.
    let decided = format!(
        "{SOME}setp.eq.s32 %p1, %r1, 5;\nand.pred %p2, %p0, %p1;\nselp.b32 %r2, 5, 0, %p2;\nst.global.b32 [%y], %r2;"
    );
    let either = format!(
        "{SOME}setp.ne.s32 %p1, %r1, 5;\nnot.pred %p3, %p0;\nor.pred %p2, %p1, %p3;\n@%p2 bra OUT;\nst.global.b32 [%y], 5;\nOUT:"
    );
    for body in [&twice, guards, &selected, &decided, &either] {
        for n in [0, 11, 32] {
            let words = run(body, 2, n)
                .unwrap_or_else(|fault| panic!("{fault}\n{body}"))
                .words;
            let expected = (0..64).map(|i| if i % 32 < n { 5 } else { 0 });
            assert_eq!(words, expected.collect::<Vec<_>>(), "{body}");
        }
    }
}

/// 1 + 2^-13 and 1 - 2^-13, whose product 1 - 2^-26 rounds to 1.
const FACTORS: &str =
    "mov.f32 %f1, 0f3F800400;\nmov.f32 %f2, 0f3F7FF800;\nmov.f32 %f3, 0f3F800000;\n";

#[test]
fn a_sum_of_a_product_is_fused_where_it_may_be() {
    let twice = "add.f32 %f5, %f4, %f3;\nsub.f32 %f6, %f4, %f3;";
    // The body, its value with two roundings, and with one.
    let small = (-26f32).exp2();
    for (body, plain, fused) in [
        (
            "mul.f32 %f4, %f1, %f2;\nsub.f32 %f6, %f4, %f3;",
            0.0,
            -small,
        ),
        ("mul.f32 %f4, %f1, %f2;\nsub.f32 %f6, %f3, %f4;", 0.0, small),
        (
            "mul.f32 %f4, %f1, %f2;\nneg.f32 %f3, %f3;\nadd.f32 %f6, %f3, %f4;",
            0.0,
            -small,
        ),
        // Not fused: a rounding is given, the product has another use or goes to another block, or a factor is gone.
        (
            "mul.rn.f32 %f4, %f1, %f2;\nsub.f32 %f6, %f4, %f3;",
            0.0,
            0.0,
        ),
        (
            "mul.f32 %f4, %f1, %f2;\nsub.rn.f32 %f6, %f4, %f3;",
            0.0,
            0.0,
        ),
        (&format!("mul.f32 %f4, %f1, %f2;\n{twice}"), 0.0, 0.0),
        (
            "mul.f32 %f4, %f1, %f2;\nbra NEXT;\nNEXT:\nsub.f32 %f6, %f4, %f3;",
            0.0,
            0.0,
        ),
        (
            "mul.f32 %f4, %f1, %f2;\nmov.f32 %f1, %f3;\nsub.f32 %f6, %f4, %f1;",
            0.0,
            0.0,
        ),
    ] {
        for (contract, expected) in [(false, plain), (true, fused)] {
            let options = Options {
                contract,
                ..Options::default()
            };
            let body = format!("{FACTORS}{body}\nst.global.f32 [%y], %f6;");
            let run = run_with(options, &body, 1, 0).unwrap();
            assert_eq!(
                run.words,
                [f32::to_bits(expected); 32],
                "{contract}: {body}"
            );
            assert_eq!(run.counters.of(Class::Fma) > 0, expected != 0.0, "{body}");
        }
    }
}

#[test]
fn doubles_are_fused_too() {
    let body = "mov.f64 %q1, 0d3FF0000002000000;\nmov.f64 %q2, 0d3FEFFFFFFC000000;\nmov.f64 %q3, 0d3FF0000000000000;\n\
                mul.f64 %q4, %q1, %q2;\nsub.f64 %q5, %q3, %q4;\ncvt.rn.f32.f64 %f1, %q5;\nst.global.f32 [%y], %f1;";
    for (contract, expected) in [(false, 0f32), (true, (-54f32).exp2())] {
        let options = Options {
            contract,
            ..Options::default()
        };
        let run = run_with(options, body, 1, 0).unwrap();
        assert_eq!(run.words, [expected.to_bits(); 32]);
    }
}
