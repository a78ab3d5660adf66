//! Instructions and their operands.

use std::collections::HashMap;

use super::lexer::Token;
use super::module::{Parser, Result};
use super::{Function, Instruction, Operand, Statement};

/// Register names of one `{ }`: single names, and families such as `%f<12>`.
#[derive(Default)]
pub(super) struct Scope {
    pub(super) names: HashMap<String, u32>,
    pub(super) families: Vec<(String, u32, u32)>,
    /// Labels and variables.
    pub(super) symbols: Vec<String>,
    pub(super) first_statement: usize,
    pub(super) first_variable: usize,
}

impl Scope {
    fn find(&self, name: &str) -> Option<u32> {
        self.names.get(name).copied().or_else(|| {
            self.families.iter().find_map(|(prefix, first, count)| {
                let digits = name.strip_prefix(prefix.as_str())?;
                let n: u32 = digits.parse().ok()?;
                (n < *count && (n == 0) == (digits == "0")).then_some(first + n)
            })
        })
    }
}

impl Parser<'_> {
    pub(super) fn instruction(
        &mut self,
        function: &mut Function,
        scopes: &[Scope],
        guard: Option<(u32, bool)>,
        opcode: &str,
        line: u32,
    ) -> Result<()> {
        let mut modifiers = Vec::new();
        while let Some(Token::Dot(modifier)) = self.peek() {
            modifiers.push(modifier.to_owned());
            self.next += 1;
        }
        let mut operands = Vec::new();
        while !self.eat(';') {
            operands.push(self.operand(scopes)?);
            if self.eat('|') {
                let second = self.operand(scopes)?;
                if let Some(first) = operands.pop() {
                    operands.push(Operand::Pair(Box::new(first), Box::new(second)));
                }
            }
            if !self.eat(',') && self.peek() != Some(Token::Mark(';')) {
                return self.error("expected `,` or `;` here");
            }
        }
        function.body.push(Statement::Instruction(Instruction {
            guard,
            opcode: opcode.to_owned(),
            modifiers,
            operands,
            line,
            source: self.source,
        }));
        Ok(())
    }

    fn list(&mut self, scopes: &[Scope], close: char) -> Result<Vec<Operand>> {
        let mut list = Vec::new();
        while !self.eat(close) {
            list.push(self.operand(scopes)?);
            self.eat(',');
        }
        Ok(list)
    }

    fn operand(&mut self, scopes: &[Scope]) -> Result<Operand> {
        Ok(match self.take()? {
            Token::Mark('{') => Operand::Vector(self.list(scopes, '}')?),
            Token::Mark('(') => Operand::Group(self.list(scopes, ')')?),
            Token::Mark('[') => {
                let base = self.operand(scopes)?;
                let (base, mut offset) = match base {
                    Operand::Symbol(name, offset) => (Operand::Symbol(name, 0), offset),
                    other => (other, 0),
                };
                if self.eat('+') {
                    offset += self.integer()? as i64;
                }
                self.expect(']')?;
                Operand::Address(Box::new(base), offset)
            }
            Token::Mark('!') => {
                let name = self.word()?;
                match find(scopes, name) {
                    Some(register) => Operand::Not(register),
                    None => return self.error("this predicate is not declared"),
                }
            }
            Token::Mark('-') => match self.operand(scopes)? {
                Operand::Int(value) => Operand::Int(-value),
                Operand::F64(bits) => Operand::F64(bits ^ 1 << 63),
                _ => return self.error("only a number can be negative"),
            },
            Token::Number(text) => match number(text) {
                Some(operand) => operand,
                None => {
                    self.next -= 1;
                    return self.error("this number cannot be read");
                }
            },
            Token::Word("_") => Operand::Sink,
            Token::Word(name) => {
                if let Some(register) = find(scopes, name) {
                    match self.peek() {
                        Some(Token::Dot(part)) => {
                            self.next += 1;
                            Operand::Part(register, part.to_owned())
                        }
                        _ => Operand::Reg(register),
                    }
                } else if name.starts_with('%') {
                    let mut full = name.to_owned();
                    if let Some(Token::Dot(part)) = self.peek() {
                        full.push('.');
                        full.push_str(part);
                        self.next += 1;
                    }
                    Operand::Special(full)
                } else {
                    let mut offset = 0;
                    if self.eat('+') {
                        offset = self.integer()? as i64;
                    }
                    Operand::Symbol(name.to_owned(), offset)
                }
            }
            _ => {
                self.next -= 1;
                return self.error("this is no operand that is known");
            }
        })
    }
}

pub(super) fn find(scopes: &[Scope], name: &str) -> Option<u32> {
    scopes.iter().rev().find_map(|scope| scope.find(name))
}

/// A number as PTX writes it.
pub(super) fn number(text: &str) -> Option<Operand> {
    let lower = text.to_ascii_lowercase();
    if let Some(hex) = lower.strip_prefix("0f") {
        return u32::from_str_radix(hex, 16).ok().map(Operand::F32);
    }
    if let Some(hex) = lower.strip_prefix("0d") {
        return u64::from_str_radix(hex, 16).ok().map(Operand::F64);
    }
    if lower.contains('.') {
        return lower.parse::<f64>().ok().map(|v| Operand::F64(v.to_bits()));
    }
    let digits = lower.trim_end_matches('u');
    let value = if let Some(hex) = digits.strip_prefix("0x") {
        u64::from_str_radix(hex, 16)
    } else if let Some(binary) = digits.strip_prefix("0b") {
        u64::from_str_radix(binary, 2)
    } else if digits.len() > 1 && digits.starts_with('0') {
        u64::from_str_radix(digits, 8)
    } else {
        digits.parse()
    };
    value.ok().map(|v| Operand::Int(i128::from(v)))
}
