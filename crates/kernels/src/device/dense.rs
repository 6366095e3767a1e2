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
/// four where a page is little work.
pub fn dense_parts(multiprocessors: usize, (block, groups): (usize, usize), pages: usize) -> usize {
    // A group alone on a multiprocessor waits for its own chain of results, the longer the slower
    // the clock is; where there are few groups, more parts to merge cost more than that.
    let few = block == DENSE_FEW;
    let each = if few && 2 * groups <= multiprocessors { 1 } else { 2 };
    let least = if few { 4 } else { 8 };
    (each * multiprocessors / groups.max(1)).min(pages / least).max(1)
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

/// Dynamic shared memory of a group of that: query vectors and two stages of two pages of keys and
/// of values, their barriers, and what it takes to begin at a multiple of 1024.
pub fn wgmma_shared_bytes(dim: usize) -> u32 {
    (5 * 2 * DENSE_MANY * dim + 64 + 1024) as u32
}

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
            let parts = dense_parts(132, (block, groups), pages);
            assert_eq!(parts, want, "{block} {groups} {pages}");
        }
        assert_eq!(dense_parts(16, (DENSE_FEW, 8), 2048), 2, "of a small GPU");
        assert_eq!(dense_block(128, 1, 4), DENSE_FEW);
        assert_eq!(dense_block(128, 512, 4), DENSE_MANY);
        assert_eq!(dense_block(256, 512, 4), DENSE_MANY / 2);
    }
}
