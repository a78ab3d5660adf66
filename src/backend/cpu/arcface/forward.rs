//! The forward pass: sums of exps, largest logits, targets.

use super::super::Buffer;
use super::super::machine::vectorised;
use super::super::product::pack_rows;
use super::super::tensor::Tensor;
use super::lanes::{add_exps, largest_logits};
use super::{
    WORKSPACE, Walk, Workspace, check, cosines, dot, inverse_lengths, inverse_norm, normalise,
    round, scale, targets,
};
use crate::backend::ArcFaceFprop;
use crate::backend::head_rows::{
    self, BEST_OTHER, INVERSE_NORM, OFFSET, SUM_EXP, TARGET_COS, TARGET_LOGIT, TARGET_SLOPE,
};
use crate::backend::margin::Margin;
use rayon::prelude::*;

pub(in super::super) fn fprop(scratch: &mut Buffer, op: ArcFaceFprop<'_, Buffer>) {
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
