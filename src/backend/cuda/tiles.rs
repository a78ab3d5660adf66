//! Every tile and block size, once. They reach the kernels' source by `-D`, and the host's launch arithmetic from here.

use crate::backend::{Element, head_rows};
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
    /// What tensors are made of, `-DELEMENT` (bytes).
    pub element: Element,
    /// The other constants of the source, by name.
    pub constants: &'static [(&'static str, u32)],
    /// The most registers per thread that its kernels may use.
    pub registers: u32,
}

/// The two programs of a file: with VECTOR = 1 for rows of any length, with VECTOR = 4 for rows whose length is a
/// multiple of 4.
pub(super) type ByVector = [Program; 2];

/// The programs of a file for each type of elements, in the order of [`Element`].
pub(super) type ByElement<T> = [T; 2];

/// The programs of a file: its name, then the other fields of [`Program`].
macro_rules! by_element {
    ($name:literal, $($fields:tt)*) => {
        [
            Program { name: $name, element: Element::F32, $($fields)* },
            Program { name: concat!($name, "_bf16"), element: Element::Bf16, $($fields)* },
        ]
    };
}

/// A [`ByVector`]: its name, its elements, then the other fields of [`Program`].
macro_rules! by_vector {
    ($name:expr, $element:expr, $($fields:tt)*) => {
        [
            Program { name: $name, element: $element, vector: 1, $($fields)* },
            Program { name: concat!($name, "_4"), element: $element, vector: 4, $($fields)* },
        ]
    };
}

/// A [`ByVector`] for each type of elements: its name, then the other fields of [`Program`].
macro_rules! by_element_and_vector {
    ($name:literal, $($fields:tt)*) => {
        [
            by_vector!($name, Element::F32, $($fields)*),
            by_vector!(concat!($name, "_bf16"), Element::Bf16, $($fields)*),
        ]
    };
}

/// Whether cards of a compute capability take tensors of `element`: bfloat16 those whose tensor cores multiply it.
pub fn takes(capability: (u32, u32), element: Element) -> bool {
    match element {
        Element::F32 => true,
        Element::Bf16 => capability >= (8, 0),
    }
}

/// What is for tensors of `element`.
pub(super) fn by_element<T>(programs: &'static ByElement<T>, element: Element) -> &'static T {
    match element {
        Element::F32 => &programs[0],
        Element::Bf16 => &programs[1],
    }
}

/// The program for pixels of `c` channels.
pub(super) fn by_channels(
    programs: &'static ByElement<ByVector>,
    element: Element,
    c: usize,
) -> &'static Program {
    &by_element(programs, element)[usize::from(c.is_multiple_of(4))]
}

/// Threads that run in step.
pub(super) const WARP: u32 = 32;

/// The codes that host and kernels share: activations, and the rules of gradient descent. Every source is given them.
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

/// The code of this name.
///
/// # Panics
/// If there is no such code.
pub(super) const fn code(name: &str) -> u32 {
    value(&CODES, name)
}

/// The most tiles of pixels that a per-channel sum is cut into: enough for a large card, few enough that merging them
/// costs little.
pub(super) const CHANNEL_TILES: u32 = 1024;

/// The sums of what tiles and splits leave.
pub(super) static REDUCE: ByElement<Program> = by_element!("reduce",
    file: "reduce.cu",
    threads: 256,
    vector: 1,
    constants: &[],
    registers: 64,
);

/// Element-wise addition and the passing on of gradients: by the elements that are read, then by those that are written.
pub(super) static ADD: ByElement<ByElement<ByVector>> = {
    macro_rules! add {
        ($name:expr, $from:expr, $to:expr) => {
            by_vector!($name, $from,
                file: "add.cu",
                threads: 256,
                constants: &[("TO", $to.bytes() as u32)],
                registers: 64,
            )
        };
    }
    [
        [
            add!("add", Element::F32, Element::F32),
            add!("add_f32_to_bf16", Element::F32, Element::Bf16),
        ],
        [
            add!("add_bf16_to_f32", Element::Bf16, Element::F32),
            add!("add_bf16", Element::Bf16, Element::Bf16),
        ],
    ]
};

/// Pixels that a thread has in flight.
pub(super) const CLOSE_GRAD_UNROLL: u32 = 2;

/// The finish of a gradient.
pub(super) static CLOSE_GRAD: ByElement<ByVector> = by_element_and_vector!("close_grad",
    file: "close_grad.cu",
    threads: 256,
    constants: &[("UNROLL", CLOSE_GRAD_UNROLL)],
    registers: 80,
);

/// Pixels that a thread takes into registers at a time.
pub(super) const MOMENTS_CHUNK: u32 = 8;

/// Batch norm's moments, tile by tile.
pub(super) static BATCH_NORM_MOMENTS: ByElement<ByVector> = by_element_and_vector!("batch_norm_moments",
    file: "batch_norm_moments.cu",
    threads: 256,
    constants: &[("CHUNK", MOMENTS_CHUNK)],
    registers: 64,
);

/// The merge of batch norm's moments, and its coefficients.
pub(super) static BATCH_NORM: ByElement<Program> = by_element!("batch_norm",
    file: "batch_norm.cu",
    threads: 256,
    vector: 1,
    constants: &[],
    registers: 64,
);

/// Height and width in pixels of a tile of max pooling's gradient.
pub(super) const POOL_TILE: u32 = 8;

/// Max and average pooling.
pub(super) static POOL: ByElement<ByVector> = by_element_and_vector!("pool",
    file: "pool.cu",
    threads: 256,
    constants: &[("TILE", POOL_TILE)],
    registers: 64,
);

/// Dropout, four elements per thread.
pub(super) static DROPOUT: ByElement<ByVector> = by_element_and_vector!("dropout",
    file: "dropout.cu",
    threads: 256,
    constants: &[],
    registers: 48,
);

/// Pixels to the network's numbers; ERASED is the colour of erased pixels.
pub(super) static INPUT_TRANSFORM: ByElement<Program> = by_element!("input_transform",
    file: "input_transform.cu",
    threads: 256,
    vector: 4,
    constants: &[("ERASED", ERASED as u32)],
    registers: 64,
);

/// Elements of the parameter slab that a block takes: a multiple of VECTOR THREADS.
pub(super) const SGD_CHUNK: u32 = 4096;

/// Steps of the parameter slab.
pub(super) static SGD: Program = Program {
    name: "sgd",
    file: "sgd.cu",
    threads: 256,
    element: Element::F32,
    vector: 4,
    constants: &[("CHUNK", SGD_CHUNK)],
    registers: 64,
};

/// Rows of a tile of the head's matrix products.
pub(super) const HEAD_ROWS: u32 = 64;
/// Columns of a tile of the head's matrix products.
pub(super) const HEAD_COLUMNS: u32 = 128;
/// Terms of the head's products that are read at a time.
pub(super) const HEAD_DEPTH: u32 = 8;
/// Class rows whose norms a block computes.
pub(super) const HEAD_NORM_ROWS: u32 = 64;

/// The constants of the ArcFace head: its tiles, and the places of the vectors of [`head_rows`].
const HEAD: &[(&str, u32)] = &[
    ("ROWS", HEAD_ROWS),
    ("COLUMNS", HEAD_COLUMNS),
    ("DEPTH", HEAD_DEPTH),
    ("NORM_ROWS", HEAD_NORM_ROWS),
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
    element: Element::F32,
    vector: 1,
    constants: HEAD,
    registers: 64,
};

/// The head's matrix products.
pub(super) static ARCFACE_PRODUCT: ByVector = by_vector!("arcface_product", Element::F32,
    file: "arcface_product.cu",
    threads: 128,
    constants: HEAD,
    registers: 160,
);

/// Tiles of the implicit matrix products.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProductTile {
    /// Rows of results of a block.
    pub(super) m: u32,
    /// Columns of results of a block.
    pub(super) n: u32,
    /// Terms of a step.
    pub(super) k: u32,
    /// Rows of results of a thread.
    thread_m: u32,
    /// Columns of results of a thread.
    thread_n: u32,
}

impl ProductTile {
    const fn constants(self) -> [(&'static str, u32); 5] {
        [
            ("TILE_M", self.m),
            ("TILE_N", self.n),
            ("TILE_K", self.k),
            ("THREAD_M", self.thread_m),
            ("THREAD_N", self.thread_n),
        ]
    }
}

/// For large products.
const LARGE_TILE: ProductTile = ProductTile {
    m: 128,
    n: 64,
    k: 16,
    thread_m: 8,
    thread_n: 8,
};

/// For few rows or few columns.
const SMALL_TILE: ProductTile = ProductTile {
    m: 64,
    n: 32,
    k: 16,
    thread_m: 8,
    thread_n: 4,
};

/// The programs of a product with one size of tile.
pub(super) struct Tiled {
    pub(super) tile: ProductTile,
    pub(super) programs: ByElement<ByVector>,
}

/// Convolution, forward: with large tiles, and with small ones.
pub(super) static CONV_FPROP: [Tiled; 2] = [
    Tiled {
        tile: LARGE_TILE,
        programs: by_element_and_vector!("conv_fprop",
            file: "conv_fprop.cu",
            threads: 128,
            constants: &LARGE_TILE.constants(),
            registers: 255,
        ),
    },
    Tiled {
        tile: SMALL_TILE,
        programs: by_element_and_vector!("conv_fprop_small",
            file: "conv_fprop.cu",
            threads: 64,
            constants: &SMALL_TILE.constants(),
            registers: 208,
        ),
    },
];

/// Convolution, gradient to the data: with large tiles, and with small ones.
pub(super) static CONV_DGRAD: [Tiled; 2] = [
    Tiled {
        tile: LARGE_TILE,
        programs: by_element_and_vector!("conv_dgrad",
            file: "conv_dgrad.cu",
            threads: 128,
            constants: &LARGE_TILE.constants(),
            registers: 255,
        ),
    },
    Tiled {
        tile: SMALL_TILE,
        programs: by_element_and_vector!("conv_dgrad_small",
            file: "conv_dgrad.cu",
            threads: 64,
            constants: &SMALL_TILE.constants(),
            registers: 208,
        ),
    },
];

/// Convolution, gradient to the weights: with large tiles, and with small ones.
pub(super) static CONV_WGRAD: [Tiled; 2] = [
    Tiled {
        tile: LARGE_TILE,
        programs: by_element_and_vector!("conv_wgrad",
            file: "conv_wgrad.cu",
            threads: 128,
            constants: &LARGE_TILE.constants(),
            registers: 255,
        ),
    },
    Tiled {
        tile: SMALL_TILE,
        programs: by_element_and_vector!("conv_wgrad_small",
            file: "conv_wgrad.cu",
            threads: 64,
            constants: &SMALL_TILE.constants(),
            // Turing's scalar kernel takes 213. Any limit from 204 to 216 leaves four blocks per multiprocessor.
            registers: 216,
        ),
    },
];

/// Pixels of a row that a thread of a depthwise convolution takes.
pub(super) const RUN: u32 = 4;

/// Depthwise convolution: one channel at a time with any window; four with any window; and four with windows of 3x3 and a
/// stride of 1 and of 2. FILTER and STRIDE are 0 where the geometry gives them.
pub(super) static CONV_DEPTHWISE: ByElement<[Program; 4]> = {
    const ANY: &[(&str, u32)] = &[("RUN", RUN), ("FILTER", 0), ("STRIDE", 0)];
    macro_rules! program {
        ($name:expr, $element:expr, $vector:literal, $constants:expr) => {
            Program {
                name: $name,
                file: "conv_depthwise.cu",
                threads: 128,
                vector: $vector,
                element: $element,
                constants: $constants,
                registers: 128,
            }
        };
    }
    macro_rules! programs {
        ($name:expr, $element:expr) => {
            [
                program!($name, $element, 1, ANY),
                program!(concat!($name, "_4"), $element, 4, ANY),
                program!(
                    concat!($name, "_4_3x3"),
                    $element,
                    4,
                    &[("RUN", RUN), ("FILTER", 3), ("STRIDE", 1)]
                ),
                program!(
                    concat!($name, "_4_3x3_2"),
                    $element,
                    4,
                    &[("RUN", RUN), ("FILTER", 3), ("STRIDE", 2)]
                ),
            ]
        };
    }
    [
        programs!("conv_depthwise", Element::F32),
        programs!("conv_depthwise_bf16", Element::Bf16),
    ]
};

/// All programs, for the gates that compile every one.
pub static PROGRAMS: LazyLock<Vec<&Program>> = LazyLock::new(|| {
    let product =
        |tiled: &'static [Tiled; 2]| tiled.iter().flat_map(|of| of.programs.as_flattened());
    let mut programs: Vec<&Program> = [
        ARCFACE_PRODUCT.as_slice(),
        from_ref(&ARCFACE),
        from_ref(&SGD),
    ]
    .into_iter()
    .chain([&REDUCE, &BATCH_NORM, &INPUT_TRANSFORM].map(<[Program; 2]>::as_slice))
    .chain([&CLOSE_GRAD, &BATCH_NORM_MOMENTS, &POOL, &DROPOUT].map(|of| of.as_flattened()))
    .chain([
        ADD.as_flattened().as_flattened(),
        CONV_DEPTHWISE.as_flattened(),
    ])
    .flatten()
    .chain(
        [&CONV_FPROP, &CONV_DGRAD, &CONV_WGRAD]
            .into_iter()
            .flat_map(product),
    )
    .collect();
    programs.sort_by_key(|program| program.name);
    programs
});

impl Program {
    /// All constants of its source, by name: its own, and what every source is given.
    pub(super) fn defines(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let common = [
            ("THREADS", self.threads),
            ("VECTOR", self.vector),
            ("ELEMENT", self.element.bytes() as u32),
        ];
        (common.into_iter().chain(CODES)).chain(self.constants.iter().copied())
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
