//! Names of Python's, and what a call of one gives.

use super::{Function, Id, Machine, Refusal, Value};

impl Machine<'_> {
    /// A value that is not on the stack.
    pub(super) fn keep(&mut self, value: Value) -> Id {
        // There are at most [`MOST`] values, plus those of the last opcode.
        self.values.push(value);
        (self.values.len() - 1) as Id
    }

    /// The name of Python's by two lines.
    pub(super) fn named_by_lines(&mut self) -> Result<Id, Refusal> {
        let mut line = || {
            let start = self.at;
            self.line()?;
            let end = self.at - 1;
            Ok(self.keep(Value::Text(start..end)))
        };
        let (module, name) = (line()?, line()?);
        Ok(self.name(module, name))
    }

    /// The name of Python's by the texts of its module and of the name in it.
    pub(super) fn name(&mut self, module: Id, name: Id) -> Id {
        let text = |id: Id| str::from_utf8(self.content(id)).unwrap_or_default();
        let function = match (text(module), text(name)) {
            ("_codecs", "encode") => Function::Encode,
            ("__builtin__" | "builtins", "bytes") => Function::Bytes,
            ("__builtin__" | "builtins", "bytearray") => Function::ByteArray,
            ("collections", "OrderedDict") => Function::OrderedDict,
            ("collections", "defaultdict") => Function::DefaultDict,
            known => match self.names.iter().position(|&name| name == known) {
                Some(i) => Function::Named(i),
                None => Function::Unknown { module, name },
            },
        };
        self.keep(Value::Function(function))
    }

    /// The bytes of a text, or bytes.
    pub(super) fn content(&self, id: Id) -> &[u8] {
        match &self.values[id as usize] {
            Value::Text(range) | Value::Bytes(range) => &self.bytes[range.clone()],
            Value::DecodedText(text) => text.as_bytes(),
            Value::Decoded(bytes) => bytes,
            _ => &[],
        }
    }

    pub(super) fn call(&mut self, function: Id, arguments: Id) -> Result<(), Refusal> {
        let value = |id: Id| &self.values[id as usize];
        let (&Value::Function(called), Value::Tuple(items)) = (value(function), value(arguments))
        else {
            self.push(Value::Object(function));
            return Ok(());
        };
        let made = match (called, &items[..]) {
            (Function::Named(name), _) => Value::Call(name, arguments),
            (Function::OrderedDict, []) | (Function::DefaultDict, _) => Value::Dict(Vec::new()),
            (Function::OrderedDict, &[pairs]) if let Some(pairs) = self.pairs(pairs) => {
                self.copied(pairs.len())?;
                Value::Dict(pairs)
            }
            (Function::ByteArray, &[bytes])
                if matches!(value(bytes), Value::Bytes(_) | Value::Decoded(_)) =>
            {
                self.stack.push(bytes);
                return Ok(());
            }
            (Function::Bytes | Function::ByteArray, []) => Value::Decoded([].into()),
            (Function::Encode | Function::ByteArray, &[text, encoding])
                if let Some(decoded) = self.encoded(text, encoding) =>
            {
                self.copied(decoded.len())?;
                Value::Decoded(decoded.into())
            }
            // `copyreg._reconstructor(class, base, state)` says less of an object than its class.
            (Function::Unknown { name, .. }, &[class, ..])
                if self.content(name) == b"_reconstructor" =>
            {
                Value::Object(class)
            }
            _ => Value::Object(function),
        };
        self.push(made);
        Ok(())
    }

    /// The keys and values of a list of pairs.
    fn pairs(&self, list: Id) -> Option<Vec<(Id, Id)>> {
        let items = |id: Id| match &self.values[id as usize] {
            Value::List(items) | Value::Tuple(items) => Some(&items[..]),
            _ => None,
        };
        let pair = |&item: &Id| match items(item)? {
            &[key, value] => Some((key, value)),
            _ => None,
        };
        items(list)?.iter().map(pair).collect()
    }

    /// What `_codecs.encode(text, encoding)` gives, if that is a character a byte.
    fn encoded(&self, text: Id, encoding: Id) -> Option<Vec<u8>> {
        let value = &self.values[text as usize];
        let is_text = matches!(value, Value::Text(_) | Value::DecodedText(_));
        let encoding = self.content(encoding);
        let encoding = matches!(encoding, b"latin1" | b"latin-1" | b"iso-8859-1");
        (is_text && encoding)
            .then(|| latin1(self.content(text)))
            .flatten()
    }

    /// Counts what a call copies: once is what is meant; over and over again it would fill any memory.
    fn copied(&mut self, elements: usize) -> Result<(), Refusal> {
        self.decoded += elements;
        match self.decoded > self.bytes.len() {
            true => Err(self.bad(
                "each text decoded once",
                "one that is decoded over and over again",
            )),
            false => Ok(()),
        }
    }
}

/// The bytes that UTF-8 stands for, a character a byte.
fn latin1(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    text.chars().map(|c| u8::try_from(c).ok()).collect()
}
