//! Loads, stores, atomics, address conversions, asynchronous copies, matrix loads.

use super::types::Type;
use super::{Lower, Result, Site};
use crate::counters::Class;
use crate::lane::integer;
use crate::memory::{LOCAL_WINDOW, PARAM_WINDOW, SHARED_WINDOW, WINDOW_BYTES};
use crate::parse::{Instruction, Operand, RegType, VarSpace};
use crate::program::{Access, AtomOp, File, Op, Preset, Reg, SideKind, Space, Special};

/// Modifiers that say how to cache or order an access, which changes nothing here.
fn is_hint(modifier: &str) -> bool {
    matches!(
        modifier,
        "nc" | "ca"
            | "cg"
            | "cs"
            | "lu"
            | "cv"
            | "wb"
            | "wt"
            | "relaxed"
            | "acquire"
            | "release"
            | "acq_rel"
            | "volatile"
            | "weak"
            | "cta"
            | "gpu"
            | "sys"
            | "cluster"
            | "noftz"
            | "unified"
    ) || modifier.starts_with("L1::")
        || modifier.starts_with("L2::")
}

fn space_of(modifier: &str) -> Option<Space> {
    Some(match modifier {
        "global" | "const" => Space::Global,
        "shared" | "shared::cta" => Space::Shared,
        "local" => Space::Local,
        "param" | "param::entry" | "param::func" => Space::Param,
        _ => return None,
    })
}

fn vector_of(modifier: &str) -> Option<u32> {
    Some(match modifier {
        "v2" => 2,
        "v4" => 4,
        "v8" => 8,
        _ => return None,
    })
}

impl Lower<'_> {
    pub(super) fn memory(&mut self, i: &Instruction) -> Result<()> {
        match i.opcode.as_str() {
            "ld" | "ldu" | "st" => self.load_store(i),
            "atom" | "red" => self.atomic(i),
            "cvta" => self.convert_address(i),
            "isspacep" => self.is_space(i),
            "prefetch" | "prefetchu" | "discard" | "applypriority" => {
                self.emit_side(SideKind::Nothing, Class::Control, vec![], vec![]);
                Ok(())
            }
            "createpolicy" => self.create_policy(i),
            "cp" => self.copy_async(i),
            _ => self.matrix_memory(i),
        }
    }

    /// An address operand in `space`: the space it really is in, its base register, and the offset.
    fn address(&mut self, operand: &Operand, space: Space) -> Result<(Space, Option<Reg>, i64)> {
        let Operand::Address(base, offset) = operand else {
            return self.error("expected an address in brackets");
        };
        Ok(match base.as_ref() {
            Operand::Reg(register) => {
                let reg = self.frame.registers[*register as usize];
                if reg.file == File::Pred {
                    return self.error("a predicate is no address");
                }
                (space, Some(reg), *offset)
            }
            Operand::Int(value) => (space, None, *value as i64 + offset),
            Operand::Symbol(name, _) => match self.site(name)? {
                Site::Fixed(at, address) => {
                    let address = address as i64 + offset;
                    match at {
                        VarSpace::Global | VarSpace::Const => (Space::Global, None, address),
                        VarSpace::Shared => (Space::Shared, None, address),
                        VarSpace::Local => (Space::Local, None, address),
                        VarSpace::Param => (Space::Param, None, address),
                    }
                }
                Site::DynamicShared => {
                    let base = self.preset(File::R32, Preset::Special(Special::DynamicShared));
                    (Space::Shared, Some(base), *offset)
                }
            },
            _ => return self.error("this address is not known"),
        })
    }

    fn note_shared(&mut self, space: Space, bytes: u32) {
        if matches!(space, Space::Shared | Space::Generic) {
            self.shared_grain = self.shared_grain.min(bytes.trailing_zeros());
        }
    }

    /// Bytes of the register that an operand is.
    pub(super) fn declared_bytes(&self, operand: &Operand) -> u32 {
        match operand {
            Operand::Reg(register) => {
                let kind = self.frame.function.registers[*register as usize];
                kind.bytes().max(RegType::B16.bytes())
            }
            _ => 4,
        }
    }

    /// A data operand of a load or store: any register at least as wide as the type.
    fn data(&mut self, operand: &Operand, ty: Type) -> Result<Reg> {
        if let Operand::Reg(register) = operand {
            let reg = self.frame.registers[*register as usize];
            if reg.file == File::Pred || (ty.bits() == 64 && reg.file != File::R64) {
                return self.error("a register is too narrow for the type");
            }
            return Ok(reg);
        }
        if *operand == Operand::Sink {
            return Ok(self.fresh(ty.file()));
        }
        self.source(operand, ty)
    }

    /// `createpolicy`: 64 bits with a meaning only for the cache, so nothing depends on them here.
    fn create_policy(&mut self, i: &Instruction) -> Result<()> {
        for modifier in &i.modifiers {
            let known = ["range", "fractional", "cvt", "global", "L2", "b64"];
            if !known.contains(&modifier.as_str()) && !is_hint(modifier) {
                return self.unknown();
            }
        }
        let d = match (i.modifiers.first().map(String::as_str), &i.operands[..]) {
            (Some("fractional"), [d]) => d,
            (Some("fractional"), [d, fraction]) => {
                self.source(fraction, Type::F32)?;
                d
            }
            (Some("range"), [d, Operand::Address(..), primary, total]) => {
                self.source(primary, Type::U(32))?;
                self.source(total, Type::U(32))?;
                d
            }
            (Some("cvt"), [d, property]) => {
                self.source(property, Type::B(64))?;
                d
            }
            _ => return self.error("the operands are not those of a cache policy"),
        };
        let dst = self.destination(d, Type::B(64))?;
        let policy = self.constant(File::R64, 0);
        self.emit(Op::Mov64, Class::Integer, vec![dst], vec![policy], 0);
        Ok(())
    }

    /// The operands without the last one, the cache policy, which `.L2::cache_hint` adds.
    fn without_policy<'b>(&mut self, i: &'b Instruction) -> Result<&'b [Operand]> {
        if !i.has("L2::cache_hint") {
            return Ok(&i.operands);
        }
        let Some((policy, operands)) = i.operands.split_last() else {
            return self.error("the cache policy is missing");
        };
        self.source(policy, Type::B(64))?;
        Ok(operands)
    }

    fn load_store(&mut self, i: &Instruction) -> Result<()> {
        let mut space = Space::Generic;
        let mut count = 1;
        for modifier in &i.modifiers {
            if let Some(s) = space_of(modifier) {
                space = s;
            } else if let Some(n) = vector_of(modifier) {
                count = n;
            } else if !is_hint(modifier) && Type::parse(modifier).is_none() {
                return self.error(format!(
                    "the modifier `.{modifier}` is not known to the emulator here"
                ));
            }
        }
        let ty = self.last_type(i)?;
        let loads = i.opcode != "st";
        let (data, address) = match (self.without_policy(i)?, loads) {
            ([data, address], true) | ([address, data], false) => (data, address),
            _ => return self.error("expected two operands"),
        };
        let (space, base, offset) = self.address(address, space)?;
        let single = std::slice::from_ref(data);
        let parts = match data {
            Operand::Vector(parts) => parts.as_slice(),
            _ => single,
        };
        if parts.len() != count as usize {
            return self.error(format!("expected {count} registers, found {}", parts.len()));
        }
        let mut registers = Vec::new();
        for part in parts {
            registers.push(self.data(part, ty)?);
        }
        let bytes = ty.bits().div_ceil(8);
        let extend = if loads && ty.is_signed() {
            self.declared_bytes(&parts[0])
        } else {
            0
        };
        self.note_shared(space, bytes);
        let access = Access {
            space,
            bytes,
            count,
            extend: if extend > bytes { extend } else { 0 },
            offset,
            based: base.is_some(),
            plain: bytes == 4
                && extend <= bytes
                && registers.iter().all(|reg| reg.file == File::R32),
        };
        let class = match (space, loads) {
            (Space::Param, _) => Class::Parameter,
            (Space::Local, _) => Class::Local,
            (Space::Shared, true) => Class::SharedLoad,
            (Space::Shared, false) => Class::SharedStore,
            (_, true) => Class::GlobalLoad,
            (_, false) => Class::GlobalStore,
        };
        let base: Vec<Reg> = base.into_iter().collect();
        let (op, dst, src) = if loads {
            (Op::Load, registers, base)
        } else {
            (Op::Store, vec![], [base, registers].concat())
        };
        self.emit_side(SideKind::Access(access), class, dst, src);
        self.set_op(op);
        Ok(())
    }

    fn set_op(&mut self, op: Op) {
        if let Some(super::Step::Node(node)) = self.steps.last_mut() {
            node.op = op;
        }
    }

    fn atomic(&mut self, i: &Instruction) -> Result<()> {
        let mut space = Space::Generic;
        let mut name = None;
        for modifier in &i.modifiers {
            if let Some(s) = space_of(modifier) {
                space = s;
            } else if !is_hint(modifier)
                && Type::parse(modifier).is_none()
                && name.replace(modifier.as_str()).is_some()
            {
                return self.unknown();
            }
        }
        let ty = self.last_type(i)?;
        let op = match (name, ty) {
            (Some("add"), Type::F32) => AtomOp::AddF32,
            (Some("add"), Type::F64) => AtomOp::AddF64,
            (Some("add"), Type::F16x2) => AtomOp::AddF16x2,
            (Some("add"), Type::Bf16x2) => AtomOp::AddBf16x2,
            (Some("add"), _) if ty.is_integer() && ty.bits() >= 32 => AtomOp::Add,
            (Some("min"), Type::S(_)) => AtomOp::MinS,
            (Some("max"), Type::S(_)) => AtomOp::MaxS,
            (Some("min"), Type::U(_)) => AtomOp::MinU,
            (Some("max"), Type::U(_)) => AtomOp::MaxU,
            (Some("inc"), _) => AtomOp::Inc,
            (Some("dec"), _) => AtomOp::Dec,
            (Some("exch"), _) if ty.bits() >= 32 => AtomOp::Exchange,
            (Some("cas"), _) if ty.bits() >= 32 => AtomOp::Compare,
            (Some("and"), _) => AtomOp::And,
            (Some("or"), _) => AtomOp::Or,
            (Some("xor"), _) => AtomOp::Xor,
            _ => return self.unknown(),
        };
        let operands = self.without_policy(i)?;
        let (d, rest) = if i.opcode == "atom" {
            match operands.split_first() {
                Some((d, rest)) => (Some(d), rest),
                None => return self.error("expected operands"),
            }
        } else {
            (None, operands)
        };
        let values = 1 + usize::from(op == AtomOp::Compare);
        if rest.len() != 1 + values {
            return self.error("an atomic operation has a wrong number of operands");
        }
        let (space, base, offset) = self.address(&rest[0], space)?;
        let mut src: Vec<Reg> = base.into_iter().collect();
        for operand in &rest[1..] {
            src.push(self.source(operand, ty)?);
        }
        let dst = match d {
            Some(d) => vec![self.destination(d, ty)?],
            None => vec![],
        };
        let bytes = ty.bits() / 8;
        self.note_shared(space, bytes);
        if (i.has("release") || i.has("acq_rel")) && !i.has("cta") {
            self.emit_side(SideKind::Fence, Class::Helper, vec![], vec![]);
        }
        let access = Access {
            space,
            bytes,
            count: 1,
            extend: 0,
            offset,
            based: base.is_some(),
            plain: false,
        };
        self.emit_side(SideKind::Atomic { op, access }, Class::Atomic, dst, src);
        Ok(())
    }

    fn window(&self, i: &Instruction) -> Result<(u32, u64)> {
        for modifier in &i.modifiers {
            match space_of(modifier) {
                Some(Space::Global) => return Ok((0, 0)),
                Some(Space::Shared) => return Ok((SHARED_WINDOW, WINDOW_BYTES)),
                Some(Space::Local) => return Ok((LOCAL_WINDOW, WINDOW_BYTES)),
                Some(Space::Param) => return Ok((PARAM_WINDOW, WINDOW_BYTES)),
                _ => {}
            }
        }
        self.unknown()
    }

    fn convert_address(&mut self, i: &Instruction) -> Result<()> {
        let [d, a] = self.operands(i)?;
        let ty = self.last_type(i)?;
        let (window, bytes) = self.window(i)?;
        let src = self.source(a, ty)?;
        let dst = self.destination(d, ty)?;
        if ty.bits() != 64 {
            return self.error("only 64-bit addresses are known");
        }
        if window == 0 {
            self.emit(Op::Mov64, Class::Move, vec![dst], vec![src], 0);
            return Ok(());
        }
        let base = self.constant(File::R64, u64::from(window) * bytes);
        let op = if i.has("to") { Op::Sub64 } else { Op::Add64 };
        self.emit(op, Class::Integer, vec![dst], vec![src, base], 0);
        Ok(())
    }

    fn is_space(&mut self, i: &Instruction) -> Result<()> {
        let [d, a] = self.operands(i)?;
        let (window, _) = self.window(i)?;
        let src = self.source(a, Type::U(64))?;
        let dst = self.destination(d, Type::Pred)?;
        self.emit_lane(integer::is_space, window, Class::Integer, dst, vec![src]);
        Ok(())
    }

    fn copy_async(&mut self, i: &Instruction) -> Result<()> {
        let modifiers: Vec<&str> = i.modifiers.iter().map(String::as_str).collect();
        let kind = match modifiers[..] {
            ["async", "commit_group"] => SideKind::CommitGroup,
            ["async", "wait_all"] => SideKind::WaitGroup(u32::MAX),
            ["async", "wait_group"] => match &i.operands[..] {
                [Operand::Int(n)] => SideKind::WaitGroup(*n as u32),
                _ => return self.error("expected a number of groups"),
            },
            ["async", "ca" | "cg", "shared" | "shared::cta", "global", ..]
                if modifiers[4..].iter().all(|m| is_hint(m)) =>
            {
                return self.copy_async_data(i);
            }
            _ => return self.unknown(),
        };
        self.emit_side(kind, Class::Barrier, vec![], vec![]);
        Ok(())
    }

    fn copy_async_data(&mut self, i: &Instruction) -> Result<()> {
        let (to, from, bytes, size) = match self.without_policy(i)? {
            [to, from, Operand::Int(bytes)] => (to, from, *bytes as u32, None),
            [to, from, Operand::Int(bytes), size] => (to, from, *bytes as u32, Some(size)),
            _ => return self.error("expected addresses and a constant size"),
        };
        if !matches!(bytes, 4 | 8 | 16) {
            return self.error("the size is 4, 8 or 16 bytes");
        }
        let (_, shared, shared_offset) = self.address(to, Space::Shared)?;
        let (_, global, global_offset) = self.address(from, Space::Global)?;
        let mut src = Vec::new();
        for base in [shared, global] {
            src.push(match base {
                Some(base) => base,
                None => self.constant(File::R64, 0),
            });
        }
        match size {
            Some(Operand::Reg(register))
                if self.frame.registers[*register as usize].file == File::Pred =>
            {
                // The predicate says that the source is ignored.
                let ignored = self.frame.registers[*register as usize];
                let (none, all) = (
                    self.constant(File::R32, 0),
                    self.constant(File::R32, u64::from(bytes)),
                );
                let size = self.fresh(File::R32);
                let choice = vec![none, all, ignored];
                self.emit(Op::Sel32, Class::Helper, vec![size], choice, 0);
                src.push(size);
            }
            Some(size) => src.push(self.source(size, Type::U(32))?),
            None => {}
        }
        let kind = SideKind::CopyAsync {
            bytes,
            shared_offset,
            global_offset,
            sized: size.is_some(),
        };
        self.emit_side(kind, Class::AsyncCopy, vec![], src);
        Ok(())
    }

    fn matrix_memory(&mut self, i: &Instruction) -> Result<()> {
        self.only(
            i,
            &[
                "sync",
                "aligned",
                "m8n8",
                "x1",
                "x2",
                "x4",
                "trans",
                "shared",
                "shared::cta",
            ],
        )?;
        let count = [("x1", 1), ("x2", 2), ("x4", 4)]
            .into_iter()
            .find(|(name, _)| i.has(name))
            .map(|(_, n)| n);
        let Some(count) = count else {
            return self.error("the number of matrices is missing");
        };
        let loads = i.opcode == "ldmatrix";
        let (registers, address) = match (&i.operands[..], loads) {
            ([Operand::Vector(r), a], true) | ([a, Operand::Vector(r)], false) => (r, a),
            _ => return self.error("expected registers in braces and an address"),
        };
        if registers.len() != count {
            return self.error(format!("expected {count} registers"));
        }
        let (_, base, offset) = self.address(address, Space::Shared)?;
        let mut base = match base {
            Some(base) => base,
            None => self.constant(File::R32, 0),
        };
        if base.file == File::R64 && !i.has("shared") && !i.has("shared::cta") {
            // A generic address, which must lie in shared memory.
            let generic = base;
            let window = self.constant(File::R64, u64::from(SHARED_WINDOW) * WINDOW_BYTES);
            base = self.fresh(File::R64);
            let operands = vec![generic, window];
            self.emit(Op::Sub64, Class::Helper, vec![base], operands, 0);
            self.unguard_last();
        }
        let transposed = i.has("trans");
        self.note_shared(Space::Shared, 4);
        if loads {
            let mut dst = Vec::new();
            for register in registers {
                dst.push(self.destination(register, Type::B(32))?);
            }
            let kind = SideKind::LoadMatrix { transposed, offset };
            self.emit_side(kind, Class::SharedLoad, dst, vec![base]);
        } else {
            let mut src = vec![base];
            for register in registers {
                src.push(self.source(register, Type::B(32))?);
            }
            let kind = SideKind::StoreMatrix { transposed, offset };
            self.emit_side(kind, Class::SharedStore, vec![], src);
        }
        Ok(())
    }
}
