//! Counter-based random numbers: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011).
//!
//! Every random decision is a pure function of (seed, stream, position), so it does not depend on the
//! number of threads, on what was drawn before, or on whether a run was stopped and resumed.

/// What a stream of random numbers is for. Streams with different purposes never overlap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Purpose {
    /// Initial weights; the index is the parameter's number.
    Init = 1,
    /// The order of images in an epoch; the index is the epoch.
    Shuffle = 2,
    /// Augmentation; the index mixes epoch and image.
    Augment = 3,
    /// Dropout; the index is the layer's number.
    Dropout = 4,
    /// Generated faces; the index is the image.
    Faces = 5,
    /// The order in which `pack` writes images.
    Pack = 6,
}

/// One block of Philox4x32-10: four random words from a counter and a key.
#[inline(always)]
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const M0: u32 = 0xD251_1F53;
    const M1: u32 = 0xCD9E_8D57;
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..10 {
        let p0 = u64::from(M0) * u64::from(c0);
        let p1 = u64::from(M1) * u64::from(c2);
        (c0, c1, c2, c3) = (
            (p1 >> 32) as u32 ^ c1 ^ k0,
            p1 as u32,
            (p0 >> 32) as u32 ^ c3 ^ k1,
            p0 as u32,
        );
        k0 = k0.wrapping_add(0x9E37_79B9);
        k1 = k1.wrapping_add(0xBB67_AE85);
    }
    [c0, c1, c2, c3]
}

/// A sequence of random numbers at a fixed place in (seed, purpose, index) space.
#[derive(Clone, Debug)]
pub struct Random {
    key: [u32; 2],
    counter: [u32; 4],
    block: [u32; 4],
    used: usize,
}

impl Random {
    /// The stream for `purpose` and `index` under `seed`. Up to 2^34 numbers can be drawn from it.
    pub fn new(seed: u64, purpose: Purpose, index: u64) -> Self {
        Random {
            key: [seed as u32, (seed >> 32) as u32],
            counter: [0, purpose as u32, index as u32, (index >> 32) as u32],
            block: [0; 4],
            used: 4,
        }
    }

    /// A uniformly distributed word.
    pub fn next_u32(&mut self) -> u32 {
        if self.used == 4 {
            self.block = philox(self.counter, self.key);
            self.counter[0] = self.counter[0].wrapping_add(1);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// Uniform in [0, 1), a multiple of 2^-24.
    pub fn uniform(&mut self) -> f32 {
        (self.next_u32() >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// Uniform in [low, high).
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * self.uniform()
    }

    /// Uniform in 0..n (multiply-shift; its bias is below n / 2^32). `n` must not be 0.
    pub fn below(&mut self, n: u32) -> u32 {
        ((u64::from(self.next_u32()) * u64::from(n)) >> 32) as u32
    }

    /// Standard normal, by Box and Muller's transform.
    pub fn normal(&mut self) -> f32 {
        let radius = (-2.0 * f64::from(1.0 - self.uniform()).ln()).sqrt();
        let angle = std::f64::consts::TAU * f64::from(self.uniform());
        (radius * angle.cos()) as f32
    }

    /// Shuffles `items` in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u32 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers from Random123's `kat_vectors`.
    #[test]
    fn philox_gives_the_published_answers() {
        assert_eq!(
            philox([0; 4], [0; 2]),
            [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]
        );
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn uniform_and_normal_have_their_moments() {
        let mut random = Random::new(7, Purpose::Init, 3);
        let n = 100_000;
        let (mut mean, mut square, mut uniform) = (0.0, 0.0, 0.0);
        for _ in 0..n {
            let x = f64::from(random.normal());
            mean += x / f64::from(n);
            square += x * x / f64::from(n);
            uniform += f64::from(random.uniform()) / f64::from(n);
        }
        assert!(mean.abs() < 0.015, "{mean}");
        assert!((square - 1.0).abs() < 0.02, "{square}");
        assert!((uniform - 0.5).abs() < 0.005, "{uniform}");
    }

    #[test]
    fn streams_differ_and_shuffles_are_permutations() {
        let mut a: Vec<u32> = (0..100).collect();
        let mut b = a.clone();
        Random::new(1, Purpose::Shuffle, 0).shuffle(&mut a);
        Random::new(1, Purpose::Shuffle, 1).shuffle(&mut b);
        assert_ne!(a, b);
        a.sort_unstable();
        assert_eq!(a, (0..100).collect::<Vec<_>>());
    }
}
