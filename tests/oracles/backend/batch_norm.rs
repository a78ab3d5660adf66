//! Batch norm, and the gradient of PReLU's slopes.

use super::{Buffer, Number};
use arcface_cu::backend::{BatchNormBprop, BatchNormFprop, BatchNormMoments, PReluBprop, bn, sums};

/// Mean and biased variance of each of `c` channels.
pub(super) fn moments_of(x: &[Number], c: usize, moments: &mut Buffer) {
    let pixels = (x.len() / c) as f64;
    for channel in 0..c {
        let values = x[channel..].iter().step_by(c);
        let mean = values.clone().copied().sum::<Number>() * (1.0 / pixels);
        let squares = values.map(|v| Number::from((v.value - mean.value).powi(2)));
        moments[channel] = mean;
        moments[c + channel] = squares.sum::<Number>() * (1.0 / pixels);
    }
}

pub(super) fn moments(op: BatchNormMoments<'_, Buffer>) {
    moments_of(&op.x[..op.rows.len()], op.rows.c, op.moments);
}

pub(super) fn fprop(op: BatchNormFprop<'_, Buffer>) {
    let (c, pixels, at) = (op.rows.c, op.rows.pixels as f64, op.at);
    let unbias = pixels / (pixels - 1.0).max(1.0);
    let keep = f64::from(at.momentum);
    for i in 0..c {
        let (mean, variance) = (op.moments[i], op.moments[c + i]);
        let rstd = Number::from(1.0 / (variance.value + f64::from(at.epsilon)).sqrt());
        let scale = at.gamma.map_or(rstd, |gamma| op.params[gamma + i] * rstd);
        let beta = at.beta.map(|beta| op.params[beta + i]).unwrap_or_default();
        op.forward[bn::SCALE * c + i] = scale;
        op.forward[bn::SHIFT * c + i] = beta - mean * scale;
        op.forward[bn::MEAN * c + i] = mean;
        op.forward[bn::RSTD * c + i] = rstd;
        for (running, batch) in [(i, mean), (c + i, variance * unbias)] {
            let running = &mut op.statistics[at.statistics + running];
            *running = *running * keep + batch * (1.0 - keep);
        }
    }
}

pub(super) fn bprop(op: BatchNormBprop<'_, Buffer>) {
    let (c, share) = (op.rows.c, 1.0 / op.rows.pixels as f64);
    for i in 0..c {
        let [g, g_normalised] = [sums::G, sums::G_NORMALISED].map(|which| op.sums[which * c + i]);
        let [scale, mean, rstd] =
            [bn::SCALE, bn::MEAN, bn::RSTD].map(|which| op.forward[which * c + i]);
        let b = scale * rstd * g_normalised * -share;
        op.backward[i] = scale;
        op.backward[c + i] = b;
        op.backward[2 * c + i] = scale * g * -share - b * mean;
        if let Some(gamma) = op.at.gamma {
            op.grads[gamma + i] = g_normalised;
        }
        if let Some(beta) = op.at.beta {
            op.grads[beta + i] = g;
        }
    }
}

pub(super) fn prelu_bprop(op: PReluBprop<'_, Buffer>) {
    let slopes = &op.sums[sums::SLOPE * op.c..][..op.c];
    op.grads[op.slope_at..][..op.c].copy_from_slice(slopes);
}
