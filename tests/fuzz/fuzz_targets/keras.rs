//! Keras's HDF5 files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = arcface_cu::weights::formats::keras::open(&arcface_cu_fuzz::file("a.h5", data));
});
