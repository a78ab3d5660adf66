//! Dropout: y[i] = x[i] / (1 - rate) where element i is kept, 0 where it is not.
//!
//! The mask is never stored: each direction computes it from the counter. Philox's key is the seed; element i reads
//! word i % 4 of the block at counter [i / 4, 256 layer + Purpose::Dropout, step's low word, step's high word], whose
//! second word keeps it apart from every stream of [`Random`](crate::base::random::Random). The word's upper 24 bits are a
//! number in [0, 1); the element is kept where it is at least the rate. Up to 2^34 elements, 2^24 layers.

use super::Buffer;
use super::machine;
use super::pending::Reader;
use super::tiles;
use crate::backend::geometry::Rows;
use crate::backend::{Dropout, DropoutDgrad, DropoutFprop};
use crate::base::random::{Purpose, philox};
use pulp::{Simd, WithSimd};

pub(super) fn fprop(op: DropoutFprop<'_, Buffer>) {
    let DropoutFprop {
        rows,
        x,
        dropout,
        y,
    } = op;
    let c = rows.c;
    let x = Reader::new(x, c);
    let mask = Mask::new(dropout, rows);
    tiles::for_blocks(rows, y.tensor_mut(), false, |block, y| {
        let first = block.start * c;
        x.read(block, y);
        mask.apply(first, y);
    });
}

pub(super) fn dgrad(scratch: &mut Buffer, op: DropoutDgrad<'_, Buffer>) {
    let DropoutDgrad {
        rows,
        dy,
        dropout,
        dx,
    } = op;
    let (c, dy) = (rows.c, dy.tensor());
    let mask = Mask::new(dropout, rows);
    tiles::write_grad(scratch, rows, dx, |block, dx| {
        dy.read(block.start * c..block.end * c, dx);
        mask.apply(block.start * c, dx);
    });
}

/// What decides which elements are kept.
struct Mask {
    key: [u32; 2],
    counter: [u32; 3],
    /// Words below this, after their low 8 bits are dropped, are zeroed.
    threshold: u32,
    /// 1 / (1 - rate).
    scale: f32,
}

impl Mask {
    fn new(dropout: Dropout, rows: Rows) -> Self {
        let Dropout {
            rate,
            seed,
            layer,
            step,
        } = dropout;
        assert!(
            (0.0..1.0).contains(&rate),
            "a dropout rate of {rate} is not in [0, 1)"
        );
        assert!(layer < 1 << 24, "layer {layer} is beyond dropout's counter");
        assert!(
            rows.len() as u64 <= 1 << 34,
            "{} elements are beyond dropout's counter",
            rows.len()
        );
        Mask {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [
                (layer << 8) | Purpose::Dropout as u32,
                step as u32,
                (step >> 32) as u32,
            ],
            // word * 2^-24 >= rate exactly where word >= rate * 2^24, rounded up; the product is exact.
            threshold: (rate * 16_777_216.0).ceil() as u32,
            scale: 1.0 / (1.0 - rate),
        }
    }

    /// Masks and scales `values`, of which the first is element `first` of the tensor.
    fn apply(&self, first: usize, values: &mut [f32]) {
        let lead = first.wrapping_neg() % 4;
        let (head, body) = values.split_at_mut(lead.min(values.len()));
        self.apply_words(self.words(first / 4), first % 4, head);
        machine::arch().dispatch(ApplyBlocks {
            mask: self,
            first: (first + head.len()) / 4,
            values: body,
        });
    }

    #[inline(always)]
    fn words(&self, block: usize) -> [u32; 4] {
        let [layer, low, high] = self.counter;
        philox([block as u32, layer, low, high], self.key)
    }

    fn apply_words(&self, words: [u32; 4], skip: usize, values: &mut [f32]) {
        for (value, word) in values.iter_mut().zip(&words[skip..]) {
            *value = self.choose(*word, *value);
        }
    }

    #[inline(always)]
    fn choose(&self, word: u32, value: f32) -> f32 {
        if word >> 8 >= self.threshold {
            value * self.scale
        } else {
            0.0
        }
    }
}

/// Masks values that begin with a block's first word.
struct ApplyBlocks<'a> {
    mask: &'a Mask,
    first: usize,
    values: &'a mut [f32],
}

/// Most blocks computed side by side: the lanes of the widest vector there is.
const LANES: usize = 16;

impl WithSimd for ApplyBlocks<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let lanes = S::U32_LANES;
        // word >> 8 >= threshold, without the shift.
        let threshold = simd.splat_u32s(self.mask.threshold << 8);
        let scale = simd.splat_f32s(self.mask.scale);
        let mut chunks = self.values.chunks_exact_mut(4 * lanes);
        let mut first = self.first;
        for values in &mut chunks {
            let blocks = self.mask.words_side_by_side(simd, first);
            // From a vector a word of the blocks to the order of the elements.
            let mut words = [0u32; 4 * LANES];
            for (word, blocks) in blocks.iter().enumerate() {
                let mut lane = [0u32; LANES];
                S::as_mut_simd_u32s(&mut lane[..lanes]).0[0] = *blocks;
                for i in 0..lanes {
                    words[4 * i + word] = lane[i];
                }
            }
            let (words, _) = S::as_simd_u32s(&words[..4 * lanes]);
            let (values, _) = S::as_mut_simd_f32s(values);
            for (value, words) in values.iter_mut().zip(words) {
                let kept = simd.greater_than_or_equal_u32s(*words, threshold);
                let scaled = simd.mul_f32s(*value, scale);
                *value = simd.select_f32s(kept, scaled, simd.splat_f32s(0.0));
            }
            first += lanes;
        }
        for (i, values) in chunks.into_remainder().chunks_mut(4).enumerate() {
            self.mask.apply_words(self.mask.words(first + i), 0, values);
        }
    }
}

impl Mask {
    /// Philox of the blocks from `first` on, one a lane: [`philox`] in vectors.
    #[inline(always)]
    fn words_side_by_side<S: Simd>(&self, simd: S, first: usize) -> [S::u32s; 4] {
        let mut blocks = [0u32; LANES];
        for (i, block) in blocks.iter_mut().enumerate() {
            *block = (first + i) as u32;
        }
        let splat = |word| simd.splat_u32s(word);
        let [m0, m1] = MULTIPLIERS.map(splat);
        let weyl = WEYL.map(splat);
        let mut c0 = S::as_simd_u32s(&blocks[..S::U32_LANES]).0[0];
        let [mut c1, mut c2, mut c3] = self.counter.map(splat);
        let [mut k0, mut k1] = self.key.map(splat);
        for _ in 0..ROUNDS {
            let (low0, high0) = simd.widening_mul_u32s(m0, c0);
            let (low1, high1) = simd.widening_mul_u32s(m1, c2);
            c0 = simd.xor_u32s(simd.xor_u32s(high1, c1), k0);
            c2 = simd.xor_u32s(simd.xor_u32s(high0, c3), k1);
            (c1, c3) = (low1, low0);
            k0 = simd.add_u32s(k0, weyl[0]);
            k1 = simd.add_u32s(k1, weyl[1]);
        }
        [c0, c1, c2, c3]
    }
}

/// The constants of [`philox`]; a test holds both to the same words.
const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors, heads and tails are masked by the very words that `philox` gives for the documented counter.
    #[test]
    fn masks_follow_the_documented_counter() {
        let dropout = Dropout {
            rate: 0.3,
            seed: 0x0123_4567_89AB_CDEF,
            layer: 11,
            step: 0xFEDC_BA98_7654,
        };
        let mask = Mask::new(dropout, Rows { pixels: 1, c: 1 });
        for (first, len) in [(0, 300), (5, 2), (7, 131), (1 << 33, 64)] {
            let mut values = vec![1.0; len];
            mask.apply(first, &mut values);
            for (i, value) in values.into_iter().enumerate() {
                let at = first + i;
                let counter = [
                    (at / 4) as u32,
                    256 * dropout.layer + Purpose::Dropout as u32,
                    dropout.step as u32,
                    (dropout.step >> 32) as u32,
                ];
                let key = [0x89AB_CDEF, 0x0123_4567];
                let word = philox(counter, key)[at % 4];
                let uniform = f64::from(word >> 8) / 16_777_216.0;
                let kept = uniform >= f64::from(dropout.rate);
                assert_eq!(value > 0.0, kept, "element {at}");
            }
        }
    }
}
