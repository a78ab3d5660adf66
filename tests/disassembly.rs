//! Checks the machine code of the CPU backend's inner loops: the accumulators must stay in registers.
//!
//! The release binary is disassembled with `objdump`, from binutils. An innermost loop with two or more fused
//! multiply-adds must not store a vector register to the stack, because each product would then wait for a store. The
//! binary holds code for every instruction set, so one machine checks the code of all.

#![cfg(target_arch = "x86_64")]

mod support;

use std::path::Path;
use std::process::Command;
use support::skip;

/// An instruction of the disassembly.
#[derive(Clone, Debug)]
struct Instruction {
    address: u64,
    mnemonic: String,
    operands: String,
}

impl Instruction {
    /// A line of `objdump -d --no-show-raw-insn`: "  4f1330:\tvmovups (%rax),%ymm0".
    fn parse(line: &str) -> Option<Self> {
        let (address, rest) = line.split_once(":\t")?;
        let address = u64::from_str_radix(address.trim(), 16).ok()?;
        let (mnemonic, operands) = rest.split_once(' ').unwrap_or((rest, ""));
        Some(Instruction {
            address,
            mnemonic: mnemonic.to_owned(),
            operands: operands.trim().to_owned(),
        })
    }

    /// A fused multiply-add of whole vectors.
    fn is_multiply_add(&self) -> bool {
        let packed = self.mnemonic.ends_with("ps") || self.mnemonic.ends_with("pd");
        let fused = self.mnemonic.starts_with("vfm") || self.mnemonic.starts_with("vfnm");
        packed && (fused || self.mnemonic.starts_with("vdpbf16"))
    }

    /// A whole vector register, or half of it, written relative to the stack or frame pointer.
    fn is_spill(&self) -> bool {
        let Some((before, base)) = self.operands.rsplit_once('(') else {
            return false;
        };
        // The last operand is the target of a store, and the registers before it are stored.
        let stores = before.contains("%xmm") || before.contains("%ymm") || before.contains("%zmm");
        let is_last = !base.contains("),");
        let scalar = self.mnemonic.ends_with("ss") || self.mnemonic.ends_with("sd");
        let moves = self.mnemonic.starts_with("vmov") || self.mnemonic.starts_with("vextract");
        let stack = base.starts_with("%rsp") || base.starts_with("%rbp");
        moves && !scalar && stores && is_last && stack
    }

    /// Where a jump goes.
    fn jump(&self) -> Option<u64> {
        let target = self.operands.split_whitespace().next()?;
        self.mnemonic
            .starts_with('j')
            .then(|| u64::from_str_radix(target, 16).ok())?
    }
}

/// The address of the first multiply-add of each innermost loop of a function that spills.
fn spilling_loops(function: &[Instruction]) -> Vec<u64> {
    let Some(begin) = function.first().map(|first| first.address) else {
        return Vec::new();
    };
    // A jump backwards closes a loop.
    let loops: Vec<(u64, u64)> = (function.iter())
        .filter_map(|i| Some((i.jump()?, i.address)))
        .filter(|(to, from)| (begin..=*from).contains(to))
        .collect();
    let innermost = loops.iter().filter(|outer| {
        !(loops.iter()).any(|inner| inner != *outer && outer.0 <= inner.0 && inner.1 <= outer.1)
    });
    let spilling = innermost.filter_map(|(first, last)| {
        let body: Vec<&Instruction> = (function.iter())
            .filter(|i| (*first..=*last).contains(&i.address))
            .collect();
        let mut products = body.iter().filter(|i| i.is_multiply_add());
        let product = products.next()?;
        (products.next().is_some() && body.iter().any(|i| i.is_spill())).then_some(product.address)
    });
    spilling.collect()
}

/// All instructions, function by function.
fn functions(disassembly: &str) -> Vec<Vec<Instruction>> {
    let mut functions = Vec::new();
    let mut function = Vec::new();
    for line in disassembly.lines() {
        match Instruction::parse(line) {
            Some(instruction) => function.push(instruction),
            None if line.ends_with(">:") => functions.push(std::mem::take(&mut function)),
            None => {}
        }
    }
    functions.push(function);
    functions
}

/// The output of a program from binutils.
fn binutils(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let output = output.unwrap_or_else(|e| panic!("{program}, from binutils, does not start: {e}"));
    assert!(output.status.success(), "{program} {args:?} failed");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The source lines of an address, innermost first, except those of the standard library and pulp.
fn place(binary: &str, address: u64) -> String {
    let address = format!("{address:#x}");
    let lines = binutils("addr2line", &["-i", "-e", binary, &address]);
    let foreign = ["/rustc/", "/pulp-"];
    let ours = (lines.lines()).filter(|line| !foreign.iter().any(|part| line.contains(part)));
    ours.collect::<Vec<_>>().join(", inlined at ")
}

#[test]
fn no_inner_loop_of_products_stores_its_accumulators() {
    let binary = env!("CARGO_BIN_EXE_arcface-cu");
    if cfg!(debug_assertions) {
        let test = "no_inner_loop_of_products_stores_its_accumulators";
        return skip(test, "the binary is not optimised; run with --release");
    }
    assert!(Path::new(binary).is_file());
    let options = ["-d", "-j", ".text", "--no-show-raw-insn", binary];
    let functions = functions(&binutils("objdump", &options));
    let pairs = functions.iter().flatten();
    let pairs = pairs.filter(|i| i.mnemonic.starts_with("vdpbf16"));
    assert!(pairs.count() > 100, "products of pairs of bfloat16");
    let products = functions.iter().flatten().filter(|i| i.is_multiply_add());
    let products = products.count();
    assert!(products > 500, "{products} multiply-adds were recognised");
    let places = functions.iter().flat_map(|f| spilling_loops(f));
    let places: Vec<String> = places.map(|address| place(binary, address)).collect();
    assert!(
        places.is_empty(),
        "{} inner loops store accumulators to the stack: {places:#?}",
        places.len()
    );
}

#[test]
fn a_spill_is_seen_in_an_innermost_loop_only() {
    let found = |spill: &str, outside: &str| {
        let text = format!(
            "0000000000001000 <f>:\n\
             \x20   1000:\txor    %eax,%eax\n\
             \x20   1002:\tvbroadcastss (%rdi,%rax,1),%zmm2\n\
             \x20   1008:\tvfmadd231ps (%rsi),%zmm2,%zmm0\n\
             \x20   100e:\t{spill}\n\
             \x20   1014:\tvfmadd231ps 0x40(%rsi){{1to16}},%zmm2,%zmm1\n\
             \x20   101a:\tcmp    %rax,%rdx\n\
             \x20   101e:\tjne    1002 <f+0x2>\n\
             \x20   1020:\t{outside}\n\
             \x20   1026:\tdec    %rcx\n\
             \x20   102a:\tjne    1000 <f>\n\
             \x20   102c:\tret\n"
        );
        let functions = functions(&text);
        functions
            .iter()
            .flat_map(|f| spilling_loops(f))
            .collect::<Vec<_>>()
    };
    let spill = "vmovaps %zmm0,0x140(%rsp)";
    assert_eq!(found(spill, "nop"), [0x1008]);
    assert_eq!(found("vmovups %ymm0,-0x20(%rbp,%rax,4)", "nop"), [0x1008]);
    for allowed in [
        "nop",
        "vmovups %zmm0,(%rdx)",
        "vmovss %xmm0,0x8(%rsp)",
        "vmovaps 0x140(%rsp),%zmm0",
    ] {
        assert_eq!(found(allowed, spill), [0; 0], "{allowed}");
    }
}
