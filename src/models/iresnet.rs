//! InsightFace's IResNet: the "improved residual unit" of Deng et al., "ArcFace", CVPR 2019, for 112 x 112 faces.
//!
//! Source of names and constants: `arcface_torch/backbones/iresnet.py`; layers are called as in its state dict. The stem
//! keeps the picture's size; a block is BN, 3x3, BN, PReLU, strided 3x3, BN beside a shortcut, with no activation behind
//! the sum. No convolution has a bias; batch norm has epsilon 1e-5 and keeps 0.9; filters start N(0, 0.1).

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
const INIT: Init = Init::Normal(0.1);

/// IResNet18 on `size` x `size` images.
///
/// # Errors
/// An image too small for the network.
pub fn iresnet18(size: usize, embedding: Embedding) -> Result<Model> {
    iresnet(size, [2, 2, 2, 2], embedding)
}

/// IResNet34.
///
/// # Errors
/// An image too small for the network.
pub fn iresnet34(size: usize, embedding: Embedding) -> Result<Model> {
    iresnet(size, [3, 4, 6, 3], embedding)
}

/// IResNet50.
///
/// # Errors
/// An image too small for the network.
pub fn iresnet50(size: usize, embedding: Embedding) -> Result<Model> {
    iresnet(size, [3, 4, 14, 3], embedding)
}

/// IResNet100.
///
/// # Errors
/// An image too small for the network.
pub fn iresnet100(size: usize, embedding: Embedding) -> Result<Model> {
    iresnet(size, [3, 13, 30, 3], embedding)
}

fn iresnet(size: usize, blocks: [usize; 4], embedding: Embedding) -> Result<Model> {
    let (mut g, input) = Builder::new(size, size);
    let x = conv(&mut g, "conv1", input, 64, (3, 1));
    let x = g.batch_norm("bn1", x, NORM);
    let mut x = g.activation("prelu", x, Activation::PRelu(()));
    for (stage, (blocks, filters)) in blocks.into_iter().zip([64, 128, 256, 512]).enumerate() {
        for block in 0..blocks {
            let name = format!("layer{}.{block}", stage + 1);
            x = basic_block(&mut g, &name, x, filters, block == 0);
        }
    }
    embedding.append(&mut g, x, NORM, INIT);
    g.finish()
}

/// A convolution that keeps the size but for its stride; `(kernel, stride)`.
fn conv(
    g: &mut Builder,
    name: &str,
    x: NodeId,
    filters: usize,
    (kernel, stride): (usize, usize),
) -> NodeId {
    let pad = Padding::same(kernel / 2);
    g.conv2d(
        name,
        x,
        filters,
        Square::new(kernel, stride, pad),
        false,
        INIT,
    )
}

/// A block; the first of a stage halves the size, and its shortcut is a convolution.
fn basic_block(g: &mut Builder, name: &str, x: NodeId, filters: usize, first: bool) -> NodeId {
    let stride = if first { 2 } else { 1 };
    let name = |layer: &str| format!("{name}.{layer}");
    let y = g.batch_norm(&name("bn1"), x, NORM);
    let y = conv(g, &name("conv1"), y, filters, (3, 1));
    let y = g.batch_norm(&name("bn2"), y, NORM);
    let y = g.activation(&name("prelu"), y, Activation::PRelu(()));
    let y = conv(g, &name("conv2"), y, filters, (3, stride));
    let y = g.batch_norm(&name("bn3"), y, NORM);
    let shortcut = if first {
        let x = conv(g, &name("downsample.0"), x, filters, (1, stride));
        g.batch_norm(&name("downsample.1"), x, NORM)
    } else {
        x
    };
    g.add(&name("add"), shortcut, y)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::params::ParamTable;

    /// `reference/insightface.py` counts them in PyTorch: parameters (with the 512 scales that never change) and
    /// running statistics.
    #[test]
    fn parameters_are_those_of_insightface() {
        let counts = |model: Result<Model>| {
            let table = ParamTable::new(&model.unwrap());
            let learnt: usize = table.params().iter().map(|p| p.len()).sum();
            (learnt + 512, table.statistics_len())
        };
        let e = Embedding::insightface_e(512);
        assert_eq!(counts(iresnet18(112, e)), (24_025_600, 14_720));
        assert_eq!(counts(iresnet34(112, e)), (34_139_328, 25_856));
        assert_eq!(counts(iresnet50(112, e)), (43_590_848, 38_144));
        assert_eq!(counts(iresnet100(112, e)), (65_156_160, 69_632));
    }

    #[test]
    fn maps_halve_in_each_stage() {
        let model = iresnet50(112, Embedding::insightface_e(512)).unwrap();
        let side = |name: &str| {
            let node = model.nodes().iter().find(|node| node.name == name);
            node.unwrap().shape.h
        };
        let names = ["prelu", "layer1.2.add", "layer2.3.add", "layer3.13.add"];
        assert_eq!(names.map(side), [112, 56, 28, 14]);
        assert_eq!(side("layer4.2.add"), 7);
        // InsightFace's own table: 6.3 GFLOPs, a multiply-add counted once.
        let giga = model.macs() as f64 / 1e9;
        assert!((6.2..6.4).contains(&giga), "{giga} GMAC");
    }
}
