//! `cvt` between integers, f32 and f64.

use std::cmp::Ordering;

use super::oracle::{MODES, direct, flush, saturate};
use super::{Case, Compare, join, mixed, pairs, singles, split};

pub(super) fn cases() -> Vec<Case> {
    [
        float_to_integer(),
        integer_to_float(),
        float_to_float(),
        integer_to_integer(),
        saturating(),
    ]
    .concat()
}

/// Values around the ends of the integer ranges, ties of both signs, non-finite ones.
fn reals() -> Vec<f64> {
    let mut values = vec![
        0.0, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 3.5, 126.5, 127.5, 128.0, 255.5, 256.0,
    ];
    values.extend([
        32766.5, 32767.5, 65534.5, 65536.0, 8388607.5, 8388609.0, 16777217.0, 1e-40, 1e10, 1e30,
    ]);
    for power in [7, 8, 15, 16, 31, 32, 63, 64] {
        let power = f64::from(power).exp2();
        values.extend([
            power * (1.0 - (-24f64).exp2()),
            power,
            power * (1.0 + (-23f64).exp2()),
        ]);
    }
    values.extend([f64::MAX, f64::INFINITY]);
    let negative: Vec<_> = values.iter().map(|x| -x).collect();
    values.extend(negative);
    values.extend([f64::NAN, -f64::NAN]);
    values
}

fn round_to_integer(x: f64, rounding: &str) -> f64 {
    match rounding {
        "rni" => x.round_ties_even(),
        "rzi" => x.trunc(),
        "rmi" => x.floor(),
        _ => x.ceil(),
    }
}

const INTEGER_ROUNDINGS: [&str; 4] = ["rni", "rzi", "rmi", "rpi"];

/// Saturation at the ends of the range is implicit. NaN becomes 0, but `1 << (width - 1)` where either type has 64 bits.
fn float_to_integer() -> Vec<Case> {
    let singles_of = || -> Vec<[u32; 1]> {
        let mut inputs: Vec<_> = reals().iter().map(|&x| [(x as f32).to_bits()]).collect();
        inputs.extend(singles(&mixed(64)));
        inputs
    };
    let doubles = || -> Vec<[u32; 2]> {
        let mut inputs: Vec<_> = reals().iter().map(|x| split(x.to_bits())).collect();
        inputs.extend(mixed(64).as_chunks().0);
        inputs
    };
    // Rust's `as` clamps like the ISA. Beside each type: NaN from f32 and from f64.
    type Target = (&'static str, fn(f64) -> u64, u64, u64);
    let targets: [Target; 4] = [
        ("s32", |x| u64::from(x as i32 as u32), 0, 1 << 31),
        ("u32", |x| u64::from(x as u32), 0, 1 << 31),
        ("s64", |x| x as i64 as u64, 1 << 63, 1 << 63),
        ("u64", |x| x as u64, 1 << 63, 1 << 63),
    ];
    let mut cases = Vec::new();
    for rounding in INTEGER_ROUNDINGS {
        for (target, convert, f32_nan, f64_nan) in targets {
            let value = |x: f64, nan: u64| {
                if x.is_nan() {
                    split(nan)
                } else {
                    split(convert(round_to_integer(x, rounding)))
                }
            };
            let store = if target.ends_with("64") {
                "mov.b64 {%d0, %d1}, %q1;"
            } else {
                "mov.b32 %d0, %r1; mov.b32 %d1, 0;"
            };
            let register = if target.ends_with("64") { "%q1" } else { "%r1" };
            let op = format!("cvt.{rounding}.{target}.f32");
            cases.push(Case::lanes(
                &op,
                &format!("{op} {register}, %a0; {store}"),
                &singles_of(),
                |[a]| value(f32::from_bits(a).into(), f32_nan),
            ));
            let op = format!("cvt.{rounding}.{target}.f64");
            cases.push(Case::lanes(
                &op,
                &format!("mov.b64 %q0, {{%a0, %a1}}; {op} {register}, %q0; {store}"),
                &doubles(),
                |[a, b]| value(f64::from_bits(join(a, b)), f64_nan),
            ));
        }
    }
    cases.push(Case::lanes(
        "cvt.rzi to 8 and 16 bits",
        "cvt.rzi.s16.f32 %h0, %a0; cvt.rzi.u16.f32 %h1, %a0; cvt.rzi.s8.f32 %h2, %a0; cvt.rzi.u8.f32 %h3, %a0;\n\
         cvt.s32.s16 %d0, %h0; cvt.u32.u16 %d1, %h1; cvt.s32.s16 %d2, %h2; cvt.u32.u16 %d3, %h3;",
        &singles_of(),
        |[a]| {
            let x = f32::from_bits(a);
            [
                i32::from(x as i16) as u32,
                u32::from(x as u16),
                i32::from(x as i8) as u32,
                u32::from(x as u8),
            ]
        },
    ));
    cases.push(Case::lanes(
        "cvt.rpi.ftz.s32.f32",
        "cvt.rpi.ftz.s32.f32 %d0, %a0; cvt.rpi.s32.f32 %d1, %a0;",
        &singles(&[0x0000_0001, 0x8000_0001, 0x007f_ffff, 0x0080_0000]),
        |[a]| [flush(f32::from_bits(a)), f32::from_bits(a)].map(|x| x.ceil() as i32 as u32),
    ));
    cases
}

fn integer_to_float() -> Vec<Case> {
    let words = [
        0,
        1,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x0100_0001,
        0x0100_0003,
        0xfeff_ffff,
        0x7fff_ffc0,
        0x7fff_ffbf,
        0x0200_0006,
    ];
    let inputs = [pairs(&words), mixed(128).as_chunks().0.to_vec()].concat();
    let round = |x: i128, mode| {
        let nearest = x as f32;
        let exact = x.cmp(&(nearest as i128));
        direct(nearest, exact, mode)
    };
    let mut cases = Vec::new();
    for (name, mode) in MODES {
        cases.push(Case::lanes(
            &format!("cvt.{name}.f32 from integers"),
            &format!(
                "mov.b64 %q0, {{%a0, %a1}}; cvt.{name}.f32.s32 %d0, %a0; cvt.{name}.f32.u32 %d1, %a0;\n\
                 cvt.{name}.f32.s64 %d2, %q0; cvt.{name}.f32.u64 %d3, %q0;"
            ),
            &inputs,
            move |[a, b]| {
                let long = join(a, b);
                let exact: [i128; 4] = [
                    (a as i32).into(),
                    a.into(),
                    (long as i64).into(),
                    long.into(),
                ];
                exact.map(|x| round(x, mode).to_bits())
            },
        ));
    }
    cases.push(Case::lanes(
        "cvt.rn.f64 from integers",
        "mov.b64 %q0, {%a0, %a1}; cvt.rn.f64.s32 %q1, %a0; cvt.rn.f64.u32 %q2, %a0; cvt.rn.f64.s64 %q3, %q0;\n\
         cvt.rn.f64.u64 %q4, %q0; mov.b64 {%d0, %d1}, %q1; mov.b64 {%d2, %d3}, %q2; mov.b64 {%d4, %d5}, %q3;\n\
         mov.b64 {%d6, %d7}, %q4;",
        &inputs,
        |[a, b]| {
            let long = join(a, b);
            let values = [
                f64::from(a as i32),
                f64::from(a),
                long as i64 as f64,
                long as f64,
            ]
            .map(|x| split(x.to_bits()));
            std::array::from_fn::<u32, 8, _>(|i| values[i / 2][i % 2])
        },
    ));
    cases.push(Case::lanes(
        "cvt.rn.f32 from 8 and 16 bits",
        "cvt.u16.u32 %h0, %a0; cvt.rn.f32.s16 %d0, %h0; cvt.rn.f32.u16 %d1, %h0; cvt.rn.f32.s8 %d2, %h0;\n\
         cvt.rn.f32.u8 %d3, %h0;",
        &inputs,
        |[a, _]| {
            [
                f32::from(a as i16),
                f32::from(a as u16),
                f32::from(a as i8),
                f32::from(a as u8),
            ]
            .map(f32::to_bits)
        },
    ));
    cases
}

fn float_to_float() -> Vec<Case> {
    let inputs: Vec<[u32; 2]> = reals()
        .iter()
        .flat_map(|&x| {
            let f32_exact = f64::from(x as f32);
            [
                x,
                f32_exact * (1.0 + (-24f64).exp2()),
                f32_exact * (1.0 + (-25f64).exp2()),
            ]
        })
        .chain([1e-46, 7e-46, 1.1754943e-38, 3.4028235677973366e38])
        .map(|x| split(x.to_bits()))
        .collect();
    let mut cases = Vec::new();
    for (name, mode) in MODES {
        let op = format!("cvt.{name}.f32.f64");
        cases.push(
            Case::lanes(
                &op,
                &format!("mov.b64 %q0, {{%a0, %a1}}; {op} %d0, %q0;"),
                &inputs,
                move |[a, b]| {
                    let x = f64::from_bits(join(a, b));
                    let nearest = x as f32;
                    let exact = x
                        .partial_cmp(&f64::from(nearest))
                        .unwrap_or(Ordering::Equal);
                    [direct(nearest, exact, mode).to_bits()]
                },
            )
            .compare(Compare::F32),
        );
    }
    let words: Vec<u32> = reals().iter().map(|&x| (x as f32).to_bits()).collect();
    cases.push(
        Case::lanes(
            "cvt.f64.f32",
            "cvt.f64.f32 %q0, %a0; mov.b64 {%d0, %d1}, %q0;",
            &singles(&words),
            |[a]| split(f64::from(f32::from_bits(a)).to_bits()),
        )
        .compare(Compare::F64),
    );
    for rounding in INTEGER_ROUNDINGS {
        let op = format!("cvt.{rounding}.f32.f32");
        cases.push(
            Case::lanes(
                &op,
                &format!("{op} %d0, %a0; mov.b32 %d1, 0; cvt.{rounding}.ftz.f32.f32 %d1, %a0;"),
                &singles(&words),
                |[a]| {
                    let x = f32::from_bits(a);
                    [x, flush(x)].map(|x| (round_to_integer(x.into(), rounding) as f32).to_bits())
                },
            )
            .compare(Compare::F32),
        );
        let op = format!("cvt.{rounding}.f64.f64");
        let body = format!("mov.b64 %q0, {{%a0, %a1}}; {op} %q1, %q0; mov.b64 {{%d0, %d1}}, %q1;");
        cases.push(
            Case::lanes(&op, &body, &inputs, |[a, b]| {
                split(round_to_integer(f64::from_bits(join(a, b)), rounding).to_bits())
            })
            .compare(Compare::F64),
        );
    }
    cases.push(
        Case::lanes(
            "cvt.sat.f32.f32",
            "cvt.sat.f32.f32 %d0, %a0; cvt.ftz.f32.f32 %d1, %a0; mov.f32 %d2, %a0;",
            &singles(&words),
            |[a]| {
                let x = f32::from_bits(a);
                [saturate(x), flush(x), x].map(f32::to_bits)
            },
        )
        .compare(Compare::F32),
    );
    cases
}

/// `.sat` clamps to the range of an integer type; for a float, to [0, 1], and NaN becomes +0.
fn saturating() -> Vec<Case> {
    const TYPES: [(bool, u32); 8] = [
        (false, 8),
        (false, 16),
        (false, 32),
        (false, 64),
        (true, 8),
        (true, 16),
        (true, 32),
        (true, 64),
    ];
    let name = |(signed, bits): (bool, u32)| format!("{}{bits}", if signed { 's' } else { 'u' });
    let range = |(signed, bits): (bool, u32)| -> (i128, i128) {
        if signed {
            (-1 << (bits - 1), (1 << (bits - 1)) - 1)
        } else {
            (0, (1 << bits) - 1)
        }
    };
    // The value in the type's lowest bits of a register.
    let read = |(signed, bits): (bool, u32), register: u64| {
        let shift = 128 - bits;
        if signed {
            ((u128::from(register) << shift) as i128) >> shift
        } else {
            ((u128::from(register) << shift) >> shift) as i128
        }
    };
    let words = [
        0,
        1,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
    ];
    let integers = [pairs(&words), mixed(64).as_chunks().0.to_vec()].concat();
    let operand = |bits: u32| if bits == 64 { "%q0" } else { "%a0" };
    let mut cases = Vec::new();
    for d in TYPES {
        for s in TYPES {
            let ((low, high), (s_low, s_high)) = (range(d), range(s));
            // The modifier is not allowed where nothing can saturate.
            if low <= s_low && s_high <= high {
                continue;
            }
            let op = format!("cvt.sat.{}.{}", name(d), name(s));
            let body = format!(
                "mov.b64 %q0, {{%a0, %a1}}; {op} {}, {}; {}",
                if d.1 == 64 { "%q1" } else { "%d0" },
                operand(s.1),
                if d.1 == 64 {
                    "mov.b64 {%d0, %d1}, %q1;"
                } else {
                    "mov.b32 %d1, 0;"
                },
            );
            cases.push(Case::lanes(&op, &body, &integers, |[a, b]| {
                // A signed result is extended to its register by the sign, an unsigned one by zeros.
                let value = read(s, join(a, b)).clamp(low, high);
                if d.1 == 64 {
                    split(value as u64)
                } else {
                    [value as u32, 0]
                }
            }));
        }
        // Every integer becomes 0 or 1.
        let op = format!("cvt.rn.sat from {}", name(d));
        let body = format!(
            "mov.b64 %q0, {{%a0, %a1}}; cvt.rn.sat.f64.{0} %q1, {1}; mov.b64 {{%d0, %d1}}, %q1;\n\
             cvt.rn.sat.f32.{0} %d2, {1}; cvt.rn.sat.f16.{0} %h0, {1}; cvt.u32.u16 %d3, %h0;\n\
             cvt.rz.sat.f64.{0} %q1, {1}; mov.b64 {{%d4, %d5}}, %q1;",
            name(d),
            operand(d.1),
        );
        cases.push(Case::lanes(&op, &body, &integers, |[a, b]| {
            if read(d, join(a, b)) > 0 {
                [0, 0x3ff0_0000, 0x3f80_0000, 0x3c00, 0, 0x3ff0_0000]
            } else {
                [0; 6]
            }
        }));
    }
    let reals: Vec<[u32; 2]> = reals()
        .into_iter()
        .chain([0.1, 0.3, 1e-6, 6.2e-5, 3e-8, 1.0 - 1e-9, 1.0 + 1e-9])
        .map(|x| split(x.to_bits()))
        .collect();
    let clamp = |x: f64| if x > 0.0 { x.min(1.0) } else { 0.0 };
    let half = |x: f64| {
        let finish = crate::half::Finish::default();
        crate::half::F16.encode(x, crate::half::Rounding::NearestEven, finish)
    };
    cases.push(Case::lanes(
        "cvt.sat between floats",
        "mov.b64 %q0, {%a0, %a1}; cvt.sat.f64.f64 %q1, %q0; mov.b64 {%d0, %d1}, %q1; cvt.rn.sat.f32.f64 %d2, %q0;\n\
         cvt.rn.sat.f16.f64 %h0, %q0; cvt.u32.u16 %d3, %h0; cvt.rn.f32.f64 %r0, %q0; cvt.sat.f64.f32 %q2, %r0;\n\
         mov.b64 {%d4, %d5}, %q2; cvt.rn.sat.f16.f32 %h1, %r0; cvt.u32.u16 %d6, %h1; cvt.rn.f16.f32 %h2, %r0;\n\
         cvt.sat.f16.f16 %h3, %h2; cvt.u32.u16 %d7, %h3; cvt.sat.f32.f16 %d8, %h2; cvt.sat.f64.f16 %q3, %h2;\n\
         mov.b64 {%d9, %d10}, %q3; cvt.rni.sat.f32.f32 %d11, %r0; cvt.rni.sat.f64.f64 %q4, %q0;\n\
         mov.b64 {%d12, %d13}, %q4; cvt.rni.sat.f16.f16 %h4, %h2; cvt.u32.u16 %d14, %h4;",
        &reals,
        |[a, b]| {
            let x = f64::from_bits(join(a, b));
            let single = x as f32;
            let short = crate::half::F16.decode(half(single.into()));
            let [d0, d1] = split(clamp(x).to_bits());
            let [d4, d5] = split(clamp(single.into()).to_bits());
            let [d9, d10] = split(clamp(short).to_bits());
            let [d12, d13] = split(clamp(x.round_ties_even()).to_bits());
            [
                d0,
                d1,
                (clamp(x) as f32).to_bits(),
                half(clamp(x)),
                d4,
                d5,
                half(clamp(single.into())),
                half(clamp(short)),
                (clamp(short) as f32).to_bits(),
                d9,
                d10,
                saturate(single.round_ties_even()).to_bits(),
                d12,
                d13,
                half(clamp(short.round_ties_even())),
            ]
        },
    ));
    cases.push(Case::lanes(
        "cvt.rni.sat to integers",
        "mov.b64 %q0, {%a0, %a1}; cvt.rni.sat.s32.f64 %d0, %q0; cvt.rzi.sat.u64.f64 %q1, %q0; mov.b64 {%d1, %d2}, %q1;\n\
         cvt.rn.f32.f64 %r0, %q0; cvt.rmi.sat.s16.f32 %d3, %r0;",
        &reals,
        |[a, b]| {
            let x = f64::from_bits(join(a, b));
            // NaN is 0, or 1 << (width - 1) where either type has 64 bits.
            let nan = x.is_nan();
            let [d1, d2] = split(if nan { 1 << 63 } else { x as u64 });
            [
                if nan { 1 << 31 } else { x.round_ties_even() as i32 as u32 },
                d1,
                d2,
                i32::from((x as f32).floor() as i16) as u32,
            ]
        },
    ));
    cases
}

/// The source is cut to its type, extended by its sign, cut to the destination type and extended to the register.
fn integer_to_integer() -> Vec<Case> {
    let words = [
        0,
        1,
        0x7f,
        0x80,
        0xff,
        0x7fff,
        0x8000,
        0xffff,
        0x7fff_ffff,
        0x8000_0000,
        0xffff_ffff,
        0x1234_80ff,
    ];
    let inputs = pairs(&words);
    vec![
        Case::lanes(
            "cvt from narrow integers",
            "cvt.s32.s8 %d0, %a0; cvt.u32.u8 %d1, %a0; cvt.s32.s16 %d2, %a0; cvt.u32.u16 %d3, %a0;\n\
             cvt.u16.u32 %h0, %a0; cvt.s16.s8 %h1, %h0; cvt.u32.u16 %d4, %h1; cvt.s32.u8 %d5, %a0; cvt.u32.s8 %d6, %a0;",
            &inputs,
            |[a, _]| {
                let s8 = i32::from(a as i8) as u32;
                [
                    s8,
                    a & 0xff,
                    i32::from(a as i16) as u32,
                    a & 0xffff,
                    s8 & 0xffff,
                    a & 0xff,
                    s8,
                ]
            },
        ),
        Case::lanes(
            "cvt to narrow integers",
            "cvt.s8.s32 %d0, %a0; cvt.u8.u32 %d1, %a0; cvt.s16.s32 %d2, %a0; cvt.u16.u32 %d3, %a0;\n\
             cvt.s8.s32 %h0, %a0; cvt.u32.u16 %d4, %h0;",
            &inputs,
            |[a, _]| {
                [
                    i32::from(a as i8) as u32,
                    a & 0xff,
                    i32::from(a as i16) as u32,
                    a & 0xffff,
                    i32::from(a as i8) as u32 & 0xffff,
                ]
            },
        ),
        Case::lanes(
            "cvt.sat of integers",
            "cvt.sat.u8.s32 %d0, %a0; cvt.sat.s8.s32 %d1, %a0; cvt.sat.u16.s32 %d2, %a0; cvt.sat.s16.s32 %d3, %a0;\n\
             cvt.sat.u8.u32 %d4, %a0; cvt.sat.u32.s32 %d5, %a0; cvt.sat.s32.u32 %d6, %a0;",
            &inputs,
            |[a, _]| {
                let s = a as i32;
                [
                    s.clamp(0, 255) as u32,
                    s.clamp(-128, 127) as u32,
                    s.clamp(0, 65535) as u32,
                    s.clamp(-32768, 32767) as u32,
                    a.min(255),
                    s.max(0) as u32,
                    a.min(0x7fff_ffff),
                ]
            },
        ),
        Case::lanes(
            "cvt.pack",
            "cvt.pack.sat.s16.s32 %d0, %a0, %a1; cvt.pack.sat.u16.s32 %d1, %a0, %a1; cvt.pack.sat.u8.s32.b32 %d2, %a0, %a1, %a1;\n\
             cvt.pack.sat.s8.s32.b32 %d3, %a0, %a1, 0;",
            &inputs,
            |[a, b]| {
                let cut = |x: u32, low: i32, high: i32, bits: u32| {
                    (x as i32).clamp(low, high) as u32 & ((1 << bits) - 1)
                };
                let [s16, u16] = [(-32768, 32767), (0, 65535)]
                    .map(|(low, high)| cut(a, low, high, 16) << 16 | cut(b, low, high, 16));
                let [u8, s8] = [(0, 255), (-128, 127)]
                    .map(|(low, high)| cut(a, low, high, 8) << 8 | cut(b, low, high, 8));
                [s16, u16, b << 16 | u8, s8]
            },
        ),
        Case::lanes(
            "cvt between 32 and 64 bits",
            "mov.b64 %q0, {%a0, %a1}; cvt.s64.s32 %q1, %a0; cvt.u64.u32 %q2, %a0; cvt.u32.u64 %d0, %q0; cvt.s32.s64 %d1, %q0;\n\
             cvt.s64.s8 %q3, %a0; cvt.sat.s32.s64 %d6, %q0; cvt.s64.s16 %q4, %a0; cvt.u16.u64 %h0, %q0; cvt.u32.u16 %d7, %h0;\n\
             mov.b64 {%d2, %d3}, %q1; add.s64 %q2, %q2, %q3; add.s64 %q2, %q2, %q4; mov.b64 {%d4, %d5}, %q2;",
            &inputs,
            |[a, b]| {
                let long = join(a, b) as i64;
                let [d2, d3] = split(i64::from(a as i32) as u64);
                let sum = u64::from(a)
                    .wrapping_add(i64::from(a as i8) as u64)
                    .wrapping_add(i64::from(a as i16) as u64);
                let [d4, d5] = split(sum);
                let saturated = long.clamp(i32::MIN.into(), i32::MAX.into()) as u32;
                [a, a, d2, d3, d4, d5, saturated, a & 0xffff]
            },
        ),
    ]
}
