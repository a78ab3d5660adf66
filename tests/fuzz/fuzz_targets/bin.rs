//! InsightFace's evaluation sets: pickles.
#![no_main]

use arcface_cu::data::Image;
use arcface_cu::data::bin::Bin;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(set) = Bin::open(&arcface_cu_fuzz::file("set.bin", data)) {
        let _ = set.read(0, &mut Image::default());
    }
});
