//! Pooling.

use super::pending::{read, write_grad};
use super::{Buffer, Number};
use crate::oracles::window::meetings;
use arcface_cu::backend::geometry::{GlobalPool, PerChannel, Rows};
use arcface_cu::backend::{
    GlobalAvgPoolDgrad, GlobalAvgPoolFprop, MaxPoolDgrad, MaxPoolFprop, Pending,
};

/// The largest value of each window, and which element of x it is: the first of equals; the first NaN wins.
fn largest(geometry: &PerChannel, x: &Pending<'_, Buffer>) -> (Rows, Vec<(Number, usize)>) {
    let PerChannel { n, c, window } = *geometry;
    let rows = Rows {
        pixels: geometry.pixels_in(),
        c,
    };
    let x = read(x, rows);
    let mut best: Vec<Option<(Number, usize)>> = vec![None; geometry.pixels_out() * c];
    let meetings = meetings(&window);
    for image in 0..n {
        for (output, input, _) in &meetings {
            for channel in 0..c {
                let at = (image * window.h * window.w + input) * c + channel;
                let best = &mut best[(image * window.p * window.q + output) * c + channel];
                let (new, old) = (x[at].value, best.map(|(old, _)| old.value));
                if old.is_none_or(|old| new > old || (new.is_nan() && !old.is_nan())) {
                    *best = Some((x[at], at));
                }
            }
        }
    }
    let whole = |best: Option<_>| best.expect("a window meets a pixel");
    (rows, best.into_iter().map(whole).collect())
}

pub(super) fn max_pool_fprop(op: MaxPoolFprop<'_, Buffer>) {
    let (_, best) = largest(&op.geometry, &op.x);
    for (y, (value, _)) in op.y.iter_mut().zip(best) {
        *y = value;
    }
}

pub(super) fn max_pool_dgrad(op: MaxPoolDgrad<'_, Buffer>) {
    let (rows, best) = largest(&op.geometry, &op.x);
    let mut dx = vec![Number::default(); rows.len()];
    for ((_, at), dy) in best.into_iter().zip(op.dy.iter()) {
        dx[at] += *dy;
    }
    let window = op.geometry.window;
    write_grad(op.dx, rows, (dx, window.r * window.s));
}

fn global_rows(geometry: &GlobalPool) -> Rows {
    Rows {
        pixels: geometry.n * geometry.pixels,
        c: geometry.c,
    }
}

pub(super) fn global_avg_pool_fprop(op: GlobalAvgPoolFprop<'_, Buffer>) {
    let GlobalPool { n, pixels, c } = op.geometry;
    let x = read(&op.x, global_rows(&op.geometry));
    op.y[..n * c].fill(Number::default());
    for (i, x) in x.into_iter().enumerate() {
        op.y[i / c / pixels * c + i % c] += x * (1.0 / pixels as f64);
    }
}

pub(super) fn global_avg_pool_dgrad(op: GlobalAvgPoolDgrad<'_, Buffer>) {
    let GlobalPool { pixels, c, .. } = op.geometry;
    let rows = global_rows(&op.geometry);
    let share = |i: usize| op.dy[i / c / pixels * c + i % c] * (1.0 / pixels as f64);
    write_grad(op.dx, rows, ((0..rows.len()).map(share).collect(), 1));
}
