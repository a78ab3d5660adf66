//! ONNX files: what is exported reads back as the same network, PyTorch's files are recognised by their structure, other
//! networks are refused with a sentence. Damaged files: `onnx_hostile.rs`.

mod support;
#[path = "support/onnx.rs"]
mod support_onnx;

use arcface_cu::backend::cpu::Cpu;
use arcface_cu::backend::geometry::Padding;
use arcface_cu::backend::{Element, InputTransform};
use arcface_cu::base::random::{Purpose, Random};
use arcface_cu::encoding::npy::{self, Elements, Npy};
use arcface_cu::graph::infer::InferGraph;
use arcface_cu::graph::params::{Init, ParamTable};
use arcface_cu::graph::{Builder, Model, Op, Square};
use arcface_cu::models::{self, Embedding, Network};
use arcface_cu::recipe::config::Config;
use arcface_cu::recipe::presets;
use arcface_cu::weights::checkpoint::Weights;
use arcface_cu::weights::export::onnx::{self as export, OnnxOptions};
use arcface_cu::weights::formats::onnx::{Attribute, Axis, Graph, Node, Tensor};
use arcface_cu::weights::import::onnx::{self as import, Mismatch, match_model};
use std::path::{Path, PathBuf};
use support::{picture, shared_data, skip};
use support_onnx::{FILES, network, reference};

/// Presets with small embeddings.
fn load<'a>(names: impl Iterator<Item = &'a &'a str>) -> Vec<Config> {
    let settings = ["model.embedding.size=8".to_owned()];
    let load = |name: &&str| Config::load(name, None, &settings).unwrap();
    names.map(load).collect()
}

/// Every preset but those whose blocks are those of smaller ones.
fn networks() -> Vec<Config> {
    let large = ["insightface-r50", "insightface-r100", "ir50", "ir101"];
    let small = |name: &&&str| !large.contains(*name);
    load(presets::NAMES.iter().filter(small))
}

/// Weights of which none is what it starts as.
fn weights(config: &Config) -> Weights {
    let table = ParamTable::new(&config.model.build().unwrap());
    let (mut params, mut statistics) = table.init(7);
    let mut random = Random::new(3, Purpose::Init, 99);
    for param in table.params() {
        let values = &mut params[param.offset..][..param.len()];
        let last = param.name.rsplit('/').next().unwrap();
        // Scale filters to keep the signal's size through a hundred layers, although the statistics do not match the
        // inputs. The signal must not overflow, nor fade beside the biases until all pictures embed alike.
        let fan_in: usize = match last {
            "depthwise_kernel" => param.shape[..2].iter().product(),
            _ => param.shape[1..].iter().product(),
        };
        let deviation = (2.0 / fan_in as f32).sqrt();
        for value in values {
            match last {
                "gamma" => *value = random.range(0.7, 1.3),
                "beta" | "bias" => *value = 0.2 * random.normal(),
                "alpha" => *value = random.range(-0.2, 0.6),
                _ if param.lr_multiplier == 0.0 => {}
                _ => *value = deviation * random.normal(),
            }
        }
    }
    for s in table.statistics() {
        for value in &mut statistics[s.offset..][..s.len] {
            *value = match s.name.ends_with("mean") {
                true => 0.2 * random.normal(),
                false => random.range(0.5, 1.5),
            };
        }
    }
    Weights {
        config: config.clone(),
        classes: 0,
        trained_on: None,
        imported_from: None,
        params,
        statistics,
    }
}

fn pixels(images: usize) -> Vec<u8> {
    (0..images)
        .flat_map(|i| picture(i, 112, 112).pixels)
        .collect()
}

/// Embeddings of two pictures.
fn embed(model: &Model, [params, statistics]: [&[f32]; 2], input: &InputTransform) -> Vec<f32> {
    let mut cpu = Cpu::new();
    let mut graph = InferGraph::new(&mut cpu, model, params, statistics, 2, Element::F32).unwrap();
    graph.embed(&mut cpu, &pixels(2), input).unwrap()
}

fn reread(graph: &Graph) -> Graph {
    let again = Graph::decode(Path::new("again.onnx"), &graph.encode()).unwrap();
    assert_eq!(again, *graph);
    again
}

#[test]
fn what_is_exported_reads_back_as_the_same_network() {
    for config in networks() {
        let weights = weights(&config);
        let model = weights.model().unwrap();
        let slabs = [&weights.params[..], &weights.statistics];
        let input = config.model.input;
        let expected = embed(&model, slabs, &input);
        // If a network made every picture the same, any network would read back as equal.
        let (a, b) = expected.split_at(8);
        let squares =
            |v: &mut dyn Iterator<Item = f32>| v.map(|x| f64::from(x).powi(2)).sum::<f64>();
        let apart =
            squares(&mut a.iter().zip(b).map(|(a, b)| a - b)) / squares(&mut a.iter().copied());
        println!(
            "{}: the pictures are {:.1e} apart",
            config.preset,
            apart.sqrt()
        );
        assert!(apart.sqrt() >= 1e-3, "{}: {apart:e}", config.preset);
        for (keep_batch_norm, transform_inside) in [(true, true), (false, false)] {
            let options = OnnxOptions {
                keep_batch_norm,
                transform_inside,
            };
            let name = format!("{}, {options:?}", config.preset);
            let graph = reread(&export::graph(&weights, options).unwrap());
            assert_eq!(import::embedding_size(&graph), Some(8));
            let outside = (!transform_inside).then_some(input);
            assert_eq!(import::noted_input(&graph), outside, "{name}");
            let place = graph.note("input_transform");
            assert_eq!(
                place,
                Some(if transform_inside {
                    "inside"
                } else {
                    "outside"
                })
            );
            let kept = graph.nodes.iter();
            let kept = kept.filter(|node| node.op == "BatchNormalization").count();
            let ours = model.nodes().iter();
            let ours = ours
                .filter(|node| matches!(node.op, Op::BatchNorm(_)))
                .count();
            // IResNet's blocks begin with one, which stays.
            assert!(
                if keep_batch_norm {
                    kept == ours
                } else {
                    kept < ours
                },
                "{name}"
            );
            let found = match_model(&model, &graph).unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(found.input, transform_inside.then_some(input), "{name}");
            if keep_batch_norm {
                assert!(found.params == weights.params, "{name}");
                assert!(found.statistics == weights.statistics, "{name}");
            }
            let slabs = [&found.params[..], &found.statistics];
            let embeddings = embed(&model, slabs, &input);
            if config.preset == "insightface-mbf" && !keep_batch_norm {
                // One batch norm stands behind a sum here, and is folded into a single convolution there.
                let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
                for (found, expected) in embeddings.iter().zip(&expected) {
                    let error = (found - expected).abs() / largest;
                    assert!(error <= 1e-5, "{name}: {found}, not {expected}");
                }
                continue;
            }
            // A folded batch norm comes back as one that changes no bit of any weight.
            assert!(
                embeddings == expected,
                "{name}: {embeddings:?}, not {expected:?}"
            );
        }
    }
}

#[test]
fn no_network_is_another() {
    // The networks and embeddings of all presets, each once.
    let mut different: Vec<(String, Model, Graph)> = Vec::new();
    for config in networks() {
        let model = config.model.build().unwrap();
        if different.iter().all(|(_, known, _)| *known != model) {
            let graph = export::graph(&weights(&config), OnnxOptions::default()).unwrap();
            different.push((config.preset, model, graph));
        }
    }
    for (a, model, _) in &different {
        for (b, _, graph) in &different {
            let found = match_model(model, graph);
            assert_eq!(found.is_ok(), a == b, "{a} in the file of {b}");
            if let Err(Mismatch { node, sentence }) = found {
                let smaller = node == 0 && sentence.starts_with("the graph holds");
                assert!(
                    node <= model.nodes().len() && (smaller || sentence.contains("found node")),
                    "{sentence}"
                );
            }
        }
    }
}

fn floats(path: &Path) -> Vec<f32> {
    match npy::read(path).unwrap().elements {
        Elements::F32(values) => values,
        other => panic!("{other:?}"),
    }
}

#[test]
fn pytorchs_files_are_recognised() {
    let model = network();
    // N C H W to N H W C.
    let nchw = floats(&reference("input.npy"));
    let nhwc: Vec<f32> = (0..nchw.len())
        .map(|i| nchw[i / 192 * 192 + i % 3 * 64 + i % 192 / 3])
        .collect();
    let expected = floats(&reference("output.npy"));
    for name in FILES {
        let graph = Graph::read(&reference(name)).unwrap();
        assert_eq!(import::embedding_size(&graph), Some(5), "{name}");
        let found = match_model(&model, &graph).unwrap_or_else(|e| panic!("{name}: {e}"));
        match (name, found.input) {
            ("inside.onnx", Some(InputTransform { scale, shift })) => {
                assert!((scale[1] * 127.5 - 1.0).abs() <= 1e-6 && shift == [-1.0; 3]);
            }
            (_, input) => assert_eq!(input, None, "{name}"),
        }
        let mut cpu = Cpu::new();
        let slabs = [&found.params[..], &found.statistics];
        let mut infer =
            InferGraph::new(&mut cpu, &model, slabs[0], slabs[1], 2, Element::F32).unwrap();
        let embeddings = infer.embed_values(&mut cpu, &nhwc).unwrap();
        let largest = expected.iter().fold(0.0_f32, |m, x| m.max(x.abs()));
        for (found, expected) in embeddings.iter().zip(&expected) {
            // float32, a dozen layers, sums of up to 72 products.
            let error = (found - expected).abs() / largest;
            assert!(error <= 3e-6, "{name}: {found}, not {expected}");
        }
        assert_eq!(embeddings.len(), expected.len());
    }
    // Batch norms that were kept are ours, number by number.
    let graph = Graph::read(&reference("legacy_kept.onnx")).unwrap();
    let found = match_model(&model, &graph).unwrap();
    let again = export::network(&model, [&found.params, &found.statistics], true, None).unwrap();
    for (name, value) in [("bn1.running_var", 0.3), ("b_bn1.weight", 0.5)] {
        let theirs = constant(&graph, name);
        assert_eq!(theirs, constant(&again, name), "{name}");
        assert!(theirs.iter().all(|x| *x >= value));
    }
}

/// The numbers of an initializer.
fn constant(graph: &Graph, name: &str) -> Vec<f32> {
    let tensor = graph.initializers.iter().find(|t| t.name == name).unwrap();
    match &tensor.elements {
        arcface_cu::weights::formats::onnx::Elements::Floats(values) => values.clone(),
        other => panic!("{name}: {other:?}"),
    }
}

/// Changes a graph, and gives what the matcher says of it.
fn mismatch(change: impl FnOnce(&mut Graph)) -> String {
    let mut graph = Graph::read(&reference("legacy_kept.onnx")).unwrap();
    change(&mut graph);
    // It must still be a graph.
    let graph = Graph::decode(Path::new("x"), &graph.encode()).unwrap();
    match_model(&network(), &graph).unwrap_err().sentence
}

fn set(graph: &mut Graph, op: &str, attribute: &str, value: Attribute) {
    let node = graph.nodes.iter_mut().find(|node| node.op == op).unwrap();
    node.attributes.retain(|(name, _)| name != attribute);
    node.attributes.push((attribute.into(), value));
}

#[test]
fn the_first_node_that_differs_is_named() {
    let ints = |values: &[i64]| Attribute::Ints(values.to_vec());
    for (attribute, value, words) in [
        (
            "strides",
            ints(&[2, 2]),
            "has the strides [2, 2], not [1, 1]",
        ),
        (
            "pads",
            ints(&[0, 1, 1, 1]),
            "has the pads [0, 1, 1, 1], not [1, 1, 1, 1]",
        ),
        ("pads", ints(&[1]), "has 1 pads"),
        ("pads", ints(&[i64::MAX; 4]), "has the pads"),
        ("group", Attribute::Int(3), "has group 3, not 1"),
        ("dilations", ints(&[2, 2]), "has the dilations"),
        ("auto_pad", Attribute::Text("SAME".into()), "has auto_pad"),
        (
            "kernel_shape",
            Attribute::Float(3.0),
            "kernel_shape that are no whole numbers",
        ),
    ] {
        let text = mismatch(|graph| set(graph, "Conv", attribute, value.clone()));
        let begin = "layer conv1: expected a 3x3 Conv from 3 to 4 channels on input, found node /conv1/Conv (Conv), which ";
        assert!(text.starts_with(begin) && text.contains(words), "{text}");
    }
    let epsilon = Attribute::Float(1e-3);
    let text = mismatch(|graph| set(graph, "BatchNormalization", "epsilon", epsilon));
    assert!(
        text.contains("layer bn1") && text.contains("the epsilon 0.001, not 1e-5"),
        "{text}"
    );
    let text = mismatch(|graph| {
        let relu = graph
            .nodes
            .iter_mut()
            .find(|node| node.op == "PRelu")
            .unwrap();
        relu.op = "Relu".into();
        relu.inputs.truncate(1);
    });
    let words =
        "layer prelu: expected a PRelu of 4 slopes on /bn1/BatchNormalization_output_0, found node";
    assert!(
        text.starts_with(words) && text.ends_with("(Relu)"),
        "{text}"
    );
    let text = mismatch(|graph| {
        let output = graph.outputs[0].name.clone();
        let norm = Node::new("LpNormalization", "norm", &[&output], "unit");
        graph.nodes.push(norm.with("p", Attribute::Int(1)));
        graph.outputs[0].name = "unit".into();
    });
    assert!(
        text.ends_with("but the graph goes on with node norm (LpNormalization)"),
        "{text}"
    );
    let text = mismatch(|graph| {
        let add = graph
            .nodes
            .iter_mut()
            .find(|node| node.op == "Add")
            .unwrap();
        add.inputs[1] = add.inputs[0].clone();
    });
    assert!(text.contains("layer add: expected an Add of"), "{text}");
    let text = mismatch(|graph| {
        graph.inputs[0].shape = Some([1, 3, 9, 8].map(Axis::Length).to_vec());
    });
    assert!(
        text.contains("is 1 x 3 x 9 x 8; the network takes N x 3 x 8 x 8"),
        "{text}"
    );
    let text = mismatch(|graph| {
        let weight = graph
            .initializers
            .iter_mut()
            .find(|t| t.name == "features.weight");
        *weight.unwrap() = Tensor::floats("features.weight", vec![5], vec![1.5; 5]);
    });
    assert!(
        text.contains("layer features") && text.contains("a scale other than 1"),
        "{text}"
    );
}

#[test]
fn numbers_that_are_not_finite_are_refused() {
    for (name, ours, number) in [
        ("conv1.weight", "conv1/kernel", f32::NAN),
        ("bn1.bias", "bn1/beta", f32::INFINITY),
        ("bn1.running_var", "bn1/moving_variance", f32::NAN),
        ("b_prelu.weight", "b_prelu/alpha", f32::NEG_INFINITY),
    ] {
        let text = mismatch(|graph| {
            let mut values = constant(graph, name);
            values[1] = number;
            let tensor = graph.initializers.iter_mut().find(|t| t.name == name);
            let tensor = tensor.unwrap();
            *tensor = Tensor::floats(name, tensor.shape.clone(), values);
        });
        assert_eq!(
            text,
            format!("{ours} has numbers there that are not finite")
        );
    }
}

/// A note without its place, or with what is no number, is none.
#[test]
fn a_noted_transform_is_outside_and_finite() {
    let with = |place: &str, shift: &str| {
        let notes = [
            ("input_transform", place),
            ("input_scale", "1 2 3"),
            ("input_shift", shift),
        ];
        import::noted_input(&Graph {
            metadata: notes.map(|(key, value)| (key.into(), value.into())).into(),
            ..Graph::default()
        })
    };
    let expected = InputTransform {
        scale: [1.0, 2.0, 3.0],
        shift: [-1.0, 0.0, 0.5],
    };
    assert_eq!(with("outside", "-1 0 0.5"), Some(expected));
    for (place, shift) in [
        ("inside", "-1 0 0.5"),
        ("", "-1 0 0.5"),
        ("outside", "-1 NaN 0.5"),
        ("outside", "inf 0 0.5"),
        ("outside", "-1 0"),
        ("outside", "-1 0 x"),
    ] {
        assert_eq!(with(place, shift), None, "{place}, {shift}");
    }
}

/// A second output behind the embedding is no part of it.
#[test]
fn nodes_that_the_embedding_does_not_need_are_listed() {
    let mut graph = Graph::read(&reference("legacy_kept.onnx")).unwrap();
    assert_eq!(match_model(&network(), &graph).unwrap().unused, []);
    let embedding = graph.outputs[0].name.clone();
    let weights = Tensor::floats("classes", vec![5, 2], vec![1.0; 10]);
    graph.initializers.push(weights);
    graph.nodes.extend([
        Node::new("Identity", "same", &[&embedding], "same"),
        Node::new("MatMul", "head", &["same", "classes"], "head"),
        Node::new("Softmax", "", &["head"], "odds"),
    ]);
    let found = match_model(&network(), &reread(&graph)).unwrap();
    let names: Vec<&str> = found.unused.iter().map(|(name, _)| &name[..]).collect();
    let last = format!("number {} (Softmax)", graph.nodes.len());
    assert_eq!(names, ["head (MatMul)", &last]);
    assert!(found.unused[0].1.contains("does not need it"));
}

/// A convolution as TensorFlow's converters write it: NHWC input, Transpose, Pad, a bias of its own, Transpose back, a mean
/// over H and W, MatMul.
#[test]
fn layouts_pads_and_separate_biases_are_seen_through() {
    let (mut g, x) = Builder::new(6, 6);
    let pad = Padding::keras_strided(6, 6, 3);
    let x = g.conv2d("conv", x, 2, Square::new(3, 2, pad), true, Init::HeFanOut);
    let x = g.global_avg_pool("pool", x);
    g.linear("dense", x, 4, true, Init::HeFanOut);
    let model = g.finish().unwrap();
    let (params, statistics) = ParamTable::new(&model).init(1);
    let mut graph = export::network(&model, [&params, &statistics], false, None).unwrap();
    let shape = [1, 6, 6, 3].map(Axis::Length).to_vec();
    graph.inputs[0].shape = Some(shape);
    let (bias, dense) = (
        constant(&graph, "conv.bias"),
        constant(&graph, "dense.weight"),
    );
    graph
        .initializers
        .push(Tensor::floats("bias4", vec![1, 2, 1, 1], bias));
    let turned = (0..8).map(|i| dense[i % 4 * 2 + i / 4]).collect();
    graph
        .initializers
        .push(Tensor::floats("turned", vec![2, 4], turned));
    let ints = |values: &[i64]| Attribute::Ints(values.to_vec());
    let perm = |name: &str, from: &str, perm: &[i64]| {
        Node::new("Transpose", name, &[from], name).with("perm", ints(perm))
    };
    let pool = Node::new("ReduceMean", "mean", &["nhwc"], "mean");
    graph.nodes = vec![
        perm("nchw", "input", &[0, 3, 1, 2]),
        Node::new("Pad", "pad", &["nchw"], "pad").with("pads", ints(&[0, 0, 0, 0, 0, 0, 1, 1])),
        Node::new("Conv", "conv", &["pad", "conv.weight"], "raw").with("strides", ints(&[2, 2])),
        Node::new("Add", "offset", &["raw", "bias4"], "offset"),
        perm("nhwc", "offset", &[0, 2, 3, 1]),
        pool.with("axes", ints(&[1, 2]))
            .with("keepdims", Attribute::Int(0)),
        Node::new("MatMul", "product", &["mean", "turned"], "product"),
        Node::new("Add", "sum", &["dense.bias", "product"], "embedding"),
    ];
    let found = match_model(&model, &reread(&graph)).unwrap();
    assert!(found.params == params && found.input.is_none());
    let auto = |how: &str| {
        let mut graph = graph.clone();
        graph.nodes[2].inputs[0] = "nchw".into();
        graph.nodes[2]
            .attributes
            .push(("auto_pad".into(), Attribute::Text(how.into())));
        match_model(&model, &graph)
    };
    assert!(auto("SAME_UPPER").is_ok_and(|found| found.params == params));
    assert!(auto("SAME_LOWER").is_err() && auto("VALID").is_err());
}

/// Where the graph has a bias and a batch norm, and we have the batch norm alone, its mean takes the bias.
#[test]
fn a_bias_in_front_of_a_batch_norm_moves_its_mean() {
    let model = network();
    let mut graph = Graph::read(&reference("legacy_kept.onnx")).unwrap();
    let before = match_model(&model, &graph).unwrap();
    graph.nodes[0].inputs.push("offset".into());
    let offset = vec![0.5, -1.0, 0.25, 2.0];
    graph
        .initializers
        .push(Tensor::floats("offset", vec![4], offset.clone()));
    let after = match_model(&model, &reread(&graph)).unwrap();
    assert!(after.params == before.params);
    let table = ParamTable::new(&model);
    let (_, at, _) = table.find("bn1/moving_mean").unwrap();
    for (i, offset) in offset.into_iter().enumerate() {
        assert_eq!(after.statistics[at + i], before.statistics[at + i] - offset);
    }
}

/// A map flattened as N x H x W x C has our order of elements, one flattened as N x C x H x W another; and a convolution as
/// large as the map is the linear layer behind a flatten.
#[test]
fn a_flatten_is_taken_in_either_order() {
    let (mut g, x) = Builder::new(3, 2);
    let x = g.conv2d(
        "conv",
        x,
        4,
        Square::new(1, 1, Padding::default()),
        false,
        Init::HeFanOut,
    );
    let x = g.flatten("flatten", x);
    g.linear("dense", x, 5, true, Init::HeFanOut);
    let model = g.finish().unwrap();
    let table = ParamTable::new(&model);
    let (params, statistics) = table.init(1);
    let graph = export::network(&model, [&params, &statistics], false, None).unwrap();
    let found = match_model(&model, &graph).unwrap();
    assert!(found.params == params);
    let pairs: Vec<(&str, &str)> = found.layers.iter().map(|(a, b)| (&a[..], &b[..])).collect();
    assert_eq!(pairs, [("conv (Conv)", "conv"), ("dense (Gemm)", "dense")]);
    let (_, at, _) = table.find("dense/kernel").unwrap();
    let ours = &params[at..][..5 * 24];
    // N x H x W x C, flattened, times C x K.
    let mut other = graph.clone();
    let turned = (0..120).map(|i| ours[i % 5 * 24 + i / 5]).collect();
    other
        .initializers
        .push(Tensor::floats("turned", vec![24, 5], turned));
    let perm = Attribute::Ints(vec![0, 2, 3, 1]);
    other.nodes.truncate(1);
    other.nodes.extend([
        Node::new("Transpose", "nhwc", &["conv/output"], "nhwc").with("perm", perm),
        Node::new("Flatten", "flat", &["nhwc"], "flat"),
        Node::new(
            "Gemm",
            "dense",
            &["flat", "turned", "dense.bias"],
            "embedding",
        ),
    ]);
    assert!(match_model(&model, &reread(&other)).unwrap().params == params);
    // The whole map at once, K x C x H x W.
    let whole = (0..120)
        .map(|i| ours[i / 24 * 24 + i % 6 * 4 + i / 6 % 4])
        .collect();
    other
        .initializers
        .push(Tensor::floats("whole", vec![5, 4, 3, 2], whole));
    other.nodes.truncate(1);
    other.nodes.extend([
        Node::new(
            "Conv",
            "dense",
            &["conv/output", "whole", "dense.bias"],
            "raw",
        ),
        Node::new("Squeeze", "squeeze", &["raw"], "embedding"),
    ]);
    assert!(match_model(&model, &reread(&other)).unwrap().params == params);
}

#[test]
fn the_foreign_mobilefacenet_is_refused_at_its_first_relu6() {
    let name = "the_foreign_mobilefacenet_is_refused_at_its_first_relu6";
    let Some(folder) = shared_data(name, "weights") else {
        return;
    };
    let path = folder.join("mobilefacenet_foamliu.onnx");
    if !path.exists() {
        skip(name, &format!("{} is not there", path.display()));
        return;
    }
    let graph = Graph::read(&path).unwrap();
    let d = import::embedding_size(&graph).unwrap();
    assert_eq!(d, 128);
    let embedding = Embedding::GlobalDepthwise { size: d };
    let model = models::build(Network::Mobilefacenet, 112, embedding).unwrap();
    let Mismatch { node, sentence } = match_model(&model, &graph).unwrap_err();
    // It has ReLU6 where the paper has PReLU, and a pointwise convolution behind the first depthwise one.
    assert_eq!(
        (node, &sentence[..]),
        (
            3,
            "layer conv1_prelu: expected a PRelu of 64 slopes on /conv1/conv1.0/Conv_output_0, \
             found node /conv1/conv1.2/Clip (Clip)"
        )
    );
}

/// Writes every network here, folded and not, with the input transform inside and outside, with pictures and embeddings for
/// `tests/reference/check_onnx.py`, into the folder named by ARCFACE_CU_ONNX_OUT:
///
/// ```sh
/// ARCFACE_CU_ONNX_OUT=/tmp/onnx cargo test --release --test onnx -- --ignored
/// ```
#[test]
#[ignore = "writes files for a script"]
fn files_for_onnx_runtime() {
    let out = PathBuf::from(
        std::env::var_os("ARCFACE_CU_ONNX_OUT").expect("ARCFACE_CU_ONNX_OUT names a folder"),
    );
    std::fs::create_dir_all(&out).unwrap();
    let write = |name: String, shape: Vec<usize>, elements| {
        npy::write(&out.join(name), &Npy { shape, elements }).unwrap();
    };
    write(
        "pixels.npy".into(),
        vec![3, 112, 112, 3],
        Elements::U8(pixels(3)),
    );
    for config in load(presets::NAMES.iter()) {
        let weights = weights(&config);
        let model = weights.model().unwrap();
        let mut cpu = Cpu::new();
        let mut graph = InferGraph::new(
            &mut cpu,
            &model,
            &weights.params,
            &weights.statistics,
            3,
            Element::F32,
        )
        .unwrap();
        let embeddings = graph
            .embed(&mut cpu, &pixels(3), &config.model.input)
            .unwrap();
        let name = config.preset.clone();
        let ordinary = |x: &f32| x.abs() < 1e6;
        assert!(embeddings.iter().all(ordinary), "{name}: {embeddings:?}");
        write(
            format!("{name}.npy"),
            vec![3, embeddings.len() / 3],
            Elements::F32(embeddings),
        );
        for (keep_batch_norm, transform_inside) in
            [(false, false), (false, true), (true, false), (true, true)]
        {
            let options = OnnxOptions {
                keep_batch_norm,
                transform_inside,
            };
            let norm = if keep_batch_norm { "kept" } else { "folded" };
            let place = if transform_inside {
                "inside"
            } else {
                "outside"
            };
            let path = out.join(format!("{name}.{norm}.{place}.onnx"));
            export::write(&path, &weights, options).unwrap();
        }
    }
}
