//! How the columns of a product come into panels, and rows into words.
//!
//! A panel is as many columns as the inner kernel holds in two vectors, word by word: `panel[t][j]`. The last panel is
//! filled up with zeros.

use super::super::machine::{self, vectorised};
use super::Terms;
use super::kernel::panel_width;
use rayon::prelude::*;

/// Words of `columns` packed columns of `len` words each.
pub(in super::super) fn packed_len(columns: usize, len: usize) -> usize {
    columns.next_multiple_of(panel_width()) * len
}

/// Packs columns that lie as rows of `len` adjacent words each, on all threads.
pub(in super::super) fn pack_rows(rows: &[f32], len: usize, packed: &mut [f32]) {
    let width = panel_width();
    packed
        .par_chunks_mut(width * len)
        .zip(rows.par_chunks(width * len))
        .for_each(|(panel, rows)| pack_panel(rows, len, panel));
}

/// Packs the columns of one panel, which lie as rows of `len` adjacent words each.
pub(in super::super) fn pack_panel(rows: &[f32], len: usize, panel: &mut [f32]) {
    let (width, count) = (panel_width(), rows.len() / len);
    if count < width {
        panel.fill(0.0);
    }
    transpose(|i| &rows[i * len..][..len], [count, len], panel, width);
}

/// Packs one panel's columns of a matrix with a row for each term. `row` gives row t's words in those columns, in some
/// stretches; with pairs a word holds two columns, and row t's neighbour is row t + 1: `terms` is even.
pub(in super::super) fn pack_columns<'a, R: Iterator<Item = &'a [f32]>>(
    words: Terms,
    terms: usize,
    panel: &mut [f32],
    mut row: impl FnMut(usize) -> R,
) {
    match words {
        Terms::Single => {
            for (t, mut to) in panel
                .chunks_exact_mut(panel_width())
                .take(terms)
                .enumerate()
            {
                for from in row(t) {
                    to.split_off_mut(..from.len())
                        .expect("a row of a panel")
                        .copy_from_slice(from);
                }
                to.fill(0.0);
            }
        }
        Terms::Pair => {
            assert!(terms.is_multiple_of(2), "{terms} terms in pairs");
            super::pairs::pack_columns(terms, panel, row);
        }
    }
}

/// Two rows of bfloat16, two numbers to a word, as one row of pairs: word j holds number j of `a` and of `b`. Only for
/// machines that multiply pairs.
pub(in super::super) fn pair(a: &[f32], b: &[f32], to: &mut [f32]) {
    assert!(
        a.len() == b.len() && to.len() == 2 * a.len(),
        "{} and {} words to {}",
        a.len(),
        b.len(),
        to.len()
    );
    super::pairs::interleave(a, b, to);
}

/// to[j, i] = row(i)[j] for a matrix of `rows` x `cols`; the rows of `to` are `stride` apart.
pub(in super::super) fn transpose<'a>(
    row: impl Fn(usize) -> &'a [f32],
    [rows, cols]: [usize; 2],
    to: &mut [f32],
    stride: usize,
) {
    for first in (0..rows).step_by(SQUARE) {
        let count = SQUARE.min(rows - first);
        let from: [&[f32]; SQUARE] =
            std::array::from_fn(|i| &row(first + i.min(count - 1))[..cols]);
        vectorised(
            #[inline(always)]
            || {
                // Squares of eight rows and columns, then what is left.
                let squares = if count == SQUARE {
                    cols - cols % SQUARE
                } else {
                    0
                };
                for column in (0..squares).step_by(SQUARE) {
                    transpose_square(from, column, &mut to[column * stride + first..], stride);
                }
                for (i, from) in from[..count].iter().enumerate() {
                    for j in squares..cols {
                        to[j * stride + first + i] = from[j];
                    }
                }
            },
        );
    }
}

/// Rows and columns of the squares that [`transpose_square`] turns.
pub(in super::super) const SQUARE: usize = 8;

/// to[j, i] = from[i][column + j] for a square; the rows of `to` are `stride` apart.
#[inline(always)]
pub(in super::super) fn transpose_square(
    from: [&[f32]; SQUARE],
    column: usize,
    to: &mut [f32],
    stride: usize,
) {
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = machine::avx() {
        avx::transpose_square(simd, from, column, to, stride);
        return;
    }
    for (i, from) in from.iter().enumerate() {
        for (j, v) in from[column..][..SQUARE].iter().enumerate() {
            to[j * stride + i] = *v;
        }
    }
}

/// The compiler finds no such order of shuffles by itself: its own takes five times as long.
#[cfg(target_arch = "x86_64")]
mod avx {
    use super::SQUARE;
    use pulp::x86::V3;
    use std::arch::x86_64::{
        __m256, _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };

    #[inline(always)]
    pub(super) fn transpose_square(
        _: V3,
        from: [&[f32]; SQUARE],
        column: usize,
        to: &mut [f32],
        stride: usize,
    ) {
        assert!(to.len() >= (SQUARE - 1) * stride + SQUARE, "a square");
        let [a, b, c, d, e, f, g, h] = from;
        let at = |row: &[f32]| row[column..][..SQUARE].as_ptr();
        let from = [at(a), at(b), at(c), at(d), at(e), at(f), at(g), at(h)];
        // SAFETY: a V3 is proof of AVX; the slices above, and the assertion, say that the square lies within both.
        unsafe { squares(from, to.as_mut_ptr(), stride) }
    }

    /// Rows 2i and 2i + 1 by twos, then by fours, then the halves of the vectors.
    ///
    /// # Safety
    /// Eight numbers are readable from each of `from`, and writable from `to` and its seven followers, `stride` apart.
    #[inline]
    #[target_feature(enable = "avx")]
    unsafe fn squares(from: [*const f32; SQUARE], to: *mut f32, stride: usize) {
        // SAFETY: as the caller promised.
        let [a, b, c, d, e, f, g, h] = unsafe {
            [
                _mm256_loadu_ps(from[0]),
                _mm256_loadu_ps(from[1]),
                _mm256_loadu_ps(from[2]),
                _mm256_loadu_ps(from[3]),
                _mm256_loadu_ps(from[4]),
                _mm256_loadu_ps(from[5]),
                _mm256_loadu_ps(from[6]),
                _mm256_loadu_ps(from[7]),
            ]
        };
        let twos = [
            [_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d)],
            [_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d)],
            [_mm256_unpacklo_ps(e, f), _mm256_unpacklo_ps(g, h)],
            [_mm256_unpackhi_ps(e, f), _mm256_unpackhi_ps(g, h)],
        ];
        let [w, x, y, z] = [
            fours(twos[0]),
            fours(twos[1]),
            fours(twos[2]),
            fours(twos[3]),
        ];
        let rows = [
            _mm256_permute2f128_ps::<0x20>(w[0], y[0]),
            _mm256_permute2f128_ps::<0x20>(w[1], y[1]),
            _mm256_permute2f128_ps::<0x20>(x[0], z[0]),
            _mm256_permute2f128_ps::<0x20>(x[1], z[1]),
            _mm256_permute2f128_ps::<0x31>(w[0], y[0]),
            _mm256_permute2f128_ps::<0x31>(w[1], y[1]),
            _mm256_permute2f128_ps::<0x31>(x[0], z[0]),
            _mm256_permute2f128_ps::<0x31>(x[1], z[1]),
        ];
        for (j, row) in rows.into_iter().enumerate() {
            // SAFETY: as the caller promised.
            unsafe { _mm256_storeu_ps(to.add(j * stride), row) };
        }
    }

    #[inline]
    #[target_feature(enable = "avx")]
    fn fours([a, b]: [__m256; 2]) -> [__m256; 2] {
        [
            _mm256_shuffle_ps::<0x44>(a, b),
            _mm256_shuffle_ps::<0xee>(a, b),
        ]
    }
}
