//! How far a command has come, on standard error: standard output is for results.

use crate::report::progress::{Counter, Output};
use indicatif::ProgressDrawTarget;
use std::io::{IsTerminal, stderr};

/// Counts `total` images.
pub(super) fn counter(name: &str, total: usize) -> Counter {
    let output = Output::choose(
        stderr().is_terminal(),
        ProgressDrawTarget::stderr(),
        Box::new(stderr()),
    );
    Counter::new(name, total as u64, output)
}
