//! `--threads`, for the commands that work on data.

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct ThreadsArgs {
    /// Threads for arithmetic, and as many for reading pictures; 0: one per core. The result does not
    /// depend on it.
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = threads)]
    pub(super) threads: usize,
}

/// More than any machine has cores; the system would spend its time on changing between them.
const MOST: usize = 1024;

fn threads(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(threads) if threads > MOST => Err(format!("the largest is {MOST}")),
        Ok(threads) => Ok(threads),
        Err(error) => Err(format!("{error}")),
    }
}
