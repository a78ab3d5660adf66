//! The CUDA backend: all host logic of the kernels in `kernels/`, above the thin [`driver::Driver`].
//!
//! An operation's file here has the stem of its kernel file: it chooses kernels and grids, and packs arguments. Work is
//! cut into tiles whose number depends only on the shapes, and partial sums are added in tile order: the same inputs
//! give the same bits on the same device.

mod add;
mod arcface;
mod args;
mod batch_norm;
mod close_grad;
mod columns;
mod conv;
mod depthwise;
pub mod driver;
mod dropout;
mod epilogue;
pub mod gpu;
mod input_transform;
pub mod nvrtc;
mod pool;
mod reduce;
mod sgd;
pub mod tiles;

pub use args::{Param, SIGNATURES, Signature};
pub use nvrtc::{Architecture, Cache, Compiler, Nvrtc, Prebuilt, Search};

use self::args::Arg;
use self::driver::{Driver, Launch, Memory};
use self::tiles::Program;
use super::geometry::{Conv2d, GlobalPool, HeadShard, PerChannel, Rows};
use super::margin::Margin;
use super::{
    Activation, Augmented, Backend, BatchNormAt, Close, Dropout, Epilogue, FilterAt, GradTarget,
    InputTransform, Pending, PendingGrad, Segment, SgdStep, View,
};
use crate::{Error, Result};
use std::collections::HashMap;

/// Float32 elements on the device.
#[derive(Debug)]
pub struct Buffer<M> {
    memory: M,
    len: usize,
}

impl<M: Memory> Buffer<M> {
    /// The address of element `i`.
    fn at(&self, i: usize) -> u64 {
        self.memory.address() + 4 * i as u64
    }
}

/// A GPU as a device, through a driver.
pub struct Cuda<D: Driver> {
    driver: D,
    /// Programs by name, compiled when they are first needed.
    modules: HashMap<&'static str, D::Module>,
    /// Partial results of tiles. This buffer and those below grow once and are kept.
    scratch: Staging<D>,
    /// The batch's pixels.
    pixels: Staging<D>,
    /// The batch's labels.
    labels: arcface::Labels<D>,
    /// The optimizer's segments.
    segments: sgd::Table<D>,
}

/// Device memory that grows to what was asked of it and is kept.
struct Staging<D: Driver> {
    memory: Option<D::Memory>,
    bytes: usize,
}

impl<D: Driver> Staging<D> {
    const EMPTY: Self = Staging {
        memory: None,
        bytes: 0,
    };

    /// At least `bytes` bytes; what was there before may be gone.
    fn reserve(&mut self, driver: &mut D, bytes: usize) -> Result<&mut D::Memory> {
        let memory = match self.memory.take() {
            Some(memory) if self.bytes >= bytes => memory,
            outgrown => {
                // Free the old memory first: the two may not fit together. Memory freed in stream order is available
                // once the stream gets there. Growth happens only in the first step.
                if outgrown.is_some() {
                    drop(outgrown);
                    driver.synchronize()?;
                }
                self.bytes = bytes;
                alloc(driver, bytes)?
            }
        };
        Ok(self.memory.insert(memory))
    }
}

/// Every allocation is aligned to this many bytes, and a kernel gets its address plus a whole number of elements. The
/// kernels' wide loads rely on it.
const ALIGNMENT: u64 = 256;

/// Memory from the driver, with its alignment checked.
fn alloc<D: Driver>(driver: &D, bytes: usize) -> Result<D::Memory> {
    let memory = driver.alloc(bytes)?;
    match memory.address() % ALIGNMENT {
        0 => Ok(memory),
        _ => Err(Error::Device(format!(
            "allocating {bytes} bytes on the GPU: the driver gave address {:#x}, which is not a multiple of {ALIGNMENT}",
            memory.address()
        ))),
    }
}

/// Bytes of the device that are left to the backend itself: partial results (the most at a head's forward pass, N V / 16:
/// 64 MB at 512 images and two million identities; convolutions and the head's backward pass 16 to 32 MB), the batch's
/// pixels (25 MB at 512 images), compiled kernels, and what allocation rounds up.
const OWN_MEMORY: u64 = 192 << 20;

/// Blocks in x, y, z, before the limits of a launch are checked.
type Grid = [u64; 3];

/// Blocks of `tile` that cover `len`.
fn blocks(len: u64, tile: u32) -> u64 {
    len.div_ceil(u64::from(tile))
}

impl<D: Driver> Cuda<D> {
    /// A device behind `driver`.
    pub fn new(driver: D) -> Self {
        Cuda {
            driver,
            modules: HashMap::new(),
            scratch: Staging::EMPTY,
            pixels: Staging::EMPTY,
            labels: arcface::Labels::EMPTY,
            segments: sgd::Table::EMPTY,
        }
    }

    /// The driver.
    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Address of `len` floats for partial results. The next call may give the same ones: an operation asks once.
    fn scratch(&mut self, len: usize) -> Result<u64> {
        Ok(self.scratch.reserve(&mut self.driver, 4 * len)?.address())
    }

    /// Queues `kernel` of `program`. A grid without blocks is no launch.
    ///
    /// # Panics
    /// If the arguments are not what the kernel declares: a mistake in this module.
    fn launch(
        &mut self,
        program: &'static Program,
        kernel: &'static str,
        grid: Grid,
        shared: u32,
        args: &[Arg],
    ) -> Result<()> {
        let signature = SIGNATURES
            .iter()
            .find(|s| s.file == program.file && s.kernel == kernel)
            .unwrap_or_else(|| panic!("{} has no kernel {kernel}", program.file));
        let given: Vec<Param> = args.iter().map(Arg::param).collect();
        assert_eq!(
            given, signature.params,
            "{}: {kernel} takes other arguments",
            program.file
        );
        if grid.contains(&0) {
            return Ok(());
        }
        const LIMITS: Grid = [(1 << 31) - 1, 65_535, 65_535];
        if grid
            .iter()
            .zip(LIMITS)
            .any(|(blocks, limit)| *blocks > limit)
        {
            return Err(Error::Invalid(format!(
                "{kernel} would need a grid of {grid:?} blocks, and CUDA allows {LIMITS:?}: use a smaller batch"
            )));
        }
        if !self.modules.contains_key(program.name) {
            let module = self.driver.load(program)?;
            self.modules.insert(program.name, module);
        }
        let launch = Launch {
            grid: grid.map(|blocks| blocks as u32),
            block: program.threads,
            shared,
        };
        let args: Vec<&[u8]> = args.iter().map(Arg::bytes).collect();
        self.driver
            .launch(&self.modules[program.name], kernel, launch, &args)
    }
}

/// The bytes of numbers.
fn bytes_of<T: Plain>(numbers: &[T]) -> &[u8] {
    // SAFETY: `Plain` types have no padding, and every byte of theirs is initialised; u8 needs no alignment.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), std::mem::size_of_val(numbers)) }
}

/// The bytes of numbers, to be overwritten.
fn bytes_of_mut<T: Plain>(numbers: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `bytes_of`; any bytes are a valid number.
    unsafe {
        std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), std::mem::size_of_val(numbers))
    }
}

/// Numbers without padding, for which any bytes are valid.
trait Plain {}
impl Plain for f32 {}
impl Plain for u32 {}

impl<D: Driver> Backend for Cuda<D> {
    type Buffer = Buffer<D::Memory>;

    const AUGMENTS: bool = true;

    fn describe(&self) -> String {
        self.driver.properties().to_string()
    }

    fn memory_available(&self) -> u64 {
        self.driver.memory_free().saturating_sub(OWN_MEMORY)
    }

    fn alloc(&self, len: usize) -> Result<Buffer<D::Memory>> {
        let mut memory = alloc(&self.driver, 4 * len)?;
        self.driver.clear(&mut memory, 4 * len)?;
        Ok(Buffer { memory, len })
    }

    fn len(&self, buffer: &Buffer<D::Memory>) -> usize {
        buffer.len
    }

    fn upload(&mut self, src: &[f32], dst: &mut Buffer<D::Memory>, offset: usize) -> Result<()> {
        assert!(offset + src.len() <= dst.len, "an upload within its buffer");
        self.driver
            .upload(bytes_of(src), &mut dst.memory, 4 * offset)
    }

    fn download_all(
        &mut self,
        parts: &mut [(&Buffer<D::Memory>, usize, &mut [f32])],
    ) -> Result<()> {
        let mut parts: Vec<(&D::Memory, usize, &mut [u8])> = parts
            .iter_mut()
            .map(|(src, offset, dst)| {
                assert!(
                    *offset + dst.len() <= src.len,
                    "a download within its buffer"
                );
                (&src.memory, 4 * *offset, bytes_of_mut(dst))
            })
            .collect();
        self.driver.download(&mut parts)
    }

    fn input_transform(
        &mut self,
        pixels: &[u8],
        transform: &InputTransform,
        y: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        input_transform::apply(self, pixels, transform, y)
    }

    fn augmented_input(
        &mut self,
        pictures: Augmented<'_>,
        transform: &InputTransform,
        y: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        input_transform::apply_augmented(self, pictures, transform, y)
    }

    fn conv2d_fprop(
        &mut self,
        geometry: &Conv2d,
        x: Pending<'_, Buffer<D::Memory>>,
        params: &Buffer<D::Memory>,
        filter: FilterAt,
        y: &mut Buffer<D::Memory>,
        epilogue: Epilogue<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        conv::fprop(self, geometry, x, params, filter, y, epilogue)
    }

    fn conv2d_dgrad(
        &mut self,
        geometry: &Conv2d,
        dy: PendingGrad<'_, Buffer<D::Memory>>,
        params: &Buffer<D::Memory>,
        filter: FilterAt,
        dx: GradTarget<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        conv::dgrad(self, geometry, dy, params, filter, dx)
    }

    fn conv2d_wgrad(
        &mut self,
        geometry: &Conv2d,
        dy: PendingGrad<'_, Buffer<D::Memory>>,
        x: Pending<'_, Buffer<D::Memory>>,
        grads: &mut Buffer<D::Memory>,
        filter: FilterAt,
    ) -> Result<()> {
        conv::wgrad(self, geometry, dy, x, grads, filter)
    }

    fn depthwise_fprop(
        &mut self,
        geometry: &PerChannel,
        x: Pending<'_, Buffer<D::Memory>>,
        params: &Buffer<D::Memory>,
        filter: FilterAt,
        y: &mut Buffer<D::Memory>,
        epilogue: Epilogue<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        depthwise::fprop(self, geometry, x, params, filter, y, epilogue)
    }

    fn depthwise_dgrad(
        &mut self,
        geometry: &PerChannel,
        dy: PendingGrad<'_, Buffer<D::Memory>>,
        params: &Buffer<D::Memory>,
        filter: FilterAt,
        dx: GradTarget<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        depthwise::dgrad(self, geometry, dy, params, filter, dx)
    }

    fn depthwise_wgrad(
        &mut self,
        geometry: &PerChannel,
        dy: PendingGrad<'_, Buffer<D::Memory>>,
        x: Pending<'_, Buffer<D::Memory>>,
        grads: &mut Buffer<D::Memory>,
        filter: FilterAt,
    ) -> Result<()> {
        depthwise::wgrad(self, geometry, dy, x, grads, filter)
    }

    fn batch_norm_moments(
        &mut self,
        rows: Rows,
        x: &Buffer<D::Memory>,
        moments: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        batch_norm::moments(self, rows, x, moments)
    }

    fn batch_norm_fprop(
        &mut self,
        rows: Rows,
        moments: &Buffer<D::Memory>,
        params: &Buffer<D::Memory>,
        at: BatchNormAt,
        statistics: &mut Buffer<D::Memory>,
        forward: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        batch_norm::fprop(self, rows, moments, params, at, statistics, forward)
    }

    fn batch_norm_bprop(
        &mut self,
        rows: Rows,
        sums: &Buffer<D::Memory>,
        forward: &Buffer<D::Memory>,
        grads: &mut Buffer<D::Memory>,
        at: BatchNormAt,
        backward: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        batch_norm::bprop(self, rows, sums, forward, grads, at, backward)
    }

    fn prelu_bprop(
        &mut self,
        c: usize,
        sums: &Buffer<D::Memory>,
        grads: &mut Buffer<D::Memory>,
        slope_at: usize,
    ) -> Result<()> {
        batch_norm::prelu_bprop(self, c, sums, grads, slope_at)
    }

    fn add_fprop(
        &mut self,
        rows: Rows,
        a: Pending<'_, Buffer<D::Memory>>,
        b: Option<Pending<'_, Buffer<D::Memory>>>,
        activation: Activation<View<'_, Buffer<D::Memory>>>,
        y: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        add::fprop(self, rows, a, b, activation, y)
    }

    fn add_dgrad(
        &mut self,
        rows: Rows,
        dy: PendingGrad<'_, Buffer<D::Memory>>,
        dx: GradTarget<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        add::dgrad(self, rows, dy, dx)
    }

    fn close_grad(
        &mut self,
        rows: Rows,
        g: &mut Buffer<D::Memory>,
        close: Close<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        close_grad::close(self, rows, g, close)
    }

    fn max_pool_fprop(
        &mut self,
        geometry: &PerChannel,
        x: Pending<'_, Buffer<D::Memory>>,
        y: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        pool::max_fprop(self, geometry, x, y)
    }

    fn max_pool_dgrad(
        &mut self,
        geometry: &PerChannel,
        dy: &Buffer<D::Memory>,
        x: Pending<'_, Buffer<D::Memory>>,
        dx: GradTarget<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        pool::max_dgrad(self, geometry, dy, x, dx)
    }

    fn global_avg_pool_fprop(
        &mut self,
        geometry: GlobalPool,
        x: Pending<'_, Buffer<D::Memory>>,
        y: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        pool::global_avg_fprop(self, geometry, x, y)
    }

    fn global_avg_pool_dgrad(
        &mut self,
        geometry: GlobalPool,
        dy: &Buffer<D::Memory>,
        dx: GradTarget<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        pool::global_avg_dgrad(self, geometry, dy, dx)
    }

    fn dropout_fprop(
        &mut self,
        rows: Rows,
        x: Pending<'_, Buffer<D::Memory>>,
        dropout: Dropout,
        y: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        dropout::fprop(self, rows, x, dropout, y)
    }

    fn dropout_dgrad(
        &mut self,
        rows: Rows,
        dy: &Buffer<D::Memory>,
        dropout: Dropout,
        dx: GradTarget<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        dropout::dgrad(self, rows, dy, dropout, dx)
    }

    fn arcface_fprop(
        &mut self,
        shard: &HeadShard,
        margin: &Margin,
        x: &Buffer<D::Memory>,
        classes: &Buffer<D::Memory>,
        labels: &[u32],
        inverse_norms: &mut Buffer<D::Memory>,
        rows: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        arcface::fprop(self, shard, margin, x, classes, labels, inverse_norms, rows)
    }

    fn arcface_bprop(
        &mut self,
        shard: &HeadShard,
        margin: &Margin,
        x: &Buffer<D::Memory>,
        labels: &[u32],
        inverse_norms: &Buffer<D::Memory>,
        rows: &Buffer<D::Memory>,
        classes: &mut Buffer<D::Memory>,
        momentum: &mut Buffer<D::Memory>,
        decay: f32,
        step: &SgdStep,
        dx: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        arcface::bprop(
            self,
            shard,
            margin,
            x,
            labels,
            inverse_norms,
            rows,
            classes,
            momentum,
            decay,
            step,
            dx,
        )
    }

    fn sgd_norms(
        &mut self,
        params: &Buffer<D::Memory>,
        grads: &Buffer<D::Memory>,
        segments: &[Segment],
        norms: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        sgd::norms(self, params, grads, segments, norms)
    }

    fn sgd_update(
        &mut self,
        step: &SgdStep,
        segments: &[Segment],
        grads: &Buffer<D::Memory>,
        norms: &Buffer<D::Memory>,
        params: &mut Buffer<D::Memory>,
        momentum: &mut Buffer<D::Memory>,
    ) -> Result<()> {
        sgd::update(self, step, segments, grads, norms, params, momentum)
    }
}
