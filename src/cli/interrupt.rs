//! Ctrl-C: the first asks for an orderly end, another ends at once.

use crate::{Error, Result};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Signals that follow the first so closely are the same wish: `timeout` sends one to the process and another to its
/// group.
const SAME_WISH: Duration = Duration::from_secs(1);

static ASKED: OnceLock<Instant> = OnceLock::new();

/// What the user is told at the first signal; the last one counts.
static ANSWERS: Mutex<Vec<&str>> = Mutex::new(Vec::new());

fn answers() -> std::sync::MutexGuard<'static, Vec<&'static str>> {
    ANSWERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The time in which a command ends in an orderly way. Behind it, the command around it goes on watching, if there is
/// one; else a signal ends the process at once.
pub(super) struct Watch(());

impl Drop for Watch {
    fn drop(&mut self) {
        answers().pop();
    }
}

/// Watches for SIGINT, SIGTERM and SIGHUP until the result is dropped; the first is answered with `answer`.
///
/// # Errors
/// The system refuses.
pub(super) fn watch(answer: &'static str) -> Result<Watch> {
    static WATCHING: OnceLock<Result<(), String>> = OnceLock::new();
    let watching = WATCHING.get_or_init(|| {
        ctrlc::set_handler(|| {
            if let Some(first) = ASKED.get() {
                if first.elapsed() > SAME_WISH {
                    std::process::exit(Error::Interrupted.exit_code().into());
                }
                return;
            }
            ASKED.get_or_init(Instant::now);
            match answers().last() {
                Some(answer) => eprintln!("\n{answer}"),
                None => std::process::exit(Error::Interrupted.exit_code().into()),
            }
        })
        .map_err(|e| format!("watching for Ctrl-C: {e}"))
    });
    watching.clone().map_err(Error::Invalid)?;
    answers().push(answer);
    Ok(Watch(()))
}

/// Whether the user has asked for an end.
pub(super) fn asked() -> bool {
    ASKED.get().is_some()
}
