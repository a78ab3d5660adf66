//! 32-bit integer arithmetic, logic, shifts, bit fields, comparisons and selection.

use super::{Case, join, mixed, pairs, singles, split, triples};

pub(super) const VALUES: [u32; 14] = [
    0,
    1,
    2,
    31,
    32,
    33,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xffff_ffff,
    0xffff_8000,
    0x0000_ffff,
    0x1234_5678,
    0xdead_beef,
];

pub(super) fn cases() -> Vec<Case> {
    [
        arithmetic(),
        division(),
        video(),
        logic(),
        shifts(),
        bit_fields(),
        comparisons(),
    ]
    .concat()
}

fn unary(op: &str, f: impl Fn(u32) -> u32) -> Case {
    let inputs = singles(&[VALUES.as_slice(), &mixed(50)].concat());
    Case::lanes(op, &format!("{op} %d0, %a0;"), &inputs, |[a]| [f(a)])
}

fn binary(op: &str, f: impl Fn(u32, u32) -> u32) -> Case {
    let inputs = [pairs(&VALUES), mixed(128).as_chunks().0.to_vec()].concat();
    Case::lanes(op, &format!("{op} %d0, %a0, %a1;"), &inputs, |[a, b]| {
        [f(a, b)]
    })
}

fn ternary(op: &str, f: impl Fn(u32, u32, u32) -> u32) -> Case {
    let inputs = [triples(&VALUES[4..12]), mixed(192).as_chunks().0.to_vec()].concat();
    let body = format!("{op} %d0, %a0, %a1, %a2;");
    Case::lanes(op, &body, &inputs, |[a, b, c]| [f(a, b, c)])
}

fn arithmetic() -> Vec<Case> {
    let s = |x: u32| x as i32;
    let product = |a: u32, b: u32| i64::from(a as i32) * i64::from(b as i32);
    let u_product = |a: u32, b: u32| u64::from(a) * u64::from(b);
    vec![
        binary("add.s32", u32::wrapping_add),
        binary("add.u32", u32::wrapping_add),
        binary("add.sat.s32", move |a, b| s(a).saturating_add(s(b)) as u32),
        binary("sub.s32", u32::wrapping_sub),
        binary("sub.u32", u32::wrapping_sub),
        binary("sub.sat.s32", move |a, b| s(a).saturating_sub(s(b)) as u32),
        binary("mul.lo.s32", u32::wrapping_mul),
        binary("mul.lo.u32", u32::wrapping_mul),
        binary("mul.hi.s32", move |a, b| (product(a, b) >> 32) as u32),
        binary("mul.hi.u32", move |a, b| (u_product(a, b) >> 32) as u32),
        ternary("mad.lo.s32", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ternary("mad.lo.u32", |a, b, c| a.wrapping_mul(b).wrapping_add(c)),
        ternary("mad.hi.s32", move |a, b, c| {
            ((product(a, b) >> 32) as u32).wrapping_add(c)
        }),
        ternary("mad.hi.u32", move |a, b, c| {
            ((u_product(a, b) >> 32) as u32).wrapping_add(c)
        }),
        Case::lanes(
            "mul.wide.s32",
            "mul.wide.s32 %q0, %a0, %a1; mov.b64 {%d0, %d1}, %q0;",
            &pairs(&VALUES),
            move |[a, b]| split(product(a, b) as u64),
        ),
        Case::lanes(
            "mul.wide.u32",
            "mul.wide.u32 %q0, %a0, %a1; mov.b64 {%d0, %d1}, %q0;",
            &pairs(&VALUES),
            move |[a, b]| split(u_product(a, b)),
        ),
        Case::lanes(
            "mad.wide.s32",
            "mov.b64 %q1, {%a2, %a0}; mad.wide.s32 %q0, %a0, %a1, %q1; mov.b64 {%d0, %d1}, %q0;",
            &triples(&VALUES[5..12]),
            move |[a, b, c]| split((product(a, b) as u64).wrapping_add(join(c, a))),
        ),
        Case::lanes(
            "mad.wide.u32",
            "mov.b64 %q1, {%a2, %a0}; mad.wide.u32 %q0, %a0, %a1, %q1; mov.b64 {%d0, %d1}, %q0;",
            &triples(&VALUES[5..12]),
            move |[a, b, c]| split(u_product(a, b).wrapping_add(join(c, a))),
        ),
        ternary("sad.u32", |a, b, c| a.abs_diff(b).wrapping_add(c)),
        ternary("sad.s32", move |a, b, c| {
            s(a).abs_diff(s(b)).wrapping_add(c)
        }),
        binary("min.s32", move |a, b| s(a).min(s(b)) as u32),
        binary("min.u32", u32::min),
        binary("max.s32", move |a, b| s(a).max(s(b)) as u32),
        binary("max.u32", u32::max),
        unary("abs.s32", |a| (a as i32).wrapping_abs() as u32),
        unary("neg.s32", u32::wrapping_neg),
        Case::lanes(
            "add.s32 with immediates",
            "add.s32 %d0, %a0, -7; add.s32 %d1, %a0, 0xFFFFFFF0; sub.s32 %d2, 5, %a0; mul.lo.s32 %d3, %a0, 100;",
            &singles(&VALUES),
            |[a]| {
                [
                    a.wrapping_sub(7),
                    a.wrapping_sub(16),
                    5u32.wrapping_sub(a),
                    a.wrapping_mul(100),
                ]
            },
        ),
    ]
}

/// Division by zero is unspecified; so is the one quotient that overflows.
fn division() -> Vec<Case> {
    let inputs: Vec<_> = [pairs(&VALUES), mixed(128).as_chunks().0.to_vec()]
        .concat()
        .into_iter()
        .filter(|&[a, b]| b != 0 && !(a == 0x8000_0000 && b == 0xffff_ffff))
        .collect();
    let make = |op: &str, f: fn(u32, u32) -> u32| {
        Case::lanes(op, &format!("{op} %d0, %a0, %a1;"), &inputs, |[a, b]| {
            [f(a, b)]
        })
    };
    vec![
        make("div.u32", |a, b| a / b),
        make("rem.u32", |a, b| a % b),
        make("div.s32", |a, b| (a as i32 / b as i32) as u32),
        make("rem.s32", |a, b| (a as i32 % b as i32) as u32),
    ]
}

/// 24-bit products, and sums of products of bytes and halves.
fn video() -> Vec<Case> {
    let unsigned = |x: u32| i64::from(x & 0xff_ffff);
    let signed = |x: u32| i64::from((x as i32) << 8 >> 8);
    // Operands are 24 bits wide, extended to the register.
    let small: Vec<[u32; 3]> = triples(&[0, 1, 0x7f_ffff, 0x12_3456, 0x80_0000, 0xff_ffff, 3]);
    let product24 = |op: &str, sign: bool, high: bool, add: bool| {
        let extend = if sign {
            "shl.b32 %r0, %a0, 8; shr.s32 %r0, %r0, 8; shl.b32 %r1, %a1, 8; shr.s32 %r1, %r1, 8;"
        } else {
            "mov.b32 %r0, %a0; mov.b32 %r1, %a1;"
        };
        let operands = if add { "%r0, %r1, %a2" } else { "%r0, %r1" };
        let body = format!("{extend} {op} %d0, {operands};");
        Case::lanes(op, &body, &small, |[a, b, c]| {
            let product = if sign {
                signed(a) * signed(b)
            } else {
                unsigned(a) * unsigned(b)
            };
            let cut = if high { product >> 16 } else { product } as u32;
            [if add { cut.wrapping_add(c) } else { cut }]
        })
    };
    let field = |x: u32, width: u32, index: u32, sign: bool| -> i64 {
        let shifted = i64::from(x) << (64 - width * (index + 1));
        if sign {
            shifted >> (64 - width)
        } else {
            (shifted as u64 >> (64 - width)) as i64
        }
    };
    let dot4 = |op: &str, a_sign: bool, b_sign: bool| {
        ternary(op, move |a, b, c| {
            (0..4).fold(c, |d, i| {
                d.wrapping_add((field(a, 8, i, a_sign) * field(b, 8, i, b_sign)) as u32)
            })
        })
    };
    let dot2 = |op: &str, a_sign: bool, b_sign: bool, first: u32| {
        ternary(op, move |a, b, c| {
            (0..2).fold(c, |d, i| {
                d.wrapping_add((field(a, 16, i, a_sign) * field(b, 8, first + i, b_sign)) as u32)
            })
        })
    };
    vec![
        product24("mul24.lo.u32", false, false, false),
        product24("mul24.hi.u32", false, true, false),
        product24("mul24.lo.s32", true, false, false),
        product24("mul24.hi.s32", true, true, false),
        product24("mad24.lo.u32", false, false, true),
        product24("mad24.lo.s32", true, false, true),
        product24("mad24.hi.s32", true, true, true),
        dot4("dp4a.u32.u32", false, false),
        dot4("dp4a.s32.s32", true, true),
        dot4("dp4a.u32.s32", false, true),
        dot2("dp2a.lo.u32.u32", false, false, 0),
        dot2("dp2a.hi.s32.s32", true, true, 2),
        dot2("dp2a.hi.u32.s32", false, true, 2),
    ]
}

fn logic() -> Vec<Case> {
    // The table's bit 4a + 2b + c is the result for bits a, b, c.
    let lop3 = |table: u32, a: u32, b: u32, c: u32| {
        (0..32).fold(0, |d, bit| {
            let index = (a >> bit & 1) << 2 | (b >> bit & 1) << 1 | c >> bit & 1;
            d | (table >> index & 1) << bit
        })
    };
    let every_table: String = (0..256)
        .map(|table| {
            format!("lop3.b32 %r0, %a0, %a1, %a2, {table}; mad.lo.u32 %d1, %d1, 31, %r0;\n")
        })
        .collect();
    vec![
        binary("and.b32", |a, b| a & b),
        binary("or.b32", |a, b| a | b),
        binary("xor.b32", |a, b| a ^ b),
        unary("not.b32", |a| !a),
        unary("cnot.b32", |a| u32::from(a == 0)),
        Case::lanes(
            "lop3.b32 of every table",
            &format!("lop3.b32 %d0, %a0, %a1, %a2, 0xE8; mov.b32 %d1, 0;\n{every_table}"),
            mixed(96).as_chunks().0,
            |[a, b, c]| {
                let majority = (a & b) | (b & c) | (a & c);
                let hash = (0..256).fold(0u32, |hash, table| {
                    hash.wrapping_mul(31).wrapping_add(lop3(table, a, b, c))
                });
                [majority, hash]
            },
        ),
        Case::lanes(
            "logic on predicates",
            "setp.lt.s32 %p0, %a0, 0; setp.lt.s32 %p1, %a1, 0;\n\
             and.pred %p2, %p0, %p1; or.pred %p3, %p0, %p1; xor.pred %p4, %p0, %p1; not.pred %p5, %p0; mov.pred %p6, %p1;\n\
             selp.b32 %d0, 1, 0, %p2; selp.b32 %d1, 1, 0, %p3; selp.b32 %d2, 1, 0, %p4; selp.b32 %d3, 1, 0, %p5;\n\
             selp.b32 %d4, 1, 0, %p6;",
            &pairs(&VALUES),
            |[a, b]| {
                let (a, b) = ((a as i32) < 0, (b as i32) < 0);
                [a & b, a | b, a ^ b, !a, b].map(u32::from)
            },
        ),
    ]
}

/// Plain shifts clamp amounts above the width; funnel shifts clamp or wrap as they say.
fn shifts() -> Vec<Case> {
    let funnel = |left: bool, wrap: bool| {
        move |a: u32, b: u32, c: u32| {
            let n = if wrap { c & 31 } else { c.min(32) };
            let both = join(a, b);
            if left {
                (both << n >> 32) as u32
            } else {
                (both >> n) as u32
            }
        }
    };
    let amounts = [0, 1, 5, 31, 32, 33, 63, 64, 255, 256, 0xffff_ffff];
    let inputs: Vec<[u32; 2]> = VALUES
        .iter()
        .flat_map(|&a| amounts.map(|n| [a, n]))
        .collect();
    let triples: Vec<[u32; 3]> = pairs(&VALUES[6..])
        .into_iter()
        .flat_map(|[a, b]| amounts.map(|n| [a, b, n]))
        .collect();
    let shift = |op: &str, f: fn(u32, u32) -> u32| {
        Case::lanes(op, &format!("{op} %d0, %a0, %a1;"), &inputs, |[a, n]| {
            [f(a, n)]
        })
    };
    let shf = |op: &str, f: &dyn Fn(u32, u32, u32) -> u32| {
        let body = format!("{op} %d0, %a0, %a1, %a2;");
        Case::lanes(op, &body, &triples, |[a, b, c]| [f(a, b, c)])
    };
    vec![
        shift("shl.b32", |a, n| a.checked_shl(n).unwrap_or(0)),
        shift("shr.u32", |a, n| a.checked_shr(n).unwrap_or(0)),
        shift("shr.b32", |a, n| a.checked_shr(n).unwrap_or(0)),
        shift("shr.s32", |a, n| ((a as i32) >> n.min(31)) as u32),
        shf("shf.l.wrap.b32", &funnel(true, true)),
        shf("shf.l.clamp.b32", &funnel(true, false)),
        shf("shf.r.wrap.b32", &funnel(false, true)),
        shf("shf.r.clamp.b32", &funnel(false, false)),
    ]
}

fn bit_fields() -> Vec<Case> {
    let find = |x: u32| {
        if x == 0 {
            u32::MAX
        } else {
            31 - x.leading_zeros()
        }
    };
    // For signed numbers the most significant bit that differs from the sign.
    let signed = |x: u32| if (x as i32) < 0 { !x } else { x };
    let positions = [
        0,
        1,
        7,
        16,
        31,
        32,
        40,
        63,
        64,
        65,
        255,
        256,
        0x1_01,
        0x8000_0003,
    ];
    let fields: Vec<[u32; 3]> = VALUES
        .iter()
        .flat_map(|&a| {
            positions
                .into_iter()
                .flat_map(move |p| positions.map(|n| [a, p, n]))
        })
        .collect();
    // The ISA restricts both operands to 0..=255. Beyond that range its pseudocode takes the lowest byte, and so does
    // the assembler's code for 32 bits. For 64 bits that code shifts by the whole number; from 64 on, only zeros or the
    // sign remain.
    let restrict = |operand: u32, width: u32| {
        if width == 64 {
            operand.min(255)
        } else {
            operand & 0xff
        }
    };
    // The sign bit is bit min(pos + len - 1, msb).
    let extract = |a: u64, pos: u32, len: u32, width: u32, signed: bool| {
        let (pos, len) = (restrict(pos, width), restrict(len, width));
        let bit = |i: u32| a >> i & 1;
        let fill = if !signed || len == 0 {
            0
        } else {
            bit((pos + len - 1).min(width - 1))
        };
        (0..width).fold(0, |d, i| {
            let value = if i < len && pos + i < width {
                bit(pos + i)
            } else {
                fill
            };
            d | value << i
        })
    };
    let insert = |a: u64, b: u64, pos: u32, len: u32, width: u32| {
        let (pos, len) = (restrict(pos, width), restrict(len, width));
        (0..len)
            .filter(|i| pos + i < width)
            .fold(b, |d, i| d & !(1 << (pos + i)) | (a >> i & 1) << (pos + i))
    };
    let bfe = |op: &str, signed: bool| {
        let body = format!("{op} %d0, %a0, %a1, %a2;");
        Case::lanes(op, &body, &fields, |[a, p, n]| {
            [extract(a.into(), p, n, 32, signed) as u32]
        })
    };
    let bfe64 = |op: &str, signed: bool| {
        let body = format!(
            "not.b32 %r0, %a0; mov.b64 %q0, {{%a0, %r0}}; {op} %q1, %q0, %a1, %a2; mov.b64 {{%d0, %d1}}, %q1;"
        );
        Case::lanes(op, &body, &fields, |[a, p, n]| {
            split(extract(join(a, !a), p, n, 64, signed))
        })
    };
    let mask = |a: u32, b: u32, clamp: bool| {
        let (position, width) = (a & 31, b & 31);
        let from = if clamp && a >= 32 {
            0
        } else {
            u32::MAX << position
        };
        if clamp && (a >= 32 || b >= 32) || position + width >= 32 {
            from
        } else {
            from & !(u32::MAX << (position + width))
        }
    };
    let masks: Vec<[u32; 2]> = pairs(&[0, 1, 5, 16, 27, 31, 32, 33, 40, 0xffff_ffff]);
    let bmsk = |op: &str, clamp: bool| {
        Case::lanes(op, &format!("{op} %d0, %a0, %a1;"), &masks, |[a, b]| {
            [mask(a, b, clamp)]
        })
    };
    let byte = |a: u32, b: u32, selector: u32| {
        let byte = (join(a, b) >> (8 * (selector & 7))) as u8;
        let replicated = if byte & 0x80 != 0 { 0xff } else { 0 };
        u32::from(if selector & 8 != 0 { replicated } else { byte })
    };
    let assemble = move |a: u32, b: u32, selectors: [u32; 4]| {
        (0..4).fold(0, |d, i| d | byte(a, b, selectors[i]) << (8 * i))
    };
    // Selectors of bytes 0 to 3 for each value of c[1:0], from the ISA's table (which lists byte 3 first).
    let prmt_mode = |op: &str, table: [[u32; 4]; 4]| {
        let inputs: Vec<_> = mixed(40)
            .as_chunks()
            .0
            .iter()
            .flat_map(|&[a, b]| [0, 1, 2, 3, 0xffff_fff6].map(|c| [a, b, c]))
            .collect();
        let body = format!("{op} %d0, %a0, %a1, %a2;");
        Case::lanes(op, &body, &inputs, |[a, b, c]| {
            [assemble(a, b, table[c as usize & 3])]
        })
    };
    vec![
        unary("popc.b32", u32::count_ones),
        unary("clz.b32", u32::leading_zeros),
        unary("brev.b32", u32::reverse_bits),
        unary("bfind.u32", find),
        unary("bfind.s32", move |x| find(signed(x))),
        unary("bfind.shiftamt.u32", move |x| match find(x) {
            u32::MAX => u32::MAX,
            position => 31 - position,
        }),
        bmsk("bmsk.clamp.b32", true),
        bmsk("bmsk.wrap.b32", false),
        bfe("bfe.u32", false),
        bfe("bfe.s32", true),
        bfe64("bfe.u64", false),
        bfe64("bfe.s64", true),
        Case::lanes(
            "bfi.b32",
            "not.b32 %r0, %a0; mul.lo.u32 %r0, %r0, 77; bfi.b32 %d0, %a0, %r0, %a1, %a2;",
            &fields,
            |[a, p, n]| {
                let b = (!a).wrapping_mul(77);
                [insert(a.into(), b.into(), p, n, 32) as u32]
            },
        ),
        Case::lanes(
            "bfi.b64",
            "mov.b64 %q0, {%a0, %a0}; not.b64 %q1, %q0; bfi.b64 %q2, %q0, %q1, %a1, %a2; mov.b64 {%d0, %d1}, %q2;",
            &fields,
            |[a, p, n]| split(insert(join(a, a), !join(a, a), p, n, 64)),
        ),
        Case::lanes(
            "prmt.b32",
            "prmt.b32 %d0, %a0, %a1, %a2; prmt.b32 %d1, %a0, %a1, 0x7531; prmt.b32 %d2, %a0, %a1, 0xBA98;",
            mixed(192).as_chunks().0,
            |[a, b, c]| {
                let selectors = |c: u32| [c & 15, c >> 4 & 15, c >> 8 & 15, c >> 12 & 15];
                [c, 0x7531, 0xba98].map(|c| assemble(a, b, selectors(c)))
            },
        ),
        prmt_mode(
            "prmt.b32.f4e",
            [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]],
        ),
        prmt_mode(
            "prmt.b32.b4e",
            [[0, 7, 6, 5], [1, 0, 7, 6], [2, 1, 0, 7], [3, 2, 1, 0]],
        ),
        prmt_mode("prmt.b32.rc8", [[0; 4], [1; 4], [2; 4], [3; 4]]),
        prmt_mode(
            "prmt.b32.ecl",
            [[0, 1, 2, 3], [1, 1, 2, 3], [2, 2, 2, 3], [3; 4]],
        ),
        prmt_mode(
            "prmt.b32.ecr",
            [[0; 4], [0, 1, 1, 1], [0, 1, 2, 2], [0, 1, 2, 3]],
        ),
        prmt_mode(
            "prmt.b32.rc16",
            [[0, 1, 0, 1], [2, 3, 2, 3], [0, 1, 0, 1], [2, 3, 2, 3]],
        ),
    ]
}

fn comparisons() -> Vec<Case> {
    let mut cases = Vec::new();
    type Relation = (&'static str, fn(i64, i64) -> bool);
    let relations: [Relation; 6] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a != b),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
    ];
    for (name, holds) in relations {
        cases.push(Case::lanes(
            &format!("setp.{name} and set.{name}"),
            &format!(
                "setp.{name}.s32 %p0, %a0, %a1; selp.b32 %d0, 1, 0, %p0;\n\
                 setp.{name}.u32 %p1, %a0, %a1; selp.b32 %d1, %a0, %a1, %p1;\n\
                 set.{name}.u32.s32 %d2, %a0, %a1; set.{name}.f32.u32 %d3, %a0, %a1;"
            ),
            &pairs(&VALUES),
            move |[a, b]| {
                let signed = holds(i64::from(a as i32), i64::from(b as i32));
                let unsigned = holds(a.into(), b.into());
                [
                    u32::from(signed),
                    if unsigned { a } else { b },
                    if signed { u32::MAX } else { 0 },
                    if unsigned { 1f32.to_bits() } else { 0 },
                ]
            },
        ));
    }
    type Unsigned = (&'static str, fn(u32, u32) -> bool);
    let unsigned: [Unsigned; 4] = [
        ("lo", |a, b| a < b),
        ("ls", |a, b| a <= b),
        ("hi", |a, b| a > b),
        ("hs", |a, b| a >= b),
    ];
    for (name, holds) in unsigned {
        cases.push(Case::lanes(
            &format!("setp.{name}.u32"),
            &format!("setp.{name}.u32 %p0, %a0, %a1; selp.b32 %d0, 1, 0, %p0;"),
            &pairs(&VALUES),
            move |[a, b]| [u32::from(holds(a, b))],
        ));
    }
    type Combination = (&'static str, fn(bool, bool) -> bool);
    let combinations: [Combination; 3] = [
        ("and", |t, c| t & c),
        ("or", |t, c| t | c),
        ("xor", |t, c| t ^ c),
    ];
    for (name, combine) in combinations {
        cases.push(Case::lanes(
            &format!("setp.lt.{name} with two results"),
            &format!(
                "setp.ne.s32 %p0, %a2, 0; setp.lt.{name}.s32 %p1|%p2, %a0, %a1, %p0;\n\
                 selp.b32 %d0, 1, 0, %p1; selp.b32 %d1, 1, 0, %p2;\n\
                 setp.lt.{name}.s32 %p3, %a0, %a1, !%p0; selp.b32 %d2, 1, 0, %p3;"
            ),
            &triples(&VALUES[..8]),
            move |[a, b, c]| {
                let t = (a as i32) < b as i32;
                let c = c != 0;
                [combine(t, c), combine(!t, c), combine(t, !c)].map(u32::from)
            },
        ));
    }
    cases.push(Case::lanes(
        "slct.b32.s32",
        "slct.b32.s32 %d0, %a0, %a1, %a2;",
        &triples(&VALUES[4..10]),
        |[a, b, c]| [if c as i32 >= 0 { a } else { b }],
    ));
    cases
}
