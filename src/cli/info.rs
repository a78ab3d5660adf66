//! `info`: what this machine offers and what will be used of it.

use super::device::Gpus;
use super::environment::{cache_folder, variable};
use super::output::{say, size};
use crate::Result;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::gpu::Found;
use crate::backend::cuda::tiles::PROGRAMS;
use crate::backend::cuda::{Architecture, Cache, Nvrtc, Prebuilt, Search, Sources};
use crate::base::text::shown;

#[derive(Debug, clap::Args)]
pub(super) struct Args {}

pub(super) fn run(_args: Args, gpus: &impl Gpus) -> Result<()> {
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
    let found = Found::new();
    match &found {
        Ok(Found { driver, devices }) => {
            say(format!(
                "cuda: the driver speaks CUDA {}.{}",
                driver.0, driver.1
            ));
            for (n, device) in devices.iter().enumerate() {
                say(format!("cuda:{n}: {device}"));
            }
        }
        Err(why) => say(format!("cuda: {why}")),
    }
    let card = found.as_ref().ok().and_then(|found| found.devices.first());
    let chosen = Architecture::chosen(variable);
    let architecture = match &chosen {
        Ok(chosen) => chosen
            .clone()
            .or_else(|| card.map(|card| Architecture::of(card.capability))),
        Err(_) => None,
    };
    match Prebuilt::new(variable).map(|prebuilt| prebuilt.describe()) {
        Ok(Some(text)) => say(format!("prebuilt kernels: {text}")),
        Ok(None) => {}
        Err(why) => say(format!("prebuilt kernels: {why}")),
    }
    let driver = card.map(|card| card.driver);
    match Nvrtc::open(&Search::new(variable), driver, architecture.as_ref()) {
        Ok(compiler) => {
            let ((major, minor), path) = (compiler.version(), shown(compiler.path()));
            say(format!("compiler: NVRTC {major}.{minor}, {path}"));
        }
        Err(why) => say(format!("compiler: {why}")),
    }
    match (&chosen, &architecture) {
        (Err(why), _) => say(format!("kernels are compiled for: {why}")),
        (Ok(Some(chosen)), _) => say(format!(
            "kernels are compiled for: {chosen}, {}, set by {}",
            match chosen.is_ptx() {
                true => "PTX that the driver compiles itself",
                false => "machine code",
            },
            Architecture::VARIABLE
        )),
        (Ok(None), Some(own)) => say(format!(
            "kernels are compiled for: {own}, the card's machine code"
        )),
        (Ok(None), None) => {}
    }
    say(match Cache::new(cache_folder(variable)).folder() {
        Ok(folder) => format!("compiled kernels: kept in {}", shown(folder)),
        Err(why) => why.to_owned(),
    });
    say(match Sources::new(variable) {
        Ok(sources) => format!("kernels: {} programs of {sources}", PROGRAMS.len()),
        Err(why) => format!("kernels: {why}"),
    });
    say(match gpus.open(0) {
        Ok(_) => "--device auto takes cuda:0".to_owned(),
        Err(why) => format!("--device auto takes the CPU: {why}"),
    });
    Ok(())
}
