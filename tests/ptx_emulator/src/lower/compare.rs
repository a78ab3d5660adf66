//! Comparisons and selections.

use super::arithmetic::{class_of, narrow_code};
use super::types::Type;
use super::{Lower, Result};
use crate::counters::Class;
use crate::lane::{float, integer, narrow};
use crate::parse::{Instruction, Operand};
use crate::program::{Compare, File, LaneFn, Op, Reg};

fn comparison(name: &str) -> Option<Compare> {
    Some(match name {
        "eq" => Compare::Eq,
        "ne" => Compare::Ne,
        "lt" | "lo" => Compare::Lt,
        "le" | "ls" => Compare::Le,
        "gt" | "hi" => Compare::Gt,
        "ge" | "hs" => Compare::Ge,
        "equ" => Compare::Equ,
        "neu" => Compare::Neu,
        "ltu" => Compare::Ltu,
        "leu" => Compare::Leu,
        "gtu" => Compare::Gtu,
        "geu" => Compare::Geu,
        "num" => Compare::Num,
        "nan" => Compare::Nan,
        _ => return None,
    })
}

impl Lower<'_> {
    /// `d = a cmp b` for one type.
    fn compare(&mut self, ty: Type, cmp: Compare, ftz: bool, d: Reg, src: Vec<Reg>, upper: bool) {
        let class = class_of(ty);
        let op = match ty {
            Type::B(32) | Type::U(32) => Some(Op::SetU32),
            Type::S(32) => Some(Op::SetS32),
            Type::B(64) | Type::U(64) => Some(Op::SetU64),
            Type::S(64) => Some(Op::SetS64),
            Type::F32 if !ftz => Some(Op::SetF32),
            Type::F64 => Some(Op::SetF64),
            _ => None,
        };
        let x = cmp as u32;
        match op {
            Some(op) => self.emit(op, class, vec![d], src, x),
            None if ty == Type::F32 => {
                self.emit_lane(float::compare32, x | 256, class, d, src);
            }
            None if ty.is_narrow() => {
                let x = x | u32::from(ftz) << 8 | u32::from(upper) << 9 | narrow_code(ty);
                self.emit_lane(narrow::compare, x, class, d, src);
            }
            None => {
                let x = x | ty.bits() << 8 | u32::from(ty.is_signed()) << 16;
                self.emit_lane(integer::compare, x, class, d, src);
            }
        }
    }

    pub(super) fn set(&mut self, i: &Instruction) -> Result<()> {
        let Some(cmp) = i.modifiers.first().and_then(|m| comparison(m)) else {
            return self.error("the comparison is not known");
        };
        let ty = self.last_type(i)?;
        let ftz = i.has("ftz");
        self.only(i, &[i.modifiers[0].as_str(), "and", "or", "xor", "ftz"])?;
        let is_float = matches!(ty, Type::F32 | Type::F64) || ty.is_narrow();
        if !is_float && cmp as u32 > Compare::Ge as u32 {
            return self.error("integers have no such comparison");
        }
        if i.operands.len() < 3 {
            return self.error("expected at least three operands");
        }
        let src = vec![
            self.source(&i.operands[1], ty)?,
            self.source(&i.operands[2], ty)?,
        ];
        let combine = match i.modifiers.get(1).map(String::as_str) {
            Some("and") => Some(Op::AndP),
            Some("or") => Some(Op::OrP),
            Some("xor") => Some(Op::XorP),
            _ => None,
        };
        let third = match (combine, i.operands.get(3)) {
            (Some(_), Some(c)) => Some(self.source(c, Type::Pred)?),
            (None, None) => None,
            _ => return self.error("a combining form and a fourth operand go together"),
        };
        let packed = matches!(ty, Type::F16x2 | Type::Bf16x2);
        if i.opcode == "set" {
            return self.set_value(i, ty, cmp, ftz, src, combine.zip(third));
        }
        let (p, q) = match &i.operands[0] {
            Operand::Pair(p, q) => (
                self.destination(p, Type::Pred)?,
                Some(self.destination(q, Type::Pred)?),
            ),
            p => (self.destination(p, Type::Pred)?, None),
        };
        if packed {
            let Some(q) = q else {
                return self.error("a packed comparison has two predicates");
            };
            for (d, upper) in [(p, false), (q, true)] {
                let t = self.fresh(File::Pred);
                self.compare(ty, cmp, ftz, t, src.clone(), upper);
                self.combine(d, t, combine.zip(third));
            }
            return Ok(());
        }
        if q.is_none() && combine.is_none() {
            self.compare(ty, cmp, ftz, p, src, false);
            return Ok(());
        }
        let t = self.fresh(File::Pred);
        self.compare(ty, cmp, ftz, t, src, false);
        if let Some(q) = q {
            let inverse = self.fresh(File::Pred);
            self.emit(Op::NotP, Class::Integer, vec![inverse], vec![t], 0);
            self.combine(q, inverse, combine.zip(third));
        }
        self.combine(p, t, combine.zip(third));
        Ok(())
    }

    fn combine(&mut self, d: Reg, t: Reg, with: Option<(Op, Reg)>) {
        match with {
            Some((op, c)) => self.emit(op, Class::Integer, vec![d], vec![t, c], 0),
            None => self.emit(Op::MovP, Class::Integer, vec![d], vec![t], 0),
        }
    }

    /// `set`: a comparison whose result is all ones or 1.0.
    fn set_value(
        &mut self,
        i: &Instruction,
        ty: Type,
        cmp: Compare,
        ftz: bool,
        src: Vec<Reg>,
        with: Option<(Op, Reg)>,
    ) -> Result<()> {
        let types: Vec<Type> = i.modifiers.iter().filter_map(|m| Type::parse(m)).collect();
        let d_type = types.first().copied().unwrap_or(ty);
        let ones = match d_type {
            Type::F32 => 0x3f80_0000,
            Type::F16 => 0x3c00,
            Type::Bf16 => 0x3f80,
            Type::F16x2 => 0x3c00,
            Type::Bf16x2 => 0x3f80,
            Type::U(16) | Type::S(16) => 0xffff,
            Type::U(32) | Type::S(32) if matches!(ty, Type::F16x2 | Type::Bf16x2) => 0xffff,
            _ => 0xffff_ffff,
        };
        let dst = self.destination(&i.operands[0], d_type)?;
        let zero = self.constant(File::R32, 0);
        let ones = self.constant(File::R32, ones);
        let t = self.fresh(File::Pred);
        self.compare(ty, cmp, ftz, t, src.clone(), false);
        self.combine(t, t, with);
        if !matches!(ty, Type::F16x2 | Type::Bf16x2) {
            self.emit(Op::Sel32, Class::Integer, vec![dst], vec![ones, zero, t], 0);
            return Ok(());
        }
        let low = self.fresh(File::R32);
        self.emit(Op::Sel32, Class::Integer, vec![low], vec![ones, zero, t], 0);
        let u = self.fresh(File::Pred);
        self.compare(ty, cmp, ftz, u, src, true);
        self.combine(u, u, with);
        let high = self.fresh(File::R32);
        self.emit(
            Op::Sel32,
            Class::Integer,
            vec![high],
            vec![ones, zero, u],
            0,
        );
        self.emit_lane(integer::join, 16, Class::Integer, dst, vec![low, high]);
        Ok(())
    }

    pub(super) fn select(&mut self, i: &Instruction) -> Result<()> {
        let [d, a, b, c] = self.operands(i)?;
        if i.opcode == "slct" {
            let types: Vec<Type> = i.modifiers.iter().filter_map(|m| Type::parse(m)).collect();
            let [ty, by] = types[..] else {
                return self.error("expected two types");
            };
            let kind = match by {
                Type::S(32) => 0,
                Type::F32 => 1 + u32::from(i.has("ftz")),
                _ => return self.unknown(),
            };
            let src = vec![
                self.source(a, ty)?,
                self.source(b, ty)?,
                self.source(c, by)?,
            ];
            let dst = self.destination(d, ty)?;
            self.emit_lane(integer::slct, kind, Class::Integer, dst, src);
            return Ok(());
        }
        let ty = self.last_type(i)?;
        let src = vec![
            self.source(a, ty)?,
            self.source(b, ty)?,
            self.source(c, Type::Pred)?,
        ];
        let dst = self.destination(d, ty)?;
        match ty.file() {
            File::R32 => self.emit(Op::Sel32, Class::Integer, vec![dst], src, 0),
            File::R64 => self.emit(Op::Sel64, Class::Integer, vec![dst], src, 0),
            File::Pred => self.emit_lane(integer::select, 0, Class::Integer, dst, src),
        }
        Ok(())
    }

    pub(super) fn testp(&mut self, i: &Instruction) -> Result<()> {
        let kinds = [
            "finite",
            "infinite",
            "number",
            "notanumber",
            "normal",
            "subnormal",
        ];
        let Some(kind) = kinds.iter().position(|k| i.has(k)) else {
            return self.unknown();
        };
        let ty = self.last_type(i)?;
        let f: LaneFn = if ty == Type::F64 {
            float::testp64
        } else {
            float::testp32
        };
        let (dst, src) = self.mixed(i, Type::Pred, &[ty])?;
        self.emit_lane(f, kind as u32, class_of(ty), dst, src);
        Ok(())
    }
}
