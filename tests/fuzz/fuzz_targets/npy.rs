//! NumPy arrays.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = arcface_cu::encoding::npy::read(&arcface_cu_fuzz::file("a.npy", data));
});
