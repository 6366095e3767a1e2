//! Kernels allocate nothing once their buffers have grown, counted by the allocator.

#![cfg(test)]

use std::alloc::System;

use half::f16;
use kvant_kernels::PAGE_TOKENS;
use kvant_kernels::cpu::{
    AttendParams, AttendRow, BlockFormat, DenseTiles, MatmulShape, PackedWeights, Weights,
    attend_dense, matmul, quant_matmul,
};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// The least bytes that a call allocates: a thread of the pool may take its first task, and grow
/// its buffers, in any of them.
fn least(call: &mut dyn FnMut()) -> usize {
    let counted = (0..50).map(|_| {
        let region = Region::new(ALLOCATOR);
        call();
        region.change().bytes_allocated
    });
    counted.min().unwrap_or_default()
}

// One test: the allocator counts for the whole program.
#[test]
fn calls_of_one_size_allocate_once() {
    let (input, output) = (512, 320);
    let numbers: Vec<f32> = (0..8 * input).map(|i| (i % 89) as f32 / 40.0 - 1.0).collect();
    let blocks = vec![0; output * input / 32 * 34];
    let packed = PackedWeights::new(BlockFormat::Q8_0, &blocks, input, output);
    let halves = vec![f16::ONE; output * input];
    for rows in [1, 3, 8] {
        let x = &numbers[..rows * input];
        let mut out = vec![0.0; rows * output];
        assert_eq!(least(&mut || quant_matmul(&mut out, x, &packed)), 0, "{rows} rows");
        let shape = MatmulShape { rows, input, output };
        let weights = Weights::F16(&halves);
        assert_eq!(least(&mut || matmul(&mut out, x, weights, shape)), 0, "{rows} rows");
    }
    let (kv_heads, dim, pages) = (2, 64, 12);
    let cache = vec![f16::ONE; pages * kv_heads * PAGE_TOKENS * dim];
    let tiles = DenseTiles { keys: &cache, values: &cache, kv_heads, dim };
    let params = AttendParams { q_heads: 4, scale: 0.1, window: None, softcap: None };
    let list: Vec<u32> = (0..pages as u32).collect();
    for rows in [1, 4] {
        let row = AttendRow { pages: &list, position: pages * PAGE_TOKENS - 1, tokens: 1 };
        let (rows, q) = (vec![row; rows], &numbers[..rows * 4 * dim]);
        let mut out = vec![0.0; q.len()];
        let least = least(&mut || attend_dense(&mut out, q, tiles, &rows, &params));
        assert_eq!(least, 0, "attention of {} rows", rows.len());
    }
}
