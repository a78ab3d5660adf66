//! The table of parameters: one slab of what is learnt, one of batch norm's running statistics.
//!
//! Gradients and momentum are slabs of the learnt slab's shape, so the optimizer is one call, and so is a sum over
//! devices.

use super::{Model, Node, Op};
use crate::backend::{Activation, BatchNormAt, FilterAt, Segment};
use crate::base::random::{Purpose, Random};
use crate::optim::Role;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How a kernel starts.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Init {
    /// Uniform in +-sqrt(6 / (fan in + fan out)) (Glorot and Bengio 2010), Keras's default.
    GlorotUniform,
    /// Normal with this standard deviation.
    Normal(f32),
    /// Normal with variance 2 / fan out (He et al. 2015), usual for networks with ReLU or PReLU.
    HeFanOut,
    /// Uniform in +-1 / sqrt(fan in), PyTorch's default.
    FanInUniform,
    /// Of a 1x1 convolution: output channel i is input channel i with its lowest bit flipped. It is not learnt.
    SwapPairs,
}

impl Init {
    /// Whether a filter that starts so is learnt.
    pub fn is_learnt(self) -> bool {
        self != Init::SwapPairs
    }
}

/// One learnt parameter.
#[derive(Clone, Debug)]
pub struct Param {
    /// `layer/kernel`, as Keras names it.
    pub name: String,
    /// KRSC for convolutions, RSC for depthwise ones, KC for linear layers, C for vectors.
    pub shape: Vec<usize>,
    /// First element in the slab.
    pub offset: usize,
    /// What it is.
    pub role: Role,
    /// Multiplies the learning rate.
    pub lr_multiplier: f32,
    init: Start,
}

impl Param {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A vector of running statistics.
#[derive(Clone, Debug)]
pub struct Statistic {
    /// `layer/moving_mean` or `layer/moving_variance`.
    pub name: String,
    /// First element in the statistics slab.
    pub offset: usize,
    /// Channels.
    pub len: usize,
    /// 0 for means, 1 for variances.
    start: f32,
}

#[derive(Clone, Copy, Debug)]
enum Start {
    Constant(f32),
    Uniform(f32),
    Normal(f32),
    /// Rows of so many elements.
    SwapPairs(usize),
}

/// Where one node's parameters are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum At {
    /// The node has none.
    None,
    /// A convolution's or linear layer's.
    Filter(FilterAt),
    /// A batch norm's.
    BatchNorm(BatchNormAt),
    /// PReLU's slopes begin here.
    Slope(usize),
}

/// Every parameter and statistic of a model, with its place.
#[derive(Clone, Debug)]
pub struct ParamTable {
    params: Vec<Param>,
    statistics: Vec<Statistic>,
    at: Vec<At>,
    params_len: usize,
    statistics_len: usize,
}

impl ParamTable {
    /// Lays out a model's parameters in the order of its nodes.
    pub fn new(model: &Model) -> Self {
        let mut table = ParamTable {
            params: Vec::new(),
            statistics: Vec::new(),
            at: Vec::new(),
            params_len: 0,
            statistics_len: 0,
        };
        for node in model.nodes() {
            let c = node.inputs.first().map_or(0, |x| model.node(*x).shape.c);
            let at = table.place(node, c);
            table.at.push(at);
        }
        table
    }

    fn place(&mut self, node: &Node, c: usize) -> At {
        let constant = Start::Constant;
        match &node.op {
            Op::Conv2d {
                filters,
                window,
                bias,
                init,
            } => {
                let taps = window.r * window.s;
                let start = start(*init, c * taps, filters * taps);
                let shape = vec![*filters, window.r, window.s, c];
                let role = if init.is_learnt() {
                    Role::Filter
                } else {
                    Role::Fixed
                };
                let weights = self.push(node, "kernel", shape, role, start);
                let bias = bias
                    .then(|| self.push(node, "bias", vec![*filters], Role::Bias, constant(0.0)));
                At::Filter(FilterAt { weights, bias })
            }
            Op::DepthwiseConv2d { window, bias, init } => {
                let taps = window.r * window.s;
                // Keras counts a depthwise kernel (R, S, C, 1) as fan in R S C and fan out R S.
                let start = start(*init, c * taps, taps);
                let shape = vec![window.r, window.s, c];
                let weights = self.push(node, "depthwise_kernel", shape, Role::Filter, start);
                let bias =
                    bias.then(|| self.push(node, "bias", vec![c], Role::Bias, constant(0.0)));
                At::Filter(FilterAt { weights, bias })
            }
            Op::Linear { units, bias, init } => {
                let start = start(*init, c, *units);
                let shape = vec![*units, c];
                let weights = self.push(node, "kernel", shape, Role::EmbeddingFilter, start);
                let bias = bias.then(|| {
                    self.push(
                        node,
                        "bias",
                        vec![*units],
                        Role::EmbeddingBias,
                        constant(0.0),
                    )
                });
                At::Filter(FilterAt { weights, bias })
            }
            Op::BatchNorm(batch_norm) => {
                let gamma = batch_norm
                    .gamma
                    .then(|| self.push(node, "gamma", vec![c], Role::BatchNorm, constant(1.0)));
                let beta = batch_norm
                    .beta
                    .then(|| self.push(node, "beta", vec![c], Role::BatchNorm, constant(0.0)));
                let statistics = self.statistics_len;
                for (suffix, start) in [("moving_mean", 0.0), ("moving_variance", 1.0)] {
                    self.statistics.push(Statistic {
                        name: format!("{}/{suffix}", node.name),
                        offset: self.statistics_len,
                        len: c,
                        start,
                    });
                    self.statistics_len += c;
                }
                At::BatchNorm(BatchNormAt {
                    gamma,
                    beta,
                    statistics,
                    epsilon: batch_norm.epsilon,
                    momentum: batch_norm.momentum,
                })
            }
            Op::Activation(Activation::PRelu(_)) => {
                At::Slope(self.push(node, "alpha", vec![c], Role::Slope, constant(0.25)))
            }
            _ => At::None,
        }
    }

    fn push(
        &mut self,
        node: &Node,
        suffix: &str,
        shape: Vec<usize>,
        role: Role,
        init: Start,
    ) -> usize {
        let offset = self.params_len;
        let param = Param {
            name: format!("{}/{suffix}", node.name),
            shape,
            offset,
            role,
            lr_multiplier: if role == Role::Fixed { 0.0 } else { 1.0 },
            init,
        };
        // Each parameter begins on a cache line (and so on a 16-byte boundary for vector loads on a GPU).
        self.params_len += param.len().next_multiple_of(16);
        self.params.push(param);
        offset
    }

    /// The learnt parameters, in slab order.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// The running statistics, in slab order.
    pub fn statistics(&self) -> &[Statistic] {
        &self.statistics
    }

    /// Elements of the parameter slab, gaps for alignment included.
    pub fn params_len(&self) -> usize {
        self.params_len
    }

    /// Elements of the statistics slab.
    pub fn statistics_len(&self) -> usize {
        self.statistics_len
    }

    /// Parameters as Keras counts them: learnt ones and running statistics.
    pub fn count(&self) -> usize {
        self.params.iter().map(Param::len).sum::<usize>() + self.statistics_len
    }

    pub(crate) fn at(&self, node: usize) -> At {
        self.at[node]
    }

    /// Initial parameters and statistics. Each parameter draws from its own stream, so that adding a layer leaves
    /// the others' start as it was.
    pub fn init(&self, seed: u64) -> (Vec<f32>, Vec<f32>) {
        let mut params = vec![0.0; self.params_len];
        for (i, param) in self.params.iter().enumerate() {
            let values = &mut params[param.offset..][..param.len()];
            let mut random = Random::new(seed, Purpose::Init, i as u64);
            for (i, value) in values.iter_mut().enumerate() {
                *value = match param.init {
                    Start::Constant(constant) => constant,
                    Start::Uniform(limit) => random.range(-limit, limit),
                    Start::Normal(deviation) => deviation * random.normal(),
                    Start::SwapPairs(c) => f32::from(i % c == (i / c) ^ 1),
                };
            }
        }
        let mut statistics = vec![0.0; self.statistics_len];
        for statistic in &self.statistics {
            statistics[statistic.offset..][..statistic.len].fill(statistic.start);
        }
        (params, statistics)
    }

    /// The optimizer's segments, one a parameter, with the decay that `decay` gives each.
    pub fn segments(&self, decay: impl Fn(&Param) -> f32) -> Vec<Segment> {
        let segment = |param: &Param| Segment {
            offset: param.offset,
            len: param.len(),
            decay: decay(param),
            lr_multiplier: param.lr_multiplier,
        };
        self.params.iter().map(segment).collect()
    }

    /// A parameter or statistic by name, as (is a statistic, offset, shape).
    ///
    /// # Errors
    /// There is none of that name.
    pub fn find(&self, name: &str) -> Result<(bool, usize, Vec<usize>)> {
        if let Some(param) = self.params.iter().find(|p| p.name == name) {
            return Ok((false, param.offset, param.shape.clone()));
        }
        if let Some(statistic) = self.statistics.iter().find(|s| s.name == name) {
            return Ok((true, statistic.offset, vec![statistic.len]));
        }
        Err(Error::Invalid(format!(
            "the network has no parameter named {name}"
        )))
    }
}

fn start(init: Init, fan_in: usize, fan_out: usize) -> Start {
    match init {
        Init::GlorotUniform => Start::Uniform((6.0 / (fan_in + fan_out) as f32).sqrt()),
        Init::Normal(deviation) => Start::Normal(deviation),
        Init::HeFanOut => Start::Normal((2.0 / fan_out as f32).sqrt()),
        Init::FanInUniform => Start::Uniform(1.0 / (fan_in as f32).sqrt()),
        Init::SwapPairs => Start::SwapPairs(fan_in),
    }
}
