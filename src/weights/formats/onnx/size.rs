//! How much memory an ONNX file takes when it is decoded, before it is.
//!
//! A message of two bytes, such as an empty node, becomes a struct of two hundred. So the messages, texts and lists of numbers
//! are counted in the bytes first. Elements of tensors do not count: they take as much here as there.

use super::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto,
    StringStringEntryProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};
use crate::{Error, Result};
use prost::encoding::{WireType, decode_key, decode_varint};
use std::path::Path;

/// What decoding may take beside the elements: so many times the file's size, and a little for small files.
const MOST_TIMES: usize = 4;
const SMALL: usize = 16 << 20;

/// The messages, as far as they are decoded.
#[derive(Clone, Copy)]
enum Message {
    Model,
    Opset,
    Entry,
    Graph,
    Node,
    Attribute,
    Tensor,
    ValueInfo,
    Type,
    TensorType,
    Shape,
    Dimension,
}

/// What a field of a message becomes.
enum Field {
    One(Message),
    Text,
    /// Numbers of 8 bytes, which take one or more in the file.
    Numbers,
    /// Nothing, or as much as it takes in the file.
    Same,
}

impl Message {
    fn size(self) -> usize {
        match self {
            Message::Model => size_of::<ModelProto>(),
            Message::Opset => size_of::<OperatorSetIdProto>(),
            Message::Entry => size_of::<StringStringEntryProto>(),
            Message::Graph => size_of::<GraphProto>(),
            Message::Node => size_of::<NodeProto>(),
            Message::Attribute => size_of::<AttributeProto>(),
            Message::Tensor => size_of::<TensorProto>(),
            Message::ValueInfo => size_of::<ValueInfoProto>(),
            Message::Type => size_of::<TypeProto>(),
            Message::TensorType => size_of::<TensorTypeProto>(),
            Message::Shape => size_of::<TensorShapeProto>(),
            Message::Dimension => size_of::<DimensionProto>(),
        }
    }

    /// What field `tag` becomes.
    fn field(self, tag: u32) -> Field {
        use Field::{Numbers, One, Same, Text};
        match (self, tag) {
            (Message::Model, 7) => One(Message::Graph),
            (Message::Model, 8) => One(Message::Opset),
            (Message::Model, 14) | (Message::Tensor, 13) => One(Message::Entry),
            (Message::Graph, 1) => One(Message::Node),
            (Message::Graph, 5) | (Message::Attribute, 5) => One(Message::Tensor),
            (Message::Graph, 11 | 12) => One(Message::ValueInfo),
            (Message::Node, 5) => One(Message::Attribute),
            (Message::Node, 1 | 2) => Text,
            (Message::Attribute, 7 | 8) | (Message::Tensor, 1 | 4 | 5 | 7) => Numbers,
            (Message::ValueInfo, 2) => One(Message::Type),
            (Message::Type, 1) => One(Message::TensorType),
            (Message::TensorType, 2) => One(Message::Shape),
            (Message::Shape, 1) => One(Message::Dimension),
            _ => Same,
        }
    }
}

/// Checks that the model in `bytes` takes memory in proportion to its size.
///
/// # Errors
/// It would take far more. Bytes that are no message at all are for the decoder to tell.
pub(super) fn check(path: &Path, bytes: &[u8]) -> Result<()> {
    let most = bytes.len().saturating_mul(MOST_TIMES).saturating_add(SMALL);
    let mut left = most;
    match walk(Message::Model, bytes, &mut left) {
        Walked::TooLarge => Err(Error::data(
            path,
            format!(
                "is no model: its {} bytes would take more than {} MiB of memory, in messages that hold next to nothing",
                bytes.len(),
                most >> 20
            ),
        )),
        Walked::Whole | Walked::Broken => Ok(()),
    }
}

enum Walked {
    Whole,
    /// The decoder will say where.
    Broken,
    TooLarge,
}

/// Takes what `bytes`, the fields of a message, become off `left`. Messages are nested as deep as their kinds are, which is
/// not deep.
fn walk(message: Message, mut bytes: &[u8], left: &mut usize) -> Walked {
    while !bytes.is_empty() {
        let Ok((tag, wire)) = decode_key(&mut bytes) else {
            return Walked::Broken;
        };
        let field = message.field(tag);
        let length = match wire {
            WireType::Varint => {
                if decode_varint(&mut bytes).is_err() {
                    return Walked::Broken;
                }
                0
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => match decode_varint(&mut bytes) {
                Ok(length) => usize::try_from(length).unwrap_or(usize::MAX),
                Err(_) => return Walked::Broken,
            },
            WireType::StartGroup | WireType::EndGroup => return Walked::Broken,
        };
        let Some((content, rest)) = bytes.split_at_checked(length) else {
            return Walked::Broken;
        };
        bytes = rest;
        // Vectors grow by doubling.
        let cost = match field {
            Field::One(inner) => 2 * inner.size(),
            Field::Text => 2 * size_of::<String>(),
            // Packed floating-point numbers take what they take in the file; one that stands alone, a place in a list.
            Field::Numbers if wire == WireType::LengthDelimited => match (message, tag) {
                (Message::Tensor, 4) => 0,
                _ => 16 * content.iter().filter(|byte| **byte < 0x80).count(),
            },
            Field::Numbers => 16,
            Field::Same => 0,
        };
        match left.checked_sub(cost) {
            Some(rest) => *left = rest,
            None => return Walked::TooLarge,
        }
        if let (Field::One(inner), WireType::LengthDelimited) = (field, wire) {
            match walk(inner, content, left) {
                Walked::Whole => {}
                other => return other,
            }
        }
    }
    Walked::Whole
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of bytes.
    fn field(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag << 3 | 2];
        prost::encoding::encode_varint(content.len() as u64, &mut bytes);
        bytes.extend(content);
        bytes
    }

    #[test]
    fn small_messages_do_not_fill_the_memory() {
        let many = |tag: u8, content: &[u8]| {
            let one = field(tag, content);
            field(7, &one.repeat(4_000_000 / one.len()))
        };
        let attributes = field(5, &[]).repeat(1_000_000);
        for (what, bytes) in [
            ("nodes", many(1, &[])),
            ("tensors", many(5, &[])),
            ("values", many(11, &[])),
            ("attributes", field(7, &field(1, &attributes))),
            (
                "names",
                field(7, &field(1, &field(1, &[]).repeat(2_000_000))),
            ),
            ("axes", field(7, &field(5, &field(1, &[1; 4_000_000])))),
            ("numbers", field(7, &field(5, &field(7, &[1; 4_000_000])))),
            ("notes", field(14, &[]).repeat(2_000_000)),
        ] {
            let text = check(Path::new("x.onnx"), &bytes).unwrap_err().to_string();
            assert!(text.contains("more than"), "{what}: {text}");
        }
        // Elements, in either form, are what they are.
        for tag in [4, 9] {
            let bytes = field(7, &field(5, &field(tag, &[0; 4_000_000])));
            check(Path::new("x.onnx"), &bytes).unwrap();
        }
    }
}
