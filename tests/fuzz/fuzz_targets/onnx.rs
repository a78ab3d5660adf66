//! ONNX files, what they are compared with, and the networks that they are by themselves.
#![no_main]

use arcface_cu::weights::formats::onnx::Graph;
use arcface_cu::weights::import::onnx::own_network;
use arcface_cu::weights::import::{ImportOptions, open};
use std::path::Path;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // One preset: comparing with all of them takes most of the time.
    let options = ImportOptions {
        preset: Some("small".into()),
        ..ImportOptions::default()
    };
    let _ = open(&arcface_cu_fuzz::file("a.onnx", data), &options);
    if let Ok(graph) = Graph::decode(Path::new("a.onnx"), data) {
        let _ = own_network(&graph);
    }
});
