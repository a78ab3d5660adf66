//! MobileFaceNet: Chen et al., "MobileFaceNets: efficient CNNs for accurate real-time face verification on mobile
//! devices", CCBR 2018, table 1. PReLU throughout, linear bottlenecks, and a global depthwise convolution instead of
//! pooling, so that the centre of the face can weigh more than its rim.

use super::Embedding;
use crate::Result;
use crate::backend::Activation;
use crate::backend::geometry::Padding;
use crate::graph::params::Init;
use crate::graph::{BatchNorm, Builder, Model, NodeId, Shape, Square};

const NORM: BatchNorm = BatchNorm {
    epsilon: 1e-5,
    momentum: 0.9,
    gamma: true,
    beta: true,
};
const INIT: Init = Init::HeFanOut;

/// A stage of inverted residuals.
#[derive(Clone, Copy)]
struct Stage {
    /// Hidden channels are this many times the input's.
    expansion: usize,
    /// Output channels.
    filters: usize,
    /// How many, one after the other.
    repeats: usize,
    /// Stride of the first.
    stride: usize,
}

const fn stage(expansion: usize, filters: usize, repeats: usize, stride: usize) -> Stage {
    Stage {
        expansion,
        filters,
        repeats,
        stride,
    }
}

/// The paper's network on `size` x `size` images.
///
/// # Errors
/// An image too small for the network.
pub fn mobilefacenet(size: usize, embedding: Embedding) -> Result<Model> {
    let stages = [
        stage(2, 64, 5, 2),
        stage(4, 128, 1, 2),
        stage(2, 128, 6, 1),
        stage(4, 128, 1, 2),
        stage(2, 128, 2, 1),
    ];
    build(size, embedding, 64, &stages, 512)
}

/// Half the channels and fewer blocks: a seventh of the arithmetic.
///
/// # Errors
/// An image too small for the network.
pub fn mobilefacenet_tiny(size: usize, embedding: Embedding) -> Result<Model> {
    let stages = [
        stage(2, 32, 2, 2),
        stage(4, 64, 1, 2),
        stage(2, 64, 3, 1),
        stage(4, 64, 1, 2),
        stage(2, 64, 1, 1),
    ];
    build(size, embedding, 32, &stages, 256)
}

fn build(
    size: usize,
    embedding: Embedding,
    stem: usize,
    stages: &[Stage],
    last: usize,
) -> Result<Model> {
    let (mut g, input) = Builder::new(size, size);
    let one = Padding::same(1);
    let x = g.conv2d("conv1", input, stem, Square::new(3, 2, one), false, INIT);
    let x = norm_prelu(&mut g, "conv1", x);
    let x = g.depthwise("conv2_dw", x, Square::new(3, 1, one), false, INIT);
    let mut x = norm_prelu(&mut g, "conv2_dw", x);
    let mut block = 0;
    for stage in stages {
        for repeat in 0..stage.repeats {
            block += 1;
            let stride = if repeat == 0 { stage.stride } else { 1 };
            x = bottleneck(&mut g, &format!("block_{block}"), x, *stage, stride);
        }
    }
    let x = pointwise(&mut g, "conv_last", x, last);
    let x = norm_prelu(&mut g, "conv_last", x);
    embedding.append(&mut g, x, NORM, INIT);
    g.finish()
}

/// The embedding layers: the global depthwise convolution and a linear 1x1, each with its batch norm.
pub(super) fn embed(g: &mut Builder, x: NodeId, d: usize) {
    let side = g.shape(x).h;
    let x = g.depthwise(
        "conv_global_dw",
        x,
        Square::new(side, 1, Padding::default()),
        false,
        INIT,
    );
    let x = g.batch_norm("conv_global_dw_bn", x, NORM);
    let x = pointwise(g, "embedding", x, d);
    g.batch_norm("embedding_bn", x, NORM);
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

fn norm_prelu(g: &mut Builder, name: &str, x: NodeId) -> NodeId {
    let x = g.batch_norm(&format!("{name}_bn"), x, NORM);
    g.activation(&format!("{name}_prelu"), x, Activation::PRelu(()))
}

fn bottleneck(g: &mut Builder, name: &str, x: NodeId, stage: Stage, stride: usize) -> NodeId {
    let Shape { c, .. } = g.shape(x);
    let expand = format!("{name}_expand");
    let y = pointwise(g, &expand, x, stage.expansion * c);
    let y = norm_prelu(g, &expand, y);
    let depthwise = format!("{name}_dw");
    let y = g.depthwise(
        &depthwise,
        y,
        Square::new(3, stride, Padding::same(1)),
        false,
        INIT,
    );
    let y = norm_prelu(g, &depthwise, y);
    let y = pointwise(g, &format!("{name}_project"), y, stage.filters);
    let y = g.batch_norm(&format!("{name}_project_bn"), y, NORM);
    if stride == 1 && c == stage.filters {
        g.add(&format!("{name}_add"), x, y)
    } else {
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::params::ParamTable;

    #[test]
    fn has_the_papers_size() {
        let model = mobilefacenet(112, Embedding::GlobalDepthwise { size: 128 }).unwrap();
        let learnt: usize = {
            let table = ParamTable::new(&model);
            table.params().iter().map(|p| p.len()).sum()
        };
        // The paper: 0.99 million parameters, 221 million multiply-adds.
        assert!((990_000..1_010_000).contains(&learnt), "{learnt}");
        let mega = model.macs() as f64 / 1e6;
        assert!((210.0..230.0).contains(&mega), "{mega} MMAC");
        let global = model.nodes().iter().find(|n| n.name == "conv_global_dw");
        assert_eq!(global.unwrap().shape, Shape { h: 1, w: 1, c: 512 });
    }
}
