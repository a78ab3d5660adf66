//! Environment variables. Only the command line reads them; their values are passed down.

use crate::backend::cuda::Cache;
use std::ffi::OsString;
use std::path::PathBuf;

/// The value of an environment variable.
pub(super) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

/// The cache folder, for indices and compiled kernels: the folder that `ARCFACE_CU_CACHE` names, else `arcface-cu` in
/// the user's cache folder, by the system's convention. `variable` returns the value of a variable.
pub(super) fn cache_folder(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let given = |name: &str| {
        let value = variable(name).filter(|value| !value.is_empty());
        value.map(PathBuf::from)
    };
    // By that convention, a path that is not absolute is ignored.
    let folder = |name: &str| given(name).filter(|path| path.is_absolute());
    given(Cache::VARIABLE).or_else(|| {
        folder("XDG_CACHE_HOME")
            .or_else(|| folder("LOCALAPPDATA"))
            .or_else(|| folder("HOME").map(|home| home.join(".cache")))
            .map(|cache| cache.join("arcface-cu"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn the_cache_is_where_people_or_the_system_say() {
        let root = std::env::temp_dir();
        let root = root.to_str().unwrap();
        let with = |variables: &[(&str, &str)]| {
            cache_folder(|name| {
                let found = variables.iter().find(|(known, _)| *known == name);
                found.map(|(_, value)| value.into())
            })
        };
        let (home, below) = (("HOME", root), Path::new(root).join(".cache/arcface-cu"));
        assert_eq!(with(&[]), None);
        assert_eq!(with(&[home]), Some(below.clone()));
        assert_eq!(with(&[home, ("XDG_CACHE_HOME", "here")]), Some(below));
        let local = Some(Path::new(root).join("arcface-cu"));
        assert_eq!(
            with(&[("XDG_CACHE_HOME", ""), ("LOCALAPPDATA", root)]),
            local
        );
        let named = [home, ("XDG_CACHE_HOME", root), (Cache::VARIABLE, "here")];
        assert_eq!(with(&named), Some("here".into()));
    }
}
