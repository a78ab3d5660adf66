//! The addresses of a warp's access, and what follows from their pattern.
//!
//! An instruction in a loop has the same distances between its lanes' addresses each time it runs, though its base
//! moves. What follows from the distances alone (which lanes share an address, how many passes over the banks of shared
//! memory the access needs) is kept for each instruction and found again by one comparison.

use super::lanes_of;

/// What follows from the distances between the lanes' addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pattern {
    /// Lanes that take part; zero: nothing is known yet.
    mask: u32,
    /// Distance of each lane's address from the first lane's.
    distances: [u32; 32],
    /// One lane of each distinct address.
    representatives: [u8; 32],
    pub(crate) distinct: usize,
    /// The representatives whose address other lanes have too.
    pub(crate) shared: u32,
    /// Passes over the banks of shared memory.
    pub(crate) wavefronts: u32,
}

impl Default for Pattern {
    fn default() -> Self {
        Self {
            mask: 0,
            distances: [0; 32],
            representatives: [0; 32],
            distinct: 0,
            shared: 0,
            wavefronts: 0,
        }
    }
}

impl Pattern {
    /// Brings the pattern up to date with the lanes of `mask` at `offsets`, each accessing `bytes`. Offsets of other
    /// lanes must equal the first one's.
    #[inline(always)]
    pub(crate) fn update(&mut self, mask: u32, offsets: &[u32; 32], bytes: u32) {
        let first = offsets[mask.trailing_zeros() as usize & 31];
        let mut differ = self.mask ^ mask;
        for (&offset, &distance) in offsets.iter().zip(&self.distances) {
            differ |= offset.wrapping_sub(first) ^ distance;
        }
        if differ != 0 {
            self.analyse(mask, offsets, first, bytes);
        }
    }

    /// One lane of each distinct address, and whether others have it too.
    #[inline(always)]
    pub(crate) fn representatives(&self) -> impl Iterator<Item = (usize, bool)> + '_ {
        self.representatives[..self.distinct]
            .iter()
            .enumerate()
            .map(|(n, &lane)| (usize::from(lane & 31), self.shared >> n & 1 != 0))
    }

    #[inline(never)]
    fn analyse(&mut self, mask: u32, offsets: &[u32; 32], first: u32, bytes: u32) {
        *self = Self {
            mask,
            ..Self::default()
        };
        for (distance, &offset) in self.distances.iter_mut().zip(offsets) {
            *distance = offset.wrapping_sub(first);
        }
        for lane in lanes_of(mask) {
            let known = self.representatives[..self.distinct]
                .iter()
                .position(|&other| offsets[usize::from(other)] == offsets[lane]);
            match known {
                Some(n) => self.shared |= 1 << n,
                None => {
                    self.representatives[self.distinct] = lane as u8;
                    self.distinct += 1;
                }
            }
        }
        self.wavefronts = wavefronts(mask, offsets, bytes);
    }
}

/// Passes over the 32 banks of four bytes that an access to shared memory needs. Accesses of 8 bytes go in half-warps,
/// of 16 bytes in quarter-warps; within one, a pass serves one word a bank, to any number of lanes.
pub(crate) fn wavefronts(mask: u32, offsets: &[u32; 32], bytes: u32) -> u32 {
    let words = bytes.div_ceil(4);
    let lanes_a_part = 32 / words.clamp(1, 8) as usize;
    let mut total = 0;
    for part in 0..32 / lanes_a_part {
        let mut served = [0u32; 32];
        let mut seen = [0u32; 32];
        let mut count = 0;
        for lane in part * lanes_a_part..(part + 1) * lanes_a_part {
            if mask >> lane & 1 == 0 {
                continue;
            }
            let word = offsets[lane] / 4;
            if seen[..count].contains(&word) {
                continue;
            }
            seen[count] = word;
            count += 1;
            for k in 0..words {
                served[(word + k) as usize % 32] += 1;
            }
        }
        total += served.iter().max().copied().unwrap_or(0);
    }
    total
}

/// The 32-byte sectors that lanes at `addresses` touch with `bytes` each, aligned to their size.
#[inline(always)]
pub(crate) fn sectors(mask: u32, addresses: &[u64; 32], bytes: u32) -> u32 {
    let _ = bytes;
    let mut count = 0;
    let mut last = u64::MAX;
    let mut ascending = true;
    for lane in lanes_of(mask) {
        let sector = addresses[lane] / 32;
        if sector != last {
            ascending &= last == u64::MAX || sector > last;
            last = sector;
            count += 1;
        }
    }
    if ascending {
        return count;
    }
    let mut all = [u64::MAX; 32];
    let mut n = 0;
    for lane in lanes_of(mask) {
        all[n] = addresses[lane] / 32;
        n += 1;
    }
    all[..n].sort_unstable();
    1 + all[..n].windows(2).filter(|w| w[0] != w[1]).count() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lanes(f: impl Fn(u32) -> u32) -> [u32; 32] {
        std::array::from_fn(|lane| f(lane as u32))
    }

    #[test]
    fn bank_conflicts_as_hardware_has_them() {
        assert_eq!(wavefronts(!0, &lanes(|l| 4 * l), 4), 1);
        assert_eq!(wavefronts(!0, &lanes(|_| 64), 4), 1);
        assert_eq!(wavefronts(!0, &lanes(|l| 8 * l), 4), 2);
        assert_eq!(wavefronts(!0, &lanes(|l| 128 * l), 4), 32);
        assert_eq!(wavefronts(!0, &lanes(|l| 132 * l), 4), 1);
        assert_eq!(wavefronts(1, &lanes(|l| 128 * l), 4), 1);
        assert_eq!(wavefronts(!0, &lanes(|l| 8 * l), 8), 2);
        assert_eq!(wavefronts(!0, &lanes(|l| 16 * l), 16), 4);
        // Rows of 64 bytes: quarter-warps hit every fourth group of banks twice over.
        assert_eq!(wavefronts(!0, &lanes(|l| 64 * l), 16), 16);
    }

    #[test]
    fn sectors_count_once_a_request() {
        let at = |f: &dyn Fn(u64) -> u64| -> [u64; 32] { std::array::from_fn(|l| f(l as u64)) };
        assert_eq!(sectors(!0, &at(&|l| 4 * l), 4), 4);
        assert_eq!(sectors(!0, &at(&|l| 4 * (31 - l)), 4), 4);
        assert_eq!(sectors(!0, &at(&|l| 4 * l + 16), 4), 5);
        assert_eq!(sectors(!0, &at(&|l| 128 * l), 4), 32);
        assert_eq!(sectors(!0, &at(&|l| (l % 2) * 32), 4), 2);
    }

    #[test]
    fn a_pattern_moves_with_its_base() {
        let mut pattern = Pattern::default();
        pattern.update(!0, &lanes(|l| 100 + 16 * (l / 16)), 16);
        assert_eq!((pattern.distinct, pattern.shared), (2, 3));
        pattern.update(!0, &lanes(|l| 500 + 16 * (l / 16)), 16);
        assert_eq!(pattern.distinct, 2);
        pattern.update(!0, &lanes(|l| 500 + 16 * l), 16);
        assert_eq!((pattern.distinct, pattern.shared), (32, 0));
    }
}
