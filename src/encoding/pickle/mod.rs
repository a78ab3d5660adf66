//! Python pickles, protocols 0 to 5, as far as lists, tuples, dicts, bytes, texts, numbers and truth values go, and calls
//! that the caller knows. Nothing is executed.
//!
//! A pickle is a program for a stack machine, an opcode of one byte with its argument (integers little-endian):
//!
//! | opcodes | effect |
//! |---|---|
//! | `80`+1, `95`+8 | protocol; length of the frame that follows |
//! | `]` `)` `}` `(` | push an empty list, an empty tuple, an empty dict, a mark |
//! | `a`, `e` | append the top, or all from the mark on, to the list below |
//! | `s`, `u` | set key and value on the top, or all from the mark on, in the dict below |
//! | `t` `l`, `85` `86` `87` | a tuple or list of all from the mark on; a tuple of one, two, three |
//! | `d`, `1`, `2` | a dict of all from the mark on; drop all from the mark on; push the top again |
//! | `p` `g`, `I` `L` `F`, `S` `V` | of protocol 0, with a line: remember and push, numbers, bytes and text (`lines.rs`) |
//! | `q`+1 `r`+4 `94`, `h`+1 `j`+4 | remember the top under a number; push what was remembered |
//! | `C`+1 `B`+4 `8e`+8 `96`+8, `U`+1 `T`+4 | bytes by length (in Python 2, strings) |
//! | `8c`+1 `X`+4 `8d`+8 | UTF-8 by length |
//! | `N` `88` `89`, `K`+1 `M`+2 `J`+4 `8a`+1, `G`+8 | None, True, False; integers, the last by length; a floating-point number |
//! | `c`, `93`, `R` | a name of Python's, by two lines or two texts; call it |
//! | `Q` | something outside the pickle, by the key on the top |
//! | `b` | tell an object about itself: of a call of the caller's names it is kept, else dropped |
//! | `0`, `.` | drop the top; the end |
//!
//! Four names are called here: `_codecs.encode(text, "latin1")`, a character a byte, and `bytes()`, no bytes, because
//! protocols up to 2 write bytes so, `bytearray` of either, and `collections.OrderedDict()`, an empty dict. Of names that the caller lists a call
//! is a value, [`Value::Call`]. Any other name, and any other opcode, is refused.
//!
//! Bytes stay in the file, a value takes 32 bytes here, no opcode makes more than one, and what is decoded is together
//! not larger than the file. Values and remembered numbers are at most 2^24 together, hundreds of times those of LFW's set, and
//! an opcode puts one number of 4 bytes on a stack or list, or two from the stack in a dict: memory is bounded by some 2 GiB and ten times the file's size.

mod lines;
pub(crate) mod numpy;

use crate::Error;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// Why a pickle is not read: where, and a clause.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Offset, what was expected, what found.
    Malformed(usize, &'static str, String),
    /// Well formed perhaps, but this is not read: a noun phrase.
    Unsupported(String),
}

impl Refusal {
    /// The error about the pickle that begins at byte `start` of the file at `path`.
    pub(crate) fn error(self, path: &Path, start: usize) -> Error {
        match self {
            Refusal::Malformed(at, expected, found) => {
                Error::malformed(path, (start + at) as u64, expected, found)
            }
            Refusal::Unsupported(what) => Error::Unsupported {
                path: path.into(),
                what,
            },
        }
    }
}

/// Number of a value in [`Values`].
pub(crate) type Id = u32;

/// What is pickled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Value {
    /// None, or something that cannot be told by value.
    None,
    Bool(bool),
    Int(i64),
    /// A floating-point number, whose value nobody has asked for yet.
    Float,
    /// Bytes of the file.
    Bytes(Range<usize>),
    /// Bytes that are not in the file as they are.
    Decoded(Box<[u8]>),
    /// UTF-8 in the file.
    Text(Range<usize>),
    /// A text that is not in the file as it is.
    DecodedText(Box<str>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    /// Keys and values in the order in which they were set; a key may be there twice.
    Dict(Vec<(Id, Id)>),
    /// A name that may be called.
    Function(Function),
    /// What a call of the caller's name of this number would give, and the tuple of its arguments.
    Call(usize, Id),
    /// What the pickle's writer keeps elsewhere, by its key.
    Outside(Id),
}

/// What may be called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Function {
    /// `_codecs.encode`
    Encode,
    /// `bytes`
    Bytes,
    /// `bytearray`
    ByteArray,
    /// `collections.OrderedDict`
    OrderedDict,
    /// The caller's name of this number.
    Named(usize),
}

/// All values of a pickle, and which of them it is.
#[derive(Debug)]
pub(crate) struct Values {
    values: Vec<Value>,
    /// What calls of the caller's names were told about themselves.
    states: HashMap<Id, Id>,
    top: Id,
    /// Bytes from the pickle's beginning to its end.
    len: usize,
}

impl Values {
    /// How many bytes the pickle takes.
    pub(crate) fn pickle_len(&self) -> usize {
        self.len
    }

    /// All values, in the order in which they were made.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Value> {
        self.values.iter()
    }

    /// What was pickled.
    pub(crate) fn top(&self) -> &Value {
        self.get(self.top)
    }

    /// Its number.
    pub(crate) fn top_id(&self) -> Id {
        self.top
    }

    pub(crate) fn get(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }
}

/// Whether `bytes` begin as a pickle that says its protocol.
pub(crate) fn is_pickle(bytes: &[u8]) -> bool {
    matches!(bytes, [0x80, 2..=5, ..])
}

/// Whether `bytes` begin as a list or tuple of lists in protocol 0 or 1, which do not say so.
pub(crate) fn is_old_pickle(bytes: &[u8]) -> bool {
    let list = |bytes: &[u8]| matches!(bytes, [b'(', b'l', b'p', ..] | [b']', b'q' | b'r', ..]);
    list(bytes)
        || (bytes.strip_prefix(b"("))
            .is_some_and(|inner| list(inner) || inner.starts_with(b"cnumpy"))
}

const NONE: Id = 0;
const TRUE: Id = 1;
const FALSE: Id = 2;

/// The most values, with the numbers under which some are remembered.
const MOST: usize = 1 << 24;

/// Runs the pickle with which `bytes` begin. It may call the `names`, each a module and a name in it.
pub(crate) fn load(bytes: &[u8], names: &[(&str, &str)]) -> Result<Values, Refusal> {
    if !is_pickle(bytes) && !is_old_pickle(bytes) {
        return Err(Refusal::Malformed(
            0,
            "a pickle of protocol 0 to 5",
            format!("the bytes {:02x?}", &bytes[..bytes.len().min(4)]),
        ));
    }
    if bytes.len() >= (u32::MAX - 8) as usize {
        return Err(Refusal::Unsupported("a pickle of 4 GiB or more".into()));
    }
    let mut machine = Machine {
        bytes,
        names,
        at: if is_pickle(bytes) { 2 } else { 0 },
        states: HashMap::new(),
        values: vec![Value::None, Value::Bool(true), Value::Bool(false)],
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        decoded: 0,
    };
    while !machine.step()? {
        if machine.values.len() + machine.memo.len() > MOST {
            return Err(Refusal::Unsupported(format!(
                "a pickle of more than {MOST} values"
            )));
        }
    }
    let top = machine.pop()?;
    Ok(Values {
        values: machine.values,
        states: machine.states,
        top,
        len: machine.at,
    })
}

struct Machine<'a> {
    bytes: &'a [u8],
    names: &'a [(&'a str, &'a str)],
    at: usize,
    values: Vec<Value>,
    states: HashMap<Id, Id>,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Bytes of all decoded values.
    decoded: usize,
}

impl Machine<'_> {
    /// One opcode; true at the end.
    fn step(&mut self) -> Result<bool, Refusal> {
        let opcode = self.take(1)?;
        match self.bytes[opcode.start] {
            b'.' => return Ok(true),
            0x80 => {
                self.take(1)?;
            }
            0x95 => {
                self.take(8)?;
            }
            b'(' => self.marks.push(self.stack.len()),
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b'a' => {
                let item = self.pop()?;
                self.append(&[item])?;
            }
            b'e' => {
                let items = self.pop_to_mark()?;
                self.append(&items)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(&[key, value])?;
            }
            b'u' => {
                let items = self.pop_to_mark()?;
                self.set(&items)?;
            }
            b't' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Tuple(items));
            }
            b'l' => {
                let items = self.pop_to_mark()?;
                self.push(Value::List(items));
            }
            n @ 0x85..=0x87 => {
                let mut items = Vec::with_capacity(3);
                for _ in 0x84..n {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Value::Tuple(items));
            }
            b'd' => {
                let items = self.pop_to_mark()?;
                self.push(Value::Dict(Vec::new()));
                self.set(&items)?;
            }
            b'1' => {
                self.pop_to_mark()?;
            }
            b'2' => {
                let top = self.top()?;
                self.stack.push(top);
            }
            b'I' => self.int_line()?,
            b'L' => {
                let number = self.decimal()?;
                self.push(Value::Int(number));
            }
            b'F' => self.float_line()?,
            b'S' => self.bytes_line()?,
            b'V' => self.text_line()?,
            b'p' => {
                let key = self.memo_line()?;
                self.remember(key)?;
            }
            b'g' => {
                let key = self.memo_line()?;
                self.recall(key)?;
            }
            b'q' => {
                let key = self.number(1)? as u32;
                self.remember(key)?;
            }
            b'r' => {
                let key = self.number(4)? as u32;
                self.remember(key)?;
            }
            0x94 => {
                let key = self.memo.len() as u32;
                let top = self.top()?;
                self.memo.insert(key, top);
            }
            b'h' => {
                let key = self.number(1)? as u32;
                self.recall(key)?;
            }
            b'j' => {
                let key = self.number(4)? as u32;
                self.recall(key)?;
            }
            b'C' | b'U' => self.sized(1, Value::Bytes)?,
            b'B' | b'T' => self.sized(4, Value::Bytes)?,
            0x8e | 0x96 => self.sized(8, Value::Bytes)?,
            0x8c => self.sized(1, Value::Text)?,
            b'X' => self.sized(4, Value::Text)?,
            0x8d => self.sized(8, Value::Text)?,
            b'N' => self.stack.push(NONE),
            0x88 => self.stack.push(TRUE),
            0x89 => self.stack.push(FALSE),
            b'K' => self.int(1)?,
            b'M' => self.int(2)?,
            b'J' => {
                let number = self.number(4)? as u32;
                self.push(Value::Int(i64::from(number.cast_signed())));
            }
            0x8a => self.long()?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Float);
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.name(&module, &name)?;
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let text = |id: Id| match &self.values[id as usize] {
                    Value::Text(range) => {
                        String::from_utf8_lossy(&self.bytes[range.clone()]).into_owned()
                    }
                    _ => String::new(),
                };
                let (module, name) = (text(module), text(name));
                self.name(&module, &name)?;
            }
            b'R' => self.call()?,
            b'Q' => {
                let key = self.pop()?;
                self.push(Value::Outside(key));
            }
            b'b' => {
                let (state, object) = (self.pop()?, self.top()?);
                if matches!(self.values[object as usize], Value::Call(..)) {
                    self.states.insert(object, state);
                }
            }
            b'0' => {
                self.pop()?;
            }
            other => {
                let shown = match other {
                    b'!'..=b'~' => format!("'{}'", char::from(other)),
                    other => format!("{other:#04x}"),
                };
                return Err(Refusal::Unsupported(format!(
                    "the pickle opcode {shown} at byte {} (only lists, tuples, dicts, bytes, texts, numbers and truth values are read)",
                    opcode.start
                )));
            }
        }
        Ok(false)
    }

    fn bad(&self, expected: &'static str, found: impl Into<String>) -> Refusal {
        Refusal::Malformed(self.at, expected, found.into())
    }

    /// The next `n` bytes.
    fn take(&mut self, n: u64) -> Result<Range<usize>, Refusal> {
        let rest = self.bytes.len() - self.at;
        let Some(n) = usize::try_from(n).ok().filter(|&n| n <= rest) else {
            return Err(self.bad(
                "more of the pickle",
                format!("{rest} bytes to the end of the file, where {n} belong: it is truncated or damaged"),
            ));
        };
        self.at += n;
        Ok(self.at - n..self.at)
    }

    fn number(&mut self, width: u64) -> Result<u64, Refusal> {
        let range = self.take(width)?;
        let bytes = self.bytes[range].iter().rev();
        Ok(bytes.fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn push(&mut self, value: Value) {
        // Fewer values than bytes, of which there are fewer than 2^32.
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
    }

    /// The height below which the items of the innermost mark's outside lie.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id, Refusal> {
        match self.stack.last() {
            Some(&top) if self.stack.len() > self.floor() => Ok(top),
            _ => Err(self.bad("a value on the stack", "none")),
        }
    }

    fn pop(&mut self) -> Result<Id, Refusal> {
        let top = self.top()?;
        self.stack.pop();
        Ok(top)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, Refusal> {
        match self.marks.pop() {
            Some(height) => Ok(self.stack.split_off(height)),
            None => Err(self.bad("a mark on the stack", "none")),
        }
    }

    fn append(&mut self, items: &[Id]) -> Result<(), Refusal> {
        let list = self.top()?;
        match &mut self.values[list as usize] {
            Value::List(list) => {
                list.extend(items);
                Ok(())
            }
            _ => Err(self.bad("a list to append to", "something else")),
        }
    }

    /// Keys and values in turn.
    fn set(&mut self, items: &[Id]) -> Result<(), Refusal> {
        let (pairs, rest) = items.as_chunks::<2>();
        let dict = self.top()?;
        match &mut self.values[dict as usize] {
            Value::Dict(dict) if rest.is_empty() => {
                dict.extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            _ => Err(self.bad("a dict, a key and a value", "something else")),
        }
    }

    fn remember(&mut self, key: u32) -> Result<(), Refusal> {
        let top = self.top()?;
        self.memo.insert(key, top);
        Ok(())
    }

    fn recall(&mut self, key: u32) -> Result<(), Refusal> {
        match self.memo.get(&key) {
            Some(&id) => {
                self.stack.push(id);
                Ok(())
            }
            None => Err(self.bad(
                "a value that was remembered",
                format!("none under the number {key}"),
            )),
        }
    }

    fn sized(&mut self, width: u64, kind: fn(Range<usize>) -> Value) -> Result<(), Refusal> {
        let length = self.number(width)?;
        let range = self.take(length)?;
        self.push(kind(range));
        Ok(())
    }

    fn int(&mut self, width: u64) -> Result<(), Refusal> {
        let number = self.number(width)?;
        self.push(Value::Int(number as i64));
        Ok(())
    }

    /// An integer of up to 8 bytes, two's complement.
    fn long(&mut self) -> Result<(), Refusal> {
        let width = self.number(1)?;
        if width > 8 {
            return Err(Refusal::Unsupported(format!(
                "an integer of {width} bytes in a pickle"
            )));
        }
        let unused = 64 - 8 * width as u32;
        let number = self.number(width)?.cast_signed();
        // Shifting all 64 bits out is no shift in Rust.
        let number = number.checked_shl(unused).map_or(0, |n| n >> unused);
        self.push(Value::Int(number));
        Ok(())
    }

    /// Up to the next line feed, which is dropped.
    fn line(&mut self) -> Result<String, Refusal> {
        let rest = &self.bytes[self.at..];
        let Some(end) = rest.iter().take(200).position(|&b| b == b'\n') else {
            return Err(self.bad("a line with a name", "none of up to 200 bytes"));
        };
        let line = String::from_utf8_lossy(&rest[..end]).into_owned();
        self.at += end + 1;
        Ok(line)
    }

    fn name(&mut self, module: &str, name: &str) -> Result<(), Refusal> {
        let function = match (module, name) {
            ("_codecs", "encode") => Function::Encode,
            ("__builtin__" | "builtins", "bytes") => Function::Bytes,
            ("__builtin__" | "builtins", "bytearray") => Function::ByteArray,
            ("collections", "OrderedDict") => Function::OrderedDict,
            _ if let Some(i) = self.names.iter().position(|&known| known == (module, name)) => {
                Function::Named(i)
            }
            ("numpy" | "numpy.core.multiarray" | "numpy._core.multiarray", _) => {
                return Err(Refusal::Unsupported(format!(
                    "a NumPy object ({module}.{name}) in a pickle (where Python's own bytes, numbers and bools could stand)"
                )));
            }
            _ => {
                return Err(Refusal::Unsupported(format!(
                    "{module}.{name} in a pickle, which would have to be executed,"
                )));
            }
        };
        self.push(Value::Function(function));
        Ok(())
    }

    fn call(&mut self) -> Result<(), Refusal> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let value = |id: Id| &self.values[id as usize];
        let (Value::Function(function), Value::Tuple(items)) = (value(function), value(arguments))
        else {
            return Err(self.bad("a function and its arguments", "something else"));
        };
        let decoded = match (*function, &items[..]) {
            (Function::Named(name), _) => {
                self.push(Value::Call(name, arguments));
                return Ok(());
            }
            (Function::OrderedDict, []) => {
                self.push(Value::Dict(Vec::new()));
                return Ok(());
            }
            (Function::ByteArray, &[bytes])
                if matches!(value(bytes), Value::Bytes(_) | Value::Decoded(_)) =>
            {
                self.stack.push(bytes);
                return Ok(());
            }
            (Function::Bytes | Function::ByteArray, []) => Some(Vec::new()),
            (Function::Encode | Function::ByteArray, &[text, encoding]) => {
                let content = |id: Id| match value(id) {
                    Value::Text(range) | Value::Bytes(range) => &self.bytes[range.clone()],
                    Value::DecodedText(text) => text.as_bytes(),
                    Value::Decoded(bytes) => bytes,
                    _ => &[],
                };
                let is_text = matches!(value(text), Value::Text(_) | Value::DecodedText(_));
                let encoding = matches!(content(encoding), b"latin1" | b"latin-1" | b"iso-8859-1");
                (is_text && encoding)
                    .then(|| latin1(content(text)))
                    .flatten()
            }
            _ => None,
        };
        let decoded = decoded.ok_or_else(|| {
            self.bad(
                "_codecs.encode(text, \"latin1\"), bytes() or OrderedDict()",
                "other arguments, or a character above 255",
            )
        })?;
        // A text is decoded once where bytes are meant; over and over again it would fill any memory.
        self.decoded += decoded.len();
        if self.decoded > self.bytes.len() {
            return Err(self.bad(
                "each text decoded once",
                "one that is decoded over and over again",
            ));
        }
        self.push(Value::Decoded(decoded.into()));
        Ok(())
    }
}

/// The bytes that UTF-8 stands for, a character a byte.
fn latin1(text: &[u8]) -> Option<Vec<u8>> {
    let text = std::str::from_utf8(text).ok()?;
    text.chars().map(|c| u8::try_from(c).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python's notation of a value.
    fn show(values: &Values, bytes: &[u8], value: &Value) -> String {
        let all = |ids: &[Id]| {
            let items: Vec<String> = ids
                .iter()
                .map(|&id| show(values, bytes, values.get(id)))
                .collect();
            items.join(",")
        };
        match value {
            Value::None => "None".into(),
            Value::Bool(true) => "True".into(),
            Value::Bool(false) => "False".into(),
            Value::Int(i) => i.to_string(),
            Value::Bytes(range) => {
                format!("b{:?}", bytes[range.clone()].escape_ascii().to_string())
            }
            Value::Decoded(decoded) => format!("b{:?}", decoded.escape_ascii().to_string()),
            Value::Text(range) => format!("{:?}", String::from_utf8_lossy(&bytes[range.clone()])),
            Value::DecodedText(text) => format!("{text:?}"),
            Value::List(ids) => format!("[{}]", all(ids)),
            Value::Tuple(ids) => format!("({})", all(ids)),
            Value::Float => "float".into(),
            Value::Dict(pairs) => {
                let pairs = pairs.iter().map(|&(key, value)| {
                    let text = |id| show(values, bytes, values.get(id));
                    format!("{}:{}", text(key), text(value))
                });
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
            }
            Value::Function(function) => format!("{function:?}"),
            Value::Call(name, arguments) => {
                format!("{}{}", NAMES[*name].1, all(&[*arguments]))
            }
            Value::Outside(key) => format!("<{}>", all(&[*key])),
        }
    }

    const NAMES: &[(&str, &str)] = &[("torch", "FloatStorage"), ("torch.c", "f")];

    fn loaded(bytes: &[u8]) -> String {
        match load(bytes, NAMES) {
            Ok(values) => show(&values, bytes, values.top()),
            Err(refusal) => format!("{refusal:?}"),
        }
    }

    /// `pickle.dumps(([b"\xff\xd8", b"", b"\xff\xd8"], [True, False], "\xf6", -3, 300, 70000, None), protocol)` of Python 3.11 (the
    /// first and third item the same object), and of Python 2.7 with the text left out.
    #[test]
    fn what_python_writes() {
        let expected = r#"([b"\\xff\\xd8",b"",b"\\xff\\xd8"],[True,False],"ö",-3,300,70000,None)"#;
        for pickle in [PROTOCOL_2, PROTOCOL_3, PROTOCOL_4, PROTOCOL_5] {
            assert_eq!(loaded(pickle), expected);
            for length in 0..pickle.len() {
                assert!(load(&pickle[..length], NAMES).is_err(), "{length}");
            }
            let longer = [pickle, b"rest"].concat();
            assert_eq!(load(&longer, NAMES).unwrap().pickle_len(), pickle.len());
        }
        assert_eq!(
            loaded(PYTHON_2),
            r#"([b"\\xff\\xd8",b""],[True,False],-3,300,70000,None)"#
        );
    }

    /// By hand, after `pickletools.py`: what each opcode with a line means.
    #[test]
    fn protocol_0() {
        let pickle = b"(lp0\nI01\naI00\naI-5\naL7L\naF1.5\naS'a\\'\\n\\xff'\np1\nag1\naV\xff\\u20ac\na(dp2\nI1\nI2\nsa.";
        assert_eq!(
            loaded(pickle),
            r#"[True,False,-5,7,float,b"a\\'\\n\\xff",b"a\\'\\n\\xff","\u{ff}\u{20ac}",{1:2}]"#
                .replace("\\u{ff}", "\u{ff}")
                .replace("\\u{20ac}", "\u{20ac}")
        );
    }

    const PROTOCOL_2: &[u8] = b"\x80\x02(]q\x00(c_codecs\x0aencode\x0aq\x01X\x04\x00\x00\x00\xc3\xbf\xc3\x98q\x02X\x06\x00\x00\x00latin1q\x03\x86q\x04Rq\x05c__builtin__\x0abytes\x0aq\x06)Rq\x07h\x05e]q\x08(\x88\x89eX\x02\x00\x00\x00\xc3\xb6q\x09J\xfd\xff\xff\xffM,\x01Jp\x11\x01\x00Ntq\x0a.";
    const PROTOCOL_3: &[u8] = b"\x80\x03(]q\x00(C\x02\xff\xd8q\x01C\x00q\x02h\x01e]q\x03(\x88\x89eX\x02\x00\x00\x00\xc3\xb6q\x04J\xfd\xff\xff\xffM,\x01Jp\x11\x01\x00Ntq\x05.";
    const PROTOCOL_4: &[u8] = b"\x80\x04\x95+\x00\x00\x00\x00\x00\x00\x00(]\x94(C\x02\xff\xd8\x94C\x00\x94h\x01e]\x94(\x88\x89e\x8c\x02\xc3\xb6\x94J\xfd\xff\xff\xffM,\x01Jp\x11\x01\x00Nt\x94.";
    const PROTOCOL_5: &[u8] = b"\x80\x05\x95+\x00\x00\x00\x00\x00\x00\x00(]\x94(C\x02\xff\xd8\x94C\x00\x94h\x01e]\x94(\x88\x89e\x8c\x02\xc3\xb6\x94J\xfd\xff\xff\xffM,\x01Jp\x11\x01\x00Nt\x94.";
    const PYTHON_2: &[u8] = b"\x80\x02(]q\x01(U\x02\xff\xd8q\x02U\x00e]q\x03(\x88\x89eJ\xfd\xff\xff\xffM,\x01Jp\x11\x01\x00Nt.";

    #[test]
    fn nothing_is_executed() {
        let says = |bytes: &[u8], words: &str| {
            let found = loaded(bytes);
            assert!(found.contains(words), "{words:?} is not in {found:?}");
        };
        says(
            b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.",
            "os.system in a pickle",
        );
        says(b"\x80\x04\x8c\x05posix\x8c\x06system\x93.", "posix.system");
        says(b"\x80\x02cnumpy.core.multiarray\nscalar\n.", "NumPy object");
        says(
            b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-8\x86R.",
            "other arguments",
        );
        says("\u{80}\x02".as_bytes(), "protocol 0 to 5");
        says(b"\x80\x02o.", "opcode 'o' at byte 2");
        says(b"(lp0\nS'ls'\n(cos\nsystem\n", "os.system");
        says(b"(lp0\nS'\\q'\na.", "in quotes");
        says(b"(lp0\nI99999999999999999999\na.", "64 bits");
        says(b"\x80\x02.", "a value on the stack");
        says(b"\x80\x02]((a.", "a value on the stack");
        says(b"\x80\x02(t(K\x01e.", "a list to append to");
        says(b"\x80\x02e.", "a mark on the stack");
        says(b"\x80\x02h\x07.", "none under the number 7");
        says(
            b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\xff.",
            "truncated or damaged",
        );
        // A list in itself, and integers of odd widths.
        assert_eq!(
            load(b"\x80\x02]q\0h\0a.", NAMES).unwrap().top(),
            &Value::List(vec![3])
        );
        assert_eq!(
            loaded(b"\x80\x02\x8a\x00\x8a\x01\xff\x8a\x03\x00\x00\x80\x87."),
            "(0,-1,-8388608)"
        );
        says(b"\x80\x02\x8a\x09123456789.", "an integer of 9 bytes");
    }

    #[test]
    fn values_are_not_made_without_end() {
        let mut bytes = vec![b']'; MOST];
        bytes.splice(..0, [0x80, 2]);
        bytes.push(b'.');
        assert!(matches!(load(&bytes, NAMES), Err(Refusal::Unsupported(_))));
    }

    #[test]
    fn dicts_and_the_callers_names() {
        let pickle = b"\x80\x02ccollections\nOrderedDict\n)R(K\x01]K\x02G12345678u}K\x03\x88sbK\x04ctorch.c\nf\nK\x05\x85Rs.";
        assert_eq!(loaded(pickle), "{1:[],2:float,4:f(5)}");
        let pickle = b"\x80\x02(ctorch\nFloatStorage\nK\x07tQ.";
        assert_eq!(loaded(pickle), "<(Named(0),7)>");
        let says = |bytes: &[u8], words: &str| {
            let found = loaded(bytes);
            assert!(found.contains(words), "{words:?} is not in {found:?}");
        };
        says(b"\x80\x02}(K\x01u.", "a dict, a key and a value");
        says(b"\x80\x02]K\x01K\x02s.", "a dict, a key and a value");
        says(
            b"\x80\x02ccollections\nOrderedDict\n]\x85R.",
            "OrderedDict()",
        );
        says(
            b"\x80\x02ctorch\nHalfStorage\n.",
            "torch.HalfStorage in a pickle",
        );
        says(b"\x80\x02Nb.", "a value on the stack");
    }

    #[test]
    fn a_text_is_not_decoded_without_end() {
        let mut bytes = b"\x80\x02(c_codecs\nencode\nq\0X\xe8\x03\0\0".to_vec();
        bytes.extend([b'x'; 1000]);
        bytes.extend(b"q\x01X\x06\0\0\0latin1q\x020");
        for _ in 0..200 {
            bytes.extend(b"h\0h\x01h\x02\x86R");
        }
        bytes.extend(b"t.");
        assert!(loaded(&bytes).contains("over and over"));
    }
}
