//! Opcodes of protocols 0 and 1 whose argument is a line of text.

use super::{FALSE, Machine, Refusal, TRUE, Value};
use std::ops::Range;

impl Machine<'_> {
    /// Up to the next line feed, which is dropped, however far that is.
    fn whole_line(&mut self) -> Result<Range<usize>, Refusal> {
        let start = self.at;
        let Some(length) = self.bytes[start..].iter().position(|&b| b == b'\n') else {
            return Err(self.bad("a line", "none to the end of the file"));
        };
        self.at += length + 1;
        Ok(start..start + length)
    }

    /// A number in decimal digits on a line.
    fn decimal(&mut self) -> Result<i64, Refusal> {
        let line = self.line()?;
        line.trim()
            .parse()
            .map_err(|_| self.bad("a number of 64 bits on a line", format!("{line:?}")))
    }

    /// `I01` and `I00` are True and False.
    pub(super) fn int_line(&mut self) -> Result<(), Refusal> {
        match self.bytes[self.at..] {
            [b'0', truth @ (b'0' | b'1'), b'\n', ..] => {
                self.at += 3;
                self.stack.push(if truth == b'1' { TRUE } else { FALSE });
            }
            _ => self.integer_line()?,
        }
        Ok(())
    }

    /// An integer of any size in decimal digits on a line.
    pub(super) fn integer_line(&mut self) -> Result<(), Refusal> {
        let line = self.line()?;
        let number = line.trim().trim_end_matches('L');
        let digits = number.strip_prefix('-').unwrap_or(number);
        let value = match number.parse() {
            Ok(number) => Value::Int(number),
            Err(_) if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => {
                Value::Number
            }
            Err(_) => return Err(self.bad("a number on a line", format!("{line:?}"))),
        };
        self.push(value);
        Ok(())
    }

    /// The number under which a value is remembered.
    pub(super) fn memo_line(&mut self) -> Result<u32, Refusal> {
        let number = self.decimal()?;
        u32::try_from(number)
            .map_err(|_| self.bad("a number under which to remember", number.to_string()))
    }

    /// A floating-point number.
    pub(super) fn float_line(&mut self) -> Result<(), Refusal> {
        self.line()?;
        self.push(Value::Number);
        Ok(())
    }

    /// Bytes as Python writes them in a program, in quotes with escapes.
    pub(super) fn bytes_line(&mut self) -> Result<(), Refusal> {
        let line = self.whole_line()?;
        let line = self.bytes[line].trim_ascii();
        match quoted(line) {
            Some(bytes) => {
                self.push(Value::Decoded(bytes.into()));
                Ok(())
            }
            None => Err(self.bad("a text in quotes on a line", "something else")),
        }
    }

    /// A text, each byte a character, with `\uXXXX` and `\UXXXXXXXX` for others.
    pub(super) fn text_line(&mut self) -> Result<(), Refusal> {
        let line = self.whole_line()?;
        match unescaped(&self.bytes[line]) {
            Some(text) => {
                self.push(Value::DecodedText(text.into()));
                Ok(())
            }
            None => Err(self.bad("a text with escapes on a line", "something else")),
        }
    }
}

fn quoted(line: &[u8]) -> Option<Vec<u8>> {
    let (&quote, rest) = line.split_first()?;
    let mut rest = match rest.split_last()? {
        (&last, inside) if last == quote && b"'\"".contains(&quote) => inside,
        _ => return None,
    };
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        let (&escape, after) = rest.split_first()?;
        rest = after;
        bytes.push(match escape {
            b'\\' | b'\'' | b'"' => escape,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'x' => {
                let (digits, after) = rest.split_at_checked(2)?;
                rest = after;
                u8::try_from(hexadecimal(digits)?).ok()?
            }
            _ => return None,
        });
    }
    Some(bytes)
}

fn unescaped(line: &[u8]) -> Option<String> {
    let mut text = String::with_capacity(line.len());
    let mut rest = line;
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        let digits = match (byte, rest.first()) {
            (b'\\', Some(b'u')) => 4,
            (b'\\', Some(b'U')) => 8,
            _ => {
                text.push(char::from(byte));
                continue;
            }
        };
        let (escape, after) = rest.split_at_checked(1 + digits)?;
        rest = after;
        text.push(char::from_u32(hexadecimal(&escape[1..])?)?);
    }
    Some(text)
}

fn hexadecimal(digits: &[u8]) -> Option<u32> {
    let value = |&digit: &u8| char::from(digit).to_digit(16);
    digits
        .iter()
        .try_fold(0_u32, |n, digit| Some(n << 4 | value(digit)?))
}
