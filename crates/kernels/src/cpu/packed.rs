//! `attend_packed`: causal attention of ragged rows over packed pages, a 16-bit tail and 16-bit
//! sink tokens.
//!
//! The arithmetic of one query vector is fixed by its own sequence: packed pages in order, in
//! splits of `SPLIT_TOKENS` that start afresh and are merged in order, then the 16-bit tokens,
//! then the sink logit. What shares a read and what runs on another thread changes no bit; nor does
//! the instruction set, because scores and sums of values are integers on every path.
//!
//! Queries are rotated once and taken to 15 bits; sums of values stay in rotated space until the
//! end, where each query head goes through one inverse rotation.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod machine;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod shape;
mod task;

#[cfg(test)]
mod tests;

use std::ops::Range;

use kvant_turboquant::{PageLayout, Rotation};
use rayon::prelude::*;

use super::attend::lanes::{Lanes, exp2_one};
use super::attend::{DenseTiles, SPLIT_TOKENS, spread, tile};
use crate::cpu::Path;
use crate::{PAGE_TOKENS, Stash, of_length};
use shape::{Line, Shape};

/// Query vectors that share one read of a page. Changes speed only.
const BLOCK_QUERIES: usize = 32;
/// Pages of a split.
const SPLIT_PAGES: usize = SPLIT_TOKENS / PAGE_TOKENS;

static BUFFERS: Stash<Buffers> = Stash::new();

/// Keys and values of one layer.
#[derive(Clone, Copy, Debug)]
pub struct PackedTiles<'a> {
    /// `[page][kv_heads][tile_bytes]`
    pub tiles: &'a [u8],
    /// What a tile looks like.
    pub layout: &'a PageLayout,
    /// How keys were rotated.
    pub keys: &'a Rotation,
    /// How values were rotated.
    pub values: &'a Rotation,
    /// Tails and sink tokens; its heads and size are those of the packed pages.
    pub dense: DenseTiles<'a>,
}

/// Consecutive query tokens of one sequence; their own keys and values are in the tail.
#[derive(Clone, Copy, Debug)]
pub struct PackedRow<'a> {
    /// Full packed pages in token order, from position 0 on.
    pub pages: &'a [u32],
    /// 16-bit pages with the tokens after those.
    pub tail: &'a [u32],
    /// Tokens from position 0 on that are read from a 16-bit page instead, and that page.
    pub sinks: Option<(usize, u32)>,
    /// Position of the first query token.
    pub position: usize,
    /// Number of query tokens.
    pub tokens: usize,
    /// Added to scores, `[tokens, position + tokens]`.
    pub mask: Option<&'a [f32]>,
}

/// What is the same for all rows.
#[derive(Clone, Copy, Debug)]
pub struct PackedParams<'a> {
    /// Query heads; a multiple of the key heads.
    pub q_heads: usize,
    /// Factor of q·k.
    pub scale: f32,
    /// A token sees this many tokens including itself; `None` sees all.
    pub window: Option<usize>,
    /// Scores become cap · tanh(score / cap), before the mask.
    pub soft_cap: Option<f32>,
    /// One logit a query head that takes weight and gives no value.
    pub sink_logits: Option<&'a [f32]>,
    /// Instructions to use.
    pub path: Path,
}

/// Writes softmax(scale · q·Kᵀ + mask)·V of every query token; a token that sees nothing gets
/// zeros.
///
/// `q` and `out` are `[sum of tokens, q_heads, dim]`.
///
/// # Panics
/// If lengths do not fit together, a page list is too short or the machine lacks the path.
pub fn attend_packed(
    out: &mut [f32],
    q: &[f32],
    tiles: PackedTiles<'_>,
    rows: &[PackedRow<'_>],
    params: &PackedParams<'_>,
) {
    let job = Job::new(q, tiles, rows, params);
    assert_eq!(out.len(), q.len(), "out must have the shape of q");
    BUFFERS.with(|Buffers { rotated, blocks, tasks, state }| {
        rotated.clear();
        rotated.extend_from_slice(q);
        *rotated = tiles.keys.rotate(std::mem::take(rotated)).into_values();
        let job = Job { rotated, ..job };
        job.fill_blocks(blocks);
        let few = blocks.len() * tiles.dense.kv_heads < 4 * rayon::current_num_threads();
        job.fill_tasks(tasks, blocks, few);
        let length = |task: &Task| job.state_len(&task.block);
        let state = of_length(state, tasks.iter().map(length).sum());
        spread(tasks, state, &length, &|task, own| task::run(&job, task, own));
        job.write(out, state, blocks, few);
    });
}

/// What a call needs, kept for later ones.
#[derive(Default)]
struct Buffers {
    /// Queries in the space of the keys.
    rotated: Vec<f32>,
    blocks: Vec<Block>,
    tasks: Vec<Task>,
    /// States of the tasks, one after the other.
    state: Vec<Lanes>,
}

/// Query tokens of one row that go through the keys together.
#[derive(Clone, Debug)]
struct Block {
    /// Index of the row.
    row: usize,
    /// Index of the first token among all query tokens.
    query: usize,
    /// First token within the row.
    first: usize,
    /// Number of tokens.
    tokens: usize,
}

/// One block, one key head, consecutive splits; the last split of a row is its 16-bit tokens.
#[derive(Clone, Debug)]
struct Task {
    block: Block,
    head: usize,
    splits: Range<usize>,
}

/// A rotated query of 15 bits: high times 128 plus low, in the order of the keys' lines.
#[derive(Clone, Debug)]
struct Query {
    lines: Vec<[Line; 2]>,
    /// Sum of all numbers; unsigned levels need it.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 reads it"))]
    sum: i32,
    /// Score of an integer product, in base 2.
    factor: f32,
}

/// Weights of a page's tokens of 14 bits: high times 128 plus low, in the order of the values.
#[derive(Clone, Debug)]
struct Weights {
    lines: [Line; 2],
    /// Sum of all numbers; unsigned levels need it.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "only AVX-512 reads it"))]
    sum: i32,
    /// What an integer sum of values has to be multiplied by.
    factor: f32,
}

/// The arguments, checked, and what follows from them.
struct Job<'a> {
    q: &'a [f32],
    /// All queries in the space of the keys; empty until they are there.
    rotated: &'a [f32],
    tiles: PackedTiles<'a>,
    shape: Shape,
    rows: &'a [PackedRow<'a>],
    params: &'a PackedParams<'a>,
    /// Query heads of one key head.
    group: usize,
    /// Lanes of a head; even, the rest is zeros.
    width: usize,
}

impl<'a> Job<'a> {
    fn new(
        q: &'a [f32],
        tiles: PackedTiles<'a>,
        rows: &'a [PackedRow<'a>],
        params: &'a PackedParams<'a>,
    ) -> Self {
        let DenseTiles { keys, values, kv_heads, dim } = tiles.dense;
        assert!(kv_heads > 0 && dim > 0, "kv_heads {kv_heads} and dim {dim} must not be 0");
        assert_eq!(keys.len(), values.len(), "keys and values must have the same length");
        assert_eq!(tiles.layout.dim(), dim, "packed and 16-bit heads must have the same size");
        assert_eq!((tiles.keys.dim(), tiles.values.dim()), (dim, dim), "rotations of another size");
        assert!(params.path.is_here(), "this machine has no {:?}", params.path);
        let group = params.q_heads / kv_heads;
        assert!(
            group > 0 && group * kv_heads == params.q_heads,
            "{} query heads are no multiple of {kv_heads} key heads",
            params.q_heads
        );
        let tokens: usize = rows.iter().map(|row| row.tokens).sum();
        assert_eq!(q.len(), tokens * params.q_heads * dim, "q must be [{tokens}, q_heads, dim]");
        for row in rows {
            let (packed, end) = (row.pages.len() * PAGE_TOKENS, row.position + row.tokens);
            assert!(
                end <= packed + row.tail.len() * PAGE_TOKENS,
                "{} packed and {} tail pages are too few for {end} tokens",
                row.pages.len(),
                row.tail.len(),
            );
            assert!(row.mask.is_none_or(|mask| mask.len() == row.tokens * end), "mask of a row");
            assert!(row.sinks.is_none_or(|(sinks, _)| sinks <= PAGE_TOKENS.min(packed)), "sinks");
        }
        let width = 2 * dim.div_ceil(16);
        let shape = Shape::new(tiles.layout);
        Self { q, rotated: &[], tiles, shape, rows, params, group, width }
    }

    fn fill_blocks(&self, blocks: &mut Vec<Block>) {
        let size = (BLOCK_QUERIES / self.group).max(1);
        let mut query = 0;
        blocks.clear();
        for (row, tokens) in self.rows.iter().map(|row| row.tokens).enumerate() {
            for first in (0..tokens).step_by(size) {
                let tokens = size.min(tokens - first);
                blocks.push(Block { row, query, first, tokens });
                query += tokens;
            }
        }
    }

    /// In the order of blocks, heads, splits. `apart`: one task a split, else one for all splits.
    fn fill_tasks(&self, tasks: &mut Vec<Task>, blocks: &[Block], apart: bool) {
        tasks.clear();
        for block in blocks {
            let splits = self.splits(block);
            let step = if apart { 1 } else { splits.len() };
            for head in 0..self.tiles.dense.kv_heads {
                for start in splits.clone().step_by(step) {
                    let splits = start..start + step;
                    tasks.push(Task { block: block.clone(), head, splits });
                }
            }
        }
    }

    /// Splits that any token of the block sees, and the one of the 16-bit tokens.
    fn splits(&self, block: &Block) -> Range<usize> {
        let packed = self.rows[block.row].pages.len().div_ceil(SPLIT_PAGES);
        (self.seen(block, 0).start / SPLIT_TOKENS).min(packed)..packed + 1
    }

    /// Positions that a token of the block sees.
    fn seen(&self, block: &Block, token: usize) -> Range<usize> {
        let end = self.rows[block.row].position + block.first + token + 1;
        self.params.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    fn queries(&self, block: &Block) -> usize {
        block.tokens * self.group
    }

    /// Lanes of a task's state: the records of packed tokens, then those of 16-bit ones.
    fn state_len(&self, block: &Block) -> usize {
        2 * self.queries(block) * (self.width + 1)
    }

    /// Merges states, leaves rotated space and writes the quotients.
    fn write(&self, out: &mut [f32], state: &mut [Lanes], blocks: &[Block], apart: bool) {
        let (mut out, mut state) = (out, state);
        let mut work = Vec::new();
        for block in blocks {
            let parts = if apart { self.splits(block).len() } else { 1 };
            let of_block = block.tokens * self.params.q_heads * self.tiles.dense.dim;
            let (block_out, out_rest) = out.split_at_mut(of_block);
            let states = self.state_len(block) * parts * self.tiles.dense.kv_heads;
            let (block_state, state_rest) = state.split_at_mut(states);
            (out, state) = (out_rest, state_rest);
            work.push((block, block_out, block_state));
        }
        if work.len() == 1 {
            for (block, out, state) in work {
                self.write_block(out, state, block);
            }
        } else {
            let work = work.into_par_iter();
            work.for_each(|(block, out, state)| self.write_block(out, state, block));
        }
    }

    fn write_block(&self, out: &mut [f32], state: &mut [Lanes], block: &Block) {
        let (dim, kv_heads) = (self.tiles.dense.dim, self.tiles.dense.kv_heads);
        let len = self.state_len(block);
        let per_head = state.len() / kv_heads;
        for (head, state) in state.chunks_exact_mut(per_head).enumerate() {
            let (total, others) = state.split_at_mut(len);
            for part in others.chunks_exact(len) {
                tile::fold(total, part, self.width);
            }
            let (packed, dense) = total.split_at_mut(len / 2);
            let records = packed.chunks_exact_mut(self.width + 1);
            for (index, record) in records.zip(dense.chunks_exact(self.width + 1)).enumerate() {
                let (record, dense) = record;
                self.restore(record);
                tile::fold(record, dense, self.width);
                let q_head = head * self.group + index % self.group;
                if let Some(logits) = self.params.sink_logits {
                    add_logit(record, logits[q_head]);
                }
                let at = index / self.group * self.params.q_heads + q_head;
                tile::quotient(&mut out[at * dim..][..dim], record);
            }
        }
    }

    /// Takes the sum of packed values back to the space of the model.
    fn restore(&self, record: &mut [Lanes]) {
        let sums: &mut [f32] = wide::bytemuck::cast_slice_mut(&mut record[..self.width]);
        let sums = &mut sums[..self.tiles.dense.dim];
        let rotated = self.tiles.values.adopt(sums.to_vec());
        sums.copy_from_slice(&self.tiles.values.restore(rotated));
    }
}

/// Counts a logit without a value.
fn add_logit(record: &mut [Lanes], logit: f32) {
    let (last, values) = record.split_last_mut().expect("a record ends with maximum and sum");
    let (max, sum) = tile::ends(*last);
    let logit = logit * std::f32::consts::LOG2_E;
    let new = max.max(logit);
    let factor = exp2_one(max - new);
    for value in values {
        *value *= Lanes::splat(factor);
    }
    *last = tile::joined(new, sum.mul_add(factor, exp2_one(logit - new)));
}
