//! The architecture, checked in the sources: which room may use which, and which may name CUDA, read arguments, print,
//! or use `unsafe`. Comments, strings and tests inside the sources do not count.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The rooms (top-level modules) from the top down, each with the rooms that it may use, which are always further down.
/// Every room may use `base`.
const ROOMS: [(&str, &[&str]); 18] = [
    (
        "cli",
        &[
            "demo",
            "train",
            "eval",
            "embed",
            "embedder",
            "weights",
            "report",
            "verification",
            "recipe",
            "models",
            "graph",
            "head",
            "optim",
            "backend",
            "data",
            "encoding",
        ],
    ),
    ("demo", &["eval", "recipe", "data"]),
    (
        "train",
        &[
            "embedder", "weights", "report", "recipe", "graph", "head", "optim", "backend", "data",
        ],
    ),
    (
        "eval",
        &[
            "embedder",
            "weights",
            "report",
            "verification",
            "backend",
            "data",
            "encoding",
        ],
    ),
    (
        "embed",
        &[
            "embedder",
            "report",
            "verification",
            "backend",
            "data",
            "encoding",
        ],
    ),
    ("embedder", &["weights", "graph", "backend", "data"]),
    (
        "weights",
        &[
            "recipe", "models", "graph", "optim", "backend", "data", "encoding",
        ],
    ),
    ("report", &["verification", "encoding"]),
    ("verification", &[]),
    (
        "recipe",
        &["models", "graph", "head", "optim", "backend", "data"],
    ),
    ("models", &["graph", "backend"]),
    ("graph", &["optim", "backend"]),
    ("head", &["backend"]),
    ("optim", &["backend"]),
    ("backend", &[]),
    ("data", &["encoding"]),
    ("encoding", &[]),
    ("base", &[]),
];

/// Where `unsafe` may stand outside `backend`: a C library's decoder, and the question whether a signal is ignored.
const UNSAFE: [&str; 2] = ["data/formats/blosc.rs", "cli/interrupt.rs"];

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
    /// Its path in the crate: `["data", "formats", "list"]`.
    fn place(&self) -> Vec<&str> {
        let path = self.path.trim_end_matches(".rs").trim_end_matches("/mod");
        path.split('/').filter(|part| *part != "lib").collect()
    }

    /// Everything that it names in this crate, as paths from the crate's root.
    fn named(&self) -> BTreeSet<Vec<String>> {
        named(&self.code, &self.place())
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

/// All sources, except files that hold only tests.
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

/// All paths that code at `place` names through `crate::`, `super::` and `self::`, with lists expanded.
fn named(code: &str, place: &[&str]) -> BTreeSet<Vec<String>> {
    let mut paths = BTreeSet::new();
    let roots = ["crate::", "super::", "self::"].map(|root| code.match_indices(root));
    for (at, root) in roots.into_iter().flatten() {
        let before = code[..at].chars().next_back();
        // The second `super::` of a path belongs to the first.
        if before.is_some_and(|c| is_word(c) || c == ':') {
            continue;
        }
        let mut rest = &code[at..];
        let mut depth = if root == "crate::" { 0 } else { place.len() };
        while let Some(above) = rest.strip_prefix("super::") {
            (rest, depth) = (above, depth.saturating_sub(1));
        }
        let rest = rest
            .trim_start_matches("crate::")
            .trim_start_matches("self::");
        let prefix: Vec<String> = place[..depth].iter().map(|s| s.to_string()).collect();
        expand(rest, prefix, &mut paths);
    }
    paths
}

/// The paths that `text` begins with, `a::b` or `{a, b::{c, d}}`; returns what follows them.
fn expand<'a>(
    text: &'a str,
    mut prefix: Vec<String>,
    paths: &mut BTreeSet<Vec<String>>,
) -> &'a str {
    let text = text.trim_start();
    if let Some(mut list) = text.strip_prefix('{') {
        loop {
            list = expand(list, prefix.clone(), paths).trim_start();
            if list.starts_with("as ") {
                list = list.trim_start_matches(|c| c != ',' && c != '}');
            }
            match list.strip_prefix(',') {
                Some(rest) => list = rest.trim_start(),
                None => return list.strip_prefix('}').unwrap_or(list),
            }
            // A comma after the last item.
            if let Some(rest) = list.strip_prefix('}') {
                return rest;
            }
        }
    }
    let end = text.find(|c| !is_word(c)).unwrap_or(text.len());
    if end > 0 {
        prefix.push(text[..end].to_owned());
    }
    match text[end..].strip_prefix("::") {
        Some(rest) => expand(rest, prefix, paths),
        None => {
            paths.insert(prefix);
            &text[end..]
        }
    }
}

#[test]
fn rooms_use_only_rooms_below_them() {
    for (i, (room, below)) in ROOMS.iter().enumerate() {
        for name in *below {
            let place = ROOMS.iter().position(|(room, _)| room == name);
            assert!(place > Some(i), "{name} must stand below {room}");
        }
    }
    let mut sinners = Vec::new();
    for source in sources() {
        let room = source.module();
        if ["lib", "main"].contains(&room) {
            continue;
        }
        let Some((_, below)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            sinners.push(format!(
                "src/{}: {room} has no place in this test",
                source.path
            ));
            continue;
        };
        for path in source.named() {
            // A name at the crate's root is a re-export of `base`.
            let name = path.first().map_or("", String::as_str);
            let known = ROOMS.iter().any(|(room, _)| *room == name);
            if known && name != room && name != "base" && !below.contains(&name) {
                sinners.push(format!("src/{} uses {name}", source.path));
            }
        }
    }
    nobody("a room uses only rooms below it", sinners);
}

/// The files that each file uses, except uses between a folder's `mod.rs` and the files in it: a child takes shared
/// items from its parent, and the parent declares the child.
fn uses(sources: &[Source]) -> BTreeMap<Vec<&str>, BTreeSet<Vec<&str>>> {
    let places: BTreeSet<Vec<&str>> = sources.iter().map(Source::place).collect();
    let mut graph = BTreeMap::new();
    for source in sources {
        let from = source.place();
        let mut targets = BTreeSet::new();
        for path in source.named() {
            let lengths = (1..=path.len()).rev();
            let file = lengths
                .map(|n| path[..n].to_vec())
                .find_map(|path| places.iter().find(|place| **place == path).cloned());
            if let Some(to) = file
                && !from.starts_with(&to)
                && !to.starts_with(&from)
            {
                targets.insert(to);
            }
        }
        graph.insert(from, targets);
    }
    graph
}

#[test]
fn files_use_each_other_in_no_circle() {
    let sources = sources();
    let mut graph = uses(&sources);
    // Remove the files that use none of the remaining ones, again and again. Each file left leads into a circle.
    loop {
        let left: BTreeSet<_> = graph.keys().cloned().collect();
        let before = left.len();
        graph.retain(|_, targets| targets.iter().any(|to| left.contains(to)));
        if graph.len() == before {
            break;
        }
    }
    // Then remove the files that no remaining file uses.
    loop {
        let used: BTreeSet<_> = graph.values().flatten().cloned().collect();
        let before = graph.len();
        graph.retain(|from, _| used.contains(from));
        if graph.len() == before {
            break;
        }
    }
    let sinners = graph.keys().map(|path| path.join("::")).collect();
    nobody("no file uses itself through others", sinners);
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
fn only_the_command_line_knows_clap() {
    let outside = |source: &Source| !["main", "cli"].contains(&source.module());
    let sinners = sources().into_iter().filter(outside);
    let sinners = sinners
        .flat_map(|source| source.lines_with(&["clap"]))
        .collect();
    nobody("only cli names clap", sinners);
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

/// In `cli/output.rs`, which knows what to do if nobody reads. The macros panic then, so they are not used even there.
#[test]
fn only_the_output_of_the_command_line_prints() {
    let macros = ["print!", "println!", "eprint!", "eprintln!", "dbg!"];
    let streams = ["stdout()", "stderr()"];
    let sinners = sources().into_iter().flat_map(|source| {
        let mut lines = source.lines_with(&macros);
        if source.path != "cli/output.rs" {
            lines.extend(source.lines_with(&streams));
        }
        lines
    });
    nobody("only cli/output.rs prints", sinners.collect());
}

/// A path may hold what a terminal obeys.
#[test]
fn paths_are_shown_on_one_line() {
    let sinners = sources();
    let sinners = sinners
        .iter()
        .flat_map(|source| source.lines_with(&["display()"]))
        .collect();
    nobody("messages show a path by base::text::shown", sinners);
}

#[test]
fn unsafe_lives_in_the_backend() {
    let outside =
        |source: &Source| source.module() != "backend" && !UNSAFE.contains(&&source.path[..]);
    let sinners = sources().into_iter().filter(outside);
    let sinners = sinners
        .flat_map(|source| source.lines_with(&["unsafe"]))
        .collect();
    nobody("unsafe lives in the backend, with two exceptions", sinners);
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
    let named = |code: &str, place: &[&str]| -> Vec<String> {
        named(code, place)
            .iter()
            .map(|path| path.join("::"))
            .collect()
    };
    assert_eq!(named(&code, &["x"]), ["E", "a", "b::c", "b::d", "h::i"]);
    let code = "use super::{a as z, b::{self, C}}; super::super::d::e(); self::g::h()";
    let expected = ["d::e", "x::a", "x::b::C", "x::b::self", "x::y::g::h"];
    assert_eq!(named(code, &["x", "y"]), expected);
    assert!(!holds("an_unsafe_name", "unsafe") && !holds("eprintln!(x)", "println!"));
    assert!(holds("x; println!()", "println!") && holds("io::stdout()", "stdout()"));
}
