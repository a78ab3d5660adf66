//! `kernels`: compiles the CUDA kernels in advance, for machines without NVRTC.

use super::environment::variable;
use super::output::{check_folder, say};
use crate::backend::cuda::{Architecture, Nvrtc, Prebuilt, Search, Sources};
use crate::base::text::shown;
use crate::{Error, Result};
use std::path::PathBuf;
use std::time::Instant;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Architecture to compile for: sm_N gives a card's machine code (sm_90a for an H100 or H200); compute_N gives PTX,
    /// which the driver compiles for any later card. May be given several times.
    #[arg(long, value_name = "NAME", required = true)]
    arch: Vec<String>,
    /// Folder for the programs and their index. The program uses it instead of the compiler if ARCFACE_CU_KERNELS names
    /// it, or if it is called `kernels` and lies beside the program.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

pub(super) fn run(args: &Args) -> Result<()> {
    for name in &args.arch {
        if Architecture::parse(name).is_none() {
            return Err(Error::Usage(format!(
                "--arch {name}: expected sm_N or compute_N, such as sm_90a or compute_80"
            )));
        }
    }
    check_folder("--out", Some(&args.out))?;
    let compiler = Nvrtc::open(&Search::new(variable), None, None)?;
    let began = Instant::now();
    let count = Prebuilt::write(&compiler, &Sources::new(variable)?, &args.arch, &args.out)?;
    say(format!(
        "{count} programs for {} in {}, in {:.1} s",
        args.arch.join(", "),
        shown(&args.out),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}
