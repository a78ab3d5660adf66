//! The one match on the device.

use crate::backend::Backend;
use crate::backend::cpu::Cpu;
use crate::{Error, Result};
use std::str::FromStr;

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
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto")]
    pub(super) device: Device,
}

/// A command's work, generic over the device.
pub(super) trait OnDevice {
    /// Does it.
    fn run<B: Backend>(self, backend: B) -> Result<()>;
}

/// Opens the device and runs the task on it; says on standard error what `auto` chose and why.
pub(super) fn with_device(device: Device, task: impl OnDevice) -> Result<()> {
    match device {
        Device::Cpu => task.run(Cpu::new()),
        Device::Auto => {
            let cpu = Cpu::new();
            eprintln!("--device auto: the CPU, since this version has no other engine");
            task.run(cpu)
        }
        Device::Cuda(n) => Err(Error::Invalid(format!(
            "--device cuda:{n}: the CUDA engine is not part of this version; use --device cpu"
        ))),
    }
}
