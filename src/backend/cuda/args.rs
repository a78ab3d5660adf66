//! A kernel's arguments: packed as the structs of `kernels/common.cuh`, checked against its signature.

use super::Buffer;
use super::driver::Memory;
use super::tiles::code;
use crate::backend::geometry::{self, Window};
use crate::backend::{self, Activation, View};

/// What a kernel's parameter is, as its source declares it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// A pointer.
    Address,
    /// An unsigned 32-bit number.
    U32,
    /// An unsigned 64-bit number.
    U64,
    /// A float32.
    F32,
    /// A struct, by value.
    Struct {
        /// Its name.
        name: &'static str,
        /// Its size.
        bytes: u64,
    },
}

/// A kernel's head.
#[derive(Debug)]
pub struct Signature {
    /// The file in `kernels/`.
    pub file: &'static str,
    /// The kernel.
    pub kernel: &'static str,
    /// Its parameters, in order.
    pub params: &'static [Param],
}

/// The heads of all kernels, read from their sources by the build script.
pub const SIGNATURES: &[Signature] = include!(concat!(env!("OUT_DIR"), "/signatures.rs"));

/// One argument; aligned as any of its fields may have to be.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(8))]
pub(super) struct Arg {
    bytes: [u8; Arg::CAPACITY],
    param: Param,
    len: usize,
}

impl Arg {
    /// Bytes of the largest struct.
    const CAPACITY: usize = 64;

    fn new(param: Param, bytes: &[u8]) -> Self {
        let mut arg = Arg {
            param,
            bytes: [0; Self::CAPACITY],
            len: 0,
        };
        arg.push(bytes);
        arg
    }

    /// An empty struct, to be filled field by field in the order of its declaration.
    pub(super) fn of(name: &'static str) -> Self {
        Arg::new(Param::Struct { name, bytes: 0 }, &[])
    }

    fn push(&mut self, field: &[u8]) {
        // A field begins at a multiple of its own size, as in C.
        let at = if field.is_empty() {
            0
        } else {
            self.len.next_multiple_of(field.len())
        };
        self.bytes[at..][..field.len()].copy_from_slice(field);
        self.len = at + field.len();
        if let Param::Struct { bytes, .. } = &mut self.param {
            *bytes = self.len as u64;
        }
    }

    /// Adds a u32 field.
    ///
    /// # Panics
    /// If the value does not fit: geometry is checked before it comes here.
    pub(super) fn u32(mut self, value: usize) -> Self {
        self.push(&word(value).to_ne_bytes());
        self
    }

    /// Adds a float field.
    pub(super) fn f32(mut self, value: f32) -> Self {
        self.push(&value.to_ne_bytes());
        self
    }

    /// Adds a pointer or u64 field.
    pub(super) fn u64(mut self, value: u64) -> Self {
        self.push(&value.to_ne_bytes());
        self
    }

    /// Rounds a struct's size up to the 8 bytes of its pointers.
    pub(super) fn padded(mut self) -> Self {
        self.len = self.len.next_multiple_of(8);
        if let Param::Struct { bytes, .. } = &mut self.param {
            *bytes = self.len as u64;
        }
        self
    }

    pub(super) fn param(&self) -> Param {
        self.param
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

fn word(value: usize) -> u32 {
    u32::try_from(value).expect("sizes that reach a kernel fit 32 bits")
}

/// A number as a u32 argument.
pub(super) fn u32(value: usize) -> Arg {
    Arg::new(Param::U32, &word(value).to_ne_bytes())
}

/// A number as a u64 argument.
pub(super) fn u64(value: u64) -> Arg {
    Arg::new(Param::U64, &value.to_ne_bytes())
}

/// A float argument.
pub(super) fn f32(value: f32) -> Arg {
    Arg::new(Param::F32, &value.to_ne_bytes())
}

/// An address as an argument.
pub(super) fn address(address: u64) -> Arg {
    Arg::new(Param::Address, &address.to_ne_bytes())
}

/// Where a buffer begins, as an argument.
pub(super) fn buffer<M: Memory>(buffer: &Buffer<M>) -> Arg {
    address(buffer.at(0))
}

/// The null pointer.
pub(super) fn null() -> Arg {
    address(0)
}

/// (code, address of the slopes) of an activation.
pub(super) fn activation<M: Memory>(activation: &Activation<View<'_, Buffer<M>>>) -> (usize, u64) {
    match activation {
        Activation::Identity => (const { code("IDENTITY") }, 0),
        Activation::Relu => (const { code("RELU") }, 0),
        Activation::Relu6 => (const { code("RELU6") }, 0),
        Activation::PRelu(slope) => (const { code("PRELU") }, slope.buffer.at(slope.offset)),
    }
}

/// `struct Pending`.
pub(super) fn pending<M: Memory>(x: &backend::Pending<'_, Buffer<M>>) -> Arg {
    let (code, slope) = activation(&x.activation);
    Arg::of("Pending")
        .u64(x.raw.at(0))
        .u64(x.affine.map_or(0, |affine| affine.at(0)))
        .u64(slope)
        .u32(code)
        .padded()
}

/// `struct PendingGrad`.
pub(super) fn pending_grad<M: Memory>(dy: &backend::PendingGrad<'_, Buffer<M>>) -> Arg {
    let (raw, coefficients) = dy.batch_norm.map_or((0, 0), |(raw, coefficients)| {
        (raw.at(0), coefficients.at(0))
    });
    Arg::of("PendingGrad")
        .u64(dy.g.at(0))
        .u64(raw)
        .u64(coefficients)
}

/// `struct Conv2d`.
pub(super) fn conv2d(geometry: &geometry::Conv2d) -> Arg {
    let geometry::Conv2d { n, c, k, window } = *geometry;
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
    [n, h, w, c, k, r, s, stride, pad.top, pad.left, p, q]
        .into_iter()
        .fold(Arg::of("Conv2d"), Arg::u32)
}

/// `struct PerChannel`.
pub(super) fn per_channel(geometry: &geometry::PerChannel) -> Arg {
    let geometry::PerChannel { n, c, window } = *geometry;
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
    [n, h, w, c, r, s, stride, pad.top, pad.left, p, q]
        .into_iter()
        .fold(Arg::of("PerChannel"), Arg::u32)
}

/// `struct Pending` of a value that is not there.
pub(super) fn no_pending() -> Arg {
    Arg::of("Pending").u64(0).u64(0).u64(0).u32(0).padded()
}
