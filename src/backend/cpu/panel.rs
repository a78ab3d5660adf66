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
        let vector = |numbers: Option<&[f32]>| -> V {
            let numbers = numbers.unwrap_or_default();
            // SAFETY: as many numbers as the slice has.
            unsafe { load(simd, numbers.as_ptr(), numbers.len()) }
        };
        let (bias, slopes) = (vector(bias), vector(slopes));
        // Blocks of nearly the same size: a block of one to three rows would wait for its own sums.
        let most = if S::REGISTER_COUNT >= 32 { 12 } else { 6 };
        let blocks = rows.div_ceil(most).max(1);
        let (least, larger) = (rows / blocks, rows % blocks);
        let mut row = 0;
        for block in 0..blocks {
            let count = least + usize::from(block < larger);
            match count {
                0 => {}
                1 => self.block::<S, V, 1>(simd, row, bias, slopes),
                2 => self.block::<S, V, 2>(simd, row, bias, slopes),
                3 => self.block::<S, V, 3>(simd, row, bias, slopes),
                4 => self.block::<S, V, 4>(simd, row, bias, slopes),
                5 => self.block::<S, V, 5>(simd, row, bias, slopes),
                6 => self.block::<S, V, 6>(simd, row, bias, slopes),
                more if S::REGISTER_COUNT >= 32 => match more {
                    7 => self.block::<S, V, 7>(simd, row, bias, slopes),
                    8 => self.block::<S, V, 8>(simd, row, bias, slopes),
                    9 => self.block::<S, V, 9>(simd, row, bias, slopes),
                    10 => self.block::<S, V, 10>(simd, row, bias, slopes),
                    11 => self.block::<S, V, 11>(simd, row, bias, slopes),
                    _ => self.block::<S, V, 12>(simd, row, bias, slopes),
                },
                more => unreachable!("{more} rows are more than the registers hold"),
            }
            row += count;
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
        let filters = self.filters[..runs * run * VECTORS * S::F32_LANES].as_ptr();
        let (first, width) = (self.cols.start, self.cols.len());
        let activation = self.finish.activation;
        let residual = (self.finish.residual)
            .map(|(residual, stride)| (residual[row * stride + first..].as_ptr(), stride));
        let (y, stride) = self.y.part_at(row..row + R, self.cols.clone());
        // SAFETY: `Windows::new` asserted that all runs of all rows lie within `data`, and `filters` holds runs * run
        // rows of a panel. `multiply` asserted that the residual has all rows and columns of y, and `part_at` that y
        // has these.
        unsafe {
            Rows::sums(
                simd,
                starts.map(
                    #[inline(always)]
                    |start| data.as_ptr().add(start),
                ),
                [runs, run, step],
                filters,
                bias,
                #[inline(always)]
                |i, mut sums| {
                    if let Some((residual, stride)) = residual {
                        let residual: V = load(simd, residual.add(i * stride), width);
                        sums = residual.zip(
                            sums,
                            #[inline(always)]
                            |r, sum| simd.add_f32s(r, sum),
                        );
                    }
                    sums = activate(simd, activation, sums, slopes);
                    store(simd, y.add(i * stride), width, sums);
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

/// `count` numbers, followed by zeros.
///
/// # Safety
/// `count` numbers are readable from `at` on.
#[inline(always)]
unsafe fn load<S: Simd, V: Vectors<S::f32s>>(simd: S, at: *const f32, count: usize) -> V {
    let lanes = S::F32_LANES;
    V::each(
        #[inline(always)]
        |v| {
            let first = v * lanes;
            // SAFETY: the numbers from `first` to `count`, if any; a vector may be read at any address.
            unsafe {
                if first + lanes <= count {
                    at.add(first).cast::<S::f32s>().read_unaligned()
                } else if first < count {
                    simd.partial_load_f32s(std::slice::from_raw_parts(at.add(first), count - first))
                } else {
                    simd.splat_f32s(0.0)
                }
            }
        },
    )
}

/// Stores the first `count` numbers.
///
/// # Safety
/// `count` numbers are writable from `at` on.
#[inline(always)]
unsafe fn store<S: Simd, V: Vectors<S::f32s>>(simd: S, at: *mut f32, count: usize, vectors: V) {
    let lanes = S::F32_LANES;
    let mut first = 0;
    vectors.map(
        #[inline(always)]
        |vector| {
            // SAFETY: as in `load`.
            unsafe {
                if first + lanes <= count {
                    let at = at.add(first).cast::<S::f32s>();
                    at.write_unaligned(vector);
                } else if first < count {
                    let rest = std::slice::from_raw_parts_mut(at.add(first), count - first);
                    simd.partial_store_f32s(rest, vector);
                }
            }
            first += lanes;
            vector
        },
    );
}

/// Rows of a panel from the one at work to the one that is asked for: the machine's own prefetching ends with the page,
/// and what inference reads once an image comes from memory.
const PREFETCH: usize = 64;

/// Asks for the cache lines of `len` elements, which may lie anywhere.
#[inline(always)]
fn prefetch(at: *const f32, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for line in (0..len).step_by(16) {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is in every x86-64, and a prefetch from an address that is not there does nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(line).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (at, len);
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
                        prefetch(filters.wrapping_add(PREFETCH * VECTORS * lanes), VECTORS * lanes);
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
sums_of_rows!(7: a 0, b 1, c 2, d 3, e 4, f 5, g 6);
sums_of_rows!(8: a 0, b 1, c 2, d 3, e 4, f 5, g 6, h 7);
sums_of_rows!(9: a 0, b 1, c 2, d 3, e 4, f 5, g 6, h 7, i 8);
sums_of_rows!(10: a 0, b 1, c 2, d 3, e 4, f 5, g 6, h 7, i 8, j 9);
sums_of_rows!(11: a 0, b 1, c 2, d 3, e 4, f 5, g 6, h 7, i 8, j 9, k 10);
sums_of_rows!(12: a 0, b 1, c 2, d 3, e 4, f 5, g 6, h 7, i 8, j 9, k 10, l 11);
