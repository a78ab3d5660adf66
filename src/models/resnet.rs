//! Keras's ResNet (v1): He et al., CVPR 2016, with the stride on each stage's first 1x1 convolution.
//!
//! Source of names and constants: `keras.applications.resnet`. Convolutions have biases; batch norm has epsilon
//! 1.001e-5 and keeps 0.99; kernels start glorot uniform.

use super::Embedding;
use crate::Result;
use crate::backend::Activation;
use crate::backend::geometry::Padding;
use crate::graph::params::Init;
use crate::graph::{BatchNorm, Builder, Model, NodeId, Square};

const NORM: BatchNorm = BatchNorm {
    epsilon: 1.001e-5,
    momentum: 0.99,
    gamma: true,
    beta: true,
};
const INIT: Init = Init::GlorotUniform;

/// ResNet50 on `size` x `size` images.
///
/// # Errors
/// An image too small for the network.
pub fn resnet50(size: usize, embedding: Embedding) -> Result<Model> {
    resnet(size, [3, 4, 6, 3], embedding)
}

/// ResNet101.
///
/// # Errors
/// An image too small for the network.
pub fn resnet101(size: usize, embedding: Embedding) -> Result<Model> {
    resnet(size, [3, 4, 23, 3], embedding)
}

/// ResNet152.
///
/// # Errors
/// An image too small for the network.
pub fn resnet152(size: usize, embedding: Embedding) -> Result<Model> {
    resnet(size, [3, 8, 36, 3], embedding)
}

fn resnet(size: usize, blocks: [usize; 4], embedding: Embedding) -> Result<Model> {
    let (mut g, input) = Builder::new(size, size);
    let x = conv(&mut g, "conv1", input, 64, (7, 2, 3));
    let x = g.activation("conv1_relu", x, Activation::Relu);
    // Keras pads with zeros and pools "valid"; after a ReLU a zero never exceeds a pixel, so padding that never wins
    // gives the same numbers, and the same gradients, since a zero's gradient ends at the ReLU.
    let mut x = g.max_pool("pool1_pool", x, Square::new(3, 2, Padding::same(1)));
    for (stage, (blocks, filters)) in blocks.into_iter().zip([64, 128, 256, 512]).enumerate() {
        for block in 0..blocks {
            let name = format!("conv{}_block{}", stage + 2, block + 1);
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            x = bottleneck(&mut g, &name, x, filters, stride, block == 0);
        }
    }
    embedding.append(&mut g, x, NORM, INIT);
    g.finish()
}

/// Convolution and batch norm; `(kernel, stride, padding)`.
fn conv(
    g: &mut Builder,
    name: &str,
    x: NodeId,
    filters: usize,
    (kernel, stride, pad): (usize, usize, usize),
) -> NodeId {
    let pad = Padding::same(pad);
    let x = g.conv2d(
        &format!("{name}_conv"),
        x,
        filters,
        Square::new(kernel, stride, pad),
        true,
        INIT,
    );
    g.batch_norm(&format!("{name}_bn"), x, NORM)
}

fn bottleneck(
    g: &mut Builder,
    name: &str,
    x: NodeId,
    filters: usize,
    stride: usize,
    project: bool,
) -> NodeId {
    let shortcut = if project {
        conv(g, &format!("{name}_0"), x, 4 * filters, (1, stride, 0))
    } else {
        x
    };
    let x = conv(g, &format!("{name}_1"), x, filters, (1, stride, 0));
    let x = g.activation(&format!("{name}_1_relu"), x, Activation::Relu);
    let x = conv(g, &format!("{name}_2"), x, filters, (3, 1, 1));
    let x = g.activation(&format!("{name}_2_relu"), x, Activation::Relu);
    let x = conv(g, &format!("{name}_3"), x, 4 * filters, (1, 1, 0));
    let x = g.add(&format!("{name}_add"), shortcut, x);
    g.activation(&format!("{name}_out"), x, Activation::Relu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::params::ParamTable;

    #[test]
    fn parameters_are_those_of_keras() {
        let count = |model: Result<Model>| ParamTable::new(&model.unwrap()).count();
        let dense = Embedding::pool_dropout_dense(256);
        assert_eq!(count(resnet50(112, dense)), 24_112_256);
        // Keras without its top: 23,587,712; 42,658,176; 58,370,944; and 2048 * 256 + 256 of the dense layer.
        assert_eq!(count(resnet101(112, dense)), 42_658_176 + 524_544);
        assert_eq!(count(resnet152(112, dense)), 58_370_944 + 524_544);
    }

    #[test]
    fn maps_shrink_as_in_keras() {
        let model = resnet50(112, Embedding::pool_dropout_dense(256)).unwrap();
        let side = |name: &str| {
            let node = model.nodes().iter().find(|node| node.name == name);
            node.unwrap().shape.h
        };
        let names = [
            "conv1_relu",
            "pool1_pool",
            "conv2_block3_out",
            "conv3_block4_out",
        ];
        assert_eq!(names.map(side), [56, 28, 28, 14]);
        assert_eq!(["conv4_block6_out", "conv5_block3_out"].map(side), [7, 4]);
        let giga = model.macs() as f64 / 1e9;
        assert!((1.01..1.03).contains(&giga), "{giga} GMAC");
    }
}
