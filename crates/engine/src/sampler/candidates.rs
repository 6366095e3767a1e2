//! `draw`: temperature, the three cuts, and the draw among what is left.
//!
//! Sorting a vocabulary for every token would cost more than a layer of a small model, so top_p
//! looks at the likeliest tokens in growing portions and stops as soon as they reach it.

use crate::request::{SamplingParams, TokenId};

/// Tokens that top_p looks at first.
const PORTION: usize = 256;

/// A token and its unnormalised probability.
type Candidate = (TokenId, f64);

/// Draws a token by a number in `0..1`. `None` if no logit is finite.
pub(super) fn draw(logits: &[f32], params: &SamplingParams, uniform: f64) -> Option<TokenId> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if !max.is_finite() {
        return None;
    }
    let scale = 1.0 / f64::from(params.temperature);
    let weight = |logit: f32| (f64::from(logit - max) * scale).exp();
    // The likeliest has weight 1, so min_p is a bound on the weight itself.
    let least = f64::from(params.min_p).max(f64::MIN_POSITIVE);
    let mut kept: Vec<Candidate> = (0..)
        .zip(logits)
        .map(|(token, logit)| (token, weight(*logit)))
        .filter(|(_, weight)| *weight >= least)
        .collect();
    if let Some(k) = params.top_k {
        likeliest(&mut kept, (k as usize).max(1));
    }
    if params.top_p < 1.0 {
        nucleus(&mut kept, f64::from(params.top_p));
    }
    // In the order of ids, whatever the cuts have done to it.
    kept.sort_unstable_by_key(|(token, _)| *token);
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let mut left = uniform * total;
    for (token, weight) in &kept {
        left -= weight;
        if left < 0.0 {
            return Some(*token);
        }
    }
    kept.last().map(|(token, _)| *token)
}

/// Keeps the `count` likeliest, in no order; lower ids first among equals.
fn likeliest(kept: &mut Vec<Candidate>, count: usize) {
    if count < kept.len() {
        kept.select_nth_unstable_by(count - 1, better);
        kept.truncate(count);
    }
}

/// Keeps the smallest set of likeliest tokens whose part of the whole reaches `p`; at least one.
fn nucleus(kept: &mut Vec<Candidate>, p: f64) {
    let total: f64 = kept.iter().map(|(_, weight)| weight).sum();
    let mut portion = PORTION.min(kept.len());
    loop {
        if portion < kept.len() {
            kept.select_nth_unstable_by(portion - 1, better);
        }
        let sorted = &mut kept[..portion];
        sorted.sort_unstable_by(better);
        let mut sum = 0.0;
        let enough = sorted.iter().position(|(_, weight)| {
            sum += weight;
            sum >= p * total
        });
        if let Some(last) = enough {
            return kept.truncate(last + 1);
        }
        if portion == kept.len() {
            return;
        }
        portion = (portion * 8).min(kept.len());
    }
}

fn better(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    b.1.total_cmp(&a.1).then(a.0.cmp(&b.0))
}
