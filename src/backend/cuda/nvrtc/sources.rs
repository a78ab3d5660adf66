//! The text of the kernels: embedded in the binary, or read from a folder while someone works on them.

use crate::base::text::shown;
use crate::{Error, Result};
use std::borrow::Cow;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The binary's own, embedded by the build script: (file name, text).
const SOURCES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/kernels.rs"));

/// Every file of `kernels/`, by name.
#[derive(Debug)]
pub struct Sources {
    files: Vec<(&'static str, Cow<'static, str>)>,
    /// Where they were read, if they are not the binary's own.
    folder: Option<PathBuf>,
}

impl Default for Sources {
    /// The files that the binary was built with.
    fn default() -> Self {
        let embedded = |(file, text): &(&'static str, &'static str)| (*file, (*text).into());
        Sources {
            files: SOURCES.iter().map(embedded).collect(),
            folder: None,
        }
    }
}

impl Sources {
    /// The environment variable that names a folder to read them from.
    pub const VARIABLE: &str = "ARCFACE_CU_KERNEL_SOURCES";

    /// The files of the folder that the environment names, else those of the binary; `variable` returns the value of a
    /// variable.
    ///
    /// # Errors
    /// As [`Sources::at`].
    pub fn new(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let named = variable(Self::VARIABLE).filter(|value| !value.is_empty());
        named.map_or_else(|| Ok(Self::default()), |folder| Self::at(folder.into()))
    }

    /// The files of this folder, under the names of the binary's. The binary passes arguments as its own files declare
    /// them, so a kernel's parameters must be the same.
    ///
    /// # Errors
    /// A file is missing or is no text, or a kernel's parameters differ.
    pub fn at(folder: PathBuf) -> Result<Self> {
        let read = |(file, embedded): &(&'static str, &'static str)| {
            let path = folder.join(file);
            let text = std::fs::read_to_string(&path);
            let text = text.map_err(Error::io("reading a kernel's source", &path))?;
            if heads(&text) != heads(embedded) {
                let problem =
                    "declares other kernels or parameters than this program calls: build it again";
                return Err(Error::data(&path, problem));
            }
            Ok((*file, text.into()))
        };
        Ok(Sources {
            files: SOURCES.iter().map(read).collect::<Result<_>>()?,
            folder: Some(folder),
        })
    }

    /// The text of a file.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        let named = self.files.iter().find(|(file, _)| *file == name);
        named.map(|(_, text)| &text[..])
    }

    /// Every header and its text.
    pub(super) fn headers(&self) -> impl Iterator<Item = (&str, &str)> {
        let headers = (self.files.iter()).filter(|(file, _)| file.ends_with(".cuh"));
        headers.map(|(file, text)| (*file, &text[..]))
    }

    /// The folder that they were read from, None for those of the binary.
    pub fn folder(&self) -> Option<&Path> {
        self.folder.as_deref()
    }
}

impl std::fmt::Display for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} source files, ", self.files.len())?;
        match &self.folder {
            None => f.write_str("in this binary"),
            Some(folder) => write!(f, "read from {}, as {} says", shown(folder), Self::VARIABLE),
        }
    }
}

/// The heads of a file's kernels, without their white space.
fn heads(text: &str) -> Vec<String> {
    let heads = text.split("extern \"C\"").skip(1);
    let head = |rest: &str| rest.split('{').next().unwrap_or_default().to_owned();
    let packed = |head: String| head.split_whitespace().collect();
    heads.map(head).map(packed).collect()
}

#[cfg(test)]
mod tests {
    use super::super::Source;
    use super::super::cache::Key;
    use super::*;
    use crate::backend::cuda::tiles::PROGRAMS;

    /// A folder with the binary's files.
    fn copy() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in SOURCES {
            std::fs::write(dir.path().join(file), text).unwrap();
        }
        dir
    }

    fn change(folder: &Path, file: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(folder.join(file)).unwrap();
        assert!(text.contains(from), "{file}");
        std::fs::write(folder.join(file), text.replace(from, to)).unwrap();
    }

    fn keys(sources: &Sources) -> Vec<(&'static str, Key)> {
        let key = |program| Key::of_source(&Source::of(program, sources).unwrap(), "sm_80");
        (PROGRAMS.iter())
            .map(|program| (program.file, key(program)))
            .collect()
    }

    #[test]
    fn the_environment_names_a_folder() {
        let dir = copy();
        let named = |value: &Path| {
            Sources::new(|name| (name == Sources::VARIABLE).then(|| value.as_os_str().to_owned()))
        };
        let of_folder = named(dir.path()).unwrap();
        assert_eq!(of_folder.folder(), Some(dir.path()));
        let embedded = named("".as_ref()).unwrap();
        assert_eq!(embedded.folder(), None);
        assert_eq!(keys(&of_folder), keys(&embedded));
    }

    #[test]
    fn a_program_is_another_one_once_its_text_changes() {
        let dir = copy();
        let before = keys(&Sources::default());
        change(dir.path(), "sgd.cu", "// sgd.cu", "// sgd.cu, changed");
        let after = keys(&Sources::at(dir.path().to_owned()).unwrap());
        for ((file, before), (_, after)) in before.iter().zip(&after) {
            assert_eq!(before == after, *file != "sgd.cu", "{file}");
        }
        // Any program may include a header.
        change(dir.path(), "common.cuh", "WARP 32u", "WARP  32u");
        let after = keys(&Sources::at(dir.path().to_owned()).unwrap());
        assert!(
            before
                .iter()
                .zip(&after)
                .all(|(before, after)| before != after)
        );
    }

    #[test]
    fn a_folder_that_the_program_cannot_call_is_refused() {
        let dir = copy();
        change(
            dir.path(),
            "reduce.cu",
            "u32 tiles, u64 len",
            "u64 len,\n  u32 tiles",
        );
        let error = Sources::at(dir.path().to_owned()).unwrap_err().to_string();
        assert!(
            error.contains("reduce.cu") && error.contains("build it again"),
            "{error}"
        );
        change(
            dir.path(),
            "reduce.cu",
            "u64 len,\n  u32 tiles",
            "u32 tiles,\n   u64 len",
        );
        Sources::at(dir.path().to_owned()).unwrap();
        std::fs::remove_file(dir.path().join("sgd.cuh")).unwrap();
        let error = Sources::at(dir.path().to_owned()).unwrap_err().to_string();
        assert!(error.contains("sgd.cuh"), "{error}");
    }
}
