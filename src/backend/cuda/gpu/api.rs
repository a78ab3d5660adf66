//! The CUDA driver functions that this program calls, as `cuda.h` declares them, and the meaning of their statuses.
//!
//! cudarc opens the library and provides the types. Its own functions are not called, because they return a Rust enum:
//! a newer driver may return a status that the enum lacks, which would be undefined behaviour. Here a status is an
//! integer.

use crate::{Error, Result};
use cudarc::driver::sys::{
    self, CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUfunction,
    CUfunction_attribute, CUmodule, CUresult, CUstream,
};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt::Display;
use std::sync::OnceLock;

/// The status that a driver function returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
#[must_use]
pub(super) struct Status(c_int);

impl Status {
    pub(super) const SUCCESS: Status = Status(CUresult::CUDA_SUCCESS as c_int);
    pub(super) const OUT_OF_MEMORY: Status = Status(CUresult::CUDA_ERROR_OUT_OF_MEMORY as c_int);
}

/// Declares the table. Each entry is a field, its symbol in the library and its parameters.
macro_rules! functions {
    ($($field:ident = $symbol:ident($($parameter:ty),*);)*) => {
        /// The driver's functions, looked up when the library is opened.
        #[derive(Debug)]
        pub(super) struct Api {
            $(pub(super) $field: unsafe extern "C" fn($($parameter),*) -> Status,)*
        }

        impl Api {
            /// Looks up every function; the error is the name of one that the library lacks.
            ///
            /// # Safety
            /// `library` is CUDA's driver, and stays loaded.
            unsafe fn find(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Api {
                    // SAFETY: the parameters are those of cuda.h; the address stays valid, since the library does.
                    $($field: unsafe { *library.get(stringify!($symbol)).map_err(|_| stringify!($symbol))? },)*
                })
            }
        }
    };
}

functions! {
    ctx_set_current = cuCtxSetCurrent(CUcontext);
    device_get = cuDeviceGet(*mut CUdevice, c_int);
    device_get_attribute = cuDeviceGetAttribute(*mut c_int, CUdevice_attribute, CUdevice);
    device_get_count = cuDeviceGetCount(*mut c_int);
    device_get_name = cuDeviceGetName(*mut c_char, c_int, CUdevice);
    device_total_mem = cuDeviceTotalMem_v2(*mut usize, CUdevice);
    driver_get_version = cuDriverGetVersion(*mut c_int);
    event_create = cuEventCreate(*mut CUevent, c_uint);
    event_destroy = cuEventDestroy_v2(CUevent);
    event_elapsed_time = cuEventElapsedTime(*mut f32, CUevent, CUevent);
    event_record = cuEventRecord(CUevent, CUstream);
    event_synchronize = cuEventSynchronize(CUevent);
    func_get_attribute = cuFuncGetAttribute(*mut c_int, CUfunction_attribute, CUfunction);
    func_set_attribute = cuFuncSetAttribute(CUfunction, CUfunction_attribute, c_int);
    get_error_name = cuGetErrorName(Status, *mut *const c_char);
    get_error_string = cuGetErrorString(Status, *mut *const c_char);
    init = cuInit(c_uint);
    launch_kernel = cuLaunchKernel(
        CUfunction, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, CUstream, *mut *mut c_void,
        *mut *mut c_void
    );
    mem_alloc = cuMemAlloc_v2(*mut CUdeviceptr, usize);
    mem_alloc_async = cuMemAllocAsync(*mut CUdeviceptr, usize, CUstream);
    mem_free = cuMemFree_v2(CUdeviceptr);
    mem_free_async = cuMemFreeAsync(CUdeviceptr, CUstream);
    mem_free_host = cuMemFreeHost(*mut c_void);
    mem_get_info = cuMemGetInfo_v2(*mut usize, *mut usize);
    mem_host_alloc = cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    memcpy_dtoh_async = cuMemcpyDtoHAsync_v2(*mut c_void, CUdeviceptr, usize, CUstream);
    memcpy_htod_async = cuMemcpyHtoDAsync_v2(CUdeviceptr, *const c_void, usize, CUstream);
    memset_d8_async = cuMemsetD8Async(CUdeviceptr, u8, usize, CUstream);
    module_get_function = cuModuleGetFunction(*mut CUfunction, CUmodule, *const c_char);
    module_load_data = cuModuleLoadData(*mut CUmodule, *const c_void);
    module_unload = cuModuleUnload(CUmodule);
    primary_ctx_release = cuDevicePrimaryCtxRelease_v2(CUdevice);
    primary_ctx_retain = cuDevicePrimaryCtxRetain(*mut CUcontext, CUdevice);
    stream_create = cuStreamCreate(*mut CUstream, c_uint);
    stream_destroy = cuStreamDestroy_v2(CUstream);
    stream_synchronize = cuStreamSynchronize(CUstream);
}

/// Advice for some statuses, appended to the driver's own message.
const ADVICE: [(&[CUresult], &str); 8] = [
    (
        &[CUresult::CUDA_ERROR_NO_DEVICE],
        ". The driver sees no GPU: `nvidia-smi` must list one, and CUDA_VISIBLE_DEVICES must not hide it",
    ),
    (
        &[CUresult::CUDA_ERROR_STUB_LIBRARY],
        ". The toolkit's stub library was loaded instead of the driver: remove its folder from LD_LIBRARY_PATH",
    ),
    (
        &[
            CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH,
            CUresult::CUDA_ERROR_SYSTEM_NOT_READY,
        ],
        ". The driver's library and its kernel module do not match; restarting the machine usually helps",
    ),
    (
        &[CUresult::CUDA_ERROR_OUT_OF_MEMORY],
        ". Use a smaller batch, or stop other processes that use the GPU (`nvidia-smi` lists them)",
    ),
    (
        &[CUresult::CUDA_ERROR_DEVICE_UNAVAILABLE],
        ". Another process may hold the GPU exclusively: `nvidia-smi` shows the compute mode and the processes",
    ),
    (
        &[
            CUresult::CUDA_ERROR_ECC_UNCORRECTABLE,
            CUresult::CUDA_ERROR_HARDWARE_STACK_ERROR,
            CUresult::CUDA_ERROR_UNKNOWN,
        ],
        ". The GPU is lost to this process; the last checkpoint is untouched. `nvidia-smi` and the system log may show why",
    ),
    (
        &[
            CUresult::CUDA_ERROR_ILLEGAL_ADDRESS,
            CUresult::CUDA_ERROR_ILLEGAL_INSTRUCTION,
            CUresult::CUDA_ERROR_INVALID_PC,
            CUresult::CUDA_ERROR_MISALIGNED_ADDRESS,
            CUresult::CUDA_ERROR_LAUNCH_FAILED,
            CUresult::CUDA_ERROR_LAUNCH_TIMEOUT,
        ],
        ". A kernel failed, and this process can no longer use the GPU; the last checkpoint is untouched. Run the same command under `compute-sanitizer` to find the place",
    ),
    (
        &[
            CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU,
            CUresult::CUDA_ERROR_INVALID_IMAGE,
            CUresult::CUDA_ERROR_INVALID_PTX,
            CUresult::CUDA_ERROR_UNSUPPORTED_PTX_VERSION,
        ],
        ". The driver does not take NVRTC's output: use a newer driver or an older NVRTC",
    ),
];

impl Api {
    /// The driver's functions, from the library that cudarc opens; None if there is no library.
    ///
    /// # Errors
    /// The name of a function that the library lacks.
    pub(super) fn open() -> Option<Result<&'static Self, &'static str>> {
        static API: OnceLock<Result<Api, &str>> = OnceLock::new();
        // cudarc panics if there is no library.
        // SAFETY: loading NVIDIA's library has no preconditions.
        if !unsafe { sys::is_culib_present() } {
            return None;
        }
        // SAFETY: as above; it is present, and cudarc never unloads it.
        let api = API.get_or_init(|| unsafe { Api::find(sys::culib()) });
        Some(api.as_ref().map_err(|name| *name))
    }

    /// Turns a status into a result; `doing` begins the error message.
    pub(super) fn check(&self, status: Status, doing: impl Display) -> Result<()> {
        match status {
            Status::SUCCESS => Ok(()),
            status => Err(Error::Device(format!("{doing}: {}", self.sentence(status)))),
        }
    }

    /// The meaning of a status, and what to do about it.
    fn sentence(&self, status: Status) -> String {
        let text = |ask: unsafe extern "C" fn(Status, *mut *const c_char) -> Status| {
            let mut text = std::ptr::null();
            // SAFETY: any integer may be asked for; the pointer outlives the call.
            let known = unsafe { ask(status, &mut text) } == Status::SUCCESS && !text.is_null();
            // SAFETY: a string constant of the library, which stays loaded.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy())
        };
        let Status(code) = status;
        let (meaning, name) = (text(self.get_error_string), text(self.get_error_name));
        let advice = ADVICE
            .iter()
            .find(|(codes, _)| codes.iter().any(|c| *c as c_int == code));
        format!(
            "{} ({}, status {code}){}",
            meaning
                .as_deref()
                .unwrap_or("an error that the driver does not describe"),
            name.as_deref().unwrap_or("without a name"),
            advice.map_or("", |(_, advice)| advice)
        )
    }
}
