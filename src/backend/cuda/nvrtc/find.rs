//! Where NVRTC may be: the toolkit, Python's packages, this project's own build folder.

use crate::base::text::shown;
use std::ffi::OsString;
use std::fmt;
use std::path::{Path, PathBuf};

/// The environment variable that names the library or its folder.
pub(super) const VARIABLE: &str = "ARCFACE_CU_NVRTC";

/// The library's file names, for the dynamic linker and in a folder.
const NAMES: [&str; 3] = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];

/// Folders below a root that may hold it: the root itself, toolkits, Python's packages for CUDA 13 and 12.
const BELOW: [&str; 6] = [
    "",
    "lib64",
    "lib",
    "targets/x86_64-linux/lib",
    "nvidia/cu13/lib",
    "nvidia/cuda_nvrtc/lib",
];

/// Where to look for NVRTC.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Search {
    /// The library or its folder; if given, nothing else is tried.
    pub explicit: Option<PathBuf>,
    /// Folders of toolkits and packages, first choice first.
    pub roots: Vec<PathBuf>,
}

impl Search {
    /// The usual places, given the environment; `variable` returns the value of a variable.
    pub fn new(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let given = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| given(name).map(PathBuf::from);
        let mut roots: Vec<PathBuf> = ["CUDA_PATH", "CUDA_HOME"]
            .into_iter()
            .filter_map(path)
            .collect();
        roots.push("/usr/local/cuda".into());
        roots.extend(children("/usr/local".as_ref(), "cuda-"));

        // In order: the active virtual environment, `.venv` in the working folder, the user's packages, the Python
        // versions of pyenv, the system's packages, and the usual places of PyTorch environments.
        let home = path("HOME");
        let in_home = |below: &str| home.as_ref().map(|home| home.join(below));
        let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"]
            .into_iter()
            .filter_map(path)
            .collect();
        roots.extend(path("CONDA_PREFIX"));
        prefixes.push(".venv".into());
        prefixes.extend(in_home(".local"));
        if let Some(pyenv) = path("PYENV_ROOT").or_else(|| in_home(".pyenv")) {
            prefixes.extend(children(&pyenv.join("versions"), ""));
        }
        prefixes.extend(["/usr/local".into(), "/usr".into()]);
        prefixes.extend(
            ["venv", ".venv", "miniconda3", "miniforge3", "anaconda3"]
                .iter()
                .filter_map(|name| in_home(name)),
        );
        for folder in children("/opt".as_ref(), "") {
            prefixes.extend([folder.join("venv"), folder.join(".venv"), folder]);
        }
        for prefix in prefixes {
            for python in children(&prefix.join("lib"), "python3") {
                roots.extend(["site-packages", "dist-packages"].map(|name| python.join(name)));
            }
        }

        // The tests install NVRTC into the build folder, which also holds the program.
        if let Ok(program) = std::env::current_exe() {
            let target = program.ancestors().find(|a| a.ends_with("target"));
            roots.extend(target.map(|target| target.join("nvrtc")));
        }
        roots.push("target/nvrtc".into());
        Search {
            explicit: path(VARIABLE),
            roots,
        }
    }

    /// The libraries to try, in order: files that exist, and bare names for the dynamic linker.
    pub(super) fn libraries(&self) -> Vec<PathBuf> {
        match &self.explicit {
            // A missing library is tried too, to get the linker's own message.
            Some(path) if !path.is_dir() => vec![absolute(path)],
            Some(folder) => in_root(folder).collect(),
            None => (NAMES.iter().map(PathBuf::from))
                .chain(self.roots.iter().flat_map(|root| in_root(root)))
                .collect(),
        }
    }
}

impl fmt::Display for Search {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(path) = &self.explicit {
            return write!(f, "only at {VARIABLE} = {}", shown(path));
        }
        write!(f, "on the dynamic linker's path for {}", NAMES.join(", "))?;
        let (there, gone): (Vec<_>, Vec<_>) = self.roots.iter().partition(|root| root.is_dir());
        for root in there {
            write!(f, ", in {}", shown(root))?;
        }
        // For places that do not exist, the number is enough.
        write!(f, "; {} other usual places do not exist", gone.len())
    }
}

/// The libraries below a root.
fn in_root(root: &Path) -> impl Iterator<Item = PathBuf> {
    let root = absolute(root);
    let folders = BELOW.iter().map(move |below| root.join(below));
    let files = folders.flat_map(|folder| NAMES.map(|name| folder.join(name)));
    files.filter(|file| file.is_file())
}

/// An absolute path: the dynamic linker opens it without a search.
fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

/// Entries of a folder that begin with `prefix`, the highest number first.
fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .collect();
    // "python3.11" stands above "python3.9".
    let numbers = |path: &PathBuf| -> Vec<u32> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let parts = name.split(|c: char| !c.is_ascii_digit());
        parts.filter_map(|part| part.parse().ok()).collect()
    };
    paths.sort_by_key(|path| std::cmp::Reverse((numbers(path), path.clone())));
    paths
}

/// The file that the dynamic linker loaded for a bare name, if the system lists loaded files.
pub(super) fn loaded(name: &Path) -> Option<PathBuf> {
    let name = name.to_str()?;
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let paths = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| &line[at..]));
    // The name may be a link to a file with a longer version number.
    let mut matching = paths.filter(|path| {
        let file = path.rsplit('/').next().unwrap_or_default();
        file.starts_with(name)
    });
    matching.next().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An empty file, with its folders.
    fn touch(path: PathBuf) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "").unwrap();
        path
    }

    #[test]
    fn the_environment_decides_where_to_look() {
        let dir = tempfile::tempdir().unwrap();
        let at = |below: &str| dir.path().join(below);
        let toolkit = touch(at("toolkit/lib64/libnvrtc.so.12"));
        let venv = touch(at(
            "venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
        ));
        let old = touch(at(
            "home/.local/lib/python3.9/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        ));
        let new = touch(at(
            "home/.local/lib/python3.11/site-packages/nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
        ));
        let pyenv = touch(at(
            "home/.pyenv/versions/3.11.7/lib/python3.11/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
        ));
        let torch = touch(at(
            "home/venv/lib/python3.12/site-packages/nvidia/cu13/lib/libnvrtc.so.13",
        ));
        let search = Search::new(|name| match name {
            "CUDA_HOME" => Some(at("toolkit").into()),
            "VIRTUAL_ENV" => Some(at("venv").into()),
            "HOME" => Some(at("home").into()),
            "CUDA_PATH" => Some("".into()),
            _ => None,
        });
        let mut found = search.libraries();
        assert_eq!(found[..3], NAMES.map(PathBuf::from));
        found.retain(|path| path.starts_with(dir.path()));
        assert_eq!(found, [toolkit, venv, new, old, pyenv, torch]);
    }

    #[test]
    fn a_place_that_is_named_is_the_only_one() {
        let dir = tempfile::tempdir().unwrap();
        let file = touch(dir.path().join("nvidia/cu13/lib/libnvrtc.so.13"));
        let search = |value: &Path| {
            let value = value.as_os_str().to_owned();
            Search::new(move |name| (name == VARIABLE).then(|| value.clone()))
        };
        assert_eq!(search(dir.path()).libraries(), std::slice::from_ref(&file));
        assert_eq!(search(&file).libraries(), std::slice::from_ref(&file));
        let gone = dir.path().join("libnvrtc.so.99");
        assert_eq!(search(&gone).libraries(), std::slice::from_ref(&gone));

        // For an empty or a missing file, the error names its path.
        for path in [&file, &gone] {
            let error = super::super::Nvrtc::open(&search(path), None, None).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(&*path.to_string_lossy()), "{text}");
            assert!(text.contains("pip install nvidia-cuda-nvrtc"), "{text}");
        }
    }
}
