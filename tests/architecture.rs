//! The plan of the house, read off the sources: who may use whom, who names CUDA, reads arguments, prints, is unsafe.
//! Comments, strings and tests inside the sources do not count.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// What each top-level module may use besides itself, `error` and `random`. Everything that is not here is a command
/// (or `cli`) and may use all of these.
const ARROWS: [(&str, &[&str]); 14] = [
    ("error", &[]),
    ("random", &[]),
    ("fnv", &[]),
    ("framing", &[]),
    ("own_file", &[]),
    ("data", &["fnv", "framing", "own_file"]),
    ("verification", &[]),
    ("report", &["framing", "verification"]),
    ("backend", &["data", "fnv", "own_file"]),
    ("optim", &["backend"]),
    ("graph", &["backend", "optim"]),
    ("models", &["backend", "graph"]),
    ("convention", &["graph", "optim"]),
    ("head", &["backend"]),
];

/// The commands and what carries them; `cli` and `main` alone stand above.
const COMMANDS: [&str; 14] = [
    "train",
    "eval",
    "embed",
    "embedder",
    "search",
    "demo",
    "checkpoint",
    "config",
    "presets",
    "pack",
    "convert",
    "import",
    "export",
    "plan",
];

/// Modules that may print: the commands, not what carries them.
const PRINTERS: [&str; 9] = [
    "main", "cli", "train", "eval", "embed", "demo", "pack", "convert", "plan",
];

/// Where `unsafe` may stand outside `backend`: a memory map, and a C library's decoder.
const UNSAFE: [&str; 2] = ["data/map.rs", "data/blosc.rs"];

/// Lines of a file, its tests aside.
const LONGEST: usize = 660;

struct Source {
    /// Below src, with `/`.
    path: String,
    text: String,
    /// Without comments, literals and test modules.
    code: String,
}

impl Source {
    /// Modules between the crate's root and this one's inside.
    fn depth(&self) -> usize {
        let folders = self.path.matches('/').count();
        folders + usize::from(!self.path.ends_with("/mod.rs"))
    }

    fn module(&self) -> &str {
        let first = self.path.split('/').next().expect("a path has a part");
        first.trim_end_matches(".rs")
    }

    /// Lines of `code` that hold one of the words as a whole.
    fn lines_with(&self, words: &[&str]) -> Vec<String> {
        let lines = self.code.lines().enumerate();
        let found = lines.filter(|(_, line)| words.iter().any(|word| holds(line, word)));
        found
            .map(|(i, line)| format!("src/{}:{}: {}", self.path, i + 1, line.trim()))
            .collect()
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Whether `line` holds `word` with no letter before or after it.
fn holds(line: &str, word: &str) -> bool {
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        let after = line[at + word.len()..].chars().next();
        let open = |c: Option<char>| !c.is_some_and(is_word);
        open(before) && (open(after) || !word.ends_with(is_word))
    })
}

/// Replaces comments and literals by spaces; line breaks stay.
fn strip(text: &str) -> String {
    let bytes: Vec<char> = text.chars().collect();
    let at = |i: usize| bytes.get(i).copied().unwrap_or('\0');
    let mut code = String::with_capacity(text.len());
    let mut i = 0;
    while i < bytes.len() {
        let begin = i;
        match (at(i), at(i + 1)) {
            ('/', '/') => {
                while i < bytes.len() && at(i) != '\n' {
                    i += 1;
                }
            }
            ('/', '*') => {
                let mut depth = 0;
                while i < bytes.len() {
                    match (at(i), at(i + 1)) {
                        ('/', '*') => (depth, i) = (depth + 1, i + 2),
                        ('*', '/') => (depth, i) = (depth - 1, i + 2),
                        _ => i += 1,
                    }
                    if depth == 0 {
                        break;
                    }
                }
            }
            ('r', '"' | '#') if begin == 0 || !is_word(at(begin - 1)) || at(begin - 1) == 'b' => {
                let hashes = (i + 1..).take_while(|j| at(*j) == '#').count();
                i += 1 + hashes;
                if at(i) == '"' {
                    i += 1;
                    let closes = |i: usize| at(i) == '"' && (1..=hashes).all(|j| at(i + j) == '#');
                    while i < bytes.len() && !closes(i) {
                        i += 1;
                    }
                    i += 1 + hashes;
                }
            }
            ('"', _) => {
                i += 1;
                while i < bytes.len() && at(i) != '"' {
                    i += if at(i) == '\\' { 2 } else { 1 };
                }
                i += 1;
            }
            // A character, not a lifetime.
            ('\'', c) if c == '\\' || at(i + 2) == '\'' => {
                i += if c == '\\' { 3 } else { 2 };
                while i < bytes.len() && at(i) != '\'' {
                    i += 1;
                }
                i += 1;
            }
            (c, _) => {
                code.push(c);
                i += 1;
                continue;
            }
        }
        let gone = &bytes[begin..i.min(bytes.len())];
        code.extend(gone.iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    }
    code
}

/// Blanks the block or the `mod x;` behind each `#[cfg(test)]`.
fn without_tests(code: &str) -> String {
    let mut kept = String::with_capacity(code.len());
    let mut rest = code;
    while let Some(at) = rest.find("#[cfg(test)]") {
        kept += &rest[..at];
        let mut depth = 0;
        let end = rest[at..].char_indices().find_map(|(i, c)| {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            (depth == 0 && matches!(c, '}' | ';')).then_some(at + i + 1)
        });
        let end = end.unwrap_or(rest.len());
        kept.extend(rest[at..end].chars().filter(|c| *c == '\n'));
        rest = &rest[end..];
    }
    kept + rest
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    for entry in entries {
        let path = entry.expect("a folder's entry").path();
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// All sources but files of tests alone.
fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    files.sort();
    let tests = |path: &Path| path.file_stem().is_some_and(|stem| stem == "tests");
    let sources: Vec<Source> = (files.iter().filter(|path| !tests(path)))
        .map(|file| {
            let text = std::fs::read_to_string(file).expect("a source");
            let path = file.strip_prefix(&root).expect("below src");
            Source {
                path: path.to_str().expect("a plain name").replace('\\', "/"),
                code: without_tests(&strip(&text)),
                text,
            }
        })
        .collect();
    assert!(sources.len() > 30, "only {} sources found", sources.len());
    sources
}

#[track_caller]
fn nobody(rule: &str, sinners: Vec<String>) {
    assert!(sinners.is_empty(), "{rule}:\n{}", sinners.join("\n"));
}

/// Modules of this crate that code `depth` modules below its root names by `crate::x` or `crate::{x, y::z}`, or with as
/// many `super::` in the place of `crate::`.
fn used(code: &str, depth: usize) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let supers = "super::".repeat(depth);
    let roots = code
        .match_indices("crate::")
        .chain(code.match_indices(&supers));
    for (at, word) in roots {
        let before = code[..at].chars().next_back();
        // `super::super::x` of a file two levels down is found where it begins.
        if before.is_some_and(is_word) || word != "crate::" && before == Some(':') {
            continue;
        }
        let rest = &code[at + word.len()..];
        let name = |text: &str| -> String {
            text.trim_start()
                .chars()
                .take_while(|c| is_word(*c))
                .collect()
        };
        if let Some(list) = rest.strip_prefix('{') {
            let (mut depth, mut begins) = (0, true);
            for (i, c) in list.char_indices() {
                if begins && !c.is_whitespace() {
                    names.insert(name(&list[i..]));
                    begins = false;
                }
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => begins = true,
                    _ => {}
                }
            }
        } else {
            names.insert(name(rest));
        }
    }
    // Types and functions at the crate's root stand for no module.
    names.retain(|name| name.starts_with(char::is_lowercase));
    names
}

#[test]
fn arrows_point_down() {
    let mut sinners = Vec::new();
    for source in sources() {
        let module = source.module();
        if ["lib", "main", "cli"].contains(&module) {
            continue;
        }
        let allowed = ARROWS.iter().find(|(name, _)| *name == module);
        let Some((_, allowed)) = allowed else {
            if !COMMANDS.contains(&module) {
                sinners.push(format!(
                    "src/{}: give {module} its place in this test",
                    source.path
                ));
            }
            if used(&source.code, source.depth()).contains("cli") {
                sinners.push(format!("src/{} uses cli", source.path));
            }
            continue;
        };
        for name in used(&source.code, source.depth()) {
            let base = ["error", "random", module].contains(&name.as_str());
            if !base && !allowed.contains(&name.as_str()) {
                sinners.push(format!("src/{} uses {name}", source.path));
            }
        }
    }
    nobody("a module uses only what stands below it", sinners);
}

#[test]
fn only_the_cuda_backend_names_cuda() {
    let outside = |source: &Source| !source.path.starts_with("backend/cuda/");
    let words = ["cudarc", "nvrtc", "NVRTC_", "CUstream", "LaunchConfig"];
    let sinners = sources().into_iter().filter(outside);
    let sinners = sinners
        .flat_map(|source| source.lines_with(&words))
        .collect();
    nobody("only backend::cuda names cudarc or a kernel", sinners);
}

#[test]
fn only_the_command_line_reads_arguments_and_environment() {
    let outside = |source: &Source| !["main", "cli"].contains(&source.module());
    let words = [
        "env::args",
        "env::args_os",
        "env::var",
        "env::var_os",
        "env::vars",
        "env::vars_os",
    ];
    let sinners = sources().into_iter().filter(outside);
    let sinners = sinners
        .flat_map(|source| source.lines_with(&words))
        .collect();
    nobody("only cli reads argv and env", sinners);
}

#[test]
fn only_the_commands_print() {
    let outside = |source: &Source| !PRINTERS.contains(&source.module());
    let words = [
        "print!",
        "println!",
        "eprint!",
        "eprintln!",
        "dbg!",
        "stdout()",
        "stderr()",
    ];
    let sinners = sources().into_iter().filter(outside);
    let sinners = sinners
        .flat_map(|source| source.lines_with(&words))
        .collect();
    nobody("only the commands print", sinners);
}

#[test]
fn unsafe_lives_in_the_backend() {
    let outside =
        |source: &Source| source.module() != "backend" && !UNSAFE.contains(&&source.path[..]);
    let sinners = sources().into_iter().filter(outside);
    let sinners = sinners
        .flat_map(|source| source.lines_with(&["unsafe"]))
        .collect();
    nobody(
        "unsafe lives in backend alone, but for a memory map and a C decoder",
        sinners,
    );
}

#[test]
fn no_file_is_long() {
    let long = sources().into_iter().filter_map(|source| {
        let tests = source.text.find("#[cfg(test)]\nmod tests {");
        let lines = source.text[..tests.unwrap_or(source.text.len())]
            .lines()
            .count();
        (lines > LONGEST).then(|| format!("src/{}: {lines} lines", source.path))
    });
    nobody(
        "a file is split at a natural seam before it is this long",
        long.collect(),
    );
}

/// The reader of sources itself: what it must see, and what it must not.
#[test]
fn stripping_leaves_code_alone() {
    let text = r####"
use crate::{a, b::{c, d}, E}; // unsafe
/* unsafe /* nested */ unsafe */
fn f<'a>(x: &'a str) -> char { let s = r#"unsafe " "#; let t = "\" unsafe"; g('"', '\'', '{'); crate::h::i() }
#[cfg(test)]
mod tests { fn t() { unsafe { crate::z::y() } } }
fn g() { unsafe {} }
"####;
    let code = without_tests(&strip(text));
    assert_eq!(code.matches("unsafe").count(), 1, "{code}");
    assert_eq!(code.lines().count(), text.lines().count());
    assert!(
        code.lines()
            .nth(6)
            .is_some_and(|line| holds(line, "unsafe")),
        "{code}"
    );
    let names: Vec<String> = used(&code, 1).into_iter().collect();
    assert_eq!(names, ["a", "b", "h"]);
    let code = "use super::{a, b::c}; super::super::d::e(); use super::super::{f, g};";
    let names = |depth| used(code, depth).into_iter().collect::<Vec<_>>();
    assert_eq!(names(2), ["d", "f", "g"]);
    assert_eq!(names(1)[..2], ["a", "b"]);
    assert!(!holds("an_unsafe_name", "unsafe") && !holds("eprintln!(x)", "println!"));
    assert!(holds("x; println!()", "println!") && holds("io::stdout()", "stdout()"));
}
