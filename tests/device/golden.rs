//! Whole networks against golden values: PyTorch in float64, written by tests/reference/golden.py, which says how each
//! network, margin and optimizer is defined. Embedding, loss, every gradient, running statistics, three steps of every
//! weight, ten losses; then the state saved and restored, and the same bits on any number of threads.

use crate::support::devices::on_each_device;
use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::Padding;
use arcface_cu::backend::{
    Activation, Backend, Element, InputTransform, Segment, SgdForm, SgdStep,
};
use arcface_cu::graph::params::{Init, ParamTable};
use arcface_cu::graph::train::{TrainGraph, TrainSettings};
use arcface_cu::graph::{BatchNorm, Builder, Model, NodeId, Square};
use arcface_cu::head::{ArcFace, ClassInit, Distribution, Margin, MarginGradient, PiGuard};
use safetensors::{Dtype, SafeTensors};

/// Every start is replaced by golden numbers.
const INIT: Init = Init::GlorotUniform;

struct Case {
    name: &'static str,
    model: Model,
    transform: InputTransform,
    margin: Margin,
    step: SgdStep,
    /// Decay of a parameter by name; the class rows' name is `classes`.
    decay: fn(&str) -> f32,
}

/// A builder whose batch norms share their constants.
struct Net {
    g: Builder,
    norm: BatchNorm,
}

impl Net {
    fn new((h, w): (usize, usize), epsilon: f32, momentum: f32) -> (Self, NodeId) {
        let (g, input) = Builder::new(h, w);
        let norm = BatchNorm {
            epsilon,
            momentum,
            gamma: true,
            beta: true,
        };
        (Net { g, norm }, input)
    }

    fn conv(
        &mut self,
        name: &str,
        x: NodeId,
        filters: usize,
        (kernel, stride, pad): (usize, usize, Padding),
    ) -> NodeId {
        self.g.conv2d(
            name,
            x,
            filters,
            Square::new(kernel, stride, pad),
            false,
            INIT,
        )
    }

    fn pointwise(&mut self, name: &str, x: NodeId, filters: usize) -> NodeId {
        self.conv(name, x, filters, (1, 1, Padding::default()))
    }

    fn bn(&mut self, name: &str, x: NodeId) -> NodeId {
        self.g.batch_norm(name, x, self.norm)
    }

    fn act(&mut self, name: &str, x: NodeId, activation: Activation) -> NodeId {
        self.g.activation(name, x, activation)
    }
}

fn resnet() -> Model {
    let (mut net, x) = Net::new((25, 19), 1.001e-5, 0.99);
    let conv = |net: &mut Net, name: &str, x, filters, (kernel, stride, pad)| {
        let (conv, pad) = (format!("{name}_conv"), Padding::same(pad));
        let x = net.g.conv2d(
            &conv,
            x,
            filters,
            Square::new(kernel, stride, pad),
            true,
            INIT,
        );
        net.bn(&format!("{name}_bn"), x)
    };
    let x = conv(&mut net, "conv1", x, 8, (7, 2, 3));
    let x = net.act("conv1_relu", x, Activation::Relu);
    let mut x = net
        .g
        .max_pool("pool1_pool", x, Square::new(3, 2, Padding::same(1)));
    for (name, filters, stride, project) in [
        ("conv2_block1", 4, 1, true),
        ("conv2_block2", 4, 1, false),
        ("conv3_block1", 6, 2, true),
    ] {
        let part = |i: usize| format!("{name}_{i}");
        let shortcut = if project {
            conv(&mut net, &part(0), x, 4 * filters, (1, stride, 0))
        } else {
            x
        };
        let y = conv(&mut net, &part(1), x, filters, (1, stride, 0));
        let y = net.act(&format!("{name}_1_relu"), y, Activation::Relu);
        let y = conv(&mut net, &part(2), y, filters, (3, 1, 1));
        let y = net.act(&format!("{name}_2_relu"), y, Activation::Relu);
        let y = conv(&mut net, &part(3), y, 4 * filters, (1, 1, 0));
        let y = net.g.add(&format!("{name}_add"), shortcut, y);
        x = net.act(&format!("{name}_out"), y, Activation::Relu);
    }
    let x = net.g.global_avg_pool("avg_pool", x);
    let x = net.g.dropout("dropout", x, 0.0);
    net.g.linear("dense", x, 12, true, INIT);
    net.g.finish().expect("a model")
}

fn mobilenet_v2() -> Model {
    let (mut net, x) = Net::new((24, 19), 1e-3, 0.999);
    let keras = |net: &Net, x: NodeId| {
        let shape = net.g.shape(x);
        Padding::keras_strided(shape.h, shape.w, 3)
    };
    let pad = keras(&net, x);
    let x = net.conv("Conv1", x, 8, (3, 2, pad));
    let x = net.bn("bn_Conv1", x);
    let mut x = net.act("Conv1_relu", x, Activation::Relu6);
    let blocks = [(1, 4, 1), (6, 6, 2), (6, 6, 1), (6, 6, 1), (6, 8, 2)];
    for (block, (expansion, filters, stride)) in blocks.into_iter().enumerate() {
        let name = |layer: &str| match block {
            0 => format!("expanded_conv_{layer}"),
            _ => format!("block_{block}_{layer}"),
        };
        let (c, mut y) = (net.g.shape(x).c, x);
        if block > 0 {
            y = net.pointwise(&name("expand"), y, expansion * c);
            y = net.bn(&name("expand_BN"), y);
            y = net.act(&name("expand_relu"), y, Activation::Relu6);
        }
        let pad = if stride == 2 {
            keras(&net, y)
        } else {
            Padding::same(1)
        };
        y = net.g.depthwise(
            &name("depthwise"),
            y,
            Square::new(3, stride, pad),
            false,
            INIT,
        );
        y = net.bn(&name("depthwise_BN"), y);
        y = net.act(&name("depthwise_relu"), y, Activation::Relu6);
        y = net.pointwise(&name("project"), y, filters);
        y = net.bn(&name("project_BN"), y);
        x = if stride == 1 && c == filters {
            net.g.add(&name("add"), x, y)
        } else {
            y
        };
    }
    let x = net.pointwise("Conv_1", x, 24);
    let x = net.bn("Conv_1_bn", x);
    let x = net.act("out_relu", x, Activation::Relu6);
    net.norm.momentum = 0.99;
    let x = net.bn("batch_normalization", x);
    let x = net.g.dropout("dropout", x, 0.0);
    let x = net.g.flatten("flatten", x);
    let x = net.g.linear("dense", x, 14, true, INIT);
    net.bn("batch_normalization_1", x);
    net.g.finish().expect("a model")
}

fn mobilefacenet() -> Model {
    let (mut net, x) = Net::new((33, 33), 1e-5, 0.9);
    let one = Padding::same(1);
    let norm_prelu = |net: &mut Net, name: &str, x: NodeId| {
        let x = net.bn(&format!("{name}_bn"), x);
        net.act(&format!("{name}_prelu"), x, Activation::PRelu(()))
    };
    let x = net.conv("conv1", x, 8, (3, 2, one));
    let x = norm_prelu(&mut net, "conv1", x);
    let x = net
        .g
        .depthwise("conv2_dw", x, Square::new(3, 1, one), false, INIT);
    let mut x = norm_prelu(&mut net, "conv2_dw", x);
    let blocks = [(2, 8, 2), (2, 8, 1), (4, 12, 2), (2, 12, 1), (2, 12, 1)];
    for (block, (expansion, filters, stride)) in blocks.into_iter().enumerate() {
        let name = |layer: &str| format!("block_{}_{layer}", block + 1);
        let c = net.g.shape(x).c;
        let y = net.pointwise(&name("expand"), x, expansion * c);
        let y = norm_prelu(&mut net, &name("expand"), y);
        let y = net
            .g
            .depthwise(&name("dw"), y, Square::new(3, stride, one), false, INIT);
        let y = norm_prelu(&mut net, &name("dw"), y);
        let y = net.pointwise(&name("project"), y, filters);
        let y = net.bn(&name("project_bn"), y);
        x = if stride == 1 && c == filters {
            net.g.add(&name("add"), x, y)
        } else {
            y
        };
    }
    let x = net.pointwise("conv_last", x, 24);
    let x = norm_prelu(&mut net, "conv_last", x);
    let (side, none) = (net.g.shape(x).h, Padding::default());
    let x = net
        .g
        .depthwise("conv_global_dw", x, Square::new(side, 1, none), false, INIT);
    let x = net.bn("conv_global_dw_bn", x);
    let x = net.pointwise("embedding", x, 10);
    net.bn("embedding_bn", x);
    net.g.finish().expect("a model")
}

fn iresnet() -> Model {
    let (mut net, x) = Net::new((21, 14), 1e-5, 0.9);
    let one = Padding::same(1);
    let x = net.conv("conv1", x, 6, (3, 1, one));
    let x = net.bn("bn1", x);
    let mut x = net.act("prelu", x, Activation::PRelu(()));
    for (block, filters, stride) in [
        ("layer1.0", 6, 2),
        ("layer1.1", 6, 1),
        ("layer2.0", 10, 2),
        ("layer2.1", 10, 1),
    ] {
        let name = |layer: &str| format!("{block}.{layer}");
        let y = net.bn(&name("bn1"), x);
        let y = net.conv(&name("conv1"), y, filters, (3, 1, one));
        let y = net.bn(&name("bn2"), y);
        let y = net.act(&name("prelu"), y, Activation::PRelu(()));
        let y = net.conv(&name("conv2"), y, filters, (3, stride, one));
        let y = net.bn(&name("bn3"), y);
        if stride > 1 {
            let shortcut = (1, stride, Padding::default());
            x = net.conv(&name("downsample.0"), x, filters, shortcut);
            x = net.bn(&name("downsample.1"), x);
        }
        x = net.g.add(&name("add"), y, x);
    }
    let x = net.bn("bn2", x);
    let x = net.g.flatten("flatten", x);
    let x = net.g.linear("fc", x, 12, true, INIT);
    let fixed = BatchNorm {
        gamma: false,
        ..net.norm
    };
    net.g.batch_norm("features", x, fixed);
    net.g.finish().expect("a model")
}

fn cases() -> [Case; 4] {
    let unit = InputTransform {
        scale: [1.0 / 255.0; 3],
        shift: [0.0; 3],
    };
    let centred = InputTransform {
        scale: [1.0 / 127.5; 3],
        shift: [-1.0; 3],
    };
    let straight_through = Margin {
        gradient: MarginGradient::StraightThrough,
        ..Margin::arcface(64.0, 0.5)
    };
    let torch = SgdStep {
        form: SgdForm::Torch,
        lr: 0.005,
        momentum: 0.9,
        clip: Some(5.0),
    };
    [
        Case {
            name: "resnet",
            model: resnet(),
            transform: unit,
            margin: Margin::arcface(30.0, 0.5),
            step: SgdStep {
                form: SgdForm::Keras,
                lr: 0.002,
                momentum: 0.8,
                clip: None,
            },
            decay: |name| {
                let decays = name.starts_with("dense") || name == "classes";
                if decays { 1e-3 } else { 0.0 }
            },
        },
        Case {
            name: "mobilenet_v2",
            model: mobilenet_v2(),
            transform: unit,
            margin: Margin {
                pi_guard: PiGuard::Linear,
                ..Margin::arcface(64.0, 0.5)
            },
            step: SgdStep {
                form: SgdForm::KerasNesterov,
                lr: 0.0002,
                momentum: 0.9,
                clip: None,
            },
            decay: |name| if name.starts_with("dense") { 1e-3 } else { 0.0 },
        },
        Case {
            name: "mobilefacenet",
            model: mobilefacenet(),
            transform: centred,
            margin: straight_through,
            step: torch,
            decay: |_| 5e-4,
        },
        Case {
            name: "iresnet",
            model: iresnet(),
            transform: centred,
            margin: straight_through,
            step: torch,
            decay: |_| 5e-4,
        },
    ]
}

/// One network's golden file.
struct Golden(&'static [u8]);

impl Golden {
    fn open(name: &str) -> Self {
        macro_rules! file {
            ($name:literal) => {
                include_bytes!(concat!("../reference/golden/", $name, ".safetensors"))
            };
        }
        Golden(match name {
            "resnet" => file!("resnet"),
            "mobilenet_v2" => file!("mobilenet_v2"),
            "mobilefacenet" => file!("mobilefacenet"),
            "iresnet" => file!("iresnet"),
            _ => panic!("there are no golden values named {name}"),
        })
    }

    fn bytes(&self, name: &str, dtype: Dtype) -> (Vec<u8>, Vec<usize>) {
        let file = SafeTensors::deserialize(self.0).expect("a safetensors file");
        let tensor = file
            .tensor(name)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(tensor.dtype(), dtype, "{name}");
        (tensor.data().to_vec(), tensor.shape().to_vec())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let (bytes, _) = self.bytes(name, Dtype::F32);
        let (floats, _) = bytes.as_chunks();
        floats.iter().map(|b| f32::from_le_bytes(*b)).collect()
    }

    fn doubles(&self, name: &str) -> Vec<f64> {
        let (bytes, _) = self.bytes(name, Dtype::F64);
        let (doubles, _) = bytes.as_chunks();
        doubles.iter().map(|b| f64::from_le_bytes(*b)).collect()
    }

    fn labels(&self) -> Vec<u32> {
        let (bytes, _) = self.bytes("labels", Dtype::I32);
        let (labels, _) = bytes.as_chunks();
        labels.iter().map(|b| u32::from_le_bytes(*b)).collect()
    }

    /// The parameter and statistics slabs under a prefix; shapes must be those of the table.
    fn slabs(&self, prefix: &str, table: &ParamTable) -> [Vec<f32>; 2] {
        let mut params = vec![0.0; table.params_len()];
        for param in table.params() {
            let name = format!("{prefix}/{}", param.name);
            assert_eq!(self.bytes(&name, Dtype::F32).1, param.shape, "{name}");
            params[param.offset..][..param.len()].copy_from_slice(&self.floats(&name));
        }
        let mut statistics = vec![0.0; table.statistics_len()];
        for statistic in table.statistics() {
            let values = self.floats(&format!("{prefix}/{}", statistic.name));
            statistics[statistic.offset..][..statistic.len].copy_from_slice(&values);
        }
        [params, statistics]
    }
}

/// A network and its head in training on the golden batches.
struct Run<'a, B: Backend> {
    case: &'a Case,
    graph: TrainGraph<B>,
    head: ArcFace<B>,
    segments: Vec<Segment>,
    pixels: Vec<u8>,
    labels: Vec<u32>,
    n: usize,
}

/// Everything that a checkpoint holds: three slabs, class rows, their momentum.
type State = ([Vec<f32>; 3], Vec<f32>, Vec<f32>);

impl<'a, B: Backend> Run<'a, B> {
    /// Fresh buffers with the golden start.
    fn new(backend: &mut B, case: &'a Case, golden: &Golden) -> Self {
        let (pixels, shape) = golden.bytes("pixels", Dtype::U8);
        let input = case.model.input_shape();
        assert_eq!(shape, [2, shape[1], input.h, input.w, 3], "{}", case.name);
        let (n, d) = (shape[1], case.model.embedding_size());
        let (classes, shape) = (
            golden.floats("initial/classes"),
            golden.bytes("initial/classes", Dtype::F32).1,
        );
        let mut graph = TrainGraph::new(
            backend,
            &case.model,
            TrainSettings {
                seed: 1,
                max_batch: n + 1,
                ..TrainSettings::default()
            },
        )
        .expect("a graph");
        let init = ClassInit {
            distribution: Distribution::GlorotUniform,
            seed: 1,
            index: 0,
        };
        let mut head = ArcFace::new(
            backend,
            Element::F32,
            (shape[0], d),
            n + 1,
            case.margin,
            init,
        )
        .expect("a head");
        let [params, statistics] = golden.slabs("initial", graph.table());
        let momentum = vec![0.0; params.len()];
        graph
            .set_state(backend, [&params, &statistics, &momentum])
            .expect("a state");
        backend
            .upload(&classes, head.weights_mut(), 0)
            .expect("class rows");
        Run {
            segments: graph.segments(|param| (case.decay)(&param.name)),
            case,
            graph,
            head,
            pixels,
            labels: golden.labels(),
            n,
        }
    }

    /// Forward and backward on batch `step` % 2, then the optimizer; returns the loss.
    fn step(&mut self, backend: &mut B, step: usize) -> f64 {
        let (loss, _) = self.pass(backend, step);
        self.graph
            .measure(backend, &self.segments)
            .expect("the norms");
        self.graph
            .update(backend, &self.segments, &self.case.step)
            .expect("a step");
        loss
    }

    /// Forward and backward (which updates the class rows); returns loss and embedding.
    fn pass(&mut self, backend: &mut B, step: usize) -> (f64, Vec<f32>) {
        let (which, image) = (step % 2, self.case.model.input_shape().len());
        let pixels = &self.pixels[which * self.n * image..][..self.n * image];
        let labels = &self.labels[which * self.n..][..self.n];
        self.graph
            .forward(backend, pixels, &self.case.transform, step as u64)
            .expect("a forward pass");
        let (x, dx) = self.graph.embeddings();
        let mut embedding = vec![0.0; self.n * self.case.model.embedding_size()];
        backend.download(x, 0, &mut embedding).expect("embeddings");
        self.head.forward(backend, x, labels).expect("a loss");
        let decay = (self.case.decay)("classes");
        self.head
            .backward(backend, x, labels, &self.case.step, decay, dx)
            .expect("the head's backward pass");
        self.graph.backward(backend).expect("a backward pass");
        (backend.download_all(&mut [self.head.reading()])).expect("the loss");
        (self.head.output().loss, embedding)
    }

    fn state(&mut self, backend: &mut B) -> State {
        (
            self.graph.state(backend).expect("the state"),
            crate::oracles::contents(backend, self.head.weights()),
            crate::oracles::contents(backend, self.head.momentum()),
        )
    }

    fn restore(&mut self, backend: &mut B, (slabs, classes, momentum): &State) {
        self.graph
            .set_state(backend, slabs.each_ref().map(|slab| &slab[..]))
            .expect("a state");
        backend
            .upload(classes, self.head.weights_mut(), 0)
            .expect("class rows");
        backend
            .upload(momentum, self.head.momentum_mut(), 0)
            .expect("their momentum");
    }
}

fn bits(state: &State) -> Vec<u32> {
    let slabs = state.0.iter().chain([&state.1, &state.2]);
    slabs.flatten().map(|v| v.to_bits()).collect()
}

/// Compares and remembers how far the worst tensor of each kind was off.
struct Judge {
    case: &'static str,
    worst: Vec<(&'static str, f64, f64)>,
}

impl Judge {
    /// Every |actual - expected| must be within `tolerance` times `scale`.
    fn close(
        &mut self,
        kind: &'static str,
        name: &str,
        (actual, expected): (&[f32], &[f32]),
        tolerance: f64,
        scale: f64,
    ) {
        let expected: Vec<f64> = expected.iter().map(|e| f64::from(*e)).collect();
        let what = format!("{}: {kind} {name}", self.case);
        crate::oracles::assert_close(&what, actual, &expected, |_| tolerance * scale);
        let errors = actual
            .iter()
            .zip(&expected)
            .map(|(a, e)| (f64::from(*a) - e).abs());
        let worst = errors.fold(0.0, f64::max) / scale;
        match self.worst.iter_mut().find(|(k, ..)| *k == kind) {
            Some(entry) => entry.1 = entry.1.max(worst),
            None => self.worst.push((kind, worst, tolerance)),
        }
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        for (kind, worst, tolerance) in &self.worst {
            println!(
                "{}: {kind}: {worst:.1e} of {tolerance:.1e} allowed",
                self.case
            );
        }
    }
}

fn largest(values: &[f32]) -> f64 {
    values
        .iter()
        .fold(0.0, |most: f64, v| most.max(f64::from(v.abs())))
}

/// The bounds. float32 rounds to 6e-8; ten to twenty layers of sums of up to a few hundred terms, normalised over as few as
/// five values, lose ten to a hundred times that on the way to the embedding, and as much again on the way back. The
/// margin divides by sin(theta), which one row has near 0.1. Three steps feed the errors of the gradients back through
/// the network, ten steps more so.
const EMBEDDING: f64 = 2e-5;
const LOSS: f64 = 2e-5;
const GRADIENT: f64 = 2e-4;
const STATISTICS: f64 = 2e-5;
const CHANGE: f64 = 1e-3;
const TEN_LOSSES: f64 = 1e-4;
/// Below this share of the network's largest gradient a tensor counts as zero: a bias before a batch norm has none, and
/// what is left of it is rounding.
const NOTHING: f64 = 1e-2;

fn matches_pytorch<B: Backend>(backend: &mut B, case: &Case) {
    let golden = Golden::open(case.name);
    let table = ParamTable::new(&case.model);
    let mut judge = Judge {
        case: case.name,
        worst: Vec::new(),
    };
    // Embedding, loss and gradients at the start.
    let mut run = Run::new(backend, case, &golden);
    let (loss, embedding) = run.pass(backend, 0);
    let expected = golden.floats("embedding");
    let most = largest(&expected);
    judge.close("embedding", "", (&embedding, &expected), EMBEDDING, most);
    let losses = golden.doubles("losses");
    let error = (loss / losses[0] - 1.0).abs();
    assert!(
        error <= LOSS,
        "{}: loss {loss}, not {}",
        case.name,
        losses[0]
    );
    let gradients = run.graph.gradients(backend).expect("gradients");
    let expected: Vec<Vec<f32>> = (table.params().iter())
        .map(|param| golden.floats(&format!("gradient/{}", param.name)))
        .collect();
    let most = expected.iter().map(|g| largest(g)).fold(0.0, f64::max);
    for (param, expected) in table.params().iter().zip(&expected) {
        let actual = &gradients[param.offset..][..param.len()];
        let scale = largest(expected).max(NOTHING * most);
        judge.close(
            "gradient of",
            &param.name,
            (actual, expected),
            GRADIENT,
            scale,
        );
    }

    // Three steps, then seven more.
    let mut run = Run::new(backend, case, &golden);
    let mut actual: Vec<f64> = (0..3).map(|i| run.step(backend, i)).collect();
    let ([params, statistics, _], classes, _) = run.state(backend);
    let [before, _] = golden.slabs("initial", &table);
    let [after, expected] = golden.slabs("after", &table);
    for statistic in table.statistics() {
        let span = statistic.offset..statistic.offset + statistic.len;
        let pair = (&statistics[span.clone()], &expected[span]);
        let scale = largest(pair.1);
        judge.close("statistics", &statistic.name, pair, STATISTICS, scale);
    }
    // What the weights changed by, since lr g is small against w; and their own rounding, three times.
    let most =
        (before.iter().zip(&after)).fold(0.0, |m: f64, (b, a)| m.max(f64::from((a - b).abs())));
    let mut changes = |name: &str, pair: (&[f32], &[f32]), before: &[f32]| {
        let change = pair
            .1
            .iter()
            .zip(before)
            .map(|(a, b)| f64::from((a - b).abs()));
        let change = change.fold(NOTHING * most, f64::max);
        let rounding = 4.0 * crate::oracles::UNIT * largest(pair.1);
        judge.close("change of", name, pair, CHANGE, change + rounding / CHANGE);
    };
    for param in table.params() {
        let span = param.offset..param.offset + param.len();
        let pair = (&params[span.clone()], &after[span.clone()]);
        changes(&param.name, pair, &before[span]);
    }
    let before = golden.floats("initial/classes");
    let after = golden.floats("after/classes");
    changes("classes", (&classes, &after), &before);

    actual.extend((3..10).map(|i| run.step(backend, i)));
    for (i, (actual, expected)) in actual.iter().zip(&losses).enumerate() {
        let error = (actual / expected - 1.0).abs();
        println!(
            "{}: step {i}: loss {actual:.6}, off by {error:.1e}",
            case.name
        );
        assert!(
            error <= TEN_LOSSES,
            "{}: the loss of step {i} is {actual}, not {expected}",
            case.name
        );
    }
}

fn all_match_pytorch<B: Backend>(backend: &mut B) {
    for case in cases() {
        matches_pytorch(backend, &case);
    }
}

/// The state restored in new buffers, with other numbers in them, goes on to the bit.
fn restored_state<B: Backend>(backend: &mut B) {
    for case in cases() {
        let golden = Golden::open(case.name);
        let mut run = Run::new(backend, &case, &golden);
        for i in 0..3 {
            run.step(backend, i);
        }
        let saved = run.state(backend);
        let mut other = Run::new(backend, &case, &golden);
        other.step(backend, 1);
        other.restore(backend, &saved);
        for i in 3..7 {
            let losses = [&mut run, &mut other].map(|run| run.step(backend, i).to_bits());
            assert_eq!(losses[0], losses[1], "{}: the loss of step {i}", case.name);
        }
        let states = [&mut run, &mut other].map(|run| bits(&run.state(backend)));
        assert!(states[0] == states[1], "{}: the states differ", case.name);
    }
}

on_each_device! {
    networks;
    networks_match_pytorch: all_match_pytorch,
    a_restored_state_goes_on_to_the_bit: restored_state,
}

/// The same bits with one, two and three threads.
#[test]
fn the_number_of_threads_changes_no_bit() {
    for case in cases() {
        let golden = Golden::open(case.name);
        let with_threads = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("a pool").install(|| {
                let mut backend = Cpu::new();
                let mut run = Run::new(&mut backend, &case, &golden);
                let losses: Vec<u64> = (0..4)
                    .map(|i| run.step(&mut backend, i).to_bits())
                    .collect();
                (losses, bits(&run.state(&mut backend)))
            })
        };
        let one = with_threads(1);
        for threads in [2, 3] {
            assert!(
                with_threads(threads) == one,
                "{}: {threads} threads",
                case.name
            );
        }
    }
}
