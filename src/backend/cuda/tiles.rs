//! Every tile and block size, once. They reach the kernels' source by `-D`, and the host's launch arithmetic from here.

use crate::backend::head_rows;
use crate::base::changes::ERASED;
use std::slice::from_ref;
use std::sync::LazyLock;

/// A kernel file compiled with one set of constants.
#[derive(Debug, PartialEq, Eq)]
pub struct Program {
    /// Names it in tables and messages.
    pub name: &'static str,
    /// The file in `kernels/`.
    pub file: &'static str,
    /// Threads of a block, `-DTHREADS`.
    pub threads: u32,
    /// Neighbouring numbers that a thread reads and writes at once, `-DVECTOR`.
    pub vector: u32,
    /// The other constants of the source, by name.
    pub constants: &'static [(&'static str, u32)],
    /// Registers a thread that none of its kernels may exceed.
    pub registers: u32,
}

/// The programs of a file whose kernels take rows of any length one number at a time, and rows of multiples of 4 numbers
/// four at a time: VECTOR is 1 and 4.
pub(super) type ByVector = [Program; 2];

/// A [`ByVector`]: its name, then the other fields of [`Program`].
macro_rules! by_vector {
    ($name:literal, $($fields:tt)*) => {
        [
            Program { name: $name, vector: 1, $($fields)* },
            Program { name: concat!($name, "_4"), vector: 4, $($fields)* },
        ]
    };
}

/// The program for pixels of `c` channels.
pub(super) fn by_channels(programs: &'static ByVector, c: usize) -> &'static Program {
    &programs[usize::from(c.is_multiple_of(4))]
}

/// Threads that run in step.
pub(super) const WARP: u32 = 32;

/// What both sides know by name and every source is given: codes of activations, and of the rules of gradient descent.
const CODES: [(&str, u32); 8] = [
    ("IDENTITY", 0),
    ("RELU", 1),
    ("RELU6", 2),
    ("PRELU", 3),
    ("KERAS", 0),
    ("KERAS_NESTEROV", 1),
    ("TORCH", 2),
    ("TORCH_NESTEROV", 3),
];

/// The number that a kernel knows by this name.
///
/// # Panics
/// If there is no such code.
pub(super) const fn code(name: &str) -> usize {
    value(&CODES, name) as usize
}

/// Most tiles of pixels that a sum over the pixels, each channel by itself, is cut into: enough for a large card, few
/// enough that merging them costs little.
pub(super) const CHANNEL_TILES: u32 = 1024;

/// Sums of the partial results of tiles and splits.
pub(super) static REDUCE: Program = Program {
    name: "reduce",
    file: "reduce.cu",
    threads: 256,
    vector: 1,
    constants: &[],
    registers: 64,
};

/// Element-wise addition and the passing on of gradients.
pub(super) static ADD: ByVector = by_vector!("add",
    file: "add.cu",
    threads: 256,
    constants: &[],
    registers: 64,
);

/// The finish of a gradient; UNROLL pixels of a thread at once.
pub(super) static CLOSE_GRAD: ByVector = by_vector!("close_grad",
    file: "close_grad.cu",
    threads: 256,
    constants: &[("UNROLL", 2)],
    registers: 80,
);

/// Batch norm's moments of tiles, CHUNK pixels of a thread at once.
pub(super) static BATCH_NORM_MOMENTS: ByVector = by_vector!("batch_norm_moments",
    file: "batch_norm_moments.cu",
    threads: 256,
    constants: &[("CHUNK", 8)],
    registers: 64,
);

/// Batch norm's moments of all tiles, and its coefficients.
pub(super) static BATCH_NORM: Program = Program {
    name: "batch_norm",
    file: "batch_norm.cu",
    threads: 256,
    vector: 1,
    constants: &[],
    registers: 64,
};

/// Max and average pooling; a tile of max pooling's gradient is TILE x TILE pixels.
pub(super) static POOL: ByVector = by_vector!("pool",
    file: "pool.cu",
    threads: 256,
    constants: &[("TILE", 8)],
    registers: 64,
);

/// Dropout, four elements a thread.
pub(super) static DROPOUT: ByVector = by_vector!("dropout",
    file: "dropout.cu",
    threads: 256,
    constants: &[],
    registers: 48,
);

/// Pixels to the network's numbers; ERASED is the colour of erased pixels.
pub(super) static INPUT_TRANSFORM: Program = Program {
    name: "input_transform",
    file: "input_transform.cu",
    threads: 256,
    vector: 4,
    constants: &[("ERASED", ERASED as u32)],
    registers: 64,
};

/// Steps of the parameter slab, CHUNK elements a block: a multiple of VECTOR THREADS.
pub(super) static SGD: Program = Program {
    name: "sgd",
    file: "sgd.cu",
    threads: 256,
    vector: 4,
    constants: &[("CHUNK", 4096)],
    registers: 64,
};

/// The ArcFace head: products in tiles of ROWS x COLUMNS, DEPTH terms at a time; NORM_ROWS class rows a block of norms.
/// The other constants place the vectors of [`head_rows`].
const HEAD: &[(&str, u32)] = &[
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
];

/// The head's rows: norms, targets, and sums over tiles.
pub(super) static ARCFACE: Program = Program {
    name: "arcface",
    file: "arcface.cu",
    threads: 128,
    vector: 1,
    constants: HEAD,
    registers: 64,
};

/// The head's matrix products.
pub(super) static ARCFACE_PRODUCT: ByVector = by_vector!("arcface_product",
    file: "arcface_product.cu",
    threads: 128,
    constants: HEAD,
    registers: 160,
);

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
pub(super) static CONV_FPROP: ByVector = by_vector!("conv_fprop",
    file: "conv_fprop.cu",
    threads: 128,
    constants: LARGE_TILE,
    registers: 255,
);

/// Convolution, forward, small tiles.
pub(super) static CONV_FPROP_SMALL: ByVector = by_vector!("conv_fprop_small",
    file: "conv_fprop.cu",
    threads: 64,
    constants: SMALL_TILE,
    registers: 208,
);

/// Convolution, gradient to the data.
pub(super) static CONV_DGRAD: ByVector = by_vector!("conv_dgrad",
    file: "conv_dgrad.cu",
    threads: 128,
    constants: LARGE_TILE,
    registers: 255,
);

/// Convolution, gradient to the data, small tiles.
pub(super) static CONV_DGRAD_SMALL: ByVector = by_vector!("conv_dgrad_small",
    file: "conv_dgrad.cu",
    threads: 64,
    constants: SMALL_TILE,
    registers: 208,
);

/// Convolution, gradient to the weights.
pub(super) static CONV_WGRAD: ByVector = by_vector!("conv_wgrad",
    file: "conv_wgrad.cu",
    threads: 128,
    constants: LARGE_TILE,
    registers: 255,
);

/// Convolution, gradient to the weights, small tiles.
pub(super) static CONV_WGRAD_SMALL: ByVector = by_vector!("conv_wgrad_small",
    file: "conv_wgrad.cu",
    threads: 64,
    constants: SMALL_TILE,
    // Four blocks a multiprocessor, as with fewer down to 204; Turing's scalar kernel takes 213.
    registers: 216,
);

/// Pixels of a row that a thread of a depthwise convolution takes.
pub(super) const RUN: u32 = 4;

/// Depthwise convolution: one channel at a time with any window; four with any window; and four with windows of 3x3 and a
/// stride of 1 and of 2. FILTER and STRIDE are 0 where the geometry gives them.
pub(super) static CONV_DEPTHWISE: [Program; 4] = {
    const fn program(
        name: &'static str,
        vector: u32,
        constants: &'static [(&str, u32)],
    ) -> Program {
        Program {
            name,
            file: "conv_depthwise.cu",
            threads: 128,
            vector,
            constants,
            registers: 128,
        }
    }
    const ANY: &[(&str, u32)] = &[("RUN", RUN), ("FILTER", 0), ("STRIDE", 0)];
    [
        program("conv_depthwise", 1, ANY),
        program("conv_depthwise_4", 4, ANY),
        program(
            "conv_depthwise_4_3x3",
            4,
            &[("RUN", RUN), ("FILTER", 3), ("STRIDE", 1)],
        ),
        program(
            "conv_depthwise_4_3x3_2",
            4,
            &[("RUN", RUN), ("FILTER", 3), ("STRIDE", 2)],
        ),
    ]
};

/// All programs, for the gates that compile every one.
pub static PROGRAMS: LazyLock<Vec<&Program>> = LazyLock::new(|| {
    let files: [&[Program]; _] = [
        &ADD,
        from_ref(&ARCFACE),
        &ARCFACE_PRODUCT,
        from_ref(&BATCH_NORM),
        &BATCH_NORM_MOMENTS,
        &CLOSE_GRAD,
        &CONV_DEPTHWISE,
        &CONV_DGRAD,
        &CONV_DGRAD_SMALL,
        &CONV_FPROP,
        &CONV_FPROP_SMALL,
        &CONV_WGRAD,
        &CONV_WGRAD_SMALL,
        &DROPOUT,
        from_ref(&INPUT_TRANSFORM),
        &POOL,
        from_ref(&REDUCE),
        from_ref(&SGD),
    ];
    files.into_iter().flatten().collect()
});

impl Program {
    /// All constants of its source, by name: its own, and what every source is given.
    pub(super) fn defines(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let common = [("THREADS", self.threads), ("VECTOR", self.vector)];
        (common.into_iter().chain(CODES)).chain(self.constants.iter().copied())
    }

    /// A constant's value.
    ///
    /// # Panics
    /// If the program has no such constant.
    pub(super) const fn constant(&self, name: &str) -> u32 {
        value(self.constants, name)
    }
}

/// The number of this name.
const fn value(numbers: &[(&str, u32)], name: &str) -> u32 {
    let mut i = 0;
    while i < numbers.len() {
        let (known, value) = numbers[i];
        if same(known, name) {
            return value;
        }
        i += 1;
    }
    panic!("the names of constants are those of their definition")
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
