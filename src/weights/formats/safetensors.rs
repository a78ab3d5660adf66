//! safetensors files of any program.
//!
//! ```text
//! u64 H | H bytes of JSON: {"name": {"dtype", "shape", "data_offsets"}, ..., "__metadata__": {...}} | data, row-major, little-endian
//! ```

use super::tensors::{NamedTensor, TensorFile};
use crate::base::files::read_whole;
use crate::encoding::float::Float;
use crate::{Error, Result};
use safetensors::SafeTensors;
use std::path::Path;

/// Whether a file that begins with `start` may be safetensors: its header is JSON.
pub fn is_safetensors(start: &[u8]) -> bool {
    start.get(8) == Some(&b'{')
}

/// Reads every tensor of floating-point numbers.
///
/// # Errors
/// The file cannot be read, or is not whole.
pub fn open(path: &Path) -> Result<TensorFile> {
    let bytes = read_whole(path)?;
    let file = SafeTensors::deserialize(&bytes)
        .map_err(|e| Error::data(path, format!("is not a whole safetensors file: {e}")))?;
    Ok(floats(&file, |_| true))
}

/// The tensors of floating-point numbers whose names are `wanted`, by name; what else is wanted is ignored, with the reason.
pub(crate) fn floats(file: &SafeTensors<'_>, wanted: impl Fn(&str) -> bool) -> TensorFile {
    let mut found = TensorFile::default();
    let mut tensors = file.tensors();
    tensors.retain(|(name, _)| wanted(name));
    tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, tensor) in tensors {
        let dtype = tensor.dtype();
        let Some(float) = Float::of(dtype) else {
            let why = format!("its elements are {dtype:?}, not floating-point numbers");
            found.ignored.push((name, why));
            continue;
        };
        found.tensors.push(NamedTensor {
            name,
            shape: tensor.shape().to_vec(),
            values: float.decode(tensor.data()),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView};

    #[test]
    fn every_kind_of_number_becomes_the_same() {
        let kinds: [(&str, Dtype, Vec<u8>); 5] = [
            (
                "a",
                Dtype::F32,
                [1.5f32, -2.0].map(f32::to_le_bytes).concat(),
            ),
            (
                "b",
                Dtype::F64,
                [1.5f64, -2.0].map(f64::to_le_bytes).concat(),
            ),
            (
                "c",
                Dtype::F16,
                [0x3e00u16, 0xc000].map(u16::to_le_bytes).concat(),
            ),
            (
                "d",
                Dtype::BF16,
                [0x3fc0u16, 0xc000].map(u16::to_le_bytes).concat(),
            ),
            ("e", Dtype::I64, [1i64, -2].map(i64::to_le_bytes).concat()),
        ];
        let views = (kinds.iter()).map(|(name, dtype, bytes)| {
            (*name, TensorView::new(*dtype, vec![2, 1], bytes).unwrap())
        });
        let bytes = safetensors::serialize(views, None).unwrap();
        assert!(is_safetensors(&bytes));
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.safetensors");
        std::fs::write(&path, &bytes).unwrap();
        let found = open(&path).unwrap();
        assert_eq!(found.tensors.len(), 4);
        for tensor in &found.tensors {
            assert_eq!(
                (&tensor.shape[..], &tensor.values[..]),
                (&[2, 1][..], &[1.5, -2.0][..])
            );
        }
        assert_eq!(found.ignored[0].0, "e");
        for len in 0..bytes.len() {
            std::fs::write(&path, &bytes[..len]).unwrap();
            assert!(open(&path).is_err(), "{len}");
        }
    }
}
