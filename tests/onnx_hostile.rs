//! Files that are no ONNX, that are damaged, or whose graph makes no sense: a sentence or a network, never a panic or a large
//! allocation.

#[path = "support/hostile.rs"]
mod hostile;

use arcface_cu::graph::Model;
use arcface_cu::graph::layers::Layers;
use arcface_cu::weights::formats::onnx::{Attribute, Axis, Elements, Graph, Node, Tensor};
use arcface_cu::weights::import::ImportOptions;
use arcface_cu::weights::import::onnx::{self as import, match_model, own_network};
use hostile::*;
use proptest::prelude::*;
use std::path::Path;
use std::sync::OnceLock;

#[path = "support/onnx.rs"]
mod support_onnx;
use support_onnx::{FILES, network, reference};

#[test]
fn what_is_no_onnx_file_is_an_error() {
    let says = |bytes: &[u8], words: &str| {
        let text = Graph::decode(Path::new("x.onnx"), bytes)
            .unwrap_err()
            .to_string();
        assert!(text.starts_with("x.onnx") && text.contains(words), "{text}");
    };
    says(b"", "holds no graph");
    says(b"\x89PNG\r\n\x1a\n0000000000", "ONNX model");
    says(&[0; 100], "ONNX model");
    says(b"PK\x03\x04 a zip file", "ONNX model");
    // A graph that says it has 2^35 bytes.
    says(
        &[0x08, 8, 0x3a, 0x80, 0x80, 0x80, 0x80, 0x80, 1],
        "expected an ONNX model",
    );
    let with = |change: &dyn Fn(&mut Graph)| {
        let mut graph = Graph::read(&reference("legacy.onnx")).unwrap();
        change(&mut graph);
        graph.encode()
    };
    let first = |graph: &mut Graph, name: &str| graph.nodes[0].inputs[0] = name.into();
    says(
        &with(&|g| first(g, "nowhere")),
        "node /conv1/Conv (Conv) reads nowhere, which nothing in the graph gives",
    );
    let own = |g: &mut Graph| first(g, &g.nodes[0].outputs[0].clone());
    says(&with(&own), "gives only after that");
    says(
        &with(&|g| g.nodes.reverse()),
        "nodes must stand in the order they are computed in",
    );
    says(
        &with(&|g| g.nodes[1].outputs = g.nodes[0].outputs.clone()),
        "which is there already",
    );
    says(
        &with(&|g| g.outputs[0].name = "lost".into()),
        "the graph's output lost is given by no node",
    );
    says(&with(&|g| g.initializers[0].shape[0] += 1), "elements");
    says(
        &with(&|g| g.initializers[0].shape = vec![1 << 40; 4]),
        "has the shape",
    );
    // Tensors in another file: field 13 of the initializer, an entry of key and value.
    let mut bytes = vec![];
    let field =
        |number: u8, content: &[u8]| [&[number << 3 | 2, content.len() as u8], content].concat();
    let entry = [field(1, b"location"), field(2, b"w.bin")].concat();
    let tensor = [&[0x08, 4, 0x10, 1][..], &field(8, b"w"), &field(13, &entry)].concat();
    bytes.extend(field(7, &field(5, &tensor)));
    says(
        &bytes,
        "initializer w has its numbers in another file (external data): ./w.bin cannot be opened",
    );
}

/// Reading and matching a damaged file: an error or a network, never a panic or a large allocation.
fn survives(bytes: &[u8]) {
    let model = model();
    small(|| {
        if let Ok(graph) = Graph::decode(Path::new("x.onnx"), bytes) {
            let _ = (match_model(model, &graph), import::embedding_size(&graph));
            if let Ok((model, slabs)) = own_network(&graph) {
                // What a checkpoint holds of it can be read again.
                assert_eq!(Layers::of(&model).unwrap().build().unwrap(), model);
                let numbers = slabs.params.iter().chain(&slabs.statistics);
                assert!(numbers.copied().all(f32::is_finite));
            }
        }
    });
}

fn model() -> &'static Model {
    static MODEL: OnceLock<Model> = OnceLock::new();
    MODEL.get_or_init(network)
}

#[test]
fn every_truncation_is_an_error_or_a_graph() {
    let whole = std::fs::read(reference("inside.onnx")).unwrap();
    let graph = |bytes: &[u8]| Graph::decode(Path::new("x"), bytes).ok();
    let all = graph(&whole).unwrap();
    for length in 0..whole.len() {
        // What follows the graph may be cut off between two fields.
        if let Some(cut) = graph(&whole[..length]) {
            assert_eq!(cut.nodes, all.nodes, "{length}");
        }
    }
}

/// A network is no larger than the file, whatever size of embeddings it claims.
#[test]
fn a_claimed_size_allocates_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.onnx");
    let claim = |graph: &mut Graph, d: usize| {
        graph.outputs[0].shape = Some(vec![Axis::Any("N".into()), Axis::Length(d)]);
        std::fs::write(&path, graph.encode()).unwrap();
        let opened = small(|| arcface_cu::weights::import::open(&path, &ImportOptions::default()));
        let text = opened.unwrap_err().to_string();
        assert!(text.contains("the graph holds"), "{text}");
        import::embedding_size(graph)
    };
    let mut graph = Graph::read(&reference("legacy.onnx")).unwrap();
    for d in [85_742, 1 << 40, i64::MAX as usize] {
        assert_eq!(claim(&mut graph, d), None);
    }
    // As many numbers as the embedding has, but not as the layer in front of it.
    let much = Tensor::floats("much", vec![90_000], vec![1.0; 90_000]);
    graph.initializers.push(much);
    assert_eq!(claim(&mut graph, 85_742), Some(85_742));
}

/// Chains of nodes that see through each other stay small.
#[test]
fn long_chains_of_constants_stay_small() {
    let mut graph = Graph::read(&reference("legacy.onnx")).unwrap();
    let values = vec![1.0; 1 << 18];
    graph
        .initializers
        .push(Tensor::floats("c0", vec![1 << 9, 1 << 9], values));
    for i in 0..20_000 {
        let (from, to) = (format!("c{i}"), format!("c{}", i + 1));
        graph.nodes.push(Node::new("Transpose", "", &[&from], &to));
    }
    for (op, n) in [("ConstantOfShape", 0), ("Concat", 1)] {
        let name = format!("s{n}");
        graph.nodes.push(Node::new(op, "", &["c0"], &name));
    }
    survives(&graph.encode());
}

proptest! {
    #![proptest_config(config(600))]

    #[test]
    fn damaged_files_never_panic(
        which in 0..5_usize, flips in flips(), within in within()
    ) {
        let name = FILES[which];
        let whole = std::fs::read(reference(name)).unwrap();
        survives(&damage(&whole, &flips, within));
    }

    /// Attributes and shapes of other values and types, where a flipped bit seldom hits.
    #[test]
    fn strange_graphs_never_panic(
        which in 0..5_usize, at in any::<prop::sample::Index>(), place in any::<prop::sample::Index>(),
        kind in 0..9, number in prop_oneof![any::<i64>(), -2..9_i64],
    ) {
        let name = FILES[which];
        let mut graph = Graph::read(&reference(name)).unwrap();
        let nodes = graph.nodes.len();
        let node = &mut graph.nodes[at.index(nodes)];
        let value = match kind {
            0 => Attribute::Int(number),
            1 => Attribute::Ints(vec![number; 4]),
            2 => Attribute::Float(number as f32),
            3 => Attribute::Ints(vec![]),
            4 => Attribute::Tensor(Tensor { elements: Elements::Ints(vec![number]), ..Tensor::floats("", vec![1], vec![]) }),
            _ => Attribute::Ints(vec![number, 1]),
        };
        let attributes = node.attributes.len();
        match kind {
            5 => { node.inputs.pop(); }
            6 => node.inputs.reverse(),
            7 => node.inputs.clear(),
            8 => node.op = ["Reshape", "Squeeze", "Unsqueeze", "Slice", "Concat", "Pad", "Gemm"][number.rem_euclid(7) as usize].into(),
            _ if attributes > 0 => node.attributes[place.index(attributes)].1 = value,
            _ => {}
        }
        for tensor in &mut graph.initializers {
            if number == 3 { tensor.shape.reverse(); }
            if let Elements::Ints(values) = &mut tensor.elements {
                values.iter_mut().take(1).for_each(|x| *x = number);
            }
        }
        survives(&graph.encode());
    }
}
