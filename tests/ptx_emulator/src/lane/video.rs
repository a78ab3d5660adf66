//! Scalar video instructions: parts of two words, an operation on them, and the result saturated, combined with a third
//! word or merged into it.

use crate::program::Compare;

/// A part of a word: its first bit and its number of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    shift: u32,
    bits: u32,
}

impl Place {
    pub(crate) const WORD: Self = Self { shift: 0, bits: 32 };

    pub(crate) const fn byte(n: u32) -> Self {
        Self {
            shift: 8 * n,
            bits: 8,
        }
    }

    pub(crate) const fn half(n: u32) -> Self {
        Self {
            shift: 16 * n,
            bits: 16,
        }
    }

    const ALL: [Self; 7] = [
        Self::WORD,
        Self::byte(0),
        Self::byte(1),
        Self::byte(2),
        Self::byte(3),
        Self::half(0),
        Self::half(1),
    ];

    fn mask(self) -> u32 {
        (u32::MAX >> (32 - self.bits)) << self.shift
    }

    /// The part's value.
    fn read(self, word: u64, signed: bool) -> i128 {
        let field = (word as u32 & self.mask()) >> self.shift;
        let sign = signed && field >> (self.bits - 1) & 1 == 1;
        i128::from(field) - if sign { 1 << self.bits } else { 0 }
    }
}

/// The operation on the two parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Add,
    Subtract,
    /// The absolute difference.
    Difference,
    Minimum,
    Maximum,
    ShiftLeft {
        wrap: bool,
    },
    ShiftRight {
        wrap: bool,
    },
    Compare(Compare),
}

impl Operation {
    const ALL: [Self; 15] = [
        Self::Add,
        Self::Subtract,
        Self::Difference,
        Self::Minimum,
        Self::Maximum,
        Self::ShiftLeft { wrap: false },
        Self::ShiftLeft { wrap: true },
        Self::ShiftRight { wrap: false },
        Self::ShiftRight { wrap: true },
        Self::Compare(Compare::Eq),
        Self::Compare(Compare::Ne),
        Self::Compare(Compare::Lt),
        Self::Compare(Compare::Le),
        Self::Compare(Compare::Gt),
        Self::Compare(Compare::Ge),
    ];

    fn apply(self, a: i128, b: i128) -> i128 {
        let amount = |wrap: bool| if wrap { b & 31 } else { b.min(32) };
        match self {
            Self::Add => a + b,
            Self::Subtract => a - b,
            Self::Difference => (a - b).abs(),
            Self::Minimum => a.min(b),
            Self::Maximum => a.max(b),
            Self::ShiftLeft { wrap } => a << amount(wrap),
            Self::ShiftRight { wrap } => a >> amount(wrap),
            Self::Compare(compare) => i128::from(match compare {
                Compare::Eq => a == b,
                Compare::Ne => a != b,
                Compare::Lt => a < b,
                Compare::Le => a <= b,
                Compare::Gt => a > b,
                _ => a >= b,
            }),
        }
    }
}

/// How the result is combined with the third word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Second {
    None,
    Add,
    Minimum,
    Maximum,
}

impl Second {
    const ALL: [Self; 4] = [Self::None, Self::Add, Self::Minimum, Self::Maximum];
}

/// One instruction: parts with their signs, and the operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Video {
    pub(crate) operation: Operation,
    pub(crate) second: Second,
    pub(crate) saturates: bool,
    pub(crate) d: (Place, bool),
    pub(crate) a: (Place, bool),
    pub(crate) b: (Place, bool),
}

fn index<T: PartialEq>(all: &[T], one: &T) -> u32 {
    all.iter().position(|other| other == one).unwrap_or(0) as u32
}

impl Video {
    /// Packs it into an instruction's constant: four bits each for the operation, `d`, `a` and `b`, then the rest.
    pub(crate) fn encode(self) -> u32 {
        let place =
            |(place, signed): (Place, bool)| index(&Place::ALL, &place) << 1 | u32::from(signed);
        index(&Operation::ALL, &self.operation)
            | place(self.d) << 4
            | place(self.a) << 8
            | place(self.b) << 12
            | index(&Second::ALL, &self.second) << 16
            | u32::from(self.saturates) << 18
    }

    fn decode(x: u32) -> Self {
        let place = |x: u32| (Place::ALL[x as usize >> 1 & 7], x & 1 == 1);
        Self {
            operation: Operation::ALL[x as usize & 15],
            second: Second::ALL[x as usize >> 16 & 3],
            saturates: x >> 18 & 1 == 1,
            d: place(x >> 4),
            a: place(x >> 8),
            b: place(x >> 12),
        }
    }
}

/// `vadd`, `vshr` and their kin; the constant is a [`Video`].
pub(crate) fn video(x: u32, v: [u64; 3]) -> u64 {
    let Video {
        operation,
        second,
        saturates,
        d: (place, signed),
        a,
        b,
    } = Video::decode(x);
    let mut value = operation.apply(a.0.read(v[0], a.1), b.0.read(v[1], b.1));
    if saturates {
        let (low, high) = if signed {
            (-1 << (place.bits - 1), (1 << (place.bits - 1)) - 1)
        } else {
            (0, (1 << place.bits) - 1)
        };
        value = value.clamp(low, high);
    }
    let c = Place::WORD.read(v[2], signed);
    let value = match second {
        Second::None => value,
        Second::Add => value + c,
        Second::Minimum => value.min(c),
        Second::Maximum => value.max(c),
    } as u32;
    // Bits that the result does not write come from the third word; a whole result leaves nothing of that word.
    u64::from((value << place.shift & place.mask()) | (v[2] as u32 & !place.mask()))
}
