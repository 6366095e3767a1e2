//! Geometry of `skinny`: how a product of few rows is cut for the multiprocessors of a GPU.

use super::{SKINNY_ROWS, TENSOR_BOX};

/// Columns of the matrix that a warp takes.
const WARP_COLUMNS: usize = 16;
/// Warps of a group that multiply. Fewer cannot keep up with the memory.
const WARPS: std::ops::RangeInclusive<usize> = 4..=8;
/// Boxes of the input in a stage: as in skinny.cuh.
const BOXES: usize = 2;
/// Dynamic shared memory of a group at most: small groups of other kernels fit beside it, and no
/// second one of its own.
pub const SKINNY_SHARED_BYTES: usize = 200 << 10;

/// How a product is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SkinnyCut {
    /// Rows of a box of activations: 16 or 32.
    pub rows: usize,
    /// Warps of a group that multiply, each a part of a tile of columns.
    pub warps: usize,
    /// Tiles of columns, in all.
    pub tiles: usize,
    /// Tiles that are computed at once, each by two groups.
    pub teams: usize,
    /// Stages of a group's ring.
    pub stages: usize,
}

impl SkinnyCut {
    /// Of one to [`SKINNY_ROWS`] rows and a matrix of so many columns, gates and what they gate
    /// counted both.
    pub fn of(rows: usize, columns: usize, multiprocessors: usize) -> Self {
        let pairs = (multiprocessors / 2).max(1);
        let tiles = |warps: usize| columns.div_ceil(WARP_COLUMNS * warps);
        // The columns that the last one to end has taken; of equals the longest tiles, which read
        // the rows least often.
        let ends = |warps: &usize| (tiles(*warps).div_ceil(pairs) * warps, usize::MAX - warps);
        let warps = WARPS.min_by_key(ends).unwrap_or(*WARPS.start());
        let (rows, tiles) = (rows.min(SKINNY_ROWS).next_multiple_of(16), tiles(warps));
        let cut = Self { rows, warps, tiles, teams: tiles.min(pairs), stages: 0 };
        Self { stages: (SKINNY_SHARED_BYTES - cut.fixed_bytes()) / cut.stage_bytes(), ..cut }
    }

    /// Columns of a box of weights: half of a tile's.
    pub fn columns(&self) -> usize {
        WARP_COLUMNS / 2 * self.warps
    }

    /// Threads of a group: one warp copies.
    pub fn threads(&self) -> usize {
        32 * (self.warps + 1)
    }

    /// Groups.
    pub fn grid(&self) -> [usize; 3] {
        [2 * self.teams, 1, 1]
    }

    /// Dynamic shared memory of a group.
    pub fn shared_bytes(&self) -> usize {
        self.fixed_bytes() + self.stages * self.stage_bytes()
    }

    /// A stage, and its two barriers.
    fn stage_bytes(&self) -> usize {
        2 * BOXES * TENSOR_BOX * (WARP_COLUMNS * self.warps + self.rows) + 16
    }

    /// Sums of two tiles from the other group and their barriers, and what alignment may take.
    fn fixed_bytes(&self) -> usize {
        2 * self.warps * (32 * self.rows + 8) + 1024
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_fill_the_multiprocessors() {
        for (columns, multiprocessors, warps, turns) in [
            (4096, 132, 4, 1),
            (6144, 132, 6, 1),
            (28_672, 132, 7, 4),
            (128_256, 132, 4, 31),
            (66 * 64, 132, 4, 1),
            (66 * 64 + 1, 132, 5, 1),
            (1, 132, 4, 1),
            (4096, 1, 8, 32),
        ] {
            let cut = SkinnyCut::of(16, columns, multiprocessors);
            let found = (cut.warps, cut.tiles.div_ceil(cut.teams));
            assert_eq!(found, (warps, turns), "{columns} of {multiprocessors}");
            assert!(cut.tiles * WARP_COLUMNS * cut.warps >= columns, "{cut:?}");
        }
    }

    #[test]
    fn a_ring_has_several_stages_within_its_memory() {
        for rows in 1..=SKINNY_ROWS {
            for columns in [1, 100, 4096, 6144, 28_672, 128_256] {
                let cut = SkinnyCut::of(rows, columns, 132);
                assert!(cut.rows >= rows && cut.stages >= 4, "{cut:?}");
                assert!(cut.shared_bytes() <= SKINNY_SHARED_BYTES, "{cut:?}");
            }
        }
    }
}
