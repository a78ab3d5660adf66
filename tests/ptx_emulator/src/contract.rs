//! Fuses sums of products, as the assembler may.
//!
//! A `mul` and an `add` or `sub` that do not say how they round may become one fused operation, with one rounding instead
//! of two. The compiler has fused most of them already; the assembler may fuse any of the others. Here every product
//! that is used once, by a sum of the same basic block, is fused, so that a test can show that no result depends on it.

use std::collections::HashMap;

use crate::counters::Class;
use crate::lane::float;
use crate::layout::Block;
use crate::lower::{FREE, Lowered, Node};
use crate::program::{File, Op, Reg, SideKind};

/// How often each register is written and read.
fn uses(blocks: &[Block]) -> HashMap<Reg, (u32, u32)> {
    let mut uses: HashMap<Reg, (u32, u32)> = HashMap::new();
    for node in blocks.iter().flat_map(|b| b.nodes.iter().chain(&b.end)) {
        for &dst in &node.dst {
            uses.entry(dst).or_default().0 += 1;
        }
        for &src in &node.src {
            uses.entry(src).or_default().1 += 1;
        }
    }
    uses
}

fn is_free(node: &Node, ops: [Op; 2]) -> bool {
    ops.contains(&node.op) && node.x == FREE && node.guard.is_none()
}

/// Fuses what may be fused.
pub(crate) fn contract(blocks: &mut [Block], lowered: &mut Lowered) {
    let uses = uses(blocks);
    for block in blocks {
        // The products that may still be fused, by their register.
        let mut products: HashMap<Reg, Node> = HashMap::new();
        let mut nodes: Vec<Node> = Vec::with_capacity(block.nodes.len());
        for mut node in std::mem::take(&mut block.nodes) {
            let sum = is_free(&node, [Op::AddF, Op::AddD]);
            let difference = is_free(&node, [Op::SubF, Op::SubD]);
            let product = (node.src.iter()).position(|reg| products.contains_key(reg));
            if let (true, Some(n)) = (sum || difference, product) {
                let factors = products.remove(&node.src[n]).map(|product| {
                    nodes.retain(|other| other.dst != product.dst);
                    product.src
                });
                if let Some(&[mut a, b]) = factors.as_deref() {
                    let mut c = node.src[1 - n];
                    if difference {
                        // x - c or c - x.
                        let negated = if n == 0 { &mut c } else { &mut a };
                        let (negation, negative) = negation(&node, *negated, lowered);
                        nodes.push(negation);
                        *negated = negative;
                    }
                    let single = node.dst[0].file == File::R32;
                    node.op = if single { Op::FmaF } else { Op::FmaD };
                    node.class = if single { Class::Fma } else { Class::F64 };
                    node.src = vec![a, b, c];
                }
            }
            // A product can no longer be fused after a factor gets another value.
            products.retain(|_, product| !node.dst.iter().any(|dst| product.src.contains(dst)));
            if is_free(&node, [Op::MulF, Op::MulD])
                && uses.get(&node.dst[0]) == Some(&(1, 1))
                && !node.src.contains(&node.dst[0])
            {
                products.insert(node.dst[0], node.clone());
            }
            nodes.push(node);
        }
        block.nodes = nodes;
    }
}

/// A node beside `node` that negates a register, and its result.
fn negation(node: &Node, reg: Reg, lowered: &mut Lowered) -> (Node, Reg) {
    let negative = lowered.fresh(reg.file);
    let (op, side) = match reg.file {
        File::R64 => (Op::Lane, Some(SideKind::Lane(float::neg64, 0))),
        _ => (Op::NegF, None),
    };
    let negation = Node {
        op,
        dst: vec![negative],
        src: vec![reg],
        x: 0,
        side,
        class: Class::Helper,
        ..node.clone()
    };
    (negation, negative)
}
