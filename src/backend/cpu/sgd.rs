//! Stochastic gradient descent on the parameter slab: norms, then one pass over weights, gradients and momentum.
//!
//! Segments are cut into blocks of fixed size; blocks run in parallel, their sums are added in order in float64.
//! Bound by memory: 20 bytes an element a step.

use super::Buffer;
use super::machine::vectorised;
use crate::backend::{SgdForm, SgdNorms, SgdStep, SgdUpdate};
use rayon::prelude::*;

/// Elements a block (64 KB a tensor).
const BLOCK: usize = 16 << 10;
/// Elements that are added in float32 lanes before the sum goes on in float64.
const STRETCH: usize = 1 << 10;
const LANES: usize = 16;

pub(super) fn norms(scratch: &mut Buffer, op: SgdNorms<'_, Buffer>) {
    let SgdNorms {
        params,
        grads,
        segments,
        norms,
    } = op;
    let blocks: Vec<(usize, usize, f32)> = segments
        .iter()
        .flat_map(|s| {
            let ends = s.offset..s.offset + s.len;
            ends.clone()
                .step_by(BLOCK)
                .map(move |at| (at, BLOCK.min(ends.end - at), s.decay))
        })
        .collect();
    let partials = scratch.at_least(2 * blocks.len());
    partials
        .par_chunks_exact_mut(2)
        .zip(&blocks)
        .for_each(|(partial, &(at, len, decay))| {
            partial[0] = sum_of_squares(&grads[at..][..len]) as f32;
            partial[1] = if decay == 0.0 {
                0.0
            } else {
                (0.5 * f64::from(decay) * sum_of_squares(&params[at..][..len])) as f32
            };
        });
    for (which, norm) in norms[..2].iter_mut().enumerate() {
        let parts = partials.chunks_exact(2).map(|p| f64::from(p[which]));
        *norm = parts.sum::<f64>() as f32;
    }
}

pub(super) fn update(op: SgdUpdate<'_, Buffer>) {
    let SgdUpdate {
        ref step,
        segments,
        grads,
        norms,
        params,
        momentum,
        shadow,
    } = op;
    let norm = f64::from(norms[0]).sqrt();
    if !norm.is_finite() {
        return;
    }
    let clip = match step.clip {
        Some(longest) if norm > f64::from(longest) => (f64::from(longest) / norm) as f32,
        _ => 1.0,
    };
    // Blocks that can be written at the same time: cut off the front of the slabs one after the other.
    let mut blocks = Vec::new();
    let (mut left, mut momentum, mut at) = (&mut params[..], &mut momentum[..], 0);
    for segment in segments {
        let gap = segment.offset.checked_sub(at);
        let gap = gap.expect("segments lie in order and do not overlap");
        let (w, v);
        (w, left) = left.split_at_mut(gap + segment.len);
        (v, momentum) = momentum.split_at_mut(gap + segment.len);
        at = segment.offset + segment.len;
        let g = &grads[segment.offset..at];
        let parts = w[gap..].chunks_mut(BLOCK).zip(v[gap..].chunks_mut(BLOCK));
        blocks.extend(
            parts
                .zip(g.chunks(BLOCK))
                .map(|((w, v), g)| (segment, w, v, g)),
        );
    }
    blocks.into_par_iter().for_each(|(segment, w, v, g)| {
        let step = SgdStep {
            lr: step.lr * segment.lr_multiplier,
            ..*step
        };
        vectorised(
            #[inline(always)]
            || step_row(&step, g, clip, segment.decay, w, v),
        );
    });
    if let Some(shadow) = shadow {
        let parts = shadow.tensor_mut().par_chunks(BLOCK);
        parts
            .zip(params.par_chunks(BLOCK))
            .for_each(|(mut shadow, params)| shadow.write(0, params));
    }
}

/// One step of a stretch: gradient = scale g + decay w; w and its momentum v move by the form's rule. `step.clip` is in
/// `scale` already.
#[inline(always)]
pub(super) fn step_row(
    step: &SgdStep,
    g: &[f32],
    scale: f32,
    decay: f32,
    w: &mut [f32],
    v: &mut [f32],
) {
    #[inline(always)]
    fn each(g: &[f32], w: &mut [f32], v: &mut [f32], rule: impl Fn(f32, f32, f32) -> (f32, f32)) {
        for ((w, v), g) in w.iter_mut().zip(v).zip(g) {
            (*w, *v) = rule(*w, *v, *g);
        }
    }
    let SgdStep {
        form,
        lr,
        momentum: mu,
        ..
    } = *step;
    let gradient = |w: f32, g: f32| scale * g + decay * w;
    match form {
        SgdForm::Keras => each(g, w, v, |w, v, g| {
            let v = mu * v - lr * gradient(w, g);
            (w + v, v)
        }),
        SgdForm::KerasNesterov => each(g, w, v, |w, v, g| {
            let move_ = lr * gradient(w, g);
            let v = mu * v - move_;
            (w + (mu * v - move_), v)
        }),
        SgdForm::Torch => each(g, w, v, |w, v, g| {
            let v = mu * v + gradient(w, g);
            (w - lr * v, v)
        }),
        SgdForm::TorchNesterov => each(g, w, v, |w, v, g| {
            let g = gradient(w, g);
            let v = mu * v + g;
            (w - lr * (g + mu * v), v)
        }),
    }
}

fn sum_of_squares(values: &[f32]) -> f64 {
    vectorised(
        #[inline(always)]
        || {
            let mut sum = 0.0;
            for stretch in values.chunks(STRETCH) {
                let (vectors, rest) = stretch.as_chunks::<LANES>();
                let mut lanes = [0.0f32; LANES];
                for vector in vectors {
                    for i in 0..LANES {
                        lanes[i] += vector[i] * vector[i];
                    }
                }
                for (lane, x) in lanes.iter_mut().zip(rest) {
                    *lane += x * x;
                }
                sum += lanes.iter().map(|l| f64::from(*l)).sum::<f64>();
            }
            sum
        },
    )
}
