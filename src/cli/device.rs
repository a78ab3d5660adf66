//! The one match on the device.

use super::environment::{cache_folder, variable};
use super::output::warn;
use crate::Result;
use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::backend::cuda::driver::Driver;
use crate::backend::cuda::gpu::{Gpu, Setup};
use crate::backend::cuda::{Cache, Cuda};
use crate::embedder::Embedder;
use crate::recipe::config::Precision;
use crate::weights::checkpoint::Weights;
use std::str::FromStr;
use std::sync::Once;

/// What `--device` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Device {
    /// The best there is.
    Auto,
    /// The CPU.
    Cpu,
    /// NVIDIA GPU number N.
    Cuda(usize),
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        let number = |n: &str| n.parse().map_err(|_| format!("{n} is not a GPU's number"));
        match text.split_once(':') {
            None if text == "auto" => Ok(Device::Auto),
            None if text == "cpu" => Ok(Device::Cpu),
            None if text == "cuda" => Ok(Device::Cuda(0)),
            Some(("cuda", n)) => Ok(Device::Cuda(number(n)?)),
            _ => Err("expected auto, cpu, cuda or cuda:N".to_string()),
        }
    }
}

/// `--device`, for the commands that compute.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda or cuda:N. auto takes the first NVIDIA GPU where `arcface-cu info` finds all
    /// that it needs, else the CPU, and says so.
    #[arg(long, default_value = "auto")]
    pub(super) device: Device,
    /// How activations are stored, and what products multiply: auto (f32 for now), f32 or bf16 (half the memory). Default:
    /// auto; a resumed run keeps its precision.
    #[arg(long)]
    precision: Option<Precision>,
}

impl DeviceArgs {
    /// What is asked for, as a setting of a run.
    pub(super) fn precision_setting(&self) -> Option<String> {
        self.precision.map(|p| format!("train.precision={p}"))
    }

    /// The network that `weights` hold on this device, in batches of up to `max_batch`.
    ///
    /// # Errors
    /// As [`Embedder::new`]; the device lacks the precision that is asked for.
    pub(super) fn embedder<'a, B: Backend>(
        &self,
        backend: &'a mut B,
        weights: &Weights,
        max_batch: usize,
    ) -> Result<Embedder<'a, B>> {
        let element = self.precision.unwrap_or_default().element(backend)?;
        Embedder::new(backend, weights, max_batch, element)
    }
}

/// A command's work, generic over the device.
pub(super) trait OnDevice {
    /// Does it.
    fn run<B: Backend>(self, backend: B) -> Result<()>;
}

/// Where GPUs come from.
pub trait Gpus {
    /// What they are driven by.
    type Driver: Driver;

    /// GPU number `ordinal`.
    ///
    /// # Errors
    /// It cannot be used; the sentence says what is missing.
    fn open(&self, ordinal: usize) -> Result<Cuda<Self::Driver>>;
}

/// The GPUs of this machine, set up from the environment.
pub(super) struct Installed;

impl Gpus for Installed {
    type Driver = Gpu;

    fn open(&self, ordinal: usize) -> Result<Cuda<Gpu>> {
        let cache = Cache::new(cache_folder(variable));
        let gpu = Gpu::open(ordinal, Setup::new(variable, cache)?)?;
        // A problem with the cache is not an error; it is reported once.
        if let Err(why) = gpu.compiler().cache().folder() {
            warn(why);
        }
        Ok(Cuda::new(gpu))
    }
}

/// Opens the device and runs the task on it; says on standard error what `auto` chose and why, once for all commands of a
/// process.
pub(super) fn with_device(device: Device, gpus: &impl Gpus, task: impl OnDevice) -> Result<()> {
    match device {
        Device::Cpu => task.run(Cpu::new()),
        Device::Cuda(n) => task.run(gpus.open(n)?),
        Device::Auto => match gpus.open(0) {
            Ok(cuda) => {
                say_once(format!("--device auto: cuda:0, {}", cuda.describe()));
                task.run(cuda)
            }
            Err(why) => {
                say_once(format!(
                    "--device auto: the CPU; {} (`arcface-cu info` says more)",
                    in_short(&why.to_string())
                ));
                task.run(Cpu::new())
            }
        },
    }
}

fn say_once(text: String) {
    static SAID: Once = Once::new();
    SAID.call_once(|| warn(text));
}

/// The beginning of an error, up to the details.
fn in_short(why: &str) -> &str {
    /// What is shorter is only a name before the first colon.
    const LEAST: usize = 20;
    let ends = [": ", ". ", "; "].into_iter();
    let ends = ends.flat_map(|end| why.match_indices(end).map(|(at, _)| at));
    let end = ends.filter(|at| *at >= LEAST).min();
    &why[..end.unwrap_or(why.len())]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_told_in_short() {
        for (why, short) in [
            (
                "NVIDIA's driver was not found: libcuda.so.1 cannot be loaded. Install the driver",
                "NVIDIA's driver was not found",
            ),
            (
                "cuda:0: the card is too old for this. Use another",
                "cuda:0: the card is too old for this",
            ),
            ("there is no GPU", "there is no GPU"),
        ] {
            assert_eq!(in_short(why), short);
        }
    }
}
