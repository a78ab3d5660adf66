//! The CUDA driver's library: whether it is here and new enough, which GPUs it sees, and what its errors mean.
//!
//! cudarc panics where the library or one of its functions is missing. So both are looked for first, and every function
//! that this folder calls stands in one list.

use crate::backend::cuda::driver::Properties;
use crate::backend::cuda::nvrtc::Architecture;
use crate::{Error, Result};
use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys::{self, CUdevice, CUdevice_attribute, CUresult};
use std::ffi::CStr;

/// The functions of the driver that are called, by the names that cudarc asks for.
const FUNCTIONS: [&CStr; 36] = [
    c"cuCtxSetCurrent",
    c"cuDeviceGet",
    c"cuDeviceGetAttribute",
    c"cuDeviceGetCount",
    c"cuDeviceGetName",
    c"cuDevicePrimaryCtxRelease_v2",
    c"cuDevicePrimaryCtxRetain",
    c"cuDeviceTotalMem_v2",
    c"cuDriverGetVersion",
    c"cuEventCreate",
    c"cuEventDestroy_v2",
    c"cuEventElapsedTime",
    c"cuEventRecord",
    c"cuEventSynchronize",
    c"cuFuncGetAttribute",
    c"cuFuncSetAttribute",
    c"cuGetErrorName",
    c"cuGetErrorString",
    c"cuInit",
    c"cuLaunchKernel",
    c"cuMemAllocAsync",
    c"cuMemAlloc_v2",
    c"cuMemFreeAsync",
    c"cuMemFreeHost",
    c"cuMemFree_v2",
    c"cuMemGetInfo_v2",
    c"cuMemHostAlloc",
    c"cuMemcpyDtoHAsync_v2",
    c"cuMemcpyHtoDAsync_v2",
    c"cuMemsetD8Async",
    c"cuModuleGetFunction",
    c"cuModuleLoadData",
    c"cuModuleUnload",
    c"cuStreamCreate",
    c"cuStreamDestroy_v2",
    c"cuStreamSynchronize",
];

/// The oldest CUDA version that a driver may speak.
const OLDEST_DRIVER: (u32, u32) = (12, 0);
/// The oldest compute capability: Turing's.
const OLDEST_CARD: (u32, u32) = (7, 5);

/// An error of the driver's as this crate's, with what was being done.
pub(super) fn failed(doing: impl std::fmt::Display) -> impl FnOnce(DriverError) -> Error {
    move |error| Error::Device(format!("{doing}: {}", sentence(error)))
}

/// What a status means and what to do about it.
fn sentence(error: DriverError) -> String {
    use CUresult::*;
    let text = |text: Result<&CStr, DriverError>| match text {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => "an error that the driver does not name".to_owned(),
    };
    let advice = match error.0 {
        CUDA_ERROR_NO_DEVICE => {
            ". The driver sees no GPU: `nvidia-smi` must list one, and CUDA_VISIBLE_DEVICES must not hide it"
        }
        CUDA_ERROR_STUB_LIBRARY => {
            ". The toolkit's stub was loaded in the driver's place: take its folder off LD_LIBRARY_PATH"
        }
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH | CUDA_ERROR_SYSTEM_NOT_READY => {
            ". The driver's library and its kernel module do not fit together; a restart of the machine usually helps"
        }
        CUDA_ERROR_OUT_OF_MEMORY => {
            ". Use a smaller batch, or end what else uses the GPU (`nvidia-smi` lists it)"
        }
        CUDA_ERROR_ILLEGAL_ADDRESS
        | CUDA_ERROR_ILLEGAL_INSTRUCTION
        | CUDA_ERROR_INVALID_PC
        | CUDA_ERROR_MISALIGNED_ADDRESS
        | CUDA_ERROR_LAUNCH_FAILED
        | CUDA_ERROR_LAUNCH_TIMEOUT => {
            ". A kernel failed, and nothing more can be computed in this process; the last checkpoint is untouched. `compute-sanitizer` before the same command names the place"
        }
        CUDA_ERROR_NO_BINARY_FOR_GPU
        | CUDA_ERROR_INVALID_IMAGE
        | CUDA_ERROR_UNSUPPORTED_PTX_VERSION => {
            ". The driver does not take what NVRTC made: a newer driver helps, or an older NVRTC"
        }
        _ => "",
    };
    format!(
        "{} ({}){advice}",
        text(error.error_string()),
        text(error.error_name())
    )
}

/// Opens the library and returns the CUDA version that it speaks.
///
/// # Errors
/// No library, one that is too old, or no GPU.
pub(super) fn open() -> Result<(u32, u32)> {
    let too_old = |why: String| {
        let (major, minor) = OLDEST_DRIVER;
        Error::Device(format!(
            "NVIDIA's driver is too old: {why}, and CUDA {major}.{minor} is needed (driver 525 or newer)"
        ))
    };
    // SAFETY: NVIDIA's library asks nothing of whoever loads it.
    if !unsafe { sys::is_culib_present() } {
        return Err(Error::Device(
            "NVIDIA's driver is not here: libcuda.so.1 cannot be loaded. Install the driver, or use --device cpu"
                .to_owned(),
        ));
    }
    // SAFETY: as above; it is present.
    let library = unsafe { sys::culib() };
    for name in FUNCTIONS {
        // SAFETY: the address is not used.
        if unsafe { library.get::<*const ()>(name) }.is_err() {
            return Err(too_old(format!("it has no {}", name.to_string_lossy())));
        }
    }
    let mut version = 0;
    // SAFETY: one integer that outlives the call; allowed before cuInit.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    status
        .result()
        .map_err(failed("asking the driver's version"))?;
    let version = ((version / 1000) as u32, (version % 1000 / 10) as u32);
    if version < OLDEST_DRIVER {
        return Err(too_old(format!(
            "it speaks CUDA {}.{}",
            version.0, version.1
        )));
    }
    result::init().map_err(failed("starting CUDA"))?;
    Ok(version)
}

/// GPUs that the driver sees; [`open`] comes first.
pub(super) fn count() -> Result<usize> {
    let count = result::device::get_count().map_err(failed("counting the GPUs"))?;
    Ok(count.max(0) as usize)
}

/// GPU number `ordinal`, if there is one.
pub(super) fn device(ordinal: usize) -> Result<CUdevice> {
    let count = count()?;
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
    result::device::get(ordinal as i32).map_err(failed(format_args!("opening cuda:{ordinal}")))
}

/// A number that describes a device.
pub(super) fn attribute(device: CUdevice, attribute: CUdevice_attribute) -> Result<u32> {
    // SAFETY: the device comes from `device`.
    let value = unsafe { result::device::get_attribute(device, attribute) };
    let value = value.map_err(failed("asking what the GPU offers"))?;
    Ok(value.max(0) as u32)
}

/// What a device is.
pub(super) fn properties(device: CUdevice, driver: (u32, u32)) -> Result<Properties> {
    use CUdevice_attribute::*;
    let name = result::device::get_name(device).map_err(failed("asking the GPU's name"))?;
    // SAFETY: the device comes from `device`.
    let memory = unsafe { result::device::total_mem(device) };
    Ok(Properties {
        name,
        capability: (
            attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(device, CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(device, CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory: memory.map_err(failed("asking the GPU's memory"))? as u64,
        shared_per_block: attribute(
            device,
            CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
        )?,
        driver,
    })
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

/// What kernels are compiled for: what was chosen, if the card runs it, or the card's own machine code.
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
