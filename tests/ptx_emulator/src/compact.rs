//! Registers to rows: liveness over the ordered blocks, then a colouring. NVRTC's PTX names thousands of registers,
//! of which a hundred or so live at once; compacted, a warp's rows stay in the first-level cache.

use std::collections::HashMap;

use crate::assigned::watch;
use crate::contract::contract;
use crate::counters::Class;
use crate::fault::LoadError;
use crate::layout::{Block, blocks};
use crate::lower::{Lowered, Node};
use crate::machine::Options;
use crate::program::{Inst, Op, Origin, Preset, Program, Reg, Side, Terminator, UNGUARDED};

/// Numbers all registers of the three files in one range.
pub(crate) struct Numbers {
    first: [usize; 3],
    pub(crate) total: usize,
}

impl Numbers {
    fn new(counts: [u32; 3]) -> Self {
        let counts = counts.map(|n| n as usize);
        Self {
            first: [0, counts[0], counts[0] + counts[1]],
            total: counts.iter().sum(),
        }
    }

    pub(crate) fn of(&self, reg: Reg) -> usize {
        self.first[reg.file as usize] + reg.index as usize
    }

    fn file(&self, number: usize) -> usize {
        (0..3).rev().find(|&f| number >= self.first[f]).unwrap_or(0)
    }
}

#[derive(Clone)]
pub(crate) struct Bits(Vec<u64>);

impl Bits {
    pub(crate) fn new(n: usize) -> Self {
        Self(vec![0; n.div_ceil(64)])
    }

    pub(crate) fn has(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    pub(crate) fn set(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    pub(crate) fn clear(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
    }

    /// Adds the other's members; true if any was new.
    pub(crate) fn merge(&mut self, other: &Self) -> bool {
        let mut grew = false;
        for (word, &more) in self.0.iter_mut().zip(&other.0) {
            grew |= more & !*word != 0;
            *word |= more;
        }
        grew
    }

    fn ones(&self) -> impl Iterator<Item = usize> + '_ {
        self.0.iter().enumerate().flat_map(|(w, &word)| {
            (0..64)
                .filter(move |b| word >> b & 1 == 1)
                .map(move |b| 64 * w + b)
        })
    }
}

/// Registers that a node reads, a guarded write included: it leaves what it does not write.
fn reads(node: &Node) -> impl Iterator<Item = Reg> + '_ {
    let kept: &[Reg] = if node.guard.is_some() { &node.dst } else { &[] };
    node.src
        .iter()
        .chain(kept)
        .copied()
        .chain(node.guard.map(|(reg, _)| reg))
}

fn nodes(block: &Block) -> impl DoubleEndedIterator<Item = &Node> {
    block.nodes.iter().chain(&block.end)
}

/// Registers live at the end of each block.
fn live_out(blocks: &[Block], numbers: &Numbers) -> Vec<Bits> {
    let mut out = vec![Bits::new(numbers.total); blocks.len()];
    let mut live_in = out.clone();
    let mut changed = true;
    while changed {
        changed = false;
        for (b, block) in blocks.iter().enumerate().rev() {
            let mut live = Bits::new(numbers.total);
            for next in block.successors() {
                live.merge(&live_in[next]);
            }
            out[b] = live.clone();
            for node in nodes(block).rev() {
                for &dst in &node.dst {
                    live.clear(numbers.of(dst));
                }
                for src in reads(node) {
                    live.set(numbers.of(src));
                }
            }
            if live.0 != live_in[b].0 {
                live_in[b] = live;
                changed = true;
            }
        }
    }
    out
}

/// Assigns rows and encodes the program.
pub(crate) fn compact(
    mut lowered: Lowered,
    mut program: Program,
    options: &Options,
) -> Result<Program, LoadError> {
    let mut blocks = blocks(&mut lowered);
    if options.contract {
        contract(&mut blocks, &mut lowered);
    }
    let numbers = Numbers::new(lowered.counts);
    let unwritten = watch(&mut blocks, &mut lowered, &numbers);
    let numbers = Numbers::new(lowered.counts);
    let (rows, sizes) = assign(&blocks, &lowered.presets, &numbers);
    program.rows32 = sizes[0];
    program.rows64 = sizes[1];
    program.rows_pred = sizes[2];
    if sizes.iter().any(|&n| n > u32::from(u16::MAX) / 2 - 1) {
        return Err(LoadError::new(
            0,
            &program.name,
            "this kernel needs more registers than the emulator has rows".to_owned(),
        ));
    }
    let row = |reg: Reg| Reg {
        file: reg.file,
        index: rows[numbers.of(reg)],
    };
    program.presets = lowered
        .presets
        .iter()
        .map(|&(reg, preset)| (row(reg), preset))
        .collect();
    program.unwritten = unwritten.into_iter().map(|reg| row(reg).index).collect();
    program.registers = lowered.names.iter().map(|(_, name)| name.clone()).collect();
    program.shared_bytes = lowered.shared_bytes;
    program.local_bytes = lowered.local_bytes;
    program.shared_grain = lowered.shared_grain;
    program.texts = lowered.texts;
    let mut starts = Vec::new();
    for (b, block) in blocks.into_iter().enumerate() {
        starts.push(program.code.len() as u32);
        let mut classes = [0; Class::COUNT];
        let mut origin = Origin::default();
        for node in &block.nodes {
            classes[node.class as usize] += 1;
            origin = node.origin;
            let inst = encode(node, &row, &mut program.sides);
            if matches!(inst.op, Op::Mov32 | Op::Mov64 | Op::MovP) && inst.d == inst.a {
                continue;
            }
            program.code.push(inst);
            program.origins.push(node.origin);
        }
        let inst = match &block.end {
            Some(node) => {
                classes[node.class as usize] += 1;
                origin = node.origin;
                let mut inst = encode(node, &row, &mut program.sides);
                inst.x = b as u32;
                inst
            }
            None => Inst {
                op: Op::Branch,
                guard: UNGUARDED,
                d: 0,
                a: 0,
                b: 0,
                c: 0,
                x: b as u32,
            },
        };
        program.code.push(inst);
        program.origins.push(origin);
        let next = block.next.unwrap_or(0) as u32;
        let targets: Vec<u32> = block.targets.iter().map(|&t| t as u32).collect();
        program.terminators.push(Terminator {
            // A block without a branch goes on to the next.
            targets: if block.end.is_none() {
                vec![next]
            } else {
                targets
            },
            next,
        });
        program.block_sizes.push(block.nodes.len() as u32 + 1);
        program.block_classes.push(classes);
    }
    for terminator in &mut program.terminators {
        for target in &mut terminator.targets {
            *target = starts[*target as usize];
        }
        terminator.next = starts[terminator.next as usize];
    }
    Ok(program)
}

fn encode(node: &Node, row: &impl Fn(Reg) -> Reg, sides: &mut Vec<Side>) -> Inst {
    let get = |list: &[Reg], i: usize| list.get(i).map_or(0, |&reg| row(reg).index as u16);
    let mut inst = Inst {
        op: node.op,
        guard: node.guard.map_or(UNGUARDED, |(reg, negated)| {
            row(reg).index as u16 * 2 + u16::from(negated)
        }),
        d: get(&node.dst, 0),
        a: get(&node.src, 0),
        b: get(&node.src, 1),
        c: get(&node.src, 2),
        x: node.x,
    };
    if let Some(kind) = node.side {
        inst.x = sides.len() as u32;
        sides.push(Side {
            kind,
            dst: node.dst.iter().map(|&reg| row(reg)).collect(),
            src: node.src.iter().map(|&reg| row(reg)).collect(),
        });
    }
    inst
}

/// The row of every register by number, and the number of rows of each file: a greedy colouring of the interference
/// graph, in the order of the text.
fn assign(blocks: &[Block], presets: &[(Reg, Preset)], numbers: &Numbers) -> (Vec<u32>, [u32; 3]) {
    let out = live_out(blocks, numbers);
    let mut neighbours = vec![Bits::new(numbers.total); numbers.total];
    let mut order = Vec::new();
    let mut hints: HashMap<usize, usize> = HashMap::new();
    let mut seen = Bits::new(numbers.total);
    for (block, out) in blocks.iter().zip(&out) {
        let mut live = out.clone();
        for node in nodes(block).rev() {
            // A write meets all that lives after it, and the instruction's other results.
            for &dst in &node.dst {
                live.set(numbers.of(dst));
            }
            for &dst in &node.dst {
                neighbours[numbers.of(dst)].merge(&live);
            }
            for &dst in &node.dst {
                live.clear(numbers.of(dst));
            }
            for src in reads(node) {
                live.set(numbers.of(src));
            }
        }
        for node in nodes(block) {
            for reg in reads(node).chain(node.dst.iter().copied()) {
                let number = numbers.of(reg);
                if !seen.has(number) {
                    seen.set(number);
                    order.push(number);
                }
            }
            for &dst in &node.dst {
                if let Some(src) = node.src.iter().rfind(|src| src.file == dst.file) {
                    hints.entry(numbers.of(dst)).or_insert(numbers.of(*src));
                }
            }
        }
    }
    // Interference holds both ways.
    for number in 0..numbers.total {
        for other in neighbours[number].clone().ones() {
            neighbours[other].set(number);
        }
    }
    let mut rows = vec![0; numbers.total];
    let mut sizes = [0u32; 3];
    let mut coloured = Bits::new(numbers.total);
    let mut fixed = [0u32; 3];
    for &(reg, _) in presets {
        let size = &mut sizes[reg.file as usize];
        rows[numbers.of(reg)] = *size;
        *size += 1;
        fixed[reg.file as usize] = *size;
        seen.clear(numbers.of(reg));
    }
    for number in order.into_iter().filter(|&n| seen.has(n)) {
        let file = numbers.file(number);
        let mut taken = vec![false; sizes[file] as usize + 1];
        for other in neighbours[number].ones() {
            if coloured.has(other) && numbers.file(other) == file {
                taken[rows[other] as usize] = true;
            }
        }
        // A sum that takes its operand's row touches less memory; constants keep theirs.
        let hinted = hints
            .get(&number)
            .filter(|&&src| coloured.has(src))
            .map(|&src| rows[src])
            .filter(|&row| !taken[row as usize]);
        let first = (fixed[file]..).find(|&row| taken.get(row as usize) != Some(&true));
        let row = hinted.or(first).unwrap_or(0);
        rows[number] = row;
        sizes[file] = sizes[file].max(row + 1);
        coloured.set(number);
    }
    (rows, sizes)
}
