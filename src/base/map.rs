//! Files mapped into memory, read only.

use super::files::open_regular;
use crate::{Error, Result};
use std::ops::Deref;
use std::path::Path;

/// The bytes of a file, without reading them before they are looked at.
///
/// The file must not be made shorter while it is mapped: the operating system ends a process that touches a page
/// which is gone. `pack` never shortens a file in place (it renames whole new files), and nothing else here writes data.
#[derive(Debug)]
pub(crate) struct Map(memmap2::Mmap);

impl Map {
    /// Maps the whole file.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = open_regular(path)?;
        // SAFETY: the bytes behind the slice must not change or vanish while it lives. The mapping is private and read
        // only, and this program never writes to a data file in place; that no other program truncates the file is the
        // user's duty, as with every program that maps its input. Bytes that change are harmless beyond a wrong
        // picture: no reader here checks a byte and then relies, for memory safety, on reading the same value again.
        let map = unsafe { memmap2::Mmap::map(&file) };
        map.map(Map).map_err(Error::io("mapping", path))
    }

    /// Tells the system that records will be read in no order, so that reading ahead is waste (a hint).
    pub(crate) fn expect_random_access(&self) {
        #[cfg(unix)]
        let _ = self.0.advise(memmap2::Advice::Random);
    }
}

impl Deref for Map {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}
