//! NumPy's arrays and scalars in pickles, as far as numbers, bytes and objects go. Nothing is executed: the arguments of a
//! call, and the state that the pickle sets afterwards, say what the call would make.
//!
//! | call | arguments, and state |
//! |---|---|
//! | `dtype` | `("u1", False, True)`, and `(3, "<", ...)`: the order of bytes is the second |
//! | `scalar` | a dtype, and bytes |
//! | `_reconstruct` | the type, and `(1, shape, dtype, column-major, data)`; the data are bytes, or a list of objects |
//! | `_frombuffer` | bytes, a dtype, the shape, the order |

use super::{Id, Value, Values};

/// The names that [`load`](super::load) is to know for this.
pub(crate) const NAMES: [(&str, &str); 9] = [
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.numeric", "_frombuffer"),
    ("numpy", "ndarray"),
    ("numpy", "bool_"),
];

/// An array or a scalar.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Array {
    /// Elements of one type.
    Numbers {
        /// `b` truth values, `i` `u` integers, `f` floating-point numbers, `S` `V` bytes.
        kind: u8,
        /// Bytes of an element.
        width: usize,
        /// Whether the highest byte comes first.
        swapped: bool,
        /// The value that holds all elements, one after the other.
        data: Id,
    },
    /// Python's own values.
    Objects(Vec<Id>),
}

impl Array {
    /// What value `id` of a pickle in `file` is, if it is NumPy's.
    pub(crate) fn of(values: &Values, file: &[u8], id: Id) -> Option<Self> {
        let &Value::Call(name, arguments) = values.get(id) else {
            return None;
        };
        let arguments = tuple(values, arguments)?;
        let (dtype, data) = match (NAMES.get(name)?.1, arguments) {
            ("scalar", &[dtype, data]) | ("_frombuffer", &[data, dtype, ..]) => (dtype, data),
            ("_reconstruct", _) => {
                let state = tuple(values, values.state(id)?)?;
                // Old ones have no version in front.
                let &[.., dtype, _, data] = state else {
                    return None;
                };
                (dtype, data)
            }
            _ => return None,
        };
        if let Value::List(objects) = values.get(data) {
            return Some(Array::Objects(objects.clone()));
        }
        // An array of an array's bytes is none.
        values.bytes(file, data)?;
        let &Value::Call(name, arguments) = values.get(dtype) else {
            return None;
        };
        let name = (NAMES.get(name)?.1 == "dtype").then(|| tuple(values, arguments))??;
        let name = values.bytes(file, *name.first()?)?;
        let (&kind, width) = name.split_first()?;
        let width = str::from_utf8(width)
            .ok()?
            .parse()
            .ok()
            .filter(|&w| w > 0)?;
        let order = (values.state(dtype)).and_then(|state| tuple(values, state)?.get(1).copied());
        let order = order.and_then(|order| values.bytes(file, order));
        b"biufSV".contains(&kind).then_some(Array::Numbers {
            kind,
            width,
            swapped: order == Some(b">"),
            data,
        })
    }
}

fn tuple(values: &Values, id: Id) -> Option<&[Id]> {
    match values.get(id) {
        Value::Tuple(items) => Some(items),
        _ => None,
    }
}

/// Whether an element of this kind is 0 or 1; none if it is neither.
pub(crate) fn truth(kind: u8, element: &[u8], swapped: bool) -> Option<bool> {
    let mut bytes = [0; 8];
    let width = element.len();
    bytes.get_mut(..width)?.copy_from_slice(element);
    if swapped {
        bytes[..width].reverse();
    }
    match (kind, width) {
        (b'b' | b'u' | b'i', _) => match u64::from_le_bytes(bytes) {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        },
        (b'f', 2 | 4 | 8) => {
            let one = match width {
                2 => 0x3c00,
                4 => u64::from(1.0_f32.to_bits()),
                _ => 1.0_f64.to_bits(),
            };
            match u64::from_le_bytes(bytes) {
                0 => Some(false),
                bits => (bits == one).then_some(true),
            }
        }
        _ => None,
    }
}

impl Values {
    /// What value `id` was told about itself after it was made.
    fn state(&self, id: Id) -> Option<Id> {
        self.states.get(&id).copied()
    }

    /// The bytes of value `id`, those of a text included; `file` is what the pickle begins.
    pub(crate) fn bytes<'a>(&'a self, file: &'a [u8], id: Id) -> Option<&'a [u8]> {
        match self.get(id) {
            Value::Bytes(range) | Value::Text(range) => Some(&file[range.clone()]),
            Value::Decoded(bytes) => Some(bytes),
            Value::DecodedText(text) => Some(text.as_bytes()),
            _ => None,
        }
    }
}
