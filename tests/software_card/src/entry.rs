//! The functions of the driver's interface, as `cuda.h` declares them. Pointers must be valid, as for the driver.
#![allow(non_snake_case, reason = "the interface's names")]

use crate::card::{Card, Function, call, call_in_context};
use crate::faults::{
    self, INVALID_DEVICE, INVALID_HANDLE, INVALID_PTX, INVALID_VALUE, NO_BINARY_FOR_GPU, NOT_FOUND,
    Status,
};
use crate::memory::{Host, Kind, POISON};
use crate::queue::{Event, Handle, Stream, Work};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};

/// The CUDA version that the driver speaks: 13.0.
const VERSION: c_int = 13_000;
/// Multiprocessors.
const MULTIPROCESSORS: c_int = 16;
/// Bytes of shared memory that a block may have without asking for more.
const SHARED_BY_DEFAULT: u32 = 48 << 10;

/// Writes a result to the caller's pointer.
///
/// # Safety
/// `to` is null, or one value can be written there.
unsafe fn put<T>(to: *mut T, value: T) -> Result<(), Status> {
    if to.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller's duty.
    unsafe { to.write(value) };
    Ok(())
}

/// There is one device, number 0.
fn device(card: &Card, device: c_int) -> Result<(), Status> {
    card.started()?;
    match device {
        0 => Ok(()),
        _ => Err(INVALID_DEVICE),
    }
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuInit(flags: c_uint) -> Status {
    call("cuInit", |card| {
        card.started = flags == 0;
        card.started.then_some(()).ok_or(INVALID_VALUE)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    // SAFETY: the caller's pointer.
    call("cuDriverGetVersion", |_| unsafe { put(version, VERSION) })
}

/// NVRTC asks for an internal table here, and works without it.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuGetExportTable(
    _table: *mut *const c_void,
    _id: *const c_void,
) -> Status {
    NOT_FOUND
}

fn text(
    status: Status,
    to: *mut *const c_char,
    choose: fn((&'static CStr, &'static CStr)) -> &'static CStr,
) -> Status {
    let known = faults::known(status).map(choose);
    let pointer = known.map_or(std::ptr::null(), CStr::as_ptr);
    // SAFETY: the caller's pointer.
    match unsafe { put(to, pointer) } {
        Ok(()) if known.is_some() => 0,
        _ => INVALID_VALUE,
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGetErrorName(status: Status, name: *mut *const c_char) -> Status {
    text(status, name, |(name, _)| name)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuGetErrorString(
    status: Status,
    string: *mut *const c_char,
) -> Status {
    text(status, string, |(_, text)| text)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    call("cuDeviceGetCount", |card| {
        card.started()?;
        // SAFETY: the caller's pointer.
        unsafe { put(count, 1) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGet(to: *mut c_int, ordinal: c_int) -> Status {
    call("cuDeviceGet", |card| {
        device(card, ordinal)?;
        // SAFETY: the caller's pointer.
        unsafe { put(to, ordinal) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetName(
    name: *mut c_char,
    len: c_int,
    number: c_int,
) -> Status {
    call("cuDeviceGetName", |card| {
        device(card, number)?;
        let text = format!("software card ({})\0", card.settings.arithmetic);
        if name.is_null() || (len as usize) < text.len() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller's buffer has room for `len` characters.
        unsafe { name.copy_from_nonoverlapping(text.as_ptr().cast(), text.len()) };
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, number: c_int) -> Status {
    call("cuDeviceTotalMem_v2", |card| {
        device(card, number)?;
        // SAFETY: the caller's pointer.
        unsafe { put(bytes, card.settings.memory as usize) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDeviceGetAttribute(
    value: *mut c_int,
    attribute: c_uint,
    number: c_int,
) -> Status {
    call("cuDeviceGetAttribute", |card| {
        device(card, number)?;
        let (major, minor) = card.settings.capability;
        let found = match attribute {
            // CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT
            16 => MULTIPROCESSORS,
            // CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR
            75 => major as c_int,
            76 => minor as c_int,
            // CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
            97 => card.settings.shared_per_block() as c_int,
            // CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED
            115 => card.settings.pools.into(),
            _ => return Err(INVALID_VALUE),
        };
        // SAFETY: the caller's pointer.
        unsafe { put(value, found) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuDevicePrimaryCtxRetain(to: *mut Handle, number: c_int) -> Status {
    call("cuDevicePrimaryCtxRetain", |card| {
        device(card, number)?;
        let handle = card.retain()?;
        // SAFETY: the caller's pointer.
        unsafe { put(to, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuDevicePrimaryCtxRelease_v2(number: c_int) -> Status {
    call("cuDevicePrimaryCtxRelease_v2", |card| {
        device(card, number)?;
        card.release()
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuCtxSetCurrent(context: Handle) -> Status {
    call("cuCtxSetCurrent", |card| card.set_current(context))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    call_in_context("cuMemGetInfo_v2", |context| {
        let (used, all) = (context.machine.memory_used(), context.memory);
        // SAFETY: the caller's pointers.
        unsafe {
            put(free, (all - used.min(all)) as usize)?;
            put(total, all as usize)
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuStreamCreate(to: *mut Handle, _flags: c_uint) -> Status {
    call_in_context("cuStreamCreate", |context| {
        let handle = context.handle("streams");
        context.streams.insert(handle, Stream::default());
        // SAFETY: the caller's pointer.
        unsafe { put(to, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamDestroy_v2(stream: Handle) -> Status {
    call_in_context("cuStreamDestroy_v2", |context| {
        context.synchronize(stream)?;
        context.streams.remove(&stream);
        context.released("streams");
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuStreamSynchronize(stream: Handle) -> Status {
    call_in_context("cuStreamSynchronize", |context| context.synchronize(stream))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuEventCreate(to: *mut Handle, flags: c_uint) -> Status {
    call_in_context("cuEventCreate", |context| {
        let handle = context.handle("events");
        // CU_EVENT_DISABLE_TIMING
        let timed = flags & 2 == 0;
        context.events.insert(handle, Event::new(timed));
        // SAFETY: the caller's pointer.
        unsafe { put(to, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventDestroy_v2(event: Handle) -> Status {
    call_in_context("cuEventDestroy_v2", |context| {
        context.events.remove(&event).ok_or(INVALID_HANDLE)?;
        context.released("events");
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventRecord(event: Handle, stream: Handle) -> Status {
    call_in_context("cuEventRecord", |context| {
        let found = context.events.get_mut(&event).ok_or(INVALID_HANDLE)?;
        found.recorded += 1;
        found.stream = stream;
        let nth = found.recorded;
        context.queue(stream, Work::Record { event, nth })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuEventSynchronize(event: Handle) -> Status {
    call_in_context("cuEventSynchronize", |context| context.wait(event))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuEventElapsedTime(
    to: *mut f32,
    from: Handle,
    until: Handle,
) -> Status {
    call_in_context("cuEventElapsedTime", |context| {
        let milliseconds = context.elapsed(from, until)?;
        // SAFETY: the caller's pointer.
        unsafe { put(to, milliseconds) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemAlloc_v2(to: *mut u64, bytes: usize) -> Status {
    call_in_context("cuMemAlloc_v2", |context| {
        let address = context.alloc(bytes)?;
        // SAFETY: the caller's pointer.
        unsafe { put(to, address) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemAllocAsync(
    to: *mut u64,
    bytes: usize,
    stream: Handle,
) -> Status {
    call_in_context("cuMemAllocAsync", |context| {
        if !context.streams.contains_key(&stream) {
            return Err(INVALID_HANDLE);
        }
        let address = context.alloc(bytes)?;
        // SAFETY: the caller's pointer.
        unsafe { put(to, address) }
    })
}

/// Waits for all streams.
#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFree_v2(address: u64) -> Status {
    call_in_context("cuMemFree_v2", |context| {
        context.device.retire(address)?;
        context.synchronize_all()?;
        context.run(Work::Free { address })
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFreeAsync(address: u64, stream: Handle) -> Status {
    call_in_context("cuMemFreeAsync", |context| {
        context.device.retire(address)?;
        context.queue(stream, Work::Free { address })
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemHostAlloc(
    to: *mut usize,
    bytes: usize,
    _flags: c_uint,
) -> Status {
    call_in_context("cuMemHostAlloc", |context| {
        let Host(address) = context.pinned.alloc(bytes)?;
        context.made("pinned");
        // SAFETY: the caller's pointer.
        unsafe { put(to, address) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemFreeHost(address: usize) -> Status {
    call_in_context("cuMemFreeHost", |context| {
        context.pinned.free(Host(address))?;
        context.released("pinned");
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: usize,
    bytes: usize,
    stream: Handle,
) -> Status {
    call_in_context("cuMemcpyHtoDAsync_v2", |context| {
        let from = Host(from);
        let work = match context.pinned.kind(from, bytes)? {
            Kind::Pinned => Work::UploadPinned { to, from, bytes },
            Kind::Pageable => {
                // SAFETY: the caller's bytes.
                let data = unsafe { from.read(bytes) };
                Work::Upload { to, data }
            }
        };
        context.queue(stream, work)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuMemcpyDtoHAsync_v2(
    to: usize,
    from: u64,
    bytes: usize,
    stream: Handle,
) -> Status {
    call_in_context("cuMemcpyDtoHAsync_v2", |context| {
        let to = Host(to);
        let kind = context.pinned.kind(to, bytes)?;
        // SAFETY: the caller's memory, which it leaves alone until the copy is done.
        unsafe { to.write(&vec![POISON; bytes]) };
        context.queue(
            stream,
            Work::Download {
                to,
                from,
                bytes,
                kind,
            },
        )?;
        match kind {
            Kind::Pinned => Ok(()),
            Kind::Pageable => context.synchronize(stream),
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuMemsetD8Async(
    to: u64,
    value: u8,
    bytes: usize,
    stream: Handle,
) -> Status {
    call_in_context("cuMemsetD8Async", |context| {
        context.queue(stream, Work::Fill { to, value, bytes })
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuModuleLoadData(to: *mut Handle, image: *const c_char) -> Status {
    call_in_context("cuModuleLoadData", |context| {
        if image.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: a cubin and PTX are longer than four bytes.
        let magic = unsafe { std::slice::from_raw_parts(image.cast::<u8>(), 4) };
        if magic == b"\x7fELF" {
            return Err(NO_BINARY_FOR_GPU);
        }
        // SAFETY: everything except a cubin is PTX, which ends with a zero byte.
        let ptx = unsafe { CStr::from_ptr(image) }.to_str();
        let ptx = ptx.map_err(|_| INVALID_PTX)?;
        if target(ptx).ok_or(INVALID_PTX)? > context.capability {
            return Err(NO_BINARY_FOR_GPU);
        }
        let module = context.machine.load(ptx).map_err(|error| {
            eprintln!("software card: {error}");
            INVALID_PTX
        })?;
        let handle = context.handle("modules");
        context.modules.insert(handle, module);
        // SAFETY: the caller's pointer.
        unsafe { put(to, handle) }
    })
}

/// The compute capability that PTX is for.
fn target(ptx: &str) -> Option<(u32, u32)> {
    let (_, rest) = ptx.split_once(".target sm_")?;
    let digits = rest.split(|c: char| !c.is_ascii_digit()).next()?;
    let number: u32 = digits.parse().ok()?;
    Some((number / 10, number % 10))
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuModuleUnload(module: Handle) -> Status {
    call_in_context("cuModuleUnload", |context| {
        context.modules.remove(&module).ok_or(INVALID_HANDLE)?;
        context
            .functions
            .retain(|_, function| function.module != module);
        context.released("modules");
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuModuleGetFunction(
    to: *mut Handle,
    module: Handle,
    name: *const c_char,
) -> Status {
    call_in_context("cuModuleGetFunction", |context| {
        let code = context.modules.get(&module).ok_or(INVALID_HANDLE)?;
        // SAFETY: the caller's string.
        let name = unsafe { CStr::from_ptr(name) }.to_string_lossy();
        let info = code.kernel(&name).ok_or(NOT_FOUND)?;
        let handle = context.unowned_handle();
        let function = Function {
            module,
            dynamic: SHARED_BY_DEFAULT.saturating_sub(info.shared_bytes),
            info,
        };
        context.functions.insert(handle, function);
        // SAFETY: the caller's pointer.
        unsafe { put(to, handle) }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuFuncGetAttribute(
    value: *mut c_int,
    attribute: c_uint,
    function: Handle,
) -> Status {
    call_in_context("cuFuncGetAttribute", |context| {
        let function = context.functions.get(&function).ok_or(INVALID_HANDLE)?;
        // CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES
        if attribute != 1 {
            return Err(INVALID_VALUE);
        }
        // SAFETY: the caller's pointer.
        unsafe { put(value, function.info.shared_bytes as c_int) }
    })
}

#[unsafe(no_mangle)]
pub(crate) extern "C" fn cuFuncSetAttribute(
    function: Handle,
    attribute: c_uint,
    value: c_int,
) -> Status {
    call_in_context("cuFuncSetAttribute", |context| {
        let limit = context.shared_per_block;
        let function = context.functions.get_mut(&function).ok_or(INVALID_HANDLE)?;
        let bytes = u32::try_from(value).map_err(|_| INVALID_VALUE)?;
        // CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        if attribute != 8 || bytes > limit.saturating_sub(function.info.shared_bytes) {
            return Err(INVALID_VALUE);
        }
        function.dynamic = bytes;
        Ok(())
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn cuLaunchKernel(
    function: Handle,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: Handle,
    parameters: *const *const u8,
    extra: *const c_void,
) -> Status {
    call_in_context("cuLaunchKernel", |context| {
        let found = context.functions.get(&function).ok_or(INVALID_HANDLE)?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let threads: u64 = block.iter().map(|n| u64::from(*n)).product();
        let most = match found.info.max_threads {
            0 => 1024,
            most => most.min(1024),
        };
        let fits = grid[0] <= i32::MAX as u32 && grid[1] <= 65_535 && grid[2] <= 65_535;
        let some = !grid.contains(&0) && threads > 0;
        if !fits || !some || threads > u64::from(most) || shared > found.dynamic || !extra.is_null()
        {
            return Err(INVALID_VALUE);
        }
        // The driver copies the parameters at the call.
        let copy = |(i, parameter): (usize, &ptx_emulator::Parameter)| {
            // SAFETY: the caller gives a pointer for each parameter, to as many bytes as it has.
            unsafe { Host((*parameters.add(i)) as usize).read(parameter.bytes as usize) }
        };
        let arguments = found.info.parameters.iter().enumerate().map(copy).collect();
        let work = Work::Launch {
            module: found.module,
            code: context.modules[&found.module].clone(),
            kernel: found.info.name.clone(),
            grid,
            block,
            shared,
            arguments,
        };
        context.queue(stream, work)
    })
}
