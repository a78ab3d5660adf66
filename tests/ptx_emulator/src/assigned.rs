//! Finds registers that are read before they are written.
//!
//! The control-flow graph shows which reads may meet a register without a value. Such a read is not yet an error. If a
//! value is set under a condition and used under the same condition, some path skips the write and reaches the use, but
//! no thread takes it; optimised code is full of such paths. Nor is every use an error: the compiler computes with
//! values that it then does not select. So each register in question gets a predicate, its shadow, which says lane by
//! lane whether the register holds a value. Arithmetic passes shadows on. A value that leaves the registers (through a
//! store, an address, a branch, an exchange, a matrix product) is checked by a node before that use. Registers that are
//! never in question cost nothing.

use std::collections::HashMap;

use crate::compact::{Bits, Numbers};
use crate::counters::Class;
use crate::layout::Block;
use crate::lower::{Lowered, Node};
use crate::program::{File, Op, Preset, Reg, SideKind};

/// Whether a node only computes its results from its sources.
fn is_pure(node: &Node) -> bool {
    !matches!(
        node.op,
        Op::Load | Op::Store | Op::Side | Op::Branch | Op::Switch | Op::Exit
    )
}

/// Updates the registers that may have no value, after a node.
fn transfer(node: &Node, open: &mut Bits, numbers: &Numbers) {
    let undefined = is_pure(node) && node.src.iter().any(|&r| open.has(numbers.of(r)));
    for &dst in &node.dst {
        if undefined {
            open.set(numbers.of(dst));
        } else if node.guard.is_none() {
            open.clear(numbers.of(dst));
        }
    }
}

/// The registers that may have no value at the beginning of each block.
fn open_in(blocks: &[Block], presets: &[(Reg, Preset)], numbers: &Numbers) -> Vec<Bits> {
    let mut open = vec![Bits::new(numbers.total); blocks.len()];
    for number in 0..numbers.total {
        open[0].set(number);
    }
    for &(reg, _) in presets {
        open[0].clear(numbers.of(reg));
    }
    let mut changed = true;
    while changed {
        changed = false;
        for (b, block) in blocks.iter().enumerate() {
            let mut out = open[b].clone();
            for node in block.nodes.iter().chain(&block.end) {
                transfer(node, &mut out, numbers);
            }
            for next in block.successors() {
                changed |= open[next].merge(&out);
            }
        }
    }
    open
}

/// Shadows under construction.
struct Shadows<'a> {
    lowered: &'a mut Lowered,
    of: HashMap<Reg, Reg>,
    made_of: HashMap<Reg, Reg>,
    always: Reg,
}

impl Shadows<'_> {
    /// The register that the missing value in `reg` comes from.
    fn root(&self, reg: Reg) -> Reg {
        let (mut root, mut way) = (reg, vec![reg]);
        while let Some(&source) = self.made_of.get(&root).filter(|next| !way.contains(next)) {
            root = source;
            way.push(root);
        }
        root
    }

    /// The shadow of a register in question, else the predicate that is always true.
    fn shadow(&self, reg: Reg, open: bool) -> Reg {
        match self.of.get(&reg) {
            Some(&shadow) if open => shadow,
            _ => self.always,
        }
    }

    /// The nodes to insert before a node: checks of its sources, then the shadows of its results.
    fn before(&mut self, node: &Node, open: &Bits, numbers: &Numbers, out: &mut Vec<Node>) {
        let is_open = |reg: Reg| open.has(numbers.of(reg));
        let mut check = |this: &Self, reg: Reg, guard: Option<(Reg, bool)>| {
            out.push(Node {
                guard,
                side: Some(SideKind::Written {
                    register: this.lowered.name_of(reg),
                    root: this.lowered.name_of(this.root(reg)),
                }),
                ..beside(node, Op::Side, vec![], vec![this.shadow(reg, true)])
            });
        };
        if let Some((guard, _)) = node.guard.filter(|&(reg, _)| is_open(reg)) {
            check(self, guard, None);
        }
        if !is_pure(node) {
            for (n, &reg) in node.src.iter().enumerate() {
                if is_open(reg) && !node.src[..n].contains(&reg) {
                    check(self, reg, node.guard);
                }
            }
        }
        for &dst in &node.dst {
            let Some(&to) = self.of.get(&dst) else {
                continue;
            };
            let known = self.result(node, &is_open, out);
            out.push(beside(node, Op::MovP, vec![to], vec![known]));
        }
    }

    /// A predicate that says whether a node's result has a value.
    fn result(&mut self, node: &Node, is_open: &impl Fn(Reg) -> bool, out: &mut Vec<Node>) -> Reg {
        if !is_pure(node) || !node.src.iter().any(|&reg| is_open(reg)) {
            return self.always;
        }
        let mut combine = |this: &mut Self, op: Op, src: Vec<Reg>| {
            let d = this.lowered.fresh(File::Pred);
            out.push(Node {
                guard: None,
                ..beside(node, op, vec![d], src)
            });
            d
        };
        let shadow: Vec<Reg> = (node.src.iter())
            .map(|&reg| self.shadow(reg, is_open(reg)))
            .collect();
        match (node.op, &node.src[..], &shadow[..]) {
            // Only the selected source counts: p and a's shadow, or not p and b's.
            (Op::Sel32 | Op::Sel64, &[_, _, p], &[a, b, of_p]) => {
                let first = combine(self, Op::AndP, vec![p, a]);
                let not_p = combine(self, Op::NotP, vec![p]);
                let second = combine(self, Op::AndP, vec![not_p, b]);
                let either = combine(self, Op::OrP, vec![first, second]);
                combine(self, Op::AndP, vec![either, of_p])
            }
            // One operand may decide the result: false for `and`, true for `or`.
            (Op::AndP | Op::OrP, &[a, b], &[of_a, of_b]) => {
                let both = combine(self, Op::AndP, vec![of_a, of_b]);
                let mut known = both;
                for (value, shadow) in [(a, of_a), (b, of_b)] {
                    let decides = match node.op {
                        Op::AndP => combine(self, Op::NotP, vec![value]),
                        _ => value,
                    };
                    let alone = combine(self, Op::AndP, vec![decides, shadow]);
                    known = combine(self, Op::OrP, vec![known, alone]);
                }
                known
            }
            (_, _, shadows) => {
                let mut open: Vec<Reg> = shadows.to_vec();
                open.retain(|&shadow| shadow != self.always);
                open.dedup();
                (open.into_iter())
                    .reduce(|a, b| combine(self, Op::AndP, vec![a, b]))
                    .unwrap_or(self.always)
            }
        }
    }
}

/// A helper node beside `node`, with its guard.
fn beside(node: &Node, op: Op, dst: Vec<Reg>, src: Vec<Reg>) -> Node {
    Node {
        op,
        dst,
        src,
        x: 0,
        side: None,
        class: Class::Helper,
        targets: Vec::new(),
        ..node.clone()
    }
}

/// Adds the shadows and checks to a kernel's blocks. Returns the shadows. All are false when a block starts.
pub(crate) fn watch(blocks: &mut [Block], lowered: &mut Lowered, numbers: &Numbers) -> Vec<Reg> {
    let open = open_in(blocks, &lowered.presets, numbers);
    let mut read = Vec::new();
    // For each result that may have no value, a source that may have none.
    let mut made_of: HashMap<Reg, Reg> = HashMap::new();
    for (block, open) in blocks.iter().zip(&open) {
        let mut open = open.clone();
        for node in block.nodes.iter().chain(&block.end) {
            let guard = node.guard.map(|(reg, _)| reg);
            let sources = node.src.iter().copied().chain(guard);
            read.extend(sources.filter(|&reg| open.has(numbers.of(reg))));
            for &dst in node.dst.iter().filter(|_| is_pure(node)) {
                let mut sources = node.src.iter();
                let source = sources.find(|&&reg| reg != dst && open.has(numbers.of(reg)));
                if let Some(&source) = source {
                    made_of.entry(dst).or_insert(source);
                }
            }
            transfer(node, &mut open, numbers);
        }
    }
    if read.is_empty() {
        return Vec::new();
    }
    let always = lowered.constant_predicate(true);
    let mut shadows = Shadows {
        lowered,
        of: HashMap::new(),
        made_of,
        always,
    };
    for reg in read {
        if !shadows.of.contains_key(&reg) {
            let shadow = shadows.lowered.fresh(File::Pred);
            shadows.of.insert(reg, shadow);
        }
    }
    for (block, mut open) in blocks.iter_mut().zip(open) {
        let mut nodes = Vec::with_capacity(block.nodes.len());
        for node in std::mem::take(&mut block.nodes) {
            shadows.before(&node, &open, numbers, &mut nodes);
            transfer(&node, &mut open, numbers);
            nodes.push(node);
        }
        if let Some(end) = &block.end {
            shadows.before(end, &open, numbers, &mut nodes);
        }
        block.nodes = nodes;
    }
    let mut all: Vec<Reg> = shadows.of.into_values().collect();
    all.sort_by_key(|reg| reg.index);
    all
}
