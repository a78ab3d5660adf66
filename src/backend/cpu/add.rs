//! Addition of residual branches, storing of pending values, and the passing on of gradients.
//!
//! y = activation(a + b) over rows of C channels (NHWC); a and b may be pending. The backward direction is the
//! identity but for what is pending. All of it is bound by memory: one pass over each tensor, block by block
//! ([`tiles`](super::tiles)).

use super::Buffer;
use super::machine::vectorised;
use super::pending::{Closer, GradReader, Reader, sliced};
use super::tiles;
use crate::backend::{AddDgrad, AddFprop, CloseGrad};

pub(super) fn fprop(op: AddFprop<'_, Buffer>) {
    let AddFprop {
        rows,
        a,
        b,
        activation,
        y,
    } = op;
    let c = rows.c;
    let a = Reader::new(a, c);
    let b = b.map(|b| Reader::new(b, c));
    let act = sliced(activation, c);
    tiles::for_blocks(rows, y.tensor_mut(), false, |block, y| {
        match b {
            // Addition commutes to the bit, so the operand that needs no work is the one added from memory.
            Some(b) if a.is_plain() && !b.is_plain() => {
                b.read(block.clone(), y);
                a.raw.add_to(block.start * c..block.end * c, y);
            }
            Some(b) if b.is_plain() => {
                a.read(block.clone(), y);
                b.raw.add_to(block.start * c..block.end * c, y);
            }
            Some(b) => tiles::with_workspace(y.len(), |other| {
                a.read(block.clone(), y);
                b.read(block, other);
                tiles::add_to(y, other);
            }),
            None => a.read(block, y),
        }
        vectorised(
            #[inline(always)]
            || act.apply(y, c),
        );
    });
}

pub(super) fn dgrad(scratch: &mut Buffer, op: AddDgrad<'_, Buffer>) {
    let AddDgrad { rows, dy, dx } = op;
    let dy = GradReader::new(dy, rows.c);
    tiles::write_grad(scratch, rows, dx, |block, dx| dy.read(block, dx));
}

pub(super) fn close_grad(scratch: &mut Buffer, op: CloseGrad<'_, Buffer>) {
    let CloseGrad { rows, g, close } = op;
    let (closer, sums) = Closer::new(close, rows.c);
    tiles::close_tiles(scratch, rows, g, true, &closer, sums, |_, _| {});
}
