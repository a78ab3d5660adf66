//! Every conformance case on the emulator.

use std::collections::BTreeSet;

use ptx_emulator::conformance::{Case, ENTRY, cases};
use ptx_emulator::{Machine, OPCODES, Options};

/// Runs a case and judges its output.
fn run(case: &Case, options: &Options) -> Result<(), String> {
    let named = |error: &dyn std::fmt::Display| format!("{}: {error}", case.name);
    let machine = Machine::new(options.clone());
    let module = machine.load(&case.ptx()).map_err(|e| named(&e))?;
    let bytes = case.expected.len();
    let input = machine
        .alloc(case.input.len() as u64)
        .map_err(|e| named(&e))?;
    let output = machine.alloc(bytes as u64).map_err(|e| named(&e))?;
    machine
        .write(input, &case.input)
        .and_then(|()| machine.memset(output, 0, bytes))
        .map_err(|e| named(&e))?;
    let arguments = [input.to_le_bytes(), output.to_le_bytes()];
    machine
        .launch(
            &module,
            ENTRY,
            [case.grid(), 1, 1],
            [case.block, 1, 1],
            0,
            &[&arguments[0], &arguments[1]],
        )
        .map_err(|e| named(&e))?;
    let mut result = vec![0; bytes];
    machine.read(output, &mut result).map_err(|e| named(&e))?;
    case.check(&result)
}

fn all(options: &Options) {
    let failures: Vec<String> = cases()
        .iter()
        .filter_map(|case| run(case, options).err())
        .collect();
    assert!(
        failures.is_empty(),
        "{} cases fail:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn every_case() {
    all(&Options::default());
}

/// Results are the same without the processor's vector instructions, and with fused sums of products.
#[test]
fn every_case_without_vectors() {
    all(&Options {
        vector: false,
        contract: true,
        ..Options::default()
    });
}

/// No case depends on the order of warps and blocks.
#[test]
fn every_case_in_both_orders() {
    all(&Options {
        check_order: true,
        ..Options::default()
    });
}

/// The opcode of a line: what stands before the first dot, behind a guard.
fn opcode(line: &str) -> Option<&str> {
    let line = line.trim();
    let line = match line.strip_prefix('@') {
        Some(guarded) => guarded.split_once(' ')?.1.trim(),
        None => line,
    };
    line.split(['.', ' ', ';']).next()
}

#[test]
fn every_opcode_has_a_case() {
    let texts: Vec<String> = cases().iter().map(Case::ptx).collect();
    let named: BTreeSet<&str> = texts
        .iter()
        .flat_map(|text| text.lines().filter_map(opcode))
        .collect();
    // A trap and a breakpoint end the program; nothing is left to judge.
    let missing: Vec<&str> = OPCODES
        .into_iter()
        .filter(|opcode| !named.contains(opcode) && !["brkpt", "trap"].contains(opcode))
        .collect();
    assert!(missing.is_empty(), "no case for {missing:?}");
}
