//! What the fuzz targets share: mutated bytes as a file, and a look at everything in a data set.

use arcface_cu::data::{Dataset, Image};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use tempfile::TempDir;

/// A folder of this process's own, in memory where there is such a place.
pub fn folder() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let memory = Path::new("/dev/shm");
    let make = || match memory.is_dir() {
        true => tempfile::tempdir_in(memory),
        false => tempfile::tempdir(),
    };
    FOLDER.get_or_init(|| make().expect("a folder")).path()
}

/// `data` as a file of that name, alone in [`folder`].
pub fn file(name: &str, data: &[u8]) -> PathBuf {
    let path = folder().join(name);
    fs::write(&path, data).expect("a file");
    path
}

/// Opens what is at `path` as a data set, and reads all of it.
pub fn read_all(path: &Path) {
    let Ok(set) = arcface_cu::data::open(path) else {
        return;
    };
    look(&*set);
}

/// Reads every image of a data set.
pub fn look(set: &dyn Dataset) {
    let mut image = Image::default();
    for index in 0..set.len() {
        assert!((set.label(index) as usize) < set.classes());
        let _ = set.read(index, &mut image);
        let _ = set.encoded(index);
        let _ = set.describe(index);
    }
}
