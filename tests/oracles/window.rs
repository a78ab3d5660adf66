//! Windows over images, tap by tap.

use arcface_cu::backend::geometry::Window;

/// The pixel of an image under a tap of the window at an output pixel, where it is inside the image.
pub fn pixel(window: &Window, (p, q): (usize, usize), (r, s): (usize, usize)) -> Option<usize> {
    let row = (p * window.stride + r).checked_sub(window.pad.top)?;
    let column = (q * window.stride + s).checked_sub(window.pad.left)?;
    (row < window.h && column < window.w).then(|| row * window.w + column)
}

/// Every (output pixel, input pixel, tap) of one image that meet, ordered by output pixel, then by tap.
pub fn meetings(window: &Window) -> Vec<(usize, usize, usize)> {
    let outputs = (0..window.p).flat_map(|p| (0..window.q).map(move |q| (p, q)));
    let of_output = |(p, q): (usize, usize)| {
        let taps = (0..window.r).flat_map(|r| (0..window.s).map(move |s| (r, s)));
        taps.filter_map(move |(r, s)| {
            let input = pixel(window, (p, q), (r, s))?;
            Some((p * window.q + q, input, r * window.s + s))
        })
    };
    outputs.flat_map(of_output).collect()
}
