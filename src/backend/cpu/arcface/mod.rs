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

mod lanes;

use super::Buffer;
use super::machine::vectorised;
use super::matrix::MatMut;
use super::product::{
    Finish, Terms, Windows, multiply, pack_columns, pack_rows, packed_len, panel_width,
};
use super::sgd::step_row;
use super::tensor::{Stored, Tensor, TensorMut};
use crate::backend::geometry::HeadShard;
use crate::backend::head_rows::{
    self, BEST_OTHER, INVERSE_NORM, OFFSET, SUM_EXP, TARGET_COS, TARGET_LOGIT, TARGET_SLOPE,
};
use crate::backend::margin::Margin;
use crate::backend::{ArcFaceBprop, ArcFaceFprop, ArcFacePrepare, ClassRows, SgdStep};
use half::bf16;
use lanes::{LANES, add_exps, gradients, largest_logits, sum_of_squares};
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
/// A product whose exp is 0, and which stays finite when multiplied by any inverse norm and scale.
const EXCLUDED: f32 = -1e30;

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

pub(super) fn fprop(scratch: &mut Buffer, op: ArcFaceFprop<'_, Buffer>) {
    let ArcFaceFprop {
        ref shard,
        margin,
        x,
        classes: kept,
        labels,
        rows,
    } = op;
    check(shard, x, labels, &kept, rows);
    let walk = Walk::new(shard);
    let Walk { n, d, padded, .. } = walk;
    let classes = &kept.rows[..shard.classes() * d];
    let squares = &kept.squares[..shard.classes()];
    let rounded = kept.rounded.map(Buffer::tensor);
    let rows = &mut rows[..head_rows::len(n)];
    rows.fill(0.0);
    for (inverse, x) in rows[INVERSE_NORM * n..][..n]
        .iter_mut()
        .zip(x.chunks_exact(d))
    {
        *inverse = inverse_norm(margin, dot(x, x)) as f32;
    }
    for (sample, row) in targets(labels, shard.first, shard.classes()) {
        let (x, w) = (&x[sample * d..][..d], &classes[row * d..][..d]);
        let inverse = inverse_norm(margin, dot(x, x)) * inverse_norm(margin, dot(w, w));
        let cos = (dot(x, w) * inverse) as f32;
        let (logit, slope) = margin.target(cos);
        rows[TARGET_COS * n + sample] = cos;
        rows[TARGET_LOGIT * n + sample] = logit;
        rows[TARGET_SLOPE * n + sample] = slope;
    }

    let [unit, by_rows, _] = walk.embeddings();
    let scratch = scratch.at_least(unit + by_rows + walk.groups * walk.forward_partial());
    let (xn, scratch) = scratch.split_at_mut(unit);
    let (samples, partials) = scratch.split_at_mut(by_rows);
    normalise(d, x, &rows[INVERSE_NORM * n..][..n], xn);
    if rounded.is_some() {
        round(xn);
    }
    samples.fill(0.0);
    pack_rows(xn, d, samples);
    let samples = &*samples;
    (
        classes.par_chunks(walk.group * d),
        squares.par_chunks(walk.group),
        partials.par_chunks_exact_mut(walk.forward_partial()),
    )
        .into_par_iter()
        .enumerate()
        .for_each(|(group, (classes, squares, partial))| {
            WORKSPACE.with_borrow_mut(|workspace| {
                let row = group * walk.group;
                let group = ForwardGroup {
                    first: shard.first + row,
                    classes,
                    rounded: rounded.map(|rounded| (rounded, row)),
                    squares,
                    partial,
                };
                group.run(workspace, walk, margin, samples, labels);
            });
        });

    let inside = |label: u32| (shard.first..shard.last).contains(&(label as usize));
    for sample in 0..n {
        let parts = || partials.chunks_exact(walk.forward_partial());
        let best = parts()
            .map(|p| p[padded + sample])
            .fold(f32::NEG_INFINITY, f32::max);
        let target = inside(labels[sample]).then(|| rows[TARGET_LOGIT * n + sample]);
        let offset = if margin.normalise {
            margin.offset()
        } else {
            best.max(target.unwrap_or(best))
        };
        let mut sum = 0.0;
        for part in parts() {
            // Without normalisation a group's sum is relative to its own largest logit.
            let factor = if margin.normalise {
                1.0
            } else {
                (f64::from(part[padded + sample]) - f64::from(offset)).exp()
            };
            sum += f64::from(part[sample]) * factor;
        }
        if let Some(logit) = target {
            sum += (f64::from(logit) - f64::from(offset)).exp();
        }
        rows[SUM_EXP * n + sample] = sum as f32;
        rows[BEST_OTHER * n + sample] = best;
        rows[OFFSET * n + sample] = offset;
    }
    let squares = partials
        .chunks_exact(walk.forward_partial())
        .map(|p| f64::from(p[2 * padded]));
    rows[head_rows::SQUARES * n] = squares.sum::<f64>() as f32;
}

/// A group of class rows in the forward pass.
struct ForwardGroup<'a> {
    /// The first row's class.
    first: usize,
    classes: &'a [f32],
    /// All rounded rows, and the number of the first one here.
    rounded: Option<(Tensor<'a>, usize)>,
    squares: &'a [f32],
    /// Its part of the rows' sums and largest logits.
    partial: &'a mut [f32],
}

impl ForwardGroup<'_> {
    fn run(
        self,
        workspace: &mut Workspace,
        walk: Walk,
        margin: &Margin,
        samples: &[f32],
        labels: &[u32],
    ) {
        let ForwardGroup {
            mut first,
            classes,
            mut rounded,
            squares,
            partial,
        } = self;
        let Walk { d, padded, .. } = walk;
        let Workspace { floats, rows, sums } = workspace;
        let floats = floats.at_least(walk.workspace());
        let (products, floats) = floats.split_at_mut(walk.tile * padded);
        let (factors, floats) = floats.split_at_mut(walk.tile);
        let (offsets, before) = floats[..2 * padded].split_at_mut(padded);
        sums.clear();
        sums.resize(padded, 0.0);
        offsets.fill(margin.offset());
        let (out_sums, rest) = partial.split_at_mut(padded);
        let (best, out_squares) = rest.split_at_mut(padded);
        best.fill(f32::NEG_INFINITY);
        for (classes, squares) in classes.chunks(walk.tile * d).zip(squares.chunks(walk.tile)) {
            let count = squares.len();
            let products = &mut products[..count * padded];
            if let Some((rounded, row)) = &mut rounded {
                let classes = &mut rows.at_least(count * d)[..count * d];
                rounded.read(*row * d..(*row + count) * d, classes);
                *row += count;
                cosines(walk, samples, classes, products);
            } else {
                cosines(walk, samples, classes, products);
            }
            let factors = &mut factors[..count];
            inverse_lengths(margin, squares, factors);
            factors
                .iter_mut()
                .for_each(|factor| *factor *= scale(margin));
            // The targets are added at the end, with their margin.
            for (sample, row) in targets(labels, first, count) {
                products[row * padded + sample] = f32::NEG_INFINITY;
            }
            before.copy_from_slice(best);
            vectorised(
                #[inline(always)]
                || largest_logits(products, padded, factors, best),
            );
            if !margin.normalise {
                for n in 0..padded {
                    if best[n] > before[n] {
                        sums[n] *= (f64::from(before[n]) - f64::from(best[n])).exp();
                    }
                    // Nothing but the target so far: its exp(-inf - 0) is 0, where exp(-inf + inf) would be NaN.
                    offsets[n] = if best[n] == f32::NEG_INFINITY {
                        0.0
                    } else {
                        best[n]
                    };
                }
            }
            vectorised(
                #[inline(always)]
                || add_exps(products, padded, factors, offsets, sums),
            );
            first += count;
        }
        for (out, sum) in out_sums.iter_mut().zip(sums.iter()) {
            *out = *sum as f32;
        }
        out_squares[0] = squares.iter().map(|s| f64::from(*s)).sum::<f64>() as f32;
    }
}

pub(super) fn bprop(scratch: &mut Buffer, op: ArcFaceBprop<'_, Buffer>) {
    let ArcFaceBprop {
        ref shard,
        margin,
        x,
        labels,
        rows,
        classes: kept,
        momentum,
        decay,
        ref step,
        dx,
    } = op;
    check(shard, x, labels, &kept.read(), rows);
    let walk = Walk::new(shard);
    let Walk { n, d, padded, .. } = walk;
    assert!(momentum.len() >= shard.classes() * d, "momentum");
    assert!(dx.len() >= n * d, "d_x: {} floats, not {n} x {d}", dx.len());
    if !(0..n).all(|sample| head_rows::loss(rows, n, sample).is_finite()) {
        dx[..n * d].fill(f32::NAN);
        return;
    }
    let rounds = kept.rounded.is_some();
    let rounded = parts(kept.rounded, shard.classes(), walk.group, d);
    let classes = &mut kept.rows[..shard.classes() * d];
    let squares = &mut kept.squares[..shard.classes()];
    let momentum = &mut momentum[..shard.classes() * d];
    let row = |which: usize| &rows[which * n..][..n];

    let [unit, by_rows, by_columns] = walk.embeddings();
    let scratch = scratch
        .at_least(unit + by_rows + by_columns + 2 * padded + walk.groups * walk.backward_partial());
    let (xn, scratch) = scratch.split_at_mut(unit);
    let (samples, scratch) = scratch.split_at_mut(by_rows);
    let (columns, scratch) = scratch.split_at_mut(by_columns);
    let (offsets, scratch) = scratch.split_at_mut(padded);
    let (factors, partials) = scratch.split_at_mut(padded);
    normalise(d, x, row(INVERSE_NORM), xn);
    if rounds {
        round(xn);
    }
    samples.fill(0.0);
    pack_rows(xn, d, samples);
    for (i, panel) in columns.chunks_exact_mut(panel_width() * n).enumerate() {
        let first = i * panel_width();
        let count = panel_width().min(d - first);
        let row = |sample: usize| std::iter::once(&xn[sample * d + first..][..count]);
        pack_columns(Terms::Single, n, panel, row);
    }
    // The padding's exps are multiplied by 0.
    offsets.fill(0.0);
    factors.fill(0.0);
    offsets[..n].copy_from_slice(row(OFFSET));
    for (factor, sum) in factors.iter_mut().zip(row(SUM_EXP)) {
        *factor = (f64::from(scale(margin)) / (n as f64 * f64::from(*sum))) as f32;
    }
    let batch = Batch {
        labels,
        samples,
        columns,
        offsets,
        factors,
        rows,
    };
    (
        classes.par_chunks_mut(walk.group * d),
        momentum.par_chunks_mut(walk.group * d),
        squares.par_chunks_mut(walk.group),
        rounded,
        partials.par_chunks_exact_mut(walk.backward_partial()),
    )
        .into_par_iter()
        .enumerate()
        .for_each(|(group, (classes, momentum, squares, rounded, partial))| {
            WORKSPACE.with_borrow_mut(|workspace| {
                let first = shard.first + group * walk.group;
                let group = BackwardGroup {
                    first,
                    squares,
                    rounded,
                    classes,
                    momentum,
                    partial,
                };
                group.run(workspace, walk, margin, &batch, (step, decay));
            });
        });

    let partials = &*partials;
    dx.par_chunks_exact_mut(d)
        .take(n)
        .enumerate()
        .for_each(|(sample, dx)| {
            WORKSPACE.with_borrow_mut(|workspace| {
                let sums = &mut workspace.sums;
                sums.clear();
                sums.resize(d, 0.0);
                for part in partials.chunks_exact(n * d) {
                    let part = &part[sample * d..][..d];
                    sums.iter_mut()
                        .zip(part)
                        .for_each(|(sum, part)| *sum += f64::from(*part));
                }
                dx.iter_mut()
                    .zip(sums.iter())
                    .for_each(|(dx, sum)| *dx = *sum as f32);
            });
            if margin.normalise {
                let x = &x[sample * d..][..d];
                let inverse = rows[INVERSE_NORM * n + sample];
                let terms = dx.iter().zip(x);
                let terms = terms.map(|(dx, x)| f64::from(*dx) * f64::from(x * inverse));
                let along = terms.sum::<f64>() as f32;
                for (dx, x) in dx.iter_mut().zip(x) {
                    *dx = inverse * (*dx - along * (x * inverse));
                }
            }
        });
}

/// What the backward pass knows about the batch.
struct Batch<'a> {
    labels: &'a [u32],
    /// The rows of x^, packed.
    samples: &'a [f32],
    /// The columns of x^, packed.
    columns: &'a [f32],
    /// Taken from the logits before exp, padded N.
    offsets: &'a [f32],
    /// exp's factor to become d(loss)/d(cos): s / (N sum), padded N.
    factors: &'a [f32],
    rows: &'a [f32],
}

/// A group of class rows in the backward pass.
struct BackwardGroup<'a> {
    /// The first row's class.
    first: usize,
    squares: &'a mut [f32],
    rounded: Option<TensorMut<'a>>,
    classes: &'a mut [f32],
    momentum: &'a mut [f32],
    /// Its part of d_x^.
    partial: &'a mut [f32],
}

impl BackwardGroup<'_> {
    /// Updates the class rows and their momentum, and writes the part of d_x^.
    fn run(
        self,
        workspace: &mut Workspace,
        walk: Walk,
        margin: &Margin,
        batch: &Batch<'_>,
        (step, decay): (&SgdStep, f32),
    ) {
        let BackwardGroup {
            mut first,
            squares,
            mut rounded,
            classes,
            momentum,
            partial,
        } = self;
        let Walk { n, d, padded, .. } = walk;
        let Workspace { floats, rows, .. } = workspace;
        let floats = floats.at_least(walk.workspace());
        let (products, floats) = floats.split_at_mut(walk.tile * padded);
        let (panel, floats) = floats.split_at_mut(walk.tile * panel_width());
        let (dw, floats) = floats.split_at_mut(walk.update * d);
        let (along, floats) = floats.split_at_mut(walk.tile);
        let inverse_norms = &mut floats[..walk.tile];
        for (index, ((classes, momentum), squares)) in classes
            .chunks_mut(walk.tile * d)
            .zip(momentum.chunks_mut(walk.tile * d))
            .zip(squares.chunks_mut(walk.tile))
            .enumerate()
        {
            let count = squares.len();
            let inverse_norms = &mut inverse_norms[..count];
            inverse_lengths(margin, squares, inverse_norms);
            let products = &mut products[..count * padded];
            // The rows as products take them.
            let factors = if let Some(rounded) = &rounded {
                let factors = &mut rows.at_least(count * d)[..count * d];
                let begin = index * walk.tile * d;
                rounded.lend().read(begin..begin + count * d, factors);
                &*factors
            } else {
                &*classes
            };
            cosines(walk, batch.samples, factors, products);
            // G, and q. First as if there were no targets, then theirs.
            let place = |(sample, row): (usize, usize)| row * padded + sample;
            let mut target_products = Vec::new();
            for target in targets(batch.labels, first, count) {
                target_products.push((place(target), products[place(target)]));
                products[place(target)] = EXCLUDED;
            }
            vectorised(
                #[inline(always)]
                || {
                    let lanes = (batch.offsets, batch.factors);
                    gradients(scale(margin), lanes, padded, inverse_norms, products, along);
                },
            );
            for ((at, product), (sample, row)) in
                target_products
                    .into_iter()
                    .zip(targets(batch.labels, first, count))
            {
                let value = |which: usize| f64::from(batch.rows[which * n + sample]);
                let p = (value(TARGET_LOGIT) - value(OFFSET)).exp() / value(SUM_EXP);
                let inverse = inverse_norms[row];
                let g = ((p - 1.0) * value(TARGET_SLOPE) / n as f64) as f32 * inverse;
                products[at] = g;
                along[row] += g * (product * inverse) * inverse;
            }
            if rounded.is_some() {
                round(products);
            }
            // d_x^ += G^T w.
            let gradients = Windows::columns(Terms::Single, products, [n, padded, count]);
            let finish = Finish {
                accumulate: index > 0,
                ..Finish::default()
            };
            for first in (0..d).step_by(panel_width()) {
                let cols = first..(first + panel_width()).min(d);
                let row = |i: usize| std::iter::once(&factors[i * d..][cols.clone()]);
                pack_columns(Terms::Single, count, panel, row);
                let mut d_x = MatMut::new(partial, n, d);
                multiply(&mut d_x.columns(cols), gradients, panel, finish);
            }
            for (((classes, momentum), g), along) in classes
                .chunks_mut(walk.update * d)
                .zip(momentum.chunks_mut(walk.update * d))
                .zip(products.chunks(walk.update * padded))
                .zip(along[..count].chunks(walk.update))
            {
                let count = along.len();
                let dw = &mut dw[..count * d];
                // G x^.
                let gradients = Windows::rows(Terms::Single, g, [count, padded, n]);
                let d_w = &mut MatMut::new(dw, count, d);
                multiply(d_w, gradients, batch.columns, Finish::default());
                vectorised(
                    #[inline(always)]
                    || {
                        for (((w, v), g), along) in classes
                            .chunks_exact_mut(d)
                            .zip(momentum.chunks_exact_mut(d))
                            .zip(dw.chunks_exact(d))
                            .zip(along)
                        {
                            let along = if margin.normalise { *along } else { 0.0 };
                            step_row(step, g, 1.0, decay - along, w, v);
                        }
                    },
                );
            }
            keep(d, classes, squares, rounded.as_mut(), index * walk.tile);
            first += count;
        }
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
