//! What exporters do to an ONNX file beside the network: numbers in other files, embeddings divided by their length, more than
//! one output.

#[path = "support/onnx.rs"]
mod support_onnx;

use arcface_cu::weights::formats::onnx::{
    Attribute, Axis, Elements, Graph, Node, Tensor, ValueInfo,
};
use arcface_cu::weights::import::onnx::{Slabs, embedding_size, match_model};
use std::fs;
use std::path::{Path, PathBuf};
use support_onnx::{network, reference};

fn original() -> Graph {
    Graph::read(&reference("legacy_kept.onnx")).unwrap()
}

fn slabs(graph: &Graph) -> Result<Slabs, String> {
    match_model(&network(), graph).map_err(|mismatch| mismatch.sentence)
}

/// The embedding's name.
fn x(graph: &Graph) -> String {
    graph.outputs[0].name.clone()
}

fn varint(mut number: u64, bytes: &mut Vec<u8>) {
    while number > 127 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// A field of bytes.
fn field(tag: u64, content: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint(tag << 3 | 2, &mut bytes);
    varint(content.len() as u64, &mut bytes);
    bytes.extend(content);
    bytes
}

/// A float32 initializer whose numbers are elsewhere, as more of a model's graph.
fn elsewhere(name: &str, shape: &[usize], entries: &[(&str, &str)]) -> Vec<u8> {
    let mut tensor = Vec::new();
    for &axis in shape {
        tensor.push(1 << 3);
        varint(axis as u64, &mut tensor);
    }
    tensor.extend([2 << 3, 1]);
    tensor.extend(field(8, name.as_bytes()));
    for (key, value) in entries {
        let entry = [field(1, key.as_bytes()), field(2, value.as_bytes())].concat();
        tensor.extend(field(13, &entry));
    }
    tensor.extend([14 << 3, 1]);
    field(7, &field(5, &tensor))
}

/// A model in a folder, with the numbers of all its float tensors in `DATA`, which `entries` describes: location, place, bytes.
struct Model {
    folder: tempfile::TempDir,
}

const DATA: &str = "x.onnx.data";

impl Model {
    fn new(entries: impl Fn(usize, usize) -> Vec<(&'static str, String)>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut graph = original();
        let (mut data, mut more) = (vec![0; 8], Vec::new());
        graph.initializers.retain(|tensor| {
            let Elements::Floats(values) = &tensor.elements else {
                return true;
            };
            let entries = entries(data.len(), 4 * values.len());
            let entries: Vec<_> = entries
                .iter()
                .map(|(key, value)| (*key, &value[..]))
                .collect();
            more.extend(elsewhere(&tensor.name, &tensor.shape, &entries));
            data.extend(values.iter().flat_map(|value| value.to_le_bytes()));
            false
        });
        let model = Model { folder };
        fs::write(model.path(), [graph.encode(), more].concat()).unwrap();
        fs::write(model.folder.path().join(DATA), data).unwrap();
        model
    }

    /// As exporters write it.
    fn usual() -> Self {
        Model::new(|offset, length| {
            vec![
                ("location", DATA.into()),
                ("offset", offset.to_string()),
                ("length", length.to_string()),
            ]
        })
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("x.onnx")
    }

    fn fails(&self, words: &str) {
        let text = match Graph::read(&self.path()) {
            Ok(_) => panic!("{words:?}: it was read"),
            Err(error) => error.to_string(),
        };
        assert!(
            text.contains("another file") && text.contains(words),
            "{words:?}: {text}"
        );
    }
}

#[test]
fn numbers_in_another_file_of_the_folder() {
    let expected = slabs(&original()).unwrap();
    let model = Model::usual();
    assert_eq!(
        slabs(&Graph::read(&model.path()).unwrap()).unwrap(),
        expected
    );
    // In a folder below the model's.
    let below = Model::new(|offset, length| {
        let place = [
            ("offset", offset.to_string()),
            ("length", length.to_string()),
        ];
        [vec![("location", format!("./data/{DATA}"))], place.to_vec()].concat()
    });
    fs::create_dir(below.folder.path().join("data")).unwrap();
    let [from, to] =
        [DATA.to_owned(), format!("data/{DATA}")].map(|name| below.folder.path().join(name));
    fs::rename(from, to).unwrap();
    assert_eq!(
        slabs(&Graph::read(&below.path()).unwrap()).unwrap(),
        expected
    );
}

#[test]
fn what_lies_outside_or_is_not_there_is_refused() {
    let at = |location: &'static str| Model::new(move |_, _| vec![("location", location.into())]);
    for location in [
        "../x.onnx.data",
        "/etc/passwd",
        "a/../../x",
        "..",
        "C:\\x",
        "a\\..\\..\\x",
        "",
    ] {
        at(location).fails("is no path within the model's folder");
    }
    at("nothing").fails("belongs beside the model");
    at(".").fails("another file");
    at(DATA).fails("the shape needs");
    Model::new(|_, _| vec![]).fails("does not say in which");
    let with = |key: &'static str, value: &'static str| {
        Model::new(move |offset, length| {
            let mut entries = vec![
                ("location", DATA.to_owned()),
                ("offset", offset.to_string()),
                ("length", length.to_string()),
            ];
            entries.retain(|(known, _)| *known != key);
            entries.push((key, value.into()));
            entries
        })
    };
    with("offset", "-1").fails("no number of bytes");
    with("offset", "18446744073709551615").fails("of which");
    with("offset", "100000000").fails("from byte 100000000 on");
    with("length", "7").fails("of which 7 from byte");
    let model = Model::usual();
    let data = model.folder.path().join(DATA);
    let whole = fs::read(&data).unwrap();
    // More tensors that name all bytes again: up to four times what there is.
    let mut file = fs::read(model.path()).unwrap();
    for (i, fits) in [true, true, true, false].into_iter().enumerate() {
        let more = elsewhere(
            &format!("more{i}"),
            &[whole.len() / 4],
            &[("location", DATA)],
        );
        file.extend(more);
        fs::write(model.path(), &file).unwrap();
        match fits {
            true => drop(Graph::read(&model.path()).unwrap()),
            false => model.fails("so often"),
        }
    }
    // A truncated file.
    let model = Model::usual();
    let data = model.folder.path().join(DATA);
    fs::write(&data, &whole[..whole.len() - 1]).unwrap();
    model.fails("the shape needs");
}

#[cfg(unix)]
#[test]
fn links_lead_out_of_the_folder_only_with_the_model() {
    use std::os::unix::fs::symlink;
    let model = Model::usual();
    let outside = tempfile::tempdir().unwrap();
    let data = model.folder.path().join(DATA);
    let moved = outside.path().join("blob");
    fs::rename(&data, &moved).unwrap();
    symlink(&moved, &data).unwrap();
    model.fails("is a link that leaves the model's folder");
    // A download cache: both are links to one folder.
    let blob = outside.path().join("other");
    fs::rename(model.path(), &blob).unwrap();
    symlink(&blob, model.path()).unwrap();
    Graph::read(&model.path()).unwrap();
}

/// Appends nodes after the embedding; the last gives the output.
fn ending(nodes: Vec<Node>) -> Graph {
    let mut graph = original();
    for (name, value) in [
        ("eps", 1e-12),
        ("two", 2.0),
        ("half", 0.5),
        ("minus", -0.5),
        ("one", 1.0),
    ] {
        graph
            .initializers
            .push(Tensor::floats(name, vec![], vec![value]));
    }
    for (name, axis) in [("last", -1), ("first", 0)] {
        graph.initializers.push(Tensor {
            name: name.into(),
            shape: vec![1],
            elements: Elements::Ints(vec![axis]),
        });
    }
    graph.outputs[0].name = nodes.last().unwrap().outputs[0].clone();
    graph.nodes.extend(nodes);
    Graph::decode(Path::new("x"), &graph.encode()).unwrap()
}

#[test]
fn an_embedding_may_be_divided_by_its_length() {
    let expected = slabs(&original()).unwrap();
    let x = &x(&original())[..];
    let axes = |axis: i64| Attribute::Ints(vec![axis]);
    let node = |op: &str, inputs: &[&str], output: &str| Node::new(op, output, inputs, output);
    let l2 = || node("ReduceL2", &[x], "l").with("axes", axes(1));
    let square = || node("Mul", &[x, x], "xx");
    let sum = || node("ReduceSum", &["xx", "last"], "s");
    let quotient = || node("Div", &[x, "l"], "y");
    let right = [
        vec![node("LpNormalization", &[x], "y")],
        vec![
            node("LpNormalization", &[x], "y")
                .with("axis", Attribute::Int(1))
                .with("p", Attribute::Int(2)),
        ],
        vec![l2(), quotient()],
        vec![node("ReduceL2", &[x, "last"], "l"), quotient()],
        // torch.nn.functional.normalize
        vec![
            l2(),
            node("Clip", &["l", "eps"], "m"),
            node("Shape", &[x], "shape"),
            node("Expand", &["m", "shape"], "e"),
            node("Div", &[x, "e"], "y"),
        ],
        vec![
            l2(),
            node("Max", &["eps", "l"], "m"),
            node("Div", &[x, "m"], "y"),
        ],
        vec![
            l2(),
            node("Add", &["l", "eps"], "m"),
            node("Div", &[x, "m"], "y"),
        ],
        vec![square(), sum(), node("Sqrt", &["s"], "l"), quotient()],
        vec![
            node("Pow", &[x, "two"], "xx"),
            sum(),
            node("Pow", &["s", "half"], "l"),
            quotient(),
        ],
        // TensorFlow's l2_normalize
        vec![
            node("ReduceSumSquare", &[x], "s").with("axes", axes(-1)),
            node("Max", &["s", "eps"], "m"),
            node("Sqrt", &["m"], "l"),
            node("Reciprocal", &["l"], "r"),
            node("Mul", &["r", x], "y"),
        ],
        vec![
            square(),
            sum(),
            node("Pow", &["s", "minus"], "r"),
            node("Mul", &[x, "r"], "y"),
        ],
        vec![
            l2(),
            node("Div", &["one", "l"], "r"),
            node("Mul", &[x, "r"], "y"),
        ],
        vec![
            l2(),
            node("Identity", &["l"], "m"),
            node("Div", &[x, "m"], "z"),
            node("Identity", &["z"], "y"),
        ],
    ];
    for nodes in right {
        let ops: Vec<String> = nodes.iter().map(|node| node.op.clone()).collect();
        let found = slabs(&ending(nodes)).unwrap_or_else(|e| panic!("{ops:?}: {e}"));
        assert_eq!(found, expected, "{ops:?}");
    }
    let wrong = [
        vec![node("LpNormalization", &[x], "y").with("p", Attribute::Int(1))],
        vec![node("LpNormalization", &[x], "y").with("axis", Attribute::Int(0))],
        vec![
            node("ReduceL1", &[x], "l").with("axes", axes(1)),
            quotient(),
        ],
        vec![node("ReduceL2", &[x, "first"], "l"), quotient()],
        vec![node("ReduceL2", &[x], "l"), quotient()],
        vec![l2(), node("Mul", &[x, "l"], "y")],
        vec![l2(), node("Div", &["l", x], "y")],
        vec![
            l2(),
            node("Add", &["l", "half"], "m"),
            node("Div", &[x, "m"], "y"),
        ],
        vec![
            l2(),
            node("Clip", &["l", "half"], "m"),
            node("Div", &[x, "m"], "y"),
        ],
        vec![
            l2(),
            node("Clip", &["l", "eps", "one"], "m"),
            node("Div", &[x, "m"], "y"),
        ],
        vec![square(), sum(), node("Div", &[x, "s"], "y")],
        vec![
            node("Mul", &[x, "two"], "xx"),
            sum(),
            node("Sqrt", &["s"], "l"),
            quotient(),
        ],
        vec![node("Relu", &[x], "y")],
    ];
    for nodes in wrong {
        let ops: Vec<String> = nodes.iter().map(|node| node.op.clone()).collect();
        let text = slabs(&ending(nodes)).expect_err(&ops.join(" "));
        assert!(text.contains("goes on with node"), "{ops:?}: {text}");
    }
}

/// As AdaFace gives the embedding and its length, in either order.
#[test]
fn a_graph_may_have_other_outputs() {
    let expected = slabs(&original()).unwrap();
    let name = x(&original());
    let l = Node::new("ReduceL2", "l", &[&name], "l").with("axes", Attribute::Ints(vec![1]));
    let output = |name: &str, length: usize| ValueInfo {
        name: name.into(),
        shape: Some(vec![Axis::Any("N".into()), Axis::Length(length)]),
    };
    let unit = ending(vec![l, Node::new("Div", "y", &[&name, "l"], "y")]);
    for outputs in [
        vec![output("y", 5), output("l", 1)],
        vec![output("l", 1), output("y", 5)],
        vec![output("l", 1), output(&name, 5)],
    ] {
        let graph = Graph {
            outputs,
            ..unit.clone()
        };
        assert_eq!(embedding_size(&graph), Some(5));
        let found = slabs(&graph).unwrap();
        assert_eq!(
            (found.params, found.statistics),
            (expected.params.clone(), expected.statistics.clone())
        );
    }
    let graph = Graph {
        outputs: vec![output("l", 1)],
        ..unit
    };
    slabs(&graph).unwrap_err();
}
