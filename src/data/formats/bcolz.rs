//! bcolz carrays: compressed arrays in a folder, the form in which evaluation sets are handed around.
//!
//! | file | content |
//! |---|---|
//! | `meta/sizes` | JSON: `shape` (rows first), `nbytes`, `cbytes` |
//! | `meta/storage` | JSON: `dtype`, `chunklen` (rows a chunk), `cparams`, ... |
//! | `data/__N.blp` | chunk N: `blpk`, version 1, 3 bytes, number of frames (8 bytes, 1), then one blosc frame |
//!
//! Every chunk but the last holds `chunklen` rows; the last may be shorter. All codecs of blosc 1 but snappy are read.

use crate::base::files::open_regular;
use crate::data::formats::blosc::{self, Refusal};
use crate::{Error, Result};
use serde::Deserialize;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Length of a chunk file's own header, before the blosc frame.
const CHUNK_HEADER: usize = 16;

/// The longest `meta` file that is believed.
const MAX_META: u64 = 1 << 20;

/// A chunk as [`CarrayWriter`] fills it: about this many bytes.
const CHUNK_BYTES: usize = 2 << 20;

/// The element types a [`Carray`] may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// float32
    F32,
    /// float64
    F64,
    /// uint8
    U8,
}

impl ElementType {
    fn bytes(self) -> usize {
        match self {
            ElementType::F32 => 4,
            ElementType::F64 => 8,
            ElementType::U8 => 1,
        }
    }
}

/// A carray on disk, read by rows; holds one decompressed chunk in memory.
#[derive(Debug)]
pub struct Carray {
    dir: PathBuf,
    shape: Vec<usize>,
    dtype: ElementType,
    rows_a_chunk: usize,
    row_elements: usize,
    /// Number of the chunk in `chunk`.
    cached: Option<usize>,
    chunk: Vec<u8>,
    file: Vec<u8>,
}

#[derive(Deserialize)]
struct Sizes {
    shape: Vec<usize>,
}

#[derive(Deserialize)]
struct Storage {
    dtype: String,
    chunklen: usize,
}

fn read_meta<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let mut text = Vec::new();
    open_regular(path)?
        .take(MAX_META)
        .read_to_end(&mut text)
        .map_err(Error::io("reading", path))?;
    serde_json::from_slice(&text)
        .map_err(|e| Error::data(path, format!("is not the JSON of a bcolz carray: {e}")))
}

impl Carray {
    /// Opens the carray in folder `dir`.
    ///
    /// # Errors
    /// The folder is no carray, or its element type is not float32, float64 or uint8.
    pub fn open(dir: &Path) -> Result<Self> {
        if !dir.join("meta").is_dir() {
            return Err(Error::data(
                dir,
                "is not a bcolz carray (there is no folder `meta` in it)",
            ));
        }
        let sizes_path = dir.join("meta").join("sizes");
        let storage_path = dir.join("meta").join("storage");
        let Sizes { shape } = read_meta(&sizes_path)?;
        let Storage { dtype, chunklen } = read_meta(&storage_path)?;
        let dtype = match dtype.as_str() {
            "float32" | "<f4" => ElementType::F32,
            "float64" | "<f8" => ElementType::F64,
            "uint8" | "|u1" => ElementType::U8,
            _ => {
                return Err(Error::Unsupported {
                    path: storage_path,
                    what: format!("the element type {dtype:?} of a carray"),
                });
            }
        };
        // A chunk is one blosc frame, whose size is a 31-bit number.
        let row_elements = match shape.split_first() {
            Some((_, row)) if row.len() <= 32 => row
                .iter()
                .try_fold(1_usize, |product, &n| product.checked_mul(n))
                .filter(|&n| n > 0 && n <= i32::MAX as usize / dtype.bytes()),
            _ => None,
        }
        .ok_or_else(|| {
            Error::data(
                &sizes_path,
                format!("the shape {shape:?} makes no sense for a carray"),
            )
        })?;
        if chunklen == 0 {
            return Err(Error::data(&storage_path, "names a chunk length of 0 rows"));
        }
        Ok(Carray {
            dir: dir.into(),
            shape,
            dtype,
            rows_a_chunk: chunklen,
            row_elements,
            cached: None,
            chunk: Vec::new(),
            file: Vec::new(),
        })
    }

    /// The array's shape, rows first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.shape[0]
    }

    /// Elements in a row: the product of the shape without its first number.
    pub fn row_elements(&self) -> usize {
        self.row_elements
    }

    /// The type of an element on disk.
    pub fn element_type(&self) -> ElementType {
        self.dtype
    }

    /// The folder this array was opened from.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Reads rows `start..start + count` into `rows` (replaced, its memory reused), row-major, converted to f32.
    ///
    /// # Errors
    /// A chunk file is missing or malformed, or the array has no such rows.
    pub fn read_rows(&mut self, start: usize, count: usize, rows: &mut Vec<f32>) -> Result<()> {
        rows.clear();
        let end = start.checked_add(count).filter(|&end| end <= self.rows());
        let Some(end) = end else {
            return Err(Error::data(
                &self.dir,
                format!(
                    "has {} rows, {count} from row {start} on were asked for",
                    self.rows()
                ),
            ));
        };
        let row_bytes = self.row_elements * self.dtype.bytes();
        let mut row = start;
        while row < end {
            let number = row / self.rows_a_chunk;
            self.load(number)?;
            let first = number * self.rows_a_chunk;
            let last = first.saturating_add(self.rows_a_chunk).min(end);
            let bytes = &self.chunk[(row - first) * row_bytes..(last - first) * row_bytes];
            match self.dtype {
                ElementType::U8 => rows.extend(bytes.iter().map(|&b| f32::from(b))),
                ElementType::F32 => {
                    rows.extend(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)));
                }
                ElementType::F64 => {
                    let values = bytes.as_chunks().0.iter();
                    rows.extend(values.map(|&b| f64::from_le_bytes(b) as f32));
                }
            }
            row = last;
        }
        Ok(())
    }

    /// Makes `self.chunk` the decompressed chunk `number`, all its rows.
    fn load(&mut self, number: usize) -> Result<()> {
        if self.cached == Some(number) {
            return Ok(());
        }
        self.cached = None;
        let path = self.dir.join("data").join(format!("__{number}.blp"));
        self.file.clear();
        open_regular(&path)?
            .read_to_end(&mut self.file)
            .map_err(Error::io("reading the chunk", &path))?;
        let bad = |at: u64, expected: &str, found: String| {
            Err(Error::malformed(&path, at, expected, found))
        };
        if self.file.len() < CHUNK_HEADER {
            return bad(
                0,
                "the 16 bytes that begin a chunk",
                format!("{} bytes", self.file.len()),
            );
        }
        let (header, frame) = self.file.split_at(CHUNK_HEADER);
        if header[..5] != *b"blpk\x01" {
            return bad(
                0,
                "blpk and version 1",
                format!("the bytes {:02x?}", &header[..5]),
            );
        }
        if header[8..] != 1_u64.to_le_bytes() {
            return bad(
                8,
                "one blosc frame",
                format!("the bytes {:02x?}", &header[8..]),
            );
        }
        let row_bytes = self.row_elements * self.dtype.bytes();
        let rows = self
            .rows_a_chunk
            .min(self.rows() - number * self.rows_a_chunk);
        // bcolz writes a last chunk of only the rows there are; a full one is accepted, too.
        let most = self.rows_a_chunk.saturating_mul(row_bytes);
        blosc::decompress(frame, self.dtype.bytes(), most, &mut self.chunk).map_err(|refusal| {
            match refusal {
                Refusal::Malformed(at, expected, found) => {
                    Error::malformed(&path, CHUNK_HEADER as u64 + at, expected, found)
                }
                Refusal::Codec(what) => Error::Unsupported {
                    path: path.clone(),
                    what: what.into(),
                },
            }
        })?;
        if self.chunk.len() < rows.saturating_mul(row_bytes) {
            return bad(
                CHUNK_HEADER as u64 + 4,
                &format!("{rows} rows of {row_bytes} bytes"),
                format!("{} bytes", self.chunk.len()),
            );
        }
        self.cached = Some(number);
        Ok(())
    }
}

/// Writes a float32 carray row by row (lz4, byte shuffle), as bcolz itself would.
///
/// The folder is a carray once [`finish`](Self::finish) has written its description.
#[derive(Debug)]
pub struct CarrayWriter {
    folder: PathBuf,
    row_shape: Vec<usize>,
    rows_a_chunk: usize,
    rows: usize,
    chunks: usize,
    compressed: usize,
    pending: Vec<u8>,
}

impl CarrayWriter {
    /// Begins an array of rows of shape `row_shape` in the new folder `dir`.
    ///
    /// # Errors
    /// The folder cannot be created, or is there already.
    ///
    /// # Panics
    /// If a row has no elements.
    pub fn create(dir: &Path, row_shape: &[usize]) -> Result<Self> {
        let elements: usize = row_shape.iter().product();
        assert!(elements > 0, "a row has elements");
        for folder in [dir.to_path_buf(), dir.join("data"), dir.join("meta")] {
            fs::create_dir(&folder).map_err(Error::io("creating the folder", &folder))?;
        }
        Ok(CarrayWriter {
            folder: dir.into(),
            row_shape: row_shape.into(),
            rows_a_chunk: (CHUNK_BYTES / (4 * elements)).max(1),
            rows: 0,
            chunks: 0,
            compressed: 0,
            pending: Vec::new(),
        })
    }

    /// Appends one row.
    ///
    /// # Errors
    /// A chunk cannot be written.
    ///
    /// # Panics
    /// If `row` has not the size of the row's shape.
    pub fn push(&mut self, row: &[f32]) -> Result<()> {
        let elements: usize = self.row_shape.iter().product();
        assert_eq!(row.len(), elements, "a row of shape {:?}", self.row_shape);
        self.pending
            .extend(row.iter().flat_map(|v| v.to_le_bytes()));
        self.rows += 1;
        if self.pending.len() == self.rows_a_chunk * elements * 4 {
            self.write_chunk()?;
        }
        Ok(())
    }

    fn write_chunk(&mut self) -> Result<()> {
        let frame = blosc::compress(&self.pending, 4);
        self.compressed += frame.len();
        let path = self.folder.join(format!("data/__{}.blp", self.chunks));
        let mut bytes = b"blpk\x01\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        bytes.extend(frame);
        fs::write(&path, bytes).map_err(Error::io("writing", &path))?;
        self.chunks += 1;
        self.pending.clear();
        Ok(())
    }

    /// Writes the last chunk and the description.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn finish(mut self) -> Result<()> {
        if !self.pending.is_empty() {
            self.write_chunk()?;
        }
        let elements: usize = self.row_shape.iter().product();
        let mut shape = vec![self.rows];
        shape.extend(&self.row_shape);
        let sizes = serde_json::json!({
            "shape": shape,
            "nbytes": self.rows * elements * 4,
            "cbytes": self.compressed,
        });
        let storage = serde_json::json!({
            "dtype": "float32",
            "cparams": {"clevel": 5, "shuffle": 1, "cname": "lz4", "quantize": 0},
            "chunklen": self.rows_a_chunk,
            "expectedlen": self.rows,
            "dflt": 0.0,
        });
        for (name, text) in [
            ("meta/sizes", sizes.to_string()),
            ("meta/storage", storage.to_string()),
            ("__attrs__", "{}".into()),
        ] {
            let path = self.folder.join(name);
            fs::write(&path, text + "\n").map_err(Error::io("writing", &path))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(row: usize, i: usize) -> f32 {
        ((row * 977 + i * i * 13) % 1009) as f32 / 7.0 - 50.0
    }

    /// 700,001 elements a row make a chunk of one row, 5 make one of 104,857.
    #[test]
    fn rows_come_back_from_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        for (elements, rows) in [(700_001, 3), (5, 11), (60_000, 20)] {
            let path = dir.path().join(elements.to_string());
            let mut writer = CarrayWriter::create(&path, &[elements, 1]).unwrap();
            for row in 0..rows {
                let row: Vec<f32> = (0..elements).map(|i| value(row, i)).collect();
                writer.push(&row).unwrap();
            }
            assert!(Carray::open(&path).is_err(), "not yet");
            writer.finish().unwrap();
            let mut array = Carray::open(&path).unwrap();
            assert_eq!(array.shape(), [rows, elements, 1]);
            let mut out = Vec::new();
            for (start, count) in [(0, rows), (1, 2), (rows - 1, 1), (rows, 0), (0, 1)] {
                array.read_rows(start, count, &mut out).unwrap();
                assert_eq!(out.len(), count * elements);
                for (k, v) in out.iter().enumerate() {
                    assert_eq!(*v, value(start + k / elements, k % elements));
                }
            }
            assert!(array.read_rows(1, rows, &mut out).is_err());
            assert!(array.read_rows(usize::MAX, 2, &mut out).is_err());
        }
    }

    #[test]
    fn a_folder_that_is_there_is_not_written_to() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("precious"), "x").unwrap();
        assert!(CarrayWriter::create(dir.path(), &[3]).is_err());
        assert!(Carray::open(dir.path()).is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
