//! The wire format of protocol buffers, as far as `tf.train.Example` goes.
//!
//! A message is a sequence of fields: a varint `number << 3 | type`, then by type: 0 a varint; 1 eight bytes; 2 a varint
//! length and so many bytes; 5 four bytes. A varint has 7 bits a byte, the lowest first, the top bit set in all but the
//! last. `tf.train.Example`:
//!
//! | message | field | content |
//! |---|---|---|
//! | `Example` | 1 | `Features` |
//! | `Features` | 1, repeated | an entry: 1 the key (UTF-8), 2 a `Feature` |
//! | `Feature` | one of 1, 2, 3 | `BytesList`, `FloatList`, `Int64List` |
//! | `BytesList` | 1, repeated | bytes |
//! | `Int64List` | 1, repeated | varints, one a field or packed in one of type 2 |

/// What is wrong with a message: where (in bytes from the start of the file), what was expected, what found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Malformed {
    pub(crate) at: u64,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Malformed {
    pub(crate) fn new(at: u64, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Malformed {
            at,
            expected: expected.into(),
            found: found.into(),
        }
    }
}

/// A message's bytes and where in the file they are.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) at: u64,
}

/// A field's content.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Bytes(Message<'a>),
    /// Four or eight bytes, which no field read here is.
    Fixed,
}

/// The varint that `message` begins with; `message` becomes what follows it.
pub(crate) fn varint(message: &mut Message<'_>) -> Result<u64, Malformed> {
    let mut value = 0_u64;
    for (i, &byte) in message.bytes.iter().take(10).enumerate() {
        let bits = u64::from(byte & 0x7f);
        if i == 9 && bits > 1 {
            break;
        }
        value |= bits << (7 * i);
        if byte < 0x80 {
            message.advance(i + 1);
            return Ok(value);
        }
    }
    Err(Malformed::new(
        message.at,
        "a varint of at most 64 bits",
        format!("{:02x?}", &message.bytes[..message.bytes.len().min(10)]),
    ))
}

impl<'a> Message<'a> {
    /// Drops the first `n` bytes, which are there.
    fn advance(&mut self, n: usize) {
        self.bytes = &self.bytes[n..];
        self.at += n as u64;
    }

    /// Takes the first `n` bytes off.
    fn take(&mut self, n: u64) -> Result<Message<'a>, Malformed> {
        let taken = usize::try_from(n).ok().and_then(|n| self.bytes.get(..n));
        let Some(bytes) = taken else {
            return Err(Malformed::new(
                self.at,
                format!("a field of {n} bytes"),
                format!("{} bytes to the end of its message", self.bytes.len()),
            ));
        };
        let message = Message { bytes, at: self.at };
        self.advance(bytes.len());
        Ok(message)
    }

    /// The next field: its number and content. None at the end.
    pub(crate) fn field(&mut self) -> Result<Option<(u64, Value<'a>)>, Malformed> {
        if self.bytes.is_empty() {
            return Ok(None);
        }
        let at = self.at;
        let key = varint(self)?;
        let value = match key & 7 {
            0 => Value::Varint(varint(self)?),
            1 => self.take(8).map(|_| Value::Fixed)?,
            2 => {
                let length = varint(self)?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::Fixed)?,
            kind => {
                return Err(Malformed::new(
                    at,
                    "a field of wire type 0, 1, 2 or 5",
                    format!("wire type {kind}"),
                ));
            }
        };
        Ok(Some((key >> 3, value)))
    }
}

/// Appends a varint.
pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a field of type 2.
pub(crate) fn put_bytes(out: &mut Vec<u8>, number: u64, bytes: &[u8]) {
    put_varint(out, number << 3 | 2);
    put_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn varints_of_every_length() {
        for value in (0..64).flat_map(|bit| [1_u64 << bit, (1 << bit) - 1, !0 >> bit]) {
            let mut bytes = Vec::new();
            put_varint(&mut bytes, value);
            let all = bytes.len();
            bytes.push(0xff);
            let mut message = Message {
                bytes: &bytes,
                at: 5,
            };
            assert_eq!(varint(&mut message), Ok(value));
            assert_eq!((message.bytes.len(), message.at), (1, 5 + all as u64));
            let mut short = Message {
                bytes: &bytes[..all - 1],
                at: 0,
            };
            assert!(varint(&mut short).is_err());
        }
        let mut long = Message {
            bytes: &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2],
            at: 0,
        };
        assert!(varint(&mut long).is_err());
    }
}
