//! A GPU's context with its one stream, and what lives in it: memory on both sides, and marks in the stream.

use super::library::{attribute, failed};
use crate::backend::cuda::driver::Memory;
use crate::{Error, Result};
use cudarc::driver::result::{self, stream::StreamKind};
use cudarc::driver::sys::{
    CUcontext, CUdevice, CUdevice_attribute, CUdeviceptr, CUevent, CUevent_flags, CUresult,
    CUstream,
};
use std::sync::Arc;

/// The device's primary context and a stream of its own, in which everything is queued.
#[derive(Debug)]
pub(super) struct Context {
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
    pub(super) fn new(device: CUdevice, pooled: bool) -> Result<Arc<Self>> {
        let pools = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
        let pooled = pooled && attribute(device, pools)? != 0;
        // SAFETY: the device comes from the driver; released when the context is dropped.
        let context = unsafe { result::primary_ctx::retain(device) };
        let mut context = Context {
            device,
            context: context.map_err(failed("opening the GPU"))?,
            stream: std::ptr::null_mut(),
            pooled,
        };
        context.bind()?;
        // Not the default stream: it waits for others, and cannot be captured in a graph.
        let stream = result::stream::create(StreamKind::NonBlocking);
        context.stream = stream.map_err(failed("opening a stream on the GPU"))?;
        Ok(Arc::new(context))
    }

    /// The stream.
    pub(super) fn stream(&self) -> CUstream {
        self.stream
    }

    /// Makes the context current on this thread; every use of it begins so.
    pub(super) fn bind(&self) -> Result<()> {
        // SAFETY: the context is retained for as long as `self` lives.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed("using the GPU"))
    }

    /// Waits until the stream is empty.
    pub(super) fn synchronize(&self) -> Result<()> {
        self.bind()?;
        // SAFETY: the stream lives as long as `self`.
        unsafe { result::stream::synchronize(self.stream) }.map_err(failed("computing on the GPU"))
    }

    /// Bytes that can be allocated once everything queued is done.
    pub(super) fn memory_free(&self) -> Result<u64> {
        self.synchronize()?;
        let (free, _) = result::mem_get_info().map_err(failed("asking for free memory"))?;
        Ok(free as u64)
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // What fails here cannot be helped any more: a GPU that is lost fails in all of it.
        if self.synchronize().is_ok() && !self.stream.is_null() {
            // SAFETY: created by `new`, destroyed here alone.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
        // SAFETY: retained by `new`, released here alone.
        let _ = unsafe { result::primary_ctx::release(self.device) };
    }
}

/// Device memory, given back in stream order.
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
        // An allocation of nothing is refused, but has an address here like any other.
        let room = bytes.max(1);
        // SAFETY: the stream is alive.
        let address = unsafe {
            if context.pooled {
                result::malloc_async(context.stream, room)
            } else {
                result::malloc_sync(room)
            }
        };
        let address = address.map_err(|error| {
            let free = match (error.0, result::mem_get_info()) {
                (CUresult::CUDA_ERROR_OUT_OF_MEMORY, Ok((free, total))) => format!(
                    "; {} MiB of {} MiB are free (`arcface-cu plan --device cuda` says which batch fits)",
                    free >> 20,
                    total >> 20
                ),
                _ => String::new(),
            };
            failed(format_args!("allocating {} MiB on the GPU{free}", room >> 20))(error)
        })?;
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
        // SAFETY: the caller allocated at least so many; the stream is alive.
        let filled =
            unsafe { result::memset_d8_async(self.address, 0, bytes, self.context.stream) };
        filled.map_err(failed("clearing memory on the GPU"))
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // A failure means that the GPU is lost, and its memory with it.
        if self.context.bind().is_ok() {
            // SAFETY: allocated by `new` in the same way, freed here alone; kernels that use it are queued before, and
            // the other way to free waits for them by itself.
            let _ = unsafe {
                if self.context.pooled {
                    result::free_async(self.address, self.context.stream)
                } else {
                    result::free_sync(self.address)
                }
            };
        }
    }
}

/// Memory of the host's that the GPU copies from and to by itself.
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
        // SAFETY: not used before it is filled here. Without flags it is cached, so that the host may read it.
        let begin = unsafe {
            result::malloc_host(bytes, 0).map(|begin| {
                begin.cast::<u8>().write_bytes(0, bytes);
                begin.cast()
            })
        };
        Ok(Pinned {
            context: context.clone(),
            begin: begin.map_err(failed("allocating memory that the GPU copies from"))?,
            bytes,
        })
    }

    /// Its bytes.
    pub(super) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: allocated and filled by `new`. The copies that are queued over it are waited for by whoever queued
        // them, before they touch it again.
        unsafe { std::slice::from_raw_parts_mut(self.begin, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // No copy may still be under way. Where waiting fails, the memory is left to the process's end.
        if self.context.synchronize().is_ok() {
            // SAFETY: allocated by `new`, freed here alone.
            let _ = unsafe { result::free_host(self.begin.cast()) };
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
    /// A mark that no place has yet; `timed` ones tell seconds.
    pub(super) fn new(context: &Arc<Context>, timed: bool) -> Result<Self> {
        context.bind()?;
        let event = result::event::create(match timed {
            true => CUevent_flags::CU_EVENT_DEFAULT,
            false => CUevent_flags::CU_EVENT_DISABLE_TIMING,
        });
        Ok(Mark {
            context: context.clone(),
            event: event.map_err(failed("making an event"))?,
        })
    }

    /// Moves it to the end of the stream.
    pub(super) fn record(&mut self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: event and stream are alive.
        unsafe { result::event::record(self.event, self.context.stream) }
            .map_err(failed("marking a place in the stream"))
    }

    /// Waits until the stream has passed it.
    pub(super) fn wait(&self) -> Result<()> {
        self.context.bind()?;
        // SAFETY: the event is alive.
        unsafe { result::event::synchronize(self.event) }.map_err(failed("computing on the GPU"))
    }

    /// Seconds from this mark to a later one.
    pub(super) fn seconds_to(&self, later: &Mark) -> Result<f64> {
        later.wait()?;
        // SAFETY: both events are alive.
        let milliseconds = unsafe { result::event::elapsed(self.event, later.event) };
        let milliseconds = milliseconds.map_err(failed("reading the GPU's clock"))?;
        Ok(f64::from(milliseconds) / 1e3)
    }
}

impl Drop for Mark {
    fn drop(&mut self) {
        if self.context.bind().is_ok() {
            // SAFETY: made by `new`, destroyed here alone. A failure leaves a few bytes to the process's end.
            let _ = unsafe { result::event::destroy(self.event) };
        }
    }
}

/// Copies in pieces through pinned memory, so that the host may go on while the GPU still copies.
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
        for piece in src.chunks(Self::PIECE) {
            let (pinned, mark) = &mut self.slots[self.next];
            self.next = (self.next + 1) % Self::SLOTS;
            mark.wait()?;
            let staged = &mut pinned.bytes()[..piece.len()];
            staged.copy_from_slice(piece);
            // SAFETY: the caller's memory has room for all of `src` at `dst`; the slot is left alone until its mark,
            // recorded behind the copy, has passed.
            let copied = unsafe { result::memcpy_htod_async(dst, staged, self.context.stream()) };
            copied.map_err(failed("copying to the GPU"))?;
            mark.record()?;
            dst += piece.len() as u64;
        }
        Ok(())
    }

    /// Copies (address, destination) to the host and waits: once, where a piece holds all of them.
    pub(super) fn download(&mut self, parts: Vec<(u64, &mut [u8])>) -> Result<()> {
        self.context.bind()?;
        let mut used = 0;
        let mut staged: Vec<(usize, &mut [u8])> = Vec::with_capacity(parts.len());
        for (mut src, mut dst) in parts {
            while !dst.is_empty() {
                if used == Self::PIECE {
                    self.collect(&mut staged)?;
                    used = 0;
                }
                let len = dst.len().min(Self::PIECE - used);
                let (piece, rest) = std::mem::take(&mut dst).split_at_mut(len);
                let room = &mut self.down.bytes()[used..][..len];
                // SAFETY: the caller's memory has as many bytes at `src`; the room is read behind a wait alone.
                let copied = unsafe { result::memcpy_dtoh_async(room, src, self.context.stream()) };
                copied.map_err(failed("copying from the GPU"))?;
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
