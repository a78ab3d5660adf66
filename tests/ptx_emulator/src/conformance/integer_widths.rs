//! 64-bit and 16-bit integers, and chains of 32-bit words through the carry flag.

use super::integer::VALUES;
use super::{Case, join, mixed, pairs, singles, split};

pub(super) fn cases() -> Vec<Case> {
    [wide(), short(), carries()].concat()
}

/// 64-bit operations.
fn wide() -> Vec<Case> {
    let values: Vec<u64> = [
        0,
        1,
        63,
        64,
        0xffff_ffff,
        1 << 32,
        i64::MAX as u64,
        1 << 63,
        u64::MAX,
    ]
    .into_iter()
    .chain(mixed(8).as_chunks().0.iter().map(|&[a, b]| join(a, b)))
    .collect();
    let inputs: Vec<[u32; 4]> = values
        .iter()
        .flat_map(|&a| {
            values.iter().map(move |&b| {
                let ([a0, a1], [b0, b1]) = (split(a), split(b));
                [a0, a1, b0, b1]
            })
        })
        .collect();
    let binary = |op: &str, keep: fn(u64, u64) -> bool, f: fn(u64, u64) -> u64| {
        let inputs: Vec<_> = inputs
            .iter()
            .copied()
            .filter(|&[a, b, c, d]| keep(join(a, b), join(c, d)))
            .collect();
        let body = format!(
            "mov.b64 %q0, {{%a0, %a1}}; mov.b64 %q1, {{%a2, %a3}}; {op} %q2, %q0, %q1; mov.b64 {{%d0, %d1}}, %q2;"
        );
        Case::lanes(op, &body, &inputs, |[a, b, c, d]| {
            split(f(join(a, b), join(c, d)))
        })
    };
    let any = |_, _| true;
    let divisible = |a, b| b != 0 && !(a == 1 << 63 && b == u64::MAX);
    let s = |x: u64| x as i64;
    let unary = |op: &str, f: fn(u64) -> u64| {
        let body = format!("mov.b64 %q0, {{%a0, %a1}}; {op} %q2, %q0; mov.b64 {{%d0, %d1}}, %q2;");
        Case::lanes(op, &body, &inputs, |[a, b, ..]| split(f(join(a, b))))
    };
    let count = |op: &str, f: fn(u64) -> u32| {
        let body = format!("mov.b64 %q0, {{%a0, %a1}}; {op} %d0, %q0;");
        Case::lanes(op, &body, &inputs, |[a, b, ..]| [f(join(a, b))])
    };
    let shift = |op: &str, f: fn(u64, u32) -> u64| {
        let body =
            format!("mov.b64 %q0, {{%a0, %a1}}; {op} %q2, %q0, %a2; mov.b64 {{%d0, %d1}}, %q2;");
        Case::lanes(op, &body, &inputs, |[a, b, n, _]| split(f(join(a, b), n)))
    };
    vec![
        binary("add.s64", any, u64::wrapping_add),
        binary("add.u64", any, u64::wrapping_add),
        binary("sub.s64", any, u64::wrapping_sub),
        binary("mul.lo.s64", any, u64::wrapping_mul),
        binary("mul.lo.u64", any, u64::wrapping_mul),
        binary("mul.hi.u64", any, |a, b| {
            ((u128::from(a) * u128::from(b)) >> 64) as u64
        }),
        binary("mul.hi.s64", any, |a, b| {
            ((i128::from(a as i64) * i128::from(b as i64)) >> 64) as u64
        }),
        binary("div.u64", divisible, |a, b| a / b),
        binary("rem.u64", divisible, |a, b| a % b),
        binary("div.s64", divisible, |a, b| (a as i64 / b as i64) as u64),
        binary("rem.s64", divisible, |a, b| (a as i64 % b as i64) as u64),
        binary("min.s64", any, |a, b| (a as i64).min(b as i64) as u64),
        binary("min.u64", any, u64::min),
        binary("max.s64", any, |a, b| (a as i64).max(b as i64) as u64),
        binary("max.u64", any, u64::max),
        binary("and.b64", any, |a, b| a & b),
        binary("or.b64", any, |a, b| a | b),
        binary("xor.b64", any, |a, b| a ^ b),
        unary("not.b64", |a| !a),
        unary("neg.s64", u64::wrapping_neg),
        unary("abs.s64", |a| (a as i64).wrapping_abs() as u64),
        unary("brev.b64", u64::reverse_bits),
        unary("mov.b64", |a| a),
        count("popc.b64", u64::count_ones),
        count("clz.b64", u64::leading_zeros),
        shift("shl.b64", |a, n| a.checked_shl(n).unwrap_or(0)),
        shift("shr.u64", |a, n| a.checked_shr(n).unwrap_or(0)),
        shift("shr.b64", |a, n| a.checked_shr(n).unwrap_or(0)),
        shift("shr.s64", |a, n| (a as i64 >> n.min(63)) as u64),
        Case::lanes(
            "mad.lo.s64",
            "mov.b64 %q0, {%a0, %a1}; mov.b64 %q1, {%a2, %a3}; mad.lo.s64 %q2, %q0, %q1, %q0; mov.b64 {%d0, %d1}, %q2;",
            &inputs,
            |[a, b, c, d]| {
                let (a, b) = (join(a, b), join(c, d));
                split(a.wrapping_mul(b).wrapping_add(a))
            },
        ),
        Case::lanes(
            "setp and selp on 64 bits",
            "mov.b64 %q0, {%a0, %a1}; mov.b64 %q1, {%a2, %a3};\n\
             setp.lt.s64 %p0, %q0, %q1; setp.lt.u64 %p1, %q0, %q1; setp.eq.b64 %p2, %q0, %q1; setp.ge.s64 %p3, %q0, 64;\n\
             selp.b64 %q2, %q0, %q1, %p0; mov.b64 {%d0, %d1}, %q2; selp.b32 %d2, 1, 0, %p1;\n\
             selp.b32 %d3, 1, 0, %p2; selp.b32 %d4, 1, 0, %p3;",
            &inputs,
            move |[a, b, c, d]| {
                let (a, b) = (join(a, b), join(c, d));
                let [low, high] = split(if s(a) < s(b) { a } else { b });
                [
                    low,
                    high,
                    u32::from(a < b),
                    u32::from(a == b),
                    u32::from(s(a) >= 64),
                ]
            },
        ),
    ]
}

/// 16-bit operations. Results are widened without sign.
fn short() -> Vec<Case> {
    let values = [
        0, 1, 2, 15, 16, 17, 0x7fff, 0x8000, 0x8001, 0xffff, 0x1234, 0xbeef,
    ];
    let binary = |op: &str, f: fn(u16, u16) -> u16| {
        let body = format!(
            "cvt.u16.u32 %h0, %a0; cvt.u16.u32 %h1, %a1; {op} %h2, %h0, %h1; cvt.u32.u16 %d0, %h2;"
        );
        Case::lanes(op, &body, &pairs(&values), |[a, b]| {
            [f(a as u16, b as u16).into()]
        })
    };
    let unary = |op: &str, f: fn(u16) -> u16| {
        let body = format!("cvt.u16.u32 %h0, %a0; {op} %h2, %h0; cvt.u32.u16 %d0, %h2;");
        Case::lanes(op, &body, &singles(&values), |[a]| [f(a as u16).into()])
    };
    let s = |x: u32| i32::from(x as i16);
    vec![
        binary("add.s16", u16::wrapping_add),
        binary("sub.s16", u16::wrapping_sub),
        binary("mul.lo.s16", u16::wrapping_mul),
        binary("mul.hi.u16", |a, b| {
            ((u32::from(a) * u32::from(b)) >> 16) as u16
        }),
        binary("mul.hi.s16", |a, b| {
            ((i32::from(a as i16) * i32::from(b as i16)) >> 16) as u16
        }),
        binary("min.s16", |a, b| (a as i16).min(b as i16) as u16),
        binary("min.u16", u16::min),
        binary("max.s16", |a, b| (a as i16).max(b as i16) as u16),
        binary("max.u16", u16::max),
        binary("and.b16", |a, b| a & b),
        binary("or.b16", |a, b| a | b),
        binary("xor.b16", |a, b| a ^ b),
        unary("not.b16", |a| !a),
        unary("neg.s16", u16::wrapping_neg),
        unary("abs.s16", |a| (a as i16).wrapping_abs() as u16),
        unary("mov.b16", |a| a),
        Case::lanes(
            "shifts of 16 bits",
            "cvt.u16.u32 %h0, %a0; shl.b16 %h1, %h0, %a1; shr.u16 %h2, %h0, %a1; shr.s16 %h3, %h0, %a1;\n\
             cvt.u32.u16 %d0, %h1; cvt.u32.u16 %d1, %h2; cvt.u32.u16 %d2, %h3;",
            &pairs(&values),
            |[a, n]| {
                let a = a as u16;
                [
                    a.checked_shl(n).unwrap_or(0),
                    a.checked_shr(n).unwrap_or(0),
                    (a as i16 >> n.min(15)) as u16,
                ]
                .map(u32::from)
            },
        ),
        Case::lanes(
            "mul.wide and mad of 16 bits",
            "cvt.u16.u32 %h0, %a0; cvt.u16.u32 %h1, %a1; mul.wide.s16 %d0, %h0, %h1; mul.wide.u16 %d1, %h0, %h1;\n\
             mad.wide.s16 %d2, %h0, %h1, %a0; mad.lo.s16 %h2, %h0, %h1, %h1; cvt.u32.u16 %d3, %h2;",
            &pairs(&values),
            move |[a, b]| {
                [
                    (s(a) * s(b)) as u32,
                    a * b,
                    ((s(a) * s(b)) as u32).wrapping_add(a),
                    a.wrapping_mul(b).wrapping_add(b) & 0xffff,
                ]
            },
        ),
        Case::lanes(
            "setp and selp on 16 bits",
            "cvt.u16.u32 %h0, %a0; cvt.u16.u32 %h1, %a1; setp.lt.s16 %p0, %h0, %h1; setp.ge.u16 %p1, %h0, %h1;\n\
             setp.eq.b16 %p2, %h0, %h1; selp.b16 %h2, %h0, %h1, %p0; cvt.u32.u16 %d0, %h2;\n\
             selp.b32 %d1, 1, 0, %p1; selp.b32 %d2, 1, 0, %p2;",
            &pairs(&values),
            move |[a, b]| {
                [
                    if s(a) < s(b) { a } else { b },
                    u32::from(a >= b),
                    u32::from(a == b),
                ]
            },
        ),
        Case::lanes(
            "mov packs and unpacks",
            "mov.b32 {%h0, %h1}, %a0; mov.b32 %d0, {%h1, %h0}; mov.b64 %q0, {%a0, %a1}; mov.b64 {%r0, %d1}, %q0;\n\
             mov.b64 {%h2, %h3, %h4, %h5}, %q0; mov.b32 %d2, {%h5, %h2};",
            &pairs(&values.map(|v| v * 0x1_0003)),
            |[a, b]| [a.rotate_left(16), b, b >> 16 | a << 16],
        ),
    ]
}

/// Extended-precision chains through the carry flag.
fn carries() -> Vec<Case> {
    let inputs: Vec<[u32; 4]> = pairs(&VALUES)
        .into_iter()
        .flat_map(|[a, b]| [[a, b, b, a], [a, a, b, b]])
        .collect();
    vec![
        Case::lanes(
            "add.cc and addc",
            "add.cc.u32 %d0, %a0, %a2; addc.cc.u32 %d1, %a1, %a3; addc.u32 %d2, 0, 0;",
            &inputs,
            |[a, b, c, d]| {
                let sum = u128::from(join(a, b)) + u128::from(join(c, d));
                [sum as u32, (sum >> 32) as u32, (sum >> 64) as u32]
            },
        ),
        Case::lanes(
            "sub.cc and subc",
            "sub.cc.u32 %d0, %a0, %a2; subc.cc.u32 %d1, %a1, %a3; subc.u32 %d2, 0, 0;",
            &inputs,
            |[a, b, c, d]| {
                let difference = i128::from(join(a, b)) - i128::from(join(c, d));
                [0, 32, 64].map(|shift| (difference >> shift) as u32)
            },
        ),
        Case::lanes(
            "carries of sums and differences mixed",
            "sub.cc.u32 %r0, %a0, %a1; addc.u32 %d0, %a2, %a3; add.cc.u32 %r0, %a0, %a1; subc.u32 %d1, %a2, %a3;\n\
             sub.cc.u32 %r0, %a0, %a1; addc.cc.u32 %r1, %a2, %a3; subc.cc.u32 %r2, %a1, %a0; addc.u32 %d2, %r1, %r2;\n\
             mov.b64 %q0, {%a0, %a1}; mov.b64 %q1, {%a2, %a3}; sub.cc.u64 %q2, %q0, %q1; addc.u64 %q3, %q0, 5;\n\
             mov.b64 {%d3, %d4}, %q3;",
            &inputs,
            // The ISA speaks of a borrow, and defines it only through sub.cc and subc. The assembler turns both into
            // sums with the complement, IADD3 and IADD3.X. The flag is then a carry: set if nothing is borrowed.
            |[a, b, c, d]| {
                let sum = |a: u32, b: u32, carry: bool| {
                    let sum = u64::from(a) + u64::from(b) + u64::from(carry);
                    (sum as u32, sum >> 32 == 1)
                };
                let difference = |a: u32, b: u32, carry: bool| {
                    let difference = i64::from(a) - i64::from(b) - i64::from(!carry);
                    (difference as u32, difference >= 0)
                };
                let above = difference(a, b, true).1;
                let (r1, carry) = sum(c, d, above);
                let (r2, last) = difference(b, a, carry);
                let long = join(a, b);
                let [d3, d4] = split(long.wrapping_add(5 + u64::from(long >= join(c, d))));
                [
                    sum(c, d, above).0,
                    difference(c, d, sum(a, b, false).1).0,
                    sum(r1, r2, last).0,
                    d3,
                    d4,
                ]
            },
        ),
        Case::lanes(
            "mad.lo.cc and madc.hi",
            "mad.lo.cc.u32 %d0, %a0, %a1, %a2; madc.hi.u32 %d1, %a0, %a1, %a3;",
            &inputs,
            |[a, b, c, d]| {
                let sum = (u64::from(a) * u64::from(b)).wrapping_add(join(c, d));
                split(sum)
            },
        ),
    ]
}
