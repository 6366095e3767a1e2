//! `attend_reference`: attention in the left-padded frame, for layers without a fused kernel and
//! to test those kernels against.
//!
//! Keys and values are gathered as `PageStore::token` gives them (out of rotated space, whatever
//! the rotation), then mask, softmax and sum in f64. It copies every row and is slow.

use crate::format::LayerShape;
use crate::layout::BatchLayout;
use crate::store::{PageStore, Row};

/// What is the same for all rows.
#[derive(Clone, Copy, Debug)]
pub struct ReferenceParams {
    /// Query heads; a multiple of the key heads.
    pub q_heads: usize,
    /// Factor of q·k.
    pub scale: f32,
    /// A token sees this many tokens including itself; `None` sees all.
    pub window: Option<usize>,
    /// Scores become cap · tanh(score / cap).
    pub soft_cap: Option<f32>,
}

/// One row of the frame, `[columns, kv_heads, dim]`; padding is zeros.
struct Frame {
    shape: LayerShape,
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Writes softmax(scale · q·Kᵀ)·V of the tokens of `rows`, whose keys and values have been appended
/// to the store; a token that sees nothing gets zeros. Rows may differ in position and tokens.
///
/// `q` and `out` are `[sum of tokens, q_heads, dim]`.
///
/// # Panics
/// If lengths do not fit together or a page list is too short: errors of ours.
pub fn attend_reference(
    out: &mut [f32],
    q: &[f32],
    (store, layer): (&PageStore, usize),
    rows: &[Row<'_>],
    params: &ReferenceParams,
) {
    let shape = store.shape(layer);
    let LayerShape { kv_heads, dim } = shape;
    assert!(params.q_heads.is_multiple_of(kv_heads), "query heads are no multiple of key heads");
    let len = params.q_heads * dim;
    let count: usize = rows.iter().map(|row| row.tokens).sum();
    assert_eq!(q.len(), count * len, "q must be [{count}, q_heads, dim]");
    assert_eq!(out.len(), q.len(), "out must have the shape of q");
    let layout = BatchLayout::new(&rows.iter().map(|row| row.position).collect::<Vec<_>>());
    let new_tokens = rows.iter().map(|row| row.tokens).max().unwrap_or_default();
    let padding: Vec<usize> = rows.iter().map(|row| new_tokens - row.tokens).collect();
    let mask = layout.causal_mask(new_tokens, Some(&padding), params.window);
    let mut queries = q.chunks_exact(len).zip(out.chunks_exact_mut(len));
    for (index, row) in rows.iter().enumerate() {
        let place = (layout.left_padding()[index], mask.columns());
        let frame = Frame::gather((store, layer), *row, place);
        for (query, (q, out)) in queries.by_ref().take(row.tokens).enumerate() {
            frame.attend(out, q, mask.seen(index, query), params);
        }
    }
}

impl Frame {
    fn gather(
        (store, layer): (&PageStore, usize),
        row: Row<'_>,
        (padding, columns): (usize, usize),
    ) -> Self {
        let shape = store.shape(layer);
        let (len, length) = (shape.token_len(), row.position + row.tokens);
        let mut keys = vec![0.0; columns * len];
        let mut values = keys.clone();
        for position in 0..length {
            let (k, v) = store.token(layer, row, position, length);
            let at = (padding + position) * len;
            keys[at..at + len].copy_from_slice(&k);
            values[at..at + len].copy_from_slice(&v);
        }
        Self { shape, keys, values }
    }

    /// One token. q, out: `[q_heads, dim]`.
    fn attend(&self, out: &mut [f32], q: &[f32], seen: &[bool], params: &ReferenceParams) {
        let LayerShape { kv_heads, dim } = self.shape;
        let group = params.q_heads / kv_heads;
        for (q_head, (q, out)) in q.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
            let at = |column: usize| (column * kv_heads + q_head / group) * dim;
            let score = |(column, seen): (usize, &bool)| {
                if *seen {
                    capped(dot(q, &self.keys[at(column)..][..dim]), params)
                } else {
                    f64::NEG_INFINITY
                }
            };
            let mut weights: Vec<f64> = seen.iter().enumerate().map(score).collect();
            softmax(&mut weights);
            let mut sums = vec![0.0; dim];
            // What is not seen may hold anything, even NaN.
            let weights = weights.iter().enumerate().zip(seen).filter(|(_, seen)| **seen);
            for ((column, weight), _) in weights {
                let value = &self.values[at(column)..][..dim];
                sums.iter_mut().zip(value).for_each(|(sum, v)| *sum += weight * f64::from(*v));
            }
            out.iter_mut().zip(&sums).for_each(|(out, sum)| *out = *sum as f32);
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
}

fn capped(product: f64, params: &ReferenceParams) -> f64 {
    let score = product * f64::from(params.scale);
    params.soft_cap.map(f64::from).map_or(score, |cap| cap * (score / cap).tanh())
}

/// Scores to weights; all zeros where nothing is seen.
fn softmax(scores: &mut [f64]) {
    let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if largest == f64::NEG_INFINITY {
        scores.fill(0.0);
        return;
    }
    for score in scores.iter_mut() {
        *score = (*score - largest).exp();
    }
    let sum: f64 = scores.iter().sum();
    for weight in scores.iter_mut() {
        *weight /= sum;
    }
}
