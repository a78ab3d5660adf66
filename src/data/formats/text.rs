//! Text files as any editor leaves them: UTF-8, with a byte order mark or without, lines ended in Unix's or Windows's manner.

use crate::base::files::read_whole;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// A file's text.
#[derive(Debug)]
pub(crate) struct Text {
    text: String,
    /// Bytes of the file before it.
    start: u64,
}

/// The bytes behind a byte order mark, if there is one.
pub(crate) fn without_mark(bytes: &[u8]) -> &[u8] {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes)
}

impl Text {
    /// Reads the file at `path`.
    ///
    /// # Errors
    /// It cannot be read, is not UTF-8, or holds a zero byte.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let bytes = read_whole(path)?;
        let text = without_mark(&bytes);
        let start = (bytes.len() - text.len()) as u64;
        let utf_16 = matches!(&bytes[..bytes.len().min(2)], b"\xff\xfe" | b"\xfe\xff");
        if utf_16 && (bytes.len() < 4 || bytes.contains(&0)) {
            return Err(Error::data(path, "is text in UTF-16; save it as UTF-8"));
        }
        let bad = |at: usize, found: &str| {
            let line = text[..at].iter().rposition(|&b| b == b'\n');
            let first = line.map_or(0, |end| end + 1);
            let line = text[first..].split(|&b| b == b'\n').next();
            let line = line.unwrap_or_default();
            let shown = String::from_utf8_lossy(&line[..line.len().min(80)]);
            let found = format!("{found}: {shown:?}");
            Err(Error::malformed(
                path,
                start + first as u64,
                "text in UTF-8",
                found,
            ))
        };
        if let Some(at) = text.iter().position(|&b| b == 0) {
            return bad(at, "a zero byte");
        }
        match str::from_utf8(text) {
            Ok(text) => Ok(Text {
                text: text.to_owned(),
                start,
            }),
            Err(why) => bad(why.valid_up_to(), "bytes that are not UTF-8"),
        }
    }

    /// Each line without its end, and where it begins in the file.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (u64, &str)> {
        let mut next = self.start;
        self.text.split('\n').map(move |line| {
            let at = next;
            next += line.len() as u64 + 1;
            (at, line.strip_suffix('\r').unwrap_or(line))
        })
    }

    /// The whole text.
    pub(crate) fn as_str(&self) -> &str {
        &self.text
    }
}

/// The file that a text calls `name`, starting from `root` if it is not absolute. Where there is no such file, backslashes
/// part folders, as Windows writes them.
pub(crate) fn file(root: &Path, name: &str) -> PathBuf {
    // An absolute path replaces the folder.
    let path = root.join(name);
    if name.contains('\\') && !path.exists() {
        return root.join(name.replace('\\', "/"));
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn marks_and_line_ends_are_no_text() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, "\u{feff}a b\r\n\nc\r").unwrap();
        let text = Text::read(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines, [(3, "a b"), (8, ""), (9, "c")]);
        for (bytes, said) in [
            (&b"\xff\xfea\0 \x000\0"[..], "UTF-16"),
            (b"ab\nc\xff 1\nd", "byte 3: expected text in UTF-8"),
            (b"\xef\xbb\xbfab\nc\0 1\nd", "byte 6"),
        ] {
            fs::write(&path, bytes).unwrap();
            let error = Text::read(&path).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }

    #[test]
    fn backslashes_part_folders_where_no_file_has_such_a_name() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("a")).unwrap();
        fs::write(dir.path().join("a/b.jpg"), "").unwrap();
        assert_eq!(file(dir.path(), r"a\b.jpg"), dir.path().join("a/b.jpg"));
        if cfg!(unix) {
            fs::write(dir.path().join(r"a\b.jpg"), "").unwrap();
            assert_eq!(file(dir.path(), r"a\b.jpg"), dir.path().join(r"a\b.jpg"));
        }
    }
}
