//! A product with `cp.async` stages, a swizzle, `ldmatrix`, `mma` and a ticket: right to the bit, and each way to get it
//! wrong is found. Source: `ptx/pipeline.cu`.

mod rule;

use ptx_emulator::matrix::{Accumulator, Arithmetic, Mma, Operand};
use ptx_emulator::{Check, Counters, Fault, Machine, Options};
use rule::{Dot, oracle};

const M: usize = 72;
const N: usize = 128;
const K: usize = 384;
const SPLITS: usize = 2;

/// bf16 numbers of both signs between 2^-4 and 4.
fn numbers(count: usize, seed: u32) -> Vec<u16> {
    (0..count as u32)
        .map(|i| {
            let x = (i ^ seed).wrapping_mul(0x9e37_79b9);
            let x = (x ^ x >> 15).wrapping_mul(0x85eb_ca6b) >> 7;
            (x & 0x8000) as u16 | (0x3d80 + (x & 0x7fff) % 0x300) as u16
        })
        .collect()
}

fn factors() -> (Vec<u16>, Vec<u16>) {
    (numbers(M * K, 1), numbers(K * N, 0x55_0000))
}

/// The kernel's result, and what it did; `fault` is one of its own.
fn run(options: Options, fault: u32) -> Result<(Vec<f32>, Counters), Fault> {
    let machine = Machine::new(options);
    let module = machine.load(include_str!("ptx/pipeline.ptx")).unwrap();
    let (a, b) = factors();
    let upload = |numbers: &[u16]| {
        let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
        let address = machine.alloc(bytes.len() as u64).unwrap();
        machine.write(address, &bytes).unwrap();
        address
    };
    let (tiles_m, tiles_n) = (M.div_ceil(64), N / 64);
    let [c, parts] = [1, SPLITS].map(|count| machine.alloc((4 * M * N * count) as u64).unwrap());
    let tickets = machine.alloc(4 * (tiles_m * tiles_n) as u64).unwrap();
    machine.memset(tickets, 0, 4 * tiles_m * tiles_n).unwrap();
    let pointers = [upload(&a), upload(&b), c, parts, tickets].map(u64::to_le_bytes);
    let sizes = [M as u32, N as u32, K as u32, fault].map(u32::to_le_bytes);
    let arguments: Vec<&[u8]> = (pointers.iter().map(|p| &p[..]))
        .chain(sizes.iter().map(|s| &s[..]))
        .collect();
    let grid = [tiles_n, tiles_m, SPLITS].map(|n| n as u32);
    let counters = machine.launch(&module, "product", grid, [128, 1, 1], 0, &arguments)?;
    let mut bytes = vec![0; 4 * M * N];
    machine.read(c, &mut bytes).unwrap();
    let floats = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
    Ok((floats.collect(), counters))
}

fn with(arithmetic: Arithmetic, check_order: bool) -> Options {
    Options {
        arithmetic,
        check_order,
        ..Options::default()
    }
}

/// The bits that the rule gives: a chain of instructions for each part, and the parts added in f32.
fn expected(arithmetic: Arithmetic) -> Vec<f32> {
    let kind = Mma::new(16, Operand::Bf16, Accumulator::F32).unwrap();
    let (a, b) = factors();
    let element = |m: usize, n: usize| {
        (0..SPLITS).fold(0.0, |sum, split| {
            let first = split * (K / SPLITS);
            let part = (first..first + K / SPLITS).step_by(16).fold(0, |c, k| {
                let dot = Dot {
                    a: (k..k + 16).map(|k| a[m * K + k].into()).collect(),
                    b: (k..k + 16).map(|k| b[k * N + n].into()).collect(),
                    c,
                };
                oracle(kind, arithmetic, &dot)
            });
            sum + f32::from_bits(part)
        })
    };
    (0..M * N).map(|i| element(i / N, i % N)).collect()
}

#[test]
fn the_product_is_right_to_the_bit() {
    let [ampere, hopper] = [Arithmetic::A100, Arithmetic::H200].map(|card| {
        let expected = expected(card);
        for check_order in [false, true] {
            let (got, _) =
                run(with(card, check_order), 0).unwrap_or_else(|fault| panic!("{fault}"));
            let wrong = (0..M * N).find(|&i| got[i].to_bits() != expected[i].to_bits());
            let at = wrong.map(|i| (i / N, i % N, got[i], expected[i]));
            assert_eq!(at, None, "row, column, result, expected on {card}");
        }
        expected
    });
    assert_ne!(ampere, hopper, "the cards differ");
    // Fused multiply-adds are near: every term is rounded once.
    let (fused, _) = run(with(Arithmetic::Fused, false), 0).unwrap();
    let pairs = fused.iter().zip(&hopper);
    let worst = pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(
        worst > 0.0 && worst <= 16.0 * K as f32 * (-23f32).exp2(),
        "{worst}"
    );
}

#[test]
fn what_it_did_is_counted() {
    let (_, counters) = run(Options::default(), 0).unwrap();
    let tiles = (M.div_ceil(64) * N / 64) as u64;
    assert_eq!(counters.tensor_multiply_adds, tiles * (64 * 64 * K) as u64);
    // Both factors once, the parts written and read again, the tickets' sector.
    let part = (4 * M * N) as u64;
    let factors = 2 * (M * K + K * N) as u64;
    assert_eq!(
        counters.dram_load_bytes,
        factors + SPLITS as u64 * part + 32
    );
    assert_eq!(counters.dram_store_bytes, (SPLITS as u64 + 1) * part + 32);
    // The swizzle: four rows of eight times 16 bytes an instruction in four passes, twelve instructions a warp and step.
    let steps = (K / 32 * 4) as u64 * tiles;
    assert_eq!(
        counters.shared_load_wavefronts,
        steps * 8 * 4 + last_flags(&counters)
    );
}

/// Passes for the flag that says whether a block is the last: one a warp.
fn last_flags(counters: &Counters) -> u64 {
    counters.warps
}

#[test]
fn each_fault_is_found() {
    for (fault, check) in [
        (1, Check::AsyncCopy),
        (2, Check::SharedRace),
        (4, Check::GlobalRace),
        (5, Check::GlobalRace),
    ] {
        let found = run(Options::default(), fault).expect_err("a planted fault is found");
        assert_eq!(found.check, check, "fault {fault}: {found}");
        let place = found.place.expect("a place").source.expect("a source");
        assert_eq!(place.0, "pipeline.cu");
    }
    // A wrong swizzle breaks no rule; it reads other numbers.
    let (wrong, _) = run(Options::default(), 3).unwrap();
    let (right, _) = run(Options::default(), 0).unwrap();
    assert!(wrong.iter().zip(&right).filter(|(a, b)| a != b).count() > M * N / 2);
}
