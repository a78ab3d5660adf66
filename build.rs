//! Embeds the CUDA kernels' sources in the binary, as a table of (file name, text). Runs no compiler.

use std::fmt::Write;
use std::path::Path;

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    let folder =
        Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("kernels");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder kernels/ is part of the source")
        .map(|entry| entry.expect("kernels/ can be listed").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu" || e == "cuh"))
        .collect();
    files.sort();
    let mut table = String::from("&[\n");
    for file in files {
        let name = file
            .file_name()
            .expect("a file has a name")
            .to_string_lossy();
        writeln!(table, "    ({name:?}, include_str!({file:?})),").expect("writing to a string");
    }
    table += "]\n";
    let out = Path::new(&std::env::var("OUT_DIR").expect("cargo sets it")).join("kernels.rs");
    std::fs::write(out, table).expect("OUT_DIR can be written");
}
