//! The members of a ZIP archive, as far as PyTorch uses the format: stored, in one file.
//!
//! Integers are little-endian. From the end backwards:
//!
//! | part | layout |
//! |---|---|
//! | end record, before a remark of up to 65,535 bytes | `PK\5\6`, u16 disk, u16 disk, u16 entries, u16 entries, u32 directory's size, u32 its offset, u16 length of the remark |
//! | locator before it, in large archives | `PK\6\7`, u32 disk, u64 offset of the large end record, u32 disks |
//! | large end record | `PK\6\6`, u64 size, u16 version, u16 version, u32 disk, u32 disk, u64 entries, u64 entries, u64 directory's size, u64 its offset |
//! | directory, an entry | `PK\1\2`, u16 version, u16 version, u16 flags, u16 method, u32 time, u32 crc, u32 packed size, u32 size, u16 lengths of name, extra, remark, u16 disk, u16 attributes, u32 attributes, u32 offset; name, extra, remark |
//! | extra field 1, for what is `ff ff ff ff` above | u16 1, u16 length, u64 size, u64 packed size, u64 offset, each if needed |
//! | member, at its offset | `PK\3\4`, 22 bytes, u16 lengths of name and extra; name, extra, the bytes |

use crate::encoding::pickle::Refusal;
use std::ops::Range;

const END: &[u8] = b"PK\x05\x06";
const LOCATOR: &[u8] = b"PK\x06\x07";
const LARGE_END: &[u8] = b"PK\x06\x06";
const ENTRY: &[u8] = b"PK\x01\x02";
const MEMBER: &[u8] = b"PK\x03\x04";

/// Whether a file that begins with `start` may be such an archive.
pub(crate) fn is_zip(start: &[u8]) -> bool {
    start.starts_with(MEMBER)
}

/// Names of the members, and where their bytes are, in the directory's order.
pub(crate) fn members(bytes: &[u8]) -> Result<Vec<(String, Range<usize>)>, Refusal> {
    if !is_zip(bytes) {
        let found = format!("the bytes {:02x?}", &bytes[..bytes.len().min(4)]);
        return Err(Refusal::Malformed(0, "a file of torch.save", found));
    }
    let (entries, mut at) = directory(bytes)?;
    let mut members = Vec::new();
    for _ in 0..entries {
        let entry = Fields::new(bytes, at, ENTRY, 46, "an entry of the archive's directory")?;
        let [name, extra, remark] = [28, 30, 32].map(|field| entry.number(field, 2) as usize);
        let rest = part(bytes, at + 46, name + extra + remark, "the entry's name")?;
        let name = String::from_utf8_lossy(&rest[..name]).into_owned();
        let extra = &rest[entry.number(28, 2) as usize..][..extra];
        let method = entry.number(10, 2);
        if method != 0 {
            return Err(Refusal::Unsupported(format!(
                "the archive's member {name}, which is compressed (method {method}); torch.save stores: unpack the \
                 archive and pack it with `zip -0`"
            )));
        }
        if entry.number(8, 2) & 1 != 0 {
            return Err(Refusal::Unsupported(format!("the encrypted member {name}")));
        }
        // What does not fit stands in the extra field, in this order.
        let mut large = large(extra);
        let [size, packed, offset] = [24, 20, 42].map(|field| match entry.number(field, 4) {
            0xffff_ffff => large.next().unwrap_or(u64::MAX),
            number => number,
        });
        if size != packed {
            let found = format!("{name} with {packed} and {size} bytes");
            return Err(Refusal::Malformed(at, "one size of a stored member", found));
        }
        members.push((name, member(bytes, offset, size)?));
        at += 46 + rest.len();
    }
    Ok(members)
}

/// The names of all members, compressed or not; none if the directory is damaged.
pub(crate) fn names(bytes: &[u8]) -> Option<Vec<String>> {
    let (entries, mut at) = directory(bytes).ok()?;
    let mut names = Vec::new();
    for _ in 0..entries {
        let entry =
            Fields::new(bytes, at, ENTRY, 46, "an entry of the archive's directory").ok()?;
        let [name, extra, remark] = [28, 30, 32].map(|field| entry.number(field, 2) as usize);
        let rest = part(bytes, at + 46, name + extra + remark, "the entry's name").ok()?;
        names.push(String::from_utf8_lossy(&rest[..name]).into_owned());
        at += 46 + rest.len();
    }
    Some(names)
}

/// Number of entries, and where they begin.
fn directory(bytes: &[u8]) -> Result<(u64, usize), Refusal> {
    // The end record, 22 bytes, is at the end; only a remark may follow.
    let first = bytes.len().saturating_sub(22 + 65_535);
    let end = bytes[first..].windows(4).rposition(|four| four == END);
    let Some(end) = end.map(|end| first + end) else {
        return Err(Refusal::Malformed(
            bytes.len(),
            "the end record of a ZIP archive",
            "none: the file is truncated or damaged".into(),
        ));
    };
    let record = Fields::new(bytes, end, END, 22, "the archive's end record")?;
    let mut entries = record.number(10, 2);
    let mut offset = record.number(16, 4);
    if entries == 0xffff || offset == 0xffff_ffff {
        let locator = end.checked_sub(20).unwrap_or(end);
        let what = "the locator of a large archive's end record";
        let at = Fields::new(bytes, locator, LOCATOR, 20, what)?.number(8, 8);
        let what = "a large archive's end record";
        let record = Fields::new(bytes, place(at), LARGE_END, 56, what)?;
        entries = record.number(32, 8);
        offset = record.number(48, 8);
    }
    Ok((entries, place(offset)))
}

/// The numbers in extra field 1.
fn large(mut extra: &[u8]) -> impl Iterator<Item = u64> + use<'_> {
    let mut numbers: &[u8] = &[];
    while let Some((head, rest)) = extra.split_at_checked(4) {
        let length = little(&head[2..]) as usize;
        let Some((field, rest)) = rest.split_at_checked(length) else {
            break;
        };
        if little(&head[..2]) == 1 {
            numbers = field;
        }
        extra = rest;
    }
    numbers.chunks_exact(8).map(little)
}

fn member(bytes: &[u8], offset: u64, size: u64) -> Result<Range<usize>, Refusal> {
    let at = place(offset);
    let head = Fields::new(bytes, at, MEMBER, 30, "a member of the archive")?;
    let start = at + 30 + head.number(26, 2) as usize + head.number(28, 2) as usize;
    part(bytes, start, place(size), "a member's bytes")?;
    Ok(start..start + place(size))
}

/// An offset or a size; what memory could not hold is beyond every file.
fn place(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

fn part<'a>(
    bytes: &'a [u8],
    at: usize,
    len: usize,
    what: &'static str,
) -> Result<&'a [u8], Refusal> {
    let rest = bytes.get(at..);
    rest.and_then(|rest| rest.get(..len)).ok_or_else(|| {
        let rest = bytes.len().saturating_sub(at);
        let found = format!("{rest} bytes to the end of the file, where {len} belong");
        Refusal::Malformed(at, what, found)
    })
}

fn little(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .rev()
        .fold(0, |n, &byte| n << 8 | u64::from(byte))
}

/// A record of fixed length.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn new(
        bytes: &'a [u8],
        at: usize,
        signature: &[u8],
        len: usize,
        what: &'static str,
    ) -> Result<Self, Refusal> {
        let record = part(bytes, at, len, what)?;
        if !record.starts_with(signature) {
            let found = format!("the bytes {:02x?}", &record[..4]);
            return Err(Refusal::Malformed(at, what, found));
        }
        Ok(Fields(record))
    }

    fn number(&self, at: usize, width: usize) -> u64 {
        little(&self.0[at..][..width])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An archive of one member as large archives are written: every number in its large place.
    fn large_archive(data: &[u8]) -> Vec<u8> {
        let mut bytes = [MEMBER, &[0; 22], &[1, 0, 4, 0], b"a", &[7, 7, 0, 0], data].concat();
        let directory = bytes.len() as u64;
        let size = (data.len() as u64).to_le_bytes();
        bytes.extend(
            [
                ENTRY,
                &[0; 16],
                &[0xff; 8],
                &[1, 0, 32, 0, 0, 0],
                &[0; 8],
                &[0xff; 4],
                b"a",
            ]
            .concat(),
        );
        bytes.extend([&[9, 9, 0, 0], &[1, 0, 24, 0][..], &size, &size, &[0; 8]].concat());
        let end = bytes.len() as u64;
        bytes.extend(
            [
                LARGE_END,
                &[0; 28],
                &1_u64.to_le_bytes(),
                &[0; 8],
                &directory.to_le_bytes(),
            ]
            .concat(),
        );
        bytes.extend([LOCATOR, &[0; 4], &end.to_le_bytes(), &[0; 4]].concat());
        bytes.extend([END, &[0; 4], &[0xff; 12], &[0; 2]].concat());
        bytes
    }

    #[test]
    fn large_archives() {
        let bytes = large_archive(b"hello");
        let found = members(&bytes).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].0, "a");
        assert_eq!(&bytes[found[0].1.clone()], b"hello");
        for length in 0..bytes.len() {
            assert!(members(&bytes[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn what_is_not_stored_is_refused() {
        let says = |at: usize, value: u8, words: &str| {
            let mut bytes = large_archive(b"hello");
            bytes[40 + at] = value;
            let error = format!("{:?}", members(&bytes).unwrap_err());
            assert!(error.contains(words), "{words:?} is not in {error:?}");
        };
        says(10, 8, "compressed (method 8)");
        says(8, 1, "encrypted");
        says(0, 0, "an entry of the archive's directory");
        // A size of its own, and both beyond the end.
        says(46 + 1 + 8, 6, "one size of a stored member");
        let mut bytes = large_archive(b"hello");
        for at in [40 + 46 + 9, 40 + 46 + 17] {
            bytes[at..][..8].fill(0xff);
        }
        assert!(matches!(members(&bytes), Err(Refusal::Malformed(..))));
    }
}
