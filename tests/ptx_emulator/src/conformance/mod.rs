//! Micro-kernels that pin down one PTX instruction each, with the answer the PTX ISA prescribes.
//!
//! The expected outputs are computed by plain Rust written from the ISA's descriptions, never by the executor, so that
//! the list can judge both: the emulator (the crate's own test) and a real GPU (through another driver).
//!
//! Every kernel is called [`ENTRY`] and takes two pointers, input and output. Thread i (of a one-dimensional grid)
//! reads its own few words of the input and writes its own few words of the output; what a body does in between is up
//! to the case. The output must be zero before the launch.

mod control;
mod convert;
mod float;
mod integer;
mod integer_widths;
mod matrix;
mod memory;
mod narrow;
mod oracle;
mod video;
mod warp;

use std::fmt::Write as _;

use crate::half::Format;

/// The name of every case's kernel.
pub const ENTRY: &str = "kernel";

/// How an output word is judged. NaN never equals a number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Compare {
    /// Bit for bit.
    Exact,
    /// f32: bit for bit, but any NaN stands for any other.
    F32,
    /// f64 in two words: bit for bit, but any NaN stands for any other.
    F64,
    /// f32 within `absolute + relative * |expected|`, the error bound of the ISA for an `.approx` instruction.
    F32Within {
        /// Relative error.
        relative: f64,
        /// Absolute error.
        absolute: f64,
    },
    /// Two numbers of a 16-bit format in a word, each within `absolute + relative * |expected|`.
    PairWithin {
        /// Their format.
        format: Format,
        /// Relative error.
        relative: f64,
        /// Absolute error.
        absolute: f64,
    },
}

/// One micro-kernel with its data.
#[derive(Clone, Debug)]
pub struct Case {
    /// The instruction and what is special here.
    pub name: String,
    /// The lowest architecture that has the instruction (75 is sm_75).
    pub min_sm: u32,
    /// Threads of a block.
    pub block: u32,
    /// The input buffer.
    pub input: Vec<u8>,
    /// What the output buffer must hold afterwards.
    pub expected: Vec<u8>,
    /// How it is judged.
    pub compare: Compare,
    threads: u32,
    input_words: usize,
    output_words: usize,
    module: String,
    locals: String,
    body: String,
}

/// The whole list.
pub fn cases() -> Vec<Case> {
    [
        integer::cases(),
        integer_widths::cases(),
        float::cases(),
        convert::cases(),
        narrow::cases(),
        memory::cases(),
        control::cases(),
        warp::cases(),
        matrix::cases(),
        video::cases(),
    ]
    .concat()
}

impl Case {
    /// A case from its body, the input words of each thread and the output words of each thread.
    ///
    /// The body finds its input in `%a0`... and leaves its output in `%d0`... (`.b32`); it may use `%r` (b32), `%h` (b16),
    /// `%q` (b64) and `%p` (predicates), 16 of each, the flat thread index `%index`, its own input and output addresses
    /// `%src` and `%dst`, and the buffers' beginnings `%in` and `%out` (global space).
    fn new<const I: usize, const O: usize>(
        name: &str,
        body: &str,
        inputs: &[[u32; I]],
        outputs: &[[u32; O]],
    ) -> Self {
        let threads = inputs.len();
        assert_eq!(threads, outputs.len());
        Self::from_words(
            name,
            body,
            threads,
            inputs.as_flattened(),
            outputs.as_flattened(),
        )
    }

    /// The same where the numbers of words a thread are not known to the compiler.
    fn from_words(name: &str, body: &str, threads: usize, inputs: &[u32], outputs: &[u32]) -> Self {
        let bytes = |words: &[u32]| words.iter().flat_map(|w| w.to_le_bytes()).collect();
        Self {
            name: name.to_owned(),
            min_sm: 75,
            block: 64,
            input: bytes(inputs),
            expected: bytes(outputs),
            compare: Compare::Exact,
            threads: threads as u32,
            input_words: inputs.len() / threads,
            output_words: outputs.len() / threads,
            module: String::new(),
            locals: String::new(),
            body: body.to_owned(),
        }
    }

    /// A case whose threads are independent of one another.
    fn lanes<const I: usize, const O: usize>(
        name: &str,
        body: &str,
        inputs: &[[u32; I]],
        expected: impl Fn([u32; I]) -> [u32; O],
    ) -> Self {
        let outputs: Vec<_> = inputs.iter().map(|&words| expected(words)).collect();
        Self::new(name, body, inputs, &outputs)
    }

    /// Module-scope declarations before the kernel.
    fn module(mut self, text: &str) -> Self {
        text.clone_into(&mut self.module);
        self
    }

    /// Declarations inside the kernel.
    fn locals(mut self, text: &str) -> Self {
        text.clone_into(&mut self.locals);
        self
    }

    fn sm(mut self, sm: u32) -> Self {
        self.min_sm = sm;
        self
    }

    fn block(mut self, block: u32) -> Self {
        self.block = block;
        self
    }

    fn compare(mut self, compare: Compare) -> Self {
        self.compare = compare;
        self
    }

    /// Blocks of the grid.
    pub fn grid(&self) -> u32 {
        self.threads.div_ceil(self.block)
    }

    /// The module's text.
    pub fn ptx(&self) -> String {
        let Self {
            min_sm,
            module,
            locals,
            body,
            threads,
            block,
            input_words,
            output_words,
            ..
        } = self;
        let mut text = format!(
            ".version 8.1\n.target sm_{min_sm}\n.address_size 64\n\n{module}\n\
             .visible .entry {ENTRY}(.param .u64 input, .param .u64 output)\n{{\n{locals}\
             \t.reg .b32 %a<16>, %d<16>, %r<16>, %index, %block, %width;\n\
             \t.reg .b16 %h<16>;\n\t.reg .b64 %q<16>, %in, %out, %src, %dst;\n\t.reg .pred %p<16>, %guard;\n\
             \tld.param.u64 %in, [input];\n\tld.param.u64 %out, [output];\n\
             \tcvta.to.global.u64 %in, %in;\n\tcvta.to.global.u64 %out, %out;\n\
             \tmov.u32 %index, %tid.x;\n\tmov.u32 %block, %ctaid.x;\n\tmov.u32 %width, %ntid.x;\n\
             \tmad.lo.u32 %index, %block, %width, %index;\n"
        );
        if threads % block != 0 {
            let _ = write!(
                text,
                "\tsetp.ge.u32 %guard, %index, {threads};\n\t@%guard exit;\n"
            );
        }
        let _ = write!(
            text,
            "\tmad.wide.u32 %src, %index, {}, %in;\n\tmad.wide.u32 %dst, %index, {}, %out;\n",
            4 * input_words,
            4 * output_words
        );
        for i in 0..*input_words {
            let _ = writeln!(text, "\tld.global.b32 %a{i}, [%src+{}];", 4 * i);
        }
        for line in body.split_inclusive(['\n', ';']) {
            let line = line.trim();
            if !line.is_empty() {
                let _ = writeln!(text, "\t{line}");
            }
        }
        for i in 0..*output_words {
            let _ = writeln!(text, "\tst.global.b32 [%dst+{}], %d{i};", 4 * i);
        }
        text.push_str("\tret;\n}\n");
        text
    }

    /// Judges an output buffer: an error says which thread's which word is wrong, with its input.
    pub fn check(&self, output: &[u8]) -> Result<(), String> {
        if output.len() != self.expected.len() {
            return Err(format!(
                "{}: {} bytes of output where {} are expected",
                self.name,
                output.len(),
                self.expected.len()
            ));
        }
        let words = |bytes: &[u8]| -> Vec<u32> {
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|&b| u32::from_le_bytes(b))
                .collect()
        };
        let (got, expected, input) = (words(output), words(&self.expected), words(&self.input));
        let step = if self.compare == Compare::F64 { 2 } else { 1 };
        for i in (0..expected.len()).step_by(step) {
            if !self
                .compare
                .accepts(&got[i..i + step], &expected[i..i + step])
            {
                let (thread, word) = (i / self.output_words, i % self.output_words);
                let own = &input[thread * self.input_words..][..self.input_words];
                return Err(format!(
                    "{}: thread {thread} with input {own:08x?} gave {:08x?} as word {word} where {:08x?} is expected \
                     ({:?})",
                    self.name,
                    &got[i..i + step],
                    &expected[i..i + step],
                    self.compare
                ));
            }
        }
        Ok(())
    }
}

impl Compare {
    fn accepts(self, got: &[u32], expected: &[u32]) -> bool {
        let f32_of = |words: &[u32]| f32::from_bits(words[0]);
        match self {
            Compare::Exact => got == expected,
            Compare::F32 => got == expected || f32_of(got).is_nan() && f32_of(expected).is_nan(),
            Compare::F64 => {
                let f64_of = |w: &[u32]| f64::from_bits(u64::from(w[0]) | u64::from(w[1]) << 32);
                got == expected || f64_of(got).is_nan() && f64_of(expected).is_nan()
            }
            Compare::F32Within { relative, absolute } => within(
                f64::from(f32_of(got)),
                f64::from(f32_of(expected)),
                relative,
                absolute,
            ),
            Compare::PairWithin {
                format,
                relative,
                absolute,
            } => [0, 16].into_iter().all(|shift| {
                let value = |words: &[u32]| format.decode(words[0] >> shift & 0xffff);
                within(value(got), value(expected), relative, absolute)
            }),
        }
    }
}

fn within(got: f64, expected: f64, relative: f64, absolute: f64) -> bool {
    if expected.is_nan() {
        return got.is_nan();
    }
    got == expected || (got - expected).abs() <= absolute + relative * expected.abs()
}

/// All pairs.
fn pairs(values: &[u32]) -> Vec<[u32; 2]> {
    values
        .iter()
        .flat_map(|&a| values.iter().map(move |&b| [a, b]))
        .collect()
}

/// All triples.
fn triples(values: &[u32]) -> Vec<[u32; 3]> {
    pairs(values)
        .into_iter()
        .flat_map(|[a, b]| values.iter().map(move |&c| [a, b, c]))
        .collect()
}

/// Single values.
fn singles(values: &[u32]) -> Vec<[u32; 1]> {
    values.iter().map(|&v| [v]).collect()
}

/// Well-mixed words from a counter, for data that must not be regular.
fn mixed(count: usize) -> Vec<u32> {
    (1..=count as u32)
        .map(|i| {
            let x = i.wrapping_mul(0x9e37_79b9);
            let x = (x ^ x >> 16).wrapping_mul(0x85eb_ca6b);
            x ^ x >> 13
        })
        .collect()
}

/// The two words of a 64-bit result.
fn split(x: u64) -> [u32; 2] {
    [x as u32, (x >> 32) as u32]
}

/// A 64-bit operand from its two words.
fn join(low: u32, high: u32) -> u64 {
    u64::from(low) | u64::from(high) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_word(expected: u32, compare: Compare) -> impl Fn(u32) -> bool {
        let case = Case::new("case", "", &[[9]], &[[expected]]).compare(compare);
        move |got| case.check(&got.to_le_bytes()).is_ok()
    }

    #[test]
    fn exact_means_every_bit() {
        let accepts = one_word(0x7fc0_0000, Compare::Exact);
        assert!(accepts(0x7fc0_0000));
        assert!(!accepts(0x7fc0_0001));
    }

    #[test]
    fn nan_is_nan_and_no_number() {
        let accepts = one_word(0x7fff_ffff, Compare::F32);
        assert!(accepts(0xffc0_0000) && !accepts(0x7f80_0000) && !accepts(0));
        let accepts = one_word(0, Compare::F32);
        assert!(!accepts(0x8000_0000) && !accepts(0x7fff_ffff));
        let within = Compare::F32Within {
            relative: 1e9,
            absolute: 1e9,
        };
        assert!(!one_word(1, within)(0x7fff_ffff));
        assert!(!one_word(0x7fff_ffff, within)(1));
        assert!(!one_word(1, within)(0x7f80_0000));
    }

    #[test]
    fn bounds_hold_for_both_halves() {
        let compare = Compare::PairWithin {
            format: crate::half::F16,
            relative: 0.001,
            absolute: 0.0,
        };
        // 0x3c01 is 1 + 2^-10, within 0.001; 0x3c02 is not.
        let accepts = one_word(0x3c00_3c00, compare);
        assert!(accepts(0x3c01_3c01) && !accepts(0x3c02_3c00) && !accepts(0x3c00_3c02));
    }

    #[test]
    fn a_double_is_judged_as_a_whole() {
        let [low, high] = split(1f64.to_bits());
        let case = Case::new("case", "", &[[0]], &[[low, high]]).compare(Compare::F64);
        assert!(case.check(&case.expected).is_ok());
        let nan = split(f64::NAN.to_bits()).map(u32::to_le_bytes);
        assert!(case.check(nan.as_flattened()).is_err());
        assert!(case.check(&[0; 4]).is_err());
    }

    #[test]
    fn cases_are_whole() {
        for case in cases() {
            let threads = case.threads as usize;
            assert_eq!(
                case.input.len(),
                4 * threads * case.input_words,
                "{}",
                case.name
            );
            assert_eq!(
                case.expected.len(),
                4 * threads * case.output_words,
                "{}",
                case.name
            );
            assert!(
                case.input_words <= 16 && case.output_words <= 16,
                "{}",
                case.name
            );
            // Stores of single words must not be all there is to see: something is not zero.
            assert!(
                case.expected.iter().any(|&b| b != 0),
                "{} expects only zeros",
                case.name
            );
        }
    }
}
