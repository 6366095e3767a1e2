//! Geometry of the kernels over 16-bit pages: grids and scratch memory from rows and heads alone.

use super::params::{AppendParams, DenseParams};
use super::{APPEND_NUMBERS, DENSE_FEW, DENSE_MANY, Kernel};

impl AppendParams {
    /// Grid of `append` for heads of `dim` numbers.
    pub fn grid(&self, dim: usize) -> [usize; 3] {
        let numbers = self.tokens as usize * self.kv_heads as usize * dim;
        [numbers.div_ceil(APPEND_NUMBERS), 1, 1]
    }
}

impl DenseParams {
    /// The kernel for such blocks.
    pub fn kernel(&self) -> Kernel {
        if self.block as usize <= DENSE_FEW { Kernel::AttendFew } else { Kernel::AttendDense }
    }

    /// Grid of `attend_dense` for so many rows of at most `tokens` query tokens.
    pub fn grid(&self, tokens: usize, rows: usize) -> [usize; 3] {
        let vectors = tokens * (self.q_heads / self.kv_heads) as usize;
        let blocks = vectors.div_ceil(self.block as usize);
        // Two groups side by side may be a cluster.
        let blocks = match self.kernel() {
            Kernel::AttendDense => blocks.next_multiple_of(2),
            _ => blocks,
        };
        [blocks * self.parts as usize * self.kv_heads as usize, rows, 1]
    }

    /// Grid of `merge` for the same, which is to follow where there are several parts.
    pub fn merge_grid(&self, tokens: usize, rows: usize) -> [usize; 3] {
        [self.q_heads as usize, tokens, rows]
    }

    /// Bytes of sums and of ends for so many query tokens of all rows; nothing with one part.
    pub fn scratch_bytes(&self, tokens: usize, dim: usize) -> [usize; 2] {
        let vectors = tokens * self.q_heads as usize * self.parts as usize;
        if self.parts == 1 { [0, 0] } else { [4 * vectors * dim, 8 * vectors] }
    }
}

/// The share of places in all turns that groups are to fill.
const FILLED: f64 = 0.9;
/// The most parts for that, and pages of one at least: each costs its merge.
const MOST_TURNED: usize = 8;
const LONG_PAGES: usize = 16;

/// Query vectors of a group for heads of `dim` numbers and rows of at most `tokens` query tokens.
pub fn dense_block(dim: usize, tokens: usize, group: usize) -> usize {
    match tokens * group {
        ..=32 => DENSE_FEW,
        _ if dim > 128 => DENSE_MANY / 2,
        _ => DENSE_MANY,
    }
}

/// In how many parts to take rows of at most `pages` pages, where one part makes `groups` groups of
/// `block` query vectors: so many that all of the GPU works, and none of less than eight pages, or
/// four where a page is little work. gpu: multiprocessors, and groups of `attend_few` on each.
pub fn dense_parts(gpu: (usize, usize), (block, groups): (usize, usize), pages: usize) -> usize {
    let ((multiprocessors, each), groups) = (gpu, groups.max(1));
    let few = block == DENSE_FEW;
    let most = (pages / if few { 4 } else { 8 }).max(1);
    // A group alone on a multiprocessor waits for its own chain of results, the longer the slower
    // the clock is; where there are few groups, more parts to merge cost more than that.
    if few && 2 * groups <= multiprocessors {
        return (multiprocessors / groups).min(most);
    }
    if !few || each == FEW_GROUPS {
        return (2 * multiprocessors / groups).clamp(1, most);
    }
    // Where groups take turns, the last turn lasts as long with few of them as with all.
    let places = each * multiprocessors;
    let filled = |parts: usize| {
        let all = parts * groups;
        all as f64 / all.next_multiple_of(places) as f64
    };
    let choices = 1..=(pages / LONG_PAGES).clamp(1, MOST_TURNED);
    let enough = choices.clone().map(filled).fold(0.0, f64::max).min(FILLED);
    choices.clone().find(|parts| filled(*parts) >= enough).unwrap_or(1)
}

/// Dynamic shared memory of a group of the GPU's own `attend_dense` for heads of `dim` numbers: for
/// chunks, query vectors and a page of keys and of values; for steps as of `attend_few`.
pub fn dense_shared_bytes(dim: usize) -> u32 {
    let query_rows = if dim <= 128 { DENSE_MANY } else { DENSE_MANY / 2 };
    let chunk = (query_rows + 128) * (2 * dim + 16);
    few_shared_bytes(dim)[1].max(chunk as u32)
}

/// Whether heads of `dim` numbers have an `attend_dense` by products of warpgroups.
pub fn has_wgmma(dim: usize) -> bool {
    [64, 128].contains(&dim)
}

/// Stages of keys, and as many of values: as in wgmma.cuh.
const WGMMA_STAGES: usize = 2;

/// Dynamic shared memory of a group of that: query vectors and stages of two pages of keys and of
/// values, two barriers a stage, and what it takes to begin at a multiple of 1024.
pub fn wgmma_shared_bytes(dim: usize) -> u32 {
    let stages = 2 * WGMMA_STAGES;
    ((1 + stages) * 2 * DENSE_MANY * dim + stages * 16 + 1024) as u32
}

/// Whether an `attend_few` that copies by the copy engine comes with it.
pub fn has_bulk(dim: usize) -> bool {
    dim == 128
}

/// Groups of that on a multiprocessor.
pub const BULK_GROUPS: usize = 3;

/// Dynamic shared memory of one: 16 query vectors twice, of each warp a slice of 32 tokens of keys
/// and of values, and the warps' barriers.
pub const BULK_SHARED_BYTES: u32 =
    (2 * 16 * (2 * 128 + 64) + 4 * 2 * (32 * 2 * 128 + 64) + 4 * 2 * 8) as u32;

/// Groups of any other `attend_few` that are well used on a multiprocessor.
pub const FEW_GROUPS: usize = 2;

/// The same of `attend_few`, with few stages and with all: 16 query vectors twice and the stages of
/// four warps, and at the end in their place the sums of the warps.
pub fn few_shared_bytes(dim: usize) -> [u32; 2] {
    let (few, all) = match dim {
        ..=64 => (2, 4),
        65..=128 => (1, 2),
        _ => (1, 1),
    };
    let sums = 4 * 16 * (4 * (dim + 8) + 8);
    let step = |stages: usize| (2 * 16 + 4 * stages * 2 * 16) * (2 * dim + 16);
    [few, all].map(|stages| step(stages).max(sums) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_fit_into_the_shared_memory_of_every_gpu_that_has_the_instructions() {
        for dim in [64, 80, 96, 112, 128, 160, 192, 224, 256] {
            let bytes = dense_shared_bytes(dim);
            assert!(bytes <= 99 << 10, "{bytes} bytes for heads of {dim}");
        }
    }

    #[test]
    fn groups_with_products_of_warpgroups_fit_and_take_steps() {
        for dim in [64, 128] {
            let bytes = wgmma_shared_bytes(dim);
            assert!(has_wgmma(dim) && bytes <= 227 << 10, "{bytes} bytes for heads of {dim}");
            assert!(bytes >= few_shared_bytes(dim)[1], "{bytes} bytes for heads of {dim}");
        }
    }

    #[test]
    fn turns_of_bulk_groups_are_filled() {
        let bytes = BULK_SHARED_BYTES as usize + 1024; // that the driver takes
        assert!(BULK_GROUPS * bytes <= 228 << 10, "{bytes} bytes");
        for (groups, pages, want) in [
            (8, 18, 4),
            (64, 256, 2),
            (66, 256, 2),
            (128, 513, 3), // 384 of 396
            (192, 513, 2), // 384 of 396
            (256, 130, 3), // 768 of 792
            (320, 130, 6), // 1,920 of 1,980
            (384, 130, 1), // 384 of 396
            (396, 130, 1),
            (397, 130, 8), // 3,176 of 3,564
            (512, 64, 3),  // 1,536 of 1,584
            (512, 47, 2),  // 1,024 of 1,188 in parts of 23 pages
            (512, 31, 1),
            (4096, 18, 1),
        ] {
            let parts = dense_parts((132, BULK_GROUPS), (DENSE_FEW, groups), pages);
            assert_eq!(parts, want, "{groups} {pages}");
        }
        let prompts = dense_parts((132, BULK_GROUPS), (DENSE_MANY, 128), 512);
        assert_eq!(prompts, 2, "chunks have groups of another size");
    }

    #[test]
    fn parts_fill_a_gpu_and_are_not_too_short() {
        for (block, groups, pages, want) in [
            (DENSE_FEW, 8, 18, 4),
            (DENSE_FEW, 8, 64, 16),
            (DENSE_FEW, 8, 2048, 16),
            (DENSE_FEW, 64, 64, 2),
            (DENSE_FEW, 66, 64, 2),
            (DENSE_FEW, 67, 64, 3),
            (DENSE_FEW, 128, 513, 2),
            (DENSE_FEW, 256, 2048, 1),
            (DENSE_FEW, 8, 1, 1),
            (DENSE_MANY, 128, 512, 2),
            (DENSE_MANY, 512, 512, 1),
        ] {
            let parts = dense_parts((132, FEW_GROUPS), (block, groups), pages);
            assert_eq!(parts, want, "{block} {groups} {pages}");
        }
        assert_eq!(dense_parts((16, FEW_GROUPS), (DENSE_FEW, 8), 2048), 2, "of a small GPU");
        assert_eq!(dense_block(128, 1, 4), DENSE_FEW);
        assert_eq!(dense_block(128, 512, 4), DENSE_MANY);
        assert_eq!(dense_block(256, 512, 4), DENSE_MANY / 2);
    }

    #[test]
    fn chunks_have_an_even_number_of_blocks() {
        let params = |block| DenseParams {
            q_heads: 32,
            kv_heads: 8,
            parts: 2,
            block,
            window: 0,
            scale: 1.0,
            soft_cap: 0.0,
            numbers: 0,
        };
        for (block, tokens, blocks) in [
            (DENSE_MANY, 1, 2),
            (DENSE_MANY, 32, 2),
            (DENSE_MANY, 33, 2),
            (DENSE_MANY, 64, 2),
            (DENSE_MANY, 65, 4),
            (DENSE_FEW, 1, 1),
            (DENSE_FEW, 4, 1),
            (DENSE_FEW, 9, 3),
        ] {
            let grid = params(block as u32).grid(tokens, 3);
            assert_eq!(grid, [blocks * 2 * 8, 3, 1], "{block} {tokens}");
        }
    }
}
