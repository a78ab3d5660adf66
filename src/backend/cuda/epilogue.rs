//! What a convolution does with its output: the kernels' part, and the moments that follow.

use super::driver::{Driver, Memory};
use super::launch::{self, Address};
use super::{Buffer, Cuda, batch_norm};
use crate::Result;
use crate::backend::geometry::Rows;
use crate::backend::{Activation, BatchNormMoments, Epilogue, FilterAt};

/// What the kernel applies as it writes.
pub(super) fn in_kernel<M: Memory>(
    epilogue: &Epilogue<'_, Buffer<M>>,
    params: &Buffer<M>,
    filter: FilterAt,
) -> launch::Epilogue {
    let (residual, activation) = match epilogue {
        Epilogue::Raw | Epilogue::Moments(_) => (None, Activation::Identity),
        Epilogue::Activate {
            residual,
            activation,
        } => (*residual, *activation),
    };
    let (activation, slope) = launch::activation(activation);
    launch::Epilogue {
        bias: filter.bias.map_or(Address::NULL, |bias| params.at(bias)),
        residual: residual.map_or(Address::NULL, |residual| residual.at(0)),
        slope,
        activation,
        padding: 0,
    }
}

/// What is left to do once `y` is written.
pub(super) fn finish<D: Driver>(
    cuda: &mut Cuda<D>,
    rows: Rows,
    y: &Buffer<D::Memory>,
    epilogue: Epilogue<'_, Buffer<D::Memory>>,
) -> Result<()> {
    match epilogue {
        Epilogue::Moments(moments) => batch_norm::moments(
            cuda,
            BatchNormMoments {
                rows,
                x: y,
                moments,
            },
        ),
        Epilogue::Raw | Epilogue::Activate { .. } => Ok(()),
    }
}
