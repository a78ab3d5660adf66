//! Arithmetic, logic and moves.

use super::types::Type;
use super::{FREE, Lower, Result};
use crate::counters::Class;
use crate::lane::{float, integer, narrow};
use crate::parse::{Instruction, Operand};
use crate::program::{File, LaneFn, Op, Reg};

/// The modifiers of [`float`] as an instruction has them.
pub(super) fn modifiers(i: &Instruction) -> u32 {
    i.modifiers.iter().fold(0, |x, m| {
        x | match m.as_str() {
            "rz" | "rzi" => float::RZ,
            "rm" | "rmi" => float::RM,
            "rp" | "rpi" => float::RP,
            "rna" => float::RNA,
            "ftz" => float::FTZ,
            "sat" => float::SAT,
            "NaN" => float::NAN,
            "relu" => float::RELU,
            "satfinite" => float::SATFINITE,
            "xorsign" => float::XORSIGN,
            _ => 0,
        }
    })
}

pub(super) fn narrow_code(ty: Type) -> u32 {
    let bf = matches!(ty, Type::Bf16 | Type::Bf16x2);
    let packed = matches!(ty, Type::F16x2 | Type::Bf16x2);
    (u32::from(bf) * narrow::BF) | (u32::from(packed) * narrow::PACKED)
}

pub(super) fn class_of(ty: Type) -> Class {
    match ty {
        Type::F32 => Class::F32,
        Type::F64 => Class::F64,
        _ if ty.is_narrow() => Class::Half,
        _ => Class::Integer,
    }
}

/// How many sources an instruction has, where that does not depend on more than its opcode.
fn arity(opcode: &str, found: usize) -> usize {
    match opcode {
        "neg" | "abs" | "not" | "cnot" | "brev" | "popc" | "clz" | "bfind" | "rcp" | "sqrt"
        | "rsqrt" | "ex2" | "lg2" | "sin" | "cos" | "tanh" | "testp" | "mov" => 1,
        "mad" | "fma" | "madc" | "mad24" | "sad" | "prmt" | "shf" | "dp4a" | "dp2a" | "bfe"
        | "selp" | "slct" => 3,
        "lop3" | "bfi" => 4,
        // `min` and `max` have three-operand forms, `setp` combines with a predicate.
        "min" | "max" | "set" | "setp" => found.clamp(2, 3),
        _ => 2,
    }
}

impl Lower<'_> {
    pub(super) fn arithmetic(&mut self, i: &Instruction) -> Result<()> {
        let found = i.operands.len();
        let expected = arity(&i.opcode, found.saturating_sub(1));
        if found != expected + 1 {
            return self.error(format!("expected {} operands, found {found}", expected + 1));
        }
        match i.opcode.as_str() {
            "mov" => return self.mov(i),
            "setp" | "set" => return self.set(i),
            "selp" | "slct" => return self.select(i),
            "mul" | "mad" | "mul24" | "mad24" | "addc" | "subc" | "madc" | "fma" | "add"
            | "sub" => return self.sums(i),
            "testp" => return self.testp(i),
            // Its mode stands behind its type.
            "prmt" => return self.integer(i, Type::B(32)),
            _ => {}
        }
        let ty = self.last_type(i)?;
        if ty == Type::Pred || ty.is_integer() {
            return self.integer(i, ty);
        }
        let x = modifiers(i);
        let known = [
            "rn", "rz", "rm", "rp", "ftz", "sat", "NaN", "xorsign", "abs", "approx", "full",
        ];
        self.only(i, &known)?;
        let count = i.operands.len() - 1;
        if ty.is_narrow() {
            let f: LaneFn = match i.opcode.as_str() {
                "min" => narrow::min,
                "max" => narrow::max,
                "neg" => narrow::neg,
                "abs" => narrow::abs,
                "ex2" => narrow::ex2,
                "tanh" => narrow::tanh,
                _ => return self.unknown(),
            };
            return self.lanes(i, ty, f, x | narrow_code(ty), class_of(ty), count);
        }
        if ty == Type::F64 {
            let approx = i.has("approx");
            let f: LaneFn = match i.opcode.as_str() {
                "div" => float::div64,
                "rcp" if approx => float::rcp64_approx,
                "rcp" => float::rcp64,
                "rsqrt" if i.has("ftz") => float::rsqrt64_approx,
                "rsqrt" => float::rsqrt64,
                "sqrt" => float::sqrt64,
                "neg" => float::neg64,
                "abs" => float::abs64,
                "min" => float::min64,
                "max" => float::max64,
                "copysign" => float::copysign64,
                _ => return self.unknown(),
            };
            return self.lanes(i, ty, f, x, Class::F64, count);
        }
        if ty != Type::F32 {
            return self.unknown();
        }
        let hot = match i.opcode.as_str() {
            "min" if count == 2 => Some((Op::MinF, Class::F32)),
            "max" if count == 2 => Some((Op::MaxF, Class::F32)),
            "neg" => Some((Op::NegF, Class::F32)),
            "abs" => Some((Op::AbsF, Class::F32)),
            "rcp" => Some((Op::RcpF, Class::Special)),
            "sqrt" => Some((Op::SqrtF, Class::Special)),
            "div" if !i.has("approx") => Some((Op::DivF, Class::Special)),
            _ => None,
        };
        if let Some((op, class)) = hot.filter(|_| x == 0) {
            return self.rows(i, ty, op, class, count);
        }
        let (f, class): (LaneFn, Class) = match (i.opcode.as_str(), count) {
            ("min", 2) => (float::min, Class::F32),
            ("max", 2) => (float::max, Class::F32),
            ("min", 3) => (float::min3, Class::F32),
            ("max", 3) => (float::max3, Class::F32),
            ("neg", 1) => (float::neg, Class::F32),
            ("abs", 1) => (float::abs, Class::F32),
            ("copysign", 2) => (float::copysign32, Class::F32),
            ("div", 2) if i.has("approx") => (float::div_approx, Class::Special),
            ("div", 2) => (float::div, Class::Special),
            ("rcp", 1) => (float::rcp, Class::Special),
            ("sqrt", 1) => (float::sqrt, Class::Special),
            ("rsqrt", 1) => (float::rsqrt, Class::Special),
            ("ex2", 1) => (float::ex2, Class::Special),
            ("lg2", 1) => (float::lg2, Class::Special),
            ("sin", 1) => (float::sin, Class::Special),
            ("cos", 1) => (float::cos, Class::Special),
            ("tanh", 1) => (float::tanh, Class::Special),
            _ => return self.unknown(),
        };
        self.lanes(i, ty, f, x, class, count)
    }

    /// An instruction with a vector arm: one destination and `count` sources of one type.
    fn rows(
        &mut self,
        i: &Instruction,
        ty: Type,
        op: Op,
        class: Class,
        count: usize,
    ) -> Result<()> {
        let (dst, src) = self.uniform(i, ty, count)?;
        self.emit(op, class, vec![dst], src, 0);
        Ok(())
    }

    fn lanes(
        &mut self,
        i: &Instruction,
        ty: Type,
        f: LaneFn,
        x: u32,
        class: Class,
        count: usize,
    ) -> Result<()> {
        let (dst, src) = self.uniform(i, ty, count)?;
        self.emit_lane(f, x, class, dst, src);
        Ok(())
    }

    fn uniform(&mut self, i: &Instruction, ty: Type, count: usize) -> Result<(Reg, Vec<Reg>)> {
        if i.operands.len() != count + 1 || count > 3 {
            return self.error(format!("expected {} operands", count + 1));
        }
        let src = i.operands[1..]
            .iter()
            .map(|operand| self.source(operand, ty))
            .collect::<Result<Vec<_>>>()?;
        Ok((self.destination(&i.operands[0], ty)?, src))
    }

    /// Sources of the types given, in order.
    pub(super) fn mixed(
        &mut self,
        i: &Instruction,
        d: Type,
        types: &[Type],
    ) -> Result<(Reg, Vec<Reg>)> {
        if i.operands.len() != types.len() + 1 {
            return self.error(format!("expected {} operands", types.len() + 1));
        }
        let src = i.operands[1..]
            .iter()
            .zip(types)
            .map(|(operand, &ty)| self.source(operand, ty))
            .collect::<Result<Vec<_>>>()?;
        Ok((self.destination(&i.operands[0], d)?, src))
    }

    fn integer(&mut self, i: &Instruction, ty: Type) -> Result<()> {
        let (bits, is_signed) = (ty.bits(), ty.is_signed());
        let wide = bits == 64;
        let full = bits >= 32;
        self.only(
            i,
            &[
                "wrap", "clamp", "shiftamt", "l", "r", "f4e", "b4e", "rc8", "ecl", "ecr", "rc16",
                "lo", "hi", "relu",
            ],
        )?;
        let u32t = Type::U(32);
        if ty == Type::Pred {
            let op = match i.opcode.as_str() {
                "and" => Op::AndP,
                "or" => Op::OrP,
                "xor" => Op::XorP,
                "not" => Op::NotP,
                _ => return self.unknown(),
            };
            return self.rows(i, ty, op, Class::Integer, i.operands.len() - 1);
        }
        let hot = match (i.opcode.as_str(), wide) {
            ("and", false) => Some(Op::And32),
            ("or", false) => Some(Op::Or32),
            ("xor", false) => Some(Op::Xor32),
            ("and", true) => Some(Op::And64),
            ("or", true) => Some(Op::Or64),
            ("xor", true) => Some(Op::Xor64),
            ("min", false) if full && !i.has("relu") => {
                Some(if is_signed { Op::MinS32 } else { Op::MinU32 })
            }
            ("max", false) if full && !i.has("relu") => {
                Some(if is_signed { Op::MaxS32 } else { Op::MaxU32 })
            }
            _ => None,
        };
        if let Some(op) = hot {
            return self.rows(i, ty, op, Class::Integer, 2);
        }
        if matches!(i.opcode.as_str(), "shl" | "shr") {
            let op = match (i.opcode.as_str(), bits, is_signed) {
                ("shl", 32, _) => Some(Op::Shl32),
                ("shr", 32, true) => Some(Op::ShrS32),
                ("shr", 32, false) => Some(Op::ShrU32),
                ("shl", 64, _) => Some(Op::Shl64),
                ("shr", 64, true) => Some(Op::ShrS64),
                ("shr", 64, false) => Some(Op::ShrU64),
                _ => None,
            };
            let (dst, src) = self.mixed(i, ty, &[ty, u32t])?;
            match op {
                Some(op) => self.emit(op, Class::Integer, vec![dst], src, 0),
                None => {
                    let f: LaneFn = match (i.opcode.as_str(), is_signed) {
                        ("shl", _) => integer::shl,
                        (_, true) => integer::shr_s,
                        _ => integer::shr_u,
                    };
                    self.emit_lane(f, bits, Class::Integer, dst, src);
                }
            }
            return Ok(());
        }
        match i.opcode.as_str() {
            "lop3" => return self.lop3(i),
            "bfe" | "bfi" => return self.bit_field(i, ty),
            "not" if bits == 32 => return self.rows(i, ty, Op::Not32, Class::Integer, 1),
            "neg" if bits == 32 => return self.rows(i, ty, Op::Neg32, Class::Integer, 1),
            "popc" | "clz" | "bfind" => {
                let f: LaneFn = match i.opcode.as_str() {
                    "popc" => integer::popc,
                    "clz" => integer::clz,
                    _ => integer::bfind,
                };
                let mut x = bits;
                if i.opcode == "bfind" {
                    x |= u32::from(is_signed) << 8 | u32::from(i.has("shiftamt")) << 9;
                }
                let (dst, src) = self.mixed(i, u32t, &[ty])?;
                self.emit_lane(f, x, Class::Integer, dst, src);
                return Ok(());
            }
            "prmt" => {
                let mode = ["f4e", "b4e", "rc8", "ecl", "ecr", "rc16"]
                    .iter()
                    .position(|m| i.has(m))
                    .map_or(0, |n| n as u32 + 1);
                return self.lanes(i, Type::B(32), integer::prmt, mode, Class::Integer, 3);
            }
            "dp4a" | "dp2a" => {
                let types: Vec<bool> = i
                    .modifiers
                    .iter()
                    .filter_map(|m| Type::parse(m))
                    .map(Type::is_signed)
                    .collect();
                let [a, b] = types[..] else {
                    return self.error("expected two types");
                };
                let x = u32::from(a) | u32::from(b) << 1 | u32::from(i.has("hi")) << 2;
                let f: LaneFn = if i.opcode == "dp4a" {
                    integer::dp4a
                } else {
                    integer::dp2a
                };
                return self.lanes(i, u32t, f, x, Class::Integer, 3);
            }
            _ => {}
        }
        let pick = |s: LaneFn, u: LaneFn| if is_signed { s } else { u };
        let relu = i.has("relu");
        let (f, x, count): (LaneFn, u32, usize) = match i.opcode.as_str() {
            "div" => (pick(integer::div_s, integer::div_u), bits, 2),
            "rem" => (pick(integer::rem_s, integer::rem_u), bits, 2),
            "min" if relu => (integer::min_s_relu, bits, 2),
            "max" if relu => (integer::max_s_relu, bits, 2),
            "min" => (pick(integer::min_s, integer::min_u), bits, 2),
            "max" => (pick(integer::max_s, integer::max_u), bits, 2),
            "neg" => (integer::neg, bits, 1),
            "abs" => (integer::abs, bits, 1),
            "not" => (integer::not, bits, 1),
            "cnot" => (integer::cnot, bits, 1),
            "brev" => (integer::brev, bits, 1),
            "sad" => (pick(integer::sad_s, integer::sad_u), bits, 3),
            "bmsk" => (integer::bmsk, u32::from(i.has("wrap")), 2),
            "shf" => {
                let x = u32::from(i.has("r")) | u32::from(i.has("clamp")) << 1;
                (integer::shf, x, 3)
            }
            _ => return self.unknown(),
        };
        self.lanes(i, ty, f, x, Class::Integer, count)
    }

    fn lop3(&mut self, i: &Instruction) -> Result<()> {
        let [d, a, b, c, table] = self.operands(i)?;
        let Operand::Int(table) = table else {
            return self.error("the table of lop3 is no number");
        };
        let ty = Type::B(32);
        let src = vec![
            self.source(a, ty)?,
            self.source(b, ty)?,
            self.source(c, ty)?,
        ];
        let dst = self.destination(d, ty)?;
        self.emit(
            Op::Lop3,
            Class::Integer,
            vec![dst],
            src,
            *table as u32 & 255,
        );
        Ok(())
    }

    fn bit_field(&mut self, i: &Instruction, ty: Type) -> Result<()> {
        let u32t = Type::U(32);
        if i.opcode == "bfe" {
            let x = ty.bits() | u32::from(ty.is_signed()) << 8;
            let (dst, src) = self.mixed(i, ty, &[ty, u32t, u32t])?;
            self.emit_lane(integer::bfe, x, Class::Integer, dst, src);
            return Ok(());
        }
        let (dst, src) = self.mixed(i, ty, &[ty, ty, u32t, u32t])?;
        let field = self.fresh(File::R32);
        self.emit_lane(
            integer::bfi_field,
            ty.bits(),
            Class::Integer,
            field,
            vec![src[2], src[3]],
        );
        self.emit_lane(
            integer::bfi,
            ty.bits(),
            Class::Integer,
            dst,
            vec![src[0], src[1], field],
        );
        Ok(())
    }

    /// Sums and products, which come with carries, wide results and every type.
    fn sums(&mut self, i: &Instruction) -> Result<()> {
        let ty = self.last_type(i)?;
        let x = modifiers(i);
        let (bits, is_signed) = (ty.bits(), ty.is_signed());
        let count = i.operands.len() - 1;
        if !ty.is_integer() {
            self.only(i, &["rn", "rz", "rm", "rp", "ftz", "sat", "relu", "oob"])?;
            let op = i.opcode.as_str();
            if ty.is_narrow() {
                let f: LaneFn = match op {
                    "add" => narrow::add,
                    "sub" => narrow::sub,
                    "mul" => narrow::mul,
                    "fma" => narrow::fma,
                    _ => return self.unknown(),
                };
                return self.lanes(i, ty, f, x | narrow_code(ty), Class::Half, count);
            }
            let (hot, f, class): (Op, LaneFn, Class) = match (op, ty) {
                ("add", Type::F32) => (Op::AddF, float::add, Class::F32),
                ("sub", Type::F32) => (Op::SubF, float::sub, Class::F32),
                ("mul", Type::F32) => (Op::MulF, float::mul, Class::F32),
                ("fma" | "mad", Type::F32) => (Op::FmaF, float::fma, Class::Fma),
                ("add", Type::F64) => (Op::AddD, float::add64, Class::F64),
                ("sub", Type::F64) => (Op::SubD, float::sub64, Class::F64),
                ("mul", Type::F64) => (Op::MulD, float::mul64, Class::F64),
                ("fma" | "mad", Type::F64) if x == 0 => (Op::FmaD, float::add64, Class::F64),
                _ => return self.unknown(),
            };
            return if x == 0 {
                let (dst, src) = self.uniform(i, ty, count)?;
                let free = if i.has("rn") { 0 } else { FREE };
                self.emit(hot, class, vec![dst], src, free);
                Ok(())
            } else {
                self.lanes(i, ty, f, x, class, count)
            };
        }
        self.only(i, &["lo", "hi", "wide", "cc", "sat"])?;
        let (hi, wide) = (i.has("hi"), i.has("wide"));
        if i.has("cc") || i.opcode.ends_with('c') {
            return self.carrying(i, ty);
        }
        if i.has("sat") {
            let f: LaneFn = match (i.opcode.as_str(), ty) {
                ("add", Type::S(32)) => integer::add_sat,
                ("sub", Type::S(32)) => integer::sub_sat,
                ("mad", Type::S(32)) if hi => integer::mad_hi_sat,
                _ => return self.unknown(),
            };
            return self.lanes(i, ty, f, 0, Class::Integer, count);
        }
        if wide {
            let d = Type::B(2 * bits);
            let mad = i.opcode == "mad";
            let types = [ty, ty, d];
            let (dst, src) = self.mixed(i, d, &types[..2 + usize::from(mad)])?;
            if bits == 32 {
                let op = match (mad, is_signed) {
                    (false, true) => Op::MulWideS,
                    (false, false) => Op::MulWideU,
                    (true, true) => Op::MadWideS,
                    (true, false) => Op::MadWideU,
                };
                self.emit(op, Class::Integer, vec![dst], src, 0);
            } else {
                let f: LaneFn = match (mad, is_signed) {
                    (false, true) => integer::mul_wide_s,
                    (false, false) => integer::mul_wide_u,
                    (true, true) => integer::mad_wide_s,
                    (true, false) => integer::mad_wide_u,
                };
                self.emit_lane(f, bits, Class::Integer, dst, src);
            }
            return Ok(());
        }
        let hot = match (i.opcode.as_str(), bits, hi) {
            ("add", 32, _) => Some(Op::Add32),
            ("sub", 32, _) => Some(Op::Sub32),
            ("mul", 32, false) => Some(Op::Mul32),
            ("mad", 32, false) => Some(Op::Mad32),
            ("mul", 32, true) if is_signed => Some(Op::MulHiS32),
            ("mul", 32, true) => Some(Op::MulHiU32),
            ("add", 64, _) => Some(Op::Add64),
            ("sub", 64, _) => Some(Op::Sub64),
            ("mul", 64, false) => Some(Op::Mul64),
            ("mad", 64, false) => Some(Op::Mad64),
            _ => None,
        };
        if let Some(op) = hot {
            return self.rows(i, ty, op, Class::Integer, count);
        }
        let f: LaneFn = match (i.opcode.as_str(), hi, is_signed) {
            ("add", ..) => integer::add,
            ("sub", ..) => integer::sub,
            ("mul", false, _) => integer::mul_lo,
            ("mad", false, _) => integer::mad_lo,
            ("mul", true, true) => integer::mul_hi_s,
            ("mul", true, false) => integer::mul_hi_u,
            ("mad", true, true) => integer::mad_hi_s,
            ("mad", true, false) => integer::mad_hi_u,
            ("mul24", false, true) => integer::mul24_lo_s,
            ("mul24", false, false) => integer::mul24_lo_u,
            ("mul24", true, true) => integer::mul24_hi_s,
            ("mul24", true, false) => integer::mul24_hi_u,
            ("mad24", ..) => {
                let f: LaneFn = match (hi, is_signed) {
                    (false, true) => integer::mul24_lo_s,
                    (false, false) => integer::mul24_lo_u,
                    (true, true) => integer::mul24_hi_s,
                    (true, false) => integer::mul24_hi_u,
                };
                let (dst, src) = self.uniform(i, ty, 3)?;
                let product = self.fresh(File::R32);
                self.emit_lane(f, 0, Class::Integer, product, src[..2].to_vec());
                self.emit(
                    Op::Add32,
                    Class::Integer,
                    vec![dst],
                    vec![product, src[2]],
                    0,
                );
                return Ok(());
            }
            _ => return self.unknown(),
        };
        self.lanes(i, ty, f, bits, Class::Integer, count)
    }

    /// `add.cc`, `addc`, `sub.cc`, `subc`, `mad.cc`, `madc`, with the carry as a predicate.
    fn carrying(&mut self, i: &Instruction, ty: Type) -> Result<()> {
        let bits = ty.bits();
        let carry = match self.carry {
            Some(carry) => carry,
            None => {
                let carry = self.fresh(File::Pred);
                self.carry = Some(carry);
                carry
            }
        };
        let subtracts = i.opcode.starts_with("sub");
        let takes = if i.opcode.ends_with('c') {
            carry
        } else {
            self.constant(File::Pred, u64::from(subtracts))
        };
        let (dst, mut src) = self.uniform(i, ty, i.operands.len() - 1)?;
        if i.opcode.starts_with("mad") {
            let f: LaneFn = match (i.has("hi"), ty.is_signed()) {
                (false, _) => integer::mul_lo,
                (true, true) => integer::mul_hi_s,
                (true, false) => integer::mul_hi_u,
            };
            let product = self.fresh(ty.file());
            self.emit_lane(f, bits, Class::Integer, product, src[..2].to_vec());
            src = vec![product, src[2]];
        }
        src.push(takes);
        let (value, out): (LaneFn, LaneFn) = if subtracts {
            (integer::sub_with, integer::carry_of_sub)
        } else {
            (integer::add_with, integer::carry_of_add)
        };
        let result = self.fresh(ty.file());
        self.emit_lane(value, bits, Class::Integer, result, src.clone());
        if i.has("cc") {
            self.emit_lane(out, bits, Class::Integer, carry, src);
        }
        let op = if bits == 64 { Op::Mov64 } else { Op::Mov32 };
        self.emit(op, Class::Integer, vec![dst], vec![result], 0);
        Ok(())
    }

    fn mov(&mut self, i: &Instruction) -> Result<()> {
        let [d, a] = self.operands(i)?;
        let ty = self.last_type(i)?;
        self.only(i, &[])?;
        let bits = ty.bits();
        match (d, a) {
            (_, Operand::Vector(parts)) | (Operand::Vector(parts), _)
                if !matches!(parts.len(), 2 | 4) =>
            {
                return self.error("a register has two or four parts");
            }
            (_, Operand::Vector(parts)) => {
                let part_bits = bits / parts.len() as u32;
                let part = Type::B(part_bits);
                let mut value = self.source(&parts[0], part)?;
                for (n, operand) in parts.iter().enumerate().skip(1) {
                    let next = self.source(operand, part)?;
                    let last = n + 1 == parts.len();
                    let joined = if last {
                        self.destination(d, ty)?
                    } else {
                        self.fresh(ty.file())
                    };
                    let x = part_bits * n as u32;
                    self.emit_lane(integer::join, x, Class::Move, joined, vec![value, next]);
                    value = joined;
                }
            }
            (Operand::Vector(parts), _) => {
                let part_bits = bits / parts.len() as u32;
                let value = self.source(a, ty)?;
                // A part may be the register that is taken apart.
                let mut copies = Vec::new();
                for (n, operand) in parts.iter().enumerate() {
                    if *operand == Operand::Sink {
                        continue;
                    }
                    let part = self.fresh(Type::B(part_bits).file());
                    let x = (part_bits * n as u32) | (part_bits << 8);
                    self.emit_lane(integer::part, x, Class::Move, part, vec![value]);
                    copies.push((self.destination(operand, Type::B(part_bits))?, part));
                }
                for (dst, part) in copies {
                    let op = if dst.file == File::R64 {
                        Op::Mov64
                    } else {
                        Op::Mov32
                    };
                    self.emit(op, Class::Move, vec![dst], vec![part], 0);
                }
            }
            (_, Operand::Special(name))
                if matches!(
                    name.as_str(),
                    "%clock" | "%clock64" | "%clock_hi" | "%globaltimer" | "%globaltimer_lo"
                ) =>
            {
                let dst = self.destination(d, ty)?;
                self.emit_side(
                    crate::program::SideKind::Clock,
                    Class::Integer,
                    vec![dst],
                    vec![],
                );
            }
            _ => {
                let src = self.source(a, ty)?;
                let dst = self.destination(d, ty)?;
                let op = match ty.file() {
                    File::Pred => Op::MovP,
                    File::R32 => Op::Mov32,
                    File::R64 => Op::Mov64,
                };
                self.emit(op, Class::Move, vec![dst], vec![src], 0);
            }
        }
        Ok(())
    }
}
