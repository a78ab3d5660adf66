//! `info`: what this machine offers and what will be used of it.

use super::output::{say, size};
use crate::Result;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;

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
    say("cuda: not part of this version");
    say("--device auto takes the CPU, since this version has no other engine");
    Ok(())
}
