//! Data files of any size, read at any offset. A file that another program makes shorter meanwhile is an error, which it
//! would not be for a file mapped into memory: there, the operating system ends the process.

use super::files::open_regular;
use crate::{Error, Result};
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

/// An open file, and its length when it was opened.
#[derive(Debug)]
pub(crate) struct DataFile {
    path: PathBuf,
    file: File,
    length: u64,
}

impl DataFile {
    /// Opens a regular file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        let length = file.metadata().map_err(Error::io("reading", path))?.len();
        Ok(DataFile {
            path: path.into(),
            file,
            length,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn len(&self) -> u64 {
        self.length
    }

    /// The `length` bytes at `offset`, fewer only where the file ended when it was opened.
    ///
    /// # Errors
    /// The file cannot be read, or has become shorter.
    pub(crate) fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.fill(offset, &mut bytes, length)?;
        Ok(bytes)
    }

    fn fill(&self, mut offset: u64, out: &mut Vec<u8>, length: usize) -> Result<()> {
        let left = self.length.saturating_sub(offset);
        let length = usize::try_from(left).map_or(length, |left| length.min(left));
        // Only what was longer before is set to zero.
        out.truncate(length);
        out.resize(length, 0);
        let mut done = 0;
        while done < length {
            match read_at(&self.file, &mut out[done..], offset) {
                Ok(0) => {
                    return Err(Error::data(
                        &self.path,
                        format!(
                            "was {} bytes long when it was opened, and now ends at byte {offset}: it was made shorter while \
                             it was being read",
                            self.length
                        ),
                    ));
                }
                Ok(read) => {
                    done += read;
                    offset += read as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("reading", &self.path)(error)),
            }
        }
        Ok(())
    }
}

#[cfg(unix)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::unix::fs::FileExt::read_at(file, out, offset)
}

#[cfg(windows)]
fn read_at(file: &File, out: &mut [u8], offset: u64) -> io::Result<usize> {
    std::os::windows::fs::FileExt::seek_read(file, out, offset)
}

/// A stretch of a file in memory, which moves to where it is looked at.
#[derive(Debug)]
pub(crate) struct Window<'a> {
    file: &'a DataFile,
    /// Bytes that are read at once by a walk.
    ahead: usize,
    start: u64,
    bytes: Vec<u8>,
}

/// Bytes that are read at once elsewhere.
const PAGE: usize = 4096;

impl<'a> Window<'a> {
    /// For a walk over most of a file, which reads large pieces.
    pub(crate) fn walk(file: &'a DataFile) -> Self {
        Self::new(file, 256 << 10)
    }

    /// For a look at a single place, which reads no more than is asked for.
    pub(crate) fn look(file: &'a DataFile) -> Self {
        Self::new(file, 0)
    }

    fn new(file: &'a DataFile, ahead: usize) -> Self {
        Window {
            file,
            ahead,
            start: 0,
            bytes: Vec::new(),
        }
    }

    pub(crate) fn file(&self) -> &'a DataFile {
        self.file
    }

    /// The `length` bytes at `offset`, fewer only at the end of the file.
    ///
    /// # Errors
    /// As [`DataFile::read`].
    pub(crate) fn get(&mut self, offset: u64, length: usize) -> Result<&[u8]> {
        let end = self.start + self.bytes.len() as u64;
        let wanted = offset.saturating_add(length as u64).min(self.file.len());
        if offset < self.start || offset > end || wanted > end {
            // A jump is most likely no walk.
            let near = offset >= self.start && offset <= end + self.ahead as u64;
            let ahead = if near {
                self.ahead
            } else {
                self.ahead.min(PAGE)
            };
            // Nothing is there while it is being read.
            self.start = offset;
            let mut bytes = std::mem::take(&mut self.bytes);
            self.file.fill(offset, &mut bytes, length.max(ahead))?;
            self.bytes = bytes;
        }
        let rest = &self.bytes[(offset - self.start) as usize..];
        Ok(&rest[..length.min(rest.len())])
    }

    /// The same, for keeping.
    ///
    /// # Errors
    /// As [`DataFile::read`].
    pub(crate) fn copy(&mut self, offset: u64, length: usize) -> Result<Vec<u8>> {
        match self.ahead {
            0 => self.file.read(offset, length),
            _ => self.get(offset, length).map(<[u8]>::to_vec),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_show_what_is_in_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let whole: Vec<u8> = (0..1_000_000_u32).map(|i| (i * 7 % 251) as u8).collect();
        std::fs::write(&path, &whole).unwrap();
        let file = DataFile::open(&path).unwrap();
        for mut window in [Window::walk(&file), Window::look(&file)] {
            for offset in [
                0, 5, 262_140, 262_144, 3, 999_990, 999_999, 700_000, 1_000_000, 2_000_000,
            ] {
                for length in [0, 1, 10, 300_000] {
                    let end = (offset + length).min(whole.len());
                    let expected = whole.get(offset..end).unwrap_or(&[]);
                    assert_eq!(window.get(offset as u64, length).unwrap(), expected);
                }
            }
            assert!(window.get(u64::MAX, usize::MAX).unwrap().is_empty());
        }
    }

    #[test]
    fn a_file_that_became_shorter_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::fs::write(&path, [7; 100]).unwrap();
        let file = DataFile::open(&path).unwrap();
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(60)
            .unwrap();
        let mut window = Window::look(&file);
        assert_eq!(window.get(0, 60).unwrap().len(), 60);
        for (offset, length) in [(0, 61), (60, 1), (80, 100)] {
            let error = window.get(offset, length).unwrap_err().to_string();
            assert!(error.contains("made shorter"), "{error}");
        }
        // Nothing of before is taken for what is there.
        assert_eq!(window.get(10, 20).unwrap(), [7; 20]);
    }
}
