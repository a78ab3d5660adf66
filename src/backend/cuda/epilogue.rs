//! What a convolution does with its output: the kernels' part, and the moments that follow.

use super::args::{self, Arg};
use super::driver::{Driver, Memory};
use super::{Buffer, Cuda, batch_norm};
use crate::Result;
use crate::backend::geometry::Rows;
use crate::backend::{BatchNormMoments, Epilogue, FilterAt};

/// `struct Epilogue`: what the kernel applies as it writes.
pub(super) fn arg<M: Memory>(
    epilogue: &Epilogue<'_, Buffer<M>>,
    params: &Buffer<M>,
    filter: FilterAt,
) -> Arg {
    let (residual, (code, slope)) = match epilogue {
        Epilogue::Raw | Epilogue::Moments(_) => (0, (0, 0)),
        Epilogue::Activate {
            residual,
            activation,
        } => (
            residual.map_or(0, |residual| residual.at(0)),
            args::activation(activation),
        ),
    };
    Arg::of("Epilogue")
        .u64(filter.bias.map_or(0, |bias| params.at(bias)))
        .u64(residual)
        .u64(slope)
        .u32(code)
        .padded()
}

/// What is left to do when `y` is written.
pub(super) fn finish<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    y: &Buffer<D::Memory>,
    epilogue: Epilogue<'_, Buffer<D::Memory>>,
) -> Result<()> {
    match epilogue {
        Epilogue::Moments(moments) => {
            let x = y;
            batch_norm::moments(cuda, BatchNormMoments { rows, x, moments })
        }
        Epilogue::Raw | Epilogue::Activate { .. } => Ok(()),
    }
}
