//! Programs that were compiled in advance, for machines without NVRTC: a folder of cubins and PTX with an index.
//!
//! `index.json` holds NVRTC's version, which a driver must not be older than, and for each file: the program's name, the
//! architecture, `source` (the hash of everything that determines the compiled code, except NVRTC's version), the file's
//! name, `sum` (FNV-1a of its bytes), and the compiler's log. A file is used only if its `source` matches the running
//! program's.

use super::architecture::driver_loads;
use super::cache::Key;
use super::{Compiled, Nvrtc, Source, Sources, elf};
use crate::backend::cuda::tiles::{PROGRAMS, Program};
use crate::base::files;
use crate::base::fnv::Fnv;
use crate::base::text::shown;
use crate::{Error, Result};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};

const INDEX: &str = "index.json";

#[derive(Debug, Serialize, Deserialize)]
struct Index {
    /// Major and minor version.
    nvrtc: (u32, u32),
    programs: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    program: String,
    architecture: String,
    /// 32 hexadecimal digits, like `sum`.
    source: String,
    file: String,
    sum: String,
    log: String,
}

/// A folder of prebuilt programs, or none.
#[derive(Debug, Default)]
pub struct Prebuilt(Option<(PathBuf, Index)>);

impl Prebuilt {
    /// The environment variable that names the folder.
    pub const VARIABLE: &str = "ARCFACE_CU_KERNELS";

    /// The folder that the environment names, else `kernels` beside the running program, if it has an index; else none.
    /// `variable` returns the value of a variable.
    ///
    /// # Errors
    /// The named folder has no index, or an index cannot be read.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>) -> Result<Self> {
        let named = variable(Self::VARIABLE).filter(|value| !value.is_empty());
        if let Some(folder) = named {
            return Self::at(folder.into());
        }
        let program = std::env::current_exe().ok();
        let beside = program.and_then(|program| Some(program.parent()?.join("kernels")));
        match beside.filter(|folder| folder.join(INDEX).is_file()) {
            Some(folder) => Self::at(folder),
            None => Ok(Self::default()),
        }
    }

    /// The programs of this folder.
    ///
    /// # Errors
    /// There is no index, or it cannot be read.
    pub fn at(folder: PathBuf) -> Result<Self> {
        let path = folder.join(INDEX);
        let text = std::fs::read_to_string(&path);
        let text = text.map_err(Error::io("reading the index of prebuilt kernels", &path))?;
        let index = serde_json::from_str(&text).map_err(|error| {
            let problem = format!("is no index of prebuilt kernels: {error}");
            Error::data(&path, problem)
        })?;
        Ok(Prebuilt(Some((folder, index))))
    }

    /// The folder and index entry of a program that was compiled from this source.
    fn find(
        &self,
        program: &Program,
        source: &Source,
        architecture: &str,
    ) -> Option<(&PathBuf, &Entry)> {
        let (folder, index) = self.0.as_ref()?;
        let hash = Key::of_source(source, architecture).to_string();
        let fits = |entry: &&Entry| {
            (&entry.program[..], &entry.architecture[..], &entry.source)
                == (program.name, architecture, &hash)
        };
        Some((folder, index.programs.iter().find(fits)?))
    }

    /// Whether the index lists the program for this architecture, compiled from this source.
    pub(super) fn has(&self, program: &Program, source: &Source, architecture: &str) -> bool {
        self.find(program, source, architecture).is_some()
    }

    /// The program for an architecture, if it is here and was compiled from the same source.
    ///
    /// # Errors
    /// Its file is missing or damaged.
    pub(super) fn read(
        &self,
        program: &Program,
        source: &Source,
        architecture: &str,
    ) -> Result<Option<Compiled>> {
        let Some((folder, entry)) = self.find(program, source, architecture) else {
            return Ok(None);
        };
        let path = folder.join(&entry.file);
        let mut parts = Path::new(&entry.file).components();
        if !matches!(
            (parts.next(), parts.next()),
            (Some(Component::Normal(_)), None)
        ) {
            let problem = format!("names {:?}, which is no file beside it", entry.file);
            return Err(Error::data(folder.join(INDEX), problem));
        }
        let image = files::read_whole(&path)?;
        if sum(&image) != entry.sum {
            let problem = format!(
                "is not the file that {INDEX} lists: its checksum differs. Copy the folder again, or unset {}",
                Self::VARIABLE
            );
            return Err(Error::data(&path, problem));
        }
        if is_machine_code(architecture) && !elf::is_elf(&image) {
            return Err(Error::data(&path, "is no cubin: an ELF file was expected"));
        }
        Ok(Some(Compiled {
            image,
            log: entry.log.clone(),
        }))
    }

    /// Whether a driver that speaks CUDA `driver` loads the code for `architecture`.
    pub(super) fn loads(&self, driver: Option<(u32, u32)>, architecture: &str) -> bool {
        let (Some(driver), Some((_, index))) = (driver, &self.0) else {
            return true;
        };
        driver_loads(driver, index.nvrtc, !is_machine_code(architecture))
    }

    /// Why a program is not prebuilt or cannot be used, as the middle of a sentence.
    pub(super) fn lacks(
        &self,
        program: &Program,
        architecture: &str,
        driver: Option<(u32, u32)>,
    ) -> String {
        let Some((folder, index)) = &self.0 else {
            return format!(
                "there is no folder of prebuilt kernels ({})",
                Self::VARIABLE
            );
        };
        let same = |entry: &Entry| {
            (&entry.program[..], &entry.architecture[..]) == (program.name, architecture)
        };
        let folder = shown(folder);
        if !self.loads(driver, architecture) {
            let (major, minor) = index.nvrtc;
            format!("the driver is too old for the code of NVRTC {major}.{minor} in {folder}")
        } else if index.programs.iter().any(same) {
            format!("the one in {folder} was compiled from another source")
        } else {
            let known = architectures(index);
            format!("{folder} does not have it, only programs for {known}")
        }
    }

    /// One line with the number of programs, the architectures, the folder and NVRTC's version; None without a folder.
    pub fn describe(&self) -> Option<String> {
        let (folder, index) = self.0.as_ref()?;
        Some(format!(
            "{} programs for {} in {} (NVRTC {}.{})",
            index.programs.len(),
            architectures(index),
            shown(folder),
            index.nvrtc.0,
            index.nvrtc.1
        ))
    }

    /// Compiles all programs of these sources for these architectures into a folder, several at once, and checks that each file holds
    /// every kernel of its program. Returns their number.
    ///
    /// # Errors
    /// A program that does not compile or lacks a kernel, or a folder that cannot be written.
    pub fn write(
        nvrtc: &Nvrtc,
        sources: &Sources,
        architectures: &[String],
        folder: &Path,
    ) -> Result<usize> {
        std::fs::create_dir_all(folder).map_err(Error::io("creating the folder", folder))?;
        let jobs: Vec<(&Program, &String)> = (PROGRAMS.iter())
            .flat_map(|program| architectures.iter().map(move |a| (*program, a)))
            .collect();
        let entry = |(program, architecture): &(&Program, &String)| {
            let source = Source::of(program, sources)?;
            let compiled = nvrtc.compile(&source, architecture)?;
            let kind = match is_machine_code(architecture) {
                true => "cubin",
                false => "ptx",
            };
            let file = format!("{}-{architecture}.{kind}", program.name);
            let path = folder.join(&file);
            holds_every_kernel(program, &compiled.image)
                .map_err(|problem| Error::data(&path, problem))?;
            files::write(&path, &compiled.image)?;
            Ok(Entry {
                program: program.name.to_owned(),
                architecture: (*architecture).clone(),
                source: Key::of_source(&source, architecture).to_string(),
                sum: sum(&compiled.image),
                file,
                log: compiled.log,
            })
        };
        let programs = jobs.par_iter().map(entry).collect::<Result<Vec<_>>>()?;
        let index = Index {
            nvrtc: nvrtc.version(),
            programs,
        };
        let path = folder.join(INDEX);
        let text = serde_json::to_vec_pretty(&index).expect("an index of strings is JSON");
        files::write(&path, &text)?;
        Ok(index.programs.len())
    }
}

/// Whether an architecture's code is a cubin, not PTX.
fn is_machine_code(architecture: &str) -> bool {
    architecture.starts_with("sm_")
}

/// FNV-1a, in hexadecimal digits.
fn sum(bytes: &[u8]) -> String {
    let mut hash = Fnv::new();
    hash.bytes(bytes);
    format!("{:032x}", hash.0)
}

fn architectures(index: &Index) -> String {
    let known = index.programs.iter().map(|entry| &entry.architecture[..]);
    let known: BTreeSet<&str> = known.collect();
    known.into_iter().collect::<Vec<_>>().join(", ")
}

/// Checks that an image has every kernel that the launch table lists for this program.
fn holds_every_kernel(program: &Program, image: &[u8]) -> Result<(), String> {
    let ptx = std::str::from_utf8(image).ok();
    let kernels = match ptx {
        Some(text) => {
            let entries = text.split(".entry ").skip(1);
            entries
                .map(|rest| rest.split('(').next().unwrap_or_default().trim().to_owned())
                .collect()
        }
        None => elf::kernels(image)?,
    };
    let (_, declared) = program.kernels();
    let missing: Vec<&str> = declared
        .iter()
        .map(|entry| entry.kernel)
        .filter(|kernel| !kernels.iter().any(|known| known == kernel))
        .collect();
    if missing.is_empty() {
        Ok(())
    } else {
        Err(format!(
            "has no {}, which the launch table names; it has {}",
            missing.join(", "),
            kernels.join(", ")
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &'static str) -> Source<'static> {
        Source {
            file: "add.cu",
            text,
            headers: Vec::new(),
            options: Vec::new(),
        }
    }

    const IMAGE: &[u8] = b"\x7fELF\x02\x01an image";

    /// A folder with one program, made from `source("text")`.
    fn folder(folder: &Path) -> Prebuilt {
        listing(folder, "add.cubin", IMAGE)
    }

    /// A folder whose index lists one program in this file, and the file `add.cubin`.
    fn listing(folder: &Path, file: &str, image: &[u8]) -> Prebuilt {
        std::fs::write(folder.join("add.cubin"), image).unwrap();
        let index = Index {
            nvrtc: (13, 0),
            programs: vec![Entry {
                program: "add".to_owned(),
                architecture: "sm_90a".to_owned(),
                source: Key::of_source(&source("text"), "sm_90a").to_string(),
                file: file.to_owned(),
                sum: sum(image),
                log: "its log".to_owned(),
            }],
        };
        let text = serde_json::to_string(&index).unwrap();
        std::fs::write(folder.join(INDEX), text).unwrap();
        Prebuilt::at(folder.to_owned()).unwrap()
    }

    fn add() -> &'static Program {
        PROGRAMS.iter().find(|p| p.name == "add").unwrap()
    }

    #[test]
    fn a_program_is_taken_by_name_architecture_and_source() {
        let dir = tempfile::tempdir().unwrap();
        let prebuilt = folder(dir.path());
        let read = |text, architecture| prebuilt.read(add(), &source(text), architecture);
        let found = read("text", "sm_90a").unwrap().expect("it is there");
        assert_eq!((&found.image[..], &found.log[..]), (IMAGE, "its log"));
        assert_eq!(read("text", "sm_80").unwrap(), None);
        assert_eq!(read("other", "sm_90a").unwrap(), None);
        let other = PROGRAMS.iter().find(|p| p.name != "add").unwrap();
        assert_eq!(
            prebuilt.read(other, &source("text"), "sm_90a").unwrap(),
            None
        );
        assert_eq!(
            Prebuilt::default()
                .read(add(), &source("text"), "sm_90a")
                .unwrap(),
            None
        );

        let said = prebuilt.lacks(add(), "sm_90a", None);
        assert!(said.contains("another source"), "{said}");
        let said = prebuilt.lacks(add(), "sm_80", Some((13, 1)));
        assert!(said.contains("sm_90a"), "{said}");
        let said = prebuilt.lacks(add(), "sm_90a", Some((12, 8)));
        assert!(said.contains("too old"), "{said}");
    }

    #[test]
    fn a_driver_loads_code_that_is_not_newer() {
        let dir = tempfile::tempdir().unwrap();
        let prebuilt = folder(dir.path());
        for (driver, cubin, ptx) in [
            ((12, 9), false, false),
            ((13, 0), true, true),
            ((13, 1), true, true),
            ((14, 0), true, true),
        ] {
            assert_eq!(prebuilt.loads(Some(driver), "sm_90a"), cubin, "{driver:?}");
            assert_eq!(
                prebuilt.loads(Some(driver), "compute_80"),
                ptx,
                "{driver:?}"
            );
        }
        assert!(driver_loads((13, 0), (13, 1), false) && !driver_loads((13, 0), (13, 1), true));
    }

    #[test]
    fn an_index_names_cubins_beside_it_only() {
        let dir = tempfile::tempdir().unwrap();
        let read = |file: &str, image: &[u8]| {
            let prebuilt = listing(dir.path(), file, image);
            let error = prebuilt.read(add(), &source("text"), "sm_90a").unwrap_err();
            error.to_string()
        };
        for file in ["/dev/zero", "../add.cubin", "a/../add.cubin", "", "."] {
            assert!(read(file, IMAGE).contains("no file beside it"), "{file}");
        }
        assert!(read("add.cubin", b"PTX").contains("ELF"));
    }

    #[test]
    fn a_damaged_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let prebuilt = folder(dir.path());
        let path = dir.path().join("add.cubin");
        let read = || prebuilt.read(add(), &source("text"), "sm_90a").unwrap_err();
        std::fs::write(&path, b"An image").unwrap();
        assert!(read().to_string().contains("add.cubin"));
        std::fs::remove_file(&path).unwrap();
        assert!(read().to_string().contains("add.cubin"));
    }

    #[test]
    fn a_named_folder_without_an_index_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let named = |name: &str| (name == Prebuilt::VARIABLE).then(|| dir.path().into());
        let error = Prebuilt::new(named).unwrap_err().to_string();
        assert!(error.contains(INDEX), "{error}");
        std::fs::write(dir.path().join(INDEX), "{").unwrap();
        let error = Prebuilt::new(named).unwrap_err().to_string();
        assert!(error.contains("no index"), "{error}");
        // No folder is named, and there is none beside the tests.
        assert!(Prebuilt::new(|_| None).unwrap().describe().is_none());
    }

    #[test]
    fn a_missing_kernel_is_told() {
        let names: Vec<&str> = add().kernels().1.iter().map(|entry| entry.kernel).collect();
        let ptx = |names: &[&str]| -> String {
            let entry = |name: &&str| format!(".visible .entry {name}(\n");
            names.iter().map(entry).collect()
        };
        assert_eq!(holds_every_kernel(add(), ptx(&names).as_bytes()), Ok(()));
        let error = holds_every_kernel(add(), ptx(&names[1..]).as_bytes()).unwrap_err();
        assert!(error.contains(names[0]), "{error}");
    }
}
