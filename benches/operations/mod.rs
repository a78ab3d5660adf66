//! The operations that are measured: their shapes, operands and work.

use arcface_cu::Result;
use arcface_cu::backend::geometry::{
    Conv2d, GlobalPool, HeadShard, Padding, PerChannel, Rows, Window,
};
use arcface_cu::backend::margin::Margin;
use arcface_cu::backend::{
    Activation, AddFprop, ArcFaceBprop, ArcFaceFprop, Backend, BatchNormMoments, Close, CloseGrad,
    Conv2dDgrad, Conv2dFprop, Conv2dWgrad, DepthwiseDgrad, DepthwiseFprop, DepthwiseWgrad, Dropout,
    DropoutFprop, Epilogue, FilterAt, GlobalAvgPoolFprop, GradTarget, InputTransform,
    InputTransformFprop, MaxPoolDgrad, MaxPoolFprop, Pending, PendingGrad, Segment, SgdForm,
    SgdNorms, SgdStep, SgdUpdate, bn, head_rows, sums,
};
use arcface_cu::base::random::{Purpose, Random};

/// One operation at one shape.
pub(crate) struct Operation {
    /// What people call it: operation, network, shape.
    pub(crate) name: String,
    work: Work,
}

/// What is done, on tensors of which shape.
#[derive(Clone, Copy)]
enum Work {
    ConvFprop(Conv2d),
    ConvDgrad(Conv2d),
    ConvWgrad(Conv2d),
    DepthwiseFprop(PerChannel),
    DepthwiseDgrad(PerChannel),
    DepthwiseWgrad(PerChannel),
    Moments(Rows),
    Add(Rows),
    CloseGrad(Rows),
    MaxPoolFprop(PerChannel),
    MaxPoolDgrad(PerChannel),
    GlobalAvgPool(GlobalPool),
    Dropout(Rows),
    InputTransform(usize),
    HeadFprop(HeadShard),
    HeadBprop(HeadShard),
    SgdUpdate(usize),
}

/// The list, for batches of `n`.
pub(crate) fn operations(n: usize) -> Vec<Operation> {
    let window = |size: usize, taps: usize, stride: usize| {
        Window::new((size, size), (taps, taps), stride, Padding::same(taps / 2))
            .expect("a valid window")
    };
    let mut list = Vec::new();
    let mut add = |name: String, work| list.push(Operation { name, work });
    for (net, c, k, size, taps, stride) in [
        ("r50", 3, 64, 112, 7, 2),
        ("r50", 64, 64, 28, 3, 1),
        ("r50", 64, 256, 28, 1, 1),
        ("r50", 256, 128, 28, 1, 2),
        ("r50", 128, 128, 14, 3, 1),
        ("r50", 256, 256, 7, 3, 1),
        ("r50", 512, 2048, 4, 1, 1),
        ("ir50", 64, 64, 56, 3, 1),
        ("mbv2", 24, 144, 28, 1, 1),
    ] {
        let geometry = Conv2d {
            n,
            c,
            k,
            window: window(size, taps, stride),
        };
        let shape = format!("{net} {taps}x{taps}/{stride} {c}->{k} on {size}x{size}");
        add(format!("conv_fprop {shape}"), Work::ConvFprop(geometry));
        // Nothing reads the gradient of pixels.
        if c > 3 {
            add(format!("conv_dgrad {shape}"), Work::ConvDgrad(geometry));
        }
        add(format!("conv_wgrad {shape}"), Work::ConvWgrad(geometry));
    }
    for (c, size, stride) in [(144, 28, 1), (144, 28, 2), (576, 7, 1)] {
        let geometry = PerChannel {
            n,
            c,
            window: window(size, 3, stride),
        };
        let shape = format!("mbv2 3x3/{stride} {c} on {size}x{size}");
        add(
            format!("depthwise_fprop {shape}"),
            Work::DepthwiseFprop(geometry),
        );
        add(
            format!("depthwise_dgrad {shape}"),
            Work::DepthwiseDgrad(geometry),
        );
        add(
            format!("depthwise_wgrad {shape}"),
            Work::DepthwiseWgrad(geometry),
        );
    }
    for (c, size) in [(64, 56), (256, 28), (2048, 4)] {
        let rows = Rows {
            pixels: n * size * size,
            c,
        };
        let shape = format!("r50 {c} on {size}x{size}");
        add(format!("batch_norm_moments {shape}"), Work::Moments(rows));
        add(format!("add_fprop {shape}"), Work::Add(rows));
        add(format!("close_grad {shape}"), Work::CloseGrad(rows));
    }
    let pool = PerChannel {
        n,
        c: 64,
        window: window(56, 3, 2),
    };
    add(
        "max_pool_fprop r50 3x3/2 64 on 56x56".into(),
        Work::MaxPoolFprop(pool),
    );
    add(
        "max_pool_dgrad r50 3x3/2 64 on 56x56".into(),
        Work::MaxPoolDgrad(pool),
    );
    let pool = GlobalPool {
        n,
        pixels: 16,
        c: 2048,
    };
    add(
        "global_avg_pool r50 2048 on 4x4".into(),
        Work::GlobalAvgPool(pool),
    );
    add(
        "dropout e 512 on 7x7".into(),
        Work::Dropout(Rows {
            pixels: n * 49,
            c: 512,
        }),
    );
    add(
        "input_transform 112x112".into(),
        Work::InputTransform(n * 112 * 112 * 3),
    );
    let head = HeadShard {
        n,
        d: 512,
        first: 0,
        last: 8_192,
    };
    add("arcface_fprop 512 x 8192".into(), Work::HeadFprop(head));
    add("arcface_bprop 512 x 8192".into(), Work::HeadBprop(head));
    add("sgd_update 2M".into(), Work::SgdUpdate(2 << 20));
    list
}

/// Weights before the bias in the small parameter slab of an operation.
fn filter_at(weights: usize) -> FilterAt {
    FilterAt {
        weights: 0,
        bias: Some(weights),
    }
}

const STEP: SgdStep = SgdStep {
    form: SgdForm::Keras,
    lr: 0.01,
    momentum: 0.9,
    clip: Some(1e6),
};

const TRANSFORM: InputTransform = InputTransform {
    scale: [1.0 / 127.5; 3],
    shift: [-1.0; 3],
};

/// An operation's tensors on a device.
pub(crate) struct Operands<B: Backend> {
    buffers: Vec<B::Buffer>,
    /// How many of them hold results; they come last.
    results: usize,
    pixels: Vec<u8>,
    labels: Vec<u32>,
}

impl Operation {
    /// Multiply-adds.
    pub(crate) fn macs(&self) -> u64 {
        match self.work {
            Work::ConvFprop(g) | Work::ConvDgrad(g) | Work::ConvWgrad(g) => g.macs(),
            Work::DepthwiseFprop(g) | Work::DepthwiseDgrad(g) | Work::DepthwiseWgrad(g) => g.macs(),
            Work::HeadFprop(g) => (g.n * g.d * g.classes()) as u64,
            // The logits again, the gradient of the embeddings, the gradient of the class rows.
            Work::HeadBprop(g) => 3 * (g.n * g.d * g.classes()) as u64,
            _ => 0,
        }
    }

    /// Bytes of the operands and results, each counted once.
    pub(crate) fn bytes(&self) -> u64 {
        let (inputs, results) = self.lengths();
        let pixels = match self.work {
            Work::InputTransform(len) => len,
            _ => 0,
        };
        (4 * (inputs.iter().sum::<usize>() + results.iter().sum::<usize>()) + pixels) as u64
    }

    /// Elements of the inputs and of the results.
    fn lengths(&self) -> (Vec<usize>, Vec<usize>) {
        let conv = |g: Conv2d| {
            (
                g.pixels_in() * g.c,
                g.pixels_out() * g.k,
                g.filter_len() + g.k,
                g.c,
                g.k,
            )
        };
        let depthwise = |g: PerChannel| {
            (
                g.pixels_in() * g.c,
                g.pixels_out() * g.c,
                g.filter_len() + g.c,
                g.c,
                g.c,
            )
        };
        let fprop = |(x, y, params, c, k): (usize, usize, usize, usize, usize)| {
            (
                vec![x, bn::forward_len(c), params],
                vec![y, bn::moments_len(k)],
            )
        };
        let dgrad = |(x, y, params, c, k): (usize, usize, usize, usize, usize)| {
            (
                vec![y, y, bn::backward_len(k), params, x, bn::forward_len(c)],
                vec![x, sums::len(c)],
            )
        };
        let wgrad = |(x, y, params, c, k): (usize, usize, usize, usize, usize)| {
            (
                vec![y, y, bn::backward_len(k), x, bn::forward_len(c)],
                vec![params],
            )
        };
        match self.work {
            Work::ConvFprop(g) => fprop(conv(g)),
            Work::ConvDgrad(g) => dgrad(conv(g)),
            Work::ConvWgrad(g) => wgrad(conv(g)),
            Work::DepthwiseFprop(g) => fprop(depthwise(g)),
            Work::DepthwiseDgrad(g) => dgrad(depthwise(g)),
            Work::DepthwiseWgrad(g) => wgrad(depthwise(g)),
            Work::Moments(rows) => (vec![rows.len()], vec![bn::moments_len(rows.c)]),
            Work::Add(rows) => (
                vec![rows.len(), bn::forward_len(rows.c), rows.len()],
                vec![rows.len()],
            ),
            Work::CloseGrad(rows) => (
                vec![rows.len(), bn::forward_len(rows.c)],
                vec![rows.len(), sums::len(rows.c)],
            ),
            Work::MaxPoolFprop(g) => (
                vec![g.pixels_in() * g.c, bn::forward_len(g.c)],
                vec![g.pixels_out() * g.c],
            ),
            Work::MaxPoolDgrad(g) => {
                let x = g.pixels_in() * g.c;
                (vec![g.pixels_out() * g.c, x, bn::forward_len(g.c)], vec![x])
            }
            Work::GlobalAvgPool(g) => (
                vec![g.n * g.pixels * g.c, bn::forward_len(g.c)],
                vec![g.n * g.c],
            ),
            Work::Dropout(rows) => (vec![rows.len()], vec![rows.len()]),
            Work::InputTransform(len) => (vec![], vec![len]),
            Work::HeadFprop(g) => (
                vec![g.n * g.d, g.classes() * g.d],
                vec![g.classes(), head_rows::len(g.n)],
            ),
            Work::HeadBprop(g) => {
                let classes = g.classes() * g.d;
                let inputs = vec![g.n * g.d, g.classes(), head_rows::len(g.n)];
                (inputs, vec![classes, classes, g.n * g.d])
            }
            Work::SgdUpdate(len) => (vec![len], vec![2, len, len]),
        }
    }

    /// The operands with numbers that no symmetry helps, the same on every device.
    pub(crate) fn operands<B: Backend>(&self, backend: &mut B) -> Result<Operands<B>> {
        let (inputs, results) = self.lengths();
        let mut buffers = Vec::new();
        for (i, len) in inputs.iter().chain(&results).enumerate() {
            let mut buffer = backend.alloc(*len)?;
            backend.upload(&noise(*len, i as u64), &mut buffer, 0)?;
            buffers.push(buffer);
        }
        let mut operands = Operands {
            buffers,
            results: results.len(),
            pixels: Vec::new(),
            labels: Vec::new(),
        };
        match self.work {
            Work::InputTransform(len) => {
                operands.pixels = (0..len).map(|i| (i * 7 % 253) as u8).collect()
            }
            Work::HeadFprop(g) => operands.labels = labels(&g),
            Work::HeadBprop(g) => {
                operands.labels = labels(&g);
                // The backward pass needs what the forward pass left.
                let Operands {
                    buffers, labels, ..
                } = &mut operands;
                let [x, norms, rows, classes, ..] = &mut buffers[..] else {
                    unreachable!("the head has six operands")
                };
                backend.arcface_fprop(ArcFaceFprop {
                    shard: g,
                    margin: &Margin::default(),
                    x,
                    classes,
                    labels,
                    inverse_norms: norms,
                    rows,
                })?;
            }
            _ => {}
        }
        Ok(operands)
    }

    /// Does it.
    pub(crate) fn run<B: Backend>(
        &self,
        backend: &mut B,
        operands: &mut Operands<B>,
    ) -> Result<()> {
        let Operands {
            buffers,
            pixels,
            labels,
            ..
        } = operands;
        let buffers = &mut buffers[..];
        let margin = Margin::default();
        match self.work {
            Work::ConvFprop(g) => {
                let [x, forward, params, y, moments] = buffers else {
                    unreachable!("as in lengths")
                };
                let filter = filter_at(g.filter_len());
                backend.conv2d_fprop(Conv2dFprop {
                    geometry: g,
                    x: relu(x, forward),
                    params,
                    filter,
                    y,
                    epilogue: Epilogue::Moments(moments),
                })
            }
            Work::DepthwiseFprop(g) => {
                let [x, forward, params, y, moments] = buffers else {
                    unreachable!("as in lengths")
                };
                let filter = filter_at(g.filter_len());
                backend.depthwise_fprop(DepthwiseFprop {
                    geometry: g,
                    x: relu(x, forward),
                    params,
                    filter,
                    y,
                    epilogue: Epilogue::Moments(moments),
                })
            }
            Work::ConvDgrad(g) => {
                let [dy, raw, backward, params, x, forward, dx, sums] = buffers else {
                    unreachable!("as in lengths")
                };
                let (dy, dx) = (
                    pending_grad(dy, raw, backward),
                    target(dx, x, forward, sums),
                );
                backend.conv2d_dgrad(Conv2dDgrad {
                    geometry: g,
                    dy,
                    params,
                    filter: filter_at(g.filter_len()),
                    dx,
                })
            }
            Work::DepthwiseDgrad(g) => {
                let [dy, raw, backward, params, x, forward, dx, sums] = buffers else {
                    unreachable!("as in lengths")
                };
                let (dy, dx) = (
                    pending_grad(dy, raw, backward),
                    target(dx, x, forward, sums),
                );
                backend.depthwise_dgrad(DepthwiseDgrad {
                    geometry: g,
                    dy,
                    params,
                    filter: filter_at(g.filter_len()),
                    dx,
                })
            }
            Work::ConvWgrad(g) => {
                let [dy, raw, backward, x, forward, grads] = buffers else {
                    unreachable!("as in lengths")
                };
                let dy = pending_grad(dy, raw, backward);
                backend.conv2d_wgrad(Conv2dWgrad {
                    geometry: g,
                    dy,
                    x: relu(x, forward),
                    grads,
                    filter: filter_at(g.filter_len()),
                })
            }
            Work::DepthwiseWgrad(g) => {
                let [dy, raw, backward, x, forward, grads] = buffers else {
                    unreachable!("as in lengths")
                };
                let dy = pending_grad(dy, raw, backward);
                backend.depthwise_wgrad(DepthwiseWgrad {
                    geometry: g,
                    dy,
                    x: relu(x, forward),
                    grads,
                    filter: filter_at(g.filter_len()),
                })
            }
            Work::Moments(rows) => {
                let [x, moments] = buffers else {
                    unreachable!("as in lengths")
                };
                backend.batch_norm_moments(BatchNormMoments { rows, x, moments })
            }
            Work::Add(rows) => {
                let [a, forward, b, y] = buffers else {
                    unreachable!("as in lengths")
                };
                let a = Pending {
                    raw: a,
                    affine: Some(forward),
                    activation: Activation::Identity,
                };
                backend.add_fprop(AddFprop {
                    rows,
                    a,
                    b: Some(Pending::plain(b)),
                    activation: Activation::Relu,
                    y,
                })
            }
            Work::CloseGrad(rows) => {
                let [x, forward, g, sums] = buffers else {
                    unreachable!("as in lengths")
                };
                backend.close_grad(CloseGrad {
                    rows,
                    g,
                    close: Close {
                        value: relu(x, forward),
                        sums: Some(sums),
                    },
                })
            }
            Work::MaxPoolFprop(g) => {
                let [x, forward, y] = buffers else {
                    unreachable!("as in lengths")
                };
                backend.max_pool_fprop(MaxPoolFprop {
                    geometry: g,
                    x: relu(x, forward),
                    y,
                })
            }
            Work::MaxPoolDgrad(g) => {
                let [dy, x, forward, dx] = buffers else {
                    unreachable!("as in lengths")
                };
                let dx = GradTarget {
                    g: dx,
                    accumulate: false,
                    close: None,
                };
                backend.max_pool_dgrad(MaxPoolDgrad {
                    geometry: g,
                    dy,
                    x: relu(x, forward),
                    dx,
                })
            }
            Work::GlobalAvgPool(g) => {
                let [x, forward, y] = buffers else {
                    unreachable!("as in lengths")
                };
                backend.global_avg_pool_fprop(GlobalAvgPoolFprop {
                    geometry: g,
                    x: relu(x, forward),
                    y,
                })
            }
            Work::Dropout(rows) => {
                let [x, y] = buffers else {
                    unreachable!("as in lengths")
                };
                let dropout = Dropout {
                    rate: 0.5,
                    seed: 7,
                    layer: 1,
                    step: 3,
                };
                backend.dropout_fprop(DropoutFprop {
                    rows,
                    x: Pending::plain(x),
                    dropout,
                    y,
                })
            }
            Work::InputTransform(_) => backend.input_transform_fprop(InputTransformFprop {
                pixels,
                transform: &TRANSFORM,
                y: &mut buffers[0],
            }),
            Work::HeadFprop(g) => {
                let [x, classes, norms, rows] = buffers else {
                    unreachable!("as in lengths")
                };
                backend.arcface_fprop(ArcFaceFprop {
                    shard: g,
                    margin: &margin,
                    x,
                    classes,
                    labels,
                    inverse_norms: norms,
                    rows,
                })
            }
            Work::HeadBprop(g) => {
                let [x, norms, rows, classes, momentum, dx] = buffers else {
                    unreachable!("as in lengths")
                };
                backend.arcface_bprop(ArcFaceBprop {
                    shard: g,
                    margin: &margin,
                    x,
                    labels,
                    inverse_norms: norms,
                    rows,
                    classes,
                    momentum,
                    decay: 1e-4,
                    step: STEP,
                    dx,
                })
            }
            Work::SgdUpdate(len) => {
                let [grads, norms, params, momentum] = buffers else {
                    unreachable!("as in lengths")
                };
                let segments = [Segment {
                    offset: 0,
                    len,
                    decay: 1e-4,
                    lr_multiplier: 1.0,
                }];
                backend.sgd_norms(SgdNorms {
                    params,
                    grads,
                    segments: &segments,
                    norms,
                })?;
                backend.sgd_update(SgdUpdate {
                    step: STEP,
                    segments: &segments,
                    grads,
                    norms,
                    params,
                    momentum,
                })
            }
        }
    }

    /// The results on the host.
    pub(crate) fn results<B: Backend>(
        &self,
        backend: &mut B,
        operands: &Operands<B>,
    ) -> Result<Vec<Vec<f32>>> {
        let first = operands.buffers.len() - operands.results;
        let mut results = Vec::new();
        for buffer in &operands.buffers[first..] {
            let mut values = vec![0.0; backend.len(buffer)];
            backend.download(buffer, 0, &mut values)?;
            results.push(values);
        }
        Ok(results)
    }
}

fn relu<'a, T>(raw: &'a T, forward: &'a T) -> Pending<'a, T> {
    Pending {
        raw,
        affine: Some(forward),
        activation: Activation::Relu,
    }
}

fn pending_grad<'a, T>(g: &'a T, raw: &'a T, backward: &'a T) -> PendingGrad<'a, T> {
    PendingGrad {
        g,
        batch_norm: Some((raw, backward)),
    }
}

fn target<'a, T>(g: &'a mut T, x: &'a T, forward: &'a T, sums: &'a mut T) -> GradTarget<'a, T> {
    let close = Close {
        value: relu(x, forward),
        sums: Some(sums),
    };
    GradTarget {
        g,
        accumulate: false,
        close: Some(close),
    }
}

fn labels(g: &HeadShard) -> Vec<u32> {
    (0..g.n).map(|i| (i * 97 % g.classes()) as u32).collect()
}

/// A few thousand different numbers in +-1, repeated: drawing more takes longer than the measurement.
fn noise(len: usize, seed: u64) -> Vec<f32> {
    let mut random = Random::new(seed, Purpose::Init, 0);
    let period: Vec<f32> = (0..len.min(4099))
        .map(|_| random.range(-1.0, 1.0))
        .collect();
    period.iter().cycle().take(len).copied().collect()
}
