//! y = conv(x, w) (+ bias), then the epilogue.

use super::{Tiling, check, is_aligned};
use crate::Result;
use crate::backend::Conv2dFprop;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::tiles::{CONV_FPROP, CONV_FPROP_SMALL, REDUCE};
use crate::backend::cuda::{Buffer, Cuda, args, blocks, epilogue};
use crate::backend::geometry::Rows;

pub(in crate::backend::cuda) fn fprop<D: Driver>(
    cuda: &mut Cuda<D>,
    op: Conv2dFprop<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let Conv2dFprop {
        ref geometry,
        x,
        params,
        filter,
        y,
        epilogue,
    } = op;
    check(geometry.n, &geometry.window, geometry.c, geometry.k)?;
    let rows = Rows {
        pixels: geometry.pixels_out(),
        c: geometry.k,
    };
    let terms = geometry.window.r * geometry.window.s * geometry.c;
    let programs = [&CONV_FPROP, &CONV_FPROP_SMALL];
    let weights = params.at(filter.weights);
    let wide = geometry.c.is_multiple_of(4) && is_aligned(weights);
    let tiling = Tiling::new(programs, wide, rows.pixels as u64, rows.c as u64);
    let split = tiling.split(terms as u64);
    let partials = match split.splits {
        1 => 0,
        splits => cuda.scratch(splits * rows.len())?,
    };
    let finish = epilogue::arg(&epilogue, params, filter);
    let args = [
        args::conv2d(geometry),
        args::pending(&x),
        args::address(weights),
        finish,
        args::buffer(y),
        args::u32(split.steps_a_split),
        args::address(partials),
    ];
    let grid = [tiling.tiles, split.splits as u64, 1];
    cuda.launch(tiling.program, "conv_fprop", grid, 0, &args)?;
    if split.splits > 1 {
        let args = [
            args::address(partials),
            args::u32(split.splits),
            args::u64(rows.len() as u64),
            args::u32(rows.c),
            finish,
            args::buffer(y),
        ];
        let grid = [blocks(rows.len() as u64, REDUCE.threads), 1, 1];
        cuda.launch(&REDUCE, "conv_fprop_finish", grid, 0, &args)?;
    }
    epilogue::finish(cuda, rows, y, epilogue)
}
