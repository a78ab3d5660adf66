//! f32 arithmetic in every rounding mode, from nothing but IEEE arithmetic in f32 and f64.
//!
//! The nearest result comes from the host's own operation; which neighbour a directed mode takes follows from the sign
//! of the exact residual, which f64 holds exactly.

use std::cmp::Ordering;

/// A rounding mode of f32 instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    Nearest,
    Zero,
    Down,
    Up,
}

/// The four modes with their modifiers.
pub(super) const MODES: [(&str, Mode); 4] = [
    ("rn", Mode::Nearest),
    ("rz", Mode::Zero),
    ("rm", Mode::Down),
    ("rp", Mode::Up),
];

/// Moves `nearest` to the neighbour that `mode` asks for; `exact` compares the exact value with `nearest`.
pub(super) fn direct(nearest: f32, exact: Ordering, mode: Mode) -> f32 {
    if nearest.is_nan() {
        return nearest;
    }
    let up = match mode {
        Mode::Nearest => return nearest,
        Mode::Up => true,
        Mode::Down => false,
        // An underflow to zero is already there; else towards zero is down above zero and up below.
        Mode::Zero => nearest.is_sign_negative(),
    };
    match (exact, up) {
        (Ordering::Greater, true) => nearest.next_up(),
        (Ordering::Less, false) => nearest.next_down(),
        _ => nearest,
    }
}

/// Compares hi + lo (hi the rounded sum, lo its error) with x, exactly.
fn compare_sum(hi: f64, lo: f64, x: f32) -> Ordering {
    let x = f64::from(x);
    // The nearest f32 to the sum is within a factor of two of hi, or hi overflowed past it.
    match hi.partial_cmp(&x) {
        Some(Ordering::Equal) => lo.partial_cmp(&0.0).unwrap_or(Ordering::Equal),
        Some(order) => order,
        None => Ordering::Equal,
    }
}

fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let s = a + b;
    let t = s - a;
    (s, (a - (s - t)) + (b - t))
}

/// An exact zero that is no zero of both operands alike: +0, or -0 when rounding down.
fn cancelled(result: f32, exact_zero: bool, same_sign: bool, mode: Mode) -> f32 {
    if exact_zero && result == 0.0 && !same_sign {
        if mode == Mode::Down { -0.0 } else { 0.0 }
    } else {
        result
    }
}

pub(super) fn add(a: f32, b: f32, mode: Mode) -> f32 {
    let (hi, lo) = two_sum(a.into(), b.into());
    let nearest = a + b;
    let result = direct(nearest, compare_sum(hi, lo, nearest), mode);
    let same_sign = a.is_sign_negative() == b.is_sign_negative();
    cancelled(result, hi == 0.0, same_sign, mode)
}

pub(super) fn mul(a: f32, b: f32, mode: Mode) -> f32 {
    let exact = f64::from(a) * f64::from(b);
    let nearest = a * b;
    direct(nearest, compare_sum(exact, 0.0, nearest), mode)
}

pub(super) fn fma(a: f32, b: f32, c: f32, mode: Mode) -> f32 {
    let product = f64::from(a) * f64::from(b);
    let (hi, lo) = two_sum(product, c.into());
    let nearest = a.mul_add(b, c);
    let lo = if hi.is_finite() { lo } else { 0.0 };
    let result = direct(nearest, compare_sum(hi, lo, nearest), mode);
    let same_sign = product.is_sign_negative() == c.is_sign_negative();
    cancelled(result, hi == 0.0, same_sign, mode)
}

pub(super) fn div(a: f32, b: f32, mode: Mode) -> f32 {
    let nearest = a / b;
    if nearest.is_nan() || !a.is_finite() || b == 0.0 || b.is_infinite() {
        return nearest;
    }
    // The quotient against `nearest` is a against nearest * b, with the sign of b; an infinite `nearest` is above any.
    let product = f64::from(nearest) * f64::from(b);
    let order = f64::from(a)
        .partial_cmp(&product)
        .unwrap_or(Ordering::Equal);
    direct(nearest, if b > 0.0 { order } else { order.reverse() }, mode)
}

pub(super) fn sqrt(a: f32, mode: Mode) -> f32 {
    let nearest = a.sqrt();
    let square = f64::from(nearest) * f64::from(nearest);
    let order = f64::from(a).partial_cmp(&square).unwrap_or(Ordering::Equal);
    direct(nearest, order, mode)
}

/// `.ftz`: a subnormal becomes zero of the same sign.
pub(super) fn flush(x: f32) -> f32 {
    if x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

/// `.sat`: clamped to [0, 1]; NaN becomes +0.
pub(super) fn saturate(x: f32) -> f32 {
    if x > 0.0 { x.min(1.0) } else { 0.0 }
}
