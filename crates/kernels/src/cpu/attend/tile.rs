//! The arithmetic of one task: queries against tiles of 64 keys and values.
//!
//! Scores are in base 2: queries carry `scale · log2(e)`. Lanes are eight f32; a dot product is
//! eight partial sums over the dimensions in order, then one fixed tree. Only rows that a query of
//! the task sees are read, so what other sequences left in a page cannot reach a result, not even
//! as NaN.

#![expect(clippy::inline_always, reason = "arithmetic of registers; a call would spill them")]

use std::array;
use std::cell::RefCell;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use wide::bytemuck::{cast_slice, cast_slice_mut};

use super::lanes::{Lanes, ZERO, exp2, exp2_one, sums};
use super::{Block, Job, SPLIT_TOKENS, Task};
use crate::PAGE_TOKENS;

/// The maximum before anything was seen: finite, so that differences never are NaN.
const FLOOR: f32 = -1e30;

/// Weights (at first: scores) of one query for a tile.
type Weights = [f32; PAGE_TOKENS];

/// Buffers of one thread, kept between tasks.
#[derive(Default)]
struct Scratch {
    /// `[queries][width]`
    queries: Vec<Lanes>,
    /// `[PAGE_TOKENS][width]`
    keys: Vec<Lanes>,
    /// `[PAGE_TOKENS][width]`
    values: Vec<Lanes>,
    /// `[queries]`
    weights: Vec<Weights>,
    /// State of the split under way.
    state: Vec<Lanes>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Computes a task's state.
pub(super) fn run(job: &Job<'_>, task: &Task, total: &mut [Lanes]) {
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.load_queries(job, task);
        clear(total, job.width);
        for split in task.splits.clone() {
            scratch.split(job, task, split);
            fold(total, &scratch.state, job.width);
        }
    });
}

/// Adds `part` (later keys) to `total`, both states of the same queries.
pub(in crate::cpu) fn fold(total: &mut [Lanes], part: &[Lanes], width: usize) {
    for (total, part) in total.chunks_exact_mut(width + 1).zip(part.chunks_exact(width + 1)) {
        let (total_max, total_sum) = ends(total[width]);
        let (part_max, part_sum) = ends(part[width]);
        let max = total_max.max(part_max);
        let (a, b) = (exp2_one(total_max - max), exp2_one(part_max - max));
        for (total, part) in total[..width].iter_mut().zip(&part[..width]) {
            *total = part.mul_add(Lanes::splat(b), *total * Lanes::splat(a));
        }
        total[width] = joined(max, part_sum.mul_add(b, total_sum * a));
    }
}

/// Weighted sum over sum of weights; zeros if nothing was seen.
pub(in crate::cpu) fn quotient(out: &mut [f32], record: &[Lanes]) {
    let (last, values) = record.split_last().expect("a record ends with maximum and sum");
    let (_, sum) = ends(*last);
    let factor = if sum == 0.0 { 0.0 } else { 1.0 / sum };
    for (out, value) in out.iter_mut().zip(cast_slice::<_, f32>(values)) {
        *out = value * factor;
    }
}

/// The maximum and the sum of weights, kept in a record's last lanes.
pub(in crate::cpu) fn ends(last: Lanes) -> (f32, f32) {
    let [max, sum, ..] = last.to_array();
    (max, sum)
}

pub(in crate::cpu) fn joined(max: f32, sum: f32) -> Lanes {
    Lanes::new([max, sum, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0])
}

pub(in crate::cpu) fn clear(state: &mut [Lanes], width: usize) {
    state.fill(ZERO);
    for record in state.chunks_exact_mut(width + 1) {
        record[width] = joined(FLOOR, 0.0);
    }
}

impl Scratch {
    fn load_queries(&mut self, job: &Job<'_>, task: &Task) {
        let (width, dim, queries) = (job.width, job.tiles.dim, job.queries(&task.block));
        let factor = job.params.scale * std::f32::consts::LOG2_E;
        self.queries.clear();
        self.queries.resize(queries * width, ZERO);
        self.keys.resize(PAGE_TOKENS * width, ZERO);
        self.values.resize(PAGE_TOKENS * width, ZERO);
        self.weights.resize(queries, [0.0; PAGE_TOKENS]);
        self.state.resize(job.state_len(&task.block), ZERO);
        for (index, row) in self.queries.chunks_exact_mut(width).enumerate() {
            let token = task.block.query + index / job.group;
            let head = task.head * job.group + index % job.group;
            let query = &job.q[(token * job.params.q_heads + head) * dim..][..dim];
            for (into, from) in cast_slice_mut(row).iter_mut().zip(query) {
                *into = from * factor;
            }
        }
    }

    /// Leaves the state of one split in `self.state`.
    fn split(&mut self, job: &Job<'_>, task: &Task, split: usize) {
        clear(&mut self.state, job.width);
        let block = &task.block;
        let start = job.seen(block.position).start.max(split * SPLIT_TOKENS);
        let end = (block.position + block.tokens).min((split + 1) * SPLIT_TOKENS);
        if start >= end {
            return;
        }
        for tile in start / PAGE_TOKENS..end.div_ceil(PAGE_TOKENS) {
            let slots = clip(&(start..end), tile);
            self.load_tile(job, task, tile, &slots);
            self.score(job.width, &slots);
            if let Some(cap) = job.params.softcap {
                self.cap(cap, &slots);
            }
            self.weigh(job, block, tile);
            self.accumulate(job.width, &slots);
        }
    }

    fn load_tile(&mut self, job: &Job<'_>, task: &Task, tile: usize, slots: &Range<usize>) {
        let (dim, kv_heads) = (job.tiles.dim, job.tiles.kv_heads);
        let page = job.rows[task.block.row].pages[tile] as usize;
        let start = (page * kv_heads + task.head) * PAGE_TOKENS + slots.start;
        let from = start * dim..(start + slots.len()) * dim;
        let into = slots.start * job.width..slots.end * job.width;
        load(&mut self.keys[into.clone()], &job.tiles.keys[from.clone()], dim);
        load(&mut self.values[into], &job.tiles.values[from], dim);
    }

    /// Scores of all queries; slots outside may hold anything afterwards.
    fn score(&mut self, width: usize, slots: &Range<usize>) {
        debug_assert_eq!(self.queries.len(), self.weights.len() * width);
        score_all(&mut self.weights, &self.queries, &self.keys, slots);
    }

    /// Scores, in base 2, to `cap · tanh(score / cap)`, one by one.
    fn cap(&mut self, cap: f32, slots: &Range<usize>) {
        let cap = cap * std::f32::consts::LOG2_E;
        for weights in &mut self.weights {
            for score in &mut weights[slots.clone()] {
                *score = cap * (*score / cap).tanh();
            }
        }
    }

    /// Turns scores into weights and scales the state to the new maximum.
    fn weigh(&mut self, job: &Job<'_>, block: &Block, tile: usize) {
        let records = self.state.chunks_exact_mut(job.width + 1);
        for (index, (record, weights)) in records.zip(&mut self.weights).enumerate() {
            let position = block.position + index / job.group;
            weigh(record, weights, &clip(&job.seen(position), tile));
        }
    }

    fn accumulate(&mut self, width: usize, slots: &Range<usize>) {
        let values = &self.values[slots.start * width..slots.end * width];
        accumulate_all(&mut self.state, &self.weights, (values, slots.start));
    }
}

/// Scores of all queries; slots outside may hold anything afterwards.
pub(in crate::cpu) fn score_all(
    weights: &mut [Weights],
    queries: &[Lanes],
    keys: &[Lanes],
    slots: &Range<usize>,
) {
    let width = queries.len() / weights.len();
    for (weights, queries) in weights.chunks_mut(4).zip(queries.chunks(4 * width)) {
        match weights.len() {
            4 => score::<4, 2>(weights, queries, keys, slots),
            3 => score::<3, 2>(weights, queries, keys, slots),
            2 => score::<2, 4>(weights, queries, keys, slots),
            _ => score::<1, 8>(weights, queries, keys, slots),
        }
    }
}

/// Adds weights times values, the first of which is in slot `first`, to the records.
pub(in crate::cpu) fn accumulate_all(
    records: &mut [Lanes],
    weights: &[Weights],
    (values, first): (&[Lanes], usize),
) {
    let stride = records.len() / weights.len();
    for (records, weights) in records.chunks_mut(4 * stride).zip(weights.chunks(4)) {
        match weights.len() {
            4 => accumulate::<4, 2>(records, weights, values, first),
            3 => accumulate::<3, 2>(records, weights, values, first),
            2 => accumulate::<2, 4>(records, weights, values, first),
            _ => accumulate::<1, 8>(records, weights, values, first),
        }
    }
}

/// Positions as slots of a tile; empty if they lie outside.
fn clip(positions: &Range<usize>, tile: usize) -> Range<usize> {
    let slot = |position: usize| position.saturating_sub(tile * PAGE_TOKENS).min(PAGE_TOKENS);
    slot(positions.start)..slot(positions.end)
}

/// `[rows][dim]` to `[rows][width]`, zeros behind.
pub(in crate::cpu) fn load(into: &mut [Lanes], from: &[f16], dim: usize) {
    let into: &mut [f32] = cast_slice_mut(into);
    if into.len() == from.len() {
        return from.convert_to_f32_slice(into);
    }
    let width = into.len() / (from.len() / dim);
    for (into, from) in into.chunks_exact_mut(width).zip(from.chunks_exact(dim)) {
        from.convert_to_f32_slice(&mut into[..dim]);
        into[dim..].fill(0.0);
    }
}

/// Dot products of `N` queries with keys, `J` keys at a time; `N * J` is at most 8.
fn score<const N: usize, const J: usize>(
    weights: &mut [Weights],
    queries: &[Lanes],
    keys: &[Lanes],
    slots: &Range<usize>,
) {
    let width = queries.len() / N;
    let queries: [&[Lanes]; N] = array::from_fn(|n| &queries[n * width..][..width]);
    for slot in (slots.start / J * J..slots.end).step_by(J) {
        let keys: [&[Lanes]; J] = array::from_fn(|j| &keys[(slot + j) * width..][..width]);
        let mut products = [ZERO; 8];
        for d in 0..width {
            for j in 0..J {
                for n in 0..N {
                    let product = &mut products[n * J + j];
                    *product = queries[n][d].mul_add(keys[j][d], *product);
                }
            }
        }
        let sums = sums(products).to_array();
        for (weights, sums) in weights.iter_mut().zip(sums.chunks_exact(J)) {
            weights[slot..slot + J].copy_from_slice(sums);
        }
    }
}

/// One query and one tile: weights of the slots it sees, zeros elsewhere; maximum and sum brought
/// up to date.
pub(in crate::cpu) fn weigh(record: &mut [Lanes], weights: &mut Weights, slots: &Range<usize>) {
    let (last, values) = record.split_last_mut().expect("a record ends with maximum and sum");
    let (old_max, old_sum) = ends(*last);
    let (start, end) = (Lanes::splat(slots.start as f32), Lanes::splat(slots.end as f32));
    let unseen = Lanes::splat(f32::NEG_INFINITY);
    let mut slot = Lanes::new([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    let mut scores = [unseen; PAGE_TOKENS / 8];
    let mut maxima = Lanes::splat(old_max);
    let (chunks, _) = weights.as_chunks_mut::<8>();
    for (score, chunk) in scores.iter_mut().zip(&*chunks) {
        let seen = slot.simd_ge(start) & slot.simd_lt(end);
        *score = seen.bitselect(Lanes::new(*chunk), unseen);
        maxima = maxima.max(*score);
        slot += Lanes::splat(8.0);
    }
    let max = maxima.to_array().into_iter().fold(old_max, f32::max);
    let scale = exp2_one(old_max - max);
    if scale != 1.0 {
        for value in values {
            *value *= Lanes::splat(scale);
        }
    }
    let mut total = ZERO;
    for (score, chunk) in scores.into_iter().zip(chunks) {
        let weight = exp2(score - Lanes::splat(max));
        total += weight;
        *chunk = weight.to_array();
    }
    let [sum, ..] = sums([total; 8]).to_array();
    *last = joined(max, old_sum.mul_add(scale, sum));
}

/// Adds weights times values to `N` records, `D` lanes at a time. `values` begins at slot `first`.
fn accumulate<const N: usize, const D: usize>(
    records: &mut [Lanes],
    weights: &[Weights],
    values: &[Lanes],
    first: usize,
) {
    let width = records.len() / N - 1;
    let mut at = 0;
    while at + D <= width {
        accumulate_at::<N, D>(records, weights, (values, first), at);
        at += D;
    }
    while at < width {
        accumulate_at::<N, 2>(records, weights, (values, first), at);
        at += 2;
    }
}

#[inline(always)]
fn accumulate_at<const N: usize, const D: usize>(
    records: &mut [Lanes],
    weights: &[Weights],
    (values, first): (&[Lanes], usize),
    at: usize,
) {
    let stride = records.len() / N;
    let weights: [&Weights; N] = array::from_fn(|n| &weights[n]);
    let mut sums: [[Lanes; D]; N] =
        array::from_fn(|n| array::from_fn(|d| records[n * stride + at + d]));
    for (slot, row) in (first..PAGE_TOKENS).zip(values.chunks_exact(stride - 1)) {
        let row: &[Lanes; D] = row[at..].first_chunk().expect("at + D <= width");
        for n in 0..N {
            let weight = Lanes::splat(weights[n][slot]);
            for d in 0..D {
                sums[n][d] = weight.mul_add(row[d], sums[n][d]);
            }
        }
    }
    for n in 0..N {
        records[n * stride + at..][..D].copy_from_slice(&sums[n]);
    }
}
