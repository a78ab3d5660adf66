//! Exchanges within a warp, and tensor-core operations.

use super::types::Type;
use super::{Lower, Result};
use crate::counters::Class;
use crate::matrix::{Accumulator, Mma, Operand as Element};
use crate::parse::{Instruction, Operand};
use crate::program::{ReduceOp, Reg, ShuffleMode, SideKind, VoteMode};

impl Lower<'_> {
    pub(super) fn warp(&mut self, i: &Instruction) -> Result<()> {
        match i.opcode.as_str() {
            "shfl" => self.shuffle(i),
            "vote" => self.vote(i),
            "match" => self.matches(i),
            "redux" => self.redux(i),
            "activemask" => {
                let [d] = self.operands(i)?;
                let dst = self.destination(d, Type::U(32))?;
                self.emit_side(SideKind::ActiveMask, Class::Warp, vec![dst], vec![]);
                Ok(())
            }
            "elect" => {
                let [d, members] = self.operands(i)?;
                let dst = self.pair(d, Type::U(32))?;
                if dst.len() != 2 {
                    return self.error("elect has two destinations");
                }
                let members = self.source(members, Type::U(32))?;
                self.emit_side(SideKind::Elect, Class::Warp, dst, vec![members]);
                Ok(())
            }
            "movmatrix" => {
                self.only(i, &["sync", "aligned", "m8n8", "trans"])?;
                let [d, a] = self.operands(i)?;
                let src = vec![self.source(a, Type::B(32))?];
                let dst = vec![self.destination(d, Type::B(32))?];
                self.emit_side(SideKind::MoveMatrix, Class::Warp, dst, src);
                Ok(())
            }
            _ => self.mma(i),
        }
    }

    /// One destination, or a value and a predicate.
    fn pair(&mut self, operand: &Operand, ty: Type) -> Result<Vec<Reg>> {
        Ok(match operand {
            Operand::Pair(d, p) => vec![self.destination(d, ty)?, self.destination(p, Type::Pred)?],
            d => vec![self.destination(d, ty)?],
        })
    }

    fn shuffle(&mut self, i: &Instruction) -> Result<()> {
        self.only(i, &["sync", "up", "down", "bfly", "idx"])?;
        let mode = match i.modifiers.get(1).map(String::as_str) {
            Some("up") => ShuffleMode::Up,
            Some("down") => ShuffleMode::Down,
            Some("bfly") => ShuffleMode::Butterfly,
            Some("idx") => ShuffleMode::Index,
            _ => return self.unknown(),
        };
        let [d, a, b, c, members] = self.operands(i)?;
        let ty = Type::B(32);
        let mut src = Vec::new();
        for operand in [a, b, c, members] {
            src.push(self.source(operand, ty)?);
        }
        let dst = self.pair(d, ty)?;
        self.emit_side(SideKind::Shuffle(mode), Class::Warp, dst, src);
        Ok(())
    }

    fn vote(&mut self, i: &Instruction) -> Result<()> {
        let (mode, ty) = match i.modifiers.iter().map(String::as_str).collect::<Vec<_>>()[..] {
            ["sync", "all", "pred"] => (VoteMode::All, Type::Pred),
            ["sync", "any", "pred"] => (VoteMode::Any, Type::Pred),
            ["sync", "uni", "pred"] => (VoteMode::Uniform, Type::Pred),
            ["sync", "ballot", "b32"] => (VoteMode::Ballot, Type::B(32)),
            _ => return self.unknown(),
        };
        let [d, p, members] = self.operands(i)?;
        let p = match p {
            Operand::Int(value) => {
                let always = self.always();
                if *value != 0 {
                    always
                } else {
                    self.source(&Operand::Int(0), Type::Pred)?
                }
            }
            p => self.source(p, Type::Pred)?,
        };
        let members = self.source(members, Type::U(32))?;
        let dst = self.destination(d, ty)?;
        self.emit_side(
            SideKind::Vote(mode),
            Class::Warp,
            vec![dst],
            vec![p, members],
        );
        Ok(())
    }

    fn matches(&mut self, i: &Instruction) -> Result<()> {
        self.only(i, &["any", "all", "sync"])?;
        let all = i.has("all");
        let ty = self.last_type(i)?;
        let [d, a, members] = self.operands(i)?;
        let src = vec![self.source(a, ty)?, self.source(members, Type::U(32))?];
        let dst = self.pair(d, Type::U(32))?;
        self.emit_side(SideKind::Match { all }, Class::Warp, dst, src);
        Ok(())
    }

    fn redux(&mut self, i: &Instruction) -> Result<()> {
        self.only(i, &["sync", "add", "min", "max", "and", "or", "xor"])?;
        let ty = self.last_type(i)?;
        let op = match (i.modifiers.get(1).map(String::as_str), ty) {
            (Some("add"), Type::U(32) | Type::S(32)) => ReduceOp::Add,
            (Some("min"), Type::U(32)) => ReduceOp::MinU,
            (Some("max"), Type::U(32)) => ReduceOp::MaxU,
            (Some("min"), Type::S(32)) => ReduceOp::MinS,
            (Some("max"), Type::S(32)) => ReduceOp::MaxS,
            (Some("and"), Type::B(32)) => ReduceOp::And,
            (Some("or"), Type::B(32)) => ReduceOp::Or,
            (Some("xor"), Type::B(32)) => ReduceOp::Xor,
            _ => return self.unknown(),
        };
        let [d, a, members] = self.operands(i)?;
        let src = vec![self.source(a, ty)?, self.source(members, Type::U(32))?];
        let dst = self.destination(d, ty)?;
        self.emit_side(SideKind::Reduce(op), Class::Warp, vec![dst], src);
        Ok(())
    }

    fn mma(&mut self, i: &Instruction) -> Result<()> {
        self.only(
            i,
            &[
                "sync", "aligned", "m16n8k4", "m16n8k8", "m16n8k16", "row", "col",
            ],
        )?;
        let types: Vec<Type> = i.modifiers.iter().filter_map(|m| Type::parse(m)).collect();
        let k = [("m16n8k4", 4), ("m16n8k8", 8), ("m16n8k16", 16)]
            .into_iter()
            .find(|(name, _)| i.has(name))
            .map(|(_, k)| k);
        let (Some(k), [d, a, b, c]) = (k, &types[..]) else {
            return self.unknown();
        };
        let element = match (a, b) {
            (Type::F16, Type::F16) => Element::F16,
            (Type::Bf16, Type::Bf16) => Element::Bf16,
            (Type::Tf32, Type::Tf32) => Element::Tf32,
            _ => return self.unknown(),
        };
        let accumulator = match (d, c) {
            (Type::F32, Type::F32) => Accumulator::F32,
            (Type::F16, Type::F16) => Accumulator::F16,
            _ => return self.unknown(),
        };
        let Some(kind) = Mma::new(k, element, accumulator) else {
            return self.unknown();
        };
        let [d, a, b, c] = self.operands(i)?;
        let counts = [kind.a_registers(), kind.b_registers(), kind.c_registers()];
        let mut src = Vec::new();
        let ty = Type::B(32);
        for (operand, count) in [a, b, c].into_iter().zip(counts) {
            let Operand::Vector(parts) = operand else {
                return self.error("expected registers in braces");
            };
            if parts.len() != count {
                return self.error(format!("expected {count} registers"));
            }
            for part in parts {
                src.push(self.source(part, ty)?);
            }
        }
        let Operand::Vector(parts) = d else {
            return self.error("expected registers in braces");
        };
        if parts.len() != counts[2] {
            return self.error(format!("expected {} registers", counts[2]));
        }
        let mut dst = Vec::new();
        for part in parts {
            dst.push(self.destination(part, ty)?);
        }
        self.emit_side(SideKind::Mma(kind), Class::Tensor, dst, src);
        Ok(())
    }
}
