//! A bcolz carray: `meta/sizes`, `meta/storage` and the first chunk, each up to a byte 0 but the last.
#![no_main]

use arcface_cu::data::formats::bcolz::Carray;
use std::fs;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let root = arcface_cu_fuzz::folder().join("set");
    for folder in ["meta", "data"] {
        fs::create_dir_all(root.join(folder)).expect("a folder");
    }
    let mut parts = data.splitn(3, |byte| *byte == 0);
    for name in ["meta/sizes", "meta/storage", "data/__0.blp"] {
        fs::write(root.join(name), parts.next().unwrap_or_default()).expect("a file");
    }
    if let Ok(mut carray) = Carray::open(&root) {
        let _ = carray.read_rows(0, 1, &mut Vec::new());
    }
});
