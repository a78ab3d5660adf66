//! f16, bf16 and tf32: conversions and packed arithmetic.
//!
//! The expected values come from `crate::half`, whose own tests check it exhaustively against definitions in f64; what is
//! judged here is that each instruction does what its modifiers say.

use super::{Case, Compare, mixed, pairs, singles, triples};
use crate::half::{
    self, BF16, F16, Finish, Format, Rounding, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16,
    f32_to_tf32, pack,
};

const PLAIN: Finish = Finish {
    relu: false,
    satfinite: false,
    sat: false,
    ftz: false,
};
const RELU: Finish = Finish {
    relu: true,
    ..PLAIN
};
const SATFINITE: Finish = Finish {
    satfinite: true,
    ..PLAIN
};
const SAT: Finish = Finish { sat: true, ..PLAIN };

pub(super) fn cases() -> Vec<Case> {
    [
        from_f32(),
        to_f32(),
        packed(F16, "f16x2"),
        packed(BF16, "bf16x2"),
        scalar(),
        approximations(),
        eight_bits(),
    ]
    .concat()
}

/// f32 values that are ties, overflows and subnormals of the narrow types.
fn words() -> Vec<u32> {
    let mut words = vec![
        0x0000_0000,
        0x8000_0000,
        0x3f80_0000,
        0xbf80_0000,
        0x3f80_8000,
        0x3f81_8000,
        0x3f80_8001,
        0x3f80_7fff,
        0x3f80_1000,
        0x3f80_3000,
        0x3f80_0fff,
        0x477f_efff,
        0x477f_f000,
        0x477f_e000,
        0xc77f_f000,
        0x7f7f_ffff,
        0xff7f_ffff,
        0x7f7f_7fff,
        0x7f80_0000,
        0xff80_0000,
        0x7fc0_0000,
        0xffff_ffff,
        0x3380_0000,
        0x3300_0000,
        0x3300_0001,
        0x3880_0000,
        0x387f_c000,
        0x387f_f000,
        0x0000_8000,
        0x0001_8000,
        0x807f_ffff,
    ];
    words.extend(mixed(150));
    words.extend(mixed(150).iter().map(|w| w & 0x87ff_ffff | 0x3800_0000));
    words
}

fn from_f32() -> Vec<Case> {
    let (nearest, zero) = (Rounding::NearestEven, Rounding::Zero);
    let inputs: Vec<[u32; 2]> = words()
        .iter()
        .zip(words().iter().rev())
        .map(|(&a, &b)| [a, b])
        .collect();
    let mut cases = Vec::new();
    let variants = [
        ("rn", nearest, PLAIN),
        ("rz", zero, PLAIN),
        ("rn.relu", nearest, RELU),
        ("rz.relu", zero, RELU),
        ("rn.satfinite", nearest, SATFINITE),
    ];
    type Convert = fn(f32, Rounding, Finish) -> u16;
    let formats: [(&str, Convert); 2] = [("f16", f32_to_f16), ("bf16", f32_to_bf16)];
    for (format, convert) in formats {
        for (modifiers, rounding, finish) in variants {
            let single = format!("cvt.{modifiers}.{format}.f32");
            let double = format!("cvt.{modifiers}.{format}x2.f32");
            // The first source goes to the upper half.
            let body = format!("{single} %h0, %a0; cvt.u32.u16 %d0, %h0; {double} %d1, %a0, %a1;");
            cases.push(
                Case::lanes(&format!("{single} and x2"), &body, &inputs, |[a, b]| {
                    let [a, b] = [a, b].map(|x| convert(f32::from_bits(x), rounding, finish));
                    [a.into(), pack(b, a)]
                })
                .sm(80),
            );
        }
    }
    cases.push(Case::lanes(
        "cvt to f16 in all architectures",
        "cvt.rn.f16.f32 %h0, %a0; cvt.u32.u16 %d0, %h0; cvt.rz.f16.f32 %h1, %a0; cvt.u32.u16 %d1, %h1;\n\
         cvt.rm.f16.f32 %h2, %a0; cvt.u32.u16 %d2, %h2; cvt.rp.f16.f32 %h3, %a0; cvt.u32.u16 %d3, %h3;\n\
         cvt.rn.sat.f16.f32 %h4, %a0; cvt.u32.u16 %d4, %h4;",
        &inputs,
        |[a, _]| {
            let a = f32::from_bits(a);
            [
                (nearest, PLAIN),
                (zero, PLAIN),
                (Rounding::Down, PLAIN),
                (Rounding::Up, PLAIN),
                (nearest, SAT),
            ]
            .map(|(rounding, finish)| f32_to_f16(a, rounding, finish).into())
        },
    ));
    // The assembler drops `.ftz` in a conversion to f16: a subnormal rounds up to the smallest f16.
    let subnormal: Vec<[u32; 1]> = singles(&words())
        .into_iter()
        .chain([
            [1],
            [0x8000_0001],
            [0x007f_ffff],
            [0x807f_ffff],
            [0x3300_0001],
        ])
        .collect();
    cases.push(Case::lanes(
        "cvt.ftz to f16",
        "cvt.rn.ftz.f16.f32 %h0, %a0; cvt.u32.u16 %d0, %h0; cvt.rz.ftz.f16.f32 %h1, %a0; cvt.u32.u16 %d1, %h1;\n\
         cvt.rm.ftz.f16.f32 %h2, %a0; cvt.u32.u16 %d2, %h2; cvt.rp.ftz.f16.f32 %h3, %a0; cvt.u32.u16 %d3, %h3;",
        &subnormal,
        |[a]| {
            [nearest, zero, Rounding::Down, Rounding::Up]
                .map(|rounding| f32_to_f16(f32::from_bits(a), rounding, PLAIN).into())
        },
    ));
    // The ISA leaves the 13 lower bits of a tf32 register, and NaN's payload, open.
    let numbers: Vec<[u32; 1]> = singles(&words())
        .into_iter()
        .filter(|&[a]| !f32::from_bits(a).is_nan())
        .collect();
    cases.push(
        Case::lanes(
            "cvt.rna.tf32.f32",
            "cvt.rna.tf32.f32 %d0, %a0; and.b32 %d0, %d0, 0xFFFFE000;",
            &numbers,
            |[a]| [f32_to_tf32(f32::from_bits(a), Rounding::NearestAway, PLAIN)],
        )
        .sm(80),
    );
    cases.push(
        Case::lanes(
            "cvt.rn.tf32.f32",
            "cvt.rn.tf32.f32 %d0, %a0; and.b32 %d0, %d0, 0xFFFFE000;\n\
             cvt.rz.relu.tf32.f32 %d1, %a0; and.b32 %d1, %d1, 0xFFFFE000;",
            &numbers,
            |[a]| {
                let a = f32::from_bits(a);
                [f32_to_tf32(a, nearest, PLAIN), f32_to_tf32(a, zero, RELU)]
            },
        )
        .sm(90),
    );
    cases
}

fn to_f32() -> Vec<Case> {
    // Every 37th of the 65,536 values, and the ends of the classes.
    let halves: Vec<u32> = (0..0x1_0000)
        .step_by(37)
        .chain([
            1, 0x3ff, 0x400, 0x7bff, 0x7c00, 0x7c01, 0xfc00, 0x7f7f, 0x7f80, 0xff80, 0xffff,
        ])
        .collect();
    vec![
        Case::lanes(
            "cvt.f32.f16",
            "cvt.u16.u32 %h0, %a0; cvt.f32.f16 %d0, %h0;",
            &singles(&halves),
            |[a]| [f16_to_f32(a as u16).to_bits()],
        )
        .compare(Compare::F32),
        Case::lanes(
            "cvt.f32.bf16",
            "cvt.u16.u32 %h0, %a0; cvt.f32.bf16 %d0, %h0;",
            &singles(&halves),
            |[a]| [bf16_to_f32(a as u16).to_bits()],
        )
        .sm(90)
        .compare(Compare::F32),
        Case::lanes(
            "cvt between f16 and integers",
            "cvt.u16.u32 %h0, %a0; cvt.rzi.s32.f16 %d0, %h0; cvt.rn.f16.s32 %h1, %a0; cvt.u32.u16 %d1, %h1;\n\
             cvt.rni.f16.f16 %h2, %h0; cvt.u32.u16 %d2, %h2;",
            // NaN's bits after rounding to an integer are open.
            &singles(&halves)
                .into_iter()
                .filter(|&[a]| !f16_to_f32(a as u16).is_nan())
                .collect::<Vec<_>>(),
            |[a]| {
                let value = f16_to_f32(a as u16);
                [
                    value as i32 as u32,
                    f32_to_f16(a as f32, Rounding::NearestEven, PLAIN).into(),
                    f32_to_f16(value.round_ties_even(), Rounding::NearestEven, PLAIN).into(),
                ]
            },
        ),
    ]
}

/// Values of a 16-bit format: zeros, subnormals, ones, the largest, infinities, NaN, and mixed bits.
fn sixteen(format: Format) -> Vec<u16> {
    let one = if format == F16 { 0x3c00 } else { 0x3f80 };
    let max = format.max_finite() as u16;
    let mut values = vec![
        0,
        0x8000,
        1,
        0x8003,
        one,
        one | 0x8000,
        one + 1,
        max,
        max | 0x8000,
    ];
    values.extend([max + 1, (max + 1) | 0x8000, 0x7fff]);
    values.extend(mixed(6).iter().map(|&w| w as u16));
    values
}

/// Registers whose lower halves walk over all values and whose upper halves walk the other way.
fn registers(format: Format) -> Vec<u32> {
    let values = sixteen(format);
    values
        .iter()
        .zip(values.iter().rev())
        .map(|(&low, &high)| pack(low, high))
        .collect()
}

fn packed(format: Format, name: &str) -> Vec<Case> {
    let nearest = Rounding::NearestEven;
    let (two, three) = (pairs(&registers(format)), triples(&registers(format)));
    let one = singles(&registers(format));
    let binary = |op: &str, sm: u32, f: &dyn Fn(u16, u16) -> u16| {
        let op = format!("{op}.{name}");
        Case::lanes(&op, &format!("{op} %d0, %a0, %a1;"), &two, |[a, b]| {
            [half::packed2(a, b, f)]
        })
        .sm(sm)
    };
    let ternary = |op: &str, sm: u32, f: &dyn Fn(u16, u16, u16) -> u16| {
        let op = format!("{op}.{name}");
        let body = format!("{op} %d0, %a0, %a1, %a2;");
        Case::lanes(&op, &body, &three, |[a, b, c]| [half::packed3(a, b, c, f)]).sm(sm)
    };
    // NaN's sign after neg and abs is open: NaN is left out there.
    let numbers: Vec<[u32; 1]> = one
        .iter()
        .copied()
        .filter(|&[a]| {
            [half::low(a), half::high(a)]
                .iter()
                .all(|&h| !format.decode(h.into()).is_nan())
        })
        .collect();
    let unary = |op: &str, sm: u32, f: &dyn Fn(u16) -> u16| {
        let op = format!("{op}.{name}");
        Case::lanes(&op, &format!("{op} %d0, %a0;"), &numbers, |[a]| {
            [half::packed1(a, f)]
        })
        .sm(sm)
    };
    // f16x2 arithmetic is older than bf16x2's.
    let (arithmetic, fused) = if format == F16 { (75, 75) } else { (90, 80) };
    let mut cases = vec![
        binary("add.rn", arithmetic, &|a, b| {
            half::add(format, a, b, nearest, PLAIN)
        }),
        binary("sub.rn", arithmetic, &|a, b| {
            half::sub(format, a, b, nearest, PLAIN)
        }),
        binary("mul.rn", arithmetic, &|a, b| {
            half::mul(format, a, b, nearest, PLAIN)
        }),
        ternary("fma.rn", fused, &|a, b, c| {
            half::fma(format, a, b, c, nearest, PLAIN)
        }),
        ternary("fma.rn.relu", 80, &|a, b, c| {
            half::fma(format, a, b, c, nearest, RELU)
        }),
        binary("min", 80, &|a, b| half::min(format, a, b, false, false)),
        binary("max", 80, &|a, b| half::max(format, a, b, false, false)),
        binary("min.NaN", 80, &|a, b| half::min(format, a, b, true, false)),
        binary("max.NaN", 80, &|a, b| half::max(format, a, b, true, false)),
        unary("neg", 80, &half::neg),
        unary("abs", 80, &half::abs),
    ];
    if format == F16 {
        cases.extend([
            binary("add", 75, &|a, b| half::add(format, a, b, nearest, PLAIN)),
            binary("add.sat", 75, &|a, b| half::add(format, a, b, nearest, SAT)),
            ternary("fma.rn.sat", 75, &|a, b, c| {
                half::fma(format, a, b, c, nearest, SAT)
            }),
        ]);
    }
    cases
}

/// The scalar forms, and comparisons.
fn scalar() -> Vec<Case> {
    let nearest = Rounding::NearestEven;
    let inputs = |format| -> Vec<[u32; 2]> {
        let values: Vec<u32> = sixteen(format).iter().map(|&v| v.into()).collect();
        pairs(&values)
    };
    let load = "cvt.u16.u32 %h0, %a0; cvt.u16.u32 %h1, %a1;";
    vec![
        Case::lanes(
            "f16 arithmetic",
            &format!(
                "{load} add.rn.f16 %h2, %h0, %h1; sub.rn.f16 %h3, %h0, %h1; mul.rn.f16 %h4, %h0, %h1;\n\
                 fma.rn.f16 %h5, %h0, %h1, %h0;\n\
                 cvt.u32.u16 %d0, %h2; cvt.u32.u16 %d1, %h3; cvt.u32.u16 %d2, %h4; cvt.u32.u16 %d3, %h5;"
            ),
            &inputs(F16),
            move |[a, b]| {
                let (a, b) = (a as u16, b as u16);
                [
                    half::add(F16, a, b, nearest, PLAIN),
                    half::sub(F16, a, b, nearest, PLAIN),
                    half::mul(F16, a, b, nearest, PLAIN),
                    half::fma(F16, a, b, a, nearest, PLAIN),
                ]
                .map(u32::from)
            },
        ),
        Case::lanes(
            "bf16 fma, min and max",
            &format!(
                "{load} fma.rn.bf16 %h2, %h0, %h1, %h0; min.bf16 %h3, %h0, %h1; max.NaN.bf16 %h4, %h0, %h1;\n\
                 cvt.u32.u16 %d0, %h2; cvt.u32.u16 %d1, %h3; cvt.u32.u16 %d2, %h4;"
            ),
            &inputs(BF16),
            move |[a, b]| {
                let (a, b) = (a as u16, b as u16);
                [
                    half::fma(BF16, a, b, a, nearest, PLAIN),
                    half::min(BF16, a, b, false, false),
                    half::max(BF16, a, b, true, false),
                ]
                .map(u32::from)
            },
        )
        .sm(80),
        Case::lanes(
            "setp.f16 and setp.f16x2",
            &format!(
                "{load} setp.lt.f16 %p0, %h0, %h1; setp.neu.f16 %p1, %h0, %h1; mov.b32 %r0, {{%h0, %h1}};\n\
                 mov.b32 %r1, {{%h1, %h0}}; setp.ge.f16x2 %p2|%p3, %r0, %r1; selp.b32 %d0, 1, 0, %p0;\n\
                 selp.b32 %d1, 1, 0, %p1; selp.b32 %d2, 1, 0, %p2; selp.b32 %d3, 1, 0, %p3;"
            ),
            &inputs(F16),
            |[a, b]| {
                let (x, y) = (f16_to_f32(a as u16), f16_to_f32(b as u16));
                [x < y, x != y, x >= y, y >= x].map(u32::from)
            },
        ),
    ]
}

/// The bounds of the ISA, and half an ulp of the format because the expected value is itself rounded.
fn approximations() -> Vec<Case> {
    let mut cases = Vec::new();
    for (format, name, sm, bits) in [(F16, "f16x2", 75, 11), (BF16, "ftz.bf16x2", 90, 8)] {
        // Finite arguments whose powers of two are normal numbers.
        let arguments: Vec<u32> = (0..200u16)
            .map(|i| {
                let x = f64::from(i) * 0.13 - 13.0;
                let bits = format.encode(x, Rounding::NearestEven, PLAIN) as u16;
                pack(bits, bits ^ 0x8000)
            })
            .collect();
        let half_ulp = f64::from(-bits).exp2();
        let (ex2, tanh) = if format == F16 {
            ((-9.9f64).exp2(), (-10.987f64).exp2())
        } else {
            ((-7f64).exp2(), (-8f64).exp2())
        };
        let op = format!("ex2.approx.{name}");
        cases.push(
            Case::lanes(
                &op,
                &format!("{op} %d0, %a0;"),
                &singles(&arguments),
                |[a]| [half::packed1(a, |x| half::ex2(format, x, false))],
            )
            .sm(sm)
            .compare(Compare::PairWithin {
                format,
                relative: ex2 + half_ulp,
                absolute: 0.0,
            }),
        );
        let op = format!("tanh.approx.{}", name.trim_start_matches("ftz."));
        cases.push(
            Case::lanes(
                &op,
                &format!("{op} %d0, %a0;"),
                &singles(&arguments),
                |[a]| [half::packed1(a, |x| half::tanh(format, x))],
            )
            .sm(sm)
            .compare(Compare::PairWithin {
                format,
                relative: half_ulp,
                absolute: tanh,
            }),
        );
    }
    cases
}

/// fp8 by its definition: the values of all codes, and rounding to the nearest, with ties to an even code.
fn eight_bits() -> Vec<Case> {
    // Exponent bits, mantissa bits, the largest finite code.
    type Small = (&'static str, i32, i32, u32);
    let formats: [Small; 2] = [("e4m3", 4, 3, 0x7e), ("e5m2", 5, 2, 0x7b)];
    let value = |(_, exponents, mantissas, _): Small, code: u32| {
        let (field, mantissa) = (
            (code & 0x7f) >> mantissas,
            f64::from(code & ((1 << mantissas) - 1)) / f64::from(1 << mantissas),
        );
        let bias = (1 << (exponents - 1)) - 1;
        let magnitude = if field == 0 {
            mantissa * f64::from(1 - bias).exp2()
        } else {
            (1.0 + mantissa) * f64::from(field as i32 - bias).exp2()
        };
        if code & 0x80 != 0 {
            -magnitude
        } else {
            magnitude
        }
    };
    let nearest = move |format: Small, x: f64| {
        if x.is_nan() {
            return 0x7f;
        }
        let sign = if x.is_sign_negative() { 0x80 } else { 0 };
        let distance = |code: u32| (value(format, code) - x.abs().min(1e6)).abs();
        let code = (0..=format.3).reduce(|best, code| {
            let closer = distance(code) < distance(best);
            let tie = distance(code) == distance(best) && code % 2 == 0;
            if closer || tie { code } else { best }
        });
        code.unwrap_or(0) | sign
    };
    let mut cases = Vec::new();
    for format in formats {
        let (name, .., largest) = format;
        // Every number, the middle of each pair of neighbours, and the floats just beside it.
        let mut reals: Vec<f32> = (0..largest)
            .flat_map(|code| {
                let low = value(format, code) as f32;
                let middle = (low + value(format, code + 1) as f32) / 2.0;
                [low, middle.next_down(), middle, middle.next_up()]
            })
            .collect();
        reals.extend([
            464.0,
            448.1,
            480.0,
            57344.0,
            61440.0,
            1e5,
            1e-30,
            1e38,
            f32::INFINITY,
            f32::NAN,
        ]);
        let inputs: Vec<[u32; 2]> = reals
            .iter()
            .zip(reals.iter().rev())
            .map(|(a, b)| [a.to_bits(), (-b).to_bits()])
            .collect();
        let relu = |x: f64| if x <= 0.0 { 0.0 } else { x };
        let body = format!(
            "cvt.rn.satfinite.{name}x2.f32 %h0, %a0, %a1; cvt.u32.u16 %d0, %h0;\n\
             cvt.rn.satfinite.relu.{name}x2.f32 %h1, %a1, %a0; cvt.u32.u16 %d1, %h1;\n\
             cvt.rn.f16x2.f32 %r0, %a0, %a1; cvt.rn.satfinite.{name}x2.f16x2 %h2, %r0; cvt.u32.u16 %d2, %h2;"
        );
        let case = Case::lanes(&format!("cvt to {name}x2"), &body, &inputs, |[a, b]| {
            let [a, b] = [a, b].map(|bits| f64::from(f32::from_bits(bits)));
            let short = |x: f64| {
                f64::from(f16_to_f32(f32_to_f16(
                    x as f32,
                    Rounding::NearestEven,
                    PLAIN,
                )))
            };
            let pair = |high: f64, low: f64| nearest(format, high) << 8 | nearest(format, low);
            [pair(a, b), pair(relu(b), relu(a)), pair(short(a), short(b))]
        });
        cases.push(case.sm(90));
        // All codes; the bits of NaN are open.
        let number = |code: &u32| code & 0x7f <= largest;
        let codes: Vec<[u32; 1]> = (0..0x100)
            .filter(number)
            .zip(
                (0..0x100)
                    .filter(number)
                    .collect::<Vec<_>>()
                    .into_iter()
                    .rev(),
            )
            .map(|(low, high)| [high << 8 | low])
            .collect();
        let body = format!(
            "cvt.u16.u32 %h0, %a0; cvt.rn.f16x2.{name}x2 %d0, %h0; cvt.rn.relu.f16x2.{name}x2 %d1, %h0;"
        );
        let half = |x: f64| f32_to_f16(x as f32, Rounding::NearestEven, PLAIN);
        let case = Case::lanes(&format!("cvt from {name}x2"), &body, &codes, |[a]| {
            let [low, high] = [a & 0xff, a >> 8].map(|code| value(format, code));
            let positive = |x: f64| half(if x.is_sign_negative() { 0.0 } else { x });
            [
                pack(half(low), half(high)),
                pack(positive(low), positive(high)),
            ]
        });
        cases.push(case.sm(90));
        let case = Case::lanes(
            &format!("cvt from NaN in {name}x2"),
            &format!("cvt.u16.u32 %h0, %a0; cvt.rn.f16x2.{name}x2 %d0, %h0;"),
            &singles(&[0x7f7f, 0xff7f, 0x7fff]),
            |_| [0x7fff_7fff],
        );
        cases.push(case.sm(90).compare(Compare::PairWithin {
            format: F16,
            relative: 0.0,
            absolute: 0.0,
        }));
    }
    cases
}
