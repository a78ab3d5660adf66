//! PyTorch's files, both forms.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = arcface_cu::weights::formats::torch::open(&arcface_cu_fuzz::file("a.pt", data));
});
