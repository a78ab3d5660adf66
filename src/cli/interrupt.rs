//! Ctrl-C, SIGTERM and SIGHUP. In an orderly part of a command, the first asks for an orderly end and another ends at
//! once; elsewhere, the first ends at once. A signal that is ignored when the program starts stays ignored: that is how
//! `nohup` keeps a run alive after logout.

use super::output::warn;
use crate::{Error, Result};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// Signals that follow the first so closely are the same wish: `timeout` sends one to the process and another to its
/// group.
const SAME_WISH: Duration = Duration::from_secs(1);

static ASKED: OnceLock<Instant> = OnceLock::new();

/// What to print at the first signal; set while a command is in an orderly part.
static ANSWER: Mutex<Option<&str>> = Mutex::new(None);

fn answer() -> std::sync::MutexGuard<'static, Option<&'static str>> {
    ANSWER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The orderly part of a command: it looks at [`asked`] and ends by itself. It lasts until this is dropped.
pub(super) struct Orderly(());

impl Drop for Orderly {
    fn drop(&mut self) {
        *answer() = None;
    }
}

/// Begins the orderly part of a command; its first signal is answered with `text`.
pub(super) fn orderly(text: &'static str) -> Orderly {
    *answer() = Some(text);
    Orderly(())
}

/// Whether the user has asked for an end.
pub(super) fn asked() -> bool {
    ASKED.get().is_some()
}

/// From now on, signals end the process with the exit code of an interrupt.
///
/// # Errors
/// The system refuses.
pub(super) fn listen() -> Result<()> {
    static LISTENING: OnceLock<Result<(), String>> = OnceLock::new();
    let listening =
        LISTENING.get_or_init(|| install().map_err(|e| format!("watching for Ctrl-C: {e}")));
    listening.clone().map_err(Error::Invalid)
}

/// What a signal does.
fn receive() {
    let end = || std::process::exit(Error::Interrupted.exit_code().into());
    if let Some(first) = ASKED.get() {
        if first.elapsed() > SAME_WISH {
            end();
        }
        return;
    }
    let answer = answer();
    match *answer {
        Some(text) => {
            ASKED.get_or_init(Instant::now);
            warn(format!("\n{text}"));
        }
        None => end(),
    }
}

/// Starts the thread that receives signals.
#[cfg(unix)]
fn install() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    let (ready, installed) = std::sync::mpsc::channel();
    // Handlers are installed by the thread: without it, they would only swallow signals.
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter();
            let signals = Signals::new(wanted.filter(|&signal| !is_ignored(signal)));
            let (result, mut signals) = match signals {
                Ok(signals) => (Ok(()), Some(signals)),
                Err(error) => (Err(error), None),
            };
            // The other end waits for this.
            let _ = ready.send(result);
            for _ in signals.iter_mut().flat_map(Signals::forever) {
                receive();
            }
        })?;
    let ended = |_| std::io::Error::other("the thread ended");
    installed.recv().map_err(ended)?
}

/// Whether the process ignores `signal`.
#[cfg(unix)]
fn is_ignored(signal: libc::c_int) -> bool {
    let mut current = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: without a new action, `sigaction` only writes the current one to `current`, which has room for it.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), current.as_mut_ptr()) };
    // SAFETY: it returned 0, so it has written `current`.
    result == 0 && unsafe { current.assume_init() }.sa_sigaction == libc::SIG_IGN
}

#[cfg(not(unix))]
fn install() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(receive)
}
