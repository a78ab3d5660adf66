//! Python pickles, protocols 0 to 5: lists, tuples, dicts, bytes, texts, numbers and truth values, and calls that the caller
//! knows. All other objects are inert: where one stands is kept and what makes it, nothing else. Nothing is executed.
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
//! | `8f`, `90`, `91` | an empty set; add all from the mark on to it; a frozen set of them |
//! | `p` `g`, `I` `L` `F`, `S` `V` | of protocol 0, with a line: remember and push, numbers, bytes and text (`lines.rs`) |
//! | `q`+1 `r`+4 `94`, `h`+1 `j`+4 | remember the top under a number; push what was remembered |
//! | `C`+1 `B`+4 `8e`+8 `96`+8, `U`+1 `T`+4 | bytes by length (in Python 2, strings) |
//! | `8c`+1 `X`+4 `8d`+8 | UTF-8 by length |
//! | `N` `88` `89`, `K`+1 `M`+2 `J`+4 `8a`+1 `8b`+4, `G`+8 | None, True, False; integers, the last two by length; a floating-point number |
//! | `c`, `93`, `R` `81` `92` | a name of Python's, by two lines or two texts; call it, the last with arguments by name as well |
//! | `i`, `o` | the same of protocol 0: an object of a name by two lines, or of the first value after the mark |
//! | `Q` | something outside the pickle, by the key on the top |
//! | `b` | tell an object about itself: of a call of the caller's names it is kept, else dropped |
//! | `0`, `.` | drop the top; the end |
//!
//! These names are called here: `_codecs.encode(text, "latin1")`, a character a byte, and `bytes()`, no bytes, because
//! protocols up to 2 write bytes so, `bytearray` of either, and dicts: `collections.OrderedDict`, empty or of a list of pairs
//! (Python 2), and `collections.defaultdict`. Of names that the caller lists a call is a value, [`Value::Call`]; of any other name
//! it is a [`Value::Object`]. What is put into such a one, or told to it, is dropped. Any other opcode is refused.
//!
//! Bytes stay in the file, a value takes 32 bytes here, no opcode makes more than three, and what is decoded or copied is together
//! not larger than the file. Values and remembered numbers are at most 2^24 together, hundreds of times those of LFW's set, and
//! an opcode puts one number of 4 bytes on a stack or list, or two from the stack in a dict: memory is bounded by some 2 GiB and ten times the file's size.

mod calls;
mod lines;
pub(crate) mod numpy;

use crate::Error;
use crate::base::text::one_line;
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
    /// A number whose value nobody has asked for yet: floating-point, or an integer of more than 64 bits.
    Number,
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
    /// A set, of whose members nothing is kept.
    Set,
    /// A name that may be called.
    Function(Function),
    /// What a call of the caller's name of this number would give, and the tuple of its arguments.
    Call(usize, Id),
    /// An object of which nothing is kept but what makes it.
    Object(Id),
    /// What the pickle's writer keeps elsewhere, by its key.
    Outside(Id),
}

/// A name of Python's.
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
    /// `collections.defaultdict`
    DefaultDict,
    /// The caller's name of this number.
    Named(usize),
    /// Any other: the texts of its module and of the name in it.
    Unknown {
        /// Of the module.
        module: Id,
        /// In it.
        name: Id,
    },
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

    /// What kind of value `id` is, as a noun phrase; `file` is what the pickle begins.
    pub(crate) fn what(&self, file: &[u8], id: Id) -> String {
        let kind = match self.get(id) {
            Value::None => "None",
            Value::Bool(_) => "a truth value",
            Value::Int(_) | Value::Number => "a number",
            Value::Bytes(_) | Value::Decoded(_) => "bytes",
            Value::Text(_) | Value::DecodedText(_) => "a text",
            Value::List(_) => "a list",
            Value::Tuple(_) => "a tuple",
            Value::Dict(_) => "a dict",
            Value::Set => "a set",
            Value::Call(..) | Value::Outside(_) => "an object",
            Value::Function(_) => match self.name(file, id) {
                Some(name) => return format!("the class or function {name}"),
                None => "a class or function",
            },
            Value::Object(maker) => match self.name(file, *maker) {
                Some(name) => return format!("an object of {name}"),
                None => "an object",
            },
        };
        kind.into()
    }

    /// The name of Python's that `id` is, or that the key of something outside has, on one line.
    fn name(&self, file: &[u8], id: Id) -> Option<String> {
        let parts = |id: Id| match self.get(id) {
            &Value::Function(Function::Unknown { module, name }) => Some((module, name)),
            _ => None,
        };
        let (module, name) = match self.get(id) {
            Value::Outside(key) => match self.get(*key) {
                Value::Tuple(items) => items.iter().find_map(|&item| parts(item)),
                _ => None,
            },
            _ => parts(id),
        }?;
        let [module, name] = [module, name].map(|id| self.bytes(file, id).unwrap_or_default());
        let name = [module, name].join(&b'.');
        Some(one_line(&String::from_utf8_lossy(&name)))
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
            b'L' => self.integer_line()?,
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
            0x8a => self.long(1)?,
            0x8b => self.long(4)?,
            b'G' => {
                self.take(8)?;
                self.push(Value::Number);
            }
            0x8f => self.push(Value::Set),
            0x90 => {
                self.pop_to_mark()?;
                match self.values[self.top()? as usize] {
                    Value::Set | Value::Object(_) => {}
                    _ => return Err(self.bad("a set to add to", "something else")),
                }
            }
            0x91 => {
                self.pop_to_mark()?;
                self.push(Value::Set);
            }
            b'c' => {
                let name = self.named_by_lines()?;
                self.stack.push(name);
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                let name = self.name(module, name);
                self.stack.push(name);
            }
            // Of a call and of an object that is made without one the arguments are the same.
            b'R' | 0x81 => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                self.call(function, arguments)?;
            }
            0x92 => {
                let (_, _, class) = (self.pop()?, self.pop()?, self.pop()?);
                self.push(Value::Object(class));
            }
            b'i' => {
                let class = self.named_by_lines()?;
                self.pop_to_mark()?;
                self.push(Value::Object(class));
            }
            b'o' => {
                let items = self.pop_to_mark()?;
                let Some(&class) = items.first() else {
                    return Err(self.bad("a class after the mark", "nothing"));
                };
                self.push(Value::Object(class));
            }
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
                    "the pickle opcode {shown} at byte {}",
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
            Value::Object(_) | Value::Call(..) => Ok(()),
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
            Value::Object(_) | Value::Call(..) => Ok(()),
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

    /// An integer, two's complement; its length in bytes, of `width` bytes, stands before it.
    fn long(&mut self, width: u64) -> Result<(), Refusal> {
        let width = self.number(width)?;
        if width > 8 {
            self.take(width)?;
            self.push(Value::Number);
            return Ok(());
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
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Python's notation of a value.
    fn show(values: &Values, bytes: &[u8], id: Id) -> String {
        let all = |ids: &[Id]| {
            let items: Vec<String> = ids.iter().map(|&id| show(values, bytes, id)).collect();
            items.join(",")
        };
        match values.get(id) {
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
            Value::Number => "number".into(),
            Value::Set | Value::Object(_) => values.what(bytes, id),
            Value::Dict(pairs) => {
                let pairs = pairs.iter().map(|&(key, value)| {
                    format!(
                        "{}:{}",
                        show(values, bytes, key),
                        show(values, bytes, value)
                    )
                });
                format!("{{{}}}", pairs.collect::<Vec<_>>().join(","))
            }
            Value::Function(Function::Unknown { .. }) => values.what(bytes, id),
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
            Ok(values) => show(&values, bytes, values.top_id()),
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
            r#"[True,False,-5,7,number,b"a\\'\\n\\xff",b"a\\'\\n\\xff","\u{ff}\u{20ac}",{1:2}]"#
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
        for (pickle, shown) in [
            (
                b"\x80\x02cos\nsystem\nX\x02\0\0\0ls\x85R.".as_slice(),
                "an object of os.system",
            ),
            (
                b"\x80\x04\x8c\x05posix\x8c\x06system\x93.",
                "the class or function posix.system",
            ),
            (
                b"\x80\x02cnumpy.core.multiarray\nscalar\n.",
                "the class or function numpy.core.multiarray.scalar",
            ),
            (
                b"\x80\x02c_codecs\nencode\nX\x01\0\0\0aX\x05\0\0\0utf-8\x86R.",
                "an object",
            ),
            (b"(lp0\n0cos\nsystem\n(S'ls'\ntR.", "an object of os.system"),
            (b"(lp0\n0(S'ls'\nios\nsystem\n.", "an object of os.system"),
            (
                b"\x80\x02(cos\nsystem\nX\x02\0\0\0lso.",
                "an object of os.system",
            ),
        ] {
            assert_eq!(loaded(pickle), shown);
        }
        says("\u{80}\x02".as_bytes(), "protocol 0 to 5");
        says(b"\x80\x02(o.", "a class after the mark");
        says(b"\x80\x02P.", "opcode 'P' at byte 2");
        says(b"(lp0\nS'\\q'\na.", "in quotes");
        assert_eq!(
            loaded(b"(lp0\nI99999999999999999999\naL-99999999999999999999L\na."),
            "[number,number]"
        );
        says(b"(lp0\nI9x\na.", "a number on a line");
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
        assert_eq!(
            loaded(b"\x80\x02\x8a\x09123456789\x8b\x02\0\0\0\x00\x01\x86."),
            "(number,256)"
        );
        says(b"\x80\x02\x8a\x09123.", "truncated or damaged");
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
        assert_eq!(loaded(pickle), "{1:[],2:number,4:f(5)}");
        let pickle = b"\x80\x02(ctorch\nFloatStorage\nK\x07tQ.";
        assert_eq!(loaded(pickle), "<(Named(0),7)>");
        let says = |bytes: &[u8], words: &str| {
            let found = loaded(bytes);
            assert!(found.contains(words), "{words:?} is not in {found:?}");
        };
        says(b"\x80\x02}(K\x01u.", "a dict, a key and a value");
        says(b"\x80\x02]K\x01K\x02s.", "a dict, a key and a value");
        // Python 2's ordered dict, and one that is made of something else.
        let pickle = b"\x80\x02ccollections\nOrderedDict\n](](K\x01K\x02e(K\x03K\x04te\x85R.";
        assert_eq!(loaded(pickle), "{1:2,3:4}");
        let pickle = b"\x80\x02ccollections\nOrderedDict\n]K\x01a\x85R.";
        assert_eq!(loaded(pickle), "an object");
        let pickle = b"\x80\x02ccollections\ndefaultdict\nN\x85RK\x01K\x02s.";
        assert_eq!(loaded(pickle), "{1:2}");
        says(b"\x80\x02Nb.", "a value on the stack");
    }

    /// What a checkpoint holds beside its weights: each object is named, and what is put into it is dropped.
    #[test]
    fn unknown_objects_are_inert() {
        for (pickle, shown) in [
            // argparse.Namespace(lr=1), of protocol 2 and of protocol 0.
            (
                b"\x80\x02cargparse\nNamespace\n)\x81}X\x02\0\0\0lrK\x01sb.".as_slice(),
                "an object of argparse.Namespace",
            ),
            (
                b"\x80\x02ccopy_reg\n_reconstructor\n(cargparse\nNamespace\nc__builtin__\nobject\nNtR}b.",
                "an object of argparse.Namespace",
            ),
            // collections.Counter({1: 2}), deque([1]), {1}, frozenset({1}), a Path.
            (
                b"\x80\x04\x8c\x0bcollections\x8c\x07Counter\x93}K\x01K\x02s\x85R.",
                "an object of collections.Counter",
            ),
            (
                b"\x80\x04\x8c\x0bcollections\x8c\x05deque\x93)RK\x01a(K\x02e.",
                "an object of collections.deque",
            ),
            (b"\x80\x04\x8f(K\x01K\x02\x90.", "a set"),
            (b"\x80\x04(K\x01\x91.", "a set"),
            (
                b"\x80\x04\x8c\x07pathlib\x8c\x09PosixPath\x93\x8c\x01a\x85R.",
                "an object of pathlib.PosixPath",
            ),
            // An enum's member, functools.partial, an object with keyword arguments, and what an object makes.
            (
                b"\x80\x04\x8c\x01m\x8c\x01E\x93K\x01\x85R.",
                "an object of m.E",
            ),
            (
                b"\x80\x02cfunctools\npartial\ncos\nsystem\n\x85R(cos\nsystem\n)}Ntb.",
                "an object of functools.partial",
            ),
            (
                b"\x80\x04\x8c\x01m\x8c\x01C\x93)}\x92K\x01K\x02s.",
                "an object of m.C",
            ),
            (b"\x80\x04\x8c\x01m\x8c\x01f\x93)R)R.", "an object"),
            // A class as a key, and a name that would move the cursor.
            (
                b"\x80\x02}cm\nC\nK\x01s.",
                "{the class or function m.C:1}",
            ),
            (
                b"\x80\x04\x8c\x01m\x8c\x02\x1b[\x93.",
                "the class or function m.\\u{1b}[",
            ),
        ] {
            let found = loaded(pickle);
            assert_eq!(found, shown);
            for length in 0..pickle.len() {
                assert!(load(&pickle[..length], NAMES).is_err(), "{shown} {length}");
            }
        }
    }

    #[test]
    fn pairs_are_not_copied_without_end() {
        let mut bytes = b"\x80\x02(ccollections\nOrderedDict\nq\0]q\x01(".to_vec();
        bytes.extend(b"K\x01K\x02\x86q\x02");
        bytes.extend(b"h\x02".repeat(1000));
        bytes.extend(b"e\x85q\x030");
        bytes.extend(b"h\0h\x03R".repeat(200));
        bytes.extend(b"t.");
        assert!(loaded(&bytes).contains("over and over"));
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
