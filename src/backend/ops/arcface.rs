//! The ArcFace head: margin softmax over a shard of the classes.

use super::SgdStep;
use crate::backend::geometry::HeadShard;
use crate::backend::margin::Margin;

/// What the head keeps for each row of the batch, one vector of N after the other.
pub mod head_rows {
    /// 1 / |x|.
    pub const INVERSE_NORM: usize = 0;
    /// The target's cosine; 0 where the label lies outside the shard.
    pub const TARGET_COS: usize = 1;
    /// The target's logit with its margin; 0 where the label lies outside the shard.
    pub const TARGET_LOGIT: usize = 2;
    /// d(target logit) / d(cos); 0 where the label lies outside the shard.
    pub const TARGET_SLOPE: usize = 3;
    /// Sum over the shard's classes of exp(logit - offset).
    pub const SUM_EXP: usize = 4;
    /// The largest logit without margin among the classes that are not the target.
    pub const BEST_OTHER: usize = 5;
    /// Subtracted before exp: for normalised heads [`Margin::offset`](crate::backend::margin::Margin::offset), the same in all shards; for
    /// plain softmax the row's largest logit.
    pub const OFFSET: usize = 6;
    /// After the vectors: the sum of squares of the class rows, one number.
    pub const SQUARES: usize = 7;

    /// Elements: seven vectors and the sum of squares.
    pub const fn len(n: usize) -> usize {
        SQUARES * n + 1
    }

    /// A sample's loss, from rows of a batch of `n` whose sums are complete.
    pub fn loss(rows: &[f32], n: usize, sample: usize) -> f64 {
        let value = |which: usize| f64::from(rows[which * n + sample]);
        value(SUM_EXP).ln() + value(OFFSET) - value(TARGET_LOGIT)
    }
}

/// A shard's class rows, and what is kept of each.
#[derive(Clone, Copy, Debug)]
pub struct ClassRows<T> {
    /// V x D, float32.
    pub rows: T,
    /// V: the sum of squares of each row.
    pub squares: T,
    /// V x D: the rows rounded to bfloat16, where products take that. Then the unit vectors of the embeddings and the
    /// gradient of the cosines, over |w|, are rounded for products too.
    pub rounded: Option<T>,
}

impl<T> ClassRows<T> {
    /// They, to read.
    pub fn lend(&self) -> ClassRows<&T> {
        ClassRows {
            rows: &self.rows,
            squares: &self.squares,
            rounded: self.rounded.as_ref(),
        }
    }

    /// They, to write.
    pub fn lend_mut(&mut self) -> ClassRows<&mut T> {
        ClassRows {
            rows: &mut self.rows,
            squares: &mut self.squares,
            rounded: self.rounded.as_mut(),
        }
    }
}

impl<T> ClassRows<&mut T> {
    /// They, to read for a while.
    pub fn read(&self) -> ClassRows<&T> {
        ClassRows {
            rows: self.rows,
            squares: self.squares,
            rounded: self.rounded.as_deref(),
        }
    }
}

/// Squares and rounded rows of class rows that did not come from [`ArcFaceBprop`], which keeps both.
#[derive(Debug)]
pub struct ArcFacePrepare<'a, T> {
    /// V.
    pub v: usize,
    /// D.
    pub d: usize,
    /// The rows are read, the rest is written.
    pub classes: ClassRows<&'a mut T>,
}

/// The head's forward pass over a shard's class tiles. Stores no logits.
#[derive(Debug)]
pub struct ArcFaceFprop<'a, T> {
    /// Batch, embedding size, and the shard's classes.
    pub shard: HeadShard,
    /// The loss's conventions.
    pub margin: &'a Margin,
    /// Embeddings, N x D.
    pub x: &'a T,
    /// The shard's class rows.
    pub classes: ClassRows<&'a T>,
    /// N labels, counted over all shards.
    pub labels: &'a [u32],
    /// In the layout of [`head_rows`].
    pub rows: &'a mut T,
}

/// The head's backward pass: d_x of the mean loss, and the update of the class rows and their momentum in the same walk.
///
/// If the loss of any row is not finite, class rows and momentum stay as they are, and d_x is NaN. Then nothing else is
/// updated either, and the host need not look at the loss in between.
#[derive(Debug)]
pub struct ArcFaceBprop<'a, T> {
    /// Batch, embedding size, and the shard's classes.
    pub shard: HeadShard,
    /// The loss's conventions.
    pub margin: &'a Margin,
    /// Embeddings, N x D.
    pub x: &'a T,
    /// N labels, counted over all shards.
    pub labels: &'a [u32],
    /// In the layout of [`head_rows`], with sums that are complete over all shards.
    pub rows: &'a T,
    /// The shard's class rows; squares and rounded rows become those of the new rows.
    pub classes: ClassRows<&'a mut T>,
    /// Their momentum, V x D.
    pub momentum: &'a mut T,
    /// decay w is added to the gradient of the class rows.
    pub decay: f32,
    /// The update; its clip does not apply to class rows.
    pub step: SgdStep,
    /// N x D.
    pub dx: &'a mut T,
}
