//! ONNX files: networks as graphs of operators with their weights.
//!
//! A file is one protocol-buffer message, `ModelProto` (`proto.rs`): the version of the format, of the operators, notes by
//! name, and a graph. The graph has inputs, outputs, constant tensors ("initializers") and nodes; a node names the values that
//! it reads and gives, and every value is given once, before it is read. Nothing here knows a network: [`Graph`] is the
//! file's content with its tensors as numbers, checked as far as the format goes. A tensor's numbers may lie in another file of
//! the same folder (`external.rs`). What decoding takes is bounded by the file's size (`size.rs`).

mod external;
mod problem;
mod proto;
mod size;
mod tensor;

pub use tensor::{Elements, Tensor};

use crate::base::files::read_whole;
use crate::{Error, Result};
use external::External;
use prost::Message as _;
use proto::{
    AttributeProto, Dimension, DimensionProto, GraphProto, ModelProto, NodeProto,
    OperatorSetIdProto, StringStringEntryProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto, attribute_type, data_type,
};
use std::collections::{HashMap, HashSet};
use std::path::Path;

/// The version of the format that is written.
const IR_VERSION: i64 = 8;

/// Whether a file that begins so may be an ONNX file: they have no mark, but the version of the format comes first, and is
/// small.
pub fn may_be_onnx(start: &[u8]) -> bool {
    matches!(start, [0x08, 1..=0x7f, ..])
}

/// A network's file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// The graph's name.
    pub name: String,
    /// The program that wrote the file.
    pub producer: String,
    /// Its version.
    pub producer_version: String,
    /// The version of ONNX's own operators that the nodes follow.
    pub opset: i64,
    /// Notes by name.
    pub metadata: Vec<(String, String)>,
    /// What the network is fed; constants that a file lists as inputs too are not here.
    pub inputs: Vec<ValueInfo>,
    /// What it gives.
    pub outputs: Vec<ValueInfo>,
    /// Constants.
    pub initializers: Vec<Tensor>,
    /// The operators, each after those whose values it reads.
    pub nodes: Vec<Node>,
}

/// A value at the graph's edge, of 32-bit floating-point numbers as far as it is known.
#[derive(Clone, Debug, PartialEq)]
pub struct ValueInfo {
    /// Its name.
    pub name: String,
    /// Its axes. None: the file does not say.
    pub shape: Option<Vec<Axis>>,
}

/// The length of an axis.
#[derive(Clone, Debug, PartialEq)]
pub enum Axis {
    /// So many elements.
    Length(usize),
    /// Any, under a name (which may be empty).
    Any(String),
}

/// An operator.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name, which may be empty.
    pub name: String,
    /// What it computes ("Conv"); with its domain before it ("com.microsoft.Gelu") where that is not ONNX's own.
    pub op: String,
    /// Names of the values it reads; an empty name is one that is left out.
    pub inputs: Vec<String>,
    /// Names of the values it gives.
    pub outputs: Vec<String>,
    /// Its settings by name.
    pub attributes: Vec<(String, Attribute)>,
}

/// A node's setting.
#[derive(Clone, Debug, PartialEq)]
pub enum Attribute {
    /// A whole number.
    Int(i64),
    /// Whole numbers.
    Ints(Vec<i64>),
    /// A number.
    Float(f32),
    /// Numbers.
    Floats(Vec<f32>),
    /// Text.
    Text(String),
    /// A constant.
    Tensor(Tensor),
    /// Something else (a graph, a list of texts), of which nothing is kept.
    Other,
}

impl Node {
    /// A node of ONNX's own operators with one output.
    pub fn new(op: &str, name: &str, inputs: &[&str], output: &str) -> Self {
        Node {
            name: name.into(),
            op: op.into(),
            inputs: inputs.iter().map(ToString::to_string).collect(),
            outputs: vec![output.into()],
            attributes: Vec::new(),
        }
    }

    /// The same with a setting more.
    #[must_use]
    pub fn with(mut self, name: &str, value: Attribute) -> Self {
        self.attributes.push((name.into(), value));
        self
    }

    /// A setting.
    pub fn attribute(&self, name: &str) -> Option<&Attribute> {
        (self.attributes.iter())
            .find(|(key, _)| key == name)
            .map(|(_, value)| value)
    }

    /// The name of input `i`, if the node has it.
    pub fn input(&self, i: usize) -> Option<&str> {
        self.inputs
            .get(i)
            .map(String::as_str)
            .filter(|name| !name.is_empty())
    }
}

impl Graph {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read or is no ONNX file; it keeps tensors in files outside its folder, or in such that have not all of
    /// their numbers; it would take far more memory than its size; a node reads a value that nothing before it gives.
    pub fn read(path: &Path) -> Result<Self> {
        Self::decode(path, &read_whole(path)?)
    }

    /// The graph in a file's bytes; `path` is for messages, and its folder is where other files are.
    ///
    /// # Errors
    /// As [`Graph::read`].
    pub fn decode(path: &Path, bytes: &[u8]) -> Result<Self> {
        size::check(path, bytes)?;
        let mut external = External::new(path);
        let mut rest = bytes;
        let model = ModelProto::decode(&mut rest).map_err(|why| {
            Error::malformed(
                path,
                (bytes.len() - rest.len()) as u64,
                "an ONNX model (a ModelProto message)",
                format!("what is none before this byte: {why}"),
            )
        })?;
        let Some(graph) = model.graph else {
            return Err(Error::data(path, "is no ONNX model: it holds no graph"));
        };
        let opset = (model.opset_import.iter())
            .find(|set| set.domain.is_empty() || set.domain == "ai.onnx")
            .map_or(0, |set| set.version);
        let metadata = model.metadata_props.into_iter();
        let mut read = Graph {
            name: graph.name,
            producer: model.producer_name,
            producer_version: model.producer_version,
            opset,
            metadata: metadata.map(|entry| (entry.key, entry.value)).collect(),
            ..Graph::default()
        };
        for proto in graph.initializer {
            let name = proto.name.clone();
            let tensor = tensor::read(proto, &mut external)
                .map_err(|problem| problem.of(path, &format!("initializer {name}")))?;
            read.initializers.push(tensor);
        }
        let constants: HashSet<&str> = read.initializers.iter().map(|t| &t.name[..]).collect();
        let inputs = graph.input.into_iter();
        read.inputs = inputs
            .filter(|input| !constants.contains(&input.name[..]))
            .map(value_info)
            .collect();
        read.outputs = graph.output.into_iter().map(value_info).collect();
        for proto in graph.node {
            read.nodes.push(node(path, proto, &mut external)?);
        }
        read.check(path)?;
        Ok(read)
    }

    /// That every value is given once and read after that.
    fn check(&self, path: &Path) -> Result<()> {
        let mut given: HashSet<&str> = HashSet::new();
        let mut give = |name, by: String| match given.insert(name) {
            true => Ok(()),
            false => Err(Error::data(
                path,
                format!("{by} gives {name}, which is there already"),
            )),
        };
        for tensor in &self.initializers {
            give(&tensor.name[..], "an initializer".into())?;
        }
        for input in &self.inputs {
            give(&input.name[..], "a graph input".into())?;
        }
        // Names and places of all outputs, to tell a value of a later node from one that is nowhere.
        let mut later: HashMap<&str, usize> = HashMap::new();
        for (i, node) in self.nodes.iter().enumerate() {
            for output in node.outputs.iter().filter(|name| !name.is_empty()) {
                give(output, format!("node {}", self.describe(i)))?;
                later.insert(output, i);
            }
        }
        for (i, node) in self.nodes.iter().enumerate() {
            for input in node.inputs.iter().filter(|name| !name.is_empty()) {
                let problem = match later.get(&input[..]) {
                    Some(giver) if *giver < i => continue,
                    Some(giver) => format!(
                        "which node {} gives only after that: nodes must stand in the order they are computed in",
                        self.describe(*giver)
                    ),
                    None if given.contains(&input[..]) => continue,
                    None => "which nothing in the graph gives".into(),
                };
                return Err(Error::data(
                    path,
                    format!("node {} reads {input}, {problem}", self.describe(i)),
                ));
            }
        }
        match self
            .outputs
            .iter()
            .find(|output| !given.contains(&output.name[..]))
        {
            Some(output) => Err(Error::data(
                path,
                format!("the graph's output {} is given by no node", output.name),
            )),
            None => Ok(()),
        }
    }

    /// Node `i` for messages: its name (its place where it has none) and its operator.
    ///
    /// # Panics
    /// There is no such node.
    pub fn describe(&self, i: usize) -> String {
        let node = &self.nodes[i];
        match node.name.is_empty() {
            true => format!("number {} ({})", i + 1, node.op),
            false => format!("{} ({})", node.name, node.op),
        }
    }

    /// A note by name.
    pub fn note(&self, key: &str) -> Option<&str> {
        (self.metadata.iter())
            .find(|(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }

    /// The bytes of the file, in the format's version 8.
    pub fn encode(&self) -> Vec<u8> {
        let entry = |(key, value): &(String, String)| StringStringEntryProto {
            key: key.clone(),
            value: value.clone(),
        };
        let graph = GraphProto {
            name: self.name.clone(),
            node: self.nodes.iter().map(node_proto).collect(),
            initializer: self.initializers.iter().map(tensor::proto).collect(),
            input: self.inputs.iter().map(value_info_proto).collect(),
            output: self.outputs.iter().map(value_info_proto).collect(),
        };
        let model = ModelProto {
            ir_version: IR_VERSION,
            producer_name: self.producer.clone(),
            producer_version: self.producer_version.clone(),
            graph: Some(graph),
            opset_import: vec![OperatorSetIdProto {
                domain: String::new(),
                version: self.opset,
            }],
            metadata_props: self.metadata.iter().map(entry).collect(),
        };
        model.encode_to_vec()
    }
}

fn value_info(proto: ValueInfoProto) -> ValueInfo {
    let axis = |dimension: DimensionProto| match dimension.length {
        Some(Dimension::Value(n)) => match usize::try_from(n) {
            Ok(n) if n > 0 => Axis::Length(n),
            // Exporters write 0 and -1 for a batch of any size.
            _ => Axis::Any(String::new()),
        },
        Some(Dimension::Param(name)) => Axis::Any(name),
        None => Axis::Any(String::new()),
    };
    let shape = (proto.kind.and_then(|kind| kind.tensor_type)).and_then(|tensor| tensor.shape);
    ValueInfo {
        name: proto.name,
        shape: shape.map(|shape| shape.dim.into_iter().map(axis).collect()),
    }
}

fn value_info_proto(value: &ValueInfo) -> ValueInfoProto {
    let dimension = |axis: &Axis| DimensionProto {
        length: Some(match axis {
            Axis::Length(n) => Dimension::Value(*n as i64),
            Axis::Any(name) => Dimension::Param(name.clone()),
        }),
    };
    let shape = value.shape.as_ref().map(|shape| TensorShapeProto {
        dim: shape.iter().map(dimension).collect(),
    });
    ValueInfoProto {
        name: value.name.clone(),
        kind: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: data_type::FLOAT,
                shape,
            }),
        }),
    }
}

fn node(path: &Path, proto: NodeProto, external: &mut External) -> Result<Node> {
    let op = match &proto.domain[..] {
        "" | "ai.onnx" => proto.op_type,
        domain => format!("{domain}.{}", proto.op_type),
    };
    let mut attributes = Vec::with_capacity(proto.attribute.len());
    for attribute in proto.attribute {
        let name = attribute.name.clone();
        let value = self::attribute(attribute, external)
            .map_err(|problem| problem.of(path, &format!("node {} ({op}), {name}", proto.name)))?;
        attributes.push((name, value));
    }
    Ok(Node {
        name: proto.name,
        op,
        inputs: proto.input,
        outputs: proto.output,
        attributes,
    })
}

fn attribute(
    proto: AttributeProto,
    external: &mut External,
) -> Result<Attribute, problem::Problem> {
    Ok(match proto.kind {
        attribute_type::INT => Attribute::Int(proto.i),
        attribute_type::INTS => Attribute::Ints(proto.ints),
        attribute_type::FLOAT => Attribute::Float(proto.f),
        attribute_type::FLOATS => Attribute::Floats(proto.floats),
        attribute_type::STRING => Attribute::Text(String::from_utf8_lossy(&proto.s).into_owned()),
        attribute_type::TENSOR => {
            Attribute::Tensor(tensor::read(*proto.t.unwrap_or_default(), external)?)
        }
        _ => Attribute::Other,
    })
}

fn node_proto(node: &Node) -> NodeProto {
    NodeProto {
        input: node.inputs.clone(),
        output: node.outputs.clone(),
        name: node.name.clone(),
        op_type: node.op.clone(),
        attribute: node.attributes.iter().map(attribute_proto).collect(),
        domain: String::new(),
    }
}

fn attribute_proto((name, value): &(String, Attribute)) -> AttributeProto {
    let mut proto = AttributeProto {
        name: name.clone(),
        ..AttributeProto::default()
    };
    match value {
        Attribute::Int(i) => (proto.kind, proto.i) = (attribute_type::INT, *i),
        Attribute::Ints(ints) => {
            (proto.kind, proto.ints) = (attribute_type::INTS, ints.clone());
        }
        Attribute::Float(f) => (proto.kind, proto.f) = (attribute_type::FLOAT, *f),
        Attribute::Floats(floats) => {
            (proto.kind, proto.floats) = (attribute_type::FLOATS, floats.clone());
        }
        Attribute::Text(text) => {
            (proto.kind, proto.s) = (attribute_type::STRING, text.clone().into_bytes());
        }
        Attribute::Tensor(constant) => {
            proto.kind = attribute_type::TENSOR;
            proto.t = Some(Box::new(tensor::proto(constant)));
        }
        Attribute::Other => {}
    }
    proto
}
