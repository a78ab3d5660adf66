//! The matrix instructions against the PTX ISA's fragment tables and a naive f64 product.

// Matrices are indexed as the formulas of the ISA index them.
#![allow(clippy::needless_range_loop)]

use ptx_emulator::half::{BF16, F16, Finish, Rounding, TF32, pack};
use ptx_emulator::matrix::{
    Accumulator, Arithmetic, Mma, Operand, Register, a_position, b_position, c_position, ldmatrix,
    matrix_position, mma, movmatrix, row_address_lane, stmatrix,
};

/// Every instruction that exists.
fn kinds() -> Vec<(Mma, usize, Operand, Accumulator)> {
    let mut kinds = Vec::new();
    for k in [4, 8, 16, 32] {
        for operand in [Operand::F16, Operand::Bf16, Operand::Tf32] {
            for accumulator in [Accumulator::F16, Accumulator::F32] {
                if let Some(kind) = Mma::new(k, operand, accumulator) {
                    kinds.push((kind, k, operand, accumulator));
                }
            }
        }
    }
    kinds
}

/// A small deterministic generator: well-mixed bits from a counter.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    /// Numbers of both signs whose magnitudes spread over a few powers of two.
    fn number(&mut self) -> f64 {
        let mantissa = f64::from(self.next() % 4001) / 2000.0 - 1.0;
        mantissa * f64::from(self.next() % 5).exp2()
    }
}

/// The fragments as the ISA's tables give them: element i of the lane's vector operand, in the words of the section
/// "Matrix Fragments for mma.m16n8k..." (groupID = lane >> 2, threadID_in_group = lane % 4).
fn isa_a(k: usize, bits: usize, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    match (k, bits) {
        (16, 16) => {
            let row = if i < 2 || (4..6).contains(&i) {
                group
            } else {
                group + 8
            };
            let column = thread * 2 + (i & 1) + if i < 4 { 0 } else { 8 };
            (row, column)
        }
        (8, 16) => (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1)),
        (8, 32) => {
            let row = if i == 0 || i == 2 { group } else { group + 8 };
            (row, if i < 2 { thread } else { thread + 4 })
        }
        (4, 32) => (if i == 0 { group } else { group + 8 }, thread),
        _ => unreachable!("no such shape"),
    }
}

fn isa_b(k: usize, bits: usize, lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    let row = match (k, bits) {
        (16, 16) => thread * 2 + (i & 1) + if i < 2 { 0 } else { 8 },
        (8, 16) => thread * 2 + i,
        (8, 32) => {
            if i == 0 {
                thread
            } else {
                thread + 4
            }
        }
        (4, 32) => thread,
        _ => unreachable!("no such shape"),
    };
    (row, group)
}

fn isa_c(lane: usize, i: usize) -> (usize, usize) {
    let (group, thread) = (lane >> 2, lane % 4);
    (if i < 2 { group } else { group + 8 }, thread * 2 + (i & 1))
}

#[test]
fn positions_are_the_isa_tables() {
    for (kind, k, _, _) in kinds() {
        let (pack, bits) = (kind.pack(), 32 / kind.pack());
        for lane in 0..32 {
            for i in 0..kind.a_registers() * pack {
                assert_eq!(
                    a_position(pack, lane, i / pack, i % pack),
                    isa_a(k, bits, lane, i)
                );
            }
            for i in 0..kind.b_registers() * pack {
                assert_eq!(
                    b_position(pack, lane, i / pack, i % pack),
                    isa_b(k, bits, lane, i)
                );
            }
            for i in 0..4 {
                let pack = kind.accumulator_pack();
                assert_eq!(c_position(pack, lane, i / pack, i % pack), isa_c(lane, i));
            }
        }
    }
}

#[test]
fn exactly_the_isa_shapes_exist() {
    let found: Vec<_> = kinds().iter().map(|&(_, k, o, a)| (k, o, a)).collect();
    use Accumulator::{F16 as A16, F32 as A32};
    use Operand::{Bf16, F16, Tf32};
    assert_eq!(
        found,
        [
            (4, Tf32, A32),
            (8, F16, A16),
            (8, F16, A32),
            (8, Bf16, A32),
            (8, Tf32, A32),
            (16, F16, A16),
            (16, F16, A32),
            (16, Bf16, A32),
        ]
    );
}

/// Puts elements of a matrix into fragments by the ISA's tables and rounds `values` to what was stored.
fn fill(
    registers: usize,
    per_register: usize,
    values: &mut [Vec<f64>],
    place: impl Fn(usize, usize) -> (usize, usize),
    encode: impl Fn(f64) -> u32,
    decode: impl Fn(u32) -> f64,
) -> Vec<Register> {
    let mut out = vec![[0; 32]; registers];
    for lane in 0..32 {
        for i in 0..registers * per_register {
            let (row, column) = place(lane, i);
            let bits = encode(values[row][column]);
            values[row][column] = decode(bits);
            out[i / per_register][lane] |= bits << (32 / per_register * (i % per_register));
        }
    }
    out
}

#[test]
fn mma_is_the_naive_product() {
    let plain = Finish::default();
    let mut random = Random(7);
    for (kind, k, operand, accumulator) in kinds() {
        let format = match operand {
            Operand::F16 => F16,
            Operand::Bf16 => BF16,
            Operand::Tf32 => TF32,
        };
        let shift = if operand == Operand::Tf32 { 13 } else { 0 };
        let encode = |x| format.encode(x, Rounding::NearestEven, plain) << shift;
        let decode = |bits| format.decode(bits >> shift);
        for round in 0..60 {
            let mut matrix = |rows: usize, columns: usize| -> Vec<Vec<f64>> {
                (0..rows)
                    .map(|_| (0..columns).map(|_| random.number()).collect())
                    .collect()
            };
            let (mut a, mut b, mut c) = (matrix(16, k), matrix(k, 8), matrix(16, 8));
            let (pack, bits) = (kind.pack(), 32 / kind.pack());
            let a_regs = fill(
                kind.a_registers(),
                pack,
                &mut a,
                |l, i| isa_a(k, bits, l, i),
                encode,
                decode,
            );
            let b_regs = fill(
                kind.b_registers(),
                pack,
                &mut b,
                |l, i| isa_b(k, bits, l, i),
                encode,
                decode,
            );
            let c_decode = |bits: u32| match accumulator {
                Accumulator::F16 => F16.decode(bits),
                Accumulator::F32 => f64::from(f32::from_bits(bits)),
            };
            let c_encode = |x: f64| match accumulator {
                Accumulator::F16 => F16.encode(x, Rounding::NearestEven, plain),
                Accumulator::F32 => (x as f32).to_bits(),
            };
            let pack = kind.accumulator_pack();
            let c_regs = fill(kind.c_registers(), pack, &mut c, isa_c, c_encode, c_decode);
            let mut d_regs = vec![[0xffff_ffff; 32]; kind.c_registers()];
            let arithmetic = Arithmetic::ALL[round % Arithmetic::ALL.len()];
            mma(
                kind,
                arithmetic,
                true,
                &mut d_regs,
                &a_regs,
                &b_regs,
                &c_regs,
            );
            for lane in 0..32 {
                for i in 0..4 {
                    let (m, n) = isa_c(lane, i);
                    let exact: f64 = c[m][n] + (0..k).map(|x| a[m][x] * b[x][n]).sum::<f64>();
                    let size: f64 =
                        c[m][n].abs() + (0..k).map(|x| (a[m][x] * b[x][n]).abs()).sum::<f64>();
                    let bits = d_regs[i / pack][lane] >> (32 / pack * (i % pack));
                    let got = c_decode(if pack == 2 { bits & 0xffff } else { bits });
                    // k + 1 terms are truncated to 24 bits below the largest, or partial sums are rounded in f32; two
                    // steps are truncated to f32, or rounded to f16.
                    let mut tolerance = (k + 5) as f64 * size * (-24f64).exp2();
                    if accumulator == Accumulator::F16 {
                        tolerance += size * (-10f64).exp2() + (-24f64).exp2();
                    }
                    let error = (got - exact).abs();
                    assert!(
                        error <= tolerance,
                        "{kind:?} {arithmetic:?} ({m}, {n}): {got} for {exact}"
                    );
                }
            }
        }
    }
}

/// The order of fused multiply-adds is documented, so a cancellation that depends on it has one answer.
#[test]
fn a_fused_sum_starts_at_c_and_goes_up_in_k() {
    let kind = Mma::new(16, Operand::Bf16, Accumulator::F32).unwrap();
    let bf16 = |x: f64| BF16.encode(x, Rounding::NearestEven, Finish::default()) as u16;
    // Row 0 of A is 2^24, 1, -2^24, 1 and zeros; B is all ones; C = 1: 1 is lost in 2^24 twice, the last 1 is kept.
    let row = [(24f64).exp2(), 1.0, -(24f64).exp2(), 1.0];
    let mut a = vec![[0; 32]; 4];
    a[0][0] = pack(bf16(row[0]), bf16(row[1]));
    a[0][1] = pack(bf16(row[2]), bf16(row[3]));
    let b = vec![[pack(bf16(1.0), bf16(1.0)); 32]; 2];
    let c = vec![[1f32.to_bits(); 32]; 4];
    let mut d = vec![[0; 32]; 4];
    mma(kind, Arithmetic::Fused, true, &mut d, &a, &b, &c);
    assert_eq!(f32::from_bits(d[0][0]), 1.0);
    assert_eq!(f32::from_bits(d[2][0]), 1.0, "other rows are C");
}

#[test]
fn mma_nan_and_infinity() {
    for arithmetic in Arithmetic::ALL {
        nan_and_infinity(arithmetic);
    }
}

fn nan_and_infinity(arithmetic: Arithmetic) {
    let kind = Mma::new(8, Operand::Tf32, Accumulator::F32).unwrap();
    let infinity = f32::INFINITY.to_bits();
    let one = 1f32.to_bits();
    let (mut a, b, c) = (vec![[one; 32]; 4], vec![[one; 32]; 2], vec![[0; 32]; 4]);
    a[0][0] = infinity;
    let mut d = vec![[0; 32]; 4];
    mma(kind, arithmetic, true, &mut d, &a, &b, &c);
    assert_eq!(d[0][0], infinity);
    a[0][1] = infinity | 0x8000_0000;
    mma(kind, arithmetic, true, &mut d, &a, &b, &c);
    assert_eq!(d[0][..4], [0x7fff_ffff; 4], "infinity - infinity in row 0");
    assert_eq!(d[0][4], 8f32.to_bits(), "row 1 is finite");
    // The lower 13 bits of a tf32 register are not read.
    let low_bits = vec![[one | 0x1fff; 32]; 4];
    mma(kind, arithmetic, true, &mut d, &low_bits, &b, &c);
    assert_eq!(d[0][0], 8f32.to_bits());
}

#[test]
fn ldmatrix_and_stmatrix_move_the_isa_elements() {
    for matrices in [1usize, 2, 4] {
        let rows: Vec<[u16; 8]> = (0..8 * matrices)
            .map(|r| std::array::from_fn(|c| (r * 100 + c) as u16))
            .collect();
        let mut plain = vec![[0; 32]; matrices];
        let mut transposed = plain.clone();
        ldmatrix(&mut plain, &rows, false);
        ldmatrix(&mut transposed, &rows, true);
        for j in 0..matrices {
            for lane in 0..32 {
                // "A group of four threads loads an entire row": thread 0 the first fragment (two elements), and so on.
                let (row, column) = (lane / 4, lane % 4 * 2);
                assert_eq!(
                    plain[j][lane],
                    pack(rows[8 * j + row][column], rows[8 * j + row][column + 1])
                );
                assert_eq!(
                    transposed[j][lane],
                    pack(rows[8 * j + column][row], rows[8 * j + column + 1][row])
                );
            }
            let mut moved = [0; 32];
            movmatrix(&mut moved, &plain[j]);
            assert_eq!(moved, transposed[j]);
        }
        for (registers, trans) in [(&plain, false), (&transposed, true)] {
            let mut back = vec![[0; 8]; 8 * matrices];
            stmatrix(&mut back, registers, trans);
            assert_eq!(back, rows);
        }
    }
    // "Addresses addr8-addr15 correspond to the rows of the second matrix, and so on", supplied by lanes 8-15.
    assert_eq!(
        (
            row_address_lane(0, 0),
            row_address_lane(1, 0),
            row_address_lane(3, 7)
        ),
        (0, 8, 31)
    );
    assert_eq!(matrix_position(false, 5, 1), (1, 3));
}

/// What makes the two instructions a pair: ldmatrix of row-major A is the A fragment, with .trans of row-major B (K x N)
/// the B fragment.
#[test]
fn ldmatrix_gives_mma_fragments() {
    // A's four registers are the 8 x 8 blocks (0,0), (8,0), (0,8), (8,8); element value = 16 row + column.
    let blocks = [(0, 0), (8, 0), (0, 8), (8, 8)];
    let rows: Vec<[u16; 8]> = blocks
        .iter()
        .flat_map(|&(r, c)| {
            (0..8).map(move |i| std::array::from_fn(|j| (16 * (r + i) + c + j) as u16))
        })
        .collect();
    let mut a = vec![[0; 32]; 4];
    ldmatrix(&mut a, &rows, false);
    for (r, register) in a.iter().enumerate() {
        for (lane, &bits) in register.iter().enumerate() {
            let element = |h| {
                let (row, column) = a_position(2, lane, r, h);
                (16 * row + column) as u16
            };
            assert_eq!(bits, pack(element(0), element(1)));
        }
    }
    let rows: Vec<[u16; 8]> = (0..16)
        .map(|k| std::array::from_fn(|n| (8 * k + n) as u16))
        .collect();
    let mut b = vec![[0; 32]; 2];
    ldmatrix(&mut b, &rows, true);
    for (r, register) in b.iter().enumerate() {
        for (lane, &bits) in register.iter().enumerate() {
            let element = |h| {
                let (row, column) = b_position(2, lane, r, h);
                (8 * row + column) as u16
            };
            assert_eq!(bits, pack(element(0), element(1)));
        }
    }
}
