//! FNV-1a with 128 bits (Fowler, Noll, Vo): the same on every machine and in every version of Rust. Not for secrets.

/// A hash in the making.
pub(crate) struct Fnv(pub(crate) u128);

const PRIME: u128 = (1 << 88) + 0x13b;

impl Fnv {
    pub(crate) fn new() -> Self {
        Fnv(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d)
    }

    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u128::from(*byte)).wrapping_mul(PRIME);
        }
    }

    /// As `bytes`, 32 bits at a time: four times as fast, and another hash.
    pub(crate) fn words(&mut self, words: impl Iterator<Item = u32>) {
        for word in words {
            self.0 = (self.0 ^ u128::from(word)).wrapping_mul(PRIME);
        }
    }

    /// One of several parts: its length goes first, so that no two lists of parts run together.
    pub(crate) fn part(&mut self, bytes: &[u8]) {
        self.bytes(&(bytes.len() as u64).to_le_bytes());
        self.bytes(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn has_the_published_value() {
        let mut hash = Fnv::new();
        hash.bytes(b"foobar");
        assert_eq!(hash.0, 0x343e_1662_793c_64bf_6f0d_3597_ba44_6f18);
    }
}
