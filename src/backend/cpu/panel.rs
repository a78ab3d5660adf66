//! The matrix product behind convolution's forward pass: windows taken where they lie, filters packed once a call.
//!
//! y[i, j] = act(sum over t of window[i][t] filter[j][t] + bias[j] + residual[i, j]). The filters are packed in *panels*
//! of two vectors of filters, a panel element by element: `panel[t][j]`. The inner kernel keeps a block of 6 rows (12
//! where there are 32 vector registers) x 2 vectors of y in registers over the whole sum, so that y is written once,
//! finished, and a window may lie anywhere: an image need not be unrolled. One panel meets all rows of a tile before the
//! next one does: it stays in the first- or second-level cache.

// Loops over an index, because rows, vectors and panels share it.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::gemm::MatMut;
use super::pending::{Act, vectorised};

/// Vectors of a panel's row.
const VECTORS: usize = 2;

/// Float32 lanes of the widest vector.
const MAX_LANES: usize = 16;

/// The number of columns of y that begins a panel is a multiple of this on every machine.
pub(super) const PANEL_ALIGN: usize = VECTORS * MAX_LANES;

/// Rows of y that fill whole register blocks on every machine are a multiple of this.
pub(super) const ROW_ALIGN: usize = 12;

/// Filters of a panel on this machine.
pub(super) fn panel_width() -> usize {
    struct Width;
    impl WithSimd for Width {
        type Output = usize;
        fn with_simd<S: Simd>(self, _: S) -> usize {
            VECTORS * S::F32_LANES
        }
    }
    let width = pulp::Arch::new().dispatch(Width);
    assert!(PANEL_ALIGN.is_multiple_of(width), "a panel of {width}");
    width
}

/// Elements of `filters` filters of `len` elements each, packed.
pub(super) fn packed_len(filters: usize, len: usize) -> usize {
    filters.next_multiple_of(panel_width()) * len
}

/// Packs filters of `len` adjacent elements each.
pub(super) fn pack(filters: &[f32], len: usize, packed: &mut [f32]) {
    let width = panel_width();
    packed
        .par_chunks_mut(width * len)
        .zip(filters.par_chunks(width * len))
        .for_each(|(panel, filters)| pack_panel(filters, len, panel));
}

/// Packs one panel.
fn pack_panel(filters: &[f32], len: usize, panel: &mut [f32]) {
    let width = panel.len() / len;
    if filters.len() < panel.len() {
        panel.fill(0.0);
    }
    vectorised(
        #[inline(always)]
        || {
            // Squares of eight filters and eight elements, then what is left.
            let whole = len - len % SQUARE;
            for (group, filters) in filters.chunks(SQUARE * len).enumerate() {
                let column = group * SQUARE;
                let squares = if filters.len() == SQUARE * len && width >= SQUARE {
                    whole
                } else {
                    0
                };
                for first in (0..squares).step_by(SQUARE) {
                    let mut square = [[0.0; SQUARE]; SQUARE];
                    for j in 0..SQUARE {
                        square[j] = *filters[j * len + first..].first_chunk().expect("eight");
                    }
                    let square = transpose(square);
                    for j in 0..SQUARE {
                        panel[(first + j) * width + column..][..SQUARE].copy_from_slice(&square[j]);
                    }
                }
                for (j, filter) in filters.chunks_exact(len).enumerate() {
                    for t in squares..len {
                        panel[t * width + column + j] = filter[t];
                    }
                }
            }
        },
    );
}

/// Rows and columns of the squares that [`transpose`] turns.
pub(super) const SQUARE: usize = 8;

/// The transpose, in three rounds of exchanges between rows 1, 2 and 4 apart.
#[inline(always)]
pub(super) fn transpose(mut rows: [[f32; SQUARE]; SQUARE]) -> [[f32; SQUARE]; SQUARE] {
    #[inline(always)]
    fn exchange<const D: usize>(rows: &mut [[f32; SQUARE]; SQUARE]) {
        for i in 0..SQUARE {
            if i & D == 0 {
                let (a, b) = (rows[i], rows[i + D]);
                for j in 0..SQUARE {
                    if j & D == 0 {
                        rows[i][j + D] = b[j];
                    } else {
                        rows[i + D][j - D] = a[j];
                    }
                }
            }
        }
    }
    exchange::<1>(&mut rows);
    exchange::<2>(&mut rows);
    exchange::<4>(&mut rows);
    rows
}

/// Rows to multiply: row i is `runs` runs of `run` adjacent elements, `step` apart, from `starts[i]` on.
#[derive(Clone, Copy)]
pub(super) struct Windows<'a> {
    data: &'a [f32],
    starts: &'a [usize],
    runs: usize,
    run: usize,
    step: usize,
}

impl<'a> Windows<'a> {
    pub(super) fn new(
        data: &'a [f32],
        starts: &'a [usize],
        runs: usize,
        run: usize,
        step: usize,
    ) -> Self {
        let last = starts
            .iter()
            .max()
            .map_or(0, |s| s + (runs - 1) * step + run);
        assert!(last <= data.len(), "windows of {last} elements");
        Windows {
            data,
            starts,
            runs,
            run,
            step,
        }
    }
}

/// What is done with a sum before it is written; columns and rows as those of y.
#[derive(Clone, Copy, Default)]
pub(super) struct Finish<'a> {
    /// A number a column.
    pub(super) bias: Option<&'a [f32]>,
    /// The first element, and the distance of the rows.
    pub(super) residual: Option<(&'a [f32], usize)>,
    /// Applied last.
    pub(super) activation: Act<'a>,
}

/// y = finish(windows * filters), on the calling thread; `panels` begins with the panel of y's first column.
pub(super) fn multiply(
    y: &mut MatMut<'_>,
    windows: Windows<'_>,
    panels: &[f32],
    finish: Finish<'_>,
) {
    let (rows, cols, len) = (y.rows(), y.cols(), windows.runs * windows.run);
    assert_eq!(rows, windows.starts.len(), "rows of y and of the windows");
    if let Some(bias) = finish.bias {
        assert_eq!(bias.len(), cols, "bias");
    }
    if let Act::PRelu(slopes) = finish.activation {
        assert_eq!(slopes.len(), cols, "slopes");
    }
    if let Some((residual, stride)) = finish.residual {
        assert!(
            rows == 0 || (rows - 1) * stride + cols <= residual.len(),
            "residual"
        );
    }
    let width = panel_width();
    for (i, first) in (0..cols).step_by(width).enumerate() {
        pulp::Arch::new().dispatch(Panels {
            y,
            windows,
            cols: first..(first + width).min(cols),
            filters: &panels[i * width * len..][..width * len],
            finish,
        });
    }
}

/// All rows of y in the columns of one panel.
struct Panels<'a, 'y> {
    y: &'a mut MatMut<'y>,
    windows: Windows<'a>,
    cols: Range<usize>,
    filters: &'a [f32],
    finish: Finish<'a>,
}

impl WithSimd for Panels<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        if self.cols.len() > S::F32_LANES {
            self.rows::<S, VECTORS>(simd);
        } else {
            self.rows::<S, 1>(simd);
        }
    }
}

impl Panels<'_, '_> {
    /// All rows, V vectors of columns.
    #[inline(always)]
    fn rows<S: Simd, const V: usize>(&mut self, simd: S) {
        let rows = self.y.rows();
        let bias = self.finish.bias.map(|bias| &bias[self.cols.clone()]);
        let slopes = match self.finish.activation {
            Act::PRelu(slopes) => Some(&slopes[self.cols.clone()]),
            _ => None,
        };
        let panel = Panel {
            bias: padded(simd, bias),
            slopes: padded(simd, slopes),
        };
        let mut row = 0;
        if S::REGISTER_COUNT >= 32 {
            while row + 12 <= rows {
                self.block::<S, 12, V>(simd, row, &panel);
                row += 12;
            }
        }
        while row + 6 <= rows {
            self.block::<S, 6, V>(simd, row, &panel);
            row += 6;
        }
        match rows - row {
            1 => self.block::<S, 1, V>(simd, row, &panel),
            2 => self.block::<S, 2, V>(simd, row, &panel),
            3 => self.block::<S, 3, V>(simd, row, &panel),
            4 => self.block::<S, 4, V>(simd, row, &panel),
            5 => self.block::<S, 5, V>(simd, row, &panel),
            _ => {}
        }
    }

    /// Rows `row..row + R` of y in the panel's columns.
    ///
    /// The loops over R and V have bodies so small that the compiler unrolls them: an array that is indexed by a variable
    /// would be kept in memory, all through the sums too.
    #[inline(always)]
    fn block<S: Simd, const R: usize, const V: usize>(
        &mut self,
        simd: S,
        row: usize,
        panel: &Panel<S, V>,
    ) {
        let lanes = S::F32_LANES;
        let windows = &self.windows;
        let mut rows = [windows.data.as_ptr(); R];
        for i in 0..R {
            rows[i] = windows.data[windows.starts[row + i]..].as_ptr();
        }
        let (runs, run, step) = (windows.runs, windows.run, windows.step);
        let filters = self.filters[..runs * run * VECTORS * lanes].as_ptr();
        // SAFETY: `Windows::new` asserted that all runs of all rows lie within `data`, and `filters` holds runs * run
        // rows of a panel.
        let mut sums = unsafe { sums::<S, R, V>(simd, rows, runs, run, step, filters, panel.bias) };
        let cols = self.cols.clone();
        if cols.len() == V * lanes {
            if let Some((residual, stride)) = self.finish.residual {
                let last = (row + R - 1) * stride + cols.end;
                let residual = residual[row * stride + cols.start..last].as_ptr();
                for i in 0..R {
                    for v in 0..V {
                        // SAFETY: V vectors from the start of each of the R rows lie within the slice.
                        let r = unsafe { residual.add(i * stride + v * lanes) };
                        // SAFETY: as above; vectors are read wherever they lie.
                        let r = unsafe { r.cast::<S::f32s>().read_unaligned() };
                        sums[i][v] = simd.add_f32s(sums[i][v], r);
                    }
                }
            }
            self.activate(simd, panel, &mut sums);
            for i in 0..R {
                let out = self.y.row(row + i)[cols.clone()].as_mut_ptr();
                for v in 0..V {
                    // SAFETY: the slice holds V vectors; they are written wherever they lie.
                    unsafe {
                        out.add(v * lanes)
                            .cast::<S::f32s>()
                            .write_unaligned(sums[i][v])
                    };
                }
            }
        } else {
            if let Some((residual, stride)) = self.finish.residual {
                for i in 0..R {
                    let at = (row + i) * stride;
                    let residual = &residual[at + cols.start..at + cols.end];
                    let r = padded::<S, V>(simd, Some(residual));
                    for v in 0..V {
                        sums[i][v] = simd.add_f32s(sums[i][v], r[v]);
                    }
                }
            }
            self.activate(simd, panel, &mut sums);
            for i in 0..R {
                store_short(simd, &mut self.y.row(row + i)[cols.clone()], sums[i]);
            }
        }
    }

    /// Applies the activation. Comparisons, not maxima, so that NaN passes through and is found.
    #[inline(always)]
    fn activate<S: Simd, const R: usize, const V: usize>(
        &self,
        simd: S,
        panel: &Panel<S, V>,
        sums: &mut [[S::f32s; V]; R],
    ) {
        let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
        match self.finish.activation {
            Act::Identity => {}
            Act::Relu => {
                for i in 0..R {
                    for v in 0..V {
                        let y = sums[i][v];
                        sums[i][v] = simd.select_f32s(simd.less_than_f32s(y, zero), zero, y);
                    }
                }
            }
            Act::Relu6 => {
                for i in 0..R {
                    for v in 0..V {
                        let y = sums[i][v];
                        let y = simd.select_f32s(simd.less_than_f32s(y, zero), zero, y);
                        sums[i][v] = simd.select_f32s(simd.greater_than_f32s(y, six), six, y);
                    }
                }
            }
            Act::PRelu(_) => {
                for i in 0..R {
                    for v in 0..V {
                        let y = sums[i][v];
                        let scaled = simd.mul_f32s(y, panel.slopes[v]);
                        sums[i][v] = simd.select_f32s(simd.greater_than_f32s(y, zero), y, scaled);
                    }
                }
            }
        }
    }
}

/// What goes with the columns of a panel.
struct Panel<S: Simd, const V: usize> {
    bias: [S::f32s; V],
    slopes: [S::f32s; V],
}

/// V vectors of numbers, zeros behind the last.
#[inline(always)]
fn padded<S: Simd, const V: usize>(simd: S, numbers: Option<&[f32]>) -> [S::f32s; V] {
    let mut vectors = [simd.splat_f32s(0.0); V];
    let numbers = numbers.unwrap_or_default();
    for v in 0..V {
        let from = (v * S::F32_LANES).min(numbers.len());
        let to = ((v + 1) * S::F32_LANES).min(numbers.len());
        vectors[v] = simd.partial_load_f32s(&numbers[from..to]);
    }
    vectors
}

/// Stores the first numbers of V vectors.
#[inline(always)]
fn store_short<S: Simd, const V: usize>(simd: S, out: &mut [f32], vectors: [S::f32s; V]) {
    for v in 0..V {
        let from = (v * S::F32_LANES).min(out.len());
        let to = ((v + 1) * S::F32_LANES).min(out.len());
        simd.partial_store_f32s(&mut out[from..to], vectors[v]);
    }
}

/// The sums of a block: R windows against V vectors of filters, on top of the biases.
///
/// # Safety
/// Behind each pointer of `windows` lie `runs` runs of `run` readable numbers, `step` apart; behind `filters`
/// runs * run rows of a panel.
#[inline(always)]
unsafe fn sums<S: Simd, const R: usize, const V: usize>(
    simd: S,
    mut windows: [*const f32; R],
    runs: usize,
    run: usize,
    step: usize,
    mut filters: *const f32,
    bias: [S::f32s; V],
) -> [[S::f32s; V]; R] {
    let lanes = S::F32_LANES;
    let mut sums = [bias; R];
    for r in 0..runs {
        for t in 0..run {
            // SAFETY: r < runs and t < run, as the caller promised. Vectors are read wherever they lie.
            unsafe {
                let mut w = [simd.splat_f32s(0.0); V];
                for v in 0..V {
                    w[v] = filters.add(v * lanes).cast::<S::f32s>().read_unaligned();
                }
                for i in 0..R {
                    let x = simd.splat_f32s(*windows[i].add(t));
                    for v in 0..V {
                        sums[i][v] = simd.mul_add_e_f32s(x, w[v], sums[i][v]);
                    }
                }
                filters = filters.add(VECTORS * lanes);
            }
        }
        if r + 1 < runs {
            for i in 0..R {
                // SAFETY: there is a next run.
                windows[i] = unsafe { windows[i].add(step) };
            }
        }
    }
    sums
}
