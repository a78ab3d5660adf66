//! How the window of a convolution or a pool moves, as its node says; and attributes in general.

use super::Unfit;
use super::flow::{Layout, View};
use crate::backend::geometry::{Padding, Window};
use crate::graph::Square;
use crate::weights::formats::onnx::{Attribute, Node};

pub(super) fn wrong(
    what: &str,
    found: impl std::fmt::Debug,
    expected: impl std::fmt::Debug,
) -> Unfit {
    Unfit::because(format!("has {what} {found:?}, not {expected:?}"))
}

pub(super) fn int(node: &Node, name: &str, absent: i64) -> i64 {
    match node.attribute(name) {
        Some(Attribute::Int(value)) => *value,
        // A wrong type is no value that anybody asks for.
        Some(_) => i64::MIN,
        None => absent,
    }
}

/// A node's window, with what is padded before it.
pub(super) struct Moves {
    /// Rows and columns.
    pub(super) kernel: [i64; 2],
    strides: [i64; 2],
    /// Top, left, bottom, right.
    pub(super) pads: [i64; 4],
}

impl Moves {
    /// The window of a node that reads an image of `h` x `w` pixels; its size is `kernel` where the node does not say.
    pub(super) fn of(
        node: &Node,
        view: View<'_>,
        (h, w): (usize, usize),
        kernel: [i64; 2],
    ) -> Result<Self, Unfit> {
        if view.layout == Layout::Hwc || view.flat && h * w > 1 {
            return Err(Unfit::because("reads no N x C x H x W"));
        }
        let mut moves = Moves {
            kernel: ints(node, "kernel_shape", kernel)?,
            strides: ints(node, "strides", [1; 2])?,
            pads: [0; 4],
        };
        if moves.strides.iter().any(|stride| *stride < 1) {
            return Err(wrong("the strides", moves.strides, [1; 2]));
        }
        let dilations = ints(node, "dilations", [1; 2])?;
        if dilations != [1; 2] {
            return Err(wrong("the dilations", dilations, [1; 2]));
        }
        let [top, left, bottom, right] =
            (view.pads).map(|pad| i64::try_from(pad).unwrap_or(i64::MAX));
        let (h, w) = (h as i64, w as i64);
        let padded = [
            h.saturating_add(top).saturating_add(bottom),
            w.saturating_add(left).saturating_add(right),
        ];
        let own = match node.attribute("auto_pad") {
            None => ints(node, "pads", [0; 4])?,
            Some(Attribute::Text(how)) => match &how[..] {
                "NOTSET" => ints(node, "pads", [0; 4])?,
                "VALID" => [0; 4],
                "SAME_UPPER" | "SAME_LOWER" => moves.same_pads(padded, how == "SAME_UPPER"),
                _ => return Err(wrong("auto_pad", how, "NOTSET")),
            },
            Some(_) => return Err(Unfit::because("has an auto_pad that is no text")),
        };
        moves.pads = [top, left, bottom, right];
        for (pad, own) in moves.pads.iter_mut().zip(own) {
            *pad = pad.saturating_add(own);
        }
        // Rounding up makes a difference only where the last window is not whole.
        let whole = (0..2).all(|axis| {
            let [before, behind] = [own[axis], own[axis + 2]];
            let size = padded[axis].saturating_add(before).saturating_add(behind);
            size.saturating_sub(moves.kernel[axis]) % moves.strides[axis] == 0
        });
        match int(node, "ceil_mode", 0) {
            0 => Ok(moves),
            1 if whole => Ok(moves),
            _ => Err(Unfit::because("rounds the size of its output up")),
        }
    }

    /// The padding with which the output has ceil(size / stride) rows and columns.
    fn same_pads(&self, padded: [i64; 2], more_behind: bool) -> [i64; 4] {
        let total = |axis: usize| {
            let (size, stride) = (padded[axis], self.strides[axis]);
            let last = (size.saturating_sub(1) / stride).saturating_mul(stride);
            last.saturating_add(self.kernel[axis])
                .saturating_sub(size)
                .max(0)
        };
        let [rows, columns] = [total(0), total(1)];
        let less = [rows / 2, columns / 2];
        let more = [rows - rows / 2, columns - columns / 2];
        match more_behind {
            true => [less[0], less[1], more[0], more[1]],
            false => [more[0], more[1], less[0], less[1]],
        }
    }

    /// The same for a layer here, whose windows are square and move as far down as to the right.
    pub(super) fn square(&self) -> Result<Square, Unfit> {
        let two = |what: &str, [rows, columns]: [i64; 2]| match usize::try_from(rows) {
            Ok(n) if rows == columns => Ok(n),
            _ => Err(wrong(what, [rows, columns], [rows; 2])),
        };
        let kernel = two("the kernel", self.kernel)?;
        let stride = two("the strides", self.strides)?;
        let pads = self.pads.map(usize::try_from);
        let [Ok(top), Ok(left), Ok(bottom), Ok(right)] = pads else {
            return Err(Unfit::because(format!("has the pads {:?}", self.pads)));
        };
        let pad = Padding {
            top,
            bottom,
            left,
            right,
        };
        Ok(Square::new(kernel, stride, pad))
    }
}

/// The node's window is `window`, with what is padded before it.
pub(super) fn same_window(node: &Node, view: View<'_>, window: &Window) -> Result<(), Unfit> {
    let Padding {
        top,
        bottom,
        left,
        right,
    } = window.pad;
    let kernel = [window.r as i64, window.s as i64];
    let found = Moves::of(node, view, (window.h, window.w), kernel)?;
    let strides = [window.stride as i64; 2];
    let pads = [top, left, bottom, right].map(|n| n as i64);
    if found.strides != strides {
        Err(wrong("the strides", found.strides, strides))
    } else if found.kernel != kernel {
        Err(wrong("the kernel", found.kernel, kernel))
    } else if found.pads != pads {
        Err(wrong("the pads", found.pads, pads))
    } else {
        Ok(())
    }
}

/// An attribute of N numbers.
fn ints<const N: usize>(node: &Node, name: &str, absent: [i64; N]) -> Result<[i64; N], Unfit> {
    match node.attribute(name) {
        None => Ok(absent),
        Some(Attribute::Ints(ints)) => match <[i64; N]>::try_from(&ints[..]) {
            Ok(ints) => Ok(ints),
            Err(_) => Err(Unfit::because(format!("has {} {name}", ints.len()))),
        },
        Some(_) => Err(Unfit::because(format!(
            "has {name} that are no whole numbers"
        ))),
    }
}
