//! What tests of ONNX files share: PyTorch's files and the network that is in them.
#![allow(dead_code, reason = "each test file uses a part of this")]

use arcface_cu::backend::Activation;
use arcface_cu::backend::geometry::Padding;
use arcface_cu::graph::params::Init;
use arcface_cu::graph::{BatchNorm, Builder, Model, Square};
use std::path::{Path, PathBuf};

/// The network of `tests/reference/make_onnx.py`.
pub(crate) fn network() -> Model {
    let (mut g, x) = Builder::new(8, 8);
    let (init, none, one) = (Init::HeFanOut, Padding::default(), Padding::same(1));
    let norm = BatchNorm {
        epsilon: 1e-5,
        momentum: 0.9,
        gamma: true,
        beta: true,
    };
    let x = g.conv2d("conv1", x, 4, Square::new(3, 1, one), false, init);
    let x = g.batch_norm("bn1", x, norm);
    let x = g.activation("prelu", x, Activation::PRelu(()));
    let x = g.max_pool("pool", x, Square::new(3, 2, one));
    let y = g.batch_norm("b_bn1", x, norm);
    let y = g.conv2d("b_conv1", y, 6, Square::new(3, 1, one), false, init);
    let y = g.batch_norm("b_bn2", y, norm);
    let y = g.activation("b_prelu", y, Activation::PRelu(()));
    let y = g.conv2d("b_conv2", y, 6, Square::new(3, 2, one), false, init);
    let y = g.batch_norm("b_bn3", y, norm);
    let z = g.conv2d("d_conv", x, 6, Square::new(1, 2, none), false, init);
    let z = g.batch_norm("d_bn", z, norm);
    let x = g.add("add", y, z);
    let y = g.conv2d("e_conv", x, 8, Square::new(1, 1, none), false, init);
    let y = g.batch_norm("e_bn", y, norm);
    let y = g.activation("e_relu", y, Activation::Relu6);
    let y = g.depthwise("dw", y, Square::new(3, 1, one), false, init);
    let y = g.batch_norm("dw_bn", y, norm);
    let y = g.activation("dw_relu", y, Activation::Relu6);
    let y = g.conv2d("p_conv", y, 6, Square::new(1, 1, none), false, init);
    let y = g.batch_norm("p_bn", y, norm);
    let x = g.add("add_2", x, y);
    let x = g.batch_norm("bn2", x, norm);
    let x = g.dropout("dropout", x, 0.4);
    let x = g.flatten("flatten", x);
    let x = g.linear("fc", x, 5, true, init);
    let fixed = BatchNorm {
        gamma: false,
        ..norm
    };
    g.batch_norm("features", x, fixed);
    g.finish().unwrap()
}

/// A file of that script's.
pub(crate) fn reference(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/reference/onnx")
        .join(name)
}

/// The files that it makes.
#[allow(dead_code, reason = "each test file uses a part of this")]
pub(crate) const FILES: [&str; 5] = [
    "legacy.onnx",
    "legacy_kept.onnx",
    "legacy_view.onnx",
    "dynamo.onnx",
    "inside.onnx",
];
