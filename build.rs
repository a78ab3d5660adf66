//! Embeds the CUDA kernels' sources in the binary, and writes each kernel's launch struct. Runs no compiler.
//!
//! Two files are written: `kernels.rs`, (file name, text) of every file in `kernels/`; and `launch.rs`, with a Rust struct
//! for every struct that a kernel takes, one for the parameters of every `extern "C" __global__` function, by their names,
//! and the table of all kernels.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};

/// The visibility of the launch structs.
const SEEN: &str = "pub(in crate::backend::cuda)";

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
    let mut structs = BTreeMap::new();
    let mut kernels = Vec::new();
    for path in &files {
        let file = path.file_name().expect("a file has a name");
        let file = file.to_str().expect("kernel files have plain names");
        line(
            &mut sources,
            format_args!("    ({file:?}, include_str!({path:?})),"),
        );
        let text = std::fs::read_to_string(path).expect("a kernel file is text");
        let code = without_comments(&text);
        read_structs(file, &code, &mut structs);
        kernels.extend(read_kernels(file, &code));
    }
    let launch = launch_structs(&structs, &kernels);
    let out = PathBuf::from(std::env::var("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("kernels.rs"), sources + "]\n").expect("OUT_DIR can be written");
    std::fs::write(out.join("launch.rs"), launch).expect("OUT_DIR can be written");
}

/// Adds a line.
fn line(text: &mut String, line: std::fmt::Arguments<'_>) {
    writeln!(text, "{line}").expect("writing to a string");
}

/// The text without `//` comments; the kernels have no other kind.
fn without_comments(text: &str) -> String {
    let line = |line: &str| line.split("//").next().unwrap_or_default().to_string() + "\n";
    text.lines().map(line).collect()
}

/// A field or parameter: its name, its Rust type, and its size in bytes.
struct Field {
    name: String,
    kind: String,
    bytes: u64,
}

/// The Rust type and the size of a plain C type, given without the name: a pointer, u32, u64 or float.
fn plain(kind: &str) -> Option<(&'static str, u64)> {
    if kind.contains('*') {
        return Some(("Address", 8));
    }
    match kind.split_whitespace().find(|word| *word != "const") {
        Some("u64") => Some(("u64", 8)),
        Some("u32") => Some(("u32", 4)),
        Some("float") => Some(("f32", 4)),
        _ => None,
    }
}

/// Splits `const float* x` into its type and its name.
fn declaration(text: &str) -> (&str, &str) {
    let text = text.trim();
    let is_name = |c: char| c.is_alphanumeric() || c == '_';
    let at = text.rfind(|c| !is_name(c)).map_or(0, |at| at + 1);
    (text[..at].trim(), &text[at..])
}

/// The structs in a file whose fields are all plain, by name.
fn read_structs(file: &str, code: &str, structs: &mut BTreeMap<String, Vec<Field>>) {
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
        // Any other struct can be used inside a kernel only: as a parameter it is unknown, which stops the build.
        if let Some(fields) = read_fields(body) {
            let known = structs.insert(name.to_string(), padded(file, name, fields));
            assert!(known.is_none(), "{file}: struct {name} is defined twice");
        }
    }
}

/// `u32 n, h; float* x;` as fields, if all are plain.
fn read_fields(body: &str) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    for group in body.split(';').map(str::trim).filter(|g| !g.is_empty()) {
        let mut names = group.split(',');
        let (kind, first) = declaration(names.next()?);
        let (kind, bytes) = plain(kind)?;
        for name in std::iter::once(first).chain(names.map(str::trim)) {
            fields.push(Field {
                name: name.to_string(),
                kind: kind.to_string(),
                bytes,
            });
        }
    }
    Some(fields)
}

/// The fields, and the padding that C puts at the end as one more field, so that every byte of the Rust struct is
/// initialised.
fn padded(file: &str, name: &str, mut fields: Vec<Field>) -> Vec<Field> {
    let (mut size, mut align) = (0u64, 4);
    for field in &fields {
        assert!(
            size.is_multiple_of(field.bytes),
            "{file}: struct {name} has a hole before {}: order its fields by size",
            field.name
        );
        align = align.max(field.bytes);
        size += field.bytes;
    }
    if !size.is_multiple_of(align) {
        fields.push(Field {
            name: "padding".to_string(),
            kind: "u32".to_string(),
            bytes: 4,
        });
    }
    fields
}

/// A kernel's file, its name and its parameters as they are declared.
struct Kernel {
    file: String,
    name: String,
    params: Vec<String>,
}

/// Each `extern "C" __global__` function of a file.
fn read_kernels(file: &str, code: &str) -> Vec<Kernel> {
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
        let name = before
            .split_whitespace()
            .last()
            .expect("a kernel has a name");
        kernels.push(Kernel {
            file: file.to_string(),
            name: name.to_string(),
            params: params.split(',').map(|p| p.trim().to_string()).collect(),
        });
    }
    kernels
}

/// The structs of all parameters, the structs of all kernels, and the table of kernels.
fn launch_structs(structs: &BTreeMap<String, Vec<Field>>, kernels: &[Kernel]) -> String {
    let mut text = String::new();
    let mut used = Vec::new();
    let mut table = String::from("pub const KERNELS: &[KernelEntry] = &[\n");
    for (at, kernel) in kernels.iter().enumerate() {
        let Kernel { file, name, .. } = kernel;
        let fields: Vec<Field> = (kernel.params.iter())
            .map(|param| parameter(kernel, param, structs, &mut used))
            .collect();
        let kernel = camel_case(name);
        write_struct(
            &mut text,
            &kernel,
            &fields,
            &format!("`{name}` of {file}."),
            "",
        );
        line(&mut text, format_args!("impl Kernel for {kernel} {{"));
        line(&mut text, format_args!("    const ENTRY: usize = {at};"));
        line(
            &mut text,
            format_args!("    const NAME: &'static str = {name:?};"),
        );
        let args: Vec<String> = fields
            .iter()
            .map(|f| format!("value(&self.{})", f.name))
            .collect();
        line(
            &mut text,
            format_args!("    fn with_args<R>(&self, launch: impl FnOnce(&[&[u8]]) -> R) -> R {{"),
        );
        line(
            &mut text,
            format_args!("        launch(&[{}])", args.join(", ")),
        );
        line(&mut text, format_args!("    }}\n}}"));
        let numbers = numbers(&fields, structs);
        let params: Vec<u64> = fields.iter().map(|field| field.bytes).collect();
        line(
            &mut table,
            format_args!(
                "    KernelEntry {{ file: {file:?}, kernel: {name:?}, params: &{params:?}, numbers: &[{numbers}] }},"
            ),
        );
    }
    used.sort();
    used.dedup();
    for name in used {
        let fields = &structs[&name];
        write_struct(
            &mut text,
            &name,
            fields,
            &format!("`struct {name}` of the kernels."),
            "#[repr(C)]\n",
        );
        let bytes: u64 = fields.iter().map(|field| field.bytes).sum();
        line(
            &mut text,
            format_args!("const _: () = assert!(size_of::<{name}>() == {bytes});"),
        );
        line(
            &mut text,
            format_args!(
                "// SAFETY: the fields are plain and fill the struct, as the assertion above says."
            ),
        );
        line(&mut text, format_args!("unsafe impl Plain for {name} {{}}"));
    }
    let most = kernels
        .iter()
        .map(|kernel| kernel.params.len())
        .max()
        .unwrap_or_default();
    let docs = "/// Parameters of the kernel that has the most.";
    line(
        &mut text,
        format_args!("{docs}\n{SEEN} const MOST_PARAMS: usize = {most};"),
    );
    text + "/// All kernels.\n" + &table + "];\n"
}

/// The numbers that a kernel takes, as the table lists them: its parameters, and the fields of those that are structs.
fn numbers(params: &[Field], structs: &BTreeMap<String, Vec<Field>>) -> String {
    let mut numbers = String::new();
    for (arg, param) in params.iter().enumerate() {
        let inside = structs.get(&param.kind);
        let mut at = 0;
        for field in inside.map_or(std::slice::from_ref(param), Vec::as_slice) {
            let Field { name, kind, bytes } = field;
            let name = match inside {
                Some(_) => format!("{}.{name}", param.name),
                None => name.clone(),
            };
            if field.name != "padding" {
                write!(
                    numbers,
                    "Number {{ name: {name:?}, kind: {kind:?}, arg: {arg}, at: {at}, bytes: {bytes} }}, "
                )
                .expect("writing to a string");
            }
            at += bytes;
        }
    }
    numbers
}

fn write_struct(text: &mut String, name: &str, fields: &[Field], docs: &str, attributes: &str) {
    line(
        text,
        format_args!("/// {docs}\n{attributes}#[derive(Clone, Copy, Debug)]"),
    );
    line(text, format_args!("{SEEN} struct {name} {{"));
    for Field { name, kind, .. } in fields {
        line(text, format_args!("    {SEEN} {name}: {kind},"));
    }
    line(text, format_args!("}}"));
}

/// `conv_fprop` as `ConvFprop`.
fn camel_case(name: &str) -> String {
    name.split('_')
        .flat_map(|word| {
            let mut letters = word.chars();
            let first = letters.next().map(|c| c.to_ascii_uppercase());
            first.into_iter().chain(letters)
        })
        .collect()
}

/// One parameter as a field. Its struct, if it is one, is added to `used`.
fn parameter(
    kernel: &Kernel,
    param: &str,
    structs: &BTreeMap<String, Vec<Field>>,
    used: &mut Vec<String>,
) -> Field {
    let (kind, name) = declaration(param);
    // The host fills arrays of structs, too, and passes a pointer to them.
    let target = kind
        .trim_start_matches("const ")
        .trim_end_matches('*')
        .trim();
    if structs.contains_key(target) {
        used.push(target.to_string());
    }
    let (kind, bytes) = plain(kind).unwrap_or_else(|| {
        let kind = kind.trim_start_matches("const ").trim();
        let (kind, fields) = structs.get_key_value(kind).unwrap_or_else(|| {
            let Kernel { file, name, .. } = kernel;
            panic!(
                "{file}: {name}: parameter {param:?} must be a pointer, u32, u64, float or a struct of those"
            )
        });
        (kind.as_str(), fields.iter().map(|field| field.bytes).sum())
    });
    Field {
        name: name.to_string(),
        kind: kind.to_string(),
        bytes,
    }
}
