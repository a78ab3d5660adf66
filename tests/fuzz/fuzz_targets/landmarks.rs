//! Landmarks as text, CSV and JSON.
#![no_main]

use arcface_cu::data::formats::landmarks::Landmarks;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    if let Ok(landmarks) = Landmarks::open(&arcface_cu_fuzz::file("points.txt", data)) {
        assert!(landmarks.find(landmarks.first()).is_some());
    }
});
