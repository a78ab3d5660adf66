//! dW and dbias, the sum over pixels split over blocks.

use super::check;
use crate::Result;
use crate::backend::Conv2dWgrad;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::launch::{Address, word};
use crate::backend::cuda::tiles::CONV_WGRAD;
use crate::backend::cuda::tiling::{Tiling, is_chunks};
use crate::backend::cuda::{Buffer, Cuda, launch, reduce};

pub(in crate::backend::cuda) fn wgrad<D: Driver>(
    cuda: &mut Cuda<D>,
    op: Conv2dWgrad<'_, Buffer<D::Memory>>,
) -> Result<()> {
    let Conv2dWgrad {
        geometry,
        dy,
        x,
        grads,
        filter,
    } = op;
    check(geometry.n, &geometry.window, geometry.c, geometry.k)?;
    let (k, len) = (geometry.k, geometry.filter_len());
    let element = x.raw.element;
    let wide = is_chunks(element, geometry.c) && is_chunks(element, k);
    let tiling = Tiling::new(&CONV_WGRAD, element, wide, k as u64, (len / k) as u64);
    let split = tiling.split(geometry.pixels_out() as u64);
    let dw = grads.at(filter.weights);
    let dbias = filter.bias.map(|bias| grads.at(bias));
    // Splits' weights, then splits' biases.
    let (partials, bias_partials) = match split.splits {
        1 => (dw, dbias),
        splits => {
            let partials = cuda.scratch(splits * (len + k))?;
            let bias_partials = partials.floats(splits * len);
            (partials, dbias.map(|_| bias_partials))
        }
    };
    let kernel = launch::ConvWgrad {
        geometry: geometry.into(),
        dy: dy.into(),
        x: x.into(),
        steps_per_split: word(split.steps_per_split),
        dw: partials,
        dbias: bias_partials.unwrap_or(Address::NULL),
    };
    let grid = [tiling.tiles, split.splits as u64, 1];
    cuda.launch(tiling.program, grid, tiling.shared, kernel)?;
    if split.splits > 1 {
        reduce::sum_tiles(cuda, partials, split.splits, len, dw)?;
        if let (Some(partials), Some(dbias)) = (bias_partials, dbias) {
            reduce::sum_tiles(cuda, partials, split.splits, k, dbias)?;
        }
    }
    Ok(())
}
