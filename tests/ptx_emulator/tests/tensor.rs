//! Tensor-core products to the bit: against what cards answered, and against the rule in exact integers.

mod rule;

use ptx_emulator::half::{BF16, Finish, Rounding};
use ptx_emulator::matrix::{
    Accumulator, Arithmetic, Mma, Operand, Register, a_position, b_position, c_position, mma,
};
use rule::{Dot, F16_FORMAT, F32_FORMAT, Format, oracle};
use std::io::Write;
use std::path::Path;

/// Runs up to eight products in one instruction: product n is row n and column n, and row n + 8 again.
fn run(kind: Mma, arithmetic: Arithmetic, dots: &[Dot]) -> Vec<u32> {
    let width = 32 / kind.pack();
    let place = |registers: usize, pack: usize, value: &dyn Fn(usize, usize, usize) -> u32| {
        let mut out: Vec<Register> = vec![[0; 32]; registers];
        for (r, register) in out.iter_mut().enumerate() {
            for (lane, bits) in register.iter_mut().enumerate() {
                *bits = (0..pack).fold(0, |word, h| word | value(lane, r, h) << (32 / pack * h));
            }
        }
        out
    };
    let a = place(kind.a_registers(), kind.pack(), &|lane, r, h| {
        let (row, k) = a_position(kind.pack(), lane, r, h);
        dots.get(row % 8).map_or(0, |dot| dot.a[k])
    });
    let b = place(kind.b_registers(), kind.pack(), &|lane, r, h| {
        let (k, column) = b_position(kind.pack(), lane, r, h);
        dots.get(column).map_or(0, |dot| dot.b[k])
    });
    assert!(width >= 16);
    let sums = kind.accumulator_pack();
    let c = place(kind.c_registers(), sums, &|lane, r, h| {
        let (row, column) = c_position(sums, lane, r, h);
        let dot = dots.get(column).filter(|_| row % 8 == column);
        dot.map_or(0, |dot| dot.c)
    });
    let mut d: Vec<Register> = vec![[0; 32]; kind.c_registers()];
    mma(kind, arithmetic, true, &mut d, &a, &b, &c);
    let mut plain = d.clone();
    mma(kind, arithmetic, false, &mut plain, &a, &b, &c);
    assert_eq!(d, plain, "vector instructions change the result");
    let mut results = vec![[0; 2]; dots.len()];
    for (r, register) in d.iter().enumerate() {
        for (lane, &bits) in register.iter().enumerate() {
            for h in 0..sums {
                let (row, column) = c_position(sums, lane, r, h);
                if row % 8 == column && column < dots.len() {
                    results[column][row / 8] =
                        bits >> (32 / sums * h) & (u32::MAX >> (32 - 32 / sums));
                }
            }
        }
    }
    let equal = results.iter().all(|[upper, lower]| upper == lower);
    assert!(equal, "equal rows give different results: {results:08x?}");
    results.iter().map(|[upper, _]| *upper).collect()
}

fn run_all(kind: Mma, arithmetic: Arithmetic, dots: &[Dot]) -> Vec<u32> {
    let parts = dots.chunks(8);
    parts.flat_map(|part| run(kind, arithmetic, part)).collect()
}

const CARDS: [Arithmetic; 5] = [
    Arithmetic::A100,
    Arithmetic::L40s,
    Arithmetic::H100,
    Arithmetic::H200,
    Arithmetic::B200,
];

fn kinds() -> Vec<Mma> {
    let mut kinds = Vec::new();
    for k in [4, 8, 16] {
        for operand in [Operand::F16, Operand::Bf16, Operand::Tf32] {
            for accumulator in [Accumulator::F16, Accumulator::F32] {
                kinds.extend(Mma::new(k, operand, accumulator));
            }
        }
    }
    kinds
}

/// Well-mixed bits from a counter.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }

    fn one_of(&mut self, choices: &[u32]) -> u32 {
        choices[self.next() as usize % choices.len()]
    }
}

/// What kind of numbers a case has.
#[derive(Clone, Copy, Debug)]
enum Data {
    /// Exponents near each other, so that all terms meet.
    Near,
    /// Any bits at all: most products are far from each other, some are not finite.
    Any,
    /// The least and the greatest: subnormals, zeros of both signs, results at the ends of the range.
    Ends,
    /// Many of zero, subnormal, infinity and NaN.
    Special,
}

/// A number of a format with `fraction_bits`, as bits in the lowest places.
fn number(random: &mut Random, format: &Format, data: Data) -> u32 {
    let (fraction_bits, exponent_bits) = (format.fraction_bits, format.exponent_bits);
    let sign = (random.next() & 1) << (fraction_bits + exponent_bits);
    let fraction = random.next() & ((1 << fraction_bits) - 1);
    let most = (1 << exponent_bits) - 1;
    let with = |field: u32, fraction: u32| sign | field << fraction_bits | fraction;
    let bias = format.bias() as u32;
    match data {
        Data::Near => with(bias - 3 + random.next() % 6, fraction),
        Data::Any => with(random.next() & most, fraction),
        Data::Ends => {
            let field = random.one_of(&[0, 1, 2, bias, most - 2, most - 1]);
            with(
                field,
                random.one_of(&[0, 1, fraction, (1 << fraction_bits) - 1]),
            )
        }
        Data::Special => match random.next() % 6 {
            0 => with(0, 0),
            1 => with(0, fraction),
            2 => with(most, 0),
            3 => with(most, 1),
            _ => with(bias, fraction),
        },
    }
}

/// Not one bit differs from the rule in exact integers, for every instruction, card and kind of numbers.
#[test]
fn every_product_follows_the_rule() {
    let mut random = Random(3);
    for kind in kinds() {
        let format = Format::of(kind.operand());
        let sums = if kind.accumulator_pack() == 2 {
            &F16_FORMAT
        } else {
            &F32_FORMAT
        };
        for data in [Data::Near, Data::Any, Data::Ends, Data::Special] {
            let operand = |random: &mut Random| {
                let bits = number(random, &format, data);
                // The lower bits of a tf32 register must not matter.
                if kind.operand() == Operand::Tf32 {
                    bits << 13 | random.next() & 0x1fff
                } else {
                    bits
                }
            };
            let dots: Vec<Dot> = (0..400)
                .map(|i| Dot {
                    a: (0..kind.k()).map(|_| operand(&mut random)).collect(),
                    b: (0..kind.k()).map(|_| operand(&mut random)).collect(),
                    c: if i % 4 == 0 {
                        0
                    } else {
                        number(&mut random, sums, data)
                    },
                })
                .collect();
            for card in CARDS {
                let got = run_all(kind, card, &dots);
                for (dot, got) in dots.iter().zip(got) {
                    let expected = oracle(kind, card, dot);
                    assert_eq!(
                        got, expected,
                        "{kind:?} {card:?} {data:?} {dot:08x?}: {got:08x}, expected {expected:08x}"
                    );
                }
            }
        }
    }
}

/// Cases worked out by hand from the rule: bf16, K = 16, sum, and the answers of Ampere and Hopper.
#[test]
fn cases_by_hand() {
    let kind = Mma::new(16, Operand::Bf16, Accumulator::F32).unwrap();
    let bf16 = |x: f64| BF16.encode(x, Rounding::NearestEven, Finish::default());
    let case = |products: &[(f64, f64)], c: f32, answers: [f32; 2]| {
        let mut dot = Dot {
            a: vec![0; 16],
            b: vec![0; 16],
            c: c.to_bits(),
        };
        for (k, &(a, b)) in products.iter().enumerate() {
            (dot.a[k], dot.b[k]) = (bf16(a), bf16(b));
        }
        for (card, answer) in [Arithmetic::A100, Arithmetic::H200]
            .into_iter()
            .zip(answers)
        {
            let got = f32::from_bits(run(kind, card, std::slice::from_ref(&dot))[0]);
            assert_eq!(
                got.to_bits(),
                answer.to_bits(),
                "{products:?} + {c}: {got} on {card}"
            );
            assert_eq!(oracle(kind, card, &dot), answer.to_bits());
        }
    };
    let two = |n: i32| f64::from(n).exp2();
    // 2^-24 stands at the last place that Ampere keeps below 1, 2^-25 at Hopper's. Two of them reach f32's last place.
    case(&[(two(-12), two(-12)); 2], 1.0, [1.0 + f32::EPSILON; 2]);
    case(&[(two(-12), two(-13)); 4], 1.0, [1.0, 1.0 + f32::EPSILON]);
    case(&[(two(-13), two(-13)); 8], 1.0, [1.0; 2]);
    // Truncated towards zero, each term and the result.
    case(
        &[(-two(-12), two(-13)); 1],
        1.0,
        [1.0, 1.0 - f32::EPSILON / 2.0],
    );
    case(&[(-two(-12), two(-12)); 1], -1.0, [-1.0; 2]);
    // A product of 3.96 counts with the exponent of its factors, 0.
    let most = 2.0 - two(-7);
    case(
        &[(most, most), (two(-12), two(-12)), (two(-12), two(-12))],
        0.0,
        [(most * most) as f32; 2],
    );
    // Ampere's second half finds the first one's sum; Hopper sees the large numbers cancel first.
    let mut far = vec![(two(15), two(15)), (1.0, 1.0)];
    far.resize(8, (0.0, 0.0));
    far.push((-two(15), two(15)));
    case(&far, 0.0, [0.0; 2]);
    far.swap(1, 8);
    far.push((1.0, 1.0));
    case(&far, 0.0, [2.0, 0.0]);
    // Products beyond f32's range cancel; a sum beyond it is infinite.
    case(
        &[(two(100), two(100)), (-two(100), two(100))],
        7.0,
        [0.0; 2],
    );
    case(&[(two(100), two(100))], 7.0, [f32::INFINITY; 2]);
    // Zero is +0, whatever its terms.
    case(&[(-1.0, 0.0), (0.0, -2.0)], -0.0, [0.0; 2]);
}

/// The answers of cards, if they are here; else a line on standard error says what was skipped.
fn answers(test: &str, file: &str) -> Option<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/data/tensor_core");
    let path = root.join(file);
    if !root.is_dir() {
        // Straight to the descriptor: the test harness swallows what `println!` prints in a passing test.
        let _ = writeln!(
            std::io::stderr(),
            "SKIPPED {test}: {} is not there",
            root.display()
        );
        return None;
    }
    Some(std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display())))
}

/// bf16 products as five cards answered them: not one bit differs. Fused multiply-adds miss four in ten.
#[test]
fn cards_answer_the_same() {
    let files = [
        ("a100_bf16_k8.txt", 8, Arithmetic::A100),
        ("l40s_bf16_k8.txt", 8, Arithmetic::L40s),
        ("h100_bf16_k16.txt", 16, Arithmetic::H100),
        ("h200_bf16_k16.txt", 16, Arithmetic::H200),
        ("b200_bf16_k16.txt", 16, Arithmetic::B200),
    ];
    for (file, k, card) in files {
        let Some(text) = answers("cards_answer_the_same", file) else {
            return;
        };
        let kind = Mma::new(k, Operand::Bf16, Accumulator::F32).unwrap();
        let word = |word| u32::from_str_radix(word, 16).expect("a hexadecimal word");
        let rows = text
            .lines()
            .map(|line| line.split_whitespace().map(word).collect::<Vec<_>>());
        let (dots, expected): (Vec<Dot>, Vec<u32>) = rows
            .map(|row| {
                assert_eq!(row.len(), 2 * k + 2, "{file}");
                let (a, b) = (row[..k].to_vec(), row[k..2 * k].to_vec());
                (
                    Dot {
                        a,
                        b,
                        c: row[2 * k],
                    },
                    row[2 * k + 1],
                )
            })
            .unzip();
        assert_eq!(dots.len(), 1000, "{file}");
        let misses = |arithmetic| {
            let got = run_all(kind, arithmetic, &dots);
            got.iter()
                .zip(&expected)
                .filter(|(got, expected)| got != expected)
                .count()
        };
        assert_eq!(misses(card), 0, "{file}");
        let fused = misses(Arithmetic::Fused);
        assert!(
            fused >= 400,
            "{file}: fused multiply-adds miss only {fused}"
        );
        let other = if k == 8 {
            Arithmetic::H200
        } else {
            Arithmetic::A100
        };
        assert!(
            misses(other) > 50,
            "{file}: another generation's arithmetic gives the same"
        );
    }
}

/// The mean of (result - exact) / (sum of |a b|) in units of 2^-24, over products of positive numbers with `terms`
/// terms. Each chain of `chain` terms stays in the tensor core; f32 adds the chains.
fn bias(arithmetic: Arithmetic, terms: usize, chain: usize) -> f64 {
    let kind = Mma::new(16, Operand::Bf16, Accumulator::F32).unwrap();
    let mut random = Random(11);
    // Magnitudes of normal numbers, near enough: the sum of twelve.
    let mut word = || {
        let sum: f64 = (0..12)
            .map(|_| f64::from(random.next() % 4096) / 4096.0 - 0.5)
            .sum();
        BF16.encode(sum.abs(), Rounding::NearestEven, Finish::default())
    };
    let (mut total, mut count) = (0.0, 0);
    for _ in 0..6 {
        let factors: [Vec<Vec<u32>>; 2] = std::array::from_fn(|_| {
            (0..8)
                .map(|_| (0..terms).map(|_| word()).collect())
                .collect()
        });
        let (mut sums, mut parts) = ([0f32; 8], [0u32; 8]);
        for k in (0..terms).step_by(16) {
            let dots: Vec<Dot> = (0..8)
                .map(|n| Dot {
                    a: factors[0][n][k..k + 16].to_vec(),
                    b: factors[1][n][k..k + 16].to_vec(),
                    c: parts[n],
                })
                .collect();
            parts.copy_from_slice(&run(kind, arithmetic, &dots));
            if (k + 16) % chain == 0 || k + 16 == terms {
                for (sum, part) in sums.iter_mut().zip(&mut parts) {
                    *sum += f32::from_bits(std::mem::take(part));
                }
            }
        }
        for n in 0..8 {
            let values = factors[0][n].iter().zip(&factors[1][n]);
            let exact: f64 = values.map(|(&a, &b)| BF16.decode(a) * BF16.decode(b)).sum();
            total += (f64::from(sums[n]) - exact) / exact;
            count += 1;
        }
    }
    total / f64::from(count) * (24f64).exp2()
}

/// A long chain in the tensor core loses towards zero, the more the longer it is. Parts that leave it after 64 terms
/// and are added in f32 do not.
#[test]
fn long_chains_are_biased_and_bounded_ones_are_not() {
    let chains = [
        (Arithmetic::H200, 512, -15.0),
        (Arithmetic::A100, 512, -30.0),
        (Arithmetic::H200, 4608, -278.0),
        (Arithmetic::A100, 4608, -633.0),
    ];
    for (card, terms, expected) in chains {
        let whole = bias(card, terms, terms);
        let parts = bias(card, terms, 64);
        assert!(
            (whole / expected - 1.0f64).abs() <= 0.3,
            "{card:?}, {terms} terms: {whole}, not {expected}"
        );
        assert!(
            parts.abs() <= 8.0,
            "{card:?}, {terms} terms in chains of 64: {parts}"
        );
        assert!(
            parts.abs() <= whole.abs() / 4.0,
            "{card:?}, {terms} terms in chains of 64: {parts}"
        );
    }
    assert!(bias(Arithmetic::Fused, 4608, 4608).abs() <= 8.0);
}
