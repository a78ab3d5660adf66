//! Reads whole files, and writes them in the only way that this program does.
//!
//! The contents go to a temporary file in the same folder, which is synced and renamed. A reader finds the old contents
//! or the new ones, never a part, even after a crash or a power loss. An error at any point leaves the old file.
//! Several processes may write the same file; the last one wins.

use super::text::{one_line, shown};
use crate::{Error, Result};
use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, UNIX_EPOCH};

/// The end of a temporary file's name. A leftover one is from a process that was killed.
pub(crate) const TEMPORARY: &str = ".tmp";

/// The most symbolic links followed in a row, as on Linux.
const MAX_LINKS: usize = 40;

/// Writes `bytes` as the whole file `path`.
///
/// - A device, a pipe or `/dev/stdout` is written to, never replaced.
/// - A symbolic link stays; the file that it points to is written.
/// - A file keeps its permissions, and its owner if the system allows it; a new one gets those of the umask.
/// - The file is synced, and its folder if the file system can do that.
/// - The folder must be writable, even if the file is.
///
/// # Errors
/// The file cannot be written, synced or renamed; an existing file is unchanged.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |out| out.write_all(bytes))
}

/// Like [`write`], for contents that are not in memory: `body` writes them.
///
/// # Errors
/// As [`write`], or `body` fails.
pub(crate) fn write_with(
    path: &Path,
    body: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> Result<()> {
    let written = match place_of(path) {
        Ok(Place::Stream) => append(path, body),
        Ok(Place::File(path)) => replace(&path, Durability::Synced, body),
        Err(error) => Err(error),
    };
    written.map_err(Error::io("writing", path))
}

/// Writes a file that can be made again, such as a cache entry: like [`write`], but not synced.
///
/// # Errors
/// The file cannot be written or renamed.
pub(crate) fn write_cached(path: &Path, bytes: &[u8]) -> io::Result<()> {
    replace(path, Durability::Unsynced, |out| out.write_all(bytes))
}

/// What a path leads to.
enum Place {
    /// A regular file, or none yet, at this path, which is not a symbolic link.
    File(PathBuf),
    /// Something to write to in place, such as a device or a pipe.
    Stream,
}

/// Follows symbolic links. Nothing in `/dev` itself or below `/proc` is replaced: if standard output goes to a file,
/// `/dev/stdout` leads to that file, which the shell has open.
fn place_of(path: &Path) -> io::Result<Place> {
    let mut path = path.to_path_buf();
    for _ in 0..MAX_LINKS {
        // If the folder does not exist, creating the file fails with the right error.
        let folder = fs::canonicalize(folder_of(&path)).unwrap_or_default();
        if folder == Path::new("/dev") || folder.starts_with("/proc") {
            return Ok(Place::Stream);
        }
        let metadata = match fs::symlink_metadata(&path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Place::File(path)),
            Err(error) => return Err(error),
        };
        if metadata.is_symlink() {
            let target = fs::read_link(&path)?;
            path = folder_of(&path).join(target);
        } else if metadata.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        } else if metadata.is_file() {
            return Ok(Place::File(path));
        } else {
            return Ok(Place::Stream);
        }
    }
    Err(io::Error::other("there are too many symbolic links"))
}

/// The folder that a file lies in.
fn folder_of(path: &Path) -> &Path {
    folder_or_here(path.parent().unwrap_or(Path::new("")))
}

/// A folder, or the working folder for an empty path.
fn folder_or_here(path: &Path) -> &Path {
    match path.as_os_str().is_empty() {
        true => Path::new("."),
        false => path,
    }
}

/// Writes in place. If standard output goes to a file, the contents are appended, and nothing is overwritten.
fn append(
    path: &Path,
    body: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let mut out = BufWriter::new(OpenOptions::new().append(true).open(path)?);
    body(&mut out)?;
    out.flush()
}

#[derive(PartialEq)]
enum Durability {
    Synced,
    Unsynced,
}

/// Writes a temporary file and gives it the name `path`.
fn replace(
    path: &Path,
    durability: Durability,
    body: impl FnOnce(&mut BufWriter<File>) -> io::Result<()>,
) -> io::Result<()> {
    let (file, temporary) = create(path)?;
    let write = || {
        // Before the contents: they may be secret.
        keep_owner_and_permissions(path, &file)?;
        let mut out = BufWriter::new(file);
        body(&mut out)?;
        let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
        if durability == Durability::Synced {
            file.sync_all()?;
        }
        drop(file);
        fs::rename(&temporary, path)
    };
    if let Err(error) = write() {
        // Most likely the disk is full, so remove the partial file. If that fails, nothing more can be done.
        let _ = fs::remove_file(&temporary);
        return Err(error);
    }
    if durability == Durability::Synced {
        // The rename is durable only after the folder is synced.
        sync_folder(folder_of(path));
    }
    Ok(())
}

/// Syncs the names in a folder. Some file systems cannot do that, and some folders cannot be read; what was renamed is in
/// its place anyway.
pub(crate) fn sync_folder(folder: &Path) {
    let _ = File::open(folder).and_then(|folder| folder.sync_all());
}

/// Gives a new file the owner and the permissions of the one at `path`, if there is one.
fn keep_owner_and_permissions(path: &Path, new: &File) -> io::Result<()> {
    let Ok(old) = fs::metadata(path) else {
        return Ok(());
    };
    #[cfg(unix)]
    {
        use std::os::unix::fs::{MetadataExt as _, fchown};
        // Only root may give a file away.
        let _ = fchown(new, Some(old.uid()), Some(old.gid()));
    }
    new.set_permissions(old.permissions())
}

/// A new file beside `path`, with a name that no other writer uses, in this process or another.
pub(crate) fn create(path: &Path) -> io::Result<(File, PathBuf)> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    // The name includes the time: containers that share a folder may have the same process numbers.
    let time = UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos();
    // Only the start of the target's name: the whole may already be as long as a name can be.
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let name: String = name.chars().take(40).collect();
    let own = path.with_file_name(format!("{name}.{process}.{count}.{time}{TEMPORARY}"));
    Ok((File::create_new(&own)?, own))
}

/// The file by which a process locks a folder.
const LOCK: &str = ".lock";

/// Creates the folder `path` and locks it for this process through its file `.lock`, until the returned value is
/// dropped or the process ends. `doing` says what the process does there ("training").
///
/// # Errors
/// Another process holds the lock, or the system refuses.
pub(crate) fn lock_folder(path: &Path, doing: &str) -> Result<File> {
    let lock = lock_folder_by(path, LOCK, doing)?;
    remove_remains(path);
    Ok(lock)
}

/// Like [`lock_folder`], with a lock file of another name: for a process that runs commands which lock the folder.
///
/// # Errors
/// As [`lock_folder`].
pub(crate) fn lock_folder_by(path: &Path, name: &str, doing: &str) -> Result<File> {
    fs::create_dir_all(path).map_err(Error::io("creating the folder", path))?;
    let lock = path.join(name);
    let mut options = File::options();
    options.read(true).write(true).create(true).truncate(false);
    let mut file = (options.open(&lock)).map_err(Error::io("creating", &lock))?;
    match file.try_lock() {
        Ok(()) => {
            // For the other process's message: another command may hold the lock. Without it, the lock holds as well.
            let _ = file
                .set_len(0)
                .and_then(|()| file.write_all(doing.as_bytes()));
            Ok(file)
        }
        Err(TryLockError::WouldBlock) => {
            let mut theirs = String::new();
            let read = file.take(40).read_to_string(&mut theirs);
            let doing = match read {
                Ok(1..) => &theirs,
                _ => doing,
            };
            Err(Error::Usage(format!(
                "another process is {} into {}: wait for it to end, or choose another --out",
                one_line(doing),
                shown(path)
            )))
        }
        Err(TryLockError::Error(e)) => Err(Error::io("locking", &lock)(e)),
    }
}

/// Removes temporary files of killed runs. A file younger than an hour may belong to another command.
fn remove_remains(folder: &Path) {
    let hour = Duration::from_secs(3600);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let age = entry.metadata().and_then(|m| m.modified());
        let age = age.ok().and_then(|time| time.elapsed().ok());
        if is_temporary(&name.to_string_lossy()) && age > Some(hour) {
            // If it cannot be removed, only space is lost.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether [`create`] makes such names.
pub(crate) fn is_temporary(name: &str) -> bool {
    let Some(name) = name.strip_suffix(TEMPORARY) else {
        return false;
    };
    let mut parts = name.rsplitn(4, '.');
    let digits = |part: Option<&str>| {
        part.is_some_and(|part| !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit()))
    };
    digits(parts.next()) && digits(parts.next()) && digits(parts.next()) && parts.next().is_some()
}

/// Opens a regular file. A path among data may name anything: a device has no end, and opening a pipe may wait for ever.
pub(crate) fn open_regular(path: &Path) -> Result<File> {
    let metadata = fs::metadata(path).map_err(Error::io("opening", path))?;
    if !metadata.is_file() {
        return Err(Error::data(
            path,
            match metadata.is_dir() {
                true => "is a folder, and a file is expected",
                false => "is a device or a pipe, and a file is expected",
            },
        ));
    }
    File::open(path).map_err(Error::io("opening", path))
}

/// Reads a whole regular file.
pub(crate) fn read_whole(path: &Path) -> Result<Vec<u8>> {
    let mut file = open_regular(path)?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)
        .map_err(Error::io("reading", path))?;
    Ok(bytes)
}

/// Whether a file can be put at `path`, whose folder need not exist yet. It is asked before the work that fills it.
///
/// # Errors
/// The system refuses to make a file there.
pub(crate) fn may_write(path: &Path) -> io::Result<()> {
    let Place::File(path) = place_of(path)? else {
        return Ok(());
    };
    let name = path.file_name().unwrap_or_default();
    let mut above = path.ancestors().skip(1).map(folder_or_here);
    let Some(folder) = above.find(|above| above.is_dir()) else {
        return Ok(());
    };
    let (_, temporary) = create(&folder.join(name))?;
    fs::remove_file(temporary)
}

/// The first bytes of a file, 512 at most.
pub(crate) fn start_of(path: &Path) -> Result<Vec<u8>> {
    let file = open_regular(path)?;
    let mut start = Vec::new();
    file.take(512)
        .read_to_end(&mut start)
        .map_err(Error::io("reading", path))?;
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::process::{Command, Stdio};

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            (entries.map(|e| e.unwrap().file_name().into_string().unwrap())).collect();
        names.sort();
        names
    }

    #[test]
    fn a_file_is_replaced_and_keeps_its_permissions() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o640
        );
        assert_eq!(names(dir.path()), ["a"]);
    }

    #[test]
    fn an_error_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write(&path, b"old").unwrap();
        let failed = write_with(&path, |out| {
            out.write_all(&[7; 100_000])?;
            Err(io::Error::other("the source ended"))
        });
        assert!(failed.unwrap_err().to_string().contains("the source ended"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a"]);
        assert!(write(dir.path(), b"a folder").is_err());
        // A name as long as names can be.
        write(&dir.path().join("é".repeat(127)), b"long").unwrap();
        assert!(write(&dir.path().join("none/a"), b"no folder").is_err());
    }

    #[test]
    fn symbolic_links_are_followed_and_stay() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("folder")).unwrap();
        symlink("folder/target", at("link")).unwrap();
        symlink(at("link"), at("second")).unwrap();
        // First without the target, then with it.
        for contents in [b"first", b"again"] {
            write(&at("second"), contents).unwrap();
            assert_eq!(fs::read(at("folder/target")).unwrap(), contents);
        }
        assert!(at("link").is_symlink() && at("second").is_symlink());
        symlink("circle", at("circle")).unwrap();
        assert!(write(&at("circle"), b"").is_err());
    }

    #[test]
    fn devices_and_pipes_are_written_to() {
        write(Path::new("/dev/null"), b"gone").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
        let error = write(Path::new("/dev/full"), b"x").unwrap_err().to_string();
        assert!(error.contains("/dev/full"), "{error}");

        // A folder of ordinary files in memory, below a folder of devices.
        if let Ok(dir) = tempfile::tempdir_in("/dev/shm") {
            let path = dir.path().join("a");
            for contents in [&b"first"[..], b"again"] {
                write(&path, contents).unwrap();
                assert_eq!(fs::read(&path).unwrap(), contents);
            }
        }

        let dir = tempfile::tempdir().unwrap();
        symlink("/dev", dir.path().join("devices")).unwrap();
        write(&dir.path().join("devices/null"), b"gone").unwrap();
        fs::remove_file(dir.path().join("devices")).unwrap();
        let pipe = dir.path().join("pipe");
        assert!(
            Command::new("mkfifo")
                .arg(&pipe)
                .status()
                .unwrap()
                .success()
        );
        let reader = Command::new("cat")
            .arg(&pipe)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        write(&pipe, b"through the pipe").unwrap();
        assert_eq!(
            reader.wait_with_output().unwrap().stdout,
            b"through the pipe"
        );
        assert_eq!(names(dir.path()), ["pipe"]);
    }

    #[test]
    fn a_lock_removes_old_remains() {
        let dir = tempfile::tempdir().unwrap();
        let (file, old) = create(&dir.path().join("weights.safetensors")).unwrap();
        file.set_modified(std::time::SystemTime::now() - Duration::from_secs(7200))
            .unwrap();
        let (_, young) = create(&dir.path().join("weights.safetensors")).unwrap();
        let theirs = dir.path().join("notes.tmp");
        fs::write(&theirs, "").unwrap();
        let lock = lock_folder(dir.path(), "testing").unwrap();
        assert!(!old.exists() && young.exists() && theirs.exists());
        let error = lock_folder(dir.path(), "testing").unwrap_err().to_string();
        assert!(error.contains("another process is testing"), "{error}");
        drop(lock);
    }

    #[test]
    fn writers_at_once_leave_one_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        std::thread::scope(|scope| {
            for writer in 0..4u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..10 {
                        write(path, &[writer; 20_000]).unwrap();
                        let read = fs::read(path).unwrap();
                        assert_eq!(read, [read[0]; 20_000], "parts of two writers");
                    }
                });
            }
        });
        assert_eq!(names(dir.path()), ["a"]);
    }
}
