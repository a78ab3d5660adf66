//! The programs of the CUDA backend, compiled: within their registers, without spills, within a block's shared memory, with
//! the instructions that a tile is there for. Every program for two architectures, the most demanding ones for all. The
//! table is left in `target/kernel-resources.txt`.

mod support;

use arcface_cu::backend::Element;
use arcface_cu::backend::cuda::launch::{KERNELS, KernelEntry};
use arcface_cu::backend::cuda::tiles::{PROGRAMS, Program, takes};
use arcface_cu::backend::cuda::{Architecture, Cache};
use rayon::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use support::devices::{compiler_or_skip, compiler_with};
use support::nvdisasm::Disassembler;

/// Turing, the two Amperes, Ada, Hopper, both Blackwells.
const CAPABILITIES: [(u32, u32); 7] = [(7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (12, 0)];

/// Those for which every program is compiled.
const THOROUGH: [(u32, u32); 2] = [(8, 0), (9, 0)];

/// The programs to compile for a card: all of them, or of each file and type of elements the one that takes most.
fn programs(capability: (u32, u32)) -> Vec<&'static Program> {
    let takes_most = |program: &Program| {
        let alike =
            |other: &&&Program| (other.file, other.element) == (program.file, program.element);
        let rivals = PROGRAMS.iter().filter(alike);
        let most = rivals.max_by_key(|other| (other.registers, other.vector, other.name));
        most.is_some_and(|most| most.name == program.name)
    };
    let wanted = |program: &&Program| {
        takes(capability, program.element)
            && (THOROUGH.contains(&capability) || takes_most(program))
    };
    PROGRAMS.iter().copied().filter(wanted).collect()
}

/// A row of the table: what a kernel takes on each card.
type Cells = BTreeMap<(u32, u32), String>;

/// The name of a card's own architecture.
fn own(capability: (u32, u32)) -> String {
    Architecture::of(capability).name().to_owned()
}

/// Bytes of fixed shared memory a block on every card; more is asked for at the launch.
const FIXED_SHARED: u32 = 48 << 10;

#[test]
fn every_program_compiles_for_every_architecture_within_its_budget() {
    let test = "every_program_compiles_for_every_architecture_within_its_budget";
    let Some(compiler) = compiler_or_skip(test) else {
        return;
    };
    let disassembler = Disassembler::or_skip(test);
    let mut problems = Vec::new();
    // (program, kernel).
    let mut table: BTreeMap<(&str, String), Cells> = BTreeMap::new();
    for capability in CAPABILITIES {
        let architecture = own(capability);
        let thorough = THOROUGH.contains(&capability);
        let disassembler = disassembler.as_ref().filter(|_| thorough);
        let compile = |program: &'static Program| {
            let compiled = compiler.compile(program, &architecture);
            let image = compiled.as_ref().map(|compiled| &compiled.image[..]);
            let lacks = match (disassembler, image) {
                (Some(disassembler), Ok(image)) => lacks(disassembler, program, image),
                _ => Vec::new(),
            };
            (program, compiled, lacks)
        };
        let compiled: Vec<_> = (programs(capability).into_par_iter())
            .map(compile)
            .collect();
        for (program, compiled, lacks) in compiled {
            let told = lacks
                .iter()
                .map(|what| format!("{} {architecture}: {what}", program.name));
            problems.extend(told);
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
                    .insert(capability, cell);
            }
        }
    }
    let mut text = String::from("registers a thread / bytes of fixed shared memory a block\n");
    let mut row = |first: [&str; 2], cells: &Cells| {
        write!(text, "{:26} {:26}", first[0], first[1]).unwrap();
        for capability in CAPABILITIES {
            let cell = cells.get(&capability).map_or("-", String::as_str);
            write!(text, "{cell:>10}").unwrap();
        }
        text.push('\n');
    };
    let names = CAPABILITIES.map(|capability| (capability, own(capability)));
    row(["program", "kernel"], &names.into());
    for ((program, kernel), cells) in &table {
        row([program, kernel], cells);
    }
    let file = concat!(env!("CARGO_TARGET_TMPDIR"), "/../kernel-resources.txt");
    std::fs::write(file, text).expect("the build folder can be written");
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

/// What is wrong with a program's machine code. Nothing lies in local memory. Products multiply on tensor cores where
/// their numbers are bfloat16, from matrices that are loaded as such; where rows are whole chunks they copy 16 bytes at a
/// time past the registers, and store 16 bytes at a time.
fn lacks(disassembler: &Disassembler, program: &Program, cubin: &[u8]) -> Vec<String> {
    let is_product = program.constants.iter().any(|(name, _)| *name == "PART_M");
    let wide = program.vector * program.element.bytes() as u32 == 16;
    let mut wanted = Vec::new();
    if is_product && program.element == Element::Bf16 {
        wanted.extend(["HMMA.16816.F32.BF16", "LDSM.16."]);
    } else if is_product {
        wanted.extend(["FFMA", "LDS.128"]);
    }
    if is_product && wide {
        wanted.push("LDGSTS.E.BYPASS.128");
    }
    let kernels = disassembler.kernels(cubin);
    let found: BTreeSet<&str> = kernels.iter().map(|(kernel, _)| &kernel[..]).collect();
    assert_eq!(found, declared(program), "kernels of {}", program.name);
    let mut problems = Vec::new();
    for (kernel, instructions) in &kernels {
        let has = |start: &&str| instructions.iter().any(|name| name.starts_with(*start));
        // The forward pass of the head leaves two numbers of a row.
        let stores = is_product && wide && kernel != "arcface_fprop";
        let stored = stores.then_some(&"STG.E.128");
        let missing = wanted.iter().chain(stored).filter(|start| !has(start));
        problems.extend(missing.map(|name| format!("{kernel} has no {name}")));
        let local = ["LDL", "STL"].into_iter().filter(|start| has(start));
        problems.extend(local.map(|name| format!("{kernel} has {name}")));
    }
    problems
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
        programs(capability).into_par_iter().for_each(|program| {
            let compiled = compiler.compile(program, &architecture).unwrap();
            let ptx = String::from_utf8(compiled.image).unwrap();
            if let Err(error) = machine.load(&ptx) {
                panic!("{} for {architecture}: {error}", program.name);
            }
        });
    }
}
