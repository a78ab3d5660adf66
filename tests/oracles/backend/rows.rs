//! Operations that take each element by itself: addition, dropout, the input transform.

use super::pending::{activate, close, read, read_grad, write_grad};
use super::{Buffer, Number};
use arcface_cu::backend::{
    AddDgrad, AddFprop, CloseGrad, Dropout, DropoutDgrad, DropoutFprop, InputTransformFprop,
};
use arcface_cu::base::random::{Purpose, philox};

pub(super) fn add_fprop(op: AddFprop<'_, Buffer>) {
    let a = read(&op.a, op.rows);
    let b = op.b.map(|b| read(&b, op.rows));
    for (i, a) in a.into_iter().enumerate() {
        let sum = b.as_ref().map_or(a, |b| a + b[i]);
        op.y[i] = activate(op.activation, i % op.rows.c, sum);
    }
}

pub(super) fn add_dgrad(op: AddDgrad<'_, Buffer>) {
    write_grad(op.dx, op.rows, (read_grad(&op.dy, op.rows), 1));
}

pub(super) fn close_grad(op: CloseGrad<'_, Buffer>) {
    close(op.rows, op.g, op.close, 1);
}

/// The number that decides about element i: word i % 4 of Philox's block (i / 4, layer, step), in [0, 1).
pub fn uniform(dropout: &Dropout, i: usize) -> f32 {
    let Dropout {
        seed, layer, step, ..
    } = *dropout;
    let stream = 256 * layer + Purpose::Dropout as u32;
    let counter = [(i / 4) as u32, stream, step as u32, (step >> 32) as u32];
    let word = philox(counter, [seed as u32, (seed >> 32) as u32])[i % 4];
    (word >> 8) as f32 / 16_777_216.0
}

/// Whether dropout keeps element i.
pub fn kept(dropout: &Dropout, i: usize) -> bool {
    uniform(dropout, i) >= dropout.rate
}

fn drop_out<'a>(
    dropout: &'a Dropout,
    values: impl IntoIterator<Item = Number> + 'a,
) -> impl Iterator<Item = Number> + 'a {
    let scale = 1.0 / (1.0 - f64::from(dropout.rate));
    let dropped = move |(i, v)| {
        if kept(dropout, i) {
            v * scale
        } else {
            Number::default()
        }
    };
    values.into_iter().enumerate().map(dropped)
}

pub(super) fn dropout_fprop(op: DropoutFprop<'_, Buffer>) {
    let x = read(&op.x, op.rows);
    for (y, value) in op.y.iter_mut().zip(drop_out(&op.dropout, x)) {
        *y = value;
    }
}

pub(super) fn dropout_dgrad(op: DropoutDgrad<'_, Buffer>) {
    let dy = op.dy[..op.rows.len()].iter().copied();
    write_grad(op.dx, op.rows, (drop_out(&op.dropout, dy).collect(), 1));
}

pub(super) fn input_transform(op: InputTransformFprop<'_, Buffer>) {
    for (i, (y, pixel)) in op.y.iter_mut().zip(op.pixels).enumerate() {
        let [scale, shift] =
            [op.transform.scale, op.transform.shift].map(|t| Number::from(t[i % 3]));
        *y = scale * f64::from(*pixel) + shift;
    }
}
