//! PTX's fundamental types.

use crate::program::File;

/// A type suffix of an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Pred,
    B(u32),
    U(u32),
    S(u32),
    F16,
    F16x2,
    Bf16,
    Bf16x2,
    E4m3x2,
    E5m2x2,
    Tf32,
    F32,
    F64,
}

impl Type {
    pub(crate) fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => Type::Pred,
            "b8" => Type::B(8),
            "b16" => Type::B(16),
            "b32" => Type::B(32),
            "b64" => Type::B(64),
            "u8" => Type::U(8),
            "u16" => Type::U(16),
            "u32" => Type::U(32),
            "u64" => Type::U(64),
            "s8" => Type::S(8),
            "s16" => Type::S(16),
            "s32" => Type::S(32),
            "s64" => Type::S(64),
            "f16" => Type::F16,
            "f16x2" => Type::F16x2,
            "bf16" => Type::Bf16,
            "bf16x2" => Type::Bf16x2,
            "e4m3x2" => Type::E4m3x2,
            "e5m2x2" => Type::E5m2x2,
            "tf32" => Type::Tf32,
            "f32" => Type::F32,
            "f64" => Type::F64,
            _ => return None,
        })
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Type::Pred => 1,
            Type::B(bits) | Type::U(bits) | Type::S(bits) => bits,
            Type::F16 | Type::Bf16 | Type::E4m3x2 | Type::E5m2x2 => 16,
            Type::F16x2 | Type::Bf16x2 | Type::Tf32 | Type::F32 => 32,
            Type::F64 => 64,
        }
    }

    pub(crate) fn file(self) -> File {
        match self.bits() {
            1 => File::Pred,
            64 => File::R64,
            _ => File::R32,
        }
    }

    pub(crate) fn is_integer(self) -> bool {
        matches!(self, Type::B(_) | Type::U(_) | Type::S(_))
    }

    pub(crate) fn is_signed(self) -> bool {
        matches!(self, Type::S(_))
    }

    /// f16, bf16 or a pair of them.
    pub(crate) fn is_narrow(self) -> bool {
        matches!(self, Type::F16 | Type::F16x2 | Type::Bf16 | Type::Bf16x2)
    }
}
