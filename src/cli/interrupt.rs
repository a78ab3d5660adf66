//! Ctrl-C: the first asks for an orderly end, another ends at once.

use crate::{Error, Result};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Signals that follow the first so closely are the same wish: `timeout` sends one to the process and another to its
/// group.
const SAME_WISH: Duration = Duration::from_secs(1);

static ASKED: OnceLock<Instant> = OnceLock::new();

/// Watches for SIGINT, SIGTERM and SIGHUP from now on.
///
/// # Errors
/// The system refuses.
pub(super) fn watch() -> Result<()> {
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
            eprintln!("\nsaving after this step; once more ends at once, without saving");
        })
        .map_err(|e| format!("watching for Ctrl-C: {e}"))
    });
    watching.clone().map_err(Error::Invalid)
}

/// Whether the user has asked for an end.
pub(super) fn asked() -> bool {
    ASKED.get().is_some()
}
