//! Numbers that know how much was added up for them.

use std::iter::Sum;
use std::ops::{Add, AddAssign, Mul, Sub};

/// A value in f64 with its magnitude: the sum of the absolute values of all terms that were added up for it. What
/// float32 arithmetic may lose is a number of roundings of the magnitude, however much of it cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Number {
    pub value: f64,
    pub magnitude: f64,
}

impl Number {
    /// The same magnitude with another value, for a function that is no steeper than the identity.
    pub fn map(self, f: impl FnOnce(f64) -> f64) -> Self {
        Number {
            value: f(self.value),
            ..self
        }
    }
}

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Number {
            value,
            magnitude: value.abs(),
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
