//! InsightFace's MobileFaceNet, `get_mbf`: the paper's network (`mobilefacenet.rs`) with other widths.
//!
//! Source of names and constants: `arcface_torch/backbones/mobilefacenet.py` with blocks (1, 4, 6, 2) and scale 2; layers
//! are called as in its state dict.
//!
//! The second convolution is no depthwise one: the scale doubles its channels and leaves its 64 groups, so each output
//! channel reads two. Output k of a pair of channels (k, k') is what its filter makes of channel k and of channel k': a
//! depthwise convolution, plus another one on a map whose pairs are swapped. That is how it is built here. The filter
//! (128, 2, 3, 3) of the state dict is both of these together (`convention.rs`); they lie side by side in the slab.

use super::Embedding;
use crate::Result;
use crate::backend::Activation;
use crate::backend::geometry::Padding;
use crate::graph::params::Init;
use crate::graph::{BatchNorm, Builder, Model, NodeId, Square};

const NORM: BatchNorm = BatchNorm {
    epsilon: 1e-5,
    momentum: 0.9,
    gamma: true,
    beta: true,
};
const INIT: Init = Init::HeFanOut;

/// The network on `size` x `size` images.
///
/// # Errors
/// An image too small for the network.
pub fn insightface_mbf(size: usize, embedding: Embedding) -> Result<Model> {
    let (mut g, input) = Builder::new(size, size);
    let one = Padding::same(1);
    let x = g.conv2d(
        "layers.0.layers.0",
        input,
        128,
        Square::new(3, 2, one),
        false,
        INIT,
    );
    let x = norm_prelu(&mut g, "layers.0.layers", x);
    let x = paired(&mut g, x);
    let x = norm_prelu(&mut g, "layers.1.layers", x);
    let x = bottleneck(&mut g, "layers.2", x, (128, 128), 2);
    let x = residuals(&mut g, "layers.3", x, (128, 128), 4);
    let x = bottleneck(&mut g, "layers.4", x, (256, 256), 2);
    let x = residuals(&mut g, "layers.5", x, (256, 256), 6);
    let x = bottleneck(&mut g, "layers.6", x, (512, 256), 2);
    let x = residuals(&mut g, "layers.7", x, (256, 256), 2);
    let x = pointwise(&mut g, "conv_sep.layers.0", x, 512);
    let x = norm_prelu(&mut g, "conv_sep.layers", x);
    embedding.append(&mut g, x, NORM, INIT);
    g.finish()
}

/// The embedding layers: the global depthwise convolution and a fully connected layer, each with its batch norm.
pub(super) fn embed(g: &mut Builder, x: NodeId, d: usize) {
    let side = g.shape(x).h;
    let none = Padding::default();
    let x = depthwise(g, "features.layers.0.layers.0", x, (side, 1), none);
    let x = g.batch_norm("features.layers.0.layers.1", x, NORM);
    let x = g.flatten("features.layers.1", x);
    let x = g.linear("features.layers.2", x, d, false, INIT);
    g.batch_norm("features.layers.3", x, NORM);
}

/// The 3x3 convolution in groups of two channels.
fn paired(g: &mut Builder, x: NodeId) -> NodeId {
    let (one, none) = (Padding::same(1), Padding::default());
    let c = g.shape(x).c;
    let swapped = "layers.1.layers.0.swap";
    let swapped = g.conv2d(
        swapped,
        x,
        c,
        Square::new(1, 1, none),
        false,
        Init::SwapPairs,
    );
    let own = depthwise(g, "layers.1.layers.0", x, (3, 1), one);
    let other = depthwise(g, "layers.1.layers.0.other", swapped, (3, 1), one);
    g.add("layers.1.layers.0.add", own, other)
}

fn pointwise(g: &mut Builder, name: &str, x: NodeId, filters: usize) -> NodeId {
    g.conv2d(
        name,
        x,
        filters,
        Square::new(1, 1, Padding::default()),
        false,
        INIT,
    )
}

/// `(kernel, stride)`. PyTorch counts the fan out of a depthwise filter as if it were a full one.
fn depthwise(
    g: &mut Builder,
    name: &str,
    x: NodeId,
    (kernel, stride): (usize, usize),
    pad: Padding,
) -> NodeId {
    let fan_out = g.shape(x).c * kernel * kernel;
    let init = Init::Normal((2.0 / fan_out as f32).sqrt());
    g.depthwise(name, x, Square::new(kernel, stride, pad), false, init)
}

/// What follows a convolution in a block called `block`: parts 1 and 2.
fn norm_prelu(g: &mut Builder, block: &str, x: NodeId) -> NodeId {
    let x = g.batch_norm(&format!("{block}.1"), x, NORM);
    g.activation(&format!("{block}.2"), x, Activation::PRelu(()))
}

/// 1x1 to `hidden` channels, 3x3 depthwise with the stride, 1x1 to `filters` channels without an activation.
fn bottleneck(
    g: &mut Builder,
    name: &str,
    x: NodeId,
    (hidden, filters): (usize, usize),
    stride: usize,
) -> NodeId {
    let part = |i: usize| format!("{name}.layers.{i}.layers");
    let [expand, middle, project] = [part(0), part(1), part(2)];
    let x = pointwise(g, &format!("{expand}.0"), x, hidden);
    let x = norm_prelu(g, &expand, x);
    let pad = Padding::same(1);
    let x = depthwise(g, &format!("{middle}.0"), x, (3, stride), pad);
    let x = norm_prelu(g, &middle, x);
    let x = pointwise(g, &format!("{project}.0"), x, filters);
    g.batch_norm(&format!("{project}.1"), x, NORM)
}

fn residuals(
    g: &mut Builder,
    name: &str,
    mut x: NodeId,
    channels: (usize, usize),
    count: usize,
) -> NodeId {
    for i in 0..count {
        let name = format!("{name}.layers.{i}");
        let y = bottleneck(g, &name, x, channels, 1);
        x = g.add(&format!("{name}.add"), x, y);
    }
    x
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::params::ParamTable;
    use crate::optim::Role;

    /// `reference/insightface.py` counts them in PyTorch.
    #[test]
    fn parameters_are_those_of_insightface() {
        let model = insightface_mbf(112, Embedding::InsightfaceGdc { size: 512 }).unwrap();
        let table = ParamTable::new(&model);
        let learnt = table.params().iter().filter(|p| p.role != Role::Fixed);
        assert_eq!(learnt.map(|p| p.len()).sum::<usize>(), 2_059_520);
        assert_eq!(table.statistics_len(), 23_808);
        let (params, _) = table.init(1);
        let (_, at, shape) = table.find("layers.1.layers.0.swap/kernel").unwrap();
        assert_eq!(shape, [128, 1, 1, 128]);
        let ones: Vec<usize> = (0..128 * 128).filter(|i| params[at + i] == 1.0).collect();
        assert_eq!(ones.len(), 128);
        assert_eq!(ones[..3], [1, 128, 2 * 128 + 3]);
    }
}
