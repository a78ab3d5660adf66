//! The CUDA driver's library: whether it is here and new enough, and which GPUs it sees.

use super::api::Api;
use crate::backend::cuda::driver::Properties;
use crate::backend::cuda::nvrtc::Architecture;
use crate::{Error, Result};
use cudarc::driver::sys::{CUdevice, CUdevice_attribute};
use std::ffi::CStr;

/// The oldest CUDA version that a driver may speak.
const OLDEST_DRIVER: (u32, u32) = (12, 0);
/// The oldest compute capability: Turing's.
const OLDEST_CARD: (u32, u32) = (7, 5);

/// The driver, started.
#[derive(Clone, Copy, Debug)]
pub(super) struct Library {
    /// Its functions.
    pub(super) api: &'static Api,
    /// The newest CUDA version that it supports.
    pub(super) version: (u32, u32),
}

impl Library {
    /// Opens the library and starts CUDA.
    ///
    /// # Errors
    /// No library, one that is too old, or no GPU.
    pub(super) fn open() -> Result<Self> {
        let too_old = |why: String| {
            let (major, minor) = OLDEST_DRIVER;
            Error::Device(format!(
                "NVIDIA's driver is too old: {why}, and CUDA {major}.{minor} is needed (driver 525 or newer)"
            ))
        };
        let api = match Api::open() {
            None => {
                return Err(Error::Device(
                    "NVIDIA's driver was not found: libcuda.so.1 cannot be loaded. Install the driver, or use --device cpu"
                        .to_owned(),
                ));
            }
            Some(api) => api.map_err(|name| too_old(format!("it has no {name}")))?,
        };
        let mut version = 0;
        // SAFETY: one integer that outlives the call; allowed before cuInit.
        let status = unsafe { (api.driver_get_version)(&mut version) };
        api.check(status, "querying the driver's version")?;
        let version = ((version / 1000) as u32, (version % 1000 / 10) as u32);
        if version < OLDEST_DRIVER {
            return Err(too_old(format!(
                "it speaks CUDA {}.{}",
                version.0, version.1
            )));
        }
        // SAFETY: zero is the only valid flag.
        api.check(unsafe { (api.init)(0) }, "starting CUDA")?;
        Ok(Library { api, version })
    }

    /// The number of GPUs that the driver sees.
    pub(super) fn count(&self) -> Result<usize> {
        let mut count = 0;
        // SAFETY: one integer that outlives the call.
        let status = unsafe { (self.api.device_get_count)(&mut count) };
        self.api.check(status, "counting the GPUs")?;
        Ok(count.max(0) as usize)
    }

    /// GPU number `ordinal`, if there is one.
    pub(super) fn device(&self, ordinal: usize) -> Result<CUdevice> {
        let count = self.count()?;
        if ordinal >= count {
            let there = match count {
                0 => "the driver sees none".to_owned(),
                1 => "the driver sees one, cuda:0".to_owned(),
                _ => format!("the driver sees {count}, cuda:0 to cuda:{}", count - 1),
            };
            return Err(Error::Device(format!(
                "there is no GPU cuda:{ordinal}: {there}; `nvidia-smi` lists them, and CUDA_VISIBLE_DEVICES hides some"
            )));
        }
        let mut device = 0;
        // SAFETY: a device's number that outlives the call.
        let status = unsafe { (self.api.device_get)(&mut device, ordinal as i32) };
        self.api
            .check(status, format_args!("opening cuda:{ordinal}"))?;
        Ok(device)
    }

    /// An attribute of a device.
    pub(super) fn attribute(&self, device: CUdevice, what: CUdevice_attribute) -> Result<u32> {
        let mut value = 0;
        // SAFETY: one integer that outlives the call; any device may be asked for.
        let status = unsafe { (self.api.device_get_attribute)(&mut value, what, device) };
        self.api.check(status, "querying the GPU's attributes")?;
        Ok(value.max(0) as u32)
    }

    /// The properties of a device.
    pub(super) fn properties(&self, device: CUdevice) -> Result<Properties> {
        use CUdevice_attribute::*;
        let mut name = [0; 256];
        // SAFETY: the buffer has the length that is passed with it.
        let status = unsafe {
            (self.api.device_get_name)(name.as_mut_ptr().cast(), name.len() as i32, device)
        };
        self.api.check(status, "querying the GPU's name")?;
        let name = CStr::from_bytes_until_nul(&name).unwrap_or(c"GPU");
        let mut memory = 0;
        // SAFETY: one integer that outlives the call.
        let status = unsafe { (self.api.device_total_mem)(&mut memory, device) };
        self.api.check(status, "querying the GPU's memory")?;
        let attribute = |what| self.attribute(device, what);
        Ok(Properties {
            name: name.to_string_lossy().into_owned(),
            capability: (
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            memory: memory as u64,
            shared_per_block: attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
            driver: self.version,
        })
    }
}

/// Refuses a card that is older than the kernels.
pub(super) fn check_capability(ordinal: usize, properties: &Properties) -> Result<()> {
    let (name, (major, minor)) = (&properties.name, properties.capability);
    if properties.capability < OLDEST_CARD {
        return Err(Error::Device(format!(
            "cuda:{ordinal}, {name}, has compute capability {major}.{minor}, and the kernels need {}.{} (Turing, 2018) or newer; use --device cpu",
            OLDEST_CARD.0, OLDEST_CARD.1
        )));
    }
    Ok(())
}

/// The architecture to compile kernels for: the chosen one, if the card runs it, or the card's own.
pub(super) fn architecture(
    ordinal: usize,
    properties: &Properties,
    chosen: Option<Architecture>,
) -> Result<Architecture> {
    let own = Architecture::of(properties.capability);
    match chosen {
        Some(chosen) if !chosen.runs_on(properties.capability) => Err(Error::Device(format!(
            "{} asks for {chosen}, which cuda:{ordinal}, {}, does not run; its own architecture is {own}",
            Architecture::VARIABLE,
            properties.name
        ))),
        chosen => Ok(chosen.unwrap_or(own)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(capability: (u32, u32)) -> Properties {
        Properties {
            name: "Tesla V100".to_owned(),
            capability,
            multiprocessors: 80,
            memory: 16 << 30,
            shared_per_block: 96 << 10,
            driver: (13, 0),
        }
    }

    #[test]
    fn an_architecture_that_the_card_does_not_run_is_refused_by_name() {
        let chosen = |name: &str| Architecture::chosen(|_| Some(name.into())).unwrap();
        let on = |capability, name| architecture(1, &card(capability), chosen(name));
        assert_eq!(on((9, 0), "").unwrap().name(), "sm_90a");
        assert_eq!(on((9, 0), "compute_80").unwrap().name(), "compute_80");
        let text = on((8, 6), "sm_90a").unwrap_err().to_string();
        for word in ["ARCFACE_CU_ARCH", "sm_90a", "cuda:1", "sm_86"] {
            assert!(text.contains(word), "{text}");
        }
    }

    #[test]
    fn an_old_card_is_refused_by_name() {
        let text = check_capability(1, &card((7, 0))).unwrap_err().to_string();
        assert!(
            text.contains("cuda:1, Tesla V100") && text.contains("7.5"),
            "{text}"
        );
        assert!(check_capability(0, &card((7, 5))).is_ok());
        assert!(check_capability(0, &card((12, 0))).is_ok());
    }
}
