//! The one error type: every variant displays as a sentence for the person at the terminal.

use super::text::shown;
use std::path::{Path, PathBuf};

/// What went wrong, told so that the reader knows what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused: `doing` is a gerund phrase such as "reading".
    #[error("{doing} {}: {source}", shown(path))]
    Io {
        /// What was being done, as a gerund phrase ("reading", "creating the folder").
        doing: &'static str,
        /// The file or folder concerned.
        path: PathBuf,
        /// What the operating system said.
        source: std::io::Error,
    },
    /// A file's bytes are not what its format demands.
    #[error("{}, byte {offset}: expected {expected}, found {found}", shown(path))]
    Malformed {
        /// The file concerned.
        path: PathBuf,
        /// Where in the file, in bytes from its start.
        offset: u64,
        /// What the format demands there.
        expected: String,
        /// What is there.
        found: String,
    },
    /// A file is well formed, but uses something this program does not handle.
    #[error("{}: {what} is not supported", shown(path))]
    Unsupported {
        /// The file concerned.
        path: PathBuf,
        /// What it uses, as a noun phrase.
        what: String,
    },
    /// The data as a whole cannot be used (an empty folder, a label out of range, ...).
    #[error("{}: {problem}", shown(path))]
    Data {
        /// The file or folder concerned.
        path: PathBuf,
        /// What is wrong with it, and what to try.
        problem: String,
    },
    /// A setting, shape or request that makes no sense; the text is the whole sentence.
    #[error("{0}")]
    Invalid(String),
    /// A GPU, its driver or its compiler is missing, too old or fails; the text is the whole sentence.
    #[error("{0}")]
    Device(String),
    /// The command line or a configuration file asks for something that does not exist (exit code 2).
    #[error("{0}")]
    Usage(String),
    /// Training met a loss or gradient that is not finite and stopped before the update.
    #[error("step {step}: {what} is not finite{}; the checkpoints hold nothing of it. A lower learning rate or a longer warm-up usually helps", layer.as_ref().map(|l| format!(" (first in layer {l})")).unwrap_or_default())]
    NotFinite {
        /// The step at which it happened, counted from 1 as everywhere that people look.
        step: u64,
        /// "the loss" or "the gradient".
        what: &'static str,
        /// The first layer, in forward order, whose values are not finite.
        layer: Option<String>,
    },
    /// The user pressed Ctrl-C; what was to be saved has been saved.
    #[error("interrupted")]
    Interrupted,
}

/// `std::result::Result` with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`] for use in `map_err`: `fs::read(p).map_err(Error::io("reading", p))`.
    pub fn io(doing: &'static str, path: impl AsRef<Path>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.as_ref().to_path_buf();
        move |source| Error::Io {
            doing,
            path,
            source,
        }
    }

    /// An [`Error::Malformed`] at a byte offset.
    pub fn malformed(
        path: impl AsRef<Path>,
        offset: u64,
        expected: impl Into<String>,
        found: impl Into<String>,
    ) -> Self {
        Error::Malformed {
            path: path.as_ref().to_path_buf(),
            offset,
            expected: expected.into(),
            found: found.into(),
        }
    }

    /// An [`Error::Data`] about a file or folder as a whole.
    pub fn data(path: impl AsRef<Path>, problem: impl Into<String>) -> Self {
        Error::Data {
            path: path.as_ref().to_path_buf(),
            problem: problem.into(),
        }
    }

    /// The process's exit code for this error: 2 for wrong usage, 130 where the user interrupted (what a shell gives
    /// for a process that Ctrl-C ended), 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Usage(_) => 2,
            Error::Interrupted => 130,
            _ => 1,
        }
    }
}
