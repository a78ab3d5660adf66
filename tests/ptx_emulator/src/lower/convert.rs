//! `cvt`.

use std::ops::RangeInclusive;

use super::arithmetic::modifiers;
use super::types::Type;
use super::{Lower, Result};
use crate::counters::Class;
use crate::lane::{convert, integer};
use crate::parse::Instruction;
use crate::program::{File, LaneFn, Op};

fn code(ty: Type) -> Option<u32> {
    let kind = match ty {
        Type::U(_) | Type::B(_) => convert::INT_U,
        Type::S(_) => convert::INT_S,
        Type::F16 | Type::F32 | Type::F64 => convert::FLOAT,
        Type::Bf16 => convert::BFLOAT,
        _ => return None,
    };
    Some(convert::code(kind, ty.bits()))
}

impl Lower<'_> {
    pub(super) fn convert(&mut self, i: &Instruction) -> Result<()> {
        self.only(
            i,
            &[
                "rn",
                "rz",
                "rm",
                "rp",
                "rna",
                "rni",
                "rzi",
                "rmi",
                "rpi",
                "ftz",
                "sat",
                "relu",
                "satfinite",
                "pack",
            ],
        )?;
        let types: Vec<Type> = i.modifiers.iter().filter_map(|m| Type::parse(m)).collect();
        let x = modifiers(i);
        if i.has("pack") {
            return self.convert_pack(i, &types);
        }
        let [d_type, s_type] = types[..] else {
            return self.error("expected two types");
        };
        let fp8 = |ty| matches!(ty, Type::E4m3x2 | Type::E5m2x2);
        if fp8(d_type) || fp8(s_type) {
            return self.convert_fp8(i, d_type, s_type);
        }
        if matches!(d_type, Type::F16x2 | Type::Bf16x2) {
            let [d, a, b] = self.operands(i)?;
            if s_type != Type::F32 {
                return self.unknown();
            }
            self.only(i, &["rn", "rz", "relu", "satfinite"])?;
            self.roundings(i, &["rn", "rz"], 1..=1)?;
            let kind = if d_type == Type::Bf16x2 {
                convert::BFLOAT
            } else {
                convert::FLOAT
            };
            let x = convert::constant(convert::code(kind, 16), 0, x);
            let src = vec![self.source(a, s_type)?, self.source(b, s_type)?];
            let dst = self.destination(d, d_type)?;
            self.emit_lane(convert::pair, x, Class::Conversion, dst, src);
            return Ok(());
        }
        let [d, a] = self.operands(i)?;
        // A register may be wider than the type: only the type's bits count.
        let src = match a {
            crate::parse::Operand::Reg(_) if s_type.bits() < 64 => self
                .source(a, Type::B(32))
                .or_else(|_| self.error("an operand has a register of the wrong width"))?,
            _ => self.source(a, s_type)?,
        };
        let dst = self.destination(d, d_type)?;
        if d_type == Type::Tf32 {
            self.only(i, &["rn", "rz", "rna", "relu", "satfinite"])?;
            self.roundings(i, &["rn", "rz", "rna"], 1..=1)?;
            self.emit_lane(convert::tf32, x, Class::Conversion, dst, vec![src]);
            return Ok(());
        }
        let (Some(d_code), Some(s_code)) = (code(d_type), code(s_type)) else {
            return self.unknown();
        };
        self.check_conversion(i, d_type, s_type)?;
        let register = self.declared_bytes(d);
        let integral = ["rni", "rzi", "rmi", "rpi"].iter().any(|m| i.has(m));
        let both_float = !d_type.is_integer() && !s_type.is_integer();
        if d_type.is_integer() && s_type.is_integer() && x == 0 {
            self.integers(d_type, s_type, register, dst, src);
            return Ok(());
        }
        if x == 0 && d_type == Type::F32 {
            let op = match s_type {
                Type::S(32) => Some(Op::S32ToF),
                Type::U(32) => Some(Op::U32ToF),
                _ => None,
            };
            if let Some(op) = op {
                self.emit(op, Class::Conversion, vec![dst], vec![src], 0);
                return Ok(());
            }
        }
        if (d_type, s_type, x) == (Type::S(32), Type::F32, crate::lane::float::RZ) {
            self.emit_lane(convert::f32_to_s32_rz, 0, Class::Conversion, dst, vec![src]);
            return Ok(());
        }
        let x = x | if integral && both_float {
            convert::INTEGRAL
        } else {
            0
        };
        let x = convert::constant(d_code, s_code, x) | (register - 1) << convert::REGISTER;
        self.emit_lane(convert::cvt, x, Class::Conversion, dst, vec![src]);
        Ok(())
    }

    /// An error unless the number of these modifiers is in `allowed`.
    fn roundings(
        &self,
        i: &Instruction,
        names: &[&str],
        allowed: RangeInclusive<usize>,
    ) -> Result<()> {
        let found = names.iter().filter(|name| i.has(name)).count();
        if allowed.contains(&found) {
            return Ok(());
        }
        let names = names.join(", .");
        self.error(match (*allowed.end(), found) {
            (0, _) => format!("this conversion has none of the modifiers .{names}"),
            (_, 0) => format!("this conversion must say how it rounds: .{names}"),
            _ => format!("one of .{names} is allowed"),
        })
    }

    /// An error for a conversion that PTX does not have. The rules are the ISA's; where its text is not precise, they
    /// follow NVIDIA's assembler.
    fn check_conversion(&self, i: &Instruction, d: Type, s: Type) -> Result<()> {
        let bf16 = [d, s].contains(&Type::Bf16);
        let (floats, integrals) = match (d.is_integer(), s.is_integer()) {
            (true, true) => (0..=0, 0..=0),
            (false, true) => (1..=1, 0..=0),
            (true, false) => (0..=0, 1..=1),
            _ if d == s => (0..=0, 0..=1),
            // The conversion is exact, or from f16 to bf16; a rounding may still be given.
            _ if s == Type::Bf16 || (d, s) == (Type::Bf16, Type::F16) => (0..=1, 0..=0),
            _ if d.bits() > s.bits() => (0..=0, 0..=0),
            _ => (1..=1, 0..=0),
        };
        self.roundings(i, &["rn", "rz", "rm", "rp"], floats)?;
        self.roundings(i, &["rni", "rzi", "rmi", "rpi"], integrals)?;
        if i.has("rna") {
            return self.error("only a conversion to tf32 rounds ties away from zero");
        }
        if [d, s].iter().any(|ty| matches!(ty, Type::B(_))) {
            return self.error("bits without a type cannot be converted");
        }
        if bf16 && d.bits().min(s.bits()) == 8 {
            return self.error("there is no conversion between bf16 and 8 bits");
        }
        let holds_all = d.is_integer()
            && s.is_integer()
            && (d.is_signed() || !s.is_signed())
            && d.bits() >= s.bits() + u32::from(d.is_signed() && !s.is_signed());
        if i.has("sat") && (bf16 || holds_all) {
            return self.error("this conversion has no `.sat`");
        }
        if i.has("ftz") && ![d, s].contains(&Type::F32) {
            return self.error("`.ftz` needs f32 as one of the two types");
        }
        let finishes = i.has("relu") || i.has("satfinite");
        let plain = !["rm", "rp", "ftz", "sat"].iter().any(|m| i.has(m));
        if finishes && !(matches!(d, Type::F16 | Type::Bf16) && s == Type::F32 && plain) {
            return self.error("this conversion has neither `.relu` nor `.satfinite`");
        }
        Ok(())
    }

    /// Conversions to and from two 8-bit numbers.
    fn convert_fp8(&mut self, i: &Instruction, d_type: Type, s_type: Type) -> Result<()> {
        let precise = |ty| u32::from(ty == Type::E4m3x2) * convert::PRECISE;
        let x = modifiers(i) | precise(d_type) | precise(s_type);
        let class = Class::Conversion;
        if d_type == Type::F16x2 {
            self.only(i, &["rn", "relu"])?;
            self.roundings(i, &["rn"], 1..=1)?;
            let (dst, src) = self.mixed(i, d_type, &[s_type])?;
            self.emit_lane(convert::fp8_to_f16, x, class, dst, src);
            return Ok(());
        }
        self.only(i, &["rn", "relu", "satfinite"])?;
        self.roundings(i, &["rn"], 1..=1)?;
        if !i.has("satfinite") {
            return self.error("a conversion to fp8 needs `.satfinite`");
        }
        let (f, sources): (LaneFn, &[Type]) = match s_type {
            Type::F32 => (convert::fp8_from_f32, &[Type::F32, Type::F32]),
            Type::F16x2 => (convert::fp8_from_f16, &[Type::F16x2]),
            _ => return self.unknown(),
        };
        let (dst, src) = self.mixed(i, d_type, sources)?;
        self.emit_lane(f, x, class, dst, src);
        Ok(())
    }

    /// Between integers without saturation: extension, truncation, or nothing.
    fn integers(
        &mut self,
        d_type: Type,
        s_type: Type,
        register: u32,
        dst: crate::program::Reg,
        src: crate::program::Reg,
    ) {
        let class = Class::Integer;
        let (d_bits, s_bits) = (d_type.bits(), s_type.bits());
        match (dst.file, src.file) {
            (File::R64, File::R32) if s_type == Type::S(32) => {
                self.emit(Op::Sext, class, vec![dst], vec![src], 0);
            }
            (File::R64, File::R32) if s_bits == 32 => {
                self.emit(Op::Zext, class, vec![dst], vec![src], 0);
            }
            (File::R32, File::R64) if d_bits == 32 => {
                self.emit(Op::Trunc, class, vec![dst], vec![src], 0);
            }
            (File::R64, File::R64) if s_bits == 64 => {
                self.emit(Op::Mov64, class, vec![dst], vec![src], 0);
            }
            (File::R32, File::R32) if s_bits == 32 && d_bits == 32 => {
                self.emit(Op::Mov32, class, vec![dst], vec![src], 0);
            }
            _ => {
                // To the narrower width first, then extended by the source's sign to the register.
                let narrow = d_bits.min(s_bits);
                let signed = if d_bits > s_bits {
                    s_type.is_signed()
                } else {
                    d_type.is_signed()
                };
                let whole = 8 * register;
                if signed {
                    let x = narrow | whole << 8;
                    self.emit_lane(integer::extend, x, class, dst, vec![src]);
                } else {
                    self.emit_lane(integer::part, narrow << 8, class, dst, vec![src]);
                }
            }
        }
    }

    fn convert_pack(&mut self, i: &Instruction, types: &[Type]) -> Result<()> {
        let Some(&small) = types.first() else {
            return self.error("expected a type");
        };
        if !matches!(i.operands.len(), 3 | 4) {
            return self.error("expected three or four operands");
        }
        let x = small.bits() | u32::from(small.is_signed()) << 8;
        let mut src = Vec::new();
        for operand in &i.operands[1..] {
            src.push(self.source(operand, Type::S(32))?);
        }
        if src.len() < 3 {
            src.push(self.constant(File::R32, 0));
        }
        let dst = self.destination(&i.operands[0], Type::B(32))?;
        self.emit_lane(convert::pack, x, Class::Conversion, dst, src);
        Ok(())
    }
}
