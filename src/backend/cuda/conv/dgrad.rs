//! dX, phase by phase of the stride, then its finish.

use super::check;
use crate::Result;
use crate::backend::Conv2dDgrad;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::tiles::CONV_DGRAD;
use crate::backend::cuda::tiling::{Tiling, is_aligned, is_chunks};
use crate::backend::cuda::{Buffer, Cuda, close_grad, launch};
use crate::backend::geometry::Rows;

pub(in crate::backend::cuda) fn dgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    op: Conv2dDgrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let Conv2dDgrad {
        geometry,
        dy,
        filters,
        filter,
        dx,
    } = op;
    check(geometry.n, &geometry.window, geometry.c, geometry.k)?;
    let rows = Rows {
        pixels: geometry.pixels_in(),
        c: geometry.c,
    };
    let window = geometry.window;
    // The phase of the first pixel is the largest.
    let phase = geometry.n * window.h.div_ceil(window.stride) * window.w.div_ceil(window.stride);
    let weights = filters.at(filter.weights);
    let element = dx.g.element;
    let wide =
        is_chunks(element, geometry.c) && is_chunks(element, geometry.k) && is_aligned(weights);
    let tiling = Tiling::new(&CONV_DGRAD, element, wide, phase as u64, rows.c as u64);
    let kernel = launch::ConvDgrad {
        geometry: geometry.into(),
        dy: dy.into(),
        w: weights,
        accumulate: dx.accumulate.into(),
        dx: dx.g.at(0),
    };
    let grid = [tiling.tiles, (window.stride * window.stride) as u64, 1];
    cuda.launch(tiling.program, grid, tiling.shared, kernel)?;
    close_grad::finish(cuda, rows, dx)
}
