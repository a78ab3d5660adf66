//! InsightFace's evaluation sets: pickles.
#![no_main]

use arcface_cu::data::Image;
use arcface_cu::data::formats::bin::Bin;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(set) = Bin::open(&arcface_cu_fuzz::file("set.bin", data)) else {
        return;
    };
    for index in 0..2 * set.same().len() {
        let _ = set.read(index, &mut Image::default());
    }
});
