//! The records of a RecordIO file: their parts, their heads, and the index that names them (layout: the module's text).

use crate::base::data_file::{DataFile, Window};
use crate::base::files::read_whole;
use crate::base::text::shown;
use crate::data::formats::text::without_mark;
use crate::data::unused::{Reason, Unused};
use crate::{Error, Result};
use std::path::Path;

/// What every record begins with.
pub(crate) const MAGIC: u32 = 0xced7_230a;

/// Bytes of a part before its payload.
pub(crate) const PART_HEADER: usize = 8;

/// Bytes of an image record's payload before its labels.
pub(crate) const IMAGE_HEADER: usize = 24;

/// The longest part (29 bits).
pub(crate) const MAX_PART: usize = (1 << 29) - 1;

/// A record's position: its key in the index (or its number in the file), and its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: u32,
    pub(super) offset: u64,
}

/// The start of an image record's payload.
#[derive(Debug)]
pub(super) struct Header<'a> {
    flag: u32,
    label: f32,
    /// Labels in the array, `4 * flag` bytes.
    labels: &'a [u8],
    /// The image file, or its first bytes.
    pub(super) body: &'a [u8],
}

impl Header<'_> {
    fn array(&self, i: usize) -> Option<f32> {
        self.labels
            .as_chunks()
            .0
            .get(i)
            .map(|&b| f32::from_le_bytes(b))
    }

    /// Whether the labels are one-hot: all 0, except a single 1 that is not the first. Two labels are InsightFace's pair of
    /// numbers.
    fn is_one_hot(&self) -> bool {
        let values = || (0..self.labels.len() / 4).filter_map(|i| self.array(i));
        let ones = values().filter(|&value| value == 1.0).count();
        let zeros = values().filter(|&value| value == 0.0).count();
        zeros >= 2 && ones == 1 && zeros + 1 == values().count() && self.array(0) == Some(0.0)
    }

    /// The class label, as the file has it.
    fn class(&self) -> f32 {
        self.array(0).unwrap_or(self.label)
    }
}

/// The entries of a `.idx` file, sorted by key.
pub(super) fn read_index(path: &Path, file: &DataFile) -> Result<Vec<Entry>> {
    let bytes = read_whole(path)?;
    let text = without_mark(&bytes);
    let mut entries = Vec::with_capacity(text.len() / 12);
    let mut at = (bytes.len() - text.len()) as u64;
    for line in text.split(|&b| b == b'\n') {
        let bad = |expected: String| {
            let found = String::from_utf8_lossy(&line[..line.len().min(60)]).into_owned();
            Error::malformed(path, at, expected, format!("{found:?}"))
        };
        let trimmed = line.trim_ascii();
        if !trimmed.is_empty() {
            let entry = std::str::from_utf8(trimmed)
                .ok()
                .and_then(|line| line.split_once('\t'))
                .and_then(|(key, offset)| {
                    Some(Entry {
                        key: key.trim().parse().ok()?,
                        offset: offset.trim().parse().ok()?,
                    })
                })
                .ok_or_else(|| bad("a line \"key<tab>offset\"".into()))?;
            let bytes = file.len();
            let last = bytes.saturating_sub((PART_HEADER + IMAGE_HEADER) as u64);
            if entry.offset > last || entry.offset % 4 != 0 {
                return Err(bad(format!(
                    "the offset of a record in {} ({bytes} bytes), a multiple of 4 up to {last}",
                    shown(file.path())
                )));
            }
            entries.push(entry);
        }
        at += line.len() as u64 + 1;
    }
    if entries.is_empty() {
        return Err(Error::data(path, "is empty: it names no record"));
    }
    entries.sort_unstable_by_key(|e| e.key);
    if let Some(pair) = entries.windows(2).find(|w| w[0].key == w[1].key) {
        return Err(Error::data(
            path,
            format!("names two records by the key {}", pair[0].key),
        ));
    }
    Ok(entries)
}

/// A stretch of a file: its first byte, and the byte after its last.
pub(super) type Stretch = (u64, u64);

/// Image records, and the label of each.
pub(super) type Images = (Vec<Entry>, Vec<u32>);

/// The payload of a record, its parts put together, or the start of it.
pub(super) struct Payload {
    pub(super) bytes: Vec<u8>,
    /// The length of the whole.
    pub(super) length: usize,
    /// Where the next record begins.
    next: u64,
}

/// A part of a record: its kind, where its payload lies, and where the next part begins.
struct Part {
    kind: u32,
    start: u64,
    length: usize,
    next: u64,
}

/// A file that is being looked at.
pub(super) struct RecFile<'a> {
    window: Window<'a>,
}

impl<'a> RecFile<'a> {
    /// For opening a file.
    pub(super) fn walk(file: &'a DataFile) -> Self {
        RecFile {
            window: Window::walk(file),
        }
    }

    /// For reading one record.
    pub(super) fn look(file: &'a DataFile) -> Self {
        RecFile {
            window: Window::look(file),
        }
    }

    fn path(&self) -> &'a Path {
        self.window.file().path()
    }

    fn end(&self) -> u64 {
        self.window.file().len()
    }

    fn part(&mut self, offset: u64) -> Result<Part> {
        let (path, end) = (self.path(), self.end());
        let bad = |at: u64, expected: &str, found: String| {
            Err(Error::malformed(path, at, expected, found))
        };
        let header = self.window.get(offset, PART_HEADER)?;
        let &[m0, m1, m2, m3, l0, l1, l2, l3] = header else {
            let found = format!("{} bytes: the file is truncated", header.len());
            return bad(offset, "the 8 bytes that begin a record", found);
        };
        let magic = u32::from_le_bytes([m0, m1, m2, m3]);
        let word = u32::from_le_bytes([l0, l1, l2, l3]);
        if magic != MAGIC {
            return bad(
                offset,
                "the beginning of a record (0xced7230a)",
                format!("{magic:#010x}: the index does not fit this file, or the file is damaged"),
            );
        }
        let (start, length) = (offset + PART_HEADER as u64, word & MAX_PART as u32);
        if u64::from(length) > end - start {
            return bad(
                offset + 4,
                &format!("a record of {length} bytes"),
                format!(
                    "{} bytes to the end of the file: it is truncated or damaged",
                    end - start
                ),
            );
        }
        // The last record's padding may be missing.
        let next = (start + u64::from(length.next_multiple_of(4))).min(end);
        Ok(Part {
            kind: word >> 29,
            start,
            length: length as usize,
            next,
        })
    }

    /// The first `most` bytes of the payload of the record at `offset`.
    pub(super) fn payload(&mut self, offset: u64, most: usize) -> Result<Payload> {
        let first = self.part(offset)?;
        if first.kind > 1 {
            return Err(Error::malformed(
                self.path(),
                offset + 4,
                "the first part of a record (kind 0 or 1)",
                format!("kind {}", first.kind),
            ));
        }
        let mut payload = Payload {
            bytes: (self.window).copy(first.start, first.length.min(most))?,
            length: first.length,
            next: first.next,
        };
        let mut ended = first.kind == 0;
        while !ended {
            let at = payload.next;
            let part = self.part(at)?;
            if part.kind != 2 && part.kind != 3 {
                return Err(Error::malformed(
                    self.path(),
                    at + 4,
                    format!("a further part (kind 2 or 3) of the record at byte {offset}"),
                    format!("kind {}", part.kind),
                ));
            }
            if payload.bytes.len() < most {
                let left = most - payload.bytes.len();
                payload.bytes.extend(MAGIC.to_le_bytes());
                let bytes = self.window.get(part.start, part.length.min(left))?;
                payload.bytes.extend(bytes);
            }
            payload.length += MAGIC.to_le_bytes().len() + part.length;
            payload.next = part.next;
            ended = part.kind == 3;
        }
        payload.bytes.truncate(most);
        Ok(payload)
    }

    /// The start of an image record's payload, with all its labels and the first bytes of its image.
    fn head(&mut self, offset: u64) -> Result<Payload> {
        let payload = self.payload(offset, IMAGE_HEADER + 16)?;
        let Some((flag, _)) = payload.bytes.split_first_chunk() else {
            return Ok(payload);
        };
        let labels = (u32::from_le_bytes(*flag) as usize).saturating_mul(4);
        let needed = labels.saturating_add(IMAGE_HEADER + 2).min(payload.length);
        match needed <= payload.bytes.len() {
            true => Ok(payload),
            false => self.payload(offset, needed),
        }
    }

    /// All records, numbered from 0 in the order of the file.
    pub(super) fn scan(&mut self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let (mut offset, end) = (0, self.end());
        while offset < end {
            let Ok(key) = u32::try_from(entries.len()) else {
                return Err(Error::data(self.path(), "holds more than 2^32 records"));
            };
            entries.push(Entry { key, offset });
            offset = self.behind(offset)?;
        }
        Ok(entries)
    }

    /// Where the record behind that at `offset` begins.
    fn behind(&mut self, offset: u64) -> Result<u64> {
        self.payload(offset, 0).map(|payload| payload.next)
    }

    /// From the first of the records in `all` to the end of the last, without a look at those between.
    pub(super) fn extent(&mut self, all: &[Entry]) -> Stretch {
        let offsets = || all.iter().map(|entry| entry.offset);
        let (first, last) = (offsets().min(), offsets().max());
        let end = self.end();
        // A record that is malformed is reported where it is read.
        let end = last.map_or(end, |last| self.behind(last).unwrap_or(end));
        (first.unwrap_or(end), end)
    }

    /// Counts the records that lie outside `named`.
    pub(super) fn unnamed(&mut self, mut named: Vec<Stretch>, unused: &mut Unused) {
        named.sort_unstable();
        let end = self.end();
        let mut at = 0;
        for (first, last) in named.into_iter().chain([(end, end)]) {
            while at < first {
                let Ok(next) = self.behind(at) else {
                    unused.add(Reason::NoRecord, format!("byte {at}"));
                    break;
                };
                unused.add(Reason::UnnamedRecord, format!("byte {at}"));
                at = next;
            }
            at = last;
        }
    }

    /// Counts the records that lie between those in `all`.
    pub(super) fn unnamed_between(&mut self, all: &[Entry], unused: &mut Unused) {
        let (first, end) = self.extent(all);
        let mut offsets: Vec<u64> = all.iter().map(|entry| entry.offset).collect();
        offsets.sort_unstable();
        let next = offsets.iter().skip(1).chain([&end]);
        let mut named: Vec<Stretch> = (offsets.iter().zip(next))
            // A record that is malformed is reported where it is read.
            .map(|(&offset, &next)| (offset, self.behind(offset).unwrap_or(next)))
            .collect();
        named.extend([(0, first), (end, self.end())]);
        self.unnamed(named, unused);
    }

    pub(super) fn image_header<'p>(
        &self,
        payload: &'p Payload,
        entry: Entry,
    ) -> Result<Header<'p>> {
        let bad = |expected: String| {
            Error::malformed(
                self.path(),
                entry.offset + PART_HEADER as u64,
                expected,
                format!("{} bytes in record {}", payload.length, entry.key),
            )
        };
        let (header, rest) = (payload.bytes)
            .split_at_checked(IMAGE_HEADER)
            .ok_or_else(|| bad(format!("an image record's header of {IMAGE_HEADER} bytes")))?;
        let flag = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        let label = f32::from_le_bytes([header[4], header[5], header[6], header[7]]);
        let (labels, body) = usize::try_from(flag)
            .ok()
            .and_then(|n| n.checked_mul(4))
            .and_then(|n| rest.split_at_checked(n))
            .ok_or_else(|| bad(format!("{flag} labels of 4 bytes")))?;
        Ok(Header {
            flag,
            label,
            labels,
            body,
        })
    }

    pub(super) fn class_label(&self, header: &Header<'_>, entry: Entry) -> Result<u32> {
        if header.is_one_hot() {
            return Err(Error::malformed(
                self.path(),
                entry.offset + (PART_HEADER + IMAGE_HEADER) as u64,
                "the class as one number, the first of the labels",
                format!(
                    "{} labels in record {}, all 0 but a single 1: a one-hot label",
                    header.flag, entry.key
                ),
            ));
        }
        // f32 counts exactly up to 2^24.
        whole(header.class(), 1 << 24).ok_or_else(|| {
            Error::malformed(
                self.path(),
                entry.offset + PART_HEADER as u64 + 4,
                "a label that is a whole number from 0 to 2^24",
                format!("{} in record {}", header.class(), entry.key),
            )
        })
    }

    /// The keys [first identity header, end) of record 0, if it is one of InsightFace's.
    pub(super) fn insightface_header(&mut self, all: &[Entry]) -> Result<Option<(u32, u32)>> {
        let entry = all[0];
        if entry.key != 0 {
            return Ok(None);
        }
        let payload = self.head(entry.offset)?;
        let header = self.image_header(&payload, entry)?;
        // A data set without headers may have two labels a record, too, but then an image follows.
        if header.flag != 2 || matches!(header.body, [0xff, 0xd8, ..] | [0x89, b'P', ..]) {
            return Ok(None);
        }
        self.range(&header, entry, "the keys of the identity headers")
            .map(Some)
    }

    /// The two labels of a header, as a range of keys.
    fn range(&self, header: &Header<'_>, entry: Entry, what: &str) -> Result<(u32, u32)> {
        let limit = u32::MAX;
        match (header.array(0), header.array(1)) {
            (Some(a), Some(b)) if a <= b => whole(a, limit).zip(whole(b, limit)),
            _ => None,
        }
        .ok_or_else(|| {
            Error::malformed(
                self.path(),
                entry.offset + (PART_HEADER + IMAGE_HEADER) as u64,
                format!("{what}, first and end"),
                format!(
                    "{:?} and {:?} in record {}",
                    header.array(0),
                    header.array(1),
                    entry.key
                ),
            )
        })
    }

    /// Image records and labels as the identity headers with the keys `first..end` name them.
    pub(super) fn by_identity(
        &mut self,
        all: &[Entry],
        first: u32,
        end: u32,
        unused: &mut Unused,
    ) -> Result<Images> {
        let find = |key: u32| all.binary_search_by_key(&key, |e| e.key).ok();
        let path = self.path();
        let missing = |key: u32, what: &str| {
            Error::data(
                path,
                format!(
                    "has no record with the key {key}, {what} (records have the keys 0 to {})",
                    all[all.len() - 1].key
                ),
            )
        };
        let (mut entries, mut labels) = (Vec::new(), Vec::new());
        let mut previous_end = 1;
        for key in first..end {
            let at =
                find(key).ok_or_else(|| missing(key, "an identity header that record 0 names"))?;
            let payload = self.head(all[at].offset)?;
            let header = self.image_header(&payload, all[at])?;
            let (start, stop) =
                self.range(&header, all[at], "the keys of one identity's images")?;
            if start < previous_end || stop > first {
                return Err(Error::malformed(
                    self.path(),
                    all[at].offset + (PART_HEADER + IMAGE_HEADER) as u64,
                    format!(
                        "keys from {previous_end} to {first}, after those of the identity before"
                    ),
                    format!("the keys {start} to {stop} in identity header {key}"),
                ));
            }
            previous_end = stop;
            if start == stop {
                continue;
            }
            let from =
                find(start).ok_or_else(|| missing(start, "the first image of an identity"))?;
            let images = all
                .get(from..from + (stop - start) as usize)
                .filter(|images| images[images.len() - 1].key == stop - 1)
                .ok_or_else(|| {
                    missing(
                        stop - 1,
                        "or one of the keys before it, images of an identity",
                    )
                })?;
            let payload = self.head(images[0].offset)?;
            let label = self.class_label(&self.image_header(&payload, images[0])?, images[0])?;
            entries.extend_from_slice(images);
            labels.resize(entries.len(), label);
        }
        let mut of_identities = entries.iter().peekable();
        for entry in &all[1..] {
            if of_identities.peek() == Some(&entry) {
                of_identities.next();
            } else if !(first..end).contains(&entry.key) {
                unused.add(Reason::RecordOfNoIdentity, format!("record {}", entry.key));
            }
        }
        Ok((entries, labels))
    }

    /// The records that hold an image, each with the label that it names itself; and the stretch of the file that each of
    /// `all` takes.
    pub(super) fn by_record(&mut self, all: &[Entry]) -> Result<(Images, Vec<Stretch>)> {
        let (mut entries, mut labels) =
            (Vec::with_capacity(all.len()), Vec::with_capacity(all.len()));
        let mut stretches = Vec::with_capacity(all.len());
        for &entry in all {
            let payload = self.head(entry.offset)?;
            stretches.push((entry.offset, payload.next));
            let header = self.image_header(&payload, entry)?;
            if header.flag == 2 && header.body.is_empty() {
                // One of InsightFace's headers.
                continue;
            }
            labels.push(self.class_label(&header, entry)?);
            entries.push(entry);
        }
        Ok(((entries, labels), stretches))
    }
}

/// `value` as a whole number of at most `limit`.
fn whole(value: f32, limit: u32) -> Option<u32> {
    // NaN is in no range; 2^32 as f32 is the first that does not fit.
    ((0.0..4_294_967_296.0).contains(&value) && value.fract() == 0.0 && value as u32 <= limit)
        .then_some(value as u32)
}
