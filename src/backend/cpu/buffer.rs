//! Float32 buffers that begin on a cache line, so that no vector load of a well-placed row straddles two.

use std::ops::{Deref, DerefMut};

/// One cache line.
#[derive(Clone, Copy, Default)]
#[repr(C, align(64))]
struct Line([f32; 16]);

/// A fixed number of float32 elements, 64-byte aligned. Dereferences to a slice.
#[derive(Default)]
pub struct Buffer {
    lines: Vec<Line>,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        Buffer {
            lines: vec![Line::default(); len.div_ceil(16)],
            len,
        }
    }

    /// Grows to at least `len` elements; what it held is lost. For scratch space that is kept from call to call.
    pub(super) fn at_least(&mut self, len: usize) -> &mut [f32] {
        if self.len < len {
            *self = Buffer::zeros(len);
        }
        &mut self[..len]
    }
}

impl From<&[f32]> for Buffer {
    fn from(values: &[f32]) -> Self {
        let mut buffer = Buffer::zeros(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer({} f32)", self.len)
    }
}

impl Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: `lines` holds at least `len` initialised floats, contiguous because `Line` is `repr(C)` with a
        // size of 64 bytes and no padding; the borrow of `self` covers the slice's lifetime.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}
