//! Directives, functions, statements and operands.

use super::lexer::{Token, tokens};
use super::operand::{Scope, find, number};
use super::{Function, Operand, RegType, Statement, Tree, VarSpace, Variable};
use crate::fault::LoadError;

pub(super) type Result<T> = std::result::Result<T, LoadError>;

/// Parses a module.
pub(crate) fn parse(source: &str) -> Result<Tree> {
    let tokens = tokens(source)?;
    let mut parser = Parser {
        tokens: &tokens,
        next: 0,
        source: (0, 0),
    };
    parser.module()
}

pub(super) struct Parser<'a> {
    tokens: &'a [(Token<'a>, u32)],
    pub(super) next: usize,
    pub(super) source: (u32, u32),
}

impl<'a> Parser<'a> {
    pub(super) fn peek(&self) -> Option<Token<'a>> {
        self.tokens.get(self.next).map(|t| t.0)
    }

    fn line(&self) -> u32 {
        let at = self.next.min(self.tokens.len().saturating_sub(1));
        self.tokens.get(at).map_or(1, |t| t.1)
    }

    pub(super) fn error<T>(&self, reason: impl Into<String>) -> Result<T> {
        let text = match self.peek() {
            Some(Token::Word(t) | Token::Number(t)) => t.to_owned(),
            Some(Token::Dot(t)) => format!(".{t}"),
            Some(Token::Text(t)) => format!("\"{t}\""),
            Some(Token::Mark(c)) => c.to_string(),
            None => "end of text".to_owned(),
        };
        Err(LoadError::new(self.line(), &text, reason.into()))
    }

    pub(super) fn take(&mut self) -> Result<Token<'a>> {
        let token = self.peek();
        match token {
            Some(token) => {
                self.next += 1;
                Ok(token)
            }
            None => self.error("the text ends in the middle of a statement"),
        }
    }

    pub(super) fn eat(&mut self, mark: char) -> bool {
        let found = self.peek() == Some(Token::Mark(mark));
        self.next += usize::from(found);
        found
    }

    fn eat_dot(&mut self, word: &str) -> bool {
        let found = self.peek() == Some(Token::Dot(word));
        self.next += usize::from(found);
        found
    }

    pub(super) fn expect(&mut self, mark: char) -> Result<()> {
        if self.eat(mark) {
            Ok(())
        } else {
            self.error(format!("expected `{mark}` here"))
        }
    }

    pub(super) fn word(&mut self) -> Result<&'a str> {
        match self.peek() {
            Some(Token::Word(word)) => {
                self.next += 1;
                Ok(word)
            }
            _ => self.error("expected a name here"),
        }
    }

    pub(super) fn integer(&mut self) -> Result<i128> {
        let negative = self.eat('-');
        match self.peek() {
            Some(Token::Number(text)) => match number(text) {
                Some(Operand::Int(value)) => {
                    self.next += 1;
                    Ok(if negative { -value } else { value })
                }
                _ => self.error("expected an integer here"),
            },
            _ => self.error("expected an integer here"),
        }
    }

    fn unsigned(&mut self) -> Result<u32> {
        let value = self.integer()?;
        match u32::try_from(value) {
            Ok(value) => Ok(value),
            Err(_) => self.error(format!("{value} is out of range here")),
        }
    }

    fn skip_line(&mut self, line: u32) {
        while self.tokens.get(self.next).is_some_and(|t| t.1 == line) {
            self.next += 1;
        }
    }

    fn skip_braces(&mut self) -> Result<()> {
        let mut depth = 0;
        loop {
            match self.take()? {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') => {
                    depth -= 1;
                    if depth == 0 {
                        return Ok(());
                    }
                }
                _ => {}
            }
        }
    }

    fn module(&mut self) -> Result<Tree> {
        let mut tree = Tree::default();
        let mut external = false;
        while let Some(token) = self.peek() {
            let line = self.line();
            let Token::Dot(directive) = token else {
                return self.error("expected a directive here");
            };
            self.next += 1;
            match directive {
                "version" | "address_size" => self.skip_line(line),
                "target" => {
                    tree.target = self.word()?.to_owned();
                    self.skip_line(line);
                }
                "file" => {
                    let number = self.unsigned()?;
                    if let Token::Text(name) = self.take()? {
                        tree.files.insert(number, name.to_owned());
                    }
                    self.skip_line(line);
                }
                "section" => {
                    self.next += 1;
                    self.skip_braces()?;
                }
                "extern" => external = true,
                "visible" | "weak" | "common" => {}
                "entry" | "func" => {
                    let mut function = self.function(directive == "entry")?;
                    // Global variables of a function live as long as the module's.
                    let global =
                        |v: &mut Variable| matches!(v.space, VarSpace::Global | VarSpace::Const);
                    tree.variables
                        .extend(function.variables.extract_if(.., global));
                    // A declaration may precede the definition.
                    if function.defined {
                        tree.functions
                            .retain(|f| f.defined || f.name != function.name);
                    }
                    tree.functions.push(function);
                    external = false;
                }
                "global" | "const" | "shared" => {
                    let mut variable = self.variable(space(directive))?;
                    variable.dynamic = external && variable.bytes == 0;
                    self.expect(';')?;
                    tree.variables.push(variable);
                    external = false;
                }
                _ => {
                    self.next -= 1;
                    return self.error("this directive is not known");
                }
            }
        }
        Ok(tree)
    }

    /// `.align 16 .b8 name[12] = {…}`, after the state space.
    fn variable(&mut self, space: VarSpace) -> Result<Variable> {
        let mut align = 0;
        let mut count = 1;
        let width = loop {
            match self.take()? {
                Token::Dot("align") => align = self.unsigned()?,
                Token::Dot("ptr" | "attribute" | "managed") => {}
                Token::Dot("v2") => count = 2,
                Token::Dot("v4") => count = 4,
                Token::Dot(kind) => match RegType::of(kind) {
                    Some(kind) => break kind.bytes(),
                    None => {
                        self.next -= 1;
                        return self.error("this type of a variable is not known");
                    }
                },
                _ => {
                    self.next -= 1;
                    return self.error("expected a type here");
                }
            }
        };
        // `.param .u64 .ptr .global .align 4 name`
        while let Some(Token::Dot(word)) = self.peek() {
            self.next += 1;
            if word == "align" {
                self.unsigned()?;
            }
        }
        let name = self.word()?.to_owned();
        let mut dynamic = false;
        while self.eat('[') {
            if self.eat(']') {
                dynamic = true;
                count = 0;
            } else {
                count *= self.unsigned()?;
                self.expect(']')?;
            }
        }
        let mut variable = Variable {
            name,
            space,
            align: align.max(width),
            bytes: width * count,
            dynamic,
            initial: Vec::new(),
            pointers: Vec::new(),
        };
        if self.eat('=') {
            self.initial(&mut variable, width)?;
            if dynamic {
                variable.bytes = variable.initial.len() as u32;
                variable.dynamic = false;
            }
        }
        Ok(variable)
    }

    fn initial(&mut self, variable: &mut Variable, width: u32) -> Result<()> {
        if self.eat('{') {
            while !self.eat('}') {
                self.initial(variable, width)?;
                self.eat(',');
            }
            return Ok(());
        }
        let negative = self.eat('-');
        let value = match self.take()? {
            Token::Number(text) => match number(text) {
                Some(Operand::Int(v)) => (if negative { -v } else { v }) as u64,
                Some(Operand::F32(bits)) => u64::from(bits),
                Some(Operand::F64(bits)) => bits,
                _ => return self.error("this number cannot be read"),
            },
            Token::Word(name) => {
                let name = if name == "generic" {
                    self.expect('(')?;
                    let name = self.word()?;
                    self.expect(')')?;
                    name
                } else {
                    name
                };
                let addend = if self.eat('+') {
                    self.integer()? as i64
                } else {
                    0
                };
                let at = variable.initial.len() as u32;
                variable.pointers.push((at, name.to_owned(), addend));
                0
            }
            _ => return self.error("expected an initial value here"),
        };
        variable
            .initial
            .extend_from_slice(&value.to_le_bytes()[..width as usize]);
        Ok(())
    }

    fn parameters(&mut self) -> Result<Vec<Variable>> {
        let mut list = Vec::new();
        if self.eat('(') {
            while !self.eat(')') {
                if !self.eat_dot("param") {
                    return self.error("expected `.param` here");
                }
                list.push(self.variable(VarSpace::Param)?);
                self.eat(',');
            }
        }
        Ok(list)
    }

    fn function(&mut self, entry: bool) -> Result<Function> {
        let line = self.line();
        let returns = self.parameters()?;
        let name = self.word()?.to_owned();
        let params = self.parameters()?;
        let mut function = Function {
            name,
            entry,
            defined: false,
            params,
            returns,
            registers: Vec::new(),
            names: Vec::new(),
            variables: Vec::new(),
            body: Vec::new(),
            max_threads: 0,
            line,
        };
        loop {
            match self.take()? {
                Token::Mark(';') => return Ok(function),
                Token::Mark('{') => break,
                Token::Dot("maxntid" | "reqntid") => {
                    let mut product = self.unsigned()?;
                    while self.eat(',') {
                        product *= self.unsigned()?;
                    }
                    function.max_threads = product;
                }
                Token::Dot("minnctapersm" | "maxnreg" | "maxclusterrank" | "abi_preserve") => {
                    self.unsigned()?;
                }
                Token::Dot("noreturn") => {}
                _ => {
                    self.next -= 1;
                    return self.error("this directive of a function is not known");
                }
            }
        }
        function.defined = true;
        self.source = (0, 0);
        let mut scopes = vec![Scope::default()];
        while !scopes.is_empty() {
            self.statement(&mut function, &mut scopes)?;
        }
        Ok(function)
    }

    fn statement(&mut self, function: &mut Function, scopes: &mut Vec<Scope>) -> Result<()> {
        let line = self.line();
        match self.take()? {
            Token::Mark('{') => scopes.push(Scope {
                first_statement: function.body.len(),
                first_variable: function.variables.len(),
                ..Scope::default()
            }),
            Token::Mark('}') => {
                let scope = scopes.pop();
                if let Some(scope) = scope.filter(|_| !scopes.is_empty()) {
                    // Inline assembly repeats its labels and calls their variables, a scope each: make them distinct.
                    for symbol in &scope.symbols {
                        let unique = format!("{symbol}@{}", function.body.len());
                        rename(&mut function.body[scope.first_statement..], symbol, &unique);
                        for variable in &mut function.variables[scope.first_variable..] {
                            if variable.name == *symbol {
                                variable.name.clone_from(&unique);
                            }
                        }
                    }
                }
            }
            Token::Mark(';') => {}
            Token::Dot("reg") => self.registers(function, scopes)?,
            Token::Dot("loc") => {
                let file = self.unsigned()?;
                let number = self.unsigned()?;
                // Line 0 stands for code that belongs to no line: the last known one says more.
                if number != 0 {
                    self.source = (file, number);
                }
                self.skip_line(line);
            }
            Token::Dot("pragma") => while self.take()? != Token::Mark(';') {},
            Token::Dot(name @ ("shared" | "local" | "param" | "const" | "global")) => {
                let variable = self.variable(space(name))?;
                self.expect(';')?;
                if let Some(scope) = scopes.last_mut() {
                    scope.symbols.push(variable.name.clone());
                }
                function.variables.push(variable);
            }
            Token::Dot("branchtargets") => {
                let mut targets = vec![self.word()?.to_owned()];
                while self.eat(',') {
                    targets.push(self.word()?.to_owned());
                }
                self.expect(';')?;
                function.body.push(Statement::Targets(targets));
            }
            Token::Word(label) if self.peek() == Some(Token::Mark(':')) => {
                self.next += 1;
                if let Some(scope) = scopes.last_mut() {
                    scope.symbols.push(label.to_owned());
                }
                function.body.push(Statement::Label(label.to_owned()));
            }
            Token::Mark('@') => {
                let negated = self.eat('!');
                let name = self.word()?;
                let Some(register) = find(scopes, name) else {
                    self.next -= 1;
                    return self.error("this predicate is not declared");
                };
                let opcode = self.word()?;
                self.instruction(function, scopes, Some((register, negated)), opcode, line)?;
            }
            Token::Word(opcode) => self.instruction(function, scopes, None, opcode, line)?,
            _ => {
                self.next -= 1;
                return self.error("this is no statement of PTX that is known");
            }
        }
        Ok(())
    }

    fn registers(&mut self, function: &mut Function, scopes: &mut [Scope]) -> Result<()> {
        let Token::Dot(kind) = self.take()? else {
            return self.error("expected the registers' type here");
        };
        let Some(kind) = RegType::of(kind) else {
            self.next -= 1;
            return self.error("this type of a register is not known");
        };
        let Some(scope) = scopes.last_mut() else {
            return self.error("registers stand outside a function");
        };
        loop {
            let name = self.word()?.to_owned();
            let first = function.registers.len() as u32;
            if self.eat('<') {
                let count = self.unsigned()?;
                self.expect('>')?;
                let total = function.registers.len() + count as usize;
                function.registers.resize(total, kind);
                function.names.push((first, name.clone(), true));
                scope.families.push((name, first, count));
            } else {
                function.registers.push(kind);
                function.names.push((first, name.clone(), false));
                scope.names.insert(name, first);
            }
            if self.eat(';') {
                return Ok(());
            }
            self.expect(',')?;
        }
    }
}

fn space(name: &str) -> VarSpace {
    match name {
        "const" => VarSpace::Const,
        "shared" => VarSpace::Shared,
        "local" => VarSpace::Local,
        "param" => VarSpace::Param,
        _ => VarSpace::Global,
    }
}

fn rename(body: &mut [Statement], old: &str, new: &str) {
    for statement in body {
        match statement {
            Statement::Label(label) if label == old => *label = new.to_owned(),
            Statement::Instruction(instruction) => {
                for operand in &mut instruction.operands {
                    rename_operand(operand, old, new);
                }
            }
            Statement::Targets(targets) => {
                for target in targets.iter_mut().filter(|t| *t == old) {
                    *target = new.to_owned();
                }
            }
            Statement::Label(_) => {}
        }
    }
}

fn rename_operand(operand: &mut Operand, old: &str, new: &str) {
    match operand {
        Operand::Symbol(name, _) if name == old => *name = new.to_owned(),
        Operand::Address(base, _) => rename_operand(base, old, new),
        Operand::Vector(list) | Operand::Group(list) => {
            for operand in list {
                rename_operand(operand, old, new);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_shadow_registers_and_repeat_labels() {
        let text = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry k(.param .u64 k_0)\n{\n\
            .reg .pred %p<2>;\n.reg .b32 %r<3>;\nsetp.eq.u32 %p1, %r1, %r2;\n\
            { .reg .pred %p1; W: setp.ne.u32 %p1, %r1, 0; @!%p1 bra W; }\n\
            { W: bra W; }\n@%p1 bra END;\nEND: ret;\n}\n";
        let tree = parse(text).unwrap();
        let body = &tree.functions[0].body;
        let instructions: Vec<_> = body
            .iter()
            .filter_map(|s| match s {
                Statement::Instruction(i) => Some(i),
                _ => None,
            })
            .collect();
        assert_eq!(instructions[0].operands[0], Operand::Reg(1));
        assert_eq!(instructions[1].operands[0], Operand::Reg(5));
        assert_eq!(instructions[2].guard, Some((5, true)));
        assert_eq!(instructions[4].guard, Some((1, false)));
        assert_ne!(instructions[2].operands[0], instructions[3].operands[0]);
    }

    #[test]
    fn malformed_text_is_an_error_with_its_line() {
        for text in [
            ".visible .entry k(",
            ".entry k()\n{ mov.u32 %r1",
            ".foo",
            ".entry k() { @%p bra L; }",
            "\u{e9}",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(
            parse(".entry k()\n{\n.reg .b32 %r1;\nadd %r1 %r1;\n}")
                .unwrap_err()
                .line(),
            4
        );
    }
}
