//! The inference executor, with batch norm folded into filters and activations into epilogues, against the naive f64
//! evaluation with frozen statistics: every network in `models`, and the small ones that are hard on fusion.

use crate::oracles::graphs;
use crate::oracles::model::{Mode, forward, widen};
use crate::support::devices::on_each_device;
use arcface_cu::backend::{Backend, Element, InputTransform, InputTransformFprop};
use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::graph::Model;
use arcface_cu::graph::infer::InferGraph;
use arcface_cu::graph::params::ParamTable;
use arcface_cu::models::{self, Embedding, Network};
use arcface_cu::optim::Role;

const TRANSFORM: InputTransform = InputTransform {
    scale: [1.0 / 127.5, 1.0 / 128.0, 1.0 / 127.0],
    shift: [-1.0, -0.9, -1.1],
};

/// How many roundings of every parameter the engine may lose. A network magnifies roundings by an amount of its own (deep
/// residual ones a thousandfold: a batch norm that brings out small differences between the images brings out the
/// roundings with them), so the bound is not a number: it is this many times what happens to the naive evaluation
/// when each parameter moves by up to half a unit in its last place. The engine rounds activations as well, after
/// sums of up to thousands of terms.
const ROUNDINGS: f64 = 20.0;
/// Relative to the largest number of the embedding, for networks that lose next to nothing.
const FLOOR: f64 = 2e-6;

/// Images of different ripples and brightness under noise, and the same as the network takes them. (Images alike would
/// give embeddings alike, and a last batch norm would magnify the roundings with the differences.)
fn images(n: usize, model: &Model) -> (Vec<u8>, Vec<f64>) {
    let mut random = Random::new(4, Purpose::Init, 1);
    let mut pixels = Vec::new();
    for _ in 0..n {
        let (step, middle) = (random.range(0.02, 0.6), random.range(60.0, 200.0));
        pixels.extend((0..model.input_shape().len()).map(|i| {
            let ripple = 50.0 * (i as f32 * step).sin();
            (middle + ripple + random.range(-40.0, 40.0)) as u8
        }));
    }
    let value = |(i, pixel): (usize, &u8)| {
        let (scale, shift) = (TRANSFORM.scale[i % 3], TRANSFORM.shift[i % 3]);
        f64::from(*pixel) * f64::from(scale) + f64::from(shift)
    };
    let values = pixels.iter().enumerate().map(value).collect();
    (pixels, values)
}

/// Parameters, and running statistics near what the images give (so that no signal dies or explodes on its way down
/// a deep network) but different for every channel.
fn weights(model: &Model, values: &[f64], n: usize) -> (Vec<f32>, Vec<f32>) {
    let table = ParamTable::new(model);
    let (mut params, mut statistics) = table.init(3);
    let mut random = Random::new(3, Purpose::Init, 2);
    for param in table.params() {
        if !matches!(param.role, Role::Filter | Role::EmbeddingFilter) {
            for value in &mut params[param.offset..][..param.len()] {
                *value += 0.2 * random.normal();
            }
        }
    }
    let mode = Mode::Training { seed: 0, step: 0 };
    let batch = forward(model, &widen(&params), mode, values, n).batch_statistics;
    for pair in table.statistics().chunks(2) {
        let [mean, variance] = pair else {
            unreachable!("means and variances come in pairs")
        };
        for i in 0..mean.len {
            // A variance that is zero, or near it, would divide by nearly nothing.
            let spread = batch[variance.offset + i].max(1e-2);
            let shift = f64::from(random.range(-0.5, 0.5)) * spread.sqrt();
            statistics[mean.offset + i] = (batch[mean.offset + i] + shift) as f32;
            statistics[variance.offset + i] = (spread * f64::from(random.range(0.6, 1.8))) as f32;
        }
    }
    (params, statistics)
}

/// Checks `model` on one image, on a batch that is not full, and on more images than a batch holds.
fn check<B: Backend>(backend: &mut B, name: &str, model: &Model) {
    let (n, max_batch) = (5, 4);
    let (pixels, values) = images(n, model);
    let (params, statistics) = weights(model, &values, n);
    let frozen = widen(&statistics);
    let naive = forward(model, &widen(&params), Mode::Frozen(&frozen), &values, n);
    let expected = naive.embedding();
    let mut random = Random::new(5, Purpose::Init, 3);
    let rounded: Vec<f64> = (params.iter())
        .map(|w| f64::from(*w) * (1.0 + crate::oracles::UNIT * f64::from(random.range(-1.0, 1.0))))
        .collect();
    let rounded = forward(model, &rounded, Mode::Frozen(&frozen), &values, n);
    let largest =
        |values: &mut dyn Iterator<Item = f64>| values.fold(0.0, |most: f64, v| most.max(v.abs()));
    let most = largest(&mut expected.iter().copied());
    let rounding = largest(&mut rounded.embedding().iter().zip(expected).map(|(a, b)| a - b));
    let bound = ROUNDINGS * rounding + FLOOR * most;

    let mut graph = InferGraph::new(
        backend,
        model,
        &params,
        &statistics,
        max_batch,
        Element::F32,
    )
    .expect("a graph");
    let (image, d) = (model.input_shape().len(), model.embedding_size());
    assert_eq!(
        (graph.input_shape(), graph.embedding_size()),
        (model.input_shape(), d)
    );
    let mut worst: f64 = 0.0;
    // The full run first: what it leaves in memory must not matter to the smaller ones.
    for (first, count) in [(0, 5), (0, 1), (1, 3), (4, 1)] {
        let embedded = graph
            .embed(
                backend,
                &pixels[first * image..][..count * image],
                &TRANSFORM,
            )
            .expect("embeddings");
        let expected = &expected[first * d..][..count * d];
        let what = format!("{name}, images {first}..{}", first + count);
        crate::oracles::assert_close(&what, &embedded, expected, |_| bound);
        for (a, e) in embedded.iter().zip(expected) {
            worst = worst.max((f64::from(*a) - e).abs());
        }
    }
    println!(
        "{name}: off by {:.1e} of the largest; a rounding of the parameters gives {:.1e}; {:.0} % of the bound",
        worst / most,
        rounding / most,
        100.0 * worst / bound
    );
    // Images that are numbers already take the same way.
    let mut transformed = crate::oracles::poisoned(backend, n * image);
    backend
        .input_transform_fprop(InputTransformFprop {
            pixels: &pixels,
            transform: &TRANSFORM,
            y: &mut transformed,
        })
        .expect("a transform");
    let transformed = crate::oracles::download(backend, &transformed);
    let from_values = graph
        .embed_values(backend, &transformed)
        .expect("embeddings");
    let from_pixels = graph
        .embed(backend, &pixels, &TRANSFORM)
        .expect("embeddings");
    assert_eq!(from_values, from_pixels, "{name}");
}

const POOL: Embedding = Embedding::PoolDropoutDense {
    size: 24,
    dropout: 0.5,
};
const FLAT: Embedding = Embedding::BatchNormDropoutFlattenDense {
    size: 20,
    dropout: 0.4,
};
const E: Embedding = Embedding::InsightFaceE {
    size: 16,
    dropout: 0.3,
};
const DEPTHWISE: Embedding = Embedding::GlobalDepthwise { size: 12 };
const GDC: Embedding = Embedding::InsightfaceGdc { size: 12 };

fn check_all<B: Backend>(backend: &mut B, networks: &[(Network, usize, Embedding)]) {
    for &(network, size, embedding) in networks {
        let model = models::build(network, size, embedding).expect("a model");
        let name = format!("{network:?} {size} {embedding:?}");
        check(backend, &name, &model);
    }
}

/// On odd and even sizes, with each embedding at least once.
fn mobile_networks<B: Backend>(backend: &mut B) {
    let networks = [
        (Network::MobilenetV2, 32, POOL),
        (Network::MobilenetV2, 49, FLAT),
        (Network::MobilenetV2, 40, E),
        (Network::Mobilefacenet, 32, DEPTHWISE),
        (Network::Mobilefacenet, 45, E),
        (Network::MobilefacenetTiny, 32, DEPTHWISE),
    ];
    check_all(backend, &networks);
}

/// ResNet101 is ResNet152 with fewer blocks.
fn resnets<B: Backend>(backend: &mut B) {
    let networks = [
        (Network::Resnet50, 33, POOL),
        (Network::Resnet50, 48, FLAT),
        (Network::Resnet50, 32, E),
        (Network::Resnet152, 32, POOL),
    ];
    check_all(backend, &networks);
}

/// The other IResNets are IResNet18 with more blocks.
fn insightface<B: Backend>(backend: &mut B) {
    let networks = [
        (Network::Iresnet18, 33, E),
        (Network::InsightfaceMbf, 32, GDC),
    ];
    check_all(backend, &networks);
}

fn small_models<B: Backend>(backend: &mut B) {
    for (name, model) in graphs::all() {
        check(backend, name, &model);
    }
    for seed in 0..200 {
        let model = graphs::random(seed, 4 + seed as usize % 14);
        check(backend, &format!("random model {seed}"), &model);
    }
}

on_each_device! {
    networks;
    mobile_networks_fold: mobile_networks,
    small_models_that_are_hard_on_fusion: small_models,
    ; not emulated:
    resnets_fold: resnets,
    insightfaces_fold: insightface,
}
