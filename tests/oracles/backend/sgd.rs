//! SGD, by the rules as their frameworks write them.

use super::{Buffer, Number};
use arcface_cu::backend::{SgdForm, SgdNorms, SgdStep, SgdUpdate};

/// One step of one weight and its momentum by the gradient g, which has its decay.
pub(super) fn apply(step: &SgdStep, lr: f64, g: Number, w: &mut Number, v: &mut Number) {
    let mu = f64::from(step.momentum);
    match step.form {
        SgdForm::Keras => {
            *v = *v * mu - g * lr;
            *w += *v;
        }
        SgdForm::KerasNesterov => {
            *v = *v * mu - g * lr;
            *w += *v * mu - g * lr;
        }
        SgdForm::Torch => {
            *v = *v * mu + g;
            *w = *w - *v * lr;
        }
        SgdForm::TorchNesterov => {
            *v = *v * mu + g;
            *w = *w - (g + *v * mu) * lr;
        }
    }
}

pub(super) fn norms(op: SgdNorms<'_, Buffer>) {
    let (mut squares, mut penalty) = (Number::default(), Number::default());
    for segment in op.segments {
        for i in segment.offset..segment.offset + segment.len {
            squares += op.grads[i] * op.grads[i];
            penalty += op.params[i] * op.params[i] * (0.5 * f64::from(segment.decay));
        }
    }
    op.norms[..2].copy_from_slice(&[squares, penalty]);
}

pub(super) fn update(op: SgdUpdate<'_, Buffer>) {
    // A device's norms are float32.
    if !(op.norms[0].value as f32).is_finite() {
        return;
    }
    let norm = op.norms[0].value.sqrt();
    let clip = op.step.clip.map(|longest| f64::from(longest) / norm);
    let clip = clip.map_or(1.0, |clip| clip.min(1.0));
    for segment in op.segments {
        let lr = f64::from(op.step.lr) * f64::from(segment.lr_multiplier);
        for i in segment.offset..segment.offset + segment.len {
            let (w, v) = (&mut op.params[i], &mut op.momentum[i]);
            let g = op.grads[i] * clip + *w * f64::from(segment.decay);
            apply(&op.step, lr, g, w, v);
        }
    }
    let Some(shadow) = op.shadow else { return };
    for segment in op.segments {
        let part = segment.offset..segment.offset + segment.len;
        shadow[part.clone()].copy_from_slice(&op.params[part]);
    }
}
