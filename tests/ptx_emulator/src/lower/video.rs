//! Scalar video instructions: arithmetic on bytes and halves of registers. `vmad` is not known.

use super::types::Type;
use super::{Lower, Result};
use crate::counters::Class;
use crate::lane::video::{self, Operation, Place, Second};
use crate::parse::{Instruction, Operand};
use crate::program::Compare;

impl Lower<'_> {
    pub(super) fn video(&mut self, i: &Instruction) -> Result<()> {
        let known = [
            "sat", "clamp", "wrap", "add", "min", "max", "eq", "ne", "lt", "le", "gt", "ge",
        ];
        self.only(i, &known)?;
        let mut signs = Vec::new();
        for ty in i.modifiers.iter().filter_map(|m| Type::parse(m)) {
            match ty {
                Type::U(32) => signs.push(false),
                Type::S(32) => signs.push(true),
                _ => return self.unknown(),
            }
        }
        let operation = match i.opcode.as_str() {
            "vadd" => Operation::Add,
            "vsub" => Operation::Subtract,
            "vabsdiff" => Operation::Difference,
            "vmin" => Operation::Minimum,
            "vmax" => Operation::Maximum,
            "vset" => {
                // The result of a comparison is unsigned.
                signs.insert(0, false);
                let comparisons = [
                    ("eq", Compare::Eq),
                    ("ne", Compare::Ne),
                    ("lt", Compare::Lt),
                    ("le", Compare::Le),
                    ("gt", Compare::Gt),
                    ("ge", Compare::Ge),
                ];
                match comparisons.into_iter().find(|(name, _)| i.has(name)) {
                    Some((_, compare)) => Operation::Compare(compare),
                    None => return self.error("the comparison is missing"),
                }
            }
            shift => match (i.has("clamp"), i.has("wrap"), shift == "vshl") {
                (true, false, true) => Operation::ShiftLeft { wrap: false },
                (false, true, true) => Operation::ShiftLeft { wrap: true },
                (true, false, false) => Operation::ShiftRight { wrap: false },
                (false, true, false) => Operation::ShiftRight { wrap: true },
                _ => return self.error("a shift either clamps or wraps"),
            },
        };
        let [d_signed, a_signed, b_signed] = signs[..] else {
            return self.error("expected the types of the result and both operands");
        };
        let (Some(d), Some(a), Some(b)) =
            (i.operands.first(), i.operands.get(1), i.operands.get(2))
        else {
            return self.error("expected at least three operands");
        };
        let (d, d_place) = self.place_of(d)?;
        let (a, a_place) = self.place_of(a)?;
        let (b, b_place) = self.place_of(b)?;
        let second = [
            ("add", Second::Add),
            ("min", Second::Minimum),
            ("max", Second::Maximum),
        ];
        let second = second.into_iter().find(|(name, _)| i.has(name));
        let second = match (second, d_place) {
            (Some((_, second)), Place::WORD) => second,
            (None, _) => Second::None,
            _ => {
                return self
                    .error("a second operation and a part of the result exclude each other");
            }
        };
        let word = Type::B(32);
        let mut src = vec![self.source(&a, word)?, self.source(&b, word)?];
        if second != Second::None || d_place != Place::WORD {
            let [_, _, _, c] = self.operands(i)?;
            src.push(self.source(c, word)?);
        } else {
            let [_, _, _] = self.operands(i)?;
        }
        let dst = self.destination(&d, word)?;
        let x = video::Video {
            operation,
            second,
            saturates: i.has("sat"),
            d: (d_place, d_signed),
            a: (a_place, a_signed),
            b: (b_place, b_signed),
        };
        self.emit_lane(video::video, x.encode(), Class::Integer, dst, src);
        Ok(())
    }

    /// A register and which part of it is meant.
    fn place_of(&self, operand: &Operand) -> Result<(Operand, Place)> {
        let Operand::Part(register, part) = operand else {
            return Ok((operand.clone(), Place::WORD));
        };
        let place = match part.as_str() {
            "b0" => Place::byte(0),
            "b1" => Place::byte(1),
            "b2" => Place::byte(2),
            "b3" => Place::byte(3),
            "h0" => Place::half(0),
            "h1" => Place::half(1),
            _ => return self.error(format!("`.{part}` is no part of a register")),
        };
        Ok((Operand::Reg(*register), place))
    }
}
