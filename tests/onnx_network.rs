//! ONNX graphs that are no preset's: each is a network of its own, which embeds as the graph's operators say (an
//! evaluation in f64, `support/onnx_oracle.rs`), and which the commands take; what is no layer here is named.

mod support;
#[path = "support/onnx.rs"]
mod support_onnx;
#[path = "support/onnx_oracle.rs"]
mod support_onnx_oracle;

use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::{Element, InputTransform};
use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::data::Dataset as _;
use arcface_cu::embedder::Embedder;
use arcface_cu::encoding::npy::{self, Elements as NpyElements};
use arcface_cu::graph::infer::InferGraph;
use arcface_cu::recipe::config::Config;
use arcface_cu::train::{DataOptions, Trainer};
use arcface_cu::weights::checkpoint::Weights;
use arcface_cu::weights::export::onnx::{self as export, OnnxOptions};
use arcface_cu::weights::formats::onnx::{
    Attribute, Axis, Elements, Graph, Node, Tensor, ValueInfo,
};
use arcface_cu::weights::import::onnx::own_network;
use arcface_cu::weights::import::{self, ImportOptions, InputOrigin};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::commands::write_faces;
use support::training::assert_same_run;
use support::{
    Pictures, arcface_cu, picture, shared_data, skip, stderr_of_failure, stdout_of_success,
};
use support_onnx::{FILES, reference};
use support_onnx_oracle::{Value, run};

/// A graph in the making; every node reads the value before it.
struct Drawing {
    graph: Graph,
    random: Random,
    /// The last value.
    x: String,
    /// Its axes behind the batch.
    shape: Vec<usize>,
}

fn ints(values: &[i64]) -> Attribute {
    Attribute::Ints(values.to_vec())
}

impl Drawing {
    /// On N x 3 x `size` x `size`.
    fn new(size: usize, seed: u64) -> Self {
        let axes = vec![
            Axis::Any("N".into()),
            Axis::Length(3),
            Axis::Length(size),
            Axis::Length(size),
        ];
        let value = |name: &str, shape| ValueInfo {
            name: name.into(),
            shape,
        };
        Drawing {
            graph: Graph {
                opset: 17,
                inputs: vec![value("image", Some(axes))],
                outputs: vec![value("image", None)],
                ..Graph::default()
            },
            random: Random::new(seed, Purpose::Init, 0),
            x: "image".into(),
            shape: vec![3, size, size],
        }
    }

    fn c(&self) -> usize {
        self.shape[0]
    }

    /// A constant of random numbers with this mean and deviation.
    fn constant(&mut self, shape: &[usize], mean: f32, deviation: f32) -> String {
        let name = format!("c{}", self.graph.initializers.len());
        let all = shape.iter().product();
        let values = (0..all).map(|_| mean + deviation * self.random.normal());
        let tensor = Tensor::floats(&name, shape.to_vec(), values.collect());
        self.graph.initializers.push(tensor);
        name
    }

    fn numbers(&mut self, values: &[i64]) -> String {
        let name = format!("c{}", self.graph.initializers.len());
        self.graph.initializers.push(Tensor {
            elements: Elements::Ints(values.to_vec()),
            ..Tensor::floats(&name, vec![values.len()], vec![])
        });
        name
    }

    /// A node that reads the last value and these; its own becomes the last.
    fn node(&mut self, op: &str, more: &[&str], attributes: &[(&str, Attribute)]) -> &mut Self {
        let name = format!("/body/{op}_{}", self.graph.nodes.len());
        let given = format!("{name}_output");
        let inputs = [&[&self.x[..]], more].concat();
        let mut node = Node::new(op, &name, &inputs, &given);
        for (key, value) in attributes {
            node = node.with(key, value.clone());
        }
        self.graph.nodes.push(node);
        self.x.clone_from(&given);
        self.graph.outputs[0].name = given;
        self
    }

    fn window(
        &mut self,
        kernel: usize,
        stride: usize,
        pads: [usize; 4],
    ) -> [(&'static str, Attribute); 3] {
        let [top, left, bottom, right] = pads;
        self.shape[1] = (self.shape[1] + top + bottom - kernel) / stride + 1;
        self.shape[2] = (self.shape[2] + left + right - kernel) / stride + 1;
        [
            ("kernel_shape", ints(&[kernel as i64; 2])),
            ("strides", ints(&[stride as i64; 2])),
            ("pads", ints(&pads.map(|n| n as i64))),
        ]
    }

    fn conv(
        &mut self,
        k: usize,
        kernel: usize,
        stride: usize,
        pads: [usize; 4],
        bias: bool,
    ) -> &mut Self {
        let deviation = (2.0 / (self.c() * kernel * kernel) as f32).sqrt();
        let weights = self.constant(&[k, self.c(), kernel, kernel], 0.0, deviation);
        let bias = bias.then(|| self.constant(&[k], 0.1, 0.3));
        let window = self.window(kernel, stride, pads);
        self.shape[0] = k;
        self.node(
            "Conv",
            &[
                &[&weights[..]][..],
                &bias.as_deref().into_iter().collect::<Vec<_>>(),
            ]
            .concat(),
            &window,
        )
    }

    fn depthwise(
        &mut self,
        kernel: usize,
        stride: usize,
        pads: [usize; 4],
        bias: bool,
    ) -> &mut Self {
        let c = self.c();
        let weights = self.constant(&[c, 1, kernel, kernel], 0.0, 1.0 / kernel as f32);
        let bias = bias.then(|| self.constant(&[c], 0.1, 0.3));
        let group = ("group", Attribute::Int(c as i64));
        let window = [&self.window(kernel, stride, pads)[..], &[group]].concat();
        self.node(
            "Conv",
            &[
                &[&weights[..]][..],
                &bias.as_deref().into_iter().collect::<Vec<_>>(),
            ]
            .concat(),
            &window,
        )
    }

    fn norm(&mut self) -> &mut Self {
        let c = self.c();
        let vectors = [(1.0, 0.2), (0.0, 0.3), (0.0, 0.3)].map(|(m, d)| self.constant(&[c], m, d));
        let variance = self.constant(&[c], 1.5, 0.1);
        let [gamma, beta, mean] = &vectors;
        let epsilon = ("epsilon", Attribute::Float(1e-3));
        self.node(
            "BatchNormalization",
            &[gamma, beta, mean, &variance],
            &[epsilon],
        )
    }

    fn prelu(&mut self) -> &mut Self {
        let flat = self.shape.len() == 1;
        let shape = if flat {
            vec![self.c()]
        } else {
            vec![self.c(), 1, 1]
        };
        let slopes = self.constant(&shape, 0.2, 0.2);
        self.node("PRelu", &[&slopes], &[])
    }

    fn clip(&mut self) -> &mut Self {
        for limit in [0.0, 6.0] {
            let name = format!("limit{limit}");
            if self.graph.initializers.iter().all(|t| t.name != name) {
                let tensor = Tensor::floats(name, vec![], vec![limit]);
                self.graph.initializers.push(tensor);
            }
        }
        self.node("Clip", &["limit0", "limit6"], &[])
    }

    fn flatten(&mut self) -> &mut Self {
        self.shape = vec![self.shape.iter().product()];
        self.node("Flatten", &[], &[])
    }

    /// Fully connected, on what is flat.
    fn gemm(&mut self, k: usize) -> &mut Self {
        let c = self.c();
        let weights = self.constant(&[k, c], 0.0, (1.0 / c as f32).sqrt());
        let bias = self.constant(&[k], 0.0, 0.3);
        self.shape = vec![k];
        self.node("Gemm", &[&weights, &bias], &[("transB", Attribute::Int(1))])
    }

    /// An embedding of 5 numbers.
    fn embedding(&mut self) -> &mut Self {
        self.flatten().gemm(5)
    }

    fn last(&mut self) -> &mut Node {
        self.graph.nodes.last_mut().unwrap()
    }
}

fn reread(graph: &Graph) -> Graph {
    let again = Graph::decode(Path::new("again.onnx"), &graph.encode()).unwrap();
    // As bytes: numbers that are none are not equal to themselves.
    assert!(again.encode() == graph.encode());
    again
}

/// Two images of numbers in -2..2, N x 3 x H x W.
fn images(size: usize, seed: u64) -> Vec<f64> {
    let mut random = Random::new(seed, Purpose::Augment, 7);
    let number = |_| f64::from(random.range(-2.0, 2.0));
    (0..2 * 3 * size * size).map(number).collect()
}

/// The embeddings that the network of a graph makes of N x 3 x H x W.
fn embed(graph: &Graph, nchw: &[f64]) -> Vec<f32> {
    let (model, slabs) = own_network(graph).unwrap_or_else(|error| panic!("{error}"));
    let pixels = model.input_shape().pixels();
    let InputTransform { scale, shift } = slabs.input.unwrap_or(InputTransform {
        scale: [1.0; 3],
        shift: [0.0; 3],
    });
    let number = |i: usize| {
        let (image, c) = (i / (3 * pixels), i % 3);
        nchw[image * 3 * pixels + c * pixels + i % (3 * pixels) / 3] as f32 * scale[c] + shift[c]
    };
    let nhwc: Vec<f32> = (0..nchw.len()).map(number).collect();
    let mut cpu = Cpu::new();
    let (params, statistics) = (&slabs.params, &slabs.statistics);
    let mut infer = InferGraph::new(&mut cpu, &model, params, statistics, 2, Element::F32).unwrap();
    infer.embed_values(&mut cpu, &nhwc).unwrap()
}

/// Whether embeddings are those expected, as nearly as float32 keeps sums of some hundred products in a few layers.
fn assert_near(name: &str, found: &[f32], expected: &[f64]) {
    assert_eq!(found.len(), expected.len(), "{name}");
    let largest = expected.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    assert!(
        largest > 1e-3 && largest.is_finite(),
        "{name}: {expected:?}"
    );
    for (found, expected) in found.iter().zip(expected) {
        let error = (f64::from(*found) - expected).abs() / largest;
        assert!(error <= 1e-5, "{name}: {found}, not {expected}");
    }
    // A network that makes every picture the same would show nothing.
    let (a, b) = expected.split_at(expected.len() / 2);
    let apart = a
        .iter()
        .zip(b)
        .fold(0.0_f64, |m, (a, b)| m.max((a - b).abs()));
    assert!(apart > 1e-2 * largest, "{name}: {expected:?}");
}

/// The network of a graph makes what its operators say.
fn check(name: &str, graph: &Graph, size: usize) {
    let graph = reread(graph);
    let images = images(size, 3);
    let expected = run(&graph, Value::new(&[2, 3, size, size], images.clone()));
    assert_near(name, &embed(&graph, &images), &expected.numbers);
}

fn floats(path: &Path) -> (Vec<usize>, Vec<f64>) {
    let file = npy::read(path).unwrap();
    match file.elements {
        NpyElements::F32(values) => (file.shape, values.into_iter().map(f64::from).collect()),
        other => panic!("{other:?}"),
    }
}

/// PyTorch's files give PyTorch's answers, as networks of their own and by the oracle.
#[test]
fn pytorchs_files_are_networks_of_their_own() {
    let (shape, input) = floats(&reference("input.npy"));
    let (_, expected) = floats(&reference("output.npy"));
    for name in FILES {
        let graph = Graph::read(&reference(name)).unwrap();
        // `inside.onnx` takes pixels; the others what those become.
        let pixels = |x: &f64| {
            if name == "inside.onnx" {
                x * 127.5 + 127.5
            } else {
                *x
            }
        };
        let input: Vec<f64> = input.iter().map(pixels).collect();
        assert_near(name, &embed(&graph, &input), &expected);
        // The oracle has no operators that calculate shapes.
        if !["legacy_view.onnx", "inside.onnx"].contains(&name) {
            let found = run(&graph, Value::new(&shape, input)).numbers;
            let found: Vec<f32> = found.into_iter().map(|x| x as f32).collect();
            assert_near(name, &found, &expected);
        }
    }
}

type Draw = fn(&mut Drawing);

/// Each operator and attribute by itself. Maps of different height and width tell rows from columns.
#[test]
fn every_operation_does_what_the_graph_says() {
    const WIDE: [usize; 4] = [0, 1, 0, 2];
    let cases: &[(&str, Draw)] = &[
        ("conv", |d| {
            d.conv(4, 3, 2, [1, 0, 0, 2], true).embedding();
        }),
        ("conv without bias, 1x1", |d| {
            d.conv(4, 1, 1, [0; 4], false)
                .conv(3, 1, 2, [0; 4], true)
                .embedding();
        }),
        ("conv with a bias of its own node", |d| {
            d.conv(4, 3, 1, WIDE, false);
            let bias = d.constant(&[1, 4, 1, 1], 0.0, 1.0);
            d.node("Add", &[&bias], &[]).embedding();
        }),
        ("depthwise", |d| {
            d.conv(6, 1, 1, WIDE.map(|_| 0), true)
                .depthwise(3, 2, [1, 0, 2, 1], true);
            d.node("Relu", &[], &[])
                .depthwise(3, 1, WIDE, false)
                .embedding();
        }),
        ("depthwise on the picture", |d| {
            d.depthwise(5, 1, [2, 1, 2, 1], true).embedding();
        }),
        ("batch norm behind convolutions", |d| {
            d.conv(4, 3, 1, WIDE, true).norm().node("Relu", &[], &[]);
            d.depthwise(3, 1, WIDE, true).norm().embedding();
        }),
        ("batch norm in front of a convolution", |d| {
            d.conv(4, 3, 1, WIDE, true).node("Relu", &[], &[]).norm();
            d.conv(4, 3, 1, WIDE, true).embedding();
        }),
        ("batch norm of the embedding", |d| {
            d.embedding().norm();
        }),
        ("batch norm of the picture", |d| {
            d.norm().conv(4, 3, 1, WIDE, true).embedding();
        }),
        ("arithmetic on the picture", |d| {
            let mean = d.constant(&[1, 3, 1, 1], 0.5, 0.2);
            let deviation = d.constant(&[3, 1, 1], 1.5, 0.2);
            d.node("Sub", &[&mean], &[]).node("Div", &[&deviation], &[]);
            let [factor, add] = [2.0, -0.25].map(|mean| d.constant(&[], mean, 0.0));
            d.node("Mul", &[&factor], &[])
                .node("Add", &[&add], &[])
                .norm();
            d.conv(4, 3, 1, WIDE, true).embedding();
        }),
        ("relu, clip, leaky relu", |d| {
            d.conv(4, 3, 1, WIDE, true)
                .node("Relu", &[], &[])
                .conv(5, 3, 1, WIDE, true);
            d.clip()
                .conv(4, 3, 1, WIDE, true)
                .node("LeakyRelu", &[], &[]);
            d.conv(4, 1, 1, [0; 4], true);
            d.node("LeakyRelu", &[], &[("alpha", Attribute::Float(0.3))])
                .embedding();
        }),
        ("clip by attributes", |d| {
            d.conv(4, 3, 1, WIDE, true);
            let limit = |name, x| (name, Attribute::Float(x));
            d.node("Clip", &[], &[limit("max", 6.0), limit("min", 0.0)])
                .embedding();
        }),
        ("prelu", |d| {
            d.conv(4, 3, 1, WIDE, true)
                .prelu()
                .conv(4, 3, 1, WIDE, true);
            let one = d.constant(&[1], 0.3, 0.0);
            d.node("PRelu", &[&one], &[]).embedding().prelu();
        }),
        ("add", |d| {
            d.conv(4, 3, 1, WIDE, true);
            let x = d.x.clone();
            d.node("Relu", &[], &[])
                .conv(4, 3, 1, [1; 4], true)
                .node("Add", &[&x], &[]);
            let x = d.x.clone();
            d.conv(4, 1, 1, [0; 4], true)
                .node("Sum", &[&x], &[])
                .node("Relu", &[], &[]);
            let x = d.x.clone();
            d.node("Add", &[&x], &[]).embedding();
        }),
        ("max pool", |d| {
            d.conv(4, 3, 1, WIDE, true);
            let window = d.window(3, 2, [1, 0, 1, 2]);
            d.node("MaxPool", &[], &window);
            let window = d.window(2, 1, [0; 4]);
            let ceil = ("ceil_mode", Attribute::Int(1));
            d.node("MaxPool", &[], &[&window[..], &[ceil]].concat())
                .embedding();
        }),
        ("global average pool", |d| {
            d.conv(7, 3, 1, WIDE, true)
                .node("GlobalAveragePool", &[], &[]);
            d.shape = vec![7, 1, 1];
            d.conv(5, 1, 1, [0; 4], true).flatten();
        }),
        ("average pool of all", |d| {
            d.conv(7, 3, 1, WIDE, true);
            let kernel = ints(&[d.shape[1] as i64, d.shape[2] as i64]);
            let pad = ("count_include_pad", Attribute::Int(1));
            d.node("AveragePool", &[], &[("kernel_shape", kernel), pad]);
            d.shape = vec![7, 1, 1];
            d.embedding();
        }),
        ("mean over rows and columns", |d| {
            d.conv(7, 3, 1, WIDE, true);
            let keep = ("keepdims", Attribute::Int(0));
            d.node("ReduceMean", &[], &[("axes", ints(&[-2, -1])), keep]);
            d.shape = vec![7];
            d.gemm(5);
        }),
        ("gemm by columns", |d| {
            d.conv(4, 3, 1, WIDE, true).flatten();
            let c = d.c();
            let weights = d.constant(&[c, 6], 0.0, 0.1);
            d.node("Gemm", &[&weights], &[]);
            d.shape = vec![6];
            d.node("Relu", &[], &[]).gemm(5);
        }),
        ("matmul and add", |d| {
            d.conv(4, 3, 1, WIDE, true).flatten();
            let c = d.c();
            let weights = d.constant(&[c, 6], 0.0, 0.1);
            let bias = d.constant(&[6], 0.0, 1.0);
            d.node("MatMul", &[&weights], &[])
                .node("Add", &[&bias], &[]);
            d.shape = vec![6];
            let turned = d.constant(&[5, 6], 0.0, 0.4);
            let transpose = Node::new("Transpose", "", &[&turned], "turned");
            d.graph.nodes.push(transpose.with("perm", ints(&[1, 0])));
            d.node("MatMul", &["turned"], &[]);
        }),
        ("reshapes to one row", |d| {
            d.conv(4, 3, 1, WIDE, true);
            let target = d.numbers(&[0, -1]);
            d.node("Reshape", &[&target], &[]);
            d.shape = vec![d.shape.iter().product()];
            d.gemm(8);
            let target = d.numbers(&[-1, 8]);
            d.node("Reshape", &[&target], &[]).gemm(5);
        }),
        ("a whole map at once, squeezed", |d| {
            d.conv(4, 3, 2, [0; 4], true);
            let side = d.shape[1];
            d.conv(5, side, 1, [0; 4], true);
            d.node("Squeeze", &[], &[("axes", ints(&[2, 3]))]);
        }),
        ("two layers on one flattened map", |d| {
            d.conv(4, 3, 1, WIDE, true).flatten();
            let (x, shape) = (d.x.clone(), d.shape.clone());
            d.gemm(5);
            let (a, shape) = (
                std::mem::replace(&mut d.x, x),
                std::mem::replace(&mut d.shape, shape),
            );
            d.node("Identity", &[], &[]).gemm(5).node("Add", &[&a], &[]);
            d.shape = shape;
        }),
        ("a map in N x H x W x C, and padding before a layer", |d| {
            d.node("Pad", &[], &[("pads", ints(&[0, 0, 1, 2, 0, 0, 0, 1]))]);
            (d.shape[1], d.shape[2]) = (d.shape[1] + 1, d.shape[2] + 3);
            d.conv(4, 3, 2, [0; 4], true);
            d.node("Transpose", &[], &[("perm", ints(&[0, 2, 3, 1]))])
                .embedding();
        }),
        ("dropout, identity, constants that are nodes", |d| {
            d.conv(4, 3, 1, WIDE, true)
                .node("Dropout", &[], &[])
                .node("Identity", &[], &[])
                .embedding();
            let tensor = d.graph.initializers.remove(0);
            let given = tensor.name.clone();
            let constant = Node::new("Constant", "", &[], &given);
            d.graph
                .nodes
                .insert(0, constant.with("value", Attribute::Tensor(tensor)));
        }),
    ];
    for (i, (name, draw)) in cases.iter().enumerate() {
        let mut drawing = Drawing::new(9, i as u64);
        draw(&mut drawing);
        check(name, &drawing.graph, 9);
    }
}

/// Chains and residuals of random layers.
#[test]
fn random_graphs_do_what_their_operators_say() {
    for seed in 0..60 {
        let mut d = Drawing::new(11, seed);
        for _ in 0..3 + seed as usize % 8 {
            let (k, stride) = (
                2 + d.random.below(7) as usize,
                1 + d.random.below(2) as usize,
            );
            let bias = d.random.below(2) == 0;
            let mut pad = || d.random.below(2) as usize;
            let pads = [pad(), pad(), pad(), pad()];
            // The map must hold the window.
            let small = d.shape[1].min(d.shape[2]) < 4;
            match d.random.below(9) {
                0 if !small => d.conv(k, 3, stride, pads, bias),
                1 if !small => d.depthwise(3, stride, pads, bias),
                2 if !small => {
                    let window = d.window(2, stride, pads);
                    d.node("MaxPool", &[], &window)
                }
                3 => d.norm(),
                4 => d.prelu(),
                5 => d.clip(),
                6 => d.node("Relu", &[], &[]),
                7 => {
                    let (x, c) = (d.x.clone(), d.c());
                    d.conv(c, 3, 1, [1; 4], bias).norm().node("Add", &[&x], &[])
                }
                _ => d.conv(k, 1, 1, [0; 4], bias),
            };
        }
        match seed % 3 {
            0 => d.node("GlobalAveragePool", &[], &[]).shape.truncate(1),
            1 => drop(d.conv(4, 1, 1, [0; 4], true)),
            _ => {}
        }
        d.embedding();
        check(&format!("seed {seed}"), &d.graph, 11);
    }
}

/// What a refused graph's error says, and the name of the node that was drawn last.
fn refusal(draw: impl FnOnce(&mut Drawing)) -> (String, String) {
    let mut d = Drawing::new(9, 1);
    d.conv(4, 3, 1, [1; 4], true);
    draw(&mut d);
    let node = d.last().name.clone();
    (own_network(&reread(&d.graph)).unwrap_err(), node)
}

/// The node's place, name, operator, and what is wrong with it.
#[test]
fn the_first_node_that_is_no_layer_is_named() {
    let cases: &[(&str, Draw)] = &[
        ("is no layer here", |d| {
            d.node("Softmax", &[], &[]);
        }),
        ("is no layer here", |d| {
            let half = d.constant(&[], 0.5, 0.0);
            d.node("Mul", &[&half], &[]);
        }),
        ("adds a constant that is no layer's bias", |d| {
            let half = d.constant(&[], 0.5, 0.0);
            d.node("Add", &[&half], &[]);
        }),
        ("adds more than two values", |d| {
            let x = d.x.clone();
            d.node("Sum", &[&x, &x], &[]);
        }),
        ("adds 9 x 9 x 3 to 9 x 9 x 4", |d| {
            d.node("Add", &["image"], &[]);
        }),
        (
            "has 6 filters of 2 channels in group 2 on 9 x 9 x 4;",
            |d| {
                let weights = d.constant(&[6, 2, 3, 3], 0.0, 1.0);
                d.node("Conv", &[&weights], &[("group", Attribute::Int(2))]);
            },
        ),
        (
            "has 8 filters of 1 channels in group 4 on 9 x 9 x 4;",
            |d| {
                let weights = d.constant(&[8, 1, 3, 3], 0.0, 1.0);
                d.node("Conv", &[&weights], &[("group", Attribute::Int(4))]);
            },
        ),
        ("has filters of 5 channels on 9 x 9 x 4", |d| {
            let weights = d.constant(&[6, 5, 3, 3], 0.0, 1.0);
            d.node("Conv", &[&weights], &[]);
        }),
        ("has weights of the shape [6, 4, 3], not of 4 axes", |d| {
            let weights = d.constant(&[6, 4, 3], 0.0, 1.0);
            d.node("Conv", &[&weights], &[]);
        }),
        ("has weights that are not constant", |d| {
            let x = d.x.clone();
            d.node("Conv", &[&x], &[]);
        }),
        ("has the dilations [2, 2], not [1, 1]", |d| {
            d.conv(4, 3, 1, [1; 4], true)
                .last()
                .attributes
                .push(("dilations".into(), ints(&[2, 2])));
        }),
        ("has the strides [1, 2], not [1, 1]", |d| {
            d.conv(4, 3, 1, [1; 4], true).last().attributes[1].1 = ints(&[1, 2]);
        }),
        ("has the strides [0, 0], not [1, 1]", |d| {
            d.conv(4, 3, 1, [1; 4], true).last().attributes[1].1 = ints(&[0, 0]);
        }),
        ("has the pads [-1, 0, 0, 0]", |d| {
            d.conv(4, 3, 1, [1; 4], true).last().attributes[2].1 = ints(&[-1, 0, 0, 0]);
        }),
        ("makes a layer that cannot be: ", |d| {
            d.conv(4, 3, 1, [1; 4], true).last().attributes[2].1 = ints(&[3, 0, 0, 0]);
        }),
        ("has the kernel [3, 5], not [3, 3]", |d| {
            let weights = d.constant(&[6, 4, 3, 5], 0.0, 1.0);
            d.node("Conv", &[&weights], &[]);
        }),
        ("has the kernel [2, 2], not [3, 3]", |d| {
            d.conv(4, 3, 1, [1; 4], true).last().attributes[0].1 = ints(&[2, 2]);
        }),
        ("rounds the size of its output up", |d| {
            let window = d.window(2, 2, [0; 4]);
            let ceil = ("ceil_mode", Attribute::Int(1));
            d.node("MaxPool", &[], &[&window[..], &[ceil]].concat());
        }),
        ("has the kernel [2, 2], not [9, 9]", |d| {
            let window = d.window(2, 2, [0; 4]);
            d.node("AveragePool", &[], &window);
        }),
        ("has the axes [2], not [2, 3]", |d| {
            d.node("ReduceMean", &[], &[("axes", ints(&[2]))]);
        }),
        ("clips from 0 to 1", |d| {
            let limit = |name, x| (name, Attribute::Float(x));
            d.node("Clip", &[], &[limit("min", 0.0), limit("max", 1.0)]);
        }),
        ("clips from 0 to no constant", |d| {
            let limit = |name, x| (name, Attribute::Float(x));
            d.node("Clip", &[], &[limit("min", 0.0)]);
        }),
        ("reads no N x C", |d| {
            let weights = d.constant(&[9, 5], 0.0, 1.0);
            d.node("MatMul", &[&weights], &[]);
        }),
        ("has weights for rows of 100, not 324", |d| {
            d.flatten();
            let weights = d.constant(&[100, 5], 0.0, 1.0);
            d.node("MatMul", &[&weights], &[]);
        }),
        (
            "reshapes N x 9 x 9 x 4 to -1 x 36; only N x 324 is a layer here",
            |d| {
                let target = d.numbers(&[-1, 36]);
                d.node("Reshape", &[&target], &[]);
            },
        ),
        (
            "reshapes N x 9 x 9 x 4 to 9 x -1; only N x 324 is a layer here",
            |d| {
                let target = d.numbers(&[9, -1]);
                d.node("Reshape", &[&target], &[]);
            },
        ),
        (
            "reshapes N x 1 x 1 x 6 to -1 x 3; only N x 6 is a layer here",
            |d| {
                d.flatten().gemm(6);
                let target = d.numbers(&[-1, 3]);
                d.node("Reshape", &[&target], &[]);
            },
        ),
        ("orders numbers in a way that no layer here does;", |d| {
            let target = d.numbers(&[0, 2, 2, 81]);
            d.node("Reshape", &[&target], &[]);
        }),
        ("orders numbers in a way that no layer here does;", |d| {
            d.node("Transpose", &[], &[("perm", ints(&[0, 1, 3, 2]))]);
        }),
        ("orders numbers in a way that no layer here does;", |d| {
            d.node("Flatten", &[], &[("axis", Attribute::Int(2))]);
        }),
        ("squeezes a map of 9 x 9 x 4", |d| {
            d.node("Squeeze", &[], &[("axes", ints(&[2, 3]))]);
        }),
    ];
    for (words, draw) in cases {
        let (error, node) = refusal(draw);
        let (_, op) = node.rsplit_once('/').unwrap();
        let (op, place) = op.rsplit_once('_').unwrap();
        let place: usize = place.parse::<usize>().unwrap() + 1;
        let expected = format!("node {place} of {place}, {node} ({op}), {words}");
        assert!(error.starts_with(&expected), "{expected}: {error}");
        // The first of them, whatever else is wrong behind it, and in front of a whole network.
        let (error, _) = refusal(|d| {
            draw(d);
            d.node("Softmax", &[], &[]).node("LeakyRelu", &[], &[]);
        });
        let expected = expected.replace(&format!("of {place},"), &format!("of {},", place + 2));
        assert!(error.starts_with(&expected), "{expected}: {error}");
    }
    // A node without a name is told by its place.
    let (error, _) = refusal(|d| {
        d.node("Softmax", &[], &[]).last().name.clear();
    });
    assert_eq!(error, "node 2 of 2, (Softmax), is no layer here");
}

/// What only the matcher sees still names the node.
#[test]
fn numbers_that_do_not_fit_are_named() {
    for (words, op, attribute) in [
        (
            "alpha or beta other than 1",
            "Gemm",
            ("alpha", Attribute::Float(0.5)),
        ),
        (
            "computes in training mode",
            "BatchNormalization",
            ("training_mode", Attribute::Int(1)),
        ),
        (
            "has an alpha that is no number",
            "LeakyRelu",
            ("alpha", Attribute::Int(1)),
        ),
    ] {
        let (error, _) = refusal(|d| {
            d.norm().node("LeakyRelu", &[], &[]).embedding();
            let node = d.graph.nodes.iter_mut().find(|node| node.op == op).unwrap();
            node.attributes
                .push((attribute.0.into(), attribute.1.clone()));
        });
        assert!(
            error.contains(&format!("({op}), which")) && error.contains(words),
            "{error}"
        );
    }
    let (error, _) = refusal(|d| {
        d.embedding();
        let Elements::Floats(values) = &mut d.graph.initializers[0].elements else {
            panic!("weights")
        };
        values[3] = f32::NAN;
    });
    assert!(
        error.contains("body.Conv_0/kernel has numbers there that are not finite"),
        "{error}"
    );
}

#[test]
fn a_graph_without_a_picture_or_an_embedding_is_refused() {
    let of = |change: &dyn Fn(&mut Graph)| {
        let mut d = Drawing::new(9, 1);
        d.conv(4, 3, 1, [1; 4], true).embedding();
        change(&mut d.graph);
        own_network(&reread(&d.graph))
    };
    let shaped = |axes: &[usize]| {
        let axes = axes.iter().map(|&n| Axis::Length(n)).collect::<Vec<_>>();
        of(&move |graph| graph.inputs[0].shape = Some(axes.clone()))
    };
    for axes in [
        &[1, 3, 9, 8][..],
        &[1, 1, 9, 9],
        &[1, 4, 9, 9],
        &[3, 9, 9],
        &[1, 243],
    ] {
        let error = shaped(axes).unwrap_err();
        assert!(
            error.contains("a network here takes N x 3 x H x W, with H = W"),
            "{error}"
        );
    }
    // Of any size: that of the networks here, where a flattened map is another.
    let error = of(&|graph| graph.inputs[0].shape = None).unwrap_err();
    assert!(
        error.contains("has weights for rows of 324, not 50176"),
        "{error}"
    );
    let two = of(&|graph| {
        let input = graph.inputs[0].clone();
        graph.inputs.push(ValueInfo {
            name: "mask".into(),
            ..input
        });
    });
    assert!(two.unwrap_err().contains("the graph has 2 inputs"));
    assert_eq!(
        of(&|graph| graph.outputs.clear()).unwrap_err(),
        "the graph has no output"
    );
    let map = of(&|graph| graph.outputs[0].name = graph.nodes[1].outputs[0].clone());
    assert!(
        map.unwrap_err()
            .contains("is a map of 9 x 9 x 4, and no embedding")
    );
    let other = of(&|graph| {
        graph.outputs[0].shape = Some([1, 85_742].map(Axis::Length).to_vec());
    });
    assert!(
        other
            .unwrap_err()
            .contains("is said to be 1 x 85742, and the layers give 5 numbers")
    );
    let constant = of(&|graph| graph.outputs[0].name = "c0".into());
    assert_eq!(constant.unwrap_err(), "the output c0 is a constant");
    let picture = of(&|graph| graph.outputs[0].name = "image".into());
    assert!(picture.unwrap_err().contains("is a map of 9 x 9 x 3"));
    // No more layers than a checkpoint may hold, and no long work for them.
    let many = of(&|graph| {
        for i in 0..20_000 {
            let (from, to) = (format!("x{i}"), format!("x{}", i + 1));
            let from = if i == 0 {
                graph.outputs[0].name.clone()
            } else {
                from
            };
            graph.nodes.push(Node::new("Relu", "same", &[&from], &to));
        }
        graph.outputs[0].name = "x20000".into();
    });
    assert!(many.unwrap_err().contains("more than 16384 layers"));
}

/// What the first output does not need is left out, be it a layer or not, and of the same shape or not.
#[test]
fn other_outputs_are_no_part_of_the_network() {
    let mut d = Drawing::new(9, 4);
    d.conv(4, 3, 1, [1; 4], true).flatten();
    let (x, shape) = (d.x.clone(), d.shape.clone());
    d.gemm(5).node("Softmax", &[], &[]);
    let odds = std::mem::replace(&mut d.x, x);
    d.shape = shape;
    d.gemm(5);
    check("two heads", &d.graph, 9);
    let embedding = d.graph.outputs[0].clone();
    d.node("ReduceL2", &[], &[("axes", ints(&[1]))]);
    let norm = d.x.clone();
    d.graph.outputs = vec![embedding];
    for name in [odds, norm] {
        d.graph.outputs.push(ValueInfo { name, shape: None });
    }
    check("three outputs", &d.graph, 9);
    let unused = own_network(&d.graph).unwrap().1.unused;
    let unused: Vec<&str> = unused.iter().map(|(node, _)| &node[..]).collect();
    assert_eq!(
        unused,
        [
            "/body/Gemm_2 (Gemm)",
            "/body/Softmax_3 (Softmax)",
            "/body/ReduceL2_5 (ReduceL2)"
        ]
    );
}

#[test]
fn layers_are_called_as_the_nodes_as_far_as_they_may_be() {
    let mut d = Drawing::new(9, 4);
    for name in [
        "/a/b c",
        "input",
        "",
        "momentum",
        "x",
        "x",
        "x_7\u{1b}[2J",
        "x",
    ] {
        d.node("Relu", &[], &[]).last().name = name.into();
    }
    d.embedding();
    let (model, _) = own_network(&d.graph).unwrap();
    let names: Vec<&str> = model.nodes().iter().map(|node| &node.name[..]).collect();
    let expected = [
        "input",
        "a.b_c",
        "input_2",
        "relu",
        "momentum_4",
        "x",
        "x_6",
        "x_7__2J",
        "x_8",
        "flatten",
        "body.Gemm_9",
    ];
    assert_eq!(names, expected);
}

/// A small network on 24 x 24 pixels as a file: with a depthwise filter with bias, and without batch norm.
fn file(folder: &Path, inside: bool) -> PathBuf {
    let mut d = Drawing::new(24, 8);
    if inside {
        let [mean, deviation] = [120.0, 60.0].map(|mean| d.constant(&[1, 3, 1, 1], mean, 3.0));
        d.node("Sub", &[&mean], &[]).node("Div", &[&deviation], &[]);
    }
    d.conv(6, 3, 2, [1; 4], true)
        .clip()
        .depthwise(3, 2, [1; 4], true)
        .node("Relu", &[], &[]);
    d.conv(8, 1, 1, [0; 4], true)
        .prelu()
        .conv(8, 3, 2, [1; 4], true)
        .flatten()
        .gemm(7);
    let path = folder.join("theirs.onnx");
    fs::write(&path, d.graph.encode()).unwrap();
    path
}

fn weights(path: &Path) -> Weights {
    import::open(path, &ImportOptions::default())
        .unwrap()
        .weights
}

#[test]
fn a_checkpoint_holds_the_network() {
    let folder = tempfile::tempdir().unwrap();
    for inside in [false, true] {
        let path = file(folder.path(), inside);
        let imported = import::open(&path, &ImportOptions::default()).unwrap();
        let origin = if inside {
            InputOrigin::Graph
        } else {
            InputOrigin::Preset
        };
        assert_eq!(imported.input, origin);
        let own = folder.path().join("own.safetensors");
        imported.weights.save(&own).unwrap();
        let again = weights(&own);
        assert_eq!(again, imported.weights);
        // Pixels to the graph's own numbers, outside where the graph does not do it.
        let graph = Graph::read(&path).unwrap();
        let picture = picture(1, 24, 24);
        let InputTransform { scale, shift } = match inside {
            true => InputTransform {
                scale: [1.0; 3],
                shift: [0.0; 3],
            },
            false => again.config.model.input,
        };
        let number = |i: usize| {
            let (c, at) = (i / 576, i % 576);
            f64::from(picture.pixels[at * 3 + c]) * f64::from(scale[c]) + f64::from(shift[c])
        };
        let expected = run(
            &graph,
            Value::new(&[1, 3, 24, 24], (0..1728).map(number).collect()),
        );
        let mut cpu = Cpu::new();
        let mut embedder = Embedder::new(&mut cpu, &again, 1, Element::F32).unwrap();
        assert_eq!((embedder.size(), embedder.image_size()), (7, 24));
        let found = embedder.embed(&[picture]).unwrap();
        let largest = expected.numbers.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
        for (found, expected) in found.iter().zip(&expected.numbers) {
            let error = (f64::from(*found) - expected).abs() / largest;
            assert!(error <= 1e-5, "{found}, not {expected}");
        }
        // And out again: what is exported is the same network to the bit.
        let graph = export::graph(&again, OnnxOptions::default()).unwrap();
        let (model, slabs) = own_network(&graph).unwrap();
        assert!(slabs.params == again.params && slabs.statistics == again.statistics);
        assert_eq!(model, again.model().unwrap());
    }
}

/// A network that takes blue, green, red has its first filters turned; not one whose first layer is another.
#[test]
fn channels_are_turned_where_convolutions_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let turned = ImportOptions {
        bgr: true,
        ..ImportOptions::default()
    };
    for inside in [false, true] {
        let path = file(folder.path(), inside);
        let [rgb, bgr] = [&ImportOptions::default(), &turned]
            .map(|options| import::open(&path, options).unwrap());
        let mut flipped = picture(1, 24, 24);
        flipped.pixels.chunks_exact_mut(3).for_each(<[u8]>::reverse);
        let mut cpu = Cpu::new();
        let mut embed = |weights, image| {
            let mut embedder = Embedder::new(&mut cpu, weights, 1, Element::F32).unwrap();
            embedder.embed(&[image]).unwrap()
        };
        let expected = embed(&rgb.weights, picture(1, 24, 24));
        let found = embed(&bgr.weights, flipped);
        for (found, expected) in found.iter().zip(&expected) {
            assert!(
                (found - expected).abs() <= 1e-5 * expected.abs().max(1.0),
                "{found}, not {expected}"
            );
        }
    }
    let mut d = Drawing::new(24, 8);
    d.depthwise(3, 2, [1; 4], true).embedding();
    let path = folder.path().join("depthwise.onnx");
    fs::write(&path, d.graph.encode()).unwrap();
    let error = import::open(&path, &turned).unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(
        error
            .to_string()
            .contains("layer body.Conv_0 reads the picture"),
        "{error}"
    );
}

/// Without batch norm a network trains from the very function that was imported: its first loss needs the right network,
/// and ten steps on four pictures lower it.
#[test]
fn it_is_fine_tuned_from_what_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = file(folder.path(), true);
    let (layers, input) = import::own_network(&path).unwrap().unwrap();
    let settings = [
        "train.batch_size=4",
        "augment.shift=0",
        "augment.flip=false",
        "optimizer.lr=0.01",
    ];
    let mut config = Config::load("demo", None, &settings.map(String::from)).unwrap();
    config.model.network = arcface_cu::recipe::config::NetworkConfig::Custom(layers);
    config.model.input = input.unwrap();
    config.validate().unwrap();
    let start = import::start(&path, &config, 1).unwrap();
    assert_eq!(start.report.missing, []);
    let before = start.params.clone();
    let data = Arc::new(Pictures(4));
    assert_eq!(data.len(), 4);
    let mut trainer = Trainer::new(Cpu::new(), config, data, DataOptions::default()).unwrap();
    trainer.begin_with(start).unwrap();
    let picture = [picture(1, 24, 24)];
    let imported = weights(&path);
    let mut cpu = Cpu::new();
    let expected = Embedder::new(&mut cpu, &imported, 1, Element::F32)
        .unwrap()
        .embed(&picture)
        .unwrap();
    assert_eq!(
        trainer.embedder(1).unwrap().embed(&picture).unwrap(),
        expected
    );
    let losses: Vec<f64> = (0..30).map(|_| trainer.step().unwrap().loss).collect();
    assert!(losses[29] < losses[0], "{losses:?}");
    // Every parameter moved, the depthwise layer's bias among them.
    let after = trainer.checkpoint().unwrap();
    let table = arcface_cu::graph::params::ParamTable::new(&after.weights.model().unwrap());
    for param in table.params() {
        let place = param.offset..param.offset + param.len();
        assert_ne!(
            before[place.clone()],
            after.weights.params[place],
            "{}",
            param.name
        );
    }
}

/// The commands take the file itself, what `import` makes of it, and a run that begins with either.
#[test]
fn the_commands_take_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let theirs = file(folder.path(), false).to_string_lossy().into_owned();
    let (faces, own) = (path("faces"), path("own.safetensors"));
    write_faces(Path::new(&faces), 8);
    let run = |words: &[&str]| stdout_of_success(&arcface_cu(words));
    let text = run(&[
        "import",
        &theirs,
        "--input",
        "imagenet",
        "--out",
        &own,
        "--verbose",
    ]);
    assert!(
        text.starts_with(
            "network: custom, 7-d embedding, takes RGB as (x/255 - mean)/std of ImageNet"
        ),
        "{text}"
    );
    assert!(
        text.contains("/body/Conv_2 (Conv) -> body.Conv_2"),
        "{text}"
    );
    let picture = format!("{faces}/00/00.jpg");
    for weights in [&theirs, &own] {
        let with =
            |words: &[&str]| run(&[words, &["--device", "cpu", "--weights", weights]].concat());
        let text = with(&["verify", &picture, &picture]);
        assert!(text.contains("the same person"), "{text}");
        with(&["search", "--gallery", &faces, "--query", &picture]);
        let out = path("embedded");
        let text = with(&["embed", "--images", &faces, "--out", &out]);
        assert_eq!(text.contains("(assumed"), weights == &theirs, "{text}");
        fs::remove_dir_all(&out).unwrap();
    }
    let text = run(&[
        "plan",
        "--memory",
        "1",
        "--classes",
        "4",
        "--weights",
        &theirs,
    ]);
    assert!(text.contains("network: custom, 7-d embedding"), "{text}");
    let again = path("again.onnx");
    run(&["export", "--to", "onnx", "--weights", &own, "--out", &again]);
    own_network(&Graph::read(Path::new(&again)).unwrap()).unwrap();

    let train = |out: &str, more: &[&str]| {
        let common = [
            "train",
            "--device",
            "cpu",
            "--data",
            &faces,
            "--preset",
            "demo",
            "--batch-size",
            "4",
            "--out",
            out,
        ];
        run(&[&common[..], &["--set", "augment.shift=2"], more].concat())
    };
    let [whole, stopped, direct] = ["whole", "stopped", "direct"].map(path);
    let text = train(&whole, &["--init", &own, "--steps", "3"]);
    assert!(
        text.contains("network: custom, 7-d embedding") && !text.contains("warning: these weights"),
        "{text}"
    );
    let config = fs::read_to_string(Path::new(&whole).join("config.toml")).unwrap();
    let config: Config = toml::from_str(&config).unwrap();
    assert_eq!(config.model, weights(Path::new(&own)).config.model);
    train(&stopped, &["--init", &own, "--steps", "2"]);
    train(&stopped, &["--init", &own, "--steps", "3", "--resume"]);
    assert_same_run(Path::new(&whole), Path::new(&stopped), "resumed");
    train(&direct, &["--init", &theirs, "--steps", "1"]);
    let text = run(&["train", "--init", &own, "--print-config"]);
    assert!(
        toml::from_str::<Config>(&text).unwrap().model == config.model,
        "{text}"
    );

    // A preset that is named is the only one that is tried, and what is no layer here is told with what is nearest.
    let error = stderr_of_failure(
        &arcface_cu(["import", &theirs, "--preset", "small", "--out", &again]),
        1,
    );
    assert!(
        error.contains("is none of the networks here. It is like mobilefacenet"),
        "{error}"
    );
    let mut graph = Graph::read(Path::new(&theirs)).unwrap();
    graph.nodes[3].op = "Mish\u{1b}[2J".into();
    fs::write(&theirs, graph.encode()).unwrap();
    let error = stderr_of_failure(&arcface_cu(["import", &theirs, "--out", &again]), 1);
    let words = "is none of the networks here, nor one of its own: node 4 of 9, /body/Relu_3 (Mish\\u{1b}[2J), is no layer \
                 here. It is like ";
    assert!(error.contains(words), "{error}");
}

/// A first useful result with a network that somebody else trained.
#[test]
fn the_foreign_mobilefacenet_verifies_faces() {
    let name = "the_foreign_mobilefacenet_verifies_faces";
    let Some(folder) = shared_data(name, "weights") else {
        return;
    };
    let theirs = folder.join("mobilefacenet_foamliu.onnx");
    let faces = folder.with_file_name("eval");
    if !theirs.exists() || !faces.exists() {
        skip(
            name,
            &format!("{} or {} is not there", theirs.display(), faces.display()),
        );
        return;
    }
    let room = tempfile::tempdir().unwrap();
    let [own, json] = ["own.safetensors", "lfw.json"].map(|name| room.path().join(name));
    let [theirs, own, json, faces] =
        [&theirs, &own, &json, &faces].map(|path| path.to_str().unwrap());
    stdout_of_success(&arcface_cu([
        "import", theirs, "--input", "imagenet", "--out", own,
    ]));
    // The whole network against the oracle, on one picture.
    let graph = Graph::read(Path::new(theirs)).unwrap();
    let weights = weights(Path::new(own));
    let picture = picture(2, 112, 112);
    let InputTransform { scale, shift } = weights.config.model.input;
    let number = |i: usize| {
        let (c, at) = (i / 12_544, i % 12_544);
        f64::from(picture.pixels[at * 3 + c]) * f64::from(scale[c]) + f64::from(shift[c])
    };
    let expected = run(
        &graph,
        Value::new(&[1, 3, 112, 112], (0..37_632).map(number).collect()),
    );
    let mut cpu = Cpu::new();
    let found = Embedder::new(&mut cpu, &weights, 1, Element::F32)
        .unwrap()
        .embed(&[picture])
        .unwrap();
    let largest = expected.numbers.iter().fold(0.0_f64, |m, x| m.max(x.abs()));
    for (found, expected) in found.iter().zip(&expected.numbers) {
        let error = (f64::from(*found) - expected).abs() / largest;
        assert!(error <= 1e-4, "{found}, not {expected}");
    }
    let words = [
        "eval",
        "--weights",
        own,
        "--data",
        faces,
        "--sets",
        "lfw",
        "--json",
        json,
        "--device",
        "cpu",
    ];
    stdout_of_success(&arcface_cu(words));
    let result: serde_json::Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    let text = result.to_string();
    println!("{text}");
    let accuracy = result["sets"][0]["accuracy"]
        .as_f64()
        .unwrap_or_else(|| panic!("{text}"));
    // One pair of 600 more or less is the rounding of another processor.
    assert!((accuracy - 0.945).abs() <= 0.0017, "{accuracy}");
}

/// Embeddings are compared by their angles, so their length is left out, however it is spelt, and wherever it is given.
#[test]
fn an_embedding_divided_by_its_length_is_taken_without_that() {
    let ends: &[(&str, Draw)] = &[
        ("lp", |d| {
            d.node("LpNormalization", &[], &[]);
        }),
        ("reduce", |d| {
            let e = d.x.clone();
            d.node("ReduceL2", &[], &[("axes", ints(&[1]))]);
            let limit = d.constant(&[], 1e-12, 0.0);
            d.node("Clip", &[&limit], &[]);
            d.graph
                .nodes
                .push(Node::new("Shape", "shape", &[&e], "shape"));
            d.node("Expand", &["shape"], &[]);
            let l = std::mem::replace(&mut d.x, e);
            d.node("Div", &[&l], &[]);
        }),
        ("mul", |d| {
            let e = d.x.clone();
            d.node("Mul", &[&e], &[])
                .node("ReduceSum", &[], &[("axes", ints(&[-1]))])
                .node("Sqrt", &[], &[]);
            let l = std::mem::replace(&mut d.x, e);
            d.node("Div", &[&l], &[]);
        }),
        ("norm first", |d| {
            let e = d.x.clone();
            d.node("ReduceL2", &[], &[("axes", ints(&[1]))]);
            d.graph.outputs.push(ValueInfo {
                name: e,
                shape: None,
            });
        }),
    ];
    for (name, end) in ends {
        let mut d = Drawing::new(9, 1);
        d.conv(4, 3, 1, [1; 4], true).embedding();
        let images = images(9, 3);
        let expected = run(&d.graph, Value::new(&[2, 3, 9, 9], images.clone()));
        end(&mut d);
        assert_near(name, &embed(&d.graph, &images), &expected.numbers);
    }
}
