//! Every tile and block size, once. They reach the kernels' source by `-D`, and the host's launch arithmetic from here.

use super::blocks;
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

/// The two programs of a file: with VECTOR = 1 for rows of any length, with a larger VECTOR for rows whose length is a
/// multiple of it: 4, or the elements of 16 bytes for the products.
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

/// The codes that host and kernels share: activations, the rules of gradient descent, the places of the vectors of
/// [`head_rows`]. Every source is given them.
const CODES: [(&str, u32); 16] = [
    ("IDENTITY", 0),
    ("RELU", 1),
    ("RELU6", 2),
    ("PRELU", 3),
    ("KERAS", 0),
    ("KERAS_NESTEROV", 1),
    ("TORCH", 2),
    ("TORCH_NESTEROV", 3),
    ("INVERSE_NORM", head_rows::INVERSE_NORM as u32),
    ("TARGET_COS", head_rows::TARGET_COS as u32),
    ("TARGET_LOGIT", head_rows::TARGET_LOGIT as u32),
    ("TARGET_SLOPE", head_rows::TARGET_SLOPE as u32),
    ("SUM_EXP", head_rows::SUM_EXP as u32),
    ("BEST_OTHER", head_rows::BEST_OTHER as u32),
    ("OFFSET", head_rows::OFFSET as u32),
    ("SQUARES", head_rows::SQUARES as u32),
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

/// Columns of a class row whose squares are added up together; no tile of the head is narrower.
pub(super) const SQUARE_COLUMNS: u32 = 32;

/// The ArcFace head's rows: what is made of them before the products, and of sums after them.
pub(super) static ARCFACE: ByElement<Program> = by_element!("arcface",
    file: "arcface.cu",
    threads: 128,
    vector: 1,
    constants: &[],
    registers: 64,
);

/// Bytes of a chunk: what a product copies at once.
pub(super) const CHUNK_BYTES: u32 = 16;

/// Registers of a multiprocessor.
const REGISTERS: u32 = 64 << 10;

/// Bytes of terms that a step of a product takes of each row and column.
const STEP_BYTES: u32 = 64;

/// Terms of a step of a product.
pub(super) const fn step_terms(element: Element) -> u32 {
    STEP_BYTES / element.bytes() as u32
}

/// A tile of the matrix products (`gemm.cuh`).
#[derive(Clone, Copy, Debug)]
pub(super) struct ProductTile {
    /// Rows of results of a block.
    pub(super) m: u32,
    /// Columns of results of a block.
    pub(super) n: u32,
    /// Rows and columns of results of a thread, or of a warp on tensor cores.
    part: (u32, u32),
    /// Threads that make a part together.
    together: u32,
    /// Steps that are in shared memory at a time.
    stages: u32,
    /// What a result costs, relative to those of the other tiles. A number that has been read serves fewer results of a
    /// smaller tile.
    pub(super) cost: u64,
}

impl ProductTile {
    /// A tile of multiply-adds; `part` is what a thread makes.
    const fn fma((m, n): (u32, u32), part: (u32, u32), cost: u64) -> Self {
        ProductTile {
            m,
            n,
            part,
            together: 1,
            stages: 2,
            cost,
        }
    }

    /// A tile of tensor cores; `part` is what a warp makes.
    const fn mma((m, n): (u32, u32), part: (u32, u32), cost: u64) -> Self {
        ProductTile {
            m,
            n,
            part,
            together: WARP,
            stages: 3,
            cost,
        }
    }

    /// Tiles that cover an M x N result.
    pub(super) fn cover(self, m: u64, n: u64) -> u64 {
        blocks(m, self.m) * blocks(n, self.n)
    }

    /// Threads of a block.
    const fn threads(self) -> u32 {
        self.together * (self.m / self.part.0) * (self.n / self.part.1)
    }

    /// Bytes of dynamic shared memory of a block whose operands have this many tensors: the stages, and after them the
    /// results.
    const fn shared(self, (of_m, of_n): (u32, u32)) -> u32 {
        let stages = self.stages * STEP_BYTES * (of_m * self.m + of_n * self.n);
        let results = 4 * self.m * (self.n + 8);
        if stages > results { stages } else { results }
    }

    const fn constants(
        self,
        element: Element,
        tensors: (u32, u32),
        registers: u32,
    ) -> [(&'static str, u32); 8] {
        [
            ("BLOCKS", REGISTERS / (registers * self.threads())),
            ("TILE_M", self.m),
            ("TILE_N", self.n),
            ("TILE_K", step_terms(element)),
            ("PART_M", self.part.0),
            ("PART_N", self.part.1),
            ("STAGES", self.stages),
            ("SHARED", self.shared(tensors)),
        ]
    }
}

/// A product with one size of tile: for rows of any length, and for rows that are whole chunks.
pub(super) struct Tiled {
    pub(super) tile: ProductTile,
    /// Bytes of dynamic shared memory of a block.
    pub(super) shared: u32,
    pub(super) programs: ByVector,
}

/// The sizes of tiles of a product, for each type of elements.
pub(super) type Product = ByElement<&'static [Tiled]>;

/// Multiply-adds, large products.
const FMA_128X64: ProductTile = ProductTile::fma((128, 64), (8, 8), 4);

/// Multiply-adds, few rows or few columns.
const FMA_64X32: ProductTile = ProductTile::fma((64, 32), (8, 4), 5);

/// Tensor cores, many columns.
const MMA_128X128: ProductTile = ProductTile::mma((128, 128), (64, 64), 8);

/// Tensor cores, fewer columns.
const MMA_128X64: ProductTile = ProductTile::mma((128, 64), (64, 32), 9);

/// Tensor cores, few rows or few columns.
const MMA_64X64: ProductTile = ProductTile::mma((64, 64), (32, 32), 11);

/// A product: its file, its operands' tensors, and for each tile its name, the tile and the most registers.
macro_rules! product {
    (
        $file:literal, $tensors:expr,
        f32: [$($name:literal $tile:ident $registers:literal),*],
        bf16: [$($half:literal $half_tile:ident $half_registers:literal),*]
    ) => {
        [
            &[$(product!(@tiled $file, $tensors, Element::F32, $name, $tile, $registers)),*],
            &[$(product!(@tiled $file, $tensors, Element::Bf16, $half, $half_tile, $half_registers)),*],
        ]
    };
    (@tiled $file:literal, $tensors:expr, $element:expr, $name:literal, $tile:ident, $registers:literal) => {
        Tiled {
            tile: $tile,
            shared: $tile.shared($tensors),
            programs: [
                product!(@program $file, $tensors, $element, $name, $tile, $registers, 1),
                product!(
                    @program $file, $tensors, $element, concat!($name, "_wide"), $tile, $registers,
                    CHUNK_BYTES / $element.bytes() as u32
                ),
            ],
        }
    };
    (@program $file:literal, $tensors:expr, $element:expr, $name:expr, $tile:ident, $registers:literal, $vector:expr) => {
        Program {
            name: $name,
            file: $file,
            threads: $tile.threads(),
            vector: $vector,
            element: $element,
            constants: &$tile.constants($element, $tensors, $registers),
            registers: $registers,
        }
    };
}

/// Convolution, forward.
pub(super) static CONV_FPROP: Product = product!("conv_fprop.cu", (1, 1),
    f32: ["conv_fprop" FMA_128X64 255, "conv_fprop_64x32" FMA_64X32 255],
    bf16: [
        "conv_fprop_bf16" MMA_128X128 255,
        "conv_fprop_bf16_128x64" MMA_128X64 168,
        "conv_fprop_bf16_64x64" MMA_64X64 128
    ]
);

/// Convolution, gradient to the data; the gradient has two tensors.
pub(super) static CONV_DGRAD: Product = product!("conv_dgrad.cu", (2, 1),
    f32: ["conv_dgrad" FMA_128X64 255, "conv_dgrad_64x32" FMA_64X32 255],
    bf16: [
        "conv_dgrad_bf16" MMA_128X128 255,
        "conv_dgrad_bf16_128x64" MMA_128X64 200,
        "conv_dgrad_bf16_64x64" MMA_64X64 128
    ]
);

/// Convolution, gradient to the weights; the gradient has two tensors.
pub(super) static CONV_WGRAD: Product = product!("conv_wgrad.cu", (2, 1),
    f32: ["conv_wgrad" FMA_128X64 255, "conv_wgrad_64x32" FMA_64X32 255],
    bf16: [
        "conv_wgrad_bf16_128x64" MMA_128X64 255,
        "conv_wgrad_bf16_64x64" MMA_64X64 200
    ]
);

/// The ArcFace head's logits.
pub(super) static ARCFACE_LOGITS: Product = product!("arcface_logits.cu", (1, 1),
    f32: ["arcface_logits" FMA_128X64 255, "arcface_logits_64x32" FMA_64X32 255],
    bf16: ["arcface_logits_bf16" MMA_128X128 255, "arcface_logits_bf16_64x64" MMA_64X64 128]
);

/// The ArcFace head's gradients.
pub(super) static ARCFACE_BPROP: Product = product!("arcface_bprop.cu", (1, 1),
    f32: ["arcface_bprop" FMA_128X64 255, "arcface_bprop_64x32" FMA_64X32 255],
    bf16: ["arcface_bprop_bf16_128x64" MMA_128X64 255, "arcface_bprop_bf16_64x64" MMA_64X64 168]
);

/// The least common multiple of the rows and columns of the head's tiles: stretches of classes are whole tiles of any.
pub(super) const HEAD_STRETCH: u32 = 128;

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
    let product = |of: &'static Product| of.iter().copied().flatten().flat_map(|of| &of.programs);
    let mut programs: Vec<&Program> = [
        ARCFACE.as_slice(),
        REDUCE.as_slice(),
        BATCH_NORM.as_slice(),
        INPUT_TRANSFORM.as_slice(),
        from_ref(&SGD),
    ]
    .into_iter()
    .chain([&CLOSE_GRAD, &BATCH_NORM_MOMENTS, &POOL, &DROPOUT].map(|of| of.as_flattened()))
    .chain([
        ADD.as_flattened().as_flattened(),
        CONV_DEPTHWISE.as_flattened(),
    ])
    .flatten()
    .chain(
        [
            &CONV_FPROP,
            &CONV_DGRAD,
            &CONV_WGRAD,
            &ARCFACE_LOGITS,
            &ARCFACE_BPROP,
        ]
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
            ("SQUARE_COLUMNS", SQUARE_COLUMNS),
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
