//! Tar archives, as far as files in them go: ustar, GNU's long names, pax headers.
//!
//! An archive is a sequence of members, each a header of 512 bytes and its content, padded to a multiple of 512:
//!
//! | bytes of the header | content |
//! |---|---|
//! | 0-99 | name |
//! | 124-135 | size: octal digits, or, with the top bit of the first byte set, a big-endian number |
//! | 148-155 | sum of the header's bytes, these eight taken as spaces, in octal |
//! | 156 | kind: `0` or 0 a file, `L` its content is the name of the next member, `x` pax records for the next member |
//! | 257-262 | `ustar` |
//! | 345-499 | what stands before the name, with a `/` between (ustar, not GNU) |
//!
//! A pax record is `length key=value\n`; `path` and `size` replace what the next header says. A block of zeros ends the
//! archive; after it there may be more zeros.

use crate::base::data_file::{DataFile, Window};
use crate::data::unused::{Reason, Unused};
use crate::{Error, Result};
use std::path::Path;

const BLOCK: u64 = 512;

/// The longest name that is believed.
const MAX_NAME: u64 = 1 << 16;

/// The most pax records that are read for one member, in bytes.
const MAX_PAX: u64 = 1 << 20;

/// A file in an archive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Member {
    pub(crate) name: String,
    /// Where its header begins.
    pub(crate) header: u64,
    /// Where its content begins.
    pub(crate) offset: u64,
    pub(crate) length: u64,
}

/// Whether `bytes` begin as an archive does.
pub(crate) fn is_tar(bytes: &[u8]) -> bool {
    bytes.get(257..262) == Some(b"ustar") && bytes.get(..BLOCK as usize).is_some_and(sum_fits)
}

/// The files of an archive, one after the other.
pub(crate) struct Members<'a> {
    window: Window<'a>,
    at: u64,
    /// Members that are neither file nor folder.
    pub(crate) unused: Unused,
}

impl<'a> Members<'a> {
    pub(crate) fn new(file: &'a DataFile) -> Self {
        Members {
            window: Window::walk(file),
            at: 0,
            unused: Unused::default(),
        }
    }

    pub(crate) fn path(&self) -> &'a Path {
        self.window.file().path()
    }

    /// How far the walk has come.
    pub(crate) fn position(&self) -> u64 {
        self.at
    }

    /// The content of a member.
    ///
    /// # Errors
    /// The file cannot be read.
    pub(crate) fn content(&mut self, member: &Member) -> Result<&[u8]> {
        self.window.get(member.offset, member.length as usize)
    }

    /// The next file, or none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Member>> {
        let (mut name, mut size) = (None, None);
        let begin = self.at;
        loop {
            let at = self.at;
            let header = self.header()?;
            if header.iter().all(|&b| b == 0) {
                return self.end().map(|()| None);
            }
            if !sum_fits(&header) {
                return Err(self.bad(
                    at,
                    "the header of an archive's member",
                    "bytes that do not have its sum",
                ));
            }
            let stored = match size.take() {
                Some(size) => size,
                None => number(&header[124..136]).ok_or_else(|| {
                    self.bad(at + 124, "a size in octal", &show(&header[124..136]))
                })?,
            };
            self.pass(at, stored)?;
            match header[156] {
                b'L' => name = Some(until_zero(self.short(at, stored, MAX_NAME, "a name")?)),
                b'x' => {
                    let content = self.short(at, stored, MAX_PAX, "pax records")?;
                    let (pax, found) = (pax(content), show(content));
                    let pax = pax.ok_or_else(|| {
                        self.bad(at + BLOCK, "pax records \"length key=value\"", &found)
                    })?;
                    name = pax.path.or(name);
                    size = pax.size;
                }
                b'0' | 0 | b'7' => {
                    return Ok(Some(Member {
                        name: name.unwrap_or_else(|| short_name(&header)),
                        header: begin,
                        offset: at + BLOCK,
                        length: stored,
                    }));
                }
                // Pax records for all members, which name none.
                b'g' => {}
                b'5' => name = None,
                _ => {
                    let name = name.take().unwrap_or_else(|| short_name(&header));
                    self.unused.add(Reason::NoFile, name);
                }
            }
        }
    }

    fn header(&mut self) -> Result<[u8; BLOCK as usize]> {
        let header = self.window.get(self.at, BLOCK as usize)?;
        let Some(&header) = header.first_chunk() else {
            let rest = header.len();
            return Err(self.bad(
                self.at,
                "a member's header, or the zeros that end an archive",
                &format!("{rest} bytes to the end of the file: it is truncated"),
            ));
        };
        self.at += BLOCK;
        Ok(header)
    }

    /// Passes over the content of the member whose header is at `header`.
    fn pass(&mut self, header: u64, size: u64) -> Result<()> {
        let end = self.window.file().len();
        let rest = end - self.at;
        if size > rest {
            return Err(self.bad(
                header,
                &format!("a member of {size} bytes"),
                &format!("{rest} bytes to the end of the file: it is truncated"),
            ));
        }
        self.at = (self.at + size.next_multiple_of(BLOCK)).min(end);
        Ok(())
    }

    /// The content of the member whose header is at `header`, which is of no use if it is long.
    fn short(&mut self, header: u64, size: u64, most: u64, what: &str) -> Result<&[u8]> {
        if size > most {
            return Err(self.bad(header, what, &format!("{size} bytes")));
        }
        self.window.get(header + BLOCK, size as usize)
    }

    /// After the block of zeros nothing may come that would be passed over.
    fn end(&mut self) -> Result<()> {
        let mut at = self.at;
        while at < self.window.file().len() {
            let bytes = self.window.get(at, 64 << 10)?;
            if let Some(more) = bytes.iter().position(|&b| b != 0) {
                return Err(self.bad(
                    at + more as u64,
                    "nothing but zeros after the end of the archive",
                    "more: several archives in one file are not read, make them several files",
                ));
            }
            at += bytes.len() as u64;
        }
        Ok(())
    }

    fn bad(&self, at: u64, expected: &str, found: &str) -> Error {
        Error::malformed(self.path(), at, expected, found)
    }
}

fn show(bytes: &[u8]) -> String {
    format!(
        "{:?}",
        String::from_utf8_lossy(&bytes[..bytes.len().min(40)])
    )
}

fn until_zero(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

fn short_name(header: &[u8]) -> String {
    let name = until_zero(&header[..100]);
    // GNU's magic is "ustar  ", and there the field is something else.
    let prefix = match &header[257..263] {
        b"ustar\0" => until_zero(&header[345..500]),
        _ => String::new(),
    };
    match &prefix[..] {
        "" => name,
        prefix => format!("{prefix}/{name}"),
    }
}

/// Octal digits with spaces or zero bytes around them, or a big-endian number behind a set top bit.
fn number(field: &[u8]) -> Option<u64> {
    if let [0x80, digits @ ..] = field {
        // Twelve bytes of the size; the sum's eight bytes hold no such number.
        let (high, low) = digits.split_at_checked(digits.len().checked_sub(8)?)?;
        let fits = high.iter().all(|&b| b == 0);
        return fits.then(|| low.iter().fold(0, |n, &b| n << 8 | u64::from(b)));
    }
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.trim_matches(['\0', ' ']);
    match digits {
        "" => Some(0),
        digits if digits.starts_with('+') => None,
        digits => u64::from_str_radix(digits, 8).ok(),
    }
}

fn sum_fits(header: &[u8]) -> bool {
    let Some(stored) = number(&header[148..156]) else {
        return false;
    };
    let sum = |add: fn(u8) -> i64| {
        let outside = header[..148].iter().chain(&header[156..]);
        outside.map(|&b| add(b)).sum::<i64>() + 8 * i64::from(b' ')
    };
    // Some old programs took bytes as signed.
    i64::try_from(stored)
        .is_ok_and(|stored| stored == sum(i64::from) || stored == sum(|b| i64::from(b as i8)))
}

#[derive(Default)]
struct Pax {
    path: Option<String>,
    size: Option<u64>,
}

fn pax(mut rest: &[u8]) -> Option<Pax> {
    let mut found = Pax::default();
    while !rest.is_empty() {
        let space = rest.iter().take(20).position(|&b| b == b' ')?;
        let length: usize = std::str::from_utf8(&rest[..space]).ok()?.parse().ok()?;
        let record = rest.get(space + 1..length)?;
        rest = &rest[length..];
        let record = record.strip_suffix(b"\n")?;
        let equals = record.iter().position(|&b| b == b'=')?;
        let value = &record[equals + 1..];
        match &record[..equals] {
            b"path" if value.len() as u64 <= MAX_NAME => {
                found.path = Some(String::from_utf8_lossy(value).into_owned());
            }
            b"path" => return None,
            b"size" => found.size = Some(std::str::from_utf8(value).ok()?.parse().ok()?),
            _ => {}
        }
    }
    Some(found)
}
