//! Embeds the CUDA kernels' sources in the binary, and reads their signatures for the launch table. Runs no compiler.
//!
//! Two tables are written: `kernels.rs`, (file name, text) of every file in `kernels/`, and `signatures.rs`, the
//! parameters of every `extern "C" __global__` function, with the sizes of the structs among them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo::rerun-if-changed=kernels");
    println!("cargo::rerun-if-changed=build.rs");
    let folder =
        Path::new(&std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it")).join("kernels");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .expect("the folder kernels/ is part of the source")
        .map(|entry| entry.expect("kernels/ can be listed").path())
        .filter(|path| path.extension().is_some_and(|e| e == "cu" || e == "cuh"))
        .collect();
    files.sort();

    let mut sources = String::from("&[\n");
    let mut signatures = String::from("&[\n");
    let mut structs = BTreeMap::new();
    let mut kernels = Vec::new();
    for path in &files {
        let file = path.file_name().expect("a file has a name");
        let file = file.to_str().expect("kernel files have plain names");
        writeln!(sources, "    ({file:?}, include_str!({path:?})),").expect("writing to a string");
        let text = std::fs::read_to_string(path).expect("a kernel file is text");
        let code = without_comments(&text);
        read_structs(file, &code, &mut structs);
        kernels.extend(read_kernels(file, &code));
    }
    for (file, kernel, params) in kernels {
        let params: Vec<String> = (params.iter())
            .map(|param| parameter(&file, &kernel, param, &structs))
            .collect();
        writeln!(
            signatures,
            "    Signature {{ file: {file:?}, kernel: {kernel:?}, params: &[{}] }},",
            params.join(", ")
        )
        .expect("writing to a string");
    }
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("kernels.rs"), sources + "]\n").expect("OUT_DIR can be written");
    std::fs::write(out.join("signatures.rs"), signatures + "]\n").expect("OUT_DIR can be written");
}

/// The text with `//` comments cut off; the kernels use no others.
fn without_comments(text: &str) -> String {
    let line = |line: &str| line.split("//").next().unwrap_or_default().to_string() + "\n";
    text.lines().map(line).collect()
}

/// Bytes of a field or parameter of a plain type; pointers and u64 have 8, everything else of ours 4.
fn size_of(declaration: &str) -> Option<(&'static str, u64)> {
    if declaration.contains('*') {
        return Some(("Address", 8));
    }
    match declaration.split_whitespace().find(|word| *word != "const") {
        Some("u64") => Some(("U64", 8)),
        Some("u32") => Some(("U32", 4)),
        Some("float") => Some(("F32", 4)),
        _ => None,
    }
}

/// Sizes of the structs in a file, by the layout rules of C.
fn read_structs(file: &str, code: &str, structs: &mut BTreeMap<String, u64>) {
    for (at, _) in code.match_indices("struct ") {
        let rest = &code[at + "struct ".len()..];
        let Some((name, body)) = rest.split_once('{') else {
            continue;
        };
        let name = name.trim();
        if !name.chars().all(|c| c.is_alphanumeric()) {
            continue;
        }
        let body = body.split('}').next().unwrap_or_default();
        let (mut size, mut align) = (0u64, 4u64);
        let mut plain = true;
        for field in body.split(';').map(str::trim).filter(|f| !f.is_empty()) {
            let Some((_, bytes)) = size_of(field) else {
                plain = false;
                break;
            };
            align = align.max(bytes);
            let names = field.split(',').count() as u64;
            size = size.next_multiple_of(bytes) + names * bytes;
        }
        // A struct of another shape stays inside its kernel: as a parameter it has no size, which stops the build.
        if plain {
            let known = structs.insert(name.to_string(), size.next_multiple_of(align));
            assert!(known.is_none(), "{file}: struct {name} is defined twice");
        }
    }
}

/// (file, kernel, parameters) of each `extern "C" __global__` function.
fn read_kernels(file: &str, code: &str) -> Vec<(String, String, Vec<String>)> {
    let mut kernels = Vec::new();
    for (at, _) in code.match_indices("extern \"C\"") {
        let head = &code[at..];
        let end = head
            .find('{')
            .unwrap_or_else(|| panic!("{file}: a kernel without a body"));
        let head = head[..end].trim_end();
        assert!(
            head.contains("__global__"),
            "{file}: extern \"C\" is for kernels alone"
        );
        let head = head
            .strip_suffix(')')
            .unwrap_or_else(|| panic!("{file}: a kernel's head must end with ')': {head}"));
        // The parameter list is the last pair of brackets: __launch_bounds__ has one of its own.
        let open = head.rfind('(').expect("a kernel has a parameter list");
        let (before, params) = (&head[..open], &head[open + 1..]);
        let kernel = before
            .split_whitespace()
            .last()
            .expect("a kernel has a name");
        let params = params.split(',').map(|p| p.trim().to_string()).collect();
        kernels.push((file.to_string(), kernel.to_string(), params));
    }
    kernels
}

/// The launch table's entry for one parameter.
fn parameter(file: &str, kernel: &str, param: &str, structs: &BTreeMap<String, u64>) -> String {
    if let Some((kind, _)) = size_of(param) {
        return format!("Param::{kind}");
    }
    let name = param
        .split_whitespace()
        .find(|word| *word != "const")
        .unwrap_or_default();
    let size = structs.get(name).unwrap_or_else(|| {
        panic!("{file}: {kernel}: parameter {param:?} must be a pointer, u32, u64, float or a struct of those")
    });
    format!("Param::Struct {{ name: {name:?}, bytes: {size} }}")
}
