//! Keras's MobileNetV2 with width 1.0: Sandler et al., CVPR 2018.
//!
//! Source of names and constants: `keras.applications.mobilenet_v2`. No biases; batch norm has epsilon 1e-3 and keeps
//! 0.999; strided convolutions pad as `correct_pad` does.

use super::Embedding;
use crate::Result;
use crate::backend::Activation;
use crate::backend::geometry::Padding;
use crate::graph::params::Init;
use crate::graph::{BatchNorm, Builder, Model, NodeId, Shape, Square};

const NORM: BatchNorm = BatchNorm {
    epsilon: 1e-3,
    momentum: 0.999,
    gamma: true,
    beta: true,
};
const INIT: Init = Init::GlorotUniform;

/// Expansion, output channels, repeats, first stride (the paper's table 2).
const STAGES: [(usize, usize, usize, usize); 7] = [
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
];

/// MobileNetV2 on `size` x `size` images.
///
/// # Errors
/// An image too small for the network.
pub fn mobilenet_v2(size: usize, embedding: Embedding) -> Result<Model> {
    let (mut g, input) = Builder::new(size, size);
    let pad = Padding::keras_strided(size, size, 3);
    let x = g.conv2d("Conv1", input, 32, Square::new(3, 2, pad), false, INIT);
    let x = g.batch_norm("bn_Conv1", x, NORM);
    let mut x = g.activation("Conv1_relu", x, Activation::Relu6);
    let mut block = 0;
    for (expansion, filters, repeats, stride) in STAGES {
        for repeat in 0..repeats {
            let stride = if repeat == 0 { stride } else { 1 };
            x = inverted_residual(&mut g, block, x, expansion, filters, stride);
            block += 1;
        }
    }
    let x = g.conv2d(
        "Conv_1",
        x,
        1280,
        Square::new(1, 1, Padding::default()),
        false,
        INIT,
    );
    let x = g.batch_norm("Conv_1_bn", x, NORM);
    let x = g.activation("out_relu", x, Activation::Relu6);
    embedding.append(&mut g, x, NORM, INIT);
    g.finish()
}

fn inverted_residual(
    g: &mut Builder,
    block: usize,
    x: NodeId,
    expansion: usize,
    filters: usize,
    stride: usize,
) -> NodeId {
    let prefix = match block {
        0 => "expanded_conv".to_string(),
        block => format!("block_{block}"),
    };
    let name = |layer: &str| format!("{prefix}_{layer}");
    let Shape { h, w, c } = g.shape(x);
    let none = Padding::default();
    let mut y = x;
    if block > 0 {
        y = g.conv2d(
            &name("expand"),
            y,
            expansion * c,
            Square::new(1, 1, none),
            false,
            INIT,
        );
        y = g.batch_norm(&name("expand_BN"), y, NORM);
        y = g.activation(&name("expand_relu"), y, Activation::Relu6);
    }
    let pad = if stride == 2 {
        Padding::keras_strided(h, w, 3)
    } else {
        Padding::same(1)
    };
    y = g.depthwise(
        &name("depthwise"),
        y,
        Square::new(3, stride, pad),
        false,
        INIT,
    );
    y = g.batch_norm(&name("depthwise_BN"), y, NORM);
    y = g.activation(&name("depthwise_relu"), y, Activation::Relu6);
    y = g.conv2d(
        &name("project"),
        y,
        filters,
        Square::new(1, 1, none),
        false,
        INIT,
    );
    y = g.batch_norm(&name("project_BN"), y, NORM);
    if c == filters && stride == 1 {
        g.add(&name("add"), x, y)
    } else {
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::params::ParamTable;

    #[test]
    fn parameters_are_those_of_keras() {
        let model = mobilenet_v2(112, Embedding::pool_dropout_dense(256)).unwrap();
        assert_eq!(ParamTable::new(&model).count(), 2_585_920);
        let giga = model.macs() as f64 / 1e9;
        assert!((0.08..0.1).contains(&giga), "{giga} GMAC");
        let last = model.nodes().iter().find(|node| node.name == "out_relu");
        assert_eq!(
            last.unwrap().shape,
            Shape {
                h: 4,
                w: 4,
                c: 1280
            }
        );
    }
}
