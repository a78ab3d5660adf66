//! Float32 buffers that begin on a cache line, so that no vector load of a well-placed row straddles two.

use std::ops::{Deref, DerefMut};

/// Float32 elements of a cache line.
const LINE: usize = 16;

/// A fixed number of float32 elements, 64-byte aligned. Dereferences to a slice.
#[derive(Default)]
pub struct Buffer {
    /// A little more than `len`. Fresh from the system, its zeros cost nothing until they are touched.
    storage: Vec<f32>,
    /// The first element on a cache line.
    start: usize,
    len: usize,
}

impl Buffer {
    /// `len` zeros.
    pub fn zeros(len: usize) -> Self {
        let storage = vec![0.0f32; if len == 0 { 0 } else { len + LINE - 1 }];
        // An allocator that cannot tell says usize::MAX; alignment is for speed alone.
        let offset = storage.as_ptr().align_offset(4 * LINE);
        Buffer {
            start: if offset < LINE && len > 0 { offset } else { 0 },
            storage,
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
        &self.storage[self.start..self.start + self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.storage[self.start..self.start + self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_on_a_cache_line() {
        for len in [0, 1, 15, 16, 17, 1000, 1 << 20] {
            let mut buffer = Buffer::zeros(len);
            assert_eq!(buffer.len(), len);
            assert!(len == 0 || buffer.as_ptr().addr().is_multiple_of(64));
            assert!(buffer.iter().all(|v| *v == 0.0));
            buffer.fill(1.0);
        }
    }
}
