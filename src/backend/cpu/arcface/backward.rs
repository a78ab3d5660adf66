//! The backward pass: d_x, and the update of the class rows.

use super::super::Buffer;
use super::super::machine::vectorised;
use super::super::matrix::MatMut;
use super::super::product::{
    Finish, Terms, Windows, multiply, pack_columns, pack_rows, panel_width, panels,
};
use super::super::sgd::step_row;
use super::super::tensor::TensorMut;
use super::lanes::gradients;
use super::{
    WORKSPACE, Walk, Workspace, check, cosines, inverse_lengths, keep, normalise, parts, round,
    scale, targets,
};
use crate::backend::head_rows::{self, INVERSE_NORM, OFFSET, SUM_EXP, TARGET_LOGIT, TARGET_SLOPE};
use crate::backend::margin::Margin;
use crate::backend::{ArcFaceBprop, SgdStep};
use rayon::prelude::*;

/// A product whose exp is 0, and which stays finite when multiplied by any inverse norm and scale.
const EXCLUDED: f32 = -1e30;

pub(in super::super) fn bprop(scratch: &mut Buffer, op: ArcFaceBprop<'_, Buffer>) {
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
    for (cols, panel) in panels(d).zip(columns.chunks_exact_mut(panel_width() * n)) {
        let row = |sample: usize| std::iter::once(&xn[sample * d..][cols.clone()]);
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
            for cols in panels(d) {
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
