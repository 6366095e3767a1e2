//! `attend_dense`: causal attention of ragged rows over paged 16-bit keys and values.
//!
//! The arithmetic of one query vector is fixed by its position alone: keys are taken in order, in
//! tiles of one page, in splits of `SPLIT_TOKENS`; every split starts afresh and splits are merged
//! in order. What shares a read (the query heads of a group, a block of query tokens) and what runs
//! on another thread (rows, heads, blocks, splits) changes no bit of a result. So a row is
//! independent of its neighbours, a prompt may be cut into chunks anywhere, and a decode row equals
//! the same token inside a chunk.

pub(super) mod lanes;
pub(super) mod tile;

#[cfg(test)]
mod tests;

use half::f16;
use std::ops::Range;

use crate::{PAGE_TOKENS, Stash, of_length};
use lanes::Lanes;

/// Tokens after which the running softmax starts afresh. Part of the definition of the result.
pub(super) const SPLIT_TOKENS: usize = 512;
/// Query vectors that share one read of a tile. Changes speed only.
const BLOCK_QUERIES: usize = 32;
/// Work, in query vectors times tiles, below which threads cost more than they give.
const SERIAL_WORK: usize = 32;

static BUFFERS: Stash<Buffers> = Stash::new();

/// Keys and values of one layer, each `[page][kv_heads][PAGE_TOKENS][dim]`.
#[derive(Clone, Copy, Debug)]
pub struct DenseTiles<'a> {
    /// Keys.
    pub keys: &'a [f16],
    /// Values.
    pub values: &'a [f16],
    /// Heads of a page.
    pub kv_heads: usize,
    /// Size of one head.
    pub dim: usize,
}

/// Consecutive query tokens of one sequence. The token at position `p` sees keys `0..=p`, or the
/// last `window` of them.
#[derive(Clone, Copy, Debug)]
pub struct AttendRow<'a> {
    /// The sequence's pages in token order; pages that no query token can see are not read.
    pub pages: &'a [u32],
    /// Position of the first query token.
    pub position: usize,
    /// Number of query tokens.
    pub tokens: usize,
}

/// What is the same for all rows.
#[derive(Clone, Copy, Debug)]
pub struct AttendParams {
    /// Query heads; a multiple of `kv_heads`. Query head `h` reads key head `h / (q_heads /
    /// kv_heads)`.
    pub q_heads: usize,
    /// Factor of q·k.
    pub scale: f32,
    /// A token sees this many tokens including itself; `None` sees all.
    pub window: Option<usize>,
    /// Scaled scores become `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
}

/// Writes softmax(scale · q·Kᵀ)·V of every query token, its scores capped if so asked; a token that
/// sees nothing gets zeros.
///
/// `q` and `out` are `[sum of tokens, q_heads, dim]`. Sums are in f32.
///
/// # Panics
/// If lengths do not fit together or a page list is too short: errors of the caller.
pub fn attend_dense(
    out: &mut [f32],
    q: &[f32],
    tiles: DenseTiles<'_>,
    rows: &[AttendRow<'_>],
    params: &AttendParams,
) {
    let job = Job::new(q, tiles, rows, params);
    assert_eq!(out.len(), q.len(), "out must have the shape of q");
    BUFFERS.with(|Buffers { blocks, tasks, state }| {
        job.fill_blocks(blocks);
        let few = blocks.len() * tiles.kv_heads < 4 * rayon::current_num_threads();
        job.fill_tasks(tasks, blocks, few);
        let state = of_length(state, tasks.iter().map(|task| job.state_len(&task.block)).sum());
        let work: usize = tasks.iter().map(|t| job.queries(&t.block) * t.splits.len()).sum();
        if work * (SPLIT_TOKENS / PAGE_TOKENS) <= SERIAL_WORK {
            let mut rest = &mut *state;
            for task in tasks.iter() {
                let (own, others) = rest.split_at_mut(job.state_len(&task.block));
                rest = others;
                tile::run(&job, task, own);
            }
        } else {
            let length = |task: &Task| job.state_len(&task.block);
            spread(tasks, state, &length, &|task, own| tile::run(&job, task, own));
        }
        job.write(out, state, blocks, few);
    });
}

/// Runs tasks on all threads, each with its own part of the state, of the length that `length`
/// gives. By halves: a parallel iterator over tasks of different lengths would need a list.
pub(super) fn spread<T: Sync, S: Send>(
    tasks: &[T],
    state: &mut [S],
    length: &(impl Fn(&T) -> usize + Sync),
    run: &(impl Fn(&T, &mut [S]) + Sync),
) {
    match tasks {
        [] => {}
        [task] => run(task, state),
        _ => {
            let (first, second) = tasks.split_at(tasks.len() / 2);
            let (own, others) = state.split_at_mut(first.iter().map(length).sum());
            let mine = || spread(first, own, length, run);
            rayon::join(mine, || spread(second, others, length, run));
        }
    }
}

/// What a call needs, kept for later ones.
#[derive(Default)]
struct Buffers {
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
    /// Position of the first token.
    position: usize,
    /// Number of tokens.
    tokens: usize,
}

/// One block, one key head, consecutive splits: the unit that a thread takes.
#[derive(Clone, Debug)]
struct Task {
    block: Block,
    head: usize,
    splits: Range<usize>,
}

/// The arguments, checked, and what follows from them.
struct Job<'a> {
    q: &'a [f32],
    tiles: DenseTiles<'a>,
    rows: &'a [AttendRow<'a>],
    params: &'a AttendParams,
    /// Query heads of one key head.
    group: usize,
    /// Lanes of a head; even, the rest is zeros.
    width: usize,
}

impl<'a> Job<'a> {
    fn new(
        q: &'a [f32],
        tiles: DenseTiles<'a>,
        rows: &'a [AttendRow<'a>],
        params: &'a AttendParams,
    ) -> Self {
        let DenseTiles { keys, values, kv_heads, dim } = tiles;
        assert!(kv_heads > 0 && dim > 0, "kv_heads {kv_heads} and dim {dim} must not be 0");
        assert_eq!(keys.len(), values.len(), "keys and values must have the same length");
        let group = params.q_heads / kv_heads;
        assert!(
            group > 0 && group * kv_heads == params.q_heads,
            "{} query heads are no multiple of {kv_heads} key heads",
            params.q_heads
        );
        let tokens: usize = rows.iter().map(|row| row.tokens).sum();
        assert_eq!(q.len(), tokens * params.q_heads * dim, "q must be [{tokens}, q_heads, dim]");
        for row in rows {
            assert!(
                row.position + row.tokens <= row.pages.len() * PAGE_TOKENS,
                "{} pages are too few for position {} and {} tokens",
                row.pages.len(),
                row.position,
                row.tokens
            );
        }
        Self { q, tiles, rows, params, group, width: 2 * dim.div_ceil(16) }
    }

    fn fill_blocks(&self, blocks: &mut Vec<Block>) {
        let size = (BLOCK_QUERIES / self.group).max(1);
        let mut query = 0;
        blocks.clear();
        for (index, row) in self.rows.iter().enumerate() {
            for first in (0..row.tokens).step_by(size) {
                let tokens = size.min(row.tokens - first);
                blocks.push(Block { row: index, query, position: row.position + first, tokens });
                query += tokens;
            }
        }
    }

    /// In the order of blocks, heads, splits. `apart`: one task a split, else one task for all
    /// splits.
    fn fill_tasks(&self, tasks: &mut Vec<Task>, blocks: &[Block], apart: bool) {
        tasks.clear();
        for block in blocks {
            let splits = self.splits(block);
            let step = if apart { 1 } else { splits.len() };
            for head in 0..self.tiles.kv_heads {
                for start in splits.clone().step_by(step) {
                    let splits = start..start + step;
                    tasks.push(Task { block: block.clone(), head, splits });
                }
            }
        }
    }

    /// Splits with keys that any token of the block sees; at least one.
    fn splits(&self, block: &Block) -> Range<usize> {
        let last = block.position + block.tokens - 1;
        let start = self.seen(block.position).start.min(last);
        start / SPLIT_TOKENS..last / SPLIT_TOKENS + 1
    }

    /// Positions that the token at `position` sees.
    fn seen(&self, position: usize) -> Range<usize> {
        let end = position + 1;
        self.params.window.map_or(0, |window| end.saturating_sub(window))..end
    }

    fn queries(&self, block: &Block) -> usize {
        block.tokens * self.group
    }

    /// Lanes of the state of one task: for each query vector its unscaled sum, then one of
    /// (maximum, sum of weights).
    fn state_len(&self, block: &Block) -> usize {
        self.queries(block) * (self.width + 1)
    }

    /// Merges the states of splits that were taken apart and writes the quotients.
    fn write(&self, out: &mut [f32], state: &mut [Lanes], blocks: &[Block], apart: bool) {
        let (dim, q_heads) = (self.tiles.dim, self.params.q_heads);
        let (mut out, mut state) = (out, state);
        for block in blocks {
            let len = self.state_len(block);
            let parts = if apart { self.splits(block).len() } else { 1 };
            let (block_out, out_rest) = out.split_at_mut(block.tokens * q_heads * dim);
            let (block_state, state_rest) = state.split_at_mut(len * parts * self.tiles.kv_heads);
            (out, state) = (out_rest, state_rest);
            for (head, state) in block_state.chunks_exact_mut(len * parts).enumerate() {
                let (total, others) = state.split_at_mut(len);
                for part in others.chunks_exact(len) {
                    tile::fold(total, part, self.width);
                }
                for (index, record) in total.chunks_exact(self.width + 1).enumerate() {
                    let (token, query) = (index / self.group, index % self.group);
                    let at = token * q_heads + head * self.group + query;
                    tile::quotient(&mut block_out[at * dim..][..dim], record);
                }
            }
        }
    }
}
