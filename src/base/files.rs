//! Whole files: read, and written so that a reader finds one writer's file, whole, or none.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

/// A new file beside `path` that is no other writer's, in this process or another.
pub(crate) fn create(path: &Path) -> io::Result<(File, PathBuf)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    // The time too: containers that share a folder may share process numbers.
    let time = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    let mut own = path.as_os_str().to_owned();
    own.push(format!(".{process}.{count}.{time}.tmp"));
    let own = PathBuf::from(own);
    Ok((File::create_new(&own)?, own))
}

/// Writes a file of its own and gives it the name `path`; the last of several writers stays. Not synced.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (mut file, own) = create(path)?;
    let written = file.write_all(bytes);
    drop(file);
    let result = written.and_then(|()| fs::rename(&own, path));
    if result.is_err() {
        // A full disk, most likely: not even the remains are to stay. Nothing is left to be done if they do.
        let _ = fs::remove_file(own);
    }
    result
}

/// A whole regular file. What a path in a record names may be anything: a device has no end.
pub(crate) fn read_whole(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(Error::io("opening", path))?;
    if !metadata.is_file() {
        return Err(Error::data(path, "is not a regular file"));
    }
    fs::read(path).map_err(Error::io("reading", path))
}

/// The first bytes of a file, 512 at most.
pub(crate) fn start_of(path: &Path) -> Result<Vec<u8>> {
    let metadata = fs::metadata(path).map_err(Error::io("opening", path))?;
    if !metadata.is_file() {
        return Err(Error::data(path, "is not a regular file"));
    }
    let mut start = Vec::new();
    File::open(path)
        .and_then(|file| file.take(512).read_to_end(&mut start))
        .map_err(Error::io("reading", path))?;
    Ok(start)
}
