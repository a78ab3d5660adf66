//! Frames of blosc 1, through the C library that wrote them.
//!
//! | bytes | content |
//! |---|---|
//! | 1 | version of the format: 2 |
//! | 1 | version of the codec's format |
//! | 1 | flags: bit 0 byte shuffle, bit 1 stored, bit 2 bit shuffle, bit 4 blocks not split, bits 5-7 codec |
//! | 1 | size of an element in bytes |
//! | 4 | uncompressed size |
//! | 4 | size of a block |
//! | 4 | compressed size, this header included |
//! | 4 a block | where each block begins (absent where stored) |
//!
//! Little-endian throughout. The header is checked here against the buffer, before any of it reaches C.

use std::ffi::c_void;

/// Length of a frame's header.
pub(crate) const HEADER: usize = 16;

/// Decompressed sizes up to this need no justification by the size of the frame.
const FREE_BYTES: usize = 64 << 20;

/// Beyond [`FREE_BYTES`], a frame may decompress to this many times its own size.
const MAX_EXPANSION: usize = 256;

/// Why a frame was refused.
#[derive(Debug, PartialEq)]
pub(crate) enum Refusal {
    /// At this offset in the frame: expected, found.
    Malformed(u64, String, String),
    /// A codec that this program is built without.
    Codec(&'static str),
}

fn word(frame: &[u8], at: usize) -> i32 {
    i32::from_le_bytes([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]])
}

/// Decompresses `frame`, elements of `element` bytes each, into `out`, whose memory is reused. The result must have
/// between 1 and `most` bytes, whole elements.
pub(crate) fn decompress(
    frame: &[u8],
    element: usize,
    most: usize,
    out: &mut Vec<u8>,
) -> Result<(), Refusal> {
    let bad =
        |at: u64, expected: String, found: String| Err(Refusal::Malformed(at, expected, found));
    if frame.len() < HEADER {
        let found = format!("{} bytes", frame.len());
        return bad(0, "a blosc header of 16 bytes".into(), found);
    }
    if frame[0] != 2 {
        return bad(
            0,
            "version 2 of the blosc format".into(),
            frame[0].to_string(),
        );
    }
    let flags = frame[2];
    if flags & 0x08 != 0 {
        return bad(2, "flags of blosc 1".into(), format!("{flags:#04x}"));
    }
    let stored = flags & 0x02 != 0;
    match flags >> 5 {
        _ if stored => {}
        0 | 1 | 3 | 4 => {}
        2 => return Err(Refusal::Codec("the blosc codec snappy")),
        other => return bad(2, "a codec number from 0 to 4".into(), other.to_string()),
    }
    if usize::from(frame[3]) != element {
        let found = frame[3].to_string();
        return bad(3, format!("an element size of {element}"), found);
    }
    let (bytes, block, compressed) = (word(frame, 4), word(frame, 8), word(frame, 12));
    let ceiling = most.min((frame.len() * MAX_EXPANSION).max(FREE_BYTES));
    let size = match usize::try_from(bytes) {
        Ok(size) if size > 0 && size <= ceiling && size % element == 0 => size,
        _ => {
            let expected = format!(
                "an uncompressed size of 1 to {ceiling} bytes, whole elements of {element}"
            );
            return bad(4, expected, bytes.to_string());
        }
    };
    let block_size = match usize::try_from(block) {
        Ok(block) if block > 0 && block <= size && (block % element == 0 || block == size) => block,
        _ => {
            let expected =
                format!("a block size of 1 to {size} bytes, whole elements of {element}");
            return bad(8, expected, block.to_string());
        }
    };
    if usize::try_from(compressed) != Ok(frame.len()) {
        let expected = format!("the compressed size {}", frame.len());
        return bad(12, expected, compressed.to_string());
    }
    let blocks = size.div_ceil(block_size);
    if stored {
        if frame.len() != size + HEADER {
            let found = format!("{} bytes", frame.len() - HEADER);
            return bad(HEADER as u64, format!("{size} stored bytes"), found);
        }
    } else {
        if blocks > (frame.len() - HEADER) / 4 {
            let expected = format!("the offsets of {blocks} blocks");
            let found = format!("{} bytes", frame.len() - HEADER);
            return bad(HEADER as u64, expected, found);
        }
        let first = HEADER + 4 * blocks;
        for i in 0..blocks {
            let start = word(frame, HEADER + 4 * i);
            if !usize::try_from(start).is_ok_and(|s| s >= first && s + 4 <= frame.len()) {
                let expected = format!("an offset from {first} to {}", frame.len() - 4);
                return bad((HEADER + 4 * i) as u64, expected, start.to_string());
            }
        }
    }
    out.clear();
    out.resize(size, 0);
    // SAFETY: `frame` and `out` are live, distinct slices. The C function reads at most the compressed size in the
    // header, which was found equal to `frame.len()`, and writes at most `destsize` = `out.len()` bytes, which the
    // header's uncompressed size equals; version, element size, block size and block offsets were checked above, and
    // the streams' own lengths are checked against the frame in C (1.21). With one thread it keeps no state between calls.
    let result = unsafe {
        blosc_src::blosc_decompress_ctx(
            frame.as_ptr().cast::<c_void>(),
            out.as_mut_ptr().cast::<c_void>(),
            out.len(),
            1,
        )
    };
    if usize::try_from(result) != Ok(size) {
        let found = format!("blosc's answer {result}");
        return bad(
            HEADER as u64,
            format!("data that decompress to {size} bytes"),
            found,
        );
    }
    Ok(())
}

/// Compresses `bytes`, elements of `element` bytes, with lz4 and byte shuffle, level 5: bcolz's own defaults.
///
/// # Panics
/// If there are 2 GB or more, or the element size is not from 1 to 255.
pub(crate) fn compress(bytes: &[u8], element: usize) -> Vec<u8> {
    assert!(
        bytes.len() <= blosc_src::BLOSC_MAX_BUFFERSIZE as usize,
        "one frame holds less than 2 GB"
    );
    assert!((1..=255).contains(&element));
    let mut frame = vec![0_u8; bytes.len() + blosc_src::BLOSC_MAX_OVERHEAD as usize];
    // SAFETY: `bytes` and `frame` are live, distinct slices whose lengths are passed along; the name is a C string that
    // outlives the call. A destination with the maximal overhead always suffices, and no more than it is written.
    let written = unsafe {
        blosc_src::blosc_compress_ctx(
            5,
            blosc_src::BLOSC_SHUFFLE as i32,
            element,
            bytes.len(),
            bytes.as_ptr().cast::<c_void>(),
            frame.as_mut_ptr().cast::<c_void>(),
            frame.len(),
            c"lz4".as_ptr(),
            0,
            1,
        )
    };
    let written = usize::try_from(written).unwrap_or(0);
    assert!(
        written >= HEADER,
        "blosc compresses into a buffer with room for its overhead"
    );
    frame.truncate(written);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize) -> Vec<u8> {
        let mut random = crate::base::random::Random::new(5, crate::base::random::Purpose::Pack, 0);
        (0..n)
            .map(|i| {
                if i % 3 == 0 {
                    random.next_u32() as u8
                } else {
                    7
                }
            })
            .collect()
    }

    #[test]
    fn frames_come_back() {
        for (n, element) in [(4, 4), (1000, 4), (300_000, 4), (77, 1)] {
            let bytes = noise(n);
            let frame = compress(&bytes, element);
            let mut out = Vec::new();
            decompress(&frame, element, n, &mut out).unwrap();
            assert_eq!(out, bytes);
            assert!(decompress(&frame, element, n - 1, &mut out).is_err());
        }
    }

    #[test]
    fn every_prefix_and_every_changed_header_byte_is_met() {
        let bytes = noise(20_000);
        let frame = compress(&bytes, 4);
        let mut out = Vec::new();
        for length in 0..frame.len() {
            assert!(decompress(&frame[..length], 4, bytes.len(), &mut out).is_err());
        }
        for at in 0..64 {
            for bit in 0..8 {
                let mut changed = frame.clone();
                changed[at] ^= 1 << bit;
                let _ = decompress(&changed, 4, bytes.len(), &mut out);
                assert!(out.capacity() <= 2 * bytes.len());
            }
        }
    }

    #[test]
    fn snappy_is_named() {
        let mut frame = compress(&noise(20_000), 4);
        frame[2] = frame[2] & 0x1f | 2 << 5;
        let refusal = decompress(&frame, 4, 20_000, &mut Vec::new());
        assert_eq!(refusal, Err(Refusal::Codec("the blosc codec snappy")));
    }
}
