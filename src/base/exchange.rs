//! New files and folders that take the place of old ones, all of them together.
//!
//! They are written to the folder `.exchange.tmp` inside the folder that they are for. When they are whole, everything
//! there is synced, and `.exchange.tmp` becomes `.exchange`: from then on the new files count. They are moved to their
//! places one by one, and what they leave no place for is removed.
//!
//! A process that is killed before that rename leaves the old files as they were; one that is killed after it leaves
//! the new ones whole, some still in `.exchange`. The next exchange in the folder then finishes the move first.
//! Until that is done, the folder is a mixture of old and new, and [`settled`] refuses to read it.

use super::files::{lock_folder, sync_folder};
use super::text::shown;
use crate::{Error, Result};
use rayon::prelude::*;
use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

/// What is being written.
pub(crate) const UNFINISHED: &str = ".exchange.tmp";

/// What is whole.
const WHOLE: &str = ".exchange";

/// In that folder: the names of old files and folders that go, one a line.
const STALE: &str = ".stale";

/// Whether a name is that of something directly in a folder.
fn is_plain(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one = matches!(parts.next(), Some(Component::Normal(part)) if part == name);
    one && parts.next().is_none() && !name.contains(['\\', '\n'])
}

/// An exchange in a folder that this process has locked. Dropped, it removes what was not committed.
#[derive(Debug)]
pub(crate) struct Exchange {
    folder: PathBuf,
    _lock: File,
}

impl Exchange {
    /// Makes and locks `folder`, and finishes what a killed process had committed there. `doing` is that of
    /// [`lock_folder`].
    ///
    /// # Errors
    /// Another process is at work there, or the system refuses.
    pub(crate) fn begin(folder: &Path, doing: &str) -> Result<Self> {
        let exchange = Exchange {
            folder: folder.into(),
            _lock: lock_folder(folder, doing)?,
        };
        if exchange.folder.join(WHOLE).is_dir() {
            exchange.place()?;
        }
        let room = exchange.folder.join(UNFINISHED);
        remove(&room)?;
        fs::create_dir(&room).map_err(Error::io("creating the folder", &room))?;
        Ok(exchange)
    }

    /// Where the file or folder that is to be called `name` is written.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(UNFINISHED).join(name)
    }

    /// Replaces old by new: everything written goes to its place, and of the rest, `stale` goes: names of files and folders
    /// directly in the folder.
    ///
    /// # Errors
    /// The system refuses. Then the old files are as they were, or the next exchange finishes this one.
    pub(crate) fn commit(self, stale: &[String]) -> Result<()> {
        let (unfinished, whole) = (self.folder.join(UNFINISHED), self.folder.join(WHOLE));
        let list = unfinished.join(STALE);
        debug_assert!(stale.iter().all(|name| is_plain(name)), "{stale:?}");
        fs::write(&list, stale.join("\n")).map_err(Error::io("writing", &list))?;
        sync_tree(&unfinished)?;
        fs::rename(&unfinished, &whole).map_err(Error::io("renaming", &unfinished))?;
        sync_folder(&self.folder);
        self.place()
    }

    /// Moves what is whole to its place. It may have been begun before.
    fn place(&self) -> Result<()> {
        let whole = self.folder.join(WHOLE);
        let list = whole.join(STALE);
        let stale = match fs::read_to_string(&list) {
            Ok(text) => text,
            // Everything is in its place, and the folder was about to be removed.
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io("reading", &list)(e)),
        };
        if let Some(name) = stale.lines().find(|name| !is_plain(name)) {
            return Err(Error::data(
                &list,
                format!(
                    "names {name:?} as a file that goes, which is none of the folder's: remove {} if no command of this \
                     program wrote it",
                    shown(&whole)
                ),
            ));
        }
        for name in stale.lines() {
            remove(&self.folder.join(name))?;
        }
        for entry in fs::read_dir(&whole).map_err(Error::io("listing the folder", &whole))? {
            let entry = entry.map_err(Error::io("listing the folder", &whole))?;
            if entry.file_name() == STALE {
                continue;
            }
            let (from, to) = (entry.path(), self.folder.join(entry.file_name()));
            // A file is replaced by the rename itself, a folder is not.
            if from.is_dir() || to.is_dir() {
                remove(&to)?;
            }
            fs::rename(&from, &to).map_err(Error::io("renaming into place", &to))?;
        }
        sync_folder(&self.folder);
        remove(&whole)?;
        sync_folder(&self.folder);
        Ok(())
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        // Most likely the disk is full. If this fails, the next exchange does it.
        let _ = remove(&self.folder.join(UNFINISHED));
    }
}

/// Refuses a folder in which an exchange is going on or was cut short, and a file or folder inside it.
///
/// # Errors
/// That sentence.
pub(crate) fn settled(path: &Path) -> Result<()> {
    let inside = path.parent().filter(|_| path.file_name().is_some());
    for folder in [Some(path), inside].into_iter().flatten() {
        if folder.join(WHOLE).is_dir() {
            return Err(Error::data(
                folder,
                "is having its files replaced by new ones; if the command that wrote them was stopped, run it again, which \
                 finishes that",
            ));
        }
    }
    Ok(())
}

/// Removes a file or folder that may not be there.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("removing", path)(e)),
        _ => Ok(()),
    }
}

/// Syncs a folder with everything in it. Several files at a time: the file system then syncs them in one go.
fn sync_tree(folder: &Path) -> Result<()> {
    let io = || Error::io("listing the folder", folder);
    let entries = fs::read_dir(folder).map_err(io())?;
    let entries: Vec<_> = entries.collect::<io::Result<_>>().map_err(io())?;
    entries.par_iter().try_for_each(|entry| {
        let path = entry.path();
        if path.is_dir() {
            return sync_tree(&path);
        }
        // The system may want a handle that can write.
        let file = File::options().write(true).open(&path);
        file.and_then(|file| file.sync_all())
            .map_err(Error::io("syncing", &path))
    })?;
    sync_folder(folder);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything below a folder, with the contents of files.
    fn tree(folder: &Path) -> Vec<(String, String)> {
        fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(folder).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(root, &path, found);
                } else if !path.ends_with(".lock") {
                    let name = path
                        .strip_prefix(root)
                        .unwrap()
                        .to_string_lossy()
                        .into_owned();
                    found.push((name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
        let mut found = Vec::new();
        walk(folder, folder, &mut found);
        found.sort();
        found
    }

    fn put(path: &Path, text: &str) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Old files, a folder among them, and a file that the exchange must leave alone.
    fn old(folder: &Path) {
        put(&folder.join("data"), "old");
        put(&folder.join("gone"), "old");
        put(&folder.join("pictures/1"), "old");
        put(&folder.join("pictures/2"), "old");
        put(&folder.join("notes"), "theirs");
    }

    fn write_new(exchange: &Exchange) {
        put(&exchange.path("data"), "new");
        put(&exchange.path("pictures/1"), "new");
        put(&exchange.path("more"), "new");
    }

    const NEW: [(&str, &str); 4] = [
        ("data", "new"),
        ("more", "new"),
        ("notes", "theirs"),
        ("pictures/1", "new"),
    ];

    fn assert_new(folder: &Path) {
        let found = tree(folder);
        let found: Vec<_> = (found.iter()).map(|(a, b)| (&a[..], &b[..])).collect();
        assert_eq!(found, NEW);
    }

    #[test]
    fn old_files_stay_until_the_new_ones_are_whole() {
        let dir = tempfile::tempdir().unwrap();
        old(dir.path());
        let before = tree(dir.path());
        let exchange = Exchange::begin(dir.path(), "testing").unwrap();
        let error = Exchange::begin(dir.path(), "testing").unwrap_err();
        assert!(
            error.to_string().contains("another process is testing"),
            "{error}"
        );
        write_new(&exchange);
        settled(dir.path()).unwrap();
        drop(exchange);
        assert_eq!(tree(dir.path()), before);

        let exchange = Exchange::begin(dir.path(), "testing").unwrap();
        write_new(&exchange);
        exchange.commit(&["gone".into(), "never".into()]).unwrap();
        assert_new(dir.path());
        // Nothing of the exchange is left, except the lock.
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 5);
    }

    /// A list that no exchange wrote, as one may come with somebody else's data.
    #[test]
    fn nothing_outside_the_folder_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, folder) = (dir.path().join("theirs"), dir.path().join("data"));
        put(&outside, "theirs");
        old(&folder);
        let before = tree(&folder);
        let absolute = outside.to_str().unwrap();
        for name in [
            absolute,
            "../theirs",
            "..",
            ".",
            "pictures/../../theirs",
            "pictures/1",
            "./gone",
            "gone/",
            "",
            "..\\theirs",
        ] {
            put(
                &folder.join(WHOLE).join(STALE),
                &format!("data\n{name}\ngone\n"),
            );
            let error = Exchange::begin(&folder, "testing").unwrap_err().to_string();
            assert!(error.contains(&format!("names {name:?}")), "{error}");
            remove(&folder.join(WHOLE)).unwrap();
            assert_eq!(tree(&folder), before, "{name}");
            assert!(outside.is_file(), "{name}");
        }
    }

    /// What a kill leaves at each point of the move: the first `moved` entries are in their places.
    #[test]
    fn a_move_that_was_cut_short_is_finished() {
        for moved in 0..=4 {
            let dir = tempfile::tempdir().unwrap();
            old(dir.path());
            let whole = dir.path().join(WHOLE);
            for name in ["data", "pictures/1", "more"] {
                put(&whole.join(name), "new");
            }
            fs::write(whole.join(STALE), "gone").unwrap();
            // A folder that is half removed.
            fs::remove_file(dir.path().join("pictures/2")).unwrap();
            for name in ["data", "pictures", "more"].into_iter().take(moved) {
                remove(&dir.path().join(name)).unwrap();
                fs::rename(whole.join(name), dir.path().join(name)).unwrap();
            }
            if moved >= 3 {
                remove(&dir.path().join("gone")).unwrap();
            }
            if moved == 4 {
                fs::remove_file(whole.join(STALE)).unwrap();
            }
            for path in [dir.path().to_path_buf(), dir.path().join("data")] {
                let said = settled(&path).unwrap_err().to_string();
                assert!(said.contains("run it again"), "{said}");
            }
            drop(Exchange::begin(dir.path(), "testing").unwrap());
            assert_new(dir.path());
            settled(dir.path()).unwrap();
        }
    }
}
