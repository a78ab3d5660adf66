//! The addresses of a warp's access, and what follows from their pattern.
//!
//! An instruction in a loop has the same distances between its lanes' addresses each time it runs, though its base
//! moves. What follows from the distances alone (which lanes share an address, how many passes over the banks of shared
//! memory the access needs) is kept for each instruction and found again by one comparison.

use super::{ALL, Result, lanes_of};
use crate::block::Warp;
use crate::fault::{Check, Trouble};
use crate::program::{File, Reg};

/// What follows from the distances between the lanes' addresses. Lanes that do not take part stand at the first one's.
#[derive(Clone, Debug, Default)]
pub(crate) struct Pattern {
    /// Lanes that take part; zero: nothing is known yet.
    pub(crate) mask: u32,
    bytes: u32,
    /// Distance of each lane's address from the first taking part, modulo 2^64.
    pub(crate) distances: [u64; 32],
    /// One lane of each distinct address.
    leaders: [u8; 32],
    /// Which of them each lane goes with.
    follows: [u8; 32],
    pub(crate) distinct: usize,
    /// Bit n: the address of leader n is that of other lanes too.
    pub(crate) several: u32,
    /// Passes over the banks of shared memory.
    pub(crate) wavefronts: u32,
    /// The least and the greatest distance.
    low: i64,
    high: i64,
    /// All distances or'ed: their alignment.
    bits: u64,
    /// All lanes take part, and follow each other without gaps.
    pub(crate) contiguous: bool,
    /// The allocation that was accessed last.
    pub(crate) allocation: usize,
}

/// The addresses of all lanes. Lanes outside the mask get the first one's, so that they disturb no check.
#[inline(never)]
pub(crate) fn addresses(warp: &Warp, base: Option<Reg>, offset: i64, mask: u32) -> [u64; 32] {
    let mut out: [u64; 32] = match base {
        None => [0; 32],
        Some(Reg {
            file: File::R64,
            index,
        }) => *warp.r64[index as usize].lanes(),
        Some(Reg { index, .. }) => warp.r32[index as usize].lanes().map(u64::from),
    };
    let first = out[mask.trailing_zeros() as usize & 31];
    for (lane, address) in out.iter_mut().enumerate() {
        if mask >> lane & 1 == 0 {
            *address = first;
        }
        *address = address.wrapping_add(offset as u64);
    }
    out
}

impl Pattern {
    /// Brings the pattern up to date and returns the address of the first lane that takes part.
    #[inline(always)]
    pub(crate) fn locate(
        &mut self,
        warp: &Warp,
        base: Option<Reg>,
        offset: i64,
        mask: u32,
        bytes: u32,
    ) -> u64 {
        if mask == ALL
            && self.mask == ALL
            && let Some(Reg {
                file: File::R64,
                index,
            }) = base
        {
            let row = warp.r64[index as usize].lanes();
            let first = row[0];
            let mut differ = 0;
            for (&address, &distance) in row.iter().zip(&self.distances) {
                differ |= address.wrapping_sub(first) ^ distance;
            }
            if differ == 0 {
                return first.wrapping_add(offset as u64);
            }
        }
        self.update(&addresses(warp, base, offset, mask), mask, bytes)
    }

    /// Brings the pattern up to date with addresses, and returns the first.
    #[inline(never)]
    pub(crate) fn update(&mut self, at: &[u64; 32], mask: u32, bytes: u32) -> u64 {
        let first = at[mask.trailing_zeros() as usize & 31];
        let mut differ = u64::from(self.mask ^ mask);
        for (&address, &distance) in at.iter().zip(&self.distances) {
            differ |= address.wrapping_sub(first) ^ distance;
        }
        if differ != 0 {
            self.analyse(at, mask, bytes, first);
        }
        first
    }

    fn analyse(&mut self, at: &[u64; 32], mask: u32, bytes: u32, first: u64) {
        *self = Self {
            mask,
            bytes,
            allocation: self.allocation,
            ..Self::default()
        };
        for (lane, &address) in at.iter().enumerate() {
            let distance = address.wrapping_sub(first);
            self.distances[lane] = distance;
            self.low = self.low.min(distance as i64);
            self.high = self.high.max(distance as i64);
            self.bits |= distance;
        }
        for lane in lanes_of(mask) {
            let known = self.leaders[..self.distinct]
                .iter()
                .position(|&other| at[usize::from(other)] == at[lane]);
            let n = match known {
                Some(n) => {
                    self.several |= 1 << n;
                    n
                }
                None => {
                    self.leaders[self.distinct] = lane as u8;
                    self.distinct += 1;
                    self.distinct - 1
                }
            };
            self.follows[lane] = n as u8;
        }
        self.contiguous = mask == ALL
            && (0..32).all(|lane| self.distances[lane] == lane as u64 * u64::from(bytes));
        self.wavefronts = wavefronts(mask, &at.map(|address| address as u32), bytes);
    }

    /// One lane of each distinct address, and its distance.
    #[inline(always)]
    pub(crate) fn leaders(&self) -> impl Iterator<Item = (usize, u64)> + '_ {
        self.leaders[..self.distinct].iter().map(|&lane| {
            let lane = usize::from(lane & 31);
            (lane, self.distances[lane])
        })
    }

    /// Which leader a lane goes with.
    #[inline(always)]
    pub(crate) fn leader_of(&self, lane: usize) -> usize {
        usize::from(self.follows[lane] & 31)
    }

    /// Bytes of each lane's access.
    pub(crate) fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The address of each lane.
    pub(crate) fn at(&self, first: u64) -> [u64; 32] {
        self.distances.map(|distance| first.wrapping_add(distance))
    }

    /// The lowest address, and the end of the highest access; `None` if they lie too far apart to be of one memory.
    #[inline(always)]
    pub(crate) fn range(&self, first: u64) -> Option<(u64, u64)> {
        let low = first.checked_add_signed(self.low)?;
        let high = first.checked_add_signed(self.high)?;
        Some((low, high.checked_add(u64::from(self.bytes))?))
    }

    /// An error if an address is no multiple of the access's size.
    #[inline(always)]
    pub(crate) fn check_alignment(&self, first: u64) -> Result<()> {
        if (first | self.bits) & u64::from(self.bytes - 1) != 0 {
            return Err(misaligned(&self.at(first), self.mask, self.bytes));
        }
        Ok(())
    }

    /// The 32-byte sectors that the access touches.
    #[inline(always)]
    pub(crate) fn sectors(&self, first: u64) -> u64 {
        if self.contiguous {
            (first + u64::from(32 * self.bytes)).div_ceil(32) - first / 32
        } else if self.distinct == 1 {
            1
        } else {
            u64::from(sectors(self.mask, &self.at(first)))
        }
    }
}

#[cold]
#[inline(never)]
fn misaligned(at: &[u64; 32], mask: u32, bytes: u32) -> Box<Trouble> {
    let lane = lanes_of(mask)
        .find(|&lane| !at[lane].is_multiple_of(u64::from(bytes)))
        .unwrap_or(0);
    Trouble::at(
        Check::Misaligned,
        lane,
        at[lane],
        format!(
            "an access of {bytes} bytes needs an address that is a multiple of {bytes}, and this one is {} above",
            at[lane] % u64::from(bytes)
        ),
    )
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
        let lanes = (part * lanes_a_part..).zip(&offsets[part * lanes_a_part..]);
        for (lane, &offset) in lanes.take(lanes_a_part) {
            if mask >> lane & 1 == 0 {
                continue;
            }
            let word = offset / 4;
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

/// The 32-byte sectors that lanes at `addresses` touch, with at most 32 aligned bytes each.
pub(crate) fn sectors(mask: u32, addresses: &[u64; 32]) -> u32 {
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
        assert_eq!(sectors(!0, &at(&|l| 4 * l)), 4);
        assert_eq!(sectors(!0, &at(&|l| 4 * (31 - l))), 4);
        assert_eq!(sectors(!0, &at(&|l| 4 * l + 16)), 5);
        assert_eq!(sectors(!0, &at(&|l| 128 * l)), 32);
        assert_eq!(sectors(!0, &at(&|l| (l % 2) * 32)), 2);
    }

    #[test]
    fn a_pattern_moves_with_its_base() {
        let at = |f: &dyn Fn(u64) -> u64| -> [u64; 32] { std::array::from_fn(|l| f(l as u64)) };
        let mut pattern = Pattern::default();
        assert_eq!(pattern.update(&at(&|l| 160 + 16 * (l / 16)), !0, 16), 160);
        assert_eq!((pattern.distinct, pattern.several), (2, 3));
        assert_eq!(pattern.update(&at(&|l| 512 + 16 * (l / 16)), !0, 16), 512);
        assert_eq!(pattern.distinct, 2);
        assert_eq!(pattern.range(512), Some((512, 544)));
        pattern.update(&at(&|l| 512 + 16 * l), !0, 16);
        assert_eq!((pattern.distinct, pattern.several), (32, 0));
        assert!(pattern.contiguous && pattern.sectors(512) == 16);
        pattern.update(&at(&|l| 4096 - 16 * l), !0, 16);
        assert_eq!(pattern.range(4096), Some((4096 - 31 * 16, 4112)));
    }
}
