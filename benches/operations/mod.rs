//! The operations that are measured, at which shapes.

use super::rig::batch_norm::Moments;
use super::rig::conv::{Dgrad, End, Fprop, Geometry, Wgrad};
use super::rig::pending::{Behind, Sums, To};
use super::rig::pool::{Max, MaxDgrad, Mean};
use super::rig::rows::{Add, Finish};
use super::rig::sgd::Steps;
use super::rig::{Case, Rig, arcface, dropout, input_transform};
use arcface_cu::Result;
use arcface_cu::backend::geometry::{Conv2d, GlobalPool, Padding, PerChannel, Rows, Window};
use arcface_cu::backend::margin::Margin;
use arcface_cu::backend::{Activation, Backend, Dropout, Segment, SgdForm, SgdStep};

/// One operation at one shape.
#[derive(Debug)]
pub(crate) struct Operation {
    /// What people call it: operation, network, shape.
    pub(crate) name: String,
    /// Multiply-adds.
    pub(crate) macs: u64,
    work: Work,
}

/// A direction of a convolution.
#[derive(Debug)]
enum Direction<G> {
    Fprop(Fprop<G>),
    Dgrad(Dgrad<G>),
    Wgrad(Wgrad<G>),
}

/// What is done.
#[derive(Debug)]
enum Work {
    Conv2d(Direction<Conv2d>),
    Depthwise(Direction<PerChannel>),
    Moments(Moments),
    Add(Add),
    Finish(Finish),
    Max(Max),
    MaxDgrad(MaxDgrad),
    Mean(Mean),
    Dropout(dropout::Fprop),
    InputTransform(input_transform::Fprop),
    HeadFprop(arcface::Fprop),
    HeadBprop(arcface::Bprop),
    Sgd(Steps),
}

impl<G: Geometry> Case for Direction<G> {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        match self {
            Direction::Fprop(case) => case.run(rig),
            Direction::Dgrad(case) => case.run(rig),
            Direction::Wgrad(case) => case.run(rig),
        }
    }
}

impl Case for Operation {
    fn run<B: Backend>(&self, rig: &mut Rig<'_, B>) -> Result<()> {
        match &self.work {
            Work::Conv2d(case) => case.run(rig),
            Work::Depthwise(case) => case.run(rig),
            Work::Moments(case) => case.run(rig),
            Work::Add(case) => case.run(rig),
            Work::Finish(case) => case.run(rig),
            Work::Max(case) => case.run(rig),
            Work::MaxDgrad(case) => case.run(rig),
            Work::Mean(case) => case.run(rig),
            Work::Dropout(case) => case.run(rig),
            Work::InputTransform(case) => case.run(rig),
            Work::HeadFprop(case) => case.run(rig),
            Work::HeadBprop(case) => case.run(rig),
            Work::Sgd(case) => case.run(rig),
        }
    }
}

/// The list, for batches of `n`.
pub(crate) fn operations(n: usize) -> Vec<Operation> {
    let window = |size: usize, taps: usize, stride: usize| {
        Window::new((size, size), (taps, taps), stride, Padding::same(taps / 2))
            .expect("a valid window")
    };
    let mut list = Vec::new();
    let mut add = |name: String, macs: u64, work| list.push(Operation { name, macs, work });
    let x = Behind::norm_and(Activation::Relu);
    let closed = To {
        accumulate: false,
        close: Some((x, Sums::Taken)),
    };
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
        let macs = geometry.macs();
        let [fprop, dgrad, wgrad] = directions(geometry, x, closed);
        add(format!("conv_fprop {shape}"), macs, Work::Conv2d(fprop));
        // Nothing reads the gradient of pixels.
        if c > 3 {
            add(format!("conv_dgrad {shape}"), macs, Work::Conv2d(dgrad));
        }
        add(format!("conv_wgrad {shape}"), macs, Work::Conv2d(wgrad));
    }
    for (c, size, stride) in [(144, 28, 1), (144, 28, 2), (576, 7, 1)] {
        let geometry = PerChannel {
            n,
            c,
            window: window(size, 3, stride),
        };
        let shape = format!("mbv2 3x3/{stride} {c} on {size}x{size}");
        let macs = geometry.macs();
        let [fprop, dgrad, wgrad] = directions(geometry, x, closed);
        for (direction, work) in [("fprop", fprop), ("dgrad", dgrad), ("wgrad", wgrad)] {
            let name = format!("depthwise_{direction} {shape}");
            add(name, macs, Work::Depthwise(work));
        }
    }
    for (c, size) in [(64, 56), (256, 28), (2048, 4)] {
        let rows = Rows {
            pixels: n * size * size,
            c,
        };
        let shape = format!("r50 {c} on {size}x{size}");
        let moments = Moments { rows, centre: 0.0 };
        let sum = Add {
            rows,
            a: Behind::norm_and(Activation::Identity),
            b: Some(Behind::NOTHING),
            activation: Activation::Relu,
        };
        let finish = Finish { rows, value: x };
        add(
            format!("batch_norm_moments {shape}"),
            0,
            Work::Moments(moments),
        );
        add(format!("add_fprop {shape}"), 0, Work::Add(sum));
        add(format!("close_grad {shape}"), 0, Work::Finish(finish));
    }
    let geometry = PerChannel {
        n,
        c: 64,
        window: window(56, 3, 2),
    };
    let (shape, to) = ("r50 3x3/2 64 on 56x56", To::REPLACE);
    let max = Work::Max(Max { geometry, x });
    add(format!("max_pool_fprop {shape}"), 0, max);
    let max = Work::MaxDgrad(MaxDgrad { geometry, x, to });
    add(format!("max_pool_dgrad {shape}"), 0, max);
    let geometry = GlobalPool {
        n,
        pixels: 16,
        c: 2048,
    };
    let mean = Work::Mean(Mean { geometry, x });
    add("global_avg_pool r50 2048 on 4x4".into(), 0, mean);
    let dropout = dropout::Fprop {
        rows: Rows {
            pixels: n * 49,
            c: 512,
        },
        x: Behind::NOTHING,
        dropout: Dropout {
            rate: 0.5,
            seed: 7,
            layer: 1,
            step: 3,
        },
    };
    add("dropout e 512 on 7x7".into(), 0, Work::Dropout(dropout));
    let pixels = input_transform::Fprop {
        len: n * 112 * 112 * 3,
    };
    let work = Work::InputTransform(pixels);
    add("input_transform 112x112".into(), 0, work);
    let forward = arcface::Fprop::whole(n, 512, 8_192, Margin::default());
    let macs = (n * 512 * 8_192) as u64;
    let work = Work::HeadFprop(forward);
    add("arcface_fprop 512 x 8192".into(), macs, work);
    let step = SgdStep {
        form: SgdForm::Keras,
        lr: 0.01,
        momentum: 0.9,
        clip: Some(1e6),
    };
    let work = Work::HeadBprop(arcface::Bprop {
        forward,
        decay: 1e-4,
        step,
    });
    // The logits again, the gradient of the embeddings, the gradient of the class rows.
    add("arcface_bprop 512 x 8192".into(), 3 * macs, work);
    let segment = Segment {
        offset: 0,
        len: 2 << 20,
        decay: 1e-4,
        lr_multiplier: 1.0,
    };
    let work = Work::Sgd(Steps {
        step,
        lrs: vec![step.lr],
        segments: vec![segment],
        len: segment.len,
    });
    add("sgd_update 2M".into(), 0, work);
    list
}

/// The three directions of a convolution, as a training step runs them.
fn directions<G>(geometry: G, x: Behind, to: To) -> [Direction<G>; 3]
where
    G: Copy,
{
    let (batch_norm, bias) = (true, true);
    let end = End::Moments;
    let fprop = Fprop {
        geometry,
        x,
        bias,
        end,
    };
    let dgrad = Dgrad {
        geometry,
        batch_norm,
        to,
    };
    let wgrad = Wgrad {
        geometry,
        batch_norm,
        x,
        bias,
    };
    [
        Direction::Fprop(fprop),
        Direction::Dgrad(dgrad),
        Direction::Wgrad(wgrad),
    ]
}
