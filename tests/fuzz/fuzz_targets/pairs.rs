//! Pairs files, LFW's form and lines of two images.
#![no_main]

use arcface_cu::data::Image;
use arcface_cu::data::formats::pairs::Pairs;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(pairs) = Pairs::open(&arcface_cu_fuzz::file("pairs.txt", data), None) {
        for index in 0..2 * pairs.same().len() {
            let _ = pairs.read(index, &mut Image::default());
        }
    }
});
