//! Standard output and standard error, as the commands use them.

use crate::base::files;
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
        let (pictures, verb) = match pictures {
            1 => ("one picture".to_owned(), "is"),
            n => (count(n, "picture"), "are"),
        };
        warn(format!(
            "warning: {pictures} {verb} not square, or more than four times as large as the {size} pixels that the network \
             takes: faces must be found and aligned first (see --landmarks), or the answer means nothing"
        ));
    }
}

/// Whether a file can be put at `path`, asked before the work that fills it: it must not be a folder, and its folder must be
/// there or can be made, by [`make_folder_of`] when the file is written. `flag` is the argument's name; `others` are the
/// arguments whose files the command reads, or writes too.
///
/// # Errors
/// Wrong usage: also if it is one of `others`. The system refuses.
pub(super) fn check_file(
    flag: &str,
    path: Option<&Path>,
    others: &[(&str, Option<&Path>)],
) -> Result<()> {
    let Some(path) = path else {
        return Ok(());
    };
    if path.is_dir() || path.file_name().is_none() {
        return Err(Error::Usage(format!(
            "{flag} {} is a folder; name a file",
            shown(path)
        )));
    }
    let same = |(_, other): &&(&str, Option<&Path>)| other.is_some_and(|o| is_same_file(path, o));
    if let Some((other, _)) = others.iter().find(same) {
        return Err(Error::Usage(format!(
            "{flag} {} is the file of {other}, too: name another",
            shown(path)
        )));
    }
    check_above(flag, path)?;
    files::may_write(path).map_err(Error::io("writing", path))
}

/// Whether two paths lead to one file, or would if it were there. Devices may be written to by all.
fn is_same_file(a: &Path, b: &Path) -> bool {
    // What is not there yet has a folder that may be.
    let real = |path: &Path| {
        fs::canonicalize(path).ok().or_else(|| {
            let path = std::path::absolute(path).ok()?;
            Some(
                fs::canonicalize(path.parent()?)
                    .ok()?
                    .join(path.file_name()?),
            )
        })
    };
    let is_device = a.exists() && !a.is_file();
    !is_device && real(a).is_some_and(|a| Some(a) == real(b))
}

/// Whether what lies above `path` is a folder, or can become one.
fn check_above(flag: &str, path: &Path) -> Result<()> {
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
        Some(path) => check_above(flag, path),
        None => Ok(()),
    }
}

/// Like [`check_folder`], for a folder that is only made after much work: also whether the system allows files there.
///
/// # Errors
/// As [`check_folder`]; the system refuses.
pub(super) fn check_late_folder(flag: &str, path: Option<&Path>) -> Result<()> {
    check_folder(flag, path)?;
    path.map_or(Ok(()), |path| {
        files::may_write(&path.join("file")).map_err(Error::io("writing into", path))
    })
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
