//! Small models whose shapes are hard on fusion: values with several readers, batch norms that follow no convolution,
//! additions of additions. And random ones, for the shapes that nobody thought of.

use arcface_cu::backend::Activation;
use arcface_cu::backend::geometry::Padding;
use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::graph::params::Init;
use arcface_cu::graph::{BatchNorm, Builder, Model, NodeId, Square};

const INIT: Init = Init::HeFanOut;

/// A batch norm with usual constants.
pub const NORM: BatchNorm = BatchNorm {
    epsilon: 1e-3,
    momentum: 0.9,
    gamma: true,
    beta: true,
};

/// Every hand-made model with its name.
pub fn all() -> Vec<(&'static str, Model)> {
    let mut models = Vec::new();
    let mut model = |name, build: fn(&mut Net, NodeId) -> NodeId| {
        models.push((name, Net::model((9, 7), build)));
    };
    model("a value with three readers", |g, x| {
        let x = g.conv(x, 6);
        let x = g.norm(x);
        let x = g.relu(x);
        let a = g.conv(x, 6);
        let b = g.depthwise(x, 1, false);
        let y = g.add(a, b);
        g.add(y, x)
    });
    model(
        "a value with three readers, masked after an addition",
        |g, x| {
            let a = g.conv(x, 6);
            let b = g.pointwise(x, 6);
            let x = g.add(a, b);
            let x = g.relu(x);
            let a = g.conv(x, 6);
            let a = g.norm(a);
            let y = g.add(x, a);
            let b = g.depthwise(x, 1, false);
            g.add(b, y)
        },
    );
    model("a convolution in groups of two channels", |g, x| {
        let x = g.conv(x, 6);
        let x = g.norm(x);
        let x = g.prelu(x);
        let swapped = g.swap_pairs(x);
        let own = g.depthwise(x, 1, false);
        let other = g.depthwise(swapped, 1, false);
        let x = g.add(own, other);
        let x = g.norm(x);
        g.prelu(x)
    });
    model("PReLU directly on the input", |g, x| {
        let x = g.prelu(x);
        g.conv(x, 4)
    });
    model("PReLU on the flattened input", |g, x| {
        let x = g.flatten(x);
        g.prelu(x)
    });
    model("a pending value added to itself", |g, x| {
        let x = g.conv(x, 5);
        let x = g.norm(x);
        let x = g.relu6(x);
        g.add(x, x)
    });
    model("a stored value added to itself, then activated", |g, x| {
        let a = g.conv(x, 5);
        let b = g.pointwise(x, 5);
        let x = g.add(a, b);
        let y = g.add(x, x);
        g.relu(y)
    });
    model("a raw convolution added to itself", |g, x| {
        let x = g.conv(x, 5);
        g.add(x, x)
    });
    model("batch norm after an addition with ReLU", |g, x| {
        let a = g.conv(x, 5);
        let a = g.norm(a);
        let b = g.pointwise(x, 5);
        let b = g.norm(b);
        let x = g.add(a, b);
        let x = g.relu(x);
        let x = g.norm(x);
        g.conv(x, 4)
    });
    model("batch norm after max pooling", |g, x| {
        let x = g.conv(x, 5);
        let x = g.norm(x);
        let x = g.relu(x);
        let x = g.max_pool(x);
        let x = g.norm(x);
        let x = g.prelu(x);
        g.conv(x, 4)
    });
    model("a value read raw and activated", |g, x| {
        let x = g.conv(x, 6);
        let x = g.norm(x);
        let y = g.relu(x);
        let y = g.conv(y, 6);
        g.add(x, y)
    });
    model("a sum read raw and activated", |g, x| {
        let a = g.conv(x, 6);
        let b = g.pointwise(x, 6);
        let x = g.add(a, b);
        let y = g.prelu(x);
        let y = g.conv(y, 6);
        let z = g.relu6(x);
        let y = g.add(y, z);
        g.add(y, x)
    });
    model("a value added to its own activation", |g, x| {
        let x = g.conv(x, 6);
        let x = g.norm(x);
        let y = g.relu(x);
        g.add(y, x)
    });
    model("linear bottlenecks in a row", |g, x| {
        let x = g.conv(x, 4);
        let x = g.norm(x);
        let x = g.bottleneck(x);
        let x = g.bottleneck(x);
        g.bottleneck(x)
    });
    model(
        "residual blocks with the activation after the addition",
        |g, x| {
            let mut x = g.conv(x, 4);
            for _ in 0..3 {
                let y = g.conv(x, 4);
                let y = g.norm(y);
                let y = g.relu(y);
                let y = g.conv(y, 4);
                let y = g.norm(y);
                x = g.add(x, y);
                x = g.relu(x);
            }
            x
        },
    );
    model("residual blocks that begin with batch norm", |g, x| {
        let x = g.conv(x, 4);
        let x = g.norm(x);
        let mut x = g.prelu(x);
        for stride in [2, 1, 1] {
            let y = g.norm(x);
            let y = g.conv(y, 4);
            let y = g.norm(y);
            let y = g.prelu(y);
            let y = g.strided(y, 4, stride);
            let y = g.norm(y);
            if stride == 2 {
                let shortcut = g.strided(x, 4, 2);
                x = g.norm(shortcut);
            }
            x = g.add(y, x);
        }
        g.norm(x)
    });
    model("PReLU after an addition", |g, x| {
        let a = g.conv(x, 5);
        let a = g.norm(a);
        let b = g.pointwise(x, 5);
        let x = g.add(a, b);
        let x = g.prelu(x);
        g.conv(x, 4)
    });
    model("a map flattened, then batch norm", |g, x| {
        let x = g.strided(x, 3, 2);
        let x = g.norm(x);
        let x = g.flatten(x);
        g.norm(x)
    });
    model("a raw map flattened, then batch norm", |g, x| {
        let x = g.strided(x, 3, 2);
        let x = g.flatten(x);
        let x = g.norm(x);
        g.relu(x)
    });
    model("a map flattened and read", |g, x| {
        let x = g.strided(x, 3, 2);
        let y = g.flatten(x);
        let y = g.linear(y, 3);
        let x = g.global_pool(x);
        g.add(x, y)
    });
    model("dropout", |g, x| {
        let x = g.conv(x, 5);
        let x = g.norm(x);
        let x = g.relu(x);
        let x = g.dropout(x);
        let y = g.conv(x, 5);
        let x = g.add(x, y);
        let x = g.norm(x);
        let x = g.dropout(x);
        let x = g.flatten(x);
        g.linear(x, 6)
    });
    model("dropout of an activated sum", |g, x| {
        let a = g.conv(x, 4);
        let b = g.pointwise(x, 4);
        let x = g.add(a, b);
        let x = g.relu(x);
        let y = g.dropout(x);
        g.add(x, y)
    });
    model("a dropped value activated beside its source", |g, x| {
        let x = g.conv(x, 4);
        let y = g.dropout(x);
        let y = g.relu(y);
        g.add(y, x)
    });
    model(
        "a vector flattened and activated beside its source",
        |g, x| {
            let x = g.conv(x, 4);
            let x = g.global_pool(x);
            let x = g.linear(x, 5);
            let y = g.flatten(x);
            let y = g.prelu(y);
            g.add(y, x)
        },
    );
    model("a map flattened and activated beside its source", |g, x| {
        let x = g.strided(x, 3, 2);
        let y = g.flatten(x);
        let y = g.prelu(y);
        let y = g.linear(y, 3);
        let x = g.global_pool(x);
        g.add(y, x)
    });
    model("convolutions without batch norm", |g, x| {
        let x = g.conv(x, 5);
        let x = g.relu(x);
        let x = g.depthwise(x, 2, true);
        let x = g.relu6(x);
        let x = g.pointwise(x, 4);
        g.prelu(x)
    });
    model("a stem without anything", |g, x| {
        let x = g.conv(x, 5);
        let x = g.conv(x, 4);
        g.max_pool(x)
    });
    model("batch norm of the input", |g, x| {
        let x = g.norm(x);
        let x = g.conv(x, 4);
        g.relu(x)
    });
    model("the input in an addition", |g, x| {
        let y = g.conv(x, 3);
        let y = g.norm(y);
        let y = g.add(x, y);
        let y = g.relu(y);
        g.add(y, x)
    });
    model("batch norm of batch norm", |g, x| {
        let x = g.conv(x, 4);
        let x = g.norm(x);
        let x = g.norm(x);
        let x = g.relu(x);
        let x = g.norm(x);
        g.fixed_norm(x)
    });
    model("two batch norms of one value", |g, x| {
        let x = g.conv(x, 4);
        let a = g.norm(x);
        let a = g.relu(a);
        let b = g.norm(x);
        g.add(a, b)
    });
    model("two activations in a row", |g, x| {
        let x = g.conv(x, 4);
        let x = g.prelu(x);
        let x = g.relu6(x);
        let y = g.conv(x, 4);
        let x = g.add(x, y);
        let x = g.relu(x);
        g.prelu(x)
    });
    model("two max pools of one value", |g, x| {
        let x = g.conv(x, 4);
        let x = g.norm(x);
        let x = g.relu(x);
        let a = g.max_pool(x);
        let b = g.max_pool(x);
        let y = g.add(a, b);
        let x = g.strided(x, 4, 2);
        g.add(x, y)
    });
    model("an addition whose sides are additions", |g, x| {
        let a = g.conv(x, 4);
        let b = g.pointwise(x, 4);
        let c = g.add(a, b);
        let d = g.add(b, c);
        let e = g.add(c, d);
        let f = g.relu(d);
        g.add(e, f)
    });
    model("linear layers with batch norm", |g, x| {
        let x = g.conv(x, 6);
        let x = g.relu(x);
        let x = g.global_pool(x);
        let x = g.linear(x, 5);
        let x = g.norm(x);
        let x = g.prelu(x);
        let x = g.linear(x, 4);
        g.fixed_norm(x)
    });
    model("a batch norm that learns nothing", |g, x| {
        let x = g.conv(x, 6);
        let x = g.plain_norm(x);
        let x = g.relu(x);
        let x = g.global_pool(x);
        let x = g.linear(x, 4);
        g.plain_norm(x)
    });
    models
}

/// A random model of about `layers` layers: each reads values chosen among all that exist so far, and at the end all
/// that nobody reads are pooled and summed.
pub fn random(seed: u64, layers: usize) -> Model {
    let mut random = Random::new(seed, Purpose::Init, 99);
    Net::model((8, 6), |g, input| {
        let c = 4;
        let mut made = vec![g.conv(input, c)];
        let mut read = vec![false];
        for _ in 0..layers {
            // Recent values are likelier, so that chains form.
            let mut choose = || {
                let back = random.below(4).min(random.below(made.len() as u32 + 2)) as usize;
                made.len() - 1 - back.min(made.len() - 1)
            };
            let (first, second) = (choose(), choose());
            let kind = random.below(14);
            read[first] = true;
            let x = made[first];
            let y = match kind {
                0 | 1 => g.conv(x, c),
                2 => g.pointwise(x, c),
                3 => g.depthwise(x, 1, true),
                4 | 5 => g.norm(x),
                6 => g.relu(x),
                7 => g.prelu(x),
                8 => g.relu6(x),
                9 => g.dropout(x),
                10 => g.max_pool_same(x),
                11 => g.add(x, x),
                _ => {
                    read[second] = true;
                    g.add(x, made[second])
                }
            };
            made.push(y);
            read.push(false);
        }
        let mut sum = None;
        for (x, read) in made.iter().zip(read) {
            if !read {
                // Spread the ends over several ways to become flat.
                let x = match random.below(3) {
                    0 => g.global_pool(*x),
                    1 => {
                        let flat = g.flatten(*x);
                        g.linear(flat, c)
                    }
                    _ => {
                        let y = g.norm(*x);
                        g.global_pool(y)
                    }
                };
                sum = Some(sum.map_or(x, |sum| g.add(sum, x)));
            }
        }
        sum.expect("the last layer is read by nobody")
    })
}

/// A builder that names the layers itself.
pub struct Net {
    builder: Builder,
    layers: usize,
}

impl Net {
    /// Builds a model on `h` x `w` images; a map at the end is flattened.
    pub fn model((h, w): (usize, usize), build: impl FnOnce(&mut Net, NodeId) -> NodeId) -> Model {
        let (builder, input) = Builder::new(h, w);
        let mut net = Net { builder, layers: 0 };
        let end = build(&mut net, input);
        if net.builder.shape(end).pixels() > 1 {
            net.flatten(end);
        }
        net.builder.finish().expect("a model that fits")
    }

    fn name(&mut self, kind: &str) -> String {
        self.layers += 1;
        format!("{kind}_{}", self.layers)
    }

    fn filter(&mut self, x: NodeId, k: usize, kernel: usize, stride: usize, bias: bool) -> NodeId {
        let (name, pad) = (self.name("conv"), Padding::same(kernel / 2));
        self.builder
            .conv2d(&name, x, k, Square::new(kernel, stride, pad), bias, INIT)
    }

    fn conv(&mut self, x: NodeId, k: usize) -> NodeId {
        self.filter(x, k, 3, 1, false)
    }

    fn strided(&mut self, x: NodeId, k: usize, stride: usize) -> NodeId {
        self.filter(x, k, 3, stride, false)
    }

    fn pointwise(&mut self, x: NodeId, k: usize) -> NodeId {
        self.filter(x, k, 1, 1, true)
    }

    fn depthwise(&mut self, x: NodeId, stride: usize, bias: bool) -> NodeId {
        let (name, square) = (
            self.name("depthwise"),
            Square::new(3, stride, Padding::same(1)),
        );
        self.builder.depthwise(&name, x, square, bias, INIT)
    }

    /// Pairs of channels exchanged by a filter that is not learnt.
    fn swap_pairs(&mut self, x: NodeId) -> NodeId {
        let (name, c) = (self.name("swap"), self.builder.shape(x).c);
        let (none, init) = (Padding::default(), Init::SwapPairs);
        self.builder
            .conv2d(&name, x, c, Square::new(1, 1, none), false, init)
    }

    fn norm(&mut self, x: NodeId) -> NodeId {
        let name = self.name("norm");
        self.builder.batch_norm(&name, x, NORM)
    }

    fn fixed_norm(&mut self, x: NodeId) -> NodeId {
        let name = self.name("norm");
        let fixed = BatchNorm {
            gamma: false,
            ..NORM
        };
        self.builder.batch_norm(&name, x, fixed)
    }

    fn plain_norm(&mut self, x: NodeId) -> NodeId {
        let name = self.name("norm");
        let plain = BatchNorm {
            gamma: false,
            beta: false,
            ..NORM
        };
        self.builder.batch_norm(&name, x, plain)
    }

    fn activation(&mut self, x: NodeId, activation: Activation) -> NodeId {
        let name = self.name("activation");
        self.builder.activation(&name, x, activation)
    }

    fn relu(&mut self, x: NodeId) -> NodeId {
        self.activation(x, Activation::Relu)
    }

    fn relu6(&mut self, x: NodeId) -> NodeId {
        self.activation(x, Activation::Relu6)
    }

    fn prelu(&mut self, x: NodeId) -> NodeId {
        self.activation(x, Activation::PRelu(()))
    }

    fn add(&mut self, a: NodeId, b: NodeId) -> NodeId {
        let name = self.name("add");
        self.builder.add(&name, a, b)
    }

    fn max_pool(&mut self, x: NodeId) -> NodeId {
        let name = self.name("pool");
        self.builder
            .max_pool(&name, x, Square::new(3, 2, Padding::same(1)))
    }

    fn max_pool_same(&mut self, x: NodeId) -> NodeId {
        let name = self.name("pool");
        self.builder
            .max_pool(&name, x, Square::new(3, 1, Padding::same(1)))
    }

    fn global_pool(&mut self, x: NodeId) -> NodeId {
        let name = self.name("mean");
        self.builder.global_avg_pool(&name, x)
    }

    fn flatten(&mut self, x: NodeId) -> NodeId {
        let name = self.name("flatten");
        self.builder.flatten(&name, x)
    }

    fn linear(&mut self, x: NodeId, units: usize) -> NodeId {
        let name = self.name("linear");
        self.builder.linear(&name, x, units, true, INIT)
    }

    fn dropout(&mut self, x: NodeId) -> NodeId {
        let name = self.name("dropout");
        self.builder.dropout(&name, x, 0.3)
    }

    /// Expand, depthwise, linear projection, addition.
    fn bottleneck(&mut self, x: NodeId) -> NodeId {
        let c = self.builder.shape(x).c;
        let y = self.pointwise(x, 2 * c);
        let y = self.norm(y);
        let y = self.relu6(y);
        let y = self.depthwise(y, 1, false);
        let y = self.norm(y);
        let y = self.relu6(y);
        let y = self.pointwise(y, c);
        let y = self.norm(y);
        self.add(x, y)
    }
}
