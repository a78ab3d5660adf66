//! A GPU's context with its one stream, and what lives in it: memory on both sides, and marks in the stream.

use super::api::{Api, Status};
use super::library::Library;
use crate::backend::cuda::driver::Memory;
use crate::{Error, Result};
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUevent_flags, CUstream,
    CUstream_flags,
};
use std::ptr::null_mut;
use std::sync::Arc;

/// The device's primary context and a stream of its own, in which everything is queued.
#[derive(Debug)]
pub(super) struct Context {
    api: &'static Api,
    device: CUdevice,
    context: CUcontext,
    stream: CUstream,
    /// Memory is allocated and freed in stream order.
    pooled: bool,
}

// SAFETY: the driver takes contexts and streams from any thread; each call here first makes the context current.
unsafe impl Send for Context {}
// SAFETY: as above; the driver's functions may be called from several threads at once.
unsafe impl Sync for Context {}

impl Context {
    /// `pooled`: allocations come from the driver's pool, if the card has one.
    pub(super) fn new(library: Library, device: CUdevice, pooled: bool) -> Result<Arc<Self>> {
        let api = library.api;
        let pools = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
        let pooled = pooled && library.attribute(device, pools)? != 0;
        let mut context = null_mut();
        // SAFETY: the device comes from the driver; released when the context is dropped.
        let status = unsafe { (api.primary_ctx_retain)(&mut context, device) };
        api.check(status, "opening the GPU")?;
        let mut context = Context {
            api,
            device,
            context,
            stream: null_mut(),
            pooled,
        };
        context.bind()?;
        // Not the default stream: it waits for others, and cannot be captured in a graph.
        let flags = CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the context is current; destroyed when it is dropped.
        let status = unsafe { (api.stream_create)(&mut context.stream, flags) };
        api.check(status, "opening a stream on the GPU")?;
        Ok(Arc::new(context))
    }

    /// The driver's functions.
    pub(super) fn api(&self) -> &'static Api {
        self.api
    }

    /// The stream.
    pub(super) fn stream(&self) -> CUstream {
        self.stream
    }

    /// Makes the context current on this thread; every use of it begins so.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as `self` lives.
        let status = unsafe { (self.api.ctx_set_current)(self.context) };
        self.api.check(status, "using the GPU")
    }

    /// Waits until the stream is empty.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        let status = unsafe { (self.api.stream_synchronize)(self.stream) };
        self.api.check(status, "computing on the GPU")
    }

    /// Bytes that can be allocated once everything queued is done.
    pub(super) fn memory_free(&self) -> Result<u64> {
        self.synchronize()?;
        let (free, _) = self.memory_info()?;
        Ok(free as u64)
    }

    /// Free bytes and total bytes of memory.
    fn memory_info(&self) -> Result<(usize, usize)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: two integers that outlive the call.
        let status = unsafe { (self.api.mem_get_info)(&mut free, &mut total) };
        self.api.check(status, "querying the GPU's free memory")?;
        Ok((free, total))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // Ignore failures here: on a lost GPU every call fails.
        if self.synchronize().is_ok() && !self.stream.is_null() {
            // SAFETY: created by `new`, destroyed only here.
            let _ = unsafe { (self.api.stream_destroy)(self.stream) };
        }
        // SAFETY: retained by `new`, released only here.
        let _ = unsafe { (self.api.primary_ctx_release)(self.device) };
    }
}

/// Device memory, freed in stream order.
#[derive(Debug)]
pub struct Block {
    context: Arc<Context>,
    address: CUdeviceptr,
}

impl Memory for Block {
    fn address(&self) -> u64 {
        self.address
    }
}

impl Block {
    /// `bytes` bytes that hold anything.
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.bind()?;
        let api = context.api;
        // The driver refuses an allocation of zero bytes. Here it has an address like any other.
        let room = bytes.max(1);
        let mut address = 0;
        // SAFETY: the stream is alive, and the address outlives the call.
        let status = unsafe {
            if context.pooled {
                (api.mem_alloc_async)(&mut address, room, context.stream)
            } else {
                (api.mem_alloc)(&mut address, room)
            }
        };
        let mut doing = format!("allocating {} MiB on the GPU", room >> 20);
        if status == Status::OUT_OF_MEMORY
            && let Ok((free, total)) = context.memory_info()
        {
            doing += &format!(
                "; {} MiB of {} MiB are free (`arcface-cu plan --device cuda` says which batch fits)",
                free >> 20,
                total >> 20
            );
        }
        api.check(status, doing)?;
        Ok(Block {
            context: context.clone(),
            address,
        })
    }

    /// Fills the first `bytes` bytes with zeros.
    pub(super) fn clear(&mut self, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.context.bind()?;
        let Context { api, stream, .. } = *self.context;
        // SAFETY: the caller allocated at least that many bytes; the stream is alive.
        let status = unsafe { (api.memset_d8_async)(self.address, 0, bytes, stream) };
        api.check(status, "clearing memory on the GPU")
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // A failure means that the GPU is lost, and its memory with it.
        if self.context.bind().is_ok() {
            // SAFETY: allocated by `new` in the same way, freed only here. Kernels that use it are queued before;
            // without the pool, the call to free waits for them.
            let _ = unsafe {
                if self.context.pooled {
                    (self.context.api.mem_free_async)(self.address, self.context.stream)
                } else {
                    (self.context.api.mem_free)(self.address)
                }
            };
        }
    }
}

/// Pinned host memory, which the GPU copies from and to by itself.
#[derive(Debug)]
pub(super) struct Pinned {
    context: Arc<Context>,
    begin: *mut u8,
    bytes: usize,
}

// SAFETY: memory like any other, and only `self` has its address.
unsafe impl Send for Pinned {}

impl Pinned {
    pub(super) fn new(context: &Arc<Context>, bytes: usize) -> Result<Self> {
        context.bind()?;
        let mut begin = null_mut();
        // SAFETY: the pointer outlives the call. Without flags the memory is cached, so that the host may read it.
        let status = unsafe { (context.api.mem_host_alloc)(&mut begin, bytes, 0) };
        let doing = "allocating pinned memory";
        context.api.check(status, doing)?;
        // SAFETY: that many bytes were allocated.
        unsafe { begin.cast::<u8>().write_bytes(0, bytes) };
        Ok(Pinned {
            context: context.clone(),
            begin: begin.cast(),
            bytes,
        })
    }

    /// Its bytes.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated and filled by `new`. Whoever queues a copy over it waits for the copy before touching it
        // again.
        unsafe { std::slice::from_raw_parts_mut(self.begin, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // No copy may still be under way. If waiting fails, the memory stays until the process ends.
        if self.context.synchronize().is_ok() {
            // SAFETY: allocated by `new`, freed only here.
            let _ = unsafe { (self.context.api.mem_free_host)(self.begin.cast()) };
        }
    }
}

/// A mark in the stream.
#[derive(Debug)]
pub struct Mark {
    context: Arc<Context>,
    event: CUevent,
}

// SAFETY: the driver takes events from any thread.
unsafe impl Send for Mark {}

impl Mark {
    /// A mark that is not recorded yet; a `timed` one measures seconds.
    pub(super) fn new(context: &Arc<Context>, timed: bool) -> Result<Self> {
        context.bind()?;
        let flags = match timed {
            true => CUevent_flags::CU_EVENT_DEFAULT,
            false => CUevent_flags::CU_EVENT_DISABLE_TIMING,
        };
        let mut event = null_mut();
        // SAFETY: the context is current, and the pointer outlives the call.
        let status = unsafe { (context.api.event_create)(&mut event, flags as u32) };
        context.api.check(status, "creating an event on the GPU")?;
        Ok(Mark {
            context: context.clone(),
            event,
        })
    }

    /// Moves it to the end of the stream.
    pub(super) fn record(&mut self) -> Result<()> {
        self.context.bind()?;
        let Context { api, stream, .. } = *self.context;
        // SAFETY: event and stream are alive.
        let status = unsafe { (api.event_record)(self.event, stream) };
        api.check(status, "recording an event on the GPU")
    }

    /// Waits until the stream has passed it.
    pub(super) fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the event is alive.
        let status = unsafe { (self.context.api.event_synchronize)(self.event) };
        self.context.api.check(status, "computing on the GPU")
    }

    /// Seconds from this mark to a later one.
    pub(super) fn seconds_to(&self, later: &Mark) -> Result<f64> {
        later.wait()?;
        let api = self.context.api;
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive, and the number outlives the call.
        let status =
            unsafe { (api.event_elapsed_time)(&mut milliseconds, self.event, later.event) };
        api.check(status, "reading the GPU's clock")?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made by `new`, destroyed only here. A failure leaks a few bytes until the process ends.
            let _ = unsafe { (self.context.api.event_destroy)(self.event) };
        }
    }
}

/// Copies in pieces through pinned memory, so that the host can continue while the GPU still copies.
#[derive(Debug)]
pub(super) struct Staging {
    context: Arc<Context>,
    slots: Vec<(Pinned, Mark)>,
    next: usize,
    down: Pinned,
}

impl Staging {
    /// Bytes of a piece: large enough for the bus's full speed.
    const PIECE: usize = 4 << 20;
    /// Pieces under way at a time; a batch of 512 pictures has five.
    const SLOTS: usize = 8;

    pub(super) fn new(context: &Arc<Context>) -> Result<Self> {
        let slot = |_| {
            let mut mark = Mark::new(context, false)?;
            mark.record()?;
            Ok((Pinned::new(context, Self::PIECE)?, mark))
        };
        Ok(Staging {
            context: context.clone(),
            slots: (0..Self::SLOTS).map(slot).collect::<Result<_>>()?,
            next: 0,
            down: Pinned::new(context, Self::PIECE)?,
        })
    }

    /// Queues a copy to the device.
    pub(super) fn upload(&mut self, src: &[u8], mut dst: u64) -> Result<()> {
        self.context.bind()?;
        let Context { api, stream, .. } = *self.context;
        for piece in src.chunks(Self::PIECE) {
            let (pinned, mark) = &mut self.slots[self.next];
            self.next = (self.next + 1) % Self::SLOTS;
            mark.wait()?;
            let staged = &mut pinned.bytes()[..piece.len()];
            staged.copy_from_slice(piece);
            // SAFETY: the caller's memory has room for all of `src` at `dst`; the slot is not used again until its
            // mark, recorded after the copy, has passed.
            let status = unsafe {
                (api.memcpy_htod_async)(dst, staged.as_ptr().cast(), staged.len(), stream)
            };
            api.check(status, "copying to the GPU")?;
            mark.record()?;
            dst += piece.len() as u64;
        }
        Ok(())
    }

    /// Copies (address, destination) to the host and waits: only once if one piece holds all of them.
    pub(super) fn download<'a>(
        &mut self,
        parts: impl Iterator<Item = (u64, &'a mut [u8])>,
    ) -> Result<()> {
        self.context.bind()?;
        let Context { api, stream, .. } = *self.context;
        let mut used = 0;
        let mut staged: Vec<(usize, &mut [u8])> = Vec::new();
        for (mut src, mut dst) in parts {
            while !dst.is_empty() {
                if used == Self::PIECE {
                    self.collect(&mut staged)?;
                    used = 0;
                }
                let len = dst.len().min(Self::PIECE - used);
                let (piece, rest) = std::mem::take(&mut dst).split_at_mut(len);
                let room = &mut self.down.bytes()[used..][..len];
                // SAFETY: the caller's memory has as many bytes at `src`; the room is read only after a wait.
                let status =
                    unsafe { (api.memcpy_dtoh_async)(room.as_mut_ptr().cast(), src, len, stream) };
                api.check(status, "copying from the GPU")?;
                staged.push((used, piece));
                (used, src, dst) = (used + len, src + len as u64, rest);
            }
        }
        self.collect(&mut staged)
    }

    /// Waits for the copies that are queued, and hands out what they brought.
    fn collect(&mut self, staged: &mut Vec<(usize, &mut [u8])>) -> Result<(), Error> {
        self.context.synchronize()?;
        let down = self.down.bytes();
        for (at, piece) in staged.drain(..) {
            piece.copy_from_slice(&down[at..][..piece.len()]);
        }
        Ok(())
    }
}
