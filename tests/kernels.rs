//! Every program of the CUDA backend, compiled for every architecture: within its registers, without spills, within a
//! block's shared memory. The table is left in `target/kernel-resources.txt`.

mod support;

use arcface_cu::backend::Element;
use arcface_cu::backend::cuda::{Architecture, Cache};
use arcface_cu::backend::cuda::launch::{KERNELS, KernelEntry};
use arcface_cu::backend::cuda::tiles::{PROGRAMS, Program, takes};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use support::devices::{compiler_or_skip, compiler_with};

/// Turing, the two Amperes, Ada, Hopper, both Blackwells.
const CAPABILITIES: [(u32, u32); 7] = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];

/// The name of a card's own architecture.
fn own(capability: (u32, u32)) -> String {
    Architecture::of(capability).name().to_owned()
}

/// Bytes of fixed shared memory a block on every card; more is asked for at the launch.
const FIXED_SHARED: u32 = 48 << 10;

#[test]
fn every_program_compiles_for_every_architecture_within_its_budget() {
    let Some(compiler) = compiler_or_skip("every_program_compiles_for_every_architecture") else {
        return;
    };
    let mut problems = Vec::new();
    // (program, kernel) and what it takes on each architecture.
    let mut table: BTreeMap<(&str, String), Vec<String>> = BTreeMap::new();
    for capability in CAPABILITIES {
        let architecture = own(capability);
        let compiled: Vec<_> = (PROGRAMS.par_iter())
            .filter(|program| takes(capability, program.element))
            .map(|program| (program, compiler.compile(program, &architecture)))
            .collect();
        for (program, compiled) in compiled {
            let compiled = match compiled {
                Ok(compiled) => compiled,
                Err(error) => {
                    problems.push(error.to_string());
                    continue;
                }
            };
            let kernels = compiled.resources();
            let found: BTreeSet<&str> = kernels.iter().map(|k| k.kernel.as_str()).collect();
            assert_eq!(found, declared(program), "kernels of {}", program.name);
            for k in kernels {
                let mut exceeds = |what: &str, found: u32, limit: u32| {
                    if found > limit {
                        problems.push(format!(
                            "{} {} {architecture}: {found} {what}, and {limit} are allowed",
                            program.name, k.kernel
                        ));
                    }
                };
                exceeds("registers", k.registers, program.registers);
                exceeds("bytes of fixed shared memory", k.shared, FIXED_SHARED);
                exceeds("bytes of stack", k.stack, 0);
                exceeds("bytes of spills", k.spills, 0);
                let cell = format!("{}/{}", k.registers, k.shared);
                table
                    .entry((program.name, k.kernel))
                    .or_default()
                    .push(cell);
            }
        }
    }
    let mut text = String::from("registers a thread / bytes of fixed shared memory a block\n");
    let mut row = |first: [&str; 2], cells: &[String]| {
        write!(text, "{:26} {:26}", first[0], first[1]).unwrap();
        // The oldest cards take no bfloat16.
        let missing = CAPABILITIES.len() - cells.len();
        text.push_str(&format!("{:>10}", "-").repeat(missing));
        for cell in cells {
            write!(text, "{cell:>10}").unwrap();
        }
        text.push('\n');
    };
    row(["program", "kernel"], &CAPABILITIES.map(own));
    for ((program, kernel), cells) in &table {
        row([program, kernel], cells);
    }
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/../kernel-resources.txt");
    std::fs::write(file, text).expect("the build folder can be written");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// Kernels of a program by the launch table.
fn declared(program: &Program) -> BTreeSet<&'static str> {
    let (_, kernels) = program.kernels();
    kernels.iter().map(|entry| entry.kernel).collect()
}

#[test]
fn every_kernel_belongs_to_a_program_and_every_program_has_a_name_of_its_own() {
    let files: BTreeSet<&str> = PROGRAMS.iter().map(|p| p.file).collect();
    for KernelEntry { file, kernel, .. } in KERNELS {
        assert!(files.contains(file), "{file}: {kernel} is in no program");
    }
    let names: BTreeSet<&str> = PROGRAMS.iter().map(|p| p.name).collect();
    assert_eq!(names.len(), PROGRAMS.len());
}

/// What is wrong with a source is said by the lines of its own file.
#[test]
fn a_source_that_does_not_compile_is_told_by_its_own_lines() {
    static BROKEN: Program = Program {
        name: "broken",
        file: "reduce.cu",
        threads: 256,
        vector: 1,
        element: Element::F32,
        // No name for a kernel.
        constants: &[("sum_tiles", 1)],
        registers: 64,
    };
    let Some(compiler) = compiler_or_skip("a_source_that_does_not_compile") else {
        return;
    };
    let error = compiler.compile(&BROKEN, "sm_80").unwrap_err().to_string();
    let line = include_str!("../kernels/reduce.cu")
        .lines()
        .position(|line| line.starts_with("sum_tiles("))
        .expect("the kernel's head");
    let place = format!("reduce.cu({}): error", line + 1);
    assert!(error.contains(&place), "{place} is not in {error}");
    assert!(error.contains("kernels/reduce.cu for sm_80"), "{error}");

    let unknown = compiler.compile(PROGRAMS[0], "sm_20").unwrap_err();
    assert!(unknown.to_string().contains("sm_20"), "{unknown}");
}

/// The same bytes from the cache as from the compiler.
#[test]
fn a_cached_program_is_the_compiled_one() {
    let Some(compiler) = compiler_or_skip("a_cached_program_is_the_compiled_one") else {
        return;
    };
    for architecture in ["sm_90a", "compute_80"] {
        let first = compiler.compile(PROGRAMS[0], architecture).unwrap();
        assert_eq!(compiler.compile(PROGRAMS[0], architecture).unwrap(), first);
        let empty = tempfile::tempdir().unwrap();
        let fresh = compiler_with(Cache::at(empty.path().to_owned()));
        let fresh = fresh.compile(PROGRAMS[0], architecture).unwrap();
        assert_eq!(fresh.image, first.image);
        let ptx = first.image.starts_with(b"//");
        assert_eq!(ptx, architecture.starts_with("compute_"));
        assert_eq!(first.resources().is_empty(), ptx);
    }
}

/// What runs in an emulated operation is the code for one architecture; what is compiled for the others is known too.
#[test]
fn the_emulator_knows_every_instruction_for_every_architecture() {
    let test = "the_emulator_knows_every_instruction_for_every_architecture";
    let Some(compiler) = compiler_or_skip(test) else {
        return;
    };
    let machine = ptx_emulator::Machine::new(ptx_emulator::Options::default());
    for capability in CAPABILITIES {
        let architecture = own(capability).replace("sm_", "compute_");
        let programs = PROGRAMS.par_iter();
        let programs = programs.filter(|program| takes(capability, program.element));
        programs.for_each(|program| {
            let compiled = compiler.compile(program, &architecture).unwrap();
            let ptx = String::from_utf8(compiled.image).unwrap();
            if let Err(error) = machine.load(&ptx) {
                panic!("{} for {architecture}: {error}", program.name);
            }
        });
    }
}
