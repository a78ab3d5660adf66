//! The inference executor, with batch norm folded into filters and activations into epilogues, against the naive f64
//! evaluation with frozen statistics: every network in `models`, and the small ones that are hard on fusion.

mod oracles;

use arcface_cu::Result;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::{Backend, InputTransform};
use arcface_cu::graph::Model;
use arcface_cu::graph::infer::InferGraph;
use arcface_cu::graph::params::{ParamTable, Role};
use arcface_cu::models::{self, Embedding};
use arcface_cu::random::{Purpose, Random};
use oracles::graphs;
use oracles::model::{Mode, forward, widen};

const TRANSFORM: InputTransform = InputTransform {
    scale: [1.0 / 127.5, 1.0 / 128.0, 1.0 / 127.0],
    shift: [-1.0, -0.9, -1.1],
};

/// What float32 may lose, relative to the largest number of an embedding. Each layer adds about one rounding of its
/// sum, 6e-8 sqrt(terms) of terms near 1: 1e-6 or so, and a hundred layers add up as a random walk.
const TOLERANCE: f64 = 3e-5;

/// Images of ripples and noise, and the same as the network takes them.
fn images(n: usize, model: &Model) -> (Vec<u8>, Vec<f64>) {
    let mut random = Random::new(4, Purpose::Init, 1);
    let pixels: Vec<u8> = (0..n * model.input_shape().len())
        .map(|i| (128.0 + 70.0 * (i as f32 * 0.11).sin() + random.range(-55.0, 55.0)) as u8)
        .collect();
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
        if !matches!(param.role, Role::Kernel | Role::DenseKernel) {
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

    let mut graph =
        InferGraph::new(backend, model, &params, &statistics, max_batch).expect("a graph");
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
        let most = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
        let what = format!("{name}, images {first}..{}", first + count);
        oracles::assert_close(&what, &embedded, expected, |_| TOLERANCE * most);
        for (a, e) in embedded.iter().zip(expected) {
            worst = worst.max((f64::from(*a) - e).abs() / most);
        }
    }
    println!("{name}: {worst:.1e} of the largest");
    // Images that are numbers already take the same way.
    let mut transformed = backend.alloc(n * image).expect("memory");
    backend
        .input_transform(&pixels, &TRANSFORM, &mut transformed)
        .expect("a transform");
    let transformed = oracles::download(backend, &transformed);
    let from_values = graph
        .embed_values(backend, &transformed)
        .expect("embeddings");
    let from_pixels = graph
        .embed(backend, &pixels, &TRANSFORM)
        .expect("embeddings");
    assert_eq!(from_values, from_pixels, "{name}");
}

const EMBEDDINGS: [Embedding; 3] = [
    Embedding::PoolDropoutDense {
        size: 24,
        dropout: 0.5,
    },
    Embedding::BatchNormDropoutFlattenDense {
        size: 20,
        dropout: 0.4,
    },
    Embedding::InsightFaceE {
        size: 16,
        dropout: 0.3,
    },
];

fn each_embedding(
    name: &str,
    sizes: [usize; 3],
    model: impl Fn(usize, Embedding) -> Result<Model>,
) {
    let mut backend = Cpu::new();
    for (embedding, size) in EMBEDDINGS.into_iter().zip(sizes) {
        let model = model(size, embedding).expect("a model");
        check(
            &mut backend,
            &format!("{name} {size} {embedding:?}"),
            &model,
        );
    }
}

#[test]
fn resnet50() {
    each_embedding("resnet50", [33, 48, 32], models::resnet50);
}

/// The deepest one; ResNet101 is its shorter sister.
#[test]
fn resnet152() {
    let model = models::resnet152(32, EMBEDDINGS[0]).expect("a model");
    check(&mut Cpu::new(), "resnet152", &model);
}

#[test]
fn mobilenet_v2() {
    each_embedding("mobilenet_v2", [32, 49, 40], models::mobilenet_v2);
}

#[test]
fn mobilefacenet() {
    for size in [32, 45] {
        let model = models::mobilefacenet(size, 24).expect("a model");
        check(&mut Cpu::new(), &format!("mobilefacenet {size}"), &model);
    }
}

#[test]
fn small_models_that_are_hard_on_fusion() {
    let mut backend = Cpu::new();
    for (name, model) in graphs::all() {
        check(&mut backend, name, &model);
    }
    for seed in 0..200 {
        let model = graphs::random(seed, 4 + seed as usize % 14);
        check(&mut backend, &format!("random model {seed}"), &model);
    }
}
