//! How far a command has come with its pictures.

use super::output;
use crate::base::text::one_line;
use crate::report::progress::Counter;

/// Counts `total` images, from now on.
pub(super) fn counter(name: &str, total: usize) -> Counter {
    Counter::new(&one_line(name), total as u64, output::progress())
}
