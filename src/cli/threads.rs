//! `--threads`, for the commands that work on data.

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct ThreadsArgs {
    /// Threads for arithmetic, and as many for reading pictures; 0: one a core. No number of the result depends on them.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub(super) threads: usize,
}
