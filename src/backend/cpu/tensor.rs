//! Stored tensors of either element type. Operations compute in float32, a cache-sized tile at a time: a tile of float32 is
//! worked on in its place, a tile of bfloat16 in a workspace, from which it is rounded to its place once.

use super::buffer::Buffer;
use super::machine::{self, vectorised};
use crate::backend::Element;
use half::bf16;
use rayon::iter::Either;
use rayon::prelude::*;
use std::cell::RefCell;
use std::ops::Range;

/// A type of stored elements.
pub(super) trait Stored: Copy + Send + Sync {
    /// The number, exactly.
    fn widen(self) -> f32;

    /// The nearest number of the type; ties to even, NaN stays NaN.
    fn narrow(value: f32) -> Self;

    /// The nearest number of the type, as float32.
    #[inline(always)]
    fn round(value: f32) -> f32 {
        Self::narrow(value).widen()
    }
}

impl Stored for f32 {
    #[inline(always)]
    fn widen(self) -> f32 {
        self
    }

    #[inline(always)]
    fn narrow(value: f32) -> Self {
        value
    }
}

impl Stored for bf16 {
    #[inline(always)]
    fn widen(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    // Without branches, so that a loop becomes vector instructions.
    #[inline(always)]
    fn narrow(value: f32) -> Self {
        let bits = value.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
        let quiet = bits | 0x40_0000;
        let bits = if value.is_nan() { quiet } else { rounded };
        bf16::from_bits((bits >> 16) as u16)
    }
}

/// A tensor to read.
#[derive(Clone, Copy)]
pub(super) enum Tensor<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

/// A tensor to write.
pub(super) enum TensorMut<'a> {
    F32(&'a mut [f32]),
    Bf16(&'a mut [bf16]),
}

impl Buffer {
    /// The elements, to read.
    pub(super) fn tensor(&self) -> Tensor<'_> {
        let (floats, len) = (self.floats(), self.elements());
        match self.element() {
            Element::F32 => Tensor::F32(&floats[..len]),
            Element::Bf16 => Tensor::Bf16(&bytemuck::cast_slice(floats)[..len]),
        }
    }

    /// The elements, to write.
    pub(super) fn tensor_mut(&mut self) -> TensorMut<'_> {
        let (element, len) = (self.element(), self.elements());
        let floats = self.floats_mut();
        match element {
            Element::F32 => TensorMut::F32(&mut floats[..len]),
            Element::Bf16 => TensorMut::Bf16(&mut bytemuck::cast_slice_mut(floats)[..len]),
        }
    }
}

impl<'a> Tensor<'a> {
    pub(super) fn element(self) -> Element {
        match self {
            Tensor::F32(_) => Element::F32,
            Tensor::Bf16(_) => Element::Bf16,
        }
    }

    pub(super) fn len(self) -> usize {
        match self {
            Tensor::F32(stored) => stored.len(),
            Tensor::Bf16(stored) => stored.len(),
        }
    }

    /// Copies elements `range` to `out`.
    pub(super) fn read(self, range: Range<usize>, out: &mut [f32]) {
        match self {
            Tensor::F32(stored) => out.copy_from_slice(&stored[range]),
            Tensor::Bf16(stored) => widen_all(&stored[range], out),
        }
    }

    /// to += elements `range`.
    pub(super) fn add_to(self, range: Range<usize>, to: &mut [f32]) {
        #[inline(always)]
        fn add<E: Stored>(stored: &[E], to: &mut [f32]) {
            for (to, v) in to.iter_mut().zip(stored) {
                *to += v.widen();
            }
        }
        vectorised(
            #[inline(always)]
            || match self {
                Tensor::F32(stored) => add(&stored[range], to),
                Tensor::Bf16(stored) => add(&stored[range], to),
            },
        );
    }
}

impl<'a> TensorMut<'a> {
    /// The elements, to read.
    pub(super) fn lend(&self) -> Tensor<'_> {
        match self {
            TensorMut::F32(stored) => Tensor::F32(stored),
            TensorMut::Bf16(stored) => Tensor::Bf16(stored),
        }
    }

    /// Elements `range`.
    pub(super) fn part(&mut self, range: Range<usize>) -> TensorMut<'_> {
        match self {
            TensorMut::F32(stored) => TensorMut::F32(&mut stored[range]),
            TensorMut::Bf16(stored) => TensorMut::Bf16(&mut stored[range]),
        }
    }

    /// The first `len` elements.
    pub(super) fn first(self, len: usize) -> Self {
        match self {
            TensorMut::F32(stored) => TensorMut::F32(&mut stored[..len]),
            TensorMut::Bf16(stored) => TensorMut::Bf16(&mut stored[..len]),
        }
    }

    pub(super) fn len(&self) -> usize {
        match self {
            TensorMut::F32(stored) => stored.len(),
            TensorMut::Bf16(stored) => stored.len(),
        }
    }

    /// Rounds `values` to the elements from `first` on.
    pub(super) fn write(&mut self, first: usize, values: &[f32]) {
        match self {
            TensorMut::F32(stored) => stored[first..][..values.len()].copy_from_slice(values),
            TensorMut::Bf16(stored) => narrow_all(values, &mut stored[first..][..values.len()]),
        }
    }

    /// Stretches of `len` elements, the last maybe shorter, on all threads.
    pub(super) fn par_chunks(
        self,
        len: usize,
    ) -> impl IndexedParallelIterator<Item = TensorMut<'a>> {
        match self {
            TensorMut::F32(stored) => Either::Left(stored.par_chunks_mut(len).map(TensorMut::F32)),
            TensorMut::Bf16(stored) => {
                Either::Right(stored.par_chunks_mut(len).map(TensorMut::Bf16))
            }
        }
    }

    /// Lends `f` the elements as float32, and rounds what it leaves. Without `load` what `f` finds is unknown. `f` must not
    /// enter the thread pool or edit a second tensor.
    pub(super) fn edit<R>(self, load: bool, f: impl FnOnce(&mut [f32]) -> R) -> R {
        match self {
            TensorMut::F32(stored) => f(stored),
            TensorMut::Bf16(stored) => with_floats(stored.len(), |floats| {
                if load {
                    widen_all(stored, floats);
                }
                let result = f(floats);
                narrow_all(floats, stored);
                result
            }),
        }
    }
}

/// Lends `f` room for the float32 form of a tile, of unknown content.
pub(super) fn with_floats<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    thread_local! {
        static FLOATS: RefCell<Buffer> = RefCell::default();
    }
    FLOATS.with_borrow_mut(|floats| f(floats.at_least(len)))
}

/// Rounds every value to the nearest that the type stores.
pub(super) fn round_all(element: Element, values: &mut [f32]) {
    if element == Element::F32 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    if machine::pairs().is_some() {
        // SAFETY: the machine has these instructions.
        unsafe { avx512_bf16::round(values) };
        return;
    }
    vectorised(
        #[inline(always)]
        || values.iter_mut().for_each(|v| *v = bf16::round(*v)),
    );
}

pub(super) fn widen_all(from: &[bf16], to: &mut [f32]) {
    assert_eq!(from.len(), to.len(), "elements");
    vectorised(
        #[inline(always)]
        || {
            for (to, from) in to.iter_mut().zip(from) {
                *to = from.widen();
            }
        },
    );
}

/// Rounds numbers to their places.
pub(super) fn narrow_all(from: &[f32], to: &mut [bf16]) {
    assert_eq!(from.len(), to.len(), "elements");
    // SAFETY: one row, which is borrowed exclusively.
    unsafe { narrow_rows(from, from.len(), to.as_mut_ptr(), from.len()) };
}

/// Like [`narrow_all`], for rows of `cols` numbers.
///
/// # Safety
/// `to` has a row of `cols` elements for each row of `from`, and its rows begin `stride` elements apart. All of them are
/// valid for writes, and nothing else accesses them during the call.
pub(super) unsafe fn narrow_rows(from: &[f32], cols: usize, to: *mut bf16, stride: usize) {
    if cols == 0 {
        return;
    }
    let rows = from.chunks_exact(cols).enumerate();
    let rows = rows.map(|(i, from)| {
        // SAFETY: row i, as the caller promised.
        let to = unsafe { std::slice::from_raw_parts_mut(to.add(i * stride), cols) };
        (from, to)
    });
    #[cfg(target_arch = "x86_64")]
    if machine::pairs().is_some() {
        // SAFETY: the machine has these instructions.
        unsafe { avx512_bf16::narrow(rows) };
        return;
    }
    vectorised(
        #[inline(always)]
        || {
            for (from, to) in rows {
                for (to, from) in to.iter_mut().zip(from) {
                    *to = bf16::narrow(*from);
                }
            }
        },
    );
}

/// The machine's own rounding. It differs from [`Stored::narrow`] in one respect: numbers below the smallest normal one
/// become zero.
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512_bf16 {
    use super::Stored;
    use half::bf16;
    use std::arch::x86_64::{
        __m256i, __m512, _mm256_storeu_si256, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
        _mm512_cvtneps_pbh, _mm512_loadu_ps, _mm512_slli_epi32, _mm512_storeu_ps,
    };

    const LANES: usize = 16;

    /// Rounded.
    #[inline]
    #[target_feature(enable = "avx512bf16,avx512f")]
    pub(in super::super) fn narrowed(values: __m512) -> __m256i {
        // SAFETY: both types are 32 bytes of any content.
        unsafe { std::mem::transmute(_mm512_cvtneps_pbh(values)) }
    }

    /// As float32.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(in super::super) fn widened(stored: __m256i) -> __m512 {
        _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(stored)))
    }

    #[target_feature(enable = "avx512bf16,avx512f")]
    pub(super) fn narrow<'a>(rows: impl Iterator<Item = (&'a [f32], &'a mut [bf16])>) {
        for (from, to) in rows {
            let (blocks, rest) = from.as_chunks::<LANES>();
            let (to, to_rest) = to.split_at_mut(LANES * blocks.len());
            for (from, to) in blocks.iter().zip(to.as_chunks_mut::<LANES>().0) {
                // SAFETY: 16 numbers are read and written.
                unsafe {
                    let values = _mm512_loadu_ps(from.as_ptr());
                    _mm256_storeu_si256(to.as_mut_ptr().cast(), narrowed(values));
                }
            }
            for (to, from) in to_rest.iter_mut().zip(rest) {
                *to = bf16::narrow(*from);
            }
        }
    }

    #[target_feature(enable = "avx512bf16,avx512f")]
    pub(super) fn round(values: &mut [f32]) {
        let (blocks, rest) = values.as_chunks_mut::<LANES>();
        for block in blocks {
            // SAFETY: 16 numbers are read and written.
            unsafe {
                let stored = narrowed(_mm512_loadu_ps(block.as_ptr()));
                _mm512_storeu_ps(block.as_mut_ptr(), widened(stored));
            }
        }
        rest.iter_mut().for_each(|v| *v = bf16::round(*v));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every bfloat16, and the numbers around the middle between it and the next, against the crate `half`.
    #[test]
    fn rounding_agrees_with_half() {
        for bits in 0..=u16::MAX {
            // `half` makes a signalling NaN quiet as it widens it.
            let stored = bf16::from_bits(bits);
            let (found, expected) = (stored.widen(), stored.to_f32());
            let same = found.to_bits() == expected.to_bits() || found.is_nan() && expected.is_nan();
            assert!(same, "{bits:#06x}");
            for low in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let value = f32::from_bits(u32::from(bits) << 16 | low);
                let (found, expected) = (bf16::narrow(value), bf16::from_f32(value));
                assert_eq!(found.to_bits(), expected.to_bits(), "{value:e}");
            }
        }
    }

    /// Whole vectors, and what is left, against one number at a time.
    #[test]
    fn many_numbers_are_rounded_as_one() {
        let values: Vec<f32> = (0..1000)
            .map(|i| (i as f32 - 500.0) * 1.003_906_3)
            .chain([f32::INFINITY, f32::NEG_INFINITY, f32::NAN, 3.4e38, -0.0])
            .collect();
        let mut stored = vec![bf16::ZERO; values.len()];
        narrow_all(&values, &mut stored);
        let mut rounded = values.clone();
        round_all(Element::Bf16, &mut rounded);
        for ((value, stored), rounded) in values.iter().zip(&stored).zip(&rounded) {
            let expected = bf16::narrow(*value);
            let same = |found: f32| {
                found.to_bits() == expected.widen().to_bits() || found.is_nan() && value.is_nan()
            };
            assert!(
                same(stored.widen()) && same(*rounded),
                "{value}: {stored}, {rounded}"
            );
        }
    }

    #[test]
    fn a_buffer_holds_as_many_elements_as_fit() {
        let mut buffer = Buffer::zeros(Element::F32, 5);
        buffer.hold(Element::Bf16);
        assert_eq!(buffer.elements(), 10);
        buffer
            .tensor_mut()
            .write(3, &[1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]);
        let mut read = [9.0; 4];
        buffer.tensor().read(2..6, &mut read);
        // Ties go to even.
        assert_eq!(read, [0.0, 1.0, 1.0, 1.015_625]);
        buffer.hold(Element::F32);
        assert_eq!(buffer.len(), 5);
        assert_eq!(Buffer::zeros(Element::Bf16, 7).elements(), 7);
    }
}
