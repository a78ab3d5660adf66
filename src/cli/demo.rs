//! `arcface-cu demo`: the whole road on generated faces.

use super::counter::counter;
use super::device::{Device, Gpus};
use super::output::{check_folder, say};
use super::recipe::whole_number;
use super::threads::ThreadsArgs;
use super::{interrupt, run_on};
use crate::base::text::shown;
use crate::demo::{Demo, SET, Size, shell_line};
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Folder for everything. A folder of an earlier demo may be used again: what that demo wrote is replaced, other
    /// files stay; any other folder must be empty.
    #[arg(long, default_value = "demo-out", value_name = "DIR")]
    out: PathBuf,
    /// Decides the faces and every random choice.
    #[arg(long, default_value_t = 1, value_parser = whole_number)]
    seed: u64,
    /// A few people and steps only: shows in seconds that everything runs, but learns nothing. Default: off.
    #[arg(long)]
    quick: bool,
    /// Where to compute: auto, cpu, cuda or cuda:N, as for the other commands.
    #[arg(long, default_value = "auto", value_parser = device)]
    device: String,
    #[command(flatten)]
    pub(super) threads: ThreadsArgs,
}

/// The text itself, since the commands are given it again.
fn device(text: &str) -> std::result::Result<String, String> {
    text.parse::<Device>().map(|_| text.to_owned())
}

pub(super) fn run(args: Args, gpus: &impl Gpus) -> Result<()> {
    check_folder("--out", Some(&args.out))?;
    let began = Instant::now();
    let demo = Demo {
        out: args.out,
        seed: args.seed,
        size: if args.quick { Size::QUICK } else { Size::FULL },
        device: (args.device != "auto").then_some(args.device),
        threads: args.threads.threads,
    };
    let _lock = demo.prepare()?;
    interrupt::listen()?;
    let Size {
        people,
        per_person,
        held_out,
        pairs,
        ..
    } = demo.size;
    let out = shown(&demo.out);

    say(format!(
        "# {people} people who do not exist, {per_person} pictures of each, in {out}/faces"
    ));
    let counter_of_faces = Mutex::new(counter("generate", people * per_person));
    demo.write_faces(|| lock(&counter_of_faces).advance(1))?;
    counter_of_faces
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner)
        .finish();

    let [pack, train, eval, embed] = demo.commands();
    say(format!(
        "\n# The last {held_out} people are kept out of training."
    ));
    execute(&pack, gpus)?;
    say("\n# A small network learns to tell the others apart.");
    execute(&train, gpus)?;
    say(format!(
        "\n# {pairs} pairs of the {held_out} people it has never seen, as a bcolz array in {out}/eval/{SET}"
    ));
    let mut counter = counter("pairs", 2 * pairs);
    demo.write_pairs(&mut |images| counter.advance(images as u64))?;
    counter.finish();
    say("\n# Does a pair show one person or two?");
    execute(&eval, gpus)?;
    say("\n# How similar are pictures of people it has never seen?");
    execute(&embed, gpus)?;
    say(format!(
        "\n# Done in {:.0} s. Look at {out}/similarity.png and {out}/pairs.png; the commands are in {out}/commands.txt.",
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Shows a command as it is typed, reads it as if it had been, and runs it.
fn execute(command: &[String], gpus: &impl Gpus) -> Result<()> {
    // Training may have been asked during its last step.
    if interrupt::asked() {
        return Err(Error::Interrupted);
    }
    say(format!("$ {}", shell_line(command)));
    let words = std::iter::once("arcface-cu").chain(command.iter().map(String::as_str));
    run_on(words, gpus)
}
