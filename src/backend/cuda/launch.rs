//! The arguments of launches: one struct per kernel, with its parameters by name, and one per struct that kernels take.
//!
//! The build script writes the structs from the kernels' sources, so a parameter that is missing, misnamed or of another
//! type stops the build. This file fills them from what the operations take.

use super::driver::Memory;
use super::tiles::{Program, code};
use super::{Buffer, bytes_of};
use crate::backend::geometry::{self, Window};
use crate::backend::{self, Activation, View};

/// A kernel and its file.
#[derive(Debug)]
pub struct KernelEntry {
    /// The file in `kernels/`.
    pub file: &'static str,
    /// Its name.
    pub kernel: &'static str,
    /// The size of each parameter in bytes.
    pub params: &'static [usize],
    /// The numbers that it takes, in order.
    pub numbers: &'static [Number],
}

/// A number that a kernel takes: a parameter, or a field of one that is a struct.
#[derive(Debug)]
pub struct Number {
    /// The parameter's name, or `parameter.field`.
    pub name: &'static str,
    /// `u32`, `u64`, `f32` or `Address`.
    pub kind: &'static str,
    /// The parameter's index.
    pub arg: usize,
    /// The number's offset in the parameter, in bytes.
    pub at: usize,
    /// Its size in bytes.
    pub bytes: usize,
}

/// The parameters of a kernel.
pub(super) trait Kernel {
    /// Its name.
    const NAME: &'static str;
    /// Its index in [`KERNELS`].
    const ENTRY: usize;

    /// Calls `launch` with the bytes of each parameter, in order.
    fn with_args<R>(&self, launch: impl FnOnce(&[&[u8]]) -> R) -> R;
}

/// A place in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub(super) struct Address(pub(super) u64);

impl Address {
    /// The address of an absent tensor.
    pub(super) const NULL: Address = Address(0);

    /// The place `bytes` bytes further.
    pub(super) fn plus(self, bytes: usize) -> Self {
        Address(self.0 + bytes as u64)
    }

    /// The place `n` floats further.
    pub(super) fn floats(self, n: usize) -> Self {
        self.plus(4 * n)
    }
}

/// Types whose bytes the device reads as they are.
///
/// # Safety
/// No padding: every byte of a value is initialised.
pub(super) unsafe trait Plain: Copy {}

// SAFETY: numbers have no padding, and an address is one.
unsafe impl Plain for f32 {}
// SAFETY: as above.
unsafe impl Plain for u32 {}
// SAFETY: as above.
unsafe impl Plain for u64 {}
// SAFETY: as above.
unsafe impl Plain for Address {}

/// The bytes of one value.
fn value<T: Plain>(value: &T) -> &[u8] {
    bytes_of(std::slice::from_ref(value))
}

include!(concat!(env!("OUT_DIR"), "/launch.rs"));

impl Program {
    /// The index in [`KERNELS`] of the first kernel of its file, and all of its file's kernels, which stand side by side.
    pub fn kernels(&self) -> (usize, &'static [KernelEntry]) {
        let mine = |entry: &KernelEntry| entry.file == self.file;
        let first = KERNELS.iter().position(mine).unwrap_or(KERNELS.len());
        let count = KERNELS[first..]
            .iter()
            .take_while(|entry| mine(entry))
            .count();
        (first, &KERNELS[first..][..count])
    }
}

/// A size as a kernel takes it.
///
/// # Panics
/// If it does not fit 32 bits: geometry is checked before it comes here.
pub(super) fn word(size: usize) -> u32 {
    u32::try_from(size).expect("sizes that reach a kernel fit 32 bits")
}

/// The code of an activation, and its slopes.
pub(super) fn activation<M: Memory>(activation: Activation<View<'_, Buffer<M>>>) -> (u32, Address) {
    match activation {
        Activation::Identity => (const { code("IDENTITY") }, Address::NULL),
        Activation::Relu => (const { code("RELU") }, Address::NULL),
        Activation::Relu6 => (const { code("RELU6") }, Address::NULL),
        Activation::PRelu(slopes) => (const { code("PRELU") }, slopes.buffer.at(slopes.offset)),
    }
}

impl Pending {
    /// An absent operand.
    pub(super) const NONE: Pending = Pending {
        raw: Address::NULL,
        affine: Address::NULL,
        slope: Address::NULL,
        activation: code("IDENTITY"),
        padding: 0,
    };
}

impl<M: Memory> From<backend::Pending<'_, Buffer<M>>> for Pending {
    fn from(x: backend::Pending<'_, Buffer<M>>) -> Self {
        let (code, slope) = activation(x.activation);
        Pending {
            raw: x.raw.at(0),
            affine: x.affine.map_or(Address::NULL, |affine| affine.at(0)),
            slope,
            activation: code,
            padding: 0,
        }
    }
}

impl<M: Memory> From<backend::PendingGrad<'_, Buffer<M>>> for PendingGrad {
    fn from(dy: backend::PendingGrad<'_, Buffer<M>>) -> Self {
        let (raw, coefficients) = (dy.batch_norm)
            .map_or((Address::NULL, Address::NULL), |(raw, coefficients)| {
                (raw.at(0), coefficients.at(0))
            });
        PendingGrad {
            g: dy.g.at(0),
            raw,
            coefficients,
        }
    }
}

impl From<geometry::Conv2d> for Conv2d {
    fn from(geometry: geometry::Conv2d) -> Self {
        let geometry::Conv2d { n, c, k, window } = geometry;
        let Window {
            h,
            w,
            r,
            s,
            stride,
            pad,
            p,
            q,
        } = window;
        Conv2d {
            n: word(n),
            h: word(h),
            w: word(w),
            c: word(c),
            k: word(k),
            r: word(r),
            s: word(s),
            stride: word(stride),
            top: word(pad.top),
            left: word(pad.left),
            p: word(p),
            q: word(q),
        }
    }
}

impl From<geometry::PerChannel> for PerChannel {
    fn from(geometry: geometry::PerChannel) -> Self {
        let geometry::PerChannel { n, c, window } = geometry;
        let Window {
            h,
            w,
            r,
            s,
            stride,
            pad,
            p,
            q,
        } = window;
        PerChannel {
            n: word(n),
            h: word(h),
            w: word(w),
            c: word(c),
            r: word(r),
            s: word(s),
            stride: word(stride),
            top: word(pad.top),
            left: word(pad.left),
            p: word(p),
            q: word(q),
        }
    }
}
