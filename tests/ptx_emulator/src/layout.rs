//! Basic blocks and their order.
//!
//! The interpreter always runs the lanes with the lowest program counter. Lanes that part at a branch then meet again
//! at the earliest place where they can, *if* the blocks stand in an order where every edge but a loop's back edge
//! goes forward and every loop is contiguous. NVRTC's text is not in such an order (it puts rare paths behind `ret`),
//! so the blocks are sorted here: reverse postorder, loops gathered.

use std::collections::HashMap;

use crate::lower::{Label, Lowered, Node, Step};
use crate::program::Op;

/// A basic block: its nodes, the branch at its end if there is one, and the blocks that may follow it.
#[derive(Debug, Default)]
pub(crate) struct Block {
    pub(crate) nodes: Vec<Node>,
    pub(crate) end: Option<Node>,
    /// Blocks of `end`'s targets, then the block of the lanes that do not branch.
    pub(crate) targets: Vec<usize>,
    pub(crate) next: Option<usize>,
}

impl Block {
    pub(crate) fn successors(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        self.targets.iter().copied().chain(self.next)
    }
}

/// The reachable blocks in the order in which they are to stand.
pub(crate) fn blocks(lowered: &mut Lowered) -> Vec<Block> {
    let blocks = split(lowered);
    let order = order(&blocks);
    let mut position = vec![usize::MAX; blocks.len()];
    for (new, &old) in order.iter().enumerate() {
        position[old] = new;
    }
    let mut slots: Vec<Option<Block>> = blocks.into_iter().map(Some).collect();
    order
        .iter()
        .filter_map(|&old| slots[old].take())
        .map(|mut block| {
            for target in block.targets.iter_mut().chain(block.next.iter_mut()) {
                *target = position[*target];
            }
            block
        })
        .collect()
}

fn split(lowered: &mut Lowered) -> Vec<Block> {
    let mut blocks = vec![Block::default()];
    let mut at: HashMap<Label, usize> = HashMap::new();
    // Whether the block under construction has ended.
    let mut ended = false;
    for step in std::mem::take(&mut lowered.steps) {
        let last = blocks.len() - 1;
        match step {
            Step::Label(label) => {
                let fresh = blocks[last].nodes.is_empty() && !ended;
                if !fresh {
                    blocks.push(Block::default());
                    ended = false;
                }
                at.insert(label, blocks.len() - 1);
            }
            Step::Node(node) => {
                if ended {
                    blocks.push(Block::default());
                    ended = false;
                }
                let last = blocks.len() - 1;
                if matches!(node.op, Op::Branch | Op::Switch | Op::Exit) {
                    blocks[last].end = Some(node);
                    ended = true;
                } else {
                    blocks[last].nodes.push(node);
                }
            }
        }
    }
    let count = blocks.len();
    for (i, block) in blocks.iter_mut().enumerate() {
        let falls = match &block.end {
            None => true,
            Some(end) => {
                block.targets = end.targets.iter().map(|label| at[label]).collect();
                end.guard.is_some()
            }
        };
        block.next = (falls && i + 1 < count).then_some(i + 1);
    }
    blocks
}

/// Depth-first search from the entry: postorder and back edges (from, to).
fn search(blocks: &[Block]) -> (Vec<usize>, Vec<(usize, usize)>) {
    let mut postorder = Vec::new();
    let mut back = Vec::new();
    // 0 unseen, 1 on the stack, 2 done.
    let mut state = vec![0u8; blocks.len()];
    let mut stack = vec![(0, blocks[0].successors().collect::<Vec<_>>())];
    state[0] = 1;
    while let Some((block, rest)) = stack.last_mut() {
        let block = *block;
        if rest.is_empty() {
            postorder.push(block);
            state[block] = 2;
            stack.pop();
            continue;
        }
        let next = rest.remove(0);
        match state[next] {
            0 => {
                state[next] = 1;
                stack.push((next, blocks[next].successors().collect()));
            }
            1 => back.push((block, next)),
            _ => {}
        }
    }
    (postorder, back)
}

fn order(blocks: &[Block]) -> Vec<usize> {
    let (postorder, back) = search(blocks);
    let mut predecessors = vec![Vec::new(); blocks.len()];
    for &block in &postorder {
        for next in blocks[block].successors() {
            predecessors[next].push(block);
        }
    }
    // The loop of a header: all that reaches a back edge to it without passing it.
    let mut loops: HashMap<usize, Vec<bool>> = HashMap::new();
    for (latch, header) in back {
        let members = loops
            .entry(header)
            .or_insert_with(|| vec![false; blocks.len()]);
        members[header] = true;
        let mut work = vec![latch];
        while let Some(block) = work.pop() {
            if !std::mem::replace(&mut members[block], true) {
                work.extend(&predecessors[block]);
            }
        }
    }
    let reversed: Vec<usize> = postorder.into_iter().rev().collect();
    let mut placed = vec![false; blocks.len()];
    let mut order = Vec::with_capacity(reversed.len());
    gather(&reversed, &loops, &mut placed, &mut order, None);
    order
}

/// Appends `list` in order, but each loop as a whole where its header stands.
fn gather(
    list: &[usize],
    loops: &HashMap<usize, Vec<bool>>,
    placed: &mut [bool],
    order: &mut Vec<usize>,
    within: Option<usize>,
) {
    for &block in list {
        if placed[block] {
            continue;
        }
        match loops.get(&block) {
            Some(members) if within != Some(block) => {
                let inner: Vec<usize> = list.iter().copied().filter(|&b| members[b]).collect();
                gather(&inner, loops, placed, order, Some(block));
            }
            _ => {
                placed[block] = true;
                order.push(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(edges: &[&[usize]]) -> Vec<Block> {
        edges
            .iter()
            .map(|targets| Block {
                targets: targets.to_vec(),
                ..Block::default()
            })
            .collect()
    }

    #[test]
    fn rare_paths_move_before_their_join_and_loops_stay_together() {
        // 0 branches to the rare path 3, which returns to 2.
        assert_eq!(order(&graph(&[&[3, 1], &[2], &[], &[2]])), [0, 1, 3, 2]);
        // A loop 1..3 with an exit 4 in the middle of its text.
        let blocks = order(&graph(&[&[1], &[2, 4], &[3], &[1, 5], &[5], &[]]));
        let position = |b| blocks.iter().position(|&x| x == b).unwrap();
        assert!(
            position(4) > position(3) && position(5) > position(4),
            "{blocks:?}"
        );
    }
}
