//! Measures tensor-core products, exact and by fused multiply-adds.

use ptx_emulator::matrix::{Accumulator, Arithmetic, Mma, Operand, mma};
use std::hint::black_box;
use std::time::Instant;

const ROUNDS: u32 = 100_000;

fn main() {
    let kinds = [
        ("bf16 k16", 16, Operand::Bf16),
        ("f16 k16", 16, Operand::F16),
        ("tf32 k8", 8, Operand::Tf32),
    ];
    // Well-mixed bits, with exponents near 1 in either half of a register.
    let word = |i: u32| i.wrapping_mul(0x9e37_79b9) & 0x83ff_83ff | 0x3c00_3c00;
    let registers = |first: u32| -> Vec<[u32; 32]> {
        (0..4)
            .map(|r| std::array::from_fn(|lane| word(first + 32 * r + lane as u32)))
            .collect()
    };
    let (a, b, c) = (registers(1), registers(200), registers(400));
    for (name, k, operand) in kinds {
        let kind = Mma::new(k, operand, Accumulator::F32).expect("the instruction exists");
        for arithmetic in [Arithmetic::Fused, Arithmetic::A100, Arithmetic::H200] {
            let mut best = f64::INFINITY;
            for _ in 0..5 {
                let mut d = c.clone();
                let start = Instant::now();
                for _ in 0..ROUNDS {
                    mma(
                        kind,
                        arithmetic,
                        true,
                        &mut d,
                        black_box(&a),
                        black_box(&b[..2]),
                        &c,
                    );
                    black_box(&mut d);
                }
                best = best.min(start.elapsed().as_secs_f64());
            }
            let rate = f64::from(ROUNDS) * kind.multiply_adds() as f64 / best / 1e9;
            println!("{name} {:<6} {rate:6.2} GMAC/s", arithmetic.name());
        }
    }
}
