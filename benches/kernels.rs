//! Every operation of the CUDA backend at shapes of real networks: each checks its answer against the CPU backend and
//! reports its time, measured or modelled.
//!
//! `cargo bench --bench kernels [-- [--emulate] [--card NAME] [--device cuda:N] [--batch N] [--json FILE]
//! [--modelled FILE] [PART OF A NAME]...]`
//!
//! On a machine with a GPU: microseconds of the fastest of several rounds of a millisecond, by the device's own clock, with
//! the rate in GFLOP/s and GB/s that follows from the operation's arithmetic and its operands' bytes (each read or written
//! once). The operands are the same each time, so those that fit the card's L2 cache are read from there. An operation
//! that fails or gives a wrong answer is reported, and the next one follows.
//!
//! With `--emulate`, on any machine: the counts per launch of what the kernels' PTX does in the interpreter, and from
//! them a *modelled* time on a named card (the model: `ptx_emulator::model`). A modelled time is not a measurement.
//! `--modelled`, on a machine with a GPU, reads the record that `--emulate --json` wrote, and prints both times side by
//! side.

mod common;
mod operations;
#[path = "../tests/rig/mod.rs"]
mod rig;
#[path = "../tests/support/mod.rs"]
mod support;

use arcface_cu::backend::Backend;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::cuda::driver::Driver;
use arcface_cu::backend::cuda::{Architecture, Cuda, nvrtc};
use arcface_cu::{Error, Result};
use common::{Device, Record, gpu, quit};
use operations::{Operation, operations};
use ptx_emulator::model::{self, CARDS, Card};
use ptx_emulator::{Class, matrix::Operand};
use rig::{Case, GUARD, Job, Rig};
use serde_json::{Value, json};
use std::collections::HashMap;
use support::devices::compiler;
use support::emulator::{Emulator, Launched};

/// Largest error against the CPU backend, as a part of the largest value of a result: both round in float32, each in its
/// own order, over up to some ten thousand terms.
const TOLERANCE: f64 = 1e-4;

/// Rounds on a GPU; the fastest counts.
const ROUNDS: usize = 20;

#[allow(dead_code, reason = "the parcel's one program calls `run`")]
fn main() {
    run(std::env::args().skip(1));
}

/// The bench with these arguments.
pub(crate) fn run(mut args: impl Iterator<Item = String>) {
    let mut parts = Vec::new();
    let (mut emulate, mut batch, mut card) = (false, None, CARDS[0].clone());
    let (mut ordinal, mut modelled, mut record) = (0, HashMap::new(), Record::NONE);
    while let Some(arg) = args.next() {
        let mut value = || {
            args.next()
                .unwrap_or_else(|| quit(&format!("{arg} needs a value")))
        };
        match arg.as_str() {
            "--bench" => {}
            "--emulate" => emulate = true,
            "--device" => match Device::parse(&value()) {
                Device::Cuda(number) => ordinal = number,
                Device::Cpu => quit("the kernels run on a GPU, or with --emulate"),
            },
            "--batch" => match value().parse() {
                Ok(number) => batch = Some(number),
                Err(why) => quit(&format!("--batch: {why}")),
            },
            "--card" => {
                let name = value();
                let known = CARDS.iter().find(|card| card.name.contains(&name));
                let names = CARDS.map(|card| card.name).join(", ");
                let unknown = || quit(&format!("--card {name}: there are {names}"));
                card = known.unwrap_or_else(unknown).clone();
            }
            "--json" => record = Record::create(&value()),
            "--modelled" => modelled = read_modelled(&value()),
            option if option.starts_with('-') => quit(&format!("{option} is not known")),
            part => parts.push(part.to_owned()),
        }
    }
    let batch = batch.unwrap_or(if emulate { 2 } else { 128 });
    let mut list = operations(batch);
    list.retain(|operation| {
        parts.is_empty() || parts.iter().any(|part| operation.name.contains(part))
    });
    let whole = if emulate {
        emulated(&list, batch, &card, &mut record)
    } else {
        measured(&list, batch, ordinal, &modelled, &mut record)
    };
    if !whole {
        std::process::exit(1);
    }
}

/// Modelled microseconds by operation and batch, from a record.
fn read_modelled(path: &str) -> HashMap<(String, u64), f64> {
    let text = std::fs::read_to_string(path);
    let text = text.unwrap_or_else(|error| quit(&format!("reading {path}: {error}")));
    let read = |line: &str| {
        let line: Value = serde_json::from_str(line).ok()?;
        let name = line["operation"].as_str()?.to_owned();
        let key = (name, line["batch"].as_u64()?);
        Some((key, line["modelled_us"].as_f64()?))
    };
    let line = |line: &str| {
        read(line).unwrap_or_else(|| quit(&format!("{path}: no line of a record: {line}")))
    };
    text.lines().map(line).collect()
}

/// Runs the operation by `run` and reads the results. Returns the bytes of its operands, too, each counted once.
fn results<B: Backend>(
    operation: &Operation,
    backend: &mut B,
    run: impl FnMut(&mut B, Job<'_, B>) -> Result<()>,
) -> Result<(Vec<Vec<f32>>, u64)> {
    let mut rig = Rig::bench(backend, run);
    operation.run(&mut rig)?;
    let Rig {
        backend,
        results,
        bytes,
        ..
    } = rig;
    let read = |(_, result): (_, B::Buffer)| {
        let mut values = vec![0.0; backend.len(&result) - GUARD];
        backend.download(&result, 0, &mut values)?;
        Ok(values)
    };
    Ok((results.into_iter().map(read).collect::<Result<_>>()?, bytes))
}

/// Runs the operation once on the device, after `prepare`, and on the CPU, and compares every result. Returns the bytes of
/// the operands.
fn check<D: Driver>(
    operation: &Operation,
    cuda: &mut Cuda<D>,
    prepare: impl Fn(&mut Cuda<D>),
) -> Result<u64> {
    let (found, bytes) = results(operation, cuda, |cuda, job| {
        prepare(cuda);
        job(cuda)
    })?;
    let (expected, _) = results(operation, &mut Cpu::new(), |cpu, job| job(cpu))?;
    for (result, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let largest = expected
            .iter()
            .fold(0.0f64, |m, v| m.max(f64::from(v.abs())));
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let error = (f64::from(*found) - f64::from(*expected)).abs();
            // NaN is not near.
            let near = error <= TOLERANCE * largest;
            if !near {
                return Err(Error::Invalid(format!(
                    "wrong answer: result {result}[{i}] is {found}, on the CPU {expected} (largest {largest})"
                )));
            }
        }
    }
    Ok(bytes)
}

/// A GPU's own clock.
fn measured(
    list: &[Operation],
    batch: usize,
    ordinal: usize,
    modelled: &HashMap<(String, u64), f64>,
    record: &mut Record,
) -> bool {
    let mut cuda = gpu(ordinal);
    let device = cuda.describe();
    println!(
        "{device}, batch {batch}, fastest of {ROUNDS}; modelled is what the emulator's counts predict"
    );
    println!(
        "{:<46} {:>9} {:>8} {:>12} {:>12} {:>6}",
        "operation", "GFLOP/s", "GB/s", "modelled us", "measured us", "ratio"
    );
    let mut whole = true;
    for operation in list {
        let measured = check(operation, &mut cuda, |_| ())
            .and_then(|bytes| Ok((bytes, fastest(operation, &mut cuda)?)));
        let (bytes, seconds) = match measured {
            Ok(measured) => measured,
            Err(why) => {
                println!("{:<46} failed: {why}", operation.name);
                whole = false;
                continue;
            }
        };
        let gflops = 2.0 * operation.macs as f64 / seconds / 1e9;
        let gbytes = bytes as f64 / seconds / 1e9;
        let model = modelled
            .get(&(operation.name.clone(), batch as u64))
            .copied();
        let ratio = model.map(|model| 1e6 * seconds / model);
        let cell = |number: Option<f64>, digits| {
            number.map_or("-".to_owned(), |number| format!("{number:.digits$}"))
        };
        println!(
            "{:<46} {gflops:>9.0} {gbytes:>8.0} {:>12} {:>12.1} {:>6}",
            operation.name,
            cell(model, 1),
            1e6 * seconds,
            cell(ratio, 2)
        );
        record.add(json!({
            "bench": "kernels", "device": device, "operation": operation.name, "batch": batch,
            "measured_us": 1e6 * seconds, "modelled_us": model, "ratio": ratio,
            "gflops": gflops, "gbytes_per_second": gbytes,
        }));
    }
    whole
}

/// Seconds of the fastest round.
fn fastest<D: Driver>(operation: &Operation, cuda: &mut Cuda<D>) -> Result<f64> {
    let mut best = f64::INFINITY;
    results(operation, cuda, |cuda, job| {
        // Time as many runs between two marks as take about a millisecond. The host queues faster than the device works,
        // so its own work before the first launch does not count.
        let mut seconds = |runs: usize| -> Result<f64> {
            let from = cuda.driver().record()?;
            for _ in 0..runs {
                job(cuda)?;
            }
            let to = cuda.driver().record()?;
            Ok(cuda.driver().elapsed(&from, &to)? / runs as f64)
        };
        seconds(1)?;
        let runs = (1e-3 / seconds(10)?).ceil().clamp(1.0, 1000.0) as usize;
        for _ in 0..ROUNDS {
            best = best.min(seconds(runs)?);
        }
        Ok(())
    })?;
    Ok(best)
}

/// Counts of the emulator, and the model's time.
fn emulated(list: &[Operation], batch: usize, card: &Card, record: &mut Record) -> bool {
    let compiler = compiler().unwrap_or_else(|why| quit(why));
    // Registers and static shared memory of each kernel, by (program, kernel), as the assembler reports them.
    let mut resources: HashMap<(&str, String), nvrtc::Resources> = HashMap::new();
    let mut cuda = Cuda::new(Emulator::with(compiler, "compute_80", false));
    println!(
        "emulated at batch {batch}: counts a launch, in warp instructions; the time on an {} is MODELLED",
        card.name
    );
    println!(
        "{:<46} {:>7} {:>9} {:>5} {:>7} {:>7} {:>9} {:>5} {:>4} {:>10}  bound by",
        "operation / kernel, program",
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
    let mut whole = true;
    for operation in list {
        // Drop the launches that made the operands from the list.
        let checked = check(operation, &mut cuda, |cuda| drop(cuda.driver().launches()));
        let operands = match checked {
            Ok(bytes) => bytes,
            Err(why) => {
                println!("{} failed: {why}", operation.name);
                whole = false;
                continue;
            }
        };
        let launches = cuda.driver().launches();
        println!("{}", operation.name);
        let mut seconds = Some(0.0);
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
                let architecture = Architecture::of(card.capability);
                let compiled = compiler
                    .compile(program, architecture.name())
                    .expect("the program compiles");
                let table = compiled.resources().into_iter();
                resources.extend(table.map(|r| ((program.name, r.kernel.clone()), r)));
            }
            let known = &resources[&key];
            let bytes = if moved(launched) == most {
                operands.min(most)
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
            seconds = seconds
                .zip(modelled.as_ref())
                .map(|(sum, m)| sum + m.seconds);
            let a = |part: u64, whole: u64| part as f64 / whole.max(1) as f64;
            println!(
                "  {:<44} {:>7} {:>9} {:>5.1} {:>7.1} {:>7.1} {:>9} {:>5} {:>4} {}",
                format!("{kernel}, {}", program.name),
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
        if let Some(seconds) = seconds {
            record.add(json!({
                "bench": "kernels", "card": card.name, "operation": operation.name, "batch": batch,
                "modelled_us": 1e6 * seconds,
            }));
        }
    }
    whole
}
