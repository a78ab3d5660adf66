//! How the operations that sum over pixels, each channel by itself, are cut (`kernels/columns.cuh`).

use super::args::Arg;
use super::tiles::{CHANNEL_TILES, Program, WARP};
use super::{Grid, blocks};
use crate::backend::geometry::Rows;

/// Tiles of pixels, and the threads that share a tile's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    rows: Rows,
    /// Channels a thread, V.
    pub(super) vector: u32,
    /// Threads side by side.
    lanes: u32,
    /// Pixels of a tile.
    tile: u32,
}

impl Columns {
    /// The cut for a kernel of `program` that has `unroll` pixels of a thread in flight.
    pub(super) fn new(rows: Rows, program: &Program, unroll: u32) -> Self {
        let vector = vector(rows.c);
        let lanes = lanes(rows.c, vector);
        let fewest = program.threads / lanes * unroll;
        let tile = (rows.pixels as u64)
            .div_ceil(u64::from(CHANNEL_TILES))
            .next_multiple_of(u64::from(fewest))
            .max(u64::from(fewest)) as u32;
        Columns {
            rows,
            vector,
            lanes,
            tile,
        }
    }

    /// Tiles of pixels; depends on the shape alone.
    pub(super) fn tiles(&self) -> usize {
        blocks(self.rows.pixels as u64, self.tile) as usize
    }

    /// Blocks for the walk over the tensor.
    pub(super) fn grid(&self) -> Grid {
        let channels = blocks(self.rows.c as u64, self.vector * self.lanes);
        [channels, self.tiles() as u64, 1]
    }

    /// `struct Columns`.
    pub(super) fn arg(&self) -> Arg {
        Arg::of("Columns")
            .u64(self.rows.pixels as u64)
            .u32(self.rows.c)
            .u32(self.lanes as usize)
            .u32(self.tile as usize)
            .padded()
    }
}

/// Channels that a thread takes at once.
pub(super) fn vector(c: usize) -> u32 {
    if c.is_multiple_of(4) { 4 } else { 1 }
}

/// Threads side by side on a pixel's channels: a power of two, with as few as can be behind the last channel, and the
/// more the better.
pub(super) fn lanes(c: usize, vector: u32) -> u32 {
    let groups = blocks(c as u64, vector);
    if groups < 8 {
        return groups.next_power_of_two() as u32;
    }
    let wasted = |lanes: &u32| groups.next_multiple_of(u64::from(*lanes));
    [WARP, 16, 8].into_iter().min_by_key(wasted).unwrap_or(WARP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cuda::tiles::BATCH_NORM;

    #[test]
    fn every_pixel_and_channel_has_a_thread_and_tiles_are_bounded() {
        for c in [1, 3, 5, 12, 17, 24, 48, 64, 144, 600, 2048] {
            for pixels in [1, 7, 33, 5001, 512 * 112 * 112, 1 << 33] {
                let columns = Columns::new(Rows { pixels, c }, &BATCH_NORM, 8);
                let [x, y, _] = columns.grid();
                assert!(x as usize * (columns.vector * columns.lanes) as usize >= c);
                assert!(y as usize * columns.tile as usize >= pixels);
                assert!(y as usize * (columns.tile as usize) < pixels + columns.tile as usize);
                assert!(y <= u64::from(CHANNEL_TILES));
            }
        }
        assert_eq!([64, 144, 24, 3].map(|c| lanes(c, vector(c))), [16, 8, 8, 4]);
    }
}
