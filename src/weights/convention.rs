//! What other frameworks call the parameters of our networks, and how they lay them out.
//!
//! Networks carry the layer names of the framework they come from, so a name follows from layer, parameter and
//! convention, and a layout is a permutation of axes:
//!
//! | ours | Keras | Torch |
//! |---|---|---|
//! | `layer/kernel`, convolution, K R S C | `layer/kernel:0`, R S C K | `layer.weight`, K C R S |
//! | `layer/depthwise_kernel`, R S C | `layer/depthwise_kernel:0`, R S C 1 | `layer.weight`, C 1 R S |
//! | `layer/kernel`, linear, K C | `layer/kernel:0`, C K | `layer.weight`, K C; behind a flatten K C H W, where ours is K H W C |
//! | `layer/bias` | `layer/bias:0` | `layer.bias` |
//! | `layer/gamma`, `beta` | `layer/gamma:0`, `beta:0` | `layer.weight`, `layer.bias` |
//! | `layer/moving_mean`, `moving_variance` | the same with `:0` | `layer.running_mean`, `layer.running_var` |
//! | `layer/alpha`, C | `layer/alpha:0`, 1 1 C | `layer.weight`, C |
//! | batch norm of fixed scale | no gamma (`scale=False`) | `layer.weight`, all 1 |
//! | batch norm of fixed scale and shift | neither | neither (`affine=False`) |
//!
//! A convolution in groups of two channels is two depthwise ones here, one of them on swapped channels (see
//! `models/insightface_mbf.rs`). They are one `layer.weight`, C 2 R S, under Torch's convention: filter k's slice j is of
//! the first where j is k's lowest bit, else of the second. The fixed filter that swaps has no name there.

use crate::backend::Activation;
use crate::graph::params::ParamTable;
use crate::graph::{Model, Node, NodeId, Op, Shape};
use crate::optim::Role;
use crate::{Error, Result};

/// Whose names and layouts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    /// Keras's, as in its HDF5 weights files.
    Keras,
    /// PyTorch's, as in a state dict.
    Torch,
    /// Our own.
    Own,
}

/// What a foreign tensor is here.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Place {
    /// Elements of the parameter slab from this offset on.
    Param(usize),
    /// Elements of the statistics slab from this offset on.
    Statistic(usize),
    /// A batch norm's scale or shift that is not learnt and not stored here: all its elements are this number.
    Fixed(f32),
    /// The same where the other side does not store it either.
    Implied(f32),
}

/// A parameter or statistic under a foreign name, in a foreign layout.
#[derive(Clone, Debug, PartialEq)]
pub struct Foreign {
    /// Its name there.
    pub name: String,
    /// Its shape there.
    pub shape: Vec<usize>,
    /// Its name here.
    pub ours: String,
    /// Where it is here.
    pub place: Place,
    /// Whether its size follows from the embedding's.
    pub embedding: bool,
    /// The axes here, as far as the other side tells them apart.
    axes: Vec<usize>,
    /// The axes there, as places in `axes`.
    order: Vec<usize>,
    /// Whether the axes are (half, R, S, C), where the other side has slices of pairs for halves.
    pairs: bool,
}

impl Foreign {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which of the other side's axes of a kernel counts its outputs.
    pub(crate) fn units_axis(&self) -> usize {
        let outputs = self.order.iter().position(|&axis| axis == 0);
        outputs.expect("an order has every axis")
    }

    /// The tensor's elements in our order.
    ///
    /// # Panics
    /// If `theirs` has another length.
    pub fn to_ours(&self, theirs: &[f32]) -> Vec<f32> {
        let mut ours = vec![0.0; self.len()];
        assert_eq!(theirs.len(), ours.len(), "{}", self.name);
        for (value, at) in theirs.iter().zip(self.walk()) {
            ours[at] = *value;
        }
        ours
    }

    /// Our elements in the tensor's order.
    ///
    /// # Panics
    /// If `ours` has another length.
    pub fn to_theirs(&self, ours: &[f32]) -> Vec<f32> {
        assert_eq!(ours.len(), self.len(), "{}", self.name);
        self.walk().map(|at| ours[at]).collect()
    }

    /// The tensor's elements in its own order, out of our slabs.
    pub fn read(&self, params: &[f32], statistics: &[f32]) -> Vec<f32> {
        match self.place {
            Place::Param(offset) => self.to_theirs(&params[offset..][..self.len()]),
            Place::Statistic(offset) => self.to_theirs(&statistics[offset..][..self.len()]),
            Place::Fixed(number) | Place::Implied(number) => vec![number; self.len()],
        }
    }

    /// Places in our order, in the order of the other side.
    fn walk(&self) -> impl Iterator<Item = usize> + use<'_> {
        let strides: Vec<usize> = (0..self.axes.len())
            .map(|axis| self.axes[axis + 1..].iter().product())
            .collect();
        let mut index = vec![0; self.order.len()];
        (0..self.len()).map(move |_| {
            let at = index.iter().zip(&self.order);
            let mut at: usize = at.map(|(i, &axis)| i * strides[axis]).sum();
            if self.pairs && index[0] % 2 == 1 {
                // Filters of odd channels have their own channel in the second slice.
                let half = strides[0];
                at = if at < half { at + half } else { at - half };
            }
            for (i, &axis) in index.iter_mut().zip(&self.order).rev() {
                *i += 1;
                if *i < self.axes[axis] {
                    break;
                }
                *i = 0;
            }
            at
        })
    }
}

/// Every parameter and statistic of a model under a convention's names, in the order of the model's layers.
pub fn foreign(model: &Model, table: &ParamTable, convention: Convention) -> Vec<Foreign> {
    let is_torch = convention == Convention::Torch;
    let mut all = Vec::new();
    for (index, node) in model.nodes().iter().enumerate() {
        let own = |name: &&str| belongs(name, &node.name);
        let params = table.params().iter().filter(|p| own(&p.name.as_str()));
        // Of a pair of halves the first stands for both, which lie side by side in the slab.
        let pairs = is_torch && (model.nodes().get(index + 1)).is_some_and(|n| swapped(model, n));
        for param in params {
            if is_torch && (param.role == Role::Fixed || swapped(model, node)) {
                continue;
            }
            let (axes, order, shape) = if pairs {
                let &[r, s, c] = &param.shape[..] else {
                    unreachable!("a depthwise filter has three axes")
                };
                (vec![2, r, s, c], vec![3, 0, 1, 2], vec![c, 2, r, s])
            } else {
                layout(model, node, &param.name, &param.shape, convention)
            };
            all.push(Foreign {
                name: rename(&node.name, &param.name, convention),
                shape,
                ours: param.name.clone(),
                place: Place::Param(param.offset),
                embedding: false,
                axes,
                order,
                pairs,
            });
        }
        let vector = |name: String, ours: String, place, len| Foreign {
            name,
            shape: vec![len],
            ours,
            place,
            embedding: false,
            axes: vec![len],
            order: vec![0],
            pairs: false,
        };
        if let Op::BatchNorm(batch_norm) = &node.op
            && is_torch
        {
            // PyTorch has both or neither.
            let place = match batch_norm.gamma || batch_norm.beta {
                true => Place::Fixed,
                false => Place::Implied,
            };
            let fixed = [
                ("gamma", batch_norm.gamma, 1.0),
                ("beta", batch_norm.beta, 0.0),
            ];
            for (parameter, _, number) in fixed.into_iter().filter(|(_, learnt, _)| !learnt) {
                let ours = format!("{}/{parameter}", node.name);
                let name = rename(&node.name, &ours, convention);
                all.push(vector(name, ours, place(number), node.shape.c));
            }
        }
        for s in (table.statistics().iter()).filter(|s| own(&s.name.as_str())) {
            let name = rename(&node.name, &s.name, convention);
            all.push(vector(
                name,
                s.name.clone(),
                Place::Statistic(s.offset),
                s.len,
            ));
        }
    }
    mark_embedding(model, &mut all);
    all
}

/// Whether a node is the half of a pair that reads swapped channels.
fn swapped(model: &Model, node: &Node) -> bool {
    let mut inputs = node.inputs.iter().map(|id| model.node(*id));
    matches!(node.op, Op::DepthwiseConv2d { .. }) && inputs.any(is_swap)
}

/// Whether the four nodes from `index` on are a convolution in groups of two channels: the swap, the depthwise convolution
/// that has the whole filter under Torch's convention, the one on swapped channels, and their sum.
pub(crate) fn pair_begins(model: &Model, index: usize) -> bool {
    let nodes = model.nodes();
    if !is_swap(&nodes[index]) {
        return false;
    }
    let [swap, own, other, sum] = [0, 1, 2, 3].map(|i| NodeId(index + i));
    let read_once = |id: NodeId| model.readers(id).count() == 1;
    sum.0 < nodes.len()
        && matches!(model.node(own).op, Op::DepthwiseConv2d { bias: false, .. })
        && model.node(own).op == model.node(other).op
        && model.node(own).inputs == model.node(swap).inputs
        && model.node(other).inputs == [swap]
        && model.node(sum).inputs == [own, other]
        && [swap, own, other].into_iter().all(read_once)
}

fn is_swap(node: &Node) -> bool {
    matches!(&node.op, Op::Conv2d { init, .. } if !init.is_learnt())
}

/// Checks that a network has channels swapped only in convolutions in groups of two, the only place that PyTorch and ONNX
/// have for it.
///
/// # Errors
/// A layer that swaps them elsewhere.
pub(crate) fn check_pairs(model: &Model) -> Result<()> {
    let nodes = model.nodes().iter().enumerate();
    let mut stray = nodes.filter(|(i, node)| is_swap(node) && !pair_begins(model, *i));
    match stray.next() {
        None => Ok(()),
        Some((_, node)) => Err(Error::Invalid(format!(
            "layer {} swaps channels outside a convolution in groups of two, which PyTorch and ONNX have no layer for",
            node.name
        ))),
    }
}

/// Whether layer `index` is the part of a convolution in groups of two that stands for all of it.
pub(crate) fn stands_for_pair(model: &Model, index: usize) -> bool {
    index > 0 && pair_begins(model, index - 1)
}

/// The batch norm that is the only reader of filter layer `index`, and so can be folded into it.
pub(crate) fn batch_norm_behind(model: &Model, index: usize) -> Option<usize> {
    // A convolution in groups of two ends with a sum.
    let last = if stands_for_pair(model, index) {
        index + 2
    } else {
        index
    };
    let mut readers = model.readers(NodeId(last));
    let (first, second) = (readers.next()?, readers.next());
    let is_batch_norm = matches!(model.node(first).op, Op::BatchNorm(_));
    (is_batch_norm && second.is_none()).then_some(first.0)
}

/// The filter layer whose only reader is batch norm `index`.
pub(crate) fn filter_before(model: &Model, index: usize) -> Option<usize> {
    let NodeId(before) = model.nodes()[index].inputs[0];
    let filter = match before.checked_sub(2) {
        Some(first) if stands_for_pair(model, first) => first,
        _ => before,
    };
    let is_filter = matches!(
        model.nodes()[filter].op,
        Op::Conv2d { .. } | Op::DepthwiseConv2d { .. } | Op::Linear { .. }
    );
    (is_filter && batch_norm_behind(model, filter) == Some(index)).then_some(filter)
}

/// Whether the parameter `name` is one of the layer `layer`.
fn belongs(name: &str, layer: &str) -> bool {
    name.rsplit_once('/').is_some_and(|(of, _)| of == layer)
}

/// Marks what the layer that makes the embedding has, and what stands behind it.
fn mark_embedding(model: &Model, all: &mut [Foreign]) {
    let nodes = model.nodes();
    let makes = |node: &Node| matches!(node.op, Op::Linear { .. } | Op::Conv2d { .. });
    let first = nodes.iter().rposition(makes).unwrap_or(nodes.len());
    for foreign in all {
        let layer = nodes[first..].iter();
        let mut layer = layer.filter(|node| belongs(&foreign.ours, &node.name));
        foreign.embedding = layer.next().is_some();
    }
}

fn rename(layer: &str, ours: &str, convention: Convention) -> String {
    let (_, parameter) = ours.rsplit_once('/').unwrap_or(("", ours));
    match convention {
        Convention::Own => ours.to_owned(),
        Convention::Keras => format!("{layer}/{parameter}:0"),
        Convention::Torch => {
            let parameter = match parameter {
                "moving_mean" => "running_mean",
                "moving_variance" => "running_var",
                "bias" | "beta" => "bias",
                _ => "weight",
            };
            format!("{layer}.{parameter}")
        }
    }
}

/// Our axes, the other side's order of them, and its shape.
fn layout(
    model: &Model,
    node: &Node,
    name: &str,
    shape: &[usize],
    convention: Convention,
) -> (Vec<usize>, Vec<usize>, Vec<usize>) {
    let is_kernel = name.ends_with("/kernel") || name.ends_with("/depthwise_kernel");
    let mut axes = shape.to_vec();
    let order = match (&node.op, convention) {
        (Op::Conv2d { .. }, Convention::Keras) if is_kernel => vec![1, 2, 3, 0],
        (Op::Conv2d { .. }, Convention::Torch) if is_kernel => vec![0, 3, 1, 2],
        (Op::DepthwiseConv2d { .. }, Convention::Torch) if is_kernel => vec![2, 0, 1],
        (Op::Linear { .. }, Convention::Keras) if is_kernel => vec![1, 0],
        (Op::Linear { units, .. }, Convention::Torch) if is_kernel => {
            let Shape { h, w, c } = flattened(model, node);
            axes = vec![*units, h * w, c];
            vec![0, 2, 1]
        }
        _ => (0..axes.len()).collect(),
    };
    let mut theirs: Vec<usize> = order.iter().map(|&axis| axes[axis]).collect();
    match (&node.op, convention) {
        (Op::DepthwiseConv2d { .. }, Convention::Keras) if is_kernel => theirs.push(1),
        (Op::DepthwiseConv2d { .. }, Convention::Torch) if is_kernel => theirs.insert(1, 1),
        (Op::Linear { .. }, Convention::Torch) if is_kernel => {
            theirs = shape.to_vec();
        }
        (Op::Activation(Activation::PRelu(_)), Convention::Keras) => theirs = vec![1, 1, axes[0]],
        _ => {}
    }
    (axes, order, theirs)
}

/// The shape in front of the flatten that a linear layer reads, or of its input where there is none.
fn flattened(model: &Model, node: &Node) -> Shape {
    let mut input: NodeId = node.inputs[0];
    loop {
        let before = model.node(input);
        match before.op {
            Op::Dropout { .. } => input = before.inputs[0],
            Op::Flatten => return model.node(before.inputs[0]).shape,
            _ => return before.shape,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::geometry::Padding;
    use crate::graph::params::Init;
    use crate::graph::{BatchNorm, Builder, Square};

    fn model() -> Model {
        let (mut g, x) = Builder::new(5, 4);
        let init = Init::HeFanOut;
        let norm = BatchNorm {
            epsilon: 1e-5,
            momentum: 0.9,
            gamma: true,
            beta: true,
        };
        let x = g.conv2d(
            "conv",
            x,
            6,
            Square::new(3, 1, Padding::same(1)),
            true,
            init,
        );
        let x = g.activation("prelu", x, Activation::PRelu(()));
        let x = g.depthwise("dw", x, Square::new(3, 2, Padding::same(1)), true, init);
        let x = g.batch_norm("bn", x, norm);
        let x = g.dropout("dropout", x, 0.1);
        let x = g.flatten("flatten", x);
        let x = g.linear("fc", x, 7, true, init);
        let fixed = BatchNorm {
            gamma: false,
            ..norm
        };
        g.batch_norm("features", x, fixed);
        g.finish().unwrap()
    }

    fn table(convention: Convention) -> Vec<Foreign> {
        let model = model();
        foreign(&model, &ParamTable::new(&model), convention)
    }

    fn of<'a>(all: &'a [Foreign], name: &str) -> &'a Foreign {
        let found = all.iter().find(|f| f.name == name);
        found.unwrap_or_else(|| panic!("no {name}"))
    }

    #[test]
    fn names_and_shapes_are_the_frameworks() {
        let keras = table(Convention::Keras);
        for (name, shape) in [
            ("conv/kernel:0", vec![3, 3, 3, 6]),
            ("prelu/alpha:0", vec![1, 1, 6]),
            ("dw/depthwise_kernel:0", vec![3, 3, 6, 1]),
            ("dw/bias:0", vec![6]),
            ("bn/moving_variance:0", vec![6]),
            ("fc/kernel:0", vec![36, 7]),
        ] {
            assert_eq!(of(&keras, name).shape, shape, "{name}");
        }
        assert!(keras.iter().all(|f| f.name != "features/gamma:0"));
        let torch = table(Convention::Torch);
        for (name, shape) in [
            ("conv.weight", vec![6, 3, 3, 3]),
            ("conv.bias", vec![6]),
            ("prelu.weight", vec![6]),
            ("dw.weight", vec![6, 1, 3, 3]),
            ("dw.bias", vec![6]),
            ("bn.running_var", vec![6]),
            ("fc.weight", vec![7, 36]),
            ("features.weight", vec![7]),
        ] {
            assert_eq!(of(&torch, name).shape, shape, "{name}");
        }
        assert_eq!(of(&torch, "features.weight").place, Place::Fixed(1.0));
        let embedding: Vec<&str> = (torch.iter().filter(|f| f.embedding))
            .map(|f| f.name.as_str())
            .collect();
        assert_eq!(
            embedding,
            [
                "fc.weight",
                "fc.bias",
                "features.bias",
                "features.weight",
                "features.running_mean",
                "features.running_var"
            ]
        );
    }

    /// Each element by its own coordinates, one nested loop a layout.
    #[test]
    fn layouts_are_the_frameworks() {
        let index = |len: usize| (0..len).map(|i| i as f32).collect::<Vec<f32>>();
        let (keras, torch) = (table(Convention::Keras), table(Convention::Torch));

        let (k, r, s, c) = (6, 3, 3, 3);
        let ours = index(k * r * s * c);
        let hwio = of(&keras, "conv/kernel:0").to_theirs(&ours);
        let oihw = of(&torch, "conv.weight").to_theirs(&ours);
        for (k1, r1, s1, c1) in (0..k * r * s * c).map(|i| (i / 27, i / 9 % 3, i / 3 % 3, i % 3)) {
            let here = ours[((k1 * r + r1) * s + s1) * c + c1];
            assert_eq!(hwio[((r1 * s + s1) * c + c1) * k + k1], here);
            assert_eq!(oihw[((k1 * c + c1) * r + r1) * s + s1], here);
        }

        let ours = index(3 * 3 * 6);
        assert_eq!(of(&keras, "dw/depthwise_kernel:0").to_theirs(&ours), ours);
        let dw = of(&torch, "dw.weight").to_theirs(&ours);
        for (r1, s1, c1) in (0..54).map(|i| (i / 18, i / 6 % 3, i % 6)) {
            assert_eq!(dw[(c1 * 3 + r1) * 3 + s1], ours[(r1 * 3 + s1) * 6 + c1]);
        }

        // Flattened from 3 x 2 x 6: H W C here, C H W there.
        let ours = index(7 * 36);
        let dense = of(&keras, "fc/kernel:0").to_theirs(&ours);
        let linear = of(&torch, "fc.weight").to_theirs(&ours);
        for (k1, h1, w1, c1) in (0..7 * 36).map(|i| (i / 36, i / 12 % 3, i / 6 % 2, i % 6)) {
            let here = ours[k1 * 36 + (h1 * 2 + w1) * 6 + c1];
            assert_eq!(dense[((h1 * 2 + w1) * 6 + c1) * 7 + k1], here);
            assert_eq!(linear[k1 * 36 + (c1 * 3 + h1) * 2 + w1], here);
        }
    }

    /// `y[k] = sum over j of w[k][j] * x[k with j for its lowest bit]` is the sum of the halves.
    #[test]
    fn pairs_are_two_halves() {
        let gdc = crate::models::Embedding::InsightfaceGdc { size: 8 };
        let model = crate::models::insightface_mbf(112, gdc).unwrap();
        let table = ParamTable::new(&model);
        let torch = foreign(&model, &table, Convention::Torch);
        assert!(
            torch
                .iter()
                .all(|f| !f.name.contains("swap") && !f.name.contains("other"))
        );
        let pairs = of(&torch, "layers.1.layers.0.weight");
        assert_eq!(pairs.shape, [128, 2, 3, 3]);
        let (_, own, _) = table.find("layers.1.layers.0/depthwise_kernel").unwrap();
        let (_, other, _) = table
            .find("layers.1.layers.0.other/depthwise_kernel")
            .unwrap();
        assert_eq!(pairs.place, Place::Param(own));
        let mut params = vec![0.0; table.params_len()];
        let theirs: Vec<f32> = (0..pairs.len()).map(|i| i as f32).collect();
        params[own..][..pairs.len()].copy_from_slice(&pairs.to_ours(&theirs));
        for (k, j, tap) in (0..2304).map(|i| (i / 18, i / 9 % 2, i % 9)) {
            let at = if k % 2 == j { own } else { other };
            assert_eq!(params[at + tap * 128 + k], theirs[(k * 2 + j) * 9 + tap]);
        }
        assert_eq!(pairs.read(&params, &[]), theirs);
    }

    #[test]
    fn there_and_back_is_the_same() {
        for convention in [Convention::Keras, Convention::Torch] {
            for foreign in table(convention) {
                let ours: Vec<f32> = (0..foreign.len()).map(|i| i as f32).collect();
                assert_eq!(foreign.to_ours(&foreign.to_theirs(&ours)), ours);
            }
        }
    }
}
