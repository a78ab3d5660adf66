//! The matrix product behind convolution's forward pass: windows taken where they lie, filters packed once a call.
//!
//! y[i, j] = act(sum over t of window[i][t] filter[j][t] + bias[j] + residual[i, j]). The filters are packed in *panels*
//! of two vectors of filters, a panel element by element: `panel[t][j]`. The inner kernel keeps a block of 6 rows (12
//! where there are 32 vector registers) x 2 vectors of y in registers over the whole sum, so that y is written once,
//! finished, and a window may lie anywhere: an image need not be unrolled. One panel meets all rows of a tile before the
//! next one does: it stays in the first- or second-level cache.
//!
//! Each accumulator of a block is a variable of its own, never an element of an array ([`Sums`], [`Vectors`]). The
//! compiler keeps an array in registers only if it unrolls every loop over it. Whether it does depends on its version
//! and on the surrounding code; where it did not, a store followed each product.

use std::ops::Range;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::gemm::MatMut;
use super::machine::vectorised;
use crate::backend::Activation;

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
                    for (j, row) in square.iter_mut().enumerate() {
                        *row = *filters[j * len + first..].first_chunk().expect("eight");
                    }
                    for (j, row) in transpose(square).iter().enumerate() {
                        panel[(first + j) * width + column..][..SQUARE].copy_from_slice(row);
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
        assert!(runs > 0, "a window has a run");
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
    pub(super) activation: Activation<&'a [f32]>,
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
    if let Activation::PRelu(slopes) = finish.activation {
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
            self.rows::<S, Two<S::f32s>>(simd);
        } else {
            self.rows::<S, One<S::f32s>>(simd);
        }
    }
}

impl Panels<'_, '_> {
    /// All rows.
    #[inline(always)]
    fn rows<S: Simd, V: Vectors<S::f32s>>(&mut self, simd: S) {
        let rows = self.y.rows();
        let bias = self.finish.bias.map(|bias| &bias[self.cols.clone()]);
        let slopes = match self.finish.activation {
            Activation::PRelu(slopes) => Some(&slopes[self.cols.clone()]),
            _ => None,
        };
        let bias: V = load(simd, bias.unwrap_or_default());
        let slopes: V = load(simd, slopes.unwrap_or_default());
        let mut row = 0;
        if S::REGISTER_COUNT >= 32 {
            while row + 12 <= rows {
                self.block::<S, V, 12>(simd, row, bias, slopes);
                row += 12;
            }
        }
        while row + 6 <= rows {
            self.block::<S, V, 6>(simd, row, bias, slopes);
            row += 6;
        }
        match rows - row {
            1 => self.block::<S, V, 1>(simd, row, bias, slopes),
            2 => self.block::<S, V, 2>(simd, row, bias, slopes),
            3 => self.block::<S, V, 3>(simd, row, bias, slopes),
            4 => self.block::<S, V, 4>(simd, row, bias, slopes),
            5 => self.block::<S, V, 5>(simd, row, bias, slopes),
            _ => {}
        }
    }

    /// Rows `row..row + R` of y in the panel's columns.
    #[inline(always)]
    fn block<S: Simd, V: Vectors<S::f32s>, const R: usize>(
        &mut self,
        simd: S,
        row: usize,
        bias: V,
        slopes: V,
    ) where
        Rows<R>: Sums<R>,
    {
        let Windows {
            data,
            starts,
            runs,
            run,
            step,
        } = self.windows;
        let starts = starts[row..].first_chunk::<R>().expect("R rows");
        let rows = starts.map(|start| data[start..].as_ptr());
        let filters = self.filters[..runs * run * VECTORS * S::F32_LANES].as_ptr();
        let (cols, finish, y) = (self.cols.clone(), self.finish, &mut *self.y);
        // SAFETY: `Windows::new` asserted that all runs of all rows lie within `data`, and `filters` holds runs * run
        // rows of a panel.
        unsafe {
            Rows::sums(
                simd,
                rows,
                [runs, run, step],
                filters,
                bias,
                #[inline(always)]
                |i, mut sums| {
                    if let Some((residual, stride)) = finish.residual {
                        let residual: V = load(simd, &residual[(row + i) * stride..][cols.clone()]);
                        sums = residual.zip(
                            sums,
                            #[inline(always)]
                            |r, sum| simd.add_f32s(r, sum),
                        );
                    }
                    sums = activate(simd, finish.activation, sums, slopes);
                    store(simd, &mut y.row(row + i)[cols.clone()], sums);
                },
            );
        }
    }
}

/// Applies the activation. Comparisons, not maxima, so that NaN passes through and is found.
#[inline(always)]
fn activate<S: Simd, V: Vectors<S::f32s>>(
    simd: S,
    activation: Activation<&[f32]>,
    y: V,
    slopes: V,
) -> V {
    let (zero, six) = (simd.splat_f32s(0.0), simd.splat_f32s(6.0));
    match activation {
        Activation::Identity => y,
        Activation::Relu => y.map(
            #[inline(always)]
            |y| simd.select_f32s(simd.less_than_f32s(y, zero), zero, y),
        ),
        Activation::Relu6 => y.map(
            #[inline(always)]
            |y| {
                let y = simd.select_f32s(simd.less_than_f32s(y, zero), zero, y);
                simd.select_f32s(simd.greater_than_f32s(y, six), six, y)
            },
        ),
        Activation::PRelu(_) => y.zip(
            slopes,
            #[inline(always)]
            |y, slope| {
                let scaled = simd.mul_f32s(y, slope);
                simd.select_f32s(simd.greater_than_f32s(y, zero), y, scaled)
            },
        ),
    }
}

/// The vectors of one row of a block: [`One`] or [`Two`].
trait Vectors<T: Copy>: Copy {
    /// Vector number v is f(v).
    fn each(f: impl FnMut(usize) -> T) -> Self;

    /// f of each vector.
    fn map(self, f: impl FnMut(T) -> T) -> Self;

    /// f of each vector and its counterpart.
    fn zip(self, other: Self, f: impl FnMut(T, T) -> T) -> Self;
}

#[derive(Clone, Copy)]
struct One<T>(T);

impl<T: Copy> Vectors<T> for One<T> {
    #[inline(always)]
    fn each(mut f: impl FnMut(usize) -> T) -> Self {
        One(f(0))
    }

    #[inline(always)]
    fn map(self, mut f: impl FnMut(T) -> T) -> Self {
        One(f(self.0))
    }

    #[inline(always)]
    fn zip(self, other: Self, mut f: impl FnMut(T, T) -> T) -> Self {
        One(f(self.0, other.0))
    }
}

#[derive(Clone, Copy)]
struct Two<T>(T, T);

impl<T: Copy> Vectors<T> for Two<T> {
    #[inline(always)]
    fn each(mut f: impl FnMut(usize) -> T) -> Self {
        Two(f(0), f(1))
    }

    #[inline(always)]
    fn map(self, mut f: impl FnMut(T) -> T) -> Self {
        Two(f(self.0), f(self.1))
    }

    #[inline(always)]
    fn zip(self, other: Self, mut f: impl FnMut(T, T) -> T) -> Self {
        Two(f(self.0, other.0), f(self.1, other.1))
    }
}

/// The numbers of one row, followed by zeros.
#[inline(always)]
fn load<S: Simd, V: Vectors<S::f32s>>(simd: S, numbers: &[f32]) -> V {
    let lanes = S::F32_LANES;
    V::each(
        #[inline(always)]
        |v| match numbers.get(v * lanes..(v + 1) * lanes) {
            // SAFETY: the slice holds one vector, which may be read at any address.
            Some(whole) => unsafe { whole.as_ptr().cast::<S::f32s>().read_unaligned() },
            None => simd.partial_load_f32s(numbers.get(v * lanes..).unwrap_or_default()),
        },
    )
}

/// Stores the numbers of a row that there is room for.
#[inline(always)]
fn store<S: Simd, V: Vectors<S::f32s>>(simd: S, out: &mut [f32], vectors: V) {
    let lanes = S::F32_LANES;
    let mut v = 0;
    vectors.map(
        #[inline(always)]
        |vector| {
            let first = v * lanes;
            v += 1;
            if let Some(whole) = out.get_mut(first..first + lanes) {
                // SAFETY: the slice holds one vector, which may be written at any address.
                unsafe { whole.as_mut_ptr().cast::<S::f32s>().write_unaligned(vector) };
            } else if let Some(short) = out.get_mut(first..) {
                simd.partial_store_f32s(short, vector);
            }
            vector
        },
    );
}

/// Blocks of R rows.
struct Rows<const R: usize>;

/// The inner kernel for blocks of R rows.
trait Sums<const R: usize> {
    /// The sums of R windows against the filters, on top of the biases; `finish` gets each row's number and its sums.
    ///
    /// # Safety
    /// `windows` holds pointers to `runs` runs of `run` readable numbers, `step` apart; `filters` points to runs * run
    /// rows of a panel.
    unsafe fn sums<S: Simd, V: Vectors<S::f32s>>(
        simd: S,
        windows: [*const f32; R],
        runs_run_step: [usize; 3],
        filters: *const f32,
        bias: V,
        finish: impl FnMut(usize, V),
    );
}

/// Implements [`Sums`] for one number of rows; `$sum` is the accumulator of row `$i`.
macro_rules! sums_of_rows {
    ($rows:literal: $($sum:ident $i:literal),+) => {
        impl Sums<$rows> for Rows<$rows> {
            #[inline(always)]
            unsafe fn sums<S: Simd, V: Vectors<S::f32s>>(
                simd: S,
                mut windows: [*const f32; $rows],
                [runs, run, step]: [usize; 3],
                mut filters: *const f32,
                bias: V,
                mut finish: impl FnMut(usize, V),
            ) {
                let lanes = S::F32_LANES;
                $(let mut $sum = bias;)+
                for r in 0..runs {
                    for t in 0..run {
                        // SAFETY: the caller promised a panel's row here; a vector may be read at any address.
                        let w = V::each(#[inline(always)] |v| unsafe {
                            filters.add(v * lanes).cast::<S::f32s>().read_unaligned()
                        });
                        $(
                            // SAFETY: r < runs and t < run, as the caller promised.
                            let x = simd.splat_f32s(unsafe { *windows[$i].add(t) });
                            $sum = w.zip($sum, #[inline(always)] |w, sum| simd.mul_add_e_f32s(x, w, sum));
                        )+
                        // SAFETY: at most one past the last row of the panel.
                        filters = unsafe { filters.add(VECTORS * lanes) };
                    }
                    if r + 1 < runs {
                        // SAFETY: there is a next run.
                        $(windows[$i] = unsafe { windows[$i].add(step) };)+
                    }
                }
                $(finish($i, $sum);)+
            }
        }
    };
}

sums_of_rows!(1: a 0);
sums_of_rows!(2: a 0, b 1);
sums_of_rows!(3: a 0, b 1, c 2);
sums_of_rows!(4: a 0, b 1, c 2, d 3);
sums_of_rows!(5: a 0, b 1, c 2, d 3, e 4);
sums_of_rows!(6: a 0, b 1, c 2, d 3, e 4, f 5);
sums_of_rows!(12: a 0, b 1, c 2, d 3, e 4, f 5, g 6, h 7, i 8, j 9, k 10, l 11);
