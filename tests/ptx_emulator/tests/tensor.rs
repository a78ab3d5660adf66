//! Tensor-core products to the bit: against what cards answered, and against the rule in exact integers.

use ptx_emulator::half::{BF16, Finish, Rounding};
use ptx_emulator::matrix::{
    Accumulator, Arithmetic, Mma, Operand, Register, a_position, b_position, c_position, mma,
};
use std::io::Write;
use std::path::Path;

/// A product of one row and one column: D = C + A B, all as bits.
#[derive(Clone, Debug)]
struct Dot {
    a: Vec<u32>,
    b: Vec<u32>,
    c: u32,
}

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

/// A format as the rule reads it.
struct Format {
    exponent_bits: u32,
    fraction_bits: u32,
}

const F16_FORMAT: Format = Format::new(5, 10);
const F32_FORMAT: Format = Format::new(8, 23);

/// A finite number is `significand * 2^(exponent - fraction bits)`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Number {
    Finite(i128, i32),
    Infinite(bool),
    Nan,
}

impl Format {
    const fn new(exponent_bits: u32, fraction_bits: u32) -> Self {
        Self {
            exponent_bits,
            fraction_bits,
        }
    }

    fn of(operand: Operand) -> Self {
        match operand {
            Operand::Bf16 => Self::new(8, 7),
            Operand::F16 => F16_FORMAT,
            Operand::Tf32 => Self::new(8, 10),
        }
    }

    fn bias(&self) -> i32 {
        (1 << (self.exponent_bits - 1)) - 1
    }

    fn read(&self, bits: u32) -> Number {
        let fraction = i128::from(bits & ((1 << self.fraction_bits) - 1));
        let field = (bits >> self.fraction_bits & ((1 << self.exponent_bits) - 1)) as i32;
        let negative = bits >> (self.exponent_bits + self.fraction_bits) & 1 != 0;
        let sign = if negative { -1 } else { 1 };
        match field {
            0 if fraction == 0 => Number::Finite(0, -126),
            0 => Number::Finite(sign * fraction, 1 - self.bias()),
            _ if field < (1 << self.exponent_bits) - 1 => Number::Finite(
                sign * (fraction + (1 << self.fraction_bits)),
                field - self.bias(),
            ),
            _ if fraction == 0 => Number::Infinite(negative),
            _ => Number::Nan,
        }
    }

    /// `sum * 2^unit`, truncated or rounded to nearest even.
    fn write(&self, sum: i128, unit: i32, nearest: bool) -> u32 {
        let sign = u32::from(sum < 0) << (self.exponent_bits + self.fraction_bits);
        let magnitude = sum.unsigned_abs();
        if magnitude == 0 {
            return 0;
        }
        let exponent = (unit + 127 - magnitude.leading_zeros() as i32).max(1 - self.bias());
        let drop = exponent - self.fraction_bits as i32 - unit;
        let kept = if drop <= 0 {
            magnitude << -drop
        } else {
            let kept = magnitude >> drop.min(127);
            let rest = magnitude - (kept << drop.min(127));
            let half = 1u128 << (drop - 1).min(126);
            kept + u128::from(nearest && (rest > half || rest == half && kept & 1 != 0))
        };
        // A subnormal has the exponent field 0, and a carry moves into the field by itself.
        let field = (exponent + self.bias() - 1) as u128;
        let bits = (field << self.fraction_bits) + kept;
        let infinity = ((1u128 << self.exponent_bits) - 1) << self.fraction_bits;
        sign | bits.min(infinity) as u32
    }
}

/// One step of the rule, in exact integers.
fn step(operand: Operand, sums: &Format, fraction: i32, nearest: bool, dot: &Dot) -> u32 {
    let format = Format::of(operand);
    let (mut plus, mut minus, mut nan) = (false, false, false);
    let mut note = |negative: bool| *if negative { &mut minus } else { &mut plus } = true;
    let mut terms = Vec::new();
    match sums.read(dot.c) {
        Number::Finite(c, exponent) => terms.push((c, exponent, sums.fraction_bits as i32)),
        Number::Infinite(negative) => note(negative),
        Number::Nan => nan = true,
    }
    let shift = if operand == Operand::Tf32 { 13 } else { 0 };
    for (&a, &b) in dot.a.iter().zip(&dot.b) {
        match (format.read(a >> shift), format.read(b >> shift)) {
            (Number::Nan, _) | (_, Number::Nan) => nan = true,
            (Number::Finite(a, x), Number::Finite(b, y)) => {
                terms.push((a * b, x + y, 2 * format.fraction_bits as i32));
            }
            (Number::Infinite(a), Number::Infinite(b)) => note(a != b),
            (Number::Infinite(a), Number::Finite(b, _))
            | (Number::Finite(b, _), Number::Infinite(a)) => {
                nan |= b == 0;
                note(a != (b < 0));
            }
        }
    }
    let width = sums.exponent_bits + sums.fraction_bits;
    if nan || plus && minus {
        return (1 << width) - 1;
    }
    if plus || minus {
        let infinity = ((1 << sums.exponent_bits) - 1) << sums.fraction_bits;
        return u32::from(minus) << width | infinity;
    }
    let top = terms.iter().map(|term| term.1).max().unwrap();
    let kept = terms.iter().map(|&(significand, exponent, bits)| {
        let up = exponent - bits - (top - fraction);
        let magnitude = significand.abs();
        let magnitude = if up >= 0 {
            magnitude << up
        } else {
            magnitude >> (-up).min(127)
        };
        magnitude * significand.signum()
    });
    sums.write(kept.sum(), top - fraction, nearest)
}

/// What an instruction gives by the rule.
fn oracle(kind: Mma, arithmetic: Arithmetic, dot: &Dot) -> u32 {
    let (terms, fraction) = match arithmetic {
        Arithmetic::A100 | Arithmetic::L40s => (8, 24),
        _ => (16, 25),
    };
    let terms = if kind.operand() == Operand::Tf32 {
        terms / 2
    } else {
        terms
    };
    let nearest = kind.accumulator_pack() == 2;
    let sums = if nearest { &F16_FORMAT } else { &F32_FORMAT };
    let steps = dot.a.chunks(terms).zip(dot.b.chunks(terms));
    steps.fold(dot.c, |c, (a, b)| {
        let (a, b) = (a.to_vec(), b.to_vec());
        step(kind.operand(), sums, fraction, nearest, &Dot { a, b, c })
    })
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
