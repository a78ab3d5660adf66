//! Packing to RecordIO, with the index, the identity headers and the `property` file of InsightFace.

use super::{Files, Groups, Sink};
use crate::data::Encoded;
use crate::data::formats::recordio::{MAGIC, MAX_PART};
use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// A `.rec` file that is being written.
pub(super) struct RecordIoSink {
    record: RecordWriter,
    idx: PathBuf,
    property: PathBuf,
    /// Where the image at each place of the grouped order lies in the file; none: it was left out.
    offsets: Vec<Option<u64>>,
}

impl RecordIoSink {
    /// Begins the file for `images` images of `identities` identities.
    pub(super) fn create(files: &Files, images: usize, identities: usize) -> Result<Self> {
        // Identity headers count in f32.
        if images + identities + 1 > 1 << 24 {
            return Err(Error::Invalid(format!(
                "{images} images of {identities} identities are more than InsightFace's headers can count (2^24)"
            )));
        }
        let mut record = RecordWriter::create(&files.path("train.rec"))?;
        // Record 0 is written again at the end, when the number of images is known; its length stays.
        record.write(0, 0.0, &[0.0, 0.0], &[])?;
        Ok(RecordIoSink {
            record,
            idx: files.path("train.idx"),
            property: files.path("property"),
            offsets: vec![None; images],
        })
    }
}

impl Sink for RecordIoSink {
    fn push(&mut self, place: usize, label: u32, _number: usize, image: &Encoded) -> Result<()> {
        // The id is the key unless an image was left out; no reader looks at it.
        let id = place as u64 + 1;
        let offset = self.record.write(id, label as f32, &[], &image.bytes)?;
        self.offsets[place] = Some(offset);
        Ok(())
    }

    /// Gives every stored image its key, writes the identity headers, record 0 and the index.
    fn finish(mut self: Box<Self>, groups: &Groups, kept: usize) -> Result<()> {
        let mut index = vec![0];
        let mut ranges = Vec::with_capacity(kept);
        for label in 0..kept {
            let start = index.len();
            index.extend(
                self.offsets[groups.starts[label]..groups.starts[label + 1]]
                    .iter()
                    .flatten(),
            );
            ranges.push([start as f32, index.len() as f32]);
        }
        let first = index.len();
        for range in ranges {
            let key = index.len() as u64;
            index.push(self.record.write(key, 0.0, &range, &[])?);
        }
        self.record.finish([first as f32, index.len() as f32])?;
        let write = || -> io::Result<()> {
            let mut out = BufWriter::new(File::create(&self.idx)?);
            for (key, offset) in index.iter().enumerate() {
                writeln!(out, "{key}\t{offset}")?;
            }
            out.flush()
        };
        write().map_err(Error::io("writing", &self.idx))?;
        fs::write(&self.property, format!("{kept},112,112"))
            .map_err(Error::io("writing", &self.property))
    }
}

/// Appends records to a `.rec` file.
struct RecordWriter {
    path: PathBuf,
    file: BufWriter<File>,
    offset: u64,
}

impl RecordWriter {
    fn create(path: &Path) -> Result<Self> {
        let file = File::create(path).map_err(Error::io("creating", path))?;
        Ok(RecordWriter {
            path: path.into(),
            file: BufWriter::with_capacity(1 << 20, file),
            offset: 0,
        })
    }

    /// Appends an image record, the flag being the number of `labels`; returns where it begins.
    fn write(&mut self, id: u64, label: f32, labels: &[f32], body: &[u8]) -> Result<u64> {
        let start = self.offset;
        let bytes = record_bytes(&image_payload(id, label, labels, body))?;
        self.file
            .write_all(&bytes)
            .map_err(Error::io("writing", &self.path))?;
        self.offset += bytes.len() as u64;
        Ok(start)
    }

    /// Writes record 0 with its final labels.
    fn finish(mut self, labels: [f32; 2]) -> Result<()> {
        let bytes = record_bytes(&image_payload(0, 0.0, &labels, &[]))?;
        let mut finish = || {
            io::Seek::rewind(&mut self.file)?;
            self.file.write_all(&bytes)?;
            self.file.flush()
        };
        finish().map_err(Error::io("writing", &self.path))
    }
}

fn image_payload(id: u64, label: f32, labels: &[f32], body: &[u8]) -> Vec<u8> {
    let mut payload = Vec::with_capacity(24 + 4 * labels.len() + body.len());
    payload.extend((labels.len() as u32).to_le_bytes());
    payload.extend(label.to_le_bytes());
    payload.extend(id.to_le_bytes());
    payload.extend(0_u64.to_le_bytes());
    payload.extend(labels.iter().flat_map(|l| l.to_le_bytes()));
    payload.extend(body);
    payload
}

/// A record with its padding, cut where the payload contains the magic at a multiple of 4.
fn record_bytes(payload: &[u8]) -> Result<Vec<u8>> {
    if payload.len() > MAX_PART {
        return Err(Error::Invalid(format!(
            "an image of {} bytes does not fit a record, which holds at most {MAX_PART}",
            payload.len()
        )));
    }
    let mut bytes = Vec::with_capacity(payload.len() + 12);
    let mut part = |kind: u32, payload: &[u8]| {
        bytes.extend(MAGIC.to_le_bytes());
        bytes.extend((kind << 29 | payload.len() as u32).to_le_bytes());
        bytes.extend(payload);
    };
    let mut start = 0;
    for (i, word) in payload.as_chunks().0.iter().enumerate() {
        if u32::from_le_bytes(*word) == MAGIC {
            part(if start == 0 { 1 } else { 2 }, &payload[start..4 * i]);
            start = 4 * i + 4;
        }
    }
    part(if start == 0 { 0 } else { 3 }, &payload[start..]);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    Ok(bytes)
}
