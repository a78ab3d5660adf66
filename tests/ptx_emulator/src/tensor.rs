//! What a tensor core computes: products exact, aligned, truncated and summed.
//!
//! **The rule of one step**, D = C + sum of `terms` products, as real cards answer it:
//! - Numbers are not normalised: a subnormal keeps its format's least exponent and a significand below 1; a zero has
//!   the exponent -126. A product is exact: exponents added, significands multiplied to a number in [0, 4).
//! - The largest exponent among C and all products is the top. Each magnitude is truncated towards zero to `fraction`
//!   bits below it. The sum is then exact, so its order does not matter.
//! - The result is truncated towards zero to f32, subnormals kept, or rounded to nearest even to f16. A zero is +0.
//!   Products beyond f32's range do not overflow by themselves; a result beyond the range is infinite.
//! - NaN, infinity times zero, or infinities of both signs give the canonical NaN; otherwise infinity stays.
//!
//! | card | `terms`, f16 and bf16 | `terms`, tf32 | `fraction` |
//! |---|---|---|---|
//! | A100, L40S | 8 | 4 | 24 |
//! | H100, H200, B200 | 16 | 8 | 25 |
//!
//! An instruction with a larger K is several steps, with ascending k; each step's result is the next one's C.
//!
//! Known from hardware for bf16 with f32 sums. The same rule is taken for f16 and tf32 (from published models of the
//! cards), for the order of an instruction's steps, and for the corners of zero, subnormal, infinity and NaN.
//!
//! **Truncation is biased towards zero**, the more the longer a chain of steps is: see `tests/tensor.rs`.

use crate::half::{F16, Finish, Rounding, f16_to_f32};
use crate::matrix::{Accumulator, M, N, Operand, Tile};
use std::fmt;
use std::str::FromStr;

/// Whose arithmetic tensor-core products follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// NVIDIA A100 (sm_80).
    A100,
    /// NVIDIA L40S and other Ada cards (sm_89).
    L40s,
    /// NVIDIA H100 (sm_90).
    H100,
    /// NVIDIA H200 (sm_90).
    #[default]
    H200,
    /// NVIDIA B200 (sm_100).
    B200,
    /// No card's: fused multiply-adds in f32, rounded to nearest, with ascending k. Several times as fast.
    Fused,
}

impl Arithmetic {
    /// All there are.
    pub const ALL: [Self; 6] = [
        Self::A100,
        Self::L40s,
        Self::H100,
        Self::H200,
        Self::B200,
        Self::Fused,
    ];

    /// The name that [`FromStr`] reads.
    pub const fn name(self) -> &'static str {
        match self {
            Self::A100 => "a100",
            Self::L40s => "l40s",
            Self::H100 => "h100",
            Self::H200 => "h200",
            Self::B200 => "b200",
            Self::Fused => "fused",
        }
    }

    /// The arithmetic of a data-centre card of this compute capability: the newest known card that is not newer.
    pub const fn of_capability((major, minor): (u32, u32)) -> Self {
        match (major, minor) {
            (..=7, _) | (8, 0..=8) => Self::A100,
            (8, _) => Self::L40s,
            (9, _) => Self::H200,
            _ => Self::B200,
        }
    }
}

/// A phrase for reports: whose arithmetic it is, or that it is no card's.
impl fmt::Display for Arithmetic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fused => f.write_str("tensor cores by fused multiply-adds, no card's arithmetic"),
            card => write!(
                f,
                "tensor cores with the arithmetic of {}",
                card.name().to_uppercase()
            ),
        }
    }
}

impl FromStr for Arithmetic {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let named = |a: &Self| a.name() == name;
        Self::ALL.into_iter().find(named).ok_or_else(|| {
            let names = Self::ALL.map(Self::name).join(", ");
            format!("{name} is no tensor core's arithmetic; there are {names}")
        })
    }
}

/// acc += A B, as `arithmetic` has it.
#[inline(always)]
pub(crate) fn product<const K: usize, V: Lanes>(
    arithmetic: Arithmetic,
    (operand, accumulator): (Operand, Accumulator),
    acc: &mut Tile,
    a: &[[f32; K]; M],
    b: &[[f32; N]; K],
) {
    match arithmetic {
        Arithmetic::Fused => fused(acc, a, b),
        Arithmetic::A100 | Arithmetic::L40s => match operand {
            Operand::Bf16 => exact::<K, 8, 24, BF16, V>(accumulator, acc, a, b),
            Operand::F16 => exact::<K, 8, 24, HALF, V>(accumulator, acc, a, b),
            Operand::Tf32 => exact::<K, 4, 24, TF32, V>(accumulator, acc, a, b),
        },
        Arithmetic::H100 | Arithmetic::H200 | Arithmetic::B200 => match operand {
            Operand::Bf16 => exact::<K, 16, 25, BF16, V>(accumulator, acc, a, b),
            Operand::F16 => exact::<K, 16, 25, HALF, V>(accumulator, acc, a, b),
            Operand::Tf32 => exact::<K, 8, 25, TF32, V>(accumulator, acc, a, b),
        },
    }
}

#[inline(always)]
fn fused<const K: usize>(acc: &mut Tile, a: &[[f32; K]; M], b: &[[f32; N]; K]) {
    for (sums, a_row) in acc.iter_mut().zip(a) {
        for (&x, b_row) in a_row.iter().zip(b) {
            for (sum, &y) in sums.iter_mut().zip(b_row) {
                *sum = x.mul_add(y, *sum);
            }
        }
    }
}

/// Fraction bits of f32.
const F32_BITS: u32 = 23;
/// The exponent of a zero, and of f32's subnormals.
const LEAST: i32 = -126;
/// Formats by number, as constants choose them: fraction bits, and the exponent of subnormals.
const FORMATS: [(u32, i32); 4] = [(7, LEAST), (10, -14), (10, LEAST), (F32_BITS, LEAST)];
const BF16: usize = 0;
const HALF: usize = 1;
const TF32: usize = 2;

/// A number as the rule reads it: significand, with its sign, and exponent.
#[inline(always)]
fn parts(x: f32, (bits, least): (u32, i32)) -> (i32, i32) {
    let word = x.to_bits();
    let field = (word >> F32_BITS & 0xff) as i32;
    let fraction = word & ((1 << F32_BITS) - 1);
    let whole = fraction | u32::from(field != 0) << F32_BITS;
    let exponent = field.max(1) - 127;
    // f16's subnormals, which f32 has normalised.
    let below = (least - exponent).clamp(0, 31);
    let kept = (whole >> (F32_BITS - bits) >> below) as i32;
    let sign = word as i32 >> 31;
    let exponent = if whole == 0 { LEAST } else { exponent + below };
    ((kept ^ sign) - sign, exponent)
}

/// A number for each of the eight columns.
type Row<T> = [T; N];

/// Significands and exponents.
#[derive(Clone, Copy)]
struct Numbers<const L: usize> {
    significands: [i32; L],
    exponents: [i32; L],
}

impl<const L: usize> Numbers<L> {
    /// Reads numbers and shifts the significands.
    #[inline(always)]
    fn new(row: &[f32; L], format: (u32, i32), shift: u32) -> Self {
        let (mut significands, mut exponents) = ([0; L], [0; L]);
        for ((significand, exponent), &x) in significands.iter_mut().zip(&mut exponents).zip(row) {
            (*significand, *exponent) = parts(x, format);
            *significand <<= shift;
        }
        Self {
            significands,
            exponents,
        }
    }

    /// Whether none is infinite or NaN.
    #[inline(always)]
    fn finite(&self) -> bool {
        self.exponents.iter().fold(true, |all, &e| all & (e < 128))
    }
}

/// Products that are summed in 32 bits: eight below 4 times 2^25, with C, stay below 2^31.
const CHUNK: usize = 8;

/// acc += A B in steps of at most `TERMS` products, kept to `FRACTION` bits.
#[inline(always)]
fn exact<const K: usize, const TERMS: usize, const FRACTION: u32, const FORMAT: usize, V: Lanes>(
    accumulator: Accumulator,
    acc: &mut Tile,
    a: &[[f32; K]; M],
    b: &[[f32; N]; K],
) {
    let format = FORMATS[FORMAT];
    // B is shifted so that a product has `FRACTION` bits below the top.
    let shift = FRACTION - 2 * format.0;
    let mut right = [Numbers::new(&[0.0; N], format, 0); K];
    let mut finite = true;
    for (right, b) in right.iter_mut().zip(b) {
        *right = Numbers::new(b, format, shift);
        finite &= right.finite();
    }
    let addends = match accumulator {
        Accumulator::F32 => (F32_BITS, LEAST),
        Accumulator::F16 => (F32_BITS, format.1),
    };
    for (a_row, sums) in a.iter().zip(acc) {
        let left = Numbers::new(a_row, format, 0);
        let finite = finite & left.finite();
        for first in (0..K).step_by(TERMS) {
            let c = *sums;
            let addend = Numbers::new(&c, addends, FRACTION - F32_BITS);
            let (top, total) = sum::<K, TERMS, V>(first, &left, &right, &addend);
            let unit = |top: i32| f64::from_bits(((1023 + top - FRACTION as i32) as u64) << 52);
            match accumulator {
                // Sums of these units are zero or normal in f32.
                Accumulator::F32 if top.iter().fold(true, |all, &top| all & (top > NORMAL)) => {
                    for ((d, total), top) in sums.iter_mut().zip(total).zip(top) {
                        let exact = (total * unit(top)).to_bits();
                        *d = f64::from_bits(exact & !EXCESS) as f32;
                    }
                }
                Accumulator::F32 => {
                    for ((d, total), top) in sums.iter_mut().zip(total).zip(top) {
                        *d = truncated(total * unit(top));
                    }
                }
                Accumulator::F16 => {
                    for ((d, total), top) in sums.iter_mut().zip(total).zip(top) {
                        let finish = Finish::default();
                        let bits = F16.encode(total * unit(top), Rounding::NearestEven, finish);
                        *d = f16_to_f32(bits as u16);
                    }
                }
            }
            if !(finite & addend.finite()) {
                let step = first..K.min(first + TERMS);
                infinite(sums, &c, &a_row[step.clone()], &b[step]);
            }
        }
    }
}

/// The tops of the step that begins at `first`, and its sums in units of their last bits.
#[inline(always)]
fn sum<const K: usize, const TERMS: usize, V: Lanes>(
    first: usize,
    left: &Numbers<K>,
    right: &[Numbers<N>; K],
    c: &Numbers<N>,
) -> (Row<i32>, Row<f64>) {
    let terms = TERMS.min(K);
    let exponents = V::load(&c.exponents);
    let mut top = exponents;
    let step = first..first + terms;
    for (left, right) in left.exponents[step.clone()].iter().zip(&right[step]) {
        top = top.max(V::splat(*left).add(V::load(&right.exponents)));
    }
    let mut sum = V::load(&c.significands).toward_zero(top.sub(exponents));
    let mut total = [0.0; N];
    for chunk in (first..first + terms).step_by(CHUNK) {
        let chunk = chunk..chunk + CHUNK.min(terms);
        let (exponents, significands) = (
            &left.exponents[chunk.clone()],
            &left.significands[chunk.clone()],
        );
        for ((exponent, significand), right) in
            exponents.iter().zip(significands).zip(&right[chunk])
        {
            let product = V::splat(*significand).mul(V::load(&right.significands));
            let below = top.sub(V::splat(*exponent)).sub(V::load(&right.exponents));
            sum = sum.add(product.toward_zero(below));
        }
        for (total, sum) in total.iter_mut().zip(sum.row()) {
            *total += f64::from(sum);
        }
        sum = V::splat(0);
    }
    (top.row(), total)
}

/// Eight integers at a time.
pub(crate) trait Lanes: Copy {
    fn load(row: &Row<i32>) -> Self;
    fn splat(x: i32) -> Self;
    fn row(self) -> Row<i32>;
    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn max(self, other: Self) -> Self;
    /// Divided by 2 to the power of `by`, which is not negative, and truncated.
    fn toward_zero(self, by: Self) -> Self;
}

/// On any processor.
#[derive(Clone, Copy)]
pub(crate) struct Portable(Row<i32>);

impl Portable {
    #[inline(always)]
    fn with(self, other: Self, op: impl Fn(i32, i32) -> i32) -> Self {
        Self(std::array::from_fn(|n| op(self.0[n], other.0[n])))
    }
}

impl Lanes for Portable {
    fn load(row: &Row<i32>) -> Self {
        Self(*row)
    }

    fn splat(x: i32) -> Self {
        Self([x; N])
    }

    fn row(self) -> Row<i32> {
        self.0
    }

    fn add(self, other: Self) -> Self {
        self.with(other, |a, b| a + b)
    }

    fn sub(self, other: Self) -> Self {
        self.with(other, |a, b| a - b)
    }

    fn mul(self, other: Self) -> Self {
        self.with(other, |a, b| a * b)
    }

    fn max(self, other: Self) -> Self {
        self.with(other, i32::max)
    }

    fn toward_zero(self, by: Self) -> Self {
        self.with(by, |x, by| (x.abs() >> by.min(31)) * x.signum())
    }
}

/// With AVX2, which only [`crate::matrix::mma`] may choose, where the processor has it.
#[cfg(target_arch = "x86_64")]
#[derive(Clone, Copy)]
pub(crate) struct Avx2(std::arch::x86_64::__m256i);

#[cfg(target_arch = "x86_64")]
mod avx2 {
    use super::{Avx2, Lanes, N, Row};
    use std::arch::x86_64::*;

    /// A method that is one instruction or two.
    macro_rules! instruction {
        ($x:expr) => {
            // SAFETY: the type is used only where the processor has AVX2; rows are 32 bytes.
            unsafe { $x }
        };
    }

    impl Lanes for Avx2 {
        #[inline(always)]
        fn load(row: &Row<i32>) -> Self {
            Self(instruction!(_mm256_loadu_si256(row.as_ptr().cast())))
        }

        #[inline(always)]
        fn splat(x: i32) -> Self {
            Self(instruction!(_mm256_set1_epi32(x)))
        }

        #[inline(always)]
        fn row(self) -> Row<i32> {
            let mut row = [0; N];
            instruction!(_mm256_storeu_si256(row.as_mut_ptr().cast(), self.0));
            row
        }

        #[inline(always)]
        fn add(self, other: Self) -> Self {
            Self(instruction!(_mm256_add_epi32(self.0, other.0)))
        }

        #[inline(always)]
        fn sub(self, other: Self) -> Self {
            Self(instruction!(_mm256_sub_epi32(self.0, other.0)))
        }

        #[inline(always)]
        fn mul(self, other: Self) -> Self {
            Self(instruction!(_mm256_mullo_epi32(self.0, other.0)))
        }

        #[inline(always)]
        fn max(self, other: Self) -> Self {
            Self(instruction!(_mm256_max_epi32(self.0, other.0)))
        }

        #[inline(always)]
        fn toward_zero(self, by: Self) -> Self {
            let kept = instruction!(_mm256_srlv_epi32(_mm256_abs_epi32(self.0), by.0));
            Self(instruction!(_mm256_sign_epi32(kept, self.0)))
        }
    }
}

/// The bits that f64 has and f32 has not.
const EXCESS: u64 = (1 << (52 - F32_BITS)) - 1;
/// Above this top the last bit of a sum is a normal number.
const NORMAL: i32 = LEAST + 25;

/// An f64 that is a sum of the rule, truncated towards zero to f32.
#[inline(always)]
fn truncated(x: f64) -> f32 {
    const LIMIT: f64 = (1u128 << 127) as f64 * 2.0;
    let near = x as f32;
    let beyond = f64::from(near).abs() > x.abs() && x.abs() < LIMIT;
    f32::from_bits(near.to_bits() - u32::from(beyond))
}

/// Corrects the results of a step with operands that are not finite.
#[cold]
#[inline(never)]
fn infinite(sums: &mut Row<f32>, c: &Row<f32>, a: &[f32], b: &[Row<f32>]) {
    for n in 0..N {
        // In f64 products of finite numbers are finite.
        let products = a
            .iter()
            .zip(b)
            .map(|(&x, y)| f64::from(x) * f64::from(y[n]));
        let sum = products.fold(f64::from(c[n]), |sum, product| sum + product);
        if !sum.is_finite() {
            sums[n] = sum as f32;
        }
    }
}
