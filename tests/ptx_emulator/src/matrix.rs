//! The warp-level matrix instructions: `mma.sync`, `ldmatrix`, `stmatrix`, `movmatrix`.
//!
//! **Fragments.** A warp holds a matrix spread over its lanes' registers. The three functions [`a_position`],
//! [`b_position`] and [`c_position`] say which element a lane's register holds, and everything else here is derived
//! from them. They cover every shape m16n8kK with 16-bit and 32-bit elements, because the shapes differ only in the
//! number of registers: with `pack` elements a register (2 for f16 and bf16, 1 for tf32 and f32), `group = lane / 4` and
//! `thread = lane % 4`, the registers walk over 8-row and 4-register-wide sub-blocks.
//!
//! **Arithmetic.** [`Arithmetic`] says whose: a card's, to the bit, or fused multiply-adds. Operands are widened to f32,
//! exactly; tf32 is truncated to its upper 19 bits. With fused multiply-adds each element of D starts from C, and with k
//! ascending `acc = fma(a[m][k], b[k][n], acc)` in f32, rounded to nearest even, subnormals kept; f16 accumulators are
//! widened and rounded once at the end. NaN results are the canonical NaN.

use crate::half::{self, Finish, Rounding, bf16_to_f32, f16_to_f32, f32_to_f16, tf32_to_f32};
pub use crate::tensor::Arithmetic;
use crate::tensor::{self, Lanes, Portable};

/// One register of every lane of a warp.
pub type Register = [u32; 32];

/// Rows and columns of C and D.
pub(crate) const M: usize = 16;
pub(crate) const N: usize = 8;
/// C or D.
pub(crate) type Tile = [[f32; N]; M];

/// The (row, column) in A (16 x K) of element `half` of lane `lane`'s register `register`.
pub const fn a_position(pack: usize, lane: usize, register: usize, half: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    (
        group + 8 * (register % 2),
        pack * (thread + 4 * (register / 2)) + half,
    )
}

/// The (row, column) in B (K x 8) of element `half` of lane `lane`'s register `register`.
pub const fn b_position(pack: usize, lane: usize, register: usize, half: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    (pack * (thread + 4 * register) + half, group)
}

/// The (row, column) in C and D (16 x 8) of element `half` of lane `lane`'s register `register`.
pub const fn c_position(pack: usize, lane: usize, register: usize, half: usize) -> (usize, usize) {
    let (group, thread) = (lane / 4, lane % 4);
    let element = register * pack + half;
    (group + 8 * (element / 2), 2 * thread + element % 2)
}

/// The type of the elements of A and B.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operand {
    /// `.f16`, two a register.
    F16,
    /// `.bf16`, two a register.
    Bf16,
    /// `.tf32`, one a register.
    Tf32,
}

/// The type of the elements of C and D.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Accumulator {
    /// `.f16`, two a register.
    F16,
    /// `.f32`, one a register.
    F32,
}

/// An `mma.sync.aligned.m16n8kK.row.col` instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mma {
    k: usize,
    operand: Operand,
    accumulator: Accumulator,
}

impl Mma {
    /// The instruction with this K, if the ISA has it: f16 with K 8 and 16 (f16 or f32 accumulators), bf16 with K 8
    /// and 16, tf32 with K 4 and 8.
    pub const fn new(k: usize, operand: Operand, accumulator: Accumulator) -> Option<Self> {
        let valid = match (operand, accumulator) {
            (Operand::F16, _) | (Operand::Bf16, Accumulator::F32) => k == 8 || k == 16,
            (Operand::Tf32, Accumulator::F32) => k == 4 || k == 8,
            (Operand::Bf16 | Operand::Tf32, Accumulator::F16) => false,
        };
        if valid {
            Some(Self {
                k,
                operand,
                accumulator,
            })
        } else {
            None
        }
    }

    /// The inner extent K.
    pub const fn k(self) -> usize {
        self.k
    }

    /// The type of A and B.
    pub const fn operand(self) -> Operand {
        self.operand
    }

    /// Elements of A or B in a register.
    pub const fn pack(self) -> usize {
        match self.operand {
            Operand::F16 | Operand::Bf16 => 2,
            Operand::Tf32 => 1,
        }
    }

    /// Elements of C or D in a register.
    pub const fn accumulator_pack(self) -> usize {
        match self.accumulator {
            Accumulator::F16 => 2,
            Accumulator::F32 => 1,
        }
    }

    /// Registers of A a lane.
    pub const fn a_registers(self) -> usize {
        M * self.k / 32 / self.pack()
    }

    /// Registers of B a lane.
    pub const fn b_registers(self) -> usize {
        self.k * N / 32 / self.pack()
    }

    /// Registers of C, and of D, a lane.
    pub const fn c_registers(self) -> usize {
        M * N / 32 / self.accumulator_pack()
    }

    /// Multiply-adds of one instruction of a warp.
    pub const fn multiply_adds(self) -> usize {
        M * N * self.k
    }
}

/// D = A B + C by a warp. `a`, `b`, `c` and `d` have the instruction's register counts (its parser saw to that).
/// `vector` allows vector instructions, where the processor has them; the result is the same without.
pub fn mma(
    kind: Mma,
    arithmetic: Arithmetic,
    vector: bool,
    d: &mut [Register],
    a: &[Register],
    b: &[Register],
    c: &[Register],
) {
    assert!(
        a.len() == kind.a_registers()
            && b.len() == kind.b_registers()
            && c.len() == kind.c_registers()
            && d.len() == kind.c_registers(),
        "mma with a wrong number of registers"
    );
    #[cfg(target_arch = "x86_64")]
    if vector && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the two features were just found.
        return unsafe { mma_avx2(kind, arithmetic, d, a, b, c) };
    }
    mma_here::<Portable>(kind, arithmetic, d, a, b, c);
}

/// [`mma_here`] compiled for AVX2 and FMA; the same arithmetic to the bit.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn mma_avx2(
    kind: Mma,
    arithmetic: Arithmetic,
    d: &mut [Register],
    a: &[Register],
    b: &[Register],
    c: &[Register],
) {
    mma_here::<tensor::Avx2>(kind, arithmetic, d, a, b, c);
}

#[inline(always)]
fn mma_here<V: Lanes>(
    kind: Mma,
    arithmetic: Arithmetic,
    d: &mut [Register],
    a: &[Register],
    b: &[Register],
    c: &[Register],
) {
    let mut acc = load_accumulators(kind.accumulator, c);
    let bf16 = |x| halves(x, bf16_to_f32);
    let f16 = |x| halves(x, f16_to_f32);
    let tf32 = |x| [tf32_to_f32(x)];
    match (kind.operand, kind.k) {
        (Operand::Bf16, 16) => product::<16, 2, V>(kind, arithmetic, &mut acc, a, b, bf16),
        (Operand::Bf16, _) => product::<8, 2, V>(kind, arithmetic, &mut acc, a, b, bf16),
        (Operand::F16, 16) => product::<16, 2, V>(kind, arithmetic, &mut acc, a, b, f16),
        (Operand::F16, _) => product::<8, 2, V>(kind, arithmetic, &mut acc, a, b, f16),
        (Operand::Tf32, 8) => product::<8, 1, V>(kind, arithmetic, &mut acc, a, b, tf32),
        (Operand::Tf32, _) => product::<4, 1, V>(kind, arithmetic, &mut acc, a, b, tf32),
    }
    store_accumulators(kind.accumulator, &acc, d);
}

#[inline(always)]
fn halves(register: u32, widen: impl Fn(u16) -> f32) -> [f32; 2] {
    [widen(half::low(register)), widen(half::high(register))]
}

/// acc += A B with A and B spread to dense f32 tiles first, so that the product is eight columns a vector.
#[inline(always)]
fn product<const K: usize, const PACK: usize, V: Lanes>(
    kind: Mma,
    arithmetic: Arithmetic,
    acc: &mut Tile,
    a: &[Register],
    b: &[Register],
    widen: impl Fn(u32) -> [f32; PACK],
) {
    let mut a_tile = [[0.0; K]; M];
    for (r, register) in a.iter().enumerate() {
        for (group, run) in widen_runs(register, &widen).iter().enumerate() {
            let (row, column) = a_position(PACK, 4 * group, r, 0);
            a_tile[row % M][column % K..][..4 * PACK].copy_from_slice(run.as_flattened());
        }
    }
    let mut b_tile = [[0.0; N]; K];
    for (r, register) in b.iter().enumerate() {
        for (group, run) in widen_runs(register, &widen).iter().enumerate() {
            let (row, column) = b_position(PACK, 4 * group, r, 0);
            for (j, &value) in run.as_flattened().iter().enumerate() {
                b_tile[(row + j) % K][column % N] = value;
            }
        }
    }
    let types = (kind.operand, kind.accumulator);
    tensor::product::<K, V>(arithmetic, types, acc, &a_tile, &b_tile);
}

/// A register's elements as f32, one run a group of four lanes: along a row of A, down a column of B.
#[inline(always)]
fn widen_runs<const PACK: usize>(
    register: &Register,
    widen: impl Fn(u32) -> [f32; PACK],
) -> [[[f32; PACK]; 4]; 8] {
    let mut runs = [[[0.0; PACK]; 4]; 8];
    for (elements, &bits) in runs.as_flattened_mut().iter_mut().zip(register) {
        *elements = widen(bits);
    }
    runs
}

/// C as a dense tile. The two elements of a lane that are neighbours in a row are two registers (f32) or one (f16).
#[inline(always)]
fn load_accumulators(kind: Accumulator, c: &[Register]) -> Tile {
    let mut tile = [[0.0; N]; M];
    for block in 0..2 {
        let mut pairs = [[0.0; 2]; 32];
        match kind {
            Accumulator::F32 => {
                let (left, right) = (&c[2 * block], &c[2 * block + 1]);
                for (pair, (&left, &right)) in pairs.iter_mut().zip(left.iter().zip(right)) {
                    *pair = [f32::from_bits(left), f32::from_bits(right)];
                }
            }
            Accumulator::F16 => {
                for (pair, &bits) in pairs.iter_mut().zip(&c[block]) {
                    *pair = halves(bits, f16_to_f32);
                }
            }
        }
        for (group, run) in pairs.as_chunks::<4>().0.iter().enumerate() {
            let (row, _) = c_position(2, 4 * group, block, 0);
            tile[row % M].copy_from_slice(run.as_flattened());
        }
    }
    tile
}

/// D from a dense tile, the reverse of [`load_accumulators`].
#[inline(always)]
fn store_accumulators(kind: Accumulator, tile: &Tile, d: &mut [Register]) {
    for block in 0..2 {
        let mut pairs = [[0.0; 2]; 32];
        for (group, run) in pairs.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let (row, _) = c_position(2, 4 * group, block, 0);
            run.as_flattened_mut().copy_from_slice(&tile[row % M]);
        }
        match kind {
            Accumulator::F32 => {
                for h in 0..2 {
                    for (bits, pair) in d[2 * block + h].iter_mut().zip(&pairs) {
                        *bits = canonical_bits(pair[h]);
                    }
                }
            }
            Accumulator::F16 => {
                for (bits, pair) in d[block].iter_mut().zip(&pairs) {
                    let [low, high] =
                        pair.map(|x| f32_to_f16(x, Rounding::NearestEven, Finish::default()));
                    *bits = half::pack(low, high);
                }
            }
        }
    }
}

#[inline(always)]
fn canonical_bits(x: f32) -> u32 {
    if x.is_nan() { 0x7fff_ffff } else { x.to_bits() }
}

/// The lane that supplies the address of row `row` of matrix `matrix` to `ldmatrix` and `stmatrix`.
pub const fn row_address_lane(matrix: usize, row: usize) -> usize {
    8 * matrix + row
}

/// The (row, column) in an 8 x 8 matrix of the 16-bit element that `ldmatrix` puts into half `half` of a lane's
/// register (one register a matrix), and that `stmatrix` takes from there. `.trans` mirrors it.
pub const fn matrix_position(transposed: bool, lane: usize, half: usize) -> (usize, usize) {
    let (major, minor) = (lane / 4, 2 * (lane % 4) + half);
    if transposed {
        (minor, major)
    } else {
        (major, minor)
    }
}

/// `ldmatrix.m8n8.b16`: distributes rows over the warp. `rows[8 j + i]` is row i of matrix j, read at the address of
/// lane [`row_address_lane`]`(j, i)`; `d[j]` receives matrix j.
pub fn ldmatrix(d: &mut [Register], rows: &[[u16; 8]], transposed: bool) {
    for (register, matrix) in d.iter_mut().zip(rows.chunks_exact(8)) {
        for (lane, bits) in register.iter_mut().enumerate() {
            let [low, high] = [0, 1].map(|h| {
                let (row, column) = matrix_position(transposed, lane, h);
                matrix[row][column]
            });
            *bits = half::pack(low, high);
        }
    }
}

/// `stmatrix.m8n8.b16`: collects the rows that go to the addresses of lanes [`row_address_lane`], the reverse of
/// [`ldmatrix`].
pub fn stmatrix(rows: &mut [[u16; 8]], s: &[Register], transposed: bool) {
    for (matrix, register) in rows.chunks_exact_mut(8).zip(s) {
        for (lane, &bits) in register.iter().enumerate() {
            for (h, value) in [half::low(bits), half::high(bits)].into_iter().enumerate() {
                let (row, column) = matrix_position(transposed, lane, h);
                matrix[row][column] = value;
            }
        }
    }
}

/// `movmatrix.m8n8.trans.b16`: transposes a matrix held by the warp.
pub fn movmatrix(d: &mut Register, a: &Register) {
    let mut rows = [[0; 8]; 8];
    stmatrix(&mut rows, std::slice::from_ref(a), false);
    ldmatrix(std::slice::from_mut(d), &rows, true);
}
