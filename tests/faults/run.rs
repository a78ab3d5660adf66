//! Runs of the program in folders of their own, and what must be true afterwards.

use super::cases::{CASES, Case, PREPARATION};
use super::support::picture;
use arcface_cu::data::picture::encode_jpeg;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// Whether the long form is asked for.
pub(crate) fn is_long() -> bool {
    super::support::required("ARCFACE_CU_FAULTS_LONG")
}

/// Numbers from 1 to `count`, for a call of a command: all of them in the long form, else a few, evenly spread.
pub(crate) fn spread(case: &Case, count: usize, few: usize) -> Vec<usize> {
    let few = match (is_long(), case.slow) {
        (true, false) => count,
        (true, true) => 5 * few,
        (false, false) => few,
        (false, true) => few.div_ceil(2),
    };
    let few = few.min(count);
    (0..few)
        .map(|k| 1 + (2 * k + 1) * count / (2 * few))
        .collect()
}

/// A file's contents by its path below the room.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// The calls of a run that change something, in their order: a kind, and one path or two.
#[derive(Clone, Debug, Default)]
pub(crate) struct Calls {
    changes: Vec<Vec<String>>,
    counts: BTreeMap<String, usize>,
}

impl Calls {
    pub(crate) fn read(log: &str) -> Self {
        let mut calls = Calls::default();
        for line in log.lines() {
            let words: Vec<String> = line.split('\t').map(str::to_owned).collect();
            *calls.counts.entry(words[0].clone()).or_default() += 1;
            if words[0] != "open" && words[0] != "read" {
                *calls.counts.entry("any".to_owned()).or_default() += 1;
                calls.changes.push(words);
            }
        }
        calls
    }

    /// How many there are of a kind.
    pub(crate) fn of(&self, kind: &str) -> usize {
        self.counts.get(kind).copied().unwrap_or(0)
    }

    /// Files that were given their names, themselves or with their folder, while something written to them was not synced:
    /// their paths afterwards.
    pub(crate) fn named_unsynced(&self) -> Vec<String> {
        let mut unsynced = BTreeSet::new();
        let mut found = Vec::new();
        for call in &self.changes {
            match (&call[0][..], &call[1..]) {
                ("write" | "truncate", [path]) => {
                    unsynced.insert(path.clone());
                }
                ("fsync", [path]) => {
                    unsynced.remove(path);
                }
                ("rename", [from, to]) => {
                    let inside = format!("{from}/");
                    let moved: Vec<String> = (unsynced.iter())
                        .filter(|path| *path == from || path.starts_with(&inside))
                        .cloned()
                        .collect();
                    for path in moved {
                        unsynced.remove(&path);
                        found.push(path.replacen(from, to, 1));
                    }
                }
                _ => {}
            }
        }
        found
    }
}

impl fmt::Display for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = self
            .counts
            .iter()
            .map(|(kind, count)| format!("{kind} {count}"));
        f.write_str(&counts.collect::<Vec<_>>().join(", "))
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub(crate) struct Ended {
    status: ExitStatus,
    stdout: String,
    stderr: String,
}

impl Ended {
    pub(crate) fn of(output: Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Ended {
            status: output.status,
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    pub(crate) fn is_success(&self) -> bool {
        self.status.success()
    }

    fn is_killed(&self) -> bool {
        self.status.signal() == Some(9)
    }

    pub(crate) fn says(&self, any: &[&str]) -> bool {
        any.iter().any(|words| self.stderr.contains(words))
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}", self.status, self.stdout, self.stderr)
    }
}

/// What became of runs.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tally {
    runs: usize,
    done: usize,
    failed: usize,
    killed: usize,
    /// Checks that failed.
    wrong: Vec<String>,
}

impl Tally {
    pub(crate) fn count(&mut self, ended: &Ended) {
        self.runs += 1;
        self.done += usize::from(ended.is_success());
        self.killed += usize::from(ended.is_killed());
        self.failed = self.runs - self.done - self.killed;
    }

    /// Runs a check, and goes on with the next where it fails. `what` names the fault.
    pub(crate) fn check(&mut self, what: &str, check: impl FnOnce(&mut Self)) {
        let result = panic::catch_unwind(AssertUnwindSafe(|| check(self)));
        if let Err(why) = result {
            let why = (why.downcast_ref::<String>()).map_or("", String::as_str);
            self.wrong.push(format!("{what}: {why}"));
        }
    }

    /// What was wrong.
    pub(crate) fn wrong(&self) -> &[String] {
        &self.wrong
    }

    pub(crate) fn add(&mut self, other: &Tally) {
        self.wrong.extend_from_slice(&other.wrong);
        self.runs += other.runs;
        self.done += other.done;
        self.failed += other.failed;
        self.killed += other.killed;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Tally {
            runs,
            done,
            failed,
            killed,
            wrong,
        } = self;
        let wrong = wrong.len();
        write!(
            f,
            "{runs} runs: {done} done, {failed} failed, {killed} killed; {wrong} wrong"
        )
    }
}

/// A folder with a command's inputs, in which it runs.
pub(crate) struct Room {
    folder: TempDir,
    shim: PathBuf,
}

impl Room {
    fn new(shim: &Path) -> Self {
        // Fast, and of no disk's mood.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let room = Room {
            folder: folder.unwrap(),
            shim: shim.to_owned(),
        };
        fs::create_dir(room.root()).unwrap();
        room
    }

    /// Where the command runs.
    fn root(&self) -> PathBuf {
        self.folder.path().join("root")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("log")
    }

    fn command(&self, words: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_arcface-cu"));
        command
            .args(words.split_whitespace())
            .current_dir(self.root())
            .env("ARCFACE_CU_CACHE", self.folder.path().join("cache"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub(crate) fn spawn(&self, words: &str, fault: Option<&str>) -> Child {
        let mut command = self.command(words);
        if let Some(fault) = fault {
            command
                .env("LD_PRELOAD", &self.shim)
                .env("FAULTS_ROOT", self.root())
                .env("FAULTS_AT", fault);
        }
        command.spawn().unwrap()
    }

    pub(crate) fn run(&self, words: &str, fault: Option<&str>) -> Ended {
        Ended::of(self.spawn(words, fault).wait_with_output().unwrap())
    }

    /// Runs a command that is not disturbed, and lists its calls.
    fn run_listed(&self, words: &str) -> (Ended, Calls) {
        let mut command = self.command(words);
        command
            .env("LD_PRELOAD", &self.shim)
            .env("FAULTS_ROOT", self.root())
            .env("FAULTS_LOG", self.log());
        let ended = Ended::of(command.output().unwrap());
        let log = fs::read_to_string(self.log()).unwrap_or_default();
        (ended, Calls::read(&log))
    }

    fn files(&self, names: &[&str]) -> Files {
        let mut files = Files::new();
        for name in names {
            collect(&self.root(), &self.root().join(name), &mut files);
        }
        files
    }

    /// What the case's reader says of the outputs.
    fn answer(&self, case: &Case) -> Option<String> {
        let ended = self.run(case.reader?, None);
        assert!(ended.is_success(), "{}: reading: {ended}", case.name);
        Some(ended.stdout)
    }

    /// Whether new files wait to be put into their places.
    fn is_being_exchanged(&self, case: &Case) -> bool {
        let mut outputs = case.outputs.iter();
        outputs.any(|name| self.root().join(name).join(".exchange").is_dir())
    }

    #[track_caller]
    pub(crate) fn assert_files(&self, case: &Case, expected: &Files, when: &str) {
        let (mut expected, mut found) = (expected.clone(), self.files(case.outputs));
        // Training goes on where a set cannot be verified, which it says. Then the best weights may be others, and the
        // checkpoints say so, in their headers.
        if when.contains("not verified:") {
            for files in [&mut expected, &mut found] {
                files.remove("run/eval.csv");
                files.remove("run/weights.best.safetensors");
                for (name, bytes) in files.iter_mut() {
                    if name.starts_with("run/checkpoints/") {
                        bytes.drain(..safetensors_header(bytes));
                    }
                }
            }
        }
        if let Some(difference) = difference(&expected, &found) {
            panic!("{}: {when}: {difference}", case.name);
        }
    }
}

/// The bytes before the numbers of a safetensors file.
fn safetensors_header(bytes: &[u8]) -> usize {
    let length = bytes.first_chunk().map(|&n| u64::from_le_bytes(n) as usize);
    8 + length.expect("a safetensors file")
}

/// Reads a file, or all below a folder, without locks and what killed runs leave.
fn collect(root: &Path, path: &Path, files: &mut Files) {
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            collect(root, &entry.unwrap().path(), files);
        }
        return;
    }
    let name = path
        .strip_prefix(root)
        .unwrap()
        .to_string_lossy()
        .into_owned();
    let temporary = name.ends_with(".tmp") || name.contains("/.exchange.tmp/");
    if !path.exists() || temporary || name.ends_with(".lock") {
        return;
    }
    let mut bytes = fs::read(path).unwrap();
    if name.ends_with("metrics.csv") {
        // Two columns are times.
        let text = String::from_utf8_lossy(&bytes);
        let lines = text
            .lines()
            .map(|line| line.split(',').take(6).collect::<Vec<_>>().join(","));
        bytes = lines.collect::<Vec<_>>().join("\n").into_bytes();
    }
    if name.ends_with("check.json") {
        let text = String::from_utf8_lossy(&bytes);
        let lines = text.lines().filter(|line| !line.contains("seconds"));
        bytes = lines.collect::<Vec<_>>().join("\n").into_bytes();
    }
    files.insert(name, bytes);
}

/// The first difference, in words.
fn difference(expected: &Files, found: &Files) -> Option<String> {
    let names: BTreeSet<&String> = expected.keys().chain(found.keys()).collect();
    names
        .into_iter()
        .find_map(|name| match (expected.get(name), found.get(name)) {
            (Some(_), None) => Some(format!("{name} is missing")),
            (None, Some(_)) => Some(format!("{name} is left over")),
            (Some(a), Some(b)) if a != b => Some(format!(
                "{name} differs ({} bytes, {} expected)",
                b.len(),
                a.len()
            )),
            _ => None,
        })
}

/// A run without faults.
pub(crate) struct Undisturbed {
    pub(crate) ended: Ended,
    pub(crate) calls: Calls,
    pub(crate) files: Files,
    pub(crate) took: Duration,
    /// The outputs before it.
    before: Files,
    /// What the case's reader says before it, and after it.
    answers: Vec<String>,
}

/// What all runs start from.
pub(crate) struct Workshop {
    room: Room,
    undisturbed: BTreeMap<&'static str, OnceLock<Undisturbed>>,
}

impl Workshop {
    pub(crate) fn shared() -> &'static Self {
        static WORKSHOP: OnceLock<Workshop> = OnceLock::new();
        WORKSHOP.get_or_init(Workshop::new)
    }

    fn new() -> Self {
        let shim = Path::new(env!("CARGO_TARGET_TMPDIR")).join("faults-shim.so");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/faults/shim.c");
        let compiled = Command::new("cc")
            .args([
                "-O1", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o",
            ])
            .args([&shim, &source])
            .arg("-ldl")
            .status();
        assert!(
            compiled.expect("a C compiler").success(),
            "{}",
            source.display()
        );
        let room = Room::new(&shim);
        for identity in 0..4 {
            let folder = room.root().join(format!("faces/{identity:02}"));
            fs::create_dir_all(&folder).unwrap();
            for n in 4 * identity..4 * identity + 4 {
                let jpeg = encode_jpeg(&picture(n, 112, 112), 90);
                fs::write(folder.join(format!("{n:02}.jpg")), jpeg).unwrap();
            }
        }
        fs::create_dir(room.root().join("before")).unwrap();
        for (name, apart) in [("pairs.txt", 1), ("before/pairs.txt", 2)] {
            let line = |a: usize| {
                let (a, b) = (a % 16, (a + apart) % 16);
                let same = u8::from(a / 4 == b / 4);
                format!("{:02}/{a:02}.jpg {:02}/{b:02}.jpg {same}\n", a / 4, b / 4)
            };
            fs::write(
                room.root().join(name),
                (0..12).map(line).collect::<String>(),
            )
            .unwrap();
        }
        for command in PREPARATION {
            let ended = room.run(command, None);
            assert!(ended.is_success(), "{command}: {ended}");
        }
        let cases = CASES.iter().map(|case| (case.name, OnceLock::new()));
        Workshop {
            room,
            undisturbed: cases.collect(),
        }
    }

    /// A new room for a command.
    pub(crate) fn room(&self, case: &Case) -> Room {
        let room = Room::new(&self.room.shim);
        for name in case.inputs {
            copy(&self.room.root().join(name), &room.root().join(name));
        }
        room
    }

    /// The command's run without faults.
    pub(crate) fn undisturbed(&self, case: &Case) -> &Undisturbed {
        self.undisturbed[case.name].get_or_init(|| {
            let room = self.room(case);
            let before = room.files(case.outputs);
            let mut answers: Vec<String> = room.answer(case).into_iter().collect();
            let (ended, calls) = room.run_listed(case.command);
            assert!(ended.is_success(), "{}: {ended}", case.name);
            answers.extend(room.answer(case));
            assert!(
                answers.is_empty() || answers[0] != answers[1],
                "{}",
                case.name
            );
            let files = room.files(case.outputs);
            assert_eq!(files.is_empty(), case.outputs.is_empty(), "{}", case.name);
            // What runs are compared with must not depend on the run.
            let again = self.room(case);
            let began = Instant::now();
            again.run(case.command, None);
            let took = began.elapsed();
            again.assert_files(case, &files, "a second time");
            Undisturbed {
                ended,
                calls,
                files,
                took,
                before,
                answers,
            }
        })
    }

    /// Everything that must be true of a run with a fault, and of the next.
    pub(crate) fn check_fault(&self, case: &Case, fault: &str, tally: &mut Tally) {
        tally.check(fault, |tally| {
            let room = self.room(case);
            let ended = room.run(case.command, Some(fault));
            tally.count(&ended);
            self.check_ended(case, &room, &ended);
            if !ended.is_killed() && fault.ends_with("once") && !fault.starts_with("unlink") {
                let left = temporaries(&room.root());
                assert!(left.is_empty(), "{}: {left:?} are left: {ended}", case.name);
            }
            self.finish(case, &room, &ended);
        });
    }

    /// How a disturbed run may end.
    pub(crate) fn check_ended(&self, case: &Case, room: &Room, ended: &Ended) {
        let undisturbed = self.undisturbed(case);
        assert!(!ended.stderr.contains("panicked"), "{}: {ended}", case.name);
        if ended.is_success() {
            room.assert_files(case, &undisturbed.files, &format!("exit code 0: {ended}"));
            if case.outputs.is_empty() && case.name == "verify" {
                assert_eq!(ended.stdout, undisturbed.ended.stdout, "{}", case.name);
            }
            return;
        }
        if !ended.is_killed() {
            assert_eq!(ended.status.code(), Some(1), "{}: {ended}", case.name);
            assert!(ended.stderr.contains("error: "), "{}: {ended}", case.name);
        }
        if let Some(answer) = room.answer(case) {
            let whole = undisturbed.answers.contains(&answer);
            assert!(whole, "{}: {answer}\n is read after {ended}", case.name);
        }
        if case.replaces && !room.is_being_exchanged(case) {
            let found = room.files(case.outputs);
            let whole = [&undisturbed.before, &undisturbed.files];
            if let [Some(old), Some(new)] = whole.map(|files| difference(files, &found)) {
                panic!(
                    "{}: neither the old files ({old}) nor the new ones ({new}): {ended}",
                    case.name
                );
            }
        }
    }

    /// The command once more, undisturbed: it ends with the files of an undisturbed run.
    /// `before` is the disturbed run.
    pub(crate) fn finish(&self, case: &Case, room: &Room, before: &Ended) {
        let ended = room.run(&format!("{} {}", case.command, case.again), None);
        assert!(ended.is_success(), "{} once more: {ended}", case.name);
        let when = format!("once more, after {before}");
        room.assert_files(case, &self.undisturbed(case).files, &when);
    }
}

/// Temporary files and folders.
fn temporaries(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "tmp") {
            found.push(path);
        } else if path.is_dir() {
            found.extend(temporaries(&path));
        }
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    if !from.is_dir() {
        fs::copy(from, to).unwrap();
        return;
    }
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        copy(&entry.path(), &to.join(entry.file_name()));
    }
}
