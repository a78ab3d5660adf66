//! `info`: what this machine offers and what will be used of it.

use super::output::{say, size};
use crate::Result;
use crate::backend::cpu::Cpu;
use crate::backend::{Backend, KERNELS};

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args) -> Result<()> {
    let cpu = Cpu::new();
    say(format!(
        "arcface-cu {} ({}, {})",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS
    ));
    say(cpu.describe());
    say(format!(
        "memory: {}",
        match cpu.memory_available() {
            u64::MAX => "the system does not tell".to_owned(),
            bytes => format!("{} free", size(bytes)),
        }
    ));
    say(format!(
        "cuda: not part of this version ({} kernel sources embedded)",
        KERNELS.len()
    ));
    say("--device auto takes the CPU, since this version has no other engine");
    Ok(())
}
