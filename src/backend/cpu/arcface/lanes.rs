//! The head's loops over samples: norms, exps and gradients of a tile, samples in the vector lanes.
//!
//! A tile's products are T x padded N, `factors` a number a class row, `offsets` one a sample.

/// Samples are padded to a multiple of this: float32 lanes of the widest vector.
pub(super) const LANES: usize = 16;
/// Classes whose exps are added in float32 before the sum goes on in float64.
const BLOCK: usize = 64;
/// Gradients below this are written as zero: no sum they enter could notice, and denormal numbers are slow.
const SMALLEST_GRADIENT: f32 = 1e-30;

#[inline(always)]
pub(super) fn sum_of_squares(row: &[f32]) -> f64 {
    let (vectors, rest) = row.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for vector in vectors {
        for i in 0..LANES {
            lanes[i] += vector[i] * vector[i];
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += x * x;
    }
    lanes.iter().map(|l| f64::from(*l)).sum()
}

/// best[n] = max(best[n], factor[t] product[t, n]) over a tile.
#[inline(always)]
pub(super) fn largest_logits(products: &[f32], padded: usize, factors: &[f32], best: &mut [f32]) {
    for (column, best) in best.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
        let mut largest = *best;
        for (row, factor) in products.chunks_exact(padded).zip(factors) {
            let vector = &row.as_chunks::<LANES>().0[column];
            for i in 0..LANES {
                let logit = vector[i] * factor;
                largest[i] = if logit > largest[i] {
                    logit
                } else {
                    largest[i]
                };
            }
        }
        *best = largest;
    }
}

/// sums[n] += exp(factor[t] product[t, n] - offset[n]) over a tile.
#[inline(always)]
pub(super) fn add_exps(
    products: &[f32],
    padded: usize,
    factors: &[f32],
    offsets: &[f32],
    sums: &mut [f64],
) {
    let columns = sums.as_chunks_mut::<LANES>().0.iter_mut();
    for (column, (sums, offsets)) in columns.zip(offsets.as_chunks::<LANES>().0).enumerate() {
        for (block, factors) in products.chunks(padded * BLOCK).zip(factors.chunks(BLOCK)) {
            let mut lanes = [0.0f32; LANES];
            for (row, factor) in block.chunks_exact(padded).zip(factors) {
                let vector = &row.as_chunks::<LANES>().0[column];
                for i in 0..LANES {
                    lanes[i] += exp(vector[i] * factor - offsets[i]);
                }
            }
            for i in 0..LANES {
                sums[i] += f64::from(lanes[i]);
            }
        }
    }
}

/// In place of the products G[t, n] = exp(logit - offset) factor[n] / |w|; along[t] = (sum over n of G cos) / |w|.
#[inline(always)]
pub(super) fn gradients(
    scale: f32,
    (offsets, factors): (&[f32], &[f32]),
    padded: usize,
    inverse_norms: &[f32],
    products: &mut [f32],
    along: &mut [f32],
) {
    let offsets = offsets.as_chunks::<LANES>().0;
    let factors = factors.as_chunks::<LANES>().0;
    for ((row, inverse), along) in products
        .chunks_exact_mut(padded)
        .zip(inverse_norms)
        .zip(along)
    {
        let to_logit = scale * inverse;
        let mut lanes = [0.0f32; LANES];
        for ((vector, offsets), factors) in row
            .as_chunks_mut::<LANES>()
            .0
            .iter_mut()
            .zip(offsets)
            .zip(factors)
        {
            for i in 0..LANES {
                let g = exp(vector[i] * to_logit - offsets[i]) * factors[i];
                let g = if g < SMALLEST_GRADIENT { 0.0 } else { g } * inverse;
                lanes[i] += g * (vector[i] * inverse);
                vector[i] = g;
            }
        }
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        *along = lanes[0] * inverse;
    }
}

/// e^x within 2 units in the last place on [-87, 88.3]; 0 below, infinity above, NaN for NaN.
///
/// x = k ln 2 + r with |r| <= ln(2)/2, e^r by the polynomial 1 + r + r^2 p(r) of Moshier's Cephes library (`expf`,
/// minimax of degree 5), 2^k by adding k to the exponent's bits. k is rounded by adding 1.5 * 2^23, whose last bits
/// then hold it; ln 2 in two parts, the first short enough for k times it to be exact. Multiplications and additions
/// are not fused, so that every instruction set gives the same bits and none falls back to a library call.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let k = shifted - ROUND;
    let r = x - k * LN_2_HIGH - k * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_5e-1,
        0.5,
    ] {
        p = p * r + c;
    }
    let p = p * (r * r) + r + 1.0;
    let e = f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23));
    let e = if x < -87.0 { 0.0 } else { e };
    if x > 88.3 { f32::INFINITY } else { e }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for i in -8_700_000..=8_830_000 {
            let x = (f64::from(i) * 1e-5) as f32;
            let (actual, expected) = (f64::from(exp(x)), f64::from(x).exp());
            let unit = f64::from(f32::from_bits((expected as f32).to_bits() & 0x7f80_0000))
                * f64::from(f32::EPSILON);
            let error = (actual - expected).abs() / unit;
            assert!(
                error <= 2.0,
                "exp({x}) = {actual}, not {expected}: {error} units"
            );
            worst = worst.max(error);
        }
        // The bound is not so wide that it would hide a wrong coefficient.
        assert!(worst > 0.5, "{worst}");
    }

    #[test]
    fn exp_ends_in_zero_infinity_and_nan() {
        for x in [-87.001, -1e3, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp(x), 0.0, "{x}");
        }
        for x in [88.31, 1e3, f32::MAX] {
            assert_eq!(exp(x), f32::INFINITY, "{x}");
        }
        assert!(!exp(f32::INFINITY).is_finite());
        assert!(exp(f32::NAN).is_nan());
        assert_eq!(exp(0.0), 1.0);
    }
}
