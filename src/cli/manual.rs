//! `arcface-cu completions` and `arcface-cu man`: what a shell and `man` know of the commands, made of the same arguments
//! that are parsed.

use super::Cli;
use super::output::{check_folder, count, say};
use crate::base::files;
use crate::base::text::shown;
use crate::{Error, Result};
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;
use std::fs;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// The shell. Its words go to standard output: `source <(arcface-cu completions bash)`.
    shell: Shell,
}

#[derive(Debug, clap::Args)]
pub(super) struct ManArgs {
    /// Folder for the pages, arcface-cu.1 and one for each command.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

/// The program, with the full names of its commands.
fn program() -> Command {
    let mut program = Cli::command();
    program.build();
    program
}

pub(super) fn completions(args: &CompletionsArgs) {
    let mut script = Vec::new();
    let mut program = program();
    let name = program.get_name().to_owned();
    clap_complete::generate(args.shell, &mut program, name, &mut script);
    say(String::from_utf8_lossy(&script).trim_end());
}

pub(super) fn man(args: &ManArgs) -> Result<()> {
    check_folder("--out", Some(&args.out))?;
    fs::create_dir_all(&args.out).map_err(Error::io("creating the folder", &args.out))?;
    let program = program();
    let commands = program
        .get_subcommands()
        .filter(|command| command.get_name() != "help");
    let pages: Vec<Command> = commands.chain([&program]).cloned().collect();
    for command in &pages {
        let name = command.get_display_name().unwrap_or(command.get_name());
        let path = args.out.join(format!("{name}.1"));
        let mut page = Vec::new();
        let rendered = Man::new(command.clone()).render(&mut page);
        rendered.map_err(Error::io("rendering", &path))?;
        files::write(&path, &page)?;
    }
    say(format!(
        "{}: {}",
        shown(&args.out),
        count(pages.len(), "page")
    ));
    Ok(())
}
