//! Registers to rows: liveness over the ordered blocks, then a linear scan. NVRTC's PTX names thousands of registers,
//! of which a hundred or so live at once; compacted, a warp's rows stay in the first-level cache.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashMap};

use crate::counters::Class;
use crate::fault::LoadError;
use crate::layout::{Block, blocks};
use crate::lower::{Lowered, Node};
use crate::program::{Inst, Op, Origin, Preset, Program, Reg, Side, Terminator, UNGUARDED};

/// Numbers all registers of the three files in one range.
struct Numbers {
    first: [usize; 3],
    total: usize,
}

impl Numbers {
    fn of(&self, reg: Reg) -> usize {
        self.first[reg.file as usize] + reg.index as usize
    }

    fn file(&self, number: usize) -> usize {
        (0..3).rev().find(|&f| number >= self.first[f]).unwrap_or(0)
    }
}

#[derive(Clone)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(n: usize) -> Self {
        Self(vec![0; n.div_ceil(64)])
    }

    fn has(&self, i: usize) -> bool {
        self.0[i / 64] >> (i % 64) & 1 == 1
    }

    fn set(&mut self, i: usize) {
        self.0[i / 64] |= 1 << (i % 64);
    }

    fn clear(&mut self, i: usize) {
        self.0[i / 64] &= !(1 << (i % 64));
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
                for (word, &more) in live.0.iter_mut().zip(&live_in[next].0) {
                    *word |= more;
                }
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
pub(crate) fn compact(mut lowered: Lowered, mut program: Program) -> Result<Program, LoadError> {
    let blocks = blocks(&mut lowered);
    let counts = lowered.counts.map(|n| n as usize);
    let numbers = Numbers {
        first: [0, counts[0], counts[0] + counts[1]],
        total: counts.iter().sum(),
    };
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

/// The row of every register by number, and the number of rows of each file.
fn assign(blocks: &[Block], presets: &[(Reg, Preset)], numbers: &Numbers) -> (Vec<u32>, [u32; 3]) {
    const NEVER: (usize, usize) = (usize::MAX, 0);
    let mut intervals = vec![NEVER; numbers.total];
    let mut touch = |number: usize, at: usize| {
        let (start, end) = &mut intervals[number];
        *start = (*start).min(at);
        *end = (*end).max(at);
    };
    let out = live_out(blocks, numbers);
    // An instruction at position p reads at 2p and writes at 2p + 1.
    let mut position = 0;
    let mut hints: HashMap<usize, usize> = HashMap::new();
    for (b, block) in blocks.iter().enumerate() {
        let start = 2 * position;
        for node in nodes(block) {
            for src in reads(node) {
                touch(numbers.of(src), 2 * position);
            }
            for &dst in &node.dst {
                touch(numbers.of(dst), 2 * position + 1);
                if let Some(src) = node.src.iter().rfind(|src| src.file == dst.file) {
                    hints.insert(numbers.of(dst), numbers.of(*src));
                }
            }
            position += 1;
        }
        // A block without instructions still takes a position for what lives through it.
        position += 1;
        let end = 2 * position - 1;
        for number in out[b].ones() {
            touch(number, end);
        }
        let mut live = out[b].clone();
        for node in nodes(block).rev() {
            for &dst in &node.dst {
                live.clear(numbers.of(dst));
            }
            for src in reads(node) {
                live.set(numbers.of(src));
            }
        }
        for number in live.ones() {
            touch(number, start);
        }
    }
    let mut rows = vec![0; numbers.total];
    let mut sizes = [0u32; 3];
    let mut fixed = Bits::new(numbers.total);
    for &(reg, _) in presets {
        let size = &mut sizes[reg.file as usize];
        rows[numbers.of(reg)] = *size;
        *size += 1;
        fixed.set(numbers.of(reg));
    }
    let mut order: Vec<usize> = (0..numbers.total)
        .filter(|&n| intervals[n] != NEVER && !fixed.has(n))
        .collect();
    order.sort_by_key(|&n| intervals[n].0);
    let mut free: [BTreeSet<u32>; 3] = Default::default();
    let mut active: BinaryHeap<Reverse<(usize, usize)>> = BinaryHeap::new();
    for number in order {
        let (start, end) = intervals[number];
        while let Some(&Reverse((until, other))) = active.peek() {
            if until >= start {
                break;
            }
            active.pop();
            free[numbers.file(other)].insert(rows[other]);
        }
        let file = numbers.file(number);
        // A copy or sum that takes its operand's row touches less memory.
        let hinted = hints
            .get(&number)
            .map(|&src| rows[src])
            .filter(|row| free[file].contains(row));
        let row = hinted.or_else(|| free[file].first().copied());
        rows[number] = match row {
            Some(row) => {
                free[file].remove(&row);
                row
            }
            None => {
                sizes[file] += 1;
                sizes[file] - 1
            }
        };
        active.push(Reverse((end, number)));
    }
    (rows, sizes)
}
