//! How sums over pixels, one per channel, are cut into tiles (`kernels/columns.cuh`).

use super::launch::{self, word};
use super::tiles::{CHANNEL_TILES, Program, WARP};
use super::{Grid, blocks};
use crate::backend::geometry::Rows;

/// Tiles of pixels, and the threads that share a tile's channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Columns {
    rows: Rows,
    /// Channels of a thread.
    vector: u32,
    /// Threads side by side.
    lanes: u32,
    /// Pixels of a tile.
    tile: u32,
}

impl Columns {
    /// The cut for a kernel of `program` that has `unroll` pixels in flight per thread.
    pub(super) fn new(rows: Rows, program: &Program, unroll: u32) -> Self {
        let vector = program.vector;
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

    /// Tiles of pixels; depends only on the shape.
    pub(super) fn tiles(&self) -> usize {
        blocks(self.rows.pixels as u64, self.tile) as usize
    }

    /// Blocks for the walk over the tensor.
    pub(super) fn grid(&self) -> Grid {
        let channels = blocks(self.rows.c as u64, self.vector * self.lanes);
        [channels, self.tiles() as u64, 1]
    }
}

impl From<Columns> for launch::Columns {
    fn from(columns: Columns) -> Self {
        launch::Columns {
            pixels: columns.rows.pixels as u64,
            channels: word(columns.rows.c),
            lanes: columns.lanes,
            rows: columns.tile,
            padding: 0,
        }
    }
}

/// Threads side by side on a pixel's channels, `vector` channels each: of the powers of two that leave the fewest threads
/// past the last channel, the largest.
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
    use crate::backend::Element;
    use crate::backend::cuda::tiles::{BATCH_NORM_MOMENTS, MOMENTS_CHUNK, by_channels};

    #[test]
    fn every_pixel_and_channel_has_a_thread_and_tiles_are_bounded() {
        for c in [1, 3, 5, 12, 17, 24, 48, 64, 144, 600, 2048] {
            let program = by_channels(&BATCH_NORM_MOMENTS, Element::F32, c);
            for pixels in [1, 7, 33, 5001, 512 * 112 * 112, 1 << 33] {
                let columns = Columns::new(Rows { pixels, c }, program, MOMENTS_CHUNK);
                let [x, y, _] = columns.grid();
                assert!(x as usize * (columns.vector * columns.lanes) as usize >= c);
                assert!(y as usize * columns.tile as usize >= pixels);
                assert!(y as usize * (columns.tile as usize) < pixels + columns.tile as usize);
                assert!(y <= u64::from(CHANNEL_TILES));
            }
        }
        let cuts = [(64, 4), (144, 4), (24, 4), (3, 1)];
        assert_eq!(cuts.map(|(c, vector)| lanes(c, vector)), [16, 8, 8, 4]);
    }
}
