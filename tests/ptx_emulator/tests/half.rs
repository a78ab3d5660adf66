//! The narrow types, exhaustively over all 65,536 values where one operand is concerned, against definitions in f64.

use ptx_emulator::half::{self, BF16, F16, Finish, Format, Rounding, TF32};

const PLAIN: Finish = Finish {
    relu: false,
    satfinite: false,
    sat: false,
    ftz: false,
};

/// Exponent bits, mantissa bits: all that the oracle knows of a format.
fn shape(format: Format) -> (i32, i32) {
    match format {
        f if f == F16 => (5, 10),
        f if f == BF16 => (8, 7),
        _ => (8, 10),
    }
}

/// The value by the definition of IEEE 754.
fn value(format: Format, bits: u32) -> f64 {
    let (e, m) = shape(format);
    let bias = (1 << (e - 1)) - 1;
    let sign = if bits >> (e + m) & 1 == 1 { -1.0 } else { 1.0 };
    let exponent = (bits >> m & ((1 << e) - 1)) as i32;
    let fraction = f64::from(bits & ((1 << m) - 1)) / f64::from(m).exp2();
    if exponent == (1 << e) - 1 {
        return if fraction == 0.0 {
            sign * f64::INFINITY
        } else {
            f64::NAN
        };
    }
    if exponent == 0 {
        sign * fraction * f64::from(1 - bias).exp2()
    } else {
        sign * (1.0 + fraction) * f64::from(exponent - bias).exp2()
    }
}

/// Rounding by search: the two neighbours of |x| among all finite values, then the rule.
struct Oracle {
    format: Format,
    magnitudes: Vec<f64>,
}

impl Oracle {
    fn new(format: Format) -> Self {
        let magnitudes = (0..=format.max_finite())
            .map(|b| value(format, b))
            .collect();
        Self { format, magnitudes }
    }

    fn round(&self, x: f64, rounding: Rounding) -> u32 {
        let (e, m) = shape(self.format);
        let sign = u32::from(x.is_sign_negative()) << (e + m);
        let magnitude = x.abs();
        let max = self.format.max_finite();
        let below = self.magnitudes.partition_point(|&v| v <= magnitude) - 1;
        if self.magnitudes[below] == magnitude {
            return sign | below as u32;
        }
        if magnitude.is_infinite() {
            return sign | (max + 1);
        }
        let low = self.magnitudes[below];
        // Above the largest number the next one would stand, were the exponent not at its end; it means infinity.
        let ulp = low - self.magnitudes[below - usize::from(below as u32 == max)];
        let high = self.magnitudes.get(below + 1).copied().unwrap_or(low + ulp);
        let up = match rounding {
            Rounding::Zero => false,
            Rounding::Down => x < 0.0,
            Rounding::Up => x > 0.0,
            _ if magnitude >= high => true,
            Rounding::NearestAway => magnitude - low >= high - magnitude,
            Rounding::NearestEven => {
                let (d, u) = (magnitude - low, high - magnitude);
                d > u || (d == u && below % 2 == 1)
            }
        };
        sign | (below as u32 + u32::from(up))
    }
}

const ALL: [Rounding; 5] = [
    Rounding::NearestEven,
    Rounding::NearestAway,
    Rounding::Zero,
    Rounding::Down,
    Rounding::Up,
];

#[test]
fn decoding_every_value() {
    for bits in 0..=0xffffu32 {
        for format in [F16, BF16] {
            let (got, expected) = (format.decode(bits), value(format, bits));
            assert!(got.to_bits() == expected.to_bits() || (got.is_nan() && expected.is_nan()));
        }
        let (got, expected) = (half::f16_to_f32(bits as u16), value(F16, bits));
        assert!(
            got.is_nan() && expected.is_nan() || f64::from(got).to_bits() == expected.to_bits()
        );
        let (got, expected) = (half::bf16_to_f32(bits as u16), value(BF16, bits));
        assert!(
            got.is_nan() && expected.is_nan() || f64::from(got).to_bits() == expected.to_bits()
        );
    }
}

/// Around every representable value: itself, a hair to both sides, the midpoint and a hair to both sides of it.
#[test]
fn rounding_around_every_value() {
    for format in [F16, BF16, TF32] {
        let oracle = Oracle::new(format);
        let step = if format == TF32 { 61 } else { 1 };
        for i in (0..=format.max_finite() as usize)
            .step_by(step)
            .chain([format.max_finite() as usize])
        {
            let low = oracle.magnitudes[i];
            let gap = if i == 0 {
                oracle.magnitudes[1]
            } else {
                low - oracle.magnitudes[i - 1]
            };
            let high = oracle.magnitudes.get(i + 1).copied().unwrap_or(low + gap);
            let middle = (low + high) / 2.0;
            let hair = |x: f64, up: bool| {
                f64::from_bits(if up {
                    x.to_bits() + 1
                } else {
                    x.to_bits().max(1) - 1
                })
            };
            for x in [
                low,
                hair(low, true),
                hair(low, false),
                middle,
                hair(middle, true),
                hair(middle, false),
            ] {
                for x in [x, -x] {
                    for rounding in ALL {
                        let (got, expected) =
                            (format.encode(x, rounding, PLAIN), oracle.round(x, rounding));
                        assert_eq!(got, expected, "{format:?} {rounding:?} {x:e}");
                        if format == BF16
                            && f64::from(x as f32) == x
                            && rounding == Rounding::NearestEven
                        {
                            assert_eq!(u32::from(half::f32_to_bf16_rn(x as f32)), expected);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn bf16_fast_path_is_the_general_one() {
    for i in 0..=u32::MAX / 997 {
        let x = f32::from_bits(i * 997);
        let general = BF16.encode(f64::from(x), Rounding::NearestEven, PLAIN);
        assert_eq!(u32::from(half::f32_to_bf16_rn(x)), general, "{x:e}");
    }
}

#[test]
fn finishes() {
    let nearest = Rounding::NearestEven;
    let relu = Finish {
        relu: true,
        ..PLAIN
    };
    let satfinite = Finish {
        satfinite: true,
        ..PLAIN
    };
    let sat = Finish { sat: true, ..PLAIN };
    let ftz = Finish { ftz: true, ..PLAIN };
    assert_eq!(half::f32_to_f16(f32::NAN, nearest, PLAIN), 0x7fff);
    assert_eq!(half::f32_to_bf16(-f32::NAN, nearest, PLAIN), 0x7fff);
    assert_eq!(
        half::f32_to_tf32(f32::NAN, Rounding::NearestAway, PLAIN),
        0x7fff_e000
    );
    assert_eq!(half::f32_to_f16(f32::NAN, nearest, relu), 0x7fff);
    assert_eq!(half::f32_to_f16(-2.5, nearest, relu), 0);
    assert_eq!(half::f32_to_f16(-0.0, nearest, relu), 0);
    assert_eq!(half::f32_to_f16(2.5, nearest, relu), 0x4100);
    assert_eq!(half::f32_to_f16(1e6, nearest, PLAIN), 0x7c00);
    assert_eq!(half::f32_to_f16(1e6, nearest, satfinite), 0x7bff);
    assert_eq!(
        half::f32_to_f16(f32::NEG_INFINITY, nearest, satfinite),
        0xfbff
    );
    assert_eq!(half::f32_to_bf16(f32::MAX, nearest, PLAIN), 0x7f80);
    assert_eq!(half::f32_to_bf16(f32::MAX, Rounding::Zero, PLAIN), 0x7f7f);
    assert_eq!(half::f32_to_f16(f32::NAN, nearest, sat), 0);
    assert_eq!(half::f32_to_f16(-3.0, nearest, sat), 0);
    assert_eq!(half::f32_to_f16(3.0, nearest, sat), 0x3c00);
    assert_eq!(half::f32_to_f16(-1e-5, nearest, ftz), 0x8000);
    // tf32: a tie away from zero, in the bit above the 13 that are dropped.
    assert_eq!(
        half::f32_to_tf32(f32::from_bits(0x3f80_1000), Rounding::NearestAway, PLAIN),
        0x3f80_2000
    );
    assert_eq!(
        half::f32_to_tf32(f32::from_bits(0x3f80_1000), nearest, PLAIN),
        0x3f80_0000
    );
    assert_eq!(
        half::f32_to_tf32(f32::from_bits(0xbf80_0fff), Rounding::NearestAway, PLAIN),
        0xbf80_0000
    );
}

fn random(state: &mut u64) -> u16 {
    *state = state
        .wrapping_mul(6364136223846793005)
        .wrapping_add(1442695040888963407);
    (*state >> 40) as u16
}

/// The exact value of a b + c as an integer times 2^-300, for halves whose exponents are near enough to one another.
fn exact_fma(a: f64, b: f64, c: f64) -> Option<(i128, i32)> {
    let parts = |x: f64| -> (i128, i32) {
        if x == 0.0 {
            return (0, 0);
        }
        let bits = x.to_bits();
        let e = (bits >> 52 & 0x7ff) as i32 - 1075;
        let m = (bits & ((1 << 52) - 1) | 1 << 52) as i128;
        let zeros = m.trailing_zeros();
        ((if x < 0.0 { -m } else { m }) >> zeros, e + zeros as i32)
    };
    let (pm, pe) = parts(a * b);
    let (cm, ce) = parts(c);
    if pm == 0 || cm == 0 {
        return Some(if pm == 0 { (cm, ce) } else { (pm, pe) });
    }
    let e = pe.min(ce);
    if pe.max(ce) - e > 90 {
        return None;
    }
    Some(((pm << (pe - e)) + (cm << (ce - e)), e))
}

/// An exact integer times a power of two, rounded by comparing integers with the neighbours' midpoint.
fn round_exact(oracle: &Oracle, (m, e): (i128, i32)) -> Option<u32> {
    // Reduce to f64 with a sticky bit far below any format's last bit.
    let magnitude = m.unsigned_abs();
    let extra = (128 - magnitude.leading_zeros() as i32 - 50).max(0);
    let kept = magnitude >> extra << 2 | u128::from(magnitude & ((1 << extra) - 1) != 0);
    let x = kept as f64 * f64::from(e + extra - 2).exp2();
    (x != 0.0).then(|| oracle.round(if m < 0 { -x } else { x }, Rounding::NearestEven))
}

#[test]
fn arithmetic_is_rounded_once() {
    for format in [F16, BF16] {
        let oracle = Oracle::new(format);
        let mut state = 11;
        let mut compared = 0;
        for _ in 0..400_000 {
            let (a, b) = (random(&mut state), random(&mut state));
            // Near enough to the product for the sum to be interesting.
            let c = (half::mul(format, a, b, Rounding::NearestEven, PLAIN) ^ 0x8000)
                .wrapping_add(random(&mut state) % 64)
                .wrapping_sub(random(&mut state) % 2048);
            let (x, y, z) = (
                value(format, a.into()),
                value(format, b.into()),
                value(format, c.into()),
            );
            if !(x.is_finite() && y.is_finite() && z.is_finite()) {
                continue;
            }
            let one = if format == F16 { 0x3c00 } else { 0x3f80 };
            for (p, q, r) in [(x, y, z), (x, 1.0, y), (x, y, 0.0)] {
                let Some(expected) = exact_fma(p, q, r).and_then(|v| round_exact(&oracle, v))
                else {
                    continue;
                };
                let nearest = Rounding::NearestEven;
                let got = if q == 1.0 && r == y {
                    let sum = half::add(format, a, b, nearest, PLAIN);
                    assert_eq!(sum, half::sub(format, a, b ^ 0x8000, nearest, PLAIN));
                    assert_eq!(sum, half::fma(format, a, one, b, nearest, PLAIN));
                    sum
                } else if r == 0.0 && z != 0.0 {
                    half::mul(format, a, b, nearest, PLAIN)
                } else {
                    half::fma(format, a, b, c, nearest, PLAIN)
                };
                assert_eq!(u32::from(got), expected, "{format:?} {p:e} * {q:e} + {r:e}");
                compared += 1;
            }
        }
        assert!(compared > 200_000, "{compared}");
    }
}

/// A product half-way between two bf16 and an addend far below f64's last bit: two roundings would give the even one.
#[test]
fn bf16_fma_with_a_far_addend() {
    let nearest = Rounding::NearestEven;
    let bf16 = |x: f64| BF16.encode(x, nearest, PLAIN) as u16;
    let (a, b) = (bf16(1.0 + 1.0 / 16.0), bf16(1.0 + 1.0 / 16.0));
    // 1.0625^2 = 1.12890625 = 1 + 33/256: half-way between 1 + 32/256 (even) and 1 + 34/256.
    let tiny = bf16((-100f64).exp2());
    assert_eq!(
        half::fma(BF16, a, b, tiny, nearest, PLAIN),
        bf16(1.0 + 34.0 / 256.0)
    );
    assert_eq!(
        half::fma(BF16, a, b, tiny ^ 0x8000, nearest, PLAIN),
        bf16(1.0 + 32.0 / 256.0)
    );
    assert_eq!(
        half::fma(BF16, a ^ 0x8000, b, tiny, nearest, PLAIN),
        bf16(-1.0 - 32.0 / 256.0)
    );
}

#[test]
fn special_operands() {
    let nearest = Rounding::NearestEven;
    for format in [F16, BF16] {
        let infinity = (format.max_finite() + 1) as u16;
        let nan = format.nan() as u16;
        assert_eq!(
            half::add(format, infinity, infinity ^ 0x8000, nearest, PLAIN),
            nan
        );
        assert_eq!(half::mul(format, infinity, 0, nearest, PLAIN), nan);
        assert_eq!(
            half::fma(format, infinity, infinity, infinity, nearest, PLAIN),
            infinity
        );
        assert_eq!(half::add(format, 0x8000, 0x8000, nearest, PLAIN), 0x8000);
        assert_eq!(half::add(format, 0x8000, 0, nearest, PLAIN), 0);
        assert_eq!(half::add(format, 5, 0x8005, Rounding::Down, PLAIN), 0x8000);
        let relu = Finish {
            relu: true,
            ..PLAIN
        };
        assert_eq!(half::fma(format, nan, 0, 0, nearest, relu), nan);
        assert_eq!(
            half::fma(format, infinity ^ 0x8000, infinity, 0, nearest, relu),
            0
        );
        assert_eq!(half::max(format, nan ^ 0x8000, 3, false, false), 3);
        assert_eq!(half::max(format, nan ^ 0x8000, 3, true, false), nan);
        assert_eq!(half::min(format, nan ^ 0x8000, nan, false, false), nan);
        assert_eq!(half::min(format, 0, 0x8000, false, false), 0x8000);
        assert_eq!(half::min(format, 0x8000, 0, false, false), 0x8000);
        assert_eq!(half::max(format, 0x8000, 0, false, false), 0);
        assert_eq!(half::max(format, 3, 0x8005, false, true), 0, "both flushed");
        assert_eq!(
            half::ex2(format, 0, false),
            half::abs(if format == F16 { 0x3c00 } else { 0xbf80 })
        );
        assert_eq!(half::tanh(format, nan), nan);
    }
    for bits in 0..=0xffffu16 {
        for format in [F16, BF16] {
            let x = value(format, bits.into());
            let other = bits.rotate_left(5) ^ 0x1234;
            let y = value(format, other.into());
            assert_eq!(half::neg(bits) & 0x7fff, half::abs(bits));
            if x.is_nan() || y.is_nan() || x == y {
                continue;
            }
            assert_eq!(
                half::max(format, bits, other, false, false),
                if x > y { bits } else { other }
            );
            assert_eq!(
                half::min(format, bits, other, true, false),
                if x < y { bits } else { other }
            );
        }
    }
    assert_eq!(
        half::packed2(0x0001_0002, 0x0010_0020, |a, b| a + b),
        0x0011_0022
    );
    assert_eq!(
        half::packed3(0x0001_0002, 0x0003_0004, 0x0005_0006, |a, b, c| a * b + c),
        0x0008_000e
    );
    assert_eq!(half::packed1(0x0001_8002, half::neg), 0x8001_0002);
}
