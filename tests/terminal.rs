//! What reaches the terminal, through the binary: output that cannot be written, streams without a reader, and names that
//! a terminal would obey.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn program(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arcface-cu"));
    command.args(words);
    command
}

/// Runs a command where memory for threads runs out. Rust's own library panics in a new thread that finds none for its
/// signal stack; whether one does is chance, and then the command is run again.
fn short_of_memory(command: &mut Command) -> Output {
    let chance = |output: &Output| {
        String::from_utf8_lossy(&output.stderr).contains("failed to allocate an alternative stack")
    };
    let mut output = command.output().unwrap();
    for _ in 0..9 {
        if chance(&output) {
            output = command.output().unwrap();
        }
    }
    output
}

fn stderr(output: &Output) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!text.contains("panicked"), "{text}");
    text
}

/// A pipe whose reading end is closed.
fn closed_pipe() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    writer.into()
}

#[test]
fn output_that_is_lost_is_an_error_and_a_closed_pipe_is_not() {
    for words in [&["info"][..], &["--help"], &["train", "--print-config"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let output = program(words).stdout(full).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(1), "{words:?}: {text}");
        assert!(
            text.contains("error: writing to standard output: "),
            "{text}"
        );

        let output = program(words).stdout(closed_pipe()).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(0), "{words:?}: {text}");
        assert_eq!(text, "");
    }
}

#[test]
fn an_error_that_nobody_reads_keeps_its_exit_code() {
    for (words, code) in [
        (&["check", "--data", "there is nothing here"][..], 1),
        (&["train", "--set", "lr", "--data", "faces"], 2),
        (&["no-such-command"], 2),
    ] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        for stream in [closed_pipe(), full.into()] {
            let status = program(words).stderr(stream).status().unwrap();
            assert_eq!(status.code(), Some(code), "{words:?}");
        }
    }
}

/// Threads need address space for their stacks; a limit of processes does not hold for root.
#[test]
fn threads_that_cannot_be_started_are_an_error() {
    let output = short_of_memory(
        Command::new("sh")
            .args(["-c", "ulimit -v 2000000; exec \"$0\" info"])
            .arg(env!("CARGO_BIN_EXE_arcface-cu"))
            .env("RAYON_NUM_THREADS", "4000"),
    );
    let text = stderr(&output);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("error: starting the threads"), "{text}");
    // As many as are asked for, in every command that works on data.
    let network = ["--weights", "w"];
    for words in [
        &["train", "--data", "d"][..],
        &[&["eval", "--data", "d"], &network[..]].concat(),
        &[&["embed", "--data", "d", "--out", "o"], &network[..]].concat(),
        &[&["verify", "a", "b"], &network[..]].concat(),
        &["search", "--gallery", "g", "--query", "q"],
        &["pack", "--data", "d", "--out", "o"],
        &["check", "--data", "d"],
        &["demo"],
    ] {
        let output = short_of_memory(
            Command::new("sh")
                .args(["-c", "ulimit -v 2000000; exec \"$0\" \"$@\""])
                .arg(env!("CARGO_BIN_EXE_arcface-cu"))
                .args(words)
                .args(["--threads", "1024"]),
        );
        let text = stderr(&output);
        assert!(
            text.contains("error: starting the threads"),
            "{words:?}: {text}"
        );
    }
}

#[test]
fn numbers_without_a_place_in_toml_are_wrong_usage() {
    let largest = u64::MAX.to_string();
    for words in [
        ["train", "--print-config", "--seed", &largest],
        ["train", "--print-config", "--epochs", &largest],
        ["train", "--print-config", "--batch-size", &largest],
        ["demo", "--quick", "--seed", &largest],
    ] {
        let output = program(&words).output().unwrap();
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{words:?}: {text}");
        assert!(text.contains("9223372036854775807"), "{text}");
    }
    let deep = format!("a{}=1", ".a".repeat(30_000));
    let output = program(&["train", "--print-config", "--set", &deep]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    // The same in a file.
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("deep.toml");
    fs::write(&file, &deep).unwrap();
    let file = file.to_str().unwrap();
    let output = program(&["train", "--print-config", "--config", file]).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
}

/// The binary's own arguments, as a shell and `man` are told of them.
#[cfg(feature = "manual")]
#[test]
fn completions_and_pages_name_every_command() {
    let help = program(&["--help"]).output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    let commands: Vec<&str> = commands
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .collect();
    assert!(commands.len() > 12, "{help}");
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = program(&["completions", shell]).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        let script = String::from_utf8(output.stdout).unwrap();
        for command in &commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
        assert!(script.contains("patience"), "{shell}");
    }
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("share/man1");
    let output = program(&["man", "--out", out.to_str().unwrap()])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", stderr(&output));
    for command in &commands {
        let page = fs::read_to_string(out.join(format!("arcface-cu-{command}.1"))).unwrap();
        assert!(page.contains(".SH OPTIONS") || *command == "info", "{page}");
    }
    let page = fs::read_to_string(out.join("arcface-cu.1")).unwrap();
    assert!(page.contains("arcface\\-cu\\-train(1)"), "{page}");
    let page = fs::read_to_string(out.join("arcface-cu-train.1")).unwrap();
    assert!(page.contains("\\-\\-patience"), "{page}");
}

#[test]
fn names_from_data_are_escaped() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let people = ["clear\u{1b}[2J", "two\nlines\tand a tab"];
    let picture = |path: &Path, value: u8| {
        let picture = image::RgbImage::from_pixel(16, 16, image::Rgb([value; 3]));
        picture.save(path).unwrap();
    };
    for (number, person) in people.iter().enumerate() {
        fs::create_dir_all(at("faces").join(person)).unwrap();
        let value = 50 * number as u8;
        picture(
            &at("faces").join(person).join("title\u{1b}]0;x\u{7}.png"),
            value,
        );
        picture(&at("faces").join(person).join("again.png"), value);
    }
    fs::write(
        at("faces").join(people[0]).join("broken\r.jpg"),
        "no picture",
    )
    .unwrap();
    let raw = |c: char| c.is_control() && c != '\n';

    let mut check = program(&["check", "--data", "faces"]);
    let output = check.current_dir(dir.path()).output().unwrap();
    let text = format!(
        "{}{}",
        stderr(&output),
        String::from_utf8(output.stdout).unwrap()
    );
    assert!(
        !text.contains(raw) && !text.contains("two\nlines"),
        "{text}"
    );
    for escaped in [
        "clear\\u{1b}[2J",
        "two\\nlines\\tand a tab",
        "\\u{1b}]0;x\\u{7}",
        "broken\\r.jpg",
    ] {
        assert!(text.contains(escaped), "{escaped}: {text}");
    }

    let mut pack = program(&[
        "pack",
        "--data",
        "faces",
        "--out",
        "packed",
        "--skip-bad",
        "--reserve-last",
        "0",
    ]);
    let output = pack.current_dir(dir.path()).output().unwrap();
    let text = format!(
        "{}{}",
        stderr(&output),
        String::from_utf8(output.stdout).unwrap()
    );
    assert!(output.status.success(), "{text}");
    assert!(
        !text.contains(raw) && text.contains("broken\\r.jpg"),
        "{text}"
    );
    let names = fs::read_to_string(at("packed/identities.tsv")).unwrap();
    assert_eq!(names.lines().count(), 3, "{names}");
    assert!(
        names.lines().all(|line| line.split('\t').count() == 4),
        "{names}"
    );
    assert!(names.contains("clear\\u{1b}[2J\t"), "{names}");
}
