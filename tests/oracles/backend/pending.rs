//! Pending values and gradients, and the finish of a gradient.

use super::{Buffer, Number};
use crate::oracles::number::spacing_bf16;
use arcface_cu::backend::geometry::Rows;
use arcface_cu::backend::{
    Activation, Close, Element, GradTarget, Pending, PendingGrad, View, bn, sums,
};

/// activation(v) in channel `c`. NaN passes.
pub(super) fn activate(activation: Activation<View<'_, Buffer>>, c: usize, v: Number) -> Number {
    match activation {
        Activation::Identity => v,
        Activation::Relu => v.map(|v| if v < 0.0 { 0.0 } else { v }),
        Activation::Relu6 => v.map(|v| v.clamp(0.0, 6.0)),
        Activation::PRelu(slopes) => {
            let slope = slopes.buffer[slopes.offset + c].value;
            v.map(|v| if v > 0.0 { v } else { slope * v })
        }
    }
}

/// What is left of the gradient g behind the activation of v: where the derivative is 0, nothing, even of NaN.
fn derive(activation: Activation<View<'_, Buffer>>, c: usize, v: f64, g: Number) -> Number {
    let (inside, outside) = match activation {
        Activation::Identity => (true, 0.0),
        Activation::Relu => (v > 0.0, 0.0),
        Activation::Relu6 => (v > 0.0 && v < 6.0, 0.0),
        Activation::PRelu(slopes) => (v > 0.0, slopes.buffer[slopes.offset + c].value),
    };
    match (inside, activation) {
        (true, _) => g,
        (false, Activation::PRelu(_)) => g * outside,
        (false, _) => Number::default(),
    }
}

/// scale raw + shift, element i of rows of `c` channels.
fn before_activation(x: &Pending<'_, Buffer>, c: usize, i: usize) -> Number {
    match x.affine {
        Some(f) => x.raw[i] * f[bn::SCALE * c + i % c] + f[bn::SHIFT * c + i % c],
        None => x.raw[i],
    }
}

/// The values that consumers see.
pub(super) fn read(x: &Pending<'_, Buffer>, rows: Rows) -> Vec<Number> {
    let c = rows.c;
    let value = |i: usize| activate(x.activation, i % c, before_activation(x, c, i));
    (0..rows.len()).map(value).collect()
}

/// The gradient with respect to the raw tensor.
pub(super) fn read_grad(dy: &PendingGrad<'_, Buffer>, rows: Rows) -> Vec<Number> {
    let c = rows.c;
    let value = |i: usize| match dy.batch_norm {
        Some((raw, k)) => k[i % c] * dy.g[i] + k[c + i % c] * raw[i] + k[2 * c + i % c],
        None => dy.g[i],
    };
    (0..rows.len()).map(value).collect()
}

/// Values as a product's operands: rounded to the elements that they come from.
pub(super) fn operands(element: Element, values: Vec<Number>) -> Vec<Number> {
    let rounded = values.into_iter().map(|v| v.round(element, 1));
    rounded.collect()
}

/// Leaves a contribution, sums of `terms` products, in its target.
pub(super) fn write_grad(
    target: GradTarget<'_, Buffer>,
    rows: Rows,
    (contribution, terms): (Vec<Number>, usize),
) {
    let GradTarget {
        g,
        accumulate,
        close: finish,
    } = target;
    for (g, new) in g.iter_mut().zip(contribution) {
        *g = if accumulate { *g + new } else { new };
    }
    if let Some(finish) = finish {
        close(rows, g, finish, terms);
    }
}

/// Multiplies a complete gradient, sums of `terms` products, by the activation's derivative and takes the channel sums of
/// what is stored of it.
pub(super) fn close(rows: Rows, g: &mut Buffer, close: Close<'_, Buffer>, terms: usize) {
    let (c, value, element) = (rows.c, close.value, g.element);
    let mut total = vec![Number::default(); sums::len(c)];
    for (i, g) in g.iter_mut().take(rows.len()).enumerate() {
        let (channel, v) = (i % c, before_activation(&value, c, i));
        let sloped = matches!(value.activation, Activation::PRelu(_)) && v.value <= 0.0;
        if element == Element::Bf16 && sloped {
            // A device may have stored, and so rounded, what it multiplies by a slope.
            g.slack += spacing_bf16(g.value) / 2.0;
        }
        if matches!(value.activation, Activation::PRelu(_)) {
            let outside = if v.value > 0.0 {
                Number::default()
            } else {
                *g * v
            };
            total[sums::SLOPE * c + channel] += outside;
        }
        *g = derive(value.activation, channel, v.value, *g);
        let stored = g.round(element, terms);
        total[sums::G * c + channel] += stored;
        if let Some(f) = value.affine {
            let centred = value.raw[i].value - f[bn::MEAN * c + channel].value;
            total[sums::G_NORMALISED * c + channel] +=
                stored * (f[bn::RSTD * c + channel] * centred);
        }
    }
    let Some(to) = close.sums else { return };
    for which in [sums::G, sums::G_NORMALISED, sums::SLOPE] {
        // Without batch norm the sum of g y^ is not written.
        if which != sums::G_NORMALISED || value.affine.is_some() {
            to[which * c..][..c].copy_from_slice(&total[which * c..][..c]);
        }
    }
}
