//! The arithmetic of one task: queries against packed pages, or against 16-bit ones.

use std::cell::RefCell;
use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;
use wide::bytemuck::cast_slice_mut;
use wide::{i16x8, i32x8};

use super::shape::{EMPTY, Line, key_lines, value_lines};
use super::{Block, Job, Query, SPLIT_PAGES, Task, Weights, machine};
use crate::PAGE_TOKENS;
use crate::cpu::attend::lanes::{Lanes, ZERO, exp2_one};
use crate::cpu::attend::tile;

/// Largest integer of a query's coordinate: 127 · 128.
const QUERY_STEPS: f32 = 16_256.0;
/// Largest integer of a weight: 127 · 128 + 127.
const WEIGHT_STEPS: f32 = 16_383.0;

/// Buffers of one thread, kept between tasks.
#[derive(Default)]
struct Scratch {
    keys: Vec<Line>,
    values: Vec<Line>,
    queries: Vec<Query>,
    weights: Vec<Weights>,
    /// Scores, then weights of a page, for each query.
    rows: Vec<[f32; PAGE_TOKENS]>,
    /// Packed records of the split under way.
    state: Vec<Lanes>,
    /// Queries, keys and values of 16-bit pages, widened.
    dense: [Vec<Lanes>; 3],
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Computes a task's state.
pub(super) fn run(job: &Job<'_>, task: &Task, total: &mut [Lanes]) {
    SCRATCH.with_borrow_mut(|scratch| {
        tile::clear(total, job.width);
        let (packed, dense) = total.split_at_mut(total.len() / 2);
        scratch.rows.resize(job.queries(&task.block), [0.0; PAGE_TOKENS]);
        let pages = job.rows[task.block.row].pages.len();
        let last = pages.div_ceil(SPLIT_PAGES);
        if task.splits.start < last {
            scratch.load_queries(job, task);
        }
        for split in task.splits.clone() {
            if split == last {
                scratch.dense_tokens(job, task, dense);
                continue;
            }
            scratch.state.resize(packed.len(), ZERO);
            tile::clear(&mut scratch.state, job.width);
            for page in split * SPLIT_PAGES..((split + 1) * SPLIT_PAGES).min(pages) {
                scratch.packed_page(job, task, page);
            }
            tile::fold(packed, &scratch.state, job.width);
        }
    });
}

impl Scratch {
    fn load_queries(&mut self, job: &Job<'_>, task: &Task) {
        let pieces = job.shape.keys.len();
        self.keys.resize(key_lines(&job.shape), EMPTY);
        self.values.resize(value_lines(&job.shape), EMPTY);
        self.queries.clear();
        let scale = job.params.scale * std::f32::consts::LOG2_E * job.shape.key_levels.factor;
        for index in 0..job.queries(&task.block) {
            let query = query_of(job, task, index, job.rotated);
            let largest = query.iter().fold(0.0, |most: f32, q| most.max(q.abs()));
            let steps = if largest > 0.0 { QUERY_STEPS / largest } else { 0.0 };
            let mut lines = vec![[EMPTY; 2]; pieces];
            let mut sum = 0;
            for (q, position) in query.iter().zip(&job.shape.positions) {
                let whole = (q * steps).round_ties_even() as i32;
                let high = (whole + 64) >> 7;
                let [high_line, low_line] = &mut lines[position / 64];
                high_line.0[position % 64] = high as u8;
                low_line.0[position % 64] = (whole - (high << 7)) as u8;
                sum += whole;
            }
            self.queries.push(Query { lines, sum, factor: largest / QUERY_STEPS * scale });
        }
    }

    fn packed_page(&mut self, job: &Job<'_>, task: &Task, page: usize) {
        let block = &task.block;
        let row = &job.rows[block.row];
        let sinks = row.sinks.map_or(0, |(sinks, _)| sinks);
        let from_all = job.seen(block, 0).start..job.seen(block, block.tokens - 1).end;
        if clip(&from_all, page, sinks).is_empty() {
            return;
        }
        let index = row.pages[page] as usize * job.tiles.dense.kv_heads + task.head;
        let tile = &job.tiles.tiles[index * job.shape.tile_bytes..][..job.shape.tile_bytes];
        let [key_scales, value_scales] = scales(tile);
        if let Some(next) = row.pages.get(page + 1) {
            let index = *next as usize * job.tiles.dense.kv_heads + task.head;
            machine::prefetch(&job.tiles.tiles[index * job.shape.tile_bytes..][..tile.len()]);
        }
        let path = job.params.path;
        machine::unpack_keys(path, &mut self.keys, tile, &job.shape);
        machine::unpack_values(path, &mut self.values, tile, &job.shape);
        self.weights.clear();
        let records = self.state.chunks_exact_mut(job.width + 1);
        let queries = self.queries.iter().zip(&mut self.rows);
        for (index, (record, (query, row))) in records.zip(queries).enumerate() {
            let mut products = [0; PAGE_TOKENS];
            machine::score(path, &mut products, &self.keys, query);
            let factor = Lanes::splat(query.factor);
            let inputs = products.as_chunks::<8>().0.iter().zip(key_scales.as_chunks().0);
            for (scores, (products, scales)) in row.as_chunks_mut::<8>().0.iter_mut().zip(inputs) {
                let scale = Lanes::new(*scales) * factor;
                *scores = (i32x8::new(*products).round_float() * scale).to_array();
            }
            let token = index / job.group;
            adjust(row, job, block, (token, page * PAGE_TOKENS));
            tile::weigh(record, row, &clip(&job.seen(block, token), page, sinks));
            self.weights.push(quantize(row, &value_scales, job));
        }
        let records = self.state.chunks_exact_mut(job.width + 1);
        let mut states: Vec<&mut [f32]> =
            records.map(|record| cast_slice_mut(&mut record[..job.width])).collect();
        machine::accumulate(path, &mut states, &self.values, &self.weights);
    }

    /// Sink tokens, then the tail.
    fn dense_tokens(&mut self, job: &Job<'_>, task: &Task, records: &mut [Lanes]) {
        let [queries, ..] = &mut self.dense;
        queries.clear();
        queries.resize(job.queries(&task.block) * job.width, ZERO);
        let factor = job.params.scale * std::f32::consts::LOG2_E;
        for (index, into) in queries.chunks_exact_mut(job.width).enumerate() {
            let query = query_of(job, task, index, job.q);
            for (into, from) in cast_slice_mut(into).iter_mut().zip(query) {
                *into = from * factor;
            }
        }
        let row = &job.rows[task.block.row];
        if let Some((sinks, page)) = row.sinks {
            self.dense_page(job, task, records, (page, 0..sinks));
        }
        let first = row.pages.len() * PAGE_TOKENS;
        for (index, page) in row.tail.iter().enumerate() {
            let begin = first + index * PAGE_TOKENS;
            let end = row.position + task.block.first + task.block.tokens;
            if begin < end {
                let tokens = begin..end.min(begin + PAGE_TOKENS);
                self.dense_page(job, task, records, (*page, tokens));
            }
        }
    }

    /// Tokens at `positions`, the first of which is the first of `page`.
    fn dense_page(
        &mut self,
        job: &Job<'_>,
        task: &Task,
        records: &mut [Lanes],
        (page, positions): (u32, Range<usize>),
    ) {
        let (block, width, dim) = (&task.block, job.width, job.tiles.dense.dim);
        let [queries, keys, values] = &mut self.dense;
        let start = (page as usize * job.tiles.dense.kv_heads + task.head) * PAGE_TOKENS * dim;
        let from = start..start + positions.len() * dim;
        let stored = [job.tiles.dense.keys, job.tiles.dense.values];
        for (into, stored) in [&mut *keys, values].into_iter().zip(stored) {
            into.resize(PAGE_TOKENS * width, ZERO);
            tile::load(&mut into[..positions.len() * width], &stored[from.clone()], dim);
        }
        let slots = 0..positions.len();
        tile::score_all(&mut self.rows, queries, keys, &slots);
        let each = records.chunks_exact_mut(width + 1).zip(&mut self.rows);
        for (index, (record, row)) in each.enumerate() {
            let token = index / job.group;
            adjust(row, job, block, (token, positions.start));
            let seen = job.seen(block, token);
            let slot = |at: usize| at.clamp(positions.start, positions.end) - positions.start;
            tile::weigh(record, row, &(slot(seen.start)..slot(seen.end)));
        }
        tile::accumulate_all(records, &self.rows, (&values[..positions.len() * width], 0));
    }
}

/// A query vector of the task, out of `[tokens, q_heads, dim]`.
fn query_of<'q>(job: &Job<'_>, task: &Task, index: usize, all: &'q [f32]) -> &'q [f32] {
    let token = task.block.query + index / job.group;
    let head = task.head * job.group + index % job.group;
    let dim = job.tiles.dense.dim;
    &all[(token * job.params.q_heads + head) * dim..][..dim]
}

/// Positions as slots of a page without the first `sinks` tokens; empty if they lie outside.
fn clip(positions: &Range<usize>, page: usize, sinks: usize) -> Range<usize> {
    let slot = |position: usize| position.saturating_sub(page * PAGE_TOKENS).min(PAGE_TOKENS);
    slot(positions.start.max(sinks))..slot(positions.end)
}

/// Scales of keys and of values, at the head of a tile.
fn scales(tile: &[u8]) -> [[f32; PAGE_TOKENS]; 2] {
    let mut halves = [f16::ZERO; 2 * PAGE_TOKENS];
    for (half, bytes) in halves.iter_mut().zip(tile.chunks_exact(2)) {
        *half = f16::from_le_bytes([bytes[0], bytes[1]]);
    }
    let mut scales = [[0.0; PAGE_TOKENS]; 2];
    for (scales, halves) in scales.iter_mut().zip(halves.chunks_exact(PAGE_TOKENS)) {
        halves.convert_to_f32_slice(scales);
    }
    scales
}

/// Soft cap and mask of scores (in base 2) of the tokens from `first` on.
fn adjust(
    scores: &mut [f32; PAGE_TOKENS],
    job: &Job<'_>,
    block: &Block,
    (token, first): (usize, usize),
) {
    if let Some(cap) = job.params.soft_cap {
        let cap = cap * std::f32::consts::LOG2_E;
        for score in scores.iter_mut() {
            // tanh(x) = sign(x) · (1 - e) / (1 + e), e = exp(-2 |x|)
            let ratio = *score / cap;
            let e = exp2_one(-2.0 * std::f32::consts::LOG2_E * ratio.abs());
            *score = cap.copysign(ratio) * ((1.0 - e) / (1.0 + e));
        }
    }
    let row = &job.rows[block.row];
    if let Some(mask) = row.mask {
        let length = row.position + row.tokens;
        let mask = &mask[(block.first + token) * length..][..length];
        for (score, mask) in scores.iter_mut().zip(&mask[first.min(length)..]) {
            *score += mask * std::f32::consts::LOG2_E;
        }
    }
}

/// Weights times value scales as integers, in the order of the values' lines.
fn quantize(weights: &[f32; PAGE_TOKENS], scales: &[f32; PAGE_TOKENS], job: &Job<'_>) -> Weights {
    let mut scaled = [ZERO; PAGE_TOKENS / 8];
    let mut largest = ZERO;
    let inputs = weights.as_chunks::<8>().0.iter().zip(scales.as_chunks().0);
    for (scaled, (weights, scales)) in scaled.iter_mut().zip(inputs) {
        *scaled = Lanes::new(*weights) * Lanes::new(*scales);
        largest = largest.max(*scaled);
    }
    let largest = largest.to_array().into_iter().fold(0.0, f32::max);
    let steps = Lanes::splat(if largest > 0.0 { WEIGHT_STEPS / largest } else { 0.0 });
    let mut whole = [0_i16; PAGE_TOKENS];
    let mut sums = i32x8::ZERO;
    for (whole, scaled) in whole.as_chunks_mut::<8>().0.iter_mut().zip(scaled) {
        // Nearest, ties to even; never past the steps, so nothing has to be checked.
        let rounded = (scaled * steps).fast_round_int();
        sums += rounded;
        *whole = i16x8::from_i32x8_truncate(rounded).to_array();
    }
    let sum = sums.to_array().into_iter().sum();
    if job.shape.weights_apart {
        for sixteen in whole.as_chunks_mut::<16>().0 {
            let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *sixteen;
            *sixteen = [a, c, e, g, i, k, m, o, b, d, f, h, j, l, n, p];
        }
    }
    let mut lines = [EMPTY; 2];
    let [high, low] = &mut lines;
    for (high, whole) in high.0.iter_mut().zip(&whole) {
        *high = (whole >> 7) as u8;
    }
    for (low, whole) in low.0.iter_mut().zip(&whole) {
        *low = (whole & 127) as u8;
    }
    Weights { lines, sum, factor: largest / WEIGHT_STEPS * job.shape.value_levels.factor }
}
