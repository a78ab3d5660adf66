//! The CUDA backend: all host logic of the kernels in `kernels/`, above the thin [`driver::Driver`].
//!
//! An operation's file chooses kernels and grids, and fills in the arguments. Its name is that of the kernel file, except
//! for convolutions: `conv/` has one kernel file per direction, and `depthwise` belongs to `conv_depthwise.cu`. Work is cut
//! into tiles whose number depends only on the shapes, and partial sums are added in tile order: the same inputs give the
//! same bits on the same device.

mod add;
mod arcface;
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
pub mod launch;
pub mod nvrtc;
mod pool;
mod reduce;
mod sgd;
pub mod tiles;
mod tiling;

pub use nvrtc::{Architecture, Cache, Compiler, Nvrtc, Prebuilt, Search, Sources};

use self::driver::{Driver, Launch, Memory};
use self::launch::{Address, Kernel, Plain};
use self::tiles::Program;
use super::{
    AddDgrad, AddFprop, ArcFaceBprop, ArcFaceFprop, ArcFacePrepare, Backend, BatchNormBprop,
    BatchNormFprop, BatchNormMoments, CloseGrad, Conv2dDgrad, Conv2dFprop, Conv2dWgrad,
    DepthwiseDgrad, DepthwiseFprop, DepthwiseWgrad, DropoutDgrad, DropoutFprop, Element,
    GlobalAvgPoolDgrad, GlobalAvgPoolFprop, InputTransformAugmented, InputTransformFprop,
    MaxPoolDgrad, MaxPoolFprop, PReluBprop, SgdNorms, SgdUpdate,
};
use crate::{Error, Result};
use half::bf16;

/// Elements of one type on the device.
#[derive(Debug)]
pub struct Buffer<M> {
    memory: M,
    element: Element,
    /// Elements of that type.
    len: usize,
}

impl<M: Memory> Buffer<M> {
    /// The address of element `i`.
    fn at(&self, i: usize) -> Address {
        Address(self.memory.address() + (self.element.bytes() * i) as u64)
    }
}

/// A GPU as a device, through a driver.
pub struct Cuda<D: Driver> {
    driver: D,
    /// Programs, compiled when they are first needed.
    programs: Vec<Loaded<D>>,
    /// Partial results of tiles. This buffer and those below grow on demand and are kept.
    scratch: Staging<D>,
    /// The batch's pixels.
    pixels: Staging<D>,
    /// The changes of the batch's pictures on their way to the device.
    changes: Vec<launch::Changes>,
    /// The batch's labels.
    labels: arcface::Labels<D>,
    /// The optimizer's segments.
    segments: sgd::Table<D>,
}

/// A program on the device, with its kernels in the order of their file.
struct Loaded<D: Driver> {
    program: &'static Program,
    /// The index of the first kernel in [`launch::KERNELS`].
    first: usize,
    kernels: Vec<D::Kernel>,
}

/// Device memory that grows on demand and is kept.
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

/// Bytes of device memory set aside for the backend itself: partial results (convolutions and the head's backward pass 16 to
/// 32 MB), the batch's pixels (25 MB at 512 images), compiled kernels, and what allocation rounds up.
const OWN_MEMORY: u64 = 128 << 20;

/// Blocks in x, y, z, before the limits of a launch are checked.
type Grid = [u64; 3];

/// Blocks of `tile` that cover `len`.
fn blocks(len: u64, tile: u32) -> u64 {
    len.div_ceil(u64::from(tile))
}

impl<D: Driver> Cuda<D> {
    /// A device that `driver` drives.
    pub fn new(driver: D) -> Self {
        Cuda {
            driver,
            programs: Vec::new(),
            scratch: Staging::EMPTY,
            pixels: Staging::EMPTY,
            changes: Vec::new(),
            labels: arcface::Labels::EMPTY,
            segments: sgd::Table::EMPTY,
        }
    }

    /// The driver.
    pub fn driver(&mut self) -> &mut D {
        &mut self.driver
    }

    /// Address of `len` floats for partial results. The next call may return the same ones, so an operation calls it once.
    fn scratch(&mut self, len: usize) -> Result<Address> {
        let memory = self.scratch.reserve(&mut self.driver, 4 * len)?;
        Ok(Address(memory.address()))
    }

    /// Queues `kernel`, compiled as part of `program`. An empty grid launches nothing.
    fn launch<K: Kernel>(
        &mut self,
        program: &'static Program,
        grid: Grid,
        shared: u32,
        kernel: K,
    ) -> Result<()> {
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
                "{} would need a grid of {grid:?} blocks, and CUDA allows {LIMITS:?}: use a smaller batch",
                K::NAME
            )));
        }
        let launch = Launch {
            grid: grid.map(|blocks| blocks as u32),
            block: program.threads,
            shared,
        };
        let at = self.load(program)?;
        let Loaded { first, kernels, .. } = &self.programs[at];
        let handle = (kernels.get(K::ENTRY.wrapping_sub(*first)))
            .unwrap_or_else(|| panic!("{} has no kernel {}", program.name, K::NAME));
        kernel.with_args(|args| self.driver.launch(handle, launch, args))
    }

    /// The index of a program among the loaded ones.
    fn load(&mut self, program: &'static Program) -> Result<usize> {
        let same = |loaded: &Loaded<D>| std::ptr::eq(loaded.program, program);
        if let Some(at) = self.programs.iter().position(same) {
            return Ok(at);
        }
        self.programs.push(Loaded {
            program,
            first: program.kernels().0,
            kernels: self.driver.load(program)?,
        });
        Ok(self.programs.len() - 1)
    }
}

/// The bytes of values.
fn bytes_of<T: Plain>(values: &[T]) -> &[u8] {
    // SAFETY: `Plain` types have no padding, and every byte of theirs is initialised; u8 needs no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

impl<D: Driver> Backend for Cuda<D> {
    type Buffer = Buffer<D::Memory>;

    const AUGMENTS: bool = true;

    fn describe(&self) -> String {
        self.driver.properties().to_string()
    }

    fn memory_available(&self) -> u64 {
        self.driver.memory_free().saturating_sub(OWN_MEMORY)
    }

    fn supports(&self, element: Element) -> bool {
        tiles::takes(self.driver.properties().capability, element)
    }

    fn alloc(&self, element: Element, len: usize) -> Result<Buffer<D::Memory>> {
        let bytes = element.bytes() * len;
        let mut memory = alloc(&self.driver, bytes)?;
        self.driver.clear(&mut memory, bytes)?;
        Ok(Buffer {
            memory,
            element,
            len,
        })
    }

    fn len(&self, buffer: &Buffer<D::Memory>) -> usize {
        buffer.len
    }

    fn hold(buffer: &mut Buffer<D::Memory>, element: Element) {
        buffer.len = element.fit(buffer.len * buffer.element.bytes());
        buffer.element = element;
    }

    fn upload(&mut self, src: &[f32], dst: &mut Buffer<D::Memory>, offset: usize) -> Result<()> {
        assert!(offset + src.len() <= dst.len, "an upload within its buffer");
        let first = dst.element.bytes() * offset;
        let rounded: Vec<bf16>;
        let bytes = match dst.element {
            Element::F32 => bytemuck::cast_slice(src),
            Element::Bf16 => {
                rounded = src.iter().map(|v| bf16::from_f32(*v)).collect();
                bytemuck::cast_slice(&rounded)
            }
        };
        self.driver.upload(bytes, &mut dst.memory, first)
    }

    fn download_all(
        &mut self,
        parts: &mut [(&Buffer<D::Memory>, usize, &mut [f32])],
    ) -> Result<()> {
        let is_half = |src: &Buffer<D::Memory>| src.element == Element::Bf16;
        let lens = parts
            .iter()
            .map(|(src, _, dst)| dst.len() * usize::from(is_half(src)));
        let mut halves = vec![bf16::ZERO; lens.sum()];
        let mut left = &mut halves[..];
        self.driver
            .download(parts.iter_mut().map(|(src, offset, dst)| {
                assert!(
                    *offset + dst.len() <= src.len,
                    "a download within its buffer"
                );
                let bytes: &mut [u8] = if is_half(src) {
                    let halves = left
                        .split_off_mut(..dst.len())
                        .expect("as many as were counted");
                    bytemuck::cast_slice_mut(halves)
                } else {
                    bytemuck::cast_slice_mut(dst)
                };
                (&src.memory, src.element.bytes() * *offset, bytes)
            }))?;
        let mut halves = &halves[..];
        for (_, _, dst) in parts.iter_mut().filter(|(src, ..)| is_half(src)) {
            let (these, rest) = halves.split_at(dst.len());
            for (to, half) in dst.iter_mut().zip(these) {
                *to = half.to_f32();
            }
            halves = rest;
        }
        Ok(())
    }

    fn input_transform_fprop(
        &mut self,
        op: InputTransformFprop<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        input_transform::fprop(self, op)
    }

    fn input_transform_augmented(
        &mut self,
        op: InputTransformAugmented<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        input_transform::augmented(self, op)
    }

    fn conv2d_fprop(&mut self, op: Conv2dFprop<'_, Buffer<D::Memory>>) -> Result<()> {
        conv::fprop(self, op)
    }

    fn conv2d_dgrad(&mut self, op: Conv2dDgrad<'_, Buffer<D::Memory>>) -> Result<()> {
        conv::dgrad(self, op)
    }

    fn conv2d_wgrad(&mut self, op: Conv2dWgrad<'_, Buffer<D::Memory>>) -> Result<()> {
        conv::wgrad(self, op)
    }

    fn depthwise_fprop(&mut self, op: DepthwiseFprop<'_, Buffer<D::Memory>>) -> Result<()> {
        depthwise::fprop(self, op)
    }

    fn depthwise_dgrad(&mut self, op: DepthwiseDgrad<'_, Buffer<D::Memory>>) -> Result<()> {
        depthwise::dgrad(self, op)
    }

    fn depthwise_wgrad(&mut self, op: DepthwiseWgrad<'_, Buffer<D::Memory>>) -> Result<()> {
        depthwise::wgrad(self, op)
    }

    fn batch_norm_moments(&mut self, op: BatchNormMoments<'_, Buffer<D::Memory>>) -> Result<()> {
        batch_norm::moments(self, op)
    }

    fn batch_norm_fprop(&mut self, op: BatchNormFprop<'_, Buffer<D::Memory>>) -> Result<()> {
        batch_norm::fprop(self, op)
    }

    fn batch_norm_bprop(&mut self, op: BatchNormBprop<'_, Buffer<D::Memory>>) -> Result<()> {
        batch_norm::bprop(self, op)
    }

    fn prelu_bprop(&mut self, op: PReluBprop<'_, Buffer<D::Memory>>) -> Result<()> {
        batch_norm::prelu_bprop(self, op)
    }

    fn add_fprop(&mut self, op: AddFprop<'_, Buffer<D::Memory>>) -> Result<()> {
        add::fprop(self, op)
    }

    fn add_dgrad(&mut self, op: AddDgrad<'_, Buffer<D::Memory>>) -> Result<()> {
        add::dgrad(self, op)
    }

    fn close_grad(&mut self, op: CloseGrad<'_, Buffer<D::Memory>>) -> Result<()> {
        close_grad::close(self, op)
    }

    fn max_pool_fprop(&mut self, op: MaxPoolFprop<'_, Buffer<D::Memory>>) -> Result<()> {
        pool::max_fprop(self, op)
    }

    fn max_pool_dgrad(&mut self, op: MaxPoolDgrad<'_, Buffer<D::Memory>>) -> Result<()> {
        pool::max_dgrad(self, op)
    }

    fn global_avg_pool_fprop(
        &mut self,
        op: GlobalAvgPoolFprop<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        pool::global_avg_fprop(self, op)
    }

    fn global_avg_pool_dgrad(
        &mut self,
        op: GlobalAvgPoolDgrad<'_, Buffer<D::Memory>>,
    ) -> Result<()> {
        pool::global_avg_dgrad(self, op)
    }

    fn dropout_fprop(&mut self, op: DropoutFprop<'_, Buffer<D::Memory>>) -> Result<()> {
        dropout::fprop(self, op)
    }

    fn dropout_dgrad(&mut self, op: DropoutDgrad<'_, Buffer<D::Memory>>) -> Result<()> {
        dropout::dgrad(self, op)
    }

    fn arcface_prepare(&mut self, op: ArcFacePrepare<'_, Buffer<D::Memory>>) -> Result<()> {
        arcface::prepare(self, op)
    }

    fn arcface_fprop(&mut self, op: ArcFaceFprop<'_, Buffer<D::Memory>>) -> Result<()> {
        arcface::fprop(self, op)
    }

    fn arcface_bprop(&mut self, op: ArcFaceBprop<'_, Buffer<D::Memory>>) -> Result<()> {
        arcface::bprop(self, op)
    }

    fn sgd_norms(&mut self, op: SgdNorms<'_, Buffer<D::Memory>>) -> Result<()> {
        sgd::norms(self, op)
    }

    fn sgd_update(&mut self, op: SgdUpdate<'_, Buffer<D::Memory>>) -> Result<()> {
        sgd::update(self, op)
    }
}
