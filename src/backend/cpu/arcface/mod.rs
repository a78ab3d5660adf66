//! The ArcFace head on the CPU: cosines, margin, softmax cross-entropy, its gradient and the update of the class
//! rows, one tile of class rows at a time.
//!
//! x is N x D, the class rows V x D (this shard's), x^ and w^ their unit vectors, logits s x^.w^ except for the
//! target, which has its margin. A tile is T class rows with their T x N products, small enough to stay in a
//! core's second-level cache; nothing of size V x N exists. Tiles are walked in groups, groups in parallel.
//!
//! - Forward, a tile: the products x^.w (one matrix product); each sample's largest logit and its sum of
//!   exp(logit - offset).
//! - Backward, a tile: the products again; G = d(loss)/d(cos) / |w|, T x N; d_x^ += G^T w and d_w = G x^ - q w (two
//!   matrix products), where q = (sum over n of G cos) / |w| takes away the part along w; decay, momentum and
//!   update of the tile's rows while they are in cache, and what is kept of the new rows: |w|^2, and the rows rounded.
//!
//! Products are T x N with the samples contiguous, padded to whole vectors, so that every loop over them runs over
//! samples and no sum crosses vector lanes. Bound by arithmetic: 2 N D V forward, three times that backward.
//!
//! Numerics: float32 products; with rounded class rows, of these, x^ and G rounded to bfloat16; sums of exp in float32 over 64 classes, above that in float64; the target's cosine
//! in float64. T and the groups depend only on the shapes; groups are merged in order.
//!
//! A vector shorter than 1e-6 is divided by 1e-6 (TensorFlow's `l2_normalize`), its gradient is cut accordingly.
//! Where a sample's loss is not finite, class rows and momentum stay and d_x is NaN.
//! For plain softmax all the inverse norms are 1 and the offset is the row's largest logit.

mod backward;
mod forward;
mod lanes;

pub(super) use backward::bprop;
pub(super) use forward::fprop;

use super::Buffer;
use super::machine::vectorised;
use super::matrix::MatMut;
use super::product::{Finish, Terms, Windows, multiply, packed_len, panel_width};
use super::tensor::{Stored, TensorMut};
use crate::backend::geometry::HeadShard;
use crate::backend::head_rows;
use crate::backend::margin::Margin;
use crate::backend::{ArcFacePrepare, ClassRows};
use half::bf16;
use lanes::{LANES, sum_of_squares};
use rayon::prelude::*;
use std::cell::RefCell;

/// Floats of a tile's class rows and products together (384 KB).
const TILE_FLOATS: usize = 96 << 10;
/// Floats of the class rows' gradient that exist at a time (64 KB).
const GRADIENT_FLOATS: usize = 16 << 10;
/// Floats of all groups' partial sums together (32 MB), and the most groups.
const PARTIAL_FLOATS: usize = 8 << 20;
const GROUPS: usize = 64;
/// Class rows that are prepared at a time.
const KEPT_ROWS: usize = 256;
/// The smallest square of a length that is divided by.
const SMALLEST_SQUARE: f64 = 1e-12;

/// How the work is cut.
#[derive(Clone, Copy, Debug)]
struct Walk {
    n: usize,
    d: usize,
    /// N in whole vectors.
    padded: usize,
    /// Class rows a tile.
    tile: usize,
    /// Class rows a group, a multiple of `tile`.
    group: usize,
    groups: usize,
    /// Class rows a step of the update.
    update: usize,
}

impl Walk {
    fn new(shard: &HeadShard) -> Self {
        let HeadShard { n, d, .. } = *shard;
        let padded = n.next_multiple_of(LANES);
        let tile = (TILE_FLOATS / (d + padded)).clamp(16, 1024) / 16 * 16;
        let tiles = shard.classes().div_ceil(tile);
        let most = (PARTIAL_FLOATS / (n * d)).clamp(8, GROUPS);
        let group = tiles.div_ceil(most) * tile;
        Walk {
            n,
            d,
            padded,
            tile,
            group,
            groups: shard.classes().div_ceil(group),
            update: (GRADIENT_FLOATS / d).clamp(8, tile),
        }
    }

    /// Floats of x^, N x D, and of its rows and its columns, packed.
    fn embeddings(&self) -> [usize; 3] {
        [
            self.n * self.d,
            packed_len(self.padded, self.d),
            packed_len(self.d, self.n),
        ]
    }

    /// Floats a group leaves behind forward: each sample's sum and largest logit, and the sum of squares.
    fn forward_partial(&self) -> usize {
        2 * self.padded + 1
    }

    /// Floats a group leaves behind backward: its part of d_x^.
    fn backward_partial(&self) -> usize {
        self.n * self.d
    }

    /// Floats each thread works in: products, a panel of class rows, class gradients, and two numbers for each class row.
    fn workspace(&self) -> usize {
        self.tile * (self.padded + panel_width())
            + self.update * self.d
            + 2 * self.tile
            + 2 * self.padded
    }
}

/// A thread's own memory, grown once and kept.
#[derive(Default)]
struct Workspace {
    floats: Buffer,
    /// A tile's class rows, where they are rounded.
    rows: Buffer,
    sums: Vec<f64>,
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// The rows of the batch whose target lies among `classes` rows from `first`, as (sample, row).
fn targets(
    labels: &[u32],
    first: usize,
    classes: usize,
) -> impl Iterator<Item = (usize, usize)> + '_ {
    labels
        .iter()
        .enumerate()
        .filter_map(move |(sample, label)| {
            let row = (*label as usize).checked_sub(first)?;
            (row < classes).then_some((sample, row))
        })
}

fn check(
    shard: &HeadShard,
    x: &Buffer,
    labels: &[u32],
    classes: &ClassRows<&Buffer>,
    rows: &Buffer,
) {
    let (n, d, v) = (shard.n, shard.d, shard.classes());
    assert!(n > 0 && d > 0 && v > 0, "an empty head: {shard:?}");
    assert!(x.len() >= n * d, "x: {} floats, not {n} x {d}", x.len());
    assert_eq!(labels.len(), n, "labels");
    assert!(classes.rows.len() >= v * d, "class rows");
    assert!(classes.squares.len() >= v, "squares");
    let rounded = classes.rounded.map(Buffer::elements);
    assert!(rounded.is_none_or(|len| len >= v * d), "rounded rows");
    assert!(rows.len() >= head_rows::len(n), "rows: {}", rows.len());
}

pub(super) fn prepare(op: ArcFacePrepare<'_, Buffer>) {
    let ArcFacePrepare { v, d, classes } = op;
    let (rows, squares) = (&classes.rows[..v * d], &mut classes.squares[..v]);
    let rounded = parts(classes.rounded, v, KEPT_ROWS, d);
    (
        rows.par_chunks(KEPT_ROWS * d),
        squares.par_chunks_mut(KEPT_ROWS),
        rounded,
    )
        .into_par_iter()
        .for_each(|(rows, squares, mut rounded)| keep(d, rows, squares, rounded.as_mut(), 0));
}

/// The rounded copy of `v` class rows in stretches of `len` rows, or as many times nothing.
fn parts(
    rounded: Option<&mut Buffer>,
    v: usize,
    len: usize,
    d: usize,
) -> Vec<Option<TensorMut<'_>>> {
    match rounded {
        Some(rounded) => {
            let rounded = rounded.tensor_mut().first(v * d);
            rounded.par_chunks(len * d).map(Some).collect()
        }
        None => (0..v.div_ceil(len)).map(|_| None).collect(),
    }
}

/// What is kept of class rows: their squares, and their rounded copy from row `first` on.
fn keep(
    d: usize,
    rows: &[f32],
    squares: &mut [f32],
    rounded: Option<&mut TensorMut<'_>>,
    first: usize,
) {
    vectorised(
        #[inline(always)]
        || {
            for (w, square) in rows.chunks_exact(d).zip(squares.iter_mut()) {
                *square = sum_of_squares(w) as f32;
            }
        },
    );
    if let Some(rounded) = rounded {
        rounded.write(first * d, rows);
    }
}

/// 1/|w| of each row.
fn inverse_lengths(margin: &Margin, squares: &[f32], out: &mut [f32]) {
    for (out, square) in out.iter_mut().zip(squares) {
        *out = inverse_norm(margin, f64::from(*square)) as f32;
    }
}

/// Rounds to bfloat16.
fn round(values: &mut [f32]) {
    for v in values {
        *v = bf16::narrow(*v).widen();
    }
}

/// products = w x^T, T x padded N; `samples` are the rows of x^, packed.
fn cosines(walk: Walk, samples: &[f32], classes: &[f32], products: &mut [f32]) {
    let count = classes.len() / walk.d;
    multiply(
        &mut MatMut::new(products, count, walk.padded),
        Windows::rows(Terms::Single, classes, [count, walk.d, walk.d]),
        samples,
        Finish::default(),
    );
}

/// x^, N x D.
fn normalise(d: usize, x: &[f32], inverse_norms: &[f32], xn: &mut [f32]) {
    for ((xn, x), inverse) in (xn.chunks_exact_mut(d))
        .zip(x.chunks_exact(d))
        .zip(inverse_norms)
    {
        xn.iter_mut().zip(x).for_each(|(n, x)| *n = x * inverse);
    }
}

/// d(logit) / d(cos) of every class but the target.
fn scale(margin: &Margin) -> f32 {
    if margin.normalise { margin.scale } else { 1.0 }
}

fn inverse_norm(margin: &Margin, square: f64) -> f64 {
    if margin.normalise {
        // Not `f64::max`, which would turn NaN into a number.
        let square = if square < SMALLEST_SQUARE {
            SMALLEST_SQUARE
        } else {
            square
        };
        1.0 / square.sqrt()
    } else {
        1.0
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter()
        .zip(b)
        .map(|(a, b)| f64::from(*a) * f64::from(*b))
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the head holds beyond class rows and momentum at the published size, on a machine with `threads` threads.
    #[test]
    fn memory_stays_below_twenty_megabytes() {
        let shard = HeadShard {
            n: 64,
            d: 256,
            first: 0,
            last: 85_742,
        };
        let walk = Walk::new(&shard);
        let [unit, by_rows, by_columns] = walk.embeddings();
        let shared = unit + by_rows + by_columns + 2 * walk.padded;
        let partials = walk.groups * walk.backward_partial().max(walk.forward_partial());
        let kept = shard.classes() + head_rows::len(shard.n) + 2 * unit;
        for threads in [1, 2, 16, 32] {
            let own = threads * (4 * walk.workspace() + 8 * walk.padded);
            let bytes = 4 * (shared + partials + kept) + own;
            assert!(bytes < 20_000_000, "{bytes} bytes on {threads} threads");
        }
    }

    #[test]
    fn the_cut_covers_every_class_once() {
        for (n, d, v) in [
            (1, 1, 1),
            (64, 256, 85_742),
            (512, 512, 1_000_000),
            (3, 7, 1025),
        ] {
            let walk = Walk::new(&HeadShard {
                n,
                d,
                first: 5,
                last: 5 + v,
            });
            assert!(walk.groups * walk.group >= v && (walk.groups - 1) * walk.group < v);
            assert_eq!(walk.group % walk.tile, 0);
            assert!(walk.groups <= GROUPS && walk.update <= walk.tile && walk.update > 0);
        }
        // The shape with which the oracle's test walks groups of more than one tile.
        let walk = Walk::new(&HeadShard {
            n: 5,
            d: 3001,
            first: 0,
            last: 2100,
        });
        assert!(walk.group > walk.tile && walk.groups > 1, "{walk:?}");
    }
}
