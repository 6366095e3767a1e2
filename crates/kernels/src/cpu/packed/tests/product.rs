//! Every context with every group, batch, head size, width pair and instruction set against f64.
//!
//! Contexts are prefixes of one encoded sequence and groups the first of sixteen query heads, so
//! f64 is computed once a context and head. One result is compared with it, and whatever batch,
//! group and path compute the same query must give that result's bits. About 310 s of CPU time,
//! three quarters of them plain Rust with its checks.

use half::f16;
use kvant_turboquant::{Codec, Key, PageLayout, Rotation, ScaleRule, Side, Widths, width_pairs};

use super::super::*;
use super::case::{Random, bits, worst};
use crate::cpu::{PageSource, encode};

/// Not ascending, so that batches are ragged.
const CONTEXTS: [usize; 11] = [64, 2048, 1, 65, 16, 16_384, 17, 2049, 63, 15, 2047];
const LONGEST: usize = 16_384;
const GROUPS: [usize; 6] = [1, 3, 4, 7, 8, 16];
const BATCHES: [usize; 4] = [1, 2, 3, 8];
const HEADS: usize = 16;

/// Tokens of a context that are packed: all before the page of its query.
fn packed(context: usize) -> usize {
    (context - 1) / PAGE_TOKENS * PAGE_TOKENS
}

/// A sequence of one key head, and sixteen query heads.
struct Sequence {
    tiles: Vec<u8>,
    layout: PageLayout,
    /// Of keys and values.
    codecs: [Codec; 2],
    /// Scattered pages in token order.
    pages: Vec<u32>,
    /// One 16-bit page a context.
    tails: [Vec<f16>; 2],
    q: Vec<f32>,
}

impl Sequence {
    fn new(dim: usize, widths: Widths) -> Self {
        let mut random = Random(dim as u64);
        let codec = |side, width| {
            let rotation = Rotation::new(dim, Key { layer: 2, side, seed: 9 });
            Codec::new(rotation, width, ScaleRule::for_side(side, width))
        };
        let codecs = [codec(Side::Keys, widths.keys), codec(Side::Values, widths.values)];
        let layout = PageLayout::new(dim, widths);
        let pages = packed(LONGEST) / PAGE_TOKENS;
        let len = packed(LONGEST) * dim;
        let (keys, values) = (random.floats(len), random.floats(len));
        let mut tiles = vec![0; pages * layout.tile_bytes()];
        let source = PageSource { keys: &keys, values: &values, kv_heads: 1 };
        encode(&mut tiles, source, &layout, (&codecs[0], &codecs[1])).unwrap();
        let len = CONTEXTS.len() * PAGE_TOKENS * dim;
        let mut halves = || random.floats(len).into_iter().map(f16::from_f32).collect();
        let tails = [halves(), halves()];
        let q = random.floats(HEADS * dim).iter().map(|q| 2.0 * q).collect();
        // 37 has no factor in common with 255 pages.
        let pages = (0..pages).map(|page| (page * 37 % pages) as u32).collect();
        Self { tiles, layout, codecs, pages, tails, q }
    }

    /// One query token at the end of each context, given by index, with the first `group` heads.
    fn attend(&self, contexts: &[usize], group: usize, path: Path) -> Vec<f32> {
        let dim = self.layout.dim();
        let [keys, values] = &self.tails;
        let tiles = PackedTiles {
            tiles: &self.tiles,
            layout: &self.layout,
            keys: self.codecs[0].rotation(),
            values: self.codecs[1].rotation(),
            dense: DenseTiles { keys, values, kv_heads: 1, dim },
        };
        let tails: Vec<_> = contexts.iter().map(|context| [*context as u32]).collect();
        let rows = contexts.iter().zip(&tails).map(|(context, tail)| PackedRow {
            pages: &self.pages[..packed(CONTEXTS[*context]) / PAGE_TOKENS],
            tail,
            sinks: None,
            position: CONTEXTS[*context] - 1,
            tokens: 1,
            mask: None,
        });
        let rows: Vec<_> = rows.collect();
        let params = PackedParams {
            q_heads: group,
            scale: 1.0 / (dim as f32).sqrt(),
            window: None,
            soft_cap: None,
            sink_logits: None,
            path,
        };
        let q = self.q[..group * dim].repeat(contexts.len());
        let mut out = vec![f32::NAN; q.len()];
        attend_packed(&mut out, &q, tiles, &rows, &params);
        out
    }

    /// Decoded keys or values of the packed tokens, in order, code by code.
    fn decoded(&self, side: usize) -> Vec<f32> {
        let (codec, layout) = (&self.codecs[side], &self.layout);
        let rotation = codec.rotation();
        let of_page = |page: &u32| -> Vec<f32> {
            let tile = &self.tiles[*page as usize * layout.tile_bytes()..][..layout.tile_bytes()];
            let of_token = |slot: usize| {
                let scale = [layout.key_scale(tile, slot), layout.value_scale(tile, slot)][side];
                let code = |d| match side {
                    0 => layout.key_code(tile, slot, d),
                    _ => layout.value_code(tile, slot, d),
                };
                let levels = (0..layout.dim()).map(|d| codec.book().level(code(d)));
                let scaled = levels.map(|level| level * scale.to_f32()).collect();
                rotation.restore(rotation.adopt(scaled))
            };
            (0..PAGE_TOKENS).flat_map(of_token).collect()
        };
        let pages: Vec<Vec<f32>> = self.pages.par_iter().map(of_page).collect();
        pages.concat()
    }

    /// In f64, by context `[heads, dim]`.
    fn reference(&self) -> Vec<Vec<f64>> {
        let stored = [self.decoded(0), self.decoded(1)];
        let queries = self.q.par_chunks_exact(self.layout.dim());
        let heads: Vec<_> = queries.map(|query| self.reference_of(query, &stored)).collect();
        let of = |context: usize| heads.iter().flat_map(move |head| head[context].clone());
        (0..CONTEXTS.len()).map(|context| of(context).collect()).collect()
    }

    /// Of one query, by context. Scores have a deviation of 2: no maximum has to be taken off.
    fn reference_of(&self, query: &[f32], [keys, values]: &[Vec<f32>; 2]) -> Vec<Vec<f64>> {
        let dim = query.len();
        let (mut state, mut done) = (vec![0.0; dim + 1], 0);
        let mut out = vec![Vec::new(); CONTEXTS.len()];
        let mut ascending: Vec<_> = CONTEXTS.into_iter().enumerate().collect();
        ascending.sort_by_key(|(_, context)| *context);
        for (index, context) in ascending {
            let end = packed(context);
            add(&mut state, query, [&keys[done * dim..end * dim], &values[done * dim..]]);
            done = end;
            let tail = index * PAGE_TOKENS * dim..(index * PAGE_TOKENS + context - end) * dim;
            let widened = |halves: &Vec<f16>| -> Vec<f32> {
                halves[tail.clone()].iter().map(|x| x.to_f32()).collect()
            };
            let [tail_keys, tail_values] = self.tails.each_ref().map(widened);
            let mut sums = state.clone();
            add(&mut sums, query, [&tail_keys, &tail_values]);
            let weights = sums.pop().unwrap();
            out[index] = sums.into_iter().map(|sum| sum / weights).collect();
        }
        out
    }
}

/// Adds tokens to the weighted sum of values and, last, to that of weights.
fn add(state: &mut [f64], query: &[f32], [keys, values]: [&[f32]; 2]) {
    let dim = query.len();
    let (weights, sums) = state.split_last_mut().unwrap();
    for (key, value) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)) {
        let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
        let weight = (dot / (dim as f64).sqrt()).exp();
        *weights += weight;
        for (sum, value) in sums.iter_mut().zip(value) {
            *sum += weight * f64::from(*value);
        }
    }
}

fn check(dim: usize) {
    for widths in width_pairs() {
        let sequence = Sequence::new(dim, widths);
        let all = 0..CONTEXTS.len();
        let first: Vec<_> =
            all.map(|context| sequence.attend(&[context], HEADS, Path::best())).collect();
        for ((got, want), context) in first.iter().zip(sequence.reference()).zip(CONTEXTS) {
            let worst = worst(got, &want, dim);
            assert!(worst < 1e-3, "{dim}, {widths:?}, context {context}: {worst:.1e}");
        }
        for path in Path::available() {
            for (group, batch) in GROUPS.map(|group| BATCHES.map(|batch| (group, batch))).concat() {
                for start in (0..CONTEXTS.len()).step_by(batch) {
                    let rows: Vec<_> =
                        (start..start + batch).map(|row| row % CONTEXTS.len()).collect();
                    let got = sequence.attend(&rows, group, path);
                    let what = format!("{path:?}, {dim}, {widths:?}, group {group}, rows {rows:?}");
                    for (got, row) in got.chunks_exact(group * dim).zip(rows) {
                        assert!(bits(got) == bits(&first[row][..group * dim]), "{what}");
                    }
                }
            }
        }
    }
}

#[test]
fn heads_of_64() {
    check(64);
}

#[test]
fn heads_of_80() {
    check(80);
}

#[test]
fn heads_of_96() {
    check(96);
}

#[test]
fn heads_of_128() {
    check(128);
}

#[test]
fn heads_of_256() {
    check(256);
}
