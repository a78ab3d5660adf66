//! What one lane computes, for the instructions that have no vector arm in the interpreter. Each function has the type
//! [`crate::program::LaneFn`]: a constant of the instruction, then the operands' bits, zero-extended.

pub(crate) mod convert;
pub(crate) mod float;
pub(crate) mod integer;
pub(crate) mod narrow;
pub(crate) mod video;
