//! Matrices that several threads write: one output, cut into disjoint blocks.

use std::marker::PhantomData;
use std::ops::Range;

use rayon::prelude::*;

use super::tensor::{Stored, TensorMut, narrow_rows, round_all, widen_all, with_floats};
use crate::backend::Element;
use half::bf16;

/// A matrix to write: rows of adjacent columns, `row_stride` apart. Parts of one buffer can be held by several
/// threads as long as they share no element, which a slice cannot say.
pub(super) struct MatMut<'a, E = f32> {
    data: *mut E,
    rows: usize,
    cols: usize,
    row_stride: usize,
    owner: PhantomData<&'a mut [E]>,
}

// SAFETY: a `MatMut` is an exclusive borrow of its elements, as `&mut [E]` is, and `Stored` types are `Send`.
unsafe impl<E: Stored> Send for MatMut<'_, E> {}
// SAFETY: a shared `MatMut` gives no access to its elements.
unsafe impl<E: Stored> Sync for MatMut<'_, E> {}

impl<'a, E: Stored> MatMut<'a, E> {
    /// The first `rows` rows of `cols` numbers.
    pub(super) fn new(data: &'a mut [E], rows: usize, cols: usize) -> Self {
        assert!(data.len() >= rows * cols, "a {rows}x{cols} matrix");
        MatMut {
            data: data.as_mut_ptr(),
            rows,
            cols,
            row_stride: cols,
            owner: PhantomData,
        }
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    /// One row.
    #[inline(always)]
    pub(super) fn row(&mut self, i: usize) -> &mut [E] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: row i < rows lies within the elements that `self` borrows exclusively (the constructors asserted
        // it), and the result borrows `self`.
        unsafe { std::slice::from_raw_parts_mut(self.data.add(i * self.row_stride), self.cols) }
    }

    /// Where a part begins, and the distance of its rows.
    #[inline(always)]
    pub(super) fn part_at(&mut self, rows: Range<usize>, cols: Range<usize>) -> (*mut E, usize) {
        assert!(
            rows.start < rows.end && rows.end <= self.rows && cols.end <= self.cols,
            "rows {rows:?} and columns {cols:?} of {}x{}",
            self.rows,
            self.cols
        );
        // SAFETY: the first row lies within the matrix, and so does the first column or one past the last.
        let begin = unsafe { self.data.add(rows.start * self.row_stride + cols.start) };
        (begin, self.row_stride)
    }

    /// All elements, where the rows follow each other without a gap.
    pub(super) fn as_slice(&mut self) -> &mut [E] {
        assert!(
            self.row_stride == self.cols || self.rows <= 1,
            "rows of {} are {} apart",
            self.cols,
            self.row_stride
        );
        // SAFETY: rows * cols contiguous elements, borrowed exclusively by `self`.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.rows * self.cols) }
    }

    /// Some of the columns.
    pub(super) fn columns(&mut self, cols: Range<usize>) -> MatMut<'_, E> {
        assert!(
            cols.start <= cols.end && cols.end <= self.cols,
            "columns {cols:?} of {}",
            self.cols
        );
        MatMut {
            // SAFETY: the offset is at most `cols`, within or one past the first row's elements.
            data: unsafe { self.data.add(cols.start) },
            rows: self.rows,
            cols: cols.len(),
            row_stride: self.row_stride,
            owner: PhantomData,
        }
    }

    /// See [`par_blocks`]; `wrap` makes a block's part of the matrix.
    fn par_parts(
        self,
        grid: Grid,
        (partials, partial_len): (&mut [f32], usize),
        wrap: impl Fn(MatMut<'a, E>) -> Part<'a> + Sync,
        f: impl Fn(Block<'a>, &mut [f32]) + Sync,
    ) {
        assert_eq!(
            (self.rows, self.cols),
            (grid.rows, grid.cols),
            "the grid covers another matrix"
        );
        assert!(partials.len() >= grid.blocks() * partial_len, "partials");
        let partials = MatMut::new(
            &mut partials[..grid.blocks() * partial_len],
            grid.blocks(),
            partial_len,
        );
        (0..grid.blocks()).into_par_iter().for_each(|index| {
            let (rows, cols) = grid.ranges(index);
            // SAFETY: the blocks of a grid are disjoint and lie within the matrix, each index is visited once, and the
            // two matrices are borrowed exclusively until all tasks have ended.
            let (part, mut partial) = unsafe {
                (
                    self.part(rows.clone(), cols.clone()),
                    partials.part(index..index + 1, 0..partial_len),
                )
            };
            let out = wrap(part);
            f(Block { rows, cols, out }, partial.as_slice());
        });
    }

    /// A part of the matrix, through a shared reference.
    ///
    /// # Safety
    /// The ranges lie within the matrix, and no other part in use shares an element.
    unsafe fn part(&self, rows: Range<usize>, cols: Range<usize>) -> MatMut<'a, E> {
        MatMut {
            // SAFETY: the first element lies within the matrix, or is one past its end where the part is empty.
            data: unsafe { self.data.add(rows.start * self.row_stride + cols.start) },
            rows: rows.len(),
            cols: cols.len(),
            row_stride: self.row_stride,
            owner: PhantomData,
        }
    }
}

impl MatMut<'_> {
    /// Rounds every element to the nearest that `element` stores.
    pub(super) fn round(&mut self, element: Element) {
        if element == Element::F32 {
        } else if self.row_stride == self.cols {
            round_all(element, self.as_slice());
        } else {
            for i in 0..self.rows {
                round_all(element, self.row(i));
            }
        }
    }
}

/// A part of a stored matrix.
pub(super) enum Part<'a> {
    F32(MatMut<'a>),
    Bf16(MatMut<'a, bf16>),
}

impl Part<'_> {
    pub(super) fn rows(&self) -> usize {
        match self {
            Part::F32(part) => part.rows,
            Part::Bf16(part) => part.rows,
        }
    }

    pub(super) fn cols(&self) -> usize {
        match self {
            Part::F32(part) => part.cols,
            Part::Bf16(part) => part.cols,
        }
    }

    /// Some of the columns.
    pub(super) fn columns(&mut self, cols: Range<usize>) -> Part<'_> {
        match self {
            Part::F32(part) => Part::F32(part.columns(cols)),
            Part::Bf16(part) => Part::Bf16(part.columns(cols)),
        }
    }

    /// Lends `f` the part as float32, and rounds what it leaves. Without `load` what `f` finds is unknown. `f` must not enter
    /// the thread pool or edit a second part.
    pub(super) fn edit<R>(&mut self, load: bool, f: impl FnOnce(&mut MatMut<'_>) -> R) -> R {
        match self {
            Part::F32(part) => f(part),
            Part::Bf16(part) => {
                let (m, n) = (part.rows, part.cols);
                with_floats(m * n, |floats| {
                    if load {
                        for (i, row) in floats.chunks_exact_mut(n).enumerate() {
                            widen_all(part.row(i), row);
                        }
                    }
                    let result = f(&mut MatMut::new(floats, m, n));
                    // SAFETY: the part has m rows of n elements, `row_stride` apart, and is borrowed exclusively.
                    unsafe { narrow_rows(floats, n, part.data, part.row_stride) };
                    result
                })
            }
        }
    }
}

/// Calls `f(block, partial)` for all blocks of a grid over the first elements of `out`, in parallel. `partials` is cut into
/// one stretch per block, `partial_len` long, row by row of the grid. `f` must not enter the thread pool.
pub(super) fn par_blocks<F>(
    out: TensorMut<'_>,
    grid: Grid,
    partials: &mut [f32],
    partial_len: usize,
    f: F,
) where
    F: Fn(Block<'_>, &mut [f32]) + Sync,
{
    let Grid { rows, cols, .. } = grid;
    match out {
        TensorMut::F32(out) => {
            MatMut::new(out, rows, cols).par_parts(grid, (partials, partial_len), Part::F32, f);
        }
        TensorMut::Bf16(out) => {
            MatMut::new(out, rows, cols).par_parts(grid, (partials, partial_len), Part::Bf16, f);
        }
    }
}

/// A matrix cut into blocks of at most `row_block` x `col_block`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Grid {
    /// Rows of the matrix.
    pub(super) rows: usize,
    /// Columns of the matrix.
    pub(super) cols: usize,
    /// Rows of each block but the last.
    pub(super) row_block: usize,
    /// Columns of each block but the last.
    pub(super) col_block: usize,
}

impl Grid {
    /// Blocks one below the other.
    pub(super) fn row_blocks(&self) -> usize {
        self.rows.div_ceil(self.row_block)
    }

    /// Blocks side by side.
    pub(super) fn col_blocks(&self) -> usize {
        self.cols.div_ceil(self.col_block)
    }

    /// All blocks.
    pub(super) fn blocks(&self) -> usize {
        self.row_blocks() * self.col_blocks()
    }

    /// Rows and columns of a block.
    fn ranges(&self, index: usize) -> (Range<usize>, Range<usize>) {
        let (i, j) = (index / self.col_blocks(), index % self.col_blocks());
        let cut = |i: usize, block: usize, len: usize| i * block..((i + 1) * block).min(len);
        (
            cut(i, self.row_block, self.rows),
            cut(j, self.col_block, self.cols),
        )
    }
}

/// One block of a grid.
pub(super) struct Block<'a> {
    /// Rows of the whole matrix.
    pub(super) rows: Range<usize>,
    /// Columns of the whole matrix.
    pub(super) cols: Range<usize>,
    /// The elements.
    pub(super) out: Part<'a>,
}
