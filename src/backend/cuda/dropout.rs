//! Dropout: the numbers that the mask is drawn from.

use super::driver::Driver;
use super::launch::{self, word};
use super::tiles::{DROPOUT, by_channels};
use super::{Buffer, Cuda, blocks, close_grad};
use crate::backend::geometry::Rows;
use crate::backend::{Dropout, DropoutDgrad, DropoutFprop, Pending};
use crate::base::random::Purpose;
use crate::{Error, Result};

fn mask(dropout: Dropout) -> Result<launch::Mask> {
    let Dropout {
        rate,
        seed,
        layer,
        step,
    } = dropout;
    if !(0.0..1.0).contains(&rate) || layer >= 1 << 24 {
        return Err(Error::Invalid(format!(
            "dropout with rate {rate} in layer {layer}: the rate must be in [0, 1), the layer below 2^24"
        )));
    }
    let [low, high] = [|v: u64| v as u32, |v: u64| (v >> 32) as u32];
    Ok(launch::Mask {
        key_low: low(seed),
        key_high: high(seed),
        layer: layer << 8 | Purpose::Dropout as u32,
        step_low: low(step),
        step_high: high(step),
        // word * 2^-24 >= rate exactly where word >= rate * 2^24, rounded up; the product is exact.
        threshold: (rate * 16_777_216.0).ceil() as u32,
        scale: 1.0 / (1.0 - rate),
    })
}

/// y = dropout of x, or y += that.
fn apply<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    x: Pending<'_, Buffer<D::Memory>>,
    dropout: Dropout,
    accumulate: bool,
    y: &mut Buffer<D::Memory>,
) -> Result<()> {
    let len = rows.len() as u64;
    if len > 1 << 34 {
        return Err(Error::Invalid(format!(
            "dropout of {len} elements: its counter reaches 2^34; use a smaller batch"
        )));
    }
    let program = by_channels(&DROPOUT, y.element, rows.c);
    let kernel = launch::Dropout {
        x: x.into(),
        mask: mask(dropout)?,
        len,
        channels: word(rows.c),
        accumulate: accumulate.into(),
        y: y.at(0),
    };
    let grid = [blocks(len, 4 * program.threads), 1, 1];
    cuda.launch(program, grid, 0, kernel)
}

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: DropoutFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let DropoutFprop {
        rows,
        x,
        dropout,
        y,
    } = op;
    apply(cuda, rows, x, dropout, false, y)
}

pub(super) fn dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    op: DropoutDgrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let DropoutDgrad {
        rows,
        dy,
        dropout,
        dx,
    } = op;
    let dy = Pending::plain(dy);
    apply(cuda, rows, dy, dropout, dx.accumulate, dx.g)?;
    close_grad::finish(cuda, rows, dx)
}
