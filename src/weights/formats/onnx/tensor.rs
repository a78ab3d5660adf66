//! Tensors of an ONNX file as numbers.

use super::external::External;
use super::problem::Problem;
use super::proto::{TensorProto, data_type};
use crate::encoding::float::Float;

/// The most whole numbers of a tensor that are kept: they are shapes, axes and the like. (A quantised network's weights
/// would take eight times their size.)
const MOST_INTS: usize = 1 << 16;

/// A constant.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    /// Its name; empty for the value of an attribute.
    pub name: String,
    /// Its axes; empty for a single number.
    pub shape: Vec<usize>,
    /// Its elements, the last axis fastest; as many as the shape says.
    pub elements: Elements,
}

/// A tensor's elements.
#[derive(Clone, Debug, PartialEq)]
pub enum Elements {
    /// float32, or float64, float16 and bfloat16 as float32.
    Floats(Vec<f32>),
    /// Whole numbers and truth values, of at most 64 bits with sign.
    Ints(Vec<i64>),
    /// Another of ONNX's data types (text, complex numbers, 4 bits), or a great many whole numbers: the type's number. None
    /// are kept.
    Unread(i32),
}

impl Tensor {
    /// A tensor of float32 numbers.
    pub fn floats(name: impl Into<String>, shape: Vec<usize>, values: Vec<f32>) -> Self {
        Tensor {
            name: name.into(),
            shape,
            elements: Elements::Floats(values),
        }
    }

    /// Its numbers, if they are whole.
    pub fn as_ints(&self) -> Option<&[i64]> {
        match &self.elements {
            Elements::Ints(values) => Some(values),
            _ => None,
        }
    }
}

/// A field's numbers, or those in `raw`, N bytes each.
fn numbers<T: Copy, U, const N: usize>(
    raw: &[u8],
    from_bytes: impl Fn([u8; N]) -> U,
    field: &[T],
    from_field: impl Fn(T) -> U,
) -> Result<Vec<U>, Problem> {
    if raw.is_empty() {
        return Ok(field.iter().copied().map(from_field).collect());
    }
    let (elements, rest) = raw.as_chunks::<N>();
    if !rest.is_empty() {
        return Err(Problem(format!(
            "has {} bytes of data, which is no whole number of elements of {N} bytes",
            raw.len()
        )));
    }
    Ok(elements.iter().copied().map(from_bytes).collect())
}

/// The same of half-precision numbers, whose field has their bits.
fn halves(kind: Float, raw: &[u8], field: &[i32]) -> Result<Vec<f32>, Problem> {
    let bits = |bits: i32| (bits as u16).to_le_bytes();
    let bytes = numbers(raw, |two: [u8; 2]| two, field, bits)?;
    Ok(kind.decode(bytes.as_flattened()))
}

/// The tensor of a message.
pub(super) fn read(proto: TensorProto, external: &mut External) -> Result<Tensor, Problem> {
    let shape = (proto.dims.iter())
        .map(|&n| usize::try_from(n))
        .collect::<Result<Vec<_>, _>>();
    let Ok(shape) = shape else {
        return Err(Problem(format!("has the shape {:?}", proto.dims)));
    };
    let expected = shape
        .iter()
        .try_fold(1_usize, |n, &axis| n.checked_mul(axis));
    let elsewhere = proto.data_location == 1 || !proto.external_data.is_empty();
    let raw = match (elsewhere, width(proto.data_type)) {
        (true, Some(width)) => {
            let len = expected.and_then(|n| n.checked_mul(width));
            let len = len.ok_or_else(|| Problem(format!("has the shape {shape:?}")))?;
            external.bytes(&proto.external_data, len)?
        }
        _ => &proto.raw_data[..],
    };
    if is_whole(proto.data_type) && expected.is_none_or(|n| n > MOST_INTS) {
        return Ok(Tensor {
            name: proto.name,
            shape,
            elements: Elements::Unread(proto.data_type),
        });
    }
    let (i32s, i64s) = (&proto.int32_data[..], &proto.int64_data[..]);
    let elements = match proto.data_type {
        data_type::FLOAT => {
            Elements::Floats(numbers(raw, f32::from_le_bytes, &proto.float_data, |x| x)?)
        }
        data_type::DOUBLE => {
            let double = |bytes| f64::from_le_bytes(bytes) as f32;
            Elements::Floats(numbers(raw, double, &proto.double_data, |x| x as f32)?)
        }
        data_type::FLOAT16 => Elements::Floats(halves(Float::F16, raw, i32s)?),
        data_type::BFLOAT16 => Elements::Floats(halves(Float::Bf16, raw, i32s)?),
        data_type::INT64 => Elements::Ints(numbers(raw, i64::from_le_bytes, i64s, |x| x)?),
        data_type::INT32 => {
            let int = |bytes| i64::from(i32::from_le_bytes(bytes));
            Elements::Ints(numbers(raw, int, i32s, i64::from)?)
        }
        data_type::INT8 => {
            let int = |[byte]: [u8; 1]| i64::from(byte as i8);
            Elements::Ints(numbers(raw, int, i32s, i64::from)?)
        }
        data_type::UINT8 | data_type::BOOL => {
            let int = |[byte]: [u8; 1]| i64::from(byte);
            Elements::Ints(numbers(raw, int, i32s, i64::from)?)
        }
        other => Elements::Unread(other),
    };
    let found = match &elements {
        Elements::Floats(values) => values.len(),
        Elements::Ints(values) => values.len(),
        Elements::Unread(_) => {
            return Ok(Tensor {
                name: proto.name,
                shape,
                elements,
            });
        }
    };
    if expected != Some(found) {
        return Err(Problem(format!(
            "has the shape {shape:?} and {found} elements"
        )));
    }
    Ok(Tensor {
        name: proto.name,
        shape,
        elements,
    })
}

/// Bytes of an element of a type that is read.
fn width(data_type: i32) -> Option<usize> {
    Some(match data_type {
        data_type::INT8 | data_type::UINT8 | data_type::BOOL => 1,
        data_type::FLOAT16 | data_type::BFLOAT16 => 2,
        data_type::FLOAT | data_type::INT32 => 4,
        data_type::DOUBLE | data_type::INT64 => 8,
        _ => return None,
    })
}

fn is_whole(data_type: i32) -> bool {
    matches!(
        data_type,
        data_type::INT8 | data_type::UINT8 | data_type::BOOL | data_type::INT32 | data_type::INT64
    )
}

/// The message of a tensor.
pub(super) fn proto(tensor: &Tensor) -> TensorProto {
    let (data_type, raw_data) = match &tensor.elements {
        Elements::Floats(values) => (
            data_type::FLOAT,
            values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        Elements::Ints(values) => (
            data_type::INT64,
            values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        ),
        Elements::Unread(kind) => (*kind, Vec::new()),
    };
    TensorProto {
        dims: tensor.shape.iter().map(|&n| n as i64).collect(),
        data_type,
        name: tensor.name.clone(),
        raw_data,
        ..TensorProto::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn read(proto: TensorProto) -> Result<Tensor, Problem> {
        super::read(proto, &mut External::new(Path::new("x.onnx")))
    }

    #[test]
    fn a_great_many_whole_numbers_are_not_kept() {
        for (count, kept) in [(MOST_INTS, true), (MOST_INTS + 1, false)] {
            let proto = TensorProto {
                dims: vec![count as i64],
                data_type: data_type::INT8,
                raw_data: vec![1; count],
                ..TensorProto::default()
            };
            assert_eq!(read(proto).unwrap().as_ints().is_some(), kept);
        }
    }

    /// Each type, as little-endian bytes and in its field.
    #[test]
    fn every_float_type_becomes_float32() {
        let tensor = |data_type| TensorProto {
            dims: vec![2],
            data_type,
            ..TensorProto::default()
        };
        let raw = |data_type, raw: &[u8]| TensorProto {
            raw_data: raw.to_vec(),
            ..tensor(data_type)
        };
        let halves = vec![0x3e00, 0xc000];
        for proto in [
            raw(data_type::FLOAT, &[0, 0, 0xc0, 0x3f, 0, 0, 0, 0xc0]),
            raw(data_type::FLOAT16, &[0, 0x3e, 0, 0xc0]),
            raw(data_type::BFLOAT16, &[0xc0, 0x3f, 0, 0xc0]),
            raw(
                data_type::DOUBLE,
                &[0, 0, 0, 0, 0, 0, 0xf8, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0xc0],
            ),
            TensorProto {
                float_data: vec![1.5, -2.0],
                ..tensor(data_type::FLOAT)
            },
            TensorProto {
                double_data: vec![1.5, -2.0],
                ..tensor(data_type::DOUBLE)
            },
            TensorProto {
                int32_data: halves,
                ..tensor(data_type::FLOAT16)
            },
        ] {
            let found = read(proto.clone()).unwrap();
            assert_eq!(
                found.elements,
                Elements::Floats(vec![1.5, -2.0]),
                "{proto:?}"
            );
        }
        for proto in [
            raw(data_type::INT8, &[1, 0xfe]),
            raw(data_type::INT32, &[1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff]),
            TensorProto {
                int64_data: vec![1, -2],
                ..tensor(data_type::INT64)
            },
        ] {
            let found = read(proto.clone()).unwrap();
            assert_eq!(found.as_ints(), Some(&[1, -2][..]), "{proto:?}");
        }
        let text = read(tensor(8)).unwrap();
        assert_eq!(text.elements, Elements::Unread(8));
        assert!(read(raw(data_type::FLOAT, &[0; 7])).is_err());
        assert!(read(tensor(data_type::FLOAT)).is_err());
    }
}
