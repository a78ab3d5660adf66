//! NumPy's `.npy` files: one array each.
//!
//! | bytes | content |
//! |---|---|
//! | 6 | `\x93NUMPY` |
//! | 2 | version: 1.0, 2.0 or 3.0 |
//! | 2 (version 1) or 4 | length of the header, little-endian |
//! | that many | a Python literal: `{'descr': '<f4', 'fortran_order': False, 'shape': (5, 3), }`, padded with spaces, `\n` |
//! | the rest | the elements, row-major |
//!
//! Read: bool, integers of 1 to 8 bytes and floating-point numbers of 2 to 8, of either byte order, in row-major order; what has
//! no type of its own below becomes the next wider one. Written: f4, i8, u4 and bool, version 1.0.

use super::float::f32_from_f16;
use crate::base::files;
use crate::{Error, Result};
use std::io::{BufReader, Read as _, Write as _};
use std::path::Path;

/// The longest header that is believed. NumPy's own are about 128 bytes.
const MAX_HEADER: usize = 64 << 10;

/// The elements of an array, in the type the file holds or the next wider one.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Elements {
    /// `|b1`
    Bool(Vec<bool>),
    /// `|u1`
    U8(Vec<u8>),
    /// `<i4`
    I32(Vec<i32>),
    /// `<u4`
    U32(Vec<u32>),
    /// `<i8`
    I64(Vec<i64>),
    /// `<f4`
    F32(Vec<f32>),
    /// `<f8`
    F64(Vec<f64>),
}

/// An array as a `.npy` file holds it.
#[derive(Clone, Debug, PartialEq)]
pub struct Npy {
    /// Its shape; empty for a single value.
    pub shape: Vec<usize>,
    /// Its elements in row-major order, as many as the shape's product.
    pub elements: Elements,
}

/// Reads a `.npy` file.
///
/// # Errors
/// The file cannot be read, is no `.npy` file, is shorter or longer than its header says, or holds a type or order
/// that is not supported.
pub fn read(path: &Path) -> Result<Npy> {
    let io = || Error::io("reading", path);
    let file = files::open_regular(path)?;
    let file_bytes = file.metadata().map_err(io())?.len();
    let mut file = BufReader::new(file);
    let mut start = [0; 8];
    let short =
        |expected: &str| Error::malformed(path, file_bytes, expected, "the end of the file");
    if file_bytes < 10 {
        return Err(short("the 10 bytes that begin every .npy file"));
    }
    file.read_exact(&mut start).map_err(io())?;
    if &start[..6] != b"\x93NUMPY" {
        return Err(Error::malformed(
            path,
            0,
            "the magic string \\x93NUMPY",
            format!("the bytes {:02x?}", &start[..6]),
        ));
    }
    let length_bytes = match start[6] {
        1 => 2,
        2 | 3 => 4,
        version => {
            return Err(Error::Unsupported {
                path: path.into(),
                what: format!("version {version} of the .npy format"),
            });
        }
    };
    let mut length = [0; 4];
    if file_bytes < 8 + length_bytes as u64 {
        return Err(short("the header's length"));
    }
    file.read_exact(&mut length[..length_bytes]).map_err(io())?;
    let length = u32::from_le_bytes(length) as usize;
    let data_start = 8 + length_bytes as u64 + length as u64;
    if length > MAX_HEADER || data_start > file_bytes {
        return Err(Error::malformed(
            path,
            8,
            format!("a header of at most {MAX_HEADER} bytes inside the file"),
            format!("a header length of {length} in a file of {file_bytes} bytes"),
        ));
    }
    let mut header = vec![0; length];
    file.read_exact(&mut header).map_err(io())?;
    let header = String::from_utf8_lossy(&header);
    let bad_header = |expected: &str| {
        let header: String = header.chars().take(200).collect();
        Error::malformed(
            path,
            8 + length_bytes as u64,
            expected,
            format!("{header:?}"),
        )
    };
    let descr = header_value(&header, "descr")
        .and_then(|v| v.strip_prefix('\''))
        .and_then(|v| v.split_once('\''))
        .map(|(descr, _)| descr)
        .ok_or_else(|| bad_header("a 'descr' that names one type"))?;
    let order =
        header_value(&header, "fortran_order").ok_or_else(|| bad_header("a 'fortran_order'"))?;
    let shape = header_value(&header, "shape")
        .and_then(parse_shape)
        .ok_or_else(|| bad_header("a 'shape' that is a tuple of sizes"))?;
    let (order_of_bytes, kind) = descr.split_at_checked(1).unwrap_or_default();
    let known = [
        "b1", "u1", "i1", "u2", "i2", "f2", "u4", "i4", "f4", "u8", "i8", "f8",
    ];
    if !["|", "<", ">", "="].contains(&order_of_bytes) || !known.contains(&kind) {
        return Err(Error::Unsupported {
            path: path.into(),
            what: format!("the element type {descr:?} of a .npy file"),
        });
    }
    let width = u64::from(kind.as_bytes()[1] - b'0');
    if !order.starts_with("False") && shape.len() > 1 {
        return Err(Error::Unsupported {
            path: path.into(),
            what: "column-major (fortran_order) storage".into(),
        });
    }
    let expected = shape
        .iter()
        .try_fold(1_u64, |product, &n| product.checked_mul(n as u64))
        .and_then(|n| n.checked_mul(width));
    let found = file_bytes - data_start;
    if expected != Some(found) {
        return Err(Error::malformed(
            path,
            data_start,
            format!("elements of type {descr} for the shape {shape:?}"),
            format!("{found} bytes"),
        ));
    }
    let mut bytes = Vec::with_capacity(found as usize);
    file.take(found).read_to_end(&mut bytes).map_err(io())?;
    if bytes.len() as u64 != found {
        return Err(Error::data(path, "became shorter while it was being read"));
    }
    if order_of_bytes == ">" {
        bytes
            .chunks_exact_mut(width as usize)
            .for_each(<[u8]>::reverse);
    }
    let elements = match kind {
        "b1" => Elements::Bool(bytes.iter().map(|&b| b != 0).collect()),
        "u1" => Elements::U8(bytes),
        "i1" => Elements::I32(words(&bytes, |b| i8::from_le_bytes(b).into())),
        "u2" => Elements::U32(words(&bytes, |b| u16::from_le_bytes(b).into())),
        "i2" => Elements::I32(words(&bytes, |b| i16::from_le_bytes(b).into())),
        "f2" => Elements::F32(words(&bytes, |b| f32_from_f16(u16::from_le_bytes(b)))),
        "i4" => Elements::I32(words(&bytes, i32::from_le_bytes)),
        "u4" => Elements::U32(words(&bytes, u32::from_le_bytes)),
        "f4" => Elements::F32(words(&bytes, f32::from_le_bytes)),
        "i8" => Elements::I64(words(&bytes, i64::from_le_bytes)),
        "u8" => {
            let numbers = words(&bytes, u64::from_le_bytes).into_iter();
            let numbers = numbers.map(i64::try_from).collect::<Result<_, _>>();
            Elements::I64(numbers.map_err(|_| Error::Unsupported {
                path: path.into(),
                what: "an integer above 2^63 in a .npy file".into(),
            })?)
        }
        _ => Elements::F64(words(&bytes, f64::from_le_bytes)),
    };
    Ok(Npy { shape, elements })
}

impl Elements {
    /// The elements as whole numbers; none if one of them is none.
    pub fn integers(self) -> Option<Vec<i64>> {
        let whole = |x: f64| (x.fract() == 0.0 && x.abs() < 9e15).then_some(x as i64);
        Some(match self {
            Elements::Bool(v) => v.into_iter().map(i64::from).collect(),
            Elements::U8(v) => v.into_iter().map(i64::from).collect(),
            Elements::I32(v) => v.into_iter().map(i64::from).collect(),
            Elements::U32(v) => v.into_iter().map(i64::from).collect(),
            Elements::I64(v) => v,
            Elements::F32(v) => v
                .into_iter()
                .map(|x| whole(x.into()))
                .collect::<Option<_>>()?,
            Elements::F64(v) => v.into_iter().map(whole).collect::<Option<_>>()?,
        })
    }
}

/// Reads a list of truth values, such as the `NAME_list.npy` of an evaluation set: bools, or 0 and 1 of any type, in a row
/// or a column.
///
/// # Errors
/// As [`read`], or there are other values, or several rows and columns.
pub fn read_bools(path: &Path) -> Result<Vec<bool>> {
    let Npy { shape, elements } = read(path)?;
    let values = elements.integers().unwrap_or_else(|| vec![2]);
    let other = values.iter().any(|value| ![0, 1].contains(value));
    if other || shape.is_empty() || shape.iter().filter(|&&n| n != 1).count() > 1 {
        let other = if other { ", and other values" } else { "" };
        return Err(Error::data(
            path,
            format!(
                "expected a list of truth values (bool, or 0 and 1), found shape {shape:?}{other}"
            ),
        ));
    }
    Ok(values.into_iter().map(|value| value == 1).collect())
}

/// Writes an array, to a temporary name first, so that the file at `path` is whole or is not there.
///
/// # Errors
/// The file cannot be written.
///
/// # Panics
/// If the shape's product is not the number of elements.
pub fn write(path: &Path, npy: &Npy) -> Result<()> {
    let (descr, count) = match &npy.elements {
        Elements::Bool(v) => ("|b1", v.len()),
        Elements::U8(v) => ("|u1", v.len()),
        Elements::I32(v) => ("<i4", v.len()),
        Elements::U32(v) => ("<u4", v.len()),
        Elements::I64(v) => ("<i8", v.len()),
        Elements::F32(v) => ("<f4", v.len()),
        Elements::F64(v) => ("<f8", v.len()),
    };
    assert_eq!(npy.shape.iter().product::<usize>(), count, "the shape fits");
    let header = header(descr, &npy.shape);
    files::write_with(path, |out| {
        out.write_all(&header)?;
        match &npy.elements {
            Elements::Bool(v) => put(out, v, |x| [u8::from(x)]),
            Elements::U8(v) => out.write_all(v),
            Elements::I32(v) => put(out, v, i32::to_le_bytes),
            Elements::U32(v) => put(out, v, u32::to_le_bytes),
            Elements::I64(v) => put(out, v, i64::to_le_bytes),
            Elements::F32(v) => put(out, v, f32::to_le_bytes),
            Elements::F64(v) => put(out, v, f64::to_le_bytes),
        }
    })
}

/// Everything before the elements: 128 bytes, except for a shape of many axes.
pub(crate) fn header(descr: &str, shape: &[usize]) -> Vec<u8> {
    let mut sizes: String = shape.iter().map(|n| format!("{n}, ")).collect();
    if shape.len() > 1 {
        sizes.truncate(sizes.len() - 2);
    } else if shape.len() == 1 {
        sizes.truncate(sizes.len() - 1);
    }
    let mut text = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({sizes}), }}");
    // The data begin at a multiple of 64 bytes, so that they can be mapped.
    let padding = (64 - (10 + text.len() + 1) % 64) % 64;
    text.extend(std::iter::repeat_n(' ', padding));
    text.push('\n');
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend((text.len() as u16).to_le_bytes());
    header.extend(text.as_bytes());
    header
}

fn put<T: Copy, const W: usize>(
    out: &mut impl std::io::Write,
    values: &[T],
    convert: impl Fn(T) -> [u8; W],
) -> std::io::Result<()> {
    values.iter().try_for_each(|&v| out.write_all(&convert(v)))
}

fn words<T, const W: usize>(bytes: &[u8], convert: impl Fn([u8; W]) -> T) -> Vec<T> {
    let (words, _) = bytes.as_chunks::<W>();
    words.iter().map(|&w| convert(w)).collect()
}

/// What follows `'key':` in the header, without leading spaces.
fn header_value<'a>(header: &'a str, key: &str) -> Option<&'a str> {
    let (_, rest) = header.split_once(&format!("'{key}':"))?;
    Some(rest.trim_start())
}

/// `(5, 3)` or `(5,)` or `()`.
fn parse_shape(text: &str) -> Option<Vec<usize>> {
    let (inner, _) = text.strip_prefix('(')?.split_once(')')?;
    let mut sizes = Vec::new();
    let parts: Vec<&str> = inner.split(',').map(str::trim).collect();
    for (i, part) in parts.iter().enumerate() {
        if part.is_empty() && i + 1 == parts.len() {
            break;
        }
        sizes.push(part.parse().ok()?);
    }
    (sizes.len() <= 32).then_some(sizes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn every_type_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.npy");
        for (shape, elements) in [
            (vec![3], Elements::Bool(vec![true, false, true])),
            (vec![2, 1], Elements::U8(vec![7, 255])),
            (vec![], Elements::I32(vec![-5])),
            (vec![1, 2, 1], Elements::U32(vec![u32::MAX, 1])),
            (vec![2], Elements::I64(vec![i64::MIN, 9])),
            (
                vec![2, 2],
                Elements::F32(vec![0.5, -1e-30, f32::INFINITY, 3.0]),
            ),
            (vec![0, 4], Elements::F64(vec![])),
        ] {
            let array = Npy { shape, elements };
            write(&path, &array).unwrap();
            assert_eq!(read(&path).unwrap(), array);
            assert_eq!(
                fs::read_dir(dir.path()).unwrap().count(),
                1,
                "no temporary file is left"
            );
        }
    }

    /// `np.save(f, np.array([True, False]))`, NumPy 2.4.
    #[test]
    fn the_header_is_what_numpy_writes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("b.npy");
        let array = Npy {
            shape: vec![2],
            elements: Elements::Bool(vec![true, false]),
        };
        write(&path, &array).unwrap();
        let bytes = fs::read(&path).unwrap();
        assert_eq!(bytes[..10], *b"\x93NUMPY\x01\x00v\x00");
        assert!(
            bytes[10..].starts_with(b"{'descr': '|b1', 'fortran_order': False, 'shape': (2,), }  ")
        );
        assert_eq!(bytes[127..], [b'\n', 1, 0]);
        assert_eq!(read_bools(&path).unwrap(), [true, false]);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c.npy");
        let say = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            read(&path).unwrap_err().to_string()
        };
        assert!(say(b"\x93NUMP").contains("10 bytes"));
        assert!(say(b"PK\x03\x04aaaaaaaaaaa").contains("magic"));
        assert!(say(b"\x93NUMPY\x02\x00\xff\xff\xff\xff{}").contains("header"));
        let with = |header: &str| {
            let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
            bytes.extend((header.len() as u16).to_le_bytes());
            bytes.extend(header.as_bytes());
            say(&bytes)
        };
        assert!(with("{'descr': '<c8', 'fortran_order': False, 'shape': (0,)}").contains("<c8"));
        assert!(with("{'descr': '', 'fortran_order': False, 'shape': (0,)}").contains("type"));
        assert!(
            with("{'descr': '<f4', 'fortran_order': True, 'shape': (0,0)}")
                .contains("column-major")
        );
        let huge = "{'descr': '<f8', 'fortran_order': False, 'shape': (4294967296, 4294967296)}";
        assert!(with(huge).contains("0 bytes"));
        assert!(
            with("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}")
                .contains("descr")
        );
    }

    #[test]
    fn numbers_of_any_type_and_truth_values_of_any_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d.npy");
        let as_type = |descr: &str, shape: &[usize], data: &[u8]| {
            fs::write(&path, [&header(descr, shape)[..], data].concat()).unwrap();
            read(&path).unwrap().elements
        };
        assert_eq!(as_type("|i1", &[2], &[0xff, 1]), Elements::I32(vec![-1, 1]));
        assert_eq!(as_type("<u2", &[1], &[1, 2]), Elements::U32(vec![513]));
        assert_eq!(as_type(">i2", &[1], &[0xff, 0xfe]), Elements::I32(vec![-2]));
        assert_eq!(as_type("<f2", &[1], &[0, 0xc0]), Elements::F32(vec![-2.0]));
        assert_eq!(
            as_type(">f4", &[1], &[0xc0, 0, 0, 0]),
            Elements::F32(vec![-2.0])
        );
        assert_eq!(
            as_type(">u8", &[1], &[0, 0, 0, 0, 0, 0, 0, 9]),
            Elements::I64(vec![9])
        );
        for (descr, one) in [
            ("|b1", &[1][..]),
            ("|u1", &[1]),
            ("<i4", &[1, 0, 0, 0]),
            (">i8", &[0, 0, 0, 0, 0, 0, 0, 1]),
            ("<f4", &[0, 0, 0x80, 0x3f]),
        ] {
            let zero = vec![0; one.len()];
            for shape in [&[3][..], &[3, 1], &[1, 3]] {
                as_type(descr, shape, &[one, &zero, one].concat());
                assert_eq!(read_bools(&path).unwrap(), [true, false, true], "{descr}");
            }
        }
        as_type("|u1", &[3], &[0, 1, 2]);
        assert!(
            read_bools(&path)
                .unwrap_err()
                .to_string()
                .contains("other values")
        );
        as_type("|u1", &[2, 2], &[0, 1, 1, 0]);
        assert!(
            read_bools(&path)
                .unwrap_err()
                .to_string()
                .contains("[2, 2]")
        );
    }
}
