//! safetensors of any program, and checkpoints of this one.
#![no_main]

use arcface_cu::weights::checkpoint::{Checkpoint, Weights};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let path = arcface_cu_fuzz::file("a.safetensors", data);
    let _ = arcface_cu::weights::formats::safetensors::open(&path);
    let _ = Weights::load(&path);
    let _ = Checkpoint::load(&path);
});
