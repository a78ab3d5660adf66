//! The one matrix product of the CPU backend: rows taken where they lie, times packed columns.
//!
//! y[i, j] = act(sum over t of window[i][t] panel[t][j] + bias[j] + residual[i, j]). The columns are packed in *panels* of
//! two vectors, term by term ([`pack`]); the rows ([`Windows`]) may lie anywhere, so that an image need not be unrolled.
//! One panel meets all rows of a tile before the next one does: it stays in the first- or second-level cache. What follows
//! the product (moments, sums of a gradient, rounding) is done a panel at a time, on columns that are still in the cache
//! ([`for_panels`]).
//!
//! Rows and panels are made of *words* of four bytes: one term in float32, or two neighbouring terms in bfloat16 where the
//! machine multiplies such pairs ([`Terms`]). The two differ in one instruction of the inner kernel ([`kernel`]) and in how
//! words are made; where a word lies is the same.
//!
//! Who multiplies what: fprop windows of x and filters; dgrad windows of dY and the filters, transposed; wgrad the
//! transposed dY and windows of x; the head class rows and embeddings, and the gradients of their cosines with either.

mod kernel;
mod pack;
mod pairs;

use super::machine;
use super::matrix::{MatMut, Part};
use super::tensor::Tensor;
use super::tiles::with_workspace;
use crate::backend::{Activation, Element};
use kernel::Panel;
use std::ops::Range;

pub(super) use kernel::{PANEL_ALIGN, ROW_ALIGN, panel_width};
pub(super) use pack::{
    SQUARE, pack_columns, pack_panel, pack_rows, packed_len, pair, transpose, transpose_square,
};

/// What a word of a product's operands holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Terms {
    /// A float32.
    Single,
    /// Two bfloat16 that are neighbours in the sum, the first in the lower half.
    Pair,
}

impl Terms {
    /// The words for operands of `element` whose neighbouring terms come in runs of each of `runs`.
    pub(super) fn of<const N: usize>(element: Element, runs: [usize; N]) -> Self {
        let even = runs.iter().all(|run| run.is_multiple_of(2));
        if element == Element::Bf16 && even && machine::multiplies_pairs() {
            Terms::Pair
        } else {
            Terms::Single
        }
    }

    /// Terms of a word.
    pub(super) fn per_word(self) -> usize {
        match self {
            Terms::Single => 1,
            Terms::Pair => 2,
        }
    }
}

/// Rows to multiply: each is `runs` runs, `step` apart, of `run` words, `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Windows<'a> {
    terms: Terms,
    data: &'a [f32],
    starts: Starts<'a>,
    runs: usize,
    run: usize,
    step: usize,
    stride: usize,
}

/// Where each row begins.
#[derive(Clone, Copy)]
enum Starts<'a> {
    At(&'a [usize]),
    Every { stride: usize, rows: usize },
}

impl Starts<'_> {
    #[inline(always)]
    fn get(&self, row: usize) -> usize {
        match self {
            Starts::At(starts) => starts[row],
            Starts::Every { stride, rows } => {
                assert!(row < *rows, "row {row} of {rows}");
                row * stride
            }
        }
    }
}

impl<'a> Windows<'a> {
    /// Rows that begin at `starts`, with runs, words of a run, and the distance of the runs.
    pub(super) fn new(
        terms: Terms,
        data: &'a [f32],
        starts: &'a [usize],
        [runs, run, step]: [usize; 3],
    ) -> Self {
        assert!(runs > 0, "a window has a run");
        let last = starts
            .iter()
            .max()
            .map_or(0, |s| s + (runs - 1) * step + run);
        assert!(last <= data.len(), "windows of {last} words");
        Windows {
            terms,
            data,
            starts: Starts::At(starts),
            runs,
            run,
            step,
            stride: 1,
        }
    }

    /// Rows of `len` adjacent words each, `stride` apart.
    pub(super) fn rows(terms: Terms, data: &'a [f32], [rows, stride, len]: [usize; 3]) -> Self {
        let end = if rows == 0 {
            0
        } else {
            (rows - 1) * stride + len
        };
        assert!(end <= data.len(), "rows of {end} words");
        Windows {
            terms,
            data,
            starts: Starts::Every { stride, rows },
            runs: 1,
            run: len,
            step: 0,
            stride: 1,
        }
    }

    /// The first `rows` columns of a matrix, each as a row. The matrix has `terms` rows of words, `stride` apart.
    pub(super) fn columns(
        words: Terms,
        data: &'a [f32],
        [rows, stride, terms]: [usize; 3],
    ) -> Self {
        let end = terms.saturating_sub(1) * stride + rows;
        assert!(end <= data.len(), "columns of {end} words");
        Windows {
            terms: words,
            data,
            starts: Starts::Every { stride: 1, rows },
            runs: 1,
            run: terms,
            step: 0,
            stride,
        }
    }

    /// Rows.
    pub(super) fn len(&self) -> usize {
        match self.starts {
            Starts::At(starts) => starts.len(),
            Starts::Every { rows, .. } => rows,
        }
    }

    /// Row `i` of a single run.
    pub(super) fn row(&self, i: usize) -> &'a [f32] {
        assert_eq!((self.runs, self.stride), (1, 1), "runs");
        &self.data[self.starts.get(i)..][..self.run]
    }

    /// Words of a row.
    pub(super) fn words(&self) -> usize {
        self.runs * self.run
    }

    /// The stretches of adjacent words of row `i` that make up `words` of it.
    pub(super) fn stretches(
        &self,
        i: usize,
        words: Range<usize>,
    ) -> impl Iterator<Item = &'a [f32]> {
        let Windows {
            data, run, step, ..
        } = *self;
        assert_eq!(self.stride, 1, "adjacent words");
        let start = self.starts.get(i);
        let mut at = words.start;
        std::iter::from_fn(move || {
            let (r, t) = (at / run, at % run);
            let count = (run - t).min(words.end - at);
            at += count;
            (count > 0).then(|| &data[start + r * step + t..][..count])
        })
    }
}

/// What is done with a sum before it is written; columns and rows as those of y.
#[derive(Clone, Copy, Default)]
pub(super) struct Finish<'a, O = f32> {
    /// Whether the sums are added to what y holds.
    pub(super) accumulate: bool,
    /// One number per column.
    pub(super) bias: Option<&'a [f32]>,
    /// The first element, and the distance of the rows.
    pub(super) residual: Option<(&'a [O], usize)>,
    /// Applied last.
    pub(super) activation: Activation<&'a [f32]>,
}

impl<'a, O> Finish<'a, O> {
    /// The same with another residual.
    pub(super) fn with<P>(self, residual: Option<(&'a [P], usize)>) -> Finish<'a, P> {
        let Finish {
            accumulate,
            bias,
            activation,
            ..
        } = self;
        Finish {
            accumulate,
            bias,
            residual,
            activation,
        }
    }
}

impl<'a, O: Copy> Finish<'a, O> {
    /// The finish of some of the columns.
    fn columns(&self, cols: Range<usize>) -> Self {
        Finish {
            bias: self.bias.map(|bias| &bias[cols.clone()]),
            residual: (self.residual).map(|(residual, stride)| (&residual[cols.start..], stride)),
            activation: self.activation.channels(cols),
            ..*self
        }
    }
}

/// The columns of each panel of `cols` columns.
pub(super) fn panels(cols: usize) -> impl Iterator<Item = Range<usize>> {
    let width = panel_width();
    (0..cols)
        .step_by(width)
        .map(move |first| first..(first + width).min(cols))
}

/// y = finish(windows * columns), on the calling thread; `packed` begins with the panel of y's first column.
pub(super) fn multiply(
    y: &mut MatMut<'_>,
    windows: Windows<'_>,
    packed: &[f32],
    finish: Finish<'_>,
) {
    for (cols, panel) in packed_panels(y.cols(), &windows, packed) {
        let y = &mut y.columns(cols.clone());
        multiply_panel(y, windows, panel, finish.columns(cols));
    }
}

/// The columns of each panel, and the panel, which is as long as the rows.
fn packed_panels<'p>(
    cols: usize,
    windows: &Windows<'_>,
    packed: &'p [f32],
) -> impl Iterator<Item = (Range<usize>, &'p [f32])> {
    let words = windows.words();
    panels(cols).map(move |cols| {
        let panel = &packed[cols.start * words..][..panel_width() * words];
        (cols, panel)
    })
}

/// Like [`multiply`], for the columns of one panel.
fn multiply_panel(y: &mut MatMut<'_>, windows: Windows<'_>, panel: &[f32], finish: Finish<'_>) {
    let job = Panel::new(y, windows, panel, finish);
    match windows.terms {
        Terms::Single => machine::arch().dispatch(job),
        Terms::Pair => pairs::run(job),
    }
}

/// A stored residual: where its first element lies, and the distance of the rows.
pub(super) type Residual<'a> = (Tensor<'a>, usize, usize);

/// Like [`multiply`], but y is a part of a stored tensor. The residual has the same type of elements.
pub(super) fn multiply_stored(
    y: &mut Part<'_>,
    windows: Windows<'_>,
    packed: &[f32],
    (finish, residual): (Finish<'_>, Option<Residual<'_>>),
) {
    let (Part::Bf16(y), Terms::Pair) = (&mut *y, windows.terms) else {
        for_panels(y, windows, packed, (finish, residual), |_, _| {});
        return;
    };
    let residual = residual.map(|(residual, first, stride)| match residual {
        Tensor::Bf16(residual) => (&residual[first..], stride),
        Tensor::F32(_) => panic!("a residual in float32 of an output in bfloat16"),
    });
    let finish = finish.with(residual);
    for (cols, panel) in packed_panels(y.cols(), &windows, packed) {
        let y = &mut y.columns(cols.clone());
        pairs::run(Panel::new(y, windows, panel, finish.columns(cols)));
    }
}

/// Like [`multiply_stored`], but `then` sees the columns of each panel before they are rounded.
pub(super) fn for_panels(
    y: &mut Part<'_>,
    windows: Windows<'_>,
    packed: &[f32],
    (finish, residual): (Finish<'_>, Option<Residual<'_>>),
    mut then: impl FnMut(Range<usize>, &mut MatMut<'_>),
) {
    let rows = y.rows();
    for (cols, panel) in packed_panels(y.cols(), &windows, packed) {
        let finish = finish.columns(cols.clone());
        let mut part = y.columns(cols.clone());
        with_residual(residual, rows, cols.clone(), |residual| {
            part.edit(finish.accumulate, |part| {
                multiply_panel(part, windows, panel, finish.with(residual));
                then(cols, part);
            });
        });
    }
}

/// Lends `f` some columns of a residual as float32.
pub(super) fn with_residual<R>(
    residual: Option<Residual<'_>>,
    rows: usize,
    cols: Range<usize>,
    f: impl FnOnce(Option<(&[f32], usize)>) -> R,
) -> R {
    match residual {
        None => f(None),
        Some((Tensor::F32(residual), first, stride)) => {
            f(Some((&residual[first + cols.start..], stride)))
        }
        Some((residual, first, stride)) => with_workspace(rows * cols.len(), |floats| {
            for (i, row) in floats.chunks_exact_mut(cols.len()).enumerate() {
                let at = first + i * stride + cols.start;
                residual.read(at..at + cols.len(), row);
            }
            f(Some((floats, cols.len())))
        }),
    }
}
