//! What was compiled before: a folder of files that any number of processes may share.
//!
//! ```text
//! offset  bytes  what
//! 0       16     "arcface-cu/1" and zeros
//! 16      16     key, little-endian
//! 32      8      bytes of the log, L
//! 40      8      bytes of the image, I
//! 48      16     FNV-1a of log and image, little-endian
//! 64      L, I   log, image
//! ```
//!
//! A file is written under a name of its own and then renamed, so that a reader sees all of it or nothing. One that is
//! torn or foreign nevertheless counts as absent, and is replaced by the compilation that follows.

use super::{Compiled, Source};
use crate::base::files;
use crate::base::fnv::Fnv;
use crate::base::text::shown;
use std::io::Read;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 16] = *b"arcface-cu/1\0\0\0\0";
const HEADER: usize = 64;

/// Everything that decides what a compilation gives, in 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key(u128);

impl Key {
    pub(super) fn new(source: &Source, architecture: &str, version: (u32, u32)) -> Self {
        let mut hash = Fnv(Self::of_source(source, architecture).0);
        hash.part(&version.0.to_le_bytes());
        hash.part(&version.1.to_le_bytes());
        Key(hash.0)
    }

    /// A key without the version of NVRTC.
    pub(super) fn of_source(source: &Source, architecture: &str) -> Self {
        let mut hash = Fnv::new();
        for text in [source.file, source.text, architecture] {
            hash.part(text.as_bytes());
        }
        for (name, text) in &source.headers {
            hash.part(name.as_bytes());
            hash.part(text.as_bytes());
        }
        for option in &source.options {
            hash.part(option.as_bytes());
        }
        Key(hash.0)
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// A folder of compiled programs. Without a usable one, compilation is slower, not impossible.
#[derive(Debug)]
pub struct Cache {
    folder: Result<PathBuf, String>,
}

impl Cache {
    /// The environment variable that names the folder.
    pub const VARIABLE: &str = "ARCFACE_CU_CACHE";

    /// A cache in this folder, if there is one.
    pub fn new(folder: Option<PathBuf>) -> Self {
        folder.map_or_else(
            || Cache {
                folder: Err(format!(
                    "there is no folder for compiled kernels, since neither {} nor HOME is set",
                    Self::VARIABLE
                )),
            },
            Self::at,
        )
    }

    /// A cache in this folder, which is made where it is not there.
    pub fn at(folder: PathBuf) -> Self {
        let probe = std::fs::create_dir_all(&folder).and_then(|()| {
            let (file, path) = files::create(&folder.join("probe"))?;
            drop(file);
            std::fs::remove_file(path)
        });
        Cache {
            folder: probe
                .map_err(|error| {
                    format!(
                        "compiled kernels cannot be kept in {} ({error}); set {} to a folder that can be written",
                        shown(&folder),
                        Self::VARIABLE
                    )
                })
                .map(|()| folder),
        }
    }

    /// The folder, or why nothing is kept: a sentence for people, to be said once.
    ///
    /// # Errors
    /// The folder cannot be written, or there is none.
    pub fn folder(&self) -> Result<&Path, &str> {
        self.folder.as_deref().map_err(String::as_str)
    }

    fn path(&self, name: &str, key: Key) -> Option<PathBuf> {
        let folder = self.folder.as_ref().ok()?;
        Some(folder.join(format!("{name}-{key}")))
    }

    /// What was kept under this key, if all of it is there.
    pub(super) fn read(&self, name: &str, key: Key) -> Option<Compiled> {
        let mut file = std::fs::File::open(self.path(name, key)?).ok()?;
        let size = file.metadata().ok()?.len();
        let mut header = [0; HEADER];
        file.read_exact(&mut header).ok()?;
        let field = |at: usize| u64::from_le_bytes(header[at..][..8].try_into().expect("8 bytes"));
        let (log, image) = (field(32), field(40));
        let whole = (HEADER as u64).checked_add(log)?.checked_add(image)? == size;
        if header[..16] != MAGIC || header[16..32] != key.0.to_le_bytes() || !whole {
            return None;
        }
        let mut bytes = Vec::with_capacity(usize::try_from(log + image).ok()?);
        file.read_to_end(&mut bytes).ok()?;
        let mut sum = Fnv::new();
        sum.bytes(&bytes);
        if bytes.len() as u64 != log + image || header[48..] != sum.0.to_le_bytes() {
            return None;
        }
        let image = bytes.split_off(log as usize);
        Some(Compiled {
            image,
            log: String::from_utf8(bytes).ok()?,
        })
    }

    /// Keeps what was compiled; where that fails, it is compiled again next time.
    pub(super) fn write(&self, name: &str, key: Key, compiled: &Compiled) {
        let Some(path) = self.path(name, key) else {
            return;
        };
        let (log, image) = (compiled.log.as_bytes(), &compiled.image[..]);
        let mut sum = Fnv::new();
        sum.bytes(log);
        sum.bytes(image);
        let parts: [&[u8]; 7] = [
            &MAGIC,
            &key.0.to_le_bytes(),
            &(log.len() as u64).to_le_bytes(),
            &(image.len() as u64).to_le_bytes(),
            &sum.0.to_le_bytes(),
            log,
            image,
        ];
        let _ = files::write_cached(&path, &parts.concat());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: Key = Key(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

    fn compiled(seed: u8, len: usize) -> Compiled {
        Compiled {
            image: (0..len).map(|i| (i * 31) as u8 ^ seed).collect(),
            log: format!("log {seed}\nits second line\n"),
        }
    }

    fn files(folder: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    }

    #[test]
    fn what_is_kept_comes_back_under_its_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().join("new/folder"));
        assert_eq!(cache.read("add", KEY), None);
        let empty = Compiled {
            image: Vec::new(),
            log: String::new(),
        };
        for kept in [compiled(1, 1000), empty] {
            cache.write("add", KEY, &kept);
            assert_eq!(cache.read("add", KEY), Some(kept));
        }
        let other = Key(KEY.0 ^ 1);
        assert_eq!(cache.read("add", other), None);
        // A file under another key's name is not taken for it.
        let (mine, its) = (cache.path("add", KEY), cache.path("add", other));
        std::fs::rename(mine.unwrap(), its.unwrap()).unwrap();
        assert_eq!(cache.read("add", other), None);
    }

    #[test]
    fn a_torn_or_changed_file_counts_as_absent_and_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path().to_owned());
        let kept = compiled(2, 100);
        cache.write("add", KEY, &kept);
        let path = cache.path("add", KEY).unwrap();
        let whole = std::fs::read(&path).unwrap();
        for len in 0..whole.len() {
            std::fs::write(&path, &whole[..len]).unwrap();
            assert_eq!(cache.read("add", KEY), None, "{len} bytes");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 0x40;
            std::fs::write(&path, changed).unwrap();
            assert_eq!(cache.read("add", KEY), None, "byte {at}");
        }
        let longer = [&whole[..], b"more"].concat();
        std::fs::write(&path, longer).unwrap();
        assert_eq!(cache.read("add", KEY), None);
        cache.write("add", KEY, &kept);
        assert_eq!(cache.read("add", KEY), Some(kept));
    }

    #[test]
    fn writers_at_once_leave_one_whole_file() {
        let dir = tempfile::tempdir().unwrap();
        std::thread::scope(|scope| {
            for seed in 0..8 {
                let folder = dir.path();
                scope.spawn(move || {
                    let cache = Cache::at(folder.to_owned());
                    for _ in 0..20 {
                        cache.write("add", KEY, &compiled(seed, 20_000));
                        let read = cache.read("add", KEY).expect("one writer's file is there");
                        let whole = (0..8).any(|seed| read == compiled(seed, 20_000));
                        assert!(whole, "a mixture of two writers");
                    }
                });
            }
        });
        assert_eq!(files(dir.path()).len(), 1, "nothing temporary is left");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_said_and_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let cache = Cache::at(file.join("below"));
        let said = cache.folder().unwrap_err();
        assert!(
            said.contains("below") && said.contains(Cache::VARIABLE),
            "{said}"
        );
        cache.write("add", KEY, &compiled(3, 10));
        assert_eq!(cache.read("add", KEY), None);

        assert!(Cache::new(None).folder().unwrap_err().contains("HOME"));
    }

    #[test]
    fn everything_that_matters_is_in_the_key() {
        let source = |file, text, header, option: &str| Source {
            file,
            text,
            headers: vec![("common.cuh", header)],
            options: vec!["--std=c++17".to_owned(), option.to_owned()],
        };
        let base = || source("add.cu", "text", "header", "-DTHREADS=256");
        let keys = [
            Key::new(&base(), "sm_80", (13, 0)),
            Key::new(&base(), "sm_90a", (13, 0)),
            Key::new(&base(), "sm_80", (13, 1)),
            Key::new(&base(), "sm_80", (12, 0)),
            Key::new(
                &source("a", "dd.cutext", "header", "-DTHREADS=256"),
                "sm_80",
                (13, 0),
            ),
            Key::new(
                &source("add.cu", "texT", "header", "-DTHREADS=256"),
                "sm_80",
                (13, 0),
            ),
            Key::new(
                &source("add.cu", "text", "headeR", "-DTHREADS=256"),
                "sm_80",
                (13, 0),
            ),
            Key::new(
                &source("add.cu", "text", "header", "-DTHREADS=128"),
                "sm_80",
                (13, 0),
            ),
        ];
        for (i, a) in keys.iter().enumerate() {
            assert_eq!(keys.iter().position(|b| a == b), Some(i));
        }
    }
}
