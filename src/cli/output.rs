//! Standard output and standard error, as the commands use them.

use crate::base::text::{self, shown};
pub(super) use crate::base::text::{count, grouped};
use crate::report::progress::Output;
use crate::{Error, Result};
use console::Term;
use indicatif::ProgressDrawTarget;
use std::fmt::Display;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// The first error of writing to standard output.
static FAILED: Mutex<Option<io::Error>> = Mutex::new(None);

/// Notes whether writing to standard output failed. A reader that has gone away (`| head`) is no failure.
pub(super) fn note(written: io::Result<()>) {
    if let Err(error) = written
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        let mut failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner);
        failed.get_or_insert(error);
    }
}

/// Ends standard output. A command whose output is lost goes on, since it may be a week of training, and fails here.
///
/// # Errors
/// Something could not be written.
pub(super) fn finish() -> Result<()> {
    note(io::stdout().flush());
    let mut failed = FAILED.lock().unwrap_or_else(PoisonError::into_inner);
    match failed.take() {
        Some(error) => Err(Error::io("writing to", "standard output")(error)),
        None => Ok(()),
    }
}

/// Standard output that notes its errors.
struct Noting(io::Stdout);

impl Write for Noting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        note(self.0.write_all(bytes));
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        note(self.0.flush());
        Ok(())
    }
}

/// Prints a line, or several. An error is noted for [`finish`].
pub(super) fn say(line: impl Display) {
    note(writeln!(io::stdout(), "{}", text::lines(&line.to_string())));
}

/// Prints a line on standard error, where there may be no reader.
pub(super) fn warn(line: impl Display) {
    let _ = writeln!(io::stderr(), "{}", text::lines(&line.to_string()));
}

/// The columns of the terminal that standard output is.
fn columns() -> usize {
    let (_, columns) = Term::stdout().size();
    columns.into()
}

/// Progress on standard output: a bar on a terminal, else lines.
pub(super) fn progress() -> Output {
    let stdout = io::stdout();
    Output::choose(
        stdout.is_terminal(),
        (ProgressDrawTarget::stdout(), Box::new(columns)),
        Box::new(Noting(stdout)),
    )
}

/// Says that so many pictures are most likely no aligned faces for a network that takes `size` pixels.
pub(super) fn warn_unaligned(pictures: usize, size: usize) {
    if pictures > 0 {
        let pictures = grouped(pictures as u64);
        warn(format!(
            "warning: {pictures} of the pictures are not square, or more than four times as large as the {size} pixels that the \
             network takes: faces must be found and aligned first (see --landmarks), or the answer means nothing"
        ));
    }
}

/// Whether a file can be put at `path`, asked before the work that fills it: it must not be a folder, and its folder must be
/// there or can be made, by [`make_folder_of`] when the file is written. `flag` is the argument's name.
///
/// # Errors
/// Wrong usage.
pub(super) fn check_file(flag: &str, path: Option<&Path>) -> Result<()> {
    let Some(path) = path else {
        return Ok(());
    };
    if path.is_dir() || path.file_name().is_none() {
        return Err(Error::Usage(format!(
            "{flag} {} is a folder; name a file",
            shown(path)
        )));
    }
    match path.ancestors().skip(1).find(|above| above.exists()) {
        Some(above) if !above.is_dir() => Err(Error::Usage(format!(
            "{flag} {}: {} is a file, not a folder",
            shown(path),
            shown(above)
        ))),
        _ => Ok(()),
    }
}

/// Makes the folder that the file `path` is about to be written to.
///
/// # Errors
/// The system refuses.
pub(super) fn make_folder_of(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => {
            fs::create_dir_all(folder).map_err(Error::io("creating the folder", folder))
        }
        _ => Ok(()),
    }
}

/// Whether `path` is, or can become, a folder.
///
/// # Errors
/// Wrong usage: something else is there.
pub(super) fn check_folder(flag: &str, path: Option<&Path>) -> Result<()> {
    match path {
        Some(path) if path.exists() && !path.is_dir() => Err(Error::Usage(format!(
            "{flag} {} is a file; name a folder",
            shown(path)
        ))),
        _ => Ok(()),
    }
}

/// Bytes in MiB, or in GiB from one on.
pub(super) fn size(bytes: u64) -> String {
    let mib = bytes as f64 / f64::from(1 << 20);
    if mib < 1024.0 {
        format!("{mib:.1} MiB")
    } else {
        format!("{:.2} GiB", mib / 1024.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(size(1_572_864), "1.5 MiB");
        assert_eq!(size(3 << 29), "1.50 GiB");
    }
}
