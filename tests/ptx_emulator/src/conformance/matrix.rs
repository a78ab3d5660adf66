//! `mma`, `ldmatrix`, `stmatrix` and `movmatrix`.
//!
//! The matrices hold small integers, so that every product and partial sum is exact in any order and precision, and the
//! result is one number on the emulator and on every card. The positions of elements in registers are the functions of
//! `crate::matrix`, which its tests check against the ISA's tables.

use super::{Case, mixed};
use crate::half::{BF16, F16, Finish, Rounding, TF32, pack};
use crate::matrix::{
    Accumulator, Mma, Operand, a_position, b_position, c_position, matrix_position,
    row_address_lane,
};

pub(super) fn cases() -> Vec<Case> {
    [products(), loads(), stores()].concat()
}

const KINDS: [(usize, Operand, Accumulator, u32); 8] = [
    (8, Operand::F16, Accumulator::F16, 75),
    (8, Operand::F16, Accumulator::F32, 75),
    (16, Operand::F16, Accumulator::F16, 80),
    (16, Operand::F16, Accumulator::F32, 80),
    (8, Operand::Bf16, Accumulator::F32, 80),
    (16, Operand::Bf16, Accumulator::F32, 80),
    (4, Operand::Tf32, Accumulator::F32, 80),
    (8, Operand::Tf32, Accumulator::F32, 80),
];

fn products() -> Vec<Case> {
    KINDS
        .into_iter()
        .filter_map(|(k, operand, accumulator, sm)| {
            let kind = Mma::new(k, operand, accumulator)?;
            let name = match operand {
                Operand::F16 => "f16",
                Operand::Bf16 => "bf16",
                Operand::Tf32 => "tf32",
            };
            let sum = match accumulator {
                Accumulator::F16 => "f16",
                Accumulator::F32 => "f32",
            };
            Some(product(kind, name, sum).sm(sm).block(32))
        })
        .collect()
}

/// `{%a3, %a4}`.
fn vector(register: &str, range: std::ops::Range<usize>) -> String {
    let names: Vec<_> = range.map(|i| format!("%{register}{i}")).collect();
    format!("{{{}}}", names.join(", "))
}

/// A matrix of integers in -8..=8.
fn integers(rows: usize, columns: usize, seed: usize) -> Vec<Vec<i32>> {
    mixed(seed + rows * columns)[seed..]
        .chunks(columns)
        .map(|row| row.iter().map(|&w| (w % 17) as i32 - 8).collect())
        .collect()
}

fn product(kind: Mma, operand: &str, sum: &str) -> Case {
    let (m, n, k) = (16, 8, kind.k());
    let (a, b, c) = (integers(m, k, 1), integers(k, n, 500), integers(m, n, 900));
    let nearest = |format: crate::half::Format, x: i32| {
        format.encode(f64::from(x), Rounding::NearestEven, Finish::default())
    };
    let encode = |x: i32| match kind.operand() {
        Operand::F16 => nearest(F16, x),
        Operand::Bf16 => nearest(BF16, x),
        // The lower bits of the register must not matter.
        Operand::Tf32 => nearest(TF32, x) << 13 | 0x1abc,
    };
    let encode_sum = |x: i32| match kind.accumulator_pack() {
        2 => nearest(F16, x),
        _ => (x as f32).to_bits(),
    };
    let gather = |pack: usize, register: usize, value: &dyn Fn(usize, usize) -> u32| {
        (0..pack).fold(0, |word, h| word | value(register, h) << (16 * h))
    };
    let (pack, sum_pack) = (kind.pack(), kind.accumulator_pack());
    let (mut input, mut output) = (Vec::new(), Vec::new());
    for lane in 0..32 {
        for r in 0..kind.a_registers() {
            input.push(gather(pack, r, &|r, h| {
                let (row, column) = a_position(pack, lane, r, h);
                encode(a[row][column])
            }));
        }
        for r in 0..kind.b_registers() {
            input.push(gather(pack, r, &|r, h| {
                let (row, column) = b_position(pack, lane, r, h);
                encode(b[row][column])
            }));
        }
        for r in 0..kind.c_registers() {
            input.push(gather(sum_pack, r, &|r, h| {
                let (row, column) = c_position(sum_pack, lane, r, h);
                encode_sum(c[row][column])
            }));
            output.push(gather(sum_pack, r, &|r, h| {
                let (row, column) = c_position(sum_pack, lane, r, h);
                let exact = (0..k).map(|x| a[row][x] * b[x][column]).sum::<i32>();
                encode_sum(c[row][column] + exact)
            }));
        }
    }
    let (a_end, b_end) = (kind.a_registers(), kind.a_registers() + kind.b_registers());
    let op = format!("mma.sync.aligned.m16n8k{k}.row.col.{sum}.{operand}.{operand}.{sum}");
    let body = format!(
        "{op} {}, {}, {}, {};",
        vector("d", 0..kind.c_registers()),
        vector("a", 0..a_end),
        vector("a", a_end..b_end),
        vector("a", b_end..b_end + kind.c_registers()),
    );
    Case::from_words(&op, &body, 32, &input, &output)
}

/// Thread t writes row t of 32 rows of 8 halves to a scattered place; the addresses of the instruction follow.
const SCATTER: &str = "mov.u32 %r0, tile; mul.lo.u32 %r1, %index, 7; and.b32 %r1, %r1, 31; shl.b32 %r1, %r1, 4;\n\
                       add.u32 %r0, %r0, %r1;";
/// The generic address of `%r0`.
const GENERIC: &str = "cvt.u64.u32 %q0, %r0; cvta.shared.u64 %q0, %q0;";
const TILE: &str = ".shared .align 16 .b8 tile[512];\n";

/// The halves of the rows: row r, column c is 256 r + c.
fn element(row: usize, column: usize) -> u16 {
    (256 * row + column) as u16
}

fn row_words(row: usize) -> [u32; 4] {
    std::array::from_fn(|i| pack(element(row, 2 * i), element(row, 2 * i + 1)))
}

/// What register `j` of a lane holds of the rows whose addresses the lanes give in order.
fn fragment(lane: usize, j: usize, transposed: bool) -> u32 {
    let [low, high] = [0, 1].map(|h| {
        let (row, column) = matrix_position(transposed, lane, h);
        element(row_address_lane(j, row), column)
    });
    pack(low, high)
}

fn loads() -> Vec<Case> {
    let inputs: Vec<[u32; 4]> = (0..32).map(row_words).collect();
    let mut cases = Vec::new();
    for count in [1, 2, 4] {
        for transposed in [false, true] {
            let trans = if transposed { ".trans" } else { "" };
            let op = format!("ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16");
            let body = format!(
                "{SCATTER} st.shared.v4.b32 [%r0], {{%a0, %a1, %a2, %a3}}; bar.warp.sync -1; {op} {}, [%r0];",
                vector("d", 0..count)
            );
            let output: Vec<u32> = (0..32)
                .flat_map(|lane| (0..count).map(move |j| fragment(lane, j, transposed)))
                .collect();
            let case = Case::from_words(&op, &body, 32, inputs.as_flattened(), &output);
            cases.push(case.block(32).module(TILE));
            // Without a state space the address is generic.
            let generic = op.replace(".shared", "");
            let body = body.replace(
                &format!("{op} {}, [%r0]", vector("d", 0..count)),
                &format!("{GENERIC} {generic} {}, [%q0]", vector("d", 0..count)),
            );
            let case = Case::from_words(&generic, &body, 32, inputs.as_flattened(), &output);
            cases.push(case.block(32).module(TILE));
        }
    }
    let transpose: Vec<[u32; 1]> = (0..32).map(|lane| [fragment(lane, 0, true)]).collect();
    let plain: Vec<[u32; 1]> = (0..32).map(|lane| [fragment(lane, 0, false)]).collect();
    cases.push(
        Case::new(
            "movmatrix",
            "movmatrix.sync.aligned.m8n8.trans.b16 %d0, %a0;",
            &plain,
            &transpose,
        )
        .block(32),
    );
    cases
}

fn stores() -> Vec<Case> {
    let mut cases = Vec::new();
    for count in [1, 2, 4] {
        for transposed in [false, true] {
            let trans = if transposed { ".trans" } else { "" };
            let op = format!("stmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16");
            let input: Vec<u32> = (0..32)
                .flat_map(|lane| (0..count).map(move |j| fragment(lane, j, transposed)))
                .collect();
            let body = format!(
                "{SCATTER} st.shared.v4.b32 [%r0], {{5, 6, 7, 8}}; bar.warp.sync -1; {op} [%r0], {}; bar.warp.sync -1;\n\
                 ld.shared.v4.b32 {{%d0, %d1, %d2, %d3}}, [%r0];",
                vector("a", 0..count)
            );
            let output: Vec<[u32; 4]> = (0..32)
                .map(|row| {
                    if row < 8 * count {
                        row_words(row)
                    } else {
                        [5, 6, 7, 8]
                    }
                })
                .collect();
            let case = Case::from_words(&op, &body, 32, &input, output.as_flattened());
            cases.push(case.sm(90).block(32).module(TILE));
            let generic = op.replace(".shared", "");
            let body = body.replace(
                &format!("{op} [%r0]"),
                &format!("{GENERIC} {generic} [%q0]"),
            );
            let case = Case::from_words(&generic, &body, 32, &input, output.as_flattened());
            cases.push(case.sm(90).block(32).module(TILE));
        }
    }
    cases
}
