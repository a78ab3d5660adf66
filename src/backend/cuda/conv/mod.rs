//! Convolution as implicit matrix products.
//!
//! fprop: M = N P Q pixels, N = K filters, terms R S C. dgrad: M = input pixels (a phase of the stride), N = C, terms
//! taps and K. wgrad: M = K, N = R S C, terms pixels.

mod dgrad;
mod fprop;
mod wgrad;

pub(super) use dgrad::dgrad;
pub(super) use fprop::fprop;
pub(super) use wgrad::wgrad;

use crate::backend::geometry::Window;
use crate::{Error, Result};

/// Refuses what the kernels' 32-bit counters cannot hold: `n` images of `c` channels in and `k` out.
pub(super) fn check(n: usize, window: &Window, c: usize, k: usize) -> Result<()> {
    // Counters run up to a step past their end.
    const LIMIT: u128 = (1 << 31) - 1024;
    let w = window;
    let too_large = [
        [n, w.h, w.w],
        [n, w.p, w.q],
        [w.h.max(w.r), w.w.max(w.s), c],
        [w.p.max(w.r), w.q.max(w.s), k],
    ]
    .iter()
    .any(|sizes| sizes.iter().map(|size| *size as u128).product::<u128>() > LIMIT);
    if too_large {
        return Err(Error::Invalid(format!(
            "a {}x{} convolution of {n} images of {}x{} from {c} to {k} channels has more numbers than the CUDA \
             kernels can count: use a smaller batch or smaller images",
            w.r, w.s, w.h, w.w
        )));
    }
    Ok(())
}
