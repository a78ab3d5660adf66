//! f32 and f64 arithmetic, comparisons and the approximate functions.

use std::cmp::Ordering;

use super::oracle::{self, MODES, flush, saturate};
use super::{Case, Compare, join, mixed, pairs, singles, split, triples};

/// Signs, subnormals, the ends of the range, ties, NaN of both signs.
const VALUES: [u32; 22] = [
    0x0000_0000,
    0x8000_0000,
    0x0000_0001,
    0x807f_ffff,
    0x0080_0000,
    0x8080_0001,
    0x3f80_0000,
    0xbf80_0000,
    0x3f80_0001,
    0x3f7f_ffff,
    0x3eaa_aaab,
    0x3fc0_0000,
    0xc020_0000,
    0x4049_0fdb,
    0x4b80_0001,
    0xcb00_0001,
    0x7f7f_ffff,
    0xff7f_ffff,
    0x7f80_0000,
    0xff80_0000,
    0x7fc0_0000,
    0xffff_ffff,
];

fn f(bits: u32) -> f32 {
    f32::from_bits(bits)
}

pub(super) fn cases() -> Vec<Case> {
    [
        arithmetic(),
        division(),
        signs_and_extrema(),
        comparisons(),
        approximations(),
        double(),
    ]
    .concat()
}

/// Finite numbers of moderate size, where most results are inexact.
fn moderate(count: usize) -> Vec<u32> {
    mixed(count)
        .into_iter()
        .map(|bits| bits & 0x83ff_ffff | 0x3c00_0000)
        .collect()
}

fn two() -> Vec<[u32; 2]> {
    [
        pairs(&VALUES),
        moderate(256).as_chunks().0.to_vec(),
        mixed(256).as_chunks().0.to_vec(),
    ]
    .concat()
}

fn three() -> Vec<[u32; 3]> {
    // The far addend that a second rounding would lose: (1 + 2^-12)^2 = 1 + 2^-11 + 2^-24, a tie in f32.
    let tie = (1.0 + (-12f32).exp2()).to_bits();
    let tiny = (-100f32).exp2().to_bits();
    let mut inputs = triples(&VALUES[2..20]);
    inputs.extend([
        [tie, tie, tiny],
        [tie, tie, tiny | 0x8000_0000],
        [tie, tie, 0],
        [tie, tie | 0x8000_0000, (1f32).to_bits()],
    ]);
    inputs.extend(moderate(384).as_chunks().0);
    inputs
}

fn binary(op: &str, inputs: &[[u32; 2]], value: impl Fn(f32, f32) -> f32) -> Case {
    let body = format!("{op} %d0, %a0, %a1;");
    Case::lanes(op, &body, inputs, |[a, b]| [value(f(a), f(b)).to_bits()]).compare(Compare::F32)
}

fn unary(op: &str, inputs: &[u32], value: impl Fn(f32) -> f32) -> Case {
    let body = format!("{op} %d0, %a0;");
    Case::lanes(op, &body, &singles(inputs), |[a]| [value(f(a)).to_bits()]).compare(Compare::F32)
}

fn ternary(op: &str, value: impl Fn(f32, f32, f32) -> f32) -> Case {
    let body = format!("{op} %d0, %a0, %a1, %a2;");
    Case::lanes(op, &body, &three(), |[a, b, c]| {
        [value(f(a), f(b), f(c)).to_bits()]
    })
    .compare(Compare::F32)
}

fn arithmetic() -> Vec<Case> {
    let two = two();
    let mut cases = Vec::new();
    for (name, mode) in MODES {
        let add = move |a, b| oracle::add(a, b, mode);
        let mul = move |a, b| oracle::mul(a, b, mode);
        let fma = move |a, b, c| oracle::fma(a, b, c, mode);
        cases.extend([
            binary(&format!("add.{name}.f32"), &two, add),
            binary(&format!("sub.{name}.f32"), &two, move |a, b| add(a, -b)),
            binary(&format!("mul.{name}.f32"), &two, mul),
            ternary(&format!("fma.{name}.f32"), fma),
            binary(&format!("add.{name}.ftz.f32"), &two, move |a, b| {
                flush(add(flush(a), flush(b)))
            }),
            binary(&format!("add.{name}.sat.f32"), &two, move |a, b| {
                saturate(add(a, b))
            }),
        ]);
    }
    let nearest = oracle::Mode::Nearest;
    cases.extend([
        binary("add.f32", &two, |a, b| a + b),
        binary("sub.f32", &two, |a, b| a - b),
        binary("mul.f32", &two, |a, b| a * b),
        binary("sub.rn.ftz.f32", &two, |a, b| flush(flush(a) - flush(b))),
        ternary("mad.rn.f32", move |a, b, c| oracle::fma(a, b, c, nearest)),
        ternary("fma.rn.sat.f32", move |a, b, c| {
            saturate(oracle::fma(a, b, c, nearest))
        }),
        Case::lanes(
            "float immediates",
            "mov.f32 %r0, 0f3FC00000; add.f32 %d0, %a0, 0fBF800000; fma.rn.f32 %d1, %a0, %r0, 0f40490FDB;",
            &singles(&VALUES),
            |[a]| {
                [
                    (f(a) + -1.0).to_bits(),
                    f(a).mul_add(1.5, std::f32::consts::PI).to_bits(),
                ]
            },
        )
        .compare(Compare::F32),
    ]);
    // Whether a product that rounds up to the smallest normal number counts as subnormal is not told by the ISA.
    let clear_of_the_edge: Vec<_> = two
        .iter()
        .copied()
        .filter(|&[a, b]| {
            let exact = (f64::from(f(a)) * f64::from(f(b))).abs();
            !(exact < f64::from(f32::MIN_POSITIVE) && exact > f64::from(f32::MIN_POSITIVE) * 0.99)
        })
        .collect();
    cases.push(binary("mul.rn.ftz.f32", &clear_of_the_edge, |a, b| {
        flush(flush(a) * flush(b))
    }));
    cases.push(
        Case::lanes(
            "fma.rn.ftz.f32",
            "fma.rn.ftz.f32 %d0, %a0, %a1, %a2;",
            &triples(&[
                0x0000_0001,
                0x807f_ffff,
                0x3f80_0000,
                0xbf80_0000,
                0x0080_0000,
                0x8100_0000,
            ]),
            |[a, b, c]| {
                let [a, b, c] = [a, b, c].map(|x| flush(f(x)));
                [flush(a.mul_add(b, c)).to_bits()]
            },
        )
        .compare(Compare::F32),
    );
    cases
}

fn division() -> Vec<Case> {
    let two = two();
    let one = [VALUES.as_slice(), &moderate(64), &mixed(128)].concat();
    let mut cases = Vec::new();
    for (name, mode) in MODES {
        cases.extend([
            binary(&format!("div.{name}.f32"), &two, move |a, b| {
                oracle::div(a, b, mode)
            }),
            unary(&format!("rcp.{name}.f32"), &one, move |a| {
                oracle::div(1.0, a, mode)
            }),
            unary(&format!("sqrt.{name}.f32"), &one, move |a| {
                oracle::sqrt(a, mode)
            }),
        ]);
    }
    cases
}

/// A NaN loses against a number, or wins with `.NaN`; -0 is below +0.
fn maximum(a: f32, b: f32, propagate: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        return match propagate {
            true => f32::NAN,
            false if a.is_nan() => b,
            false => a,
        };
    }
    let a_above = a > b || (a == b && b.is_sign_negative());
    if a_above { a } else { b }
}

fn minimum(a: f32, b: f32, propagate: bool) -> f32 {
    -maximum(-a, -b, propagate)
}

fn signs_and_extrema() -> Vec<Case> {
    let two = two();
    let numbers: Vec<_> = two
        .iter()
        .copied()
        .filter(|&[a, b]| !f(a).is_nan() && !f(b).is_nan())
        .collect();
    let signed = |a: f32, b: f32, magnitude: f32| magnitude.copysign(a) * 1f32.copysign(b);
    vec![
        binary("max.xorsign.abs.f32", &numbers, move |a, b| {
            signed(a, b, a.abs().max(b.abs()))
        })
        .sm(86),
        binary("min.xorsign.abs.f32", &numbers, move |a, b| {
            signed(a, b, a.abs().min(b.abs()))
        })
        .sm(86),
        binary("max.f32", &two, |a, b| maximum(a, b, false)),
        binary("min.f32", &two, |a, b| minimum(a, b, false)),
        binary("max.NaN.f32", &two, |a, b| maximum(a, b, true)).sm(80),
        binary("min.NaN.f32", &two, |a, b| minimum(a, b, true)).sm(80),
        binary("max.ftz.f32", &two, |a, b| {
            maximum(flush(a), flush(b), false)
        }),
        binary("min.ftz.f32", &two, |a, b| {
            minimum(flush(a), flush(b), false)
        }),
        unary("abs.f32", &VALUES, f32::abs),
        unary("neg.f32", &VALUES, |a| -a),
        unary("abs.ftz.f32", &VALUES, |a| flush(a).abs()),
        unary("neg.ftz.f32", &VALUES, |a| -flush(a)),
        // The sign of the first operand, the value of the second.
        Case::lanes(
            "copysign.f32",
            "copysign.f32 %d0, %a0, %a1;",
            &two,
            |[a, b]| [b & 0x7fff_ffff | a & 0x8000_0000],
        )
        .compare(Compare::F32),
        Case::lanes(
            "testp.f32",
            "testp.finite.f32 %p0, %a0; testp.infinite.f32 %p1, %a0; testp.number.f32 %p2, %a0;\n\
             testp.notanumber.f32 %p3, %a0; testp.normal.f32 %p4, %a0; testp.subnormal.f32 %p5, %a0;\n\
             selp.b32 %d0, 1, 0, %p0; selp.b32 %d1, 1, 0, %p1; selp.b32 %d2, 1, 0, %p2; selp.b32 %d3, 1, 0, %p3;\n\
             selp.b32 %d4, 1, 0, %p4; selp.b32 %d5, 1, 0, %p5;",
            &singles(&VALUES),
            |[a]| {
                let a = f(a);
                [
                    a.is_finite(),
                    a.is_infinite(),
                    !a.is_nan(),
                    a.is_nan(),
                    // "As a special case, positive and negative zero are considered normal numbers."
                    a.is_normal() || a == 0.0,
                    a.is_subnormal(),
                ]
                .map(u32::from)
            },
        ),
        Case::lanes(
            "testp.f64",
            "mov.b64 %q0, {%a0, %a1}; testp.normal.f64 %p0, %q0; testp.subnormal.f64 %p1, %q0;\n\
             testp.finite.f64 %p2, %q0; selp.b32 %d0, 1, 0, %p0; selp.b32 %d1, 1, 0, %p1; selp.b32 %d2, 1, 0, %p2;",
            &[
                0.0,
                -0.0,
                1.0,
                5e-324,
                -1e-310,
                f64::MIN_POSITIVE,
                f64::INFINITY,
                f64::NAN,
            ]
            .map(|x: f64| split(x.to_bits())),
            |[a, b]| {
                let a = f64::from_bits(join(a, b));
                let normal = a.is_normal() || a == 0.0;
                [normal, a.is_subnormal(), a.is_finite()].map(u32::from)
            },
        ),
    ]
}

fn comparisons() -> Vec<Case> {
    type Relation = (&'static str, fn(f64, f64) -> bool);
    let ordered: [Relation; 6] = [
        ("eq", |a, b| a == b),
        ("ne", |a, b| a.partial_cmp(&b).is_some_and(Ordering::is_ne)),
        ("lt", |a, b| a < b),
        ("le", |a, b| a <= b),
        ("gt", |a, b| a > b),
        ("ge", |a, b| a >= b),
    ];
    let mut cases = Vec::new();
    for (name, holds) in ordered {
        cases.push(Case::lanes(
            &format!("setp.{name}, setp.{name}u and set.{name} of f32"),
            &format!(
                "setp.{name}.f32 %p0, %a0, %a1; setp.{name}u.f32 %p1, %a0, %a1; setp.{name}.ftz.f32 %p2, %a0, %a1;\n\
                 selp.b32 %d0, 1, 0, %p0; selp.b32 %d1, 1, 0, %p1; selp.b32 %d2, 1, 0, %p2;\n\
                 set.{name}.u32.f32 %d3, %a0, %a1; set.{name}u.f32.f32 %d4, %a0, %a1; selp.f32 %d5, %a0, %a1, %p0;\n\
                 cvt.f64.f32 %q0, %a0; cvt.f64.f32 %q1, %a1; setp.{name}.f64 %p3, %q0, %q1; setp.{name}u.f64 %p4, %q0, %q1;\n\
                 selp.b32 %d6, 1, 0, %p3; selp.b32 %d7, 1, 0, %p4;"
            ),
            &two(),
            move |[a, b]| {
                let (x, y) = (f(a), f(b));
                let ordered = holds(x.into(), y.into());
                let unordered = ordered || x.is_nan() || y.is_nan();
                [
                    u32::from(ordered),
                    u32::from(unordered),
                    u32::from(holds(flush(x).into(), flush(y).into())),
                    if ordered { u32::MAX } else { 0 },
                    if unordered { 0x3f80_0000 } else { 0 },
                    if ordered { a } else { b },
                    u32::from(ordered),
                    u32::from(unordered),
                ]
            },
        ));
    }
    cases.push(Case::lanes(
        "setp.num and setp.nan of f32",
        "setp.num.f32 %p0, %a0, %a1; setp.nan.f32 %p1, %a0, %a1; selp.b32 %d0, 1, 0, %p0; selp.b32 %d1, 1, 0, %p1;",
        &two(),
        |[a, b]| {
            let unordered = f(a).is_nan() || f(b).is_nan();
            [!unordered, unordered].map(u32::from)
        },
    ));
    cases.push(Case::lanes(
        "slct.f32.f32",
        "slct.f32.f32 %d0, %a0, %a1, %a2;",
        &triples(&VALUES[..22]),
        // "For .f32 comparisons, negative zero equals zero"; NaN is not at least zero.
        |[a, b, c]| [if f(c) >= 0.0 { a } else { b }],
    ));
    cases
}

/// The bounds are those of the ISA for full-range arguments; the expected value is itself rounded to f32, hence 2^-24 more.
fn approximations() -> Vec<Case> {
    let half_ulp = (-24f64).exp2();
    let within = |relative: f64, absolute: f64| Compare::F32Within {
        relative: relative + half_ulp,
        absolute,
    };
    let ulps = |n: f64| within(n * (-23f64).exp2(), 0.0);
    let spread = |low: f64, high: f64, count: u32| -> Vec<u32> {
        (0..=count)
            .map(|i| ((low + (high - low) * f64::from(i) / f64::from(count)) as f32).to_bits())
            .collect()
    };
    let specials: Vec<u32> = VALUES
        .into_iter()
        .filter(|&v| !f(v).is_subnormal())
        .collect();
    let normal_only = |values: Vec<u32>| -> Vec<u32> {
        values
            .into_iter()
            .filter(|&v| f(v).is_finite() && !f(v).is_subnormal())
            .collect()
    };
    let many = normal_only([mixed(300), moderate(200)].concat());
    let with_specials = [many.clone(), specials.clone()].concat();
    let case = |op: &str, inputs: &[u32], compare: Compare, value: fn(f64) -> f64| {
        let body = format!("{op} %d0, %a0;");
        Case::lanes(op, &body, &singles(inputs), |[a]| {
            [(value(f(a).into()) as f32).to_bits()]
        })
        .compare(compare)
    };
    // A quotient or reciprocal near or below the subnormals may be flushed or not; it is left out.
    let clear = |x: f64| x == 0.0 || x.abs() > 2e-38 || x.is_nan();
    let reciprocals: Vec<u32> = with_specials
        .iter()
        .copied()
        .filter(|&v| clear(1.0 / f64::from(f(v))))
        .collect();
    let quotients: Vec<[u32; 2]> = two()
        .into_iter()
        .filter(|&[a, b]| {
            // "For |b| in [2^-126, 2^126] the maximum error is 2 ulp"; beyond, zero is returned or NaN for an infinite a.
            let (a, b) = (f(a), f(b));
            let quotient = f64::from(a) / f64::from(b);
            b.abs() <= (126f32).exp2()
                && b.abs() >= f32::MIN_POSITIVE
                && !a.is_subnormal()
                && clear(quotient)
                && (quotient.abs() < f32::MAX.into() || a.is_infinite())
        })
        .collect();
    let divide = |op: &str| {
        let body = format!("{op} %d0, %a0, %a1;");
        Case::lanes(op, &body, &quotients, |[a, b]| {
            [((f64::from(f(a)) / f64::from(f(b))) as f32).to_bits()]
        })
        .compare(ulps(2.0))
    };
    let large_divisors: Vec<[u32; 2]> = [0x7e80_0001, 0x7f00_0000, 0x7f7f_ffff]
        .into_iter()
        .flat_map(|b| [b, b | 1 << 31])
        .flat_map(|b| two().into_iter().map(move |[a, _]| [a, b]))
        .collect();
    let exponents = [
        spread(-125.9, 127.9, 400),
        spread(-2.0, 2.0, 200),
        [
            0.0,
            -0.0,
            1.0,
            -1.0,
            128.0,
            1e9,
            f32::INFINITY,
            f32::NEG_INFINITY,
            f32::NAN,
        ]
        .map(f32::to_bits)
        .to_vec(),
    ]
    .concat();
    let angles = spread(-std::f64::consts::TAU, std::f64::consts::TAU, 600);
    let positives: Vec<u32> = with_specials
        .iter()
        .copied()
        .filter(|&v| f(v) >= 0.0 || f(v).is_nan())
        .collect();
    let near_one = spread(0.5, 2.0, 300);
    let logarithms: Vec<u32> = positives
        .iter()
        .copied()
        .filter(|&v| !(0.5..=2.0).contains(&f(v)))
        .chain([0xbf80_0000])
        .collect();
    let power = (-22f64).exp2();
    vec![
        case("rcp.approx.f32", &reciprocals, ulps(1.0), |x| 1.0 / x),
        case("rcp.approx.ftz.f32", &reciprocals, ulps(1.0), |x| 1.0 / x),
        divide("div.approx.f32"),
        divide("div.full.f32"),
        Case::lanes(
            "div.approx by large numbers",
            "div.approx.f32 %d0, %a0, %a1; div.approx.ftz.f32 %d1, %a0, %a1;",
            &large_divisors,
            // "For 2^126 < |b| < 2^128, if a is infinity, div.approx.f32 returns NaN, otherwise it returns a
            // sign-preserving zero."
            |[a, b]| {
                let (a, b) = (f(a), f(b));
                let quotient = if a.is_finite() { 0.0 } else { f32::NAN };
                [quotient.copysign(a) * 1f32.copysign(b); 2].map(f32::to_bits)
            },
        )
        .compare(Compare::F32),
        case("sqrt.approx.f32", &with_specials, ulps(1.0), f64::sqrt),
        case("sqrt.approx.ftz.f32", &with_specials, ulps(1.0), f64::sqrt),
        case(
            "rsqrt.approx.f32",
            &with_specials,
            within((-22.9f64).exp2(), 0.0),
            |x| 1.0 / x.sqrt(),
        ),
        case(
            "rsqrt.approx.ftz.f32",
            &with_specials,
            within((-22.9f64).exp2(), 0.0),
            |x| 1.0 / x.sqrt(),
        ),
        case("ex2.approx.f32", &exponents, ulps(2.0), f64::exp2),
        case("ex2.approx.ftz.f32", &exponents, ulps(2.0), f64::exp2),
        case("lg2.approx.f32", &logarithms, within(power, 0.0), f64::log2),
        case("lg2.approx.f32", &near_one, within(0.0, power), f64::log2),
        case(
            "lg2.approx.ftz.f32",
            &logarithms,
            within(power, 0.0),
            f64::log2,
        ),
        case(
            "sin.approx.f32",
            &angles,
            within(0.0, (-20.5f64).exp2()),
            f64::sin,
        ),
        case(
            "cos.approx.f32",
            &angles,
            within(0.0, (-20.5f64).exp2()),
            f64::cos,
        ),
        case(
            "sin.approx.ftz.f32",
            &angles,
            within(0.0, (-20.5f64).exp2()),
            f64::sin,
        ),
        case(
            "cos.approx.ftz.f32",
            &angles,
            within(0.0, (-20.5f64).exp2()),
            f64::cos,
        ),
        case(
            "tanh.approx.f32",
            &[spread(-8.0, 8.0, 300), specials].concat(),
            within((-11f64).exp2(), 0.0),
            f64::tanh,
        ),
    ]
}

fn double() -> Vec<Case> {
    let values = [
        0.0,
        -0.0,
        1.0,
        -1.5,
        0.1,
        1e300,
        -1e-300,
        5e-324,
        f64::MAX,
        f64::INFINITY,
        f64::NEG_INFINITY,
        f64::NAN,
        std::f64::consts::PI,
        4_503_599_627_370_497.5,
    ];
    let inputs: Vec<[u32; 4]> = values
        .iter()
        .flat_map(|&a: &f64| {
            values.iter().map(move |&b: &f64| {
                let ([a0, a1], [b0, b1]) = (split(a.to_bits()), split(b.to_bits()));
                [a0, a1, b0, b1]
            })
        })
        .collect();
    let case = |op: &str, operands: &str, value: fn(f64, f64) -> f64| {
        let body = format!(
            "mov.b64 %q0, {{%a0, %a1}}; mov.b64 %q1, {{%a2, %a3}}; {op} %q2, {operands}; mov.b64 {{%d0, %d1}}, %q2;"
        );
        Case::lanes(op, &body, &inputs, |[a, b, c, d]| {
            let (a, b) = (f64::from_bits(join(a, b)), f64::from_bits(join(c, d)));
            split(value(a, b).to_bits())
        })
        .compare(Compare::F64)
    };
    vec![
        case("add.rn.f64", "%q0, %q1", |a, b| a + b),
        case("sub.rn.f64", "%q0, %q1", |a, b| a - b),
        case("mul.rn.f64", "%q0, %q1", |a, b| a * b),
        case("fma.rn.f64", "%q0, %q1, %q0", |a, b| a.mul_add(b, a)),
        case("div.rn.f64", "%q0, %q1", |a, b| a / b),
        case("sqrt.rn.f64", "%q0", |a, _| a.sqrt()),
        case("rcp.rn.f64", "%q0", |a, _| 1.0 / a),
        case("abs.f64", "%q0", |a, _| a.abs()),
        case("neg.f64", "%q0", |a, _| -a),
        case("max.f64", "%q0, %q1", |a, b| {
            match (a.is_nan(), b.is_nan()) {
                (true, _) => b,
                (_, true) => a,
                _ if a > b || (a == b && b.is_sign_negative()) => a,
                _ => b,
            }
        }),
        case("min.f64", "%q0, %q1", |a, b| {
            match (a.is_nan(), b.is_nan()) {
                (true, _) => b,
                (_, true) => a,
                _ if a < b || (a == b && a.is_sign_negative()) => a,
                _ => b,
            }
        }),
        case("mov.f64", "0d400921FB54442D18", |_, _| std::f64::consts::PI),
    ]
}
