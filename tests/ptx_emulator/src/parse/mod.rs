//! PTX text to a tree: functions with resolved registers, variables with their initial bytes, instructions with
//! operands. Nothing here knows what an instruction means.

mod lexer;
mod module;
mod operand;

pub(crate) use module::parse;

/// A register's declared type, as far as it matters: its width and whether it is a predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RegType {
    Pred,
    B8,
    B16,
    B32,
    B64,
}

impl RegType {
    pub(crate) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "pred" => RegType::Pred,
            "b8" | "u8" | "s8" => RegType::B8,
            "b16" | "u16" | "s16" | "f16" | "bf16" => RegType::B16,
            "b32" | "u32" | "s32" | "f32" | "f16x2" | "bf16x2" | "tf32" => RegType::B32,
            "b64" | "u64" | "s64" | "f64" => RegType::B64,
            _ => return None,
        })
    }

    pub(crate) fn bytes(self) -> u32 {
        match self {
            RegType::Pred | RegType::B8 => 1,
            RegType::B16 => 2,
            RegType::B32 => 4,
            RegType::B64 => 8,
        }
    }
}

/// An operand.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Operand {
    /// A register by its index in the function.
    Reg(u32),
    /// `!p`.
    Not(u32),
    /// `r.h1`: a byte or half of a register, by its name.
    Part(u32, String),
    Int(i128),
    F32(u32),
    F64(u64),
    /// `{a, b}`.
    Vector(Vec<Operand>),
    /// `[base + offset]`.
    Address(Box<Operand>, i64),
    /// A label, variable or function, plus an offset.
    Symbol(String, i64),
    /// A special register such as `%tid.x`.
    Special(String),
    /// `d|p`.
    Pair(Box<Operand>, Box<Operand>),
    /// `_`.
    Sink,
    /// `(a, b)` of a call.
    Group(Vec<Operand>),
}

/// An instruction.
#[derive(Clone, Debug)]
pub(crate) struct Instruction {
    /// `@p` or `@!p`: the register and whether it is negated.
    pub(crate) guard: Option<(u32, bool)>,
    pub(crate) opcode: String,
    pub(crate) modifiers: Vec<String>,
    pub(crate) operands: Vec<Operand>,
    /// Line of the PTX.
    pub(crate) line: u32,
    /// Source file number and line, zero if unknown.
    pub(crate) source: (u32, u32),
}

impl Instruction {
    /// `ld.global.f32`.
    pub(crate) fn name(&self) -> String {
        let mut name = self.opcode.clone();
        for modifier in &self.modifiers {
            name.push('.');
            name.push_str(modifier);
        }
        name
    }

    pub(crate) fn has(&self, modifier: &str) -> bool {
        self.modifiers.iter().any(|m| m == modifier)
    }
}

/// A statement of a function body.
#[derive(Clone, Debug)]
pub(crate) enum Statement {
    Label(String),
    Instruction(Instruction),
    /// `.branchtargets` of the label before it.
    Targets(Vec<String>),
}

/// The state space of a variable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VarSpace {
    Global,
    Const,
    Shared,
    Local,
    Param,
}

/// A variable.
#[derive(Clone, Debug)]
pub(crate) struct Variable {
    pub(crate) name: String,
    pub(crate) space: VarSpace,
    pub(crate) align: u32,
    pub(crate) bytes: u32,
    /// `extern .shared x[]`.
    pub(crate) dynamic: bool,
    /// Initial bytes, empty if there are none.
    pub(crate) initial: Vec<u8>,
    /// Addresses of other variables within `initial`: (byte, name, addend).
    pub(crate) pointers: Vec<(u32, String, i64)>,
}

/// A kernel or device function.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    pub(crate) name: String,
    pub(crate) entry: bool,
    pub(crate) defined: bool,
    pub(crate) params: Vec<Variable>,
    pub(crate) returns: Vec<Variable>,
    pub(crate) registers: Vec<RegType>,
    /// The names of the registers: per declaration, its first register, its name, and whether the name is a family's.
    pub(crate) names: Vec<(u32, String, bool)>,
    pub(crate) variables: Vec<Variable>,
    pub(crate) body: Vec<Statement>,
    /// `.maxntid` or `.reqntid` multiplied out, zero if there is none.
    pub(crate) max_threads: u32,
    pub(crate) line: u32,
}

impl Function {
    /// A register's name, as in the PTX.
    pub(crate) fn register_name(&self, register: u32) -> String {
        let after = self.names.partition_point(|&(first, ..)| first <= register);
        match self.names[..after].last() {
            Some((first, name, true)) => format!("{name}{}", register - first),
            Some((_, name, false)) => name.clone(),
            None => String::new(),
        }
    }
}

/// A whole PTX module.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) variables: Vec<Variable>,
    pub(crate) functions: Vec<Function>,
    /// `.file` names by number.
    pub(crate) files: std::collections::HashMap<u32, String>,
    pub(crate) target: String,
}
