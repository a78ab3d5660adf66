//! Inner products of rows with rows, for those who compare embeddings.

use super::matrix::MatMut;
use super::product::{
    Finish, Terms, Windows, multiply, pack_panel, packed_len, panel_width, panels,
};
use super::tiles::with_workspace;

/// Writes the inner products of two lists of rows of `dim` numbers each to `out`, a row for each of `a`: element (i, j) is
/// a_i . b_j. On the calling thread.
///
/// # Panics
/// If the rows are not whole, or `out` has not a place for each product.
pub fn inner_products(a: &[f32], b: &[f32], dim: usize, out: &mut [f32]) {
    assert!(
        dim > 0 && a.len().is_multiple_of(dim) && b.len().is_multiple_of(dim),
        "whole rows"
    );
    let (m, n) = (a.len() / dim, b.len() / dim);
    assert_eq!(out.len(), m * n, "{m}x{n} products");
    let rows = Windows::rows(Terms::Single, a, [m, dim, dim]);
    let mut out = MatMut::new(out, m, n);
    with_workspace(packed_len(1, dim), |panel| {
        for (cols, b) in panels(n).zip(b.chunks(panel_width() * dim)) {
            pack_panel(b, dim, panel);
            multiply(&mut out.columns(cols), rows, panel, Finish::default());
        }
    });
}
