//! JPEG, PNG and PNM.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = arcface_cu::data::picture::decode(data, &mut arcface_cu::data::Image::default());
});
