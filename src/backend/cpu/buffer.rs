//! Buffers that begin on a cache line, so that no vector load of a well-placed row straddles two.

use crate::backend::Element;
use std::ops::{Deref, DerefMut};

/// Float32 elements of a cache line.
const LINE: usize = 16;

/// A fixed number of bytes, 64-byte aligned, seen as elements of one type. Dereferences to a slice of float32.
#[derive(Default)]
pub struct Buffer {
    /// A little more than is used. Fresh from the system, its zeros cost nothing until they are touched.
    storage: Vec<f32>,
    /// The first element on a cache line.
    start: usize,
    element: Element,
    /// Elements of that type.
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub fn zeros(element: Element, len: usize) -> Self {
        let floats = (len * element.bytes()).div_ceil(Element::F32.bytes());
        let spare = if floats == 0 { 0 } else { LINE - 1 };
        let storage = vec![0.0f32; floats + spare];
        // An allocator that cannot tell says usize::MAX; alignment is for speed alone.
        let offset = storage.as_ptr().align_offset(Element::F32.bytes() * LINE);
        Buffer {
            start: if offset <= spare { offset } else { 0 },
            storage,
            element,
            len,
        }
    }

    /// Grows to at least `len` elements of float32; what it held is lost. For scratch space that is kept from call to call.
    pub(super) fn at_least(&mut self, len: usize) -> &mut [f32] {
        if self.len < len {
            *self = Buffer::zeros(Element::F32, len);
        }
        &mut self[..len]
    }

    /// Elements.
    pub(super) fn elements(&self) -> usize {
        self.len
    }

    /// What the buffer holds from now on: as many elements as fit, of unknown content.
    pub(super) fn hold(&mut self, element: Element) {
        self.len = element.fit(self.len * self.element.bytes());
        self.element = element;
    }

    /// What the buffer holds.
    pub(super) fn element(&self) -> Element {
        self.element
    }

    /// Float32 numbers that cover the elements.
    fn span(&self) -> std::ops::Range<usize> {
        let floats = (self.len * self.element.bytes()).div_ceil(Element::F32.bytes());
        self.start..self.start + floats
    }

    /// Float32 numbers that cover the elements, whatever these are.
    pub(super) fn floats(&self) -> &[f32] {
        &self.storage[self.span()]
    }

    /// As [`Buffer::floats`].
    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        let span = self.span();
        &mut self.storage[span]
    }
}

impl From<&[f32]> for Buffer {
    fn from(values: &[f32]) -> Self {
        let mut buffer = Buffer::zeros(Element::F32, values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} {})", self.len, self.element)
    }
}

impl Deref for Buffer {
    type Target = [f32];

    #[track_caller]
    fn deref(&self) -> &[f32] {
        assert_eq!(self.element, Element::F32, "elements of {self:?}");
        self.floats()
    }
}

impl DerefMut for Buffer {
    #[track_caller]
    fn deref_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.element, Element::F32, "elements of {self:?}");
        self.floats_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_on_a_cache_line() {
        for len in [0, 1, 15, 16, 17, 1000, 1 << 20] {
            let mut buffer = Buffer::zeros(Element::F32, len);
            assert_eq!(buffer.len(), len);
            assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(64));
            assert!(buffer.iter().all(|v| *v == 0.0));
            buffer.fill(1.0);
        }
    }

    #[test]
    #[should_panic(expected = "elements of Buffer(4 bf16)")]
    fn halves_are_no_floats() {
        let _: &[f32] = &Buffer::zeros(Element::Bf16, 4);
    }
}
