//! The tree to instructions over virtual registers: every opcode gets its meaning here, device functions are inlined,
//! and what is not known is an error that names the instruction.

mod arithmetic;
mod compare;
mod control;
mod convert;
mod memory;
mod opcodes;
mod types;
mod video;
mod warp;

use std::collections::HashMap;

use crate::counters::Class;
use crate::fault::LoadError;
use crate::parse::{Function, Instruction, Operand, RegType, Statement, Tree, VarSpace, Variable};
use crate::program::{File, LaneFn, Op, Origin, Preset, Reg, SideKind, Special};
use types::Type;

pub use opcodes::OPCODES;

pub(crate) type Result<T> = std::result::Result<T, LoadError>;

/// A label of the lowered code.
pub(crate) type Label = u32;

/// [`Node::x`] of a sum or product of floats that does not say how it rounds: it may be contracted.
pub(crate) const FREE: u32 = 1;

/// An instruction over virtual registers.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) op: Op,
    pub(crate) guard: Option<(Reg, bool)>,
    pub(crate) dst: Vec<Reg>,
    pub(crate) src: Vec<Reg>,
    pub(crate) x: u32,
    pub(crate) side: Option<SideKind>,
    pub(crate) class: Class,
    pub(crate) origin: Origin,
    /// Where a branch or switch goes.
    pub(crate) targets: Vec<Label>,
}

/// A step of the lowered code.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Label(Label),
    Node(Node),
}

/// A kernel before its registers are assigned.
pub(crate) struct Lowered {
    pub(crate) steps: Vec<Step>,
    pub(crate) presets: Vec<(Reg, Preset)>,
    pub(crate) counts: [u32; 3],
    /// The registers that the PTX declares, by name.
    pub(crate) names: Vec<(Reg, String)>,
    pub(crate) shared_bytes: u32,
    pub(crate) local_bytes: u32,
    pub(crate) shared_grain: u32,
    pub(crate) texts: Vec<String>,
}

impl Lowered {
    /// The number of a register's name; registers without a name share the number after the last.
    pub(crate) fn name_of(&self, reg: Reg) -> u32 {
        let found = self.names.iter().position(|(other, _)| *other == reg);
        found.unwrap_or(self.names.len()) as u32
    }

    /// A register that nothing uses yet.
    pub(crate) fn fresh(&mut self, file: File) -> Reg {
        let count = &mut self.counts[file as usize];
        *count += 1;
        Reg {
            file,
            index: *count - 1,
        }
    }

    /// A predicate that is the same for all lanes.
    pub(crate) fn constant_predicate(&mut self, value: bool) -> Reg {
        let preset = Preset::Const(u64::from(value));
        let found =
            (self.presets.iter()).find(|(reg, other)| reg.file == File::Pred && *other == preset);
        if let Some(&(reg, _)) = found {
            return reg;
        }
        let reg = self.fresh(File::Pred);
        self.presets.push((reg, preset));
        reg
    }
}

/// Where a variable is.
#[derive(Clone, Copy, Debug)]
enum Site {
    /// An address in its own space.
    Fixed(VarSpace, u64),
    DynamicShared,
}

/// One function's names, at one place where it is inlined.
struct Frame<'a> {
    function: &'a Function,
    registers: Vec<Reg>,
    sites: HashMap<String, Site>,
    labels: HashMap<String, Label>,
    /// Where `ret` goes; a kernel exits.
    ret: Option<Label>,
}

pub(crate) struct Lower<'a> {
    tree: &'a Tree,
    globals: &'a HashMap<String, u64>,
    module_shared: HashMap<String, Site>,
    frame: Frame<'a>,
    depth: u32,
    steps: Vec<Step>,
    labels: u32,
    presets: HashMap<(File, Preset), Reg>,
    counts: [u32; 3],
    names: Vec<(Reg, String)>,
    carry: Option<Reg>,
    shared_bytes: u32,
    local_bytes: u32,
    shared_grain: u32,
    texts: Vec<String>,
    origin: Origin,
    guard: Option<(Reg, bool)>,
    /// Whether the current instruction has been counted.
    counted: bool,
    current: String,
}

/// Lowers one kernel. `globals` has the addresses of the module's variables.
pub(crate) fn lower(
    tree: &Tree,
    kernel: &Function,
    globals: &HashMap<String, u64>,
) -> Result<Lowered> {
    let mut offset = 0;
    let mut sites = HashMap::new();
    for parameter in &kernel.params {
        offset = align(offset, parameter.align);
        let site = Site::Fixed(VarSpace::Param, u64::from(offset));
        sites.insert(parameter.name.clone(), site);
        offset += parameter.bytes;
    }
    let mut lower = Lower {
        tree,
        globals,
        module_shared: HashMap::new(),
        frame: Frame {
            function: kernel,
            registers: Vec::new(),
            sites,
            labels: HashMap::new(),
            ret: None,
        },
        depth: 0,
        steps: Vec::new(),
        labels: 0,
        presets: HashMap::new(),
        counts: [0; 3],
        names: Vec::new(),
        carry: None,
        shared_bytes: 0,
        local_bytes: 0,
        shared_grain: 2,
        texts: Vec::new(),
        origin: Origin::default(),
        guard: None,
        counted: false,
        current: kernel.name.clone(),
    };
    lower.origin.line = kernel.line;
    lower.body()?;
    // A kernel whose text does not end in `ret` ends all the same.
    lower.guard = None;
    lower.begin("ret");
    lower.emit(Op::Exit, Class::Helper, vec![], vec![], 0);
    let mut presets: Vec<_> = lower
        .presets
        .into_iter()
        .map(|((_, p), r)| (r, p))
        .collect();
    presets.sort_by_key(|(reg, _)| (reg.file as u32, reg.index));
    Ok(Lowered {
        steps: lower.steps,
        presets,
        counts: lower.counts,
        names: lower.names,
        shared_bytes: align(lower.shared_bytes, 16),
        local_bytes: align(lower.local_bytes, 16),
        shared_grain: lower.shared_grain,
        texts: lower.texts,
    })
}

pub(crate) fn align(offset: u32, to: u32) -> u32 {
    offset.next_multiple_of(to.max(1))
}

impl<'a> Lower<'a> {
    fn error<T>(&self, reason: impl Into<String>) -> Result<T> {
        Err(LoadError::new(
            self.origin.line,
            &self.current,
            reason.into(),
        ))
    }

    fn unknown<T>(&self) -> Result<T> {
        self.error("this instruction is not known to the emulator")
    }

    fn fresh(&mut self, file: File) -> Reg {
        let count = &mut self.counts[file as usize];
        *count += 1;
        Reg {
            file,
            index: *count - 1,
        }
    }

    fn label(&mut self) -> Label {
        self.labels += 1;
        self.labels - 1
    }

    fn place(&mut self, label: Label) {
        self.steps.push(Step::Label(label));
    }

    fn preset(&mut self, file: File, preset: Preset) -> Reg {
        if let Some(&reg) = self.presets.get(&(file, preset)) {
            return reg;
        }
        let reg = self.fresh(file);
        self.presets.insert((file, preset), reg);
        reg
    }

    fn constant(&mut self, file: File, value: u64) -> Reg {
        self.preset(file, Preset::Const(value))
    }

    fn begin(&mut self, text: &str) {
        self.current = text.to_owned();
        self.counted = false;
        self.origin.text = self.texts.len() as u32;
        self.texts.push(text.to_owned());
    }

    /// The instruction's kind on its first step, none on the others.
    fn class_once(&mut self, class: Class) -> Class {
        if std::mem::replace(&mut self.counted, true) {
            Class::Helper
        } else {
            class
        }
    }

    fn emit(&mut self, op: Op, class: Class, dst: Vec<Reg>, src: Vec<Reg>, x: u32) {
        let class = self.class_once(class);
        self.steps.push(Step::Node(Node {
            op,
            guard: self.guard,
            dst,
            src,
            x,
            side: None,
            class,
            origin: self.origin,
            targets: Vec::new(),
        }));
    }

    fn emit_side(&mut self, kind: SideKind, class: Class, dst: Vec<Reg>, src: Vec<Reg>) {
        let op = match kind {
            SideKind::Lane(..) => Op::Lane,
            _ => Op::Side,
        };
        self.emit(op, class, dst, src, 0);
        if let Some(Step::Node(node)) = self.steps.last_mut() {
            node.side = Some(kind);
        }
    }

    fn emit_lane(&mut self, f: LaneFn, x: u32, class: Class, dst: Reg, src: Vec<Reg>) {
        self.emit_side(SideKind::Lane(f, x), class, vec![dst], src);
    }

    /// Declares the frame's variables and registers and lowers its statements.
    fn body(&mut self) -> Result<()> {
        let function = self.frame.function;
        for (n, kind) in function.registers.iter().enumerate() {
            let file = match kind {
                RegType::Pred => File::Pred,
                RegType::B64 => File::R64,
                _ => File::R32,
            };
            let reg = self.fresh(file);
            self.frame.registers.push(reg);
            self.names.push((reg, function.register_name(n as u32)));
        }
        for variable in &function.variables {
            let site = self.allocate(variable)?;
            self.frame.sites.insert(variable.name.clone(), site);
        }
        for statement in &function.body {
            if let Statement::Label(name) = statement {
                let label = self.label();
                self.frame.labels.insert(name.clone(), label);
            }
        }
        let mut tables: HashMap<&str, &[String]> = HashMap::new();
        let mut last = "";
        for statement in &function.body {
            match statement {
                Statement::Label(name) => last = name,
                Statement::Targets(targets) => {
                    tables.insert(last, targets);
                }
                Statement::Instruction(_) => {}
            }
        }
        for statement in &function.body {
            match statement {
                Statement::Label(name) => {
                    if !tables.contains_key(name.as_str()) {
                        let label = self.frame.labels[name];
                        self.place(label);
                    }
                }
                Statement::Targets(_) => {}
                Statement::Instruction(instruction) => {
                    self.origin.line = instruction.line;
                    self.origin.source = instruction.source;
                    self.begin(&instruction.name());
                    self.guard = match instruction.guard {
                        None => None,
                        Some((register, negated)) => {
                            Some((self.frame.registers[register as usize], negated))
                        }
                    };
                    self.instruction(instruction, &tables)?;
                }
            }
        }
        Ok(())
    }

    fn allocate(&mut self, variable: &Variable) -> Result<Site> {
        let space = match variable.space {
            VarSpace::Shared if variable.dynamic => return Ok(Site::DynamicShared),
            VarSpace::Shared => {
                let at = align(self.shared_bytes, variable.align);
                self.shared_bytes = at + variable.bytes;
                return Ok(Site::Fixed(VarSpace::Shared, u64::from(at)));
            }
            // A parameter of a call lives in local memory like any variable of the thread.
            VarSpace::Local | VarSpace::Param => VarSpace::Local,
            VarSpace::Global | VarSpace::Const => {
                return self.error("a global variable stands inside a function");
            }
        };
        let at = align(self.local_bytes, variable.align.max(4));
        self.local_bytes = at + variable.bytes;
        Ok(Site::Fixed(space, u64::from(at)))
    }

    fn site(&mut self, name: &str) -> Result<Site> {
        if let Some(&site) = self.frame.sites.get(name) {
            return Ok(site);
        }
        if let Some(&address) = self.globals.get(name) {
            return Ok(Site::Fixed(VarSpace::Global, address));
        }
        if let Some(&site) = self.module_shared.get(name) {
            return Ok(site);
        }
        let tree = self.tree;
        match tree.variables.iter().find(|v| v.name == name) {
            Some(variable) => {
                let site = self.allocate(variable)?;
                self.module_shared.insert(name.to_owned(), site);
                Ok(site)
            }
            None => self.error(format!("`{name}` is not declared")),
        }
    }

    /// The row that holds a source operand.
    fn source(&mut self, operand: &Operand, ty: Type) -> Result<Reg> {
        let file = ty.file();
        let bits = ty.bits();
        let mask = if bits >= 64 {
            u64::MAX
        } else {
            (1u64 << bits) - 1
        };
        Ok(match operand {
            Operand::Reg(register) => {
                let reg = self.frame.registers[*register as usize];
                if reg.file != file {
                    return self.error("an operand has a register of the wrong width");
                }
                reg
            }
            Operand::Not(register) => {
                let reg = self.frame.registers[*register as usize];
                if file != File::Pred || reg.file != File::Pred {
                    return self.error("only a predicate can be negated");
                }
                let d = self.fresh(File::Pred);
                self.emit(Op::NotP, Class::Helper, vec![d], vec![reg], 0);
                self.unguard_last();
                d
            }
            Operand::Int(value) => self.constant(file, *value as u64 & mask),
            Operand::F32(bits) if ty == Type::F64 => {
                self.constant(file, f64::from(f32::from_bits(*bits)).to_bits())
            }
            Operand::F32(bits) => self.constant(file, u64::from(*bits)),
            Operand::F64(value) if ty == Type::F32 => {
                let narrow = f64::from_bits(*value) as f32;
                self.constant(file, u64::from(narrow.to_bits()))
            }
            Operand::F64(value) => self.constant(file, *value),
            Operand::Special(name) => self.special(name, file)?,
            Operand::Symbol(name, 0) if name == "WARP_SZ" => self.constant(file, 32),
            Operand::Symbol(name, offset) => match self.site(name)? {
                Site::Fixed(_, address) => {
                    self.constant(file, address.wrapping_add(*offset as u64) & mask)
                }
                Site::DynamicShared => {
                    let base = self.preset(file, Preset::Special(Special::DynamicShared));
                    if *offset == 0 {
                        base
                    } else {
                        let offset = self.constant(file, *offset as u64 & mask);
                        let d = self.fresh(file);
                        let op = if file == File::R64 {
                            Op::Add64
                        } else {
                            Op::Add32
                        };
                        self.emit(op, Class::Helper, vec![d], vec![base, offset], 0);
                        self.unguard_last();
                        d
                    }
                }
            },
            _ => return self.error("this operand is not known here"),
        })
    }

    /// A helper step computes a temporary for all lanes, and leaves the instruction uncounted.
    fn unguard_last(&mut self) {
        if let Some(Step::Node(node)) = self.steps.last_mut() {
            node.guard = None;
            if node.class != Class::Helper {
                node.class = Class::Helper;
            }
            self.counted = false;
        }
    }

    fn special(&mut self, name: &str, file: File) -> Result<Reg> {
        let axis = |suffix: &str| match suffix {
            "x" => Some(0),
            "y" => Some(1),
            "z" => Some(2),
            _ => None,
        };
        let plain = match name {
            "%laneid" => Some(Special::Lane),
            "%warpid" => Some(Special::Warp),
            "%nwarpid" => Some(Special::Warps),
            "%lanemask_eq" => Some(Special::MaskEq),
            "%lanemask_lt" => Some(Special::MaskLt),
            "%lanemask_le" => Some(Special::MaskLe),
            "%lanemask_gt" => Some(Special::MaskGt),
            "%lanemask_ge" => Some(Special::MaskGe),
            "%dynamic_smem_size" => Some(Special::DynamicSize),
            "%total_smem_size" => Some(Special::TotalShared),
            _ => None,
        };
        if let Some(special) = plain {
            return Ok(self.preset(file, Preset::Special(special)));
        }
        let parts = name
            .split_once('.')
            .and_then(|(base, suffix)| Some((base, axis(suffix)?)));
        let special = match parts {
            Some(("%tid", i)) => Special::Tid(i),
            Some(("%ntid", i)) => Special::Ntid(i),
            Some(("%ctaid", i)) => Special::Ctaid(i),
            Some(("%nctaid", i)) => Special::Nctaid(i),
            _ => match name {
                "%smid" | "%gridid" => return Ok(self.constant(file, 0)),
                "%nsmid" => return Ok(self.constant(file, 1)),
                _ => return self.error(format!("the special register `{name}` is not known")),
            },
        };
        Ok(self.preset(file, Preset::Special(special)))
    }

    /// The register that a destination operand names; `_` gets one that nobody reads.
    fn destination(&mut self, operand: &Operand, ty: Type) -> Result<Reg> {
        match operand {
            Operand::Reg(register) => {
                let reg = self.frame.registers[*register as usize];
                if reg.file == ty.file() {
                    Ok(reg)
                } else {
                    self.error("the destination has a register of the wrong width")
                }
            }
            Operand::Sink => Ok(self.fresh(ty.file())),
            _ => self.error("the destination is no register"),
        }
    }

    /// Exactly `N` operands.
    fn operands<'b, const N: usize>(&self, i: &'b Instruction) -> Result<[&'b Operand; N]> {
        match <[&Operand; N]>::try_from(i.operands.iter().collect::<Vec<_>>()) {
            Ok(operands) => Ok(operands),
            Err(found) => self.error(format!("expected {N} operands, found {}", found.len())),
        }
    }

    /// The last modifier as a type.
    fn last_type(&self, i: &Instruction) -> Result<Type> {
        match i.modifiers.last().and_then(|m| Type::parse(m)) {
            Some(ty) => Ok(ty),
            None => self.error("the type is missing or not known"),
        }
    }

    /// An error for the first modifier that is not among `known` and no type.
    fn only(&self, i: &Instruction, known: &[&str]) -> Result<()> {
        match i
            .modifiers
            .iter()
            .find(|m| !known.contains(&m.as_str()) && Type::parse(m).is_none())
        {
            None => Ok(()),
            Some(modifier) => self.error(format!(
                "the modifier `.{modifier}` is not known to the emulator here"
            )),
        }
    }

    fn instruction(&mut self, i: &Instruction, tables: &HashMap<&str, &[String]>) -> Result<()> {
        if !OPCODES.contains(&i.opcode.as_str()) {
            return self.unknown();
        }
        match i.opcode.as_str() {
            "bra" | "brx" | "call" | "ret" | "exit" | "trap" | "bar" | "barrier" | "membar"
            | "fence" | "nanosleep" | "brkpt" | "griddepcontrol" | "pmevent" => {
                self.control(i, tables)
            }
            "ld" | "ldu" | "st" | "atom" | "red" | "cvta" | "isspacep" | "prefetch"
            | "prefetchu" | "discard" | "applypriority" | "createpolicy" | "cp" | "ldmatrix"
            | "stmatrix" => self.memory(i),
            "shfl" | "vote" | "match" | "redux" | "activemask" | "elect" | "mma" | "movmatrix" => {
                self.warp(i)
            }
            "cvt" => self.convert(i),
            "vadd" | "vsub" | "vabsdiff" | "vmin" | "vmax" | "vshl" | "vshr" | "vset" => {
                self.video(i)
            }
            _ => self.arithmetic(i),
        }
    }
}
