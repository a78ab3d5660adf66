//! The operations as tests and benches run them. A *case* is an operation with its sizes and with what is pending. It makes
//! its operands on any device, with the same numbers on each, and runs the operation on them. An operation's operands are
//! written out nowhere else.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test and bench uses a part of this"
)]

pub mod arcface;
pub mod batch_norm;
pub mod conv;
pub mod dropout;
pub mod input_transform;
pub mod pending;
pub mod pool;
pub mod rows;
pub mod sgd;

use arcface_cu::Result;
use arcface_cu::backend::{Backend, Element};
use arcface_cu::base::random::{Purpose, Random};
use std::fmt::Debug;

/// Elements after every buffer's contents, which no operation may write, or read into a result.
pub const GUARD: usize = 37;

/// What these elements hold, and results before they are written: a NaN that no arithmetic makes, in either type of
/// element.
pub const POISON: f32 = f32::from_bits(0x7fd5_dead);

/// Whether a number is poison, as float32 or as bfloat16.
pub fn is_poison(value: f32) -> bool {
    let poison = POISON.to_bits();
    value.to_bits() == poison || value.to_bits() == poison & 0xffff_0000
}

/// The random numbers repeat after so many: drawing all of a long buffer would take longer than the operation on it.
const PERIOD: usize = 65_537;

/// An operation to run, at its sizes.
pub trait Case: Debug + Sync {
    /// Makes the operands, runs the operation, and hands the rig what it wrote.
    ///
    /// # Errors
    /// The device's.
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()>;
}

/// `len` numbers in (-1, 1), different for each `seed`, with a slope over the index so that a transposed or shifted
/// read does not cancel out.
pub fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed, Purpose::Init, 0);
    let drawn: Vec<f32> = (0..len.min(PERIOD))
        .map(|_| 0.8 * random.range(-1.0, 1.0))
        .collect();
    let slope = |i: usize| 0.2 * (i as f32 / len.max(1) as f32 - 0.5);
    let drawn = drawn.iter().cycle().take(len);
    drawn.enumerate().map(|(i, v)| v + slope(i)).collect()
}

/// The noise of an operand of this name, the same in every case.
pub fn named(name: &str, len: usize) -> Vec<f32> {
    let seed = (name.bytes()).fold(7, |seed: u64, byte| {
        seed.wrapping_mul(257).wrapping_add(u64::from(byte))
    });
    noise(len, seed)
}

/// A buffer with the given contents and a guard band after them.
pub fn buffer<B: Backend>(backend: &mut B, element: Element, values: &[f32]) -> Result<B::Buffer> {
    let mut buffer = backend.alloc(element, values.len() + GUARD)?;
    backend.upload(values, &mut buffer, 0)?;
    backend.upload(&[POISON; GUARD], &mut buffer, values.len())?;
    Ok(buffer)
}

/// An operation on its operands, as often as it is called.
pub type Job<'a, B> = &'a mut dyn FnMut(&mut B) -> Result<()>;

/// Runs a job, once or again and again.
type Runner<'a, B> = Box<dyn FnMut(&mut B, Job<'_, B>) -> Result<()> + 'a>;

/// Numbers in place of the random ones: (operand, first element, numbers).
pub type Given<'a> = &'a [(&'a str, usize, &'a [f32])];

/// A parameter slab, and its copy as the tensors' elements where these are not float32.
pub struct Filters<T> {
    pub params: T,
    rounded: Option<T>,
}

impl<T> Filters<T> {
    /// The filters of products.
    pub fn of_products(&self) -> &T {
        self.rounded.as_ref().unwrap_or(&self.params)
    }
}

/// A device on which a case runs.
pub struct Rig<'a, B: Backend> {
    /// The device.
    pub backend: &'a mut B,
    /// What tensors are made of; parameters, coefficients and sums are float32.
    pub element: Element,
    /// Poisoned elements around each part of a slab.
    margin: usize,
    /// Filters begin at multiples of so many elements.
    filters_at: usize,
    given: Given<'a>,
    /// How many of the given stretches have found their operand.
    found: usize,
    run: Runner<'a, B>,
    /// Bytes of all operands so far, without guard bands.
    pub bytes: u64,
    /// What the operation wrote, by name.
    pub results: Vec<(&'static str, B::Buffer)>,
}

impl<'a, B: Backend> Rig<'a, B> {
    /// For a test: the operation runs once; filters and slopes lie between poison, slopes at odd places.
    pub fn new(backend: &'a mut B) -> Self {
        Rig {
            backend,
            element: Element::F32,
            margin: 5,
            // As a graph lays its parameters out.
            filters_at: 16,
            given: &[],
            found: 0,
            run: Box::new(|backend, job| job(backend)),
            bytes: 0,
            results: Vec::new(),
        }
    }

    /// For a bench: `run` runs the operation; filters and slopes are slabs of their own.
    pub fn bench(
        backend: &'a mut B,
        run: impl FnMut(&mut B, Job<'_, B>) -> Result<()> + 'a,
    ) -> Self {
        Rig {
            margin: 0,
            run: Box::new(run),
            ..Rig::new(backend)
        }
    }

    /// Makes tensors of another type of elements.
    pub fn of(self, element: Element) -> Self {
        Rig { element, ..self }
    }

    /// Lets filters lie at odd places too.
    pub fn filters_anywhere(self) -> Self {
        Rig {
            filters_at: 1,
            ..self
        }
    }

    /// Puts numbers into operands.
    pub fn given(self, given: Given<'a>) -> Self {
        Rig { given, ..self }
    }

    /// What is given for an operand.
    fn for_operand(&mut self, name: &str) -> Vec<(usize, &'a [f32])> {
        let given = self.given.iter().filter(|(to, ..)| *to == name);
        let given: Vec<_> = given.map(|(_, at, given)| (*at, *given)).collect();
        self.found += given.len();
        given
    }

    fn put(&mut self, name: &str, values: &mut [f32]) {
        for (at, given) in self.for_operand(name) {
            values[at..][..given.len()].copy_from_slice(given);
        }
    }

    /// Puts what is given into an operand that the device itself has made.
    pub fn give(&mut self, name: &str, buffer: &mut B::Buffer) -> Result<()> {
        let mut given = self.for_operand(name).into_iter();
        given.try_for_each(|(at, given)| self.backend.upload(given, buffer, at))
    }

    /// Runs a test's case once and takes what it wrote. Every number that is given must have found its operand.
    pub fn results(mut self, case: &impl Case) -> Vec<(&'static str, B::Buffer)> {
        case.run(&mut self).expect("the operation");
        assert_eq!(self.found, self.given.len(), "operands of {case:?}");
        self.results
    }

    fn operand(&mut self, element: Element, name: &str, mut values: Vec<f32>) -> Result<B::Buffer> {
        self.put(name, &mut values);
        self.bytes += (element.bytes() * values.len()) as u64;
        buffer(self.backend, element, &values)
    }

    /// A float32 operand with these numbers.
    pub fn filled(&mut self, name: &str, values: Vec<f32>) -> Result<B::Buffer> {
        self.operand(Element::F32, name, values)
    }

    /// A float32 operand with the noise of its name.
    pub fn random(&mut self, name: &str, len: usize) -> Result<B::Buffer> {
        self.filled(name, named(name, len))
    }

    /// A float32 result that is not read before it is written.
    pub fn poisoned(&mut self, len: usize) -> Result<B::Buffer> {
        self.filled("", vec![POISON; len])
    }

    /// A tensor with these numbers.
    pub fn tensor(&mut self, name: &str, values: Vec<f32>) -> Result<B::Buffer> {
        self.operand(self.element, name, values)
    }

    /// A tensor with the noise of its name.
    pub fn random_tensor(&mut self, name: &str, len: usize) -> Result<B::Buffer> {
        self.tensor(name, named(name, len))
    }

    /// A tensor that is not read before it is written.
    pub fn poisoned_tensor(&mut self, len: usize) -> Result<B::Buffer> {
        self.tensor("", vec![POISON; len])
    }

    /// A slab of float32 operands with poison around each, and where they begin.
    pub fn slab<const N: usize>(
        &mut self,
        parts: [(&str, Vec<f32>); N],
    ) -> Result<(B::Buffer, [usize; N])> {
        let (values, begins) = self.lay_out(1, parts);
        Ok((self.filled("", values)?, begins))
    }

    /// A slab of parameters, its copy as the tensors' elements where these are not float32, and where the parts begin.
    pub fn filters<const N: usize>(
        &mut self,
        parts: [(&str, Vec<f32>); N],
    ) -> Result<(Filters<B::Buffer>, [usize; N])> {
        let (values, begins) = self.lay_out(self.filters_at, parts);
        let rounded = match self.element {
            Element::F32 => None,
            element => Some(self.operand(element, "", values.clone())?),
        };
        let params = self.filled("", values)?;
        Ok((Filters { params, rounded }, begins))
    }

    /// Operands one after the other with poison around each, and where they begin: at multiples of `align`.
    fn lay_out<const N: usize>(
        &mut self,
        align: usize,
        parts: [(&str, Vec<f32>); N],
    ) -> (Vec<f32>, [usize; N]) {
        let mut slab = vec![POISON; self.margin.next_multiple_of(align)];
        let begins = parts.map(|(name, mut part)| {
            self.put(name, &mut part);
            let begin = slab.len();
            slab.extend(part);
            slab.resize((slab.len() + self.margin).next_multiple_of(align), POISON);
            begin
        });
        (slab, begins)
    }

    /// Runs the operation.
    pub fn run(&mut self, mut job: impl FnMut(&mut B) -> Result<()>) -> Result<()> {
        (self.run)(self.backend, &mut job)
    }

    /// Takes what the operation wrote.
    pub fn keep<const N: usize>(&mut self, results: [(&'static str, B::Buffer); N]) -> Result<()> {
        self.results.extend(results);
        Ok(())
    }
}
