//! Verification against the original evaluation code's answers for real embeddings.

mod support;

use std::path::Path;

use arcface_cu::verification::verify_embeddings;

/// The numbers after a `.npy` header, which must name `dtype` ("<f4", "|b1", ...).
fn npy<const SIZE: usize>(path: &Path, dtype: &str) -> Vec<[u8; SIZE]> {
    let bytes = std::fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    assert_eq!(&bytes[..8], b"\x93NUMPY\x01\x00", "{}", path.display());
    let data = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = std::str::from_utf8(&bytes[10..data]).unwrap();
    assert!(
        header.contains(&format!("'descr': '{dtype}'"))
            && header.contains("'fortran_order': False"),
        "{header}"
    );
    let (items, rest) = bytes[data..].as_chunks();
    assert!(rest.is_empty());
    items.to_vec()
}

#[test]
fn folds_equal_those_of_the_original_code() {
    let test = "folds_equal_those_of_the_original_code";
    let Some(eval) = support::shared_data(test, "eval") else {
        return;
    };
    let same: Vec<bool> = npy::<1>(&eval.join("lfw_align_112/lfw_list.npy"), "|b1")
        .iter()
        .map(|b| b[0] != 0)
        .collect();
    for (kind, accuracy) in [("plain", 0.536667), ("ccrop", 0.520000)] {
        let oracle = eval.join("oracle");
        let name = format!("oracle_mobilenetv2_lfw_{kind}");
        let embeddings: Vec<f32> = npy(&oracle.join(format!("{name}.npy")), "<f4")
            .into_iter()
            .map(f32::from_le_bytes)
            .collect();
        let expected: Vec<f64> = npy(&oracle.join(format!("{name}_folds.npy")), "<f8")
            .into_iter()
            .map(f64::from_le_bytes)
            .collect();
        let found = verify_embeddings(&embeddings, 256, &same).unwrap();
        assert_eq!((found.folds.len(), expected.len()), (10, 20));
        for (i, fold) in found.folds.iter().enumerate() {
            assert!(
                (fold.accuracy - expected[i]).abs() <= 1e-12,
                "{kind}, fold {i}: accuracy {} instead of {}",
                fold.accuracy,
                expected[i]
            );
            assert_eq!(fold.threshold, expected[10 + i], "{kind}, fold {i}");
        }
        assert!((found.accuracy - accuracy).abs() <= 1e-6);
    }
}
