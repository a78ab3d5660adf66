//! Convolution of both kinds. Images and filters are shared out over the threads, so that benches can be checked, too.

use super::pending::{activate, operands, read, read_grad, write_grad};
use super::{Buffer, Number, batch_norm};
use crate::oracles::window::meetings;
use arcface_cu::backend::geometry::{Conv2d, PerChannel, Rows};
use arcface_cu::backend::{
    Conv2dDgrad, Conv2dFprop, Conv2dWgrad, DepthwiseDgrad, DepthwiseFprop, DepthwiseWgrad,
    Epilogue, FilterAt,
};
use rayon::prelude::*;

fn conv2d_rows(geometry: &Conv2d) -> (Rows, Rows) {
    let Conv2d { c, k, .. } = *geometry;
    let (pixels_in, pixels_out) = (geometry.pixels_in(), geometry.pixels_out());
    let rows = |pixels, c| Rows { pixels, c };
    (rows(pixels_in, c), rows(pixels_out, k))
}

fn depthwise_rows(geometry: &PerChannel) -> (Rows, Rows) {
    let rows = |pixels| Rows {
        pixels,
        c: geometry.c,
    };
    (rows(geometry.pixels_in()), rows(geometry.pixels_out()))
}

/// The sum of products, in four sums that the compiler may vectorise.
fn dot(a: &[Number], b: &[Number]) -> Number {
    let mut sums = [Number::default(); 4];
    for (a, b) in a.chunks(4).zip(b.chunks(4)) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            sums[i] += *a * *b;
        }
    }
    sums.into_iter().sum()
}

/// to += factor x.
fn add_times(to: &mut [Number], factor: Number, x: &[Number]) {
    for (to, x) in to.iter_mut().zip(x) {
        *to += factor * *x;
    }
}

/// Adds the biases to y, sums of `terms` products, then does what the epilogue says.
fn finish(
    y: &mut Buffer,
    (rows, terms): (Rows, usize),
    (params, filter): (&Buffer, FilterAt),
    epilogue: Epilogue<'_, Buffer>,
) {
    let (k, element) = (rows.c, y.element);
    let y = &mut y[..rows.len()];
    if let Some(bias) = filter.bias {
        for (i, y) in y.iter_mut().enumerate() {
            *y += params[bias + i % k];
        }
    }
    match epilogue {
        Epilogue::Raw => {}
        Epilogue::Moments(moments) => {
            let stored: Vec<Number> = y.iter().map(|y| y.round(element, terms)).collect();
            batch_norm::moments_of(&stored, k, moments);
        }
        Epilogue::Activate {
            residual,
            activation,
        } => {
            for (i, y) in y.iter_mut().enumerate() {
                let sum = residual.map_or(*y, |residual| *y + residual[i]);
                *y = activate(activation, i % k, sum);
            }
        }
    }
}

/// dbias: the sum of dy over all pixels.
fn bias_grad(dy: &[Number], grads: &mut Buffer, filter: FilterAt, k: usize) {
    if let Some(bias) = filter.bias {
        for channel in 0..k {
            grads[bias + channel] = dy[channel..].iter().step_by(k).copied().sum();
        }
    }
}

pub(super) fn conv2d_fprop(op: Conv2dFprop<'_, Buffer>) {
    let Conv2d { c, k, window, .. } = op.geometry;
    let (rows_in, rows_out) = conv2d_rows(&op.geometry);
    let x = operands(op.x.raw.element, read(&op.x, rows_in));
    let taps = window.r * window.s;
    let w = &op.filters[op.filter.weights..][..op.geometry.filter_len()];
    let meetings = meetings(&window);
    let images = op.y[..rows_out.len()].par_chunks_mut(window.p * window.q * k);
    images
        .zip(x.par_chunks(window.h * window.w * c))
        .for_each(|(y, x)| {
            y.fill(Number::default());
            for (output, input, tap) in &meetings {
                for filter in 0..k {
                    let w = &w[(filter * taps + tap) * c..][..c];
                    y[output * k + filter] += dot(&x[input * c..][..c], w);
                }
            }
        });
    let rows = (rows_out, taps * c);
    finish(op.y, rows, (op.params, op.filter), op.epilogue);
}

pub(super) fn conv2d_dgrad(op: Conv2dDgrad<'_, Buffer>) {
    let Conv2d { c, k, window, .. } = op.geometry;
    let (rows_in, rows_out) = conv2d_rows(&op.geometry);
    let dy = operands(op.dy.g.element, read_grad(&op.dy, rows_out));
    let taps = window.r * window.s;
    let w = &op.filters[op.filter.weights..][..op.geometry.filter_len()];
    let meetings = meetings(&window);
    let mut dx = vec![Number::default(); rows_in.len()];
    dx.par_chunks_mut(window.h * window.w * c)
        .zip(dy.par_chunks(window.p * window.q * k))
        .for_each(|(dx, dy)| {
            for (output, input, tap) in &meetings {
                for filter in 0..k {
                    let w = &w[(filter * taps + tap) * c..][..c];
                    add_times(&mut dx[input * c..][..c], dy[output * k + filter], w);
                }
            }
        });
    write_grad(op.dx, rows_in, (dx, taps * k));
}

pub(super) fn conv2d_wgrad(op: Conv2dWgrad<'_, Buffer>) {
    let Conv2d { c, k, window, .. } = op.geometry;
    let (rows_in, rows_out) = conv2d_rows(&op.geometry);
    let x = operands(op.x.raw.element, read(&op.x, rows_in));
    let dy = operands(op.dy.g.element, read_grad(&op.dy, rows_out));
    let taps = window.r * window.s;
    let meetings = meetings(&window);
    op.grads[op.filter.weights..][..op.geometry.filter_len()]
        .par_chunks_mut(taps * c)
        .enumerate()
        .for_each(|(filter, dw)| {
            dw.fill(Number::default());
            let images = x.chunks(window.h * window.w * c);
            for (x, dy) in images.zip(dy.chunks(window.p * window.q * k)) {
                for (output, input, tap) in &meetings {
                    let (dw, x) = (&mut dw[tap * c..][..c], &x[input * c..][..c]);
                    add_times(dw, dy[output * k + filter], x);
                }
            }
        });
    bias_grad(&dy, op.grads, op.filter, k);
}

/// Calls `f` with (element of x, element of y, element of w) of every product.
fn depthwise_products(geometry: &PerChannel, mut f: impl FnMut(usize, usize, usize)) {
    let PerChannel { n, c, window } = *geometry;
    let meetings = meetings(&window);
    for image in 0..n {
        for (output, input, tap) in &meetings {
            let input = image * window.h * window.w + input;
            let output = image * window.p * window.q + output;
            for channel in 0..c {
                f(input * c + channel, output * c + channel, tap * c + channel);
            }
        }
    }
}

pub(super) fn depthwise_fprop(op: DepthwiseFprop<'_, Buffer>) {
    let (rows_in, rows_out) = depthwise_rows(&op.geometry);
    let x = read(&op.x, rows_in);
    op.y[..rows_out.len()].fill(Number::default());
    depthwise_products(&op.geometry, |input, output, tap| {
        op.y[output] += op.params[op.filter.weights + tap] * x[input];
    });
    let taps = op.geometry.window.r * op.geometry.window.s;
    finish(op.y, (rows_out, taps), (op.params, op.filter), op.epilogue);
}

pub(super) fn depthwise_dgrad(op: DepthwiseDgrad<'_, Buffer>) {
    let (rows_in, rows_out) = depthwise_rows(&op.geometry);
    let dy = read_grad(&op.dy, rows_out);
    let mut dx = vec![Number::default(); rows_in.len()];
    depthwise_products(&op.geometry, |input, output, tap| {
        dx[input] += op.params[op.filter.weights + tap] * dy[output];
    });
    let taps = op.geometry.window.r * op.geometry.window.s;
    write_grad(op.dx, rows_in, (dx, taps));
}

pub(super) fn depthwise_wgrad(op: DepthwiseWgrad<'_, Buffer>) {
    let (rows_in, rows_out) = depthwise_rows(&op.geometry);
    let (x, dy) = (read(&op.x, rows_in), read_grad(&op.dy, rows_out));
    let dw = &mut op.grads[op.filter.weights..][..op.geometry.filter_len()];
    dw.fill(Number::default());
    depthwise_products(&op.geometry, |input, output, tap| {
        dw[tap] += x[input] * dy[output];
    });
    bias_grad(&dy, op.grads, op.filter, op.geometry.c);
}
