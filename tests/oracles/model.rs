//! A model's nodes evaluated one after the other in f64, each by its definition: no fusion, no folding, no pending
//! values. What the graph's two executors must agree with.

use super::backend::kept;
use super::window::pixel;
use arcface_cu::backend::geometry::Window;
use arcface_cu::backend::{Activation, Dropout};
use arcface_cu::graph::params::ParamTable;
use arcface_cu::graph::{Model, NodeId, Op};

/// How batch norm and dropout behave.
#[derive(Clone, Copy)]
pub enum Mode<'a> {
    /// Batch statistics; dropout draws from these numbers.
    Training { seed: u64, step: u64 },
    /// These running statistics (a slab as the parameter table lays it out); no dropout.
    Frozen(&'a [f64]),
}

/// What a forward pass gives.
pub struct Forward {
    /// Every node's output, N H W C.
    pub values: Vec<Vec<f64>>,
    /// Running statistics that this batch alone would leave behind (momentum 0): means and unbiased variances, in
    /// the slab's layout. Empty for frozen passes.
    pub batch_statistics: Vec<f64>,
}

impl Forward {
    /// The last node's output.
    pub fn embedding(&self) -> &[f64] {
        self.values.last().expect("a model has nodes")
    }
}

/// Slab in f64.
pub fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// A node's number.
pub fn index(model: &Model, id: NodeId) -> usize {
    let node = model.node(id);
    let at = model
        .nodes()
        .iter()
        .position(|other| std::ptr::eq(other, node));
    at.expect("a node of this model")
}

/// Evaluates `model` on `n` images of H x W x 3 numbers.
pub fn forward(model: &Model, params: &[f64], mode: Mode<'_>, input: &[f64], n: usize) -> Forward {
    let table = ParamTable::new(model);
    let mut result = Forward {
        values: Vec::new(),
        batch_statistics: match mode {
            Mode::Training { .. } => vec![0.0; table.statistics_len()],
            Mode::Frozen(_) => Vec::new(),
        },
    };
    let mut dropouts = 0;
    for node in model.nodes() {
        let find = |suffix: &str| table.find(&format!("{}/{suffix}", node.name)).ok();
        let param = |suffix: &str| {
            find(suffix).map(|(_, at, shape)| &params[at..][..shape.iter().product()])
        };
        let inputs: Vec<usize> = node.inputs.iter().map(|id| index(model, *id)).collect();
        let x = inputs.first().map_or(&[][..], |i| &result.values[*i][..]);
        let c = inputs.first().map_or(0, |i| model.nodes()[*i].shape.c);
        let y = match &node.op {
            Op::Input => input.to_vec(),
            Op::Conv2d {
                filters, window, ..
            } => {
                let kernel = param("kernel").expect("a convolution has a kernel");
                conv2d(x, kernel, param("bias"), window, (n, c, *filters))
            }
            Op::DepthwiseConv2d { window, .. } => {
                let kernel = param("depthwise_kernel").expect("a convolution has a kernel");
                let bias = param("bias");
                per_channel(x, window, (n, c), |values, channel| {
                    let products = values.iter().map(|(tap, x)| x * kernel[tap * c + channel]);
                    products.sum::<f64>() + bias.map_or(0.0, |bias| bias[channel])
                })
            }
            Op::BatchNorm(batch_norm) => {
                let (_, at, _) = find("moving_mean").expect("batch norm has statistics");
                let (mean, variance) = match mode {
                    Mode::Training { .. } => {
                        let (mean, variance) = moments(x, c);
                        let rows = (x.len() / c) as f64;
                        let unbiased = variance.iter().map(|v| v * rows / (rows - 1.0).max(1.0));
                        let both = mean.iter().copied().chain(unbiased);
                        for (slot, value) in result.batch_statistics[at..].iter_mut().zip(both) {
                            *slot = value;
                        }
                        (mean, variance)
                    }
                    Mode::Frozen(statistics) => (
                        statistics[at..][..c].to_vec(),
                        statistics[at + c..][..c].to_vec(),
                    ),
                };
                let (gamma, beta) = (param("gamma"), param("beta"));
                let epsilon = f64::from(batch_norm.epsilon);
                by_channel(x, c, |x, i| {
                    let normalised = (x - mean[i]) / (variance[i] + epsilon).sqrt();
                    gamma.map_or(1.0, |gamma| gamma[i]) * normalised
                        + beta.map_or(0.0, |beta| beta[i])
                })
            }
            Op::Activation(Activation::Identity) => unreachable!("the builder refuses it"),
            Op::Activation(Activation::Relu) => by_channel(x, c, |x, _| x.max(0.0)),
            Op::Activation(Activation::Relu6) => by_channel(x, c, |x, _| x.clamp(0.0, 6.0)),
            Op::Activation(Activation::PRelu(())) => {
                let slope = param("alpha").expect("slopes");
                by_channel(x, c, |x, i| if x > 0.0 { x } else { slope[i] * x })
            }
            Op::Add => {
                let b = &result.values[inputs[1]];
                x.iter().zip(b).map(|(a, b)| a + b).collect()
            }
            Op::MaxPool(window) => per_channel(x, window, (n, c), |values, _| {
                values
                    .iter()
                    .map(|(_, x)| *x)
                    .fold(f64::NEG_INFINITY, f64::max)
            }),
            Op::GlobalAvgPool => {
                let image = x.len() / n;
                let mean = |i: usize| {
                    let image = &x[i / c * image..][..image];
                    image.iter().skip(i % c).step_by(c).sum::<f64>() / (image.len() / c) as f64
                };
                (0..n * c).map(mean).collect()
            }
            Op::Linear { units, .. } => {
                let kernel = param("kernel").expect("a linear layer has a kernel");
                let bias = param("bias");
                let one = |i: usize| {
                    let (row, k) = (&x[i / units * c..][..c], i % units);
                    dot(row, &kernel[k * c..][..c]) + bias.map_or(0.0, |bias| bias[k])
                };
                (0..n * units).map(one).collect()
            }
            Op::Dropout { rate } => {
                let layer = dropouts;
                dropouts += 1;
                match mode {
                    Mode::Training { seed, step } => {
                        let rate = *rate;
                        dropout(
                            x,
                            &Dropout {
                                rate,
                                seed,
                                layer,
                                step,
                            },
                        )
                    }
                    Mode::Frozen(_) => x.to_vec(),
                }
            }
            Op::Flatten => x.to_vec(),
        };
        assert_eq!(y.len(), n * node.shape.len(), "{}", node.name);
        result.values.push(y);
    }
    result
}

fn by_channel(x: &[f64], c: usize, f: impl Fn(f64, usize) -> f64) -> Vec<f64> {
    x.iter().enumerate().map(|(i, x)| f(*x, i % c)).collect()
}

fn moments(x: &[f64], c: usize) -> (Vec<f64>, Vec<f64>) {
    let rows = (x.len() / c) as f64;
    let channel = |i: usize| x.iter().skip(i).step_by(c);
    let of = |i: usize| {
        let mean = channel(i).sum::<f64>() / rows;
        let variance = channel(i).map(|x| (x - mean) * (x - mean)).sum::<f64>() / rows;
        (mean, variance)
    };
    (0..c).map(of).unzip()
}

/// Four sums, so that the compiler may vectorise; order does not matter at f64 against f32 tolerances.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 4];
    for (a, b) in a.chunks(4).zip(b.chunks(4)) {
        for (i, (a, b)) in a.iter().zip(b).enumerate() {
            sums[i] += a * b;
        }
    }
    sums.iter().sum()
}

fn conv2d(
    x: &[f64],
    kernel: &[f64],
    bias: Option<&[f64]>,
    window: &Window,
    (n, c, k): (usize, usize, usize),
) -> Vec<f64> {
    let taps = window.r * window.s;
    let mut y = Vec::with_capacity(n * window.p * window.q * k);
    for image in x.chunks(window.h * window.w * c).take(n) {
        for at in 0..window.p * window.q {
            let out = (at / window.q, at % window.q);
            for filter in 0..k {
                let mut sum = bias.map_or(0.0, |bias| bias[filter]);
                for tap in 0..taps {
                    if let Some(pixel) = pixel(window, out, (tap / window.s, tap % window.s)) {
                        let weights = &kernel[(filter * taps + tap) * c..][..c];
                        sum += dot(&image[pixel * c..][..c], weights);
                    }
                }
                y.push(sum);
            }
        }
    }
    y
}

/// `f` of each window's (tap, value) pairs inside the image, channel by channel.
fn per_channel(
    x: &[f64],
    window: &Window,
    (n, c): (usize, usize),
    f: impl Fn(&[(usize, f64)], usize) -> f64,
) -> Vec<f64> {
    let mut y = Vec::with_capacity(n * window.p * window.q * c);
    let mut values = Vec::new();
    for image in x.chunks(window.h * window.w * c).take(n) {
        for at in 0..window.p * window.q {
            let out = (at / window.q, at % window.q);
            for channel in 0..c {
                values.clear();
                for tap in 0..window.r * window.s {
                    if let Some(pixel) = pixel(window, out, (tap / window.s, tap % window.s)) {
                        values.push((tap, image[pixel * c + channel]));
                    }
                }
                y.push(f(&values, channel));
            }
        }
    }
    y
}

fn dropout(x: &[f64], dropout: &Dropout) -> Vec<f64> {
    let scale = 1.0 / (1.0 - f64::from(dropout.rate));
    let drop = |(i, x): (usize, &f64)| if kept(dropout, i) { x * scale } else { 0.0 };
    x.iter().enumerate().map(drop).collect()
}
