//! RecordIO with an index, both from the input: the index up to the first byte 0.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let cut = data
        .iter()
        .position(|byte| *byte == 0)
        .unwrap_or(data.len());
    arcface_cu_fuzz::file("train.idx", &data[..cut]);
    arcface_cu_fuzz::read_all(&arcface_cu_fuzz::file("train.rec", &data[cut..]));
});
