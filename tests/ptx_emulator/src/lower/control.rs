//! Branches, calls, exits, barriers, fences.

use std::collections::HashMap;

use super::types::Type;
use super::{Frame, Label, Lower, Result};
use crate::counters::Class;
use crate::parse::{Instruction, Operand};
use crate::program::{BarrierReduce, File, Op, SideKind};

/// Deeper than this a chain of calls must be a recursion.
const MAX_DEPTH: u32 = 32;

impl<'a> Lower<'a> {
    pub(super) fn control(
        &mut self,
        i: &Instruction,
        tables: &HashMap<&str, &[String]>,
    ) -> Result<()> {
        match i.opcode.as_str() {
            "bra" => {
                let target = match &i.operands[..] {
                    [Operand::Symbol(name, 0)] => self.target(name)?,
                    _ => return self.error("expected a label"),
                };
                self.branch(Op::Branch, vec![target], vec![]);
            }
            "brx" => {
                let (index, name) = match &i.operands[..] {
                    [index, Operand::Symbol(name, 0)] => (index, name),
                    _ => return self.error("expected an index and a table"),
                };
                let Some(names) = tables.get(name.as_str()) else {
                    return self.error(format!("the table `{name}` is not declared"));
                };
                let targets = names
                    .iter()
                    .map(|name| self.target(name))
                    .collect::<Result<Vec<_>>>()?;
                let index = self.source(index, Type::U(32))?;
                self.branch(Op::Switch, targets, vec![index]);
            }
            "ret" => match self.frame.ret {
                Some(label) => self.branch(Op::Branch, vec![label], vec![]),
                None => self.emit(Op::Exit, Class::Control, vec![], vec![], 0),
            },
            "exit" => self.emit(Op::Exit, Class::Control, vec![], vec![], 0),
            "trap" => self.emit_side(SideKind::Trap, Class::Control, vec![], vec![]),
            "nanosleep" | "brkpt" | "griddepcontrol" | "pmevent" => {
                self.emit_side(SideKind::Nothing, Class::Control, vec![], vec![]);
            }
            "membar" | "fence" => {
                self.only(
                    i,
                    &[
                        "cta", "gl", "gpu", "sys", "sc", "acq_rel", "acquire", "release",
                    ],
                )?;
                let kind = if i.has("cta") {
                    SideKind::Nothing
                } else {
                    SideKind::Fence
                };
                self.emit_side(kind, Class::Barrier, vec![], vec![]);
            }
            "call" => self.call(i)?,
            _ => self.barrier(i)?,
        }
        Ok(())
    }

    fn target(&self, name: &str) -> Result<Label> {
        match self.frame.labels.get(name) {
            Some(&label) => Ok(label),
            None => self.error(format!("the label `{name}` is not declared")),
        }
    }

    fn branch(&mut self, op: Op, targets: Vec<Label>, src: Vec<crate::program::Reg>) {
        self.emit(op, Class::Control, vec![], src, 0);
        if let Some(super::Step::Node(node)) = self.steps.last_mut() {
            node.targets = targets;
        }
    }

    fn barrier(&mut self, i: &Instruction) -> Result<()> {
        if i.opcode == "bar" && i.has("warp") {
            let [members] = self.operands(i)?;
            let members = self.source(members, Type::U(32))?;
            self.emit_side(SideKind::WarpSync, Class::Barrier, vec![], vec![members]);
            return Ok(());
        }
        self.only(
            i,
            &[
                "cta", "sync", "arrive", "red", "popc", "and", "or", "aligned",
            ],
        )?;
        let arrive = i.has("arrive");
        let aligned = i.opcode == "bar" || i.has("aligned");
        let reduce = if !i.has("red") {
            BarrierReduce::None
        } else if i.has("popc") {
            BarrierReduce::Popc
        } else if i.has("and") {
            BarrierReduce::And
        } else {
            BarrierReduce::Or
        };
        let mut operands = &i.operands[..];
        let mut dst = Vec::new();
        let mut predicate = None;
        if reduce != BarrierReduce::None {
            let ([d, rest @ ..], true) = (operands, operands.len() >= 3) else {
                return self.error("a reducing barrier has at least three operands");
            };
            let ty = if reduce == BarrierReduce::Popc {
                Type::U(32)
            } else {
                Type::Pred
            };
            dst.push(self.destination(d, ty)?);
            operands = rest;
            if let [rest @ .., p] = operands {
                predicate = Some(self.source(p, Type::Pred)?);
                operands = rest;
            }
        }
        let mut src = Vec::new();
        for operand in operands {
            src.push(self.source(operand, Type::U(32))?);
        }
        if src.is_empty() || src.len() > 2 {
            return self.error("a barrier has a number and perhaps a count");
        }
        let counted = src.len() == 2;
        src.extend(predicate);
        let kind = SideKind::Barrier {
            reduce,
            aligned,
            arrive,
            counted,
        };
        self.emit_side(kind, Class::Barrier, dst, src);
        Ok(())
    }

    /// Inlines a device function: its parameters are the caller's variables, `ret` jumps behind the call.
    fn call(&mut self, i: &Instruction) -> Result<()> {
        let (results, name, arguments): (&[Operand], &str, &[Operand]) = match &i.operands[..] {
            [
                Operand::Group(r),
                Operand::Symbol(name, 0),
                Operand::Group(a),
            ] => (r, name, a),
            [Operand::Symbol(name, 0), Operand::Group(a)] => (&[], name, a),
            [Operand::Group(r), Operand::Symbol(name, 0)] => (r, name, &[]),
            [Operand::Symbol(name, 0)] => (&[], name, &[]),
            _ => return self.error("only a call of a named function is known"),
        };
        let tree = self.tree;
        let found = tree.functions.iter().find(|f| f.defined && f.name == name);
        let Some(function) = found else {
            return self.error(format!(
                "the function `{name}` is not defined in this module"
            ));
        };
        if self.depth >= MAX_DEPTH {
            return self.error("calls nest too deeply: recursion is not known to the emulator");
        }
        if results.len() != function.returns.len() || arguments.len() != function.params.len() {
            return self.error(format!("`{name}` has other parameters"));
        }
        let mut sites = HashMap::new();
        let variables = function.returns.iter().chain(&function.params);
        for (variable, operand) in variables.zip(results.iter().chain(arguments)) {
            let Operand::Symbol(argument, 0) = operand else {
                return self.error("an argument of a call is no variable");
            };
            sites.insert(variable.name.clone(), self.site(argument)?);
        }
        let (guard, origin) = (self.guard, self.origin);
        let after = self.label();
        if let Some((predicate, negated)) = guard {
            // Lanes whose guard is false skip the function.
            let enters = self.label();
            self.guard = Some((predicate, negated));
            self.branch(Op::Branch, vec![enters], vec![]);
            self.guard = None;
            self.branch(Op::Branch, vec![after], vec![]);
            self.place(enters);
        } else {
            self.emit_side(SideKind::Nothing, Class::Control, vec![], vec![]);
        }
        let frame = Frame {
            function,
            registers: Vec::new(),
            sites,
            labels: HashMap::new(),
            ret: Some(after),
        };
        let caller = std::mem::replace(&mut self.frame, frame);
        self.depth += 1;
        self.body()?;
        self.depth -= 1;
        self.frame = caller;
        self.guard = None;
        self.origin = origin;
        self.place(after);
        Ok(())
    }

    /// A predicate that is true for every lane.
    pub(super) fn always(&mut self) -> crate::program::Reg {
        self.constant(File::Pred, 1)
    }
}
