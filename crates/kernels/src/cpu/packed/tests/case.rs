//! A packed cache with scattered pages, and attention over it in f64.

use std::fmt;

use half::f16;
use kvant_turboquant::{Codec, Key, PageLayout, Rotation, ScaleRule, Side, Widths};

use super::super::*;
use crate::cpu::{PageSource, encode};

#[derive(Clone, Copy, Debug)]
pub(super) struct Options {
    pub(super) window: Option<usize>,
    pub(super) soft_cap: Option<f32>,
    pub(super) sink_logits: bool,
    pub(super) mask: bool,
    /// The mask hides everything with this number.
    pub(super) mask_out: Option<f32>,
    /// 16-bit tokens at the start.
    pub(super) sinks: usize,
    pub(super) path: Path,
}

impl Default for Options {
    fn default() -> Self {
        let path = Path::best();
        let (window, soft_cap, mask_out) = (None, None, None);
        Self { window, soft_cap, sink_logits: false, mask: false, mask_out, sinks: 0, path }
    }
}

pub(super) struct Row {
    pub(super) pages: Vec<u32>,
    pub(super) tail: Vec<u32>,
    pub(super) sink_page: u32,
    pub(super) position: usize,
    pub(super) tokens: usize,
    pub(super) mask: Vec<f32>,
}

pub(super) struct Case {
    pub(super) tiles: Vec<u8>,
    pub(super) layout: PageLayout,
    /// Of keys and values.
    pub(super) rotations: (Rotation, Rotation),
    pub(super) codecs: (Codec, Codec),
    pub(super) dense: [Vec<f16>; 2],
    /// (kv_heads, group, dim)
    pub(super) shape: (usize, usize, usize),
    pub(super) rows: Vec<Row>,
    pub(super) q: Vec<f32>,
    pub(super) logits: Vec<f32>,
    pub(super) options: Options,
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows: Vec<_> = self.rows.iter().map(|row| (row.position, row.tokens)).collect();
        let (shape, widths) = (self.shape, self.layout.widths());
        write!(f, "{shape:?}, {widths:?}, rows {rows:?}, {:?}", self.options)
    }
}

/// Roughly normal numbers from a counter.
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> f32 {
        let mut uniform = || {
            self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            ((mixed ^ (mixed >> 27)) >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        2.0 * (uniform() + uniform() + uniform())
    }

    pub(super) fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.next()).collect()
    }
}

pub(super) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// The largest relative error of a query vector's result.
pub(super) fn worst(got: &[f32], want: &[f64], dim: usize) -> f64 {
    let of = |(got, want): (&[f32], &[f64])| {
        let rest: f64 = got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
        let own: f64 = want.iter().map(|x| x * x).sum();
        if rest.is_nan() { f64::INFINITY } else { (rest / own.max(1e-30)).sqrt() }
    };
    got.chunks(dim).zip(want.chunks(dim)).map(of).fold(0.0, f64::max)
}

impl Case {
    /// Rows of (position, tokens). All tokens before the first query's page are packed.
    pub(super) fn new(
        shape: (usize, usize, usize),
        widths: Widths,
        rows: &[(usize, usize)],
        options: Options,
    ) -> Self {
        let (kv_heads, group, dim) = shape;
        let mut random = Random(rows.iter().fold(dim as u64, |seed, r| seed * 31 + r.0 as u64));
        let rotation = |side| Rotation::new(dim, Key { layer: 2, side, seed: 9 });
        let rotations = (rotation(Side::Keys), rotation(Side::Values));
        let codec = |rotation: &Rotation, side, width| {
            Codec::new(rotation.clone(), width, ScaleRule::for_side(side, width))
        };
        let codecs = (
            codec(&rotations.0, Side::Keys, widths.keys),
            codec(&rotations.1, Side::Values, widths.values),
        );
        let layout = PageLayout::new(dim, widths);
        let packed: usize = rows.iter().map(|row| row.0 / PAGE_TOKENS).sum();
        let len = packed * PAGE_TOKENS * kv_heads * dim;
        let (keys, values) = (random.floats(len), random.floats(len));
        let mut tiles = vec![0; packed * kv_heads * layout.tile_bytes()];
        let source = PageSource { keys: &keys, values: &values, kv_heads };
        encode(&mut tiles, source, &layout, (&codecs.0, &codecs.1)).unwrap();
        let (mut packed, mut dense) = (0..packed as u32, 0_u32);
        let rows: Vec<Row> = rows
            .iter()
            .map(|(position, tokens)| {
                // Later pages of a row lie before earlier ones.
                let mut pages: Vec<u32> = packed.by_ref().take(position / PAGE_TOKENS).collect();
                pages.reverse();
                let tails = (position + tokens).div_ceil(PAGE_TOKENS) - pages.len();
                let sink_page = dense;
                let tail: Vec<u32> = (dense + 1..dense + 1 + tails as u32).rev().collect();
                dense += 1 + tails as u32;
                let mask = (0..tokens * (position + tokens)).map(|_| {
                    let shift = random.next();
                    let hidden = if shift > 1.5 { f32::NEG_INFINITY } else { shift };
                    options.mask_out.unwrap_or(hidden)
                });
                let mask = if options.mask { mask.collect() } else { Vec::new() };
                Row { pages, tail, sink_page, position: *position, tokens: *tokens, mask }
            })
            .collect();
        let len = dense as usize * PAGE_TOKENS * kv_heads * dim;
        let mut halves = || random.floats(len).into_iter().map(f16::from_f32).collect();
        let dense = [halves(), halves()];
        let tokens: usize = rows.iter().map(|row| row.tokens).sum();
        let q = random.floats(tokens * kv_heads * group * dim).iter().map(|q| 2.0 * q).collect();
        let logits = random.floats(kv_heads * group);
        Self { tiles, layout, rotations, codecs, dense, shape, rows, q, logits, options }
    }

    /// The same sequence without its first pages, for a window that does not reach them.
    pub(super) fn without_first_pages(&self, row: usize, count: usize) -> Self {
        let from = &self.rows[row];
        let row = Row {
            pages: from.pages[count..].to_vec(),
            tail: from.tail.clone(),
            sink_page: from.sink_page,
            position: from.position - count * PAGE_TOKENS,
            tokens: from.tokens,
            mask: Vec::new(),
        };
        Self {
            tiles: self.tiles.clone(),
            layout: self.layout.clone(),
            rotations: self.rotations.clone(),
            codecs: self.codecs.clone(),
            dense: self.dense.clone(),
            shape: self.shape,
            rows: vec![row],
            q: self.q.clone(),
            logits: self.logits.clone(),
            options: self.options,
        }
    }

    fn packed_row<'a>(&self, row: &'a Row, tokens: Range<usize>, mask: &'a [f32]) -> PackedRow<'a> {
        let sinks = self.options.sinks.min(row.pages.len() * PAGE_TOKENS);
        PackedRow {
            pages: &row.pages,
            tail: &row.tail,
            sinks: (sinks > 0).then_some((sinks, row.sink_page)),
            position: row.position + tokens.start,
            tokens: tokens.len(),
            mask: (!mask.is_empty()).then_some(mask),
        }
    }

    fn attend(&self, q: &[f32], rows: &[PackedRow<'_>]) -> Vec<f32> {
        let (kv_heads, group, dim) = self.shape;
        let [keys, values] = &self.dense;
        let tiles = PackedTiles {
            tiles: &self.tiles,
            layout: &self.layout,
            keys: &self.rotations.0,
            values: &self.rotations.1,
            dense: DenseTiles { keys, values, kv_heads, dim },
        };
        let params = PackedParams {
            q_heads: kv_heads * group,
            scale: 1.0 / (dim as f32).sqrt(),
            window: self.options.window,
            soft_cap: self.options.soft_cap,
            sink_logits: self.options.sink_logits.then_some(&self.logits),
            path: self.options.path,
        };
        let mut out = vec![f32::NAN; q.len()];
        attend_packed(&mut out, q, tiles, rows, &params);
        out
    }

    pub(super) fn run(&self) -> Vec<f32> {
        let rows: Vec<_> =
            self.rows.iter().map(|row| self.packed_row(row, 0..row.tokens, &row.mask)).collect();
        self.attend(&self.q, &rows)
    }

    /// Some tokens of one row alone.
    pub(super) fn run_part(&self, row: usize, tokens: Range<usize>) -> Vec<f32> {
        let (kv_heads, group, dim) = self.shape;
        let before: usize = self.rows[..row].iter().map(|row| row.tokens).sum();
        let stride = kv_heads * group * dim;
        let q = &self.q[(before + tokens.start) * stride..(before + tokens.end) * stride];
        self.attend(q, &[self.packed_row(&self.rows[row], tokens, &[])])
    }

    pub(super) fn worst(&self, got: &[f32], want: &[f64]) -> f64 {
        worst(got, want, self.shape.2)
    }

    pub(super) fn reference(&self) -> Vec<f64> {
        let (kv_heads, group, dim) = self.shape;
        let mut out = Vec::new();
        let mut queries = self.q.chunks_exact(dim);
        for row in &self.rows {
            let length = row.position + row.tokens;
            let stored: Vec<_> = (0..kv_heads).map(|head| self.decoded(row, head)).collect();
            for token in 0..row.tokens {
                let end = row.position + token + 1;
                let first = self.options.window.map_or(0, |w| end.saturating_sub(w));
                for head in 0..kv_heads * group {
                    let (keys, values) = &stored[head / group];
                    let query = queries.next().unwrap();
                    let mut scores: Vec<f64> =
                        (first..end).map(|at| self.score(query, &keys[at])).collect();
                    if !row.mask.is_empty() {
                        let mask = &row.mask[token * length..][first..end];
                        scores.iter_mut().zip(mask).for_each(|(s, m)| *s += f64::from(*m));
                    }
                    let logit = self.options.sink_logits.then(|| f64::from(self.logits[head]));
                    out.extend(weighted(&scores, &values[first..end], logit, dim));
                }
            }
        }
        out
    }

    fn score(&self, query: &[f32], key: &[f64]) -> f64 {
        let dot: f64 = query.iter().zip(key).map(|(q, k)| f64::from(*q) * k).sum();
        let score = dot / (query.len() as f64).sqrt();
        let cap = self.options.soft_cap.map(f64::from);
        cap.map_or(score, |cap| cap * (score / cap).tanh())
    }

    /// All keys and values of one head of a row, decoded code by code.
    fn decoded(&self, row: &Row, head: usize) -> (Vec<Vec<f64>>, Vec<Vec<f64>>) {
        let (kv_heads, _, dim) = self.shape;
        let length = row.position + row.tokens;
        let packed = row.pages.len() * PAGE_TOKENS;
        let sinks = self.options.sinks.min(packed);
        let dense = |page: u32, slot: usize, side: usize| -> Vec<f64> {
            let at = ((page as usize * kv_heads + head) * PAGE_TOKENS + slot) * dim;
            self.dense[side][at..at + dim].iter().map(|x| x.to_f64()).collect()
        };
        let token = |at: usize, side: usize| {
            let slot = at % PAGE_TOKENS;
            if at < sinks {
                return dense(row.sink_page, slot, side);
            }
            if at >= packed {
                return dense(row.tail[(at - packed) / PAGE_TOKENS], slot, side);
            }
            let tile = row.pages[at / PAGE_TOKENS] as usize * kv_heads + head;
            let bytes = self.layout.tile_bytes();
            let tile = &self.tiles[tile * bytes..][..bytes];
            let (codec, scale) = match side {
                0 => (&self.codecs.0, self.layout.key_scale(tile, slot)),
                _ => (&self.codecs.1, self.layout.value_scale(tile, slot)),
            };
            let level = |d| match side {
                0 => codec.book().level(self.layout.key_code(tile, slot, d)),
                _ => codec.book().level(self.layout.value_code(tile, slot, d)),
            };
            let levels = (0..dim).map(|d| level(d) * scale.to_f32()).collect();
            let rotation = codec.rotation();
            rotation.restore(rotation.adopt(levels)).into_iter().map(f64::from).collect()
        };
        let all = |side| (0..length).map(|at| token(at, side)).collect();
        (all(0), all(1))
    }
}

fn weighted(scores: &[f64], values: &[Vec<f64>], logit: Option<f64>, dim: usize) -> Vec<f64> {
    let most = scores.iter().copied().chain(logit).fold(-1e30, f64::max);
    let weights: Vec<f64> = scores.iter().map(|s| (s - most).exp()).collect();
    let total: f64 = weights.iter().sum::<f64>() + logit.map_or(0.0, |logit| (logit - most).exp());
    let mut out = vec![0.0; dim];
    for (weight, value) in weights.iter().zip(values).filter(|(weight, _)| **weight > 0.0) {
        out.iter_mut().zip(value).for_each(|(out, v)| *out += weight / total * v);
    }
    out
}
