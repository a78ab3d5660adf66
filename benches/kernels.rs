//! Every operation of the CUDA backend at shapes of real networks: each checks its answer against the CPU backend, and
//! says how long it took, or what it would do.
//!
//! `cargo bench --bench kernels [-- [--emulate] [--card NAME] [--batch N] [PART OF A NAME]...]`
//!
//! On a machine with a GPU: microseconds of the fastest of several rounds of a millisecond, by the device's own clock, with
//! the rate in GFLOP/s and GB/s that follows from the operation's arithmetic and its operands' bytes (each read or written
//! once). The operands are the same each time: what fits the card's L2 cache is read from there.
//! With `--emulate`, on any machine: what the kernels' PTX does when it is interpreted, counted a launch, and from the
//! counts a *modelled* time on a named card (the model: `ptx_emulator::model`). Nothing modelled is a measurement.

mod operations;
#[path = "../tests/support/mod.rs"]
mod support;

use arcface_cu::backend::Backend;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::cuda::driver::Driver;
use arcface_cu::backend::cuda::gpu::{Gpu, Setup};
use arcface_cu::backend::cuda::{Cache, Cuda, nvrtc};
use operations::{Operation, operations};
use ptx_emulator::model::{self, CARDS, Card};
use ptx_emulator::{Class, matrix::Operand};
use std::collections::HashMap;
use support::devices::compiler;
use support::emulator::{Emulator, Launched};

/// Largest error against the CPU backend, as a part of the largest value of a result: both round in float32, each in its
/// own order, over up to some ten thousand terms.
const TOLERANCE: f64 = 1e-4;

/// Rounds on a GPU; the fastest counts.
const ROUNDS: usize = 20;

fn main() {
    let mut parts = Vec::new();
    let (mut emulate, mut batch, mut card) = (false, None, CARDS[0].clone());
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        let mut value = || args.next().expect("a value follows the option");
        match arg.as_str() {
            "--bench" => {}
            "--emulate" => emulate = true,
            "--batch" => batch = Some(value().parse().expect("a number follows --batch")),
            "--card" => {
                let name = value();
                let known = CARDS.iter().find(|card| card.name.contains(&name));
                card = known
                    .expect("--card is part of a card's name: see ptx_emulator::model")
                    .clone();
            }
            part => parts.push(part.to_owned()),
        }
    }
    let batch = batch.unwrap_or(if emulate { 2 } else { 128 });
    let mut list = operations(batch);
    list.retain(|operation| {
        parts.is_empty() || parts.iter().any(|part| operation.name.contains(part))
    });
    if emulate {
        emulated(&list, batch, &card);
    } else {
        measured(&list, batch);
    }
}

/// Runs the operation once on the device and on the CPU, and compares every result.
fn check<D: Driver>(operation: &Operation, cuda: &mut Cuda<D>) {
    let mut cpu = Cpu::new();
    let mut operands = operation.operands(cuda).expect("operands");
    operation
        .run(cuda, &mut operands)
        .expect("the operation runs");
    let found = operation.results(cuda, &operands).expect("results");
    let mut operands = operation.operands(&mut cpu).expect("operands");
    operation
        .run(&mut cpu, &mut operands)
        .expect("the operation runs");
    let expected = operation.results(&mut cpu, &operands).expect("results");
    for (result, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let largest = expected
            .iter()
            .fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(*found) - f64::from(*expected)).abs();
            assert!(
                error <= TOLERANCE * largest,
                "{}: result {result}[{i}] is {found}, on the CPU {expected} (largest {largest})",
                operation.name
            );
        }
    }
}

/// A GPU's own clock.
fn measured(list: &[Operation], batch: usize) {
    let cache = Cache::at(concat!(env!("CARGO_TARGET_TMPDIR"), "/kernels").into());
    let gpu = Setup::new(|name| std::env::var_os(name), cache);
    let gpu = gpu.and_then(|setup| Gpu::open(0, setup));
    let gpu = gpu.unwrap_or_else(|error| {
        eprintln!("{error}\nWithout a GPU: cargo bench --bench kernels -- --emulate");
        std::process::exit(1);
    });
    let mut cuda = Cuda::new(gpu);
    println!("{}, batch {batch}, fastest of {ROUNDS}", cuda.describe());
    println!(
        "{:<46} {:>10} {:>9} {:>8}",
        "operation", "us", "GFLOP/s", "GB/s"
    );
    for operation in list {
        check(operation, &mut cuda);
        let mut operands = operation.operands(&mut cuda).expect("operands");
        // As many runs between two marks as take about a millisecond: the host queues faster than the device works, and
        // what it does before the first launch does not count.
        let mut seconds = |runs: usize| {
            let from = cuda.driver().record().expect("an event");
            for _ in 0..runs {
                operation
                    .run(&mut cuda, &mut operands)
                    .expect("the operation runs");
            }
            let to = cuda.driver().record().expect("an event");
            let elapsed = cuda.driver().elapsed(&from, &to);
            elapsed.expect("the time between events") / runs as f64
        };
        seconds(1);
        let runs = (1e-3 / seconds(10)).ceil().clamp(1.0, 1000.0) as usize;
        let best = (0..ROUNDS).fold(f64::INFINITY, |best, _| best.min(seconds(runs)));
        println!(
            "{:<46} {:>10.1} {:>9.0} {:>8.0}",
            operation.name,
            1e6 * best,
            2.0 * operation.macs() as f64 / best / 1e9,
            operation.bytes() as f64 / best / 1e9
        );
    }
}

/// Counts of the emulator, and the model's time.
fn emulated(list: &[Operation], batch: usize, card: &Card) {
    let compiler = compiler().unwrap_or_else(|why| {
        eprintln!("{why}");
        std::process::exit(1);
    });
    // Registers and static shared memory of each kernel, by (program, kernel), as the assembler reports them.
    let mut resources: HashMap<(&str, String), nvrtc::Resources> = HashMap::new();
    let mut cuda = Cuda::new(Emulator::with(compiler, "compute_80", false));
    println!(
        "emulated at batch {batch}: counts a launch, in warp instructions; the time on an {} is MODELLED",
        card.name
    );
    println!(
        "{:<46} {:>7} {:>9} {:>5} {:>7} {:>7} {:>9} {:>5} {:>4} {:>10}  bound by",
        "operation / kernel",
        "blocks",
        "instr",
        "fma%",
        "sect/ld",
        "sect/st",
        "shared wf",
        "bars",
        "regs",
        "modelled"
    );
    for operation in list {
        check(operation, &mut cuda);
        let mut operands = operation.operands(&mut cuda).expect("operands");
        cuda.driver().launches();
        operation
            .run(&mut cuda, &mut operands)
            .expect("the operation runs");
        let launches = cuda.driver().launches();
        println!("{}", operation.name);
        // The launch that moves the most is the one that reads the operands; the others work on what it left.
        let moved =
            |l: &Launched| 32 * (l.counters.global_load_sectors + l.counters.global_store_sectors);
        let most = launches.iter().map(moved).max().unwrap_or(0);
        for launched in &launches {
            let Launched {
                program,
                kernel,
                launch,
                counters,
            } = launched;
            let key = (program.name, kernel.to_string());
            if !resources.contains_key(&key) {
                let compiled = compiler
                    .compile(program, "sm_80")
                    .expect("the program compiles");
                let table = compiled.resources().into_iter();
                resources.extend(table.map(|r| ((program.name, r.kernel.clone()), r)));
            }
            let known = &resources[&key];
            let bytes = if moved(launched) == most {
                operation.bytes().min(most)
            } else {
                moved(launched)
            };
            let modelled = card.model(
                &model::Launch {
                    threads: launch.block,
                    registers: known.registers,
                    shared_bytes: known.shared + launch.shared,
                    dram_bytes: bytes,
                    tensor: Operand::Bf16,
                },
                counters,
            );
            let a = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
            println!(
                "  {:<44} {:>7} {:>9} {:>5.1} {:>7.1} {:>7.1} {:>9} {:>5} {:>4} {}",
                kernel,
                counters.blocks,
                counters.total(),
                100.0 * a(counters.of(Class::Fma), counters.total()),
                a(counters.global_load_sectors, counters.global_load_requests),
                a(
                    counters.global_store_sectors,
                    counters.global_store_requests
                ),
                counters.shared_load_wavefronts + counters.shared_store_wavefronts,
                counters.block_barriers,
                known.registers,
                modelled.map_or("does not fit".to_owned(), |m| format!(
                    "{:>7.1} us  {:?}",
                    1e6 * m.seconds,
                    m.bound
                )),
            );
        }
    }
}
