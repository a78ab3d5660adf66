//! Numbers that know how much was added up for them.

use super::sum_bound;
use arcface_cu::backend::Element;
use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};

/// A value in f64 with its magnitude: the sum of the absolute values of all terms that were added up for it. What
/// float32 arithmetic may lose is a number of roundings of the magnitude, however much of it cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Number {
    pub value: f64,
    pub magnitude: f64,
    /// By how much it differs where a device rounded a number to the other neighbour in a coarser type, since what it
    /// rounded lies within float32's errors of the middle between the two.
    pub slack: f64,
}

impl Number {
    /// The nearest number that an element stores. A device may have lost as much before as in a sum of `terms` products.
    pub fn round(self, element: Element, terms: usize) -> Self {
        if element == Element::F32 || !self.value.is_finite() {
            return self;
        }
        let value = round_bf16(self.value);
        let doubt = sum_bound(terms, self.magnitude) + self.slack;
        let [low, high] = [self.value - doubt, self.value + doubt].map(round_bf16);
        Number {
            value,
            slack: (high - value).max(value - low),
            ..self
        }
    }

    /// The same magnitude with another value, for a function that is no steeper than the identity.
    pub fn map(self, f: impl FnOnce(f64) -> f64) -> Self {
        Number {
            value: f(self.value),
            ..self
        }
    }
}

/// The distance of neighbouring bfloat16 numbers at `value`: 8 bits of significand, exponents from -126.
pub fn spacing_bf16(value: f64) -> f64 {
    let exponent = value.abs().max(f64::from(f32::MIN_POSITIVE)).log2().floor();
    2.0_f64.powf(exponent - 7.0)
}

/// The nearest bfloat16 number; ties to even. For numbers far from where the range ends.
pub fn round_bf16(value: f64) -> f64 {
    let spacing = spacing_bf16(value);
    (value / spacing).round_ties_even() * spacing
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Number {
            value,
            magnitude: value.abs(),
            slack: 0.0,
        }
    }
}

impl From<f32> for Number {
    fn from(value: f32) -> Self {
        f64::from(value).into()
    }
}

impl Add for Number {
    type Output = Self;

    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Number {
            value: self.value + other.value,
            magnitude: self.magnitude + other.magnitude,
            slack: self.slack + other.slack,
        }
    }
}

impl AddAssign for Number {
    #[inline(always)]
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}

impl Sub for Number {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        self + other * -1.0
    }
}

impl Mul for Number {
    type Output = Self;

    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Number {
            value: self.value * other.value,
            magnitude: self.magnitude * other.magnitude,
            slack: self.slack * (other.value.abs() + other.slack) + self.value.abs() * other.slack,
        }
    }
}

impl Mul<f64> for Number {
    type Output = Self;

    fn mul(self, factor: f64) -> Self {
        self * Number::from(factor)
    }
}

impl Sum for Number {
    fn sum<I: Iterator<Item = Self>>(numbers: I) -> Self {
        numbers.fold(Number::default(), Add::add)
    }
}
