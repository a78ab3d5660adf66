//! How a device stores the elements of a tensor.

/// The type of a buffer's elements. Arithmetic is in float32 in any case; what is stored is rounded once, to nearest, ties
/// to even.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE single precision.
    #[default]
    F32,
    /// bfloat16, the upper half of an [`f32`]: its range, with 8 bits of significand.
    Bf16,
}

impl Element {
    /// Bytes of an element.
    pub const fn bytes(self) -> usize {
        match self {
            Element::F32 => 4,
            Element::Bf16 => 2,
        }
    }

    /// Elements that `bytes` bytes hold.
    pub const fn fit(self, bytes: usize) -> usize {
        bytes / self.bytes()
    }
}

impl std::fmt::Display for Element {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Element::F32 => "f32",
            Element::Bf16 => "bf16",
        })
    }
}
