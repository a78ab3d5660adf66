//! Ctrl-C: the first asks for an orderly end, the second ends at once.

use crate::{Error, Result};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static ASKED: AtomicBool = AtomicBool::new(false);

/// Watches for SIGINT, SIGTERM and SIGHUP from now on.
///
/// # Errors
/// The system refuses.
pub(super) fn watch() -> Result<()> {
    static WATCHING: OnceLock<Result<(), String>> = OnceLock::new();
    let watching = WATCHING.get_or_init(|| {
        ctrlc::set_handler(|| {
            if ASKED.swap(true, Ordering::Relaxed) {
                std::process::exit(Error::Interrupted.exit_code().into());
            }
            eprintln!("\nsaving after this step; once more ends at once, without saving");
        })
        .map_err(|e| format!("watching for Ctrl-C: {e}"))
    });
    watching.clone().map_err(Error::Invalid)
}

/// Whether the user has asked for an end.
pub(super) fn asked() -> bool {
    ASKED.load(Ordering::Relaxed)
}
