//! The inner kernel: a block of 6 rows (12 where there are 32 vector registers) x 2 vectors of y stays in registers over
//! the whole sum, so that y is written once, finished.
//!
//! Each accumulator of a block is a variable of its own, never an element of an array ([`Sums`], [`Vectors`]). The
//! compiler keeps an array in registers only if it unrolls every loop over it. Whether it does depends on its version
//! and on the surrounding code; where it did not, a store followed each product.

use super::super::machine;
use super::super::matrix::MatMut;
use super::super::tensor::Stored;
use super::{Finish, Windows};
use crate::backend::Activation;
use pulp::{Simd, WithSimd};

/// Vectors of a panel's row.
const VECTORS: usize = 2;

/// Float32 lanes of the widest vector.
const MAX_LANES: usize = 16;

/// The number of columns of y that begins a panel is a multiple of this on every machine.
pub(in super::super) const PANEL_ALIGN: usize = VECTORS * MAX_LANES;

/// Rows of y that fill whole register blocks on every machine are a multiple of this.
pub(in super::super) const ROW_ALIGN: usize = 12;

/// Columns of a panel on this machine.
pub(in super::super) fn panel_width() -> usize {
    struct Width;
    impl WithSimd for Width {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            VECTORS * S::F32_LANES
        }
    }
    machine::arch().dispatch(Width)
}

/// One step of a sum.
pub(super) trait Multiplier<S: Simd>: Copy {
    /// The sum of each lane, and the products of the terms of its two words.
    fn add(self, simd: S, x: S::f32s, w: S::f32s, sum: S::f32s) -> S::f32s;
}

/// [`Terms::Single`](super::Terms::Single).
#[derive(Clone, Copy)]
struct Singles;

impl<S: Simd> Multiplier<S> for Singles {
    #[inline(always)]
    fn add(self, simd: S, x: S::f32s, w: S::f32s, sum: S::f32s) -> S::f32s {
        simd.mul_add_e_f32s(x, w, sum)
    }
}

/// Elements that a vector of sums is rounded to, or added to.
pub(super) trait Output<S: Simd>: Stored {
    /// A vector of numbers.
    ///
    /// # Safety
    /// They are readable from `at` on.
    unsafe fn load(simd: S, at: *const Self) -> S::f32s;

    /// `count` numbers, fewer than a vector has, followed by zeros.
    ///
    /// # Safety
    /// They are readable from `at` on.
    unsafe fn load_some(simd: S, at: *const Self, count: usize) -> S::f32s;

    /// # Safety
    /// As many elements as a vector has are writable from `at` on.
    unsafe fn store(simd: S, at: *mut Self, sums: S::f32s);

    /// The first `count` of a vector's sums.
    ///
    /// # Safety
    /// They are writable from `at` on.
    unsafe fn store_some(simd: S, at: *mut Self, count: usize, sums: S::f32s);
}

impl<S: Simd> Output<S> for f32 {
    #[inline(always)]
    unsafe fn load(_: S, at: *const f32) -> S::f32s {
        // SAFETY: as the caller promised; a vector may be read at any address.
        unsafe { at.cast::<S::f32s>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_some(simd: S, at: *const f32, count: usize) -> S::f32s {
        // SAFETY: as the caller promised.
        simd.partial_load_f32s(unsafe { std::slice::from_raw_parts(at, count) })
    }

    #[inline(always)]
    unsafe fn store(_: S, at: *mut f32, sums: S::f32s) {
        // SAFETY: as the caller promised; a vector may be written at any address.
        unsafe { at.cast::<S::f32s>().write_unaligned(sums) }
    }

    #[inline(always)]
    unsafe fn store_some(simd: S, at: *mut f32, count: usize, sums: S::f32s) {
        // SAFETY: as the caller promised.
        simd.partial_store_f32s(unsafe { std::slice::from_raw_parts_mut(at, count) }, sums);
    }
}

/// A job: y = finish(windows * columns) in the columns of one panel.
pub(super) struct Panel<'a, 'y, O> {
    y: &'a mut MatMut<'y, O>,
    windows: Windows<'a>,
    filters: &'a [f32],
    finish: Finish<'a, O>,
}

impl<'a, 'y, O: Stored> Panel<'a, 'y, O> {
    pub(super) fn new(
        y: &'a mut MatMut<'y, O>,
        windows: Windows<'a>,
        filters: &'a [f32],
        finish: Finish<'a, O>,
    ) -> Self {
        let (rows, cols) = (y.rows(), y.cols());
        assert_eq!(rows, windows.len(), "rows of y and of the windows");
        assert!(cols <= panel_width(), "{cols} columns in a panel");
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
        Panel {
            y,
            windows,
            filters,
            finish,
        }
    }
}

impl WithSimd for Panel<'_, '_, f32> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        self.run(simd, Singles);
    }
}

impl<O: Stored> Panel<'_, '_, O> {
    #[inline(always)]
    pub(super) fn run<S: Simd, M: Multiplier<S>>(mut self, simd: S, multiplier: M)
    where
        O: Output<S>,
    {
        if self.y.cols() > S::F32_LANES {
            self.rows::<S, Two<S::f32s>, M>(simd, multiplier);
        } else {
            self.rows::<S, One<S::f32s>, M>(simd, multiplier);
        }
    }

    /// All rows.
    #[inline(always)]
    fn rows<S: Simd, V: Vectors<S::f32s>, M: Multiplier<S>>(&mut self, simd: S, multiplier: M)
    where
        O: Output<S>,
    {
        let rows = self.y.rows();
        let slopes = match self.finish.activation {
            Activation::PRelu(slopes) => Some(slopes),
            _ => None,
        };
        let vector = |numbers: Option<&[f32]>| -> V {
            let numbers = numbers.unwrap_or_default();
            // SAFETY: as many numbers as the slice has.
            unsafe { load(simd, numbers.as_ptr(), numbers.len()) }
        };
        let finish = (multiplier, vector(self.finish.bias), vector(slopes));
        // Blocks of nearly the same size: a block of one to three rows would wait for its own sums.
        let most = if S::REGISTER_COUNT >= 32 { 12 } else { 6 };
        let blocks = rows.div_ceil(most).max(1);
        let (least, larger) = (rows / blocks, rows % blocks);
        let mut row = 0;
        for block in 0..blocks {
            let count = least + usize::from(block < larger);
            match count {
                0 => {}
                1 => self.block::<S, V, M, 1>(simd, row, finish),
                2 => self.block::<S, V, M, 2>(simd, row, finish),
                3 => self.block::<S, V, M, 3>(simd, row, finish),
                4 => self.block::<S, V, M, 4>(simd, row, finish),
                5 => self.block::<S, V, M, 5>(simd, row, finish),
                6 => self.block::<S, V, M, 6>(simd, row, finish),
                more if S::REGISTER_COUNT >= 32 => match more {
                    7 => self.block::<S, V, M, 7>(simd, row, finish),
                    8 => self.block::<S, V, M, 8>(simd, row, finish),
                    9 => self.block::<S, V, M, 9>(simd, row, finish),
                    10 => self.block::<S, V, M, 10>(simd, row, finish),
                    11 => self.block::<S, V, M, 11>(simd, row, finish),
                    _ => self.block::<S, V, M, 12>(simd, row, finish),
                },
                more => unreachable!("{more} rows are more than the registers hold"),
            }
            row += count;
        }
    }

    /// Rows `row..row + R` of y; `bias` and `slopes` as vectors.
    #[inline(always)]
    fn block<S: Simd, V: Vectors<S::f32s>, M: Multiplier<S>, const R: usize>(
        &mut self,
        simd: S,
        row: usize,
        (multiplier, bias, slopes): (M, V, V),
    ) where
        Rows<R>: Sums<R>,
        O: Output<S>,
    {
        let Windows {
            terms: _,
            data,
            starts,
            runs,
            run,
            step,
            stride: term_stride,
        } = self.windows;
        assert!(row + R <= self.windows.len(), "R rows");
        let filters = self.filters[..runs * run * VECTORS * S::F32_LANES].as_ptr();
        let width = self.y.cols();
        let Finish {
            accumulate,
            activation,
            ..
        } = self.finish;
        let residual = (self.finish.residual)
            .map(|(residual, stride)| (residual[row * stride..].as_ptr(), stride));
        let (y, stride) = self.y.part_at(row..row + R, 0..width);
        // SAFETY: `Windows::new` asserted that all runs of all rows lie within `data`, and `filters` holds runs * run
        // rows of a panel. `Panel::new` asserted that the residual has all rows and columns of y, and `part_at` that y
        // has these.
        unsafe {
            Rows::sums(
                simd,
                multiplier,
                std::array::from_fn::<_, R, _>(
                    #[inline(always)]
                    |i| data.as_ptr().add(starts.get(row + i)),
                ),
                [runs, run, step, term_stride],
                filters,
                bias,
                #[inline(always)]
                |i, mut sums| {
                    if accumulate {
                        let before: V = load(simd, y.add(i * stride).cast_const(), width);
                        sums = before.zip(
                            sums,
                            #[inline(always)]
                            |y, sum| simd.add_f32s(y, sum),
                        );
                    }
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
unsafe fn load<S: Simd, O: Output<S>, V: Vectors<S::f32s>>(
    simd: S,
    at: *const O,
    count: usize,
) -> V {
    let lanes = S::F32_LANES;
    V::each(
        #[inline(always)]
        |v| {
            let first = v * lanes;
            // SAFETY: the numbers from `first` to `count`, if any.
            unsafe {
                if first + lanes <= count {
                    O::load(simd, at.add(first))
                } else if first < count {
                    O::load_some(simd, at.add(first), count - first)
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
unsafe fn store<S: Simd, O: Output<S>, V: Vectors<S::f32s>>(
    simd: S,
    at: *mut O,
    count: usize,
    vectors: V,
) {
    let lanes = S::F32_LANES;
    let mut first = 0;
    vectors.map(
        #[inline(always)]
        |vector| {
            // SAFETY: as in `load`.
            unsafe {
                if first + lanes <= count {
                    O::store(simd, at.add(first), vector);
                } else if first < count {
                    O::store_some(simd, at.add(first), count - first, vector);
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
    /// `layout` is `runs`, `run`, `step`, `stride`. `windows` holds pointers to `runs` runs, `step` apart, of `run` readable
    /// words, `stride` apart; `filters` points to runs * run rows of a panel.
    unsafe fn sums<S: Simd, V: Vectors<S::f32s>, M: Multiplier<S>>(
        simd: S,
        multiplier: M,
        windows: [*const f32; R],
        layout: [usize; 4],
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
            unsafe fn sums<S: Simd, V: Vectors<S::f32s>, M: Multiplier<S>>(
                simd: S,
                multiplier: M,
                mut windows: [*const f32; $rows],
                [runs, run, step, stride]: [usize; 4],
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
                            let x = simd.splat_f32s(unsafe { *windows[$i].add(t * stride) });
                            $sum = w.zip($sum, #[inline(always)] |w, sum| multiplier.add(simd, x, w, sum));
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
