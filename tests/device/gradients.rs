//! Gradients of whole models against finite differences of the naive f64 evaluation.
//!
//! The loss is the embedding's product with a fixed random matrix. For each parameter and a random direction d in it,
//! the engine's gradient times d must be (loss(w + h d) - loss(w - h d)) / 2h. The difference is taken of the *f64*
//! evaluation with h = 1e-6, where truncation (h^2) and rounding (1e-16 / h) both stay below 1e-9 of the loss; so the
//! tolerance is only what the engine's float32 loses on its way.

use crate::oracles::graphs;
use crate::oracles::model::{Mode, forward, widen};
use crate::support::devices::on_each_device;
use arcface_cu::backend::{Backend, InputTransform};
use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::graph::Model;
use arcface_cu::graph::train::{TrainGraph, TrainSettings};
use arcface_cu::optim::Role;

const N: usize = 3;
const SEED: u64 = 21;
const STEP: u64 = 5;
const H: f64 = 1e-6;
const TRANSFORM: InputTransform = InputTransform {
    scale: [1.0 / 127.5, 1.0 / 127.5, 1.0 / 128.0],
    shift: [-1.0, -0.9, -1.1],
};

/// What float32 loses over a dozen layers of a few hundred terms each, relative to the length of a parameter's
/// gradient. Batch norm over as few as N values of nearly the same size can magnify roundings a hundred times.
const RELATIVE: f64 = 1e-4;
/// Relative to the largest gradient of the model: a gradient that cancels to nothing (a bias before a batch norm)
/// leaves the rounding noise of its terms.
const FLOOR: f64 = 1e-5;
/// The embedding, and the running statistics, relative to the largest of them.
const FORWARD: f64 = 2e-5;

fn pixels(len: usize, seed: u64) -> Vec<u8> {
    let mut random = Random::new(seed, Purpose::Init, 1);
    let ripple = |i: usize| 60.0 * (i as f32 * 0.37).sin();
    (0..len)
        .map(|i| (128.0 + ripple(i) + random.range(-60.0, 60.0)) as u8)
        .collect()
}

fn uniform(len: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed, Purpose::Init, 2);
    (0..len).map(|_| random.range(-1.0, 1.0)).collect()
}

fn largest(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(0.0, |most, v| most.max(v.abs()))
}

/// Parameters away from their start, so that no gamma is 1 and no slope alike.
fn scatter<B: Backend>(backend: &mut B, graph: &mut TrainGraph<B>) -> [Vec<f32>; 3] {
    let mut random = Random::new(SEED, Purpose::Init, 3);
    let mut state = graph.state(backend).expect("the state");
    for param in graph.table().params() {
        let deviation = match param.role {
            Role::Filter | Role::EmbeddingFilter => 0.05,
            _ => 0.2,
        };
        for value in &mut state[0][param.offset..][..param.len()] {
            *value += deviation * random.normal();
        }
    }
    for value in &mut state[1] {
        *value += 0.1 * random.normal();
    }
    state
}

/// A forward and a backward pass; returns the embedding.
fn run<B: Backend>(
    backend: &mut B,
    graph: &mut TrainGraph<B>,
    (pixels, d_x): (&[u8], &[f32]),
    step: u64,
) -> Vec<f32> {
    graph
        .forward(backend, pixels, &TRANSFORM, step)
        .expect("a forward pass");
    let (x, dx) = graph.embeddings();
    let mut embedding = vec![0.0; d_x.len()];
    backend
        .download(x, 0, &mut embedding)
        .expect("the embedding");
    backend.upload(d_x, dx, 0).expect("its gradient");
    graph.backward(backend).expect("a backward pass");
    embedding
}

/// Checks a model and returns the largest part of a tolerance that was used.
fn check<B: Backend>(backend: &mut B, name: &str, model: &Model) -> f64 {
    let (image, d) = (model.input_shape().len(), model.embedding_size());
    let mut graph = TrainGraph::new(
        backend,
        model,
        TrainSettings {
            seed: SEED,
            max_batch: N + 1,
            ..TrainSettings::default()
        },
    )
    .expect("a graph");
    let state = scatter(backend, &mut graph);
    let [params, statistics, momentum] = &state;
    // A larger batch first, so that nothing is right for being zero or left over.
    graph
        .set_state(backend, [params, statistics, momentum])
        .expect("a state");
    let other = (pixels((N + 1) * image, 8), uniform((N + 1) * d, 8));
    run(backend, &mut graph, (&other.0, &other.1), STEP - 1);
    graph
        .set_state(backend, [params, statistics, momentum])
        .expect("a state");
    let (pixels, d_x) = (pixels(N * image, 9), uniform(N * d, 9));
    let embedding = run(backend, &mut graph, (&pixels, &d_x), STEP);
    let gradients = widen(&graph.gradients(backend).expect("gradients"));
    let [_, left, _] = graph.state(backend).expect("the state");

    let transformed = |(i, pixel): (usize, &u8)| {
        let (scale, shift) = (TRANSFORM.scale[i % 3], TRANSFORM.shift[i % 3]);
        f64::from(*pixel) * f64::from(scale) + f64::from(shift)
    };
    let input: Vec<f64> = pixels.iter().enumerate().map(transformed).collect();
    let mode = Mode::Training {
        seed: SEED,
        step: STEP,
    };
    let params = widen(params);
    let at_params = forward(model, &params, mode, &input, N);

    let mut used: f64 = 0.0;
    let mut within = |what: &str, error: f64, bound: f64| {
        assert!(
            error <= bound,
            "{name}: {what} is off by {error:e}, the bound is {bound:e}"
        );
        used = used.max(error / bound);
    };
    let error = |actual: &[f32], expected: &[f64]| {
        assert_eq!(actual.len(), expected.len(), "{name}");
        let pairs = actual.iter().zip(expected);
        // `max` would drop a NaN.
        pairs
            .map(|(a, e)| (f64::from(*a) - e).abs())
            .fold(0.0, |m, e| if e <= m { m } else { e })
    };
    let expected = at_params.embedding();
    within(
        "the embedding",
        error(&embedding, expected),
        FORWARD * largest(expected.iter().copied()),
    );
    // 0.9 is kept of the running statistics everywhere in these models.
    let expected: Vec<f64> = (at_params.batch_statistics.iter().zip(statistics))
        .map(|(batch, before)| 0.1 * batch + 0.9 * f64::from(*before))
        .collect();
    within(
        "the running statistics",
        error(&left, &expected),
        FORWARD * largest(expected.iter().copied()) + 1e-30,
    );

    let loss = |params: &[f64]| -> f64 {
        let pass = forward(model, params, mode, &input, N);
        let pairs = pass.embedding().iter().zip(&d_x);
        pairs.map(|(x, d)| x * f64::from(*d)).sum()
    };
    let most = largest(gradients.iter().copied());
    let mut random = Random::new(SEED, Purpose::Init, 4);
    for param in graph.table().params() {
        let gradient = &gradients[param.offset..][..param.len()];
        if param.role == Role::Fixed {
            assert!(gradient.iter().all(|g| *g == 0.0), "{name}: {}", param.name);
            continue;
        }
        let length = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        for _ in 0..2 {
            let direction: Vec<f64> = gradient
                .iter()
                .map(|_| f64::from(random.normal()))
                .collect();
            let moved = |h: f64| {
                let mut moved = params.clone();
                for (w, d) in moved[param.offset..].iter_mut().zip(&direction) {
                    *w += h * d;
                }
                loss(&moved)
            };
            let expected = (moved(H) - moved(-H)) / (2.0 * H);
            let products = gradient.iter().zip(&direction).map(|(g, d)| g * d);
            let actual: f64 = products.sum();
            let spread = (param.len() as f64).sqrt();
            within(
                &format!("the gradient of {} ({actual} for {expected})", param.name),
                (actual - expected).abs(),
                RELATIVE * length + FLOOR * most * spread,
            );
        }
    }
    used
}

fn hand_made<B: Backend>(backend: &mut B) {
    for (name, model) in graphs::all() {
        let used = check(backend, name, &model);
        println!("{name}: {:.0} % of the tolerance", 100.0 * used);
    }
}

fn random<B: Backend>(backend: &mut B) {
    for seed in 0..150 {
        let model = graphs::random(seed, 4 + seed as usize % 14);
        let used = check(backend, &format!("random model {seed}"), &model);
        println!("{seed}: {:.0} % of the tolerance", 100.0 * used);
    }
}

on_each_device! {
    networks;
    hand_made_models: hand_made,
    random_models: random,
}
