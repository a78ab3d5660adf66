//! The memory plan: which tensor lives where, before anything is allocated.
//!
//! A tensor lives from the first instruction that touches it to the last. Tensors whose lives do not meet share a
//! slot; a slot is as large as its largest tensor. All sizes grow with the batch, so one assignment serves every
//! batch size, and the largest batch that fits follows by division.

use super::program::Program;

/// Where each tensor lives, and how large the slots are for one image.
#[derive(Clone, Debug)]
pub struct MemoryPlan {
    /// Slot of each tensor; absent where no instruction touches it.
    pub(crate) slot_of: Vec<Option<usize>>,
    /// Bytes of each slot for one image.
    pub(crate) slots: Vec<usize>,
    /// Bytes that do not depend on the batch: parameters, gradients, momentum, statistics, channel vectors.
    fixed: u64,
    /// Bytes of all tensors if none shared a slot, for one image.
    pub(crate) unshared: usize,
    /// Largest slots with the tensors they hold, for the table.
    rows: Vec<SlotRow>,
}

#[derive(Clone, Debug)]
struct SlotRow {
    bytes: usize,
    tensors: Vec<String>,
}

impl MemoryPlan {
    /// Plans a program; `fixed` bytes are needed besides its tensors.
    pub(crate) fn new(program: &Program, fixed: u64) -> Self {
        let lives = lives(program);
        let mut order: Vec<usize> = (0..lives.len()).filter(|t| lives[*t].is_some()).collect();
        let life = |t: &usize| lives[*t].expect("only living tensors are ordered");
        // Large ones first among those that begin together, so that small ones fill what is left.
        order.sort_by_key(|t| {
            (
                life(t).0,
                std::cmp::Reverse(program.tensors[*t].bytes()),
                *t,
            )
        });
        let mut slot_of = vec![None; lives.len()];
        let mut slots: Vec<usize> = Vec::new();
        let mut busy_until: Vec<usize> = Vec::new();
        for t in order {
            let (begin, end) = life(&t);
            let size = program.tensors[t].bytes();
            // The free slot that fits with least waste; else the one that needs least growth; else a new one.
            let free = (0..slots.len()).filter(|s| busy_until[*s] < begin);
            let best = free.min_by_key(|s| {
                let (have, need) = (slots[*s], size);
                (have < need, have.abs_diff(need), *s)
            });
            let slot = best.unwrap_or_else(|| {
                slots.push(0);
                busy_until.push(0);
                slots.len() - 1
            });
            slots[slot] = slots[slot].max(size);
            busy_until[slot] = end;
            slot_of[t] = Some(slot);
        }
        let mut rows: Vec<SlotRow> = slots
            .iter()
            .map(|bytes| SlotRow {
                bytes: *bytes,
                tensors: Vec::new(),
            })
            .collect();
        for (t, slot) in slot_of.iter().enumerate() {
            if let Some(slot) = slot {
                rows[*slot].tensors.push(program.tensors[t].name.clone());
            }
        }
        rows.sort_by_key(|row| std::cmp::Reverse(row.bytes));
        let unshared = slot_of
            .iter()
            .zip(&program.tensors)
            .filter_map(|(slot, tensor)| slot.map(|_| tensor.bytes()))
            .sum();
        MemoryPlan {
            slot_of,
            slots,
            fixed,
            unshared,
            rows,
        }
    }

    /// Bytes that every image of the batch costs.
    pub fn bytes_an_image(&self) -> u64 {
        self.slots.iter().sum::<usize>() as u64
    }

    /// Bytes of parameters and everything else that does not grow with the batch.
    pub fn fixed_bytes(&self) -> u64 {
        self.fixed
    }

    /// Bytes for a batch of `n`.
    pub fn bytes(&self, n: usize) -> u64 {
        self.fixed_bytes() + n as u64 * self.bytes_an_image()
    }

    /// The largest batch that fits `available` bytes.
    pub fn largest_batch(&self, available: u64) -> usize {
        let room = available.saturating_sub(self.fixed_bytes());
        (room / self.bytes_an_image().max(1)) as usize
    }

    /// The plan as a table of at most `limit` slots for a batch of `n`.
    pub fn table(&self, n: usize, limit: usize) -> String {
        let mib = |bytes: usize| n as f64 * bytes as f64 / f64::from(1 << 20);
        let mut text = String::from("      MiB  tensors that share the slot\n");
        for row in self.rows.iter().take(limit) {
            let shown: Vec<&str> = row.tensors.iter().take(4).map(String::as_str).collect();
            let more = row.tensors.len() - shown.len();
            let more = if more > 0 {
                format!(" and {more} more")
            } else {
                String::new()
            };
            text += &format!("{:9.1}  {}{more}\n", mib(row.bytes), shown.join(", "));
        }
        if self.rows.len() > limit {
            let rest = self.rows[limit..].iter().map(|row| row.bytes).sum();
            text += &format!(
                "{:9.1}  {} smaller slots\n",
                mib(rest),
                self.rows.len() - limit
            );
        }
        text += &format!(
            "{:9.1}  activations and gradients at batch {n} ({:.1} without sharing)\n",
            mib(self.slots.iter().sum()),
            mib(self.unshared)
        );
        text += &format!(
            "{:9.1}  parameters and what belongs to them\n",
            self.fixed_bytes() as f64 / f64::from(1 << 20)
        );
        text
    }
}

/// First and last instruction that touches each tensor. The input lives from before the first instruction; the
/// embedding and its gradient live across the head, which runs between the halves.
fn lives(program: &Program) -> Vec<Option<(usize, usize)>> {
    let mut lives: Vec<Option<(usize, usize)>> = vec![None; program.tensors.len()];
    let mut touch = |tensor: usize, at: usize| {
        let life = lives[tensor].get_or_insert((at, at));
        *life = (life.0.min(at), life.1.max(at));
    };
    touch(0, 0);
    for (i, instruction) in program.instructions.iter().enumerate() {
        for tensor in program.operands(instruction) {
            // Time 0 is the input's; forward and backward are one time apart for the head.
            let after_head = usize::from(i >= program.forward_len);
            touch(tensor, 1 + i + after_head);
        }
    }
    let head = 1 + program.forward_len;
    let output = &program.values[program.output];
    touch(output.tensor, head);
    if let Some(grad) = output.grad {
        touch(grad, head);
    }
    lives
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Element;
    use crate::graph::{lower, params::ParamTable};
    use crate::models::{self, Embedding};

    /// No two tensors that live at the same time share a slot, and sharing saves memory.
    #[test]
    fn slots_never_overlap_in_time() {
        let model = models::mobilefacenet(112, Embedding::GlobalDepthwise { size: 128 }).unwrap();
        let table = ParamTable::new(&model);
        let program = lower::training(&model, &table, Element::F32);
        let plan = MemoryPlan::new(&program, 0);
        let lives = lives(&program);
        for a in 0..lives.len() {
            for b in 0..a {
                if plan.slot_of[a].is_some() && plan.slot_of[a] == plan.slot_of[b] {
                    let ((a0, a1), (b0, b1)) = (lives[a].unwrap(), lives[b].unwrap());
                    assert!(a1 < b0 || b1 < a0, "{a} and {b} meet");
                }
            }
        }
        let shared: usize = plan.slots.iter().sum();
        assert!(shared < plan.unshared);
        assert_eq!(plan.largest_batch(plan.bytes(7) + 1), 7);
    }

    #[test]
    fn inference_needs_far_less_than_training() {
        let model = models::resnet50(112, Embedding::pool_dropout_dense(256)).unwrap();
        let table = ParamTable::new(&model);
        let training = MemoryPlan::new(&lower::training(&model, &table, Element::F32), 0);
        let (inference, _) = lower::inference(&model, &table, Element::F32);
        let inference = MemoryPlan::new(&inference, 0);
        assert!(inference.bytes_an_image() * 4 < training.bytes_an_image());
    }
}
