//! Every tile and block size, once. They reach the kernels' source by `-D`, and the host's launch arithmetic from here.

use crate::backend::head_rows;
use crate::base::changes::ERASED;

/// A kernel file compiled with one set of constants.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Names it in tables and messages.
    pub name: &'static str,
    /// The file in `kernels/`.
    pub file: &'static str,
    /// Threads of a block, `-DTHREADS`.
    pub threads: u32,
    /// The other constants of the source, by name.
    pub constants: &'static [(&'static str, u32)],
    /// Registers a thread that none of its kernels may exceed.
    pub registers: u32,
}

/// Threads that run in step.
pub(super) const WARP: u32 = 32;

/// Most tiles of pixels that a sum over the pixels, each channel by itself, is cut into: enough for a large card, few
/// enough that merging them costs little.
pub(super) const CHANNEL_TILES: u32 = 1024;

/// Sums of tiles' partial results.
pub(super) const REDUCE: Program = Program {
    name: "reduce",
    file: "reduce.cu",
    threads: 256,
    constants: &[],
    registers: 64,
};

/// Element-wise addition and the passing on of gradients.
pub(super) const ADD: Program = Program {
    name: "add",
    file: "add.cu",
    threads: 256,
    constants: &[],
    registers: 64,
};

/// The finish of a gradient; UNROLL pixels of a thread at once.
pub(super) const CLOSE_GRAD: Program = Program {
    name: "close_grad",
    file: "close_grad.cu",
    threads: 256,
    constants: &[("UNROLL", 2)],
    registers: 80,
};

/// Batch norm's moments, CHUNK pixels of a thread at once, and its coefficients.
pub(super) const BATCH_NORM: Program = Program {
    name: "batch_norm",
    file: "batch_norm.cu",
    threads: 256,
    constants: &[("CHUNK", 8)],
    registers: 64,
};

/// Max and average pooling; a tile of max pooling's gradient is TILE x TILE pixels.
pub(super) const POOL: Program = Program {
    name: "pool",
    file: "pool.cu",
    threads: 256,
    constants: &[("TILE", 8)],
    registers: 64,
};

/// Dropout, four elements a thread.
pub(super) const DROPOUT: Program = Program {
    name: "dropout",
    file: "dropout.cu",
    threads: 256,
    constants: &[],
    registers: 48,
};

/// Pixels to the network's numbers; ERASED is the colour of erased pixels.
pub(super) const INPUT_TRANSFORM: Program = Program {
    name: "input_transform",
    file: "input_transform.cu",
    threads: 256,
    constants: &[("ERASED", ERASED as u32)],
    registers: 64,
};

/// Steps of the parameter slab, CHUNK elements a block: a multiple of 4 THREADS.
pub(super) const SGD: Program = Program {
    name: "sgd",
    file: "sgd.cu",
    threads: 256,
    constants: &[("CHUNK", 4096)],
    registers: 64,
};

/// The ArcFace head: products in tiles of ROWS x COLUMNS, DEPTH terms at a time; NORM_ROWS class rows a block of norms.
/// The other constants place the vectors of [`head_rows`].
pub(super) const ARCFACE: Program = Program {
    name: "arcface",
    file: "arcface.cu",
    threads: 128,
    constants: &[
        ("ROWS", 64),
        ("COLUMNS", 128),
        ("DEPTH", 8),
        ("NORM_ROWS", 64),
        ("INVERSE_NORM", head_rows::INVERSE_NORM as u32),
        ("TARGET_COS", head_rows::TARGET_COS as u32),
        ("TARGET_LOGIT", head_rows::TARGET_LOGIT as u32),
        ("TARGET_SLOPE", head_rows::TARGET_SLOPE as u32),
        ("SUM_EXP", head_rows::SUM_EXP as u32),
        ("BEST_OTHER", head_rows::BEST_OTHER as u32),
        ("OFFSET", head_rows::OFFSET as u32),
        ("SQUARES", head_rows::SQUARES as u32),
    ],
    registers: 160,
};

/// Tiles of the implicit matrix products: TILE_M x TILE_N results a block, THREAD_M x THREAD_N a thread, TILE_K terms a
/// step.
const LARGE_TILE: &[(&str, u32)] = &[
    ("TILE_M", 128),
    ("TILE_N", 64),
    ("TILE_K", 16),
    ("THREAD_M", 8),
    ("THREAD_N", 8),
];

/// For few rows or few columns.
const SMALL_TILE: &[(&str, u32)] = &[
    ("TILE_M", 64),
    ("TILE_N", 32),
    ("TILE_K", 16),
    ("THREAD_M", 8),
    ("THREAD_N", 4),
];

/// Convolution, forward.
pub(super) const CONV_FPROP: Program = Program {
    name: "conv_fprop",
    file: "conv_fprop.cu",
    threads: 128,
    constants: LARGE_TILE,
    registers: 255,
};

/// Convolution, forward, small tiles.
pub(super) const CONV_FPROP_SMALL: Program = Program {
    name: "conv_fprop_small",
    file: "conv_fprop.cu",
    threads: 64,
    constants: SMALL_TILE,
    registers: 208,
};

/// Convolution, gradient to the data.
pub(super) const CONV_DGRAD: Program = Program {
    name: "conv_dgrad",
    file: "conv_dgrad.cu",
    threads: 128,
    constants: LARGE_TILE,
    registers: 255,
};

/// Convolution, gradient to the data, small tiles.
pub(super) const CONV_DGRAD_SMALL: Program = Program {
    name: "conv_dgrad_small",
    file: "conv_dgrad.cu",
    threads: 64,
    constants: SMALL_TILE,
    registers: 208,
};

/// Convolution, gradient to the weights.
pub(super) const CONV_WGRAD: Program = Program {
    name: "conv_wgrad",
    file: "conv_wgrad.cu",
    threads: 128,
    constants: LARGE_TILE,
    registers: 255,
};

/// Convolution, gradient to the weights, small tiles.
pub(super) const CONV_WGRAD_SMALL: Program = Program {
    name: "conv_wgrad_small",
    file: "conv_wgrad.cu",
    threads: 64,
    constants: SMALL_TILE,
    // Four blocks a multiprocessor, as with fewer down to 204; Turing's scalar kernel takes 213.
    registers: 216,
};

/// Depthwise convolution; a thread takes RUN pixels of a row.
pub(super) const CONV_DEPTHWISE: Program = Program {
    name: "conv_depthwise",
    file: "conv_depthwise.cu",
    threads: 128,
    constants: &[("RUN", 4)],
    registers: 128,
};

/// All programs, for the gates that compile every one.
pub const PROGRAMS: &[&Program] = &[
    &ADD,
    &ARCFACE,
    &BATCH_NORM,
    &CLOSE_GRAD,
    &CONV_DEPTHWISE,
    &CONV_DGRAD,
    &CONV_DGRAD_SMALL,
    &CONV_FPROP,
    &CONV_FPROP_SMALL,
    &CONV_WGRAD,
    &CONV_WGRAD_SMALL,
    &DROPOUT,
    &INPUT_TRANSFORM,
    &POOL,
    &REDUCE,
    &SGD,
];

impl Program {
    /// A constant's value.
    ///
    /// # Panics
    /// If the program has no such constant.
    pub(super) const fn constant(&self, name: &str) -> u32 {
        let mut i = 0;
        while i < self.constants.len() {
            let (known, value) = self.constants[i];
            if same(known, name) {
                return value;
            }
            i += 1;
        }
        panic!("a program's constants are those of its definition")
    }
}

/// String equality, for constants.
const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    let mut i = 0;
    while i < a.len() && i < b.len() && a[i] == b[i] {
        i += 1;
    }
    i == a.len() && i == b.len()
}
