//! ONNX files, and what they are compared with.
#![no_main]

use arcface_cu::weights::import::{ImportOptions, open};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // One preset: comparing with all of them takes most of the time.
    let options = ImportOptions {
        preset: Some("small".into()),
        ..ImportOptions::default()
    };
    let _ = open(&arcface_cu_fuzz::file("a.onnx", data), &options);
});
