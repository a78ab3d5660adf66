//! The rule of tensor-core products in exact integers, written apart from the emulator's.

use ptx_emulator::matrix::{Arithmetic, Mma, Operand};

/// A product of one row and one column: D = C + A B, all as bits.
#[derive(Clone, Debug)]
pub(crate) struct Dot {
    pub(crate) a: Vec<u32>,
    pub(crate) b: Vec<u32>,
    pub(crate) c: u32,
}

/// A format as the rule reads it.
pub(crate) struct Format {
    pub(crate) exponent_bits: u32,
    pub(crate) fraction_bits: u32,
}

pub(crate) const F16_FORMAT: Format = Format::new(5, 10);
pub(crate) const F32_FORMAT: Format = Format::new(8, 23);

/// A finite number is `significand * 2^(exponent - fraction bits)`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Finite(i128, i32),
    Infinite(bool),
    Nan,
}

impl Format {
    const fn new(exponent_bits: u32, fraction_bits: u32) -> Self {
        Self {
            exponent_bits,
            fraction_bits,
        }
    }

    pub(crate) fn of(operand: Operand) -> Self {
        match operand {
            Operand::Bf16 => Self::new(8, 7),
            Operand::F16 => F16_FORMAT,
            Operand::Tf32 => Self::new(8, 10),
        }
    }

    pub(crate) fn bias(&self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    fn read(&self, bits: u32) -> Number {
        let fraction = i128::from(bits & ((1 << self.fraction_bits) - 1));
        let field = (bits >> self.fraction_bits & ((1 << self.exponent_bits) - 1)) as i32;
        let negative = bits >> (self.exponent_bits + self.fraction_bits) & 1 != 0;
        let sign = if negative { -1 } else { 1 };
        match field {
            0 if fraction == 0 => Number::Finite(0, -126),
            0 => Number::Finite(sign * fraction, 1 - self.bias()),
            _ if field < (1 << self.exponent_bits) - 1 => Number::Finite(
                sign * (fraction + (1 << self.fraction_bits)),
                field - self.bias(),
            ),
            _ if fraction == 0 => Number::Infinite(negative),
            _ => Number::Nan,
        }
    }

    /// `sum * 2^unit`, truncated or rounded to nearest even.
    fn write(&self, sum: i128, unit: i32, nearest: bool) -> u32 {
        let sign = u32::from(sum < 0) << (self.exponent_bits + self.fraction_bits);
        let magnitude = sum.unsigned_abs();
        if magnitude == 0 {
            return 0;
        }
        let exponent = (unit + 127 - magnitude.leading_zeros() as i32).max(1 - self.bias());
        let drop = exponent - self.fraction_bits as i32 - unit;
        let kept = if drop <= 0 {
            magnitude << -drop
        } else {
            let kept = magnitude >> drop.min(127);
            let rest = magnitude - (kept << drop.min(127));
            let half = 1u128 << (drop - 1).min(126);
            kept + u128::from(nearest && (rest > half || rest == half && kept & 1 != 0))
        };
        // A subnormal has the exponent field 0, and a carry moves into the field by itself.
        let field = (exponent + self.bias() - 1) as u128;
        let bits = (field << self.fraction_bits) + kept;
        let infinity = ((1u128 << self.exponent_bits) - 1) << self.fraction_bits;
        sign | bits.min(infinity) as u32
    }
}

/// One step of the rule, in exact integers.
fn step(operand: Operand, sums: &Format, fraction: i32, nearest: bool, dot: &Dot) -> u32 {
    let format = Format::of(operand);
    let (mut plus, mut minus, mut nan) = (false, false, false);
    let mut note = |negative: bool| *if negative { &mut minus } else { &mut plus } = true;
    let mut terms = Vec::new();
    match sums.read(dot.c) {
        Number::Finite(c, exponent) => terms.push((c, exponent, sums.fraction_bits as i32)),
        Number::Infinite(negative) => note(negative),
        Number::Nan => nan = true,
    }
    let shift = if operand == Operand::Tf32 { 13 } else { 0 };
    for (&a, &b) in dot.a.iter().zip(&dot.b) {
        match (format.read(a >> shift), format.read(b >> shift)) {
            (Number::Nan, _) | (_, Number::Nan) => nan = true,
            (Number::Finite(a, x), Number::Finite(b, y)) => {
                terms.push((a * b, x + y, 2 * format.fraction_bits as i32));
            }
            (Number::Infinite(a), Number::Infinite(b)) => note(a != b),
            (Number::Infinite(a), Number::Finite(b, _))
            | (Number::Finite(b, _), Number::Infinite(a)) => {
                nan |= b == 0;
                note(a != (b < 0));
            }
        }
    }
    let width = sums.exponent_bits + sums.fraction_bits;
    if nan || plus && minus {
        return (1 << width) - 1;
    }
    if plus || minus {
        let infinity = ((1 << sums.exponent_bits) - 1) << sums.fraction_bits;
        return u32::from(minus) << width | infinity;
    }
    let top = terms.iter().map(|term| term.1).max().unwrap();
    let kept = terms.iter().map(|&(significand, exponent, bits)| {
        let up = exponent - bits - (top - fraction);
        let magnitude = significand.abs();
        let magnitude = if up >= 0 {
            magnitude << up
        } else {
            magnitude >> (-up).min(127)
        };
        magnitude * significand.signum()
    });
    sums.write(kept.sum(), top - fraction, nearest)
}

/// What an instruction gives by the rule.
pub(crate) fn oracle(kind: Mma, arithmetic: Arithmetic, dot: &Dot) -> u32 {
    let (terms, fraction) = match arithmetic {
        Arithmetic::A100 | Arithmetic::L40s => (8, 24),
        _ => (16, 25),
    };
    let terms = if kind.operand() == Operand::Tf32 {
        terms / 2
    } else {
        terms
    };
    let nearest = kind.accumulator_pack() == 2;
    let sums = if nearest { &F16_FORMAT } else { &F32_FORMAT };
    let steps = dot.a.chunks(terms).zip(dot.b.chunks(terms));
    steps.fold(dot.c, |c, (a, b)| {
        let (a, b) = (a.to_vec(), b.to_vec());
        step(kind.operand(), sums, fraction, nearest, &Dot { a, b, c })
    })
}
