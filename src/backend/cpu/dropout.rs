//! Dropout: y[i] = x[i] / (1 - rate) where element i is kept, 0 where it is not.
//!
//! The mask is never stored: each direction computes it from the counter. Philox's key is the seed; element i reads
//! word i % 4 of the block at counter [i / 4, 256 layer + Purpose::Dropout, step's low word, step's high word], whose
//! second word keeps it apart from every stream of [`Random`](crate::random::Random). The word's upper 24 bits are a
//! number in [0, 1); the element is kept where it is at least the rate. Up to 2^34 elements, 2^24 layers.

use super::Buffer;
use super::pending::{Reader, vectorised};
use super::tiles;
use crate::backend::geometry::Rows;
use crate::backend::{Dropout, GradTarget, Pending};
use crate::random::{Purpose, philox};

pub(super) fn fprop(rows: Rows, x: Pending<'_, Buffer>, dropout: Dropout, y: &mut Buffer) {
    let c = rows.c;
    let x = Reader::new(x, c);
    let mask = Mask::new(dropout, rows);
    tiles::for_blocks(rows, y, |block, y| {
        let first = block.start * c;
        x.read(block, y);
        mask.apply(first, y);
    });
}

pub(super) fn dgrad(
    scratch: &mut Buffer,
    rows: Rows,
    dy: &Buffer,
    dropout: Dropout,
    dx: GradTarget<'_, Buffer>,
) {
    let c = rows.c;
    let mask = Mask::new(dropout, rows);
    tiles::write_grad(scratch, rows, dx, |block, dx| {
        dx.copy_from_slice(&dy[block.start * c..block.end * c]);
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
        let first = (first + head.len()) / 4;
        let (groups, tail) = body.as_chunks_mut::<{ 4 * Self::GROUP }>();
        vectorised(
            #[inline(always)]
            || {
                for (i, group) in groups.iter_mut().enumerate() {
                    self.apply_group(first + i * Self::GROUP, group);
                }
            },
        );
        let first = first + groups.len() * Self::GROUP;
        for (i, values) in tail.chunks_mut(4).enumerate() {
            self.apply_words(self.words(first + i), 0, values);
        }
    }

    /// Philox blocks computed side by side.
    const GROUP: usize = 8;

    #[inline(always)]
    fn words(&self, block: usize) -> [u32; 4] {
        let [layer, low, high] = self.counter;
        philox([block as u32, layer, low, high], self.key)
    }

    #[inline(always)]
    fn apply_group(&self, first: usize, values: &mut [f32; 4 * Self::GROUP]) {
        let mut words = [[0u32; Self::GROUP]; 4];
        for i in 0..Self::GROUP {
            let block = self.words(first + i);
            for (words, word) in words.iter_mut().zip(block) {
                words[i] = word;
            }
        }
        for i in 0..Self::GROUP {
            for (word, words) in words.iter().enumerate() {
                let value = &mut values[4 * i + word];
                *value = self.choose(words[i], *value);
            }
        }
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
