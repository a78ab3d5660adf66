//! y = conv(x, w) (+ bias), then the epilogue.

use super::check;
use crate::Result;
use crate::backend::Conv2dFprop;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::launch::{Address, word};
use crate::backend::cuda::tiles::{CONV_FPROP, REDUCE, by_element};
use crate::backend::cuda::tiling::{Tiling, is_aligned, is_chunks};
use crate::backend::cuda::{Buffer, Cuda, blocks, epilogue, launch};
use crate::backend::geometry::Rows;

pub(in crate::backend::cuda) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: Conv2dFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let Conv2dFprop {
        geometry,
        x,
        params,
        filters,
        filter,
        prepared: _,
        y,
        epilogue,
    } = op;
    check(geometry.n, &geometry.window, geometry.c, geometry.k)?;
    let rows = Rows {
        pixels: geometry.pixels_out(),
        c: geometry.k,
    };
    let terms = geometry.window.r * geometry.window.s * geometry.c;
    let weights = filters.at(filter.weights);
    let wide = is_chunks(y.element, geometry.c) && is_aligned(weights);
    let tiling = Tiling::new(
        &CONV_FPROP,
        y.element,
        wide,
        rows.pixels as u64,
        rows.c as u64,
    );
    let split = tiling.split(terms as u64);
    let partials = match split.splits {
        1 => Address::NULL,
        splits => cuda.scratch(splits * rows.len())?,
    };
    let finish = epilogue::in_kernel(&epilogue, params, filter);
    let kernel = launch::ConvFprop {
        geometry: geometry.into(),
        x: x.into(),
        w: weights,
        epilogue: finish,
        y: y.at(0),
        steps_per_split: word(split.steps_per_split),
        partials,
    };
    let grid = [tiling.tiles, split.splits as u64, 1];
    cuda.launch(tiling.program, grid, tiling.shared, kernel)?;
    if split.splits > 1 {
        let kernel = launch::ConvFpropFinish {
            partials,
            splits: word(split.splits),
            len: rows.len() as u64,
            k: word(rows.c),
            epilogue: finish,
            y: y.at(0),
        };
        let reduce = by_element(&REDUCE, y.element);
        let grid = [blocks(rows.len() as u64, reduce.threads), 1, 1];
        cuda.launch(reduce, grid, 0, kernel)?;
    }
    epilogue::finish(cuda, rows, y, epilogue)
}
