//! WebDataset archives.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    arcface_cu_fuzz::read_all(&arcface_cu_fuzz::file("train.tar", data));
});
