//! The ArcFace head on a shard of the classes, with its logits stored.

use super::{Buffer, Number, sgd};
use crate::oracles::UNIT;
use arcface_cu::backend::geometry::HeadShard;
use arcface_cu::backend::head_rows::{
    BEST_OTHER, INVERSE_NORM, OFFSET, SQUARES, SUM_EXP, TARGET_COS, TARGET_LOGIT, TARGET_SLOPE,
};
use arcface_cu::backend::margin::{Margin, MarginGradient, PiGuard};
use arcface_cu::backend::{ArcFaceBprop, ArcFaceFprop, ArcFacePrepare, Element};

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

fn product(a: impl Iterator<Item = f64>, b: impl Iterator<Item = f64>) -> f64 {
    a.zip(b).map(|(a, b)| a * b).sum()
}

fn values(row: &[Number]) -> impl Iterator<Item = f64> {
    row.iter().map(|v| v.value)
}

/// What the products multiply: the embeddings' unit vectors and the class rows, rounded where these are.
struct Operands<'a> {
    element: Element,
    unit: Vec<Number>,
    classes: &'a [Number],
    /// 1 / |w| of each class row.
    inverse: Vec<f64>,
    d: usize,
}

impl<'a> Operands<'a> {
    fn new(
        (x, inverse_x): (&[Number], &[f64]),
        (rows, rounded): (&'a [Number], Option<&'a Buffer>),
        d: usize,
        margin: &Margin,
    ) -> Self {
        let element = rounded.map_or(Element::F32, |rounded| rounded.element);
        let unit =
            |(i, x): (usize, &Number)| Number::from(x.value * inverse_x[i / d]).round(element, 1);
        Operands {
            element,
            unit: x.iter().enumerate().map(unit).collect(),
            classes: rounded.map_or(rows, |rounded| &rounded[..rows.len()]),
            inverse: inverse_norms(rows, d, margin),
            d,
        }
    }

    /// The cosine of sample i and class j.
    fn cosine(&self, i: usize, j: usize) -> Number {
        let [x, w] = [&self.unit[i * self.d..], &self.classes[j * self.d..]];
        let terms = x[..self.d].iter().zip(w).map(|(x, w)| *x * *w);
        let sum = terms.sum::<Number>() * self.inverse[j];
        Number {
            slack: sum.slack,
            ..sum.value.into()
        }
    }
}

/// e^(logit - offset), for a logit with slack.
fn exp(logit: Number, offset: f64) -> Number {
    let value = (logit.value - offset).exp();
    Number {
        slack: value * logit.slack.exp_m1(),
        ..value.into()
    }
}

pub(super) fn prepare(op: ArcFacePrepare<'_, Buffer>) {
    let ArcFacePrepare { v, d, classes } = op;
    let rows = &classes.rows[..v * d];
    for (square, row) in classes.squares.iter_mut().zip(rows.chunks(d)) {
        *square = row.iter().map(|w| *w * *w).sum();
    }
    if let Some(rounded) = classes.rounded {
        for (to, w) in rounded.numbers.iter_mut().zip(rows) {
            *to = w.round(Element::Bf16, 0);
        }
    }
}

pub(super) fn fprop(op: ArcFaceFprop<'_, Buffer>) {
    let HeadShard { n, d, first, .. } = op.shard;
    let (v, margin) = (op.shard.classes(), op.margin);
    let (x, classes) = (&op.x[..n * d], &op.classes.rows[..v * d]);
    let inverse_x = inverse_norms(x, d, margin);
    let operands = Operands::new((x, &inverse_x), (classes, op.classes.rounded), d, margin);
    for i in 0..n {
        // The target's place in the shard, if it lies there.
        let target = (op.labels[i] as usize)
            .checked_sub(first)
            .filter(|t| *t < v);
        let cos = target.map_or(0.0, |t| {
            let product = product(values(&classes[t * d..][..d]), values(&x[i * d..]));
            product * operands.inverse[t] * inverse_x[i]
        });
        let (logit, slope) = target.map_or((0.0, 0.0), |_| margin_logit(margin, cos));
        let logits = (0..v).map(|j| operands.cosine(i, j) * scale(margin));
        let mut logits: Vec<Number> = logits.collect();
        let others = logits
            .iter()
            .enumerate()
            .filter(|(j, _)| Some(*j) != target);
        let largest = |a: Number, b: Number| Number {
            slack: a.slack.max(b.slack),
            ..if a.value > b.value { a } else { b }
        };
        let best_other = others.fold(f64::NEG_INFINITY.into(), |m, (_, l)| largest(m, *l));
        if let Some(target) = target {
            logits[target] = logit.into();
        }
        let offset = if margin.normalise {
            (scale(margin) * (1.0 + (-f64::from(margin.m3)).max(0.0)) - 64.0).max(0.0)
        } else {
            logits
                .iter()
                .map(|l| l.value)
                .fold(f64::NEG_INFINITY, f64::max)
        };
        for (which, value) in [
            (INVERSE_NORM, inverse_x[i].into()),
            (TARGET_COS, cos.into()),
            (TARGET_LOGIT, logit.into()),
            (TARGET_SLOPE, slope.into()),
            (SUM_EXP, logits.iter().map(|l| exp(*l, offset)).sum()),
            (BEST_OTHER, best_other),
            (OFFSET, offset.into()),
        ] {
            op.rows[which * n + i] = value;
        }
    }
    op.rows[SQUARES * n] = classes.iter().map(|w| *w * *w).sum();
}

pub(super) fn bprop(op: ArcFaceBprop<'_, Buffer>) {
    let HeadShard { n, d, first, .. } = op.shard;
    let (v, margin) = (op.shard.classes(), op.margin);
    let x = &op.x[..n * d];
    let inverse_x = inverse_norms(x, d, margin);
    let rounded = op.classes.rounded.as_deref();
    let rows = &op.classes.rows[..v * d];
    let operands = Operands::new((x, &inverse_x), (rows, rounded), d, margin);
    let (dx, mut dw) = (&mut op.dx[..n * d], vec![Number::default(); v * d]);
    dx.fill(Number::default());
    for i in 0..n {
        let row = |which: usize| op.rows[which * n + i].value;
        let exact = |k: usize| x[i * d + k].value * inverse_x[i];
        let unit = &operands.unit[i * d..][..d];
        for j in 0..v {
            let cos = operands.cosine(i, j);
            let (w, inverse) = (&operands.classes[j * d..][..d], operands.inverse[j]);
            // d(loss) / d(cos), and the size of its terms.
            let g = if first + j == op.labels[i] as usize {
                let p = (row(TARGET_LOGIT) - row(OFFSET)).exp() / row(SUM_EXP);
                (Number::from(p) - Number::from(1.0)) * row(TARGET_SLOPE)
            } else {
                let mut logit = cos * scale(margin);
                if operands.element == Element::Bf16 {
                    // What float32 may lose before G is rounded.
                    logit.slack += UNIT * (8.0 + (d as f64).sqrt()) * (scale(margin) + row(OFFSET));
                }
                exp(logit, row(OFFSET)) * (1.0 / row(SUM_EXP)) * scale(margin)
            } * (1.0 / n as f64);
            let g = g * inverse;
            let stored = g.round(operands.element, 2);
            let (along_x, along_w) = if margin.normalise {
                (product((0..d).map(exact), values(w)), cos * inverse)
            } else {
                (0.0, Number::default())
            };
            for k in 0..d {
                let away = Number::from(exact(k) * along_x);
                dx[i * d + k] += stored * inverse_x[i] * (w[k] - away);
                dw[j * d + k] += stored * unit[k] - g * along_w * rows[j * d + k];
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
        let (w, m) = (&mut op.classes.rows[i], &mut op.momentum[i]);
        let g = dw + *w * decay;
        sgd::apply(&op.step, lr, g, w, m);
    }
    prepare(ArcFacePrepare {
        v,
        d,
        classes: op.classes,
    });
}
