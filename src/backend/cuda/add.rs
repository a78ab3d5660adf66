//! Addition of residual branches, storing of pending values, and the passing on of gradients.

use super::driver::Driver;
use super::launch::{self, word};
use super::tiles::{ADD, Program, by_channels, by_element};
use super::{Buffer, Cuda, Grid, blocks, close_grad};
use crate::Result;
use crate::backend::geometry::Rows;
use crate::backend::{AddDgrad, AddFprop, Element};

/// The program that reads and writes such elements, and its blocks for `rows`.
fn plan(rows: Rows, from: Element, to: Element) -> (&'static Program, Grid) {
    let program = by_channels(by_element(&ADD, from), to, rows.c);
    let tile = program.threads * program.vector;
    (program, [blocks(rows.len() as u64, tile), 1, 1])
}

pub(super) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: AddFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let AddFprop {
        rows,
        a,
        b,
        activation,
        y,
    } = op;
    let (program, grid) = plan(rows, a.raw.element, y.element);
    let (activation, slope) = launch::activation(activation);
    let kernel = launch::AddFprop {
        a: a.into(),
        b: b.map_or(launch::Pending::NONE, Into::into),
        activation,
        slope,
        len: rows.len() as u64,
        channels: word(rows.c),
        y: y.at(0),
    };
    cuda.launch(program, grid, 0, kernel)
}

pub(super) fn dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    op: AddDgrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let AddDgrad { rows, dy, dx } = op;
    let (program, grid) = plan(rows, dy.g.element, dx.g.element);
    let kernel = launch::AddDgrad {
        dy: dy.into(),
        len: rows.len() as u64,
        channels: word(rows.c),
        accumulate: dx.accumulate.into(),
        dx: dx.g.at(0),
    };
    cuda.launch(program, grid, 0, kernel)?;
    close_grad::finish(cuda, rows, dx)
}
