//! The ArcFace head on a shard of the classes, with its logits stored.

use super::{Buffer, Number, sgd};
use arcface_cu::backend::geometry::HeadShard;
use arcface_cu::backend::head_rows::{
    BEST_OTHER, INVERSE_NORM, OFFSET, SQUARES, SUM_EXP, TARGET_COS, TARGET_LOGIT, TARGET_SLOPE,
};
use arcface_cu::backend::margin::{Margin, MarginGradient, PiGuard};
use arcface_cu::backend::{ArcFaceBprop, ArcFaceFprop};

/// The target's logit and its slope over the cosine.
pub fn margin_logit(margin: &Margin, cos: f64) -> (f64, f64) {
    if !margin.normalise {
        return (cos, 1.0);
    }
    let [s, m1, m2, m3] = [margin.scale, margin.m1, margin.m2, margin.m3].map(f64::from);
    let limit = 1.0 - f64::from(margin.clamp);
    let cos = cos.clamp(-limit, limit);
    let theta = cos.acos();
    let (logit, slope) = if margin.pi_guard == PiGuard::Linear && theta + m2 >= std::f64::consts::PI
    {
        (cos - m2 * m2.sin(), 1.0)
    } else if m1 == 1.0 && m2 == 0.0 {
        (cos, 1.0)
    } else {
        let angle = m1 * theta + m2;
        (angle.cos(), m1 * angle.sin() / theta.sin())
    };
    let straight = margin.gradient == MarginGradient::StraightThrough;
    (s * (logit - m3), s * if straight { 1.0 } else { slope })
}

/// Factor on the cosines of classes that are not the target.
fn scale(margin: &Margin) -> f64 {
    if margin.normalise {
        f64::from(margin.scale)
    } else {
        1.0
    }
}

/// 1 / |row| of each row, or 1.
fn inverse_norms(rows: &[Number], d: usize, margin: &Margin) -> Vec<f64> {
    let one = |row: &[Number]| {
        if margin.normalise {
            1.0 / row.iter().map(|v| v.value * v.value).sum::<f64>().sqrt()
        } else {
            1.0
        }
    };
    rows.chunks(d).map(one).collect()
}

/// Rows times their inverse norms.
fn unit_rows(rows: &[Number], d: usize, inverse: &[f64]) -> Vec<f64> {
    let unit = |(i, v): (usize, &Number)| v.value * inverse[i / d];
    rows.iter().enumerate().map(unit).collect()
}

fn product(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

pub(super) fn fprop(op: ArcFaceFprop<'_, Buffer>) {
    let HeadShard { n, d, first, .. } = op.shard;
    let (v, margin) = (op.shard.classes(), op.margin);
    let (x, classes) = (&op.x[..n * d], &op.classes[..v * d]);
    let inverse_x = inverse_norms(x, d, margin);
    let inverse_w = inverse_norms(classes, d, margin);
    let (xn, wn) = (
        unit_rows(x, d, &inverse_x),
        unit_rows(classes, d, &inverse_w),
    );
    for (to, inverse) in op.inverse_norms.iter_mut().zip(inverse_w) {
        *to = inverse.into();
    }
    for i in 0..n {
        let cos: Vec<f64> = (wn.chunks(d))
            .map(|w| product(w, &xn[i * d..][..d]))
            .collect();
        // The target's place in the shard, if it lies there.
        let target = (op.labels[i] as usize)
            .checked_sub(first)
            .filter(|t| *t < v);
        let (logit, slope) = target.map_or((0.0, 0.0), |t| margin_logit(margin, cos[t]));
        let mut logits: Vec<f64> = cos.iter().map(|cos| scale(margin) * cos).collect();
        let others = logits
            .iter()
            .enumerate()
            .filter(|(j, _)| Some(*j) != target);
        let best_other = others.fold(f64::NEG_INFINITY, |m, (_, l)| m.max(*l));
        if let Some(target) = target {
            logits[target] = logit;
        }
        let offset = if margin.normalise {
            (scale(margin) * (1.0 + (-f64::from(margin.m3)).max(0.0)) - 64.0).max(0.0)
        } else {
            logits.iter().copied().fold(f64::NEG_INFINITY, f64::max)
        };
        for (which, value) in [
            (INVERSE_NORM, inverse_x[i]),
            (TARGET_COS, target.map_or(0.0, |t| cos[t])),
            (TARGET_LOGIT, logit),
            (TARGET_SLOPE, slope),
            (SUM_EXP, logits.iter().map(|l| (l - offset).exp()).sum()),
            (BEST_OTHER, best_other),
            (OFFSET, offset),
        ] {
            op.rows[which * n + i] = value.into();
        }
    }
    op.rows[SQUARES * n] = classes.iter().map(|w| *w * *w).sum();
}

pub(super) fn bprop(op: ArcFaceBprop<'_, Buffer>) {
    let HeadShard { n, d, first, .. } = op.shard;
    let (v, margin) = (op.shard.classes(), op.margin);
    let inverse_x = inverse_norms(&op.x[..n * d], d, margin);
    let inverse_w: Vec<f64> = op.inverse_norms[..v].iter().map(|w| w.value).collect();
    let xn = unit_rows(&op.x[..n * d], d, &inverse_x);
    let wn = unit_rows(&op.classes[..v * d], d, &inverse_w);
    let (dx, mut dw) = (&mut op.dx[..n * d], vec![Number::default(); v * d]);
    dx.fill(Number::default());
    for i in 0..n {
        let row = |which: usize| op.rows[which * n + i].value;
        let xn = &xn[i * d..][..d];
        for j in 0..v {
            let wn = &wn[j * d..][..d];
            let cos = product(xn, wn);
            let p = |logit: f64| (logit - row(OFFSET)).exp() / row(SUM_EXP);
            // d(loss) / d(cos), and the size of its terms.
            let g = if first + j == op.labels[i] as usize {
                (Number::from(p(row(TARGET_LOGIT))) - Number::from(1.0)) * row(TARGET_SLOPE)
            } else {
                Number::from(p(scale(margin) * cos)) * scale(margin)
            } * (1.0 / n as f64);
            let along = if margin.normalise { cos } else { 0.0 };
            for k in 0..d {
                let (x, w) = (Number::from(xn[k]), Number::from(wn[k]));
                dx[i * d + k] += g * inverse_x[i] * (w - x * along);
                dw[j * d + k] += g * inverse_w[j] * (x - w * along);
            }
        }
    }
    let losses_are_finite = dx.iter().all(|dx| dx.value.is_finite());
    if !losses_are_finite {
        dx.fill(f64::NAN.into());
        return;
    }
    let (decay, lr) = (f64::from(op.decay), f64::from(op.step.lr));
    for (i, dw) in dw.into_iter().enumerate() {
        let (w, m) = (&mut op.classes[i], &mut op.momentum[i]);
        let g = dw + *w * decay;
        sgd::apply(&op.step, lr, g, w, m);
    }
}
